"""codec train"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.cli.options import DeviceOption, say
from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.training.lm.recipe import LMRecipe

TOLD_EVERY = 25  # steps of a batch that is learned by heart


def train(
    recipe: Annotated[
        str,
        typer.Argument(metavar="RECIPE", help="A name that `codec recipes` lists, as general or digits/lm, or a file."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="For a codec: folder of recordings of any formats and rates, or a manifest of them (.jsonl, .csv, "
            "lhotse's). For a language model: what `codec tokenize` made of them.",
            show_default="data.folder or data.store of the recipe",
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
    codec: Annotated[
        str | None,
        typer.Option(
            help="For a language model: the codec that made the tokens, its file or its run's folder.",
            show_default="the shipped one that the tokens name",
        ),
    ] = None,
    overfit_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-batch", help="For a language model: see whether it learns one batch by heart, and keep nothing."
        ),
    ] = False,
) -> None:
    """Train a model."""
    from codec.config import read_toml
    from codec.datasets import recipes
    from codec.training.codec.recipe import Recipe
    from codec.training.lm.recipe import LMRecipe

    tables = read_toml(recipes.find(recipe), overrides or [])
    loaded: Recipe | LMRecipe
    if "kind" in tables:
        loaded = LMRecipe.from_data(tables, source=recipe)
        if overrides and not any(override.startswith("train.expected=") for override in overrides):
            train = loaded.train.model_copy(update={"expected": None})  # which was measured on the recipe as it is
            loaded = loaded.model_copy(update={"train": train})
    else:
        loaded = Recipe.from_data(tables, source=recipe)
    if steps is not None and steps > loaded.train.steps:
        raise UsageError(
            f"--steps {steps} is past the end of the schedule, train.steps = {loaded.train.steps}: "
            f"add --set train.steps={steps}, or leave --steps out"
        )
    place = None if device == "auto" else device
    out = out or Path("runs", loaded.name)
    if isinstance(loaded, LMRecipe):
        source = data or loaded.data.store
        if source is None:
            raise UsageError(
                f"{recipe} names no data.store: pass --data, what `codec tokenize DIR --out STORE` made of recordings"
            )
        if dry_run:
            from codec.training.lm import dry_run as lm_plan

            typer.echo(lm_plan.table(loaded, data=source, codec=codec, device=place))
        elif overfit_batch:
            _learn_by_heart(loaded, source, codec, place, steps)
        else:
            from codec.training.lm import task as lm_loop

            model = lm_loop.train(loaded, data=source, out=out, codec=codec, resume=resume, steps=steps, device=place)
            _tell(model)
        return
    for option, given in (("--codec", codec is not None), ("--overfit-batch", overfit_batch)):
        if given:
            raise UsageError(f'{option} is for language models, whose recipes say kind = "lm"; {recipe} is a codec\'s')
    source = data or loaded.data.folder
    if dry_run:
        from codec.training.codec import dry_run as plan

        typer.echo(plan.table(plan.plan(loaded, data=source, device=place)))
        return
    if source is None:
        raise UsageError(f"{recipe} names no data.folder: pass --data, any folder of recordings or a manifest of them")
    from codec.training.codec import task as codec_loop

    model = codec_loop.train(loaded, data=source, out=out, resume=resume, steps=steps, device=place)
    _tell(model)


def _tell(model: Path) -> None:
    """Where it is, once of all processes that torchrun started."""
    if os.environ.get("RANK", "0") == "0":
        say(f"the model is {model}")


def _learn_by_heart(recipe: "LMRecipe", source: Path, codec: str | None, device: str | None, steps: int | None) -> None:
    """Say how it goes; exit status 1 where the batch is not learned."""
    from codec.training.lm import task as lm_loop

    for done, bits, learnt in lm_loop.learn_by_heart(recipe, data=source, codec=codec, device=device, steps=steps):
        if learnt:
            say(f"learned by heart: {bits:.3f} bits per code after {done} steps")
            return
        if done % TOLD_EVERY == 0 or done == 1:
            say(f"step {done}: {bits:.3f} bits per code")
    say(f"not learned: {bits:.3f} bits per code after {done} steps; try another optimizer.lr or a larger model")
    raise typer.Exit(1)
