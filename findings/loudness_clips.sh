#!/usr/bin/env bash
# What: torchaudio.functional.loudness (ITU-R BS.1770-4) states levels that are too low for signals near full scale, by 2.4 dB for a tone of 4 kHz
#   and peak 1, because its two K-weighting filters clip their output at 1. The first of them is a shelf with 4 dB of gain at high frequencies.
# Why it surprises: the input is within full scale, nothing is clipped in it, and the same signal at a lower level is measured to 0.1 dB. BS.1770 is
#   linear: scaling a signal must move its loudness by as much.
# Consequence: mastered music and normalized speech measure too soft, bright recordings most, so a gain that is computed from it is too large. Scale
#   the signal down first (by 16, say) and add the decibels back.
# Versions: torchaudio 2.11.0 beside torch 2.14.1, numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6 scipy==1.17.1
"$work/venv/bin/python" -W ignore - <<'EOF'
import math
import sys

import numpy as np
import torch
import torchaudio
from scipy.signal import lfilter

RATE = 48000  # the rate for which BS.1770-4 prints its coefficients


def reference(x):
    """Loudness of one channel in LUFS: two filters, blocks of 0.4 s, absolute and relative gate."""
    x = lfilter([1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585], x)
    x = lfilter([1, -2, 1], [1, -1.99004745483398, 0.99007225036621], x)
    power = np.array([np.mean(x[start : start + 19200] ** 2) for start in range(0, len(x) - 19199, 4800)])
    level = -0.691 + 10 * np.log10(power)
    gate = -0.691 + 10 * np.log10(power[level > -70].mean()) - 10
    return -0.691 + 10 * np.log10(power[(level > -70) & (level > gate)].mean())


print("torchaudio", torchaudio.__version__, "torch", torch.__version__)
time = np.arange(3 * RATE) / RATE
wrong = []
print("tone      peak   BS.1770-4   loudness(x)   loudness(x / 16) + 24.08")
for frequency, peak, expected in ((997, 0.1, 0), (4000, 0.5, 0), (4000, 1.0, -2.4), (10000, 1.0, -2.5)):
    x = peak * np.sin(2 * np.pi * frequency * time)
    true = reference(x)
    tensor = torch.from_numpy(x)[None]
    said = float(torchaudio.functional.loudness(tensor, RATE))
    scaled = float(torchaudio.functional.loudness(tensor / 16, RATE)) + 20 * math.log10(16)
    print(f"{frequency:5} Hz  {peak:4}   {true:9.2f}   {said:11.2f}   {scaled:11.2f}")
    if abs(said - true - expected) > 0.2 or abs(scaled - true) > 0.2:
        wrong.append(frequency)
sys.exit(f"behavior changed at {wrong}" if wrong else 0)
EOF
