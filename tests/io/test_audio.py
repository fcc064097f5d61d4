"""io/audio.py against soundfile, one-shot soxr, Python's wave module and bytes written by hand."""

import io
import os
import struct
import subprocess
import sys
import tempfile
import threading
import wave
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codec.errors import CodecError, InputNotFound, StorageError, UnsupportedAudio, UsageError
from codec.frames import resampled_length
from codec.io import audio, storage
from codec.io.audio import Block, Resampler, is_audio_path, open_reader, open_writer
from codec.io.pipes import open_live

RATES = (8000, 11025, 22050, 44100, 48000, 96000)
in_tmp = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def noise(channels: int, time: int, seed: int = 0) -> Block:
    return (0.3 * np.random.default_rng(seed).standard_normal((channels, time))).astype(np.float32)


def cut(array: Block, sizes: list[int]) -> Iterator[Block]:
    """Cut an array into blocks of these sizes and a last block."""
    start = 0
    for size in sizes:
        yield array[:, start : start + size]
        start += size
    if start < array.shape[1]:
        yield array[:, start:]


def resample(array: Block, from_rate: int, to_rate: int, sizes: list[int]) -> Block:
    resampler = Resampler(from_rate, to_rate, array.shape[0])
    return np.concatenate([*(resampler.push(block) for block in cut(array, sizes)), resampler.flush()], axis=1)


def wav_bytes(samples: bytes, *, claimed: int | None = None, rate: int = 8000) -> bytes:
    """A mono 16-bit WAV whose header claims `claimed` bytes of samples."""
    claimed = len(samples) if claimed is None else claimed
    riff = min(claimed + 36, 2**32 - 1)
    fmt = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + fmt + b"data" + struct.pack("<I", claimed) + samples


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def read(path: str | Path, time: int = 1000) -> Block:
    with open_reader(path) as reader:
        return np.concatenate(list(reader.blocks(time)), axis=1)


# Resampler


@pytest.mark.parametrize("to_rate", [8000, 24000, 44100])
@pytest.mark.parametrize("from_rate", RATES)
def test_resampler_equals_one_shot(from_rate: int, to_rate: int) -> None:
    array = noise(2, 9001)
    expected = array.T if from_rate == to_rate else soxr.resample(array.T, from_rate, to_rate, quality="VHQ")
    result = resample(array, from_rate, to_rate, [4000, 1, 0, 3000])
    overlap = min(len(expected), result.shape[1])
    assert abs(len(expected) - result.shape[1]) <= 1  # soxr rounds to the nearest, we round up
    np.testing.assert_allclose(result[:, :overlap], expected[:overlap].T, atol=1e-6)


@pytest.mark.slow
@in_tmp
@given(
    time=st.integers(0, 3000),
    channels=st.integers(1, 8),
    rates=st.tuples(st.sampled_from([*RATES, 24000, 44101]), st.sampled_from([*RATES, 24000])),
    sizes=st.lists(st.integers(0, 700), max_size=12),
)
def test_resampler_length_is_exact_for_blocks_of_any_size(
    time: int, channels: int, rates: tuple[int, int], sizes: list[int]
) -> None:
    array = noise(channels, time)
    result = resample(array, *rates, sizes)
    assert result.shape == (channels, resampled_length(time, *rates))
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, resample(array, *rates, []), atol=1e-6)


