"""Measures of generated clips against closed forms and slower definitions."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec.evaluation.generation import (
    am_score,
    balance,
    frechet_distance,
    inception_score,
    modified_inception_score,
    nearest_distances,
)

Doubles = NDArray[np.float64]


def with_moments(mean: Doubles, covariance: Doubles, clips: int, *, seed: int) -> Doubles:
    """Features whose sample mean and covariance are exactly these."""
    raw = np.random.default_rng(seed).standard_normal((clips, len(mean)))
    raw -= raw.mean(axis=0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(raw, rowvar=False)))).T
    features: Doubles = white @ np.linalg.cholesky(covariance).T + mean
    return features


def random_covariance(dim: int, *, seed: int) -> Doubles:
    factor = np.random.default_rng(seed).standard_normal((dim, dim))
    return factor @ factor.T + 0.1 * np.eye(dim)


def one_hot(classes: int, clips: int) -> Doubles:
    return np.eye(classes)[np.arange(clips) % classes]


def some_probabilities(clips: int, classes: int = 4, seed: int = 0) -> Doubles:
    return np.random.default_rng(seed).dirichlet(np.full(classes, 0.3), clips)


def divergence(one: Doubles, other: Doubles) -> float:
    return math.fsum(p * math.log(p / q) for p, q in zip(one, other, strict=True) if p > 0)


def test_frechet_distance_of_commuting_gaussians() -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((5, 5)))
    sizes, others = np.array([1, 2, 3, 4, 5.0]), np.array([9, 0.5, 3, 1, 2.0])
    mean, other = np.zeros(5), np.array([3, 0, 0, 4, 0.0])
    real = with_moments(mean, turn @ np.diag(sizes) @ turn.T, 40, seed=1)
    made = with_moments(other, turn @ np.diag(others) @ turn.T, 60, seed=2)
    expected = 25 + np.square(np.sqrt(sizes) - np.sqrt(others)).sum()
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_any_gaussians_in_a_plane() -> None:
    one, other = random_covariance(2, seed=3), random_covariance(2, seed=4)
    product = (
        one @ other
    )  # of the root of a 2 × 2 matrix, the squared trace is its trace and twice its determinant's root
    expected = np.trace(one + other) - 2 * math.sqrt(np.trace(product) + 2 * math.sqrt(np.linalg.det(product)))
    features = with_moments(np.zeros(2), one, 20, seed=5), with_moments(np.zeros(2), other, 30, seed=6)
    assert frechet_distance(*features) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(*features[::-1]) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_few_clips_is_finite() -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((100, 64)).astype(np.float32)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real[:2]) > 1
    shifted = real + np.float32(1000)
    assert frechet_distance(shifted, shifted + 1) == pytest.approx(64, rel=1e-4)
    dead = np.concatenate([real, np.zeros_like(real)], axis=1)  # features that never fire
    assert frechet_distance(dead, dead[:30]) == pytest.approx(frechet_distance(real, real[:30]), rel=1e-6)


def test_frechet_distance_of_one_feature() -> None:
    real, made = with_moments(np.zeros(1), np.eye(1), 10, seed=0), with_moments(np.ones(1), 4 * np.eye(1), 10, seed=1)
    assert frechet_distance(real, made) == pytest.approx(1 + 1)


@pytest.mark.parametrize("classes", [2, 10])
def test_scores_of_certain_and_balanced_clips(classes: int) -> None:
    clips = one_hot(classes, 400 * classes)
    assert inception_score(clips) == pytest.approx(classes, rel=0.02)
    assert am_score(clips, clips) == pytest.approx(0, abs=1e-4)
    # A pair is of two classes in classes - 1 of classes cases, and then as far apart as what is least can say.
    assert math.log(modified_inception_score(clips)) == pytest.approx((1 - 1 / classes) * 23 * math.log(2), rel=1e-4)


def test_scores_of_clips_of_one_class_or_none() -> None:
    none = np.full((50, 10), 0.1)
    one = one_hot(10, 1).repeat(50, axis=0)
    for clips in (none, one):
        assert inception_score(clips) == pytest.approx(1)
        assert modified_inception_score(clips) == pytest.approx(1)
    assert am_score(none, none) == pytest.approx(math.log(10))
    half = one_hot(2, 50)
    assert am_score(half, one_hot(2, 1).repeat(50, axis=0)) > 5  # a class is never made


def test_scores_equal_their_definitions() -> None:
    clips, real = some_probabilities(60), some_probabilities(40, seed=1)
    order = np.random.default_rng(0).permutation(60)
    other = clips[order[30:]].mean(axis=0)
    half = sum(divergence(clip, other) for clip in clips[order[:30]]) / 30
    assert inception_score(clips) == pytest.approx(math.exp(half), rel=1e-3)
    pairs = sum(divergence(np.maximum(one, 1e-12), np.maximum(two, 2**-23)) for one in clips for two in clips) / 60**2
    assert modified_inception_score(clips) == pytest.approx(math.exp(pairs), rel=1e-3)
    entropy = -sum(p * math.log(p) for clip in clips for p in clip if p > 0) / 60
    am = divergence(real.mean(axis=0), clips.mean(axis=0)) + entropy
    assert am_score(real, clips) == pytest.approx(am, rel=1e-3)


def test_balance() -> None:
    assert balance([10, 20], [10, 20]) == pytest.approx(1)
    # one degree of freedom: twice the tail of a normal deviate
    statistic = 3**2 / 10 + 3**2 / 20
    assert balance([13, 17], [10, 20]) == pytest.approx(math.erfc(math.sqrt(statistic / 2)), rel=1e-9)
    # two: an exponential
    assert balance([13, 7, 10, 0], [10, 10, 10, 0]) == pytest.approx(math.exp(-1.8 / 2), rel=1e-9)
    assert balance([29, 1], [30, 0]) == 0
    assert balance([30, 0], [30, 0]) == 1


@pytest.mark.parametrize("same", [False, True])
def test_nearest_distances(same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codec.evaluation.generation.BLOCK", 100)  # a few places at a time
    rng = np.random.default_rng(0)
    others = rng.standard_normal((30, 7)) + 100
    places = others if same else rng.standard_normal((20, 7)) + 100
    slow = [
        min(math.dist(place, other) for at, other in enumerate(others) if not (same and at == number))
        for number, place in enumerate(places)
    ]
    assert nearest_distances(torch.from_numpy(places), others, same=same) == pytest.approx(slow, rel=1e-4)


def test_copies_have_distance_0() -> None:
    others = 50 * np.random.default_rng(0).random((40, 1000)).astype(np.float32)
    assert nearest_distances(others[7:9], others).tolist() == [0, 0]
