"""Find the intact packets of a .codec file, whatever lies between them. A Format knows what they hold."""

import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

CRC_BYTES = 4
CHUNK = 1 << 16
SCAN_FACTOR = 16  # bytes of false packets whose checksums are computed, per byte of the file and one chunk


class CodesPacket(NamedTuple):
    """A packet of codes that is not unpacked yet."""

    first: int
    """Number of its first frame."""
    frames: int
    num_codebooks: int
    coder: int
    payload: bytes
    offset: int
    """Position of its first byte in the file."""
    varying: bool = False
    """Whether frames have different numbers of codebooks, `num_codebooks` at most."""
    has_ends: bool = False
    """Whether the payload begins with the ends of its codebooks."""


class EndPacket(NamedTuple):
    """What the end of a file says about the whole."""

    time: int
    """Samples per channel of the source."""
    frames: int
    places: tuple[tuple[int, int], ...]
    """The index: first frame and offset of some packets of codes, ascending."""
    header: bytes
    """A copy of the header's fields, or nothing."""
    offset: int
    """Position of its first byte in the file."""
    written_at: int
    """Its position when it was written; if it was moved, the offsets in `places` are wrong."""


class Broken(NamedTuple):
    """Bytes that are not an intact packet."""

    offset: int
    """Position of the first of them."""
    reason: str


class Format(Protocol):
    """How a version of the format lays out its packets."""

    marker: re.Pattern[bytes]
    """What packets begin with: 4 bytes at most."""
    smallest: int
    """Bytes of the shortest packet, which are enough to know the length of any packet."""

    def size(self, head: bytes) -> int | None:
        """Length of the packet that begins with the `smallest` bytes `head`; None if it is impossible."""

    def content(self, packet: bytes, offset: int) -> CodesPacket | EndPacket | None:
        """Parse a packet whose checksum matches; None for a kind to skip. Raises ValueError with the reason."""


class Window:
    """The bytes of a file from `offset` on, read only as far as they are needed, so that a live pipe is never late."""

    def __init__(self, file: BinaryIO) -> None:
        self.offset = 0
        self.seekable = file.seekable()
        self._file = file
        self._start = file.tell() if self.seekable else 0
        self._read = getattr(file, "read1", file.read)
        self._bytes = bytearray()

    def peek(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end of the file."""
        while len(self._bytes) < size and (chunk := self._read(CHUNK)):
            self._bytes += chunk
        return bytes(self._bytes[:size])

    def skip(self, size: int) -> None:
        """Move over bytes that were peeked."""
        del self._bytes[:size]
        self.offset += size

    def find(self, marker: re.Pattern[bytes]) -> bool:
        """Move to the next `marker` after this byte; to the end of the file if there is none."""
        self.skip(len(self.peek(1)))
        while (found := marker.search(self._bytes)) is None:
            self.skip(max(0, len(self._bytes) - 3))  # the end may be a part of a marker
            kept = len(self._bytes)
            if len(self.peek(kept + 1)) == kept:
                self.skip(kept)
                return False
        self.skip(found.start())
        return True

    def go_to(self, offset: int) -> None:
        """Move to a position of a seekable file, or to its end, because a damaged file may name any position."""
        offset = min(offset, self.size())
        self._file.seek(self._start + offset)
        self._bytes.clear()
        self.offset = offset

    def size(self) -> int:
        """Length of a seekable file in bytes."""
        position = self._file.tell()
        end = self._file.seek(0, io.SEEK_END)
        self._file.seek(position)
        return end - self._start


def sealed(data: bytes) -> bytes:
    """Data and its CRC-32, little endian."""
    return data + zlib.crc32(data).to_bytes(CRC_BYTES, "little")


def is_sealed(data: bytes) -> bool:
    """Whether data ends with the CRC-32 of everything before it."""
    return zlib.crc32(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") == data[-CRC_BYTES:]


def mended(data: bytes) -> tuple[int, bytes] | None:
    """Sealed data in which one byte was altered: its position, and the data as it was.

    A CRC is linear: that of the altered data differs by a number that only a change of one byte at one place makes, as
    long as the data is short. It is found by running the register of the CRC back from the end. None for data that is
    intact, and for more than one altered byte but in one of 2**32 / (256 * len(data)) cases.
    """
    end = len(data) - CRC_BYTES
    state = zlib.crc32(data[:end]) ^ int.from_bytes(data[end:], "little")
    found = [(end + place, state >> 8 * place) for place in range(CRC_BYTES) if state == state & 255 << 8 * place]
    for place in reversed(range(end)):
        if state in _DIFFERENCES:
            found.append((place, _DIFFERENCES[state]))
        byte = _BY_HIGHEST[state >> 24]
        state = (state ^ _CRC[byte]) << 8 & 0xFFFFFFFF | byte
    if len(found) != 1:
        return None
    ((place, difference),) = found
    return place, data[:place] + bytes([data[place] ^ difference]) + data[place + 1 :]


_CRC = [zlib.crc32(bytes([byte])) ^ zlib.crc32(b"\0") for byte in range(256)]
_DIFFERENCES = {state: byte for byte, state in enumerate(_CRC) if byte}
_BY_HIGHEST = {state >> 24: byte for byte, state in enumerate(_CRC)}


class Scanner:
    """Read packets one after another; after a broken one, continue with the next intact packet."""

    def __init__(self, window: Window, form: Format) -> None:
        self._window, self._format = window, form
        self._compared = 0  # bytes of false packets

    def packets(self) -> Iterator[CodesPacket | EndPacket | Broken]:
        """Yield what lies between the window's position and the end packet or the end of the file."""
        while self._window.peek(1):
            offset = self._window.offset
            found = self.read()
            if isinstance(found, str):
                self._resync()
                altered = found == TRUNCATED and self._window.peek(1)  # because an intact packet follows
                yield Broken(offset, "its length is altered" if altered else found)
            elif found is not None:
                yield found
            if isinstance(found, EndPacket):
                return

    def read(self) -> CodesPacket | EndPacket | str | None:
        """Move over the next packet and return its content, None for a kind to skip.

        Without an intact packet there, stay and return the reason.
        """
        packet = self.sealed_packet()
        if isinstance(packet, str):
            return packet
        try:
            content = self._format.content(packet, self._window.offset)
        except ValueError as error:
            return str(error)
        self._window.skip(len(packet))
        return content

    def sealed_packet(self) -> bytes | str:
        """The whole packet that begins at the window's position, which stays; or the reason why none does."""
        head = self._window.peek(self._format.smallest)
        if len(head) < self._format.smallest:
            return TRUNCATED
        size = self._format.size(head)
        if size is None:
            return "no packet begins here"
        packet = self._window.peek(size)
        if len(packet) < size:
            return TRUNCATED
        self._compared += size
        return packet if is_sealed(packet) else "the checksum does not match"

    def _resync(self) -> None:
        """Move to the next intact packet, or to the end of the file.

        Forged starts of long packets would make this quadratic, so the bytes that are compared are limited.
        """
        before = self._compared
        while self._window.find(self._format.marker):
            if self._compared - before > SCAN_FACTOR * (self._window.offset + CHUNK):
                while self._window.peek(1):
                    self._window.skip(len(self._window.peek(CHUNK)))
                return
            if isinstance(self.sealed_packet(), bytes):
                return


TRUNCATED = "the file is truncated"
