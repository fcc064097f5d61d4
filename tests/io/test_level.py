"""io/level.py against the definition written out, on whole recordings and in blocks."""

import math
from functools import partial

import numpy as np
import pytest

from codec.errors import UsageError
from codec.io.audio import Block
from codec.io.level import Level, LevelMeter, level_of
from tests.helpers.memory import peak_memory

RATE = 8000
FRAME = 160


def frames_at(*levels: float) -> Block:
    """20 ms each, of a square wave whose RMS is its amplitude, in dBFS."""
    sign = np.where(np.arange(FRAME) % 2, 1, -1)
    return np.concatenate([10 ** (level / 20) * sign for level in levels])[None].astype(np.float32)


def decibels(audio: Block) -> float:
    """The RMS of the loud part, by its definition."""
    frames = audio[0, : audio.shape[1] // FRAME * FRAME].astype(np.float64).reshape(-1, FRAME)
    powers = np.square(frames).mean(axis=1)
    loud = powers[powers >= powers.max() / 1000]
    return 10 * math.log10(loud.mean())


def speech(time: int, seed: int = 0) -> Block:
    """Noise whose level wanders, with pauses."""
    rng = np.random.default_rng(seed)
    places = np.linspace(0, 1, time)
    level = np.interp(places, np.linspace(0, 1, 30), rng.uniform(-70, 0, 30))
    return (0.05 * 10 ** (level / 20) * rng.standard_normal(time))[None].astype(np.float32)


def measured(audio: Block, *cuts: int) -> LevelMeter:
    meter = LevelMeter(RATE)
    for block in np.split(audio, cuts, axis=1):
        meter.push(block)
    return meter


def test_the_example_of_the_docstring() -> None:
    assert 20 * math.log10(measured(frames_at(-70, -22, -18, -40, -55)).rms) == pytest.approx(-21.3, abs=0.01)


@pytest.mark.parametrize("level", [-60.0, -35.5, -25.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_level_is_exact(level: float, seed: int) -> None:
    audio = speech(16_000, seed)
    scaled = audio * Level(level).gain([audio], rate=RATE)
    assert scaled.dtype == np.float32
    assert decibels(scaled) == pytest.approx(level, abs=0.02)  # frame levels are rounded to 0.1 dB at the 30 dB bound
    steady = frames_at(*[-33.3] * 5)
    assert decibels(steady * Level(level).gain([steady], rate=RATE)) == pytest.approx(level, abs=1e-5)


@pytest.mark.parametrize("scale", [0.01, 0.1, 3.0])
def test_the_scaled_level_does_not_depend_on_the_input_level(scale: float) -> None:
    audio = speech(16_000)
    audio /= np.abs(audio).max()
    quiet = audio * np.float32(scale)
    assert decibels(quiet * Level(-40).gain([quiet], rate=RATE)) == pytest.approx(-40, abs=0.02)


def test_surrounding_silence_does_not_count() -> None:
    word = speech(4000)
    padded = np.concatenate([np.zeros((1, 10 * FRAME)), 1e-5 + word, np.zeros((1, 8000))], axis=1).astype(np.float32)
    assert Level(-20).gain([padded], rate=RATE) == pytest.approx(Level(-20).gain([word], rate=RATE), rel=1e-2)


@pytest.mark.parametrize("seed", range(5))
def test_blocks_give_the_same_level(seed: int) -> None:
    audio = speech(20_003, seed)
    rng = np.random.default_rng(seed)
    cuts = sorted(rng.integers(0, 20_003, 40).tolist())
    whole, parts = measured(audio), measured(audio, *cuts, *range(cuts[-1], 20_003, 7))
    assert (whole.rms, whole.peak) == (parts.rms, parts.peak)
    assert whole.gain(-20) == parts.gain(-20)


def test_channels_are_measured_together() -> None:
    left, right = frames_at(-20, -50), frames_at(-26, -90)
    both = 10 * math.log10((0.01 + 10**-2.6) / 2)
    assert 20 * math.log10(measured(np.concatenate([left, right])).rms) == pytest.approx(both, abs=1e-4)


def test_peaks_stay_within_full_scale() -> None:
    audio = frames_at(-20, -20)
    audio[0, 7] = 0.3
    for peak in np.linspace(0.2, 3, 200, dtype=np.float32):
        audio[0, 7] = peak
        scaled = audio * Level(0).gain([audio], rate=RATE)
        assert np.abs(scaled).max() == pytest.approx(1, abs=1e-6)
        assert np.abs(scaled).max() <= 1
    assert Level(-60).gain([audio], rate=RATE) < 0.1  # a level within reach


def test_at_most_40_db_are_added() -> None:
    assert Level(-20).gain([frames_at(-75)], rate=RATE) == pytest.approx(100)
    assert Level(-20).gain([frames_at(-59)], rate=RATE) == pytest.approx(10 ** (39 / 20))
    assert Level(-20).gain([frames_at(-300)], rate=RATE) == pytest.approx(100)  # less than any bin


def test_silence_and_empty_audio_have_gain_1() -> None:
    for time in (0, 1, 159, 160, 8000):
        assert Level(-20).gain([np.zeros((1, time), np.float32)], rate=RATE) == 1
    assert LevelMeter(RATE).rms == 0


def test_an_incomplete_last_frame() -> None:
    word = frames_at(-20, -20)
    click = np.concatenate([word, np.full((1, 3), 0.4, np.float32)], axis=1)
    assert measured(click).rms == measured(word).rms
    assert measured(click).peak == pytest.approx(0.4)
    assert measured(word[:, :50], 20).rms == pytest.approx(0.1)  # shorter than a frame
    assert Level(-40).gain([word[:, :1]], rate=RATE) == pytest.approx(0.1)


def test_loud_floats() -> None:
    audio = np.full((1, 800), 1e6, np.float32)
    assert np.abs(audio * Level(-20).gain([audio], rate=RATE)).max() == pytest.approx(0.1)


def test_memory_is_constant() -> None:
    block = speech(8000)

    def measure(seconds: int) -> None:
        meter = LevelMeter(RATE)
        for _ in range(seconds):
            meter.push(block[:, :7999])

    short, long = (peak_memory(partial(measure, seconds)) for seconds in (2, 200))
    assert long < 1.05 * short


@pytest.mark.parametrize("level", [-60.1, 0.1, math.nan, math.inf, -math.inf])
def test_levels_out_of_range(level: float) -> None:
    with pytest.raises(UsageError, match="give one from -60 to 0, such as -20"):
        level_of(level, None)


def test_levels_in_range() -> None:
    assert [level_of(level, None) for level in (None, -60, -20, 0)] == [None, Level(-60.0), Level(-20.0), Level(0.0)]
