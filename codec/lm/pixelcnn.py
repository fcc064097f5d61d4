"""The convolutional language model: gated convolutions over the grid of frames and codebooks.

A PixelCNN (van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders", section 2) that generates a
recording frame by frame, and each frame codebook by codebook. The receptive field of the cell ?, with 4 codebooks, a
context of 3 frames and one codebook to either side in each of 3 layers:

        codebook 0  1  2  3
    frame 1      .  .  .  .
    frame 2      v  v  v  v
    frame 3      v  v  v  v      v: from the vertical stack, which sees all codebooks of earlier frames
    frame 4      v  v  v  v      h: from the horizontal stack, which sees earlier codebooks of its own frame
    frame 5      h  h  ?  .         and, in every layer, the output of the vertical stack at its cell

No convolution is masked: the input of the vertical stack is shifted by one frame, the input of the horizontal stack by
one codebook, and after that both may look at their own cell. The vertical stack is complete before the first codebook
of a frame is generated: generation runs it once per frame, and then the horizontal stack once per codebook.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from codec.errors import ConfigError
from codec.lm.base import CodecLM, CodecLMConfig, CodeEmbedding, SampleFn, Size, StepTokens
from codec.lm.conditioning import ClassConditioner, CodebookSpec, Conditioning
from codec.lm.patterns import PatternConfig
from codec.nn.attention import RMSNorm
from codec.nn.shapes import Codes, Logits

GAIN = 2.94  # 1 / the RMS of tanh(a) sigmoid(b) for standard normal a and b, which keeps that RMS from layer to layer

Grid = Float[Tensor, "batch frames codebooks width"]


class PixelCNNConfig(CodecLMConfig):
    """Gated convolutions; the vertical and the horizontal stack have `layers` layers of `width` channels each."""

    family: Literal["pixelcnn"] = "pixelcnn"
    pattern: PatternConfig = PatternConfig(kind="parallel")
    width: Size = 128
    layers: int = Field(12, ge=1, le=2**10)
    context: Size = 256
    """Earlier frames in the receptive field of a cell; at most 2 to the power of `layers`."""
    kernel: Size = 3
    """Codebooks in the receptive field of a layer; an odd number, centered on a cell's own codebook."""
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def check_receptive_field(self) -> PixelCNNConfig:
        """The layers reach `context` frames."""
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel} has no center: make it an odd number")
        if self.context > 2**self.layers:
            needed = math.ceil(math.log2(self.context))
            raise ValueError(
                f"context = {self.context} frames are out of reach of layers = {self.layers}, which reach at most "
                f"{2**self.layers}: use {needed} layers"
            )
        return self

    @property
    def dilations(self) -> tuple[int, ...]:
        """Frames that each layer looks back, 0 for a layer that sees its own frame alone.

        Their sum is `context` - 1. Each is at most one more than the sum of the layers before, so every frame of the
        context is a sum of some of them and none is skipped. The receptive field grows geometrically: 16 frames in 4
        layers give 1, 2, 4, 8; 9 frames give 1, 1, 3, 3, with receptive fields of 2, 3, 6 and 9 frames.
        """
        dilations: list[int] = []
        field = 1
        for layer in range(1, self.layers + 1):
            target = math.ceil(self.context ** (layer / self.layers) - 1e-9)
            dilations.append(min(max(target - field, 1), self.context - field))
            field += dilations[-1]
        return tuple(dilations)


class PixelCNNState(NamedTuple):
    """The next position of each row, a ring buffer of earlier frames for each layer, and the conditioning.

    A layer looks back as many frames as its ring has slots, so it reads the slot that the next frame overwrites.
    """

    position: Int[Tensor, " batch"]
    rings: tuple[Grid, ...]
    conditioning: Float[Tensor, "batch layers gates"]


