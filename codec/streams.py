"""Live streams through a model: the only mutable stream objects. The model itself keeps nothing.

Any number of sessions may run on one model. A recording of several channels is a batch, one row per channel.

    encoder = StreamEncoder(model)
    decoder = StreamDecoder(model)
    for block in microphone:  # [1, 1, time], any time
        speaker.play(decoder.push(encoder.push(block)))
    speaker.play(decoder.push(encoder.flush()))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from codec.errors import UsageError

if TYPE_CHECKING:
    from codec.models.base import Codec

Array: TypeAlias = Tensor | np.ndarray[Any, Any]


class StreamEncoder:
    """Turns audio that comes in pieces into codes. `time` counts the samples taken, `frames` those given out.

    `batch` is the number of signals side by side; `num_codebooks` the codebooks of every frame, all if None. Raises UsageError for
    codebooks the model does not have.
    """

    def __init__(self, model: Codec, *, num_codebooks: int | None = None, batch: int = 1) -> None:
        _must_be_at_least("batch", batch, 1)
        self.num_codebooks = model.check_codebooks(num_codebooks)
        self.time = 0
        self.frames = 0
        self._model = model
        self._open = True
        self._state = model.encoder_state(batch)
        self._rest = torch.zeros(batch, 1, 0, device=model.device)  # less than a hop, waiting for the samples to come

    def push(self, audio: Array) -> Tensor:
        """Take audio [batch, 1, time] in [-1, 1] at the model's rate; give the codes [batch, codebooks, frames] now whole.

        Frame t comes with sample (t + 1) · hop. Raises UsageError for audio of another shape, for samples that are no
        numbers, and after `flush`.
        """
        _must_be_open(self._open)
        audio = torch.as_tensor(audio, device=self._rest.device).detach()  # a graph would keep the whole past alive
        if audio.ndim != 3 or audio.shape[:2] != self._rest.shape[:2] or not audio.is_floating_point():
            raise UsageError(
                f"audio is {audio.dtype} {list(audio.shape)}: this session takes floats [{len(self._rest)}, 1, time], "
                "each channel as a row of the batch"
            )
        self._model.check_samples(audio)
        self.time += audio.shape[2]
        return self._encode(torch.cat([self._rest, audio.float()], dim=2))

    def flush(self) -> Tensor:
        """End the signal: pad it with silence and give the frames still missing. The session is closed then."""
        _must_be_open(self._open)
        math = self._model.frame_spec
        missing = (math.frames(self.time) - self.frames) * math.hop - self._rest.shape[2]
        codes = self._encode(functional.pad(self._rest, (0, missing)))
        self._open = False
        return codes

    def _encode(self, audio: Tensor) -> Tensor:
        whole = audio.shape[2] - audio.shape[2] % self._model.frame_spec.hop
        self._rest = audio[:, :, whole:].clone()  # a view would keep all of `audio` alive
        if not whole:
            return torch.zeros(len(audio), self.num_codebooks, 0, dtype=torch.int64, device=audio.device)
        codes, self._state = self._model.encode_step(audio[:, :, :whole], self._state, num_codebooks=self.num_codebooks)
        self.frames += codes.shape[2]
        return codes


class StreamDecoder:
    """Turns codes that come in pieces into audio. `time` counts the samples given out.

    `length` is the signal's length in samples where it is known: nothing after it is given out. Without it the audio
    goes on to the end of the last frame. `batch` is the number of signals side by side. Raises UsageError for a length
    below 0.
    """

    def __init__(self, model: Codec, *, batch: int = 1, length: int | None = None) -> None:
        _must_be_at_least("batch", batch, 1)
        _must_be_at_least("length", length or 0, 0)
        self.time = 0
        self._model = model
        self._open = True
        self._batch = batch
        self._length = length
        self._state = model.decoder_state(batch)
        self._late = model.frame_spec.decoder_delay  # samples still to come that lie before the signal

    def push(self, codes: Array) -> Tensor:
        """Take codes [batch, codebooks, frames] of any number of codebooks; give the audio [batch, 1, time] now whole.

        Raises UsageError for codes that are not the model's, of another batch, and after `flush`.
        """
        _must_be_open(self._open)
        codes = torch.as_tensor(codes, device=self._model.device)
        if codes.ndim != 3 or len(codes) != self._batch:
            raise UsageError(f"codes are {list(codes.shape)}: this session takes [{self._batch}, codebooks, frames]")
        if not codes.shape[-1]:
            self._model.check_codes(codes)
            return torch.zeros(self._batch, 1, 0, device=codes.device)
        audio, self._state = self._model.decode_step(codes, self._state)
        early = min(self._late, audio.shape[2])
        self._late -= early
        audio = audio[:, :, early:]
        if self._length is not None:
            audio = audio[:, :, : self._length - self.time]
        self.time += audio.shape[2]
        return audio

    def flush(self) -> Tensor:
        """End the signal and close the session; the audio [batch, 1, 0] is empty, as frames bring out their own end.

        Raises UsageError where the frames did not hold `length` samples.
        """
        _must_be_open(self._open)
        if self._length is not None and self.time < self._length:
            raise UsageError(f"the frames hold {self.time} samples, not {self._length}: push those that are missing")
        self._open = False
        return torch.zeros(self._batch, 1, 0, device=self._model.device)


def _must_be_at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UsageError(f"{name} is {value}: it must be at least {least}")


def _must_be_open(is_open: bool) -> None:
    if not is_open:
        raise UsageError("this session has been flushed: begin another for the next signal")
