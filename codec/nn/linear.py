"""Linear layers with fp16 weights, because a step of generation on a CPU is limited by reading weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from codec.nn.exporting import is_exporting


class HalfLinear(nn.Linear):
    """Multiply float32 inputs with fp16 weights, packed for inference from a linear layer.

    Lossless if `fits` is true. The output of a row does not depend on the other rows of the batch, nor on their number.
    The weights cannot be changed afterwards.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight.requires_grad_(False)
        self.bias = linear.bias
        self.pack()

    def pack(self) -> None:
        """Pack the weights for the kernel."""
        self.product = product(self.weight.detach(), None if self.bias is None else self.bias.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "product"}  # which cannot be pickled

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.pack()

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether the weights are exact in fp16, as those of shipped models are, and the CPU has the kernel."""
        has_kernel = weight.device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines
        return has_kernel and weight.half().float().equal(weight)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or is_exporting() or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        return self.product(x)


def product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A function from x to x @ weight.T + bias, with weights packed as fp16, that computes each row by itself."""
    kernel = packed_product(weight, bias)
    return kernel if sums_in_one_order() else lambda x: in_full_blocks(kernel, x)


@cache
def sums_in_one_order() -> bool:
    """Whether the kernel sums a row in the same order whatever their number, as it does with AVX-512."""
    numbers = torch.Generator().manual_seed(0)
    kernel = packed_product(torch.randn(32, 256, generator=numbers).half().float(), None)
    x = torch.randn(3, 256, generator=numbers)
    return kernel(x[:1]).equal(kernel(x)[:1])


def in_full_blocks(kernel: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The product with AVX2, whose kernel takes six rows at once and sums one or two that are left in another order."""
    rows = x.reshape(-1, x.shape[-1])
    added = -len(rows) % 3 if len(rows) % 6 in (1, 2) else 0
    y = kernel(F.pad(rows, (0, 0, 0, added)))[: len(rows)]
    return y.view(*x.shape[:-1], y.shape[-1])


def packed_product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """The function of the kernel.

    torch has two names for the kernel. A call of the first takes 1 µs, but torch has deprecated it. A call of the
    second takes 7 µs, half the time of a product of one row; it is the fallback.
    """
    try:
        packed = quietly(torch.fbgemm_pack_gemm_matrix_fp16, weight)
        kernel = torch.fbgemm_linear_fp16_weight_fp32_activation
        quietly(kernel, weight[:1], packed, bias)  # because only the first call warns
    except (AttributeError, TypeError, RuntimeError):
        prepacked = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, prepacked)
    return lambda x: kernel(x, packed, bias)


def quietly(function: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    """Call a function without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments)


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every linear layer within a module by what `make` returns for it.

    Linear layers of torch's own transformers stay, because torch reads their weights without calling them.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        elif not isinstance(child, nn.TransformerEncoderLayer):
            replace_linears(child, make)
