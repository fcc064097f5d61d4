"""Read, resample and write audio files and streams as float32 blocks [channels, time], in constant memory.

with open_reader("in.flac") as reader, open_writer("out.wav", rate=24000, channels=reader.channels) as writer:
    resampler = Resampler(reader.rate, 24000, reader.channels)
    for block in reader.blocks(reader.rate):
        writer.write(resampler.push(block))
    writer.write(resampler.flush())
"""

import io
import math
import os
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Protocol, Self

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from codec.errors import InputNotFound, StorageError, UnsupportedAudio, UsageError
from codec.frames import resampled_length
from codec.io import ffmpeg, mpeg, riff
from codec.io.chain import SETTLING, UNKNOWN, Chain, links, readable_length
from codec.io.coded_channels import Mix, Survey
from codec.io.mixdown import Mixdown, Note, mixed_down
from codec.io.pieces import Pieces
from codec.io.quiet import quiet
from codec.io.storage import COPY_BYTES, atomic_output, is_streamed, output_label, raw_stdout, storing, write_all
from codec.io.tags import NO_TAGS, Found, Tags, set_strings
from codec.io.tags import read as read_tags
from codec.io.tags import write as write_tags

Block = NDArray[np.float32]  # [channels, time]
MAX_MAGNITUDE = 1e6  # of samples, 120 dB over full scale; larger values are not audio
INTEGER_PEAK = 100.0  # peak of floating-point samples from which on they look like integers
MIN_RATE = 100  # Hz; recordings with a lower rate are not audio
MAX_RATIO = 256  # of sample rates: a resampling filter takes memory in proportion to the ratio, in every channel

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
# Suffixes of audio files in folders, without headerless formats (.raw, .gsm) and .mat, which mostly is not audio.
AUDIO_SUFFIXES = frozenset(_FORMATS) | frozenset(
    (
        ".aifc",
        ".avr",
        ".iff",
        ".mp1",
        ".mp2",
        ".mpga",
        ".nist",
        ".opus",
        ".paf",
        ".pvf",
        ".sf",
        ".snd",
        ".sph",
        ".svx",
        ".voc",
        ".wve",
        ".xi",
    )
)
SET_ADD_PEAK_CHUNK = 0x1050  # SFC_SET_ADD_PEAK_CHUNK of sndfile.h
_PEAK_CHUNK = ("AIFF", "WAV", "WAVEX")  # formats that have the chunk PEAK until it is turned off; RF64 would get one
_32_BIT_FORMATS = ("AIFF", "AU", "WAV", "WAVEX")  # their headers cannot state sizes over 4 GiB
_32_BIT_LIMIT = 2**32 - 2**16  # bytes; the margin is for chunks other than the samples
_OGG_TO_WAV = {  # index in an Ogg file of each channel of a WAV file, by number of channels
    3: [0, 2, 1],
    5: [0, 2, 1, 3, 4],
    6: [0, 2, 1, 4, 5, 3],
    7: [0, 2, 1, 5, 6, 4, 3],
    8: [0, 2, 1, 6, 7, 4, 5, 3],
}
_WAVE_PCM, _WAVE_EXTENSIBLE = 1, 0xFFFE
_PCM_GUID = bytes.fromhex("0100000000001000800000AA00389B71")
_SPEAKERS = {3: 0x7, 4: 0x33, 5: 0x37, 6: 0x3F, 7: 0x13F, 8: 0x63F}  # as libsndfile writes them, by number of channels
SAMPLE_BYTES = {"PCM_U8": 1, "PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}


def is_audio_path(path: str | Path, *, use_ffmpeg: bool = False) -> bool:
    """Whether the suffix is that of an audio file for libsndfile, or for ffmpeg if asked; the file is not opened."""
    suffix = Path(path).suffix.lower()
    return suffix in AUDIO_SUFFIXES or (use_ffmpeg and suffix in ffmpeg.SUFFIXES)


def target_of(source: str | Path, output: str | Path | None, suffix: str) -> str:
    """The target of one file: `output`, a file in it if it is a folder, or a file beside the source if it is None.

    Raises UsageError for a .codec file with an audio file's suffix, InputNotFound if the source is a folder,
    StorageError if `output` ends with "/" and is not a folder.
    """
    if Path(source).is_dir():
        raise InputNotFound(f"{source} is a folder: name a file in it")
    if output is None:
        return "-" if str(source) == "-" else str(Path(source).with_suffix(suffix))
    misnamed = suffix == ".codec" and is_audio_path(output) and not Path(output).is_dir()
    if misnamed and Path(output) != Path(source):
        raise UsageError(
            f"{output} would be a .codec file under the name of an audio file: name it {Path(output).stem}.codec, or "
            "use codec decode to write audio"
        )
    if Path(output).is_dir() and str(source) != "-":
        return str(Path(output, Path(source).name).with_suffix(suffix))
    if str(output).endswith("/"):
        raise StorageError(f"{output} is not a folder: create it first, or remove the / to name a file")
    return str(output)


class Readable(Protocol):
    """The part of a binary file that is needed to copy it."""

    def read(self, size: int, /) -> bytes:
        """Some of the next `size` bytes; none at the end."""


_OTHERS = (b"fLaC", b"OggS", b"RIFF", b"FORM", b"caff", b".snd")  # than MPEG audio, by their first bytes
_MP3_IN_WAV = b"\x55\0"


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """A SoundFile that is read forward only.

    soundfile seeks after every read, which fails, and loses the last block, in FLAC streams of undeclared length.
    """

    def __init__(self, *arguments: Any, prints: bool = False, **options: Any) -> None:
        """With `prints`, libmpg123 may print while it is opened; catching that takes 20 microseconds."""
        with quiet() if prints else nullcontext():
            super().__init__(*arguments, **options)
        self._caught = quiet if self.subtype.startswith("MPEG_LAYER") else nullcontext

    def seekable(self) -> bool:
        return False

    def seek(self, frames: int, whence: int = os.SEEK_SET) -> int:
        with self._caught():
            return int(super().seek(frames, whence))

    def buffer_read_into(self, buffer: NDArray[np.float32], dtype: str) -> int:
        """Tags after the samples of a FLAC file are an error for libsndfile, which costs the block before them."""
        if self.format != "FLAC" or self.frames == UNKNOWN:
            with self._caught():
                return int(super().buffer_read_into(buffer, dtype))
        left = self.frames - self.tell()
        try:
            return int(super().buffer_read_into(buffer[:left] if left > 0 else buffer, dtype))
        except soundfile.LibsndfileError:
            if left > 0:
                raise
            return 0

    def leave_out_peak_chunk(self) -> None:
        """Do not write libsndfile's chunk PEAK, whose time gives the same samples other bytes each second."""
        soundfile._snd.sf_command(self._file, SET_ADD_PEAK_CHUNK, soundfile._ffi.NULL, 0)


class AudioReader:
    """An open recording: `rate` in Hz, `channels`, `label` for messages.

    `time` is the number of samples that the header states, None if it states none. Headers can be wrong: `length` gives
    the number that can be read. Channels come in the order of WAV files, whatever order the file has.
    """

    def __init__(self, file: BinaryIO, label: str) -> None:
        """Open a seekable `file`; raises UnsupportedAudio if libsndfile cannot read it or it has no samples."""
        self.label = label
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._stream: Pieces | None = riff.finished(file)
        self._links = links(file, _Sequential, label)
        self._expected: int | None = None
        file.seek(0)
        head = file.read(22)
        self._prints = not head.startswith(_OTHERS) or head[20:] == _MP3_IN_WAV
        counted = mpeg.begins(file)
        if counted:
            self._count_frames()
        self._source = self._opened()
        if not counted and mpeg.is_mpeg(self.container):  # with other bytes before its first frame
            self._count_frames()
            self._source.close()
            self._source = self._opened()
        self.rate: int = self._source.samplerate
        if self.rate < MIN_RATE:
            self._source.close()
            raise UnsupportedAudio(
                f"{label} has a sample rate of {self.rate} Hz, and audio has {MIN_RATE} Hz or more: correct its header"
            )
        self._native_channels: int = self._source.channels
        self.channels = self._native_channels
        stated = self._source.frames
        self.time: int | None = stated if stated < UNKNOWN else None
        self._order = channel_order(self._source.format, self._native_channels)
        self._mix: Callable[[Block], Block] | None = None
        self._original: Callable[[], Found] | None = None
        self._seen = 0
        self.notes: list[str] = []
        """What became of the channels, where a user should know."""
        self.peak = 0.0
        """Largest magnitude of the samples read so far; 1 is full scale."""

    def _count_frames(self) -> None:
        """Count the frames of MPEG audio that does not state its length."""
        frames = mpeg.without_length(self._file)
        if frames is not None and frames.other:
            raise UnsupportedAudio(
                f"{self.label} holds recordings of different kinds one after another ({mpeg.describe(frames.header)}; "
                f"{mpeg.describe(frames.other)}): split it, or convert it to WAV or FLAC first (encode and tokenize "
                "take --ffmpeg)"
            )
        if frames is not None:
            self._stream = mpeg.exact(self._file, frames)
            self._expected = None if self._stream.head else frames.time

    def _opened(self) -> soundfile.SoundFile | Chain:
        if self._links:
            return Chain(self._file, self._links, _Sequential)
        # By descriptor, so that the content determines the format: by name, libsndfile reads any text.au as samples.
        descriptor = self._file.fileno()
        if self._stream is not None:
            self._stream.seek(0)
        os.lseek(descriptor, 0, os.SEEK_SET)  # libsndfile starts at the descriptor's position
        try:
            source = descriptor if self._stream is None else self._stream
            return _Sequential(source, closefd=False, prints=self._prints)
        except soundfile.LibsndfileError as error:
            if Path(self.label).suffix.lower() == ".codec":
                raise UnsupportedAudio(f"{self.label} is compressed, not audio: codec decode restores it") from error
            also = " (encode and tokenize take --ffmpeg)" if Path(self.label).suffix.lower() in ffmpeg.SUFFIXES else ""
            raise UnsupportedAudio(
                f"{self.label} is not audio that libsndfile can read: convert it to WAV or FLAC first{also}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._source.close()

    @property
    def container(self) -> str:
        """libsndfile's name of the format."""
        return str(self._source.format)

    @property
    def subtype(self) -> str:
        """libsndfile's name of the sample format or codec."""
        return str(self._source.subtype)

    def select(self, channel: int) -> None:
        """Read one channel alone, 0 for the first; call it before reading. Raises UnsupportedAudio if there is none."""
        if not 0 <= channel < self._native_channels:
            raise without_channel(self.label, channel, self._native_channels)
        self._order = [channel if self._order is None else self._order[channel]]
        self.channels = 1

    def tags(self) -> Found:
        """The tags of the recording, and notes on what of them a .codec file cannot hold."""
        if self._original is not None:
            return self._original()
        descriptor = self._file.fileno()
        position = os.lseek(descriptor, 0, os.SEEK_CUR)  # libsndfile's
        strings = {} if isinstance(self._source, Chain) else self._source.copy_metadata()
        try:
            return read_tags(self._file, container=self.container, strings=strings.items())
        finally:
            os.lseek(descriptor, position, os.SEEK_SET)

    def decoded_from(self, tags: Callable[[], Found]) -> None:
        """Give the tags of the file that this recording was decoded from."""
        self._original = tags

    def survey(self, limit: float) -> Mix | None:
        """Which channels to code and how, for audio that is clipped at `limit`; reads up to the whole recording.

        Call it before reading. Raises UnsupportedAudio as `blocks`.
        """
        survey = Survey(self.channels, is_float=self.subtype in ("FLOAT", "DOUBLE"), limit=limit)
        if self.channels > 1 or self.subtype in ("FLOAT", "DOUBLE"):
            for block in self.blocks(2**16):
                if not survey.push(block):
                    break
            self.rewind()
        return survey.mix()

    def mix_down(self) -> None:
        """Give one channel, mixed down as `codec.io.mixdown`; call it before reading.

        The whole recording is decoded once for it. Raises UnsupportedAudio as `blocks`.
        """
        if self.channels == 1:
            return
        mixdown = Mixdown(self.channels)
        for block in self.blocks(2**16):
            mixdown.push(block)
        mixdown.say(self.label, self.notes.append)
        self.rewind()
        self._mix, self.channels = mixdown.mix, 1

    def blocks(self, time: int) -> Iterator[Block]:
        """Yield [channels, at most `time`] up to the end of the file; can be read through once.

        Raises UnsupportedAudio if there are no samples, a sample is NaN, infinite or beyond MAX_MAGNITUDE, or the file
        cannot be decoded.
        """
        while True:
            buffer = np.empty((time, self._native_channels), np.float32)
            try:
                read = self._source.buffer_read_into(buffer, "float32")
            except soundfile.LibsndfileError as error:
                self._check_size()
                raise UnsupportedAudio(
                    f"{self.label} cannot be decoded past {self._seen / self.rate:.3f} s "
                    f"({error.error_string.removeprefix('Error : ').rstrip('.')}): repair it or convert it to WAV"
                ) from error
            if read == 0:
                self._check_size()
                break
            block = np.ascontiguousarray(buffer[:read].T)
            if self._order is not None:
                block = block[self._order]
            self._check_samples(block)
            self._seen += read
            yield block if self._mix is None else self._mix(block)
        if self._seen == 0:
            raise without_samples(self.label)
        if self._expected is not None and self._seen < self._expected:
            raise UnsupportedAudio(
                f"{self.label} has {self._expected / self.rate:.3f} s, but libsndfile reads "
                f"{self._seen / self.rate:.3f} s of it: convert it to WAV or FLAC first"
            )

    def _check_size(self) -> None:
        """Raise UnsupportedAudio if the file has become shorter; a longer one is read as far as it was when opened."""
        if os.fstat(self._file.fileno()).st_size < self._size:
            raise UnsupportedAudio(
                f"{self.label} became shorter while it was read, at {self._seen / self.rate:.3f} s: read it again when "
                "it is complete"
            )

    def part(self, first: int, time: int, *, least: int | None = None) -> Block:
        """Read [channels, time] from sample `first` on; by seeking, or by reading forward if seeking fails.

        Raises UnsupportedAudio as `blocks`, and where the file ends before `least` samples, all if None.
        """
        earlier = min(first, SETTLING.get(self.subtype, 0))
        if self._seen != first:
            self._go_to(first - earlier)
        else:
            earlier = 0  # reading forward is exact
        block = next(self.blocks(earlier + time), None)
        if block is None or block.shape[1] < earlier + (time if least is None else least):
            raise UnsupportedAudio(
                f"{self.label} ends at {self._seen / self.rate:.3f} s, but {(first + time) / self.rate:.3f} s are "
                "wanted: correct the manifest, or take the file out"
            )
        return np.ascontiguousarray(block[:, earlier:])

    def length(self) -> int:
        """Samples that can be read: the stated number if the last one is there, else counted by decoding them all.

        Call it before reading. Raises UnsupportedAudio as `blocks`.
        """
        if self.time is not None and (self._links or mpeg.is_mpeg(self.container) or self._is_plain()):
            return self.time
        self._source.close()
        counted = readable_length(self._opened)
        self.rewind()
        if not counted:
            next(self.blocks(1))  # raises what prevents it
        return counted

    def _is_plain(self) -> bool:
        """Whether the format is uncompressed, so that libsndfile derives the length from the file's size."""
        return self.container != "FLAC" and self.subtype.startswith(("PCM_", "FLOAT", "DOUBLE", "ULAW", "ALAW"))

    def rewind(self) -> None:
        """Begin again with the first sample."""
        self._source.close()
        self._source, self._seen = self._opened(), 0

    def _go_to(self, first: int) -> None:
        """Move to sample `first`, or past the end if the file is shorter."""
        with suppress(soundfile.LibsndfileError):
            if self._source.seek(first) == first:
                self._seen = first
                return
        self.rewind()
        while self._seen < first and next(self.blocks(min(2**16, first - self._seen)), None) is not None:
            pass

    def _check_samples(self, block: Block) -> None:
        self.peak = max(self.peak, checked_peak(block, label=self.label, seen=self._seen, rate=self.rate))


def checked_peak(block: Block, *, label: str, seen: int, rate: int) -> float:
    """Largest magnitude of a block that begins with sample `seen`.

    Raises UnsupportedAudio for a sample that is NaN, infinite or beyond MAX_MAGNITUDE.
    """
    peak = _peak(block)
    if peak <= MAX_MAGNITUDE:
        return peak
    good = (np.abs(block) <= MAX_MAGNITUDE).all(axis=0)  # False for NaN too
    at = int(good.argmin())
    worst = block[:, at].max()  # NaN if one is
    kind = "NaN" if np.isnan(worst) else "infinite" if np.isinf(block[:, at]).any() else f"beyond {MAX_MAGNITUDE:g}"
    raise UnsupportedAudio(
        f"{label} has a sample that is {kind} at {(seen + at) / rate:.6f} s: repair the recording or cut this part out"
    )


@contextmanager
def open_reader(
    path: str | Path | bytes,
    *,
    channel: int | None = None,
    use_ffmpeg: bool = False,
    stream: "Readable | None" = None,
) -> Iterator[AudioReader]:
    """Open any file that libsndfile reads; `-` is standard input, bytes are a file's content.

    `stream` is read instead of the pipe that `path` names. `channel` selects one channel, 0 for the first; None is all.
    Standard input and pipes go to a temporary file on disk first, because most formats need seeking. With `use_ffmpeg`,
    the program ffmpeg decodes what libsndfile does not read to a temporary file.
    Raises InputNotFound, UnsupportedAudio, MissingDependency, and StorageError where the temporary file does not fit.
    """
    label = "the data" if isinstance(path, bytes) else "standard input" if str(path) == "-" else str(path)
    with ExitStack() as stack:
        file = stack.enter_context(_seekable_input(path, label) if stream is None else _spooled(stream, label))
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise UnsupportedAudio(f"{label} is empty (0 bytes): record or copy it again")
        original: Callable[[], Found] | None = None
        if use_ffmpeg and not _libsndfile_reads(file):
            name = path if isinstance(path, str | Path) and Path(path).is_file() else None
            original = partial(ffmpeg.tags, file, name)
            file = stack.enter_context(ffmpeg.decoded(file, name, label))
            size = os.fstat(file.fileno()).st_size
        if (count := riff.joined(file)) > 1:
            raise UnsupportedAudio(
                f"{label} holds {count} recordings one after another, and others read only the first: split it, "
                "or join the samples with an audio tool"
            )
        with AudioReader(file, label) as reader:
            if reader.time == 0:
                raise without_samples(label)
            if reader.container in _32_BIT_FORMATS and size >= 2**32 + COPY_BYTES:
                raise UnsupportedAudio(
                    f"{label} has {size} bytes, but its header states at most 4 GiB, where libsndfile stops: "
                    "convert it to FLAC, W64 or RF64 first"
                )
            if channel is not None:
                reader.select(channel)
            if original is not None:
                reader.decoded_from(original)
            yield reader


def _libsndfile_reads(file: BinaryIO) -> bool:
    try:
        AudioReader(file, "").__exit__()
    except UnsupportedAudio:
        return False
    return True


def without_samples(label: str) -> UnsupportedAudio:
    """The error for a recording of 0 s."""
    return UnsupportedAudio(f"{label} has no samples (0 s): record or copy it again")


def without_channel(label: str, channel: int, channels: int) -> UnsupportedAudio:
    """The error for a recording without a channel that was asked for."""
    return UnsupportedAudio(f"{label} has no channel {channel}: it has {channels}, counted from 0")


def channel_order(container: str, channels: int) -> list[int] | None:
    """Channels of a file in the order of WAV files; None if that is their order already.

    Ogg files have the order of the Vorbis I specification, section 4.3.9: left, center, right, ..., LFE last.
    libsndfile neither says so nor changes it.
    """
    if container != "OGG" or channels not in _OGG_TO_WAV:
        return None
    return [_OGG_TO_WAV[channels].index(channel) for channel in range(channels)]


@contextmanager
def _seekable_input(path: str | Path | bytes, label: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        if isinstance(path, bytes):
            yield stack.enter_context(_spooled(io.BytesIO(path), label))
            return
        if str(path) == "-":
            yield stack.enter_context(_spooled(sys.stdin.buffer, label))
            return
        with reading(label):
            refuse_device(path, label)
            stream = stack.enter_context(Path(path).open("rb", buffering=0))  # one position for Python and libsndfile
        yield stream if Path(path).is_file() else stack.enter_context(_spooled(stream, label))


def refuse_device(path: str | Path, label: str) -> None:
    """Raise UnsupportedAudio for a device such as /dev/zero, because a copy of it may never end."""
    if Path(path).is_char_device():
        raise UnsupportedAudio(f"{label} is a device, which may never end: record a file, or give samples with --raw")


@contextmanager
def _spooled(stream: "Readable", label: str) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        with storing(f"the temporary copy of {label}"):
            spool = stack.enter_context(tempfile.TemporaryFile(buffering=0))  # a buffer would fail again on closing
        with reading(label):
            while chunk := stream.read(COPY_BYTES):
                with storing(f"the temporary copy of {label} in {tempfile.gettempdir()}"):
                    write_all(spool, chunk)
        spool.seek(0)
        yield spool


def looks_like_integers(peak: float) -> str:
    """What to say of floating-point samples with a peak beyond INTEGER_PEAK."""
    return f"peaks at {peak:g} times full scale, as if it held integers: divide its samples by 32768 first"


def clipped_later(peak: float, limit: float) -> str:
    """What to say of samples with a peak beyond the limit of a model."""
    return (
        f"peaks at {20 * math.log10(peak):+.1f} dBFS, and decoded audio is clipped at {20 * math.log10(limit):+.1f} "
        "dBFS: lower its gain first to keep the peaks"
    )


def can_resample(from_rate: int, to_rate: int) -> bool:
    """Whether the rates are close enough for a Resampler."""
    return max(from_rate, to_rate) <= MAX_RATIO * min(from_rate, to_rate)


class Resampler:
    """Resample a stream of blocks with soxr's VHQ filter (linear phase, delay compensated).

    In all, `resampled_length(samples pushed)` samples come out, however they are cut. Equal rates pass through.
    Raises UnsupportedAudio for rates that are more than MAX_RATIO apart; `label` names the audio in its message.
    """

    def __init__(self, from_rate: int, to_rate: int, channels: int, *, label: str = "this audio") -> None:
        if not can_resample(from_rate, to_rate):
            raise UnsupportedAudio(
                f"{label} has a sample rate of {from_rate} Hz and cannot be resampled to {to_rate} Hz, because they "
                f"differ by a factor of more than {MAX_RATIO}: choose a rate between"
            )
        self._from_rate, self._to_rate, self._channels = from_rate, to_rate, channels
        self._pushed = self._returned = 0
        self._stream: soxr.ResampleStream | None = None

    def push(self, block: Block) -> Block:
        """Take [channels, any time] at the old rate and return the samples that are complete at the new rate."""
        if self._from_rate == self._to_rate or not block.shape[1]:
            return block
        self._pushed += block.shape[1]
        ready = self._resample(block, last=False)
        self._returned += ready.shape[1]
        return ready

    def flush(self) -> Block:
        """Return the remaining samples; the stream is closed then."""
        if not self._pushed:
            return np.zeros((self._channels, 0), np.float32)
        # soxr rounds the total length to the nearest; zeros of one output sample yield the one that rounding up adds.
        zeros = np.zeros((self._channels, resampled_length(1, self._to_rate, self._from_rate)), np.float32)
        rest = self._resample(zeros, last=True)
        return rest[:, : resampled_length(self._pushed, self._from_rate, self._to_rate) - self._returned]

    def _resample(self, block: Block, *, last: bool) -> Block:
        if self._stream is None:  # made with the first samples, because those of many channels take much memory
            self._stream = soxr.ResampleStream(
                self._from_rate, self._to_rate, self._channels, dtype="float32", quality="VHQ"
            )
        interleaved = np.ascontiguousarray(block.T, dtype=np.float32)  # [time, channels]
        return np.ascontiguousarray(self._stream.resample_chunk(interleaved, last=last).T)


class _Meter:
    """The peak of samples that are written, and how many of them are clipped."""

    def __init__(self) -> None:
        self.peak = 0.0
        """Largest magnitude of the samples so far; 1 is full scale."""
        self.clipped = 0
        """Samples so far that were beyond full scale and did not fit the output."""
        self.notes: list[str] = []
        """What the output cannot hold, beside samples; known after the end."""

    def _measure(self, block: Block, *, clips: bool = True) -> None:
        peak = _peak(block)
        self.peak = max(self.peak, peak)
        if clips and peak > 1:
            self.clipped += int((np.abs(block) > 1).sum())

    def clip_notes(self) -> tuple[str, ...]:
        """A sentence about the samples that were clipped, if any were."""
        if not self.clipped:
            return ()
        level = 20 * math.log10(self.peak)
        return (f"{self.clipped} samples clipped at a peak of {level:+.2f} dBFS (--subtype FLOAT keeps them)",)


class AudioWriter(_Meter):
    """An audio file being written, block by block; leaving the context completes its header."""

    def __init__(
        self,
        file: BinaryIO,
        label: str,
        *,
        container: str,
        subtype: str,
        rate: int,
        channels: int,
        tags: Tags = NO_TAGS,
    ) -> None:
        """libsndfile writes the texts of `tags` before the samples, where the format has chunks for them."""
        if container == "WAV" and channels > 2:
            container = "WAVEX"  # WAVE_FORMAT_EXTENSIBLE, as its definition asks of more than two channels
        self._bridge = _Bridge(file)
        self._label = label
        self._container = container
        self._subtype = subtype
        self._order = _OGG_TO_WAV.get(channels) if container == "OGG" else None
        super().__init__()
        try:
            self._target = _Sequential(self._bridge, "w", rate, channels, subtype, format=container)
            if container in _PEAK_CHUNK:
                self._target.leave_out_peak_chunk()
            set_strings(self._target, tags)
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
        """Append [channels, time]; samples past full scale are clipped unless the file holds floating point.

        Raises StorageError.
        """
        self._measure(block, clips=self._subtype not in ("FLOAT", "DOUBLE"))
        with self._checked():
            self._target.write(_quantized(block if self._order is None else block[self._order], self._subtype).T)
        if self._container in _32_BIT_FORMATS and self._bridge.tell() > _32_BIT_LIMIT:
            raise StorageError(f"{self._label} exceeds the 4 GiB that its header can state: write .flac, .w64 or .rf64")

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
    tags: Tags = NO_TAGS,
) -> Iterator[AudioWriter]:
    """Open an audio file in the format of its suffix, which replaces `path` atomically; `-` is standard output, as WAV.

    `subtype` is libsndfile's name of the sample format; 16 bits where the format has them. `time` is the number of
    samples to come, where known: a .wav that would pass 4 GiB is then written as RF64. `tags` are put into the complete
    file, before it takes its name; standard output and devices have none.
    Raises UsageError for a suffix or subtype that cannot be written, UnsupportedAudio for a rate or number of channels
    the format cannot hold, StorageError as `atomic_output`.
    """
    label = output_label(path)
    streamed = is_streamed(path)
    suffix = ".wav" if streamed else Path(path).suffix.lower()
    container, subtype = check_format(suffix, subtype, label=label)
    if container == "WAV" and (time or 0) * channels * SAMPLE_BYTES.get(subtype, 8) > _32_BIT_LIMIT:
        container = "RF64"
    with atomic_output(path, force=force) as file:
        with AudioWriter(
            file, label, container=container, subtype=subtype, rate=rate, channels=channels, tags=tags
        ) as writer:
            yield writer
        if tags and not streamed:
            writer.notes += write_tags(file, tags, container=container, label=label)


def check_format(suffix: str, subtype: str | None, *, label: str | None = None) -> tuple[str, str]:
    """libsndfile's names of the format with a suffix and of its sample format, by default 16 bits where it has them.

    Raises UsageError for a suffix or subtype that cannot be written.
    """
    place = f"{label}: " if label else ""
    if suffix not in _FORMATS:
        raise UsageError(f"{place}cannot write {suffix or 'a file without suffix'}: use one of {' '.join(_FORMATS)}")
    container = _FORMATS[suffix]
    if subtype is None:
        default = "PCM_16" if soundfile.check_format(container, "PCM_16") else soundfile.default_subtype(container)
        return container, str(default)
    if not soundfile.check_format(container, subtype):
        known = " ".join(soundfile.available_subtypes(container))
        raise UsageError(f"{place}{container} has no subtype {subtype}: use one of {known}")
    return container, subtype


def can_hold(suffix: str, subtype: str) -> bool:
    """Whether the format of a suffix can be written with this sample format."""
    return suffix in _FORMATS and bool(soundfile.check_format(_FORMATS[suffix], subtype))


class LiveOutput(_Meter):
    """Stream 16-bit samples to standard output; each block is flushed when `write` returns.

    As WAV of `time` samples per channel. If `time` is None, the header claims the largest size there is, which readers
    of streams take for "up to the end"; if standard output is a regular file, leaving the context puts the true sizes
    in. `bare` has no header; the samples are little-endian then.
    """

    def __init__(self, *, rate: int, channels: int, bare: bool = False, time: int | None = None) -> None:
        super().__init__()
        self._sink = raw_stdout()
        self._start = None if bare else _place_in_file(self._sink)
        self._header = b"" if bare else _wav_header(rate, channels, None if time is None else time * channels * 2)
        self._send(self._header)

    def write(self, block: Block) -> None:
        """Write [channels, time]; samples past full scale are clipped. Raises StorageError."""
        self._measure(block)
        self._send(_quantized(block, "PCM_16").T.astype("<i2").tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Complete the header if the output is seekable. Raises StorageError."""
        if self._start is None:
            return
        with storing("standard output"):
            descriptor = self._sink.fileno()
            size = os.lseek(descriptor, 0, os.SEEK_CUR) - self._start
            for place, value in ((4, size - 8), (len(self._header) - 4, size - len(self._header))):
                os.pwrite(descriptor, struct.pack("<I", min(value, 2**32 - 1)), self._start + place)

    def _send(self, data: bytes) -> None:
        with storing("standard output"):
            write_all(self._sink, data)


def _wav_header(rate: int, channels: int, size: int | None) -> bytes:
    """The header of 16-bit samples of `size` bytes; WAVE_FORMAT_EXTENSIBLE for more than two channels."""
    kind = _WAVE_EXTENSIBLE if channels > 2 else _WAVE_PCM
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * 2, channels * 2, 16)
    if channels > 2:
        form += struct.pack("<HHI16s", 22, 16, _SPEAKERS.get(channels, 0), _PCM_GUID)
    size = 2**32 - 1 if size is None else min(size, 2**32 - 1)
    whole = min(size + len(form) + 20, 2**32 - 1)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", whole, b"WAVE", b"fmt ", len(form))
        + form
        + struct.pack("<4sI", b"data", size)
    )


def _place_in_file(sink: Any) -> int | None:
    """The position in a regular file; None for pipes, terminals and files opened to append."""
    try:
        descriptor = sink.fileno()
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        import fcntl

        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND:
            return None  # opened to append
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    except (ImportError, OSError):
        return None


def _peak(block: Block) -> float:
    """Largest magnitude, NaN if a sample is; without an array of magnitudes, because its memory costs more than it."""
    return max(float(block.max(initial=0)), -float(block.min(initial=0)))


def _quantized(block: Block, subtype: str) -> NDArray[Any]:
    match subtype:
        case "FLOAT" | "DOUBLE":
            return block
        case "PCM_16":
            # Rounded here, because libsndfile rounds floats down in WAV files, which adds an offset of half a step.
            return np.rint(np.clip(block * 32768, -32768, 32767)).astype(np.int16)
        case _:
            return np.clip(block, -1, 1)


class _Bridge:
    """A file for libsndfile's callbacks. Exceptions cannot pass through C, so the first one is kept for `check`."""

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
            except BaseException as error:  # KeyboardInterrupt too, which would otherwise be lost
                self._error = error
        return 0


@contextmanager
def reading(label: str) -> Iterator[None]:
    """Raise what prevents a file from being read as InputNotFound."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputNotFound(f"{label} does not exist: check the path") from error
    except IsADirectoryError as error:
        raise InputNotFound(f"{label} is a folder: name a file in it") from error
    except OSError as error:
        raise InputNotFound(f"{label} cannot be read ({error.strerror}): check the path and the permissions") from error
    except ValueError as error:  # a NUL in the path
        raise InputNotFound(f"{label!r} cannot be read ({error}): check the path") from error


def read_audio(
    path: str | Path | bytes, *, rate: int | None = None, mono: bool = False, note: Note | None = None
) -> tuple[Block, int]:
    """Read a whole file as [channels, time] and its sample rate in Hz, resampled to `rate`.

    `mono` mixes the channels down, as `codec.io.mixdown`; `note` is called with a line if they cancel. Raises as
    `open_reader`.
    """
    with open_reader(path) as reader:
        rate = reader.rate if rate is None else rate
        blocks = list(reader.blocks(2**16))
        if mono and reader.channels > 1:
            blocks = mixed_down(blocks, label=reader.label, note=note)
        resampler = Resampler(reader.rate, rate, len(blocks[0]), label=reader.label)
        audio = [resampler.push(block) for block in blocks]
    return np.concatenate([*audio, resampler.flush()], axis=1), rate


def resample(array: Block, from_rate: int, to_rate: int) -> Block:
    """Resample a whole signal [channels, time]; the result has `resampled_length` samples."""
    resampler = Resampler(from_rate, to_rate, array.shape[0])
    return np.concatenate([resampler.push(array), resampler.flush()], axis=1)


def write_audio(path: str | Path, array: Block, rate: int, *, force: bool = False) -> None:
    """Write [channels, time], with 16 bits if the format has them. Raises as `open_writer`."""
    with open_writer(path, rate=rate, channels=array.shape[0], force=force, time=array.shape[1]) as writer:
        writer.write(array)
