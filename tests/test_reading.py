"""reading.py: slices of a .codec file against the whole."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import codec
from codec.compression import compress, decompress
from codec.errors import DamagedFile, UsageError
from codec.io.audio import read_audio
from tests.tiny import tiny_model

MODEL = tiny_model()
RATE = 11_025


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * RATE + 7, 2))
    soundfile.write(tmp_path / "a.wav", noise, RATE)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=MODEL, packet=0.2)
    return tmp_path / "a.codec"


@pytest.mark.slow
def test_slices_are_those_of_the_whole(coded: Path) -> None:
    decompress(coded, coded.with_suffix(".whole.wav"), model=MODEL, subtype="FLOAT")
    whole, _ = read_audio(coded.with_suffix(".whole.wav"))
    for source in (coded, coded.read_bytes()):
        with codec.open(source, model=MODEL) as file:
            assert (file.rate, file.channels, len(file), file.seconds) == (RATE, 2, 3 * RATE + 7, 3 + 7 / RATE)
            for part in (slice(None), slice(100, 5000), slice(-500, None), slice(5000, 5001), slice(20_000, 99_999)):
                np.testing.assert_allclose(file[part], whole[:, part], atol=1e-5)
            assert file[9:9].shape == (2, 0)
            blocks = list(file.blocks(5000))
            assert [block.shape[1] for block in blocks] == [5000] * 6 + [3 * RATE + 7 - 30_000]
            np.testing.assert_allclose(np.concatenate(blocks, axis=1), whole, atol=1e-5)


def test_another_rate(coded: Path) -> None:
    with codec.open(coded, model=MODEL, rate=8000) as file:
        assert len(file) == 24_006
        assert file[8000:8100].shape == (2, 100)


def test_what_is_not_a_part_is_refused(coded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with codec.open(coded, model=MODEL) as file:
        for part in (3, slice(0, 10, 2), slice(0.5, 1.0), "all"):
            with pytest.raises(UsageError, match="slice"):
                file[part]  # type: ignore[index]

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Pipe(coded.read_bytes())))
    with pytest.raises(UsageError, match="pipe, which has no parts"):
        codec.open("-", model=MODEL)


def test_damage_of_a_part_raises(coded: Path) -> None:
    data = bytearray(coded.read_bytes())
    data[data.index(b"\xf5\xc3") + 20] ^= 1
    with codec.open(bytes(data), model=MODEL) as file:
        assert file[2 * RATE :].any()
        with pytest.raises(DamagedFile, match="packet 0"):
            file[:10]
