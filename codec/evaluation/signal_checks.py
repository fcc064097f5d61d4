"""Test signals through a codec: tones, clicks, noise, silence, and repeated coding.

Each check encodes and decodes whole signals and returns one or more `Result`s of named figures. `AIMS` has the target
range of each figure. All signals are synthetic with fixed seeds, except the recordings that the caller passes.

Conventions: differences are output minus input in dB. 0 dBFS is a sine of amplitude 1 for peaks and amplitudes (sines,
beeps, speech peaks), and an RMS of 1 for levels (noise, silence). Sines use all codebooks ("full"), half of them, or a
quarter of them; other checks use all.
"""

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise, product
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from codec.data.clips import Clip, clip_audio, clips
from codec.errors import InputNotFound
from codec.evaluation.signal import HOP_BANDS, hop_periodicity, pesq_wb
from codec.frames import FrameSpec
from codec.io import synth
from codec.io.audio import Resampler, read_audio, write_audio

Signal: TypeAlias = NDArray[np.floating[Any]]  # [time], or [batch, time] where documented
CodeArray: TypeAlias = NDArray[np.int64]  # [batch, codebooks, frames]

BATCH_SECONDS = 40  # s of audio per call of the codec
FLOOR = 1e-12  # power added to both sides of a level difference, -120 dBFS
DRIFT_FLOOR = 1e-8  # the same for drift of high frequencies, -80 dBFS, because inaudible changes do not count
SILENT = -200.0  # dBFS, reported for exact zeros
MAX_RATIO = 120.0  # dB, reported for an infinite ratio
HIGHEST = 10_000 / 24_000  # highest frequency of test tones over the sample rate
NYQUIST_MARGIN = 0.46  # upper edge of the highest bands over the sample rate


class CodecLike(Protocol):
    """Interface of a codec for the checks; `codec.models.base.Codec` has it."""

    @property
    def frame_spec(self) -> FrameSpec:
        """Sample rate, hop and codebooks."""

    def encode(self, audio: Tensor, *, num_codebooks: int | None = None) -> Tensor:
        """Encode audio [batch, 1, time] to codes [batch, codebooks, frames]."""

    def decode(self, codes: Tensor, *, length: int | None = None) -> Tensor:
        """Decode codes to audio [batch, 1, length]."""


@dataclass(frozen=True)
class Result:
    """Figures of one check; `note` has the conditions of the worst one."""

    check: str
    figures: Mapping[str, float]
    note: str = ""

    def missed(self) -> list[str]:
        """Return the names of the figures outside their target range; NaN is outside."""
        return [name for name, value in self.figures.items() if (aim := self.aim(name)) and not aim.met(value)]

    def aim(self, figure: str) -> "Aim | None":
        """Return the target range of a figure, if it has one."""
        return AIMS.get((self.check, figure))


@dataclass(frozen=True)
class Aim:
    """Target range of a figure, bounds included."""

    low: float = -math.inf
    high: float = math.inf

    def met(self, value: float) -> bool:
        """Return whether the value lies in the range."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if self.low == -self.high:
            return f"±{self.high:g}"
        return f"≤ {self.high:g}" if math.isinf(self.low) else f"≥ {self.low:g}"


def within(bound: float) -> Aim:
    """Range of values at most `bound` away from 0."""
    return Aim(-bound, bound)


AIMS: dict[tuple[str, str], Aim] = {
    ("sines, full", "worst_db"): within(3),
    ("sines, half", "worst_db"): within(6),
    ("DTMF", "worst_db"): within(3),
    ("DTMF", "recognized_share"): Aim(low=1),
    ("sweep", "worst_db"): within(4),
    ("beeps", "worst_db"): within(3),
    ("click", "peak_ratio_worst"): Aim(low=0.2),
    ("click", "concentration_worst_db"): Aim(low=0),
    ("pulse trains", "worst_db"): within(3),
    ("speech levels", "level_worst_db"): within(1.5),
    ("speech levels", "pesq_ratio_worst"): Aim(low=0.9),
    ("white noise levels", "octave_worst_db"): within(2),
    ("pink noise levels", "octave_worst_db"): within(2),
    ("pauses in noise", "worst_db"): within(3),
    ("periodicity, white noise", "worst"): Aim(high=0.1),
    ("periodicity, rain", "worst"): Aim(high=0.1),
    ("periodicity, fricatives", "worst"): Aim(high=0.1),
    ("silence", "level_dbfs"): Aim(high=-80),
    ("silence", "after_speech_dbfs"): Aim(high=-80),
    ("overshoot", "worst_db"): Aim(high=0.5),
    ("overshoot", "wrapped_samples"): Aim(high=0),
    ("stripes", "worst_db"): Aim(high=3),
    ("stripes", "top_octave_worst_db"): Aim(high=3),
    ("modulation", "worst"): Aim(high=0.1),
    ("coloration", "ripple_db"): Aim(high=1),
    ("generations", "level_worst_db"): within(2),
    ("generations", "highs_worst_db"): within(3),
    ("generations", "pesq_ratio"): Aim(low=0.75),
    ("second generation", "codebook_0_share"): Aim(low=0.9),
    ("second generation", "all_share"): Aim(low=0.5),
}


# Recordings

SPEECH_SETS = ("en_ljspeech", "en_vctk", "fr_librivox", "en_librispeech")


@dataclass(frozen=True)
class Recordings:
    """Clips [batch, time] at the codec's rate, peaks at most 1; `rain` and `music` may have no rows."""

    speech: Signal
    music: Signal
    rain: Signal


