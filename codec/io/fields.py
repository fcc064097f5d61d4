"""Numbers in LEB128 and bytes of stated length: how the .codec header and packets are made.

300 = 0b10_0101100 -> 1_0101100 0_0000010 -> AC 02
"""


def varint(number: int) -> bytes:
    """A number from 0 to 2**64 - 1 in LEB128."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def sized(content: bytes) -> bytes:
    """The length of the content, then the content."""
    return varint(len(content)) + content


class Fields:
    """Read fields one after another; each method raises ValueError where the data ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that were not read."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > self.left:
            raise ValueError(f"a field of {size} bytes in the last {self.left} bytes")
        self._at += size
        return self._data[self._at - size : self._at]

    def varint(self) -> int:
        """The next number; at most 64 bits."""
        data, at = self._data, self._at  # not by `take`, because most fields are numbers of one byte
        number = shift = 0
        while at < len(data):
            byte = data[at]
            number |= (byte & 0x7F) << shift
            at += 1
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        else:
            raise ValueError("a number behind the end of the data")
        if number >> 64:
            raise ValueError("a number of more than 64 bits")
        self._at = at
        return number

    def content(self) -> bytes:
        """The next bytes of stated length."""
        return self.take(self.varint())

    def text(self) -> str:
        """The next text of stated length."""
        return self.content().decode()

    def rest(self) -> bytes:
        """All bytes that were not read."""
        return self.take(self.left)
