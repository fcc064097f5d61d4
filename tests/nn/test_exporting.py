"""Computations of exported graphs, compared with those of torch."""

import math

import pytest
import torch

from codec.models.causal import MDCT, InverseDFT
from codec.nn.exporting import Cosines
from codec.nn.quantize.gain_shape import Modes


def test_cosines_and_sines() -> None:
    index = torch.arange(-50, 50)
    angles = 2 * math.pi * index.double() / 12
    cosines = Cosines(12)
    torch.testing.assert_close(cosines(index), angles.cos().float(), atol=1e-7, rtol=0)
    torch.testing.assert_close(cosines.sine(index), angles.sin().float(), atol=1e-7, rtol=0)


@pytest.mark.parametrize("hop", [6, 80, 480])
def test_matrices_of_exported_graphs(hop: int) -> None:
    mdct, modes = MDCT(hop), Modes(hop=hop, sample_rate=24_000, num_codebooks=3, codebook_size=2 * hop, steps=8)
    n, k = torch.arange(2 * hop, dtype=torch.float64)[:, None] + 0.5, torch.arange(hop, dtype=torch.float64) + 0.5
    phase = math.pi / hop * (n + hop / 2) * k
    basis = torch.cat([phase.cos(), phase.sin()], dim=1) * math.sqrt(2 / hop) * (math.pi * n / (2 * hop)).sin()
    torch.testing.assert_close(mdct.exported_basis(), basis.float(), atol=1e-7, rtol=0)
    impulses = torch.eye(2 * hop)
    spectra, _ = mdct.analyze(impulses[:, hop:], impulses[:, :hop])
    torch.testing.assert_close(spectra[:, 0], basis.float(), atol=2e-7, rtol=0)
    torch.testing.assert_close(modes.exported_to_samples(), modes.to_samples, atol=1e-7, rtol=0)
    real, imaginary = torch.randn(2, 3, hop // 2 + 1, generator=torch.Generator().manual_seed(0))
    expected = torch.fft.irfft(torch.complex(real.double(), imaginary.double()), n=hop, norm="ortho").float()
    found = torch.cat([real, imaginary], dim=-1) @ InverseDFT(hop).basis()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
