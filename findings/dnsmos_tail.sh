#!/usr/bin/env bash
# What: DNSMOS as packaged in speechmos ignores the end of a longer clip, up to 1.98 s of it: with a clip of 10.99 s, loud noise in place of its
#   last 1.98 s leaves every score the same to the last bit. And a clip of 9.00 s is scored otherwise than the same clip plus 0.02 s: the short
#   one is doubled to 18 s and scored as the mean of 9 windows, all across the seam, the longer one as one window: 9 times the work.
# Why it surprises: the windows are 9.01 s long and 1 s apart, and one expects the last one to reach the end; but their count is taken from the
#   length cut down to whole seconds, and the cut to whole hops comes on top of that. There is no warning and no sign in the result.
# Consequence: a decoder that fails at the end of a recording (a lost frame, a click of the flush, a runaway state) goes unseen, and clips cut to
#   exactly 9 s or to 10 s lose something each: repeat the clip or score its last 9.01 s apart. Compare codecs on clips of one length only.
# Versions: speechmos 0.0.1.1, onnxruntime 1.32.0, librosa 0.11.0, numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile speechmos==0.0.1.1 onnxruntime==1.32.0 librosa==0.11.0 numpy==2.4.6 scipy==1.17.1 requests==2.34.2 tqdm==4.70.1 pandas==3.1.1
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import numpy as np
from scipy.signal import lfilter
from speechmos import dnsmos

RATE = 16000
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480), (570, 840, 2410))
print("speechmos", importlib.metadata.version("speechmos"))
random = np.random.default_rng(0)
time = np.arange(12 * RATE) / RATE
pitch = 120 * 2 ** (0.3 * np.sin(2 * np.pi * 0.41 * time) + 0.1 * np.sin(2 * np.pi * 1.7 * time))
source = 6 * np.diff(np.floor(np.cumsum(pitch / RATE)), prepend=0) + 0.05 * random.standard_normal(len(time))
voice, state = np.zeros(len(time)), np.zeros(6)
for i, start in enumerate(range(0, len(time), RATE // 6)):  # a vowel every 167 ms
    filter = np.array([1.0])
    for center, width in zip(VOWELS[i % 5], (80, 110, 160)):
        radius = np.exp(-np.pi * width / RATE)
        filter = np.convolve(filter, [1, -2 * radius * np.cos(2 * np.pi * center / RATE), radius**2])
    voice[start : start + RATE // 6], state = lfilter([1], filter, source[start : start + RATE // 6], zi=state)
voice *= np.clip(np.sin(2 * np.pi * 3.1 * time) + 0.2 * np.sin(2 * np.pi * 0.53 * time), 0, 1)
voice = (0.5 * voice / np.abs(voice).max() + 0.0005 * random.standard_normal(len(time))).astype(np.float32)


def score(clip):
    return {name: float(value) for name, value in dnsmos.run(clip, RATE).items()}


def show(name, result):
    print(f"{name:44}", "  ".join(f"{key} {value:.4f}" for key, value in result.items()))


clip = voice[: int(10.99 * RATE)]
broken = clip.copy()
first = int(9.01 * RATE)
broken[first:] = np.clip(0.9 * random.standard_normal(len(clip) - first), -1, 1)
whole, ruined = score(clip), score(broken)
show("10.99 s", whole)
show("10.99 s, last 1.98 s full-scale noise", ruined)
short, longer = score(voice[: 9 * RATE]), score(voice[: int(9.02 * RATE)])
show("9.00 s", short)
show("9.02 s", longer)
difference = max(abs(short[key] - longer[key]) for key in short)
print("expected: much lower scores with the noise; 0.02 s more of the same voice hardly matters")
same = whole == ruined and difference > 0.02
print(f"seen: the noise changes nothing; 0.02 s change a score by {difference:.3f}" if same else "the behavior has changed")
sys.exit(not same)
EOF
