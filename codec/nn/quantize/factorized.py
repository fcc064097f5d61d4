"""Residual vector quantization with factorized codes that are looked up by direction: the quantizer of DAC and SNAC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.quantize.vq import lowest
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
            lowest(part.square().sum(dim=1, keepdim=True) - 2 * part @ entries.T + norms, 1)[:, 0]
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
    """A stack of `FactorizedVQ`; each quantizes the residual of the ones before it.

    A stage may have a stride: it then has one code for the mean of that number of steps (Siuzdak et al. 2024, section
    3.1). A frame has as many steps as the first stride, which all others divide; the latents of its steps follow one
    another in its channels, [batch, steps * dim, frames], and every code of a frame counts as a codebook, stage by
    stage.
    """

    stages: Sequence[FactorizedVQ]

    def __init__(
        self, dim: int, num_codebooks: int, codebook_size: int, codebook_dim: int, *, strides: Sequence[int] = ()
    ) -> None:
        super().__init__()
        self.num_codebooks = num_codebooks
        self.codebook_size = codebook_size
        self.strides = tuple(strides) or (1,) * num_codebooks
        self.steps = self.strides[0]
        self.columns = [self.steps // stride for stride in self.strides]  # codes per frame of each stage
        assert sum(self.columns) == num_codebooks
        stages = nn.ModuleList(FactorizedVQ(dim, codebook_size, codebook_dim) for _ in self.strides)
        self.stages = cast(Sequence[FactorizedVQ], stages)

    def fold(self, latents: Tensor) -> Latents:
        """Latents [batch, steps * dim, frames] of steps [batch, dim, frames * steps]."""
        if self.steps == 1:
            return latents
        batch, dim, _ = latents.shape
        return latents.reshape(batch, dim, -1, self.steps).permute(0, 3, 1, 2).flatten(1, 2)

    def unfold(self, latents: Latents) -> Tensor:
        """Invert `fold`."""
        if self.steps == 1:
            return latents
        batch, dim, frames = latents.shape
        return latents.reshape(batch, self.steps, dim // self.steps, frames).permute(0, 2, 3, 1).flatten(2)

    def pooled(self, residual: Tensor, stride: int) -> Tensor:
        """Means [batch, dim, time / stride] of the steps that share a code."""
        return residual if stride == 1 else F.avg_pool1d(residual, stride)

    @torch.no_grad()
    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        wanted = num_codebooks or self.num_codebooks
        residual, codes, found = self.unfold(latents), [], 0
        for stage, stride, columns in zip(self.stages, self.strides, self.columns, strict=True):
            chosen = stage.nearest(stage.in_proj(self.pooled(residual, stride)))  # [batch, frames * columns]
            codes.append(self.as_columns(chosen, columns))
            found += columns
            if found >= wanted:
                break
            residual = residual - repeated(stage.decode(chosen), stride)
        return torch.cat(codes, dim=1)

    def as_columns(self, chosen: Tensor, columns: int) -> Codes:
        """Codes [batch, columns, frames] of codes [batch, frames * columns] in the order of time."""
        return chosen.view(len(chosen), -1, columns).transpose(1, 2)

    def decode(self, codes: Codes) -> Latents:
        parts, first = [], 0
        for stage, stride, columns in zip(self.stages, self.strides, self.columns, strict=True):
            if first == codes.shape[1]:
                break
            chosen = codes[:, first : first + columns].transpose(1, 2).flatten(1)  # in the order of time
            parts.append(repeated(stage.decode(chosen), stride))
            first += columns
        return self.fold(sum(parts[1:], parts[0]))

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            return self.quantize_train(latents.float(), num_codebooks)

    def quantize_train(self, latents: Latents, num_codebooks: Tensor | None) -> Quantized:
        """Quantize float32 latents with gradients, as `forward`."""
        batch = len(latents)
        if num_codebooks is None:
            num_codebooks = torch.full((batch,), self.num_codebooks, device=latents.device)
        residual = self.unfold(latents)
        total = torch.zeros_like(residual)
        commitment, codebook_loss = latents.new_zeros(()), latents.new_zeros(())
        codes, before = [], 0
        for stage, stride, columns in zip(self.stages, self.strides, self.columns, strict=True):
            active = num_codebooks > before  # [batch]
            inner = stage.in_proj(self.pooled(residual, stride))
            chosen = stage.nearest(inner)
            entries = stage.entries(chosen)
            decoded = stage.out_proj(inner + (entries - inner).detach())  # straight-through estimator
            decoded = repeated(decoded, stride)
            total = total + decoded * active[:, None, None]
            residual = residual - decoded
            commitment = commitment + ((inner - entries.detach()).square().mean(dim=(1, 2)) * active).mean()
            codebook_loss = codebook_loss + ((entries - inner.detach()).square().mean(dim=(1, 2)) * active).mean()
            codes.append(torch.where(active[:, None, None], self.as_columns(chosen, columns), -1))
            before += columns
        return Quantized(self.fold(total), torch.cat(codes, dim=1), commitment, codebook_loss)

    @torch.no_grad()
    def codebook_vectors(self) -> Tensor | None:
        if self.steps > 1:  # most of the numbers would be zeros
            return None
        return torch.stack([stage.out_proj(stage.codebook.T[None])[0].T for stage in self.stages])


def repeated(decoded: Tensor, stride: int) -> Tensor:
    """Each latent of [batch, dim, time] for `stride` steps."""
    return decoded if stride == 1 else decoded.repeat_interleave(stride, dim=2)
