"""Quality measures of a decoded signal, most of them against the original.

Signals are mono, [time], two of equal length. Distances (`mel_dac`, `stft_dac`, `mrstft`, `lsd`) are 0 for equal
signals and compare magnitudes only: they do not measure phase, and `si_sdr` does not measure level. NaN means that a
measure is not defined for these signals.

A codec may be trained with losses that imitate PESQ and STOI, which raises these two scores: read them beside measures
that are independent of the losses (ViSQOL, DNSMOS, `si_sdr`, `hop_periodicity`). docs/evaluate.md lists what each
measure does not measure.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from librosa.filters import mel as mel_bank
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from codec.errors import MissingDependency, UsageError
from codec.io.audio import resample
from codec.io.loudness import LoudnessMeter

Floats = NDArray[np.float32]

SPEECH_RATE = 16_000  # Hz: PESQ-wb is defined at this rate, and STOI is computed at it
PESQ_PIECE = 20  # s; the ITU code writes past its table of 50 utterances, which take at least 0.4 s each
PESQ_LOST = 0.999 + 4 / (1 + math.exp(1.3669 * 0.5 + 3.8224))  # P.862.2 mapping of -0.5, the lower end of P.862
VISQOL_PIECE = 20  # s; ViSQOL was fitted to clips of about 10 s, and its time and memory grow with length
VISQOL_SHORTEST = 1.0  # s; patches of speech take 0.4 s, of audio 0.6 s, and the first begins half a patch late
DNSMOS_SHORTEST = 0.25  # s; DNSMOS repeats signals that are shorter than 9.01 s
MEL_SCALES = ((5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048))  # bands, window in samples
SI_SDR_BANDS = (
    *((0, 500), (500, 1000), (1000, 1500), (1500, 2000), (2000, 3000)),
    *((3000, 4000), (4000, 6000), (6000, 8000), (8000, 12_000)),
)  # Hz
HOP_BANDS = ((100, 1000), (1000, 3000), (3000, 6000), (6000, 11_000))  # Hz
HOP_SEGMENT = 0.25  # s
SPECTRA = 256  # frames per block, because the spectra of a whole hour do not fit into memory


# Waveform and spectra


def si_sdr(reference: Floats, degraded: Floats) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, means removed; NaN where the reference is silent.

    Le Roux et al., "SDR - half-baked or well done?", 2019, eq. 5.
    """
    _check_pair(reference, degraded)
    target, estimate = (signal - signal.mean() for signal in (reference.astype(float), degraded.astype(float)))
    if not target.any():
        return math.nan
    target *= estimate @ target / (target @ target)
    noise = estimate - target
    floor = 1e-8  # keeps the ratio of equal signals and of silent output finite
    return float(10 * np.log10((target @ target + floor) / (noise @ noise + floor)))


@dataclass(frozen=True)
class BandRatio:
    """SI-SDR in dB of the band from `low` to `high` Hz."""

    low: int
    high: int
    si_sdr: float


def si_sdr_bands(
    reference: Floats, degraded: Floats, *, rate: int, bands: Sequence[tuple[int, int]] = SI_SDR_BANDS
) -> tuple[BandRatio, ...]:
    """`si_sdr` of each band, low <= f < high in Hz, from spectra of 2048 samples (Hann window, without padding).

    Each band has its own scale. NaN if the band lies above the Nyquist frequency or the reference has less than -100 dB
    re full scale in it, which is about one step of 16 bits; 0 if the degraded signal is silent in it, as in `si_sdr`.
    """
    _check_pair(reference, degraded)
    window = min(2048, len(reference))
    masks, hann = _band_masks(window, rate, bands), _hann(window)
    frames = [sliding_window_view(each, window)[:: max(1, round(window / 4))] for each in (reference, degraded)]
    sums = np.zeros((3, len(bands)))  # of |x|^2, |y|^2, x y*
    for start in range(0, len(frames[0]), SPECTRA):
        x, y = (np.fft.rfft(each[start : start + SPECTRA] * hann) for each in frames)  # [frames, bins]
        for total, products in zip(sums, (np.abs(x) ** 2, np.abs(y) ** 2, (x * y.conj()).real), strict=True):
            total += products.sum(axis=0) @ masks
    sums *= 2 / max(window * np.square(hann).sum() * len(frames[0]), 1e-30)  # Parseval: mean powers
    ratios = []
    for (low, high), (xx, yy, xy) in zip(bands, sums.T, strict=True):
        if xx <= 1e-10:
            ratios.append(BandRatio(low, high, math.nan))
            continue
        target, floor = xy**2 / xx, 1e-8 / len(reference)
        ratios.append(BandRatio(low, high, 10 * math.log10((target + floor) / (max(0.0, yy - target) + floor))))
    return tuple(ratios)


