"""Checkpoints of other implementations: which family they are of, and what their tensors are called here.

A `Dialect` is one way in which a family's checkpoints are written. It reads the configuration from the tensors
and the metadata beside them, and maps each tensor name of the checkpoint to one of ours. Weight norm is folded first.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from codec.errors import ConfigError, UnknownModel
from codec.models.base import CodecConfig
from codec.models.dac import DACConfig
from codec.models.encodec import EnCodecConfig, EnCodecSegmentsConfig, SEANetConfig
from codec.models.mimi import MimiConfig
from codec.models.snac import SNACConfig

Tensors: TypeAlias = dict[str, Tensor]
Names: TypeAlias = Iterator[tuple[str, str]]
"""Pairs of a name in the checkpoint and a name here; each stands for a tensor or for a module with weight and bias."""


@dataclass(frozen=True)
class Dialect:
    """One way in which checkpoints of a family are written."""

    family: str
    """Name of the family in messages."""
    label: str
    """Name of the project that writes these checkpoints, for messages."""
    mark: str
    """A regular expression of the name of a tensor that checkpoints of no later dialect have."""
    config: Callable[[Tensors, Mapping[str, Any]], CodecConfig]
    """The configuration, from the folded tensors and the metadata that the checkpoint has beside them."""
    names: Callable[[Any], Names]
    """Names of all tensors of a model of that configuration."""
    configured_by: str = ""
    """What holds the configuration, where the tensors do not."""
    ignored: tuple[str, ...] = ()
    """Endings of tensors that only training needs."""
    prepare: Callable[[Tensors], None] | None = None
    """What to do with the tensors, in place, before they are named, if a tensor of ours is not one of theirs."""


OWN_TYPES = {"dac": "DAC", "encodec": "EnCodec", "mimi": "Mimi"}
"""Types of models of transformers that are families of this package."""


def recognize(tensors: Tensors) -> Dialect | None:
    """The dialect of a checkpoint with these tensors, None if it is not known."""
    return next((dialect for dialect in DIALECTS if any(re.fullmatch(dialect.mark, name) for name in tensors)), None)


def stated_family(metadata: Mapping[str, Any]) -> str | None:
    """The family of a configuration, by keys that only configurations of this family have; None for other families."""
    for family, key in (("SNAC", "vq_strides"), ("DAC", "kwargs")):
        if key in metadata:
            return family
    kind = metadata.get("model_type")
    return OWN_TYPES.get(kind) if isinstance(kind, str) else None


def convert(tensors: Tensors, metadata: Mapping[str, Any], *, label: str) -> tuple[CodecConfig, Tensors]:
    """Configuration and tensors, under the names of this package, of a checkpoint of another implementation.

    `metadata` is what the checkpoint says of itself: the kwargs of a DAC file, the config.json of transformers. `label`
    names the checkpoint in errors. `tensors` is emptied meanwhile, so that each tensor is in memory once.

    Raises UnknownModel for a checkpoint of no known family, for one beside the
    configuration of another family, and for one whose tensors are missing or additional; it names them.
    """
    fold_weight_norm(tensors)
    dialect = recognize(tensors)
    if dialect is None:
        known = ", ".join(sorted({dialect.label for dialect in DIALECTS}))
        raise UnknownModel(
            f"{label} is not a checkpoint of a known codec family: give one of {known}, or a model file of codec with "
            "the metadata that it was written with"
        )
    _check_stated(dialect, metadata, label)
    try:
        if dialect.prepare is not None:
            dialect.prepare(tensors)
        config = dialect.config(tensors, metadata)
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, ConfigError) as error:
        problem = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UnknownModel(
            f"{label} is a checkpoint of {dialect.label} without a usable configuration: {problem}"
        ) from error
    found: Tensors = {}
    missing = []
    for theirs, ours in dialect.names(config):
        for suffix in ("", ".weight", ".bias"):
            if theirs + suffix in tensors:
                found[ours + suffix] = tensors.pop(theirs + suffix)
        if ours not in found and ours + ".weight" not in found:
            missing.append(theirs)
    extra = [name for name in tensors if not name.endswith(dialect.ignored)]
    if missing or extra:
        raise UnknownModel(
            f"{label} is not a complete checkpoint of {dialect.label}: {_listed('missing', missing)}"
            f"{'; ' if missing and extra else ''}{_listed('not part of such a model', extra)}"
        )
    return config, found


def _check_stated(dialect: Dialect, metadata: Mapping[str, Any], label: str) -> None:
    """Raise UnknownModel if the configuration of a checkpoint is missing, or of another family than its tensors."""
    stated = stated_family(metadata)
    if stated not in (None, dialect.family):
        raise UnknownModel(
            f"{label} has the tensors of {dialect.family}, but it comes with the configuration of {stated}: download "
            "both again, into a folder of their own"
        )
    if dialect.configured_by and not metadata:
        raise UnknownModel(f"{label} is a checkpoint of {dialect.label} without {dialect.configured_by}")


def fold_weight_norm(tensors: Tensors) -> None:
    """Replace g and v of weight-normalized weights by g v / |v| (Salimans and Kingma 2016, equation 2).

    Takes the spellings `weight_g` and `weight_v`, `parametrizations.weight.original0` and `original1`, and weights that
    are folded already.
    """
    for ending_g, ending_v in (
        ("weight_g", "weight_v"),
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ):
        for name in [name for name in tensors if name.endswith(ending_g)]:
            stem = name.removesuffix(ending_g)
            if stem + ending_v in tensors:
                g, v = tensors.pop(name).float(), tensors.pop(stem + ending_v).float()
                tensors[stem + "weight"] = torch._weight_norm(v, g, 0)


def _listed(what: str, names: list[str], most: int = 3) -> str:
    """Some of the names, and how many there are."""
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{what}: {', '.join(names[:most])}{more}"


# DAC


def _dac_config(tensors: Tensors, metadata: Mapping[str, Any]) -> DACConfig:
    """The kwargs of the original's files; sizes come from the tensors."""
    kwargs = metadata["kwargs"]
    rates = tuple(kwargs["encoder_rates"])
    return DACConfig(
        sample_rate=kwargs["sample_rate"],
        hop=math.prod(rates),
        encoder_dim=kwargs["encoder_dim"],
        encoder_rates=rates,
        decoder_dim=kwargs["decoder_dim"],
        decoder_rates=tuple(kwargs["decoder_rates"]),
        latent_dim=kwargs.get("latent_dim"),
        num_codebooks=kwargs["n_codebooks"],
        codebook_size=kwargs["codebook_size"],
        codebook_dim=kwargs["codebook_dim"],
    )


