"""DAC: the Descript Audio Codec (Kumar et al. 2023, "High-Fidelity Audio Compression with Improved RVQGAN").

    audio ─ conv ─ (3 residual units, strided conv) for each rate ─ conv ─ latents ─ FactorizedRVQ ─ codes
    codes ─ FactorizedRVQ ─ conv ─ (transposed conv, 3 residual units) for each rate ─ conv ─ tanh ─ audio

All convolutions look to both sides, so a stream runs in blocks that overlap by the receptive field.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from codec.errors import UsageError
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
    split_scale,
)
from codec.nn.init import trunc_normal_
from codec.nn.products import (
    Layer,
    by_products,
    by_tiles,
    conv,
    in_turn,
    of_each,
    residual_unit,
    snake,
    transposed_conv,
)
from codec.nn.quantize.factorized import FactorizedRVQ
from codec.nn.shapes import Audio, Codes, Latents
from codec.nn.snake import Snake
from codec.nn.streaming import Checkpointable
from codec.nn.tiles import in_tiles

DILATIONS = (1, 3, 9)
KERNEL = 7  # of residual units and of the convolutions at the ends that look at audio
TILE = 1 << 20  # numbers in a tile of the decoder: its products need long rows more than a place in the cache
UNITS_CONTEXT = 3 * sum(DILATIONS)  # samples to either side that the residual units of a rate need


class DACConfig(CodecConfig):
    """Configuration of a DAC model; the defaults are those of the 44.1 kHz model at 8 kbit/s."""

    family: Literal["dac"] = "dac"
    sample_rate: SampleRate = 44100
    hop: Hop = 512
    """Samples per frame: the product of the rates."""
    num_codebooks: NumCodebooks = 9
    codebook_size: CodebookSize = 1024
    codebook_dim: Dim = 8
    encoder_dim: Dim = 64
    """Channels after the first convolution; each rate doubles them."""
    encoder_rates: Rates = (2, 4, 8, 8)
    decoder_dim: Dim = 1536
    """Channels before the first rate of the decoder; each rate halves them."""
    decoder_rates: Rates = (8, 8, 4, 2)
    latent_dim: Dim | None = None
    """Channels of the latents; those after the last rate of the encoder if absent."""

    @model_validator(mode="after")
    def check_rates(self) -> DACConfig:
        """Check that the hop is the product of the rates of either side, and that the decoder can be halved."""
        for name in ("encoder_rates", "decoder_rates"):
            product = math.prod(getattr(self, name))
            if product != self.hop:
                raise ValueError(f"{name} make a hop of {product}, but hop = {self.hop}: set hop = {product}")
        if self.decoder_dim < 2 ** len(self.decoder_rates):
            raise ValueError(
                f"decoder_dim = {self.decoder_dim} cannot be halved {len(self.decoder_rates)} times: set "
                f"{2 ** len(self.decoder_rates)} or more"
            )
        return self

    @property
    def latents(self) -> int:
        """Channels of the latents."""
        return self.latent_dim or self.encoder_dim * 2 ** len(self.encoder_rates)


class ResidualUnit(nn.Module):
    """Two convolutions after Snake activations, the first one dilated, added to the input.

    The encoder leaves the convolutions to torch, because another order of their sums can change a code.
    """

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = Snake(dim)
        self.conv1 = nn.Conv1d(dim, dim, 7, dilation=dilation, padding=3 * dilation)
        self.snake2 = Snake(dim)
        self.conv2 = nn.Conv1d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.snake2(self.conv1(self.snake1(x))))
        return x + y if torch.is_grad_enabled() else y.add_(x)

    def as_products(self) -> Layer:
        """The unit for a signal [time, dim]."""
        return residual_unit(self.snake1, self.conv1, self.snake2, self.conv2)


class EncoderBlock(Checkpointable):
    """Residual units, then a strided convolution to twice the channels."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.units = nn.ModuleList(ResidualUnit(dim, dilation) for dilation in DILATIONS)
        self.snake = Snake(dim)
        self.conv = nn.Conv1d(dim, 2 * dim, 2 * stride, stride=stride, padding=-(-stride // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.recomputed(self.strided, x)

    def strided(self, x: Tensor) -> Tensor:
        """The block without checkpointing."""
        return in_tiles(self.of_tile, x, context=UNITS_CONTEXT + self.stride, down=self.stride)

    def of_tile(self, x: Tensor) -> Tensor:
        """The block on one tile."""
        for unit in self.units:
            x = unit(x)
        out: Tensor = self.conv(self.snake(x))
        return out


class DecoderBlock(Checkpointable):
    """A transposed convolution to half the channels, then residual units.

    An odd stride leaves one sample too few; it is added at the end, so that a frame always gives a hop.
    """

    units: Sequence[ResidualUnit]

    def __init__(self, dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.snake = Snake(dim)
        self.conv = nn.ConvTranspose1d(
            dim, out_dim, 2 * stride, stride=stride, padding=-(-stride // 2), output_padding=stride % 2
        )
        units = nn.ModuleList(ResidualUnit(out_dim, dilation) for dilation in DILATIONS)
        self.units = cast(Sequence[ResidualUnit], units)

    def forward(self, x: Tensor) -> Tensor:
        return self.recomputed(self.upsampled, x)

    def upsampled(self, x: Tensor) -> Tensor:
        """The block without checkpointing."""
        x = self.conv(self.snake(x))
        for unit in self.units:
            x = unit(x)
        return x

    def as_products(self, x: Tensor, *after: Layer) -> Tensor:
        """The block, and the layers `after` it, for a signal [time, dim]."""
        units = (unit.as_products() for unit in self.units)
        level = in_turn(snake(self.snake), transposed_conv(self.conv), *units, *after)
        context = -(-(KERNEL + UNITS_CONTEXT) // self.stride) + 1
        width = self.stride * self.conv.out_channels
        return by_tiles(lambda part, _: level(part), x, width=width, context=context, up=self.stride, tile=TILE)


class Encoder(nn.Module):
    """Audio [batch, 1, frames * hop] to latents [batch, dim, frames]."""

    blocks: Sequence[EncoderBlock]

    def __init__(self, config: DACConfig) -> None:
        super().__init__()
        dims = [config.encoder_dim * 2**level for level in range(len(config.encoder_rates) + 1)]
        self.conv_in = nn.Conv1d(1, dims[0], 7, padding=3)
        blocks = nn.ModuleList(
            EncoderBlock(dim, stride) for dim, stride in zip(dims, config.encoder_rates, strict=False)
        )
        self.blocks = cast(Sequence[EncoderBlock], blocks)
        self.snake = Snake(dims[-1])
        self.conv_out = nn.Conv1d(dims[-1], config.latents, 3, padding=1)

    def forward(self, audio: Audio) -> Latents:
        x = self.conv_in(audio)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.conv_out(self.snake(x))
        return out


class Decoder(nn.Module):
    """Latents [batch, dim, frames] to audio [batch, 1, frames * hop]."""

    blocks: Sequence[DecoderBlock]

    def __init__(self, config: DACConfig) -> None:
        super().__init__()
        dims = [config.decoder_dim // 2**level for level in range(len(config.decoder_rates) + 1)]
        self.conv_in = nn.Conv1d(config.latents, dims[0], 7, padding=3)
        blocks = nn.ModuleList(
            DecoderBlock(dim, out_dim, stride)
            for dim, out_dim, stride in zip(dims, dims[1:], config.decoder_rates, strict=False)
        )
        self.blocks = cast(Sequence[DecoderBlock], blocks)
        self.snake = Snake(dims[-1])
        self.conv_out = nn.Conv1d(dims[-1], 1, 7, padding=3)

    def forward(self, latents: Latents) -> Audio:
        x = self.conv_in(latents)
        if by_products(self, x):
            return of_each(self.as_products, x.transpose(1, 2)).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return torch.tanh(self.conv_out(self.snake(x)))

    def as_products(self, x: Tensor) -> Tensor:
        """Blocks and last convolution for a signal [frames, dim]."""
        *blocks, last = self.blocks
        for block in blocks:
            x = block.as_products(x)
        return last.as_products(x, snake(self.snake), conv(self.conv_out), torch.tanh)


class DAC(BlockCodec):
    """A DAC model. The original's `encode` and `decode` give the same codes and audio; its `compress` does not,
    because it changes the level and encodes window by window (`encode_windows`).

    The decoder gives a hop of audio per frame; the original's at 16 and 24 kHz ends 8 samples earlier.
    """

    config: DACConfig

    def __init__(self, config: DACConfig) -> None:
        super().__init__(config, decoder_delay=0)
        self.encoder = Encoder(config)
        self.quantizer = FactorizedRVQ(config.latents, config.num_codebooks, config.codebook_size, config.codebook_dim)
        self.decoder = Decoder(config)
        self.apply(_init_weights)

    def analyze(self, audio: Audio) -> Latents:
        if audio.shape[-1] == 0:
            return audio.new_zeros(len(audio), self.config.latents, 0)
        latents: Tensor = self.encoder(audio)
        return latents

    def synthesize(self, latents: Latents) -> Audio:
        if latents.shape[-1] == 0:
            return latents.new_zeros(len(latents), 1, 0)
        audio: Tensor = self.decoder(latents)
        return audio

    def frame_span(self) -> tuple[int, int]:
        """First and last sample that frame 0 depends on."""
        first, last = encoder_span(-1, 1, self.config.encoder_rates, UNITS_CONTEXT)
        return first - 3, last + 3

    def receptive_field(self) -> ReceptiveField:
        hop = self.config.hop
        first, last = self.frame_span()
        encoder = Context(past=-(first // hop), future=last // hop)
        first, last = decoder_span(-3, hop - 1 + 3, self.config.decoder_rates, UNITS_CONTEXT)
        return ReceptiveField(encoder, Context(past=3 - first, future=last + 3))

    @torch.no_grad()
    def encode_windows(self, audio: Audio, *, seconds: float, num_codebooks: int | None = None) -> Codes:
        """Codes of audio as the original's `compress` joins them in a .dac file, [batch, codebooks, codes].

        It encodes windows of `seconds`, rounded up to whole frames, without padding. A window decodes to fewer samples
        than it has, and the next one begins that much later, which is not at a frame. So the codes depend on the length
        of the windows, and there are more of them than frames: with windows of 1 s, 1.3 times as many at 44.1 kHz and
        twice as many at 16 kHz. Of audio that is not longer than a window they are those of `encode`. `compress` also
        brings the level to -16 LUFS; here it stays as it is.
        """
        hop, time = self.config.hop, audio.shape[2]
        if time <= seconds * self.sample_rate:
            return split_scale(self.encode(audio, num_codebooks=num_codebooks))[0]
        first, last = self.frame_span()
        before = first % hop  # zeros that move the frames of `encode` to where a window without padding has them
        window = -(-int(seconds * self.sample_rate) // hop) * hop
        frames = (window - (last - first + 1)) // hop + 1
        if self.samples_without_padding(frames) < 1:
            raise UsageError(f"windows of {seconds:g} s decode to no samples: set 1.0 or more")
        nothing = -(last - first + 1) // hop + 1  # frames of no samples; the original computes its delay from them
        delay = (nothing * hop - hop + last - first + 1 - self.samples_without_padding(nothing)) // 2
        padded = F.pad(audio, (delay, delay + window))
        codes = []
        for begin in range(0, time, self.samples_without_padding(frames)):
            part = F.pad(padded[..., begin : begin + window], (before, 0))
            found = split_scale(self.encode(part, num_codebooks=num_codebooks))[0]
            codes.append(found[..., (before - first) // hop :][..., :frames])
        return torch.cat(codes, dim=2)

    def samples_without_padding(self, frames: int) -> int:
        """Samples that the decoder would make of frames if its convolutions did not pad."""
        samples = frames - (KERNEL - 1)
        for rate in self.config.decoder_rates:
            samples = (samples + 1) * rate - 2 * UNITS_CONTEXT
        return samples - (KERNEL - 1)


def _init_weights(module: nn.Module) -> None:
    """Initialize convolutions as the original does."""
    if isinstance(module, nn.Conv1d):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
