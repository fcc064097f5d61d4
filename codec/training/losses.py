"""Losses of the codec: spectra at several scales, and the adversarial game."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import librosa
import torch
from torch import Tensor, nn

from codec.nn.shapes import Audio

SCALES = ((5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048))
"""(mel bands, window in samples) of DAC's multi-scale mel loss (section 3.4); each hop is a quarter window."""


class Spectral(NamedTuple):
    """The distances of `SpectralLoss`."""

    mel: Tensor
    phase: Tensor
    noise: Tensor


class SpectralLoss(nn.Module):
    """Distances of two signals through one set of short-time spectra.

    `mel` is the sum over scales of mean |log10 mel - log10 mel'| (DAC, section 3.4). `phase` is the distance of the
    complex spectra with magnitudes compressed to |S|^0.5, relative to the reference's own size (compression as in Braun
    and Tashev 2020, eq. 5). `noise` is the root of the noise-to-signal ratio of each mel band and frame, at most 2: as
    in hearing, what is loud hides noise in its own band only (the noise-to-mask ratio of Brandenburg 1987). These two
    hear phase; they are means over the scales of 256 samples and more.
    """

    def __init__(self, sample_rate: int, scales: Sequence[tuple[int, int]] = SCALES, phase_from: int = 256) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.phase_from = phase_from
        for bands, window in self.scales:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the smallest windows leave some mel bands empty, by definition
                filters = librosa.filters.mel(sr=sample_rate, n_fft=window, n_mels=bands)
            self.register_buffer(f"mel_{window}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, decoded: Audio, audio: Audio, half: int | None = None) -> Spectral:
        """Distances of [batch, 1, time] signals at all scales, or at every second one from the first (`half` 0) or the
        second (1) on. The two halves cost half the time each, and their mean is the whole.
        """
        scales = self.scales if half is None else self.scales[half::2]
        both = torch.cat([decoded, audio])[:, 0].float()
        mel, phase, noise = both.new_zeros(()), both.new_zeros(()), both.new_zeros(())
        voices = 0
        for _, window in scales:
            hann = self.get_buffer(f"window_{window}")
            spectra = torch.stft(both, window, window // 4, window=hann, return_complex=True)
            power = torch.view_as_real(spectra).square().sum(dim=-1)
            magnitude = (power + 1e-12).sqrt()  # [2 batch, bins, frames]
            filters = self.get_buffer(f"mel_{window}")
            bands = (filters @ magnitude).clamp(min=1e-5).log10()
            ours, theirs = bands.chunk(2)
            mel = mel + (ours - theirs).abs().mean()
            if window >= self.phase_from:
                compressed = spectra * (power + 1e-7) ** -0.25
                ours, theirs = compressed.chunk(2)
                distance = (torch.view_as_real(ours - theirs).square().sum(dim=-1) + 1e-9).sqrt().mean(dim=(1, 2))
                size = theirs.abs().mean(dim=(1, 2))
                phase = phase + (distance / (size + 1e-3)).mean()
                signal = filters @ power.chunk(2)[1]  # [batch, bands, frames]
                ours, theirs = spectra.chunk(2)
                wrong = filters @ torch.view_as_real(ours - theirs).square().sum(dim=-1)
                audible = signal + 1e-4 * signal.mean(dim=(1, 2), keepdim=True) + 1e-7
                noise = noise + (wrong / audible + 1e-6).sqrt().clamp(max=2).mean()
                voices += 1
        return Spectral(mel if half is None else 2 * mel, phase / max(voices, 1), noise / max(voices, 1))


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge loss, mean over discriminators (SoundStream, eq. 1)."""
    losses = [(1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(fake: list[Tensor]) -> Tensor:
    """Hinge loss of the generator, mean over discriminators (SoundStream, eq. 2)."""
    return torch.stack([(1 - f).relu().mean() for f in fake]).mean()


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Mean |difference| of the discriminators' inner layers [batch, ...], relative to the real ones' size.

    As in EnCodec, eq. 2, but with the size of each item's own, so that an item's loss does not depend on its company.
    """
    losses = [
        (size_of(r.detach() - f) / (size_of(r.detach()) + 1e-4)).mean()
        for reals, fakes in zip(real, fake, strict=True)
        for r, f in zip(reals, fakes, strict=True)
    ]
    return torch.stack(losses).mean()


def size_of(layer: Tensor) -> Tensor:
    """Mean absolute value [batch] of each item."""
    return layer.abs().flatten(1).mean(dim=1)


class Averages:
    """Moving averages by name, of equal weight at first: decay 0.9 makes (9 a + 10 b) / 19 of a, then b.

    `state_dict` and `load_state_dict` are as a module's.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in one value each."""
        for name, value in values.items():
            self.sums[name] = value.detach() + self.decay * self.sums.get(name, torch.zeros_like(value))
            self.weights[name] = 1 + self.decay * self.weights.get(name, 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self.sums

    def __getitem__(self, name: str) -> Tensor:
        return self.sums[name] / self.weights[name]

    def state_dict(self) -> dict[str, Any]:
        """All there is, for `load_state_dict`."""
        return {"sums": dict(self.sums), "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from another's state."""
        self.sums, self.weights = dict(state["sums"]), dict(state["weights"])


def balanced(weights: Mapping[str, float | Tensor], norms: Averages) -> dict[str, float | Tensor]:
    """Weights that make each loss's gradient, seen from the decoded audio, as large as its share (EnCodec, eq. 4).

    `norms` are the average norms of those gradients so far; a loss that has none yet is left out, to be measured.
    """
    whole = sum(weights.values())
    return {name: weight / whole / norms[name].clamp(min=1e-12) for name, weight in weights.items() if name in norms}
