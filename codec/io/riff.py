"""WAV, CAF and AU files without final sizes in the header, because their writer was killed or wrote to a pipe.

Such a header states 0 bytes of samples, and libsndfile believes it; CAF files state -1, which libsndfile refuses.
`finished` shows libsndfile the same file with the sizes that it has.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO

from codec.io.pieces import Pieces

_HEADER_BYTES = 2**20  # maximum size of a header
_FORMS = ((b"RIFF", b"WAVE"), (b"FORM", b"AIFF"), (b"FORM", b"AIFC"))
_LARGEST = 2**32 - 2**16  # bytes of samples that a header can state


def finished(file: BinaryIO) -> Pieces | None:
    """The file with its sizes filled in; None if it is not WAV, CAF or AU, or states how many samples it has.

    If all bytes behind the empty chunk of samples are chunks themselves, the file has no samples: None.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    form = file.read(12)
    match form[:4]:
        case b"caff":
            return _finished_caf(file, size)
        case b".snd" | b"dns.":
            return _finished_au(file, form, size)
        case _:
            return _finished_wav(file, form, size)


def _finished_wav(file: BinaryIO, form: bytes, size: int) -> Pieces | None:
    if form[:4] not in (b"RIFF", b"RIFX", b"RF64") or form[8:] != b"WAVE":
        return None
    order = ">" if form[:4] == b"RIFX" else "<"
    chunks = {name: (position, length) for name, position, length in _chunks(file, 12, size, order)}
    if b"data" not in chunks:
        return None
    position, stated = chunks[b"data"]
    sizes = chunks.get(b"ds64")
    if stated == 2**32 - 1 and sizes and form[:4] == b"RF64":  # the 64-bit sizes count
        file.seek(sizes[0] + 16)
        stated = int.from_bytes(file.read(8), "little")
    first = position + 8
    if stated or size <= first or first > _HEADER_BYTES or _only_chunks(file, first, size, order):
        return None
    length = min(size - first, _LARGEST)
    file.seek(0)
    patched = bytearray(file.read(first))
    patched[:8] = (form[:4] if order == ">" else b"RIFF") + struct.pack(order + "I", first + length - 8)
    patched[position + 4 :] = struct.pack(order + "I", length)
    if sizes:
        patched[sizes[0] : sizes[0] + 4] = b"JUNK"
    return Pieces(file, bytes(patched), [(first, first + length)])


def _finished_caf(file: BinaryIO, size: int) -> Pieces | None:
    """With the size that the samples have, if the stated one is -1, 0 or beyond the end of the file."""
    position = 8
    while position + 12 <= min(size, _HEADER_BYTES):
        file.seek(position)
        name, stated = struct.unpack(">4sq", file.read(12))
        first = position + 12
        if name == b"data":
            true = size - first
            if 4 < stated <= true or true <= 4 or (stated >= 0 and _only_caf_chunks(file, first + stated, size)):
                return None
            file.seek(0)
            head = file.read(position + 4) + struct.pack(">q", true)
            return Pieces(file, head, [(first, size)])
        position = first + max(0, stated)
    return None


def _only_caf_chunks(file: BinaryIO, position: int, size: int) -> bool:
    """Whether the bytes from `position` to the end are whole chunks with printable names."""
    while position < size:
        file.seek(position)
        head = file.read(12)
        if len(head) < 12 or not is_chunk_name(head[:4]):
            return False
        position += 12 + max(0, struct.unpack_from(">q", head, 4)[0])
    return position == size


def _finished_au(file: BinaryIO, form: bytes, size: int) -> Pieces | None:
    """With an unknown size, which libsndfile reads up to the end, if the stated one is 0."""
    order = ">" if form[:4] == b".snd" else "<"
    first, stated = struct.unpack_from(order + "II", form, 4)
    if stated or not 24 <= first < min(size, _HEADER_BYTES):
        return None
    file.seek(0)
    head = bytearray(file.read(first))
    head[8:12] = b"\xff" * 4
    return Pieces(file, bytes(head), [(first, size)])


def joined(file: BinaryIO) -> int:
    """The number of WAV or AIFF files that are concatenated in this file; 0 if it is neither."""
    size, position, count = file.seek(0, os.SEEK_END), 0, 0
    while position + 12 <= size:
        file.seek(position)
        head = file.read(12)
        if (head[:4], head[8:]) not in _FORMS:
            break
        count += 1
        length = int.from_bytes(head[4:8], "big" if head[:4] == b"FORM" else "little")
        position += 8 + length + length % 2
    return count


def _chunks(file: BinaryIO, position: int, size: int, order: str) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and stated size of every chunk from `position` up to the samples."""
    name = b""
    while position + 8 <= size and name != b"data":
        file.seek(position)
        name, length = struct.unpack(order + "4sI", file.read(8))
        yield name, position, length
        position += 8 + length + length % 2


def is_chunk_name(data: bytes) -> bool:
    """Whether bytes are printable ASCII, as the names of chunks; true without any."""
    return all(32 <= byte < 127 for byte in data)


def _only_chunks(file: BinaryIO, position: int, size: int, order: str) -> bool:
    """Whether the bytes from `position` to the end are whole chunks with printable names."""
    while position < size:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or not is_chunk_name(head[:4]):
            return False
        length = struct.unpack_from(order + "I", head, 4)[0]
        position += 8 + length + length % 2
    return position <= size + 1  # some writers leave out the last padding byte