@dataclass(frozen=True)
class BandPeriodicity:
    """Autocorrelation at a lag of one hop within `low` to `high` Hz, -1 to 1, of the reference and of the degraded."""

    low: int
    high: int
    reference: float
    degraded: float

    @property
    def excess(self) -> float:
        """The degraded signal's periodicity minus the reference's."""
        return self.degraded - self.reference


def hop_periodicity(
    reference: Floats,
    degraded: Floats,
    *,
    rate: int,
    hop: int,
    bands: Sequence[tuple[int, int]] = HOP_BANDS,
    segment_seconds: float = HOP_SEGMENT,
    mask: NDArray[np.bool_] | None = None,
) -> tuple[BandPeriodicity, ...]:
    """Autocorrelation of each band at a lag of one hop, `hop` in samples at `rate` Hz: 0 for noise, 1 for a buzz.

    A decoder that gives every frame the same phase turns noise into a buzz at the frame rate, which distances of
    magnitudes do not measure. The signal is cut into segments of `segment_seconds` (at least 4 hops) that overlap by
    half, under a Hann window. For y(t) and y(t - hop), limited to the band, the value of a segment is
    < y(t) y(t - hop) > / sqrt(< y(t)^2 > < y(t - hop)^2 >). The result is the mean over the segments in which the
    degraded band is not silent; the reference's mean is over the same segments, where silent segments count 0.
    Silent is 60 dB below the mean power of the whole reference, or below -90 dB re full scale. `mask` [time] keeps only
    the segments that lie inside it, with the hop before them.

    Example: white noise has 0.0 and 0.0; noise whose decoded form repeats every hop 0.0 and 1.0; a tone with a whole
    number of periods in a hop 1.0 and 1.0, so its excess is 0. On a few seconds, differences below 0.05 mean nothing.

    NaN if the band lies above the Nyquist frequency, no segment counts, or the signal is shorter than 5 hops.
    """
    _check_pair(reference, degraded)
    segment = min(max(round(segment_seconds * rate), 4 * hop), len(reference) - hop)
    if segment < 4 * hop:
        return tuple(BandPeriodicity(low, high, math.nan, math.nan) for low, high in bands)
    silence = max(1e-6 * float(np.square(reference, dtype=float).mean()), 1e-9)
    (x, x_power), (y, y_power) = (
        _lag_correlation(signal, hop, segment, _band_masks(segment, rate, bands)) for signal in (reference, degraded)
    )  # [segments, bands]
    x = np.where(x_power > silence, x, 0)
    counted: NDArray[np.bool_] = np.asarray(y_power > silence)
    if mask is not None:
        counted &= np.all(sliding_window_view(mask, segment + hop)[:: _half(segment)], axis=1, keepdims=True)
    results = []
    for index, (low, high) in enumerate(bands):
        if counted[:, index].any():
            means = (float(each[counted[:, index], index].mean()) for each in (x, y))
            results.append(BandPeriodicity(low, high, *means))
        else:
            results.append(BandPeriodicity(low, high, math.nan, math.nan))
    return tuple(results)


