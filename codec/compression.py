"""Compress recordings to .codec files and restore them, one by one, in constant memory; `codec.folders` does many."""

import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import repeat
from pathlib import Path
from time import perf_counter
from typing import IO, BinaryIO, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt
from torch import Tensor

from codec import live, pretrained, published
from codec.errors import (
    CodecError,
    DamagedFile,
    ModelId,
    StorageError,
    UnknownModel,
    UnsupportedAudio,
    UsageError,
    WeightsMismatch,
    model_label,
)
from codec.frames import is_narrowband, resampled_length
from codec.io import audio, bitstream
from codec.io.audio import (
    INTEGER_PEAK,
    MIN_RATE,
    AudioReader,
    AudioWriter,
    Block,
    LiveOutput,
    Resampler,
    can_resample,
    clipped_later,
    looks_like_integers,
)
from codec.io.bitstream import Damage, Header, Reader, SourceId, Writer, source_id
from codec.io.coded_channels import Mix, Stereo, are_balanced, is_mid_side, mid_side
from codec.io.entropy import Choice, last_coder
from codec.io.entropy_files import SUFFIX, look_beside
from codec.io.entropy_model import find as find_network
from codec.io.pipes import Layout, Recording, open_live
from codec.io.storage import is_live_stream, is_streamed, mark_partial, other_than, output_label, stream_output
from codec.io.tags import NO_TAGS, Tags
from codec.models.base import Codec, split_scale
from codec.splicing import BLOCK_SECONDS, MAX_BLOCK, MOST_ROWS, Restoration, side_by_side, temporary
from codec.streams import StreamEncoder
from codec.variable_rate import VariableRate

SHORTEST_PACKET, LONGEST_PACKET = 0.1, 10.0  # seconds
LIVE_PACKET = 1.0  # seconds, the shortest that is chosen
LEAST_PACKETS = 20  # of a recording whose packets are longer than that: a damaged packet costs a twentieth of it
PACKET_BYTES = 2000  # of codes in coder 0: their headers take 0.8 % of ten minutes, 1.0 % where 10 s have less
BALANCE_TIME = 1 << 14  # samples of which the levels of two channels are compared
MOST_READ = 1 << 22  # samples of all channels that are read together
MIX_TOLERANCE = 1e-3  # of gains that are measured again in every recording

Model: TypeAlias = Codec | str | Path
SecondsDone: TypeAlias = Callable[[float, float | None], None]
"""Called with the seconds of a recording that are done, and its length as stated; None where it is not known."""


@dataclass(frozen=True)
class Report:
    """The result for one file.

    `time` is the length of what was encoded or restored, in samples per channel at `rate` Hz. `compressed_bytes` is the
    size of the whole .codec file, of a pipe what was read, and `coded_seconds` the duration that they hold.
    `entropy_saved` is the fraction of the codes' bytes that entropy coding saved, None after decoding. `elapsed` is the
    seconds it took, loading the model included. `notes` say what was clipped. `model_rate` is the sample rate of the
    model in Hz where the recording has less than half of it, so that it was resampled and has no content in the upper
    part of the model's band; None otherwise and after decoding.
    """

    source: str
    target: str
    channels: int
    rate: int
    time: int
    num_codebooks: int
    compressed_bytes: int
    coded_seconds: float
    elapsed: float
    entropy_saved: float | None = None
    notes: tuple[str, ...] = ()
    model_rate: int | None = None

    @property
    def seconds(self) -> float:
        """Duration of what was encoded or restored."""
        return self.time / self.rate

    @property
    def bitrate(self) -> float:
        """Rate of the whole file with all its channels, in kbit/s."""
        return self.compressed_bytes * 8 / self.coded_seconds / 1000

    @property
    def speed(self) -> float:
        """Seconds of the recording per second of work."""
        return self.seconds / self.elapsed


