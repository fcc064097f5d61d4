"""Live streams through a model: the only mutable stream objects. The model itself keeps nothing.

Any number of streams may run on one model at a time. For a model of one channel, the channels of a recording are rows
of the batch.

    encoder = StreamEncoder(model)
    decoder = StreamDecoder(model)
    for block in microphone:  # [1, 1, time], any time
        speaker.play(decoder.push(encoder.push(block)))
    speaker.play(decoder.push(encoder.flush()))
    speaker.play(decoder.flush())

A causal model gives each frame with its last sample; a few frames at a time run in compiled loops (`codec.live`). A
model that looks ahead runs on blocks that overlap by its receptive field, so its codes equal those of the whole signal,
and frames come `lookahead` samples later. Here frame 2 needs one frame of context on either side:

    frames kept      [ 1   2   3 ]          encoded together
    frame given            2                frame 1 is dropped next, frame 3 waits for frame 4

Both resample inside, for a microphone or a speaker at another rate: the codes are those of the whole signal after
resampling.

    encoder = StreamEncoder(model, input_rate=48000)
    decoder = StreamDecoder(model, output_rate=48000)
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from codec.errors import UsageError
from codec.frames import resampled_length
from codec.io.audio import Resampler, can_resample
from codec.live import Steps, tensors
from codec.models.base import BlockCodec, Codec, Encoded, SegmentCodec, StepCodec, check_rate, split_scale
from codec.nn.streaming import ordinary

Array: TypeAlias = Tensor | np.ndarray[Any, Any]


class StreamEncoder:
    """Encode audio that arrives in pieces. `time` counts the samples taken, `frames` the frames given.

    `batch` is the number of parallel signals. `num_codebooks` or `bitrate` as in `Codec.encode`. `input_rate` is the
    sample rate of the audio in Hz if it is not the model's: the codes equal those of `Codec.encode` with this
    `sample_rate` on a CPU, and the resampling filter holds
    back about 900 samples of the lower rate (37 ms between 48 and 24 kHz). `compiled` False keeps short steps in torch
    (`codec.live`).

    Raises UsageError for a number of codebooks that the model cannot decode, or a rate that cannot be resampled;
    ConfigError for a bit rate below that of the fewest codebooks.
    """

    def __init__(
        self,
        model: Codec,
        *,
        num_codebooks: int | None = None,
        bitrate: float | None = None,
        batch: int = 1,
        input_rate: int | None = None,
        compiled: bool = True,
    ) -> None:
        _must_be_at_least("batch", batch, 1)
        self.num_codebooks = model.codebooks_for(num_codebooks, bitrate)
        self.time = 0
        self._input_rate = model.sample_rate if input_rate is None else input_rate
        _check_rate("input_rate", self._input_rate, model)
        self._rate_change = _RateChange(self._input_rate, model.sample_rate, batch * model.channels)
        self.frames = 0
        self._model = model
        self._open = True
        self._state = model.encoder_state(batch) if isinstance(model, StepCodec | SegmentCodec) else None
        self._steps = Steps(model, batch, compiled=compiled) if isinstance(model, StepCodec) else None
        self._rest = torch.zeros(
            batch, model.channels, 0, dtype=torch.float32, device=model.device
        )  # samples still needed
        self._first = 0  # the frame that they begin with

    def push(self, audio: Array) -> Tensor:
        """Take audio [batch, channels, time] in [-1, 1] at the input rate; give the codes of the complete frames.

        The codes are [batch, codebooks, frames], or `Encoded` for a model with a scale. A causal model gives frame t
        with sample (t + 1) * hop, at its own rate. Raises UsageError for audio of another shape, for samples that are
        not finite, and after `flush`.
        """
        _must_be_open(self._open)
        audio = torch.as_tensor(audio, device=self._rest.device).detach()  # a graph would keep the whole past alive
        if audio.ndim != 3 or audio.shape[:2] != self._rest.shape[:2] or not audio.is_floating_point():
            batch, channels, _ = self._rest.shape
            hint = ", each channel as a row of the batch" if channels == 1 else ""
            raise UsageError(
                f"audio is {audio.dtype} {list(audio.shape)}: "
                f"this stream takes floats [{batch}, {channels}, time]{hint}"
            )
        self._model.check_samples(audio)
        self.time += audio.shape[2]
        audio = self._rate_change.push(audio.float())
        return self._encode(torch.cat([self._rest, audio], dim=2), last=False)

    def flush(self) -> Tensor:
        """End the signal: pad it with silence and give the remaining frames. The stream is closed then."""
        _must_be_open(self._open)
        spec = self._model.frame_spec
        rest = torch.cat([self._rest, self._rate_change.push(self._rest[:, :, :0], last=True)], dim=2)
        time = resampled_length(self.time, self._input_rate, spec.sample_rate)
        missing = (spec.frames(time) - self._first) * spec.hop - rest.shape[2]
        codes = self._encode(rest if self._model.own_padding else functional.pad(rest, (0, missing)), last=True)
        self._open = False
        return codes

    def _encode(self, audio: Tensor, *, last: bool) -> Tensor:
        whole = self._model.frame_spec.whole_frames(audio.shape[2])
        model = self._model
        if isinstance(model, BlockCodec):
            codes = self._block(model, audio, whole, last=last)
        elif last and model.own_padding:
            codes = cast(StepCodec, model).encode_end(audio, tensors(self._state), num_codebooks=self.num_codebooks)
        else:
            codes = self._step(audio, whole)
        self.frames += split_scale(codes)[0].shape[2]
        return codes

    def _step(self, audio: Tensor, whole: int) -> Tensor:
        """Codes of the `whole` frames of the audio, which come after the state."""
        time = whole * self._model.frame_spec.hop
        self._rest = audio[:, :, time:].clone()  # a view would keep all of `audio` alive
        self._first += whole
        if not whole:
            return self._no_codes()
        if self._steps is None:
            model, state = cast(SegmentCodec, self._model), cast(Tensor, self._state)
            codes, self._state = model.encode_step(audio[:, :, :time], state, num_codebooks=self.num_codebooks)
        else:
            codes, self._state = self._steps.encode(audio[:, :, :time], self._state, self.num_codebooks)
        return codes

    def _no_codes(self) -> Tensor:
        shape = len(self._rest), self.num_codebooks, 0
        codes = ordinary(torch.zeros(shape, dtype=torch.int64, device=self._rest.device))
        return cast(Tensor, Encoded(codes, codes[:, 0].float())) if self._model.segment_frames else codes

    def _block(self, model: BlockCodec, audio: Tensor, whole: int, *, last: bool) -> Tensor:
        """Codes of the frames whose context is among the `whole` frames of the audio."""
        segment = max(model.block_frames, model.segment_frames)
        context = model.receptive_field().encoder
        end = self._first + whole
        ready = end
        if not last:  # only whole segments have a scale, and only whole blocks their place
            end = end // segment * segment
            ready = (end - context.future) // segment * segment
        hop, done = model.frame_spec.hop, self.frames
        if ready <= done:
            self._rest = audio
            return self._no_codes()
        codes, scale = split_scale(model.encode_block(audio[:, :, : (end - self._first) * hop], self.num_codebooks))
        new = slice(done - self._first, ready - self._first)
        keep = max(0, (ready - context.past) // segment * segment)
        self._rest = audio[:, :, (keep - self._first) * hop :].clone()
        self._first = keep
        codes = codes[:, :, new]
        return codes if scale is None else cast(Tensor, Encoded(codes, scale[:, new]))


class StreamDecoder:
    """Decode codes that arrive in pieces. `time` counts the samples given.

    `length` is the length of the signal in samples if it is known: no sample after it is given. Without it, the audio
    ends with the last frame. `batch` is the number of parallel signals. `first_frame` is the number of the first frame
    in its recording: the audio begins with its sample `first_frame * hop`, and equals that of the whole recording after
    the frames of the receptive field. `output_rate` is the sample rate in Hz of the audio, of `length` and of `time` if
    it is not the model's; resampling holds back as much as in `StreamEncoder`. `compiled` as there.

    Raises UsageError for numbers below their minimum, or a rate that cannot be resampled.
    """

    def __init__(
        self,
        model: Codec,
        *,
        batch: int = 1,
        length: int | None = None,
        first_frame: int = 0,
        output_rate: int | None = None,
        compiled: bool = True,
    ) -> None:
        _must_be_at_least("batch", batch, 1)
        _must_be_at_least("length", length or 0, 0)
        _must_be_at_least("first_frame", first_frame, 0)
        rate = model.sample_rate if output_rate is None else output_rate
        _check_rate("output_rate", rate, model)
        self.time = 0
        self._model = model
        self._open = True
        self._batch = batch
        self._rate_change = _RateChange(model.sample_rate, rate, batch * model.channels)
        self._length = length
        # samples at the model's rate that are still to come
        self._missing = None if length is None else resampled_length(length, rate, model.sample_rate)
        self._state = (
            model.decoder_state_at(batch, first_frame) if isinstance(model, StepCodec | SegmentCodec) else None
        )
        self._steps = Steps(model, batch, compiled=compiled) if isinstance(model, StepCodec) else None
        self._delay = model.frame_spec.decoder_delay  # samples still to come that lie before the signal
        self._codes: Tensor | None = None  # codes that are still needed, and their scale
        self._scale: Tensor | None = None
        self._first = 0  # the frame that they begin with
        self._done = 0  # frames decoded

    def push(self, codes: Array | Encoded) -> Tensor:
        """Take codes [batch, codebooks, frames], or `Encoded`; give the audio [batch, channels, time] that is complete.

        Raises UsageError for codes that are not the model's, of another batch, and after `flush`.
        """
        _must_be_open(self._open)
        array, scale = split_scale(cast(Tensor, codes))
        codes = torch.as_tensor(array, device=self._model.device)
        if codes.ndim != 3 or len(codes) != self._batch:
            raise UsageError(f"codes are {list(codes.shape)}: this stream takes [{self._batch}, codebooks, frames]")
        if not codes.shape[-1]:
            self._model.check_codes(codes)
            return self._silence()
        if self._steps is not None:
            audio, self._state = self._steps.decode(codes, self._state)
            return self._given(audio)
        if isinstance(self._model, SegmentCodec):
            encoded = codes if scale is None else Encoded(codes, torch.as_tensor(scale, device=codes.device))
            audio, self._state = self._model.decode_step(encoded, self._state)
            return self._given(audio)
        self._model.check_codes(codes)
        self._codes = codes if self._codes is None else torch.cat([self._codes, codes], dim=2)
        if self._model.segment_frames:
            scale = codes.new_ones(len(codes), codes.shape[2], dtype=torch.float32) if scale is None else scale
            scale = torch.as_tensor(scale, device=codes.device)
            self._scale = scale if self._scale is None else torch.cat([self._scale, scale], dim=1)
        return self._block(self._codes, last=False)

    def flush(self) -> Tensor:
        """End the signal, close the stream, and give the remaining audio: none for a causal model at its own rate.

        Raises UsageError if the frames did not hold `length` samples.
        """
        _must_be_open(self._open)
        model = self._model
        if isinstance(model, StepCodec | SegmentCodec) and model.own_padding:
            shape = self._batch, model.codebook_choices[0], 0
            none = torch.zeros(shape, dtype=torch.int64, device=model.device)
            audio = self._given(model.decode_end(none, tensors(self._state)))
        else:
            audio = self._silence() if self._codes is None else self._block(self._codes, last=True)
        if self._missing:
            raise UsageError(
                f"the last {self._missing} samples at {self._model.sample_rate} Hz are missing: push their frames"
            )
        self._open = False
        rest = self._cut(self._rate_change.push(self._silence(), last=True))
        return ordinary(torch.cat([audio, rest], dim=2))

    def _block(self, codes: Tensor, *, last: bool) -> Tensor:
        """Audio of the frames whose context has arrived; `codes` are all that are still needed."""
        model = cast(BlockCodec, self._model)
        context = model.receptive_field().decoder
        block, end = model.block_frames, self._first + codes.shape[2]
        ready = end
        if not last:
            end = end // block * block
            ready = (end - context.future) // block * block
        if ready <= self._done:
            return self._silence()
        hop = model.frame_spec.hop
        usable = end - self._first
        audio = model.decode_block(codes[:, :, :usable], None if self._scale is None else self._scale[:, :usable])
        audio = audio[:, :, (self._done - self._first) * hop : (ready - self._first) * hop]
        self._done = ready
        drop = max(0, ready - context.past) // block * block - self._first
        self._first += drop
        self._codes = codes[:, :, drop:]
        self._scale = None if self._scale is None else self._scale[:, drop:]
        return self._given(audio)

    def _given(self, audio: Tensor) -> Tensor:
        """The part of decoded audio that belongs to the signal, at the output rate."""
        early = min(self._delay, audio.shape[2])
        self._delay -= early
        audio = audio[:, :, early:]
        if self._missing is not None:
            audio = audio[:, :, : self._missing]
            self._missing -= audio.shape[2]
        return self._cut(self._rate_change.push(audio))

    def _cut(self, audio: Tensor) -> Tensor:
        """Audio at the output rate up to the end of the signal."""
        if self._length is not None:
            audio = audio[:, :, : self._length - self.time]
        self.time += audio.shape[2]
        return audio

    def _silence(self) -> Tensor:
        shape = self._batch, self._model.channels, 0
        return ordinary(torch.zeros(shape, dtype=torch.float32, device=self._model.device))


class _RateChange:
    """Resampling of audio [batch, channels, time] between a stream's rate and the model's."""

    def __init__(self, from_rate: int, to_rate: int, rows: int) -> None:
        self._resampler = None if from_rate == to_rate else Resampler(from_rate, to_rate, rows)

    def push(self, audio: Tensor, *, last: bool = False) -> Tensor:
        """The samples that are complete after `audio`; all that remain if it is the last."""
        if self._resampler is None:
            return audio
        blocks = [self._resampler.push(audio.flatten(0, 1).cpu().numpy())]
        if last:
            blocks.append(self._resampler.flush())
        resampled = torch.from_numpy(np.concatenate(blocks, axis=1)).to(audio.device)
        return ordinary(resampled.view(*audio.shape[:2], -1))


def _check_rate(name: str, rate: int, model: Codec) -> None:
    check_rate(name, rate)
    if not can_resample(rate, model.sample_rate):
        raise UsageError(f"{name} is {rate} Hz: it is too far from the model's {model.sample_rate} Hz to be resampled")


def _must_be_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}: it must be at least {least}")


def _must_be_open(is_open: bool) -> None:
    if not is_open:
        raise UsageError("this stream has been flushed: create another one for the next signal")
