"""training/codec/losses.py: spectral losses against the measures of evaluation/signal.py, adversarial ones by hand."""

import math
from collections.abc import Callable

import librosa
import numpy as np
import pytest
import soxr
import torch
from torch import Tensor

from codec.evaluation import signal as metrics
from codec.io.synth import RATE
from codec.training.codec.losses import (
    EMA,
    SCALES,
    LossBalancer,
    SpectralLoss,
    average_level_loss,
    band_level_loss,
    coloration_loss,
    discriminator_loss,
    feature_loss,
    generator_loss,
    hop_modulation_loss,
    hop_periodicity_loss,
)
from codec.training.codec.recipe import LossConfig
from codec.training.codec.task import AUDIO_LOSSES, LATENT_LOSSES
from tests.helpers.signals import synthetic_recording
from tests.helpers.training import batch


@pytest.fixture(scope="module")
def spectral() -> SpectralLoss:
    return SpectralLoss(8000)


def noisy(audio: Tensor, level: float) -> Tensor:
    return audio + level * torch.randn(audio.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 24000])
def test_mel_equals_mel_dac(rate: int) -> None:
    audio = batch(items=2, time=3000)
    decoded = noisy(audio, 0.05)
    expected = [
        metrics.mel_dac(theirs.numpy()[0], ours.numpy()[0], rate=rate)
        for ours, theirs in zip(decoded, audio, strict=True)
    ]
    assert float(SpectralLoss(rate)(decoded, audio).mel) == pytest.approx(np.mean(expected), rel=1e-4)


def test_equal_signals_have_distance_0(spectral: SpectralLoss) -> None:
    audio = batch()
    distances = spectral(audio, audio)
    assert distances.mel == 0
    assert distances.complex_stft < 1e-3
    assert distances.noise_to_mask == pytest.approx(1e-3, rel=0.01)  # the floor that keeps its slope finite


def test_complex_stft_depends_on_phase(spectral: SpectralLoss) -> None:
    audio = batch()
    distances = spectral(-audio, audio)
    assert distances.mel == 0
    assert distances.complex_stft == pytest.approx(2, rel=0.02)  # |S - (-S)| / |S|
    # a spectrum of other phases is in the mean (4 / pi) |S| away
    noise = torch.randn(2, 4, 1, 8000, generator=torch.Generator().manual_seed(0))
    unrelated = spectral(noise[0], noise[1]).complex_stft
    assert 1.1 < unrelated < 1.5


def test_complex_stft_does_not_depend_on_the_level(spectral: SpectralLoss) -> None:
    audio = batch()
    decoded = noisy(audio, 0.02)
    loud, quiet = (spectral(gain * decoded, gain * audio).complex_stft for gain in (1.0, 0.1))
    assert quiet == pytest.approx(float(loud), rel=0.05)
    assert spectral(noisy(audio, 0.04), audio).complex_stft > loud


