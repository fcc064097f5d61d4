"""Options and messages that the commands share."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

from codec.errors import CodecError, UsageError, joined_lines, printable

Device = Literal["auto", "cpu", "cuda"]
Engine = Literal["local", "ray"]
Entropy = Literal["auto", "none", "adaptive", "model"]  # as `codec.io.entropy.Choice`, which imports numpy
Stereo = Literal["left-right", "mid-side", "smaller"]  # as `codec.io.coded_channels.Stereo`, which imports numpy

# Panels of the help pages, as `rich_help_panel` of an option.
INPUT_OUTPUT = "Input/output"
MODEL = "Model"
MEASURES = "Measures"
CONDITIONING = "Conditioning"
SAMPLING = "Sampling"
TRAINING = "Training"
DOWNLOAD = "Download"
DEVICE = "Device"

ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help="Model: a name listed by codec models, a file (also of EnCodec, DAC, Mimi or SNAC), the folder of a "
        "training run or of transformers, or hf:OWNER/NAME.",
        rich_help_panel=MODEL,
    ),
]
WrittenByOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help="Model that wrote INPUT, if its codes were coded by a network beside its file.",
        show_default="shipped networks alone",
        rich_help_panel=MODEL,
    ),
]
CodecOption = Annotated[  # of the commands that take a language model
    str | None,
    typer.Option(
        help="Codec of the model's codes: name, file, or folder of a training run.",
        show_default="found by the hash of its weights",
        rich_help_panel=MODEL,
    ),
]
BeamsOption = Annotated[
    int | None,
    typer.Option(
        "--beams",
        metavar="N",
        min=1,
        help="Beams of the search for codes: more take longer and sound a little better.",
        show_default="the model's; 5 for general-24k",
        rich_help_panel=MODEL,
    ),
]
StereoOption = Annotated[
    Stereo,
    typer.Option(
        help="How two channels are coded; smaller encodes both ways and keeps the smaller file, if both channels are "
        "about equally loud. Changes nothing for mono, silent, equal or proportional channels, more than two, and "
        "models of two channels.",
        rich_help_panel=MODEL,
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option(help="Device to compute on; auto uses a GPU if there is one.", rich_help_panel=DEVICE),
]
JobsOption = Annotated[
    int,
    typer.Option(
        "--jobs",
        "-j",
        min=1,
        help="Number of parallel processes for a folder, one thread each.",
        rich_help_panel=DEVICE,
    ),
]
EngineOption = Annotated[
    Engine,
    typer.Option(help="Where --jobs run: on this machine or on a Ray cluster.", rich_help_panel=DEVICE),
]
SubtypeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Sample format of the output, such as PCM_16, PCM_24 or FLOAT.",
        show_default="16 bits where the format has them",
        rich_help_panel=INPUT_OUTPUT,
    ),
]
ForceOption = Annotated[
    bool,
    typer.Option("--force", "-f", help="Overwrite existing output files.", rich_help_panel=INPUT_OUTPUT),
]
FFmpegOption = Annotated[
    bool,
    typer.Option(
        "--ffmpeg",
        help="Decode what libsndfile does not read (.m4a, .webm, .wma, ...) with the program ffmpeg.",
        rich_help_panel=INPUT_OUTPUT,
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=INPUT_OUTPUT)]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.", rich_help_panel=INPUT_OUTPUT)]


MAX_COLUMNS = 10_000


def say(message: str) -> None:
    """Print a message on standard error, unprintable characters escaped."""
    with suppress(OSError):  # a closed standard error must not make a finished command fail
        sys.stderr.write(f"{printable(message)}\n")


def echo(text: str) -> None:
    """Print lines on standard output, unprintable characters escaped."""
    typer.echo(printable(text, keep="\n"))


def echo_table(table: object) -> None:
    """Print a table of rich on standard output; its cells are text as it is, without markup."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if not console.is_terminal:  # a pipe or a file takes lines of any length, so nothing is cut off
        console.width = MAX_COLUMNS
    console.print(table)


@contextmanager
def progress_bar(task: str, unit: str = "", *, quiet: bool = False) -> Iterator[Callable[[float, float | None], None]]:
    """Show a progress bar if standard error is a terminal; yield a function that updates it with (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    count = MofNCompleteColumn(), TextColumn(unit)
    columns = TextColumn("{task.description}"), BarColumn(), *count, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        bar = progress.add_task(task, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def look_beside(model: str | None) -> None:
    """Let entropy coding find the network beside a model's file."""
    if model is not None:
        from codec.pretrained import describe

        describe(model)


def check_sink(output: str) -> None:
    """Raise UsageError if the output is "-" and standard output is closed or a terminal."""
    if output == "-" and sys.stdout is None:
        raise UsageError("standard output is closed: name an OUTPUT file, or redirect the data with > or |")
    if output == "-" and sys.stdout.isatty():
        raise UsageError("standard output is a terminal: name an OUTPUT file, or redirect the data with > or |")


def duration(seconds: float) -> str:
    """A duration as people say it: 1.40 s, 6 min 57 s, 2 h 5 min."""
    if seconds < 59.995:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plural(count: int, noun: str) -> str:
    """A number and its noun: 1 file, 2 files."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def unread_note(sources: Iterable[str | Path], *, option: bool = True) -> str:
    """What needs ffmpeg in the folders among `sources`, in one line; empty if nothing does."""
    from codec.io import ffmpeg

    found = (ffmpeg.unread(source) for source in sources if Path(source).is_dir())
    return ffmpeg.unread_note(sum(found, Counter()), option=option)


def failed(name: str | Path, error: BaseException | str | None) -> str:
    """A line for a file or clip that failed; many messages begin with its name."""
    message, name = one_line(error), printable(str(name))
    return f"  {message}" if message.startswith(name) else f"  {name}: {message}"


def one_line(error: BaseException | str | None) -> str:
    """An error message in one line: as it is if it is ours, because names may have line breaks; else joined."""
    return printable(str(error)) if isinstance(error, CodecError | str) else joined_lines(error)
