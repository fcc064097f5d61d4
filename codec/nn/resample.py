"""Sample rates of tensors: by soxr on the CPU, by torchaudio on other devices, where it can be imported."""

from __future__ import annotations

import math
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from codec.errors import MissingDependency

# torchaudio's windowed sinc. Its defaults (6 zero crossings, Hann) let a tone 4 % above the new Nyquist frequency fold
# back at -9 dB; these pass all up to 95 % of it within 0.1 dB, and what lies 1 % above it comes back below -120 dB.
ZERO_CROSSINGS = 128  # on each side
ROLLOFF = 0.97  # cut-off relative to the lower Nyquist frequency
KAISER_BETA = 12.0
LARGEST_KERNEL = 1 << 24  # numbers: rates without a common factor would need a filter for each output sample


def resample(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """Audio [rows, time] at another rate in Hz: [rows, ceil(time · to_rate / from_rate)], on the same device.

    On a CPU soxr is as steep and up to 20 times as fast, and files are resampled by it, too, so codes are the same.

    Raises MissingDependency: soxr is needed and cannot be imported.
    """
    if from_rate == to_rate or not audio.shape[-1]:
        return audio
    if audio.device.type != "cpu" and torchaudio_functional() and kernel_size(from_rate, to_rate) <= LARGEST_KERNEL:
        return by_torchaudio(audio, from_rate, to_rate)
    return by_soxr(audio, from_rate, to_rate)


def by_torchaudio(audio: Tensor, from_rate: int, to_rate: int) -> Tensor:
    """As `resample`, by torchaudio's windowed sinc on the audio's device."""
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
    """As `resample`, by soxr on the CPU."""
    try:
        from codec.io.audio import resample as resample_array
    except ImportError as error:
        raise MissingDependency(
            f"nothing here can resample {from_rate} to {to_rate} Hz: install soxr or resample it before"
        ) from error
    return torch.from_numpy(resample_array(audio.cpu().numpy(), from_rate, to_rate)).to(audio.device)


def kernel_size(from_rate: int, to_rate: int) -> int:
    """Numbers in torchaudio's filter: one row per output sample of a period of both rates."""
    common = math.gcd(from_rate, to_rate)
    period, outputs = from_rate // common, to_rate // common
    width = math.ceil(ZERO_CROSSINGS * period / (min(period, outputs) * ROLLOFF))
    return outputs * (2 * width + period)


@cache
def torchaudio_functional() -> ModuleType | None:
    """`torchaudio.functional`, imported the first time a rate has to change; None where that fails."""
    try:
        return import_module("torchaudio.functional")
    except Exception:  # beside a torch it was not built for, the import raises RuntimeError or OSError as well
        return None
