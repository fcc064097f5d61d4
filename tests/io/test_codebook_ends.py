"""The ends of a packet's codebooks."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from codec.io import codebook_ends


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    left_out=st.none() | st.integers(0, 30),
)
@example(lengths=[0, 0, 0], left_out=None)
@example(lengths=[0] * 15 + [20_000], left_out=None)
@example(lengths=[20_000] + [0] * 15, left_out=0)
@example(lengths=[4000] * 200, left_out=None)
def test_ends_are_rounded_up(lengths: list[int], left_out: int | None) -> None:
    ends = [sum(lengths[: count + 1]) for count in range(len(lengths))]
    data = bytes(range(1, 251)) * (ends[-1] // 250 + 1)
    data = data[: ends[-1]]
    section = codebook_ends.packed(ends[:-1], len(data), left_out=left_out)
    found = codebook_ends.unpacked(section + data, len(lengths), varying=left_out is not None)
    assert found.size == len(section)
    assert found.left_out == (left_out or 0)
    assert len(found.ends) == len(ends) - 1
    unit = 8 + (len(section) + len(data)) // 128
    for stated, end in zip(found.ends[:-1], ends, strict=False):
        assert end <= stated < end + unit
    assert not found.ends or ends[-2] <= found.ends[-1] <= len(section) + len(data)  # its number may fill up a byte


def test_ends_take_few_bits() -> None:
    """Codebooks of about the same size take a bit each."""
    ends = [60 * count + count % 3 for count in range(1, 64)]
    assert len(codebook_ends.packed(ends, 64 * 60)) <= 9


def test_the_example() -> None:
    assert codebook_ends.packed([20, 60], 100) == b"\x80"
    assert codebook_ends.unpacked(b"\x80" + bytes(100), 3, varying=False) == ([25, 63], 0, 1)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "no encoder writes"),
        (b"\xff", "no encoder writes"),
        (b"\x01" + bytes(100), "no encoder writes"),  # a bit after the last number
        (b"\xff\xfe" + bytes(98), "before the first byte"),  # 15 ones: eight steps of 8 back
        (b"\xff" * 200 + bytes(98), "no encoder writes"),
    ],
)
def test_ends_that_no_encoder_writes(payload: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        codebook_ends.unpacked(payload, 2, varying=False)
