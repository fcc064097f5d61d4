"""Measures of generated clips by the features and probabilities of a classifier, both [clips, …].

Inception score, modified inception score and AM are those of Goel et al., "It's Raw! Audio Generation with State-Space
Models" (SaShiMi), 2022, appendix C.3. The measures depend on the classifier: compare only values from the same one.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

MIN_PROBABILITY = 2.0**-23  # the resolution of float32 next to 1; lower probabilities count as this
BLOCK = 2**24  # distances computed at a time


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """Fréchet distance |m - m'|² + tr(C + C' - 2 (C C')^½) of two sets of features (FID, Heusel et al. 2017, eq. 6).

    Biased upwards for few clips, especially for fewer clips than features.
    """
    (mean, covariance), (other_mean, other_covariance) = (
        (features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))
        for features in (np.asarray(real, float), np.asarray(generated, float))
    )
    # C C' has the eigenvalues of C^½ C' C^½, which is symmetric, so they are real even if covariances are singular.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    both = np.linalg.eigvalsh(root @ other_covariance @ root)
    spread = np.trace(covariance + other_covariance) - 2 * np.sqrt(both.clip(min=0)).sum()
    return max(0.0, float(np.square(mean - other_mean).sum() + spread))


def inception_score(probabilities: ArrayLike) -> float:
    """Inception score (IS): exp of the mean divergence of clips in one half from the mean of the other half.

    Ranges from 1 to the number of classes. The halves are random, but the same in every call.
    """
    clips = _clipped(probabilities)
    clips = clips[np.random.default_rng(0).permutation(len(clips))]
    one, other = np.array_split(clips, 2)
    return float(np.exp(_divergence(one, other.mean(axis=0)).mean()))


def modified_inception_score(probabilities: ArrayLike) -> float:
    """Modified inception score (mIS): exp of the mean divergence between two clips, over all pairs, not 10 000."""
    clips = _clipped(probabilities)
    logarithms = np.log(clips)
    return float(np.exp((clips * logarithms).sum(axis=1).mean() - clips.mean(axis=0) @ logarithms.mean(axis=0)))


def am_score(real: ArrayLike, generated: ArrayLike) -> float:
    """AM score in nats: divergence of the real mean from the generated mean, plus the mean entropy of generated clips.

    0 if every clip is certainly of one class, and all classes are as frequent as in the real data.
    """
    clips = _clipped(generated)
    entropy = -(clips * np.log(clips)).sum(axis=1).mean()
    return float(_divergence(_clipped(real).mean(axis=0), clips.mean(axis=0)) + entropy)


def balance(found: ArrayLike, expected: ArrayLike) -> float:
    """p of Pearson's chi-squared test that counts of classes follow the expected frequencies."""
    counts, wanted = np.asarray(found, float), np.asarray(expected, float)
    possible = wanted > 0
    if counts[~possible].any():
        return 0.0
    statistic = (np.square(counts - wanted)[possible] / wanted[possible]).sum()
    freedom = max(1, possible.sum() - 1)
    return float(torch.special.gammaincc(*torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)))


def nearest_distances(points: ArrayLike, others: ArrayLike, *, same: bool = False) -> Doubles:
    """Euclidean distance [clips] from each point [clips, dim] to the nearest of the others.

    With `same` both are one set, and a point is not its own neighbor.
    """
    # Relative to the mean, because in float32 points differ by far less than their distance from zero.
    mean = np.asarray(others).mean(axis=0, dtype=float)
    centered, neighbors = (np.asarray(np.asarray(each) - mean, np.float32) for each in (points, others))
    squares = np.square(neighbors).sum(axis=1, dtype=float)
    distance = np.empty(len(centered))
    rows = max(1, BLOCK // len(neighbors))
    for first in range(0, len(centered), rows):
        block = centered[first : first + rows]
        distances = np.square(block).sum(axis=1, dtype=float)[:, None] + squares - 2.0 * (block @ neighbors.T)
        if same:
            distances[np.arange(len(block)), first + np.arange(len(block))] = np.inf
        nearest = distances.argmin(axis=1)
        distance[first : first + rows] = np.linalg.norm((block - neighbors[nearest]).astype(float), axis=1)
    return distance


def _clipped(probabilities: ArrayLike) -> Doubles:
    clipped = np.maximum(np.asarray(probabilities, float), MIN_PROBABILITY)
    normalized: Doubles = clipped / clipped.sum(axis=-1, keepdims=True)
    return normalized


def _divergence(one: Doubles, other: Doubles) -> Doubles:
    """Kullback-Leibler divergence over the last axis, in nats."""
    divergence: Doubles = (one * np.log(one / other)).sum(axis=-1)
    return divergence
