"""Audio from a language model and the codec whose codes it learned, block by block while it is being made."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path

import torch
from torch import Tensor

from codec import pretrained
from codec.errors import UsageError, WeightsMismatch
from codec.io.level import gain_to
from codec.lm import sampling as drawing
from codec.lm.base import CodecLM, Conditioning
from codec.lm.sampling import Sampling
from codec.models.base import Codec
from codec.nn.int8 import to_int8
from codec.nn.shapes import Audio, Codes
from codec.streams import StreamDecoder, StreamEncoder

MOST_SECONDS = 60.0  # where a model may end by itself, and does not
AFTER_SECONDS = 1.0  # what comes after a gap, as far as its filling is judged by it


def generate(
    lm: CodecLM | str | Path = pretrained.DEFAULT_LM,
    codec: Codec | str | Path | None = None,
    *,
    seed: int | Sequence[int] = 0,
    seconds: float | None = None,
    prompt: Audio | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    block_seconds: float = 0.25,
    int8: bool = False,
    device: str | torch.device = "auto",
    **told: str | int | None,
) -> Iterator[Audio]:
    """Audio blocks [batch, 1, time] at the codec's rate, the first as soon as the first frame is whole.

    `lm` is a language model or its name or file, `codec` the one whose codes it learned, found by itself if it is
    shipped. There is a row for each `seed`; what it is `told`, as label="7" or text="yes", and the `prompt` [batch or
    1, 1, time] at the codec's rate are for all. The prompt's whole frames come out again at the beginning, as the codec
    restores them, at the level of the recordings that the model was trained on if those were brought to one
    (`Source.level_db`).

    `seconds` is the length of all, exactly, infinity for no end. Without it each row ends where the model ends it, or
    after `MOST_SECONDS`, and is silent from there on.

    `guidance` and `sampling` as in `lm.sampling.generate_frames`. `device` is where models given by name run, "auto" a
    GPU where there is one; `int8` rounds the language model's weights to 8 bits, if it is given by name
    (`nn.int8.to_int8` does it to a model at hand).

    Raises UnknownModel, WeightsMismatch, UsageError before the first block.
    """
    if int8 and isinstance(lm, CodecLM):
        raise UsageError("int8 would change the language model: give its name, or round it with codec.nn.int8.to_int8")
    lm, codec = together(lm, codec, device)
    if int8:
        to_int8(lm)
    seeds = [index(each) for each in (seed if isinstance(seed, Sequence) else [seed])]
    drawing.check_seeds(seeds)
    if not 0 < block_seconds < math.inf:
        raise UsageError(f"blocks of {block_seconds:g} s cannot be made: ask for more than none, and for an end")
    math_ = codec.frame_spec
    length = None if seconds is None or seconds == math.inf else _length(codec, seconds)
    frames = None if seconds == math.inf else math_.frames(_length(codec, MOST_SECONDS) if length is None else length)
    given = None if prompt is None else prompt_codes(lm, codec, prompt, rows=len(seeds))
    if given is not None and seconds is not None and frames is not None and given.shape[2] > frames:
        raise UsageError(
            f"{seconds:g} s are asked for, and the prompt has {math_.seconds(given.shape[2] * math_.hop):.2f} s: "
            "ask for more, or give less of it"
        )
    pieces = drawing.generate_frames(
        lm,
        seeds=seeds,
        conditions=lm.conditions([{kind: str(name) for kind, name in told.items() if name is not None}] * len(seeds)),
        guidance=guidance,
        sampling=sampling,
        frames=frames,
        given=given,
        stop=seconds is None,
    )
    block = math_.frames_per_packet(block_seconds)
    return _heard(codec, _regrouped(pieces, math_.frames(1), block), batch=len(seeds), length=length)


def generate_clips(
    lm: CodecLM,
    codec: Codec,
    seeds: Sequence[int],
    conditions: Conditioning | None = None,
    *,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    most_seconds: float = MOST_SECONDS,
) -> list[Tensor]:
    """A clip [1, time] for each seed, as long as the model makes it, made side by side.

    A clip has no samples where the model ends it at once. Raises as `generate`.
    """
    lm, codec = together(lm, codec)
    math_ = codec.frame_spec
    pieces = drawing.generate_frames(
        lm,
        seeds=seeds,
        conditions=conditions,
        guidance=guidance,
        sampling=sampling,
        frames=math_.frames(_length(codec, most_seconds)),
    )
    codes = torch.cat(
        [torch.zeros(len(seeds), lm.source.num_codebooks, 0, dtype=torch.int64, device=lm.device), *pieces], 2
    )
    audio = codec.decode(codes.clamp(min=0).to(codec.device))
    times = [math_.time(frames) for frames in _frames_of(codes).tolist()]
    return [clip[:, :time] for clip, time in zip(audio, times, strict=True)]


def infill(
    lm: CodecLM,
    codec: Codec,
    audio: Audio,
    gap: tuple[float, float],
    *,
    seed: int = 0,
    conditions: Conditioning | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    candidates: int = 16,
) -> Audio:
    """A recording [1, 1, time] as the codec restores it, with new audio from gap[0] to gap[1] seconds.

    As `lm.sampling.infill`. If the model was trained on recordings brought to one level, what is outside the gap is
    brought to it, and that is how it comes out. Raises as `generate`, and UsageError for a gap that is not within the
    recording.
    """
    lm, codec = together(lm, codec)
    math_ = codec.frame_spec
    codec.check_audio(audio)
    begin, end = gap
    if not 0 <= begin < end <= math_.seconds(audio.shape[2]):
        raise UsageError(
            f"a gap from {begin:g} to {end:g} s is not within the recording's {math_.seconds(audio.shape[2]):g} s"
        )
    known = torch.cat([audio[..., : math_.samples(begin)], audio[..., math_.samples(end) :]], dim=2)
    audio = audio * _gains(lm, codec, known)
    codes = codec.encode(audio, num_codebooks=lm.source.num_codebooks)
    first = math_.whole_frames(math_.samples(begin))
    last = math_.frames(math_.samples(end))
    most = drawing.longest_prompt(lm)
    left = 0 if most is None else max(0, first - most)  # what the model cannot look back on
    codes[:, :, first:last] = -1
    codes[:, :, left:] = drawing.infill(
        lm,
        codes[:, :, left:],
        seeds=[seed],
        conditions=conditions,
        guidance=guidance,
        sampling=sampling,
        candidates=candidates,
        after=math_.frames_per_packet(AFTER_SECONDS),
    )
    return codec.decode(codes, length=audio.shape[2])


def together(
    lm: CodecLM | str | Path, codec: Codec | str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[CodecLM, Codec]:
    """A language model and its codec, loaded where they are given by name.

    Raises UnknownModel, and WeightsMismatch where the codec is not the one whose codes the language model learned.
    """
    if not isinstance(lm, CodecLM):
        lm = pretrained.load_lm(lm, device)
    if not isinstance(codec, Codec):
        return lm, pretrained.codec_of(lm, codec, lm.device)
    if codec.weights_hash != lm.source.weights_hash:
        raise WeightsMismatch(
            f"{lm.name or 'this language model'} learned the codes of {lm.source.codec or 'a codec without a name'} "
            f"(weights {lm.source.weights_hash[:12]}), not of {codec.name or 'a codec without a name'} "
            f"(weights {(codec.weights_hash or 'unknown')[:12]}): give the codec that made them"
        )
    return lm, codec


def prompt_codes(lm: CodecLM, codec: Codec, prompt: Audio, *, rows: int) -> Codes:
    """Codes [rows, the model's codebooks, frames] of a prompt's whole frames: none that has silence for an end.

    Each row is brought to the level of the recordings that the model was trained on, if those were brought to one.

    Raises UsageError for a prompt shorter than a frame, longer than the model's context, or of another batch.
    """
    codec.check_audio(prompt)
    if len(prompt) not in (1, rows):
        raise UsageError(f"there are {rows} seeds and prompts of {len(prompt)} rows: give one for all, or one for each")
    math_ = codec.frame_spec
    prompt = (prompt * _gains(lm, codec, prompt)).to(codec.device)
    codes = StreamEncoder(codec, num_codebooks=lm.source.num_codebooks, batch=len(prompt)).push(prompt)
    if not codes.shape[2]:
        raise UsageError(
            f"a prompt of {prompt.shape[2]} samples is shorter than a frame: give at least {math_.hop} samples"
        )
    most = drawing.longest_prompt(lm)
    if most is not None and codes.shape[2] > most:
        raise UsageError(
            f"a prompt of {math_.seconds(prompt.shape[2]):.2f} s is longer than what the model can look back on: "
            f"give its last {math_.seconds(most * math_.hop):.2f} s"
        )
    return codes.expand(rows, -1, -1)


def _gains(lm: CodecLM, codec: Codec, audio: Audio) -> Tensor:
    """Gains [batch, 1, 1] that bring recordings to the level of those that the model was trained on."""
    if lm.source.level_db is None:
        return torch.ones(1, 1, 1, device=audio.device)
    codec.check_samples(audio)
    rate = codec.frame_spec.sample_rate
    gains = [float(gain_to(row.cpu().numpy(), lm.source.level_db, rate=rate)) for row in audio]
    return torch.tensor(gains, device=audio.device)[:, None, None]


def _length(codec: Codec, seconds: float) -> int:
    """Samples of so many seconds."""
    if not seconds > 0 or math.isinf(seconds) or not (length := codec.frame_spec.samples(seconds)):
        raise UsageError(f"{seconds:g} s of audio cannot be made: ask for at least one sample, or for inf")
    return length


def _regrouped(pieces: Iterator[Codes], first: int, then: int) -> Iterator[Codes]:
    """Codes in pieces of at least `first` frames at first, of at least `then` frames from then on."""
    waiting: list[Codes] = []
    wanted = first
    for codes in pieces:
        waiting.append(codes)
        if sum(piece.shape[2] for piece in waiting) >= wanted:
            yield torch.cat(waiting, dim=2)
            waiting, wanted = [], then
    if waiting:
        yield torch.cat(waiting, dim=2)


def _heard(codec: Codec, pieces: Iterator[Codes], *, batch: int, length: int | None) -> Iterator[Audio]:
    """The pieces decoded one after another, silent after a row's end."""
    decoder = StreamDecoder(codec, batch=batch, length=length)
    frames = torch.zeros(batch, dtype=torch.int64, device=codec.device)  # of each row, before its end
    for codes in pieces:
        codes = codes.to(codec.device)
        before = decoder.time
        audio = decoder.push(codes.clamp(min=0))
        frames += _frames_of(codes)
        ends = torch.tensor([codec.frame_spec.time(row) for row in frames.tolist()], device=codec.device)
        sounds = torch.arange(before, decoder.time, device=codec.device) < ends[:, None]  # [batch, time]
        if audio.shape[2]:
            with torch.inference_mode(False):
                block = audio * sounds[:, None]
            yield block


def _frames_of(codes: Codes) -> Tensor:
    """Frames [batch] before each row's end."""
    return (codes[:, 0] >= 0).sum(dim=1)
