"""nn/noise.py: random phases, and noise whose spectrogram fluctuates less."""

import math

import pytest
import torch
from torch import Tensor

from codec.models.causal import overlap_add, sine_window
from codec.nn.noise import random_phases, smooth_noise

HOP = 480
WINDOW = sine_window(HOP // 2).float()
PHASES = random_phases(998, HOP // 2 + 1)


@pytest.fixture(scope="module")
def smooth() -> Tensor:
    """Half frames of the size of `general-24k`."""
    return smooth_noise(PHASES, WINDOW)


def test_random_phases_are_white_and_reproducible() -> None:
    """No correlation between frames or bins; values stored from the integer hash computed with Python's integers."""
    table = random_phases(998, 241)
    cosine, sine = table.double().chunk(2, dim=1)
    torch.testing.assert_close(cosine.square() + sine.square(), torch.ones_like(cosine))
    phases = torch.complex(cosine, sine)
    for shift in ((1, 0), (2, 0), (0, 1), (0, 2), (1, 1)):
        product = (phases * phases.roll(shift, (0, 1)).conj()).mean()
        assert product.abs() < 5 / math.sqrt(phases.numel())
    for frame, place in ((0, 1), (7, 100), (997, 240)):
        index = frame * 241 + place
        for factor in (2654435761, 2246822519, 3266489917):
            index = (index ^ (index >> 15)) * factor % 2**31
        assert cosine[frame, place].item() == pytest.approx(math.cos(index * 2 * math.pi / 2**31), abs=1e-6)


def audio_of(spectra: Tensor) -> Tensor:
    """Audio [time] of spectra [half frames, 2 bins], as the decoder makes it, without the half frame at each end."""
    frames = torch.fft.irfft(torch.complex(*spectra.chunk(2, dim=1)), norm="ortho") * WINDOW
    return overlap_add(frames[None].chunk(2, dim=-1), torch.zeros(1, HOP // 2))[0][0, HOP // 2 :]


def magnitudes(audio: Tensor, length: int) -> Tensor:
    """[frames, bins], the outermost left out: their noise has one real part only."""
    window = torch.hann_window(length)
    return torch.stft(audio, length, length // 2, window=window, center=False, return_complex=True).abs().T[:, 2:-2]


@pytest.mark.parametrize("length", [64, 256, 512, 1024, 2048])
def test_smooth_noise_fluctuates_less_at_every_resolution(length: int, smooth: Tensor) -> None:
    gaussian = torch.randn(len(PHASES) * HOP // 2, generator=torch.Generator().manual_seed(0))
    varies, steady = (20 * magnitudes(audio, length).log10().std().item() for audio in (gaussian, audio_of(smooth)))
    assert varies == pytest.approx(5.57, abs=0.15)  # of a Rayleigh distribution
    assert steady < 0.8 * varies


def test_smooth_noise_is_white_and_as_loud_as_the_phases(smooth: Tensor) -> None:
    audio = audio_of(smooth)
    assert audio.square().mean().item() == pytest.approx(1, abs=0.01)
    assert audio_of(PHASES).square().mean().item() == pytest.approx(1, abs=0.01)
    power = magnitudes(audio, HOP).square().mean(dim=0)
    assert (10 * (power / power.mean()).log10()).abs().max() < 0.5  # dB
    frames = audio[: len(audio) // HOP * HOP].view(-1, HOP)
    assert ((frames.square().mean(dim=0) - 1).abs() < 6 * math.sqrt(2 / len(frames))).all()  # steady within a frame
    correlation = torch.fft.irfft(torch.fft.rfft(audio, 2 * len(audio)).abs().square())[1 : 20 * HOP] / len(audio)
    assert correlation.abs().max() < 0.02


def test_smooth_noise_goes_on_where_the_table_begins_again(smooth: Tensor) -> None:
    """Magnitudes around the seam are as steady as elsewhere."""
    audio = audio_of(torch.cat([smooth[-20:], smooth[:20]]))
    assert 20 * magnitudes(audio, 512).log10().std() < 0.8 * 5.57


def test_smooth_noise_of_frames_that_no_part_divides() -> None:
    window = sine_window(7).float()
    audio = smooth_noise(random_phases(60, 8), window)
    assert audio.shape == (60, 16)
    assert audio.isfinite().all()
