"""Audio files and streams as float32 blocks [channels, time]: read, resample, write, in memory that does not grow.

with open_reader("in.flac") as reader, open_writer("out.wav", rate=24000, channels=reader.channels) as writer:
    resampler = Resampler(reader.rate, 24000, reader.channels)
    for block in reader.blocks(reader.rate):
        writer.write(resampler.push(block))
    writer.write(resampler.flush())
"""

import io
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from codec.errors import InputNotFound, StorageError, UnsupportedAudio, UsageError
from codec.frames import resampled_length
from codec.io.storage import COPY_BYTES, atomic_output, is_device, raw_stdout, storing, write_all

Block = NDArray[np.float32]  # [channels, time]
LOUDEST = 1e6  # magnitude of samples that are taken for audio: 120 dB over full scale

# Formats that can be written, by suffix, as libsndfile names them.
_FORMATS = {
    ".aif": "AIFF",
    ".aiff": "AIFF",
    ".au": "AU",
    ".caf": "CAF",
    ".flac": "FLAC",
    ".mp3": "MP3",
    ".oga": "OGG",
    ".ogg": "OGG",
    ".rf64": "RF64",
    ".w64": "W64",
    ".wav": "WAV",
    ".wave": "WAV",
}
# What a folder walk takes for audio. Left out: files without a header (.raw, .gsm) and .mat, which is mostly no audio.
AUDIO_SUFFIXES = frozenset(_FORMATS) | frozenset(
    (".aifc", ".avr", ".iff", ".nist", ".opus", ".paf", ".pvf", ".sf", ".snd", ".sph", ".svx", ".voc", ".wve", ".xi")
)
_32_BIT_FORMATS = ("AIFF", "AU", "WAV", "WAVEX")  # their headers cannot say sizes past 4 GiB
_32_BIT_LIMIT = 2**32 - 2**16  # bytes; the margin is for chunks other than the samples
_SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4}

SETTLING = {"VORBIS": 16384, "MPEG_LAYER_III": 4096}
"""Samples to read before those wanted, by subtype: after one seek in five libsndfile 1.2.2 gets a thousand samples of
Vorbis wrong, and near the end of a file it may be at another place (findings/vorbis_seek.sh)."""


