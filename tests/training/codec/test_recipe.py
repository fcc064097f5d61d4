"""training/codec/recipe.py: valid recipes, and what is refused before training."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from codec.checkpoint import save_state
from codec.config import RENAMED, Config, load_toml, with_new_names
from codec.errors import ConfigError
from codec.io import bitstream
from codec.models.base import CodecConfig
from codec.models.causal import CausalConfig
from codec.training.codec.recipe import LossConfig, Recipe
from codec.training.lm.recipe import LMRecipe
from codec.training.loop import load_resumable
from tests.helpers.training import small_recipe

RECIPES = sorted(Path(__file__).parents[3].glob("recipes/*/codec.toml"))


def test_recipes_of_the_project_are_valid() -> None:
    assert len(RECIPES) >= 1
    names = [load_toml(path, Recipe).name for path in RECIPES]
    assert len(set(names)) == len(names)


def test_only_a_name_is_required() -> None:
    recipe = Recipe(name="plain")
    assert (recipe.model.sample_rate, recipe.discriminator.start) == (24000, None)
    assert Recipe.from_data(recipe.model_dump(mode="json")) == recipe


def test_overrides_reach_every_table(tmp_path: Path) -> None:
    (tmp_path / "plain.toml").write_text('name = "plain"')
    sets = [
        "losses.mel=2.0",
        "discriminator.windows=[512]",
        "train.precision=float32",
        "model.num_codebooks=4",
        "discriminator.start=3",
    ]
    recipe = load_toml(tmp_path / "plain.toml", Recipe, sets)
    assert recipe.losses == LossConfig(mel=2.0)
    assert (recipe.discriminator.windows, recipe.discriminator.start) == ((512,), 3)
    assert (recipe.train.precision, recipe.model.num_codebooks) == ("float32", 4)


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"data": {"batch_size": 0}}, "data.batch_size = 0"),
        ({"data": {"held_out": 1.0}}, "data.held_out = 1.0"),
        ({"losses": {"mel": -1.0}}, "losses.mel = -1.0"),
        (
            {"losses": {"mel": 0.0, "noise_to_mask": 0.0}},
            "losses.mel, losses.complex_stft and losses.noise_to_mask are all 0",
        ),
        ({"losses": {"mell": 1.0}}, "did you mean mel?"),
        ({"optimizer": {"warmup": 0}}, "optimizer.warmup = 0"),
        ({"discriminator": {"windows": []}}, "discriminator.windows"),
        ({"train": {"precision": "float8"}}, "train.precision"),
        ({"train": {"precision": "float16", "sharding": "full"}}, 'set "bfloat16"'),
        ({"discriminator": {"update_every": 0}}, "discriminator.update_every = 0"),
        ({"train": {"log_every": 0}}, "train.log_every = 0"),
        ({"data": {"crop": math.inf}}, "data.crop = Infinity: must be a finite number"),
        ({"data": {"crop": 1e308}}, "data.crop = 1e+308"),
        ({"data": {"init_seconds": math.inf}}, "data.init_seconds = Infinity"),
        ({"data": {"gain_db": [-math.inf, math.inf]}}, "data.gain_db.0 = -Infinity"),
        ({"data": {"gain_db": [0.0, 1e300]}}, "data.gain_db.1 = 1e+300"),
        ({"data": {"level_db": [math.nan, 1.0]}}, "data.level_db.0 = NaN"),
        ({"data": {"num_workers": 10**6}}, "data.num_workers = 1000000"),
        ({"discriminator": {"crop": math.inf}}, "discriminator.crop = Infinity"),
        ({"discriminator": {"windows": [3]}}, "discriminator.windows.0 = 3"),
        ({"discriminator": {"windows": [18]}}, "discriminator.windows.0 = 18: must be a multiple of 4"),
        ({"optimizer": {"lr": math.inf}}, "optimizer.lr = Infinity"),
        ({"optimizer": {"betas": [2, 3]}}, "optimizer.betas.0 = 2: must be less than 1"),
        ({"train": {"seed": 2**64}}, "train.seed = 18446744073709551616"),
        ({"train": {"steps": 2**32}}, "train.steps = 4294967296"),
        ({"model": {"sample_rate": 0}}, "model.sample_rate = 0: must be greater than or equal to 1"),
        ({"model": {"sample_rate": -8000}}, "model.sample_rate = -8000"),
        ({"model": {"hop": 0}}, "model.hop = 0"),
        ({"model": {"dim": 0}}, "model.dim = 0"),
        ({"model": {"dim": 81}}, "dim = 81 exceeds hop = 80"),
        ({"model": {"num_codebooks": 0}}, "model.num_codebooks = 0"),
        ({"model": {"codebook_size": 10**12}}, "model.codebook_size = 1000000000000"),
        ({"model": {"encoder_width": 0}}, "model.encoder_width = 0"),
        ({"model": {"kernel": 0}}, "model.kernel = 0"),
        ({"model": {"companding": 0.0}}, "model.companding = 0.0"),
        ({"data": {"crop": 0.128}}, "data.crop = 0.128 s is too short for windows of 2048 samples at 8000 Hz"),
        (
            {"discriminator": {"start": 0, "crop": 0.016}},
            "discriminator.crop = 0.016 s is too short for windows of 256",
        ),
    ],
)
def test_invalid_values_are_refused(tables: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small_recipe(**tables)
    assert says in str(refused.value)


@pytest.mark.parametrize("name", ["sample_rate", "hop", "num_codebooks", "codebook_size"])
def test_models_are_within_the_limits_of_codec_files(name: str) -> None:
    least, most = bitstream._BOUNDS[name]
    sizes = {"family": "any", "sample_rate": 8000, "hop": 80, "num_codebooks": 3, "codebook_size": 20}
    for value in (least, most):
        CodecConfig.from_data(sizes | {name: value})
    for value in (least - 1, most + 1):
        with pytest.raises(ConfigError, match=f"{name} = {value}"):
            CodecConfig.from_data(sizes | {name: value})


def test_the_family_selects_the_configuration_of_the_model() -> None:
    assert type(Recipe.from_data({"name": "a", "model": {"family": "causal"}}).model) is CausalConfig
    assert type(Recipe.from_data({"name": "a", "model": {"hop": 320}}).model) is CausalConfig
    with pytest.raises(ConfigError, match="family must be one of causal"):
        Recipe.from_data({"name": "a", "model": {"family": "casual"}})
    with pytest.raises(ConfigError, match="model = 3"):
        Recipe.from_data({"name": "a", "model": 3})


def test_crops_just_long_enough() -> None:
    small_recipe(data={"crop": 0.1282}, discriminator={"start": 0, "crop": 0.0162})
    small_recipe(discriminator={"crop": 0.001})  # no discriminators, so no matter


def test_old_keys_name_the_new_ones() -> None:
    assert len(RENAMED) == 24
    language_model = {"kind": "lm", "model": {"family": "transformer"}}
    for old, new in RENAMED.items():
        assert old != new
        table, _, key = old.rpartition(".")
        kind, needed = (LMRecipe, language_model) if new == "data.conditions" else (Recipe, {})
        with pytest.raises(ConfigError, match=rf"^recipe: {re.escape(old)} is now {re.escape(new)}$"):
            kind.from_data({"name": "old", **needed, **({table: {key: {}}} if table else {key: {}})}, source="recipe")
        *tables, name = new.split(".")
        config: Config = kind.from_data({"name": "new", **needed})
        for part in tables:
            config = getattr(config, part)
        assert hasattr(config, name)


def test_old_keys_of_an_old_table_are_named_at_once() -> None:
    old_tables = {new: old for old, new in RENAMED.items() if "." not in old}
    checked = 0
    for old, new in RENAMED.items():
        table, _, key = old.rpartition(".")
        if table in old_tables:
            with pytest.raises(ConfigError) as refused:
                Recipe.from_data({"name": "old", old_tables[table]: {key: 1, "warmup": 5}}, source="recipe")
            assert f"{old_tables[table]}.{key} is now {new}" in str(refused.value)
            assert f"{old_tables[table]}.warmup is now {table}.warmup" in str(refused.value)
            checked += 1
    assert checked == 7


def test_stored_recipes_with_old_keys_get_the_new_names(tmp_path: Path) -> None:
    stored = {"name": "old", "data": {"faint": 0.1, "batch": 4}, "optimizer": {"rate": 1e-3}, "train": {"steps": 9}}
    assert with_new_names(stored) == {
        "name": "old",
        "data": {"quiet": 0.1, "batch_size": 4},
        "optimizer": {"lr": 1e-3},
        "train": {"steps": 9},
    }
    recipe = Recipe.from_data({"name": "new", "data": {"quiet": 0.1}})
    complete = recipe.model_dump(mode="json")
    before = complete | {"data": {{"quiet": "faint"}.get(key, key): value for key, value in complete["data"].items()}}
    save_state(tmp_path / "state.pt", {"step": 1, "recipe": before})
    assert load_resumable(tmp_path / "state.pt", recipe, required=(), mutable_keys=())["recipe"] == complete
