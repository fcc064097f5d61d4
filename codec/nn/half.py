"""Linear layers that read weights of 16 bits: on a CPU, that is what most of a step of generation is spent on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class HalfLinear(nn.Linear):
    """The layer it is made of, which multiplies rows of float32 with its weights packed as 16 bits.

    Nothing is lost where `fits` is true. Each row of a batch is computed by itself. Its weights cannot be trained.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight.requires_grad_(False)
        self.bias = linear.bias
        self.packed = torch.ops.quantized.linear_prepack_fp16(self.weight.detach(), None)

    @staticmethod
    def fits(weight: Tensor) -> bool:
        """Whether weights are numbers of 16 bits, as those of shipped models are, and the processor has the kernel."""
        there = weight.device.type == "cpu" and "fbgemm" in torch.backends.quantized.supported_engines
        return there and weight.half().float().equal(weight)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        y: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self.packed)
        return y if self.bias is None else y + self.bias


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `make` makes of them in the place of all linear layers within a module.

    Those of torch's own transformers stay, which use the weights of their layers without calling them.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, make(child))
        elif not isinstance(child, nn.TransformerEncoderLayer):
            replace_linears(child, make)
