"""Checkpoints of other projects: read a file or a transformers folder, and build the model of our family for it.

Readable: a .th, .pth, .pt or .bin file written by torch.save (a state_dict, bare or under "state_dict" or "model"), a
.safetensors file, and a folder of transformers with config.json beside either. Code inside of a file is never executed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codec.checkpoint import (
    KINDS,
    PARAMETERS_AT_LEAST,
    CodecCard,
    assign_weights,
    most_memory,
    read_entries,
    read_tensor,
    tensors_digest,
)
from codec.errors import ConfigError, UnknownModel
from codec.io.bounded_json import read_json
from codec.io.plain_torch import NotPlainError, load_plain

if TYPE_CHECKING:
    from torch import Tensor

    from codec.models.base import Codec, CodecConfig

PICKLES = frozenset((".th", ".pth", ".pt", ".bin", ".ckpt"))
INDEX = "model.safetensors.index.json"  # of weights in several files
FOLDER_FILES = ("model.safetensors", "pytorch_model.bin", INDEX)
CONFIG = "config.json"
WEIGHTS = ("*.safetensors", "*.bin")
WRAPPED_PARAMETERS = 100_000  # that a model of transformers may have; those of today have a few thousand
OWN_MODEL_TYPE = "codec"
"""How transformers calls the models of `codec.export.transformers`."""
MAX_CONFIG = 1 << 20  # bytes of a config.json


def is_foreign(path: Path) -> bool:
    """Whether a file is a checkpoint of another project, by its suffix and, for safetensors, its metadata."""
    if path.suffix in PICKLES or path.name == INDEX:
        return True
    if path.suffix != ".safetensors":
        return False
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "codec" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False  # `codec.checkpoint` says what is wrong with it


def load(path: Path) -> Codec:
    """Build the model of a checkpoint of another project, in evaluation mode on the CPU.

    Raises UnknownModel if the file is not readable, incomplete, or of no known family.
    """
    from codec import models
    from codec.models.convert import OWN_TYPES, convert
    from codec.nn.bounds import built_within

    if _model_type(path) not in (None, OWN_MODEL_TYPE, *OWN_TYPES):
        return _wrapped(path)
    tensors, metadata = _read(path)
    if metadata.get("model_type") == OWN_MODEL_TYPE:
        config, weights = _exported(tensors, metadata, path)
    else:
        config, weights = convert(tensors, metadata, label=str(path))
    try:
        bounds = {"parameters": PARAMETERS_AT_LEAST + len(weights), "size": most_memory(path.stat().st_size)}
        with built_within(**bounds, initialize=False):
            model = models.of_config(config)
        assign_weights(model, weights)
    except (ConfigError, RuntimeError, MemoryError) as error:
        problem = " ".join(str(error).split("\n", 1)[-1].split())[:300]
        raise UnknownModel(f"{path} does not fit its own configuration: {problem}") from error
    return _identified(model, path)


def _exported(
    tensors: dict[str, Tensor], metadata: Mapping[str, Any], path: Path
) -> tuple[CodecConfig, dict[str, Tensor]]:
    """Configuration and tensors of a folder of `codec.export.transformers`."""
    from codec import models

    try:
        config = models.config_of(metadata["family"], metadata["codec"])
    except (LookupError, TypeError, ConfigError) as error:
        raise UnknownModel(f"{path.parent / CONFIG} was altered ({error}): save the model again") from error
    return config, {name.removeprefix("codec."): tensor for name, tensor in tensors.items()}


def _wrapped(path: Path) -> Codec:
    """The model of a folder of transformers that is none of our families."""
    from codec import models
    from codec.nn.bounds import built_within

    size = sum(file.stat().st_size for pattern in WEIGHTS for file in path.parent.glob(pattern))
    try:
        with built_within(parameters=WRAPPED_PARAMETERS, size=most_memory(size)):
            model = models.from_transformers(path.parent)
    except (ConfigError, MemoryError) as error:
        raise UnknownModel(f"{path} does not fit its own configuration: {error}") from error
    return _identified(model, path)


def _identified(model: Codec, path: Path) -> Codec:
    """The model with its name and hash, in evaluation mode."""
    model.name = path.parent.name if path.name in FOLDER_FILES else path.stem
    model.weights_hash = tensors_digest(model.state_dict(), model.config.model_dump(mode="json"))
    return model.eval()


def _model_type(path: Path) -> str | None:
    """The type of model that the config.json beside a file of a transformers folder states."""
    beside = path.parent / CONFIG
    if path.name not in FOLDER_FILES or not beside.is_file():
        return None
    kind = _read_config(beside).get("model_type")
    return kind if isinstance(kind, str) else None


def card(path: Path) -> CodecCard:
    """The card of a checkpoint of another project. Raises as `load`, because it has to load it."""
    model = load(path)
    assert model.name is not None
    assert model.weights_hash is not None
    return CodecCard(
        name=model.name,
        path=path,
        size=path.stat().st_size,
        parameters=sum(tensor.numel() for tensor in model.state_dict().values()),
        weights_hash=model.weights_hash,
        family=model.config.family,
        config=model.config.model_dump(mode="json"),
        training={},
        frame_spec=model.frame_spec,
    )


def _read(path: Path) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    """The float32 tensors of a checkpoint, and what it says of itself."""
    content = _read_tensors(path)
    metadata: Mapping[str, Any] = {}
    if isinstance(content.get("metadata"), Mapping):
        metadata = content["metadata"]
    beside = path.parent / CONFIG
    if not metadata and beside.is_file():
        metadata = _read_config(beside)
    for key in ("state_dict", "model", "best_state"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
    return _tensors(content, path), metadata


def _read_tensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError, safe_open

    way_out = "download it again"
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="numpy"):  # checks that header and size of the file agree
                pass
            with path.open("rb") as file:
                entries = read_entries(file)
                unknown = {entry.kind for entry in entries.values()} - KINDS.keys()
                if unknown:
                    raise UnknownModel(f"{path} has tensors of the type {min(unknown)}: give one of float32 tensors")
                return {name: read_tensor(file, entry) for name, entry in entries.items()}
        if _holds_code(path):
            raise UnknownModel(
                f"{path} holds a model with its code, which is not executed: give a file of its state_dict (of DAC the "
                "weights.pth beside package.pth, or save(..., package=False))"
            )
        content = load_plain(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UnknownModel(f"{path} is not a complete checkpoint ({_first_line(error)}): {way_out}") from error
    except NotPlainError as error:
        raise UnknownModel(
            f"{path} holds more than tensors and plain data, which is not executed: convert it to safetensors where it "
            "was made"
        ) from error
    if not isinstance(content, Mapping):
        raise UnknownModel(f"{path} holds a {type(content).__name__}, not tensors by name: give a model's checkpoint")
    return content


def _holds_code(path: Path) -> bool:
    """Whether a file was written by torch.package or torch.jit instead of torch.save."""
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith(("/.data/extern_modules", "/constants.pkl")) for name in archive.namelist())
    return False


def _read_config(path: Path) -> Mapping[str, Any]:
    with path.open("rb") as file:
        data = file.read(MAX_CONFIG + 1)
    try:
        config = read_json(data) if len(data) <= MAX_CONFIG else None
    except ValueError:
        config = None
    if not isinstance(config, Mapping):
        raise UnknownModel(f"{path} is not the configuration of a model: download it again")
    return config


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    from torch import Tensor

    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UnknownModel(f"{path} holds no tensors: give a model's checkpoint")
    if 4 * sum(tensor.numel() for tensor in tensors.values()) > most_memory(path.stat().st_size):
        raise UnknownModel(f"{path} has tensors that are larger than the file: download it again")  # views of one value
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UnknownModel(f"{path} has weights that are not finite ({name}): download it again")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
