"""Ogg files that hold several streams one after another, as recorders of web radio and `cat` write them.

Every page has the serial number of its stream and its own number in it (RFC 3533, section 6):

    byte    0 "OggS"    5 flags, 2: first page of a stream    6 position    14 serial    18 number    26 segments
"""

import os
from typing import BinaryIO, NamedTuple

from codec.io.scan import find_all

_CAPTURE = b"OggS"
_BEGINS = _CAPTURE + b"\0\x02" + bytes(8)  # of a first page: version, flags, position
_FLAC = b"\x7fFLAC"
_LONGEST = 27 + 255 + 255 * 255  # bytes of a page
_SMALL = 4 * _LONGEST  # bytes of a file whose pages are all looked at
_PLACES = 0.21, 0.37, 0.59, 0.83  # in a file; up to 100 copies of a stream have pages out of place at one of them
_TOLERANCE = 0.15  # of a file, between the place of a page and its number: pages of a stream are of nearly equal sizes


class _Page(NamedTuple):
    start: int
    content: int
    end: int
    serial: bytes
    number: int


def starts(file: BinaryIO) -> list[int]:
    """The first bytes of Ogg streams that follow each other; none if it is not Ogg.

    The whole file is read only if some of its pages look like those of several streams.
    """
    size = file.seek(0, os.SEEK_END)
    first = _page(file, 0)
    if first is None:
        return []
    if size > _SMALL and not _seems_chained(file, first, size):
        return [0]
    found, end = [0], first.end
    for place in find_all(file, _BEGINS):
        if place > end:  # one directly after another belongs to streams that play together
            found.append(place)
        if place >= end and (page := _page(file, place)) is not None:
            end = page.end
    return found


def flac(file: BinaryIO, first: int, end: int) -> list[tuple[int, int]]:
    """The parts (first byte, end) of a stream of FLAC in Ogg that make a FLAC file; none if it is another stream.

    Its packets are those of the FLAC file, after nine bytes of its own (RFC 9639, section 10.1). libsndfile's wheels
    read no FLAC in Ogg.
    """
    page = _page(file, first)
    if page is None:
        return []
    file.seek(page.content)
    if file.read(len(_FLAC)) != _FLAC:
        return []
    serial = page.serial
    runs: list[tuple[int, int]] = []
    while page is not None and page.start < end:
        if page.serial == serial:
            runs.append((page.content + (0 if runs else 9), min(page.end, end)))
        page = _page(file, page.end) or _next_page(file, page.end)
    return runs


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


def _page(file: BinaryIO, start: int) -> _Page | None:
    """The page that begins at a byte; None if none does."""
    file.seek(start)
    head = file.read(27 + 255)
    if len(head) < 27 or head[:4] != _CAPTURE or len(head) < 27 + head[26]:
        return None
    content = start + 27 + head[26]
    return _Page(
        start, content, content + sum(head[27 : 27 + head[26]]), head[14:18], int.from_bytes(head[18:22], "little")
    )
