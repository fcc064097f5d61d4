"""Declaration of a dataset: license, archives, parts, and layout of its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from codec.data.clips import Clip, hashed
from codec.errors import CodecError

BOOKKEEPING = ".codec"
"""Folder below DIR for markers and unfinished files; no archive may write to it."""

Layout = Callable[[Path, Sequence[str]], Iterator[Clip]]
"""Yields the clips of some parts of a dataset below a folder; their `seconds` are measured afterwards."""


class BadArchive(CodecError):  # noqa: N818 (named like the other errors)
    """An archive differs from the published one, is damaged, or would write outside its own folder."""

    exit_code: ClassVar[int] = 5


@dataclass(frozen=True)
class License:
    """License that the user accepts before a download; the texts complete "It allows ..." and "It requires ..."."""

    name: str
    url: str
    allows: str
    requires: str
    attribution: str


@dataclass(frozen=True)
class Archive:
    """One file to download.

    Its entries are unpacked into the folder `into` below DIR; the folder `holds` below DIR then exists.
    """

    url: str
    holds: str
    into: str = "."
    size: int | None = None
    """Exact size in bytes."""
    size_limit: int | None = None
    """Upper bound of the size in bytes, if the exact size is unknown."""
    sha256: str | None = None
    unchecked: str = ""
    """Reason why no checksum is known, if `sha256` is None."""
    saved_as: str = ""

    @property
    def name(self) -> str:
        """File name."""
        return self.saved_as or self.url.rsplit("/", 1)[-1]

    @property
    def tree(self) -> str:
        """Folder below DIR that contains all entries."""
        return self.holds.split("/")[0]


@dataclass(frozen=True)
class Dataset:
    """One dataset; `name` is also the name of its module and of its folder in recipes/."""

    name: str
    title: str
    hours: str
    """Total duration; "11 of 29" if the default parts have less."""
    download: str
    """Total size of the archives, in the same form."""
    license: License | None
    layout: Layout
    parts: Mapping[str, Archive] = field(default_factory=dict)
    """Names for --parts with the archive of each part; an archive may contain several parts."""
    default: Sequence[str] = ()
    """Parts without --parts; empty means all."""
    packed: str = ""
    """Pattern of archives that users place in DIR because they cannot be downloaded by a program."""
    by_hand: str = ""
    """Instructions for getting these archives."""


def by_hash(name: str, *, valid: float, test: float = 0.0) -> str:
    """Split of a dataset without official splits, by the hash of a speaker or piece: "train", "valid" or "test"."""
    position = hashed(name) / 2**64
    return "valid" if position < valid else "test" if position < valid + test else "train"
