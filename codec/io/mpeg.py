"""MPEG audio (MP1, MP2, MP3) with the length that its frames add up to.

An MPEG stream states no length. The first frame of an MP3 may hold one instead of sound: the Xing or Info frame, whose
LAME part also says how many samples the encoder added at both ends. libsndfile guesses where that frame is missing, and
believes it where it holds for the first of several joined files; it stops there in both cases. `exact` shows libsndfile
the same frames after an Info frame that is right:

    joined.mp3     tag | Info: 40 frames | 40 frames | tag | Info: 60 frames | 60 frames
    exact          Info: 100 frames | 40 frames | 60 frames

Headers of frames: ISO/IEC 11172-3, section 2.4.1.3; 13818-3 for the lower sampling rates. The Xing and LAME parts have
no standard: http://gabriel.mp3-tech.org/mp3infotag.html.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from codec.io.pieces import Pieces

_KBPS = {  # by (MPEG-1, layer): bit rates of the indices 1 to 14, in kbit/s
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by version bits
KBPS = {  # bit rates of MP3 by sample rate, in kbit/s; libsndfile's LAME has those up to 64 at MPEG-2.5's rates
    rate: tuple(kbps for kbps in _KBPS[version == 3, 3] if version or kbps <= 64)
    for version, rates in _RATES.items()
    for rate in rates
}
_FIXED = bytes((0xFF, 0xFE, 0x0C))  # bits of the first three header bytes that no frame of a stream changes
_INFO_BYTES = 156  # mark, flags, frames, bytes, table of contents, quality: 120; LAME part: 36
_CHUNK = 2**20
_RUN = 4  # frames that follow each other


class Frame(NamedTuple):
    """The fields of a frame header (four bytes)."""

    size: int
    """Bytes, header included."""
    samples: int
    """Samples per channel."""
    layer: int
    info_at: int
    """Offset of the mark of a Xing or Info frame: after header, checksum and side information."""


class Frames(NamedTuple):
    """All frames of a file: runs of bytes (first, end) without a gap, and what they add up to."""

    runs: list[tuple[int, int]]
    number: int
    header: bytes
    delay: int
    """Encoder delay in samples, from the first LAME part."""
    padding: int
    """Encoder padding in samples, from the last LAME part."""
    other: bytes = b""
    """A header of frames of another kind that are in the file, too; empty if there are none."""

    @property
    def time(self) -> int:
        """Samples per channel of all frames, including the encoder's delay and padding."""
        frame = _frame(self.header)
        assert frame is not None
        return self.number * frame.samples


def is_mpeg(container: str) -> bool:
    """Whether libsndfile's name of a format is that of MPEG audio."""
    return container == "MP3"  # layers I and II too


def begins(file: BinaryIO) -> bool:
    """Whether the file begins with MPEG audio, after any ID3 tags."""
    file.seek(after_tags(file))
    return _frame(file.read(4)) is not None


