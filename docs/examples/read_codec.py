"""Read a .codec file of version 2 with the standard library alone, and print its header and codes as JSON.

    python docs/examples/read_codec.py recording.codec [NAME.entropy.safetensors]

The second file is the network of payload coder 2. It was written from docs/file-format.md. It stops at the first
damage.
"""

import hashlib
import json
import struct
import sys
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
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
    header |= {"rows": header["channels"], "sample_format": "PCM_16"}
    while fields.at < size:
        tag, content = fields.number(), Bytes(fields.sized())
        if tag == 1:
            header["sample_format"] = content.data.decode()
        if tag == 2:
            header["source"] = {"size": content.number(), "checksum": content.take(8).hex()}
        if tag == 3:
            header["network"] = content.data.hex()
        if tag == 4:
            header["rows"] = content.number()
            mix = struct.iter_unpack(f"<{header['rows']}f", content.data[content.at :])
            header["mix"] = [list(row) for row in mix]
    header["rows"] = -(-header["rows"] // header["model_channels"])
    return header


def read_codes(kind: int, body: Bytes, header: dict[str, Any], network: "Network | None") -> dict[str, Any]:
    coder, has_ends, varying = kind % 32, kind & 32 > 0, kind & 64 > 0
    first, frames, codebooks = body.number(), body.number(), body.number()
    rows, segment, sizes = header["rows"], header["segment_frames"], header["codebook_sizes"][:codebooks]
    if rows * frames * codebooks > 1 << 20:
        sys.exit("codes that no encoder writes")
    packet: dict[str, Any] = {"first": first, "frames": frames}
    if segment:
        count = -(-frames // segment)
        packet["scale"] = [list(struct.unpack(f"<{rows}f", body.take(4 * rows))) for _ in range(count)]
    if coder == 0:
        packet["codes"] = read_packed(body, sizes, rows, frames, varying)
    elif coder == 1:
        packet["codes"] = Adaptive(body, sizes, rows, has_ends, varying).read(frames)
    elif coder == 2 and network and network.digest == header["network"]:
        packet["codes"] = Model(body, sizes, rows, has_ends, varying, network).read(frames)
    else:
        sys.exit(f"codes by coder {coder}, network {header.get('network')}: give its file NAME.entropy.safetensors")
    return packet


Codes = list[list[list[int]]]  # [rows][codebooks][frames], -1 where a frame has fewer codebooks than the packet


def read_packed(body: Bytes, sizes: list[int], rows: int, frames: int, varying: bool) -> Codes:
    """Coder 0."""
    left = 8 * (len(body.data) - body.at)
    bits = int.from_bytes(body.data[body.at :], "big")

    def number(size: int) -> int:
        nonlocal left
        width = (size - 1).bit_length()
        left -= width
        return bits >> left & (1 << width) - 1

    counts = [number(len(sizes)) + 1 if varying else len(sizes) for _ in range(frames * rows)]
    left -= left % 8
    read = [[number(size) for size in sizes[:count]] + [-1] * (len(sizes) - count) for count in counts]
    return [[list(series) for series in zip(*read[row::rows], strict=True)] for row in range(rows)]


class RangeDecoder:
    """Values by their frequencies. `offset` is how far the bytes lie above the encoder's `low`."""

    def __init__(self, payload: bytes) -> None:
        self.size, self.payload = len(payload), Bytes(payload + bytes(6))  # zeros after the last byte
        self.offset, self.width = int.from_bytes(self.payload.take(6), "big"), 1 << 48

    def target(self, total: int) -> int:
        target = self.offset // (self.width // total)
        if target >= total:
            sys.exit("codes that no encoder writes")
        return target

    def move(self, start: int, count: int, total: int) -> None:
        unit = self.width // total
        self.offset, self.width = self.offset - start * unit, count * unit
        while self.width < 1 << 40:
            self.offset, self.width = self.offset << 8 | self.payload.take(1)[0], self.width << 8

    def place(self, frequencies: Sequence[int]) -> int:
        ends = list(accumulate(frequencies))
        place = bisect_right(ends, self.target(ends[-1]))
        self.move(ends[place] - frequencies[place], frequencies[place], ends[-1])
        return place

    def uniform(self, size: int) -> int:
        number = self.target(size)
        self.move(number, 1, size)
        return number

    def check_end(self, is_cut: bool) -> None:
        """Stop if the codes took too many bytes, or left more than one, unless others were left out."""
        left = self.size - (self.payload.at - 6)
        if left < 0 or (left > 1 and not is_cut):
            sys.exit("codes that no encoder writes")


def read_ends(body: Bytes, numbers: int) -> list[int]:
    """Numbers in ones, each with a zero behind it, up to the end of a byte."""
    bits, found = "", list[int]()
    while len(found) < numbers:
        if "0" not in bits:
            bits += f"{body.take(1)[0]:08b}"
        else:
            found.append(bits.index("0"))
            bits = bits[found[-1] + 1 :]
    return found


PAST, NEXT = 8, 2  # frames before and after a packet, so that all frames of a context exist


class Adaptive:
    """Coder 1."""

    def __init__(self, body: Bytes, sizes: list[int], rows: int, has_ends: bool, varying: bool) -> None:
        # ends are for programs that leave out codebooks; the first number says how many were left out, if they vary
        ends = read_ends(body, len(sizes) - 1 + varying) if has_ends else []
        self.most = len(sizes) + (ends[0] if ends and varying else 0)  # codebooks of a frame, with those left out
        self.decoder, self.is_cut = RangeDecoder(body.data[body.at :]), has_ends
        self.sizes, self.rows, self.varying = sizes, rows, varying
        self.answers: dict[tuple[Any, ...], list[int]] = {}  # counts of [no, yes], which all rows share

    def read(self, frames: int) -> Codes:
        counts = self.read_counts(frames) if self.varying else [len(self.sizes)] * (frames * self.rows)
        # codes are -1 where there are none, such as in row -1, which is the one before row 0
        self.codes = [[[-1] * (PAST + frames + NEXT) for _ in self.sizes] for _ in range(self.rows + 1)]
        for codebook in range(len(self.sizes)):
            follows: list[dict[int, int]] = [{} for _ in range(self.rows)]
            recents: list[dict[int, int]] = [{} for _ in range(self.rows)]
            for place, count in enumerate(counts):
                if codebook >= count:
                    continue
                frame, row = PAST + place // self.rows, place % self.rows
                series, follow, recent = self.codes[row][codebook], follows[row], recents[row]
                lower = self.codes[row][codebook - 1][frame] if codebook else series[frame - 1]
                code = self.code(row, codebook, frame, follow.get(lower, -1), recent)
                series[frame] = follow[lower] = code
                recent[code] = recent.get(code, 0) + 1
                if len(recent) > 64:
                    del recent[next(iter(recent))]
        self.decoder.check_end(self.is_cut)
        return [[series[PAST:-NEXT] for series in row] for row in self.codes[:-1]]

    def read_counts(self, frames: int) -> list[int]:
        """The numbers of codebooks, frame by frame and, within a frame, row by row."""
        times = dict.fromkeys(range(1, self.most + 1), 1)
        found: list[int] = []
        for place in range(frames * self.rows):
            number = found[place - self.rows] if place >= self.rows else None
            if number is None or not self.ask("count"):
                others = [other for other in times if other != number]
                number = others[self.decoder.place([times[other] for other in others])]
                times[number] += 1
            found.append(number)
        return found

    def code(self, row: int, codebook: int, frame: int, follow: int, recent: dict[int, int]) -> int:
        """The next code; `follow` is a candidate or -1."""
        own, above, higher = self.codes[row], self.codes[row - 1], codebook > 0
        lower, before, second = own[codebook - 1], own[codebook][frame - 1], own[codebook][frame - 2]
        candidates = [
            (above[codebook][frame], ("row", higher, higher and lower[frame] == above[codebook - 1][frame])),
            (before, ("repeat", higher, higher and lower[frame] == lower[frame - 1], before == second)),
            (follow, ("follow", higher)),
        ]
        refused = [-1]
        for candidate, question in candidates:
            if candidate not in refused:
                if self.ask(*question):
                    return candidate
                refused.append(candidate)
        left = [code for code in recent if code not in refused]
        if left and self.ask("recent", higher):
            return left[self.decoder.place([recent[code] for code in left])]
        return self.decoder.uniform(self.sizes[codebook])

    def ask(self, *question: Any, start: tuple[int, int] = (1, 1)) -> int:
        counts = self.answers.setdefault(question, list(start))
        answer = self.decoder.place(counts)
        counts[answer] += 2
        if sum(counts) > 255:
            counts[:] = [(count + 1) // 2 for count in counts]
        return answer


class Network:
    """The tensors of a network: a list of rows, or of numbers for tensors of one dimension."""

    def __init__(self, file: bytes) -> None:
        size = struct.unpack("<Q", file[:8])[0]
        entries, data = json.loads(file[8 : 8 + size]), file[8 + size :]
        entries.pop("__metadata__")
        hashed = hashlib.sha256()
        self.tensors: dict[str, Any] = {}
        for name, entry in sorted(entries.items()):
            raw, shape = data[slice(*entry["data_offsets"])], entry["shape"]
            kind, dtype = {"I8": ("b", "int8"), "I32": ("i", "int32")}[entry["dtype"]]
            hashed.update(json.dumps([name, dtype, shape]).encode() + raw)
            rows = list(struct.iter_unpack(f"<{shape[-1]}{kind}", raw))
            self.tensors[name] = rows if len(shape) == 2 else rows[0]
        self.digest = hashed.hexdigest()[:8]
        self.columns: dict[str, list[int]] = {}

    def vector(self, codebook: int, code: int) -> Sequence[int]:
        vectors: list[Sequence[int]] = self.tensors[f"input.{codebook}"]
        return vectors[code] if code >= 0 else [0] * len(vectors[0])

    def layer(self, name: str, codebook: int, x: Sequence[int]) -> list[int]:
        """Multiply a matrix by x. One int has a column of it, in 32 bits for each number, so that few products do."""
        weight, bias = f"{name}.{codebook}", self.tensors[f"{name}_bias.{codebook}"]
        if weight not in self.columns:
            columns = [*zip(*self.tensors[weight], strict=True), [number + BEYOND for number in bias]]
            self.columns[weight] = [sum(n << 32 * place for place, n in enumerate(column)) for column in columns]
        sums = sum(map(mul, self.columns[weight], [*x, 1])).to_bytes(4 * len(bias), "little")
        shift = self.tensors["shift"][codebook][("hidden", "weight", "output").index(name)]
        return [shifted(number - BEYOND, shift) for number in struct.unpack(f"<{len(bias)}I", sums)]

    def frequencies(self, codebook: int, context: Sequence[int]) -> list[int]:
        hidden = [max(0, limited(number)) for number in self.layer("hidden", codebook, context)]
        prediction = [limited(number) for number in self.layer("weight", codebook, hidden)]
        logits, table = self.layer("output", codebook, prediction), self.tensors["exp"]
        most = max(logits)
        return [table[min(most - logit, len(table) - 1)] for logit in logits]


class Model(Adaptive):
    """Coder 2."""

    def __init__(
        self, body: Bytes, sizes: list[int], rows: int, has_ends: bool, varying: bool, network: Network
    ) -> None:
        super().__init__(body, sizes, rows, has_ends, varying)
        self.network = network

    def code(self, row: int, codebook: int, frame: int, follow: int, recent: dict[int, int]) -> int:
        own, above = self.codes[row], self.codes[row - 1]
        series = own[codebook]
        before = series[frame - 1]
        is_run = before == series[frame - 2] == series[frame - 3]
        lower_row, lower_before = above[codebook - 1][frame], own[codebook - 1][frame - 1]
        refused = []
        for kind, candidate, lower in (
            ("row", above[codebook][frame], lower_row),
            ("repeat", before if is_run else -1, lower_before),
        ):
            if candidate >= 0 and candidate not in refused:
                same = own[codebook - 1][frame] == lower if codebook else None
                if self.ask(codebook, kind, same, start={None: (1, 1), True: (1, 8), False: (8, 1)}[same]):
                    return candidate
                refused.append(candidate)
        frequencies = self.network.frequencies(codebook, self.context(row, codebook, frame))
        gains = self.network.tensors["gains"][codebook]
        steps = Counter(series[max(0, frame - 64) : frame])
        for code, times in steps.items():
            steps[code] = gains[min(times, 3) - 1]
        steps[before] += 0 if is_run else gains[3 if before != series[frame - 2] else 4]
        steps[follow] += gains[5]
        for code, number in steps.items():
            if code >= 0:
                frequencies[code] = frequencies[code] * self.network.tensors["grow"][number] >> 8
        for candidate in refused:
            frequencies[candidate] = 0
        return self.decoder.place(frequencies)

    def context(self, row: int, codebook: int, frame: int) -> list[int]:
        def vectors(lower: int, *offsets: int) -> list[Sequence[int]]:
            return [self.network.vector(lower, self.codes[row][lower][frame + offset]) for offset in offsets]

        def rest(offset: int, first: int = 1) -> list[int]:
            numbers = zip(*(vectors(lower, offset)[0] for lower in range(1, codebook)), strict=True)
            gains = [gain if lower >= first else 0 for lower, gain in enumerate(self.network.tensors["gain"])][1:]
            return [limited(shifted(sum(map(mul, each, gains)), 5)) for each in numbers]

        if codebook == 0:
            older = zip(*vectors(0, -4, -5, -6, -7, -8), strict=True)
            parts = [*vectors(0, -1, -2, -3), [limited(shifted(sum(each), 2)) for each in older]]
        else:
            parts = vectors(0, -2, -1, 0, 1, 2)
        if codebook >= 2:
            rests, (second,) = [rest(offset) for offset in (-2, -1, 1, 2)], vectors(1, 0)
            parts += [*rests, list(map(abs, rests[1])), list(map(abs, rests[2]))]
            parts += [second, list(map(abs, second)), rest(0, 2)]
        if codebook in (1, 2):
            parts += vectors(codebook, -1, -2)
        return [number for part in parts for number in part]


BEYOND = 1 << 31  # the magnitude of no sum


def shifted(number: int, shift: int) -> int:
    """floor(number / 2**shift + 1/2)."""
    return number + (1 << shift - 1) >> shift


def limited(number: int) -> int:
    return min(max(number, -127), 127)


def read(data: bytes, network: bytes | None = None) -> dict[str, Any]:
    file = Bytes(data)
    header = read_header(file)
    known = Network(network) if network else None
    packets = []
    while True:
        start = file.at
        if file.take(2) != b"\xf5\xc3":
            sys.exit(f"damaged at byte {start}")
        kind = file.take(1)[0]
        body = Bytes(file.sized())
        file.check(start)
        if kind < 128:
            packets.append(read_codes(kind, body, header, known))
        if kind == 255:
            header |= {"time": body.number(), "frames": body.number()}
            return {"header": header, "packets": packets}


if __name__ == "__main__":
    print(json.dumps(read(*(Path(name).read_bytes() for name in sys.argv[1:3]))))
