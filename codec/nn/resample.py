"""Sample rates of tensors: on their device where torchaudio can be imported, on the CPU by soxr where it cannot."""

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

    Raises MissingDependency: neither torchaudio nor soxr can be imported.
    """
    if from_rate == to_rate or not audio.shape[-1]:
        return audio
    functional = torchaudio_functional()
    if functional is not None and kernel_size(from_rate, to_rate) <= LARGEST_KERNEL:
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
    try:
        from codec.audio import resample as by_soxr
    except ImportError as error:
        raise MissingDependency(
            f"nothing here can resample {from_rate} to {to_rate} Hz: install soxr or torchaudio, or resample it before"
        ) from error
    return torch.from_numpy(by_soxr(audio.cpu().numpy(), from_rate, to_rate)).to(audio.device)


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
