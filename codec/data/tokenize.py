"""Encode a corpus to a token store, shard by shard, in local processes or on a Ray cluster.

    clips.jsonl     clip 0   clip 1   clip 2   clip 3   clip 4   ...
                    └──── shard 0 ────┘└──── shard 1 ───┘

A shard holds the clips between two byte offsets of clips.jsonl. Its .codes file is renamed into place before its
.jsonl, so a .jsonl implies a complete shard; writing a shard is idempotent. `codec.data.token_store` has the format.

When the corpus has changed, clips.jsonl first lists the clips of the shards that exist, in their order, with
{"removed": ID} for a clip that the corpus no longer has; then the new clips, in further shards.
"""

import hashlib
import json
import math
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from codec import pretrained
from codec.checkpoint import CodecCard
from codec.compression import cached_model, peak_notes
from codec.conditions import CLASSES, conditions_last
from codec.data.clips import LENGTH_TOLERANCE, STORE, TEXT_FIELDS, Clip, clips, hashed, root_of
from codec.data.split import path_in
from codec.data.token_store import (
    DTYPES,
    FORMAT,
    MOST_FRAMES,
    Failure,
    Row,
    bad_metadata,
    hash_id,
    lines_path,
    read_index,
    read_metadata,
    read_rows,
    record_dtype,
    shard_path,
)
from codec.errors import (
    CodecError,
    ConfigError,
    DamagedFile,
    InputNotFound,
    ModelId,
    StorageError,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from codec.frames import FrameSpec, Narrowband
from codec.io import ffmpeg
from codec.io.audio import AudioReader, Block, Resampler
from codec.io.level import Level, level_of, stored_level
from codec.io.mixdown import Mixdown, Note
from codec.io.storage import atomic_output, locked_folder, storing
from codec.models.base import Codec, split_scale, without_peak_warnings
from codec.parallel import Engine, each
from codec.splicing import BLOCK_SECONDS
from codec.streams import StreamEncoder

WRONG_SHARDS = "its shards are not those of its clips"
WAY_OUT = "name another folder, or pass --force to start over"
TARGET_SHARDS = 256  # shards of a corpus, if their lengths lie within the next line's bounds
SHARD_SECONDS = (60.0, 3600.0)
LISTS = {"split": "splits", **CLASSES}  # keys of store.json
BYTES_PER_SECOND = 32_000  # assumed of clips whose length the corpus does not state: 16 bits at 16 kHz
KEPT_BLOCKS = 8  # of a recording with several channels; longer ones are read twice
BATCH_SECONDS = {"cpu": 8.0, "cuda": 480.0}  # of audio, padding included; shorter clips are encoded in batches
Progress: TypeAlias = Callable[[int, int], None]
"""Called after each shard with the number of finished shards and of all shards."""


@dataclass(frozen=True)
class StoreReport:
    """The result of `tokenize`: `clips` clips were encoded, `seconds` of audio; `already_encoded` were skipped.

    `removed` clips are no longer in the corpus. `notes` name recordings that are silence, whose channels cancel in
    their average, or whose peaks are clipped or look like those of integers; the first ones count the clips that were
    encoded here and have less than half of the model's sample rate.
    """

    clips: int
    seconds: float
    already_encoded: int
    shards: int
    failures: tuple[Failure, ...]
    elapsed: float
    notes: tuple[str, ...] = ()
    removed: int = 0

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / self.elapsed


class ShardSpan(NamedTuple):
    """The clips of a shard: `clips` lines from byte `offset` of clips.jsonl."""

    shard: int
    offset: int
    clips: int


class Planned(NamedTuple):
    """A line of clips.jsonl: a clip with its file's size and path in the corpus, or one that was removed."""

    id: str
    clip: Clip | None
    size: int | None = None
    file: str | None = None
    modified: int | None = None


class Corpus(NamedTuple):
    """The clips that `_list_clips` found."""

    metadata: dict[str, Any]
    """The corpus's part of store.json."""
    offsets: dict[int, int]
    """Byte offset of each clip's line, by the hash of its id."""
    seconds: float


@dataclass(frozen=True)
class ShardResult:
    """The outcome of one shard, as in StoreReport."""

    already_encoded: int
    clips: int = 0
    seconds: float = 0.0
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()
    narrowband: Narrowband = field(default_factory=Narrowband)


def tokenize(
    source: str | Path,
    target: str | Path,
    *,
    model: str | Path = pretrained.DEFAULT,
    num_codebooks: int | None = None,
    level_db: float | None = None,
    loudness: float | None = None,
    channel: int | None = None,
    use_ffmpeg: bool = False,
    force: bool = False,
    device: str = "cpu",
    jobs: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> StoreReport:
    """Encode every clip of `source`, as `codec.data.clips` finds them, to a token store in the folder `target`.

    Channels are averaged, unless they cancel (`codec.io.mixdown`); `channel` selects one, 0 for the first, for clips
    that name none. With `level_db`, from -60 to 0, every clip is scaled before it is encoded, so that the RMS of its
    loud part (`codec.io.level`) is `level_db` dBFS; with `loudness`, so that its integrated loudness is `loudness` LUFS
    (`codec.io.loudness`). With `use_ffmpeg`, the program ffmpeg decodes what libsndfile does not read. An existing
    store is resumed: complete shards are kept, and in shards with failures the clips that did not fail. If the corpus
    has changed, new clips are added as further shards, and clips that it no longer has are marked as removed; a file of
    another size, or of another time and content, is both. `force` starts over. A clip that cannot be read does not stop
    the others; it is listed in the report and in its shard's lines. `jobs` and `engine` as in `codec.parallel.each`.

    Raises:
        InputNotFound, ConfigError: as `clips`; two clips have the same id; another process writes to `target`.
        UnknownModel, UsageError: no such model, no such number of codebooks, or a level out of range or beside a
            loudness.
        MissingDependency: there is no ffmpeg, or loudness is asked for and torchaudio cannot be imported.
        WeightsMismatch: `target` was made by other weights.
        StorageError: `target` has other codebooks or another level, none of its clips is in `source`, or it is not a
            store or cannot be written.
        DamagedFile: its store.json was altered.
    """
    start = perf_counter()
    folder = Path(target)
    card = pretrained.describe(model).as_codec()
    num_codebooks = _check_codebooks(card, num_codebooks)
    level = level_of(level_db, loudness)
    if use_ffmpeg:
        ffmpeg.check_installed()
    with _locked_store(folder):
        found = _of_channel(clips(Path(source), use_ffmpeg=use_ffmpeg), channel)
        with tempfile.TemporaryFile(dir=folder) as listed:
            corpus = _list_clips(found, Path(source), listed)
            made_by = card.name, card.weights_hash
            metadata = model_metadata(made_by, card.family, card.frame_spec, num_codebooks, level) | corpus.metadata
            if force:
                _remove_store(folder)
            with atomic_output(folder / "clips.jsonl", force=True) as file:
                stored = _stored_clips(folder, metadata)  # raises before anything is written
                shard_clips, removed = _plan_clips(folder, corpus, listed, stored, file)
        spans = _plan_shards(folder, shard_clips, corpus.seconds)
        metadata["shards"] = [span.clips for span in spans]
        results: list[ShardResult] = []
        failures: dict[int, tuple[Failure, ...]] = {}
        notes: dict[int, tuple[str, ...]] = {}
        narrowband = Narrowband()
        if (complete := _complete_shards(folder, metadata, spans)) is not None:
            results = list(map(ShardResult, complete))
            _remove_temporary(folder)
            if progress is not None:
                progress(len(spans), len(spans))
        else:
            with atomic_output(folder / STORE, force=True) as file:
                file.write(json.dumps(metadata).encode())
            all_written = True
            work = partial(_encode_shard, folder, model, card, num_codebooks, level, use_ffmpeg, device)
            for span, result in each(work, spans, jobs=jobs, engine=engine, gpu=device == "cuda"):
                if isinstance(result, CodecError):
                    all_written = False
                    failure = Failure(shard_path(folder, span.shard).name, str(result))
                    result = ShardResult(0, failures=(failure,))
                results.append(result)
                failures[span.shard], notes[span.shard] = result.failures, result.notes
                narrowband.update(result.narrowband)
                if progress is not None:
                    progress(len(results), len(spans))
            if all_written:
                write_index(folder, metadata)
    return StoreReport(
        clips=sum(result.clips for result in results),
        seconds=sum(result.seconds for result in results),
        already_encoded=sum(result.already_encoded for result in results),
        shards=len(spans),
        failures=tuple(failure for _, some in sorted(failures.items()) for failure in some),
        elapsed=perf_counter() - start,
        notes=(*narrowband.notes("clip"), *(note for _, some in sorted(notes.items()) for note in some)),
        removed=removed,
    )


def clip_gain(clip: Clip, level: Level | None, *, rate: int) -> np.float32:
    """The gain with which `tokenize` encodes a clip at `rate` Hz; 1 without a level."""
    return np.float32(1) if level is None else level.gain(_blocks(clip, rate), rate=rate)


# before encoding


def _check_codebooks(card: CodecCard, num_codebooks: int | None) -> int:
    most = card.frame_spec.num_codebooks
    num_codebooks = most if num_codebooks is None else num_codebooks
    if not 1 <= num_codebooks <= most:
        raise UsageError(f"{card.name} has 1 to {most} codebooks, not {num_codebooks}")
    return num_codebooks


@contextmanager
def _locked_store(folder: Path) -> Iterator[None]:
    """Lock a folder that is new, empty or a token store; if the block raises, remove the folders made here."""
    lock = ExitStack()
    with storing(folder):
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        is_store = (folder / STORE).is_file()
        visible = (path.name for path in folder.iterdir() if not path.name.startswith("."))
        if not is_store and any(name != "clips.jsonl" for name in visible):
            raise StorageError(f"{folder} holds other files than a token store: name a new folder")
        lock.enter_context(locked_folder(folder, "codec tokenize"))
    try:
        with lock:
            yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # another process has written there
                path.rmdir()
        raise


def _remove_store(folder: Path) -> None:
    for path in (*folder.glob("shard-*.*"), folder / "index.bin", folder / STORE):  # which makes it a store
        path.unlink(missing_ok=True)


def _of_channel(found: Iterable[Clip], channel: int | None) -> Iterator[Clip]:
    """The clips, with `channel` where they name none. Their ids stay."""
    return (clip if clip.channel is not None else replace(clip, channel=channel) for clip in found)


def _list_clips(found: Iterable[Clip], source: Path, file: BinaryIO) -> Corpus:
    """Write a line for every clip of the corpus."""
    digest, sizes, root = hashlib.sha256(), hashlib.sha256(), root_of(source)
    names: dict[str, set[str]] = {kind: set() for kind in LISTS}
    offsets: dict[int, int] = {}  # by hashes, because there may be millions
    seconds, position = 0.0, 0
    for clip in found:
        if (key := hash_id(clip.id)) in offsets:
            raise ConfigError(f"{source} has two clips {clip.id}: remove one, or give each its own path or start")
        offsets[key] = position
        size, modified = clip.size(), clip.modified()
        row = conditions_last(asdict(clip))
        place = {"path": str(clip.path.absolute()), "size": size, "modified": modified}
        place["file"] = str(path_in(clip, root))
        position += file.write(json_line(row | place))
        del row["path"]  # because a corpus may move
        digest.update(json_line(row))
        sizes.update(f"{size} {modified} ".encode())  # a digest of its own, because files that failed may change
        seconds += _estimated_seconds(clip, size)
        for kind, values in names.items():
            if (name := getattr(clip, kind)) is not None:
                values.add(name)
    lists = {LISTS[kind]: sorted(values) for kind, values in names.items()}
    return Corpus({"corpus": digest.hexdigest(), "sizes": sizes.hexdigest(), **lists}, offsets, seconds)


def _estimated_seconds(clip: Clip, size: int | None) -> float:
    return (size or 0) / BYTES_PER_SECOND if clip.seconds is None else clip.seconds


def model_metadata(
    made_by: ModelId, family: str, spec: FrameSpec, num_codebooks: int, level: Level | None
) -> dict[str, Any]:
    """The codec's part of store.json."""
    name, weights_hash = made_by
    metadata = {
        "format": FORMAT,
        "model": name,
        "weights_hash": weights_hash,
        "family": family,
        "frame_spec": asdict(spec),
        "num_codebooks": num_codebooks,
        "dtype": DTYPES[spec.codebook_size > 1 << 16],
    }
    return metadata if level is None else metadata | level.fields


def _stored_clips(folder: Path, metadata: dict[str, Any]) -> Iterator[list[Row | Failure | int]]:
    """Check that the store in `folder` is of this `metadata`; the clips of each of its shards.

    A clip is its row, or the hash of its id if its shard is not written. Without a store there are none.

    Raises WeightsMismatch or StorageError if the store has other weights, codebooks or another level.
    """
    if not (folder / STORE).is_file():
        return iter(())
    stored = read_metadata(folder)
    if stored["weights_hash"] != metadata["weights_hash"]:
        made_by, given = ((some["model"], some["weights_hash"]) for some in (stored, metadata))
        raise WeightsMismatch(str(folder), made_by=made_by, given=given, way_out=WAY_OUT)
    if stored["num_codebooks"] != metadata["num_codebooks"]:
        raise StorageError(
            f"{folder} holds {stored['num_codebooks']} codebooks, not {metadata['num_codebooks']}: {WAY_OUT}"
        )
    before, now = (stored_level(some) for some in (stored, metadata))
    if before != now:
        labels = ["at their own levels" if some is None else f"at {some}" for some in (before, now)]
        raise StorageError(f"{folder} has recordings {labels[0]}, not {labels[1]}: {WAY_OUT}")
    if not stored["shards"] or not all(
        isinstance(clips, int) and 0 <= clips < MOST_FRAMES for clips in stored["shards"]
    ):
        raise bad_metadata(folder, WRONG_SHARDS)
    return _clips_of_shards(folder, stored)


def _clips_of_shards(folder: Path, stored: dict[str, Any]) -> Iterator[list[Row | Failure | int]]:
    """The clips of every shard, by its lines, else by clips.jsonl of the interrupted command, else by the index.

    Raises DamagedFile: store.json has other numbers of clips.
    """
    with ExitStack() as files:
        planned: Iterator[bytes] = iter(())
        with suppress(FileNotFoundError):
            planned = iter(files.enter_context((folder / "clips.jsonl").open("rb")))
        for shard, count in enumerate(stored["shards"]):
            if not count:  # none of its clips was encoded before they were removed from the corpus
                yield []
                continue
            ids: list[Row | Failure | int] = [hash_id(_parse_line(line).id) for line in islice(planned, count)]
            try:
                clips: list[Row | Failure | int] = [row for _, row in read_rows(lines_path(shard_path(folder, shard)))]
                intact = len(clips) == count
            except DamagedFile:
                clips = ids or _ids_in_index(folder, stored, shard)
                intact = bool(clips)
            if not intact:
                raise bad_metadata(folder, WRONG_SHARDS)
            yield clips


def _ids_in_index(folder: Path, stored: dict[str, Any], shard: int) -> list[Row | Failure | int]:
    """The hashes of the ids of a shard's clips; nothing if the index is damaged."""
    path, dtype = folder / "index.bin", record_dtype(stored)
    if not path.is_file() or path.stat().st_size % dtype.itemsize:
        return []
    records = np.fromfile(path, dtype)
    return list(map(int, records["id"][records["shard"] == shard]))


def _plan_clips(
    folder: Path,
    corpus: Corpus,
    listed: BinaryIO,
    stored: Iterable[list[Row | Failure | int]],
    plan: BinaryIO,
) -> tuple[list[int], int]:
    """Write clips.jsonl; return the clips of each shard that exists, and how many are no longer in the corpus."""

    def line_of(offset: int) -> bytes:
        listed.seek(offset)
        return listed.readline()

    new, total = corpus.offsets, len(corpus.offsets)  # less the clips whose codes are there
    shards: list[int] = []
    removed = 0
    for rows in stored:
        shards.append(0)
        for row in rows:
            key = row if isinstance(row, int) else hash_id(row.id)
            line = line_of(new[key]) if key in new else b""
            if line and _has_codes_of(row, _parse_line(line)):
                del new[key]
                plan.write(line)
            elif isinstance(row, int):
                continue  # never encoded
            else:
                removed += not getattr(row, "removed", False)
                plan.write(json_line({"removed": row.id}))
            shards[-1] += 1
    if sum(shards) and len(new) == total:
        raise StorageError(f"{folder} is of another corpus, none of its clips is in this one: {WAY_OUT}")
    for offset in new.values():
        plan.write(line_of(offset))
    return shards, removed


def _has_codes_of(row: Row | Failure | int, planned: Planned) -> bool:
    """Whether the codes of a row are those of a clip, or are still to be written."""
    clip, size = planned.clip, planned.size
    assert clip is not None
    if not isinstance(row, Row):
        return True
    if size is not None and row.size not in (None, size):
        return False
    is_later = row.modified is not None and row.modified != planned.modified
    if is_later and row.checksum is not None and clip.checksum() not in (None, row.checksum):
        return False
    if row.start is None:  # before format 3
        return clip.channel is None
    return (row.start, row.seconds, row.channel) == (clip.start, clip.seconds, clip.channel)


def _plan_shards(folder: Path, shard_clips: list[int], seconds: float) -> list[ShardSpan]:
    """Divide clips.jsonl into shards: the existing ones, because files may have changed, and the rest by length."""
    most = min(max(seconds / TARGET_SHARDS, SHARD_SECONDS[0]), SHARD_SECONDS[1])
    spans: list[ShardSpan] = []
    position = 0
    with (folder / "clips.jsonl").open("rb") as file:
        for count in shard_clips:
            spans.append(ShardSpan(len(spans), position, count))
            position += sum(len(line) for line in islice(file, count))
        count, total, offset = 0, 0.0, position
        for line in file:
            if count and total >= most:
                spans.append(ShardSpan(len(spans), offset, count))
                offset, count, total = position, 0, 0.0
            planned = _parse_line(line)
            assert planned.clip is not None
            total += _estimated_seconds(planned.clip, planned.size)
            position += len(line)
            count += 1
    return [*spans, ShardSpan(len(spans), offset, count)] if count else spans


def _lines_of(folder: Path, span: ShardSpan) -> list[Planned]:
    """The lines of a shard in clips.jsonl."""
    with (folder / "clips.jsonl").open("rb") as file:
        file.seek(span.offset)
        return [_parse_line(next(file)) for _ in range(span.clips)]


def json_line(row: dict[str, Any]) -> bytes:
    """A line of JSON without the fields that are None or False."""
    present = {key: value for key, value in row.items() if value is not None and value is not False}
    # File names need not be UTF-8: Python holds such bytes as surrogates, which json.loads accepts.
    return json.dumps(present, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _parse_line(line: bytes) -> Planned:
    """A line of clips.jsonl."""
    row = json.loads(line)
    if "removed" in row:
        return Planned(row["removed"], None)
    size, file, modified = (row.pop(name, None) for name in ("size", "file", "modified"))
    clip = Clip(**row | {"path": Path(row["path"])})
    return Planned(clip.id, clip, size, file, modified)


def _complete_shards(folder: Path, metadata: dict[str, Any], spans: list[ShardSpan]) -> list[int] | None:
    """The clips of each shard that are in the corpus; None if the store lacks this `metadata`, its index or a shard."""
    if not (folder / STORE).is_file():
        return None
    stored = read_metadata(folder)
    index, _ = stored.pop("index", None), stored.pop("frames", None)
    if stored != metadata:
        return None
    frame_bytes = metadata["num_codebooks"] * np.dtype(metadata["dtype"]).itemsize
    clips: list[int] = []
    for span in spans:
        lines = _lines_of(folder, span)
        rows = _existing_rows(shard_path(folder, span.shard), [line.id for line in lines], frame_bytes)
        if rows is None or rows != _marked(rows, lines):
            return None
        clips.append(sum(line.clip is not None for line in lines))
    try:
        read_index(folder / "index.bin", clips=sum(clips), crc=index["crc"], dtype=record_dtype(stored))
    except (DamagedFile, TypeError, KeyError):
        return None
    return clips


def _marked(rows: list[Row | Failure], lines: list[Planned]) -> list[Row | Failure]:
    """Rows with the metadata that their clips have now, and with the mark of removed clips."""
    return [_marked_row(row, line) for row, line in zip(rows, lines, strict=True)]


def _marked_row(row: Row | Failure, line: Planned) -> Row | Failure:
    if isinstance(row, Failure):
        return row
    clip = line.clip
    if clip is None:
        return replace(row, removed=True)
    fields = {name: getattr(clip, name) for name in ("start", "seconds", "channel", *TEXT_FIELDS)}
    size = row.size if line.size is None else line.size
    modified = row.modified if line.modified is None else line.modified
    return replace(
        row, **fields, size=size, modified=modified, file=None if line.file == row.id else line.file, removed=False
    )


def _existing_rows(path: Path, names: list[str], frame_bytes: int) -> list[Row | Failure] | None:
    """The rows of a complete shard; None if it is not complete."""
    try:
        rows = [row for _, row in read_rows(lines_path(path))]
        size = path.stat().st_size
    except (CodecError, OSError):
        return None
    frames = sum(row.frames for row in rows if isinstance(row, Row))
    return rows if [row.id for row in rows] == names and size == frames * frame_bytes else None


# encoding


def _encode_shard(
    folder: Path,
    model: str | Path,
    card: CodecCard,
    num_codebooks: int,
    level: Level | None,
    use_ffmpeg: bool,
    device: str,
    span: ShardSpan,
) -> ShardResult:
    """Write one shard; clips that an earlier run encoded are copied."""
    path = shard_path(folder, span.shard)
    dtype = np.dtype(read_metadata(folder)["dtype"]).newbyteorder("<")
    frame_bytes = num_codebooks * dtype.itemsize
    todo = _lines_of(folder, span)
    before = _existing_rows(path, [line.id for line in todo], frame_bytes)
    waiting = [
        line.clip is not None and not isinstance(row, Row) for line, row in zip(todo, before or [], strict=False)
    ]
    if before is not None and not any(waiting):
        if (rows := _marked(before, todo)) != before:
            write_lines(path, rows)
        return ShardResult(sum(line.clip is not None for line in todo))
    codec = cached_model(model, device)
    if codec.weights_hash != card.weights_hash:
        raise WeightsMismatch(
            str(folder),
            made_by=(card.name, card.weights_hash),
            given=(codec.name, codec.weights_hash),
            way_out=f"{model} has changed since; start over with --force",
        )
    old = path.read_bytes() if before else b""
    already_encoded = 0
    with atomic_output(path, force=True) as file:
        shard = _ShardWriter(file, codec, num_codebooks, dtype, level=level, use_ffmpeg=use_ffmpeg)
        for line, row in zip(todo, before or repeat(None, len(todo)), strict=True):
            if isinstance(row, Row):
                first = row.first * frame_bytes
                shard.copy(row, old[first : first + row.frames * frame_bytes])
                already_encoded += line.clip is not None
            elif line.clip is None:
                shard.skip(line.id)
            else:
                shard.add(line.clip)
        shard.flush()
    rows = _marked(shard.rows, todo)
    write_lines(path, rows)
    kept = [row for row, line in zip(rows, todo, strict=True) if line.clip is not None]
    failures = tuple(row for row in kept if isinstance(row, Failure))
    seconds = codec.frame_spec.seconds(shard.samples)
    clips = len(kept) - len(failures) - already_encoded
    return ShardResult(already_encoded, clips, seconds, failures, tuple(shard.notes), shard.narrowband)


def write_lines(shard: Path, rows: list[Row | Failure]) -> None:
    """Write the .jsonl of a shard."""
    data = b"".join(json_line(conditions_last(asdict(row))) for row in rows)
    with atomic_output(lines_path(shard), force=True) as file:
        file.write(data + json_line({"end": len(rows), "crc": zlib.crc32(data)}))


def write_index(folder: Path, metadata: dict[str, Any]) -> None:
    """Write the index, then record in store.json that the store is complete."""
    numbers = {kind: {name: number for number, name in enumerate(metadata[LISTS[kind]])} for kind in LISTS}
    count = crc = 0
    frames: list[int] = []
    with atomic_output(folder / "index.bin", force=True) as file:
        for shard in range(len(metadata["shards"])):
            rows = read_rows(lines_path(shard_path(folder, shard)))
            frames.append(sum(row.frames for _, row in rows if isinstance(row, Row)))
            records = np.array(
                [
                    (
                        *(shard, offset, row.first, row.frames, row.samples, row.crc, hash_id(row.id)),
                        *(numbers[kind].get(getattr(row, kind), -1) for kind in LISTS),
                        *(hashed(name) for name in (row.file or row.id, str(Path(row.file or row.id).parent))),
                    )
                    for offset, row in rows
                    if isinstance(row, Row) and not row.removed
                ],
                record_dtype(metadata),
            )
            data = records.tobytes()
            file.write(data)
            count, crc = count + len(records), zlib.crc32(data, crc)
    with atomic_output(folder / STORE, force=True) as file:
        file.write(json.dumps(metadata | {"frames": frames, "index": {"clips": count, "crc": crc}}).encode())
    _remove_temporary(folder)


def _remove_temporary(folder: Path) -> None:
    """Remove clips.jsonl, and the partial files of processes that were killed."""
    for path in (folder / "clips.jsonl", *folder.glob(".codec-*.part")):
        path.unlink(missing_ok=True)


class _ShardWriter:
    """Write the codes of clips to `file` and collect their `rows`; `samples` counts what was encoded.

    Short clips wait until they fill a batch. Long clips are encoded in blocks; with a level they are read twice,
    because their level has to be measured first.
    """

    def __init__(
        self,
        file: BinaryIO,
        model: Codec,
        num_codebooks: int,
        dtype: np.dtype[Any],
        *,
        level: Level | None,
        use_ffmpeg: bool,
    ) -> None:
        self.rows: list[Row | Failure] = []
        self.samples = 0
        self.notes: list[str] = []
        self.narrowband = Narrowband()
        self._file = file
        self._model = model
        self._num_codebooks = num_codebooks
        self._level = level
        self._use_ffmpeg = use_ffmpeg
        self._dtype = dtype
        self._frames = 0
        self._batch: list[tuple[Clip, Block]] = []
        self._batch_samples = model.frame_spec.samples(BATCH_SECONDS[model.device.type])

    def copy(self, row: Row, data: bytes) -> None:
        """Append a clip that was encoded before."""
        self.flush()
        self._file.write(data)
        self.rows.append(replace(row, first=self._frames))
        self._frames += row.frames

    def skip(self, name: str) -> None:
        """Append a clip that was removed from the corpus before it could be encoded."""
        self.flush()
        self.rows.append(Failure(name, "removed from the corpus"))

    def add(self, clip: Clip) -> None:
        """Append a clip to encode; one that cannot be read becomes a Failure."""
        rate = self._model.frame_spec.sample_rate
        notes: list[str] = []
        narrowband = Narrowband()
        limit = self._model.limit if self._level is None else math.inf  # a level scales peaks below full scale
        blocks = _blocks(clip, rate, notes.append, narrowband, use_ffmpeg=self._use_ffmpeg, limit=limit)
        read: list[Block] = []
        try:
            for block in blocks:
                read.append(block)
                if sum(block.shape[1] for block in read) > self._batch_samples:
                    self.flush()
                    if self._level is None:
                        self._stream(clip, chain(read, blocks))
                    else:
                        gain = self._level.gain(chain(read, blocks), rate=rate)
                        again = _blocks(clip, rate, use_ffmpeg=self._use_ffmpeg)
                        self._stream(clip, (gain * block for block in again))
                    self.notes += notes
                    self.narrowband.update(narrowband)
                    return
            audio = np.concatenate(read, axis=1)
            self._model.check_samples(torch.from_numpy(audio))
            if self._level is not None:
                audio *= self._level.gain([audio], rate=rate)
        except (InputNotFound, UnsupportedAudio, UsageError) as error:
            self.flush()
            self.rows.append(Failure(clip.id, str(error)))
            return
        self.notes += notes
        self.narrowband.update(narrowband)
        longest = max(audio.shape[1], *(other.shape[1] for _, other in self._batch), 0)
        if longest * (len(self._batch) + 1) > self._batch_samples:
            self.flush()
        self._batch.append((clip, audio))

    def flush(self) -> None:
        """Encode the batch of waiting clips."""
        if not self._batch:
            return
        lengths = [audio.shape[1] for _, audio in self._batch]
        padded = np.zeros((len(lengths), self._model.channels, max(lengths)), np.float32)
        for row, (_, audio) in zip(padded, self._batch, strict=True):
            row[:, : audio.shape[1]] = audio
        with without_peak_warnings():  # because `notes` have them by name
            encoded = self._model.encode(
                torch.from_numpy(padded).to(self._model.device),
                num_codebooks=self._num_codebooks,
                lengths=torch.tensor(lengths),
            )
        codes, _ = split_scale(encoded)
        for item, length, (clip, _) in zip(codes, lengths, self._batch, strict=True):
            data = self._to_bytes(item[:, : self._model.frame_spec.frames(length)])
            self._file.write(data)
            self._append_row(clip, length, zlib.crc32(data))
        self._batch.clear()

    def _stream(self, clip: Clip, blocks: Iterable[Block]) -> None:
        """Encode a long clip block by block; if it fails, remove what it wrote."""
        start = self._file.tell()
        encoder = StreamEncoder(self._model, num_codebooks=self._num_codebooks, compiled=False)
        crc = 0
        try:
            mono = (block.repeat(self._model.channels, axis=0)[None] for block in blocks)
            for encoded in chain(map(encoder.push, mono), (encoder.flush() for _ in "1")):
                data = self._to_bytes(split_scale(encoded)[0][0])
                self._file.write(data)
                crc = zlib.crc32(data, crc)
        except CodecError:
            self._file.seek(start)
            self._file.truncate()
            raise
        self._append_row(clip, encoder.time, crc)

    def _to_bytes(self, codes: Tensor) -> bytes:
        return codes.T.cpu().numpy().astype(self._dtype).tobytes()  # [frames, codebooks]

    def _append_row(self, clip: Clip, samples: int, crc: int) -> None:
        frames = self._model.frame_spec.frames(samples)
        fields = {name: getattr(clip, name) for name in ("id", *TEXT_FIELDS)}
        checksum = clip.checksum()
        self.rows.append(Row(first=self._frames, frames=frames, samples=samples, crc=crc, checksum=checksum, **fields))
        self._frames += frames
        self.samples += samples


def _blocks(
    clip: Clip,
    rate: int,
    note: Note | None = None,
    narrowband: Narrowband | None = None,
    *,
    use_ffmpeg: bool = False,
    limit: float = math.inf,
) -> Iterator[Block]:
    """The audio of a clip at `rate` Hz in blocks [1, time], channels mixed down.

    `note` is called at the end for a recording that is silence, that cancels, or that has samples beyond `limit`;
    `narrowband` counts the recording.
    """
    with ExitStack() as files:
        opened = partial(clip.open, use_ffmpeg=use_ffmpeg)
        reader = files.enter_context(opened())
        if narrowband is not None:
            narrowband.add(reader.label, reader.rate, rate)
        resampler = Resampler(reader.rate, rate, 1, label=reader.label)
        blocks = _native_blocks(clip, reader)
        mixdown = Mixdown(reader.channels)
        if reader.channels > 1:  # the mixdown depends on all blocks
            first: list[Block] = []
            for block in blocks:
                mixdown.push(block)
                if len(first) < KEPT_BLOCKS:
                    first.append(block)
            again = _native_blocks(clip, files.enter_context(opened()))
            blocks = chain(first, islice(again, len(first), None))
            mixdown.say(reader.label, note)
        peak = 0.0
        for block in blocks:
            mono = mixdown.mix(block)
            peak = max(peak, float(np.abs(mono).max(initial=0)))
            yield resampler.push(mono)
        yield resampler.flush()
        if note is None:
            return
        if not peak:
            note(f"{reader.label} is silence")
        for line in peak_notes(reader.label, peak, limit):
            note(line)


def _native_blocks(clip: Clip, reader: AudioReader) -> Iterator[Block]:
    """The audio of a clip at its file's own rate in blocks [channels, time]."""
    most = max(1, round(BLOCK_SECONDS * reader.rate / reader.channels))
    if clip.seconds is None and not clip.start:
        yield from reader.blocks(most)  # to the end of the file, whatever length its header claims
        return
    first = round(clip.start * reader.rate)
    end = reader.length()
    last = end if clip.seconds is None else first + round(clip.seconds * reader.rate)
    if last - end <= LENGTH_TOLERANCE * reader.rate:
        last = min(last, end)
    if last <= first:
        raise UnsupportedAudio(f"{reader.label} ends before {clip.start:g} s, the start of the clip: remove the clip")
    for start in range(first, last, most):
        yield reader.part(start, min(most, last - start))
