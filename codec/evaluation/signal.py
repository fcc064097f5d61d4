"""Quality, rate and speed measures, and `evaluate`, which takes them of real files through the real file path.

Signals are mono, [time], two of equal length. Distances (`mel_dac`, `stft_dac`, `mrstft`, `lsd`) are 0 for equal
signals and compare magnitudes only: they say nothing about phase, and `si_sdr` nothing about level. NaN means that a
measure is not defined for the signals at hand; `evaluate` leaves such files out of that measure's mean.

A codec may be trained on losses that imitate PESQ and STOI, which then flatter it: read these two beside measures that
no loss imitates (ViSQOL, DNSMOS, `si_sdr`, `hop_periodicity`). docs/evaluate.md says what each measure does not see.
"""

import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from librosa.filters import mel as mel_bank
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from codec import compression as files
from codec.errors import CodecError, ConfigError, InputNotFound, MissingDependency, UsageError
from codec.evaluation.baselines import Baseline
from codec.io import bitstream
from codec.io.audio import is_audio_path, read_audio, resample
from codec.models.base import Codec

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
Group: TypeAlias = Literal["all", "domain", "set"]
_Key: TypeAlias = tuple[Group, str, str, int | None]  # group, name, codec, codebooks

SPEECH_RATE = 16_000  # Hz, at which PESQ-wb is defined and STOI taken
PESQ_PIECE = 20  # s; the ITU code writes past its 50 utterances, which take at least 0.4 s each
PESQ_LOST = 0.999 + 4 / (1 + math.exp(1.3669 * 0.5 + 3.8224))  # P.862.2 mapping of -0.5, where P.862's scale ends
VISQOL_PIECE = 20  # s; it was fitted to clips of some 10 s, and its time and memory grow with length
VISQOL_SHORTEST = 1.0  # s; patches of speech take 0.4 s, of audio 0.6 s, and the first begins half a patch late
DNSMOS_SHORTEST = 0.25  # s; it repeats what is shorter than 9.01 s
MEL_SCALES = ((5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048))  # bands, window in samples
SI_SDR_BANDS = (
    *((0, 500), (500, 1000), (1000, 1500), (1500, 2000), (2000, 3000)),
    *((3000, 4000), (4000, 6000), (6000, 8000), (8000, 12_000)),
)  # Hz
HOP_BANDS = ((100, 1000), (1000, 3000), (3000, 6000), (6000, 11_000))  # Hz
HOP_SEGMENT = 0.25  # s
SPECTRA = 256  # at a time: those of a whole hour would not fit into memory


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
    floor = 1e-8  # keeps equal signals and silent output finite
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
    """`si_sdr` of each band by itself, low <= f < high in Hz, by spectra of 2048 samples (Hann, inside the signal).

    Each band has its own scale. NaN where the band lies above Nyquist or holds less of the reference than -100 dB re
    full scale, about the step of 16 bits; 0 where nothing comes back in it, as with `si_sdr`.
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
        """What the codec added."""
        return self.degraded - self.reference


def hop_periodicity(
    reference: Floats, degraded: Floats, *, rate: int, hop: int, bands: Sequence[tuple[int, int]] = HOP_BANDS
) -> tuple[BandPeriodicity, ...]:
    """How far each band repeats itself after one hop, `hop` in samples at `rate` Hz: 0 for noise, 1 for a buzz.

    A decoder that gives every frame the same phase turns noise into a buzz at the frame rate, which measures of
    magnitudes do not see. In segments of 0.25 s (at least 4 hops), Hann window, every half of them, for y(t) and
    y(t - hop) cut to the band, < y(t) y(t - hop) > / sqrt(< y(t)^2 > < y(t - hop)^2 >); the mean over the segments in
    which the degraded band is not silent. The reference's mean is over the same segments and counts 0 where it is
    silent. Silent is 60 dB below the mean power of the whole reference, or below -90 dB re full scale.

    Example: white noise 0.0 and 0.0; noise whose decoded form repeats every hop 0.0 and 1.0; a tone with a whole
    number of periods in a hop 1.0 and 1.0, so its excess is 0. Over few seconds read nothing into less than 0.05.

    NaN where the band lies above Nyquist, is silent throughout, or the signal is shorter than 5 hops.
    """
    _check_pair(reference, degraded)
    segment = min(max(round(HOP_SEGMENT * rate), 4 * hop), len(reference) - hop)
    if segment < 4 * hop:
        return tuple(BandPeriodicity(low, high, math.nan, math.nan) for low, high in bands)
    silence = max(1e-6 * float(np.square(reference, dtype=float).mean()), 1e-9)
    (x, x_power), (y, y_power) = (
        _lag_correlation(signal, hop, segment, _band_masks(segment, rate, bands)) for signal in (reference, degraded)
    )  # [segments, bands]
    x = np.where(x_power > silence, x, 0)
    taken = y_power > silence
    found = []
    for number, (low, high) in enumerate(bands):
        if taken[:, number].any():
            means = (float(each[taken[:, number], number].mean()) for each in (x, y))
            found.append(BandPeriodicity(low, high, *means))
        else:
            found.append(BandPeriodicity(low, high, math.nan, math.nan))
    return tuple(found)


def _lag_correlation(
    signal: Floats, hop: int, segment: int, masks: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    # Normalized correlation of each segment with what lies one hop before it, and its mean power: [segments, bands].
    hann = _hann(segment)
    step = max(1, round(segment / 2))
    now, before = (sliding_window_view(part, segment)[::step] for part in (signal[hop:], signal[:-hop]))
    correlations, powers = [], []
    for start in range(0, len(now), SPECTRA):
        x, y = (np.fft.rfft(each[start : start + SPECTRA] * hann) for each in (now, before))  # [segments, bins]
        power = np.sqrt((np.abs(x) ** 2 @ masks) * (np.abs(y) ** 2 @ masks))  # [segments, bands]
        correlations.append((x * y.conj()).real @ masks / np.maximum(power, 1e-30))
        powers.append(2 * power / (segment * np.square(hann).sum()))
    return np.concatenate(correlations), np.concatenate(powers)


def _hann(time: int) -> NDArray[np.float64]:
    return np.hanning(time + 1)[:-1]  # periodic


def _band_masks(time: int, rate: int, bands: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
    frequencies = np.fft.rfftfreq(time, 1 / rate)
    columns = [(frequencies >= low) & (frequencies < min(high, rate / 2)) for low, high in bands]
    return np.stack(columns, axis=1).astype(float)  # [bins, bands]


def mel_dac(reference: Floats, degraded: Floats, *, rate: int) -> float:
    """Mel distance as DAC is trained and scored with: sum over seven scales of the mean |log10 mel - log10 mel|.

    Kumar et al., "High-Fidelity Audio Compression with Improved RVQGAN", 2023, section 3.5, with the settings of its
    `conf/base.yml`. Depends on `rate` in Hz and on bandwidth: compare only numbers of one rate.
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
    # Magnitudes [frames, bins] of both, a few frames at a time: a whole hour's would not fit into memory.
    # Periodic Hann, hop of a quarter, frames centred with reflected ends, as torch.stft has them.
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
    """Wide-band PESQ (ITU-T P.862.2), about 1.02 to 4.64; `rate` in Hz, taken at 16 kHz.

    P.862's raw scale ends at -0.5, which maps to 1.04, but the ITU code does not stop there: 1.018 was seen for noise
    in the place of speech; the mapping itself ends at 0.999. Speech that is lost altogether gets 1.04.

    Signals of more than 20 s are scored in equal pieces and averaged. NaN where no speech is found or the signal is
    shorter than 1/4 s. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    pesq = _eval_package("pesq")
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
        except ValueError:  # its level of `degraded` is 0 / 0: all of the speech is lost
            scores.append(PESQ_LOST)
    return sum(scores) / len(scores) if scores else math.nan


def stoi(reference: Floats, degraded: Floats, *, rate: int) -> float:
    """Short-time objective intelligibility, 0 to 1 (Taal et al., 2011); `rate` in Hz, taken at 16 kHz.

    NaN where fewer than 30 frames (0.4 s) are left without silence. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    pystoi = _eval_package("pystoi")
    if len(reference) < 0.3 * rate or not reference.any():  # it fails on much less than a frame instead of warning
        return math.nan
    x, y = (_at_rate(signal, rate, SPEECH_RATE) for signal in (reference, degraded))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(x, y, SPEECH_RATE))
        except RuntimeWarning:
            return math.nan


