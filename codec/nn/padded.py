"""The layers of EnCodec, whose convolutions pad a signal at both ends, chunk by chunk (`Delayed`).

Signals are [batch, time, channels] here, because every convolution is then a sum of matrix products with views of its
input, without copies. Kernel 4, stride 2, on the samples a b c d e f:

    blocks of 2    (a b)  (c d)  (e f)
    y0 =           (a b) W0 + (c d) W1
    y1 =                      (c d) W0 + (e f) W1

EnCodec pads each convolution by reflection, so its first output needs samples up to `left` after the first one:

    causal, kernel 4, stride 1:    d c b [ a b c d e f
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.init import trunc_normal_
from codec.nn.streaming import Checkpointable, Delayed, State

Padding: TypeAlias = Literal["reflect", "constant"]
NARROW = 16  # most input channels times kernel for which the windows of a convolution are copied into one matrix

FEW = 4  # most frames of a chunk that the LSTM computes frame by frame
LANES = 8  # of the LSTM, side by side
WARM_UP = 64  # frames that a lane computes before its first output
ROUNDING = 1e-6  # largest difference between states that count as equal


class Style(NamedTuple):
    """Settings that all convolutions of a model share."""

    causal: bool
    padding: Padding
    group_norm: bool = False
    """Normalize after each convolution, over time; signals must be whole then."""


class ConvState(NamedTuple):
    """Samples that later windows need; before the signal is `padded` at its beginning, all samples so far."""

    held: Tensor
    padded: bool


def pad_ends(x: Tensor, left: int, right: int, padding: Padding) -> Tensor:
    """Pad x [batch, time, channels] at both ends.

    A signal that is too short to be reflected is extended with zeros first, which are cut off at the end.
    """
    if padding == "constant":
        return F.pad(x, (0, 0, left, right))
    time = x.shape[1]
    missing = max(0, max(left, right) + 1 - time)
    if missing:
        x = F.pad(x, (0, 0, 0, missing))
    last = x.shape[1] - 1
    parts = [x[:, 1 : left + 1].flip(1), x, x[:, last - right : last].flip(1)]
    return torch.cat(parts, dim=1)[:, : left + time + right]


def products(factors: Sequence[tuple[Tensor, Tensor]], bias: Tensor) -> Tensor:
    """The sum of all x @ weight, x [batch, frames, in] and weight [in, out], and the bias: [batch, frames, out]."""
    (x, weight), *others = factors
    if torch.is_grad_enabled():
        return sum((x @ weight for x, weight in others), x @ weight + bias)
    y = x.new_empty(len(x), x.shape[1], weight.shape[1])
    for row, own in enumerate(y):  # row by row, because the rows of a view are matrices without a copy
        torch.addmm(bias, x[row], weight, out=own)
        for other, factor in others:
            own.addmm_(other[row], factor)
    return y


def elu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The ELU of a signal, max(x, exp(min(x, 0)) - 1), because `F.elu` takes three times as long on a CPU.

    The error is below 6e-8: `F.elu` also keeps the relative precision of results near 0, which sums with larger numbers
    lose. The result is written to `out` if it is given, without gradients only.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu":
        return F.elu(x) if out is None else out.copy_(F.elu(x))
    y = torch.clamp(x, max=0, out=out).exp_().sub_(1)
    return torch.maximum(x, y, out=y)


class ELU(Delayed):
    """The activation, for each sample alone."""

    def initial_state(self, like: Tensor) -> State:
        return ()

    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, State]:
        return elu(x), state

    def needs(self, output: int) -> int:
        return output


class GroupNorm(nn.Module):
    """Normalization of a whole signal over time and channels (Wu and He 2018, with one group)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(x, dim=(1, 2), correction=0, keepdim=True)  # [batch, 1, 1]
        scale = self.weight * (variance + 1e-5).rsqrt()
        return torch.addcmul(self.bias - mean * scale, x, scale)


