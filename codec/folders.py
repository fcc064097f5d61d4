"""Compress and restore whole folders and lists of files, in parallel; a file that fails does not stop the others."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from codec import pretrained
from codec.compression import (
    Report,
    cached_model,
    check_channels,
    check_stereo,
    compress,
    decompress,
    header_of,
    model_of,
    selected_channels,
    settings_of,
    with_stereo,
)
from codec.errors import CodecError, InputNotFound, ModelId, StorageError, UsageError, model_label
from codec.frames import resampled_length
from codec.io import audio, bitstream, ffmpeg
from codec.io.bitstream import Header, Reader, is_codec_path
from codec.io.coded_channels import Stereo
from codec.io.entropy import MODEL, NAMES, Choice, last_coder
from codec.io.locks import claimed
from codec.io.storage import is_partial, storing, walk
from codec.models.base import Codec
from codec.parallel import Engine, each
from codec.splicing import Restoration

LOSSLESS = ("PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")  # sample formats that keep decoded audio
COMPARED_SECONDS = 0.5
AUDIBLE = 1e-3  # of full scale; devices differ by 1e-5, and 16 bits by 3e-5

Sources: TypeAlias = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Outcome:
    """The result for one file of many: a report, an error, or neither if it was done before."""

    source: Path
    target: Path
    report: Report | None = None
    error: CodecError | None = None


Progress: TypeAlias = Callable[[Outcome, int, int], None]
"""Called after each file with its outcome, the number of files finished, and that of all files."""


def compress_tree(
    source: Sources,
    target: str | Path | None = None,
    *,
    model: str | Path = pretrained.DEFAULT,
    num_codebooks: int | None = None,
    bitrate: float | None = None,
    channels: int | None = None,
    channel: int | None = None,
    use_ffmpeg: bool = False,
    force: bool = False,
    verify: bool = False,
    packet: float | None = None,
    device: str = "cpu",
    jobs: int = 1,
    engine: Engine = "local",
    entropy: Choice = "auto",
    vbr: float | None = None,
    beams: int | None = None,
    stereo: Stereo = "left-right",
    progress: Progress | None = None,
) -> list[Outcome]:
    """Compress every recording in the folder `source` to a .codec file at the same path in the folder `target`.

    `source` may also be a list of files and folders; a folder of a list keeps its name in `target`. Without `target`,
    the .codec files are written beside the recordings. Recordings whose names differ in the suffix alone keep it:
    a.wav.codec, a.mp3.codec. Links are followed, hidden files are skipped. A target that exists is kept if it has the
    codes of the same content, channels, model, number of codebooks, `vbr`, `beams` and `stereo`, and the `packet` and
    `entropy` that are asked for; any other is an error unless `force` replaces it. A file that fails does not stop the
    others. `jobs` and `engine` as in `codec.parallel.each`; the other options as in `compress`. The outcomes are sorted
    by source.

    Raises InputNotFound: no folder, or no recordings in it. UsageError, UnknownModel, MissingDependency: an option is
    wrong for every file.
    """
    check_channels(channels, channel)
    check_stereo(stereo)
    codec = cached_model(model, device)
    number = codec.codebooks_for(num_codebooks, bitrate)  # raises an error of every file once
    codec.check_beams(beams)
    if use_ffmpeg:
        ffmpeg.check_installed()
    is_audio = partial(audio.is_audio_path, use_ffmpeg=use_ffmpeg)
    return _run(
        _pairs(source, target, is_audio, ".codec"),
        partial(
            compress,
            model=model,
            num_codebooks=num_codebooks,
            bitrate=bitrate,
            channels=channels,
            channel=channel,
            use_ffmpeg=use_ffmpeg,
            force=force,
            identify=True,
            verify=verify,
            packet=packet,
            entropy=entropy,
            vbr=vbr,
            beams=beams,
            stereo=stereo,
            device=device,
        ),
        is_done=partial(
            _is_compressed,
            made_by=(codec.name, codec.weights_hash),
            num_codebooks=number,
            channels=selected_channels(channels, channel),
            settings=settings_of(codec, vbr=vbr, beams=beams),
            stereo=stereo,
            frames_per_packet=None if packet is None else partial(_frames_per_packet, codec, number, packet),
            last_coder=last_coder(entropy),
            force=force,
        ),
        jobs=jobs,
        engine=engine,
        gpu=device == "cuda",
        progress=progress,
    )


def decompress_tree(
    source: Sources,
    target: str | Path | None = None,
    *,
    model: str | Path | None = None,
    rate: int | None = None,
    suffix: str = ".wav",
    subtype: str | None = None,
    num_codebooks: int | None = None,
    strict: bool = False,
    conceal: bool = False,
    force: bool = False,
    device: str = "cpu",
    jobs: int = 1,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Restore every .codec file in the folder `source` to an audio file at the same path in the folder `target`.

    `suffix` selects the format. As `compress_tree`, with the options of `decompress`. A target that exists is kept if
    it has the channels, rate and length of the recording, the same audio in its middle (in formats without loss), and
    is not older than the .codec file.
    """
    audio.check_format(suffix, subtype)
    if model is not None:
        cached_model(model, device)
    return _run(
        _pairs(source, target, is_codec_path, suffix),
        partial(
            decompress,
            model=model,
            rate=rate,
            subtype=subtype,
            num_codebooks=num_codebooks,
            strict=strict,
            conceal=conceal,
            force=force,
            device=device,
        ),
        is_done=partial(
            _is_restored,
            model=model,
            rate=rate,
            subtype=subtype,
            num_codebooks=num_codebooks,
            force=force,
            device=device,
        ),
        jobs=jobs,
        progress=progress,
    )


