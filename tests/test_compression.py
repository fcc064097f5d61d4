"""compression.py: files and folders compressed and restored, against the model on the whole signal."""

import io
import os
import signal
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from codec import compression, pretrained
from codec.checkpoint import load_model, save_model
from codec.compression import Outcome, compress, compress_tree, decompress, decompress_tree
from codec.errors import (
    CodecError,
    ConfigError,
    DamagedFile,
    InputNotFound,
    StorageError,
    UnknownModel,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from codec.io import bitstream
from codec.io.audio import Block, Resampler
from codec.io.bitstream import Codes, Header, Writer
from codec.parallel import Engine
from tests.tiny import tiny_model

MODEL = tiny_model()


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, MODEL, training={})
    return path


def tones(path: Path, *, time: int = 12345, rate: int = 8000, channels: int = 1) -> Path:
    t = np.arange(time)[:, None] / rate
    hertz = 200 * (1 + np.arange(channels))
    noise = np.random.default_rng(time).normal(0, 0.05, (time, channels))
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * hertz * t) + noise, rate)
    return path


def samples(path: Path) -> Block:
    block: Block = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    return block


def codes_in(path: Path) -> tuple[Header, Codes]:
    with bitstream.open_reader(path) as reader:
        return reader.header, np.concatenate(list(reader.packets()), axis=2)


def resampled(audio: Block, from_rate: int, to_rate: int) -> Block:
    resampler = Resampler(from_rate, to_rate, len(audio))
    return np.concatenate([resampler.push(audio), resampler.flush()], axis=1)


def rewritten(path: Path, **changes: Any) -> Path:
    """Replace fields of the header and keep the codes."""
    header, codes = codes_in(path)
    with path.open("wb") as file:
        writer = Writer(file, replace(header, **changes))
        writer.write(codes)
        writer.close(time=changes.get("time", header.time))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("block_seconds", [0.03, 4.0])
@pytest.mark.parametrize(
    ("time", "rate", "channels"),
    [(1, 8000, 1), (79, 8000, 2), (80, 8000, 1), (12345, 8000, 5), (1, 44100, 1), (9001, 44100, 2), (777, 3001, 3)],
)
def test_a_file_holds_the_codes_and_the_audio_of_the_whole_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: int, rate: int, channels: int, block_seconds: float
) -> None:
    monkeypatch.setattr(compression, "BLOCK_SECONDS", block_seconds)
    source = tones(tmp_path / "a.wav", time=time, rate=rate, channels=channels)
    report = compress(source, tmp_path / "a.codec", model=MODEL)
    header, codes = codes_in(tmp_path / "a.codec")
    assert (header.time, header.source_rate, header.channels) == (time, rate, channels)
    assert (header.model, header.weights_hash) == ("tiny-0", MODEL.weights_hash)
    audio = torch.from_numpy(resampled(samples(source), rate, 8000))[:, None]
    expected = MODEL.encode(audio)
    assert codes.shape == tuple(expected.shape)
    if rate == 8000:  # resampling in blocks rounds differently, which may change a code
        np.testing.assert_array_equal(codes, expected)
    assert report.compressed_bytes == (tmp_path / "a.codec").stat().st_size
    assert report.seconds == time / rate
    assert report.bitrate == pytest.approx(report.compressed_bytes * 8 / 1000 / (time / rate))

    back = decompress(tmp_path / "a.codec", tmp_path / "back.wav", model=MODEL)
    info = soundfile.info(tmp_path / "back.wav")
    assert (info.frames, info.samplerate, info.channels) == (time, rate, channels)
    decoded = MODEL.decode(torch.from_numpy(codes.copy()), length=audio.shape[2])[:, 0].numpy()
    ours = samples(tmp_path / "back.wav")
    np.testing.assert_allclose(ours, resampled(decoded, 8000, rate)[:, :time].clip(-1, 1), atol=1e-4)
    assert (back.time, back.rate, back.channels) == (time, rate, channels)
    assert back.compressed_bytes == report.compressed_bytes


