"""Convolutions as matrix products equal torch's."""

import pytest
import torch
from torch import Tensor, nn

from codec.nn import tiles
from codec.nn.products import (
    Layer,
    by_products,
    by_tiles,
    conv,
    in_turn,
    of_each,
    residual_unit,
    snake,
    strided_conv,
    transposed_conv,
)
from codec.nn.snake import Snake
from codec.nn.tiles import in_tiles


def noise(channels: int, time: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, channels, time, generator=torch.Generator().manual_seed(time))


@torch.no_grad()
def assert_same(products: Layer, layer: nn.Module, channels: int, time: int) -> None:
    x = noise(channels, time, batch=2)
    found = of_each(products, x.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(found, layer(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("time", [1, 5, 300])
@pytest.mark.parametrize("dilation", [1, 9])
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "groups"), [(6, 8, 7, 1), (1, 8, 7, 1), (8, 1, 7, 1), (6, 6, 7, 6), (8, 6, 1, 1)]
)
def test_convolution(inputs: int, outputs: int, kernel: int, groups: int, dilation: int, time: int) -> None:
    padding = dilation * (kernel // 2)
    layer = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=padding, groups=groups)
    assert_same(conv(layer), layer, inputs, time)


def test_convolution_without_a_bias() -> None:
    layer = nn.Conv1d(6, 6, 1, bias=False)
    assert_same(conv(layer), layer, 6, 50)


@pytest.mark.parametrize("frames", [1, 7, 300])
@pytest.mark.parametrize("stride", [2, 5])
def test_transposed_convolution(stride: int, frames: int) -> None:
    layer = nn.ConvTranspose1d(6, 4, 2 * stride, stride=stride, padding=-(-stride // 2), output_padding=stride % 2)
    assert_same(transposed_conv(layer), layer, 6, frames)


@pytest.mark.parametrize("frames", [1, 7, 300])
@pytest.mark.parametrize("stride", [2, 5])
def test_strided_convolution(stride: int, frames: int) -> None:
    layer = nn.Conv1d(6, 8, 2 * stride, stride=stride, padding=-(-stride // 2))
    assert_same(strided_conv(layer), layer, 6, frames * stride)


def test_residual_unit_and_activation() -> None:
    first, second = Snake(6), Snake(6)
    with torch.no_grad():
        first.alpha.copy_(noise(6, 1))
        first.alpha[0, 3] = 0  # the activation is the identity then
    conv1, conv2 = nn.Conv1d(6, 6, 7, padding=9, dilation=3), nn.Conv1d(6, 6, 1)
    inner = nn.Sequential(first, conv1, second, conv2)
    x = noise(6, 40)
    with torch.no_grad():
        found = residual_unit(first, conv1, second, conv2)(x[0].T).T
        torch.testing.assert_close(found, (x + inner(x))[0])
        assert torch.equal(snake(first)(x[0].T)[:, 3], x[0, 3])


def test_products_are_for_evaluation_on_cpus_without_gradients() -> None:
    network = nn.Identity().eval()
    assert not by_products(network, noise(1, 1))
    with torch.no_grad():
        assert by_products(network, noise(1, 1))
        assert not by_products(network, noise(1, 1).to("meta"))
        assert not by_products(network.train(), noise(1, 1))


@pytest.mark.parametrize("time", [1, 30, 1000])
def test_tiles_of_levels_equal_the_whole(time: int) -> None:
    first, second = nn.Conv1d(4, 4, 7, padding=3), nn.Conv1d(4, 6, 6, stride=3, padding=2)
    up = nn.ConvTranspose1d(6, 4, 4, stride=2, padding=1)
    level = in_turn(conv(first), strided_conv(second))
    begins: list[int] = []

    def larger(part: Tensor, begin: int) -> Tensor:
        begins.append(begin)
        return transposed_conv(up)(part)

    x = noise(4, 3 * time)
    with torch.no_grad():
        found = by_tiles(lambda part, _: level(part), x[0].T, width=4, context=9, down=3, tile=64)
        torch.testing.assert_close(found.T, second(first(x))[0], rtol=0, atol=1e-5)
        again = by_tiles(larger, found, width=8, context=1, up=2, tile=64)
        torch.testing.assert_close(again.T, up(found.T[None])[0], rtol=0, atol=1e-5)
    assert begins == ([max(0, begin - 1) for begin in range(0, time, 8)] if time > 12 else [0])


@pytest.mark.parametrize("time", [1, 500, 4000, 13_107])
def test_tiles_equal_the_whole(time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 1 << 12)
    layer = nn.Conv1d(4, 4, 7, dilation=9, padding=27)
    x = noise(4, time)
    with torch.no_grad():
        torch.testing.assert_close(in_tiles(layer, x, context=27), layer(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("stride", [2, 5])
@pytest.mark.parametrize("frames", [1, 200, 1300])
def test_tiles_of_a_strided_layer_equal_the_whole(frames: int, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 1 << 12)
    first = nn.Conv1d(4, 4, 7, dilation=9, padding=27)
    second = nn.Conv1d(4, 8, 2 * stride, stride=stride, padding=-(-stride // 2))
    times = []

    def layer(part: Tensor) -> Tensor:
        times.append(part.shape[2])
        out: Tensor = second(first(part))
        return out

    x = noise(4, frames * stride)
    with torch.no_grad():
        found = in_tiles(layer, x, context=27 + stride, down=stride)
        torch.testing.assert_close(found, second(first(x)), rtol=0, atol=1e-6)
    assert found.shape == (1, 8, frames)
    assert (len(times) > 1) == (frames == 1300)
