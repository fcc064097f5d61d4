"""main.py: stable names of options, exit statuses, one-line messages."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from typer.models import OptionInfo

from codec import __version__, errors, pretrained
from codec.cli.options import BeamsOption
from tests.cli.conftest import Cli
from tests.helpers.commands import all_commands

OPTIONS = {
    "encode": (
        "inputs --output -o --channels --channel --ffmpeg --force -f --quiet -q --model -m --bitrate --codebooks "
        "--device --jobs -j --engine --verify --packet --entropy --vbr --beams --stereo --raw --rate --append"
    ),
    "decode": (
        "inputs --output -o --rate --start --end --subtype --format --force -f --quiet -q --model -m --codebooks "
        "--device --jobs -j --strict --conceal --raw"
    ),
    "check": "sources --model -m",
    "transcode": "source output --codebooks --bitrate --start --end --entropy --model -m --force -f",
    "concat": "sources --output -o --force -f",
    "info": "source --all --check --json",
    "import": "source --model -m output --length --force -f",
    "export-codes": "source --output -o --model -m --force -f",
    "sample": "output --force -f",
    "convert": "source output --force -f",
    "export": "model --onnx --opset --force -f",
    "page": "folder --model -m --onnx --ort --force -f",
    "models": "--json",
    "evaluate": (
        "--data --json --write --rows --model -m --codebooks --vbr --beams --baseline --speech --visqol --dnsmos "
        "--loudness --bands --device --jobs -j"
    ),
    "prepare": "name folder --parts --accept-license --no-download",
    "recipes": "name",
    "tokenize": (
        "source --out --model -m --codebooks --level --loudness --channel --ffmpeg --device --jobs -j --engine "
        "--force -f"
    ),
    "tokens export": "store --to --out -o --force -f",
    "tokens import": "source --out -o --model -m --force -f",
    "train": (
        "recipe --data --out --set --resume --allow-changed-data --steps --device --dry-run --codec --overfit-batch"
    ),
    "evaluate-lm": "lm --data --samples --seed --guidance --temperature --classifier --codec --out --device",
    "generate": (
        "lm --output -o --seconds --count --prompt --infill --gap --subtype --force -f --raw --codec --seed "
        "--temperature --top-k --top-p --min-p --repetition-threshold --repetition-window --guidance --device "
        "--speaker --label --text --language"
    ),
}


def test_commands_and_options_are_frozen() -> None:
    found = {
        name: " ".join(option for parameter in command.params for option in parameter.opts)
        for name, command in all_commands().items()
    }
    assert found == OPTIONS


def test_version(cli: Cli) -> None:
    result = cli("--version")
    assert (result.code, result.out.decode()) == (0, f"codec {__version__}\n")


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.code == 0
    assert all(name.split()[0] in result.out.decode() for name in OPTIONS)


def test_help_and_docs_state_the_beams_of_the_shipped_model() -> None:
    beams = pretrained.describe(pretrained.DEFAULT).as_codec().config["beam_size"]
    (option,) = (part for part in get_args(BeamsOption) if isinstance(part, OptionInfo))
    assert option.show_default == f"the model's; {beams} for general-24k"
    page = (Path(__file__).parents[2] / "docs" / "compress.md").read_text()
    assert f"instead of the model's ({beams} for `general-24k`)" in page


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["encode"], "missing argument 'INPUT': see codec encode --help"),
        (["fly"], "no such command 'fly'"),
        (["evaluat"], "evaluate"),
        (["encode", "a", "--codebooks", "x"], "invalid value for '--codebooks': it is to be an integer: see"),
        (["encode", "a", "--bitrate", "x"], "invalid value for '--bitrate': it is to be a number: see"),
        (["encode", "a", "--bitrate"], "option '--bitrate' requires an argument: see codec encode --help"),
        (["encode", "a", "--jobs", "0"], "it is to be greater than or equal to 1: see codec encode --help"),
        (["encode", "a", "--codebooks", "0"], "invalid value for '--codebooks'"),
        (["encode", "a", "--device", "tpu"], "'tpu' is not one of"),
        (["decode", "a", "--fast"], "no such option: --fast (Possible options: "),
        (["decode", "a", "--rate"], "--rate"),
        (["--fast"], "no such option: --fast: see codec --help"),
    ],
)
def test_invalid_arguments_are_one_line_and_exit_2(cli: Cli, arguments: list[str], says: str) -> None:
    result = cli(*arguments)
    assert (result.code, result.out, result.err.count("\n")) == (2, b"", 1)
    assert result.err.startswith("codec: ")
    assert says in result.err


def test_without_arguments_the_help_page_is_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["codec"])
    result = cli()
    assert result.code == 2
    assert b"encode" in result.out


@pytest.mark.parametrize(
    "error",
    [errors.UsageError("a b"), errors.UnknownModel("a b"), errors.StorageError("a b"), errors.CodecError("a b")],
)
def test_errors_print_one_line_and_exit_with_their_status(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: errors.CodecError
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr("codec.pretrained.shipped", fail)
    result = cli("models")
    assert (result.code, result.out, result.err) == (error.exit_code, b"", "codec: a b\n")


def allocate_too_much() -> None:
    torch.empty(2**62, dtype=torch.uint8)


@pytest.mark.parametrize(
    "fail", [allocate_too_much, lambda: np.empty(2**62, np.uint8), lambda: torch.cuda.OutOfMemoryError("no GPU memory")]
)
def test_memory_that_does_not_suffice_is_one_line(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, fail: Callable[[], object]
) -> None:
    def failing() -> None:
        if isinstance(error := fail(), Exception):
            raise error

    monkeypatch.setattr("codec.pretrained.shipped", failing)
    result = cli("models")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert result.err.startswith("codec: out of memory (")


def test_an_interrupt_prints_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("codec.pretrained.shipped", interrupt)
    assert (cli("models").code, cli("models").err) == (130, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_prints_one_line() -> None:
    code = "from codec.cli.main import run; run(['models', '--json'])"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr.count(b"\n")) == (8, 1)
    assert done.stderr.startswith(b"codec: standard output cannot be written, the disk is full")


@pytest.mark.slow
def test_sigterm_leaves_no_files(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from codec.io import synth as sample
from codec.cli.main import run
sample.synthesize = lambda: os.kill(os.getpid(), signal.SIGTERM)
run(["sample", "a.wav"])
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (143, b"")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["models", "--json"]])
def test_a_closed_pipe_prints_nothing(arguments: list[str]) -> None:
    code = f"from codec.cli.main import run; run({arguments})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
