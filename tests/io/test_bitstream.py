"""io/bitstream.py against a slow obvious packing, and against every kind of damage."""

import io
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.errors import CodecError, ConfigError, DamagedFile, InputNotFound, UnsupportedAudio, UsageError
from codec.io import bitstream
from codec.io.bitstream import Codes, Header, Reader, Writer

HEADER = Header(
    model="tiny",
    weights_hash="ab" * 32,
    source_rate=16000,
    channels=2,
    sample_rate=8000,
    hop=80,
    decoder_delay=80,
    num_codebooks=3,
    codebook_size=1000,
    frames_per_packet=4,
)


def random_codes(header: Header, frames: int, seed: int = 0) -> Codes:
    generator = np.random.default_rng(seed)
    return generator.integers(0, header.codebook_size, (header.channels, header.num_codebooks, frames))


def written(header: Header, *pieces: Codes, time: int | None = None) -> bytes:
    """The bytes of a file whose frames hold `time` samples at the source's rate; the most that fit if None."""
    file = io.BytesIO()
    writer = Writer(file, header)
    for piece in pieces:
        writer.write(piece)
    frames = sum(piece.shape[2] for piece in pieces)
    held = header.frame_spec.time(frames) * header.source_rate // header.sample_rate
    writer.close(time=held if time is None else time)
    return file.getvalue()


def read(data: bytes) -> tuple[Codes, CodecError | None]:
    """All codes before the damage, and the damage."""
    packets = []
    try:
        reader = Reader(io.BytesIO(data), label="x.codec")
    except CodecError as error:
        return np.empty((0, 0, 0), np.int64), error
    packets.append(np.empty((reader.header.channels, reader.header.num_codebooks, 0), np.int64))
    try:
        for codes in reader.packets():
            packets.append(codes)
    except CodecError as error:
        return np.concatenate(packets, axis=2), error
    return np.concatenate(packets, axis=2), None


def test_a_file_of_version_1_is_read_forever() -> None:
    """Written by the first version of the format; never replace it."""
    golden = (Path(__file__).parents[1] / "golden/version-1.codec").read_bytes()
    channel, codebook, frame = np.ogrid[:2, :3, :9]
    expected = (channel * 331 + codebook * 77 + frame * frame * 13) % 1000
    codes, damage = read(golden)
    assert damage is None
    np.testing.assert_array_equal(codes, expected)
    assert Reader(io.BytesIO(golden), label="x").header == replace(HEADER, time=1280, frames=9)
    assert written(HEADER, expected, time=1280) == golden


def test_a_file_of_version_2_is_read_forever() -> None:
    """Three channels in two rows of two, and a scale for every two frames; never write it again."""
    golden = (Path(__file__).parents[1] / "golden/version-2.codec").read_bytes()
    row, codebook, frame = np.ogrid[:2, :3, :9]
    expected = (row * 331 + codebook * 77 + frame * frame * 13) % 1000
    scale = (0.25 * row[:, 0] + 1 + frame[0] // 2).astype(np.float32)  # [rows, frames]
    header = replace(HEADER, channels=3, model_channels=2, segment_frames=2)
    reader = Reader(io.BytesIO(golden), label="x")
    packets = list(reader.packets_with_scale())
    np.testing.assert_array_equal(np.concatenate([codes for codes, _ in packets], axis=2), expected)
    np.testing.assert_array_equal(np.concatenate([part for _, part in packets if part is not None], axis=1), scale)
    assert reader.header == replace(header, time=1280, frames=9)
    file = io.BytesIO()
    writer = Writer(file, header)
    for frames in (slice(0, 3), slice(3, 9)):
        writer.write(expected[:, :, frames], scale[:, frames])
    writer.close(time=1280)
    assert file.getvalue() == golden


def resealed(data: bytes, offset: int, value: bytes) -> bytes:
    """A header with other bytes and a matching checksum, as an attacker would write it."""
    end = 12 + struct.unpack_from("<H", data, 10)[0]
    changed = bytearray(data)
    changed[offset : offset + len(value)] = value
    changed[end : end + 4] = struct.pack("<I", zlib.crc32(changed[:end]))
    return bytes(changed)


def test_payload_is_the_one_in_the_docstring() -> None:
    header = replace(HEADER, channels=1, num_codebooks=2, codebook_size=8)
    data = written(header, np.array([[[5, 2], [1, 7]]]))
    start = len(written(header)) - 20  # offset of the end packet in an empty file
    assert data[start : start + 4] == b"PCKT"
    assert data[start + 16 : start + 18] == bytes.fromhex("A570")


@settings(deadline=None)
@given(
    channels=st.integers(1, 3),
    num_codebooks=st.integers(1, 4),
    codebook_size=st.integers(2, 1 << 24),
    frames=st.integers(0, 9),
    seed=st.integers(0, 1000),
)
def test_payload_equals_packing_as_text(
    channels: int, num_codebooks: int, codebook_size: int, frames: int, seed: int
) -> None:
    header = replace(
        HEADER, channels=channels, num_codebooks=num_codebooks, codebook_size=codebook_size, frames_per_packet=9
    )
    codes = random_codes(header, frames, seed)
    bits = len(bin(codebook_size - 1)) - 2
    text = "".join(
        format(codes[channel, codebook, frame], f"0{bits}b")
        for frame in range(frames)
        for channel in range(channels)
        for codebook in range(num_codebooks)
    )
    payload = bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))
    expected = struct.pack("<4sIII", b"PCKT", 0, frames, len(payload)) + payload
    assert not frames or expected + struct.pack("<I", zlib.crc32(expected)) in written(header, codes)


