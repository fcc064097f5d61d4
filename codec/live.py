"""Steps of live streams in ONNX Runtime, where it is installed (extra `onnx`).

With a frame or two at a time, torch mostly starts small operations, a thousand per frame. ONNX Runtime computes the
same steps, with the same codes, in a fraction of the time. It takes shipped weights on a CPU: their graphs are in
`weights/`, without the weights, which they read from the model's .safetensors file beside them (`tools/live_graphs.py`
writes them). All else runs in torch: other models, other devices, long chunks, and everything if the environment
variable CODEC_BACKEND is "torch".
"""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor
from torch.utils import _pytree as pytree

from codec.errors import UsageError
from codec.models.base import Codec, StepCodec
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.quantize.vq import version_of
from codec.nn.streaming import State

Backend: TypeAlias = Literal["onnxruntime", "torch"]
Array: TypeAlias = np.ndarray[Any, Any]

WEIGHTS = Path(__file__).parent / "weights"
VARIABLE = "CODEC_BACKEND"
MAX_FRAMES = 4
"""Frames of a step up to which ONNX Runtime is faster."""

_checked: WeakKeyDictionary[Codec, tuple[Any, bool]] = WeakKeyDictionary()


class LiveState(NamedTuple):
    """A state of the model as ONNX Runtime takes it."""

    leaves: list[Array]
    spec: pytree.TreeSpec


def backend_of(model: Codec) -> Backend:
    """The backend of a live stream of this model. Raises as `backend_of_shipped`."""
    backend = backend_of_shipped(model.name)
    fits = backend == "torch" or (model.device.type == "cpu" and _is_shipped(model))
    return backend if fits else "torch"


def backend_of_shipped(name: str | None) -> Backend:
    """The backend of live streams of the shipped model with this name on a CPU; "torch" if there is no such model.

    Raises UsageError if CODEC_BACKEND has another value than "auto" and "torch".
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "torch"):
        raise UsageError(f"{VARIABLE} is {choice!r}: set it to auto or torch")
    has_graph = name is not None and graph_file(name, "encoder").is_file()
    return "onnxruntime" if choice == "auto" and has_graph and find_spec("onnxruntime") is not None else "torch"


class Steps:
    """The steps of a stream: which backend takes them, and its states.

    The first step, and the first after a long one, are torch's, because loading the graphs takes as long as encoding a
    few seconds in torch; a file that is encoded in long chunks never needs them.
    """

    def __init__(self, model: StepCodec, batch: int) -> None:
        self.backend = backend_of(model)
        self._model, self._batch = model, batch
        self._short = 0  # short steps in a row

    def encode(self, audio: Tensor, state: State, num_codebooks: int) -> tuple[Tensor, State]:
        """`StepCodec.encode_step`."""
        if not self._is_live(audio.shape[2] // self._model.frame_spec.hop):
            return self._model.encode_step(audio, tensors(state), num_codebooks=num_codebooks)
        with torch.inference_mode(False):
            codes, state = self._run("encoder", {"audio": audio, "num_codebooks": torch.tensor(num_codebooks)}, state)
            return codes[:, :num_codebooks], state

    def decode(self, codes: Tensor, state: State) -> tuple[Tensor, State]:
        """`StepCodec.decode_step`."""
        if not self._is_live(codes.shape[2]):
            return self._model.decode_step(codes, tensors(state))
        self._model.check_codes(codes)
        with torch.inference_mode(False):
            absent = self._model.num_codebooks - codes.shape[1]
            return self._run("decoder", {"codes": F.pad(codes, (0, 0, 0, absent), value=-1)}, state)

    def _is_live(self, frames: int) -> bool:
        self._short = self._short + 1 if 0 < frames <= MAX_FRAMES else 0
        return self._short > 1 and self.backend == "onnxruntime"

    def _run(self, graph: str, inputs: dict[str, Tensor], state: State) -> tuple[Tensor, LiveState]:
        session, names = _session(cast(str, self._model.name), graph, self._batch)
        leaves, spec = state if isinstance(state, LiveState) else _arrays(state)
        feed = {name: x.numpy() for name, x in inputs.items()}
        feed.update(zip(names, leaves, strict=True))
        y, *after = session.run(None, feed)
        return torch.from_numpy(y), LiveState(after, spec)


def tensors(state: State) -> State:
    """A state as torch takes it."""
    if not isinstance(state, LiveState):
        return state
    with torch.inference_mode(False):
        return pytree.tree_unflatten([torch.from_numpy(leaf) for leaf in state.leaves], state.spec)


def _arrays(state: State) -> LiveState:
    leaves, spec = pytree.tree_flatten(state)
    return LiveState([np.ascontiguousarray(leaf.numpy()) for leaf in leaves], spec)


def graph_file(name: str, graph: str) -> Path:
    """The file of the "encoder" or "decoder" of a shipped model."""
    return WEIGHTS / f"{name}.{graph}.onnx"


def _is_shipped(model: Codec) -> bool:
    """Whether the model has the weights of the shipped file of its name, because it could have been trained further."""
    state = model.state_dict()
    changes = *((tensor.data_ptr(), version_of(tensor)) for tensor in state.values()), *_beam_sizes(model)
    known = _checked.get(model)
    if known is None or known[0] != changes:
        known = _checked[model] = changes, _equals_file(model, state)
    return known[1]


def _equals_file(model: Codec, state: dict[str, Tensor]) -> bool:
    if any(size != getattr(model.config, "beam_size", size) for size in _beam_sizes(model)):
        return False
    with safe_open(WEIGHTS / f"{model.name}.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["codec"])["config"]
        return (
            type(model.config).model_validate_json(json.dumps(config)) == model.config
            and set(file.keys()) == set(state)
            and all(torch.equal(file.get_tensor(name).to(tensor.dtype), tensor) for name, tensor in state.items())
        )


def _beam_sizes(model: Codec) -> list[int]:
    return [module.beam_size for module in model.modules() if isinstance(module, ResidualVQ)]


@cache
def _session(name: str, graph: str, batch: int) -> tuple[Any, list[str]]:
    """ONNX Runtime's session for single frames of `batch` signals, and the names of the states."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a frame is too short to be shared
    options.add_free_dimension_override_by_name("batch", batch)
    session = onnxruntime.InferenceSession(graph_file(name, graph), options, providers=["CPUExecutionProvider"])
    return session, [one.name for one in session.get_inputs() if one.name.startswith("state_")]