def is_audio_path(path: str | Path) -> bool:
    """Whether the suffix is that of an audio file; the file itself is not looked at."""
    return Path(path).suffix.lower() in AUDIO_SUFFIXES


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that only goes forward.

    soundfile seeks after every read, which fails, and loses the last block, in FLAC streams of undeclared length.
    """

    def seekable(self) -> bool:
        return False


class AudioReader:
    """An open recording: `rate` in Hz, `channels`, `label` for messages.

    `time` is the number of samples the header claims, None where it claims none; headers lie, so count what `blocks`
    yields.
    """

    def __init__(self, source: soundfile.SoundFile, label: str) -> None:
        self.label = label
        self.rate: int = source.samplerate
        self.channels: int = source.channels
        self.time: int | None = source.frames if source.frames < 2**63 - 1 else None  # libsndfile's SF_COUNT_MAX
        self._source = source
        self._seen = 0
        if self.time == 0:
            raise self._without_samples()

    def blocks(self, time: int) -> Iterator[Block]:
        """Yields [channels, at most `time`] up to the end of the file; can be read through once.

        Raises UnsupportedAudio where there are no samples, a sample is NaN, infinite or beyond LOUDEST, or the file
        cannot be decoded.
        """
        while True:
            buffer = np.empty((time, self.channels), np.float32)
            try:
                read = self._source.buffer_read_into(buffer, "float32")
            except soundfile.LibsndfileError as error:
                raise UnsupportedAudio(
                    f"{self.label} cannot be decoded past {self._seen / self.rate:.3f} s "
                    f"({error.error_string.removeprefix('Error : ').rstrip('.')}): repair it or convert it to WAV"
                ) from error
            if read == 0:
                break
            block = np.ascontiguousarray(buffer[:read].T)
            self._check_samples(block)
            self._seen += read
            yield block
        if self._seen == 0:
            raise self._without_samples()

    def part(self, first: int, time: int) -> Block:
        """[channels, time] from sample `first` on, found by seeking.

        Raises UnsupportedAudio as `blocks`, and where the file ends before the part does.
        """
        earlier = min(first, SETTLING.get(self._source.subtype, 0))
        try:
            self._source.seek(first - earlier)
        except soundfile.LibsndfileError as error:
            raise self._ended(first + time) from error
        self._seen = first - earlier
        block = next(self.blocks(earlier + time), None)
        if block is None or block.shape[1] < earlier + time:
            raise self._ended(first + time)
        return np.ascontiguousarray(block[:, earlier:])

    def _ended(self, wanted: int) -> UnsupportedAudio:
        return UnsupportedAudio(
            f"{self.label} has nothing at {wanted / self.rate:.3f} s, though its header or manifest says so: "
            "fetch it again or take it out"
        )

    def _check_samples(self, block: Block) -> None:
        good = (np.abs(block) <= LOUDEST).all(axis=0)  # False for NaN too
        if not good.all():
            at = int(good.argmin())
            worst = block[:, at].max()  # NaN if one is
            kind = "NaN" if np.isnan(worst) else "infinite" if np.isinf(block[:, at]).any() else f"beyond {LOUDEST:g}"
            raise UnsupportedAudio(
                f"{self.label} has a sample that is {kind} at {(self._seen + at) / self.rate:.6f} s: "
                "repair the recording or cut that place out"
            )

    def _without_samples(self) -> UnsupportedAudio:
        return UnsupportedAudio(f"{self.label} has no samples (0 s): record or copy it again")


@contextmanager
def open_reader(path: str | Path | bytes) -> Iterator[AudioReader]:
    """Opens any file libsndfile reads; `-` is standard input, bytes are a file's content.

    Standard input and pipes go to a temporary file on disk first, since most formats need seeking.
    Raises InputNotFound, UnsupportedAudio, and StorageError where the temporary file does not fit.
    """
    label = "the data" if isinstance(path, bytes) else "standard input" if str(path) == "-" else str(path)
    with _seekable_input(path, label) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise UnsupportedAudio(f"{label} is empty (0 bytes): record or copy it again")
        try:
            # By descriptor, so that the content decides the format: by name, libsndfile takes any text.au for samples.
            source = _Sequential(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise UnsupportedAudio(
                f"{label} is not audio that libsndfile can read: convert it to WAV or FLAC first"
            ) from error
        with source:
            if source.format in _32_BIT_FORMATS and size >= 2**32 + COPY_BYTES:
                raise UnsupportedAudio(
                    f"{label} has {size} bytes, but its header can only say 4 GiB and libsndfile stops there: "
                    "convert it to FLAC, W64 or RF64 first"
                )
            yield AudioReader(source, label)


@contextmanager
def _seekable_input(path: str | Path | bytes, label: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if isinstance(path, bytes):
            yield stack.enter_context(_spooled(io.BytesIO(path), label))
            return
        if str(path) == "-":
            yield stack.enter_context(_spooled(sys.stdin.buffer, label))
            return
        with _reading(label):
            stream = stack.enter_context(Path(path).open("rb"))
        yield stream if Path(path).is_file() else stack.enter_context(_spooled(stream, label))


@contextmanager
def _spooled(stream: BinaryIO, label: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        with storing(f"the temporary copy of {label}"):
            spool = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # a buffer would fail again on closing
        with _reading(label):
            while chunk := stream.read(COPY_BYTES):
                with storing(f"the temporary copy of {label} in {tempfile.gettempdir()}"):
                    write_all(spool, chunk)
        spool.seek(0)
        yield spool


class Resampler:
    """Changes the rate of a stream of blocks with soxr's VHQ filter (linear phase, no delay left in the output).

    In all, `resampled_length(samples pushed)` samples come out, however they are cut. Equal rates pass through.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int) -> None:
        self._from_rate, self._to_rate, self._channels = from_rate, to_rate, channels
        self._pushed = self._returned = 0
        self._stream = (
            None
            if from_rate == to_rate
            else soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality="VHQ")
        )

    def push(self, block: Block) -> Block:
        """Takes [channels, any time] at the old rate, returns what is ready at the new one."""
        if self._stream is None:
            return block
        self._pushed += block.shape[1]
        ready = self._resample(block, last=False)
        self._returned += ready.shape[1]
        return ready

    def flush(self) -> Block:
        """Returns the rest; the resampler takes no more after it."""
        if self._stream is None:
            return np.zeros((self._channels, 0), np.float32)
        # soxr rounds its total to the nearest: zeros worth one output sample bring out the one that rounding up adds.
        zeros = np.zeros((self._channels, resampled_length(1, self._to_rate, self._from_rate)), np.float32)
        rest = self._resample(zeros, last=True)
        return rest[:, : resampled_length(self._pushed, self._from_rate, self._to_rate) - self._returned]

    def _resample(self, block: Block, *, last: bool) -> Block:
        assert self._stream is not None
        interleaved = np.ascontiguousarray(block.T, dtype=np.float32)  # [time, channels]
        return np.ascontiguousarray(self._stream.resample_chunk(interleaved, last=last).T)


