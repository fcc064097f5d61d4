"""codec encode, codec decode, codec sample"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import pretrained
from codec.cli.options import (
    INPUT_OUTPUT,
    MODEL,
    DeviceOption,
    EngineOption,
    ForceOption,
    JobsOption,
    ModelOption,
    SubtypeOption,
    check_sink,
    one_line,
    progress_bar,
    say,
)
from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.compression import Outcome, Report


def _named(source: str) -> str:
    if not source:  # because Path("") is the working directory
        raise UsageError("INPUT is an empty name: name a file, a folder (. is the working directory), or -")
    return source


Input = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="File or folder; - for standard input.",
        callback=_named,
    ),
]
Output = Annotated[
    str | None,
    typer.Argument(
        metavar="OUTPUT",
        help="File or folder; - for standard output.",
        show_default="beside INPUT",
    ),
]


def encode(
    source: Input,
    output: Output = None,
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
    force: ForceOption = False,
) -> None:
    """Compress a recording, or every recording in a folder, to .codec files.

    Example: codec encode song.flac song.codec --bitrate 6
    """
    from codec.compression import compress, compress_tree

    if Path(source).is_dir():
        with progress_bar("encoding") as show:
            outcomes = compress_tree(
                source,
                output,
                model=model,
                num_codebooks=num_codebooks,
                bitrate=bitrate,
                force=force,
                device=device,
                jobs=jobs,
                engine=engine,
                progress=lambda _, done, total: show(done, total),
            )
        _print_outcomes(outcomes)
    else:
        target = _target(source, output, ".codec")
        _print_report(
            compress(
                source, target, model=model, num_codebooks=num_codebooks, bitrate=bitrate, force=force, device=device
            )
        )


def decode(
    source: Input,
    output: Output = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model that wrote INPUT, as for codec encode.",
            show_default="the shipped model that INPUT names",
            rich_help_panel=MODEL,
        ),
    ] = None,
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
    subtype: SubtypeOption = None,
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="Format of the files of a folder: wav, flac, ogg, mp3, ...",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = "wav",
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    force: ForceOption = False,
) -> None:
    """Restore a recording from a .codec file, or every .codec file in a folder.

    The suffix of OUTPUT selects the audio format. Example: codec decode song.codec song.wav
    """
    from codec.compression import decompress, decompress_tree

    if Path(source).is_dir():
        with progress_bar("decoding") as show:
            outcomes = decompress_tree(
                source,
                output,
                model=model,
                rate=rate,
                suffix=f".{format_.lower().removeprefix('.')}",
                subtype=subtype,
                force=force,
                device=device,
                jobs=jobs,
                progress=lambda _, done, total: show(done, total),
            )
        _print_outcomes(outcomes)
    else:
        target = _target(source, output, ".wav")
        _print_report(decompress(source, target, model=model, rate=rate, subtype=subtype, force=force, device=device))


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


def _target(source: str, output: str | None, suffix: str) -> str:
    from codec.compression import target_of

    output = target_of(source, output, suffix)
    check_sink(output)
    return output


def _print_report(report: "Report") -> None:
    say(
        f"{report.source} -> {report.target}: {report.seconds:.2f} s, {report.compressed_bytes} bytes compressed, "
        f"{report.bitrate:.2f} kbit/s, {report.speed:.0f} × real time"
    )
    for note in report.notes:
        say(f"note: {note}")


def _print_outcomes(outcomes: "list[Outcome]") -> None:
    """Print a summary and the failures; exit with status 1 if there are any."""
    reports = [outcome.report for outcome in outcomes if outcome.report]
    failures = [outcome for outcome in outcomes if outcome.error]
    skipped = len(outcomes) - len(reports) - len(failures)
    seconds = sum(report.seconds for report in reports)
    say(f"{len(reports)} done ({seconds:.1f} s of audio), {skipped} skipped, {len(failures)} failed")
    for report in reports:
        for note in report.notes:
            say(f"  note: {note}")
    for failure in failures:
        say(f"  {failure.source}: {one_line(failure.error)}")
    if failures:
        raise typer.Exit(1)