@settings(deadline=None)
@given(
    channels=st.integers(1, 5),
    num_codebooks=st.integers(1, 12),
    codebook_size=st.sampled_from([2, 3, 255, 256, 257, 1000, 1024, 65536, 1 << 24]) | st.integers(2, 1 << 24),
    frames_per_packet=st.integers(1, 50),
    pieces=st.lists(st.integers(0, 40), max_size=6),
)
def test_codes_round_trip_in_chunks_of_any_size(
    channels: int, num_codebooks: int, codebook_size: int, frames_per_packet: int, pieces: list[int]
) -> None:
    header = replace(
        HEADER,
        channels=channels,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size,
        frames_per_packet=frames_per_packet,
    )
    codes = random_codes(header, sum(pieces))
    cut = np.split(codes, np.cumsum(pieces)[:-1], axis=2) if pieces else []
    data = written(header, *cut)
    assert data == written(header, codes)
    back, error = read(data)
    assert error is None
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, codes)


@settings(deadline=None)
@given(
    model=st.text(st.characters(categories=["L", "N", "P"]), max_size=60),
    source_rate=st.integers(1000, bitstream.MAX_RATE),
    time=st.integers(0, 2000),
)
def test_header_round_trip(model: str, source_rate: int, time: int) -> None:
    header = replace(HEADER, model=model, source_rate=source_rate, weights_hash="0123456789abcdef" * 4)
    frames = header.frame_spec.frames(replace(header, time=time).model_time)
    back = Reader(io.BytesIO(written(header, random_codes(header, frames), time=time)), label="x").header
    assert back == replace(header, time=time, frames=frames)
    assert back.seconds == time / source_rate


def test_packets_have_the_frames_of_the_header() -> None:
    reader = Reader(io.BytesIO(written(HEADER, random_codes(HEADER, 10))), label="x")
    assert [codes.shape for codes in reader.packets()] == [(2, 3, 4), (2, 3, 4), (2, 3, 2)]


def test_a_file_may_start_inside_another() -> None:
    file = io.BytesIO(b"before")
    file.seek(6)
    writer = Writer(file, HEADER)
    writer.write(random_codes(HEADER, 10))
    writer.close(time=1)
    assert file.tell() == len(file.getvalue())
    file.seek(6)
    reader = Reader(file, label="x")
    assert sum(codes.shape[2] for codes in reader.packets()) == 10


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_altered_byte_is_detected_and_earlier_packets_are_read(mask: int) -> None:
    codes = random_codes(HEADER, 14)
    data = written(HEADER, codes)
    whole_at = {97: 0, 147: 4, 197: 8, 247: 12, 282: 14}  # start of a packet: frames before it
    for position in range(len(data)):
        altered = bytearray(data)
        altered[position] ^= mask
        back, error = read(bytes(altered))
        assert isinstance(error, DamagedFile), position
        if position < min(whole_at):
            assert error.seconds_decoded is None
        else:
            start = max(begin for begin in whole_at if begin <= position)
            whole = whole_at[start]
            assert error.offset == start
            assert error.seconds_decoded == (max(0, whole * 80 - 80) / 8000 or None)
            np.testing.assert_array_equal(back, codes[:, :, :whole])


def test_every_truncation_is_detected_and_earlier_packets_are_read() -> None:
    codes = random_codes(HEADER, 14)
    data = written(HEADER, codes)
    seen = set()
    for size in range(len(data)):
        back, error = read(data[:size])
        assert isinstance(error, DamagedFile), size
        assert error.offset == size
        np.testing.assert_array_equal(back, codes[: back.shape[0], : back.shape[1], : back.shape[2]])
        seen.add(back.shape[2])
    assert seen == {0, 4, 8, 12, 14}


def test_bytes_after_the_end_packet_are_detected_after_all_codes() -> None:
    codes = random_codes(HEADER, 14)
    back, error = read(written(HEADER, codes) + b"\0")
    np.testing.assert_array_equal(back, codes)
    assert isinstance(error, DamagedFile)
    assert error.seconds_decoded == (14 * 80 - 80) / 8000


