"""The command line run in this process, with a tiny model instead of the shipped one."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main

from codec import pretrained
from codec.checkpoint import save_lm
from codec.cli import main
from codec.io.audio import write_audio
from tests.helpers.language_models import tiny_lm
from tests.tiny import tiny_weights


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str


Cli = Callable[..., Result]


@cache
def command() -> Any:
    """`codec` as `main.app` makes it for every call, which takes as long as a small command."""
    return typer.main.get_command(main.app)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Runs `codec` with the arguments given, in a folder of its own; "general-24k" is a tiny model there."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tiny_weights())
    monkeypatch.setattr(main, "app", command())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main.run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(ended.value.code if isinstance(ended.value.code, int) else 0, out, err.decode())

    return call


@pytest.fixture
def language_model(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a language model among the shipped ones."""
    monkeypatch.setattr(pretrained, "WEIGHTS", Path(shutil.copytree(pretrained.WEIGHTS, "weights")).absolute())
    save_lm(pretrained.WEIGHTS / "words.safetensors", tiny_lm(), training={})
    return "words"


@pytest.fixture
def recording(cli: Cli) -> Path:
    """A stereo file of 0.7 s at 16 kHz."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 11_200)).astype(np.float32)
    write_audio("in.wav", noise, 16_000)
    return Path("in.wav")
