#!/usr/bin/env bash
# What: sphn.resample (the audio package of Kyutai, which moshi uses) is late by 170 to 960 samples of its output (11 to 32 ms), another number for each pair
#   of rates, and returns up to 2.4% more samples than the duration asks for. sphn.read(..., sample_rate=...) does the same.
# Why it surprises: the delay differs by rate and is not stated, and resamplers of whole signals (soxr, scipy, torchaudio)
#   have none. A read of exactly one second gives 24080 samples at 24 kHz.
# Consequence: codes of files stored at another rate are shifted against their transcripts, labels and against files that had the rate already; read without
#   sample_rate and resample with a package that removes its delay.
# Versions: sphn 0.2.1, soundfile 0.14.0, numpy 2.4.6, scipy 1.17.1.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile sphn==0.2.1 soundfile==0.14.0 numpy==2.4.6 scipy==1.17.1
cd "$work"
venv/bin/python - <<'EOF'
import importlib.metadata
import math
import sys

import numpy as np
import soundfile
import sphn
from scipy.signal import butter, resample_poly, sosfilt


def noise(samples, rate):
    white = np.random.default_rng(0).standard_normal(samples)
    return sosfilt(butter(6, 3000, fs=rate, output="sos"), 0.3 * white).astype(np.float32)


def lag(before, after):
    size = 2 * max(len(before), len(after))
    product = np.conj(np.fft.rfft(before, size)) * np.fft.rfft(after, size)
    shift = int(np.fft.irfft(product).argmax())
    return shift if shift < size // 2 else shift - size


print("sphn", importlib.metadata.version("sphn"))
same = True
for rate, new_rate, delay in ((44100, 24000, 280), (24000, 44100, 955), (48000, 16000, 171), (24000, 16000, 342), (16000, 24000, 768)):
    sound = noise(2 * rate, rate)
    common = math.gcd(rate, new_rate)
    right = resample_poly(sound, new_rate // common, rate // common)
    seen = np.asarray(sphn.resample(sound, rate, new_rate))
    late = lag(right, seen)
    print(f"{rate} to {new_rate}: {len(seen)} samples, {2 * new_rate} expected; late by {late} ({1e3 * late / new_rate:.1f} ms)")
    same &= abs(late - delay) <= 2 and len(seen) > 2 * new_rate
sound = noise(2 * 44100, 44100)
soundfile.write("sound.wav", sound, 44100, subtype="FLOAT")
second = np.asarray(sphn.read("sound.wav", start_sec=0.5, duration_sec=1.0, sample_rate=24000)[0])[0]
late = lag(resample_poly(sound[22050:66150], 80, 147), second)
print(f"sphn.read of one second at 24 kHz: {len(second)} samples, late by {late}")
same &= len(second) == 24080 and abs(late - 280) <= 2
print("expected: no lag, and the duration times the new rate")
print("seen: late, and too long" if same else "the behavior has changed")
sys.exit(not same)
EOF
