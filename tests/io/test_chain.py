"""Recordings that follow each other in one file, read as one: beside each of them read alone."""

import io
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.errors import UnsupportedAudio
from codec.io import chain, flac
from codec.io.audio import open_reader, read_audio
from tests.helpers.ogg import in_ogg

RATE = 16_000
KINDS = {
    "Vorbis": ("OGG", "VORBIS"),
    "Opus": ("OGG", "OPUS"),
    "FLAC": ("FLAC", "PCM_16"),
    "FLAC in Ogg": ("FLAC", "PCM_16"),
}
Audio = NDArray[np.float32]


@cache
def recording(kind: str, seconds: float, *, seed: int = 0, channels: int = 1, rate: int = RATE) -> bytes:
    container, subtype = KINDS[kind]
    noise = np.random.default_rng(seed).normal(0, 0.1, (round(seconds * rate), channels))
    file = io.BytesIO()
    soundfile.write(file, noise, rate, format=container, subtype=subtype)
    return in_ogg(file.getvalue(), seed) if kind == "FLAC in Ogg" else file.getvalue()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def parts(kind: str) -> list[bytes]:
    return [recording(kind, seconds, seed=seed, channels=2) for seed, seconds in enumerate((3, 1.5, 0.2, 4))]


def of_each(parts: list[bytes]) -> Audio:
    return np.concatenate([read_audio(part)[0] for part in parts], axis=1)


def test_all_of_them_one_after_the_other(parts: list[bytes]) -> None:
    audio, rate = read_audio(b"".join(parts))
    assert rate == RATE
    assert np.array_equal(audio, of_each(parts))
    with open_reader(b"".join(parts)) as reader:
        assert reader.time == reader.length() == audio.shape[1]


def test_parts_anywhere(parts: list[bytes]) -> None:
    """Across the ends of the recordings, close before and behind them, backward and forward."""
    whole = of_each(parts)
    ends = np.cumsum([read_audio(part)[0].shape[1] for part in parts])
    places = [
        0,
        *(int(end) + offset for end in ends[:-1] for offset in (-20000, -700, -1, 0, 1, 300)),
        int(ends[-1]) - 500,
    ]
    with open_reader(b"".join(parts)) as reader:
        for first in (*places, *reversed(places)):
            assert np.allclose(reader.part(first, 500), whole[:, first : first + 500], atol=1e-4), first
    with open_reader(b"".join(parts)) as reader, pytest.raises(UnsupportedAudio, match="ends at"):
        reader.part(int(ends[-1]) - 100, 500)


def test_of_one_recording_nothing_is_changed(kind: str) -> None:
    """Except that libsndfile does not read FLAC in Ogg."""
    with open_reader(recording(kind, 0.5)) as reader:
        assert isinstance(reader._source, chain.Chain) == (kind == "FLAC in Ogg")


def test_flac_in_ogg_is_flac() -> None:
    assert np.array_equal(read_audio(recording("FLAC in Ogg", 3))[0], read_audio(recording("FLAC", 3))[0])


@pytest.mark.parametrize("other", [{"channels": 2}, {"rate": 8000}], ids=str)
def test_recordings_of_different_kinds_are_named(kind: str, other: dict[str, int], tmp_path: Path) -> None:
    path = tmp_path / "radio.ogg"
    path.write_bytes(recording(kind, 0.5) + recording(kind, 0.5, **other))
    with pytest.raises(UnsupportedAudio, match=r"radio\.ogg holds 2 recordings of different kinds one after") as error:
        read_audio(path)
    assert "16000 Hz, 1 ch" in str(error.value)
    assert f"{other.get('rate', RATE)} Hz, {other.get('channels', 1)} ch" in str(error.value)


def test_a_recording_that_breaks_off_in_the_middle_of_others(kind: str) -> None:
    """What is there of it, then the next one; FLAC is refused there, as damage is."""
    parts = [recording(kind, 1), recording(kind, 3, seed=1), recording(kind, 1, seed=2)]
    parts[1] = parts[1][: len(parts[1]) // 2]
    if kind.startswith("FLAC"):
        with pytest.raises(UnsupportedAudio):
            read_audio(b"".join(parts))
    else:
        assert np.array_equal(read_audio(b"".join(parts))[0], of_each(parts))


def test_one_that_is_not_audio_is_named(kind: str) -> None:
    broken = bytearray(recording(kind, 1))
    broken[8:60] = bytes(52)
    with pytest.raises(UnsupportedAudio, match=r"2 recordings one after another, and libsndfile cannot read number 2"):
        read_audio(recording(kind, 1) + bytes(broken))


# FLAC


def starts(data: bytes) -> list[int]:
    return flac.starts(io.BytesIO(data))


@pytest.mark.parametrize("seconds", [0.1, 20, 40])
def test_flac_files_are_found(seconds: float) -> None:
    one, other = recording("FLAC", seconds), recording("FLAC", 7, seed=1)
    assert starts(one) == [0]
    for data in (one, other):
        assert starts(one + data) == [0, len(one)]
        assert starts(one * 3 + data) == [0, len(one), 2 * len(one), 3 * len(one)]


def test_an_ordinary_flac_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(recording("FLAC", 40))
    monkeypatch.setattr(flac, "find_all", None)
    assert starts(bytes(data)) == [0]
    data[21:26] = bytes([data[21] & 0xF0, 0, 0, 0, 0])  # of unknown length
    assert starts(bytes(data)) == [0]


def test_bytes_that_are_not_flac() -> None:
    assert starts(b"") == starts(b"fLaC") == starts(b"fLaC\0\0\0\x22") == starts(bytes(300)) == []


def test_tags_before_and_after() -> None:
    tag = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    one = recording("FLAC", 20)
    assert starts(tag + one + tag + one + b"TAG" + bytes(125)) == [0, len(tag + one + tag)]
    assert read_audio(tag + one + tag + one)[0].shape[1] == 40 * RATE
