"""The ends of a packet's codebooks: how many bytes of its range coder are enough to decode the first of them.

They come before these bytes, so that higher codebooks can be left out without decoding any. Exact ends would take two
percent of a packet of a second, so each is rounded up, and stated in steps from where it would lie if all codes that
are left took the same number of bytes. With a payload of P bytes, ends included, codebook k has

    guess = end of codebook k - 1 + (P - that end) * codes of codebook k // codes of codebook k and all higher ones
    end   = min(P, guess + step * (8 + P // 128))

A step is 0, -1, 1, -2, 2, ...; its place in this list is written in ones, followed by a zero: -1 is 10, 2 is 11110. The
most significant bit of a byte is the first; zeros fill the last byte. If frames have different numbers of codebooks, a
number in ones comes first: how many codebooks were left out, because the coded numbers count those, too.

Example: 3 codebooks with ends 20 and 60, 100 bytes of the range coder; P is 101. The first guess is 0 + 101 // 3 = 33,
a step of 8 too far: end 25. The second is 25 + 76 // 2 = 63, no step off. 10 0 00000 -> 80.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

MOST_CODEBOOKS = 1 << 10  # of a packet, with what was left out


class Stated(NamedTuple):
    """What the beginning of a payload states."""

    steps: list[int]
    """For each codebook but the last."""
    left_out: int
    """Codebooks that were left out; 0 unless frames have different numbers of them."""
    size: int
    """Bytes of the payload that state this; the range coder follows."""


NOTHING = Stated([], 0, 0)
"""Of a payload without ends."""


def packed(ends: Sequence[int], size: int, codes: Sequence[int], *, left_out: int | None = None) -> bytes:
    """The bytes that state the `ends` of all codebooks but the last, before `size` bytes of the range coder.

    `codes` is how many each codebook has. `left_out` is how many codebooks were left out, None if all frames have the
    same number of them.
    """
    first, shares = [] if left_out is None else [left_out], _shares(codes)
    length = (len(first) + len(ends) + 7) // 8  # each number has a zero
    while True:
        numbers = first + _numbers(ends, size + length, shares)
        missing = 8 * length - 7 - sum(numbers) - len(numbers)  # bits up to the first of the last byte
        if missing > 0 and ends:  # with one byte less, the guesses took more bits: the last end lies further on
            numbers[-1] = (numbers[-1] + missing + 1) // 2 * 2
        bits = "".join("1" * number + "0" for number in numbers)
        if len(bits) <= 8 * length:
            return int("0" + bits.ljust(8 * length, "0"), 2).to_bytes(length, "big")
        length += 1


def stated(payload: bytes, num_codebooks: int, *, varying: bool) -> Stated:
    """What a payload begins with. Raises ValueError for what `packed` never writes."""
    bits = _Bits(payload)
    left_out = bits.ones() if varying else 0
    if num_codebooks + left_out > MOST_CODEBOOKS:
        raise ValueError(f"{num_codebooks + left_out} codebooks")
    numbers = [bits.ones() for _ in range(num_codebooks - 1)]
    steps = [-(number + 1) // 2 if number % 2 else number // 2 for number in numbers]
    return Stated(steps, left_out, bits.bytes_read())


def placed(steps: Sequence[int], size: int, codes: Sequence[int]) -> list[int]:
    """The ends that `steps` state in a payload of `size` bytes whose codebooks have this number of `codes`.

    Raises ValueError for steps that `packed` never writes.
    """
    ends: list[int] = []
    at = 0
    for share, step in zip(_shares(codes), steps, strict=False):
        at = min(size, _guess(at, size, share) + step * _unit(size))
        if at < 0:
            raise ValueError("an end of a codebook before the first byte")
        ends.append(at)
    return ends


_Share: TypeAlias = tuple[int, int]  # codes of a codebook, and of this codebook and all higher ones


def _shares(codes: Sequence[int]) -> list[_Share]:
    left = list(accumulate(reversed(codes)))[::-1]
    return list(zip(codes, left, strict=True))


def _guess(before: int, size: int, share: _Share) -> int:
    """Where a codebook ends that begins at byte `before`."""
    codes, left = share
    return before + (size - before) * codes // max(1, left)


def _unit(size: int) -> int:
    """Bytes of a step in a payload of this size."""
    return 8 + size // 128


def _numbers(ends: Sequence[int], size: int, shares: Sequence[_Share]) -> list[int]:
    """The numbers of ones that state these ends in a payload of `size` bytes."""
    numbers: list[int] = []
    at, unit = 0, _unit(size)
    for share, end in zip(shares, ends, strict=False):
        guess = _guess(at, size, share)
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
        for number in range(MOST_CODEBOOKS):  # steps have less than 300, or all were more than the payload
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
