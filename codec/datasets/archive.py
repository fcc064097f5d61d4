"""Unpack zip and tar archives below a folder: each file appears when it is complete, and none outside its own tree.

Every name passes `tarfile`'s data filter, those of zip files too. We copy the contents ourselves, because
`TarFile.extract` writes in place, ignores the checksums of gzip and bzip2, and cannot skip what is already there.
"""

from __future__ import annotations

import bz2
import gzip
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
from typing import IO

from codec.datasets.base import BOOKKEEPING, BadArchive
from codec.datasets.progress import Show
from codec.errors import StorageError

BLOCK = 4096  # bytes that the smallest file or folder takes on a disk
MAX_EXPANSION = 4  # bytes unpacked per byte of an archive; our datasets have 1.6 at most
ALLOWANCE = 64 * 2**20  # bytes beyond that, for small archives


@dataclass(frozen=True)
class Place:
    """Where an archive may write: below `folder`/`tree`, except `others`. Its entries are named from `into` on.

    All but `folder` are relative to it, and `tree` "" is any folder of its own in `folder` that is not hidden.
    """

    folder: Path
    into: str = "."
    tree: str = ""
    others: Collection[str] = ()
    """Folders that belong to other archives."""


@dataclass(frozen=True)
class Entry:
    """One entry of an archive; `kind` is "file", "folder", or "other" for links, devices and the like."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, place: Place, show: Show = lambda done, total: None) -> None:
    """Unpack a zip or tar archive; files that are complete already are left as they are.

    Raises:
        BadArchive: it is damaged, unpacks to far more than audio does, or has an entry that is neither file nor
            folder, or one outside its place.
        StorageError: the disk has too little space.
    """
    size = path.stat().st_size
    left = MAX_EXPANSION * size + ALLOWANCE
    try:
        with path.open("rb") as file:
            for entry in _zip_entries(file) if path.suffix == ".zip" else _tar_entries(file, path.suffix, left):
                target = _target(entry, path, place)
                show(file.tell(), size)
                left -= _size_on_disk(entry)
                if left < 0:
                    raise _too_large(path)
                if entry.kind == "folder":
                    target.mkdir(parents=True, exist_ok=True)
                elif not target.is_file() or target.stat().st_size != entry.size:
                    _save(entry, target, place.folder)
    except (
        *(zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, ValueError, IndexError),
        *(NotImplementedError, RuntimeError),  # zip files compressed in unknown ways, or encrypted
    ) as error:
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # damage, as gzip and bz2 report it
            raise _damaged(path, error) from error
        raise


def _target(entry: Entry, archive: Path, place: Place) -> Path:
    """Where an entry goes.

    Raises:
        BadArchive: it is a link or device, or lies outside its place.
    """
    path = PurePosixPath(entry.name)
    outside = BadArchive(f"{archive} would write {entry.name!r}, which is outside its folder: do not trust it")
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or re.match("[A-Za-z]:", entry.name):
        raise outside
    if entry.kind == "other":
        raise BadArchive(f"{archive} has {entry.name!r}, which is a link or a device: do not trust it")
    info = tarfile.TarInfo(entry.name)
    info.type = tarfile.DIRTYPE if entry.kind == "folder" else tarfile.REGTYPE
    into = place.folder / place.into
    try:
        tarfile.data_filter(info, str(into))  # which also follows links that are on the disk already
    except tarfile.FilterError as error:
        raise outside from error
    inside = PurePosixPath(place.into) / path  # from the folder on
    if entry.kind == "folder" and not path.parts:
        return into
    if place.tree:
        allowed = inside.is_relative_to(place.tree) and (entry.kind == "folder" or inside != PurePosixPath(place.tree))
    else:
        allowed = len(inside.parts) > (entry.kind == "file") and not inside.parts[0].startswith(".")
    if not allowed or any(inside.is_relative_to(other) for other in place.others):
        raise outside
    return into / path


def _save(entry: Entry, target: Path, folder: Path) -> None:
    """Write one file under a name that no archive can use, then give it its own."""
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
    """The entries of a zip file, in its order."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            kind = "folder" if info.filename.endswith("/") else "file" if mode in (0, stat.S_IFREG) else "other"
            yield Entry(info.filename, kind, info.file_size, partial(archive.open, info))


def _tar_entries(file: IO[bytes], suffix: str, limit: int) -> Iterator[Entry]:
    """The entries of a tar file compressed by bzip2 (`suffix` .bz2) or gzip, in its order."""
    opener: Callable[[IO[bytes]], IO[bytes]] = bz2.open if suffix == ".bz2" else gzip.open  # type: ignore[assignment]
    with opener(file) as stream:
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                kind = "folder" if info.isdir() else "file" if info.isreg() else "other"
                yield Entry(info.name, kind, info.size, partial(archive.extractfile, info))
        while stream.read(2**20):  # to the end, where the checksum is
            if stream.tell() > 2 * limit:
                raise tarfile.ReadError("it has no end")


def _size_on_disk(entry: Entry) -> int:
    """Bytes that a file and its folders take at most, in whole blocks."""
    return BLOCK * (max(1, entry.name.count("/")) + entry.size // BLOCK)


def _too_large(path: Path) -> BadArchive:
    return BadArchive(
        f"{path} would unpack to more than {MAX_EXPANSION} times its size, which no archive of audio does: "
        "do not trust it"
    )


def _damaged(path: Path, error: Exception) -> BadArchive:
    """The error for an archive that cannot be read to its end."""
    return BadArchive(f"{path} cannot be unpacked ({error}): remove it, and the same command downloads it again")
