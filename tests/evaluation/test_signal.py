import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import librosa
import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]
import soundfile
import torch
from torch import Tensor, nn

from codec import models
from codec.errors import ConfigError, InputNotFound, MissingDependency, UsageError
from codec.evaluation import signal as metrics
from codec.evaluation.baselines import find_baselines
from codec.evaluation.signal import Floats
from codec.io import bitstream
from codec.models.base import CodecConfig, Context, ReceptiveField, StepCodec
from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.streaming import State

RATE = 24_000

Distance = Callable[[Floats, Floats], float]


def mel_dac(reference: Floats, degraded: Floats) -> float:
    return metrics.mel_dac(reference, degraded, rate=RATE)


DISTANCES: list[Distance] = [mel_dac, metrics.stft_dac, metrics.mrstft, metrics.lsd]


def noise(seconds: float = 1.0, *, level: float = 0.1, seed: int = 0, rate: int = RATE) -> Floats:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def voice(seconds: float = 1.0, *, rate: int = RATE) -> Floats:
    """Syllables: a gliding harmonic tone, opened and closed four times a second, over a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 4 * time), 0, None)
    return (0.2 * envelope * tone).astype(np.float32) + noise(seconds, level=1e-3, rate=rate)


# Independent definitions, as they would be written with torch


def spectrum(signal: Floats, window: int) -> torch.Tensor:
    hann = torch.hann_window(window, dtype=torch.float64)
    samples = torch.from_numpy(signal).double()
    return torch.stft(samples, window, window // 4, window=hann, return_complex=True).abs()  # [bins, frames]


def slow_mel_dac(reference: Floats, degraded: Floats) -> float:
    total = 0.0
    for bands, window in [(5, 32), (10, 64), (20, 128), (40, 256), (80, 512), (160, 1024), (320, 2048)]:
        bank = torch.from_numpy(
            librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands, fmin=0, fmax=RATE / 2, dtype=np.float64)
        )
        x, y = ((bank @ spectrum(signal, window)).clamp(min=1e-5).log10() for signal in (reference, degraded))
        total += torch.nn.functional.l1_loss(x, y).item()
    return total


def slow_stft_dac(reference: Floats, degraded: Floats) -> float:
    total = 0.0
    for window in (2048, 512):
        x, y = spectrum(reference, window), spectrum(degraded, window)
        total += torch.nn.functional.l1_loss(x, y).item()
        total += torch.nn.functional.l1_loss(x.clamp(1e-5).pow(2).log10(), y.clamp(1e-5).pow(2).log10()).item()
    return total


def slow_mrstft(reference: Floats, degraded: Floats) -> float:
    total = 0.0
    for window in (1024, 2048, 512):
        x, y = spectrum(reference, window).clamp(1e-4), spectrum(degraded, window).clamp(1e-4)
        total += float(torch.linalg.norm(y - x) / torch.linalg.norm(x) + (x.log() - y.log()).abs().mean()) / 3
    return total


def slow_lsd(reference: Floats, degraded: Floats) -> float:
    frames = []
    for x, y in zip(spectrum(reference, 2048).T, spectrum(degraded, 2048).T, strict=True):
        frames.append(float(((x**2 + 1e-8).log10() - (y**2 + 1e-8).log10()).square().mean().sqrt()))
    return sum(frames) / len(frames)


@pytest.mark.parametrize(
    ("fast", "slow"), list(zip(DISTANCES, [slow_mel_dac, slow_stft_dac, slow_mrstft, slow_lsd], strict=True))
)
@pytest.mark.parametrize("time", [RATE, 1025, 31_999])
def test_distances_equal_their_definitions(fast: Distance, slow: Distance, time: int) -> None:
    reference = voice(2)[:time]
    for degraded in (reference + noise(2, level=0.01)[:time], 0.5 * reference, np.zeros_like(reference)):
        assert fast(reference, degraded) == pytest.approx(slow(reference, degraded), rel=2e-4)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_see_magnitudes_only(distance: Distance) -> None:
    reference = voice()
    assert distance(reference, reference) == 0
    assert distance(reference, -reference) == 0  # polarity
    silence = distance(reference, np.zeros_like(reference))
    noisy, noisier = (distance(reference, reference + noise(level=level)) for level in (0.003, 0.01))
    assert 0 < noisy < noisier < silence


@pytest.mark.parametrize("gain", [0.5, 0.9, 2.0])
def test_distances_of_a_gain_have_closed_forms(gain: float) -> None:
    loud = noise(level=1.0)  # far above every floor
    louder = np.float32(gain) * loud
    log = abs(math.log10(gain))
    assert mel_dac(loud, louder) == pytest.approx(7 * log, rel=1e-3)
    assert metrics.lsd(loud, louder) == pytest.approx(2 * log, rel=1e-3)
    assert metrics.mrstft(loud, louder) == pytest.approx(abs(1 - gain) + abs(math.log(gain)), rel=1e-3)
    magnitudes = sum(spectrum(loud, window).mean().item() for window in (2048, 512))
    assert metrics.stft_dac(loud, louder) == pytest.approx(4 * log + abs(1 - gain) * magnitudes, rel=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("time", [1, 2, 100, 1024])
def test_distances_of_short_signals(distance: Distance, time: int) -> None:
    reference = noise()[:time]
    assert distance(reference, reference) == 0
    assert 0 < distance(reference, np.zeros_like(reference)) < math.inf


def test_blocks_of_frames_do_not_show() -> None:
    reference = noise(6)  # more than one block of 2**20 / 2048 frames of 512
    assert metrics.lsd(reference, 2 * reference) == pytest.approx(slow_lsd(reference, 2 * reference), rel=1e-4)


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0, 60.0])
def test_si_sdr_of_orthogonal_noise_is_its_level(decibels: float) -> None:
    time = np.arange(RATE) / RATE
    target, disturbance = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 300 * time)
    degraded = 0.3 * (target + 10 ** (-decibels / 20) * disturbance) + 0.2  # neither gain nor offset counts
    assert metrics.si_sdr(target.astype(np.float32), degraded.astype(np.float32)) == pytest.approx(decibels, abs=1e-3)


def test_si_sdr_at_its_ends() -> None:
    reference = voice()
    assert metrics.si_sdr(reference, reference) > 100
    assert metrics.si_sdr(reference, -reference) > 100
    assert metrics.si_sdr(reference, np.zeros_like(reference)) == 0
    assert math.isnan(metrics.si_sdr(np.zeros_like(reference), reference))
    late = np.roll(reference, RATE // 100)
    assert metrics.si_sdr(reference, late) < 5  # what the distances hardly see


@pytest.mark.parametrize("distance", [*DISTANCES, metrics.si_sdr])
def test_pairs_must_fit(distance: Distance) -> None:
    for reference, degraded in ((noise(), noise()[1:]), (noise()[None], noise()[None]), (noise(0), noise(0))):
        with pytest.raises(UsageError, match="cannot be compared"):
            distance(reference, degraded)


# By band


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0])
def test_si_sdr_by_band_sees_the_noise_of_its_band(decibels: float) -> None:
    reference = noise(4)
    bands = ((0, 3000), (3000, 6000), (6000, 12_000))
    sections = scipy.signal.butter(12, (3500, 5500), "bandpass", fs=RATE, output="sos")
    disturbance = scipy.signal.sosfilt(sections, noise(4, seed=1))
    share = disturbance.var() / (reference.var() * 3 / 12)  # of the band's power
    scale = math.sqrt(10 ** (-decibels / 10) / share)
    low, middle, high = metrics.si_sdr_bands(
        reference, (reference + scale * disturbance).astype(np.float32), rate=RATE, bands=bands
    )
    assert (middle.low, middle.high) == (3000, 6000)
    assert middle.si_sdr == pytest.approx(decibels, abs=0.3)
    assert min(low.si_sdr, high.si_sdr) > decibels + 35


def test_si_sdr_by_band_is_that_of_filtered_signals() -> None:
    """Beside zero-phase Butterworth filters, whose edges are less straight: so in wide bands, and within half a dB."""
    reference, degraded = voice(3) + noise(3, level=0.01), voice(3) + noise(3, level=0.02, seed=2)
    for band in metrics.si_sdr_bands(reference, degraded, rate=RATE, bands=((500, 2000), (2000, 4000), (6000, 10_000))):
        sections = scipy.signal.butter(8, (band.low, band.high), "bandpass", fs=RATE, output="sos")
        x, y = (scipy.signal.sosfiltfilt(sections, signal).astype(np.float32) for signal in (reference, degraded))
        assert band.si_sdr == pytest.approx(metrics.si_sdr(x, y), abs=0.5)


def test_si_sdr_by_band_at_its_ends() -> None:
    reference = noise(1)
    bands = metrics.si_sdr_bands(reference, reference, rate=RATE)
    assert [(band.low, band.high) for band in bands] == list(metrics.SI_SDR_BANDS)
    assert min(band.si_sdr for band in bands) > 80
    assert {band.si_sdr for band in metrics.si_sdr_bands(reference, 0 * reference, rate=RATE)} == {0}
    assert all(math.isnan(band.si_sdr) for band in metrics.si_sdr_bands(0 * reference, reference, rate=RATE))
    above = [math.isnan(band.si_sdr) for band in metrics.si_sdr_bands(reference, reference, rate=8000)]
    assert above == [False] * 6 + [True] * 3  # 4 kHz and more
    narrow = librosa.resample(librosa.resample(reference, orig_sr=RATE, target_sr=8000), orig_sr=8000, target_sr=RATE)
    assert math.isnan(metrics.si_sdr_bands(narrow, reference, rate=RATE)[-1].si_sdr)
    assert math.isnan(metrics.si_sdr_bands(reference[:1], reference[:1], rate=RATE)[0].si_sdr)


HOP = 480  # 20 ms


def periodicities(reference: Floats, degraded: Floats) -> tuple[list[float], list[float]]:
    found = metrics.hop_periodicity(reference, degraded, rate=RATE, hop=HOP)
    assert [(band.low, band.high) for band in found] == list(metrics.HOP_BANDS)
    return [band.reference for band in found], [band.degraded for band in found]


def test_noise_has_no_hop_periodicity_and_a_repeated_frame_has_all_of_it() -> None:
    buzz = np.tile(noise(HOP / RATE), 250)  # 5 s
    original, repeated = periodicities(noise(5), buzz)
    assert original == pytest.approx([0] * 4, abs=0.05)
    assert repeated == pytest.approx([1] * 4, abs=1e-6)
    assert periodicities(buzz, noise(5))[0] == pytest.approx([1] * 4, abs=1e-6)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_hop_periodicity_is_the_share_of_power_that_repeats(share: float) -> None:
    phases = np.random.default_rng(1).uniform(0, 2 * np.pi, HOP // 2 + 1)
    frame = np.fft.irfft(np.exp(1j * phases))  # as much power in every band
    buzz = np.tile(0.1 * frame / frame.std(), 500)
    mixed = math.sqrt(share) * buzz + math.sqrt(1 - share) * noise(10, seed=2)
    _, degraded = periodicities(noise(10), mixed.astype(np.float32))
    assert degraded == pytest.approx([share] * 4, abs=0.05)


def test_tones_have_the_cosine_of_their_phase_after_a_hop_as_hop_periodicity() -> None:
    time = np.arange(2 * RATE) / RATE
    for frequency in (1500.0, 1512.5, 1525.0):  # 30, 30.25 and 30.5 periods in a hop
        tone = (0.3 * np.sin(2 * np.pi * frequency * time)).astype(np.float32)
        found = metrics.hop_periodicity(tone, 0.5 * tone, rate=RATE, hop=HOP)
        assert found[1].degraded == pytest.approx(math.cos(2 * math.pi * frequency * HOP / RATE), abs=1e-3)
        assert found[1].excess == pytest.approx(0, abs=1e-6)  # the original does the same
        assert all(math.isnan(found[band].degraded) for band in (0, 2, 3))  # silent


def test_hop_periodicity_is_that_of_a_filtered_signal() -> None:
    mixed = voice(3) + np.tile(noise(HOP / RATE, level=0.02), 150) + noise(3, level=0.02, seed=3)
    for band in metrics.hop_periodicity(noise(3), mixed, rate=RATE, hop=HOP):
        sections = scipy.signal.butter(8, (band.low, band.high), "bandpass", fs=RATE, output="sos")
        filtered = scipy.signal.sosfiltfilt(sections, mixed)
        now, before = filtered[HOP:], filtered[:-HOP]
        pieces = range(0, now.size - 6000, 3000)
        values = [np.corrcoef(now[at : at + 6000], before[at : at + 6000])[0, 1] for at in pieces]
        assert band.degraded == pytest.approx(np.mean(values), abs=0.05)


def test_a_buzz_in_pauses_is_seen_beside_loud_speech() -> None:
    quiet = np.where(np.arange(5 * RATE) < RATE, 1, 0.01).astype(np.float32)  # a loud second, four 40 dB below it
    buzz = np.where(np.arange(5 * RATE) < RATE, noise(5), np.tile(noise(HOP / RATE), 250)).astype(np.float32)
    _, degraded = periodicities(quiet * noise(5), quiet * buzz)
    assert min(degraded) > 0.7


def test_hop_periodicity_without_sound_or_band() -> None:
    silence, buzz = np.zeros(RATE, np.float32), np.tile(noise(HOP / RATE), 50)
    assert all(math.isnan(value) for value in periodicities(buzz, silence)[1])
    original, instead = periodicities(silence, buzz)
    assert original == [0] * 4
    assert instead == pytest.approx([1] * 4, abs=1e-6)
    assert all(math.isnan(value) for value in periodicities(buzz[: 5 * HOP - 1], buzz[: 5 * HOP - 1])[1])
    assert periodicities(buzz[: 5 * HOP], buzz[: 5 * HOP])[1] == pytest.approx([1] * 4, abs=1e-6)
    above = metrics.hop_periodicity(noise(2, rate=8000), noise(2, rate=8000), rate=8000, hop=160)
    assert [math.isnan(band.degraded) for band in above] == [False, False, False, True]
    with pytest.raises(UsageError, match="cannot be compared"):
        metrics.hop_periodicity(noise(), noise()[1:], rate=RATE, hop=HOP)


# Speech


@pytest.fixture
def _eval_extra() -> None:
    for package in ("pesq", "pystoi", "onnxruntime", "speechmos", "visqol", "ai_edge_litert"):
        pytest.importorskip(package)


@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize("rate", [16_000, 24_000])
def test_speech_measures_of_equal_signals_are_their_highest(rate: int) -> None:
    speech = voice(2, rate=rate)
    highest = 0.999 + 4 / (1 + math.exp(-1.3669 * 4.5 + 3.8224))  # P.862.2, eq. 2, of the highest raw score, 4.5
    assert metrics.pesq_wb(speech, speech, rate=rate) == pytest.approx(highest, abs=1e-3)
    assert metrics.stoi(speech, speech, rate=rate) == pytest.approx(1, abs=1e-6)


@pytest.mark.usefixtures("_eval_extra")
def test_speech_measures_fall_with_noise() -> None:
    speech = voice(2)
    levels = [speech + noise(2, level=level) for level in (0.001, 0.01, 0.1)]
    for measure in (metrics.pesq_wb, metrics.stoi):
        scores = [measure(speech, degraded, rate=RATE) for degraded in levels]
        assert scores == sorted(scores, reverse=True)
        assert len(set(scores)) == len(scores)


@pytest.mark.usefixtures("_eval_extra")
def test_lost_speech_gets_the_lowest_scores() -> None:
    speech = voice(2)
    silence = np.zeros_like(speech)
    assert metrics.pesq_wb(speech, silence, rate=RATE) == pytest.approx(1.043, abs=1e-3)
    assert metrics.stoi(speech, silence, rate=RATE) == 0


@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize("time", [1, 300, 3000])
def test_too_little_speech_has_no_score(time: int) -> None:
    for short in (voice()[:time], np.zeros(RATE, np.float32)):
        assert math.isnan(metrics.pesq_wb(short, short, rate=RATE))
        assert math.isnan(metrics.stoi(short, short, rate=RATE))


@pytest.mark.usefixtures("_eval_extra")
def test_pesq_of_long_speech_is_the_mean_of_its_pieces() -> None:
    speech = voice(24, rate=16_000)
    degraded = speech + np.linspace(0, 0.05, speech.size, dtype=np.float32) * noise(24, level=1, rate=16_000)
    halves = [
        metrics.pesq_wb(x, y, rate=16_000) for x, y in zip(np.split(speech, 2), np.split(degraded, 2), strict=True)
    ]
    assert halves[0] > halves[1]
    assert metrics.pesq_wb(speech, degraded, rate=16_000) == pytest.approx(sum(halves) / 2)


@pytest.mark.usefixtures("_eval_extra")
def test_noise_scores_below_the_end_of_pesqs_scale() -> None:
    """P.862's raw scale ends at -0.5, 1.043 on this one; the ITU code goes on."""
    speech = voice(5, rate=16_000)
    bursts = noise(5, level=1, rate=16_000) * (np.sin(2 * np.pi * 10 * np.arange(speech.size) / 16_000) > 0.5)
    scores = [metrics.pesq_wb(speech, (bursts + share * speech).astype(np.float32), rate=16_000) for share in (0, 0.1)]
    assert 0.999 < min(scores) < 1.043


