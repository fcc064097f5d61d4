"""The causal family: networks at the frame rate around a linear transform codec.

    audio ─ MDCT ─┬─ envelope ─ nearest entry ─────────── codebook 0
                  ├─ ÷ decoded envelope ─ compand ─ PCA ─┬─ + ─ RVQ ─ codebooks 1, 2, ...
                  └─ log magnitudes ─ ConvNeXt ──────────────┘

    codebooks ─ RVQ ─┬─ PCA ─ expand ─ · decoded envelope ─ · gain ─ inverse MDCT ─ + ─ audio
                     └─ ConvNeXt ─┬─ gain ────────────────────┘                     │
                                  └─ ConvNeXt, twice the rate ─ spectrum, noise ────┘

The upper row of each drawing is computed in closed form (`init_from_audio`). With the output of the networks at zero it
is a codec already, so training does not have to learn the phase from scratch. The networks add what a linear map
cannot: context, gains that clean up the linear part, and a spectrum of their own (inverse STFT, as in Vocos). A part of
that spectrum is noise, because a repeated phase would sound as a buzz at the frame rate. All of it is relative to the
decoded envelope, so the codec treats a signal alike at every level. Tones, clicks and silence bypass the networks
(`codec.nn.quantize.gain_shape`).

Frames are hop samples apart and two hops long, so the delay is 2 hops.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from codec.errors import UsageError
from codec.models.base import (
    MAX_BEAMS,
    CodebookSize,
    Codec,
    CodecConfig,
    CodecOutput,
    Context,
    FrameSteps,
    Hop,
    NumCodebooks,
    ReceptiveField,
    SampleRate,
    StepCodec,
)
from codec.nn.conv import ConvNeXtBlock
from codec.nn.exporting import Cosines, is_exporting
from codec.nn.noise import random_phases, smooth_noise
from codec.nn.quantize.base import Quantizer, Unquantized
from codec.nn.quantize.fsq import FSQ
from codec.nn.quantize.gain_shape import GainShapeVQ, Parts
from codec.nn.quantize.mixture import Mixture
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.quantize.vq import VectorQuantizer
from codec.nn.shapes import Audio, Latents
from codec.nn.streaming import Chain, State

Size = Annotated[int, Field(ge=1, le=2**16)]

COMPAND_FLOOR = 0.02  # below it companding is linear, so that the slope is finite
NOISE_FRAMES = 499  # frames until the noise repeats, a prime: about 10 s at 20 ms per frame
NOISE_RANGE = (-8.0, 2.0)  # bounds of the log level of the noise relative to the envelope
GAIN_RANGE = (-12.0, 3.0)  # bounds of the log gain of the linear part
MOST_SPECTRUM_GAIN = 1.0  # of the log gain of the network's spectrum


class CausalConfig(CodecConfig):
    """Configuration of a causal codec; `general-24k` has 16 codebooks, 5 beams and 64 dimensions."""

    inference_keys: ClassVar[frozenset[str]] = frozenset({"beam_size"})
    added_keys: ClassVar[frozenset[str]] = frozenset({"learned_noise", "spectrum_gain"})

    family: Literal["causal"] = "causal"
    sample_rate: SampleRate = 24000
    hop: Hop = 480
    """Samples per frame: 20 ms at 24 kHz, so 50 frames per second and 0.5 kbit/s per codebook of 1024."""
    dim: Size = 128
    """Number of principal components of the spectrum, at most `hop`."""
    num_codebooks: NumCodebooks = 12
    codebook_size: CodebookSize = 1024
    encoder_width: Size = 352
    encoder_blocks: Size = 5
    decoder_width: Size = 384
    decoder_blocks: Size = 4
    fine_width: Size = 256
    """Width of the last blocks of the decoder, which run at twice the frame rate."""
    fine_blocks: Size = 2
    kernel: Size = 7
    """Kernel size in frames of the depthwise convolution in each block: 140 ms."""
    expansion: Size = 3
    companding: float = Field(0.7, gt=0, le=1)
    """Exponent of the spectrum before the principal components: 1 favors loud bins, near 0 all bins count alike."""
    envelope_bands: int = Field(20, ge=0, le=512)
    """Bands of the spectral envelope, which is codebook 0; 0 for a codec without an envelope."""
    envelope_exponent: float = Field(0.25, ge=0, le=1)
    """Exponent of the envelope's shape when the spectrum is divided by gain * shape ** exponent."""
    spectrum_gain: bool = False
    """Whether the decoder's own spectrum has a gain in every bin, so that bins can be empty."""
    learned_noise: bool = False
    """Whether the decoder's noise is a table among the weights instead of random phases; it begins as smooth noise."""
    modes: int = Field(63, ge=0)
    """Entries of codebook 0 that are the gain of a tone or a click instead of an envelope."""
    quantizer: Literal["residual", "vector", "mixture", "scalar", "none"] = "residual"
    """All but "residual" have one codebook and no envelope; "none" is a plain autoencoder without codes."""
    distance: Literal["l2", "cosine"] = "l2"
    """Distance to the entries; this key and the next two are for "residual" and "vector"."""
    codebook_dim: Size | None = None
    """Dimension of the entries, with projections in and out; `dim` without projections if absent."""
    codebook_update: Literal["ema", "gradient"] = "ema"
    beam_size: int = Field(1, ge=1, le=MAX_BEAMS)
    """Beams of the search through the codebooks of "residual"; 1 takes the nearest entry of each codebook."""
    levels: tuple[Annotated[int, Field(ge=2, le=2**24)], ...] = ()
    """Levels of each dimension for "scalar": `dim` numbers whose product is `codebook_size`."""

    @model_validator(mode="after")
    def check_dim(self) -> CausalConfig:
        """Check that `dim` is at most `hop`, and that `hop` is even."""
        if self.dim > self.hop:
            raise ValueError(
                f"dim = {self.dim} exceeds hop = {self.hop}, the number of bins: set a lower dim or a higher hop"
            )
        if self.hop % 2:
            raise ValueError(f"hop = {self.hop} is odd, but the decoder works with half of it: set an even number")
        return self

    @model_validator(mode="after")
    def check_quantizer(self) -> CausalConfig:
        """Check that the sizes are those of the quantizer, because bit rates are computed from them."""
        kind = self.quantizer
        if kind != "residual" and (self.num_codebooks, self.envelope_bands) != (1, 0):
            raise ValueError(
                f'quantizer "{kind}" has one codebook and no envelope: set num_codebooks = 1 and envelope_bands = 0, '
                f"not {self.num_codebooks} and {self.envelope_bands}"
            )
        if kind != "scalar" and self.levels:
            raise ValueError(f'quantizer "{kind}" has no levels: leave them out, or set quantizer = "scalar"')
        if kind == "scalar" and (len(self.levels), math.prod(self.levels)) != (self.dim, self.codebook_size):
            raise ValueError(
                f"{len(self.levels)} levels that make {math.prod(self.levels)} codes do not fit dim {self.dim} and "
                f"codebook_size {self.codebook_size}: give one number of levels per dimension, "
                "and their product as codebook_size"
            )
        if kind not in ("residual", "vector") and (self.distance, self.codebook_dim, self.codebook_update) != (
            "l2",
            None,
            "ema",
        ):
            raise ValueError(
                'distance, codebook_dim and codebook_update are for "residual" and "vector", '
                f'not "{kind}": leave them out'
            )
        if kind != "residual" and self.beam_size != 1:
            raise ValueError(f'beam_size is for "residual", not "{kind}": leave it out')
        return self

    @model_validator(mode="after")
    def check_envelope(self) -> CausalConfig:
        """Check that the envelope has its own codebook, bins in every band, and enough entries besides the modes."""
        if not self.envelope_bands:
            return self
        if self.num_codebooks < 2:
            raise ValueError("the envelope takes codebook 0: set num_codebooks = 2 or more, or envelope_bands = 0")
        if self.envelope_bands > self.hop // 4:
            raise ValueError(f"envelope_bands = {self.envelope_bands}: {self.hop} bins make {self.hop // 4} at most")
        if self.modes > self.codebook_size // 4:
            raise ValueError(
                f"modes = {self.modes} leave too few of {self.codebook_size} entries for envelopes: set "
                f"{self.codebook_size // 4} at most"
            )
        return self