def dnsmos(signal: Floats, *, rate: int) -> float:
    """Overall quality by DNSMOS P.835 (Reddy et al., 2022), 1 to 5, without a reference; `rate` in Hz, at 16 kHz.

    A network's guess at listeners' opinion of speech with noise, so compare it with the score of the original, which
    need not be high. Signals shorter than 9.01 s are repeated, samples beyond full scale are clipped. NaN where the
    signal is silent or shorter than 1/4 s. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(signal, signal)
    package = _eval_package("speechmos.dnsmos")
    if len(signal) < DNSMOS_SHORTEST * rate or not signal.any():
        return math.nan
    samples = np.clip(_at_rate(signal, rate, SPEECH_RATE), -1, 1)
    return float(package.run(samples, SPEECH_RATE)["ovrl_mos"])


# Speech and audio


def visqol(reference: Floats, degraded: Floats, *, rate: int, mode: Literal["speech", "audio"]) -> float:
    """ViSQOL v3 (Chinen et al., 2020), MOS-LQO from 1 to about 4.5 (speech, 16 kHz) or 4.73 (audio, 48 kHz).

    The two modes are two scales. Speech is mapped by the lattice network, as in the C++ program. Signals of more than
    20 s are scored in equal pieces and averaged. NaN where the reference is silent or shorter than 1 s; an output that
    is silent gets 1. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    _check_visqol(mode)
    if len(reference) < VISQOL_SHORTEST * rate:
        return math.nan
    mode_rate = 16_000 if mode == "speech" else 48_000
    x, y = (_at_rate(signal, rate, mode_rate) for signal in (reference, degraded))
    pieces = math.ceil(len(x) / (VISQOL_PIECE * mode_rate))
    scores = []
    for piece, other in zip(np.array_split(x, pieces), np.array_split(y, pieces), strict=True):
        if not piece.any():
            continue  # it would give its highest score
        if not other.any():
            scores.append(1.0)  # it would give NaN
            continue
        with _torch_threads():
            scores.append(float(_visqol_api(mode).measure_from_arrays(piece, other, mode_rate).moslqo))
    return sum(scores) / len(scores) if scores else math.nan


