"""What all datasets share: the licence, downloads, safe unpacking, and the manifest.

    DATASET = Dataset("ljspeech", "LJ Speech 1.1", licence, {"speech": Archive(...)}, layout)
    run(DATASET)  # python -m codec.datasets.ljspeech DIR

What a run leaves in DIR, each made only when it is whole, so that the next run goes on where the last one was stopped:

    NAME.part        being fetched
    NAME             fetched: size and checksum are right
    .unpacked/NAME   everything in NAME has been unpacked
    manifest.jsonl   prepared
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import http.client
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, ClassVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from codec.audio import open_reader
from codec.corpus import MANIFEST, Clip, hashed, write_manifest
from codec.errors import CodecError, InputNotFound, StorageError, UsageError

UNPACKED = ".unpacked"
WAITS = (1.0, 5.0, 20.0, 60.0)  # seconds before another try; any byte that arrives starts them anew
TIMEOUT = 60.0  # seconds of silence after which a connection counts as lost
CHUNK = 2**16
NAMED = 10  # bad files that are named; all are counted

Layout = Callable[[Path, Sequence[str]], Iterator[Clip]]
"""The clips of some parts of a dataset, by its layout below a folder; their `seconds` are measured afterwards."""
Show = Callable[[int, int | None], None]
"""Takes how much is done, and of how much if that is known."""


class BadArchive(CodecError):  # noqa: N818 (named as its siblings are)
    """An archive is not what its publisher gave out, is damaged, or would write outside its folder."""

    exit_code: ClassVar[int] = 5


@dataclass(frozen=True)
class Licence:
    """What a user says yes to before anything is fetched."""

    name: str
    url: str
    allows: str
    demands: str
    attribution: str


@dataclass(frozen=True)
class Archive:
    """One file to fetch. `holds` is a folder below DIR that is there once it is unpacked in `into` below DIR."""

    url: str
    holds: str
    into: str = "."
    size: int | None = None
    sha256: str | None = None
    unchecked: str = ""
    """Why no checksum is known, where none is."""
    saved_as: str = ""

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.saved_as or self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Dataset:
    """What one prepare.py knows."""

    recipe: str
    title: str
    licence: Licence | None
    layout: Layout
    parts: Mapping[str, Archive] = field(default_factory=dict)
    """What --parts may name, and the archive that each is in; several may be in one."""
    default: Sequence[str] = ()
    """The parts taken when none are named; all, when this is empty."""
    packed: str = ""
    """Archives in DIR, as a pattern, that the user has put there because they cannot be fetched."""
    by_hand: str = ""
    """Where to find them."""


def run(dataset: Dataset, arguments: Sequence[str] | None = None) -> None:
    """A prepare.py as a command. An error is one line and SystemExit with the status of its class."""
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    parser = argparse.ArgumentParser(description=f"Make {dataset.title} ready for training.")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the data is, or shall be")
    parser.add_argument("--accept-licence", action="store_true", help="say yes to the licence")
    parser.add_argument("--no-download", action="store_true", help="use only what is in DIR")
    if len(dataset.parts) > 1:
        parser.add_argument("--parts", nargs="+", choices=[*dataset.parts, "all"], help="what to take")
    options = parser.parse_args(arguments, argparse.Namespace(parts=None))
    try:
        prepare(
            dataset,
            options.folder,
            parts=list(dataset.parts) if "all" in (options.parts or ()) else options.parts,
            accepted=options.accept_licence,
            download=not options.no_download,
            console=console,
        )
    except CodecError as error:
        console.print(f"prepare: {' '.join(str(error).split())}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("prepare: stopped; the same command goes on from here")
        sys.exit(130)


def prepare(
    dataset: Dataset,
    folder: Path,
    *,
    parts: Sequence[str] | None = None,
    accepted: bool = False,
    download: bool = True,
    console: Console,
) -> Path:
    """Fetch and unpack what is missing below `folder` and write its manifest; the manifest's path.

    Without `parts`, the default ones; where nothing may be downloaded, whatever archives are there, and of an archive
    with several parts the default ones.

    Raises:
        UsageError: the licence has not been accepted.
        InputNotFound: a part is not there and may not be fetched, a server does not have it, or no audio was found.
        BadArchive: an archive is not what it should be.
        StorageError: the disk is full or the folder cannot be written.
    """
    if dataset.licence is not None:
        show_licence(dataset.title, dataset.licence, console)
    if parts is None:
        usual = dataset.default or list(dataset.parts)
        of_usual = {dataset.parts[name] for name in usual}
        there = [
            name
            for name, archive in dataset.parts.items()
            if is_there(archive, folder) and (name in usual or archive not in of_usual)
        ]
        parts = usual if download or not there else there
    archives = list(dict.fromkeys(dataset.parts[name] for name in parts))
    missing = [archive for archive in archives if not is_there(archive, folder)]
    if missing and not download:
        names = ", ".join(str(folder / archive.holds) for archive in missing)
        raise InputNotFound(f"{names} is not there: run without --no-download, or name other --parts")
    if missing and not accepted:
        ask(dataset.title, console)
    if not missing and not folder.is_dir():
        raise InputNotFound(f"{folder} is no folder: {dataset.by_hand or 'check the name'}")
    found = Found(dataset, console)
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for archive in archives:
            provide(archive, folder, console)
        for path in sorted(folder.glob(dataset.packed) if dataset.packed else ()):
            if not is_unpacked(path):
                unpack_once(path, folder, console)
        write_manifest(folder / MANIFEST, found.count(measured(dataset.layout(folder, parts), found.leave_out)))
    found.report()
    console.print(f"next: codec train recipes/{dataset.recipe}/codec.toml --data {folder / MANIFEST}")
    return folder / MANIFEST


# the licence


def show_licence(title: str, licence: Licence, console: Console) -> None:
    """Tell the user what they are about to use."""
    console.print(f"{title} · {licence.name} · {licence.url}")
    console.print(f"  It allows {licence.allows}.\n  It demands {licence.demands}.\n  By {licence.attribution}.")


def ask(title: str, console: Console) -> None:
    """Come back only if the user says yes.

    Raises:
        UsageError: the user says anything else, or there is nobody to ask.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"the licence of {title} has not been accepted: read it above and pass --accept-licence")
    console.print("Fetch it under this licence? [yes/no] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"the licence of {title} was not accepted: nothing has been fetched")


# fetching


def is_there(archive: Archive, folder: Path) -> bool:
    """Whether an archive or what was in it is below `folder`."""
    return (folder / archive.holds).exists() or (folder / archive.name).exists()


def provide(archive: Archive, folder: Path, console: Console) -> None:
    """Have an archive unpacked below `folder`; what lies there unpacked, without its archive, is taken as it is."""
    path = folder / archive.name
    if (folder / archive.holds).exists() and (is_unpacked(path) or not path.exists()):
        return
    if path.exists():
        verify(path, archive, console)
    else:
        fetch(archive, folder, console)
    unpack_once(path, folder / archive.into, console)


def fetch(archive: Archive, folder: Path, console: Console) -> None:
    """Download an archive, going on where an earlier try was cut off.

    Raises:
        InputNotFound: the server has no such file, or cannot be reached after several tries.
        BadArchive: what came is not what the publisher gave out.
        StorageError: there is no room for it.
    """
    part = folder / f"{archive.name}.part"
    check_room(archive, folder, have=size_of(part))
    waits = iter(WAITS)
    with bar(f"fetch {archive.name}", console) as show:
        while True:
            before = size_of(part)
            try:
                if transfer(archive, part, show):
                    break
                problem = "the connection was cut"
            except HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise InputNotFound(
                        f"{archive.url} cannot be fetched ({error.code} {error.reason}): if it has moved, put "
                        f"{archive.name} into {folder} yourself and run this again"
                    ) from error
                problem = f"{error.code} {error.reason}"
            except (OSError, http.client.HTTPException) as error:
                problem = str(error) or type(error).__name__
            if size_of(part) > before:
                waits = iter(WAITS)
            if (wait := next(waits, None)) is None:
                raise InputNotFound(
                    f"{archive.url} cannot be fetched ({problem}): check the network; the same command goes on from "
                    f"the {size_of(part)} bytes that are there"
                )
            time.sleep(wait)
    try:
        verify(part, archive, console)
    except BadArchive:
        part.unlink()  # to go on from it would never make it right
        raise
    part.replace(folder / archive.name)


def transfer(archive: Archive, part: Path, show: Show) -> bool:
    """Append to `part` what one connection gives; whether the file is whole then."""
    have = size_of(part)
    headers = {"User-Agent": "codec", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(Request(archive.url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        if error.code != 416:  # 416: there is nothing from that byte on
            raise
        whole = error.headers.get("Content-Range", "") == f"bytes */{have}"
        if not whole:
            part.unlink()
        return whole
    with response:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        resumed = response.status == 206 and given is not None and int(given[1]) == have
        length = response.headers.get("Content-Length")
        total = int(given[2]) if resumed and given is not None else int(length) if length else None
        if None not in (total, archive.size) and total != archive.size:
            raise BadArchive(
                f"{archive.url} has {total} bytes and should have {archive.size}: its publisher has changed it; "
                f"fetch a copy of the old one into {part.parent} yourself"
            )
        with part.open("ab" if resumed else "wb") as file:
            while block := response.read1(CHUNK):
                try:
                    file.write(block)
                except OSError as error:
                    raise StorageError(f"{part} cannot be written ({error.strerror}): free some space") from error
                show(file.tell(), total)
    return total is None or size_of(part) == total


def verify(path: Path, archive: Archive, console: Console) -> None:
    """Compare size and checksum with those known.

    Raises:
        BadArchive: they are others.
    """
    if archive.size is not None and size_of(path) != archive.size:
        raise BadArchive(f"{path} has {size_of(path)} bytes and should have {archive.size}: remove it and fetch anew")
    if archive.sha256 is None:
        console.print(f"no checksum of {archive.name} is known ({archive.unchecked}): only those inside it are checked")
        return
    digest = hashlib.sha256()
    with bar(f"check {archive.name}", console) as show, path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
            show(file.tell(), size_of(path))
    if digest.hexdigest() != archive.sha256:
        raise BadArchive(
            f"{path} has the sha256 {digest.hexdigest()} and should have {archive.sha256}: remove it and fetch it "
            "anew; if that changes nothing, its publisher has"
        )


def check_room(archive: Archive, folder: Path, *, have: int) -> None:
    """`StorageError` unless the rest of an archive fits on the disk."""
    free = shutil.disk_usage(folder).free
    if archive.size is not None and free < archive.size - have:
        raise StorageError(
            f"{folder} has {free / 1e9:.1f} GB left and {archive.name} needs {(archive.size - have) / 1e9:.1f} GB, and "
            "more when it is unpacked: free some space or choose another DIR"
        )


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    return path.stat().st_size if path.exists() else 0


# unpacking


@dataclass(frozen=True)
class Entry:
    """One entry of an archive. `regular` is false for links, devices and whatever else is no file."""

    name: str
    folder: bool
    regular: bool
    size: int
    open: Callable[[], IO[bytes] | None]


def is_unpacked(path: Path) -> bool:
    """Whether an archive has been unpacked to its end."""
    return (path.parent / UNPACKED / path.name).exists()


def unpack_once(path: Path, into: Path, console: Console) -> None:
    """Unpack an archive and make a note of it."""
    with bar(f"unpack {path.name}", console) as show:
        unpack(path, into, show)
    note = path.parent / UNPACKED / path.name
    note.parent.mkdir(exist_ok=True)
    note.touch()
    console.print(f"unpacked {path.name}, which is no longer needed")


def unpack(path: Path, into: Path, show: Show = lambda done, total: None) -> None:
    """Unpack a zip or tar archive below the folder `into`; files that are there in full are left as they are.

    Raises:
        BadArchive: it is damaged, or has entries that are no files or would lie outside of `into`.
    """
    try:
        with path.open("rb") as file:
            for entry in zip_entries(file) if path.suffix == ".zip" else tar_entries(file, path.suffix):
                target = into / inner_path(entry, path)
                show(file.tell(), size_of(path))
                if entry.folder:
                    target.mkdir(parents=True, exist_ok=True)
                elif not target.is_file() or size_of(target) != entry.size:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    save(entry, target)
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        # NotImplementedError, RuntimeError: zip files packed in unknown ways, or encrypted
        raise damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # gzip and bz2 speak of damage so
            raise damaged(path, error) from error
        raise


def damaged(path: Path, error: Exception) -> BadArchive:
    """The error for an archive that cannot be read to its end."""
    return BadArchive(f"{path} cannot be unpacked ({error}): remove it and fetch it anew")


def save(entry: Entry, target: Path) -> None:
    """Write one entry; the target is there only when it is whole."""
    part = target.with_name(target.name + ".part")
    source = entry.open()
    assert source is not None, "only regular entries are saved"
    with source, part.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)
    part.replace(target)


def inner_path(entry: Entry, archive: Path) -> PurePosixPath:
    """Where an entry lies below the folder it is unpacked in.

    Raises:
        BadArchive: it is a link or device, or lies elsewhere.
    """
    path = PurePosixPath(entry.name)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.name or re.match("[A-Za-z]:", entry.name):
        raise BadArchive(f"{archive} would write {entry.name!r}, which is outside its folder: do not trust it")
    if not entry.folder and not entry.regular:
        raise BadArchive(f"{archive} has {entry.name!r}, which is a link or a device: do not trust it")
    return path


def zip_entries(file: IO[bytes]) -> Iterator[Entry]:
    """What is in a zip file, in its order."""
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            yield Entry(
                info.filename, info.is_dir(), kind in (0, stat.S_IFREG), info.file_size, partial(archive.open, info)
            )


def tar_entries(file: IO[bytes], suffix: str) -> Iterator[Entry]:
    """What is in a tar file packed by bzip2 (`suffix` .bz2) or gzip, in its order."""
    opener: Callable[[IO[bytes]], IO[bytes]] = bz2.open if suffix == ".bz2" else gzip.open  # type: ignore[assignment]
    with opener(file) as stream:  # tarfile's own way of unpacking looks at no checksum
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for info in archive:
                yield Entry(info.name, info.isdir(), info.isreg(), info.size, partial(archive.extractfile, info))
        while stream.read(2**20):  # to the end, where the checksum is
            pass


# the manifest


def by_hash(name: str, *, valid: float, test: float = 0.0) -> str:
    """The split of everything by one speaker or of one piece, for data that comes without: the same for ever."""
    place = hashed(name) / 2**64
    return "valid" if place < valid else "test" if place < valid + test else "train"


def measured(clips: Iterable[Clip], leave_out: Callable[[str], None]) -> Iterator[Clip]:
    """The clips with their `seconds`, without those that cannot be read."""

    def seconds(clip: Clip) -> float | CodecError | None:
        try:
            with open_reader(clip.path) as reader:
                return None if reader.time is None else reader.time / reader.rate
        except CodecError as error:
            return error

    left = iter(clips)
    with ThreadPoolExecutor() as pool:
        while some := list(islice(left, 256)):  # bounded: map would read ahead without end
            for clip, length in zip(some, pool.map(seconds, some), strict=True):
                if isinstance(length, CodecError):
                    leave_out(str(length))
                else:
                    yield replace(clip, seconds=length)


class Found:
    """Counts what goes into a manifest, and what does not."""

    def __init__(self, dataset: Dataset, console: Console) -> None:
        self.dataset = dataset
        self.console = console
        self.clips: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bad = 0

    def count(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """The same clips, counted by split.

        Raises:
            InputNotFound: there are none.
        """
        for clip in clips:
            split = clip.split or "no split"
            self.clips[split] += 1
            self.seconds[split] += clip.seconds or 0
            yield clip
        if not self.clips:
            raise InputNotFound(
                f"DIR holds no audio of {self.dataset.title}: {self.dataset.by_hand or 'check the name'}"
            )

    def leave_out(self, reason: str) -> None:
        """Count a bad file and name the first few."""
        self.bad += 1
        if self.bad <= NAMED:
            self.console.print(f"left out: {reason}")

    def report(self) -> None:
        """Tell the user what was found."""
        if self.bad:
            self.console.print(f"left out {self.bad} files in all")
        for split, number in sorted(self.clips.items()):
            self.console.print(f"{split}: {number} files, {self.seconds[split] / 3600:.2f} h")


# around it


@contextmanager
def bar(task: str, console: Console) -> Iterator[Show]:
    """Shows how many bytes are done, where there is a terminal."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        number = progress.add_task(task, total=None)
        yield lambda done, total: progress.update(number, completed=done, total=total)


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Whatever the system has against the files below `folder`, as one of our errors."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFound(
            f"{error.filename} is not there: name the folder that holds what the archive holds"
        ) from error
    except OSError as error:
        place, reason = error.filename or folder, error.strerror or error
        raise StorageError(f"{place} cannot be used ({reason}): free some space or choose another DIR") from error
