"""Samples that arrive while they are recorded: WAV and raw PCM from pipes, without a temporary copy.

with open_live("-") as reader:
    for block in reader.blocks(4096):  # what has arrived, at most 4096 samples
        ...
"""

import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from codec.errors import UnsupportedAudio, UsageError
from codec.io import audio
from codec.io.audio import Block
from codec.io.bitstream import MAX_CHANNELS, MAX_RATE
from codec.io.mixdown import Mixdown
from codec.io.riff import is_chunk_name
from codec.io.storage import is_streamed
from codec.io.tags import NO_TAGS, Found, read_wav_header

_UNKNOWN = 0x7FFF0000  # bytes of samples that writers of pipes state, at least; sox states 7FFFF000, ffmpeg FFFFFFFF
_MOST_HEADER = 1 << 20  # bytes
_READ = 1 << 16
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_SUBTYPES = {
    (_PCM, 8): "PCM_U8",
    (_PCM, 16): "PCM_16",
    (_PCM, 24): "PCM_24",
    (_PCM, 32): "PCM_32",
    (_FLOAT, 32): "FLOAT",
    (_FLOAT, 64): "DOUBLE",
}


class Recording(Protocol):
    """What can be compressed: an `AudioReader` or a `LiveReader`."""

    label: str
    rate: int
    channels: int
    peak: float
    notes: list[str]

    @property
    def time(self) -> int | None:
        """Samples that the header states."""

    @property
    def subtype(self) -> str:
        """libsndfile's name of the sample format."""

    def select(self, channel: int) -> None:
        """Give one channel alone, 0 for the first."""

    def mix_down(self) -> None:
        """Give one channel, mixed down."""

    def tags(self) -> Found:
        """The tags, and notes on what of them a .codec file cannot hold."""

    def blocks(self, time: int) -> Iterator[Block]:
        """Blocks [channels, at most `time`] up to the end."""


@dataclass(frozen=True)
class Layout:
    """How samples lie in a stream; `left` is the number of bytes of samples, None if it is unknown."""

    rate: int
    channels: int
    subtype: str = "PCM_16"
    left: int | None = None

    def __post_init__(self) -> None:
        if not audio.MIN_RATE <= self.rate <= MAX_RATE or not 1 <= self.channels <= MAX_CHANNELS:
            raise UsageError(
                f"{self.channels} channels at {self.rate} Hz: raw samples have 1 to {MAX_CHANNELS} channels at "
                f"{audio.MIN_RATE} to {MAX_RATE} Hz"
            )


class LiveReader:
    """Samples of a stream, little endian and interleaved, given as soon as they have arrived."""

    def __init__(self, stream: BinaryIO, label: str, layout: Layout, *, header: bytes = b"", head: bytes = b"") -> None:
        """`header` are the bytes before the samples, `head` bytes of samples that were read before."""
        self.label = label
        self.rate = layout.rate
        self.channels = layout.channels
        self.subtype = layout.subtype
        self.peak = 0.0
        self.notes: list[str] = []
        self._native_channels = layout.channels
        self._selected: int | None = None
        self._mixdown: Mixdown | None = None
        self._width = audio.SAMPLE_BYTES[layout.subtype]
        self._left = layout.left
        self.time = None if layout.left is None else layout.left // (self._width * self.channels)
        self._read = getattr(stream, "read1", stream.read)
        self._header, self._head = header, head

    def tags(self) -> Found:
        """The tags before the samples of a WAV stream."""
        return read_wav_header(self._header) if self._header else (NO_TAGS, ())

    def select(self, channel: int) -> None:
        """Give one channel alone, 0 for the first. Raises UnsupportedAudio if there is none."""
        if not 0 <= channel < self._native_channels:
            raise audio.without_channel(self.label, channel, self._native_channels)
        self._selected, self.channels = channel, 1

    def mix_down(self) -> None:
        """Give the average of the channels, or the loudest one while they cancel in it, by what has come so far."""
        if self.channels > 1:
            self._mixdown, self.channels = Mixdown(self.channels), 1

    def blocks(self, time: int) -> Iterator[Block]:
        """Yield [channels, at most `time`] of what has arrived; waits for one sample at least.

        Raises UnsupportedAudio as `AudioReader.blocks`, and if another WAV file follows the samples.
        """
        frame = self._width * self._native_channels
        seen = 0
        rest = b""
        while chunk := self._take(time * frame - len(rest)):
            data = rest + chunk
            whole = len(data) // frame * frame
            rest = data[whole:]
            if whole:
                block = _samples(data[:whole], self.subtype, self._native_channels)
                self.peak = max(self.peak, audio.checked_peak(block, label=self.label, seen=seen, rate=self.rate))
                seen += block.shape[1]
                yield self._one(block)
        if not seen:
            raise audio.without_samples(self.label)
        if self._mixdown is not None:
            self._mixdown.say(self.label, self.notes.append)
        if self._left == 0 and self._read(_READ)[:4] == b"RIFF":
            raise UnsupportedAudio(f"{self.label} holds WAV files one after another: send one at a time")

    def _one(self, block: Block) -> Block:
        if self._selected is not None:
            return block[self._selected : self._selected + 1]
        if self._mixdown is None:
            return block
        self._mixdown.push(block)
        return self._mixdown.mix(block)

    def _take(self, size: int) -> bytes:
        size = size if self._left is None else min(size, self._left)
        if size == 0:
            return b""
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
        else:
            data = self._read(size)
        if self._left is not None:
            self._left -= len(data)
        return data


