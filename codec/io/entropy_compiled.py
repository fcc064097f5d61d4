"""Coder 2 of `codec.io.entropy` in loops that numba compiles: the same bytes in a half to a third of the time.

They serve long recordings, and live pipes, in which nothing of a packet is played before all of it is decoded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from codec.io import entropy
from codec.io.entropy_model import BLOCK, GROW_SHIFT, OLDER_SHIFT, EntropyModel, Predictor, own_vectors
from codec.io.range_coder import LEAST, WINDOW, Coder, RangeDecoder
from codec.nn.compiled import compiled

Array: TypeAlias = npt.NDArray[Any]

_UNKNOWN, _NO_ANSWER, _EXPECTED = entropy.UNKNOWN, entropy.NO_ANSWER, entropy.EXPECTED
_MOST, _RECENT = entropy.MOST, entropy.RECENT


def prepare(model: EntropyModel) -> None:
    """Load the loops, or compile them on a machine's first use, and let coder 2 use them with this model."""
    model.compiled = CompiledCodebook
    codes = np.zeros((1, 1, 2), np.int64)
    payload = entropy.encode_adaptive(codes, model.sizes[:1], model)
    entropy.decode_adaptive(payload, model.sizes[:1], rows=1, frames=2, model=model)


class CompiledCodebook:
    """A codebook of a packet on its way through coder 2, a few frames at a time."""

    def __init__(self, number: int, lower: CompiledCodebook | None, rows: int, model: EntropyModel) -> None:
        self._number, self._lower, self._model = number, lower, model
        counts = np.array([[_EXPECTED, 1], [1, _EXPECTED], [1, 1]], np.int64)
        self._history = _History(
            np.zeros((rows, model.sizes[number]), np.int64),
            np.full((rows, 1 + model.sizes[max(number - 1, 0)]), _UNKNOWN, np.int64),
            np.zeros(rows, np.int64),
            counts,
            counts.copy(),
        )
        by_times, by_run, following = model.gains[number][:3], model.gains[number][3:5], model.gains[number][5]
        self._grow = np.array(model.grow, np.int64)
        self._gains = np.array([0, *by_times, 0, *by_run, 0, following], np.int64)
        self._codes = np.empty((0, rows), np.int64)
        self._answers = np.empty((0, rows, 2), np.int64)

    def push(
        self,
        coder: Coder,
        codes: list[list[int]],
        counts: list[list[int]] | None,
        predictors: Sequence[Predictor],
    ) -> None:
        """Pass the next codes [frames][rows], by the predictors of the rows; codes that are read replace them.

        `counts` are None, because all frames have this codebook. Raises ValueError for bytes that no encoder writes.
        """
        for predictor in predictors:
            predictor.begin_codebook()
        first, rows = len(self._codes), len(predictors)
        self._codes = np.concatenate([self._codes, np.array(codes, np.int64)])
        self._answers = np.concatenate([self._answers, np.empty((len(codes), rows, 2), np.int64)])
        ends = _ends_of(coder, 3 * len(codes) * rows)
        for begin in range(0, len(codes), BLOCK):
            if not self._pass(ends, first, slice(begin, begin + BLOCK), predictors):
                raise ValueError("codes that no encoder writes")
        if isinstance(coder, RangeDecoder):
            coder.offset, coder.width, coder.shifts = ends.place.tolist()
            codes[:] = self._codes[first:].tolist()
            for row, predictor in enumerate(predictors):
                for frame, code in enumerate(self._codes[first:, row].tolist(), first):
                    predictor.push(frame, code)
        else:
            for interval in ends.intervals[: ends.written[0]].tolist():
                coder.interval(*interval)

    def _pass(self, ends: _Ends, first: int, block: slice, predictors: Sequence[Predictor]) -> bool:
        past = predictors[0].unknown_past
        given = [predictor.sums[block] if past else predictor.logits(block) for predictor in predictors]
        lower = self._lower or self
        is_right: bool = _pass(
            self._codes,
            self._answers,
            first + block.start,
            lower._codes,
            lower._answers,
            self._lower is not None,
            np.stack(given) if len(given) > 1 else given[0][None],
            self._network(past),
            self._model.exp,
            self._grow,
            self._gains,
            self._history,
            ends,
        )
        return is_right

    def _network(self, past: int) -> _Network:
        hidden, weight, output = self._model.layers[self._number]
        vectors = self._model.inputs[self._number]
        numbers = own_vectors(self._number) * vectors.shape[1] if past else 0
        return _Network(
            past,
            vectors,
            np.ascontiguousarray(hidden.weight[:, hidden.weight.shape[1] - numbers :]),
            weight.weight,
            weight.bias,
            output.weight,
            output.bias,
            np.array([hidden.unit, weight.unit, output.unit], np.float32),
        )


