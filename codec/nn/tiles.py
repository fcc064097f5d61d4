"""Layers that keep the length of a signal, computed tile by tile."""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 1 << 19  # numbers in a tile: few enough for the cache of a CPU core, and many, because a tile reorders weights
LEAST = 512  # samples of a tile, so that the context around it costs little


def in_tiles(layer: Callable[[Tensor], Tensor], x: Tensor, *, context: int) -> Tensor:
    """`layer(x)` for x [batch, channels, time], computed in tiles with `context` samples to either side.

    A tile has at least `LEAST` samples. The layer keeps the shape of x, and none of its samples depends on inputs
    farther away than `context`. Large intermediate results cost more time than the arithmetic on a CPU; with gradients,
    or on other devices, x is one tile.
    """
    time = x.shape[-1]
    tile = max(LEAST, TILE // x.shape[1], 8 * context)
    if time <= tile + tile // 2 or x.device.type != "cpu" or torch.is_grad_enabled():
        return layer(x)
    out = torch.empty_like(x)
    for begin in range(0, time, tile):
        end, first = min(begin + tile, time), max(0, begin - context)
        part = layer(x[..., first : min(end + context, time)])
        out[..., begin:end] = part[..., begin - first : begin - first + end - begin]
    return out
