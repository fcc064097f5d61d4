r"""The .codec container: a header, packets of codes, an end packet. Integers and bytes only.

All numbers are little endian. The header, for a model name of n bytes:

    offset  bytes  field
         0      8  magic: 89 43 44 43 0D 0A 1A 0A (a copy in text mode or through 7-bit channels alters it)
         8      2  version: 1, or 2 for a model of several channels or with a scale
        10      2  length of the fields from byte 12 to the checksum: 77 + n, in version 2: 83 + n
        12     32  SHA-256 of the model's weights
        44      8  time: samples per channel of the source, at the source's sample rate
        52      8  total number of frames
        60      4  sample rate of the source, Hz
        64      4  sample rate of the model, Hz
        68      4  hop, samples at the model's rate
        72      4  decoder delay, samples at the model's rate
        76      4  codebook size
        80      4  frames per packet
        84      2  channels
        86      2  number of codebooks
        88      1  n
        89      n  name of the model, UTF-8; empty for a model without a name
      89+n      2  version 2 only: channels of the model, m
      91+n      4  version 2 only: frames per segment, which share a scale; 0 for a model without a scale
   then         4  CRC-32 of everything before it

Magic, version, length and checksum have the same positions in every version, so that a newer file can be distinguished
from a damaged one. Packets of `frames per packet` frames follow, the last one shorter, and an end packet of 0 frames:

    offset  bytes  field
         0      4  marker: "PCKT", or "DONE" for the end packet
         4      4  number of the packet, from 0
         8      4  frames
        12      4  length of the payload, p
        16      p  payload
      16+p      4  CRC-32 of everything before it in this packet

The payload holds the codes in the order [frames, rows, codebooks], the coarsest codebook first, each in
ceil(log2(codebook size)) bits, most significant bit first; zero bits fill the last byte. Example: one channel, two
codebooks of 8, frames (5, 1) and (2, 7): 101 001 | 010 111 -> 10100101 0111_0000 -> A5 70. A row is a channel, or in
version 2 a group of m channels that are coded together; the last group repeats the last channel to fill up.

If the model has a scale, float32 numbers [segments of the packet, rows] follow the codes: decoded audio of a segment
is multiplied by its scale. A packet begins with a segment.

The end packet ends the file; a file without an end packet was truncated.
"""

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from codec.errors import ConfigError, DamagedFile, InputNotFound, UnsupportedAudio, UsageError
from codec.frames import FrameSpec, resampled_length

VERSION = 2  # the newest; files of mono models without a scale are written as version 1
MAX_CHANNELS = 1024  # as in libsndfile
MAX_RATE = 1 << 22  # Hz
MAX_CODES = 1 << 20  # per packet, because unpacking needs 64 bytes per code

_MAGIC = b"\x89CDC\r\n\x1a\n"
_START = struct.Struct("<8sHH")
_FIELDS = struct.Struct("<32sQQ6I2HB")
_EXTRA = struct.Struct("<HI")
_PACKET = struct.Struct("<4sIII")
_CRC = struct.Struct("<I")
_DATA, _END = b"PCKT", b"DONE"
_BOUNDS = {
    "time": (0, (1 << 64) - 1),
    "frames": (0, (1 << 64) - 1),
    "source_rate": (1, MAX_RATE),
    "sample_rate": (1, MAX_RATE),
    "hop": (1, 1 << 20),
    "decoder_delay": (0, 1 << 20),
    "codebook_size": (2, 1 << 24),
    "frames_per_packet": (1, MAX_CODES),
    "channels": (1, MAX_CHANNELS),
    "num_codebooks": (1, 1024),
    "model_channels": (1, MAX_CHANNELS),
    "segment_frames": (0, MAX_CODES),
}

