"""Convolutions as matrix products equal torch's."""

import pytest
import torch
from torch import Tensor, nn

from codec.nn.products import conv, depthwise_conv, strided_conv, transposed_conv
from codec.nn.tiles import in_tiles


def noise(channels: int, time: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, time, generator=torch.Generator().manual_seed(time))


@pytest.mark.parametrize("time", [1, 5, 300])
@pytest.mark.parametrize("dilation", [1, 9])
def test_convolution(dilation: int, time: int) -> None:
    layer = nn.Conv1d(6, 8, 7, dilation=dilation, padding=3 * dilation)
    with torch.no_grad():
        torch.testing.assert_close(conv(layer, noise(6, time)), layer(noise(6, time)))


@pytest.mark.parametrize("frames", [1, 7, 2049])
@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("output_padding", [0, 1])
def test_transposed_convolution(stride: int, frames: int, output_padding: int) -> None:
    layer = nn.ConvTranspose1d(6, 4, 2 * stride, stride=stride, padding=-(-stride // 2), output_padding=output_padding)
    with torch.no_grad():
        torch.testing.assert_close(transposed_conv(layer, noise(6, frames)), layer(noise(6, frames)))


@pytest.mark.parametrize("time", [8, 300, 60_000])
@pytest.mark.parametrize("stride", [2, 5])
def test_strided_convolution(stride: int, time: int) -> None:
    layer = nn.Conv1d(6, 8, 2 * stride, stride=stride, padding=-(-stride // 2))
    with torch.no_grad():
        found = strided_conv(layer, noise(6, time), before=torch.tanh)
        torch.testing.assert_close(found, layer(noise(6, time).tanh()))


@pytest.mark.parametrize("dilation", [1, 9])
def test_depthwise_convolution(dilation: int) -> None:
    layer = nn.Conv1d(6, 6, 7, dilation=dilation, padding=3 * dilation, groups=6)
    torch.testing.assert_close(depthwise_conv(layer, noise(6, 50, batch=2)), layer(noise(6, 50, batch=2)))


def test_gradients_and_batches_take_the_layer_itself() -> None:
    layer = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)
    x = noise(6, 10, batch=2).requires_grad_()
    torch.autograd.backward(transposed_conv(layer, x).sum())
    assert x.grad is not None
    with torch.no_grad():
        torch.testing.assert_close(transposed_conv(layer, x), layer(x))


@pytest.mark.parametrize("time", [1, 500, 40_000, 131_072])
def test_tiles_equal_the_whole(time: int) -> None:
    layer = nn.Conv1d(4, 4, 7, dilation=9, padding=27)
    x = noise(4, time)
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(layer, x, context=27), layer(x), rtol=0, atol=1e-6)
