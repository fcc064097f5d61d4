"""Small language models of small codes, and generation step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codec.lm import CodecLM, build
from codec.lm.conditioning import Conditioning
from codec.nn.streaming import State

SIZE, DIM = 6, 5

PATTERNS: dict[str, dict[str, Any]] = {
    "parallel": {"kind": "parallel"},
    "delay": {},
    "partial delay": {"delays": [0, 1, 1]},
    "flatten": {"kind": "flatten"},
    "partial flatten": {"kind": "flatten", "groups": [0, 1, 1]},
    "coarse first": {"kind": "coarse_first", "block": 4},
}
SMALL = {"width": 12, "layers": 1, "heads": 2}
MODELS: dict[str, dict[str, Any]] = {name: {"pattern": pattern} for name, pattern in PATTERNS.items()} | {
    "depth": {"pattern": {"kind": "parallel"}, "depth": SMALL},
    "depth, not cumulative": {"pattern": {"kind": "parallel"}, "depth": SMALL | {"cumulative": False}},
    "depth with delays": {"pattern": {"delays": [0, 1, 1]}, "depth": SMALL},
    "learned vectors": {"vectors": "learned"},
    "text": {"text": True},
    "pixelcnn": {"family": "pixelcnn", "layers": 6},
}


def tiny_lm(num_codebooks: int = 3, *, seed: int = 0, source: dict[str, Any] | None = None, **config: Any) -> CodecLM:
    """A model with random weights, scaled up so that logits differ; `source` overrides its `CodebookSpec`."""
    torch.manual_seed(seed)
    spec = {
        "codec": "tiny",
        "weights_hash": "0" * 64,
        "num_codebooks": num_codebooks,
        "codebook_size": SIZE,
        "dim": DIM,
        "classes": {"label": ["no", "yes"], "speaker": ["anna", "ben", "cleo"]},
    } | (source or {})
    sizes = {"family": "transformer", "width": 16, "layers": 2, "context": 64}
    if config.get("family") != "pixelcnn":
        sizes["heads"] = 2
    model = build(sizes | config, spec).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    return model


def random_tokens(model: CodecLM, batch: int, frames: int, seed: int = 0) -> Tensor:
    """Random codes, laid out by the model's pattern."""
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(model.source.codebook_size, (batch, model.source.num_codebooks, frames), generator=rng)
    return model.pattern.lay_out(codes, model.special_token)


def some_conditioning(model: CodecLM, batch: int) -> Conditioning:
    """A different conditioning for every row, up to three."""
    text = ["", "ja", "nein"] if getattr(model.config, "text", False) else [""] * 3
    rows = [{"label": "yes", "text": text[0]}, {"speaker": "cleo", "text": text[1]}, {"text": text[2]}]
    return model.conditioning([{key: value for key, value in rows[n % 3].items() if value} for n in range(batch)])


@torch.no_grad()
def step_by_step(model: CodecLM, tokens: Tensor, conditioning: Conditioning) -> Tensor:
    """Logits [batch, codebooks, steps, codebook_size + 1] of generation that is made to choose `tokens`."""
    state = model.initial_state(conditioning)
    before = torch.full_like(tokens[:, :, 0], model.special_token)
    steps = []
    for step_tokens in tokens.unbind(dim=2):
        logits, state = forced_step(model, before, step_tokens, state)
        steps.append(logits)
        before = step_tokens
    return torch.stack(steps, dim=2)


@torch.no_grad()
def forced_step(model: CodecLM, before: Tensor, step_tokens: Tensor, state: State) -> tuple[Tensor, State]:
    """Logits [batch, codebooks, codebook_size + 1] of one step that is made to choose `step_tokens`, and the state."""
    parts: list[Tensor] = []

    def choose(logits: Tensor, first: int) -> Tensor:
        assert sum(part.shape[1] for part in parts) == first
        parts.append(logits)
        return step_tokens[:, first : first + logits.shape[1]]

    hidden, state = model.forward_step(before, state)
    assert model.decode_step(hidden, choose).equal(step_tokens)
    return torch.cat(parts, dim=1), state
