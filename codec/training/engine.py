"""Devices and processes of a training run (by Accelerate), mixed precision, and the optimizer step.

Errors name the setting to change.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from codec.errors import CodecError, ConfigError, MissingDependency, UsageError, is_out_of_memory
from codec.nn import distributed
from codec.training.codec.recipe import OptimizerConfig
from codec.training.shared_memory import SharedMemory, average_bucket

try:
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import gather_object
except ImportError as missing:
    raise MissingDependency("training needs Accelerate: pip install '.[train]' in the project's folder") from missing


T = TypeVar("T")
ONE_BUCKET = 2**20  # MB: all gradients
INIT_TIMEOUT = timedelta(hours=6)  # because all processes wait until the first one has scanned the corpus


@contextmanager
def launch(device: str | None) -> Iterator[Accelerator]:
    """Join the processes that `torchrun` or `accelerate launch` started, or run alone.

    `device` None is a GPU if there is one. The recipe sets precision and sharding, not the launcher.

    Raises UsageError: the device does not exist.
    """
    check_device(device)
    if device and device.startswith("cuda:"):
        torch.cuda.set_device(device)
    cpu = device == "cpu" or not torch.cuda.is_available()
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    owns_group = not (dist.is_available() and dist.is_initialized())
    # Gradients are views of buckets, which saves a copy. A CPU cannot compute while it exchanges gradients, so it
    # exchanges them once per step; a GPU can.
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=ONE_BUCKET if cpu else 25)
    group = InitProcessGroupKwargs(timeout=INIT_TIMEOUT)
    # mixed_precision is "no" because the training step chooses the precision of each part
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[ddp, group])
    try:
        yield accelerator
    finally:
        if owns_group and distributed.count() > 1:
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def check_device(device: str | None) -> None:
    """Raise UsageError for a GPU on a machine without one."""
    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device} cannot be used, torch finds no GPU here: use cpu, or leave it to auto")


def rows_of_process(batch_size: int, parts: int) -> tuple[int, int]:
    """(first, last) rows of every batch that this process takes, in `parts` micro-batches.

    Raises:
        ConfigError: the batch size is not a multiple of processes times parts.
    """
    count = distributed.count()
    if batch_size % (count * parts):
        enough = -(-batch_size // (count * parts)) * count * parts
        raise ConfigError(
            f"data.batch_size = {batch_size} does not divide into {count} processes times train.accumulate = {parts} "
            f"parts: set data.batch_size = {enough}, or fewer parts"
        )
    rows = batch_size // count
    return distributed.rank() * rows, (distributed.rank() + 1) * rows


def data_parallel(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """Wrap a network so that each backward pass averages its gradients over all processes."""
    ddp: nn.Module = accelerator.prepare(network)
    if isinstance(ddp, DistributedDataParallel):
        ddp.broadcast_buffers = False  # because codebooks are equal already: their statistics are of all processes
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        if all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights):
            memory = SharedMemory.create(sum(weight.numel() for weight in weights))
            if memory is not None:
                ddp.register_comm_hook(memory, lambda memory, bucket: average_bucket(memory, bucket.buffer()))
    return ddp


def shard(network: nn.Module, blocks: Iterable[nn.Module], optimizer: torch.optim.Optimizer | None = None) -> None:
    """Shard weights, gradients and optimizer state over the processes (FSDP2).

    The weights of each of `blocks` are gathered for its own pass, the other weights for the pass of the whole network.
    """
    from torch.distributed.device_mesh import init_device_mesh  # here, because a run on one device does not wait for it
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    from torch.distributed.tensor import distribute_tensor

    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)  # about in-place changes of outputs
    device = next(network.parameters()).device
    mesh = init_device_mesh(device.type, (distributed.count(),))
    before = list(network.parameters())
    for weight in before:
        weight.data = weight.data.contiguous()  # FSDP takes no other layout, and some layers store the transpose
    for block in blocks:
        fully_shard(block, mesh=mesh)
        if hasattr(block, "step"):  # otherwise it is called by `forward`, which FSDP knows
            register_fsdp_forward_method(block, "step")
    fully_shard(network, mesh=mesh)
    if optimizer is None:
        return
    (group,) = optimizer.param_groups
    group["params"] = list(network.parameters())
    for old, new in zip(before, group["params"], strict=True):
        kept = optimizer.state.pop(old, {})
        if kept:
            optimizer.state[new] = {
                name: distribute_tensor(value, mesh, new.placements) if value.shape == old.shape else value
                for name, value in kept.items()
            }


def is_sharded(network: nn.Module) -> bool:
    """Whether each process holds only a part of the weights."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # `shard` imports it
    return fsdp is not None and isinstance(network, fsdp.FSDPModule)


