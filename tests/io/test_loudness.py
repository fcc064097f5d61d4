"""io/loudness.py against the recommendation written out and against torchaudio, on whole recordings and in blocks.

Without torchaudio, a stand-in for its filters takes part, so that everything but torchaudio itself is tested.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from codec.errors import MissingDependency, UsageError
from codec.evaluation import signal
from codec.io.audio import Block
from codec.io.level import Level, level_of
from codec.io.loudness import LoudnessMeter
from codec.nn import resample
from tests.helpers.loudness import Biquads, lufs

RATE = 48_000


@pytest.fixture(params=["torchaudio", "stand-in"], autouse=True)
def filters(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "stand-in":
        monkeypatch.setattr(resample, "torchaudio_functional", lambda: Biquads)
    elif resample.torchaudio_functional() is None:
        pytest.skip("torchaudio cannot be imported here")
    return resample.torchaudio_functional()


def tone(hertz: float, peak: float, seconds: float = 1.0) -> Block:
    time = np.arange(round(seconds * RATE)) / RATE
    return (peak * np.sin(2 * np.pi * hertz * time))[None].astype(np.float32)


def music(seconds: float = 9.3) -> Block:
    """Noise in two channels with loud, soft and silent passages, which meet both gates."""
    rng = np.random.default_rng(0)
    levels = np.repeat(10 ** (np.array([-20, -45, -12, -90, -28, -33]) / 20), math.ceil(seconds * RATE / 6))
    audio: Block = (rng.standard_normal((2, round(seconds * RATE))) * levels[: round(seconds * RATE)] / 4).astype("f4")
    return audio


def measured(audio: Block, *cuts: int) -> LoudnessMeter:
    meter = LoudnessMeter(RATE)
    for block in np.split(audio, cuts, axis=1):
        meter.push(block)
    return meter


@pytest.mark.parametrize("hertz", [60, 997, 4000, 10_000])
@pytest.mark.parametrize("peak", [0.01, 1.0, 1.2])
def test_loudness_is_that_of_the_recommendation(hertz: float, peak: float) -> None:
    """Full scale at 997 Hz is -3.01 LUFS; nothing is clipped on the way, as by torchaudio alone."""
    found = measured(tone(hertz, peak)).loudness
    assert found == pytest.approx(lufs(tone(hertz, peak).astype(float)), abs=0.1)
    if hertz == 997:
        assert found == pytest.approx(-3.01 + 20 * math.log10(peak), abs=0.1)


def test_gates_channels_and_chunks() -> None:
    audio = music()
    meter = measured(audio)
    assert meter.loudness == pytest.approx(lufs(audio.astype(float)), abs=0.1)
    assert meter.peak == np.abs(audio).max()
    assert measured(audio[:1]).loudness == pytest.approx(meter.loudness - 3.01, abs=0.1)


def test_the_whole_measure_of_torchaudio(filters: Any) -> None:
    if not hasattr(filters, "loudness"):
        pytest.skip("the stand-in has filters alone")
    audio = music()
    expected = filters.loudness(torch.from_numpy(audio.astype(float)) / 4, RATE) + 20 * math.log10(4)
    assert measured(audio).loudness == pytest.approx(float(expected), abs=1e-6)


def test_blocks_give_the_same_loudness() -> None:
    audio = music()
    cuts = sorted(np.random.default_rng(1).integers(0, audio.shape[1], 9).tolist())
    assert measured(audio, *cuts).loudness == measured(audio).loudness
    assert measured(audio, 100_000).gain(-23) == measured(audio).gain(-23)


@pytest.mark.parametrize("target", [-40.0, -23.0])
def test_a_gain_gives_the_loudness(target: float) -> None:
    audio = music()
    scaled = audio * Level(target, "LUFS").gain([audio], rate=RATE)
    assert scaled.dtype == np.float32
    assert lufs(scaled.astype(float)) == pytest.approx(target, abs=0.1)


def test_gains_are_bounded_by_the_peak_and_by_40_db() -> None:
    loud, faint = tone(997, 0.5), tone(997, 0.0009)
    assert np.abs(loud * Level(0.0, "LUFS").gain([loud], rate=RATE)).max() == pytest.approx(1, abs=1e-6)
    assert Level(-10.0, "LUFS").gain([faint], rate=RATE) == 100


def test_short_and_silent_recordings() -> None:
    """BS.1770 does not define a loudness below 0.4 s; for a gain, the recording counts as one block."""
    word = tone(997, 0.1, seconds=0.2)
    assert math.isnan(measured(word).loudness)
    assert 20 * math.log10(measured(word).gain(-23)) == pytest.approx(0, abs=0.2)
    for samples in (0, 1, 100, 48_000, 300_000):
        silence = np.zeros((1, samples), np.float32)
        assert math.isnan(measured(silence).loudness)
        assert Level(-23.0, "LUFS").gain([silence], rate=RATE) == 1
    assert LoudnessMeter(RATE).gain(-23) == 1
    assert math.isnan(signal.loudness(np.zeros(8000, np.float32), rate=8000))


def test_the_measure_of_evaluations() -> None:
    assert signal.loudness(tone(997, 0.5)[0], rate=RATE) == measured(tone(997, 0.5)).loudness


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert level_of(None, -23) == Level(-23.0, "LUFS")
    with pytest.raises(UsageError, match="contradict each other"):
        level_of(-20, -23)
    with pytest.raises(UsageError, match=r"a level of 3 LUFS: give one from -60 to 0"):
        level_of(None, 3)
    with pytest.raises(UsageError, match="defined from 3000 Hz on"):
        LoudnessMeter(2000)
    monkeypatch.setattr(resample, "torchaudio_functional", lambda: None)
    with pytest.raises(
        MissingDependency, match=r"^loudness needs torchaudio, which cannot be imported .*\[torchaudio\]"
    ):
        level_of(None, -23)
