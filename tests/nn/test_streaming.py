"""The laws of streaming, for every layer that has a state; in float64, where only a wrong layer differs by 1e-9."""

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codec.nn.conv import CausalConv1d, CausalConvTranspose1d, ConvNeXtBlock, ResidualUnit, Snake
from codec.nn.streaming import Chain, State, Stateful

CHANNELS = 4


class Case(NamedTuple):
    make: Callable[[], Stateful]
    hop: int = 1
    """A chunk holds a multiple of this."""
    made: float = 1
    """Samples out per sample in."""


def down() -> CausalConv1d:
    return CausalConv1d(CHANNELS, CHANNELS, kernel=5, stride=2)


def up(kernel: int) -> CausalConvTranspose1d:
    return CausalConvTranspose1d(CHANNELS, CHANNELS, kernel=kernel, stride=2)


CASES = {
    "convolution": Case(lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=4)),
    "pointwise convolution": Case(lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=1)),
    "strided convolution": Case(down, 2, 1 / 2),
    "convolution without overlap": Case(lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=3, stride=3), 3, 1 / 3),
    "dilated convolution in groups": Case(
        lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=3, stride=2, dilation=3, groups=2, bias=False), 2, 1 / 2
    ),
    "transposed convolution": Case(lambda: up(4), 1, 2),
    "transposed convolution over three frames": Case(lambda: up(6), 1, 2),
    "transposed convolution without overlap": Case(lambda: up(2), 1, 2),
    "residual unit": Case(lambda: ResidualUnit(CHANNELS, kernel=3, dilation=2)),
    "ConvNeXt block": Case(lambda: ConvNeXtBlock(CHANNELS, kernel=5, expansion=2, scale=0.5)),
    "chain": Case(lambda: Chain([down(), Snake(CHANNELS), ResidualUnit(CHANNELS), Chain([down(), up(4)]), up(4)]), 4),
    "empty chain": Case(lambda: Chain([])),
}
LAYERS = {name: case.make().double() for name, case in CASES.items()}
for layer in LAYERS.values():
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(parameter.numel()))

every_layer = pytest.mark.parametrize("name", CASES)
chunk_sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6)
"""In hops."""


def signal(name: str, hops: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, CHANNELS, hops * CASES[name].hop, generator=generator, dtype=torch.float64)


def cut(x: Tensor, name: str, hops: list[int]) -> list[Tensor]:
    ends = [0, *(end * CASES[name].hop for end in accumulate(hops))]
    return [x[..., begin:end] for begin, end in pairwise(ends)]


def leaves(state: State) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    else:
        for inner in state:
            yield from leaves(inner)


@every_layer
@settings(max_examples=25)
@given(hops=chunk_sizes)
def test_any_way_of_cutting_gives_the_same(name: str, hops: list[int]) -> None:
    layer, x = LAYERS[name], signal(name, sum(hops))
    state = layer.initial_state(x)
    made = []
    for chunk in cut(x, name, hops):
        y, state = layer.step(chunk, state)
        assert y.shape == (2, CHANNELS, round(chunk.shape[-1] * CASES[name].made))
        made.append(y)
    torch.testing.assert_close(torch.cat(made, dim=-1), layer(x), rtol=1e-9, atol=1e-9)


@every_layer
@settings(max_examples=25)
@given(hops=chunk_sizes)
def test_two_interleaved_streams_are_two_alone(name: str, hops: list[int]) -> None:
    layer = LAYERS[name]
    signals = [signal(name, sum(hops), seed) for seed in (1, 2)]
    states = [layer.initial_state(x) for x in signals]
    made: list[list[Tensor]] = [[], []]
    for chunks in zip(*(cut(x, name, hops) for x in signals), strict=True):
        for stream, chunk in enumerate(chunks):
            y, states[stream] = layer.step(chunk, states[stream])
            made[stream].append(y)
    for x, ys in zip(signals, made, strict=True):
        torch.testing.assert_close(torch.cat(ys, dim=-1), layer(x), rtol=1e-9, atol=1e-9)


@every_layer
@settings(max_examples=25)
@given(past=st.integers(0, 8), future=st.integers(1, 8))
def test_the_future_never_changes_the_past(name: str, past: int, future: int) -> None:
    layer, x = LAYERS[name], signal(name, past + future)
    changed = x.clone()
    changed[..., past * CASES[name].hop :] = torch.nan
    known = round(past * CASES[name].hop * CASES[name].made)
    torch.testing.assert_close(layer(changed)[..., :known], layer(x)[..., :known], rtol=1e-9, atol=1e-9)
    assert layer(changed)[..., known:].isnan().any()


@every_layer
def test_the_present_is_seen_at_once(name: str) -> None:
    """No frame of delay: what comes out with a hop depends on it."""
    layer, x = LAYERS[name], signal(name, 6)
    changed = x.clone()
    changed[..., -1] += 1
    last = max(1, round(CASES[name].hop * CASES[name].made))
    assert not torch.allclose(layer(changed)[..., -last:], layer(x)[..., -last:], atol=1e-3)


@every_layer
def test_state_is_a_value(name: str) -> None:
    layer, x = LAYERS[name], signal(name, 7)
    first, second = cut(x, name, [4, 3])
    _, state = layer.step(first, layer.initial_state(x))
    kept, given_chunk = [leaf.clone() for leaf in leaves(state)], second.clone()
    once, after_once = layer.step(second, state)
    twice, after_twice = layer.step(second, state)
    assert torch.equal(once, twice)
    for before, now in zip(kept, leaves(state), strict=True):
        assert torch.equal(before, now)
    for one, other in zip(leaves(after_once), leaves(after_twice), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(second, given_chunk)


@every_layer
def test_a_row_of_the_batch_is_a_stream_of_its_own(name: str) -> None:
    layer, x = LAYERS[name], signal(name, 5)
    torch.testing.assert_close(layer(x)[1:], layer(x[1:]), rtol=1e-9, atol=1e-9)
