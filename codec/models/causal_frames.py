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
    COMPAND_FLOOR,
    GAIN_RANGE,
    MOST_SPECTRUM_GAIN,
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
    compiled,
    convnext,
    entry_columns,
    entry_sums,
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
    Parts,
)
from codec.nn.streaming import Chain, State

NEAR = 0.999  # of a threshold, from which torch decides, because it sums in another order


def frame_steps(model: CausalCodec) -> CausalFrames | None:
    """The steps of a model, if its quantizer is of the kind that is computed here."""
    shape = model.shape
    return CausalFrames(model, shape) if shape and model.has_frame_steps else None


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
        self.inverse_after, self.inverse_before = self.after.conj(), 2 * size * self.before.conj()

    def forward(self, x: Array) -> Array:
        """Complex [..., size] of x [..., length of the window]."""
        out: Array = np.fft.fft(x * self.before, 2 * self.size)[..., : self.size] * self.after
        return out

    def inverse(self, bins: Array) -> Array:
        """The transpose of the real part of `forward`."""
        frames = np.fft.ifft(bins * self.inverse_after, 2 * self.size) * self.inverse_before
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
        """Envelopes of twice the power of bins [batch, frames, hop]."""
        rows = flat(power)
        return unflat(measured(rows, multiply(rows, *self.weights)), power)

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

    def log_divisor(self, envelope: Array) -> Array:
        """Natural logarithm of the divisor of the bins."""
        return self.log_gain(envelope) + np.float32(self.exponent) * self.log_shape(envelope, self.curve)

    def log_half_level(self, envelope: Array) -> Array:
        """Natural logarithm of the expected magnitude of bins of half frames."""
        return self.log_gain(envelope) + self.log_shape(envelope, self.half_curve)


class EncoderFrames:
    """The steps of `codec.models.causal.Encoder`."""

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
        bins, power = (unflat(part, spectrum) for part in bins_and_power(flat(spectrum)))
        envelope = self.envelopes.measure(power)
        nearest = self.envelopes.nearest(envelope)
        decoded = self.envelopes.entries[nearest]
        log_divisor = self.envelopes.log_divisor(decoded)
        normalized = relative(flat(bins), flat(power), flat(log_divisor), self.companding)
        companded, magnitude = (unflat(part, bins) for part in normalized)
        x = times(np.concatenate([companded, magnitude, envelope - decoded], axis=2), self.in_proj)
        x, inner = through(self.blocks, x, state.backbone)
        residual = times(companded, self.pca) + times(normal(x, self.norm), self.out_proj)
        return residual, envelope, nearest, bins, EncoderState(cast(Tensor, hops[:, -1].copy()), inner)


class GainShapeFrames:
    """The search and the tables of `codec.nn.quantize.gain_shape.GainShapeVQ`."""

    def __init__(self, shape: GainShapeVQ, envelopes: EnvelopeFrames) -> None:
        self.shape, self.envelopes = shape, envelopes
        codebooks = [array(stage.codebook) for stage in shape.residual.stages]
        self.num_codebooks, self.beams = len(codebooks), shape.residual.beam_size
        self.entries = stored(np.stack(codebooks))  # [codebooks, codebook_size, dim]
        self.columns = entry_columns(self.entries)
        self.norms = np.stack([np.square(codebook).sum(axis=1) for codebook in codebooks])
        hop = shape.sizes[3]
        self.fold = ShiftedDFT(hop, 0.5, np.full(hop, math.sqrt(2 / hop)))

    def encode(self, residual: Array, envelope: Array, nearest: Array, bins: Array, num_codebooks: int) -> Array:
        """Codes [batch, codebooks, frames] of what `EncoderFrames.step` gives."""
        code, others = self.first_codes(envelope, nearest, bins)
        if num_codebooks > 1:
            count = num_codebooks - 1
            codebooks = self.entries[:count], self.columns[:count], self.norms[:count]
            found = unflat(nearest_sums(flat(residual), *codebooks, self.beams), code)
            found = np.where((code >= self.shape.silence)[..., None], others[..., :count], found)
            code = np.concatenate([code[..., None], found], axis=2)
        return np.ascontiguousarray(np.atleast_3d(code).swapaxes(1, 2))

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
        audible: Array = energy > NEAR * modes.hop * SILENCE**2
        if not audible.any():
            return audible
        log_shape = self.envelopes.log_shape(envelope, self.envelopes.curve)
        near = tonal(flat(bins), flat(log_shape), len(modes.tone), modes.places, modes.high).reshape(audible.shape)
        if modes.clicks:
            peak = np.square(self.fold.forward(bins).real).max(axis=-1)
            near |= peak > NEAR * (1 - CLICK_ERROR) * energy
        audible &= near
        return audible

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
        residual = unflat(entry_sums(self.entries, flat(np.where(learned, others, -1))), code)
        share = np.where(learned, np.float32(others.shape[2] / self.num_codebooks), np.float32(-1))
        bins = np.zeros((*code.shape, self.shape.sizes[3]), np.float32)
        if others.shape[2] and (code > self.shape.silence).any():
            latents = self.shape.decode(torch.from_numpy(np.ascontiguousarray(codes)))
            bins = self.shape.split(latents).bins.transpose(1, 2).numpy()
        return residual, entries, share, bins


