"""Wide convolutions as matrix products, which a CPU computes faster; results differ from torch's in the last bits."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 2048  # frames of a product
COLUMNS = 1 << 18  # numbers in the windows of a product


def by_products(x: Tensor) -> bool:
    """Whether the functions below are for this input: one signal on a CPU, without gradients."""
    return x.device.type == "cpu" and len(x) == 1 and not torch.is_grad_enabled()


def conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """`layer(x)` for a layer of stride 1 that keeps the length: the sum of a product per tap."""
    if not by_products(x):
        out: Tensor = layer(x)
        return out
    assert layer.bias is not None
    (dilation,), time = layer.dilation, x.shape[2]
    padding = dilation * (layer.kernel_size[0] // 2)
    first, *others = layer.weight.permute(2, 0, 1).contiguous()  # [kernel, out_channels, in_channels]
    padded = F.pad(x[0], (padding, padding))
    out = torch.addmm(layer.bias[:, None], first, padded[:, :time])
    for tap, weight in enumerate(others, start=1):
        out.addmm_(weight, padded[:, tap * dilation : tap * dilation + time])
    return out[None]


def transposed_conv(layer: nn.ConvTranspose1d, x: Tensor) -> Tensor:
    """`layer(x)` for a kernel of two strides: a product, whose halves overlap and are added.

    frame 0   a a a b b b
    frame 1         a a a b b b
    """
    if not by_products(x):
        out: Tensor = layer(x)
        return out
    assert layer.bias is not None
    (stride,), frames = layer.stride, x.shape[2]
    padding = int(layer.padding[0])
    channels = layer.weight.shape[1]
    weight = layer.weight.reshape(len(layer.weight), -1).T.contiguous()  # [out_channels * 2 stride, in_channels]
    out = x.new_zeros(channels, frames + 1, stride)
    for begin in range(0, frames, TILE):
        part = (weight @ x[0, :, begin : begin + TILE]).view(channels, 2, stride, -1)
        end = begin + part.shape[3]
        out[:, begin:end] += part[:, 0].transpose(1, 2)
        out[:, begin + 1 : end + 1] += part[:, 1].transpose(1, 2)
    end = (frames - 1) * stride - 2 * padding + 2 * stride + layer.output_padding[0]
    return out.view(1, channels, -1)[:, :, padding : padding + end] + layer.bias[:, None]


def strided_conv(layer: nn.Conv1d, x: Tensor, *, before: Callable[[Tensor], Tensor]) -> Tensor:
    """`layer(before(x))` for a stride above 1, tile by tile as a product with the windows.

    `before` is a function of each number, and 0 of 0.
    """
    if not by_products(x):
        out: Tensor = layer(before(x))
        return out
    assert layer.bias is not None
    (stride,), (kernel,), padding = layer.stride, layer.kernel_size, int(layer.padding[0])
    padded = F.pad(x, (padding, padding))
    frames = (padded.shape[2] - kernel) // stride + 1
    weight = layer.weight.flatten(1)  # [out_channels, in_channels * kernel]
    tile = max(64, COLUMNS // weight.shape[1])
    out = x.new_empty(len(weight), frames)
    for begin in range(0, frames, tile):
        end = min(begin + tile, frames)
        part = before(padded[..., begin * stride : (end - 1) * stride + kernel])
        windows = part[0].unfold(1, kernel, stride).transpose(1, 2)  # [in_channels, kernel, frames]
        torch.addmm(layer.bias[:, None], weight, windows.reshape(weight.shape[1], -1), out=out[:, begin:end])
    return out[None]


def depthwise_conv(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """`layer(x)` for a layer of one input per channel; torch takes three times as long to pad in a dilated one."""
    padded = F.pad(x, 2 * [int(layer.padding[0])])
    return F.conv1d(padded, layer.weight, layer.bias, dilation=layer.dilation, groups=layer.groups)
