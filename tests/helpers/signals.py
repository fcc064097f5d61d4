"""Noise and a synthetic voice, for tests of measures."""

from functools import cache

import numpy as np

from codec.evaluation.signal import Floats
from codec.io import synth

RATE = 24_000


def noise(seconds: float = 1.0, *, level: float = 0.1, seed: int = 0, rate: int = RATE) -> Floats:
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def voice(seconds: float = 1.0, *, rate: int = RATE) -> Floats:
    """Syllables: a gliding harmonic tone, opened and closed four times a second, over a little noise."""
    time = np.arange(round(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 20))
    envelope = np.clip(np.sin(2 * np.pi * 4 * time), 0, None)
    return (0.2 * envelope * tone).astype(np.float32) + noise(seconds, level=1e-3, rate=rate)


@cache
def synthetic_recording() -> Floats:
    """`codec.io.synth.synthesize` [1, time] at its `RATE`, made once."""
    audio = synth.synthesize()
    audio.setflags(write=False)
    return audio
