"""Codebook usage: code counts, entropy and perplexity."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from codec.codes import entropy

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class CodebookUsage:
    """Usage of one codebook: share of its entries that occur, entropy in bits per code, perplexity = 2 ** entropy."""

    used: float
    entropy: float
    perplexity: float


def code_counts(codes: NDArray[np.int64], codebook_size: int) -> Counts:
    """Count how often each code occurs: [..., codebooks, frames] -> [codebooks, codebook_size]; -1 is none."""
    num_codebooks = codes.shape[-2]
    shifted = codes + codebook_size * np.arange(num_codebooks)[:, None]
    return np.bincount(shifted[codes >= 0], minlength=num_codebooks * codebook_size).reshape(
        num_codebooks, codebook_size
    )


def codebook_usage(counts: NDArray[np.integer | np.floating]) -> tuple[CodebookUsage, ...]:
    """Usage of every codebook from counts [codebooks, codebook_size].

    With fewer than about ten codes per entry, the entropy is underestimated.

    Example: the counts [[4, 2, 1, 1, 0, 0, 0, 0]] give used 0.5, entropy 1.75 and perplexity 3.36.
    """
    bits = (entropy(torch.from_numpy(np.asarray(counts))) + 0.0).tolist()  # a single code gives -0.0
    return tuple(
        CodebookUsage(used=float((row > 0).mean()), entropy=value, perplexity=2**value)
        for row, value in zip(counts, bits, strict=True)
    )
