"""Decode any part of a .codec file, packet by packet; gaps between intact packets become silence.

The samples of a part are those of the whole recording. The decoder begins earlier by its receptive field, and the
resampler earlier still, at a sample that falls on a sample of both rates:

    frames      ──┬─────────────────┬──────────────────────
    decoded       first frame ······ origin ··············   model's rate
    resampled                        origin ·· part ──────   rate of the output
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from codec import live
from codec.errors import UnsupportedAudio, UsageError
from codec.frames import resampled_length
from codec.io.audio import Block, Resampler
from codec.io.bitstream import Damage, Header, Packet, Reader
from codec.io.storage import storing
from codec.models.base import Codec, Encoded
from codec.streams import StreamDecoder

BLOCK_SECONDS = (
    4.0  # of one channel that are encoded or decoded together; blocks of recordings with more channels are shorter
)
MAX_BLOCK = 1 << 20  # samples, at any sample rate
MOST_ROWS = 32
"""Rows that are coded together where others can wait: a row takes up to 3 MB, most of them for another sample rate."""
LAST_FRAMES = 50  # after the last one that a part needs, to spare
FADE_SECONDS = 0.01  # at the ends of a gap
CONCEAL_SECONDS = 0.12  # of the model's own continuation
MAX_SILENCE = 600.0  # seconds in all gaps so far, per second that was decoded before and one more
MAX_SAMPLES = 1 << 29  # of all channels: 1 GiB in 16 bits
SAMPLES_PER_BYTE = 1 << 20  # of the file, in larger outputs; digital silence in 8 channels at 192 kHz has less
FILTER_SECONDS = 0.1  # of the resampler's filter on either side, with room to spare


class SomeRows:
    """An open, seekable .codec file as if it held the rows `first` to before `last` alone; its codes wait in `file`."""

    seekable = knows_length = True
    least_time = 0

    def __init__(self, reader: Reader, first: int, last: int, file: IO[bytes]) -> None:
        header, width = reader.header, reader.header.model_channels
        channels = min(last * width, header.coded_channels) - first * width
        self.header = replace(header, channels=channels, mix=())
        self.label, self.is_complete = reader.label, reader.is_complete
        self._rows, self._file = slice(first, last), file
        self._parts: list[Damage | tuple[int, tuple[int, ...], bool]] = []  # a packet's first frame, shape, has a scale

    def add(self, part: Packet | Damage) -> None:
        """Keep the next part of the file."""
        if isinstance(part, Packet):
            codes = part.codes[self._rows]
            self._file.write(codes.astype(np.int32).tobytes())
            if part.scale is not None:
                self._file.write(part.scale[self._rows].astype(np.float32).tobytes())
            self._parts.append((part.first, codes.shape, part.scale is not None))
        else:
            self._parts.append(part)

    def parts(self, first: int = 0) -> Iterator[Packet | Damage]:
        """The parts that were added, which begin with that of frame `first`."""
        self._file.seek(0)
        for part in self._parts:
            if isinstance(part, Damage):
                yield part
                continue
            start, (rows, codebooks, frames), has_scale = part
            codes = np.frombuffer(self._file.read(4 * rows * codebooks * frames), np.int32).astype(np.int64)
            scale = np.frombuffer(self._file.read(4 * rows * frames), np.float32) if has_scale else None
            shaped = None if scale is None else scale.reshape(rows, frames)
            yield Packet(start, codes.reshape(rows, codebooks, frames), shaped)

    def pieces(self, first: int = 0) -> Iterator[Packet | Damage]:
        """As `parts`."""
        return self.parts(first)


Source: TypeAlias = Reader | SomeRows
Number = TypeVar("Number", np.int32, np.float32)


@contextmanager
def temporary(what: str) -> Iterator[IO[bytes]]:
    """A temporary file for parts of `what`. Raises StorageError."""
    with storing(f"a temporary file for {what} in {tempfile.gettempdir()}"), tempfile.TemporaryFile() as file:
        yield file


def side_by_side(
    files: Sequence[tuple[IO[bytes], tuple[int, ...]]], kind: type[Number], count: int
) -> Iterator[npt.NDArray[Number]]:
    """Read temporary files together from their first bytes: arrays [at most `count`, columns of all files, ...].

    Each file holds numbers of `kind` [time, *shape] with its own shape, (columns, ...); all hold the same times.
    """
    for file, _ in files:
        file.seek(0)
    row_bytes = [np.dtype(kind).itemsize * math.prod(shape) for _, shape in files]
    while True:
        parts = [
            np.frombuffer(file.read(count * size), kind).reshape(-1, *shape)
            for (file, shape), size in zip(files, row_bytes, strict=True)
        ]
        if not len(parts[0]):
            return
        yield np.concatenate(parts, axis=1)


class Restoration:
    """The audio of an open .codec file from sample `part[0]` to sample `part[1]`, at `rate` Hz.

    `damages` has the damage that was met on the way, `is_intact` says whether there was an intact packet. Options as in
    `codec.compression.decompress`; `compiled` as in `codec.streams.StreamDecoder`, for at most `live.MAX_ROWS` rows.

    Files of more than MOST_ROWS rows are decoded in groups of them to temporary files, if they are seekable.
    """

    def __init__(
        self,
        reader: Source,
        model: Codec,
        *,
        rate: int,
        part: tuple[int, int | None] = (0, None),
        num_codebooks: int | None = None,
        conceal: bool = False,
        force: bool = False,
        compiled: bool = False,
    ) -> None:
        """Raises UsageError if the file or the model does not have that number of codebooks."""
        if num_codebooks is not None and model.check_codebooks(num_codebooks) > reader.header.num_codebooks:
            raise UsageError(
                f"{reader.label} has {reader.header.num_codebooks} codebooks, not {num_codebooks}: ask for fewer"
            )
        self._num_codebooks = num_codebooks
        self._options: dict[str, Any] = {"num_codebooks": num_codebooks, "conceal": conceal, "force": force}
        self.damages: list[Damage] = []
        self._reader, self._model, self._rate, self._part, self._force = reader, model, rate, part, force
        self._header = header = reader.header
        # samples that fall on samples of both rates
        step = header.sample_rate // math.gcd(header.sample_rate, rate)
        early = 0.0 if rate == header.sample_rate else FILTER_SECONDS
        at = max(0, math.floor((part[0] / rate - early) * header.sample_rate))
        self._origin = at // step * step  # at the model's rate
        warm_up = model.receptive_field().decoder.past
        frame = max(0, (self._origin + header.decoder_delay) // header.hop - warm_up)
        self._frame = frame // max(1, header.segment_frames) * max(1, header.segment_frames)
        self._splicer = _Splicer(
            reader, model, first_frame=self._frame, conceal=conceal, force=force, compiled=compiled
        )
        self._group: Restoration | None = None

    @property
    def is_intact(self) -> bool:
        """Whether there was an intact packet."""
        return self._splicer.intact if self._group is None else self._group.is_intact

    def blocks(self) -> Iterator[Block]:
        """Yield blocks [channels, time].

        Raises UnsupportedAudio, without `force`, for silence and for audio out of proportion to the file.
        """
        matrix = np.array(self._header.mix, np.float32) if self._header.mix else None
        reader = self._reader
        first, last = self._part
        if isinstance(reader, Reader) and reader.knows_length:
            whole = resampled_length(self._header.time, self._header.source_rate, self._rate)
            self._check_proportion(reader, (whole if last is None else min(last, whole)) - first)
        if isinstance(reader, Reader) and reader.seekable and self._header.rows > MOST_ROWS:
            blocks = self._coded_in_groups(reader)
        else:
            blocks = self._coded()
        time = 0
        for block in blocks:
            time += block.shape[1]
            if isinstance(reader, Reader):
                self._check_proportion(reader, time)
            if matrix is None:
                yield block
                continue
            most = max(1, MAX_BLOCK // len(matrix))
            for begin in range(0, block.shape[1], most):
                yield matrix @ block[:, begin : begin + most]
        if isinstance(reader, Reader) and not reader.seekable:
            self.damages += reader.after_end()

    def _check_proportion(self, reader: Reader, time: int) -> None:
        """Raise UnsupportedAudio for so much audio that few bytes can only hold by intention, without `force`."""
        samples = time * self._header.channels
        if samples <= MAX_SAMPLES or self._force:
            return
        size = reader.size_read()
        if samples > SAMPLES_PER_BYTE * size:
            raise UnsupportedAudio(
                f"{reader.label}, {size} bytes, states {time / self._rate:.0f} s of {self._header.channels} channels "
                f"at {self._rate} Hz, {samples * 2 / 1e9:.1f} GB: pass --force to write them, or --end for less"
            )

    def _coded_in_groups(self, reader: Reader) -> Iterator[Block]:
        """Blocks [coded channels, time]: every group of rows from the first packet to the last, one after another."""
        rows = self._header.rows
        with ExitStack() as stack:

            def opened() -> IO[bytes]:
                return stack.enter_context(temporary(reader.label))

            spans = [(first, min(rows, first + MOST_ROWS)) for first in range(0, rows, MOST_ROWS)]
            groups = [SomeRows(reader, *span, opened()) for span in spans]
            last = self._last_frame()
            for part in reader.parts(self._frame):
                for some in groups:
                    some.add(part)
                if last is not None and part.first > last:
                    break
            files: list[tuple[IO[bytes], tuple[int, ...]]] = []
            for some in groups:
                group = Restoration(some, self._model, rate=self._rate, part=self._part, **self._options)
                file = opened()
                for block in group.blocks():
                    if block.any():
                        file.write(np.ascontiguousarray(block.T, np.float32).tobytes())
                    else:  # a gap may be long
                        file.truncate(file.seek(block.nbytes, 1))
                files.append((file, (some.header.channels,)))
                self._group, self.damages = group, group.damages  # the same in all groups
            for samples in side_by_side(files, np.float32, max(1, MAX_BLOCK // self._header.coded_channels)):
                yield np.ascontiguousarray(samples.T)

    def _last_frame(self) -> int | None:
        """A frame after the last one that the part needs; None if the part ends with the recording."""
        if self._part[1] is None:
            return None
        seconds = self._part[1] / self._rate + FILTER_SECONDS
        needed = math.ceil(seconds * self._header.sample_rate) + self._header.decoder_delay
        return -(-needed // self._header.hop) + self._model.receptive_field().decoder.future + LAST_FRAMES

    def _coded(self) -> Iterator[Block]:
        """Blocks [coded channels, time]."""
        header, rate = self._header, self._rate
        first, last = self._part
        begin = self._origin * rate // header.sample_rate

        def length() -> int:
            return resampled_length(self._reader.header.time, header.source_rate, rate) - begin

        whole = _until(self._resampled(), length, self._reader, 1 + rate // header.sample_rate)
        yield from _between(whole, first - begin, None if last is None else last - begin)

    def _resampled(self) -> Iterator[Block]:
        header, begin = self._header, self._frame * self._header.hop
        resampler = Resampler(header.sample_rate, self._rate, header.coded_channels, label=self._reader.label)
        exact = _until(
            self._decoded(),
            lambda: self._reader.header.model_time - begin,
            self._reader,
            header.hop,
            least=lambda: self._reader.least_time - begin,
        )
        for block in _between(exact, self._origin - begin, None):
            yield resampler.push(block)
        yield resampler.flush()

    def _decoded(self) -> Iterator[Block]:
        for part in _regroup(self._reader, self._frame):
            if isinstance(part, Damage):
                self.damages.append(part)
            else:
                part = part._replace(codes=part.codes[:, : self._num_codebooks])
            yield from self._splicer.push(part)
        yield from self._splicer.finish()


class _Splicer:
    """Decode packets, and fill the gaps between them with silence.

    Decoding begins again after a gap, and audio of frame n begins with sample n * hop, so with packets of frames 0 to
    10 and 20 to 30:

        frames    0 ─────── 10   lost   20 ─────── 30
        samples   0 ─── 10·hop - delay ╲  0  ╱ 20·hop ─── 30·hop - delay

    The fade-out is decoded from repeated codes of the last frame, for FADE_SECONDS, with `conceal` CONCEAL_SECONDS.
    """

    def __init__(
        self, reader: Source, model: Codec, *, first_frame: int, conceal: bool, force: bool, compiled: bool
    ) -> None:
        self.intact = False
        """Whether there was a packet."""
        self._reader, self._model, self._force, self._compiled = reader, model, force, compiled
        self._header = reader.header
        spec = model.frame_spec
        self._fade = spec.samples(FADE_SECONDS)
        self._filler = spec.frames_per_packet(CONCEAL_SECONDS if conceal else FADE_SECONDS)
        self._decoder: StreamDecoder | None = None
        self._first_frame = first_frame
        self._given = first_frame * reader.header.hop  # samples, from the first of the recording
        self._silent = 0  # of them, in gaps
        self._faded_in = 0
        self._last: Packet | None = None

    def push(self, part: Packet | Damage) -> Iterator[Block]:
        """Take the next part; yield the audio before its end."""
        if isinstance(part, Packet):
            yield from self._packet(part)
        elif part.frames and self._decoder is not None:
            yield self._faded_out(min(self._filler, part.frames))

    def finish(self) -> Iterator[Block]:
        """Yield the rest, and silence up to the end if packets are missing there."""
        if self._decoder is not None:
            yield self._output(self._decoder.flush())
        if self._reader.is_complete:
            yield from self._silence(self._reader.header.model_time)

    def _packet(self, packet: Packet) -> Iterator[Block]:
        if self._decoder is None:
            yield from self._silence(packet.first * self._header.hop)
            self._decoder = StreamDecoder(
                self._model, batch=self._header.rows, first_frame=packet.first, compiled=self._compiled
            )
            self._faded_in = 0 if packet.first > self._first_frame else self._fade
        self.intact, self._last = True, packet
        header = self._header
        most = live.MAX_ROWS // header.rows if self._compiled else _block_frames(header)
        for first in range(0, packet.frames, most):  # a packet of many frames has less codes than audio
            codes = _codes(packet.cut(first, first + most))
            yield self._faded(self._output(self._decoder.push(codes)))

    def _faded_out(self, frames: int) -> Block:
        """The rest of the decoder's audio, ending in that of `frames` repeated frames."""
        assert self._decoder is not None
        assert self._last is not None
        codes, scale = self._last.codes[:, :, -1:], self._last.scale
        repeated = codes.repeat(frames, axis=2)
        filler = Packet(0, repeated, None if scale is None else scale[:, -1:].repeat(frames, axis=1))
        pushed = self._output(self._decoder.push(_codes(filler)))
        block = np.concatenate([pushed, self._output(self._decoder.flush())], axis=1)
        self._decoder = None
        fade = min(frames * self._header.hop, block.shape[1])
        block[:, block.shape[1] - fade :] *= np.linspace(1, 0, fade, endpoint=False, dtype=np.float32)
        return block

    def _faded(self, block: Block) -> Block:
        """Fade in the first samples after a gap."""
        if self._faded_in < self._fade:
            gain = (self._faded_in + np.arange(block.shape[1], dtype=np.float32)) / self._fade
            self._faded_in += block.shape[1]
            block = block * gain.clip(max=1)
        return block

    def _silence(self, end: int) -> Iterator[Block]:
        """Silence up to sample `end`. Raises UnsupportedAudio for gaps that no damage explains, without `force`."""
        decoded = (self._given - self._silent) / self._header.sample_rate
        self._silent += max(0, end - self._given)
        seconds = self._silent / self._header.sample_rate
        if seconds > MAX_SILENCE * (1 + decoded) and not self._force:
            raise UnsupportedAudio(
                f"{self._reader.label} lacks {seconds:.0f} s beside {decoded:.0f} s of audio: pass --force to write "
                "silence there"
            )
        channels = self._header.coded_channels
        while (missing := end - self._given) > 0:
            silence = np.zeros((channels, min(missing, MAX_BLOCK // channels)), np.float32)
            self._given += silence.shape[1]
            yield silence

    def _output(self, audio: Tensor) -> Block:
        block = audio.flatten(0, 1)[: self._header.coded_channels].cpu().numpy()
        self._given += block.shape[1]
        return block


def _block_frames(header: Header) -> int:
    """Frames to decode at once."""
    return header.frame_spec.frames_per_packet(BLOCK_SECONDS / header.coded_channels)


def _codes(packet: Packet) -> Tensor | Encoded:
    codes = torch.from_numpy(packet.codes)
    return codes if packet.scale is None else Encoded(codes, torch.from_numpy(packet.scale))


def _until(
    blocks: Iterator[Block],
    length: Callable[[], int],
    reader: Source,
    most: int,
    *,
    least: Callable[[], int] = lambda: 0,
) -> Iterator[Block]:
    """Yield the first `length()` samples of blocks, which have at most `most` samples more.

    A pipe states its length at the end, so until then the last `most` samples wait if they are behind the first
    `least()` samples, which the length is known to exceed.
    """
    given = 0
    rest: Block | None = None
    for block in blocks:
        rest = block if rest is None else np.concatenate([rest, block], axis=1)
        ready = (length() if reader.knows_length else max(given + rest.shape[1] - most, least())) - given
        if ready > 0:
            yield rest[:, :ready]
            given += min(ready, rest.shape[1])
            rest = rest[:, ready:]
    if rest is not None:
        yield rest[:, : length() - given] if reader.knows_length else rest


def _between(blocks: Iterator[Block], first: int, last: int | None) -> Iterator[Block]:
    """Samples `first` to `last` of blocks; no block is requested after `last`."""
    seen = 0
    for block in blocks:
        piece = block[:, max(0, first - seen) : None if last is None else max(0, last - seen)]
        seen += block.shape[1]
        if piece.shape[1]:
            yield piece
        if last is not None and seen >= last:
            return


def _regroup(reader: Source, first: int) -> Iterator[Packet | Damage]:
    """Yield packets from frame `first` on, joined to BLOCK_SECONDS, which decode 25 % faster than 1 s.

    A live pipe is not waited for; its packets come in pieces.
    """
    header = reader.header
    if not reader.seekable:
        yield from _from(reader.pieces(first), first)
        return
    most = _block_frames(header)
    waiting: list[Packet] = []
    for part in _from(reader.parts(first), first):
        if waiting and (isinstance(part, Damage) or part.codes.shape[1] != waiting[0].codes.shape[1]):
            yield _joined(waiting)
            waiting = []
        if isinstance(part, Damage):
            yield part
            continue
        waiting.append(part)
        if part.first + part.frames - waiting[0].first >= most:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _from(parts: Iterator[Packet | Damage], first: int) -> Iterator[Packet | Damage]:
    """Parts without the frames before `first`."""
    for part in parts:
        early = max(0, first - part.first)
        if early == 0:
            yield part
        elif early < part.frames and isinstance(part, Damage):
            yield part._replace(first=first, frames=part.frames - early)
        elif early < part.frames and isinstance(part, Packet):
            yield part.cut(early)


def _joined(packets: list[Packet]) -> Packet:
    """Neighboring packets with the same number of codebooks as one."""
    scales = [packet.scale for packet in packets if packet.scale is not None]
    codes = np.concatenate([packet.codes for packet in packets], axis=2)
    return Packet(packets[0].first, codes, np.concatenate(scales, axis=1) if scales else None)
