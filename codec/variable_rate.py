"""Variable bit rate: each frame takes as many codebooks as it is worth, at one price of a codebook in the whole signal.

Every choice of a number of codebooks is encoded and decoded, and the loudness of the decoded spectrum in mel bands is
compared with that of the signal (specific loudness, power to 0.23: Zwicker and Fastl 1999, section 8.7). The numbers of
codebooks are those of the least

    distance of all frames + price · (codebooks of all frames + SWITCH · changes of their number)

by dynamic programming in blocks of a second (rate-distortion optimization as in Shoham and Gersho 1988). Onsets and
voiced frames get more codebooks, pauses and noise fewer. Loudness is relative to the loudest block before, which counts
for less by FALL dB per second.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from codec.errors import UsageError
from codec.io.audio import Block
from codec.models.base import Codec, StepCodec
from codec.nn.shapes import Codes
from codec.streams import StreamDecoder, StreamEncoder

PRICE = 0.095  # distance, times the square of the quality: read speech then has that number of codebooks on average
SWITCH = 2.2  # codebooks
FALL = 0.5  # dB per second
LEAST = 2  # codebooks, because codebook 0 alone is an envelope
SPACING = 1.25  # of the numbers of codebooks to choose from
EXPONENT = 0.23  # loudness of a power
HOPS_PER_BAND = 10  # samples of a hop for each mel band
LOWEST = 50.0  # Hz
SILENCE = 1e-12  # power

Floats = npt.NDArray[np.float64]


def check_quality(model: Codec, quality: float) -> None:
    """Raise UsageError for a quality that the model does not have, and for a model whose frames have one number."""
    if not model.varying_codebooks:
        raise UsageError(f"{model.name or 'this model'} has one number of codebooks in all frames: leave --vbr out")
    if not 1 <= quality <= model.num_codebooks:
        raise UsageError(f"--vbr {quality:g}: use 1 to {model.num_codebooks}, the mean number of codebooks")


class _ChoicesEncoder(StreamEncoder):
    """Encode one signal with several numbers of codebooks, whose latents are the same, in one stream.

    Codes are [choices * batch, codebooks, frames], those of the first choice first, -1 after the last codebook.
    """

    def __init__(self, model: Codec, *, choices: Sequence[int], batch: int) -> None:
        super().__init__(model, num_codebooks=max(choices), batch=batch, compiled=False)
        self._choices = choices

    def _encode(self, audio: Tensor, *, last: bool) -> Tensor:
        model, hop = cast(StepCodec, self._model), self._model.frame_spec.hop
        is_end = last and model.own_padding
        whole = model.frame_spec.whole_frames(audio.shape[2])
        if not is_end:
            self._rest, audio = audio[:, :, whole * hop :].clone(), audio[:, :, : whole * hop]
            self._first += whole
        if not whole and not is_end:
            return torch.zeros(len(self._choices) * len(self._rest), self.num_codebooks, 0, dtype=torch.int64)
        found, self._state = model.encode_choices(audio, self._state, self._choices, last=is_end)
        self.frames += found[0].shape[2]
        return torch.cat(
            [functional.pad(codes.cpu(), (0, 0, 0, self.num_codebooks - codes.shape[1]), value=-1) for codes in found]
        )


class VariableRate:
    """Encode a signal that arrives in pieces, as StreamEncoder does, with numbers of codebooks that vary by frame."""

    def __init__(self, model: Codec, *, quality: float, num_codebooks: int, batch: int) -> None:
        """`quality` is about the mean number of codebooks in speech, `num_codebooks` the largest number.

        Raises UsageError as `check_quality`.
        """
        check_quality(model, quality)
        self._model, self._price, self._most = model, PRICE / quality**2, num_codebooks
        self._choices = _spaced([number for number in model.codebook_choices if number <= num_codebooks])
        self._encoder = _ChoicesEncoder(model, choices=self._choices, batch=batch)
        self._decoder = StreamDecoder(model, batch=batch * len(self._choices), compiled=False)
        before = torch.zeros(batch, model.channels, model.frame_spec.hop)
        self._audio = before  # from a hop before the first frame that is not decided
        self._decoded = before.repeat(len(self._choices), 1, 1)
        self._codes = torch.zeros(len(self._choices), batch, num_codebooks, 0, dtype=torch.int64)
        self._kept: list[int | None] = [None] * batch  # place of the choice of the frame before
        self._loudest = SILENCE

    def push(self, audio: Block) -> Codes:
        """Take audio [batch, channels, time] at the model's rate; give codes [batch, codebooks, frames].

        Codes are -1 after the last codebook of a frame. Raises as StreamEncoder.push.
        """
        self._take(torch.from_numpy(audio), self._encoder.push(audio))
        block = self._model.frame_spec.frames_per_packet()
        hop = self._model.frame_spec.hop
        ready = min(self._audio.shape[2], self._decoded.shape[2]) // hop - 1  # frames whose audio is complete
        return self._decided(ready // block * block)

    def flush(self) -> Codes:
        """End the signal and give the codes of the remaining frames."""
        self._take(self._audio[:, :, :0], self._encoder.flush())
        return self._decided(self._codes.shape[3])

    def _take(self, audio: Tensor, codes: Tensor) -> None:
        """Take audio, and codes with each number of codebooks [choices * batch, codebooks, frames]."""
        self._audio = torch.cat([self._audio, audio], dim=2)
        self._codes = torch.cat([self._codes, codes.view(*self._codes.shape[:3], -1)], dim=3)
        decoded = self._decoder.push(codes)
        self._decoded = torch.cat([self._decoded, decoded.cpu()], dim=2)

    def _decided(self, frames: int) -> Codes:
        """Codes of the first frames that are not decided yet."""
        spec = self._model.frame_spec
        block = spec.frames_per_packet()
        parts = [self._codes[0, :, :, :0]]
        for first in range(0, frames, block):
            count = min(block, frames - first)
            choice = torch.from_numpy(self._chosen(count))  # [batch, frames]
            place = choice[None, :, None].expand(1, -1, self._most, -1)
            parts.append(self._codes[:, :, :, :count].gather(0, place)[0])
            self._codes = self._codes[:, :, :, count:]
            self._audio, self._decoded = (part[:, :, count * spec.hop :] for part in (self._audio, self._decoded))
        return torch.cat(parts, dim=2)

    def _chosen(self, frames: int) -> npt.NDArray[np.int64]:
        """The places of the choices of the next frames [batch, frames]."""
        power, decoded = self._powers(self._audio, frames), self._powers(self._decoded, frames)  # [batch, frames, band]
        fall = 10 ** (-FALL / 10 * self._model.frame_spec.seconds(frames * self._model.frame_spec.hop))
        self._loudest = max(float(power.mean(axis=(1, 2)).max()), self._loudest * fall, SILENCE)
        aim = (power / self._loudest) ** EXPONENT
        found = ((decoded / self._loudest) ** EXPONENT).reshape(len(self._choices), *aim.shape)
        costs = np.abs(found - aim).mean(axis=3) + self._price * np.array(self._choices)[:, None, None]
        paths = []
        for row in range(len(self._kept)):
            paths.append(cheapest_path(costs[:, row], SWITCH * self._price, self._kept[row]))
            self._kept[row] = int(paths[-1][-1])
        return np.stack(paths)

    def _powers(self, audio: Tensor, frames: int) -> Floats:
        """Powers in mel bands [batch, frames, bands] of windows of two hops around each frame."""
        hop = self._model.frame_spec.hop
        missing = (frames + 1) * hop - audio.shape[2]
        audio = functional.pad(audio, (0, max(0, missing)))[:, :, : (frames + 1) * hop]
        windows = audio.double().unfold(2, 2 * hop, hop) * torch.hann_window(2 * hop, dtype=torch.float64)
        spectrum = torch.fft.rfft(windows).abs().square().mean(dim=1).numpy()
        powers: Floats = spectrum @ self._bands
        return powers

    @cached_property
    def _bands(self) -> Floats:
        """Weights of the mel bands [bins, bands]."""
        from librosa.filters import mel

        spec = self._model.frame_spec
        bands = mel(sr=spec.sample_rate, n_fft=2 * spec.hop, n_mels=max(4, spec.hop // HOPS_PER_BAND), fmin=LOWEST)
        return bands.T.astype(np.float64)


def _spaced(choices: Sequence[int]) -> list[int]:
    """The numbers of codebooks to choose from, the largest of `choices` last."""
    spaced: list[int] = []
    for number in sorted(choices):
        if number == max(choices) or (number >= LEAST and (not spaced or number >= SPACING * spaced[-1])):
            spaced.append(number)
    return spaced


def cheapest_path(costs: Floats, switch: float, before: int | None = None) -> npt.NDArray[np.int64]:
    """The choice of each frame with the least sum of `costs` [choices, frames] and of `switch` for every change.

    `before` is the choice of the frame before, if there is one (Viterbi 1967).
    """
    choices, frames = costs.shape
    best = costs[:, 0].copy()
    if before is not None:
        best += switch * (np.arange(choices) != before)
    from_: list[npt.NDArray[np.int64]] = []
    for frame in range(1, frames):
        other = int(best.argmin())
        stays = best <= best[other] + switch
        from_.append(np.where(stays, np.arange(choices), other))
        best = np.minimum(best, best[other] + switch) + costs[:, frame]
    path = [int(best.argmin())]
    for origins in reversed(from_):
        path.append(int(origins[path[-1]]))
    return np.array(path[::-1])