class _History(NamedTuple):
    """What was coded of a codebook."""

    times: Array
    """int64 [rows, size]: how often in the last frames."""
    follow: Array
    """int64 [rows, 1 + size of the lower codebook]: at c + 1, the code that followed when that one had code c."""
    run: Array
    """int64 [rows]: how many frames have the newest code without a break, at most 3."""
    row: Array
    """int64 [answers, 2]: counts of the question."""
    repeat: Array
    """The same."""


class _Network(NamedTuple):
    """What is computed for each frame, if codes depend on those of the frames before."""

    past: int
    """How many frames; 0 if all logits are known."""
    inputs: Array
    """int8 [size, vector]"""
    own: Array
    """int8 [hidden, numbers], the weight of these vectors."""
    weight: Array
    """int8 [prediction, hidden]"""
    weight_bias: Array
    """float32, in units of the sums."""
    output: Array
    """int8 [size, prediction]"""
    output_bias: Array
    """float32, in units of the sums."""
    units: Array
    """float32 [3]"""


class _Ends(NamedTuple):
    """A range coder: what is read, or what is to be written."""

    reads: bool
    payload: Array
    """uint8 [bytes]"""
    place: Array
    """int64 [3]: offset, width and shifts of the RangeDecoder."""
    intervals: Array
    """int64 [values, 3], to be written."""
    written: Array
    """int64 [1]: how many."""


def _ends_of(coder: Coder, most: int) -> _Ends:
    """For a RangeDecoder, or for a Writer and `most` values."""
    if isinstance(coder, RangeDecoder):
        payload, place = np.frombuffer(coder.payload, np.uint8), [coder.offset, coder.width, coder.shifts]
        return _Ends(True, payload, np.array(place, np.int64), np.empty((0, 3), np.int64), np.zeros(1, np.int64))
    no_bytes, no_place = np.empty(0, np.uint8), np.zeros(3, np.int64)
    no_bytes.setflags(write=False)  # as those of a payload
    return _Ends(False, no_bytes, no_place, np.empty((most, 3), np.int64), np.zeros(1, np.int64))


@compiled
def _target(ends: Any, total: int) -> int:
    """A number within the frequencies of the next value, or -1 where no encoder writes such bytes."""
    if total == 0:
        return -1
    number = ends.place[0] // (ends.place[1] // total)
    return number if number < total else -1


@compiled
def _interval(ends: Any, start: int, count: int, total: int) -> None:
    """Move over a value that has these frequencies, or note it."""
    if not ends.reads:
        values, written = ends.intervals, ends.written
        values[written[0], 0], values[written[0], 1], values[written[0], 2] = start, count, total
        written[0] += 1
        return
    place = ends.place
    unit = place[1] // total
    place[0] -= start * unit
    place[1] = count * unit
    while place[1] < LEAST:
        at = place[2] + WINDOW
        place[0] = place[0] << 8 | (np.int64(ends.payload[at]) if at < len(ends.payload) else 0)
        place[1] <<= 8
        place[2] += 1


@compiled
def _ask(ends: Any, counts: Array, value: bool) -> int:
    """Pass an answer, and count it; -1 where no encoder writes such bytes."""
    no, yes = counts[0], counts[1]
    if ends.reads:
        number = _target(ends, no + yes)
        if number < 0:
            return -1
        value = number >= no
    answer = 1 if value else 0
    _interval(ends, no if answer else 0, yes if answer else no, no + yes)
    counts[answer] += 2
    if counts[0] + counts[1] > _MOST:
        counts[0], counts[1] = (counts[0] + 1) // 2, (counts[1] + 1) // 2
    return answer


