"""evaluation/signal.py: measures against slow definitions, closed forms and other packages."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import librosa
import numpy as np
import pytest
import scipy.signal  # type: ignore[import-untyped]
import soundfile
import torch

from codec.errors import MissingDependency, UsageError
from codec.evaluation import signal as metrics
from codec.evaluation.signal import Floats
from tests.helpers.signals import RATE, noise, voice

Distance = Callable[[Floats, Floats], float]


def mel_dac(reference: Floats, degraded: Floats) -> float:
    return metrics.mel_dac(reference, degraded, rate=RATE)


DISTANCES: list[Distance] = [mel_dac, metrics.stft_dac, metrics.mrstft, metrics.lsd]


# Independent definitions with torch.stft


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fast", "slow"), list(zip(DISTANCES, [slow_mel_dac, slow_stft_dac, slow_mrstft, slow_lsd], strict=True))
)
@pytest.mark.parametrize("time", [RATE, 1025, 31_999])
def test_distances_equal_their_definitions(fast: Distance, slow: Distance, time: int) -> None:
    reference = voice(2)[:time]
    for degraded in (reference + noise(2, level=0.01)[:time], 0.5 * reference, np.zeros_like(reference)):
        assert fast(reference, degraded) == pytest.approx(slow(reference, degraded), rel=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_compare_magnitudes_only(distance: Distance) -> None:
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


def test_distances_over_several_blocks() -> None:
    reference = noise(6)  # more than one block of 2**20 / 2048 frames of 512
    assert metrics.lsd(reference, 2 * reference) == pytest.approx(slow_lsd(reference, 2 * reference), rel=1e-4)


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0, 60.0])
def test_si_sdr_of_orthogonal_noise_is_its_level(decibels: float) -> None:
    time = np.arange(RATE) / RATE
    target, disturbance = np.sin(2 * np.pi * 100 * time), np.sin(2 * np.pi * 300 * time)
    degraded = 0.3 * (target + 10 ** (-decibels / 20) * disturbance) + 0.2  # neither gain nor offset counts
    assert metrics.si_sdr(target.astype(np.float32), degraded.astype(np.float32)) == pytest.approx(decibels, abs=1e-3)


def test_limits_of_si_sdr() -> None:
    reference = voice()
    assert metrics.si_sdr(reference, reference) > 100
    assert metrics.si_sdr(reference, -reference) > 100
    assert metrics.si_sdr(reference, np.zeros_like(reference)) == 0
    assert math.isnan(metrics.si_sdr(np.zeros_like(reference), reference))
    late = np.roll(reference, RATE // 100)
    assert metrics.si_sdr(reference, late) < 5  # a delay hardly changes the distances


@pytest.mark.parametrize("distance", [*DISTANCES, metrics.si_sdr])
def test_unequal_signals_are_refused(distance: Distance) -> None:
    for reference, degraded in ((noise(), noise()[1:]), (noise()[None], noise()[None]), (noise(0), noise(0))):
        with pytest.raises(UsageError, match="cannot be compared"):
            distance(reference, degraded)


# By band


@pytest.mark.parametrize("decibels", [-5.0, 0.0, 20.0])
def test_si_sdr_by_band_measures_the_noise_of_its_band(decibels: float) -> None:
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
    """Within half a dB of zero-phase Butterworth filters, in wide bands because the filters' edges are less steep."""
    reference, degraded = voice(3) + noise(3, level=0.01), voice(3) + noise(3, level=0.02, seed=2)
    for band in metrics.si_sdr_bands(reference, degraded, rate=RATE, bands=((500, 2000), (2000, 4000), (6000, 10_000))):
        sections = scipy.signal.butter(8, (band.low, band.high), "bandpass", fs=RATE, output="sos")
        x, y = (scipy.signal.sosfiltfilt(sections, signal).astype(np.float32) for signal in (reference, degraded))
        assert band.si_sdr == pytest.approx(metrics.si_sdr(x, y), abs=0.5)


