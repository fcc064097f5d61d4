"""The invariants of streaming for every layer with a state; in float64, so that rounding errors are below 1e-9."""

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from codec.nn.conv import CausalConv1d, ConvNeXtBlock
from codec.nn.streaming import Chain, State, Stateful

CHANNELS = 4


class Case(NamedTuple):
    make: Callable[[], Stateful]
    hop: int = 1
    """A chunk is a multiple of this long."""
    rate: float = 1
    """Samples out per sample in."""


def down() -> CausalConv1d:
    return CausalConv1d(CHANNELS, CHANNELS, kernel=5, stride=2)


def block() -> ConvNeXtBlock:
    return ConvNeXtBlock(CHANNELS, kernel=5, expansion=2, scale=0.5)


CASES = {
    "convolution": Case(lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=4)),
    "pointwise convolution": Case(lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=1)),
    "strided convolution": Case(down, 2, 1 / 2),
    "convolution without overlap": Case(lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=3, stride=3), 3, 1 / 3),
    "dilated convolution in groups": Case(
        lambda: CausalConv1d(CHANNELS, CHANNELS, kernel=3, stride=2, dilation=3, groups=2, bias=False), 2, 1 / 2
    ),
    "ConvNeXt block": Case(block),
    "chain": Case(lambda: Chain([down(), nn.Tanh(), Chain([down(), block()]), block()]), 4, 1 / 4),
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
def test_chunks_of_any_size_give_the_same_output(name: str, hops: list[int]) -> None:
    layer, x = LAYERS[name], signal(name, sum(hops))
    state = layer.initial_state(x)
    outputs = []
    for chunk in cut(x, name, hops):
        y, state = layer.step(chunk, state)
        assert y.shape == (2, CHANNELS, round(chunk.shape[-1] * CASES[name].rate))
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=-1), layer(x), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@every_layer
@settings(max_examples=25)
@given(hops=chunk_sizes)
def test_interleaved_streams_equal_separate_streams(name: str, hops: list[int]) -> None:
    layer = LAYERS[name]
    signals = [signal(name, sum(hops), seed) for seed in (1, 2)]
    states = [layer.initial_state(x) for x in signals]
    outputs: list[list[Tensor]] = [[], []]
    for chunks in zip(*(cut(x, name, hops) for x in signals), strict=True):
        for stream, chunk in enumerate(chunks):
            y, states[stream] = layer.step(chunk, states[stream])
            outputs[stream].append(y)
    for x, ys in zip(signals, outputs, strict=True):
        torch.testing.assert_close(torch.cat(ys, dim=-1), layer(x), rtol=1e-9, atol=1e-9)


@every_layer
@settings(max_examples=25)
@given(past=st.integers(0, 8), future=st.integers(1, 8))
def test_the_future_never_changes_the_past(name: str, past: int, future: int) -> None:
    layer, x = LAYERS[name], signal(name, past + future)
    changed = x.clone()
    changed[..., past * CASES[name].hop :] = torch.nan
    known = round(past * CASES[name].hop * CASES[name].rate)
    torch.testing.assert_close(layer(changed)[..., :known], layer(x)[..., :known], rtol=1e-9, atol=1e-9)
    assert layer(changed)[..., known:].isnan().any()


@every_layer
def test_the_output_depends_on_the_last_sample(name: str) -> None:
    """There is no delay: the output of a hop depends on its last sample."""
    layer, x = LAYERS[name], signal(name, 6)
    changed = x.clone()
    changed[..., -1] += 1
    last = max(1, round(CASES[name].hop * CASES[name].rate))
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
def test_rows_of_a_batch_are_independent(name: str) -> None:
    layer, x = LAYERS[name], signal(name, 5)
    torch.testing.assert_close(layer(x)[1:], layer(x[1:]), rtol=1e-9, atol=1e-9)