def dnsmos_of_window(samples: Floats) -> float:
    """DNSMOS as its authors' script takes it of one window of 9.01 s: the network, then the quadratic fit of OVRL."""
    import onnxruntime
    import speechmos

    network = Path(speechmos.__file__).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    ((*_, overall),) = session.run(None, {"input_1": samples[None]})[0]
    return float(-0.06766283 * overall**2 + 1.11546468 * overall + 0.04602535)


@pytest.mark.usefixtures("_eval_extra")
def test_dnsmos_is_that_of_its_network() -> None:
    speech = voice(9.01, rate=16_000)
    noisy = speech + noise(9.01, level=0.1, rate=16_000)
    scores = [metrics.dnsmos(signal, rate=16_000) for signal in (speech, noisy)]
    assert scores == pytest.approx([dnsmos_of_window(speech), dnsmos_of_window(noisy)], abs=1e-4)
    assert scores[0] > scores[1] > 1


@pytest.mark.usefixtures("_eval_extra")
def test_dnsmos_of_what_it_does_not_take_by_itself() -> None:
    loud = 8 * voice(2)
    assert np.abs(loud).max() > 1  # its package refuses such samples
    assert metrics.dnsmos(loud, rate=RATE) == pytest.approx(metrics.dnsmos(loud.clip(-1, 1), rate=RATE), abs=0.2)
    for signal in (np.zeros(RATE, np.float32), voice(0.2), voice()[:1]):
        assert math.isnan(metrics.dnsmos(signal, rate=RATE))
    with pytest.raises(UsageError):
        metrics.dnsmos(noise(0), rate=RATE)  # its package would not return


