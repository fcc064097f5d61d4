#!/usr/bin/env bash
# What: the beam search of ResidualVQ in vector-quantize-pytorch (beam_size, eval_beam_size) keeps the paths with the smallest sum of the squared errors after
#   each codebook, not the paths with the smallest error after the last one. 16 beams end with a larger error than 4 that are kept by the error, and 4% of all
#   frames come out worse than without a search, where a search by the error leaves 0.3%.
# Why it surprises: the purpose of the search is a smaller error of what is decoded, but the errors after the first codebooks are by far the largest part of
#   the sum, so they decide. The mean error falls as hoped for, which hides this. beam_score_quantizer_weights cannot undo it: what was added stays in the sum,
#   and a weight of the last codebook alone leaves the search without a score until then.
# Consequence: 84% of the gain of a search with 2 beams, 71% with 16, for all of its time. Encode with a search of one's own over residual_vq.codebooks, ten
#   lines, which keeps the paths with the smallest residuals.
# Versions: vector-quantize-pytorch 1.32.0, torch 2.14.1, numpy 2.4.6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile vector-quantize-pytorch==1.32.0 torch==2.14.1 numpy==2.4.6
OMP_NUM_THREADS=2 "$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import torch
from vector_quantize_pytorch import ResidualVQ

print(*(f"{name} {importlib.metadata.version(name)}" for name in ("vector-quantize-pytorch", "torch")))
DIM, QUANTIZERS = 16, 6
torch.manual_seed(0)
model = ResidualVQ(dim=DIM, codebook_size=64, num_quantizers=QUANTIZERS, kmeans_init=True)
last_only = ResidualVQ(dim=DIM, codebook_size=64, num_quantizers=QUANTIZERS, kmeans_init=True, beam_score_quantizer_weights=[0.0] * (QUANTIZERS - 1) + [1.0])
latents = torch.randn(2, 1000, DIM)


def search(frames, codebooks, beams, by_sum):
    """Squared error of each frame after a beam search: by the error after each codebook, or by the sum of the errors so far."""
    residuals, sums = frames[:, None], np.zeros((len(frames), 1))
    for codebook in codebooks:
        tried = residuals[:, :, None] - codebook  # [frames, paths, entries, DIM]
        errors = (tried**2).sum(-1)
        scores = (sums[:, :, None] + errors if by_sum else errors).reshape(len(frames), -1)
        best = np.argsort(scores, axis=1)[:, :beams]
        residuals = np.take_along_axis(tried.reshape(len(frames), -1, DIM), best[:, :, None], 1)
        sums = np.take_along_axis(scores, best, 1)
    return (residuals[:, 0] ** 2).sum(-1)


same = True
with torch.no_grad():
    model(torch.randn(4, 1000, DIM))  # k-means
    last_only.load_state_dict(model.state_dict())
    model.eval()
    last_only.eval()
    codebooks = model.codebooks.double().numpy()
    frames = latents.reshape(-1, DIM).double().numpy()
    means, greedy = {}, None
    for beams in (1, 2, 4, 8, 16):
        quantized, indices, _ = model(latents, beam_size=beams)
        assert torch.allclose(quantized, model.get_output_from_indices(indices), atol=1e-5)
        seen = (latents - quantized).square().sum(-1).flatten().double().numpy()
        greedy = seen if greedy is None else greedy
        weighted = (latents - last_only(latents, beam_size=beams)[0]).square().sum(-1).mean().item()
        by_sum, by_error = (search(frames, codebooks, beams, rule) for rule in (True, False))
        worse = np.mean(seen > 1.001 * greedy)
        means[beams] = seen.mean(), by_error.mean()
        print(f"{beams:2} beams: squared error {seen.mean():.3f}, worse than 1 beam {worse:.1%} of the frames; search by the sum {by_sum.mean():.3f},", end=" ")
        print(f"by the error {by_error.mean():.3f} ({np.mean(by_error > 1.001 * greedy):.1%} worse); weights 0 but for the last codebook {weighted:.3f}")
        same &= abs(seen.mean() / by_sum.mean() - 1) < 0.003 and (beams == 1 or worse > 0.03)
same &= means[16][0] > means[4][1] and abs(means[1][0] / means[1][1] - 1) < 1e-3
same &= means[1][0] - means[16][0] < 0.8 * (means[1][1] - means[16][1])
print("expected: the search keeps the paths with the smallest error")
print("seen: the paths with the smallest sum of the errors after all codebooks" if same else "the behavior has changed")
sys.exit(not same)
EOF
