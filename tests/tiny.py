"""A real model, small enough to build in every test."""

import atexit
import hashlib
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch

from codec.checkpoint import save_model
from codec.models.causal import CausalCodec, CausalConfig

CONFIG = CausalConfig(
    sample_rate=8000,
    hop=80,
    dim=8,
    num_codebooks=3,
    codebook_size=20,
    encoder_width=16,
    encoder_blocks=1,
    decoder_width=16,
    decoder_blocks=1,
    fine_width=12,
    fine_blocks=1,
    kernel=3,
    expansion=2,
    envelope_bands=4,
    modes=4,
)


def tiny_model(seed: int = 0) -> CausalCodec:
    """8 kHz, 10 ms frames, 3 codebooks of 20; untrained, in evaluation mode, with a name and an invented hash."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CausalCodec(CONFIG)
    model.name = f"tiny-{seed}"
    model.weights_hash = hashlib.sha256(model.name.encode()).hexdigest()
    return model.eval()


@cache
def tiny_weights() -> Path:
    """A folder with the tiny model as general-24k, in place of the shipped ones; not to be written to.

    One for all tests of a process, because a model file is loaded once.
    """
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    save_model(folder / "general-24k.safetensors", tiny_model(), training={"step": 3})
    return folder
