"""codec models, codec convert, codec evaluate"""

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from codec import pretrained, published
from codec.checkpoint import CodecCard, LMCard
from codec.cli.options import (
    INPUT_OUTPUT,
    MEASURES,
    MODEL,
    BeamsOption,
    DeviceOption,
    ForceOption,
    JobsOption,
    JSONOption,
    echo,
    echo_table,
    progress_bar,
    say,
    unread_note,
)
from codec.errors import UsageError
from codec.io.storage import refuse_existing


def models(as_json: JSONOption = False) -> None:
    """List the shipped models, and the published ones that --model fetches by name.

    Example: codec models --json
    """
    cards = pretrained.shipped()
    fetched = {name: published.cached(name) for name in published.PUBLISHED}
    if as_json:
        others = [
            {"name": name, **published.PUBLISHED[name].as_data(), "path": str(path) if path else None}
            for name, path in fetched.items()
        ]
        typer.echo(json.dumps([*(card.as_data() for card in cards), *others], indent=2))
        return
    from rich.table import Table

    codecs = Table(
        "codec", "sample rate", "frame rate", "codebooks", "bit rates", "parameters", "size", box=None, pad_edge=False
    )
    lms = Table("language model", "codec", "classes", "parameters", "size", box=None, pad_edge=False)
    for card in cards:
        size = f"{card.parameters / 1e6:.1f} M", f"{card.size / 1e6:.1f} MB"
        match card:
            case CodecCard(frame_spec=spec):
                codecs.add_row(
                    card.name,
                    f"{spec.sample_rate} Hz",
                    f"{spec.frame_rate:g} Hz",
                    f"{spec.num_codebooks} × {spec.codebook_size}",
                    f"{spec.bitrate(1):g} to {spec.bitrate(spec.num_codebooks):g} kbit/s",
                    *size,
                )
            case LMCard(source=source):
                classes = ", ".join(f"{len(names)} {kind}s" for kind, names in source["classes"].items())
                lms.add_row(card.name, f"{source['codec']}, {source['num_codebooks']} codebooks", classes, *size)
    theirs = Table(
        "published codec",
        "sample rate",
        "frame rate",
        "codebooks",
        "bit rates",
        "license of weights",
        "fetched",
        box=None,
        pad_edge=False,
    )
    for name, path in fetched.items():
        known = published.PUBLISHED[name]
        rates = f"{known.spec.sample_rate} Hz", f"{known.spec.frame_rate:.4g} Hz"
        theirs.add_row(
            name, *rates, known.codebooks, f"{known.bitrates} kbit/s", known.license, "yes" if path else "no"
        )
    echo_table(codecs)
    for table in (lms, theirs):
        if table.rows:
            echo("")
            echo_table(table)


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Checkpoint of another project: a file, a folder of transformers, or a published name.",
        ),
    ],
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="A .safetensors file.")],
    force: ForceOption = False,
) -> None:
    """Convert a codec of another project to one file of this package, with the same codes and the same hash.

    Example: codec convert weights_24khz.pth dac-24khz.safetensors
    """
    from codec.checkpoint import save_model

    if Path(output).suffix != ".safetensors":
        raise UsageError(f"{output} is to be a model file: name it {Path(output).stem}.safetensors")
    refuse_existing(output, force=force)
    model = pretrained.load(source, "cpu")
    save_model(output, model, training={"converted_from": Path(source).name})
    say(
        f"{output}: {model.config.family}, {model.frame_spec.sample_rate} Hz, weights {(model.weights_hash or '')[:12]}"
    )


