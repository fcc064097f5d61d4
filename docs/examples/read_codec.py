"""Read a .codec file of version 2 with the standard library alone, and print its header and codes as JSON.

    python docs/examples/read_codec.py recording.codec

It was written from docs/file-format.md. It stops at the first damage, and reads payload coder 0 alone.
"""

import json
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

FIELDS = (
    "source_rate", "channels", "time", "sample_rate", "hop", "decoder_delay", "model_channels", "segment_frames",
    "frames_per_packet",
)  # fmt: skip


class Bytes:
    """Bytes with a position."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            sys.exit("truncated")
        return self.data[self.at - size : self.at]

    def number(self) -> int:
        """LEB128."""
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    def sized(self) -> bytes:
        return self.take(self.number())

    def check(self, start: int) -> None:
        """Compare the CRC-32 of everything since `start` with the next four bytes."""
        if zlib.crc32(self.data[start : self.at]) != struct.unpack("<I", self.take(4))[0]:
            sys.exit(f"damaged at byte {start}")


def read_header(file: Bytes) -> dict[str, Any]:
    if file.take(8) != b"\x89CDC\r\n\x1a\n":
        sys.exit("not a .codec file")
    version, size = struct.unpack("<HH", file.take(4))
    fields = Bytes(file.take(size))
    file.check(0)
    if version != 2:
        sys.exit(f"version {version}")
    header: dict[str, Any] = {"weights_hash": fields.take(32).hex()}
    header |= {name: fields.sized().decode() for name in ("family", "model")}
    header |= {name: fields.number() for name in FIELDS}
    header["codebook_sizes"] = []
    for _ in range(fields.number()):
        count, entries = fields.number(), fields.number()
        header["codebook_sizes"] += [entries] * count
    header["rows"] = header["channels"]
    while fields.at < size:
        tag, content = fields.number(), Bytes(fields.sized())
        if tag == 1:
            header["sample_format"] = content.data.decode()
        if tag == 2:
            header["source"] = {"size": content.number(), "checksum": content.take(8).hex()}
        if tag == 4:
            header["rows"] = content.number()
            mix = struct.iter_unpack(f"<{header['rows']}f", content.data[content.at :])
            header["mix"] = [list(row) for row in mix]
    header["rows"] = -(-header["rows"] // header["model_channels"])
    return header


def read_codes(body: Bytes, header: dict[str, Any]) -> dict[str, Any]:
    first, frames, codebooks, coder = body.number(), body.number(), body.number(), body.take(1)[0]
    if coder:
        sys.exit(f"codes by coder {coder}")
    rows, segment = range(header["rows"]), header["segment_frames"]
    packet: dict[str, Any] = {"first": first, "frames": frames}
    if segment:
        packet["scale"] = [[struct.unpack("<f", body.take(4))[0] for _ in rows] for _ in range(-(-frames // segment))]
    payload = body.data[body.at :]
    bits = int.from_bytes(payload, "big")
    left = 8 * len(payload)
    packet["codes"] = [[[0] * frames for _ in range(codebooks)] for _ in rows]
    for frame in range(frames):
        for row in rows:
            for codebook in range(codebooks):
                width = (header["codebook_sizes"][codebook] - 1).bit_length()
                left -= width
                packet["codes"][row][codebook][frame] = bits >> left & (1 << width) - 1
    return packet


def read(data: bytes) -> dict[str, Any]:
    file = Bytes(data)
    header = read_header(file)
    packets = []
    while True:
        start = file.at
        if file.take(2) != b"\xf5\xc3":
            sys.exit(f"damaged at byte {start}")
        kind = file.take(1)[0]
        body = Bytes(file.sized())
        file.check(start)
        if kind == 0:
            packets.append(read_codes(body, header))
        if kind == 255:
            header |= {"time": body.number(), "frames": body.number()}
            return {"header": header, "packets": packets}


if __name__ == "__main__":
    print(json.dumps(read(Path(sys.argv[1]).read_bytes())))
