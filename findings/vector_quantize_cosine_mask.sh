#!/usr/bin/env bash
# What: VectorQuantize of vector-quantize-pytorch with use_cosine_sim takes the commitment loss from the normalized latents, and with a mask (or lens) from
#   the latents as they came. A mask that marks all frames as valid makes the loss 24 times as large for latents of unit variance, and 1700 times
#   for latents 8 times as loud.
# Why it surprises: a mask of True changes no index, no quantized vector and no codebook, and without use_cosine_sim it changes no bit of the loss. The loss
#   is still finite and falls in training, as the encoder can shrink its output.
# Consequence: training on padded batches adds a strong pull of each latent to the length 1, which cosine similarity does not see, and drowns the other losses;
#   models with and without padding cannot be compared at one commitment_weight. Normalize the latents before VectorQuantize.
# Versions: vector-quantize-pytorch 1.32.0, torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile vector-quantize-pytorch==1.32.0 torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=2 "$work/venv/bin/python" -W ignore - <<'EOF'
import copy
import importlib.metadata
import sys

import numpy as np
import torch
from vector_quantize_pytorch import VectorQuantize

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("vector-quantize-pytorch", "torch")))


def measure(model, latents, **options):
    """Loss, indices, codebook after the step, the entries that were chosen, and the part of the gradient along the latents."""
    model, latents = copy.deepcopy(model), latents.clone().requires_grad_()
    entries = model.codebook.clone()
    _, indices, loss = model(latents, **options)
    loss.backward()
    along = (latents.grad * latents).sum(-1).abs() / (latents.grad.norm(dim=-1) * latents.norm(dim=-1))
    return loss.item(), indices, model.codebook, entries[indices].double().numpy(), along.mean().item()


same = True
for cosine in (False, True):
    for loudness in (1.0, 8.0):
        torch.manual_seed(0)
        model = VectorQuantize(dim=32, codebook_size=64, use_cosine_sim=cosine)
        latents = loudness * torch.randn(4, 50, 32)
        plain = measure(model, latents)
        masked = measure(model, latents, mask=torch.ones(4, 50, dtype=torch.bool))
        by_lens = measure(model, latents, lens=torch.full((4,), 50))
        raw = latents.double().numpy()
        unit = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
        right = np.mean(((unit if cosine else raw) - plain[3]) ** 2)
        from_raw = np.mean((raw - plain[3]) ** 2)
        print(f"use_cosine_sim={cosine}, latents times {loudness:.0f}: loss {plain[0]:.4g} without a mask,", end=" ")
        print(f"{masked[0]:.4g} with one of True, {by_lens[0]:.4g} with lens;", end=" ")
        print(f"numpy: {right:.4g} as the distance says, {from_raw:.4g} from the latents as they came;", end=" ")
        print(f"cosine of gradient and latent {plain[4]:.2f}, {masked[4]:.2f} with the mask")
        same &= torch.equal(plain[1], masked[1]) and torch.allclose(plain[2], masked[2], atol=1e-6)
        same &= abs(plain[0] / right - 1) < 1e-4 and abs(masked[0] / from_raw - 1) < 1e-4 and by_lens[0] == masked[0]
        same &= masked[0] > 20 * plain[0] if cosine else abs(masked[0] / plain[0] - 1) < 1e-6
print("expected: a mask of True changes nothing")
print("seen: so without use_cosine_sim only" if same else "the behavior has changed")
sys.exit(not same)
EOF