def read_recordings(folder: Path, *, rate: int, quick: bool = False) -> Recordings:
    """Read the middles of some clips of a corpus's valid split: `SPEECH_SETS`, the set music, and the label rain.

    The clips of each set are evenly spaced in the order of the manifest. Raises InputNotFound without speech.
    """
    seconds, of_each, of_music, of_rain = (3.0, 1, 2, 2) if quick else (4.0, 3, 8, 4)
    valid = [clip for clip in clips(folder) if clip.split == "valid" and (clip.seconds or 0) >= seconds]
    time = round(seconds * rate)

    def middles(clips: Sequence[Clip], count: int) -> list[Signal]:
        picked = [clips[round(i)] for i in np.linspace(0, len(clips) - 1, min(count, len(clips)))]
        firsts = [round(((clip.seconds or 0) - seconds) / 2 * rate) for clip in picked]
        return [clip_audio(c, rate=rate, first=f, time=time)[0] for c, f in zip(picked, firsts, strict=True)]

    def stacked(clips: list[Signal]) -> Signal:
        if not clips:
            return np.zeros((0, time), np.float32)
        return np.stack([_faded(clip, rate) / max(1.0, float(np.abs(clip).max())) for clip in clips])

    sets = [[clip for clip in valid if clip.set == name] for name in SPEECH_SETS]
    speech = [audio for clips in sets for audio in middles(clips, of_each)]
    if not speech:
        raise InputNotFound(f"{folder} has no clip of {seconds:g} s in the valid split of {', '.join(SPEECH_SETS)}")
    return Recordings(
        speech=stacked(speech),
        music=stacked(middles([clip for clip in valid if clip.set == "music"], of_music)),
        rain=stacked(middles([clip for clip in valid if clip.label == "rain"], of_rain)),
    )


def synthetic_recordings(rate: int) -> Recordings:
    """Synthetic substitutes for recordings: a voice, plucked strings, no rain."""
    audio = synth.synthesize()[0]
    middle = round(2.35 * synth.RATE)  # end of the voice, start of the strings

    def at_rate(part: Signal) -> Signal:
        resampler = Resampler(synth.RATE, rate, 1)
        block = part[None].astype(np.float32)
        return np.concatenate([resampler.push(block), resampler.flush()], axis=1)

    return Recordings(at_rate(audio[:middle]), at_rate(audio[middle : 2 * middle]), np.zeros((0, rate), np.float32))


# All checks


def check_all(coder: CodecLike, recordings: Recordings, *, quick: bool = False) -> Iterator[Result]:
    """Run all checks; `quick` uses fewer and shorter signals."""
    yield from sines(coder, quick=quick)
    for check in (dtmf, sweep, beeps, clicks):
        yield from check(coder)
    yield from speech_levels(coder, recordings)
    yield from noise_levels(coder, quick=quick)
    yield from noisy_pauses(coder, recordings)
    yield from periodicity(coder, recordings, quick=quick)
    yield from silence(coder, recordings)
    yield from overshoot(coder, recordings)
    yield from stripes(coder, quick=quick)
    yield from modulation(coder, quick=quick)
    yield from coloration(coder, quick=quick)
    yield from generations(coder, recordings)
    yield from stability(coder, recordings)


# Tones


