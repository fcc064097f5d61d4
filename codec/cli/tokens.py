"""codec tokenize"""

from pathlib import Path
from typing import Annotated

import typer

from codec import pretrained
from codec.cli.options import (
    DeviceOption,
    EngineOption,
    ForceOption,
    JobsOption,
    ModelOption,
    one_line,
    progress_bar,
    say,
)

MOST_TOLD = 20  # failures


def tokenize(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of recordings, or a manifest of them.")],
    out: Annotated[Path, typer.Option(help="Folder of the token store; what is there already is kept.")],
    model: ModelOption = pretrained.DEFAULT,
    num_codebooks: Annotated[
        int | None, typer.Option("--codebooks", min=1, help="Number of codebooks.", show_default="all")
    ] = None,
    level: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            min=-60.0,
            max=0.0,
            help="Scale every recording so that the RMS of its loud part is DB dBFS, as -20.",
            show_default="as it is recorded",
        ),
    ] = None,
    device: DeviceOption = "auto",
    jobs: JobsOption = 1,
    engine: EngineOption = "local",
    force: ForceOption = False,
) -> None:
    """Turn a corpus into a token store: its codes, ready for the training of language models."""
    from codec.data import tokenize as tokenizer

    with progress_bar("tokenizing") as show:
        report = tokenizer.tokenize(
            source,
            out,
            model=model,
            num_codebooks=num_codebooks,
            level_db=level,
            force=force,
            device=device,
            jobs=jobs,
            engine=engine,
            progress=show,
        )
    say(
        f"{report.clips} clips done ({report.seconds:.1f} s of audio), {report.already_encoded} were already encoded, "
        f"{len(report.failures)} failed; {report.shards} shards, {report.speed:.0f} s of audio a second"
    )
    for failure in report.failures[:MOST_TOLD]:
        say(f"  {failure.id}: {one_line(failure.error)}")
    if len(report.failures) > MOST_TOLD:
        say(f"  and {len(report.failures) - MOST_TOLD} more: `grep error {out}/*.jsonl` lists them")
    if report.failures:
        raise typer.Exit(1)
