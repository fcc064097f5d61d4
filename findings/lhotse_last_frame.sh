#!/usr/bin/env bash
# What: lhotse reads a temporal array up to round(duration / frame_shift) frames, also for a whole, uncut recording. Codecs make ceil(duration / frame_shift):
#   of recordings of random length, half lose the last frame of their tokens between attach_tensor and load_custom, without an error or a warning.
# Why it surprises: nothing was cut, the manifest still states the shape that was attached, and the other half of the lengths come back whole.
#   SharWriter stores the shortened array beside a manifest of the full shape.
# Consequence: up to half a frame of sound is missing at the end (40 ms with Mimi). Pad recordings to whole frames before they get a cut, or attach with
#   frame_shift = cut.duration / frames; without a frame_shift (no time axis) the array comes back whole as well, but is not cut with the sound.
# Versions: lhotse 1.33.0, torch 2.14.1, numpy 2.4.6, soundfile 0.14.0.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
# urllib3 is imported and not declared
"$work/venv/bin/pip" install --quiet --no-compile lhotse==1.33.0 torch==2.14.1 numpy==2.4.6 soundfile==0.14.0 urllib3
cd "$work"
venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import os
import sys

import lhotse
import numpy as np
import soundfile
from lhotse.shar import SharWriter

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("lhotse", "torch", "numpy", "soundfile")))


def attached(samples, rate, hop, shift=None):
    """A cut of the whole recording and its tokens [frames, codebooks]."""
    cut = lhotse.Recording("a", sources=[], sampling_rate=rate, num_samples=samples, duration=samples / rate).to_cut()
    codes = np.arange(8 * -(-samples // hop)).reshape(-1, 8)
    return cut.attach_tensor("codes", codes, frame_shift=shift or hop / rate, temporal_dim=0), codes


same = True
for name, rate, hop in (("EnCodec", 24000, 320), ("Mimi", 24000, 1920), ("DAC", 44100, 512)):
    short = 0
    lengths = np.random.default_rng(0).integers(rate, 20 * rate, 2000)
    for samples in lengths.tolist():
        cut, codes = attached(samples, rate, hop)
        seen = cut.load_codes()
        less = 0 < samples % hop < hop / 2
        same &= np.array_equal(seen, codes[: len(codes) - less])
        short += len(seen) < len(codes)
        frames = len(codes)
        same &= np.array_equal(attached(samples, rate, hop, samples / rate / frames)[0].load_codes(), codes)
        same &= np.array_equal(attached(frames * hop, rate, hop)[0].load_codes(), codes)
    print(f"{name}, {hop} samples a frame at {rate} Hz: {short} of {len(lengths)} recordings lose their last frame")
    same &= 0.4 < short / len(lengths) < 0.6

soundfile.write("a.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 23600), 24000)
codes = np.arange(8 * 13).reshape(13, 8)  # Mimi: 12.29 frames
cut = lhotse.Recording.from_file("a.wav", "a").to_cut().attach_tensor("codes", codes, frame_shift=0.08, temporal_dim=0)
os.mkdir("shar")
with SharWriter("shar", fields={"recording": "wav", "codes": "numpy"}) as writer:
    writer.write(cut)
back = next(iter(lhotse.CutSet.from_shar(in_dir="shar")))
stored = back.codes.array.load()
print(f"Shar: attached {codes.shape}, manifest {tuple(back.codes.shape)}, stored {stored.shape}, loaded {back.load_codes().shape}")
same &= tuple(back.codes.shape) == (13, 8) and np.array_equal(stored, codes[:12])
print("expected: the array that was attached")
print("seen: one frame less, if less than half of the last frame is sound" if same else "the behavior has changed")
sys.exit(not same)
EOF
