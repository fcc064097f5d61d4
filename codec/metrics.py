"""Quality, rate and speed measures, and `evaluate`, which takes them of real files through the real file path.

Signals are mono, [time], two of equal length. Distances (`mel_dac`, `stft_dac`, `mrstft`, `lsd`) are 0 for equal
signals and compare magnitudes only: they say nothing about phase, and `si_sdr` nothing about level. NaN means that a
measure is not defined for the signals at hand; `evaluate` leaves such files out of that measure's mean.
"""

import json
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
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

from codec import bitstream, files
from codec.audio import Resampler, is_audio_path, read_audio
from codec.errors import CodecError, ConfigError, InputNotFound, MissingDependency, UsageError
from codec.models.base import Codec

Floats = NDArray[np.float32]
Counts = NDArray[np.int64]
_Key: TypeAlias = tuple[Literal["all", "domain", "set"], str, int]  # group, name, books

SPEECH_RATE = 16_000  # Hz, at which PESQ-wb is defined and STOI taken
PESQ_PIECE = 20  # s; the ITU code writes past its 50 utterances, which take at least 0.4 s each
PESQ_LOWEST = 0.999 + 4 / (1 + math.exp(1.3669 * 0.5 + 3.8224))  # P.862.2 mapping of the lowest raw score, -0.5
MEL_SCALES = ((5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048))  # bands, window in samples


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
    """Wide-band PESQ (ITU-T P.862.2), 1.04 to 4.64; `rate` in Hz, taken at 16 kHz.

    Signals of more than 20 s are scored in equal pieces and averaged. NaN where no speech is found or the signal is
    shorter than 1/4 s. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    pesq = _eval_package("pesq")
    x, y = (_resample(signal, rate, SPEECH_RATE) for signal in (reference, degraded))
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
            scores.append(PESQ_LOWEST)
    return sum(scores) / len(scores) if scores else math.nan


def stoi(reference: Floats, degraded: Floats, *, rate: int) -> float:
    """Short-time objective intelligibility, 0 to 1 (Taal et al., 2011); `rate` in Hz, taken at 16 kHz.

    NaN where fewer than 30 frames (0.4 s) are left without silence. Raises MissingDependency without the extra `eval`.
    """
    _check_pair(reference, degraded)
    pystoi = _eval_package("pystoi")
    if len(reference) < 0.3 * rate or not reference.any():  # it fails on much less than a frame instead of warning
        return math.nan
    x, y = (_resample(signal, rate, SPEECH_RATE) for signal in (reference, degraded))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(x, y, SPEECH_RATE))
        except RuntimeWarning:
            return math.nan


def _resample(signal: Floats, from_rate: int, to_rate: int) -> Floats:
    resampler = Resampler(from_rate, to_rate, 1)
    resampled: Floats = np.concatenate([resampler.push(signal[None]), resampler.flush()], axis=1)[0]
    return resampled


def _eval_package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise MissingDependency(
            f"{name} is not installed: it comes with the extra eval (`pip install '.[eval]'` in the project's folder); "
            "or leave the speech measures out"
        ) from error


# Codes, rates, speed


@dataclass(frozen=True)
class BookUse:
    """How one book is used: share of its codes that occur, entropy in bits per code, perplexity = 2 ** entropy."""

    used: float
    entropy: float
    perplexity: float


def code_counts(codes: NDArray[np.int64], codebook_size: int) -> Counts:
    """How often each code occurs: [..., books, frames] -> [books, codebook_size]."""
    books = codes.shape[-2]
    shifted = codes + codebook_size * np.arange(books)[:, None]
    return np.bincount(shifted.ravel(), minlength=books * codebook_size).reshape(books, codebook_size)


def codebook_use(counts: Counts) -> tuple[BookUse, ...]:
    """Use of every book from `code_counts`. The entropy of fewer codes than some ten per entry comes out too low."""
    uses = []
    for row in counts:
        occurring = row[row > 0] / max(1, row.sum())
        entropy = float(-(occurring * np.log2(occurring)).sum()) + 0.0  # one code alone gives -0.0
        uses.append(BookUse(used=len(occurring) / len(row), entropy=entropy, perplexity=2**entropy))
    return tuple(uses)


@dataclass(frozen=True)
class CodedFile:
    """What a .codec file holds; rates in kbit/s, of the whole file and of its packed codes alone."""

    file_kbps: float
    payload_kbps: float
    seconds: float
    counts: Counts  # [books, codebook_size]


def coded_file(path: Path) -> CodedFile:
    """Read the rates and codes of the .codec file `path`. Raises DamagedFile."""
    with bitstream.open_reader(path) as reader:
        header = reader.header
        payload = 0  # bytes; every packet fills its last one
        counts = np.zeros((header.books, header.codebook_size), np.int64)
        for codes in reader.packets():
            payload += math.ceil(codes.size * header.frame_math.bits_per_code / 8)
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
    """Measures of one file or their means over files: rates in kbit/s, `si_sdr` in dB, NaN = not taken or undefined."""

    file_kbps: float
    payload_kbps: float
    si_sdr: float
    mel_dac: float
    stft_dac: float
    mrstft: float
    lsd: float
    pesq_wb: float
    stoi: float


@dataclass(frozen=True)
class FileScore:
    """One file at one number of books. Speeds are real-time factors: seconds of audio per second of work."""

    path: str
    set: str
    domain: str
    books: int
    seconds: float
    encode_speed: float
    decode_speed: float
    measures: Measures


@dataclass(frozen=True)
class Row:
    """All files of a group at one number of books: means over files, speeds over all their audio."""

    group: Literal["all", "domain", "set"]
    name: str
    books: int
    files: int
    seconds: float
    encode_speed: float
    decode_speed: float
    measures: Measures
    codebooks: tuple[BookUse, ...]


@dataclass(frozen=True)
class Failure:
    """A file that could not be coded or scored."""

    path: str
    message: str


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. `peak_memory` in bytes, of the largest process; it includes the scoring."""

    model: str
    rows: tuple[Row, ...]
    files: tuple[FileScore, ...]
    failures: tuple[Failure, ...]
    peak_memory: int

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and one line of cells per row."""
        headings = ["", "books", "files", "s", "kbit/s", "payload", "SI-SDR", "mel", "STFT", "MR-STFT", "LSD"]
        headings += ["PESQ", "STOI", "enc ×", "dec ×", "used", "bits/code"]
        decimals = {"si_sdr": 2, "stoi": 3}
        lines = []
        for row in self.rows:
            measures = [_cell(value, decimals.get(name, 2)) for name, value in asdict(row.measures).items()]
            used, entropy = (
                sum(values) / len(values) for values in zip(*((b.used, b.entropy) for b in row.codebooks), strict=True)
            )
            size = [row.name, str(row.books), str(row.files), _cell(row.seconds, 0)]
            speeds = [_cell(row.encode_speed, 1), _cell(row.decode_speed, 1)]
            lines.append([*size, *measures, *speeds, f"{used:.0%}", _cell(entropy, 2)])
        return headings, lines

    def __str__(self) -> str:
        headings, lines = self.table()
        widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
        text = []
        for first, *others in (headings, *lines):
            text.append("  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]))
        text += [f"failed: {failure.path}: {failure.message}" for failure in self.failures]
        return "\n".join([*text, f"peak memory: {self.peak_memory / 2**20:.0f} MiB"])

    def as_json(self) -> str:
        """Everything, as JSON; NaN becomes null."""
        return json.dumps(_without_nan(asdict(self)), indent=1, allow_nan=False)


def evaluate(
    model: Codec,
    folder: Path,
    *,
    books: Sequence[int] | None = None,
    speech: bool | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compress and restore every audio file below `folder` through files on disk, and score what comes back.

    The files are those of `compress` and `decompress`, WAV of 16 bits as users get it. Scores are taken at the model's
    rate on the mean of the channels. `books` lists the numbers of books to score (None: all books at once). `speech`
    True takes PESQ and STOI of every file, False of none, None of what the manifest calls speech. `jobs` > 1 works in
    that many processes. `progress` gets (files done, files in all). Files that cannot be coded become `failures`.

    A file's set is the first folder it lies in. A manifest.jsonl in `folder` or up to two folders above may name set,
    domain, transcript, speaker, lang and label of the files it lists by `path`: files with a transcript, speaker or
    lang are speech, in the domain "words" if they have a label too, else "speech"; the domain of others is their set.

    Raises:
        InputNotFound: no audio below `folder`.
        ConfigError: numbers of books the model does not have, or a manifest that is no JSON.
        UsageError: a model that was never saved, so that files cannot name its weights.
        MissingDependency: speech to score without the extra `eval`.
    """
    books = tuple(sorted(set(books if books is not None else [model.config.books])))
    if not books or books[0] < 1 or books[-1] > model.config.books:
        raise ConfigError(f"books {list(books)}: this model has 1 to {model.config.books}")
    clips = _find_clips(Path(folder), speech)
    if any(clip.speech for clip in clips):
        _eval_package("pesq"), _eval_package("pystoi")  # before the work, not after it

    scores: list[FileScore] = []
    failures: list[Failure] = []
    counts: dict[_Key, Counts] = {}
    memory = 0
    for done, result in enumerate(_run(model, clips, books, jobs), 1):
        memory = max(memory, result.peak_memory)
        if result.failure:
            failures.append(result.failure)
        for score, file_counts in result.scores:
            scores.append(score)
            for key in _keys(score):
                counts[key] = counts[key] + file_counts if key in counts else file_counts
        if progress:
            progress(done, len(clips))
    return Evaluation(model.name or "unnamed", tuple(_rows(scores, counts)), tuple(scores), tuple(failures), memory)


