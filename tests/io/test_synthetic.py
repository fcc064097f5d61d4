"""io/synthetic.py: each kind of synthetic signal has the spectrum, the timing and the level that its name says."""

from collections.abc import Callable

import numpy as np
import pytest

from codec.io import synthetic as signals
from codec.io.synthetic import DTMF, Samples

RATE = 8000
KINDS = (
    signals.synthetic,
    signals.tone,
    signals.dtmf,
    signals.beeps,
    signals.click,
    signals.pulses,
    signals.noise,
    signals.bell,
    signals.chord,
)


def draws(kind: Callable[[np.random.Generator, int, int], Samples], count: int, time: int, rate: int) -> list[Samples]:
    return [kind(np.random.default_rng(seed), time, rate) for seed in range(count)]


def decibels(power: float) -> float:
    return float(10 * np.log10(power))


def power_spectrum(audio: Samples) -> np.ndarray:
    return np.asarray(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("time", "rate"), [(1200, 8000), (9601, 48000), (36000, 24000)])
def test_every_signal_has_its_length_and_level_and_depends_on_the_seed_alone(
    kind: Callable[[np.random.Generator, int, int], Samples], time: int, rate: int
) -> None:
    count = 40
    audio = draws(kind, count, time, rate)
    assert {(one.dtype, one.shape) for one in audio} == {(np.dtype(np.float32), (time,))}
    peaks = np.array([np.abs(one).max() for one in audio])
    assert np.isfinite(peaks).all()
    assert peaks.max() <= 1
    assert peaks.min() > 10 ** (-72 / 20)
    if kind not in (signals.noise, signals.synthetic):
        assert 20 * np.log10(peaks.min()) > -50.01
        assert 20 * np.log10(peaks.max()) < -0.99
        assert np.ptp(20 * np.log10(peaks)) > 30
    assert all(np.array_equal(one, again) for one, again in zip(audio, draws(kind, count, time, rate), strict=True))
    assert len({one.tobytes() for one in audio}) == count


def test_tones_are_pure_and_of_every_pitch() -> None:
    spectra = [power_spectrum(audio) for audio in draws(signals.tone, 90, RATE, RATE)]  # 1 Hz a bin
    pitches = [int(power.argmax()) for power in spectra]
    assert min(pitches) < 80
    assert max(pitches) > 3000
    pure = [
        power[max(0, top - 3) : top + 4].sum() / power.sum() > 0.999
        for power, top in zip(spectra, pitches, strict=True)
    ]
    assert 20 < sum(pure) < 45  # a third of them are steady
    assert all(power[3700:].sum() < 1e-3 * power.sum() for power in spectra)  # no aliasing


def test_dtmf_has_one_row_and_one_column_tone_in_each_digit() -> None:
    digits = set()
    for audio in draws(signals.dtmf, 60, RATE, RATE):
        loud = np.abs(audio) > 0.3 * np.abs(audio).max()  # noise floors are softer
        edges = np.flatnonzero(np.diff(np.convolve(loud, np.ones(81), "same") > 0, prepend=False, append=False))
        segments = [(first + 40, last - 40) for first, last in edges.reshape(-1, 2)]  # at least 30 ms apart
        lengths = {last - first for first, last in segments[1:-1]}
        assert np.ptp([*lengths, *lengths]) <= 20 if lengths else True
        for first, last in segments:
            if last - first < 0.04 * RATE:
                continue  # cut off at an end of the crop
            power = np.abs(np.fft.rfft(audio[first:last] * np.hanning(last - first), n=RATE)) ** 2  # 1 Hz a bin
            row = 600 + int(power[600:1070].argmax())
            column = 1070 + int(power[1070:1800].argmax())
            nearest = tuple(
                min(group, key=lambda pitch: abs(pitch - top)) for group, top in zip(DTMF, (row, column), strict=True)
            )
            assert np.abs(np.subtract(nearest, (row, column))).max() <= 8
            assert abs(decibels(power[row] / power[column])) < 5
            near = np.min([np.abs(np.arange(len(power)) - pitch) for pitch in nearest], axis=0)
            assert power[near < 4 * RATE / (last - first)].sum() > 0.97 * power.sum()  # two tones, no more
            digits.add(nearest)
    assert len(digits) == 16


