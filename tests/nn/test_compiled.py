"""Compiled layers, compared with torch in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from codec.nn import compiled
from codec.nn.conv import ConvNeXtBlock


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 5, 3), (3, 33, 18)])
def test_products(rows: int, inputs: int, outputs: int, exact: bool) -> None:
    weight, bias, x = randn(outputs, inputs), randn(outputs), randn(rows, inputs)
    weight = weight.half().float() if exact else weight
    product = compiled.product(weight, bias)
    assert product.weight.dtype == (np.uint16 if exact and compiled.converts_half() else np.float32)
    expected = F.linear(x.double(), weight.double(), bias.double()).numpy()
    np.testing.assert_allclose(compiled.multiply(x.numpy(), *product), expected, atol=1e-5)


def test_every_number_of_fp16_is_read_exactly() -> None:
    if not compiled.converts_half():
        pytest.skip("this CPU does not convert fp16")
    halves = np.arange(2**16, dtype=np.uint16)[:, None]
    finite = np.isfinite(halves.view(np.float16))[:, 0]
    found = compiled.multiply(np.ones((1, 1), np.float32), halves, np.zeros(2**16, np.float32))[0]
    np.testing.assert_array_equal(found[finite], halves.view(np.float16)[finite, 0].astype(np.float32))


def test_gelu() -> None:
    x = torch.linspace(-9, 9, 10_001)[None]
    found = x.numpy().copy()
    compiled.gelu(found)
    np.testing.assert_allclose(found, F.gelu(x.double()).numpy(), atol=2e-6)


@pytest.mark.parametrize(("frames", "kernel"), [(1, 7), (2, 1), (9, 4)])
def test_blocks(frames: int, kernel: int) -> None:
    torch.manual_seed(0)
    block = ConvNeXtBlock(10, kernel=kernel, expansion=3, scale=0.5)
    x, context = randn(2, 10, frames), randn(2, 10, kernel - 1)
    with torch.no_grad():
        expected, after = block.step(x, context)
    weights = compiled.block(block)
    found, next_context = compiled.convnext(*(compiled.array(part.mT) for part in (x, context)), *weights)
    np.testing.assert_allclose(found, expected.mT.numpy(), atol=1e-5)
    np.testing.assert_array_equal(next_context, after.mT.numpy())


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("dim", "beams"), [(8, 1), (8, 4), (5, 7)])
def test_searches_find_the_lowest_sums(dim: int, beams: int, exact: bool) -> None:
    """Of all sums of entries of two codebooks if no beam is lost, and of the sums that are left otherwise."""
    size = 3
    entries, rows = randn(2, size, dim).half().float(), randn(4, dim).numpy()
    stored = compiled.stored(entries.numpy()) if exact else entries.numpy()
    norms = entries.square().sum(dim=2).numpy()
    found = compiled.nearest_sums(rows, stored, compiled.entry_columns(stored), norms, beams)
    for row, codes in zip(rows.astype(float), found, strict=True):
        first = np.argsort(np.square(row - entries[0].numpy()).sum(axis=1))[:beams]
        sums = {
            (one, other): np.square(row - entries[0, one].numpy() - entries[1, other].numpy()).sum()
            for one in first.tolist()
            for other in range(size)
        }
        assert tuple(codes) == min(sums, key=sums.__getitem__)


def test_sums_of_entries() -> None:
    entries = randn(3, 4, 5).half().float().numpy()
    codes = np.array([[0, 3, 2], [1, -1, -1]])
    expected = np.stack([entries[0, 0] + entries[1, 3] + entries[2, 2], entries[0, 1]])
    for stored in (entries, compiled.stored(entries)):
        np.testing.assert_allclose(compiled.entry_sums(stored, codes), expected, atol=1e-6)