@compiled
def _predict(codes: Array, sums: Array, network: Any, own: Array, hidden: Array, weighted: Array, y: Array) -> None:
    """The logits y [size] of the code after `codes` [frames] of a row, from the `sums` [hidden] of the other inputs."""
    frames, width = len(codes), network.inputs.shape[1]
    limit, half = np.float32(127), np.float32(0.5)
    own[:] = 0
    for age in range(min(network.past, frames)):
        code = codes[frames - 1 - age]
        if code >= 0:
            place = min(age, len(own) // width - 1) * width
            for number in range(width):
                own[place + number] += network.inputs[code, number]
    if network.past > len(own) // width:  # the oldest frames as a sum
        for number in range(len(own) - width, len(own)):
            scaled = math.floor(own[number] * np.float32(2.0**-OLDER_SHIFT) + half)
            own[number] = min(max(scaled, -limit), limit)
    for row in range(len(hidden)):
        total = np.float32(0)
        for column in range(len(own)):
            total += np.float32(network.own[row, column]) * own[column]
        hidden[row] = min(max(math.floor(sums[row] + total * network.units[0]), np.float32(0)), limit)
    for row in range(len(weighted)):
        total = np.float32(0)
        for column in range(len(hidden)):
            total += np.float32(network.weight[row, column]) * hidden[column]
        weighted[row] = min(max(math.floor(total * network.units[1] + network.weight_bias[row]), -limit), limit)
    for row in range(len(y)):
        total = np.float32(0)
        for column in range(len(weighted)):
            total += np.float32(network.output[row, column]) * weighted[column]
        y[row] = math.floor(total * network.units[2] + network.output_bias[row])


@compiled
def _weigh(
    logits: Array,
    exp: Array,
    grow: Array,
    gains: Array,
    past: Array,
    times: Array,
    following: int,
    run: int,
    out: Array,
) -> None:
    """The frequencies `out` [size] of the code after those of `past` [frames], from its logits."""
    largest = np.int32(-(1 << 24))
    for code in range(len(logits)):  # whole numbers, whose maximum takes less time than that of floats
        largest = max(largest, np.int32(logits[code]))
    last = np.uint32(len(exp) - 1)
    for code in range(len(logits)):
        out[code] = exp[min(np.uint32(largest - np.int32(logits[code])), last)]
    for code in past[-_RECENT:]:
        if code >= 0:
            frequency = exp[min(np.uint32(largest - np.int32(logits[code])), last)]
            out[code] = frequency * grow[gains[min(times[code], 3)]] >> GROW_SHIFT
    before = past[-1] if len(past) else _UNKNOWN
    for code in (before, following):
        if code >= 0:
            gain = gains[min(times[code], 3)]
            gain += gains[4 + run] if code == before else 0
            gain += gains[8] if code == following else 0
            frequency = exp[min(np.uint32(largest - np.int32(logits[code])), last)]
            out[code] = frequency * grow[gain] >> GROW_SHIFT


@compiled
def _draw(ends: Any, value: int, frequencies: Array) -> int:
    """Pass a code by the frequencies [size]; -1 where no encoder writes such bytes."""
    total = frequencies.sum()
    start = 0
    if ends.reads:
        number = _target(ends, total)
        if number < 0:
            return -1
        value = 0
        while start + frequencies[value] <= number:
            start += frequencies[value]
            value += 1
    else:
        start = frequencies[:value].sum()
    _interval(ends, start, frequencies[value], total)
    return value


@compiled
def _pass(
    codes: Array,
    answers: Array,
    first: int,
    lower: Array,
    lower_answers: Array,
    has_lower: bool,
    given: Array,
    network: Any,
    exp: Array,
    grow: Array,
    gains: Array,
    history: Any,
    ends: Any,
) -> bool:
    """Pass the codes [frames, rows] from frame `first` on; False where no encoder writes such bytes.

    `given` are the logits [rows, frames, size], or sums of the first layer [rows, frames, hidden]; `gains` those by
    times [4], by run [4] and of what follows.
    """
    size = len(network.output)
    own, hidden = np.empty(network.own.shape[1], np.float32), np.empty(len(network.own), np.float32)
    weighted, logits = np.empty(len(network.weight), np.float32), np.empty(size, np.float32)
    frequencies = np.empty(size, np.int64)
    for frame in range(first, first + given.shape[1]):
        for row in range(codes.shape[1]):
            before = codes[frame - 1, row] if frame else _UNKNOWN
            above = codes[frame, row - 1] if row else _UNKNOWN
            if has_lower:
                under, row_answer, repeat_answer = (
                    lower[frame, row],
                    lower_answers[frame, row, 0],
                    lower_answers[frame, row, 1],
                )
            else:
                under, row_answer, repeat_answer = before, _NO_ANSWER, _NO_ANSWER
            repeated = before if history.run[row] == 3 and before != above else _UNKNOWN
            value, code, answer = codes[frame, row], _UNKNOWN, 0
            if above >= 0:
                answer = _ask(ends, history.row[row_answer], value == above)
                code = above if answer else _UNKNOWN
            if answer == 0 and repeated >= 0:
                answer = _ask(ends, history.repeat[repeat_answer], value == repeated)
                code = repeated if answer else _UNKNOWN
            if answer < 0:
                return False
            if answer == 0:
                if network.past:
                    _predict(codes[:frame, row], given[row, frame - first], network, own, hidden, weighted, logits)
                else:
                    logits = given[row, frame - first]
                past, times, following = codes[:frame, row], history.times[row], history.follow[row, under + 1]
                _weigh(logits, exp, grow, gains, past, times, following, history.run[row], frequencies)
                for refused in (above, repeated):
                    if refused >= 0:
                        frequencies[refused] = 0
                code = _draw(ends, value, frequencies)
                if code < 0:
                    return False
            codes[frame, row] = code
            answers[frame, row, 0], answers[frame, row, 1] = code == above, code == before
            history.run[row] = min(history.run[row] + 1, 3) if code == before else 1
            history.follow[row, under + 1] = code
            history.times[row, code] += 1
            if frame >= _RECENT:
                history.times[row, codes[frame - _RECENT, row]] -= 1
    return True
