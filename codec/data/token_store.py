"""Token stores: a corpus as codes on disk, bound to the codec that made them, read without decoding any audio.

    store.json           what made it: the model's hash and frames, codebooks, the level of the recordings if they were
                         brought to one, digests of the corpus and of its files' sizes, all labels and speakers; and,
                         once the store is whole, the size of the index
    index.bin            one record per clip (RECORD): where its codes are, how long it is, its label and speaker
    shard-00000.codes    integers [frames, codebooks], little endian, clip after clip
    shard-00000.jsonl    a line per clip with all that is known of it, or with the error where it could not be read;
                         then a line that ends the shard and has the checksum of those before it
    clips.jsonl          while the store is being made: the corpus, for the processes that work on it

A shard's codes get their name before its lines do, so lines mean a whole shard. It is made of the clips that lie
between two places of clips.jsonl, and making it twice makes it once.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import chain, islice, repeat
from operator import index
from pathlib import Path
from time import perf_counter
from typing import Any, BinaryIO, NamedTuple, SupportsIndex, TypeAlias, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec import pretrained
from codec.checkpoint import CodecCard
from codec.compression import BLOCK_SECONDS, cached_model
from codec.data.clips import SLACK, TEXTS, Clip, clips
from codec.errors import (
    BadIndex,
    CodecError,
    ConfigError,
    DamagedFile,
    InputNotFound,
    StorageError,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from codec.frames import FrameSpec
from codec.io.audio import AudioReader, Block, Resampler, open_reader
from codec.io.level import LevelMeter, check_level, gain_to
from codec.io.storage import atomic_output, locked_folder
from codec.models.base import Codec
from codec.parallel import Engine, each
from codec.streams import StreamEncoder

FORMAT = 1
SHARDS = 256  # a corpus is cut into so many, as long as they last
SHARD_SECONDS = (60.0, 3600.0)  # between these two
BYTES_PER_SECOND = 32_000  # guessed of clips whose length the corpus does not tell: 16 bits at 16 kHz
BATCH_SECONDS = {"cpu": 8.0, "cuda": 480.0}  # of audio, padding included: shorter clips are encoded side by side
OPEN_SHARDS = 256  # mapped at a time
RECORD = np.dtype(
    [
        ("shard", "<u4"),
        ("line", "<u8"),  # bytes into the shard's lines
        ("first", "<u8"),  # frame in the shard
        ("frames", "<u8"),
        ("samples", "<u8"),  # at the model's rate
        ("crc", "<u4"),  # of the clip's codes
        ("id", "<u8"),  # hash
        ("split", "<i4"),  # numbers in the store's lists, -1 for none
        ("speaker", "<i4"),
        ("label", "<i4"),
    ]
)
LISTS = {"split": "splits", "speaker": "speakers", "label": "labels"}
DTYPES = ("uint16", "uint32")
FACTS: dict[str, type] = {  # of store.json
    **dict.fromkeys(("model", "weights_hash", "dtype", "corpus"), str),
    **dict.fromkeys(("shards", *LISTS.values()), list),
    "frame_spec": dict,
    "num_codebooks": int,
}
Progress: TypeAlias = Callable[[int, int], None]
"""Called after each shard with the number of shards finished, and that of all."""


@dataclass(frozen=True)
class Row:
    """A clip of a store: `frames` from frame `first` of its shard on, `samples` at the model's rate; its file had
    `size` bytes."""

    id: str
    first: int
    frames: int
    samples: int
    crc: int
    set: str = ""
    split: str | None = None
    speaker: str | None = None
    label: str | None = None
    transcript: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Failure:
    """A clip, or a whole shard, that could not be made."""

    id: str
    error: str


class Tokens(NamedTuple):
    """Codes [codebooks, frames] of a clip from its frame `start` on, and what is known of the clip."""

    codes: Tensor
    row: Row
    start: int = 0


class Crops(NamedTuple):
    """Codes [count, codebooks, frames], and the number of each one's clip and its first frame there [count]."""

    codes: Tensor
    clips: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class StoreReport:
    """What `tokenize` did. `seconds` of audio were encoded, `clips` of them; `there` were encoded before."""

    clips: int
    seconds: float
    there: int
    shards: int
    failures: tuple[Failure, ...]
    elapsed: float

    @property
    def speed(self) -> float:
        """Seconds of audio per second of work."""
        return self.seconds / self.elapsed


# Making one


class _Span(NamedTuple):
    """A shard's clips: `clips` lines from byte `offset` of clips.jsonl on."""

    shard: int
    offset: int
    clips: int


class _Made(NamedTuple):
    """A shard: its clips of before, those encoded now, their seconds, and its failures."""

    there: int
    clips: int
    seconds: float
    failures: tuple[Failure, ...]


