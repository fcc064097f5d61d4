"""Causal convolutions against torch's own with explicit padding, and against their definition in a loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.nn.conv import FEW, CausalConv1d, ConvNeXtBlock

GEOMETRIES = [(4, 1, 1, 1), (5, 2, 1, 1), (3, 3, 1, 1), (3, 1, 4, 3), (4, 2, 3, 1), (7, 4, 1, 3)]
"""kernel, stride, dilation, groups"""


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("kernel", "stride", "dilation", "groups"), GEOMETRIES)
def test_convolution_equals_torch_with_left_padding(kernel: int, stride: int, dilation: int, groups: int) -> None:
    layer = CausalConv1d(3, 6, kernel=kernel, stride=stride, dilation=dilation, groups=groups)
    layer.bias = torch.nn.Parameter(noise(6))
    x = noise(2, 3, 8 * stride)
    padded = F.pad(x, ((kernel - 1) * dilation + 1 - stride, 0))
    y = F.conv1d(padded, layer.weight, layer.bias, stride=stride, dilation=dilation, groups=groups)
    assert y.shape == (2, 6, 8)
    assert_same(layer(x), y)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "dilation", "_"), GEOMETRIES)
def test_depthwise_convolution_of_few_frames(kernel: int, stride: int, dilation: int, _: int, bias: bool) -> None:
    layer = CausalConv1d(6, 6, kernel=kernel, stride=stride, dilation=dilation, groups=6, bias=bias)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    for batch, frames in ((1, 1), (2, 5), (1, FEW), (1, FEW + 1)):
        x, state = noise(batch, 6, frames * stride), noise(batch, 6, layer.context)
        y = F.conv1d(torch.cat([state, x], 2), layer.weight, layer.bias, stride=stride, dilation=dilation, groups=6)
        with torch.no_grad():
            few, after = layer.step(x, state)
        many, same = layer.step(x, state)  # with gradients, as in training
        assert_same(few, y)
        assert_same(many, y)
        assert torch.equal(after, same)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frames", [1, 9, 100])
def test_convolution_to_one_channel(frames: int, bias: bool) -> None:
    layer = CausalConv1d(6, 1, kernel=3, bias=bias)
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    x = noise(2, 6, frames)
    with torch.no_grad():
        assert_same(layer(x), F.conv1d(F.pad(x, (2, 0)), layer.weight, layer.bias))


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(4, 1, 1), (5, 2, 1), (3, 2, 3)])
def test_convolution_equals_its_definition(kernel: int, stride: int, dilation: int) -> None:
    """y[t] ends at input sample (t + 1) * stride, counted with the last tap."""
    layer = CausalConv1d(2, 3, kernel=kernel, stride=stride, dilation=dilation)
    x = noise(1, 2, 6 * stride)
    expected = torch.zeros(1, 3, 6)
    for frame in range(6):
        for tap in range(kernel):
            sample = (frame + 1) * stride - 1 - (kernel - 1 - tap) * dilation
            if sample >= 0:
                expected[0, :, frame] += layer.weight[:, :, tap].detach() @ x[0, :, sample]
    assert_same(layer(x), expected)


def test_convnext_block_equals_figure_4_of_liu_et_al() -> None:
    """Depthwise, LayerNorm over channels, 1 x 1 up, GELU, 1 x 1 down, scaled, added: here all as convolutions."""
    block = ConvNeXtBlock(4, kernel=5, expansion=3, scale=0.3)
    x = noise(2, 4, 9)
    y = F.conv1d(F.pad(x, (4, 0)), block.depthwise.weight, block.depthwise.bias, groups=4)
    y = (y - y.mean(dim=1, keepdim=True)) / (y.var(dim=1, keepdim=True, unbiased=False) + block.norm.eps).sqrt()
    y = F.conv1d(y, block.in_proj.weight[..., None], block.in_proj.bias)
    y = F.conv1d(F.gelu(y), block.out_proj.weight[..., None], block.out_proj.bias)
    assert_same(block(x), x + 0.3 * y)


@pytest.mark.parametrize("stride", [1, 4])
def test_initial_weights_keep_the_standard_deviation(stride: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 400)
    assert 0.7 < CausalConv1d(64, 64, kernel=8, stride=stride)(x).std() < 1.3
