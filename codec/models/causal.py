"""Our own family: a causal codec that works at the frame rate and starts as a linear transform codec.

    audio ─ MDCT ─ compand ─ principal axes ─┬──────────── + ─ RVQ ─ codes
              └─ log magnitudes ─ ConvNeXt ──┘

    codes ─ RVQ ─┬─ principal axes ─ expand ─ MDCT spectrum · gain ─┬─ overlap-add ─ audio
                 └─ ConvNeXt ─┬─ gain ──────────────────────────────┘ │
                              └─ complex spectrum ────────────────────┘

The upper row of each drawing is closed form: with the networks silent it is already a codec (`fit`), so training never
has to find phase from nothing. The networks add what a linear map cannot: context, a spectrum of their own (inverse
STFT, as in Vocos), and gains that clean the linear one.

Frames are hop samples apart and two hops long, so a frame is known one hop after its middle: the delay is 2 hops.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from codec.errors import UsageError
from codec.models.base import Books, CodebookSize, Codec, CodecConfig, Hop, SampleRate
from codec.nn.conv import ConvNeXtBlock
from codec.nn.quantize import FSQ, Mixture, Quantizer, ResidualVQ, Unquantized, VectorQuantizer
from codec.nn.shapes import Audio, Latents
from codec.nn.streaming import Chain, State

Size = Annotated[int, Field(ge=1, le=2**16)]


class CausalConfig(CodecConfig):
    """Sizes of a causal codec; the defaults are `general-24k`'s."""

    family: Literal["causal"] = "causal"
    sample_rate: SampleRate = 24000
    hop: Hop = 480
    """20 ms at 24 kHz: 50 frames a second, 0.5 kbit/s a book."""
    dim: Size = 128
    """Principal axes of the spectrum, so `hop` at most."""
    books: Books = 12
    codebook_size: CodebookSize = 1024
    encoder_width: Size = 352
    encoder_blocks: Size = 5
    decoder_width: Size = 384
    decoder_blocks: Size = 6
    kernel: Size = 7
    """Frames that a block's depthwise convolution sees: 140 ms."""
    expansion: Size = 3
    companding: float = Field(0.7, gt=0, le=1)
    """Exponent of the spectrum before the principal axes: 1 codes loud parts only, near 0 all levels alike."""
    quantizer: Literal["residual", "vector", "mixture", "scalar", "none"] = "residual"
    """All but "residual" have one book; "none" makes a plain autoencoder, which has no codes."""
    lookup: Literal["l2", "cosine"] = "l2"
    """Of "residual" and "vector", like the two below."""
    project: Size | None = None
    """Dimensions in which entries are looked up; `dim` when absent."""
    learning: Literal["ema", "gradient"] = "ema"
    search: int = Field(1, ge=1)
    """Of "residual": ways through the books that encoding follows at once; 1 takes each book's nearest entry."""
    levels: tuple[Annotated[int, Field(ge=2)], ...] = ()
    """Of "scalar": as many as `dim`, and their product is `codebook_size`."""

    @model_validator(mode="after")
    def check_dim(self) -> CausalConfig:
        """A spectrum of `hop` bins has no more axes than bins."""
        if self.dim > self.hop:
            raise ValueError(
                f"dim = {self.dim} is more than hop = {self.hop}, the bins of a frame: set dim lower or hop higher"
            )
        return self

    @model_validator(mode="after")
    def check_quantizer(self) -> CausalConfig:
        """The sizes are those the quantizer has, so that whoever reads books and rates reads the truth."""
        kind = self.quantizer
        if kind != "residual" and self.books != 1:
            raise ValueError(f'quantizer "{kind}" has one book: set books = 1, not {self.books}')
        if kind != "scalar" and self.levels:
            raise ValueError(f'quantizer "{kind}" has no levels: leave them out, or set quantizer = "scalar"')
        if kind == "scalar" and (len(self.levels), math.prod(self.levels)) != (self.dim, self.codebook_size):
            raise ValueError(
                f"{len(self.levels)} levels that make {math.prod(self.levels)} codes do not fit dim {self.dim} and "
                f"codebook_size {self.codebook_size}: give one number of levels per dimension, "
                "and their product as codebook_size"
            )
        if kind not in ("residual", "vector") and (self.lookup, self.project, self.learning) != ("l2", None, "ema"):
            raise ValueError(
                f'lookup, project and learning are for "residual" and "vector", not "{kind}": leave them out'
            )
        if kind != "residual" and self.search != 1:
            raise ValueError(f'search is for "residual", not "{kind}": leave it out')
        return self


