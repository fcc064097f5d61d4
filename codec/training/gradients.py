"""Gradients of processes on one machine, averaged through memory that they share.

Through sockets, as gloo does it on processors, a byte costs several times what it takes to read and add it. Here every
process writes what it has for the others, sums its own part of all, and reads the others' sums:

    process 0     gives [. b c]     sums part a     reads B C
    process 1     gives [a . c]     sums part b     reads A C
    process 2     gives [a b .]     sums part c     reads A B
"""

import os
import secrets
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from codec.nn import processes


class SharedMemory:
    """Room for gradients of up to so many float32 numbers, in `memory` [processes + 1, numbers] of all processes."""

    def __init__(self, memory: Tensor) -> None:
        *self.given, self.sums = memory

    @torch.no_grad()
    def average(self, gradient: Tensor) -> Tensor:
        """The mean of all processes' gradients [numbers], in place, the same bits in each of them."""
        mine = processes.rank()
        starts = [len(gradient) * rank // processes.count() for rank in range(processes.count() + 1)]
        parts = [slice(*ends) for ends in pairwise(starts)]
        others = [rank for rank in range(processes.count()) if rank != mine]
        for rank in others:
            self.given[mine][parts[rank]] = gradient[parts[rank]]
        dist.barrier()
        for rank in others:
            gradient[parts[mine]] += self.given[rank][parts[mine]]
        self.sums[parts[mine]] = gradient[parts[mine]].div_(processes.count())
        dist.barrier()
        for rank in others:
            gradient[parts[rank]] = self.sums[parts[rank]]
        return gradient


def share_memory(network: DistributedDataParallel) -> bool:
    """Have a network's gradients exchanged so, where it is on processors and all processes are on one machine.

    All processes call it, and it is so in all of them or in none.
    """
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        return False
    memory = common(processes.count() + 1, sum(weight.numel() for weight in weights))
    if memory is None:
        return False
    shared = SharedMemory(memory)

    def exchange(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        done = torch.futures.Future[Tensor]()
        done.set_result(shared.average(bucket.buffer()))
        return done

    network.register_comm_hook(None, exchange)
    return True


def common(rows: int, columns: int) -> Tensor | None:
    """Zeros [rows, columns] in the same memory for all processes; None in all of them where one cannot reach it.

    It has no file, so that it is gone with the last process. Linux alone has such memory.
    """
    name = f"codec-{secrets.token_hex(16)}"
    told, file = [("", "")], None
    if processes.rank() == 0:
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
    apart = processes.any_of(memory is None, torch.device("cpu"))
    if file is not None:
        os.close(file)
    return None if apart else memory
