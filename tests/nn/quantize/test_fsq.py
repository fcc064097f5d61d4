"""Finite scalar quantization against its definition."""

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.nn.quantize.fsq import FSQ

LEVELS = (3, 2, 5, 4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scalar_codes_round_trip() -> None:
    quantizer = FSQ(LEVELS)
    assert quantizer.codebook_size == 120
    codes = torch.arange(120)[None, None]
    latents = quantizer.decode(codes)
    grid = [np.linspace(-1, 1, count) for count in LEVELS]
    expected = np.stack([axis.flatten(order="F") for axis in np.meshgrid(*grid, indexing="ij")])  # dimension 0 fastest
    np.testing.assert_allclose(latents[0].numpy(), expected, atol=1e-6)
    before_tanh = (latents * 0.999).atanh()
    assert torch.equal(quantizer.encode(before_tanh), codes)


def test_scalar_rounding_is_the_nearest_level_of_tanh() -> None:
    quantizer, latents = FSQ(LEVELS), noise(2, 4, 50) * 2
    quantized = quantizer(latents.requires_grad_())
    for dimension, count in enumerate(LEVELS):
        levels = np.linspace(-1, 1, count)
        distance = np.abs(np.tanh(latents[:, dimension].detach().numpy())[..., None] - levels)
        np.testing.assert_allclose(
            quantized.latents[:, dimension].detach().numpy(), levels[distance.argmin(-1)], atol=1e-6
        )
    assert torch.equal(quantizer.encode(latents), quantized.codes)
    torch.testing.assert_close(quantizer.decode(quantized.codes), quantized.latents)
    quantized.latents.sum().backward()
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, 1 - latents.detach().tanh().square())  # rounding passes straight through
    assert (quantized.commitment, quantized.codebook) == (0, 0)


def test_the_example_of_scalar_quantization() -> None:
    quantized = FSQ((3, 2))(torch.tensor([0.8, -0.4])[None, :, None])
    assert quantized.codes.item() == 2
    assert quantized.latents.flatten().tolist() == pytest.approx([1, -1])