def evaluate(
    data: Annotated[
        Path,
        typer.Option(
            metavar="PATH",
            help="A recording, a folder of recordings or of .parquet files with audio, or such a file.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ],
    json_output: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Also write all results to a JSON file.", rich_help_panel=INPUT_OUTPUT
        ),
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the decoded files in DIR, as NAME.MODEL.N-codebooks.wav, for other evaluation tools.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    rows: Annotated[
        Literal["all", "domain", "set"],
        typer.Option(
            help="Finest groups of files with rows in the table; the JSON has all groups.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = "set",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="Model: a name listed by codec models, a file (also of EnCodec, DAC, Mimi or SNAC), or the folder of "
            "a training run or of transformers; repeat it to compare models.",
            show_default=pretrained.DEFAULT,
            rich_help_panel=MODEL,
        ),
    ] = None,
    num_codebooks: Annotated[
        str | None,
        typer.Option(
            "--codebooks",
            metavar="LIST",
            help='Numbers of codebooks to evaluate: "1,2,4", or "all" for 1 to the model\'s number.',
            show_default="only the model's full number",
            rich_help_panel=MODEL,
        ),
    ] = None,
    vbr: Annotated[
        str | None,
        typer.Option(
            "--vbr",
            metavar="LIST",
            help='Variable bit rates to evaluate, beside those of --codebooks: "2.5,4", as codec encode --vbr.',
            rich_help_panel=MODEL,
        ),
    ] = None,
    beams: BeamsOption = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help='Reference encoders, separated by commas: "opus:KBPS,mp3:KBPS,codec2:MODE,original".',
            rich_help_panel=MODEL,
        ),
    ] = None,
    speech: Annotated[
        bool | None,
        typer.Option(
            "--speech/--no-speech",
            help="Compute PESQ and STOI for all files, or for none.",
            show_default="for files that a manifest.jsonl marks as speech",
            rich_help_panel=MEASURES,
        ),
    ] = None,
    visqol: Annotated[
        bool,
        typer.Option(
            "--visqol",
            help="Compute ViSQOL: speech mode for speech, audio mode for other files. Slow.",
            rich_help_panel=MEASURES,
        ),
    ] = False,
    dnsmos: Annotated[
        bool, typer.Option("--dnsmos", help="Compute DNSMOS for speech. Slow.", rich_help_panel=MEASURES)
    ] = False,
    loudness: Annotated[
        bool,
        typer.Option(
            "--loudness",
            help="Compute the change of loudness in LU (ITU-R BS.1770-4), by torchaudio.",
            rich_help_panel=MEASURES,
        ),
    ] = False,
    bands: Annotated[
        bool,
        typer.Option("--bands", help="Print SI-SDR and hop periodicity by frequency band.", rich_help_panel=MEASURES),
    ] = False,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
) -> None:
    """Encode and decode recordings, and score the decoded audio against the originals.

    Example: codec evaluate --data recordings --model general-24k --codebooks 1,2,4 --visqol
    """
    from codec.evaluation.baselines import find_baselines
    from codec.evaluation.codec import evaluate
    from codec.io.storage import atomic_output

    loaded = [pretrained.load(name, device) for name in model or [pretrained.DEFAULT]]
    counts = _codebook_counts(num_codebooks)
    encoders = find_baselines(baseline) if baseline is not None else ()
    with progress_bar("evaluating") as show:
        result = evaluate(
            loaded,
            data,
            num_codebooks=counts,
            vbr=_qualities(vbr),
            beams=beams,
            speech=speech,
            bands=bands,
            visqol=visqol,
            dnsmos=dnsmos,
            loudness=loudness,
            baselines=encoders,
            write=write,
            jobs=jobs,
            progress=show,
        )
    if json_output:
        with atomic_output(json_output, force=True) as file:
            file.write(result.as_json().encode() + b"\n")
    echo(result.text(rows))
    if unread := unread_note([data], option=False):
        say(unread)
    if result.failures:
        raise typer.Exit(1)


def _qualities(text: str | None) -> list[float]:
    try:
        return [float(number) for number in text.split(",")] if text else []
    except ValueError as error:
        raise UsageError(f"--vbr {text}: write numbers as 2.5,4") from error


def _codebook_counts(text: str | None) -> list[int] | Literal["all"] | None:
    if text is None:
        return None
    if text == "all":
        return "all"
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(f'--codebooks {text}: write numbers as 1,2,4, or "all"') from error