@pytest.mark.parametrize("from_rate", RATES)
def test_resampler_length_from_one_sample_up(from_rate: int) -> None:
    for time in range(1, 60):
        assert resample(noise(1, time), from_rate, 24000, [1] * time).shape[1] == -(-time * 24000 // from_rate)


def test_resampler_keeps_a_sine_in_place() -> None:
    from_rate, to_rate, time = 44100, 24000, 44100
    sine = np.sin(2 * np.pi * 1000 * np.arange(time) / from_rate).astype(np.float32)[None]
    expected = np.sin(2 * np.pi * 1000 * np.arange(to_rate) / to_rate)
    result = resample(sine, from_rate, to_rate, [777] * 20)[0]
    np.testing.assert_allclose(result[2000:-2000], expected[2000:-2000], atol=1e-5)


def test_resampler_does_not_drift_over_a_long_stream() -> None:
    resampler = Resampler(44100, 24000, 1)
    block = np.zeros((1, 100_003), np.float32)
    time = sum(resampler.push(block).shape[1] for _ in range(100)) + resampler.flush().shape[1]
    assert time == resampled_length(100 * 100_003, 44100, 24000)


def test_equal_rates_pass_through() -> None:
    array = noise(3, 50)
    np.testing.assert_array_equal(resample(array, 8000, 8000, [7, 9]), array)


# Reading


@pytest.mark.slow
@in_tmp
@given(
    time=st.integers(1, 400),
    channels=st.integers(1, 8),
    rate=st.sampled_from(RATES),
    block=st.integers(1, 500),
    suffix=st.sampled_from([".wav", ".flac", ".aiff", ".au", ".caf", ".w64", ".rf64"]),
)
def test_blocks_equal_soundfile(tmp_path: Path, time: int, channels: int, rate: int, block: int, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, noise(channels, time).T, rate, format=audio._FORMATS[suffix], subtype="PCM_16")
    with open_reader(path) as reader:
        assert (reader.rate, reader.channels, reader.time, reader.label) == (rate, channels, time, str(path))
        blocks = list(reader.blocks(block))
    assert all(part.shape[1] <= block and part.dtype == np.float32 for part in blocks)
    np.testing.assert_array_equal(np.concatenate(blocks, axis=1), soundfile.read(path, always_2d=True)[0].T)


@pytest.mark.parametrize("suffix", [".mp3", ".ogg"])
def test_lossy_formats_do_not_depend_on_the_block(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, noise(2, 50_000).T, 44100)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0].T
    np.testing.assert_array_equal(read(path, 999), expected)
    np.testing.assert_array_equal(read(path, 60_000), expected)


@pytest.mark.parametrize("claimed", [None, 2 * 5000, 2**32 - 1, 2 * 1000 + 1])
def test_wav_header_with_a_wrong_length(tmp_path: Path, claimed: int | None) -> None:
    samples = np.arange(-500, 500, dtype="<i2")
    path = tmp_path / "cut.wav"
    path.write_bytes(wav_bytes(samples.tobytes(), claimed=claimed))
    np.testing.assert_array_equal(read(path, 300)[0] * 32768, samples)


def test_wav_cut_within_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "cut.wav"
    path.write_bytes(wav_bytes(np.arange(100, dtype="<i2").tobytes(), claimed=5000)[:-1])
    np.testing.assert_array_equal(read(path)[0] * 32768, np.arange(99))


@pytest.mark.parametrize("declared", [0, 10**8])
def test_flac_without_a_length(tmp_path: Path, declared: int) -> None:
    path = tmp_path / "piped.flac"
    soundfile.write(path, noise(1, 12_345).T, 44100)
    expected = soundfile.read(path, dtype="float32")[0]
    content = bytearray(path.read_bytes())
    content[22:26] = struct.pack(">I", declared)  # low 32 bits of STREAMINFO's total samples
    path.write_bytes(content)
    with open_reader(path) as reader:
        assert reader.time == (declared or None)
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks(1000)), axis=1)[0], expected)


def test_truncated_flac_reports_the_time(tmp_path: Path) -> None:
    path = tmp_path / "cut.flac"
    soundfile.write(path, noise(1, 44_100).T, 44100)
    path.write_bytes(path.read_bytes()[:50_000])
    with open_reader(path) as reader:
        got = 0
        with pytest.raises(UnsupportedAudio, match=r"cut\.flac cannot be decoded past 0\.\d+ s"):  # noqa: PT012
            for block in reader.blocks(1000):
                got += block.shape[1]
        assert 10_000 < got < 44_100


@pytest.mark.parametrize(
    ("value", "word"), [(np.nan, "NaN"), (np.inf, "infinite"), (-np.inf, "infinite"), (1e30, r"beyond 1e\+06")]
)
@pytest.mark.parametrize("at", [0, 999, 1000, 2345])
def test_bad_sample_is_reported_with_its_time(tmp_path: Path, value: float, word: str, at: int) -> None:
    array = noise(2, 3000)
    array[1, at] = value
    path = tmp_path / "bad.wav"
    soundfile.write(path, array.T, 8000, subtype="FLOAT")
    with pytest.raises(UnsupportedAudio, match=f"bad.wav has a sample that is {word} at {at / 8000:.6f} s"):
        read(path, 1000)


