"""WAV, W64, CAF and AU files without final sizes in the header, because their writer was killed or wrote to a pipe.

Such a header states 0 bytes of samples, and libsndfile believes it; CAF files state -1, which libsndfile refuses.
`finished` shows libsndfile the same file with the sizes that it has, and W64, NIST, AVR, 8SVX, VOC, WVE, MAT 5, XI and
MPC 2000 files without what is after the samples, which libsndfile takes for more of them.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

from codec.io.pieces import Pieces
from codec.io.scan import find_all

_HEADER_BYTES = 2**20  # maximum size of a header
_FORMS = ((b"RIFF", b"WAVE"), (b"RIFX", b"WAVE"), *((b"FORM", kind) for kind in (b"AIFF", b"AIFC", b"8SVX", b"16SV")))
_W64_RIFF = b"riff" + bytes.fromhex("2E91CF11A5D628DB04C10000")
_W64_WAVE, _W64_DATA = (name + bytes.fromhex("F3ACD3118CD100C04F8EDB8A") for name in (b"wave", b"data"))
_W64_HEAD = 24  # bytes of a chunk before its content: name and size, which counts them
_NIST_HEAD = re.compile(rb"NIST_1A\n\s*(\d{1,7})\n")
_NIST_FIELD = re.compile(rb"^(\w+) -(?:i|s\d+) (\d{1,18})\s*$", re.MULTILINE)
_LARGEST = 2**32 - 2**16  # bytes of samples that a header can state
_MOST_KNOWN = 2**16
_SIGNATURE_BYTES = 12
_MAGICS = (  # of formats whose headers do not state where the next file begins, their first bytes
    b"2BIT",  # AVR
    *(b"\0\x01\xa3\x64", b"\0\x02\xa3\x64", b"\0\x03\xa3\x64"),  # IRCAM
    *(b"\x64\xa3\x01\0", b"\x64\xa3\x02\0", b"\x64\xa3\x03\0"),
    *(b"NIST_1A", b" paf", b"fap ", b"PVF1"),
    b"\xf0\x7e",  # SDS
    *(b"Creative Voi", b"ALawSoundFil", b"Extended Ins"),  # VOC, WVE, XI
)
_counted: dict[tuple[int, ...], int] = {}
"""Occurrences of the first bytes in files, by device, inode, size and time of change, because training opens the same
files many times."""


def finished(file: BinaryIO) -> Pieces | None:
    """The file with its sizes filled in; None if it is not WAV, W64, CAF or AU, or states how many samples it has.

    A W64, NIST, AVR, 8SVX, VOC, WVE, MAT 5, XI or MPC 2000 file that states it ends with its samples.

    If all bytes after the empty chunk of samples are chunks themselves, the file has no samples: None.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    form = file.read(12)
    match form[:4]:
        case b"caff":
            return _finished_caf(file, size)
        case b".snd" | b"dns.":
            return _finished_au(file, form, size)
        case b"riff":
            return _finished_w64(file, size)
        case b"RIFF" | b"RIFX" | b"RF64":
            return _finished_wav(file, form, size)
        case _:
            end = _stated_end(file, form, size)
            return None if end is None or end >= size else Pieces(file, b"", [(0, end)])


def _finished_wav(file: BinaryIO, form: bytes, size: int) -> Pieces | None:
    if form[8:] != b"WAVE":
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


def _finished_w64(file: BinaryIO, size: int) -> Pieces | None:
    """With the size that the samples have, if the stated one is that of an empty chunk or of no possible file.

    Without what is after the samples, which may be padding or other chunks.
    """
    file.seek(0)
    if file.read(16) != _W64_RIFF:
        return None
    position = 40
    while position + _W64_HEAD <= min(size, _HEADER_BYTES):
        file.seek(position)
        name, stated = struct.unpack("<16sQ", file.read(_W64_HEAD))
        first = position + _W64_HEAD
        if name == _W64_DATA:
            end = size
            if _W64_HEAD < stated < 2**63 - 1:
                end = position + stated
                if end >= size:
                    return None
            elif first >= size or _only_w64_chunks(file, first, size):
                return None
            file.seek(0)
            head = bytearray(file.read(first))
            head[16:24] = struct.pack("<Q", end)
            head[position + 16 :] = struct.pack("<Q", end - position)
            return Pieces(file, bytes(head), [(first, end)])
        position += max(_W64_HEAD, _aligned(stated))
    return None