def tokenize(
    source: str | Path,
    target: str | Path,
    *,
    model: str | Path = pretrained.DEFAULT,
    num_codebooks: int | None = None,
    level_db: float | None = None,
    force: bool = False,
    device: str = "cpu",
    jobs: int = 1,
    engine: Engine = "local",
    progress: Progress | None = None,
) -> StoreReport:
    """Make the folder `target` a store of the codes of every clip of `source`, as `corpus.clips` finds them.

    Channels are averaged. With `level_db`, from -60 to 0, every clip is scaled before it is encoded, so that the RMS of
    its loud part (`codec.io.level`) is that many dBFS. What is there is kept: shards that are whole, and in those with
    failures the clips that did not fail. `force` begins anew. A clip that cannot be read does not stop the others; it
    is told in the report and in the lines of its shard. `jobs` and `engine` as in `workers.each`.

    Raises:
        InputNotFound, ConfigError: as `corpus.clips`; two clips have the same id; another is at work in `target`.
        UnknownModel, UsageError: no such model, not so many codebooks, or a level out of range.
        WeightsMismatch: `target` was made by other weights.
        StorageError: `target` has other codebooks or another level, is of another corpus (a file that was encoded has
            another size now) or no store, or cannot be written.
        DamagedFile: its store.json is not what was written.
    """
    began = perf_counter()
    folder = Path(target)
    card = pretrained.describe(model).as_codec()
    num_codebooks = _check_codebooks(card, num_codebooks)
    level_db = check_level(level_db)
    with _prepared(folder):
        with atomic_output(folder / "clips.jsonl", force=True) as file:
            told, count, seconds = _list_clips(Path(source), file)
            facts = _describe(card, num_codebooks, level_db) | told
            if force:
                _empty(folder)
            cuts = _cuts_before(folder, facts, count, file)  # raises before anything is written
        spans = _spans(folder, cuts, seconds)
        facts["shards"] = [span.clips for span in spans]
        made: list[_Made] = []
        failures: dict[int, tuple[Failure, ...]] = {}
        if _is_whole(folder, facts, spans):  # and stays so
            made = [_Made(span.clips, 0, 0.0, ()) for span in spans]
            _clear(folder)
            if progress is not None:
                progress(len(spans), len(spans))
        else:
            with atomic_output(folder / "store.json", force=True) as file:
                file.write(json.dumps(facts).encode())
            lost = False
            work = partial(_make_shard, folder, model, card.weights_hash, num_codebooks, level_db, device)
            for span, result in each(work, spans, jobs=jobs, engine=engine, gpu=device == "cuda"):
                if isinstance(result, CodecError):
                    lost = True
                    result = _Made(0, 0, 0.0, (Failure(_shard(folder, span.shard).name, str(result)),))
                made.append(result)
                failures[span.shard] = result.failures
                if progress is not None:
                    progress(len(made), len(spans))
            if not lost:
                _finish(folder, facts)
    return StoreReport(
        clips=sum(shard.clips for shard in made),
        seconds=sum(shard.seconds for shard in made),
        there=sum(shard.there for shard in made),
        shards=len(spans),
        failures=tuple(failure for _, some in sorted(failures.items()) for failure in some),
        elapsed=perf_counter() - began,
    )


def _check_codebooks(card: CodecCard, num_codebooks: int | None) -> int:
    most = card.frame_spec.num_codebooks
    num_codebooks = most if num_codebooks is None else num_codebooks
    if not 1 <= num_codebooks <= most:
        raise UsageError(f"{card.name} has 1 to {most} codebooks, not {num_codebooks}")
    return num_codebooks


@contextmanager
def _prepared(folder: Path) -> Iterator[None]:
    """A folder that nobody else writes to: a new one, that goes again if the block raises, an empty one, or a store."""
    work = ExitStack()
    try:
        new = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        is_store = (folder / "store.json").is_file()
        if not is_store and any(path.name != "clips.jsonl" for path in _visible(folder)):
            raise StorageError(f"{folder} holds other files than a token store: name a new folder")
        work.enter_context(locked_folder(folder, "codec tokenize"))
    except OSError as error:
        raise StorageError(
            f"{folder} cannot be written ({error.strerror}): check the permissions or write elsewhere"
        ) from error
    try:
        with work:
            yield
    except BaseException:
        for path in new:
            with suppress(OSError):  # another process has written there
                path.rmdir()
        raise