@pytest.mark.parametrize("opened", [open_reader, open_live])
def test_devices_are_refused_because_they_may_never_end(
    opened: Callable[[str], AbstractContextManager[object]],
) -> None:
    with pytest.raises(UnsupportedAudio, match=r"^/dev/zero is a device"), opened("/dev/zero"):
        pass


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.wav", b"", "is empty"),
        ("text.wav", b"Dear diary, this text is not audio.\n" * 50, "is not audio"),
        ("text.au", b"Dear diary, this text is not audio.\n" * 50, "is not audio"),
        ("text.raw", b"Dear diary, this text is not audio.\n" * 50, "is not audio"),
        ("head.wav", wav_bytes(b"")[:30], "is not audio"),
        ("none.wav", wav_bytes(b""), "has no samples"),
        ("gone.wav", wav_bytes(b"", claimed=4000), "has no samples"),
    ],
)
def test_files_that_are_not_audio(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnsupportedAudio, match=words) as caught:
        read(tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wav_past_four_gibibytes_is_refused_rather_than_cut(tmp_path: Path) -> None:
    path = tmp_path / "huge.wav"
    path.write_bytes(wav_bytes(b"\0" * 100, claimed=2**32 - 1))
    os.truncate(path, 2**32 + 2**21)
    with pytest.raises(UnsupportedAudio, match="4 GiB"), open_reader(path):
        pass


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputNotFound, match="does not exist"), open_reader(tmp_path / "none.wav"):
        pass
    with pytest.raises(InputNotFound, match="is a folder"), open_reader(tmp_path):
        pass
    with pytest.raises(InputNotFound, match="cannot be read"), open_reader(tmp_path / ("a" * 300)):
        pass


class Stdin:
    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    soundfile.write(path, noise(2, 30_000).T, 44100)
    monkeypatch.setattr(sys, "stdin", Stdin(path.read_bytes()))
    with open_reader("-") as reader:
        assert (reader.label, reader.rate, reader.channels) == ("standard input", 44100, 2)
        result = np.concatenate(list(reader.blocks(7000)), axis=1)
    np.testing.assert_array_equal(result, read(path))


def test_empty_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b""))
    with pytest.raises(UnsupportedAudio, match="standard input is empty"), open_reader("-"):
        pass


def test_named_pipe_as_input(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = wav_bytes(np.arange(5000, dtype="<i2").tobytes())
    feeder = threading.Thread(target=pipe.write_bytes, args=(content,))
    feeder.start()
    np.testing.assert_array_equal(read(pipe)[0] * 32768, np.arange(5000))
    feeder.join()


def test_full_disk_while_spooling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(b"RIFF" * 1000))
    full = io.FileIO("/dev/full", "r+")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: full)
    with pytest.raises(StorageError, match=r"temporary copy of standard input in .* disk is full"), open_reader("-"):
        pass


@pytest.mark.slow
def test_long_file_in_constant_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    path.write_bytes(wav_bytes(b"", claimed=2**28, rate=48000))
    os.truncate(path, 2**28 + 44)  # 46 minutes of zeros, without the disk for them
    time = 0
    with open_reader(path) as reader:
        blocks = reader.blocks(2**20)
        time += next(blocks).shape[1]
        before = resident_bytes()
        for block in blocks:
            time += block.shape[1]
            assert resident_bytes() - before < 2**26
    assert time == 2**27


# Writing


@pytest.mark.slow
@in_tmp
@given(
    time=st.integers(1, 400),
    channels=st.integers(1, 8),
    rate=st.sampled_from(RATES),
    suffix=st.sampled_from([".wav", ".flac", ".aiff", ".au", ".caf", ".w64", ".rf64"]),
    sizes=st.lists(st.integers(0, 100), max_size=6),
)
def test_pcm16_is_the_nearest_value(
    tmp_path: Path, time: int, channels: int, rate: int, suffix: str, sizes: list[int]
) -> None:
    array = noise(channels, time) * 3  # past full scale too
    path = tmp_path / f"a{suffix}"
    with open_writer(path, rate=rate, channels=channels, force=True) as writer:
        for block in cut(array, sizes):
            writer.write(block)
    result, result_rate = soundfile.read(path, dtype="int16", always_2d=True)
    assert result_rate == rate
    expected = [[max(-32768, min(32767, round(float(value) * 32768))) for value in row] for row in array.T]
    np.testing.assert_array_equal(result, expected)


