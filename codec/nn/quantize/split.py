"""Split residual vector quantization: the quantizer of Mimi."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.quantize.vq import update_stages
from codec.nn.shapes import Codes, Latents


class ProjectedRVQ(nn.Module):
    """A `ResidualVQ` of few dimensions between two projections."""

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(dim, codebook_dim, 1, bias=False)
        self.rvq = ResidualVQ(codebook_dim, num_codebooks, codebook_size)
        self.out_proj = nn.Conv1d(codebook_dim, dim, 1, bias=False)

    def encode(self, latents: Latents, num_codebooks: int) -> Codes:
        """Codes of the first `num_codebooks` codebooks."""
        return self.rvq.encode(self.in_proj(latents), num_codebooks)

    def decode(self, codes: Codes) -> Latents:
        """Latents of the codebooks that `codes` has."""
        out: Tensor = self.out_proj(self.rvq.decode(codes))
        return out

    def forward(self, latents: Latents, num_codebooks: Tensor | None) -> Quantized:
        """Quantize with gradients, as a `Quantizer`; an item may use no codebook."""
        quantized: Quantized = self.rvq(self.in_proj(latents), num_codebooks)
        inner = quantized.latents
        if num_codebooks is not None:
            inner = torch.where((num_codebooks > 0)[:, None, None], inner, 0.0)
        return quantized._replace(latents=self.out_proj(inner))

    def init_from_data(self, latents: Latents) -> None:
        """k-means of the codebooks on the projected latents."""
        self.rvq.init_from_data(self.in_proj(latents))

    def codebook_vectors(self) -> Tensor:
        """Vectors [codebooks, codebook_size, dim] of all codes."""
        return self.rvq.codebook_vectors() @ self.out_proj.weight[:, :, 0].T


class SplitRVQ(Quantizer):
    """Codebook 0 and the stack of all others quantize the same latents side by side; what they decode to is added.

    Codebook 0 then need not serve the waveform, so that it can carry the meaning of speech (Défossez et al. 2024,
    section 3.3.3).
    """

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.semantic = ProjectedRVQ(dim, 1, codebook_size, codebook_dim)
        self.acoustic = ProjectedRVQ(dim, num_codebooks - 1, codebook_size, codebook_dim)

    @torch.no_grad()
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        num_codebooks = num_codebooks or self.num_codebooks
        codes = self.semantic.encode(latents, 1)
        if num_codebooks > 1:
            codes = torch.cat([codes, self.acoustic.encode(latents, num_codebooks - 1)], dim=1)
        return codes

    def decode(self, codes: Codes) -> Latents:
        latents = self.semantic.decode(codes[:, :1])
        if codes.shape[1] > 1:
            latents = latents + self.acoustic.decode(codes[:, 1:])
        return latents

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        first: Quantized = self.semantic(latents, None)
        others: Quantized = self.acoustic(latents, None if num_codebooks is None else num_codebooks - 1)
        return Quantized(
            first.latents + others.latents,
            torch.cat([first.codes, others.codes], dim=1),
            first.commitment + others.commitment,
            first.codebook + others.codebook,
            first.stage_inputs + others.stage_inputs,
        )

    @torch.no_grad()
    def codebook_vectors(self) -> Tensor:
        return torch.cat([self.semantic.codebook_vectors(), self.acoustic.codebook_vectors()])

    def update_codebook(self, parts: Sequence[Quantized]) -> None:
        update_stages([*self.semantic.rvq.stages, *self.acoustic.rvq.stages], parts)

    @torch.no_grad()
    def init_from_data(self, latents: Latents) -> None:
        self.semantic.init_from_data(latents)
        self.acoustic.init_from_data(latents)
