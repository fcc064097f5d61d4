"""Steps of a causal codec on a few frames, for live streams on a CPU: the same codes as `codec.models.causal`.

The networks and the search of the codebooks run in compiled loops (`codec.nn.compiled`), the rest in numpy, with FFTs
for the MDCT. Frames that are, or may be, a mode are left to torch, because they are rare. Arrays are float32
[batch, frames, ...].
"""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from codec.models.causal import (
    GAIN_RANGE,
    NOISE_FRAMES,
    NOISE_RANGE,
    CausalCodec,
    Decoder,
    DecoderState,
    Encoder,
    EncoderState,
    sine_window,
)
from codec.nn.compiled import (
    Array,
    Block,
    Product,
    array,
    block,
    convnext,
    layer,
    multiply,
    nearest_sums,
    normalize,
    product,
    stored,
)
from codec.nn.quantize.gain_shape import (
    CLICK_ERROR,
    GAIN_WEIGHT,
    HIGH_SHARE,
    HIGH_TONE_ERROR,
    RANGE,
    SILENCE,
    TONE_ERROR,
    GainShapeVQ,
    Modes,
    Parts,
)
from codec.nn.streaming import Chain, State

NEAR = 0.999  # of a threshold, from which torch decides, because it sums in another order


def frame_steps(model: CausalCodec) -> CausalFrames | None:
    """The steps of a model, if its quantizer is of the kind that is computed here."""
    shape = model.shape
    return CausalFrames(model, shape) if shape and shape.residual.direct else None


class CausalFrames:
    """The steps of one model, with copies of its weights."""

    def __init__(self, model: CausalCodec, shape: GainShapeVQ) -> None:
        envelopes = EnvelopeFrames(shape)
        self.encoder = EncoderFrames(model.encoder, envelopes)
        self.quantizer = GainShapeFrames(shape, envelopes)
        self.decoder = DecoderFrames(model.decoder, envelopes)
        self.limit = model.limit

    def encode(self, audio: Array, state: EncoderState, num_codebooks: int) -> tuple[Array, EncoderState]:
        """`StepCodec.encode_step` with arrays."""
        residual, envelope, nearest, bins, state = self.encoder.step(audio[:, 0], state)
        return self.quantizer.encode(residual, envelope, nearest, bins, num_codebooks), state

    def decode(self, codes: Array, state: DecoderState) -> tuple[Array, DecoderState]:
        """`StepCodec.decode_step` with arrays, for codes that were checked."""
        audio, state = self.decoder.step(*self.quantizer.decode(codes), state)
        return np.clip(audio, -self.limit, self.limit)[:, None], state

    def arrays(self, state: State) -> State:
        """A state of the model as these steps take it: contexts of convolutions are [batch, time, width]."""
        return pytree.tree_map(lambda x: np.array(_swapped(x.numpy()), order="C"), state)

    def tensors(self, state: State) -> State:
        """The state as the model takes it."""
        return pytree.tree_map(lambda x: torch.from_numpy(np.array(_swapped(x), order="C")), state)


def _swapped(x: Array) -> Array:
    return x.swapaxes(1, 2) if x.ndim == 3 else x


class ShiftedDFT:
    """The sums over n of x[n] exp(-i pi (n + shift) (k + 1/2) / size) for k < size: the kernel of MDCT and DCT-IV."""

    def __init__(self, size: int, shift: float, window: Array) -> None:
        self.size = size
        self.before = window * np.exp(-0.5j * np.pi / size * np.arange(len(window)))
        self.after = np.exp(-1j * np.pi / size * shift * (np.arange(size) + 0.5))

    def forward(self, x: Array) -> Array:
        """Complex [..., size] of x [..., length of the window]."""
        out: Array = np.fft.fft(x * self.before, 2 * self.size)[..., : self.size] * self.after
        return out

    def inverse(self, bins: Array) -> Array:
        """The transpose of the real part of `forward`."""
        frames = np.fft.ifft(bins * self.after.conj(), 2 * self.size) * (2 * self.size * self.before.conj())
        out: Array = frames.real.astype(np.float32)
        return out


def mdct(hop: int) -> ShiftedDFT:
    """The transform of `codec.models.causal.MDCT`."""
    return ShiftedDFT(hop, 0.5 + hop / 2, math.sqrt(2 / hop) * sine_window(hop).numpy())