def _empty(folder: Path) -> None:
    for path in (*folder.glob("shard-*.*"), folder / "index.bin", folder / "store.json"):  # which makes it a store
        path.unlink(missing_ok=True)


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _list_clips(source: Path, file: BinaryIO) -> tuple[dict[str, Any], int, float]:
    """Write clips.jsonl; what store.json says of the corpus, how many clips it has and about how many seconds."""
    digest, sizes = hashlib.sha256(), hashlib.sha256()
    names: dict[str, set[str]] = {field: set() for field in LISTS}
    seen: set[int] = set()  # hashes, as there may be millions
    total = 0.0
    for clip in clips(source):
        if (key := _hash(clip.id)) in seen:
            raise ConfigError(f"{source} has two clips {clip.id}: take one out, or give each its own path or start")
        seen.add(key)
        size = clip.size()
        row = asdict(clip)
        file.write(_line(row | {"path": str(clip.path.absolute()), "size": size}))
        del row["path"]  # a corpus may move
        digest.update(_line(row))
        sizes.update(f"{size} ".encode())  # apart, as files that failed may change
        total += _cost(clip, size)
        for field, known in names.items():
            if (name := getattr(clip, field)) is not None:
                known.add(name)
    lists = {LISTS[field]: sorted(known) for field, known in names.items()}
    return {"corpus": digest.hexdigest(), "sizes": sizes.hexdigest(), **lists}, len(seen), total


def _cost(clip: Clip, size: int | None) -> float:
    """About how many seconds a clip lasts."""
    return (size or 0) / BYTES_PER_SECOND if clip.seconds is None else clip.seconds


def _spans(folder: Path, cuts: list[int] | None, seconds: float) -> list[_Span]:
    """The shards of clips.jsonl: as they were cut before, for files may have changed, or anew by their lengths."""
    most = min(max(seconds / SHARDS, SHARD_SECONDS[0]), SHARD_SECONDS[1])
    spans: list[_Span] = []
    offset = count = position = 0
    total = 0.0
    with (folder / "clips.jsonl").open("rb") as file:
        for line in file:
            if count and (count == cuts[len(spans)] if cuts else total >= most):
                spans.append(_Span(len(spans), offset, count))
                offset, count, total = position, 0, 0.0
            total += 0.0 if cuts else _cost(*_clip(line))
            position += len(line)
            count += 1
    return [*spans, _Span(len(spans), offset, count)]


def _describe(card: CodecCard, num_codebooks: int, level_db: float | None) -> dict[str, Any]:
    facts = {
        "format": FORMAT,
        "model": card.name,
        "weights_hash": card.weights_hash,
        "family": card.family,
        "frame_spec": asdict(card.frame_spec),
        "num_codebooks": num_codebooks,
        "dtype": DTYPES[card.frame_spec.codebook_size > 1 << 16],
    }
    return facts if level_db is None else facts | {"level_db": level_db}  # stores without one stay as they were


def _cuts_before(folder: Path, facts: dict[str, Any], count: int, listed: BinaryIO) -> list[int] | None:
    """How many clips each shard of the store that is there has; None where there is none.

    Raises WeightsMismatch or StorageError where it is not the one that `facts` and the `count` clips `listed` tell.
    """
    if not (folder / "store.json").is_file():
        return None
    there = _read_facts(folder)
    way = "name another folder, or pass --force to make it anew"
    if there["weights_hash"] != facts["weights_hash"]:
        raise WeightsMismatch(
            f"{folder} was made by {there['model']} (weights {there['weights_hash'][:12]}), "
            f"not by {facts['model']} (weights {facts['weights_hash'][:12]}): {way}"
        )
    if there["num_codebooks"] != facts["num_codebooks"]:
        raise StorageError(f"{folder} holds {there['num_codebooks']} codebooks, not {facts['num_codebooks']}: {way}")
    if there.get("level_db") != facts.get("level_db"):
        before, now = (_level_of(some) for some in (there, facts))
        raise StorageError(f"{folder} has recordings {before}, not {now}: {way}")
    if there["corpus"] != facts["corpus"]:
        raise StorageError(f"{folder} is of another corpus, or this one has changed since: {way}")
    cuts: list[int] = there["shards"]
    if not all(isinstance(cut, int) and cut > 0 for cut in cuts) or sum(cuts) != count:
        raise _no_facts(folder, "shards are not those of its clips")
    if there.get("sizes") != facts["sizes"] and (changed := _changed(folder, cuts, listed)):
        raise StorageError(f"{folder} was made of another {changed}, or it has changed since: {way}")
    return cuts


def _level_of(facts: dict[str, Any]) -> str:
    level = facts.get("level_db")
    return "at their own levels" if level is None else f"at {level} dBFS"


