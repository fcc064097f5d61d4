"""Give a trained causal codec latents of fewer dimensions: the ones that its residual codebooks use.

    python tools/reduce_dim.py runs/general 64 --out smaller.safetensors

Training can leave dimensions of the latents to which no codebook has anything to say; the search for codes multiplies
with them nevertheless. The new latents are the first principal components of the entries of all residual codebooks,
and the layers before and behind the quantizer are multiplied with the same rotation, so codes and decoded audio stay
those of the model, but for the share of the entries' energy that is printed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from codec import pretrained
from codec.checkpoint import read_card, save_model
from codec.errors import CodecError, UsageError
from codec.models.base import Codec
from codec.models.causal import CausalCodec
from codec.nn.quantize.gain_shape import GainShapeVQ
from codec.nn.quantize.residual import ResidualVQ


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", help="name, file, or folder of a training run")
    parser.add_argument("dim", type=int, help="dimensions of the new latents")
    parser.add_argument("--out", type=Path, required=True, help="model file to write")
    arguments = parser.parse_args()
    try:
        model = pretrained.load(arguments.model, "cpu")
        new, lost = reduced(model, arguments.dim)
    except CodecError as error:
        raise SystemExit(f"reduce_dim: {error}") from error
    card = read_card(pretrained.find(arguments.model))
    save_model(arguments.out, new, training=dict(card.training) | {"reduced_dim": arguments.dim})
    print(f"{arguments.out}: {arguments.dim} dimensions, without {lost:.1e} of the energy of the entries")


@torch.no_grad()
def reduced(model: Codec, dim: int) -> tuple[Codec, float]:
    """The model with latents of `dim` dimensions, and the share of the energy of the entries that it lacks.

    Raises UsageError for a model without residual codebooks in its latents, and for a `dim` that is not below its own.
    """
    residual = model.quantizer.residual if isinstance(model.quantizer, GainShapeVQ) else model.quantizer
    if not (isinstance(model, CausalCodec) and isinstance(residual, ResidualVQ) and residual.direct):
        raise UsageError(f"{model.name}: only causal codecs with residual codebooks and no projections can have fewer")
    before = model.config.dim
    if not 0 < dim < before:
        raise UsageError(f"{dim} dimensions: the latents of {model.name} have {before}, use 1 to {before - 1}")
    entries = residual.codebook_vectors().flatten(0, 1).double()
    energies, axes = torch.linalg.eigh(entries.T @ entries)  # ascending
    axes = axes.flip(1)[:, :dim]
    new = CausalCodec(model.config.model_copy(update={"dim": dim}))
    tensors = {name: tensor.double() for name, tensor in model.state_dict().items()}
    codebooks = [name for name in tensors if name.startswith("quantizer.") and name.endswith(".codebook")]
    for name in ("encoder.pca", "encoder.out_proj.bias", *codebooks):
        tensors[name] = tensors[name] @ axes
    for name in ("encoder.out_proj.weight", "decoder.pca"):
        tensors[name] = axes.T @ tensors[name]
    inputs = tensors["decoder.in_proj.weight"]
    tensors["decoder.in_proj.weight"] = torch.cat([inputs[:, :before] @ axes, inputs[:, before:]], dim=1)
    new.load_state_dict({name: tensors[name].to(tensor.dtype) for name, tensor in new.state_dict().items()})
    new.name = model.name
    return new.eval(), float(energies[:-dim].sum() / energies.sum())


if __name__ == "__main__":
    main()
