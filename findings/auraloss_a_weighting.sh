#!/usr/bin/env bash
# What: perceptual_weighting=True of auraloss is not A-weighting at the sample rates of codecs. At 24 kHz its filter is 12 dB below the curve at 10 kHz, at 16 kHz
#   12 dB at 7 kHz, because the bilinear transform puts a zero at half the rate; at 44.1 kHz it is 11 dB above at 50 Hz, because 101 taps are too few.
#   And the log-magnitude term of the loss, one of two, does not change with any weighting: both signals pass the filter, and the difference of logarithms stays.
# Why it surprises: the sample rate has to be given, so that the filter can be right for it, and the documentation says A-weighting without a range.
# Consequence: in the training of a codec of 16 or 24 kHz, errors in the top octave count 12 dB less in the spectral convergence, and as before in the log term. Weigh mel bands instead.
# Versions: auraloss 0.4.0, torch 2.14.1, scipy 1.17.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile auraloss==0.4.0 torch==2.14.1 scipy==1.17.1 numpy==2.4.6
cd "$work"
OMP_NUM_THREADS=1 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import torch
from auraloss.freq import STFTLoss
from auraloss.perceptual import FIRFilter

torch.set_num_threads(1)
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("auraloss", "torch", "scipy")))


def a_weighting(f):
    """IEC 61672-1, in dB."""
    gain = 12194**2 * f**4 / ((f**2 + 20.6**2) * np.sqrt((f**2 + 107.7**2) * (f**2 + 737.9**2)) * (f**2 + 12194**2))
    return 20 * np.log10(gain) + 2.0


same = True
print("gain of a steady sine through FIRFilter('aw'), dB, and of the standard")
for rate, f, error in ((44_100, 1000, 0), (24_000, 1000, 0), (16_000, 1000, 0), (24_000, 10_000, -12), (16_000, 7000, -12), (44_100, 50, 11)):
    sine = torch.from_numpy(np.sin(2 * np.pi * f * np.arange(rate) / rate)).float()[None, None]
    filtered = FIRFilter(filter_type="aw", fs=rate)(sine, sine)[0][0, 0, 500:-500]
    seen = 20 * np.log10(float(filtered.square().mean().sqrt()) * 2**0.5)
    print(f"  {rate} Hz, sine of {f:5} Hz: {seen:6.1f}, standard {a_weighting(f):6.1f}")
    same &= abs(seen - a_weighting(f) - error) < 1.0

print("log-magnitude term of STFTLoss at 44.1 kHz, white noise of which one band is 6 dB too loud: without and with perceptual_weighting")
noise = np.random.default_rng(0).standard_normal(3 * 44_100) / 10
spectrum, frequencies = np.fft.rfft(noise), np.fft.rfftfreq(len(noise), 1 / 44_100)
for low, high in ((50, 550), (2500, 3000)):
    louder = np.fft.irfft(np.where((frequencies >= low) & (frequencies < high), 2, 1) * spectrum, len(noise))
    pair = [torch.from_numpy(x).float()[None, None] for x in (louder, noise)]
    terms = {w: [float(x) for x in STFTLoss(w_log_mag=1, perceptual_weighting=w, sample_rate=44_100, output="full")(*pair)[1:3]] for w in (False, True)}
    print(f"  {low} to {high} Hz (standard {a_weighting(low):.1f} to {a_weighting(high):.1f} dB): {terms[False][1]:.4f} and {terms[True][1]:.4f}; spectral convergence {terms[False][0]:.3f} and {terms[True][0]:.3f}")
    same &= abs(terms[True][1] / terms[False][1] - 1) < 0.1
    same &= (terms[True][0] < 0.8 * terms[False][0]) if low == 50 else (terms[True][0] > terms[False][0])
print("expected: the curve of the standard within a dB or two, and errors at 50 Hz that count less in both terms")
print("seen: 12 dB too low at the top, 11 too high at the bottom, and a log term that does not change" if same else "the behavior has changed")
sys.exit(not same)
EOF
