#!/usr/bin/env bash
# What: pyrnnoise returns denoised sound that is 20.00 ms late, at every sample rate and for files and streams alike, and as long as its input: it begins with 20 ms of silence, and the last
#   20 ms are missing. RNNoise itself has this delay (10 ms of its overlapping windows, and 10 ms of lookahead since its version 0.2); the package neither removes nor states it.
# Why it surprises: partial=True is there to say that a chunk is the last one, the number of samples is right, and the demo of RNNoise, which leaves out its first frame of 10 ms, suggests 10 ms.
# Consequence: pairs of noisy and denoised sound for training, SI-SDR against a clean reference, and labels of words or frames are off by one frame of a codec with 50 frames per second:
#   syllables of a synthetic voice have an SI-SDR of -22 dB as they come and of 1 to 2 dB once they are shifted. Append 20 ms of silence, and drop the first 20 ms of the output.
# Versions: pyrnnoise 0.4.5, audiolab 0.5.2, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pyrnnoise==0.4.5 audiolab==0.5.2 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
from pyrnnoise import RNNoise

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("pyrnnoise", "audiolab", "numpy")))


def voice(rate, seconds=4):
    """Syllables of a voice: harmonics of a pitch that moves, with three formants, as int16."""
    time = np.arange(int(seconds * rate)) / rate
    phase = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 1.1 * time) + 10 * np.sin(2 * np.pi * 3.3 * time)) / rate
    sound = np.zeros_like(time)
    for number in range(1, int(min(5000, 0.45 * rate) / 120) + 1):
        gains = [gain / (1 + ((120 * number - middle) / width) ** 2) for gain, middle, width in ((1, 500, 80), (0.6, 1500, 100), (0.3, 2500, 150))]
        sound += sum(gains) * np.sin(number * phase)
    sound *= np.sqrt(np.clip(np.sin(2 * np.pi * 2.2 * time), 0, None))
    return np.round(16_000 * sound / np.abs(sound).max()).astype(np.int16)


def denoised(sound, rate, chunk):
    """The output of RNNoise for sound [time] that comes in chunks, the last one with partial=True."""
    denoiser, frames = RNNoise(rate), []
    for first in range(0, len(sound), chunk):
        part = sound[None, first : first + chunk]
        frames += [frame for _, frame in denoiser.denoise_chunk(part, partial=first + chunk >= len(sound))]
    return np.concatenate(frames, axis=1)[0]


def lag(late, sound):
    """Samples by which the first signal is late, by the maximum of the correlation within 100 ms."""
    size = 2 * len(sound)
    correlation = np.fft.irfft(np.fft.rfft(late.astype(float), size) * np.conj(np.fft.rfft(sound.astype(float), size)))
    return int(correlation[:4800].argmax())


def si_sdr(sound, reference):
    reference = reference.astype(float)
    target = (sound @ reference) / (reference @ reference) * reference
    return 10 * np.log10((target @ target) / ((sound - target) @ (sound - target)))


same = True
for rate in (16_000, 24_000, 44_100, 48_000):
    sound = voice(rate)
    for chunk in (len(sound), rate // 10):
        out = denoised(sound, rate, chunk)
        late = lag(out, sound)
        scores = si_sdr(out, sound), si_sdr(out[late:], sound[: len(out) - late])
        begin = np.abs(out[: late // 2]).max()
        print(f"{rate} Hz, chunks of {chunk}: {len(out)} of {len(sound)} samples, late by {late} ({1000 * late / rate:.2f} ms), SI-SDR {scores[0]:.1f} dB, shifted {scores[1]:.1f} dB, peak of the first 10 ms {begin}")
        same &= len(out) == len(sound) and late == rate // 50 and scores[1] > scores[0] + 15
sound = voice(16_000)
padded = denoised(np.concatenate([sound, np.zeros(320, np.int16)]), 16_000, 64_320)[320:]
print(f"with 20 ms of silence behind the sound, without the first 20 ms of the output: late by {lag(padded, sound)}, SI-SDR {si_sdr(padded, sound):.1f} dB")
same &= lag(padded, sound) == 0
print("expected: a delay that is removed, or stated" if same else "changed")
sys.exit(not same)
EOF
