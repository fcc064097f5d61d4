"""Evaluate codecs on recordings, through the files that a user gets: scores per file, means, tables, JSON.

Measures are those of `codec.evaluation.signal`. NaN means that a measure was not computed or is not defined for a
file; means exclude such files.
"""

import json
import math
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeAlias

import numpy as np

from codec import compression
from codec.data.clips import MANIFEST, clips, manifest_rows
from codec.errors import CodecError, ConfigError, InputNotFound, UnsupportedAudio, UsageError, printable
from codec.evaluation.baselines import Baseline
from codec.evaluation.codebooks import CodebookUsage, Counts, code_counts, codebook_usage
from codec.evaluation.signal import (
    BandPeriodicity,
    BandRatio,
    Floats,
    check_visqol,
    dnsmos,
    eval_package,
    hop_periodicity,
    loudness,
    lsd,
    mel_dac,
    mrstft,
    pesq_wb,
    si_sdr,
    si_sdr_bands,
    stft_dac,
    stoi,
    visqol,
)
from codec.frames import Narrowband
from codec.io import bitstream, parquet
from codec.io.audio import is_audio_path, open_reader, read_audio, write_audio
from codec.io.loudness import loudness_package
from codec.io.mixdown import Note
from codec.io.storage import walk
from codec.models.base import Codec
from codec.parallel import each
from codec.variable_rate import check_quality

Group: TypeAlias = Literal["all", "domain", "set"]
_Key: TypeAlias = tuple[Group, str, str, int | None]  # group, name, codec, codebooks


# Bit rates, code counts, memory


@dataclass(frozen=True)
class CodedFile:
    """Bit rates and code counts of a .codec file: kbit/s of the whole file and of the codes in it, as coded, alone."""

    file_kbps: float
    payload_kbps: float
    seconds: float
    counts: Counts  # [codebooks, codebook_size]


def coded_file(path: Path) -> CodedFile:
    """Read the bit rates and code counts of a .codec file. Raises DamagedFile."""
    with bitstream.open_reader(path) as reader:
        header = reader.header
        payload = 0  # bytes
        counts = np.zeros((header.num_codebooks, header.codebook_size), np.int64)
        for packet in reader.intact():
            payload += packet.payload_bytes
            counts[: packet.codes.shape[1]] += code_counts(packet.codes, header.codebook_size)
    return CodedFile(
        file_kbps=path.stat().st_size * 8 / header.seconds / 1000,
        payload_kbps=payload * 8 / header.seconds / 1000,
        seconds=header.seconds,
        counts=counts,
    )


def peak_memory() -> int:
    """Return the peak resident set size of this process in bytes; 0 if the system does not report it."""
    if sys.platform == "linux":
        # Not getrusage, because its peak includes that of the parent process before exec.
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 0


# Results


@dataclass(frozen=True)
class Measures:
    """Measures of one file, or their means over files: bit rates in kbit/s, `si_sdr` in dB.

    `loudness` is that of the decoded audio minus that of the original, in LU. `hop_periodicity` is the excess of the
    worst band. `dnsmos` is that of the decoded audio, without the original.
    """

    file_kbps: float
    payload_kbps: float
    si_sdr: float
    mel_dac: float
    stft_dac: float
    mrstft: float
    lsd: float
    hop_periodicity: float
    loudness: float
    pesq_wb: float
    stoi: float
    visqol_speech: float
    visqol_audio: float
    dnsmos: float


# Headings and decimals in tables, in the order of Measures.
_HEADINGS = {
    "file_kbps": ("kbit/s", 2),
    "payload_kbps": ("payload", 2),
    "si_sdr": ("SI-SDR", 2),
    "mel_dac": ("mel", 2),
    "stft_dac": ("STFT", 2),
    "mrstft": ("MR-STFT", 2),
    "lsd": ("LSD", 2),
    "hop_periodicity": ("hop per.", 2),
    "loudness": ("LU", 2),
    "pesq_wb": ("PESQ", 2),
    "stoi": ("STOI", 3),
    "visqol_speech": ("ViSQOL speech", 2),
    "visqol_audio": ("ViSQOL audio", 2),
    "dnsmos": ("DNSMOS", 2),
}
_OPTIONAL = ("loudness", "visqol_speech", "visqol_audio", "dnsmos")


