"""Collective operations for data-parallel training; each is a no-op with one process.

The rows of a batch are distributed in rank order: of 6 rows, process 1 of 3 has rows 2 and 3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch import distributed as dist


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; process 0 does what only one process should do."""
    return dist.get_rank() if count() > 1 else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all processes, in place; every process gets the same bits."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Average over all processes, in place; every process gets the same bits."""
    if count() > 1:
        dist.all_reduce(values)
        values /= count()
    return values


def first_row(rows: int, like: Tensor) -> tuple[int, int]:
    """(index of this process's first row, rows of all processes) if this process has `rows` rows."""
    if count() == 1:
        return 0, rows
    shares = torch.zeros(count(), dtype=torch.int64, device=like.device)
    shares[rank()] = rows
    ends = all_reduce_sum(shares).cumsum(dim=0).tolist()
    return ends[rank()] - rows, ends[-1]


def all_gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows [rows, ...] of all processes in rank order; each process may have another number of rows."""
    if count() == 1:
        return rows
    first, total = first_row(len(rows), rows)
    whole = rows.new_zeros(total, *rows.shape[1:])
    whole[first : first + len(rows)] = rows
    return all_reduce_sum(whole)


@torch.no_grad()
def broadcast_(*tensors: Tensor) -> None:
    """Overwrite the tensors with those of process 0."""
    if count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set in any process."""
    return flag if count() == 1 else bool(all_reduce_sum(torch.tensor(float(flag), device=device)))
