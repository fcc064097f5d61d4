"""Gain-shape quantization: codebook 0 is the spectral envelope, the others code the spectrum divided by it.

As in CELT (Valin et al. 2010, section 3) and CELP, the level of a frame is coded apart from its waveform, so that the
quality does not depend on the level. One frame of three bins, with one band and one residual codebook:

    bins          (0.6, -0.3, 0.0)     gain 0.4, the root mean square
    codebook 0    0.5                  the nearest gain
    divided       (1.2, -0.6, 0.0)     the shape, independent of the level
    codebook 1    (1.0, -0.5, 0.1)     the nearest entry
    decoded       (0.5, -0.25, 0.05)

A few entries of codebook 0 are modes instead of envelopes. In frames of a mode, the other codebooks index fixed tables
of single MDCT bins (a tone) or single samples (a click), each with a sign and an amplitude that decreases from codebook
to codebook. One more entry is silence. A learned codebook has no entry for every frequency; these tables do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.exporting import Cosines, for_rows, is_exporting
from codec.nn.quantize.base import Quantized, Quantizer, keep_prefix
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.quantize.vq import VectorQuantizer, lowest
from codec.nn.shapes import Codes, Latents

SILENCE = 5e-6  # gain below which a frame is silence: -108 dBFS, because `measure` adds -110 dBFS to all frames
RANGE = 1e-6  # share of the loudest band's power that is added to each band, so that bands below -60 dB do not matter
GAIN_WEIGHT = 5.0  # weight of the log gain, relative to the log shape of a band, in the distance of codebook 0
STEP = 0.3  # between log gains of modes: 2.6 dB
TONE = (0.73, 0.45, 0.30, 0.22, 0.17, 0.13, 0.11, 0.10, 0.08, 0.07, 0.06)  # amplitudes from codebook 1 on
CLICK = (1.0,)
TONE_ERROR = 0.08  # largest share of the weighted energy in the residual of a tone: -11 dB
HIGH = 2500  # Hz, above which the residual codebooks hardly code the waveform
HIGH_TONE_ERROR = 0.3  # TONE_ERROR of frames above HIGH, because fast chirps and birdsong should not become noise
HIGH_SHARE = 0.8  # share of the weighted energy above HIGH in such frames
CLICK_ERROR = 0.3


class Envelope(nn.Module):
    """The spectral envelope of a frame: a gain, and the shape of `bands` mel-spaced bands relative to it.

    Bands are triangles around knots that are equally spaced in mel from 0 Hz to half the sample rate. An envelope is a
    vector [..., bands + 1]: the natural logarithm of each band's level minus the log gain, then `GAIN_WEIGHT` times the
    log gain.
    """

    weights: Tensor
    curve: Tensor
    half_curve: Tensor

    def __init__(self, *, bands: int, hop: int, sample_rate: int, exponent: float) -> None:
        super().__init__()
        self.bands = bands
        self.exponent = exponent
        curve = interpolation((torch.arange(hop) + 0.5) * sample_rate / (2 * hop), bands, sample_rate)
        half = interpolation(torch.arange(hop // 2 + 1) * sample_rate / hop, bands, sample_rate)
        self.register_buffer("curve", curve, persistent=False)  # [bands, hop]
        self.register_buffer("half_curve", half, persistent=False)  # [bands, hop / 2 + 1]
        weights = (curve / curve.sum(dim=1, keepdim=True).clamp(min=1e-5)).T.contiguous()
        self.register_buffer("weights", weights, persistent=False)  # [hop, bands]

    def measure(self, cosine: Tensor, sine: Tensor) -> Tensor:
        """Envelope of frames from MDCT and MDST bins [..., hop]; the MDST makes the level independent of phase."""
        power = (cosine.square() + sine.square()) / 2
        mean = power.mean(dim=-1, keepdim=True) * 1e6 + 1e-5  # scaled, because -110 dBFS is 1e-11
        bands = power @ self.weights * 1e6 + 1e-5
        bands = bands + RANGE * bands.amax(dim=-1, keepdim=True)
        gain = 0.5 * (mean.log() - math.log(1e6))
        shape = 0.5 * (bands.log() - math.log(1e6)) - gain
        return torch.cat([shape, GAIN_WEIGHT * gain], dim=-1)

    def log_gain(self, envelope: Tensor) -> Tensor:
        """Natural logarithm of the gain [..., 1]."""
        return envelope[..., self.bands :] / GAIN_WEIGHT

    def divisor(self, envelope: Tensor) -> Tensor:
        """Divisor [..., hop] of MDCT bins before quantization: gain * shape ** exponent."""
        return self.at(envelope, self.curve, self.exponent)

    def level(self, envelope: Tensor) -> Tensor:
        """Expected magnitude of MDCT bins [..., hop]."""
        return self.at(envelope, self.curve)

    def half_level(self, envelope: Tensor) -> Tensor:
        """Expected magnitude of the bins [..., hop / 2 + 1] of a frame of half the length."""
        return self.at(envelope, self.half_curve)

    def at(self, envelope: Tensor, curve: Tensor, exponent: float = 1.0) -> Tensor:
        """gain * shape ** exponent at the bins of a curve [bands, bins]."""
        return (self.log_gain(envelope) + exponent * (envelope[..., : self.bands] @ curve)).exp()


def interpolation(frequencies: Tensor, bands: int, sample_rate: int) -> Tensor:
    """Weights [bands, bins] of triangles around mel-spaced knots; the weights at each frequency in Hz add up to 1."""
    mel = torch.log1p(frequencies.double() / 700)
    position = (mel / math.log1p(sample_rate / 2 / 700) * bands - 0.5).clamp(0, bands - 1)
    knots = torch.arange(bands, dtype=torch.float64)
    return (1 - (position - knots[:, None]).abs()).clamp(min=0).float()


class Modes(nn.Module):
    """Frames of a few atoms: MDCT bins for a tone, samples of the folded frame for a click.

    `gains` [modes] are natural logarithms, those of tones first. A code is twice the index of the atom, plus one if its
    sign is negative.
    """

    to_samples: Tensor
    gains: Tensor
    tone: Tensor
    click: Tensor

    def __init__(self, *, hop: int, sample_rate: int, num_codebooks: int, codebook_size: int, steps: int) -> None:
        super().__init__()
        self.hop = hop
        self.high = min(hop, round(HIGH / (sample_rate / 2) * hop))  # the first bin above
        self.places = min(hop, codebook_size // 2)
        self.clicks = steps * 3 // 8 if self.places == hop else 0
        self.tones = steps - self.clicks
        ladder = torch.zeros(2, num_codebooks)
        for row, amplitudes in enumerate((TONE, CLICK)):
            amplitudes = amplitudes[:num_codebooks]
            ladder[row, : len(amplitudes)] = torch.tensor(amplitudes)
        self.register_buffer("tone", ladder[0].clone(), persistent=False)
        self.register_buffer("click", ladder[1].clone(), persistent=False)
        # the bins of a full-scale sine have a norm of at most sqrt(hop), those of a click the norm of its sample
        kinds = ((self.tones, math.log(hop**0.5)), (self.clicks, 0.0))
        gains = [loudest - STEP * step for count, loudest in kinds for step in range(count)]
        self.register_buffer("gains", torch.tensor(gains), persistent=False)
        self.register_buffer("to_samples", dct_iv(hop), persistent=False)
        self.cosines = Cosines(8 * hop)

    def __len__(self) -> int:
        return self.tones + self.clicks

    def find(self, bins: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(mode [rows], codes [rows, codebooks]) of MDCT bins [rows, hop]; the mode is -1 if none fits.

        `weight` [rows, hop] is the weight of an error in each bin.
        """
        rows = bins.shape[0]
        mode = torch.full((rows,), -1, dtype=torch.int64, device=bins.device)
        codes = torch.zeros(rows, len(self.tone), dtype=torch.int64, device=bins.device)
        energy = bins.square().sum(dim=-1)
        audible = energy > self.hop * SILENCE**2
        power = (bins * weight).square()
        largest = power[:, : self.places].topk(min(len(self.tone), self.places), dim=-1, sorted=False).values
        total = power.sum(dim=-1)
        most = torch.where(power[:, self.high :].sum(dim=-1) > HIGH_SHARE * total, HIGH_TONE_ERROR, TONE_ERROR)
        few = (largest.sum(dim=-1) > (1 - most) * total) & audible
        mode, codes = for_rows(self.fit_tones, few, (bins, weight, most), (mode, codes))
        if self.clicks:
            samples = self.folded(bins)
            peak = samples.square().amax(dim=-1)
            few = (peak > (1 - CLICK_ERROR) * energy) & audible & (mode < 0)
            mode, codes = for_rows(self.fit_clicks, few, (samples,), (mode, codes))
        return mode, codes

    def fit_tones(self, bins: Tensor, weight: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
        """(mode, codes) as in `find` of the nearest tones, whose error is at most a share of `most` [rows]."""
        return fit_atoms(bins, weight, self.gains[: self.tones], self.tone, most, self.places)

    def fit_clicks(self, samples: Tensor) -> tuple[Tensor, Tensor]:
        """(mode, codes) as in `find` of the nearest clicks to folded frames [rows, hop]."""
        even, most = torch.ones_like(samples), torch.full_like(samples[:, 0], CLICK_ERROR)
        step, codes = fit_atoms(samples, even, self.gains[self.tones :], self.click, most, self.places)
        return torch.where(step < 0, -1, self.tones + step), codes

    def decode(self, mode: Tensor, codes: Tensor) -> Tensor:
        """MDCT bins [rows, hop] of modes [rows] and codes [rows, codebooks]; code -1 adds no atom."""
        out = torch.zeros(mode.shape[0], self.hop, device=mode.device)
        count = codes.shape[1]
        click = mode >= self.tones
        amplitudes = (
            torch.where(click[:, None], self.click[:count], self.tone[:count]) * self.gains[mode].exp()[:, None]
        )
        amplitudes = torch.where(codes < 0, 0.0, amplitudes)
        place = (codes // 2).clamp(0, self.hop - 1)  # because files may contain any code
        out.scatter_add_(1, place, amplitudes * (1 - 2 * (codes % 2)))
        return torch.where(click[:, None], self.folded(out), out)

    def folded(self, bins: Tensor) -> Tensor:
        """Folded frames [rows, hop] of MDCT bins [rows, hop], and the other way around."""
        return bins @ (self.exported_to_samples() if is_exporting() else self.to_samples)

    def exported_to_samples(self) -> Tensor:
        """`to_samples` of an exported graph, within the rounding of float32."""
        k = 2 * torch.arange(self.hop) + 1
        matrix: Tensor = self.cosines(k[:, None] * k) * math.sqrt(2 / self.hop)
        return matrix


def dct_iv(hop: int) -> Tensor:
    """The orthonormal DCT-IV [hop, hop], its own inverse."""
    k = torch.arange(hop, dtype=torch.float64) + 0.5
    return (math.sqrt(2 / hop) * torch.cos(math.pi / hop * k[:, None] * k)).float()


def fit_atoms(
    signal: Tensor, weight: Tensor, gains: Tensor, ladder: Tensor, most: Tensor, places: int
) -> tuple[Tensor, Tensor]:
    """(index of the log gain [rows], codes [rows, codebooks]) with the smallest residual of signals [rows, hop].

    Index -1 and codes 0 if the residual has more than a share of `most` [rows] of the weighted energy.
    """
    size = signal.square().sum(dim=-1).sqrt()
    nearest = (size.log()[:, None] - gains).abs().argmin(dim=-1)
    best = most * (signal * weight).square().sum(dim=-1)
    found = torch.full_like(nearest, -1)
    codes = torch.zeros(signal.shape[0], len(ladder), dtype=torch.int64, device=signal.device)
    for offset in (-1, 0, 1):
        step = (nearest + offset).clamp(0, len(gains) - 1)
        chosen, left = pursue(signal, gains[step].exp(), ladder, places)
        error = (left * weight).square().sum(dim=-1)
        better = error < best
        best = torch.where(better, error, best)
        found = torch.where(better, step, found)
        codes = torch.where(better[:, None], chosen, codes)
    return found, codes


def pursue(signal: Tensor, gain: Tensor, ladder: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Matching pursuit: codes [rows, codebooks] and residuals of signals [rows, hop].

    Each codebook takes the largest bin of the residual.
    """
    left = signal / gain[:, None]
    codes = []
    for amplitude in ladder.unbind():
        place = left[:, :places].abs().argmax(dim=-1, keepdim=True)
        value = left.gather(1, place)
        negative = value < 0
        code = torch.where(amplitude > 0, 2 * place + negative, 0)
        left = left.scatter_add(1, place, torch.where(negative, amplitude, -amplitude))
        codes.append(code)
    return torch.cat(codes, dim=1), left * gain[:, None]


class Parts(NamedTuple):
    """Parts of the latents [batch, ..., frames]."""

    residual: Tensor
    """[batch, dim, frames]: input of the residual codebooks."""
    envelope: Tensor
    """[batch, bands + 1, frames]: see `Envelope`."""
    learned: Tensor
    """[batch, 1, frames]: share of the residual codebooks that the frame uses; -1 for a mode or silence."""
    bins: Tensor
    """[batch, hop, frames]: MDCT bins; decoded, those of a mode, and 0 in other frames."""


class GainShapeVQ(Quantizer):
    """Codebook 0 is an envelope or a mode; the others are a `ResidualVQ` or the tables of the mode.

    Latents [batch, dim + bands + 2 + hop, frames] are `Parts`.
    """

    decodes_to_latents = True
    per_frame = True
    envelopes: Tensor

    def __init__(
        self,
        residual: ResidualVQ,
        *,
        dim: int,
        hop: int,
        bands: int,
        sample_rate: int,
        exponent: float,
        modes: int,
    ) -> None:
        super().__init__()
        self.num_codebooks = residual.num_codebooks + 1
        self.codebook_size = residual.codebook_size
        self.sizes = (dim, bands + 1, 1, hop)
        self.modes = Modes(
            hop=hop,
            sample_rate=sample_rate,
            num_codebooks=residual.num_codebooks,
            codebook_size=self.codebook_size,
            steps=modes,
        )
        self.silence = self.codebook_size - 1 - len(self.modes)
        """The code of silence; lower codes are envelopes, higher codes modes."""
        self.envelope = Envelope(bands=bands, hop=hop, sample_rate=sample_rate, exponent=exponent)
        envelopes = torch.randn(self.silence, bands + 1)
        envelopes[:, -1] = GAIN_WEIGHT * torch.linspace(-7, 0, self.silence)
        self.register_buffer("envelopes", envelopes)
        self.residual = residual

    @property
    def strict_prefix(self) -> bool:
        return self.residual.strict_prefix

    def nearest(self, envelope: Tensor) -> Tensor:
        """Codes [rows] of the nearest entries to envelopes [rows, bands + 1]."""
        errors = torch.addmm(self.envelopes.square().sum(dim=-1), envelope, self.envelopes.T, alpha=-2)
        return lowest(errors, 1)[:, 0]

    def split(self, latents: Latents) -> Parts:
        """Split latents into their parts."""
        return Parts(*latents.split_with_sizes(self.sizes, dim=1))

    @torch.no_grad()
    def first_codes(self, parts: Parts) -> tuple[Tensor, Tensor]:
        """(codes of codebook 0 [batch, frames], codes of the other codebooks in modes [batch, codebooks, frames])."""
        batch, _, frames = parts.envelope.shape
        envelope, bins = (part.transpose(1, 2).flatten(0, 1).float() for part in (parts.envelope, parts.bins))
        code = self.nearest(envelope)
        codes = torch.zeros(batch * frames, self.residual.num_codebooks, dtype=torch.int64, device=code.device)
        if len(self.modes):
            shape = envelope[:, :-1] @ self.envelope.curve
            mode, codes = self.modes.find(bins, (-0.5 * shape).exp())
            code = torch.where(mode >= 0, self.silence + 1 + mode, code)
        silent = self.envelope.log_gain(envelope)[:, 0] < math.log(SILENCE)
        code = torch.where(silent, self.silence, code).view(batch, frames)
        return code, codes.view(batch, frames, self.residual.num_codebooks).transpose(1, 2)

    def encode(self, latents: Latents, num_codebooks: int | None = None) -> Codes:
        num_codebooks = num_codebooks or self.num_codebooks
        with torch.autocast(latents.device.type, enabled=False):
            parts = self.split(latents)
            code, others = self.first_codes(parts)
            if num_codebooks == 1:
                return code[:, None]
            residual = self.residual.encode(parts.residual, num_codebooks - 1)
            return self.joined(code, others[:, : num_codebooks - 1], residual)

    def joined(self, code: Tensor, others: Tensor, residual: Tensor) -> Codes:
        """Codes of all codebooks: `residual`, or `others` in frames of modes and 0 in those of silence."""
        fixed = (code >= self.silence)[:, None]
        others = torch.where((code > self.silence)[:, None], others, 0)
        return torch.cat([code[:, None], torch.where(fixed, others, residual)], dim=1)

    def encode_prefix(self, latents: Latents, num_codebooks: Tensor) -> Codes:
        with torch.autocast(latents.device.type, enabled=False):
            parts = self.split(latents)
            residual = self.residual.encode_prefix(parts.residual, num_codebooks - 1)
            return keep_prefix(self.joined(*self.first_codes(parts), residual), num_codebooks)

    def decode_prefix(self, codes: Codes) -> Latents:
        others = codes[:, 1:]
        share = (others >= 0).sum(dim=1, keepdim=True) / self.residual.num_codebooks  # [batch, 1, frames]
        return self.assemble(codes, self.residual.decode_prefix(others), share)

    def decode(self, codes: Codes) -> Latents:
        residual = self.residual.decode(codes[:, 1:]) if codes.shape[1] > 1 else None
        return self.assemble(codes, residual, (codes.shape[1] - 1) / self.residual.num_codebooks)

    def assemble(self, codes: Codes, residual: Tensor | None, share: float | Tensor) -> Latents:
        """Decoded latents of codes [batch, codebooks, frames] and their decoded residual.

        `share` [batch] or [batch, 1, frames], or one for all items, as in `Parts.learned`.
        """
        batch, count, frames = codes.shape
        code = codes[:, 0]
        learned = (code < self.silence)[:, None]
        envelope = F.embedding(code.clamp(max=self.silence - 1), self.envelopes).transpose(1, 2)
        envelope = torch.where(learned, envelope, 0.0)
        if residual is None:
            residual = envelope.new_zeros(batch, self.sizes[0], frames)
        share = torch.as_tensor(share, device=codes.device, dtype=envelope.dtype)
        share = share if share.ndim == 3 else share.view(-1, 1, 1)
        bins = envelope.new_zeros(batch * frames, self.sizes[-1])
        if len(self.modes) and count > 1:
            mode = (code - self.silence - 1).flatten()
            others = codes[:, 1:].transpose(1, 2).flatten(0, 1)  # [batch * frames, codebooks - 1]
            decode = self.modes.decode
            inputs = mode.clamp(min=0), others
            (bins,) = for_rows(lambda *rows: (decode(*rows),), mode >= 0, inputs, (bins,))
        return torch.cat(
            [
                torch.where(learned, residual, 0.0),
                envelope,
                torch.where(learned, share, -1.0),
                bins.view(batch, frames, self.sizes[-1]).transpose(1, 2),
            ],
            dim=1,
        )

    def forward(self, latents: Latents, num_codebooks: Tensor | None = None) -> Quantized:
        if num_codebooks is None:
            num_codebooks = torch.full((len(latents),), self.num_codebooks, device=latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            parts = self.split(latents.float())
            code, others = self.first_codes(parts)
            learned = code < self.silence  # [batch, frames]
            residual: Quantized = self.residual(parts.residual, torch.where(learned, num_codebooks[:, None] - 1, 0))
            kept = (
                num_codebooks[:, None, None] - 1
                > torch.arange(self.residual.num_codebooks, device=code.device)[:, None]
            )
            fixed = torch.where(kept, others, -1)
            used = torch.where(learned[:, None], residual.codes, -1)  # modes use no entry of the residual codebooks
            decoded = self.assemble(
                torch.cat([code[:, None], torch.where(learned[:, None], residual.codes.clamp(min=0), fixed)], dim=1),
                residual.latents,
                (num_codebooks - 1) / self.residual.num_codebooks,
            )
        return residual._replace(latents=decoded, codes=torch.cat([code[:, None], used], dim=1))

    def codebook_vectors(self) -> Tensor:
        """Vectors of the residual and the envelope, concatenated; 0 for modes and silence."""
        residual = self.residual.codebook_vectors()
        first = F.pad(self.envelopes, (0, 0, 0, self.codebook_size - self.silence))  # [codebook_size, bands + 1]
        return torch.cat([F.pad(first, (self.sizes[0], 0))[None], F.pad(residual, (0, first.shape[1]))])

    def update_codebook(self, parts: Sequence[Quantized]) -> None:
        self.residual.update_codebook([part._replace(codes=part.codes[:, 1:]) for part in parts])

    @torch.no_grad()
    def init_envelopes(self, envelope: Tensor, iterations: int = 20) -> None:
        """k-means of codebook 0 on envelopes [rows, bands + 1] of frames that are not silent.

        A quarter of them gets a random gain from silence to full scale, so that the entries cover shapes at all levels.
        """
        envelope = envelope.clone()
        shifted = torch.rand(len(envelope), device=envelope.device) < 0.25
        lowest = math.log(SILENCE)
        envelope[shifted, -1] = GAIN_WEIGHT * (lowest - lowest * torch.rand_like(envelope[shifted, -1]))
        table = VectorQuantizer(envelope.shape[1], self.silence).to(envelope.device)
        table.init_from_data(envelope.T[None], iterations)
        self.envelopes.copy_(table.codebook)

    @torch.no_grad()
    def init_from_data(self, latents: Latents, iterations: int = 10) -> None:
        """k-means of the residual codebooks on frames that are neither modes nor silence, or on all if none remain."""
        self.residual.init_from_data(self.learned_residual(latents), iterations)

    @torch.no_grad()
    def init_added(self, latents: Latents, known: int, iterations: int = 10) -> None:
        """As `init_from_data`, for the codebooks after the first `known`."""
        self.residual.init_added(self.learned_residual(latents), known - 1, iterations)

    def learned_residual(self, latents: Latents) -> Tensor:
        """Residual [1, dim, frames] of the frames that are neither modes nor silence, or of all if none remain."""
        parts = self.split(latents)
        learned = self.first_codes(parts)[0] < self.silence
        learned = learned | ~learned.any()
        return parts.residual.transpose(1, 2)[learned].T[None]