@contextmanager
def open_live(path: str | Path, *, raw: Layout | None = None, use_ffmpeg: bool = False) -> Iterator[Recording]:
    """Open a recording; samples of WAV pipes and `raw` samples are given as they arrive, other files as `open_reader`.

    Raises as `audio.open_reader`.
    """
    is_pipe = is_streamed(path)
    label = "standard input" if str(path) == "-" else str(path)
    with ExitStack() as stack:
        if not is_pipe and raw is None:
            yield stack.enter_context(audio.open_reader(path, use_ffmpeg=use_ffmpeg))
            return
        with audio.reading(label):
            stream = sys.stdin.buffer if str(path) == "-" else stack.enter_context(Path(path).open("rb"))
        if raw is not None:
            yield LiveReader(stream, label, raw)
            return
        source = _Replayed(stream)
        layout = _wav_layout(source)
        if layout is None:
            audio.refuse_device(path, label)
            source.restart()
            yield stack.enter_context(audio.open_reader(path, use_ffmpeg=use_ffmpeg, stream=source))
        else:
            yield LiveReader(stream, label, layout, header=source.header(), head=source.after_header())


class _Replayed:
    """A stream whose first bytes can be read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._head = b""
        self._at = 0

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        while len(self._head) - self._at < size and (chunk := self._stream.read(self._at + size - len(self._head))):
            self._head += chunk
        self._at += size
        return self._head[self._at - size : self._at]

    def restart(self, at: int = 0) -> None:
        """Continue with byte `at` of the stream."""
        self._at = at

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._at

    def header(self) -> bytes:
        """Bytes that were taken."""
        return self._head[: self._at]

    def after_header(self) -> bytes:
        """Bytes that were read and not taken."""
        return self._head[self._at :]

    def read(self, size: int) -> bytes:
        """Bytes in the order of the stream; none at its end."""
        head, self._at = self._head[self._at : self._at + size], self._at + size
        return head or self._stream.read(size)


def _wav_layout(source: _Replayed) -> Layout | None:
    """The layout of a WAV stream, up to its first sample; None for what only libsndfile understands."""
    head = source.exactly(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    form = b""
    read = 0
    while read < _MOST_HEADER:
        name, size = struct.unpack("<4sI", source.exactly(8).ljust(8, b"\0"))
        if name == b"data":
            return _layout(form, size, source)
        if name == b"\0\0\0\0" or size > _MOST_HEADER:
            return None
        content = source.exactly(size + size % 2)
        read += size + 8
        form = content if name == b"fmt " else form
    return None


def _layout(form: bytes, size: int, source: _Replayed) -> Layout | None:
    if len(form) < 16:
        return None
    kind, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", form)
    if kind == _EXTENSIBLE and len(form) >= 26:
        kind = int.from_bytes(form[24:26], "little")
    subtype = _SUBTYPES.get((kind, bits))
    if subtype is None or not audio.MIN_RATE <= rate <= MAX_RATE or not 1 <= channels <= MAX_CHANNELS:
        return None
    first = source.position
    if size == 0 and is_chunk_name(source.exactly(4)):  # chunks after an empty one, not samples
        return None
    source.restart(first)
    return Layout(rate, channels, subtype, None if size == 0 or size >= _UNKNOWN else size)


def _samples(data: bytes, subtype: str, channels: int) -> Block:
    """Interleaved samples as [channels, time], full scale 1, with libsndfile's values."""
    flat: Block
    match subtype:
        case "PCM_U8":
            flat = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / np.float32(128)
        case "PCM_16":
            flat = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        case "PCM_24":
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            flat = (padded.view("<i4")[:, 0] >> 8).astype(np.float32) / np.float32(1 << 23)
        case "PCM_32":
            flat = np.frombuffer(data, "<i4").astype(np.float32) / np.float32(1 << 31)
        case "FLOAT":
            flat = np.frombuffer(data, "<f4").astype(np.float32)
        case _:
            with np.errstate(over="ignore"):  # infinite samples are refused with their time
                flat = np.frombuffer(data, "<f8").astype(np.float32)
    return np.ascontiguousarray(flat.reshape(-1, channels).T)
