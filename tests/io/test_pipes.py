"""io/pipes.py against libsndfile, and what pipes give before their end."""

import io
import os
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.compression import compress, decompress
from codec.errors import UnsupportedAudio, UsageError
from codec.io import audio, bitstream
from codec.io.pipes import Layout, LiveReader, open_live
from codec.io.storage import stream_output
from codec.streams import StreamDecoder
from tests.tiny import tiny_model

MODEL = tiny_model()


class Arriving(io.RawIOBase):
    """A pipe that gives what was written in pieces; `taken` counts the bytes that were read."""

    def __init__(self, data: bytes, piece: int) -> None:
        self._data, self._piece, self.taken = data, piece, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._data[self.taken : self.taken + min(self._piece, len(buffer))]
        buffer[: len(data)] = data
        self.taken += len(data)
        return len(data)


@contextmanager
def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes, piece: int = 999) -> Iterator[Arriving]:
    pipe = Arriving(data, piece)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(pipe)))
        yield pipe


def wav(subtype: str = "PCM_16", *, channels: int = 2, time: int = 4321, form: str = "WAV") -> bytes:
    samples = np.random.default_rng(0).uniform(-0.9, 0.9, (time, channels))
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format=form, subtype=subtype)
    return file.getvalue()


def read(path: str | Path = "-") -> tuple[audio.Block, Any]:
    with open_live(path) as reader:
        return np.concatenate(list(reader.blocks(1000)), axis=1), reader


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize(("channels", "form"), [(1, "WAV"), (2, "WAV"), (6, "WAVEX")])
def test_live_samples_are_those_of_libsndfile(
    monkeypatch: pytest.MonkeyPatch, subtype: str, channels: int, form: str
) -> None:
    data = wav(subtype, channels=channels, form=form)
    expected, rate = audio.read_audio(data)
    with stdin(monkeypatch, data):
        block, reader = read()
    assert isinstance(reader, LiveReader)
    assert (reader.rate, reader.channels, reader.subtype, reader.time) == (rate, channels, subtype, 4321)
    np.testing.assert_array_equal(block, expected)
    assert reader.peak == np.abs(expected).max()


def test_one_channel_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    data = wav()
    expected, _ = audio.read_audio(data)
    with stdin(monkeypatch, data), open_live("-") as reader:
        reader.select(1)
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks(1000)), axis=1), expected[1:])
    with stdin(monkeypatch, data), open_live("-") as reader:
        reader.mix_down()
        mono = np.concatenate(list(reader.blocks(1000)), axis=1)
        assert (reader.channels, reader.notes) == (1, [])
    np.testing.assert_allclose(mono[0], expected.mean(axis=0), atol=1e-7)
    with stdin(monkeypatch, data), open_live("-") as reader, pytest.raises(UnsupportedAudio, match="has no channel 2"):
        reader.select(2)

    left = expected[0]
    opposite = io.BytesIO()
    soundfile.write(opposite, np.stack([left, -left], axis=1), 16_000, format="WAV", subtype="FLOAT")
    with stdin(monkeypatch, opposite.getvalue()), open_live("-") as reader:
        reader.mix_down()
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks(1000)), axis=1), left[None])
    assert reader.notes == [
        "standard input: its channels cancel in their average (opposite phase), so channel 1 of 2 is used alone"
    ]


@pytest.mark.parametrize("stated", [0, 0x7FFFF000, 0x7FFFFFFF, 0xFFFFFFD3, 0xFFFFFFFF])
def test_unknown_lengths_are_read_to_the_end(monkeypatch: pytest.MonkeyPatch, stated: int) -> None:
    data = bytearray(wav())
    data[40:44] = struct.pack("<I", stated)
    with stdin(monkeypatch, bytes(data)):
        block, reader = read()
    assert reader.time is None
    np.testing.assert_array_equal(block, audio.read_audio(wav())[0])


