"""Datasets of torchaudio as sources of clips: torchaudio lists the recordings, this package reads them.

    torchaudio:LIBRISPEECH,url=train-clean-100+dev-clean:data/
               class       arguments of the class        folder that holds the dataset

Of values joined by +, each is a dataset of its own. Paths, speakers, labels and transcripts are what `get_metadata`
returns, at the positions that its docstring gives; torchaudio decodes nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from codec.errors import InputNotFound, MissingDependency, UsageError, printable

PREFIX = "torchaudio:"
FORM = "write torchaudio:CLASS:DIR or torchaudio:CLASS,argument=value:DIR"
FIELDS = {"path": "path to", "speaker": "speaker", "label": "label", "transcript": "transcript"}  # first words
SPLITS = {"train": "train", "dev": "valid", "valid": "valid", "test": "test"}  # by the first letters of a value


class Source(NamedTuple):
    """A parsed source; several values of an argument are several datasets."""

    name: str
    arguments: dict[str, list[str]]
    root: Path


def is_source(source: Path) -> bool:
    """Whether a path is the name of a source of this kind."""
    return str(source).startswith(PREFIX)


def parsed(source: Path) -> Source:
    """The parts of a source. Raises UsageError."""
    head, colon, root = str(source).removeprefix(PREFIX).partition(":")
    name, *pairs = head.split(",")
    arguments = dict(pair.partition("=")[::2] for pair in pairs)
    if not name or not colon or not root or not all(key and value for key, value in arguments.items()):
        raise UsageError(f"{source} has no class, value or folder: {FORM}")
    return Source(name, {key: value.split("+") for key, value in arguments.items()}, Path(root))


def rows(source: Path) -> Iterator[dict[str, Any]]:
    """Yield path, set, split, speaker, label and transcript of every recording, as far as torchaudio knows them.

    The set names the values of the arguments. Values that begin with train, dev, valid or test give the split; where
    there are not both, the split is left open.

    Raises:
        UsageError: no such class or argument, or a class that does not say where its recordings are.
        InputNotFound: the dataset is not in the folder.
        MissingDependency: torchaudio cannot be imported.
    """
    name, arguments, root = parsed(source)
    dataset_class = _class(name)
    _check_arguments(dataset_class, arguments)
    positions = _positions(dataset_class)
    parts = list(product(*arguments.values()))
    splits = _splits(parts)
    for values, split in zip(parts, splits, strict=True):
        common = {"set": "/".join(values), "split": split}
        dataset = _opened(dataset_class, root, dict(zip(arguments, values, strict=True)))
        for row in _items(dataset, root, positions):
            yield row | common


def _class(name: str) -> Any:
    """A class of `torchaudio.datasets` that has `get_metadata`. Raises UsageError, MissingDependency."""
    from codec.nn.resample import torchaudio_module

    package = torchaudio_module("datasets")
    if package is None:
        raise MissingDependency(
            "torchaudio cannot be imported beside this torch: install one that goes with it (the extra torchaudio), or "
            "give the folder of the recordings"
        )
    usable = [known for known in package.__all__ if hasattr(getattr(package, known), "get_metadata")]
    if name in usable:
        return getattr(package, name)
    if name in package.__all__:
        raise UsageError(
            f"torchaudio's {name} does not say where its recordings are (it has no get_metadata): give their folder, "
            "or see `codec prepare` for a manifest"
        )
    close = get_close_matches(name.upper(), usable, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(usable)}"
    raise UsageError(f"torchaudio has no dataset {name}; {hint}")


def _check_arguments(dataset_class: Any, arguments: Mapping[str, object]) -> None:
    """Raise UsageError for an argument that the class does not have."""
    known = [key for key in inspect.signature(dataset_class).parameters if key not in ("root", "download")]
    for key in arguments:
        if key == "download":
            raise UsageError(
                f"{dataset_class.__name__} is not downloaded here: download it before, then leave this out"
            )
        if key not in known:
            raise UsageError(f"{dataset_class.__name__} has no argument {key}: it has {', '.join(known) or 'none'}")


def _positions(dataset_class: Any) -> dict[str, int]:
    """The position of every field in the tuples of `get_metadata`, by its docstring. Raises UsageError."""
    doc = inspect.getdoc(dataset_class.get_metadata) or ""
    names = re.findall(r"^ +[\w ]+:\n +(.*)", doc.partition("Returns:")[2], re.MULTILINE)
    found = {
        field: next((place for place, text in enumerate(names) if text.lower().startswith(words)), None)
        for field, words in FIELDS.items()
    }
    if found["path"] is None:
        raise UsageError(
            f"torchaudio's {dataset_class.__name__} does not say where its recordings are: give their folder"
        )
    return {field: place for field, place in found.items() if place is not None}


def _splits(parts: list[tuple[str, ...]]) -> list[str | None]:
    """The split of every part; None for those of training without validation, because a share is held out then."""
    found = [
        next((split for value in values for start, split in SPLITS.items() if value.startswith(start)), None)
        for values in parts
    ]
    if {"train", "valid"} <= {*found}:
        return found
    return [split if split == "test" and {*found} != {"test"} else None for split in found]


def _opened(dataset_class: Any, root: Path, arguments: Mapping[str, str]) -> Any:
    """An instance of the class. Raises InputNotFound, UsageError."""
    if not root.is_dir():
        raise InputNotFound(f"{root} is not a folder: give the one that holds {dataset_class.__name__}")
    values = {key: int(value) if value.isdecimal() else value for key, value in arguments.items()}
    try:
        return dataset_class(root, **values)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"torchaudio's {dataset_class.__name__}: {_line(error)}") from error
    except (RuntimeError, OSError) as error:
        raise InputNotFound(f"torchaudio's {dataset_class.__name__}: {_line(error)}") from error


def _items(dataset: Any, root: Path, positions: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """The rows of one dataset. Raises InputNotFound."""
    folders = [root, *(Path(value) for value in vars(dataset).values() if isinstance(value, str | Path))]
    for number in range(len(dataset)):
        try:
            item = dataset.get_metadata(number)
        except (OSError, ValueError, KeyError) as error:
            raise InputNotFound(f"torchaudio's {type(dataset).__name__}, item {number}: {_line(error)}") from error
        row = {field: str(item[place]) for field, place in positions.items()}
        if not (folders[0] / row["path"]).is_file():  # classes differ in the folder that their paths start from
            folders.sort(key=lambda folder: not (folder / row["path"]).is_file())
        yield row | {"path": folders[0] / row["path"]}


def _line(error: BaseException) -> str:
    return printable(" ".join(str(error).split()))