Codes = npt.NDArray[np.int64]
Scale = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of a .codec file; `time` and `frames` are 0 until the Writer is closed.

    `time` counts samples of the source at `source_rate` Hz, `hop` and `decoder_delay` samples at `sample_rate` Hz;
    `weights_hash` is 64 hexadecimal digits. `model_channels` channels are coded together, and `segment_frames` frames
    share a scale (0: no scale). Raises ConfigError for values that the format cannot hold.
    """

    model: str
    weights_hash: str
    source_rate: int
    channels: int
    sample_rate: int
    hop: int
    decoder_delay: int
    num_codebooks: int
    codebook_size: int
    frames_per_packet: int
    time: int = 0
    frames: int = 0
    model_channels: int = 1
    segment_frames: int = 0

    def __post_init__(self) -> None:
        for name, (least, most) in _BOUNDS.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise ConfigError(f"{name} is {value}: a .codec file holds {least} to {most}")
        if (codes := self.rows * self.num_codebooks * self.frames_per_packet) > MAX_CODES:
            raise ConfigError(f"{codes} codes in a packet: the limit is {MAX_CODES}, use fewer frames per packet")
        if self.segment_frames and self.frames_per_packet % self.segment_frames:
            raise ConfigError(
                f"{self.frames_per_packet} frames per packet: use a multiple of the {self.segment_frames} of a segment"
            )
        if len(self.model.encode()) > 255 or not self.model.isprintable():
            raise ConfigError(f"{self.model!r} cannot name a model: use at most 255 bytes of printable text")
        if len(self.weights_hash) != 64 or not set(self.weights_hash) <= set("0123456789abcdef"):
            raise ConfigError(f"{self.weights_hash!r} is not a weights hash: it must be 64 hexadecimal digits")

    @property
    def rows(self) -> int:
        """Number of signals that are coded: the channels, or groups of `model_channels` channels."""
        return -(-self.channels // self.model_channels)

    @property
    def frame_spec(self) -> FrameSpec:
        """The frame spec of the model, with the number of codebooks in this file."""
        return FrameSpec(
            sample_rate=self.sample_rate,
            hop=self.hop,
            decoder_delay=self.decoder_delay,
            num_codebooks=self.num_codebooks,
            codebook_size=self.codebook_size,
        )

    @property
    def seconds(self) -> float:
        """Duration of the source."""
        return self.time / self.source_rate

    @property
    def model_time(self) -> int:
        """Samples per channel at the model's sample rate."""
        return resampled_length(self.time, self.source_rate, self.sample_rate)

    def _to_bytes(self) -> bytes:
        name = self.model.encode()
        fields = _FIELDS.pack(
            bytes.fromhex(self.weights_hash),
            self.time,
            self.frames,
            self.source_rate,
            self.sample_rate,
            self.hop,
            self.decoder_delay,
            self.codebook_size,
            self.frames_per_packet,
            self.channels,
            self.num_codebooks,
            len(name),
        )
        version, extra = 1, b""
        if (self.model_channels, self.segment_frames) != (1, 0):
            version, extra = 2, _EXTRA.pack(self.model_channels, self.segment_frames)
        return _sealed(_START.pack(_MAGIC, version, len(fields + name + extra)) + fields + name + extra)

    @classmethod
    def _from_fields(cls, fields: bytes, version: int) -> "Header":
        """Parse the bytes between the length and the checksum. Raises ValueError, ConfigError."""
        model_channels, segment_frames = 1, 0
        if version == 2 and len(fields) >= _EXTRA.size:
            model_channels, segment_frames = _EXTRA.unpack(fields[-_EXTRA.size :])
            fields = fields[: -_EXTRA.size]
        if len(fields) < _FIELDS.size or len(fields) != _FIELDS.size + fields[_FIELDS.size - 1]:
            raise ValueError(f"{len(fields)} bytes of fields do not fit the length of the name")
        (
            weights,
            time,
            frames,
            source_rate,
            sample_rate,
            hop,
            decoder_delay,
            size,
            per_packet,
            channels,
            num_codebooks,
            _,
        ) = _FIELDS.unpack_from(fields)
        return cls(
            model=fields[_FIELDS.size :].decode(),
            weights_hash=weights.hex(),
            source_rate=source_rate,
            channels=channels,
            sample_rate=sample_rate,
            hop=hop,
            decoder_delay=decoder_delay,
            num_codebooks=num_codebooks,
            codebook_size=size,
            frames_per_packet=per_packet,
            time=time,
            frames=frames,
            model_channels=model_channels,
            segment_frames=segment_frames,
        )


