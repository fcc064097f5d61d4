"""Token stores as files of other tools, and back.

    parquet   one file: a row per clip with the columns `codes` (a list of lists of uint16), `seconds`, `label`, ...;
              the entry "codec" of the schema's metadata describes the store
    npy       a folder: an array [codebooks, frames] per clip below codes/, a line per clip in clips.jsonl, and the
              description in codec.json
    shar      a folder of lhotse Shar: cuts.000000.jsonl.gz and codes.000000.tar, ...; the description is in every cut

The description is store.json without the index, so that an import gives an equal store. Files of other tools lack it:
they are imported as codes of a model that the caller names.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec import pretrained
from codec.conditions import KINDS
from codec.data.clips import SPLITS, STORE, manifest_rows
from codec.data.token_store import DTYPES, Row, TokenStore, hash_id, read_metadata, shard_path
from codec.data.tokenize import LISTS, SHARD_SECONDS, Progress, model_metadata, write_index, write_lines
from codec.errors import (
    CodecError,
    ConfigError,
    DamagedFile,
    InputNotFound,
    MissingDependency,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from codec.frames import FrameSpec
from codec.io.bounded_json import read_json
from codec.io.foreign_codes import read_codes
from codec.io.level import stored_level
from codec.io.parquet import pyarrow as load_pyarrow
from codec.io.storage import atomic_folder, atomic_output
from codec.models.base import Codec

Format: TypeAlias = Literal["parquet", "npy", "shar"]
ENTRY = "codec"  # the key of the description in Parquet and Shar
DESCRIPTION = "codec.json"  # its file in a folder of arrays
CLIPS = "clips.jsonl"
FIRST_CUTS = "cuts.000000.jsonl.gz"
CODES = ("codes", "audio_codes")  # names of the column of codes, of the key of a file, and of the array of a cut
GROUP_CODES = 2**23  # of a row group of Parquet, or the codes of one clip
FOLDER_CLIPS = 1000  # arrays in one folder
FIELDS: dict[str, type] = {  # of a clip, beside its codes
    "id": str,
    "seconds": float,
    "samples": int,  # at the model's rate
    **dict.fromkeys(("set", "split", *(kind.key for kind in KINDS), "file"), str),
    "start": float,
    "stated_seconds": float,  # those of the manifest; None for up to the end of the file
    "channel": int,
    "size": int,
    "modified": int,
    "checksum": str,
}
SHAR_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    AssertionError,
    EOFError,
    tarfile.TarError,
)
MOST_OFF = 1  # frames by which the stated seconds of a clip may differ from its codes


@dataclass(frozen=True)
class ExchangeReport:
    """What was written: `clips` clips of `seconds` of audio."""

    clips: int
    seconds: float


class Item(NamedTuple):
    """A clip on its way between a store and other files."""

    facts: Mapping[str, Any]
    """As FIELDS."""
    codes: NDArray[Any]
    """[codebooks, frames]."""
    where: str
    """Its place, for messages."""


class Found(NamedTuple):
    """The content of files to import."""

    description: Any
    """None if the files have none."""
    items: Iterator[Item]
    clips: int


# export


def export_tokens(
    store: str | Path, target: str | Path, *, to: Format, force: bool = False, progress: Progress | None = None
) -> ExchangeReport:
    """Write the clips of a token store to a Parquet file, or a folder of arrays or of lhotse Shar.

    Clips that could not be encoded, or are no longer in the corpus, are left out.

    Raises as `TokenStore`, and:
        MissingDependency: Parquet needs pyarrow, Shar needs lhotse.
        StorageError: `target` exists and `force` is off, or cannot be written.
        UsageError: a text is not UTF-8; arrays take it.
    """
    source = TokenStore(store)
    shards = np.bincount(source.index["shard"]).tolist() if len(source) else []
    metadata = read_metadata(source.path)
    description = {key: value for key, value in metadata.items() if key not in ("index", "frames")}
    description["shards"] = [clips for clips in shards if clips]
    items = _shown(_stored(source), len(source), progress)
    match to:
        case "parquet":
            _write_parquet(target, description, map(_in_utf8, items), force=force)
        case "npy":
            _write_arrays(target, description, items, force=force)
        case "shar":
            _write_shar(target, description, map(_in_utf8, items), force=force)
    return ExchangeReport(len(source), source.frame_spec.seconds(int(source.index["samples"].sum())))


def _stored(store: TokenStore) -> Iterator[Item]:
    """The clips of a store."""
    dtype = DTYPES[store.frame_spec.codebook_size > 1 << 16]
    for tokens in store:
        facts = {key: value for key, value in asdict(tokens.row).items() if key in FIELDS}
        facts["stated_seconds"] = tokens.row.seconds
        facts["seconds"] = store.frame_spec.seconds(tokens.row.samples)
        yield Item(facts, tokens.codes.numpy().astype(dtype), f"{store.path}: {tokens.row.id}")


def _in_utf8(item: Item) -> Item:
    """The item. Raises UsageError if one of its texts is not UTF-8, as the name of a file may be."""
    for text in item.facts.values():
        try:
            str(text).encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{item.where}: {text!r} is not UTF-8, which these files need: use --to npy") from error
    return item


def _shown(items: Iterator[Item], total: int, progress: Progress | None) -> Iterator[Item]:
    """The items; `progress` is called after each."""
    for number, item in enumerate(items, 1):
        yield item
        if progress is not None:
            progress(number, total)


# import


def import_tokens(
    source: str | Path,
    target: str | Path,
    *,
    model: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ExchangeReport:
    """Write a token store of what `export_tokens` wrote, or of codes of other tools, which `model` made.

    `source` is a Parquet file or a folder of them; a .jsonl file, or a folder with clips.jsonl, whose lines have the
    path of an array [codebooks, frames] under "codes"; or a folder of lhotse Shar. Optional keys are those of a
    manifest, `id`, `samples` at the model's rate, and `seconds`; without a length, a clip is as long as its frames.

    Raises:
        InputNotFound, DamagedFile: the files cannot be read, or are not what their names say.
        UnsupportedAudio: codes are not the model's, or do not have the stated length.
        ConfigError: two clips have the same id, or a field of a clip is invalid.
        UsageError: the files do not say which codec made the codes, and `model` is None.
        WeightsMismatch: another model than `model` made them.
        MissingDependency, StorageError: as `export_tokens`; and as `codec.load`.
    """
    net = None if model is None else pretrained.load(model, "cpu")
    found = _found(Path(source), None if net is None else net.frame_spec)
    described = None if found.description is None else _checked_description(found.description, str(source))
    if net is not None and described is not None and described["weights_hash"] != net.weights_hash:
        raise WeightsMismatch(
            str(source),
            made_by=(described["model"], described["weights_hash"]),
            given=(net.name, net.weights_hash),
            way_out="leave --model out",
        )
    items = _shown(found.items, found.clips, progress)
    first = next(items, None)
    if first is None:
        raise InputNotFound(f"{source} holds no clips: name files that do")
    if described is None:
        if net is None:
            raise _no_model(source)
        num_codebooks = net.check_codebooks(_codebooks_of(first, net))
        described = model_metadata((net.name, net.weights_hash), net.config.family, net.frame_spec, num_codebooks, None)
    sizes = net.codebook_sizes if net is not None else None
    with atomic_folder(target, marker=STORE, force=force) as folder:
        writer = _StoreWriter(folder, described, sizes)
        for group in _shards(chain([first], items), described, found.clips):
            writer.write(group)
        writer.close(of_all=sum(described.get("shards", [])) == writer.clips)
    return ExchangeReport(writer.clips, writer.spec.seconds(writer.samples))


def _codebooks_of(item: Item, net: Codec) -> int:
    """The codebooks of an item. Raises UnsupportedAudio if the model has no such number of codebooks."""
    number = len(item.codes)
    if number not in net.codebook_choices:
        raise UnsupportedAudio(
            f"{item.where} has codes {list(item.codes.shape)}, {net.name} has up to {net.num_codebooks} codebooks: "
            "give [codebooks, frames], and the model that made them"
        )
    return number


def _checked_description(facts: Any, label: str) -> dict[str, Any]:
    """A description with the keys of a store.json. Raises DamagedFile unless it can be one."""
    try:
        spec = FrameSpec(**{key: int(value) for key, value in facts["frame_spec"].items()})
        kept = model_metadata(
            (str(facts["model"]), str(facts["weights_hash"])),
            str(facts.get("family", "")),
            spec,
            int(facts["num_codebooks"]),
            stored_level(facts),
        )
        kept |= {key: str(facts[key]) for key in ("corpus", "sizes") if key in facts}
        kept |= {plural: [str(name) for name in facts.get(plural, [])] for plural in LISTS.values()}
        kept["shards"] = [int(clips) for clips in facts.get("shards", [])]
        if not 1 <= kept["num_codebooks"] <= spec.num_codebooks or min(kept["shards"], default=1) < 1:
            raise ValueError("out of range")
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError, ConfigError) as error:
        raise DamagedFile(
            label, offset=0, reason="its description of the codec was altered; pass --model with the codec"
        ) from error
    return kept


def _shards(items: Iterator[Item], description: Mapping[str, Any], clips: int) -> Iterator[list[Item]]:
    """The items of each shard: those of the store that was exported if all are there, else an hour or more each."""
    if sum(counts := description.get("shards", [])) == clips:
        yield from (list(islice(items, count)) for count in counts)
        return
    shard: list[Item] = []
    frames, spec = 0, FrameSpec(**description["frame_spec"])
    for item in items:
        shard.append(item)
        frames += item.codes.shape[-1]
        if frames >= SHARD_SECONDS[1] * spec.frame_rate:
            yield shard
            shard, frames = [], 0
    if shard:
        yield shard


class _StoreWriter:
    """Write the shards of a new token store."""

    def __init__(self, folder: Path, metadata: dict[str, Any], sizes: Sequence[int] | None) -> None:
        self.spec = FrameSpec(**metadata["frame_spec"])
        self.clips = self.samples = 0
        self._folder = folder
        self._metadata = metadata
        self._num_codebooks: int = metadata["num_codebooks"]
        most = [self.spec.codebook_size] * self._num_codebooks if sizes is None else sizes[: self._num_codebooks]
        self._sizes = np.array(most)[:, None]
        self._dtype = np.dtype(metadata["dtype"]).newbyteorder("<")
        self._names = {kind: set(metadata.get(plural, [])) for kind, plural in LISTS.items()}
        self._ids: set[int] = set()
        self._shards: list[int] = []
        self._digest = hashlib.sha256()

    def write(self, items: list[Item]) -> None:
        """Write the next shard."""
        path = shard_path(self._folder, len(self._shards))
        rows: list[Any] = []
        first = 0
        with atomic_output(path) as file:
            for item in items:
                data = self._checked(item).T.astype(self._dtype).tobytes()  # [frames, codebooks]
                file.write(data)
                rows.append(self._row(item, first, zlib.crc32(data)))
                first += item.codes.shape[1]
        write_lines(path, rows)
        self._shards.append(len(rows))

    def close(self, *, of_all: bool) -> None:
        """Write the index and store.json; `of_all` says that the store holds the clips of its description."""
        if not of_all:
            self._metadata |= {"corpus": self._digest.hexdigest()}
            self._metadata.pop("sizes", None)
        lists = {LISTS[kind]: sorted(names) for kind, names in self._names.items()}
        write_index(self._folder, self._metadata | lists | {"shards": self._shards})

    def _checked(self, item: Item) -> NDArray[Any]:
        """The codes of an item. Raises UnsupportedAudio unless they are the model's."""
        codes = item.codes
        if codes.ndim != 2 or codes.dtype.kind not in "iu" or len(codes) != self._num_codebooks or not codes.size:
            raise UnsupportedAudio(
                f"{item.where} has codes {codes.dtype} {list(codes.shape)}: give integers [{self._num_codebooks} "
                "codebooks, frames]"
            )
        if codes.min() < 0 or (codes >= self._sizes).any():
            raise UnsupportedAudio(
                f"{item.where} has codes from {codes.min()} to {codes.max()}, the codebooks have {self._sizes.max()} "
                "entries: pass the model that made them"
            )
        return codes

    def _row(self, item: Item, first: int, crc: int) -> Row:
        facts = _fields(item)
        name = facts["id"]
        if (key := hash_id(name)) in self._ids:
            raise ConfigError(f"{item.where}: there are two clips {name}: give each its own id")
        self._ids.add(key)
        samples = self._samples(item, facts)
        for kind, names in self._names.items():
            if facts[kind] is not None:
                names.add(facts[kind])
        self._digest.update(json.dumps([name, samples, crc]).encode())
        self.clips += 1
        self.samples += samples
        facts |= {"samples": samples, "seconds": facts["stated_seconds"], "set": facts["set"] or ""}
        kept = {field.name: facts[field.name] for field in fields(Row) if field.name in facts}
        return Row(first=first, frames=item.codes.shape[1], crc=crc, **kept)

    def _samples(self, item: Item, facts: Mapping[str, Any]) -> int:
        """The length of a clip in samples: as stated, else all that its frames hold."""
        frames = item.codes.shape[1]
        stated = facts["samples"]
        if stated is None and facts["seconds"] is not None:
            stated = self.spec.samples(facts["seconds"])
            if 0 < abs(self.spec.frames(stated) - frames) <= MOST_OFF:  # other tools round, or drop the last frame
                stated = None
        samples: int = self.spec.time(frames) if stated is None else stated
        if self.spec.frames(samples) != frames or samples < 1:
            raise UnsupportedAudio(
                f"{item.where} has {frames} frames, which do not hold {samples} samples at {self.spec.sample_rate} Hz: "
                "correct its samples or seconds, or leave them out"
            )
        return samples


