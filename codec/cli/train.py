"""codec train"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from codec.cli.options import INPUT_OUTPUT, MODEL, TRAINING, DeviceOption, say, unread_note
from codec.errors import InputNotFound, UsageError

if TYPE_CHECKING:
    from codec.training.codec.recipe import Recipe
    from codec.training.lm.recipe import LMRecipe

OVERFIT_LOG_EVERY = 25  # steps


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="Name listed by `codec recipes`, such as general or digits/lm, or path of a TOML file; with --resume "
            "also the folder of a run, which has its recipe.",
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            help="For a codec: folder of recordings in any formats and sample rates, or a manifest (.jsonl, .csv, "
            "lhotse), or dataset torchaudio:CLASS:ROOT. For a language model: token store made by `codec tokenize`.",
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
        bool,
        typer.Option(
            "--resume",
            help="Continue a run: codec train --resume runs/mine, or RECIPE with --out.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    allow_changed_data: Annotated[
        bool,
        typer.Option(
            "--allow-changed-data",
            help="Resume although the data has changed; the run is not bit for bit an uninterrupted one then.",
            rich_help_panel=TRAINING,
        ),
    ] = False,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Stop early, after this many steps in total; the learning rate still follows train.steps.",
            rich_help_panel=TRAINING,
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
            show_default="found by the hash of its weights",
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
    from codec.training.lm.recipe import LMRecipe

    if allow_changed_data and not resume:
        raise UsageError("--allow-changed-data is for a run that continues: add --resume")
    stored = _stored_run(recipe, out) if resume and Path(recipe).is_dir() else None
    if stored is not None:
        out, data, codec = Path(recipe), data or stored.data, codec or stored.codec
    loaded = _recipe(recipe, stored, overrides or [])
    if steps is not None and steps > loaded.train.steps:
        raise UsageError(
            f"--steps {steps} is past the end of the schedule, train.steps = {loaded.train.steps}: "
            f"add --set train.steps={steps}, or leave --steps out"
        )
    torch_device = None if device == "auto" else device
    options = {"resume": resume, "allow_changed_data": allow_changed_data, "steps": steps, "device": torch_device}
    out = out or Path("runs", loaded.name)
    if isinstance(loaded, LMRecipe):
        store = data or loaded.data.store
        if store is None:
            raise UsageError(f"{recipe} names no data.store: pass --data, made by `codec tokenize DIR --out STORE`")
        if overfit_batch and not dry_run:
            _overfit_one_batch(loaded, store, codec, torch_device, steps)
        else:
            _train_lm(loaded, store, codec, out, options, dry_run)
        return
    for option, given in (("--codec", codec is not None), ("--overfit-batch", overfit_batch)):
        if given:
            raise UsageError(f'{option} is for language models, whose recipes have kind = "lm"; {recipe} is a codec\'s')
    folder = data or loaded.data.folder
    if folder is None and not dry_run:
        raise UsageError(f"{recipe} names no data.folder: pass --data, a folder of recordings or a manifest")
    _train_codec(loaded, folder, out, options, dry_run)


class _StoredRun(NamedTuple):
    """What the model of a run says about it."""

    recipe: dict[str, Any]
    data: Path
    codec: str | None


def _stored_run(folder: str, out: Path | None) -> _StoredRun:
    """Read the recipe and the paths that a run was started with. Raises InputNotFound, UnknownModel, UsageError."""
    from codec.checkpoint import RUN_MODEL, read_card
    from codec.config import with_new_names

    if out is not None and not (out.exists() and out.samefile(folder)):
        raise UsageError(f"--resume continues the run of {folder} in its folder: leave out --out {out}")
    if not Path(folder, RUN_MODEL).is_file():
        raise InputNotFound(f"{folder} has no {RUN_MODEL}: there is no training run to resume")
    training = read_card(Path(folder, RUN_MODEL)).training
    if not isinstance(training.get("recipe"), dict):
        raise UsageError(f"{folder} does not hold its recipe: name the recipe, and {folder} as --out")
    return _StoredRun(with_new_names(training["recipe"]), Path(training["data"]), training.get("codec"))


def _recipe(name: str, stored: _StoredRun | None, overrides: list[str]) -> "Recipe | LMRecipe":
    """The recipe of a name or of a stored run, with overrides. Raises InputNotFound, UsageError, ConfigError."""
    from codec.checkpoint import RUN_MODEL
    from codec.config import override_data, read_toml
    from codec.datasets import recipes
    from codec.training.codec.recipe import Recipe
    from codec.training.lm.recipe import LMRecipe

    if stored is None and Path(name, RUN_MODEL).is_file():
        raise UsageError(f"{name} is the folder of a run, not a recipe: add --resume to continue it")
    tables = read_toml(recipes.find(name), overrides) if stored is None else override_data(stored.recipe, overrides)
    if "kind" not in tables:
        return Recipe.from_data(tables, source=name)
    loaded = LMRecipe.from_data(tables, source=name)
    if stored is None and overrides and not any(override.startswith("train.expected=") for override in overrides):
        run = loaded.train.model_copy(update={"expected": None})  # because it was measured without overrides
        loaded = loaded.model_copy(update={"train": run})
    return loaded


def _train_codec(
    recipe: "Recipe",
    data: Path | None,
    out: Path,
    options: dict[str, Any],
    dry_run: bool,
) -> None:
    from codec.data.clips import MANIFEST
    from codec.training.codec import dry_run as estimates
    from codec.training.codec import task

    if data is not None and not (data / MANIFEST).is_file() and (unread := unread_note([data], option=False)):
        say(unread)
    if dry_run or data is None:
        typer.echo(estimates.report(estimates.estimate(recipe, data=data, device=options["device"])))
    else:
        _say_path(task.train(recipe, data=data, out=out, **options))


def _train_lm(
    recipe: "LMRecipe",
    data: Path,
    codec: str | None,
    out: Path,
    options: dict[str, Any],
    dry_run: bool,
) -> None:
    from codec.training.lm import dry_run as estimates
    from codec.training.lm import task

    if dry_run:
        typer.echo(estimates.report(recipe, data=data, codec=codec, device=options["device"]))
    else:
        _say_path(task.train(recipe, data=data, out=out, codec=codec, **options))


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
