"""Token stores against the model on the same audio, and against everything that can happen to files and processes."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch
from torch import Tensor

from codec.checkpoint import load_model, save_model
from codec.compression import compress
from codec.data import token_store as tokens
from codec.data.clips import Clip, clips, write_manifest
from codec.data.token_store import TokenStore, tokenize
from codec.errors import (
    CodecError,
    ConfigError,
    DamagedFile,
    InputNotFound,
    StorageError,
    UsageError,
    WeightsMismatch,
)
from codec.io import bitstream
from codec.io.audio import read_audio
from codec.io.level import gain_to
from codec.io.storage import locked_folder
from codec.models.causal import CausalCodec, CausalConfig
from tests.tiny import CONFIG, tiny_model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_model(), training={})
    return path


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "SHARD_SECONDS", (1.0, 3600.0))


def noise(path: Path, *, time: int = 4000, rate: int = 8000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(time).normal(0, 0.1, (time, channels))
    soundfile.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Short and long, of several rates, in two splits; the names are in the order of the walk."""
    folder = tmp_path / "corpus"
    noise(folder / "train" / "a" / "0.wav", time=1)
    noise(folder / "train" / "a" / "1.wav", time=79)
    noise(folder / "train" / "a" / "2.flac", time=9001, rate=44100)
    noise(folder / "train" / "a" / "3.wav", time=80_000)  # longer than a batch
    noise(folder / "train" / "a" / "4.wav", time=5000, rate=16000, channels=2)
    noise(folder / "valid" / "b" / "5.wav", time=81)
    return folder


def expected(model_file: Path, path: Path) -> Tensor:
    audio, _ = read_audio(path, rate=CONFIG.sample_rate, mono=True)
    return load_model(model_file).encode(torch.from_numpy(audio)[None])[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("batch", [0.001, 1.0, 8.0])
def test_a_clip_has_the_codes_of_its_audio(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, batch: float
) -> None:
    monkeypatch.setitem(tokens.BATCH_SECONDS, "cpu", batch)
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.there, report.failures) == (6, 0, ())
    assert report.seconds == pytest.approx((1 + 79 + 1633 + 80_000 + 2500 + 81) / 8000)
    store = TokenStore(tmp_path / "store", load_model(model_file))
    assert (len(store), store.num_codebooks, store.splits) == (6, 3, ("train", "valid"))
    names = ["train/a/0.wav", "train/a/1.wav", "train/a/2.flac", "train/a/3.wav", "train/a/4.wav", "valid/b/5.wav"]
    assert [clip.row.id for clip in store] == names
    assert [clip.row.samples for clip in store] == [1, 79, 1633, 80_000, 2500, 81]
    for name in names:
        codes, row, start = store[store.find(name)]
        assert (codes.dtype, start) == (torch.int64, 0)
        assert torch.equal(codes, expected(model_file, corpus / name))
        assert (row.set, row.split) == (name[6], name[:5])


def test_a_clip_has_the_codes_of_its_compressed_file(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file, num_codebooks=2)
    compress(corpus / "train/a/3.wav", tmp_path / "3.codec", model=model_file, num_codebooks=2)
    with bitstream.open_reader(tmp_path / "3.codec") as reader:
        codes = np.concatenate(list(reader.packets()), axis=2)[0]
    assert torch.equal(TokenStore(tmp_path / "store")[3].codes, torch.from_numpy(codes))