def test_another_rate_and_format(tmp_path: Path) -> None:
    compress(tones(tmp_path / "a.wav", time=4410, rate=44100, channels=2), tmp_path / "a.codec", model=MODEL)
    report = decompress(tmp_path / "a.codec", tmp_path / "a.flac", model=MODEL, rate=16000)
    info = soundfile.info(tmp_path / "a.flac")
    assert (info.frames, info.samplerate, info.channels, info.format) == (1600, 16000, 2, "FLAC")
    assert report.rate == 16000


def test_codebooks_by_number_and_by_bitrate(tmp_path: Path) -> None:
    source, rate = tones(tmp_path / "a.wav"), MODEL.frame_spec.bitrate(2)
    one = compress(source, tmp_path / "one.codec", model=MODEL, num_codebooks=1)
    two = compress(source, tmp_path / "two.codec", model=MODEL, bitrate=rate)
    assert (one.num_codebooks, two.num_codebooks) == (1, 2)
    all_codes = MODEL.encode(torch.from_numpy(samples(source))[:, None])
    np.testing.assert_array_equal(codes_in(tmp_path / "two.codec")[1], all_codes[:, :2])
    assert decompress(tmp_path / "one.codec", tmp_path / "one.wav", model=MODEL).num_codebooks == 1
    with pytest.raises(UsageError, match="one of the two"):
        compress(source, tmp_path / "x.codec", model=MODEL, num_codebooks=1, bitrate=rate)
    with pytest.raises(UsageError, match="4"):
        compress(source, tmp_path / "x.codec", model=MODEL, num_codebooks=4)
    with pytest.raises(ConfigError, match="lowest rate"):
        compress(source, tmp_path / "x.codec", model=MODEL, bitrate=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["compress", "decompress"])
def test_memory_is_constant(tmp_path: Path, way: str) -> None:
    peaks = []
    for seconds in (1, 20, 100):  # the first includes one-time loading
        source = tones(tmp_path / "a.wav", time=seconds * 8000, channels=2)
        work: Callable[[], object] = lambda: compress(source, tmp_path / "a.codec", model=MODEL, force=True)  # noqa: B023, E731
        if way == "decompress":
            work()
            work = lambda: decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL, force=True)  # noqa: E731
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] * 1.1


def test_standard_input_and_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tones(tmp_path / "a.wav", channels=2)
    compress(source, tmp_path / "a.codec", model=MODEL)
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)

    def piped(data: bytes, work: Callable[[], object]) -> bytes:
        out = io.BytesIO()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            patch.setattr(sys, "stdout", io.TextIOWrapper(out))
            work()
            return out.getvalue()

    compressed = piped(source.read_bytes(), lambda: compress("-", "-", model=MODEL))
    assert compressed == (tmp_path / "a.codec").read_bytes()
    restored = piped(compressed, lambda: decompress("-", "-", model=MODEL))
    assert restored == (tmp_path / "b.wav").read_bytes()


def test_an_existing_target_is_kept_without_force(tmp_path: Path) -> None:
    source, target = tones(tmp_path / "a.wav"), tmp_path / "a.codec"
    target.write_text("dear")
    with pytest.raises(StorageError, match="--force"):
        compress(source, target, model=MODEL)
    assert target.read_text() == "dear"
    compress(source, target, model=MODEL, force=True)
    with pytest.raises(StorageError, match="--force"):
        decompress(target, source, model=MODEL)
    decompress(target, source, model=MODEL, force=True)


def test_source_and_target_must_differ(tmp_path: Path) -> None:
    source = tones(tmp_path / "a.wav")
    before = source.read_bytes()
    link = tmp_path / "link.codec"
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(UsageError, match="the same file"):
            compress(source, target, model=MODEL, force=True)
    assert source.read_bytes() == before
    compressed = tmp_path / "b.wav"
    compress(source, compressed, model=MODEL)
    with pytest.raises(UsageError, match="the same file"):
        decompress(compressed, compressed, model=MODEL, force=True)


def test_an_output_folder_that_is_a_file(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "in" / "sub" / "a.wav")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_bytes(b"a file")
    (outcome,) = compress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert isinstance(outcome.error, StorageError)
    assert "sub cannot be written, it is a file" in str(outcome.error)


