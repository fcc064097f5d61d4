"""WAV, CAF and AU files of writers that were killed, against the same files written whole."""

import io
import struct
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.errors import UnsupportedAudio
from codec.io.audio import open_reader
from codec.io.riff import finished, joined

NOISE = np.random.default_rng(0).uniform(-0.5, 0.5, 4000)


def written(kind: str, subtype: str, endian: str = "FILE") -> bytearray:
    file = io.BytesIO()
    soundfile.write(file, NOISE, 8000, format=kind, subtype=subtype, endian=endian)
    return bytearray(file.getvalue())


def killed(data: bytearray) -> bytes:
    """The file as it stands before its writer has filled in the sizes."""
    at = data.index(b"data")
    data[4:8] = data[at + 4 : at + 8] = bytes(4)
    if (sizes := data.find(b"ds64")) > 0:
        data[sizes + 8 : sizes + 32] = bytes(24)
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "subtype", "endian"),
    [
        ("WAV", "PCM_16", "FILE"),
        ("WAV", "PCM_16", "BIG"),
        ("WAV", "FLOAT", "FILE"),
        ("WAV", "ULAW", "FILE"),
        ("WAVEX", "PCM_24", "FILE"),
        ("RF64", "PCM_16", "FILE"),
    ],
)
def test_the_samples_of_a_killed_writer(kind: str, subtype: str, endian: str) -> None:
    whole = written(kind, subtype, endian)
    data = killed(bytearray(whole))
    assert soundfile.info(io.BytesIO(data)).frames == 0
    stream = finished(io.BytesIO(data))
    assert stream is not None
    samples: Any = soundfile.read(stream)[0]
    assert np.array_equal(samples, soundfile.read(io.BytesIO(bytes(whole)))[0])


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "CAF", "AU"])
def test_a_whole_file_is_left_alone(kind: str) -> None:
    assert finished(io.BytesIO(bytes(written(kind, "PCM_16")))) is None


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(("NIST", subtype) for subtype in ("PCM_16", "PCM_24", "ULAW")),
        *(("AVR", subtype) for subtype in ("PCM_S8", "PCM_16")),
        *(("VOC", subtype) for subtype in ("PCM_U8", "PCM_16")),
        *(("SVX", subtype) for subtype in ("PCM_S8", "PCM_16")),
        ("WVE", "ALAW"),
        *(("MAT5", subtype) for subtype in ("PCM_U8", "PCM_16", "PCM_32", "FLOAT", "DOUBLE")),
        ("MPC2K", "PCM_16"),
    ],
)
def test_bytes_behind_the_stated_samples_are_none(kind: str, subtype: str, channels: int) -> None:
    if channels == 2 and kind in ("SVX", "WVE"):
        pytest.skip("the format has one channel")
    for endian in ("FILE", "BIG") if kind == "MAT5" else ("FILE",):
        file = io.BytesIO()
        rows = np.stack([NOISE] * channels, axis=1)
        soundfile.write(file, rows, 8000, format=kind, subtype=subtype, endian=endian)
        data = file.getvalue()
        assert finished(io.BytesIO(data)) is None
        whole = soundfile.read(io.BytesIO(data))[0]
        assert len(whole) == len(NOISE)
        for more in (bytes(2), b"TAG" + bytes(125), data[-3000:]):
            read = finished(io.BytesIO(data + more))
            assert read is not None
            np.testing.assert_array_equal(soundfile.read(read)[0], whole)


def test_bytes_behind_the_sample_of_an_xi_file_are_none() -> None:
    data = written("XI", "DPCM_16")
    assert finished(io.BytesIO(data + bytes(50))) is None  # libsndfile writes no length
    data[298:302] = struct.pack("<I", len(data) - 338)
    assert finished(io.BytesIO(data)) is None
    read = finished(io.BytesIO(data + bytes(50)))
    assert read is not None
    np.testing.assert_array_equal(soundfile.read(read)[0], soundfile.read(io.BytesIO(data))[0])


def test_the_placeholder_of_a_nist_writer_is_not_believed() -> None:
    data = bytes(written("NIST", "PCM_16")).replace(b"sample_count -i 4000", b"sample_count -i 0000")
    assert finished(io.BytesIO(data)) is None
    assert len(soundfile.read(io.BytesIO(data))[0]) == len(NOISE)


@pytest.mark.parametrize("size", [-1, 0, 4, 2**40])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_caf_of_an_open_length(size: int, subtype: str) -> None:
    """Apple Core Audio Format Specification, audio data chunk: -1 means up to the end of the file."""
    data = written("CAF", subtype)
    whole = soundfile.read(io.BytesIO(bytes(data)))[0]
    at = data.index(b"data") + 4
    data[at : at + 8] = struct.pack(">q", size)
    stream = finished(io.BytesIO(bytes(data)))
    assert stream is not None
    assert np.array_equal(soundfile.read(stream)[0], whole)


@pytest.mark.parametrize("behind", [b"", b"info" + struct.pack(">q", 4) + b"abcd"])
def test_caf_without_samples_has_none(behind: bytes) -> None:
    data = written("CAF", "PCM_16")
    at = data.index(b"data") + 4
    for size, count in ((0, b""), (4, bytes(4))):
        assert finished(io.BytesIO(bytes(data[:at]) + struct.pack(">q", size) + count + behind)) is None


@pytest.mark.parametrize("endian", ["BIG", "LITTLE"])
def test_au_of_a_killed_writer(endian: str) -> None:
    data = written("AU", "PCM_16", endian)
    whole = soundfile.read(io.BytesIO(bytes(data)))[0]
    data[8:12] = bytes(4)
    stream = finished(io.BytesIO(bytes(data)))
    assert stream is not None
    assert np.array_equal(soundfile.read(stream)[0], whole)
    assert finished(io.BytesIO(bytes(data[:24]))) is None


@pytest.mark.parametrize("behind", [b"", b"LIST\x04\0\0\0INFO", b"LIST\x03\0\0\0abc", b"id3 \x02\0\0\0ab" * 3])
def test_a_file_without_samples_has_none(behind: bytes) -> None:
    file = io.BytesIO()
    soundfile.write(file, NOISE[:0], 8000, format="WAV", subtype="PCM_16")
    assert finished(io.BytesIO(file.getvalue() + behind)) is None


@pytest.mark.parametrize(
    "data", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEdata", b"RIFF\0\0\0\0WAVEfmt \xff\xff\xff\xff"]
)
def test_headers_that_are_not_whole(data: bytes) -> None:
    assert finished(io.BytesIO(data)) is None


@pytest.mark.parametrize("container", ["WAV", "AIFF"])
def test_concatenated_files_raise(container: str) -> None:
    whole = bytes(written(container, "PCM_16"))
    assert joined(io.BytesIO(whole)) == 1
    assert joined(io.BytesIO(whole * 3)) == 3
    with pytest.raises(UnsupportedAudio, match="holds 2 recordings one after another"), open_reader(whole * 2):
        pass
