"""What surrounds a training's steps: devices and processes (by Accelerate), signals, going on where one stopped, and
errors told as what to set."""

from __future__ import annotations

import signal
import threading
import time as clock
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from textwrap import shorten
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from codec.checkpoint import load_state
from codec.config import Config
from codec.errors import CodecError, ConfigError, MissingDependency, UsageError
from codec.nn import distributed as processes
from codec.nn.conv import ConvNeXtBlock
from codec.training.codec.crops import INTERRUPTS
from codec.training.codec.recipe import TrainConfig

try:
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.state import AcceleratorState
    from accelerate.utils import gather_object
except ImportError as missing:
    raise MissingDependency("training runs on Accelerate: pip install 'codec[train]'") from missing


T = TypeVar("T")
WHOLE = 2**20  # MB of gradients: all there are
LONGEST_WAIT = timedelta(hours=6)  # of processes for the first one, which looks through the corpus before all begin


@contextmanager
def launched(device: str | None) -> Iterator[Accelerator]:
    """This process's place among those that `torchrun` or `accelerate launch` started, or alone.

    `device` None is a GPU where there is one. Precision and sharding are the recipe's, not the launcher's.

    Raises UsageError where there is no such device.
    """
    check_device(device)
    if device and device.startswith("cuda:"):
        torch.cuda.set_device(device)
    cpu = device == "cpu" or not torch.cuda.is_available()
    AcceleratorState._reset_state(reset_partial_state=True)  # of a training before
    own = not (dist.is_available() and dist.is_initialized())
    # As views, gradients need not be copied. A processor that exchanges them cannot go on computing meanwhile, so it
    # does so once a step; a GPU can.
    joint = DistributedDataParallelKwargs(gradient_as_bucket_view=True, bucket_cap_mb=WHOLE if cpu else 25)
    # "no", for the step says itself what runs in which precision
    patient = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[joint, patient])
    try:
        yield accelerator
    finally:
        processes.share_memory(0)
        if own and processes.count() > 1:
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)


def check_device(device: str | None) -> None:
    """`UsageError` for a GPU where there is none."""
    if device and device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {device} cannot be used, torch finds no GPU here: use cpu, or leave it to auto")


