"""Discriminators on complex short-time spectra at several scales (EnCodec, section 3.4, figure 2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from codec.nn.shapes import Audio


class DiscriminatorOutput(NamedTuple):
    """Scores and features (of the inner layers), one entry per discriminator."""

    scores: list[Tensor]
    features: list[list[Tensor]]


class SpectrumDiscriminator(nn.Module):
    """2-D convolutions over time and frequency of one complex spectrum; each layer halves the frequency resolution."""

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.size = window
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        sizes = [2, channels, channels, 2 * channels, 2 * channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(before, after, (3, 9), stride=(1, 2), padding=(1, 4)))
            for before, after in pairwise(sizes)
        )
        self.mix = weight_norm(nn.Conv2d(sizes[-1], sizes[-1], (3, 3), padding=1))
        self.score = weight_norm(nn.Conv2d(sizes[-1], 1, (3, 3), padding=1))

    def forward(self, audio: Audio) -> tuple[Tensor, list[Tensor]]:
        window = self.get_buffer("window")
        with torch.autocast(audio.device.type, enabled=False):
            spectrum = torch.stft(
                audio[:, 0].float(), self.size, self.size // 4, window=window, normalized=True, return_complex=True
            )
            # magnitudes are compressed as in the losses, so that quiet parts count too
            spectrum = spectrum * (spectrum.real.square() + spectrum.imag.square() + 1e-7) ** -0.25
            x = torch.view_as_real(spectrum.transpose(1, 2)).permute(0, 3, 1, 2)  # [batch, 2, frames, bins]
            x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        x = F.leaky_relu(self.mix(x), 0.2)
        features.append(x)
        score: Tensor = self.score(x)
        return score.float(), features


class Discriminators(nn.Module):
    """One `SpectrumDiscriminator` per window."""

    def __init__(self, windows: Sequence[int], channels: int) -> None:
        super().__init__()
        self.discriminators = nn.ModuleList(SpectrumDiscriminator(window, channels) for window in windows)

    def forward(self, audio: Audio) -> DiscriminatorOutput:
        outputs = [discriminator(audio) for discriminator in self.discriminators]
        return DiscriminatorOutput([score for score, _ in outputs], [features for _, features in outputs])
