"""Language models of codes."""

from collections.abc import Mapping
from typing import Any

from codec.errors import UnknownModel
from codec.lm.base import CodecLM
from codec.lm.conditioning import CodebookSpec
from codec.lm.pixelcnn import PixelCNNConfig, PixelCNNLM
from codec.lm.transformer import TransformerConfig, TransformerLM

__all__ = ["CodecLM", "build"]


def build(config: Mapping[str, Any], source: Mapping[str, Any]) -> CodecLM:
    """Build a model with random weights from plain data: its configuration, and the `CodebookSpec` of its codes.

    Raises:
        UnknownModel: there is no such family.
        ConfigError: the configuration does not fit the family, or the codes.
    """
    spec = CodebookSpec.from_data(source, source="source")
    match config.get("family"):
        case "transformer":
            return TransformerLM(TransformerConfig.from_data(config, source="model"), spec)
        case "pixelcnn":
            return PixelCNNLM(PixelCNNConfig.from_data(config, source="model"), spec)
        case family:
            raise UnknownModel(
                f"there is no family of language models {family!r}: the families are: transformer, pixelcnn"
            )