def share(batch: int, parts: int) -> tuple[int, int]:
    """(first, last) rows of every batch that are this process's, which takes them in so many parts.

    Raises:
        ConfigError: the batch does not divide into the processes and their parts.
    """
    count = processes.count()
    if batch % (count * parts):
        enough = -(-batch // (count * parts)) * count * parts
        raise ConfigError(
            f"data.batch_size = {batch} does not divide into {count} processes times train.accumulate = {parts} parts: "
            f"set data.batch_size = {enough}, or fewer parts"
        )
    rows = batch // count
    return processes.rank() * rows, (processes.rank() + 1) * rows


def equip(module: nn.Module, settings: TrainConfig) -> None:
    """Have a network run as `train.checkpoint_activations` and `train.compile` say; its weights keep their names."""
    if settings.checkpoint_activations:
        for block in module.modules():
            if isinstance(block, ConvNeXtBlock):
                block.checkpointed = True
    if settings.compile:
        module.compile()


def join(accelerator: Accelerator, network: nn.Module) -> nn.Module:
    """The network as all processes train it: each backward pass averages its gradients over them."""
    joint: nn.Module = accelerator.prepare(network)
    if isinstance(joint, DistributedDataParallel):
        joint.broadcast_buffers = False  # codebooks are the same already, learned from what all saw
        weights = [weight for weight in network.parameters() if weight.requires_grad]
        on_processors = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        if on_processors and processes.share_memory(sum(weight.numel() for weight in weights)):
            joint.register_comm_hook(None, lambda _, bucket: at_hand(processes.all_reduce_mean(bucket.buffer())))
    return joint


def at_hand(value: T) -> torch.futures.Future[T]:
    """A future that has come."""
    future = torch.futures.Future[T]()
    future.set_result(value)
    return future


def shard(network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Leave each process its part of the weights, their gradients and what the optimizer keeps of them (FSDP2).

    The weights come together in a block's own pass, and for the rest of the network in the whole one's.
    """
    warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)  # of writing to outputs, which nobody does
    device = next(network.parameters()).device
    mesh = init_device_mesh(device.type, (processes.count(),))
    before = list(network.parameters())
    for block in network.modules():
        if isinstance(block, ConvNeXtBlock):
            fully_shard(block, mesh=mesh)
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
    """Whether each process has but a part of the weights."""
    return isinstance(network, FSDPModule)


def whole(state: Any) -> Any:
    """A state, through dicts and lists, with all that lies in shards whole; where there are any, all processes ask."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return type(state)((key, whole(value)) for key, value in state.items())
    return [whole(value) for value in state] if isinstance(state, list) else state


def exchange_gradients(now: bool, *networks: nn.Module) -> None:
    """Whether the next backward pass averages the gradients over processes, as that of a step's last part does."""
    for network in networks:
        if isinstance(network, DistributedDataParallel):
            network.require_backward_grad_sync = now
        elif isinstance(network, FSDPModule):
            network.set_requires_gradient_sync(now)


def of_all(items: list[T]) -> list[T]:
    """The items of all processes; each of them has to ask."""
    gathered: list[T] = gather_object(items)
    return gathered


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yields what to ask between steps: has Ctrl-C, SIGTERM or SIGHUP come? A later one does not wait to be asked for.

    Within two seconds it is the same wish: a launcher passes on to its processes what they were sent already.
    """
    stopping = threading.Event()
    since: list[float] = []
    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled, nor arrive
        yield stopping.is_set
        return
    before = {
        number: handler
        for number in INTERRUPTS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN or number.name != "SIGHUP"  # as nohup has it
    }

    def stop(number: int, _: FrameType | None) -> None:
        stopping.set()
        since.append(clock.monotonic())
        if since[-1] - since[0] > 2:
            raise KeyboardInterrupt

    try:
        for number in before:
            signal.signal(number, stop)
        yield stopping.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def within_memory(*ways: str, workers: int = 0) -> Iterator[None]:
    """Running out of memory, here or in a reader, as an error that names the settings to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError; a CPU's has no class
        if str(error).startswith("DataLoader worker"):  # torch tells so in the middle of a step
            raise CodecError(
                "a reader of the audio was killed, perhaps for want of memory: set data.num_workers = "
                f"{workers} lower; --resume goes on from the last checkpoint"
            ) from error
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not (lacking or "DefaultCPUAllocator" in str(error)):
            raise
        raise ConfigError(f"memory does not suffice for this training: set {', or '.join(ways)}") from error


# going on


def resumable(path: Path, recipe: Config, *, needs: Iterable[str], free: Collection[str]) -> dict[str, Any]:
    """The state to go on from, if it is one of this recipe; only the keys that are `free` may have changed.

    Raises:
        InputNotFound: there is no state.
        UnknownModel: it is damaged, or none.
        ConfigError: it was made by an older program, or by another recipe; the message names what differs.
    """
    state = load_state(path)
    tables = state.get("recipe")
    if isinstance(tables, dict) and tables.get("kind") != getattr(recipe, "kind", None):
        one, other = sorted(("a codec", "a language model"), reverse="kind" in tables)  # codecs' recipes name no kind
        raise ConfigError(f"{path} is of {one}, the recipe of {other}: resume with its own, or change --out")
    missing = ", ".join(name for name in needs if name not in state)
    if missing:
        raise ConfigError(f"{path} is of an older program: it lacks {missing}; begin anew in another --out")
    try:
        then = type(recipe).from_data(state["recipe"], source=str(path))
    except ConfigError as error:
        raise ConfigError(f"{error}: the state is of an older program; begin anew in another --out") from error
    old = flat(then.model_dump())
    new = flat(recipe.model_dump())
    known = flat(state["recipe"])
    old = {key: value if key in known else "unknown" for key, value in old.items()}  # what was no choice then
    differing = [key for key in old | new if new.get(key) != old.get(key) and key not in free]
    if differing:
        changes = ", ".join(f"{key} ({old.get(key)} then, {new.get(key)} now)" for key in differing)
        raise ConfigError(f"{path} is of another recipe: {changes}; resume with the same, or choose another --out")
    return state


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def states(trained: object, names: Iterable[str]) -> dict[str, Any]:
    """The states of what is `trained`, by the names of its parts."""
    return {name: whole(getattr(trained, name).state_dict()) for name in names}


def restore(trained: object, state: dict[str, Any], names: Iterable[str]) -> int:
    """Inverse of `states`; the step to go on with.

    Raises ConfigError: what the state holds is not what is trained.
    """
    for name in names:
        try:
            getattr(trained, name).load_state_dict(state[name])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"the training state is of an older program or another model ({name}: {shorten(str(error), 200)}): "
                "begin anew in another --out"
            ) from error
    return int(state["step"])