class CausalCodec(Codec):
    """Causal MDCT codec with ConvNeXt networks between; see the drawing at the top of the file."""

    config: CausalConfig

    def __init__(self, config: CausalConfig) -> None:
        super().__init__(config, overlap=config.hop)
        self.encoder = Encoder(config)
        self.quantizer = quantizer(config)
        self.decoder = Decoder(config)

    def encoder_state(self, batch: int) -> EncoderState:
        return self.encoder.initial_state(torch.zeros(batch, 1, 0, device=self.device))

    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        return self.encoder.step(audio, state)

    def decoder_state(self, batch: int) -> DecoderState:
        return self.decoder.initial_state(torch.zeros(batch, 1, 0, device=self.device))

    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        return self.decoder.step(latents, state)

    @torch.no_grad()
    def fit(self, audio: Audio) -> None:
        """Set every closed-form part from audio [batch, 1, time]: axes, scales and codebooks.

        Principal axes of the companded MDCT spectrum, then k-means for each book on what the books before it left.
        A few minutes of audio are enough; the networks stay silent.

        Raises UsageError: the audio is silent.
        """
        if not audio.any():
            raise UsageError("the audio to start from is silent: there is nothing to fit a codec to")
        time = audio.shape[-1] // self.config.hop * self.config.hop
        spectrum, _ = self.encoder.lapped.analyse(audio[:, 0, :time], self.encoder.initial_state(audio).samples)
        bins = spectrum[..., : self.config.hop].flatten(0, 1)
        companded = compand(bins, self.config.companding)
        _, axes = torch.linalg.eigh((companded.T @ companded).double())
        axes = axes[:, -self.config.dim :].flip(1).float()  # [hop, dim], strongest first
        scale = (companded @ axes).square().mean().sqrt()
        self.encoder.axes.copy_(axes / scale)
        self.decoder.axes.copy_(axes.T * scale)
        level = F.pad(bins.square().mean(dim=0).sqrt(), (0, 1), mode="constant", value=1e-4)
        self.decoder.head.bias.view(4, -1)[1].copy_(level.clamp(min=1e-4).log())
        latents, _ = self.latents_step(audio[..., :time], self.encoder_state(len(audio)))
        self.quantizer.start(latents)


def quantizer(config: CausalConfig) -> Quantizer:
    """The quantiser that the configuration names."""
    match config.quantizer:
        case "residual":
            return ResidualVQ(
                config.dim,
                config.books,
                config.codebook_size,
                lookup=config.lookup,
                project=config.project,
                learning=config.learning,
                search=config.search,
            )
        case "vector":
            return VectorQuantizer(
                config.dim,
                config.codebook_size,
                lookup=config.lookup,
                project=config.project,
                learning=config.learning,
            )
        case "mixture":
            return Mixture(config.dim, config.codebook_size)
        case "scalar":
            return FSQ(config.levels)
        case "none":
            return Unquantized(config.codebook_size)


def compand(x: Tensor, exponent: float, floor: float = 1e-4) -> Tensor:
    """sign(x) |x|^exponent, made linear below `floor` so that its slope stays finite. Inverse: `expand`."""
    out: Tensor = x.sign() * ((x.abs() + floor) ** exponent - floor**exponent)
    return out


def expand(y: Tensor, exponent: float, floor: float = 1e-4) -> Tensor:
    """Inverse of `compand`."""
    out: Tensor = y.sign() * ((y.abs() + floor**exponent) ** (1 / exponent) - floor)
    return out


