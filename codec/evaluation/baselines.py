"""Reference encoders: Opus and Codec 2 by their command-line tools, MP3 by libsndfile.

(opus,) = find_baselines("opus:12")
decoded = opus.round_trip(audio, rate=24_000)
"""

import io
import re
import shutil
import subprocess
import tempfile
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from codec.errors import CodecError, MissingDependency, UsageError
from codec.io import mpeg
from codec.io.audio import read_audio, resample, write_audio

Floats = NDArray[np.float32]

OPUS_KBPS = (6.0, 256.0)  # range of `opusenc --bitrate` for one channel
OPUS_CURRENT = (1, 5)  # the first libopus whose decoder enhances speech (LACE and NoLACE)
MP3_KBPS = sorted({kbps for of_rate in mpeg.KBPS.values() for kbps in of_rate})
CODEC2_MODES = ("3200", "2400", "1600", "1400", "1300", "1200")  # bit/s
CODEC2_RATE = 8000  # Hz
CODEC2_DELAY = 160  # samples (20 ms); the shift with the highest STOI, equal in all these modes
CODEC2_FRAME = 320  # samples of the longest frame; an incomplete last frame is not encoded
MP3_DELAY = 576  # samples of LAME's encoder, to remove where no frame has room to state them
MP3_LARGEST_LEVEL = 0.98  # of compression; libsndfile 1.2.2 refuses 1


@dataclass(frozen=True)
class Decoded:
    """Decoded audio [time] at the sample rate of the input, size of the encoded file, and size of its packets alone."""

    audio: Floats
    file_bytes: int
    payload_bytes: int


@dataclass(frozen=True)
class Baseline(ABC):
    """Reference encoder with a setting; `label` is its name in tables, `note` its version and command."""

    setting: str
    label: str
    note: str

    @abstractmethod
    def round_trip(self, audio: Floats, *, rate: int) -> Decoded:
        """Encode and decode audio [time] at `rate` Hz as 16-bit mono, with delay removed and length kept.

        Raises CodecError if a tool fails.
        """


class Original(Baseline):
    """The recording itself in 16 bits, for comparison with measures that need no reference."""

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
            # At 48 kHz and in float, because the resampler and dither of opusdec are not part of the codec.
            _call("opusdec", "--quiet", "--rate", "48000", "--float", str(coded), str(decoded))
            content = coded.read_bytes()
            restored = read_audio(decoded, rate=rate, mono=True)[0][0]
        return Decoded(_of_length(restored, len(audio)), len(content), _ogg_payload(content))


class MP3(Baseline):
    def round_trip(self, audio: Floats, *, rate: int) -> Decoded:
        kbps = int(self.setting)
        own_rate = _mp3_rate(kbps, rate)
        rates = mpeg.KBPS[own_rate]
        level = (max(rates) - kbps) / (max(rates) - min(rates))
        file = io.BytesIO()
        samples = resample(audio[None], rate, own_rate)[0]
        options = {"compression_level": min(level, MP3_LARGEST_LEVEL), "bitrate_mode": "CONSTANT"}
        soundfile.write(file, samples, own_rate, format="MP3", subtype="MPEG_LAYER_III", **options)
        content = file.getvalue()
        decoded = read_audio(content)[0][0]
        if len(decoded) > len(samples):  # without an Info frame, whose length and delay libsndfile would apply
            decoded = decoded[MP3_DELAY:]
        frames = mpeg.find_frames(file)
        payload = 0 if frames is None else sum(end - first for first, end in frames.runs)
        return Decoded(_of_length(resample(decoded[None], own_rate, rate)[0], len(audio)), len(content), payload)


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
    """Parse a list such as "opus:6,mp3:16,codec2:3200,original": kbit/s of Opus and MP3, bit/s of Codec 2.

    "original" is the recording without a codec.

    Raises:
        UsageError: an unknown encoder or setting.
        MissingDependency: a tool is not installed; the message has the name of the Debian package.
    """
    items = [item.strip() for item in dict.fromkeys(text.split(","))]
    for item in items:  # before any tool is asked for
        if not _is_known(item):
            raise UsageError(
                f'unknown baseline "{item}": write opus:KBPS, {OPUS_KBPS[0]:g} to {OPUS_KBPS[1]:g}, '
                f"mp3:KBPS, one of {', '.join(map(str, MP3_KBPS))}, codec2:MODE, one of {', '.join(CODEC2_MODES)}, "
                "or original"
            )
    return tuple(map(_find, items))


