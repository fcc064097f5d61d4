"""bounds.py: modules that are too large are refused before their tensors take memory."""

import threading

import pytest
import torch
from torch import nn

from codec.errors import ConfigError
from codec.nn.bounds import built_within, elements
from codec.nn.init import trunc_normal_

LARGE = 2**40  # elements, more than any memory


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("zeros(2, 3)", 6),
        ("zeros((2, 3))", 6),
        ("empty(size=(2, 3))", 6),
        ("randn(2, 3, generator=None)", 6),
        ("full((2, 3), 7)", 6),
        ("arange(5)", 5),
        ("arange(2, 9)", 7),
        ("arange(0, 1, 0.25)", 4),
        ("linspace(0, 1, 9)", 9),
        ("eye(3)", 9),
        ("hann_window(9)", 9),
        ("tensor([[4, 5]])", 0),
    ],
)
def test_elements_of_a_factory(call: str, expected: int) -> None:
    name, _, rest = call.partition("(")
    args, kwargs = eval(f"(lambda *args, **kwargs: (args, kwargs))({rest}")
    assert elements(name, args, kwargs) == expected
    if name != "tensor":
        assert eval(f"torch.{call}").numel() == expected


def test_elements_of_tensors() -> None:
    column, row = torch.zeros(4, 1), torch.zeros(5)
    assert elements("mul", (column, row), {}) == 20
    assert elements("mul", (column, 2.5), {}) == 4
    assert elements("matmul", (torch.zeros(4, 3), torch.zeros(3, 2)), {}) == 18
    assert elements("cat", ([column, column],), {"dim": 1}) == 8
    assert elements("new_zeros", (column, 7, 3), {}) == 21


@pytest.mark.parametrize(
    "build",
    [
        lambda: torch.zeros(LARGE),
        lambda: torch.randn(2**20, 2**20),
        lambda: torch.arange(2**13)[:, None] * torch.arange(2**13),
        lambda: nn.Linear(2**20, 2**20),
        lambda: nn.Embedding(2**30, 1),
        lambda: nn.ModuleList(nn.LayerNorm(4) for _ in range(10**9)),
        lambda: nn.ModuleList(nn.Linear(2**10, 2**10) for _ in range(10)),
    ],
)
def test_too_large_to_build(build: object) -> None:
    assert callable(build)
    with pytest.raises(ConfigError, match="it asks for"), built_within(parameters=100, size=2**25):
        build()


def test_what_fits_is_built_and_nothing_is_bounded_afterwards() -> None:
    with built_within(parameters=2, size=4 * (12 + 3)):
        layer = nn.Linear(4, 3)
    assert layer(torch.zeros(1, 4)).shape == (1, 3)
    nn.ModuleList(nn.LayerNorm(4) for _ in range(10))
    with pytest.raises(ConfigError), built_within(parameters=2, size=4 * (12 + 3) - 1):
        nn.Linear(4, 3)
    nn.Linear(4, 3)


@pytest.mark.parametrize("initialize", [True, False])
def test_parameters_that_weights_will_replace_are_not_initialized(initialize: bool) -> None:
    before = torch.get_rng_state()
    with built_within(parameters=20, size=2**20, initialize=initialize):
        linear, conv, _ = nn.Linear(4, 3), nn.Conv1d(2, 3, 5), nn.LSTM(4, 4)
        trunc_normal_(linear.weight, std=1)
        noise = torch.zeros(3).fill_(2)
    assert torch.get_rng_state().equal(before) is not initialize
    assert noise.tolist() == [2, 2, 2]
    assert (linear.weight.shape, conv.weight.shape) == ((3, 4), (3, 2, 5))


def test_other_threads_are_not_counted() -> None:
    built: list[nn.Module] = []
    with built_within(parameters=1, size=2**10):
        thread = threading.Thread(target=lambda: built.append(nn.Linear(100, 100)))
        thread.start()
        thread.join()
    assert len(built) == 1
