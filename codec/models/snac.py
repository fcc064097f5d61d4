"""SNAC, the Multi-Scale Neural Audio Codec (Siuzdak et al. 2024, "SNAC: Multi-Scale Neural Audio Codec").

    audio ─ conv ─ (3 residual units, strided conv) for each rate ─ attention ─ conv ─ latents ─ FactorizedRVQ ─ codes
    codes ─ FactorizedRVQ ─ conv ─ attention ─ (transposed conv, noise, 3 residual units) for each rate ─ conv ─ tanh

The codebooks have strides: with strides 4, 2, 1 the first has one code where the last has four. A frame is what a code
of the first covers, so it has 1 + 2 + 4 codes, and every column of codes counts as a codebook:

    first codebook     0
    second codebook    1           2
    third codebook     3     4     5     6

All convolutions look to both sides, and attention stays within its window, so a stream runs in blocks of whole windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Annotated, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from codec.models.base import (
    BlockCodec,
    CodebookSize,
    CodecConfig,
    Context,
    Dim,
    Hop,
    NumCodebooks,
    Rates,
    ReceptiveField,
    SampleRate,
    decoder_span,
    encoder_span,
)
from codec.nn.attention import apply_rotary, rotary_table
from codec.nn.products import (
    Layer,
    by_products,
    by_tiles,
    conv,
    in_turn,
    of_each,
    residual_unit,
    snake,
    strided_conv,
    transposed_conv,
)
from codec.nn.quantize.factorized import FactorizedRVQ
from codec.nn.shapes import Audio, Latents
from codec.nn.snake import Snake
from codec.nn.streaming import Checkpointable

DILATIONS = (1, 3, 9)
UNITS_CONTEXT = 3 * sum(DILATIONS)  # samples to either side that the residual units of a rate need
KERNEL = 7  # of the convolutions at either end and of residual units
HEAD_DIM = 64  # of the attention


class SNACConfig(CodecConfig):
    """Configuration of a SNAC model; the defaults are those of the 24 kHz model."""

    inference_keys: ClassVar[frozenset[str]] = frozenset({"noise_seed"})

    family: Literal["snac"] = "snac"
    sample_rate: SampleRate = 24000
    hop: Hop = 2048
    """Samples per code of the first codebook: the product of the rates times the first stride."""
    num_codebooks: NumCodebooks = 7
    """Codes per frame of all codebooks."""
    codebook_size: CodebookSize = 4096
    codebook_dim: Dim = 8
    strides: Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=16)] = (4, 2, 1)
    """Latents per code of each codebook."""
    encoder_dim: Dim = 48
    """Channels after the first convolution; each rate doubles them."""
    encoder_rates: Rates = (2, 4, 8, 8)
    decoder_dim: Dim = 1024
    """Channels before the first rate of the decoder; each rate halves them."""
    decoder_rates: Rates = (8, 8, 4, 2)
    window: int = Field(0, ge=0, le=2**12)
    """Latents that attend to one another; 0 for a model without attention."""
    depthwise: bool = True
    """Whether most convolutions do not mix channels."""
    noise: bool = True
    """Whether the decoder has layers that add noise to its signals."""
    noise_seed: int | None = Field(None, ge=0, lt=2**63)
    """Seed of that noise in each call of `decode`, as `torch.manual_seed` for the original; no noise if absent."""

    @model_validator(mode="after")
    def check_sizes(self) -> SNACConfig:
        """Check that hop and codes per frame are those of rates and strides, and that the channels divide."""
        for name in ("encoder_rates", "decoder_rates"):
            product = math.prod(getattr(self, name)) * self.strides[0]
            if product != self.hop:
                raise ValueError(f"{name} and strides make a hop of {product}, not {self.hop}: set hop = {product}")
        if any(self.strides[0] % stride for stride in self.strides):
            raise ValueError(f"strides = {list(self.strides)} do not all divide the first: change them")
        codes = sum(self.strides[0] // stride for stride in self.strides)
        if codes != self.num_codebooks:
            raise ValueError(f"the strides make {codes} codes per frame: set num_codebooks = {codes}")
        if self.decoder_dim % 2 ** len(self.decoder_rates):
            raise ValueError(f"decoder_dim = {self.decoder_dim} cannot be halved {len(self.decoder_rates)} times")
        if self.window and (self.latent_dim % HEAD_DIM or self.decoder_dim % HEAD_DIM):
            raise ValueError(f"attention needs multiples of {HEAD_DIM} channels: change encoder_dim or decoder_dim")
        return self

    @property
    def latent_dim(self) -> int:
        """Channels of the latents."""
        return self.encoder_dim << len(self.encoder_rates)

    @property
    def window_frames(self) -> int:
        """Fewest frames that are whole windows."""
        return math.lcm(self.strides[0], self.window or 1) // self.strides[0]


class ResidualUnit(nn.Module):
    """Two convolutions after Snake activations, the first one dilated, added to the input."""

    def __init__(self, dim: int, dilation: int, *, depthwise: bool) -> None:
        super().__init__()
        self.snake1 = Snake(dim)
        groups = dim if depthwise else 1
        self.conv1 = nn.Conv1d(dim, dim, 7, dilation=dilation, padding=3 * dilation, groups=groups)
        self.snake2 = Snake(dim)
        self.conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return x + y

    def as_products(self) -> Layer:
        """The unit for a signal [time, dim]."""
        return residual_unit(self.snake1, self.conv1, self.snake2, self.conv2)


class ResidualUnits(nn.Sequential):
    """One unit for each of `DILATIONS`."""

    def __init__(self, dim: int, *, depthwise: bool) -> None:
        super().__init__(*(ResidualUnit(dim, dilation, depthwise=depthwise) for dilation in DILATIONS))

    def as_products(self) -> Layer:
        """The units for a signal [time, dim]."""
        return in_turn(*(unit.as_products() for unit in self.children() if isinstance(unit, ResidualUnit)))


class LocalAttention(nn.Module):
    """Self-attention within windows of x [batch, dim, time], added to it.

    Latents of a last window that is not whole attend to one another alone.
    """

    def __init__(self, dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.heads = dim // HEAD_DIM
        self.norm = nn.LayerNorm(dim)
        self.qkv_proj = nn.Linear(dim, 3 * dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        whole = x.shape[2] // self.window * self.window
        parts = [self.attend(x[..., :whole], self.window)] if whole else []
        if whole < x.shape[2]:
            parts.append(self.attend(x[..., whole:], x.shape[2] - whole))
        return torch.cat(parts, dim=2)

    def attend(self, x: Tensor, window: int) -> Tensor:
        """The layer for whole windows of this size."""
        batch, dim, time = x.shape
        qkv = self.qkv_proj(self.norm(x.transpose(1, 2))).view(batch * time // window, window, 3, self.heads, HEAD_DIM)
        positions = torch.arange(window, device=x.device)[None]
        rotation = rotary_table(positions, HEAD_DIM, x.dtype, slowest=10000 ** (2 / HEAD_DIM - 1))
        queries, keys, values = apply_rotary(qkv.permute(2, 0, 3, 1, 4), rotation)
        attended = F.scaled_dot_product_attention(queries, keys, values)  # [windows, heads, window, HEAD_DIM]
        out: Tensor = self.out_proj(attended.transpose(1, 2).reshape(batch, time, dim))
        return x + out.transpose(1, 2)


class EncoderBlock(Checkpointable):
    """Residual units, then a strided convolution to twice the channels."""

    def __init__(self, dim: int, stride: int, *, depthwise: bool) -> None:
        super().__init__()
        self.units = ResidualUnits(dim, depthwise=depthwise)
        self.snake = Snake(dim)
        self.conv = nn.Conv1d(dim, 2 * dim, 2 * stride, stride=stride, padding=-(-stride // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.recomputed(self.strided, x)

    def strided(self, x: Tensor) -> Tensor:
        """The block without checkpointing."""
        out: Tensor = self.conv(self.snake(self.units(x)))
        return out

    def as_products(self, x: Tensor, before: nn.Conv1d | None = None) -> Tensor:
        """The block, after a convolution `before` it, for a signal [time, channels]."""
        dim, (stride,) = self.conv.in_channels, self.conv.stride
        layers = [self.units.as_products(), snake(self.snake), strided_conv(self.conv)]
        level = in_turn(*layers if before is None else [conv(before), *layers])
        context = -(-(KERNEL + UNITS_CONTEXT + stride) // stride) * stride
        return by_tiles(lambda part, _: level(part), x, width=dim, context=context, down=stride)


class DecoderBlock(Checkpointable):
    """A transposed convolution to half the channels, noise, then residual units."""

    def __init__(self, dim: int, stride: int, *, depthwise: bool, noise: bool) -> None:
        super().__init__()
        self.stride = stride
        self.snake = Snake(dim)
        self.conv = nn.ConvTranspose1d(
            dim, dim // 2, 2 * stride, stride=stride, padding=-(-stride // 2), output_padding=stride % 2
        )
        self.noise = nn.Conv1d(dim // 2, dim // 2, 1, bias=False) if noise else None
        self.units = ResidualUnits(dim // 2, depthwise=depthwise)

    def forward(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.recomputed(self.upsampled, x, self.drawn(len(x), x.shape[2], generator, x.device))

    def drawn(self, batch: int, time: int, generator: torch.Generator | None, device: torch.device) -> Tensor | None:
        """Noise [batch, 1, time * stride], if this block has noise and a generator is given."""
        if self.noise is None or generator is None:
            return None
        return torch.randn(batch, 1, self.stride * time, generator=generator).to(device)

    def upsampled(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """The block without checkpointing; noise [batch, 1, time] is given, so that computing it again is the same."""
        x = self.conv(self.snake(x))
        if self.noise is not None and noise is not None:
            x = x + noise * self.noise(x)
        out: Tensor = self.units(x)
        return out

    def as_products(self, x: Tensor, noise: Tensor | None, after: Layer | None = None) -> Tensor:
        """The block, before a layer `after` it, for a signal [time, dim] and noise [time * stride, 1]."""
        up, units = in_turn(snake(self.snake), transposed_conv(self.conv)), self.units.as_products()
        noisy = None if self.noise is None else conv(self.noise)

        def level(part: Tensor, first: int) -> Tensor:
            y = up(part)
            if noisy is not None and noise is not None:
                y = torch.addcmul(y, noise[first * self.stride :][: len(y)], noisy(y))
            y = units(y)
            return y if after is None else after(y)

        width = self.conv.out_channels * self.stride
        context = -(-(KERNEL + UNITS_CONTEXT) // self.stride) + 1
        return by_tiles(level, x, width=width, context=context, up=self.stride)


class Encoder(nn.Module):
    """Audio [batch, 1, time] to latents [batch, dim, time / product of the rates]."""

    blocks: Sequence[EncoderBlock]

    def __init__(self, config: SNACConfig) -> None:
        super().__init__()
        dims = [config.encoder_dim * 2**level for level in range(len(config.encoder_rates))]
        self.conv_in = nn.Conv1d(1, dims[0], 7, padding=3)
        blocks = nn.ModuleList(
            EncoderBlock(dim, stride, depthwise=config.depthwise)
            for dim, stride in zip(dims, config.encoder_rates, strict=True)
        )
        self.blocks = cast(Sequence[EncoderBlock], blocks)
        dim = config.latent_dim
        self.attention = LocalAttention(dim, config.window) if config.window else nn.Identity()
        self.conv_out = nn.Conv1d(dim, dim, 7, padding=3, groups=dim if config.depthwise else 1)

    def forward(self, audio: Audio) -> Tensor:
        if by_products(self, audio):
            x = of_each(self.as_products, audio.transpose(1, 2)).transpose(1, 2)
        else:
            x = self.conv_in(audio)
            for block in self.blocks:
                x = block(x)
        out: Tensor = self.conv_out(self.attention(x))
        return out

    def as_products(self, x: Tensor) -> Tensor:
        """Convolution and blocks for a signal [time, 1]."""
        for number, block in enumerate(self.blocks):
            x = block.as_products(x, before=None if number else self.conv_in)
        return x


class Decoder(nn.Module):
    """Latents [batch, dim, time / product of the rates] to audio [batch, 1, time]."""

    blocks: Sequence[DecoderBlock]

    def __init__(self, config: SNACConfig) -> None:
        super().__init__()
        dim = config.latent_dim
        if config.depthwise:
            depthwise, pointwise = nn.Conv1d(dim, dim, 7, padding=3, groups=dim), nn.Conv1d(dim, config.decoder_dim, 1)
            self.conv_in: nn.Module = nn.Sequential(depthwise, pointwise)
        else:
            self.conv_in = nn.Sequential(nn.Conv1d(dim, config.decoder_dim, 7, padding=3))
        self.attention = LocalAttention(config.decoder_dim, config.window) if config.window else nn.Identity()
        dims = [config.decoder_dim // 2**level for level in range(len(config.decoder_rates) + 1)]
        blocks = nn.ModuleList(
            DecoderBlock(dim, stride, depthwise=config.depthwise, noise=config.noise)
            for dim, stride in zip(dims, config.decoder_rates, strict=False)
        )
        self.blocks = cast(Sequence[DecoderBlock], blocks)
        self.snake = Snake(dims[-1])
        self.conv_out = nn.Conv1d(dims[-1], 1, 7, padding=3)

    def forward(self, latents: Tensor, generator: torch.Generator | None) -> Audio:
        x = self.attention(self.conv_in(latents))
        if by_products(self, x):
            return self.as_products(x.transpose(1, 2), generator).transpose(1, 2)
        for block in self.blocks:
            x = block(x, generator)
        return torch.tanh(self.conv_out(self.snake(x)))

    def as_products(self, x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Blocks and last convolution for signals [batch, time, dim]."""
        last = in_turn(snake(self.snake), conv(self.conv_out), torch.tanh)
        for number, block in enumerate(self.blocks, start=1):
            noise = block.drawn(len(x), x.shape[1], generator, x.device)
            after = last if number == len(self.blocks) else None
            each = [None] * len(x) if noise is None else noise.transpose(1, 2)
            x = of_each(partial(block.as_products, after=after), x, each)
        return x


