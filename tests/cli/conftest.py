"""The command line run in this process, with a tiny model instead of the shipped one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from codec import pretrained
from codec.checkpoint import save_model
from codec.cli.main import run
from codec.io.audio import write_audio
from tests.tiny import tiny_model


@dataclass(frozen=True)
class Result:
    code: int
    out: bytes
    err: str


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Cli:
    """Runs `codec` with the arguments given, in a folder of its own; "general-24k" is a tiny model there."""
    weights = tmp_path / "weights"
    weights.mkdir()
    save_model(weights / "general-24k.safetensors", tiny_model(), training={"step": 3})
    monkeypatch.setattr(pretrained, "WEIGHTS", weights)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")

    def call(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            run([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return Result(ended.value.code if isinstance(ended.value.code, int) else 0, out, err.decode())

    return call


@pytest.fixture
def recording(cli: Cli) -> Path:
    """A stereo file of 0.7 s at 16 kHz."""
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (2, 11_200)).astype(np.float32)
    write_audio("in.wav", noise, 16_000)
    return Path("in.wav")
