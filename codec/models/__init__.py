"""Codec families, one file each. The rest of the package knows them by `Codec` alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import Discriminator, Tag

from codec.errors import UnknownModel
from codec.models.base import Codec, CodecConfig
from codec.models.causal import CausalCodec, CausalConfig
from codec.models.dac import DAC, DACConfig
from codec.models.encodec import EnCodec, EnCodecConfig, EnCodecSegments, EnCodecSegmentsConfig
from codec.models.mimi import Mimi, MimiConfig
from codec.models.snac import SNAC, SNACConfig

__all__ = ["DEFAULT_CONFIG", "FAMILIES", "Codec", "ModelConfig", "build", "of_config"]

FAMILIES: dict[str, tuple[type[CodecConfig], type[Codec]]] = {
    "causal": (CausalConfig, CausalCodec),
    "dac": (DACConfig, DAC),
    "encodec": (EnCodecConfig, EnCodec),
    "encodec_segments": (EnCodecSegmentsConfig, EnCodecSegments),
    "mimi": (MimiConfig, Mimi),
    "snac": (SNACConfig, SNAC),
}
"""The classes of each family, by its name: the only place that lists families."""
WRAPPED = "transformers"
"""The family of models that transformers computes (`codec.models.wrapped`), which recipes cannot name."""
DEFAULT_CONFIG: CodecConfig = CausalConfig()


def _family_of(config: Any) -> Any:
    """The name of a configuration's family; that of `DEFAULT_CONFIG` if it states none."""
    return (
        config.get("family", DEFAULT_CONFIG.family) if isinstance(config, Mapping) else getattr(config, "family", None)
    )


if TYPE_CHECKING:
    ModelConfig: TypeAlias = CodecConfig
else:
    ModelConfig = Annotated[
        Union[tuple(Annotated[config, Tag(name)] for name, (config, _) in FAMILIES.items())],  # noqa: UP007 (computed)
        Discriminator(
            _family_of,
            custom_error_type="unknown_family",
            custom_error_message=f"family must be one of {', '.join(FAMILIES)}",
        ),
    ]
"""Configuration of any family, selected by the key `family`: the type of a recipe's [model]."""


def build(family: str, config: Mapping[str, Any]) -> Codec:
    """Build a model with fresh weights from the name of its family and its configuration.

    Raises:
        UnknownModel: there is no such family.
        ConfigError: the configuration does not fit the family.
    """
    return of_config(config_of(family, config))


def config_of(family: str, config: Mapping[str, Any]) -> CodecConfig:
    """The configuration of a family from plain data. Raises as `build`."""
    if family == WRAPPED:
        from codec.models.wrapped import WrappedConfig

        return WrappedConfig.from_data(config)
    if family not in FAMILIES:
        raise UnknownModel(f"there is no model family {family!r}; the families are: {', '.join(FAMILIES)}")
    config_class, _ = FAMILIES[family]
    return config_class.from_data(config)


def from_transformers(folder: Path) -> Codec:
    """The model of a folder of transformers that is not of one of these families. Raises as `codec.models.wrapped`."""
    from codec.models.wrapped import load

    return load(folder)


def check_transformers() -> None:
    """Raise MissingDependency unless transformers is installed and has audio tokenizers."""
    from codec.models.wrapped import load_transformers

    load_transformers()


def of_config(config: CodecConfig) -> Codec:
    """Build a model with fresh weights from its configuration."""
    if config.family == WRAPPED:
        from codec.models.wrapped import Wrapped, WrappedConfig

        assert isinstance(config, WrappedConfig)
        return Wrapped(config)
    return FAMILIES[config.family][1](config)  # type: ignore[call-arg]  # each family takes its own