@compiled
def bins_and_power(spectrum: Array) -> tuple[Array, Array]:
    """The real part and the squared magnitude of a spectrum, float32."""
    bins, power = np.empty(spectrum.shape, np.float32), np.empty(spectrum.shape, np.float32)
    for row in range(spectrum.shape[0]):
        for index in range(spectrum.shape[1]):
            value = spectrum[row, index]
            bins[row, index], power[row, index] = value.real, value.real * value.real + value.imag * value.imag
    return bins, power


@compiled
def measured(power: Array, bands: Array) -> Array:
    """Envelopes [rows, bands + 1] of twice the power of the bins [rows, hop] and of the bands [rows, bands]."""
    rows, count = bands.shape
    envelope = np.empty((rows, count + 1), np.float32)
    half, unit = np.float32(0.5e6), np.float32(math.log(1e6))
    for row in range(rows):
        mean = half * power[row].mean() + np.float32(1e-5)
        largest = half * bands[row].max() + np.float32(1e-5)
        gain = np.float32(0.5) * (np.log(mean) - unit)
        for band in range(count):
            level = half * bands[row, band] + np.float32(1e-5) + np.float32(RANGE) * largest
            envelope[row, band] = np.float32(0.5) * (np.log(level) - unit) - gain
        envelope[row, count] = np.float32(GAIN_WEIGHT) * gain
    return envelope


@compiled
def relative(bins: Array, power: Array, log_divisor: Array, exponent: float) -> tuple[Array, Array]:
    """Companded bins and logarithms of magnitudes [rows, hop], both relative to the divisor."""
    companded, magnitude = np.empty_like(bins), np.empty_like(bins)
    floor = np.float32(COMPAND_FLOOR)
    lowest = floor ** np.float32(exponent)
    for row in range(bins.shape[0]):
        for index in range(bins.shape[1]):
            factor = np.exp(-log_divisor[row, index])
            value = bins[row, index] * factor
            size = (abs(value) + floor) ** np.float32(exponent) - lowest
            companded[row, index] = size if value >= 0 else -size
            square = power[row, index] * factor * factor
            magnitude[row, index] = np.float32(0.25) * np.log(square + np.float32(1e-3))
    return companded, magnitude


@compiled
def tonal(bins: Array, log_shape: Array, count: int, places: int, high: int) -> Array:
    """Whether the `count` largest of the first `places` bins have nearly all of the weighted power: bool [rows]."""
    rows, hop = bins.shape
    near, largest = np.empty(rows, np.bool_), np.empty(count, np.float32)
    for row in range(rows):
        total, above = np.float32(0), np.float32(0)
        largest[:] = 0  # falling
        for index in range(hop):
            power = bins[row, index] * bins[row, index] * np.exp(-log_shape[row, index])
            total += power
            if index >= high:
                above += power
            if index < places and power > largest[count - 1]:
                at = count - 1
                while at > 0 and largest[at - 1] < power:
                    largest[at] = largest[at - 1]
                    at -= 1
                largest[at] = power
        error = HIGH_TONE_ERROR if above > NEAR * HIGH_SHARE * total else TONE_ERROR
        near[row] = largest.sum() > NEAR * (1 - error) * total
    return near


