"""A range coder: values and their frequencies ↔ bytes.

The range coder (Martin 1979, with the carries of Schindler's coder) keeps `low` and `width` of an interval within
2**48, so that 53-bit numbers suffice:

    width //= total; low += start * width; width *= count     narrow to `count` of `total`, from `start`
    while width < 2**40: send the highest byte of low; shift low and width by a byte

At the end one byte is sent that makes every continuation fall into the interval, or none if zeros do.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import accumulate
from typing import Protocol

import numpy as np
import numpy.typing as npt

_TOP, LEAST = 1 << 48, 1 << 40
WINDOW = 6  # bytes of an interval


class Coder(Protocol):
    """A Writer, which takes the values that it is given, or a RangeDecoder, which ignores them and reads."""

    def flag(self, counts: list[int], value: bool) -> bool:
        """Code and return a yes or no whose counts are [no, yes]."""

    def among(self, counts: Mapping[int, int], value: int) -> int:
        """Code and return one of the keys by their counts."""

    def uniform(self, value: int, total: int) -> int:
        """Code and return one of `total` equally likely numbers."""

    def drawn(self, frequencies: npt.NDArray[np.int64], value: int) -> int:
        """Code and return a number by the frequencies [numbers]."""

    def interval(self, start: int, count: int, total: int) -> None:
        """Pass a value that has `count` of the frequencies' sum `total`, after the `start` of the values before it."""

    def mark(self) -> None:
        """Note that the values up to here may be all that is read."""


class Writer(ABC):
    """Write values by their frequencies; the sums of frequencies are at most 2**32."""

    @abstractmethod
    def interval(self, start: int, count: int, total: int) -> None:
        """Write a value that has `count` of the frequencies' sum `total`, after the `start` of the values before it."""

    def flag(self, counts: list[int], value: bool) -> bool:
        """As Coder."""
        no, yes = counts
        self.interval(no if value else 0, yes if value else no, no + yes)
        return value

    def among(self, counts: Mapping[int, int], value: int) -> int:
        """As Coder."""
        start = 0
        for key, count in counts.items():
            if key == value:
                break
            start += count
        self.interval(start, counts[value], sum(counts.values()))
        return value

    def uniform(self, value: int, total: int) -> int:
        """As Coder."""
        self.interval(value, 1, total)
        return value

    def drawn(self, frequencies: npt.NDArray[np.int64], value: int) -> int:
        """As Coder."""
        self.interval(int(frequencies[:value].sum()), int(frequencies[value]), int(frequencies.sum()))
        return value

    def mark(self) -> None:  # noqa: B027 most writers keep no marks
        """As Coder."""


class Intervals(Writer):
    """Keep values for another Writer."""

    def __init__(self) -> None:
        self._intervals: list[tuple[int, int, int]] = []

    def interval(self, start: int, count: int, total: int) -> None:
        """As Writer."""
        self._intervals.append((start, count, total))

    def send(self, writer: Writer) -> None:
        """Write all values."""
        for start, count, total in self._intervals:
            writer.interval(start, count, total)


class RangeEncoder(Writer):
    """Bytes of values."""

    def __init__(self) -> None:
        self._low, self._width = 0, _TOP
        self._out = bytearray()
        self._marks: list[tuple[bytearray, int, int]] = []

    def interval(self, start: int, count: int, total: int) -> None:
        """As Writer."""
        unit = self._width // total
        self._low += start * unit
        self._width = count * unit
        if self._low >= _TOP:
            self._carry()
        while self._width < LEAST:
            self._out.append(self._low >> 40)
            self._low = (self._low & LEAST - 1) << 8
            self._width <<= 8

    def mark(self) -> None:
        """As Coder, for `finish`."""
        self._marks.append((self._out[-1:], len(self._out), self._low))

    def finish(self) -> tuple[bytes, list[int]]:
        """The bytes of all values; and for each mark, the fewest of them that give the values before it.

        Zeros may take the place of the bytes after them. They are at most 6 more than a RangeDecoder has shifted out
        there.
        """
        if self._low + self._width > _TOP:
            self._low = _TOP
            self._carry()
        elif self._low:
            self._out.append(-(-self._low // LEAST))
        data = bytes(self._out)
        return data, [_enough(data, *mark) for mark in self._marks]

    def _carry(self) -> None:
        self._low -= _TOP
        place = len(self._out) - 1
        while self._out[place] == 255:
            self._out[place] = 0
            place -= 1
        self._out[place] += 1


def _enough(data: bytes, last: bytearray, size: int, low: int) -> int:
    """The fewest of the bytes, at least `size`, that lie above an interval from these and `low` on.

    `last` is the last of the bytes then. A carry since then has made it another one, and the bytes more than enough.
    """
    if data[size - len(last) : size] != last:
        return size
    window = data[size : size + WINDOW].ljust(WINDOW, b"\0")
    return size + next(
        more for more in range(WINDOW + 1) if int.from_bytes(window[:more].ljust(WINDOW, b"\0"), "big") >= low
    )


class RangeDecoder:
    """Read what a RangeEncoder wrote. Its methods raise ValueError for bytes that no encoder writes."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.offset = int.from_bytes(payload[:WINDOW].ljust(WINDOW, b"\0"), "big")  # above `low`
        self.width = _TOP
        self.shifts = 0

    def target(self, total: int) -> int:
        """A number within the frequencies of the next value, less than their sum `total`; `interval` follows.

        No sum is 0 in what an encoder writes: some value was possible.
        """
        number = self.offset // (self.width // total) if total else 0
        if number >= total:
            raise ValueError("codes that no encoder writes")
        return number

    def interval(self, start: int, count: int, total: int) -> None:
        """Move over the value that has these frequencies, as RangeEncoder.interval."""
        unit = self.width // total
        self.offset -= start * unit
        self.width = count * unit
        while self.width < LEAST:
            place = self.shifts + WINDOW
            self.offset = self.offset << 8 | (self.payload[place] if place < len(self.payload) else 0)
            self.width <<= 8
            self.shifts += 1

    def flag(self, counts: list[int], value: bool = False) -> bool:
        """As Coder."""
        no, yes = counts
        answer = self.target(no + yes) >= no
        self.interval(no if answer else 0, yes if answer else no, no + yes)
        return answer

    def among(self, counts: Mapping[int, int], value: int = 0) -> int:
        """As Coder."""
        total = sum(counts.values())
        number = self.target(total)
        found, end = next(item for item in zip(counts, accumulate(counts.values()), strict=True) if number < item[1])
        self.interval(end - counts[found], counts[found], total)
        return found

    def uniform(self, value: int, total: int) -> int:
        """As Coder."""
        number = self.target(total)
        self.interval(number, 1, total)
        return number

    def drawn(self, frequencies: npt.NDArray[np.int64], value: int = 0) -> int:
        """As Coder."""
        ends = frequencies.cumsum()
        total = int(ends[-1])
        value = int(ends.searchsorted(self.target(total), side="right"))
        count = int(frequencies[value])
        self.interval(int(ends[value]) - count, count, total)
        return value

    def mark(self) -> None:
        """As Coder."""

    def finish(self, *, is_cut: bool = False) -> None:
        """Raise ValueError if the payload has another length than that of the values.

        `is_cut` says that bytes of further values may follow.
        """
        left = len(self.payload) - self.shifts
        if left < 0 or (left > 1 and not is_cut):
            more = "more" if is_cut else "one more"
            raise ValueError(f"{len(self.payload)} bytes of codes, not {self.shifts} or {more}")
