#!/usr/bin/env bash
# What: noisereduce takes what lies outside of the spectrum and of the clip for silence. (1) With stationary=True it attenuates everything below
#   250 Hz, by 4 to 5 dB below 30 Hz and by 1.6 around 100 Hz, also where nothing is noise and even with prop_decrease=0: it smooths the mask with
#   scipy's fftconvolve in mode "same", which takes the mask as 0 below the first and above the last bin, and applies prop_decrease before that
#   (after it in the default mode). (2) In its default mode steady noise is reduced by 44 dB in the middle of a clip and by 18 to 24 dB in its
#   first and last half second: each clip gets 30000 zeros at both ends, and they pull the estimate of the noise floor down.
# Why it surprises: prop_decrease is documented as "the proportion to reduce the noise by (1.0 = 100%)", so 0 means no change, as it does in the
#   default mode. Steady noise is the easiest case of all. And of the padding the documentation says that larger time constants need more of it.
# Consequence: "cleaned" speech loses some of its fundamental (85 to 180 Hz) and music its bass, and clips of a few seconds keep most of their noise.
#   Set freq_mask_smooth_hz and time_mask_smooth_ms to None for (1), and padding to 0 for (2).
# Versions: noisereduce 3.0.3, numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile noisereduce==3.0.3 numpy==2.4.6 scipy==1.17.1
OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
from noisereduce import reduce_noise
from scipy.signal import welch

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("noisereduce", "numpy", "scipy")))
BANDS = ((0, 30), (60, 140), (180, 220), (1000, 4000))
generator = np.random.default_rng(0)
same = True

print("\n(1) stationary: a wide-band signal 100 dB above the noise that is given as y_noise; gain in each band, 0 dB expected")
for rate in (16000, 48000):
    signal = 0.1 * generator.standard_normal(8 * rate)
    noise = 1e-6 * generator.standard_normal(rate)
    for label, options in (
        ("prop_decrease=1", {"prop_decrease": 1.0}),
        ("prop_decrease=0", {"prop_decrease": 0.0}),
        ("no smoothing of the mask", {"freq_mask_smooth_hz": None, "time_mask_smooth_ms": None}),
        ("the default mode, prop_decrease=0", {"stationary": False, "prop_decrease": 0.0}),
    ):
        output = reduce_noise(signal, rate, **{"stationary": True, "y_noise": noise} | options)
        inner = slice(rate, 7 * rate)
        frequencies, before = welch(signal[inner], rate, nperseg=rate)
        after = welch(output[inner], rate, nperseg=rate)[1]
        gains = []
        for low, high in BANDS:
            band = (frequencies >= low) & (frequencies <= high)
            gains.append(10 * np.log10(after[band].sum() / before[band].sum()))
        print(f"{rate} Hz, {label:34}", *(f"{low}-{high} Hz: {gain:5.2f} dB" for (low, high), gain in zip(BANDS, gains)))
        if label.startswith("prop"):
            same &= -5.2 < gains[0] < -3.4 and -2.0 < gains[1] < -1.2 and -0.4 < gains[2] < -0.1 and abs(gains[3]) < 0.02
        else:
            same &= max(map(abs, gains)) < 0.02

print("\n(2) default mode: 10 s of steady white noise at 16 kHz; reduction in dB by half seconds, equal values expected")
clip = 0.1 * generator.standard_normal(10 * 16000)
reduced = []
for padding in (30000, 100000, 0):
    output = reduce_noise(clip, 16000, padding=padding)
    reduced.append(10 * np.log10(np.square(clip).reshape(20, -1).mean(1) / np.square(output).reshape(20, -1).mean(1)))
    label = f"padding={padding}" + (" (the default)" if padding == 30000 else "")
    print(f"{label:30}", *(f"{value:.0f}" for value in reduced[-1]))
for values in reduced[:2]:
    same &= values[[0, -1]].max() < 26 and values[8:12].mean() > 40
same &= reduced[2].min() > 30
print("\nseen:", "so" if same else "the behavior has changed")
sys.exit(not same)
EOF