def _fields(item: Item) -> dict[str, Any]:
    """The fields of a clip, of the types of FIELDS; None where one is missing. Raises ConfigError."""
    facts = {key: _field(item, key, kind) for key, kind in FIELDS.items()}
    if not facts["id"]:
        raise ConfigError(f"{item.where} has no id: give it one")
    if facts["split"] not in (None, *SPLITS):
        raise ConfigError(f"{item.where}: split is {facts['split']!r}: write one of {', '.join(SPLITS)}")
    return facts


def _field(item: Item, key: str, kind: type) -> Any:
    value = item.facts.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):  # pandas writes a missing value as NaN
        return None
    if kind is str and isinstance(value, str | int):
        return str(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is str or not number or value < 0 or kind(value) != value:
        raise ConfigError(f"{item.where}: {key} is {value!r:.40}: correct it, or leave it out")
    return kind(value)


def _found(source: Path, spec: FrameSpec | None) -> Found:
    """The clips of files, by the names of the files; `spec` is that of a given model."""
    if source.is_dir():
        if files := sorted(source.rglob("*.parquet")):
            return _read_parquet(source, files)
        if any(source.glob("cuts*.jsonl*")):
            return _read_shar(source)
        if (source / CLIPS).is_file():
            return _read_arrays(source / CLIPS, spec)
        raise InputNotFound(
            f"{source} holds neither .parquet files nor {CLIPS} nor lhotse's cuts: name a folder that does"
        )
    if source.suffix == ".parquet":
        return _read_parquet(source.parent, [source])
    return _read_arrays(source, spec)


# Parquet


def _write_parquet(target: str | Path, description: dict[str, Any], items: Iterator[Item], *, force: bool) -> None:
    pyarrow, parquet = load_pyarrow()
    types = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64()}
    codes = ("codes", pyarrow.list_(pyarrow.list_(pyarrow.from_numpy_dtype(np.dtype(description["dtype"])))))
    columns = [(key, types[kind]) for key, kind in FIELDS.items()]
    schema = pyarrow.schema([columns[0], codes, *columns[1:]], metadata={ENTRY: json.dumps(description)})
    with atomic_output(target, force=force) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for group in _groups(items):
            rows = [{key: item.facts.get(key) for key in FIELDS} for item in group]
            plain = pyarrow.RecordBatch.from_pylist(rows, schema=pyarrow.schema(columns))
            arrays = [plain.column(0), _nested(pyarrow, group), *plain.columns[1:]]
            writer.write_batch(pyarrow.RecordBatch.from_arrays(arrays, schema=schema))


