"""Spectral losses against the same distances by `torch.stft`, dense filters and autograd of complex numbers."""

import librosa
import pytest
import torch
from torch import Tensor

from codec.training.codec.losses import SCALES, PerceptualLoss, SpectralLoss
from tests.helpers.training import batch

RATE = 8000


def spectra_by_stft(audio: Tensor, window: Tensor, hop: int) -> Tensor:
    """[batch, frames, bins] of [batch, time]."""
    return torch.stft(audio, len(window), hop, window=window, return_complex=True).mT


def distances_by_autograd(decoded: Tensor, audio: Tensor, bands: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """mel, complex_stft and noise_to_mask of one scale as `SpectralLoss` defines them; [batch, 1, time] signals."""
    filters = torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=length, n_mels=bands)).float().T
    window = torch.hann_window(length)
    ours, theirs = (spectra_by_stft(signal[:, 0], window, length // 4) for signal in (decoded, audio))
    our_power, their_power = ((spectra * spectra.conj()).real for spectra in (ours, theirs))
    log_mels = [((each + 1e-12).sqrt() @ filters).clamp(min=1e-5).log10() for each in (our_power, their_power)]
    mel = (log_mels[0] - log_mels[1]).abs().mean()
    compressed, their_compressed = ours * (our_power + 1e-7) ** -0.25, theirs * (their_power + 1e-7) ** -0.25
    error = compressed - their_compressed
    distance = ((error * error.conj()).real + 1e-9).sqrt().mean(dim=(1, 2))
    phase = (distance / (their_compressed.abs().mean(dim=(1, 2)) + 1e-3)).mean()
    signal = their_power @ filters
    wrong = ((ours - theirs) * (ours - theirs).conj()).real @ filters
    audible = signal + 1e-4 * signal.mean(dim=(1, 2), keepdim=True) + 1e-7
    return mel, phase, (wrong / audible + 1e-6).sqrt().clamp(max=2).mean()


def perceptual_by_autograd(loss: PerceptualLoss, decoded: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """pesq_like and stoi_like with the power of each bin relative to the reference's, before it is summed to bands."""
    window = loss.get_buffer("hann")
    both = spectra_by_stft(torch.cat([decoded, audio])[:, 0], window, len(window) // 2).mT
    spectrum = (both * both.conj()).real  # [2 batch, bins, frames]
    reference = spectrum.chunk(2)[1].sum(dim=1).mean(dim=1)
    spectrum = spectrum / (reference[:, None, None] + 1e-3).repeat(2, 1, 1)
    return loss.pesq_like(loss.get_buffer("bark") @ spectrum), loss.stoi_like(loss.get_buffer("thirds") @ spectrum)


def signals(level: float) -> tuple[Tensor, Tensor]:
    """Decoded audio and its reference [3, 1, 4000], one item of it much softer, with a pause."""
    audio = level * batch(time=4000)
    audio[1] *= 0.01
    audio[1, :, 1500:2500] = 0
    return audio + 0.05 * level * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0)), audio


def assert_same(ours: Tensor, theirs: Tensor, decoded: Tensor) -> None:
    """Values within 1e-4 of each other, and gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    gradients = [torch.autograd.grad(loss, decoded, retain_graph=True)[0] for loss in (ours, theirs)]
    assert gradients[1].norm() > 0
    assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()


@pytest.mark.parametrize("level", [1.0, 1e-3])
@pytest.mark.parametrize(("bands", "length"), SCALES)
def test_distances_and_gradients_are_those_of_autograd(bands: int, length: int, level: float) -> None:
    decoded, audio = signals(level)
    decoded.requires_grad_()
    ours = SpectralLoss(RATE, [(bands, length)])(decoded, audio)
    theirs = distances_by_autograd(decoded, audio, bands, length)
    assert_same(ours.mel, theirs[0], decoded)
    if length >= 256:
        assert_same(ours.complex_stft, theirs[1], decoded)
        assert_same(ours.noise_to_mask, theirs[2], decoded)
        one, other = (2 * mel + 0.3 * phase + 5 * noise for mel, phase, noise in (ours[:3], theirs))
        assert_same(one, other, decoded)
    else:
        assert ours.complex_stft == ours.noise_to_mask == 0


@pytest.mark.parametrize("level", [1.0, 1e-2])
def test_perceptual_losses_and_gradients_are_those_of_autograd(level: float) -> None:
    decoded, audio = signals(level)
    decoded.requires_grad_()
    loss = PerceptualLoss(RATE)
    for ours, theirs in zip(loss(decoded, audio), perceptual_by_autograd(loss, decoded, audio), strict=True):
        assert_same(ours, theirs, decoded)
