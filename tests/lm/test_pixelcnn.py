"""PixelCNN: its receptive field is that of its configuration, and its logits are those of its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from codec.errors import ConfigError
from codec.lm import build
from codec.lm.pixelcnn import PixelCNNConfig, PixelCNNLM
from tests.helpers.language_models import random_tokens, some_conditioning, tiny_lm


def receptive_field(model: PixelCNNLM, frames: int, codebook: int, frame: int) -> Tensor:
    """Cells [codebooks, frames] that the logits of one depend on, by gradients; each cell has a vector of its own."""
    model.zero_grad()
    tokens = torch.arange(frames).expand(1, model.source.num_codebooks, frames)
    model(tokens, model.conditioning([{}]))[0, codebook, frame, :-1].sum().backward()
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
def test_receptive_field_is_complete(num_codebooks: int, sizes: dict[str, Any]) -> None:
    frames = 14
    source = {"codec": "", "weights_hash": "", "num_codebooks": num_codebooks, "codebook_size": frames, "dim": 3}
    torch.manual_seed(0)
    model = build({"family": "pixelcnn", "width": 8, "vectors": "learned"} | sizes, source).double()
    assert isinstance(model, PixelCNNLM)
    frame = frames - 1
    for codebook in range(num_codebooks):
        expected = torch.zeros(num_codebooks, frames, dtype=torch.bool)
        expected[:, frame - sizes["context"] : frame] = True
        expected[:codebook, frame] = True
        assert receptive_field(model, frames, codebook, frame).equal(expected)


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


def test_equals_its_definition() -> None:
    """Equations 2 and 4 of the paper and its figure 2, for every cell and layer alone."""
    model: Any = tiny_lm(family="pixelcnn", layers=3, context=6, width=4).double()
    model.vectors.scale.copy_(torch.tensor([1, 0.5, 0.2]))
    tokens, conditioning = random_tokens(model, 1, 7), some_conditioning(model, 1)
    with torch.no_grad():
        logits = model(tokens, conditioning)
        _, num_codebooks, frames = tokens.shape
        special_token = torch.full((1, num_codebooks, 1), model.special_token)
        padded = torch.cat([special_token, tokens], dim=2)  # special tokens before the first frame
        vectors = model.vectors(padded)[0] / model.vectors.scale[:, None, None]  # [codebooks, frames + 1, dim]
        numbers = [
            row % len(table.weight) for row, table in zip(conditioning.classes[0], model.class_conditioner, strict=True)
        ]
        biases = sum(table.weight[number] for number, table in zip(numbers, model.class_conditioner, strict=True))
        nothing = torch.zeros(4, dtype=torch.float64)

        def gate(both: Tensor) -> Tensor:
            return both[:4].tanh() * both[4:].sigmoid()

        cells = [(f, q) for f in range(frames) for q in range(num_codebooks)]
        down = {(f, q): model.vertical_token_proj(vectors[q, f]) + model.codebook_embedding[0, q] for f, q in cells}
        over = {
            (f, q): (model.horizontal_token_proj(vectors[q - 1, f + 1]) if q else 0) + model.codebook_embedding[1, q]
            for f, q in cells
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
                new_over[f, q] = over[f, q] + layer.out_proj(gate(beside + own + layer.link(found) + bias_over))
            down, over = new_down, new_over
        for (f, q), x in over.items():
            scaled = x / (x.square().mean().sqrt() + model.norm.epsilon) * model.norm.weight
            expected = scaled @ model.lm_heads[q]
            assert torch.allclose(logits[0, q, f, :-1], expected[:-1], atol=1e-9)


def test_state_holds_the_context() -> None:
    model = tiny_lm(family="pixelcnn", layers=3, context=6)
    state = model.initial_state(model.conditioning([{}, {}]))
    shapes = [ring.shape for ring in state.rings]
    with torch.no_grad():
        for step_tokens in random_tokens(model, 2, 9).unbind(dim=2):
            _, state = model.forward_step(step_tokens, state)
            assert [ring.shape for ring in state.rings] == shapes
    assert sum(shape[1] for shape in shapes) == 5


def test_fresh_gates_keep_their_scale() -> None:
    """The vertical stack, which has no residual connections, neither vanishes nor saturates."""
    torch.manual_seed(0)
    source = {"codec": "", "weights_hash": "", "num_codebooks": 8, "codebook_size": 64, "dim": 16}
    model = build({"family": "pixelcnn", "width": 64, "layers": 10, "context": 64}, source)
    assert isinstance(model, PixelCNNLM)
    with torch.no_grad():
        codes = torch.randint(64, (1, 8, 64))
        state = model.initial_state(model.conditioning([{}]))
        links, _ = model.vertical_stack(codes, state.rings, state.conditioning)
    assert all(0.35 < float(link[:, 32:].std()) < 1.5 for link in links)
    assert len(links) == 10


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": 4}, "kernel = 4 has no center"),
        ({"context": 65}, "layers = 6, which reach at most 64: use 7 layers"),
        ({"layers": 1, "context": 2}, "reach 1 codebooks to either side, not all of 3"),
        ({"pattern": {}}, 'kind = "delay" both decide .*: set pattern.kind = "parallel"'),
        ({"heads": 2}, "unknown key heads"),
    ],
)
def test_invalid_configurations_raise(config: dict[str, Any], message: str) -> None:
    sizes: dict[str, Any] = {"family": "pixelcnn", "layers": 6}
    with pytest.raises(ConfigError, match=message):
        tiny_lm(3, **(sizes | config))
