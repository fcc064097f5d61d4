"""Resampling against closed forms: a tone stays that tone, and what the new rate cannot hold is gone."""

import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from codec.errors import MissingDependency
from codec.nn import resample as module
from codec.nn.resample import (
    LARGEST_KERNEL,
    by_soxr,
    by_torchaudio,
    kernel_size,
    resample,
    torchaudio_functional,
    torchaudio_module,
)

Resampler = Callable[[Tensor, int, int], Tensor]


def tone(hertz: float, rate: int) -> Tensor:
    """Half a second [2, time], the second row at half the amplitude."""
    wave = torch.sin(2 * math.pi * hertz * torch.arange(rate // 2, dtype=torch.float64) / rate)
    return torch.stack([wave, wave / 2]).float()


def level(audio: Tensor) -> float:
    """Level in dB relative to a full-scale sine, without the ends."""
    middle = audio[..., audio.shape[-1] // 8 : -audio.shape[-1] // 8].double()
    return 10 * math.log10(2 * float(middle.square().mean()) + 1e-20)


@pytest.fixture(params=["torchaudio", "soxr"])
def resampler(request: pytest.FixtureRequest) -> Resampler:
    if request.param == "soxr":
        return by_soxr
    if torchaudio_functional() is None:
        pytest.skip("torchaudio cannot be imported here")
    return by_torchaudio


@pytest.mark.parametrize("rates", [(48000, 24000), (44100, 24000), (48000, 8000)])
def test_no_aliasing(resampler: Resampler, rates: tuple[int, int]) -> None:
    """Tones 4 % or more above the new Nyquist frequency alias below -100 dB; torchaudio's defaults give -9 dB."""
    for factor in (1.04, 1.1, 1.3, 1.7):
        out = resampler(tone(factor * rates[1] / 2, rates[0]), *rates)
        assert level(out[0]) < -100, factor


@pytest.mark.parametrize("rates", [(48000, 24000), (44100, 24000), (16000, 24000), (24000, 16001)])
def test_a_tone_is_preserved(resampler: Resampler, rates: tuple[int, int]) -> None:
    if resampler is by_torchaudio and kernel_size(*rates) > LARGEST_KERNEL:
        pytest.skip("`resample` leaves such rates to soxr, because this would take minutes and gigabytes")
    for hertz in (50.0, 1000.0, 0.9 * min(rates) / 2):
        out = resampler(tone(hertz, rates[0]), *rates)
        assert out.shape == (2, math.ceil(rates[0] // 2 * rates[1] / rates[0]))
        wave = torch.sin(2 * math.pi * hertz * torch.arange(out.shape[1], dtype=torch.float64) / rates[1])
        assert level(out[0] - wave) < -55, hertz
        torch.testing.assert_close(out[1], out[0] / 2, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("time", [1, 2, 7])
def test_short_signals(resampler: Resampler, time: int) -> None:
    assert resampler(torch.zeros(3, time), 44100, 24000).shape == (3, math.ceil(time * 24000 / 44100))


def test_equal_rates_return_the_input() -> None:
    audio = torch.zeros(1, 9)
    assert resample(audio, 24000, 24000) is audio


def test_coprime_rates_use_soxr() -> None:
    """soxr resamples on any device, because torchaudio would need 4 GB of filters."""
    assert kernel_size(44101, 24000) > 60 * LARGEST_KERNEL
    assert max(kernel_size(rate, 24000) for rate in (8000, 11025, 44100, 96000, 192000)) < LARGEST_KERNEL / 10
    assert resample(torch.zeros(1, 44101), 44101, 24000).shape == (1, 24000)


def test_missing_soxr_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    monkeypatch.setitem(sys.modules, "torchaudio.functional", None)
    monkeypatch.setitem(sys.modules, "codec.io.audio", None)
    torchaudio_module.cache_clear()
    with pytest.raises(MissingDependency, match=r"^resampling 48000 to 24000 Hz needs soxr: install it"):
        resample(torch.zeros(1, 9), 48000, 24000)
    torchaudio_module.cache_clear()


def test_failing_import_of_torchaudio(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(name: str) -> None:
        raise RuntimeError("compiled with different CUDA versions")

    monkeypatch.setattr(module, "import_module", fails)
    torchaudio_module.cache_clear()
    assert torchaudio_functional() is None
    torchaudio_module.cache_clear()
