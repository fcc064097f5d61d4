"""Every recording comes in whole: each container with its length stated, guessed, left open or wrong, on each way in.

| case | length | seeking |
|---|---|---|
| WAV, FLAC, Ogg Vorbis, Ogg Opus, MP3 with Info frame | stated | yes |
| MP3 without Info frame, two joined MP3s | guessed, or of the first | yes |
| WAV of a killed writer | 0 | yes |
| FLAC written to a pipe | left open | no |
| GSM in WAV | stated, rounded up to its blocks | no |
| FLAC cut off | too large | yes |
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.data.clips import Clip, clip_audio, clip_time
from codec.io import mpeg
from codec.io.audio import open_reader, read_audio

RATE = 8000
TIME = 5 * RATE
RNG = np.random.default_rng(0)
NOISE = np.convolve(RNG.uniform(-0.5, 0.5, TIME), np.ones(8) / 8, "same")


def written(kind: str, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, NOISE, RATE, format=kind, subtype=subtype)
    return file.getvalue()


def without_info() -> bytes:
    data = written("MP3")
    frames = mpeg.find_frames(io.BytesIO(data))
    assert frames is not None
    return data[frames.runs[0][0] :]


def killed_wav() -> bytes:
    data = bytearray(written("WAV", "PCM_16"))
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = bytes(4)
    return bytes(data)


def open_flac() -> bytes:
    """STREAMINFO's 36 bits of total samples are 0, as flac leaves them when it writes to a pipe."""
    data = bytearray(written("FLAC", "PCM_16"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def cut_flac() -> bytes:
    data = written("FLAC", "PCM_16")
    return data[: len(data) // 2]


CASES: dict[str, tuple[Callable[[], bytes], int, int]] = {  # the file, least and most samples
    "WAV": (lambda: written("WAV", "PCM_16"), TIME, TIME),
    "FLAC": (lambda: written("FLAC", "PCM_16"), TIME, TIME),
    "Ogg Vorbis": (lambda: written("OGG", "VORBIS"), TIME, TIME),
    "Ogg Opus": (lambda: written("OGG", "OPUS"), TIME, TIME),
    "MP3": (lambda: written("MP3"), TIME, TIME),
    "MP3 without Info frame": (without_info, TIME, TIME + 2000),
    "joined MP3": (lambda: written("MP3") * 2, 2 * TIME, 2 * TIME + 3000),
    "WAV of a killed writer": (killed_wav, TIME, TIME),
    "FLAC without a length": (open_flac, TIME, TIME),
    "GSM in WAV": (lambda: written("WAV", "GSM610"), TIME, TIME + 320),
    "FLAC cut off": (cut_flac, TIME // 3, 2 * TIME // 3),
}
CUT = "FLAC cut off"


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path, int, int]:
    make, least, most = CASES[request.param]
    path = tmp_path / "recording.bin"
    path.write_bytes(make())
    return request.param, path, least, most


def counted(source: Path | bytes) -> int:
    with open_reader(source) as reader:
        return sum(block.shape[1] for block in reader.blocks(1000))


def test_read_to_the_end(case: tuple[str, Path, int, int]) -> None:
    """As `codec encode` reads a file, and standard input."""
    name, path, least, most = case
    if name == CUT:
        pytest.skip("the place of the damage is named instead: tests/io/test_audio.py")
    assert least <= counted(path) <= most
    assert counted(path.read_bytes()) == counted(path)


def test_the_length_in_an_index_is_what_can_be_read(case: tuple[str, Path, int, int]) -> None:
    """As training measures files."""
    _, path, least, most = case
    time = clip_time(Clip(id="a", path=path), RATE)
    assert isinstance(time, int)
    assert least <= time <= most
    with open_reader(path) as reader:
        assert reader.length() == time
        assert next(reader.blocks(time // 2)).shape[1] == time // 2  # measuring leaves the reader at the start


@pytest.mark.parametrize("rate", [RATE, 6000])
def test_crops_anywhere_in_a_recording(case: tuple[str, Path, int, int], rate: int) -> None:
    """As training reads crops, and tokenizing the clips of a manifest."""
    name, path, _, _ = case
    with open_reader(path) as reader:
        whole: NDArray[Any] = reader.part(0, reader.length() // (2 if name == CUT else 1))
    if rate != RATE:
        whole = read_audio_from(whole, rate)
    clip = Clip(id="a", path=path, seconds=whole.shape[1] / rate)
    for first in (0, whole.shape[1] // 3, whole.shape[1] - 700):
        audio = clip_audio(clip, rate=rate, first=first, time=600)
        assert audio.shape == (1, 600)
        assert np.allclose(audio, whole[:, first : first + 600], atol=5e-3), first


def read_audio_from(audio: NDArray[Any], rate: int) -> NDArray[Any]:
    file = io.BytesIO()
    soundfile.write(file, audio.T, RATE, format="WAV", subtype="FLOAT")
    return read_audio(file.getvalue(), rate=rate)[0]


def test_reading_on_needs_no_seeking(case: tuple[str, Path, int, int]) -> None:
    """Parts that follow each other are the recording, to the bit."""
    _, path, _, _ = case
    with open_reader(path) as reader:
        time = 12_000
        parts = [reader.part(first, 1000) for first in range(0, time - 1000, 1000)]
    with open_reader(path) as reader:
        whole = next(reader.blocks(time))
    joined = np.concatenate(parts, axis=1)
    assert np.array_equal(joined, whole[:, : joined.shape[1]])
