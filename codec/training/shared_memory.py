"""Gradient averaging through memory that all CPU processes of one machine share.

Through sockets, as gloo does it, a byte costs several times what it takes to read and add it. In shared memory each
process writes its gradients for the others, sums its own part of all of them, and reads the other sums:

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

from codec.nn import distributed

MIN_NUMBERS = 2**14  # below, gloo is faster than two barriers
BLOCK = 2**16  # numbers that stay in the cache of a CPU from one operation to the next


class SharedMemory:
    """Room for `size` float32 numbers of each process and for their sums: `memory` [processes + 1, size]."""

    def __init__(self, memory: Tensor) -> None:
        *self.inputs, self.sums = memory

    @classmethod
    def create(cls, size: int) -> SharedMemory | None:
        """Allocate the memory; None in all processes where one of them is on another machine. All processes call it."""
        memory = _allocate(distributed.count() + 1, size) if distributed.count() > 1 else None
        return None if memory is None else cls(memory)

    @torch.no_grad()
    def all_reduce_mean(self, values: Tensor) -> Tensor:
        """Average float32 numbers [at most `size`] over all processes, in place; the same bits in each of them."""
        rank, count = distributed.rank(), distributed.count()
        parts = [slice(*ends) for ends in pairwise(len(values) * part // count for part in range(count + 1))]
        others = [other for other in range(count) if other != rank]
        for other in others:
            self.inputs[rank][parts[other]] = values[parts[other]]
        dist.barrier()
        own, sums = values[parts[rank]], self.sums[parts[rank]]
        for first in range(0, len(own), BLOCK):
            block = own[first : first + BLOCK]
            for other in others:
                block += self.inputs[other][parts[rank]][first : first + BLOCK]
            sums[first : first + BLOCK] = block.div_(count)
        dist.barrier()
        for other in others:
            values[parts[other]] = self.sums[parts[other]]
        return values


def average_bucket(memory: SharedMemory, gradients: Tensor) -> torch.futures.Future[Tensor]:
    """Average a bucket of gradients, for a communication hook of DistributedDataParallel."""
    done = torch.futures.Future[Tensor]()
    small = gradients.numel() < MIN_NUMBERS
    done.set_result(distributed.all_reduce_mean(gradients) if small else memory.all_reduce_mean(gradients))
    return done


def _allocate(rows: int, columns: int) -> Tensor | None:
    """Zeros [rows, columns] in the same memory for all processes; None in all of them where one cannot reach it.

    The memory has no file, so it is freed with the last process. Linux alone has such memory.
    """
    name = f"codec-{secrets.token_hex(16)}"
    message, file = [("", "")], None
    if distributed.rank() == 0:
        with suppress(AttributeError, OSError):
            file = os.memfd_create(name)
            os.ftruncate(file, 4 * rows * columns)
            message = [(f"/proc/{os.getpid()}/fd/{file}", name)]
    dist.broadcast_object_list(message, 0)
    memory = None
    with suppress(OSError, RuntimeError):
        ((path, name),) = message
        if str(Path(path).readlink()) == f"/memfd:{name} (deleted)":  # on another machine the path leads elsewhere
            memory = torch.from_file(path, shared=True, size=rows * columns).view(rows, columns)
    unreachable = distributed.any_rank(memory is None, torch.device("cpu"))
    if file is not None:
        os.close(file)
    return None if unreachable else memory
