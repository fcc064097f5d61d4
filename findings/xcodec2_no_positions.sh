#!/usr/bin/env bash
# What: the transformer in the decoder of X-Codec 2 and NeuCodec does not know the order of time. Shuffle the frames that go into its layers and the same frames come
#   out, shuffled alike, to rounding; without its rotary embedding, every number stays the same.
# Why it surprises: the configuration has rope_parameters and max_position_embeddings, the layers are those of Llama, and rotary embedding is what makes them see
#   order. Here its positions count the heads of attention instead of the frames: each head turns all its queries and keys by one angle, and a
#   turn that both have in common leaves their products as they are. A comment in the source says that the axis is that of the original.
# Consequence: nothing is gained by changing rope_theta or by scaling it for long recordings; only the convolutions around the layers know what is near. An
#   implementation of one's own with right positions decodes the released weights to something else.
# Versions: transformers 5.24.0, torch 2.14.1. Random weights, large enough for a sharp attention; 12 layers of the release are 2 here.
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

FRAMES, SIZE, HEADS = 100, 64, 4
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
torch.manual_seed(0)
semantic = Wav2Vec2BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
sizes = {"hidden_size": SIZE, "intermediate_size": SIZE, "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": 16}
sizes |= {"encoder_hidden_size": 2, "quantization_dim": 96, "semantic_model_config": semantic}
order = torch.randperm(FRAMES)
same = True
for config, network in ((Xcodec2Config, Xcodec2Model), (NeuCodecConfig, NeuCodecModel)):
    decoder = network(config(**sizes)).eval().acoustic_decoder
    for layer in decoder.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            torch.nn.init.normal_(getattr(layer.self_attn, name).weight, std=0.3)
    used = []  # the rotation that decode() passes to its layers
    hook = decoder.layers[0].register_forward_pre_hook(lambda _, args, kwargs: used.append(kwargs["position_embeddings"]), with_kwargs=True)
    with torch.inference_mode():
        decoder(torch.randn(1, FRAMES, SIZE + semantic.hidden_size))
        hook.remove()
        frames = torch.randn(1, FRAMES, SIZE)

        def transform(hidden, rotation):
            for layer in decoder.layers:
                hidden = layer(hidden, position_embeddings=rotation)
            return hidden

        whole = transform(frames, used[0])
        shuffled = (transform(frames[:, order], used[0]) - whole[:, order]).abs().max().item()
        still = (torch.ones_like(used[0][0]), torch.zeros_like(used[0][1]))  # cosine and sine of no rotation
        without = (transform(frames, still) - whole).abs().max().item()
        # positions that count frames, as in Llama: what one expects
        module = sys.modules[network.__module__]
        rotate = module.apply_rotary_pos_emb
        module.apply_rotary_pos_emb = lambda queries, keys, cosine, sine, unsqueeze_dim: rotate(queries, keys, cosine, sine)
        by_frame = decoder.rotary_emb(frames, torch.arange(FRAMES)[None])
        right = (transform(frames[:, order], by_frame) - transform(frames, by_frame)[:, order]).abs().max().item()
    print(f"{network.__name__}: rotation {list(used[0][0].shape)} for {FRAMES} frames and {HEADS} heads; values up to {whole.abs().max():.1f}")
    print(f"  largest difference: frames shuffled {shuffled:.1e}, no rotation {without:.1e}; shuffled where positions count frames {right:.1e}")
    same &= used[0][0].shape[1] == HEADS and max(shuffled, without) < 1e-4 and right > 0.1
print("expected: another result in all three cases")
print("seen: only if positions are made to count frames" if same else "the behavior has changed")
sys.exit(not same)
EOF