def sines(coder: CodecLike, *, quick: bool = False) -> list[Result]:
    """Measure the level of steady sines at their frequency, with all, half, and a quarter of the codebooks."""
    spec = coder.frame_spec
    frequencies, levels = tone_frequencies(spec, quick=quick), (-6, -20, -40)
    seconds, steady = (0.6, (0.25, 0.56)) if quick else (0.8, (0.3, 0.75))
    cases = list(product(levels, frequencies))
    audio = np.stack([_tone(spec, frequency, level, seconds) for level, frequency in cases])
    results = []
    for name, divisor in (("full", 1), ("half", 2), ("quarter", 4)):
        decoded = through(coder, audio, max(1, spec.num_codebooks // divisor))
        differences = np.array(
            [
                _amplitude_difference(original, output, frequency, spec, steady)
                for original, output, (_, frequency) in zip(audio, decoded, cases, strict=True)
            ]
        )
        worst = _furthest(differences)
        figures = {
            "worst_db": float(differences[worst]),
            "median_db": float(np.median(differences)),
            "within_3_db_share": float((np.abs(differences) <= 3).mean()),
        }
        for level, part in zip(levels, differences.reshape(len(levels), -1), strict=True):
            figures[f"at_{level}_dbfs_share"] = float((np.abs(part) <= 3).mean())
        above = np.array([frequency >= 2000 for _, frequency in cases])
        figures["median_below_2_khz_db"] = float(np.median(differences[~above]))
        figures["median_above_2_khz_db"] = float(np.median(differences[above]))
        level, frequency = cases[worst]
        results.append(Result(f"sines, {name}", figures, f"worst at {frequency:.0f} Hz, {level} dBFS"))
    return results


def tone_frequencies(frame_spec: FrameSpec, *, quick: bool = False) -> list[float]:
    """List test frequencies, 60 Hz to 10 kHz: log-spaced, MDCT bin centers and edges, frame rate multiples."""
    logarithmic, others = (12, 4) if quick else (48, 16)
    highest, frame_rate = HIGHEST * frame_spec.sample_rate, frame_spec.frame_rate
    spaced = np.geomspace(60, highest, others) / frame_rate
    centers = 0.25 + 0.5 * np.arange(others) % 1  # of bins half a frame rate wide, even and odd ones
    on_grid = [np.maximum(shift, np.round(spaced - shift) + shift) for shift in (centers, 0.5, 0.0)]
    multiples = np.maximum(1, on_grid.pop())
    return [
        *np.geomspace(60, highest, logarithmic).tolist(),
        *(frame_rate * np.concatenate([*on_grid, multiples])).tolist(),
    ]


DTMF_ROWS = (697, 770, 852, 941)  # Hz, ITU-T Q.23
DTMF_COLUMNS = (1209, 1336, 1477, 1633)


def dtmf(coder: CodecLike) -> list[Result]:
    """Measure the tones of all 16 keys, 0.2 s at -12 dBFS each, and the share that a Goertzel detector recognizes."""
    spec = coder.frame_spec
    keys = list(product(range(4), range(4)))
    pair = {key: (DTMF_ROWS[key[0]], DTMF_COLUMNS[key[1]]) for key in keys}
    audio = np.stack([sum(_beep(spec, f, -12, 0.2) for f in pair[key]) for key in keys])
    decoded = through(coder, audio)
    differences = []
    for key, original, output in zip(keys, audio, decoded, strict=True):
        before, after = (_amplitudes(signal, pair[key], spec, (0.14, 0.26)) for signal in (original, output))
        differences += [(_decibels(b**2, a**2), f) for a, b, f in zip(before, after, pair[key], strict=True)]
    recognized = [detect_dtmf(output, spec.sample_rate) == key for key, output in zip(keys, decoded, strict=True)]
    worst, frequency = max(differences, key=lambda pair: abs(pair[0]))
    figures = {"worst_db": worst, "recognized_share": sum(recognized) / len(keys)}
    return [Result("DTMF", figures, f"worst at {frequency} Hz")]


def detect_dtmf(signal: Signal, rate: int) -> tuple[int, int] | None:
    """Detect a DTMF key by the Goertzel algorithm; return its row and column.

    The key must be the only one that at least two consecutive frames of 25.6 ms have. A frame has a key if in both
    groups one tone is 6 dB above the others, and these two tones differ by at most 8 dB, have half of the frame's
    energy, and are above -45 dBFS.
    """
    size = round(205 / 8000 * rate)  # the usual 205 samples at 8 kHz
    time = np.arange(size) / rate
    frames = signal[: len(signal) // size * size].reshape(-1, size)
    tones = np.exp(-2j * np.pi * np.outer(time, DTMF_ROWS + DTMF_COLUMNS))
    amplitudes = np.abs(frames @ tones) * 2 / size  # [frames, 8]
    found: list[tuple[int, int] | None] = []
    for frame, (rows, columns) in zip(frames, ((a[:4], a[4:]) for a in amplitudes), strict=True):
        ordered = [np.sort(group)[::-1] for group in (rows, columns)]
        strongest = [float(group[0]) for group in ordered]
        clear = (
            all(group[0] >= 2 * group[1] for group in ordered)
            and max(strongest) <= 10 ** (8 / 20) * min(strongest)
            and sum(a**2 / 2 for a in strongest) >= 0.5 * float(np.mean(frame**2))
            and min(strongest) >= 10 ** (-45 / 20)
        )
        found.append((int(rows.argmax()), int(columns.argmax())) if clear else None)
    detected = {key for key, run in groupby(found) if key is not None and len(list(run)) >= 2}
    return detected.pop() if len(detected) == 1 else None


def sweep(coder: CodecLike) -> list[Result]:
    """Measure the level of a sine sweep from 100 Hz to 10 kHz in 4 s at -12 dBFS, in tenths of its duration.

    The level is that of the output within about 50 Hz of the sweep: demodulated, and smoothed by a Hann window of 20 ms
    (6 dB down at 50 Hz).
    """
    rate = coder.frame_spec.sample_rate
    seconds, low, high = 4.0, 100.0, HIGHEST * rate
    time = np.arange(round(seconds * rate)) / rate
    octaves = math.log(high / low)
    phase = 2 * np.pi * low * seconds / octaves * np.expm1(time / seconds * octaves)
    audio = 10 ** (-12 / 20) * np.sin(phase)
    decoded = through(coder, audio[None])[0]
    window = np.hanning(round(0.02 * rate) + 2)[1:-1]
    differences = []
    powers = [
        np.abs(_convolved(signal * np.exp(-1j * phase), window / window.sum())) ** 2 for signal in (audio, decoded)
    ]
    for before, after in zip(*(np.array_split(power, 10) for power in powers), strict=True):
        differences.append(_decibels(after.mean(), before.mean()))
    worst = _furthest(differences)
    note = " ".join(str(round(difference)) for difference in differences)
    return [Result("sweep", {"worst_db": differences[worst]}, f"tenths {note}")]


def beeps(coder: CodecLike) -> list[Result]:
    """Measure the level of beeps of 0.2 s at -12 dBFS in silence, at their frequency."""
    spec = coder.frame_spec
    frequencies = [125, 250, 440, 800, 1000, 1013.7, 1700, 2500, 3150, 4000, 5210, 6300, 8000, 9400]
    frequencies = [frequency for frequency in frequencies if frequency <= HIGHEST * spec.sample_rate]
    audio = np.stack([_beep(spec, frequency, -12, 0.2) for frequency in frequencies])
    decoded = through(coder, audio)
    differences = [
        _amplitude_difference(original, output, frequency, spec, (0.14, 0.27))
        for original, output, frequency in zip(audio, decoded, frequencies, strict=True)
    ]
    worst = _furthest(differences)
    figures = {"worst_db": differences[worst], "median_db": float(np.median(differences))}
    return [Result("beeps", figures, f"worst at {frequencies[worst]:g} Hz")]


# Clicks


def clicks(coder: CodecLike) -> list[Result]:
    """Measure clicks (one sample of 0.5) at every 20th position of a frame, and pulse trains of 37 and 100 Hz.

    Figures of a click are its peak, and its energy within 2.5 ms over the remaining energy.
    """
    spec = coder.frame_spec
    near = spec.samples(0.0025)
    positions = [10 * spec.hop + offset for offset in range(0, spec.hop, 20)]
    audio = np.zeros((len(positions), 20 * spec.hop))
    audio[np.arange(len(positions)), positions] = 0.5
    peaks, concentrations = [], []
    for position, output in zip(positions, through(coder, audio), strict=True):
        around = output[position - near : position + near + 1]
        inside = float(np.sum(around**2))
        peaks.append(float(np.abs(around).max()) / 0.5)
        concentrations.append(_ratio_db(inside, float(np.sum(output**2)) - inside))
    worst = int(np.argmin(peaks))
    figures = {
        "peak_ratio_worst": peaks[worst],
        "peak_ratio_median": float(np.median(peaks)),
        "concentration_worst_db": min(concentrations),
        "concentration_median_db": float(np.median(concentrations)),
    }
    return [
        Result("click", figures, f"lowest peak at sample {positions[worst] % spec.hop} of the frame"),
        _pulse_trains(coder),
    ]


def _pulse_trains(coder: CodecLike) -> Result:
    spec = coder.frame_spec
    rates = (37, 100)
    audio = np.zeros((len(rates), spec.samples(1.2)))
    for row, rate in zip(audio, rates, strict=True):
        row[[spec.samples(pulse / rate) for pulse in range(int(1.2 * rate))]] = 0.5
    steady = slice(spec.samples(0.2), spec.samples(1.1))
    levels = [_level_difference(x[steady], y[steady]) for x, y in zip(audio, through(coder, audio), strict=True)]
    figures = {"worst_db": levels[_furthest(levels)]} | {
        f"at_{rate}_hz_db": level for rate, level in zip(rates, levels, strict=True)
    }
    return Result("pulse trains", figures)


# Levels


def speech_levels(coder: CodecLike, recordings: Recordings) -> list[Result]:
    """Measure speech with peaks from -60 to 0 dBFS: level, and PESQ relative to 0 dBFS, means over the clips.

    PESQ is computed after amplification to a peak of 0 dBFS, so that the resolution of PESQ does not matter.
    """
    rate = coder.frame_spec.sample_rate
    speech = recordings.speech / np.abs(recordings.speech).max(axis=1, keepdims=True)
    peaks = range(-60, 1, 10)
    means, worst_clips, scores = [], [], []
    for peak in peaks:
        gain = 10 ** (peak / 20)
        decoded = through(coder, gain * speech)
        differences = [_level_difference(gain * x, y) for x, y in zip(speech, decoded, strict=True)]
        means.append(float(np.mean(differences)))
        worst_clips.append(differences[_furthest(differences)])
        scores.append(_mean_pesq(speech, decoded / gain, rate))
    ratios = [score / scores[-1] for score in scores]
    figures = {
        "level_worst_db": means[_furthest(means)],
        "level_worst_clip_db": worst_clips[_furthest(worst_clips)],
        "pesq_ratio_worst": min(ratios[1:]),  # down to -50 dBFS
        "pesq_ratio_quietest": ratios[0],
    }
    listed = " ".join(f"{mean:.1f}" for mean in means), " ".join(f"{score:.2f}" for score in scores)
    return [Result("speech levels", figures, f"-60 to 0 dBFS: {listed[0]} dB; PESQ {listed[1]}")]


def noise_levels(coder: CodecLike, *, quick: bool = False) -> list[Result]:
    """Measure white and pink noise from -70 to -10 dBFS RMS: levels of octaves from 125 Hz, and of the whole signal."""
    spec = coder.frame_spec
    levels = range(-70, -9, 10)
    seconds = 1.5 if quick else 3.0
    centers = [
        center for center in (125, 250, 500, 1000, 2000, 4000, 8000) if center * 2**0.5 <= 0.48 * spec.sample_rate
    ]
    results = []
    for color in ("white", "pink"):
        source = noise(spec.samples(seconds), rate=spec.sample_rate, color=color, seed=7)
        audio = np.stack([np.clip(10 ** (level / 20) * source, -1, 1) for level in levels])
        steady = slice(spec.samples(0.3), None)
        octaves, wholes = [], []
        for level, x, y in zip(levels, audio, through(coder, audio), strict=True):
            wholes.append(_level_difference(x[steady], y[steady]))
            for center in centers:
                band = center / 2**0.5, center * 2**0.5
                before, after = (_band_power(signal[steady], spec.sample_rate, band) for signal in (x, y))
                octaves.append((_decibels(after, before), level, center))
        worst, level, center = max(octaves, key=lambda entry: abs(entry[0]))
        figures = {
            "octave_worst_db": worst,
            "octave_median_db": float(np.median([abs(entry[0]) for entry in octaves])),
            "level_worst_db": wholes[_furthest(wholes)],
        }
        listed = " ".join(f"{whole:.1f}" for whole in wholes)
        note = f"worst at {level} dBFS, octave of {center} Hz; -70 to -10 dBFS: {listed} dB"
        results.append(Result(f"{color} noise levels", figures, note))
    return results


def noisy_pauses(coder: CodecLike, recordings: Recordings) -> list[Result]:
    """Measure the level in pauses of speech with white and pink noise at an SNR of 10 dB; worst clip and mean."""
    spec = coder.frame_spec
    rate, frame = spec.sample_rate, spec.samples(0.02)
    differences = []
    for number, color in enumerate(("white", "pink")):
        mixed = []
        for clip in recordings.speech:
            added = noise(len(clip), rate=rate, color=color, seed=11 + number)
            mixed.append(clip + added * math.sqrt(float(np.mean(clip**2)) / 10))
        audio = np.clip(np.stack(mixed) * 0.5, -1, 1)
        for clip, x, y in zip(recordings.speech, audio, through(coder, audio), strict=True):
            pause = np.repeat(_pauses(clip, frame), frame)
            if pause.any():
                x, y = x[: len(pause)][pause], y[: len(pause)][pause]
                differences.append(_level_difference(x, y))
    if not differences:
        return [Result("pauses in noise", {"worst_db": math.nan}, "no pauses found")]
    worst = differences[_furthest(differences)]
    return [Result("pauses in noise", {"worst_db": worst, "mean_db": float(np.mean(differences))})]


def _pauses(clip: Signal, frame: int) -> NDArray[np.bool_]:
    """Mark the frames inside pauses: runs of five or more frames 35 dB below the loudest, without first and last."""
    power = np.mean(clip[: len(clip) // frame * frame].reshape(-1, frame) ** 2, axis=1)
    low = power < power.max() * 10**-3.5
    inside = np.zeros(len(low), np.bool_)
    for quiet, run in groupby(range(len(low)), key=lambda index: bool(low[index])):
        indices = list(run)
        if quiet and len(indices) >= 5:
            inside[indices[1:-1]] = True
    return inside


# Periodicity of noise


def periodicity(coder: CodecLike, recordings: Recordings, *, quick: bool = False) -> list[Result]:
    """Measure the excess of `hop_periodicity` by band, for white noise, rain and fricatives."""
    spec = coder.frame_spec
    white = noise(spec.samples(6 if quick else 12), rate=spec.sample_rate, color="white", seed=3).reshape(3, -1) / 10
    results = [_periodicity(coder, "white noise", white, None)]
    if len(recordings.rain):
        results.append(_periodicity(coder, "rain", recordings.rain, None))
    fricatives = np.stack([_fricatives(clip, spec) for clip in recordings.speech])
    return [*results, _periodicity(coder, "fricatives", recordings.speech, fricatives)]


def _periodicity(coder: CodecLike, name: str, audio: Signal, frames: NDArray[np.bool_] | None) -> Result:
    """The excess of `hop_periodicity` in each band, mean over the clips; `frames` [batch, frames] restricts it."""
    spec = coder.frame_spec
    nyquist = int(NYQUIST_MARGIN * spec.sample_rate)
    bands = [(low, min(high, nyquist)) for low, high in HOP_BANDS if low < nyquist]
    excess = []
    for index, (x, y) in enumerate(zip(audio, through(coder, audio), strict=True)):
        options: dict[str, Any] = {}
        if frames is not None:  # fricatives are shorter than the usual segment
            mask = np.zeros(len(x), np.bool_)
            whole = np.repeat(frames[index], spec.hop)
            mask[: len(whole)] = whole
            options = {"segment_seconds": 0.0, "mask": mask}
        pair = x.astype(np.float32), y.astype(np.float32)
        found = hop_periodicity(*pair, rate=spec.sample_rate, hop=spec.hop, bands=bands, **options)
        excess.append([band.excess for band in found])
    figures: dict[str, float] = {}
    for (low, high), values in zip(bands, np.array(excess).T, strict=True):
        mean = float(np.nanmean(values)) if not np.isnan(values).all() else math.nan
        figures[f"{low / 1000:g}_to_{high / 1000:g}_khz"] = mean
    worst = max((value for value in figures.values() if not math.isnan(value)), default=math.nan)
    note = f"{int(frames.sum())} frames" if frames is not None else ""
    return Result(f"periodicity, {name}", {"worst": worst, **figures}, note)


def _fricatives(clip: Signal, spec: FrameSpec) -> NDArray[np.bool_]:
    """Mark the frames of fricatives: within 40 dB of the loudest frame, with 70 % of their energy above 3 kHz.

    At low sample rates the limit is the upper three quarters of the spectrum.
    """
    hop = spec.hop
    high = _band(clip, spec.sample_rate, (min(3000, spec.sample_rate / 8), spec.sample_rate))
    whole, upper = (np.mean(signal[: len(clip) // hop * hop].reshape(-1, hop) ** 2, axis=1) for signal in (clip, high))
    chosen: NDArray[np.bool_] = (whole > whole.max() * 1e-4) & (upper > 0.7 * whole)
    return chosen


def stripes(coder: CodecLike, *, quick: bool = False) -> list[Result]:
    """Measure modulation of decoded white noise (-20 dBFS) at one, two and three times the frame rate.

    Figures are lines in the spectrum of the power envelope, in dB over their surroundings; whole band and top octave.
    """
    spec = coder.frame_spec
    frames = 50  # in a segment, so that the frame rate is bin 50 of its spectrum
    segments = 5 if quick else 12
    size = frames * spec.hop
    rows = 2
    source = noise(rows * (segments + 1) * size, rate=spec.sample_rate, color="white", seed=5)
    audio = source.reshape(rows, -1) / 10
    decoded = through(coder, audio)
    top = (spec.sample_rate / 4, NYQUIST_MARGIN * spec.sample_rate)
    window = np.hanning(size + 1)[:-1]

    def lines(signal: Signal) -> list[float]:
        power = signal[:, 10 * spec.hop :] ** 2
        starts = range(0, power.shape[1] - size + 1, size // 2)
        parts = np.stack([row[start : start + size] for row in power for start in starts])
        parts = (parts - parts.mean(axis=1, keepdims=True)) * window
        spectrum = np.mean(np.abs(np.fft.rfft(parts)[:, : 5 * frames]) ** 2, axis=0)
        found = []
        for line in (frames, 2 * frames, 3 * frames):
            around = np.concatenate([spectrum[line - 20 : line - 2], spectrum[line + 3 : line + 21]])
            found.append(_ratio_db(float(spectrum[line]), float(around.mean())))
        return found

    whole, upper = lines(decoded), lines(_band(decoded, spec.sample_rate, top))
    figures = {"worst_db": max(whole), "top_octave_worst_db": max(upper)}
    texts = (" ".join(f"{line:.1f}" for line in group) for group in (whole, upper))
    return [Result("stripes", figures, "{}; top octave {}".format(*texts))]


MODULATION_BANDS = tuple(pairwise((100, 500, 1000, 1500, 2000, 3000, 4500, 6500, 11_000)))  # Hz


def modulation(coder: CodecLike, *, quick: bool = False) -> list[Result]:
    """Measure how deep the power of decoded white noise (-20 dBFS) is modulated at the frame rate in each band.

    The power is averaged over all frames for each sample of a frame; a depth is the largest amplitude of one, two or
    three periods in a frame, relative to the mean. `stripes` looks at the whole band, in which modulations of bands may
    cancel.
    """
    spec = coder.frame_spec
    rows, frames = 2, 250 if quick else 600
    source = noise(rows * (frames + 20) * spec.hop, rate=spec.sample_rate, color="white", seed=7)
    decoded = through(coder, source.reshape(rows, -1) / 10)
    figures = {}
    for low, high in MODULATION_BANDS:
        if low < NYQUIST_MARGIN * spec.sample_rate:
            power = _band(decoded, spec.sample_rate, (low, high))[:, 10 * spec.hop : (10 + frames) * spec.hop] ** 2
            profile = np.fft.rfft(power.reshape(-1, spec.hop).mean(axis=0))
            depths = 2 * np.abs(profile[1:4]) / max(profile[0].real, 1e-20)
            figures[f"{low / 1000:g}_to_{high / 1000:g}_khz"] = float(depths.max())
    return [Result("modulation", {"worst": max(figures.values()), **figures})]


def coloration(coder: CodecLike, *, quick: bool = False) -> list[Result]:
    """Measure the ripple in the spectrum of decoded white noise (-20 dBFS), whose average spectrum is flat.

    Figures are the standard deviation, the least and the largest of the average spectrum over that of the source, in
    bins of 1/2048 of the sample rate above 1/16 of it, in dB over the mean of 1/24 of it around each bin.
    """
    spec = coder.frame_spec
    size = 2048
    source = noise(spec.samples(6 if quick else 12), rate=spec.sample_rate, color="white", seed=9).reshape(3, -1) / 10

    def spectrum(rows: Signal) -> NDArray[np.float64]:
        steady = rows[:, spec.samples(0.3) :]
        parts = sliding_window_view(steady, size, axis=1)[:, :: size // 2].reshape(-1, size)
        power: NDArray[np.float64] = (np.abs(np.fft.rfft(parts * np.hanning(size + 1)[:-1])) ** 2).mean(axis=0)
        return power

    decoded, original = spectrum(through(coder, source)), spectrum(source)
    ratio = 10 * np.log10(np.maximum(decoded, 1e-20) / original)
    around = size // 48  # bins on each side
    smooth = sliding_window_view(np.pad(ratio, around, mode="reflect"), 2 * around + 1).mean(axis=1)
    ripple = (ratio - smooth)[size // 16 : round(NYQUIST_MARGIN * size)]
    figures = {"ripple_db": float(ripple.std()), "least_db": float(ripple.min()), "most_db": float(ripple.max())}
    return [Result("coloration", figures)]


# Silence and full scale


def silence(coder: CodecLike, recordings: Recordings) -> list[Result]:
    """Measure the RMS level of decoded zeros, alone and from 0.25 s after the end of loud speech; worst clip."""
    spec = coder.frame_spec
    zeros = through(coder, np.zeros((1, spec.samples(2))))[0]
    loud = 0.9 * recordings.speech / np.abs(recordings.speech).max(axis=1, keepdims=True)
    audio = np.pad(loud, ((0, 0), (0, spec.samples(1))))
    tails = through(coder, audio)[:, loud.shape[1] + spec.samples(0.25) :]
    return [Result("silence", {"level_dbfs": _level(zeros), "after_speech_dbfs": max(map(_level, tails))})]


def overshoot(coder: CodecLike, recordings: Recordings) -> list[Result]:
    """Measure peaks above 1.0 of full-scale square waves, sines and clipped speech, and wrapped samples.

    Wrapped samples differ from the clipped output in a 16-bit WAV file.
    """
    spec = coder.frame_spec
    time = np.arange(spec.samples(0.6)) / spec.sample_rate
    tones = np.stack([np.sin(2 * np.pi * frequency * time) for frequency in (60, 100, 441, 1000, 3000)])
    groups = {
        "square": np.sign(tones),
        "sine": tones,
        "speech": np.clip(8 * recordings.speech / np.abs(recordings.speech).max(axis=1, keepdims=True), -1, 1),
    }
    figures, wrapped = {}, 0
    for name, audio in groups.items():
        decoded = through(coder, audio)
        figures[f"{name}_db"] = max(SILENT, 20 * math.log10(max(1e-10, float(np.abs(decoded).max()))))
        stored = _through_wav(decoded, spec.sample_rate)
        wrapped += int((np.abs(stored - np.clip(decoded, -1, 1)) > 1e-4).sum())
    return [Result("overshoot", {"worst_db": max(figures.values()), **figures, "wrapped_samples": wrapped})]


def _through_wav(audio: Signal, rate: int) -> Signal:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "decoded.wav")
        write_audio(path, audio.astype(np.float32).reshape(1, -1), rate)
        return read_audio(path)[0].reshape(audio.shape)


# Codes of decoded audio


def generations(coder: CodecLike, recordings: Recordings, *, count: int = 10) -> list[Result]:
    """Encode, decode and round speech and music to 16 bits `count` times; compare levels, PESQ and codes.

    Levels are those of the last generation minus those of the original, for the whole signal and for frequencies above
    4 kHz (or a quarter of the sample rate if that is less). PESQ is the last generation's over the first's. Shares are
    those of codes of the second generation that equal the first.
    """
    rate = coder.frame_spec.sample_rate
    kinds = [audio for audio in (recordings.speech, recordings.music) if len(audio)]
    equal_first, equal_all = [], []
    levels, highs, ratio = [], [], math.nan
    for kind in kinds:
        original = audio = to_16_bit(kind)
        first_codes: CodeArray | None = None
        first_audio = audio
        for generation in range(count):
            codes = encoded(coder, audio)
            if generation == 1 and first_codes is not None:
                first, every = _equal_shares(first_codes, codes)
                equal_first.append(first)
                equal_all.append(every)
            audio = to_16_bit(decoded_audio(coder, codes, audio.shape[1]))
            if generation == 0:
                first_codes, first_audio = codes, audio
        band = (min(4000, rate / 4), rate)
        for x, y in zip(original, audio, strict=True):
            levels.append(_level_difference(x, y))
            before, after = (_band_power(signal, rate, band) + DRIFT_FLOOR for signal in (x, y))
            highs.append(_decibels(after, before))
        if kind is recordings.speech:
            ratio = _mean_pesq(original, audio, rate) / _mean_pesq(original, first_audio, rate)
    speech = len(recordings.speech)
    note = "; ".join(
        f"{name} {np.mean(levels[part]):.1f}, highs {np.mean(highs[part]):.1f} dB"
        for name, part in (("speech", slice(speech)), ("music", slice(speech, None)))
        if levels[part]
    )
    figures = {
        "level_worst_db": levels[_furthest(levels)],
        "level_mean_db": float(np.mean(levels)),
        "highs_worst_db": highs[_furthest(highs)],
        "highs_mean_db": float(np.mean(highs)),
        "pesq_ratio": ratio,
    }
    shares = {"codebook_0_share": float(np.mean(equal_first)), "all_share": float(np.mean(equal_all))}
    return [Result("generations", figures, note), Result("second generation", shares)]


def stability(coder: CodecLike, recordings: Recordings) -> list[Result]:
    """Count codes of speech that stay equal under a gain of -6 dB, inverted polarity, a delay of one sample, and
    noise of one step of 16 bits."""
    speech = to_16_bit(recordings.speech)
    steps = np.random.default_rng(13).integers(-1, 2, speech.shape) / 32768
    delayed = np.pad(speech, ((0, 0), (1, 0)))[:, :-1]
    changes = {"gain -6 dB": speech * 10 ** (-6 / 20), "polarity": -speech, "delay": delayed, "±1 LSB": speech + steps}
    codes = encoded(coder, speech)
    results = []
    for name, changed in changes.items():
        first, every = _equal_shares(codes, encoded(coder, changed))
        results.append(Result(f"codes, {name}", {"codebook_0_share": first, "all_share": every}))
    return results


def _equal_shares(codes: CodeArray, others: CodeArray) -> tuple[float, float]:
    equal = codes == others
    return float(equal[:, 0].mean()), float(equal.mean())


# Through the codec, in batches


def through(coder: CodecLike, audio: Signal, num_codebooks: int | None = None) -> Signal:
    """Encode and decode audio [batch, time]."""
    parts = _parts(coder, audio)
    return np.concatenate([_decode(coder, _encode(coder, part, num_codebooks), audio.shape[1]) for part in parts])


def encoded(coder: CodecLike, audio: Signal, num_codebooks: int | None = None) -> CodeArray:
    """Encode audio [batch, time] to codes [batch, codebooks, frames]."""
    return np.concatenate([_encode(coder, part, num_codebooks).cpu().numpy() for part in _parts(coder, audio)])


def decoded_audio(coder: CodecLike, codes: CodeArray, time: int) -> Signal:
    """Decode codes [batch, codebooks, frames] to audio [batch, time]."""
    rows = max(1, int(BATCH_SECONDS * coder.frame_spec.sample_rate / time))
    starts = range(0, len(codes), rows)
    return np.concatenate([_decode(coder, torch.from_numpy(codes[start : start + rows]), time) for start in starts])


def _parts(coder: CodecLike, audio: Signal) -> Iterator[Signal]:
    rows = max(1, int(BATCH_SECONDS * coder.frame_spec.sample_rate / audio.shape[1]))
    for start in range(0, len(audio), rows):
        yield audio[start : start + rows]


def _encode(coder: CodecLike, audio: Signal, num_codebooks: int | None) -> Tensor:
    return coder.encode(torch.from_numpy(audio.astype(np.float32))[:, None], num_codebooks=num_codebooks)


def _decode(coder: CodecLike, codes: Tensor, time: int) -> Signal:
    decoded: Signal = coder.decode(codes, length=time)[:, 0].cpu().numpy().astype(np.float64)
    return decoded


# Signals


def noise(time: int, *, rate: int, color: str, seed: int) -> Signal:
    """Generate white or pink noise [time] of RMS 1; pink has equal power per octave from 20 Hz."""
    white = np.random.default_rng(seed).standard_normal(time)
    if color == "pink":
        frequencies = np.fft.rfftfreq(time, 1 / rate)
        shape = np.where(frequencies < 20, 0, 1 / np.sqrt(np.maximum(frequencies, 20)))
        white = np.fft.irfft(np.fft.rfft(white) * shape, time)
    return white / math.sqrt(float(np.mean(white**2)))


def to_16_bit(audio: Signal) -> Signal:
    """Round to 16-bit values, clipped at full scale."""
    return np.clip(np.rint(audio * 32768), -32768, 32767) / 32768


def _tone(spec: FrameSpec, frequency: float, level: float, seconds: float) -> Signal:
    time = np.arange(spec.samples(seconds)) / spec.sample_rate
    ramp = np.minimum(1, time / 0.01)
    return 10 ** (level / 20) * ramp * np.sin(2 * np.pi * frequency * time)


def _beep(spec: FrameSpec, frequency: float, level: float, seconds: float) -> Signal:
    """Tone with ramps of 5 ms and 0.1 s of silence at both ends."""
    time = np.arange(spec.samples(seconds)) / spec.sample_rate
    ramp = np.minimum(1, np.minimum(time, seconds - time) / 0.005)
    tone = 10 ** (level / 20) * ramp * np.sin(2 * np.pi * frequency * time)
    return np.pad(tone, spec.samples(0.1))


# Measures


def _amplitude_difference(
    original: Signal, output: Signal, frequency: float, spec: FrameSpec, steady: tuple[float, float]
) -> float:
    (before,), (after,) = (_amplitudes(signal, (frequency,), spec, steady) for signal in (original, output))
    return _decibels(after**2, before**2)


def _amplitudes(
    signal: Signal, frequencies: Sequence[float], spec: FrameSpec, steady: tuple[float, float]
) -> list[float]:
    """Amplitudes of sines between two times in s, by a least-squares fit under a Hann window."""
    begin, end = map(spec.samples, steady)
    time = np.arange(begin, end) / spec.sample_rate
    window = np.hanning(len(time) + 2)[1:-1, None]
    angles = 2 * np.pi * np.outer(time, frequencies)
    basis = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    fitted = np.linalg.lstsq(basis * window, signal[begin:end] * window[:, 0], rcond=None)[0]
    return [float(amplitude) for amplitude in np.hypot(*np.split(fitted, 2))]


def _convolved(signal: NDArray[np.complexfloating[Any, Any]], window: Signal) -> NDArray[np.complexfloating[Any, Any]]:
    size = len(signal) + len(window) - 1
    full = np.fft.ifft(np.fft.fft(signal, size) * np.fft.fft(window, size))
    return full[len(window) // 2 :][: len(signal)]


def _band(audio: Signal, rate: int, band: tuple[float, float]) -> Signal:
    """Band-limit a signal (Hz) by setting the other frequencies to zero."""
    frequencies = np.fft.rfftfreq(audio.shape[-1], 1 / rate)
    inside = (frequencies >= band[0]) & (frequencies < band[1])
    return np.fft.irfft(np.fft.rfft(audio) * inside, audio.shape[-1])


def _band_power(signal: Signal, rate: int, band: tuple[float, float]) -> float:
    return float(np.mean(_band(_faded(signal, rate), rate, band) ** 2))  # abrupt ends would leak into all bands


def _faded(signal: Signal, rate: int) -> Signal:
    """Fade the signal [time] in and out over 10 ms."""
    index = np.arange(len(signal))
    ramp = np.minimum(1, np.minimum(index, index[::-1]) / (0.01 * rate))
    faded: Signal = signal * np.sin(np.pi / 2 * ramp) ** 2
    return faded


def _mean_pesq(reference: Signal, degraded: Signal, rate: int) -> float:
    scores = [
        pesq_wb(x.astype(np.float32), y.astype(np.float32), rate=rate) for x, y in zip(reference, degraded, strict=True)
    ]
    return float(np.nanmean(scores)) if not all(map(math.isnan, scores)) else math.nan


def _level(signal: Signal) -> float:
    power = float(np.mean(signal**2))
    return max(SILENT, 10 * math.log10(power)) if power > 0 else SILENT


def _level_difference(original: Signal, output: Signal) -> float:
    return _decibels(float(np.mean(output**2)), float(np.mean(original**2)))


def _decibels(after: float, before: float) -> float:
    return 10 * math.log10((after + FLOOR) / (before + FLOOR))


def _ratio_db(part: float, rest: float) -> float:
    if part <= 0:
        return -MAX_RATIO
    return min(MAX_RATIO, max(-MAX_RATIO, 10 * math.log10(part / rest))) if rest > 0 else MAX_RATIO


def _furthest(differences: Sequence[float] | Signal) -> int:
    """Index of the value farthest from 0."""
    return int(np.argmax(np.abs(differences)))
