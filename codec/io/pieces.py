"""Parts of a file behind bytes of our own, as one seekable stream."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import BinaryIO


class Pieces(io.RawIOBase):
    """`head`, then the `runs` (first byte, end) of a file; nothing is copied before it is read."""

    def __init__(self, file: BinaryIO, head: bytes, runs: Sequence[tuple[int, int]]) -> None:
        self.head = head
        self._file, self._runs = file, runs
        self._starts = [0, *accumulate([len(head), *(end - first for first, end in runs)])]  # and the end
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._starts[-1]}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]
        piece = bisect_right(self._starts, self._position) - 1
        if piece >= len(self._starts) - 1:
            return 0
        inside = self._position - self._starts[piece]
        length = min(len(buffer), self._starts[piece + 1] - self._position)
        if piece == 0:
            data = self.head[inside : inside + length]
        else:
            self._file.seek(self._runs[piece - 1][0] + inside)
            data = self._file.read(length)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)