class PaddedConv1d(Delayed):
    """Convolution of x [batch, time, in_channels] to one output sample per `stride` samples, the last ones incomplete.

    A causal convolution pads kernel - stride samples on the left, others half of it on either side. The end is padded
    until a window takes in the last sample.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        style: Style,
        *,
        stride: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        assert kernel % stride == 0
        assert stride == 1 or dilation == 1
        self.stride = stride
        self.dilation = dilation
        self.padding: Padding = style.padding
        self.span = (kernel - 1) * dilation + 1
        self.right = 0 if style.causal else (self.span - stride) // 2
        self.left = self.span - stride - self.right
        self.kept = max(self.left, stride if self.right else 0)  # samples before a window that the end may reflect
        self.at_least = max(self.left, self.right + stride - 1) + 1 if self.padding == "reflect" else 0
        # stored as [kernel, in, out], so that the taps are matrices
        self.weight = nn.Parameter(torch.empty(kernel, in_channels, out_channels).permute(2, 1, 0))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.norm = GroupNorm(out_channels) if style.group_norm else None
        trunc_normal_(self.weight, std=(in_channels * kernel) ** -0.5)

    def initial_state(self, like: Tensor) -> ConvState:
        return ConvState(like.new_zeros(len(like), 0, self.weight.shape[1]), padded=False)

    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, ConvState]:
        assert self.norm is None or (last and not state.held.shape[1])
        x = torch.cat([state.held, x], dim=1)
        before = self.kept - self.left
        if state.padded:
            x = pad_ends(x, 0, self.missing(x.shape[1] - self.kept), self.padding) if last else x
        elif last:  # the whole signal
            before = 0
            x = pad_ends(x, self.left, self.missing(x.shape[1]), self.padding) if x.shape[1] else x
        elif x.shape[1] < self.at_least:
            return x.new_zeros(len(x), 0, len(self.weight)), ConvState(x, padded=False)
        else:
            x = pad_ends(x, self.kept, 0, self.padding)
        frames = max(0, (x.shape[1] - before - self.span) // self.stride + 1)
        held = x[:, frames * self.stride :]
        return self.conv(x[:, before:], frames), ConvState(held.clone(), padded=True)

    def needs(self, output: int) -> int:
        return max(self.at_least - 1, output * self.stride + self.span - 1 - self.left)

    def missing(self, rest: int) -> int:
        """Samples to add at the end of a signal so that windows begin with each `stride` of the `rest` samples."""
        frames = -(-rest // self.stride)
        return max(0, (frames - 1) * self.stride + self.span - self.left - rest)

    def taps(self) -> Tensor:
        """The weight [kernel / stride, stride * in, out]."""
        weight = self.weight.permute(2, 1, 0)  # [kernel, in, out]
        return weight.reshape(len(weight) // self.stride, -1, weight.shape[2])

    def conv(self, x: Tensor, frames: int) -> Tensor:
        """The convolution of padded samples [batch, time, in_channels], normalized if the layer has a norm."""
        if not frames:
            return x.new_zeros(len(x), 0, len(self.weight))
        taps = self.taps()
        kernel, inputs, _ = taps.shape
        if self.stride > 1:
            x = x[:, : (frames + kernel - 1) * self.stride].view(len(x), -1, inputs)
        if kernel > 1 and kernel * inputs <= NARROW and self.dilation == 1:  # one product with copied windows
            windows = x.flatten(1).unfold(1, kernel * inputs, inputs)[:, :frames]
            y = products([(windows.contiguous(), taps.flatten(0, 1))], self.bias)
        else:
            firsts = range(0, kernel * self.dilation, self.dilation)
            y = products([(x[:, i : i + frames], tap) for i, tap in zip(firsts, taps, strict=True)], self.bias)
        return y if self.norm is None else self.norm(y)


class TransposedState(NamedTuple):
    """The last input sample, and the output samples that are still to be cut off at the beginning."""

    previous: Tensor
    early: int


class TrimmedConvTranspose1d(Delayed):
    """Transposed convolution with kernel 2 * stride: a block of `stride` output samples for each input sample.

    The one block too many is cut off on the right by a causal layer, half on either side by others.
    """

    def __init__(self, in_channels: int, out_channels: int, style: Style, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.right = stride if style.causal else stride // 2
        # stored as [in, kernel, out], so that a block is the product with a matrix
        self.weight = nn.Parameter(torch.empty(in_channels, 2 * stride, out_channels).permute(0, 2, 1))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.norm = GroupNorm(out_channels) if style.group_norm else None
        trunc_normal_(self.weight, std=(2 * in_channels) ** -0.5)

    def initial_state(self, like: Tensor) -> TransposedState:
        return TransposedState(like.new_zeros(len(like), 1, len(self.weight)), self.stride - self.right)

    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, TransposedState]:
        more = last and self.right < self.stride  # a part of the block after the last input
        if not x.shape[1] and (not more or state.early):
            return x.new_zeros(len(x), 0, len(self.bias)), state
        x = torch.cat([state.previous, x], dim=1)
        previous = x[:, -1:].clone()
        if more:
            x = F.pad(x, (0, 0, 0, 1))
        first, second = self.weight.permute(0, 2, 1).flatten(1).chunk(2, dim=1)  # [in, stride * out]
        y = products([(x[:, :-1], second), (x[:, 1:], first)], self.bias.repeat(self.stride))
        y = y.view(len(y), -1, len(self.bias))
        if self.norm is not None:
            y = self.norm(y)
        end = y.shape[1] - (self.right if more else 0)
        return y[:, state.early : end], TransposedState(previous, 0)

    def needs(self, output: int) -> int:
        return (output + self.stride - self.right) // self.stride


class LSTM(Delayed):
    """A stack of LSTM layers, added to the input.

    Computing one frame at a time reads all weights for little arithmetic. Therefore a long signal of one row is divided
    into `LANES` lanes that run side by side; each lane but the first begins `WARM_UP` frames early, from zero:

        lane 0    |-------|
        lane 1          ..|-------|            . warm-up
        lane 2                  ..|-------|

    An LSTM that forgets has the same state at a | as the lane before it, up to rounding. The layer checks each lane;
    lanes that begin with another state are computed again from the ends of the lanes before them, until all lanes meet.
    Each round completes at least one more lane, so the result is that of all frames in order.
    """

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, layers, batch_first=True)

    def initial_state(self, like: Tensor) -> State:
        zeros = like.new_zeros(self.lstm.num_layers, len(like), self.lstm.hidden_size)
        return zeros, zeros

    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, State]:
        if not x.shape[1]:
            return x, state
        if len(x) == 1 and x.shape[1] >= LANES * WARM_UP and x.device.type == "cpu" and not torch.is_grad_enabled():
            y, state = self.in_lanes(x, state)
        elif x.shape[1] <= FEW and x.device.type == "cpu" and not torch.is_grad_enabled():
            y, state = self.frame_by_frame(x, state)
        else:
            y, state = self.lstm(x, state)
        return y + x if torch.is_grad_enabled() else y.add_(x), state

    def frame_by_frame(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Output and state of the LSTM for a few frames, because `nn.LSTM` copies all weights first on a CPU."""
        weights = self.lstm.all_weights
        layers = [(hidden, cell) for hidden, cell in zip(*state, strict=True)]
        outputs = []
        for frame in x.unbind(1):
            for number, layer in enumerate(layers):
                layers[number] = torch.lstm_cell(frame, layer, *weights[number])
                frame = layers[number][0]
            outputs.append(frame)
        hidden, cell = zip(*layers, strict=True)
        return torch.stack(outputs, dim=1), (torch.stack(hidden), torch.stack(cell))

    def in_lanes(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """Output and state of the LSTM for x [1, frames, channels] by lanes."""
        size = x.shape[1] // LANES
        lanes = x[0, : LANES * size].view(LANES, size, -1)
        _, warm = self.lstm(lanes[:-1, size - WARM_UP :])
        begins = tuple(torch.cat([first, later], dim=1) for first, later in zip(state, warm, strict=True))
        y, ends = self.lstm(lanes, begins)
        while wrong := [lane for lane in range(1, LANES) if not self.meets(ends, begins, lane)]:
            for begin, end in zip(begins, ends, strict=True):
                begin[:, wrong] = end[:, [lane - 1 for lane in wrong]]
            y[wrong], again = self.lstm(lanes[wrong], tuple(begin[:, wrong] for begin in begins))
            for end, other in zip(ends, again, strict=True):
                end[:, wrong] = other
        state = tuple(end[:, -1:].contiguous() for end in ends)
        y = y.reshape(1, LANES * size, -1)
        if LANES * size == x.shape[1]:
            return y, state
        rest, state = self.lstm(x[:, LANES * size :], state)
        return torch.cat([y, rest], dim=1), state

    def meets(self, ends: Sequence[Tensor], begins: Sequence[Tensor], lane: int) -> bool:
        """Whether a lane began with the state that the lane before it ended with."""
        return all(
            torch.allclose(begin[:, lane], end[:, lane - 1], rtol=ROUNDING, atol=ROUNDING)
            for begin, end in zip(begins, ends, strict=True)
        )

    def needs(self, output: int) -> int:
        return output


class UnitState(NamedTuple):
    """State of the first convolution, and the samples that still have to be added to its output."""

    conv: ConvState
    skip: Tensor


class ResidualUnit(Checkpointable, Delayed):
    """Two convolutions after ELU activations, the first one dilated, added to the input or a projection of it."""

    def __init__(
        self, channels: int, hidden: int, kernel: int, style: Style, *, dilation: int = 1, shortcut: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = PaddedConv1d(channels, hidden, kernel, style, dilation=dilation)
        self.conv2 = PaddedConv1d(hidden, channels, 1, style)
        self.shortcut = PaddedConv1d(channels, channels, 1, style) if shortcut else None

    def initial_state(self, like: Tensor) -> UnitState:
        return UnitState(self.conv1.initial_state(like), like.new_zeros(len(like), 0, self.conv1.weight.shape[1]))

    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, UnitState]:
        return self.recomputed(self.whole_step, x, state, last=last)

    def whole_step(self, x: Tensor, state: UnitState, *, last: bool) -> tuple[Tensor, UnitState]:
        """One step without checkpointing."""
        y, conv = self.conv1.step(elu(x), state.conv, last=last)
        if state.skip.shape[1]:
            x = torch.cat([state.skip, x], dim=1)
        frames = y.shape[1]
        return self.added(x[:, :frames], elu(y)), UnitState(conv, x[:, frames:].clone())

    def needs(self, output: int) -> int:
        return self.conv1.needs(output)

    def added(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The output from input and activated hidden samples of the same times."""
        frames = x.shape[1]
        if self.shortcut is None:
            return x + self.conv2.conv(hidden, frames)
        if self.conv2.norm is not None:
            return self.shortcut.conv(x, frames) + self.conv2.conv(hidden, frames)
        bias = self.shortcut.bias + self.conv2.bias
        return products([(x, self.shortcut.taps()[0]), (hidden, self.conv2.taps()[0])], bias)
