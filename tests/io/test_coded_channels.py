"""io/coded_channels.py, and files whose channels are not all coded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.compression import compress, decompress
from codec.io import bitstream
from codec.io.audio import Block
from codec.io.coded_channels import Mix, Survey
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
        ([ZERO, X], None, None),
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
