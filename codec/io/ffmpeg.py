"""Audio that libsndfile does not read (AAC, WMA, WebM, ...), decoded by the program ffmpeg if a caller asks for it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from codec.errors import MissingDependency, StorageError, UnsupportedAudio
from codec.io.storage import storing, walk

SUFFIXES = frozenset(
    (
        *(".3gp", ".aac", ".ac3", ".amr", ".ape", ".dff", ".dsf", ".dts", ".eac3", ".m4a", ".m4b", ".mka", ".mp4"),
        *(".mpc", ".ra", ".spx", ".tta", ".webm", ".wma", ".wv"),
    )
)
"""Suffixes of files with audio that libsndfile 1.2.2 does not read."""


def check_installed() -> None:
    """Raise MissingDependency if the program ffmpeg is not on the PATH."""
    if shutil.which("ffmpeg") is None:
        raise MissingDependency("ffmpeg is not on the PATH: install it, or leave --ffmpeg out and convert the files")


def unread(folder: str | Path) -> Counter[str]:
    """Count the files below a folder that need ffmpeg, by suffix."""
    return Counter(
        Path(path).suffix.lower() for path in walk(folder, lambda name: Path(name).suffix.lower() in SUFFIXES)
    )


def unread_note(counts: Counter[str], *, option: bool = True) -> str:
    """What is not read, in one line; empty if nothing is. `option`: whether the command takes --ffmpeg."""
    if not counts:
        return ""
    found = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    return f"not read: {found} (convert them to WAV or FLAC first{', or pass --ffmpeg' if option else ''})"


@contextmanager
def decoded(file: BinaryIO, path: str | Path | None, label: str) -> Iterator[BinaryIO]:
    """A temporary WAV file with the first audio stream of a file, at its rate, with its channels, as floats.

    `path` names the file for ffmpeg; if it is None, ffmpeg reads the open `file`. Raises MissingDependency,
    UnsupportedAudio with ffmpeg's reason, StorageError if the disk is full.
    """
    check_installed()
    place = f"the temporary copy of {label} in {tempfile.gettempdir()}"
    with ExitStack() as stack:
        with storing(place):
            output = Path(stack.enter_context(tempfile.TemporaryDirectory()), "decoded.wav")
        _run("/dev/stdin" if path is None else str(Path(path).absolute()), file, output, label=label, place=place)
        with storing(place):
            result = stack.enter_context(output.open("rb", buffering=0))
        yield result


def _run(source: str, file: BinaryIO, output: Path, *, label: str, place: str) -> None:
    file.seek(0)
    command = [
        *("ffmpeg", "-nostdin", "-hide_banner", "-v", "error", "-protocol_whitelist", "file", "-i", f"file:{source}"),
        *("-map", "0:a:0", "-c:a", "pcm_f32le", "-rf64", "auto", f"file:{output}"),
    ]
    done = subprocess.run(command, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    if done.returncode:
        reason = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        if os.strerror(errno.ENOSPC) in reason:
            raise StorageError(f"{place} cannot be written, the disk is full: free some space or set TMPDIR")
        raise UnsupportedAudio(f"{label} cannot be decoded by ffmpeg ({reason}): check that it holds audio")