def has_exact_length(file: BinaryIO) -> bool:
    """Whether the first frame is a Xing or Info frame that fits the size of the file."""
    size = file.seek(0, os.SEEK_END)
    first = after_tags(file)
    file.seek(first)
    data = file.read(4096)
    frame = _frame(data[:4])
    if frame is None or frame.layer != 3:
        return False
    fields = data[frame.info_at : frame.info_at + 16]
    if fields[:4] not in (b"Xing", b"Info") or len(fields) < 16:
        return False
    flags, stated = (int.from_bytes(fields[at : at + 4], "big") for at in (4, 12))
    more = size - first - stated
    if flags & 3 != 3 or abs(more) > max(stated // 200, 256):
        return False
    return more <= 128 or not _has_frames(
        file, first + stated, size
    )  # a tag at the end has 128 bytes, others have more


def without_length(file: BinaryIO) -> Frames | None:
    """All frames of MPEG audio whose length is a guess, or holds for a part of it; None where it is stated or there are
    none."""
    if has_exact_length(file):
        return None
    status = os.fstat(file.fileno())
    return _known_frames(_Known((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns), file))


@dataclass(frozen=True)
class _Known:
    """The identity of a file, as a key of the cache."""

    identity: tuple[int, ...]
    file: BinaryIO = field(compare=False)


@lru_cache(maxsize=256)  # because a training run opens the same files many times
def _known_frames(known: _Known) -> Frames | None:
    return find_frames(known.file)


def find_frames(file: BinaryIO) -> Frames | None:
    """Find all frames of a file, with any bytes between them; None if there are none. Reads the whole file.

    A frame counts where another one of the same kind, or the end of the file, or a tag, follows it; those of another
    kind than the first one are not among them.
    """
    size = file.seek(0, os.SEEK_END)
    view = _View(file)
    runs: list[tuple[int, int]] = []
    count, header, delay, padding, other = 0, b"", 0, 0, b""
    position, expected = after_tags(file), -1  # expected: where the next frame begins, if it follows the last one
    while position + 4 <= size:
        mark = view.read(position, 4)
        frame = _frame(mark)
        if frame is None or (header and not _alike(mark, header)):
            other = other or (mark if frame and _is_run(view, position) else b"")
            position = _next_mark(view, position + 1, size)
            continue
        end = position + frame.size
        if end > size or not (position == expected or end == size or _begins(view.read(end, 4), mark)):
            position = _next_mark(view, position + 1, size)
            continue
        lame = _lame_part(view.read(position, frame.size), frame)
        if lame is not None:
            delay, padding = (delay if count else lame[0]), lame[1]
        else:
            header, count = header or mark, count + 1
            if runs and runs[-1][1] == position:
                runs[-1] = (runs[-1][0], end)
            else:
                runs.append((position, end))
        position = expected = end
    return Frames(runs, count, header, delay, padding, other) if count else None


def exact(file: BinaryIO, frames: Frames) -> Pieces:
    """All frames of a file as a stream that libsndfile reads to its end.

    Those of layers I and II have no Info frame: libsndfile guesses their length from the first frame, which is right
    if the bit rate is constant.
    """
    return Pieces(file, _info_frame(frames), frames.runs)


@lru_cache(maxsize=1024)
def _frame(mark: bytes) -> Frame | None:
    """Read a header; None if it is not one, or states no bit rate (free format)."""
    if len(mark) < 4 or mark[0] != 0xFF or mark[1] & 0xE0 != 0xE0:
        return None
    version, layer = mark[1] >> 3 & 3, 4 - (mark[1] >> 1 & 3)
    kbps, rate = mark[2] >> 4, mark[2] >> 2 & 3
    if version == 1 or layer == 4 or kbps in (0, 15) or rate == 3:
        return None
    mpeg1, padding, mono = version == 3, mark[2] >> 1 & 1, mark[3] >> 6 == 3
    bits, hertz = 1000 * _KBPS[mpeg1, layer][kbps - 1], _RATES[version][rate]
    samples = 384 if layer == 1 else 1152 if layer == 2 or mpeg1 else 576
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    side = (17 if mono else 32) if mpeg1 else (9 if mono else 17)
    return Frame(size, samples, layer, 4 + (0 if mark[1] & 1 else 2) + side)


def _alike(mark: bytes, other: bytes) -> bool:
    """Whether two headers agree in version, layer, sampling rate and the number of channels."""
    same = all(a & fixed == b & fixed for a, b, fixed in zip(mark[:3], other[:3], _FIXED, strict=True))
    return same and (mark[3] >> 6 == 3) == (other[3] >> 6 == 3)


def describe(header: bytes) -> str:
    """What a frame header says of the sound: rate, channels and layer."""
    frame = _frame(header)
    assert frame is not None
    rate = _RATES[header[1] >> 3 & 3][header[2] >> 2 & 3]
    return f"{rate} Hz, {1 if header[3] >> 6 == 3 else 2} ch, layer {frame.layer}"


def _is_run(view: _View, position: int) -> bool:
    """Whether some frames of one kind follow each other from `position` on, which random bytes do not."""
    mark = view.read(position, 4)
    for _ in range(_RUN):
        following = view.read(position, 4)
        frame = _frame(following)
        if frame is None or not _alike(following, mark):
            return False
        position += frame.size
    return True


def _has_frames(file: BinaryIO, first: int, size: int) -> bool:
    """Whether there are frames of sound from byte `first` on."""
    view = _View(file)
    position = _next_mark(view, first, size)
    while position < size and not _is_run(view, position):
        position = _next_mark(view, position + 1, size)
    return position < size


def _begins(following: bytes, mark: bytes) -> bool:
    """Whether these bytes begin another frame of the kind, or a tag."""
    if following[:3] in (b"TAG", b"ID3", b"APE", b"LYR"):
        return True
    return _frame(following) is not None and _alike(following, mark)


def _lame_part(data: bytes, frame: Frame) -> tuple[int, int] | None:
    """(delay, padding) in samples of a Xing or Info frame, zeros where it does not say; None for a frame of sound."""
    fields = data[frame.info_at :]
    if frame.layer != 3 or fields[:4] not in (b"Xing", b"Info"):
        return None
    flags = int.from_bytes(fields[4:8], "big")
    at = 8 + sum(length for bit, length in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
    lame = fields[at : at + 36]
    if len(lame) < 24 or not lame[:4].isalpha():
        return 0, 0
    delays = int.from_bytes(lame[21:24], "big")
    return delays >> 12, delays & 0xFFF


def _info_frame(frames: Frames) -> bytes:
    """An Info frame for these frames; empty for layers 1 and 2, which have none."""
    kind = _frame(frames.header)
    assert kind is not None
    if kind.layer != 3:
        return b""
    headers = (
        bytes((0xFF, frames.header[1] | 1, kbps << 4 | frames.header[2] & 0x0C, frames.header[3]))
        for kbps in range(1, 15)
    )
    header, frame = next(  # the smallest frame that holds it
        (header, frame) for header in headers if (frame := _frame(header)) and frame.size >= frame.info_at + _INFO_BYTES
    )
    size = frame.size + sum(end - begin for begin, end in frames.runs)
    contents = bytes(min(255, 256 * part // 100) for part in range(100))
    fields = struct.pack(">4sIII100sI", b"Info", 0xF, frames.number, min(size, 2**32 - 1), contents, 0)
    delays = frames.delay << 12 | frames.padding
    lame = b"LAME3.100" + bytes(12) + delays.to_bytes(3, "big") + bytes(12) if delays else b""
    return (header + bytes(frame.info_at - 4) + fields + lame).ljust(frame.size, b"\0")


def after_tags(file: BinaryIO) -> int:
    """The byte after the ID3v2 tags at the beginning."""
    position = 0
    while True:
        file.seek(position)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return position
        length = 0
        for byte in head[6:]:
            length = length << 7 | byte & 0x7F
        position += 10 + length + (10 if head[5] & 0x10 else 0)


def _next_mark(view: _View, position: int, size: int) -> int:
    """The next byte from `position` on that may begin a frame."""
    while position < size:
        found = view.data(position).find(b"\xff")
        if found >= 0:
            return position + found
        position += len(view.data(position))
    return size


class _View:
    """Bytes of a file by position, read in large pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._first, self._data = file, 0, b""

    def read(self, position: int, length: int) -> bytes:
        offset = position - self._first
        if offset < 0 or offset + length > len(self._data):
            self._file.seek(position)
            self._first, self._data, offset = position, self._file.read(_CHUNK), 0
        return self._data[offset : offset + length]

    def data(self, position: int) -> bytes:
        self.read(position, 1)
        return self._data[position - self._first :]