def compand(x: Tensor, exponent: float, floor: float = COMPAND_FLOOR) -> Tensor:
    """Compress amplitudes to sign(x) |x|^exponent, linear below `floor` so that the slope is finite; see `expand`."""
    out: Tensor = x.sign() * ((x.abs() + floor) ** exponent - floor**exponent)
    return out


def expand(y: Tensor, exponent: float, floor: float = COMPAND_FLOOR) -> Tensor:
    """Invert `compand`."""
    out: Tensor = y.sign() * ((y.abs() + floor**exponent) ** (1 / exponent) - floor)
    return out


class MDCT(nn.Module):
    """MDCT and MDST of frames two hops long with a sine window; the inverse MDCT is exact (Princen and Bradley 1986).

    MDCT and MDST together give magnitudes that do not depend on phase. They are the real and the imaginary part of a
    DFT of two hops of samples at odd frequencies, which a complex FFT of one hop computes: the first half of its output
    has the even bins, the second half the complex conjugates of the odd ones, last bin first. Exported graphs have a
    matrix product, because runtimes lack the DFT or compute it with an error of -80 dB.
    """

    window: Tensor
    twiddle: Tensor
    bin_twiddle: Tensor

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        index = torch.arange(hop, dtype=torch.float64)
        phase = math.pi / hop * (hop / 2 + 0.5) * (index + 0.5)  # of the MDCT's shift in time
        phase = torch.cat([-phase[0::2], phase[1::2].flip(0)])
        first, second = sine_window(hop).view(2, hop)
        self.register_buffer("window", torch.stack([first, -second]).float(), persistent=False)
        self.register_buffer("twiddle", unit_circle(-math.pi / (2 * hop) * index), persistent=False)
        self.register_buffer("bin_twiddle", math.sqrt(2 / hop) * unit_circle(phase), persistent=False)
        self.cosines = Cosines(8 * hop)

    def exported_basis(self) -> Tensor:
        """The matrix [2 hop, 2 hop] from samples to MDCT bins, then MDST bins, for an exported graph.

        A graph computes it when it is loaded, because a file with it would be 4 MB larger.
        """
        n, k = 2 * torch.arange(2 * self.hop)[:, None] + 1, 2 * torch.arange(self.hop) + 1
        phase = (n + self.hop) * k
        basis = torch.cat([self.cosines(phase), self.cosines.sine(phase)], dim=1)
        return basis * self.cosines.sine(n) * math.sqrt(2 / self.hop)

    def analyze(self, audio: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """MDCT and MDST bins [batch, frames, 2 hop] of audio [batch, frames * hop], and the last hop of samples."""
        audio = torch.cat([before, audio], dim=-1)
        hops = audio.view(audio.shape[0], -1, self.hop)
        first, second = hops[:, :-1], hops[:, 1:]  # halves [batch, frames, hop] of the frames
        last = audio[:, audio.shape[-1] - self.hop :]
        if is_exporting():
            return torch.cat([first, second], dim=-1) @ self.exported_basis(), last
        twiddle, bin_twiddle = torch.view_as_complex(self.twiddle), torch.view_as_complex(self.bin_twiddle)
        folded = torch.complex(first * self.window[0], second * self.window[1])
        even, odd = (torch.fft.fft(folded * twiddle) * bin_twiddle).chunk(2, dim=-1)
        bins = torch.stack([even.conj(), odd.flip(-1)], dim=-1).flatten(-2)  # [batch, frames, hop]
        return torch.cat([bins.real, bins.imag], dim=-1), last

    def synthesize(self, bins: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """Audio [batch, frames * hop] of MDCT bins [batch, frames, hop], one hop late, and the last half frame."""
        if is_exporting():
            return overlap_add((bins @ self.exported_basis()[:, : self.hop].T).chunk(2, dim=-1), before)
        twiddle, bin_twiddle = torch.view_as_complex(self.twiddle), torch.view_as_complex(self.bin_twiddle)
        bins = torch.cat([bins[..., 0::2], bins[..., 1::2].flip(-1)], dim=-1)
        folded = torch.fft.ifft(bins * bin_twiddle.conj(), norm="forward") * twiddle.conj()
        return overlap_add((folded.real * self.window[0], folded.imag * self.window[1]), before)


def unit_circle(phase: Tensor) -> Tensor:
    """Float32 cosines and sines [..., 2] of phases [...]."""
    return torch.stack([phase.cos(), phase.sin()], dim=-1).float()


def sine_window(hop: int) -> Tensor:
    """Float64 window [2 hop] whose squares a hop apart add up to 1 (the Princen-Bradley condition)."""
    return torch.sin(math.pi * (torch.arange(2 * hop, dtype=torch.float64) + 0.5) / (2 * hop))


def overlap_add(halves: Sequence[Tensor], before: Tensor) -> tuple[Tensor, Tensor]:
    """Audio [batch, frames * hop] of the first and the second halves [batch, frames, hop] of frames.

    `before` [batch, hop] is the second half of the frame before them; the second result is that of the last one.
    """
    first, second = halves
    audio = first + torch.cat([before[:, None], second[:, :-1]], dim=1)
    return audio.flatten(1), second[:, -1]


def plain(latents: Latents, hop: int) -> Parts:
    """The parts of latents without an envelope: all residual."""
    batch, _, frames = latents.shape
    one = latents.new_ones(batch, 1, frames)
    return Parts(latents, one, one, latents.new_zeros(batch, hop, frames))


def backbone(width: int, blocks: int, config: CausalConfig) -> Chain:
    """A chain of ConvNeXt blocks, with layer scales initialized to 1 / blocks as in Vocos."""
    return Chain(
        ConvNeXtBlock(width, kernel=config.kernel, expansion=config.expansion, scale=1 / blocks) for _ in range(blocks)
    )


def quantizer(config: CausalConfig) -> Quantizer:
    """Build the quantizer of a configuration."""
    match config.quantizer:
        case "residual":
            residual = ResidualVQ(
                config.dim,
                config.num_codebooks - (config.envelope_bands > 0),
                config.codebook_size,
                distance=config.distance,
                codebook_dim=config.codebook_dim,
                codebook_update=config.codebook_update,
                beam_size=config.beam_size,
            )
            if not config.envelope_bands:
                return residual
            return GainShapeVQ(
                residual,
                dim=config.dim,
                hop=config.hop,
                bands=config.envelope_bands,
                sample_rate=config.sample_rate,
                exponent=config.envelope_exponent,
                modes=config.modes,
            )
        case "vector":
            return VectorQuantizer(
                config.dim,
                config.codebook_size,
                distance=config.distance,
                codebook_dim=config.codebook_dim,
                codebook_update=config.codebook_update,
            )
        case "mixture":
            return Mixture(config.dim, config.codebook_size)
        case "scalar":
            return FSQ(config.levels)
        case "none":
            return Unquantized(config.codebook_size)


class InverseDFT(nn.Module):
    """Orthonormal inverse DFT of spectra [..., hop / 2 + 1] to frames [..., hop].

    An exported graph has a matrix product, because runtimes lack the DFT or compute it with an error of -80 dB.
    """

    def __init__(self, hop: int) -> None:
        super().__init__()
        self.hop = hop
        self.cosines = Cosines(4 * hop)

    def basis(self) -> Tensor:
        """The matrix [hop + 2, hop] for real parts, then imaginary parts."""
        k, n = torch.arange(self.hop // 2 + 1)[:, None], torch.arange(self.hop)
        both = torch.where(2 * k % self.hop == 0, 1.0, 2.0) * self.hop**-0.5  # a bin and its mirror image
        return torch.cat([both * self.cosines(4 * k * n), -both * self.cosines.sine(4 * k * n)])

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:
        if is_exporting():
            return torch.cat([real, imaginary], dim=-1) @ self.basis()
        frames: Tensor = torch.fft.irfft(torch.complex(real, imaginary), n=self.hop, norm="ortho")
        return frames


class EncoderState(NamedTuple):
    """The last hop of samples, and the state of the backbone."""

    samples: Tensor
    backbone: State


class Encoder(nn.Module):
    """Audio to latents: principal components of the normalized, companded spectrum, plus the backbone's output."""

    pca: Tensor
    reference: Tensor

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.mdct = MDCT(config.hop)
        self.register_buffer("pca", torch.randn(config.hop, config.dim) * config.hop**-0.5)
        self.register_buffer("reference", torch.tensor(0.1))  # divisor of the bins for a codec without an envelope
        extra = config.envelope_bands + 1 if config.envelope_bands else 0
        self.in_proj = nn.Linear(2 * config.hop + extra, config.encoder_width)
        self.backbone = backbone(config.encoder_width, config.encoder_blocks, config)
        self.norm = nn.LayerNorm(config.encoder_width)
        self.out_proj = nn.Linear(config.encoder_width, config.dim)
        nn.init.zeros_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def initial_state(self, like: Tensor) -> EncoderState:
        wide = like.new_zeros(like.shape[0], self.config.encoder_width, 0)
        return EncoderState(like.new_zeros(like.shape[0], self.config.hop), self.backbone.initial_state(wide))

    def step(self, audio: Audio, state: EncoderState, shape: GainShapeVQ | None) -> tuple[Latents, EncoderState]:
        """Latents of audio [batch, 1, frames * hop]: all `Parts`, or the residual only without a `shape`."""
        if audio.shape[-1] == 0:
            dim = sum(shape.sizes) if shape else self.config.dim
            return audio.new_zeros(audio.shape[0], dim, 0), state
        with torch.autocast(audio.device.type, enabled=False):
            spectrum, samples = self.mdct.analyze(audio[:, 0], state.samples)
            cosine, sine = spectrum.chunk(2, dim=-1)  # each [batch, frames, hop]
            features, linear, envelope = self.normalized(cosine, sine, shape)
        x = self.in_proj(features).transpose(1, 2)  # [batch, width, frames]
        x, inner = self.backbone.step(x, state.backbone)
        latents = linear + self.out_proj(self.norm(x.transpose(1, 2)))
        if shape:
            latents = torch.cat([latents, envelope, torch.zeros_like(latents[..., :1]), cosine], dim=-1)
        return latents.transpose(1, 2), EncoderState(samples, inner)

    def normalized(self, cosine: Tensor, sine: Tensor, shape: GainShapeVQ | None) -> tuple[Tensor, Tensor, Tensor]:
        """(backbone features, principal components, envelope) of MDCT and MDST bins, each [batch, frames, ...]."""
        envelope, error, divisor = cosine[..., :0], cosine[..., :0], self.reference
        if shape:
            envelope = shape.envelope.measure(cosine, sine)
            decoded = F.embedding(shape.nearest(envelope.flatten(0, 1)), shape.envelopes).view_as(envelope)
            divisor, error = shape.envelope.divisor(decoded), envelope - decoded
        companded = compand(cosine / divisor, self.config.companding)
        magnitude = 0.25 * torch.log((cosine.square() + sine.square()) / divisor.square() + 1e-3)
        return torch.cat([companded, magnitude, error], dim=-1), companded @ self.pca, envelope


class DecoderState(NamedTuple):
    """States of the backbones, the half frames for overlap-add, and the index of the next frame."""

    backbone: State
    fine: State
    half: Tensor
    fine_half: Tensor
    position: Tensor


class Decoder(nn.Module):
    """Latents to audio: the linear part with a gain per bin, plus a spectrum and noise from the network."""

    pca: Tensor
    window: Tensor
    noise: Tensor
    reference: Tensor

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        half = config.hop // 2
        self.mdct = MDCT(config.hop)
        self.inverse_dft = InverseDFT(config.hop)
        self.register_buffer("pca", torch.randn(config.dim, config.hop) * config.dim**-0.5)
        self.register_buffer("reference", torch.tensor(0.1))
        self.register_buffer("window", sine_window(half).float(), persistent=False)
        phases = random_phases(2 * NOISE_FRAMES, half + 1)
        if config.learned_noise:
            self.noise = nn.Parameter(phases)
        else:
            self.register_buffer("noise", phases, persistent=False)
        self.in_proj = nn.Linear(config.dim + config.envelope_bands + 1, config.decoder_width)
        self.backbone = backbone(config.decoder_width, config.decoder_blocks, config)
        self.norm = nn.LayerNorm(config.decoder_width)
        self.gain = nn.Linear(config.decoder_width, config.hop)
        self.fine_proj = nn.Linear(config.decoder_width, 2 * config.fine_width)
        self.fine = backbone(config.fine_width, config.fine_blocks, config)
        self.fine_norm = nn.LayerNorm(config.fine_width)
        self.head = nn.Linear(config.fine_width, 3 * (half + 1))
        self.spectrum_gain = nn.Linear(config.fine_width, half + 1) if config.spectrum_gain else None
        for layer in filter(None, (self.gain, self.head, self.spectrum_gain)):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.head.bias.view(3, -1)[2].fill_(NOISE_RANGE[0])

    def initial_state(self, like: Tensor) -> DecoderState:
        batch, half = like.shape[0], self.config.hop // 2
        return DecoderState(
            self.backbone.initial_state(like.new_zeros(batch, self.config.decoder_width, 0)),
            self.fine.initial_state(like.new_zeros(batch, self.config.fine_width, 0)),
            like.new_zeros(batch, self.config.hop),
            like.new_zeros(batch, half),
            torch.zeros(batch, dtype=torch.int64, device=like.device),
        )

    def step(self, latents: Latents, state: DecoderState, shape: GainShapeVQ | None) -> tuple[Audio, DecoderState]:
        """Audio [batch, 1, frames * hop] of latents [batch, ..., frames], one hop late."""
        batch, _, frames = latents.shape
        if frames == 0:
            return latents.new_zeros(batch, 1, 0), state
        parts = shape.split(latents) if shape else plain(latents, self.config.hop)
        residual, envelope, learned, bins = (part.transpose(1, 2) for part in parts)  # each [batch, frames, ...]
        features = torch.cat([residual, envelope[..., :-1], learned], dim=-1)
        x, inner = self.backbone.step(self.in_proj(features).transpose(1, 2), state.backbone)
        x = self.norm(x.transpose(1, 2))  # [batch, frames, width]
        gain = self.gain(x)
        x = self.fine_proj(x).view(batch, 2 * frames, -1)  # two short frames per frame
        x, fine = self.fine.step(x.transpose(1, 2), state.fine)
        x = self.fine_norm(x.transpose(1, 2))
        real, imaginary, loudness = self.head(x).float().chunk(3, dim=-1)
        if self.spectrum_gain:
            factor = self.spectrum_gain(x).float().clamp(max=MOST_SPECTRUM_GAIN).exp()
            real, imaginary = factor * real, factor * imaginary
        with torch.autocast(latents.device.type, enabled=False):
            envelope, gain = envelope.float(), gain.float()
            on = (learned >= 0).float()
            divisor = shape.envelope.divisor(envelope) if shape else self.reference
            level = shape.envelope.half_level(envelope) if shape else self.reference.expand(batch, frames, 1)
            linear = expand(residual.float() @ self.pca, self.config.companding) * divisor
            bins = bins + on * linear * gain.clamp(*GAIN_RANGE).exp()
            audio, half = self.mdct.synthesize(bins, state.half)
            level = (level * on).repeat_interleave(2, dim=1)  # [batch, 2 frames, bins]
            row = (2 * state.position[:, None] + torch.arange(2 * frames, device=x.device)) % (2 * NOISE_FRAMES)
            loudness = loudness.clamp(*NOISE_RANGE).exp()
            computed = is_exporting() and not self.config.learned_noise  # by the graph, so that the file is smaller
            table = random_phases(2 * NOISE_FRAMES, self.config.hop // 2 + 1) if computed else self.noise.float()
            noise = F.embedding(row, table).chunk(2, dim=-1)  # real and imaginary parts
            short = self.inverse_dft(level * (real + loudness * noise[0]), level * (imaginary + loudness * noise[1]))
            own, fine_half = overlap_add((short * self.window).chunk(2, dim=-1), state.fine_half)
        after = DecoderState(inner, fine, half, fine_half, (state.position + frames) % NOISE_FRAMES)
        return (audio + own)[:, None], after


class CausalCodec(StepCodec):
    """Causal MDCT codec with ConvNeXt networks; see the drawing at the top of the file."""

    config: CausalConfig
    encoder: Encoder
    decoder: Decoder
    limit = 1.05  # 0.4 dB above full scale, because decoded phases differ, so clipped recordings get higher peaks

    def __init__(self, config: CausalConfig) -> None:
        super().__init__(config, decoder_delay=config.hop)
        self.encoder = Encoder(config)
        self.quantizer = quantizer(config)
        self.decoder = Decoder(config)

    @property
    def shape(self) -> GainShapeVQ | None:
        """The quantizer if it has an envelope."""
        return self.quantizer if isinstance(self.quantizer, GainShapeVQ) else None

    def forward(self, audio: Audio, num_codebooks: Tensor | None = None) -> CodecOutput:
        """Encode, quantize and decode with gradients; the output has the latents of the residual only."""
        output = super().forward(audio, num_codebooks)
        return output._replace(latents=output.latents[:, : self.config.dim])

    def receptive_field(self) -> ReceptiveField:
        """A block adds kernel - 1 frames of context.

        A frame is two hops long, so the encoder's n frames reach over n + 1 hops, and a hop lies in two frames of the
        decoder. The decoder's last blocks work on half frames.
        """
        config = self.config
        wider = config.kernel - 1
        encoder = config.encoder_blocks * wider + 1
        decoder = config.decoder_blocks * wider + math.ceil((config.fine_blocks * wider + 1) / 2)
        return ReceptiveField(Context(encoder, 0), Context(decoder, 0))

    def encoder_state(self, batch: int) -> EncoderState:
        return self.encoder.initial_state(torch.zeros(batch, 1, 0, dtype=torch.float32, device=self.device))

    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        return self.encoder.step(audio, state, self.shape)

    def decoder_state(self, batch: int) -> DecoderState:
        return self.decoder.initial_state(torch.zeros(batch, 1, 0, dtype=torch.float32, device=self.device))

    def decoder_state_at(self, batch: int, frame: int) -> DecoderState:
        state = self.decoder_state(batch)
        return state._replace(position=state.position + frame % NOISE_FRAMES)

    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        return self.decoder.step(latents, state, self.shape)

    @property
    def has_frame_steps(self) -> bool:
        return self.shape is not None and self.shape.residual.direct

    def frame_steps(self) -> FrameSteps | None:
        from codec.models import causal_frames  # imports numba, which takes half a second

        return causal_frames.frame_steps(self)

    @torch.no_grad()
    def start_from(self, known: Codec) -> None:
        """As `Codec.start_from`; the codebooks of `known` give the decoder the same input as before."""
        super().start_from(known)
        if self.shape and known.num_codebooks > 1:
            share = self.decoder.in_proj.weight[:, -1]  # of the residual codebooks that a frame uses
            share.mul_((self.num_codebooks - 1) / (known.num_codebooks - 1))

    @torch.no_grad()
    def init_from_audio(self, audio: Audio) -> None:
        """Set all closed-form parts from audio [batch, 1, time]: envelopes, components, codebooks and noise levels.

        k-means of the envelopes, principal components of the normalized and companded MDCT spectrum, k-means of each
        residual codebook on the residuals of the codebooks before it, and noise at the level of the final residuals.
        Minutes of audio are enough; the networks stay silent.

        Raises UsageError: the audio is silent.
        """
        hop = self.config.hop
        audio = audio[..., : audio.shape[-1] // hop * hop]
        spectrum, _ = self.encoder.mdct.analyze(audio[:, 0], self.encoder.initial_state(audio).samples)
        cosine, sine = spectrum.flatten(0, 1).chunk(2, dim=-1)  # each [rows, hop]
        loud = cosine.square().mean(dim=-1) > 1e-10  # -100 dBFS
        if not loud.any():
            raise UsageError("the audio to initialize from is silent: give audio with some sound")
        self.encoder.reference.copy_(cosine[loud].square().mean().sqrt())
        self.decoder.reference.copy_(self.encoder.reference)
        if self.shape:
            self.shape.init_envelopes(self.shape.envelope.measure(cosine[loud], sine[loud]))
        companded = self.encoder.normalized(cosine[None], sine[None], self.shape)[0][0, loud, :hop]
        _, components = torch.linalg.eigh((companded.T @ companded).double())
        components = components[:, -self.config.dim :].flip(1).float()  # [hop, dim], strongest first
        scale = (companded @ components).square().mean().sqrt()
        self.encoder.pca.copy_(components / scale)
        self.decoder.pca.copy_(components.T * scale)
        latents, _ = self.latents_step(audio, self.encoder_state(len(audio)))
        self.quantizer.init_from_data(latents)
        self.init_noise(latents)

    def init_noise(self, latents: Latents) -> None:
        """Set the noise to the level of the residuals of latents [batch, ..., frames] after the linear part.

        A learned table of noise becomes smooth noise.
        """
        if self.config.learned_noise:
            self.decoder.noise.copy_(smooth_noise(self.decoder.noise.cpu(), self.decoder.window.cpu()))
        if not self.shape:
            return
        before = self.shape.split(latents)
        parts = self.shape.split(self.shape.decode(self.shape.encode(latents)))
        learned = parts.learned[:, 0] > 0
        if not learned.any():
            return
        residual, envelope = (part.transpose(1, 2)[learned] for part in (parts.residual, parts.envelope))
        decoded = expand(residual @ self.decoder.pca, self.config.companding) * self.shape.envelope.divisor(envelope)
        level = self.shape.envelope.level(envelope)
        residual_bins = ((before.bins.transpose(1, 2)[learned] - decoded) / level).clamp(-10, 10)
        loudness = residual_bins.square().mean(dim=0).view(-1, 2).mean(dim=1).sqrt()  # [hop / 2]
        loudness = F.pad(loudness[None], (0, 1), mode="replicate")[0].clamp(min=1e-3)
        self.decoder.head.bias.view(3, -1)[2].copy_(loudness.log())
