"""codec encode, codec decode, codec sample"""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec import pretrained
from codec.cli.options import (
    INPUT_OUTPUT,
    MODEL,
    BeamsOption,
    DeviceOption,
    EngineOption,
    Entropy,
    FFmpegOption,
    ForceOption,
    JobsOption,
    ModelOption,
    QuietOption,
    StereoOption,
    SubtypeOption,
    check_sink,
    duration,
    failed,
    plural,
    progress_bar,
    say,
    unread_note,
)
from codec.errors import UsageError
from codec.frames import Narrowband, real_time
from codec.io.storage import is_partial, refuse_existing

if TYPE_CHECKING:
    from collections.abc import Callable

    from codec.compression import Report
    from codec.folders import Outcome
    from codec.io.pipes import Layout


def _named(inputs: list[str]) -> list[str]:
    if "" in inputs:  # because Path("") is the working directory
        raise UsageError("INPUT is an empty name: name a file, a folder (. is the working directory), or -")
    return inputs


Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="INPUT [OUTPUT], each a file or folder; OUTPUT is by default beside INPUT. For several inputs, name "
        "the folder with -o. - is standard input or standard output.",
        callback=_named,
    ),
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUTPUT",
        help="OUTPUT of several inputs: a folder, made if it is missing.",
        rich_help_panel=INPUT_OUTPUT,
    ),
]


