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
from collections import deque
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
    coder, layered, varying = kind % 32, kind & 32 > 0, kind & 64 > 0
    first, frames, codebooks = body.number(), body.number(), body.number()
    rows, segment = range(header["rows"]), header["segment_frames"]
    packet: dict[str, Any] = {"first": first, "frames": frames}
    if segment:
        packet["scale"] = [[struct.unpack("<f", body.take(4))[0] for _ in rows] for _ in range(-(-frames // segment))]
    payload, sizes = body.data[body.at :], header["codebook_sizes"][:codebooks]
    if coder > 2 or (coder == 2 and (network is None or network.digest != header["network"])):
        sys.exit(f"codes by coder {coder}, network {header.get('network')}: give its file NAME.entropy.safetensors")
    reader = (
        Packed(payload, sizes, frames * len(rows) if varying else 0)
        if coder == 0
        else Adaptive(payload, sizes, frames, len(rows), network if coder == 2 else None, varying, layered)
    )
    # frames that have fewer codebooks than the packet end with -1
    read = [[(reader.frame(row) + [-1] * codebooks)[:codebooks] for row in rows] for _ in range(frames)]
    packet["codes"] = [[[frame[row][codebook] for frame in read] for codebook in range(codebooks)] for row in rows]
    return packet


class Packed:
    """Coder 0."""

    def __init__(self, payload: bytes, sizes: list[int], counted: int) -> None:
        """`counted` is the number of frames of all rows that state their number of codebooks."""
        self.bits, self.left = int.from_bytes(payload, "big"), 8 * len(payload)
        self.widths = [(size - 1).bit_length() for size in sizes]
        self.counts = deque(self.code((len(sizes) - 1).bit_length()) + 1 for _ in range(counted))
        self.left -= self.left % 8

    def frame(self, row: int) -> list[int]:
        return [self.code(width) for width in self.widths[: self.counts.popleft() if self.counts else None]]

    def code(self, width: int) -> int:
        self.left -= width
        return self.bits >> self.left & (1 << width) - 1


class RangeDecoder:
    """Values by their frequencies. `offset` is how far the bytes lie above the encoder's `low`."""

    def __init__(self, payload: bytes) -> None:
        self.payload = Bytes(payload + bytes(6))  # zeros after the last byte
        self.offset, self.width = int.from_bytes(self.payload.take(6), "big"), 1 << 48

    def target(self, total: int) -> int:
        return self.offset // (self.width // total)

    def move(self, start: int, count: int, total: int) -> None:
        unit = self.width // total
        self.offset, self.width = self.offset - start * unit, count * unit
        while self.width < 1 << 40:
            self.offset, self.width = self.offset << 8 | self.payload.take(1)[0], self.width << 8

    def place(self, frequencies: list[int]) -> int:
        ends = list(accumulate(frequencies))
        target = self.target(ends[-1])
        place = next(place for place, end in enumerate(ends) if target < end)
        self.move(ends[place] - frequencies[place], frequencies[place], ends[-1])
        return place

    def uniform(self, size: int) -> int:
        number = self.target(size)
        self.move(number, 1, size)
        return number


class Adaptive:
    """Coders 1 and 2."""

    def __init__(
        self,
        payload: bytes,
        sizes: list[int],
        frames: int,
        rows: int,
        network: "Network | None",
        varying: bool,
        layered: bool,
    ) -> None:
        self.sizes, self.varying, left = sizes, varying, Bytes(payload)
        ends = [*(end for end in (4, 6, 12) if layered and end < len(sizes)), len(sizes)]
        parts = [*(left.sized() for _ in ends[1:]), payload[left.at :]]
        self.coders = [RangeDecoder(part) for part in parts]  # of the layers
        self.layers = [sum(codebook >= end for end in ends) for codebook in range(len(sizes))]
        self.answers: dict[tuple[Any, ...], list[int]] = {}  # counts of [no, yes], which all rows share
        self.before: list[list[int] | None] = [None] * rows
        self.repeated = [[False] * len(sizes) for _ in range(rows)]
        self.follow: list[list[dict[int | None, int]]] = [[{} for _ in sizes] for _ in range(rows)]
        self.recent: list[list[dict[int, int]]] = [[{} for _ in sizes] for _ in range(rows)]
        self.predictors = [Predictor(network, len(sizes), ends) for _ in range(rows)] if network else None
        self.counts = deque(self.read_counts(frames, rows) if varying else [])

    def frame(self, row: int) -> list[int]:
        """The codes of a row in the next frame."""
        above = self.before[row - 1] if row else None  # this frame's already
        before = self.before[row]
        same_row = same_frame = None
        codes: list[int] = []
        count = self.counts.popleft() if self.varying else len(self.sizes)
        self.repeated[row][count:] = [False] * (len(self.sizes) - count)
        for codebook in range(count):
            lower = codes[-1] if codebook else before[0] if before else None
            follow, recent, higher = self.follow[row][codebook], self.recent[row][codebook], codebook > 0
            candidates = [
                (above[codebook] if above and codebook < len(above) else None, ("row", higher, same_row)),
                (
                    before[codebook] if before and codebook < len(before) else None,
                    ("repeat", higher, same_frame, self.repeated[row][codebook]),
                ),
                (follow.get(lower), ("follow", higher)),
            ]
            code = self.code(row, codebook, candidates, recent)
            codes.append(code)
            follow[lower] = code
            recent[code] = recent.get(code, 0) + 1
            if len(recent) > 64:
                del recent[next(iter(recent))]
            same_row = above is not None and above[codebook : codebook + 1] == [code]
            same_frame = self.repeated[row][codebook] = before is not None and before[codebook : codebook + 1] == [code]
        self.before[row] = codes
        if self.predictors:
            self.predictors[row].end_frame()
        return codes

    def read_counts(self, frames: int, rows: int) -> list[int]:
        """The numbers of codebooks, frame by frame and, within a frame, row by row."""
        times = dict.fromkeys(range(1, len(self.sizes) + 1), 1)
        found: list[int] = []
        for _ in range(frames * rows):
            before = found[-rows] if len(found) >= rows else None
            if before is None or not self.ask(0, ("count",)):
                others = [number for number in times if number != before]
                before = others[self.coders[0].place([times[number] for number in others])]
                times[before] += 1
            found.append(before)
        return found

    def code(self, row: int, codebook: int, candidates: list[Any], recent: dict[int, int]) -> int:
        refused: list[int] = []
        coder, code = self.coders[self.layers[codebook]], self.candidate(codebook, candidates, recent, refused)
        if self.predictors is None:
            return coder.uniform(self.sizes[codebook]) if code is None else code
        if code is None:
            frequencies = self.predictors[row].frequencies(codebook)
            code = coder.place([0 if n in refused else count for n, count in enumerate(frequencies)])
        self.predictors[row].push(codebook, code)
        return code

    def candidate(self, codebook: int, candidates: list[Any], recent: dict[int, int], refused: list[int]) -> int | None:
        """The code by the first yes; without one, `refused` has the codes that it is not."""
        for candidate, question in candidates:
            if candidate is not None and candidate not in refused:
                if self.ask(codebook, question):
                    return int(candidate)
                refused.append(candidate)
        left = [code for code in recent if code not in refused]
        if left and self.ask(codebook, ("recent", codebook > 0)):
            return left[self.coders[self.layers[codebook]].place([recent[code] for code in left])]
        refused += left
        return None

    def ask(self, codebook: int, question: tuple[Any, ...]) -> int:
        layer = self.layers[codebook]
        counts = self.answers.setdefault((layer, question), [1, 1])
        answer = self.coders[layer].place(counts)
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
        self.tensors: dict[str, list[Any]] = {}
        for name, entry in sorted(entries.items()):
            raw, shape = data[slice(*entry["data_offsets"])], entry["shape"]
            kind, dtype = {"I8": ("b", "int8"), "I32": ("i", "int32")}[entry["dtype"]]
            hashed.update(json.dumps([name, dtype, shape]).encode() + raw)
            numbers = [number for (number,) in struct.iter_unpack(f"<{kind}", raw)]
            rows = [numbers[at : at + shape[-1]] for at in range(0, len(numbers), shape[-1])]
            self.tensors[name] = rows if len(shape) == 2 else numbers
        self.digest = hashed.hexdigest()[:8]

    def layer(self, weight: str, bias: str, shift: int, x: list[int]) -> list[int]:
        sums = (sum(map(mul, row, x)) for row in self.tensors[weight])
        return [shifted(total + more, shift) for total, more in zip(sums, self.tensors[bias], strict=True)]

    def rest(self, vectors: list[list[int]], first: int) -> list[int]:
        sums = [0] * len(self.tensors["input.1"][0] if "input.1" in self.tensors else self.tensors["input.0"][0])
        for gain, vector in list(zip(self.tensors["gain"], vectors, strict=False))[first:]:
            sums = [total + gain * number for total, number in zip(sums, vector, strict=True)]
        return [limited(shifted(total, 5)) for total in sums]


class Predictor:
    """The network and what it knows of one row of a packet."""

    def __init__(self, network: Network, codebooks: int, ends: list[int]) -> None:
        self.network, self.ends = network, ends
        self.zeros = zeros = [[0] * len(network.tensors[f"input.{codebook}"][0]) for codebook in range(codebooks)]
        self.first = deque([zeros[0]] * 8, maxlen=8)  # vectors of codebook 0 in the frames before, the newest first
        self.past = [zeros[:1]] * 2  # vectors of the two frames before, the newest first
        self.before, self.vectors = zeros, list[list[int]]()  # of the frame before, and of this frame so far

    def push(self, codebook: int, code: int) -> None:
        self.vectors.append(self.network.tensors[f"input.{codebook}"][code])

    def end_frame(self) -> None:
        self.first.appendleft(self.vectors[0])
        self.past = [self.vectors, self.past[0]]
        self.before, self.vectors = self.vectors + self.zeros[len(self.vectors) :], []

    def frequencies(self, codebook: int) -> list[int]:
        network, frames = self.network, list(self.first)
        end = next(end for end in self.ends if codebook < end)  # of the layer
        rests = [network.rest(vectors[:end], 1) for vectors in self.past]
        older = [limited(shifted(sum(numbers), 2)) for numbers in zip(*frames[3:], strict=True)]
        parts = [*frames[:3], older, *rests, map(abs, rests[0]), self.before[codebook]]
        if codebook >= 1:
            parts.append(self.vectors[0])
        if codebook >= 2:
            parts += [self.vectors[1], map(abs, self.vectors[1]), network.rest(self.vectors, 2)]
        context = [number for part in parts for number in part]
        shifts, table = network.tensors["shift"][codebook], network.tensors["exp"]
        prediction = network.layer(f"weight.{codebook}", f"bias.{codebook}", shifts[0], context)
        logits = network.layer(
            f"output.{codebook}", f"output_bias.{codebook}", shifts[1], [limited(number) for number in prediction]
        )
        most = max(logits)
        return [table[min(most - logit, len(table) - 1)] for logit in logits]


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
