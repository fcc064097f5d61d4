"""Linear layers that read weights of 16 bits: on a CPU, that is what most of a step of generation is spent on."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class HalfLinear(nn.Linear):
    """The layer it is made of, which multiplies rows of float32 with its weights packed as 16 bits.

    Nothing is lost where `fits` is true. Each row of a batch is computed by itself. Its weights cannot be changed.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight.requires_grad_(False)
        self.bias = linear.bias
        self.pack()

    def pack(self) -> None:
        """Make the product of the weights."""
        self.product = product(self.weight.detach(), None if self.bias is None else self.bias.detach())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "product"}  # which no file can hold

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.pack()

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether weights are numbers of 16 bits, as those of shipped models are, and the processor has the kernel."""
        there = weight.device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines
        return there and weight.half().float().equal(weight)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
            return super().forward(x)
        return self.product(x)


def product(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """x @ weight.T + bias as a function of x, the weights packed as 16 bits.

    torch has two names for the kernel. One is called in 1 µs and will be removed from torch some day; the other takes
    7 µs, half of what a product of one row takes, and is for that day.
    """
    try:
        packed = quietly(torch.fbgemm_pack_gemm_matrix_fp16, weight)
        kernel = torch.fbgemm_linear_fp16_weight_fp32_activation
        quietly(kernel, weight[:1], packed, bias)  # it warns but once
    except (AttributeError, TypeError, RuntimeError):
        known = torch.ops.quantized.linear_prepack_fp16(weight, bias)
        return lambda x: torch.ops.quantized.linear_dynamic_fp16(x, known)
    return lambda x: kernel(x, packed, bias)


def quietly(do: Callable[..., Tensor], *arguments: Tensor | None) -> Tensor:
    """What it does, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return do(*arguments)


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `make` makes of them in the place of all linear layers within a module.

    Those of torch's own transformers stay, which use the weights of their layers without calling them.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        elif not isinstance(child, nn.TransformerEncoderLayer):
            replace_linears(child, make)
