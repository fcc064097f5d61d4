"""Causal convolution and the ConvNeXt block. Padding is zeros on the left; the state is the end of the input."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.exporting import is_exporting
from codec.nn.init import trunc_normal_
from codec.nn.streaming import Checkpointable, State, Stateful

FEW = 16  # most output frames for which a depthwise convolution is faster tap by tap on a CPU
FEW_ROWS = 8  # most output frames for which a product of rows is faster than one of columns on a CPU


class CausalConv1d(Stateful):
    """Strided causal convolution: output frame t ends at input sample (t + 1) * stride.

        kernel 4, stride 2:   0 0 a b c d e f
                              [  y0  ]
                                  [  y1  ]
                                      [  y2  ]

    A chunk [batch, in_channels, time] must hold a multiple of `stride` samples and may be empty.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.stride = stride
        self.dilation = dilation
        self.groups = groups
        self.context = (kernel - 1) * dilation + 1 - stride
        self.depthwise = groups == in_channels == out_channels
        self.dense = groups == dilation == 1
        self.is_product = stride > 1 or kernel == 1  # where a product is faster on a CPU
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        trunc_normal_(self.weight, std=(in_channels // groups * kernel) ** -0.5)

    def initial_state(self, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[0], self.in_channels, self.context)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, Tensor]:
        if x.shape[-1] == 0:
            return x.new_zeros(x.shape[0], self.weight.shape[0], 0), state
        frames = x.shape[-1] // self.stride
        x = self.after_state(x, state)
        if self.depthwise and is_exporting():
            y = self.as_windows(x, frames)
        elif x.device.type != "cpu" or torch.is_grad_enabled() or is_exporting():
            y = self.convolve(x)
        elif self.depthwise and len(x) * frames <= FEW:
            y = self.tap_by_tap(x, frames)
        elif self.dense and (self.is_product or len(x) * frames <= FEW_ROWS):
            y = self.as_product(x, frames)
        elif self.dense and len(self.weight) == 1:
            y = self.as_shifted(x, frames)
        else:
            y = self.convolve(x)
        return y, x[..., x.shape[-1] - self.context :]

    def after_state(self, x: Tensor, state: Tensor) -> Tensor:
        """The chunk with its context [batch, in_channels, context + time]."""
        return torch.cat([state, x], dim=-1)

    def convolve(self, x: Tensor) -> Tensor:
        """The convolution by torch, for any layer and device."""
        return F.conv1d(x, self.weight, self.bias, stride=self.stride, dilation=self.dilation, groups=self.groups)

    def as_product(self, x: Tensor, frames: int) -> Tensor:
        """The convolution as one matrix product with the windows of x [batch, channels, context + time].

        PyTorch's convolution reorders the weights in every call, and is slow with large strides.
        """
        weight = self.weight.flatten(1)  # [out_channels, channels * kernel]
        windows = x.unfold(2, self.weight.shape[2], self.stride)  # [batch, channels, frames, kernel]
        if len(x) * frames <= FEW_ROWS:
            rows = windows.transpose(1, 2).flatten(2)
            return F.linear(rows, weight, self.bias).transpose(1, 2)
        y = torch.matmul(weight, windows.transpose(2, 3).reshape(len(x), weight.shape[1], frames))
        return y if self.bias is None else y.add_(self.bias[:, None])

    def as_shifted(self, x: Tensor, frames: int) -> Tensor:
        """The convolution to one channel with stride 1: products of all samples with each tap, shifted and added."""
        products = torch.matmul(self.weight[0].T, x)  # [batch, kernel, context + time]
        taps = [products[:, tap : tap + 1, tap : tap + frames] for tap in range(products.shape[1])]
        y = sum(taps[1:], taps[0])
        return y if self.bias is None else y + self.bias[:, None]

    def as_windows(self, x: Tensor, frames: int) -> Tensor:
        """The depthwise convolution [batch, channels, frames] of x [batch, channels, context + time], for exporters.

        ONNX Runtime convolves each channel by a matrix product of its own.
        """
        kernel = self.weight.shape[2]
        index = torch.arange(frames)[:, None] * self.stride + torch.arange(kernel) * self.dilation
        windows = x.index_select(2, index.view(-1)).view(x.shape[0], x.shape[1], frames, kernel)
        y = (windows * self.weight).sum(dim=3)
        return y if self.bias is None else y + self.bias[:, None]

    def tap_by_tap(self, x: Tensor, frames: int) -> Tensor:
        """The depthwise convolution [batch, channels, frames] of x [batch, channels, context + time]."""
        y = x.new_zeros(()) if self.bias is None else self.bias[:, None]
        for tap, weight in enumerate(self.weight.unbind(dim=2)):  # each [channels, 1]
            first = tap * self.dilation
            y = torch.addcmul(y, x[..., first : first + (frames - 1) * self.stride + 1 : self.stride], weight)
        return y


class ConvNeXtBlock(Checkpointable, Stateful):
    """Depthwise causal convolution, then a two-layer network on each frame, added to the input.

    Liu et al. 2022 (section 2.6), in one dimension as in Vocos (Siuzdak 2023, section 3.2). Nearly all of its work is
    matrix products at the frame rate, which are fast on a CPU.
    """

    def __init__(self, dim: int, *, kernel: int, expansion: int, scale: float) -> None:
        super().__init__()
        self.depthwise = CausalConv1d(dim, dim, kernel=kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, expansion * dim)
        self.out_proj = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), scale))

    def initial_state(self, like: Tensor) -> Tensor:
        return self.depthwise.initial_state(like)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        return self.recomputed(self.whole_step, x, state)

    def whole_step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step without checkpointing."""
        y, state = self.depthwise.step(x, state)
        y = self.norm(y.transpose(1, 2))  # [batch, frames, dim]
        y = self.out_proj(gelu(self.in_proj(y)))
        return torch.addcmul(x, y.transpose(1, 2), self.scale[:, None]), state


def gelu(x: Tensor) -> Tensor:
    """GELU, in the memory of `x` if no gradient is needed: new memory takes longer than the function."""
    if torch.is_grad_enabled() or is_exporting():
        return F.gelu(x)
    out: Tensor = torch.ops.aten.gelu_(x)
    return out