class Lapped(nn.Module):
    """Lapped transform of frames two hops long under a sine window: MDCT (and MDST), exact by overlap-add.

    MDCT: Princen and Bradley 1986; the MDST of the same frame makes magnitudes that do not depend on phase.
    """

    basis: Tensor
    window: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        n = torch.arange(2 * hop, dtype=torch.float64) + 0.5
        k = torch.arange(hop, dtype=torch.float64) + 0.5
        window = torch.sin(math.pi * n / (2 * hop))
        phase = math.pi / hop * (n[:, None] + hop / 2) * k
        basis = torch.cat([torch.cos(phase), torch.sin(phase)], dim=1) * window[:, None] * math.sqrt(2 / hop)
        self.register_buffer("basis", basis.float(), persistent=False)  # [2 hop, MDCT hop + MDST hop]
        self.register_buffer("window", window.float(), persistent=False)

    def analyse(self, audio: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Spectra [batch, frames, 2 hop] of audio [batch, frames * hop], and the last hop for the next call."""
        audio = torch.cat([before, audio], dim=-1)
        frames = audio.unfold(-1, 2 * self.hop, self.hop)  # [batch, frames, 2 hop]
        return frames @ self.basis, audio[:, audio.shape[-1] - self.hop :]

    def synthesise(self, bins: Tensor, spectrum: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Audio [batch, frames * hop], one hop late, and the half frame that the next call adds to.

        `bins` [batch, frames, hop] are MDCT bins, `spectrum` [batch, frames, hop + 1] is a complex STFT.
        """
        frames = bins @ self.basis[:, : self.hop].T
        frames = frames + torch.fft.irfft(spectrum, n=2 * self.hop, norm="ortho") * self.window
        first, second = frames[..., : self.hop], frames[..., self.hop :]
        audio = first + torch.cat([before[:, None], second[:, :-1]], dim=1)  # [batch, frames, hop]
        return audio.flatten(1), second[:, -1]


class EncoderState(NamedTuple):
    """The last hop of samples, and the trunk's frames."""

    samples: Tensor
    trunk: State


class Encoder(nn.Module):
    """Audio to latents: linear axes of the companded spectrum, plus what the trunk makes of it."""

    axes: Tensor

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.lapped = Lapped(config.hop)
        self.register_buffer("axes", torch.randn(config.hop, config.dim) * config.hop**-0.5)
        self.widen = nn.Linear(2 * config.hop, config.encoder_width)
        self.trunk = trunk(config.encoder_width, config.encoder_blocks, config)
        self.norm = nn.LayerNorm(config.encoder_width)
        self.narrow = nn.Linear(config.encoder_width, config.dim)
        nn.init.zeros_(self.narrow.weight)
        nn.init.zeros_(self.narrow.bias)

    def initial_state(self, like: Tensor) -> EncoderState:
        wide = like.new_zeros(like.shape[0], self.config.encoder_width, 0)
        return EncoderState(like.new_zeros(like.shape[0], self.config.hop), self.trunk.initial_state(wide))

    def step(self, audio: Audio, state: EncoderState) -> tuple[Latents, EncoderState]:
        if audio.shape[-1] == 0:
            return audio.new_zeros(audio.shape[0], self.config.dim, 0), state
        with torch.autocast(audio.device.type, enabled=False):
            spectrum, samples = self.lapped.analyse(audio[:, 0], state.samples)
            cosine, sine = spectrum.chunk(2, dim=-1)
            companded = compand(cosine, self.config.companding)
            linear = (companded @ self.axes).transpose(1, 2)  # [batch, dim, frames]
            magnitude = torch.log(cosine.square() + sine.square() + 1e-8) * 0.25 + 2  # about -2.6 to 2
            features = torch.cat([companded * 8, magnitude], dim=-1)
        x = self.widen(features).transpose(1, 2)  # [batch, width, frames]
        x, inner = self.trunk.step(x, state.trunk)
        return linear + self.narrow(self.norm(x.transpose(1, 2))).transpose(1, 2), EncoderState(samples, inner)


class DecoderState(NamedTuple):
    """The trunk's frames, and the half frame that the next one is added to."""

    trunk: State
    half: Tensor


class Decoder(nn.Module):
    """Latents to audio: linear axes, cleaned by a gain per bin, plus a complex spectrum of the trunk's own."""

    axes: Tensor

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.lapped = Lapped(config.hop)
        self.register_buffer("axes", torch.randn(config.dim, config.hop) * config.dim**-0.5)
        self.widen = nn.Linear(config.dim, config.decoder_width)
        self.trunk = trunk(config.decoder_width, config.decoder_blocks, config)
        self.norm = nn.LayerNorm(config.decoder_width)
        self.head = nn.Linear(config.decoder_width, 4 * (config.hop + 1))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def initial_state(self, like: Tensor) -> DecoderState:
        wide = like.new_zeros(like.shape[0], self.config.decoder_width, 0)
        return DecoderState(self.trunk.initial_state(wide), like.new_zeros(like.shape[0], self.config.hop))

    def step(self, latents: Latents, state: DecoderState) -> tuple[Audio, DecoderState]:
        if latents.shape[-1] == 0:
            return latents.new_zeros(latents.shape[0], 1, 0), state
        x = self.widen(latents.transpose(1, 2)).transpose(1, 2)  # [batch, width, frames]
        x, inner = self.trunk.step(x, state.trunk)
        head = self.head(self.norm(x.transpose(1, 2)))
        with torch.autocast(latents.device.type, enabled=False):
            gain, level, real, imaginary = head.float().chunk(4, dim=-1)  # each [batch, frames, hop + 1]
            bins = expand(latents.float().transpose(1, 2) @ self.axes, self.config.companding)
            bins = bins * gain[..., :-1].clamp(-12, 3).exp()
            level = level.clamp(-14, 4).exp()
            audio, half = self.lapped.synthesise(bins, torch.complex(level * real, level * imaginary), state.half)
        return audio[:, None], DecoderState(inner, half)


def trunk(width: int, blocks: int, config: CausalConfig) -> Chain:
    """ConvNeXt blocks; layer scales start at one over their number, as in Vocos."""
    return Chain(
        ConvNeXtBlock(width, kernel=config.kernel, expansion=config.expansion, scale=1 / blocks) for _ in range(blocks)
    )
