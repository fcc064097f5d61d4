#!/usr/bin/env bash
# What: the voice detector silero-vad takes audio at 32, 48 and 96 kHz by keeping every second, third or sixth sample, without a low-pass filter, in get_speech_timestamps and
#   in the model itself. What lies above 8 kHz is folded into the band where it looks for voices.
# Why it surprises: multiples of 16 kHz are documented as supported rates, its own read_audio resamples with a filter, and the warning ("casting to 16000 manually") speaks of a cast.
# Consequence: a signal without anything below 16 kHz is speech, because it is a voice moved up by 16 kHz; noise above 9 kHz (hiss, cicadas, cymbals), which leaves the band of voices
#   alone, hides speech that is 14 dB softer; and a line whistle of old video at 15.6 kHz becomes a tone at 375 Hz. Data sets cut by timestamps of the 48 kHz file differ from those of
#   the same file at 16 kHz. Resample to 16 kHz with a filter before; then all three are right.
# Versions: silero-vad 6.2.3, torch 2.14.1, onnxruntime 1.32.0, numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 onnxruntime==1.32.0 numpy==2.4.6 scipy==1.17.1 packaging
"$work/venv/bin/pip" install --quiet --no-compile --no-deps silero-vad==6.2.3
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import torch
from scipy.signal import hilbert, lfilter, resample_poly
from silero_vad import get_speech_timestamps, load_silero_vad

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("silero-vad", "torch", "onnxruntime", "numpy", "scipy")))
torch.set_num_threads(1)
RATE = 48_000
model = load_silero_vad(onnx=True)


def voice(seconds=4):
    """Vowels by three resonances of a pulse train, 0.22 s each, with nothing above 8 kHz and a peak of 0.3."""
    random = np.random.default_rng(0)
    time = np.arange(seconds * RATE) / RATE
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * time) + 8 * np.sin(2 * np.pi * 2.3 * time)
    source = lfilter([1], [1, -0.97], np.diff(np.floor(np.cumsum(pitch) / RATE), prepend=0)) + 0.01 * random.standard_normal(len(time))
    formants = [(700, 1200, 2600), (300, 2300, 3000), (320, 800, 2400), (500, 1800, 2500), (600, 1000, 2500)]
    out, size, fade = np.zeros(len(time)), RATE * 22 // 100, RATE * 3 // 100
    for first in range(0, len(time), size):
        part = source[first : first + size]
        for frequency, width in zip(formants[random.integers(5)], (80, 100, 140)):
            radius = np.exp(-np.pi * width / RATE)
            poles = [1, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2]
            part = lfilter([sum(poles)], poles, part)
        window = np.minimum(1, np.minimum(np.arange(len(part)), np.arange(len(part))[::-1]) / fade)
        out[first : first + size] = part * window * (random.random() < 0.8)
    out = resample_poly(resample_poly(out, 1, 3), 3, 1)
    return 0.3 * out / np.abs(out).max()


def seconds_of_speech(sound, rate):
    found = get_speech_timestamps(torch.from_numpy(sound.astype(np.float32)), model, sampling_rate=rate)
    return sum(part["end"] - part["start"] for part in found) / rate


def probable(sound, rate):
    """The number of blocks of 32 ms for which the model itself gives a probability above 0.5."""
    model.reset_states()
    block = rate * 32 // 1000
    blocks = torch.from_numpy(sound.astype(np.float32))[: len(sound) // block * block].split(block)
    return sum(model(each, rate).item() > 0.5 for each in blocks)


speech = voice()
time = np.arange(len(speech)) / RATE
moved = np.real(hilbert(speech) * np.exp(2j * np.pi * 16_000 * time))
spectrum, frequency = np.fft.rfft(np.random.default_rng(1).standard_normal(len(speech))), np.fft.rfftfreq(len(speech), 1 / RATE)
hiss = np.fft.irfft(spectrum * (frequency > 9000), len(speech))
hiss *= 5 * np.sqrt((speech**2).mean() / (hiss**2).mean())
signals = {"voice": speech, "voice moved up by 16 kHz": moved, "voice and hiss above 9 kHz": speech + hiss}
same, found = True, {}
for name, sound in signals.items():
    power = np.abs(np.fft.rfft(sound)) ** 2
    low = power[frequency < 8000].sum() / (np.abs(np.fft.rfft(speech)) ** 2).sum()
    filtered = resample_poly(sound, 1, 3)
    found[name] = seconds_of_speech(sound, RATE), seconds_of_speech(filtered, 16_000), probable(sound, RATE), probable(filtered, 16_000)
    print(f"{name}: energy below 8 kHz {low:.3f} of the voice's; seconds of speech at 48 kHz {found[name][0]:.2f}, resampled to 16 kHz {found[name][1]:.2f}; blocks of 32 ms {found[name][2]} and {found[name][3]}")
    same &= abs(seconds_of_speech(sound[::3], 16_000) - found[name][0]) < 0.05
whistle = np.sin(2 * np.pi * 15_625 * time)[::3]
folded = np.fft.rfftfreq(len(whistle), 1 / 16_000)[np.abs(np.fft.rfft(whistle)).argmax()]
print(f"every third sample of a tone of 15625 Hz is a tone of {folded:.0f} Hz")
at_48, at_16, blocks_48, blocks_16 = zip(*found.values())
same &= at_48[0] > 1 and abs(at_48[0] - at_16[0]) < 0.2
same &= at_48[1] > 1 and at_16[1] == 0 and blocks_48[1] > 20 and blocks_16[1] == 0
same &= at_48[2] < 0.5 * at_16[2] and at_16[2] > 1
print("expected: the seconds of speech of a signal do not depend on what lies above 8 kHz")
print("seen: sounds above 8 kHz become speech or hide it, because every third sample is taken as it is" if same else "the behavior has changed")
sys.exit(not same)
EOF