class GridConv(nn.Module):
    """A convolution over frames and codebooks, with `margin` zeros of padding on both sides of the codebooks."""

    def __init__(self, width: int, *, frames: int = 1, num_codebooks: int, margin: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        self.margin = margin
        # In this order the weights of one output have the memory layout of the grid, which saves convolutions a copy.
        self.weight = nn.Parameter(torch.empty(2 * width, frames, num_codebooks, width))
        self.bias = nn.Parameter(torch.zeros(2 * width))
        nn.init.normal_(self.weight, std=gain * (frames * num_codebooks * width) ** -0.5)

    def forward(self, x: Grid, dilation: int = 1) -> Grid:
        channels_first, weight = x.permute(0, 3, 1, 2), self.weight.permute(0, 3, 1, 2)
        y = F.conv2d(channels_first, weight, self.bias, padding=(0, self.margin), dilation=(dilation, 1))
        return y.permute(0, 2, 3, 1)


class Layer(nn.Module):
    """One layer of the vertical and one of the horizontal stack (figure 2 of the paper)."""

    def __init__(self, width: int, *, kernel: int, dilation: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.margin = kernel // 2
        self.dropout = dropout
        frames = 2 if dilation else 1
        self.vertical = GridConv(width, frames=frames, num_codebooks=kernel, margin=self.margin, gain=GAIN)
        self.link = nn.Linear(2 * width, 2 * width, bias=False)
        self.horizontal = GridConv(width, num_codebooks=self.margin + 1, gain=0.5**0.5)
        self.out_proj = nn.Linear(width, width)
        nn.init.normal_(self.link.weight, std=(2 * 2 * width) ** -0.5)
        nn.init.normal_(self.out_proj.weight, std=GAIN * (layers * width) ** -0.5)

    def vertical_step(self, x: Grid, earlier: Grid, conditioning: Tensor) -> tuple[Grid, Grid]:
        """The vertical stack over some frames: its output, and its input to the horizontal stack.

        `earlier` holds the frames before x: as many as the layer looks back, or the first of these if x is one frame.
        `conditioning` [batch, 2 * 2 * width] is added to the gates of both stacks.
        """
        vertical, horizontal = conditioning[:, None, None].chunk(2, dim=-1)
        y = self.vertical(torch.cat([earlier, x], dim=1), dilation=max(earlier.shape[1], 1))
        return self.gated(y + vertical), self.link(y) + horizontal

    def horizontal_step(self, x: Grid, before: Grid, vertical: Grid) -> tuple[Grid, Grid]:
        """The horizontal stack over some codebooks: its output, and the state for the codebooks after them.

        `before` is that state: the `margin` codebooks before x.
        """
        padded = torch.cat([before, x], dim=2)
        y = x + self.out_proj(self.gated(self.horizontal(padded) + vertical))
        return y, padded[:, :, padded.shape[2] - self.margin :]

    def gated(self, x: Grid) -> Grid:
        """The gated activation (equation 2 of the paper), and dropout."""
        value, gate = x.chunk(2, dim=-1)
        y = value.tanh() * gate.sigmoid()
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class PixelCNNLM(CodecLM):
    """Gated convolutions over frames and codebooks. Raises ConfigError for a configuration that contradicts itself."""

    config: PixelCNNConfig

    def __init__(self, config: PixelCNNConfig, source: CodebookSpec) -> None:
        super().__init__(config, source)
        if config.pattern.kind != "parallel":
            raise ConfigError(
                f'pixelcnn and pattern kind = "{config.pattern.kind}" both decide the codebooks of a frame one by one: '
                'set pattern.kind = "parallel"'
            )
        num_codebooks, dim, width = source.num_codebooks, source.dim, config.width
        reach = config.layers * (config.kernel // 2)
        if reach < num_codebooks - 1:
            raise ConfigError(
                f"layers = {config.layers} of kernel = {config.kernel} reach {reach} codebooks to either side, not all "
                f"of {num_codebooks}: make one of them larger"
            )
        self.vectors = CodeEmbedding(source, config.vectors)
        self.vertical_token_proj = nn.Linear(dim, width, bias=False)
        self.horizontal_token_proj = nn.Linear(dim, width, bias=False)
        self.codebook_embedding = nn.Parameter(torch.randn(2, num_codebooks, width))  # of both stacks
        self.layers = nn.ModuleList(
            Layer(width, kernel=config.kernel, dilation=dilation, layers=config.layers, dropout=config.dropout)
            for dilation in config.dilations
        )
        self.class_conditioner = ClassConditioner(source, config.layers * 4 * width, std=0.1)
        self.norm = RMSNorm(width)
        self.lm_heads = nn.Parameter(0.02 * torch.randn(num_codebooks, width, source.codebook_size + 1))
        nn.init.normal_(self.vertical_token_proj.weight, std=(2 * dim) ** -0.5 / GAIN)
        nn.init.normal_(self.horizontal_token_proj.weight, std=(2 * dim) ** -0.5)
        self.codebook_embedding.data *= 0.5**0.5 * torch.tensor([1 / GAIN, 1])[:, None, None]

    def forward(self, tokens: Codes, conditioning: Conditioning) -> Logits:
        _, zeros, class_gates = self.initial_state(conditioning)
        vertical, _ = self.vertical_stack(self.shifted(tokens), zeros, class_gates)
        own_frame = F.pad(self.horizontal_token_proj(self.normalized(tokens)), (0, 0, 1, 0))[:, :, :-1]
        x = own_frame + self.codebook_embedding[1]
        x, _ = self.horizontal_stack(x, vertical, self.no_codebooks(x))
        return self.mask_end(torch.einsum("bfqw,qwc->bqfc", self.norm(x), self.lm_heads))

    def initial_state(self, conditioning: Conditioning) -> PixelCNNState:
        gates = self.class_conditioner(conditioning)
        batch, num_codebooks, width = len(gates), self.source.num_codebooks, self.config.width
        rings = tuple(gates.new_zeros(batch, frames, num_codebooks, width) for frames in self.config.dilations)
        position = torch.zeros(batch, dtype=torch.int64, device=gates.device)
        return PixelCNNState(position, rings, gates.view(batch, self.config.layers, -1))

    def reset_rows(
        self, state: PixelCNNState, mask: Bool[Tensor, " batch"], conditioning: Conditioning
    ) -> PixelCNNState:
        fresh = self.initial_state(conditioning)
        return PixelCNNState(
            torch.where(mask, fresh.position, state.position),
            tuple(torch.where(mask[:, None, None, None], *both) for both in zip(fresh.rings, state.rings, strict=True)),
            torch.where(mask[:, None, None], fresh.conditioning, state.conditioning),
        )

    def forward_step(self, step_tokens: StepTokens, state: PixelCNNState) -> tuple[Tensor, PixelCNNState]:
        rows = torch.arange(len(step_tokens), device=step_tokens.device)
        slots = [state.position % max(ring.shape[1], 1) for ring in state.rings]
        earlier = [
            ring[rows, slot][:, None] if ring.shape[1] else ring for ring, slot in zip(state.rings, slots, strict=True)
        ]
        vertical, inputs = self.vertical_stack(step_tokens[:, :, None], earlier, state.conditioning)
        for ring, slot, x in zip(state.rings, slots, inputs, strict=True):
            if ring.shape[1]:
                ring[rows, slot] = x[:, 0]
        hidden = torch.cat(vertical, dim=1)  # [batch, layers, codebooks, 2 * width]
        return hidden, state._replace(position=state.position + 1)

    def decode_step(self, hidden: Tensor, sample_fn: SampleFn) -> StepTokens:
        x = self.codebook_embedding[1, :1].expand(len(hidden), 1, 1, -1)  # [batch, 1 frame, 1 codebook, width]
        before = self.no_codebooks(x)
        step_tokens: list[Tensor] = []
        for codebook in range(self.source.num_codebooks):
            vertical = list(hidden[:, :, None, codebook : codebook + 1].unbind(dim=1))
            y, before = self.horizontal_stack(x, vertical, before)
            logits = self.norm(y)[:, 0] @ self.lm_heads[codebook]  # [batch, 1, codebook_size + 1]
            if codebook:
                logits[..., -1] = -torch.inf
            step_tokens.append(sample_fn(logits, codebook))
            if codebook + 1 < self.source.num_codebooks:
                embedded = self.horizontal_token_proj(self.normalized(step_tokens[-1][:, :, None], codebook))
                x = embedded + self.codebook_embedding[1, codebook + 1]
        return torch.cat(step_tokens, dim=1)

    # the two stacks

    def normalized(self, tokens: Codes, first: int = 0) -> Grid:
        """Vectors of tokens [batch, codebooks, frames] from codebook `first` on, divided by each codebook's scale."""
        scale = self.vectors.scale[first : first + tokens.shape[1], None, None]
        vectors: Tensor = self.vectors(tokens, first)
        return (vectors / scale).transpose(1, 2)

    def vertical_stack(
        self, before: Codes, earlier: Sequence[Grid], conditioning: Tensor
    ) -> tuple[list[Grid], list[Grid]]:
        """Run the vertical stack on the tokens of the frame before each.

        Returns its input to every layer of the horizontal stack, and the input of each of its own layers; `earlier` as
        in `Layer.vertical_step`.
        """
        x = self.vertical_token_proj(self.normalized(before)) + self.codebook_embedding[0]
        links, inputs = [], []
        for layer, frames, gates in zip(self.layers, earlier, conditioning.unbind(dim=1), strict=True):
            assert isinstance(layer, Layer)
            inputs.append(x)
            x, link = layer.vertical_step(x, frames, gates)
            links.append(link)
        return links, inputs

    def horizontal_stack(self, x: Grid, vertical: list[Grid], before: list[Grid]) -> tuple[Grid, list[Grid]]:
        """Run the horizontal stack on the next codebooks; its output, and the state of its layers after them."""
        states = []
        for layer, link, state in zip(self.layers, vertical, before, strict=True):
            assert isinstance(layer, Layer)
            x, after = layer.horizontal_step(x, state, link)
            states.append(after)
        return x, states

    def no_codebooks(self, like: Grid) -> list[Grid]:
        """State of the horizontal stack before the first codebook."""
        batch, frames, _, width = like.shape
        return [like.new_zeros(batch, frames, self.config.kernel // 2, width)] * self.config.layers