def _frames_per_packet(model: Codec, num_codebooks: int, packet: float, header: Header) -> int:
    """The frames of packets of `packet` seconds in a file with the channels of `header`."""
    return header_of(model, header.source_rate, header.coded_channels, num_codebooks, packet).frames_per_packet


def _is_compressed(source: Path, target: Path, *, force: bool, **wanted: Any) -> bool:
    """Whether the target is what compressing the source would write. Raises StorageError if it is something else."""
    if force or not _exists(target) or not source.is_file():
        return False
    return _is_same(target, _compressed_otherwise(source, target, **wanted))


def _is_restored(
    source: Path,
    target: Path,
    *,
    model: str | Path | None,
    rate: int | None,
    subtype: str | None,
    num_codebooks: int | None,
    force: bool,
    device: str,
) -> bool:
    """Whether the target is what restoring the source would write. Raises StorageError if it is something else."""
    if force or not _exists(target) or is_partial(target):
        return False
    with bitstream.open_reader(source) as compressed:
        difference = _restored_otherwise(compressed, target, rate, subtype)
        if difference is None and not _holds_audio_of(compressed, target, model, num_codebooks, device):
            difference = f"does not hold the audio of {source}"
    if difference is None and _is_older(target, source):
        difference = f"is older than {source}"
    return _is_same(target, difference)


def _exists(target: Path) -> bool:
    with storing(target):
        return target.exists()


def _is_same(target: Path, difference: str | None) -> bool:
    if difference is not None:
        raise StorageError(f"{target} exists and {difference}: pass --force to replace it")
    return True


