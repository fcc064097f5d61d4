"""Patterns: in which order a language model decides the codes of a recording.

A recording is a grid of cells, one code for each (frame, codebook); a pattern puts every cell into one step. Three codebooks:

    parallel              delay 0, 1, 2          flatten                     coarse first, blocks of 2 frames
    step    0  1  2       step    0  1  2  3     step    0  1  2  3  4  5    step    0  1  2  3  4  5
    codebook 0  0  1  2       codebook 0  0  1  2  3     codebook 0  0  .  .  1  .  .    codebook 0  0  1  .  .  2  3
    codebook 1  0  1  2       codebook 1  .  0  1  2     codebook 1  .  0  .  .  1  .    codebook 1  .  .  0  1  .  .
    codebook 2  0  1  2       codebook 2  .  .  0  1     codebook 2  .  .  0  .  .  1    codebook 2  .  .  0  1  .  .

(the numbers are frames, a dot is a hole). All of them are one formula, of each codebook's `delay` and `group`, of the
number of groups G and of the frames W of a block:

    step(frame, codebook) = ((frame + delay) // W) * W * G  +  group * W  +  (frame + delay) % W

Delay and the flattened orders are of Copet et al. 2023, section 2.1; coarse-first is there too, but for recordings of a
known length: here it goes block by block, so that it has no end either.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from codec.config import Config
from codec.errors import ConfigError
from codec.nn.shapes import Codes

FARTHEST = 2**16  # frames of a delay, or of a block
Places: TypeAlias = tuple[Annotated[int, Field(le=FARTHEST)], ...]


class PatternConfig(Config):
    """Which pattern; what another kind needs may not be set."""

    kind: Literal["parallel", "delay", "flatten", "coarse_first"] = "delay"
    delays: Places | None = None
    """Of kind "delay": frames that each codebook comes later, 0, 1, 2, … unless said; (0, 1, 1) is a partial delay."""
    groups: Places | None = None
    """Of kind "flatten": which step of a frame decides each codebook, a step each unless said; (0, 1, 1) is partial."""
    block: int | None = Field(None, ge=1, le=FARTHEST)
    """Of kind "coarse_first": frames whose first codebook is decided before their others, 32 unless said."""

    @model_validator(mode="after")
    def check_kind(self) -> PatternConfig:
        """No key of another kind."""
        for key, kind in (("delays", "delay"), ("groups", "flatten"), ("block", "coarse_first")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f'{key} is for kind = "{kind}", not for "{self.kind}": leave it out')
        return self


class Pattern:
    """A pattern for so many codebooks; it knows no length, so a sequence may go on for ever.

    `per_frame` is the number of steps a frame takes, `latency_frames` how many later frames have begun when a frame is
    whole. Raises ConfigError for delays or groups that do not go with the codebooks.
    """

    def __init__(self, config: PatternConfig, num_codebooks: int) -> None:
        none = (0,) * num_codebooks
        self.config = config
        self.num_codebooks = num_codebooks
        self.delays, self.groups, self.block = none, none, 1
        match config.kind:
            case "delay":
                self.delays = tuple(range(num_codebooks)) if config.delays is None else config.delays
            case "flatten":
                self.groups = tuple(range(num_codebooks)) if config.groups is None else config.groups
            case "coarse_first":
                self.groups, self.block = (0, *(1,) * (num_codebooks - 1)), config.block or 32
        for name in ("delays", "groups"):
            values = getattr(self, name)
            if len(values) != num_codebooks:
                raise ConfigError(
                    f"pattern.{name} = {list(values)} is for {len(values)} codebooks, not {num_codebooks}"
                )
            if values[0] != 0 or min(values) < 0:  # the end is told in codebook 0, and no codebook may be past it then
                raise ConfigError(f"pattern.{name} = {list(values)} must begin at 0 and never go below")
        self.per_frame = max(self.groups) + 1
        if set(self.groups) != set(range(self.per_frame)):
            raise ConfigError(f"pattern.groups = {list(self.groups)} leave out a step: number them 0, 1, 2, …")
        self.period = self.block * self.per_frame  # steps after which the holes are the same again
        self.latency_frames = max(self.delays) + (self.block - 1 if self.per_frame > 1 else 0)

    def steps(self, frames: int) -> int:
        """Steps up to the last cell of the first `frames` frames."""
        return 0 if frames == 0 else max(self._step(frames - 1, codebook) for codebook in range(self.num_codebooks)) + 1

    def whole_frames(self, steps: int) -> int:
        """Frames all of whose cells lie within the first `steps` steps."""
        frames = max(0, steps // self.per_frame - self.latency_frames - 1)  # never too many
        while self.steps(frames + 1) <= steps:
            frames += 1
        return frames

    def cells(self, first: int, last: int) -> Tensor:
        """The frame [codebooks, steps] that each of the steps from `first` to before `last` decides, -1 for a hole."""
        delays, groups = torch.tensor(self.delays)[:, None], torch.tensor(self.groups)[:, None]
        steps = torch.arange(first, last)
        inside = steps % self.period
        frames = steps // self.period * self.block + inside % self.block - delays
        return torch.where((inside // self.block == groups) & (frames >= 0), frames, -1)

    def lay_out(self, codes: Codes, special_token: int) -> Codes:
        """Columns [batch, codebooks, steps] of codes [batch, codebooks, frames]; `hole` where a step decides nothing."""
        frames = codes.shape[-1]
        cells = self.cells(0, self.steps(frames)).to(codes.device)
        there = (cells >= 0) & (cells < frames)
        taken = codes.gather(2, torch.where(there, cells, 0).expand(len(codes), -1, -1)) if frames else codes
        return torch.where(there, taken, special_token)

    def read_back(self, columns: Codes, frames: int) -> Codes:
        """Codes [batch, codebooks, frames] of columns that hold all their cells; inverse of `lay_out`."""
        return columns.gather(2, self.places(0, frames).to(columns.device).expand(len(columns), -1, -1))

    def places(self, first: int, last: int) -> Tensor:
        """The step [codebooks, frames] that decides each cell of the frames from `first` to before `last`."""
        rows = [[self._step(frame, codebook) for frame in range(first, last)] for codebook in range(self.num_codebooks)]
        return torch.tensor(rows, dtype=torch.int64).reshape(self.num_codebooks, last - first)

    def _step(self, frame: int, codebook: int) -> int:
        block, inside = divmod(frame + self.delays[codebook], self.block)
        return block * self.period + self.groups[codebook] * self.block + inside
