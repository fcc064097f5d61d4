"""Integrated loudness of a recording in LUFS (ITU-R BS.1770-4), block by block; the filters are torchaudio's.

    audio ─ K-weighting ─ power of blocks of 0.4 s, one every 0.1 s ─ gates ─ mean ─ LUFS

Two gates: blocks below -70 LUFS do not count, nor blocks 10 LU below the mean of the others.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from codec.errors import MissingDependency, UsageError
from codec.io.audio import Block

BLOCK_SECONDS = 0.4
STEPS = 4  # a block begins every quarter of a block
OFFSET_DB = -0.691  # of the recommendation, so that a tone of 997 Hz at full scale has -3.01 LUFS
ABSOLUTE_GATE = -70.0  # LUFS
RELATIVE_GATE = -10.0  # LU
SHELF = 1500  # Hz, of the weighting
CHUNK_SECONDS = 4.0  # of audio that is filtered at once
WARM_UP_SECONDS = 0.25  # filtered before each chunk; the 38 Hz high-pass decays by 200 dB in it
HEADROOM = 16.0  # torchaudio clips its filters' output at full scale; K-weighting raises peaks by less than this

Floats = NDArray[np.float64]


class LoudnessMeter:
    """Measure one recording in blocks of any lengths; memory grows by 80 bytes per second of audio.

    The powers of all channels are added, as the recommendation has it for left, right and center.

    Raises MissingDependency where torchaudio cannot be imported, UsageError for a rate below 3 kHz.
    """

    def __init__(self, rate: int) -> None:
        if rate < 2 * SHELF:
            raise UsageError(f"loudness at {rate} Hz: it is defined from {2 * SHELF} Hz on; leave it out")
        self.peak = 0.0
        self._package = loudness_package()
        self._rate = rate
        self._length = round(BLOCK_SECONDS * rate)
        self._step = round(self._length / STEPS)
        self._chunk = round(CHUNK_SECONDS * rate)  # fixed, so that the caller's blocks do not change the result
        self._warm_up = round(WARM_UP_SECONDS * rate)
        self._history = 0  # number of samples that have been measured already
        self._samples: Block | None = None
        self._squares = np.zeros(0)  # of the weighted signal, from the start of the next block on
        self._powers: list[Floats] = []

    def push(self, block: Block) -> None:
        """Measure the next samples [channels, time]."""
        if not block.size:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        samples = block if self._samples is None else np.concatenate([self._samples, block], axis=1)
        while samples.shape[1] - self._history >= self._chunk:
            end = self._history + self._chunk
            self._squares = np.concatenate([self._squares, self._weighted_squares(samples[:, :end])])
            self._powers.append(powers := self._block_powers(self._squares))
            self._squares = self._squares[len(powers) * self._step :]
            samples, self._history = samples[:, end - self._warm_up :], self._warm_up
        self._samples = samples.copy()

    @property
    def loudness(self) -> float:
        """LUFS so far; NaN if the signal is shorter than a block of 0.4 s or below -70 LUFS throughout."""
        return gated(np.concatenate([*self._powers, self._block_powers(self._rest())]))

    def gain(self, lufs: float) -> float:
        """The factor that brings the recording to a loudness; 1 if it has none.

        A recording that is shorter than a block of 0.4 s counts as one block.
        """
        rest = self._rest()
        short = not self._powers and len(rest) < self._length
        loudness = gated(rest.mean(keepdims=True)) if short and len(rest) else self.loudness
        return 1.0 if math.isnan(loudness) else 10 ** ((lufs - loudness) / 20)

    def _rest(self) -> Floats:
        """The squares of the weighted signal from the start of the next block to its end."""
        if self._samples is None:
            return self._squares
        return np.concatenate([self._squares, self._weighted_squares(self._samples)])

    def _weighted_squares(self, samples: Block) -> Floats:
        """Sum over channels [time] of the squared K-weighted samples after the history."""
        import torch

        scale = max(1.0, HEADROOM * float(np.abs(samples).max(initial=0)))
        weighted = torch.from_numpy(samples.astype(np.float64) / scale)
        weighted = self._package.treble_biquad(weighted, self._rate, 4.0, SHELF, 1 / math.sqrt(2))
        weighted = self._package.highpass_biquad(weighted, self._rate, 38.0, 0.5)
        squares: Floats = (weighted[:, self._history :].numpy() * scale) ** 2
        total: Floats = squares.sum(axis=0)
        return total

    def _block_powers(self, squares: Floats) -> Floats:
        """The mean of every whole block."""
        if len(squares) < self._length:
            return np.zeros(0)
        blocks = np.lib.stride_tricks.sliding_window_view(squares, self._length)[:: self._step]
        powers: Floats = blocks.mean(axis=1)
        return powers


def gated(powers: Floats) -> float:
    """The loudness in LUFS of blocks with these powers; NaN if none passes the gates."""
    loud = powers[powers > _power(ABSOLUTE_GATE)]
    if not len(loud):
        return math.nan
    loud = loud[loud > _power(_lufs(loud.mean()) + RELATIVE_GATE)]
    return _lufs(loud.mean())


def _power(lufs: float) -> float:
    return float(10 ** ((lufs - OFFSET_DB) / 10))


def _lufs(power: float) -> float:
    return OFFSET_DB + 10 * math.log10(power)


def loudness_package() -> Any:
    """`torchaudio.functional`. Raises MissingDependency."""
    from codec.nn.resample import torchaudio_functional

    functional = torchaudio_functional()
    if functional is None:
        raise MissingDependency(
            "loudness needs torchaudio, which cannot be imported beside this torch: it comes with the extra torchaudio "
            "(`pip install '.[torchaudio]'` in the project's folder); or do without loudness"
        )
    return functional
