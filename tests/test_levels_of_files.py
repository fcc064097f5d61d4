"""Samples beyond full scale: said when they are lost, kept where the file can hold them."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

import codec
from codec.errors import UsageError
from codec.models.base import Codec
from codec.streams import StreamDecoder
from tests.tiny import tiny_model

RATE = 8000


@pytest.fixture
def noise(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.9, 0.9, RATE), RATE, subtype="FLOAT")
    return path


def scaled(path: Path, factor: float) -> Path:
    soundfile.write(path, soundfile.read(path)[0] * factor, RATE, subtype="FLOAT")
    return path


def test_peaks_of_the_source_are_reported(noise: Path) -> None:
    model = tiny_model()
    assert codec.encode_file(noise, model=model).notes == ()
    (note,) = codec.encode_file(scaled(noise, 3), model=model, force=True).notes
    assert "peaks at +8.6 dBFS" in note
    assert "clipped at +0.4 dBFS" in note
    (note,) = codec.encode_file(scaled(noise, 32768 / 3), model=model, force=True).notes
    assert "as if it held integers: divide its samples by 32768" in note


def loud(model: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the decoder give a constant of 1.04, within the model's limit."""
    push = StreamDecoder.push
    monkeypatch.setattr(StreamDecoder, "push", lambda self, codes: push(self, codes) * 0 + 1.04)


def test_clipping_is_counted_and_floats_keep_the_peaks(noise: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    codec.encode_file(noise, model=model)
    loud(model, monkeypatch)
    report = codec.decode_file(noise.with_suffix(".codec"), noise.with_name("b.wav"), model=model)
    (note,) = report.notes
    assert "samples clipped at a peak of +0.34 dBFS (--subtype FLOAT keeps them)" in note
    assert soundfile.read(noise.with_name("b.wav"))[0].max() == 32767 / 32768
    out = noise.with_name("c.wav")
    report = codec.decode_file(noise.with_suffix(".codec"), out, model=model, subtype="FLOAT")
    assert report.notes == ()
    assert soundfile.info(out).subtype == "FLOAT"
    assert np.isclose(soundfile.read(out)[0].max(), 1.04)
    with pytest.raises(UsageError, match="WAV has no subtype LOUD: use one of"):
        codec.decode_file(noise.with_suffix(".codec"), noise.with_name("d.wav"), model=model, subtype="LOUD")
    assert not noise.with_name("d.wav").exists()


def test_a_codec_file_under_the_name_of_audio_is_refused(noise: Path) -> None:
    with pytest.raises(UsageError, match=r"out.mp3 would be a .codec file under the name of an audio file"):
        codec.encode_file(noise, noise.with_name("out.mp3"), model=tiny_model())
    assert not noise.with_name("out.mp3").exists()
