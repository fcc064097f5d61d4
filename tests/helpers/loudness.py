"""K-weighting without torchaudio: a stand-in for its two filters, and the recommendation's own coefficients."""

import math

import numpy as np
import scipy.signal  # type: ignore[import-untyped]
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]


class Biquads:
    """What `codec.io.loudness` takes of `torchaudio.functional`, by the Audio EQ Cookbook of R. Bristow-Johnson."""

    @staticmethod
    def treble_biquad(audio: Tensor, rate: int, gain: float, hertz: float, quality: float) -> Tensor:
        """A high shelf."""
        high = 10 ** (gain / 40)
        angle = 2 * math.pi * hertz / rate
        slope, cosine = math.sin(angle) / (2 * quality) * 2 * math.sqrt(high), math.cos(angle)
        more, less = high + 1, high - 1
        above = [more + less * cosine + slope, -2 * (less + more * cosine), more + less * cosine - slope]
        below = [more - less * cosine + slope, 2 * (less - more * cosine), more - less * cosine - slope]
        return filtered([high * value for value in above], below, audio)

    @staticmethod
    def highpass_biquad(audio: Tensor, rate: int, hertz: float, quality: float) -> Tensor:
        """A high-pass of second order."""
        angle = 2 * math.pi * hertz / rate
        slope, cosine = math.sin(angle) / (2 * quality), math.cos(angle)
        above = [(1 + cosine) / 2, -(1 + cosine), (1 + cosine) / 2]
        return filtered(above, [1 + slope, -2 * cosine, 1 - slope], audio)


def filtered(above: list[float], below: list[float], audio: Tensor) -> Tensor:
    """A filter by the coefficients above and below the fraction bar; clipped at full scale, as torchaudio's are."""
    return torch.from_numpy(scipy.signal.lfilter(above, below, audio.numpy())).clamp(-1, 1)


def lufs(audio: Floats) -> float:
    """Integrated loudness of channels [channels, time] at 48 kHz, with the coefficients and gates of BS.1770-4."""
    shelf = [1.53512485958697, -2.69169619938640, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585]
    highpass = [1, -2, 1], [1, -1.99004745483398, 0.99007225036621]
    squares = np.square(scipy.signal.lfilter(*highpass, scipy.signal.lfilter(*shelf, audio))).sum(axis=0)
    powers = [squares[start : start + 19_200].mean() for start in range(0, len(squares) - 19_199, 4800)]
    loud = [power for power in powers if decibels(power) > -70]
    loud = [power for power in loud if decibels(power) > decibels(np.mean(loud)) - 10]
    return decibels(np.mean(loud))


def decibels(power: float | np.floating) -> float:
    """LUFS of a power."""
    return -0.691 + 10 * math.log10(power) if power else -math.inf