def test_swapped_and_missing_packets_are_detected() -> None:
    codes = random_codes(HEADER, 14)
    data = written(HEADER, codes)
    start, size = len(written(HEADER)) - 20, 20 + (4 * 2 * 3 * 10) // 8
    one, two = data[start : start + size], data[start + size : start + 2 * size]
    for body in (two + one, one + one, two):
        _, error = read(data[:start] + body + data[start + 2 * size :])
        assert isinstance(error, DamagedFile)
        assert "in place of" in error.reason


def test_a_file_that_was_never_closed_is_detected() -> None:
    file = io.BytesIO()
    Writer(file, HEADER).write(random_codes(HEADER, 14))
    _, error = read(file.getvalue())
    assert isinstance(error, DamagedFile)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (44, b"\xff" * 8),  # time
        (52, b"\xff" * 8),  # frames
        (52, b"\0" * 8),
        (60, b"\0" * 4),  # source rate
        (60, b"\xff" * 4),
        (64, b"\xff" * 4),  # sample rate
        (68, b"\0" * 4),  # hop
        (68, b"\xff" * 4),
        (72, b"\xff" * 4),  # decoder delay
        (76, b"\0" * 4),  # codebook size
        (76, b"\xff" * 4),
        (80, b"\0" * 4),  # frames per packet
        (80, b"\xff" * 4),
        (84, b"\0" * 2),  # channels
        (84, b"\xff" * 2),
        (86, b"\0" * 2),  # codebooks
        (86, b"\xff" * 2),
        (80, struct.pack("<IHH", 1 << 20, 1024, 1024)),
        (88, b"\xff"),  # length of the name
        (89, b"\xff\xfe"),  # not UTF-8
        (89, b"\x1b["),  # a terminal escape sequence
    ],
)
def test_hostile_headers_allocate_nothing(offset: int, value: bytes) -> None:
    data = resealed(written(HEADER, random_codes(HEADER, 14)), offset, value)
    read(data)  # one-time allocations
    tracemalloc.start()
    _, error = read(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(error, DamagedFile)
    assert peak < 1_000_000


def test_codes_beyond_the_codebook_are_detected() -> None:
    data = written(HEADER, np.full((2, 3, 5), 999))
    back, error = read(resealed(data, 76, struct.pack("<I", 999)))  # still 10 bits each
    assert isinstance(error, DamagedFile)
    assert back.size == 0


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_raise_a_codec_error(data: bytes, after_a_true_header: bool) -> None:
    start = written(HEADER, random_codes(HEADER, 14))[:98] if after_a_true_header else b""
    _, error = read(start + data)
    assert isinstance(error, DamagedFile | UnsupportedAudio)


def test_other_files_and_newer_versions_are_not_damage() -> None:
    _, error = read(b"RIFF\0\0\0\0WAVEfmt ")
    assert isinstance(error, UnsupportedAudio)
    _, error = read(resealed(written(HEADER), 8, b"\3\0"))
    assert isinstance(error, UnsupportedAudio)
    assert "upgrade" in str(error)


def test_text_mode_is_detected() -> None:
    data = written(HEADER, random_codes(HEADER, 14))
    for copy in (data.replace(b"\n", b"\r\n"), data.replace(b"\r\n", b"\n"), bytes(b & 0x7F for b in data)):
        _, error = read(copy)
        assert isinstance(error, DamagedFile)
        assert "text mode" in error.reason


@pytest.mark.parametrize(
    "changes",
    [
        {"channels": 0},
        {"channels": 1025},
        {"source_rate": 0},
        {"frames_per_packet": 1 << 20},
        {"codebook_size": 1},
        {"model": "x" * 256},
        {"model": "a\nb"},
        {"weights_hash": "ab"},
        {"weights_hash": "zz" * 32},
    ],
)
def test_header_fields_out_of_range_raise(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        replace(HEADER, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("codes", [np.zeros((1, 3, 4), int), np.full((2, 3, 1), 1000), np.full((2, 3, 1), -1)])
def test_writer_refuses_codes_of_another_shape_or_range(codes: Codes) -> None:
    with pytest.raises(UsageError):
        Writer(io.BytesIO(), HEADER).write(codes)


def test_open_reader_names_the_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing.codec"):
        with pytest.raises(InputNotFound, match=path.name), bitstream.open_reader(path):
            pass
    path = tmp_path / "a.codec"
    path.write_bytes(written(HEADER, random_codes(HEADER, 14))[:-1])
    with bitstream.open_reader(path) as reader, pytest.raises(DamagedFile, match=r"a\.codec.*0\.130 s"):
        list(reader.packets())
