"""Compiled steps of live streams on a CPU.

With a frame or two at a time, torch mostly starts small operations, a thousand per frame, and reads weights as float32.
Models that have `frame_steps` take such steps in compiled loops, with the same codes, in a fraction of the time. All
else runs in torch: other models, other devices, long chunks, and everything if the environment variable CODEC_BACKEND
is "torch".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from codec.backend import may_compile
from codec.io import entropy_model
from codec.models.base import Codec, FrameSteps, StepCodec
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.quantize.vq import version_of
from codec.nn.streaming import State

Backend: TypeAlias = Literal["compiled", "torch"]

THREADS = "OMP_NUM_THREADS"
MAX_ROWS = 8
"""Frames of all signals of a step up to which compiled steps are faster."""
LIVE_AFTER = 10
"""Short steps in a row after which a stream counts as live, because a file ends in a few, too: its rest, that of the
resampler, and the end of the encoder."""

_prepared: WeakKeyDictionary[Codec, tuple[Any, FrameSteps | None]] = WeakKeyDictionary()


class LiveState(NamedTuple):
    """A state as compiled steps take it."""

    arrays: State
    steps: FrameSteps


def may_be_compiled(model: Codec) -> bool:
    """Whether short steps of this model are compiled, if it has such steps. Raises as `backend.may_compile`."""
    return may_compile() and model.device.type == "cpu"


def backend_of(model: StepCodec) -> Backend:
    """The backend of short steps of this model; prepares them. Raises as `may_be_compiled`."""
    return "compiled" if may_be_compiled(model) and _frame_steps(model) else "torch"


def prepare(model: Codec, job: Literal["encode", "decode"]) -> None:
    """Load the compiled steps of a job, or compile them on a machine's first use, so that no stream waits for it.

    The payload coder of the model's files is compiled, too, if it has a network.
    """
    if not isinstance(model, StepCodec) or not may_be_compiled(model) or not (steps := _frame_steps(model)):
        return
    audio = np.random.default_rng(0).uniform(-0.1, 0.1, (1, model.channels, model.frame_spec.hop)).astype(np.float32)
    codes, _ = steps.encode(audio, steps.arrays(model.encoder_state(1)), model.num_codebooks)
    if job == "decode":
        steps.decode(codes, steps.arrays(model.decoder_state(1)))
    if model.weights_hash and (network := entropy_model.find(model.weights_hash, model.codebook_sizes)):
        from codec.io import entropy_compiled

        entropy_compiled.prepare(network)


@contextmanager
def sharing_cores(is_live: bool = True) -> Iterator[None]:
    """With `is_live`, torch computes on one thread, up to `take_threads` for a model, and NumPy on one.

    Because both ends of a pipe compute at once, and others on the same cores: threads that wait for each other in every
    small operation while another program has one of their cores make a frame take longer than it lasts, and the delay
    grows without end. OMP_NUM_THREADS, if it is set, holds instead.
    """
    if not is_live or os.environ.get(THREADS):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, "blas"):
            yield
    finally:
        torch.set_num_threads(before)


def take_threads(model: Codec) -> None:
    """Within `sharing_cores`, take half of the cores for a model without `frame_steps`, which needs more than one."""
    if not (isinstance(model, StepCodec) and model.has_frame_steps) and not os.environ.get(THREADS):
        torch.set_num_threads(max(1, _cores() // 2))


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Steps:
    """The steps of a stream: which backend takes them, and its states.

    Steps are torch's until the stream is live, because compiling takes as long as encoding a minute in torch, and
    loading what was compiled before as long as a few seconds. With `compiled` False they stay torch's.
    """

    def __init__(self, model: StepCodec, batch: int, *, compiled: bool = True) -> None:
        self._model, self._batch = model, batch
        self._may_be_compiled = may_be_compiled(model) and compiled
        self._short = 0  # short steps in a row
        self._steps: FrameSteps | None = None

    def encode(self, audio: Tensor, state: State, num_codebooks: int) -> tuple[Tensor, State]:
        """`StepCodec.encode_step`."""
        steps = self._compiled(audio.shape[2] // self._model.frame_spec.hop)
        if not steps:
            return self._model.encode_step(audio, tensors(state), num_codebooks=num_codebooks)
        codes, after = steps.encode(audio.numpy(), _arrays(state, steps), num_codebooks)
        return _tensor(codes), LiveState(after, steps)

    def decode(self, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """`StepCodec.decode_step`."""
        steps = self._compiled(codes.shape[2])
        if not steps or bool((codes < 0).any()):  # the compiled steps take one number of codebooks in all frames
            return self._model.decode_step(codes, tensors(state))
        self._model.check_codes(codes)
        audio, after = steps.decode(codes.numpy(), _arrays(state, steps))
        return _tensor(audio), LiveState(after, steps)

    def _compiled(self, frames: int) -> FrameSteps | None:
        """The compiled steps, if they take a step of this many frames."""
        is_short = 0 < frames * self._batch <= MAX_ROWS
        self._short = self._short + 1 if is_short else 0
        if self._short == LIVE_AFTER and self._may_be_compiled:
            self._steps = _frame_steps(self._model)
        return self._steps if is_short else None


def tensors(state: State) -> State:
    """A state as torch takes it."""
    if not isinstance(state, LiveState):
        return state
    with torch.inference_mode(False):
        return state.steps.tensors(state.arrays)


def _arrays(state: State, steps: FrameSteps) -> State:
    return state.arrays if isinstance(state, LiveState) else steps.arrays(state)


def _tensor(array: Any) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(array)


def _frame_steps(model: StepCodec) -> FrameSteps | None:
    """The compiled steps of the model with its present weights, because it could have been trained further."""
    weights = tuple((tensor.data_ptr(), version_of(tensor)) for tensor in model.state_dict().values())
    changes = weights, [module.beam_size for module in model.modules() if isinstance(module, ResidualVQ)]
    known = _prepared.get(model)
    if known is None or known[0] != changes:
        known = _prepared[model] = changes, model.frame_steps()
    return known[1]
