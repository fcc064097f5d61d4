"""io/coded_channels.py, and files whose channels are not all coded or are coded as mid and side."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import codec
from codec.compression import compress, decompress, limit_of
from codec.errors import UsageError
from codec.io import bitstream
from codec.io.audio import Block
from codec.io.coded_channels import Mix, Stereo, Survey, are_balanced, is_mid_side, mid_side
from codec.io.pipes import Layout
from codec.transcoding import concat
from tests.helpers.trial_family import trial_model
from tests.tiny import tiny_model

MODEL = tiny_model()
RANDOM = np.random.default_rng(0)
X, Y = RANDOM.uniform(-0.9, 0.9, (2, 20_000)).astype(np.float32)
ZERO = np.zeros_like(X)


def rounded(block: Any) -> Block:
    samples: Block = (np.rint(np.asarray(block) * 32768) / 32768).astype(np.float32)
    return samples


def survey(block: Block, *, is_float: bool = False) -> Mix | None:
    found = Survey(len(block), is_float=is_float, limit=1.05)
    for first in range(0, block.shape[1], 3000):
        if not found.push(block[:, first : first + 3000]):
            break
    return found.mix()


@pytest.mark.parametrize(
    ("channels", "coded", "matrix"),
    [
        ([X, X], (0,), [[1], [1]]),
        ([X, -X], (0,), [[1], [-1]]),
        ([X, 0.25 * X], (0,), [[1], [0.25]]),
        ([0.01 * X, X], (0,), [[1], [100]]),
        ([X, ZERO], (0,), [[1], [0]]),
        ([X, Y, X, ZERO, -0.5 * Y], (0, 1), [[1, 0], [0, 1], [1, 0], [0, 0], [0, -0.5]]),
        ([ZERO, ZERO], (0,), [[1], [0]]),
        ([ZERO, X], (1,), [[0], [1]]),
        ([ZERO, X, ZERO, 2 * X, Y], (1, 4), [[0, 0], [1, 0], [0, 0], [2, 0], [0, 1]]),
        ([X, Y], None, None),
        ([X], None, None),
        ([X, X + 0.003 * Y], None, None),
        ([X] * 12, (0,), [[1]] * 12),
        ([X, *[Y] * 40, -X], (0, 1), [[1, 0], *[[0, 1]] * 40, [-1, 0]]),
        ([X[:4000]] * 66, (0, 64, 65), [*[[1, 0, 0]] * 64, [0, 1, 0], [0, 0, 1]]),
    ],
)
def test_channels_that_are_coded(channels: list[Block], coded: tuple[int, ...] | None, matrix: Any) -> None:
    block = rounded(channels)
    mix = survey(block)
    if coded is None:
        assert mix is None
        return
    assert mix is not None
    assert mix.coded == coded
    np.testing.assert_allclose(mix.matrix, matrix, rtol=2e-3)
    np.testing.assert_allclose(np.array(mix.matrix) @ mix.coded_block(block), block, atol=2e-3)


def test_one_different_moment_keeps_a_channel() -> None:
    other = X.copy()
    other[15_000:15_100] += 0.02
    assert survey(rounded([X, other])) is None
    late = np.concatenate([np.zeros(6000, np.float32), X])
    mix = survey(rounded([late, 0.5 * late]))
    assert mix is not None
    assert mix.coded == (0,)


@pytest.mark.parametrize("others", [1, 11])
@pytest.mark.parametrize("silent", [3000, 15_000])
def test_a_channel_that_begins_with_silence_is_kept(silent: int, others: int) -> None:
    late = Y.copy()
    late[:silent] = 0
    mix = survey(rounded([*[X + 0.01 * n * Y for n in range(others)], late]))
    assert mix is None
    mix = survey(rounded([X, Y, late, ZERO]))
    assert mix is not None
    assert mix.coded == (0, 1, 2)


def test_floats_beyond_full_scale_are_scaled_down() -> None:
    mix = survey(np.stack([3 * X, -3 * X]), is_float=True)
    assert mix is not None
    peak = 3 * np.abs(X).max()
    assert mix.gain == pytest.approx(peak)
    np.testing.assert_allclose(mix.matrix, [[peak], [-peak]], rtol=1e-6)
    assert np.abs(mix.coded_block(np.stack([3 * X, -3 * X]))).max() == pytest.approx(1)
    assert survey(X[None], is_float=True) is None


def header_of(path: Path) -> bitstream.Header:
    with bitstream.open_reader(path) as reader:
        return reader.header


def test_equal_channels_are_coded_once(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "mono.wav", X, 8000)
    soundfile.write(tmp_path / "two.wav", np.stack([X, X]).T, 8000)
    soundfile.write(tmp_path / "panned.wav", np.stack([X, 0.5 * X]).T, 8000)
    for name in ("mono", "two", "panned"):
        compress(tmp_path / f"{name}.wav", tmp_path / f"{name}.codec", model=MODEL)
        decompress(tmp_path / f"{name}.codec", tmp_path / f"{name}.out.wav", model=MODEL)
    sizes = {name: (tmp_path / f"{name}.codec").stat().st_size for name in ("mono", "two", "panned")}
    assert sizes["two"] <= sizes["mono"] + 30
    assert header_of(tmp_path / "two.codec").mix == ((1.0,), (1.0,))
    assert header_of(tmp_path / "two.codec").channels == 2
    mono = soundfile.read(tmp_path / "mono.out.wav", always_2d=True)[0]
    two = soundfile.read(tmp_path / "two.out.wav")[0]
    np.testing.assert_array_equal(two, np.repeat(mono, 2, axis=1))
    left, right = soundfile.read(tmp_path / "panned.out.wav")[0].T
    level = 20 * np.log10(np.std(left) / np.std(right))
    assert level == pytest.approx(20 * np.log10(2), abs=0.1)


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_float_recordings_come_back_as_floats(tmp_path: Path, suffix: str) -> None:
    soundfile.write(tmp_path / "hot.wav", 3 * X, 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "usual.wav", X, 8000, subtype="FLOAT")
    peaks = {}
    for name in ("hot", "usual"):
        report = compress(tmp_path / f"{name}.wav", tmp_path / f"{name}.codec", model=MODEL)
        assert report.notes == ()
        decompress(tmp_path / f"{name}.codec", tmp_path / f"{name}.out{suffix}", model=MODEL)
        info = soundfile.info(tmp_path / f"{name}.out{suffix}")
        assert info.subtype == ("FLOAT" if suffix == ".wav" else "PCM_16")
        peaks[name] = np.abs(soundfile.read(tmp_path / f"{name}.out{suffix}")[0]).max()
    assert header_of(tmp_path / "usual.codec").mix == ()
    if suffix == ".wav":
        assert 1.05 < peaks["hot"] <= 3 * 1.05


@pytest.mark.parametrize("gain", [1.0, 3.0])
def test_mid_and_side_are_the_sum_and_the_difference(gain: float) -> None:
    mix = mid_side(gain)
    block = np.float32(gain) * np.stack([X, Y])
    mid, side = mix.coded_block(block)
    np.testing.assert_allclose(gain * mid, (block[0] + block[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(gain * side, (block[0] - block[1]) / 2, atol=1e-6)
    np.testing.assert_allclose(np.array(mix.matrix) @ [mid, side], block, atol=gain * 1e-6)
    assert is_mid_side(mix.matrix)
    assert not any(map(is_mid_side, ((), ((1.0,), (1.0,)), ((3.0, 0.0), (0.0, 3.0)), ((0.0, 0.0), (0.0, 0.0)))))
    exact = np.array(mid_side().matrix) @ mid_side().coded_block(rounded([X, Y]))
    np.testing.assert_array_equal(exact, rounded([X, Y]))  # 16 bits and one more fit into float32


def stereo_file(path: Path, left: Any, right: Any, *, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, np.stack([left, right]).T, 8000, subtype=subtype)
    return path


def codes_of(path: Path) -> Any:
    with bitstream.open_reader(path) as reader:
        return np.concatenate(list(reader.packets()), axis=2)


def test_a_file_of_mid_and_side_holds_their_codes(tmp_path: Path) -> None:
    source = stereo_file(tmp_path / "a.wav", 0.5 * X, 0.5 * Y)
    compress(source, tmp_path / "a.codec", model=MODEL, stereo="mid-side")
    left, right = soundfile.read(source, dtype="float32")[0].T
    stereo_file(tmp_path / "ms.wav", (left + right) / 2, (left - right) / 2, subtype="FLOAT")
    compress(tmp_path / "ms.wav", tmp_path / "ms.codec", model=MODEL)
    np.testing.assert_array_equal(codes_of(tmp_path / "a.codec"), codes_of(tmp_path / "ms.codec"))
    for name in ("a", "ms"):
        decompress(tmp_path / f"{name}.codec", tmp_path / f"{name}.out.wav", model=MODEL, subtype="FLOAT")
    mid, side = soundfile.read(tmp_path / "ms.out.wav", dtype="float32")[0].T
    out = soundfile.read(tmp_path / "a.out.wav", dtype="float32")[0].T
    np.testing.assert_allclose(out, [mid + side, mid - side], atol=1e-6)
    header = header_of(tmp_path / "a.codec")
    assert (header.mix, header.settings) == (((1.0, 1.0), (1.0, -1.0)), "stereo mid-side")


def test_a_source_at_the_left_stays_at_the_left(tmp_path: Path) -> None:
    samples = np.stack([X, ZERO]).T * 20_000
    (tmp_path / "a.raw").write_bytes(samples.astype("<i2").tobytes())  # whose channels are not compared
    compress(tmp_path / "a.raw", tmp_path / "a.codec", model=MODEL, raw=Layout(8000, 2), stereo="mid-side")
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL, subtype="FLOAT")
    left, right = soundfile.read(tmp_path / "b.wav")[0].T
    assert np.abs(left).max() > 0.1
    assert np.abs(right).max() < 1e-6  # mid and side have equal codes


TIMES = np.arange(len(X))
BURST = np.where(TIMES // 500 == 12, Y, ZERO)  # 62 ms


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        pytest.param(X + BURST, BURST - X, "mid-side", id="nearly opposite"),
        pytest.param(X + BURST, X - BURST, "left-right", id="nearly equal"),
        pytest.param(np.where(TIMES < 4000, X, ZERO), np.where(TIMES < 4000, ZERO, Y), "left-right", id="in turn"),
    ],
)
def test_the_smaller_file_is_kept(tmp_path: Path, left: Block, right: Block, expected: Stereo) -> None:
    source = stereo_file(tmp_path / "a.wav", left[:8000] / 2, right[:8000] / 2)
    ways: tuple[Stereo, ...] = ("left-right", "mid-side", "smaller")
    reports = {way: compress(source, tmp_path / f"{way}.codec", model=MODEL, stereo=way, verify=True) for way in ways}
    assert min(ways[:2], key=lambda way: reports[way].compressed_bytes) == expected
    kept = tmp_path / "smaller.codec"
    np.testing.assert_array_equal(codes_of(kept), codes_of(tmp_path / f"{expected}.codec"))
    assert header_of(kept).mix == header_of(tmp_path / f"{expected}.codec").mix
    assert header_of(kept).settings == "stereo smaller"
    assert reports["smaller"].compressed_bytes == kept.stat().st_size
    assert not header_of(tmp_path / "left-right.codec").settings
    assert codec.compress(source.read_bytes(), model=MODEL, stereo="smaller") == kept.read_bytes()
    codec.encode_file(source, tmp_path / "b.codec", model=MODEL, stereo="smaller")
    assert (tmp_path / "b.codec").read_bytes() == kept.read_bytes()


def test_files_that_were_coded_differently_are_not_joined(tmp_path: Path) -> None:
    source = stereo_file(tmp_path / "a.wav", X[:2000], Y[:2000])
    compress(source, tmp_path / "a.codec", model=MODEL)
    compress(source, tmp_path / "b.codec", model=MODEL, stereo="mid-side")
    with pytest.raises(UsageError, match="coded as mid and side: encode both with the same --stereo"):
        concat([tmp_path / "a.codec", tmp_path / "b.codec"], tmp_path / "c.codec")


def test_a_soft_channel_is_not_coded_as_mid_and_side_for_its_size(tmp_path: Path) -> None:
    assert are_balanced([rounded([X, 0.6 * Y]), rounded([0.01 * X, 0.0001 * Y])])
    assert not are_balanced([rounded([X, 0.6 * Y]), rounded([X, 0.4 * Y])])
    source = stereo_file(tmp_path / "a.wav", X[:8000] / 2, X[:8000] / 20 - Y[:8000] / 50)
    ways: tuple[Stereo, ...] = ("left-right", "smaller")
    for way in ways:
        compress(source, tmp_path / f"{way}.codec", model=MODEL, stereo=way)
    assert header_of(tmp_path / "smaller.codec").mix == ()
    np.testing.assert_array_equal(codes_of(tmp_path / "smaller.codec"), codes_of(tmp_path / "left-right.codec"))


@pytest.mark.parametrize("stereo", ["mid-side", "smaller"])
@pytest.mark.parametrize(
    "channels", [[X], [X, X], [X, 0.5 * X], [X, ZERO], [ZERO, X], [X, Y, -X], [X, Y, 0.5 * X + 0.5 * Y]]
)
def test_other_channels_have_no_mid_and_side(tmp_path: Path, channels: list[Block], stereo: Stereo) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack(channels)[:, :4000].T, 8000)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, stereo=stereo)
    compress(tmp_path / "a.wav", tmp_path / "b.codec", model=MODEL)
    assert (tmp_path / "a.codec").read_bytes() == (tmp_path / "b.codec").read_bytes()


def test_a_model_of_two_channels_has_no_mid_and_side(tmp_path: Path) -> None:
    model, source = trial_model(), stereo_file(tmp_path / "a.wav", X[:2000], Y[:2000])
    plain, *others = (
        codec.compress(source.read_bytes(), model=model, stereo=stereo)
        for stereo in ("left-right", "mid-side", "smaller")
    )
    assert others == [plain, plain]


def piped(monkeypatch: pytest.MonkeyPatch, source: Path, target: Path, **options: Any) -> tuple[str, ...]:
    """The notes on a recording that is compressed from standard input."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(source.read_bytes())))
        return compress("-", target, model=MODEL, **options).notes