class EnvelopeFrames:
    """`codec.nn.quantize.gain_shape.Envelope` with the codebook of a `GainShapeVQ`."""

    def __init__(self, shape: GainShapeVQ) -> None:
        envelope = shape.envelope
        self.bands, self.exponent = envelope.bands, envelope.exponent
        self.entries = array(shape.envelopes)
        self.search = product(-2 * shape.envelopes, shape.envelopes.square().sum(dim=-1))
        self.weights = product(envelope.weights.T)
        self.curve, self.half_curve = product(envelope.curve.T), product(envelope.half_curve.T)

    def measure(self, power: Array) -> Array:
        """Envelopes of the power of bins [batch, frames, hop]."""
        mean = power.mean(axis=-1, keepdims=True) * np.float32(1e6) + np.float32(1e-5)
        bands = times(power, self.weights) * np.float32(1e6) + np.float32(1e-5)
        bands += np.float32(RANGE) * bands.max(axis=-1, keepdims=True)
        gain = np.float32(0.5) * (np.log(mean) - np.float32(math.log(1e6)))
        level = np.float32(0.5) * (np.log(bands) - np.float32(math.log(1e6)))
        return np.concatenate([level - gain, np.float32(GAIN_WEIGHT) * gain], axis=-1)

    def nearest(self, envelope: Array) -> Array:
        """Codes [batch, frames] of the nearest entries."""
        codes: Array = times(envelope, self.search).argmin(axis=-1)
        return codes

    def log_gain(self, envelope: Array) -> Array:
        """Natural logarithm of the gain [batch, frames, 1]."""
        return envelope[..., self.bands :] / np.float32(GAIN_WEIGHT)

    def log_shape(self, envelope: Array, curve: Product) -> Array:
        """Natural logarithm of the shape at the bins of a curve."""
        return times(envelope[..., : self.bands], curve)

    def divisor(self, envelope: Array) -> Array:
        """Divisor of the bins."""
        log_shape = self.log_shape(envelope, self.curve)
        return np.exp(self.log_gain(envelope) + np.float32(self.exponent) * log_shape)

    def half_level(self, envelope: Array) -> Array:
        """Expected magnitude of bins of half frames."""
        level: Array = np.exp(self.log_gain(envelope) + self.log_shape(envelope, self.half_curve))
        return level


class EncoderFrames:
    """`codec.models.causal.Encoder`."""

    def __init__(self, encoder: Encoder, envelopes: EnvelopeFrames) -> None:
        config = encoder.config
        self.hop, self.companding = config.hop, config.companding
        self.envelopes, self.mdct = envelopes, mdct(config.hop)
        self.pca = product(encoder.pca.T)
        self.in_proj, self.out_proj = layer(encoder.in_proj), layer(encoder.out_proj)
        self.blocks, self.norm = blocks(encoder.backbone), norm(encoder.norm)

    def step(self, audio: Array, state: EncoderState) -> tuple[Array, Array, Array, Array, EncoderState]:
        """(residual, envelope, its nearest code, MDCT bins, state) of audio [batch, frames * hop]."""
        hops = np.concatenate([cast(Any, state.samples), audio], axis=1).reshape(len(audio), -1, self.hop)
        spectrum = self.mdct.forward(np.concatenate([hops[:, :-1], hops[:, 1:]], axis=2))
        bins = spectrum.real.astype(np.float32)
        power = bins**2 + spectrum.imag.astype(np.float32) ** 2
        envelope = self.envelopes.measure(np.float32(0.5) * power)
        nearest = self.envelopes.nearest(envelope)
        decoded = self.envelopes.entries[nearest]
        divisor = self.envelopes.divisor(decoded)
        companded = compand(bins / divisor, self.companding)
        magnitude = np.float32(0.25) * np.log(power / divisor**2 + np.float32(1e-3))
        x = times(np.concatenate([companded, magnitude, envelope - decoded], axis=2), self.in_proj)
        x, inner = through(self.blocks, x, state.backbone)
        residual = times(companded, self.pca) + times(normal(x, self.norm), self.out_proj)
        return residual, envelope, nearest, bins, EncoderState(cast(Tensor, hops[:, -1].copy()), inner)


