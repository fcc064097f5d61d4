"""evaluation/codebooks.py: counts and entropies against closed forms."""

from collections import Counter

import numpy as np
import pytest

from codec.evaluation.codebooks import code_counts, codebook_usage


def test_code_counts() -> None:
    codes = np.random.default_rng(0).integers(0, 7, (2, 3, 50))  # [channels, codebooks, frames]
    counts = code_counts(codes, 7)
    for codebook in range(3):
        expected = Counter(codes[:, codebook].ravel().tolist())
        assert counts[codebook].tolist() == [expected[code] for code in range(7)]


def test_codebook_usage_has_closed_forms() -> None:
    counts = np.array([[5] * 8, [4, 4] + [0] * 6, [9] + [0] * 7, [0] * 8, [4, 2, 1, 1] + [0] * 4])
    usage = codebook_usage(counts)
    assert [use.used for use in usage] == [1, 1 / 4, 1 / 8, 0, 1 / 2]
    assert [use.entropy for use in usage] == pytest.approx([3, 1, 0, 0, 1.75])
    assert [use.perplexity for use in usage] == pytest.approx([8, 2, 1, 1, 2**1.75])
