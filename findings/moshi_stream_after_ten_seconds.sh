#!/usr/bin/env bash
# What: Mimi in moshi (release configuration) gives other latents as a stream than for the whole signal, from the frame at 10.0 s on and never before:
#   several hundred times the rounding difference with one frame per call, twice that again with five. From there, tokens of a live stream are not
#   those of the same recording encoded offline.
# Why it surprises: every layer is causal, streaming is what the model is for, and tests on clips of less than ten seconds agree to 1e-6.
# Reason: the ring of keys and values has as many places as the attention context (250 steps of 40 ms). A call writes all its steps before it attends,
#   so the first step of a frame of two no longer finds the oldest step of its context.
# Consequence: compare streaming with offline beyond the context; a ring needs the context plus the steps of a call, less one.
# Versions: moshi 0.2.13, torch 2.14.1. Random weights: the latents before the quantizer are compared.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat > "$work/try.py" <<'EOF'
import sys

import torch
from moshi.models import loaders

torch.manual_seed(0)
torch.set_grad_enabled(False)
mimi = loaders.get_mimi(None, num_codebooks=8).eval()
audio = 0.3 * torch.randn(1, 1, 140 * mimi.frame_size)
whole = mimi.encode_to_latent(audio, quantize=False)
full = int(mimi.encoder_transformer.transformer.layers[0].self_attn.context / mimi.encoder_frame_rate * mimi.frame_rate)
print(f"frame rate {mimi.frame_rate} Hz, the context is full after {full} frames = {full / mimi.frame_rate:.1f} s")
as_before = True
for frames in (1, 5):
    with mimi.streaming(1):
        parts = [mimi.encode_to_latent(part, quantize=False) for part in audio.split(frames * mimi.frame_size, dim=2)]
    error = (torch.cat(parts, dim=2) - whole).norm(dim=1)[0] / whole.norm(dim=1)[0]
    before, after = float(error[:full].max()), float(error[full:].median())
    print(f"{frames} frame(s) per call: greatest relative difference in the first {full} frames {before:.1e}, median from there on {after:.1e}")
    as_before = as_before and before < 1e-5 and after > 1e-4 and float(error[full]) > 1e-4
sys.exit(0 if as_before else "behavior changed")
EOF
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.14.1 numpy safetensors huggingface_hub einops sentencepiece
"$work/venv/bin/pip" install --quiet --no-compile --no-deps moshi==0.2.13 # its pins hold torch below 2.10
"$work/venv/bin/python" "$work/try.py"
