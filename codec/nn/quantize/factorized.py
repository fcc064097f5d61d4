"""Residual vector quantization with factorized codes that are looked up by direction: the quantizer of DAC and SNAC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.shapes import Codes, Latents

TILE = 512  # frames that are compared with all entries at once, because their distances stay in a CPU's cache


class FactorizedVQ(nn.Module):
    """One codebook of few dimensions between two learned projections (Kumar et al. 2023, section 3.2).

    Entries are compared by direction, but decoded with their length.
    """

    def __init__(self, dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Conv1d(dim, codebook_dim, 1)
        self.out_proj = nn.Conv1d(codebook_dim, dim, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, codebook_dim))

    @torch.no_grad()
    def nearest(self, inner: Tensor) -> Tensor:
        """Codes [batch, frames] of projected latents [batch, codebook_dim, frames]; the lowest index wins a tie."""
        rows = F.normalize(inner.transpose(1, 2).flatten(0, 1))
        entries = F.normalize(self.codebook)
        norms = entries.square().sum(dim=1)
        # |x|² - 2 x.c + |c|², in the order of the original implementation, so that near-ties fall alike
        codes = [
            (part.square().sum(dim=1, keepdim=True) - 2 * part @ entries.T + norms).argmin(dim=1)
            for part in torch.split(rows, TILE)
        ]
        return torch.cat(codes).view(len(inner), inner.shape[2])

    def entries(self, codes: Tensor) -> Tensor:
        """Entries [batch, codebook_dim, frames] of codes [batch, frames]."""
        return F.embedding(codes, self.codebook).transpose(1, 2)

    def decode(self, codes: Tensor) -> Latents:
        """Latents [batch, dim, frames] of codes [batch, frames]."""
        out: Tensor = self.out_proj(self.entries(codes))
        return out


class FactorizedRVQ(Quantizer):
    """A stack of `FactorizedVQ`; each quantizes the residual of the ones before it."""

    stages: Sequence[FactorizedVQ]

    def __init__(self, dim: int, num_codebooks: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        stages = nn.ModuleList(FactorizedVQ(dim, codebook_size, codebook_dim) for _ in range(num_codebooks))
        self.stages = cast(Sequence[FactorizedVQ], stages)

    @torch.no_grad()
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        stages = list(self.stages)[: num_codebooks or self.num_codebooks]
        residual, codes = latents, []
        for stage in stages:
            chosen = stage.nearest(stage.in_proj(residual))
            codes.append(chosen)
            if len(codes) < len(stages):
                residual = residual - stage.decode(chosen)
        return torch.stack(codes, dim=1)

    def decode(self, codes: Codes) -> Latents:
        latents = self.stages[0].decode(codes[:, 0])
        for stage, chosen in zip(list(self.stages)[1:], codes.unbind(1)[1:], strict=False):
            latents = latents + stage.decode(chosen)
        return latents

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        batch = len(latents)
        if num_codebooks is None:
            num_codebooks = torch.full((batch,), self.num_codebooks, device=latents.device)
        residual, total = latents, torch.zeros_like(latents)
        commitment, codebook_loss = latents.new_zeros(()), latents.new_zeros(())
        codes = []
        for number, stage in enumerate(self.stages):
            active = num_codebooks > number  # [batch]
            inner = stage.in_proj(residual)
            chosen = stage.nearest(inner.float())
            entries = stage.entries(chosen)
            decoded = stage.out_proj(inner + (entries - inner).detach())  # straight-through estimator
            total = total + decoded * active[:, None, None]
            residual = residual - decoded
            commitment = commitment + ((inner - entries.detach()).square().mean(dim=(1, 2)) * active).mean()
            codebook_loss = codebook_loss + ((entries - inner.detach()).square().mean(dim=(1, 2)) * active).mean()
            codes.append(torch.where(active[:, None], chosen, -1))
        return Quantized(total, torch.stack(codes, dim=1), commitment, codebook_loss)

    @torch.no_grad()
    def codebook_vectors(self) -> Tensor:
        return torch.stack([stage.out_proj(stage.codebook.T[None])[0].T for stage in self.stages])
