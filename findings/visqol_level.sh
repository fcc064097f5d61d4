#!/usr/bin/env bash
# What: ViSQOL's score of one and the same pair depends on how loud the pair was recorded: first it falls, then it climbs to the maximum,
#   and white noise in place of the speech gets nearly full marks. A reference of digital silence gives the maximum to any sound at all.
# Why it surprises: the degraded signal is scaled to the level of the reference, so level looks normalized away; but both spectrograms are then cut
#   at an absolute floor of -45 dB per band, and below it the two are equal by definition. A measure of similarity to a recording rewards the recording's silence.
# Consequence: scores of data sets of different loudness are not comparable, and quiet takes (below about -30 dBFS RMS) should be raised before
#   measuring; pairs with a silent reference must be left out by hand. The opposite pair, sound against a silent output, gives NaN and poisons a mean.
# Versions: visqol-python 3.8.0, numpy 2.4.6, scipy 1.17.1; both modes, speech with the polynomial mapping.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile visqol-python==3.8.0 numpy==2.4.6 scipy==1.17.1
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import math
import sys
import warnings

import numpy as np
from visqol import VisqolApi

warnings.simplefilter("ignore")
print("visqol-python", importlib.metadata.version("visqol-python"))
random = np.random.default_rng(0)
same = True
for mode, rate in (("speech", 16000), ("audio", 48000)):
    api = VisqolApi()
    api.create(mode=mode, use_lattice_model=False if mode == "speech" else None)
    time = np.arange(3 * rate) / rate
    phase = np.cumsum(2 * np.pi * (120 + 20 * np.sin(2 * np.pi * 2.3 * time)) / rate)
    voice = sum(np.sin(k * phase) / k for k in range(1, 25)) * np.clip(np.sin(2 * np.pi * 3 * time), 0, 1)
    voice += 0.02 * random.standard_normal(len(time))
    voice /= np.sqrt(np.mean(voice**2))
    noise = random.standard_normal(len(time))
    noisy = voice + noise * 10 ** (-10 / 20)
    silence = np.zeros(len(time))

    def score(reference, degraded):
        return api.measure_from_arrays(reference, degraded, rate).moslqo

    best = score(voice * 0.1, voice * 0.1)
    levels = (-20, -40, -50, -70, -80)
    table = {}
    for level in levels:
        gain = 10 ** (level / 20)
        table[level] = score(voice * gain, noisy * gain), score(voice * gain, noise * gain)
        print(f"{mode:6} pair at {level} dBFS: noise at 10 dB {table[level][0]:.2f}, noise alone {table[level][1]:.2f}")
    zero_reference, zero_output = score(silence, noise * 0.1), score(voice * 0.1, silence)
    print(f"{mode:6} identical {best:.2f}; silent reference against noise {zero_reference:.2f}; silent output {zero_output}")
    same &= table[-40][0] < table[-20][0] - 0.15 and table[-70][0] > table[-20][0] + 1 and table[-20][1] < 1.3
    same &= table[-50][1] > 1.5 and table[-80][1] > best - 0.6 and zero_reference > best - 0.01 and math.isnan(zero_output)
print("expected: the same score at every level, the lowest one for noise alone and for a silent output")
print("seen: level and silence decide" if same else "the behavior has changed")
sys.exit(not same)
EOF
