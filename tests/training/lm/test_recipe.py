"""training/lm/recipe.py: keys and defaults of an lm.toml."""

from typing import Any

import pytest

from codec.errors import ConfigError
from codec.lm.pixelcnn import PixelCNNConfig
from codec.lm.transformer import TransformerConfig
from codec.training.lm.recipe import LMRecipe
from tests.helpers.training import small_lm_recipe

LEAST: dict[str, Any] = {"kind": "lm", "name": "night", "model": {"family": "transformer"}}


def test_name_and_family_are_required() -> None:
    recipe = LMRecipe.from_data(LEAST)
    assert recipe.model == TransformerConfig()
    assert (recipe.optimizer.betas, recipe.optimizer.weight_decay, recipe.optimizer.grad_clip) == (
        (0.9, 0.95),
        0.1,
        1.0,
    )
    assert recipe.losses.condition_dropout == 0.1
    assert not recipe.text
    assert LMRecipe.from_data(LEAST | {"model": {"family": "transformer", "text": True}}).text


def test_the_family_says_what_a_model_has() -> None:
    recipe = LMRecipe.from_data(LEAST | {"model": {"family": "pixelcnn", "kernel": 5}})
    assert recipe.model == PixelCNNConfig(kernel=5)
    assert not recipe.text


def test_a_recipe_survives_being_stored() -> None:
    recipe = small_lm_recipe(model={"pattern": {"delays": [0, 1, 1]}}, losses={"codebook_weights": [2.0, 1.0, 0.0]})
    assert LMRecipe.from_data(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"kind": "codec"}, "kind = \"codec\": must be 'lm'"),
        ({"model": {"family": "rnn"}}, "'transformer', 'pixelcnn'"),
        ({"model": {}}, "model = {}: Unable to extract tag using discriminator 'family'"),
        ({"model": {"family": "pixelcnn", "heads": 2}}, "unknown key model.heads; known here: context, "),
        ({"model": {"family": "pixelcnn", "witdh": 2}}, "unknown key model.witdh; did you mean width"),
        ({"model": {"family": "transformer", "layer": 2}}, "unknown key model.layer; did you mean layers"),
        ({"data": {"frames": 1}}, "data.frames = 1: must be greater than or equal to 2"),
        ({"data": {"conditions": ["color"]}}, "must be 'speaker', 'label' or 'language'"),
        ({"losses": {"soft": 0.0}}, "losses.soft = 0.0: must be greater than 0"),
        ({"losses": {"codebook_weights": [0.0, 0.0]}}, "codebook_weights are all 0: raise one"),
        ({"train": {"quantizer_dropout": 0.5}}, "unknown key train.quantizer_dropout"),
    ],
)
def test_wrong_recipes(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        LMRecipe.from_data(LEAST | table)
    assert says in str(error.value)