def _dac_names(config: DACConfig) -> Names:
    last = len(config.encoder_rates)
    yield "encoder.block.0", "encoder.conv_in"
    for level in range(last):
        theirs, ours = f"encoder.block.{level + 1}.block", f"encoder.blocks.{level}"
        yield from _unit_names(theirs, ours, first=0)
        yield f"{theirs}.3.alpha", f"{ours}.snake.alpha"
        yield f"{theirs}.4", f"{ours}.conv"
    yield f"encoder.block.{last + 1}.alpha", "encoder.snake.alpha"
    yield f"encoder.block.{last + 2}", "encoder.conv_out"
    yield from _stage_names(config.num_codebooks)
    last = len(config.decoder_rates)
    yield "decoder.model.0", "decoder.conv_in"
    for level in range(last):
        theirs, ours = f"decoder.model.{level + 1}.block", f"decoder.blocks.{level}"
        yield f"{theirs}.0.alpha", f"{ours}.snake.alpha"
        yield f"{theirs}.1", f"{ours}.conv"
        yield from _unit_names(theirs, ours, first=2)
    yield f"decoder.model.{last + 1}.alpha", "decoder.snake.alpha"
    yield f"decoder.model.{last + 2}", "decoder.conv_out"


def _unit_names(theirs: str, ours: str, *, first: int) -> Names:
    """The residual units of a level of DAC or SNAC."""
    unit = {"0.alpha": "snake1.alpha", "1": "conv1", "2.alpha": "snake2.alpha", "3": "conv2"}
    for number in range(3):
        for name, new in unit.items():
            yield f"{theirs}.{first + number}.block.{name}", f"{ours}.units.{number}.{new}"