def _changed(folder: Path, cuts: list[int], listed: BinaryIO) -> Path | None:
    """A file that was encoded when it had another size."""
    listed.seek(0)
    for shard, count in enumerate(cuts):
        rows: list[tuple[int, Row | Failure]] = []
        lines = list(islice(listed, count))
        with suppress(DamagedFile):  # it is not made yet
            rows = _read_lines(_lines(_shard(folder, shard)))
        for line, (_, row) in zip(lines, rows, strict=False):
            clip, size = _clip(line)
            if isinstance(row, Row) and row.size not in (None, size):
                return clip.path
    return None


def _make_shard(
    folder: Path,
    model: str | Path,
    weights_hash: str,
    num_codebooks: int,
    level_db: float | None,
    device: str,
    span: _Span,
) -> _Made:
    """Make one shard, or what is missing of it."""
    path = _shard(folder, span.shard)
    dtype = np.dtype(_read_facts(folder)["dtype"]).newbyteorder("<")
    todo = _clips_of(folder, span)
    before = _rows_before(path, [clip.id for clip, _ in todo], num_codebooks * dtype.itemsize)
    if before and not any(isinstance(row, Failure) for row in before):
        return _Made(span.clips, 0, 0.0, ())
    codec = cached_model(model, device)
    if codec.weights_hash != weights_hash:
        raise WeightsMismatch(f"{model} has changed since this was begun: begin anew with --force")
    old = path.read_bytes() if before else b""
    with atomic_output(path, force=True) as file:
        shard = _ShardWriter(file, codec, num_codebooks, dtype, level_db=level_db)
        for (clip, _), row in zip(todo, before or repeat(None, len(todo)), strict=True):
            if isinstance(row, Row):
                first = row.first * num_codebooks * dtype.itemsize
                shard.keep(row, old[first : first + row.frames * num_codebooks * dtype.itemsize])
            else:
                shard.add(clip)
        shard.flush()
    rows = (
        replace(row, size=size) if isinstance(row, Row) else row
        for row, (_, size) in zip(shard.rows, todo, strict=True)
    )
    with atomic_output(_lines(path), force=True) as file:
        data = b"".join(_line(asdict(row)) for row in rows)
        file.write(data + _line({"end": len(shard.rows), "crc": zlib.crc32(data)}))
    failures = tuple(row for row in shard.rows if isinstance(row, Failure))
    there = sum(isinstance(row, Row) for row in before or [])
    seconds = codec.frame_spec.seconds(shard.samples)
    return _Made(there, len(shard.rows) - len(failures) - there, seconds, failures)


def _clips_of(folder: Path, span: _Span) -> list[tuple[Clip, int | None]]:
    """The clips of a shard, and the sizes of their files."""
    with (folder / "clips.jsonl").open("rb") as file:
        file.seek(span.offset)
        return [_clip(next(file)) for _ in range(span.clips)]


def _is_whole(folder: Path, facts: dict[str, Any], spans: list[_Span]) -> bool:
    """Whether the store is finished as `facts` have it, without a failure, and every shard is there."""
    if not (folder / "store.json").is_file():
        return False
    there = _read_facts(folder)
    index = there.pop("index", None)
    if there != facts:
        return False
    try:
        _read_index(folder / "index.bin", clips=sum(span.clips for span in spans), crc=index["crc"])
    except (DamagedFile, TypeError, KeyError):
        return False
    frame_bytes = facts["num_codebooks"] * np.dtype(facts["dtype"]).itemsize
    return all(
        _rows_before(_shard(folder, span.shard), [clip.id for clip, _ in _clips_of(folder, span)], frame_bytes)
        for span in spans
    )


def _rows_before(path: Path, names: list[str], frame_bytes: int) -> list[Row | Failure] | None:
    """The rows of a shard that is whole; None for one that is not."""
    try:
        rows = [row for _, row in _read_lines(_lines(path))]
        size = path.stat().st_size
    except (CodecError, OSError):
        return None
    frames = sum(row.frames for row in rows if isinstance(row, Row))
    return rows if [row.id for row in rows] == names and size == frames * frame_bytes else None


def _finish(folder: Path, facts: dict[str, Any]) -> None:
    """Write the index, then say in store.json that all is there."""
    numbers = {field: {name: number for number, name in enumerate(facts[LISTS[field]])} for field in LISTS}
    count = crc = 0
    with atomic_output(folder / "index.bin", force=True) as file:
        for shard in range(len(facts["shards"])):
            records = np.array(
                [
                    (
                        *(shard, offset, row.first, row.frames, row.samples, row.crc, _hash(row.id)),
                        *(numbers[field].get(getattr(row, field), -1) for field in LISTS),
                    )
                    for offset, row in _read_lines(_lines(_shard(folder, shard)))
                    if isinstance(row, Row)
                ],
                RECORD,
            )
            data = records.tobytes()
            file.write(data)
            count, crc = count + len(records), zlib.crc32(data, crc)
    with atomic_output(folder / "store.json", force=True) as file:
        file.write(json.dumps(facts | {"index": {"clips": count, "crc": crc}}).encode())
    _clear(folder)


