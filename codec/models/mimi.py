"""Mimi, the codec of Moshi (Défossez et al. 2024, section 3.3).

    audio ─ conv ─ (residual unit, strided conv) for each rate ─ conv ─ transformer ─ strided conv ─ SplitRVQ ─ codes
    codes ─ SplitRVQ ─ transposed conv ─ transformer ─ conv ─ (transposed conv, residual unit) for each rate ─ conv

Everything is causal: 80 ms of audio become a frame, which depends on nothing after them. The transformers run at twice
the frame rate and see the last 10 s.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from codec.models.base import (
    CodebookSize,
    CodecConfig,
    Context,
    Dim,
    Hop,
    NumCodebooks,
    Rates,
    ReceptiveField,
    SampleRate,
    StepCodec,
)
from codec.nn.attention import AttentionBlock, SlidingTransformer, TransformerState
from codec.nn.conv import CausalConv1d
from codec.nn.quantize.split import SplitRVQ
from codec.nn.seanet import CausalConvTranspose1d, decoder_stages, encoder_stages
from codec.nn.shapes import Audio, Latents
from codec.nn.streaming import Chain, State, Stateful

KERNEL, LAST_KERNEL = 7, 3  # of the convolutions at either end of encoder and decoder


class MimiConfig(CodecConfig):
    """Configuration of a Mimi model; the defaults are those of the released one."""

    family: Literal["mimi"] = "mimi"
    sample_rate: SampleRate = 24000
    hop: Hop = 1920
    """Samples per frame: a multiple of the product of the rates."""
    num_codebooks: NumCodebooks = Field(32, ge=2)
    codebook_size: CodebookSize = 2048
    codebook_dim: Dim = 256
    filters: Dim = 64
    """Channels after the first convolution; each rate doubles them."""
    rates: Rates = (4, 5, 6, 8)
    """Strides of the encoder; the decoder has them in reverse order."""
    width: Dim = 512
    """Channels of the latents and of the transformers."""
    layers: int = Field(8, ge=1, le=256)
    heads: int = Field(8, ge=1, le=256)
    hidden: Dim = 2048
    """Width of the feed-forward layers."""
    context: int = Field(250, ge=1, le=2**16)
    """Steps that a step of a transformer attends to, itself included."""

    @model_validator(mode="after")
    def check_sizes(self) -> MimiConfig:
        """Check that the hop is a multiple of the product of the rates, and that the width divides into heads."""
        product = math.prod(self.rates)
        if self.hop % product:
            raise ValueError(f"the rates make steps of {product} samples, but hop = {self.hop}: set a multiple of them")
        if self.width % (2 * self.heads):
            raise ValueError(f"width = {self.width} does not divide into {self.heads} heads of an even size")
        return self

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels before each rate of the encoder, and after the last."""
        return tuple(self.filters * 2**level for level in range(len(self.rates) + 1))

    @property
    def steps(self) -> int:
        """Steps of the transformers per frame."""
        return self.hop // math.prod(self.rates)


class LayerScale(nn.Module):
    """A learned factor for each channel (Touvron et al. 2021, section 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((width,), 0.01))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """x + scale * residual."""
        return torch.addcmul(x, residual, self.scale)


class MimiBlock(AttentionBlock):
    """Self-attention and a GELU feed-forward layer, each after a layer norm and before a layer scale."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config.width, config.heads, norm=nn.LayerNorm(config.width))
        self.attention_scale = LayerScale(config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)
        self.mlp_scale = LayerScale(config.width)

    def residual_mlp(self, x: Tensor, attended: Tensor, memory: object) -> Tensor:
        x = self.attention_scale.add(x, self.out_proj(attended))
        hidden = nn.functional.gelu(self.up_proj(self.mlp_norm(x)))
        return self.mlp_scale.add(x, self.down_proj(hidden))


def transformer(config: MimiConfig) -> SlidingTransformer:
    """A transformer whose frequencies are those of RoPE: 10000^(-2i / head_dim) for pair i."""
    head_dim = config.width // config.heads
    return SlidingTransformer(
        (MimiBlock(config) for _ in range(config.layers)),
        nn.Identity(),
        width=config.width,
        heads=config.heads,
        context=config.context,
        slowest=10000 ** (2 / head_dim - 1),
    )


class ReplicatingConv1d(CausalConv1d):
    """`CausalConv1d` that takes its first input for everything before it. The state is empty until then."""

    def initial_state(self, like: Tensor) -> Tensor:
        return like.new_zeros(like.shape[0], self.in_channels, 0)

    def after_state(self, x: Tensor, state: Tensor) -> Tensor:
        if not state.shape[-1]:
            state = x[..., :1].expand(-1, -1, self.context)
        return torch.cat([state, x], dim=-1)


class NetworkState(NamedTuple):
    """States of the convolutions at the sample rate, of the transformer, and of the resampling to the frame rate."""

    convolutions: State
    transformer: TransformerState
    resampling: Tensor


