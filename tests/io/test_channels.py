"""Channels in the order of WAV files, whatever order the container has."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.io.audio import open_writer, read_audio

RATE, TIME = 48000, 48000
WAV_TO_VORBIS = {  # Vorbis I specification, section 4.3.9, in channels of WAVE_FORMAT_EXTENSIBLE
    3: "FL FC FR",
    5: "FL FC FR BL BR",
    6: "FL FC FR BL BR LFE",
    7: "FL FC FR SL SR BC LFE",
    8: "FL FC FR SL SR BL BR LFE",
}
WAV = {
    3: "FL FR FC",
    5: "FL FR FC BL BR",
    6: "FL FR FC LFE BL BR",
    7: "FL FR FC LFE BC SL SR",
    8: "FL FR FC LFE BL BR SL SR",
}


def tones(channels: int) -> NDArray[np.float32]:
    """[channels, time]: channel n has a tone of 60 · (channels - n) Hz; the last may be the LFE of Opus, a low-pass."""
    time = np.arange(TIME) / RATE
    return np.stack([0.2 * np.sin(2 * np.pi * 60 * (channels - n) * time) for n in range(channels)]).astype(np.float32)


def heights(audio: NDArray[Any]) -> list[int]:
    """Which tone of `tones` each channel has."""
    peaks = [int(np.abs(np.fft.rfft(channel)).argmax()) for channel in audio]
    return [len(audio) - round(peak * RATE / audio.shape[1] / 60) for peak in peaks]


@pytest.mark.parametrize("channels", WAV)
@pytest.mark.parametrize("subtype", ["VORBIS", pytest.param("OPUS", marks=pytest.mark.slow)])
def test_ogg_files_are_read_in_wav_order(channels: int, subtype: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, tones(channels).T, RATE, format="OGG", subtype=subtype)  # in the order of the format
    vorbis, wav = WAV_TO_VORBIS[channels].split(), WAV[channels].split()
    audio, _ = read_audio(file.getvalue())
    assert heights(audio) == [vorbis.index(name) for name in wav]


@pytest.mark.parametrize("channels", [1, 2, *WAV])
def test_what_is_written_as_ogg_is_read_back_in_order(channels: int, tmp_path: Path) -> None:
    path = tmp_path / "out.ogg"
    with open_writer(path, rate=RATE, channels=channels) as writer:
        writer.write(tones(channels))
    assert heights(read_audio(path)[0]) == list(range(channels))
    if channels in WAV:
        raw = heights(soundfile.read(path)[0].T)
        assert [WAV[channels].split()[tone] for tone in raw] == WAV_TO_VORBIS[channels].split()


@pytest.mark.parametrize(("channels", "format_tag"), [(1, 1), (2, 1), (3, 0xFFFE), (6, 0xFFFE)])
def test_wav_files_of_more_than_two_channels_are_extensible(channels: int, format_tag: int, tmp_path: Path) -> None:
    path = tmp_path / "out.wav"
    with open_writer(path, rate=RATE, channels=channels) as writer:
        writer.write(tones(channels))
    data = path.read_bytes()
    at = data.index(b"fmt ") + 8
    assert int.from_bytes(data[at : at + 2], "little") == format_tag
    assert heights(read_audio(path)[0]) == list(range(channels))
