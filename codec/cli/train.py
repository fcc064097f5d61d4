"""codec train"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from codec.cli.options import INPUT_OUTPUT, MODEL, TRAINING, DeviceOption, say, unread_note
from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.training.codec.recipe import Recipe
    from codec.training.lm.recipe import LMRecipe

OVERFIT_LOG_EVERY = 25  # steps


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="Name listed by `codec recipes`, such as general or digits/lm, or path of a TOML file.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="For a codec: folder of recordings in any formats and sample rates, or a manifest (.jsonl, .csv, "
            "lhotse). For a language model: token store made by `codec tokenize`.",
            show_default="data.folder or data.store of the recipe",
            rich_help_panel=INPUT_OUTPUT,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run.", show_default="runs/NAME of the recipe", rich_help_panel=INPUT_OUTPUT),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override a recipe value; repeatable.", rich_help_panel=TRAINING
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out.", rich_help_panel=TRAINING)
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1, help="Stop early, after this many steps in total; the schedule stays.", rich_help_panel=TRAINING
        ),
    ] = None,
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print size, memory and speed of the recipe without training.", rich_help_panel=TRAINING
        ),
    ] = False,
    codec: Annotated[
        str | None,
        typer.Option(
            help="For a language model: codec that made the tokens, as a name, a file or a run's folder.",
            show_default="the shipped codec named in the token store",
            rich_help_panel=MODEL,
        ),
    ] = None,
    overfit_batch: Annotated[
        bool,
        typer.Option(
            "--overfit-batch",
            help="For a language model: check that it can memorize one batch; nothing is saved.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
) -> None:
    """Train a codec or a language model by a recipe.

    Example: codec train general --data DIR --out runs/general
    """
    from codec.config import read_toml
    from codec.datasets import recipes
    from codec.training.codec.recipe import Recipe
    from codec.training.lm.recipe import LMRecipe

    tables = read_toml(recipes.find(recipe), overrides or [])
    loaded: Recipe | LMRecipe
    if "kind" in tables:
        loaded = LMRecipe.from_data(tables, source=recipe)
        if overrides and not any(override.startswith("train.expected=") for override in overrides):
            run = loaded.train.model_copy(update={"expected": None})  # because it was measured without overrides
            loaded = loaded.model_copy(update={"train": run})
    else:
        loaded = Recipe.from_data(tables, source=recipe)
    if steps is not None and steps > loaded.train.steps:
        raise UsageError(
            f"--steps {steps} is past the end of the schedule, train.steps = {loaded.train.steps}: "
            f"add --set train.steps={steps}, or leave --steps out"
        )
    torch_device = None if device == "auto" else device
    out = out or Path("runs", loaded.name)
    if isinstance(loaded, LMRecipe):
        store = data or loaded.data.store
        if store is None:
            raise UsageError(f"{recipe} names no data.store: pass --data, made by `codec tokenize DIR --out STORE`")
        if overfit_batch and not dry_run:
            _overfit_one_batch(loaded, store, codec, torch_device, steps)
        else:
            _train_lm(loaded, store, codec, out, resume, steps, torch_device, dry_run)
        return
    for option, given in (("--codec", codec is not None), ("--overfit-batch", overfit_batch)):
        if given:
            raise UsageError(f'{option} is for language models, whose recipes have kind = "lm"; {recipe} is a codec\'s')
    folder = data or loaded.data.folder
    if folder is None and not dry_run:
        raise UsageError(f"{recipe} names no data.folder: pass --data, a folder of recordings or a manifest")
    _train_codec(loaded, folder, out, resume, steps, torch_device, dry_run)


def _train_codec(
    recipe: "Recipe",
    data: Path | None,
    out: Path,
    resume: bool,
    steps: int | None,
    device: str | None,
    dry_run: bool,
) -> None:
    from codec.data.clips import MANIFEST
    from codec.training.codec import dry_run as estimates
    from codec.training.codec import task

    if data is not None and not (data / MANIFEST).is_file() and (unread := unread_note([data], option=False)):
        say(unread)
    if dry_run or data is None:
        typer.echo(estimates.report(estimates.estimate(recipe, data=data, device=device)))
    else:
        _say_path(task.train(recipe, data=data, out=out, resume=resume, steps=steps, device=device))


def _train_lm(
    recipe: "LMRecipe",
    data: Path,
    codec: str | None,
    out: Path,
    resume: bool,
    steps: int | None,
    device: str | None,
    dry_run: bool,
) -> None:
    from codec.training.lm import dry_run as estimates
    from codec.training.lm import task

    if dry_run:
        typer.echo(estimates.report(recipe, data=data, codec=codec, device=device))
    else:
        _say_path(task.train(recipe, data=data, out=out, codec=codec, resume=resume, steps=steps, device=device))


def _say_path(model: Path) -> None:
    """Print the path of the model, in the first process of torchrun only."""
    if os.environ.get("RANK", "0") == "0":
        say(f"the model is {model}")


def _overfit_one_batch(
    recipe: "LMRecipe", data: Path, codec: str | None, device: str | None, steps: int | None
) -> None:
    """Print the progress; exit status 1 if the model does not memorize the batch."""
    from codec.training.lm import task

    for done, bits, memorized in task.overfit_one_batch(recipe, data=data, codec=codec, device=device, steps=steps):
        if memorized:
            say(f"memorized: {bits:.3f} bits per code after {done} steps")
            return
        if done % OVERFIT_LOG_EVERY == 0 or done == 1:
            say(f"step {done}: {bits:.3f} bits per code")
    say(f"not memorized: {bits:.3f} bits per code after {done} steps; try another optimizer.lr or a larger model")
    raise typer.Exit(1)
