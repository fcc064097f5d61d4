"""Weights of 8 bits: a quarter of the memory, and how far from the real ones they may lie."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from codec.errors import UsageError
from codec.lm.transformer import TextEncoder
from codec.nn.int8 import Int8Linear, to_int8
from tests.lm.tiny import columns_of, prior, step_by_step, told


def bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def far(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 37, bias=bias)
    linear.weight.data[3] *= 1000  # rows of any size are as exact
    linear.weight.data[4] = 0
    layer = Int8Linear(linear)
    x = torch.randn(2, 5, 48)
    with torch.no_grad():
        y, real = layer(x), linear(x)
        assert y.shape == real.shape
        assert y.dtype == torch.float32
        assert all(far(y[..., row], real[..., row]) < 0.02 for row in range(37) if bias or row != 4)
        assert torch.allclose(y[..., 4], real[..., 4])
        kept = layer.weight.float() * layer.scale.float()[:, None]
        assert (
            (kept - linear.weight).abs() <= layer.scale.float()[:, None] * 0.76
        ).all()  # half a step; the largest more
        exact = x.bfloat16().double() @ kept.double().t() + (linear.bias if bias else 0)
        assert far(y, exact.float()) < 0.003  # what rounding to bfloat16 makes of it
        for row in range(2):
            for step in range(5):
                assert layer(x[row, step]).equal(y[row, step])
        assert layer(x.transpose(0, 1)).equal(y.transpose(0, 1))
        linear.weight.data = linear.weight.t().contiguous().t()  # however it lies in memory
        assert Int8Linear(linear)(x).equal(y)
        assert layer(x[0].t().contiguous().t()).equal(y[0])  # the same in another order in memory


def test_a_quarter_of_the_memory() -> None:
    linear = nn.Linear(512, 512, bias=False)
    assert bytes_of(Int8Linear(linear)) / bytes_of(linear) == pytest.approx(0.25, abs=0.002)


def test_a_language_model() -> None:
    model = prior(width=64, layers=3, pattern={"kind": "parallel"}, text=True, seed=2)
    small = copy.deepcopy(model)
    to_int8(small)
    columns, conditions = columns_of(model, 3, 20), told(model, 3)
    with torch.no_grad():
        real, close = model(columns, conditions)[..., :-1], small(columns, conditions)[..., :-1]
    assert 1e-4 < far(close, real) < 0.05
    assert float(torch.corrcoef(torch.stack([real.flatten(), close.flatten()]))[0, 1]) > 0.999
    assert bytes_of(small.get_submodule("time")) < 0.27 * bytes_of(model.get_submodule("time"))
    steps = step_by_step(small, columns, conditions)[..., :-1]
    assert far(steps, close) < 0.01  # sums in another order can round to another bfloat16


def test_after_weights_of_16_bits() -> None:
    model = prior(width=64)
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    other = copy.deepcopy(model).prepare_for_inference()
    to_int8(model)
    to_int8(other)
    columns, conditions = columns_of(model, 1, 4), told(model, 1)
    with torch.no_grad():
        assert other(columns, conditions).equal(model(columns, conditions))
    assert isinstance(other.get_submodule("heads"), Int8Linear)


def test_layers_that_stay() -> None:
    encoder = TextEncoder(32, heads=2, dropout=0.0).eval()
    changed = copy.deepcopy(encoder)
    to_int8(changed)
    text = torch.tensor([[106, 97, -1]])
    with torch.no_grad():
        assert changed(text)[0].equal(encoder(text)[0])
    narrow = nn.Sequential(nn.Linear(20, 4), nn.Linear(16, 4))
    to_int8(narrow)
    assert [type(layer) for layer in narrow] == [nn.Linear, Int8Linear]


def test_elsewhere_than_on_a_cpu() -> None:
    with pytest.raises(UsageError, match="for the CPU, this model is on meta"):
        to_int8(nn.Sequential(nn.Linear(16, 16, device="meta")))
