"""A real model, small enough to build in every test."""

import hashlib

import torch

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
