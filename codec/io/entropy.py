"""Payload coders: the codes of one packet ↔ bytes, with integers alone, so that every machine gets the same bytes.

    coder  name      what it codes
        0  none      every code in ceil(log2(size of its codebook)) bits
        1  adaptive  what repeats within the packet, by frequencies that are learned while coding
        2  model     all codes, by the frequencies of a network (`codec.io.entropy_model`)

A packet starts without history, because a damaged or skipped packet must not cost the packets that follow.

Coder 0 packs the codes in the order [frames, rows, codebooks], most significant bit first; zero bits fill the last
byte. Example: one row, two codebooks of 8, frames (5, 1) and (2, 7): 101 001 | 010 111 -> 10100101 0111_0000 -> A5 70.

Where frames of a row have different numbers of codebooks, codes are -1 after the last one, and coder 0 packs the
numbers less one, [frames, rows], before the codes.

Coders 1 and 2 code in the order [codebooks, frames, rows], so that the bytes of the higher codebooks can be left out,
and so that all frames of the lower codebooks are known. `codec.io.range_coder` makes the bytes. Where numbers of
codebooks differ, those of all frames come first, so that they can be read alone: whether a frame of a row has as many
as the frame before, and without a yes, the number, by how often the others occurred so far.

Coder 1 asks up to four questions for each code, and stops at the first yes; without a yes, the code follows among all
codes of its codebook, each equally likely.

    row     is it the code of the row before, in this frame and codebook?
    repeat  is it the code of the frame before, in this row and codebook?
    follow  is it the code that followed here when the lower codebook had the code that it has now (codebook 0: when
            the frame before had the code that it had now)?
    recent  is it one of the last 64 different codes of this row and codebook? Then these are coded by their counts.

A question without a candidate is left out, as is a candidate that was refused before. The counts of yes and no start at
1, grow by 2, and are halved (rounding up) when their sum exceeds 255. The questions "row" and "repeat" have counts of
their own for codebook 0, for the answer in the lower codebook, and for the answer in the frame before.

Coder 2 asks "row", and "repeat" if the three frames before have one code, with counts of its own for each codebook and
for the answer in the lower one, which they expect at first. Without a yes, a code has the frequency that the network
predicts, times a factor if it occurred: by how often in the last 64 frames, by whether the frame before or the two
frames before have it, and if it is the candidate of "follow".

With ends, the payload of coder 1 or 2 begins with where each codebook but the last ends (`codec.io.codebook_ends`).
"""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from codec.backend import may_compile
from codec.errors import UsageError
from codec.io import codebook_ends
from codec.io.entropy_model import (
    FUTURE,
    GROW_SHIFT,
    EntropyModel,
    FramePredictor,
    Frequencies,
    PacketPredictor,
    Predictor,
)
from codec.io.range_coder import Coder, Intervals, RangeDecoder, RangeEncoder, Writer

if TYPE_CHECKING:
    from codec.io.entropy_compiled import CompiledCodebook

Codes = npt.NDArray[np.int64]

NONE, ADAPTIVE, MODEL = 0, 1, 2
NAMES = ("none", "adaptive", "model")
Choice: TypeAlias = Literal["auto", "none", "adaptive", "model"]
"""The last coder that a writer tries, by name; "auto" tries all that the codec has."""
# codes of a packet that take time, by coders 1 and 2; a forged packet of more would decode for more than a second
MAX_ADAPTIVE, MAX_MODELED = 1 << 16, 1 << 14
START_FRAMES = 8  # how many frames a codebook of a row takes more in coder 2, because its beginning takes time too

