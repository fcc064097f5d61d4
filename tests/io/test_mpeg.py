"""Lengths of MPEG audio, against files that soundfile writes whole and frames made by hand."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.errors import UnsupportedAudio
from codec.io import mpeg
from codec.io.audio import read_audio

RATE = 44100


@pytest.fixture(scope="module")
def noise() -> NDArray[Any]:
    """A loud second, then two quiet ones, so that a variable bit rate varies."""
    x = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * RATE)
    x[RATE:] *= 0.01
    return x


def mp3(samples: NDArray[Any], mode: str = "CONSTANT", rate: int = RATE) -> bytes:
    """A whole file, with an Info or Xing frame."""
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", rate, 1, format="MP3", bitrate_mode=mode, compression_level=0.5) as target:
        target.write(samples)
    return file.getvalue()


def decoded(file: Any) -> NDArray[Any]:
    samples: NDArray[Any] = soundfile.read(file)[0]
    return samples


def without_info(data: bytes) -> bytes:
    """The file from its second frame on, as a writer to a pipe leaves it."""
    frames = mpeg.find_frames(io.BytesIO(data))
    assert frames is not None
    return data[frames.runs[0][0] :]


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
@pytest.mark.parametrize("rate", [44100, 24000, 8000])
def test_a_whole_file_keeps_its_samples(noise: NDArray[Any], mode: str, rate: int) -> None:
    data = mp3(noise, mode, rate)
    file = io.BytesIO(data)
    assert mpeg.has_exact_length(file)
    frames = mpeg.find_frames(file)
    assert frames is not None
    assert frames.time - frames.delay - frames.padding == len(noise)
    assert np.array_equal(decoded(mpeg.exact(file, frames)), decoded(io.BytesIO(data)))


def test_a_stream_without_a_length_is_read_to_its_end(noise: NDArray[Any]) -> None:
    whole = mp3(noise, "VARIABLE")
    file = io.BytesIO(without_info(whole))
    assert not mpeg.has_exact_length(file)
    file.seek(0)
    assert soundfile.info(file).frames < len(noise) / 2  # what libsndfile guesses
    frames = mpeg.find_frames(file)
    assert frames is not None
    samples = decoded(mpeg.exact(file, frames))
    assert len(noise) <= len(samples) <= len(noise) + 3 * 1152
    delay = 576  # of the encoder; a file with an Info frame says so, and the decoder leaves it out
    assert np.allclose(samples[delay : delay + len(noise)], decoded(io.BytesIO(whole)), atol=1e-3)


@pytest.mark.parametrize(
    "between", [b"", b"ID3\x04\0\0\0\0\0\x05hello", b"TAG" + bytes(125), b"\xff\xff junk \xff\xfb\x10\0"]
)
def test_joined_files_are_read_to_the_end_of_the_last(noise: NDArray[Any], between: bytes) -> None:
    first, second = mp3(noise), mp3(noise[:RATE])
    file = io.BytesIO(first + between + second)
    assert not mpeg.has_exact_length(file)
    frames = mpeg.find_frames(file)
    assert frames is not None
    samples = decoded(mpeg.exact(file, frames))
    assert 0 <= len(samples) - 4 * RATE <= 3 * 1152  # what the encoder added where they meet
    assert np.allclose(samples[: 3 * RATE - 1152], decoded(io.BytesIO(first))[: 3 * RATE - 1152], atol=1e-6)
    assert np.allclose(samples[-RATE // 2 :], decoded(io.BytesIO(second))[-RATE // 2 :], atol=1e-3)


def test_tags_around_a_whole_file_leave_its_length_exact(noise: NDArray[Any]) -> None:
    tag = b"ID3\x03\0\0" + bytes((0, 0, 8, 0)) + bytes(1024)
    assert mpeg.has_exact_length(io.BytesIO(tag + mp3(noise) + b"TAG" + bytes(125)))


def test_a_short_recording_behind_a_long_one_counts() -> None:
    """A stated length may be a little wrong, because of tags, but no frames are behind it then."""
    frame = bytes((0xFF, 0xFB, 0x14, 0xC0)) + bytes(92)  # silence; MPEG-1, layer III, 32 kbit/s, 48 kHz, mono
    stated = mpeg.find_frames(io.BytesIO(frame * 2000))
    assert stated is not None
    whole = mpeg.exact(io.BytesIO(frame * 2000), stated).read()
    assert mpeg.has_exact_length(io.BytesIO(whole))
    assert mpeg.has_exact_length(io.BytesIO(whole + b"APETAGEX" + bytes(range(256)) * 2))
    assert not mpeg.has_exact_length(io.BytesIO(whole + frame * 6))


def test_recordings_of_other_kinds_behind_are_named(noise: NDArray[Any], tmp_path: Path) -> None:
    (tmp_path / "a.mp3").write_bytes(mp3(noise) + (bytes((0xFF, 0xFB, 0x14, 0xC0)) + bytes(92)) * 5)
    with pytest.raises(
        UnsupportedAudio, match=rf"different kinds one after another \({RATE} Hz, 1 ch, layer 3; 48000 Hz"
    ):
        read_audio(tmp_path / "a.mp3")


def test_a_frame_cut_in_the_middle_does_not_count(noise: NDArray[Any]) -> None:
    data = mp3(noise)
    whole, cut = mpeg.find_frames(io.BytesIO(data)), mpeg.find_frames(io.BytesIO(data[:-100]))
    assert whole is not None
    assert cut is not None
    assert cut.number == whole.number - 1


@pytest.mark.parametrize(
    ("header", "size", "samples"),
    [  # ISO/IEC 11172-3: 144 · kbit/s / kHz for layer II, 48 · kbit/s / kHz in whole words of 4 bytes for layer I
        (bytes((0xFF, 0xFD, 0x84, 0xC0)), 144 * 128 // 48, 1152),  # layer II, 128 kbit/s, 48 kHz, mono
        (bytes((0xFF, 0xFF, 0x84, 0xC0)), 4 * (12 * 256 // 48), 384),  # layer I, 256 kbit/s, 48 kHz, mono
    ],
    ids=["MP2", "MP1"],
)
def test_silent_frames_made_by_hand(header: bytes, size: int, samples: int) -> None:
    file = io.BytesIO((header + bytes(size - 4)) * 50)
    frames = mpeg.find_frames(file)
    assert frames is not None
    assert (frames.number, frames.time) == (50, 50 * samples)
    source = soundfile.SoundFile(mpeg.exact(file, frames))
    assert source.frames == frames.time


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xfb\x90", b"RIFF" + bytes(100), b"\xff" * 5000, bytes(5000)])
def test_other_bytes_have_no_frames(data: bytes) -> None:
    assert not mpeg.has_exact_length(io.BytesIO(data))
    assert mpeg.find_frames(io.BytesIO(data)) is None


def test_a_length_that_does_not_fit_the_file_is_not_exact(noise: NDArray[Any], tmp_path: Path) -> None:
    data = bytearray(mp3(noise))
    at = data.index(b"Info" if b"Info" in data else b"Xing") + 12
    data[at : at + 4] = struct.pack(">I", 2 * len(data))
    assert not mpeg.has_exact_length(io.BytesIO(bytes(data)))
