"""codec tokenize, codec tokens export, codec tokens import"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from codec import pretrained
from codec.cli.help import Group, command
from codec.cli.options import (
    INPUT_OUTPUT,
    MODEL,
    DeviceOption,
    EngineOption,
    FFmpegOption,
    ForceOption,
    JobsOption,
    ModelOption,
    duration,
    failed,
    one_line,
    plural,
    progress_bar,
    say,
    unread_note,
)
from codec.frames import real_time

MAX_LISTED = 20  # notes and failures that are listed

exchange = typer.Typer(
    cls=Group,
    help="Token stores as Parquet, arrays or lhotse Shar, and back.\n\n"
    "Example: codec tokens export tokens/ --to parquet --out tokens.parquet",
)


def tokenize(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Folder of recordings or of .parquet files with audio, manifest (.jsonl, .jsonl.gz, .csv), or dataset "
            "torchaudio:CLASS:ROOT.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the token store; an existing one is resumed, and follows a changed corpus.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ],
    model: ModelOption = pretrained.DEFAULT,
    num_codebooks: Annotated[
        int | None,
        typer.Option("--codebooks", min=1, help="Number of codebooks.", show_default="all", rich_help_panel=MODEL),
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Scale the loud part of every recording to an RMS of DB dBFS, from -60 to 0; for example -20.",
            show_default="no scaling",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    loudness: Annotated[
        float | None,
        typer.Option(
            metavar="LUFS",
            help="Scale every recording to this integrated loudness (ITU-R BS.1770-4), measured by torchaudio; for "
            "example -23.",
            show_default="no scaling",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    channel: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=0,
            help="Use channel N alone, 0 for the first, of clips for which a manifest names none.",
            show_default="all, averaged",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    use_ffmpeg: FFmpegOption = False,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    engine: EngineOption = "local",
    force: ForceOption = False,
) -> None:
    """Encode a corpus to a token store, from which language models are trained.

    Example: codec tokenize recordings/ --out tokens/ --codebooks 8
    """
    from codec.data import tokenize as tokenizer
    from codec.data.clips import MANIFEST

    with progress_bar("tokenizing") as show:
        report = tokenizer.tokenize(
            source,
            out,
            model=model,
            num_codebooks=num_codebooks,
            level_db=level,
            loudness=loudness,
            channel=channel,
            use_ffmpeg=use_ffmpeg,
            force=force,
            device=device,
            jobs=jobs,
            engine=engine,
            progress=show,
        )
    say(
        f"{report.clips} clips encoded ({duration(report.seconds)}), {report.already_encoded} already encoded, "
        f"{f'{report.removed} removed, ' if report.removed else ''}"
        f"{len(report.failures)} failed; {plural(report.shards, 'shard')}, {real_time(report.speed)}"
    )
    lists_clips = (source / MANIFEST).is_file()
    if not (use_ffmpeg or lists_clips) and (unread := unread_note([source])):
        say(f"  {unread}")
    for note in report.notes[:MAX_LISTED]:
        say(f"  {one_line(note)}")
    if len(report.notes) > MAX_LISTED:
        say(f"  and {len(report.notes) - MAX_LISTED} more")
    for failure in report.failures[:MAX_LISTED]:
        say(failed(failure.id, failure.error))
    if len(report.failures) > MAX_LISTED:
        say(f"  and {len(report.failures) - MAX_LISTED} more: `grep error {out}/*.jsonl` lists them")
    if report.failures:
        raise typer.Exit(1)


@command(exchange, "export")
def export_tokens(
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Folder of a token store.")],
    to: Annotated[
        Literal["parquet", "npy", "shar"],
        typer.Option(
            help="parquet: one file for datasets, pandas, duckdb; npy: an array per clip and clips.jsonl; shar: a "
            "folder for lhotse.",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The Parquet file, or the new folder.", rich_help_panel=INPUT_OUTPUT),
    ],
    force: ForceOption = False,
) -> None:
    """Write a token store as files that other tools open without this package.

    Example: codec tokens export tokens/ --to parquet --out tokens.parquet
    """
    from codec.data.token_exchange import export_tokens as write

    with progress_bar("exporting") as show:
        report = write(store, out, to=to, force=force, progress=show)
    say(f"{out}: {plural(report.clips, 'clip')} ({duration(report.seconds)})")


@command(exchange, "import")
def import_tokens(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="A Parquet file or a folder of them, a .jsonl file with the paths of arrays, or a folder of lhotse "
            "Shar.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="New folder of the token store.", rich_help_panel=INPUT_OUTPUT),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="The model that made the codes, as codec encode takes it, if the files do not say.",
            show_default="what codec tokens export wrote",
            rich_help_panel=MODEL,
        ),
    ] = None,
    force: ForceOption = False,
) -> None:
    """Write a token store of exported files, or of codes of other tools.

    Codes are integers of shape (codebooks, frames) under the name codes; other fields are those of a manifest.

    Example: codec tokens import codes.jsonl --model encodec-24khz --out tokens/
    """
    from codec.data.token_exchange import import_tokens as write

    with progress_bar("importing") as show:
        report = write(source, out, model=model, force=force, progress=show)
    say(f"{out}: {plural(report.clips, 'clip')} ({duration(report.seconds)})")