UNKNOWN = -1  # a code that a decoder has not read, or a candidate that does not exist
NO_ANSWER = 2  # for codebook 0, which has no lower codebook
MOST = 255  # sum of the counts of a question
EXPECTED = 8  # first count of the answer to "row" that the lower codebook had, in coder 2
RECENT = 64  # different codes of coder 1, frames of coder 2
_COMPILED_ROWS = 8  # up to which compiled loops pass a codebook
_MOST_PLAIN = 1 << 17  # codes of a process by coder 2 without compiled loops, which take a second to load
_ADVANCE = 5  # frames that a PacketEncoder waits for, because a few cost as much


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
        self,
        sizes: Sequence[int],
        *,
        coder: int = MODEL,
        model: EntropyModel | None = None,
        with_ends: bool = False,
        is_live: bool = False,
    ) -> None:
        """Arguments as of `encode`; `sizes` may be those of further codebooks, too.

        With `with_ends`, payloads of coders 1 and 2 have the ends of codebooks, if there are several. With `is_live`,
        coder 1 is not tried where coder 2 takes less than coder 0, because it would delay the packet.
        """
        self._sizes, self._coder, self._with_ends, self._is_live = sizes, coder, with_ends, is_live
        self._model = model if coder >= MODEL else None
        self._modeled: _Modeled | None = None  # what is coded of this packet

    def has_ends(self, codes: Codes) -> bool:
        """Whether coders 1 and 2 code this packet with the ends of its codebooks."""
        return self._with_ends and codes.shape[1] > 1

    def advance(self, codes: Codes) -> None:
        """Code what is new in the packet, of which `codes` [rows, codebooks, frames] are all frames so far."""
        known = codes.shape[2] - FUTURE
        done = self._modeled.frames if self._modeled else 0
        if self._model and known - done >= _ADVANCE and not varies(codes):  # else all numbers of codebooks come first
            self._modeled = self._modeled or _Modeled(self._model, len(codes), codes.shape[1])
            self._modeled.advance(codes, known)

    def finish(self, codes: Codes) -> tuple[int, bytes]:
        """The number of the coder and the payload of the packet, whose codes are all given again; the next may begin.

        If they are fewer than at the last `advance`, or their number of codebooks varies, they are coded again.
        """
        sizes, with_ends = self._sizes[: codes.shape[1]], self.has_ends(codes)
        payloads = {NONE: (pack_varying if varies(codes) else pack)(codes, sizes)}
        if self._model and is_modeled(*codes.shape):
            if self._modeled and self._modeled.frames + FUTURE <= codes.shape[2] and not varies(codes):
                self._modeled.advance(codes, codes.shape[2])
                payloads[MODEL] = _finished(self._modeled.finish(), codes, with_ends=with_ends)
            else:
                payloads[MODEL] = encode_adaptive(codes, sizes, self._model, with_ends=with_ends)
        self._modeled = None
        is_enough = self._is_live and len(payloads.get(MODEL, payloads[NONE])) < len(payloads[NONE])
        if self._coder >= ADAPTIVE and codes.size <= MAX_ADAPTIVE and not is_enough:
            payloads[ADAPTIVE] = encode_adaptive(codes, sizes, with_ends=with_ends)
        best = min(payloads, key=lambda number: (len(payloads[number]), number))
        return best, payloads[best]


def is_modeled(rows: int, num_codebooks: int, frames: int) -> bool:
    """Whether coder 2 takes packets of this size."""
    return rows * num_codebooks * (frames + START_FRAMES) <= MAX_MODELED


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
    with_ends: bool = False,
) -> Codes:
    """The inverse of `encode`: codes [rows, codebooks, frames]; `varying` is what `varies` says of them.

    Raises NotImplementedError for a coder of a newer release and for coder 2 without its network, ValueError for a
    payload that no encoder writes.
    """
    if coder > MODEL or (coder == MODEL and model is None):
        raise NotImplementedError(f"coder {coder}")
    if coder == NONE:
        return (unpack_varying if varying else unpack)(payload, sizes, rows=rows, frames=frames)
    network = model if coder == MODEL else None
    return decode_adaptive(
        payload, sizes, rows=rows, frames=frames, model=network, varying=varying, with_ends=with_ends
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
    codes[~present] = UNKNOWN
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
    codes: Codes, sizes: Sequence[int], model: EntropyModel | None = None, *, with_ends: bool = False
) -> bytes:
    """Code a packet [rows, codebooks, frames] by what repeats within it, or by the network if there is one."""
    coder = RangeEncoder()
    pass_codes(coder, codes, sizes, model)
    return _finished(coder, codes, with_ends=with_ends)


def _finished(coder: RangeEncoder, codes: Codes, *, with_ends: bool) -> bytes:
    data, ends = coder.finish()
    if with_ends:
        of_codebooks = (codes >= 0).sum(axis=(0, 2)).tolist()
        left_out = 0 if varies(codes) else None
        data = codebook_ends.packed(ends[:-1], len(data), of_codebooks, left_out=left_out) + data
    return data


