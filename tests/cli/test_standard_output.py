"""`codec decode x -` and `codec generate -o -`: what the shell's `> file`, `>> file` and `| program` receive."""

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from codec.io.audio import read_audio
from tests.cli.conftest import Cli
from tests.cli.test_generate import lm  # noqa: F401 (a fixture)

UNKNOWN = 2**32 - 1  # as a size in a header: up to the end
COMMANDS = {"decode": ["decode", "in.codec", "-"], "live": ["decode", "-", "-"], "generate": ["generate", "-o", "-"]}


@pytest.fixture(params=COMMANDS)
def command(
    request: pytest.FixtureRequest, cli: Cli, recording: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[list[str]]:
    """A command that writes WAV to standard output; "live" reads its codes from a pipe."""
    assert cli("encode", recording, "in.codec").code == 0
    read, write = os.pipe()
    with os.fdopen(write, "wb") as pipe:
        pipe.write(Path("in.codec").read_bytes())
    with io.TextIOWrapper(os.fdopen(read, "rb")) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield [*COMMANDS[request.param], *(["--seconds", "0.2", "--seed", "1"] if request.param == "generate" else [])]


def sizes(data: bytes) -> tuple[int, int]:
    """The sizes that the header states, of the file and of the samples."""
    place = data.index(b"data") + 4
    return tuple(int.from_bytes(data[at : at + 4], "little") for at in (4, place))  # type: ignore[return-value]


@pytest.mark.slow
@pytest.mark.usefixtures("lm")
@pytest.mark.parametrize("kind", ["file", "pipe", "appended"])
def test_sizes_in_the_header(cli: Cli, command: list[str], monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A regular file gets its true sizes at the end, whatever is known at the start; other sinks cannot."""
    Path("out.wav").write_bytes(b"before" if kind == "appended" else b"")
    read, write = os.pipe()
    if kind != "pipe":
        os.close(write)
        write = os.open("out.wav", os.O_WRONLY | (os.O_APPEND if kind == "appended" else 0))
    with monkeypatch.context() as patch, os.fdopen(write, "w") as stream:
        patch.setattr(sys, "stdout", stream)
        assert cli(*command).code == 0
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read() or Path("out.wav").read_bytes().removeprefix(b"before")
    known = kind == "file" or command[:2] == ["decode", "in.codec"]
    true_sizes = len(data) - 8, len(data) - data.index(b"data") - 8
    assert sizes(data) == (true_sizes if known else (UNKNOWN, UNKNOWN))
    Path("read.wav").write_bytes(data)
    samples, _ = read_audio("read.wav")
    assert samples.shape == ((1, 1600) if command[0] == "generate" else (2, 11_200))
    assert np.std(samples) > 0.001
