"""Change .codec files on their codes alone, without a model: fewer codebooks, a part, several files as one.

Packets that stay as they are are copied without being decoded. `append` encodes a recording first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np

from codec.errors import UsageError
from codec.frames import Narrowband, resampled_length
from codec.io.bitstream import Damage, Header, Packet, Reader, Writer, open_reader
from codec.io.coded_channels import is_mid_side
from codec.io.entropy import MODEL, Choice, last_coder
from codec.io.locks import claimed
from codec.io.mixdown import Note
from codec.io.pipes import Layout, open_live
from codec.io.storage import atomic_output, is_streamed, other_than, output_label, storing, stream_output

if TYPE_CHECKING:
    from codec.compression import Model, SecondsDone

MAX_SECONDS = 2**64  # as many as a file has samples at most

_ALIKE = "weights_hash", "family", "source_rate", "channels", "mix", "sample_rate", "hop", "segment_frames"


def transcode(
    source: str | Path,
    target: str | Path,
    *,
    num_codebooks: int | None = None,
    bitrate: float | None = None,
    start: float = 0.0,
    end: float | None = None,
    entropy: Choice = "auto",
    force: bool = False,
) -> Header:
    """Write a .codec file with the first codebooks or a part of another one; return its header.

    `num_codebooks` is their number; `bitrate` in kbit/s per channel selects the most within it; all if both are None.
    `entropy` is the last payload coder that is tried for packets that change, and the last one that others may have.
    The part begins with the frame that contains `start` seconds and ends before `end`. Its decoder begins without the
    frames before, so its first frames differ from those of the whole, within the receptive field. "-" is standard input
    or output.

    Raises UsageError, ConfigError, InputNotFound, UnsupportedAudio, StorageError, and DamagedFile for any damage: after
    the output was written if no audio is lost, for example of a damaged header or end; the output is without it.
    """
    if not 0 <= start < MAX_SECONDS or not 0 < (1.0 if end is None else end) < MAX_SECONDS:
        raise UsageError(f"from {start:g} to {end} s is not a part: --start is before --end")
    target, coder = other_than(source, target), last_coder(entropy)
    with open_reader(source) as reader:
        count = _codebooks(reader.header, num_codebooks, bitrate)
        header = replace(reader.header, codebook_sizes=reader.header.codebook_sizes[:count], source=None)
        if coder < MODEL:
            header = replace(header, network="")
        first = math.floor(start * header.sample_rate) // header.hop
        first = first // max(1, header.segment_frames) * max(1, header.segment_frames)
        begin = resampled_length(first * header.hop, header.sample_rate, header.source_rate)
        last = None if end is None else round(end * header.source_rate)
        if last is not None and last <= begin:
            raise UsageError(f"from {start:g} to {end} s is not a part: --start is before --end")
        is_part = first > 0 or last is not None
        harmless: list[Damage] = []
        with stream_output(target, force=force) as file:
            declared = _part_time(reader.header, begin, last) if reader.is_complete else 0
            writer = Writer(file, replace(header, time=max(0, declared)) if is_part else header, coder=coder)
            stop = None if last is None else first + _frames(header, last - begin)
            for whole in reader.coded(first, harmless=harmless):
                packet = reader.thinned(whole, count)
                early = max(0, first - packet.first)
                late = packet.frames if stop is None else min(packet.frames, stop - packet.first)
                if late - early == packet.frames and packet.num_codebooks <= count and packet.coder <= coder:
                    writer.copy(packet)
                elif late > early:  # the rest is read for its end
                    cut = reader.unpacked(packet).cut(early, late)
                    writer.write(cut.codes[:, :count], cut.scale)
            time = _part_time(reader.header, begin, last)
            if time <= 0:
                raise UsageError(f"{reader.label} has {reader.header.seconds:.3f} s, so no audio from {start:g} s on")
            writer.close(time=time)
            damaged = reader.damaged_in(harmless, intact=True) if harmless else None
            if damaged is not None and damaged.lost:  # a truncated file lacks packets that its header declares
                raise damaged
        if damaged is not None:
            raise damaged.with_output(output_label(target), mended=True)
    return writer.header


def _part_time(header: Header, begin: int, last: int | None) -> int:
    """Samples of a part from sample `begin` to `last`; none or less if the recording ends before it."""
    return (header.time if last is None else min(last, header.time)) - begin


def concat(sources: Sequence[str | Path], target: str | Path, *, force: bool = False) -> Header:
    """Write .codec files one after another as one file; return its header.

    All must have the same model, sample rate and channels; each keeps its number of codebooks. Between two recordings,
    up to a hop and the decoder's delay of silence remain, because frames are not divided; of a model with segments, up
    to a segment of the last frame. With `force`, the target may be one of the sources: it is replaced once the new file
    is complete.

    Raises UsageError, InputNotFound, UnsupportedAudio, StorageError, and DamagedFile for any damage.
    """
    if not force:
        for source in sources:
            other_than(source, target)
    with stream_output(target, force=force) as file, ExitStack() as stack:
        return _joined([stack.enter_context(open_reader(source)) for source in sources], file)


def append(
    source: str | Path,
    target: str | Path,
    *,
    model: Model | None = None,
    num_codebooks: int | None = None,
    bitrate: float | None = None,
    channels: int | None = None,
    channel: int | None = None,
    use_ffmpeg: bool = False,
    entropy: Choice = "auto",
    vbr: float | None = None,
    beams: int | None = None,
    raw: Layout | None = None,
    device: str = "cpu",
    progress: SecondsDone | None = None,
    note: Note | None = None,
) -> Header:
    """Encode a recording and add it to the end of a .codec file, as `concat`; return the header of the whole.

    It has the file's model, sample rate, to which it is resampled, and channels, coded as there (left and right, or mid
    and side), and by default its number of codebooks.
    The file is replaced once the new one is complete, so it is whole at any time; of two calls at once, the second one
    waits. Options as in `codec.compression.compress`. `note` is called with a line for everything unusual in the
    recording, at last: channels that cancel, samples that are clipped, less than half of the model's sample rate.

    `model` is needed if the file's is neither shipped nor in the folder `runs`. Raises as `compress` and `concat`, and
    UsageError for a recording whose channels are not those of the file.
    """
    from codec.compression import check_channels, compress_into, model_of, notes_on  # torch, which no other needs

    check_channels(channels, channel)
    if is_streamed(target):
        raise UsageError("a recording is appended to a file, not to a pipe: name the file")
    other_than(source, target)
    with (
        storing(target),
        claimed(Path(target).resolve(), wait=True),
        TemporaryFile() as coded,
        open_live(source, raw=raw, use_ffmpeg=use_ffmpeg) as reader,
    ):
        if channel is not None:
            reader.select(channel)
        if channels is not None:
            reader.mix_down()
        with open_reader(target) as whole:
            header, codec = whole.header, model_of(whole, model, device)
        codec, writer = compress_into(
            reader,
            cast(BinaryIO, coded),
            model=codec,
            num_codebooks=header.num_codebooks if num_codebooks is None and bitrate is None else num_codebooks,
            bitrate=bitrate,
            device=device,
            entropy=entropy,
            vbr=vbr,
            beams=beams,
            like=header,
            progress=progress,
        )
        coded.seek(0)
        with atomic_output(target, force=True) as file, open_reader(target) as whole:
            header = _joined([whole, Reader(cast(BinaryIO, coded), label=reader.label)], file)
        if note is not None:
            narrowband = Narrowband()
            narrowband.add(reader.label, reader.rate, codec.sample_rate)
            for line in (*notes_on(reader, codec, writer.header, bitrate), *narrowband.notes("file")):
                note(line)
        return header


def _joined(readers: Sequence[Reader], file: BinaryIO) -> Header:
    header = _common(readers)
    writer = Writer(file, replace(header, time=_joined_time(readers)))
    time = 0
    for number, reader in enumerate(readers, start=1):
        # rounded down, because rounded up the frames might not hold the samples
        before = writer.frames * header.hop * header.source_rate // header.sample_rate
        for packet in reader.coded():
            padding = -packet.frames % header.segment_frames if header.segment_frames and number < len(readers) else 0
            if padding or (packet.coder == MODEL and reader.header.network != header.network):
                unpacked = _padded(reader.unpacked(packet), padding)
                writer.write(unpacked.codes, unpacked.scale)
            else:
                writer.copy(packet)
        time = before + reader.header.time
    writer.close(time=time)
    return writer.header


def _joined_time(readers: Sequence[Reader]) -> int:
    """Samples of all files; 0 if that is not known before they are read."""
    header = readers[0].header
    if header.segment_frames or not all(reader.is_complete for reader in readers):
        return 0
    frames = sum(reader.header.frames for reader in readers[:-1])
    return frames * header.hop * header.source_rate // header.sample_rate + readers[-1].header.time


def _padded(packet: Packet, frames: int) -> Packet:
    """A packet whose last frame is repeated."""
    codes = np.concatenate([packet.codes, packet.codes[:, :, -1:].repeat(frames, axis=2)], axis=2)
    scale = packet.scale
    if scale is not None:
        scale = np.concatenate([scale, scale[:, -1:].repeat(frames, axis=1)], axis=1)
    return packet._replace(codes=codes, scale=scale)


def _codebooks(header: Header, num_codebooks: int | None, bitrate: float | None) -> int:
    if num_codebooks is not None and bitrate is not None:
        raise UsageError("--codebooks and --bitrate both set the rate: pass one of the two")
    if bitrate is not None:
        return header.frame_spec.codebooks_for_bitrate(bitrate)
    if num_codebooks is None:
        return header.num_codebooks
    if not 1 <= num_codebooks <= header.num_codebooks:
        raise UsageError(f"{num_codebooks} codebooks of {header.num_codebooks}: ask for 1 to {header.num_codebooks}")
    return num_codebooks


def _frames(header: Header, time: int) -> int:
    return header.frame_spec.frames(replace(header, time=time).model_time)


def _common(readers: Sequence[Reader]) -> Header:
    """A header for the packets of all files. Raises UsageError if they do not go together."""
    one = readers[0].header
    for reader in readers[1:]:
        other = reader.header
        if other.mix != one.mix and (is_mid_side(other.mix) or is_mid_side(one.mix)):
            raise UsageError(
                f"one of {reader.label} and {readers[0].label} has channels coded as mid and side: encode both with "
                "the same --stereo, or decode them to join the audio"
            )
        for name in _ALIKE:
            if getattr(other, name) != getattr(one, name):
                raise UsageError(
                    f"{reader.label} has {name} {getattr(other, name)}, {readers[0].label} has {getattr(one, name)}: "
                    "only recordings alike can be joined on their codes; decode them to join the audio"
                )
    return replace(
        one,
        codebook_sizes=max((reader.header.codebook_sizes for reader in readers), key=len),
        network=next((reader.header.network for reader in readers if reader.header.network), ""),
        frames_per_packet=max(reader.header.frames_per_packet for reader in readers),
        settings=one.settings if len({reader.header.settings for reader in readers}) == 1 else "",
        time=0,
        source=None,
    )
