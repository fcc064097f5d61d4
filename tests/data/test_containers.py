"""Every recording comes in whole, or is refused by name: container x length x seeking, on each of the four ways in.

TABLE has the right value of every cell. The ways in: `codec encode` of a file, tokenizing, the index of a training run,
and `codec encode` of a pipe.
"""

import io
import json
import struct
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from codec.checkpoint import save_model
from codec.compression import compress
from codec.data.clips import Clip, clip_audio
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import CodecError, UnsupportedAudio
from codec.io import mpeg
from codec.io.audio import open_reader, read_audio
from codec.training.codec.crops import Index, build_index
from codec.training.codec.recipe import DataConfig
from tests.tiny import tiny_model

RATE = 8000
TIME = 6 * RATE
RNG = np.random.default_rng(0)
NOISE = np.convolve(RNG.uniform(-0.5, 0.5, TIME), np.ones(8) / 8, "same")
MODEL = tiny_model()


class Samples(NamedTuple):
    """The least and the most samples that are right."""

    least: int
    most: int


ALL = Samples(TIME, TIME)
PADDED = Samples(TIME, TIME + 1200)  # by the encoder's delay and the rest of its last block
BOTH = Samples(2 * TIME, 2 * TIME)
TWICE = Samples(2 * TIME, 2 * TIME + 3000)
HALF = Samples(TIME // 4, TIME // 2)  # what is there of a file that was cut off in the middle
REFUSED = UnsupportedAudio
Cell = Samples | type[CodecError]

# container, length in its header, seekable; encode, tokenize, train, stdin
TABLE: dict[tuple[str, str, str], tuple[Cell, Cell, Cell, Cell]] = {
    ("WAV", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "stated, a chunk behind", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "7ffff000, as of sox", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "ffffffff, as of ffmpeg", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("WAV", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("WAV, A-law", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV, IMA ADPCM", "stated in blocks", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("WAV, GSM", "stated in blocks", "no"): (PADDED, PADDED, PADDED, PADDED),
    ("RF64", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("RF64", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("AIFF", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("AIFF", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("AIFF", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("AIFF", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("CAF", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF", "-1", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("AU", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("AU", "ffffffff", "yes"): (ALL, ALL, ALL, ALL),
    ("AU", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("AU", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("FLAC", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("FLAC", "stated, a tag behind", "yes"): (ALL, ALL, ALL, ALL),
    ("FLAC", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("FLAC", "too large", "yes"): (REFUSED, REFUSED, HALF, REFUSED),
    ("FLAC", "joined", "yes"): (BOTH, BOTH, BOTH, BOTH),
    ("FLAC", "0, joined", "yes"): (BOTH, BOTH, BOTH, BOTH),
    ("FLAC", "joined, other rate", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("Ogg Vorbis", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("Ogg Vorbis", "cut off", "yes"): (HALF, HALF, HALF, HALF),
    ("Ogg Vorbis", "joined", "yes"): (BOTH, BOTH, BOTH, BOTH),
    ("Ogg Vorbis", "joined, other channels", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("Ogg Opus", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("Ogg Opus", "cut off", "yes"): (HALF, HALF, HALF, HALF),
    ("Ogg Opus", "joined", "yes"): (BOTH, BOTH, BOTH, BOTH),
    ("Ogg Opus", "joined, other channels", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("MP3", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("MP3", "guessed", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("MP3", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("MP3", "joined", "yes"): (TWICE, TWICE, TWICE, TWICE),
}
WAYS = ("encode", "tokenize", "train", "stdin")
LOSSLESS = ("WAV", "RF64", "W64", "AIFF", "CAF", "AU", "FLAC")


# the files


def written(container: str) -> bytes:
    kind, _, subtype = {
        "WAV, A-law": "WAV ALAW",
        "WAV, IMA ADPCM": "WAV IMA_ADPCM",
        "WAV, GSM": "WAV GSM610",
        "Ogg Vorbis": "OGG VORBIS",
        "Ogg Opus": "OGG OPUS",
        "MP3": "MP3 MPEG_LAYER_III",
    }.get(container, f"{container} PCM_16").partition(" ")
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, format=kind, subtype=subtype) as target:
        target.write(NOISE)
    return file.getvalue()


def put(data: bytes, *edits: tuple[int, bytes]) -> bytes:
    """The data with other bytes at some places."""
    changed = bytearray(data)
    for at, new in edits:
        changed[at : at + len(new)] = new
    return bytes(changed)


def behind(data: bytes, name: bytes) -> int:
    return data.index(name) + len(name)


def wav(size: int) -> Callable[[bytes], bytes]:
    field = struct.pack("<I", size)
    return lambda data: put(data, (4, field), (behind(data, b"data"), field))


def without_info(data: bytes) -> bytes:
    """An MP3 without its Info frame, as a writer to a pipe leaves it."""
    frames = mpeg.find_frames(io.BytesIO(data))
    assert frames is not None
    return data[frames.runs[0][0] :]


def killed_aiff(data: bytes) -> bytes:
    frames, size = behind(data, b"COMM") + 6, behind(data, b"SSND")
    return put(data, (4, bytes(4)), (frames, bytes(4)), (size, bytes(4)))


def open_flac(data: bytes) -> bytes:
    """STREAMINFO's 36 bits of total samples are 0, as flac leaves them when it writes to a pipe."""
    return put(data, (21, bytes([data[21] & 0xF0])), (22, bytes(4)))


def other(container: str, **kind: int) -> bytes:
    """A second of noise of another kind."""
    file = io.BytesIO()
    noise = np.stack([NOISE[:RATE]] * kind.get("channels", 1), axis=1)
    name, _, codec_name = {"FLAC": "FLAC PCM_16", "Ogg Vorbis": "OGG VORBIS", "Ogg Opus": "OGG OPUS"}[
        container
    ].partition(" ")
    soundfile.write(file, noise, kind.get("rate", RATE), format=name, subtype=codec_name)
    return file.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


CHANGES: dict[tuple[str, str], Callable[[bytes], bytes]] = {
    ("WAV", "stated, a chunk behind"): lambda data: data + b"LIST\x08\0\0\0INFOabcd",
    ("WAV", "0"): wav(0),
    ("WAV", "7ffff000, as of sox"): wav(0x7FFFF000),
    ("WAV", "ffffffff, as of ffmpeg"): wav(0xFFFFFFFF),
    ("RF64", "0"): lambda data: put(data, (behind(data, b"ds64") + 4, bytes(24))),
    ("AIFF", "0"): killed_aiff,
    ("CAF", "-1"): lambda data: put(data, (behind(data, b"data"), b"\xff" * 8)),
    ("CAF", "0"): lambda data: put(data, (behind(data, b"data"), bytes(8))),
    ("AU", "ffffffff"): lambda data: put(data, (8, b"\xff" * 4)),
    ("AU", "0"): lambda data: put(data, (8, bytes(4))),
    ("FLAC", "stated, a tag behind"): lambda data: data + b"TAG" + bytes(125),
    ("FLAC", "0"): open_flac,
    ("FLAC", "0, joined"): lambda data: open_flac(data) * 2,
    ("FLAC", "joined, other rate"): lambda data: data + other("FLAC", rate=16000),
    ("Ogg Vorbis", "joined, other channels"): lambda data: data + other("Ogg Vorbis", channels=2),
    ("Ogg Opus", "joined, other channels"): lambda data: data + other("Ogg Opus", channels=2),
    ("MP3", "guessed"): without_info,
}
OF_ANY: dict[str, Callable[[bytes], bytes]] = {"joined": lambda data: data * 2, "too large": half, "cut off": half}


@cache
def made(container: str, length: str) -> bytes:
    change = CHANGES.get((container, length)) or OF_ANY.get(length, bytes)
    return change(written(container))


# the ways in


class Pipe(io.RawIOBase):
    """Bytes that cannot be sought, in short reads."""

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        size = min(len(buffer), len(self._rest), 1000)
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, MODEL, training={})
    return path


@pytest.fixture(params=TABLE, ids=lambda key: "-".join(key))
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str, str]:
    key: tuple[str, str, str] = request.param
    (tmp_path / "recording.wav").write_bytes(made(key[0], key[1]))  # the content determines the format, not the name
    return key


def encoded(folder: Path) -> int:
    return compress(folder / "recording.wav", folder / "out.codec", model=MODEL, num_codebooks=1).time


def from_stdin(folder: Path) -> int:
    class Stdin:
        buffer = io.BufferedReader(Pipe((folder / "recording.wav").read_bytes()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", Stdin)
        return compress("-", folder / "piped.codec", model=MODEL, num_codebooks=1).time


def tokenized(folder: Path, model_file: Path) -> int:
    (folder / "list.jsonl").write_text(json.dumps({"path": "recording.wav"}))
    report = tokenize(folder / "list.jsonl", folder / "store", model=model_file)
    for failure in report.failures:
        with pytest.raises(UnsupportedAudio) as refused:
            encoded(folder)
        assert failure.error == str(refused.value)
        raise refused.value
    return int(TokenStore(folder / "store")[0].row.samples)


def indexed(folder: Path) -> int:
    rows = [{"path": "recording.wav", "split": split} for split in ("train", "valid")]
    (folder / "splits.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index(folder / "splits.jsonl", folder / "index", DataConfig(), sample_rate=RATE, report=lambda _: None)
    return Index(folder / "index", "train").time


def test_the_table(case: tuple[str, str, str], tmp_path: Path, model_file: Path) -> None:
    ways: dict[str, Callable[[], int]] = {
        "encode": lambda: encoded(tmp_path),
        "tokenize": lambda: tokenized(tmp_path, model_file),
        "train": lambda: indexed(tmp_path),
        "stdin": lambda: from_stdin(tmp_path),
    }
    found: dict[str, Cell] = {}
    messages: list[str] = []
    for way, cell in zip(WAYS, TABLE[case], strict=True):
        try:
            time = ways[way]()
        except CodecError as error:
            found[way] = type(error)
            messages.append(str(error))
        else:
            within = isinstance(cell, Samples) and cell.least <= time <= cell.most
            found[way] = cell if within else Samples(time, time)
    assert found == dict(zip(WAYS, TABLE[case], strict=True))
    assert not any("\n" in message for message in messages)


def test_samples_of_lossless_files(case: tuple[str, str, str], tmp_path: Path) -> None:
    """From the first sample on, whatever the header says."""
    if case[0] not in LOSSLESS or TABLE[case][0] is REFUSED:
        pytest.skip("lossy, or refused")
    audio, _ = read_audio(tmp_path / "recording.wav")
    np.testing.assert_allclose(audio[0], np.tile(NOISE, 2)[: audio.shape[1]], atol=1e-4)


def test_libsndfile_cannot_seek(tmp_path: Path) -> None:
    """Where the table says so; these recordings are read forward."""
    for container, length, _ in (key for key in TABLE if key[2] == "no"):
        path = tmp_path / "recording.wav"
        path.write_bytes(made(container, length))
        with soundfile.SoundFile(path) as file, pytest.raises(soundfile.LibsndfileError):
            file.seek(RATE)


@pytest.mark.parametrize("rate", [RATE, 6000])
def test_crops_anywhere_in_a_recording(case: tuple[str, str, str], tmp_path: Path, rate: int) -> None:
    """As training reads crops, and tokenizing the clips of a manifest."""
    if TABLE[case][2] is REFUSED:
        pytest.skip("refused")
    path = tmp_path / "recording.wav"
    with open_reader(path) as reader:
        whole: NDArray[Any] = reader.part(0, reader.length())
    if rate != RATE:
        whole = resampled(whole, rate)
    clip = Clip(id="a", path=path, seconds=whole.shape[1] / rate)
    for first in (0, whole.shape[1] // 3, whole.shape[1] - 700):
        audio = clip_audio(clip, rate=rate, first=first, time=600)
        assert audio.shape == (1, 600)
        assert np.allclose(audio, whole[:, first : first + 600], atol=5e-3), first


def resampled(audio: NDArray[Any], rate: int) -> NDArray[Any]:
    file = io.BytesIO()
    soundfile.write(file, audio.T, RATE, format="WAV", subtype="FLOAT")
    return read_audio(file.getvalue(), rate=rate)[0]


def test_reading_on_needs_no_seeking(case: tuple[str, str, str], tmp_path: Path) -> None:
    """Parts that follow each other are the recording, to the bit."""
    if TABLE[case][0] is REFUSED:
        pytest.skip("refused")
    time = HALF.least
    with open_reader(tmp_path / "recording.wav") as reader:
        parts = [reader.part(first, 500) for first in range(0, time - 500, 500)]
    with open_reader(tmp_path / "recording.wav") as reader:
        whole = next(reader.blocks(time))
    joined = np.concatenate(parts, axis=1)
    assert np.array_equal(joined, whole[:, : joined.shape[1]])
