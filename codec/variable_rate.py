"""Variable bit rate: packets that are soft beside the loudest before them take fewer codebooks.

With a range of 15 dB and 12 codebooks:

    below the loudest packet    0 to 15 dB   20 dB   25 dB   35 dB and more
    codebooks                   12           9       6       1

The loudest packet counts for less by FALL dB per second, so that one bang does not make all that follows coarse. Where
each packet is as loud as the others, all have all codebooks.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from codec.errors import UsageError
from codec.frames import FrameSpec
from codec.io.audio import Block
from codec.io.bitstream import Codes, Scale

SLOPE = 20.0  # dB, from all codebooks to one
FALL = 0.5  # dB per second
WIDEST = 100.0  # dB
SILENCE = -200.0  # dB


class Coded(NamedTuple):
    """Codes [rows, codebooks, frames] of a packet and their scale [rows, frames], None for a model without one."""

    codes: Codes
    scale: Scale | None


class VariableRate:
    """Cut codes into packets, each with the codebooks that its level asks for."""

    def __init__(self, spec: FrameSpec, *, within: float, choices: Sequence[int], frames_per_packet: int) -> None:
        """`within` is the range in dB below the loudest packet in which all codebooks are kept, `choices` are the
        numbers of codebooks that the model decodes, the largest of them that of the codes that are pushed.

        Raises UsageError for a range outside 0 to WIDEST.
        """
        if not 0 <= within <= WIDEST:
            raise UsageError(f"--vbr {within:g}: use 0 to {WIDEST:g} dB below the loudest packet")
        self._spec, self._within, self._choices = spec, within, sorted(choices)
        self._frames = frames_per_packet
        self._energies: list[float] = []  # of the frames that are not in a packet yet
        self._rest: Block | None = None  # samples of an incomplete frame
        self._pending: list[Coded] = []
        self._loudest = SILENCE
        self._kept = 1  # codebooks of the packet before

    def listen(self, audio: Block) -> None:
        """Take audio [..., time] at the model's rate, before its codes."""
        block = audio.reshape(-1, audio.shape[-1])
        if self._rest is not None:
            block = np.concatenate([self._rest, block], axis=1)
        frames = block.shape[1] // self._spec.hop
        self._rest = block[:, frames * self._spec.hop :]
        squares = np.square(block[:, : frames * self._spec.hop], dtype=np.float64).sum(axis=0)
        self._energies += squares.reshape(frames, self._spec.hop).sum(axis=1).tolist()

    def packets(self, codes: Codes, scale: Scale | None) -> Iterator[Coded]:
        """Take the next codes [rows, codebooks, frames]; yield the packets that are complete."""
        self._pending.append(Coded(codes, scale))
        if sum(part.codes.shape[2] for part in self._pending) < self._frames:
            return
        whole = _joined(self._pending)
        for first in range(0, whole.codes.shape[2] - self._frames + 1, self._frames):
            yield self._thinned(_part(whole, first, first + self._frames))
        self._pending = [_part(whole, whole.codes.shape[2] // self._frames * self._frames, None)]

    def flush(self) -> Iterator[Coded]:
        """Yield the last packet, if there is one."""
        if self._pending and (rest := _joined(self._pending)).codes.shape[2]:
            yield self._thinned(rest)
        self._pending = []

    def _thinned(self, packet: Coded) -> Coded:
        frames = packet.codes.shape[2]
        energies, self._energies = self._energies[:frames], self._energies[frames:]
        mean = sum(energies) / max(1, len(energies) * self._spec.hop)
        kept = self._codebooks(10 * math.log10(mean) if mean else SILENCE, frames)
        if len(energies) < frames:  # the last packet, whose codes may hold audio of the packet before
            kept = max(kept, self._kept)
        self._kept = kept
        return Coded(packet.codes[:, :kept], packet.scale)

    def _codebooks(self, level: float, frames: int) -> int:
        """How many codebooks a packet of this level (dB) keeps."""
        self._loudest = max(level, self._loudest - FALL * self._spec.seconds(frames * self._spec.hop))
        kept = (self._within + SLOPE - (self._loudest - level)) / SLOPE
        wanted = max(1, round(self._choices[-1] * min(1.0, kept)))
        return next(choice for choice in self._choices if choice >= wanted)


def _joined(parts: Sequence[Coded]) -> Coded:
    scales = [part.scale for part in parts if part.scale is not None]
    codes = np.concatenate([part.codes for part in parts], axis=2)
    return Coded(codes, np.concatenate(scales, axis=1) if scales else None)


def _part(whole: Coded, first: int, end: int | None) -> Coded:
    return Coded(whole.codes[:, :, first:end], None if whole.scale is None else whole.scale[:, first:end])