def test_a_failing_file_leaves_no_output(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.0] * 70000 + [np.nan]), 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "text.codec").write_text("no codes, but more than eight bytes")
    for name in ("nan.wav", "text.wav"):
        with pytest.raises(UnsupportedAudio, match=name):
            compress(tmp_path / name, tmp_path / "x.codec", model=MODEL)
    with pytest.raises(UnsupportedAudio, match=r"text\.codec"):
        decompress(tmp_path / "text.codec", tmp_path / "x.wav", model=MODEL)
    with pytest.raises(InputNotFound):
        compress(tmp_path / "missing.wav", tmp_path / "x.codec", model=MODEL)
    with pytest.raises(InputNotFound):
        decompress(tmp_path / "missing.codec", tmp_path / "x.wav", model=MODEL)
    assert {path.name for path in tmp_path.iterdir()} == {"nan.wav", "text.wav", "text.codec"}


@pytest.mark.parametrize("rate", [8000, 44100])
def test_intact_audio_before_damage_is_restored(tmp_path: Path, rate: int) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav", time=rate * 4, rate=rate, channels=2), target, model=MODEL)
    decompress(target, tmp_path / "whole.wav", model=MODEL)
    data = target.read_bytes()
    start = data.index(b"\xf5\xc3")
    assert data.count(b"\xf5\xc3", start) == 6  # 5 packets of codes, and the end packet
    packet = data.index(b"\xf5\xc3", start + 2) - start
    altered = bytearray(data)
    altered[start + 2 * packet + 30] ^= 1  # in the third second
    target.write_bytes(altered)
    with pytest.raises(DamagedFile, match=r"first 1\.990 s") as caught:
        decompress(target, tmp_path / "part.wav", model=MODEL)
    assert (caught.value.offset, caught.value.seconds_decoded) == (start + 2 * packet, 1.99)
    part, whole = samples(tmp_path / "part.wav"), samples(tmp_path / "whole.wav")
    assert part.shape == (2, round(1.99 * rate))
    # The resampler's filter reaches about 10 ms past the end of the part.
    same = part.shape[1] if rate == 8000 else part.shape[1] - rate // 50
    np.testing.assert_allclose(part[:, :same], whole[:, :same], atol=1e-4)


def test_damage_before_the_first_second_leaves_no_target(tmp_path: Path) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav"), target, model=MODEL)
    data = target.read_bytes()
    for cut in (0, 50, 120):
        target.write_bytes(data[:cut])
        with pytest.raises(DamagedFile):
            decompress(target, tmp_path / "b.wav", model=MODEL)
    assert {path.name for path in tmp_path.iterdir()} == {"a.wav", "a.codec"}


def test_other_weights_raise(tmp_path: Path) -> None:
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=MODEL)
    with pytest.raises(WeightsMismatch, match=r"tiny-0.*tiny-1.*--model"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=tiny_model(1))
    assert not (tmp_path / "b.wav").exists()


def test_weights_of_an_earlier_release_are_named(tmp_path: Path) -> None:
    old = tiny_model(1)
    old.weights_hash = next(hash_ for hash_, release in pretrained.EARLIER.items() if release == "0.1.0")
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=old)
    with pytest.raises(WeightsMismatch, match=r"release 0\.1\.0 of codec decodes it; or pass --model"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)


@pytest.mark.parametrize(
    "changes", [{"codebook_sizes": (32, 32, 32)}, {"hop": 40, "decoder_delay": 40, "time": 1}, {"family": "other"}]
)
def test_a_header_that_contradicts_its_model_is_damage(tmp_path: Path, changes: dict[str, Any]) -> None:
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=MODEL)
    rewritten(tmp_path / "a.codec", **changes)
    with pytest.raises(DamagedFile, match="contradicts"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)


def test_a_recording_without_samples_raises(tmp_path: Path) -> None:
    compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=MODEL)
    with pytest.raises(UnsupportedAudio, match="no samples"):
        decompress(rewritten(tmp_path / "a.codec", time=0), tmp_path / "b.wav", model=MODEL)


def test_a_model_that_was_never_saved_raises(tmp_path: Path) -> None:
    model = tiny_model()
    model.weights_hash = None
    with pytest.raises(UsageError, match="never saved"):
        compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=model)


