"""Synthetic signals at all levels, which training mixes into its crops: tones, chords, DTMF, clicks, bells and noise.

A kind is a function (rng, time, rate) that returns `time` samples, float32 [time], at a sample rate of `rate` Hz with a
peak of at most 1. They depend only on the random generator.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]  # [time]
Wave = NDArray[np.float64]  # [time]; before its level is set

LOW = 40.0  # Hz, the lowest pitch
TOP = 0.45  # of the sample rate, the highest
TONE_DB = (-50.0, -1.0)  # peaks of all but noise
BED_DB = (-90.0, -25.0)  # noise floor, RMS below their peaks, because a model learns tones without one as silence
NOISE_DB = (-70.0, -10.0)  # levels of noise, RMS
NOISE_LOW = 20.0  # Hz; brown noise would otherwise be mostly below the audible range
DTMF = ((697, 770, 852, 941), (1209, 1336, 1477, 1633))  # Hz, rows and columns of the keys; ITU-T Q.23
BELL = (0.5, 1, 1.2, 1.5, 2, 2.5, 2.67, 3, 4, 5.33)  # partials: hum, prime, tierce, quint, nominal and above
BAR = (1, 2.756, 5.404, 8.933)  # partials of a bar with free ends: glockenspiel, chimes
CHORDS = ((0, 7), (0, 4, 7), (0, 3, 7), (0, 3, 6), (0, 4, 7, 10), (0, 3, 7, 10), (0, 5, 7))  # semitones above the root


def synthetic(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """Generate a signal of a random kind."""
    kinds = (tone, tone, tone, dtmf, beeps, click, pulses, noise, noise, bell, chord)
    return kinds[rng.integers(len(kinds))](rng, time, rate)


def tone(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """A steady tone, a sum of harmonics or a sweep [time], of random pitch and level, with weak noise.

    Half of the steady tones and of the harmonics have round pitches, as test signals do: their periods fit into most
    hops, so that all frames are equal.
    """
    low, top = LOW, TOP * rate
    pitch, end = np.geomspace(low, top, 1001)[rng.integers(1001, size=2)]
    harmonics = 1
    match ("steady", "steady", "harmonic", "sweep")[rng.integers(4)]:
        case "steady":
            end = pitch = rounded(rng, pitch)
        case "harmonic":
            end = pitch = rounded(rng, math.sqrt(low * pitch))  # in the lower half, with room for harmonics
            harmonics = min(12, int(top / pitch))
    phase = 2 * np.pi * np.cumsum(np.geomspace(pitch, end, time)) / rate
    audio = np.zeros(time)
    for number in range(1, harmonics + 1):
        audio += np.sin(number * phase + rng.uniform(0, 2 * np.pi)) / number
    audio /= np.abs(audio).max()
    return scale_to_random_peak(rng, add_noise_floor(rng, audio))


def dtmf(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """DTMF digits: dual tones with on-off keying; the column tone is within 4 dB of the row tone."""
    audio = np.zeros(time)
    twist = 10 ** (rng.uniform(-4, 4) / 20)
    for first, last in keyed_segments(rng, time, rate, on=(0.04, 0.2), off=(0.03, 0.2)):
        row, column = (sine(rng, rng.choice(group), last - first, rate) for group in DTMF)
        add_at(audio, first, apply_ramp(row + twist * column))
    return scale_to_random_peak(rng, maybe_add_noise_floor(rng, audio))


def beeps(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """Beeps of 0.05 to 0.3 s with gaps between them, all of one pitch or of a pitch each."""
    audio = np.zeros(time)
    changing, ramp = rng.random() < 0.5, round(rng.uniform(0, 0.01) * rate)
    pitch = random_pitch(rng, rate)
    for first, last in keyed_segments(rng, time, rate, on=(0.05, 0.3), off=(0.03, 0.5)):
        if changing:
            pitch = random_pitch(rng, rate)
        add_at(audio, first, apply_ramp(sine(rng, pitch, last - first, rate), ramp))
    return scale_to_random_peak(rng, maybe_add_noise_floor(rng, audio))


def click(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """A single nonzero sample of either sign."""
    audio = np.zeros(time)
    audio[rng.integers(time)] = rng.choice((-1.0, 1.0))
    return scale_to_random_peak(rng, audio)


def pulses(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """A pulse train: single samples, 10 to 200 a second, the first one anywhere in the first period."""
    period = min(rate / np.geomspace(10, 200, 1001)[rng.integers(1001)], float(time))
    audio = np.zeros(time)
    positions = np.arange(rng.uniform(0, period), time, period).astype(int)
    audio[positions[positions < time]] = rng.choice((-1.0, 1.0))
    return scale_to_random_peak(rng, maybe_add_noise_floor(rng, audio))


def noise(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """White, pink or brown noise; a third of the draws are limited to a band of one to four octaves."""
    frequencies = np.fft.rfftfreq(time, 1 / rate)
    slope = rng.integers(3) / 2  # of the magnitude; the power falls by 0, 3 or 6 dB per octave
    low, high = NOISE_LOW, 0.5 * rate
    if rng.random() < 1 / 3:
        low = np.exp(rng.uniform(*np.log(sorted((max(LOW, 4 * rate / time), 0.25 * rate)))))  # at least 4 bins
        high = low * 2 ** rng.uniform(1, 4)
    shape = np.maximum(frequencies, NOISE_LOW) ** -slope * ((frequencies >= low) & (frequencies <= high))
    audio = np.fft.irfft(np.fft.rfft(rng.standard_normal(time)) * shape, n=time)
    level = 10 ** (rng.uniform(*NOISE_DB) / 20)
    audio *= min(level / math.sqrt(np.square(audio).mean()), 1 / np.abs(audio).max())
    return audio.astype(np.float32)


def bell(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """A bell or bar struck in the first half: inharmonic partials with exponential decay, faster for higher ones."""
    first = rng.integers(time // 2 + 1)
    seconds = np.arange(time - first) / rate
    pitch = LOW * (TOP * rate / LOW / 4) ** rng.uniform(0.25, 1)  # with room for partials
    decay_time = np.geomspace(0.05, 2, 1001)[rng.integers(1001)]  # time constant of the prime, s
    ring = np.zeros(len(seconds))
    for ratio in (BELL, BAR)[rng.integers(2)]:
        partial = pitch * ratio * rng.uniform(0.99, 1.01)
        amplitude = rng.uniform(0.2, 1) * np.exp(-seconds * math.sqrt(ratio) / decay_time)
        if partial < TOP * rate:
            ring += amplitude * np.sin(2 * np.pi * (partial * seconds + rng.random()))
    audio = np.zeros(time)
    audio[first:] = ring
    return scale_to_random_peak(rng, maybe_add_noise_floor(rng, audio))


def chord(rng: np.random.Generator, time: int, rate: int) -> Samples:
    """A chord of two to four notes with harmonics in equal temperament, held or decaying."""
    seconds = np.arange(time) / rate
    root = 440 * 2 ** ((rng.integers(36, 85) - 69) / 12)  # 65 to 1047 Hz
    harmonics, slope = rng.integers(1, 9), rng.uniform(0.5, 2)
    audio = np.zeros(time)
    for semitones in CHORDS[rng.integers(len(CHORDS))]:
        for number in range(1, harmonics + 1):
            pitch = number * root * 2 ** (semitones / 12)
            phase = rng.random()
            if pitch < TOP * rate:
                audio += number**-slope * np.sin(2 * np.pi * (pitch * seconds + phase))
    if rng.random() < 0.5:
        audio *= np.exp(-seconds / rng.uniform(0.1, 1))
    return scale_to_random_peak(rng, maybe_add_noise_floor(rng, audio))


# helpers


def rounded(rng: np.random.Generator, pitch: float) -> float:
    """The pitch, or with probability 1/2 the nearest multiple of 50 Hz."""
    return max(50.0, 50.0 * round(pitch / 50)) if rng.random() < 0.5 else pitch


def random_pitch(rng: np.random.Generator, rate: int) -> float:
    """Draw a pitch in Hz, uniform over octaves; half of them are rounded."""
    return rounded(rng, LOW * (TOP * rate / LOW) ** rng.random())


def sine(rng: np.random.Generator, pitch: float, time: int, rate: int) -> Wave:
    """Sine of peak 1 and a random phase."""
    wave: Wave = np.sin(2 * np.pi * (pitch / rate * np.arange(time) + rng.random()))
    return wave


def keyed_segments(
    rng: np.random.Generator, time: int, rate: int, *, on: tuple[float, float], off: tuple[float, float]
) -> list[tuple[int, int]]:
    """(first, last) samples of on-off keying with a random on time and off time in seconds.

    The first segment starts in the first half of the crop, or before the crop with at least half of it inside.
    """
    length, gap = (max(2, round(rng.uniform(*bounds) * rate)) for bounds in (on, off))
    begin = int(rng.integers(-(length // 2), time // 2 + 1))
    return [(first, first + length) for first in range(begin, time, length + gap)]


def apply_ramp(wave: Wave, ramp: int = 8) -> Wave:
    """Apply a linear attack and release of `ramp` samples."""
    index = np.arange(len(wave))
    ends: Wave = np.minimum(index, index[::-1]) + 1.0
    return wave * np.minimum(1, ends / (ramp + 1))


def add_at(audio: Wave, first: int, wave: Wave) -> None:
    """Add a segment that starts at sample `first`; what lies outside of the crop is cut off."""
    begin, end = max(0, first), min(len(audio), first + len(wave))
    audio[begin:end] += wave[begin - first : end - first]


def add_noise_floor(rng: np.random.Generator, audio: Wave) -> Wave:
    """Add weak white noise to audio of peak 1."""
    return audio + 10 ** (rng.uniform(*BED_DB) / 20) * rng.standard_normal(len(audio))


def maybe_add_noise_floor(rng: np.random.Generator, audio: Wave) -> Wave:
    """Add weak noise half of the time; otherwise the gaps stay digital silence."""
    return add_noise_floor(rng, audio / max(float(np.abs(audio).max()), 1e-9)) if rng.random() < 0.5 else audio


def scale_to_random_peak(rng: np.random.Generator, audio: Wave) -> Samples:
    """Scale audio to a random peak level."""
    level = 10 ** (rng.uniform(*TONE_DB) / 20) / max(float(np.abs(audio).max()), 1e-9)
    return (audio * level).astype(np.float32)
