"""Codec families, one file each."""

from collections.abc import Mapping
from typing import Any

from codec.errors import UnknownModel
from codec.models.base import Codec
from codec.models.causal import CausalCodec, CausalConfig

__all__ = ["Codec", "build"]


def build(family: str, config: Mapping[str, Any]) -> Codec:
    """A model with fresh weights from its family's name and configuration.

    Raises:
        UnknownModel: there is no such family.
        ConfigError: the configuration does not fit the family.
    """
    match family:
        case "causal":
            return CausalCodec(CausalConfig.from_data(config))
        case _:
            raise UnknownModel(f"there is no model family {family!r}; the families are: causal")