@cache
def _visqol_api(mode: Literal["speech", "audio"]) -> Any:
    api = _eval_package("visqol").VisqolApi()
    api.create(mode=mode)
    return api


@contextmanager
def _torch_threads() -> Iterator[None]:
    """Let numba, in which visqol computes, use as many threads as torch does.

    Both may share one OpenMP, and a parallel call of numba leaves its number of threads to torch: on a busy machine
    encoding then took five times as long.
    """
    numba = import_module("numba")  # comes with librosa
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check_visqol(mode: Literal["speech", "audio"]) -> None:
    _eval_package("visqol")
    if mode == "speech":
        _eval_package("ai_edge_litert")  # without it visqol falls back to a polynomial that gives 1 to 2 points more


def _at_rate(signal: Floats, from_rate: int, to_rate: int) -> Floats:
    changed: Floats = resample(signal[None], from_rate, to_rate)[0]
    return changed


def _eval_package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        package = (error.name or name).partition(".")[0]
        raise MissingDependency(
            f"{package} is not installed: it comes with the extra eval (`pip install '.[eval]'` in the project's "
            "folder); or leave out the measure that needs it"
        ) from error


# Codes, rates, speed


@dataclass(frozen=True)
class CodebookUse:
    """How one codebook is used: share of its codes that occur, entropy in bits per code, perplexity = 2 ** entropy."""

    used: float
    entropy: float
    perplexity: float


def code_counts(codes: NDArray[np.int64], codebook_size: int) -> Counts:
    """How often each code occurs: [..., codebooks, frames] -> [codebooks, codebook_size]."""
    num_codebooks = codes.shape[-2]
    shifted = codes + codebook_size * np.arange(num_codebooks)[:, None]
    return np.bincount(shifted.ravel(), minlength=num_codebooks * codebook_size).reshape(num_codebooks, codebook_size)


def codebook_use(counts: Counts) -> tuple[CodebookUse, ...]:
    """Use of every codebook from `code_counts`. The entropy of fewer codes than some ten per entry comes out too low."""
    uses = []
    for row in counts:
        occurring = row[row > 0] / max(1, row.sum())
        entropy = float(-(occurring * np.log2(occurring)).sum()) + 0.0  # one code alone gives -0.0
        uses.append(CodebookUse(used=len(occurring) / len(row), entropy=entropy, perplexity=2**entropy))
    return tuple(uses)