def pass_codes(coder: Writer, codes: Codes, sizes: Sequence[int], model: EntropyModel | None) -> None:
    """Write a packet of codes, as `encode_adaptive` to a RangeEncoder."""
    listed = codes.transpose(1, 2, 0).tolist()
    counts = None
    if varies(codes):
        counts = _pass_counts(coder, (codes >= 0).sum(axis=1).T.tolist(), len(sizes))
    _pass_codebooks(
        coder, listed, sizes, counts, model, [PacketPredictor(model, row) for row in codes] if model else ()
    )


def decode_adaptive(
    payload: bytes,
    sizes: Sequence[int],
    *,
    rows: int,
    frames: int,
    model: EntropyModel | None = None,
    varying: bool = False,
    with_ends: bool = False,
) -> Codes:
    """The inverse of `encode_adaptive`. Raises ValueError for a payload that it never writes."""
    number = MODEL if model else ADAPTIVE
    coder, counts, _ = _begun(
        number, payload, len(sizes), rows=rows, frames=frames, varying=varying, with_ends=with_ends
    )
    codes = [_unknown(frames, rows) for _ in sizes]
    _pass_codebooks(
        coder,
        codes,
        sizes,
        counts,
        model,
        [FramePredictor(model, frames) for _ in range(rows)] if model else (),
    )
    coder.finish(is_cut=with_ends)
    return np.array(codes, np.int64).transpose(2, 0, 1)


class _Begun(NamedTuple):
    """A payload of coder 1 or 2 whose codes come next."""

    coder: RangeDecoder
    counts: list[list[int]] | None
    """The numbers of codebooks [frames][rows], if they vary."""
    stated: codebook_ends.Stated


def _begun(
    number: int, payload: bytes, num_codebooks: int, *, rows: int, frames: int, varying: bool, with_ends: bool
) -> _Begun:
    """Begin to decode a payload of coder `number`. Raises ValueError as `decode`."""
    stated = codebook_ends.stated(payload, num_codebooks, varying=varying) if with_ends else codebook_ends.NOTHING
    coded = num_codebooks + stated.left_out
    if not is_modeled(rows, coded, frames) if number == MODEL else rows * coded * frames > MAX_ADAPTIVE:
        raise ValueError(f"{rows} x {coded} x {frames} codes: more than this coder takes")
    coder, counts = RangeDecoder(payload[stated.size :]), None
    if varying:
        counts = _pass_counts(coder, _unknown(frames, rows), coded)
        counts = [[min(count, num_codebooks) for count in frame] for frame in counts]
    return _Begun(coder, counts, stated)


def thinned(
    coder: int, payload: bytes, num_codebooks: int, kept: int, *, rows: int, frames: int, varying: bool = False
) -> bytes:
    """The payload of the first `kept` of `num_codebooks` codebooks, from one with ends; no code is decoded.

    Raises ValueError for a payload that no encoder writes.
    """
    if kept >= num_codebooks:
        return payload
    if coder > MODEL:
        raise NotImplementedError(f"coder {coder}")
    begun = _begun(coder, payload, num_codebooks, rows=rows, frames=frames, varying=varying, with_ends=True)
    steps, left_out, begin = begun.stated
    counts = np.array(begun.counts or [[num_codebooks]])
    codes = [int((counts > codebook).sum()) for codebook in range(num_codebooks)]
    ends = codebook_ends.placed(steps, len(payload), codes)
    data = payload[begin : begin + ends[kept - 1]]
    more = left_out + num_codebooks - kept if varying else None
    before = [min(end, len(data)) for end in ends[: kept - 1]]
    return codebook_ends.packed(before, len(data), codes[:kept], left_out=more) + data


def codebook_counts(
    coder: int, payload: bytes, num_codebooks: int, *, rows: int, frames: int, with_ends: bool = False
) -> Codes:
    """The numbers of codebooks [frames, rows] of a payload of any coder whose frames differ in them.

    The codes are not decoded. Raises ValueError for a payload that no encoder writes.
    """
    if coder == NONE:
        begin = bytes_for((num_codebooks,), rows * frames)
        return unpack(payload[:begin], (num_codebooks,), rows=rows, frames=frames)[:, 0].T + 1
    if coder > MODEL:
        raise NotImplementedError(f"coder {coder}")
    begun = _begun(coder, payload, num_codebooks, rows=rows, frames=frames, varying=True, with_ends=with_ends)
    return np.array(begun.counts, np.int64)


def _unknown(frames: int, rows: int) -> list[list[int]]:
    return [[UNKNOWN] * rows for _ in range(frames)]