def encode(
    inputs: Inputs,
    output: OutputOption = None,
    channels: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="1 mixes the channels down; with --raw, the number of channels of INPUT.",
            show_default="those of INPUT; 1 with --raw",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    channel: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="Encode channel N alone, 0 for the first.", rich_help_panel=INPUT_OUTPUT),
    ] = None,
    use_ffmpeg: FFmpegOption = False,
    force: ForceOption = False,
    quiet: QuietOption = False,
    model: ModelOption = pretrained.DEFAULT,
    bitrate: Annotated[
        float | None,
        typer.Option(
            metavar="KBPS",
            help="Maximum bit rate in kbit/s per channel.",
            show_default="all codebooks",
            rich_help_panel=MODEL,
        ),
    ] = None,
    num_codebooks: Annotated[
        int | None,
        typer.Option("--codebooks", min=1, help="Number of codebooks, instead of --bitrate.", rich_help_panel=MODEL),
    ] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    engine: EngineOption = "local",
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Read each file back and compare its codes.", rich_help_panel=INPUT_OUTPUT),
    ] = False,
    packet: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Length of packets, 0.1 to 10: what a damaged byte costs, and the delay of a live pipe.",
            show_default="1 in pipes; otherwise a twentieth of the recording, at least 1, at most 2000 bytes of codes",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    entropy: Annotated[
        Entropy,
        typer.Option(
            help="Entropy coder: adaptive needs no network; model stops if the codec has no network; auto takes all "
            "that the codec has, and each packet the smallest result.",
            rich_help_panel=MODEL,
        ),
    ] = "auto",
    vbr: Annotated[
        float | None,
        typer.Option(
            "--vbr",
            metavar="N",
            min=1,
            help="Variable bit rate: each frame takes as many codebooks as it is worth, about N on average in speech.",
            show_default="the same number in every frame",
            rich_help_panel=MODEL,
        ),
    ] = None,
    beams: BeamsOption = None,
    stereo: StereoOption = "left-right",
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="INPUT is 16-bit little-endian PCM without a header, with --rate and --channels.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
    rate: Annotated[
        int | None, typer.Option(metavar="HZ", help="Sample rate of --raw.", rich_help_panel=INPUT_OUTPUT)
    ] = None,
    append: Annotated[
        bool,
        typer.Option(
            "--append",
            help="Add INPUT to the end of the .codec file OUTPUT, with its model, sample rate and channels.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
) -> None:
    """Compress recordings, or every recording in a folder, to .codec files.

    Example: codec encode song.flac song.codec --bitrate 6, or codec encode *.flac -o coded/
    """
    from codec.io.audio import is_audio_path

    inputs, output = _split(inputs, output, is_input=is_audio_path)
    target = None if append or _are_many(inputs) else _target(inputs[0], output, ".codec", force=force)
    from codec.compression import compress  # after _target, because torch takes seconds
    from codec.folders import compress_tree

    if append:
        if _are_many(inputs) or output is None or verify:
            raise UsageError("--append adds one INPUT to one .codec file: name both, and leave --verify out")
        if stereo != "left-right":
            raise UsageError("--append codes the channels as the file does: leave --stereo out")
        _append(
            inputs[0],
            output,
            model=None if model == pretrained.DEFAULT else model,
            num_codebooks=num_codebooks,
            bitrate=bitrate,
            channels=None if raw else channels,
            channel=channel,
            use_ffmpeg=use_ffmpeg,
            entropy=entropy,
            vbr=vbr,
            beams=beams,
            raw=_layout(raw, rate, channels),
            device=device,
            quiet=quiet,
        )
    elif target is None:
        if raw:
            raise UsageError("--raw takes one input: encode the files one by one")
        with progress_bar("encoding", "files", quiet=quiet) as show:
            outcomes = compress_tree(
                _one_or_all(inputs),
                output,
                model=model,
                num_codebooks=num_codebooks,
                bitrate=bitrate,
                channels=channels,
                channel=channel,
                use_ffmpeg=use_ffmpeg,
                force=force,
                verify=verify,
                packet=packet,
                entropy=entropy,
                vbr=vbr,
                beams=beams,
                stereo=stereo,
                device=device,
                jobs=jobs,
                engine=engine,
                progress=lambda _, done, total: show(done, total),
            )
        _print_outcomes(outcomes, unread="" if use_ffmpeg else unread_note(inputs), quiet=quiet)
    else:
        with progress_bar("encoding", "s", quiet=quiet) as show:
            report = compress(
                inputs[0],
                target,
                model=model,
                num_codebooks=num_codebooks,
                bitrate=bitrate,
                channels=None if raw else channels,
                channel=channel,
                use_ffmpeg=use_ffmpeg,
                force=force,
                verify=verify,
                packet=packet,
                entropy=entropy,
                vbr=vbr,
                beams=beams,
                stereo=stereo,
                raw=_layout(raw, rate, channels),
                device=device,
                progress=show,
            )
        _print_report(report, quiet=quiet)


def _append(source: str, target: str, *, quiet: bool, **options: Any) -> None:
    """`options` are those of `codec.transcoding.append`."""
    from codec.transcoding import append

    notes: list[str] = []
    with progress_bar("encoding", "s", quiet=quiet) as show:
        header = append(source, target, progress=show, note=notes.append, **options)
    if not quiet:
        say(f"{source} -> the end of {target}: {duration(header.seconds)} in all")
        for note in notes:
            say(f"note: {note}")


def _layout(raw: bool, rate: int | None, channels: int | None) -> "Layout | None":
    from codec.io.pipes import Layout

    if raw and rate is None:
        raise UsageError("--raw samples have no header: give their --rate in Hz, and --channels if there are several")
    if not raw and rate is not None:
        raise UsageError("--rate describes samples without a header: add --raw, or leave it out")
    return Layout(rate, channels or 1) if raw and rate is not None else None


def decode(
    inputs: Inputs,
    output: OutputOption = None,
    rate: Annotated[
        int | None,
        typer.Option(
            metavar="HZ",
            min=1,
            help="Sample rate of the output.",
            show_default="that of the source",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    start: Annotated[
        float, typer.Option(metavar="SECONDS", help="Restore from here on.", rich_help_panel=INPUT_OUTPUT)
    ] = 0.0,
    end: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="Restore up to here.", show_default="the end", rich_help_panel=INPUT_OUTPUT
        ),
    ] = None,
    subtype: SubtypeOption = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="Format of the files of a folder or of several inputs: wav, flac, ogg, mp3, ...",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = "wav",
    force: ForceOption = False,
    quiet: QuietOption = False,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model that wrote INPUT, as for codec encode.",
            show_default="found by INPUT's header: shipped, fetched before, or in runs/",
            rich_help_panel=MODEL,
        ),
    ] = None,
    num_codebooks: Annotated[
        int | None,
        typer.Option(
            "--codebooks",
            min=1,
            help="Number of codebooks to decode, the coarsest.",
            show_default="all",
            rich_help_panel=MODEL,
        ),
    ] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Refuse damaged files.", rich_help_panel=INPUT_OUTPUT),
    ] = False,
    conceal: Annotated[
        bool,
        typer.Option(
            "--conceal",
            help="Begin damaged parts with 0.12 s of the model's own continuation.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Write 16-bit little-endian PCM without a header to standard output.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = False,
) -> None:
    """Restore recordings from .codec files, or from every .codec file in a folder.

    Damaged parts become silence, and the exit status is 5.
    The suffix of OUTPUT selects the audio format. Example: codec decode song.codec song.wav
    """
    from codec.io.bitstream import is_codec_path

    inputs, output = _split(inputs, output, is_input=is_codec_path)
    target = None if _are_many(inputs) else _target(inputs[0], output, ".wav", force=force)
    from codec.compression import decompress  # after _target, because torch takes seconds
    from codec.folders import decompress_tree

    if target is None:
        if start or end is not None:
            raise UsageError("--start and --end are of one recording: decode the files one by one")
        if raw:
            raise UsageError("--raw writes to standard output: decode one input to -")
        with progress_bar("decoding", "files", quiet=quiet) as show:
            outcomes = decompress_tree(
                _one_or_all(inputs),
                output,
                model=model,
                rate=rate,
                suffix=f".{format_.lower().removeprefix('.')}",
                subtype=subtype,
                num_codebooks=num_codebooks,
                strict=strict,
                conceal=conceal,
                force=force,
                device=device,
                jobs=jobs,
                progress=lambda _, done, total: show(done, total),
            )
        _print_outcomes(outcomes, quiet=quiet)
    else:
        with progress_bar("decoding", "s", quiet=quiet) as show:
            report = decompress(
                inputs[0],
                target,
                model=model,
                rate=rate,
                subtype=subtype,
                start=start,
                end=end,
                num_codebooks=num_codebooks,
                strict=strict,
                conceal=conceal,
                bare=raw,
                force=force,
                device=device,
                progress=show,
            )
        _print_report(report, quiet=quiet)


def sample(
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="An audio file, or - for standard output."),
    ] = "sample.wav",
    force: ForceOption = False,
) -> None:
    """Synthesize a few seconds of speech and music as a test recording.

    Example: codec sample sample.wav
    """
    from codec.io.audio import open_writer
    from codec.io.synth import RATE, synthesize

    check_sink(output)
    with open_writer(output, rate=RATE, channels=1, force=force) as writer:
        writer.write(synthesize())


