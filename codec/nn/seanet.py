"""The causal layers of SEANet (Tagliasacchi et al. 2020, section 2.2) with zeros before the signal, as in Mimi.

Every layer is `Stateful` and takes chunks of any size that its strides allow. A whole signal is computed in pieces with
carried state too (`Pieces`), because intermediate results then stay in the cache of a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.conv import CausalConv1d
from codec.nn.init import trunc_normal_
from codec.nn.padded import elu
from codec.nn.streaming import Chain, State, Stateful

FEW_COLUMNS = 256  # most input frames for which a product of rows is faster than one of columns on a CPU
PIECE = 1 << 17  # input elements of a layer that a CPU computes at once


class ELUConv1d(CausalConv1d):
    """`CausalConv1d` after an ELU. Its state holds samples after the ELU."""

    def after_state(self, x: Tensor, state: Tensor) -> Tensor:
        return activated(x, state)


class CausalConvTranspose1d(Stateful):
    """Transposed convolution after an ELU, if `elu`; input frame t begins at output sample t * stride.

        kernel 4, stride 2:   [  x0  ]
                                  [  x1  ]
                                      [  x2  ]
                              a b c d e f       the rest waits for x3

    The kernel is a multiple of the stride. `groups` is 1, or the number of channels for a depthwise layer. The state is
    the end of the input.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int,
        groups: int = 1,
        bias: bool = True,
        elu: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride
        self.context = kernel // stride - 1
        self.depthwise = groups > 1
        self.elu = elu
        self.weight = nn.Parameter(torch.empty(in_channels, out_channels // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        trunc_normal_(self.weight, std=(in_channels // groups * kernel / stride) ** -0.5)

    def initial_state(self, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[0], self.in_channels, self.context)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        x = activated(x, state) if self.elu else torch.cat([state, x], dim=-1)
        after = x[..., x.shape[-1] - self.context :]
        if self.depthwise:
            return self.tap_by_tap(x), after
        if self.context == 1 and x.device.type == "cpu" and not torch.is_grad_enabled():
            return self.as_product(x), after
        trimmed = self.context * self.stride  # at both ends
        return F.conv_transpose1d(x, self.weight, self.bias, stride=self.stride, padding=trimmed), after

    def as_product(self, x: Tensor) -> Tensor:
        """The layer with a kernel of two strides as one matrix product, whose two halves overlap by a frame."""
        weight = self.weight.flatten(1)  # [in_channels, out_channels * kernel]
        if x.shape[-1] <= FEW_COLUMNS:
            y = torch.matmul(x.transpose(1, 2), weight).transpose(1, 2)
        else:
            y = torch.matmul(weight.T, x)
        new, old = y.view(len(y), -1, 2, self.stride, y.shape[2]).unbind(
            2
        )  # each [batch, out_channels, stride, 1 + frames]
        out = x.new_empty(*new.shape[:2], x.shape[-1] - 1, self.stride)
        torch.add(new[..., 1:].transpose(2, 3), old[..., :-1].transpose(2, 3), out=out)
        return (out if self.bias is None else out.add_(self.bias[:, None, None])).flatten(2)

    def tap_by_tap(self, x: Tensor) -> Tensor:
        """The depthwise layer: each part of a stride long of the kernel, times the input that it meets."""
        frames = x.shape[-1] - self.context
        y = x.new_zeros(()) if self.bias is None else self.bias[:, None, None]
        for past, taps in enumerate(torch.split(self.weight[:, 0], self.stride, dim=1)):  # each [channels, stride]
            first = self.context - past
            y = torch.addcmul(y, x[..., first : first + frames, None], taps[:, None])
        return y.flatten(2)


class ResidualUnit(Stateful):
    """Two convolutions after ELUs, through half the channels, added to the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1 = ELUConv1d(dim, dim // 2, kernel=3)
        self.conv2 = CausalConv1d(dim // 2, dim, kernel=1)

    def initial_state(self, like: Tensor) -> Tensor:
        return self.conv1.initial_state(like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        y, state = self.conv1.step(x, state)
        y = self.conv2(elu(y))
        return (x + y if torch.is_grad_enabled() else y.add_(x)), state


def activated(x: Tensor, state: Tensor) -> Tensor:
    """ELU of x [batch, channels, time] after the state [batch, channels, context], which is after its ELU already."""
    if torch.is_grad_enabled():
        return torch.cat([state, elu(x)], dim=-1)
    after = x.new_empty(*x.shape[:2], state.shape[-1] + x.shape[-1])
    after[..., : state.shape[-1]] = state
    elu(x, out=after[..., state.shape[-1] :])
    return after


class Pieces(Chain):
    """Layers in sequence that compute long inputs in pieces of `size` samples with carried state."""

    def __init__(self, layers: Iterable[nn.Module], *, size: int) -> None:
        super().__init__(layers)
        self.size = size

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if x.shape[-1] <= self.size or x.device.type != "cpu" or torch.is_grad_enabled():
            return super().step(x, state)
        parts = []
        for part in torch.split(x, self.size, dim=-1):
            y, state = super().step(part, state)
            parts.append(y)
        return torch.cat(parts, dim=-1), state


def encoder_stages(dims: Sequence[int], rates: Sequence[int], *, width: int, kernel: int, last_kernel: int) -> Chain:
    """Audio [batch, 1, time] to `width` channels; rate i leads from dims[i] channels to dims[i + 1]."""
    stages: list[nn.Module] = []
    for (dim, out_dim), rate in zip(pairwise(dims), rates, strict=True):
        layers: list[nn.Module] = [] if stages else [CausalConv1d(1, dim, kernel=kernel)]
        layers += [ResidualUnit(dim), ELUConv1d(dim, out_dim, kernel=2 * rate, stride=rate)]
        stages.append(Pieces(layers, size=max(1, PIECE // (dim * rate)) * rate))
    return Chain([*stages, ELUConv1d(dims[-1], width, kernel=last_kernel)])


def decoder_stages(dims: Sequence[int], rates: Sequence[int], *, width: int, kernel: int, last_kernel: int) -> Chain:
    """`width` channels to audio [batch, 1, time]; rate i leads from dims[i] channels to dims[i + 1]."""
    stages: list[nn.Module] = [CausalConv1d(width, dims[0], kernel=kernel)]
    for (dim, out_dim), rate in zip(pairwise(dims), rates, strict=True):
        layers = [CausalConvTranspose1d(dim, out_dim, kernel=2 * rate, stride=rate), ResidualUnit(out_dim)]
        if len(stages) == len(rates):
            layers.append(ELUConv1d(out_dim, 1, kernel=last_kernel))
        stages.append(Pieces(layers, size=max(1, PIECE // (out_dim * rate))))
    return Chain(stages)
