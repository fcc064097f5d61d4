"""codec encode, codec decode, codec sample"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec import pretrained
from codec.cli.options import (
    INPUT_OUTPUT,
    DeviceOption,
    EngineOption,
    ForceOption,
    JobsOption,
    ModelOption,
    check_sink,
    one_line,
    progress_bar,
    say,
)
from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.compression import Outcome, Report


def _named(source: str) -> str:
    if not source:  # it would be this folder, with all that is in it
        raise UsageError("INPUT is an empty name: name a file, a folder (. is this one), or -")
    return source


Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="A file, a folder, or - for standard input.", callback=_named)
]
Output = Annotated[
    str | None,
    typer.Argument(metavar="OUTPUT", help="A file, a folder, or - for standard output.", show_default="beside INPUT"),
]


def encode(
    source: Input,
    output: Output = None,
    model: ModelOption = pretrained.DEFAULT,
    bitrate: Annotated[
        float | None,
        typer.Option(metavar="KBPS", help="At most so many kbit/s per channel.", show_default="the model's full rate"),
    ] = None,
    num_codebooks: Annotated[
        int | None, typer.Option("--codebooks", min=1, help="Number of codebooks, instead of --bitrate.")
    ] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    engine: EngineOption = "local",
    force: ForceOption = False,
) -> None:
    """Compress a recording, or every recording in a folder, to .codec files."""
    from codec.compression import compress, compress_tree

    if Path(source).is_dir():
        with progress_bar("compressing") as show:
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
        _tell_folder(outcomes)
    else:
        target = _target(source, output, ".codec")
        _tell(
            compress(
                source, target, model=model, num_codebooks=num_codebooks, bitrate=bitrate, force=force, device=device
            )
        )


def decode(
    source: Input,
    output: Output = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="As for encode.", show_default="the shipped one that INPUT names"),
    ] = None,
    rate: Annotated[
        int | None, typer.Option(metavar="HZ", min=1, help="Of the output.", show_default="the source's")
    ] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    force: ForceOption = False,
) -> None:
    """Restore a recording, or every .codec file in a folder; the suffix of OUTPUT chooses the format."""
    from codec.compression import decompress, decompress_tree

    if Path(source).is_dir():
        with progress_bar("restoring") as show:
            outcomes = decompress_tree(
                source,
                output,
                model=model,
                rate=rate,
                force=force,
                device=device,
                jobs=jobs,
                progress=lambda _, done, total: show(done, total),
            )
        _tell_folder(outcomes)
    else:
        target = _target(source, output, ".wav")
        _tell(decompress(source, target, model=model, rate=rate, force=force, device=device))


def sample(
    output: Annotated[
        str,
        typer.Argument(metavar="OUTPUT", help="An audio file, or - for standard output.", rich_help_panel=INPUT_OUTPUT),
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


def _tell(report: "Report") -> None:
    say(
        f"{report.source} -> {report.target}: {report.seconds:.2f} s, {report.compressed_bytes} bytes compressed, "
        f"{report.bitrate:.2f} kbit/s, {report.speed:.0f} × real time"
    )


def _tell_folder(outcomes: "list[Outcome]") -> None:
    """A summary and the failures; exit status 1 if there are any."""
    reports = [outcome.report for outcome in outcomes if outcome.report]
    failures = [outcome for outcome in outcomes if outcome.error]
    there = len(outcomes) - len(reports) - len(failures)
    seconds = sum(report.seconds for report in reports)
    say(f"{len(reports)} done ({seconds:.1f} s of audio), {there} were there already, {len(failures)} failed")
    for failure in failures:
        say(f"  {failure.source}: {one_line(failure.error)}")
    if failures:
        raise typer.Exit(1)
