"""Read a corpus clip by clip: a folder of audio, a manifest (JSONL, CSV, lhotse), Parquet files, torchaudio datasets.

A line of a manifest has the path of a file, relative to the manifest's folder, and optional metadata:

    {"path": "a/1.flac", "start": 2.5, "seconds": 4.0, "set": "a", "split": "train", "speaker": "eva", "label": "x"}
    {"path": "call.wav", "channel": 1, "speaker": "the second channel alone"}
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, TextIO

import numpy as np

from codec.conditions import KINDS, Conditions
from codec.data import torchaudio_sources
from codec.errors import ConfigError, InputNotFound, UnsupportedAudio
from codec.frames import resampled_length
from codec.io import ffmpeg, parquet
from codec.io.audio import INTEGER_PEAK, AudioReader, Block, Resampler, is_audio_path, looks_like_integers, open_reader
from codec.io.bounded_json import read_json
from codec.io.mixdown import Note, with_channels
from codec.io.storage import atomic_output, walk

STORE = "store.json"  # in the folder of a token store, which is not a corpus
MANIFEST = "manifest.jsonl"  # in a folder that holds one, only the clips it lists count
SPLITS = ("train", "valid", "test")
TEXT_FIELDS = ("set", "split", *(kind.key for kind in KINDS))  # a manifest's keys beside path, start and seconds
COLUMNS = {  # of datasets of Hugging Face, for each key of manifests
    **{key: (key,) for key in TEXT_FIELDS},
    "speaker": ("speaker", "speaker_id"),
    "transcript": ("transcript", "text", "sentence", "transcription"),
    "language": ("language", "lang", "locale"),
}
SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    **dict.fromkeys(("validation", "val", "dev"), "valid"),
    **dict.fromkeys(("testing", "eval", "evaluation"), "test"),
    "training": "train",
}
MAX_SECONDS = 1e9  # 30 years; a longer time is a mistake
MAX_LINE = 2**24  # characters of a line of a manifest; the longest that occur are cuts with an alignment of hours
LENGTH_TOLERANCE = 0.1  # s by which a manifest's length may exceed the file's, because lengths may be rounded up
CHECKSUM_BYTES = 8
MARGIN = 0.05  # s read beyond both ends of a part, so that the resampling filter does not see its edges


@dataclass(frozen=True, slots=True)
class Clip(Conditions):
    """A recording or a part of one, with its metadata."""

    path: Path
    """Absolute, or relative to the working directory; of a row of a Parquet file as `codec.io.parquet` names it."""
    id: str
    """Unique and stable in the corpus: the path below its root, with "@start" for a later part of a file and
    "#channel" for one channel; in lhotse manifests their own id."""
    start: float = 0.0
    """Seconds into the file."""
    seconds: float | None = None
    """None for up to the end of the file."""
    set: str = ""
    split: str | None = None
    """One of SPLITS, or None if the corpus does not state it."""
    channel: int | None = None
    """The channel to use alone, 0 for the first; None for all, mixed down."""

    def file(self) -> Path:
        """The path, which must be that of a regular file, because pipes make a corpus wait and devices never end.

        Raises InputNotFound for a pipe or a device.
        """
        try:
            kind = self.path.stat().st_mode
        except (OSError, ValueError):
            return self.path  # opening it says what is wrong
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise InputNotFound(f"{self.path} is a pipe or a device, not a recording: take it out of the manifest")
        return self.path

    @contextmanager
    def open(self, *, use_ffmpeg: bool = False) -> Iterator[AudioReader]:
        """Open the recording, its one channel if the clip has one, as `codec.io.audio.open_reader`.

        Raises InputNotFound, UnsupportedAudio, MissingDependency.
        """
        source: Path | bytes = self.file()
        if (row := parquet.row_of(self.path)) is not None:
            source = parquet.audio(*row)
        stream = io.BytesIO(source) if isinstance(source, bytes) else None
        path = source if isinstance(source, Path) else self.path
        with open_reader(path, channel=self.channel, use_ffmpeg=use_ffmpeg, stream=stream) as reader:
            yield reader

    def size(self) -> int | None:
        """Size of the file in bytes, on average for a row of a Parquet file; None if there is no such file."""
        if (row := parquet.row_of(self.path)) is not None:
            return parquet.row_size(row[0])
        try:
            return self.path.stat().st_size
        except OSError:
            return None

    def modified(self) -> int | None:
        """When the file was last modified, in nanoseconds; None if there is no such file."""
        row = parquet.row_of(self.path)
        try:
            return (self.path if row is None else row[0]).stat().st_mtime_ns
        except OSError:
            return None

    def checksum(self) -> str | None:
        """16 hexadecimal digits of the content of the recording's file; None if it cannot be read."""
        path = self.path
        try:
            if (row := parquet.row_of(path)) is not None:
                content = parquet.audio(*row)
                if isinstance(content, bytes):
                    return hashlib.blake2b(content, digest_size=CHECKSUM_BYTES).hexdigest()
                path = content
            status = path.stat()
            return _checksum(path, status.st_size, status.st_mtime_ns)
        except (OSError, InputNotFound, UnsupportedAudio):
            return None