def _is_known(item: str) -> bool:
    name, _, setting = item.partition(":")
    match name:
        case "opus":
            return bool(re.fullmatch(r"\d+(\.\d+)?", setting)) and OPUS_KBPS[0] <= float(setting) <= OPUS_KBPS[1]
        case "mp3":
            return setting in map(str, MP3_KBPS)
        case "codec2":
            return setting in CODEC2_MODES
        case _:
            return item == "original"


def _find(item: str) -> Baseline:
    if item == "original":
        return Original("", item, "original: the recordings at the model's sample rate, without a codec")
    name, _, setting = item.partition(":")
    if name == "opus":
        _need("opus-tools", "opusenc", "opusdec")
        return _opus(setting, _call("opusenc", "--version"))
    if name == "mp3":
        return _mp3(setting)
    _need("codec2", "c2enc", "c2dec")
    note = f"codec2: c2enc at 8 kHz (its version is unknown), with its delay of {CODEC2_DELAY} samples removed"
    return Codec2(setting, item, note)


def _opus(setting: str, version_text: str) -> Opus:
    found = re.search(r"libopus (?:v|unknown )?(\S+?)\)", version_text)
    version = found[1] if found else "of unknown version"
    tools = version_text.splitlines()[0].partition(" (")[0].removeprefix("opusenc ")
    if _release(version) >= OPUS_CURRENT:
        decoder = "decoder complexity 0, the default of opusdec (no LACE or NoLACE)"
    else:
        decoder = "older than 1.5, without decoder complexity: do not quote these rows as current Opus"
    note = f"opus: opusenc of {tools}, VBR, encoder complexity 10, libopus {version}, {decoder}"
    return Opus(setting, f"opus:{setting} (libopus {version})", note)


def _mp3(setting: str) -> MP3:
    library = soundfile.__libsndfile_version__
    if "MP3" not in soundfile.available_formats():
        raise MissingDependency(f"libsndfile {library} writes no MP3: install 1.1 or later, or omit this baseline")
    note = (
        f"mp3: LAME in libsndfile {library}, constant bit rate, at the models' sample rate or the next lower one that "
        "has this bit rate"
    )
    return MP3(setting, f"mp3:{setting}", note)


def _mp3_rate(kbps: int, rate: int) -> int:
    """The highest sample rate of MP3 up to `rate` Hz that has the bit rate, or the lowest above it."""
    rates = sorted(each for each, of_rate in mpeg.KBPS.items() if kbps in of_rate)
    return max((each for each in rates if each <= rate), default=rates[0])


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, numbers[0].split("."))) if numbers else ()


def _need(package: str, *tools: str) -> None:
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        raise MissingDependency(
            f"{missing[0]} is not installed: it comes with Debian's package {package} (`apt-get install {package}`); "
            "or omit this baseline"
        )


def _call(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise CodecError(f"{command[0]} ended with status {done.returncode} ({reason}): omit this baseline")
    return done.stdout or done.stderr


def _ogg_payload(content: bytes) -> int:
    """Bytes of the audio packets of an Ogg Opus file, without page headers, OpusHead and OpusTags (RFC 3533, 7845)."""
    packets: list[int] = []  # sizes
    size = position = 0
    while position < len(content):
        segments = content[position + 27 : position + 27 + content[position + 26]]
        for segment in segments:
            size += segment
            if segment < 255:  # a packet ends
                packets.append(size)
                size = 0
        position += 27 + len(segments) + sum(segments)
    return sum(packets[2:])


def _of_length(signal: Floats, time: int) -> Floats:
    return np.pad(signal[:time], (0, max(0, time - len(signal))))
