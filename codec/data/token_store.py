"""Token stores: the codes of a corpus on disk, bound to the codec that made them; the format and its reader.

    store.json           metadata: the codec's name, weights hash and frame spec, the number of codebooks, the level
                         that recordings were scaled to, digests of the corpus and of its file sizes, all splits,
                         speakers, labels and languages; once complete, also the frames of each shard, and the size
                         and checksum of the index
    index.bin            one record per clip: where its codes are, how long it is, its split, speaker, label, language,
                         and hashes of its file and folder
    shard-00000.codes    integers [frames, codebooks], little endian, clip after clip
    shard-00000.jsonl    one line per clip with all metadata, or with the error if it could not be read; the last line
                         holds the number of clips and the checksum of the lines before it; clips that are no longer
                         in the corpus are marked as removed, and are not in the index
    clips.jsonl          only while the store is written: the corpus, for the processes that encode it

`codec.data.tokenize` writes stores; reading one decodes no audio.
"""

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, fields
from functools import lru_cache
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec.conditions import CLASSES, KINDS, Conditions
from codec.data.clips import STORE
from codec.errors import BadIndex, ConfigError, DamagedFile, InputNotFound, UsageError, WeightsMismatch
from codec.frames import FrameSpec
from codec.io.bounded_json import read_json
from codec.io.level import KEYS, stored_level
from codec.models.base import Codec

FORMAT = 3
MOST_FRAMES = 2**48  # of a shard, in samples too; a hundred thousand years
OPEN_SHARDS = 256  # mapped at a time
FIELDS = [  # of the index
    ("shard", "<u4"),
    ("line", "<u8"),  # byte offset in the shard's .jsonl
    ("first", "<u8"),  # first frame in the shard
    ("frames", "<u8"),
    ("samples", "<u8"),  # at the model's sample rate
    ("crc", "<u4"),  # of the clip's codes
    ("id", "<u8"),  # hash
    ("split", "<i4"),  # an index into the store's list of splits; -1 for none
]
GROUPS = [("file", "<u8"), ("folder", "<u8")]  # since format 3: hashes of a clip's file and its folder, to split by
FORMAT_1_KINDS = ("speaker", "label")  # of conditions; a store may be older than the others
DTYPES = ("uint16", "uint32")
METADATA: dict[str, type] = {  # required keys of store.json
    **dict.fromkeys(("model", "weights_hash", "dtype", "corpus"), str),
    **dict.fromkeys(("shards", "splits", *(CLASSES[kind] for kind in FORMAT_1_KINDS)), list),
    "frame_spec": dict,
    "num_codebooks": int,
}
LISTS = frozenset(("shards", "splits", "frames", *CLASSES.values()))  # all keys of store.json whose values are lists
FORMAT_1_KEYS = {"books": "num_codebooks", "frame_math": "frame_spec", "overlap": "decoder_delay"}  # release 0.1.0


@dataclass(frozen=True)
class Row(Conditions):
    """The metadata of one clip: `frames` frames from frame `first` of its shard.

    `samples` counts at the model's sample rate, `size` is the audio file's size in bytes. `start`, `seconds` and
    `channel` are those of the clip in its recording, `start` None in stores before format 3; `file` is the recording's
    path below the corpus's root if the id is another text.
    """

    id: str
    first: int
    frames: int
    samples: int
    crc: int
    set: str = ""
    split: str | None = None
    size: int | None = None
    start: float | None = None
    seconds: float | None = None
    channel: int | None = None
    file: str | None = None
    modified: int | None = None
    """When the file was last modified, in ns."""
    checksum: str | None = None
    """Of the file's content; a file with another time is another one if its checksum differs."""
    removed: bool = False
    """Whether the clip is no longer in the corpus."""


ROW_KEYS = frozenset(one.name for one in fields(Row))


@dataclass(frozen=True)
class Failure:
    """A clip, or a whole shard, that could not be encoded."""

    id: str
    error: str


class Tokens(NamedTuple):
    """Codes [codebooks, frames] of a clip from its frame `start`, and the clip's metadata."""

    codes: Tensor
    row: Row
    start: int = 0


class Crops(NamedTuple):
    """Codes [count, codebooks, frames], and for each crop the index of its clip and its first frame there [count]."""

    codes: Tensor
    clips: NDArray[np.int64]
    starts: NDArray[np.int64]


