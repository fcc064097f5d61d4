#!/usr/bin/env bash
# What: the audio_codes_mask that transformers' NeuCodec returns for a padded batch is 1.5 times too long: a recording of 1 s, padded to 2 s, has 50 frames of
#   speech, and the mask marks 75 frames as valid. X-Codec 2 in the same package, with equal frames (320 samples at 16 kHz), marks 50.
# Why it surprises: the mask has the right shape, begins with ones and ends with zeros, and recordings without padding have a right one. A batch of lengths within
#   a factor of 1.5 shows no zero at all. The length in samples at 16 kHz is multiplied by 24/16, the ratio of output to input, and divided by the frame at 16 kHz.
# Consequence: tokens of silence enter training data and the decoder attends to padding, which the mask is there to prevent. Take padding_mask.sum(-1) // 320
#   instead (the feature extractor has appended a sample before).
# Versions: transformers 5.24.0, torch 2.14.1. Random weights and small layers: only the mask matters.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile transformers==5.24.0 torch==2.14.1 numpy==2.4.6
cd "$work"
HF_HOME=$work/cache OMP_NUM_THREADS=2 venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import sys

import torch
from transformers import NeuCodecConfig, NeuCodecModel, Wav2Vec2BertConfig, Xcodec2Config, Xcodec2Model

RATE, HOP = 16000, 320
SECONDS = (0.5, 1.0, 1.2, 1.4, 2.0)  # of speech in a batch that is padded to 2 s
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
torch.manual_seed(0)
semantic = Wav2Vec2BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
sizes |= {"encoder_hidden_size": 2, "quantization_dim": 96, "semantic_model_config": semantic}

speech = torch.tensor([round(RATE * seconds) for seconds in SECONDS])
mask = (torch.arange(2 * RATE) < speech[:, None]).long()  # [batch, samples]
sound = 0.1 * torch.randn(len(SECONDS), 1, 2 * RATE) * mask[:, None]
features = torch.randn(len(SECONDS), 2 * RATE // HOP, semantic.feature_projection_input_dim)
expected = (speech // HOP).tolist()
seen = {}
for config, network in ((Xcodec2Config, Xcodec2Model), (NeuCodecConfig, NeuCodecModel)):
    with torch.inference_mode():
        encoded = network(config(**sizes)).eval().encode(sound, features, padding_mask=mask)
    assert encoded.audio_codes.shape == (len(SECONDS), 1, 2 * RATE // HOP)
    seen[network.__name__] = encoded.audio_codes_mask.sum(-1).tolist()
    print(f"{network.__name__}: {encoded.audio_codes.shape[-1]} frames of {HOP} samples; valid by audio_codes_mask: {seen[network.__name__]}")
print(f"expected: {expected} for both, {HOP} samples a frame")
same = seen == {"Xcodec2Model": expected, "NeuCodecModel": [min(100, frames * 3 // 2) for frames in expected]}
print("seen: 1.5 times as many for NeuCodec, up to all 100" if same else "the behavior has changed")
sys.exit(not same)
EOF
