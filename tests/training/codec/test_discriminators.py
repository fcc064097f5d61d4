"""training/discriminators.py"""

from itertools import pairwise

import pytest
import torch

from codec.training.codec.discriminators import Discriminators
from codec.training.codec.losses import discriminator_loss
from tests.helpers.training import batch


@pytest.fixture
def discriminators() -> Discriminators:
    torch.manual_seed(0)
    return Discriminators((256, 128), 2)


def test_one_score_map_per_window_and_five_inner_layers(discriminators: Discriminators) -> None:
    outputs = discriminators(batch(time=1280))
    assert [tuple(score.shape[:3]) for score in outputs.scores] == [(3, 1, 21), (3, 1, 41)]  # hops of a quarter window
    assert [len(features) for features in outputs.features] == [5, 5]
    for features in outputs.features:
        bins = [layer.shape[3] for layer in features]
        assert bins[4] == bins[3]
        assert all(after == (before + 1) // 2 for before, after in pairwise(bins[:4]))


def test_every_weight_has_a_gradient(discriminators: Discriminators) -> None:
    torch.stack([score.square().mean() for score in discriminators(batch()).scores]).sum().backward()  # type: ignore[no-untyped-call]
    for name, weight in discriminators.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_silence_gives_finite_gradients(discriminators: Discriminators) -> None:
    audio = torch.zeros(1, 1, 1200, requires_grad=True)
    torch.stack([score.mean() for score in discriminators(audio).scores]).sum().backward()  # type: ignore[no-untyped-call]
    assert audio.grad is not None
    assert audio.grad.isfinite().all()


def test_scores_are_float32_and_spectra_exact_under_autocast(discriminators: Discriminators) -> None:
    audio = batch()
    exact = discriminators(audio)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = discriminators(audio)
    assert {score.dtype for score in outputs.scores} == {torch.float32}
    assert {layer.dtype for features in outputs.features for layer in features} == {torch.bfloat16}
    for score, expected in zip(outputs.scores, exact.scores, strict=True):
        assert torch.allclose(score, expected, atol=0.05)


@pytest.mark.slow
def test_they_learn_to_classify_two_kinds_of_signals(discriminators: Discriminators) -> None:
    optimizer = torch.optim.AdamW(discriminators.parameters(), lr=5e-3)
    losses = []
    for step in range(25):
        audio = batch(step)
        fake = 0.2 * torch.randn(audio.shape, generator=torch.Generator().manual_seed(step))
        loss = discriminator_loss(discriminators(audio).scores, discriminators(fake).scores)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(2, abs=0.3)
    assert losses[-1] < 1
