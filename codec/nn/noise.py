"""Noise of a decoder as a table of spectra: half frames that overlap by half, and repeat after the last one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from codec.nn.exporting import is_exporting

ROUNDS = 20
HOPS = (1, 2, 4, 8, 16, 32, 60)  # parts of a frame's hop: 20 to 0.33 ms at 20 ms per frame


def random_phases(frames: int, bins: int) -> Tensor:
    """Cosines and sines [frames, 2 bins] of pseudorandom phases, the same on every machine."""
    index = torch.arange(frames * bins).view(frames, bins)
    for factor in (2654435761, 2246822519, 3266489917):  # integer hash; products stay below 2^63
        index = (index ^ (index // 2**15)) * factor % 2**31  # ONNX shifts no signed integers
    angle = index.float() if is_exporting() else index.double()  # float64 is lacking in some runtimes
    phase = angle * (2 * math.pi / 2**31)
    return torch.cat([phase.cos(), phase.sin()], dim=1).float()


def smooth_noise(spectra: Tensor, window: Tensor) -> Tensor:
    """White noise of RMS 1 with smaller fluctuations than that of `spectra`, as spectra of the same shape.

    Spectra are [half frames, 2 * bins]: real and imaginary parts of frames [length] that are half of their length
    apart. `window` [length] is that of analysis and synthesis; its squares add up to 1. The spectrogram of Gaussian
    noise varies by 5.6 dB at every resolution, and two such noises have a large spectral distance by chance. Here,
    spectrograms of up to seven resolutions are flattened in turn.

    Low-noise noise (Pumplin, "Low-noise noise", 1985) made by iteration (Kohlrausch et al., "Detection of tones in
    low-noise noise", 1997, section 2), with spectrograms instead of the envelope of one band.
    """
    length, half = len(window), len(window) // 2
    audio = _joined(torch.fft.irfft(torch.complex(*spectra.chunk(2, dim=1)), norm="ortho") * window, half)
    hops = [length // part for part in HOPS if length % part == 0]
    for number in range(ROUNDS):
        for hop in hops:
            audio = _flattened(audio, hop, exponent=0.5 * (1 - number / ROUNDS))
        audio = audio / audio.square().mean().sqrt()
    frames = torch.fft.rfft(_parts(audio, length, half) * window, norm="ortho")
    return torch.cat([frames.real, frames.imag], dim=1)


def _flattened(audio: Tensor, hop: int, exponent: float) -> Tensor:
    """Audio [time] whose spectrogram is divided by its relative magnitudes to the power of `exponent`."""
    window = torch.hann_window(4 * hop, dtype=audio.dtype)
    spectra = torch.fft.rfft(_parts(audio, 4 * hop, hop) * window)
    size = spectra.abs()
    spectra = spectra * (size.square().mean().sqrt() / size.clamp(min=1e-9)) ** exponent
    return _joined(torch.fft.irfft(spectra, 4 * hop) * window, hop) / 1.5  # squares of four windows add up to 1.5


def _parts(audio: Tensor, length: int, hop: int) -> Tensor:
    """[frames, length] of audio [time] that repeats, a hop apart."""
    return torch.cat([audio, audio[: length - hop]]).unfold(0, length, hop)


def _joined(frames: Tensor, hop: int) -> Tensor:
    """Audio [frames * hop] that repeats, of overlapping frames [frames, length]."""
    parts = frames.view(len(frames), -1, hop).unbind(dim=1)
    return torch.stack([part.roll(shift, dims=0) for shift, part in enumerate(parts)]).sum(dim=0).flatten()
