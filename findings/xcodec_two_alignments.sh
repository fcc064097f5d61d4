#!/usr/bin/env bash
# What: X-Codec in transformers places its frames 10 ms (160 samples) earlier for 72.5% of all lengths of a recording than for the rest: 32079 samples of a recording give
#   frames that begin at sample 0, 32080 samples of the same give frames that begin at -160, and other codes from the first frame on.
# Why it surprises: a sample more at the end changes the codes of the beginning, and the sound that is decoded from them comes 10 ms later. The number of
#   codes is right either way. The acoustic branch gets 160 zeros on both sides if its number of frames is less than that of the semantic branch, and none
#   if they agree, as from 8 samples below a multiple of 320 to 79 above (the feature extractor pads to multiples, so behind it all agree).
# Consequence: pad every recording to a multiple of 320 samples before model.encode. Codes of both kinds in one data set teach two alignments.
# Versions: transformers 5.24.0, torch 2.14.1. Random weights, small layers.
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
from transformers import DacConfig, HubertConfig, XcodecConfig, XcodecModel

HOP, START = 320, 32000
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
torch.manual_seed(0)
ratios = list(XcodecConfig().acoustic_model_config.downsampling_ratios)  # of the release
acoustic = DacConfig(encoder_hidden_size=4, downsampling_ratios=ratios, decoder_hidden_size=32, upsampling_ratios=ratios, hidden_size=16)
semantic = HubertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, conv_dim=(8,) * 7, num_conv_pos_embedding_groups=2)
model = XcodecModel(XcodecConfig(acoustic_model_config=acoustic, semantic_model_config=semantic, codebook_size=64)).eval()
for name, buffer in model.named_buffers():
    if name.endswith("embed"):
        buffer.normal_(std=0.3)
for layer in model.acoustic_encoder.modules():
    if isinstance(layer, torch.nn.Conv1d):
        torch.nn.init.kaiming_normal_(layer.weight)
given, taken = [], []  # what the acoustic encoder gets and returns


def watch(_module, arguments, output):
    given.append(arguments[0].shape[-1])
    taken.append(output)


model.acoustic_encoder.register_forward_hook(watch)
inner = slice(35, 65)  # frames that see neither end of the recording
offsets = {}
with torch.inference_mode():
    sound = 0.3 * torch.randn(1, 1, START + HOP)
    reference = model.encode(sound[..., :START]).audio_codes
    at_zero, late = (model.acoustic_encoder(torch.nn.functional.pad(sound, (left, 0)))[..., inner] for left in (0, HOP // 2))
    for more in (0, 1, 79, 80, 160, 311, 312, 319):
        codes = model.encode(sound[..., : START + more]).audio_codes
        frames = taken[-1][..., inner]
        offsets[more] = next((name for name, other in ((0, at_zero), (-HOP // 2, late)) if (frames - other).norm() < 1e-3 * other.norm()), None)
        equal = (codes[..., inner] == reference[..., inner]).float().mean().item()
        print(f"{START + more} samples: {codes.shape[-1]} frames, the acoustic encoder gets {given[-1]} samples; its frames begin at {offsets[more]}; "
              f"codes as those of {START} samples: {equal:.0%}")
print("expected: frames that begin at 0, and the same codes, for every length")
same = offsets == {0: 0, 1: 0, 79: 0, 80: -160, 160: -160, 311: -160, 312: 0, 319: 0}
print("seen: frames that begin at -160 for 80 to 311 samples more than a multiple of 320" if same else "the behavior has changed")
sys.exit(not same)
EOF