def _stage_names(stages: int) -> Names:
    """The quantizer of DAC or SNAC."""
    for number in range(stages):
        theirs, ours = f"quantizer.quantizers.{number}", f"quantizer.stages.{number}"
        yield f"{theirs}.in_proj", f"{ours}.in_proj"
        yield f"{theirs}.out_proj", f"{ours}.out_proj"
        yield f"{theirs}.codebook.weight", f"{ours}.codebook"


def _hf_dac_config(tensors: Tensors, metadata: Mapping[str, Any]) -> DACConfig:
    rates = tuple(metadata["downsampling_ratios"])
    return DACConfig(
        sample_rate=metadata["sampling_rate"],
        hop=math.prod(rates),
        encoder_dim=metadata["encoder_hidden_size"],
        encoder_rates=rates,
        decoder_dim=metadata["decoder_hidden_size"],
        decoder_rates=tuple(metadata.get("upsampling_ratios", rates[::-1])),
        num_codebooks=metadata["n_codebooks"],
        codebook_size=metadata["codebook_size"],
        codebook_dim=metadata["codebook_dim"],
    )


def _hf_dac_names(config: DACConfig) -> Names:
    unit = {"snake1.alpha": "snake1.alpha", "conv1": "conv1", "snake2.alpha": "snake2.alpha", "conv2": "conv2"}
    for side, rates in (("encoder", config.encoder_rates), ("decoder", config.decoder_rates)):
        yield f"{side}.conv1", f"{side}.conv_in"
        for level in range(len(rates)):
            theirs, ours = f"{side}.block.{level}", f"{side}.blocks.{level}"
            for number in range(3):
                for name, new in unit.items():
                    yield f"{theirs}.res_unit{number + 1}.{name}", f"{ours}.units.{number}.{new}"
            yield f"{theirs}.snake1.alpha", f"{ours}.snake.alpha"
            yield f"{theirs}.{'conv1' if side == 'encoder' else 'conv_t1'}", f"{ours}.conv"
        yield f"{side}.snake1.alpha", f"{side}.snake.alpha"
        yield f"{side}.conv2", f"{side}.conv_out"
    yield from _stage_names(config.num_codebooks)


# EnCodec


