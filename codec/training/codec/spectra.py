"""Short-time spectra and band filters of the spectral losses, with hand-written backward passes.

Spectra are pairs of real planes [2, batch, frames, bins], real and imaginary parts: on a CPU, autograd of complex
numbers and of `torch.stft` takes several times as long, mostly for copies and a full complex FFT.
"""

from __future__ import annotations

import math
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


def scale_distances(
    decoded: Tensor, audio: Tensor, filters: Tensor, groups: BandFilters, *, complex_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`mel`, `complex_stft` and `noise_to_mask` of spectra [2, batch, frames, bins]; only `decoded` gets a gradient.

    Unless `complex_too`, only `mel`, and zeros.
    """
    distances: tuple[Tensor, Tensor, Tensor] = _ScaleDistances.apply(decoded, audio, filters, groups, complex_too)
    return distances


class _ScaleDistances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decoded: Tensor, audio: Tensor, filters: Tensor, groups: BandFilters, complex_too: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.groups = groups
        ctx.set_materialize_grads(False)  # a loss without a weight costs nothing in the backward pass
        decoded_power, audio_power = power(decoded), power(audio)
        magnitude = (decoded_power + 1e-12).sqrt_()
        mel = groups.apply(filters, magnitude)  # [batch, frames, bands]
        audio_mel = groups.apply(filters, (audio_power + 1e-12).sqrt_())
        difference = mel.clamp(min=1e-5).log10_() - audio_mel.clamp(min=1e-5).log10_()
        saved = [decoded, filters, magnitude, mel, difference]
        zero = decoded.new_zeros(())
        if not complex_too:
            ctx.save_for_backward(*saved)
            return difference.abs().mean(), zero, zero.clone()

        audio_compression = (audio_power + 1e-7).rsqrt_().sqrt_()
        size = audio_power.sqrt().mul_(audio_compression).mean(dim=(1, 2)) + 1e-3  # [batch]
        compression = (decoded_power + 1e-7).rsqrt_().sqrt_()
        compressed = (decoded * compression).addcmul_(audio, audio_compression, value=-1)
        distance = power(compressed).add_(1e-9).sqrt_()
        complex_stft = (distance.mean(dim=(1, 2)) / size).mean()

        signal = groups.apply(filters, audio_power)
        masking = signal + 1e-4 * signal.mean(dim=(1, 2), keepdim=True) + 1e-7
        error = decoded - audio
        ratio = (groups.apply(filters, power(error)) / masking + 1e-6).sqrt_()
        noise_to_mask = ratio.clamp(max=2).mean()
        ctx.save_for_backward(*saved, decoded_power, size, compression, compressed, distance, masking, error, ratio)
        return difference.abs().mean(), complex_stft, noise_to_mask

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_mel: Tensor | None, of_complex_stft: Tensor | None, of_noise_to_mask: Tensor | None
    ) -> tuple[Tensor, None, None, None, None]:
        decoded, filters, magnitude, mel, difference, *others = ctx.saved_tensors
        weight, gradient = torch.zeros_like(magnitude), None  # the gradient is `weight * decoded + gradient`
        if of_mel is not None:
            scale = of_mel / (mel.numel() * math.log(10))
            of_bands = difference.sign() * (mel >= 1e-5) / mel.clamp(min=1e-5) * scale
            weight = ctx.groups.transposed(filters, of_bands).div_(magnitude)
        if of_complex_stft is not None and others:
            decoded_power, size, compression, compressed, distance, *_ = others
            scale = of_complex_stft / (len(size) * distance[0].numel()) / size  # [batch]
            gradient = compressed * (compression / distance).mul_(scale[:, None, None])
            along = (decoded[0] * gradient[0]).addcmul_(decoded[1], gradient[1])
            weight.addcdiv_(along, decoded_power + 1e-7, value=-0.5)
        if of_noise_to_mask is not None and others:
            *_, masking, error, ratio = others
            of_bands = (ratio <= 2) / (ratio * masking) * (of_noise_to_mask / ratio.numel())
            of_bins = ctx.groups.transposed(filters, of_bands)
            gradient = error * of_bins if gradient is None else gradient.addcmul_(error, of_bins)
        whole = decoded * weight if gradient is None else gradient.addcmul_(decoded, weight)
        return whole, None, None, None, None
