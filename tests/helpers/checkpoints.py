"""Checkpoint files as other projects write them, made from models of ours with random weights."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from codec.models import convert
from codec.models.base import Codec


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
            elif parameter.ndim > 1:
                parameter.normal_(0, (parameter[0].numel()) ** -0.5)
            else:
                parameter.normal_(0, 0.1)
    return model.eval()
