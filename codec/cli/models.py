"""codec models, codec evaluate"""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from codec import pretrained
from codec.checkpoint import CodecCard, LMCard
from codec.cli.options import DeviceOption, JobsOption, ModelOption, progress_bar
from codec.errors import UsageError


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the models that come with this package."""
    cards = pretrained.shipped()
    if as_json:
        typer.echo(json.dumps([card.as_data() for card in cards], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    codecs = Table(
        "name", "rate", "frames", "num_codebooks", "bit rates", "parameters", "size", box=None, pad_edge=False
    )
    lms = Table("language model", "of the codes of", "knows", "parameters", "size", box=None, pad_edge=False)
    for card in cards:
        size = f"{card.parameters / 1e6:.1f} M", f"{card.size / 1e6:.1f} MB"
        match card:
            case CodecCard(frame_spec=math):
                codecs.add_row(
                    card.name,
                    f"{math.sample_rate} Hz",
                    f"{math.frame_rate:g} Hz",
                    f"{math.num_codebooks} × {math.codebook_size}",
                    f"{math.bitrate(1):g} to {math.bitrate(math.num_codebooks):g} kbit/s",
                    *size,
                )
            case LMCard(source=source):
                known = ", ".join(f"{len(names)} {kind}s" for kind, names in source["classes"].items())
                lms.add_row(card.name, f"{source['codec']}, {source['num_codebooks']} codebooks", known, *size)
    console = Console(highlight=False)
    console.print(codecs)
    if lms.rows:
        console.print()
        console.print(lms)


def evaluate(
    data: Annotated[Path, typer.Option(help="Folder of recordings.")],
    model: ModelOption = pretrained.DEFAULT,
    num_codebooks: Annotated[
        str | None,
        typer.Option(
            "--codebooks",
            help='Numbers of codebooks to evaluate: "1,2,4", or "all".',
            show_default="the number that the model uses",
        ),
    ] = None,
    speech: Annotated[
        bool | None,
        typer.Option(
            "--speech/--no-speech",
            help="Whether to take PESQ and STOI.",
            show_default="of what a manifest.jsonl calls speech",
        ),
    ] = None,
    visqol: Annotated[
        bool, typer.Option("--visqol", help="Take ViSQOL: speech mode of speech, audio mode of the rest. Slow.")
    ] = False,
    dnsmos: Annotated[bool, typer.Option("--dnsmos", help="Take DNSMOS of speech. Slow.")] = False,
    bands: Annotated[
        bool, typer.Option("--bands", help="Also show SI-SDR and hop periodicity by frequency band.")
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            help="Reference encoders beside the model, with commas between: opus:KBPS, codec2:MODE, original.",
            metavar="LIST",
        ),
    ] = None,
    rows: Annotated[
        Literal["all", "domain", "set"],
        typer.Option(help="Finest groups of files that the table has rows for; the JSON has all."),
    ] = "set",
    json_output: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="Also write all as JSON.")] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
) -> None:
    """Compress and restore the recordings of a folder, and measure what comes back."""
    from codec.evaluation.baselines import find_baselines
    from codec.evaluation.signal import evaluate
    from codec.io.storage import atomic_output

    loaded = pretrained.load(model, device)
    numbers = _codebook_numbers(num_codebooks, loaded.config.num_codebooks)
    encoders = find_baselines(baseline) if baseline is not None else ()
    with progress_bar("evaluating") as show:
        result = evaluate(
            loaded,
            data,
            num_codebooks=numbers,
            speech=speech,
            bands=bands,
            visqol=visqol,
            dnsmos=dnsmos,
            baselines=encoders,
            jobs=jobs,
            progress=show,
        )
    if json_output:
        with atomic_output(json_output, force=True) as file:
            file.write(result.as_json().encode() + b"\n")
    typer.echo(result.text(rows))
    if result.failures:
        raise typer.Exit(1)


def _codebook_numbers(text: str | None, most: int) -> list[int] | None:
    if text is None:
        return None
    if text == "all":
        return list(range(1, most + 1))
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f'--codebooks {text}: write numbers as 1,2,4, or "all"') from error
