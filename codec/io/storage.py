"""Files that appear whole or not at all, folders with one writer, a folder walk, and system errors as CodecErrors."""

import errno
import io
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from codec.errors import ConfigError, InputNotFound, StorageError, UsageError
from codec.io import locks

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
        case errno.ENAMETOOLONG:
            return StorageError(f"{target} cannot be {done}, its name is too long for the file system: name it shorter")
        case errno.EEXIST | errno.ENOTDIR:
            return StorageError(f"{target} cannot be {done}, it is a file or lies below one: {instead}")
        case _:
            reason = error.strerror or error
            return StorageError(f"{target} cannot be {done} ({reason}): check the permissions or {instead}")


def output_label(path: str | Path) -> str:
    """The name of an output in messages."""
    return "standard output" if str(path) == "-" else str(path)


def refuse_existing(*paths: str | Path, force: bool) -> None:
    """Raise StorageError for the first path that exists, unless `force` is on."""
    for path in paths:
        if not force and Path(path).exists():
            raise StorageError(f"{path} exists: pass --force to replace it")


@contextmanager
def atomic_output(path: str | Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a binary file, seekable and readable, that becomes `path` when the block ends.

    If the block raises, no file remains; if the process is killed, its unfinished file is removed by the next process
    that writes to the folder. `-` (standard output), pipes and devices receive the content at the end. A file that
    `mark_partial` has marked is replaced.

    Raises StorageError: `path` exists and `force` is off, the disk is full, the folder is missing or not writable.
    """
    label = output_label(path)
    streamed = is_streamed(path)
    with storing(label):
        if not streamed and Path(path).is_dir():
            raise StorageError(f"{label} is a folder: name a file in it")
        if not streamed and not is_partial(path):
            refuse_existing(path, force=force)
        target = Path(os.path.realpath(path))  # a link stays a link
    with storing(label):
        part, raw, guard = _new_part(Path(tempfile.gettempdir()) if streamed else target.parent, label)
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
                with suppress(OSError):  # there is no mark, or the name of a mark would be too long
                    _mark_of(target).unlink()
    finally:
        raw.close()  # before `file`, so that after a failure its buffer is dropped, not written
        with storing(label):
            part.unlink(missing_ok=True)
        if guard is not None:
            os.close(guard)


@contextmanager
def atomic_folder(path: str | Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Make a folder that becomes `path` when the block ends; if the block raises, `path` stays as it was.

    Raises StorageError: `path` is a file or holds files and `force` is off, it lacks the file `marker` that such
    folders have, or it cannot be written.
    """
    target = Path(os.path.realpath(path))  # a link stays a link
    with storing(path):
        filled = target.exists() and (not target.is_dir() or any(target.iterdir()))
        if filled:
            refuse_existing(path, force=force)
        if filled and not (target / marker).is_file():
            raise StorageError(f"{path} holds other files, which --force would remove: name a new folder")
        part, before = (target.with_name(locks.part_name()) for _ in "12")
        part.mkdir()
    try:
        with storing_below(part):
            yield part
        with storing(path):
            if target.exists():
                target.rename(before)
            part.rename(target)
    finally:
        for folder in (part, before):
            shutil.rmtree(folder, ignore_errors=True)


def _new_part(folder: Path, label: str) -> "tuple[Path, _Output, int | None]":
    """A new unfinished file, and the descriptor that keeps other processes from removing it."""
    locks.sweep(folder)
    while True:
        part = folder / locks.part_name()
        raw = _Output(part, label)
        guard = locks.guard(raw.fileno())
        if guard is None or locks.is_current(guard, part):
            return part, raw, guard
        raw.close()  # removed by another process before it was locked
        os.close(guard)


def other_than(source: str | Path, target: str | Path) -> str | Path:
    """The target; raises UsageError if it is the source, because the result has lost information."""
    with suppress(OSError, ValueError):  # the target does not exist, or its name has a NUL
        if "-" not in (str(source), str(target)) and Path(source).samefile(target):
            raise UsageError(f"{source} and {target} are the same file: name another output")
    return target


def mark_partial(path: str | Path) -> None:
    """Note beside a file that it holds a part of what it should, until it is replaced or changed."""
    target = Path(os.path.realpath(path))
    with suppress(OSError):  # it is a help, not a promise
        if str(path) != "-" and target.is_file():
            _mark_of(target).write_text(_state_of(target))


def is_partial(path: str | Path) -> bool:
    """Whether a file is as it was when it was marked as partial."""
    target = Path(os.path.realpath(path))
    try:
        return _mark_of(target).read_text() == _state_of(target)
    except OSError:
        return False


def _mark_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _state_of(target: Path) -> str:
    status = target.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


@contextmanager
def stream_output(path: str | Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """As `atomic_output`, but standard output, pipes and devices receive every write at once."""
    if str(path) == "-":
        yield cast(BinaryIO, _Stream(raw_stdout(), "standard output"))
    elif is_device(path):
        with storing(path), Path(path).open("wb", buffering=0) as sink:
            yield cast(BinaryIO, _Stream(sink, str(path)))
    else:
        with atomic_output(path, force=force) as file:
            yield file


class _Stream:
    """A pipe whose failing writes raise StorageError."""

    def __init__(self, sink: io.RawIOBase | BinaryIO, label: str) -> None:
        self._sink, self._label = sink, label

    def write(self, data: bytes) -> int:
        with storing(self._label):
            write_all(self._sink, data)
        return len(data)


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


def is_streamed(path: str | Path) -> bool:
    """Whether `path` is "-" (standard input or output), a pipe or a device."""
    return str(path) == "-" or is_device(path)


def is_live_stream(path: str | Path, standard: IO[Any]) -> bool:
    """Whether `path` is a pipe or a device; `standard` is the stream that "-" names, which may be a regular file."""
    if str(path) != "-":
        return is_device(path)
    try:
        return not stat.S_ISREG(os.fstat(standard.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):  # replaced by an object without a descriptor
        return False


def is_device(path: str | Path) -> bool:
    """Whether `path` exists and is neither a file nor a folder: a pipe, a terminal, /dev/null."""
    with storing(str(path)):
        return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()


@contextmanager
def locked_folder(folder: Path, job: str, *, instead: str = "choose another --out") -> Iterator[None]:
    """Make a folder and hold its lock, where the system has locks; remove the folder again if it stays empty.

    Raises ConfigError if another process does the same `job` there; its message ends in `instead`, the way out.
    """
    try:
        with ExitStack() as stack:
            while True:
                folder.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):  # the process before has just removed the empty folder
                    ours = stack.enter_context(locks.held(folder / ".lock"))
                    break
            if not ours:
                raise ConfigError(f"another {job} is running in {folder}: {instead}, or wait")
            yield
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
