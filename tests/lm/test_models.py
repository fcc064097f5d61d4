"""Every language model: teacher forcing is generation, the future is not seen, conditions count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codec.errors import ConfigError, UnknownModel, UsageError
from codec.lm import build
from codec.lm.base import CodebookSpec, CodeEmbedding, Conditioning
from codec.nn.linear import HalfLinear
from codec.nn.streaming import State
from tests.lm.tiny import DIM, SIZE, columns_of, prior, step_by_step, told

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
    "depth of the last": {"pattern": {"kind": "parallel"}, "depth": SMALL | {"cumulative": False}},
    "depth with delays": {"pattern": {"delays": [0, 1, 1]}, "depth": SMALL},
    "learned vectors": {"vectors": "learned"},
    "text": {"text": True},
    "pixelcnn": {"family": "pixelcnn", "layers": 6},
}


@pytest.mark.parametrize("context", [5, 64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_teacher_forcing_is_generation(name: str, batch: int, context: int) -> None:
    model = prior(**MODELS[name], context=context)
    columns = columns_of(model, batch, 7)
    with torch.no_grad():
        whole = model(columns, told(model, batch))
    steps = step_by_step(model, columns, told(model, batch))
    assert whole.shape == (*columns.shape, SIZE + 1)
    assert torch.allclose(whole, steps, atol=1e-4)
    assert whole[:, 0].std() > 0.1  # or any two would be alike
    assert (whole[:, 1:, :, -1] == -torch.inf).all()
    assert whole[..., :-1].isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_what_a_cell_may_know(name: str) -> None:
    """Each cell in turn: only what comes after it in the order of deciding changes when its code does."""
    model = prior(**MODELS[name])
    columns, conditions = columns_of(model, 1, 4), told(model, 1)
    bookwise = "depth" in MODELS[name] or name == "pixelcnn"
    with torch.no_grad():
        before = model(columns, conditions)
        for codebook, step in (columns[0] != model.special_token).nonzero().tolist():
            other = columns.clone()
            other[0, codebook, step] = (other[0, codebook, step] + 1) % SIZE
            changed = (model(other, conditions) != before)[0, :, :, 0]
            assert not changed[:, :step].any()
            assert not changed[: codebook + 1 if bookwise else None, step].any()
            if step + 1 < columns.shape[2]:
                assert changed[:, step + 1].all()
            if bookwise and codebook + 1 < model.source.num_codebooks:
                assert changed[codebook + 1 :, step].all()


@pytest.mark.parametrize("name", ["delay", "depth", "text", "pixelcnn"])
def test_conditions_count(name: str) -> None:
    model = prior(**MODELS[name])
    columns = columns_of(model, 1, 3)
    rows: list[dict[str, str]] = [{}, {"label": "yes"}, {"label": "no"}, {"label": "no", "speaker": "ben"}]
    if name == "text":
        rows += [{"text": "ja"}, {"text": "ja!"}]
    with torch.no_grad():
        outs = [model(columns, model.conditions([row]))[0, 0] for row in rows]
        joint = model(columns.expand(len(rows), -1, -1), model.conditions(rows))[:, 0]
    for number, out in enumerate(outs):
        assert torch.allclose(out, joint[number], atol=1e-4)
        assert all(not torch.allclose(out, other, atol=1e-3) for other in outs[:number])


def test_conditions_that_are_not_known() -> None:
    model = prior()
    assert model.conditions([{}, {"speaker": "ben"}]).classes.tolist() == [[-1, -1], [-1, 1]]
    with pytest.raises(UsageError, match="no label yess: did you mean yes"):
        model.conditions([{"label": "yess"}])
    with pytest.raises(UsageError, match=r"takes no color; it can be given label, speaker$"):
        model.conditions([{"color": "red"}])
    with pytest.raises(UsageError, match="there are no rows"):
        model.conditions([])
    with pytest.raises(UsageError, match="the text is none that UTF-8 can write"):
        prior(text=True).conditions([{"text": "\udcff"}])
    with pytest.raises(UsageError, match="takes no text"):
        model.conditions([{"text": "ja"}])
    assert prior(text=True).conditions([{"text": "né"}, {}]).text.tolist() == [[110, 195, 169], [-1, -1, -1]]


def test_vectors_are_the_codecs() -> None:
    source = CodebookSpec(codec="", weights_hash="", num_codebooks=2, codebook_size=SIZE, dim=DIM, classes={})
    vectors = CodeEmbedding(source, "codebook")
    entries = torch.randn(3, SIZE, DIM)  # a codec with a codebook more
    entries[1] *= 0.1
    vectors.start(entries)
    codes = torch.tensor([[[0, 5], [3, SIZE]]])
    found = vectors(codes)
    assert found.shape == (1, 2, 2, DIM)
    ratio = found[0, 0, 1] / entries[0, 5]
    assert torch.allclose(ratio, ratio[:1].expand(DIM), rtol=1e-4)
    assert torch.allclose(found[0, 1, 0] / entries[1, 3], ratio, rtol=1e-4)  # sums stay in proportion
    assert found[0, 1, 1].equal(vectors.special_token[1])
    assert not vectors.entries.requires_grad
    assert CodeEmbedding(source, "learned").entries.requires_grad
    every = torch.arange(SIZE).expand(1, 2, SIZE)
    lengths = vectors.alike(every).view(SIZE, 2, DIM).square().sum(-1).mean(0).sqrt()
    assert torch.allclose(lengths, torch.full((2,), DIM**0.5), rtol=1e-4)


def test_configurations_that_make_none() -> None:
    with pytest.raises(ConfigError, match="decides all codebooks of a step one by one"):
        prior(pattern={"kind": "flatten"}, depth=SMALL)
    for text in (False, True):
        with pytest.raises(ConfigError, match="does not divide into 3 heads"):
            prior(text=text, heads=3)
    with pytest.raises(ConfigError, match="is for 3 codebooks, not 2"):
        prior(2, pattern={"delays": [0, 1, 2]})
    for wrong in (
        {"guidance": 1001.0},
        {"temperature": 1e-4},
        {"context": 10**12},
        {"pattern": {"delays": [0, 10**9]}},
    ):
        with pytest.raises(ConfigError):
            prior(2, **wrong)
    with pytest.raises(ConfigError, match="unknown key layer; did you mean layers"):
        prior(layer=3)
    with pytest.raises(UnknownModel, match="'rnn': the families are"):
        build(
            {"family": "rnn"},
            CodebookSpec(codec="", weights_hash="", num_codebooks=1, codebook_size=2, dim=1).model_dump(),
        )


def test_no_conditions_is_a_row_of_nothing() -> None:
    model = prior(text=True)
    nothing = model.conditions([{}])
    assert nothing.classes.equal(torch.tensor([[-1, -1]]))
    assert nothing.text.shape == (1, 0)
    columns = columns_of(model, 1, 3)
    padded = Conditioning(nothing.classes, torch.full((1, 4), -1))
    with torch.no_grad():
        assert torch.allclose(model(columns, nothing), model(columns, padded), atol=1e-5)


@pytest.mark.parametrize("classes", [{}, {"label": ["no", "yes"]}])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_of_fresh_models(name: str, classes: dict[str, list[str]]) -> None:
    """Also deep ones that are told nothing, whose first step hears holes alone."""
    config = {"width": 32, "layers": 12, "context": 64} | MODELS[name]
    sizes = {"codec": "", "weights_hash": "", "num_codebooks": 3, "codebook_size": SIZE, "dim": DIM, "classes": classes}
    torch.manual_seed(0)
    model = build({"family": "transformer"} | config, sizes)
    model.vectors.start(torch.randn(3, SIZE, DIM) * torch.tensor([1.0, 0.5, 0.1])[:, None, None])
    columns = columns_of(model, 2, 7)
    logits = model(columns, model.conditions([{}] * 2))
    decided = (columns != model.special_token).nonzero(as_tuple=True)
    loss = torch.nn.functional.cross_entropy(logits[decided], columns[decided])
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    lengths = [float(gradient.norm()) for gradient in gradients if gradient is not None]
    assert 1e-3 < max(lengths) < 10


@pytest.mark.parametrize("name", ["text", "depth", "depth of the last"])
@pytest.mark.parametrize("shipped", [False, True])
def test_laid_out_for_steps_it_is_the_same_model(shipped: bool, name: str) -> None:
    model = prior(**MODELS[name])
    if shipped:
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
    columns, conditions = columns_of(model, 2, 5), told(model, 2)
    with torch.no_grad():
        before = model(columns, conditions)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert torch.allclose(model.prepare_for_inference()(columns, conditions), before, atol=1e-5)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model.listen, HalfLinear if shipped else nn.Linear)
    assert model.listen.weight.t().is_contiguous() is not shipped
    assert torch.allclose(step_by_step(model, columns, conditions), before, atol=1e-4)
    with pytest.raises(UsageError, match="laid out for steps, its weights cannot be changed"):
        model.load_state_dict(state)


@pytest.mark.parametrize("name", ["delay", "depth", "pixelcnn"])
def test_a_state_takes_the_same_memory_for_ever(name: str) -> None:
    def places(state: State) -> list[int]:
        if isinstance(state, Tensor):
            return [state.data_ptr()] if state.numel() else []
        return [place for part in state for place in places(part)] if isinstance(state, tuple) else []

    model = prior(**MODELS[name], context=4)
    state = model.initial_state(told(model, 2))
    before = places(state)
    assert len(before) > 1
    with torch.no_grad():
        for column in columns_of(model, 2, 9).unbind(dim=2):
            context, state = model.forward_step(column, state)
            model.decode_step(context, lambda logits, first: logits[..., :-1].argmax(dim=-1))
            assert places(state) == before
