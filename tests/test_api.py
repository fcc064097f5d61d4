"""api.py: in memory and from file to file, against the functions of the commands."""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import codec
from codec import compression, pretrained
from codec.cli import files as file_commands
from codec.cli import models as model_commands
from codec.errors import (
    ConfigError,
    DamagedFile,
    InputNotFound,
    StorageError,
    UnknownModel,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
)
from codec.io import bitstream
from tests.tiny import tiny_model, tiny_weights

RATE, TIME = 16_000, 11_201
NOISE = np.random.default_rng(0).uniform(-0.3, 0.3, (2, TIME)).astype(np.float32)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model instead of the shipped one, and stereo recordings in two formats."""
    monkeypatch.setattr(pretrained, "WEIGHTS", tiny_weights())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("in.wav", "in.flac"):
        soundfile.write(name, NOISE.T, RATE)
    return tmp_path / "here"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["in.wav", "in.flac"])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_equal_the_content_of_files(name: str, kind: Any) -> None:
    compression.compress(name, "a.codec")
    compression.decompress("a.codec", "a.wav")
    coded = codec.compress(kind(Path(name).read_bytes()))
    assert coded == Path("a.codec").read_bytes()
    assert codec.decompress(kind(coded)) == Path("a.wav").read_bytes()
    wav, rate = soundfile.read(io.BytesIO(codec.decompress(coded, rate=8000)), always_2d=True)
    assert (wav.shape, rate) == ((5601, 2), 8000)


def test_arrays_are_compressed_like_float_files() -> None:
    soundfile.write("float.wav", NOISE.T, RATE, subtype="FLOAT")
    expected = codec.compress(Path("float.wav").read_bytes(), bitrate=1.0)
    assert codec.compress(NOISE, sample_rate=RATE, bitrate=1.0) == expected
    assert codec.compress(NOISE.astype(np.float64), sample_rate=RATE, num_codebooks=2) == expected
    with bitstream.open_reader(codec.compress(NOISE[0], sample_rate=RATE)) as reader:
        assert (reader.header.channels, reader.header.time, reader.header.num_codebooks) == (1, TIME, 3)


def test_levels_beyond_full_scale_are_named() -> None:
    loud = 40 * NOISE  # a peak of 12
    coded = codec.compress(loud, sample_rate=RATE)  # floats are scaled down, and up again
    with pytest.warns(UserWarning, match=r'^\d+ samples clipped at a peak of \+\d+\.\d+ dBFS \(subtype="FLOAT"'):
        clipped = codec.decompress(coded, subtype="PCM_16")
    kept, _ = soundfile.read(io.BytesIO(codec.decompress(coded)))  # floats come back as floats
    assert abs(kept).max() > 1
    np.testing.assert_allclose(soundfile.read(io.BytesIO(clipped))[0], kept.clip(-1, 1), atol=2**-15)
    with pytest.warns(
        UserWarning, match="^the data peaks at 9830.* as if it held integers: divide its samples by 32768"
    ):
        codec.compress(32768 * NOISE, sample_rate=RATE)
    with pytest.raises(UsageError, match="WAV has no subtype VORBIS"):
        codec.decompress(coded, subtype="VORBIS")


@pytest.mark.slow
def test_one_channel_of_several() -> None:
    """The average, or the loudest channel where the channels cancel; or one of them alone."""
    mono = codec.compress(NOISE.mean(axis=0), sample_rate=RATE)
    assert codec.compress(NOISE, sample_rate=RATE, channels=1) == mono
    assert codec.compress(NOISE[0], sample_rate=RATE, channels=1) == codec.compress(NOISE[0], sample_rate=RATE)
    assert codec.compress(NOISE, sample_rate=RATE, channel=1) == codec.compress(NOISE[1], sample_rate=RATE)
    opposite = np.stack([NOISE[0], -NOISE[0]])
    with pytest.warns(
        UserWarning, match="^the data: its channels cancel in their average .*, so channel 1 of 2 is used"
    ):
        assert codec.compress(opposite, sample_rate=RATE, channels=1) == codec.compress(NOISE[0], sample_rate=RATE)

    soundfile.write("opposite.flac", opposite.T, RATE)
    report = codec.encode_file("opposite.flac", channels=1)
    assert report.channels == 1
    assert any("cancel in their average" in note for note in report.notes)
    assert codec.encode_file("in.flac", channel=1, force=True).channels == 1
    with pytest.raises(UsageError, match=r"^2 channels: 1 mixes a recording down"):
        codec.encode_file("in.flac", channels=2)
    with pytest.raises(UsageError, match="ask for one of the two"):
        codec.encode_file("in.flac", channels=1, channel=0)
    with pytest.raises(UnsupportedAudio, match="has no channel 2"):
        codec.encode_file("in.flac", "new.codec", channel=2)
    assert not Path("new.codec").exists()


def test_more_than_two_channels_are_extensible() -> None:
    wav = codec.decompress(codec.compress(np.concatenate([NOISE, NOISE[:1]]), sample_rate=RATE))
    assert int.from_bytes(wav[20:22], "little") == 0xFFFE  # WAVE_FORMAT_EXTENSIBLE


@pytest.mark.slow
def test_a_loaded_model() -> None:
    model = codec.load()
    coded = codec.compress(NOISE, sample_rate=RATE, model=model)
    assert codec.decompress(coded, model=model) == codec.decompress(coded)
    other = tiny_model(1)
    with pytest.raises(WeightsMismatch):
        codec.decompress(coded, model=other)


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        (b"", {}, UnsupportedAudio, r"^the data is empty \(0 bytes\)"),
        (b"no audio", {}, UnsupportedAudio, "^the data is not audio that libsndfile can read"),
        ("in.wav", {}, UsageError, "^data is str: give the bytes of an audio file.*encode_file takes paths"),
        (NOISE, {}, UsageError, "^sample_rate is None: an array needs its sample rate in Hz"),
        (NOISE, {"sample_rate": 16e3}, UsageError, "^sample_rate is 16000.0"),
        (NOISE[None], {"sample_rate": RATE}, UsageError, r"float32 \[1, 2, 11201\]; give floating point"),
        (NOISE.astype(int), {"sample_rate": RATE}, UsageError, "the array is int64"),
        (NOISE[:, :0], {"sample_rate": RATE}, UnsupportedAudio, "^the data has no samples"),
        (NOISE * np.nan, {"sample_rate": RATE}, UnsupportedAudio, "^the data has a sample that is NaN"),
        (NOISE.T, {"sample_rate": RATE}, UsageError, r"an array \[11201, 2\] at 16000 Hz is not audio"),
        (b"RIFF", {"sample_rate": RATE}, UsageError, "an audio file states its sample rate"),
        (NOISE, {"sample_rate": RATE, "bitrate": 0.1}, ConfigError, "below this model's lowest rate"),
        (NOISE, {"sample_rate": RATE, "bitrate": 1.0, "num_codebooks": 1}, UsageError, "ask for one of the two"),
        (NOISE, {"sample_rate": RATE, "model": "general-24"}, UnknownModel, "did you mean general-24k"),
    ],
)
def test_invalid_inputs_of_compress(data: Any, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        codec.compress(data, **options)


def test_invalid_inputs_of_decompress() -> None:
    coded = codec.compress(NOISE, sample_rate=RATE)
    with pytest.raises(DamagedFile, match=r"^the data is damaged"):
        codec.decompress(coded[:-30])
    with pytest.raises(UnsupportedAudio, match=r"^the data is not a .codec file"):
        codec.decompress(Path("in.wav").read_bytes())
    with pytest.raises(UsageError, match=r"^data is str: give the bytes of a .codec file"):
        codec.decompress("a.codec")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a sample rate of 0 Hz"):
        codec.decompress(coded, rate=0)


def test_files_equal_those_of_the_commands(here: Path) -> None:
    report = codec.encode_file("in.wav", bitrate=1.0)
    assert (report.target, report.num_codebooks, report.time) == ("in.codec", 2, TIME)
    with pytest.raises(StorageError, match="exists: pass --force"):
        codec.encode_file("in.wav")
    again = codec.encode_file(here / "in.wav", here / "in.codec", num_codebooks=2, force=True)
    assert again.compressed_bytes == report.compressed_bytes
    Path("out").mkdir()
    assert codec.decode_file("in.codec", "out").target == "out/in.wav"
    assert codec.decode_file("in.codec", "a.flac", rate=8000).rate == 8000
    assert soundfile.info("a.flac").frames == 5601
    with pytest.raises(InputNotFound, match="is a folder: name a file in it"):
        codec.encode_file(".")
    with pytest.raises(StorageError, match="nowhere/ is not a folder"):
        codec.encode_file("in.wav", "nowhere/")


def test_arguments_have_the_names_of_the_options() -> None:
    """Options for printing, for folders and for pipes are not arguments."""

    def names(function: Any) -> set[str]:
        return set(function.__annotations__) - {"return"}

    many = {"inputs", "jobs", "quiet"}
    assert names(file_commands.encode) - names(codec.encode_file) == many | {"append", "engine", "raw", "rate"}
    assert names(file_commands.decode) - names(codec.decode_file) == many | {"format_", "raw"}
    assert names(model_commands.evaluate) - names(codec.evaluate) == {"rows", "json_output"}
    assert names(codec.encode_file) - names(file_commands.encode) == {"source"}
    assert names(codec.evaluate) - names(model_commands.evaluate) == {"bitrate", "progress"}


@pytest.mark.slow
def test_evaluation() -> None:
    Path("data").mkdir()
    soundfile.write("data/a.wav", NOISE[0], RATE)
    result = codec.evaluate("data", bitrate=1.0)
    assert [(row.group, row.num_codebooks) for row in result.rows] == [("all", 2), ("domain", 2), ("set", 2)]
    assert (
        str(result).splitlines()[0].split()[:2]
        == str(codec.evaluate("data", num_codebooks=2)).splitlines()[0].split()[:2]
    )
    assert {row.num_codebooks for row in codec.evaluate("data", num_codebooks=[1, 3]).rows} == {1, 3}
    assert {row.num_codebooks for row in codec.evaluate("data", num_codebooks="all", model=codec.load()).rows} == {
        1,
        2,
        3,
    }
    wrongs: list[tuple[dict[str, Any], str]] = [
        ({"num_codebooks": 1, "bitrate": 1}, "ask for one of the two"),
        ({"num_codebooks": "1,2"}, "give a number"),
    ]
    for wrong, message in wrongs:
        with pytest.raises(UsageError, match=message):
            codec.evaluate("data", **wrong)


def test_the_documentation_names_all() -> None:
    """Its examples are run by test_docs.py, with those of the other pages."""
    text = Path(__file__).parents[1].joinpath("docs", "api.md").read_text("utf-8")
    assert len(re.findall(r"```python\n(.*?)```", text, re.DOTALL)) == 8
    documented = set(re.findall(r"codec\.(\w+)", text))
    assert documented >= set(codec.__all__) - {"Codec", "Sampling", "__version__"}
