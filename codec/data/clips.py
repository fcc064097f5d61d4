"""A corpus as clips: a folder of audio, a manifest (JSONL, CSV) or a lhotse manifest, read one clip at a time.

A line of a manifest names a file, from the manifest's folder on, and whatever else is known of it:

    {"path": "a/1.flac", "start": 2.5, "seconds": 4.0, "set": "a", "split": "train", "speaker": "eva", "label": "x"}
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np

from codec.errors import ConfigError, InputNotFound, UnsupportedAudio
from codec.frames import resampled_length
from codec.io.audio import Block, Resampler, is_audio_path, open_reader
from codec.io.storage import atomic_output, walk

MANIFEST = "manifest.jsonl"  # a folder that holds one is what it says
SPLITS = ("train", "valid", "test")
TEXT_FIELDS = ("set", "split", "speaker", "label", "transcript")  # a manifest's keys beside path, start and seconds
LONGEST = 1e9  # s, 30 years: what is beyond is a mistake
LENGTH_TOLERANCE = 0.1  # s that a manifest's length may be beyond the file's, as where lengths were rounded up
MARGIN = 0.05  # s read on both sides of a part, where a resampler's filter would see the edges


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording, or a part of one, and what is known of it."""

    path: Path
    """Ready to open: absolute, or from the working directory on."""
    id: str
    """Unique and stable in the corpus: the path below its root with "@start" where the clip is a later part of its
    file; in lhotse manifests their own id."""
    start: float = 0.0
    """Seconds into the file."""
    seconds: float | None = None
    """None: to the end of the file."""
    set: str = ""
    split: str | None = None
    """One of SPLITS, where the corpus says so."""
    speaker: str | None = None
    label: str | None = None
    transcript: str | None = None

    def size(self) -> int | None:
        """Bytes of its file; None where there is no such file."""
        try:
            return self.path.stat().st_size
        except OSError:
            return None


def clips(source: Path) -> Iterator[Clip]:
    """The clips of a folder or manifest, in an order that depends on nothing else; no more than one folder's names are
    held at a time.

    A folder's sets are its first folders, or those in them where the first are named as splits, and the label of a clip
    is its own folder's name. If it holds `manifest.jsonl`, that is read instead. Hidden files are left out, links are
    followed. Of lhotse's manifests, recordings and plain cuts (of all channels, as all audio is averaged to one) of
    local files can be read; their relative paths start, as with lhotse, from the working directory.

    Raises:
        InputNotFound: no such folder or manifest, or no clips in it. A clip's own file need not be there.
        ConfigError: a line of a manifest makes no sense; the message has its number.
    """
    empty = True
    if source.is_dir() and not (source / MANIFEST).is_file():
        found = _in_folder(source)
    else:
        found = _in_manifest(source / MANIFEST if source.is_dir() else source)
    for clip in found:
        empty = False
        yield clip
    if empty:
        raise InputNotFound(f"{source} holds no audio files: name a folder or a manifest that does")


def root_of(source: Path) -> Path:
    """The folder that a corpus's paths start from."""
    return source if source.is_dir() else source.parent


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as JSONL, with paths from the manifest's folder on; the file appears once it is whole.

    Raises StorageError.
    """
    root = os.path.realpath(path.parent)
    with atomic_output(path, force=True) as file:
        for clip in clips:
            row: dict[str, Any] = {"path": Path(os.path.relpath(os.path.realpath(clip.path), root)).as_posix()}
            row |= {key: getattr(clip, key) for key in ("start", "seconds", *TEXT_FIELDS)}
            file.write(
                json.dumps({key: value for key, value in row.items() if value or key == "path"}).encode() + b"\n"
            )


def hashed(text: str) -> int:
    """64 bits that stay the same everywhere and for ever: what a split that nobody wrote down is made by."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])