@dataclass(frozen=True)
class _Clip:
    path: Path
    label: str  # path below the folder
    set: str
    domain: str
    speech: bool


@dataclass(frozen=True)
class _Result:
    scores: tuple[tuple[FileScore, Counts], ...]
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


def _run(model: Codec, clips: Sequence[_Clip], books: Sequence[int], jobs: int) -> Iterator[_Result]:
    if jobs <= 1:
        yield from (_score_clip(model, clip, books) for clip in clips)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(model, threads)
    ) as pool:
        try:
            yield from pool.map(_score_in_worker, clips, [books] * len(clips))
        except BrokenProcessPool as error:
            raise CodecError("a process was killed, perhaps for want of memory: ask for fewer jobs") from error


_worker_model: Codec


def _start_worker(model: Codec, threads: int) -> None:
    global _worker_model
    torch.set_num_threads(threads)
    _worker_model = model


def _score_in_worker(clip: _Clip, books: Sequence[int]) -> _Result:
    return _score_clip(_worker_model, clip, books)


def _score_clip(model: Codec, clip: _Clip, books: Sequence[int]) -> _Result:
    failure = None
    scores = []
    try:
        scores = [_score_file(model, clip, count) for count in books]
    except UsageError:
        raise  # not the file's fault
    except CodecError as error:
        failure = Failure(clip.label, str(error))
    return _Result(tuple(scores), failure, peak_memory())


