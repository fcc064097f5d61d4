"""codec models and codec evaluate."""

import json
from pathlib import Path

import numpy as np
import pytest

from codec import hub
from codec.audio import write_audio
from codec.checkpoint import save_lm
from tests.cli.conftest import Cli
from tests.lm.tiny import prior


def test_models_are_listed(cli: Cli) -> None:
    headings, line = cli("models").out.decode().splitlines()
    assert headings.split()[0] == "name"
    assert line.split()[:3] == ["general-24k", "8000", "Hz"]
    assert "0.5 to 1.5 kbit/s" in line


def test_models_as_json(cli: Cli) -> None:
    (card,) = json.loads(cli("models", "--json").out)
    assert (card["name"], card["config"]["hop"]) == ("general-24k", 80)


def test_language_models_are_listed_after_them(cli: Cli) -> None:
    save_lm(hub.WEIGHTS / "words.safetensors", prior(), training={})
    lines = cli("models").out.decode().splitlines()
    assert [line.split()[:1] for line in lines] == [["name"], ["general-24k"], [], ["language"], ["words"]]
    assert " ".join(lines[-1].split()).startswith("words tiny, 3 books 2 labels, 3 speakers 0.0 M")
    first, second = json.loads(cli("models", "--json").out)
    assert (first["frame_math"]["hop"], second["source"]["books"]) == (80, 3)
    assert "source.weights_hash" in cli("info", "words").out.decode()
    refused = cli("evaluate", "--model", "words", "--data", ".")
    assert (refused.code, refused.err) == (
        6,
        "codec: words is a language model: codec generate takes it; name a codec here\n",
    )


@pytest.fixture
def folder(cli: Cli) -> Path:
    Path("set/noise").mkdir(parents=True)
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, (1, 24_000)).astype(np.float32)
    write_audio("set/noise/a.wav", noise, 24_000)
    return Path("set")


def test_evaluate_prints_and_writes(cli: Cli, folder: Path) -> None:
    result = cli("evaluate", "--data", folder, "--books", "1,3", "--json", "out.json")
    assert result.code == 0, result.err
    rows = json.loads(Path("out.json").read_text())["rows"]
    assert {row["books"] for row in rows} == {1, 3}
    assert "noise" in result.out.decode()


@pytest.mark.parametrize(("option", "taken"), [("--speech", True), ("--no-speech", False)])
def test_evaluate_takes_speech_measures_if_asked(cli: Cli, folder: Path, option: str, taken: bool) -> None:
    assert cli("evaluate", "--data", folder, option, "--json", "out.json").code == 0
    (row,) = [row for row in json.loads(Path("out.json").read_text())["rows"] if row["group"] == "all"]
    assert (row["measures"]["stoi"] is not None) == taken


def test_evaluate_takes_all_books(cli: Cli, folder: Path) -> None:
    assert cli("evaluate", "--data", folder, "--books", "all", "--json", "out.json").code == 0
    assert {row["books"] for row in json.loads(Path("out.json").read_text())["rows"]} == {1, 2, 3}


def test_evaluate_goes_on_after_a_bad_file(cli: Cli, folder: Path) -> None:
    (folder / "noise" / "bad.wav").write_text("no audio")
    result = cli("evaluate", "--data", folder)
    assert result.code == 1
    assert "bad.wav" in result.out.decode()


@pytest.mark.parametrize(("arguments", "code"), [(["--data", "none"], 3), (["--data", "set", "--books", "x"], 2)])
def test_evaluate_refuses(cli: Cli, folder: Path, arguments: list[str], code: int) -> None:
    result = cli("evaluate", *arguments)
    assert result.code == code
    assert result.err.startswith("codec: ")
