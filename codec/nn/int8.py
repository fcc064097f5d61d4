"""Linear layers with weights of 8 bits: on a CPU, a step of generation takes as long as reading the weights does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from codec.errors import UsageError
from codec.nn.linear import replace_linears

ALIGNED = 16  # torch's kernel reads so many weights of a row at a time, and past the row's end if they do not fit


class Int8Linear(nn.Module):
    """A linear layer whose weights are integers of -127 to 127 times a scale for each output; it cannot be trained.

    Takes and gives what the layer it is made of does, but its inputs, scales and outputs are rounded to bfloat16 on the
    way. Each row of a batch is computed by itself. Raises UsageError for a layer that is not on the CPU.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.weight.device.type != "cpu":
            raise UsageError(
                f"int8 weights are for the CPU, this model is on {linear.weight.device}: load it there (--device cpu)"
            )
        weight = linear.weight.detach().float()
        # The scale is rounded first, so that the integers are right for what it is then.
        scale = (weight.abs().amax(dim=1).clamp(min=1e-12) / 127).bfloat16()
        integers = (weight / scale.float()[:, None]).round().clamp(-127, 127)
        self.register_buffer("weight", integers.to(torch.int8).contiguous())  # [out, in]
        self.register_buffer("scale", scale)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        y = torch._weight_int8pack_mm(rows.bfloat16().contiguous(), self.weight, self.scale).to(x.dtype)
        if x.ndim != 2:
            y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def to_int8(module: nn.Module) -> None:
    """Make every linear layer within a module, which changes, an `Int8Linear`.

    Those with rows that are no multiple of 16 long stay as they are, and those that `replace_linears` leaves.
    """
    replace_linears(module, lambda linear: linear if linear.in_features % ALIGNED else Int8Linear(linear))