def test_what_a_manifest_tells(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    rows = [
        {"path": "train/a/3.wav", "start": 1.5, "seconds": 8.4, "speaker": "eva", "label": "b"},
        {"path": "train/a/3.wav", "start": 2.0, "seconds": 0.25, "speaker": "ada", "transcript": "é !"},
        {"path": "train/a/3.wav", "start": 9.0, "label": "a"},
        {"path": "train/a/3.wav", "start": 9.5, "seconds": 0.51},  # as rounded lengths are
        {"path": "train/a/3.wav", "start": 9.6, "seconds": 0.7},
    ]
    (corpus / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = tokenize(corpus / "list.jsonl", tmp_path / "store", model=model_file)
    assert [failure.id for failure in report.failures] == ["train/a/3.wav@9.6"]
    store = TokenStore(tmp_path / "store")
    audio, _ = read_audio(corpus / "train/a/3.wav")
    for clip, (first, last) in enumerate([(12_000, 79_200), (16_000, 18_000), (72_000, 80_000), (76_000, 80_000)]):
        codes = load_model(model_file).encode(torch.from_numpy(audio[None, :, first:last]))[0]
        assert torch.equal(store[clip].codes, codes)
    assert (store.speakers, store.labels) == (("ada", "eva"), ("a", "b"))
    assert store.index["speaker"].tolist() == [1, 0, -1, -1]
    assert store.index["label"].tolist() == [1, -1, 0, -1]
    assert [store.row(clip).transcript for clip in range(3)] == [None, "é !", None]
    assert store.row(1).id == "train/a/3.wav@2"


def test_shards_are_cut_by_length_and_made_once(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    news: list[tuple[int, int]] = []
    report = tokenize(corpus, tmp_path / "store", model=model_file, progress=lambda *done: news.append(done))
    assert (report.shards, news) == (3, [(1, 3), (2, 3), (3, 3)])
    whole = contents(tmp_path / "store")
    shards = [f"shard-0000{n}.{kind}" for n in range(3) for kind in ("codes", "jsonl")]
    assert list(whole) == ["index.bin", *shards, "store.json"]

    # killed: the second shard has codes, but no lines yet, and there are remains of the process
    (tmp_path / "store" / "shard-00001.jsonl").unlink()
    (tmp_path / "store" / ".codec-0.part").touch()
    (tmp_path / "store" / "store.json").write_text(
        json.dumps({key: value for key, value in json.loads(whole["store.json"]).items() if key != "index"})
    )
    with pytest.raises(UsageError, match="not finished"):
        TokenStore(tmp_path / "store")
    kept = (tmp_path / "store" / "shard-00000.codes").stat()
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.there) == (1, 5)
    assert contents(tmp_path / "store") == whole
    assert (tmp_path / "store" / "shard-00000.codes").stat().st_mtime_ns == kept.st_mtime_ns


def test_a_finished_store_stays_finished_when_the_command_is_given_again(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.there) == (0, 6)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before
    (tmp_path / "store" / "shard-00000.codes").write_bytes(b"")  # which is not whole, though it was
    assert tokenize(corpus, tmp_path / "store", model=model_file).clips > 0
    assert len(TokenStore(tmp_path / "store")) == 6


def test_a_store_is_made_by_one_command_at_a_time(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    with (
        locked_folder(tmp_path / "store", "codec tokenize"),
        pytest.raises(ConfigError, match="another codec tokenize is at work"),
    ):
        tokenize(corpus, tmp_path / "store", model=model_file)
    assert not (tmp_path / "store").exists()
    tokenize(corpus, tmp_path / "store", model=model_file)
    assert not (tmp_path / "store" / ".lock").exists()


def test_a_moved_corpus_is_the_same(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    corpus.rename(tmp_path / "elsewhere")
    assert tokenize(tmp_path / "elsewhere", tmp_path / "store", model=model_file).there == 6


def test_failures_are_told_and_tried_again(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tokens.BATCH_SECONDS, "cpu", 1.0)
    tokenize(corpus, tmp_path / "good", model=model_file)
    whole = (corpus / "train/a/3.wav").read_bytes()
    samples = np.full(80_000, 0.1)
    samples[-1] = np.nan  # found when most of it is encoded
    soundfile.write(corpus / "train/a/3.wav", samples, 8000, subtype="FLOAT")
    tiny = (corpus / "train/a/1.wav").read_bytes()
    (corpus / "train/a/1.wav").write_bytes(tiny[:44])
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert report.clips == 4
    assert [failure.id for failure in report.failures] == ["train/a/1.wav", "train/a/3.wav"]
    assert "NaN" in report.failures[1].error
    store = TokenStore(tmp_path / "store")
    assert len(store) == 4
    for clip in store:
        assert torch.equal(clip.codes, expected(model_file, corpus / clip.row.id))

    (corpus / "train/a/1.wav").write_bytes(tiny + bytes(100_000))  # shards stay as they were cut
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.there, len(report.failures)) == (1, 4, 1)
    (corpus / "train/a/3.wav").write_bytes(whole)
    assert tokenize(corpus, tmp_path / "store", model=model_file).failures == ()
    clips = [TokenStore(tmp_path / name) for name in ("store", "good")]
    assert all(torch.equal(one.codes, two.codes) for one, two in zip(*clips, strict=True))


def test_files_that_were_encoded_may_not_change(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    (corpus / "train/a/1.wav").write_text("no audio")
    tokenize(corpus, tmp_path / "store", model=model_file)
    before = contents(tmp_path / "store")
    assert TokenStore(tmp_path / "store").row(0).size == (corpus / "train/a/0.wav").stat().st_size
    noise(corpus / "train/a/1.wav", time=79)  # mended
    noise(corpus / "valid/b/5.wav", time=82)
    with pytest.raises(StorageError, match=r"another .*valid/b/5\.wav, or it has changed since: .*--force"):
        tokenize(corpus, tmp_path / "store", model=model_file)
    assert contents(tmp_path / "store") == before
    noise(corpus / "valid/b/5.wav", time=81)
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.there, report.failures) == (1, 5, ())


def test_an_id_stands_for_one_clip(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    rows = [{"path": "valid/b/5.wav"}, {"path": "train/a/1.wav"}, {"path": "valid//b/5.wav"}]
    (corpus / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r"list\.jsonl has two clips valid/b/5\.wav: "):
        tokenize(corpus / "list.jsonl", tmp_path / "new" / "store", model=model_file)
    assert not (tmp_path / "new").exists()


def test_names_that_are_not_utf8(tmp_path: Path, model_file: Path) -> None:
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        shutil.copy(noise(tmp_path / "corpus" / "b\nc.wav"), tmp_path / "corpus" / name)
    except OSError:
        pytest.skip("this file system has no such names")
    write_manifest(tmp_path / "corpus" / "list.jsonl", clips(tmp_path / "corpus"))
    for source in (tmp_path / "corpus", tmp_path / "corpus" / "list.jsonl"):
        store = tmp_path / f"{source.stem}-store"
        assert tokenize(source, store, model=model_file).failures == ()
        assert TokenStore(store).row(TokenStore(store).find(name)).id == name
        assert tokenize(source, store, model=model_file).there == 2


def test_a_fault_of_ours_costs_its_shard(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = tokens._blocks

    def faulty(clip: Clip, rate: int) -> object:
        return 1 / 0 if clip.id == "valid/b/5.wav" else blocks(clip, rate)

    monkeypatch.setattr(tokens, "_blocks", faulty)
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert [(failure.id, failure.error) for failure in report.failures] == [
        ("shard-00002.codes", "ZeroDivisionError: division by zero")
    ]
    with pytest.raises(UsageError, match="not finished"):
        TokenStore(tmp_path / "store")
    monkeypatch.undo()
    monkeypatch.setattr(tokens, "SHARD_SECONDS", (1.0, 3600.0))
    assert tokenize(corpus, tmp_path / "store", model=model_file).there == 5


def test_what_does_not_belong_together(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file, num_codebooks=2)
    before = contents(store)
    save_model(tmp_path / "other.safetensors", tiny_model(1), training={})
    with pytest.raises(WeightsMismatch, match=r"made by tiny .*not by other .*--force"):
        tokenize(corpus, store, model=tmp_path / "other.safetensors", num_codebooks=2)
    with pytest.raises(StorageError, match="holds 2 codebooks, not 3"):
        tokenize(corpus, store, model=model_file)
    with pytest.raises(UsageError, match="1 to 3 codebooks, not 4"):
        tokenize(corpus, store, model=model_file, num_codebooks=4)
    with pytest.raises(WeightsMismatch, match="load the model that made it"):
        TokenStore(store, load_model(tmp_path / "other.safetensors"))
    noise(corpus / "train" / "a" / "6.wav")
    with pytest.raises(StorageError, match="another corpus"):
        tokenize(corpus, store, model=model_file, num_codebooks=2)
    with pytest.raises(InputNotFound):
        tokenize(tmp_path / "nothing", store, model=model_file, force=True)
    with pytest.raises(InputNotFound):
        tokenize(tmp_path / "nothing", tmp_path / "new" / "store", model=model_file)
    assert not (tmp_path / "new").exists()
    assert contents(store) == before
    assert tokenize(corpus, store, model=model_file, force=True).clips == 7
    assert TokenStore(store).num_codebooks == 3
    with pytest.raises(StorageError, match="other files"):
        tokenize(corpus, corpus, model=model_file)
    with pytest.raises(StorageError, match="cannot be written"):
        tokenize(corpus, corpus / "train/a/0.wav", model=model_file)
    with pytest.raises(InputNotFound, match="no token store"):
        TokenStore(corpus)


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
        if (name, data) == ("shard-00000.jsonl", whole[:-1]):  # the end line's own end, which only the making reads
            continue
        with pytest.raises(DamagedFile, match=name):
            list(TokenStore(tmp_path / "store"))
        if name.startswith("shard"):
            file.unlink(missing_ok=True)  # as the message says
        if name != "store.json":
            tokenize(corpus, tmp_path / "store", model=model_file)
            assert file.read_bytes() == whole


def test_facts_that_are_missing_or_wrong(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    store = tmp_path / "store"
    tokenize(corpus, store, model=model_file)
    facts = json.loads((store / "store.json").read_text())
    assert set(tokens.FACTS) | {"format", "family", "sizes", "index"} == set(facts)
    wrong = [{key: value for key, value in facts.items() if key != gone} for gone in ("format", *tokens.FACTS)]
    wrong += [facts | {key: None} for key in tokens.FACTS] + [facts | {"dtype": "float32"}]
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


def test_a_format_to_come(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    facts = json.loads((tmp_path / "store" / "store.json").read_text())
    (tmp_path / "store" / "store.json").write_text(json.dumps(facts | {"format": 2}))
    with pytest.raises(UsageError, match="upgrade"):
        TokenStore(tmp_path / "store")


def test_crops_are_uniform_over_all_places(tmp_path: Path, model_file: Path) -> None:
    for folder, lengths in {"train": (0.02, 0.05, 0.1), "valid": (0.04,)}.items():
        for number, seconds in enumerate(lengths):
            noise(tmp_path / "corpus" / folder / f"{number}.wav", time=round(seconds * 8000))
    tokenize(tmp_path / "corpus", tmp_path / "store", model=model_file)
    store = TokenStore(tmp_path / "store")
    assert store.index["frames"].tolist() == [3, 6, 11, 5]  # one more for the overlap
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
    with pytest.raises(UsageError, match="crops of 0"):
        store.crop(0, np.random.default_rng(0))
    with pytest.raises(InputNotFound, match="no clip x"):
        store.find("x")
    with pytest.raises(IndexError):
        store[4]


def test_crops_need_no_audio_and_other_processes_read_alike(tmp_path: Path, model_file: Path) -> None:
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


def test_bad_indices_are_told_in_one_line(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    store = TokenStore(tmp_path / "store")
    wrong: list[tuple[Any, str]] = [
        (6, r"^\S+store has 6 clips, counted from 0: there is no clip 6$"),
        (-7, "there is no clip -7"),
        ("train/a/0.wav", r"^'train/a/0.wav' is no clip's number: use an int or a slice, or store.find"),
        (1.0, "1.0 is no clip's number"),
        ([0, 1], r"\[0, 1\] is no clip's number"),
        (slice(0.5, 2), "its ends are whole numbers"),
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


@pytest.mark.parametrize("level", [None, -20.0])
def test_memory_does_not_grow_with_length(tmp_path: Path, model_file: Path, level: float | None) -> None:
    peaks = []
    for seconds in (20, 200):
        folder = tmp_path / str(seconds)
        noise(folder / "a.wav", time=seconds * 8000)
        tracemalloc.start()
        tokenize(folder, tmp_path / f"store{seconds}", model=model_file, level_db=level)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


# One level


@pytest.mark.parametrize("batch", [0.001, 1.0, 8.0])
def test_clips_are_brought_to_a_level(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, batch: float
) -> None:
    """Encoded at once or in blocks, long or short, alone or beside others."""
    monkeypatch.setitem(tokens.BATCH_SECONDS, "cpu", batch)
    soundfile.write(corpus / "train" / "a" / "6.wav", np.zeros(900), 8000)
    tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    store = TokenStore(tmp_path / "store", load_model(model_file))
    assert (store.level_db, len(store)) == (-20.0, 7)
    seen: list[float] = []
    for clip in clips(corpus):
        audio, rate = read_audio(clip.path, rate=CONFIG.sample_rate, mono=True)
        gain = gain_to(audio, -20, rate=rate)
        assert tokens.clip_gain(clip, -20, rate=rate) == gain
        assert tokens.clip_gain(clip, None, rate=rate) == 1
        codes = load_model(model_file).encode(torch.from_numpy(audio * gain)[None])[0]
        assert torch.equal(store[store.find(clip.id)].codes, codes)
        if audio.shape[1] > 1000:  # noise, all of it loud
            seen.append(float(20 * np.log10(np.sqrt(np.square(audio * gain, dtype=np.float64).mean()))))
    assert seen == pytest.approx([-20.0] * 3, abs=0.05)
    other = TokenStore(tmp_path / "store")[3].codes
    assert not torch.equal(other, expected(model_file, corpus / "train/a/3.wav"))


def test_the_level_of_a_part_of_a_file_is_its_own(tmp_path: Path, model_file: Path) -> None:
    loud, quiet = (part * np.random.default_rng(0).normal(0, 1, 8000) for part in (0.3, 0.003))
    soundfile.write(tmp_path / "a.wav", np.concatenate([loud, quiet]), 8000, subtype="FLOAT")
    rows = [{"path": "a.wav", "seconds": 1}, {"path": "a.wav", "start": 1}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenize(tmp_path / "list.jsonl", tmp_path / "store", model=model_file, level_db=-30)
    first, second = (clip.codes for clip in TokenStore(tmp_path / "store"))
    assert (first == second).float().mean() > 0.99  # the same noise


def test_a_level_is_remembered(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "plain", model=model_file)
    assert "level_db" not in json.loads((tmp_path / "plain" / "store.json").read_text())  # as before there were levels
    assert TokenStore(tmp_path / "plain").level_db is None
    with pytest.raises(StorageError, match=r"has recordings at their own levels, not at -20\.0 dBFS: name another"):
        tokenize(corpus, tmp_path / "plain", model=model_file, level_db=-20)

    tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    whole = contents(tmp_path / "store")
    for level, says in ((None, "at their own levels"), (-23.5, r"at -23\.5 dBFS")):
        with pytest.raises(StorageError, match=f"has recordings at -20\\.0 dBFS, not {says}"):
            tokenize(corpus, tmp_path / "store", model=model_file, level_db=level)
    assert contents(tmp_path / "store") == whole
    assert tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20.0).there == 6
    assert contents(tmp_path / "store") == whole

    (tmp_path / "store" / "shard-00001.jsonl").unlink()  # killed before this shard was there
    unfinished = {key: value for key, value in json.loads(whole["store.json"]).items() if key != "index"}
    (tmp_path / "store" / "store.json").write_text(json.dumps(unfinished))
    with pytest.raises(StorageError, match="not at their own levels"):
        tokenize(corpus, tmp_path / "store", model=model_file)
    report = tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    assert (report.clips, report.there) == (1, 5)
    assert contents(tmp_path / "store") == whole

    tokenize(corpus, tmp_path / "store", model=model_file, force=True)
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


@pytest.mark.parametrize("level", [-61.0, 1.0, float("nan")])
def test_levels_out_of_range(tmp_path: Path, corpus: Path, model_file: Path, level: float) -> None:
    with pytest.raises(UsageError, match="give one from -60 to 0"):
        tokenize(corpus, tmp_path / "store", model=model_file, level_db=level)
    assert not (tmp_path / "store").exists()


def test_failures_at_a_level(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    samples = np.full(80_000, 0.1)
    samples[-1] = np.nan  # found while it is measured
    soundfile.write(corpus / "train/a/3.wav", samples, 8000, subtype="FLOAT")
    report = tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    assert [(failure.id, "NaN" in failure.error) for failure in report.failures] == [("train/a/3.wav", True)]
    assert len(TokenStore(tmp_path / "store")) == 5


# Many processes


def mapping() -> list[psutil.Process]:
    """The processes in which Ray works on tasks."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::Map"):
                found.append(process)
    return found


def many(folder: Path, count: int) -> Path:
    for number in range(count):
        noise(folder / f"{number:02}.wav", time=8000 * 4 + number)
    (folder / "bad.wav").write_text("no audio")
    return folder


def test_two_processes_make_what_one_makes(tmp_path: Path, model_file: Path) -> None:
    corpus = many(tmp_path / "corpus", 6)
    one = tokenize(corpus, tmp_path / "one", model=model_file)
    two = tokenize(corpus, tmp_path / "two", model=model_file, jobs=2)
    assert (one.shards, one.failures) == (two.shards, two.failures)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_loses_and_doubles_nothing_when_a_worker_is_killed(
    tmp_path: Path, model_file: Path, ray_cluster: str
) -> None:
    corpus = many(tmp_path / "corpus", 40)
    killed: list[psutil.Process] = []

    def kill_one(done: int, total: int) -> None:
        if not killed and done < total:
            killed.append(mapping()[0])
            killed[0].send_signal(signal.SIGKILL)

    one = tokenize(corpus, tmp_path / "one", model=model_file)
    two = tokenize(corpus, tmp_path / "two", model=model_file, jobs=2, engine="ray", progress=kill_one)
    assert (len(killed), two.failures) == (1, one.failures)
    assert len(one.failures) == 1
    assert two.clips + two.there == one.clips
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.filterwarnings("ignore")
def test_goes_on_after_the_whole_command_was_killed_on_ray(tmp_path: Path, model_file: Path, ray_cluster: str) -> None:
    corpus = many(tmp_path / "corpus", 40)
    code = """
import sys
from codec.data import token_store as tokens
tokens.SHARD_SECONDS = (1.0, 3600.0)
tokens.tokenize(sys.argv[1], sys.argv[2], model=sys.argv[3], engine="ray")
"""
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path / "store"), str(model_file)]
    home = Path(__file__).parents[1]  # Ray's processes find `codec` there
    environment = os.environ | {"RAY_ADDRESS": ray_cluster}
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("store/shard-*.jsonl")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    while mapping():  # Ray ends the workers of a command that is gone
        time.sleep(0.05)
    made = len(list(tmp_path.glob("store/shard-*.jsonl")))
    with pytest.raises(CodecError):
        TokenStore(tmp_path / "store")
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert 0 < made < report.shards
    assert report.there > 0
    tokenize(corpus, tmp_path / "one", model=model_file)
    assert contents(tmp_path / "one") == contents(tmp_path / "store")
