"""Build a module within bounds, because a configuration of a few bytes can ask for any number of tensors of any size.

torch's meta device would say the shapes without memory, but its first `arange` imports sympy, which takes longer than
loading a model.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.overrides import TorchFunctionMode

from codec.errors import ConfigError

INITIALIZERS = ("torch.nn.init", "codec.nn.init")
"""Modules of functions that fill a tensor with initial values and return it."""


@contextmanager
def built_within(*, parameters: int, size: int, initialize: bool = True) -> Iterator[None]:
    """Raise ConfigError before this thread builds modules with more parameters, or `size` bytes of tensors.

    Parameters and buffers are counted together in bytes. An intermediate tensor may have at most `size` / 2 elements; a
    larger one is refused before memory is allocated. Without `initialize`, parameters keep the values that they are
    allocated with, which takes neither memory nor time, and weights have to replace them.
    """
    thread, names, total = threading.get_ident(), 0, 0

    def count(owner: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal names, total
        if tensor is None or threading.get_ident() != thread:
            return
        names += isinstance(tensor, nn.Parameter)
        total += tensor.numel() * tensor.element_size()
        if names > parameters or total > size:
            raise ConfigError(f"it asks for more than {parameters} parameters or {size / 1e6:.0f} MB of memory")

    of_parameters = hooks.register_module_parameter_registration_hook(count)
    of_buffers = hooks.register_module_buffer_registration_hook(count)
    try:
        with _Bounded(size // 2, initialize=initialize):
            yield
    finally:
        of_parameters.remove()
        of_buffers.remove()


class _Bounded(TorchFunctionMode):
    """Refuses calls of torch whose result would have more than `most` elements, before they are made.

    Without `initialize`, it leaves out functions that fill a tensor with initial values.
    """

    def __init__(self, most: int, *, initialize: bool) -> None:
        super().__init__()
        self.most = most
        self.initialize = initialize

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if elements(name, args, kwargs or {}) > self.most:
            raise ConfigError(f"it asks for a tensor of more than {self.most / 1e6:.0f} million elements")
        if not self.initialize and getattr(func, "__module__", "") in INITIALIZERS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def elements(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int | float:
    """Elements of the result of a call of torch, or an upper bound: its size in numbers, or all its tensors broadcast.

    `torch.zeros(2, 3)` has 6, a column of 4 times a row of 5 has 20.
    """
    values = [*args, *kwargs.values()]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors and not name.startswith("new_"):
        try:
            return math.prod(np.broadcast_shapes(*(tensor.shape for tensor in tensors)))
        except ValueError:  # not element by element
            return sum(tensor.numel() for tensor in tensors)
    numbers = [value for value in args if isinstance(value, int | float)]
    sequences = [value for value in values if isinstance(value, Sequence) and not isinstance(value, str)]
    joined = [value for sequence in sequences for value in sequence if isinstance(value, Tensor)]
    if joined:
        return sum(tensor.numel() for tensor in joined)
    match name:
        case "tensor" | "as_tensor":  # of data in memory already
            return 0
        case "arange":
            first, last, step = {1: (0, *numbers, 1), 2: (*numbers, 1)}.get(len(numbers), numbers)
            return abs((last - first) / step)
        case "linspace" | "logspace":
            return numbers[-1]
        case "eye":
            return numbers[0] * numbers[-1]
    return math.prod(sequences[0] if sequences else numbers)
