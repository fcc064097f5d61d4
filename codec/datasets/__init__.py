"""Public datasets by name; each module has the license, the archives and the layout of one dataset."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING

from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.datasets.base import Dataset

NAMES = (
    "general",
    "common_voice",
    "digits",
    "esc50",
    "librispeech",
    "libritts",
    "ljspeech",
    "maestro",
    "musdb18hq",
    "speech_commands",
    "vctk",
)


def find(name: str) -> Dataset:
    """Return a dataset by its name.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(NAMES)}"
        raise UsageError(f"unknown dataset {name}; {hint}")
    dataset: Dataset = import_module(f"codec.datasets.{name}").DATASET
    return dataset
