#!/usr/bin/env bash
# What: torchaudio.functional.resample of a bfloat16 signal is wrong by up to the size of the signal (SNR 2 dB from 22.05 to 16 kHz, 10 dB from 44.1 to 16 kHz), of
#   a float16 signal by 25 to 35 dB; transforms.Resample in the same type gives 53 and 71 dB, about what rounding allows. Rates with a small ratio are fine.
# Why it surprises: function and class are documented as the same operation, one with a cached filter. The function computes the filter in the type
#   of the signal, and the positions of its taps count up to the reduced rate (441), where bfloat16 has integers only up to 256.
# Consequence: the output of a decoder in half precision is resampled for a measure or a second model with distortion that looks like the decoder's:
#   convert to float32 first, or use the class.
# Versions: torchaudio 2.11.0 beside torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys

import torch
import torchaudio

print("torchaudio", torchaudio.__version__, "torch", torch.__version__)
LIMIT = {torch.bfloat16: (25, 50), torch.float16: (45, 65)}  # dB: the function stays below the first, the class above the second


def snr(right, seen):
    return float(10 * torch.log10(right.square().sum() / (right - seen.double()).square().sum()))


same = True
for rate, new_rate in ((22050, 16000), (44100, 16000), (48000, 44100), (24000, 44100), (48000, 24000)):
    time = torch.arange(2 * rate).double() / rate
    sound = 0.3 * (torch.sin(2 * torch.pi * 440 * time) + torch.sin(2 * torch.pi * 3100 * time + 1))
    for kind, (low, high) in LIMIT.items():
        half = sound.to(kind)
        right = torchaudio.functional.resample(half.double(), rate, new_rate)
        function = snr(right, torchaudio.functional.resample(half, rate, new_rate))
        transform = snr(right, torchaudio.transforms.Resample(rate, new_rate).to(kind)(half))
        print(f"{rate} to {new_rate} in {kind}: function {function:.1f} dB, class {transform:.1f} dB")
        same &= transform > high and ((function > high) if (rate, new_rate) == (48000, 24000) else (function < low))
print("expected: the same from both")
print("seen: the function is wrong unless the ratio is small" if same else "the behavior has changed")
sys.exit(not same)
EOF