def test_a_pipe_has_mid_and_side_but_cannot_be_encoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stereo_file(tmp_path / "a.wav", X[:7000], Y[:7000])
    compress(source, tmp_path / "a.codec", model=MODEL, stereo="mid-side")
    piped(monkeypatch, source, tmp_path / "b.codec", stereo="mid-side")
    assert (tmp_path / "a.codec").read_bytes() == (tmp_path / "b.codec").read_bytes()
    with pytest.raises(UsageError, match=r"^standard input is read once, and --stereo smaller .* left-right or mid-s"):
        piped(monkeypatch, source, tmp_path / "c.codec", stereo="smaller")
    assert not (tmp_path / "c.codec").exists()
    soundfile.write(tmp_path / "mono.wav", X[:7000], 8000)
    piped(monkeypatch, tmp_path / "mono.wav", tmp_path / "c.codec", stereo="smaller")  # one way only
    with pytest.raises(UsageError, match=r"^stereo is 'both': it is one of left-right, mid-side, smaller$"):
        compress(source, tmp_path / "d.codec", model=MODEL, stereo="both")  # type: ignore[arg-type]


def test_mid_and_side_beyond_full_scale_are_scaled_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = stereo_file(tmp_path / "a.wav", 3 * X, 3 * Y, subtype="FLOAT")
    peak = float(np.abs(soundfile.read(source)[0]).max())
    assert compress(source, tmp_path / "a.codec", model=MODEL, stereo="mid-side").notes == ()
    header = header_of(tmp_path / "a.codec")
    assert is_mid_side(header.mix)
    assert header.mix[0][0] == pytest.approx(peak)
    assert limit_of(header, MODEL) == pytest.approx(MODEL.limit * peak)
    (note,) = piped(monkeypatch, source, tmp_path / "b.codec", stereo="mid-side")  # whose peak is known too late
    assert "clipped at +0.4 dBFS" in note