def compress(
    source: str | Path,
    target: str | Path,
    *,
    model: Model = pretrained.DEFAULT,
    num_codebooks: int | None = None,
    bitrate: float | None = None,
    channels: int | None = None,
    channel: int | None = None,
    use_ffmpeg: bool = False,
    force: bool = False,
    identify: bool = False,
    verify: bool = False,
    packet: float | None = None,
    entropy: Choice = "auto",
    vbr: float | None = None,
    beams: int | None = None,
    stereo: Stereo = "left-right",
    raw: Layout | None = None,
    device: str = "cpu",
    progress: SecondsDone | None = None,
) -> Report:
    """Compress a recording; "-" is standard input or output.

    `num_codebooks` is the number of codebooks; `bitrate` in kbit/s per channel selects the most codebooks within it;
    all codebooks if both are None. `channels` 1 mixes the recording down to one channel (`codec.io.mixdown`), `channel`
    takes one alone, 0 for the first. `use_ffmpeg` as in `audio.open_reader`. `force` replaces a target that exists.
    `identify` stores size and checksum of the source in the header. `verify` reads the written file back and compares
    its codes. `packet` is the length of packets in seconds, by default 1 in a pipe, and otherwise a twentieth of the
    recording, from 1 to 10, but at most that of PACKET_BYTES of codes. `entropy` is the last payload coder that is
    tried: "none", "adaptive", "model" (an error if the codec has no network for it), or "auto" for all that the codec
    has. `vbr` lets frames have different numbers of codebooks, about `vbr` on average in speech
    (`codec.variable_rate`). `beams` is the number of beams of the search for codes (`Codec.searching`), by default the
    model's. `stereo` is how two channels are coded: "left-right", "mid-side" ((left + right) / 2 and
    (left - right) / 2), or "smaller", which encodes the recording both ways and keeps the smaller file, but left and
    right where one channel is softer than the other (`codec.io.coded_channels.are_balanced`). It changes nothing where
    a recording has more or fewer channels, or one that is not coded, and for models of two channels. `raw` is the
    layout of a source without a header. `device` is for a model given by name: "cpu", "cuda", or "auto" for CUDA if it
    is available. `progress` is called after each block.

    Pipes are live: samples of a WAV or raw source are encoded as they arrive, and each packet is written once it is
    complete.

    Raises UsageError, InputNotFound, UnsupportedAudio, UnknownModel, MissingDependency, StorageError.
    """
    start = perf_counter()
    check_channels(channels, channel)
    if verify and is_streamed(target):
        raise UsageError("a pipe cannot be read back: name an output file, or leave --verify out")
    is_live = _are_live(source, target)
    with (
        _ready(model, "encode", device, is_live=is_live),
        open_live(source, raw=raw, use_ffmpeg=use_ffmpeg) as reader,
        stream_output(other_than(source, target), force=force) as file,
    ):
        if channel is not None:
            reader.select(channel)
        if channels is not None:
            reader.mix_down()
        tags, tag_notes = reader.tags()
        codec, writer = compress_into(
            reader,
            file,
            model=model,
            num_codebooks=num_codebooks,
            bitrate=bitrate,
            device=device,
            packet=LIVE_PACKET if packet is None and is_streamed(target) else packet,
            entropy=entropy,
            vbr=vbr,
            beams=beams,
            stereo=stereo,
            tags=tags,
            source=source_id(source, channels=selected_channels(channels, channel)) if identify else None,
            is_live=is_live,
            progress=progress,
        )
        if verify:
            file.seek(0)
            _verify(Reader(file, label=str(target)), writer)
    return Report(
        source=reader.label,
        target=str(target),
        channels=reader.channels,
        rate=reader.rate,
        time=writer.header.time,
        num_codebooks=writer.header.num_codebooks,
        compressed_bytes=writer.size,
        coded_seconds=writer.header.seconds,
        entropy_saved=1 - writer.coded_bytes / writer.packed_bytes if writer.packed_bytes else 0.0,
        elapsed=perf_counter() - start,
        notes=(*notes_on(reader, codec, writer.header, bitrate), *tag_notes),
        model_rate=codec.sample_rate if is_narrowband(reader.rate, codec.sample_rate) else None,
    )


def _are_live(source: str | Path, target: str | Path) -> bool:
    """Whether somebody waits for what is made of the first samples while the last ones are to come."""
    return is_live_stream(source, sys.stdin) and is_live_stream(target, sys.stdout)


@contextmanager
def _ready(model: Model, job: Literal["encode", "decode"], device: str, *, is_live: bool) -> Iterator[Codec | None]:
    """With `is_live`, share the cores as `live.sharing_cores`, and load a model before the first sample comes.

    Gives the model if it was loaded.
    """
    codec = None
    with live.sharing_cores(is_live):
        if is_live:
            with suppress(CodecError):  # which comes again where the model is needed; a file may need another one
                codec = cached_model(model, device)
                live.prepare(codec, job)
        yield codec


def notes_on(reader: Recording, codec: Codec, header: Header, bitrate: float | None) -> tuple[str, ...]:
    """What is unusual in a recording that was encoded to a file of this header, and in the bit rate asked for."""
    peaks = peak_notes(reader.label, reader.peak, limit_of(header, codec))
    return (*reader.notes, *peaks, *_bitrate_notes(codec, bitrate))