def test_the_file_names_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_file: Path) -> None:
    target = tmp_path / "a.codec"
    compress(tones(tmp_path / "a.wav"), target, model=model_file)
    with pytest.raises(UnknownModel, match=r"tiny .*not shipped.*--model"):
        decompress(target, tmp_path / "b.wav")
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "tiny.safetensors").write_bytes(model_file.read_bytes())
    (tmp_path / "other.safetensors").write_bytes(model_file.read_bytes())
    monkeypatch.setattr(pretrained, "WEIGHTS", weights)
    decompress(target, tmp_path / "b.wav")
    decompress(target, tmp_path / "c.wav", model=model_file)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    for name in ("", "../other", str(tmp_path / "other"), str(model_file)):
        with pytest.raises(UnknownModel):
            decompress(rewritten(target, model=name), tmp_path / "d.wav")


def test_a_changed_model_file_is_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    hashes = []
    for seed in range(2):
        save_model(path, tiny_model(seed), training={})
        compress(tones(tmp_path / "a.wav"), tmp_path / "a.codec", model=path, force=True)
        assert codes_in(tmp_path / "a.codec")[0].weights_hash == load_model(path).weights_hash
        hashes.append(load_model(path).weights_hash)
    assert hashes[0] != hashes[1]


def states(outcomes: list[Outcome], folder: Path) -> dict[str, str]:
    """Source and target of each file with its result."""
    return {
        f"{outcome.source.relative_to(folder)} > {outcome.target.name}": type(outcome.error).__name__
        if outcome.error
        else "done"
        if outcome.report
        else "skipped"
        for outcome in outcomes
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    tones(folder / "one.wav", time=500)
    tones(folder / "deep" / "er" / "two.FLAC", time=600, channels=2)
    tones(folder / "deep" / "same.flac", time=700)
    tones(folder / "deep" / "same.wav", time=800)
    tones(folder / ".hidden.wav")
    tones(folder / ".folder" / "x.wav")
    (folder / "bad.wav").write_text("no audio")
    (folder / "notes.txt").write_text("no audio")
    (folder / "folder.wav").mkdir()
    return folder


TREE = {
    "bad.wav > bad.codec": "UnsupportedAudio",
    "deep/er/two.FLAC > two.codec": "done",
    "deep/same.flac > same.codec": "done",
    "deep/same.wav > same.codec": "UsageError",
    "one.wav > one.codec": "done",
}


def test_a_folder_is_compressed_and_restored_with_its_structure(tmp_path: Path, folder: Path, model_file: Path) -> None:
    calls: list[tuple[Outcome, int, int]] = []
    outcomes = compress_tree(folder, tmp_path / "out", model=model_file, progress=lambda *call: calls.append(call))
    assert states(outcomes, folder) == TREE
    assert list(states(outcomes, folder)) == list(TREE)
    assert [(done, total) for _, done, total in calls] == [(n + 1, 5) for n in range(5)]
    assert {outcome.source for outcome, _, _ in calls} == {outcome.source for outcome in outcomes}
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == {"one.codec", "deep/er/two.codec", "deep/same.codec"}

    again = states(compress_tree(folder, tmp_path / "out", model=model_file), folder)
    assert again == {name: "skipped" if state == "done" else state for name, state in TREE.items()}
    assert states(compress_tree(folder, tmp_path / "out", model=model_file, force=True), folder) == TREE

    back = decompress_tree(tmp_path / "out", tmp_path / "back", model=model_file)
    assert set(states(back, tmp_path / "out").values()) == {"done"}
    assert soundfile.info(tmp_path / "back" / "deep" / "er" / "two.wav").frames == 600
    assert soundfile.info(tmp_path / "back" / "deep" / "er" / "two.wav").channels == 2
    back = decompress_tree(tmp_path / "out", tmp_path / "back", model=model_file)
    assert set(states(back, tmp_path / "out").values()) == {"skipped"}


def test_a_partly_restored_file_is_not_skipped(tmp_path: Path, model_file: Path) -> None:
    compress(tones(tmp_path / "in" / "a.wav", time=20000), tmp_path / "in" / "a.codec", model=model_file)
    data = (tmp_path / "in" / "a.codec").read_bytes()
    (tmp_path / "in" / "a.codec").write_bytes(data[:-30])
    (first,) = decompress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert isinstance(first.error, DamagedFile)
    assert (tmp_path / "out" / "a.wav").exists()
    (second,) = decompress_tree(tmp_path / "in", tmp_path / "out", model=model_file)
    assert isinstance(second.error, StorageError)
    (tmp_path / "in" / "a.codec").write_bytes(data)
    (third,) = decompress_tree(tmp_path / "in", tmp_path / "out", model=model_file, force=True)
    assert third.report is not None
    assert soundfile.info(tmp_path / "out" / "a.wav").frames == 20000


def test_the_default_target_is_beside_the_source(tmp_path: Path, model_file: Path) -> None:
    tones(tmp_path / "deep" / "a.flac")
    compress_tree(tmp_path, model=model_file)
    decompress_tree(tmp_path, model=model_file)
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"a.flac", "a.codec", "a.wav"}


