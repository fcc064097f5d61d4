"""Version 1 of the .codec format, which is read forever and not written any more.

All numbers are little endian. The header, for a model name of n bytes:

    offset  bytes  field
         0      8  magic: 89 43 44 43 0D 0A 1A 0A
         8      2  version: 1
        10      2  length of the fields from byte 12 to the checksum: 77 + n
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
        89      n  name of the model, UTF-8
      89+n      4  CRC-32 of everything before it

Packets of `frames per packet` frames follow, the last one shorter, and an end packet of 0 frames:

    offset  bytes  field
         0      4  marker: "PCKT", or "DONE" for the end packet
         4      4  number of the packet, from 0
         8      4  frames
        12      4  length of the payload, p
        16      p  payload: the codes as by coder 0 of version 2
      16+p      4  CRC-32 of everything before it in this packet
"""

import re
import struct
from typing import Any

from codec.io.packets import CRC_BYTES, CodesPacket, EndPacket

_FIELDS = struct.Struct("<32sQQ6I2HB")
_PACKET = struct.Struct("<4sIII")
_DATA, _END = b"PCKT", b"DONE"


def header_fields(fields: bytes) -> dict[str, Any]:
    """Parse the bytes between length and checksum to the arguments of `bitstream.Header`. Raises ValueError."""
    if len(fields) < _FIELDS.size or len(fields) != _FIELDS.size + fields[_FIELDS.size - 1]:
        raise ValueError(f"{len(fields)} bytes of fields do not fit the length of the name")
    weights, time, frames, source_rate, sample_rate, hop, delay, size, per_packet, channels, num_codebooks, _ = (
        _FIELDS.unpack_from(fields)
    )
    return {
        "model": fields[_FIELDS.size :].decode(),
        "weights_hash": weights.hex(),
        "source_rate": source_rate,
        "channels": channels,
        "sample_rate": sample_rate,
        "hop": hop,
        "decoder_delay": delay,
        "codebook_sizes": (size,) * num_codebooks,
        "frames_per_packet": per_packet,
        "time": time,
        "frames": frames,
    }


class Format1:
    """The packets of version 1. The header determines all fields of a packet, so they are compared, not trusted."""

    marker = re.compile(_DATA + b"|" + _END)
    smallest = _PACKET.size + CRC_BYTES

    def __init__(
        self, *, time: int, frames: int, frames_per_packet: int, num_codebooks: int, bits_per_frame: int
    ) -> None:
        self._time, self._frames, self._per_packet = time, frames, frames_per_packet
        self._num_codebooks, self._bits_per_frame = num_codebooks, bits_per_frame

    def size(self, head: bytes) -> int | None:
        """Length of the packet, or None."""
        number = _PACKET.unpack_from(head)[1]
        expected = self._head(number)
        return self.smallest + expected[3] if _PACKET.pack(*expected) == head[: _PACKET.size] else None

    def content(self, packet: bytes, offset: int) -> CodesPacket | EndPacket | None:
        """Parse a packet."""
        marker, number, frames, _ = _PACKET.unpack_from(packet)
        if marker == _END:
            return EndPacket(self._time, self._frames, (), b"", offset, offset)
        payload = packet[_PACKET.size : -CRC_BYTES]
        return CodesPacket(number * self._per_packet, frames, self._num_codebooks, 0, payload, offset)

    def place(self, frame: int) -> tuple[int, int]:
        """First frame of the packet that holds a frame, and the bytes between the first packet and this packet."""
        number = min(frame, self._frames) // self._per_packet
        return number * self._per_packet, number * (self.smallest + self._head(0)[3])

    def _head(self, number: int) -> tuple[bytes, int, int, int]:
        frames = max(0, min(self._per_packet, self._frames - number * self._per_packet))
        return _DATA if frames else _END, number, frames, -(-frames * self._bits_per_frame // 8)
