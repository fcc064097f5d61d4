"""data/token_store.py: a store as a sequence, random crops, damaged files."""

import json
import pickle
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec.checkpoint import load_model, save_model
from codec.conditions import CLASSES
from codec.data.token_store import FORMAT, METADATA, TokenStore, read_rows, record_dtype
from codec.data.tokenize import tokenize
from codec.errors import (
    CodecError,
    DamagedFile,
    InputNotFound,
    UsageError,
)
from codec.models.causal import CausalCodec, CausalConfig
from tests.helpers.tokens import expected, noise
from tests.tiny import CONFIG


@pytest.mark.parametrize("name", ["shard-00000.codes", "shard-00000.jsonl", "index.bin", "store.json"])
def test_damage_is_found_and_named(tmp_path: Path, corpus: Path, model_file: Path, name: str) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    file = tmp_path / "store" / name
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x80
    damages: list[bytes | None] = [whole[:-1], whole[: len(whole) // 2], bytes(flipped), b"", None]
    for data in damages:
        file.unlink(missing_ok=True)
        if data is not None:
            file.write_bytes(data)
        if name == "store.json" and data is None:
            continue
        if (name, data) == ("shard-00000.jsonl", whole[:-1]):  # the last line's newline, which only the writer reads
            continue
        with pytest.raises(DamagedFile, match=name):
            list(TokenStore(tmp_path / "store"))
        if name.startswith("shard"):
            file.unlink(missing_ok=True)  # as the message asks
        if name != "store.json":
            tokenize(corpus, tmp_path / "store", model=model_file)
            assert file.read_bytes() == whole


@pytest.mark.slow
def test_missing_or_wrong_metadata(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file)
    facts = json.loads((store / "store.json").read_text())
    assert set(METADATA) | {"format", "family", "sizes", "languages", "frames", "index"} == set(facts)
    wrong = [{key: value for key, value in facts.items() if key != gone} for gone in ("format", *METADATA)]
    wrong += [facts | {key: None} for key in METADATA] + [facts | {"dtype": "float32"}]
    reading = [{"frame_spec": {}}, {"frame_spec": facts["frame_spec"] | {"hop": 0}}, {"index": 1}, {"index": {}}]
    reading += [{"labels": [7]}, {"splits": [None]}, {"frames": 1}, {"frames": [1]}, {"frames": ["1"] * 3}]
    making = [{"shards": [1]}, {"shards": [*facts["shards"], 1]}, {"shards": ["6"]}, {"shards": []}]
    for changed in (*wrong, [], *({**facts, **some} for some in reading)):
        (store / "store.json").write_text(json.dumps(changed))
        with pytest.raises(DamagedFile, match=r"store\.json .*--force"):
            TokenStore(store)
    for changed in (*wrong, [], *({**facts, **some} for some in making)):
        (store / "store.json").write_text(json.dumps(changed))
        with pytest.raises(DamagedFile, match=r"store\.json .*--force"):
            tokenize(corpus, store, model=model_file)
    (store / "store.json").write_text(json.dumps(facts | {"frame_spec": facts["frame_spec"] | {"codebook_size": 4}}))
    with pytest.raises(DamagedFile, match=r"store\.json .* is not that of the model"):
        TokenStore(store, load_model(model_file))
    tokenize(corpus, store, model=model_file, force=True)
    assert json.loads((store / "store.json").read_text()) == facts


def test_a_newer_format_is_refused(stored: Path) -> None:
    facts = json.loads((stored / "store.json").read_text())
    (stored / "store.json").write_text(json.dumps(facts | {"format": FORMAT + 1}))
    with pytest.raises(UsageError, match="upgrade"):
        TokenStore(stored)


@pytest.mark.parametrize("key", ["num_codebooks", "dtype", "model", "frame_spec", "index"])
def test_a_list_in_place_of_a_known_value_is_damage(stored: Path, key: str) -> None:
    facts = json.loads((stored / "store.json").read_text())
    (stored / "store.json").write_text(json.dumps(facts | {key: []}))
    with pytest.raises(DamagedFile, match=rf"store\.json .*{key} .*altered"):
        TokenStore(stored)


def test_a_condition_of_a_newer_version_is_refused(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class, whose names are a list in store.json and a column of the index, and a text, which only lines have."""
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file)
    facts = json.loads((store / "store.json").read_text())
    with monkeypatch.context() as newer:
        newer.setitem(CLASSES, "accent", "accents")
        records = np.zeros(6, record_dtype(facts | {"accents": ["dutch"]}))
        assert "accent" in (records.dtype.names or ())
        index = {"clips": 6, "crc": zlib.crc32(records.tobytes())}
    (store / "store.json").write_text(json.dumps(facts | {"accents": ["dutch"], "index": index}))
    (store / "index.bin").write_bytes(records.tobytes())
    uses: list[Callable[[Path], object]] = [
        lambda store: TokenStore(store).row(0),
        lambda store: tokenize(corpus, store, model=model_file),
    ]
    for use in uses:
        with pytest.raises(UsageError, match="has the condition accents, which this codec does not know: upgrade"):
            use(store)
    assert (store / "index.bin").read_bytes() == records.tobytes()
    tokenize(corpus, store, model=model_file, force=True)
    change_first_line(store / "shard-00000.jsonl", {"phonemes": "a b"})
    for use in uses:
        with pytest.raises(UsageError, match="has the condition phonemes, which this codec does not know: upgrade"):
            use(store)


def change_first_line(file: Path, change: dict[str, Any]) -> None:
    """Change keys of the first line of a shard's .jsonl, with a checksum that fits."""
    first, *rest, _ = file.read_bytes().splitlines(keepends=True)
    data = json.dumps(json.loads(first) | change).encode() + b"\n" + b"".join(rest)
    end = json.dumps({"end": 1 + len(rest), "crc": zlib.crc32(data)}).encode()
    file.write_bytes(data + end + b"\n")


def before_format_3(store: Path, metadata: dict[str, Any]) -> None:
    """Rewrite a store as it was, with this store.json: without the place of a clip in its recording, and its hashes."""
    for path in store.glob("*.jsonl"):
        rows = list(map(json.loads, path.read_bytes().splitlines()))[:-1]
        for row in rows:
            for key in ("start", "seconds", "channel", "file", "removed"):
                row.pop(key, None)
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        path.write_bytes(lines + json.dumps({"end": len(rows), "crc": zlib.crc32(lines)}).encode() + b"\n")
    new = TokenStore(store).index
    old = np.zeros(len(new), record_dtype(metadata))
    for field in old.dtype.names or ():
        old[field] = new[field]
    offsets = [[offset for offset, _ in read_rows(path)] for path in sorted(store.glob("*.jsonl"))]
    old["line"] = np.concatenate(offsets)
    index = {"clips": len(old), "crc": zlib.crc32(old.tobytes())}
    (store / "index.bin").write_bytes(old.tobytes())
    (store / "store.json").write_text(json.dumps(metadata | {"index": index}))


def test_stores_of_release_0_1_0_are_read_and_resumed(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    """Format 1 had the keys books and frame_math."""
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file)
    metadata = json.loads((store / "store.json").read_text())
    old = metadata | {"format": 1, "books": metadata["num_codebooks"], "frame_math": dict(metadata["frame_spec"])}
    for new, name in (("num_codebooks", "books"), ("decoder_delay", "overlap")):
        old["frame_math"][name] = old["frame_math"].pop(new)
    del old["num_codebooks"], old["frame_spec"], old["frames"]
    before_format_3(store, old)
    assert len(TokenStore(store, load_model(model_file))) == 6
    assert tokenize(corpus, store, model=model_file).already_encoded == 6
    assert json.loads((store / "store.json").read_text()) == metadata


def test_stores_without_a_newer_kind_are_read(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    """A store made before languages were a kind has neither a list nor a column of them."""
    tokenize(corpus, tmp_path / "new", model=model_file)
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    new = TokenStore(tmp_path / "new")
    metadata: dict[str, Any] = json.loads((tmp_path / "old/store.json").read_text())
    del metadata["languages"]
    records = np.zeros(len(new), record_dtype(metadata))
    for field in records.dtype.names or ():
        records[field] = new.index[field]
    metadata["index"]["crc"] = zlib.crc32(records.tobytes())
    (tmp_path / "old/index.bin").write_bytes(records.tobytes())
    (tmp_path / "old/store.json").write_text(json.dumps(metadata))
    old = TokenStore(tmp_path / "old")
    assert old.classes == {"speaker": (), "label": new.classes["label"]}
    assert all(one.codes.equal(other.codes) and one.row == other.row for one, other in zip(old, new, strict=True))


@pytest.mark.slow
def test_crops_are_uniform_over_all_positions(tmp_path: Path, model_file: Path) -> None:
    for folder, lengths in {"train": (0.02, 0.05, 0.1), "valid": (0.04,)}.items():
        for number, seconds in enumerate(lengths):
            noise(tmp_path / "corpus" / folder / f"{number}.wav", time=round(seconds * 8000))
    tokenize(tmp_path / "corpus", tmp_path / "store", model=model_file)
    store = TokenStore(tmp_path / "store")
    assert store.index["frames"].tolist() == [3, 6, 11, 5]  # one more for the decoder delay
    for split, places in ((None, [2, 7, 1]), ("train", [2, 7]), ("valid", [1])):
        codes, clips, starts = store.crops(3000, 5, np.random.default_rng(0), split=split)
        assert codes.shape == (3000, 3, 5)
        found, counts = np.unique(np.stack([clips, starts]), axis=1, return_counts=True)
        first = 3 if split == "valid" else 1
        assert found.T.tolist() == [[first + n, start] for n, count in enumerate(places) for start in range(count)]
        mean = 3000 / sum(places)
        assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)
        for crop, clip, start in list(zip(codes, clips, starts, strict=True))[:20]:
            assert torch.equal(crop, store[int(clip)].codes[:, start : start + 5])
    for one, other in zip(store.crops(16, 3, 7), store.crops(16, 3, np.random.default_rng(7)), strict=True):
        np.testing.assert_array_equal(one, other)  # a seed
    crop, again = (store.crop(4, np.random.default_rng(1)) for _ in range(2))
    assert torch.equal(crop.codes, again.codes)
    assert torch.equal(crop.codes, store[store.find(crop.row.id)].codes[:, crop.start : crop.start + 4])
    with pytest.raises(UsageError, match="the longest has 11"):
        store.crop(12, np.random.default_rng(0))
    with pytest.raises(UsageError, match="it has train, valid"):
        store.crop(1, np.random.default_rng(0), split="test")
    wrong: list[tuple[tuple[Any, ...], str]] = [
        ((1, 0, np.random.default_rng(0)), "frames is 0: give a whole number of 1 or more"),
        ((0, 1, np.random.default_rng(0)), "count is 0"),
        ((-1, 1, np.random.default_rng(0)), "count is -1"),
        ((1, 2.5, np.random.default_rng(0)), "frames is 2.5"),
        ((1, "2", np.random.default_rng(0)), "frames is '2'"),
        ((1, 2, "0"), "rng is '0': give numpy"),
        ((1, 2, -1), "rng is -1: give numpy"),
    ]
    for arguments, message in wrong:
        with pytest.raises(UsageError, match=message):
            store.crops(*arguments)
    with pytest.raises(InputNotFound, match="no clip x"):
        store.find("x")
    with pytest.raises(IndexError):
        store[4]


def test_crops_need_no_audio_and_stores_pickle(tmp_path: Path, model_file: Path) -> None:
    noise(tmp_path / "corpus" / "a.wav")
    tokenize(tmp_path / "corpus", tmp_path / "store", model=model_file)
    shutil.rmtree(tmp_path / "corpus")
    copy = pickle.loads(pickle.dumps(TokenStore(tmp_path / "store")))
    assert copy.crops(2, 10, np.random.default_rng(0)).codes.shape == (2, 3, 10)


def test_a_store_is_a_sequence(stored: Path) -> None:
    store = TokenStore(stored)
    ids = [clip.row.id for clip in store]
    assert len(ids) == len(store) == 6
    for cut in (slice(0, 2), slice(None), slice(-2, None), slice(None, None, -2), slice(4, 99), slice(3, 1)):
        assert [clip.row.id for clip in store[cut]] == ids[cut]
    assert torch.equal(store[0:2][1].codes, store[1].codes)
    for number in (-6, -1, np.int64(2), torch.tensor(-3)):
        assert store[number].row.id == store.row(number).id == ids[int(number)]
        assert torch.equal(store.part(number, 1, 1), store[number].codes[:, 1:2])


def test_bad_indices_raise_one_line(stored: Path) -> None:
    store = TokenStore(stored)
    wrong: list[tuple[Any, str]] = [
        (6, r"^\S+store has 6 clips, counted from 0: there is no clip 6$"),
        (-7, "there is no clip -7"),
        ("train/a/0.wav", r"^'train/a/0.wav' is not the index of a clip: use an int or a slice, or store.find"),
        (1.0, "1.0 is not the index of a clip"),
        ([0, 1], r"\[0, 1\] is not the index of a clip"),
        (slice(0.5, 2), "is not a slice of a store"),
    ]
    for index, message in wrong:
        with pytest.raises(IndexError, match=message) as error:
            store[index]
        assert isinstance(error.value, CodecError)
    for start, frames in ((-1, 1), (0, 4), (2, 1), (0, -1)):
        with pytest.raises(IndexError, match=f"clip 0 of .*store has frames 0 to 2, not {start} to {start + frames}"):
            store.part(0, start, frames)


def test_codebooks_beyond_16_bits(tmp_path: Path) -> None:
    config = CausalConfig.from_data(
        CONFIG.model_dump()
        | {
            "quantizer": "scalar",
            "num_codebooks": 1,
            "envelope_bands": 0,
            "dim": 3,
            "levels": (50, 40, 35),
            "codebook_size": 70_000,
        }
    )
    torch.manual_seed(0)
    model = CausalCodec(config)
    model.encoder.pca *= 100  # to the outer levels
    save_model(tmp_path / "fsq.safetensors", model, training={})
    noise(tmp_path / "corpus" / "a.wav", time=8000)
    tokenize(tmp_path / "corpus", tmp_path / "store", model=tmp_path / "fsq.safetensors")
    codes = TokenStore(tmp_path / "store")[0].codes
    assert codes.max() > 65_535
    assert torch.equal(codes, expected(tmp_path / "fsq.safetensors", tmp_path / "corpus" / "a.wav"))


def edited(store: Path, change: Callable[[NDArray[Any]], NDArray[Any] | None]) -> None:
    """Change the records of a store, with a checksum that fits."""
    metadata = json.loads((store / "store.json").read_text())
    records = np.fromfile(store / "index.bin", record_dtype(metadata))
    changed = change(records)
    records = records if changed is None else changed
    records.tofile(store / "index.bin")
    metadata["index"] = {"clips": len(records), "crc": zlib.crc32(records.tobytes())}
    (store / "store.json").write_text(json.dumps(metadata))


def put(field: str, clip: int, value: int) -> Callable[[NDArray[Any]], None]:
    return lambda records: records[field].__setitem__(clip, value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("shard", 0, 99), "shard of clip 0 is 99"),
        (put("first", 2, 2**64 - 1), "first of clip 2"),
        (put("first", 3, 0), "first of clip 3 is 0"),
        (put("frames", 1, 2**63), "frames of clip 1"),
        (put("frames", 1, 1), "(frames of clip 1 is 1|first of clip 2)"),
        (put("samples", 1, 2**64 - 1), "samples of clip 1"),
        (put("line", 2, 0), "line of clip 2 is 0"),
        (put("split", 4, 7), "split of clip 4 is 7"),
        (put("speaker", 4, -2), "speaker of clip 4 is -2"),
        (put("label", 0, 1000), "label of clip 0 is 1000"),
        (lambda records: records.repeat(2), "first of clip 1"),
        (lambda records: records[::-1].copy(), "first of clip 1|shard of clip 1"),
    ],
)
def test_an_edited_index_is_damage(stored: Path, change: Callable[[NDArray[Any]], Any], says: str) -> None:
    edited(stored, change)
    with pytest.raises(DamagedFile, match=rf"index.bin is damaged at byte \d+ \(({says})"):
        TokenStore(stored)


def test_edited_metadata_are_damage(stored: Path) -> None:
    text = (stored / "store.json").read_text()
    facts = json.loads(text)
    deep = "[" * 900 + "]" * 900
    changes: list[dict[str, Any]] = [{"num_codebooks": 0}, {"num_codebooks": 10**9}, {"frame_spec": 3}]
    changes += [{"index": facts["index"] | {"clips": value}} for value in (-1, 10**30, 1.5, float("inf"), "6")]
    for changed in (text[:-1] + f', "x": {deep}}}', *(json.dumps(facts | change) for change in changes)):
        (stored / "store.json").write_text(changed)
        with pytest.raises(DamagedFile):
            TokenStore(stored)


@pytest.mark.parametrize(
    "change",
    [
        {"first": "0"}, {"frames": -1}, {"crc": 2**70}, {"samples": None}, {"id": None}, {"label": 3},
        {"speaker": [[]]}, {"unknown": 1}, {"set": {}},
    ],
)  # fmt: skip
def test_edited_lines_are_damage(stored: Path, change: dict[str, Any]) -> None:
    file = stored / "shard-00000.jsonl"
    change_first_line(file, change)
    with pytest.raises(DamagedFile, match=r"shard-00000\.jsonl"):
        TokenStore(stored).row(0)
    with pytest.raises(DamagedFile, match=r"shard-00000\.jsonl"):
        read_rows(file)


def test_codes_beyond_their_codebook_are_damage(stored: Path) -> None:
    file = stored / "shard-00000.codes"
    codes = np.fromfile(file, "<u2")
    codes[0] = CONFIG.codebook_size
    codes.tofile(file)
    with pytest.raises(DamagedFile, match=f"a code is {CONFIG.codebook_size}"):
        TokenStore(stored).part(0, 0, 1)
