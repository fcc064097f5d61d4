"""data/token_store.py: a store as a sequence, random crops, damaged files."""

import json
import pickle
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codec.checkpoint import load_model, save_model
from codec.data.token_store import FORMAT, METADATA, TokenStore, record_dtype
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


def test_missing_or_wrong_metadata(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file)
    facts = json.loads((store / "store.json").read_text())
    assert set(METADATA) | {"format", "family", "sizes", "languages", "index"} == set(facts)
    wrong = [{key: value for key, value in facts.items() if key != gone} for gone in ("format", *METADATA)]
    wrong += [facts | {key: None} for key in METADATA] + [facts | {"dtype": "float32"}]
    reading = [{"frame_spec": {}}, {"frame_spec": facts["frame_spec"] | {"hop": 0}}, {"index": 1}, {"index": {}}]
    reading += [{"labels": [7]}, {"splits": [None]}]
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


def test_a_newer_format_is_refused(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    facts = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps(facts | {"format": FORMAT + 1}))
    with pytest.raises(UsageError, match="upgrade"):
        TokenStore(tmp_path / "store")


def test_stores_of_release_0_1_0_are_read_and_resumed(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    """Format 1 had the keys books and frame_math."""
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file)
    metadata = json.loads((store / "store.json").read_text())
    old = metadata | {"format": 1, "books": metadata["num_codebooks"], "frame_math": dict(metadata["frame_spec"])}
    for new, name in (("num_codebooks", "books"), ("decoder_delay", "overlap")):
        old["frame_math"][name] = old["frame_math"].pop(new)
    del old["num_codebooks"], old["frame_spec"]
    (store / "store.json").write_text(json.dumps(old))
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
        ((1, 2, 0), "rng is int: give numpy"),
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


def test_a_store_is_a_sequence(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    store = TokenStore(tmp_path / "store")
    ids = [clip.row.id for clip in store]
    assert len(ids) == len(store) == 6
    for cut in (slice(0, 2), slice(None), slice(-2, None), slice(None, None, -2), slice(4, 99), slice(3, 1)):
        assert [clip.row.id for clip in store[cut]] == ids[cut]
    assert torch.equal(store[0:2][1].codes, store[1].codes)
    for number in (-6, -1, np.int64(2), torch.tensor(-3)):
        assert store[number].row.id == store.row(number).id == ids[int(number)]
        assert torch.equal(store.part(number, 1, 1), store[number].codes[:, 1:2])


def test_bad_indices_raise_one_line(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    store = TokenStore(tmp_path / "store")
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
