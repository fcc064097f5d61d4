"""The commands `codec encode`, `decode` and `evaluate` as Python functions, with the options of the same names.

codec encode IN OUT       encode_file(IN, OUT)      a recording to a .codec file; compress(bytes) in memory
codec decode IN OUT       decode_file(IN, OUT)      a .codec file to a recording; decompress(bytes) in memory
codec evaluate --data D   evaluate(D)               what comes back, measured
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import soundfile

from codec import compression, pretrained
from codec.compression import Model, Report
from codec.errors import UsageError
from codec.io import audio, bitstream
from codec.io.coded_channels import Stereo
from codec.io.entropy import Choice
from codec.io.tags import write as write_tags
from codec.models.base import Codec

if TYPE_CHECKING:
    from codec.evaluation.codec import Evaluation

Bytes = bytes | bytearray | memoryview


def compress(
    data: Bytes | np.ndarray[Any, Any],
    *,
    sample_rate: int | None = None,
    model: Model = pretrained.DEFAULT,
    bitrate: float | None = None,
    num_codebooks: int | None = None,
    channels: int | None = None,
    channel: int | None = None,
    entropy: Choice = "auto",
    vbr: float | None = None,
    beams: int | None = None,
    stereo: Stereo = "left-right",
    device: str = "auto",
) -> bytes:
    """Compress the content of an audio file (WAV, FLAC, MP3, Ogg, ... by libsndfile) to that of a .codec file.

    `data` may also be a floating-point array [time] or [channels, time], full scale 1, with its `sample_rate` in Hz.
    The number of channels and the sample rate are restored. The options are those of `encode_file`.

    Raises UsageError, UnsupportedAudio, UnknownModel. Warns if decoding will clip samples, or if they look like
    integers.
    """
    compression.check_channels(channels, channel)
    file = io.BytesIO()
    with audio.open_reader(_content(data, sample_rate), channel=channel) as reader:
        if channels is not None:
            reader.mix_down()
        tags, tag_notes = reader.tags()
        codec, writer = compression.compress_into(
            reader,
            file,
            model=model,
            num_codebooks=num_codebooks,
            bitrate=bitrate,
            device=device,
            entropy=entropy,
            vbr=vbr,
            beams=beams,
            stereo=stereo,
            tags=tags,
        )
        _warn(
            [
                *tag_notes,
                *reader.notes,
                *compression.peak_notes(reader.label, reader.peak, compression.limit_of(writer.header, codec)),
            ]
        )
    return file.getvalue()


def decompress(
    data: Bytes,
    *,
    model: Model | None = None,
    rate: int | None = None,
    subtype: str | None = None,
    device: str = "auto",
) -> bytes:
    """Restore the content of a .codec file to that of a WAV file, at the source's sample rate or at `rate` Hz.

    `subtype` is its sample format; by default floating point if the source had it, else 16 bits. `model` and `device`
    as in `decode_file`. Warns if samples were clipped.

    Raises UsageError, UnsupportedAudio, UnknownModel, WeightsMismatch, and DamagedFile; `decode_file` restores what is
    intact.
    """
    if not isinstance(data, Bytes):
        raise UsageError(f"data is {type(data).__name__}: give the bytes of a .codec file, or its path to decode_file")
    with bitstream.open_reader(bytes(data)) as reader:
        _, subtype = audio.check_format(".wav", subtype or compression.float_subtype(reader.header, "data.wav"))
        rate, _ = compression.restored_size(reader, rate)
        codec = compression.model_of(reader, model, device)
        file, label = io.BytesIO(), "the WAV data"
        channels, tags = reader.header.channels, reader.header.tags
        with audio.AudioWriter(
            file, label, container="WAV", subtype=subtype, rate=rate, channels=channels, tags=tags
        ) as writer:
            compression.restore_into(reader, writer, codec=codec, rate=rate)
        _warn([*writer.clip_notes(), *(write_tags(file, tags, container="WAV", label=label) if tags else ())])
    return file.getvalue()


def encode_file(
    source: str | Path,
    output: str | Path | None = None,
    *,
    model: Model = pretrained.DEFAULT,
    bitrate: float | None = None,
    num_codebooks: int | None = None,
    channels: int | None = None,
    channel: int | None = None,
    use_ffmpeg: bool = False,
    device: str = "auto",
    force: bool = False,
    verify: bool = False,
    packet: float | None = None,
    entropy: Choice = "auto",
    vbr: float | None = None,
    beams: int | None = None,
    stereo: Stereo = "left-right",
) -> Report:
    """Compress a recording to a .codec file in constant memory, as `codec encode`.

    `output` is a file or a folder; by default the file is written beside the source. `num_codebooks` is the number of
    codebooks; `bitrate` in kbit/s per channel selects the most codebooks within it; all codebooks if both are None.
    `channels` 1 mixes the recording down to one channel, `channel` takes one alone, 0 for the first. `use_ffmpeg` lets
    the program ffmpeg decode what libsndfile does not read. `model` is a name, a file, a training run's folder or a
    loaded model; `device` is for a model given by name, "auto" for a GPU if there is one. `force` replaces an existing
    output, `verify` reads the output back and compares codes. `packet` is the length of packets in seconds, 0.1 to 10;
    by default that of 2000 bytes of codes, at least 1. `entropy` is the last payload coder that is tried: "none",
    "adaptive", "model", or "auto" for all that the codec has; each packet takes the one with the fewest bytes. `vbr`
    lets frames have different numbers of codebooks, about `vbr` on average in speech and `num_codebooks` at most.
    `beams` is the number of beams of the search for codes: more take longer and sound a little better. `stereo` is how
    two different channels are coded: "left-right", "mid-side", or "smaller" for the smaller file of the two.

    Raises UsageError, InputNotFound, UnsupportedAudio, UnknownModel, StorageError.
    """
    return compression.compress(
        source,
        audio.target_of(source, output, ".codec"),
        model=model,
        num_codebooks=num_codebooks,
        bitrate=bitrate,
        channels=channels,
        channel=channel,
        use_ffmpeg=use_ffmpeg,
        force=force,
        verify=verify,
        packet=packet,
        entropy=entropy,
        vbr=vbr,
        beams=beams,
        stereo=stereo,
        device=device,
    )


def decode_file(
    source: str | Path,
    output: str | Path | None = None,
    *,
    model: Model | None = None,
    rate: int | None = None,
    start: float = 0.0,
    end: float | None = None,
    subtype: str | None = None,
    num_codebooks: int | None = None,
    device: str = "auto",
    force: bool = False,
    strict: bool = False,
    conceal: bool = False,
) -> Report:
    """Restore a recording from a .codec file, at the source's sample rate or at `rate` Hz; as `codec decode`.

    The suffix of `output` selects the format, `subtype` its sample format ("PCM_16", "PCM_24", "FLOAT", ...); by
    default a 16-bit .wav file is written beside the source. The file names its model; pass `model` if that is not a
    shipped one. Only the audio from `start` to `end` seconds is restored, from the first `num_codebooks` codebooks, all
    if None. `device` and `force` as in `encode_file`.

    Raises UsageError, InputNotFound, UnsupportedAudio, UnknownModel, WeightsMismatch, StorageError, and DamagedFile
    after everything intact was written to the output, with silence in the gaps; `strict` writes no damaged file, and
    with `conceal`, a gap begins with 0.12 s of the model's own continuation.
    """
    return compression.decompress(
        source,
        audio.target_of(source, output, ".wav"),
        model=model,
        rate=rate,
        start=start,
        end=end,
        subtype=subtype,
        num_codebooks=num_codebooks,
        force=force,
        strict=strict,
        conceal=conceal,
        device=device,
    )


def evaluate(
    data: str | Path,
    *,
    model: Model | Sequence[Model] = pretrained.DEFAULT,
    bitrate: float | None = None,
    num_codebooks: int | Sequence[int] | Literal["all"] | None = None,
    vbr: float | Sequence[float] = (),
    beams: int | None = None,
    speech: bool | None = None,
    visqol: bool = False,
    dnsmos: bool = False,
    loudness: bool = False,
    bands: bool = False,
    baseline: str | None = None,
    write: str | Path | None = None,
    device: str = "auto",
    jobs: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Encode and decode a recording, or all recordings in a folder, and score the decoded audio; as `codec evaluate`.

    `model` is one model or several. `num_codebooks` is one number or several, or "all" for 1 to the model's number;
    `bitrate` asks for the most codebooks within this rate in kbit/s; all codebooks if both are None. `vbr` is one
    quality of variable bit rate or several, and `beams` a number of beams, as in `encode_file`. `baseline` lists
    reference encoders, separated by commas: "opus:6,mp3:16,original". `write` is a folder for the decoded files. The
    result prints as a table; `rows` and `as_json()` have everything. The other options and the exceptions are those of
    `codec.evaluation.codec.evaluate`.
    """
    from codec.evaluation.baselines import find_baselines
    from codec.evaluation.codec import evaluate

    models = [model] if isinstance(model, Codec | str | Path) else model
    return evaluate(
        [compression.cached_model(each, device) for each in models],
        Path(data),
        num_codebooks=num_codebooks,
        bitrate=bitrate,
        vbr=[vbr] if isinstance(vbr, int | float) else vbr,
        beams=beams,
        speech=speech,
        bands=bands,
        visqol=visqol,
        dnsmos=dnsmos,
        loudness=loudness,
        baselines=find_baselines(baseline) if baseline is not None else (),
        write=None if write is None else Path(write),
        jobs=jobs,
        progress=progress,
    )


