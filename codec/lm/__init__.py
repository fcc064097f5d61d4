"""Language models of codes: what comes next, and generating it."""

from collections.abc import Mapping
from typing import Any

from codec.errors import UnknownModel
from codec.lm.base import CodebookSpec, CodecLM
from codec.lm.pixelcnn import PixelCNN, PixelCNNConfig
from codec.lm.transformer import TokenLM, TransformerConfig

__all__ = ["CodecLM", "build"]


def build(config: Mapping[str, Any], source: Mapping[str, Any]) -> CodecLM:
    """A model with fresh weights, from its configuration and that of the codes it is for, as plain data.

    Raises:
        UnknownModel: there is no such family.
        ConfigError: the configuration does not fit the family, or the codes.
    """
    learnt = CodebookSpec.from_data(source, source="source")
    match config.get("family"):
        case "transformer":
            return TokenLM(TransformerConfig.from_data(config, source="model"), learnt)
        case "pixelcnn":
            return PixelCNN(PixelCNNConfig.from_data(config, source="model"), learnt)
        case family:
            raise UnknownModel(
                f"there is no family of language models {family!r}: the families are: transformer, pixelcnn"
            )
