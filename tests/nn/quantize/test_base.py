"""The quantizer that does not quantize."""

import pytest
import torch

from codec.errors import UsageError
from codec.nn.quantize.base import Unquantized


def test_the_plain_autoencoder_has_no_codes() -> None:
    quantizer, latents = Unquantized(16), torch.randn(2, 4, 9)
    quantized = quantizer(latents)
    assert quantized.latents is latents
    assert (quantized.codes == -1).all()
    assert quantized.codes.shape == (2, 1, 9)
    assert (quantized.commitment, quantized.codebook) == (0, 0)
    with pytest.raises(UsageError, match='no codes: train one with quantizer = "residual"'):
        quantizer.encode(latents)
    with pytest.raises(UsageError, match='no codes: train one with quantizer = "residual"'):
        quantizer.decode(quantized.codes)