class SNAC(BlockCodec):
    """A SNAC model, with codes and audio equal to those of the original without its noise.

    The original's decoder adds other noise in every call, in evaluation too; here `noise_seed` asks for noise, which is
    the same in every call. It starts again with every block of a stream. In training, every call has other noise.

    The original needs whole windows, and gives the codes and the audio of the silence that it adds to fill them. Here a
    signal has as many frames as it needs; its codes are the first ones of the original's. The audio of a last window
    that is not whole differs from the original's, which decodes the codes of the silence too.
    """

    config: SNACConfig
    encoder: Encoder
    quantizer: FactorizedRVQ
    decoder: Decoder

    def __init__(self, config: SNACConfig) -> None:
        super().__init__(config, decoder_delay=0)
        self.encoder = Encoder(config)
        self.quantizer = FactorizedRVQ(
            config.latent_dim, config.num_codebooks, config.codebook_size, config.codebook_dim, strides=config.strides
        )
        self.decoder = Decoder(config)
        self.block_frames = config.window_frames

    @property
    def codebook_choices(self) -> tuple[int, ...]:
        return tuple(accumulate(self.config.strides[0] // stride for stride in self.config.strides))

    def analyze(self, audio: Audio) -> Latents:
        frames = self.frame_spec.frames(audio.shape[-1])
        if not frames:
            return audio.new_zeros(len(audio), self.config.latent_dim * self.config.strides[0], 0)
        missing = -frames % self.config.window_frames
        latents = self.encoder(F.pad(audio, (0, missing * self.config.hop)))
        return self.quantizer.fold(latents[..., : frames * self.config.strides[0]])

    def synthesize(self, latents: Latents) -> Audio:
        if latents.shape[-1] == 0:
            return latents.new_zeros(len(latents), 1, 0)
        seed = int(torch.randint(2**62, ())) if self.training else self.config.noise_seed
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        audio: Audio = self.decoder(self.quantizer.unfold(latents), generator)
        return audio

    def receptive_field(self) -> ReceptiveField:
        config = self.config
        around = max(0, config.window - 1)  # at most, for a latent at either end of its window
        steps = config.strides[0]
        first, last = encoder_span(-3 - around, steps - 1 + 3 + around, config.encoder_rates, UNITS_CONTEXT)
        encoder = Context(past=-((first - 3) // config.hop), future=(last + 3) // config.hop)
        first, last = decoder_span(-3, config.hop - 1 + 3, config.decoder_rates, UNITS_CONTEXT)
        first, last = first - around - 3, last + around + 3
        return ReceptiveField(encoder, Context(past=-(first // steps), future=last // steps))