class Network(nn.Module):
    """Parts that encoder and decoder share."""

    convolutions: Chain
    transformer: SlidingTransformer
    resampling: Stateful

    def initial_state(self, like: Tensor) -> NetworkState:
        """The state before the first input."""
        return NetworkState(
            self.convolutions.initial_state(like),
            self.transformer.initial_state(like),
            self.resampling.initial_state(like),
        )


class Encoder(Network):
    """Audio [batch, 1, frames * hop] to latents [batch, width, frames]."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.convolutions = encoder_stages(
            config.dims, config.rates, width=config.width, kernel=KERNEL, last_kernel=LAST_KERNEL
        )
        self.transformer = transformer(config)
        self.resampling = ReplicatingConv1d(
            config.width, config.width, kernel=2 * config.steps, stride=config.steps, bias=False
        )

    def step(self, audio: Audio, state: NetworkState) -> tuple[Latents, NetworkState]:
        x, convolutions = self.convolutions.step(audio, state.convolutions)
        x, inner = self.transformer.step(x.transpose(1, 2), state.transformer)
        x, resampling = self.resampling.step(x.transpose(1, 2), state.resampling)
        return x, NetworkState(convolutions, inner, resampling)

    def forward(self, audio: Audio) -> Latents:
        x = self.convolutions(audio)
        x = self.transformer(x.transpose(1, 2))
        latents: Tensor = self.resampling(x.transpose(1, 2))
        return latents


class Decoder(Network):
    """Latents [batch, width, frames] to audio [batch, 1, frames * hop]."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.resampling = CausalConvTranspose1d(
            config.width,
            config.width,
            kernel=2 * config.steps,
            stride=config.steps,
            groups=config.width,
            bias=False,
            elu=False,
        )
        self.transformer = transformer(config)
        self.convolutions = decoder_stages(
            config.dims[::-1], config.rates[::-1], width=config.width, kernel=KERNEL, last_kernel=LAST_KERNEL
        )

    def step(self, latents: Latents, state: NetworkState) -> tuple[Audio, NetworkState]:
        x, resampling = self.resampling.step(latents, state.resampling)
        x, inner = self.transformer.step(x.transpose(1, 2), state.transformer)
        x, convolutions = self.convolutions.step(x.transpose(1, 2), state.convolutions)
        return x, NetworkState(convolutions, inner, resampling)

    def forward(self, latents: Latents) -> Audio:
        x = self.transformer(self.resampling(latents).transpose(1, 2))
        audio: Tensor = self.convolutions(x.transpose(1, 2))
        return audio


class Mimi(StepCodec):
    """Mimi, with codes and audio equal to those of the originals.

    The original's stream takes whole frames only, and after 10 s its transformers forget the oldest step too early, so
    that its codes are no longer those of the whole signal; here they are.
    """

    config: MimiConfig
    encoder: Encoder
    quantizer: SplitRVQ
    decoder: Decoder
    step_frames = 125

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config, decoder_delay=0)
        self.encoder = Encoder(config)
        self.quantizer = SplitRVQ(config.width, config.num_codebooks, config.codebook_size, config.codebook_dim)
        self.decoder = Decoder(config)

    def receptive_field(self) -> ReceptiveField:
        config = self.config
        attended = config.layers * (config.context - 1)
        first = -config.steps - attended - (LAST_KERNEL - 1)  # the input that frame 0 depends on, layer by layer
        for rate in reversed(config.rates):
            first = (first - 1) * rate - 2
        encoder = Context(past=-((first - KERNEL + 1) // config.hop), future=0)
        first = -(LAST_KERNEL - 1)
        for rate in config.rates:
            first = (first - 2) // rate - 1
        decoder = Context(past=1 - (first - KERNEL + 1 - attended) // config.steps, future=0)
        return ReceptiveField(encoder, decoder)

    def analyze(self, audio: Audio) -> Latents:
        if self.training or torch.is_grad_enabled():  # because a cache of keys cannot be written to then
            latents: Tensor = self.encoder(audio)
            return latents
        return super().analyze(audio)

    def synthesize(self, latents: Latents) -> Audio:
        if self.training or torch.is_grad_enabled():
            audio: Tensor = self.decoder(latents)
            return audio
        return super().synthesize(latents)

    def encoder_state(self, batch: int) -> State:
        return self.encoder.initial_state(torch.zeros(batch, 1, 0, device=self.device))

    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        if not audio.shape[-1]:
            return audio.new_zeros(len(audio), self.config.width, 0), state
        return self.encoder.step(audio, state)

    def decoder_state(self, batch: int) -> State:
        return self.decoder.initial_state(torch.zeros(batch, 1, 0, device=self.device))

    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        if not latents.shape[-1]:
            return latents.new_zeros(len(latents), 1, 0), state
        return self.decoder.step(latents, state)
