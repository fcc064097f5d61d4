"""Find and load models: the ones shipped with the package, files, and folders of training runs."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from codec import checkpoint, foreign, published
from codec.backend import keep_freed_memory
from codec.checkpoint import RUN_MODEL, CodecCard, ModelCard, load_model, on_device, read_card
from codec.errors import InputNotFound, UnknownModel, WeightsMismatch, model_label
from codec.io.entropy_files import SUFFIX, look_beside

if TYPE_CHECKING:
    import torch

    from codec.lm.base import CodecLM
    from codec.models.base import Codec

RUNS = Path("runs")  # where `codec train` puts a run by default
WEIGHTS = Path(__file__).parent / "weights"
DEFAULT = "general-24k"
DEFAULT_LM = "digits-8k-lm"
EARLIER = {  # weights hashes of earlier releases, whose models have the same names
    "8e0c5992627e742a4f9a7622d4f1b55537049924897b74bfb505f8b7b6b3a09c": "0.1.0",
    "adbc6029996e8090fb2b116bd606c4dbf2231a08e603976a864cd7e9ad464e8e": "0.1.0",
}


def load(name_or_path: str | Path = DEFAULT, device: "str | torch.device" = "auto") -> "Codec":
    """Load a codec: by a name that `codec models` lists, from a file, or from the folder of a training run.

    Checkpoints of EnCodec, DAC, Mimi and SNAC are taken too (`codec.foreign`): files, folders of transformers, and
    published ones by name (`codec.published`), which are downloaded once. Other audio tokenizers of transformers are
    taken from their folders, or from the hub by the name hf:OWNER/NAME, and run inside transformers
    (`codec.models.wrapped`).

    `device` "auto" is a GPU if there is one, as on the command line. Inputs may be on any device; outputs are on the
    model's.

    Raises UnknownModel if there is no such model or the file is not a codec, UsageError if the device cannot be used.
    """
    return load_file(find(name_or_path), device)


def load_file(path: Path, device: "str | torch.device" = "cpu") -> "Codec":
    """Load a codec from its file, ours or of another project. Raises as `load`."""
    keep_freed_memory()
    if foreign.is_foreign(path):
        model = foreign.load(path)
        model.name = published.name_of(path) or model.name
        model = on_device(model, device)
    else:
        model = load_model(path, device)
    model.path = path
    look_beside(path, model.weights_hash)
    return model


def load_lm(name_or_path: str | Path = DEFAULT_LM, device: "str | torch.device" = "auto") -> "CodecLM":
    """Load a token language model, as `load` does a codec."""
    return checkpoint.load_lm(find(name_or_path), device)


def codec_of(lm: "CodecLM", model: str | Path | None = None, device: "str | torch.device" = "cpu") -> "Codec":
    """Load the codec whose codes a language model was trained on.

    It is `model` if given, else the one that `find_codec` finds by its weights: at the path that the language model's
    training used, among the models beside its run, or in the folder `runs`.

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
    paths = [] if lm.codec_path is None else [lm.codec_path]
    folders = [RUNS] if lm.path is None else [_folder_of(lm.path), RUNS]
    path = find_codec(source.codec, source.weights_hash, paths=paths, folders=folders)
    if path is None:
        raise UnknownModel(
            f"{label} was made by {model_label(made_by)}, which was not found: pass --codec with its file"
        )
    return load_file(path, device)


def find_codec(
    name: str, weights_hash: str, *, paths: Iterable[str | Path] = (), folders: Iterable[Path] = ()
) -> Path | None:
    """The file of the codec with these weights, None if it is not found.

    It is looked for among the shipped codecs, under its `name`, at `paths`, and among the model files and the runs in
    `folders`. What is found elsewhere than expected is the right codec all the same, because its weights are compared.
    """
    for card in _codecs(name, paths, folders):
        if card.weights_hash == weights_hash:
            return card.path
    return None


def find_run(weights_hash: str) -> Path | None:
    """The file of the codec with these weights in the folder `runs`, None if there is none."""
    for path in _models_in(RUNS):
        with suppress(UnknownModel, InputNotFound):
            card = _card_of(path, path.stat().st_mtime_ns)
            if card.weights_hash == weights_hash:
                return card.as_codec().path
    return None


