"""Codebook patterns: the order in which a language model generates the codes of a recording.

A recording is a grid of cells, one code per (frame, codebook); a pattern assigns every cell to a step. Three codebooks:

    parallel             delay 0, 1, 2           flatten                       coarse first, blocks of 2 frames
    step        0  1  2  step        0  1  2  3  step        0  1  2  3  4  5  step        0  1  2  3  4  5
    codebook 0  0  1  2  codebook 0  0  1  2  3  codebook 0  0  .  .  1  .  .  codebook 0  0  1  .  .  2  3
    codebook 1  0  1  2  codebook 1  .  0  1  2  codebook 1  .  0  .  .  1  .  codebook 1  .  .  0  1  .  .
    codebook 2  0  1  2  codebook 2  .  .  0  1  codebook 2  .  .  0  .  .  1  codebook 2  .  .  0  1  .  .

(the numbers are frames, a dot is a special token). All are one formula of each codebook's `delay` and `group`, of the
number of groups G and of the frames W of a block:

    step(frame, codebook) = ((frame + delay) // W) * W * G  +  group * W  +  (frame + delay) % W

Delayed and flattened orders are from MusicGen (Copet et al. 2023, section 2.1). So is coarse first, but for recordings
of a known length; here it goes block by block, so that it has no maximum length either.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor

from codec.config import Config
from codec.errors import ConfigError
from codec.nn.shapes import Codes

MAX_DELAY = 2**16  # frames of a delay, or of a block
PerCodebook: TypeAlias = tuple[Annotated[int, Field(le=MAX_DELAY)], ...]


class PatternConfig(Config):
    """The pattern; keys of another kind are refused."""

    kind: Literal["parallel", "delay", "flatten", "coarse_first"] = "delay"
    delays: PerCodebook | None = None
    """For kind "delay": delay of each codebook in frames, 0, 1, 2, … by default; (0, 1, 1) is a partial delay."""
    groups: PerCodebook | None = None
    """For kind "flatten": the step within a frame of each codebook, one each by default; (0, 1, 1) is partial."""
    block: int | None = Field(None, ge=1, le=MAX_DELAY)
    """For kind "coarse_first": frames whose first codebook is generated before their others, 32 by default."""

    @model_validator(mode="after")
    def check_kind(self) -> PatternConfig:
        """Refuse keys of another kind."""
        for key, kind in (("delays", "delay"), ("groups", "flatten"), ("block", "coarse_first")):
            if getattr(self, key) is not None and self.kind != kind:
                raise ValueError(f'{key} is for kind = "{kind}", not for "{self.kind}": leave it out')
        return self


class Pattern:
    """The pattern of `num_codebooks` codebooks, for sequences of any length.

    `per_frame` is the number of steps per frame, `latency_frames` the number of later frames that have begun when a
    frame is complete. Raises ConfigError for delays or groups that do not fit the codebooks.
    """

    def __init__(self, config: PatternConfig, num_codebooks: int) -> None:
        zeros = (0,) * num_codebooks
        self.config = config
        self.num_codebooks = num_codebooks
        self.delays, self.groups, self.block = zeros, zeros, 1
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
            if values[0] != 0 or min(values) < 0:  # none may precede codebook 0, which has the end token
                raise ConfigError(f"pattern.{name} = {list(values)} must begin with 0 and have none below")
        self.per_frame = max(self.groups) + 1
        if set(self.groups) != set(range(self.per_frame)):
            raise ConfigError(f"pattern.groups = {list(self.groups)} skip a step: number them 0, 1, 2, …")
        self.period = self.block * self.per_frame  # steps after which the special tokens repeat
        self.latency_frames = max(self.delays) + (self.block - 1 if self.per_frame > 1 else 0)

    def steps(self, frames: int) -> int:
        """Number of steps up to the last cell of the first `frames` frames."""
        return 0 if frames == 0 else max(self._step(frames - 1, codebook) for codebook in range(self.num_codebooks)) + 1

    def whole_frames(self, steps: int) -> int:
        """Number of frames whose cells all lie within the first `steps` steps."""
        frames = max(0, steps // self.per_frame - self.latency_frames - 1)  # a lower bound
        while self.steps(frames + 1) <= steps:
            frames += 1
        return frames

    def cells(self, first: int, last: int) -> Tensor:
        """Frames [codebooks, steps] of the codes that steps `first` to before `last` generate; -1: a special token."""
        delays, groups = torch.tensor(self.delays)[:, None], torch.tensor(self.groups)[:, None]
        steps = torch.arange(first, last)
        inside = steps % self.period
        frames = steps // self.period * self.block + inside % self.block - delays
        return torch.where((inside // self.block == groups) & (frames >= 0), frames, -1)

    def lay_out(self, codes: Codes, special_token: int) -> Codes:
        """Tokens [batch, codebooks, steps] of codes [batch, codebooks, frames], `special_token` in empty cells."""
        frames = codes.shape[-1]
        cells = self.cells(0, self.steps(frames)).to(codes.device)
        filled = (cells >= 0) & (cells < frames)
        tokens = codes.gather(2, torch.where(filled, cells, 0).expand(len(codes), -1, -1)) if frames else codes
        return torch.where(filled, tokens, special_token)

    def step_of_cells(self, first: int, last: int) -> Tensor:
        """Step that generates each cell of the frames from `first` to before `last` [codebooks, frames]."""
        rows = [[self._step(frame, codebook) for frame in range(first, last)] for codebook in range(self.num_codebooks)]
        return torch.tensor(rows, dtype=torch.int64).reshape(self.num_codebooks, last - first)

    def _step(self, frame: int, codebook: int) -> int:
        block, inside = divmod(frame + self.delays[codebook], self.block)
        return block * self.period + self.groups[codebook] * self.block + inside