def test_wav_is_readable_by_the_standard_library(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    with open_writer(path, rate=11025, channels=2) as writer:
        writer.write(np.array([[0.5, -0.5], [0.25, 2.0]], np.float32))
    with wave.open(str(path)) as file:
        assert file.getparams()[:4] == (2, 2, 11025, 2)
        assert struct.unpack("<4h", file.readframes(2)) == (16384, 8192, -16384, 32767)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"])
def test_only_integer_subtypes_clip(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.wav"
    array = np.array([[0.5, 1.7, -1.7, -0.25]], np.float32)
    with open_writer(path, rate=8000, channels=1, subtype=subtype) as writer:
        writer.write(array)
    assert soundfile.info(path).subtype == subtype
    expected = array[0] if subtype in ("FLOAT", "DOUBLE") else array[0].clip(-1, 1)
    np.testing.assert_allclose(soundfile.read(path)[0], expected, atol=0.03)


@pytest.mark.parametrize("suffix", sorted(audio._FORMATS))
def test_every_suffix_can_be_written_and_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    array = (0.3 * np.sin(np.arange(20_000) / 20)).astype(np.float32)[None]
    audio.write_audio(path, array, 48000)
    result, rate = audio.read_audio(path)
    assert rate == 48000
    assert result.shape == array.shape
    np.testing.assert_allclose(result, array, atol=0.05)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("suffix", [".wav", ".aiff", ".rf64", ".w64"])
def test_bytes_of_a_file_do_not_depend_on_the_time(tmp_path: Path, suffix: str, subtype: str, channels: int) -> None:
    """libsndfile puts the time of writing into a chunk PEAK."""
    block = np.full((channels, 100), 0.25, dtype=np.float32)
    path = tmp_path / f"a{suffix}"
    with open_writer(path, rate=8000, channels=channels, subtype=subtype) as writer:
        writer.write(block)
    assert b"PEAK" not in path.read_bytes()
    assert np.array_equal(audio.read_audio(path)[0], block)


def test_invalid_output_formats_raise(tmp_path: Path) -> None:
    for name, words in (("a.xyz", "cannot write .xyz"), ("a", "without suffix")):
        with pytest.raises(UsageError, match=words), open_writer(tmp_path / name, rate=8000, channels=1):
            pass
    with pytest.raises(UsageError, match=r"^cannot write \.xyz: use one of"):
        audio.check_format(".xyz", None)
    with (
        pytest.raises(UsageError, match="FLAC has no subtype FLOAT"),
        open_writer(tmp_path / "a.flac", rate=8000, channels=1, subtype="FLOAT"),
    ):
        pass
    for name, rate, channels in (("a.flac", 8000, 9), ("a.mp3", 96000, 1), ("a.mp3", 48000, 3)):
        with (
            pytest.raises(UnsupportedAudio, match=f"cannot hold {channels} channels at {rate} Hz"),
            open_writer(tmp_path / name, rate=rate, channels=channels),
        ):
            pass
    assert list(tmp_path.iterdir()) == []


def test_wav_that_would_pass_four_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio, "_32_BIT_LIMIT", 10_000)
    array = noise(2, 2501)
    audio.write_audio(tmp_path / "long.wav", array, 8000)
    assert soundfile.info(tmp_path / "long.wav").format == "RF64"
    assert read(tmp_path / "long.wav").shape == array.shape
    audio.write_audio(tmp_path / "short.wav", array[:, :2400], 8000)
    assert soundfile.info(tmp_path / "short.wav").format == "WAV"
    with (
        pytest.raises(StorageError, match=r"unknown\.wav exceeds the 4 GiB"),
        open_writer(tmp_path / "unknown.wav", rate=8000, channels=2) as writer,
    ):
        writer.write(array)
    assert not (tmp_path / "unknown.wav").exists()


def test_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"precious")
    with pytest.raises(StorageError, match=r"a\.wav exists: pass --force"):
        audio.write_audio(path, noise(1, 10), 8000)
    assert path.read_bytes() == b"precious"
    audio.write_audio(path, noise(1, 10), 8000, force=True)
    assert read(path).shape == (1, 10)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, UnsupportedAudio])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
