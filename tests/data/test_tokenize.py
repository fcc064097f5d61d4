"""data/tokenize.py against the model on the same audio, with files that change and processes that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import soundfile
import torch

import codec.data.tokenize as tokenize_module
from codec.checkpoint import load_model, save_model
from codec.compression import compress
from codec.data.clips import Clip, clips, write_manifest
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
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
from codec.io.audio import read_audio, write_audio
from codec.io.level import Level
from codec.io.storage import locked_folder
from codec.nn import resample
from tests.helpers.loudness import Biquads
from tests.helpers.memory import peak_memory
from tests.helpers.tokens import contents, expected, many, noise
from tests.tiny import CONFIG, tiny_model


@pytest.mark.slow
@pytest.mark.parametrize("batch", [0.001, 1.0, 8.0])
def test_a_clip_has_the_codes_of_its_audio(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, batch: float
) -> None:
    monkeypatch.setitem(tokenize_module.BATCH_SECONDS, "cpu", batch)
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.already_encoded, report.failures) == (6, 0, ())
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


def test_manifest_fields_are_stored(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    rows = [
        {"path": "train/a/3.wav", "start": 1.5, "seconds": 8.4, "speaker": "eva", "label": "b", "language": "en"},
        {"path": "train/a/3.wav", "start": 2.0, "seconds": 0.25, "speaker": "ada", "transcript": "é !"},
        {"path": "train/a/3.wav", "start": 9.0, "label": "a", "language": "de"},
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
    assert store.classes == {"speaker": ("ada", "eva"), "label": ("a", "b"), "language": ("de", "en")}
    assert store.index["speaker"].tolist() == [1, 0, -1, -1]
    assert store.index["label"].tolist() == [1, -1, 0, -1]
    assert store.index["language"].tolist() == [1, -1, 0, -1]
    assert [store.row(clip).transcript for clip in range(3)] == [None, "é !", None]
    assert store.row(1).id == "train/a/3.wav@2"


def test_one_channel_of_a_call(tmp_path: Path, model_file: Path) -> None:
    audio = np.random.default_rng(0).normal(0, 0.1, (2, 4000)).astype(np.float32)
    write_audio(tmp_path / "call.wav", audio, 8000)
    rows = [{"path": "call.wav"}, {"path": "call.wav", "channel": 1}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tokenize(tmp_path / "list.jsonl", tmp_path / "store", model=model_file, channel=0)
    store, (samples, _) = TokenStore(tmp_path / "store"), read_audio(tmp_path / "call.wav")
    for channel in range(2):
        codes = load_model(model_file).encode(torch.from_numpy(samples[None, channel : channel + 1]))[0]
        assert torch.equal(store[channel].codes, codes)
    report = tokenize(tmp_path / "list.jsonl", tmp_path / "store", model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (1, 1, 1)
    store = TokenStore(tmp_path / "store")
    codes = load_model(model_file).encode(torch.from_numpy(samples.mean(axis=0))[None, None])[0]
    assert torch.equal(store[store.find("call.wav")].codes, codes)


def test_shards_are_cut_by_length_and_written_once(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = tokenize(corpus, tmp_path / "store", model=model_file, progress=lambda *done: calls.append(done))
    assert (report.shards, calls) == (3, [(1, 3), (2, 3), (3, 3)])
    whole = contents(tmp_path / "store")
    shards = [f"shard-0000{n}.{kind}" for n in range(3) for kind in ("codes", "jsonl")]
    assert list(whole) == ["index.bin", *shards, "store.json"]

    # as if killed: the second shard has codes but no lines yet, and a partial file remains
    (tmp_path / "store" / "shard-00001.jsonl").unlink()
    (tmp_path / "store" / ".codec-0.part").touch()
    (tmp_path / "store" / "store.json").write_text(
        json.dumps({key: value for key, value in json.loads(whole["store.json"]).items() if key != "index"})
    )
    with pytest.raises(UsageError, match="not complete"):
        TokenStore(tmp_path / "store")
    kept = (tmp_path / "store" / "shard-00000.codes").stat()
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.already_encoded) == (1, 5)
    assert contents(tmp_path / "store") == whole
    assert (tmp_path / "store" / "shard-00000.codes").stat().st_mtime_ns == kept.st_mtime_ns


def test_a_complete_store_is_not_written_again(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()}
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert (report.clips, report.already_encoded) == (0, 6)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").iterdir()} == before
    (tmp_path / "store" / "shard-00000.codes").write_bytes(b"")  # no longer complete
    assert tokenize(corpus, tmp_path / "store", model=model_file).clips > 0
    assert len(TokenStore(tmp_path / "store")) == 6


def test_a_store_has_one_writer(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    with (
        locked_folder(tmp_path / "store", "codec tokenize"),
        pytest.raises(ConfigError, match="another codec tokenize is running"),
    ):
        tokenize(corpus, tmp_path / "store", model=model_file)
    assert not (tmp_path / "store").exists()
    tokenize(corpus, tmp_path / "store", model=model_file)
    assert not (tmp_path / "store" / ".lock").exists()


def test_a_corpus_may_move(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    corpus.rename(tmp_path / "elsewhere")
    assert tokenize(tmp_path / "elsewhere", tmp_path / "store", model=model_file).already_encoded == 6


@pytest.mark.slow
def test_failures_are_reported_and_tried_again(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tokenize_module.BATCH_SECONDS, "cpu", 1.0)
    tokenize(corpus, tmp_path / "good", model=model_file)
    whole = (corpus / "train/a/3.wav").read_bytes()
    samples = np.full(80_000, 0.1)
    samples[-1] = np.nan  # found after most of it is encoded
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
    assert (report.clips, report.already_encoded, len(report.failures)) == (1, 4, 1)
    (corpus / "train/a/3.wav").write_bytes(whole)
    assert tokenize(corpus, tmp_path / "store", model=model_file).failures == ()
    clips = [TokenStore(tmp_path / name) for name in ("store", "good")]
    assert all(torch.equal(one.codes, two.codes) for one, two in zip(*clips, strict=True))


def check_codes(folder: Path, corpus: Path, model_file: Path) -> TokenStore:
    """A store that has the codes of every recording of a corpus, once; returns it."""
    store = TokenStore(folder, load_model(model_file))
    assert sorted(clip.row.id for clip in store) == [clip.id for clip in clips(corpus)]
    for clip in store:
        assert torch.equal(clip.codes, expected(model_file, corpus / clip.row.id)), clip.row.id
        assert clip.row.size == (corpus / clip.row.id).stat().st_size
    return store


@pytest.mark.slow
def test_new_clips_are_added_and_missing_ones_marked(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    folder = tmp_path / "store"
    tokenize(corpus, folder, model=model_file)
    before = {path.name: path.read_bytes() for path in folder.glob("*.codes")}
    noise(corpus / "train/a/15.wav", time=700)
    noise(corpus / "train/0.wav", time=900)  # first in the corpus
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed, report.shards) == (2, 6, 0, 4)
    store = check_codes(folder, corpus, model_file)
    assert [clip.row.id for clip in store][6:] == ["train/0.wav", "train/a/15.wav"]

    kept = (corpus / "train/a/4.wav").read_bytes()
    for name in ("train/a/4.wav", "train/a/15.wav"):
        (corpus / name).unlink()
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (0, 6, 2)
    assert len(check_codes(folder, corpus, model_file).crops(9, 2, np.random.default_rng(0)).codes) == 9
    assert {name: (folder / name).read_bytes() for name in before} == before  # their codes stay where they are
    assert tokenize(corpus, folder, model=model_file).removed == 0

    (corpus / "train/a/4.wav").write_bytes(kept)
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded) == (0, 7)  # it has its codes again
    check_codes(folder, corpus, model_file)


@pytest.mark.slow
def test_a_changed_file_is_encoded_again(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    folder = tmp_path / "store"
    (corpus / "train/a/1.wav").write_text("no audio")
    tokenize(corpus, folder, model=model_file)
    noise(corpus / "train/a/1.wav", time=79)  # repaired
    before = (corpus / "valid/b/5.wav").read_bytes()
    noise(corpus / "valid/b/5.wav", time=82)
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed, report.failures) == (2, 4, 1, ())
    check_codes(folder, corpus, model_file)
    (corpus / "valid/b/5.wav").write_bytes(before)
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (0, 6, 1)
    check_codes(folder, corpus, model_file)


@pytest.mark.parametrize("count", [-1, 10**30, 1.5, "6", None])
def test_numbers_of_clips_that_were_altered(tmp_path: Path, corpus: Path, model_file: Path, count: Any) -> None:
    tokenize(corpus, tmp_path / "store", model=model_file)
    stored = json.loads((tmp_path / "store/store.json").read_text())
    stored["shards"][0] = count
    (tmp_path / "store/store.json").write_text(json.dumps(stored))
    with pytest.raises(DamagedFile, match="its shards are not those of its clips"):
        tokenize(corpus, tmp_path / "store", model=model_file)


def test_a_file_of_the_same_size_with_other_samples_is_encoded_again(
    tmp_path: Path, corpus: Path, model_file: Path
) -> None:
    folder, path = tmp_path / "store", corpus / "valid/b/5.wav"
    tokenize(corpus, folder, model=model_file)
    before = path.read_bytes()
    samples, rate = soundfile.read(path)
    soundfile.write(path, samples[::-1], rate, subtype=soundfile.info(path).subtype)
    assert path.stat().st_size == len(before)
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (1, 5, 1)
    check_codes(folder, corpus, model_file)
    path.write_bytes(before)
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (0, 6, 1)
    check_codes(folder, corpus, model_file)


def test_other_times_of_the_same_files_cost_nothing(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    """As copying or unpacking a corpus leaves them."""
    folder = tmp_path / "store"
    tokenize(corpus, folder, model=model_file)
    for path in corpus.rglob("*.*"):
        os.utime(path, (1, 1))
    for _ in range(2):
        report = tokenize(corpus, folder, model=model_file)
        assert (report.clips, report.already_encoded, report.removed) == (0, 6, 0)
    assert {clip.row.modified for clip in TokenStore(folder)} == {10**9}


@pytest.mark.slow
def test_an_interrupted_addition_is_completed(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a further addition before it is resumed."""
    folder = tmp_path / "store"
    tokenize(corpus, folder, model=model_file)
    noise(corpus / "train/a/00.wav", time=700)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenize_module, "_encode_shard", killed)
        with pytest.raises(KeyboardInterrupt):
            tokenize(corpus, folder, model=model_file)
    assert (folder / "clips.jsonl").exists()
    with pytest.raises(UsageError, match="is not complete"):
        TokenStore(folder)
    noise(corpus / "train/a/000.wav", time=800)
    (corpus / "train/a/2.flac").unlink()
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (2, 5, 1)
    check_codes(folder, corpus, model_file)
    assert not (folder / "clips.jsonl").exists()