def clip_audio(clip: Clip, *, rate: int, first: int = 0, time: int | None = None) -> Block:
    """Part of a clip [1, at most `time`] at `rate` Hz, channels averaged, decoded by seeking to it.

    `first` and `time` are in samples at `rate`; `time` None is to the clip's end, where there may be less than asked
    for. The part is what it is in the whole clip when that is resampled (of Vorbis, libsndfile's seeks into the last
    page are off by a few milliseconds).

    Raises:
        InputNotFound: there is no such file.
        UnsupportedAudio: the file cannot be decoded there, holds NaN, or is shorter than its header or clip says.
    """
    with open_reader(clip.path) as reader:
        time_in_all = reader.length() if reader.time is None else reader.time
        start = round(clip.start * reader.rate)
        length = time_in_all - start
        if length <= 0 or (clip.seconds or 0) > length / reader.rate + LENGTH_TOLERANCE:
            raise UnsupportedAudio(
                f"{reader.label} ends at {time_in_all / reader.rate:.2f} s, but the manifest has a clip from "
                f"{clip.start:.2f} s to {clip.start + (clip.seconds or 0):.2f} s: correct it"
            )
        if clip.seconds is not None:
            length = min(length, round(clip.seconds * reader.rate))
        last = resampled_length(length, reader.rate, rate)
        last = last if time is None else min(last, first + time)
        if first >= last:  # within the slack
            return np.zeros((1, 0), np.float32)
        # From a sample that is one at both rates, so that the resampler's grid is that of the whole clip.
        divisor = math.gcd(rate, reader.rate)
        new, old = rate // divisor, reader.rate // divisor  # so many samples take the same time
        margin = 0 if new == old else round(MARGIN * rate)
        skipped = max(0, first - margin) // new
        end = min(length, -(-(last + margin) * old // new))
        needed = min(length, -(-last * old // new))  # the header may promise more than the file has
        block = reader.part(start + skipped * old, end - skipped * old, least=needed - skipped * old)
    resampler = Resampler(reader.rate, rate, 1)
    audio = np.concatenate([resampler.push(block.mean(axis=0, keepdims=True)), resampler.flush()], axis=1)
    return audio[:, first - skipped * new : last - skipped * new]


# folders


def _in_folder(root: Path) -> Iterator[Clip]:
    for path in walk(root, is_audio_path):
        *folders, _ = path.split("/")
        split = folders.pop(0) if folders and folders[0] in SPLITS else None
        first, label = (folders[0], folders[-1]) if folders else ("", None)
        yield Clip(root / path, path, set=first, split=split, label=label)


# manifests


def _in_manifest(path: Path) -> Iterator[Clip]:
    for number, row in _rows(path):
        try:
            clip = _of_lhotse(row) if "sources" in row or "recording" in row or "tracks" in row else _of_row(row, path)
            _check_text(clip)
        except ValueError as problem:
            raise ConfigError(f"{path} line {number}: {problem}") from problem
        yield clip


def _check_text(clip: Clip) -> None:
    """ValueError for text that UTF-8 cannot hold; but names of files may have bytes that are not UTF-8."""
    for text in (str(clip.path), clip.id, *(getattr(clip, key) for key in TEXT_FIELDS)):
        try:
            (text or "").encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"{text!r:.80} has half a character (a lone surrogate): write it again") from error


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line number, what stands in the line)."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if kind not in ("jsonl", "csv"):
        raise InputNotFound(f"{path} is neither a folder nor a manifest (.jsonl, .jsonl.gz or .csv): check the name")
    with _opened(path) as file:
        if kind == "csv":
            table = csv.DictReader(file)
            for row in table:
                yield table.line_num, {key: value for key, value in row.items() if value}
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{path} line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ConfigError(f'{path} line {number}: {line.strip():.40} is no object: write {{"path": ...}}')
            yield number, row


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError as error:
        raise InputNotFound(f"{path} does not exist: check the path") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputNotFound(f"{path} cannot be read ({error}): fetch or make it again") from error


def _of_row(row: Mapping[str, Any], manifest: Path) -> Clip:
    """A clip of one of our own lines; ValueError where it makes no sense."""
    path = row.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"path is {path!r}: name an audio file, from the manifest's folder on")
    start = _number(row, "start") or 0.0
    texts: dict[str, Any] = {key: str(row[key]) for key in TEXT_FIELDS if row.get(key) is not None}
    if texts.get("split", "train") not in SPLITS:
        raise ValueError(f"split is {texts['split']!r}: write one of {', '.join(SPLITS)}")
    return Clip(manifest.parent / path, _id(path, start), start, _number(row, "seconds"), **texts)


def _id(path: str, start: float) -> str:
    return PurePosixPath(path).as_posix() + (f"@{start:.10g}" if start else "")


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < LONGEST or (key != "start" and number == 0):
        raise ValueError(f"{key} is {value!r:.40}: write a number of seconds")
    return number


def _of_lhotse(row: Mapping[str, Any]) -> Clip:
    """A clip of a lhotse recording or cut; ValueError where it is not one of a plain local file."""
    try:
        return _of_plain(row)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"no recording or cut as lhotse writes them ({error!r}): write it again") from error


def _of_plain(row: Mapping[str, Any]) -> Clip:
    name = row.get("id")
    recording = row.get("recording", row)
    if "tracks" in row or not isinstance(recording, dict):
        raise ValueError(f"{row.get('type')} {name} is no plain part of one file: save its audio first")
    sources = recording.get("sources") or [{}]
    if len(sources) != 1 or sources[0].get("type") != "file":
        raise ValueError(f"recording {recording.get('id')} is not one local file: save its audio first")
    if recording.get("transforms"):
        raise ValueError(f"recording {recording.get('id')} has transforms: save its audio first")
    present = sources[0].get("channels") or []
    chosen = row.get("channel", present)
    if present and {*(chosen if isinstance(chosen, list) else [chosen])} != {*present}:
        raise ValueError(f"cut {name} is of channel {chosen} alone, and channels are averaged: save its audio first")
    told = row.get("supervisions") or []
    speakers = {supervision.get("speaker") for supervision in told}
    speaker = speakers.pop() if len(speakers) == 1 else None
    return Clip(
        Path(sources[0]["source"]),
        str(name),
        _number(row, "start") or 0.0,
        _number(row, "duration"),
        speaker=None if speaker is None else str(speaker),
        transcript=" ".join(supervision["text"] for supervision in told if supervision.get("text")) or None,
    )
