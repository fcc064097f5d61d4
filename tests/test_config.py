"""config.py: strict validation, and messages that name key, value and expectation."""

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from codec.config import Config, load_toml
from codec.errors import ConfigError, InputNotFound


class Vector(Config):
    kind: Literal["vq"] = "vq"
    dim: int = 8


class Scalar(Config):
    kind: Literal["fsq"] = "fsq"
    levels: tuple[int, ...] = (8, 5, 5)


class Model(Config):
    hop: int = Field(320, gt=0)
    strides: tuple[int, ...] = (8, 5)
    quantizer: Annotated[Vector | Scalar, Field(discriminator="kind")] = Vector()


class Recipe(Config):
    name: str = Field(pattern="^[a-z0-9=-]*$")
    rate: float = 3e-4
    data: Path = Path("data")
    weights: dict[str, float] = Field(default_factory=dict)
    model: Model = Model()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "codec.toml"
    path.write_text(
        'name = "small"\nrate = 1\n[weights]\nmel = 15.0\n[model]\nhop = 480\nstrides = [8, 4]\n'
        '[model.quantizer]\nkind = "fsq"\nlevels = [3]\n'
    )
    return path


def test_a_toml_file_is_loaded(recipe: Path) -> None:
    expected = Recipe(
        name="small",
        rate=1.0,
        weights={"mel": 15.0},
        model=Model(hop=480, strides=(8, 4), quantizer=Scalar(levels=(3,))),
    )
    assert load_toml(recipe, Recipe) == expected


def test_is_immutable(recipe: Path) -> None:
    with pytest.raises(ValidationError):
        load_toml(recipe, Recipe).name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("model.hop=240", "model", "hop", 240),
        (" model.hop = 240 ", "model", "hop", 240),
        ("model.strides=[2, 3]", "model", "strides", (2, 3)),
        ("name=general-24k", "", "name", "general-24k"),
        ('name="a=b"', "", "name", "a=b"),
        ("name=a=b", "", "name", "a=b"),
        ("name=", "", "name", ""),
        ("rate=1e-3", "", "rate", 1e-3),
        ("data=/some/where", "", "data", Path("/some/where")),
        ("weights.stft=2.5", "", "weights", {"mel": 15.0, "stft": 2.5}),
    ],
)
def test_overrides_are_toml_values_or_bare_strings(
    recipe: Path, override: str, section: str, key: str, value: object
) -> None:
    loaded = load_toml(recipe, Recipe, [override])
    assert getattr(getattr(loaded, section) if section else loaded, key) == value


def test_the_last_override_wins(recipe: Path) -> None:
    assert load_toml(recipe, Recipe, ["rate=1.0", "rate=2.0"]).rate == 2.0


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.hopp=1", ["unknown key model.hopp", "did you mean hop?"]),
        ("zebra=1", ["unknown key zebra", "known here: data, model, name, rate, weights"]),
        ("model.quantizer.level=[1]", ["unknown key model.quantizer.level;", "did you mean levels?"]),
        ('model.hop="320"', ['model.hop = "320"', "must be a valid integer"]),
        ("model.hop=320.5", ["model.hop = 320.5", "integer"]),
        ("model.hop=true", ["model.hop = true", "integer"]),
        ("model.hop=0", ["model.hop = 0", "must be greater than 0"]),
        ("model.strides=[1, x", ['model.strides = "[1, x"', "must be a valid array"]),
        ('model.strides=[1, "x"]', ['model.strides.1 = "x"', "must be a valid integer"]),
        ("model.quantizer.levels=[1.5]", ["model.quantizer.levels.0 = 1.5", "must be a valid integer"]),
        ("model.quantizer.kind=pq", ["model.quantizer", "'vq', 'fsq'"]),
        ("name=BIG", ['name = "BIG"', "must match pattern"]),
        ("rate=inf", ["rate = Infinity", "must be a finite number"]),
        ("weights.mel=nan", ["weights.mel = NaN", "must be a finite number"]),
        ("rate=fast", ['rate = "fast"', "must be a valid number"]),
        ("weights.mel=loud", ['weights.mel = "loud"', "must be a valid number"]),
        ("name.first=x", ["--set name.first=x", "name is a value"]),
        ("model.hop", ["--set model.hop", "KEY=VALUE"]),
        ("model..hop=1", ["KEY=VALUE"]),
        ("=1", ["KEY=VALUE"]),
    ],
)
def test_errors_name_key_value_and_expectation(recipe: Path, override: str, says: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_toml(recipe, Recipe, [override])
    message = str(error.value)
    assert all(part in message for part in says), message
    assert "\n" not in message


def test_all_problems_are_in_one_message() -> None:
    with pytest.raises(ConfigError, match=r"^r\.toml: name is missing; rate = \"x\": must be a valid number$"):
        Recipe.from_data({"rate": "x"}, source="r.toml")


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match=r"none\.toml"):
        load_toml(tmp_path / "none.toml", Recipe)
    broken = tmp_path / "broken.toml"
    broken.write_text("name = =")
    with pytest.raises(ConfigError, match=r"broken\.toml.*line 1"):
        load_toml(broken, Recipe)
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"broken\.toml"):
        load_toml(broken, Recipe)
    with pytest.raises(ConfigError, match="TOML"):
        load_toml(tmp_path, Recipe)
