"""Layers computed tile by tile, because the memory of a tile stays in the cache of a CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 1 << 21  # elements of a tile: few enough to reuse their memory, and many, because each tile reorders the weights
LEAST = 512  # fewest samples of a tile, so that the context around it costs little


def in_tiles(layer: Callable[[Tensor], Tensor], x: Tensor, *, context: int, down: int = 1) -> Tensor:
    """`layer(x)` for x [batch, channels, time], computed in tiles with `context` samples to either side.

    The layer gives one sample for `down` of x, and none of them depends on inputs farther away than `context`. A tile
    has at least `LEAST` samples. On a CPU, large intermediate results would cost more time than the arithmetic, because
    the system gives and clears memory for each; with gradients, or on other devices, x is one tile.
    """
    time = x.shape[-1]
    tile = -(-max(LEAST, TILE // x.shape[1], 8 * context) // down) * down
    if time <= tile + tile // 2 or x.device.type != "cpu" or torch.is_grad_enabled():
        return layer(x)
    context = -(-context // down) * down
    out = None
    for begin in range(0, time, tile):
        end, first = min(begin + tile, time), max(0, begin - context)
        part = layer(x[..., first : min(end + context, time)])
        if out is None:
            out = part.new_empty(len(part), part.shape[1], time // down)
        of_tile = out[..., begin // down : end // down]
        before = (begin - first) // down
        of_tile.copy_(part[..., before : before + of_tile.shape[-1]])
    assert out is not None
    return out
