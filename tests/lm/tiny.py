"""Small language models of small codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from codec.lm import CodecLM, build
from codec.lm.base import Conditioning

SIZE, DIM = 6, 5


def prior(num_codebooks: int = 3, *, seed: int = 0, source: dict[str, Any] | None = None, **config: Any) -> CodecLM:
    """A model with random weights, loud enough that its logits differ; `source` is what differs from the usual one."""
    torch.manual_seed(seed)
    learnt = {
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
    model = build(sizes | config, learnt).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    return model


def columns_of(model: CodecLM, batch: int, frames: int, seed: int = 0) -> Tensor:
    """Random codes, laid out."""
    rng = torch.Generator().manual_seed(seed)
    codes = torch.randint(SIZE, (batch, model.source.num_codebooks, frames), generator=rng)
    return model.pattern.lay_out(codes, model.special_token)


def told(model: CodecLM, batch: int) -> Conditioning:
    """Every row told something else."""
    text = ["", "ja", "nein"] if getattr(model.config, "text", False) else [""] * 3
    rows = [{"label": "yes", "text": text[0]}, {"speaker": "cleo", "text": text[1]}, {"text": text[2]}]
    return model.conditions([{key: value for key, value in rows[n % 3].items() if value} for n in range(batch)])


@torch.no_grad()
def step_by_step(model: CodecLM, columns: Tensor, conditions: Conditioning) -> Tensor:
    """The logits [batch, codebooks, steps, classes] that generation asks for when it is made to choose `columns`."""
    state = model.initial_state(conditions)
    before = torch.full_like(columns[:, :, 0], model.special_token)
    steps = []
    for column in columns.unbind(dim=2):
        asked: list[Tensor] = []

        def sample_fn(logits: Tensor, first: int, column: Tensor = column, asked: list[Tensor] = asked) -> Tensor:
            assert sum(part.shape[1] for part in asked) == first
            asked.append(logits)
            return column[:, first : first + logits.shape[1]]

        context, state = model.forward_step(before, state)
        before = model.decode_step(context, sample_fn)
        assert before.equal(column)
        steps.append(torch.cat(asked, dim=1))
    return torch.stack(steps, dim=2)