@lru_cache(maxsize=64)  # because many clips may be parts of one long file
def _checksum(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=CHECKSUM_BYTES)).hexdigest()


def clips(source: Path, *, use_ffmpeg: bool = False) -> Iterator[Clip]:
    """Yield the clips of a folder, manifest or Parquet file, in a fixed order and in constant memory.

    In a folder, the set of a clip is the first folder of its path, or the second if the first is named as a split; its
    label is the name of the folder it is in. If the folder holds `manifest.jsonl`, that is read instead. Hidden files
    are skipped, links are followed; with `use_ffmpeg`, files that only ffmpeg reads are taken too. From lhotse
    manifests, recordings and plain cuts of local files are read, of all channels or of one; relative paths start from
    the working directory, as in lhotse. Datasets of torchaudio are named as in `codec.data.torchaudio_sources`.

    A folder without audio files but with Parquet files is a dataset of Hugging Face: every row is a clip. Its columns
    `speaker`, `label`, `text`, ... (COLUMNS) are those of a manifest, its split is that of the name of its file.

    Raises:
        InputNotFound: no such folder or manifest, or no clips in it. The files of the clips are not checked.
        ConfigError: a line of a manifest is invalid, and the message has its number; a Parquet file has no audio.
        UsageError: torchaudio has no such dataset.
        MissingDependency: pyarrow is needed for Parquet files and not installed, or torchaudio cannot be imported.
    """
    empty = True
    if torchaudio_sources.is_source(source):
        found = _of_torchaudio(source)
    elif source.is_dir() and not (source / MANIFEST).is_file():
        found = _in_folder(source, use_ffmpeg=use_ffmpeg)
    elif source.suffix == parquet.SUFFIX:
        found = _in_parquet(source, source.name)
    else:
        found = _in_manifest(source / MANIFEST if source.is_dir() else source)
    for clip in found:
        empty = False
        yield clip
    if empty:
        if (source / STORE).is_file():
            raise InputNotFound(f"{source} is a token store, not audio: language models are trained on it")
        unread = ffmpeg.unread_note(ffmpeg.unread(source)) if source.is_dir() else ""
        raise InputNotFound(f"{source} holds no audio files: {unread or 'name a folder or a manifest that does'}")


def root_of(source: Path) -> Path:
    """The folder to which the paths of a corpus are relative."""
    if torchaudio_sources.is_source(source):
        return torchaudio_sources.parsed(source).root
    return source if source.is_dir() else source.parent


