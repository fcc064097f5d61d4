"""What every codec family offers, whatever its network."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple, Self, TypeAlias, cast, overload

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from codec.codes import Codes as CodesView
from codec.config import Config
from codec.errors import UsageError
from codec.frames import FrameSpec, resampled_length
from codec.io.audio import LOUDEST
from codec.nn.quantize.residual import Quantized, Quantizer
from codec.nn.resample import resample
from codec.nn.shapes import Audio, Codes, Latents
from codec.nn.streaming import State, ordinary

# as much as a .codec file can say
SampleRate = Annotated[int, Field(ge=1, le=2**22)]
Hop = Annotated[int, Field(ge=1, le=2**20)]
NumCodebooks = Annotated[int, Field(ge=1, le=1024)]
CodebookSize = Annotated[int, Field(ge=2, le=2**24)]

Array: TypeAlias = Tensor | np.ndarray[Any, Any]
Lengths: TypeAlias = Sequence[int] | Array
"""Samples of each item of a padded batch."""


class CodecConfig(Config):
    """What every family's configuration has."""

    family: str
    sample_rate: SampleRate
    hop: Hop
    num_codebooks: NumCodebooks
    codebook_size: CodebookSize


class CodecOutput(NamedTuple):
    """A training pass: the decoded audio, aligned with the input, and what the quantizer says."""

    audio: Audio
    latents: Latents
    quantized: Quantized


class PaddedCodes(NamedTuple):
    """Codes of recordings of unequal lengths, side by side."""

    codes: Codes
    """int64 [batch, codebooks, frames of the longest]; after an item's own frames stand codes of silence."""
    frames: Tensor
    """int64 [batch]: how many frames are each item's own."""