def _bitrate_notes(codec: Codec, bitrate: float | None) -> tuple[str, ...]:
    """What a bit rate is beyond the model, if it is."""
    most = codec.frame_spec.bitrate(codec.num_codebooks)
    if bitrate is None or bitrate <= most:
        return ()
    return (f"{bitrate:g} kbit/s is more than the model has: all {codec.num_codebooks} codebooks are {most:g} kbit/s",)


def check_channels(channels: int | None, channel: int | None) -> None:
    """Raise UsageError unless a recording is to keep its channels, to be mixed down to one, or to give one alone."""
    if channels not in (None, 1):
        raise UsageError(f"{channels} channels: 1 mixes a recording down; without it, all its channels are kept")
    if channels is not None and channel is not None:
        raise UsageError(f"all channels mixed down to 1, and channel {channel} alone: ask for one of the two")


def check_stereo(stereo: str) -> None:
    """Raise UsageError for what is not a Stereo."""
    if stereo not in get_args(Stereo):
        raise UsageError(f"stereo is {stereo!r}: it is one of {', '.join(get_args(Stereo))}")


def settings_of(codec: Codec, *, vbr: float | None, beams: int | None) -> str:
    """What changes the codes of a recording beside the model, the codebooks and the channels; empty for the defaults.

    As it is stored in the header.
    """
    settings = [] if vbr is None else [f"vbr {vbr:g}"]
    if beams not in (None, codec.beam_size):
        settings.append(f"beams {beams}")
    return ", ".join(settings)


def with_stereo(settings: str, header: Header, stereo: Stereo) -> str:
    """The settings with how two channels are coded, if the recording of this header has a choice."""
    if stereo == "left-right" or not _is_stereo(header):
        return settings
    return f"{settings}, stereo {stereo}" if settings else f"stereo {stereo}"


def _is_stereo(header: Header) -> bool:
    """Whether there are two channels, which are coded one by one."""
    return header.channels == header.coded_channels == 2 and header.model_channels == 1


def selected_channels(channels: int | None, channel: int | None) -> str:
    """The part of a recording that is encoded, as it counts for `bitstream.source_id`; empty for all channels."""
    return "mixed down" if channels is not None else "" if channel is None else f"channel {channel}"


def _verify(reader: Reader, writer: Writer) -> None:
    """Raise StorageError unless a file holds what was given to its writer."""
    found = hashlib.blake2b()
    for part in reader.parts():
        if isinstance(part, Damage):
            break
        bitstream.update_digest(found, part.codes)
    if reader.header != writer.header or found.digest() != writer.digest.digest():
        raise StorageError(f"{reader.label} was not written as it was encoded: check the disk and the memory")


def limit_of(header: Header, model: Codec) -> float:
    """The largest sample that comes back unclipped: neither mid nor side exceeds the larger of left and right."""
    return model.limit * max((abs(factor) for row in header.mix for factor in row), default=1.0)


def peak_notes(label: str, peak: float, limit: float) -> tuple[str, ...]:
    """What becomes of samples beyond full scale, if there are any."""
    if peak > INTEGER_PEAK:
        return (f"{label} {looks_like_integers(peak)}",)
    if peak > limit:
        return (f"{label} {clipped_later(peak, limit)}",)
    return ()


