"""Codes of two implementations that compute the same function with other roundings."""

from collections.abc import Callable

import torch
from torch import Tensor

ROUNDING = 1e-6  # of latents, relative to their length: what two orders of the same float32 sums differ by
FRAMES_PER_TIE = 500


def assert_same_codes(codes: Tensor, expected: Tensor, latents: Tensor, quantize: Callable[[Tensor], Tensor]) -> None:
    """Codes [1, codebooks, frames] are those of the peer, but for ties, of which there is one in 500 frames at most.

    In tens of thousands of codes some have two entries whose distances differ by less than float32 resolves, and the
    order of the sums in the layers before decides. Such a frame is proven by the peer itself: among its own latents
    [1, dim, frames] moved by a rounding, some get the codes of the other implementation by `quantize`, the peer's
    quantizer.
    """
    assert codes.shape == expected.shape
    differing = (codes != expected).any(dim=1)[0].nonzero()[:, 0].tolist()
    assert len(differing) <= expected.shape[2] // FRAMES_PER_TIE, f"{len(differing)} frames differ: {differing[:10]}"
    generator = torch.Generator().manual_seed(0)
    for frame in differing:
        latent = latents[:, :, frame, None]
        noise = torch.randn(1, latent.shape[1], 1000, generator=generator)
        moved = latent + ROUNDING * latent.norm() * noise / latent.shape[1] ** 0.5
        found = quantize(moved)
        assert (found == codes[:, :, frame, None]).all(dim=1).any(), f"frame {frame} differs, and is not a tie"