class Codec(nn.Module):
    """Audio <-> codes, whole or as a stream. Mono: the channels of a recording are rows of the batch.

    A family gives the four methods below `initial state and step`; everything else follows from them.
    """

    quantizer: Quantizer
    name: str | None = None
    weights_hash: str | None = None
    limit: float = math.inf
    """Largest sample that comes out of `decode` and `decode_step`; what is beyond is clipped."""

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

    # initial state and step

    @abstractmethod
    def encoder_state(self, batch: int) -> State:
        """The encoder before the first sample."""

    @abstractmethod
    def latents_step(self, audio: Audio, state: State) -> tuple[Latents, State]:
        """One latent frame per hop of samples; `audio` holds a multiple of hop."""

    @abstractmethod
    def decoder_state(self, batch: int) -> State:
        """The decoder before the first frame."""

    @abstractmethod
    def audio_step(self, latents: Latents, state: State) -> tuple[Audio, State]:
        """A hop of samples per frame, late by `frame_spec.overlap` samples."""

    # sizes

    @property
    def sample_rate(self) -> int:
        """Rate of the audio it takes and makes, in Hz."""
        return self.frame_spec.sample_rate

    @property
    def frame_rate(self) -> float:
        """Frames per second of audio, in Hz."""
        return self.frame_spec.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Codes per frame, at most."""
        return self.frame_spec.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries of each codebook; codes run from 0 to one less."""
        return self.frame_spec.codebook_size

    @property
    def channels(self) -> int:
        """Channels of the audio: 1. Those of a recording are rows of the batch."""
        return 1

    @property
    def delay(self) -> int:
        """Longest time from a sample going into a live stream to the same one coming out, in samples.

        A hop until its frame is whole, then what the decoder is late.
        """
        return self.frame_spec.hop + self.frame_spec.decoder_delay

    # streaming

    def encode_step(self, audio: Audio, state: State, *, num_codebooks: int | None = None) -> tuple[Codes, State]:
        """Codes of a chunk [batch, 1, time] whose time is a multiple of hop, and the state after it."""
        with self._inference():
            latents, state = self.latents_step(audio, state)
            codes = self.quantizer.encode(latents, self.check_codebooks(num_codebooks))
        return ordinary((codes, state))

    def decode_step(self, codes: Codes, state: State) -> tuple[Audio, State]:
        """Audio of a chunk of frames, late by `frame_spec.overlap` samples, and the state after it."""
        with self._inference():
            self.check_codes(codes)
            audio, state = self.audio_step(self.quantizer.decode(codes), state)
            audio = audio.clamp(-self.limit, self.limit)
        return ordinary((audio, state))

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
        """Codes, int64 [batch, codebooks, frames], of audio float32 [batch, 1, time] in [-1, 1].

        They are on the model's device, `frame_spec.frames(time)` frames, float32 arithmetic under any autocast, and
        ordinary tensors without a gradient. `num_codebooks` is how many codebooks to use, index 0 the coarsest; `bitrate` asks
        for the most of them within so many kbit/s instead; all if both are None. `sample_rate` in Hz is the audio's
        where it is not the model's: it is resampled then, on a CPU by soxr, on another device by torchaudio if that
        can be imported.

        Recordings of unequal lengths: a list of arrays or tensors [time] or [1, time] gives padded codes and each
        item's number of frames,

            codes, frames = model.encode([one, two, three])
            audio = model.decode(codes, lengths=[len(one), len(two), len(three)])

        and a batch that is padded already takes `lengths` [batch] in samples (a list, array or tensor): what stands
        after an item's end does not matter, and its first frames(length) frames are those it would get alone.

        Raises:
            UsageError: audio is of another shape or type, or has samples that are NaN, infinite or beyond 120 dB over
                full scale; `lengths` are not one per item, or not within the audio; `num_codebooks` are more than there are,
                or `num_codebooks` and `bitrate` are both given; the sample rate is not a whole number.
            ConfigError: `bitrate` is below that of one codebook.
            MissingDependency: soxr is needed to resample and cannot be imported.
        """
        num_codebooks = self.codebooks_for(num_codebooks, bitrate)
        if sample_rate is not None and (not isinstance(sample_rate, int) or sample_rate < 1):
            raise UsageError(f"a sample rate of {sample_rate!r} cannot be: give Hz as an int, as 48000")
        if isinstance(audio, list | tuple):
            if lengths is not None:
                raise UsageError("a list of recordings has its own lengths: leave lengths out")
            padded, ends = self._side_by_side(audio)
            codes, frames = self._encode(padded, ends, num_codebooks, sample_rate)
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
        """As `encode`, with a view that knows seconds and bit rate and can be cut in time: `codec.Codes`.

        A list of recordings gives a list of views [1, codebooks, frames], each as long as its recording. Raises as
        `encode`.
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
        codes = self.encode(audio, num_codebooks=num_codebooks, bitrate=bitrate, sample_rate=sample_rate)
        return CodesView(codes, self.frame_spec, resampled_length(audio.shape[-1], from_rate, self.sample_rate))

    def decode(
        self,
        codes: Codes | CodesView,
        *,
        length: int | None = None,
        lengths: Lengths | None = None,
        grad: bool = False,
    ) -> Audio:
        """Audio float32 [batch, 1, length] of codes int64 [batch, codebooks, frames], on the model's device.

        Without `length`, in samples at the model's rate, it is all that the frames hold; a `codec.Codes` knows its own.
        Of a padded batch `lengths` [batch] are the items' (a list, array or tensor): the audio is as long as the
        longest, silent after each item's end, and the codes of frames after that do not matter, -1 included.

        `grad` keeps the graph, so that a loss on the audio moves the decoder and the codebooks that gradients train;
        for a gradient to latents see `decode_latents`. Without it the audio is an ordinary tensor without a gradient.

        Raises:
            UsageError: codes are out of range, have too many codebooks, or hold fewer samples than `length`; `lengths`
                are not one per item; `length` and `lengths` are both given.
        """
        if isinstance(codes, CodesView):
            length = codes.length if length is None and lengths is None else length
            codes = codes.codes
        if not isinstance(codes, Tensor) or codes.ndim != 3:
            self.check_codes(codes)  # says what is wrong
        codes = codes.to(self.device)
        batch, _, frames = codes.shape
        holds = self.frame_spec.time(frames)
        times = None
        if lengths is not None:
            if length is not None:
                raise UsageError("length and lengths are both given: lengths alone tell how long each item is")
            times = _lengths(lengths, batch, most=holds, holder=f"{frames} frames hold")
            length = max(times, default=0)
            own = torch.tensor([self.frame_spec.frames(time) for time in times], device=codes.device)
            codes = torch.where(torch.arange(frames, device=codes.device) < own[:, None, None], codes, 0)
        self.check_codes(codes)
        length = self._checked_length(length, frames)
        if grad:
            with torch.inference_mode(False), torch.enable_grad(), self._float32():
                codes = codes.clone() if codes.is_inference() else codes
                audio = self.audio_step(self.quantizer.decode(codes), self.decoder_state(batch))[0]
                audio = audio.clamp(-self.limit, self.limit)
        else:
            audio = self.decode_step(codes, self.decoder_state(batch))[0]
        decoder_delay = self.frame_spec.decoder_delay
        audio = audio[..., decoder_delay : decoder_delay + length]
        if times is None:
            return audio
        with torch.inference_mode(False):
            return torch.where(_inside(audio, times), audio, 0.0)

    def decode_latents(self, latents: Latents, *, length: int | None = None) -> Audio:
        """Audio float32 [batch, 1, length] of latents [batch, dim, frames], as `quantizer.decode(codes)` gives them.

        Differentiable like any layer: a loss on the audio reaches the latents and the decoder's weights; call it under
        `torch.no_grad()` where no gradient is wanted. `length` as in `decode`.

        Raises UsageError: latents are not [batch, dim, frames] in floating point, or hold fewer samples than `length`.
        """
        if not isinstance(latents, Tensor) or latents.ndim != 3 or not latents.is_floating_point():
            kind = f"{latents.dtype} {list(latents.shape)}" if isinstance(latents, Tensor) else type(latents).__name__
            raise UsageError(f"latents are {kind}; give [batch, dim, frames] in floating point")
        batch, _, frames = latents.shape
        length = self._checked_length(length, frames)
        with self._float32():
            audio, _ = self.audio_step(latents.to(self.device, torch.float32), self.decoder_state(batch))
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
            self.check_samples(audio)
            if sample_rate is not None and sample_rate != self.sample_rate:
                audio = resample(audio[:, 0], sample_rate, self.sample_rate)[:, None]
                if times is not None:
                    times = [resampled_length(time, sample_rate, self.sample_rate) for time in times]
                    audio = torch.where(_inside(audio, times), audio, 0.0)
            time = audio.shape[-1]
            audio = F.pad(audio, (0, self.frame_spec.frames(time) * self.config.hop - time))
        codes, _ = self.encode_step(audio, self.encoder_state(len(audio)), num_codebooks=num_codebooks)
        return codes, [self.frame_spec.frames(time) for time in times or [time] * len(audio)]

    def _side_by_side(self, audios: Sequence[Array]) -> tuple[Audio, list[int]]:
        """Recordings [time] or [1, time], padded to [batch, 1, time of the longest], and their samples."""
        if not audios:
            raise UsageError("the list of recordings is empty: give at least one")
        rows = []
        for number, item in enumerate(audios):
            if not isinstance(item, Tensor | np.ndarray):
                raise UsageError(f"recording {number} is a {type(item).__name__}: give an array or tensor [time]")
            row = torch.as_tensor(item, device=self.device).detach()
            if not row.is_floating_point():
                raise UsageError(f"recording {number} is {row.dtype}: give floating point in [-1, 1]")
            if row.ndim not in (1, 2) or row.numel() == 0 or (row.ndim == 2 and len(row) != 1):
                raise UsageError(
                    f"recording {number} has shape {list(row.shape)}; give [time] or [1, time] with at least one "
                    "sample (each channel of a recording is an item of its own)"
                )
            rows.append(row.flatten().float())
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)[:, None], [len(row) for row in rows]

    def _checked_length(self, length: int | None, frames: int) -> int:
        holds = self.frame_spec.time(frames)
        if length is None:
            return holds
        if not 0 <= length <= holds:
            raise UsageError(f"{frames} frames hold 0 to {holds} samples, not {length}")
        return length

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Without gradients and in float32. What is computed inside leaves through `ordinary`."""
        with torch.inference_mode(), self._float32():
            yield

    @contextmanager
    def _float32(self) -> Iterator[None]:
        """Whatever autocast surrounds it, which would change codes."""
        kind = self.device.type
        if not torch.is_autocast_enabled(kind):
            yield
            return
        with torch.autocast(kind, enabled=False):
            yield

    # training

    def forward(self, audio: Audio, num_codebooks: Tensor | None = None) -> CodecOutput:
        """Encode, quantize and decode audio [batch, 1, time] with gradients; `num_codebooks` [batch] as in `Quantizer`."""
        time = audio.shape[-1]
        padded = F.pad(audio, (0, self.frame_spec.frames(time) * self.config.hop - time))
        latents, _ = self.latents_step(padded, self.encoder_state(len(audio)))
        quantized = self.quantizer(latents, num_codebooks)
        decoded, _ = self.audio_step(quantized.latents, self.decoder_state(len(audio)))
        decoder_delay = self.frame_spec.decoder_delay
        return CodecOutput(decoded[..., decoder_delay : decoder_delay + time], latents, quantized)

    # checks

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move it to a device. Raises UsageError for another type than float32, in which alone codes are the same."""
        for value in (*args, *kwargs.values()):
            dtype = value.dtype if isinstance(value, Tensor) else value
            if isinstance(dtype, torch.dtype) and dtype != torch.float32:
                raise UsageError(f"this model computes in float32, not {dtype}: in that its codes would be others")
        return super().to(*args, **kwargs)

    def half(self) -> Self:
        """Raises UsageError, as `to`."""
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """Raises UsageError, as `to`."""
        return self.to(torch.bfloat16)

    def double(self) -> Self:
        """Raises UsageError, as `to`."""
        return self.to(torch.float64)

    def codebooks_for(self, num_codebooks: int | None = None, bitrate: float | None = None) -> int:
        """Codebooks for a call that asks for so many, or for at most so many kbit/s, or for neither: all.

        Raises UsageError for both, or for more than there are; ConfigError for a rate below that of one codebook.
        """
        if num_codebooks is not None and bitrate is not None:
            raise UsageError(f"{num_codebooks} codebooks and {bitrate:g} kbit/s: ask for one of the two")
        return (
            self.check_codebooks(num_codebooks) if bitrate is None else self.frame_spec.codebooks_for_bitrate(bitrate)
        )

    def check_codebooks(self, num_codebooks: int | None) -> int:
        """`num_codebooks` if the model has that many, all of them for None; `UsageError` otherwise."""
        num_codebooks = self.config.num_codebooks if num_codebooks is None else num_codebooks
        if not 1 <= num_codebooks <= self.config.num_codebooks:
            raise UsageError(f"this model has 1 to {self.config.num_codebooks} codebooks, not {num_codebooks}")
        return num_codebooks

    def check_audio(self, audio: Audio) -> None:
        """`UsageError` unless audio is float32 [batch, 1, time >= 1]."""
        if not isinstance(audio, Tensor) or audio.dtype != torch.float32:
            kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
            raise UsageError(f"audio is {kind}; give a float32 tensor in [-1, 1], as torch.from_numpy(samples).float()")
        if audio.ndim != 3 or audio.shape[1] != 1 or audio.numel() == 0:
            raise UsageError(
                f"audio has shape {list(audio.shape)}; give [batch, 1, time] with at least one sample "
                "(the channels of a recording are rows of the batch)"
            )

    def check_samples(self, audio: Audio) -> None:
        """`UsageError` if a sample is NaN, infinite or beyond `audio.LOUDEST`."""
        if audio.numel() and not audio.abs().max() <= LOUDEST:  # false for NaN too
            raise UsageError(f"audio has samples that are NaN, infinite or beyond {LOUDEST:g}; full scale is 1")

    def check_codes(self, codes: Codes) -> None:
        """`UsageError` unless codes are [batch, codebooks, frames] within the codebooks."""
        if not isinstance(codes, Tensor) or codes.ndim != 3 or codes.dtype != torch.int64:
            kind = f"{codes.dtype} {list(codes.shape)}" if isinstance(codes, Tensor) else type(codes).__name__
            raise UsageError(f"codes are {kind}; give an int64 tensor [batch, codebooks, frames]")
        self.check_codebooks(codes.shape[1])
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.config.codebook_size:
            raise UsageError(
                f"codes run from {int(codes.min())} to {int(codes.max())}; "
                f"this model's run from 0 to {self.config.codebook_size - 1}"
            )


def _inside(audio: Audio, times: list[int]) -> Tensor:
    """Which samples [batch, 1, time] come before the items' ends."""
    ends = torch.tensor(times, device=audio.device)
    return torch.arange(audio.shape[-1], device=audio.device) < ends[:, None, None]


def _lengths(lengths: Lengths, batch: int, *, most: int, holder: str) -> list[int]:
    """Lengths as ints. Raises UsageError unless there is one for each item, from 0 to `most` samples."""
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
