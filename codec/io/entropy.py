"""Payload coders: the codes of one packet ↔ bytes, with integers alone, so that every machine gets the same bytes.

    coder  name      what it codes
        0  none      every code in ceil(log2(size of its codebook)) bits
        1  adaptive  what repeats within the packet, by frequencies that are learned while coding
        2  model     the same, and all other codes by the frequencies of a network (`codec.io.entropy_model`)

A packet starts without history, because a damaged or skipped packet must not cost the packets that follow.

Coder 0 packs the codes in the order [frames, rows, codebooks], most significant bit first; zero bits fill the last
byte. Example: one row, two codebooks of 8, frames (5, 1) and (2, 7): 101 001 | 010 111 -> 10100101 0111_0000 -> A5 70.

Where frames of a row have different numbers of codebooks, codes are -1 after the last one, and coder 0 packs the
numbers less one, [frames, rows], before the codes.

Coder 1 codes in the same order. For each code it asks up to four questions, and stops at the first yes; without a
yes, the code follows among all codes of its codebook, each equally likely.

    row     is it the code of the row before, in this frame and codebook?
    repeat  is it the code of the frame before, in this row and codebook?
    follow  is it the code that followed here when the lower codebook had the code that it has now (codebook 0: when
            the frame before had the code that it had now)?
    recent  is it one of the last 64 different codes of this row and codebook? Then these are coded by their counts.

Where numbers of codebooks differ, those of all frames come first, so that they can be read alone: whether a frame of a
row has as many as the frame before, and without a yes, the number, by how often the others occurred so far.

A question without a candidate is left out, as is a candidate that was refused before. The counts of yes and no start at
1, grow by 2, and are halved (rounding up) when their sum exceeds 255. The questions "row" and "repeat" have counts of
their own for codebook 0, for the answer in the lower codebook, and for the answer in the frame before.

Coder 2 asks the same questions. A code without a yes follows by the frequencies that the network predicts; those of the
refused candidates and, if "recent" was refused, of the recent codes are 0.

In layers, codebooks 0 to 3, 4 and 5, 6 to 11, and the others have a range coder each, counts of yes and no of their
own, and what predicts them in the frame before is that of lower layers and their own. A layer can be left out with all
higher ones: the payload has the bytes of one after another, with their lengths.

The range coder (Martin 1979, with the carries of Schindler's coder) keeps `low` and `width` of an interval within
2**48, so that 53-bit numbers suffice:

    width //= total; low += start * width; width *= count     narrow to `count` of `total`, from `start`
    while width < 2**40: send the highest byte of low; shift low and width by a byte

At the end one byte is sent that makes every continuation fall into the interval, or none if zeros do.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from codec.errors import UsageError
from codec.io.entropy_model import EntropyModel, FramePredictor, Frequencies, PacketPredictor
from codec.io.fields import Fields, sized

Codes = npt.NDArray[np.int64]

NONE, ADAPTIVE, MODEL = 0, 1, 2
NAMES = ("none", "adaptive", "model")
Choice: TypeAlias = Literal["auto", "none", "adaptive", "model"]
"""The last coder that a writer tries, by name; "auto" tries all that the codec has."""
# codes of a packet that take time, by coders 1 and 2; a forged packet of more would decode for more than a second
MAX_MODELED, MAX_PREDICTED = 1 << 16, 1 << 14

LAYER_ENDS = 4, 6, 12  # codebooks
LEAST_LAYERED = 7  # codebooks of a packet in layers, because layers cost most in small packets (docs/lab-notes.md)

_UNKNOWN = -1  # a code that a decoder has not read, or a candidate that does not exist
_NO_ANSWER = 2  # for codebook 0, which has no lower codebook
_MOST = 255  # sum of the counts of a question
_RECENT = 64  # different codes
_TOP, _LEAST = 1 << 48, 1 << 40  # of the range coder
_WINDOW = 6  # bytes of an interval


def last_coder(choice: Choice) -> int:
    """The number of the last coder to try. Raises UsageError for another name."""
    if choice not in ("auto", *NAMES):
        raise UsageError(f"entropy is {choice!r}: it is one of auto, {', '.join(NAMES)}")
    return MODEL if choice == "auto" else NAMES.index(choice)


def encode(
    codes: Codes, sizes: Sequence[int], *, coder: int = MODEL, model: EntropyModel | None = None
) -> tuple[int, bytes]:
    """Code a packet [rows, codebooks, frames] by the coder that gives the fewest bytes, up to number `coder`.

    Codes are -1 after the last codebook of a frame that has fewer codebooks than others.
    `sizes` are those of the codebooks, `model` the network of the codec, without which coder 2 is left out. Returns the
    number of the coder and the payload.
    """
    return PacketEncoder(sizes, coder=coder, model=model).finish(codes)


class PacketEncoder:
    """Code packets as `encode`, one after another, each while its frames arrive, so that little is left at its end."""

    def __init__(
        self, sizes: Sequence[int], *, coder: int = MODEL, model: EntropyModel | None = None, layered: bool = False
    ) -> None:
        """Arguments as of `encode`; `sizes` may be those of further codebooks, too.

        With `layered`, coders 1 and 2 code packets of LEAST_LAYERED codebooks and more in layers.
        """
        self._sizes, self._layered = sizes, layered
        self._models = {ADAPTIVE: None, MODEL: model} if model else {ADAPTIVE: None}
        self._models = {number: network for number, network in self._models.items() if number <= coder}
        self._passes: dict[int, tuple[list[RangeEncoder], _Pass]] = {}
        self._frames = 0

    def in_layers(self, codes: Codes) -> bool:
        """Whether coders 1 and 2 code this packet in layers."""
        return self._layered and codes.shape[1] >= LEAST_LAYERED and not varies(codes)

    def advance(self, codes: Codes) -> None:
        """Code what is new in the packet, of which `codes` [rows, codebooks, frames] are all frames so far."""
        rows, num_codebooks, frames = codes.shape
        if varies(codes) or frames == self._frames:  # the numbers of codebooks of all frames come first
            return
        ends = layer_ends(num_codebooks, layered=self.in_layers(codes))
        if not self._passes:
            sizes = self._sizes[:num_codebooks]
            coders = {number: [RangeEncoder() for _ in ends] for number in self._models}
            self._passes = {number: (of_layers, _Pass(of_layers, sizes, rows)) for number, of_layers in coders.items()}
        listed = codes[:, :, self._frames :].transpose(2, 0, 1).tolist()
        for number, (_, passage) in self._passes.items():
            if codes.size <= _most(number):
                model = self._models[number]
                predictors = [PacketPredictor(model, row, self._frames, ends) for row in codes] if model else None
                passage.push(listed, predictors)
        self._frames = frames

    def finish(self, codes: Codes) -> tuple[int, bytes]:
        """The number of the coder and the payload of the packet, whose codes are all given again; the next may begin.

        If they are fewer than at the last `advance`, or their number of codebooks varies, they are coded again.
        """
        sizes = self._sizes[: codes.shape[1]]
        numbers = [number for number in self._models if codes.size <= _most(number)]
        if varies(codes):
            payloads = {NONE: pack_varying(codes, sizes)}
            payloads |= {number: encode_adaptive(codes, sizes, self._models[number]) for number in numbers}
        else:
            if self._frames > codes.shape[2]:
                self._passes, self._frames = {}, 0
            self.advance(codes)
            payloads = {NONE: pack(codes, sizes)}
            payloads |= {number: _joined(self._passes[number][0]) for number in numbers}
        self._passes, self._frames = {}, 0
        best = min(payloads, key=lambda number: len(payloads[number]))
        return best, payloads[best]


def _most(coder: int) -> int:
    """Codes of the largest packet that a coder takes."""
    return MAX_PREDICTED if coder == MODEL else MAX_MODELED


def varies(codes: Codes) -> bool:
    """Whether frames of a packet [rows, codebooks, frames] have different numbers of codebooks."""
    return bool((codes[:, -1] < 0).any())


def decode(
    coder: int,
    payload: bytes,
    sizes: Sequence[int],
    *,
    rows: int,
    frames: int,
    model: EntropyModel | None = None,
    varying: bool = False,
    layered: bool = False,
) -> Codes:
    """The inverse of `encode`: codes [rows, codebooks, frames]; `varying` is what `varies` says of them.

    Raises NotImplementedError for a coder of a newer release and for coder 2 without its network, ValueError for a
    payload that no encoder writes.
    """
    (codes,) = decode_pieces(
        coder,
        payload,
        sizes,
        rows=rows,
        frames=frames,
        lengths=[frames],
        model=model,
        varying=varying,
        layered=layered,
    )
    return codes


def decode_pieces(
    coder: int,
    payload: bytes,
    sizes: Sequence[int],
    *,
    rows: int,
    frames: int,
    lengths: Iterable[int],
    model: EntropyModel | None = None,
    varying: bool = False,
    layered: bool = False,
) -> Iterator[Codes]:
    """Yield what `decode` gives in pieces of these `lengths` in frames, each as soon as it is decoded.

    Raises as `decode`; of a payload that no encoder writes, some pieces may come before.
    """
    if coder > MODEL or (coder == MODEL and model is None):
        raise NotImplementedError(f"coder {coder}")
    if coder == NONE:
        codes = (unpack_varying if varying else unpack)(payload, sizes, rows=rows, frames=frames)
        first = 0
        for length in lengths:
            yield codes[:, :, first : first + length]
            first += length
        return
    yield from _decoded(
        payload,
        sizes,
        rows=rows,
        frames=frames,
        lengths=lengths,
        model=model if coder == MODEL else None,
        varying=varying,
        layered=layered,
    )


# coder 0


def bytes_for(sizes: Sequence[int], count: int) -> int:
    """Bytes that coder 0 needs for `count` codes of each of the codebooks."""
    return -(-count * sum(map(bits, sizes)) // 8)


def pack(codes: Codes, sizes: Sequence[int]) -> bytes:
    """Pack codes [rows, codebooks, frames] of codebooks with these sizes, as coder 0 does."""
    return np.packbits(_words(codes)[:, _used(sizes)]).tobytes()


def unpack(payload: bytes, sizes: Sequence[int], *, rows: int, frames: int) -> Codes:
    """The inverse of `pack`. Raises ValueError for a payload of another length or codes beyond their codebook."""
    if len(payload) != bytes_for(sizes, rows * frames):
        raise ValueError(f"{len(payload)} bytes of codes, not {bytes_for(sizes, rows * frames)}")
    used = _used(sizes)
    words = np.zeros((rows * frames, len(sizes), 32), np.uint8)
    words[:, used] = np.unpackbits(np.frombuffer(payload, np.uint8), count=rows * frames * used.sum()).reshape(
        rows * frames, -1
    )
    return _codes(words, sizes).reshape(frames, rows, len(sizes)).transpose(1, 2, 0)


def pack_varying(codes: Codes, sizes: Sequence[int]) -> bytes:
    """Pack codes [rows, codebooks, frames], -1 after the last codebook of a frame, as coder 0 does."""
    packed = np.packbits(_words(codes)[_present(codes)[..., None] & _used(sizes)])
    counts = (codes >= 0).sum(axis=1, keepdims=True)  # [rows, 1, frames]
    return pack(counts - 1, (len(sizes),)) + packed.tobytes()


def unpack_varying(payload: bytes, sizes: Sequence[int], *, rows: int, frames: int) -> Codes:
    """The inverse of `pack_varying`. Raises ValueError as `unpack`."""
    begin = bytes_for((len(sizes),), rows * frames)
    counts = unpack(payload[:begin], (len(sizes),), rows=rows, frames=frames) + 1
    present = (np.arange(len(sizes))[:, None] < counts).transpose(2, 0, 1).reshape(-1, len(sizes))
    used = present[..., None] & _used(sizes)
    count = int(used.sum())
    if len(payload) - begin != -(-count // 8):
        raise ValueError(f"{len(payload) - begin} bytes of codes, not {-(-count // 8)}")
    words = np.zeros(used.shape, np.uint8)
    words[used] = np.unpackbits(np.frombuffer(payload, np.uint8, offset=begin), count=count)
    codes = _codes(words, sizes)
    codes[~present] = _UNKNOWN
    return codes.reshape(frames, rows, len(sizes)).transpose(1, 2, 0)


def _present(codes: Codes) -> npt.NDArray[np.bool_]:
    """Which codes there are [frames * rows, codebooks]."""
    return (codes >= 0).transpose(2, 0, 1).reshape(-1, codes.shape[1])


def _words(codes: Codes) -> npt.NDArray[np.uint8]:
    """Codes [rows, codebooks, frames] as bits of big-endian words [frames * rows, codebooks, 32]."""
    flat = np.ascontiguousarray(codes.transpose(2, 0, 1), ">u4")  # [frames, rows, codebooks]
    return np.unpackbits(flat.view(np.uint8).reshape(-1, codes.shape[1], 4), axis=2)


def _codes(words: npt.NDArray[np.uint8], sizes: Sequence[int]) -> Codes:
    """Codes [frames * rows, codebooks] of the bits of words. Raises ValueError for codes beyond their codebook."""
    codes = np.packbits(words, axis=2).view(">u4").astype(np.int64)[..., 0]
    if (codes >= np.array(sizes)).any():
        raise ValueError("codes beyond the size of their codebook")
    return codes


def bits(size: int) -> int:
    """Bits of a code of a codebook with `size` entries in coder 0."""
    return (size - 1).bit_length()


def _used(sizes: Sequence[int]) -> npt.NDArray[np.bool_]:
    """The bits of big-endian words that codes of each size need [codebooks, 32]."""
    return np.arange(32) >= 32 - np.array([bits(size) for size in sizes])[:, None]


# coders 1 and 2


def encode_adaptive(
    codes: Codes, sizes: Sequence[int], model: EntropyModel | None = None, *, layered: bool = False
) -> bytes:
    """Code a packet [rows, codebooks, frames] by what repeats within it, and by the network if there is one."""
    coders = [RangeEncoder() for _ in layer_ends(len(sizes), layered=layered)]
    _pass_all(coders, codes, sizes, model)
    return _joined(coders)


def pass_codes(coder: "Coder", codes: Codes, sizes: Sequence[int], model: EntropyModel | None) -> None:
    """Pass a packet of known codes through any coder, as `encode_adaptive` through a RangeEncoder."""
    _pass_all([coder], codes, sizes, model)


def _pass_all(coders: "Sequence[Coder]", codes: Codes, sizes: Sequence[int], model: EntropyModel | None) -> None:
    ends = layer_ends(len(sizes), layered=len(coders) > 1)
    predictors = [PacketPredictor(model, row, ends=ends) for row in codes] if model else None
    listed = codes.transpose(2, 0, 1).tolist()
    counts = _pass_counts(coders[0], listed) if varies(codes) else None
    _Pass(coders, sizes, len(codes)).push(listed, predictors, counts)


def decode_adaptive(
    payload: bytes,
    sizes: Sequence[int],
    *,
    rows: int,
    frames: int,
    model: EntropyModel | None = None,
    varying: bool = False,
    layered: bool = False,
) -> Codes:
    """The inverse of `encode_adaptive`. Raises ValueError for a payload that it never writes."""
    (codes,) = _decoded(
        payload, sizes, rows=rows, frames=frames, lengths=[frames], model=model, varying=varying, layered=layered
    )
    return codes


def _decoded(
    payload: bytes,
    sizes: Sequence[int],
    *,
    rows: int,
    frames: int,
    lengths: Iterable[int],
    model: EntropyModel | None,
    varying: bool,
    layered: bool,
) -> Iterator[Codes]:
    """Yield what `decode_adaptive` gives in pieces of these lengths in frames."""
    most = _most(MODEL if model else ADAPTIVE)
    if (count := rows * len(sizes) * frames) > most:
        raise ValueError(f"{count} codes by a coder of at most {most}")
    ends = layer_ends(len(sizes), layered=layered)
    coders = [RangeDecoder(part) for part in _parts(payload, len(ends))]
    passage = _Pass(coders, sizes, rows)
    predictors = [FramePredictor(model, len(sizes), ends) for _ in range(rows)] if model else None
    counts = _pass_counts(coders[0], _unknown(frames, rows, len(sizes))) if varying else None
    first = 0
    for length in lengths:
        codes = _unknown(length, rows, len(sizes))
        passage.push(codes, predictors, counts and counts[first : first + length])
        first += length
        if first >= frames:
            for coder in coders:
                coder.finish()
        yield np.array(codes, np.int64).transpose(1, 2, 0)


def layer_ends(num_codebooks: int, *, layered: bool = True) -> tuple[int, ...]:
    """The codebooks after the last one of each layer of a packet; without layers, all are one."""
    return *(end for end in LAYER_ENDS if layered and end < num_codebooks), num_codebooks


def thinned(payload: bytes, num_codebooks: int, count: int) -> tuple[bytes, int]:
    """The lowest layers of a payload of `num_codebooks` in layers that hold `count` of them; and how many they hold.

    Raises ValueError for a payload that has other layers.
    """
    ends = layer_ends(num_codebooks)
    layers = bisect_left(ends, min(count, num_codebooks)) + 1
    *lower, last = _parts(payload, len(ends))[:layers]
    return b"".join(map(sized, lower)) + last, ends[layers - 1]


def _joined(coders: "Sequence[RangeEncoder]") -> bytes:
    *lower, last = (coder.finish() for coder in coders)
    return b"".join(map(sized, lower)) + last


def _parts(payload: bytes, layers: int) -> list[bytes]:
    """The bytes of the layers of a payload."""
    fields = Fields(payload)
    return [*(fields.content() for _ in range(layers - 1)), fields.rest()]


def codebook_counts(coder: int, payload: bytes, num_codebooks: int, *, rows: int, frames: int) -> Codes:
    """The numbers of codebooks [frames, rows] of a payload of any coder whose frames differ in them.

    The codes are not decoded. Raises ValueError for a payload that no encoder writes.
    """
    if coder == NONE:
        begin = bytes_for((num_codebooks,), rows * frames)
        return unpack(payload[:begin], (num_codebooks,), rows=rows, frames=frames)[:, 0].T + 1
    if coder > MODEL:
        raise NotImplementedError(f"coder {coder}")
    return np.array(_pass_counts(RangeDecoder(payload), _unknown(frames, rows, num_codebooks)), np.int64)


def _unknown(frames: int, rows: int, num_codebooks: int) -> list[list[list[int]]]:
    return [[[_UNKNOWN] * num_codebooks for _ in range(rows)] for _ in range(frames)]


class Predictor(Protocol):
    """A PacketPredictor of known codes, or a FramePredictor of codes that are being read."""

    def start_frame(self) -> None:
        """Move to the next frame."""

    def frequencies(self, codebook: int) -> Frequencies:
        """The frequencies [size] of the codes of a codebook in this frame."""

    def push(self, codebook: int, code: int) -> None:
        """Take the code of a codebook in this frame."""


class _Pass:
    """A packet on its way through the coders of its layers, a few frames at a time."""

    def __init__(self, coders: "Sequence[Coder]", sizes: Sequence[int], rows: int) -> None:
        ends = layer_ends(len(sizes), layered=len(coders) > 1)
        layers = [bisect_right(ends, codebook) for codebook in range(len(sizes))]
        questions = [_Questions() for _ in coders]
        self._coders = [coders[layer] for layer in layers]
        self._sizes = sizes
        self._histories = [_History([questions[layer] for layer in layers], sizes) for _ in range(rows)]

    def push(
        self,
        codes: list[list[list[int]]],
        predictors: Sequence[Predictor] | None,
        counts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        """Pass the next codes [frames][rows][codebooks], with a predictor per row that is at these frames.

        `counts` [frames][rows] are the numbers of codebooks if they vary.
        """
        whole = [len(self._sizes)] * len(self._histories)
        of_rows: Sequence[Predictor | None] = predictors or [None] * len(self._histories)
        for number, frame in enumerate(codes):
            above: list[int] | None = None
            frame_counts = counts[number] if counts else whole
            for history, predictor, row, count in zip(self._histories, of_rows, frame, frame_counts, strict=True):
                history.code_frame(self._coders, row, above, count, predictor)
                above = row


def _pass_counts(coder: "Coder", codes: list[list[list[int]]]) -> list[list[int]]:
    """Pass the numbers of codebooks [frames][rows] of codes [frames][rows][codebooks] through the coder."""
    same, counts = [1, 1], dict.fromkeys(range(1, len(codes[0][0]) + 1), 1)
    passed: list[list[int]] = []
    before = [0] * len(codes[0])
    for frame in codes:
        before = [_pass_count(coder, row, number, same, counts) for row, number in zip(frame, before, strict=True)]
        passed.append(before)
    return passed


def _pass_count(coder: "Coder", codes: list[int], before: int, same: list[int], counts: dict[int, int]) -> int:
    """Pass the number of codebooks of one frame and row through the coder; `before` is that of the frame before."""
    count = sum(code != _UNKNOWN for code in codes)
    if before and _ask(coder, same, count == before):
        return before
    count = coder.among({number: times for number, times in counts.items() if number != before}, count)
    counts[count] += 1
    return count


class _Questions:
    """The counts [no, yes] of every question of a layer, which all rows share."""

    def __init__(self) -> None:
        self.row = [[[1, 1] for _ in range(3)] for _ in range(2)]  # codebook 0 or higher, answer in the lower one
        self.repeat = [[[[1, 1] for _ in range(2)] for _ in range(3)] for _ in range(2)]  # and in the frame before
        self.follow = [[1, 1] for _ in range(2)]
        self.recent = [[1, 1] for _ in range(2)]


class _History:
    """What was coded in one row of the packet."""

    def __init__(self, questions: Sequence[_Questions], sizes: Sequence[int]) -> None:
        self._questions, self._sizes = questions, sizes  # of each codebook
        self._before: list[int] = []  # codes of the frame before
        self._repeated = [0] * len(sizes)  # whether they repeated the frame before them
        self._follow: list[dict[int, int]] = [{} for _ in sizes]
        self._recent: list[dict[int, int]] = [{} for _ in sizes]  # counts, in the order in which the codes appeared

    def code_frame(
        self,
        coders: "Sequence[Coder]",
        codes: list[int],
        above: list[int] | None,
        count: int,
        predictor: Predictor | None,
    ) -> None:
        """Pass the first `count` of codes [codebooks] through their coders; `above` are those of the row before."""
        same_row = same_frame = _NO_ANSWER
        if predictor:
            predictor.start_frame()
        self._repeated[count:] = [0] * (len(self._sizes) - count)
        for codebook in range(count):
            coder, questions, higher = coders[codebook], self._questions[codebook], int(codebook > 0)
            before = self._before[codebook] if self._before else _UNKNOWN
            lower = codes[codebook - 1] if higher else self._before[0] if self._before else _UNKNOWN
            follow = self._follow[codebook]
            recent = self._recent[codebook]
            candidates = (
                (above[codebook] if above else _UNKNOWN, questions.row[higher][same_row]),
                (before, questions.repeat[higher][same_frame][self._repeated[codebook]]),
                (follow.get(lower, _UNKNOWN), questions.follow[higher]),
            )
            refused: list[int] = []
            found = _candidate(coder, codes[codebook], candidates, recent, questions.recent[higher], refused)
            code = self._other(coder, codes[codebook], codebook, refused, predictor) if found is None else found
            if predictor:
                predictor.push(codebook, code)
            codes[codebook] = follow[lower] = code
            recent[code] = recent.get(code, 0) + 1
            if len(recent) > _RECENT:
                del recent[next(iter(recent))]
            same_row = int(above is not None and code == above[codebook])
            same_frame = self._repeated[codebook] = int(code == before)
        self._before = codes

    def _other(self, coder: "Coder", value: int, codebook: int, refused: list[int], predictor: Predictor | None) -> int:
        """Pass a code that was refused everywhere through the coder."""
        if predictor is None:
            return coder.uniform(value, self._sizes[codebook])
        frequencies = predictor.frequencies(codebook).copy()
        frequencies[refused] = 0
        return coder.drawn(frequencies, value)


def _candidate(
    coder: "Coder",
    value: int,
    candidates: tuple[tuple[int, list[int]], ...],
    recent: Mapping[int, int],
    recent_counts: list[int],
    refused: list[int],
) -> int | None:
    """Pass one code through the coder by the questions of `candidates` and by the `recent` codes.

    Without a yes, `refused` gets all codes that it cannot be.
    """
    for candidate, counts in candidates:
        if candidate == _UNKNOWN or candidate in refused:
            continue
        if _ask(coder, counts, value == candidate):
            return candidate
        refused.append(candidate)
    if any(code not in refused for code in recent):
        if _ask(coder, recent_counts, value in recent):
            return coder.among({code: count for code, count in recent.items() if code not in refused}, value)
        refused.extend(recent)
    return None


def _ask(coder: "Coder", counts: list[int], value: bool) -> bool:
    """Pass an answer through the coder, and count it."""
    value = coder.flag(counts, value)
    counts[value] += 2
    if sum(counts) > _MOST:
        counts[:] = [(count + 1) // 2 for count in counts]
    return value


# the range coder


class Coder(Protocol):
    """A RangeEncoder, which writes the values that it is given, or a RangeDecoder, which ignores them and reads."""

    def flag(self, counts: list[int], value: bool) -> bool:
        """Code and return a yes or no whose counts are [no, yes]."""

    def among(self, counts: Mapping[int, int], value: int) -> int:
        """Code and return one of the keys by their counts."""

    def uniform(self, value: int, total: int) -> int:
        """Code and return one of `total` equally likely numbers."""

    def drawn(self, frequencies: Frequencies, value: int) -> int:
        """Code and return a number by the frequencies [numbers]."""


class RangeEncoder:
    """Write values by their frequencies; the sums of frequencies are at most 2**32."""

    def __init__(self) -> None:
        self._low, self._width = 0, _TOP
        self._out = bytearray()

    def interval(self, start: int, count: int, total: int) -> None:
        """Write a value that has `count` of the frequencies' sum `total`, after the `start` of the values before it."""
        unit = self._width // total
        self._low += start * unit
        self._width = count * unit
        if self._low >= _TOP:
            self._carry()
        while self._width < _LEAST:
            self._out.append(self._low >> 40)
            self._low = (self._low & _LEAST - 1) << 8
            self._width <<= 8

    def flag(self, counts: list[int], value: bool) -> bool:
        """As Coder."""
        no, yes = counts
        self.interval(no if value else 0, yes if value else no, no + yes)
        return value

    def among(self, counts: Mapping[int, int], value: int) -> int:
        """As Coder."""
        start = 0
        for key, count in counts.items():
            if key == value:
                break
            start += count
        self.interval(start, counts[value], sum(counts.values()))
        return value

    def uniform(self, value: int, total: int) -> int:
        """As Coder."""
        self.interval(value, 1, total)
        return value

    def drawn(self, frequencies: Frequencies, value: int) -> int:
        """As Coder."""
        self.interval(int(frequencies[:value].sum()), int(frequencies[value]), int(frequencies.sum()))
        return value

    def finish(self) -> bytes:
        """Return the bytes of all values."""
        if self._low + self._width > _TOP:
            self._low = _TOP
            self._carry()
        elif self._low:
            self._out.append(-(-self._low // _LEAST))
        return bytes(self._out)

    def _carry(self) -> None:
        self._low -= _TOP
        place = len(self._out) - 1
        while self._out[place] == 255:
            self._out[place] = 0
            place -= 1
        self._out[place] += 1


class RangeDecoder:
    """Read what a RangeEncoder wrote. Its methods raise ValueError for bytes that no encoder writes."""

    def __init__(self, payload: bytes) -> None:
        self._payload = payload
        self._offset = int.from_bytes(payload[:_WINDOW].ljust(_WINDOW, b"\0"), "big")  # above `low`
        self._width = _TOP
        self._shifts = 0

    def target(self, total: int) -> int:
        """A number within the frequencies of the next value, less than their sum `total`; `interval` follows.

        No sum is 0 in what an encoder writes: some value was possible.
        """
        number = self._offset // (self._width // total) if total else 0
        if number >= total:
            raise ValueError("codes that no encoder writes")
        return number

    def interval(self, start: int, count: int, total: int) -> None:
        """Move over the value that has these frequencies, as RangeEncoder.interval."""
        unit = self._width // total
        self._offset -= start * unit
        self._width = count * unit
        while self._width < _LEAST:
            place = self._shifts + _WINDOW
            self._offset = self._offset << 8 | (self._payload[place] if place < len(self._payload) else 0)
            self._width <<= 8
            self._shifts += 1

    def flag(self, counts: list[int], value: bool = False) -> bool:
        """As Coder."""
        no, yes = counts
        answer = self.target(no + yes) >= no
        self.interval(no if answer else 0, yes if answer else no, no + yes)
        return answer

    def among(self, counts: Mapping[int, int], value: int = 0) -> int:
        """As Coder."""
        total = sum(counts.values())
        number = self.target(total)
        found, end = next(item for item in zip(counts, accumulate(counts.values()), strict=True) if number < item[1])
        self.interval(end - counts[found], counts[found], total)
        return found

    def uniform(self, value: int, total: int) -> int:
        """As Coder."""
        number = self.target(total)
        self.interval(number, 1, total)
        return number

    def drawn(self, frequencies: Frequencies, value: int = 0) -> int:
        """As Coder."""
        ends = frequencies.cumsum()
        total = int(ends[-1])
        value = int(ends.searchsorted(self.target(total), side="right"))
        count = int(frequencies[value])
        self.interval(int(ends[value]) - count, count, total)
        return value

    def finish(self) -> None:
        """Raise ValueError if the payload has another length than that of the values."""
        if len(self._payload) - self._shifts not in (0, 1):
            raise ValueError(f"{len(self._payload)} bytes of codes, not {self._shifts} or one more")
