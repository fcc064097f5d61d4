"""fp16 weights: the output does not change, and the layer keeps its interface."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from codec.nn.linear import HalfLinear, replace_linears
from tests.helpers import processes

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this CPU does not have the kernel"
)


def linear(bias: bool, *, outputs: int = 37) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(48, outputs, bias=bias)
    layer.weight.data = layer.weight.data.half().float()
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_output_is_that_of_the_original_layer(bias: bool) -> None:
    real = linear(bias)
    real.weight.data[3] *= 1024
    layer = HalfLinear(real)
    x = torch.randn(2, 5, 48)
    exact = x.double() @ real.weight.double().t() + (real.bias.double() if bias else 0)
    with torch.no_grad():
        y = layer(x)
        assert torch.allclose(y, exact.float(), rtol=1e-5, atol=1e-5)
        for row in range(2):
            for step in range(5):
                assert layer(x[row, step, None]).equal(y[row, step, None])
        assert layer(x.transpose(0, 1)).equal(y.transpose(0, 1))
        assert copy.deepcopy(layer)(x).equal(y)
        assert pickle.loads(pickle.dumps(layer))(x).equal(y)
        assert torch.allclose(copy.deepcopy(layer).double()(x.double()), exact)
    assert list(layer.state_dict()) == list(real.state_dict())


def test_fallback_kernel_gives_equal_output(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 48)
    for bias in (True, False):
        layer = HalfLinear(linear(bias))
        with monkeypatch.context() as patch:
            patch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16")
            other = HalfLinear(linear(bias))
        with torch.no_grad():
            assert other(x).equal(layer(x))


@pytest.mark.slow
def test_packing_does_not_warn() -> None:
    """In a process of its own, because torch warns once per process."""
    code = "import warnings; warnings.simplefilter('error')\n"
    code += "import torch; from codec.nn.linear import HalfLinear as Half; torch.set_grad_enabled(False)\n"
    code += "Half(torch.nn.Linear(32, 8))(torch.randn(1, 32))"
    done = processes.run(code)
    assert (done.returncode, done.stderr) == (0, "")


def test_gradients_of_the_input() -> None:
    real = linear(True)
    layer = HalfLinear(real)
    x = torch.randn(3, 48, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad, real.weight.sum(dim=0).expand(3, -1), atol=1e-5)
    assert not layer.weight.requires_grad


def test_weights_that_fit_fp16() -> None:
    weight = linear(False).weight
    assert HalfLinear.fits(weight)
    assert not HalfLinear.fits(weight + 1e-5)
    assert not HalfLinear.fits(weight * 1e6)
    assert not HalfLinear.fits(weight.to("meta"))


def test_layers_of_torchs_transformers_stay() -> None:
    layer = nn.TransformerEncoderLayer(48, 2, 48)
    module = nn.ModuleDict({"first": linear(True), "then": nn.Sequential(linear(False)), "last": layer})
    replace_linears(module, HalfLinear)
    assert [type(found) for found in (module["first"], *module["then"].children())] == [HalfLinear, HalfLinear]
    assert type(layer.linear1) is nn.Linear