@pytest.mark.slow
def test_noise_to_mask_is_the_ratio_in_each_band() -> None:
    bands, window = 40, 512
    rng = np.random.default_rng(0)
    audio, wrong = rng.normal(size=(2, 6000)) * [[0.1], [0.02]]
    filters = librosa.filters.mel(sr=8000, n_fft=window, n_mels=bands)
    frames = np.lib.stride_tricks.sliding_window_view(  # [audio or wrong, frame, time]
        np.pad([audio, wrong], ((0, 0), (window // 2, window // 2)), "reflect"), window, axis=1
    )[:, :: window // 4]
    spectra = np.fft.rfft(frames * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)))
    signal, noise = filters @ np.abs(spectra.mT) ** 2
    ratios = np.sqrt(noise / (signal + 1e-4 * signal.mean() + 1e-7) + 1e-6)
    assert ratios.max() > 0.5
    mine = SpectralLoss(8000, [(bands, window)])(
        torch.from_numpy(audio + wrong).float()[None, None], torch.from_numpy(audio).float()[None, None]
    )
    assert float(mine.noise_to_mask) == pytest.approx(np.minimum(ratios, 2).mean(), rel=1e-3)


def test_noise_to_mask_weights_quiet_and_loud_bands_equally() -> None:
    time = torch.arange(8000) / 8000
    low, high = torch.sin(2 * torch.pi * 300 * time), 0.01 * torch.sin(2 * torch.pi * 2500 * time)
    loss = SpectralLoss(8000)
    without_low, without_high = (loss(left[None, None], (low + high)[None, None]) for left in (high, low))
    shares = [float(quiet / loud) for quiet, loud in zip(without_high, without_low, strict=True)][1:]
    assert shares[0] < 0.1  # of phase
    assert shares[1] > 2 * shares[0]


def test_halves_of_the_scales_average_to_the_whole(spectral: SpectralLoss) -> None:
    audio = batch()
    decoded = noisy(audio, 0.05)
    whole = spectral(decoded, audio)
    halves = spectral(decoded, audio, half=0), spectral(decoded, audio, half=1)
    for name, one, other, both in zip(whole._fields, *halves, whole, strict=True):
        assert one.isclose(other, rtol=1e-3) == (name in ("pesq_like", "stoi_like"))  # which have one scale
        assert float((one + other) / 2) == pytest.approx(float(both), rel=1e-5)


def test_the_loss_is_the_mean_of_its_scales(spectral: SpectralLoss) -> None:
    audio = batch()
    decoded = noisy(audio, 0.05)
    alone = [SpectralLoss(8000, [scale])(decoded, audio) for scale in SCALES]
    whole = spectral(decoded, audio)
    assert float(whole.mel) == pytest.approx(sum(float(one.mel) for one in alone), rel=1e-5)
    complex_scales = [one for one, (_, window) in zip(alone, SCALES, strict=True) if window >= 256]
    assert len(complex_scales) == 4
    assert float(whole.complex_stft) == pytest.approx(
        np.mean([float(one.complex_stft) for one in complex_scales]), rel=1e-5
    )
    assert float(whole.noise_to_mask) == pytest.approx(
        np.mean([float(one.noise_to_mask) for one in complex_scales]), rel=1e-5
    )


@pytest.fixture(scope="module")
def spoken() -> Tensor:
    """A sentence and some music at 16 kHz [1, 1, time]."""
    return torch.from_numpy(soxr.resample(synthetic_recording()[0], RATE, 16000).astype(np.float32))[None, None]


def damaged(audio: Tensor) -> list[Tensor]:
    """Audio at 16 kHz [1, 1, time] with more and more noise, then low-passed and coarsely rounded."""
    hiss = [noisy(audio, float(audio.std()) * 10 ** (-decibels / 20)) for decibels in (40, 25, 10, 0)]
    spectrum = torch.fft.rfft(audio)
    low = [
        torch.fft.irfft(spectrum * (torch.arange(spectrum.shape[-1]) < share * spectrum.shape[-1]), n=audio.shape[-1])
        for share in (0.5, 0.25, 0.12)
    ]
    return [*hiss, *low, *((audio * steps).round() / steps for steps in (200, 50, 15))]


@pytest.mark.slow
def test_pesq_like_ranks_as_pesq(spoken: Tensor) -> None:
    loss = SpectralLoss(16000)
    versions = damaged(spoken)
    ours = [-float(loss(version, spoken).pesq_like) for version in versions]
    theirs = [metrics.pesq_wb(spoken[0, 0].numpy(), version[0, 0].numpy(), rate=16000) for version in versions]
    ranks = [np.argsort(np.argsort(scores)) for scores in (ours, theirs)]
    assert np.min(np.corrcoef(np.stack(ranks))) > 0.8  # Spearman's
    assert ours[:4] == sorted(ours[:4], reverse=True)


@pytest.mark.slow
def test_stoi_like_is_close_to_stoi(spoken: Tensor) -> None:
    loss = SpectralLoss(16000)
    versions = damaged(spoken)[:4]
    ours = [1 - float(loss(version, spoken).stoi_like) for version in versions]
    theirs = [metrics.stoi(spoken[0, 0].numpy(), version[0, 0].numpy(), rate=16000) for version in versions]
    assert ours == pytest.approx(theirs, abs=0.06)
    assert min(theirs) < 0.8


@pytest.mark.slow
def test_pesq_like_weights_added_sound_more_than_missing_sound(spoken: Tensor) -> None:
    loss = SpectralLoss(16000)
    hum = 0.05 * torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(spoken.shape[-1]))
    added, missing = loss(spoken + hum, spoken).pesq_like, loss(spoken, spoken + hum).pesq_like
    assert added > 1.2 * missing


@pytest.mark.slow
def test_perceptual_losses_of_a_batch_are_the_mean_of_its_items(spoken: Tensor) -> None:
    loss = SpectralLoss(16000)
    halves = torch.cat(spoken[..., : spoken.shape[-1] // 2 * 2].chunk(2, dim=-1))
    halves[0, :, :8000] = 0  # silence counts in neither
    versions = noisy(halves, 0.02)
    whole = loss(versions, halves)
    alone = [loss(version[None], half[None]) for version, half in zip(versions, halves, strict=True)]
    for name in ("pesq_like", "stoi_like"):
        assert float(getattr(whole, name)) == pytest.approx(
            np.mean([float(getattr(one, name)) for one in alone]), rel=1e-5
        )


@pytest.mark.slow
def test_a_gradient_step_lowers_pesq_like(spoken: Tensor) -> None:
    loss = SpectralLoss(16000)
    version = noisy(spoken, 0.02).requires_grad_()
    before = loss(version, spoken).pesq_like
    (gradient,) = torch.autograd.grad(before, version)
    assert loss(version - 1e-3 * gradient / gradient.abs().max(), spoken).pesq_like < before


@pytest.mark.slow
@pytest.mark.parametrize("gain", [0.01, 0.1])
def test_perceptual_losses_do_not_depend_on_the_level(gain: float, spoken: Tensor) -> None:
    loss = SpectralLoss(16000)
    version = noisy(spoken, 0.02)
    loud, soft = loss(version, spoken), loss(gain * version, gain * spoken)
    assert float(soft.pesq_like) == pytest.approx(float(loud.pesq_like), rel=0.02)
    assert float(soft.stoi_like) == pytest.approx(float(loud.stoi_like), rel=0.02)


def test_gradients_are_finite_at_silence(spectral: SpectralLoss) -> None:
    decoded = torch.zeros(1, 1, 1200, requires_grad=True)
    torch.stack(spectral(decoded, torch.zeros(1, 1, 1200))).sum().backward()  # type: ignore[no-untyped-call]
    assert decoded.grad is not None
    assert decoded.grad.isfinite().all()


# repetition at the frame rate

HOP = 160


def rustle(seed: int, time: int = 12_000, items: int = 1) -> Tensor:
    return 0.1 * torch.randn(items, 1, time, generator=torch.Generator().manual_seed(seed))


def buzzing(audio: Tensor) -> Tensor:
    """The first hop again and again."""
    return audio[..., :HOP].repeat(1, 1, -(-audio.shape[-1] // HOP))[..., : audio.shape[-1]]


def periodicity(decoded: Tensor, audio: Tensor, rate: int = 8000) -> float:
    return float(hop_periodicity_loss(decoded, audio, sample_rate=rate, hop=HOP))


@pytest.mark.parametrize("rate", [8000, 24000])
def test_noise_that_repeats_every_hop_has_a_loss(rate: int) -> None:
    audio = rustle(0, time=24 * HOP)
    assert periodicity(rustle(1, time=24 * HOP), audio, rate) < 0.05
    # repeated 12 times, correlation at one to three hops is 11/12 to 9/12 of the energy, of which 0.02 is forgiven
    assert periodicity(buzzing(audio), audio, rate) == pytest.approx(30 / 36 - 0.02, abs=0.05)
    shares = [periodicity((1 - part) * audio + part * buzzing(audio), audio, rate) for part in (0.0, 0.3, 0.6, 1.0)]
    assert shares == sorted(shares)


def test_repetition_every_second_hop_counts_at_its_lag() -> None:
    audio = rustle(0, time=24 * HOP)
    two = audio[..., : 2 * HOP].repeat(1, 1, 12)
    assert periodicity(two, audio) == pytest.approx((10 / 12 - 0.02) / 3, abs=0.1)


def test_repetition_of_the_reference_is_allowed() -> None:
    tone = buzzing(rustle(0))
    assert periodicity(tone, tone) == 0
    assert periodicity(0.1 * tone, tone) < 0.01
    assert periodicity(rustle(1), tone) < 0.05
    assert periodicity(tone + 0.05 * rustle(2), tone) < 0.01


def test_repetition_does_not_depend_on_the_level() -> None:
    audio = rustle(0)
    loud, soft = (periodicity(gain * buzzing(audio), gain * audio) for gain in (3.0, 0.3))
    assert soft == pytest.approx(loud, rel=0.02)


def test_repetition_of_a_batch_is_the_mean_of_its_items() -> None:
    audio, decoded = rustle(0, items=3), torch.cat([rustle(1), buzzing(rustle(2)), torch.zeros(1, 1, 12_000)])
    alone = [periodicity(decoded[item : item + 1], audio[item : item + 1]) for item in range(3)]
    assert periodicity(decoded, audio) == pytest.approx(np.mean(alone), rel=1e-4)
    assert alone[2] == 0


@pytest.mark.parametrize("time", [50, 500, 12 * HOP, 24 * HOP + 1])
def test_repetition_has_a_finite_gradient_at_silence_and_any_length(time: int) -> None:
    for decoded in (torch.zeros(2, 1, time), buzzing(rustle(0, time=max(time, HOP), items=2))[..., :time]):
        decoded.requires_grad_()
        loss = hop_periodicity_loss(decoded, torch.zeros(2, 1, time), sample_rate=8000, hop=HOP)
        (gradient,) = torch.autograd.grad(loss, decoded)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_a_gradient_step_lowers_repetition() -> None:
    audio = rustle(0)
    decoded = (0.3 * audio + 0.7 * buzzing(audio)).requires_grad_()
    before = hop_periodicity_loss(decoded, audio, sample_rate=8000, hop=HOP)
    (gradient,) = torch.autograd.grad(before, decoded)
    assert periodicity((decoded - 1e-2 * gradient / gradient.abs().max()).detach(), audio) < before


def test_repetition_is_0_at_sample_rates_below_its_bands() -> None:
    assert periodicity(buzzing(rustle(0)), rustle(0), rate=1000) == 0


# level, modulation and coloration


@pytest.mark.parametrize("decibels", [-6.0, -1.0, 3.0])
def test_the_level_loss_is_the_ratio_of_energies(decibels: float) -> None:
    audio, gain = rustle(0), 10 ** (decibels / 20)
    level = float(band_level_loss(gain * audio, audio, sample_rate=8000, hop=HOP))
    assert level == pytest.approx(abs(math.log(gain**2)), rel=0.01)
    faint = float(band_level_loss(0.1 * gain * audio, 0.1 * audio, sample_rate=8000, hop=HOP))
    assert faint == pytest.approx(level, rel=0.05)


def test_other_noise_of_the_same_level_costs_little() -> None:
    assert band_level_loss(rustle(1), rustle(0), sample_rate=8000, hop=HOP) < 0.3
    assert band_level_loss(rustle(0), rustle(0), sample_rate=8000, hop=HOP) == 0


def test_the_average_level_loss_is_the_ratio_of_the_energies_of_whole_signals() -> None:
    audio = rustle(0, time=24_000)
    other = rustle(1, time=24_000)
    other = other * audio.norm() / other.norm()
    assert average_level_loss(audio, audio, sample_rate=8000, hop=HOP) == 0
    assert average_level_loss(other, audio, sample_rate=8000, hop=HOP) < 1e-3
    for decibels in (-3.0, 1.0):
        level = float(average_level_loss(10 ** (decibels / 20) * other, audio, sample_rate=8000, hop=HOP))
        assert level == pytest.approx(abs(decibels) / 10 * math.log(10), rel=0.01)
    # at 24 kHz, these are the frequencies above 4 kHz, one of the two bands
    spectrum = torch.fft.rfft(audio)
    spectrum[..., spectrum.shape[-1] // 3 :] *= 0.5
    dull = float(average_level_loss(torch.fft.irfft(spectrum, n=24_000), audio, sample_rate=24_000, hop=HOP))
    whole = -math.log(1 - 0.75 * high_share(audio))
    assert dull == pytest.approx((math.log(4) + whole) / 3, rel=0.01)


def high_share(audio: Tensor) -> float:
    """Share of the energy in the upper two thirds of the frequencies."""
    power = torch.fft.rfft(audio).abs().square()
    return float(power[..., power.shape[-1] // 3 :].sum() / power.sum())


@pytest.mark.parametrize(("times", "kept"), [(1, 0.96), (2, 0.85), (3, 0.69)])
def test_the_modulation_loss_grows_with_the_depth(times: int, kept: float) -> None:
    """Energy (1 + m cos)^2 in eight places of a hop: their mean square difference from 1 is 2 m^2 for small m.

    A Hann window of a quarter hop smooths a cosine of `times` periods per hop to `kept` of its depth.
    """
    time = torch.arange(24_000)
    audio, other = rustle(0, time=24_000, items=8), rustle(1, time=24_000, items=8)
    without = float(hop_modulation_loss(other, audio, sample_rate=8000, hop=HOP))
    for depth in (0.2, 0.4):
        rough = other * (1 + depth * torch.cos(2 * math.pi * times * time / HOP))
        found = float(hop_modulation_loss(rough, audio, sample_rate=8000, hop=HOP)) - without
        assert found == pytest.approx(2 * depth**2 * kept**2, rel=0.3)
        assert float(hop_modulation_loss(rough, rough, sample_rate=8000, hop=HOP)) == 0


def filtered(audio: Tensor, decibels: float, period: float) -> Tensor:
    """Audio whose spectrum has a ripple: a cosine of `decibels` (amplitude) over frequency, `period` in Hz at 8 kHz."""
    spectrum = torch.fft.rfft(audio)
    frequency = torch.arange(spectrum.shape[-1]) * (8000 / audio.shape[-1])
    ripple = 10 ** (decibels / 20 * torch.cos(2 * math.pi * frequency / period))
    rippled: Tensor = torch.fft.irfft(spectrum * ripple, n=audio.shape[-1])
    return rippled


def coloration(decoded: Tensor, audio: Tensor) -> float:
    return float(coloration_loss(decoded, audio, sample_rate=8000, hop=HOP))


@pytest.mark.parametrize("decibels", [1.0, 3.0])
def test_coloration_is_the_mean_square_ripple_in_nepers(decibels: float) -> None:
    audio, other = rustle(0, time=96_000), rustle(1, time=96_000)
    expected = (decibels * math.log(10) / 20) ** 2 / 2
    period = 12 * 8000 / (2 * HOP)  # of 12 bins, over which the window of two hops averages little
    without = coloration(other, audio)
    assert without < 0.002
    assert coloration(filtered(audio, decibels, period), audio) == pytest.approx(expected, rel=0.15)
    assert coloration(filtered(other, decibels, period), audio) - without == pytest.approx(expected, rel=0.2)


def test_neither_the_level_nor_a_slope_of_the_spectrum_is_coloration() -> None:
    audio = rustle(0, time=48_000)
    assert coloration(audio, audio) == 0
    assert coloration(0.1 * audio, audio) < 1e-4
    assert coloration(filtered(audio, 6.0, 16_000), audio) < 1e-3


@pytest.mark.parametrize("loss", [band_level_loss, average_level_loss, hop_modulation_loss, coloration_loss])
@pytest.mark.parametrize("time", [50, 500, 12 * HOP, 24 * HOP + 1])
def test_all_are_means_of_items_with_finite_gradients(loss: Callable[..., Tensor], time: int) -> None:
    audio = rustle(0, time=time, items=3)
    decoded = torch.cat([rustle(1, time=time, items=2), torch.zeros(1, 1, time)]).requires_grad_()
    value = loss(decoded, audio, sample_rate=8000, hop=HOP)
    alone = [loss(d[None], a[None], sample_rate=8000, hop=HOP).item() for d, a in zip(decoded, audio, strict=True)]
    assert value.item() == pytest.approx(np.mean(alone), rel=1e-4, abs=1e-7)
    for reference in (audio, torch.zeros_like(audio)):
        value = loss(decoded, reference, sample_rate=8000, hop=HOP)
        if value.requires_grad:  # a signal of less than a hop has no places within one
            (gradient,) = torch.autograd.grad(value, decoded)
            assert gradient.isfinite().all()


REAL = [torch.tensor([[2.0, 0.5]]), torch.tensor([[-1.0, 1.0, 0.0]])]
FAKE = [torch.tensor([[-2.0, 0.5]]), torch.tensor([[0.0, 3.0, -1.0]])]


def test_hinge_losses_by_hand() -> None:
    # real: (0 + 0.5) / 2, (2 + 0 + 1) / 3; fake: (0 + 1.5) / 2, (1 + 4 + 0) / 3
    assert float(discriminator_loss(REAL, FAKE)) == pytest.approx(((0.25 + 0.75) + (1 + 5 / 3)) / 2)
    # (3 + 0.5) / 2, (1 + 0 + 2) / 3
    assert float(generator_loss(FAKE)) == pytest.approx((1.75 + 1) / 2)


def test_hinge_losses_are_0_beyond_the_margin() -> None:
    assert discriminator_loss([torch.tensor([1.0])], [torch.tensor([-1.0])]) == 0
    assert generator_loss([torch.tensor([1.0])]) == 0


def test_feature_loss_by_hand() -> None:
    real = [[torch.tensor([[1.0, -3.0], [8.0, 0.0]])], [torch.tensor([[4.0]] * 2), torch.tensor([[0.5]] * 2)]]
    fake = [[torch.tensor([[2.0, -3.0], [6.0, 0.0]])], [torch.tensor([[4.0]] * 2), torch.tensor([[-0.5]] * 2)]]
    # means of |difference| over those of |real|: 0.5 / 2 and 1 / 4; 0 / 4; 1 / 0.5
    assert float(feature_loss(real, fake)) == pytest.approx((0.25 + 0 + 2) / 3, rel=1e-3)


def test_feature_loss_has_a_gradient_for_the_fake_only() -> None:
    real = torch.ones(1, 3, requires_grad=True)
    fake = torch.zeros(1, 3, requires_grad=True)
    feature_loss([[real]], [[fake]]).backward()  # type: ignore[no-untyped-call]
    assert real.grad is None
    assert fake.grad is not None
    assert (fake.grad < 0).all()


def test_the_feature_loss_of_a_batch_is_the_mean_of_its_items() -> None:
    generator = torch.Generator().manual_seed(0)
    real, fake = ([[torch.randn(3, 2, 5, generator=generator)]] for _ in range(2))
    alone = [feature_loss([[real[0][0][item : item + 1]]], [[fake[0][0][item : item + 1]]]) for item in range(3)]
    assert float(feature_loss(real, fake)) == pytest.approx(float(torch.stack(alone).mean()), rel=1e-5)


# balance


def test_ema_by_hand() -> None:
    averages = EMA(0.9)
    assert "a" not in averages
    averages.add({"a": torch.tensor(2.0)})
    assert float(averages["a"]) == 2
    averages.add({"a": torch.tensor(4.0), "b": torch.tensor(7.0)})
    assert float(averages["a"]) == pytest.approx((0.9 * 2 + 4) / 1.9)
    assert float(averages["b"]) == 7
    other = EMA(0.9)
    other.load_state_dict(averages.state_dict())
    for each in (averages, other):
        each.add({"a": torch.tensor(1.0)})
    assert float(other["a"]) == float(averages["a"]) == pytest.approx((0.81 * 2 + 0.9 * 4 + 1) / (0.81 + 0.9 + 1))


def test_balanced_weights_by_hand() -> None:
    balancer = LossBalancer(0.5)
    balancer.update({"mel": torch.tensor(4.0), "complex_stft": torch.tensor(0.1)})
    weights = balancer.scale({"mel": 3.0, "complex_stft": 1.0, "feature_matching": 4.0})
    # EnCodec, eq. 4: shares 3/8 and 1/8 over average norms; feature_matching has no norm yet
    assert {name: float(weight) for name, weight in weights.items()} == pytest.approx(
        {"mel": 3 / 32, "complex_stft": 1.25}
    )


def test_every_loss_with_a_weight_is_trained() -> None:
    weights = set(LossConfig.model_fields) - {"balance"}
    assert weights == {*AUDIO_LOSSES, *LATENT_LOSSES}
    assert not set(AUDIO_LOSSES) & set(LATENT_LOSSES)
