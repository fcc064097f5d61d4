"""training/recipe.py: what a recipe may say, and what is refused before hours are spent on it."""

from pathlib import Path
from typing import Any

import pytest

from codec.config import load_toml
from codec.errors import ConfigError
from codec.training.recipe import LossConfig, Recipe
from tests.training.small import small_recipe

RECIPES = sorted(Path(__file__).parents[2].glob("recipes/*/codec.toml"))


def test_recipes_of_the_project_are_whole() -> None:
    assert len(RECIPES) >= 1
    names = [load_toml(path, Recipe).name for path in RECIPES]
    assert len(set(names)) == len(names)


def test_a_name_is_all_a_recipe_needs() -> None:
    recipe = Recipe(name="plain")
    assert (recipe.model.sample_rate, recipe.adversary.start) == (24000, None)
    assert Recipe.from_data(recipe.model_dump(mode="json")) == recipe


def test_overrides_reach_every_table(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text('name = "plain"')
    sets = [
        "losses.mel=2.0",
        "adversary.windows=[512]",
        "train.precision=float32",
        "model.books=4",
        "adversary.start=3",
    ]
    recipe = load_toml(tmp_path / "plain.toml", Recipe, sets)
    assert recipe.losses == LossConfig(mel=2.0)
    assert (recipe.adversary.windows, recipe.adversary.start) == ((512,), 3)
    assert (recipe.train.precision, recipe.model.books) == ("float32", 4)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"data": {"batch": 0}}, "data.batch = 0"),
        ({"data": {"held_out": 1.0}}, "data.held_out = 1.0"),
        ({"losses": {"mel": -1.0}}, "losses.mel = -1.0"),
        ({"losses": {"mel": 0.0, "phase": 0.0}}, "mel, phase and noise are all 0"),
        ({"losses": {"mell": 1.0}}, "did you mean mel?"),
        ({"optimiser": {"warmup": 0}}, "optimiser.warmup = 0"),
        ({"adversary": {"windows": []}}, "adversary.windows"),
        ({"train": {"precision": "float8"}}, "train.precision"),
        ({"train": {"precision": "float16", "sharding": "full"}}, 'set "bfloat16"'),
        ({"adversary": {"every": 0}}, "adversary.every = 0"),
        ({"train": {"log_every": 0}}, "train.log_every = 0"),
        ({"data": {"crop": 0.128}}, "data.crop = 0.128 s is too short for windows of 2048 samples at 8000 Hz"),
        ({"adversary": {"start": 0, "crop": 0.016}}, "adversary.crop = 0.016 s is too short for windows of 256"),
    ],
)
def test_what_cannot_train_is_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small_recipe(**tables)
    assert says in str(refused.value)


def test_crops_just_long_enough() -> None:
    small_recipe(data={"crop": 0.1282}, adversary={"start": 0, "crop": 0.0162})
    small_recipe(adversary={"crop": 0.001})  # no discriminators, so no matter
