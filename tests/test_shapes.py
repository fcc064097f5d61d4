"""tests/helpers/shapes.py: a wrong shape in a signature fails wherever shapes are checked."""

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from codec.nn.quantize.residual import ResidualVQ
from codec.nn.shapes import Latents
from tests.helpers.shapes import has_shapes
from tests.tiny import tiny_model


def test_a_wrong_shape_fails() -> None:
    model, quantizer = tiny_model(), ResidualVQ(4, 3, 8)
    model(torch.zeros(1, 1, 800))
    quantizer.encode(torch.zeros(1, 4, 5))
    with pytest.raises(TypeCheckError):
        model(torch.zeros(1, 800))
    with pytest.raises(TypeCheckError):
        quantizer.encode(torch.zeros(4, 5))


def plain(size: int, *, names: dict[str, int]) -> list[Tensor] | None: ...
def alias(latents: Latents) -> None: ...
def union(latents: int | Latents | None) -> None: ...
def returned() -> tuple[Latents, int] | None: ...
def text(latents: "Latents | None") -> None: ...
def own(x: "Float[Tensor, '4']") -> None: ...


def test_which_functions_have_shapes() -> None:
    found = [has_shapes(one) for one in (plain, alias, union, returned, text, own)]
    assert found == [False, *5 * [True]]
