"""The ends of a packet's codebooks: how many bytes of its range coder are enough to decode the first of them.

They come before these bytes, so that higher codebooks can be left out without decoding any. Exact ends would take two
percent of a packet of a second, so each is rounded up, and stated in steps from where it would lie if all codebooks
that are left took the same number of bytes. With a payload of P bytes, ends included, and n codebooks, codebook k has

    guess = end of codebook k - 1 + (P - that end) // (n - k)
    end   = min(P, guess + step * (8 + P // 128))

A step is 0, -1, 1, -2, 2, ...; its place in this list is written in ones, followed by a zero: -1 is 10, 2 is 11110. The
most significant bit of a byte is the first; zeros fill the last byte. If frames have different numbers of codebooks, a
number in ones comes first: how many codebooks were left out, because the coded numbers count those, too.

Example: 3 codebooks with ends 20 and 60, 100 bytes of the range coder; P is 101. The first guess is 0 + 101 // 3 = 33,
a step of 8 too far: end 25. The second is 25 + 76 // 2 = 63, no step off. 10 0 00000 -> 80.
"""

from collections.abc import Sequence
from typing import NamedTuple

MOST_ONES = 1 << 10  # of a number; steps have less than 300, because all together are less than the payload


class Ends(NamedTuple):
    """What the beginning of a payload says."""

    ends: list[int]
    """For each codebook but the last, bytes of the range coder that are enough up to it."""
    left_out: int
    """Codebooks that were left out; 0 unless frames have different numbers of them."""
    size: int
    """Bytes of the payload that say so; the range coder follows."""


def packed(ends: Sequence[int], size: int, *, left_out: int | None = None) -> bytes:
    """The bytes that state the `ends` of all codebooks but the last, before `size` bytes of the range coder.

    `left_out` is how many codebooks were left out, None if all frames have the same number of codebooks.
    """
    first = [] if left_out is None else [left_out]
    length = 0
    while True:
        numbers = first + _numbers(ends, size + length)
        missing = 8 * length - 7 - sum(numbers) - len(numbers)  # bits up to the first of the last byte
        if (
            missing > 0 and ends
        ):  # more bytes make other guesses, which may take fewer bits: then the last end lies further on
            numbers[-1] = (numbers[-1] + missing + 1) // 2 * 2
        bits = "".join("1" * number + "0" for number in numbers)
        if len(bits) <= 8 * length:
            return int("0" + bits.ljust(8 * length, "0"), 2).to_bytes(length, "big")
        length += 1


def unpacked(payload: bytes, num_codebooks: int, *, varying: bool) -> Ends:
    """What a payload begins with. Raises ValueError for what `packed` never writes."""
    bits = _Bits(payload)
    left_out = bits.ones() if varying else 0
    ends: list[int] = []
    at, unit = 0, _unit(len(payload))
    for left in range(num_codebooks, 1, -1):
        number = bits.ones()
        step = -(number + 1) // 2 if number % 2 else number // 2
        at = min(len(payload), at + (len(payload) - at) // left + step * unit)
        if at < 0:
            raise ValueError("an end of a codebook before the first byte")
        ends.append(at)
    return Ends(ends, left_out, bits.bytes_read())


def thinned(payload: bytes, num_codebooks: int, kept: int, *, varying: bool) -> bytes:
    """The payload of the first `kept` of `num_codebooks` codebooks. Raises ValueError as `unpacked`."""
    if kept >= num_codebooks:
        return payload
    ends, left_out, begin = unpacked(payload, num_codebooks, varying=varying)
    data = payload[begin : begin + ends[kept - 1]]
    more = left_out + num_codebooks - kept if varying else None
    return packed([min(end, len(data)) for end in ends[: kept - 1]], len(data), left_out=more) + data


def _unit(size: int) -> int:
    """Bytes of a step in a payload of this size."""
    return 8 + size // 128


def _numbers(ends: Sequence[int], size: int) -> list[int]:
    """The numbers of ones that state these ends in a payload of `size` bytes."""
    numbers: list[int] = []
    at, unit = 0, _unit(size)
    for left, end in zip(range(len(ends) + 1, 1, -1), ends, strict=True):
        guess = at + (size - at) // left
        step = -((guess - end) // unit)
        at = min(size, guess + step * unit)
        numbers.append(2 * step if step >= 0 else -2 * step - 1)
    return numbers


class _Bits:
    """Numbers in ones, from the first bit of the data on."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def ones(self) -> int:
        """The ones up to the next zero, which is read, too."""
        for number in range(MOST_ONES):
            place, bit = divmod(self._at, 8)
            if place == len(self._data):
                break
            self._at += 1
            if not self._data[place] << bit & 0x80:
                return number
        raise ValueError("ends of codebooks that no encoder writes")

    def bytes_read(self) -> int:
        """Bytes up to the last bit that was read. Raises ValueError unless zeros fill the last one."""
        size = -(-self._at // 8)
        if self._at % 8 and self._data[size - 1] & 0xFF >> self._at % 8:
            raise ValueError("ends of codebooks that no encoder writes")
        return size
