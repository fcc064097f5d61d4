"""The interface of every codec family.

`Codec` is what training, evaluation, the file format, the token store and the command line know. A family derives from
one of its three forms:

    StepCodec     causal: state is a value, and a chunk of audio gives its latents at once
    BlockCodec    looks ahead: a stream runs as blocks that overlap by the receptive field
    SegmentCodec  codes overlapping segments, each alone
"""

from __future__ import annotations

import math
import sys
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Protocol, Self, TypeAlias, cast, overload, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from codec.codes import Codes as CodesView
from codec.config import Config
from codec.errors import UsageError
from codec.frames import FrameSpec, resampled_length
from codec.io.audio import INTEGER_PEAK, MAX_MAGNITUDE, clipped_later, looks_like_integers
from codec.nn.precision import full_float32
from codec.nn.quantize.base import Quantized, Quantizer
from codec.nn.quantize.residual import ResidualVQ
from codec.nn.resample import resample
from codec.nn.shapes import Audio, Codes, Latents
from codec.nn.streaming import Checkpointable, State, ordinary

# the limits of the .codec file format
SampleRate = Annotated[int, Field(ge=1, le=2**22)]
Hop = Annotated[int, Field(ge=1, le=2**20)]
NumCodebooks = Annotated[int, Field(ge=1, le=1024)]
CodebookSize = Annotated[int, Field(ge=2, le=2**24)]
# of convolutional families: channels, and the strides of their levels
Dim = Annotated[int, Field(ge=1, le=2**14)]
Rates = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], Field(min_length=1, max_length=8)]

MAX_BEAMS = 256
"""Most beams of the search for codes."""
UNBOUNDED = sys.maxsize
"""Frames of context of a family that depends on its whole past."""

Array: TypeAlias = Tensor | np.ndarray[Any, Any]
Lengths: TypeAlias = Sequence[int] | Array
"""Samples of each item of a padded batch."""


class CodecConfig(Config):
    """The keys that every family's configuration has."""

    inference_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys that change how a model encodes but not its weights; a model to start training from may differ in them."""
    added_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of parts that change nothing before they are trained; a model to start training from may lack them."""

    family: str
    sample_rate: SampleRate
    hop: Hop
    num_codebooks: NumCodebooks
    codebook_size: CodebookSize


class CodecOutput(NamedTuple):
    """The result of `Codec.forward`."""

    audio: Audio
    """Decoded, aligned with the input and as long."""
    latents: Latents
    """The encoder's, before quantization."""
    quantized: Quantized


class Context(NamedTuple):
    """Frames before and after a frame that its result depends on."""

    past: int
    future: int

    @property
    def frames(self) -> int:
        """All frames that a result depends on, its own included."""
        return self.past + 1 + self.future


class ReceptiveField(NamedTuple):
    """Context of a latent frame in hops of audio, and of a hop of decoded audio in latent frames."""

    encoder: Context
    decoder: Context


