"""One safetensors file is one model: weights, family, configuration and what it was trained on.

The metadata entry "codec" is JSON: {"format": 1, "family", "config", "frame_spec", "training"}. The entry of a language
model has no frame_spec, and its config has two parts: {"model", "source"}. A training run keeps its resumable state in
a second file beside the model.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar

from codec.errors import ConfigError, InputNotFound, UnknownModel, UsageError
from codec.frames import FrameSpec
from codec.io.bounded_json import read_json
from codec.io.plain_torch import NotPlainError, load_plain

if TYPE_CHECKING:
    import torch

    from codec.lm.base import CodecLM
    from codec.models.base import Codec

FORMAT = 1
HASHED_AS = {  # names of release 0.1.0, which the hash uses, so that its .codec files can still be decoded
    "num_codebooks": "books",
    "beam_size": "search",
    "distance": "lookup",
    "codebook_dim": "project",
    "codebook_update": "learning",
    "cluster_size": "usage",
}
SOURCE_FACTS = {"codec": str, "weights_hash": str, "num_codebooks": int, "classes": dict}  # of a language model
RUN_MODEL = "model.safetensors"  # the model file in the folder of a training run
RUN_STATE = "state.pt"  # beside it, the state to resume from
STATE_MAGIC = b"codec state 1\n"  # followed by the SHA-256 of the rest, the output of torch.save

PARAMETERS_AT_LEAST = 1000  # tensors that a model may have beyond those of its file, so that a message can name them
MEMORY_PER_BYTE = 16  # bytes of parameters and tables that a model may have per byte of its file
MEMORY_AT_LEAST = 64 * 2**20  # bytes that it may have in any case, because the tables of a small model are larger

Model = TypeVar("Model", "Codec", "CodecLM")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The metadata of a model file, read without building the model.

    `name` is that of the file, or of the folder for the model of a training run. `size` is in bytes, `parameters`
    counts all stored tensor elements, `weights_hash` is the hex SHA-256 of the weights and the configuration.
    `training` holds what the training run wrote: data, step, measures.
    """

    name: str
    path: Path
    size: int
    parameters: int
    weights_hash: str
    family: str
    config: dict[str, Any]
    training: dict[str, Any]

    def as_codec(self) -> "CodecCard":
        """This card as a codec's. Raises UnknownModel for a language model."""
        raise UnknownModel(f"{self.name} is a language model: codec generate takes it; name a codec here")

    def as_lm(self) -> "LMCard":
        """This card as a language model's. Raises UnknownModel for a codec."""
        raise UnknownModel(f"{self.name} is a codec: codec encode takes it; name a language model here")

    def as_data(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class CodecCard(ModelCard):
    """The metadata of a codec file."""

    frame_spec: FrameSpec

    def as_codec(self) -> "CodecCard":
        return self


@dataclass(frozen=True, kw_only=True)
class LMCard(ModelCard):
    """The metadata of a language model file; `source` describes the codec, as `codec.lm.base.CodebookSpec`."""

    source: dict[str, Any]

    def as_lm(self) -> "LMCard":
        return self


def save_model(
    path: str | Path,
    model: "Codec",
    *,
    training: Mapping[str, Any],
    dtype: "torch.dtype | None" = None,
) -> None:
    """Write a codec to a file; an existing file is replaced once the new one is complete.

    `training` is plain data (JSON). `dtype` converts floating-point tensors, for instance to float16 for a release.

    Raises:
        StorageError: the file cannot be written.
        UsageError: weights are infinite or NaN, perhaps because they exceed the range of `dtype`.
    """
    config, spec = model.config.model_dump(mode="json"), asdict(model.frame_spec)
    _save(path, model, {"config": config, "frame_spec": spec, "training": dict(training)}, dtype)


def save_lm(
    path: str | Path,
    lm: "CodecLM",
    *,
    training: Mapping[str, Any],
    dtype: "torch.dtype | None" = None,
) -> None:
    """Write the file of a language model, as `save_model` does that of a codec."""
    config = {"model": lm.config.model_dump(mode="json"), "source": lm.source.model_dump(mode="json")}
    _save(path, lm, {"config": config, "training": dict(training)}, dtype)


def most_memory(size: int) -> int:
    """Bytes of parameters and tables that a model of a file of `size` bytes may have."""
    return MEMORY_AT_LEAST + MEMORY_PER_BYTE * size


def read_card(path: str | Path) -> ModelCard:
    """Read the metadata of a model file.

    Raises:
        InputNotFound: there is no such file.
        UnknownModel: the file is not a complete model file, or is of a newer format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputNotFound(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:  # also checks that header and size of the file agree
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UnknownModel(f"{path} is not a complete model file ({error}): download or train it again") from error
    try:
        card = read_json(metadata["codec"])
        if card["format"] > FORMAT:
            raise UnknownModel(f"{path} has format {card['format']}, this codec reads up to {FORMAT}: upgrade codec")
        config = card["config"]
        digest, parameters = _digest(path, config)
        facts = {
            "name": path.resolve().parent.name if path.name == RUN_MODEL else path.stem,
            "path": path,
            "size": path.stat().st_size,
            "parameters": parameters,
            "weights_hash": digest,
            "family": card["family"],
            "training": _checked(card, {"training": dict})["training"],
        }
        if "frame_spec" in card:
            return CodecCard(**facts, config=config, frame_spec=FrameSpec(**card["frame_spec"]))
        return LMCard(**facts, config=dict(config["model"]), source=_checked(config["source"], SOURCE_FACTS))
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise UnknownModel(
            f"{path} is a safetensors file, but not a model of codec: its metadata do not describe one"
        ) from error


def _checked(facts: Any, types: Mapping[str, type]) -> dict[str, Any]:
    """A copy of facts of these types. Raises TypeError or KeyError for others."""
    for key, kind in types.items():
        if not isinstance(facts[key], kind):
            raise TypeError(f"{key} is {facts[key]!r:.40}")
    return dict(facts)


def load_model(path: str | Path, device: "str | torch.device" = "cpu") -> "Codec":
    """Load a codec from its file, with float32 weights and in evaluation mode.

    `device` "auto" is a GPU if there is one. Raises as `read_card`, UnknownModel also if configuration and weights do
    not fit together, UsageError if the device cannot be used.
    """
    from codec import models

    card = read_card(path).as_codec()
    model = _load(card, lambda: models.build(card.family, card.config), device)
    if model.frame_spec != card.frame_spec:
        raise UnknownModel(f"{path} has a frame_spec that contradicts its configuration: download or train it again")
    return model


def load_lm(path: str | Path, device: "str | torch.device" = "cpu") -> "CodecLM":
    """Load a language model from its file, as `load_model`, with its weights packed for inference."""
    from codec import lm

    card = read_card(path).as_lm()
    model = _load(card, lambda: lm.build(card.config, card.source), device).prepare_for_inference()
    codec = card.training.get("codec")  # of any type in a file that was edited
    model.path, model.codec_path = card.path, codec if isinstance(codec, str) else None
    return model


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the state to resume a training run from; it may hold tensors and plain data only."""
    import torch

    from codec.io.storage import atomic_output

    buffer = io.BytesIO()  # because torch hides why a write to a file fails
    torch.save(dict(state), buffer)
    with atomic_output(path, force=True) as file:
        file.write(STATE_MAGIC + hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())


def load_state(path: str | Path, device: "str | torch.device" = "cpu") -> dict[str, Any]:
    """Read a file of `save_state`; code stored in the file is never executed.

    Raises InputNotFound if there is no such file, UnknownModel if it is damaged or not a training state.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputNotFound(f"{path} does not exist: there is no training run to resume") from error
    way_out = "start over in another --out"
    start = len(STATE_MAGIC) + hashlib.sha256().digest_size
    if not content.startswith(STATE_MAGIC):
        if content.startswith(b"PK"):  # the output of torch.save, without the magic
            raise UnknownModel(f"{path} was made by an older version, or is not a training state: {way_out}")
        raise UnknownModel(f"{path} is not a training state: {way_out}")
    if hashlib.sha256(memoryview(content)[start:]).digest() != content[len(STATE_MAGIC) : start]:
        raise UnknownModel(f"{path} is damaged: {way_out}")
    try:
        state = load_plain(io.BytesIO(content[start:]), device)
    except (NotPlainError, ValueError) as error:
        raise UnknownModel(f"{path} is not a training state: {way_out}") from error
    if not isinstance(state, dict) or not {"recipe", "step"} <= state.keys():
        raise UnknownModel(f"{path} is not a training state: {way_out}")
    return state


def _save(path: str | Path, model: "Codec | CodecLM", card: Mapping[str, Any], dtype: "torch.dtype | None") -> None:
    from safetensors.torch import save

    from codec.io.storage import atomic_output

    tensors = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else None).contiguous()
        for name, tensor in model.state_dict().items()
    }
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UsageError(f"{name} cannot be stored: as {tensor.dtype} it has values that are not finite")
    metadata = {"format": FORMAT, "family": model.config.family, **card}
    with atomic_output(path, force=True) as file:
        file.write(save(tensors, metadata={"codec": json.dumps(metadata)}))


def _load(card: ModelCard, build: "Callable[[], Model]", device: "str | torch.device") -> "Model":
    """Build a model and load the weights of the card's file into it."""
    from codec.nn.bounds import built_within

    with card.path.open("rb") as file:
        entries = read_entries(file)
        if not {entry.kind for entry in entries.values()} <= {"F16", "BF16", "F32", "F64", "I64"}:
            raise UnknownModel(f"{card.path} has tensors of a type that codec does not use: download or train it again")
        try:
            bounds = {"parameters": PARAMETERS_AT_LEAST + len(entries), "size": most_memory(card.size)}
            with built_within(**bounds, initialize=False):
                model = build()
            release_buffers(model)
            weights = {}
            for name, entry in entries.items():
                tensor = read_tensor(file, entry)
                if not tensor.isfinite().all():
                    raise UnknownModel(f"{card.path} has weights that are not finite: download or train it again")
                weights[name] = tensor.float() if tensor.is_floating_point() else tensor
            assign_weights(model, weights)
        except (ConfigError, RuntimeError, MemoryError, OverflowError) as error:  # RuntimeError also if memory runs out
            problem = shorten(str(error) or type(error).__name__, 300)
            raise UnknownModel(f"{card.path}: its weights do not fit its configuration ({problem})") from error
    model.name = card.name
    model.weights_hash = card.weights_hash
    return on_device(model, device)


def release_buffers(model: "Model") -> None:
    """Free the memory of random codebooks, which the tensors of a file replace."""
    import torch

    stored = model.state_dict().keys()
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name in stored:
                module._buffers[name.rpartition(".")[2]] = torch.empty_like(buffer)


def assign_weights(model: "Model", weights: "Mapping[str, torch.Tensor]") -> None:
    """Make tensors the weights of a model without a copy of each tensor that has memory of its own.

    Raises RuntimeError, which names them, for tensors that are missing, additional, or of the wrong shape.
    """
    own, storages, tensors = model.state_dict(), set(), {}
    for name, tensor in weights.items():
        storage = tensor.untyped_storage()
        shared = storage.data_ptr() in storages or storage.nbytes() > tensor.numel() * tensor.element_size()
        storages.add(storage.data_ptr())
        dtype = own[name].dtype if name in own else tensor.dtype
        tensors[name] = tensor.detach().to(dtype, copy=shared).contiguous()
    model.load_state_dict(tensors, assign=True)


def on_device(model: "Model", device: "str | torch.device") -> "Model":
    """Move a model to a device, "auto" for a GPU if there is one, in evaluation mode.

    Raises UsageError if the device cannot be used.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # no such device, no driver, a torch built without it
        raise UsageError(f"device {device} cannot be used ({str(error).splitlines()[0]}): use cpu") from error


def _digest(path: Path, config: Mapping[str, Any]) -> tuple[str, int]:
    """SHA-256 of the tensors sorted by name (name, type, shape, bytes) and the configuration; the number of parameters.

    It reads the file, not the tensors, so the hash is of the stored values and does not need torch.
    """
    digest = hashlib.sha256()
    parameters = 0
    with path.open("rb") as file:
        for name, entry in sorted(read_entries(file).items(), key=lambda item: _hashed_name(item[0])):
            file.seek(entry.start)
            _hash_tensor(digest, name, entry.kind, entry.shape, file.read(entry.size))
            parameters += math.prod(entry.shape)
    return _hashed(digest, config), parameters


class TensorEntry(NamedTuple):
    """Where a safetensors file has a tensor; `kind` is its type in the file's terms, `start` and `size` are bytes."""

    kind: str
    shape: Sequence[int]
    start: int
    size: int


KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""Types of tensors in safetensors files, and what torch calls them."""


def read_entries(file: BinaryIO) -> dict[str, TensorEntry]:
    """The entries of a safetensors file by name; the caller has opened it with safetensors, which checks the header."""
    file.seek(0)
    first = 8 + int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(first - 8))
    header.pop("__metadata__", None)
    entries = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        entries[name] = TensorEntry(entry["dtype"], entry["shape"], first + start, end - start)
    return entries


def read_tensor(file: BinaryIO, entry: TensorEntry) -> "torch.Tensor":
    """Read one tensor, instead of mapping the file, which would keep it in memory beside what is made of it."""
    import torch

    tensor = torch.empty(entry.shape, dtype=getattr(torch, KINDS[entry.kind]))
    file.seek(entry.start)
    if tensor.numel():
        file.readinto(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[attr-defined]
    return tensor


def tensors_digest(tensors: "Mapping[str, torch.Tensor]", config: Mapping[str, Any]) -> str:
    """The weights hash that a file of these float32 and int64 tensors has."""
    digest = hashlib.sha256()
    kinds = {"float32": "F32", "int64": "I64"}
    for name, tensor in sorted(tensors.items(), key=lambda item: _hashed_name(item[0])):
        kind = kinds[str(tensor.dtype).removeprefix("torch.")]
        _hash_tensor(digest, name, kind, tensor.shape, tensor.contiguous().numpy().tobytes())
    return _hashed(digest, config)


def _hash_tensor(digest: "hashlib._Hash", name: str, kind: str, shape: Sequence[int], data: bytes) -> None:
    """Count a tensor; `kind` is the type as safetensors names it."""
    digest.update(json.dumps([_hashed_name(name), kind, list(shape)]).encode())
    digest.update(data)


def _hashed(digest: "hashlib._Hash", config: Mapping[str, Any]) -> str:
    """The hash after all tensors, with the configuration."""
    digest.update(json.dumps(_hashed_keys(config), sort_keys=True).encode())
    return digest.hexdigest()


def _hashed_name(name: str) -> str:
    """The name under which the hash counts a tensor."""
    return ".".join(HASHED_AS.get(part, part) for part in name.split("."))


def _hashed_keys(config: Any) -> Any:
    """A configuration with the keys under which the hash counts it."""
    if isinstance(config, Mapping):
        return {HASHED_AS.get(key, key): _hashed_keys(value) for key, value in config.items()}
    return config
