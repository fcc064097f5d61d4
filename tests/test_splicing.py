"""splicing.py: any part of a .codec file equals that part of the whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec.compression import compress, decompress
from codec.errors import DamagedFile, UsageError
from codec.io.packets import Window
from tests.helpers.trial_family import trial_model
from tests.tiny import tiny_model

MODEL = tiny_model()


def recording(path: Path, *, seconds: float, rate: int = 8000, channels: int = 1) -> Path:
    noise = np.random.default_rng(0).normal(0, 0.2, (round(seconds * rate), channels))
    soundfile.write(path, noise.clip(-1, 1), rate, subtype="FLOAT")
    return path


def samples(path: Path) -> Any:
    return soundfile.read(path, dtype="float32", always_2d=True)[0]


@pytest.fixture(scope="module", params=[8000, 11_025, 3001])
def stereo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """A sample rate, and a folder with 4 s of two channels at this rate as a.codec, restored as whole.wav."""
    folder = tmp_path_factory.mktemp("stereo")
    source = recording(folder / "a.wav", seconds=4, rate=request.param, channels=2)
    compress(source, folder / "a.codec", model=MODEL)
    decompress(folder / "a.codec", folder / "whole.wav", model=MODEL, subtype="FLOAT")
    return request.param, folder


@pytest.mark.parametrize(("start", "end"), [(0.0, 0.3), (0.001, 0.002), (2.4567, 3.3), (3.9, None), (3.9, 99.0)])
def test_a_part_equals_that_of_the_whole(
    stereo: tuple[int, Path], tmp_path: Path, start: float, end: float | None
) -> None:
    rate, folder = stereo
    report = decompress(folder / "a.codec", tmp_path / "p.wav", model=MODEL, subtype="FLOAT", start=start, end=end)
    whole, part = samples(folder / "whole.wav"), samples(tmp_path / "p.wav")
    expected = whole[round(start * rate) : None if end is None else round(end * rate)]
    assert part.shape == expected.shape
    assert report.time == len(part)
    np.testing.assert_allclose(part, expected, atol=1e-5)


def test_a_part_of_a_family_that_looks_ahead(tmp_path: Path) -> None:
    model = trial_model()
    model.weights_hash = "0" * 64
    compress(recording(tmp_path / "a.wav", seconds=2, channels=2), tmp_path / "a.codec", model=model, packet=0.2)
    decompress(tmp_path / "a.codec", tmp_path / "whole.wav", model=model, subtype="FLOAT")
    decompress(tmp_path / "a.codec", tmp_path / "part.wav", model=model, subtype="FLOAT", start=0.7, end=1.3)
    np.testing.assert_allclose(samples(tmp_path / "part.wav"), samples(tmp_path / "whole.wav")[5600:10_400], atol=1e-5)


@pytest.mark.slow
def test_only_the_packets_of_a_part_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compress(recording(tmp_path / "a.wav", seconds=60), tmp_path / "a.codec", model=MODEL, packet=0.1)
    sizes: list[int] = []
    frames: list[int] = []
    skip, decode_step = Window.skip, type(MODEL).decode_step

    def counted_skip(self: Window, size: int) -> None:
        sizes.append(size)
        skip(self, size)

    def counted_step(self: Any, codes: Any, state: Any) -> Any:
        frames.append(codes.shape[2])
        return decode_step(self, codes, state)

    monkeypatch.setattr(Window, "skip", counted_skip)
    monkeypatch.setattr(type(MODEL), "decode_step", counted_step)
    decompress(tmp_path / "a.codec", tmp_path / "p.wav", model=MODEL, start=30, end=31)
    assert sum(sizes) < (tmp_path / "a.codec").stat().st_size * 0.15
    assert 100 <= sum(frames) < 100 + MODEL.receptive_field().decoder.past + 410  # of 4 s that are decoded at once


def test_damage_outside_a_part_does_not_matter(tmp_path: Path) -> None:
    compress(recording(tmp_path / "a.wav", seconds=4), tmp_path / "a.codec", model=MODEL, packet=1.0)
    decompress(tmp_path / "a.codec", tmp_path / "whole.wav", model=MODEL)
    data = bytearray((tmp_path / "a.codec").read_bytes())
    data[data.index(b"\xf5\xc3") + 40] ^= 1
    (tmp_path / "a.codec").write_bytes(data)
    decompress(tmp_path / "a.codec", tmp_path / "late.wav", model=MODEL, start=2)
    np.testing.assert_allclose(samples(tmp_path / "late.wav"), samples(tmp_path / "whole.wav")[16_000:], atol=1e-5)
    with pytest.raises(DamagedFile):
        decompress(tmp_path / "a.codec", tmp_path / "early.wav", model=MODEL, start=0.5, end=3)
    assert len(samples(tmp_path / "early.wav")) == 20_000
    assert samples(tmp_path / "early.wav")[:, 0].nonzero()[0][0] == pytest.approx(4000, abs=81)


def test_fewer_codebooks(tmp_path: Path) -> None:
    source = recording(tmp_path / "a.wav", seconds=1)
    compress(source, tmp_path / "all.codec", model=MODEL)
    compress(source, tmp_path / "two.codec", model=MODEL, num_codebooks=2)
    report = decompress(tmp_path / "all.codec", tmp_path / "a2.wav", model=MODEL, num_codebooks=2)
    decompress(tmp_path / "two.codec", tmp_path / "b2.wav", model=MODEL)
    assert report.num_codebooks == 2
    a2, b2 = (soundfile.read(tmp_path / name, dtype="int16")[0].astype(int) for name in ("a2.wav", "b2.wav"))
    assert a2.shape == b2.shape
    assert np.abs(a2 - b2).max() <= 1  # another number of threads rounds otherwise
    with pytest.raises(UsageError, match="has 2 codebooks, not 3"):
        decompress(tmp_path / "two.codec", tmp_path / "b3.wav", model=MODEL, num_codebooks=3)


@pytest.mark.parametrize(("start", "end"), [(-1.0, None), (2.0, 1.0), (1.0, 1.0), (4.0, None), (float("nan"), None)])
def test_parts_that_are_not_there(tmp_path: Path, start: float, end: float | None) -> None:
    compress(recording(tmp_path / "a.wav", seconds=4), tmp_path / "a.codec", model=MODEL)
    with pytest.raises(UsageError, match=r"a\.codec has 4\.000 s"):
        decompress(tmp_path / "a.codec", tmp_path / "b.wav", model=MODEL, start=start, end=end)
    assert not (tmp_path / "b.wav").exists()
