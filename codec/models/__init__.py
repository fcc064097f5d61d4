"""Codec families, one file each. The rest of the package knows them by `Codec` alone."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from codec.errors import UnknownModel
from codec.models.base import Codec, CodecConfig
from codec.models.causal import CausalCodec, CausalConfig

__all__ = ["DEFAULT_CONFIG", "FAMILIES", "Codec", "ModelConfig", "build"]

ModelConfig: TypeAlias = CausalConfig
"""Configuration of any family, the type of a recipe's [model]; further families join in a union."""
DEFAULT_CONFIG = CausalConfig()
FAMILIES: dict[str, tuple[type[CodecConfig], type[Codec]]] = {"causal": (CausalConfig, CausalCodec)}


def build(family: str, config: Mapping[str, Any]) -> Codec:
    """Build a model with fresh weights from the name of its family and its configuration.

    Raises:
        UnknownModel: there is no such family.
        ConfigError: the configuration does not fit the family.
    """
    if family not in FAMILIES:
        raise UnknownModel(f"there is no model family {family!r}; the families are: {', '.join(FAMILIES)}")
    config_class, model_class = FAMILIES[family]
    return model_class(config_class.from_data(config))  # type: ignore[call-arg]  # each family takes its own
