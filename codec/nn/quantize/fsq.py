"""Finite scalar quantization (FSQ, Mentzer et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.shapes import Codes, Latents


class FSQ(Quantizer):
    """Finite scalar quantization: every dimension is squashed into (-1, 1) and rounded (Mentzer et al. 2023).

    With `levels` (3, 2), dimension 0 takes the values -1, 0, 1 and dimension 1 the values -1, 1. On (0.8, -0.4):

        tanh     (0.66, -0.38)
        rounded  (1, -1)          the input of the decoder
        digits   (2, 0)           counted from the lowest level
        code     2 + 3 * 0 = 2    in mixed radix, dimension 0 the fastest

    The levels cover [-1, 1] evenly and symmetrically; the paper (section 3.1) shifts an even number of levels by half a
    step instead, to keep 0. There are no parameters, so both losses are zero.
    """

    levels: Tensor
    radix: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        self.num_codebooks = 1
        self.codebook_size = math.prod(levels)
        columns = torch.tensor(levels)[:, None]  # [dim, 1]
        self.register_buffer("levels", columns, persistent=False)
        self.register_buffer("radix", columns.cumprod(dim=0) // columns, persistent=False)

    def digits(self, bounded: Tensor) -> Tensor:
        """Index [batch, dim, frames] of the nearest level to tanh(latents)."""
        return ((bounded + 1) / 2 * (self.levels - 1)).round().long()

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        return (self.digits(latents.float().tanh()) * self.radix).sum(dim=1, keepdim=True)

    def decode(self, codes: Codes) -> Latents:
        digits = codes // self.radix % self.levels  # [batch, dim, frames]
        return 2 * digits / (self.levels - 1) - 1

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        codes = self.encode(latents)
        bounded = latents.float().tanh()
        decoded = bounded + (self.decode(codes) - bounded).detach()
        return Quantized(decoded, codes, bounded.new_zeros(()), bounded.new_zeros(()))
