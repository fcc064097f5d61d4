"""Datasets by name: each is a module that says where it comes from and how it is laid out."""

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
    """The dataset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in NAMES:
        close = get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(NAMES)}"
        raise UsageError(f"unknown dataset {name}; {hint}")
    dataset: Dataset = import_module(f"codec.datasets.{name}").DATASET
    return dataset
