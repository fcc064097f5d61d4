"""Collective operations for data-parallel training; each is a no-op with one process.

The rows of a batch are distributed in rank order: of 6 rows, process 1 of 3 has rows 2 and 3.

Through sockets, as gloo does it on CPUs, a byte costs several times what it takes to read and add it. Processes on one
machine can share memory (`share_memory`): each writes its values for the others, sums its own part of all of them, and
reads the other sums:

    process 0     writes [. b c]     sums part a     reads B C
    process 1     writes [a . c]     sums part b     reads A C
    process 2     writes [a b .]     sums part c     reads A B
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist

MUCH = 2**14  # numbers from which shared memory is faster, because it takes two barriers
BLOCK = 2**16  # numbers that stay in the cache of a CPU from one operation to the next


def count() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process; process 0 does what only one process should do."""
    return dist.get_rank() if count() > 1 else 0


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over all processes, in place; every process gets the same bits."""
    if count() > 1 and not _in_memory(values):
        dist.all_reduce(values)
    return values


def all_reduce_mean(values: Tensor) -> Tensor:
    """Average over all processes, in place; every process gets the same bits."""
    if count() > 1 and not _in_memory(values, count()):
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


# memory


class _SharedMemory:
    """Room for so many float32 numbers of each process, and for their sums: `memory` [processes + 1, numbers]."""

    def __init__(self, memory: Tensor) -> None:
        *self.given, self.sums = memory

    def sum(self, values: Tensor, divisor: int) -> None:
        """Sum the numbers [some] of all processes, in place, and divide."""
        mine = rank()
        parts = [slice(*ends) for ends in pairwise(len(values) * turn // count() for turn in range(count() + 1))]
        others = [turn for turn in range(count()) if turn != mine]
        for other in others:
            self.given[mine][parts[other]] = values[parts[other]]
        dist.barrier()
        own, total = values[parts[mine]], self.sums[parts[mine]]
        for first in range(0, len(own), BLOCK):
            block = own[first : first + BLOCK]
            for other in others:
                block += self.given[other][parts[mine]][first : first + BLOCK]
            total[first : first + BLOCK] = block.div_(divisor)
        dist.barrier()
        for other in others:
            values[parts[other]] = self.sums[parts[other]]


_shared: _SharedMemory | None = None


def share_memory(numbers: int) -> bool:
    """Have sums of up to so many float32 numbers on processors go through memory, if all processes are on one machine.

    All processes call it, and it is so in all of them or in none. It holds for as long as they are together, or until
    `share_memory(0)`.
    """
    global _shared
    if numbers and _shared and len(_shared.sums) >= numbers:
        return True
    _shared = None
    memory = _common(count() + 1, numbers) if numbers and count() > 1 else None
    if memory is not None:
        _shared = _SharedMemory(memory)
    return _shared is not None


@torch.no_grad()
def _in_memory(values: Tensor, divisor: int = 1) -> bool:
    """Whether there is memory for the values of all processes, which then are summed and divided."""
    fits = _shared is not None and MUCH <= values.numel() <= len(_shared.sums)
    if not fits or values.dtype != torch.float32 or values.device.type != "cpu":
        return False
    assert _shared
    _shared.sum(values.view(-1), divisor)
    return True


def _common(rows: int, columns: int) -> Tensor | None:
    """Zeros [rows, columns] in the same memory for all processes; None in all of them where one cannot reach it.

    It has no file, so that it is gone with the last process. Linux alone has such memory.
    """
    name = f"codec-{secrets.token_hex(16)}"
    told, file = [("", "")], None
    if rank() == 0:
        with suppress(AttributeError, OSError):
            file = os.memfd_create(name)
            os.ftruncate(file, 4 * rows * columns)
            told = [(f"/proc/{os.getpid()}/fd/{file}", name)]
    dist.broadcast_object_list(told, 0)
    memory = None
    with suppress(OSError, RuntimeError):
        ((path, name),) = told
        if str(Path(path).readlink()) == f"/memfd:{name} (deleted)":  # on another machine it leads elsewhere
            memory = torch.from_file(path, shared=True, size=rows * columns).view(rows, columns)
    apart = any_rank(memory is None, torch.device("cpu"))
    if file is not None:
        os.close(file)
    return None if apart else memory