@pytest.mark.slow
def test_limits_of_si_sdr_by_band() -> None:
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


def test_hop_periodicity_of_a_tone_is_the_cosine_of_its_phase_after_a_hop() -> None:
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


def test_a_buzz_in_pauses_of_loud_speech_counts() -> None:
    quiet = np.where(np.arange(5 * RATE) < RATE, 1, 0.01).astype(np.float32)  # a loud second, four 40 dB below it
    buzz = np.where(np.arange(5 * RATE) < RATE, noise(5), np.tile(noise(HOP / RATE), 250)).astype(np.float32)
    _, degraded = periodicities(quiet * noise(5), quiet * buzz)
    assert min(degraded) > 0.7


def test_a_mask_restricts_hop_periodicity() -> None:
    signal = np.concatenate([np.tile(noise(HOP / RATE), 40), noise(0.8, seed=1)])  # 0.8 s that repeat, 0.8 s of noise
    repeats = np.arange(len(signal)) < 40 * HOP
    for mask, expected in ((repeats, 1.0), (~repeats, 0.0)):
        found = metrics.hop_periodicity(signal, signal, rate=RATE, hop=HOP, segment_seconds=0, mask=mask)
        assert [band.degraded for band in found] == pytest.approx([expected] * 4, abs=0.1)
    nowhere = np.zeros(len(signal), np.bool_)
    found = metrics.hop_periodicity(signal, signal, rate=RATE, hop=HOP, mask=nowhere)
    assert all(math.isnan(band.excess) for band in found)


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
def test_pesq_of_long_speech_is_the_mean_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.PESQ_PIECE == 20
    monkeypatch.setattr(metrics, "PESQ_PIECE", 4)
    speech = voice(6, rate=16_000)
    degraded = speech + np.linspace(0, 0.05, speech.size, dtype=np.float32) * noise(6, level=1, rate=16_000)
    halves = [
        metrics.pesq_wb(x, y, rate=16_000) for x, y in zip(np.split(speech, 2), np.split(degraded, 2), strict=True)
    ]
    assert halves[0] > halves[1]
    assert metrics.pesq_wb(speech, degraded, rate=16_000) == pytest.approx(sum(halves) / 2)


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
def test_noise_scores_below_the_end_of_the_pesq_scale() -> None:
    """P.862's raw scale ends at -0.5, which maps to 1.043; the ITU code goes below."""
    speech = voice(5, rate=16_000)
    bursts = noise(5, level=1, rate=16_000) * (np.sin(2 * np.pi * 10 * np.arange(speech.size) / 16_000) > 0.5)
    scores = [metrics.pesq_wb(speech, (bursts + share * speech).astype(np.float32), rate=16_000) for share in (0, 0.1)]
    assert 0.999 < min(scores) < 1.043