def _pass_counts(coder: Coder, counts: list[list[int]], num_codebooks: int) -> list[list[int]]:
    """Pass the numbers of codebooks [frames][rows] through the coder."""
    same, times = [1, 1], dict.fromkeys(range(1, num_codebooks + 1), 1)
    passed: list[list[int]] = []
    before = [0] * len(counts[0])
    for frame in counts:
        before = [_pass_count(coder, count, old, same, times) for count, old in zip(frame, before, strict=True)]
        passed.append(before)
    return passed


def _pass_count(coder: Coder, count: int, before: int, same: list[int], times: dict[int, int]) -> int:
    """Pass the number of codebooks of one frame and row through the coder; `before` is that of the frame before."""
    if before and _ask(coder, same, count == before):
        return before
    count = coder.among({number: seen for number, seen in times.items() if number != before}, count)
    times[count] += 1
    return count


def _ask(coder: Coder, counts: list[int], value: bool) -> bool:
    """Pass an answer through the coder, and count it."""
    value = coder.flag(counts, value)
    counts[value] += 2
    if sum(counts) > MOST:
        counts[:] = [(count + 1) // 2 for count in counts]
    return value


_Answers: TypeAlias = tuple[int, int]  # to the questions "row" and "repeat"
_NO_ANSWERS = NO_ANSWER, NO_ANSWER


def _pass_codebooks(
    coder: Coder,
    codes: list[list[list[int]]],
    sizes: Sequence[int],
    counts: list[list[int]] | None,
    model: EntropyModel | None,
    predictors: Sequence[Predictor],
) -> None:
    """Pass codes [codebooks][frames][rows] through the coder, by the predictors of the rows if there is a model.

    `counts` [frames][rows] are the numbers of codebooks if they vary. Codes that are read replace the given ones.
    """
    rows = len(codes[0][0])
    if model:
        model.passed += rows * len(codes) * len(codes[0])
        passages: Iterator[_Codebook | CompiledCodebook] = _modeled(model, len(sizes), rows, varying=counts is not None)
    else:
        passages = _repeating(sizes, rows)
    for passage, codebook in zip(passages, codes, strict=True):
        passage.push(coder, codebook, counts, predictors)
        coder.mark()


class _Modeled:
    """A packet on its way through coder 2, a few frames at a time."""

    def __init__(self, model: EntropyModel, rows: int, num_codebooks: int) -> None:
        self.frames = 0
        """How many were passed."""
        self._model = model
        self._passages = [(passage, Intervals()) for passage in _modeled(model, num_codebooks, rows)]

    def advance(self, codes: Codes, end: int) -> None:
        """Pass the frames to before `end` of codes [rows, codebooks, frames], which end or have FUTURE frames more."""
        predictors = [PacketPredictor(self._model, row, self.frames, end) for row in codes]
        listed = codes[:, :, self.frames : end].transpose(1, 2, 0).tolist()
        for (passage, intervals), codebook in zip(self._passages, listed, strict=True):
            passage.push(intervals, codebook, None, predictors)
        self._model.passed += codes[:, :, self.frames : end].size
        self.frames = end

    def finish(self) -> RangeEncoder:
        """The coder of all frames that were passed."""
        coder = RangeEncoder()
        for _, intervals in self._passages:
            intervals.send(coder)
            coder.mark()
        return coder


def _modeled(
    model: EntropyModel, num_codebooks: int, rows: int, *, varying: bool = False
) -> "Iterator[_Codebook | CompiledCodebook]":
    if rows <= _COMPILED_ROWS and not varying and (compiled := _compiled(model)):
        below = None
        for number in range(num_codebooks):
            yield (below := compiled(number, below, rows, model))
        return
    lower = None
    for number in range(num_codebooks):
        yield (codebook := _Drawn(number, lower, rows, model))
        lower = codebook.passed


def _compiled(model: EntropyModel) -> "type[CompiledCodebook] | None":
    """Compiled loops for this model, which are loaded or compiled once it has passed many codes."""
    if model.compiled is None and model.passed > _MOST_PLAIN and may_compile():
        from codec.io import entropy_compiled

        entropy_compiled.prepare(model)
    return model.compiled


def _repeating(sizes: Sequence[int], rows: int) -> "Iterator[_Codebook]":
    questions, lower = _Questions(), None
    for number, size in enumerate(sizes):
        yield (codebook := _Repeating(number, lower, rows, size, questions))
        lower = codebook.passed


class _Passed(NamedTuple):
    """What the next higher codebook asks for."""

    codes: list[list[int]]
    """[frames][rows]"""
    answers: list[list[_Answers]]


class _Codebook(ABC):
    """A codebook of a packet on its way through a coder, a few frames at a time."""

    def __init__(self, number: int, lower: _Passed | None) -> None:
        self._number, self._lower = number, lower
        self._predictors: Sequence[Predictor] = ()
        self.passed = _Passed([], [])

    def push(
        self, coder: Coder, codes: list[list[int]], counts: list[list[int]] | None, predictors: Sequence[Predictor]
    ) -> None:
        """Pass the next codes [frames][rows], as _pass_codebooks."""
        for predictor in predictors:
            predictor.begin_codebook()
        self._predictors = predictors
        unknown, no_answers = [UNKNOWN] * len(codes[0]), [_NO_ANSWERS] * len(codes[0])
        for of_rows in codes:
            frame = len(self.passed.codes)
            if self._lower:
                lower, lower_answers = self._lower.codes[frame], self._lower.answers[frame]
            else:
                lower, lower_answers = self.passed.codes[-1] if frame else unknown, no_answers
            above, all_answers = UNKNOWN, list[_Answers]()
            for row, value in enumerate(of_rows):
                if counts and counts[frame][row] <= self._number:
                    self._skip(frame, row)
                    code, answers = UNKNOWN, _NO_ANSWERS
                else:
                    code, answers = self._code(coder, value, frame, row, above, lower[row], lower_answers[row])
                of_rows[row] = above = code
                all_answers.append(answers)
            self.passed.codes.append(of_rows)
            self.passed.answers.append(all_answers)

    @abstractmethod
    def _skip(self, frame: int, row: int) -> None:
        """Pass a frame of a row that does not have this codebook."""

    @abstractmethod
    def _code(
        self, coder: Coder, value: int, frame: int, row: int, above: int, lower: int, answers: _Answers
    ) -> tuple[int, _Answers]:
        """Pass a code through the coder; return it, and whether it is that of the row and of the frame before.

        `above` is the code of the row before, `lower` that of the next lower codebook (of codebook 0: of the frame
        before), and `answers` are those of the lower codebook.
        """


class _Questions:
    """The counts [no, yes] of every question of coder 1, which all codebooks and rows share."""

    def __init__(self) -> None:
        self.row = [[[1, 1] for _ in range(3)] for _ in range(2)]  # codebook 0 or higher, answer in the lower one
        self.repeat = [[[[1, 1] for _ in range(2)] for _ in range(3)] for _ in range(2)]  # and in the frame before
        self.follow = [[1, 1] for _ in range(2)]
        self.recent = [[1, 1] for _ in range(2)]


class _Repeats:
    """What was coded in a row of a codebook."""

    def __init__(self) -> None:
        self.before = UNKNOWN  # the code of the frame before
        self.repeated = 0  # whether it repeated the one before
        self.follow: dict[int, int] = {}
        self.recent: dict[int, int] = {}  # counts, in the order in which the codes appeared


class _Repeating(_Codebook):
    """A codebook by coder 1."""

    def __init__(self, number: int, lower: _Passed | None, rows: int, size: int, questions: _Questions) -> None:
        super().__init__(number, lower)
        self._size, self._questions = size, questions
        self._histories = [_Repeats() for _ in range(rows)]

    def _skip(self, frame: int, row: int) -> None:
        history = self._histories[row]
        history.before, history.repeated = UNKNOWN, 0

    def _code(
        self, coder: Coder, value: int, frame: int, row: int, above: int, lower: int, answers: _Answers
    ) -> tuple[int, _Answers]:
        history, questions, higher = self._histories[row], self._questions, int(self._number > 0)
        recent, before = history.recent, history.before
        candidates = (
            (above, questions.row[higher][answers[0]]),
            (before, questions.repeat[higher][answers[1]][history.repeated]),
            (history.follow.get(lower, UNKNOWN), questions.follow[higher]),
        )
        code = _candidate(coder, value, candidates, recent, questions.recent[higher])
        if code is None:
            code = coder.uniform(value, self._size)
        history.before = history.follow[lower] = code
        recent[code] = recent.get(code, 0) + 1
        if len(recent) > RECENT:
            del recent[next(iter(recent))]
        history.repeated = int(code == before)
        return code, (int(code == above), history.repeated)


def _candidate(
    coder: Coder,
    value: int,
    candidates: tuple[tuple[int, list[int]], ...],
    recent: Mapping[int, int],
    recent_counts: list[int],
) -> int | None:
    """Pass a code through the coder by the questions of `candidates` and by the `recent` codes; None without a yes."""
    refused: list[int] = []
    for candidate, counts in candidates:
        if candidate == UNKNOWN or candidate in refused:
            continue
        if _ask(coder, counts, value == candidate):
            return candidate
        refused.append(candidate)
    if any(code not in refused for code in recent) and _ask(coder, recent_counts, value in recent):
        return coder.among({code: count for code, count in recent.items() if code not in refused}, value)
    return None


class _Occurred:
    """What was coded in a row of a codebook, and how much more frequent that makes its codes."""

    def __init__(self, size: int, gains: Sequence[int], grow: Sequence[int]) -> None:
        self._by_times, self._by_run, self._by_follow = (0, *gains[:3]), (0, *gains[3:5], 0), gains[5]
        self._grow = grow
        self._factors = np.full(size, grow[0], np.int64)  # by the times
        self._times: dict[int, int] = {}
        self._newest = deque[int]()
        self._follow: dict[int, int] = {}
        self.before = UNKNOWN
        """The code of the frame before."""
        self.run = 0
        """How many frames before have it without a break, at most 3."""

    def grown(self, frequencies: Frequencies, lower: int) -> Frequencies:
        """The frequencies [size] of the next code, from the `frequencies` of the network."""
        grown: Frequencies = frequencies * self._factors
        grown >>= GROW_SHIFT
        following = self._follow.get(lower, UNKNOWN)
        for code in {self.before, following} - {UNKNOWN}:
            gain = self._by_times[min(self._times.get(code, 0), 3)]
            gain += self._by_run[self.run] if code == self.before else 0
            gain += self._by_follow if code == following else 0
            grown[code] = int(frequencies[code]) * self._grow[gain] >> GROW_SHIFT
        return grown

    def push(self, code: int, lower: int) -> None:
        """Take the code of the next frame; -1 if the row does not have it."""
        self.run = 0 if code == UNKNOWN else min(self.run + 1, 3) if code == self.before else 1
        self.before = code
        self._newest.append(code)
        if code != UNKNOWN:
            self._follow[lower] = code
            self._count(code, 1)
        if len(self._newest) > RECENT and (oldest := self._newest.popleft()) != UNKNOWN:
            self._count(oldest, -1)

    def _count(self, code: int, times: int) -> None:
        self._times[code] = self._times.get(code, 0) + times
        self._factors[code] = self._grow[self._by_times[min(self._times[code], 3)]]


class _Drawn(_Codebook):
    """A codebook by coder 2."""

    def __init__(self, number: int, lower: _Passed | None, rows: int, model: EntropyModel) -> None:
        super().__init__(number, lower)
        size, gains = model.sizes[number], model.gains[number]
        self._occurred = [_Occurred(size, gains, model.grow) for _ in range(rows)]
        # counts of "row" and "repeat", by the answer in the lower codebook
        self._row, self._repeat = ({NO_ANSWER: [1, 1], 0: [EXPECTED, 1], 1: [1, EXPECTED]} for _ in range(2))

    def _skip(self, frame: int, row: int) -> None:
        self._predictors[row].push(frame, UNKNOWN)
        self._occurred[row].push(UNKNOWN, UNKNOWN)

    def _code(
        self, coder: Coder, value: int, frame: int, row: int, above: int, lower: int, answers: _Answers
    ) -> tuple[int, _Answers]:
        predictor, occurred = self._predictors[row], self._occurred[row]
        before = occurred.before
        repeated = before if occurred.run == 3 and before != above else UNKNOWN
        if above != UNKNOWN and _ask(coder, self._row[answers[0]], value == above):
            code = above
        elif repeated != UNKNOWN and _ask(coder, self._repeat[answers[1]], value == repeated):
            code = repeated
        else:
            frequencies = occurred.grown(predictor.frequencies(frame), lower)
            for refused in (above, repeated):
                if refused != UNKNOWN:
                    frequencies[refused] = 0
            code = coder.drawn(frequencies, value)
        occurred.push(code, lower)
        predictor.push(frame, code)
        return code, (int(code == above), int(code == before))
