"""Convolutional networks of one signal [time, channels] as matrix products, for a CPU without gradients.

In this layout the input of every tap is a view of the signal, and so are the strides of a convolution:

    kernel 4, stride 2    (a b)  (c d)  (e f)
    y0 =                  (a b) W0 + (c d) W1
    y1 =                         (c d) W0 + (e f) W1

Each function below takes a layer, reorders its weights once, and returns the layer as a function of a signal.
Results differ from torch's in the last bits.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.exporting import is_exporting
from codec.nn.snake import Snake

Layer = Callable[[Tensor], Tensor]
"""A signal [time, channels] to another one."""
TILE = 1 << 17  # numbers in a signal that stays in the cache of a CPU core together with its intermediate results
NARROW = 16  # most input channels times kernel for which windows are copied into one matrix


def by_products(network: nn.Module, x: Tensor) -> bool:
    """Whether the functions below are for this network and its input: for evaluation, and in one process.

    In distributed training, sharded weights are whole only inside the forward of their own module.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    evaluates = not network.training and not torch.is_grad_enabled() and not is_exporting()
    return x.device.type == "cpu" and evaluates and not distributed


def conv(layer: nn.Conv1d) -> Layer:
    """A convolution of stride 1 that keeps the length, dense or with one input per channel."""
    (dilation,), (kernel,) = layer.dilation, layer.kernel_size
    bias = bias_of(layer)
    if layer.groups > 1:
        weights = layer.weight[:, 0].T.contiguous()  # [kernel, channels]
        return lambda x: sum_of_taps(torch.addcmul, x, weights, bias, dilation)
    taps = layer.weight.permute(2, 1, 0).contiguous()  # [kernel, in_channels, out_channels]
    if kernel > 1 and dilation == 1 and layer.in_channels * kernel <= NARROW:
        return lambda x: torch.addmm(bias, windows(x, kernel), taps.flatten(0, 1))
    if layer.out_channels == 1:
        return lambda x: sum_of_outputs(x @ taps[..., 0].T, dilation).add_(bias)
    return lambda x: sum_of_taps(torch.addmm, x, taps, bias, dilation)


def in_turn(*layers: Layer) -> Layer:
    """One layer after another."""
    return lambda x: reduce(lambda signal, layer: layer(signal), layers, x)


def of_each(network: Callable[..., Tensor], *batches: Iterable[Any]) -> Tensor:
    """A network for one signal, for each item of the batches, the first of which is x [batch, time, channels]."""
    items = [network(*item) for item in zip(*batches, strict=True)]
    return items[0][None] if len(items) == 1 else torch.stack(items)


def bias_of(layer: nn.Conv1d | nn.ConvTranspose1d) -> Tensor:
    """The bias of a layer; zeros if it does not have one."""
    return layer.weight.new_zeros(layer.out_channels) if layer.bias is None else layer.bias


def windows(x: Tensor, kernel: int) -> Tensor:
    """The samples around each sample, [time, kernel * channels]."""
    padded = F.pad(x, (0, 0, kernel // 2, kernel // 2))
    return padded.unfold(0, kernel, 1).transpose(1, 2).reshape(len(x), -1)


def shifts(kernel: int, dilation: int, time: int) -> Iterator[tuple[int, slice, slice]]:
    """(tap, samples of the output, samples of the input that it adds to them), the tap in the middle first."""
    middle = kernel // 2
    for tap in sorted(range(kernel), key=lambda tap: abs(tap - middle)):
        shift = (tap - middle) * dilation
        first, end = max(0, -shift), time - max(0, shift)
        if first < end:
            yield tap, slice(first, end), slice(first + shift, end + shift)


def sum_of_taps(multiply_add: Callable[..., Tensor], x: Tensor, weights: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """The bias plus, for each tap, the product of samples and weights."""
    (middle, _, _), *others = shifts(len(weights), dilation, len(x))
    out = multiply_add(bias, x, weights[middle])
    for tap, outputs, inputs in others:
        own = out[outputs]
        multiply_add(own, x[inputs], weights[tap], out=own)
    return out


def sum_of_outputs(products: Tensor, dilation: int) -> Tensor:
    """The output [time, 1] of products [time, kernel] with each tap."""
    out = products.new_zeros(len(products), 1)
    for tap, outputs, inputs in shifts(products.shape[1], dilation, len(products)):
        out[outputs] += products[inputs, tap : tap + 1]
    return out


def snake(layer: Snake) -> Layer:
    """The activation."""
    alpha = layer.alpha.flatten()
    inverse = (alpha + (alpha == 0)).reciprocal()
    return lambda x: torch.mul(x, alpha).sin_().square_().mul_(inverse).add_(x)


def residual_unit(snake1: Snake, conv1: nn.Conv1d, snake2: Snake, conv2: nn.Conv1d) -> Layer:
    """Two convolutions after activations, the second one of single samples, added to the input."""
    first, second, hidden = snake(snake1), snake(snake2), conv(conv1)
    weight, bias = conv2.weight[..., 0].T, bias_of(conv2)
    return lambda x: torch.addmm(x, second(hidden(first(x))), weight).add_(bias)


def strided_conv(layer: nn.Conv1d) -> Layer:
    """A convolution with a kernel of two strides, of a time that is a multiple of the stride."""
    (stride,), padding, bias = layer.stride, int(layer.padding[0]), bias_of(layer)
    taps = layer.weight.permute(2, 1, 0).reshape(2, stride * layer.in_channels, -1)  # [2, stride * in, out]

    def run(x: Tensor) -> Tensor:
        blocks = F.pad(x, (0, 0, padding, stride - padding)).view(len(x) // stride + 1, -1)
        return torch.addmm(bias, blocks[:-1], taps[0]).addmm_(blocks[1:], taps[1])

    return run


def transposed_conv(layer: nn.ConvTranspose1d) -> Layer:
    """A transposed convolution with a kernel of two strides, to a time of a stride for each input."""
    (stride,), padding, bias = layer.stride, int(layer.padding[0]), bias_of(layer)
    taps = layer.weight.permute(0, 2, 1).flatten(1)  # [in, 2 * stride * out]
    first, second = (part.contiguous() for part in taps.chunk(2, dim=1))
    repeated = bias.repeat(stride)

    def run(x: Tensor) -> Tensor:
        around = F.pad(x, (0, 0, 1, 1))
        blocks = torch.addmm(repeated, around[1:], first).addmm_(around[:-1], second)  # [time + 1, stride * out]
        return blocks.view((len(x) + 1) * stride, -1)[padding : padding + len(x) * stride]

    return run


def by_tiles(
    level: Callable[[Tensor, int], Tensor],
    x: Tensor,
    *,
    width: int,
    context: int,
    down: int = 1,
    up: int = 1,
    tile: int = TILE,
) -> Tensor:
    """`level(x, 0)` for x [time, channels], whose output has a time of time / down * up, tile by tile.

    The level has `width` numbers per sample of x, a tile about `tile` numbers, and `context` samples to either side are
    what the level needs, a multiple of `down`. level(x, first) computes from sample `first` on.
    """
    time = len(x)
    size = -(-max(tile // width, 8 * context) // down) * down
    if time <= size + size // 2:
        return level(x, 0)
    out = None
    for begin in range(0, time, size):
        end, first = min(begin + size, time), max(0, begin - context)
        part = level(x[first : min(end + context, time)], first)
        if out is None:
            out = part.new_empty(time // down * up, part.shape[1])
        before = (begin - first) // down * up
        of_tile = out[begin // down * up : end // down * up]
        of_tile.copy_(part[before : before + len(of_tile)])
    assert out is not None
    return out
