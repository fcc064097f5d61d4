"""One safetensors file is one model: weights, family, configuration and what it was trained on.

The metadata entry "codec" is JSON: {"format": 1, "family", "config", "frame_spec", "training"}. That of a language
model has no frame_spec, and a config of two parts: {"model", "source"}. A training run keeps its resumable state in a
second file beside the model.
"""

import hashlib
import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, TypeVar

from codec.errors import ConfigError, InputNotFound, UnknownModel, UsageError
from codec.frames import FrameSpec

if TYPE_CHECKING:
    import torch

    from codec.lm.base import CodecLM
    from codec.models.base import Codec

FORMAT = 1
HASHED_AS = {  # the names of release 0.1.0 count in the hash, so that .codec files of the same weights still decode
    "num_codebooks": "books",
    "beam_size": "search",
    "distance": "lookup",
    "codebook_dim": "project",
    "codebook_update": "learning",
    "cluster_size": "usage",
}
RUN_MODEL = "model.safetensors"  # the model file in the folder of a training run
RUN_STATE = "state.pt"  # beside it, what the training goes on from
STATE_MAGIC = b"codec state 1\n"  # then the SHA-256 of the rest, which is what torch.save makes

Model = TypeVar("Model", "Codec", "CodecLM")


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What a model file says about itself; read without building the model.

    `name` is the file's, or the folder's for the model of a training run. `size` is in bytes, `parameters` counts every
    stored number, `weights_hash` is the hex SHA-256 of the weights and the configuration. `training` holds whatever the
    training wrote: data, step, measures.
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
        """Itself, if it is a codec's. Raises UnknownModel otherwise."""
        raise UnknownModel(f"{self.name} is a language model: codec generate takes it; name a codec here")

    def as_lm(self) -> "LMCard":
        """Itself, if it is a language model's. Raises UnknownModel otherwise."""
        raise UnknownModel(f"{self.name} is a codec: codec encode takes it; name a language model here")

    def as_data(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {**asdict(self), "path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class CodecCard(ModelCard):
    """That of a codec."""

    frame_spec: FrameSpec

    def as_codec(self) -> "CodecCard":
        return self


@dataclass(frozen=True, kw_only=True)
class LMCard(ModelCard):
    """That of a language model; `source` is whose codes it learned, as `codec.lm.base.Source`."""

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
    """Write the file of a codec, replacing one that is there only when the new one is whole.

    `training` is plain data (JSON). `dtype` is what floating-point tensors are stored as, for instance float16 to ship
    them; None keeps them as they are.

    Raises:
        StorageError: the file cannot be written.
        UsageError: weights are infinite or no numbers, perhaps because they are out of the range of `dtype`.
    """
    config, math = model.config.model_dump(mode="json"), asdict(model.frame_spec)
    _save(path, model, {"config": config, "frame_spec": math, "training": dict(training)}, dtype)


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


def read_card(path: str | Path) -> ModelCard:
    """Read what a model file says about itself.

    Raises:
        InputNotFound: there is no such file.
        UnknownModel: the file is no whole model file, or a newer codec made it.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputNotFound(f"{path}: there is no such file")
    try:
        with safe_open(path, framework="numpy") as file:  # also checks that header and size of the file agree
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UnknownModel(f"{path} is not a whole model file ({error}): fetch or train it again") from error
    try:
        card = json.loads(metadata["codec"])
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
            "training": card["training"],
        }
        if "frame_spec" in card:
            return CodecCard(**facts, config=config, frame_spec=FrameSpec(**card["frame_spec"]))
        return LMCard(**facts, config=dict(config["model"]), source=dict(config["source"]))
    except (KeyError, TypeError, ValueError, RecursionError, ConfigError) as error:
        raise UnknownModel(
            f"{path} is a safetensors file, but no model of codec: its metadata do not tell one"
        ) from error


def load_model(path: str | Path, device: "str | torch.device" = "cpu") -> "Codec":
    """Build the codec a file describes, ready for use: its weights in float32, in evaluation mode.

    `device` "auto" is a GPU where there is one. Raises as `read_card`, UnknownModel also where configuration and
    weights do not make a codec, UsageError where the device cannot be used.
    """
    from codec import models

    card = read_card(path).as_codec()
    model = _load(card, lambda: models.build(card.family, card.config), device)
    if model.frame_spec != card.frame_spec:
        raise UnknownModel(f"{path} contradicts itself about its frames: fetch or train it again")
    return model


def load_lm(path: str | Path, device: "str | torch.device" = "cpu") -> "CodecLM":
    """Build the language model a file describes, as `load_model` does a codec, laid out in memory for generation."""
    from codec import lm

    card = read_card(path).as_lm()
    return _load(card, lambda: lm.build(card.config, card.source), device).prepare_for_inference()


def save_state(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write the resumable state of a training: tensors and plain data, nothing else, for `load_state` to accept it."""
    import torch

    from codec.io.storage import atomic_output

    whole = io.BytesIO()  # torch hides why a write fails
    torch.save(dict(state), whole)
    with atomic_output(path, force=True) as file:
        file.write(STATE_MAGIC + hashlib.sha256(whole.getbuffer()).digest())
        file.write(whole.getbuffer())


def load_state(path: str | Path, device: "str | torch.device" = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote; no code stored in the file is ever run.

    Raises InputNotFound: there is no such file. UnknownModel: the file is damaged, or no training state.
    """
    import torch

    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputNotFound(f"{path}: no training to resume there") from error
    anew = "begin anew in another --out"
    begin = len(STATE_MAGIC) + hashlib.sha256().digest_size
    if not content.startswith(STATE_MAGIC):
        if content.startswith(b"PK"):  # what torch.save alone makes
            raise UnknownModel(f"{path} was made by an older program, or is no training state: {anew}")
        raise UnknownModel(f"{path} is no training state: {anew}")
    if hashlib.sha256(memoryview(content)[begin:]).digest() != content[len(STATE_MAGIC) : begin]:
        raise UnknownModel(f"{path} is damaged: {anew}")
    try:
        state = torch.load(io.BytesIO(content[begin:]), map_location=device, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, TypeError) as error:
        raise UnknownModel(f"{path} is no training state: {anew}") from error
    if not isinstance(state, dict) or not {"recipe", "step"} <= state.keys():
        raise UnknownModel(f"{path} is no training state: {anew}")
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
    whole = {"format": FORMAT, "family": model.config.family, **card}
    with atomic_output(path, force=True) as file:
        file.write(save(tensors, metadata={"codec": json.dumps(whole)}))


def _load(card: ModelCard, build: "Callable[[], Model]", device: "str | torch.device") -> "Model":
    """The model that `build` makes, with the weights of the card's file."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(card.path)
    kept = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64}
    if not all(tensor.dtype in kept for tensor in tensors.values()):
        raise UnknownModel(f"{card.path} has numbers of a kind that no model of codec has: fetch or train it again")
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UnknownModel(f"{card.path} has weights that are not finite: fetch or train it again")
    try:
        model = build()
        model.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in tensors.items()})
    except (ConfigError, RuntimeError) as error:  # RuntimeError also for more memory than there is
        problem = shorten(str(error), 300)
        raise UnknownModel(f"{card.path}: its weights do not fit its configuration ({problem})") from error
    model.name = card.name
    model.weights_hash = card.weights_hash
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:  # no such device, no driver, a torch built without it
        raise UsageError(f"device {device} cannot be used ({str(error).splitlines()[0]}): use cpu") from error


