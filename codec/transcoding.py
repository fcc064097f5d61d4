"""Change .codec files on their codes alone, without a model: fewer codebooks, a part, several files as one."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from codec.errors import UsageError
from codec.frames import resampled_length
from codec.io.bitstream import Header, Packet, Reader, Writer, open_reader
from codec.io.storage import other_than, stream_output

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
    force: bool = False,
) -> Header:
    """Write a .codec file with the first codebooks or a part of another one; return its header.

    `num_codebooks` is their number; `bitrate` in kbit/s per channel selects the most within it; all if both are None.
    The part begins with the frame that contains `start` seconds and ends before `end`. Its decoder begins without the
    frames before, so its first frames differ from those of the whole, within the receptive field. "-" is standard input
    or output.

    Raises UsageError, ConfigError, InputNotFound, UnsupportedAudio, StorageError, and DamagedFile for any damage.
    """
    if not 0 <= start < MAX_SECONDS or not 0 < (1.0 if end is None else end) < MAX_SECONDS:
        raise UsageError(f"from {start:g} to {end} s is not a part: --start is before --end")
    target = other_than(source, target)
    with open_reader(source) as reader:
        count = _codebooks(reader.header, num_codebooks, bitrate)
        header = replace(reader.header, codebook_sizes=reader.header.codebook_sizes[:count], source=None)
        first = math.floor(start * header.sample_rate) // header.hop
        first = first // max(1, header.segment_frames) * max(1, header.segment_frames)
        begin = resampled_length(first * header.hop, header.sample_rate, header.source_rate)
        last = None if end is None else round(end * header.source_rate)
        if last is not None and last <= begin:
            raise UsageError(f"from {start:g} to {end} s is not a part: --start is before --end")
        is_part = first > 0 or last is not None
        with stream_output(target, force=force) as file:
            writer = Writer(file, replace(header, time=0) if is_part else header)
            most = None if last is None else _frames(header, last - begin)
            for packet in _cut(reader.intact(first), first, most):
                writer.write(packet.codes[:, :count], packet.scale)
            time = (reader.header.time if last is None else min(last, reader.header.time)) - begin
            if time <= 0:
                raise UsageError(f"{reader.label} has {reader.header.seconds:.3f} s, so no audio from {start:g} s on")
            writer.close(time=time)
    return writer.header


def concat(sources: Sequence[str | Path], target: str | Path, *, force: bool = False) -> Header:
    """Write .codec files one after another as one file; return its header.

    All must have the same model, sample rate and channels; each keeps its number of codebooks. Between two recordings,
    up to a hop and the decoder's delay of silence remain, because frames are not divided.

    Raises UsageError, InputNotFound, UnsupportedAudio, StorageError, and DamagedFile for any damage.
    """
    with ExitStack() as stack:
        readers = [stack.enter_context(open_reader(source)) for source in sources]
        header = _common(readers)
        for source in sources:
            other_than(source, target)
        file = stack.enter_context(stream_output(target, force=force))
        writer = Writer(file, header)
        time = 0
        for reader in readers:
            # rounded down, because rounded up the frames might not hold the samples
            before = writer.frames * header.hop * header.source_rate // header.sample_rate
            for packet in reader.intact():
                writer.write(packet.codes, packet.scale)
            time = before + reader.header.time
        writer.close(time=time)
    return writer.header


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


def _cut(packets: Iterator[Packet], first: int, most: int | None) -> Iterator[Packet]:
    """At most `most` frames from frame `first` on; the rest is read for its end."""
    for packet in packets:
        yield packet.cut(max(0, first - packet.first), None if most is None else max(0, first + most - packet.first))


def _common(readers: Sequence[Reader]) -> Header:
    """A header for the packets of all files. Raises UsageError if they do not go together."""
    one = readers[0].header
    for reader in readers[1:]:
        other = reader.header
        for name in _ALIKE:
            if getattr(other, name) != getattr(one, name):
                raise UsageError(
                    f"{reader.label} has {name} {getattr(other, name)}, {readers[0].label} has {getattr(one, name)}: "
                    "only recordings alike can be joined on their codes; decode them to join the audio"
                )
    return replace(
        one,
        codebook_sizes=max((reader.header.codebook_sizes for reader in readers), key=len),
        frames_per_packet=max(reader.header.frames_per_packet for reader in readers),
        time=0,
        source=None,
    )