def _compressed_otherwise(
    source: Path,
    target: Path,
    *,
    made_by: ModelId,
    num_codebooks: int,
    channels: str,
    settings: str,
    stereo: Stereo,
    frames_per_packet: Callable[[Header], int] | None,
    last_coder: int,
) -> str | None:
    """How an existing .codec file differs from what would be written; None if it does not.

    `frames_per_packet` is asked for if a length of packets is. Packets may be coded by an earlier coder than the last.
    """
    try:
        with bitstream.open_reader(target) as reader:
            header, is_complete = reader.header, reader.is_complete
            coders = (packet.coder for packet in reader.coded()) if last_coder < MODEL else iter(())
            coder = max(coders, default=last_coder)
    except CodecError as error:
        return f"cannot be read ({error})"
    if not is_complete:
        return "is damaged at its end"
    if header.weights_hash != made_by[1]:
        return f"was made by {model_label((header.model, header.weights_hash))}, not by {model_label(made_by)}"
    if header.num_codebooks != num_codebooks:
        return f"has codes of {header.num_codebooks} codebooks, not of {num_codebooks}"
    if header.settings != (settings := with_stereo(settings, header, stereo)):
        return f"was encoded with {header.settings or 'the defaults'}, not with {settings or 'the defaults'}"
    if frames_per_packet is not None and header.frames_per_packet != (frames := frames_per_packet(header)):
        return f"has packets of {header.frames_per_packet} frames, not of {frames}"
    if coder > last_coder:
        return f"has packets of the entropy coder {NAMES[coder]}, not {NAMES[last_coder]} at most"
    if channels and header.channels != 1:
        return f"has {header.channels} channels, not 1"
    if header.source is None:  # of release 0.1.0, or written file by file
        return f"is older than {source}" if _is_older(target, source) else None
    same_size = source.stat().st_size == header.source.size
    if same_size and bitstream.source_id(source, channels=channels) == header.source:
        return None
    return f"is of other content than {source}, or of other channels"


def _restored_otherwise(compressed: Reader, target: Path, rate: int | None, subtype: str | None) -> str | None:
    """How the form of an existing audio file differs from what would be written; None if it does not."""
    header = compressed.header
    if not compressed.is_complete:
        return f"its source {compressed.label} is damaged at its end"
    rate = rate or header.source_rate
    expected = {
        "channels": header.channels,
        "Hz": rate,
        "samples": resampled_length(header.time, header.source_rate, rate),
    }
    try:
        with audio.open_reader(target) as restored:
            found = {"channels": restored.channels, "Hz": restored.rate, "samples": restored.time}
            format_ = restored.subtype
    except CodecError as error:
        return f"cannot be read ({error})"
    for unit, number in expected.items():
        if found[unit] != number:
            return f"has {found[unit]} {unit}, not {number}"
    return f"holds {format_}, not {subtype}" if subtype not in (None, format_) else None


def _holds_audio_of(
    compressed: Reader, target: Path, model: str | Path | None, num_codebooks: int | None, device: str
) -> bool:
    """Whether an audio file has the samples of the middle of a .codec file; True for lossy formats."""
    with audio.open_reader(target) as restored:
        if restored.subtype not in LOSSLESS:
            return True
        length = restored.length()
        time = min(length, round(COMPARED_SECONDS * restored.rate))
        first = (length - time) // 2
        found = restored.part(first, time)
        restoration = Restoration(
            compressed,
            model_of(compressed, model, device),
            rate=restored.rate,
            part=(first, first + time),
            num_codebooks=num_codebooks,
        )
    expected = np.concatenate(list(restoration.blocks()), axis=1)
    if restored.subtype.startswith("PCM"):
        expected = expected.clip(-1, 1)
    return bool(np.abs(found - expected).max() < AUDIBLE)


def _is_older(path: Path, other: Path) -> bool:
    return path.stat().st_mtime_ns < other.stat().st_mtime_ns


def _pairs(
    source: Sources, target: str | Path | None, accept: Callable[[str], bool], suffix: str
) -> list[tuple[Path, Path]]:
    """Every file in `source` whose name is accepted, and its target with `suffix` at the same path in `target`.

    Files that `source` names itself are not asked for their names.
    """
    one_folder = isinstance(source, str | Path)
    sources = [Path(source)] if isinstance(source, str | Path) else [Path(path) for path in source]
    if one_folder and not sources[0].is_dir():
        raise InputNotFound(f"{source} is not a folder: check the name")
    if "-" in map(str, sources) and len(sources) > 1:
        raise UsageError("standard input (-) is not one of several inputs: give it alone")
    named = f"{sources[0]} is a folder" if one_folder else f"there are {len(sources)} inputs"
    if str(target) == "-":
        raise UsageError(f"{named}, and standard output takes one file: name a folder for the files")
    if target is not None and Path(target).exists() and not Path(target).is_dir():
        raise StorageError(f"{target} is a file, but {named}: name a folder for the files")
    found = {  # a dictionary, because an input may be named twice
        path: path if target is None else Path(target, inside)
        for folder in sources
        for path, inside in _files(folder, accept, keep_name=not one_folder)
    }
    if not found:
        listed = ", ".join(map(str, sources))
        counts = sum((ffmpeg.unread(folder) for folder in sources), Counter[str]()) if suffix == ".codec" else None
        raise InputNotFound(
            f"{listed} holds no {'recordings' if suffix == '.codec' else '.codec files'}: "
            f"{ffmpeg.unread_note(counts) if counts else 'name a folder that does'}"
        )
    return list(zip(found, _targets(list(found.values()), suffix), strict=True))


