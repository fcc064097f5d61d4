"""What processes that train one model together say to each other. A process alone agrees with itself at no cost.

Rows of a batch lie in the order of the processes: of 6 rows, process 1 of 3 has rows 2 and 3.

Through sockets, as gloo does it on processors, a byte costs several times what it takes to read and add it. Processes
on one machine can have memory in common (`share_memory`), where each writes what it has for the others, sums its own
part of all, and reads the others' sums:

    process 0     gives [. b c]     sums part a     reads B C
    process 1     gives [a . c]     sums part b     reads A C
    process 2     gives [a b .]     sums part c     reads A B
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

MUCH = 2**14  # numbers from which memory is the quicker way: it takes two barriers
BLOCK = 2**16  # numbers that stay in a processor's cache from one operation to the next


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one; 0 does what only one should."""
    return dist.get_rank() if count() > 1 else 0


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place, the same bits in each of them."""
    if count() > 1 and not _in_memory(values):
        dist.all_reduce(values)
    return values


def averaged(values: Tensor) -> Tensor:
    """The mean over all processes, in place, the same bits in each of them."""
    if count() > 1 and not _in_memory(values, count()):
        dist.all_reduce(values)
        values /= count()
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
    apart = any_of(memory is None, torch.device("cpu"))
    if file is not None:
        os.close(file)
    return None if apart else memory
