"""What the command groups share: options, and how they speak."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Literal

import typer

from codec.errors import UsageError

Device = Literal["auto", "cpu", "cuda"]
Engine = Literal["local", "ray"]

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="A shipped model's name, a .safetensors file or a training run's folder.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where to compute; auto takes a GPU where there is one.")]
JobsOption = Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes to work on a folder, one thread each.")]
EngineOption = Annotated[
    Engine, typer.Option(help="Where the --jobs of a folder work: on this machine, or on a Ray cluster.")
]
ForceOption = Annotated[bool, typer.Option("--force", "-f", help="Replace outputs that exist.")]


def say(message: str) -> None:
    """One line for the user, on standard error."""
    with suppress(OSError):  # nobody to tell: that undoes nothing of what was done
        sys.stderr.write(f"{message}\n")


@contextmanager
def progress_bar(task: str) -> Iterator[Callable[[int, int], None]]:
    """Shows how much of a task is done where there is a terminal; yields what to call with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(task, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def check_sink(output: str) -> None:
    """UsageError where data would go to a standard output that is closed, or a terminal."""
    if output == "-" and sys.stdout is None:
        raise UsageError("standard output is closed: name an OUTPUT file, or send the data on with > or |")
    if output == "-" and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: name an OUTPUT file, or send the data on with > or |")


def one_line(error: BaseException | str | None) -> str:
    """The message of an error, on one line."""
    return " ".join(str(error).split())
