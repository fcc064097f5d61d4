"""io/bitstream.py against a slow obvious packing, and against every kind of damage."""

import io
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codec.errors import CodecError, ConfigError, DamagedFile, InputNotFound, UnsupportedAudio, UsageError
from codec.io import bitstream, entropy
from codec.io import packets as packets_module
from codec.io.bitstream import Codes, Damage, Header, Packet, Reader, SourceId, Writer
from codec.io.tags import NO_TAGS, Tags
from tests.helpers.memory import peak_memory

HEADER = Header(
    model="tiny",
    weights_hash="ab" * 32,
    source_rate=16000,
    channels=2,
    sample_rate=8000,
    hop=80,
    decoder_delay=80,
    codebook_sizes=(1000, 1000, 1000),
    frames_per_packet=4,
    family="trial",
    sample_format="PCM_16",
)


def random_codes(header: Header, frames: int, seed: int = 0) -> Codes:
    generator = np.random.default_rng(seed)
    sizes = np.array(header.codebook_sizes)[:, None]
    return generator.integers(0, sizes, (header.rows, header.num_codebooks, frames))


def written(header: Header, *pieces: Codes, time: int | None = None, coder: int = entropy.ADAPTIVE) -> bytes:
    """The bytes of a file whose frames hold `time` samples at the source's rate; the most that fit if None."""
    file = io.BytesIO()
    writer = Writer(file, header, coder=coder)
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
    reader = Reader(io.BytesIO(golden), label="x")
    assert reader.header == replace(HEADER, time=1280, frames=9, family="", sample_format="")
    assert [part.first for part in reader.parts(5) if isinstance(part, Packet)] == [4, 8]