def encoder_span(first: int, last: int, rates: Sequence[int], around: int) -> tuple[int, int]:
    """The inputs that outputs `first` to `last` of a stack of levels depend on.

    Each level is a strided convolution of two strides, after layers that see `around` samples to either side.
    """
    for rate in reversed(rates):
        padding = -(-rate // 2)
        first, last = first * rate - padding - around, last * rate - padding + 2 * rate - 1 + around
    return first, last


def decoder_span(first: int, last: int, rates: Sequence[int], around: int) -> tuple[int, int]:
    """As `encoder_span`, for transposed convolutions in front of the layers."""
    for rate in reversed(rates):
        padding = -(-rate // 2)
        first, last = first - around, last + around
        first, last = -((2 * rate - 1 - first - padding) // rate), (last + padding) // rate
    return first, last


class Encoded(NamedTuple):
    """Codes with the side information of a family that normalizes its input."""

    codes: Codes
    """int64 [batch, codebooks, frames]."""
    scale: Tensor
    """float32 [batch, frames]: what the audio of each frame was divided by; constant within a segment."""


class PaddedCodes(NamedTuple):
    """Codes of recordings of unequal lengths, side by side."""

    codes: Codes
    """int64 [batch, codebooks, frames of the longest item], without the scale of a family with one; shorter items are
    padded with codes of silence."""
    frames: Tensor
    """int64 [batch]: frames of each item."""


@contextmanager
def without_peak_warnings() -> Iterator[None]:
    """Encode without warnings about peaks, where the caller has scaled the audio or names its recordings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


class Codec(nn.Module):
    """Audio <-> codes.

    A family has the modules `encoder`, `quantizer` and `decoder`, and says how they work on whole signals (`analyze`,
    `synthesize`) and which context they need (`receptive_field`). A family of one channel takes the channels of a
    recording as rows of the batch.
    """

    encoder: nn.Module
    quantizer: Quantizer
    decoder: nn.Module
    name: str | None = None
    weights_hash: str | None = None
    path: Path | None = None
    """The file that it was loaded from."""
    limit: float = math.inf
    """Largest sample of decoded audio; larger ones are clipped."""
    channels: int = 1
    """Channels of the audio."""
    own_padding: bool = False
    """Whether the family pads the ends of a signal itself: `analyze` takes any number of samples, what it gives for the
    last frames depends on where the signal ends, and streams may hold frames back until then."""
    block_frames: int = 1
    """Frames at whose multiples the blocks of a stream begin and end; 1 unless what a frame depends on has a grid."""
    segment_frames: int = 0
    """Frames that are divided by one scale before they are encoded; 0 for a family without side information."""

    def __init__(self, config: CodecConfig, *, decoder_delay: int) -> None:
        super().__init__()
        self.config = config
        self.frame_spec = FrameSpec(
            sample_rate=config.sample_rate,
            hop=config.hop,
            decoder_delay=decoder_delay,
            num_codebooks=config.num_codebooks,
            codebook_size=config.codebook_size,
        )

    # the family

    @abstractmethod
    def analyze(self, audio: Audio) -> Latents:
        """Latents of a whole signal, one frame per hop; its time is a multiple of hop unless `own_padding`."""

    @abstractmethod
    def synthesize(self, latents: Latents) -> Audio:
        """Audio of a whole signal, a hop per frame, late by `frame_spec.decoder_delay` samples."""

    @abstractmethod
    def receptive_field(self) -> ReceptiveField:
        """The context that encoder and decoder need."""

    def init_from_audio(self, audio: Audio) -> None:
        """Initialize from audio [batch, channels, time] before training: the codebooks, by k-means on the latents.

        Families that initialize from audio do more.
        """
        self.quantizer.init_from_data(self.whole_latents(audio))

    def start_from(self, known: Codec) -> None:
        """Copy the weights of a model of this configuration, which may have fewer codebooks: the first of this model's.

        It may also lack the parts of `added_keys`. The added codebooks are then initialized by `init_added`.
        """
        own, weights = self.state_dict(), known.state_dict()
        self.load_state_dict({name: weights.get(name, value) for name, value in own.items()})

    def init_added(self, audio: Audio, known: int) -> None:
        """Initialize the codebooks after the first `known` from audio [batch, channels, time].

        Raises UsageError: codebooks cannot be added to this kind of quantizer.
        """
        self.quantizer.init_added(self.whole_latents(audio), known)

    @torch.no_grad()
    def whole_latents(self, audio: Audio) -> Latents:
        """Latents of the whole frames of audio [batch, channels, time]."""
        hop = self.frame_spec.hop
        audio = audio[..., : audio.shape[-1] // hop * hop]
        if (scale := self.scale_of(audio)) is not None:
            audio = audio / self._per_sample(scale)
        return self.analyze(audio)

    def checkpoint_blocks(self) -> list[Checkpointable]:
        """Blocks whose activations can be recomputed (`checkpointed`) and whose weights can be sharded one by one.

        They are all that the model has. Training calls only `forward` or `step` of a block, because its weights are
        gathered for these calls.
        """
        return [module for module in self.modules() if isinstance(module, Checkpointable)]

    def scale_of(self, audio: Audio) -> Tensor | None:
        """What to divide each frame of the audio by, [batch, frames], equal in the frames of a segment; None for 1.

        A `SegmentCodec` scales its overlapping segments itself.
        """
        return None

    def entries(self, output: CodecOutput) -> Latents | None:
        """Entries that `output.latents` were quantized to, of the same shape, without a gradient.

        NaN in frames that do not use the last codebook; None if decoded latents do not lie near the encoder's.
        """
        if not self.quantizer.decodes_to_latents:
            return None
        quantized = output.quantized
        entries = quantized.latents[:, : output.latents.shape[1]].detach()
        return torch.where(quantized.codes[:, -1:] >= 0, entries, torch.nan).float()

    # sizes

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio, in Hz."""
        return self.frame_spec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second of audio, in Hz."""
        return self.frame_spec.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Most codes per frame."""
        return self.frame_spec.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of the largest codebook."""
        return self.frame_spec.codebook_size

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Entries of each codebook; its codes run from 0 to one less."""
        return (self.codebook_size,) * self.num_codebooks

    @property
    def codebook_choices(self) -> tuple[int, ...]:
        """Numbers of codebooks that can be decoded, ascending: the first n codebooks, for each n of these."""
        return tuple(range(1, self.num_codebooks + 1))

    @property
    def varying_codebooks(self) -> bool:
        """Whether codes may be -1 after the last codebook of a frame that has fewer codebooks than others."""
        return False

    @property
    def strict_prefix(self) -> bool:
        """Whether codes with n codebooks are the first n codebooks of the codes with all."""
        return self.quantizer.strict_prefix

    @property
    def has_codes(self) -> bool:
        """Whether the model quantizes; a plain autoencoder can be trained but not encode."""
        return self.quantizer.has_codes

    @property
    def lookahead(self) -> int:
        """Samples after its own frame that a decoded sample depends on; 0 for causal families."""
        field, segment = self.receptive_field(), max(self.block_frames, self.segment_frames)
        whole_segments = -(-field.encoder.future // segment) * segment
        whole_blocks = -(-field.decoder.future // self.block_frames) * self.block_frames
        return (segment - 1 + whole_segments + whole_blocks) * self.frame_spec.hop

    @property
    def delay(self) -> int:
        """Longest time from a sample entering a live stream to the same sample leaving it, in samples.

        A hop until its frame is complete, then the lookahead and the decoder's delay.
        """
        return self.frame_spec.hop + self.lookahead + self.frame_spec.decoder_delay

    # whole signals

    @overload
    def encode(
        self,
        audio: Audio,
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        lengths: Lengths | None = None,
        sample_rate: int | None = None,
    ) -> Codes: ...

    @overload
    def encode(
        self,
        audio: Sequence[Array],
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        lengths: None = None,
        sample_rate: int | None = None,
    ) -> PaddedCodes: ...

    def encode(
        self,
        audio: Audio | Sequence[Array],
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        lengths: Lengths | None = None,
        sample_rate: int | None = None,
    ) -> Codes | PaddedCodes:
        """Encode audio float32 [batch, channels, time] in [-1, 1] to codes int64 [batch, codebooks, frames].

        The codes have `frame_spec.frames(time)` frames, are on the model's device, and are computed in float32 under
        any autocast; they are ordinary tensors without a gradient. A family with a scale gives `Encoded(codes, scale)`
        instead; `decode` takes both.

        `num_codebooks` is the number of codebooks, the coarsest first; `bitrate` takes the most codebooks within that
        many kbit/s instead; without either, all are used. `sample_rate` is the sample rate of the audio in Hz if it is
        not the model's: the audio is resampled, on a CPU by soxr, on other devices by torchaudio if it can be imported.

        Recordings of unequal lengths: a list of arrays or tensors [time] or [channels, time] gives padded codes and the
        number of frames of each item,

            codes, frames = model.encode([one, two, three])
            audio = model.decode(codes, lengths=[len(one), len(two), len(three)])

        and a batch that is already padded takes `lengths` [batch] in samples (a list, array or tensor): samples after
        the end of an item do not matter, and its first frames(length) frames equal those it would get alone.

        Raises:
            UsageError: audio has the wrong shape or type, or has samples that are NaN, infinite or more than 120 dB
                above full scale; `lengths` are not one per item, or exceed the audio; the model has fewer codebooks
                than `num_codebooks`; `num_codebooks` and `bitrate` are both given; the sample rate is not a whole
                number.
            ConfigError: `bitrate` is below that of one codebook.
            MissingDependency: soxr is needed to resample and cannot be imported.

        Warns if samples beyond 100 times full scale look like integers.
        """
        num_codebooks = self.codebooks_for(num_codebooks, bitrate)
        if sample_rate is not None:
            check_rate("sample_rate", sample_rate)
        if isinstance(audio, list | tuple):
            if lengths is not None:
                raise UsageError("a list of recordings has its own lengths: leave lengths out")
            padded, ends = self._padded(audio)
            encoded, frames = self._encode(padded, ends, num_codebooks, sample_rate)
            codes, _ = split_scale(encoded)
            with torch.inference_mode(False):
                return PaddedCodes(codes, torch.tensor(frames, device=codes.device))
        audio = cast(Tensor, audio)
        self.check_audio(audio)
        batch, _, time = audio.shape
        times = None if lengths is None else _lengths(lengths, batch, most=time, holder="the audio has")
        return self._encode(audio, times, num_codebooks, sample_rate)[0]

    @overload
    def codes(
        self,
        audio: Audio,
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        sample_rate: int | None = None,
    ) -> CodesView: ...

    @overload
    def codes(
        self,
        audio: Sequence[Array],
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        sample_rate: int | None = None,
    ) -> list[CodesView]: ...

    def codes(
        self,
        audio: Audio | Sequence[Array],
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        sample_rate: int | None = None,
    ) -> CodesView | list[CodesView]:
        """Encode as `encode` does, to a view that knows its seconds and bit rate and can be cut in time: `codec.Codes`.

        A list of recordings gives a list of views [1, codebooks, frames], each as long as its recording. Codes of a
        family with a scale come without it. Raises as `encode`.
        """
        from_rate = self.sample_rate if sample_rate is None else sample_rate
        if isinstance(audio, list | tuple):
            padded = self.encode(audio, num_codebooks=num_codebooks, bitrate=bitrate, sample_rate=sample_rate)
            times = [resampled_length(_time(item), from_rate, self.sample_rate) for item in audio]
            return [
                CodesView(padded.codes[row : row + 1, :, :frames], self.frame_spec, time)
                for row, (frames, time) in enumerate(zip(padded.frames.tolist(), times, strict=True))
            ]
        audio = cast(Tensor, audio)
        encoded = self.encode(audio, num_codebooks=num_codebooks, bitrate=bitrate, sample_rate=sample_rate)
        codes, _ = split_scale(encoded)
        return CodesView(codes, self.frame_spec, resampled_length(audio.shape[-1], from_rate, self.sample_rate))

    def decode(
        self,
        codes: Codes | CodesView | Encoded,
        *,
        length: int | None = None,
        lengths: Lengths | None = None,
        grad: bool = False,
    ) -> Audio:
        """Decode codes int64 [batch, codebooks, frames] to audio float32 [batch, channels, length].

        If `varying_codebooks`, codes may be -1 after the last codebook of a frame that has fewer than others.
        `length` is in samples at the model's rate; without it, all audio that the frames hold is returned, and a
        `codec.Codes` knows its own length. For a padded batch give the `lengths` [batch] of its items (a list, array or
        tensor): the audio is as long as the longest item and silent after the end of each item, and codes of later
        frames do not matter (-1 is allowed). Codes of a family with a scale are decoded at scale 1 unless they come as
        `Encoded`.

        The audio is on the model's device. `grad` keeps the graph, so that a loss on the audio trains the decoder and
        the codebooks that have gradients; for a gradient to latents see `decode_latents`. Without it, the audio is an
        ordinary tensor without a gradient.

        Raises:
            UsageError: codes are out of range, are not one of `codebook_choices`, or hold fewer samples than `length`;
                `lengths` are not one per item; `length` and `lengths` are both given.
        """
        if isinstance(codes, CodesView):
            length = codes.length if length is None and lengths is None else length
            codes = codes.codes
        codes, scale = split_scale(codes)
        if not isinstance(codes, Tensor) or codes.ndim != 3:
            self.check_codes(codes)  # raises
        codes = codes.to(self.device)
        batch, _, frames = codes.shape
        capacity = self.frame_spec.time(frames)
        times = None
        if lengths is not None:
            if length is not None:
                raise UsageError("length and lengths are both given: leave length out")
            times = _lengths(lengths, batch, most=capacity, holder=f"{frames} frames hold")
            length = max(times, default=0)
            own = torch.tensor([self.frame_spec.frames(time) for time in times], device=codes.device)
            codes = torch.where(torch.arange(frames, device=codes.device) < own[:, None, None], codes, 0)
        self.check_codes(codes)
        length = self._checked_length(length, frames)
        if grad:
            with torch.inference_mode(False), torch.enable_grad(), self._float32():
                codes = codes.clone() if codes.is_inference() else codes
                audio = self._decoded(codes, scale, times)
        else:
            with self._inference():
                audio = self._decoded(codes, scale, times)
            audio = ordinary(audio)
        decoder_delay = self.frame_spec.decoder_delay
        audio = audio[..., decoder_delay : decoder_delay + length]
        if times is None:
            return audio
        with torch.inference_mode(False):
            return torch.where(_inside(audio, times), audio, 0.0)

    def _decoded(self, codes: Codes, scale: Tensor | None, times: list[int] | None) -> Audio:
        """Audio of whole frames; what looks ahead decodes items of unequal `times` alone, each up to its own end."""
        if times is not None and (self.lookahead or self.own_padding) and len(set(times)) > 1:
            audio = codes.new_zeros(
                len(codes), self.channels, codes.shape[2] * self.frame_spec.hop, dtype=torch.float32
            )
            for row, time in enumerate(times):
                own = slice(self.frame_spec.frames(time))
                part = self._decoded(
                    codes[row : row + 1, :, own], None if scale is None else scale[row : row + 1, own], None
                )
                audio[row, :, : part.shape[2]] = part[0]
            return audio
        return self._decoded_whole(codes, scale).clamp(-self.limit, self.limit)

    def _decoded_whole(self, codes: Codes, scale: Tensor | None) -> Audio:
        """Audio of whole signals of equal lengths, not limited."""
        audio = self.synthesize(self._decoded_latents(codes))
        return audio if scale is None else audio * self._per_sample(scale.to(audio.device))

    def _decoded_latents(self, codes: Codes) -> Latents:
        """Latents of codes, -1 after the last codebook of a frame that has fewer than others."""
        if not (codes < 0).any():
            return self.quantizer.decode(codes)
        return self.quantizer.decode_prefix(F.pad(codes, (0, 0, 0, self.num_codebooks - codes.shape[1]), value=-1))

    def _per_sample(self, scale: Tensor) -> Tensor:
        """A scale [batch, frames] for every sample: [batch, 1, frames * hop]."""
        return scale.repeat_interleave(self.frame_spec.hop, dim=1)[:, None]

    def decode_latents(self, latents: Latents, *, length: int | None = None) -> Audio:
        """Decode latents [batch, dim, frames] to audio [batch, channels, length].

        `quantizer.decode(codes)` gives the latents of codes. Differentiable like any layer: a loss on the audio reaches
        the latents and the decoder's weights; call it under `torch.no_grad()` if no gradient is wanted. `length` as in
        `decode`.

        Raises UsageError: latents are not [batch, dim, frames] in floating point, or hold fewer samples than `length`.
        """
        if not isinstance(latents, Tensor) or latents.ndim != 3 or not latents.is_floating_point():
            kind = f"{latents.dtype} {list(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
            raise UsageError(f"latents are {kind}; give [batch, dim, frames] in floating point")
        length = self._checked_length(length, latents.shape[2])
        with self._float32():
            audio = self.synthesize(latents.to(self.device, torch.float32))
        decoder_delay = self.frame_spec.decoder_delay
        return audio[..., decoder_delay : decoder_delay + length]

    def _encode(
        self, audio: Audio, times: list[int] | None, num_codebooks: int, sample_rate: int | None
    ) -> tuple[Codes, list[int]]:
        """Codes of audio that was checked, and the frames of each item; `times` are the items' samples."""
        with torch.no_grad():
            audio = audio.to(self.device)
            if times is not None:
                audio = torch.where(_inside(audio, times), audio, 0.0)
            if (peak := self.check_samples(audio)) > INTEGER_PEAK:
                warnings.warn(f"audio {looks_like_integers(peak)}", stacklevel=3)
            elif peak > self.limit:
                warnings.warn(f"audio {clipped_later(peak, self.limit)}", stacklevel=3)
            if sample_rate is not None and sample_rate != self.sample_rate:
                audio = resample(audio.flatten(0, 1), sample_rate, self.sample_rate).view(*audio.shape[:2], -1)
                if times is not None:
                    times = [resampled_length(time, sample_rate, self.sample_rate) for time in times]
                    audio = torch.where(_inside(audio, times), audio, 0.0)
            whole = self.frame_spec.frames(audio.shape[-1])
            times = times or [audio.shape[-1]] * len(audio)
            audio = self._padded_end(audio)
        frames = [self.frame_spec.frames(time) for time in times]
        ends = times if self.own_padding else [own * self.frame_spec.hop for own in frames]
        with self._inference():
            # what follows an item's end would change its last frames
            if (self.lookahead or self.own_padding) and len(set(ends)) > 1:
                encoded = self._encoded_each(audio, ends, num_codebooks, whole)
            else:
                encoded = self._encoded(audio, num_codebooks)
        return ordinary(encoded), frames

    def _padded_end(self, audio: Audio) -> Audio:
        """Audio with silence up to the end of its last frame, unless the family pads it itself."""
        time = audio.shape[-1]
        missing = 0 if self.own_padding else self.frame_spec.frames(time) * self.frame_spec.hop - time
        return F.pad(audio, (0, missing))

    def _encoded(self, audio: Audio, num_codebooks: int) -> Codes:
        """Codes, or `Encoded` for a family with a scale, of a whole signal as `analyze` takes it."""
        scale = self.scale_of(audio)
        if scale is not None:
            audio = audio / self._per_sample(scale)
        codes = self.quantizer.encode(self.analyze(audio), num_codebooks)
        return codes if scale is None else cast(Tensor, Encoded(codes, scale))

    def _encoded_each(self, audio: Audio, ends: list[int], num_codebooks: int, whole: int) -> Codes:
        """Encode each item up to its own end; the other of the `whole` frames get code 0 and scale 1."""
        items = [
            split_scale(self._encoded(row[None, :, :end], num_codebooks)) if end else (None, None)
            for row, end in zip(audio, ends, strict=True)
        ]
        codes = torch.zeros(len(audio), num_codebooks, whole, dtype=torch.int64, device=audio.device)
        scale = audio.new_ones(len(audio), whole)
        for row, (own_codes, own_scale) in enumerate(items):
            if own_codes is not None:
                codes[row, :, : own_codes.shape[2]] = own_codes[0]
            if own_scale is not None:
                scale[row, : own_scale.shape[1]] = own_scale[0]
        return cast(Tensor, Encoded(codes, scale)) if self.segment_frames else codes

    def _padded(self, recordings: Sequence[Array]) -> tuple[Audio, list[int]]:
        """Recordings [time] or [channels, time] padded to [batch, channels, time of the longest], and their lengths."""
        if not recordings:
            raise UsageError("the list of recordings is empty: give at least one")
        rows = []
        for number, item in enumerate(recordings):
            if not isinstance(item, Tensor | np.ndarray):
                raise UsageError(f"recording {number} is a {type(item).__name__}: give an array or tensor [time]")
            row = torch.as_tensor(item, device=self.device).detach()
            if not row.is_floating_point():
                raise UsageError(f"recording {number} is {row.dtype}: give floating point in [-1, 1]")
            if row.ndim == 1 and self.channels == 1:
                row = row[None]
            if row.ndim != 2 or row.numel() == 0 or len(row) != self.channels:
                shapes, hint = f"[{self.channels}, time]", ""
                if self.channels == 1:
                    shapes, hint = "[time] or [1, time]", " (each channel of a recording is an item of its own)"
                raise UsageError(
                    f"recording {number} has shape {list(item.shape)}; give {shapes} with at least one sample{hint}"
                )
            rows.append(row.T.float())  # [time, channels]
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [batch, time, channels]
        return padded.transpose(1, 2).contiguous(), [len(row) for row in rows]

    def _checked_length(self, length: int | None, frames: int) -> int:
        holds = self.frame_spec.time(frames)
        if length is None:
            return holds
        if not 0 <= length <= holds:
            raise UsageError(f"{frames} frames hold 0 to {holds} samples, not {length}")
        return length

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Compute without gradients and in float32. Results must leave through `ordinary`."""
        with torch.inference_mode(), self._float32():
            yield

    @contextmanager
    def _float32(self) -> Iterator[None]:
        """Compute in float32 under any autocast and any setting of torch, because lower precision changes codes."""
        kind = self.device.type
        with full_float32(kind):
            if not torch.is_autocast_enabled(kind):
                yield
                return
            with torch.autocast(kind, enabled=False):
                yield

    # training

    def forward(self, audio: Audio, num_codebooks: Tensor | None = None) -> CodecOutput:
        """Encode, quantize and decode audio [batch, channels, time] with gradients.

        `num_codebooks` [batch] as in `Quantizer`.
        """
        time = audio.shape[-1]
        padded = self._padded_end(audio)
        scale = self.scale_of(padded)
        if scale is not None:
            padded = padded / self._per_sample(scale)
        latents = self.analyze(padded)
        quantized = self.quantizer(latents, num_codebooks)
        decoded = self.synthesize(quantized.latents)
        if scale is not None:
            decoded = decoded * self._per_sample(scale)
        decoder_delay = self.frame_spec.decoder_delay
        return CodecOutput(decoded[..., decoder_delay : decoder_delay + time], latents, quantized)

    # checks

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `half`, `type` and the like call, of this module and of one that holds it.

        Raises UsageError for a type other than float32, because codes would differ.
        """
        dtype = fn(torch.empty(0, device=self.device)).dtype
        if dtype != torch.float32:
            raise UsageError(f"this model computes in float32, not {dtype}: its codes would differ in {dtype}")
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]

    def codebooks_for(self, num_codebooks: int | None = None, bitrate: float | None = None) -> int:
        """Number of codebooks for a call: `num_codebooks`, the most within `bitrate` kbit/s, or all without either.

        Raises UsageError if both are given, or for a number that is not one of `codebook_choices`; ConfigError for a
        bit rate below that of the fewest codebooks.
        """
        if num_codebooks is not None and bitrate is not None:
            raise UsageError(f"{num_codebooks} codebooks and {bitrate:g} kbit/s: ask for one of the two")
        if bitrate is None:
            return self.check_codebooks(num_codebooks)
        return self.frame_spec.codebooks_for_bitrate(bitrate, choices=self.codebook_choices)

    def check_codebooks(self, num_codebooks: int | None) -> int:
        """`num_codebooks` if it is one of `codebook_choices`, all codebooks for None.

        Raises UsageError for any other number.
        """
        num_codebooks = self.num_codebooks if num_codebooks is None else num_codebooks
        if num_codebooks not in self.codebook_choices:
            choices = f"1 to {self.num_codebooks}"
            if len(self.codebook_choices) < self.num_codebooks:
                choices = ", ".join(map(str, self.codebook_choices))
            raise UsageError(f"this model has {choices} codebooks, not {num_codebooks}")
        return num_codebooks

    @property
    def beam_size(self) -> int:
        """Beams of the search for codes (`ResidualVQ`); 1 for a family without a beam search."""
        return max((quantizer.beam_size for quantizer in self._residual_quantizers()), default=1)

    @contextmanager
    def searching(self, beam_size: int | None) -> Iterator[None]:
        """Search codes with `beam_size` beams meanwhile, 1 to MAX_BEAMS; None keeps the model's.

        More beams take more time and find codes nearer to the latents; any number gives codes that decode alike.

        Raises as `check_beams`.
        """
        self.check_beams(beam_size)
        quantizers = self._residual_quantizers()
        before = [quantizer.beam_size for quantizer in quantizers]
        try:
            for quantizer in quantizers:
                quantizer.beam_size = beam_size or quantizer.beam_size
            yield
        finally:
            for quantizer, known in zip(quantizers, before, strict=True):
                quantizer.beam_size = known

    def check_beams(self, beam_size: int | None) -> None:
        """Raise UsageError for a number of beams that is not 1 to MAX_BEAMS, or a model that has no beam search."""
        if beam_size is None:
            return
        if not 1 <= beam_size <= MAX_BEAMS:
            raise UsageError(f"{beam_size} beams: use 1 to {MAX_BEAMS}")
        if not self._residual_quantizers():
            raise UsageError(f"{self.name or 'this model'} has no beam search for codes: leave --beams out")

    def _residual_quantizers(self) -> list[ResidualVQ]:
        return [module for module in self.quantizer.modules() if isinstance(module, ResidualVQ)]

    def check_audio(self, audio: Audio) -> None:
        """Raise UsageError unless audio is float32 [batch, channels, time >= 1]."""
        if not isinstance(audio, Tensor) or audio.dtype != torch.float32:
            kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
            raise UsageError(f"audio is {kind}; give a float32 tensor in [-1, 1], as torch.from_numpy(samples).float()")
        if audio.ndim != 3 or audio.shape[1] != self.channels or audio.numel() == 0:
            hint = " (the channels of a recording are rows of the batch)" if self.channels == 1 else ""
            raise UsageError(
                f"audio has shape {list(audio.shape)}; give [batch, {self.channels}, time] with at least one "
                f"sample{hint}"
            )

    def check_samples(self, audio: Audio) -> float:
        """The largest magnitude. Raises UsageError if a sample is NaN, infinite or beyond `audio.MAX_MAGNITUDE`."""
        peak = float(audio.abs().max()) if audio.numel() else 0.0
        if not peak <= MAX_MAGNITUDE:  # false for NaN too
            raise UsageError(f"audio has samples that are NaN, infinite or beyond {MAX_MAGNITUDE:g}; full scale is 1")
        return peak

    def check_codes(self, codes: Codes) -> None:
        """Raise UsageError unless codes are int64 [batch, codebooks, frames] within their codebooks."""
        if not isinstance(codes, Tensor) or codes.ndim != 3 or codes.dtype != torch.int64:
            kind = f"{codes.dtype} {list(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            raise UsageError(f"codes are {kind}; give an int64 tensor [batch, codebooks, frames]")
        self.check_codebooks(codes.shape[1])
        size = max(self.codebook_sizes)
        least = int(codes.min()) if codes.numel() else 0
        if least == -1 and self.varying_codebooks and _are_prefixes(codes):
            least = 0
        if codes.numel() and not 0 <= least <= int(codes.max()) < size:
            raise UsageError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; this model's run from 0 to {size - 1}"
            )


@runtime_checkable
class FrameSteps(Protocol):
    """Steps of a `StepCodec` on a few frames, compiled for a CPU, with its weights of the time they were prepared."""

    def encode(self, audio: NDArray[Any], state: State, num_codebooks: int) -> tuple[NDArray[Any], State]:
        """`StepCodec.encode_step` with arrays."""

    def decode(self, codes: NDArray[Any], state: State) -> tuple[NDArray[Any], State]:
        """`StepCodec.decode_step` with arrays, for codes that were checked."""

    def arrays(self, state: State) -> State:
        """A state of the model as these steps take it."""

    def tensors(self, state: State) -> State:
        """The state as the model takes it."""


class StepCodec(Codec):
    """A family with state: `y, state = step(x, state)`, and a whole signal is one step from the initial state.

    Most families are causal, and every frame of audio gives its frame of latents in the same step. A family with
    `own_padding` may hold frames back; its `latents_end` and `audio_end` give what remains at the end of a signal.
    """

    @property
    def varying_codebooks(self) -> bool:
        return self.quantizer.per_frame

    @abstractmethod
    def encoder_state(self, batch: int) -> State:
        """State of the encoder before the first sample."""

    @abstractmethod
    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        """Latents of a chunk of audio, one frame per hop; its time is a multiple of hop."""

    @abstractmethod
    def decoder_state(self, batch: int) -> State:
        """State of the decoder before the first frame."""

    def decoder_state_at(self, batch: int, frame: int) -> State:
        """State of the decoder before frame `frame`, as if it followed silence; for families whose decoder counts."""
        return self.decoder_state(batch)

    @abstractmethod
    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        """Audio of a chunk of frames, a hop per frame, late by `frame_spec.decoder_delay` samples."""

    @property
    def has_frame_steps(self) -> bool:
        """Whether the family has `frame_steps`; nothing is imported or compiled to answer."""
        return False

    def frame_steps(self) -> FrameSteps | None:
        """Compiled steps for live streams on a CPU, with the same codes as these; None for a family without them."""
        return None

    step_frames: int = 0
    """Most frames of one step of a whole signal if no gradient is computed, so that memory does not grow with its
    length; 0 for no limit."""

    def latents_end(self, audio: Audio, state: State) -> Latents:
        """Latents of the last chunk of a signal, as `analyze` takes it, and of all that was held back."""
        return self._in_steps(self.latents_step, audio, state, self.frame_spec.hop)

    def audio_end(self, latents: Latents, state: State) -> Audio:
        """Audio of the last frames of a signal, maybe none, and all that was held back."""
        return self._in_steps(self.audio_step, latents, state, 1)

    def analyze(self, audio: Audio) -> Latents:
        return self.latents_end(audio, self.encoder_state(len(audio)))

    def synthesize(self, latents: Latents) -> Audio:
        return self.audio_end(latents, self.decoder_state(len(latents)))

    def _in_steps(
        self, step: Callable[[Tensor, State], tuple[Tensor, State]], x: Tensor, state: State, per_frame: int
    ) -> Tensor:
        """The result of `step` for the rest of a signal, x, which has `per_frame` samples for each frame."""
        size = self.step_frames * per_frame
        if torch.is_grad_enabled() or not 0 < size < x.shape[-1]:
            return step(x, state)[0]
        parts = []
        for part in torch.split(x, size, dim=-1):
            y, state = step(part, state)
            parts.append(y)
        return torch.cat(parts, dim=-1)

    def encode_step(self, audio: Audio, state: State, *, num_codebooks: int | None = None) -> tuple[Codes, State]:
        """Codes of a chunk [batch, channels, time] whose time is a multiple of hop, and the state after it."""
        with self._inference():
            latents, state = self.latents_step(audio, state)
            codes = self.quantizer.encode(latents, self.check_codebooks(num_codebooks))
        return ordinary((codes, state))

    def encode_choices(
        self, audio: Audio, state: State, choices: Sequence[int], *, last: bool
    ) -> tuple[list[Codes], State]:
        """`encode_step`, or with `last` `encode_end`, with each number of codebooks; the latents are computed once."""
        with self._inference():
            latents, state = (self.latents_end(audio, state), state) if last else self.latents_step(audio, state)
            codes = [self.quantizer.encode(latents, self.check_codebooks(number)) for number in choices]
        return ordinary((codes, state))

    def decode_step(self, codes: Codes, state: State) -> tuple[Audio, State]:
        """Audio of a chunk of frames, late by `frame_spec.decoder_delay` samples, and the state after it."""
        with self._inference():
            self.check_codes(codes)
            audio, state = self.audio_step(self._decoded_latents(codes), state)
            audio = audio.clamp(-self.limit, self.limit)
        return ordinary((audio, state))

    def encode_end(self, audio: Audio, state: State, *, num_codebooks: int | None = None) -> Codes:
        """Codes of the last chunk of a signal, as `analyze` takes it, and of all that was held back."""
        with self._inference():
            codes = self.quantizer.encode(self.latents_end(audio, state), self.check_codebooks(num_codebooks))
        return ordinary(codes)

    def decode_end(self, codes: Codes, state: State) -> Audio:
        """Audio of the last frames of a signal, maybe none, and all that was held back."""
        with self._inference():
            self.check_codes(codes)
            audio = self.audio_end(self._decoded_latents(codes), state).clamp(-self.limit, self.limit)
        return ordinary(audio)


class BlockCodec(Codec):
    """A family that looks ahead: a stream encodes and decodes blocks of whole frames, with their context."""

    def encode_block(self, audio: Audio, num_codebooks: int) -> Codes:
        """Codes, or `Encoded` for a family with a scale, of audio whose time is a multiple of hop."""
        with self._inference():
            encoded = self._encoded(audio, num_codebooks)
        return ordinary(encoded)

    def decode_block(self, codes: Codes, scale: Tensor | None) -> Audio:
        """Audio of whole frames."""
        with self._inference():
            self.check_codes(codes)
            audio = self._decoded(codes, scale, None)
        return ordinary(audio)


class SegmentState(NamedTuple):
    """Frames whose segment may not be complete, and the end of the audio of the segment before them."""

    latents: Latents
    scale: Tensor
    """[batch, frames]."""
    overlap: Audio
    """Samples after `segment_stride`, that the next segment is added to."""


class SegmentCodec(Codec):
    """A family that codes overlapping segments of a signal, each alone and divided by its own scale.

    `analyze_segment` and `synthesize_segment` are its networks. Decoded segments are added with weights that rise to
    the middle of a segment and fall after it. A stream waits for whole segments, so every cut gives the same codes.
    """

    own_padding = True

    def __init__(self, config: CodecConfig, *, segment: int, stride: int) -> None:
        super().__init__(config, decoder_delay=0)
        self.frame_spec = replace(self.frame_spec, segment=segment, segment_stride=stride)
        self.segment_frames = self.frame_spec.segments(self.frame_spec.frames(segment))[0]

    @abstractmethod
    def analyze_segment(self, audio: Audio) -> Latents:
        """Latents of a segment that was divided by its scale."""

    @abstractmethod
    def synthesize_segment(self, latents: Latents) -> Audio:
        """Audio of a segment, a hop per frame."""

    @abstractmethod
    def segment_scale(self, audio: Audio) -> Tensor:
        """What to divide a segment by, [batch, 1]."""

    @property
    def delay(self) -> int:
        """The beginning of a segment leaves with the first frames of the next segment."""
        return self.frame_spec.segment + self.frame_spec.segment_stride

    @property
    def lookahead(self) -> int:
        return self.delay - self.frame_spec.hop

    def receptive_field(self) -> ReceptiveField:
        return ReceptiveField(Context(UNBOUNDED, self.segment_frames - 1), Context(UNBOUNDED, self.segment_frames))

    # whole signals

    def analyze(self, audio: Audio) -> Latents:
        return self._analyzed(audio, self._begins(audio))[0]

    def synthesize(self, latents: Latents) -> Audio:
        return self._synthesized(latents, latents.new_ones(len(latents), latents.shape[2]))

    @torch.no_grad()
    def whole_latents(self, audio: Audio) -> Latents:
        return self.analyze(audio)

    def forward(self, audio: Audio, num_codebooks: Tensor | None = None) -> CodecOutput:
        latents, scale = self._analyzed(audio, self._begins(audio))
        quantized = self.quantizer(latents, num_codebooks)
        decoded = self._synthesized(quantized.latents, scale)
        return CodecOutput(decoded[..., : audio.shape[-1]], latents, quantized)

    def _begins(self, audio: Audio) -> range:
        """First samples of the segments of a signal."""
        return range(0, audio.shape[-1], self.frame_spec.segment_stride)

    def _analyzed(self, audio: Audio, begins: range) -> tuple[Latents, Tensor]:
        """Latents and scale of the frames of the segments that begin with these samples."""
        latents, scale = [], []
        for begin in begins:
            segment = audio[..., begin : begin + self.frame_spec.segment]
            own = self.segment_scale(segment)
            latents.append(self.analyze_segment(segment / own[..., None]))
            scale.append(own.expand(-1, latents[-1].shape[-1]))
        return torch.cat(latents, dim=-1), torch.cat(scale, dim=-1)

    def _encoded(self, audio: Audio, num_codebooks: int) -> Codes:
        return self._encoded_segments(audio, self._begins(audio), num_codebooks)

    def _encoded_segments(self, audio: Audio, begins: range, num_codebooks: int) -> Codes:
        if not begins:
            codes = torch.zeros(len(audio), num_codebooks, 0, dtype=torch.int64, device=audio.device)
            return cast(Tensor, Encoded(codes, codes[:, 0].float()))
        latents, scale = self._analyzed(audio, begins)
        return cast(Tensor, Encoded(self.quantizer.encode(latents, num_codebooks), scale))

    def _synthesized(self, latents: Latents, scale: Tensor) -> Audio:
        return self._added(SegmentState(latents, scale, latents.new_zeros(len(latents), self.channels, 0)))

    def _decoded_whole(self, codes: Codes, scale: Tensor | None) -> Audio:
        return self._synthesized(*self._latents(codes, scale))

    def _latents(self, codes: Codes, scale: Tensor | None) -> tuple[Latents, Tensor]:
        """Latents and scale of codes."""
        latents = self.quantizer.decode(codes)
        return latents, latents.new_ones(len(codes), codes.shape[2]) if scale is None else scale.to(latents.device)

    def _added(self, state: SegmentState) -> Audio:
        """All audio of complete segments, after what is left of the segment before them."""
        parts, overlap, first = [], state.overlap, 0
        sizes = self.frame_spec.segments(state.latents.shape[2])
        highest = self._weights(self.segment_frames if overlap.shape[2] else max(sizes, default=0))
        for size in sizes:
            frames = slice(first, first + size)
            audio, overlap = self._crossfaded(state.latents[..., frames], state.scale[:, frames], overlap, highest)
            parts.append(audio)
            first += size
        audio = torch.cat([*parts, overlap], dim=2)
        return audio[..., : self.frame_spec.time(state.latents.shape[2]) or None]

    def _crossfaded(self, latents: Latents, scale: Tensor, before: Audio, weights: Tensor) -> tuple[Audio, Audio]:
        """Up to `segment_stride` samples of a segment, added to what the one `before` left, and what it leaves."""
        audio = self.synthesize_segment(latents) * scale[:, None, :1]
        stride, both = self.frame_spec.segment_stride, min(before.shape[2], audio.shape[2])
        if both:
            falling, rising = weights[stride : stride + both], weights[:both]
            mixed = (falling * before[..., :both] + rising * audio[..., :both]) / (falling + rising)
            audio = torch.cat([mixed, before[..., both:] if both == audio.shape[2] else audio[..., both:]], dim=2)
        return audio[..., :stride], audio[..., stride:]

    def _weights(self, frames: int) -> Tensor:
        """The weight of each sample of a segment, a triangle."""
        places = torch.linspace(0, 1, frames * self.frame_spec.hop + 2, device=self.device)[1:-1]
        return 0.5 - (places - 0.5).abs()

    # streams

    def encoder_state(self, batch: int) -> Audio:
        """The samples of segments that are not complete: none."""
        return torch.zeros(batch, self.channels, 0, device=self.device)

    def encode_step(self, audio: Audio, state: Audio, *, num_codebooks: int | None = None) -> tuple[Codes, Audio]:
        """Codes and scale of the segments that this chunk completes, and the samples from the next one on."""
        spec, audio = self.frame_spec, torch.cat([state, audio], dim=2)
        end = spec.whole_segments(audio.shape[2]) * spec.segment_stride
        with self._inference():
            begins = range(0, end, spec.segment_stride)
            codes = self._encoded_segments(audio, begins, self.check_codebooks(num_codebooks))
        return ordinary((codes, audio[..., end:]))

    def encode_end(self, audio: Audio, state: Audio, *, num_codebooks: int | None = None) -> Codes:
        """Codes and scale of all segments that remain at the end of a signal."""
        with self._inference():
            codes = self._encoded(torch.cat([state, audio], dim=2), self.check_codebooks(num_codebooks))
        return ordinary(codes)

    def decoder_state(self, batch: int) -> SegmentState:
        """No frames, and no segment before them."""
        with torch.no_grad():
            codes = torch.zeros(batch, self.codebook_choices[0], 0, dtype=torch.int64, device=self.device)
            return SegmentState(*self._latents(codes, None), torch.zeros(batch, self.channels, 0, device=self.device))

    def decoder_state_at(self, batch: int, frame: int) -> SegmentState:
        """As for a `StepCodec`."""
        return self.decoder_state(batch)

    def decode_step(self, codes: Codes | Encoded, state: State) -> tuple[Audio, SegmentState]:
        """Audio of the segments that are complete, because frames of the next one have come."""
        size, parts = self.segment_frames, []
        with self._inference():
            state = self._pushed(codes, state)
            while len(sizes := self.frame_spec.segments(state.latents.shape[2])) > 1 and sizes[0] == size:
                latents, scale, overlap = state
                audio, overlap = self._crossfaded(latents[..., :size], scale[:, :size], overlap, self._weights(size))
                parts.append(audio)
                state = SegmentState(latents[..., size:], scale[:, size:], overlap)
            audio = torch.cat([state.overlap[..., :0], *parts], dim=2).clamp(-self.limit, self.limit)
        return ordinary((audio, state))

    def decode_end(self, codes: Codes | Encoded, state: State) -> Audio:
        """Audio of all segments that remain at the end of a signal."""
        with self._inference():
            audio = self._added(self._pushed(codes, state)).clamp(-self.limit, self.limit)
        return ordinary(audio)

    def _pushed(self, codes: Codes | Encoded, state: SegmentState) -> SegmentState:
        """The state with more frames."""
        codes, scale = split_scale(codes)
        self.check_codes(codes)
        latents, scale = self._latents(codes, scale)
        return state._replace(
            latents=torch.cat([state.latents, latents], dim=2), scale=torch.cat([state.scale, scale], dim=1)
        )


def _are_prefixes(codes: Codes) -> bool:
    """Whether every frame of codes [batch, codebooks, frames] has its first codebooks, at least one, and -1 after."""
    present = codes >= 0
    return bool(present[:, 0].all() and (present[:, :-1] >= present[:, 1:]).all())


def check_rate(name: str, rate: int) -> None:
    """Raise UsageError unless a sample rate is a whole number of Hz."""
    if not isinstance(rate, int) or isinstance(rate, bool) or rate < 1:
        raise UsageError(f"{name} is {rate!r}: give Hz as an int, for example 48000")


def split_scale(encoded: Codes | Encoded) -> tuple[Codes, Tensor | None]:
    """(codes, scale) of what `encode` gives; the scale is None for a family without one."""
    if isinstance(encoded, Encoded):
        return encoded.codes, encoded.scale
    return encoded, None


def _inside(audio: Audio, times: list[int]) -> Tensor:
    """Mask [batch, 1, time] of the samples before the end of each item."""
    ends = torch.tensor(times, device=audio.device)
    return torch.arange(audio.shape[-1], device=audio.device) < ends[:, None, None]


def _lengths(lengths: Lengths, batch: int, *, most: int, holder: str) -> list[int]:
    """The lengths as ints. Raises UsageError unless there is one per item, from 0 to `most` samples."""
    try:
        of_items = torch.as_tensor(lengths)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"lengths are {type(lengths).__name__}; give a list, array or tensor of ints") from error
    if of_items.shape != (batch,):
        raise UsageError(f"lengths are {list(of_items.shape)}; give one per item, [{batch}]")
    if of_items.is_floating_point() or of_items.dtype == torch.bool:
        raise UsageError(f"lengths are {of_items.dtype}; give whole numbers of samples")
    times: list[int] = of_items.tolist()
    if times and not 0 <= min(times) <= max(times) <= most:
        raise UsageError(f"lengths run from {min(times)} to {max(times)}; {holder} 0 to {most} samples")
    return times


def _time(audio: Array) -> int:
    return int(audio.shape[-1])
