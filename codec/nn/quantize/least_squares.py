"""Codebooks of a residual quantizer, all at once, from the codes that its search finds.

k-means and moving averages give each codebook the mean residual that chooses an entry, while the other codebooks stay.
With the codes of all codebooks fixed, the entries that together leave the least error are a linear least-squares
problem (Babenko & Lempitsky 2014, "Additive Quantization for Extreme Vector Compression", section 3.3):

    sum over rows and prefixes n of weight(n) |x - C_1[code_1] - ... - C_n[code_n]|²

whose normal equations count how often two entries are chosen together. Searching and solving
take turns.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from codec.errors import UsageError
from codec.nn.quantize.residual import ResidualVQ

SHRINKAGE = 5.0  # regularization: as if this many more rows chose each entry and were equal to it
STEPS = 40  # of the conjugate gradient


@torch.no_grad()
def refit(quantizer: ResidualVQ, rows: Tensor, prefixes: Mapping[int, float]) -> None:
    """Replace the codebooks by those of the least squared error of rows [rows, dim], given the codes of its search.

    `prefixes` are the numbers of codebooks that are used, each with the weight of its error; the codes of a prefix are
    those of a search through that many codebooks. The memory is that of a matrix [entries, entries] of all codebooks
    together: 1 GB for 16 codebooks of 1024.

    Raises UsageError for a distance that is not the squared error, or a prefix beyond the codebooks.
    """
    if not quantizer.direct:
        raise UsageError("codebooks after a projection, or with cosine distance, cannot be fitted by least squares")
    if not prefixes or not all(1 <= count <= quantizer.num_codebooks for count in prefixes):
        raise UsageError(f"prefixes {sorted(prefixes)}: use 1 to {quantizer.num_codebooks} codebooks")
    codebooks = torch.stack([stage.codebook for stage in quantizer.stages])
    counts, sums = normal_equations(quantizer, rows, prefixes)
    counts.diagonal().add_(SHRINKAGE)
    sums += SHRINKAGE * codebooks.flatten(0, 1)
    solved = conjugate_gradient(counts, sums, codebooks.flatten(0, 1))
    for stage, codebook in zip(quantizer.stages, solved.view_as(codebooks), strict=True):
        stage.codebook.copy_(codebook)


def normal_equations(quantizer: ResidualVQ, rows: Tensor, prefixes: Mapping[int, float]) -> tuple[Tensor, Tensor]:
    """(weighted numbers of rows that choose two entries together [entries, entries], weighted sums [entries, dim])."""
    size = quantizer.codebook_size
    entries = quantizer.num_codebooks * size
    counts, sums = rows.new_zeros(entries, entries), rows.new_zeros(entries, rows.shape[1])
    blocks = counts.view(quantizer.num_codebooks, size, quantizer.num_codebooks, size)
    for number, weight in prefixes.items():
        codes = quantizer.encode(rows.T[None], number)[0]  # [codebooks, rows]
        for first in range(number):
            sums.narrow(0, first * size, size).index_add_(0, codes[first], rows, alpha=weight)
            for second in range(first, number):
                together = torch.bincount(codes[first] * size + codes[second], minlength=size**2).view(size, size)
                blocks[first, :, second].add_(together, alpha=weight)
                if second > first:
                    blocks[second, :, first].add_(together.T, alpha=weight)
    return counts, sums


def conjugate_gradient(matrix: Tensor, right: Tensor, start: Tensor) -> Tensor:
    """Solve matrix [n, n] @ x = right [n, columns] for each column, preconditioned by the diagonal."""
    diagonal = matrix.diagonal()[:, None]
    solution = start.clone()
    residual = right - matrix @ solution
    scaled = residual / diagonal
    direction, size = scaled.clone(), (residual * scaled).sum(dim=0)
    for _ in range(STEPS):
        moved = matrix @ direction
        length = size / (direction * moved).sum(dim=0).clamp(min=1e-30)
        solution += length * direction
        residual -= length * moved
        scaled = residual / diagonal
        before, size = size, (residual * scaled).sum(dim=0)
        direction = scaled + size / before.clamp(min=1e-30) * direction
    return solution


@torch.no_grad()
def errors(quantizer: ResidualVQ, rows: Tensor, prefixes: Mapping[int, float]) -> dict[int, float]:
    """Share of the energy of rows [rows, dim] that is left by each number of codebooks in `prefixes`."""
    latents = rows.T[None]
    decoded = {number: quantizer.decode(quantizer.encode(latents, number)) for number in prefixes}
    energy = latents.square().sum()
    return {number: float((latents - found).square().sum() / energy) for number, found in decoded.items()}
