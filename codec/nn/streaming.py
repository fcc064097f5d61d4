"""Streaming as the definition of a layer.

A `Stateful` layer is a function of a chunk and a state:

    y, state = layer.step(x, state)

Invariants; each is a property test:

1. `forward(x)` is one step from the initial state; there is no other implementation.
2. Chunks of any size that the layer allows (multiples of its stride) give the same y, chunk by chunk.
3. The state is a value: stepping twice from one state gives the same answer twice, and two streams share nothing.
4. The future never changes the past: y up to a chunk depends on nothing after it.

        x:      |--- chunk 0 ---|-- chunk 1 --|---- chunk 2 ----|
        state:  s0 -----------> s1 ---------> s2 -------------> s3
        y:      |--- chunk 0 ---|-- chunk 1 --|---- chunk 2 ----|
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

State: TypeAlias = Any
"""A tensor, or a (named) tuple of states; `()` for a layer without state."""


Value = TypeVar("Value")


def ordinary(value: Value) -> Value:
    """Copy a tensor, or a tuple of tensors and states, so that no copy is an inference tensor.

    PyTorch refuses to save an inference tensor for a backward pass, or to write to it outside inference mode, far from
    where it was created. The mode saves a tenth of the time per frame, so results are copied here instead.
    """
    with torch.inference_mode(False):
        copy: Value = _copied(value)
        return copy


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, tuple):
        parts = [_copied(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


class Checkpointable(nn.Module):
    """A block whose activations can be computed again in the backward pass, which saves memory."""

    checkpointed = False
    """Activation checkpointing: keep only the inputs."""

    def recomputed(self, function: Callable[..., Value], *inputs: Any, **options: Any) -> Value:
        """`function(*inputs, **options)` without random numbers, computed again in the backward pass if so set."""
        if not (self.checkpointed and torch.is_grad_enabled()):
            return function(*inputs, **options)
        output: Value = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        return output


class Stateful(nn.Module):
    """A causal layer that runs chunk by chunk."""

    @abstractmethod
    def initial_state(self, like: Tensor) -> State:
        """The state before the first sample, with the batch size, device and dtype of `like` [batch, ...]."""

    @abstractmethod
    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The output for this chunk and the state after it. Changes neither `x` nor `state`."""

    def forward(self, x: Tensor) -> Tensor:
        """One step from the initial state."""
        return self.step(x, self.initial_state(x))[0]


class Chain(Stateful):
    """Layers in sequence; layers that are not `Stateful` must act on each frame independently."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def initial_state(self, like: Tensor) -> State:
        return tuple(layer.initial_state(like) if isinstance(layer, Stateful) else () for layer in self.layers)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            if isinstance(layer, Stateful):
                x, before = layer.step(x, before)
            else:
                x = layer(x)
            after.append(before)
        return x, tuple(after)


class Delayed(nn.Module):
    """A layer of x [batch, time, channels] whose output may need later samples, up to the end of the signal.

        y, state = layer.step(x, state, last=False)

    `last` says that the signal ends with the chunk. `forward(x)` is one step from the initial state that is also the
    last. Chunks of any size give the same y in total, but a step gives only what is certain, and the last step all that
    remains. A state is a value here too; after the last step it is of no use.
    """

    @abstractmethod
    def initial_state(self, like: Tensor) -> State:
        """The state before the first sample, with the batch size, device and dtype of `like` [batch, ...]."""

    @abstractmethod
    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, State]:
        """The output that is certain after this chunk, and the state. Changes neither `x` nor `state`."""

    @abstractmethod
    def needs(self, output: int) -> int:
        """Index of the last input sample that an output sample waits for in a long signal."""

    def forward(self, x: Tensor) -> Tensor:
        """One step, the first and the last."""
        return self.step(x, self.initial_state(x), last=True)[0]


class DelayedChain(Delayed):
    """`Delayed` layers in sequence.

    A step of more than `tile` samples is divided into steps of `tile` samples, because their signals then stay in the
    cache of a CPU core. With gradients, or elsewhere, it is not divided.
    """

    def __init__(self, layers: Iterable[Delayed], *, tile: int | None = None) -> None:
        super().__init__()
        self.layers = cast(Sequence[Delayed], nn.ModuleList(layers))
        self.tile = tile

    def initial_state(self, like: Tensor) -> State:
        return tuple(layer.initial_state(like) for layer in self.layers)

    def step(self, x: Tensor, state: State, *, last: bool = False) -> tuple[Tensor, State]:
        tile, time = self.tile or x.shape[1], x.shape[1]
        if time <= tile or torch.is_grad_enabled() or x.device.type != "cpu":
            return self.whole_step(x, state, last=last)
        parts = []
        for first in range(0, time, tile):
            y, state = self.whole_step(x[:, first : first + tile], state, last=last and first + tile >= time)
            parts.append(y)
        return torch.cat(parts, dim=1), state

    def whole_step(self, x: Tensor, state: State, *, last: bool) -> tuple[Tensor, State]:
        """One step, not divided."""
        after = []
        for layer, before in zip(self.layers, state, strict=True):
            x, own = layer.step(x, before, last=last)
            after.append(own)
        return x, tuple(after)

    def needs(self, output: int) -> int:
        for layer in reversed(self.layers):
            output = layer.needs(output)
        return output