def write_manifest(path: Path, clips: Iterable[Clip]) -> None:
    """Write clips as JSONL with paths relative to the manifest's folder; the file is replaced atomically.

    Raises StorageError.
    """
    root = os.path.realpath(path.parent)
    with atomic_output(path, force=True) as file:
        for clip in clips:
            row: dict[str, Any] = {"path": Path(os.path.relpath(os.path.realpath(clip.path), root)).as_posix()}
            row |= {key: value for key in ("start", "seconds", *TEXT_FIELDS) if (value := getattr(clip, key))}
            if clip.channel is not None:
                row["channel"] = clip.channel
            file.write(json.dumps(row).encode() + b"\n")


def hashed(text: str) -> int:
    """A stable 64-bit hash, by which clips without a stated split are assigned to one."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])


def file_length(clip: Clip) -> tuple[int, int]:
    """The samples of a clip from its start to the end of its file, and their sample rate; the file is opened.

    Raises InputNotFound, UnsupportedAudio.
    """
    with clip.open() as reader:
        samples = reader.length() - round(clip.start * reader.rate)
        if samples <= 0:
            raise UnsupportedAudio(
                f"{reader.label} ends before {clip.start:g} s, where the clip starts: remove the clip"
            )
        return samples, reader.rate


def clip_time(clip: Clip, rate: int) -> tuple[int, int | None]:
    """Length of a clip in samples at `rate` Hz, at least 1, and the sample rate of its file.

    The file is not opened if the corpus states the length, and its sample rate is None then.

    Raises InputNotFound, UnsupportedAudio.
    """
    if clip.seconds is not None:
        if clip.size() is None:
            raise InputNotFound(f"{clip.path} does not exist: fetch it")
        return max(1, int(clip.seconds * rate)), None
    samples, native = file_length(clip)
    time = samples * rate // native
    if time <= 0:
        raise UnsupportedAudio(f"{clip.path} has nothing from {clip.start:g} s on")
    return time, native


def clip_audio(
    clip: Clip, *, rate: int, first: int = 0, time: int | None = None, channels: int = 1, note: Note | None = None
) -> Block:
    """Read part of a clip [channels, at most `time`] at `rate` Hz by seeking.

    Without a channel of the clip's own, a recording of other channels is mixed down (`codec.io.mixdown`); one channel
    is repeated in all `channels`. `note` is called with a line if the channels of the recording cancel, or its samples
    look like integers.

    `first` and `time` are in samples at `rate`; `time` None reads to the clip's end, and a part that reaches beyond the
    end is shorter. The samples equal those of the whole clip after resampling (in Vorbis files, libsndfile's seeks into
    the last page are off by a few milliseconds).

    Raises:
        InputNotFound: there is no such file.
        UnsupportedAudio: the file cannot be decoded there, holds NaN, is shorter than its header or clip states, or has
            no such channel.
    """
    with clip.open() as reader:
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
        if first >= last:  # within LENGTH_TOLERANCE
            return np.zeros((channels, 0), np.float32)
        # Start at a sample of both rates, so that the resampler's grid is that of the whole clip.
        divisor = math.gcd(rate, reader.rate)
        new, old = rate // divisor, reader.rate // divisor  # these numbers of samples have the same duration
        margin = 0 if new == old else round(MARGIN * rate)
        skipped = max(0, first - margin) // new
        end = min(length, -(-(last + margin) * old // new))
        needed = min(length, -(-last * old // new))  # the header may promise more than the file has
        block = reader.part(start + skipped * old, end - skipped * old, least=needed - skipped * old)
        if note is not None and reader.peak > INTEGER_PEAK:
            note(f"{reader.label} {looks_like_integers(reader.peak)}")
    block = with_channels(block, channels, label=reader.label, note=note)
    resampler = Resampler(reader.rate, rate, channels, label=reader.label)
    audio = np.concatenate([resampler.push(block), resampler.flush()], axis=1)
    return audio[:, first - skipped * new : last - skipped * new]


# folders


def _in_folder(root: Path, *, use_ffmpeg: bool) -> Iterator[Clip]:
    empty = True
    for path in walk(root, partial(is_audio_path, use_ffmpeg=use_ffmpeg)):
        empty = False
        *folders, _ = path.split("/")
        split = folders.pop(0) if folders and folders[0] in SPLITS else None
        first, label = (folders[0], folders[-1]) if folders else ("", None)
        yield Clip(root / path, path, set=first, split=split, label=label)
    if empty:  # Parquet files beside audio files hold metadata
        for path in walk(root, lambda name: name.endswith(parquet.SUFFIX)):
            yield from _in_parquet(root / path, path)


# datasets of Parquet files


def _in_parquet(file: Path, path: str) -> Iterator[Clip]:
    """The rows of a file, whose `path` is relative to the corpus."""
    *folders, _ = path.split("/")
    named = next((split for part in reversed(path.split("/")) if (split := _split_of(part))), None)
    folders = [folder for folder in folders if _split_of(folder) is None]
    for number, row in enumerate(parquet.texts(file, [name for names in COLUMNS.values() for name in names])):
        found = {key: [str(row[name]) for name in names if row.get(name) is not None] for key, names in COLUMNS.items()}
        facts: dict[str, Any] = {key: values[0] for key, values in found.items() if values}
        if "split" in facts and (split := _split_of(facts["split"])) is None:
            raise ConfigError(f"{file} row {number}: split is {facts['split']!r}: write one of {', '.join(SPLITS)}")
        facts["split"] = split if "split" in facts else named
        clip = Clip(file / str(number), f"{path}/{number}", **{"set": folders[0] if folders else "", **facts})
        try:
            _check_text(clip)
        except ValueError as problem:
            raise ConfigError(f"{file} row {number}: {problem}") from problem
        yield clip


def _split_of(name: str) -> str | None:
    """The split that a name begins with, as in train-00000-of-00002.parquet or validation.other."""
    word = re.match("[a-z]*", name.lower())
    return SPLIT_NAMES.get(word[0]) if word else None


# manifests


def _in_manifest(path: Path) -> Iterator[Clip]:
    for number, row in manifest_rows(path):
        try:
            clip = _of_lhotse(row) if "sources" in row or "recording" in row or "tracks" in row else _of_row(row, path)
            _check_text(clip)
        except ValueError as problem:
            raise ConfigError(f"{path} line {number}: {problem}") from problem
        yield clip


def _of_torchaudio(source: Path) -> Iterator[Clip]:
    root = root_of(source)
    for row in torchaudio_sources.rows(source):
        path: Path = row.pop("path")
        yield Clip(path, (path.relative_to(root) if path.is_relative_to(root) else path).as_posix(), **row)


def _check_text(clip: Clip) -> None:
    """Raise ValueError for text with a NUL or that UTF-8 cannot encode; file names need not be UTF-8."""
    for text in (str(clip.path), clip.id, *(getattr(clip, key) for key in TEXT_FIELDS)):
        if "\0" in (text or ""):
            raise ValueError(f"{_end(text)} has a NUL: write it again")
        try:
            (text or "").encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise ValueError(f"{_end(text)} has half a character (a lone surrogate): write it again") from error


def _end(text: str | None, most: int = 60) -> str:
    """The end of a text for a message, because a path begins with folders."""
    text = text or ""
    return repr(text) if len(text) <= most else repr("…" + text[-most:])


def manifest_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield (line number, row) of a manifest: .jsonl, .jsonl.gz or .csv. Raises InputNotFound, ConfigError."""
    kind = path.name.lower().removesuffix(".gz").rpartition(".")[2]
    if not path.exists():
        raise InputNotFound(f"{path} does not exist: check the name")
    if kind not in ("jsonl", "csv"):
        raise InputNotFound(f"{path} is neither a folder nor a manifest (.jsonl, .jsonl.gz or .csv): check the name")
    with _opened(path) as file:
        if kind == "csv":
            table = csv.DictReader(_lines(file, path))
            for row in table:
                yield table.line_num, {key: value for key, value in row.items() if value}
            return
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            try:
                row = read_json(line)
            except ValueError as error:
                raise ConfigError(f"{path} line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise ConfigError(f'{path} line {number}: {line.strip():.40} is not an object: write {{"path": ...}}')
            yield number, row


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, of which a few bytes of gzip may unpack to any length. Raises ConfigError."""
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise ConfigError(f"{path} line {number} has {MAX_LINE} characters or more: shorten it")
        yield line


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError as error:
        raise InputNotFound(f"{path} does not exist: check the path") from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise InputNotFound(f"{path} cannot be read ({error}): download or write it again") from error


def _of_row(row: Mapping[str, Any], manifest: Path) -> Clip:
    """A clip of one row of our manifests. Raises ValueError."""
    path = row.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"path is {path!r}: write the path of an audio file, relative to the manifest's folder")
    start = _number(row, "start") or 0.0
    texts: dict[str, Any] = {key: str(row[key]) for key in TEXT_FIELDS if row.get(key) is not None}
    if texts.get("split", "train") not in SPLITS:
        raise ValueError(f"split is {texts['split']!r}: write one of {', '.join(SPLITS)}")
    channel = _channel(row.get("channel"))
    return Clip(
        manifest.parent / path, _id(path, start, channel), start, _number(row, "seconds"), channel=channel, **texts
    )


def _id(path: str, start: float, channel: int | None) -> str:
    part = f"@{start:.10g}" if start else ""
    return PurePosixPath(path).as_posix() + part + (f"#{channel}" if channel is not None else "")


def _channel(value: object) -> int | None:
    """The number of a channel, of JSON or CSV. Raises ValueError."""
    if value is None:
        return None
    if not re.fullmatch("[0-9]{1,4}", str(value)):
        raise ValueError(f"channel is {value!r:.40}: write 0 for the first channel, 1 for the second, ...")
    return int(str(value))


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < MAX_SECONDS or (key != "start" and number == 0):
        raise ValueError(f"{key} is {value!r:.40}: write a number of seconds")
    return number


def _of_lhotse(row: Mapping[str, Any]) -> Clip:
    """A clip of a lhotse recording or cut of one local file. Raises ValueError for others."""
    try:
        return _of_plain(row)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a recording or cut in the format of lhotse ({error!r}): write it again") from error


def _channel_of_cut(cut: Mapping[str, Any], present: list[int]) -> int | None:
    """The position in the file of a cut's one channel; None for all channels of a file. Raises ValueError."""
    chosen = cut.get("channel", present)
    wanted = {*(chosen if isinstance(chosen, list) else [chosen])}
    if not present or wanted == {*present}:
        return None
    if len(wanted) != 1 or not wanted <= {*present}:
        raise ValueError(
            f"cut {cut.get('id')} is of channels {chosen}, its file has {present}: take one channel, or save its audio"
        )
    return present.index(*wanted)


def _of_plain(row: Mapping[str, Any]) -> Clip:
    name = row.get("id")
    recording = row.get("recording", row)
    if "tracks" in row or not isinstance(recording, dict):
        raise ValueError(f"{row.get('type')} {name} is not a plain part of one file: save its audio first")
    sources = recording.get("sources") or [{}]
    if len(sources) != 1 or sources[0].get("type") != "file":
        raise ValueError(f"recording {recording.get('id')} is not one local file: save its audio first")
    if recording.get("transforms"):
        raise ValueError(f"recording {recording.get('id')} has transforms: save its audio first")
    supervisions = row.get("supervisions") or []

    def common(key: str) -> str | None:
        values = {supervision.get(key) for supervision in supervisions}
        value = values.pop() if len(values) == 1 else None
        return None if value is None else str(value)

    return Clip(
        Path(sources[0]["source"]),
        str(name),
        _number(row, "start") or 0.0,
        _number(row, "duration"),
        channel=_channel_of_cut(row, sources[0].get("channels") or []),
        speaker=common("speaker"),
        language=common("language"),
        transcript=" ".join(supervision["text"] for supervision in supervisions if supervision.get("text")) or None,
    )
