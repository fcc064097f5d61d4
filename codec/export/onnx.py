"""Export a codec to ONNX: `encoder.onnx` and `decoder.onnx`, each one step with its state as inputs and outputs.

Weights that both have, the codebooks, are in `shared.bin`, where ONNX looks for them.

    codes, next_state... = encoder(audio, num_codebooks, state...)
    audio, next_state... = decoder(codes, state...)

A signal in chunks of any number of frames gives the same codes, because each output `next_NAME` is the input
`state_NAME` of the next chunk. A state is all zeros before the first chunk. `codes` has all codebooks of the model, and
-1 in those after the first `num_codebooks`. The JSON in the metadata entry `codec` of each file says the rest: sizes,
weights hash, shapes of the states (`describe`).
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from codec.errors import CodecError, MissingDependency, UsageError
from codec.io import synth
from codec.io.audio import resample
from codec.io.storage import atomic_output, refuse_existing, storing
from codec.models.base import Codec, StepCodec
from codec.nn.streaming import State

OPSET = 18
"""Default version of ONNX's operators: the oldest that torch exports to, so that most runtimes have it."""
GRAPHS = ("encoder.onnx", "decoder.onnx")
SHARED = "shared.bin"
FILES = (*GRAPHS, SHARED)
MAX_ERROR = 1e-4
"""Largest difference between the audio of torch and of ONNX Runtime."""
MAX_NEAR_TIES = 1e-5
"""Largest share of codes that may differ from those of torch, because two entries are equally near."""
MAX_FRAMES = 2**20
SMALL = 1024  # numbers of a tensor up to which it stays float32, or is computed before it is stored
SECONDS = 3.0  # length of the signals of `verify`


class Exported(NamedTuple):
    """The result of `export_onnx`."""

    files: tuple[Path, ...]
    codes: int
    """Number of codes that were compared with those of torch."""
    near_ties: tuple[str, ...]
    """Signal and frame of the codes that differ."""
    error: float
    """Largest difference of the audio."""


