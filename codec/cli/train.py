"""codec train"""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import DeviceOption, say
from codec.errors import UsageError


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as recipes/general/codec.toml.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of recordings of any formats and rates, or a manifest of them (.jsonl, .csv, lhotse's).",
            show_default="data.folder of the recipe",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME of the recipe")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps in all.")] = None,
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what the recipe makes and takes, and train nothing.")
    ] = False,
) -> None:
    """Train a model."""
    from codec.config import load_toml
    from codec.training import codec_loop, plan
    from codec.training.recipe import Recipe

    loaded = load_toml(recipe, Recipe, overrides or [])
    source = data or loaded.data.folder
    if steps is not None and steps > loaded.train.steps:
        raise UsageError(
            f"--steps {steps} is past the end of the schedule, train.steps = {loaded.train.steps}: "
            f"add --set train.steps={steps}, or leave --steps out"
        )
    place = None if device == "auto" else device
    if dry_run:
        typer.echo(plan.table(plan.plan(loaded, data=source, device=place)))
        return
    if source is None:
        raise UsageError(f"{recipe} names no data.folder: pass --data, any folder of recordings or a manifest of them")
    out = out or Path("runs", loaded.name)
    model = codec_loop.train(loaded, data=source, out=out, resume=resume, steps=steps, device=place)
    say(f"the model is {model}")
