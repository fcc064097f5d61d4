"""What processes that train one model together say to each other. A process alone agrees with itself at no cost.

Rows of a batch lie in the order of the processes: of 6 rows, process 1 of 3 has rows 2 and 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 does what only one should."""
    return dist.get_rank() if count() > 1 else 0


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place, the same bits in each of them."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def first_row(rows: int, like: Tensor) -> tuple[int, int]:
    """(number of this process's first row, number of all rows) where this process has `rows` of them."""
    if count() == 1:
        return 0, rows
    shares = torch.zeros(count(), dtype=torch.int64, device=like.device)
    shares[rank()] = rows
    before = summed(shares).cumsum(dim=0).tolist()
    return before[rank()] - rows, before[-1]


def joined(rows: Tensor) -> Tensor:
    """The rows [rows, ...] of all processes, which may have different numbers of them."""
    if count() == 1:
        return rows
    first, total = first_row(len(rows), rows)
    whole = rows.new_zeros(total, *rows.shape[1:])
    whole[first : first + len(rows)] = rows
    return summed(whole)


@torch.no_grad()
def same_everywhere(*tensors: Tensor) -> None:
    """Overwrite tensors with those of process 0."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether it is so in any process."""
    return flag if count() == 1 else bool(summed(torch.tensor(float(flag), device=device)))