def _clear(folder: Path) -> None:
    """Take away what only the making needed, parts of processes that were killed among it."""
    for left in (folder / "clips.jsonl", *folder.glob(".codec-*.part")):
        left.unlink(missing_ok=True)


class _ShardWriter:
    """A shard being written: codes go to `file`, `rows` say where; `samples` counts what was encoded.

    Short clips wait for others, to be encoded side by side; long ones pass through in blocks, twice where their level
    has to be measured first.
    """

    def __init__(
        self, file: BinaryIO, model: Codec, num_codebooks: int, dtype: np.dtype[Any], *, level_db: float | None
    ) -> None:
        self.rows: list[Row | Failure] = []
        self.samples = 0
        self._file = file
        self._model = model
        self._codebooks = num_codebooks
        self._level_db = level_db
        self._dtype = dtype
        self._frames = 0
        self._batch: list[tuple[Clip, Block]] = []
        self._most = model.frame_spec.samples(BATCH_SECONDS[model.device.type])

    def keep(self, row: Row, data: bytes) -> None:
        """A clip that was encoded before."""
        self.flush()
        self._file.write(data)
        self.rows.append(replace(row, first=self._frames))
        self._frames += row.frames

    def add(self, clip: Clip) -> None:
        """A clip to encode, or to tell as failed."""
        rate = self._model.frame_spec.sample_rate
        blocks = _blocks(clip, rate)
        held: list[Block] = []
        try:
            for block in blocks:
                held.append(block)
                if sum(block.shape[1] for block in held) > self._most:
                    self.flush()
                    if self._level_db is None:
                        self._stream(clip, chain(held, blocks))
                    else:
                        gain = _gain_of(chain(held, blocks), self._level_db, rate)
                        self._stream(clip, (gain * block for block in _blocks(clip, rate)))
                    return
            audio = np.concatenate(held, axis=1)
            self._model.check_samples(torch.from_numpy(audio))
            if self._level_db is not None:
                audio *= gain_to(audio, self._level_db, rate=rate)
        except (InputNotFound, UnsupportedAudio, UsageError) as error:
            self.flush()
            self.rows.append(Failure(clip.id, str(error)))
            return
        longest = max(audio.shape[1], *(other.shape[1] for _, other in self._batch), 0)
        if longest * (len(self._batch) + 1) > self._most:
            self.flush()
        self._batch.append((clip, audio))

    def flush(self) -> None:
        """Encode the clips that wait."""
        if not self._batch:
            return
        lengths = [audio.shape[1] for _, audio in self._batch]
        padded = np.zeros((len(lengths), 1, max(lengths)), np.float32)
        for row, (_, audio) in zip(padded, self._batch, strict=True):
            row[:, : audio.shape[1]] = audio
        codes = self._model.encode(
            torch.from_numpy(padded).to(self._model.device),
            num_codebooks=self._codebooks,
            lengths=torch.tensor(lengths),
        )
        for item, length, (clip, _) in zip(codes, lengths, self._batch, strict=True):
            data = self._bytes(item[:, : self._model.frame_spec.frames(length)])
            self._file.write(data)
            self._told(clip, length, zlib.crc32(data))
        self._batch.clear()

    def _stream(self, clip: Clip, blocks: Iterable[Block]) -> None:
        begin = self._file.tell()
        encoder = StreamEncoder(self._model, num_codebooks=self._codebooks)
        crc = 0
        try:
            for codes in chain((encoder.push(block[None]) for block in blocks), (encoder.flush() for _ in "1")):
                data = self._bytes(codes[0])
                self._file.write(data)
                crc = zlib.crc32(data, crc)
        except CodecError:
            self._file.seek(begin)
            self._file.truncate()
            raise
        self._told(clip, encoder.time, crc)

    def _bytes(self, codes: Tensor) -> bytes:
        return codes.T.cpu().numpy().astype(self._dtype).tobytes()  # [frames, codebooks]

    def _told(self, clip: Clip, samples: int, crc: int) -> None:
        frames = self._model.frame_spec.frames(samples)
        known = {name: getattr(clip, name) for name in ("id", *TEXTS)}
        self.rows.append(Row(first=self._frames, frames=frames, samples=samples, crc=crc, **known))
        self._frames += frames
        self.samples += samples


