"""Search the bytes of a file in constant memory."""

import os
from collections.abc import Iterator
from typing import BinaryIO

_CHUNK = 2**20


def find_all(file: BinaryIO, pattern: bytes) -> Iterator[int]:
    """Yield every position of a pattern. Reads the whole file."""
    size, start, overlap = file.seek(0, os.SEEK_END), 0, len(pattern) - 1
    while start + overlap < size:
        file.seek(start)
        data = file.read(_CHUNK + overlap)
        place = data.find(pattern)
        while place >= 0:
            yield start + place
            place = data.find(pattern, place + 1)
        start += _CHUNK