class AudioWriter:
    """An audio file being written, block by block; leaving the context completes its header."""

    def __init__(self, file: BinaryIO, label: str, *, container: str, subtype: str, rate: int, channels: int) -> None:
        self._bridge = _Bridge(file)
        self._label = label
        self._container = container
        self._subtype = subtype
        try:
            self._target = _Sequential(self._bridge, "w", rate, channels, subtype, format=container)
        except soundfile.LibsndfileError as error:
            self._bridge.check()
            raise UnsupportedAudio(
                f"{label}: {container} cannot hold {channels} channels at {rate} Hz: write .wav, or change the rate"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with ExitStack() as stack:
            if kind is not None:
                stack.enter_context(suppress(StorageError))  # the first failure is the one to report
            stack.enter_context(self._checked())
            self._target.close()

    def write(self, block: Block) -> None:
        """Appends [channels, time]; samples past full scale are clipped unless the file holds floating point.

        Raises StorageError.
        """
        with self._checked():
            self._target.write(_quantized(block, self._subtype).T)
        if self._container in _32_BIT_FORMATS and self._bridge.tell() > _32_BIT_LIMIT:
            raise StorageError(f"{self._label} passes the 4 GiB its header can say: write .flac, .w64 or .rf64 instead")

    @contextmanager
    def _checked(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, AssertionError) as error:  # soundfile asserts that all was written
            self._bridge.check()
            raise StorageError(f"{self._label} cannot be written ({error}): try another format") from error
        self._bridge.check()


@contextmanager
def open_writer(
    path: str | Path,
    *,
    rate: int,
    channels: int,
    subtype: str | None = None,
    force: bool = False,
    time: int | None = None,
) -> Iterator[AudioWriter]:
    """A file in the format of its suffix that appears under `path` once complete; `-` is standard output, as WAV.

    `subtype` is libsndfile's name of the sample format; 16 bits where the format has them. `time` is the number of
    samples to come, where known: a .wav that would pass 4 GiB is then written as RF64.
    Raises UsageError for a suffix or subtype that cannot be written, UnsupportedAudio for a rate or number of channels
    the format cannot hold, StorageError as `atomic_output`.
    """
    label = "standard output" if str(path) == "-" else str(path)
    suffix = ".wav" if str(path) == "-" or is_device(path) else Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(f"{label}: cannot write {suffix or 'a file without suffix'}: use one of {' '.join(_FORMATS)}")
    container = _FORMATS[suffix]
    if subtype is None:
        subtype = "PCM_16" if soundfile.check_format(container, "PCM_16") else soundfile.default_subtype(container)
    elif not soundfile.check_format(container, subtype):
        known = " ".join(name for name in soundfile.available_subtypes(container))
        raise UsageError(f"{label}: {container} has no subtype {subtype}: use one of {known}")
    if container == "WAV" and (time or 0) * channels * _SAMPLE_BYTES.get(subtype, 8) > _32_BIT_LIMIT:
        container = "RF64"
    with (
        atomic_output(path, force=force) as file,
        AudioWriter(file, label, container=container, subtype=subtype, rate=rate, channels=channels) as writer,
    ):
        yield writer


class LiveOutput:
    """Standard output as 16-bit samples while they are being made: each block is gone when `write` returns.

    As WAV, whose header claims the largest size there is: readers of streams take that for "up to the end". `bare` has
    no header, the samples are little-endian then.
    """

    def __init__(self, *, rate: int, channels: int, bare: bool = False) -> None:
        self._sink = raw_stdout()
        if not bare:
            most = 2**32 - 1
            form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
            self._send(struct.pack("<4sI4s4sI16s4sI", b"RIFF", most, b"WAVE", b"fmt ", len(form), form, b"data", most))

    def write(self, block: Block) -> None:
        """Sends [channels, time]; samples past full scale are clipped. Raises StorageError."""
        self._send(_quantized(block, "PCM_16").T.astype("<i2").tobytes())

    def _send(self, data: bytes) -> None:
        with storing("standard output"):
            write_all(self._sink, data)


def _quantized(block: Block, subtype: str) -> NDArray[Any]:
    match subtype:
        case "FLOAT" | "DOUBLE":
            return block
        case "PCM_16":
            # Rounded here, because libsndfile rounds down when it writes floats to WAV: half a step of offset.
            return np.rint(np.clip(block * 32768, -32768, 32767)).astype(np.int16)
        case _:
            return np.clip(block, -1, 1)


class _Bridge:
    """A file as libsndfile's callbacks see it: no exception can cross C, so the first one waits for `check`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: BaseException | None = None

    def write(self, data: bytes) -> int:
        return self._guarded(self._file.write, data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._guarded(self._file.seek, offset, whence)

    def tell(self) -> int:
        return self._guarded(self._file.tell)

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def _guarded(self, call: Callable[..., int], *arguments: object) -> int:
        if self._error is None:
            try:
                return call(*arguments)
            except BaseException as error:  # an interrupt too: lost here, it would leave a hole in the file
                self._error = error
        return 0


@contextmanager
def _reading(label: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFound(f"{label} does not exist: check the path") from error
    except IsADirectoryError as error:
        raise InputNotFound(f"{label} is a folder: name a file in it") from error
    except OSError as error:
        raise InputNotFound(f"{label} cannot be read ({error.strerror}): check the path and the permissions") from error


def read_audio(path: str | Path, *, rate: int | None = None, mono: bool = False) -> tuple[Block, int]:
    """The whole file as [channels, time] and its rate in Hz, resampled to `rate`, channels averaged if `mono`.

    Raises as `open_reader`.
    """
    with open_reader(path) as reader:
        rate = reader.rate if rate is None else rate
        resampler = Resampler(reader.rate, rate, 1 if mono else reader.channels)
        blocks = [
            resampler.push(block.mean(axis=0, keepdims=True) if mono else block) for block in reader.blocks(2**16)
        ]
    return np.concatenate([*blocks, resampler.flush()], axis=1), rate


def resample(array: Block, from_rate: int, to_rate: int) -> Block:
    """A whole signal [channels, time] at another rate, `resampled_length` samples long."""
    resampler = Resampler(from_rate, to_rate, array.shape[0])
    return np.concatenate([resampler.push(array), resampler.flush()], axis=1)


def write_audio(path: str | Path, array: Block, rate: int, *, force: bool = False) -> None:
    """Writes [channels, time], 16 bits where the format has them. Raises as `open_writer`."""
    with open_writer(path, rate=rate, channels=array.shape[0], force=force, time=array.shape[1]) as writer:
        writer.write(array)
