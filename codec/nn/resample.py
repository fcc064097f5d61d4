"""Resampling of tensors: by soxr on the CPU, by torchaudio on other devices if it can be imported."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from codec.errors import MissingDependency

# Parameters of torchaudio's windowed sinc. With its defaults (6 zero crossings, Hann), a tone 4 % above the new Nyquist
# frequency aliases at -9 dB. These are flat within 0.1 dB up to 95 % of it, and aliases from 1 % above it are below
# -120 dB.
ZERO_CROSSINGS = 128  # on each side
ROLLOFF = 0.97  # cut-off relative to the lower Nyquist frequency
KAISER_BETA = 12.0
LARGEST_KERNEL = 1 << 24  # numbers, because rates without a common factor need a filter for each output sample


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample audio [rows, time] to [rows, ceil(time * to_rate / from_rate)], on the same device; rates are in Hz.

    On a CPU, soxr has as steep a filter and is up to 20 times as fast; it resamples files too, so codes are equal.

    Raises MissingDependency: soxr is needed and cannot be imported.
    """
    if from_rate == to_rate or not audio.shape[-1]:
        return audio
    if audio.device.type != "cpu" and torchaudio_functional() and kernel_size(from_rate, to_rate) <= LARGEST_KERNEL:
        return by_torchaudio(audio, from_rate, to_rate)
    return by_soxr(audio, from_rate, to_rate)


def by_torchaudio(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample by torchaudio's windowed sinc on the device of the audio."""
    functional = torchaudio_functional()
    assert functional is not None
    out: Tensor = functional.resample(
        audio,
        from_rate,
        to_rate,
        lowpass_filter_width=ZERO_CROSSINGS,
        rolloff=ROLLOFF,
        resampling_method="sinc_interp_kaiser",
        beta=KAISER_BETA,
    )
    return out


def by_soxr(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Resample by soxr on the CPU."""
    try:
        from codec.io.audio import resample as resample_array
    except ImportError as error:
        raise MissingDependency(
            f"resampling {from_rate} to {to_rate} Hz needs soxr: install it, or resample the audio before"
        ) from error
    return torch.from_numpy(resample_array(audio.cpu().numpy(), from_rate, to_rate)).to(audio.device)


def kernel_size(from_rate: int, to_rate: int) -> int:
    """Size of torchaudio's filter bank: one filter per output sample of the common period of both rates."""
    common = math.gcd(from_rate, to_rate)
    period, outputs = from_rate // common, to_rate // common
    width = math.ceil(ZERO_CROSSINGS * period / (min(period, outputs) * ROLLOFF))
    return outputs * (2 * width + period)


def torchaudio_functional() -> ModuleType | None:
    """`torchaudio.functional`; None if it cannot be imported."""
    return torchaudio_module("functional")


@cache
def torchaudio_module(name: str) -> ModuleType | None:
    """A module of torchaudio, imported at the first use; None if the import fails."""
    try:
        return import_module(f"torchaudio.{name}")
    except Exception:  # with a torch that it was not built for, the import may also raise RuntimeError or OSError
        return None
