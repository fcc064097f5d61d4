"""The convolutional language model: gated convolutions over the grid of frames and codebooks.

A PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2) that draws a
recording frame by frame from the top, and each frame from its first codebook. What the cell ? sees, with 4 codebooks, a context
of 3 frames and one codebook to either side in each of 3 layers:

              codebook 0  1  2  3
    frame 1        .  .  .  .
    frame 2        v  v  v  v
    frame 3        v  v  v  v      v: by the vertical stack, which sees all codebooks of earlier frames
    frame 4        v  v  v  v      h: by the horizontal stack, which sees earlier codebooks of its own frame
    frame 5        h  h  ?  .         and, in every layer, what the vertical stack found for its cell

Nothing is masked: the vertical stack hears the frames one frame later, the horizontal stack the codebooks one codebook later,
and from there on both may look at their own place. The vertical stack knows all about a frame before its first codebook is
decided; generation runs it once for a frame, and then the horizontal stack once for a codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.lm.base import (
    ClassConditioner,
    CodebookSpec,
    CodecLM,
    CodecLMConfig,
    CodeEmbedding,
    Conditioning,
    Hidden,
    SampleFn,
    StepTokens,
)
from codec.lm.patterns import PatternConfig
from codec.nn.shapes import Codes, Logits

GAIN = 2.94  # 1 / the RMS of tanh(a) sigmoid(b), a and b standard normal: with it gates stay so, layer after layer

Grid = Float[Tensor, "batch frames codebooks width"]


class PixelCNNConfig(CodecLMConfig):
    """Gated convolutions; both stacks have `layers` layers of `width` channels."""

    family: Literal["pixelcnn"] = "pixelcnn"
    pattern: PatternConfig = PatternConfig(kind="parallel")
    width: int = Field(128, ge=1)
    layers: int = Field(12, ge=1)
    context: int = Field(256, ge=1)
    """Earlier frames that a cell sees; at most 2 to the power of `layers`."""
    kernel: int = Field(3, ge=1)
    """Codebooks that a cell sees in a layer: its own and half of the others to either side, so an odd number."""
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def check_field(self) -> PixelCNNConfig:
        """The layers reach as far as they shall."""
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} has no middle: make it an odd number")
        if self.context > 2**self.layers:
            needed = math.ceil(math.log2(self.context))
            raise ValueError(
                f"context = {self.context} frames are out of reach for layers = {self.layers}, which see at most "
                f"{2**self.layers}: give it {needed} layers"
            )
        return self

    @property
    def dilations(self) -> tuple[int, ...]:
        """How many frames each layer looks back, 0 for a layer that has to look no further.

        Their sum is `context` - 1, and none is larger than the sum of those before it by more than one, so that every
        frame is the sum of some of them: no frame is left out. They grow evenly, as the frames seen do: for 16 frames
        in 4 layers 1, 2, 4, 8; for 9 frames 1, 1, 3, 3, with which 2, 3, 6 and 9 frames are seen.
        """
        dilations: list[int] = []
        seen = 1
        for layer in range(1, self.layers + 1):
            goal = math.ceil(self.context ** (layer / self.layers) - 1e-9)
            dilations.append(min(max(goal - seen, 1), self.context - seen))
            seen += dilations[-1]
        return tuple(dilations)


class PixelState(NamedTuple):
    """How many frames were seen, the last ones of them in rings, one for each layer, and what the model was told.

    A layer looks back as many frames as its ring has: what it sees is where the next frame has its place.
    """

    seen: int
    rings: tuple[Grid, ...]
    told: Float[Tensor, "batch layers gates"]


class GridConv(nn.Module):
    """A convolution over frames and codebooks; `margin` zeros stand to the left and right of the codebooks."""

    def __init__(self, width: int, *, frames: int = 1, num_codebooks: int, margin: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        self.margin = margin
        # In this order the weights of one output lie as the grid does, which spares convolutions a copy of them.
        self.weight = nn.Parameter(torch.empty(2 * width, frames, num_codebooks, width))
        self.bias = nn.Parameter(torch.zeros(2 * width))
        nn.init.normal_(self.weight, std=gain * (frames * num_codebooks * width) ** -0.5)

    def forward(self, x: Grid, dilation: int = 1) -> Grid:
        channels_first, weight = x.permute(0, 3, 1, 2), self.weight.permute(0, 3, 1, 2)
        y = F.conv2d(channels_first, weight, self.bias, padding=(0, self.margin), dilation=(dilation, 1))
        return y.permute(0, 2, 3, 1)


class Layer(nn.Module):
    """A layer of the vertical and one of the horizontal stack (figure 2 of the paper)."""

    def __init__(self, width: int, *, kernel: int, dilation: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.sides = kernel // 2
        self.dropout = dropout
        frames = 2 if dilation else 1  # 0: it looks at its own frame alone
        self.vertical = GridConv(width, frames=frames, num_codebooks=kernel, margin=self.sides, gain=GAIN)
        self.link = nn.Linear(2 * width, 2 * width, bias=False)
        self.horizontal = GridConv(width, num_codebooks=self.sides + 1, gain=0.5**0.5)
        self.mix = nn.Linear(width, width)
        nn.init.normal_(self.link.weight, std=(2 * 2 * width) ** -0.5)
        nn.init.normal_(self.mix.weight, std=GAIN * (layers * width) ** -0.5)

    def down(self, x: Grid, earlier: Grid, told: Tensor) -> tuple[Grid, Grid]:
        """The vertical stack over some frames: its output, and what it tells the horizontal one.

        `earlier` are as many frames before as the layer looks back, or of them the first, if x is but one; `told`
        [batch, 2 * 2 * width] is what both gates are told.
        """
        vertical, horizontal = told[:, None, None].chunk(2, dim=-1)
        found = self.vertical(torch.cat([earlier, x], dim=1), dilation=max(earlier.shape[1], 1))
        return self.gated(found + vertical), self.link(found) + horizontal

    def across(self, x: Grid, before: Grid, found: Grid) -> tuple[Grid, Grid]:
        """The horizontal stack over some codebooks: its output, and the last codebooks; `before` are the `sides` before."""
        beside = torch.cat([before, x], dim=2)
        y = x + self.mix(self.gated(self.horizontal(beside) + found))
        return y, beside[:, :, beside.shape[2] - self.sides :]

    def gated(self, x: Grid) -> Grid:
        """Equation 2 of the paper, and dropout."""
        value, gate = x.chunk(2, dim=-1)
        y = value.tanh() * gate.sigmoid()
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class PixelCNN(CodecLM):
    """Gated convolutions over frames and codebooks. Raises ConfigError for a configuration that makes none."""

    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig, source: CodebookSpec) -> None:
        super().__init__(config, source)
        if config.pattern.kind != "parallel":
            raise ConfigError(
                f'a pixelcnn decides the codebooks of a frame one by one, pattern kind = "{config.pattern.kind}" does so '
                'too: take pattern.kind = "parallel"'
            )
        num_codebooks, dim, width = source.num_codebooks, source.dim, config.width
        beside = config.layers * (config.kernel // 2)
        if beside < num_codebooks - 1:
            raise ConfigError(
                f"layers = {config.layers} of kernel = {config.kernel} see {beside} codebooks to either side, not all of "
                f"{num_codebooks}: make one of them larger"
            )
        self.vectors = CodeEmbedding(source, config.vectors)
        self.listen_down = nn.Linear(dim, width, bias=False)
        self.listen_across = nn.Linear(dim, width, bias=False)
        self.codebook = nn.Parameter(torch.randn(2, num_codebooks, width))
        self.layers = nn.ModuleList(
            Layer(width, kernel=config.kernel, dilation=dilation, layers=config.layers, dropout=config.dropout)
            for dilation in config.dilations
        )
        self.told = ClassConditioner(source, config.layers * 4 * width, std=0.1)
        self.norm = nn.RMSNorm(width)
        self.heads = nn.Parameter(0.02 * torch.randn(num_codebooks, width, source.codebook_size + 1))
        nn.init.normal_(self.listen_down.weight, std=(2 * dim) ** -0.5 / GAIN)
        nn.init.normal_(self.listen_across.weight, std=(2 * dim) ** -0.5)
        self.codebook.data *= 0.5**0.5 * torch.tensor([1 / GAIN, 1])[:, None, None]

    def forward(self, columns: Codes, conditions: Conditioning) -> Logits:
        _, nothing, told = self.initial_state(conditions)
        found, _ = self.down(self.shifted(columns), nothing, told)
        x = F.pad(self.listen_across(self.cells(columns)), (0, 0, 1, 0))[:, :, :-1] + self.codebook[1]
        x, _ = self.across(x, found, self.no_codebooks(x))
        return self.without_end(torch.einsum("bfqw,qwc->bqfc", self.norm(x), self.heads))

    def initial_state(self, conditions: Conditioning) -> PixelState:
        batch, width = len(conditions.classes), self.config.width
        told = self.told(conditions)
        rings = tuple(
            told.new_zeros(batch, frames, self.source.num_codebooks, width) for frames in self.config.dilations
        )
        return PixelState(0, rings, told.view(batch, self.config.layers, -1))

    def forward_step(self, column: StepTokens, state: PixelState) -> tuple[Hidden, PixelState]:
        earlier = []
        for ring in state.rings:
            place = state.seen % max(ring.shape[1], 1)
            earlier.append(ring[:, place : place + 1])  # none in a ring of no frames
        found, heard = self.down(column[:, :, None], earlier, state.told)
        for frame, x in zip(earlier, heard, strict=True):
            frame.copy_(x)
        return torch.cat(found, dim=1), state._replace(seen=state.seen + 1)  # [batch, layers, codebooks, 2 * width]

    def decode_step(self, context: Hidden, sample_fn: SampleFn) -> StepTokens:
        heard = self.codebook[1, :1].expand(
            len(context), 1, 1, -1
        )  # [batch, frames, codebooks, width] of one frame and codebook
        before = self.no_codebooks(heard)
        column: list[Tensor] = []
        for codebook in range(self.source.num_codebooks):
            x, before = self.across(heard, list(context[:, :, None, codebook : codebook + 1].unbind(dim=1)), before)
            logits = self.norm(x)[:, 0] @ self.heads[codebook]  # [batch, 1, classes]
            if codebook:
                logits[..., -1] = -torch.inf
            column.append(sample_fn(logits, codebook))
            if codebook + 1 < self.source.num_codebooks:
                heard = (
                    self.listen_across(self.cells(column[-1][:, :, None], codebook)) + self.codebook[1, codebook + 1]
                )
        return torch.cat(column, dim=1)

    # the two stacks

    def cells(self, codes: Codes, first: int = 0) -> Grid:
        """Vectors of codes [batch, codebooks, frames] of the codebooks from `first` on, each in units of its codebook's length."""
        scale = self.vectors.scale[first : first + codes.shape[1], None, None]
        vectors: Tensor = self.vectors(codes, first)
        return (vectors / scale).transpose(1, 2)

    def down(self, before: Codes, earlier: Sequence[Grid], told: Tensor) -> tuple[list[Grid], list[Grid]]:
        """What the vertical stack tells each layer of the horizontal one, from the columns before each, and what each
        layer of its own heard; `earlier` as in `Layer.down`."""
        x = self.listen_down(self.cells(before)) + self.codebook[0]
        found, heard = [], []
        for layer, frames, one in zip(self.layers, earlier, told.unbind(dim=1), strict=True):
            assert isinstance(layer, Layer)
            heard.append(x)
            x, tells = layer.down(x, frames, one)
            found.append(tells)
        return found, heard

    def across(self, x: Grid, found: list[Grid], before: list[Grid]) -> tuple[Grid, list[Grid]]:
        """The horizontal stack over the next codebooks, and what it needs of them for those after."""
        last = []
        for layer, tells, beside in zip(self.layers, found, before, strict=True):
            assert isinstance(layer, Layer)
            x, after = layer.across(x, beside, tells)
            last.append(after)
        return x, last

    def no_codebooks(self, like: Grid) -> list[Grid]:
        """What the horizontal stack needs before the first codebook."""
        batch, frames, _, width = like.shape
        return [like.new_zeros(batch, frames, self.config.kernel // 2, width)] * self.config.layers
