"""variable_rate.py: loud packets keep all codebooks, soft ones few; files are those of constant rate otherwise."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.compression import compress, decompress
from codec.errors import UsageError
from codec.frames import FrameSpec
from codec.io import bitstream
from codec.io.audio import read_audio
from codec.variable_rate import Coded, VariableRate
from tests.tiny import tiny_model

MODEL = tiny_model()
SPEC = FrameSpec(sample_rate=8000, hop=80, decoder_delay=80, num_codebooks=12, codebook_size=1024)


def kept(levels: list[float], *, within: float = 15.0, choices: Any = range(1, 13), cut: int = 37) -> list[int]:
    """Codebooks of packets of one second with these levels in dB, pushed in pieces of `cut` frames."""
    noise = np.random.default_rng(0).normal(0, 1, (1, 8000 * len(levels)))
    audio = (noise * np.repeat(10 ** (np.array(levels) / 20), 8000)).astype(np.float32)
    rate = VariableRate(SPEC, within=within, choices=choices, frames_per_packet=100)
    codes = np.arange(12 * 100 * len(levels)).reshape(1, 12, -1)
    packets: list[Coded] = []
    for first in range(0, codes.shape[2], cut):
        rate.listen(audio[:, first * 80 : (first + cut) * 80])
        packets += rate.packets(codes[:, :, first : first + cut], None)
    packets += rate.flush()
    for number, packet in enumerate(packets):
        expected = codes[:, : packet.codes.shape[1], 100 * number : 100 * (number + 1)]
        np.testing.assert_array_equal(packet.codes, expected)
    return [packet.codes.shape[1] for packet in packets]


@pytest.mark.parametrize("cut", [1, 37, 100, 250, 1000])
def test_codebooks_follow_the_level(cut: int) -> None:
    assert kept([-20, -20, -30, -40, -45, -60, -20], cut=cut) == [12, 12, 12, 10, 7, 1, 12]


def test_a_bang_is_forgotten() -> None:
    codebooks = kept([0, *[-40] * 40], within=10)
    assert codebooks[1] == 1
    assert sorted(codebooks[1:]) == codebooks[1:]
    assert codebooks[-1] == 6  # 20 dB lower after 40 s
    assert kept([-60] * 3) == [12] * 3


def test_a_model_decodes_what_is_kept() -> None:
    assert kept([0, -20, -33, -60], choices=(12, 1, 3)) == [12, 12, 3, 1]


def test_scale_stays_with_its_codes() -> None:
    rate = VariableRate(SPEC, within=10, choices=(1, 2), frames_per_packet=10)
    codes, scale = np.zeros((2, 2, 25), np.int64), np.arange(50, dtype=np.float32).reshape(2, 25)
    rate.listen(np.ones((2, 1, 25 * 80), np.float32))
    packets = [
        *rate.packets(codes[:, :, :7], scale[:, :7]),
        *rate.packets(codes[:, :, 7:], scale[:, 7:]),
        *rate.flush(),
    ]
    assert [packet.codes.shape for packet in packets] == [(2, 2, 10), (2, 2, 10), (2, 2, 5)]
    scales = [packet.scale for packet in packets if packet.scale is not None]
    np.testing.assert_array_equal(np.concatenate(scales, axis=1), scale)


def recording(tmp_path: Path, channels: int = 1) -> Any:
    """Two seconds of noise, two of silence with a little noise, one of noise."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (40_003, channels))
    noise[16_000:32_000] *= 10 ** (-50 / 20)
    soundfile.write(tmp_path / "a.wav", noise, 8000, subtype="FLOAT")
    return noise


def counts(path: Path) -> list[int]:
    with bitstream.open_reader(path) as reader:
        assert reader.check() == []
        assert reader.header.num_codebooks == 3
        return [packet.num_codebooks for packet in reader.coded()]


@pytest.mark.parametrize("channels", [1, 2])
def test_files(tmp_path: Path, channels: int) -> None:
    noise = recording(tmp_path, channels)
    report = compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, vbr=20, verify=True)
    constant = compress(tmp_path / "a.wav", tmp_path / "b.codec", model=MODEL)
    assert counts(tmp_path / "a.codec") == [3, 3, 1, 1, 3, 3]
    assert report.compressed_bytes < 0.85 * constant.compressed_bytes
    decompress(tmp_path / "a.codec", tmp_path / "out.wav", model=MODEL)
    assert read_audio(tmp_path / "out.wav")[0].T.shape == noise.shape


def test_equally_loud_packets_are_those_of_constant_rate(tmp_path: Path) -> None:
    recording(tmp_path)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, vbr=80)
    compress(tmp_path / "a.wav", tmp_path / "b.codec", model=MODEL, packet=1.0)
    assert (tmp_path / "a.codec").read_bytes() == (tmp_path / "b.codec").read_bytes()


@pytest.mark.parametrize("vbr", [-1.0, 101.0, float("nan")])
def test_a_range_that_does_not_exist_is_refused(tmp_path: Path, vbr: float) -> None:
    recording(tmp_path)
    with pytest.raises(UsageError, match="use 0 to 100 dB"):
        compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, vbr=vbr)
    assert not (tmp_path / "a.codec").exists()
