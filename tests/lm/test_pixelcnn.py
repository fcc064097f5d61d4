"""The PixelCNN sees what its configuration says, no cell less; and it is what its definition says, cell by cell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from codec.errors import ConfigError
from codec.lm import build
from codec.lm.pixelcnn import PixelCNN, PixelCNNConfig
from tests.lm.tiny import columns_of, prior, told


def seen(model: PixelCNN, frames: int, codebook: int, frame: int) -> Tensor:
    """Which cells [codebooks, frames] the logits of one depend on, by gradients; each cell has a vector of its own."""
    model.zero_grad()
    columns = torch.arange(frames).expand(1, model.source.num_codebooks, frames)
    model(columns, model.conditions([{}]))[0, codebook, frame, :-1].sum().backward()
    gradient = model.vectors.entries.grad
    assert gradient is not None
    return gradient[:, :frames].abs().sum(dim=-1) > 0


@pytest.mark.parametrize(
    ("num_codebooks", "sizes"),
    [
        (4, {"layers": 3, "context": 8}),
        (4, {"layers": 3, "context": 7}),
        (4, {"layers": 5, "context": 11}),
        (4, {"layers": 4, "context": 3}),
        (6, {"layers": 3, "context": 5, "kernel": 5}),
        (1, {"layers": 2, "context": 3, "kernel": 1}),
    ],
)
def test_the_field_has_no_hole_and_ends_where_it_should(num_codebooks: int, sizes: dict[str, Any]) -> None:
    frames = 14
    source = {"codec": "", "weights_hash": "", "num_codebooks": num_codebooks, "codebook_size": frames, "dim": 3}
    torch.manual_seed(0)
    model = build({"family": "pixelcnn", "width": 8, "vectors": "learned"} | sizes, source).double()
    assert isinstance(model, PixelCNN)
    frame = frames - 1
    for codebook in range(num_codebooks):
        expected = torch.zeros(num_codebooks, frames, dtype=torch.bool)
        expected[:, frame - sizes["context"] : frame] = True
        expected[:codebook, frame] = True
        assert seen(model, frames, codebook, frame).equal(expected)


def test_dilations() -> None:
    def dilations(**sizes: Any) -> tuple[int, ...]:
        return PixelCNNConfig(**sizes).dilations

    assert dilations(layers=4, context=16) == (1, 2, 4, 8)
    assert dilations(layers=4, context=9) == (1, 1, 3, 3)
    assert dilations(layers=4, context=3) == (1, 1, 0, 0)
    for layers in range(1, 12):
        for context in {1, 2, layers, 2**layers - 1, 2**layers, *range(1, 2**layers, 37)}:
            if context <= 2**layers:
                found = dilations(layers=layers, context=context)
                sums = {0}
                for dilation in found:
                    sums |= {one + dilation for one in sums}
                assert sums == set(range(context))
                assert len(found) == layers


def test_it_is_its_definition() -> None:
    """Equations 2 and 4 of the paper and its figure 2, for every cell and layer alone."""
    model: Any = prior(family="pixelcnn", layers=3, context=6, width=4).double()
    model.vectors.scale.copy_(torch.tensor([1, 0.5, 0.2]))
    columns, conditions = columns_of(model, 1, 7), told(model, 1)
    with torch.no_grad():
        logits = model(columns, conditions)
        _, num_codebooks, frames = columns.shape
        special_token = torch.full((1, num_codebooks, 1), model.special_token)
        heard = torch.cat([special_token, columns], dim=2)  # the frame before the first is of holes
        vectors = model.vectors(heard)[0] / model.vectors.scale[:, None, None]  # [codebooks, frames + 1, dim]
        numbers = [row % len(table.weight) for row, table in zip(conditions.classes[0], model.told, strict=True)]
        biases = sum(table.weight[number] for number, table in zip(numbers, model.told, strict=True))
        nothing = torch.zeros(4, dtype=torch.float64)

        def gate(both: Tensor) -> Tensor:
            return both[:4].tanh() * both[4:].sigmoid()

        cells = [(f, q) for f in range(frames) for q in range(num_codebooks)]
        down = {(f, q): model.listen_down(vectors[q, f]) + model.codebook[0, q] for f, q in cells}
        over = {
            (f, q): (model.listen_across(vectors[q - 1, f + 1]) if q else 0) + model.codebook[1, q] for f, q in cells
        }
        for number, (layer, dilation) in enumerate(zip(model.layers, model.config.dilations, strict=True)):
            bias_down, bias_over = biases.view(3, 2, 8)[number]
            weight = layer.vertical.weight
            new_down, new_over = {}, {}
            for f, q in cells:
                found = layer.vertical.bias.clone()
                for side in (-1, 0, 1):
                    if dilation:
                        found += weight[:, 0, side + 1] @ down.get((f - dilation, q + side), nothing)
                    found += weight[:, -1, side + 1] @ down.get((f, q + side), nothing)
                new_down[f, q] = gate(found + bias_down)
                beside = layer.horizontal.weight[:, 0, 0] @ over.get((f, q - 1), nothing)
                own = layer.horizontal.weight[:, 0, 1] @ over[f, q] + layer.horizontal.bias
                new_over[f, q] = over[f, q] + layer.mix(gate(beside + own + layer.link(found) + bias_over))
            down, over = new_down, new_over
        for (f, q), x in over.items():
            scaled = x / (x.square().mean() + torch.finfo(torch.float64).eps).sqrt() * model.norm.weight
            expected = scaled @ model.heads[q]
            assert torch.allclose(logits[0, q, f, :-1], expected[:-1], atol=1e-9)


def test_the_state_holds_what_the_layers_look_back_on() -> None:
    model = prior(family="pixelcnn", layers=3, context=6)
    state = model.initial_state(model.conditions([{}, {}]))
    shapes = [ring.shape for ring in state.rings]
    with torch.no_grad():
        for column in columns_of(model, 2, 9).unbind(dim=2):
            _, state = model.forward_step(column, state)
            assert [ring.shape for ring in state.rings] == shapes
    assert sum(shape[1] for shape in shapes) == 5


def test_gates_stay_gates() -> None:
    """Fresh weights neither let the vertical stack die away nor saturate it: it has no residual connections."""
    torch.manual_seed(0)
    source = {"codec": "", "weights_hash": "", "num_codebooks": 8, "codebook_size": 64, "dim": 16}
    model = build({"family": "pixelcnn", "width": 64, "layers": 10, "context": 64}, source)
    assert isinstance(model, PixelCNN)
    with torch.no_grad():
        codes = torch.randint(64, (1, 8, 64))
        state = model.initial_state(model.conditions([{}]))
        found, _ = model.down(codes, state.rings, state.told)
    assert all(0.35 < float(part[:, 32:].std()) < 1.5 for part in found)
    assert len(found) == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": 4}, "kernel = 4 has no middle"),
        ({"context": 65}, "layers = 6, which see at most 64: give it 7 layers"),
        ({"layers": 1, "context": 2}, "see 1 codebooks to either side, not all of 3"),
        ({"pattern": {}}, 'kind = "delay" does so too: take pattern.kind = "parallel"'),
        ({"heads": 2}, "unknown key heads"),
    ],
)
def test_configurations_that_make_none(config: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"family": "pixelcnn", "layers": 6}
    with pytest.raises(ConfigError, match=message):
        prior(3, **(sizes | config))