def _stated_end(file: BinaryIO, form: bytes, size: int) -> int | None:
    """The position after the samples, by the header; None for files of formats that `finished` does not cut."""
    file.seek(0)
    head = file.read(42)
    if len(head) < 42:
        return None
    if found := _NIST_HEAD.match(head):
        first = min(int(found[1]), _HEADER_BYTES)
        file.seek(0)
        fields = dict(_NIST_FIELD.findall(file.read(first)))
        length = math.prod(int(fields.get(name, 0)) for name in (b"sample_count", b"channel_count", b"sample_n_bytes"))
        return first + length if length else None
    match form[:4], form[8:]:
        case b"2BIT", _:
            stereo, bits, frames = struct.unpack_from(">12xHH10xI", head)
            return 128 + frames * (2 if stereo else 1) * bits // 8 if frames else None
        case b"FORM", b"8SVX" | b"16SV":
            length = int.from_bytes(head[4:8], "big")
            return 8 + length if length else None
        case b"Crea", _:
            return _end_of_voc(file, int.from_bytes(head[20:22], "little"), size)
        case b"ALaw", _:
            length = int.from_bytes(head[18:22], "big")
            return 32 + length if length else None
        case b"MATL", _:
            return _end_of_mat5(file)
        case b"Exte", _:  # an XI file with one sample; libsndfile writes no length
            file.seek(296)
            samples, length = struct.unpack("<HI", file.read(6).ljust(6, b"\0"))
            return 338 + length if samples == 1 and length else None
    if head[:2] == b"\1\4" and head[21] < 2:  # MPC 2000, 42 bytes of header
        frames = int.from_bytes(head[30:34], "little")
        return 42 + frames * 2 * (1 + head[21]) if frames else None
    return None


def _end_of_mat5(file: BinaryIO) -> int | None:
    """The end of the second matrix of a MAT 5 file, which holds the samples; its stated size is too large."""
    file.seek(0)
    head = file.read(512)
    order = "<" if head[126:128] == b"IM" else ">"
    elements = struct.Struct(order + "II")
    try:
        position = 136 + elements.unpack_from(head, 128)[1]  # of the second matrix
        position += 8 + 32  # its head, and with theirs: flags, dimensions
        position += 8 + -(-elements.unpack_from(head, position)[1] // 8) * 8  # name
        length: int = elements.unpack_from(head, position)[1]
    except struct.error:
        return None
    return int(position) + 8 + length


def _end_of_voc(file: BinaryIO, position: int, size: int) -> int | None:
    """The end of the last block of a VOC file, with its terminator; None if it is beyond the end of the file."""
    while position < size:
        file.seek(position)
        kind, *length = file.read(4).ljust(4, b"\0")
        if kind == 0:
            return position + 1
        position += 4 + int.from_bytes(bytes(length), "little")
    return None


def _only_w64_chunks(file: BinaryIO, position: int, size: int) -> bool:
    """Whether the bytes from `position` to the end are whole chunks whose names begin with printable letters."""
    while position + _W64_HEAD <= size:
        file.seek(position)
        head = file.read(_W64_HEAD)
        length = int.from_bytes(head[16:], "little")
        if not is_chunk_name(head[:4]) or length < _W64_HEAD:
            return False
        position += _aligned(length)
    return position == size


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
    """The number of files that are concatenated in this one, of all formats but Ogg, FLAC and MPEG; 0 for others.

    A recording of unknown length goes to the end of the file.
    """
    file.seek(0)
    start = file.read(_SIGNATURE_BYTES)
    if start.startswith(_MAGICS):
        return _occurrences(file, start)
    size, position, count = file.seek(0, os.SEEK_END), 0, 0
    while position + 12 <= size and (end := _end(file, position, size)) is not None:
        count += 1
        position = end
    return count


def _occurrences(file: BinaryIO, signature: bytes) -> int:
    """How often the first bytes of a file occur in it."""
    status = os.fstat(file.fileno())
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    if (count := _counted.get(identity)) is None:
        if len(_counted) >= _MOST_KNOWN:
            _counted.clear()
        count = _counted[identity] = sum(1 for _ in find_all(file, signature))
    return count


def _end(file: BinaryIO, position: int, size: int) -> int | None:
    """Where a recording ends that begins at this position; None if none begins there."""
    file.seek(position)
    head = file.read(40)
    if (head[:4], head[8:12]) in _FORMS:
        length = int.from_bytes(head[4:8], "little" if head[:4] == b"RIFF" else "big")
        return position + 8 + length + length % 2
    if head[:4] == b"RF64" and head[8:16] == b"WAVEds64":
        return position + 8 + int.from_bytes(head[20:28], "little")
    if head[:16] == _W64_RIFF and head[24:40] == _W64_WAVE:
        length = int.from_bytes(head[16:24], "little")
        if not len(head) < length < size:
            return size
        file.seek(position + length)  # libsndfile does not pad the last chunk
        return position + (length if file.read(len(_W64_RIFF)) == _W64_RIFF else _aligned(length))
    if head[:4] == b"caff":
        return _end_of_caf(file, position, size)
    if head[:4] in (b".snd", b"dns."):
        first, stated = struct.unpack_from(">II" if head[:4] == b".snd" else "<II", head, 4)
        return position + int(first) + int(stated) if 0 < stated < 2**32 - 1 else size
    return None


def _end_of_caf(file: BinaryIO, position: int, size: int) -> int:
    position += 8
    while position + 12 <= size:
        file.seek(position)
        name, length = struct.unpack(">4sq", file.read(12))
        if name == b"caff":
            return position
        if length < 0 or not is_chunk_name(name):
            break
        position += 12 + int(length)
    return size


def _aligned(length: int) -> int:
    """A length in whole words of 8 bytes, as chunks of W64 files have."""
    return -(-length // 8) * 8


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