class DecoderFrames:
    """The steps of `codec.models.causal.Decoder`."""

    def __init__(self, decoder: Decoder, envelopes: EnvelopeFrames) -> None:
        config = decoder.config
        self.hop, self.companding = config.hop, config.companding
        self.envelopes, self.mdct = envelopes, mdct(config.hop)
        self.pca, self.window = product(decoder.pca.T), array(decoder.window)
        self.noise = array(decoder.noise)
        self.in_proj, self.gain = layer(decoder.in_proj), layer(decoder.gain)
        self.fine_proj, self.head = layer(decoder.fine_proj), layer(decoder.head)
        self.spectrum_gain = decoder.spectrum_gain and layer(decoder.spectrum_gain)
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
        x = normal(x, self.fine_norm)
        head = times(x, self.head)
        if self.spectrum_gain:
            spectrum_gain = np.exp(np.minimum(times(x, self.spectrum_gain), np.float32(MOST_SPECTRUM_GAIN)))
            head[..., : 2 * spectrum_gain.shape[2]] *= np.tile(spectrum_gain, 2)  # real and imaginary parts
        on = (share >= 0).astype(np.float32)
        linear = scaled(
            flat(times(residual, self.pca)), flat(self.envelopes.log_divisor(envelope)), flat(gain), self.companding
        )
        bins = bins + on * unflat(linear, bins)
        audio, half = overlap_add(self.mdct.inverse(bins), cast(Any, state.half))
        log_level, position = self.envelopes.log_half_level(envelope), cast(Any, state.position)
        short = self.spectrum(flat(head), flat(log_level), on, position)
        own, fine_half = overlap_add(short * self.window, cast(Any, state.fine_half))
        after = DecoderState(inner, fine, *cast(Any, (half, fine_half, (position + frames) % NOISE_FRAMES)))
        return audio + own, after

    def spectrum(self, head: Array, log_level: Array, on: Array, position: Array) -> Array:
        """Short frames [batch, 2 frames, hop] of the network's spectrum and noise, from rows of frames."""
        batch, frames, _ = on.shape
        spectrum = noisy(head, log_level, on.reshape(-1), self.noise, position)
        short: Array = np.fft.irfft(spectrum, self.hop, norm="ortho").astype(np.float32, copy=False)
        return short.reshape(batch, 2 * frames, self.hop)


@compiled
def noisy(head: Array, log_level: Array, on: Array, noise: Array, position: Array) -> Array:
    """Complex spectra [2 * rows, bins] of half frames from what the head gives for them [2 * rows, 3 * bins].

    `log_level` [rows, bins] and `on` [rows] are those of whole frames, `noise` [half frames, 2 * bins] a table that is
    read from twice the `position` [batch] on.
    """
    bins, frames = log_level.shape[1], head.shape[0] // len(position)
    spectrum = np.zeros((head.shape[0], bins), np.complex64)
    least, most = np.float32(NOISE_RANGE[0]), np.float32(NOISE_RANGE[1])
    for row in range(head.shape[0]):
        table = noise[(2 * position[row // frames] + row % frames) % len(noise)]
        for index in range(bins if on[row // 2] else 0):
            level = np.exp(log_level[row // 2, index])
            loudness = np.exp(min(max(head[row, 2 * bins + index], least), most))
            real = head[row, index] + loudness * table[index]
            imaginary = head[row, bins + index] + loudness * table[bins + index]
            spectrum[row, index] = complex(level * real, level * imaginary)
    return spectrum


@compiled
def scaled(companded: Array, log_divisor: Array, gain: Array, exponent: float) -> Array:
    """Bins [rows, hop] of companded ones, times the divisor and the gain."""
    bins, floor = np.empty_like(companded), np.float32(COMPAND_FLOOR)
    lowest, inverse = floor ** np.float32(exponent), np.float32(1 / exponent)
    least, most = np.float32(GAIN_RANGE[0]), np.float32(GAIN_RANGE[1])
    for row in range(bins.shape[0]):
        for index in range(bins.shape[1]):
            value = companded[row, index]
            size = (abs(value) + lowest) ** inverse - floor
            size *= np.exp(log_divisor[row, index] + min(max(gain[row, index], least), most))
            bins[row, index] = size if value >= 0 else -size
    return bins


def overlap_add(frames: Array, before: Array) -> tuple[Array, Array]:
    """Add overlapping frames, as `codec.models.causal.overlap_add`."""
    hop = frames.shape[2] // 2
    audio = frames[:, :, :hop].copy()
    audio[:, 0] += before
    audio[:, 1:] += frames[:, :-1, hop:]
    return audio.reshape(len(audio), -1), frames[:, -1, hop:].copy()


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
    return np.ascontiguousarray(x).reshape(x.shape[0] * x.shape[1], x.shape[2])


def unflat(rows: Array, like: Array) -> Array:
    """Frames [batch, frames, ...] of rows."""
    return rows.reshape(*like.shape[:2], -1)
