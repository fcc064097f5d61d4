"""Measure the level of a recording, the RMS of its loud part, block by block; the gain to another level.

    meter = LevelMeter(8000)
    for block in blocks:  # [channels, time]
        meter.push(block)
    scaled = audio * meter.gain(-20.0)  # the RMS of its loud part is 0.1

A target may be a loudness in LUFS instead (`codec.io.loudness`).

The loud part consists of the 20 ms frames whose level is within 30 dB of the loudest frame, so pauses and silence
around a word do not count: a word has the same level in a short clip and in a long one.

    frame          1    2    3    4    5
    level, dBFS  -70  -22  -18  -40  -55     loudest -18: frames 2, 3 and 4 count, the RMS over them is -21.3 dBFS
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec.errors import UsageError
from codec.io.audio import Block
from codec.io.loudness import LoudnessMeter, loudness_package

FRAME_SECONDS = 0.02
LOUD_DB = 30.0  # below the loudest frame
MOST_GAIN_DB = 40.0
LOWEST_DB, HIGHEST_DB = -60.0, 0.0  # bounds of a target level
BINS_PER_DB = 10  # levels of frames are rounded down to 0.1 dB
RANGE_DB = 200  # above and below full scale; levels beyond it count in the outermost bins


Unit: TypeAlias = Literal["dBFS", "LUFS"]
KEYS: dict[Unit, str] = {"dBFS": "level_db", "LUFS": "loudness"}  # of token stores and language models


@dataclass(frozen=True)
class Level:
    """A level to scale recordings to: dBFS of the RMS of the loud part, or LUFS."""

    value: float
    unit: Unit = "dBFS"

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"

    @property
    def fields(self) -> dict[str, Any]:
        """The level as a field of token stores and language models."""
        return {KEYS[self.unit]: self.value}

    def gain(self, blocks: Iterable[Block], *, rate: int) -> np.float32:
        """The factor that scales a recording, in blocks [channels, time] at `rate` Hz, to this level.

        It is at most 40 dB, and at most 1 / peak; 1 for silence. Raises MissingDependency for LUFS without torchaudio.
        """
        meter = LevelMeter(rate) if self.unit == "dBFS" else LoudnessMeter(rate)
        for block in blocks:
            meter.push(block)
        limit = min(10 ** (MOST_GAIN_DB / 20), 1 / meter.peak) if meter.peak else 1.0
        return np.float32(min(meter.gain(self.value), limit))


def stored_level(fields: Mapping[str, Any]) -> Level | None:
    """The level in the fields of a token store or language model; None if they have none."""
    found = ((unit, fields.get(key)) for unit, key in KEYS.items())
    return next((Level(float(value), unit) for unit, value in found if value is not None), None)


def level_of(level_db: float | None, loudness: float | None) -> Level | None:
    """The target of two options, of which one or none is given.

    Raises UsageError for both, or for one that is not from -60 to 0; MissingDependency for loudness without torchaudio.
    """
    if level_db is not None and loudness is not None:
        raise UsageError("a level and a loudness contradict each other: give one of them")
    level = Level(float(level_db)) if level_db is not None else None
    if loudness is not None:
        level = Level(float(loudness), "LUFS")
        loudness_package()
    if level is not None and not LOWEST_DB <= level.value <= HIGHEST_DB:  # NaN is refused too
        raise UsageError(
            f"a level of {level.value:g} {level.unit}: give one from {LOWEST_DB:g} to {HIGHEST_DB:g}, such as -20"
        )
    return level


class LevelMeter:
    """Measure one recording in blocks of any lengths, in constant memory.

    Frames of 20 ms follow one another from the first sample; an incomplete last frame counts only if there is no
    complete one. Frame levels are rounded down to 0.1 dB; frames within 30 dB of the loudest are the loud part. All
    channels are measured together.
    """

    def __init__(self, rate: int) -> None:
        self.peak = 0.0
        self._frame = max(1, round(FRAME_SECONDS * rate))
        self._rest: Block | None = None
        self._counts = np.zeros(2 * RANGE_DB * BINS_PER_DB, np.int64)  # frames of each level
        self._powers = np.zeros(len(self._counts))  # the sums of their mean squares

    def push(self, block: Block) -> None:
        """Measure the next samples [channels, time]."""
        if not block.size:
            return
        self.peak = max(self.peak, float(np.abs(block).max()))
        audio = block if self._rest is None else np.concatenate([self._rest, block], axis=1)
        channels, time = audio.shape
        whole = time // self._frame * self._frame
        self._rest = audio[:, whole:].copy()
        frames = audio[:, :whole].reshape(channels, -1, self._frame).swapaxes(0, 1)  # [frames, channels, time]
        self._count(np.square(frames.reshape(-1, channels * self._frame), dtype=np.float64).mean(axis=1))

    def _count(self, powers: NDArray[np.float64]) -> None:
        bins = np.floor(BINS_PER_DB * (10 * np.log10(powers.clip(min=1e-30)) + RANGE_DB)).astype(np.int64)
        bins = bins.clip(0, len(self._counts) - 1)
        np.add.at(self._counts, bins, 1)
        np.add.at(self._powers, bins, powers)  # added one by one, so that blocks do not change the sums

    @property
    def rms(self) -> float:
        """RMS of the loud part so far, full scale 1; 0 for silence and without samples."""
        (filled,) = np.nonzero(self._counts)
        if not len(filled):  # shorter than a frame
            rest = self._rest
            return 0.0 if rest is None or not rest.size else math.sqrt(np.square(rest.astype(np.float64)).mean())
        first = max(0, int(filled[-1]) - round(LOUD_DB * BINS_PER_DB))
        return math.sqrt(self._powers[first:].sum() / self._counts[first:].sum())

    def gain(self, level_db: float) -> float:
        """The factor that scales the RMS of the loud part to `level_db` dBFS; 1 for silence."""
        rms = self.rms
        return 10 ** (level_db / 20) / rms if rms else 1.0