def clip_gain(clip: Clip, level_db: float | None, *, rate: int) -> np.float32:
    """The gain with which `tokenize` encodes a clip at `rate` Hz; 1 where no level is asked for."""
    return np.float32(1) if level_db is None else _gain_of(_blocks(clip, rate), level_db, rate)


def _gain_of(blocks: Iterable[Block], level_db: float, rate: int) -> np.float32:
    meter = LevelMeter(rate)
    for block in blocks:
        meter.push(block)
    return meter.gain(level_db)


def _blocks(clip: Clip, rate: int) -> Iterator[Block]:
    """The audio of a clip at `rate` Hz in blocks [1, time], channels averaged."""
    with open_reader(clip.path) as reader:
        resampler = Resampler(reader.rate, rate, 1)
        for block in _raw(clip, reader):
            yield resampler.push(block.mean(axis=0, keepdims=True))
        yield resampler.flush()


def _raw(clip: Clip, reader: AudioReader) -> Iterator[Block]:
    most = max(1, round(BLOCK_SECONDS * reader.rate / reader.channels))
    if clip.seconds is None and not clip.start:
        yield from reader.blocks(most)  # as far as it goes, whatever its header says
        return
    first = round(clip.start * reader.rate)
    end = reader.time or 0
    last = end if clip.seconds is None else first + round(clip.seconds * reader.rate)
    if last - end <= SLACK * reader.rate:
        last = min(last, end)
    if last <= first:
        raise UnsupportedAudio(f"{reader.label} has nothing from {clip.start:g} s on: take the clip out")
    for begin in range(first, last, most):
        yield reader.part(begin, min(most, last - begin))


# Files of a store