def compress_into(
    reader: Recording,
    file: BinaryIO,
    *,
    model: Model,
    num_codebooks: int | None,
    bitrate: float | None,
    device: str,
    packet: float | None = None,
    entropy: Choice = "auto",
    vbr: float | None = None,
    beams: int | None = None,
    stereo: Stereo = "left-right",
    tags: Tags = NO_TAGS,
    source: SourceId | None = None,
    like: Header | None = None,
    is_live: bool = False,
    progress: SecondsDone | None = None,
) -> tuple[Codec, Writer]:
    """Compress an open recording to a file, from the first byte to the last; return the model and the closed writer.

    `packet` is the length of packets in seconds as in `compress`, `source` the identity of the recording's file, if it
    is one, `tags` those of the recording. The sample rate and the mix of the channels are those of `like`, a header, if
    given. `entropy`, `vbr`, `beams` and `stereo` as in `compress`. With `is_live`, nothing is read before all is ready
    to encode it, a few frames at a time.
    """
    check_stereo(stereo)
    if packet is not None and not SHORTEST_PACKET <= packet <= LONGEST_PACKET:
        raise UsageError(f"packets of {packet:g} s: use {SHORTEST_PACKET:g} to {LONGEST_PACKET:g} s")
    if reader.rate > bitstream.MAX_RATE:
        raise UnsupportedAudio(
            f"{reader.label} has a sample rate of {reader.rate} Hz: resample it to {bitstream.MAX_RATE} Hz or less"
        )
    codec = cached_model(model, device)
    num_codebooks = codec.codebooks_for(num_codebooks, bitrate)
    codec.check_beams(beams)
    if like is not None:
        stereo = "mid-side" if is_mid_side(like.mix) else "left-right"
    may_mix = codec.channels == 1 and (like is None or (like.mix != () and stereo == "left-right"))
    mix = reader.survey(codec.limit) if isinstance(reader, AudioReader) and may_mix else None
    coded = len(mix.coded) if mix else reader.channels
    header = replace(
        header_of(
            codec, reader.rate, coded, num_codebooks, packet, average=vbr, seconds=(reader.time or 0) / reader.rate
        ),
        channels=reader.channels,
        mix=mix.matrix if mix else (),
        time=reader.time or 0,
        sample_format=reader.subtype,
        settings=settings_of(codec, vbr=vbr, beams=beams),
        source=source,
        tags=tags,
    )
    ways = [(header, mix)]
    if stereo != "left-right" and _is_stereo(header):
        header = replace(header, settings=with_stereo(header.settings, header, stereo))
        both = mid_side(like.mix[0][0] if like else mix.gain if mix else 1.0)
        other = replace(header, mix=both.matrix), both
        ways = [other] if stereo == "mid-side" else [(header, mix), other]
    if like is not None:
        ways = [(_like(header, like, label=reader.label), mix) for header, mix in ways]
    coder = last_coder(entropy)
    if entropy == "model" and find_network(header.weights_hash, header.codebook_sizes) is None:
        name = codec.name or "this model"
        raise UsageError(
            f"{name} has no network for entropy coding, {name}{SUFFIX} for its weights beside its file: "
            "use --entropy auto"
        )
    in_groups = isinstance(reader, AudioReader) and header.rows > MOST_ROWS

    def write(file: BinaryIO, header: Header, mix: Mix | None, progress: SecondsDone | None) -> Writer:
        """Encode the recording with this mix of its channels."""
        writer = Writer(file, header, coder=coder, is_live=is_live and not in_groups)
        encoding = _Encoding(reader, codec, mix=mix, num_codebooks=num_codebooks, vbr=vbr, is_live=is_live)
        if isinstance(reader, AudioReader) and in_groups:
            codes = encoding.in_groups(reader, header, progress)
        else:
            codes = encoding.of_channels(slice(0, coded), progress)
        for part in codes:
            writer.write(*part, is_end=encoding.is_end)
        writer.close(time=resampled_length(encoding.time, reader.rate, header.source_rate))
        return writer

    with codec.searching(beams):
        if is_live:
            live.take_threads(codec)
        if len(ways) == 1:
            return codec, write(file, *ways[0], progress)
        return codec, _smallest(reader, file, ways, write, progress)


def _smallest(
    reader: Recording,
    file: BinaryIO,
    ways: Sequence[tuple[Header, Mix | None]],
    write: Callable[[BinaryIO, Header, Mix | None, SecondsDone | None], Writer],
    progress: SecondsDone | None,
) -> Writer:
    """Write a recording with each mix to a temporary file, and copy the smallest one; return its writer.

    The first way alone for channels that are not balanced. Raises UsageError for a recording that can be read once.
    """
    if not isinstance(reader, AudioReader):
        raise UsageError(
            f"{reader.label} is read once, and --stereo smaller encodes a recording twice: give it as a file with a "
            "header, or name left-right or mid-side"
        )
    if not are_balanced(reader.blocks(BALANCE_TIME)):
        ways = ways[:1]
    reader.rewind()
    with ExitStack() as stack:
        written = []
        for number, way in enumerate(ways):
            if number:
                reader.rewind()
            part = cast(BinaryIO, stack.enter_context(temporary(reader.label)))
            done = None if progress is None else partial(_part_done, progress, number / len(ways), 1 / len(ways))
            written.append((write(part, *way, done), part))
        writer, smallest = min(written, key=lambda each: each[0].size)
        smallest.seek(0)
        shutil.copyfileobj(smallest, file)
    return writer


