"""Short-time spectra and band filters, as spectral losses need them, with a hand-written backward pass.

Spectra are pairs of real planes [2, batch, frames, bins], real and imaginary parts: on a CPU, autograd of complex
numbers and of `torch.stft` takes several times as long, mostly for copies and a full complex FFT.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def short_time_spectra(audio: Tensor, window: Tensor, hop: int) -> Tensor:
    """STFT [2, batch, frames, bins] of audio [batch, time], centered, with reflected ends, as `torch.stft`.

    The window has an even length, a multiple of `hop`.
    """
    spectra: Tensor = _ShortTimeSpectra.apply(audio, window, hop)
    return spectra


class _ShortTimeSpectra(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, audio: Tensor, window: Tensor, hop: int) -> Tensor:
        length = len(window)
        ctx.save_for_backward(window)
        ctx.hop, ctx.time = hop, audio.shape[-1]
        half = length // 2
        padded = torch.cat([audio[:, 1 : half + 1].flip(-1), audio, audio[:, -half - 1 : -1].flip(-1)], dim=-1)
        spectra = torch.fft.rfft(padded.unfold(-1, length, hop) * window)  # [batch, frames, bins]
        return torch.view_as_real(spectra).movedim(-1, 0).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (window,) = ctx.saved_tensors
        length, half = len(window), len(window) // 2
        spectra = torch.complex(gradient[0], gradient[1])
        spectra[..., 0] *= 2  # the inverse counts the bins between these two twice
        spectra[..., -1] *= 2
        frames = torch.fft.irfft(spectra, n=length).mul_(window * half)
        padded = overlap_add(frames, ctx.hop, ctx.time + length)
        audio = padded[:, half : half + ctx.time]
        audio[:, 1 : half + 1] += padded[:, :half].flip(-1)
        audio[:, -half - 1 : -1] += padded[:, -half:].flip(-1)
        return audio, None, None


def overlap_add(frames: Tensor, hop: int, time: int) -> Tensor:
    """Sum [batch, time] of frames [batch, frames, length], a hop apart; the length is a multiple of the hop."""
    batch, count, length = frames.shape
    parts = frames.view(batch, count, length // hop, hop)
    audio = frames.new_zeros(batch, time)
    for part in range(length // hop):
        audio[:, part * hop :][:, : count * hop].view(batch, count, hop).add_(parts[:, :, part])
    return audio


def power(spectra: Tensor) -> Tensor:
    """|x|² [batch, frames, bins], without a gradient."""
    return (spectra[0] * spectra[0]).addcmul_(spectra[1], spectra[1])


class BandFilters:
    """Products with filters [bands, bins] that overlap with their neighbors only, as mel filters do.

    Bands are multiplied in groups, each with its own bins: for 320 mel bands an eighth of the full product.
    """

    def __init__(self, filters: Tensor, group: int = 40) -> None:
        self.groups: list[tuple[slice, slice]] = []  # (bands, bins)
        for first in range(0, len(filters), group):
            bands = slice(first, min(first + group, len(filters)))
            used = filters[bands].any(dim=0).nonzero()
            self.groups.append((bands, slice(int(used.min()), int(used.max()) + 1) if len(used) else slice(0, 0)))

    def apply(self, filters: Tensor, values: Tensor) -> Tensor:
        """Band values [batch, frames, bands] of values [batch, frames, bins]."""
        flat = values.flatten(0, 1)
        parts = [flat[:, bins] @ filters[bands, bins].T for bands, bins in self.groups]
        return torch.cat(parts, dim=1).view(*values.shape[:2], -1)

    def transposed(self, filters: Tensor, bands_values: Tensor) -> Tensor:
        """The gradient [batch, frames, bins] of `apply` for a gradient [batch, frames, bands]."""
        flat = bands_values.flatten(0, 1)
        values = flat.new_zeros(len(flat), filters.shape[1])
        for bands, bins in self.groups:
            values[:, bins].addmm_(flat[:, bands], filters[bands, bins])
        return values.view(*bands_values.shape[:2], -1)