@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize(("mode", "highest"), [("speech", (4.2, 4.8)), ("audio", (4.73, 4.74))])
def test_visqol_falls_with_noise(mode: Literal["speech", "audio"], highest: tuple[float, float]) -> None:
    """Equal signals: 4.732 in audio mode is the conformance value of the C++ program; speech ends where it ends."""
    speech = voice(3)
    same, little, much = (
        metrics.visqol(speech, speech + noise(3, level=level), rate=RATE, mode=mode) for level in (0, 0.003, 0.1)
    )
    assert highest[0] < same < highest[1]
    assert same > little > much >= 1


@pytest.mark.usefixtures("_eval_extra")
def test_visqol_is_that_of_its_command(tmp_path: Path) -> None:
    rate = 16_000
    speech = voice(2, rate=rate)
    pair = speech, speech + noise(2, level=0.01, rate=rate)
    for name, signal in zip("xy", pair, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", signal, rate, subtype="FLOAT")
    names = str(tmp_path / "x.wav"), str(tmp_path / "y.wav")
    command = [sys.executable, "-m", "visqol", "-r", names[0], "-d", names[1], "--speech_mode"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (score,) = re.findall(r"MOS-LQO:\s*([\d.]+)", told)
    assert metrics.visqol(*pair, rate=rate, mode="speech") == pytest.approx(float(score), abs=1e-3)


@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize("mode", ["speech", "audio"])
def test_visqol_at_its_ends(mode: Literal["speech", "audio"]) -> None:
    speech, silence = voice(2), np.zeros(2 * RATE, np.float32)
    threads = torch.get_num_threads()
    assert metrics.visqol(speech, speech, rate=RATE, mode=mode) > 4
    assert torch.get_num_threads() == threads  # numba, in which it computes, would have changed it
    assert metrics.visqol(speech, silence, rate=RATE, mode=mode) == 1
    for pair in ((silence, speech), (silence, silence), (speech[: RATE - 1], speech[: RATE - 1])):
        assert math.isnan(metrics.visqol(*pair, rate=RATE, mode=mode))
    late = np.concatenate([np.zeros(RATE // 2, np.float32), speech])[:RATE]
    assert metrics.visqol(late, late, rate=RATE, mode=mode) > 1  # the shortest signal that has a score


@pytest.mark.usefixtures("_eval_extra")
def test_visqol_of_long_signals_is_the_mean_of_its_pieces() -> None:
    speech = voice(24, rate=16_000)
    degraded = speech + np.linspace(0, 0.05, speech.size, dtype=np.float32) * noise(24, level=1, rate=16_000)
    halves = zip(np.split(speech, 2), np.split(degraded, 2), strict=True)
    first, second = (metrics.visqol(x, y, rate=16_000, mode="speech") for x, y in halves)
    assert first > second
    whole = metrics.visqol(speech, degraded, rate=16_000, mode="speech")
    assert whole == pytest.approx((first + second) / 2)


@pytest.mark.parametrize(
    ("package", "measure"),
    [
        ("pesq", metrics.pesq_wb),
        ("pystoi", metrics.stoi),
        ("visqol", partial(metrics.visqol, mode="audio")),
        ("visqol", partial(metrics.visqol, mode="speech")),
        ("ai_edge_litert", partial(metrics.visqol, mode="speech")),
        ("speechmos", lambda _, degraded, *, rate: metrics.dnsmos(degraded, rate=rate)),
        ("onnxruntime", lambda _, degraded, *, rate: metrics.dnsmos(degraded, rate=rate)),
    ],
)
def test_missing_packages_are_named(
    package: str, measure: Callable[..., float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "speechmos.dnsmos", raising=False)
    with pytest.raises(MissingDependency, match=rf"{package} is not installed.*\.\[eval\]"):
        measure(voice(), voice(), rate=RATE)


# Codes, rates, memory


def test_code_counts_count() -> None:
    codes = np.random.default_rng(0).integers(0, 7, (2, 3, 50))  # [channels, codebooks, frames]
    counts = metrics.code_counts(codes, 7)
    for codebook in range(3):
        expected = Counter(codes[:, codebook].ravel().tolist())
        assert counts[codebook].tolist() == [expected[code] for code in range(7)]


def test_codebook_use_has_closed_forms() -> None:
    counts = np.array([[5] * 8, [4, 4] + [0] * 6, [9] + [0] * 7, [0] * 8, [4, 2, 1, 1] + [0] * 4])
    uses = metrics.codebook_use(counts)
    assert [use.used for use in uses] == [1, 1 / 4, 1 / 8, 0, 1 / 2]
    assert [use.entropy for use in uses] == pytest.approx([3, 1, 0, 0, 1.75])
    assert [use.perplexity for use in uses] == pytest.approx([8, 2, 1, 1, 2**1.75])


def test_coded_file_tells_its_real_rates(tmp_path: Path) -> None:
    header = bitstream.Header(
        model="test", weights_hash="0" * 64, source_rate=48_000, channels=2, sample_rate=RATE, hop=320, decoder_delay=320,
        num_codebooks=3, codebook_size=1000, frames_per_packet=75,
    )  # fmt: skip
    codes = np.random.default_rng(0).integers(0, 1000, (2, 3, 151))
    path = tmp_path / "a.codec"
    with path.open("wb") as file:
        writer = bitstream.Writer(file, header)
        writer.write(codes)
        writer.close(time=96_000)  # 2 s
    content = metrics.coded_file(path)
    assert content.seconds == 2
    packed = 2 * math.ceil(2 * 3 * 75 * 10 / 8) + math.ceil(2 * 3 * 1 * 10 / 8)
    assert content.payload_kbps == pytest.approx(packed * 8 / 2000)
    assert content.file_kbps == pytest.approx(path.stat().st_size * 8 / 2000)
    assert np.array_equal(content.counts, metrics.code_counts(codes, 1000))


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the memory held")
def test_peak_memory_remembers() -> None:
    """In a process of its own: here other tests' threads may give memory back between one look and the next."""
    code = """
import os
from pathlib import Path
import numpy as np
from codec.evaluation import signal as metrics

before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert metrics.peak_memory() >= before
block = np.ones(1 << 26, np.uint8)
del block
assert metrics.peak_memory() >= before + (1 << 26) * 0.9, "forgotten"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


# A folder through the codec


class Levels(Quantizer):
    """Codebook b tells 16 levels apart in what codebook b - 1 left, so b codebooks leave an error uniform within 16 ** -b."""

    def encode(self, latents: Tensor, num_codebooks: int | None = None) -> Tensor:
        rest, codes = latents[:, 0].double(), []
        for _ in range(num_codebooks or 3):
            codes.append(((rest + 1) * 8).long().clamp(0, 15))
            rest = 16 * (rest - (codes[-1] - 7.5) / 8)
        return torch.stack(codes, dim=1)  # [batch, codebooks, frames]

    def decode(self, codes: Tensor) -> Tensor:
        scales = 16.0 ** -torch.arange(codes.shape[1], dtype=torch.float64)
        return (scales[:, None] * (codes - 7.5) / 8).sum(dim=1, keepdim=True).float()

    def forward(self, latents: Tensor, num_codebooks: Tensor | None = None) -> Quantized:
        raise NotImplementedError


class Scalar(StepCodec):
    """Codes every sample alone, so its quality is known: each codebook adds 24.1 dB and 96 kbit/s. A sample late."""

    def __init__(self) -> None:
        super().__init__(
            CodecConfig(family="scalar", sample_rate=RATE, hop=1, num_codebooks=3, codebook_size=16), decoder_delay=1
        )
        self.quantizer = Levels()
        self.name = "scalar"
        self.weights_hash = "5" * 64
        self.unused = nn.Parameter(torch.zeros(1))  # a model is where its parameters are

    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Context(0, 0), Context(1, 0))

    def encoder_state(self, batch: int) -> State:
        return ()

    def latents_step(self, audio: Tensor, state: State) -> tuple[Tensor, State]:
        return audio, state

    def decoder_state(self, batch: int) -> State:
        return torch.zeros(batch, 1, 1)

    def audio_step(self, latents: Tensor, state: State) -> tuple[Tensor, State]:
        late = torch.cat([state, latents], dim=2)
        return late[:, :, :-1], late[:, :, -1:]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/manifest.jsonl with speech, words and a hum in data/valid; one file is no audio, one is in no manifest."""
    folder = tmp_path_factory.mktemp("data")
    entries = [
        {"path": "valid/reading/a.wav", "set": "reading", "speaker": "x", "lang": "en"},
        {"path": "valid/reading/b.wav", "set": "reading", "speaker": "y", "lang": "en"},
        {"path": "valid/digits/three.wav", "set": "digits", "speaker": "x", "label": "3", "transcript": "three"},
        {"path": "valid/hum/c.wav", "set": "hum", "label": "fan"},
    ]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    for entry in entries:
        path = folder / entry["path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        speech = "speaker" in entry
        audio = voice(0.7) if speech else np.clip(noise(0.5, level=0.3), -1, 1)
        soundfile.write(path, audio, RATE, subtype="FLOAT")
    soundfile.write(folder / "valid/hum/stereo.wav", np.stack([voice(0.4), noise(0.4)], axis=1), 16_000)
    (folder / "valid/hum/broken.wav").write_bytes(b"no audio at all")
    (folder / "valid/hum/._c.wav").write_bytes(b"hidden, so left out")
    return folder


@pytest.mark.usefixtures("_eval_extra")
def test_evaluate_meets_the_closed_form(corpus: Path) -> None:
    steps: list[tuple[int, int]] = []
    found = metrics.evaluate(
        Scalar(), corpus / "valid", num_codebooks=[2, 1], progress=lambda *step: steps.append(step)
    )

    assert steps == [(done, 6) for done in range(1, 7)]
    assert [(row.group, row.name, row.num_codebooks, row.files) for row in found.rows] == [
        ("all", "all", 1, 5),
        ("all", "all", 2, 5),
        ("domain", "speech", 1, 2),
        ("domain", "speech", 2, 2),
        ("domain", "words", 1, 1),
        ("domain", "words", 2, 1),
        ("set", "digits", 1, 1),
        ("set", "digits", 2, 1),
        ("set", "hum", 1, 2),
        ("set", "hum", 2, 2),
        ("set", "reading", 1, 2),
        ("set", "reading", 2, 2),
    ]
    scores = {(score.path, score.num_codebooks): score for score in found.files}
    source, _ = soundfile.read(corpus / "valid/hum/c.wav")
    for num_codebooks in (1, 2):
        score = scores["hum/c.wav", num_codebooks]
        assert score.seconds == 0.5
        assert score.encode_speed > 0
        assert score.decode_speed > 0
        error = 16.0**-num_codebooks  # uniform between ± error: its power is error² / 3
        assert score.measures.si_sdr == pytest.approx(10 * math.log10(3 * source.var() / error**2), abs=0.3)
        assert score.measures.payload_kbps == pytest.approx(
            96 * num_codebooks, rel=1e-3
        )  # 24000 codes a second of 4 bits
        assert score.measures.payload_kbps < score.measures.file_kbps < score.measures.payload_kbps + 5
        assert math.isnan(score.measures.pesq_wb)  # a hum is no speech
        assert scores["reading/a.wav", num_codebooks].measures.pesq_wb > 1
    all_rows = found.rows[:2]
    assert all_rows[0].seconds == pytest.approx(3 * 0.7 + 0.5 + 0.6)
    assert len(all_rows[1].codebooks) == 2
    assert all_rows[1].codebooks[1].used == 1
    assert all_rows[0].measures.mel_dac > all_rows[1].measures.mel_dac
    mean = sum(scores[f"reading/{name}.wav", 2].measures.stoi for name in "ab") / 2
    assert next(row for row in found.rows if (row.name, row.num_codebooks) == ("speech", 2)).measures.stoi == mean
    assert [failure.path for failure in found.failures] == ["hum/broken.wav"]
    assert found.peak_memory > 0


@pytest.mark.usefixtures("_eval_extra")
def test_evaluation_prints_and_dumps(corpus: Path) -> None:
    found = metrics.evaluate(Scalar(), corpus / "valid")
    headings, lines = found.table()
    assert len(lines) == len(found.rows) == 6  # all, two domains, three sets; all 3 codebooks at once
    assert {len(line) for line in lines} == {len(headings)}
    assert not {"ViSQOL speech", "ViSQOL audio", "DNSMOS"} & set(headings)  # not asked for
    # Training imitates PESQ and STOI; so they never stand without what it does not.
    assert {"PESQ", "STOI", "SI-SDR", "mel", "hop per."} <= set(headings)
    assert found.band_tables() is None
    assert [line[0] for line in found.table("all")[1]] == ["all"]
    assert [line[0] for line in found.table("domain")[1]] == ["all", "speech", "words"]
    text = str(found).splitlines()
    assert len({len(line) for line in text[:7]}) == 1
    assert text[7].startswith("failed: hum/broken.wav: ")
    hum = next(row for row in json.loads(found.as_json())["rows"] if row["name"] == "hum")
    assert hum["measures"]["pesq_wb"] is None
    assert hum["measures"]["si_sdr"] > 30
    assert len(hum["codebooks"]) == 3


@pytest.mark.usefixtures("_eval_extra")
def test_speech_can_be_asked_for_or_left_out(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (asked,) = metrics.evaluate(Scalar(), corpus / "valid/reading", num_codebooks=[1], speech=True).files[:1]
    (hum, *_) = metrics.evaluate(Scalar(), corpus / "valid/hum", num_codebooks=[1], speech=True).files
    assert asked.measures.stoi > 0
    assert (hum.set, hum.domain) == ("hum", "hum")
    assert not math.isnan(hum.measures.stoi)
    monkeypatch.setitem(sys.modules, "pesq", None)
    with pytest.raises(MissingDependency):
        metrics.evaluate(Scalar(), corpus / "valid")
    left_out = metrics.evaluate(Scalar(), corpus / "valid/reading", num_codebooks=[1], speech=False)
    assert math.isnan(left_out.rows[0].measures.pesq_wb)


@pytest.mark.usefixtures("_eval_extra")
def test_slow_measures_are_taken_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("reading", "hum"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", voice(1.5), RATE)
    (tmp_path / "manifest.jsonl").write_text('{"path": "reading/a.wav", "speaker": "x"}\n')
    found = metrics.evaluate(Scalar(), tmp_path, visqol=True, dnsmos=True)
    every, speech, hum, _ = found.rows
    assert (every.files, speech.name, hum.name) == (2, "speech", "hum")
    assert 1 < speech.measures.visqol_speech < 4.8
    assert 1 < hum.measures.visqol_audio < 4.74
    assert 1 < speech.measures.dnsmos < 5
    assert [speech.measures.visqol_audio, hum.measures.visqol_speech, hum.measures.dnsmos] == pytest.approx(
        [math.nan] * 3, nan_ok=True
    )
    assert every.measures.dnsmos == speech.measures.dnsmos
    assert found.table()[0][-7:-4] == ["ViSQOL speech", "ViSQOL audio", "DNSMOS"]
    with pytest.raises(UsageError, match="ask for --speech"):
        metrics.evaluate(Scalar(), tmp_path / "hum", speech=False, dnsmos=True)
    monkeypatch.setattr(metrics, "_run", None)  # packages are looked for before any file is coded
    monkeypatch.setitem(sys.modules, "visqol", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "speechmos.dnsmos", raising=False)
    with pytest.raises(MissingDependency, match="visqol"):
        metrics.evaluate(Scalar(), tmp_path, visqol=True)
    with pytest.raises(MissingDependency, match="onnxruntime"):
        metrics.evaluate(Scalar(), tmp_path, dnsmos=True)


def test_bands_are_tables_of_their_own(corpus: Path) -> None:
    found = metrics.evaluate(Scalar(), corpus / "valid", num_codebooks=[1, 2], speech=False, bands=True)
    tables = found.band_tables("all")
    assert tables
    for (headings, lines), names in zip(tables, (metrics.SI_SDR_BANDS, metrics.HOP_BANDS), strict=True):
        assert headings[3:] == [f"{low / 1000:g}-{high / 1000:g}" for low, high in names]
        assert [line[:3] for line in lines] == [["all", "scalar", "1"], ["all", "scalar", "2"]]
        assert {len(line) for line in lines} == {len(headings)}
    row = found.rows[0]
    scores = [score for score in found.files if score.num_codebooks == 1]
    assert row.si_sdr_bands[-1].si_sdr == pytest.approx(np.nanmean([score.si_sdr_bands[-1].si_sdr for score in scores]))
    # Between 8 and 12 kHz lies nothing but noise in the voices, and the error of a scalar quantizer is white.
    assert row.si_sdr_bands[0].si_sdr > row.si_sdr_bands[-1].si_sdr
    assert found.rows[1].si_sdr_bands[0].si_sdr > row.si_sdr_bands[0].si_sdr + 15
    for score in scores:
        assert score.measures.hop_periodicity == max(
            band.excess for band in score.hop_periodicity if not math.isnan(band.excess)
        )
    dumped = json.loads(found.as_json())["rows"][0]
    assert dumped["si_sdr_bands"][0].keys() == {"low", "high", "si_sdr"}
    assert dumped["hop_periodicity"][0].keys() == {"low", "high", "reference", "degraded"}


def test_baselines_have_rows_beside_the_model(tmp_path: Path) -> None:
    for name in ("a", "b"):
        soundfile.write(tmp_path / f"{name}.wav", np.stack([voice(0.7), 0.5 * voice(0.7)], axis=1), RATE)
    found = metrics.evaluate(Scalar(), tmp_path, num_codebooks=[1, 2], baselines=find_baselines("original"))
    assert [(row.group, row.codec, row.num_codebooks) for row in found.rows] == [
        (group, codec, num_codebooks)
        for group in ("all", "set")
        for codec, num_codebooks in (("scalar", 1), ("scalar", 2), ("original", None))
    ]
    original = found.rows[2]
    assert (original.files, original.codebooks) == (2, ())
    assert original.measures.si_sdr > 90
    assert original.measures.file_kbps == pytest.approx(RATE * 16 / 1000)
    assert found.notes == ("original: the recordings at the model's rate, not coded",)
    assert found.notes[0] in str(found)
    headings, lines = found.table()
    line = dict(zip(headings, lines[2], strict=True))
    assert [line[name] for name in ("codec", "num_codebooks", "used", "bits/code", "enc ×")] == [
        "original",
        "-",
        "-",
        "-",
        "-",
    ]
    json.loads(found.as_json())


def test_without_manifest_folders_name_sets_and_domains(tmp_path: Path) -> None:
    for name in ("birds/near/a.flac", "rain/b.wav", "c.wav"):
        path = tmp_path / "field" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, noise(0.1), RATE)
    found = metrics.evaluate(Scalar(), tmp_path / "field", num_codebooks=[1])
    assert [(row.group, row.name) for row in found.rows] == [
        ("all", "all"),
        ("set", "birds"),
        ("set", "field"),
        ("set", "rain"),
    ]
    assert {score.domain for score in found.files} == {"birds", "field", "rain"}


def test_evaluate_refuses_what_cannot_be(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="no audio files below"):
        metrics.evaluate(Scalar(), tmp_path)
    for num_codebooks in ([], [0], [1, 4]):
        with pytest.raises(ConfigError, match="1 to 3"):
            metrics.evaluate(Scalar(), corpus, num_codebooks=num_codebooks)
    unsaved = Scalar()
    unsaved.weights_hash = None
    with pytest.raises(UsageError, match="never saved"):
        metrics.evaluate(unsaved, corpus, speech=False)
    (tmp_path / "manifest.jsonl").write_text('{"path": "a.wav"}\n{not json\n')
    soundfile.write(tmp_path / "a.wav", noise(0.1), RATE)
    with pytest.raises(ConfigError, match="line 2 is no JSON"):
        metrics.evaluate(Scalar(), tmp_path)


def test_a_worker_process_finds_the_same(corpus: Path) -> None:
    small = {
        "dim": 8,
        "num_codebooks": 2,
        "codebook_size": 16,
        "envelope_bands": 0,
        "encoder_width": 16,
        "encoder_blocks": 1,
        "decoder_width": 16,
    }
    torch.manual_seed(0)
    model = models.build("causal", small | {"decoder_blocks": 1}).eval()  # one that another process can import
    model.weights_hash = "c" * 64
    # One file, as every process takes seconds to import torch.
    alone, shared = (metrics.evaluate(model, corpus / "valid/digits", speech=False, jobs=jobs) for jobs in (1, 2))
    for one, other in zip(alone.files, shared.files, strict=True):
        assert one.path == other.path
        assert asdict(one.measures) == pytest.approx(asdict(other.measures), nan_ok=True)
    assert alone.failures == shared.failures
    assert [row.codebooks for row in alone.rows] == [row.codebooks for row in shared.rows]
