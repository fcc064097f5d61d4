"""codec encode, codec decode, codec info, codec sample"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codec import pretrained
from codec.cli.options import (
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


def info(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A .codec file, - for standard input, or a model.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a .codec file, or a model by its name, its file or its training run's folder."""
    is_model = Path(file).suffix == ".safetensors" or Path(file).is_dir() or file in pretrained.names()
    facts = pretrained.describe(file).as_data() if is_model else _recording(file)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        rows = list(_flat(facts))
        width = max(len(name) for name, _ in rows) + 2
        for name, value in rows:
            typer.echo(f"{name:<{width}}{value:.10g}" if isinstance(value, float) else f"{name:<{width}}{value}")


def sample(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="An audio file, or - for standard output.")
    ] = "sample.wav",
    force: ForceOption = False,
) -> None:
    """Make a few seconds of speech and music, to try the codec on where no recording is at hand."""
    from codec.io.audio import open_writer
    from codec.io.synth import RATE, synthesize

    check_sink(output)
    with open_writer(output, rate=RATE, channels=1, force=force) as writer:
        writer.write(synthesize())


def _recording(file: str) -> dict[str, Any]:
    from codec.io.bitstream import open_reader

    with open_reader(file) as reader:
        header = reader.header
    facts = asdict(header) | {
        "seconds": header.seconds,
        "codes_kbps": header.frame_spec.bitrate(header.num_codebooks) * header.channels,
    }
    if file != "-" and header.time:
        size = Path(file).stat().st_size
        facts |= {"file_bytes": size, "file_kbps": size * 8 / header.seconds / 1000}
    return facts


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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
