"""Ogg files that hold several streams one after another, as recorders of web radio and `cat` write them.

libsndfile reads the first stream alone and says nothing. Every page has the serial number of its stream and its own
number in it (RFC 3533, section 6):

    byte    0 "OggS"    5 flags, 2: first page of a stream    14 serial    18 number    26 segments    27 their lengths
"""

import os
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_CAPTURE = b"OggS"
_FIRST = 2
_LONGEST = 27 + 255 + 255 * 255  # bytes of a page
_SMALL = 4 * _LONGEST  # bytes of a file whose pages are all looked at
_PLACES = 0.21, 0.37, 0.59, 0.83  # in a file; up to 100 copies of a stream have pages out of place at one of them
_TOLERANCE = (
    0.15  # of a file, between the place of a page and its number; pages of one stream are of nearly equal sizes
)


class _Page(NamedTuple):
    start: int
    end: int
    is_first: bool
    serial: bytes
    number: int


def streams(file: BinaryIO) -> int:
    """The number of Ogg streams that follow each other; 0 if it is not Ogg.

    All pages are looked at only if some of them look like those of several streams, because that reads the whole file.
    """
    size = file.seek(0, os.SEEK_END)
    first = _page(file, 0)
    if first is None:
        return 0
    return _count(file) if size <= _SMALL or _seems_chained(file, first, size) else 1


def _seems_chained(file: BinaryIO, first: _Page, size: int) -> bool:
    last = _last_page(file, size)
    if last is None or last.serial != first.serial:
        return True
    pages = [_next_page(file, int(place * size)) for place in _PLACES]
    return any(
        page is None or abs(page.number / max(1, last.number) - page.start / size) > _TOLERANCE for page in pages
    )


def _next_page(file: BinaryIO, start: int) -> _Page | None:
    """The first page that begins at `start` or after it."""
    file.seek(start)
    place = file.read(_LONGEST).find(_CAPTURE)
    return None if place < 0 else _page(file, start + place)


def _last_page(file: BinaryIO, size: int) -> _Page | None:
    start = max(0, size - _LONGEST)
    file.seek(start)
    place = file.read(_LONGEST).rfind(_CAPTURE)
    return None if place < 0 else _page(file, start + place)


def _count(file: BinaryIO) -> int:
    """First pages that follow other pages; those at the start of a file are of streams that play together."""
    links, inside = 1, False
    for page in _pages(file):
        links += inside and page.is_first
        inside = not page.is_first
    return links


def _pages(file: BinaryIO) -> Iterator[_Page]:
    position = 0
    while (page := _page(file, position)) is not None:
        yield page
        position = page.end


def _page(file: BinaryIO, start: int) -> _Page | None:
    """The page that begins at a byte; None if none does."""
    file.seek(start)
    head = file.read(27 + 255)
    if len(head) < 27 or head[:4] != _CAPTURE or len(head) < 27 + head[26]:
        return None
    end = start + 27 + head[26] + sum(head[27 : 27 + head[26]])
    return _Page(start, end, bool(head[5] & _FIRST), head[14:18], int.from_bytes(head[18:22], "little"))