def dnsmos_of_window(samples: Floats) -> float:
    """DNSMOS of one window of 9.01 s as in its authors' script: the network, then the quadratic fit of OVRL."""
    import onnxruntime
    import speechmos

    network = Path(speechmos.__file__).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    ((*_, overall),) = session.run(None, {"input_1": samples[None]})[0]
    return float(-0.06766283 * overall**2 + 1.11546468 * overall + 0.04602535)


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
def test_dnsmos_equals_its_network() -> None:
    speech = voice(9.01, rate=16_000)
    noisy = speech + noise(9.01, level=0.1, rate=16_000)
    scores = [metrics.dnsmos(signal, rate=16_000) for signal in (speech, noisy)]
    assert scores == pytest.approx([dnsmos_of_window(speech), dnsmos_of_window(noisy)], abs=1e-4)
    assert scores[0] > scores[1] > 1


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
def test_dnsmos_of_signals_that_its_package_refuses() -> None:
    loud = 8 * voice(1.2)  # its package repeats it to 9.6 s, one window
    assert np.abs(loud).max() > 1  # its package refuses such samples
    assert metrics.dnsmos(loud, rate=RATE) == pytest.approx(metrics.dnsmos(loud.clip(-1, 1), rate=RATE), abs=0.2)
    for signal in (np.zeros(RATE, np.float32), voice(0.2), voice()[:1]):
        assert math.isnan(metrics.dnsmos(signal, rate=RATE))
    with pytest.raises(UsageError):
        metrics.dnsmos(noise(0), rate=RATE)  # its package would loop forever


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize(("mode", "highest"), [("speech", (4.2, 4.8)), ("audio", (4.73, 4.74))])
def test_visqol_falls_with_noise(mode: Literal["speech", "audio"], highest: tuple[float, float]) -> None:
    """Equal signals score 4.732 in audio mode, the conformance value of the C++ program."""
    speech = voice(3)
    same, little, much = (
        metrics.visqol(speech, speech + noise(3, level=level), rate=RATE, mode=mode) for level in (0, 0.003, 0.1)
    )
    assert highest[0] < same < highest[1]
    assert same > little > much >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
def test_visqol_equals_its_command(tmp_path: Path) -> None:
    rate = 16_000
    speech = voice(2, rate=rate)
    pair = speech, speech + noise(2, level=0.01, rate=rate)
    for name, signal in zip("xy", pair, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", signal, rate, subtype="FLOAT")
    names = str(tmp_path / "x.wav"), str(tmp_path / "y.wav")
    command = [sys.executable, "-m", "visqol", "-r", names[0], "-d", names[1], "--speech_mode"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (score,) = re.findall(r"MOS-LQO:\s*([\d.]+)", output)
    assert metrics.visqol(*pair, rate=rate, mode="speech") == pytest.approx(float(score), abs=1e-3)


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
@pytest.mark.parametrize("mode", ["speech", "audio"])
def test_limits_of_visqol(mode: Literal["speech", "audio"]) -> None:
    speech, silence = voice(2), np.zeros(2 * RATE, np.float32)
    threads = torch.get_num_threads()
    assert metrics.visqol(speech, speech, rate=RATE, mode=mode) > 4
    assert torch.get_num_threads() == threads  # numba, which visqol uses, would change it
    assert metrics.visqol(speech, silence, rate=RATE, mode=mode) == 1
    for pair in ((silence, speech), (silence, silence), (speech[: RATE - 1], speech[: RATE - 1])):
        assert math.isnan(metrics.visqol(*pair, rate=RATE, mode=mode))
    late = np.concatenate([np.zeros(RATE // 2, np.float32), speech])[:RATE]
    assert metrics.visqol(late, late, rate=RATE, mode=mode) > 1  # the shortest signal that has a score


@pytest.mark.slow
@pytest.mark.usefixtures("_eval_extra")
def test_visqol_of_long_signals_is_the_mean_of_its_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert metrics.VISQOL_PIECE == 20
    monkeypatch.setattr(metrics, "VISQOL_PIECE", 2)
    speech = voice(3, rate=16_000)
    degraded = speech + np.linspace(0, 0.05, speech.size, dtype=np.float32) * noise(3, level=1, rate=16_000)
    halves = zip(np.split(speech, 2), np.split(degraded, 2), strict=True)
    first, second = (metrics.visqol(x, y, rate=16_000, mode="speech") for x, y in halves)
    assert first > second
    whole = metrics.visqol(speech, degraded, rate=16_000, mode="speech")
    assert whole == pytest.approx((first + second) / 2)


NEEDED_BY = {"ai_edge_litert": "visqol", "onnxruntime": "speechmos"}


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
    if package in NEEDED_BY:
        pytest.importorskip(NEEDED_BY[package])
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "speechmos.dnsmos", raising=False)
    with pytest.raises(MissingDependency, match=rf"{package} is not installed.*\.\[eval\]"):
        measure(voice(), voice(), rate=RATE)
