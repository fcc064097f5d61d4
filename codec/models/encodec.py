"""EnCodec (Défossez et al. 2022, "High Fidelity Neural Audio Compression", sections 3.1 and 3.2).

    audio ─ conv ─ (residual unit, strided conv) for each ratio ─ LSTM ─ conv ─ latents ─ ResidualVQ ─ codes
    codes ─ ResidualVQ ─ conv ─ LSTM ─ (transposed conv, residual unit) for each ratio ─ conv ─ audio

Each convolution pads its signal at both ends as the original does, so the codes of any length are the original's. The
24 kHz model is causal, but by reflection its first frame needs the first seven. The models of MusicGen and AudioGen
look ahead. All of these stream with true state, because the LSTM depends on the whole past.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from codec.models.base import (
    UNBOUNDED,
    CodebookSize,
    CodecConfig,
    Context,
    Dim,
    Hop,
    NumCodebooks,
    Rates,
    ReceptiveField,
    SampleRate,
    SegmentCodec,
    StepCodec,
)
from codec.nn.padded import ELU, LSTM, PaddedConv1d, Padding, ResidualUnit, Style, TrimmedConvTranspose1d
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.shapes import Audio, Latents
from codec.nn.streaming import Delayed, DelayedChain, State

Kernel = Annotated[int, Field(ge=1, le=63)]
Few = Annotated[int, Field(ge=1, le=8)]
TILE = 1 << 17  # numbers in a signal that stays in the cache of a CPU core
TILE_FRAMES = 96  # frames that pass through all levels at a time, so that their products have enough rows


class SEANetConfig(CodecConfig):
    """Keys that the networks of all EnCodec models share; the defaults are those of the 24 and 48 kHz models."""

    hop: Hop = 320
    """Samples per frame: the product of the ratios."""
    codebook_size: CodebookSize = 1024
    dim: Dim = 128
    """Channels of the latents."""
    filters: Dim = 32
    """Channels after the first convolution; each ratio of the encoder doubles them."""
    ratios: Rates = (8, 5, 4, 2)
    """Strides of the decoder; the encoder has them in reverse order."""
    kernel: Kernel = 7
    last_kernel: Kernel = 7
    residual_kernel: Kernel = 3
    residual_units: Few = 1
    """Residual units per ratio."""
    dilation_base: Few = 2
    """The dilation of a residual unit is that of the unit before it times this."""
    compress: Dim = 2
    """The first convolution of a residual unit divides the channels by this."""
    lstm_layers: Few = 2
    padding: Padding = "reflect"
    shortcut: bool = True
    """Whether the input of a residual unit is projected before it is added to the output."""

    @model_validator(mode="after")
    def check_sizes(self) -> SEANetConfig:
        """Check that the hop is the product of the ratios, and that the channels can be divided."""
        if (product := math.prod(self.ratios)) != self.hop:
            raise ValueError(f"ratios make a hop of {product}, but hop = {self.hop}: set hop = {product}")
        if self.filters % self.compress:
            raise ValueError(f"filters = {self.filters} cannot be divided by compress = {self.compress}")
        return self


class EnCodecSegmentsConfig(SEANetConfig):
    """Configuration of an EnCodec model that codes segments; the defaults are those of the 48 kHz stereo model."""

    family: Literal["encodec_segments"] = "encodec_segments"
    sample_rate: SampleRate = 48000
    num_codebooks: NumCodebooks = 16
    channels: Annotated[int, Field(ge=1, le=64)] = 2
    segment: Annotated[int, Field(ge=1, le=2**24)] = 48000
    """Samples of a segment: 1 s at 48 kHz."""
    segment_stride: Annotated[int, Field(ge=1, le=2**24)] = 47520
    """Samples between the beginnings of segments: they overlap by 1 %."""


class EnCodecConfig(SEANetConfig):
    """Configuration of an EnCodec model that streams; the defaults are those of the 24 kHz model."""

    family: Literal["encodec"] = "encodec"
    sample_rate: SampleRate = 24000
    num_codebooks: NumCodebooks = 32
    causal: bool = True


def residual_units(config: SEANetConfig, channels: int, style: Style) -> list[Delayed]:
    """The residual units of a level; each dilates its first convolution more than the one before."""
    return [
        ResidualUnit(
            channels,
            channels // config.compress,
            config.residual_kernel,
            style,
            dilation=config.dilation_base**number,
            shortcut=config.shortcut,
        )
        for number in range(config.residual_units)
    ]


def tile(style: Style, channels: int) -> int | None:
    """Samples of a signal that stay in the cache; None where a signal is normalized as a whole."""
    return None if style.group_norm else -(-TILE // channels)


def encoder(config: SEANetConfig, style: Style, *, channels: int = 1) -> DelayedChain:
    """Audio [batch, time, channels] to latents [batch, frames, dim]."""
    dim = config.filters
    levels: list[Delayed] = [PaddedConv1d(channels, dim, config.kernel, style)]
    for stride in reversed(config.ratios):
        down = PaddedConv1d(dim, 2 * dim, 2 * stride, style, stride=stride)
        levels.append(DelayedChain([*residual_units(config, dim, style), ELU(), down], tile=tile(style, dim)))
        dim *= 2
    return DelayedChain(
        [
            DelayedChain(levels, tile=None if style.group_norm else TILE_FRAMES * config.hop),
            LSTM(dim, config.lstm_layers),
            ELU(),
            PaddedConv1d(dim, config.dim, config.last_kernel, style),
        ]
    )


def decoder(config: SEANetConfig, style: Style, *, channels: int = 1) -> DelayedChain:
    """Latents [batch, frames, dim] to audio [batch, time, channels]."""
    dim = config.filters * 2 ** len(config.ratios)
    conv_in, lstm = PaddedConv1d(config.dim, dim, config.kernel, style), LSTM(dim, config.lstm_layers)
    levels: list[Delayed] = []
    for stride in config.ratios:
        up = TrimmedConvTranspose1d(dim, dim // 2, style, stride=stride)
        dim //= 2
        levels.append(DelayedChain([ELU(), up, *residual_units(config, dim, style)], tile=tile(style, stride * dim)))
    conv_out = PaddedConv1d(dim, channels, config.last_kernel, style)
    levels.append(DelayedChain([ELU(), conv_out], tile=tile(style, dim)))
    return DelayedChain([conv_in, lstm, DelayedChain(levels, tile=None if style.group_norm else TILE_FRAMES)])


class EnCodec(StepCodec):
    """An EnCodec model that streams: 24 kHz, or the ones of MusicGen (32 kHz) and AudioGen (16 kHz)."""

    config: EnCodecConfig
    encoder: DelayedChain
    decoder: DelayedChain
    own_padding = True

    def __init__(self, config: EnCodecConfig) -> None:
        super().__init__(config, decoder_delay=0)
        style = Style(config.causal, config.padding)
        self.encoder = encoder(config, style)
        self.quantizer = ResidualVQ(config.dim, config.num_codebooks, config.codebook_size)
        self.decoder = decoder(config, style)

    def encoder_state(self, batch: int) -> State:
        return self.encoder.initial_state(torch.zeros(batch, device=self.device))

    def latents_step(self, audio: Audio, state: State, *, last: bool = False) -> tuple[Latents, State]:
        latents, state = self.encoder.step(audio.transpose(1, 2), state, last=last)
        return latents.transpose(1, 2), state

    def latents_end(self, audio: Audio, state: State) -> Latents:
        return self.latents_step(audio, state, last=True)[0]

    def decoder_state(self, batch: int) -> State:
        return self.decoder.initial_state(torch.zeros(batch, device=self.device))

    def audio_step(self, latents: Latents, state: State, *, last: bool = False) -> tuple[Audio, State]:
        audio, state = self.decoder.step(latents.transpose(1, 2), state, last=last)
        return audio.transpose(1, 2), state

    def audio_end(self, latents: Latents, state: State) -> Audio:
        return self.audio_step(latents, state, last=True)[0]

    def receptive_field(self) -> ReceptiveField:
        hop, frame = self.config.hop, 1000  # a frame far from the beginning
        encoder = self.encoder.needs(frame) // hop - frame
        decoder = self.decoder.needs(frame * hop + hop - 1) - frame
        return ReceptiveField(Context(UNBOUNDED, encoder), Context(UNBOUNDED, decoder))

    @property
    def delay(self) -> int:
        """As for other families; with reflection, the beginning of a signal waits for the samples to be reflected."""
        hop = self.config.hop
        return max(super().delay, (self.encoder.needs(self.decoder.needs(0)) // hop + 1) * hop)


class EnCodecSegments(SegmentCodec):
    """An EnCodec model for segments: 48 kHz stereo. Convolutions look ahead, and each is normalized over its segment.

    The original refuses to decode signals whose last segment is one frame long (`_linear_overlap_add` fails); here all
    lengths are decoded.
    """

    config: EnCodecSegmentsConfig
    encoder: DelayedChain
    decoder: DelayedChain

    def __init__(self, config: EnCodecSegmentsConfig) -> None:
        self.channels = config.channels
        super().__init__(config, segment=config.segment, stride=config.segment_stride)
        style = Style(causal=False, padding=config.padding, group_norm=True)
        self.encoder = encoder(config, style, channels=config.channels)
        self.quantizer = ResidualVQ(config.dim, config.num_codebooks, config.codebook_size)
        self.decoder = decoder(config, style, channels=config.channels)

    def segment_scale(self, audio: Audio) -> Tensor:
        return audio.mean(dim=1).square().mean(dim=1, keepdim=True).sqrt() + 1e-8

    def analyze_segment(self, audio: Audio) -> Latents:
        latents: Tensor = self.encoder(audio.transpose(1, 2))
        return latents.transpose(1, 2)

    def synthesize_segment(self, latents: Latents) -> Audio:
        audio: Tensor = self.decoder(latents.transpose(1, 2))
        return audio.transpose(1, 2)
