"""Prepare a dataset for training: show its license, download and unpack missing archives, write its manifest.

Files in DIR appear only when they are complete, so that the next run resumes where the last one stopped:

    NAME                   an archive with verified size and checksum
    .codec/NAME.unpacked   everything in NAME has been unpacked
    manifest.jsonl         the clips
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console

from codec.data.clips import MANIFEST, Clip, file_length, write_manifest
from codec.datasets.archive import Destination, unpack
from codec.datasets.base import BOOKKEEPING, Archive, Dataset, License
from codec.datasets.download import download, verify
from codec.datasets.progress import progress_bar
from codec.errors import CodecError, InputNotFound, UsageError, printable
from codec.io.storage import locked_folder, storing_below
from codec.parallel import in_threads

NAMED = 10  # unreadable files that are printed by name; all are counted


def prepare(
    dataset: Dataset,
    folder: Path,
    *,
    parts: Sequence[str] | None = None,
    accepted: bool = False,
    may_download: bool = True,
    console: Console,
) -> Path:
    """Download and unpack missing archives below `folder`, write the manifest, and return its path.

    `parts` ("all" is every part) default to those of the dataset. Without downloads they default to the parts of the
    archives in `folder`; of an archive with several parts, to its default parts.

    Raises:
        UsageError: the license has not been accepted, or a part is unknown.
        InputNotFound: a part is missing and may not be downloaded, the server does not have it, or there is no audio.
        BadArchive: an archive is damaged or differs from the published one.
        StorageError: the disk is full or the folder cannot be written.
    """
    if parts is not None:
        parts = _known_parts(dataset, parts)
    if dataset.license is not None:
        _show_license(dataset.title, dataset.license, console)
    if parts is None:
        default = dataset.default or list(dataset.parts)
        of_default = {dataset.parts[name] for name in default}
        present = [
            name
            for name, archive in dataset.parts.items()
            if _is_present(archive, folder) and (name in default or archive not in of_default)
        ]
        parts = default if may_download or not present else present
    archives = list(dict.fromkeys(dataset.parts[name] for name in parts))
    missing = [archive for archive in archives if not _is_present(archive, folder)]
    if missing and not may_download:
        names = ", ".join(str(folder / archive.holds) for archive in missing)
        raise InputNotFound(f"{names} is missing: run without --no-download, or name other --parts")
    if missing and not accepted:
        _ask(dataset.title, console)
    if not missing and not folder.is_dir():
        raise InputNotFound(f"{folder} is not a folder: {dataset.by_hand or 'check the name'}")
    found = ClipCounter(dataset, console)
    with storing_below(folder, instead="choose another DIR"), _archive_files(), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked_folder(folder / BOOKKEEPING, "codec prepare", instead="choose another DIR"))
        for archive in archives:
            others = {other.holds for other in dataset.parts.values() if other.holds != archive.holds}
            destination = Destination(folder, archive.into, archive.tree, others)
            _provide(archive, destination, console)
        for path in sorted(folder.glob(dataset.packed) if dataset.packed else ()):
            if not _marker(path).exists():
                _unpack_once(path, Destination(folder), console)
        write_manifest(folder / MANIFEST, found.count(measured(dataset.layout(folder, parts), found.skip)))
    found.report()
    console.print(f"next: codec train {dataset.name} --data {folder / MANIFEST}")
    return folder / MANIFEST


def _known_parts(dataset: Dataset, parts: Sequence[str]) -> Sequence[str]:
    """Expand "all" and remove duplicates. Raises UsageError for an unknown part."""
    for part in parts:
        if part not in (*dataset.parts, "all"):
            if not dataset.parts:
                raise UsageError(f"{dataset.name} has no parts: leave --parts out")
            close = get_close_matches(part, dataset.parts, n=1)
            hint = f"did you mean {close[0]}?" if close else f"its parts are {', '.join(dataset.parts)}"
            raise UsageError(f"{dataset.name} has no part {part}; {hint}")
    return list(dataset.parts) if "all" in parts else list(dict.fromkeys(parts))


# the license


def _show_license(title: str, terms: License, console: Console) -> None:
    console.print(f"{title} · {terms.name} · {terms.url}")
    console.print(f"  It allows {terms.allows}.\n  It requires {terms.requires}.\n  By {terms.attribution}.")


def _ask(title: str, console: Console) -> None:
    """Return only if the user accepts the license.

    Raises:
        UsageError: the user declines, or standard input is not a terminal.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError(f"the license of {title} has not been accepted: read it above and pass --accept-license")
    console.print("Download it under this license? [yes/no] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"the license of {title} was not accepted: nothing has been downloaded")


# archives


def _is_present(archive: Archive, folder: Path) -> bool:
    """Return whether an archive or its contents are below `folder`."""
    return (folder / archive.holds).exists() or (folder / archive.name).exists()


def _marker(path: Path) -> Path:
    """Marker file that exists once the archive `path` has been unpacked completely."""
    return path.parent / BOOKKEEPING / f"{path.name}.unpacked"


def _provide(archive: Archive, destination: Destination, console: Console) -> None:
    """Download and unpack an archive unless its contents exist; contents without their archive are not checked."""
    path = destination.folder / archive.name
    if (destination.folder / archive.holds).exists() and (_marker(path).exists() or not path.exists()):
        return
    if path.exists():
        verify(path, archive, console)
    else:
        download(archive, destination.folder, console)
    _unpack_once(path, destination, console)


def _unpack_once(path: Path, destination: Destination, console: Console) -> None:
    """Unpack an archive and write its marker file."""
    with progress_bar(f"unpack {path.name}", console) as show:
        unpack(path, destination, show)
    marker = _marker(path)
    marker.parent.mkdir(exist_ok=True)
    marker.touch()
    console.print(f"unpacked {path.name}, which is no longer needed")


# the manifest


def measured(clips: Iterable[Clip], skip: Callable[[str], None]) -> Iterator[Clip]:
    """Yield the clips with their `seconds`; report unreadable files to `skip`."""
    for clip, length in in_threads(file_length, clips):
        if isinstance(length, CodecError):
            skip(str(length))
        else:
            samples, rate = length
            yield replace(clip, seconds=samples / rate)


class ClipCounter:
    """Counter of the clips in a manifest and of the files that cannot be read."""

    def __init__(self, dataset: Dataset, console: Console) -> None:
        self.dataset = dataset
        self.console = console
        self.clips: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.bad = 0

    def count(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Yield the clips and count them by split.

        Raises:
            InputNotFound: there are no clips.
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

    def skip(self, reason: str) -> None:
        """Count an unreadable file; print the first few."""
        self.bad += 1
        if self.bad <= NAMED:
            self.console.print(f"skipped: {printable(reason)}")

    def report(self) -> None:
        """Print the counts."""
        if self.bad:
            self.console.print(f"skipped {self.bad} files in total")
        for split, number in sorted(self.clips.items()):
            self.console.print(f"{split}: {number} files, {self.seconds[split] / 3600:.2f} h")


# errors


@contextmanager
def _archive_files() -> Iterator[None]:
    """Raise InputNotFound for a file of the archive that is missing in the folder."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFound(f"{error.filename} is missing: give the folder with the contents of the archive") from error
