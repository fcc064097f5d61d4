"""The ends of a packet's codebooks."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codec.io import codebook_ends


@given(
    codebooks=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 50)), min_size=1, max_size=40),
    left_out=st.none() | st.integers(0, 30),
)
@example(codebooks=[(0, 1)] * 3, left_out=None)
@example(codebooks=[(0, 1)] * 15 + [(20_000, 1)], left_out=None)
@example(codebooks=[(20_000, 1)] + [(0, 1)] * 15, left_out=0)
@example(codebooks=[(20_000, 1)] + [(0, 0)] * 15, left_out=0)
@example(codebooks=[(4000, 1)] * 200, left_out=None)
def test_ends_are_rounded_up(codebooks: list[tuple[int, int]], left_out: int | None) -> None:
    lengths, codes = zip(*codebooks, strict=True)
    ends = [sum(lengths[: count + 1]) for count in range(len(lengths))]
    section = codebook_ends.packed(ends[:-1], ends[-1], codes, left_out=left_out)
    size = len(section) + ends[-1]
    varying = left_out is not None
    stated = codebook_ends.stated(section + b"\x80" * ends[-1], len(lengths), varying=varying)
    assert (stated.size, stated.left_out) == (len(section), left_out or 0)
    found = codebook_ends.placed(stated.steps, size, codes)
    assert len(found) == len(ends) - 1
    for place, end in zip(found[:-1], ends, strict=False):
        assert end <= place < end + 8 + size // 128
    assert not found or ends[-2] <= found[-1] <= size  # its number may fill up a byte


def test_ends_take_few_bits() -> None:
    """Codebooks with bytes in proportion to their codes take a bit each."""
    for codes in ([50] * 64, list(range(64, 0, -1))):
        ends = [sum(codes[:count]) * 6 // 5 + count % 3 for count in range(1, 64)]
        assert len(codebook_ends.packed(ends, sum(codes) * 6 // 5, codes)) <= 9


def test_the_example() -> None:
    assert codebook_ends.packed([20, 60], 100, [5, 5, 5]) == b"\x80"
    assert codebook_ends.stated(b"\x80" + bytes(100), 3, varying=False) == ([-1, 0], 0, 1)
    assert codebook_ends.placed([-1, 0], 101, [5, 5, 5]) == [25, 63]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff",
        b"\x01" + bytes(100),  # a bit after the last number
        b"\xff" * 200 + bytes(98),
    ],
)
def test_bits_that_no_encoder_writes(payload: bytes) -> None:
    with pytest.raises(ValueError, match="no encoder writes"):
        codebook_ends.stated(payload, 2, varying=False)


def test_codebooks_with_those_left_out_are_limited() -> None:
    left_out = b"\xff" * 127 + b"\xfe"  # 1023
    assert codebook_ends.stated(left_out, 1, varying=True).left_out == 1023
    with pytest.raises(ValueError, match="1025 codebooks"):
        codebook_ends.stated(left_out + bytes(1), 2, varying=True)


def test_ends_before_the_first_byte() -> None:
    with pytest.raises(ValueError, match="before the first byte"):
        codebook_ends.placed([-8], 100, [1, 1])