@dataclass(frozen=True)
class CodedFile:
    """What a .codec file holds; rates in kbit/s, of the whole file and of its packed codes alone."""

    file_kbps: float
    payload_kbps: float
    seconds: float
    counts: Counts  # [codebooks, codebook_size]


def coded_file(path: Path) -> CodedFile:
    """Read the rates and codes of the .codec file `path`. Raises DamagedFile."""
    with bitstream.open_reader(path) as reader:
        header = reader.header
        payload = 0  # bytes; every packet fills its last one
        counts = np.zeros((header.num_codebooks, header.codebook_size), np.int64)
        for codes in reader.packets():
            payload += math.ceil(codes.size * header.frame_spec.bits_per_code / 8)
            counts += code_counts(codes, header.codebook_size)
    return CodedFile(
        file_kbps=path.stat().st_size * 8 / header.seconds / 1000,
        payload_kbps=payload * 8 / header.seconds / 1000,
        seconds=header.seconds,
        counts=counts,
    )


def peak_memory() -> int:
    """Most memory this process has held so far (peak resident set), in bytes; 0 where the system does not tell."""
    if sys.platform == "linux":
        # Not getrusage: its peak is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0


# A folder through the codec


@dataclass(frozen=True)
class Measures:
    """Measures of one file or their means over files: rates in kbit/s, `si_sdr` in dB, NaN = not taken or undefined.

    `hop_periodicity` is the excess of the worst band. `dnsmos` is of what comes back alone.
    """

    file_kbps: float
    payload_kbps: float
    si_sdr: float
    mel_dac: float
    stft_dac: float
    mrstft: float
    lsd: float
    hop_periodicity: float
    pesq_wb: float
    stoi: float
    visqol_speech: float
    visqol_audio: float
    dnsmos: float


# Headings and decimals in tables, in the order of Measures; the last ones only where they were asked for.
_HEADINGS = {
    "file_kbps": ("kbit/s", 2),
    "payload_kbps": ("payload", 2),
    "si_sdr": ("SI-SDR", 2),
    "mel_dac": ("mel", 2),
    "stft_dac": ("STFT", 2),
    "mrstft": ("MR-STFT", 2),
    "lsd": ("LSD", 2),
    "hop_periodicity": ("hop per.", 2),
    "pesq_wb": ("PESQ", 2),
    "stoi": ("STOI", 3),
    "visqol_speech": ("ViSQOL speech", 2),
    "visqol_audio": ("ViSQOL audio", 2),
    "dnsmos": ("DNSMOS", 2),
}
_ON_REQUEST = ("visqol_speech", "visqol_audio", "dnsmos")


@dataclass(frozen=True)
class FileScore:
    """One file through one codec: the model at one number of codebooks, or a baseline (`num_codebooks` is None, speeds are NaN).

    Speeds are real-time factors: seconds of audio per second of work. `si_sdr_bands` is empty where not asked for.
    """

    path: str
    set: str
    domain: str
    codec: str
    num_codebooks: int | None
    seconds: float
    encode_speed: float
    decode_speed: float
    measures: Measures
    hop_periodicity: tuple[BandPeriodicity, ...]
    si_sdr_bands: tuple[BandRatio, ...]


@dataclass(frozen=True)
class Row:
    """All files of a group through one codec: means over files, speeds over all their audio."""

    group: Group
    name: str
    codec: str
    num_codebooks: int | None
    files: int
    seconds: float
    encode_speed: float
    decode_speed: float
    measures: Measures
    hop_periodicity: tuple[BandPeriodicity, ...]
    si_sdr_bands: tuple[BandRatio, ...]
    codebooks: tuple[CodebookUse, ...]  # empty for a baseline


@dataclass(frozen=True)
class Failure:
    """A file that could not be coded or scored."""

    path: str
    message: str


