"""Ogg streams that follow each other, as recorders of web radio write them; pages made by hand."""

import io
import struct

import numpy as np
import pytest

from codec.io import ogg

RNG = np.random.default_rng(0)


def page(serial: int, number: int, *, first: bool = False, segments: int = 18) -> bytes:
    """RFC 3533, section 6, without its checksum: 4.6 kB as a rule."""
    head = struct.pack("<4sBBqIIIB", b"OggS", 0, 2 if first else 0, number, serial, number, 0, segments)
    return head + b"\xff" * segments + RNG.bytes(255 * segments)


def stream(serial: int, pages: int = 60) -> bytes:
    sizes = RNG.integers(15, 22, pages)
    return b"".join(page(serial, at, first=at == 0, segments=int(size)) for at, size in enumerate(sizes))


def count(data: bytes) -> int:
    return len(ogg.starts(io.BytesIO(data)))


@pytest.mark.parametrize("pages", [1, 2, 30, 90])
def test_one_stream(pages: int) -> None:
    data = stream(5, pages)
    assert count(data) == count(data[:-9]) == count(data + bytes(300)) == 1


@pytest.mark.parametrize("pages", [3, 60])
@pytest.mark.parametrize("copies", [2, 3, 5, 9])
def test_streams_that_follow_each_other(pages: int, copies: int) -> None:
    """With serial numbers of their own, as the standard wants them, and copies of one stream."""
    assert count(b"".join(stream(serial, pages) for serial in range(copies))) == copies
    assert count(stream(7, pages) * copies) == copies


def test_a_short_stream_beside_a_long_one() -> None:
    assert count(stream(1, 2) + stream(2, 90)) == count(stream(1, 90) + stream(2, 2)) == 2


def test_streams_that_play_together() -> None:
    """Their first pages stand together at the start."""
    assert (
        count(page(1, 0, first=True) + page(2, 0, first=True) + b"".join(page(at % 2 + 1, at) for at in range(9))) == 1
    )


def test_an_ordinary_file_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ogg, "find_all", None)
    assert count(stream(5, 90)) == 1


@pytest.mark.parametrize("data", [b"", b"OggS", b"OggS" + bytes(100), b"RIFF" + bytes(100), b"OggS" + b"\xff" * 300])
def test_other_bytes(data: bytes) -> None:
    assert count(data) <= 1


def test_a_stream_that_breaks_off_hides_no_other() -> None:
    """The length of its last page would reach into the next stream."""
    assert count(stream(1, 30)[:-900] + stream(2, 30)) == 2
