"""The name of a recipe, which is that of the run's folder."""

import pytest

from codec.errors import ConfigError
from codec.training.codec.recipe import Recipe
from codec.training.lm.recipe import LMRecipe


@pytest.mark.parametrize("name", ["", "../out", "a/b", "a\\b", "..", ".hidden", "a\nb", "a\x1b[2J", "n" * 201])
def test_names_that_are_not_those_of_a_folder_raise(name: str) -> None:
    with pytest.raises(ConfigError, match=r"name = .*: must name a folder"):
        Recipe.from_data({"name": name})
    with pytest.raises(ConfigError, match=r"name = .*: must name a folder"):
        LMRecipe.from_data({"kind": "lm", "name": name, "model": {"family": "transformer"}})
    assert Recipe.from_data({"name": "Größe 2.1-b_c"}).name == "Größe 2.1-b_c"