def test_a_file_of_version_2_is_read_forever() -> None:
    """Three channels in two rows of two, and a scale for every two frames; never write it again."""
    golden = (Path(__file__).parents[1] / "golden/version-2.codec").read_bytes()
    row, codebook, frame = np.ogrid[:2, :3, :9]
    sizes = np.array([1000, 1000, 20])[:, None]
    expected = (row * 331 + codebook * 77 + frame * frame * 13) % sizes
    scale = (0.25 * row[:, 0] + 1 + frame[0] // 2).astype(np.float32)  # [rows, frames]
    header = replace(
        HEADER,
        channels=3,
        model_channels=2,
        segment_frames=2,
        codebook_sizes=(1000, 1000, 20),
        sample_format="PCM_24",
        source=SourceId(7724, "0123456789abcdef"),
    )
    reader = Reader(io.BytesIO(golden), label="x")
    packets = list(reader.packets_with_scale())
    np.testing.assert_array_equal(np.concatenate([codes for codes, _ in packets], axis=2), expected)
    np.testing.assert_array_equal(np.concatenate([part for _, part in packets if part is not None], axis=1), scale)
    assert reader.header == replace(header, time=1280, frames=9)
    file = io.BytesIO()
    writer = Writer(file, header, coder=entropy.NONE)
    for frames in (slice(0, 3), slice(3, 9)):
        writer.write(expected[:, :, frames], scale[:, frames])
    writer.close(time=1280)
    assert file.getvalue() == golden


def resealed(data: bytes, **changes: object) -> bytes:
    """A file with other fields in the header and a matching checksum, as an attacker would write it."""
    size = struct.unpack_from("<H", data, 10)[0]
    fields = b"".join(encoded(kind, changes.get(name, value)) for kind, name, value in parsed_header(data))
    start = data[:10] + struct.pack("<H", len(fields)) + fields
    return start + struct.pack("<I", zlib.crc32(start)) + data[16 + size :]


# The table of the docstring, interpreted


def table(heading: str) -> list[tuple[str, str]]:
    """(type, name) of the rows below the line that ends with `heading`: the words before a colon or comma."""
    lines = (bitstream.__doc__ or "").split("\n")
    start = next(n for n, line in enumerate(lines) if re.fullmatch(rf" +bytes +{heading}", line))
    rows: list[tuple[str, str]] = []
    for line in lines[start + 1 :]:
        if not line.strip():
            return rows
        kind, name = re.fullmatch(r" +(\d+|[vtb])? +(.*)", line).groups()  # type: ignore[union-attr]
        rows.append((kind or "", re.split("[:,;]| of the (?:model|source)", name)[0]))
    raise AssertionError(heading)


def leb128(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        number |= (data[at] & 127) << shift
        at += 1
        if data[at - 1] < 128:
            break
    return number, at


def to_leb128(number: int) -> bytes:
    groups = [number >> shift & 127 for shift in range(0, max(1, number.bit_length()), 7)]
    return bytes([*(group | 128 for group in groups[:-1]), groups[-1]])


def encoded(kind: str, value: object) -> bytes:
    match kind, value:
        case "v", int():
            return to_leb128(value)
        case "t", str():
            return to_leb128(len(value.encode())) + value.encode()
        case _, bytes():
            return value
    raise AssertionError((kind, value))


def parsed_header(data: bytes) -> list[tuple[str, str, object]]:
    """(type, name, value) of the fields between length and checksum, by the table of the docstring."""
    at, end = 12, 12 + struct.unpack_from("<H", data, 10)[0]
    found: list[tuple[str, str, object]] = []
    rows = table("field")
    assert [name for _, name in rows[:4]] == ["magic", "version", "length of the fields from here to the checksum",
                                              "weights hash"]  # fmt: skip
    for kind, name in rows[3:]:
        start = at
        match kind:
            case "v":
                number, at = leb128(data, at)
                found.append((kind, name, number))
            case "t":
                size, at = leb128(data, at)
                at += size
                found.append((kind, name, data[at - size : at].decode()))
            case _:
                at += int(kind)
                found.append((kind, name, data[start:at]))
        if name == "runs":
            break
    return [*found, ("", "rest", data[at:end])]


def test_the_header_is_that_of_the_table() -> None:
    header = replace(HEADER, model_channels=2, segment_frames=2, time=70_000)
    fields = parsed_header(written(header))
    values = {name.replace(" ", "_"): value for _, name, value in fields}
    assert values.pop("weights_hash") == bytes.fromhex(header.weights_hash)
    assert values.pop("rest") == to_leb128(3) + to_leb128(1000)
    assert values.pop("runs") == 1
    assert len(values) == 11
    assert values == {name: getattr(header, name) for name in values}


def test_packets_are_those_of_the_tables() -> None:
    codes = random_codes(HEADER, 10)
    data = written(HEADER, codes, time=1000)
    at = 16 + struct.unpack_from("<H", data, 10)[0]
    assert [row[0] for row in table("packet")] == ["2", "1", "b", "4"]
    assert [row[0] for row in table("codes")] == ["v", "v", "v", "", ""]
    first = 0
    for frames in (4, 4, 2):
        payload = entropy.pack(codes[:, :, first : first + frames], HEADER.codebook_sizes)
        body = b"".join(map(to_leb128, (first, frames, 3))) + payload
        packet = b"\xf5\xc3\0" + to_leb128(len(body)) + body
        assert data[at : at + len(packet) + 4] == packet + struct.pack("<I", zlib.crc32(packet))
        first, at = first + frames, at + len(packet) + 4
    assert [row[0] for row in table("end")] == ["v", "v", "v", "v", "v", "v", "b"]
    body = b"".join(map(to_leb128, (1000, 10, at, 0, 0)))  # without a copy of the header, in a file that is so short
    packet = b"\xf5\xc3\xff" + to_leb128(len(body)) + body
    end = packet + struct.pack("<I", zlib.crc32(packet))
    assert data[at:] == end + struct.pack("<I", len(end))


def test_the_end_of_a_longer_file_has_an_index_and_a_copy_of_the_header() -> None:
    header = replace(HEADER, frames_per_packet=1)
    data = written(header, random_codes(HEADER, 100), coder=entropy.NONE)
    size = struct.unpack_from("<H", data, 10)[0]
    copy = data[12 : 12 + size]
    packet = 3 + 1 + 3 + 8 + 4  # bytes: 60 bits of codes
    (length,) = struct.unpack("<I", data[-4:])
    at = len(data) - 4 - length
    assert at == 16 + size + 100 * packet
    entries = [16, 16 + size + 16 * packet] + 5 * [16, 16 * packet]  # the first counts from the beginning of the file
    body = b"".join(map(to_leb128, (99 * 80 * 2, 100, at, 6, *entries, size))) + copy
    end = b"\xf5\xc3\xff" + to_leb128(len(body)) + body
    assert data[at:-4] == end + struct.pack("<I", zlib.crc32(end))


def test_tagged_fields_that_are_unknown_are_skipped() -> None:
    data = written(replace(HEADER, sample_format="FLOAT"), random_codes(HEADER, 4))
    (rest,) = (value for _, name, value in parsed_header(data) if name == "rest")
    assert isinstance(rest, bytes)
    changed = resealed(data, rest=rest + to_leb128(300) + to_leb128(5) + b"hello")
    assert Reader(io.BytesIO(changed), label="x").header.sample_format == "FLOAT"


def test_packets_of_an_unknown_kind_are_skipped() -> None:
    codes = random_codes(HEADER, 4)
    data = written(HEADER, codes)
    at = 16 + struct.unpack_from("<H", data, 10)[0]
    other = b"\xf5\xc3\x87" + to_leb128(300) + bytes(300)
    other += struct.pack("<I", zlib.crc32(other))
    back, damage = read(data[:at] + other + data[at:])
    assert damage is None
    np.testing.assert_array_equal(back, codes)


def test_a_newer_coder_is_not_damage() -> None:
    data = written(HEADER, random_codes(HEADER, 4))
    at = 16 + struct.unpack_from("<H", data, 10)[0]
    size, after = leb128(data, at + 3)
    packet = bytearray(data[at : after + size])
    packet[2] = 27
    altered = data[:at] + bytes(packet) + struct.pack("<I", zlib.crc32(packet)) + data[at + len(packet) + 4 :]
    _, error = read(altered)
    assert isinstance(error, UnsupportedAudio)
    assert "coder 27" in str(error)


def test_payload_is_the_one_in_the_docstring() -> None:
    codes = np.array([[[5, 2], [1, 7]]])
    assert entropy.pack(codes, (8, 8)) == bytes.fromhex("A570")
    np.testing.assert_array_equal(entropy.unpack(bytes.fromhex("A570"), (8, 8), rows=1, frames=2), codes)


SIZES = st.sampled_from([2, 3, 255, 256, 257, 1000, 1024, 65536, 1 << 24]) | st.integers(2, 1 << 24)


@settings(deadline=None)
@given(
    rows=st.integers(1, 3),
    sizes=st.lists(SIZES, min_size=1, max_size=4),
    frames=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_payload_equals_packing_as_text(rows: int, sizes: list[int], frames: int, seed: int) -> None:
    codes = random_codes(replace(HEADER, channels=rows, codebook_sizes=tuple(sizes)), frames, seed)
    text = "".join(
        format(codes[row, codebook, frame], f"0{len(bin(size - 1)) - 2}b")
        for frame in range(frames)
        for row in range(rows)
        for codebook, size in enumerate(sizes)
    )
    payload = bytes(int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8))
    assert entropy.pack(codes, sizes) == payload


@pytest.mark.slow
@settings(deadline=None)
@given(
    channels=st.integers(1, 5),
    sizes=st.lists(SIZES, min_size=1, max_size=12),
    frames_per_packet=st.integers(1, 50),
    pieces=st.lists(st.integers(0, 40), max_size=6),
)
def test_codes_round_trip_in_chunks_of_any_size(
    channels: int, sizes: list[int], frames_per_packet: int, pieces: list[int]
) -> None:
    header = replace(HEADER, channels=channels, codebook_sizes=tuple(sizes), frames_per_packet=frames_per_packet)
    codes = random_codes(header, sum(pieces))
    cut = np.split(codes, np.cumsum(pieces)[:-1], axis=2) if pieces else []
    data = written(header, *cut)
    assert data == written(header, codes)
    back, error = read(data)
    assert error is None
    assert back.dtype == np.int64
    np.testing.assert_array_equal(back, codes)


@pytest.mark.slow
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


class Pipe(io.RawIOBase):
    """A file that cannot seek and gives a byte at a time."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(1)
        memoryview(buffer)[: len(data)] = data
        return len(data)


def parts(data: bytes, *, pipe: bool = False) -> tuple[list[Packet], list[Damage]]:
    file = io.BufferedReader(Pipe(data)) if pipe else io.BytesIO(data)
    found = list(Reader(file, label="x.codec").parts())
    return [part for part in found if isinstance(part, Packet)], [part for part in found if isinstance(part, Damage)]


CODES = random_codes(HEADER, 14)
with pytest.MonkeyPatch.context() as always:
    always.setattr(bitstream, "COPY_WITHIN", 0)  # with a copy of the header, as in longer files
    DATA = written(HEADER, CODES, time=2000)
BEGIN = 16 + struct.unpack_from("<H", DATA, 10)[0]
PACKET = 3 + 1 + 3 + 30 + 4  # bytes of a packet of 4 frames: 240 bits
STARTS = [BEGIN + n * PACKET for n in range(4)]  # of packets; the last has 2 frames
END = STARTS[3] + PACKET - 15


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("pipe", [False, True])
def test_an_altered_byte_costs_its_packet_alone(mask: int, pipe: bool) -> None:
    for position in range(BEGIN if pipe else 0, len(DATA)):
        altered = bytearray(DATA)
        altered[position] ^= mask
        packets, damage = parts(bytes(altered), pipe=pipe)
        assert len(damage) == 1, position
        lost = None
        if BEGIN <= position < END:
            lost = max(n for n in range(4) if STARTS[n] <= position)
            assert (damage[0].first, damage[0].frames, damage[0].offset) == (
                4 * lost,
                2 if lost == 3 else 4,
                STARTS[lost],
            )
        else:
            assert damage[0].frames == 0
        assert [packet.first for packet in packets] == [4 * n for n in range(4) if n != lost]
        for packet in packets:
            np.testing.assert_array_equal(packet.codes, CODES[:, :, packet.first : packet.first + 4])


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
@pytest.mark.parametrize("pipe", [False, True])
@pytest.mark.parametrize("tags", [NO_TAGS, Tags((("title", "a"),))])
def test_an_altered_byte_of_the_header_costs_nothing(mask: int, pipe: bool, tags: Tags) -> None:
    """In a file that is too short for a copy of the header: its checksum shows which value the byte had."""
    data = written(replace(HEADER, tags=tags), CODES, time=2000)
    begin = 16 + struct.unpack_from("<H", data, 10)[0]
    assert data.count(data[12 : begin - 4]) == 1
    intact = Reader(io.BytesIO(data), label="x").header
    for position in range(begin):
        altered = bytearray(data)
        altered[position] ^= mask
        packets, damage = parts(bytes(altered), pipe=pipe)
        assert [(part.frames, part.offset) for part in damage] == [(0, position)]
        np.testing.assert_array_equal(np.concatenate([packet.codes for packet in packets], axis=2), CODES)
        assert Reader(io.BytesIO(bytes(altered)), label="x").header == intact


def test_two_altered_bytes_of_the_header_are_not_guessed() -> None:
    data = written(HEADER, CODES, time=2000)
    for first, second in ((0, 20), (10, 11), (12, 60), (40, BEGIN - 1)):
        altered = bytearray(data)
        altered[first] ^= 1
        altered[second] ^= 0x80
        with pytest.raises(DamagedFile):
            Reader(io.BytesIO(bytes(altered)), label="x")


@pytest.mark.parametrize("pipe", [False, True])
def test_every_truncation_is_detected_and_earlier_packets_are_read(pipe: bool) -> None:
    for size in range(len(DATA)):
        if size < BEGIN:
            with pytest.raises(DamagedFile) as caught:
                parts(DATA[:size], pipe=pipe)
            assert caught.value.offset == size
            continue
        packets, damage = parts(DATA[:size], pipe=pipe)
        assert [packet.first for packet in packets] == [4 * n for n in range(4) if (*STARTS, END)[n + 1] <= size]
        assert len(damage) == 1
        assert damage[0].frames == 0  # how many are missing is unknown


def test_the_length_of_a_truncated_file_is_that_of_its_packets() -> None:
    header = Reader(io.BytesIO(DATA[: STARTS[2]]), label="x").header
    assert (header.frames, header.time) == (8, (8 * 80 - 80) * 2)
    for declared, time in ((1100, 1100), (2000, 1120), (900, 1120)):  # 900 samples do not need 8 frames: a guess
        data = written(replace(HEADER, time=declared), CODES, time=2000)
        header = Reader(io.BytesIO(data[: STARTS[2] + 1]), label="x").header
        assert (header.frames, header.time) == (8, time)


@pytest.mark.parametrize("declared", [0, 2000])
@pytest.mark.parametrize("pipe", [False, True])
def test_what_a_truncation_costs_is_named(declared: int, pipe: bool) -> None:
    data = written(replace(HEADER, time=declared), CODES, time=2000)
    cut = data[: data.index(b"\xf5\xc3\xff") - 20]  # within the last packet
    file = io.BufferedReader(Pipe(cut)) if pipe else io.BytesIO(cut)
    reader = Reader(file, label="x")
    error = reader.damaged_in(reader.check(), intact=True)
    assert error.lost is not None
    ((begin, end),) = error.lost
    assert begin == pytest.approx((12 * 80 - 80) / 8000)
    assert end is None
    assert "lost are all from" in str(error)


def test_a_pipe_knows_its_length_at_the_end() -> None:
    reader = Reader(io.BufferedReader(Pipe(DATA)), label="x")
    assert (reader.is_complete, reader.header.time) == (False, 0)
    assert len(list(reader.parts())) == 4
    assert (reader.is_complete, reader.header.time, reader.header.frames) == (True, 2000, 14)
    with pytest.raises(UsageError, match="once"):
        list(reader.parts())


@pytest.mark.parametrize("frames", [8, 9, 10, 11, 12])
def test_the_last_packets_of_a_live_file_are_not_whole(frames: int) -> None:
    """All packets have 4 frames; the recording may end in the last 3 frames."""
    header = replace(HEADER, source_rate=8000)
    for is_live in (True, False):
        file = io.BytesIO()
        writer = Writer(file, header, coder=entropy.NONE, is_live=is_live)
        writer.write(CODES[:, :, : frames - 3])
        writer.write(CODES[:, :, frames - 3 : frames], is_end=True)
        time = 80 * (frames - 3) + 1
        writer.close(time=time)
        reader = Reader(io.BufferedReader(Pipe(file.getvalue())), label="x")
        assert reader.header.is_live == is_live
        packets = [packet for packet in reader.parts() if isinstance(packet, Packet)]
        codes = np.concatenate([packet.codes for packet in packets], axis=2)
        np.testing.assert_array_equal(codes, CODES[:, :, :frames])
        whole = max((packet.first + 4 for packet in packets if packet.frames == 4), default=0)
        assert reader.least_time == (80 * whole if is_live else 0) <= time
        assert (80 * whole <= time) == (is_live or frames == 11)


def test_a_live_file_that_ends_in_a_whole_packet_is_damaged() -> None:
    file = io.BytesIO()
    writer = Writer(file, replace(HEADER, source_rate=8000), is_live=True)
    writer.write(CODES[:, :, :8])
    writer.close(time=80 * 7)
    reader = Reader(io.BufferedReader(Pipe(file.getvalue())), label="x")
    (damage,) = (part for part in reader.parts() if isinstance(part, Damage))
    assert "560 samples after 8 whole frames" in damage.reason


def test_a_scale_or_packets_of_one_frame_are_not_live() -> None:
    for header in (replace(HEADER, frames_per_packet=1), replace(HEADER, segment_frames=2)):
        assert not Writer(io.BytesIO(), header, is_live=True).header.is_live


def test_packets_are_given_before_the_next_is_read() -> None:
    """Byte by byte, as they come from a live pipe."""
    pipe = Pipe(DATA)
    reader = Reader(io.BufferedReader(pipe, buffer_size=1), label="x")
    found = reader.parts()
    for n in range(3):
        next(found)
        assert pipe._file.tell() == STARTS[n + 1]


@pytest.mark.parametrize("garbage", [b"\0" * 9, b"\xf5\xc3\0\x05hello", b"\xf5" * 99, DATA[:BEGIN], b"\xf5\xc3\0\xff"])
def test_garbage_between_packets_costs_nothing(garbage: bytes) -> None:
    for at in STARTS:
        packets, damage = parts(DATA[:at] + garbage + DATA[at:])
        assert len(packets) == 4
        assert [(part.frames, part.offset) for part in damage] == [(0, at)]


def test_missing_and_swapped_packets_are_detected() -> None:
    one, two = DATA[STARTS[0] : STARTS[1]], DATA[STARTS[1] : STARTS[2]]
    for body, firsts, lost in ((two + one, [4, 8, 12], [0]), (one + one, [0, 8, 12], [4]), (two, [4, 8, 12], [0])):
        packets, damage = parts(DATA[:BEGIN] + body + DATA[STARTS[2] :])
        assert [packet.first for packet in packets] == firsts
        assert [part.first for part in damage if part.frames] == lost


def test_another_file_behind_the_end_is_named() -> None:
    packets, damage = parts(DATA + DATA)
    assert [packet.first for packet in packets] == [0, 4, 8, 12]
    assert [part.reason for part in damage] == ["another .codec file follows, which is not read"]
    assert damage[0].offset == len(DATA)


def test_a_file_that_was_never_closed_is_read() -> None:
    file = io.BytesIO()
    Writer(file, HEADER).write(CODES)
    packets, damage = parts(file.getvalue())
    assert [packet.first for packet in packets] == [0, 4, 8]
    assert "truncated" in damage[0].reason


@pytest.mark.parametrize("index", ["intact", "damaged"])
def test_reading_from_any_frame(index: str) -> None:
    codes = random_codes(HEADER, 400)
    data = written(HEADER, codes)
    if index == "damaged":
        data = data[:-5]
    reader = Reader(io.BytesIO(data), label="x")
    assert len(reader._index) == 6  # of 100 packets
    assert not [part for part in reader.parts(1000) if isinstance(part, Packet)]
    for first in (0, 3, 63, 64, 65, 399):
        found = [part for part in reader.parts(first) if isinstance(part, Packet)]
        assert found[0].first <= first < found[0].first + found[0].frames
        np.testing.assert_array_equal(
            np.concatenate([part.codes for part in found], axis=2), codes[:, :, found[0].first :]
        )


def test_asking_for_the_size_keeps_the_position() -> None:
    header = replace(HEADER, frames_per_packet=1000)
    codes = random_codes(header, 24_000)
    data = written(header, codes, coder=0)
    assert len(data) > packets_module.CHUNK
    for stream, sizes in ((io.BytesIO(data), {len(data)}), (io.BufferedReader(Pipe(data)), None)):
        reader = Reader(stream, label="x")
        found, seen = [], set()
        for part in reader.parts():
            assert isinstance(part, Packet)
            found.append(part.codes)
            seen.add(reader.size_read())
        np.testing.assert_array_equal(np.concatenate(found, axis=2), codes)
        assert sizes is None or seen == sizes
        assert reader.size_read() == len(data)


@pytest.mark.parametrize(
    "changes",
    [
        {"time": 1 << 63},
        {"source rate": 0},
        {"source rate": 1 << 40},
        {"sample rate": 1 << 40},
        {"hop": 0},
        {"hop": 1 << 40},
        {"decoder delay": 1 << 40},
        {"frames per packet": 0},
        {"frames per packet": 1 << 40},
        {"channels": 0},
        {"channels": 1 << 40},
        {"model channels": 0},
        {"segment frames": 3},
        {"frames per packet": 1 << 20},
        {"runs": 1 << 60},
        {"runs": 0},
        {"rest": to_leb128(1 << 60) + to_leb128(1000)},  # codebooks
        {"rest": to_leb128(3) + to_leb128(1)},  # their size
        {"rest": to_leb128(3) + to_leb128(1 << 30)},
        {"rest": to_leb128(3) + to_leb128(1000) + to_leb128(1) + to_leb128(1 << 60)},  # length of a tagged field
        {"rest": b"\xff" * 12},  # a number of more than 64 bits
        {"model": b"\x02\xff\xfe"},  # not UTF-8
        {"model": "\x1b["},  # a terminal escape sequence
    ],
)
def test_hostile_headers_allocate_nothing(changes: dict[str, object]) -> None:
    data = resealed(DATA, **changes)[:-4]  # without the footer, by which the copy would be found
    assert isinstance(read(data)[1], DamagedFile) or "time" in changes  # and one-time allocations
    assert peak_memory(lambda: read(data)) < 1_000_000


def test_codes_beyond_the_codebook_are_detected() -> None:
    data = written(HEADER, np.full((2, 3, 5), 999), coder=entropy.NONE)
    (rest,) = (value for _, name, value in parsed_header(data) if name == "rest")
    smaller = resealed(data, rest=to_leb128(3) + to_leb128(999))  # still 10 bits each
    assert rest == to_leb128(3) + to_leb128(1000)
    packets, damage = parts(smaller)
    assert not packets
    assert [part.reason for part in damage] == [f"packet {n}: codes beyond the size of their codebook" for n in (0, 1)]


def test_forged_packet_starts_do_not_take_quadratic_time() -> None:
    """Each of 20 000 forged starts claims 64 kB; only a few of them are compared with their checksum."""
    header = replace(HEADER, frames_per_packet=10_000)
    data = written(header) + b"\xf5\xc3\0\xff\xff\x03" * 20_000
    computed = 0

    def counted(packet: bytes) -> bool:
        nonlocal computed
        computed += len(packet)
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packets_module, "is_sealed", counted)
        with pytest.raises(DamagedFile):
            list(Reader(io.BufferedReader(io.BytesIO(data)), label="x").packets())
    assert computed < 100 * len(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_raise_a_codec_error(data: bytes, after_a_true_header: bool) -> None:
    start = DATA[:BEGIN] if after_a_true_header else b""
    _, error = read(start + data)
    assert isinstance(error, DamagedFile | UnsupportedAudio)


def test_other_files_and_newer_versions_are_not_damage() -> None:
    _, error = read(b"RIFF\0\0\0\0WAVEfmt ")
    assert isinstance(error, UnsupportedAudio)
    newer = written(HEADER)
    newer = newer[:8] + b"\3\0" + newer[10:]
    _, error = read(newer[: BEGIN - 4] + struct.pack("<I", zlib.crc32(newer[: BEGIN - 4])))
    assert isinstance(error, UnsupportedAudio)
    assert "upgrade" in str(error)


def test_text_mode_is_detected() -> None:
    for copy in (DATA.replace(b"\n", b"\r\n"), DATA.replace(b"\r\n", b"\n"), bytes(b & 0x7F for b in DATA)):
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
        {"codebook_sizes": (1000, 1, 1000)},
        {"codebook_sizes": ()},
        {"codebook_sizes": (2,) * 1025},
        {"model": "x" * 256},
        {"model": "a\nb"},
        {"sample_format": "a\nb"},
        {"weights_hash": "ab"},
        {"weights_hash": "zz" * 32},
    ],
)
def test_header_fields_out_of_range_raise(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        replace(HEADER, **changes)


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


def test_a_position_behind_the_end_is_the_end() -> None:
    """As a damaged index may name it; no file can seek to it."""
    window = packets_module.Window(io.BytesIO(DATA))
    window.go_to(1 << 70)
    assert (window.offset, window.peek(1)) == (len(DATA), b"")


@pytest.mark.parametrize("kind", [32, 96])
def test_packed_codes_have_no_ends(kind: int) -> None:
    data = written(HEADER, random_codes(HEADER, 4), coder=entropy.NONE)
    size, after = leb128(data, BEGIN + 3)
    packet = bytearray(data[BEGIN : after + size])
    packet[2] = kind
    altered = data[:BEGIN] + bytes(packet) + struct.pack("<I", zlib.crc32(packet)) + data[BEGIN + len(packet) + 4 :]
    packets, (damage,) = parts(altered)
    assert not packets
    assert damage.reason == f"packet 0: it states kind {kind}"
