"""The `codec` command: all commands, and exit statuses of errors."""

import errno
import io
import re
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from codec import __version__
from codec.cli import bitstream, datasets, evaluate_lm, exchange, export, files, generate, info, models, tokens, train
from codec.cli.help import Group, command
from codec.cli.options import one_line, say
from codec.errors import CodecError, StorageError, UsageError, is_out_of_memory, joined_lines

CommandLineError: Any = typer.BadParameter.__base__  # every error in the arguments; click's, which typer may vendor

app = typer.Typer(
    cls=Group,
    help="Neural audio codec: compress recordings to discrete codes, decode them, and generate new audio.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for function in (
    files.encode,
    files.decode,
    bitstream.check,
    bitstream.transcode,
    bitstream.concat,
    info.info,
    files.sample,
    models.models,
    models.convert,
    models.evaluate,
    datasets.prepare,
    datasets.recipes,
    tokens.tokenize,
    train.train,
    generate.generate,
    evaluate_lm.evaluate_lm,
    exchange.import_codes,
    exchange.export_codes,
    export.export,
    export.page,
):
    name = "import" if function is exchange.import_codes else None  # which Python does not take as a function's name
    command(app, name)(function)
app.add_typer(tokens.exchange, name="tokens")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"codec {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and raise SystemExit.

    Exit status: 0 success, 1 some files of a folder failed or a question was not answered, 130 interrupted, 143
    SIGTERM, 129 SIGHUP, else the `exit_code` of the error (`codec.errors`). Typer handles interrupts. A closed pipe on
    standard output ends the command without a message, because its reader has stopped reading.
    """
    _prepare()
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(arguments or ["--help"], prog_name="codec", standalone_mode=False)
        sys.exit(status if arguments else UsageError.exit_code)
    except typer.Abort:  # an answer was refused, or standard input ended before it
        say("codec: aborted")
        sys.exit(1)
    except CommandLineError as error:
        say(f"codec: {_described(error, arguments)}")
        sys.exit(UsageError.exit_code)
    except CodecError as error:
        if not isinstance(error.__cause__, BrokenPipeError):
            say(f"codec: {one_line(error)}")
        sys.exit(error.exit_code)
    except OSError as error:  # for example a full standard output, or a name that is too long
        say(f"codec: {_described_system_error(error)}")
        sys.exit(StorageError.exit_code)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        say(f"codec: out of memory ({one_line(error)[:200]}): try fewer --jobs, a smaller model, or another --device")
        sys.exit(CodecError.exit_code)


_PLAINER = {  # typer shows pydantic's messages
    r"Input should be a valid integer.*": "it is to be an integer",
    r"Input should be a valid number.*": "it is to be a number",
    "Input should be (?=greater|less)": "it is to be ",
    r"Value error, ": "",
}


def _described(error: Any, arguments: Sequence[str]) -> str:
    """An error in the arguments in one line, with the command whose help page has the way out."""
    message = joined_lines(error.format_message()).rstrip(".")
    for pattern, text in _PLAINER.items():
        message = re.sub(pattern, text, message)
    named = [name for name in arguments if not name.startswith("-")][:1]  # an option without its value has no context
    command = error.ctx.command_path if error.ctx else " ".join(["codec", *named])
    return f"{message[:1].lower()}{message[1:]}: see {command} --help"


def _described_system_error(error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"{error.filename}: this name is too long for the file system: use a shorter one"
    if error.filename is None and error.errno == errno.ENOSPC:  # files of commands are named by errors of their own
        return "standard output cannot be written, the disk is full: free some space or write elsewhere"
    return f"{one_line(error)}: check the path, its permissions and the free space on the disk"


def _prepare() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, so that temporary files are removed; replace closed streams."""
    for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup sets SIGHUP to be ignored
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    for name in ("stdin", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.BytesIO()))
