"""codec train: what it hands to the loop."""

from pathlib import Path
from typing import Any

import pytest

from codec.training import codec_loop
from codec.training.recipe import Recipe
from tests.cli.conftest import Cli


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
    assert options == {"data": Path("sounds"), "out": Path("runs/night"), "resume": False, "steps": None}


def test_the_recipe_may_name_the_data(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    result = cli("train", recipe)
    assert (result.code, calls) == (2, [])
    assert "pass --data DIR" in result.err
    assert cli("train", recipe, "--set", "data.folder=sounds").code == 0
    assert cli("train", recipe, "--set", "data.folder=sounds", "--data", "others").code == 0
    assert [options["data"] for _, options in calls] == [Path("sounds"), Path("others")]


def test_every_option(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    arguments = ["--set", "model.books=2", "--set", "name=day", "--out", "here", "--resume", "--steps", "9"]
    assert cli("train", recipe, "--data", "sounds", *arguments).code == 0
    ((loaded, options),) = calls
    assert (loaded.name, loaded.model.books) == ("day", 2)
    assert options == {"data": Path("sounds"), "out": Path("here"), "resume": True, "steps": 9}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["small.toml", "--set", "model.book=2"], 2, "did you mean books?"),
        (["small.toml", "--set", "books"], 2, "KEY=VALUE"),
        (["none.toml"], 3, "none.toml"),
    ],
)
def test_wrong_recipes(cli: Cli, recipe: Path, calls: list[Any], arguments: list[str], code: int, says: str) -> None:
    result = cli("train", *arguments, "--data", "sounds")
    assert result.code == code
    assert says in result.err
    assert not calls