class TokenStore:
    """A token store as a sequence of clips; codes are memory-mapped, never read as a whole.

        store = TokenStore("tokens", model)
        audio = model.decode(store[0].codes[None], length=store[0].row.samples)
        last, first_two = store[-1], store[0:2]  # indexed as any sequence; a slice gives a list
        batch = store.crops(16, 250, np.random.default_rng(step)).codes  # [16, codebooks, 250]

    `index` has one record per clip (`record_dtype`). Its split is an index into `splits`, its speaker, label and
    language are indices into `classes` of that kind; -1 for none. `num_codebooks` is the number of stored codebooks,
    `model_name` the codec's name, `level` the level that recordings were scaled to, None if they were not.

    Raises InputNotFound if there is no store, UsageError if it is not complete, DamagedFile, and WeightsMismatch as
    `check`.
    """

    def __init__(self, path: str | Path, model: Codec | None = None) -> None:
        self.path = Path(path)
        metadata = read_metadata(self.path)
        if "index" not in metadata:
            raise UsageError(f"{self.path} is not complete: repeat its `codec tokenize` command, which resumes")
        self.num_codebooks: int = metadata["num_codebooks"]
        self.level = stored_level(metadata)
        self.weights_hash: str = metadata["weights_hash"]
        self.splits: tuple[str, ...] = tuple(metadata["splits"])
        self.classes: dict[str, tuple[str, ...]] = {
            kind: tuple(metadata[plural]) for kind, plural in CLASSES.items() if plural in metadata
        }
        for key, names in {"split": self.splits, **self.classes}.items():
            if not all(isinstance(name, str) for name in names):
                raise bad_metadata(self.path, f"a {key} is not a string")
        self.model_name: str = metadata["model"]
        self._dtype = np.dtype(metadata["dtype"]).newbyteorder("<")
        try:
            self.frame_spec = FrameSpec(**_whole(metadata["frame_spec"]))
            size = {key: _whole(metadata["index"])[key] for key in ("clips", "crc")}
        except (TypeError, KeyError, ValueError, ConfigError) as error:
            raise bad_metadata(self.path, "frame_spec or index was altered") from error
        if not 1 <= self.num_codebooks <= self.frame_spec.num_codebooks:
            raise bad_metadata(self.path, f"num_codebooks is {self.num_codebooks}")
        self.index = read_index(self.path / "index.bin", dtype=record_dtype(metadata), **size)
        self._check_index(shards=len(metadata["shards"]))
        self._shard_frames: list[int] | None = metadata.get("frames")
        if self._shard_frames is not None and (
            len(self._shard_frames) != len(metadata["shards"])
            or not all(isinstance(frames, int) for frames in self._shard_frames)
        ):
            raise bad_metadata(self.path, "frames were altered")
        self._mapped = lru_cache(OPEN_SHARDS)(self._map)
        self._ends = lru_cache(4)(self._cumulative_crops)
        if model is not None:
            self.check(model)

    def _check_index(self, *, shards: int) -> None:
        """Raise DamagedFile unless the records are in the order of the shards, without overlap, and name what exists.

        The checksum of the index says nothing of a store that was edited by hand, or by a faulty program.
        """
        records = self.index
        if not len(records):
            return
        columns = ("shard", "first", "frames", "samples", "line")
        shard, first, frames, samples, line = (records[name].astype(np.int64) for name in columns)
        begins = np.diff(shard, prepend=-1) != 0
        end = np.roll(first + frames, 1)
        end[begins] = 0
        names = {"split": self.splits, **self.classes}
        ordered = {
            "shard": (np.diff(shard, prepend=0) >= 0) & (shard < shards),
            "first": (first >= 0) & (first < MOST_FRAMES) & (first >= end),
            "samples": (samples >= 0) & (samples < MOST_FRAMES),
            "frames": (frames >= 0) & (frames < MOST_FRAMES) & (frames == self.frame_spec.frames_of(samples)),
            "line": begins | (np.diff(line, prepend=-1) > 0),
            **{key: (records[key] >= -1) & (records[key] < len(known)) for key, known in names.items()},
        }
        for field, right in ordered.items():
            if not right.all():
                clip = int(right.argmin())
                raise DamagedFile(
                    str(self.path / "index.bin"),
                    offset=clip * records.itemsize,
                    reason=f"{field} of clip {clip} is {records[clip][field]}; `codec tokenize` with --force writes it "
                    "again",
                )

    def __reduce__(self) -> tuple[Any, ...]:
        return TokenStore, (self.path,)  # another process maps the files itself

    def check(self, model: Codec) -> None:
        """Raise WeightsMismatch unless `model` made these codes."""
        if model.weights_hash != self.weights_hash:
            raise WeightsMismatch(
                str(self.path),
                made_by=(self.model_name, self.weights_hash),
                given=(model.name, model.weights_hash),
                way_out="load the model that made it, or tokenize the corpus again with `codec tokenize`",
            )
        if model.frame_spec != self.frame_spec:
            raise bad_metadata(self.path, "its frame_spec is not that of the model that made it")

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Tokens]:
        return (self[clip] for clip in range(len(self)))

    @overload
    def __getitem__(self, clip: SupportsIndex) -> Tokens: ...

    @overload
    def __getitem__(self, clip: slice) -> list[Tokens]: ...

    def __getitem__(self, clip: SupportsIndex | slice) -> Tokens | list[Tokens]:
        """A whole clip by its index (negative: from the end), or a list of clips by a slice, which is read at once.

        Raises BadIndex, an IndexError, if there is no such clip; DamagedFile naming the shard.
        """
        if isinstance(clip, slice):
            try:
                return [self[number] for number in range(len(self))[clip]]
            except TypeError as error:
                raise BadIndex(f"{clip} is not a slice of a store: use whole numbers, as store[0:2]") from error
        clip = self._position(clip)
        row = self.row(clip)
        codes = self._codes(clip, 0, row.frames)
        if zlib.crc32(codes.tobytes()) != row.crc:
            frame_bytes = self.num_codebooks * self._dtype.itemsize
            raise damaged_shard(self._shard(clip), row.first * frame_bytes, f"the checksum of {row.id} differs")
        return Tokens(_tensor(codes), row)

    def part(self, clip: SupportsIndex, start: int, frames: int) -> Tensor:
        """Codes [codebooks, frames] of a clip from its frame `start`, without a check of their checksum.

        Raises BadIndex if the clip has no such frames; DamagedFile naming the shard.
        """
        clip = self._position(clip)
        stored = int(self.index[clip]["frames"])
        if not 0 <= start <= start + frames <= stored:
            raise BadIndex(f"clip {clip} of {self.path} has frames 0 to {stored}, not {start} to {start + frames}")
        return _tensor(self._codes(clip, start, frames))

    def row(self, clip: SupportsIndex) -> Row:
        """The metadata of a clip. Raises BadIndex if there is no such clip; DamagedFile naming the shard."""
        clip = self._position(clip)
        record = self.index[clip]
        path = lines_path(self._shard(clip))
        offset = int(record["line"])
        try:
            with path.open("rb") as file:
                file.seek(offset)
                row = _parsed(file.readline(), path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise damaged_shard(path, offset, "there is no clip at this offset") from error
        same = ((name, getattr(row, name, None)) for name in ("first", "frames", "samples", "crc"))
        if (
            not isinstance(row, Row)
            or hash_id(row.id) != record["id"]
            or any(record[name] != value for name, value in same)
        ):
            raise damaged_shard(path, offset, "the index has another clip at this offset")
        return row

    def find(self, name: str) -> int:
        """The index of the clip whose id is `name`, by a search through the index. Raises InputNotFound."""
        for clip in np.flatnonzero(self.index["id"] == hash_id(name)):
            if self.row(int(clip)).id == name:
                return int(clip)
        raise InputNotFound(f"{self.path} has no clip {name}")

    def crop(self, frames: int, rng: np.random.Generator, *, split: str | None = None) -> Tokens:
        """One random crop, as `crops`."""
        crops = self.crops(1, frames, rng, split=split)
        return Tokens(crops.codes[0], self.row(int(crops.clips[0])), int(crops.starts[0]))

    def crops(self, count: int, frames: int, rng: np.random.Generator | int, *, split: str | None = None) -> Crops:
        """Random crops of `frames` frames, uniform over all positions in all clips (of `split`) that are long enough.

        `rng` may be a seed, which gives the same crops in each call.

        Raises UsageError if no clip is long enough, there is no such split, or an argument is out of range;
        DamagedFile naming the shard.
        """
        for name, number in (("count", count), ("frames", frames)):
            if not isinstance(number, int | np.integer) or isinstance(number, bool) or number < 1:
                raise UsageError(f"crops: {name} is {number!r}: give a whole number of 1 or more")
        if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
            rng = np.random.default_rng(int(rng))
        if not isinstance(rng, np.random.Generator):
            raise UsageError(f"crops: rng is {rng!r}: give numpy.random.default_rng(seed), or a seed of 0 or more")
        ends = self._ends(int(frames), split)
        if not len(ends):
            raise UsageError(f"{self.path} holds no clips: tokenize a corpus whose audio can be read")
        if not ends[-1]:
            raise UsageError(
                f"no clip of {self.path} has {frames} frames, the longest has {self.index['frames'].max()}: "
                "ask for fewer, or for another split"
            )
        positions = rng.integers(ends[-1], size=count)
        clips = np.searchsorted(ends, positions, side="right")
        starts = positions - np.where(clips, ends[clips - 1], 0)
        pieces = [self._codes(int(clip), int(start), int(frames)) for clip, start in zip(clips, starts, strict=True)]
        return Crops(torch.stack([_tensor(piece) for piece in pieces]), clips, starts)

    def _position(self, clip: SupportsIndex) -> int:
        """The index of a clip from the start of the store."""
        try:
            number = index(clip)
        except TypeError as error:
            raise BadIndex(
                f"{clip!r} is not the index of a clip: use an int or a slice, or store.find(name) for the index of a "
                "clip by its name"
            ) from error
        if not -len(self) <= number < len(self):
            raise BadIndex(f"{self.path} has {len(self)} clips, counted from 0: there is no clip {number}")
        return number % len(self)

    def _cumulative_crops(self, frames: int, split: str | None) -> NDArray[np.int64]:
        """The number of crops up to and including each clip; 8 bytes a clip."""
        positions = np.maximum(self.index["frames"].astype(np.int64) - frames + 1, 0)
        if split is not None:
            if split not in self.splits:
                raise UsageError(f"{self.path} has no split {split}: it has {', '.join(self.splits) or 'none'}")
            positions[self.index["split"] != self.splits.index(split)] = 0
        return np.cumsum(positions)

    def _codes(self, clip: int, start: int, frames: int) -> NDArray[Any]:
        """Codes [frames, codebooks] in the layout of the file."""
        record = self.index[clip]
        first = int(record["first"]) + start
        codes = self._mapped(int(record["shard"]))[first : first + frames]
        if codes.size and codes.max() >= self.frame_spec.codebook_size:
            frame_bytes = self.num_codebooks * self._dtype.itemsize
            raise damaged_shard(self._shard(clip), first * frame_bytes, f"a code is {codes.max()}")
        return codes

    def _map(self, shard: int) -> NDArray[Any]:
        path = shard_path(self.path, shard)
        last = self.index[np.searchsorted(self.index["shard"], shard, side="right") - 1]
        frames = int(last["first"] + last["frames"])
        if self._shard_frames is not None:  # with those of removed clips
            frames = max(frames, self._shard_frames[shard])
        expected = frames * self.num_codebooks * self._dtype.itemsize
        size = path.stat().st_size if path.exists() else 0
        if size != expected:
            raise damaged_shard(path, size, f"it should have {expected} bytes")
        return np.memmap(path, self._dtype, "r", shape=(frames, self.num_codebooks))

    def _shard(self, clip: int) -> Path:
        return shard_path(self.path, int(self.index[clip]["shard"]))


def _whole(facts: Any) -> dict[str, int]:
    """Facts of a store.json that are whole numbers. Raises TypeError."""
    if not isinstance(facts, dict) or not all(isinstance(value, int) for value in facts.values()):
        raise TypeError("not whole numbers")
    return dict(facts)


def _parsed(line: bytes, path: Path) -> Row | Failure:
    """A line of a shard's .jsonl, the file `path`.

    Raises UsageError if it has a condition of a newer version; ValueError, TypeError or KeyError for a line that the
    writer does not write.
    """
    data = read_json(line)
    if "error" in data:
        return Failure(**data)
    _refuse_newer_conditions(path.parent, {key for key in data if isinstance(data[key], str | None)} - ROW_KEYS)
    texts = ("id", "set", "split", "file", "checksum", *(kind.key for kind in KINDS))
    if not all(isinstance(data.get(key), str | None) for key in texts) or not isinstance(data["id"], str):
        raise TypeError("a text is not a string")
    for key in ("first", "frames", "samples", "crc"):
        if not isinstance(data[key], int) or not 0 <= data[key] < MOST_FRAMES:
            raise ValueError(f"{key} is {data[key]!r:.40}")
    return Row(**data)


def _tensor(codes: NDArray[Any]) -> Tensor:
    return torch.from_numpy(codes.T.astype(np.int64))  # [codebooks, frames]


# the files of a store


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard's codes."""
    return folder / f"shard-{number:05d}.codes"


def lines_path(shard: Path) -> Path:
    """The .jsonl beside a shard's codes."""
    return shard.with_suffix(".jsonl")


def record_dtype(metadata: Mapping[str, Any]) -> np.dtype[Any]:
    """A record of the index, with an index of a name for every kind of condition that the store lists."""
    groups = GROUPS if metadata["format"] >= 3 else []
    return np.dtype([*FIELDS, *((kind, "<i4") for kind, plural in CLASSES.items() if plural in metadata), *groups])


def hash_id(name: str) -> int:
    """The hash of a clip's id in the index."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def read_metadata(folder: Path) -> dict[str, Any]:
    """The content of store.json, with today's keys. Raises InputNotFound, UsageError, DamagedFile."""
    path = folder / STORE
    try:
        metadata: dict[str, Any] = read_json(path.read_bytes())
        newer = metadata["format"] > FORMAT
        if metadata["format"] == 1:
            metadata = {FORMAT_1_KEYS.get(key, key): value for key, value in metadata.items()}
            metadata["frame_spec"] = {FORMAT_1_KEYS.get(key, key): v for key, v in metadata["frame_spec"].items()}
        wrong = [key for key, kind in METADATA.items() if not isinstance(metadata.get(key), kind)]
        wrong += [plural for plural in (*CLASSES.values(), "frames") if not isinstance(metadata.get(plural, []), list)]
    except OSError as error:
        raise InputNotFound(f"{folder} is not a token store: make one with `codec tokenize`") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise bad_metadata(folder, "it was altered") from error
    if newer:
        raise UsageError(f"{folder} has format {metadata['format']}, this codec reads up to {FORMAT}: upgrade codec")
    known = LISTS | METADATA.keys() | {"index", *KEYS.values()}
    _refuse_newer_conditions(folder, {key for key, value in metadata.items() if isinstance(value, list)} - known)
    if wrong or metadata["dtype"] not in DTYPES:
        raise bad_metadata(folder, f"{[*wrong, 'dtype'][0]} is missing or was altered")
    for key in KEYS.values():
        if not isinstance(metadata.get(key), float | None):
            raise bad_metadata(folder, f"{key} was altered")
    return metadata


def _refuse_newer_conditions(folder: Path, unknown: Set[str]) -> None:
    """Raise UsageError for keys of conditions that a newer version has written: each is a column of the index, too."""
    if unknown:
        raise UsageError(f"{folder} has the condition {min(unknown)}, which this codec does not know: upgrade codec")


def bad_metadata(folder: Path, reason: str) -> DamagedFile:
    """The error for a store.json that contradicts itself."""
    return DamagedFile(
        str(folder / STORE), offset=0, reason=f"{reason}; `codec tokenize` with --force writes the store again"
    )


def read_rows(path: Path) -> list[tuple[int, Row | Failure]]:
    """The lines of a shard's .jsonl with their byte offsets. Raises DamagedFile."""
    rows: list[tuple[int, Row | Failure]] = []
    offset = 0
    try:
        *lines, end = path.read_bytes().splitlines(keepends=True)
        for line in lines:
            rows.append((offset, _parsed(line, path)))
            offset += len(line)
        intact = read_json(end) == {"end": len(lines), "crc": zlib.crc32(b"".join(lines))}
    except FileNotFoundError as error:
        raise damaged_shard(path, 0, "it is missing") from error
    except (ValueError, TypeError, KeyError) as error:
        raise damaged_shard(path, offset, "it was altered") from error
    if not intact:
        raise damaged_shard(path, offset, "its checksum differs")
    return rows


def damaged_shard(path: Path, offset: int, reason: str) -> DamagedFile:
    """The error for a file of a shard."""
    return DamagedFile(
        str(path), offset=offset, reason=f"{reason}; delete it, and `codec tokenize` writes its shard again"
    )


def read_index(path: Path, *, clips: int, crc: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The records of index.bin, memory-mapped. Raises DamagedFile."""
    try:
        records: NDArray[Any] = np.memmap(path, dtype, "r", shape=(clips,)) if clips else np.zeros(0, dtype)
    except (OSError, ValueError, OverflowError) as error:
        raise DamagedFile(str(path), offset=0, reason="it was truncated; `codec tokenize` repairs it") from error
    if zlib.crc32(records.data) != crc:
        raise DamagedFile(str(path), offset=0, reason="its checksum differs; `codec tokenize` repairs it")
    return records
