"""codec train"""

from pathlib import Path
from typing import Annotated

import typer

from codec.cli.options import say
from codec.errors import UsageError


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, as recipes/general/codec.toml.")],
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of recordings, of any formats and rates.", show_default="data.folder of the recipe"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.", show_default="runs/NAME of the recipe")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps in all.")] = None,
) -> None:
    """Train a model."""
    from codec.config import load_toml
    from codec.training import codec_loop
    from codec.training.recipe import Recipe

    loaded = load_toml(recipe, Recipe, overrides or [])
    folder = data or loaded.data.folder
    if folder is None:
        raise UsageError(f"{recipe} names no data.folder: pass --data DIR, any folder of recordings")
    model = codec_loop.train(loaded, data=folder, out=out or Path("runs", loaded.name), resume=resume, steps=steps)
    say(f"the model is {model}")