@dataclass(frozen=True)
class Scores:
    """Scores of a codec: a model with a number of codebooks, or a baseline.

    `mean_codebooks` is that of all frames, fewer than `num_codebooks` with variable bit rate. A baseline has
    `num_codebooks` None, and NaN `mean_codebooks` and speeds. Speeds are real-time factors: seconds of audio per second
    of computation. `si_sdr_bands` is empty unless `bands` was requested.
    """

    codec: str
    num_codebooks: int | None
    mean_codebooks: float
    seconds: float
    encode_speed: float
    decode_speed: float
    measures: Measures
    hop_periodicity: tuple[BandPeriodicity, ...]
    si_sdr_bands: tuple[BandRatio, ...]


@dataclass(frozen=True)
class FileScore(Scores):
    """Scores of one file."""

    path: str
    set: str
    domain: str


@dataclass(frozen=True)
class Row(Scores):
    """Scores of a group of files: means over files; speeds are total audio over total time."""

    group: Group
    name: str
    files: int
    codebooks: tuple[CodebookUsage, ...]  # empty for a baseline


@dataclass(frozen=True)
class Failure:
    """A file that could not be encoded or scored."""

    path: str
    message: str


Table: TypeAlias = tuple[list[str], list[list[str]]]  # headings, and one line of cells per row


@dataclass(frozen=True)
class EvaluatedModel:
    """A model of an evaluation, under the name that its rows have in the column "codec"."""

    name: str
    weights_hash: str
    sample_rate: int
    hop: int
    num_codebooks: int

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.sample_rate} Hz, hop {self.hop}, {self.num_codebooks} codebooks, "
            f"weights {self.weights_hash[:12]}"
        )


@dataclass(frozen=True)
class Evaluation:
    """Results of `evaluate`.

    `peak_memory` is that of the largest process, in bytes, and includes the scoring. `notes` give the versions and
    settings of the baselines' encoders, name unusual files, and count files with less than half of a model's sample
    rate.
    """

    models: tuple[EvaluatedModel, ...]
    rows: tuple[Row, ...]
    files: tuple[FileScore, ...]
    failures: tuple[Failure, ...]
    peak_memory: int
    notes: tuple[str, ...]

    def table(self, finest: Group = "set") -> Table:
        """Table of all measures; `finest` omits finer groups, so "all" keeps only the means over all files.

        A domain that consists of one set of its name is shown once.
        """
        shown = [
            name
            for name in _HEADINGS
            if name not in _OPTIONAL or not all(math.isnan(getattr(row.measures, name)) for row in self.rows)
        ]
        headings = ["", "codec", "codebooks", "files", "s", *(_HEADINGS[name][0] for name in shown)]
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
        """Tables of SI-SDR and of hop periodicity (the original's in brackets) by band; None without `bands`."""
        if not self.rows or not self.rows[0].si_sdr_bands:
            return None
        rows = self._rows(finest)
        ratios = ["SI-SDR, kHz", "codec", "codebooks", *(_band(band) for band in self.rows[0].si_sdr_bands)]
        ratio_lines = [[*_names(row), *(_cell(band.si_sdr, 2) for band in row.si_sdr_bands)] for row in rows]
        periods = ["hop per., kHz", "codec", "codebooks", *(_band(band) for band in self.rows[0].hop_periodicity)]
        period_lines = [
            [
                *_names(row),
                *(f"{_cell(band.degraded, 2)} ({_cell(band.reference, 2)})" for band in row.hop_periodicity),
            ]
            for row in rows
        ]
        return (ratios, ratio_lines), (periods, period_lines)

    def text(self, finest: Group = "set") -> str:
        """Models, tables down to the groups of `finest`, failures, notes, and peak memory."""
        tables = [self.table(finest), *(self.band_tables(finest) or ())]
        text = [*map(str, self.models), *"\n\n".join(map(_aligned, tables)).splitlines()]
        text += [printable(f"failed: {failure.path}: {failure.message}") for failure in self.failures]
        return "\n".join([*text, *map(printable, self.notes), f"peak memory: {self.peak_memory / 2**20:.0f} MiB"])

    def __str__(self) -> str:
        return self.text()

    def as_json(self) -> str:
        """Return all results as JSON; NaN becomes null."""
        return json.dumps(_without_nan(asdict(self)), indent=1, allow_nan=False)

    def _rows(self, finest: Group) -> list[Row]:
        rows = [row for row in self.rows if _GROUPS.index(row.group) <= _GROUPS.index(finest)]
        sets = {repr(row) for row in rows if row.group == "set"}
        return [row for row in rows if row.group != "domain" or repr(replace(row, group="set")) not in sets]