def gather_shards(state: Any) -> Any:
    """A state with every sharded tensor gathered, through dicts and lists; all processes call it."""
    if hasattr(state, "full_tensor"):  # a DTensor
        return state.full_tensor()
    if isinstance(state, dict):
        return type(state)((key, gather_shards(value)) for key, value in state.items())
    return [gather_shards(value) for value in state] if isinstance(state, list) else state


def sync_gradients(enabled: bool, *networks: nn.Module) -> None:
    """Set whether the next backward pass averages gradients over processes; only that of the last micro-batch does."""
    for network in networks:
        if isinstance(network, DistributedDataParallel):
            network.require_backward_grad_sync = enabled
        elif is_sharded(network):
            network.set_requires_gradient_sync(enabled)  # type: ignore[operator]  # an FSDPModule


def gather_items(items: list[T]) -> list[T]:
    """The items of all processes; all of them call it."""
    gathered: list[T] = gather_object(items)
    return gathered


# the optimizer step


def lr_scale(step: int, steps: int, config: OptimizerConfig) -> float:
    """Factor of the learning rate: linear warm-up, then a cosine decay to `lr_min_ratio` at `steps`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, steps - config.warmup))
    return config.lr_min_ratio + (1 - config.lr_min_ratio) * 0.5 * (1 + math.cos(math.pi * done))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Data type of the networks' matrix products; "auto" is bfloat16 on devices with bfloat16 matrix units.

    A CPU with AVX-512 bfloat16 products but without tiles (AMX) is half as fast in bfloat16 as in float32.
    """
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(precision, torch.float32)


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """A gradient scaler, enabled for float16 only."""
    return torch.amp.GradScaler(device.type, enabled=autocast_dtype(precision, device) == torch.float16)


def clip_gradients(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, *, lr: float, max_norm: float
) -> Tensor:
    """Set the learning rate, unscale the gradients and clip their norm; returns the norm before clipping."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.unscale_(optimizer)
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm: Tensor = gather_shards(nn.utils.clip_grad_norm_(weights, max_norm))
    return norm


def can_step(
    metrics: Mapping[str, Tensor],
    scaler: torch.amp.GradScaler,
    *,
    step: int,
    losses: Iterable[str],
    lr_setting: Callable[[Collection[str]], str],
) -> bool:
    """Whether all gradient norms ("grad_norm/...") are finite; float16 skips steps until its scale fits.

    Raises:
        ConfigError: gradients are not finite, and another scale would not help. The message names those of `losses`
            that are not finite, and the learning rate to lower: `lr_setting` of these names.
    """
    norms = {name: norm for name, norm in metrics.items() if name.startswith("grad_norm/")}
    if bool(torch.stack(list(norms.values())).isfinite().all()):
        return True
    if scaler.is_enabled() and scaler.get_scale() >= 1:
        return False
    wrong = {name: float(metrics[name]) for name in losses if name in metrics and not metrics[name].isfinite()}
    wrong = wrong or {name: float(norm) for name, norm in norms.items() if not norm.isfinite()}
    raise ConfigError(
        f"in step {step} {' and '.join(f'{name} became {value}' for name, value in wrong.items())}: "
        f"lower {lr_setting(wrong)} or set train.precision = float32, and resume"
    )


def batch_mean(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Means over the micro-batches of this process and of all others."""
    parts = torch.stack([torch.stack([value.detach() for value in part.values()]) for part in metrics])
    return dict(zip(metrics[0], distributed.all_reduce_mean(parts.mean(dim=0)), strict=True))


@torch.no_grad()
def update_ema(ema_model: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move averaged weights towards the model's, faster in the first steps; buffers are copied."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, weight in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.lerp_(weight, 1 - decay)
    for old, new in zip(ema_model.buffers(), model.buffers(), strict=True):
        old.copy_(new)


# errors


@contextmanager
def memory_errors(*settings: str, num_workers: int = 0) -> Iterator[None]:
    """Turn out-of-memory errors, here or in a data worker, into errors that name the `settings` to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError; a CPU's has no class
        if str(error).startswith("DataLoader worker"):
            raise CodecError(
                "a data worker was killed, perhaps because memory ran out: set data.num_workers = "
                f"{num_workers} lower; --resume continues from the last checkpoint"
            ) from error
        if not is_out_of_memory(error):
            raise
        raise ConfigError(f"out of memory: try {', or '.join(settings)}") from error
