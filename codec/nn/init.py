"""Initialization of weights, in a form that `codec.nn.bounds` can leave out when the weights of a file follow."""

from __future__ import annotations

from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary


def trunc_normal_(tensor: Tensor, *, std: float) -> Tensor:
    """torch's `trunc_normal_` as a function that modes of torch see, as they see the other functions of `nn.init`."""
    if has_torch_function_unary(tensor):
        result: Tensor = handle_torch_function(trunc_normal_, (tensor,), tensor, std=std)
        return result
    return nn.init.trunc_normal_(tensor, std=std)
