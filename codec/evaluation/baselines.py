"""Reference encoders beside a model, Opus and Codec 2: one recording through their own command-line tools.

(opus,) = find_baselines("opus:12")
decoded = opus.round_trip(audio, rate=24_000)
"""

import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from codec.errors import CodecError, MissingDependency, UsageError
from codec.io.audio import read_audio, resample, write_audio

Floats = NDArray[np.float32]

OPUS_KBPS = (6.0, 256.0)  # what `opusenc --bitrate` takes for one channel
OPUS_CURRENT = (1, 5)  # the first libopus whose decoder enhances speech (LACE and NoLACE)
CODEC2_MODES = ("3200", "2400", "1600", "1400", "1300", "1200")  # bit/s
CODEC2_RATE = 8000  # Hz
CODEC2_DELAY = 160  # samples (20 ms): the shift at which STOI is highest, the same in all of these modes
CODEC2_FRAME = 320  # samples of the longest frame; a last frame that is not whole is not coded


@dataclass(frozen=True)
class Decoded:
    """What comes back, [time] at the rate it was given, and the sizes: of the file, and of its packets alone."""

    audio: Floats
    file_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class Baseline(ABC):
    """A reference encoder with its setting. `label` names it in tables, `note` says which version and how it is run."""

    setting: str
    label: str
    note: str

    @abstractmethod
    def round_trip(self, audio: Floats, *, rate: int) -> Decoded:
        """Encode and decode [time] at `rate` Hz, given to the encoder as mono of 16 bits; delay removed, same length.

        Raises CodecError where a tool fails.
        """


class Original(Baseline):
    """No codec: the recording itself in 16 bits, which measures without a reference need beside them."""

    def round_trip(self, audio: Floats, *, rate: int) -> Decoded:
        size = 2 * len(audio)
        return Decoded(audio, size, size)


class Opus(Baseline):
    def round_trip(self, audio: Floats, *, rate: int) -> Decoded:
        with tempfile.TemporaryDirectory() as name:
            source, coded, decoded = (Path(name, file) for file in ("source.wav", "coded.opus", "decoded.wav"))
            write_audio(source, audio[None], rate)
            _call(
                *("opusenc", "--quiet", "--bitrate", self.setting, "--comp", "10", "--padding", "0"),
                *("--discard-comments", str(source), str(coded)),
            )
            # At Opus's own rate and in float: the tool's resampler and dither are no part of the codec.
            _call("opusdec", "--quiet", "--rate", "48000", "--float", str(coded), str(decoded))
            content = coded.read_bytes()
            restored = read_audio(decoded, rate=rate, mono=True)[0][0]
        return Decoded(_of_length(restored, len(audio)), len(content), _ogg_payload(content))


class Codec2(Baseline):
    def round_trip(self, audio: Floats, *, rate: int) -> Decoded:
        narrow = resample(audio[None], rate, CODEC2_RATE)[0]
        padded = np.pad(narrow, (0, CODEC2_DELAY + CODEC2_FRAME))
        with tempfile.TemporaryDirectory() as name:
            source, coded, decoded = (Path(name, file) for file in ("source.raw", "coded.bin", "decoded.raw"))
            np.clip(np.rint(padded * 32768), -32768, 32767).astype("<i2").tofile(source)
            _call("c2enc", self.setting, str(source), str(coded))
            _call("c2dec", self.setting, str(coded), str(decoded))
            size = coded.stat().st_size  # a .bin has no header
            restored: Floats = np.fromfile(decoded, "<i2").astype(np.float32) / np.float32(32768)
        restored = resample(restored[None, CODEC2_DELAY:], CODEC2_RATE, rate)[0]
        return Decoded(_of_length(restored, len(audio)), size, size)


def find_baselines(text: str) -> tuple[Baseline, ...]:
    """Reference encoders from a list such as "opus:6,opus:12,codec2:3200": kbit/s of Opus, modes of Codec 2 in bit/s.

    "original" is the recordings themselves, not coded.

    Raises:
        UsageError: an unknown encoder or setting.
        MissingDependency: a tool is not installed; the message names Debian's package.
    """
    return tuple(_find(item.strip()) for item in dict.fromkeys(text.split(",")))


def _find(item: str) -> Baseline:
    if item == "original":
        return Original("", item, "original: the recordings at the model's rate, not coded")
    name, _, setting = item.partition(":")
    if name == "opus" and re.fullmatch(r"\d+(\.\d+)?", setting) and OPUS_KBPS[0] <= float(setting) <= OPUS_KBPS[1]:
        _need("opus-tools", "opusenc", "opusdec")
        return _opus(setting, _call("opusenc", "--version"))
    if name == "codec2" and setting in CODEC2_MODES:
        _need("codec2", "c2enc", "c2dec")
        note = f"codec2: c2enc at 8 kHz (it does not tell its version), its delay of {CODEC2_DELAY} samples removed"
        return Codec2(setting, item, note)
    raise UsageError(
        f'baseline "{item}" is not known: write opus:KBPS, {OPUS_KBPS[0]:g} to {OPUS_KBPS[1]:g}, '
        f"codec2:MODE, one of {', '.join(CODEC2_MODES)}, or original"
    )


def _opus(setting: str, version_text: str) -> Opus:
    found = re.search(r"libopus (?:v|unknown )?(\S+?)\)", version_text)
    version = found[1] if found else "of unknown version"
    tools = version_text.splitlines()[0].partition(" (")[0].removeprefix("opusenc ")
    if _release(version) >= OPUS_CURRENT:
        decoder = "decoder complexity 0, the default of opusdec (no LACE or NoLACE)"
    else:
        decoder = "whose decoder has no complexity to set; older than 1.5, so do not quote these rows as today's Opus"
    note = f"opus: opusenc of {tools}, VBR, encoder complexity 10, libopus {version}, {decoder}"
    return Opus(setting, f"opus:{setting} (libopus {version})", note)


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def _need(package: str, *tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise MissingDependency(
            f"{missing[0]} is not installed: it comes with Debian's package {package} (`apt-get install {package}`); "
            "or leave that baseline out"
        )


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise CodecError(f"{command[0]} ended with status {done.returncode} ({reason}): leave that baseline out")
    return done.stdout or done.stderr


def _ogg_payload(content: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file: without page headers, OpusHead and OpusTags (RFC 3533, 7845)."""
    packets: list[int] = []  # sizes
    size = place = 0
    while place < len(content):
        segments = content[place + 27 : place + 27 + content[place + 26]]
        for segment in segments:
            size += segment
            if segment < 255:  # a packet ends
                packets.append(size)
                size = 0
        place += 27 + len(segments) + sum(segments)
    return sum(packets[2:])


def _of_length(signal: Floats, time: int) -> Floats:
    return np.pad(signal[:time], (0, max(0, time - len(signal))))
