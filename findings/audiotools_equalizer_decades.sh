#!/usr/bin/env bash
# What: decibels in the equalizer of descript-audiotools count twenty times: AudioSignal.equalizer(db) multiplies a band by 10**db instead of 10**(db / 20),
#   so -6 is a gain of -120 dB. The transform Equalizer, documented with "the maximum dB cut to apply to the audio in any band, by default 1.0 dB", cuts
#   bands by up to 20 dB, and RoomImpulseResponse and BackgroundNoise do so to the impulse response and the noise, with the same default.
# Why it surprises: the argument is named db and the unit is documented; volume_change(db) of the same class, and mix and normalize, take true decibels.
# Consequence: the mildest augmentation by its documentation is a strong one, whole octaves nearly vanish, and a value of 3 or 6, as for any equalizer,
#   leaves nothing of the signal, or clips it. Divide by 20: equalizer(db / 20), Equalizer(eq_amount=("const", 0.05)) for cuts of up to 1 dB.
# Versions: descript-audiotools 0.7.2, torch 2.14.1, torchaudio 2.11.0, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile descript-audiotools==0.7.2 torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import inspect
import sys

import torch
from audiotools import AudioSignal
from audiotools.data.transforms import Equalizer
from numpy.random import RandomState

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("descript-audiotools", "torch")))
RATE = 44100
BANDS = 6
noise = 0.1 * torch.randn(1, 1, 2 * RATE, generator=torch.Generator().manual_seed(0))


def signal():
    return AudioSignal(noise.clone(), RATE)


def level(samples):
    return 10 * float(samples.square().mean().log10())


same = True
print("gain of white noise in dB where all bands get the same value")
for db in (0.0, -0.3, -1.0, -3.0, -6.0, 1.0):
    equalized = level(signal().equalizer(torch.full((BANDS,), db)).audio_data) - level(noise)
    changed = level(signal().volume_change(db).audio_data) - level(noise)
    print(f"{db:5.1f}: equalizer {equalized:7.2f}, volume_change {changed:5.2f}")
    same &= abs(equalized - 20 * db) < 0.1 and abs(changed - db) < 0.01

documented = " ".join(line.strip() for line in inspect.getdoc(Equalizer).splitlines())
documented = documented[documented.index("The maximum") : documented.index("n_bands : int")]
print(f'\nEqualizer(), documented: "{documented.strip()}"')
transform = Equalizer()
cuts = []
for seed in range(50):
    values = transform.instantiate(RandomState(seed), signal())
    before, after = (item.mel_filterbank(BANDS) for item in (signal(), transform(signal(), **values)))
    gains = 10 * (after.square().mean((0, 1, 2)) / before.square().mean((0, 1, 2))).log10()
    cuts.append(-gains)
cuts = torch.stack(cuts)
above = float((cuts > 1).float().mean())
print(f"cut of each of {BANDS} bands in 50 draws: mean {float(cuts.mean()):.1f} dB, largest {float(cuts.max()):.1f} dB, {above:.0%} above 1 dB")
same &= float(cuts.mean()) > 6 and float(cuts.max()) > 14 and "1.0 dB" in documented
print("expected: at most 1 dB")
print("seen: twenty times as many decibels" if same else "the behavior has changed")
sys.exit(not same)
EOF