_GROUPS: tuple[Group, ...] = ("all", "domain", "set")
MAX_NOTES = 20  # on files, that are listed


def _names(row: Row) -> list[str]:
    """Group, codec, and codebooks, on average with variable bit rate."""
    return [row.name, row.codec, "-" if row.num_codebooks is None else f"{row.mean_codebooks:.3g}"]


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


# Evaluation


def evaluate(
    models: Codec | Sequence[Codec],
    data: Path,
    *,
    num_codebooks: int | Sequence[int] | Literal["all"] | None = None,
    bitrate: float | None = None,
    vbr: Sequence[float] = (),
    beams: int | None = None,
    speech: bool | None = None,
    bands: bool = False,
    visqol: bool = False,
    dnsmos: bool = False,
    loudness: bool = False,
    baselines: Sequence[Baseline] = (),
    write: Path | None = None,
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Encode and decode a recording, a folder or a dataset, through files on disk; score the decoded audio.

    Files are written by `compress` and `decompress`, as 16-bit WAV. Scores are computed at the model's sample rate from
    the mean of the channels. Each model is evaluated with `num_codebooks` (one number or several; "all" is 1 to the
    model's number), or with the most codebooks within `bitrate` kbit/s per channel; with all its codebooks if both are
    None. For each quality in `vbr` (`codec.variable_rate`), each model is also evaluated with frames of different
    numbers of codebooks, up to all; without `num_codebooks` and `bitrate`, with these alone. `beams` as in `compress`.
    `speech` True computes PESQ and STOI for every file, False for none, None for files that a manifest marks as speech.
    `jobs` is the number of processes. `progress` is called with (files done, files). Files that cannot be encoded
    become `failures`.

    `bands` adds SI-SDR by band, `visqol` ViSQOL (speech mode for speech, audio mode for other files), `dnsmos` DNSMOS
    for speech; ViSQOL and DNSMOS are slow. `loudness` adds the change of loudness (ITU-R BS.1770-4). `baselines` (from
    `find_baselines`) encode the mean of the channels at the highest sample rate of the models, in 16 bits, and have
    rows of their own.

    `write` is a folder for the decoded files: reading/a.wav becomes reading/a.general-24k.12-codebooks.wav in it, or
    reading/a.opus-12.wav for a baseline.

    A file's set is the first folder of its path below `data`. A manifest.jsonl in `data` or up to two folders above may
    give set, domain, transcript, speaker, language and label of the files that it lists by `path`. Files with a
    transcript, speaker or language are speech, with the domain "words" if they also have a label, else "speech"; the
    domain of other files is their set. A Parquet file, or a folder of them without audio files, is a dataset of Hugging
    Face, as for `codec.data.clips.clips`: each row is a file, and its columns say the same.

    Raises:
        InputNotFound: `data` does not exist, or has no audio files.
        ConfigError: a number of codebooks that a model does not have, or a manifest that is not JSON.
        UsageError: a model that was never saved, because files identify weights by their hash; the same model twice;
            DNSMOS without speech; both `num_codebooks` and `bitrate`.
        MissingDependency: PESQ, STOI, ViSQOL or DNSMOS without the extra `eval`; loudness without torchaudio.
    """
    models = (models,) if isinstance(models, Codec) else tuple(models)
    names = _model_names(models)
    for model in models:
        model.check_beams(beams)
    runs = tuple(
        run
        for index, (model, name) in enumerate(zip(models, names, strict=True))
        for run in _runs_of(model, index, name, num_codebooks, bitrate, vbr)
    )
    found = _find_clips(Path(data), speech)
    plan = _Plan(
        runs, tuple(baselines), write, beams=beams, bands=bands, visqol=visqol, dnsmos=dnsmos, loudness=loudness
    )
    if write is not None and Path(data).is_dir() and write.resolve().is_relative_to(Path(data).resolve()):
        raise UsageError(f"{write} lies in {data}, so the next evaluation would read it: write to another folder")
    _check_packages(found, plan)  # before the work, not after it

    scores: list[FileScore] = []
    failures: list[Failure] = []
    counts: dict[_Key, Counts] = {}
    narrowband = Narrowband()
    memory = 0
    results: dict[_Clip, _Result] = {}
    for clip, outcome in each(partial(_score_clip, models, plan), found, jobs=jobs):
        if isinstance(outcome, CodecError):
            raise outcome
        results[clip] = outcome
        if progress:
            progress(len(results), len(found))
    ordered = [results[clip] for clip in found]
    for result in ordered:
        memory = max(memory, result.peak_memory)
        narrowband.update(result.narrowband)
        if result.failure:
            failures.append(result.failure)
        for score, file_counts in result.scores:
            scores.append(score)
            if file_counts is None:
                continue
            for key in _keys(score):
                counts[key] = counts[key] + file_counts if key in counts else file_counts
    notes = [baseline.note for baseline in baselines]
    of_files = [note for result in ordered for note in result.notes]
    notes += of_files[:MAX_NOTES] + [f"and {len(of_files) - MAX_NOTES} more"] * (len(of_files) > MAX_NOTES)
    notes += narrowband.notes("file")
    if len({model.sample_rate for model in models}) > 1:
        notes.append("the models differ in sample rate: do not compare their mel, STFT, MR-STFT and LSD")
    return Evaluation(
        models=tuple(
            EvaluatedModel(
                name=name,
                weights_hash=model.weights_hash or "",
                sample_rate=model.sample_rate,
                hop=model.frame_spec.hop,
                num_codebooks=model.num_codebooks,
            )
            for model, name in zip(models, names, strict=True)
        ),
        rows=tuple(_rows(scores, counts)),
        files=tuple(scores),
        failures=tuple(failures),
        peak_memory=memory,
        notes=tuple(dict.fromkeys(notes)),
    )


def _model_names(models: Sequence[Codec]) -> list[str]:
    # Runs may store different weights under one name, such as runs/a/model and other/a/model.
    names = [model.name or "unnamed" for model in models]
    repeated = {name for name, count in Counter(names).items() if count > 1}
    names = [
        f"{name}@{(model.weights_hash or '')[:8]}" if name in repeated else name
        for name, model in zip(names, models, strict=True)
    ]
    if len(set(names)) < len(names):
        raise UsageError(f"the models are {', '.join(names)}: name each model once")
    return names


def _runs_of(
    model: Codec,
    index: int,
    name: str,
    num_codebooks: int | Sequence[int] | Literal["all"] | None,
    bitrate: float | None,
    vbr: Sequence[float],
) -> Iterator["_Run"]:
    """What a model is evaluated with."""
    for quality in vbr:
        check_quality(model, quality)
    if not vbr or num_codebooks is not None or bitrate is not None:
        for count in _codebook_counts(model, num_codebooks, bitrate):
            yield _Run(index, name, count)
    for quality in dict.fromkeys(vbr):
        yield _Run(index, f"{name} vbr {quality:g}", model.num_codebooks, quality)


def _codebook_counts(
    model: Codec, num_codebooks: int | Sequence[int] | Literal["all"] | None, bitrate: float | None
) -> list[int]:
    if bitrate is not None:
        if num_codebooks is not None:
            raise UsageError(f"codebooks = {num_codebooks} and {bitrate:g} kbit/s: ask for one of the two")
        return [model.codebooks_for(bitrate=bitrate)]
    match num_codebooks:
        case None:
            return [model.num_codebooks]
        case "all":
            return list(range(1, model.num_codebooks + 1))
        case str():
            raise UsageError(f'codebooks = {num_codebooks!r}: give a number, several as [1, 2, 4], or "all"')
        case int():
            counts = [num_codebooks]
        case _:
            counts = sorted(set(num_codebooks))
    if not counts or counts[0] < 1 or counts[-1] > model.num_codebooks:
        raise ConfigError(f"codebooks {counts}: {model.name or 'this model'} has 1 to {model.num_codebooks}")
    return counts


@dataclass(frozen=True)
class _Run:
    """A model (by its index) with a number of codebooks, of each frame or, with `vbr`, at most."""

    model: int
    name: str
    num_codebooks: int
    vbr: float | None = None


@dataclass(frozen=True)
class _Plan:
    runs: tuple[_Run, ...]
    baselines: tuple[Baseline, ...]
    write: Path | None
    beams: int | None
    bands: bool
    visqol: bool
    dnsmos: bool
    loudness: bool


def _check_packages(found: Sequence["_Clip"], plan: _Plan) -> None:
    speech = any(clip.speech for clip in found)
    if speech:
        eval_package("pesq"), eval_package("pystoi")
    if plan.visqol:
        for mode in {_visqol_mode(clip) for clip in found}:
            check_visqol(mode)
    if plan.loudness:
        loudness_package()
    if plan.dnsmos:
        if not speech:
            raise UsageError("DNSMOS is for speech and no manifest marks these files as speech: pass --speech")
        eval_package("speechmos.dnsmos")


@dataclass(frozen=True)
class _Clip:
    path: Path
    label: str  # path below the folder
    stem: str  # the label without suffix, or the label if other files differ from it only in suffix
    set: str
    domain: str
    speech: bool


@dataclass(frozen=True)
class _Result:
    scores: tuple[tuple[FileScore, Counts | None], ...]
    failure: Failure | None
    notes: tuple[str, ...]
    narrowband: Narrowband
    peak_memory: int


def _find_clips(data: Path, speech: bool | None) -> list[_Clip]:
    if data.suffix == parquet.SUFFIX and data.is_file():
        return _of_dataset(data, speech)
    if data.is_file():
        if not is_audio_path(data):
            raise UnsupportedAudio(f"{data} is not an audio file: give a recording, or a folder of recordings")
        folder, labels = data.parent, [Path(data.name)]
    else:
        folder = data
        labels = [Path(label) for label in walk(data, is_audio_path)] if data.is_dir() else []
    if not labels and data.is_dir() and any(walk(data, lambda name: name.endswith(parquet.SUFFIX))):
        return _of_dataset(data, speech)
    if not labels:
        raise InputNotFound(f"no audio files below {data}: give a recording, or a folder of recordings")
    manifest = _read_manifest(folder.resolve())
    stems = Counter(label.with_suffix("") for label in labels)
    found = []
    for label in labels:
        path = folder / label
        entry = manifest.get(path.resolve(), {})
        name = str(entry.get("set") or (label.parts[0] if len(label.parts) > 1 else folder.resolve().name))
        stem = label.with_suffix("")
        stem = stem if stems[stem] == 1 else label
        found.append(_clip_of(path, label.as_posix(), stem.as_posix(), name, entry, speech))
    return found


def _of_dataset(data: Path, speech: bool | None) -> list[_Clip]:
    """The rows of Parquet files."""
    name = data.resolve().stem
    return [_clip_of(row.path, row.id, row.id, row.set or name, asdict(row), speech) for row in clips(data)]


def _clip_of(
    path: Path, label: str, stem: str, set_name: str, entry: Mapping[str, object], speech: bool | None
) -> _Clip:
    """A file of which a manifest or a row says `entry`."""
    spoken = any(entry.get(field) for field in ("transcript", "speaker", "language", "lang"))
    domain = ("words" if entry.get("label") else "speech") if spoken else set_name
    return _Clip(
        path=path,
        label=label,
        stem=stem,
        set=set_name,
        domain=str(entry.get("domain") or domain),
        speech=spoken if speech is None else speech,
    )


@contextmanager
def _as_file(clip: _Clip) -> Iterator[_Clip]:
    """The clip as a file of its own, if it is a row of a Parquet file."""
    row = parquet.row_of(clip.path)
    content = clip.path if row is None else parquet.audio(*row)
    if isinstance(content, Path):
        yield replace(clip, path=content)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "row")
        path.write_bytes(content)
        yield replace(clip, path=path)


def _read_manifest(folder: Path) -> dict[Path, Mapping[str, object]]:
    for home in (folder, *folder.parents[:2]):
        if (home / MANIFEST).is_file():
            return {home / str(row["path"]): row for _, row in manifest_rows(home / MANIFEST) if row.get("path")}
    return {}


# Scores of one file


def _score_clip(models: tuple[Codec, ...], plan: _Plan, clip: _Clip) -> _Result:
    failure = None
    scores: list[tuple[FileScore, Counts | None]] = []
    notes: list[str] = []
    narrowband = Narrowband()
    try:
        with _as_file(clip) as file:
            scores.extend(
                _scores(models, plan, file, lambda note: notes.append(note.replace(str(file.path), clip.label)))
            )
            with open_reader(file.path) as reader:
                for rate in {model.sample_rate for model in models}:
                    narrowband.add(clip.label, reader.rate, rate)
    except UsageError:
        raise  # a mistake in the options, not in the file
    except CodecError as error:
        scores, failure = [], Failure(clip.label, str(error))  # so that all rows are means over the same files
    return _Result(tuple(scores), failure, tuple(dict.fromkeys(notes)), narrowband, peak_memory())


def _scores(
    models: tuple[Codec, ...], plan: _Plan, clip: _Clip, note: Note
) -> Iterator[tuple[FileScore, Counts | None]]:
    """The scores of each run and baseline on one file; `note` is called with remarks on the file."""
    rates = {model.sample_rate for model in models}
    references = {rate: read_audio(clip.path, rate=rate, mono=True, note=note)[0][0] for rate in rates}

    def score(model: Codec, decoded: _Decoded) -> tuple[FileScore, Counts | None]:
        spec = model.frame_spec
        reference = references[spec.sample_rate]
        return _score(clip, plan, reference, decoded, rate=spec.sample_rate, hop=spec.hop), decoded.counts

    for run in plan.runs:
        yield score(models[run.model], _by_model(models[run.model], clip, plan, run, note))
    finest = max(models, key=lambda model: model.sample_rate)
    for baseline in plan.baselines:
        reference, rate = references[finest.sample_rate], finest.sample_rate
        yield score(finest, _by_baseline(baseline, clip, plan, reference, rate))


@dataclass(frozen=True)
class _Decoded:
    """What a codec made of a file: audio [time] at the rate of the reference, and its cost."""

    audio: Floats
    codec: str
    num_codebooks: int | None
    mean_codebooks: float
    seconds: float
    encode_speed: float
    decode_speed: float
    file_kbps: float
    payload_kbps: float
    counts: Counts | None


def _by_model(model: Codec, clip: _Clip, plan: _Plan, run: _Run, note: Note) -> _Decoded:
    with tempfile.TemporaryDirectory() as name:
        coded, restored = Path(name, "coded.codec"), Path(name, "restored.wav")
        started = perf_counter()
        report = compression.compress(
            clip.path, coded, model=model, num_codebooks=run.num_codebooks, vbr=run.vbr, beams=plan.beams
        )
        for line in report.notes:
            note(line)
        encoded = perf_counter()
        compression.decompress(coded, restored, model=model)
        decoded = perf_counter()
        content = coded_file(coded)
        if plan.write:
            shutil.copyfile(restored, _decoded_path(plan.write, clip, f"{run.name}.{run.num_codebooks}-codebooks"))
        return _Decoded(
            audio=read_audio(restored, rate=model.sample_rate, mono=True)[0][0],
            codec=run.name,
            num_codebooks=run.num_codebooks,
            mean_codebooks=float(content.counts.sum() / content.counts[0].sum()),
            seconds=content.seconds,
            encode_speed=content.seconds / (encoded - started),
            decode_speed=content.seconds / (decoded - encoded),
            file_kbps=content.file_kbps,
            payload_kbps=content.payload_kbps,
            counts=content.counts,
        )


def _by_baseline(baseline: Baseline, clip: _Clip, plan: _Plan, reference: Floats, rate: int) -> _Decoded:
    decoded = baseline.round_trip(reference, rate=rate)
    if plan.write:
        write_audio(_decoded_path(plan.write, clip, baseline.label.partition(" ")[0]), decoded.audio[None], rate)
    seconds = len(reference) / rate
    return _Decoded(
        audio=decoded.audio,
        codec=baseline.label,
        num_codebooks=None,
        mean_codebooks=math.nan,
        seconds=seconds,
        encode_speed=math.nan,  # a baseline's time includes starting its program for each file
        decode_speed=math.nan,
        file_kbps=decoded.file_bytes * 8 / seconds / 1000,
        payload_kbps=decoded.payload_bytes * 8 / seconds / 1000,
        counts=None,
    )


def _decoded_path(folder: Path, clip: _Clip, codec: str) -> Path:
    path = folder / f"{clip.stem}.{re.sub(r'[^A-Za-z0-9._@-]+', '-', codec)}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _score(clip: _Clip, plan: _Plan, reference: Floats, decoded: _Decoded, *, rate: int, hop: int) -> FileScore:
    pair = reference, decoded.audio
    periodicity = hop_periodicity(*pair, rate=rate, hop=hop)
    mode = _visqol_mode(clip) if plan.visqol else None
    measures = Measures(
        file_kbps=decoded.file_kbps,
        payload_kbps=decoded.payload_kbps,
        si_sdr=si_sdr(*pair),
        mel_dac=mel_dac(*pair, rate=rate),
        stft_dac=stft_dac(*pair),
        mrstft=mrstft(*pair),
        lsd=lsd(*pair),
        hop_periodicity=max((band.excess for band in periodicity if not math.isnan(band.excess)), default=math.nan),
        loudness=loudness(decoded.audio, rate=rate) - loudness(reference, rate=rate) if plan.loudness else math.nan,
        pesq_wb=pesq_wb(*pair, rate=rate) if clip.speech else math.nan,
        stoi=stoi(*pair, rate=rate) if clip.speech else math.nan,
        visqol_speech=visqol(*pair, rate=rate, mode="speech") if mode == "speech" else math.nan,
        visqol_audio=visqol(*pair, rate=rate, mode="audio") if mode == "audio" else math.nan,
        dnsmos=dnsmos(decoded.audio, rate=rate) if plan.dnsmos and clip.speech else math.nan,
    )
    return FileScore(
        path=clip.label,
        set=clip.set,
        domain=clip.domain,
        codec=decoded.codec,
        num_codebooks=decoded.num_codebooks,
        mean_codebooks=decoded.mean_codebooks,
        seconds=decoded.seconds,
        encode_speed=decoded.encode_speed,
        decode_speed=decoded.decode_speed,
        measures=measures,
        hop_periodicity=periodicity,
        si_sdr_bands=si_sdr_bands(*pair, rate=rate) if plan.bands else (),
    )


def _visqol_mode(clip: _Clip) -> Literal["speech", "audio"]:
    return "speech" if clip.speech else "audio"


def _rows(scores: Sequence[FileScore], counts: Mapping[_Key, Counts]) -> Iterator[Row]:
    codecs = list(dict.fromkeys(score.codec for score in scores))  # models, then baselines, in the order of the options
    members: dict[_Key, list[FileScore]] = {}
    for score in scores:
        for key in _keys(score):
            members.setdefault(key, []).append(score)

    def position(key: _Key) -> tuple[int, str, int, int]:
        group, name, codec, num_codebooks = key
        return _GROUPS.index(group), name, codecs.index(codec), num_codebooks or 0

    for key in sorted(members, key=position):
        group, name, codec, num_codebooks = key
        of_key = members[key]
        seconds = sum(score.seconds for score in of_key)
        yield Row(
            group=group,
            name=name,
            codec=codec,
            num_codebooks=num_codebooks,
            files=len(of_key),
            mean_codebooks=sum(score.mean_codebooks * score.seconds for score in of_key) / seconds,
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
            codebooks=codebook_usage(counts[key]) if key in counts else (),
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