def _files(source: Path, accept: Callable[[str], bool], *, keep_name: bool) -> Iterator[tuple[Path, Path]]:
    """Yield each file of an input with its path below the target's folder."""
    if not source.is_dir():
        yield source, Path(source.name)
        return
    name = (source.resolve() if source.name in ("", "..") else source).name if keep_name else ""
    for path in walk(source, accept):
        yield source / path, Path(name, path)


def _targets(paths: Sequence[Path], suffix: str) -> list[Path]:
    """The paths with `suffix` instead of their own, or after it where two of them would be the same file.

    a.wav, b.wav, b.mp3  ->  a.codec, b.wav.codec, b.mp3.codec
    """
    kept: set[int] = set()  # paths that keep their suffix
    while True:
        targets = [
            path.with_name(path.name + suffix) if number in kept else path.with_suffix(suffix)
            for number, path in enumerate(paths)
        ]
        count = Counter(str(target).casefold() for target in targets)  # some file systems ignore case
        shared = {number for number, target in enumerate(targets) if count[str(target).casefold()] > 1}
        if shared <= kept:
            return targets
        kept |= shared


def _run(
    pairs: list[tuple[Path, Path]],
    work: Callable[[Path, Path], Report],
    *,
    is_done: Callable[[Path, Path], bool],
    jobs: int,
    engine: Engine = "local",
    gpu: bool = False,
    progress: Progress | None,
) -> list[Outcome]:
    outcomes: list[Outcome] = []
    waiting: dict[Path, Path] = {}

    def report(outcome: Outcome) -> None:
        outcomes.append(outcome)
        if progress is not None:
            progress(outcome, len(outcomes), len(pairs))

    for source, target in pairs:
        first = waiting.setdefault(target, source)
        if first != source:
            both = UsageError(f"{source} and {first} would both be {target}: rename one, or encode it by itself")
            report(Outcome(source, target, error=both))
    tasks = [(source, target) for target, source in waiting.items()]
    for wait in (False, True):  # first what no other process works on, then what others have begun and not finished
        process = partial(_process, work, is_done, wait)
        begun = []
        for (source, target), result in each(process, tasks, jobs=jobs, engine=engine, gpu=gpu):
            if isinstance(result, CodecError):
                report(Outcome(source, target, error=result))
            elif result is Begun.ELSEWHERE:
                begun.append((source, target))
            else:
                report(Outcome(source, target, report=result))
        tasks = begun
    return sorted(outcomes, key=lambda outcome: outcome.source)


class Begun(Enum):
    """What `_process` returns for a file that another process has begun."""

    ELSEWHERE = auto()


def _process(
    work: Callable[[Path, Path], Report],
    is_done: Callable[[Path, Path], bool],
    wait: bool,
    pair: tuple[Path, Path],
) -> Report | Literal[Begun.ELSEWHERE] | None:
    source, target = pair
    if is_done(source, target):
        return None
    with ExitStack() as stack:
        with storing(target.parent):
            target.parent.mkdir(parents=True, exist_ok=True)
            if not stack.enter_context(claimed(target, wait=wait)):
                return Begun.ELSEWHERE
        if is_done(source, target):  # by the process that had begun it
            return None
        return work(source, target)
