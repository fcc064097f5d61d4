"""least_squares.py: codebooks of a residual quantizer, all at once."""

import pytest
import torch

from codec.errors import UsageError
from codec.nn.quantize.least_squares import SHRINKAGE, errors, refit
from codec.nn.quantize.residual import ResidualVQ

PREFIXES = {1: 1.0, 3: 2.0}


def quantizer(rows: torch.Tensor, *, beam_size: int = 2) -> ResidualVQ:
    vq = ResidualVQ(4, 3, 8, beam_size=beam_size)
    vq.init_from_data(rows.T[None])
    return vq


@pytest.fixture
def rows() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(600, 4) @ torch.randn(4, 4)


def test_a_round_solves_the_least_squares_problem(rows: torch.Tensor) -> None:
    """As a dense solver does with one column for each entry and one equation for each row and prefix."""
    vq = quantizer(rows)
    known = torch.stack([stage.codebook for stage in vq.stages]).flatten(0, 1).double()
    columns, targets = [SHRINKAGE**0.5 * torch.eye(24, dtype=torch.float64)], [SHRINKAGE**0.5 * known]
    for number, weight in PREFIXES.items():
        one_hot = torch.nn.functional.one_hot(vq.encode(rows.T[None], number)[0].T, 8).double()
        filled = torch.cat([one_hot, torch.zeros(600, 3 - number, 8, dtype=torch.float64)], dim=1)
        columns.append(weight**0.5 * filled.flatten(1))
        targets.append(weight**0.5 * rows.double())
    expected = torch.linalg.lstsq(torch.cat(columns), torch.cat(targets)).solution
    refit(vq, rows, PREFIXES)
    found = torch.stack([stage.codebook for stage in vq.stages]).flatten(0, 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-4)


def test_errors_of_other_rows_decrease() -> None:
    torch.manual_seed(0)
    rows, others = torch.randn(4000, 8), torch.randn(1000, 8)
    vq = ResidualVQ(8, 4, 16, beam_size=4)
    vq.init_from_data(rows.T[None])
    before = errors(vq, others, {2: 1.0, 4: 1.0})
    for _ in range(3):
        refit(vq, rows, {2: 1.0, 4: 1.0})
    after = errors(vq, others, {2: 1.0, 4: 1.0})
    assert after[2] < before[2]
    assert after[4] < 0.97 * before[4]
    decoded = vq.decode(vq.encode(others.T[None]))[0].T
    assert after[4] == pytest.approx(float((others - decoded).square().sum() / others.square().sum()), rel=1e-5)


def test_other_quantizers_and_prefixes_raise(rows: torch.Tensor) -> None:
    with pytest.raises(UsageError, match="cosine distance"):
        refit(ResidualVQ(4, 3, 8, distance="cosine"), rows, PREFIXES)
    for prefixes in ({}, {4: 1.0}, {0: 1.0}):
        with pytest.raises(UsageError, match="use 1 to 3 codebooks"):
            refit(quantizer(rows), rows, prefixes)