Table: TypeAlias = tuple[list[str], list[list[str]]]  # headings, and one line of cells per row


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `peak_memory` in bytes, of the largest process; it includes the scoring.

    `notes` say which versions of the baselines' encoders were run, and how.
    """

    model: str
    rows: tuple[Row, ...]
    files: tuple[FileScore, ...]
    failures: tuple[Failure, ...]
    peak_memory: int
    notes: tuple[str, ...]

    def table(self, finest: Group = "set") -> Table:
        """All measures. `finest` leaves out groups finer than it: "all" keeps the means over all files alone."""
        shown = [
            name
            for name in _HEADINGS
            if name not in _ON_REQUEST or not all(math.isnan(getattr(row.measures, name)) for row in self.rows)
        ]
        headings = ["", "codec", "num_codebooks", "files", "s", *(_HEADINGS[name][0] for name in shown)]
        headings += ["enc ×", "dec ×", "used", "bits/code"]
        lines = []
        for row in self._rows(finest):
            measures = [_cell(getattr(row.measures, name), _HEADINGS[name][1]) for name in shown]
            used, entropy = (
                sum(values) / len(values) if values else math.nan
                for values in ([use.used for use in row.codebooks], [use.entropy for use in row.codebooks])
            )
            size = [*_names(row), str(row.files), _cell(row.seconds, 0)]
            speeds = [_cell(row.encode_speed, 1), _cell(row.decode_speed, 1)]
            lines.append([*size, *measures, *speeds, _cell(100 * used, 0, "%"), _cell(entropy, 2)])
        return headings, lines

    def band_tables(self, finest: Group = "set") -> tuple[Table, Table] | None:
        """SI-SDR by band, and hop periodicity by band with the reference's in brackets; None where not asked for."""
        if not self.rows or not self.rows[0].si_sdr_bands:
            return None
        rows = self._rows(finest)
        ratios = ["SI-SDR, kHz", "codec", "num_codebooks", *(_band(band) for band in self.rows[0].si_sdr_bands)]
        ratio_lines = [[*_names(row), *(_cell(band.si_sdr, 2) for band in row.si_sdr_bands)] for row in rows]
        periods = ["hop per., kHz", "codec", "num_codebooks", *(_band(band) for band in self.rows[0].hop_periodicity)]
        period_lines = [
            [
                *_names(row),
                *(f"{_cell(band.degraded, 2)} ({_cell(band.reference, 2)})" for band in row.hop_periodicity),
            ]
            for row in rows
        ]
        return (ratios, ratio_lines), (periods, period_lines)

    def text(self, finest: Group = "set") -> str:
        """The tables with all groups down to `finest`, what failed, notes and memory."""
        tables = [self.table(finest), *(self.band_tables(finest) or ())]
        text = "\n\n".join(map(_aligned, tables)).splitlines()
        text += [f"failed: {failure.path}: {failure.message}" for failure in self.failures]
        return "\n".join([*text, *self.notes, f"peak memory: {self.peak_memory / 2**20:.0f} MiB"])

    def __str__(self) -> str:
        return self.text()

    def as_json(self) -> str:
        """Everything, as JSON; NaN becomes null."""
        return json.dumps(_without_nan(asdict(self)), indent=1, allow_nan=False)

    def _rows(self, finest: Group) -> list[Row]:
        return [row for row in self.rows if _GROUPS.index(row.group) <= _GROUPS.index(finest)]


_GROUPS: tuple[Group, ...] = ("all", "domain", "set")


def _names(row: Row) -> list[str]:
    return [row.name, row.codec, "-" if row.num_codebooks is None else str(row.num_codebooks)]


def _band(band: BandRatio | BandPeriodicity) -> str:
    return f"{band.low / 1000:g}-{band.high / 1000:g}"


def _aligned(table: Table) -> str:
    headings, lines = table
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    text = []
    for names in (headings, *lines):
        cells = zip(names, widths, strict=True)
        text.append(
            "  ".join(cell.rjust(width) if at > 1 else cell.ljust(width) for at, (cell, width) in enumerate(cells))
        )
    return "\n".join(text)


