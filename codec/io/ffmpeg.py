"""Audio that libsndfile does not read (AAC, WMA, WebM, ...), decoded by the program ffmpeg if a caller asks for it."""

from __future__ import annotations

import errno
import os
import re
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
from codec.io.tags import Cover, Found, Text, bounded

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


_NAMES = {  # ffmpeg's names of tags that have another one in Vorbis comments
    "album_artist": "albumartist",
    "disc": "discnumber",
    "publisher": "organization",
    "track": "tracknumber",
    "year": "date",
}
_OF_THE_FILE = {"major_brand", "minor_version", "compatible_brands", "creation_time", "handler_name", "vendor_id"} | {
    "duration",
    "encoder_options",
    "language",
}
_PICTURES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif", b"BM": "image/bmp"}
_FRONT = 3  # the type of a front cover in ID3


def tags(file: BinaryIO, path: str | Path | None) -> Found:
    """The tags of a file that `decoded` reads, with the names of Vorbis comments; none if ffmpeg does not find any."""
    lines = _output(file, path, "-map_metadata", "0", "-f", "ffmetadata")
    picture = _output(file, path, "-map", "0:v:0", "-frames:v", "1", "-c:v", "copy", "-f", "image2pipe")
    kind = next((name for start, name in _PICTURES.items() if picture.startswith(start)), None)
    return bounded(_texts(lines.decode(errors="replace")), [] if kind is None else [(_FRONT, Cover(kind, picture))])


def _output(file: BinaryIO, path: str | Path | None, *options: str) -> bytes:
    """What ffmpeg writes to its standard output; nothing if it fails."""
    file.seek(0)
    source = "/dev/stdin" if path is None else str(Path(path).absolute())
    command = ["ffmpeg", "-nostdin", "-v", "quiet", "-protocol_whitelist", "file,pipe", "-i", f"file:{source}"]
    done = subprocess.run([*command, *options, "-"], stdin=file, capture_output=True, check=False)
    return b"" if done.returncode else done.stdout


def _texts(metadata: str) -> Iterator[Text]:
    """The tags of the file and of its streams in ffmpeg's format, each name once."""
    known = set(_OF_THE_FILE)
    for line in re.findall(r"^((?:[^\\\n]|\\.)*)$", metadata, re.DOTALL | re.MULTILINE):
        if line.upper() == "[CHAPTER]":
            return
        name, found, text = line.partition("=")
        name = name.lower()
        if found and name not in known and not line.startswith((";", "#")):
            known.add(name)
            yield _NAMES.get(name, name), re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


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
