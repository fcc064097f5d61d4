"""Codes from and to files of other projects: import to .codec, export to arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codec import pretrained
from codec.compression import header_of
from codec.errors import UnsupportedAudio, UsageError
from codec.frames import resampled_length
from codec.io.bitstream import MAX_CHANNELS, Writer, open_reader
from codec.io.entropy import varies
from codec.io.foreign_codes import ForeignCodes, read_codes, write_codes
from codec.io.storage import atomic_output


def import_codes(
    source: str | Path, target: str | Path, *, model: str | Path, length: int | None = None, force: bool = False
) -> ForeignCodes:
    """Write a .codec file of the codes in an .ecdc, .dac, .npy, .npz or .pt file, which `model` made; return the codes.

    `length` is the length in samples at the model's rate, if the file does not say it; without it, the audio is as long
    as its frames. Raises UnsupportedAudio for codes that are not the model's, UsageError for a length that the frames
    cannot have, and as `codec.io.foreign_codes.read_codes`, `codec.load` and `codec.io.storage.atomic_output`.
    """
    net = pretrained.load(model, "cpu")
    spec = net.frame_spec
    found = read_codes(source, spec)
    rows, num_codebooks, frames = found.codes.shape
    if num_codebooks not in net.codebook_choices or rows > MAX_CHANNELS // net.channels:
        raise UnsupportedAudio(
            f"{source} has {rows} rows of {num_codebooks} codebooks; {model} has up to {net.num_codebooks}: "
            "pass its model"
        )
    sizes = np.array(net.codebook_sizes[:num_codebooks])[:, None]
    if found.codes.min() < 0 or (found.codes >= sizes).any():
        raise UnsupportedAudio(
            f"{source} has codes from {found.codes.min()} to {found.codes.max()}, codebooks of {model} have "
            f"{net.codebook_size} entries: pass its model"
        )
    rate = found.rate or spec.sample_rate
    time = found.time if length is None else length
    time = spec.time(frames) if time is None else time
    if spec.frames(resampled_length(time, rate, spec.sample_rate)) != frames:
        raise UsageError(
            f"{source} has {frames} frames, which do not hold {time} samples at {rate} Hz: leave --length out"
        )
    scale = found.scale
    if net.segment_frames and scale is None:
        scale = np.ones((rows, frames), np.float32)
    header = header_of(net, rate, rows * net.channels, num_codebooks, seconds=time / rate)
    with atomic_output(target, force=force) as file:
        writer = Writer(file, header)
        writer.write(found.codes, scale)
        writer.close(time=time)
    return found._replace(scale=scale, time=time)


def export_codes(source: str | Path, target: str | Path, *, force: bool = False) -> ForeignCodes:
    """Write the codes [rows, codebooks, frames] of a .codec file as an array; return them.

    Rows are the channels, or the groups of channels that the model codes together. Raises as
    `codec.io.bitstream.Reader`, `codec.io.foreign_codes.write_codes` and `codec.io.storage.atomic_output`.
    """
    with open_reader(source) as reader:
        parts = list(reader.packets_with_scale())
        header = reader.header
    if len({codes.shape[1] for codes, _ in parts}) > 1 or any(varies(codes) for codes, _ in parts):
        raise UnsupportedAudio(
            f"{source} has frames with different numbers of codebooks, which arrays of codes cannot have: "
            "codec transcode --codebooks 1 keeps what all have"
        )
    codes = np.concatenate([codes for codes, _ in parts] or [np.empty((header.rows, header.num_codebooks, 0), int)], 2)
    scales = [scale for _, scale in parts if scale is not None]
    found = ForeignCodes(codes, np.concatenate(scales, axis=1) if scales else None, header.model_time)
    with atomic_output(target, force=force) as file:
        write_codes(file, Path(target).suffix, found)
    return found
