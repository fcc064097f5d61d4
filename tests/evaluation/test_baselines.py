"""Reference encoders: their real tools, where they are installed."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

from codec.errors import CodecError, MissingDependency, UsageError
from codec.evaluation.baselines import Floats, _ogg_payload, find_baselines

RATE = 24_000
needs_opus = pytest.mark.skipif(shutil.which("opusenc") is None, reason="opus-tools is not installed")
needs_codec2 = pytest.mark.skipif(shutil.which("c2enc") is None, reason="codec2 is not installed")


needs_mp3 = pytest.mark.skipif("MP3" not in soundfile.available_formats(), reason="libsndfile without MP3")


@cache
def voice(seconds: float, rate: int = RATE) -> Floats:
    """Syllables: a gliding harmonic tone, opened and closed four times a second."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    return (0.2 * np.clip(np.sin(2 * np.pi * 4 * time), 0, None) * tone).astype(np.float32)


def envelope(signal: Floats) -> Floats:
    return np.convolve(np.abs(signal), np.ones(480) / 480, "same").astype(np.float32)


def best_shift(reference: Floats, degraded: Floats) -> int:
    """Samples by which the degraded signal is late."""
    shifts = range(-480, 481, 24)
    return max(shifts, key=lambda shift: float(reference[480:-480] @ np.roll(degraded, -shift)[480:-480]))


@needs_opus
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
def test_opus_is_aligned(rate: int) -> None:
    (opus,) = find_baselines("opus:32")
    reference = voice(1.501, rate)
    decoded = opus.round_trip(reference, rate=rate)
    assert decoded.audio.shape == reference.shape
    error = decoded.audio - reference
    assert 10 * np.log10(reference.var() / error.var()) > 10  # it codes waveforms, so this is alignment too


@pytest.mark.slow
@needs_opus
def test_opus_rates_are_those_of_its_packets(tmp_path: Path) -> None:
    low, high = find_baselines("opus:8, opus:32")
    assert (low.setting, high.setting) == ("8", "32")
    audio = voice(4)
    sizes = [opus.round_trip(audio, rate=RATE) for opus in (low, high)]
    assert sizes[0].payload_bytes < sizes[1].payload_bytes
    for decoded in sizes:
        pages = (decoded.file_bytes - decoded.payload_bytes) * 8 / 4
        assert 0 < pages < 2000  # headers and lacing take 1 bit/ms or so
    # Constant rate is the one whose packets have a size that is known.
    soundfile.write(tmp_path / "in.wav", audio, RATE)
    command = ["opusenc", "--quiet", "--hard-cbr", "--bitrate", "32", "--padding", "0"]
    subprocess.run([*command, tmp_path / "in.wav", tmp_path / "out.opus"], check=True)
    packets = _ogg_payload((tmp_path / "out.opus").read_bytes()) / (32_000 * 0.02 / 8)
    assert packets == int(packets)
    assert packets in (200, 201)  # of 20 ms, the last of them for the look-ahead


@needs_opus
def test_the_version_of_libopus_is_in_the_note() -> None:
    (opus,) = find_baselines("opus:12")
    version = subprocess.run(["opusenc", "--version"], capture_output=True, text=True, check=True).stdout
    number = opus.label.removeprefix("opus:12 (libopus ").removesuffix(")")
    assert f"libopus {number})" in version
    assert f"libopus {number}, " in opus.note
    old = tuple(map(int, number.split(".")[:2])) < (1, 5)
    assert ("do not quote" in opus.note) == old
    assert ("no LACE" in opus.note) != old


@needs_codec2
@pytest.mark.parametrize("mode", ["3200", "1200"])
def test_codec2_is_aligned(mode: str) -> None:
    (codec2,) = find_baselines(f"codec2:{mode}")
    reference = voice(3.01)
    decoded = codec2.round_trip(reference, rate=RATE)
    assert decoded.audio.shape == reference.shape
    # Vocoders keep no waveform, but its envelope; within 10 ms, half a frame.
    assert abs(best_shift(envelope(reference), envelope(decoded.audio))) <= 240
    assert decoded.file_bytes == decoded.payload_bytes
    assert decoded.payload_bytes * 8 / 3.01 == pytest.approx(int(mode), rel=0.04)


@needs_mp3
@pytest.mark.parametrize("rate", [8000, 20_000, 24_000, 44_100, 96_000])
@pytest.mark.parametrize("kbps", [8, 16, 48, 64, 160, 320])
def test_mp3_is_aligned_at_its_bit_rate(rate: int, kbps: int) -> None:
    """Where the Info frame has room (from 56 kbit/s at 24 kHz) and where it has none."""
    (mp3,) = find_baselines(f"mp3:{kbps}")
    reference = voice(2.0, rate)
    decoded = mp3.round_trip(reference, rate=rate)
    assert decoded.audio.shape == reference.shape
    error = decoded.audio - reference
    assert 10 * np.log10(reference.var() / error.var()) > 9
    assert decoded.payload_bytes * 8 / 2.0 == pytest.approx(1000 * kbps, rel=0.08)  # frames beyond the end
    assert 0 <= decoded.file_bytes - decoded.payload_bytes <= 1500  # the Info frame


def test_a_library_without_mp3_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "available_formats", lambda: {"WAV": "WAV"})
    with pytest.raises(MissingDependency, match=r"^libsndfile \S+ writes no MP3: install 1.1 or later, or omit"):
        find_baselines("mp3:64")


@pytest.mark.parametrize(
    "text", ["", "opus", "opus:", "opus:5", "opus:300", "opus:x", "codec2:700", "mp3:100", "mp3:16.5", "opus:6,"]
)
def test_unknown_baselines_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"unknown baseline .*: write opus:KBPS, 6 to 256"):
        find_baselines(text)


@pytest.mark.parametrize(("text", "package"), [("opus:6", "opus-tools"), ("codec2:3200", "codec2")])
def test_missing_tools_are_named_with_their_package(
    text: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingDependency, match=f"is not installed: .*`apt-get install {package}`") as caught:
        find_baselines(text)
    assert "\n" not in str(caught.value)


@needs_opus
def test_a_failing_tool_is_reported_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (opus,) = find_baselines("opus:6")
    (tmp_path / "opusenc").write_text("#!/bin/sh\necho trouble >&2\nexit 3\n")
    (tmp_path / "opusenc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CodecError, match=r"opusenc ended with status 3 \(trouble\)"):
        opus.round_trip(voice(0.1), rate=RATE)
