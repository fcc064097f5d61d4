"""Checkpoint files as other projects write them, made from models of ours with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codec.models import convert
from codec.models.base import Codec
from codec.models.mimi import Mimi, MimiConfig


def theirs(model: Codec, label: str) -> dict[str, Tensor]:
    """The tensors of a model under the names of the dialect `label`."""
    dialect = next(dialect for dialect in convert.DIALECTS if dialect.label == label)
    ours = model.state_dict()
    renamed = {}
    for name, own in dialect.names(model.config):
        for suffix in ("", ".weight", ".bias"):
            if own + suffix in ours:
                renamed[name + suffix] = ours.pop(own + suffix)
    assert not ours
    return renamed


def weight_normed(tensors: dict[str, Tensor], *, g: str, v: str) -> dict[str, Tensor]:
    """Every weight with at least two dimensions as a direction of any length and a norm per row, under these names."""
    split = {}
    for name, tensor in tensors.items():
        if not name.endswith(".weight") or tensor.ndim < 3:
            split[name] = tensor
            continue
        stem = name.removesuffix("weight")
        split[stem + g] = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.ndim - 1))
        split[stem + v] = 3 * tensor
    return split


def moshi_tensors(model: Mimi, *, old_names: bool = True) -> dict[str, Tensor]:
    """The tensors of a file of moshi; those of the released file have the old names."""
    in_proj, out_proj = ("in_proj_weight", "out_proj") if old_names else ("in_projs.0.weight", "out_projs.0")
    tensors = {}
    for name, tensor in theirs(model, "moshi's Mimi").items():
        if name.endswith("qkv.weight"):
            queries, keys, values = tensor.view(3, -1, 2, convert.HEAD_DIM // 2, tensor.shape[1])
            rows = [part.transpose(1, 2).flatten(0, 2) for part in (queries, keys)] + [values.flatten(0, 2)]
            tensors[name.replace("qkv.weight", in_proj)] = torch.cat(rows)
        else:
            tensors[name.replace("self_attn.out_proj", f"self_attn.{out_proj}")] = tensor
    return summed(tensors, "embedding_sum", "_initialized")


def transformers_mimi_tensors(model: Mimi) -> dict[str, Tensor]:
    """The tensors of a folder of transformers."""
    tensors = {}
    for name, tensor in theirs(model, "transformers MimiModel").items():
        if name.endswith("qkv.weight"):
            for part, weight in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace("qkv", f"{part}_proj")] = weight
        else:
            tensors[name] = tensor
    return summed(tensors, "embed_sum", "initialized")


def summed(tensors: dict[str, Tensor], sums: str, initialized: str) -> dict[str, Tensor]:
    """Tensors with each codebook as the sums of the rows that chose its entries."""
    renamed = {}
    for name, tensor in tensors.items():
        stem = name.removesuffix("codebook")
        if name.endswith(".codebook"):
            renamed[stem + sums] = tensor * tensors[stem + "cluster_usage"][:, None]
            renamed[stem + initialized] = torch.ones(1)
        else:
            renamed[name] = tensor
    return renamed


def transformers_mimi_config(config: MimiConfig) -> dict[str, Any]:
    """The config.json of a folder of transformers."""
    return {
        "model_type": "mimi",
        "sampling_rate": config.sample_rate,
        "num_quantizers": config.num_codebooks,
        "codebook_size": config.codebook_size,
        "codebook_dim": config.codebook_dim,
        "vector_quantization_hidden_dimension": config.codebook_dim,
        "num_filters": config.filters,
        "upsampling_ratios": list(config.rates[::-1]),
        "hidden_size": config.width,
        "upsample_groups": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.heads,
        "intermediate_size": config.hidden,
        "sliding_window": config.context,
    }


def write_folder(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    """A folder of transformers."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def scaled(model: Codec, seed: int = 0) -> Codec:
    """The model with random weights of a size that gives many different codes."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name.endswith("alpha"):
                parameter.uniform_(0.3, 2)
            elif name.endswith("scale"):
                parameter.uniform_(0.2, 0.5)
            elif parameter.ndim > 1:
                parameter.normal_(0, (parameter[0].numel()) ** -0.5)
            else:
                parameter.normal_(0, 0.1)
    return model.eval()
