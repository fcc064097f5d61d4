#!/usr/bin/env bash
# What: torchcrepe.predict takes hop_length in samples of the input, and at other rates than 16 kHz computes with int(hop_length * 16000 / rate). A hop of 512
#   samples at 44.1 kHz (185.76 samples of 16 kHz) is taken as 185: a change of pitch at 50 s is found 0.2 s late, 18 frames, and a minute has 22 frames
#   more than 1 + time // hop_length, which the documentation promises. The error grows with time, and is 0 for a hop of 10 ms, the default.
# Why it surprises: the hops of codecs and vocoders are not whole at 16 kHz (512 of DAC, 256 of vocoders at 22.05 kHz, 320 of EnCodec), clips in tests are short,
#   and the track has the right values, only later and later. crepe, whose frames are a whole number of milliseconds, does not take hops in samples.
# Consequence: pitch by codec frame drifts away from the codes. Resample to 16 kHz first and choose a hop that is whole there, or interpolate a track of 10 ms.
# Versions: torchcrepe 0.0.24, torch 2.11.0, librosa 0.11.0, resampy 0.4.3, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchcrepe==0.0.24 torch==2.11.0 torchaudio==2.11.0 librosa==0.11.0 resampy==0.4.3 numpy==2.4.6 scipy==1.17.1 "setuptools<81"
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import torch
import torchcrepe

torch.set_num_threads(1)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("torchcrepe", "torch", "resampy")))
LENGTH, CHANGE = 60, 50  # seconds


def tone(rate):
    """A harmonic tone whose pitch steps from 200 to 300 Hz at CHANGE."""
    time = np.arange(LENGTH * rate) / rate
    phase = 2 * np.pi * np.cumsum(np.where(time < CHANGE, 200.0, 300.0)) / rate
    return torch.from_numpy(sum(np.sin(k * phase) / k for k in range(1, 7)) / 8).float()[None]


same = True
print(f"pitch steps from 200 to 300 Hz at {CHANGE} s")
for rate, hop, drifts in ((44_100, 441, False), (44_100, 512, True), (22_050, 256, True), (24_000, 320, True), (16_000, 320, False)):
    pitch = torchcrepe.predict(tone(rate), rate, hop, 50, 550, "tiny", decoder=torchcrepe.decode.argmax, batch_size=512)[0].numpy()
    promised = 1 + LENGTH * rate // hop
    found = int(np.flatnonzero(pitch[10:-10] > 245)[0]) + 10
    late = found * hop / rate - CHANGE
    values = np.median(pitch[: found - 5]), np.median(pitch[found + 5 :])
    print(f"  {rate} Hz, hop {hop}: {len(pitch)} frames (promised {promised}), step found at {found * hop / rate:.3f} s ({late:+.3f} s); {values[0]:.0f} and {values[1]:.0f} Hz")
    same &= abs(values[0] - 200) < 4 and abs(values[1] - 300) < 6
    exact = hop * 16_000 / rate
    drift = CHANGE * (exact / int(exact) - 1)
    same &= abs(late - drift) < 0.025
    same &= (late > 0.06 and len(pitch) - promised > 5) if drifts else abs(late) < 0.025 and len(pitch) == promised
print("expected: frame i at i * hop_length / sample_rate, whatever the rate")
print("seen: the hop is cut to whole samples of 16 kHz, and the error adds up" if same else "the behavior has changed")
sys.exit(not same)
EOF