def evaluate(
    model: Codec,
    folder: Path,
    *,
    num_codebooks: Sequence[int] | None = None,
    speech: bool | None = None,
    bands: bool = False,
    visqol: bool = False,
    dnsmos: bool = False,
    baselines: Sequence[Baseline] = (),
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compress and restore every audio file below `folder` through files on disk, and score what comes back.

    The files are those of `compress` and `decompress`, WAV of 16 bits as users get it. Scores are taken at the model's
    rate on the mean of the channels. `num_codebooks` lists the numbers of codebooks to score (None: all codebooks at once). `speech`
    True takes PESQ and STOI of every file, False of none, None of what the manifest calls speech. `jobs` > 1 works in
    that many processes. `progress` gets (files done, files in all). Files that cannot be coded become `failures`.

    On request: `bands` takes SI-SDR by band, `visqol` ViSQOL (speech mode of what is taken for speech, audio mode of
    the rest), `dnsmos` DNSMOS of speech; they are slow. `baselines` (of `find_baselines`) get the mean of the channels
    at the model's rate, in 16 bits, and rows of their own.

    A file's set is the first folder it lies in. A manifest.jsonl in `folder` or up to two folders above may name set,
    domain, transcript, speaker, lang and label of the files it lists by `path`: files with a transcript, speaker or
    lang are speech, in the domain "words" if they have a label too, else "speech"; the domain of others is their set.

    Raises:
        InputNotFound: no audio below `folder`.
        ConfigError: numbers of codebooks the model does not have, or a manifest that is no JSON.
        UsageError: a model that was never saved, so that files cannot name its weights, or DNSMOS without speech.
        MissingDependency: speech, ViSQOL or DNSMOS to score without the extra `eval`.
    """
    num_codebooks = tuple(sorted(set(num_codebooks if num_codebooks is not None else [model.config.num_codebooks])))
    if not num_codebooks or num_codebooks[0] < 1 or num_codebooks[-1] > model.config.num_codebooks:
        raise ConfigError(f"codebooks {list(num_codebooks)}: this model has 1 to {model.config.num_codebooks}")
    clips = _find_clips(Path(folder), speech)
    plan = _Plan(num_codebooks, tuple(baselines), bands=bands, visqol=visqol, dnsmos=dnsmos)
    _check_packages(clips, plan)  # before the work, not after it

    scores: list[FileScore] = []
    failures: list[Failure] = []
    counts: dict[_Key, Counts] = {}
    memory = 0
    for done, result in enumerate(_run(model, clips, plan, jobs), 1):
        memory = max(memory, result.peak_memory)
        if result.failure:
            failures.append(result.failure)
        for score, file_counts in result.scores:
            scores.append(score)
            if file_counts is None:
                continue
            for key in _keys(score):
                counts[key] = counts[key] + file_counts if key in counts else file_counts
        if progress:
            progress(done, len(clips))
    return Evaluation(
        model=_model_name(model),
        rows=tuple(_rows(scores, counts)),
        files=tuple(scores),
        failures=tuple(failures),
        peak_memory=memory,
        notes=tuple(dict.fromkeys(baseline.note for baseline in baselines)),
    )


def _model_name(model: Codec) -> str:
    return model.name or "unnamed"


@dataclass(frozen=True)
class _Plan:
    num_codebooks: tuple[int, ...]
    baselines: tuple[Baseline, ...]
    bands: bool
    visqol: bool
    dnsmos: bool


def _check_packages(clips: Sequence["_Clip"], plan: _Plan) -> None:
    speech = any(clip.speech for clip in clips)
    if speech:
        _eval_package("pesq"), _eval_package("pystoi")
    if plan.visqol:
        for mode in {_visqol_mode(clip) for clip in clips}:
            _check_visqol(mode)
    if plan.dnsmos:
        if not speech:
            raise UsageError("DNSMOS is taken of speech and no manifest calls these files speech: ask for --speech")
        _eval_package("speechmos.dnsmos")


@dataclass(frozen=True)
class _Clip:
    path: Path
    label: str  # path below the folder
    set: str
    domain: str
    speech: bool


@dataclass(frozen=True)
class _Result:
    scores: tuple[tuple[FileScore, Counts | None], ...]
    failure: Failure | None
    peak_memory: int


def _find_clips(folder: Path, speech: bool | None) -> list[_Clip]:
    labels = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and is_audio_path(path))
    labels = [label for label in labels if not any(part.startswith(".") for part in label.parts)]
    if not labels:
        raise InputNotFound(f"no audio files below {folder}: give a folder with recordings")
    manifest = _read_manifest(folder.resolve())
    clips = []
    for label in labels:
        path = folder / label
        entry = manifest.get(path.resolve(), {})
        name = str(entry.get("set") or (label.parts[0] if len(label.parts) > 1 else folder.resolve().name))
        spoken = any(entry.get(field) for field in ("transcript", "speaker", "lang"))
        domain = ("words" if entry.get("label") else "speech") if spoken else name
        clips.append(
            _Clip(
                path=path,
                label=label.as_posix(),
                set=name,
                domain=str(entry.get("domain") or domain),
                speech=spoken if speech is None else speech,
            )
        )
    return clips


def _read_manifest(folder: Path) -> dict[Path, Mapping[str, object]]:
    for home in (folder, *folder.parents[:2]):
        manifest = home / "manifest.jsonl"
        if manifest.is_file():
            entries: dict[Path, Mapping[str, object]] = {}
            for number, line in enumerate(manifest.read_text("utf-8").splitlines(), 1):
                try:
                    entry = json.loads(line) if line.strip() else {}
                except ValueError as error:
                    raise ConfigError(f"{manifest} line {number} is no JSON ({error}): mend or move it") from error
                if isinstance(entry, dict) and isinstance(entry.get("path"), str):
                    entries[home / entry["path"]] = entry
            return entries
    return {}


def _run(model: Codec, clips: Sequence[_Clip], plan: _Plan, jobs: int) -> Iterator[_Result]:
    if jobs <= 1:
        yield from (_score_clip(model, clip, plan) for clip in clips)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(model, threads)
    ) as pool:
        try:
            yield from pool.map(_score_in_worker, clips, [plan] * len(clips))
        except BrokenProcessPool as error:
            raise CodecError("a process was killed, perhaps for want of memory: ask for fewer jobs") from error


_worker_model: Codec


def _start_worker(model: Codec, threads: int) -> None:
    global _worker_model
    torch.set_num_threads(threads)
    _worker_model = model


def _score_in_worker(clip: _Clip, plan: _Plan) -> _Result:
    return _score_clip(_worker_model, clip, plan)


def _score_clip(model: Codec, clip: _Clip, plan: _Plan) -> _Result:
    failure = None
    scores: list[tuple[FileScore, Counts | None]] = []
    try:
        reference = read_audio(clip.path, rate=model.frame_spec.sample_rate, mono=True)[0][0]
        scores += [_score_file(model, clip, plan, reference, count) for count in plan.num_codebooks]
        scores += [(_score_baseline(model, clip, plan, reference, baseline), None) for baseline in plan.baselines]
    except UsageError:
        raise  # not the file's fault
    except CodecError as error:
        scores, failure = [], Failure(clip.label, str(error))  # so that all rows are over the same files
    return _Result(tuple(scores), failure, peak_memory())


def _score_file(
    model: Codec, clip: _Clip, plan: _Plan, reference: Floats, num_codebooks: int
) -> tuple[FileScore, Counts]:
    with tempfile.TemporaryDirectory() as name:
        coded, restored = Path(name, "coded.codec"), Path(name, "restored.wav")
        started = perf_counter()
        files.compress(clip.path, coded, model=model, num_codebooks=num_codebooks)
        encoded = perf_counter()
        files.decompress(coded, restored, model=model)
        decoded = perf_counter()
        content = coded_file(coded)
        degraded = read_audio(restored, rate=model.frame_spec.sample_rate, mono=True)[0][0]
    score = _score(
        model,
        clip,
        plan,
        reference,
        degraded,
        codec=_model_name(model),
        num_codebooks=num_codebooks,
        seconds=content.seconds,
        speeds=(content.seconds / (encoded - started), content.seconds / (decoded - encoded)),
        kbps=(content.file_kbps, content.payload_kbps),
    )
    return score, content.counts


def _score_baseline(model: Codec, clip: _Clip, plan: _Plan, reference: Floats, baseline: Baseline) -> FileScore:
    decoded = baseline.round_trip(reference, rate=model.frame_spec.sample_rate)
    seconds = model.frame_spec.seconds(len(reference))
    return _score(
        model,
        clip,
        plan,
        reference,
        decoded.audio,
        codec=baseline.label,
        num_codebooks=None,
        seconds=seconds,
        speeds=(math.nan, math.nan),  # of programs that are started for each file
        kbps=(decoded.file_bytes * 8 / seconds / 1000, decoded.payload_bytes * 8 / seconds / 1000),
    )


def _score(
    model: Codec,
    clip: _Clip,
    plan: _Plan,
    reference: Floats,
    degraded: Floats,
    *,
    codec: str,
    num_codebooks: int | None,
    seconds: float,
    speeds: tuple[float, float],
    kbps: tuple[float, float],
) -> FileScore:
    rate = model.frame_spec.sample_rate
    pair = reference, degraded
    periodicity = hop_periodicity(*pair, rate=rate, hop=model.frame_spec.hop)
    mode = _visqol_mode(clip) if plan.visqol else None
    measures = Measures(
        file_kbps=kbps[0],
        payload_kbps=kbps[1],
        si_sdr=si_sdr(*pair),
        mel_dac=mel_dac(*pair, rate=rate),
        stft_dac=stft_dac(*pair),
        mrstft=mrstft(*pair),
        lsd=lsd(*pair),
        hop_periodicity=max((band.excess for band in periodicity if not math.isnan(band.excess)), default=math.nan),
        pesq_wb=pesq_wb(*pair, rate=rate) if clip.speech else math.nan,
        stoi=stoi(*pair, rate=rate) if clip.speech else math.nan,
        visqol_speech=visqol(*pair, rate=rate, mode="speech") if mode == "speech" else math.nan,
        visqol_audio=visqol(*pair, rate=rate, mode="audio") if mode == "audio" else math.nan,
        dnsmos=dnsmos(degraded, rate=rate) if plan.dnsmos and clip.speech else math.nan,
    )
    return FileScore(
        path=clip.label,
        set=clip.set,
        domain=clip.domain,
        codec=codec,
        num_codebooks=num_codebooks,
        seconds=seconds,
        encode_speed=speeds[0],
        decode_speed=speeds[1],
        measures=measures,
        hop_periodicity=periodicity,
        si_sdr_bands=si_sdr_bands(*pair, rate=rate) if plan.bands else (),
    )


def _visqol_mode(clip: _Clip) -> Literal["speech", "audio"]:
    return "speech" if clip.speech else "audio"


def _rows(scores: Sequence[FileScore], counts: Mapping[_Key, Counts]) -> Iterator[Row]:
    codecs = list(dict.fromkeys(score.codec for score in scores))  # the model, then the baselines as they were named
    members: dict[_Key, list[FileScore]] = {}
    for score in scores:
        for key in _keys(score):
            members.setdefault(key, []).append(score)

    def place(key: _Key) -> tuple[int, str, int, int]:
        group, name, codec, num_codebooks = key
        return _GROUPS.index(group), name, codecs.index(codec), num_codebooks or 0

    for key in sorted(members, key=place):
        group, name, codec, num_codebooks = key
        of_key = members[key]
        if group == "domain" and {score.set for score in of_key} == {name}:
            continue  # the same files as the set's row
        seconds = sum(score.seconds for score in of_key)
        yield Row(
            group=group,
            name=name,
            codec=codec,
            num_codebooks=num_codebooks,
            files=len(of_key),
            seconds=seconds,
            encode_speed=seconds / sum(score.seconds / score.encode_speed for score in of_key),
            decode_speed=seconds / sum(score.seconds / score.decode_speed for score in of_key),
            measures=_mean_measures([score.measures for score in of_key]),
            hop_periodicity=tuple(
                BandPeriodicity(
                    low=of_band[0].low,
                    high=of_band[0].high,
                    reference=_mean_defined([band.reference for band in of_band]),
                    degraded=_mean_defined([band.degraded for band in of_band]),
                )
                for of_band in zip(*(score.hop_periodicity for score in of_key), strict=True)
            ),
            si_sdr_bands=tuple(
                BandRatio(of_band[0].low, of_band[0].high, _mean_defined([band.si_sdr for band in of_band]))
                for of_band in zip(*(score.si_sdr_bands for score in of_key), strict=True)
            ),
            codebooks=codebook_use(counts[key]) if key in counts else (),
        )


def _keys(score: FileScore) -> tuple[_Key, ...]:
    codec = score.codec, score.num_codebooks
    return ("all", "all", *codec), ("domain", score.domain, *codec), ("set", score.set, *codec)


def _mean_measures(measures: Sequence[Measures]) -> Measures:
    return Measures(
        **{field.name: _mean_defined([getattr(each, field.name) for each in measures]) for field in fields(Measures)}
    )


def _mean_defined(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _cell(value: float, decimals: int, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}{unit}"


def _without_nan(value: object) -> object:
    match value:
        case dict():
            return {key: _without_nan(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_nan(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value
