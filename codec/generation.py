"""Generate audio with a language model and its codec, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from operator import index
from pathlib import Path

import torch
from torch import Tensor

from codec import pretrained
from codec.errors import UsageError, WeightsMismatch
from codec.lm import sampling as code_generation
from codec.lm.base import CodecLM
from codec.lm.conditioning import Conditioning
from codec.lm.filters import Sampling
from codec.models.base import Codec, split_scale, without_peak_warnings
from codec.nn.shapes import Audio, Codes
from codec.streams import StreamDecoder, StreamEncoder

MAX_SECONDS = 60.0  # of a row that the model does not end
SCORED_SECONDS = 1.0  # of audio after a gap, by which fillings are scored


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
    device: str | torch.device = "auto",
    **conditions: str | int | None,
) -> Iterator[Audio]:
    """Generate audio blocks [batch, 1, time] at the codec's sample rate, the first after one complete frame.

    `lm` is a language model, or its name or file; `codec` is the codec of its codes, found by default if it is
    shipped. There is one row per `seed`. Conditions, such as label="7" or text="yes", and the `prompt` [batch or 1, 1,
    time] apply to all rows. The output begins with the whole frames of the prompt, as the codec restores them and at
    the level that the model was trained on (`CodebookSpec.level`); of a prompt that is longer than the model's
    context, the last part is taken (`dropped_seconds` gives the length of the rest).

    `seconds` is the exact length, infinity for an endless stream. By default each row ends where the model ends it, or
    after `MAX_SECONDS`, and is silent from there on.

    `guidance` and `sampling` are those of `lm.sampling.generate_frames`. Models given by name run on `device`; "auto"
    is a GPU if there is one.

    Raises UnknownModel, WeightsMismatch, UsageError before the first block.
    """
    lm, codec = load_pair(lm, codec, device)
    seeds = [index(each) for each in (seed if isinstance(seed, Sequence) else [seed])]
    code_generation.check_seeds(seeds)
    if not 0 < block_seconds < math.inf:
        raise UsageError(f"block_seconds = {block_seconds:g} is not a positive finite number: change it")
    frame_spec = codec.frame_spec
    length = None if seconds is None or seconds == math.inf else _length(codec, seconds)
    if seconds == math.inf:
        frames = None
    else:
        frames = frame_spec.frames(_length(codec, MAX_SECONDS) if length is None else length)
    given = None if prompt is None else prompt_codes(lm, codec, prompt, rows=len(seeds))
    if given is not None and seconds is not None and frames is not None and given.shape[2] > frames:
        raise UsageError(
            f"the prompt of {frame_spec.seconds(given.shape[2] * frame_spec.hop):.2f} s is longer than {seconds:g} s: "
            "ask for more, or shorten it"
        )
    named = {kind: str(name) for kind, name in conditions.items() if name is not None}
    pieces = code_generation.generate_frames(
        lm,
        seeds=seeds,
        conditioning=lm.conditioning([named] * len(seeds)),
        guidance=guidance,
        sampling=sampling,
        frames=frames,
        given=given,
        stop=seconds is None,
    )
    block = frame_spec.frames_per_packet(block_seconds)
    return _decode_pieces(codec, _regroup(pieces, frame_spec.frames(1), block), batch=len(seeds), length=length)


def generate_clips(
    lm: CodecLM,
    codec: Codec,
    seeds: Sequence[int],
    conditioning: Conditioning | None = None,
    *,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    max_seconds: float = MAX_SECONDS,
) -> list[Tensor]:
    """Generate a clip [1, time] for each seed in one batch, each up to the model's end token.

    A clip has no samples if the model ends it at once. Raises as `generate`.
    """
    lm, codec = load_pair(lm, codec)
    frame_spec = codec.frame_spec
    pieces = code_generation.generate_frames(
        lm,
        seeds=seeds,
        conditioning=conditioning,
        guidance=guidance,
        sampling=sampling,
        frames=frame_spec.frames(_length(codec, max_seconds)),
    )
    no_frames = torch.zeros(len(seeds), lm.source.num_codebooks, 0, dtype=torch.int64, device=lm.device)
    codes = torch.cat([no_frames, *pieces], dim=2)
    audio = codec.decode(codes.clamp(min=0).to(codec.device))
    times = [frame_spec.time(frames) for frames in _frames_before_end(codes).tolist()]
    return [clip[:, :time] for clip, time in zip(audio, times, strict=True)]


def infill(
    lm: CodecLM,
    codec: Codec,
    audio: Audio,
    gap: tuple[float, float],
    *,
    seed: int = 0,
    conditioning: Conditioning | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    candidates: int = 16,
) -> Audio:
    """Restore a recording [1, 1, time] with the codec, with new audio from gap[0] to gap[1] seconds.

    As `lm.sampling.infill`. If the model was trained on recordings normalized to a level, the output is normalized to
    it by the audio outside the gap. Raises as `generate`, and UsageError for a gap outside the recording.
    """
    lm, codec = load_pair(lm, codec)
    frame_spec = codec.frame_spec
    codec.check_audio(audio)
    begin, end = gap
    if not 0 <= begin < end <= frame_spec.seconds(audio.shape[2]):
        raise UsageError(
            f"a gap from {begin:g} to {end:g} s is not within the recording's {frame_spec.seconds(audio.shape[2]):g} s"
        )
    known = torch.cat([audio[..., : frame_spec.samples(begin)], audio[..., frame_spec.samples(end) :]], dim=2)
    audio = audio * _level_gains(lm, codec, known)
    with without_peak_warnings():
        codes = codec.encode(audio, num_codebooks=lm.source.num_codebooks)
    first = frame_spec.whole_frames(frame_spec.samples(begin))
    last = frame_spec.frames(frame_spec.samples(end))
    longest = code_generation.max_prompt_frames(lm)
    skipped = 0 if longest is None else max(0, first - longest)  # frames beyond the model's context
    codes[:, :, first:last] = -1
    codes[:, :, skipped:] = code_generation.infill(
        lm,
        codes[:, :, skipped:],
        seeds=[seed],
        conditioning=conditioning,
        guidance=guidance,
        sampling=sampling,
        candidates=candidates,
        after=frame_spec.frames_per_packet(SCORED_SECONDS),
    )
    return codec.decode(codes, length=audio.shape[2])


def load_pair(
    lm: CodecLM | str | Path, codec: Codec | str | Path | None = None, device: str | torch.device = "cpu"
) -> tuple[CodecLM, Codec]:
    """A language model and the codec of its codes, loaded if they are given by name.

    Raises UnknownModel, and WeightsMismatch if the language model was trained on the codes of another codec.
    """
    if not isinstance(lm, CodecLM):
        lm = pretrained.load_lm(lm, device)
    if not isinstance(codec, Codec):
        return lm, pretrained.codec_of(lm, codec, lm.device)
    if codec.weights_hash != lm.source.weights_hash:
        raise WeightsMismatch(
            f"the training data of {lm.name or 'this language model'}",
            made_by=(lm.source.codec, lm.source.weights_hash),
            given=(codec.name, codec.weights_hash),
            way_out="give the codec that made it",
        )
    return lm, codec


def prompt_codes(lm: CodecLM, codec: Codec, prompt: Audio, *, rows: int) -> Codes:
    """Encode the last whole frames of a prompt that fit the context to codes [rows, the model's codebooks, frames].

    No frame is padded, because the model would continue the silence. If the model was trained on recordings normalized
    to a level, each row is normalized to it.

    Raises UsageError for a prompt shorter than a frame, or of another batch size.
    """
    codec.check_audio(prompt)
    if len(prompt) not in (1, rows):
        raise UsageError(f"there are {rows} seeds and prompts of {len(prompt)} rows: give one for all, or one for each")
    frame_spec = codec.frame_spec
    prompt = (prompt * _level_gains(lm, codec, prompt)).to(codec.device)
    codes = StreamEncoder(codec, num_codebooks=lm.source.num_codebooks, batch=len(prompt)).push(prompt)
    whole = frame_spec.whole_frames(prompt.shape[2])
    if whole and not codes.shape[2]:  # of a codec that looks further ahead than the prompt reaches
        with without_peak_warnings():
            encoded = codec.encode(prompt[:, :, : whole * frame_spec.hop], num_codebooks=lm.source.num_codebooks)
        codes = split_scale(encoded)[0][:, :, :whole]
    if not codes.shape[2]:
        raise UsageError(
            f"a prompt of {prompt.shape[2]} samples is shorter than a frame: give at least {frame_spec.hop} samples"
        )
    return codes[:, :, _dropped_frames(lm, codes.shape[2]) :].expand(rows, -1, -1)


def dropped_seconds(lm: CodecLM, codec: Codec, prompt: Audio) -> float:
    """Length of the beginning of a prompt that is left out, because the model's context is shorter."""
    frame_spec = codec.frame_spec
    return frame_spec.seconds(frame_spec.hop * _dropped_frames(lm, frame_spec.whole_frames(prompt.shape[2])))


def _dropped_frames(lm: CodecLM, frames: int) -> int:
    longest = code_generation.max_prompt_frames(lm)
    return 0 if longest is None else max(0, frames - longest)


def _level_gains(lm: CodecLM, codec: Codec, audio: Audio) -> Tensor:
    """Gains [batch, 1, 1] that normalize recordings to the level that the model was trained on."""
    if (level := lm.source.level) is None:
        return torch.ones(1, 1, 1, device=audio.device)
    codec.check_samples(audio)
    rate = codec.frame_spec.sample_rate
    gains = [float(level.gain([row.cpu().numpy()], rate=rate)) for row in audio]
    return torch.tensor(gains, device=audio.device)[:, None, None]


def _length(codec: Codec, seconds: float) -> int:
    """Seconds in samples."""
    if not seconds > 0 or math.isinf(seconds) or not (length := codec.frame_spec.samples(seconds)):
        raise UsageError(f"cannot generate {seconds:g} s of audio: ask for at least one sample, or for inf")
    return length


def _regroup(pieces: Iterator[Codes], first: int, then: int) -> Iterator[Codes]:
    """Join codes to a first piece of at least `first` frames, and later ones of at least `then` frames."""
    waiting: list[Codes] = []
    wanted = first
    for codes in pieces:
        waiting.append(codes)
        if sum(piece.shape[2] for piece in waiting) >= wanted:
            yield torch.cat(waiting, dim=2)
            waiting, wanted = [], then
    if waiting:
        yield torch.cat(waiting, dim=2)


def _decode_pieces(codec: Codec, pieces: Iterator[Codes], *, batch: int, length: int | None) -> Iterator[Audio]:
    """Decode the pieces one after another; each row is silent after its end."""
    decoder = StreamDecoder(codec, batch=batch, length=length)
    frames = torch.zeros(batch, dtype=torch.int64, device=codec.device)  # of each row, before its end

    def ended(audio: Audio) -> Audio:
        """Audio that the decoder has just given, silent after the end of each row."""
        ends = torch.tensor([codec.frame_spec.time(row) for row in frames.tolist()], device=codec.device)
        times = torch.arange(decoder.time - audio.shape[2], decoder.time, device=codec.device)
        with torch.inference_mode(False):
            return audio * (times < ends[:, None])[:, None]

    for codes in pieces:
        codes = codes.to(codec.device)
        audio = decoder.push(codes.clamp(min=0))
        frames += _frames_before_end(codes)
        if audio.shape[2]:
            yield ended(audio)
    if frames.any() and (audio := decoder.flush()).shape[2]:  # of a codec that looks ahead
        yield ended(audio)


def _frames_before_end(codes: Codes) -> Tensor:
    """Frames [batch] before each row's end."""
    return (codes[:, 0] >= 0).sum(dim=1)