class EncoderStep(nn.Module):
    """Audio [batch, channels, time], `num_codebooks` [] and the leaves of a state to codes and those of the next."""

    def __init__(self, model: StepCodec, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, audio: Tensor, num_codebooks: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        latents, state = self.model.latents_step(audio, pytree.tree_unflatten(leaves, self.spec))
        return self.model.quantizer.encode_prefix(latents, num_codebooks), *pytree.tree_leaves(state)


class DecoderStep(nn.Module):
    """Codes [batch, codebooks, frames] and the leaves of a state to audio and those of the next state."""

    def __init__(self, model: StepCodec, spec: pytree.TreeSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, codes: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        state = pytree.tree_unflatten(leaves, self.spec)
        audio, state = self.model.audio_step(self.model.quantizer.decode_prefix(codes), state)
        return audio.clamp(-self.model.limit, self.model.limit), *pytree.tree_leaves(state)


def export_onnx(model: Codec, folder: str | Path, *, opset: int = OPSET, force: bool = False) -> Exported:
    """Write `encoder.onnx`, `decoder.onnx` and `shared.bin`, verified by `verify`.

    Both take any batch size, any number of frames and any number of codebooks. Nothing is written if the graphs are not
    right.

    Raises:
        UsageError: the family has no steps that give a frame for a frame or that torch can export, or the opset is not
            one that torch and ONNX Runtime know.
        MissingDependency: a package of the extra `onnx` cannot be imported.
        StorageError: the folder cannot be written to, or has such files and `force` is off.
        CodecError: ONNX Runtime does not compute what torch does.
    """
    check_packages()
    check_opset(opset)
    steps = exportable(model)
    folder = Path(folder)
    targets = tuple(folder / name for name in FILES)
    refuse_existing(*targets, force=force)
    try:
        contents = shared(encoder_graph(steps, opset), decoder_graph(steps, opset))
    except torch.onnx.OnnxExporterError as failure:  # its text has many lines; the cause is in the traceback
        raise_interruption(failure)
        raise UsageError(
            f"torch {torch.__version__} cannot export the steps of a model of the family {model.config.family}: export "
            "a model of the family causal, or try another version of torch"
        ) from failure
    with TemporaryDirectory() as trial:
        for name, content in zip(FILES, contents, strict=True):
            Path(trial, name).write_bytes(content)
        codes, near_ties, error = verify(steps, Path(trial))
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for target, content in zip(targets, contents, strict=True):
        with atomic_output(target, force=force) as file:
            file.write(content)
    return Exported(targets, codes, near_ties, error)


def raise_interruption(failure: BaseException | None) -> None:
    """Raise what interrupted an export, such as SystemExit: torch makes it the cause of an error of its own."""
    while failure is not None:
        if not isinstance(failure, Exception):
            raise failure
        failure = failure.__cause__ or failure.__context__


def encoder_graph(model: StepCodec, opset: int = OPSET) -> bytes:
    """The encoder as an ONNX file."""
    hop, state = model.frame_spec.hop, model.encoder_state(2)
    example = {"audio": torch.zeros(2, model.channels, 3 * hop), "num_codebooks": torch.tensor(model.num_codebooks)}
    time = hop * torch.export.Dim("frames", min=2, max=MAX_FRAMES)
    step, leaves = EncoderStep(copy.deepcopy(model), pytree.tree_structure(state)), _leaves(state)
    varying = {"audio": {2: time}}
    proto = exported(step, example, leaves, ["codes", *next_names(leaves)], opset=opset, varying=varying)
    return finished(proto, describe(model, state, opset), {"audio": {2: "frames"}})


def decoder_graph(model: StepCodec, opset: int = OPSET) -> bytes:
    """The decoder as an ONNX file."""
    state = model.decoder_state(2)
    example = {"codes": torch.zeros(2, model.num_codebooks, 3, dtype=torch.int64)}
    step, leaves = DecoderStep(copy.deepcopy(model), pytree.tree_structure(state)), _leaves(state)
    varying = {"codes": {2: torch.export.Dim.DYNAMIC}}
    proto = exported(step, example, leaves, ["audio", *next_names(leaves)], opset=opset, varying=varying)
    return finished(proto, describe(model, state, opset), {"codes": {2: "frames"}})


def describe(model: StepCodec, state: State, opset: int) -> dict[str, Any]:
    """What a program must know to run a graph with this state; sizes in samples, rates in Hz."""
    spec = model.frame_spec
    return {
        "format": 1,
        "family": model.config.family,
        "model": model.name,
        "weights_hash": model.weights_hash,
        "sample_rate": spec.sample_rate,
        "hop": spec.hop,
        "decoder_delay": spec.decoder_delay,
        "channels": model.channels,
        "num_codebooks": model.num_codebooks,
        "codebook_sizes": list(model.codebook_sizes),
        "opset": opset,
        "states": describe_states(_leaves(state)),
    }


def describe_states(state: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Name, shape and type of each state [batch, ...]."""
    return [
        {"name": name, "shape": ["batch", *leaf.shape[1:]], "dtype": str(leaf.dtype).removeprefix("torch.")}
        for name, leaf in state.items()
    ]


class Step:
    """An exported graph with its state in ONNX Runtime, for one signal [batch, ...]."""

    def __init__(self, session: Any, batch: int) -> None:
        self.session = session
        states = json.loads(session.get_modelmeta().custom_metadata_map["codec"])["states"]
        self.state = {one["name"]: np.zeros((batch, *one["shape"][1:]), one["dtype"]) for one in states}
        self.input = session.get_inputs()[0].name

    def __call__(self, x: np.ndarray[Any, Any], **inputs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The output for the next chunk; an encoder takes `num_codebooks` [], too."""
        y, *after = self.session.run(None, {self.input: x, **inputs, **self.state})
        self.state = dict(zip(self.state, after, strict=True))
        output: np.ndarray[Any, Any] = y
        return output


def session(graph: str | bytes, threads: int = 0) -> Any:
    """ONNX Runtime's session on the CPU for a file or its content; `threads` 0 for as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def verify(model: StepCodec, folder: Path) -> tuple[int, tuple[str, ...], float]:
    """Compare the graphs of a folder in ONNX Runtime with torch: (codes compared, frames that differ, largest error).

    The signals are a synthetic voice with music, silence, noise at full scale and the voice 60 dB lower; as a batch of
    whole signals with all codebooks, half of them and one, and one by one in chunks of one frame.

    Raises CodecError if more than `MAX_NEAR_TIES` of the codes differ, and more than one frame, or if the audio differs
    by more than `MAX_ERROR`.
    """
    hop, signals = model.frame_spec.hop, check_signals(model)
    encode, decode = (session(str(folder / name)) for name in GRAPHS)
    audio, every = torch.stack(list(signals.values())), list(range(len(signals)))
    whole, all_codebooks = audio.shape[2] // hop, model.num_codebooks
    some = sorted({1, all_codebooks // 2} & set(model.codebook_choices))
    wrong: list[str] = []
    total, error = 0, 0.0
    for rows, frames, num_codebooks in [
        *((every, whole, count) for count in (*some, all_codebooks)),
        *(([row], 1, all_codebooks) for row in every),
    ]:
        state = model.encoder_state(len(rows))
        codes, _ = model.encode_step(audio[rows], state, num_codebooks=num_codebooks)
        expected, _ = model.decode_step(codes, model.decoder_state(len(rows)))
        codes = F.pad(codes, (0, 0, 0, all_codebooks - num_codebooks), value=-1)
        count = np.array(num_codebooks)
        found = _in_chunks(Step(encode, len(rows)), audio[rows].numpy(), frames * hop, num_codebooks=count)
        sound = _in_chunks(Step(decode, len(rows)), codes.numpy(), frames)
        for row, frame in np.argwhere((found != codes.numpy()).any(axis=1)):
            wrong.append(f"{list(signals)[rows[row]]}, frame {frame}")
        error = max(error, float(np.abs(sound - expected.numpy()).max()))
        total += num_codebooks * found[:, 0].size  # the others are -1
    if len(wrong) > max(1, MAX_NEAR_TIES * total):
        raise CodecError(
            f"the exported encoder gives other codes than torch ({'; '.join(wrong[:3])}; {len(wrong)} frames in all): "
            "nothing was written, try another version of torch or onnxruntime"
        )
    if not error <= MAX_ERROR:
        raise CodecError(
            f"the exported decoder's audio differs by {error:.1e} from torch's: nothing was written, try another "
            "version of torch or onnxruntime"
        )
    return total, tuple(wrong), error


def check_signals(model: Codec) -> dict[str, Tensor]:
    """Signals [channels, time] of whole frames at the model's rate, about `SECONDS` long, by name."""
    voice = resample(synth.synthesize(), synth.RATE, model.sample_rate)[0]
    time = round(SECONDS * model.frame_rate) * model.frame_spec.hop
    noise = np.sign(np.random.default_rng(0).standard_normal(time)).astype(np.float32)
    rows = {
        "voice": voice[:time],
        "silence": np.zeros(time, np.float32),
        "full scale": noise,
        "faint": voice[:time] / 1e3,
    }
    return {name: torch.from_numpy(np.tile(row.astype(np.float32), (model.channels, 1))) for name, row in rows.items()}


def _in_chunks(step: Step, x: np.ndarray[Any, Any], size: int, **inputs: Any) -> np.ndarray[Any, Any]:
    return np.concatenate([step(x[..., at : at + size], **inputs) for at in range(0, x.shape[-1], size)], axis=-1)


def exportable(model: Codec) -> StepCodec:
    """The model if each step gives a frame for a frame."""
    if not isinstance(model, StepCodec) or model.own_padding or not model.has_codes:
        reason = (
            "does not quantize" if not model.has_codes else "does not give a frame of codes for each frame of audio"
        )
        raise UsageError(
            f"a model of the family {model.config.family} cannot be exported, because it {reason}: export a model of "
            "the family causal"
        )
    return copy.deepcopy(model).cpu()


def check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingDependency(
            f"{error.name} is not installed: it comes with the extra onnx (`pip install '.[onnx]'` in the project's "
            "folder)"
        ) from error


def check_opset(opset: int) -> None:
    from onnx import defs

    if not OPSET <= opset <= defs.onnx_opset_version():
        raise UsageError(
            f"opset {opset} cannot be exported: torch and onnx {version('onnx')} know opsets {OPSET} to "
            f"{defs.onnx_opset_version()}"
        )


def _leaves(state: State) -> dict[str, Tensor]:
    """The leaves of a state by name: state_backbone_0, ..."""
    paths, _ = pytree.tree_flatten_with_path(state)
    return {"_".join(["state", *re.findall(r"\w+", pytree.keystr(path))]): leaf for path, leaf in paths}


def next_names(states: Iterable[str]) -> list[str]:
    """Names of the outputs that are the next states."""
    return [name.replace("state", "next", 1) for name in states]


def exported(
    step: nn.Module,
    inputs: dict[str, Tensor],
    listed: dict[str, Tensor],
    outputs: list[str],
    *,
    opset: int,
    varying: dict[str, dict[int, Any]] | None = None,
) -> Any:
    """The ONNX model of a step, as a protocol buffer. The step takes the inputs, and then a list of the `listed` ones.

    The first axis of every input is the batch, unless it is a single number. `varying` names the other axes that vary.
    """
    from onnxscript import optimizer

    axes = {name: {0: torch.export.Dim.DYNAMIC} if one.ndim else {} for name, one in (inputs | listed).items()}
    for name, others in (varying or {}).items():
        axes[name] |= others
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            step.eval(),
            (*inputs.values(), list(listed.values())),
            dynamo=True,
            dynamic_shapes=(*(axes[name] for name in inputs), [axes[name] for name in listed]),
            opset_version=opset,
            input_names=[*inputs, *listed],
            output_names=outputs,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        optimizer.optimize(program.model, output_size_limit=SMALL)  # torch's limit would store tables of 1 MB
    return program.model_proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of exporters about their own deprecated calls and about torchvision."""
    import logging

    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def finished(proto: Any, description: dict[str, Any], axes: dict[str, dict[int, str]] | None = None) -> bytes:
    """The file: named axes, metadata, weights as fp16 where fp16 is exact, and nothing else.

    `axes` names, for each input, the axes that vary beside the batch, or what they are a multiple of.
    """
    _strip(proto.graph)
    _name_axes(proto.graph, axes or {})
    _halve(proto.graph)
    entry = proto.metadata_props.add()
    entry.key, entry.value = "codec", json.dumps(description)
    content: bytes = proto.SerializeToString()
    return content


def shared(encoder: bytes, decoder: bytes) -> tuple[bytes, bytes, bytes]:
    """The two graphs, and the content of `SHARED`: large weights of both, which are moved there.

    The metadata of both say its SHA-256, because a runtime would take the file of another model.
    """
    import onnx

    protos = [onnx.load_from_string(graph) for graph in (encoder, decoder)]
    keys = [{_key(tensor): tensor for tensor in proto.graph.initializer} for proto in protos]
    content = bytearray()
    for key in keys[0]:  # in the order of the graph, so that the file is the same each time
        if key in keys[1] and math.prod(key[1]) > SMALL:
            for tensors in keys:
                _move(tensors[key], len(content), len(key[2]))
            content += key[2]
    for proto in protos:
        entry = next(one for one in proto.metadata_props if one.key == "codec")
        known = {"file": SHARED, "sha256": hashlib.sha256(content).hexdigest()}
        entry.value = json.dumps(json.loads(entry.value) | {"shared": known})
    return protos[0].SerializeToString(), protos[1].SerializeToString(), bytes(content)


def _key(tensor: Any) -> tuple[int, tuple[int, ...], bytes]:
    """Type, shape and values."""
    return tensor.data_type, tuple(tensor.dims), tensor.raw_data


def _move(tensor: Any, offset: int, length: int) -> None:
    """Say that the values of a tensor are in `SHARED`."""
    from onnx import TensorProto

    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", SHARED), ("offset", str(offset)), ("length", str(length))):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


def _strip(graph: Any) -> None:
    """Remove what no runtime needs: source lines of the exporter and of this package in each node, inferred shapes."""
    del graph.value_info[:], graph.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)
    for value in (*graph.initializer, *graph.input, *graph.output):
        del value.metadata_props[:]


def _name_axes(graph: Any, axes: dict[str, dict[int, str]]) -> None:
    """Name the axes that vary, and what is computed from them, such as a multiple."""
    names: dict[str, str] = {}
    for one in graph.input:
        shape = one.type.tensor_type.shape.dim
        given = axes.get(one.name, {}) | ({0: "batch"} if shape else {})
        names |= {shape[axis].dim_param.rpartition("*")[2]: name for axis, name in given.items()}
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), axis.dim_param)


def _halve(graph: Any) -> None:
    """Store large weights that are exact in fp16, as those of shipped models are, as fp16 and a cast.

    ONNX Runtime computes the cast once, when it loads the file.
    """
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        weight = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = weight.astype(np.float16)
        if weight.size > SMALL and np.array_equal(half, weight):
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(half, f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