def _digest(path: Path, config: Mapping[str, Any]) -> tuple[str, int]:
    """SHA-256 over the tensors in order of name (name, type, shape, bytes) and the configuration; and their numbers.

    Reads the file itself rather than tensors: the hash is of what is stored, and needs no torch.
    """
    digest = hashlib.sha256()
    numbers = 0
    with path.open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_size))
        header.pop("__metadata__")
        for name, entry in sorted(header.items(), key=lambda item: _hashed_name(item[0])):
            begin, end = entry["data_offsets"]
            file.seek(8 + header_size + begin)
            digest.update(json.dumps([_hashed_name(name), entry["dtype"], entry["shape"]]).encode())
            digest.update(file.read(end - begin))
            numbers += math.prod(entry["shape"])
    digest.update(json.dumps(_hashed_keys(config), sort_keys=True).encode())
    return digest.hexdigest(), numbers


def _hashed_name(name: str) -> str:
    """Name of a tensor in the hash, part by part."""
    return ".".join(HASHED_AS.get(part, part) for part in name.split("."))


def _hashed_keys(config: Any) -> Any:
    """A configuration with the names of its keys in the hash."""
    if isinstance(config, Mapping):
        return {HASHED_AS.get(key, key): _hashed_keys(value) for key, value in config.items()}
    return config
