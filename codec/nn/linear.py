"""Linear layers with fp16 weights, because a step of generation on a CPU is limited by reading weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from codec.nn.exporting import is_exporting


class HalfLinear(nn.Linear):
    """Multiply float32 inputs with fp16 weights, packed for inference from a linear layer.

    Lossless if `fits` is true. The output of a row does not depend on the other rows, but on CPUs without AVX-512, the
    last bits depend on whether there are others. The weights cannot be changed afterwards.
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
    """A function from x to x @ weight.T + bias, with weights packed as fp16.

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
