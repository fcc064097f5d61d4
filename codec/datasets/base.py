"""What a dataset declares: its license, its archives, its parts and the layout of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from codec.data.clips import Clip, hashed
from codec.errors import CodecError

BOOKKEEPING = ".codec"
"""Folder below DIR for our own notes and unfinished files; no archive may write to it."""

Layout = Callable[[Path, Sequence[str]], Iterator[Clip]]
"""The clips of some parts of a dataset below a folder, by its layout; their `seconds` are measured afterwards."""


class BadArchive(CodecError):  # noqa: N818 (named as its siblings are)
    """An archive is not the one its publisher released, is damaged, or would write outside its own folder."""

    exit_code: ClassVar[int] = 5


@dataclass(frozen=True)
class License:
    """The terms a user accepts before anything is downloaded."""

    name: str
    url: str
    allows: str
    requires: str
    attribution: str


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Its entries are unpacked in `into` below DIR; `holds` is a folder below DIR that exists once they are.
    """

    url: str
    holds: str
    into: str = "."
    size: int | None = None
    """Exact size in bytes."""
    size_limit: int | None = None
    """Where the size is not known: bytes it certainly does not exceed."""
    sha256: str | None = None
    unchecked: str = ""
    """Why no checksum is known, where none is."""
    saved_as: str = ""

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.saved_as or self.url.rsplit("/", 1)[-1]

    @property
    def tree(self) -> str:
        """The folder below DIR that all its entries lie in."""
        return self.holds.split("/")[0]


@dataclass(frozen=True)
class Dataset:
    """One dataset; `name` is also that of its module and of its folder in recipes/."""

    name: str
    title: str
    hours: str
    """All of it; "11 of 29" where the default parts are less."""
    download: str
    """Size of its archives, in the same way."""
    license: License | None
    layout: Layout
    parts: Mapping[str, Archive] = field(default_factory=dict)
    """Names for --parts, and the archive that each part is in; one archive may hold several."""
    default: Sequence[str] = ()
    """The parts taken when none are named; empty: all."""
    packed: str = ""
    """Pattern of archives in DIR that users put there themselves because they cannot be downloaded."""
    by_hand: str = ""
    """Where users find those."""


def by_hash(name: str, *, valid: float, test: float = 0.0) -> str:
    """A stable split for data without one: "train", "valid" or "test" by the hash of a speaker's or piece's name."""
    position = hashed(name) / 2**64
    return "valid" if position < valid else "test" if position < valid + test else "train"