def test_a_chunk_behind_the_samples_is_not_audio(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = b"LIST" + struct.pack("<I", 8) + b"INFOabcd"
    with stdin(monkeypatch, wav() + chunk):
        assert read()[0].shape == (2, 4321)
    empty = wav(time=0)
    with stdin(monkeypatch, empty + chunk), pytest.raises(UnsupportedAudio, match="no samples"):
        read()
    with stdin(monkeypatch, empty), pytest.raises(UnsupportedAudio, match="no samples"):
        read()
    with stdin(monkeypatch, wav() + wav()), pytest.raises(UnsupportedAudio, match="one after another"):
        read()


@pytest.mark.parametrize("form", ["FLAC", "AIFF", "RF64"])
def test_other_formats_are_copied_first(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    data = wav(form=form)
    with stdin(monkeypatch, data):
        block, reader = read()
    assert isinstance(reader, audio.AudioReader)
    np.testing.assert_array_equal(block, audio.read_audio(data)[0])


def test_bad_samples_and_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.BytesIO()
    soundfile.write(file, np.array([0.0] * 99 + [np.nan]), 8000, format="WAV", subtype="FLOAT")
    with stdin(monkeypatch, file.getvalue()), pytest.raises(UnsupportedAudio, match=r"NaN at 0\.012375 s"):
        read()
    for rate, channels in ((1, 1), (8000, 0), (8000, 5000)):
        with pytest.raises(UsageError, match="raw samples"):
            Layout(rate, channels)


@pytest.mark.slow
@pytest.mark.parametrize("piece", [1, 160, 5000])
def test_packets_are_written_as_soon_as_they_are_complete(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, piece: int
) -> None:
    """A packet of 10 frames of 80 samples needs 1600 bytes."""
    samples = np.random.default_rng(0).integers(-9999, 9999, 8000 // (10 if piece == 1 else 1)).astype("<i2").tobytes()
    written: list[tuple[int, int]] = []  # bytes read, packets written
    with stdin(monkeypatch, samples, piece) as pipe:

        class Sink(io.BytesIO):
            def write(self, data: Any) -> int:
                if bytes(data).startswith(b"\xf5\xc3\0"):
                    written.append((pipe.taken, len(written) + 1))
                return super().write(data)

        sink = Sink()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink))
        report = compress("-", "-", model=MODEL, raw=Layout(8000, 1), packet=0.1)
    assert report.time == len(samples) // 2
    for taken, packets in written[:-1]:
        assert taken <= 1600 * packets + max(piece, 2)
    (tmp_path / "a.raw").write_bytes(samples)
    compress(tmp_path / "a.raw", tmp_path / "a.codec", model=MODEL, raw=Layout(8000, 1), packet=0.1)
    assert sink.getvalue() == (tmp_path / "a.codec").read_bytes()


def test_packets_are_decoded_as_soon_as_they_have_come(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 2), 8000)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, packet=0.1)
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)
    data = (tmp_path / "a.codec").read_bytes()
    given: list[tuple[int, int]] = []  # bytes read, samples written
    with stdin(monkeypatch, data, 1) as pipe:

        class Sink(io.BytesIO):
            def write(self, block: Any) -> int:
                given.append((pipe.taken, (self.tell() + len(block)) // 2))
                return super().write(block)

        sink = Sink()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink))
        decompress("-", "-", model=MODEL, bare=True)
    whole = np.frombuffer((tmp_path / "b.wav").read_bytes()[44:], "<i2").astype(int)
    np.testing.assert_allclose(np.frombuffer(sink.getvalue(), "<i2"), whole, atol=1)  # sums of pieces differ in order
    begin = data.index(b"\xf5\xc3")
    packet = data.index(b"\xf5\xc3", begin + 2) - begin
    late = 80 + 80 + 2  # the decoder's delay, and the samples that wait for the exact end at both rates
    steady = [(taken, samples) for taken, samples in given if late < samples < 15_000]
    assert len(steady) >= 15
    for taken, samples in steady:
        packets = -(-(samples + late) // 800)
        assert taken <= begin + packet * packets + 2 * packets


def test_packets_are_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Because the first samples of a packet do not wait for its last ones."""
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 8000 * 3), 8000)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, packet=1.0)
    frames: list[int] = []
    push = StreamDecoder.push

    def counted(self: StreamDecoder, codes: Any) -> Any:
        frames.append(codes.shape[2])
        return push(self, codes)

    monkeypatch.setattr(StreamDecoder, "push", counted)
    with stdin(monkeypatch, (tmp_path / "a.codec").read_bytes(), 1000):
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO()))
        decompress("-", "-", model=MODEL, bare=True)
    assert frames[:16] == [1, 2, 4, 8, 16, 32, 37] * 2 + [1, 2]
    frames.clear()
    decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL)
    assert frames == [301]  # the last one because of the decoder's delay


def test_raw_output_is_only_for_pipes(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(8000), 8000)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL)
    with pytest.raises(UsageError, match="name - as OUTPUT"):
        decompress(tmp_path / "a.codec", tmp_path / "b.raw", model=MODEL, bare=True)
    for packet in (0.01, 11.0, float("nan")):
        with pytest.raises(UsageError, match=r"use 0\.1 to 10 s"):
            compress(tmp_path / "a.wav", tmp_path / "c.codec", model=MODEL, packet=packet)
    with pytest.raises(UsageError, match="read back"):
        compress(tmp_path / "a.wav", "-", model=MODEL, verify=True)


def test_output_of_more_than_two_channels_is_extensible(monkeypatch: pytest.MonkeyPatch) -> None:
    sink = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(sink))
    block = np.random.default_rng(0).uniform(-1, 1, (6, 100)).astype(np.float32)
    with audio.LiveOutput(rate=8000, channels=6, time=100) as output:
        output.write(block)
    assert soundfile.info(io.BytesIO(sink.getvalue())).format == "WAVEX"
    back, _ = audio.read_audio(sink.getvalue())
    np.testing.assert_allclose(back, block, atol=1 / 32768)
    with audio.LiveOutput(rate=8000, channels=1, time=3) as output:
        output.write(np.array([[0.5, 1.5, -3]], np.float32))
    assert "2 samples clipped at a peak of +9.54 dBFS" in output.clip_notes()[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_receives_every_write(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with stream_output(tmp_path / "pipe") as file:
        file.write(b"one")
        assert os.read(reader, 10) == b"one"
    os.close(reader)


def test_a_live_file_declares_no_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(wav())
    data[40:44] = b"\xff" * 4
    with stdin(monkeypatch, bytes(data)):
        compress("-", tmp_path / "a.codec", model=MODEL)
    with bitstream.open_reader(tmp_path / "a.codec") as reader:
        assert reader.header.time == 4321
        assert reader._declared == 0