def _split(names: list[str], output: str | None, *, is_input: "Callable[[str], bool]") -> tuple[list[str], str | None]:
    """The inputs and the output: without --output, the second of two names is the output, if it may be one."""
    if output is not None or len(names) == 1:
        return names, output
    if len(names) > 2 or (names[0] != names[1] and is_input(names[1]) and Path(names[1]).is_file()):
        raise UsageError(f"{len(names)} inputs need a folder for their outputs: name it with -o, for example -o coded/")
    return names[:1], names[1]


def _are_many(inputs: list[str]) -> bool:
    return len(inputs) > 1 or Path(inputs[0]).is_dir()


def _one_or_all(inputs: list[str]) -> str | list[str]:
    return inputs if len(inputs) > 1 else inputs[0]


def _target(source: str, output: str | None, suffix: str, *, force: bool) -> str:
    """The output of one input. Raises StorageError for one that exists, before any work is done."""
    from codec.io.audio import target_of

    target = target_of(source, output, suffix)
    check_sink(target)
    path = Path(target)
    with suppress(OSError):  # a name that is too long, which is said where the file is made
        if Path(source).is_file() and path.is_file() and not path.samefile(source) and not is_partial(path):
            refuse_existing(path, force=force)
    return target


def _print_report(report: "Report", *, quiet: bool) -> None:
    if quiet:
        return
    is_part = report.seconds < report.coded_seconds - 1 / report.rate
    whole = f" of {duration(report.coded_seconds)}" if is_part else ""
    channels = f", {report.channels} channels" if report.channels > 1 else ""
    saved = f" (entropy coding saved {report.entropy_saved:.0%})" if report.entropy_saved else ""
    say(
        f"{report.source} -> {report.target}: {duration(report.seconds)}{whole}{channels}, {report.compressed_bytes} "
        f"bytes compressed{saved}, {report.bitrate:.2f} kbit/s, {real_time(report.speed)}"
    )
    for note in [*report.notes, *_narrowband_notes([report])]:
        say(f"note: {note}")


def _narrowband_notes(reports: "list[Report]") -> list[str]:
    narrowband = Narrowband()
    for report in reports:
        if report.model_rate is not None:
            narrowband.add(report.source, report.rate, report.model_rate)
    return narrowband.notes("file")


def _print_outcomes(outcomes: "list[Outcome]", *, unread: str = "", quiet: bool) -> None:
    """Print a summary and the failures; exit with status 1 if there are any."""
    reports = [outcome.report for outcome in outcomes if outcome.report]
    failures = [outcome for outcome in outcomes if outcome.error]
    already = len(outcomes) - len(reports) - len(failures)
    parts = [f"{plural(len(reports), 'file')}, {duration(sum(report.seconds for report in reports))}"]
    parts += [f"{already} already there"] * bool(already) + [f"{len(failures)} failed"] * bool(failures)
    if not quiet:
        say("; ".join([*parts, unread] if unread else parts))
        notes = dict.fromkeys(note for report in reports for note in report.notes)
        for note in [*notes, *_narrowband_notes(reports)]:
            say(f"  note: {note}")
    for failure in failures:
        say(failed(failure.source, failure.error))
    if failures:
        raise typer.Exit(1)