def _lag_correlation(
    signal: Floats, hop: int, segment: int, masks: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Normalized correlation of each segment with the samples one hop earlier, and its mean power: [segments, bands].
    hann = _hann(segment)
    now, before = (sliding_window_view(part, segment)[:: _half(segment)] for part in (signal[hop:], signal[:-hop]))
    correlations, powers = [], []
    for start in range(0, len(now), SPECTRA):
        x, y = (np.fft.rfft(each[start : start + SPECTRA] * hann) for each in (now, before))  # [segments, bins]
        power = np.sqrt((np.abs(x) ** 2 @ masks) * (np.abs(y) ** 2 @ masks))  # [segments, bands]
        correlations.append((x * y.conj()).real @ masks / np.maximum(power, 1e-30))
        powers.append(2 * power / (segment * np.square(hann).sum()))
    return np.concatenate(correlations), np.concatenate(powers)


def _half(segment: int) -> int:
    return max(1, round(segment / 2))


def _hann(time: int) -> NDArray[np.float64]:
    return np.hanning(time + 1)[:-1]  # periodic


def _band_masks(time: int, rate: int, bands: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    frequencies = np.fft.rfftfreq(time, 1 / rate)
    columns = [(frequencies >= low) & (frequencies < min(high, rate / 2)) for low, high in bands]
    return np.stack(columns, axis=1).astype(float)  # [bins, bands]


def mel_dac(reference: Floats, degraded: Floats, *, rate: int) -> float:
    """Mel distance of DAC (its loss and its measure): sum over seven scales of the mean |log10 mel - log10 mel|.

    Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023, section 3.5, with the settings of its
    `conf/base.yml`. The value depends on `rate` in Hz and on bandwidth: compare only values at the same rate.
    """
    _check_pair(reference, degraded)
    distance = 0.0
    for bands, window in MEL_SCALES:
        bank = _mel_bank(rate, window, bands).T  # [bins, bands]
        pairs = _spectra(reference, degraded, window=window)
        distance += _mean(np.abs(_log10(x @ bank) - _log10(y @ bank)) for x, y in pairs)
    return distance


def stft_dac(reference: Floats, degraded: Floats) -> float:
    """Spectral distance of DAC: sum over windows of mean |log10 m^2 - log10 m^2| + mean |m - m|."""
    _check_pair(reference, degraded)
    distance = 0.0
    for window in (2048, 512):
        pairs = _spectra(reference, degraded, window=window)
        distance += _mean(2 * np.abs(_log10(x) - _log10(y)) + np.abs(x - y) for x, y in pairs)
    return distance


def mrstft(reference: Floats, degraded: Floats) -> float:
    """Multi-resolution STFT distance: mean over windows of the spectral convergence + mean |ln m - ln m|.

    Yamamoto et al., "Parallel WaveGAN", 2020, eq. 4 to 6.
    """
    _check_pair(reference, degraded)
    distances = []
    for window in (1024, 2048, 512):
        sums = np.zeros(4)  # of squared differences, squares, differences of logarithms, ones
        for pair in _spectra(reference, degraded, window=window):
            x, y = (np.maximum(magnitudes, np.float32(1e-4)) for magnitudes in pair)
            terms = np.square(x - y), np.square(x), np.abs(np.log(x) - np.log(y)), np.ones_like(x)
            sums += [term.sum(dtype=float) for term in terms]
        distances.append(math.sqrt(sums[0] / sums[1]) + sums[2] / sums[3])
    return float(np.mean(distances))


def lsd(reference: Floats, degraded: Floats) -> float:
    """Log-spectral distance: mean over frames of the root mean square difference of log10 power; times 10 for dB."""
    _check_pair(reference, degraded)
    return _mean(
        np.sqrt(np.square(np.log10(x**2 + 1e-8) - np.log10(y**2 + 1e-8)).mean(axis=1))
        for x, y in _spectra(reference, degraded, window=2048)
    )


def _spectra(reference: Floats, degraded: Floats, *, window: int) -> Iterator[tuple[Floats, Floats]]:
    # Magnitudes [frames, bins] of both signals, in blocks, because those of a whole hour do not fit into memory.
    # Periodic Hann window, hop of a quarter, centered frames with reflected ends, as in torch.stft.
    hann = np.hanning(window + 1)[:-1].astype(np.float32)
    x, y = (
        sliding_window_view(np.pad(signal.astype(np.float32), window // 2, mode="reflect"), window)[:: window // 4]
        for signal in (reference, degraded)
    )  # [frames, window]
    block = 2**20 // window
    for start in range(0, len(x), block):
        cut = slice(start, start + block)
        yield np.abs(np.fft.rfft(x[cut] * hann)), np.abs(np.fft.rfft(y[cut] * hann))


@cache
def _mel_bank(rate: int, window: int, bands: int) -> Floats:
    return np.asarray(mel_bank(sr=rate, n_fft=window, n_mels=bands), np.float32)  # [bands, bins], Slaney


def _log10(magnitudes: Floats) -> Floats:
    return np.log10(np.maximum(magnitudes, np.float32(1e-5)))


def _mean(blocks: Iterable[Floats]) -> float:
    total, size = 0.0, 0
    for block in blocks:
        total += float(block.sum(dtype=float))
        size += block.size
    return total / size


def _check_pair(reference: Floats, degraded: Floats) -> None:
    if reference.ndim != 1 or reference.shape != degraded.shape or not reference.size:
        raise UsageError(
            f"signals of shape {reference.shape} and {degraded.shape} cannot be compared: "
            "give two mono signals [time] of equal length"
        )


# Speech


def pesq_wb(reference: Floats, degraded: Floats, *, rate: int) -> float:
    """Wide-band PESQ (ITU-T P.862.2), about 1.02 to 4.64, computed at 16 kHz; `rate` in Hz.

    P.862's raw scale ends at -0.5, which maps to 1.04, but the ITU code goes below: noise instead of speech scored
    1.018, and the mapping itself ends at 0.999. A degraded signal without any speech scores 1.04.

    Signals of more than 20 s are scored in equal pieces and averaged. NaN if PESQ finds no speech or the signal is
    shorter than 1/4 s. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    pesq = eval_package("pesq")
    x, y = (_at_rate(signal, rate, SPEECH_RATE) for signal in (reference, degraded))
    pieces = math.ceil(len(x) / (PESQ_PIECE * SPEECH_RATE))
    scores = []
    for piece, other in zip(np.array_split(x, pieces), np.array_split(y, pieces), strict=True):
        if not piece.any():
            continue
        try:
            scores.append(float(pesq.pesq(SPEECH_RATE, piece, other, "wb")))
        except (pesq.BufferTooShortError, pesq.NoUtterancesError):
            continue
        except ValueError:  # the level of `degraded` is 0 / 0, because none of the speech is left
            scores.append(PESQ_LOST)
    return sum(scores) / len(scores) if scores else math.nan


def stoi(reference: Floats, degraded: Floats, *, rate: int) -> float:
    """Short-time objective intelligibility, 0 to 1 (Taal et al., 2011), computed at 16 kHz; `rate` in Hz.

    NaN if fewer than 30 frames (0.4 s) remain without silence. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    pystoi = eval_package("pystoi")
    if len(reference) < 0.3 * rate or not reference.any():  # pystoi raises on much less than a frame
        return math.nan
    x, y = (_at_rate(signal, rate, SPEECH_RATE) for signal in (reference, degraded))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(x, y, SPEECH_RATE))
        except RuntimeWarning:
            return math.nan


def dnsmos(signal: Floats, *, rate: int) -> float:
    """Overall quality by DNSMOS P.835 (Reddy et al., 2022), 1 to 5, without a reference, at 16 kHz; `rate` in Hz.

    A network's prediction of listeners' opinion of noisy speech, so compare it with the score of the original, which
    need not be high. Signals shorter than 9.01 s are repeated, samples beyond full scale are clipped. NaN if the
    signal is silent or shorter than 1/4 s. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(signal, signal)
    package = eval_package("speechmos.dnsmos")
    if len(signal) < DNSMOS_SHORTEST * rate or not signal.any():
        return math.nan
    samples = np.clip(_at_rate(signal, rate, SPEECH_RATE), -1, 1)
    return float(package.run(samples, SPEECH_RATE)["ovrl_mos"])


# Level


def loudness(signal: Floats, *, rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4, `codec.io.loudness`); `rate` in Hz.

    NaN if the signal is shorter than the 0.4 s of a block or below -70 LUFS throughout. Raises MissingDependency where
    torchaudio cannot be imported.
    """
    meter = LoudnessMeter(rate)
    meter.push(signal[None])
    return meter.loudness


# Speech and audio


def visqol(reference: Floats, degraded: Floats, *, rate: int, mode: Literal["speech", "audio"]) -> float:
    """ViSQOL v3 (Chinen et al., 2020), MOS-LQO from 1 to about 4.5 (speech, 16 kHz) or 4.73 (audio, 48 kHz).

    The two modes have different scales. Speech mode maps similarity to MOS by the lattice network, as in the C++
    program. Signals of more than 20 s are scored in equal pieces and averaged. NaN if the reference is silent or
    shorter than 1 s; a silent output scores 1. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    check_visqol(mode)
    if len(reference) < VISQOL_SHORTEST * rate:
        return math.nan
    mode_rate = 16_000 if mode == "speech" else 48_000
    x, y = (_at_rate(signal, rate, mode_rate) for signal in (reference, degraded))
    pieces = math.ceil(len(x) / (VISQOL_PIECE * mode_rate))
    scores = []
    for piece, other in zip(np.array_split(x, pieces), np.array_split(y, pieces), strict=True):
        if not piece.any():
            continue  # ViSQOL would return its highest score
        if not other.any():
            scores.append(1.0)  # ViSQOL would return NaN
            continue
        with _torch_threads():
            scores.append(float(_visqol_api(mode).measure_from_arrays(piece, other, mode_rate).moslqo))
    return sum(scores) / len(scores) if scores else math.nan


@cache
def _visqol_api(mode: Literal["speech", "audio"]) -> Any:
    api = eval_package("visqol").VisqolApi()
    api.create(mode=mode)
    return api


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Make numba, which visqol computes with, use as many threads as torch.

    Both may share one OpenMP, and a parallel call of numba leaves its thread count to torch, which made encoding on a
    busy machine take five times as long.
    """
    numba = import_module("numba")  # a dependency of librosa
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_visqol(mode: Literal["speech", "audio"]) -> None:
    """Raise MissingDependency if `visqol` cannot run in a mode."""
    eval_package("visqol")
    if mode == "speech":
        eval_package("ai_edge_litert")  # without it, visqol falls back to a polynomial that scores 1 to 2 points higher


def _at_rate(signal: Floats, from_rate: int, to_rate: int) -> Floats:
    changed: Floats = resample(signal[None], from_rate, to_rate)[0]
    return changed


def eval_package(name: str) -> Any:
    """Import a package of the extra `eval`. Raises MissingDependency."""
    try:
        return import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise MissingDependency(
            f"{package} is not installed: it comes with the extra eval (`pip install '.[eval]'` in the project's "
            "folder); or omit the measure that needs it"
        ) from error
