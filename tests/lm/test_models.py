"""Every language model: teacher forcing is generation, the future changes nothing, conditioning matters."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from codec.errors import ConfigError, UnknownModel, UsageError
from codec.lm import build
from codec.lm.base import CodeEmbedding
from codec.lm.conditioning import CodebookSpec, Conditioning
from codec.nn.linear import HalfLinear
from codec.nn.streaming import State
from tests.helpers.language_models import (
    DIM,
    MODELS,
    SIZE,
    SMALL,
    forced_step,
    random_tokens,
    some_conditioning,
    step_by_step,
    tiny_lm,
)


@pytest.mark.slow
@pytest.mark.parametrize("context", [5, 64])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", MODELS)
def test_teacher_forcing_is_generation(name: str, batch: int, context: int) -> None:
    model = tiny_lm(**MODELS[name], context=context)
    tokens = random_tokens(model, batch, 7)
    with torch.no_grad():
        whole = model(tokens, some_conditioning(model, batch))
    steps = step_by_step(model, tokens, some_conditioning(model, batch))
    assert whole.shape == (*tokens.shape, SIZE + 1)
    assert torch.allclose(whole, steps, atol=1e-4)
    assert whole[:, 0].std() > 0.1  # because constant logits would always agree
    assert (whole[:, 1:, :, -1] == -torch.inf).all()
    assert whole[..., :-1].isfinite().all()


@pytest.mark.parametrize("name", MODELS)
def test_cells_depend_on_earlier_cells_alone(name: str) -> None:
    """Changing the code of a cell changes the logits of the cells generated after it, and no others."""
    model = tiny_lm(**MODELS[name])
    tokens, conditioning = random_tokens(model, 1, 4), some_conditioning(model, 1)
    codebook_by_codebook = "depth" in MODELS[name] or name == "pixelcnn"
    with torch.no_grad():
        before = model(tokens, conditioning)
        for codebook, step in (tokens[0] != model.special_token).nonzero().tolist():
            other = tokens.clone()
            other[0, codebook, step] = (other[0, codebook, step] + 1) % SIZE
            changed = (model(other, conditioning) != before)[0, :, :, 0]
            assert not changed[:, :step].any()
            assert not changed[: codebook + 1 if codebook_by_codebook else None, step].any()
            if step + 1 < tokens.shape[2]:
                assert changed[:, step + 1].all()
            if codebook_by_codebook and codebook + 1 < model.source.num_codebooks:
                assert changed[codebook + 1 :, step].all()


@pytest.mark.parametrize("name", ["delay", "depth", "text", "pixelcnn"])
def test_conditioning_changes_logits(name: str) -> None:
    model = tiny_lm(**MODELS[name])
    tokens = random_tokens(model, 1, 3)
    rows: list[dict[str, str]] = [{}, {"label": "yes"}, {"label": "no"}, {"label": "no", "speaker": "ben"}]
    if name == "text":
        rows += [{"text": "ja"}, {"text": "ja!"}]
    with torch.no_grad():
        outs = [model(tokens, model.conditioning([row]))[0, 0] for row in rows]
        joint = model(tokens.expand(len(rows), -1, -1), model.conditioning(rows))[:, 0]
    for number, out in enumerate(outs):
        assert torch.allclose(out, joint[number], atol=1e-4)
        assert all(not torch.allclose(out, other, atol=1e-3) for other in outs[:number])


def test_unknown_conditions_raise() -> None:
    model = tiny_lm()
    assert model.conditioning([{}, {"speaker": "ben"}]).classes.tolist() == [[-1, -1], [-1, 1]]
    with pytest.raises(UsageError, match="no label yess: did you mean yes"):
        model.conditioning([{"label": "yess"}])
    with pytest.raises(UsageError, match=r"takes no color; it takes label, speaker$"):
        model.conditioning([{"color": "red"}])
    with pytest.raises(UsageError, match="there are no rows"):
        model.conditioning([])
    with pytest.raises(UsageError, match="the text cannot be encoded as UTF-8"):
        tiny_lm(text=True).conditioning([{"text": "\udcff"}])
    with pytest.raises(UsageError, match="takes no text"):
        model.conditioning([{"text": "ja"}])
    assert tiny_lm(text=True).conditioning([{"text": "né"}, {}]).text.tolist() == [[110, 195, 169], [-1, -1, -1]]


def test_embeddings_are_the_codecs_vectors() -> None:
    source = CodebookSpec(codec="", weights_hash="", num_codebooks=2, codebook_size=SIZE, dim=DIM, classes={})
    vectors = CodeEmbedding(source, "codebook")
    entries = torch.randn(3, SIZE, DIM)  # a codec with a codebook more
    entries[1] *= 0.1
    vectors.init_from_codec(entries)
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
    lengths = vectors.concat_normalized(every).view(SIZE, 2, DIM).square().sum(-1).mean(0).sqrt()
    assert torch.allclose(lengths, torch.full((2,), DIM**0.5), rtol=1e-4)


def test_invalid_configurations_raise() -> None:
    with pytest.raises(ConfigError, match="both decide the codebooks of a frame one by one"):
        tiny_lm(pattern={"kind": "flatten"}, depth=SMALL)
    for text in (False, True):
        with pytest.raises(ConfigError, match="does not divide into 3 heads"):
            tiny_lm(text=text, heads=3)
    with pytest.raises(ConfigError, match="is for 3 codebooks, not 2"):
        tiny_lm(2, pattern={"delays": [0, 1, 2]})
    for wrong in (
        {"guidance": 1001.0},
        {"temperature": 1e-4},
        {"context": 10**12},
        {"pattern": {"delays": [0, 10**9]}},
    ):
        with pytest.raises(ConfigError):
            tiny_lm(2, **wrong)
    with pytest.raises(ConfigError, match="unknown key layer; did you mean layers"):
        tiny_lm(layer=3)
    with pytest.raises(UnknownModel, match="'rnn': the families are"):
        build(
            {"family": "rnn"},
            CodebookSpec(codec="", weights_hash="", num_codebooks=1, codebook_size=2, dim=1).model_dump(),
        )


def test_unconditional_is_an_empty_row() -> None:
    model = tiny_lm(text=True)
    nothing = model.conditioning([{}])
    assert nothing.classes.equal(torch.tensor([[-1, -1]]))
    assert nothing.text.shape == (1, 0)
    tokens = random_tokens(model, 1, 3)
    padded = Conditioning(nothing.classes, torch.full((1, 4), -1))
    with torch.no_grad():
        assert torch.allclose(model(tokens, nothing), model(tokens, padded), atol=1e-5)


@pytest.mark.parametrize("classes", [{}, {"label": ["no", "yes"]}])
@pytest.mark.parametrize(
    "name", [*(name for name in MODELS if name != "text"), pytest.param("text", marks=pytest.mark.slow)]
)
def test_fresh_models_have_moderate_gradients(name: str, classes: dict[str, list[str]]) -> None:
    """Also of deep unconditional ones, whose first step has special tokens alone as its input."""
    config = {"width": 32, "layers": 12, "context": 64} | MODELS[name]
    sizes = {"codec": "", "weights_hash": "", "num_codebooks": 3, "codebook_size": SIZE, "dim": DIM, "classes": classes}
    torch.manual_seed(0)
    model = build({"family": "transformer"} | config, sizes)
    model.vectors.init_from_codec(torch.randn(3, SIZE, DIM) * torch.tensor([1.0, 0.5, 0.1])[:, None, None])
    tokens = random_tokens(model, 2, 7)
    logits = model(tokens, model.conditioning([{}] * 2))
    decided = (tokens != model.special_token).nonzero(as_tuple=True)
    loss = torch.nn.functional.cross_entropy(logits[decided], tokens[decided])
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    lengths = [float(gradient.norm()) for gradient in gradients if gradient is not None]
    assert 1e-3 < max(lengths) < 10


@pytest.mark.parametrize("name", ["text", "depth", "depth, not cumulative"])
@pytest.mark.parametrize("shipped", [False, True])
def test_prepare_for_inference_changes_no_logits(shipped: bool, name: str) -> None:
    model = tiny_lm(**MODELS[name])
    if shipped:
        for parameter in model.parameters():
            parameter.data = parameter.data.half().float()
    tokens, conditioning = random_tokens(model, 2, 5), some_conditioning(model, 2)
    with torch.no_grad():
        before = model(tokens, conditioning)
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert torch.allclose(model.prepare_for_inference()(tokens, conditioning), before, atol=1e-5)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert isinstance(model.token_proj, HalfLinear if shipped else nn.Linear)
    assert model.token_proj.weight.t().is_contiguous() is not shipped
    assert torch.allclose(step_by_step(model, tokens, conditioning), before, atol=1e-4)
    with pytest.raises(UsageError, match="packed for inference; build a new one"):
        model.load_state_dict(state)


@pytest.mark.parametrize("name", ["delay", "depth", "pixelcnn"])
def test_caches_are_overwritten_in_place(name: str) -> None:
    def pointers(state: State) -> list[int]:
        if isinstance(state, Tensor):
            return [state.data_ptr()] if state.ndim > 1 and state.numel() else []
        return [pointer for part in state for pointer in pointers(part)] if isinstance(state, tuple) else []

    model = tiny_lm(**MODELS[name], context=4)
    state = model.initial_state(some_conditioning(model, 2))
    before = pointers(state)
    assert len(before) > 1
    with torch.no_grad():
        for step_tokens in random_tokens(model, 2, 9).unbind(dim=2):
            hidden, state = model.forward_step(step_tokens, state)
            model.decode_step(hidden, lambda logits, first: logits[..., :-1].argmax(dim=-1))
            assert pointers(state) == before


@pytest.mark.slow
@pytest.mark.parametrize("context", [4, 64])
@pytest.mark.parametrize("name", MODELS)
def test_reset_rows_equal_fresh_ones(name: str, context: int) -> None:
    """Rows start again alone, with another conditioning; the others continue as if nothing had happened."""
    model = tiny_lm(**MODELS[name], context=context)
    conditioning = some_conditioning(model, 3)
    other = Conditioning(*(part.flip(0) for part in conditioning))
    tokens, fresh_tokens = random_tokens(model, 3, 6), random_tokens(model, 3, 6, seed=1)
    expected = step_by_step(model, tokens, conditioning)
    restarted = step_by_step(model, fresh_tokens, other)

    state = model.initial_state(conditioning)
    before = torch.full_like(tokens[:, :, 0], model.special_token)
    for step in range(5):
        _, state = forced_step(model, before, tokens[:, :, step], state)
        before = tokens[:, :, step]
    mask = torch.tensor([True, False, False])
    state = model.reset_rows(state, mask, other)
    before = torch.where(mask[:, None], model.special_token, before)
    for step in range(5, tokens.shape[2]):
        step_tokens = torch.where(mask[:, None], fresh_tokens[:, :, step - 5], tokens[:, :, step])
        logits, state = forced_step(model, before, step_tokens, state)
        before = step_tokens
        assert torch.allclose(logits[1:], expected[1:, :, step], atol=1e-4)
        assert torch.allclose(logits[:1], restarted[:1, :, step - 5], atol=1e-4)