class GainShapeFrames:
    """The quantizer `GainShapeVQ`."""

    def __init__(self, shape: GainShapeVQ, envelopes: EnvelopeFrames) -> None:
        self.shape, self.envelopes = shape, envelopes
        codebooks = [array(stage.codebook) for stage in shape.residual.stages]
        self.num_codebooks, self.beams = len(codebooks), shape.residual.beam_size
        self.entries = stored(np.stack(codebooks))  # [codebooks, codebook_size, dim]
        self.norms = np.stack([np.square(codebook).sum(axis=1) for codebook in codebooks])
        hop = shape.sizes[3]
        self.fold = ShiftedDFT(hop, 0.5, np.full(hop, math.sqrt(2 / hop)))

    def encode(self, residual: Array, envelope: Array, nearest: Array, bins: Array, num_codebooks: int) -> Array:
        """Codes [batch, codebooks, frames] of what `EncoderFrames.step` gives."""
        code, others = self.first_codes(envelope, nearest, bins)
        if num_codebooks > 1:
            found = nearest_sums(flat(residual), *self.searched(num_codebooks - 1), self.beams)
            found = np.where(
                (code >= self.shape.silence)[..., None], others[..., : num_codebooks - 1], unflat(found, code)
            )
            code = np.concatenate([code[..., None], found], axis=2)
        return np.ascontiguousarray(np.atleast_3d(code).swapaxes(1, 2))

    def searched(self, num_codebooks: int) -> tuple[Array, Array]:
        """The entries of the first codebooks, and their squares."""
        return self.entries[:num_codebooks], self.norms[:num_codebooks]

    def first_codes(self, envelope: Array, nearest: Array, bins: Array) -> tuple[Array, Array]:
        """(codes [batch, frames] of codebook 0, codes [batch, frames, codebooks] of the others in modes or 0)."""
        others = np.zeros((*nearest.shape, self.num_codebooks), np.int64)
        silent = self.envelopes.log_gain(envelope)[..., 0] < math.log(SILENCE)
        code = np.where(silent, self.shape.silence, nearest)
        if len(self.shape.modes):
            near = self.may_be_modes(envelope, bins)
            if near.any():
                code[near], others[near] = self.in_torch(envelope[near], bins[near])
                others[code <= self.shape.silence] = 0
        return code, others

    def may_be_modes(self, envelope: Array, bins: Array) -> Array:
        """Whether frames are near enough to a mode to be searched: bool [batch, frames]. See `Modes.find`."""
        modes = self.shape.modes
        energy = np.square(bins).sum(axis=-1)
        weight = np.exp(np.float32(-0.5) * self.envelopes.log_shape(envelope, self.envelopes.curve))
        near = tonal(np.square(bins * weight), modes)
        if modes.clicks:
            peak = np.square(self.fold.forward(bins).real).max(axis=-1)
            near |= peak > NEAR * (1 - CLICK_ERROR) * energy
        audible: Array = energy > NEAR * modes.hop * SILENCE**2
        return near & audible

    def in_torch(self, envelope: Array, bins: Array) -> tuple[Array, Array]:
        """`first_codes` of frames [frames, ...]."""
        unused = torch.zeros(len(bins), 1, 1)
        columns = (torch.from_numpy(np.ascontiguousarray(part))[..., None] for part in (envelope, bins))
        parts = Parts(unused, next(columns), unused, next(columns))
        code, others = self.shape.first_codes(parts)
        return code[:, 0].numpy(), others[..., 0].numpy()

    def decode(self, codes: Array) -> tuple[Array, Array, Array, Array]:
        """(residual, envelope, share of codebooks, bins of modes) of codes [batch, codebooks, frames]: `Parts`."""
        code, others = codes[:, 0], codes[:, 1:].swapaxes(1, 2)  # [batch, frames], [batch, frames, codebooks - 1]
        learned = (code < self.shape.silence)[..., None]
        entries = np.where(learned, self.envelopes.entries[np.minimum(code, self.shape.silence - 1)], np.float32(0))
        chosen = self.entries[np.arange(others.shape[2]), others]  # [batch, frames, codebooks - 1, dim]
        chosen = chosen.view(np.float16) if chosen.dtype == np.uint16 else chosen
        residual = np.where(learned, chosen.astype(np.float32).sum(axis=2), np.float32(0))
        share = np.where(learned, np.float32(others.shape[2] / self.num_codebooks), np.float32(-1))
        bins = np.zeros((*code.shape, self.shape.sizes[3]), np.float32)
        if others.shape[2] and (code > self.shape.silence).any():
            latents = self.shape.decode(torch.from_numpy(np.ascontiguousarray(codes)))
            bins = self.shape.split(latents).bins.transpose(1, 2).numpy()
        return residual, entries, share, bins


def tonal(power: Array, modes: Modes) -> Array:
    """Whether few bins have nearly all of the weighted power [batch, frames, hop]."""
    total = power.sum(axis=-1)
    first = max(0, modes.places - len(modes.tone))
    largest = np.partition(power[..., : modes.places], first, axis=-1)[..., first:].sum(axis=-1)
    high = power[..., modes.high :].sum(axis=-1) > NEAR * HIGH_SHARE * total
    near: Array = largest > NEAR * (1 - np.where(high, HIGH_TONE_ERROR, TONE_ERROR)) * total
    return near


