"""Unpack zip and tar archives below a folder; each file appears when it is complete, and none outside its folder.

Every name passes `tarfile`'s data filter, also in zip files. The contents are copied here, because `TarFile.extract`
writes in destination, ignores the checksums of gzip and bzip2, and cannot skip files that exist already.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Self

from codec.datasets.base import BOOKKEEPING, BadArchive
from codec.datasets.progress import Show
from codec.errors import StorageError

BLOCK = 4096  # bytes that the smallest file or folder occupies on a disk
MAX_EXPANSION = 4  # bytes unpacked per byte of an archive; the datasets here have 1.6 at most
ALLOWANCE = 64 * 2**20  # bytes in addition, for small archives
MAX_HEADER = 2**20  # bytes of a header that is stored as a file, which `tarfile` reads into memory


@dataclass(frozen=True)
class Destination:
    """Where an archive may write: below `folder`/`tree`, except below `others`; its entries are relative to `into`.

    `into`, `tree` and `others` are relative to `folder`. An empty `tree` allows any folder in `folder` that is not
    hidden.
    """

    folder: Path
    into: str = "."
    tree: str = ""
    others: Collection[str] = ()
    """Folders of other archives."""


@dataclass(frozen=True)
class Entry:
    """One entry of an archive; `kind` is "file", "folder", or "other" for links, devices and the like."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, destination: Destination, show: Show = lambda done, total: None) -> None:
    """Unpack a zip or tar archive, skipping files that are complete already.

    Raises:
        BadArchive: it is damaged, expands far more than audio does, or has an entry that is neither file nor folder,
            or lies outside its destination.
        StorageError: the disk has too little space.
    """
    size = path.stat().st_size
    left = MAX_EXPANSION * size + ALLOWANCE
    try:
        with path.open("rb") as file:
            for entry in _zip_entries(file) if path.suffix == ".zip" else _tar_entries(file, path.suffix, left):
                target = _target(entry, path, destination)
                show(file.tell(), size)
                left -= _size_on_disk(entry)
                if left < 0:
                    raise _too_large(path)
                if entry.kind == "folder":
                    target.mkdir(parents=True, exist_ok=True)
                elif not target.is_file() or target.stat().st_size != entry.size:
                    _save(entry, target, destination.folder)
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, IndexError),
        *(NotImplementedError, RuntimeError),  # zip files with unknown compression, or encrypted
    ) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 report damage in this way
            raise _damaged(path, error) from error
        raise


def _target(entry: Entry, archive: Path, destination: Destination) -> Path:
    """Return the path to write an entry to.

    Raises:
        BadArchive: it is a link or device, or lies outside its destination.
    """
    path = PurePosixPath(entry.name)
    outside = BadArchive(f"{archive} would write {entry.name!r}, which is outside its folder: do not trust it")
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or re.match("[A-Za-z]:", entry.name):
        raise outside
    if entry.kind == "other":
        raise BadArchive(f"{archive} has {entry.name!r}, which is a link or a device: do not trust it")
    info = tarfile.TarInfo(entry.name)
    info.type = tarfile.DIRTYPE if entry.kind == "folder" else tarfile.REGTYPE
    into = destination.folder / destination.into
    try:
        tarfile.data_filter(info, str(into))  # also follows links that exist on the disk
    except tarfile.FilterError as error:
        raise outside from error
    inside = PurePosixPath(destination.into) / path  # relative to the folder
    if entry.kind == "folder" and not path.parts:
        return into
    if destination.tree:
        allowed = inside.is_relative_to(destination.tree) and (
            entry.kind == "folder" or inside != PurePosixPath(destination.tree)
        )
    else:
        allowed = len(inside.parts) > (entry.kind == "file") and not inside.parts[0].startswith(".")
    if not allowed or any(inside.is_relative_to(other) for other in destination.others):
        raise outside
    return into / path


def _save(entry: Entry, target: Path, folder: Path) -> None:
    """Write one file under a name that no archive can use, then rename it."""
    part = folder / BOOKKEEPING / "entry.part"
    part.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if entry.size > free:
        raise StorageError(
            f"{folder} has {free / 1e9:.1f} GB left and {entry.name} needs {entry.size / 1e9:.1f} GB: free some space; "
            "the same command resumes"
        )
    source = entry.open()
    assert source is not None, "only files are saved"
    with source, part.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
        if file.tell() != entry.size:
            raise EOFError(f"{entry.name} has {file.tell()} bytes instead of {entry.size}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)


def _zip_entries(file: IO[bytes]) -> Iterator[Entry]:
    """Yield the entries of a zip file in order."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was not made on Unix
            kind = "folder" if info.filename.endswith("/") else "file" if mode in (0, stat.S_IFREG) else "other"
            yield Entry(info.filename, kind, info.file_size, partial(archive.open, info))


def _tar_entries(file: IO[bytes], suffix: str, limit: int) -> Iterator[Entry]:
    """Yield the entries of a tar file compressed by bzip2 (`suffix` .bz2) or gzip, in order."""
    opener: Callable[[IO[bytes]], IO[bytes]] = bz2.open if suffix == ".bz2" else gzip.open  # type: ignore[assignment]
    with opener(file) as stream:
        bounded = _Bounded(stream, 2 * limit)
        with tarfile.open(fileobj=bounded, mode="r|", tarinfo=_TarInfo) as archive:
            for info in archive:
                if info.size < 0:
                    raise tarfile.ReadError(f"{info.name!r} has {info.size} bytes")
                plain = info.isreg() and not info.issparse()
                kind = "folder" if info.isdir() else "file" if plain else "other"
                yield Entry(info.name, kind, info.size, partial(archive.extractfile, info))
        while bounded.read(2**20):  # to the end, because the checksum is there
            pass


class _Bounded(io.RawIOBase):
    """A stream that may be read up to `limit` bytes; a small file may unpack to any number."""

    def __init__(self, stream: IO[bytes], limit: int) -> None:
        self._stream, self._left = stream, limit

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise tarfile.ReadError("it has no end")
        return data


class _TarInfo(tarfile.TarInfo):
    """A header that `tarfile` reads in bounded memory: extensions are short, and sparse files are not read."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in HEADER_TYPES and info.size > MAX_HEADER:
            raise tarfile.ReadError(f"a header has {info.size} bytes")
        if info.type == tarfile.GNUTYPE_SPARSE:
            info._proc_gnusparse_10()
        return info

    def _proc_gnusparse_10(self, *_: object) -> None:  # called by `tarfile`, which would read a map of any length
        raise tarfile.ReadError("it has a sparse file")


HEADER_TYPES = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


def _size_on_disk(entry: Entry) -> int:
    """Upper bound of the bytes that a file and its folders occupy, in whole blocks."""
    return BLOCK * (max(1, entry.name.count("/")) + entry.size // BLOCK)


def _too_large(path: Path) -> BadArchive:
    return BadArchive(
        f"{path} would unpack to more than {MAX_EXPANSION} times its size, more than any archive of audio: "
        "do not trust it"
    )


def _damaged(path: Path, error: Exception) -> BadArchive:
    """Error for an archive that cannot be read to its end."""
    return BadArchive(f"{path} cannot be unpacked ({error}): remove it, and the same command downloads it again")
