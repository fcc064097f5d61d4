"""FLAC files that follow each other in one file, as `cat` writes them.

Every FLAC file begins with "fLaC" and the block STREAMINFO, which states the samples; every frame has its number in its
header (RFC 9639, sections 8.2 and 9.1):

    0xFFF8 or 0xFFF9    sizes, rate    channels, bits    number, as in UTF-8    [size]    [rate]    CRC-8
"""

import os
import re
from collections.abc import Iterator
from itertools import pairwise
from typing import BinaryIO

from codec.io import mpeg
from codec.io.scan import find_all

_MARK = b"fLaC"
_INFO_BYTES = 34  # of STREAMINFO
_BEGINS = tuple(_MARK + bytes((last, 0, 0, _INFO_BYTES)) for last in (0, 0x80))
_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_WINDOW = 2**16  # bytes to look for a frame in
_PLACES = 0.1347, 0.3119, 0.4733, 0.5923, 0.7351, 0.8867  # in a file, at no simple fractions of it


def _crc8_of(byte: int) -> int:
    for _ in range(8):
        byte = (byte << 1 ^ (0x107 if byte & 0x80 else 0)) & 0x1FF
    return byte


_CRC8 = tuple(map(_crc8_of, range(256)))


def starts(file: BinaryIO) -> list[int]:
    """The first bytes of FLAC files that follow each other, the first one with its tags; none if it is not FLAC.

    The whole file is read only if the numbers of some frames do not rise up to the stated length.
    """
    first = mpeg.after_tags(file)
    file.seek(first)
    head = file.read(8 + _INFO_BYTES)
    if head[:8] not in _BEGINS or len(head) < 8 + _INFO_BYTES:
        return []
    size = file.seek(0, os.SEEK_END)
    if size - first <= 4 * _WINDOW or _seems_joined(file, first, size, head[8:]):
        return [0, *sorted(place for mark in _BEGINS for place in find_all(file, mark) if place > first)]
    return [0]


def _seems_joined(file: BinaryIO, first: int, size: int, info: bytes) -> bool:
    """Whether the first samples of some frames do not rise, or do not end with the stated number of samples."""
    block, stated = int.from_bytes(info[2:4], "big"), int.from_bytes(info[13:18], "big") & (1 << 36) - 1
    begins = [next(_samples(file, first + int(place * (size - first)), block), -1) for place in _PLACES]
    *_, last = -1, *_samples(file, size - _WINDOW, block)
    rising = all(a < b for a, b in pairwise((-1, *begins, last)))
    return not rising or (stated > 0 and not stated - block <= last < stated)


def _samples(file: BinaryIO, start: int, block: int) -> Iterator[int]:
    """The first samples of the frames in the window from `start` on; `block` is the size of a frame in samples."""
    file.seek(start)
    data = file.read(_WINDOW)
    for sync in _SYNC.finditer(data):
        frame = _frame(data[sync.start() : sync.start() + 16])
        if frame is not None:
            yield frame[0] if frame[1] else frame[0] * block


def _frame(data: bytes) -> tuple[int, bool] | None:
    """The number of a frame header, and whether it counts samples; None if it is not one."""
    if len(data) < 6 or data[3] & 1:
        return None
    length = max(1, 8 - (~data[4] & 0xFF).bit_length())  # bytes of the number, by its leading ones
    block, rate = data[2] >> 4, data[2] & 15
    end = 4 + length + {6: 1, 7: 2}.get(block, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if length == 8 or end >= len(data) or _crc8(data[:end]) != data[end]:
        return None
    number = data[4] if length == 1 else data[4] & (1 << 7 - length) - 1
    for byte in data[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    return number, bool(data[1] & 1)


def _crc8(data: bytes) -> int:
    """CRC with the polynomial x^8 + x^2 + x + 1."""
    crc = 0
    for byte in data:
        crc = _CRC8[crc ^ byte]
    return crc