def _encodec_config(tensors: Tensors, metadata: Mapping[str, Any]) -> SEANetConfig:
    """The original's files have tensors only: the 48 kHz model is the one with norms."""
    convs = [tensors[f"encoder.model.{number}.conv.conv.weight"] for number in (3, 6, 9, 12)]
    family = EnCodecSegmentsConfig if "encoder.model.0.conv.norm.weight" in tensors else EnCodecConfig
    return family.from_data(
        {
            "filters": len(tensors["encoder.model.0.conv.conv.bias"]),
            "dim": len(tensors["encoder.model.15.conv.conv.bias"]),
            "ratios": [conv.shape[2] // 2 for conv in reversed(convs)],
            **_codebooks(tensors, "quantizer.vq.layers.{}._codebook.embed"),
        }
    )


def _codebooks(tensors: Tensors, name: str) -> dict[str, int]:
    return {"num_codebooks": _count(tensors, name), "codebook_size": len(tensors[name.format(0)])}


def _encodec_names(config: SEANetConfig) -> Names:
    def conv(theirs: str, ours: str, kind: str = "conv") -> Names:
        yield f"{theirs}.{kind}.{kind}", ours
        if isinstance(config, EnCodecSegmentsConfig):
            yield f"{theirs}.{kind}.norm", f"{ours}.norm"

    yield from _seanet_names(config, "model", conv)
    for number in range(config.num_codebooks):
        yield from _codebook_names(f"quantizer.vq.layers.{number}._codebook", number)


def _hf_encodec_config(tensors: Tensors, metadata: Mapping[str, Any]) -> SEANetConfig:
    chunk = metadata.get("chunk_length_s")
    for key, only in (HF_ENCODEC if chunk is None else HF_ENCODEC_SEGMENTS).items():
        if metadata.get(key, only) != only:
            raise ValueError(f"{key} = {metadata[key]} is not supported")
    keys = {ours: metadata[theirs] for theirs, ours in HF_ENCODEC_KEYS.items()}
    keys["hop"] = math.prod(keys["ratios"])
    keys |= _codebooks(tensors, "quantizer.layers.{}.codebook.embed")
    if chunk is None:
        return EnCodecConfig.from_data(keys | {"causal": metadata["use_causal_conv"]})
    segment = int(chunk * keys["sample_rate"])
    sizes = {"segment": segment, "segment_stride": max(1, int((1 - metadata["overlap"]) * segment))}
    return EnCodecSegmentsConfig.from_data(keys | sizes | {"channels": metadata["audio_channels"]})


HF_ENCODEC_KEYS = {
    "sampling_rate": "sample_rate",
    "upsampling_ratios": "ratios",
    "num_filters": "filters",
    "hidden_size": "dim",
    "kernel_size": "kernel",
    "last_kernel_size": "last_kernel",
    "residual_kernel_size": "residual_kernel",
    "num_residual_layers": "residual_units",
    "dilation_growth_rate": "dilation_base",
    "compress": "compress",
    "num_lstm_layers": "lstm_layers",
    "pad_mode": "padding",
    "use_conv_shortcut": "shortcut",
}
HF_ENCODEC = {"audio_channels": 1, "normalize": False, "norm_type": "weight_norm", "trim_right_ratio": 1.0}
HF_ENCODEC_SEGMENTS = {"normalize": True, "norm_type": "time_group_norm", "use_causal_conv": False}
"""Keys of which only one value is known here, in models that stream and in models that code segments."""


def _hf_encodec_names(config: SEANetConfig) -> Names:
    def conv(theirs: str, ours: str, kind: str = "conv") -> Names:
        yield f"{theirs}.conv", ours
        if isinstance(config, EnCodecSegmentsConfig):
            yield f"{theirs}.norm", f"{ours}.norm"

    yield from _seanet_names(config, "layers", conv)
    for number in range(config.num_codebooks):
        yield from _codebook_names(f"quantizer.layers.{number}.codebook", number)


def _seanet_names(config: SEANetConfig, layers: str, conv: Callable[..., Names]) -> Names:
    """Encoder and decoder are flat lists of layers in either dialect; `conv` gives the names in one convolution."""

    def units(theirs: str, first: int, ours: str, own: int) -> Names:
        for number in range(config.residual_units):
            unit, here = f"{theirs}.{first + number}", f"{ours}.layers.{own + number}"
            yield from conv(f"{unit}.block.1", f"{here}.conv1")
            yield from conv(f"{unit}.block.3", f"{here}.conv2")
            if config.shortcut:
                yield from conv(f"{unit}.shortcut", f"{here}.shortcut")

    def lstm(theirs: str, ours: str) -> Names:
        for layer in range(config.lstm_layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                yield f"{theirs}.lstm.{name}_l{layer}", f"{ours}.lstm.{name}_l{layer}"

    levels, number = len(config.ratios), config.residual_units
    size = number + 2  # layers of a level: units, ELU, convolution
    theirs, ours = f"encoder.{layers}", "encoder.layers"
    yield from conv(f"{theirs}.0", f"{ours}.0.layers.0")
    for level in range(levels):
        here = f"{ours}.0.layers.{level + 1}"
        yield from units(theirs, 1 + level * size, here, 0)
        yield from conv(f"{theirs}.{(level + 1) * size}", f"{here}.layers.{number + 1}")
    yield from lstm(f"{theirs}.{levels * size + 1}", f"{ours}.1")
    yield from conv(f"{theirs}.{levels * size + 3}", f"{ours}.3")
    theirs, ours = f"decoder.{layers}", "decoder.layers"
    yield from conv(f"{theirs}.0", f"{ours}.0")
    yield from lstm(f"{theirs}.1", f"{ours}.1")
    for level in range(levels):
        here = f"{ours}.2.layers.{level}"
        yield from conv(f"{theirs}.{3 + level * size}", f"{here}.layers.1", "convtr")
        yield from units(theirs, 4 + level * size, here, 2)
    yield from conv(f"{theirs}.{3 + levels * size}", f"{ours}.2.layers.{levels}.layers.1")


def _codebook_names(theirs: str, number: int) -> Names:
    yield f"{theirs}.embed", f"quantizer.stages.{number}.codebook"
    yield f"{theirs}.cluster_size", f"quantizer.stages.{number}.cluster_size"


# Mimi

HEAD_DIM = 64  # of every Mimi that moshi has released; its files do not say it


def _prepare_moshi(tensors: Tensors) -> None:
    """Entries instead of their sums, and queries and keys with their rotary pairs half a head apart."""
    _divide_sums(tensors, "embedding_sum")
    for name in list(tensors):
        for ending in ("self_attn.in_proj_weight", "self_attn.in_projs.0.weight"):
            if name.endswith(ending):
                weight = tensors.pop(name)
                queries, keys, values = weight.view(3, -1, HEAD_DIM // 2, 2, weight.shape[1])
                rows = [part.transpose(1, 2).flatten(0, 2) for part in (queries, keys)] + [values.flatten(0, 2)]
                tensors[name.removesuffix(ending) + "self_attn.qkv.weight"] = torch.cat(rows)
        if name.endswith("self_attn.out_projs.0.weight"):
            tensors[name.replace("out_projs.0", "out_proj")] = tensors.pop(name)


def _prepare_hf_mimi(tensors: Tensors) -> None:
    """Entries instead of their sums, and queries, keys and values in one product."""
    _divide_sums(tensors, "embed_sum")
    for name in list(tensors):
        stem = name.removesuffix("q_proj.weight")
        parts = [f"{stem}{part}_proj.weight" for part in "qkv"]
        if name.endswith("self_attn.q_proj.weight") and all(part in tensors for part in parts):
            tensors[stem + "qkv.weight"] = torch.cat([tensors.pop(part) for part in parts])


def _divide_sums(tensors: Tensors, ending: str) -> None:
    """Compute each codebook as the sum of the rows that chose an entry over their number."""
    for name in list(tensors):
        stem = name.removesuffix(ending)
        if name.endswith(ending) and stem + "cluster_usage" in tensors:
            tensors[stem + "codebook"] = tensors.pop(name) / tensors[stem + "cluster_usage"].clamp(min=1e-5)[:, None]


def _moshi_config(tensors: Tensors, metadata: Mapping[str, Any]) -> MimiConfig:
    """Sizes from the tensors, because the files have nothing else; the rest is equal in all of them."""
    kernels = [
        tensors[f"encoder.model.{number}.conv.conv.weight"]
        for number in range(3, 3 + 3 * 8, 3)
        if f"encoder.model.{number}.conv.conv.weight" in tensors
    ]
    rates = tuple(weight.shape[2] // 2 for weight in kernels)
    size, codebook_dim = tensors["quantizer.rvq_first.vq.layers.0._codebook.codebook"].shape
    hidden, width = tensors["encoder_transformer.transformer.layers.0.linear1.weight"].shape
    return MimiConfig(
        hop=math.prod(rates) * tensors["downsample.conv.conv.conv.weight"].shape[2] // 2,
        num_codebooks=1 + _count(tensors, "quantizer.rvq_rest.vq.layers.{}._codebook.codebook"),
        codebook_size=size,
        codebook_dim=codebook_dim,
        filters=len(tensors["encoder.model.0.conv.conv.weight"]),
        rates=rates,
        width=width,
        layers=_count(tensors, "encoder_transformer.transformer.layers.{}.norm1.weight"),
        heads=width // HEAD_DIM,
        hidden=hidden,
    )


def _hf_mimi_config(tensors: Tensors, metadata: Mapping[str, Any]) -> MimiConfig:
    for key, value in MIMI_FIXED.items():
        if metadata.get(key, value) != value:
            raise ValueError(f"{key} = {metadata[key]!r}, but only {value!r} is supported")
    rates = tuple(metadata["upsampling_ratios"])[::-1]
    return MimiConfig(
        sample_rate=metadata["sampling_rate"],
        hop=math.prod(rates) * tensors["downsample.conv.weight"].shape[2] // 2,
        num_codebooks=metadata["num_quantizers"],
        codebook_size=metadata["codebook_size"],
        codebook_dim=metadata["vector_quantization_hidden_dimension"],
        filters=metadata["num_filters"],
        rates=rates,
        width=metadata["hidden_size"],
        layers=metadata["num_hidden_layers"],
        heads=metadata["num_attention_heads"],
        hidden=metadata["intermediate_size"],
        context=metadata["sliding_window"],
    )


MIMI_FIXED = {
    "audio_channels": 1,
    "num_residual_layers": 1,
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "num_semantic_quantizers": 1,
    "hidden_act": "gelu",
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
}
"""Keys of transformers' configuration that have one value in every Mimi."""


def _count(tensors: Tensors, name: str) -> int:
    """How many tensors there are under the name, with the numbers from 0."""
    return next(number for number in itertools.count() if name.format(number) not in tensors)


def _moshi_names(config: MimiConfig) -> Names:
    yield from _mimi_stage_names(config, "model", conv=".conv.conv", transposed=".convtr.convtr")
    yield "downsample.conv.conv.conv", "encoder.resampling"
    yield "upsample.convtr.convtr.convtr", "decoder.resampling"
    layer = {
        "norm1": "attention_norm",
        "self_attn.qkv": "qkv_proj",
        "self_attn.out_proj": "out_proj",
        "layer_scale_1.scale": "attention_scale.scale",
        "norm2": "mlp_norm",
        "linear1": "up_proj",
        "linear2": "down_proj",
        "layer_scale_2.scale": "mlp_scale.scale",
    }
    yield from _mimi_layer_names(config, "transformer.layers", layer)
    yield from _mimi_quantizer_names(config, "quantizer.rvq_first", "quantizer.rvq_rest", ".vq.layers.{}._codebook")


def _hf_mimi_names(config: MimiConfig) -> Names:
    yield from _mimi_stage_names(config, "layers", conv=".conv", transposed=".conv")
    yield "downsample.conv", "encoder.resampling"
    yield "upsample.conv", "decoder.resampling"
    layer = {
        "input_layernorm": "attention_norm",
        "self_attn.qkv": "qkv_proj",
        "self_attn.o_proj": "out_proj",
        "self_attn_layer_scale.scale": "attention_scale.scale",
        "post_attention_layernorm": "mlp_norm",
        "mlp.fc1": "up_proj",
        "mlp.fc2": "down_proj",
        "mlp_layer_scale.scale": "mlp_scale.scale",
    }
    yield from _mimi_layer_names(config, "layers", layer)
    semantic, acoustic = (f"quantizer.{kind}_residual_vector_quantizer" for kind in ("semantic", "acoustic"))
    yield from _mimi_quantizer_names(config, semantic, acoustic, ".layers.{}.codebook")


def _mimi_stage_names(config: MimiConfig, layers: str, *, conv: str, transposed: str) -> Names:
    """Names of the convolutions, which both projects number with the activations between them."""
    last = len(config.rates)
    ours = "encoder.convolutions.layers"
    yield f"encoder.{layers}.0{conv}", f"{ours}.0.layers.0"
    for level in range(last):
        unit = 1 if level == 0 else 0
        yield from _mimi_unit_names(f"encoder.{layers}.{3 * level + 1}", conv, f"{ours}.{level}.layers.{unit}")
        yield f"encoder.{layers}.{3 * level + 3}{conv}", f"{ours}.{level}.layers.{unit + 1}"
    yield f"encoder.{layers}.{3 * last + 2}{conv}", f"{ours}.{last}"
    ours = "decoder.convolutions.layers"
    yield f"decoder.{layers}.0{conv}", f"{ours}.0"
    for level in range(last):
        yield f"decoder.{layers}.{3 * level + 2}{transposed}", f"{ours}.{level + 1}.layers.0"
        yield from _mimi_unit_names(f"decoder.{layers}.{3 * level + 3}", conv, f"{ours}.{level + 1}.layers.1")
    yield f"decoder.{layers}.{3 * last + 2}{conv}", f"{ours}.{last}.layers.2"


def _mimi_unit_names(theirs: str, conv: str, ours: str) -> Names:
    yield f"{theirs}.block.1{conv}", f"{ours}.conv1"
    yield f"{theirs}.block.3{conv}", f"{ours}.conv2"


def _mimi_layer_names(config: MimiConfig, layers: str, layer: Mapping[str, str]) -> Names:
    for side in ("encoder", "decoder"):
        for number in range(config.layers):
            for name, ours in layer.items():
                yield f"{side}_transformer.{layers}.{number}.{name}", f"{side}.transformer.blocks.{number}.{ours}"


def _mimi_quantizer_names(config: MimiConfig, semantic: str, acoustic: str, stage: str) -> Names:
    for theirs, ours, codebooks in (
        (semantic, "quantizer.semantic", 1),
        (acoustic, "quantizer.acoustic", config.num_codebooks - 1),
    ):
        yield f"{theirs}.input_proj", f"{ours}.in_proj"
        yield f"{theirs}.output_proj", f"{ours}.out_proj"
        for number in range(codebooks):
            yield f"{theirs}{stage.format(number)}.codebook", f"{ours}.rvq.stages.{number}.codebook"
            yield f"{theirs}{stage.format(number)}.cluster_usage", f"{ours}.rvq.stages.{number}.cluster_size"


# SNAC


def _snac_config(tensors: Tensors, metadata: Mapping[str, Any]) -> SNACConfig:
    """The config.json beside the original's files."""
    rates, strides = tuple(metadata["encoder_rates"]), tuple(metadata["vq_strides"])
    return SNACConfig(
        sample_rate=metadata["sampling_rate"],
        hop=math.prod(rates) * strides[0],
        num_codebooks=sum(strides[0] // stride for stride in strides),
        codebook_size=metadata["codebook_size"],
        codebook_dim=metadata["codebook_dim"],
        strides=strides,
        encoder_dim=metadata["encoder_dim"],
        encoder_rates=rates,
        decoder_dim=metadata["decoder_dim"],
        decoder_rates=tuple(metadata["decoder_rates"]),
        window=metadata["attn_window_size"] or 0,
        depthwise=metadata["depthwise"],
        noise=metadata["noise"],
    )


def _snac_names(config: SNACConfig) -> Names:
    last = len(config.encoder_rates)
    yield "encoder.block.0", "encoder.conv_in"
    for level in range(last):
        theirs, ours = f"encoder.block.{level + 1}.block", f"encoder.blocks.{level}"
        yield from _unit_names(theirs, ours, first=0)
        yield f"{theirs}.3.alpha", f"{ours}.snake.alpha"
        yield f"{theirs}.4", f"{ours}.conv"
    yield from _snac_attention_names(config, f"encoder.block.{last + 1}", "encoder.attention")
    yield f"encoder.block.{last + 1 + (config.window > 0)}", "encoder.conv_out"
    yield from _stage_names(len(config.strides))
    for number in range(1 + config.depthwise):
        yield f"decoder.model.{number}", f"decoder.conv_in.{number}"
    number = 1 + config.depthwise
    yield from _snac_attention_names(config, f"decoder.model.{number}", "decoder.attention")
    number += config.window > 0
    for level in range(len(config.decoder_rates)):
        theirs, ours = f"decoder.model.{number + level}.block", f"decoder.blocks.{level}"
        yield f"{theirs}.0.alpha", f"{ours}.snake.alpha"
        yield f"{theirs}.1", f"{ours}.conv"
        if config.noise:
            yield f"{theirs}.2.linear", f"{ours}.noise"
        yield from _unit_names(theirs, ours, first=2 + config.noise)
    number += len(config.decoder_rates)
    yield f"decoder.model.{number}.alpha", "decoder.snake.alpha"
    yield f"decoder.model.{number + 1}", "decoder.conv_out"


def _snac_attention_names(config: SNACConfig, theirs: str, ours: str) -> Names:
    if config.window:
        for name, new in (("norm", "norm"), ("to_qkv", "qkv_proj"), ("to_out", "out_proj")):
            yield f"{theirs}.{name}", f"{ours}.{new}"


_BESIDE = "config.json: put the one that it was published with beside it"
DIALECTS = (
    Dialect(
        "DAC",
        "descript-audio-codec",
        r"encoder\.block\.\d+\.alpha",  # after the last level, where SNAC has no activation
        _dac_config,
        _dac_names,
        configured_by="its metadata: give the file as it was published, or as the package saves it",
    ),
    Dialect(
        "SNAC",
        "snac",
        r"encoder\.block\.1\.block\.0\.block\.0\.alpha",
        _snac_config,
        _snac_names,
        configured_by=_BESIDE,
        ignored=("rel_pos.inv_freq",),
    ),
    Dialect(
        "DAC",
        "transformers DacModel",
        r"encoder\.block\.0\.res_unit1\.snake1\.alpha",
        _hf_dac_config,
        _hf_dac_names,
        configured_by=_BESIDE,
    ),
    Dialect(
        "EnCodec",
        "encodec",
        r"quantizer\.vq\.layers\.0\._codebook\.embed",
        _encodec_config,
        _encodec_names,
        ignored=("_codebook.inited", "_codebook.embed_avg"),
    ),
    Dialect(
        "EnCodec",
        "transformers EncodecModel",
        r"quantizer\.layers\.0\.codebook\.embed",
        _hf_encodec_config,
        _hf_encodec_names,
        configured_by=_BESIDE,
        ignored=("codebook.inited", "codebook.embed_avg"),
    ),
    Dialect(
        "Mimi",
        "moshi's Mimi",
        r"quantizer\.rvq_first\.input_proj\.weight",
        _moshi_config,
        _moshi_names,
        ignored=("_codebook._initialized",),
        prepare=_prepare_moshi,
    ),
    Dialect(
        "Mimi",
        "transformers MimiModel",
        r"quantizer\.semantic_residual_vector_quantizer\.input_proj\.weight",
        _hf_mimi_config,
        _hf_mimi_names,
        configured_by=_BESIDE,
        ignored=("codebook.initialized",),
        prepare=_prepare_hf_mimi,
    ),
)
"""All known dialects."""
