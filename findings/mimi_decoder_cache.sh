#!/usr/bin/env bash
# What: decoding Mimi's tokens piece by piece with transformers' decoder_cache gives other sound than decoding them at once: with pieces of 5 frames (0.4 s) the error is as
#   large as the signal, from the first sample of each piece on. Encoding piece by piece with its caches gives the same tokens, all of them.
# Why it surprises: the cache is returned, is documented to "speed up sequential decoding" with only the last codes as input, and grows as it should; the number of
#   samples is right and nothing warns. But it holds the keys and values of the transformer alone: the transposed convolutions before and behind it
#   begin each piece from silence. The encoder has a second cache for its convolutions, padding_cache; the decoder takes none.
# Consequence: decode with a few seconds of earlier tokens in front, without a cache, and keep the end; or use another implementation for streams.
# Versions: transformers 5.24.0, torch 2.14.1. Random weights, small layers; 2 s of noise at 24 kHz, 12.5 frames a second.
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
from transformers import MimiConfig, MimiModel

FRAME, PIECE = 1920, 5  # samples, frames
print(*(f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")))
torch.manual_seed(0)
sizes = {"num_filters": 4, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "num_hidden_layers": 2}
sizes |= {"intermediate_size": 64, "codebook_size": 64, "codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_quantizers": 4}
model = MimiModel(MimiConfig(**sizes, upsample_groups=32)).eval()
for name, buffer in model.named_buffers():
    if name.endswith("embed_sum"):
        buffer.normal_()


def level(sound):
    return 10 * torch.log10(sound.square().mean() + 1e-20).item()


with torch.inference_mode():
    sound = 0.3 * torch.randn(1, 1, 25 * FRAME)
    codes = model.encode(sound).audio_codes  # [batch, codebooks, frames]
    pieces, cache, padding = [], None, None
    for start in range(0, sound.shape[-1], PIECE * FRAME):
        part = model.encode(sound[..., start : start + PIECE * FRAME], encoder_cache=cache, padding_cache=padding, use_streaming=True)
        cache, padding = part.encoder_cache, part.padding_cache
        pieces.append(part.audio_codes)
    encoded = (torch.cat(pieces, -1) == codes).float().mean().item()
    whole = model.decode(codes).audio_values
    pieces, cache = [], None
    for start in range(0, codes.shape[-1], PIECE):
        part = model.decode(codes[..., start : start + PIECE], decoder_cache=cache, use_cache=True)
        cache = part.decoder_cache
        pieces.append(part.audio_values)
    error = torch.cat(pieces, -1) - whole
    filled = cache.get_seq_length()
starts = error.reshape(-1, PIECE * FRAME)[1:, :FRAME]
print(f"encoded in pieces of {PIECE} frames: {encoded:.1%} of the tokens equal those of the whole signal")
print(f"decoded in pieces: {filled} steps in the cache for {codes.shape[-1]} frames, 2 each")
print(f"level of the whole signal {level(whole):.1f} dB, of the difference: first piece {level(error[..., : PIECE * FRAME]):.1f} dB, the others "
      f"{level(error[..., PIECE * FRAME :]):.1f} dB, in their first frames {level(starts):.1f} dB")
same = encoded > 0.99 and filled == 2 * codes.shape[-1] and level(error[..., : PIECE * FRAME]) < level(whole) - 80
same &= level(error[..., PIECE * FRAME :]) > level(whole) - 20
print("expected: a difference of rounding in all pieces")
print("seen: in the first piece only" if same else "the behavior has changed")
sys.exit(not same)
EOF
