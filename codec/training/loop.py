"""The training loop: launch, resume, step, log, validate, save, and stop on signals. A task says what is trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor

from codec.checkpoint import RUN_MODEL, RUN_STATE, load_state, save_state
from codec.config import Config, with_new_names
from codec.errors import ConfigError, printable
from codec.io.storage import locked_folder, storing_below
from codec.nn import distributed
from codec.training import engine
from codec.training.codec.recipe import RunConfig
from codec.training.logger import FileNote, Logger, Meter, progress
from codec.training.signals import catch_stop_signals

Metrics: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Context:
    """What a task is built with."""

    accelerator: Accelerator
    out: Path
    report: Callable[[str], None]
    """Print a line, in the first process only."""
    saved: Mapping[str, Any] | None
    """The state of the run to resume; None for a new run."""
    allow_changed_data: bool = False

    def check_data(self, data: Path, key: str) -> None:
        """Raise ConfigError if a resumed run was started on data with another key; report it if that is allowed."""
        if self.saved is None or self.saved["data"] == key:
            return
        if not self.allow_changed_data:
            raise ConfigError(
                f"{data} is not the data that this run was started on, or it has changed since: give it the same, "
                "continue with --allow-changed-data, or start again in another --out"
            )
        self.report(
            f"{data} has changed since this run was started: from here on, it is not bit for bit an uninterrupted run "
            "on either data"
        )


class Task(Protocol):
    """What is trained: batches, the step with its losses, validation and what is saved.

    All processes call all methods; `logger` and `save` write in the first process only.
    """

    STATE: ClassVar[tuple[str, ...]]
    """Attributes of `train_state` whose state dicts are saved to resume."""
    MUTABLE_KEYS: ClassVar[tuple[str, ...]]
    """Keys of the recipe that may differ when a run is resumed."""

    name: str
    train_state: Any
    data_key: str
    """Identifies the training data, because a resumed run needs the same."""
    meter: Meter

    def initialize(self, logger: Logger) -> None:
        """Set the weights that a new run starts from."""

    def distribute(self, accelerator: Accelerator) -> None:
        """Wrap or shard the networks for several processes."""

    def batches(self, first: int, last: int) -> Generator[Any, None, None]:
        """This process's rows of the batches of steps `first` to before `last`."""

    def step(self, batch: Any, step: int) -> Metrics:
        """Train on a batch; returns the losses, learning rates and gradient norms of all processes, by name."""

    def file_notes(self) -> list[FileNote]:
        """Notes on the files that this process has read, or could not read, since the last call."""

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        """Add what follows from the mean metrics of some steps."""

    def validate(self, logger: Logger, step: int) -> str:
        """Log measures and audio of the averaged model; returns a line to print."""

    def save(self, path: Path, step: int) -> None:
        """Save the averaged model, ready for use."""


def train(
    build: Callable[[Context], Task],
    recipe: Config,
    run: RunConfig,
    *,
    task: type[Task],
    out: Path,
    resume: bool = False,
    allow_changed_data: bool = False,
    steps: int | None = None,
    device: str | None = None,
    memory_settings: tuple[str, ...] = (),
    num_workers: int = 0,
) -> Path:
    """Train the task that `build` returns; the path of the trained model's file.

    `steps` stops early without changing the schedule. `resume` continues the run in `out`, on the same data unless
    `allow_changed_data`. A run's folder holds `model.safetensors` (averaged weights, ready
    for use), `state.pt` (to resume), TensorBoard events and `metrics.csv`. Processes started by `torchrun` or
    `accelerate launch` share every batch, so they train what one process would; the first one writes.

    Raises:
        ConfigError: the folder holds a training run already; to resume, another recipe or other data; the batch size
            does not divide into the processes; a loss is not finite any more; or memory ran out.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the step is done and the checkpoint is saved.
    """
    with (
        engine.launch(device) as accelerator,
        storing_below(out, instead="choose another --out"),
        locked_folder(out, "training run") if accelerator.is_main_process else nullcontext(),
        engine.memory_errors(*memory_settings, num_workers=num_workers),
        ExitStack() as stack,
    ):
        main = accelerator.is_main_process
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, quiet=not main)

        def report(line: str) -> None:
            console.print(printable(line))  # it may name files and classes of the corpus

        saved = None
        if resume:
            saved = load_resumable(out / RUN_STATE, recipe, required=task.STATE, mutable_keys=task.MUTABLE_KEYS)
        elif (out / RUN_STATE).exists():
            raise ConfigError(f"{out} holds a training run already: add --resume to continue, or choose another --out")
        if saved is not None:
            for change in changes(saved["recipe"], type(recipe).from_data(saved["recipe"]), recipe).values():
                report(f"changed since the run was started: {change}")
        trained = build(Context(accelerator, out, report, saved, allow_changed_data))
        first = 0 if saved is None else int(saved["step"])
        last = min(steps or run.steps, run.steps)
        logger = stack.enter_context(Logger(out, first, report=report, enabled=main))
        logger.log_text(first, "recipe", describe(recipe))
        if saved is None:
            trained.initialize(logger)
        else:
            load_state_dicts(trained.train_state, saved, task.STATE)
            del saved
        trained.distribute(accelerator)
        if first >= last:
            console.print(f"{first} steps are done already: nothing is left up to step {last}")

        show = stack.enter_context(progress(console, trained.name, first, last))
        stop_requested = stack.enter_context(catch_stop_signals())
        batches = stack.enter_context(closing(trained.batches(first, last)))
        meter = trained.meter
        for step, batch in zip(range(first, last), meter.time_data(batches), strict=True):
            meter.add(trained.step(batch, step))
            done = step + 1
            stop = distributed.any_rank(stop_requested(), accelerator.device)
            metrics = None
            if done % run.log_every == 0 or done == last or stop:
                for line in meter.add_notes(engine.gather_items(trained.file_notes())):
                    report(line)
                metrics = trained.summarize(meter.compute())
                logger.log_metrics(done, metrics)
            show(done, metrics)
            if done % run.save_every == 0 or done == last or stop:
                trained.save(out / RUN_MODEL, done)  # first, because a state implies its model
                state = {"step": done, "recipe": recipe.model_dump(mode="json"), "data": trained.data_key}
                state |= state_dicts(trained.train_state, task.STATE)
                if main:  # before validation, because a launcher that stops a run does not wait for long
                    save_state(out / RUN_STATE, state)
            if done % run.validate_every == 0 or done == last:
                with meter.paused():
                    line = trained.validate(logger, done)
                console.print(f"step {done}: {line}")
            if stop or done == last:
                accelerator.wait_for_everyone()  # because a launcher ends all processes when one ends
            if stop:
                console.print(f"stopped after step {done}, saved in {out}: --resume continues from there")
                raise KeyboardInterrupt
    return out / RUN_MODEL