def describe(name_or_path: str | Path) -> ModelCard:
    """Read a model's card, without building the model unless it is of another project. Raises as `load`."""
    path = find(name_or_path)
    card = foreign.card(path) if foreign.is_foreign(path) else read_card(path)
    look_beside(path, card.weights_hash)
    return replace(card, name=published.name_of(path) or card.name)


def shipped() -> list[ModelCard]:
    """The cards of the models shipped with the package, sorted by name."""
    return [read_card(path) for path in _shipped_files().values()]


def names() -> list[str]:
    """The names of the models shipped with the package."""
    return list(_shipped_files())


def names_a_model(source: str) -> bool:
    """Whether a name, file or folder is that of a model rather than of a recording, by its suffix or content."""
    path = Path(source)
    return (
        source in names()
        or published.is_name(source)
        or path.suffix in (".safetensors", *foreign.PICKLES)
        or _model_in(path) is not None
    )


def find(name_or_path: str | Path) -> Path:
    """The file of a model. A shipped model comes before a file or folder of the same name; write ./NAME for the latter.

    Raises UnknownModel with the names of the shipped models.
    """
    files = _shipped_files()
    if str(name_or_path) in files:
        return files[str(name_or_path)]
    if published.is_name(str(name_or_path)):
        return published.fetch(str(name_or_path))
    path = Path(name_or_path)
    with suppress(OSError):  # for example a name that is too long for a file
        if path.is_dir():
            path = _model_in(path) or path
        if path.is_file():
            return path
    raise no_model(str(name_or_path), nearest(str(name_or_path)))


def nearest(name: str) -> str | None:
    """The name of a shipped or published model that is spelled nearly as `name`; None if there is none."""
    return next(iter(difflib.get_close_matches(name, [*names(), *published.PUBLISHED], n=1)), None)


def no_model(name: str, close: str | None) -> UnknownModel:
    """The error for a name that no model has; `close` is the `nearest` one."""
    hint = f"did you mean {close}? " if close else ""
    shipped = ", ".join(sorted(names(), key=lambda name: name != DEFAULT)) or "none"
    return UnknownModel(
        f"there is no model {name}: {hint}shipped models are {shipped}; "
        "or name a file, or the folder of a training run or of transformers"
    )


def _model_in(folder: Path) -> Path | None:
    """The model file of a training run or of a folder of transformers, whose first name is `RUN_MODEL` too."""
    return next((folder / name for name in foreign.FOLDER_FILES if (folder / name).is_file()), None)


def _codecs(name: str, paths: Iterable[str | Path], folders: Iterable[Path]) -> Iterator[CodecCard]:
    """The cards of the shipped codecs, the model called `name`, the models at `paths` and in `folders`."""
    yield from (card for card in shipped() if isinstance(card, CodecCard))
    for path in (name, *paths):
        if published.is_name(str(path)) and published.cached(str(path)) is None:
            continue  # because a file that names its codec must not start a download
        with suppress(UnknownModel, InputNotFound):
            yield describe(path).as_codec()
    for path in dict.fromkeys(path for folder in folders for path in _models_in(folder)):
        with suppress(UnknownModel, InputNotFound):
            yield _card_of(path, path.stat().st_mtime_ns).as_codec()


@lru_cache(maxsize=256)
def _card_of(path: Path, modified: int) -> ModelCard:
    """The card of a file, read once for all recordings of a folder; one modified at another time (ns) is read again."""
    return read_card(path)


def _folder_of(model: Path) -> Path:
    """The folder of a model file, or that of the run that it is the model of."""
    folder = model.absolute().parent
    return folder.parent if model.name == RUN_MODEL else folder


def _models_in(folder: Path) -> list[Path]:
    """The model files of a folder, and of the runs in it, the newest first."""
    found = [path for pattern in ("*.safetensors", f"*/{RUN_MODEL}") for path in folder.glob(pattern)]
    return sorted(
        (path for path in found if not path.name.endswith(SUFFIX)), key=lambda path: path.stat().st_mtime, reverse=True
    )


def _shipped_files() -> dict[str, Path]:
    files = (path for path in WEIGHTS.glob("*.safetensors") if not path.name.endswith(SUFFIX))
    return {path.stem: path for path in sorted(files)}