Coded: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32] | None]
"""Codes [rows, codebooks, frames], and their scale [rows, frames] if the model has one."""


class _Encoding:
    """The codes of an open recording; `time` counts its samples once they are read."""

    def __init__(
        self,
        reader: Recording,
        codec: Codec,
        *,
        mix: Mix | None,
        num_codebooks: int,
        vbr: float | None,
        is_live: bool,
    ) -> None:
        self.time = 0
        self.is_end = False
        """Whether the recording may end before the codes that were given last do."""
        self._reader, self._codec, self._mix = reader, codec, mix
        self._num_codebooks, self._vbr, self._is_live = num_codebooks, vbr, is_live

    def of_channels(self, channels: slice, progress: SecondsDone | None = None) -> Iterator[Coded]:
        """The codes of some of the coded channels, from the first sample of the recording to the last."""
        reader, codec = self._reader, self._codec
        count = channels.stop - channels.start
        options = {"num_codebooks": self._num_codebooks, "batch": -(-count // codec.channels)}
        encoder: StreamEncoder | VariableRate
        if self._vbr is None:
            encoder = StreamEncoder(codec, **options, compiled=self._is_live)
        else:
            encoder = VariableRate(codec, **options, quality=self._vbr)
        resampler = Resampler(reader.rate, codec.sample_rate, count, label=reader.label)
        most = _block_time(2 * codec.sample_rate, count)  # a short block at a low rate may be long at the model's

        def encoded(block: Block) -> Iterator[Coded]:
            for first in range(0, block.shape[1], most):
                yield _arrays(encoder.push(_rows(block[:, first : first + most], codec.channels)))

        self.time = 0
        for block in reader.blocks(min(_block_time(reader.rate, count), max(1, MOST_READ // reader.channels))):
            self.time += block.shape[1]
            coded = self._mix.coded_block(block) if self._mix else block
            yield from encoded(resampler.push(coded[channels]))
            if progress is not None:
                progress(self.time / reader.rate, reader.time and reader.time / reader.rate)
        yield from encoded(resampler.flush())
        self.is_end = True
        yield _arrays(encoder.flush())

    def in_groups(self, reader: AudioReader, header: Header, progress: SecondsDone | None) -> Iterator[Coded]:
        """The codes of all channels, whose groups are encoded one after another to temporary files.

        Because resampler and encoder keep a state of every channel.
        """
        width, coded = self._codec.channels, header.coded_channels
        with ExitStack() as stack:
            codes_files: list[tuple[IO[bytes], tuple[int, ...]]] = []
            scale_files: list[tuple[IO[bytes], tuple[int, ...]]] = []
            for first in range(0, header.rows, MOST_ROWS):
                rows = min(MOST_ROWS, header.rows - first)
                codes_file = stack.enter_context(temporary(reader.label))
                codes_files.append((codes_file, (rows, header.num_codebooks)))
                if header.segment_frames:
                    scale_files.append((stack.enter_context(temporary(reader.label)), (rows,)))
                channels = slice(first * width, min((first + rows) * width, coded))
                done = (
                    None if progress is None else partial(_part_done, progress, first / header.rows, rows / header.rows)
                )
                if first:
                    reader.rewind()
                for codes, scale in self.of_channels(channels, done):
                    codes_file.write(codes.transpose(2, 0, 1).astype(np.int32).tobytes())
                    if scale is not None:
                        scale_files[-1][0].write(scale.T.astype(np.float32).tobytes())
            frames = header.frames_per_packet
            scales = side_by_side(scale_files, np.float32, frames) if scale_files else repeat(None)
            for part, scale in zip(side_by_side(codes_files, np.int32, frames), scales, strict=False):
                yield part.transpose(1, 2, 0).astype(np.int64), None if scale is None else scale.T


def _arrays(encoded: Tensor) -> Coded:
    codes, scale = split_scale(encoded)
    return codes.cpu().numpy(), None if scale is None else scale.cpu().numpy()


def _part_done(progress: SecondsDone, before: float, share: float, done: float, total: float | None) -> None:
    """Report the seconds of one of several passes over a recording."""
    progress(done if total is None else total * before + done * share, total)


def _like(header: Header, like: Header, *, label: str) -> Header:
    """A header with the sample rate and the mix of another one. Raises UsageError for other channels."""
    if header.channels != like.channels:
        way_out = "--channels 1 mixes it down" if like.channels == 1 else "give it as many"
        raise UsageError(f"{label} has {header.channels} channels, the file has {like.channels}: {way_out}")
    if np.shape(header.mix) != np.shape(like.mix) or not np.allclose(header.mix, like.mix, rtol=MIX_TOLERANCE):
        raise UsageError(
            f"the channels of {label} are not mixed as those of the file ({like.mix}): encode it as a file of its own"
        )
    time = resampled_length(header.time, header.source_rate, like.source_rate)
    return replace(header, source_rate=like.source_rate, time=time, mix=like.mix)


def decompress(
    source: str | Path,
    target: str | Path,
    *,
    model: Model | None = None,
    rate: int | None = None,
    subtype: str | None = None,
    start: float = 0.0,
    end: float | None = None,
    num_codebooks: int | None = None,
    strict: bool = False,
    conceal: bool = False,
    bare: bool = False,
    force: bool = False,
    device: str = "cpu",
    progress: SecondsDone | None = None,
) -> Report:
    """Restore a recording with its channels, length and sample rate (or `rate` Hz); "-" is standard input or output.

    The file names its model; pass `model` if that is not a shipped one. `subtype` is the sample format, as in
    `audio.open_writer`; by default floating point if the source had it and the target can hold it. Only the audio from
    `start` to `end` seconds is restored; its samples are those of the whole. `num_codebooks` is the number of codebooks
    to decode, all if None. Packets that are damaged become silence with short fades, with `conceal` after 0.12 s of the
    model's own continuation; `strict` refuses them. `force`, `device` and `progress` as in `compress`; `force` also
    writes silence that is out of proportion to the audio.

    Pipes are live: a packet is decoded once it has come. Standard output is 16-bit WAV, with `bare` samples without a
    header.

    Raises UsageError, InputNotFound, UnsupportedAudio, UnknownModel, WeightsMismatch, StorageError, and DamagedFile
    after everything intact was written to the target; without intact audio, and with `strict`, there is no target.
    """
    began = perf_counter()
    is_live = _are_live(source, target)
    likely = model or pretrained.DEFAULT
    with _ready(likely, "decode", device, is_live=is_live) as loaded, bitstream.open_reader(source) as reader:
        header = reader.header
        rate, time = restored_size(reader, rate)
        part = part_of(reader, start, end, rate=rate, time=time)
        end_at = time if part[1] is None else part[1]
        time = None if end_at is None else end_at - part[0]
        codec = model_of(reader, model, device)
        damage = None
        target = other_than(source, target)
        compiled = is_live and header.rows <= live.MAX_ROWS
        if is_live:
            live.take_threads(codec)
        if compiled and codec is not loaded:
            live.prepare(codec, "decode")
        subtype = subtype or float_subtype(header, target)
        with _output(
            target, rate, header.channels, subtype=subtype, time=time, bare=bare, force=force, tags=header.tags
        ) as writer:
            try:
                time = restore_into(
                    reader,
                    writer,
                    codec=codec,
                    rate=rate,
                    part=part,
                    num_codebooks=num_codebooks,
                    strict=strict,
                    conceal=conceal,
                    force=force,
                    compiled=compiled,
                    progress=None if progress is None else partial(_seconds_done, progress, rate, time),
                )
            except DamagedFile as error:
                if strict or error.seconds_decoded is None:
                    raise
                damage = error.with_output(output_label(target))
        if damage is not None:
            mark_partial(target)
            raise damage
        size = reader.size_read()
    return Report(
        source=reader.label,
        target=str(target),
        channels=header.channels,
        rate=rate,
        time=time or 0,
        num_codebooks=min(header.num_codebooks, num_codebooks or header.num_codebooks),
        compressed_bytes=size,
        coded_seconds=header.seconds if reader.seekable else (part[0] + (time or 0)) / rate,
        elapsed=perf_counter() - began,
        notes=(*writer.clip_notes(), *writer.notes),
    )


def _seconds_done(progress: SecondsDone, rate: int, time: int | None, done: int) -> None:
    progress(done / rate, time and time / rate)


def float_subtype(header: Header, target: str | Path) -> str | None:
    """Floating point for a recording that had it, if the target's format has it; None for the default."""
    if header.sample_format not in ("FLOAT", "DOUBLE") or str(target) == "-":
        return None
    return "FLOAT" if audio.can_hold(Path(target).suffix.lower(), "FLOAT") else None


def _output(
    target: str | Path,
    rate: int,
    channels: int,
    *,
    subtype: str | None,
    time: int | None,
    bare: bool,
    force: bool,
    tags: Tags,
) -> AbstractContextManager[AudioWriter | LiveOutput]:
    if str(target) == "-" and subtype in (None, "PCM_16"):
        return LiveOutput(rate=rate, channels=channels, bare=bare, time=time)
    if bare:
        raise UsageError("samples without a header are 16 bits on standard output: name - as OUTPUT, without --subtype")
    return audio.open_writer(target, rate=rate, channels=channels, subtype=subtype, force=force, time=time, tags=tags)


def restored_size(reader: Reader, rate: int | None) -> tuple[int, int | None]:
    """The sample rate and the samples per channel of the restored recording, at `rate` Hz or the source's rate.

    The samples are None for a pipe that states its length at the end.

    Raises UsageError for a rate that no file can have or that is too far from the model's; UnsupportedAudio if the
    source's rate is such a rate, or the file has 0 samples.
    """
    if rate is not None and not MIN_RATE <= rate <= bitstream.MAX_RATE:
        raise UsageError(f"a sample rate of {rate} Hz cannot be written: use {MIN_RATE} to {bitstream.MAX_RATE} Hz")
    header = reader.header
    if reader.knows_length and not header.time:
        damages = reader.check()
        raise reader.damaged_in(damages, intact=False) if damages else _nothing_to_restore(reader)
    stated, rate = rate, rate or header.source_rate
    if rate < MIN_RATE or not can_resample(header.sample_rate, rate):
        error = UnsupportedAudio if stated is None else UsageError
        raise error(
            f"{reader.label} cannot be restored at {rate} Hz from codes of audio at {header.sample_rate} Hz: "
            f"pass --rate {header.sample_rate}"
        )
    return rate, resampled_length(header.time, header.source_rate, rate) if reader.knows_length else None


def part_of(reader: Reader, start: float, end: float | None, *, rate: int, time: int | None) -> tuple[int, int | None]:
    """The samples from `start` to `end` seconds at `rate` Hz, of `time` in all if that is known; None for the end.

    Raises UsageError for seconds that are not in the recording.
    """
    most = math.inf if time is None else time / rate
    if not 0 <= start < min(most, math.inf if end is None else end):
        until = "" if end is None else f" to {end:g} s"
        length = "" if time is None else f", and {reader.label} has {most:.3f} s"
        raise UsageError(f"from {start:g} s{until} is not a part: --start is before --end{length}")
    first = round(start * rate)
    last = None if end is None or end >= most else round(end * rate)  # up to the end, its damage is read too
    return first if time is None else min(first, time - 1), last


def _nothing_to_restore(reader: Reader) -> UnsupportedAudio:
    return UnsupportedAudio(f"{reader.label} has no samples (0 s): there is nothing to restore")


def restore_into(
    reader: Reader,
    writer: AudioWriter | LiveOutput,
    *,
    codec: Codec,
    rate: int,
    part: tuple[int, int | None] = (0, None),
    num_codebooks: int | None = None,
    strict: bool = False,
    conceal: bool = False,
    force: bool = False,
    compiled: bool = False,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write the audio of an open .codec file at `rate` Hz; return the samples per channel. Options as in `decompress`.

    `part` is from and to in samples at `rate` Hz, `compiled` as in `StreamDecoder`; `progress` is called with the
    samples done. Raises DamagedFile after everything intact was written, or with `strict` at the first damage.
    """
    restoration = Restoration(
        reader,
        codec,
        rate=rate,
        part=part,
        num_codebooks=num_codebooks,
        conceal=conceal,
        force=force,
        compiled=compiled,
    )
    written = 0
    for block in restoration.blocks():
        if strict and restoration.damages:
            break
        writer.write(block)
        written += block.shape[1]
        if progress is not None:
            progress(written)
    if damages := restoration.damages:
        raise reader.damaged(damages[0]) if strict else reader.damaged_in(damages, intact=restoration.is_intact)
    if not written:
        raise _nothing_to_restore(reader)
    return written


def cached_model(model: Model, device: str) -> Codec:
    """Load a model once for all calls in this process that name the same file. Raises as `pretrained.load`."""
    if not isinstance(model, Codec):
        path = pretrained.find(model)
        model = _loaded(path, path.stat().st_mtime_ns, device)
    look_beside(model.path, model.weights_hash)  # a model may come from another process
    return model


@lru_cache(maxsize=2)
def _loaded(path: Path, modified: int, device: str) -> Codec:
    """Load a model file; one with another modification time (ns) is loaded again."""
    return pretrained.load_file(path, device)


def model_of(reader: Reader, model: Model | None, device: str) -> Codec:
    """The model that made a file: `model`, or the shipped model that the file names."""
    header = reader.header
    made_by = (header.model, header.weights_hash)
    if model is None:
        model = _named_model(reader.label, made_by)
    codec = cached_model(model, device)
    if codec.weights_hash != header.weights_hash:
        release = pretrained.EARLIER.get(header.weights_hash)
        older = f"release {release} of codec decodes it; or " if release else ""
        raise WeightsMismatch(
            reader.label,
            made_by=made_by,
            given=(codec.name, codec.weights_hash),
            way_out=f"{older}pass --model with the file of the model that made it",
        )
    if not _is_of(header, codec):
        raise DamagedFile(reader.label, offset=0, reason="its header contradicts the model that made it")
    return codec


def _named_model(label: str, made_by: ModelId) -> Model:
    """The model that a file names if it is shipped, published and fetched before, or a run in the folder `runs`.

    A file must not choose a path to load, or start a download; a run is found by its weights.
    """
    name, weights_hash = made_by
    if name in pretrained.names():
        return str(name)
    if not published.is_name(str(name)):
        if weights_hash is not None and (run := pretrained.find_run(weights_hash)) is not None:
            return run
        raise UnknownModel(
            f"{label} was made by {model_label(made_by)}, which is not shipped: "
            "pass --model with its file or its run's folder"
        )
    if not published.cached(str(name)):
        raise UnknownModel(f"{label} was made by {name}, which is not on this machine: pass --model {name} to fetch it")
    return str(name)


def _is_of(header: Header, model: Codec) -> bool:
    """Whether a header has the sizes of the model; version 1 does not name the family."""
    spec = model.frame_spec
    stated = header.sample_rate, header.hop, header.decoder_delay, header.model_channels, header.segment_frames
    true = spec.sample_rate, spec.hop, spec.decoder_delay, model.channels, model.segment_frames
    prefix = model.codebook_sizes[: header.num_codebooks]
    return stated == true and header.codebook_sizes == prefix and header.family in ("", model.config.family)


def header_of(
    model: Codec,
    rate: int,
    channels: int,
    num_codebooks: int,
    packet: float | None = None,
    *,
    average: float | None = None,
    seconds: float = 0.0,
) -> Header:
    """The header of a file with this model's codes; `rate` and `channels` are the source's, `packet` is in seconds.

    Without `packet`, packets are as long as PACKET_BYTES of codes, with `average` codebooks if they vary, but not
    longer than LIVE_PACKET or one of LEAST_PACKETS parts of the recording's `seconds`, whichever is longer, and all
    packets of the recording are about equally long.

    Raises UsageError if the model has no weights hash.
    """
    if model.weights_hash is None:
        raise UsageError("this model was never saved, so a file cannot name its weights: save and load it first")
    spec = model.frame_spec
    rows, segment = -(-channels // model.channels), max(1, model.segment_frames)
    is_default = packet is None
    if packet is None:
        typical = num_codebooks if average is None else min(num_codebooks, max(1, round(average)))
        wanted = 8 * PACKET_BYTES / 1000 / (rows * spec.bitrate(typical))
        packet = max(LIVE_PACKET, min(wanted, LONGEST_PACKET, seconds / LEAST_PACKETS))
    frames = spec.frames_per_packet(packet)
    if is_default and (total := spec.frames(spec.samples(seconds))):
        frames = spec.frames_per_equal_packet(packet, frames=total)
    frames = min(frames, bitstream.MAX_CODES // (rows * num_codebooks))
    return Header(
        family=model.config.family,
        model=model.name or "",
        weights_hash=model.weights_hash,
        source_rate=rate,
        channels=channels,
        sample_rate=spec.sample_rate,
        hop=spec.hop,
        decoder_delay=spec.decoder_delay,
        codebook_sizes=model.codebook_sizes[:num_codebooks],
        frames_per_packet=max(1, frames // segment) * segment,
        model_channels=model.channels,
        segment_frames=model.segment_frames,
    )


def _rows(block: Block, channels: int) -> Block:
    """A block [channels, time] as rows of the batch [rows, the model's channels, time]; the last channel fills up."""
    missing = -len(block) % channels
    if missing:
        block = np.concatenate([block, block[-1:].repeat(missing, axis=0)])
    return block.reshape(len(block) // channels, channels, block.shape[1])


def _block_time(rate: int, channels: int) -> int:
    return max(1, min(round(BLOCK_SECONDS * rate / channels), MAX_BLOCK))