def _groups(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Items in groups of at most GROUP_CODES codes."""
    group: list[Item] = []
    codes = 0
    for item in items:
        if group and codes + item.codes.size > GROUP_CODES:
            yield group
            group, codes = [], 0
        group.append(item)
        codes += item.codes.size
    if group:
        yield group


def _nested(pyarrow: Any, group: list[Item]) -> Any:
    """Codes as an array of lists of lists, without a Python object per code."""
    codes = [item.codes for item in group]
    values = pyarrow.array(np.concatenate([own.ravel() for own in codes]))
    frames = [own.shape[1] for own in codes for _ in own]
    inner = pyarrow.ListArray.from_arrays(_offsets(frames), values)
    return pyarrow.ListArray.from_arrays(_offsets([len(own) for own in codes]), inner)


def _offsets(lengths: list[int]) -> NDArray[np.int32]:
    return np.cumsum([0, *lengths]).astype(np.int32)


def _read_parquet(folder: Path, paths: list[Path]) -> Found:
    """The rows of Parquet files of one codec; clips without an id are named by their file and row."""
    pyarrow, parquet = load_pyarrow()
    clips = 0
    descriptions: list[Any] = []
    for path in paths:
        with _reading(path, pyarrow.ArrowException), parquet.ParquetFile(path) as file:
            clips += file.metadata.num_rows
            _column_of(file.schema_arrow.names, path)
            entry = (file.schema_arrow.metadata or {}).get(ENTRY.encode())
            descriptions.append(None if entry is None else _parsed(entry, path))
        _check_same(descriptions[0], descriptions[-1], path)
    items = chain.from_iterable(_parquet_items(path, path.relative_to(folder).as_posix()) for path in paths)
    return Found(descriptions[0], items, clips)


def _parquet_items(path: Path, name: str) -> Iterator[Item]:
    pyarrow, parquet = load_pyarrow()
    with _reading(path, pyarrow.ArrowException), parquet.ParquetFile(path) as file:
        column = _column_of(file.schema_arrow.names, path)
        columns = [column, *(key for key in FIELDS if key in file.schema_arrow.names)]
        row_bytes = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
        rows = max(1, min(1024, GROUP_CODES * file.metadata.num_rows // max(1, row_bytes)))
        number = 0
        for batch in file.iter_batches(rows, columns=columns):
            facts = batch.drop_columns([column]).to_pylist()
            for codes, own in zip(batch.column(column), facts, strict=True):
                number += 1
                yield Item({"id": f"{name}:{number}"} | own, _matrix(codes, where := f"{path} row {number}"), where)


def _matrix(codes: Any, where: str) -> NDArray[Any]:
    """A list of equally long lists of Parquet as an array. Raises UnsupportedAudio for any other value."""
    try:
        inner = codes.values
        flat: NDArray[Any] = inner.flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(inner), -1) if len(set(inner.value_lengths().to_pylist())) == 1 else flat[:0]
    except (AttributeError, ValueError, TypeError) as error:
        raise UnsupportedAudio(f"{where} has no codes: give lists [codebooks, frames] of integers") from error


# arrays


def _write_arrays(target: str | Path, description: dict[str, Any], items: Iterator[Item], *, force: bool) -> None:
    with atomic_folder(target, marker=DESCRIPTION, force=force) as folder:
        with (folder / CLIPS).open("w", encoding="ascii") as lines:
            for number, item in enumerate(items):
                path = folder / "codes" / f"{number // FOLDER_CLIPS:05}" / f"{number:08}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, item.codes, allow_pickle=False)
                present = {key: item.facts[key] for key in FIELDS if item.facts.get(key) is not None}
                lines.write(json.dumps({"codes": path.relative_to(folder).as_posix(), **present}) + "\n")
        (folder / DESCRIPTION).write_text(json.dumps(description))


def _read_arrays(path: Path, spec: FrameSpec | None) -> Found:
    """The lines of a .jsonl or .csv file, and the description beside it; `spec` is that of a given model."""
    clips = sum(1 for _ in manifest_rows(path))
    description, beside = None, path.parent / DESCRIPTION
    if beside.is_file():
        with _reading(beside):
            description = _parsed(beside.read_bytes(), beside)
        spec = FrameSpec(**_checked_description(description, str(beside))["frame_spec"])
    if spec is None:
        raise _no_model(path)
    return Found(description, _array_items(path, spec), clips)


def _array_items(path: Path, spec: FrameSpec) -> Iterator[Item]:
    for number, row in manifest_rows(path):
        where = f"{path} line {number}"
        name = row[_column_of(row, where)]
        if not isinstance(name, str):
            raise ConfigError(f"{where}: codes is {name!r:.40}: write the path of an array")
        read = read_codes(path.parent / name, spec)
        if len(read.codes) != 1:
            raise UnsupportedAudio(f"{path.parent / name} has codes of {len(read.codes)} channels: write one file each")
        facts: dict[str, Any] = {"id": Path(name).with_suffix("").as_posix()}
        if read.rate in (None, spec.sample_rate):
            facts["samples"] = read.time
        yield Item(facts | dict(row), read.codes[0], where)


# lhotse Shar


def _write_shar(target: str | Path, description: dict[str, Any], items: Iterator[Item], *, force: bool) -> None:
    """Write a shard of Shar for every shard of the store."""
    lhotse = _lhotse()
    shared = {key: value for key, value in description.items() if key not in ("shards", *LISTS.values())}
    with atomic_folder(target, marker=FIRST_CUTS, force=force) as folder:
        for shard, clips in enumerate(description["shards"]):
            suffix = f".{shard:06}"
            with lhotse.shar.SharWriter(folder, {"codes": "numpy"}, shard_size=None, shard_suffix=suffix) as writer:
                for number, item in enumerate(islice(items, clips)):
                    writer.write(_cut(lhotse, item, shared, f"{shard:06}-{number:06}"))


def _cut(lhotse: Any, item: Item, description: Mapping[str, Any], spare_id: str) -> Any:
    """A cut of lhotse without a recording.

    It is as long as its frames, and its supervision as long as the audio, because lhotse rounds the length of a cut to
    frames and would drop a last one that is not full. Its `sampling_rate` is what `cut.truncate` asks for.
    """
    facts = {key: item.facts[key] for key in FIELDS if item.facts.get(key) is not None}
    file = facts["id"] + ".npy"
    name = facts.pop("id") if str(PurePosixPath(file)) == file else spare_id  # lhotse compares it with a path
    frame_rate = description["frame_spec"]["sample_rate"] / description["frame_spec"]["hop"]
    supervision = lhotse.SupervisionSegment(
        name,
        name,
        start=0.0,
        duration=facts["seconds"],
        channel=facts.get("channel", 0),
        text=facts.get("transcript"),
        language=facts.get("language"),
        speaker=facts.get("speaker"),
    )
    cut = lhotse.MonoCut(
        name,
        start=0.0,
        duration=item.codes.shape[1] / frame_rate,
        channel=facts.get("channel", 0),
        supervisions=[supervision],
        custom=facts | {ENTRY: dict(description), "sampling_rate": description["frame_spec"]["sample_rate"]},
    )
    # [frames, codebooks], because lhotse cuts arrays along the first dimension whatever `temporal_dim` says
    return cut.attach_tensor("codes", item.codes.T, frame_shift=1 / frame_rate, temporal_dim=0)


def _read_shar(folder: Path) -> Found:
    """The cuts of a folder of Shar."""
    lhotse = _lhotse()
    with _reading(folder, *SHAR_ERRORS):
        cuts = lhotse.shar.LazySharIterator(in_dir=folder)
        clips = len(cuts)
        first = next(iter(cuts), None)
    description = None if first is None else (first.custom or {}).get(ENTRY)
    description = description if isinstance(description, dict) else None
    if description is not None:
        description["shards"] = _shards_of_cuts(cuts)
    return Found(description, _shar_items(cuts, clips, folder, description), clips)


def _shards_of_cuts(cuts: Any) -> list[int]:
    """The number of cuts of each shard."""
    from lhotse.lazy import count_newlines_fast

    return [count_newlines_fast(path) for path in cuts.streams["cuts"]]


def _shar_items(cuts: Any, clips: int, folder: Path, description: Any) -> Iterator[Item]:
    read = 0
    with _reading(folder, *SHAR_ERRORS):
        for cut in cuts:
            read += 1
            where = f"{folder}: cut {cut.id}"
            custom = dict(cut.custom or {})
            _check_same(description, custom.get(ENTRY), where)
            array = custom[_column_of(custom, where)]
            temporal_dim = getattr(array, "temporal_dim", 1)
            stored: Any = getattr(array, "array", array)
            if getattr(stored, "storage_type", None) != "memory_npy":  # others may hold pickles
                raise UnsupportedAudio(f"{where} has no array in a .tar file beside it: write the Shar with `numpy`")
            codes = np.load(io.BytesIO(stored.storage_key), allow_pickle=False)
            facts = {"id": cut.id, **_supervised(cut.supervisions), "seconds": cut.duration, **custom}
            yield Item(facts, codes.T if temporal_dim == 0 else codes, where)
    if read < clips:  # lhotse takes the end of a .tar file for the end of its shard
        raise DamagedFile(str(folder), offset=0, reason=f"{clips - read} of {clips} cuts have no codes")


def _supervised(supervisions: Sequence[Any]) -> dict[str, Any]:
    """What all supervisions of a cut agree on, and their text."""
    facts = {}
    for key in ("speaker", "language"):
        values = {getattr(one, key) for one in supervisions}
        facts[key] = values.pop() if len(values) == 1 else None
    return facts | {"transcript": " ".join(one.text for one in supervisions if one.text) or None}


def _lhotse() -> Any:
    """The module lhotse. Raises MissingDependency."""
    try:
        import lhotse
        import lhotse.shar
    except ImportError as error:
        raise MissingDependency("lhotse Shar needs lhotse: pip install '.[shar]' in the project's folder") from error
    return lhotse


# all of them


@contextmanager
def _reading(path: Path, *kinds: Any) -> Iterator[None]:
    """Raise errors of the system as InputNotFound, and those of `kinds`, of damaged content, as DamagedFile."""
    try:
        yield
    except CodecError:
        raise
    except (OSError, *kinds) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputNotFound(f"{path} cannot be read ({error.strerror}): check the path") from error
        reason = shorten(str(error) or type(error).__name__, 200)
        raise DamagedFile(str(path), offset=0, reason=reason) from error


def _parsed(text: bytes, path: Path) -> Any:
    """A description as JSON."""
    try:
        return read_json(text)
    except ValueError as error:
        raise DamagedFile(str(path), offset=0, reason="its description of the codec was altered") from error


def _check_same(description: Any, other: Any, where: object) -> None:
    """Raise ConfigError unless two descriptions are of one codec."""
    one, two = (own.get("weights_hash") if isinstance(own, Mapping) else None for own in (description, other))
    if one != two:
        raise ConfigError(f"{where} is of another codec than the clips before it: import them one by one")


def _column_of(names: Container[str], where: object) -> str:
    """The name under which codes are found. Raises UnsupportedAudio."""
    for name in CODES:
        if name in names:
            return name
    raise UnsupportedAudio(f"{where} has no {' or '.join(CODES)}: rename what holds the codes")


def _no_model(source: object) -> UsageError:
    return UsageError(f"{source} does not say which codec made its codes: pass --model")