class Writer:
    """Write codes to a seekable binary file, which `close` completes."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self.header = replace(header, time=0, frames=0)
        self._file = file
        self._start = file.tell()
        self._packets = 0
        self._pending: Codes = np.empty((header.rows, header.num_codebooks, 0), np.int64)
        self._pending_scale: Scale = np.empty((header.rows, 0), np.float32)
        file.write(self.header._to_bytes())

    def write(self, codes: Codes, scale: Scale | None = None) -> None:
        """Append codes [rows, codebooks, frames], and their scale [rows, frames] if the model has one.

        Raises UsageError for codes or a scale of another shape, or codes outside 0 to `codebook_size` - 1.
        """
        if codes.ndim != 3 or codes.shape[:2] != self._pending.shape[:2]:
            raise UsageError(f"codes are {codes.shape}: this file takes {(*self._pending.shape[:2], 'frames')}")
        if codes.size and not 0 <= codes.min() <= codes.max() < self.header.codebook_size:
            most = self.header.codebook_size - 1
            raise UsageError(f"codes lie between {codes.min()} and {codes.max()}: this file takes 0 to {most}")
        if self.header.segment_frames:
            if scale is None or scale.shape != (len(codes), codes.shape[2]):
                raise UsageError(f"these codes need a scale {(len(codes), codes.shape[2])}")
            self._pending_scale = np.concatenate([self._pending_scale, scale.astype(np.float32)], axis=1)
        pending = np.concatenate([self._pending, codes], axis=2)
        while pending.shape[2] >= self.header.frames_per_packet:
            self._write_packet(_DATA, pending[:, :, : self.header.frames_per_packet])
            pending = pending[:, :, self.header.frames_per_packet :]
        self._pending = pending.copy()  # a view would keep all of `codes` alive

    def close(self, *, time: int) -> None:
        """Write the last codes, the end packet and the final header; `time` counts samples of the source."""
        if self._pending.shape[2]:
            self._write_packet(_DATA, self._pending)
        self._write_packet(_END, self._pending[:, :, :0])
        end = self._file.tell()
        self._file.seek(self._start)
        self.header = replace(self.header, time=time)
        self._file.write(self.header._to_bytes())
        self._file.seek(end)

    def _write_packet(self, marker: bytes, codes: Codes) -> None:
        frames = codes.shape[2]
        payload = _pack(codes, self.header.frame_spec.bits_per_code)
        if self.header.segment_frames:
            segments = self._pending_scale[:, : frames : self.header.segment_frames]  # [rows, segments]
            payload += segments.T.astype("<f4").tobytes()
            self._pending_scale = self._pending_scale[:, frames:]
        self._file.write(_sealed(_PACKET.pack(marker, self._packets, frames, len(payload)) + payload))
        self._packets += 1
        self.header = replace(self.header, frames=self.header.frames + frames)


class Reader:
    """Read a buffered binary file, seekable or not; `label` names it in errors, `offset` counts the bytes read.

    Raises DamagedFile for a header that is truncated, altered or impossible, UnsupportedAudio for another file format
    or a newer version.
    """

    def __init__(self, file: BinaryIO, *, label: str) -> None:
        self.label = label
        self.offset = 0
        self._file = file
        self._frames_read = 0
        self.header = self._read_header()

    def packets(self) -> Iterator[Codes]:
        """Yield the codes [rows, codebooks, frames] packet by packet, once. Raises as `packets_with_scale`."""
        return (codes for codes, _ in self.packets_with_scale())

    def packets_with_scale(self) -> Iterator[tuple[Codes, Scale | None]]:
        """Yield codes and their scale [rows, frames], None for a model without a scale.

        Raises DamagedFile at the first damage, after all packets before it.
        """
        header = self.header
        bits = header.frame_spec.bits_per_code
        number = 0
        while True:
            frames = min(header.frames_per_packet, header.frames - self._frames_read)
            count = header.rows * header.num_codebooks * frames
            codes_size = _bytes_for(count * bits)
            segments = -(-frames // header.segment_frames) if header.segment_frames else 0
            size = codes_size + 4 * segments * header.rows
            start = self.offset
            # The header determines the size of each packet; lengths in packets are compared, not trusted.
            packet = self._take(_PACKET.size + size + _CRC.size)
            if not _is_sealed(packet):
                raise self._damaged(start, f"the checksum of packet {number} does not match")
            if packet[: _PACKET.size] != _PACKET.pack(_DATA if frames else _END, number, frames, size):
                raise self._damaged(start, f"another packet was found in place of packet {number}")
            if not frames:
                break
            payload = packet[_PACKET.size : -_CRC.size]
            flat = _unpack(payload[:codes_size], bits, count)
            if flat.max() >= header.codebook_size:
                raise self._damaged(start, f"packet {number} has codes beyond the codebook size {header.codebook_size}")
            scale = None
            if header.segment_frames:
                values = np.frombuffer(payload[codes_size:], "<f4").reshape(segments, header.rows)
                if not np.isfinite(values).all():
                    raise self._damaged(start, f"packet {number} has a scale that is not finite")
                scale = values.T.repeat(header.segment_frames, axis=1)[:, :frames].astype(np.float32)
            self._frames_read += frames
            number += 1
            ordered = flat.reshape(frames, header.rows, header.num_codebooks)
            yield ordered.transpose(1, 2, 0), scale
        if self._file.read(1):
            raise self._damaged(self.offset, "more bytes follow the end packet")

    def _read_header(self) -> Header:
        magic = self._take(len(_MAGIC))
        if magic != _MAGIC:
            if magic[:4] == _MAGIC[:4] or magic[4:] == _MAGIC[4:]:
                raise self._damaged(0, "its first bytes are altered, perhaps by a copy in text mode")
            raise UnsupportedAudio(f"{self.label} is not a .codec file: give a file written by `codec encode`")
        rest = self._take(_START.size - len(_MAGIC))
        _, version, length = _START.unpack(magic + rest)
        fields = self._take(length + _CRC.size)
        if not _is_sealed(magic + rest + fields):
            raise self._damaged(0, "the checksum of the header does not match")
        if not 1 <= version <= VERSION:
            raise UnsupportedAudio(
                f"{self.label} has version {version} of the .codec format, this program reads up to {VERSION}: "
                "upgrade codec"
            )
        try:
            header = Header._from_fields(fields[: -_CRC.size], version)
        except (ConfigError, ValueError) as error:
            raise self._damaged(_START.size, f"impossible header, {error}") from error
        if header.frame_spec.time(header.frames) < header.model_time:
            raise self._damaged(
                _START.size, f"{header.frames} frames do not hold the {header.time} samples that the header states"
            )
        return header

    def _take(self, size: int) -> bytes:
        data = self._file.read(size)
        self.offset += len(data)
        if len(data) < size:
            raise self._damaged(self.offset, "the file is truncated")
        return data

    def _damaged(self, offset: int, reason: str) -> DamagedFile:
        seconds = None
        if self._frames_read:
            spec = self.header.frame_spec
            seconds = min(spec.seconds(spec.time(self._frames_read)), self.header.seconds)
        return DamagedFile(self.label, offset=offset, reason=reason, seconds_decoded=seconds or None)


@contextmanager
def open_reader(path: str | Path | bytes) -> Iterator[Reader]:
    """Open a .codec file, its content as bytes, or standard input for "-". Raises InputNotFound, and as Reader."""
    if isinstance(path, bytes):
        yield Reader(io.BytesIO(path), label="the data")
        return
    if str(path) == "-":
        yield Reader(sys.stdin.buffer, label="standard input")
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(path).open("rb"))
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            reason = getattr(error, "strerror", error)
            raise InputNotFound(f"{path} cannot be read ({reason}): check the name and its permissions") from error
        yield Reader(file, label=str(path))


def _sealed(data: bytes) -> bytes:
    return data + _CRC.pack(zlib.crc32(data))


def _is_sealed(data: bytes) -> bool:
    return data == _sealed(data[: -_CRC.size])


def _bytes_for(bits: int) -> int:
    return -(-bits // 8)


def _pack(codes: Codes, bits: int) -> bytes:
    flat = codes.transpose(2, 0, 1).ravel().astype(">u4")  # frame by frame, channel by channel, codebook by codebook
    return np.packbits(np.unpackbits(flat.view(np.uint8).reshape(-1, 4), axis=1)[:, 32 - bits :]).tobytes()


def _unpack(payload: bytes, bits: int, count: int) -> Codes:
    words = np.zeros((count, 32), np.uint8)
    words[:, 32 - bits :] = np.unpackbits(np.frombuffer(payload, np.uint8), count=count * bits).reshape(count, bits)
    return np.packbits(words, axis=1).view(">u4").ravel().astype(np.int64)