class DecoderFrames:
    """`codec.models.causal.Decoder`."""

    def __init__(self, decoder: Decoder, envelopes: EnvelopeFrames) -> None:
        config = decoder.config
        self.hop, self.companding = config.hop, config.companding
        self.envelopes, self.mdct = envelopes, mdct(config.hop)
        self.pca, self.window = product(decoder.pca.T), array(decoder.window)
        self.noise = decoder.noise.numpy()
        self.in_proj, self.gain = layer(decoder.in_proj), layer(decoder.gain)
        self.fine_proj, self.head = layer(decoder.fine_proj), layer(decoder.head)
        self.blocks, self.norm = blocks(decoder.backbone), norm(decoder.norm)
        self.fine, self.fine_norm = blocks(decoder.fine), norm(decoder.fine_norm)

    def step(
        self, residual: Array, envelope: Array, share: Array, bins: Array, state: DecoderState
    ) -> tuple[Array, DecoderState]:
        """Audio [batch, frames * hop], one hop late, of what `GainShapeFrames.decode` gives."""
        batch, frames, _ = residual.shape
        x = times(np.concatenate([residual, envelope[..., :-1], share], axis=2), self.in_proj)
        x, inner = through(self.blocks, x, state.backbone)
        x = normal(x, self.norm)
        gain = times(x, self.gain)
        x, fine = through(self.fine, times(x, self.fine_proj).reshape(batch, 2 * frames, -1), state.fine)
        head = times(normal(x, self.fine_norm), self.head)
        on = (share >= 0).astype(np.float32)
        linear = expand(times(residual, self.pca), self.companding) * self.envelopes.divisor(envelope)
        bins = bins + on * linear * np.exp(np.clip(gain, *GAIN_RANGE))
        audio, half = overlap_add(self.mdct.inverse(bins), cast(Any, state.half))
        level = np.repeat(self.envelopes.half_level(envelope) * on, 2, axis=1)
        position = cast(Any, state.position)
        own, fine_half = overlap_add(self.spectrum(head, level, position) * self.window, cast(Any, state.fine_half))
        after = DecoderState(inner, fine, *cast(Any, (half, fine_half, (position + frames) % NOISE_FRAMES)))
        return audio + own, after

    def spectrum(self, head: Array, level: Array, position: Array) -> Array:
        """Short frames [batch, 2 frames, hop] of the network's spectrum and noise."""
        real, imaginary, loudness = np.split(head, 3, axis=-1)
        loudness = np.exp(np.clip(loudness, *NOISE_RANGE))
        row = (2 * position[:, None] + np.arange(head.shape[1])) % (2 * NOISE_FRAMES)
        cosine, sine = np.split(self.noise[row], 2, axis=-1)
        spectrum = level * (real + loudness * cosine) + 1j * (level * (imaginary + loudness * sine))
        short: Array = np.fft.irfft(spectrum, self.hop, norm="ortho").astype(np.float32)
        return short


def overlap_add(frames: Array, before: Array) -> tuple[Array, Array]:
    """`codec.models.causal.overlap_add`."""
    first, second = np.split(frames, 2, axis=-1)
    audio = first + np.concatenate([before[:, None], second[:, :-1]], axis=1)
    return audio.reshape(len(audio), -1), second[:, -1].copy()


def compand(x: Array, exponent: float, floor: float = 0.02) -> Array:
    """`codec.models.causal.compand`."""
    out: Array = np.sign(x) * ((np.abs(x) + np.float32(floor)) ** np.float32(exponent) - np.float32(floor**exponent))
    return out


def expand(y: Array, exponent: float, floor: float = 0.02) -> Array:
    """`codec.models.causal.expand`."""
    lifted = np.abs(y) + np.float32(floor**exponent)
    out: Array = np.sign(y) * (lifted ** np.float32(1 / exponent) - np.float32(floor))
    return out


def blocks(chain: Chain) -> list[Block]:
    """The weights of a backbone."""
    return [block(layer) for layer in chain.layers]


def through(chain: list[Block], x: Array, state: tuple[Array, ...]) -> tuple[Array, tuple[Array, ...]]:
    """A backbone on x [batch, frames, width]."""
    after = []
    for weights, before in zip(chain, state, strict=True):
        x, own = convnext(x, before, *weights)
        after.append(own)
    return x, tuple(after)


def norm(module: nn.LayerNorm) -> tuple[Array, Array]:
    """The weights of a layer normalization."""
    return array(module.weight), array(module.bias)


def normal(x: Array, weights: tuple[Array, Array]) -> Array:
    """Layer normalization of x [batch, frames, width]."""
    return unflat(normalize(flat(x), *weights), x)


def times(x: Array, by: Product) -> Array:
    """The product of x [batch, frames, inputs]."""
    return unflat(multiply(flat(x), *by), x)


def flat(x: Array) -> Array:
    """Rows of frames."""
    return np.ascontiguousarray(x).reshape(-1, x.shape[-1])


def unflat(rows: Array, like: Array) -> Array:
    """Frames [batch, frames, ...] of rows."""
    return rows.reshape(*like.shape[:2], -1)
