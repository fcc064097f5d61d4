"""Which channels of a recording have to be coded, and how all channels come from them.

A channel that is a multiple of an earlier one is not coded again, and samples beyond full scale are scaled down first:
of left = 3 x, right = -1.5 x with a peak of 3, x alone is coded, and

    decoded = [3, -1.5] · x

Two channels that are both coded may be coded as mid = (left + right) / 2 and side = (left - right) / 2 instead:

    left  = mid + side
    right = mid - side
"""

from collections.abc import Iterable
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float32]  # [channels, time], as codec.io.audio's, which imports this module
MOST_CHANNELS = 64  # the first, which are compared with one another: 2016 pairs
TOLERANCE = 1e-6  # of the energy of a block, -60 dB
ROUNDING = 1.5 / 32768  # amplitude of what rounding to 16 bits may leave
LARGEST_GAIN = 1000.0
BALANCED = 0.9

Matrix = tuple[tuple[float, ...], ...]
Stereo: TypeAlias = Literal["left-right", "mid-side", "smaller"]
"""How two channels are coded; "smaller" is the one of the two that takes fewer bytes, if they are balanced."""


class Mix(NamedTuple):
    """How the channels of a recording are coded."""

    coded: tuple[int, ...]
    """Indices of the channels that are coded, ascending."""
    gain: float
    """What they are divided by."""
    matrix: Matrix
    """[channels, coded channels]: decoded audio is this matrix times the coded channels."""

    def coded_block(self, block: Block) -> Block:
        """The coded channels of a block [channels, time]."""
        if is_mid_side(self.matrix):
            both: Block = np.stack([block[0] + block[1], block[0] - block[1]])
            return both / np.float32(2 * self.gain)
        return block[list(self.coded)] / np.float32(self.gain)


def mid_side(gain: float = 1.0) -> Mix:
    """Mid and side of two channels that are divided by `gain`."""
    return Mix((0, 1), gain, ((gain, gain), (gain, -gain)))


def are_balanced(blocks: Iterable[Block]) -> bool:
    """Whether two channels are within 6 dB of one another in BALANCED of their energy; blocks are [2, time].

    Mid and side spread their noise over both channels, which drowns a soft one.
    """
    of_all = of_balanced = 0.0
    for block in blocks:
        energies = np.square(block, dtype=np.float64).sum(axis=1)
        of_all += energies.sum()
        of_balanced += energies.sum() if energies.max() <= 4 * energies.min() else 0.0
    return of_balanced >= BALANCED * of_all


def is_mid_side(matrix: Matrix) -> bool:
    """Whether the coded channels are mid and side of two channels."""
    return bool(matrix) and matrix[0][0] > 0 and matrix == mid_side(matrix[0][0]).matrix


class Survey:
    """Compare the channels of a recording block by block; `is_float` says whether samples may exceed full scale."""

    def __init__(self, channels: int, *, is_float: bool, limit: float) -> None:
        self._is_float, self._limit = is_float, limit
        self._peaks = np.zeros(channels)
        self._is_silent = np.ones(channels, bool)
        compared = range(min(channels, MOST_CHANNELS))
        self._gains: dict[tuple[int, int], float | None] = {(c, b): None for c in compared for b in range(c)}

    def push(self, block: Block) -> bool:
        """Take the next block [channels, time]; returns whether more blocks can change the result."""
        self._peaks = np.maximum(self._peaks, np.abs(block).max(axis=1, initial=0))
        self._is_silent &= self._peaks == 0
        compared = sorted({channel for pair in self._gains for channel in pair})
        rows = block[compared].astype(np.float64)
        products, row = rows @ rows.T, {channel: number for number, channel in enumerate(compared)}
        floor = block.shape[1] * ROUNDING**2
        for (channel, base), gain in list(self._gains.items()):
            one, other = row[channel], row[base]
            of_channel, of_base, of_both = products[one, one], products[other, other], products[one, other]
            if max(of_channel, of_base) <= floor:
                continue
            gain = of_both / max(of_base, floor) if gain is None else gain
            left = of_channel - 2 * gain * of_both + gain**2 * of_base
            if 1 / LARGEST_GAIN <= abs(gain) <= LARGEST_GAIN and left <= TOLERANCE * of_channel + floor * (1 + gain**2):
                self._gains[channel, base] = gain
            else:
                del self._gains[channel, base]
        return bool(self._gains) or bool(self._is_silent.any()) or self._is_float

    def mix(self) -> Mix | None:
        """How to code the recording; None for every channel as it is."""
        channels = len(self._peaks)
        sources = self._sources(channels)
        coded = tuple(channel for channel in range(channels) if channel not in sources)
        peak = float(self._peaks[list(coded)].max())
        gain = float(np.float32(peak)) if self._is_float and peak > self._limit else 1.0
        if not sources and gain == 1:
            return None
        matrix = np.zeros((channels, len(coded)), np.float32)
        for channel in range(channels):
            base, factor = sources.get(channel, (channel, 1.0))
            matrix[channel, coded.index(base)] = factor * gain
        return Mix(coded, gain, tuple(map(tuple, matrix.tolist())))

    def _sources(self, channels: int) -> dict[int, tuple[int, float]]:
        """Channels that are not coded: their base, and what it is multiplied by."""
        sources: dict[int, tuple[int, float]] = {}
        first = int(np.argmin(self._is_silent))  # that sounds; 0 if none does
        for channel in range(channels):
            if channel == first:
                continue
            if self._is_silent[channel]:
                sources[channel] = first, 0.0
                continue
            for base in range(channel):
                gain = self._gains.get((channel, base))
                if gain is not None and base not in sources:
                    sources[channel] = base, gain
                    break
        return sources