def _score_file(model: Codec, clip: _Clip, books: int) -> tuple[FileScore, Counts]:
    with tempfile.TemporaryDirectory() as name:
        coded, restored = Path(name, "coded.codec"), Path(name, "restored.wav")
        started = perf_counter()
        files.compress(clip.path, coded, model=model, books=books)
        encoded = perf_counter()
        files.decompress(coded, restored, model=model)
        decoded = perf_counter()
        content = coded_file(coded)
        rate = model.frame_math.sample_rate
        reference, degraded = (read_audio(path, rate=rate, mono=True)[0][0] for path in (clip.path, restored))
    measures = Measures(
        file_kbps=content.file_kbps,
        payload_kbps=content.payload_kbps,
        si_sdr=si_sdr(reference, degraded),
        mel_dac=mel_dac(reference, degraded, rate=rate),
        stft_dac=stft_dac(reference, degraded),
        mrstft=mrstft(reference, degraded),
        lsd=lsd(reference, degraded),
        pesq_wb=pesq_wb(reference, degraded, rate=rate) if clip.speech else math.nan,
        stoi=stoi(reference, degraded, rate=rate) if clip.speech else math.nan,
    )
    score = FileScore(
        path=clip.label,
        set=clip.set,
        domain=clip.domain,
        books=books,
        seconds=content.seconds,
        encode_speed=content.seconds / (encoded - started),
        decode_speed=content.seconds / (decoded - encoded),
        measures=measures,
    )
    return score, content.counts


def _rows(scores: Sequence[FileScore], counts: Mapping[_Key, Counts]) -> Iterator[Row]:
    order = {"all": 0, "domain": 1, "set": 2}
    for group, name, books in sorted(counts, key=lambda key: (order[key[0]], *key)):
        members = [score for score in scores if (group, name, books) in _keys(score)]
        if group == "domain" and {score.set for score in members} == {name}:
            continue  # the same files as the set's row
        seconds = sum(score.seconds for score in members)
        yield Row(
            group=group,
            name=name,
            books=books,
            files=len(members),
            seconds=seconds,
            encode_speed=seconds / sum(score.seconds / score.encode_speed for score in members),
            decode_speed=seconds / sum(score.seconds / score.decode_speed for score in members),
            measures=_mean_measures([score.measures for score in members]),
            codebooks=codebook_use(counts[group, name, books]),
        )


def _keys(score: FileScore) -> tuple[_Key, ...]:
    return ("all", "all", score.books), ("domain", score.domain, score.books), ("set", score.set, score.books)


def _mean_measures(measures: Sequence[Measures]) -> Measures:
    means = {}
    for field in fields(Measures):
        values = [value for each in measures if not math.isnan(value := getattr(each, field.name))]
        means[field.name] = sum(values) / len(values) if values else math.nan
    return Measures(**means)


def _cell(value: float, decimals: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{decimals}f}"


def _without_nan(value: object) -> object:
    match value:
        case dict():
            return {key: _without_nan(each) for key, each in value.items()}
        case list() | tuple():
            return [_without_nan(each) for each in value]
        case float() if not math.isfinite(value):
            return None
    return value