def _shard(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.codes"


def _lines(shard: Path) -> Path:
    return shard.with_suffix(".jsonl")


def _line(row: dict[str, Any]) -> bytes:
    said = {key: value for key, value in row.items() if value is not None}
    # Names of files need not be UTF-8: Python has surrogates in their place, which json.loads lets pass too.
    return json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"


def _clip(line: bytes) -> tuple[Clip, int | None]:
    """A clip of clips.jsonl, and the size of its file."""
    row = json.loads(line)
    size = row.pop("size", None)
    return Clip(**row | {"path": Path(row["path"])}), size


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        newer = facts["format"] > FORMAT
        wrong = [key for key, kind in FACTS.items() if not isinstance(facts.get(key), kind)]
    except OSError as error:
        raise InputNotFound(f"{folder} is no token store: make one with `codec tokenize`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_facts(folder, "it is not what was written") from error
    if newer:
        raise UsageError(f"{folder} has format {facts['format']}, this codec reads up to {FORMAT}: upgrade codec")
    if wrong or facts["dtype"] not in DTYPES:
        raise _no_facts(folder, f"{[*wrong, 'dtype'][0]} is missing or not what was written")
    if not isinstance(facts.get("level_db"), float | None):
        raise _no_facts(folder, "level_db is not what was written")
    return facts


def _no_facts(folder: Path, what: str) -> DamagedFile:
    return DamagedFile(
        str(folder / "store.json"), offset=0, reason=f"{what}; `codec tokenize` with --force makes the store anew"
    )


def _read_lines(path: Path) -> list[tuple[int, Row | Failure]]:
    """The lines of a shard, each with its place in bytes."""
    rows: list[tuple[int, Row | Failure]] = []
    offset = 0
    try:
        *lines, end = path.read_bytes().splitlines(keepends=True)
        for line in lines:
            row = json.loads(line)
            rows.append((offset, Failure(**row) if "error" in row else Row(**row)))
            offset += len(line)
        whole = json.loads(end) == {"end": len(lines), "crc": zlib.crc32(b"".join(lines))}
    except FileNotFoundError as error:
        raise _damaged(path, 0, "it is missing") from error
    except (ValueError, TypeError) as error:
        raise _damaged(path, offset, "it is not what was written") from error
    if not whole:
        raise _damaged(path, offset, "its checksum is another")
    return rows


def _damaged(path: Path, offset: int, what: str) -> DamagedFile:
    return DamagedFile(
        str(path), offset=offset, reason=f"{what}; `codec tokenize` makes a shard anew whose files are deleted"
    )


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


# Reading one


class TokenStore:
    """A token store as a sequence of clips; codes are mapped into memory, never read as a whole.

        store = TokenStore("tokens", model)
        audio = model.decode(store[0].codes[None], length=store[0].row.samples)
        last, first_two = store[-1], store[0:2]  # clips count as in any sequence; a slice is a list
        batch = store.crops(16, 250, np.random.default_rng(step)).codes  # [16, codebooks, 250]

    `index` has one record per clip (RECORD); its numbers of splits, speakers and labels count in the lists of those
    names, -1 where a clip has none. `num_codebooks` is how many are stored, `model_name` the name of the model that made them,
    `level_db` the level in dBFS that the recordings were brought to, None if they were not.

    Raises InputNotFound: no store there. UsageError: it is not finished. DamagedFile; WeightsMismatch as `check`.
    """

    def __init__(self, path: str | Path, model: Codec | None = None) -> None:
        self.path = Path(path)
        facts = _read_facts(self.path)
        if "index" not in facts:
            raise UsageError(f"{self.path} is not finished: give the command that began it again, and it goes on")
        self.num_codebooks: int = facts["num_codebooks"]
        self.level_db: float | None = facts.get("level_db")
        self.weights_hash: str = facts["weights_hash"]
        self.splits: tuple[str, ...] = tuple(facts["splits"])
        self.speakers: tuple[str, ...] = tuple(facts["speakers"])
        self.labels: tuple[str, ...] = tuple(facts["labels"])
        if not all(isinstance(name, str) for name in (*self.splits, *self.speakers, *self.labels)):
            raise _no_facts(self.path, "splits, speakers or labels are no names")
        self.model_name = facts["model"]
        self._dtype = np.dtype(facts["dtype"]).newbyteorder("<")
        try:
            self.frame_spec = FrameSpec(**facts["frame_spec"])
            size = {key: int(facts["index"][key]) for key in ("clips", "crc")}
        except (TypeError, KeyError, ValueError, ConfigError) as error:
            raise _no_facts(self.path, "frame_spec or index is not what was written") from error
        self.index = _read_index(self.path / "index.bin", **size)
        self._mapped = lru_cache(OPEN_SHARDS)(self._map)
        self._ends = lru_cache(4)(self._count_crops)
        if model is not None:
            self.check(model)

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path,)  # processes map the files by themselves

    def check(self, model: Codec) -> None:
        """WeightsMismatch unless `model` is the one whose codes these are."""
        if model.weights_hash != self.weights_hash:
            raise WeightsMismatch(
                f"{self.path} was made by {self.model_name} (weights {self.weights_hash[:12]}), not by "
                f"{model.name or 'a model without a name'} (weights {(model.weights_hash or 'unknown')[:12]}): "
                "load the model that made it, or make it anew with `codec tokenize`"
            )
        if model.frame_spec != self.frame_spec:
            raise _no_facts(self.path, "its frame_spec is not that of the model that made it")

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[clip] for clip in range(len(self)))

    @overload
    def __getitem__(self, clip: SupportsIndex) -> Tokens: ...

    @overload
    def __getitem__(self, clip: slice) -> list[Tokens]: ...

    def __getitem__(self, clip: SupportsIndex | slice) -> Tokens | list[Tokens]:
        """All of a clip, by its number (from the end where negative), or of several by a slice, which are read at once.

        Raises BadIndex, an IndexError, where there is no such clip; DamagedFile naming the shard.
        """
        if isinstance(clip, slice):
            try:
                return [self[number] for number in range(len(self))[clip]]
            except TypeError as error:
                raise BadIndex(f"{clip} does not cut a store: its ends are whole numbers, as store[0:2]") from error
        clip = self._number(clip)
        row = self.row(clip)
        codes = self._codes(clip, 0, row.frames)
        if zlib.crc32(codes.tobytes()) != row.crc:
            frame_bytes = self.num_codebooks * self._dtype.itemsize
            raise _damaged(self._shard(clip), row.first * frame_bytes, f"the checksum of {row.id} is another")
        return Tokens(_tensor(codes), row)

    def part(self, clip: SupportsIndex, start: int, frames: int) -> Tensor:
        """Codes [codebooks, frames] of a clip from its frame `start` on, as they lie there, without their checksum.

        Raises BadIndex where the clip has no such frames; DamagedFile naming the shard.
        """
        clip = self._number(clip)
        has = int(self.index[clip]["frames"])
        if not 0 <= start <= start + frames <= has:
            raise BadIndex(f"clip {clip} of {self.path} has frames 0 to {has}, not {start} to {start + frames}")
        return _tensor(self._codes(clip, start, frames))

    def row(self, clip: SupportsIndex) -> Row:
        """What is known of a clip. Raises BadIndex where there is none; DamagedFile naming the shard."""
        clip = self._number(clip)
        record = self.index[clip]
        path = _lines(self._shard(clip))
        try:
            with path.open("rb") as file:
                file.seek(int(record["line"]))
                row = Row(**json.loads(file.readline()))
        except (OSError, ValueError, TypeError) as error:
            raise _damaged(path, int(record["line"]), "there is no clip at that place") from error
        same = ((name, getattr(row, name)) for name in ("first", "frames", "samples", "crc"))
        if _hash(row.id) != record["id"] or any(record[name] != value for name, value in same):
            raise _damaged(path, int(record["line"]), "the index knows another clip at that place")
        return row

    def find(self, name: str) -> int:
        """The number of the clip whose id is `name`; looks through the index. Raises InputNotFound."""
        for clip in np.flatnonzero(self.index["id"] == _hash(name)):
            if self.row(int(clip)).id == name:
                return int(clip)
        raise InputNotFound(f"{self.path} has no clip {name}")

    def crop(self, frames: int, rng: np.random.Generator, *, split: str | None = None) -> Tokens:
        """One crop, as `crops`."""
        crops = self.crops(1, frames, rng, split=split)
        return Tokens(crops.codes[0], self.row(int(crops.clips[0])), int(crops.starts[0]))

    def crops(self, count: int, frames: int, rng: np.random.Generator, *, split: str | None = None) -> Crops:
        """Pieces of `frames` frames of clips (of `split`) that have so many; each place in them is equally likely.

        Raises UsageError where no clip is as long, or there is no such split; DamagedFile naming the shard.
        """
        ends = self._ends(frames, split)
        if not len(ends):
            raise UsageError(f"{self.path} holds no clips: tokenize a corpus whose audio can be read")
        if not ends[-1]:
            raise UsageError(
                f"no clip of {self.path} has {frames} frames, the longest has {self.index['frames'].max()}: "
                "ask for fewer, or for another split"
            )
        picks = rng.integers(ends[-1], size=count)
        numbers = np.searchsorted(ends, picks, side="right")
        starts = picks - np.where(numbers, ends[numbers - 1], 0)
        pieces = [self._codes(int(clip), int(start), frames) for clip, start in zip(numbers, starts, strict=True)]
        return Crops(torch.stack([_tensor(piece) for piece in pieces]), numbers, starts)

    def _number(self, clip: SupportsIndex) -> int:
        """The number of a clip, counted from the beginning."""
        try:
            number = index(clip)
        except TypeError as error:
            raise BadIndex(
                f"{clip!r} is no clip's number: use an int or a slice, or store.find(name) for the number of a name"
            ) from error
        if not -len(self) <= number < len(self):
            raise BadIndex(f"{self.path} has {len(self)} clips, counted from 0: there is no clip {number}")
        return number % len(self)

    def _count_crops(self, frames: int, split: str | None) -> NDArray[np.int64]:
        """How many crops the clips up to each one have, it included: eight bytes a clip."""
        if frames < 1:
            raise UsageError(f"crops of {frames} frames: ask for 1 or more")
        places = np.maximum(self.index["frames"].astype(np.int64) - frames + 1, 0)
        if split is not None:
            if split not in self.splits:
                raise UsageError(f"{self.path} has no split {split}: it has {', '.join(self.splits) or 'none'}")
            places[self.index["split"] != self.splits.index(split)] = 0
        return np.cumsum(places)

    def _codes(self, clip: int, start: int, frames: int) -> NDArray[Any]:
        """Codes [frames, codebooks] as they are stored."""
        record = self.index[clip]
        first = int(record["first"]) + start
        return self._mapped(int(record["shard"]))[first : first + frames]

    def _map(self, shard: int) -> NDArray[Any]:
        path = _shard(self.path, shard)
        last = self.index[np.searchsorted(self.index["shard"], shard, side="right") - 1]
        frames = int(last["first"] + last["frames"])
        size = path.stat().st_size if path.exists() else 0
        if size != frames * self.num_codebooks * self._dtype.itemsize:
            raise _damaged(path, size, f"it should have {frames * self.num_codebooks * self._dtype.itemsize} bytes")
        return np.memmap(path, self._dtype, "r", shape=(frames, self.num_codebooks))

    def _shard(self, clip: int) -> Path:
        return _shard(self.path, int(self.index[clip]["shard"]))


def _read_index(path: Path, *, clips: int, crc: int) -> NDArray[Any]:
    try:
        index: NDArray[Any] = np.memmap(path, RECORD, "r", shape=(clips,)) if clips else np.zeros(0, RECORD)
    except (OSError, ValueError) as error:
        raise DamagedFile(str(path), offset=0, reason="it is shorter than it was; `codec tokenize` mends it") from error
    if zlib.crc32(index.data) != crc:
        raise DamagedFile(str(path), offset=0, reason="its checksum is another; `codec tokenize` mends it")
    return index


def _tensor(codes: NDArray[Any]) -> Tensor:
    return torch.from_numpy(codes.T.astype(np.int64))  # [codebooks, frames]
