"""Ogg files that libsndfile does not write."""

import struct


def in_ogg(data: bytes, serial: int) -> bytes:
    """RFC 9639, section 10.1, without checksums of pages: STREAMINFO, then everything behind it."""
    packets = [b"\x7fFLAC\1\0\0\1" + data[:42], *(data[at : at + 9000] for at in range(42, len(data), 9000))]
    return b"".join(
        struct.pack("<4sBBqIIIB", b"OggS", 0, 0 if number else 2, 0, serial, number, 0, len(packet) // 255 + 1)
        + b"\xff" * (len(packet) // 255)
        + bytes([len(packet) % 255])
        + packet
        for number, packet in enumerate(packets)
    )