def test_no_file_remains_after_an_exception(tmp_path: Path, error: type[BaseException], suffix: str) -> None:
    old = tmp_path / f"old{suffix}"
    old.write_bytes(b"precious")
    for path in (old, tmp_path / f"new{suffix}"):
        with (  # noqa: PT012
            pytest.raises(error),
            open_writer(path, rate=48000, channels=1, force=True) as writer,
        ):
            writer.write(noise(1, 30_000))
            raise error
    assert list(tmp_path.iterdir()) == [old]
    assert old.read_bytes() == b"precious"


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".ogg"])
@pytest.mark.parametrize("room", [0, 10, 5000, 20_000])
def test_disk_full_at_any_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], suffix: str, room: int
) -> None:
    full = OSError(28, "No space left on device")

    def write(self: io.FileIO, data: bytes) -> int:
        if self.tell() + len(data) > room:
            raise full
        return io.FileIO.write(self, data)

    class Small(storage._Output):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            with storage.storing(self._label):
                return write(self, data)

    monkeypatch.setattr(storage, "_Output", Small)
    with (  # noqa: PT012
        pytest.raises(StorageError, match="disk is full"),
        open_writer(tmp_path / f"a{suffix}", rate=48000, channels=1) as writer,
    ):
        for block in cut(noise(1, 100_000), [30_000, 30_000]):
            writer.write(block)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_first_failure_is_the_one_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: storage._Output, data: bytes) -> int:
        raise StorageError("full")

    with (  # noqa: PT012
        pytest.raises(UnsupportedAudio, match="first"),
        open_writer(tmp_path / "a.wav", rate=8000, channels=1) as writer,
    ):
        writer.write(noise(1, 100))
        monkeypatch.setattr(storage._Output, "write", write)
        raise UnsupportedAudio("first")
    assert list(tmp_path.iterdir()) == []


def test_interrupt_inside_libsndfile_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: storage._Output, data: bytes) -> int:
        raise KeyboardInterrupt

    with (  # noqa: PT012
        pytest.raises(KeyboardInterrupt),
        open_writer(tmp_path / "a.wav", rate=8000, channels=1) as writer,
    ):
        monkeypatch.setattr(storage._Output, "write", write)
        writer.write(noise(1, 100_000))
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_and_folder_as_target(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="folder does not exist"):
        audio.write_audio(tmp_path / "no" / "a.wav", noise(1, 10), 8000)
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(StorageError, match="is a folder"):
        audio.write_audio(tmp_path / "folder.wav", noise(1, 10), 8000, force=True)
    with pytest.raises(StorageError, match="cannot be written"):
        audio.write_audio(tmp_path / ("a" * 300 + ".wav"), noise(1, 10), 8000)


def test_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link.wav").symlink_to(tmp_path / "far" / "real.wav")
    audio.write_audio(tmp_path / "link.wav", noise(1, 10), 8000)
    assert (tmp_path / "link.wav").is_symlink()
    assert read(tmp_path / "far" / "real.wav").shape == (1, 10)


def test_devices_receive_and_stay_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    audio.write_audio("/dev/null", noise(1, 10), 8000)
    with pytest.raises(StorageError, match="/dev/full cannot be written, the disk is full"):
        audio.write_audio("/dev/full", noise(1, 10), 8000)
    assert Path("/dev/full").is_char_device()
    assert Path("/dev/null").is_char_device()
    assert list(tmp_path.iterdir()) == []


class Stdout:
    def __init__(self) -> None:
        self.buffer = io.BytesIO()

    def flush(self) -> None:
        pass


