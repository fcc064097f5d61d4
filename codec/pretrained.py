"""Names to models: those shipped with the package, files, and the folders of training runs."""

import difflib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from codec import checkpoint
from codec.checkpoint import RUN_MODEL, CodecCard, ModelCard, load_model, read_card
from codec.errors import InputNotFound, UnknownModel, WeightsMismatch, model_label

if TYPE_CHECKING:
    import torch

    from codec.lm.base import CodecLM
    from codec.models.base import Codec

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "general-24k"
DEFAULT_LM = "digits-8k-lm"
EARLIER = {  # hashes of weights that earlier releases shipped under the same names
    "8e0c5992627e742a4f9a7622d4f1b55537049924897b74bfb505f8b7b6b3a09c": "0.1.0",
    "adbc6029996e8090fb2b116bd606c4dbf2231a08e603976a864cd7e9ad464e8e": "0.1.0",
}


def load(name_or_path: str | Path = DEFAULT, device: "str | torch.device" = "auto") -> "Codec":
    """Load a shipped codec by name, or one from a .safetensors file or a training run's folder.

    `device` "auto" is a GPU where there is one, as on the command line; "cpu" stays on the CPU. What the model makes is
    on its device; audio and codes may be given on any.

    Raises UnknownModel: there is no such model, or the file is no codec. UsageError: the device cannot be used.
    """
    return load_model(find(name_or_path), device)


def load_lm(name_or_path: str | Path = DEFAULT_LM, device: "str | torch.device" = "auto") -> "CodecLM":
    """Load a language model, as `load` does a codec."""
    return checkpoint.load_lm(find(name_or_path), device)


def codec_of(lm: "CodecLM", model: str | Path | None = None, device: "str | torch.device" = "cpu") -> "Codec":
    """Load the codec whose codes a language model learned: `model`, or else a shipped one, or what its file names.

    Raises:
        WeightsMismatch: `model` has other weights.
        UnknownModel: there is no such model, or none with the right weights was found.
    """
    source = lm.source
    label = f"the training data of {lm.name or 'this language model'}"
    made_by = (source.codec, source.weights_hash)
    if model is not None:
        codec = load(model, device)
        if codec.weights_hash != source.weights_hash:
            raise WeightsMismatch(
                label, made_by=made_by, given=(codec.name, codec.weights_hash), way_out="pass the codec that made it"
            )
        return codec
    for card in _codecs(source.codec):
        if card.weights_hash == source.weights_hash:
            return load_model(card.path, device)
    raise UnknownModel(f"{label} was made by {model_label(made_by)}, which was not found: pass --codec with its file")


def describe(name_or_path: str | Path) -> ModelCard:
    """What a model says about itself, without building it. Raises as `load`."""
    return read_card(find(name_or_path))


def shipped() -> list[ModelCard]:
    """The models inside the package, in order of name."""
    return [read_card(path) for path in _shipped_files().values()]


def names() -> list[str]:
    """The names of the models inside the package."""
    return list(_shipped_files())


def find(name_or_path: str | Path) -> Path:
    """The file of a model. Names of shipped models come first: write ./NAME for a file of such a name.

    Raises UnknownModel: there is no such model; the message lists those there are.
    """
    files = _shipped_files()
    if str(name_or_path) in files:
        return files[str(name_or_path)]
    path = Path(name_or_path)
    if path.is_dir():
        path = path / RUN_MODEL
    if path.is_file():
        return path
    close = difflib.get_close_matches(str(name_or_path), files, n=1)
    hint = f"did you mean {close[0]}? There" if close else "there"
    raise UnknownModel(
        f"no model {name_or_path}: {hint} are {', '.join(files) or 'none shipped'}; "
        "or name a .safetensors file or the folder of a training run"
    )


def _codecs(name: str) -> Iterator[CodecCard]:
    """Those shipped, then the one that is called so."""
    yield from (card for card in shipped() if isinstance(card, CodecCard))
    with suppress(UnknownModel, InputNotFound):
        yield describe(name).as_codec()


def _shipped_files() -> dict[str, Path]:
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors"))}
