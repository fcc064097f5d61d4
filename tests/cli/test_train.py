"""codec train: what it hands to the loop."""

from pathlib import Path
from typing import Any

import pytest

from codec.audio import write_audio
from codec.training import codec_loop
from codec.training.recipe import Recipe
from tests.cli.conftest import Cli
from tests.training.small import tones


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, dict[str, Any]]]:
    calls = []

    def train(recipe: Recipe, **options: Any) -> Path:
        calls.append((recipe, options))
        return Path(options["out"], "model.safetensors")

    monkeypatch.setattr(codec_loop, "train", train)
    return calls


@pytest.fixture
def recipe(cli: Cli) -> Path:
    Path("small.toml").write_text('name = "night"\n[model]\nbooks = 4\n')
    return Path("small.toml")


def test_defaults(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    result = cli("train", recipe, "--data", "sounds")
    assert (result.code, result.out, result.err) == (0, b"", "the model is runs/night/model.safetensors\n")
    ((loaded, options),) = calls
    assert (loaded.name, loaded.model.books) == ("night", 4)
    expected = {"data": Path("sounds"), "out": Path("runs/night"), "resume": False, "steps": None, "device": None}
    assert options == expected


def test_the_recipe_may_name_the_data(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    result = cli("train", recipe)
    assert (result.code, calls) == (2, [])
    assert "pass --data, any folder" in result.err
    assert cli("train", recipe, "--set", "data.folder=sounds").code == 0
    assert cli("train", recipe, "--set", "data.folder=sounds", "--data", "others").code == 0
    assert [options["data"] for _, options in calls] == [Path("sounds"), Path("others")]


def test_every_option(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    arguments = ["--set", "model.books=2", "--set", "name=day", "--out", "here", "--resume", "--steps", "9"]
    arguments += ["--device", "cpu"]
    assert cli("train", recipe, "--data", "sounds", *arguments).code == 0
    ((loaded, options),) = calls
    assert (loaded.name, loaded.model.books) == ("day", 2)
    expected = {"data": Path("sounds"), "out": Path("here"), "resume": True, "steps": 9, "device": "cpu"}
    assert options == expected


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["small.toml", "--set", "model.book=2"], 2, "did you mean books?"),
        (["small.toml", "--set", "modle.books=2"], 2, "unknown key modle; did you mean model?"),
        (["small.toml", "--set", "train.steps=many"], 2, 'train.steps = "many": must be a valid integer'),
        (["small.toml", "--set", "losses.mel=-1"], 2, "losses.mel = -1: must be greater than or equal to 0"),
        (["small.toml", "--set", "name.first=x"], 2, "name is a value, not a table"),
        (["small.toml", "--set", "books"], 2, "KEY=VALUE"),
        (["small.toml", "--steps", "20001"], 2, "past the end of the schedule, train.steps = 20000: add --set"),
        (["none.toml"], 3, "none.toml"),
    ],
)
def test_wrong_recipes(cli: Cli, recipe: Path, calls: list[Any], arguments: list[str], code: int, says: str) -> None:
    result = cli("train", *arguments, "--data", "sounds")
    assert result.code == code
    assert says in result.err
    assert not calls


def test_steps_up_to_the_schedules_end(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    assert cli("train", recipe, "--data", "sounds", "--steps", "20000").code == 0
    assert cli("train", recipe, "--data", "sounds", "--steps", "30000", "--set", "train.steps=30000").code == 0
    assert [options["steps"] for _, options in calls] == [20000, 30000]


def test_a_dry_run_prints_and_leaves_nothing(cli: Cli, calls: list[Any]) -> None:
    Path("sounds").mkdir()
    write_audio("sounds/a.wav", tones(0.5, 8000, seed=0), 8000)
    Path("small.toml").write_text(
        'name = "night"\n[model]\nsample_rate = 8000\nhop = 80\ndim = 8\nbooks = 3\ncodebook_size = 20\n'
        "encoder_width = 16\nencoder_blocks = 1\ndecoder_width = 16\ndecoder_blocks = 1\n"
        "[data]\ncrop = 0.15\nbatch = 2\n[train]\nsteps = 4\n"
    )
    before = sorted(Path().rglob("*"))
    result = cli("train", "small.toml", "--dry-run", "--data", "sounds")
    assert (result.code, result.err, calls) == (0, "", [])
    first, *rest = result.out.decode().splitlines()
    assert first == "model night"
    assert any(line.split()[:1] == ["delay"] and "160 samples (20.0 ms)" in line for line in rest)
    assert any("0.00 h in 1 clips (by 1 of their headers): 2.4 times through" in line for line in rest)
    assert sorted(Path().rglob("*")) == before
    result = cli("train", "small.toml", "--dry-run")  # without data
    assert (result.code, b"times through" in result.out) == (0, False)
    result = cli("train", "small.toml", "--dry-run", "--data", "none")
    assert (result.code, result.out) == (3, b"")
