"""evaluation/signal_checks.py, with codecs of known defects: each check finds its defect, and only that."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from codec.errors import InputNotFound
from codec.evaluation import signal_checks
from codec.evaluation.signal_checks import AIMS, Aim, Recordings, Result, Signal
from codec.frames import FrameSpec
from codec.io.audio import write_audio

RATE, HOP = 24_000, 480
EXACT = 0.02  # dB


class KnownSystem:
    """A lossless 24-bit codec with one codebook per sample of a frame, whose decoder changes the signal."""

    frame_spec = FrameSpec(sample_rate=RATE, hop=HOP, decoder_delay=0, num_codebooks=12, codebook_size=2**24)

    def __init__(self, change: Callable[[Signal], Signal] = lambda audio: audio) -> None:
        self.change = change
        self.requested: list[int | None] = []

    def encode(self, audio: Tensor, *, num_codebooks: int | None = None) -> Tensor:
        self.requested.append(num_codebooks)
        time = audio.shape[-1]
        padded = F.pad(audio.double(), (0, self.frame_spec.frames(time) * HOP - time))
        codes = torch.round(padded * 2**23).long()
        return codes.reshape(len(audio), -1, HOP).transpose(1, 2)  # [batch, codebooks, frames]

    def decode(self, codes: Tensor, *, length: int | None = None) -> Tensor:
        audio = codes.transpose(1, 2).reshape(len(codes), -1).double().numpy() / 2**23
        return torch.from_numpy(self.change(audio).astype(np.float32))[:, None, :length]


@cache
def recordings() -> Recordings:
    voice = signal_checks.synthetic_recordings(RATE)
    rain = 0.1 * signal_checks.noise(2 * RATE, rate=RATE, color="white", seed=0)[None]
    return Recordings(voice.speech, voice.music, rain)


def gain(decibels: float) -> KnownSystem:
    return KnownSystem(lambda audio: 10 ** (decibels / 20) * audio)


def low_pass(audio: Signal) -> Signal:
    """Remove everything above 2 kHz."""
    spectrum = np.fft.rfft(audio)
    spectrum[:, np.fft.rfftfreq(audio.shape[1], 1 / RATE) >= 2000] = 0
    return np.fft.irfft(spectrum, audio.shape[1])


def repeat_frames(audio: Signal) -> Signal:
    """Replace every second frame by the one before it."""
    frames = audio.reshape(len(audio), -1, HOP).copy()
    frames[:, 1::2] = frames[:, 0::2][:, : frames[:, 1::2].shape[1]]
    return frames.reshape(audio.shape)


def modulate(audio: Signal) -> Signal:
    """Modulate the amplitude once per frame."""
    return audio * (1 + 0.5 * np.cos(2 * np.pi * np.arange(audio.shape[1]) / HOP))


def only(results: list[Result]) -> Result:
    (result,) = results
    return result


@pytest.mark.slow
def test_a_lossless_codec_meets_every_aim() -> None:
    results = list(signal_checks.check_all(KnownSystem(), recordings(), quick=True))
    assert [(result.check, result.missed()) for result in results if result.missed()] == []
    figures = {(result.check, figure) for result in results for figure in result.figures}
    assert set(AIMS) <= figures
    assert len({result.check for result in results}) == len(results)


@pytest.mark.slow
def test_a_gain_is_found_by_every_check_of_levels() -> None:
    """-5.9 dB, within the aim for half of the codebooks only."""
    softer = gain(-5.9)
    tones = [*signal_checks.sines(softer, quick=True), *signal_checks.dtmf(softer), *signal_checks.beeps(softer)]
    for result in [*tones, *signal_checks.sweep(softer), signal_checks.clicks(softer)[1]]:
        assert result.figures["worst_db"] == pytest.approx(-5.9, abs=EXACT), result
        assert ("worst_db" in result.missed()) == (result.check not in ("sines, half", "sines, quarter"))
    assert signal_checks.dtmf(softer)[0].figures["recognized_share"] == 1
    click = signal_checks.clicks(softer)[0].figures
    assert click["peak_ratio_worst"] == pytest.approx(10 ** (-5.9 / 20), abs=1e-4)
    assert click["concentration_worst_db"] == signal_checks.MAX_RATIO
    for result in signal_checks.noise_levels(softer, quick=True):
        assert result.figures["octave_worst_db"] == pytest.approx(-5.9, abs=EXACT)
        assert result.figures["octave_median_db"] == pytest.approx(5.9, abs=EXACT)
    assert only(signal_checks.noisy_pauses(softer, recordings())).figures["worst_db"] == pytest.approx(-5.9, abs=EXACT)
    speech = only(signal_checks.speech_levels(softer, recordings()))
    assert speech.figures["level_worst_db"] == pytest.approx(-5.9, abs=EXACT)
    assert speech.missed() == ["level_worst_db"]


@pytest.mark.slow
def test_a_low_pass_is_found() -> None:
    low_passed = KnownSystem(low_pass)
    full = signal_checks.sines(low_passed, quick=True)[0].figures
    assert full["median_below_2_khz_db"] == pytest.approx(0, abs=0.1)
    assert full["median_above_2_khz_db"] < -60
    frequencies = signal_checks.tone_frequencies(KnownSystem.frame_spec, quick=True)
    kept = sum(frequency < 2000 for frequency in frequencies) / len(frequencies)
    assert full["within_3_db_share"] == pytest.approx(kept, abs=0.05)
    sweep = only(signal_checks.sweep(low_passed))
    assert sweep.note.startswith("tenths 0 0 0 0 0 0 -")
    assert sweep.figures["worst_db"] < -60
    assert signal_checks.noise_levels(low_passed, quick=True)[0].figures["octave_worst_db"] < -50


@pytest.mark.slow
def test_tones_are_measured_at_three_numbers_of_codebooks() -> None:
    system = KnownSystem()
    signal_checks.sines(system, quick=True)
    assert sorted(set(map(str, system.requested))) == ["12", "3", "6"]


def test_tones_are_log_spaced_and_on_centers_edges_and_multiples_of_the_frame_rate() -> None:
    frequencies = signal_checks.tone_frequencies(KnownSystem.frame_spec)
    assert len(frequencies) == 96
    assert min(frequencies) >= 12.5
    assert max(frequencies) <= 10_050
    centers, edges, multiples = (frequencies[start : start + 16] for start in (48, 64, 80))
    assert {f % 25 for f in centers} == {12.5}
    assert {f % 50 for f in edges} == {25}
    assert {f % 50 for f in multiples} == {0}
    assert min(multiples) == 50


@pytest.mark.slow
def test_repeated_frames_are_found() -> None:
    repeating = KnownSystem(repeat_frames)
    white, rain, fricatives = signal_checks.periodicity(repeating, recordings(), quick=True)
    for result in (white, rain):  # every second pair of neighboring frames is equal
        assert list(result.figures.values()) == pytest.approx([0.5] * 5, abs=0.08)
        assert result.missed() == ["worst"]
    assert fricatives.figures["3_to_6_khz"] > 0.3
    assert signal_checks.clicks(repeating)[0].figures["concentration_worst_db"] == pytest.approx(0, abs=EXACT)


def test_stripes_at_the_frame_rate_are_found() -> None:
    result = only(signal_checks.stripes(KnownSystem(modulate), quick=True))
    assert result.figures["worst_db"] > 20
    assert result.figures["top_octave_worst_db"] > 20
    assert result.missed() == ["worst_db", "top_octave_worst_db"]


def test_modulation_of_a_band_is_found() -> None:
    """The power (1 + 0.2 cos)^2 has a depth of 2 * 0.2 / (1 + 0.2^2 / 2) = 0.39."""
    result = only(signal_checks.modulation(KnownSystem(lambda audio: audio * rough(audio, 0.2)), quick=True))
    assert result.figures["worst"] == pytest.approx(0.39, abs=0.06)
    assert result.missed() == ["worst"]

    def opposed(audio: Signal) -> Signal:
        low = signal_checks._band(audio, RATE, (0, 2000))
        return low * rough(audio, 0.2) + (audio - low) * rough(audio, -0.2)

    result = only(signal_checks.modulation(KnownSystem(opposed), quick=True))
    assert result.figures["1_to_1.5_khz"] == pytest.approx(0.39, abs=0.06)
    assert result.figures["3_to_4.5_khz"] == pytest.approx(0.39, abs=0.06)
    assert only(signal_checks.modulation(KnownSystem(), quick=True)).figures["worst"] < 0.08


def rough(audio: Signal, depth: float) -> Signal:
    """A factor that rises and falls once in a frame."""
    return 1 + depth * np.cos(2 * np.pi * np.arange(audio.shape[-1]) / HOP)


def test_ripple_of_the_spectrum_is_found() -> None:
    echoing = KnownSystem(lambda audio: audio + 0.5 * np.roll(audio, 100, axis=-1))  # from 20 log 0.5 to 20 log 1.5
    result = only(signal_checks.coloration(echoing, quick=True))
    assert result.figures["least_db"] == pytest.approx(-6, abs=1)
    assert result.figures["most_db"] == pytest.approx(3.5, abs=1)
    assert result.missed() == ["ripple_db"]
    dull = KnownSystem(lambda audio: audio + 0.5 * np.roll(audio, 1, axis=-1))
    assert only(signal_checks.coloration(dull, quick=True)).figures["ripple_db"] < 0.2


@pytest.mark.slow
def test_noise_in_silence_is_found() -> None:
    humming = KnownSystem(lambda audio: audio + 1e-3)
    assert only(signal_checks.silence(humming, recordings())).figures == pytest.approx(
        {"level_dbfs": -60, "after_speech_dbfs": -60}, abs=EXACT
    )
    exact = only(signal_checks.silence(KnownSystem(), recordings()))
    assert set(exact.figures.values()) == {signal_checks.SILENT}


@pytest.mark.slow
def test_overshoot_is_found_and_does_not_wrap() -> None:
    result = only(signal_checks.overshoot(gain(6), recordings()))
    assert result.figures["worst_db"] == pytest.approx(6, abs=EXACT)
    assert result.figures["wrapped_samples"] == 0
    assert result.missed() == ["worst_db"]


@pytest.mark.slow
def test_drift_accumulates_over_generations() -> None:
    loud = recordings()
    quiet = Recordings(0.1 * loud.speech, 0.1 * loud.music, loud.rain)
    result, second = signal_checks.generations(gain(0.5), quiet)
    assert result.figures["level_worst_db"] == pytest.approx(5, abs=0.05)
    assert result.figures["level_mean_db"] == pytest.approx(5, abs=0.05)
    assert result.missed() == ["level_worst_db", "highs_worst_db"]
    assert second.figures["all_share"] < 0.5
    three = signal_checks.generations(gain(0.5), quiet, count=3)[0]
    assert three.figures["level_mean_db"] == pytest.approx(1.5, abs=0.05)


@pytest.mark.slow
def test_stable_codes_are_counted() -> None:
    class ConstantCodes(KnownSystem):
        def encode(self, audio: Tensor, *, num_codebooks: int | None = None) -> Tensor:
            return super().encode(audio, num_codebooks=num_codebooks) * 0

    assert all(set(r.figures.values()) == {1.0} for r in signal_checks.stability(ConstantCodes(), recordings()))
    softer, inverted, delayed, noisy = signal_checks.stability(KnownSystem(), recordings())
    for result in (softer, inverted, delayed):
        assert result.figures["all_share"] < 0.2
    assert noisy.figures["all_share"] == pytest.approx(1 / 3, abs=0.01)


def tones(*frequencies: float, seconds: float = 0.1) -> Signal:
    time = np.arange(round(seconds * RATE)) / RATE
    return sum((0.2 * np.sin(2 * np.pi * frequency * time) for frequency in frequencies), np.zeros(len(time)))


def test_dtmf_detector_recognizes_keys_only() -> None:
    for row, low in enumerate(signal_checks.DTMF_ROWS):
        for column, high in enumerate(signal_checks.DTMF_COLUMNS):
            assert signal_checks.detect_dtmf(tones(low, high), RATE) == (row, column)
            assert signal_checks.detect_dtmf(1e-3 * tones(low, high), RATE) is None
            assert signal_checks.detect_dtmf(tones(low) + 0.2 * tones(high), RATE) is None  # twist of 14 dB
    assert signal_checks.detect_dtmf(tones(697), RATE) is None
    assert signal_checks.detect_dtmf(tones(697, 1209, 1477), RATE) is None
    assert signal_checks.detect_dtmf(tones(697, 1209, 3000, 4000, 5000), RATE) is None
    assert signal_checks.detect_dtmf(tones(697, 1209, seconds=0.04), RATE) is None
    assert signal_checks.detect_dtmf(np.concatenate([tones(697, 1209), tones(770, 1209)]), RATE) is None
    assert signal_checks.detect_dtmf(signal_checks.noise(RATE, rate=RATE, color="white", seed=0), RATE) is None


@pytest.mark.parametrize(("color", "slope"), [("white", 3.0), ("pink", 0.0)])
def test_noise_has_its_color_and_level(color: str, slope: float) -> None:
    """White noise gains 3 dB per octave of equal ratio, pink none (Voss and Clarke, 1978)."""
    signal = signal_checks.noise(10 * RATE, rate=RATE, color=color, seed=1)
    assert np.mean(signal**2) == pytest.approx(1)
    power = np.abs(np.fft.rfft(signal)) ** 2
    octaves = [10 * np.log10(power[10 * low : 20 * low].sum()) for low in (250, 500, 1000, 2000, 4000)]
    assert np.diff(octaves) == pytest.approx([slope] * 4, abs=0.4)


def test_an_aim_is_a_closed_range_that_nan_is_outside_of() -> None:
    assert [Aim(high=0.1).met(value) for value in (-5, 0.1, 0.11, np.nan)] == [True, True, False, False]
    assert list(map(str, (signal_checks.within(3), Aim(high=0.5), Aim(low=0.9)))) == ["±3", "≤ 0.5", "≥ 0.9"]


def test_recordings_are_the_middles_of_valid_clips(tmp_path: Path) -> None:
    rows = []
    cases = [("en_vctk", "valid", 0.2), ("en_vctk", "train", 0.4), ("music", "valid", 0.6), ("esc10", "valid", 0.8)]
    for name, split, level in cases:
        path = tmp_path / f"{name}-{split}.wav"
        time = 5 * RATE
        audio = np.where(np.abs(np.arange(time) - time // 2) < 1.4 * RATE, level, 0.0)  # loud in the middle alone
        write_audio(path, audio.astype(np.float32)[None], RATE)
        label = {"label": "rain"} if name == "esc10" else {}
        rows.append({"path": path.name, "set": name, "split": split, "seconds": 5.0, **label})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = signal_checks.read_recordings(tmp_path, rate=RATE, quick=True)
    for clips, level in ((found.speech, 0.2), (found.music, 0.6), (found.rain, 0.8)):
        assert clips.shape == (1, 3 * RATE)
        assert np.abs(clips).max() == pytest.approx(level, abs=1e-3)
        assert np.abs(clips[0, : RATE // 20]).max() == 0
        assert np.abs(clips).mean() == pytest.approx(level * 2.8 / 3, rel=1e-2)
    (tmp_path / "manifest.jsonl").write_text(json.dumps(rows[2]) + "\n")
    with pytest.raises(InputNotFound, match=r"no clip of 4 s in the valid split of en_ljspeech"):
        signal_checks.read_recordings(tmp_path, rate=RATE)
