"""Short-time spectra against `torch.stft`, and band filters against the dense product, with their gradients."""

import librosa
import pytest
import torch

from codec.nn.spectra import BandFilters, power, short_time_spectra

RATE = 8000


@pytest.mark.parametrize(("length", "hop", "time"), [(32, 8, 100), (256, 64, 1001), (256, 128, 1151), (96, 24, 49)])
def test_short_time_spectra_are_those_of_torch(length: int, hop: int, time: int) -> None:
    generator = torch.Generator().manual_seed(0)
    audio = torch.randn(2, time, generator=generator, dtype=torch.float64, requires_grad=True)
    window = torch.hann_window(length, dtype=torch.float64)
    ours = short_time_spectra(audio, window, hop)
    theirs = torch.stft(audio, len(window), hop, window=window, return_complex=True).mT
    torch.testing.assert_close(torch.complex(*ours), theirs)
    torch.testing.assert_close(power(ours.detach()), theirs.detach().abs() ** 2)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((weights * planes).sum(), audio)[0]
        for planes in (ours, torch.stack([theirs.real, theirs.imag]))
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("bands", "length"), [(5, 32), (40, 256), (320, 2048)])
def test_band_filters_are_the_dense_product(bands: int, length: int) -> None:
    """One band has no bins, as in the smallest windows."""
    filters = torch.from_numpy(librosa.filters.mel(sr=RATE, n_fft=length, n_mels=bands)).double()
    filters[2] = 0
    groups = BandFilters(filters, group=3)
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 7, length // 2 + 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(groups.apply(filters, values), values @ filters.T)
    bands_values = torch.randn(2, 7, bands, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(groups.transposed(filters, bands_values), bands_values @ filters)
    empty = torch.zeros(4, 17, dtype=torch.float64)
    assert not BandFilters(empty).apply(empty, torch.ones(2, 7, 17, dtype=torch.float64)).any()