# the resumable state


def load_resumable(
    path: Path, recipe: Config, *, required: Iterable[str], mutable_keys: Collection[str]
) -> dict[str, Any]:
    """Load the state of a run to resume, if it was saved by the same recipe; only keys in `mutable_keys` may differ.

    Raises:
        InputNotFound: the state does not exist.
        UnknownModel: the file is damaged, or is not a training state.
        ConfigError: another version or another recipe saved the state; the message names what differs.
    """
    state = load_state(path)
    tables = state.get("recipe")
    if isinstance(tables, dict) and tables.get("kind") != getattr(recipe, "kind", None):
        one, other = sorted(("a codec", "a language model"), reverse="kind" in tables)  # codec recipes have no kind
        raise ConfigError(f"{path} is of {one}, the recipe is of {other}: resume with its own, or change --out")
    if isinstance(tables, dict):
        state["recipe"] = with_new_names(tables)
    missing = ", ".join(name for name in required if name not in state)
    if missing:
        raise ConfigError(f"{path} was saved by another version: it lacks {missing}; start again in another --out")
    try:
        saved = type(recipe).from_data(state["recipe"], source=str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}: the state was saved by another version; start again in another --out") from error
    fixed = [change for key, change in changes(state["recipe"], saved, recipe).items() if key not in mutable_keys]
    if fixed:
        raise ConfigError(
            f"{path} was saved by another recipe: {', '.join(fixed)}; resume with the same, or change --out"
        )
    return state


def changes(tables: Mapping[str, Any], saved: Config, recipe: Config) -> dict[str, str]:
    """What a recipe changes of the saved one, by key.

    A key that is not in its `tables` as stored is younger than the run: it counts as changed unless it is off now (0,
    false, empty or None), because the run had nothing of its kind.
    """
    known = flatten(tables)
    new = flatten(recipe.model_dump())
    old = {
        key: value if key in known or not new.get(key, value) else "unknown"
        for key, value in flatten(saved.model_dump()).items()
    }
    return {
        key: f"{key} ({old.get(key)} then, {new.get(key)} now)" for key in old | new if new.get(key) != old.get(key)
    }


def flatten(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one table with dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        values |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def describe(recipe: Config) -> str:
    """Every value of a recipe, one a line: model.hop = 480."""
    values = flatten(recipe.model_dump(mode="json", exclude_none=True))
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items())


def state_dicts(train_state: object, names: Iterable[str]) -> dict[str, Any]:
    """The state dict of each named part; sharded tensors are gathered, so all processes call it."""
    return {name: engine.gather_shards(getattr(train_state, name).state_dict()) for name in names}


def load_state_dicts(train_state: object, state: Mapping[str, Any], names: Iterable[str]) -> None:
    """Restore what `state_dicts` returned.

    Raises ConfigError: the state does not fit the model, the optimizer or another part.
    """
    for name in names:
        try:
            getattr(train_state, name).load_state_dict(state[name])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the training state was saved by another version or is of another model ({name}: "
                f"{shorten(str(error), 200)}): start again in another --out"
            ) from error