def _warn(notes: Sequence[str]) -> None:
    """Warn the caller of a function of this module, which has no report."""
    for note in notes:
        warnings.warn(note.replace("--subtype FLOAT", 'subtype="FLOAT"'), stacklevel=3)


def _content(data: Bytes | np.ndarray[Any, Any], sample_rate: int | None) -> bytes:
    """The content of an audio file; an array is converted to one."""
    if isinstance(data, Bytes):
        if sample_rate is not None:
            raise UsageError("an audio file states its sample rate: omit sample_rate, or give an array")
        return bytes(data)
    if not isinstance(data, np.ndarray):
        raise UsageError(
            f"data is {type(data).__name__}: give the bytes of an audio file, or an array with sample_rate; "
            "encode_file takes paths"
        )
    if not isinstance(sample_rate, int) or sample_rate < 1:
        raise UsageError(f"sample_rate is {sample_rate!r}: an array needs its sample rate in Hz, as sample_rate=24000")
    if data.ndim not in (1, 2) or not np.issubdtype(data.dtype, np.floating):
        raise UsageError(
            f"the array is {data.dtype} {list(data.shape)}; give floating point [time] or [channels, time]"
        )
    file = io.BytesIO()
    try:
        soundfile.write(file, np.atleast_2d(data).T, sample_rate, format="WAV", subtype="FLOAT")
    except (soundfile.LibsndfileError, ValueError) as error:
        raise UsageError(
            f"an array {list(data.shape)} at {sample_rate} Hz is not audio: give [time] or [channels, time]"
        ) from error
    return file.getvalue()