@pytest.mark.slow
def test_two_jobs_write_the_same_files_as_one(tmp_path: Path, folder: Path, model_file: Path) -> None:
    (folder / "cut.codec").write_bytes(b"\x89CDC")
    assert states(compress_tree(folder, tmp_path / "one", model=model_file), folder) == TREE
    outcomes = compress_tree(folder, tmp_path / "two", model=model_file, jobs=2)
    assert states(outcomes, folder) == TREE
    for path in (tmp_path / "one").rglob("*.codec"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def killed_once(model: Path, source: Path, target: Path) -> compression.Report:
    """Compress a file; the first time it is number 3, kill the process before it can report."""
    report = compress(source, target, model=model)
    begun = target.with_suffix(".begun")
    if source.stem == "3" and not begun.exists():
        begun.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return report


@pytest.mark.filterwarnings("ignore")  # Ray's own
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_file_is_written_once_when_a_process_is_killed(
    tmp_path: Path, model_file: Path, ray_cluster: str, engine: Engine
) -> None:
    pairs = [(tones(tmp_path / f"{n}.wav", time=900 + n), tmp_path / f"{engine}/{n}.codec") for n in range(8)]
    work, is_done = partial(killed_once, model_file), partial(compression._is_compressed, force=False)
    outcomes = compression._run(pairs, work, is_done=is_done, jobs=2, engine=engine, progress=None)
    assert [outcome.error for outcome in outcomes] == [None] * 8
    assert outcomes[3].report is None  # done by the process that was killed
    assert sum(outcome.report is not None for outcome in outcomes) >= 6
    assert (tmp_path / engine / "3.begun").exists()
    for source, target in pairs:
        compress(source, tmp_path / "again.codec", model=model_file, force=True)
        assert target.read_bytes() == (tmp_path / "again.codec").read_bytes()


@pytest.mark.parametrize("tree", [compress_tree, decompress_tree])
def test_invalid_folders_and_options_raise(
    tmp_path: Path, model_file: Path, tree: Callable[..., list[Outcome]]
) -> None:
    with pytest.raises(InputNotFound, match="missing"):
        tree(tmp_path / "missing", model=model_file)
    with pytest.raises(InputNotFound, match="looked for"):
        tree(tmp_path, model=model_file)
    source = tones(tmp_path / "a.wav")
    compress(source, tmp_path / "a.codec", model=model_file)
    with pytest.raises(StorageError, match="is a file"):
        tree(tmp_path, source, model=model_file)
    with pytest.raises(UsageError, match="takes one file"):
        tree(tmp_path, "-", model=model_file)
    with pytest.raises(UnknownModel):
        tree(tmp_path, model="no-such-model")
    with pytest.raises(UsageError, match="0 jobs"):
        tree(tmp_path, model=model_file, jobs=0)


def test_an_unexpected_exception_does_not_stop_the_folder(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tones(tmp_path / "a.wav")
    tones(tmp_path / "b.wav")
    monkeypatch.setattr(compression, "_header", lambda *_: 1 / 0)
    outcomes = compress_tree(tmp_path, model=model_file)
    assert [str(outcome.error) for outcome in outcomes] == [
        "ZeroDivisionError: division by zero",
        "ZeroDivisionError: division by zero",
    ]
    assert all(isinstance(outcome.error, CodecError) for outcome in outcomes)