@pytest.mark.slow
def test_clips_of_a_shard_are_removed_before_it_was_written(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    encode = tokenize_module._encode_shard
    written: list[object] = []

    def killed_at_the_second(*arguments: object) -> object:
        if written:
            raise KeyboardInterrupt
        written.append(arguments)
        return encode(*arguments)  # type: ignore[arg-type]

    def interrupt() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(tokenize_module, "_encode_shard", killed_at_the_second)
            with pytest.raises(KeyboardInterrupt):
                tokenize(corpus, folder, model=model_file)

    interrupt()
    planned = json.loads((folder / "store.json").read_text())["shards"]
    second = [json.loads(line)["id"] for line in (folder / "clips.jsonl").read_text().splitlines()]
    for name in second[planned[0] : planned[0] + planned[1]]:
        (corpus / name).unlink()
    interrupt()
    assert 0 in json.loads((folder / "store.json").read_text())["shards"]
    report = tokenize(corpus, folder, model=model_file)
    assert (report.clips + report.already_encoded, report.removed) == (6 - planned[1], 0)
    check_codes(folder, corpus, model_file)


def test_metadata_of_clips_may_change(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    found = list(clips(corpus))
    for speaker in ("anna", "ben"):
        write_manifest(corpus / "list.jsonl", [replace(clip, speaker=speaker) for clip in found])
        report = tokenize(corpus / "list.jsonl", tmp_path / "store", model=model_file)
        assert (report.clips, report.removed) == ((6, 0) if speaker == "anna" else (0, 0))
        store = TokenStore(tmp_path / "store")
        assert store.classes["speaker"] == (speaker,)
        assert {clip.row.speaker for clip in store} == {speaker}
    write_manifest(corpus / "list.jsonl", [replace(clip, seconds=0.005) for clip in found[3:4]] + found[:2])
    report = tokenize(corpus / "list.jsonl", tmp_path / "store", model=model_file)
    assert (report.clips, report.already_encoded, report.removed) == (1, 2, 4)
    store = TokenStore(tmp_path / "store")
    assert store[store.find(found[3].id)].row.samples == 40


def test_two_clips_with_one_id_are_refused(tmp_path: Path, corpus: Path, model_file: Path) -> None:
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
        assert tokenize(source, store, model=model_file).already_encoded == 2


def test_an_unexpected_exception_fails_its_shard(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = tokenize_module._blocks

    def faulty(clip: Clip, *arguments: Any, **options: Any) -> object:
        return 1 / 0 if clip.id == "valid/b/5.wav" else blocks(clip, *arguments, **options)

    monkeypatch.setattr(tokenize_module, "_blocks", faulty)
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert [(failure.id, failure.error) for failure in report.failures] == [
        ("shard-00002.codes", "ZeroDivisionError: division by zero")
    ]
    with pytest.raises(UsageError, match="not complete"):
        TokenStore(tmp_path / "store")
    monkeypatch.undo()
    monkeypatch.setattr(tokenize_module, "SHARD_SECONDS", (1.0, 3600.0))
    assert tokenize(corpus, tmp_path / "store", model=model_file).already_encoded == 5


@pytest.mark.slow
def test_mismatches_are_refused(tmp_path: Path, corpus: Path, model_file: Path) -> None:
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
    other = noise(tmp_path / "other/a.wav").parent
    with pytest.raises(StorageError, match="is of another corpus, none of its clips is in this one"):
        tokenize(other, store, model=model_file, num_codebooks=2)
    with pytest.raises(InputNotFound):
        tokenize(tmp_path / "nothing", store, model=model_file, force=True)
    with pytest.raises(InputNotFound):
        tokenize(tmp_path / "nothing", tmp_path / "new" / "store", model=model_file)
    assert not (tmp_path / "new").exists()
    assert contents(store) == before
    assert tokenize(corpus, store, model=model_file, force=True).clips == 6
    assert TokenStore(store).num_codebooks == 3
    with pytest.raises(StorageError, match="other files"):
        tokenize(corpus, corpus, model=model_file)
    with pytest.raises(StorageError, match="cannot be written"):
        tokenize(corpus, corpus / "train/a/0.wav", model=model_file)
    with pytest.raises(InputNotFound, match="is not a token store"):
        TokenStore(corpus)


@pytest.mark.slow
@pytest.mark.parametrize("level", [None, -20.0])
def test_memory_is_constant(tmp_path: Path, model_file: Path, level: float | None) -> None:
    peaks = []
    stores = (tmp_path / f"store{number}" for number in range(3))
    for seconds, times in ((20, 1), (200, 2)):
        folder = tmp_path / str(seconds)
        noise(folder / "a.wav", time=seconds * 8000)
        work = partial(tokenize, folder, model=model_file, level_db=level)
        peaks.append(peak_memory(lambda: work(next(stores)), times=times))  # noqa: B023
    assert peaks[1] < 1.2 * peaks[0]


# one level for all recordings


LEVELS = [Level(-20.0), Level(-23.0, "LUFS")]


@pytest.fixture
def loudness_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filters of torchaudio, or a stand-in where it cannot be imported."""
    if resample.torchaudio_functional() is None:
        monkeypatch.setattr(resample, "torchaudio_functional", lambda: Biquads)


@pytest.mark.slow
@pytest.mark.usefixtures("loudness_filters")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("batch", [0.001, 1.0, 8.0])
def test_clips_are_scaled_to_a_level(
    tmp_path: Path, corpus: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, batch: float, level: Level
) -> None:
    """Short clips in batches, long ones in blocks."""
    monkeypatch.setitem(tokenize_module.BATCH_SECONDS, "cpu", batch)
    soundfile.write(corpus / "train" / "a" / "6.wav", np.zeros(900), 8000)
    tokenize(corpus, tmp_path / "store", model=model_file, **level.fields)
    store = TokenStore(tmp_path / "store", load_model(model_file))
    assert (store.level, len(store)) == (level, 7)
    seen: list[float] = []
    for clip in clips(corpus):
        audio, rate = read_audio(clip.path, rate=CONFIG.sample_rate, mono=True)
        gain = level.gain([audio], rate=rate)
        assert tokenize_module.clip_gain(clip, level, rate=rate) == gain
        assert tokenize_module.clip_gain(clip, None, rate=rate) == 1
        codes = load_model(model_file).encode(torch.from_numpy(audio * gain)[None])[0]
        assert torch.equal(store[store.find(clip.id)].codes, codes)
        if audio.shape[1] > 1000 and level.unit == "dBFS":  # noise, all of it loud
            seen.append(float(20 * np.log10(np.sqrt(np.square(audio * gain, dtype=np.float64).mean()))))
    assert seen == pytest.approx([-20.0] * len(seen), abs=0.05)
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


@pytest.mark.slow
@pytest.mark.usefixtures("loudness_filters")
def test_a_store_keeps_its_level(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    tokenize(corpus, tmp_path / "plain", model=model_file)
    assert not {"level_db", "loudness"} & set(json.loads((tmp_path / "plain" / "store.json").read_text()))
    assert TokenStore(tmp_path / "plain").level is None
    with pytest.raises(StorageError, match=r"has recordings at their own levels, not at -20 dBFS: name another"):
        tokenize(corpus, tmp_path / "plain", model=model_file, level_db=-20)

    tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    whole = contents(tmp_path / "store")
    for level, says in ((None, "at their own levels"), (-23.5, r"at -23\.5 dBFS")):
        with pytest.raises(StorageError, match=f"has recordings at -20 dBFS, not {says}"):
            tokenize(corpus, tmp_path / "store", model=model_file, level_db=level)
    with pytest.raises(StorageError, match="has recordings at -20 dBFS, not at -20 LUFS"):
        tokenize(corpus, tmp_path / "store", model=model_file, loudness=-20)
    assert contents(tmp_path / "store") == whole
    assert tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20.0).already_encoded == 6
    assert contents(tmp_path / "store") == whole

    (tmp_path / "store" / "shard-00001.jsonl").unlink()  # as if killed before this shard was complete
    unfinished = {key: value for key, value in json.loads(whole["store.json"]).items() if key != "index"}
    (tmp_path / "store" / "store.json").write_text(json.dumps(unfinished))
    with pytest.raises(StorageError, match="not at their own levels"):
        tokenize(corpus, tmp_path / "store", model=model_file)
    report = tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    assert (report.clips, report.already_encoded) == (1, 5)
    assert contents(tmp_path / "store") == whole

    tokenize(corpus, tmp_path / "store", model=model_file, force=True)
    assert contents(tmp_path / "store") == contents(tmp_path / "plain")


@pytest.mark.parametrize("level", [-61.0, 1.0, float("nan")])
def test_levels_out_of_range_are_refused(tmp_path: Path, corpus: Path, model_file: Path, level: float) -> None:
    with pytest.raises(UsageError, match="give one from -60 to 0"):
        tokenize(corpus, tmp_path / "store", model=model_file, level_db=level)
    assert not (tmp_path / "store").exists()


def test_failures_while_measuring_the_level(tmp_path: Path, corpus: Path, model_file: Path) -> None:
    samples = np.full(80_000, 0.1)
    samples[-1] = np.nan  # found while it is measured
    soundfile.write(corpus / "train/a/3.wav", samples, 8000, subtype="FLOAT")
    report = tokenize(corpus, tmp_path / "store", model=model_file, level_db=-20)
    assert [(failure.id, "NaN" in failure.error) for failure in report.failures] == [("train/a/3.wav", True)]
    assert len(TokenStore(tmp_path / "store")) == 5


# several processes


def mapping() -> list[psutil.Process]:
    """The processes in which Ray works on tasks."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.name().startswith("ray::Map"):
                found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_two_processes_write_the_same_store(tmp_path: Path, model_file: Path) -> None:
    corpus = many(tmp_path / "corpus", 6)
    for number in range(2):  # in the first shard and in the last
        noise(corpus / f"{9 * number}-low.wav", time=8000, rate=2000)
    one = tokenize(corpus, tmp_path / "one", model=model_file)
    two = tokenize(corpus, tmp_path / "two", model=model_file, jobs=2)
    assert (one.shards, one.failures, one.notes) == (two.shards, two.failures, two.notes)
    assert two.notes == ("2 clips: 2 kHz, resampled to 8 kHz: nothing above 1 kHz",)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.nightly  # takes 15 s; test_parallel.py runs tasks on Ray, and repeats those of a killed process without it
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_writes_every_clip_once_when_a_worker_is_killed(tmp_path: Path, model_file: Path, ray_cluster: str) -> None:
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
    assert two.clips + two.already_encoded == one.clips
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.nightly  # starts an interpreter and Ray's processes twice; without Ray, other tests stop and resume
@pytest.mark.filterwarnings("ignore")
def test_resumes_after_the_whole_command_was_killed_on_ray(tmp_path: Path, model_file: Path, ray_cluster: str) -> None:
    corpus = many(tmp_path / "corpus", 40)
    code = """
import sys
from codec.data import tokenize
tokenize.SHARD_SECONDS = (1.0, 3600.0)
tokenize.tokenize(sys.argv[1], sys.argv[2], model=sys.argv[3], engine="ray")
"""
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path / "store"), str(model_file)]
    home = Path(__file__).parents[2]  # where Ray's processes find `codec`
    environment = os.environ | {"RAY_ADDRESS": ray_cluster}
    with subprocess.Popen(command, cwd=home, env=environment, stderr=subprocess.DEVNULL) as process:
        while not list(tmp_path.glob("store/shard-*.jsonl")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    while mapping():  # Ray ends the workers of a command that is gone
        time.sleep(0.05)
    written = len(list(tmp_path.glob("store/shard-*.jsonl")))
    with pytest.raises(CodecError):
        TokenStore(tmp_path / "store")
    report = tokenize(corpus, tmp_path / "store", model=model_file)
    assert 0 < written < report.shards
    assert report.already_encoded > 0
    tokenize(corpus, tmp_path / "one", model=model_file)
    assert contents(tmp_path / "one") == contents(tmp_path / "store")


@pytest.mark.filterwarnings("error")
def test_peaks_beyond_full_scale_are_named(tmp_path: Path, model_file: Path) -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, 4000)
    (tmp_path / "data").mkdir()
    for name, peak in (("fine", 1), ("hot", 3), ("integers", 30_000)):
        soundfile.write(tmp_path / f"data/{name}.wav", peak * noise, 8000, subtype="FLOAT")
    hot, integers = tokenize(tmp_path / "data", tmp_path / "store", model=model_file).notes
    assert "hot.wav peaks at +9.5 dBFS, and decoded audio is clipped at +0.4 dBFS" in hot
    assert "integers.wav peaks at 299" in integers
    assert "as if it held integers" in integers
    assert tokenize(tmp_path / "data", tmp_path / "scaled", model=model_file, level_db=-20).notes == (integers,)


def test_new_clips_far_below_the_rate_of_the_model_are_counted(tmp_path: Path, model_file: Path) -> None:
    data, store = tmp_path / "data", tmp_path / "store"
    noise(data / "long.wav", time=30_000, rate=3000)  # longer than a batch
    noise(data / "short.wav", time=300, rate=3000)
    noise(data / "half.wav", time=400, rate=4000)
    soundfile.write(data / "bad.wav", np.full(300, np.nan), 3000, subtype="FLOAT")
    report = tokenize(data, store, model=model_file)
    assert (report.clips, len(report.failures)) == (3, 1)
    assert report.shards > 1
    assert report.notes == ("2 clips: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz",)
    new = noise(data / "new.wav", time=301, rate=3000)
    (data / "bad.wav").unlink()
    (note,) = tokenize(data, store, model=model_file).notes
    assert note == f"{new}: 3 kHz, resampled to 8 kHz: nothing above 1.5 kHz"
    assert tokenize(data, store, model=model_file).notes == ()


@pytest.mark.parametrize("kept", [0, 1, 100])
def test_channels_of_opposite_phase_are_not_averaged(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(tokenize_module, "KEPT_BLOCKS", kept)
    monkeypatch.setattr(tokenize_module, "BLOCK_SECONDS", 0.2)
    left = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)
    for name, channels in (("good", [left, 0.5 * left]), ("anti", [0.2 * left, -0.2 * left]), ("zero", [0 * left] * 2)):
        (tmp_path / "data").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"data/{name}.wav", np.stack(channels, axis=1), 8000, subtype="FLOAT")
    report = tokenize(tmp_path / "data", tmp_path / "store", model=model_file)
    cancels, silent = report.notes
    assert "anti.wav: its channels cancel in their average (opposite phase), so channel 1 of 2 is used" in cancels
    assert silent.endswith("zero.wav is silence")
    store, model = TokenStore(tmp_path / "store"), load_model(model_file)
    for name, audio in (("good.wav", 0.75 * left), ("anti.wav", 0.2 * left)):
        codes = model.encode(torch.from_numpy(audio.astype(np.float32))[None, None])[0]
        assert torch.equal(store[store.find(name)].codes, codes)
