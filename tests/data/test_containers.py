"""Every recording comes in whole, or is refused by name: container x length x seeking, on each of the four ways in.

TABLE has the right value of every cell. The ways in: `codec encode` of a file, tokenizing, the index of a training run,
and `codec encode` of a pipe.
"""

import io
import json
import os
import struct
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

import codec.data.tokenize as tokenize_module
from codec.checkpoint import save_model
from codec.compression import compress
from codec.data.clips import Clip, clip_audio
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import CodecError, UnsupportedAudio
from codec.evaluation.codec import evaluate
from codec.io import audio, mpeg
from codec.io.audio import open_reader, read_audio
from codec.training.codec.crops import Index, build_index
from codec.training.codec.recipe import DataConfig
from tests.helpers.ogg import in_ogg
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
    ("WAV", "7fffffff", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "ffffffd3, less the header", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("WAV", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("WAV, A-law", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV, A-law", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("WAV, IMA ADPCM", "0", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("WAV, GSM", "0", "no"): (PADDED, PADDED, PADDED, PADDED),
    ("WAV, MP3", "stated in blocks", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("WAV, MP3", "0", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("WAV, IMA ADPCM", "stated in blocks", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("WAV, GSM", "stated in blocks", "no"): (PADDED, PADDED, PADDED, PADDED),
    ("RF64", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("RF64", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("RF64", "stated, a chunk behind", "yes"): (ALL, ALL, ALL, ALL),
    ("RF64", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("W64", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "stated, a chunk behind", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "24, an empty chunk", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "7fffffffffffffff, as of ffmpeg", "yes"): (ALL, ALL, ALL, ALL),
    ("W64", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("W64, GSM", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("W64", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("AIFF", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("AIFF", "stated, a chunk behind", "yes"): (ALL, ALL, ALL, ALL),
    ("AIFF", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("AIFF", "7f000000, as of sox", "yes"): (ALL, ALL, ALL, ALL),
    ("AIFF", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("AIFF", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("CAF", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF", "stated, a chunk behind", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF, ALAC", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF, ALAC", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("CAF, ALAC", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("CAF", "-1", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF", "0", "yes"): (ALL, ALL, ALL, ALL),
    ("CAF", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("CAF", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("AU", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("AU", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("AU", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
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
    ("Ogg FLAC", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("Ogg FLAC", "cut off", "yes"): (REFUSED, REFUSED, HALF, REFUSED),
    ("Ogg FLAC", "joined", "yes"): (BOTH, BOTH, BOTH, BOTH),
    ("Ogg Opus", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("Ogg Opus", "cut off", "yes"): (HALF, HALF, HALF, HALF),
    ("Ogg Opus", "joined", "yes"): (BOTH, BOTH, BOTH, BOTH),
    ("Ogg Opus", "joined, other channels", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("MP3", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("MP3", "guessed", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("MP3", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("MP3", "joined", "yes"): (TWICE, TWICE, TWICE, TWICE),
    ("MP3", "joined, other rate", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("MP3", "joined, other channels", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("NIST", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("NIST", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("NIST", "too large", "yes"): (HALF, HALF, HALF, HALF),
    ("NIST", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("IRCAM", "none", "yes"): (ALL, ALL, ALL, ALL),
    ("IRCAM", "none, joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("VOC", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("VOC", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("VOC", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("SVX", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("SVX", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("SVX", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("AVR", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("AVR", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("MAT5", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("MAT5", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("MPC2K", "stated", "yes"): (ALL, ALL, ALL, ALL),
    ("MPC2K", "stated, padding behind", "yes"): (ALL, ALL, ALL, ALL),
    ("AVR", "joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("PAF", "none", "yes"): (ALL, ALL, ALL, ALL),
    ("PAF", "none, joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("PVF", "none", "yes"): (ALL, ALL, ALL, ALL),
    ("PVF", "none, joined", "yes"): (REFUSED, REFUSED, REFUSED, REFUSED),
    ("MP2", "none", "yes"): (PADDED, PADDED, PADDED, PADDED),
    ("MP2", "none, joined", "yes"): (TWICE, TWICE, TWICE, TWICE),
}
WAYS = ("encode", "tokenize", "train", "stdin")
LOSSLESS = (
    "WAV",
    "RF64",
    "W64",
    "AIFF",
    "CAF",
    "CAF, ALAC",
    "AU",
    "FLAC",
    "Ogg FLAC",
    "NIST",
    "IRCAM",
    "VOC",
    "SVX",
    "AVR",
    "MAT5",
    "MPC2K",
    "PAF",
    "PVF",
)


# the files

KINDS = {
    "WAV, A-law": "WAV ALAW",
    "WAV, IMA ADPCM": "WAV IMA_ADPCM",
    "WAV, GSM": "WAV GSM610",
    "W64, GSM": "W64 GSM610",
    "CAF, ALAC": "CAF ALAC_16",
    "FLAC": "FLAC PCM_16",
    "Ogg Vorbis": "OGG VORBIS",
    "Ogg Opus": "OGG OPUS",
    "MP3": "MP3 MPEG_LAYER_III",
}


def written(container: str) -> bytes:
    if container == "MP2":
        return MP2_FRAME * -(-TIME // 1152)
    if container == "WAV, MP3":
        return mp3_in_wav(written("MP3"))
    if container == "Ogg FLAC":
        return in_ogg(written("FLAC"), serial=1)
    kind, _, subtype = KINDS.get(container, f"{container} PCM_16").partition(" ")
    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", RATE, 1, format=kind, subtype=subtype) as target:
        target.write(NOISE)
    return file.getvalue()


MP2_FRAME = bytes((0xFF, 0xE5, 0x88, 0xC0)) + bytes(1148)  # silence; MPEG-2.5, layer II, 64 kbit/s, 8 kHz, mono


def mp3_in_wav(data: bytes) -> bytes:
    """A WAV file of kind 0x55, MPEGLAYER3WAVEFORMAT, and a `fact` chunk with its samples."""
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 288, 1, 0)
    chunks = ((b"fmt ", form), (b"fact", struct.pack("<I", TIME)), (b"data", data))
    body = b"WAVE" + b"".join(name + struct.pack("<I", len(part)) + part for name, part in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


W64_LIST = b"list" + bytes.fromhex("F3ACD3118CD100C04F8EDB8A") + struct.pack("<Q", 64) + b"INFO" * 10


def w64(size: int) -> Callable[[bytes], bytes]:
    field = struct.pack("<Q", size)
    return lambda data: put(data, (16, field), (data.index(b"data\xf3\xac") + 16, field))


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


def aiff(frames: int, size: int) -> Callable[[bytes], bytes]:
    """With other numbers of frames and of bytes, as far as its writer knew them."""
    values = [struct.pack(">I", value) for value in (size and size + 46, frames, size and size + 8)]

    def change(data: bytes) -> bytes:
        places = 4, behind(data, b"COMM") + 6, behind(data, b"SSND")
        return put(data, *zip(places, values, strict=True))

    return change


def open_flac(data: bytes) -> bytes:
    """STREAMINFO's 36 bits of total samples are 0, as flac leaves them when it writes to a pipe."""
    return put(data, (21, bytes([data[21] & 0xF0])), (22, bytes(4)))


def other(container: str, **kind: int) -> bytes:
    """A second of noise of another kind."""
    file = io.BytesIO()
    noise = np.stack([NOISE[:RATE]] * kind.get("channels", 1), axis=1)
    name, _, codec_name = KINDS[container].partition(" ")
    soundfile.write(file, noise, kind.get("rate", RATE), format=name, subtype=codec_name)
    return file.getvalue()


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


CHANGES: dict[tuple[str, str], Callable[[bytes], bytes]] = {
    ("WAV", "stated, a chunk behind"): lambda data: data + b"LIST\x08\0\0\0INFOabcd",
    ("WAV", "0"): wav(0),
    ("WAV, A-law", "0"): wav(0),
    ("WAV, IMA ADPCM", "0"): wav(0),
    ("WAV, GSM", "0"): wav(0),
    ("WAV, MP3", "0"): wav(0),
    ("WAV", "7ffff000, as of sox"): wav(0x7FFFF000),
    ("WAV", "ffffffff, as of ffmpeg"): wav(0xFFFFFFFF),
    ("WAV", "7fffffff"): wav(0x7FFFFFFF),
    ("WAV", "ffffffd3, less the header"): wav(0xFFFFFFD3),
    ("RF64", "0"): lambda data: put(data, (behind(data, b"ds64") + 4, bytes(24))),
    ("W64", "0"): w64(0),
    ("W64", "24, an empty chunk"): w64(24),
    ("W64", "7fffffffffffffff, as of ffmpeg"): w64(2**63 - 1),
    ("AIFF", "0"): aiff(0, 0),
    ("AIFF", "7f000000, as of sox"): aiff(0x3F800000, 0x7F000000),
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
    ("MP3", "joined, other rate"): lambda data: data + other("MP3", rate=16000),
    ("MP3", "joined, other channels"): lambda data: data + other("MP3", channels=2),
    ("MP2", "none, joined"): lambda data: data * 2,
    ("W64", "stated, a chunk behind"): lambda data: data + bytes(-len(data) % 8) + W64_LIST,
    ("RF64", "stated, a chunk behind"): lambda data: data + b"LIST\x08\0\0\0INFOabcd",
    ("AIFF", "stated, a chunk behind"): lambda data: data + b"ANNO\0\0\0\x04abcd",
    ("CAF", "stated, a chunk behind"): lambda data: data + b"info" + struct.pack(">q", 40) + bytes(40),
    ("IRCAM", "none, joined"): lambda data: data * 2,
    ("PAF", "none, joined"): lambda data: data * 2,
    ("PVF", "none, joined"): lambda data: data * 2,
}
OF_ANY: dict[str, Callable[[bytes], bytes]] = {
    "joined": lambda data: data * 2,
    "too large": half,
    "cut off": half,
    "stated, padding behind": lambda data: data + bytes(100),
}


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


def test_other_ways_in(case: tuple[str, str, str], tmp_path: Path) -> None:
    """Prompts, evaluations and `codec.compress` read files and bytes as `codec encode` does."""
    (cell, *_), path = TABLE[case], tmp_path / "recording.wav"
    for source in (path, path.read_bytes()):
        if isinstance(cell, Samples):
            assert cell.least <= read_audio(source)[0].shape[1] <= cell.most
        else:
            with pytest.raises(cell):
                read_audio(source)


@pytest.mark.slow
def test_evaluations_measure_whole_recordings(tmp_path: Path) -> None:
    keys = [("WAV", "0"), ("WAV, GSM", "0"), ("FLAC", "0"), ("MP3", "guessed"), ("MP3", "joined")]
    for number, (container, length) in enumerate(keys):
        (tmp_path / f"{number}.wav").write_bytes(made(container, length))
    scores = evaluate(MODEL, tmp_path, num_codebooks=[1], speech=False).files
    assert len(scores) == len(keys)
    for key, score in zip(keys, scores, strict=True):
        cell = TABLE[(*key, "no" if "GSM" in key[0] else "yes")][0]
        assert isinstance(cell, Samples)
        assert cell.least <= round(score.seconds * RATE) <= cell.most


def test_samples_of_lossless_files(case: tuple[str, str, str], tmp_path: Path) -> None:
    """From the first sample on, whatever the header says."""
    if case[0] not in LOSSLESS or TABLE[case][0] is REFUSED:
        pytest.skip("lossy, or refused")
    samples, _ = read_audio(tmp_path / "recording.wav")
    np.testing.assert_allclose(samples[0], np.tile(NOISE, 2)[: samples.shape[1]], atol=1e-4)


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
        crop = clip_audio(clip, rate=rate, first=first, time=600)
        assert crop.shape == (1, 600)
        assert np.allclose(crop, whole[:, first : first + 600], atol=5e-3), first


PARTS = ((0, 700), (0.21, 1600), (2.3, 2001), (5.7, 2399))  # start in seconds, samples
HARD_TO_SEEK = [
    ("WAV", "0", "yes"),
    ("WAV, MP3", "stated in blocks", "yes"),
    ("WAV, IMA ADPCM", "0", "yes"),
    ("WAV, GSM", "stated in blocks", "no"),
    ("FLAC", "0", "yes"),
    ("FLAC", "joined", "yes"),
    ("Ogg Vorbis", "joined", "yes"),
    ("Ogg Opus", "stated", "yes"),
    ("MP3", "stated", "yes"),  # of a variable bit rate, where libsndfile's seeks are not exact
    ("MP3", "guessed", "yes"),
    ("MP3", "joined", "yes"),
    ("MP2", "none", "yes"),
]


@pytest.mark.parametrize("key", HARD_TO_SEEK, ids="-".join)
def test_parts_that_a_manifest_names(
    key: tuple[str, str, str], tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their codes are those of the same samples of the whole recording, which is sought once for each but the first."""
    monkeypatch.setattr(tokenize_module, "BLOCK_SECONDS", 0.1)
    (tmp_path / "recording.wav").write_bytes(made(key[0], key[1]))
    whole, _ = read_audio(tmp_path / "recording.wav")
    parts = [(start, min(samples, whole.shape[1] - round(start * RATE))) for start, samples in PARTS]
    rows = [{"path": "recording.wav", "start": start, "seconds": samples / RATE} for start, samples in parts]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    seeks: list[int] = []
    go_to = audio.AudioReader._go_to

    def counted(reader: audio.AudioReader, first: int) -> None:
        seeks.append(first)
        go_to(reader, first)

    monkeypatch.setattr(audio.AudioReader, "_go_to", counted)
    report = tokenize(tmp_path / "list.jsonl", tmp_path / "store", model=model_file)
    assert (report.clips, report.failures) == (len(parts), ())
    assert len(seeks) == len(parts) - 1  # a seek before every block may end elsewhere
    for clip, (start, samples) in zip(TokenStore(tmp_path / "store"), parts, strict=True):
        first = round(start * RATE)
        part = torch.from_numpy(whole[:, first : first + samples])[None]
        if key[0] in LOSSLESS:
            assert torch.equal(clip.codes, MODEL.encode(part)[0]), start
        else:  # the first samples after a seek differ in the last bits
            assert (clip.codes == MODEL.encode(part)[0]).float().mean() > 0.99, start


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


CHANGING = ["WAV", "FLAC", "Ogg Vorbis", "MP3", "WAV, GSM"]


@pytest.fixture(params=CHANGING)
def recording(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "recording.wav").write_bytes(written(request.param))
    return tmp_path / "recording.wav"


@pytest.mark.parametrize("way", ["encode", "tokenize"])
def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(
    recording: Path, model_file: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Because the rest would be missing without a word; nothing is left of the output."""
    read = audio._Sequential.buffer_read_into

    def shortening(source: Any, buffer: NDArray[np.float32], dtype: str) -> int:
        os.truncate(recording, recording.stat().st_size // 2)
        return read(source, buffer[:1000], dtype)

    monkeypatch.setattr(audio._Sequential, "buffer_read_into", shortening)
    if way == "encode":
        with pytest.raises(UnsupportedAudio) as refused:
            encoded(recording.parent)
        message = str(refused.value)
        assert not (recording.parent / "out.codec").exists()
    else:
        report = tokenize(recording.parent, recording.parent / "store", model=model_file)
        message = report.failures[0].error
    assert "recording.wav became shorter while it was read" in message


def test_a_file_that_becomes_longer_while_it_is_read_is_read_as_it_was(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, data = encoded(recording.parent), recording.read_bytes()
    (recording.parent / "out.codec").unlink()
    read = audio._Sequential.buffer_read_into

    def growing(source: Any, buffer: NDArray[np.float32], dtype: str) -> int:
        recording.write_bytes(data * 2)
        return read(source, buffer[:1000], dtype)

    monkeypatch.setattr(audio._Sequential, "buffer_read_into", growing)
    assert encoded(recording.parent) == expected


def test_crops_of_a_file_that_has_become_shorter_name_it(recording: Path) -> None:
    clip = Clip(id="a", path=recording, seconds=TIME / RATE)
    os.truncate(recording, recording.stat().st_size // 2)
    with pytest.raises(UnsupportedAudio, match=r"recording\.wav (ends at|cannot be decoded past)"):
        clip_audio(clip, rate=RATE, first=TIME - 700, time=600)