def test_standard_output_is_wav_with_its_length(monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Stdout()
    monkeypatch.setattr(sys, "stdout", stdout)
    array = noise(2, 3000)
    with open_writer("-", rate=22050, channels=2) as writer:
        writer.write(array)
        assert stdout.buffer.getvalue() == b""
    stdout.buffer.seek(0)
    result, rate = soundfile.read(stdout.buffer)
    assert rate == 22050
    np.testing.assert_allclose(result.T, array.clip(-1, 1), atol=1e-4)


COPY = """
import sys
from codec.io.audio import open_reader, open_writer
from codec.errors import CodecError
try:
    with open_reader("-") as reader, open_writer("-", rate=reader.rate, channels=reader.channels) as writer:
        for block in reader.blocks(1000):
            writer.write(block)
except CodecError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
def test_through_a_real_pipe() -> None:
    content = wav_bytes(np.arange(5000, dtype="<i2").tobytes())
    done = subprocess.run([sys.executable, "-c", COPY], input=content, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == content


@pytest.mark.slow
def test_standard_output_on_a_full_disk_fails_once() -> None:
    content = wav_bytes(np.arange(100, dtype="<i2").tobytes())  # less than Python's buffer holds
    with Path("/dev/full").open("wb") as full:
        buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        done = subprocess.run(
            [sys.executable, "-c", COPY], input=content, stdout=full, stderr=subprocess.PIPE, env=buffered, check=False
        )
    assert done.returncode == StorageError.exit_code
    assert done.stderr.decode().splitlines() == [
        "standard output cannot be written, the disk is full: free some space or write elsewhere"
    ]


# Conveniences


def test_read_audio_mixes_and_resamples(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    array = noise(3, 100_000)
    soundfile.write(path, array.T, 44100, subtype="FLOAT")
    result, rate = audio.read_audio(path, rate=24000, mono=True)
    expected = soxr.resample(array.mean(axis=0), 44100, 24000, quality="VHQ")
    assert rate == 24000
    assert result.shape == (1, resampled_length(100_000, 44100, 24000))
    np.testing.assert_allclose(result[0, : len(expected)], expected[: result.shape[1]], atol=1e-6)


def test_audio_suffixes() -> None:
    assert all(is_audio_path(name) for name in ("a.wav", "b/A.FLAC", Path("c.Mp3"), "d.opus", "e.ogg", "f.aiff"))
    assert not any(is_audio_path(name) for name in ("a.txt", "wav", "b.wav.codec", ".wav", "c.mat", "d.raw"))


def test_random_damage_raises_only_codec_errors(tmp_path: Path) -> None:
    """Random bytes after real headers are read, or raise a CodecError."""
    generator = np.random.default_rng(0)
    refused = 0
    for seed, suffix in enumerate((".wav", ".flac", ".ogg", ".aiff", ".caf", ".au", ".w64") * 6):
        path = tmp_path / f"{seed}{suffix}"
        soundfile.write(path, noise(1, 2000).T, 8000, format=audio._FORMATS[suffix])
        content = bytearray(path.read_bytes())
        for at in generator.integers(0, min(len(content), 300), 8):
            content[at] = generator.integers(256)
        path.write_bytes(content)
        try:
            read(path)
        except CodecError:
            refused += 1
    assert 5 < refused < 42


@pytest.mark.parametrize(
    ("name", "format_", "subtype"), [("a.ogg", "OGG", "VORBIS"), ("a.mp3", "MP3", "MPEG_LAYER_III")]
)
def test_a_part_equals_reading_forward(tmp_path: Path, name: str, format_: str, subtype: str) -> None:
    """After one in five Vorbis seeks, libsndfile 1.2.2 starts at another position (findings/vorbis_seek.sh)."""
    noise = 0.1 * np.random.default_rng(0).standard_normal(220_500)
    with soundfile.SoundFile(tmp_path / name, "w", 44_100, 1, subtype, format=format_) as file:
        for first in range(0, len(noise), 4096):  # all at once, libsndfile's Vorbis encoder overflows its stack
            file.write(noise[first : first + 4096])
    with open_reader(tmp_path / name) as reader:
        whole = np.concatenate(list(reader.blocks(2**16)), axis=1)
    with open_reader(tmp_path / name) as reader:
        for first in [0, 1, 4095, 4096, *np.random.default_rng(1).integers(0, whole.shape[1] - 3000, 100).tolist()]:
            np.testing.assert_allclose(reader.part(first, 3000), whole[:, first : first + 3000], atol=2e-4)
