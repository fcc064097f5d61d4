"""The Gaussian mixture against SciPy, vector quantization and its closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.special import logsumexp  # type: ignore[import-untyped]
from scipy.stats import multivariate_normal  # type: ignore[import-untyped]
from torch import Tensor

from codec.nn.quantize.mixture import Mixture
from codec.nn.quantize.vq import VectorQuantizer

DIM = 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_of(latents: Tensor) -> Tensor:
    """[batch * frames, dim]"""
    return latents.transpose(1, 2).flatten(0, 1)


def squares(x: Tensor, y: Tensor) -> float:
    return (x - y).square().mean().item()


def mixture(size: int = 6) -> Mixture:
    torch.manual_seed(0)
    quantizer = Mixture(DIM, size)
    torch.nn.init.normal_(quantizer.logits)
    torch.nn.init.normal_(quantizer.log_variance, std=0.5)
    return quantizer


def log_likelihood(quantizer: Mixture, latents: Tensor) -> Tensor:
    """log p(latents) [batch * frames] under the mixture, in nats."""
    return quantizer.joint(rows_of(latents), **dict(quantizer.named_parameters())).logsumexp(dim=-1)


def test_the_likelihood_equals_scipy() -> None:
    quantizer, latents = mixture(), noise(2, DIM, 15)
    weights = quantizer.logits.softmax(0).tolist()
    spread = (quantizer.log_variance.exp() + quantizer.floor).expand(6).tolist()
    rows = rows_of(latents).double().numpy()
    joint = np.stack(
        [
            math.log(weight) + multivariate_normal(mean, v * np.eye(DIM)).logpdf(rows)
            for weight, mean, v in zip(weights, quantizer.means.tolist(), spread, strict=True)
        ]
    )  # [components, rows]
    expected = logsumexp(joint, axis=0)
    np.testing.assert_allclose(log_likelihood(quantizer, latents).detach().flatten().numpy(), expected, rtol=1e-4)
    quantized = quantizer(latents)
    posterior = np.exp(joint - expected)
    np.testing.assert_allclose(
        rows_of(quantized.latents).detach().numpy(), posterior.T @ quantizer.means.detach().numpy(), atol=1e-5
    )
    assert quantized.codes.flatten().tolist() == joint.argmax(axis=0).tolist()
    unit = 2 / DIM * np.mean(spread)
    assert quantized.commitment.item() == pytest.approx(-unit * expected.mean(), rel=1e-4)
    assert quantized.codebook.item() == pytest.approx(-unit * expected.mean(), rel=1e-4)


def test_the_limit_of_zero_variance_is_vector_quantization() -> None:
    soft, hard = mixture(), VectorQuantizer(DIM, 6, codebook_update="gradient")
    hard.load_state_dict({"codebook": soft.means.detach()})
    latents = noise(2, DIM, 30).requires_grad_()
    expected = hard(latents)
    (expected_gradient,) = torch.autograd.grad(expected.commitment, latents)
    (expected_step,) = torch.autograd.grad(expected.codebook, hard.codebook)
    errors = []
    for log_variance in (-2.0, -5.0, -20.0):
        torch.nn.init.constant_(soft.log_variance, log_variance)
        quantized = soft(latents)
        errors.append(squares(quantized.latents, expected.latents))
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    assert torch.equal(quantized.codes, expected.codes)
    assert torch.equal(soft.encode(latents), hard.encode(latents))
    torch.testing.assert_close(soft.decode(quantized.codes), hard.decode(expected.codes))
    torch.testing.assert_close(quantized.commitment, expected.commitment, rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(quantized.commitment, latents, retain_graph=True)
    (step,) = torch.autograd.grad(quantized.codebook, soft.means)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(step, expected_step, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("variance", "decoded"), [(1.0, 0.46), (0.25, 0.96), (0.01, 1.0)])
def test_the_example_of_the_mixture(variance: float, decoded: float) -> None:
    quantizer = Mixture(1, 2)
    with torch.no_grad():
        quantizer.means.copy_(torch.tensor([[-1.0], [1.0]]))
        quantizer.log_variance.fill_(math.log(variance))
    quantized = quantizer(torch.tensor([[[0.5]]]))
    assert quantized.latents.item() == pytest.approx(decoded, abs=0.005)
    assert quantized.latents.item() == pytest.approx(math.tanh(0.5 / variance), abs=1e-4)
    assert quantized.codes.item() == 1


def test_each_loss_trains_its_own_parameters() -> None:
    quantizer, latents = mixture(), noise(1, DIM, 10).requires_grad_()
    quantized = quantizer(latents)
    quantized.commitment.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in quantizer.parameters())
    assert latents.grad is not None
    assert latents.grad.any()
    latents.grad = None
    quantized.codebook.backward()
    assert latents.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in quantizer.parameters())


@pytest.mark.slow
def test_the_mixture_fits_the_distribution_of_the_data() -> None:
    """Three quarters around (1, 1), one quarter around (-1, -1), standard deviation 0.2."""
    rows = torch.where(torch.arange(400) < 300, 1.0, -1.0)[:, None] + 0.2 * noise(400, 2)
    torch.manual_seed(0)
    quantizer = Mixture(2, 2)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(250):
        optimizer.zero_grad()
        quantizer(rows.T.unsqueeze(0)).codebook.backward()
        optimizer.step()
    order = quantizer.means[:, 0].argsort(descending=True)
    assert quantizer.means[order].flatten().tolist() == pytest.approx([1, 1, -1, -1], abs=0.1)
    assert quantizer.logits.softmax(0)[order].tolist() == pytest.approx([0.75, 0.25], abs=0.02)
    assert quantizer.log_variance.exp().sqrt().item() == pytest.approx(0.2, rel=0.1)


def test_initialization_of_a_mixture_is_likely() -> None:
    latents = noise(4, DIM, 100).sign() + 0.2 * noise(4, DIM, 100, seed=1)  # around the corners of a hypercube
    quantizer = mixture(size=16)
    before = log_likelihood(quantizer, latents).mean()
    quantizer.init_from_data(latents)
    assert log_likelihood(quantizer, latents).mean() > before + 1
    chosen = torch.bincount(quantizer.encode(latents).flatten(), minlength=16) / 400
    assert (chosen - quantizer.logits.softmax(0)).abs().max() < 0.05
    quantizer.init_from_data(latents[:1, :, :10])  # fewer frames than components: finite all the same
    assert log_likelihood(quantizer, latents).isfinite().all()
