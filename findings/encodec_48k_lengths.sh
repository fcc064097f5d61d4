#!/usr/bin/env bash
# What: EnCodec's 48 kHz model cannot decode recordings of certain lengths that it has just encoded: 161 to 320 samples more than a multiple of 47520 (0.99 s),
#   one length in 297. `.ecdc` files of such recordings are written without an error and can never be read again. transformers' port fails alike.
# Why it surprises: the encoder accepts every length, the codes are valid, and the lengths around them work; a data set is encoded in full, and one file in 297
#   is lost when it is decoded, perhaps years later.
# Reason: segments of 48000 samples are 47520 apart. Here the last one has a single frame, 320 samples decoded, and ends before the decoded segment
#   ahead of it does; but the room for the sum is computed from where the last one ends.
# Consequence: append 320 samples of silence to recordings of such lengths before encoding. Codes that exist can be decoded segment by segment.
# Versions: encodec 0.1.1, transformers 5.24.0, torch 2.14.1, torchaudio 2.11.0. Random weights: only lengths matter.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile encodec==0.1.1 transformers==5.24.0 torch==2.14.1 torchaudio==2.11.0 numpy==2.4.6
cd "$work"
HF_HOME=$work/cache OMP_NUM_THREADS=2 venv/bin/python -W ignore - <<'EOF'
import importlib
import importlib.metadata
import sys

import torch
from encodec import EncodecModel
from transformers import EncodecConfig
from transformers import EncodecModel as PortedModel

STRIDE = 47520
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("encodec", "transformers", "torch")))
files = importlib.import_module("encodec.compress")
torch.manual_seed(0)
model = EncodecModel.encodec_model_48khz(pretrained=False).eval()
model.set_target_bandwidth(3.0)
model.name = "encodec_48khz"
files.MODELS = {model.name: lambda: model}  # what its files name, without the download
options = {"chunk_length_s": 1.0, "overlap": 0.01, "use_causal_conv": False, "norm_type": "time_group_norm", "normalize": True}
ported = PortedModel(EncodecConfig(sampling_rate=48000, audio_channels=2, target_bandwidths=[3.0], num_filters=4, **options)).eval()


def attempt(run):
    try:
        return run()
    except RuntimeError as error:
        assert "size of tensor" in str(error)
        return None


def read_codes(stored):
    """The codes of a file, [1, codebooks, frames] for each segment."""
    kept = []
    model.decode = lambda segments: kept.extend(codes for codes, _ in segments) or torch.zeros(1, 2, 10**6)
    files.decompress(stored)
    del model.decode
    return kept


same = True
with torch.inference_mode():
    for time in (STRIDE + 160, STRIDE + 161, STRIDE + 320, STRIDE + 321, 2 * STRIDE + 161, 2 * STRIDE + 321):
        stored = files.compress(model, 0.1 * torch.randn(2, time))
        codes = read_codes(stored)
        restored = attempt(lambda: files.decompress(stored)[0].shape[-1])
        frames = [part.shape[-1] for part in codes]
        text = f"{time} samples, frames {frames}: .ecdc file of {len(stored)} bytes; samples restored: {restored}"
        fails = 160 < time % STRIDE <= 320
        same &= restored == (None if fails else time)
        if len(set(frames[:-1])) == 1 and frames[0] == 150:  # transformers takes no other segments before the last
            decoded = attempt(lambda: ported.decode(codes, [torch.ones(1, 1)] * len(codes)).audio_values.shape[-1])
            text += f", by transformers {decoded}"
            same &= (decoded is None) == fails
        print(text)
print("expected: as many samples as were encoded, for every length")
print("seen: no samples for lengths of 161 to 320 more than a multiple of 47520" if same else "the behavior has changed")
sys.exit(not same)
EOF
