"""Measures of generated clips by what a classifier makes of them: features and probabilities, [clips, …] both.

Inception score, modified inception score and AM are those of Goel et al., "It's Raw! Audio Generation with State-Space
Models" (SaShiMi), 2022, appendix C.3. The numbers depend on the classifier: compare only those of one and the same.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

Doubles = NDArray[np.float64]

LEAST = 2.0**-23  # probabilities below count as this, what float32 tells apart from 0 beside 1: none is impossible
BLOCK = 2**24  # distances taken at a time


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """|m - m'|² + tr(C + C' - 2 (C C')^½) of the means and covariances of two sets of features (FID).

    Heusel et al., 2017, eq. 6. Of few clips, above all of fewer than features, it comes out too high.
    """
    (mean, covariance), (other_mean, other_covariance) = (
        (features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))
        for features in (np.asarray(real, float), np.asarray(generated, float))
    )
    # C C' has the eigenvalues of C^½ C' C^½, which is symmetric: real ones, also where covariances are singular.
    values, vectors = np.linalg.eigh(covariance)
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    both = np.linalg.eigvalsh(root @ other_covariance @ root)
    spread = np.trace(covariance + other_covariance) - 2 * np.sqrt(both.clip(min=0)).sum()
    return max(0.0, float(np.square(mean - other_mean).sum() + spread))


def inception_score(probabilities: ArrayLike) -> float:
    """exp of the mean divergence of one half's clips from the mean of the other half (IS): 1 to the number of classes.

    Clips are divided at random, always alike.
    """
    clips = _clipped(probabilities)
    clips = clips[np.random.default_rng(0).permutation(len(clips))]
    one, other = np.array_split(clips, 2)
    return float(np.exp(_divergence(one, other.mean(axis=0)).mean()))


def modified_inception_score(probabilities: ArrayLike) -> float:
    """exp of the mean divergence of one clip from another (mIS), over all pairs instead of 10 000 random ones."""
    clips = _clipped(probabilities)
    logarithms = np.log(clips)
    return float(np.exp((clips * logarithms).sum(axis=1).mean() - clips.mean(axis=0) @ logarithms.mean(axis=0)))


def am_score(real: ArrayLike, generated: ArrayLike) -> float:
    """Divergence of the mean of real clips from that of generated ones, plus the mean entropy of these (AM), in nats.

    0 where every clip is surely of one class and all classes are as frequent as they really are.
    """
    clips = _clipped(generated)
    entropy = -(clips * np.log(clips)).sum(axis=1).mean()
    return float(_divergence(_clipped(real).mean(axis=0), clips.mean(axis=0)) + entropy)


def balance(found: ArrayLike, expected: ArrayLike) -> float:
    """p of Pearson's chi-squared test: how probable counts of classes as unequal to the expected ones are by chance."""
    counts, wanted = np.asarray(found, float), np.asarray(expected, float)
    possible = wanted > 0
    if counts[~possible].any():
        return 0.0
    statistic = (np.square(counts - wanted)[possible] / wanted[possible]).sum()
    freedom = max(1, possible.sum() - 1)
    return float(torch.special.gammaincc(*torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)))


def nearest_distances(places: ArrayLike, others: ArrayLike, *, same: bool = False) -> Doubles:
    """Euclidean distance [clips] of each place [clips, dim] to the nearest of the others.

    With `same` the two are one set, and a clip is not its own neighbor.
    """
    # Relative to a middle and in float32: places differ by far less than they lie from zero.
    there = np.asarray(others)
    middle = there.mean(axis=0, dtype=float)
    one, all_others = (np.asarray(each - middle, np.float32) for each in (np.asarray(places), there))
    squares = np.square(all_others).sum(axis=1, dtype=float)
    found = np.empty(len(one))
    rows = max(1, BLOCK // len(all_others))
    for first in range(0, len(one), rows):
        block = one[first : first + rows]
        distances = np.square(block).sum(axis=1, dtype=float)[:, None] + squares - 2.0 * (block @ all_others.T)
        if same:
            distances[np.arange(len(block)), first + np.arange(len(block))] = np.inf
        nearest = distances.argmin(axis=1)
        found[first : first + rows] = np.linalg.norm((block - all_others[nearest]).astype(float), axis=1)
    return found


def _clipped(probabilities: ArrayLike) -> Doubles:
    clipped = np.maximum(np.asarray(probabilities, float), LEAST)
    normalised: Doubles = clipped / clipped.sum(axis=-1, keepdims=True)
    return normalised


def _divergence(one: Doubles, other: Doubles) -> Doubles:
    """Kullback and Leibler's, in nats, over the last axis."""
    divergence: Doubles = (one * np.log(one / other)).sum(axis=-1)
    return divergence
