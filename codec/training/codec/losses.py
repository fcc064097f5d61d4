"""Losses of a codec: multi-scale spectra, perceptual measures, artifacts at the frame rate, and adversarial losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import librosa
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from codec.nn.shapes import Audio
from codec.nn.spectra import BandFilters, power, short_time_spectra

SCALES = ((5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048))
"""(mel bands, window in samples) of DAC's multi-scale mel loss (section 3.5); each hop is a quarter window."""


class Spectral(NamedTuple):
    """Distances by `SpectralLoss`."""

    mel: Tensor
    complex_stft: Tensor
    noise_to_mask: Tensor
    pesq_like: Tensor
    stoi_like: Tensor


class SpectralLoss(nn.Module):
    """Distances of two signals through one set of short-time spectra.

    `mel` is the sum over scales of mean |log10 mel - log10 mel'| (DAC, section 3.5). `complex_stft` is the distance of
    the complex spectra with magnitudes compressed to |S|^0.5, relative to the mean magnitude of the reference
    (compression as in Braun and Tashev 2020, eq. 5). `noise_to_mask` is the root of the noise-to-signal ratio of each
    mel band and frame, at most 2, because loud sound masks noise in its own band only (the noise-to-mask ratio of
    Brandenburg 1987). These two depend on phase; they are means over the windows of 256 samples and more. `pesq_like`
    and `stoi_like` are of `PerceptualLoss`.
    """

    def __init__(self, sample_rate: int, scales: Sequence[tuple[int, int]] = SCALES, phase_from: int = 256) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.phase_from = phase_from
        self.perceptual = PerceptualLoss(sample_rate)
        self.filters: dict[int, BandFilters] = {}
        for bands, window in self.scales:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the smallest windows leave some mel bands empty, by definition
                filters = librosa.filters.mel(sr=sample_rate, n_fft=window, n_mels=bands)
            self.filters[window] = BandFilters(torch.from_numpy(filters))
            self.register_buffer(f"mel_{window}", torch.from_numpy(filters).float(), persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, decoded: Audio, audio: Audio, half: int | None = None) -> Spectral:
        """Distances of [batch, 1, time] signals at all scales, or at every second scale from index `half` (0 or 1).

        The two halves take half the time each, and their mean is the distance at all scales.
        """
        scales = self.scales if half is None else self.scales[half::2]
        mel, complex_stft, noise_to_mask = decoded.new_zeros(()), decoded.new_zeros(()), decoded.new_zeros(())
        complex_scales = sum(window >= self.phase_from for _, window in scales)
        for _, window in scales:
            hann, filters = self.get_buffer(f"window_{window}"), self.get_buffer(f"mel_{window}")
            decoded_spectra = short_time_spectra(decoded[:, 0].float(), hann, window // 4)
            with torch.no_grad():
                reference_spectra = short_time_spectra(audio[:, 0].float(), hann, window // 4)
            distances = scale_distances(
                decoded_spectra, reference_spectra, filters, self.filters[window], complex_too=window >= self.phase_from
            )
            mel = mel + distances[0]
            complex_stft, noise_to_mask = complex_stft + distances[1], noise_to_mask + distances[2]
        pesq_like, stoi_like = self.perceptual(decoded, audio)
        return Spectral(
            mel if half is None else 2 * mel,
            complex_stft / max(complex_scales, 1),
            noise_to_mask / max(complex_scales, 1),
            pesq_like,
            stoi_like,
        )


def scale_distances(
    decoded: Tensor, audio: Tensor, filters: Tensor, groups: BandFilters, *, complex_too: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`mel`, `complex_stft` and `noise_to_mask` of spectra [2, batch, frames, bins]; only `decoded` gets a gradient.

    Unless `complex_too`, only `mel`, and zeros.
    """
    distances: tuple[Tensor, Tensor, Tensor] = _ScaleDistances.apply(decoded, audio, filters, groups, complex_too)
    return distances


class _ScaleDistances(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, decoded: Tensor, audio: Tensor, filters: Tensor, groups: BandFilters, complex_too: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.groups = groups
        ctx.set_materialize_grads(False)  # a loss without a weight costs nothing in the backward pass
        decoded_power, audio_power = power(decoded), power(audio)
        magnitude = (decoded_power + 1e-12).sqrt_()
        mel = groups.apply(filters, magnitude)  # [batch, frames, bands]
        audio_mel = groups.apply(filters, (audio_power + 1e-12).sqrt_())
        difference = mel.clamp(min=1e-5).log10_() - audio_mel.clamp(min=1e-5).log10_()
        saved = [decoded, filters, magnitude, mel, difference]
        zero = decoded.new_zeros(())
        if not complex_too:
            ctx.save_for_backward(*saved)
            return difference.abs().mean(), zero, zero.clone()

        audio_compression = (audio_power + 1e-7).rsqrt_().sqrt_()
        size = audio_power.sqrt().mul_(audio_compression).mean(dim=(1, 2)) + 1e-3  # [batch]
        compression = (decoded_power + 1e-7).rsqrt_().sqrt_()
        compressed = (decoded * compression).addcmul_(audio, audio_compression, value=-1)
        distance = power(compressed).add_(1e-9).sqrt_()
        complex_stft = (distance.mean(dim=(1, 2)) / size).mean()

        signal = groups.apply(filters, audio_power)
        masking = signal + 1e-4 * signal.mean(dim=(1, 2), keepdim=True) + 1e-7
        error = decoded - audio
        ratio = (groups.apply(filters, power(error)) / masking + 1e-6).sqrt_()
        noise_to_mask = ratio.clamp(max=2).mean()
        ctx.save_for_backward(*saved, decoded_power, size, compression, compressed, distance, masking, error, ratio)
        return difference.abs().mean(), complex_stft, noise_to_mask

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_mel: Tensor | None, of_complex_stft: Tensor | None, of_noise_to_mask: Tensor | None
    ) -> tuple[Tensor, None, None, None, None]:
        decoded, filters, magnitude, mel, difference, *others = ctx.saved_tensors
        weight, gradient = torch.zeros_like(magnitude), None  # the gradient is `weight * decoded + gradient`
        if of_mel is not None:
            scale = of_mel / (mel.numel() * math.log(10))
            of_bands = difference.sign() * (mel >= 1e-5) / mel.clamp(min=1e-5) * scale
            weight = ctx.groups.transposed(filters, of_bands).div_(magnitude)
        if of_complex_stft is not None and others:
            decoded_power, size, compression, compressed, distance, *_ = others
            scale = of_complex_stft / (len(size) * distance[0].numel()) / size  # [batch]
            gradient = compressed * (compression / distance).mul_(scale[:, None, None])
            along = (decoded[0] * gradient[0]).addcmul_(decoded[1], gradient[1])
            weight.addcdiv_(along, decoded_power + 1e-7, value=-0.5)
        if of_noise_to_mask is not None and others:
            *_, masking, error, ratio = others
            of_bands = (ratio <= 2) / (ratio * masking) * (of_noise_to_mask / ratio.numel())
            of_bins = ctx.groups.transposed(filters, of_bands)
            gradient = error * of_bins if gradient is None else gradient.addcmul_(error, of_bins)
        whole = decoded * weight if gradient is None else gradient.addcmul_(decoded, weight)
        return whole, None, None, None, None


class PerceptualLoss(nn.Module):
    """Differentiable versions of PESQ and STOI, which were fitted to listening tests, on 32 ms windows every 16 ms.

    `pesq_like` follows PESQ (ITU-T P.862, section 10.2): power in bands of half a Bark, loudness by Zwicker's law, the
    difference beyond a quarter of the softer loudness, added sound weighted far more than missing sound, and norms over
    time that the worst frames dominate, each frame at most 45. It is what PESQ subtracts from 4.5, without its
    alignment of time, level and frequency response.

    `stoi_like` follows STOI (Taal et al. 2011, section II): 1 minus the mean correlation of the envelopes of one-third
    octave bands from 150 Hz over 384 ms, in segments that are not silent.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.window = round(0.016 * sample_rate) * 2
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)
        frequencies = torch.arange(self.window // 2 + 1, dtype=torch.float64) * sample_rate / self.window

        bark = 26.81 * frequencies / (1960 + frequencies) - 0.53  # Traunmueller 1990
        edges = torch.arange(0, float(bark[-1]), 0.5, dtype=torch.float64)
        bands = ((bark >= edges[:, None]) & (bark < edges[:, None] + 0.5)).double()  # [bands, bins]
        bands, edges = bands[bands.sum(dim=1) > 0], edges[bands.sum(dim=1) > 0]
        khz = 1.96 * (edges + 0.78) / (26.28 - edges - 0.25)  # of the bands' middles
        threshold = 3.64 * khz**-0.8 - 6.5 * torch.exp(-0.6 * (khz - 3.3) ** 2) + 1e-3 * khz**4  # dB; Terhardt 1979
        self.register_buffer("bark", bands.float(), persistent=False)
        self.register_buffer("threshold", (10 ** (threshold / 10)).float()[:, None], persistent=False)

        middles = 150 * 2 ** (torch.arange(15, dtype=torch.float64) / 3)
        low, high = middles * 2 ** (-1 / 6), middles * 2 ** (1 / 6)
        thirds = ((frequencies >= low[:, None]) & (frequencies < high[:, None])).double()
        self.register_buffer("thirds", thirds[thirds.sum(dim=1) > 0].float(), persistent=False)

    def forward(self, decoded: Audio, audio: Audio) -> tuple[Tensor, Tensor]:
        """`pesq_like` and `stoi_like` of [batch, 1, time] signals."""
        hann, bark, thirds = (self.get_buffer(name) for name in ("hann", "bark", "thirds"))
        decoded_power = short_time_spectra(decoded[:, 0].float(), hann, self.window // 2).square().sum(dim=0)
        with torch.no_grad():
            reference_power = power(short_time_spectra(audio[:, 0].float(), hann, self.window // 2))
        mean_power = reference_power.sum(dim=2).mean(dim=1)[:, None, None] + 1e-3  # of each item
        filters = torch.cat([bark, thirds]).T
        bands = torch.cat([decoded_power @ filters / mean_power, reference_power @ filters / mean_power])
        bands = bands.mT  # [2 batch, bands, frames]
        return self.pesq_like(bands[:, : len(bark)]), self.stoi_like(bands[:, len(bark) :])

    def pesq_like(self, bark_power: Tensor) -> Tensor:
        """The PESQ disturbance of Bark-band power [2 batch, bands, frames]: decoded signals, then references.

        The power is relative to the mean power of a frame of the reference.
        """
        threshold = self.get_buffer("threshold")
        power = bark_power * 10**7.9  # played back at 79 dB
        sones = 0.187 * (threshold / 0.5) ** 0.23 * ((0.5 + 0.5 * power / threshold) ** 0.23 - 1).relu()
        (decoded_sones, reference_sones), (decoded_power, reference_power) = sones.chunk(2), power.chunk(2)
        difference = decoded_sones - reference_sones
        masked = difference.sign() * (difference.abs() - 0.25 * torch.minimum(decoded_sones, reference_sones)).relu()
        added = ((decoded_power + 50) / (reference_power + 50)) ** 1.2
        added = torch.where(added < 3, 0.0, added.clamp(max=12)).detach()
        bands = sones.shape[1]
        symmetric = (masked.square().mean(dim=1) + 1e-6).sqrt() * bands  # [batch, frames]
        asymmetric = (masked.abs() * added).mean(dim=1) * bands
        level = ((reference_power.sum(dim=1) + 1e5) / 1e7) ** 0.04
        parts = [norm_over_time((part / level).clamp(max=45)) for part in (symmetric, asymmetric)]
        return (0.1 * parts[0] + 0.0309 * parts[1]).mean()

    def stoi_like(self, thirds_power: Tensor) -> Tensor:
        """1 minus the mean correlation of envelopes of power [2 batch, bands, frames]: decoded, then references."""
        bands = (thirds_power + 1e-7).sqrt()
        parts = bands.unfold(-1, min(24, bands.shape[-1]), 3)  # [2 batch, bands, parts, frames of a part]
        decoded, reference = parts.chunk(2)
        size = reference.square().sum(dim=-1, keepdim=True)
        decoded = decoded * (size / decoded.square().sum(dim=-1, keepdim=True)).sqrt()
        decoded = torch.minimum(decoded, reference * (1 + 10 ** (15 / 20)))
        decoded, reference = (part - part.mean(dim=-1, keepdim=True) for part in (decoded, reference))
        correlation = (decoded * reference).sum(dim=-1) / (
            decoded.square().sum(dim=-1) * reference.square().sum(dim=-1) + 1e-9
        ).sqrt()
        loud = size[..., 0].sum(dim=1, keepdim=True)
        weight = (loud > 1e-3 * loud.amax(dim=-1, keepdim=True)).expand_as(correlation).float()
        return 1 - ((correlation * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2))).mean()


PERIODICITY_EDGES = (100, 600, 1200, 2000, 3000, 4200, 5600, 7600, 11000)
"""Bands in Hz of `hop_periodicity_loss`."""
PERIODICITY_LAGS = 3  # hops
PERIODICITY_MARGIN = 0.02  # autocorrelation that costs nothing; with 0.1, a constant spectrum remains in the noise


def hop_periodicity_loss(decoded: Audio, audio: Audio, *, sample_rate: int, hop: int) -> Tensor:
    """Excess autocorrelation of [batch, 1, time] signals at lags of one to three hops over that of the reference.

    A decoder that knows only the level of noise may give every frame the same phases, which sounds like a buzz at the
    frame rate; losses of magnitudes do not measure it. The loss is the normalized autocorrelation above that of the
    reference plus `PERIODICITY_MARGIN`, in every band and segment of twelve hops, mean over bands, segments and lags.
    """
    part = min(12 * hop, audio.shape[-1])
    both = torch.cat([decoded, audio])[:, 0].float()
    parts = both.unfold(-1, part, part)  # [2 batch, parts, time]
    size = 1 << (part + PERIODICITY_LAGS * hop - 1).bit_length()  # zero-padded, so that the correlation is not circular
    power = torch.view_as_real(torch.fft.rfft(parts, size)).square().sum(dim=-1)  # [2 batch, parts, bins]
    frequency = torch.arange(size // 2 + 1, device=both.device) * (sample_rate / size)
    bands = band_matrix(frequency, PERIODICITY_EDGES, sample_rate)
    if bands.numel() == 0:
        return both.new_zeros(())
    hops = torch.arange(PERIODICITY_LAGS + 1, device=both.device)
    lags = torch.cos(2 * math.pi * hop / sample_rate * frequency[:, None] * hops)
    weights = (bands[:, :, None] * lags[:, None]).flatten(1)  # [bins, bands * lags]
    energy, *products = (power @ weights).view(*power.shape[:2], -1, len(hops)).unbind(-1)
    floor = 1e-4 * energy.sum(dim=-1, keepdim=True) + 1e-3
    excess = torch.zeros_like(energy.chunk(2)[0])
    for product in products:
        of_decoded, of_audio = (product / (energy + floor)).chunk(2)
        excess = excess + (of_decoded - of_audio.clamp(min=0) - PERIODICITY_MARGIN).relu()
    return excess.mean() / len(products)


LEVEL_EDGES = (50, 200, 400, 700, 1100, 1600, 2300, 3200, 4300, 5800, 7800, 11000)
"""Bands in Hz of `band_level_loss`."""


def band_level_loss(decoded: Audio, audio: Audio, *, sample_rate: int, hop: int) -> Tensor:
    """Mean |log energy ratio| of [batch, 1, time] signals in every band and segment of twelve hops.

    Waveform losses are minimal for a signal that is softer where it is uncertain, so each generation of coding would
    lose level; this loss penalizes the wrong energy.
    """
    part = min(12 * hop, audio.shape[-1])
    parts = torch.cat([decoded, audio])[:, 0].float().unfold(-1, part, part)  # [2 batch, parts, time]
    power = torch.view_as_real(torch.fft.rfft(parts)).square().sum(dim=-1) / part
    frequency = torch.arange(power.shape[-1], device=power.device) * (sample_rate / part)
    bands = band_matrix(frequency, LEVEL_EDGES, sample_rate)
    energy = torch.cat([half @ bands for half in power.chunk(2)])  # [2 batch, parts, bands]; equal halves stay equal
    total = energy.chunk(2)[1].sum(dim=-1, keepdim=True)
    floor = (1e-5 * total + 1e-5).repeat(2, 1, 1)
    decoded_level, audio_level = (energy + floor).log().chunk(2)
    return (decoded_level - audio_level).abs().mean() if decoded_level.numel() else decoded_level.new_zeros(())


AVERAGE_LEVEL_EDGES = (1000, 4000, 11000)
"""Bands in Hz of `average_level_loss`, beside all frequencies."""


def average_level_loss(decoded: Audio, audio: Audio, *, sample_rate: int, hop: int) -> Tensor:
    """Mean |log energy ratio| of whole [batch, 1, time] signals, at all frequencies and in wide bands.

    Where the energies of short segments differ by chance, their ratio says little about a signal that is too soft as a
    whole, which accumulates over generations of coding.
    """
    both = torch.cat([decoded, audio])[:, 0].float()
    time = both.shape[-1]
    power = torch.view_as_real(torch.fft.rfft(both)).square().sum(dim=-1) / max(1, time)
    frequency = torch.arange(power.shape[-1], device=power.device) * (sample_rate / max(1, time))
    bands = band_matrix(frequency, AVERAGE_LEVEL_EDGES, sample_rate)
    total = power.sum(dim=-1, keepdim=True)
    energy = torch.cat([total, torch.cat([half @ bands for half in power.chunk(2)])], dim=-1)
    floor = (1e-5 * total.chunk(2)[1] + 2e-9 * time + 1e-12).repeat(2, 1)
    decoded_level, audio_level = (energy + floor).log().chunk(2)
    return (decoded_level - audio_level).abs().mean()


MODULATION_EDGES = (100, 500, 1000, 1500, 2000, 3000, 4500, 6500, 11000)
"""Bands in Hz of `hop_modulation_loss`."""
MODULATION_POSITIONS = 8  # per hop, each a quarter hop long, so that three lines of a modulation are found


def hop_modulation_loss(decoded: Audio, audio: Audio, *, sample_rate: int, hop: int) -> Tensor:
    """Difference of how the energy of [batch, 1, time] signals is spread over the positions within a hop.

    A decoder may put its waveform in one half of every frame and its noise in the other, which sounds rough at the
    frame rate. For each band and place in a hop, the share of the hop's energy is averaged over all hops of an item;
    the loss is the mean square difference of these shares.
    """
    both = torch.cat([decoded, audio])[:, 0].float()
    length = max(hop // 4, 2)
    starts = [round(position * hop / MODULATION_POSITIONS) for position in range(MODULATION_POSITIONS)]
    if both.shape[-1] < starts[-1] + length:
        return both.new_zeros(())
    hops = (both.shape[-1] - starts[-1] - length) // hop + 1
    frames = torch.stack([both[:, start:].unfold(-1, length, hop)[:, :hops] for start in starts], dim=2)
    window = torch.hann_window(length, device=both.device)
    power = torch.view_as_real(torch.fft.rfft(frames * window)).square().sum(dim=-1) / length
    frequency = torch.arange(power.shape[-1], device=both.device) * (sample_rate / length)
    energy = power @ band_matrix(frequency, MODULATION_EDGES, sample_rate)  # [2 batch, hops, positions, bands]
    mean = energy.mean(dim=2, keepdim=True)
    floor = 1e-4 * mean.chunk(2)[1].mean(dim=(1, 3), keepdim=True) + 1e-8
    share = (energy / (mean + floor.repeat(2, 1, 1, 1))).mean(dim=1)  # [2 batch, positions, bands]
    decoded_share, audio_share = share.chunk(2)
    return (decoded_share - audio_share).square().mean() if decoded_share.numel() else decoded_share.new_zeros(())


COLORATION_EDGES = (800, 3600, 7300, 11000)
"""Bands in Hz of `coloration_loss`; below them, the waveform is coded."""
COLORATION_BINS = 25, 41  # bins of half the frame rate that are averaged for the level and for the coloration


def coloration_loss(decoded: Audio, audio: Audio, *, sample_rate: int, hop: int) -> Tensor:
    """Mean square ripple, in nepers, of the average spectra of [batch, 1, time] signals, relative to the reference.

    Noise in few bins, the same in all frames, has magnitudes that fluctuate less, which losses of magnitudes prefer,
    but its average spectrum has peaks and gaps. The magnitudes in frames of two hops, relative to the level of the
    reference around them, are averaged over time; the loss is how far the log ratio of these averages differs from bin
    to bin.
    """
    both = torch.cat([decoded, audio])[:, 0].float()
    if both.shape[-1] < 2 * hop:
        return both.new_zeros(())
    window = torch.hann_window(2 * hop, device=both.device)
    power = torch.view_as_real(torch.fft.rfft(both.unfold(-1, 2 * hop, hop) * window)).square().sum(dim=-1)
    power = power / window.square().sum() + 1e-12  # [2 batch, frames, bins]
    frequency = torch.arange(hop + 1, device=both.device) * (sample_rate / (2 * hop))
    bands = band_matrix(frequency, COLORATION_EDGES, sample_rate).sum(dim=1) > 0
    with torch.no_grad():
        level = smoothed(power.chunk(2)[1], COLORATION_BINS[0]).repeat(2, 1, 1)
        sound = (level > 1e-9).float()  # -90 dBFS
    magnitude = (power / level).sqrt().clamp(max=6) * sound  # higher peaks are attacks
    average = ((magnitude.sum(dim=1) + 1) / (sound.sum(dim=1) + 1)).log()  # [2 batch, bins]
    decoded_average, audio_average = average.chunk(2)
    ratio = decoded_average - audio_average
    ripple = (ratio - smoothed(ratio, COLORATION_BINS[1]))[:, bands].square()
    return ripple.mean() if ripple.numel() else both.new_zeros(())


def smoothed(values: Tensor, bins: int) -> Tensor:
    """Moving average over an odd number of bins of values [batch, ..., bins]."""
    rows = values.reshape(-1, 1, values.shape[-1])
    return F.avg_pool1d(rows, bins, stride=1, padding=bins // 2, count_include_pad=False).view_as(values)


def band_matrix(frequency: Tensor, edges: Sequence[int], sample_rate: int) -> Tensor:
    """1 where a frequency [bins] in Hz lies in a band, [bins, bands]; without bands above 0.46 of the sample rate."""
    limits = torch.tensor([edge for edge in edges if edge <= 0.46 * sample_rate], device=frequency.device)
    return ((frequency[:, None] >= limits[:-1]) & (frequency[:, None] < limits[1:])).float()


def norm_over_time(disturbance: Tensor) -> Tensor:
    """Norms [batch] of [batch, frames]: of order 6 within 20 frames, of order 2 over these (P.862, section 10.2)."""
    parts = disturbance.unfold(-1, min(20, disturbance.shape[-1]), 10)
    return ((parts + 1e-4) ** 6).mean(dim=-1).pow(1 / 3).mean(dim=-1).sqrt()


def discriminator_loss(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Hinge loss, mean over discriminators (SoundStream, eq. 1)."""
    losses = [(1 - r).relu().mean() + (1 + f).relu().mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(losses).mean()


def generator_loss(fake: list[Tensor]) -> Tensor:
    """Hinge loss of the generator, mean over discriminators (SoundStream, eq. 2)."""
    return torch.stack([(1 - f).relu().mean() for f in fake]).mean()


def feature_loss(real: list[list[Tensor]], fake: list[list[Tensor]]) -> Tensor:
    """Feature matching: mean |difference| of the discriminators' features [batch, ...], relative to the real ones.

    As in EnCodec, eq. 2, but relative to the size of each item, so that an item's loss does not depend on the batch.
    """
    losses = [
        (mean_magnitude(r.detach() - f) / (mean_magnitude(r.detach()) + 1e-4)).mean()
        for reals, fakes in zip(real, fake, strict=True)
        for r, f in zip(reals, fakes, strict=True)
    ]
    return torch.stack(losses).mean()


def mean_magnitude(layer: Tensor) -> Tensor:
    """Mean absolute value [batch] of each item."""
    return layer.abs().flatten(1).mean(dim=1)


class EMA:
    """Bias-corrected exponential moving averages by name: decay 0.9 makes (9 a + 10 b) / 19 of a, then b.

    `state_dict` and `load_state_dict` are as a module's.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value of each name."""
        for name, value in values.items():
            self.sums[name] = value.detach() + self.decay * self.sums.get(name, torch.zeros_like(value))
            self.weights[name] = 1 + self.decay * self.weights.get(name, 0.0)

    def __contains__(self, name: str) -> bool:
        return name in self.sums

    def __getitem__(self, name: str) -> Tensor:
        return self.sums[name] / self.weights[name]

    def state_dict(self) -> dict[str, Any]:
        """The sums and their weights, for `load_state_dict`."""
        return {"sums": dict(self.sums), "weights": dict(self.weights)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averages of `state_dict`."""
        self.sums, self.weights = dict(state["sums"]), dict(state["weights"])


class LossBalancer:
    """Weights that give each loss a fixed share of the gradient of the decoded audio (EnCodec, section 3.4, eq. 4).

    `state_dict` and `load_state_dict` are as a module's.
    """

    def __init__(self, decay: float) -> None:
        self.norms = EMA(decay)

    def scale(self, shares: Mapping[str, float]) -> dict[str, float | Tensor]:
        """Weights for the given shares; a loss whose gradient norm has not been measured yet is left out."""
        total = sum(shares.values())
        return {
            name: share / total / self.norms[name].clamp(min=1e-12)
            for name, share in shares.items()
            if name in self.norms
        }

    def update(self, norms: Mapping[str, Tensor]) -> None:
        """Add the norms of the unweighted losses' gradients in one step."""
        self.norms.add(norms)

    def state_dict(self) -> dict[str, Any]:
        """The averaged norms, for `load_state_dict`."""
        return self.norms.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the averages of `state_dict`."""
        self.norms.load_state_dict(state)