@pytest.mark.slow
def test_beeps_last_as_long_as_they_should() -> None:
    found = []
    for audio in draws(signals.beeps, 80, 4 * RATE, RATE):
        loud = np.convolve(np.abs(audio) > 0.3 * np.abs(audio).max(), np.ones(101), "same") > 0
        edges = np.flatnonzero(np.diff(loud, prepend=False, append=False)).reshape(-1, 2)
        inside = edges[(edges[:, 0] > 0) & (edges[:, 1] < len(audio))]
        found += list((inside[:, 1] - inside[:, 0] - 100) / RATE)
    assert len(found) > 200
    assert 0.03 < min(found) < 0.1  # less their ramps of up to 10 ms
    assert 0.25 < max(found) < 0.31


def test_a_click_is_one_sample_at_any_position() -> None:
    clicks = draws(signals.click, 60, 2000, RATE)
    assert all(np.count_nonzero(audio) == 1 for audio in clicks)
    positions = np.array([np.abs(audio).argmax() for audio in clicks])
    assert np.histogram(positions, bins=4, range=(0, 2000))[0].min() > 5
    assert {np.sign(audio.sum()) for audio in clicks} == {-1, 1}


def test_pulse_trains_keep_their_period() -> None:
    rates = []
    for audio in draws(signals.pulses, 60, 2 * RATE, RATE):
        positions = np.flatnonzero(np.abs(audio) > 0.6 * np.abs(audio).max())
        gaps = np.diff(positions)
        assert np.ptp(gaps) <= 1
        assert positions[0] <= gaps.max()
        rates.append(RATE / gaps.mean())
    assert 9.9 < min(rates) < 15
    assert 130 < max(rates) < 202


@pytest.mark.slow
def test_noise_has_its_level_and_a_slope_of_0_3_or_6_decibels_per_octave() -> None:
    levels, slopes, limited = [], [], 0
    for audio in draws(signals.noise, 300, 16 * 1024, 16000):
        levels.append(decibels(np.square(audio, dtype=np.float64).mean()))
        power = np.abs(np.fft.rfft(audio)) ** 2
        octaves = [power[64 * 2**n : 128 * 2**n].mean() for n in range(7)]  # from 62.5 Hz
        if min(octaves) < 1e-6 * max(octaves):
            limited += 1
            continue
        slopes.append(np.diff(10 * np.log10(octaves)).mean())
    assert -70.1 < min(levels) < -66
    assert -14 < max(levels) < -9.9  # where the peak allows it
    assert np.histogram(levels, bins=5, range=(-70, -10))[0].min() > 35  # 60 each
    assert limited == pytest.approx(100, abs=35)
    distances = np.abs(np.subtract.outer(slopes, (0.0, -3.01, -6.02)))
    assert distances.min(axis=1).max() < 0.4
    assert np.bincount(distances.argmin(axis=1), minlength=3).min() > 40


@pytest.mark.slow
def test_bells_are_inharmonic_and_decay() -> None:
    bells = draws(signals.bell, 60, 3 * RATE, RATE)
    decaying = 0
    for audio in bells:
        energy = np.square(audio, dtype=np.float64)
        middle = len(audio) // 2  # struck before
        decaying += energy[middle:].sum() < 0.5 * energy.sum()
        onset = int(np.flatnonzero(np.abs(audio) > 0.3 * np.abs(audio).max())[0])
        assert onset <= middle + 0.01 * RATE
    assert decaying > 30
    ratios = []
    for audio in bells:
        power = power_spectrum(audio)
        peaks = np.flatnonzero(
            (power[1:-1] > power[:-2]) & (power[1:-1] >= power[2:]) & (power[1:-1] > 0.01 * power.max())
        )
        if len(peaks) > 1:
            ratios.append((peaks[1] + 1) / (peaks[0] + 1))
    assert len(ratios) > 30
    assert np.mean([abs(ratio - round(ratio)) > 0.05 for ratio in ratios]) > 0.3


@pytest.mark.slow
def test_chords_have_the_pitches_of_equal_temperament() -> None:
    for audio in draws(signals.chord, 40, 4 * RATE, RATE):
        pitch = power_spectrum(audio).argmax() / 4  # of a note, or of one of its harmonics
        offsets = [12 * np.log2(pitch / number / 440) for number in range(1, 9)]
        assert min(abs(offset - round(offset)) for offset in offsets) < 0.15
        assert pitch < 0.45 * RATE


@pytest.mark.slow
def test_every_kind_is_drawn() -> None:
    """A click has one nonzero sample, a steady tone nearly all of its power in one bin, white noise in none."""
    audio = draws(signals.synthetic, 300, RATE, RATE)
    clicks = sum(np.count_nonzero(one) == 1 for one in audio)
    spread = [float(power.max() / power.sum()) for power in map(power_spectrum, audio)]
    assert 12 < clicks < 45  # an eleventh
    assert sum(share > 0.5 for share in spread) > 30
    assert sum(share < 0.01 for share in spread) > 40
