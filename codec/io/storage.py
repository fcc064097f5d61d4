"""Files that appear whole or not at all, folders with one writer, a folder walk, and system errors as CodecErrors."""

import errno
import io
import os
import secrets
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from codec.errors import ConfigError, InputNotFound, StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

COPY_BYTES = 2**20


@contextmanager
def storing(target: str | Path, *, instead: str = "write elsewhere") -> Iterator[None]:
    """Raise an OSError as a StorageError that names `target` and ends in `instead`, the way out."""
    try:
        yield
    except OSError as error:
        raise _storage_error(target, error, instead) from error
    except ValueError as error:
        if "\0" not in str(target):
            raise
        raise StorageError(f"{target!r} cannot be written ({error}): choose another name") from error


@contextmanager
def storing_below(folder: Path, *, instead: str = "write elsewhere") -> Iterator[None]:
    """As `storing`, for work on many files: the message names the file, and `folder` where the system names none."""
    try:
        yield
    except OSError as error:
        raise _storage_error(error.filename or folder, error, instead, done="used") from error


def _storage_error(target: str | Path, error: OSError, instead: str, *, done: str = "written") -> StorageError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return StorageError(f"{target} cannot be {done}, the disk is full: free some space or {instead}")
        case errno.ENOENT:
            return StorageError(f"{target} cannot be {done}, its folder does not exist: create it first")
        case errno.EEXIST | errno.ENOTDIR:
            return StorageError(f"{target} cannot be {done}, it is a file or lies below one: {instead}")
        case _:
            reason = error.strerror or error
            return StorageError(f"{target} cannot be {done} ({reason}): check the permissions or {instead}")


@contextmanager
def atomic_output(path: str | Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file, seekable and readable, that becomes `path` when the block ends.

    If the block raises, no file remains. `-` (standard output), pipes and devices receive the content at the end.
    Raises StorageError: `path` exists and `force` is off, the disk is full, the folder is missing or not writable.
    """
    label = "standard output" if str(path) == "-" else str(path)
    streamed = str(path) == "-" or is_device(path)
    with storing(label):
        if not streamed and Path(path).is_dir():
            raise StorageError(f"{label} is a folder: name a file in it")
        if not streamed and not force and Path(path).exists():
            raise StorageError(f"{label} exists: pass --force to replace it")
        target = Path(os.path.realpath(path))  # a link stays a link
    part = Path(tempfile.gettempdir() if streamed else target.parent) / f".codec-{secrets.token_hex(8)}.part"
    with storing(label):
        raw = _Output(part, label)
    file = io.BufferedRandom(raw)
    try:
        yield file
        with storing(label):
            file.flush()
            os.fsync(file.fileno())  # because some file systems report a full disk only here
            if streamed:
                file.seek(0)
                _copy_to(path, file)
            file.close()
            if not streamed:
                part.replace(target)
    finally:
        raw.close()  # before `file`, so that after a failure its buffer is dropped, not written
        with storing(label):
            part.unlink(missing_ok=True)


class _Output(io.FileIO):
    """A new file whose failing writes raise StorageError."""

    def __init__(self, path: Path, label: str) -> None:
        super().__init__(path, "x+")
        self._label = label

    def write(self, data: "ReadableBuffer", /) -> int:
        with storing(self._label):
            return super().write(data)


def _copy_to(path: str | Path, file: BinaryIO) -> None:
    if str(path) == "-":
        _copy(file, raw_stdout())
    else:
        with Path(path).open("wb", buffering=0) as stream:
            _copy(file, stream)


def _copy(source: BinaryIO, sink: io.RawIOBase | BinaryIO) -> None:
    while chunk := source.read(COPY_BYTES):
        write_all(sink, chunk)


def write_all(sink: io.RawIOBase | BinaryIO, chunk: bytes) -> None:
    """Write a whole chunk to an unbuffered file, which may take a part of it at a time."""
    rest = memoryview(chunk)
    while rest:
        rest = rest[sink.write(rest) :]


def raw_stdout() -> io.RawIOBase | BinaryIO:
    """Standard output without Python's buffer, where bytes that failed would fail again at exit, with a traceback."""
    sys.stdout.flush()
    raw: io.RawIOBase | BinaryIO = getattr(sys.stdout.buffer, "raw", sys.stdout.buffer)
    return raw


def is_device(path: str | Path) -> bool:
    """Whether `path` exists and is neither a file nor a folder: a pipe, a terminal, /dev/null."""
    with storing(str(path)):
        return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()


@contextmanager
def locked_folder(folder: Path, job: str) -> Iterator[None]:
    """Make a folder and hold its lock, where the system has locks; remove the folder again if it stays empty.

    Raises ConfigError if another process does the same `job` there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / ".lock").open("w") as file:
            with suppress(ImportError):
                import fcntl

                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ConfigError(f"another {job} is running in {folder}: choose another --out, or wait") from error
            try:
                yield
            finally:
                (folder / ".lock").unlink()
    finally:
        with suppress(OSError):
            folder.rmdir()


def walk(folder: str | Path, accept: Callable[[str], bool]) -> Iterator[str]:
    """Yield the files below a folder whose name is accepted, as POSIX paths below it, sorted folder by folder.

    Hidden files and folders are skipped. Links are followed, but no link to a folder that contains it. Only the names
    of one chain of folders are in memory. Raises InputNotFound for a folder that cannot be read.
    """
    return _walk(folder, accept, "", ())


def _walk(folder: str | Path, accept: Callable[[str], bool], prefix: str, parents: tuple[str, ...]) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in parents:  # a link to a folder above
        return
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise InputNotFound(f"{folder} cannot be read ({error.strerror}): check the permissions") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, accept, f"{prefix}{entry.name}/", (*parents, real))
        elif accept(entry.name) and entry.is_file():
            yield prefix + entry.name
