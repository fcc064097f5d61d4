"""Attention: against a slow loop over pairs of steps, and chunk by chunk against all at once."""

import math

import pytest
import torch
from torch import Tensor

from codec.errors import ConfigError
from codec.nn.attention import TOGETHER, RMSNorm, Transformer, known_turns, turn, turns

CONTEXTS = [1, 3, 8, 64]


def net(context: int = 8, **options: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(16, layers=2, heads=2, context=context, **options).eval()


def signal(steps: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, steps, 16, generator=torch.Generator().manual_seed(1))


def slowly(model: Transformer, x: Tensor) -> Tensor:
    """All of it by the definition, one pair of steps after another."""
    for block in model.blocks:
        found = torch.zeros_like(x)
        mix = torch.nn.functional.linear(
            x * torch.rsqrt(x.square().mean(-1, keepdim=True) + torch.finfo(x.dtype).eps) * block.norm.weight,  # type: ignore[operator,union-attr]
            block.mix.weight,  # type: ignore[union-attr,arg-type]
        ).view(*x.shape[:2], 3, 2, 8)
        for row in range(len(x)):
            for head in range(2):
                for here in range(x.shape[1]):
                    scores, values = [], []
                    for there in range(max(0, here - model.context + 1), here + 1):
                        query, key = mix[row, here, 0, head], mix[row, there, 1, head]
                        score = 0.0
                        for pair in range(4):  # only how far apart they are turns what they say to each other
                            angle = (here - there) * 10 ** (-4 * pair / 3)
                            one = complex(query[pair], query[pair + 4])
                            other = complex(key[pair], key[pair + 4])
                            score += (one * complex(math.cos(angle), math.sin(angle)) * other.conjugate()).real
                        scores.append(score / math.sqrt(8))
                        values.append(mix[row, there, 2, head])
                    weights = torch.tensor(scores).softmax(0)
                    found[row, here, 8 * head : 8 * head + 8] = sum(
                        (weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros(8)
                    )
        x = block.after(x, found, None)  # type: ignore[operator]
    out: Tensor = model.norm(x)
    return out


@pytest.mark.parametrize("context", CONTEXTS)
def test_by_definition(context: int) -> None:
    model, x = net(context), signal(9)
    with torch.no_grad():
        assert torch.allclose(model(x), slowly(model, x), atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("cuts", [[1] * 20, [20], [3, 1, 1, 9, 6], [10, 1, 9], [1, 19]])
def test_chunk_by_chunk(context: int, cuts: list[int]) -> None:
    model, x = net(context), signal(20)
    with torch.no_grad():
        state, parts = model.initial_state(x), []
        for part in torch.split(x, cuts, dim=1):
            y, state = model.step(part, state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, dim=1), model(x), atol=1e-5)


def test_a_state_is_a_value() -> None:
    model, x = net(4), signal(12)
    with torch.no_grad():
        _, state = model.step(x[:, :7], model.initial_state(x))
        once, _ = model.step(x[:, 7:], state)
        model.step(x[:, :5], state)  # another future
        again, _ = model.step(x[:, 7:], state)
        assert once.equal(again)
        owned, _ = model.forward_step(x[:, 7:], state)  # which uses it up
        assert owned.equal(once)


def test_the_future_never_changes_the_past() -> None:
    model, x = net(), signal(12)
    other = x.clone()
    other[:, 8:] = 0
    with torch.no_grad():
        assert model(x)[:, :8].equal(model(other)[:, :8])


def test_nothing_is_seen_beyond_the_context() -> None:
    """With one layer, step 9 of context 4 knows steps 6 to 9."""
    torch.manual_seed(0)
    model = Transformer(16, layers=1, heads=2, context=4).eval()
    x = signal(10)
    for changed, seen in ((5, False), (6, True)):
        other = x.clone()
        other[:, changed] += 1
        with torch.no_grad():
            assert model(x)[:, 9].equal(model(other)[:, 9]) is not seen


def test_positions_far_out() -> None:
    """A million steps on, attention is what it is at the start: only distances count."""
    model, x = net(), signal(6)
    with torch.no_grad():
        here = turn(x[:, None, :, :8], model.rotation(0, 6, x)) @ turn(x[:, None, :, 8:], model.rotation(0, 6, x)).mT
        far = [model.rotation(10**6, 6, x)] * 2
        there = turn(x[:, None, :, :8], far[0]) @ turn(x[:, None, :, 8:], far[1]).mT
        assert torch.allclose(here, there, atol=1e-4)


def test_positions_where_turns_are_known_from() -> None:
    """Those from a table, those from two, and those of no table are the same; training may use them after a step."""
    model, x = net(), signal(6)
    far = turns(0, 3 * TOGETHER, 8, x.device)
    for first in (0, TOGETHER - 1, TOGETHER, 2 * TOGETHER - 3):
        for steps in (1, 5, TOGETHER):
            with torch.inference_mode():
                found = torch.stack(model.rotation(first, steps, x))
            assert torch.allclose(found, far[..., first : first + steps, :], atol=1e-7)
    with torch.inference_mode():
        known_turns.cache_clear()
        model(x)
    model(x).sum().backward()


def test_memory_is_seen_where_it_is() -> None:
    model, x = net(memory=True), signal(5)
    known = signal(3)
    there = torch.tensor([[True, True, False], [True, False, False]])
    with torch.no_grad():
        out = model(x, model.remember(known, there))
        hidden = known.clone()
        hidden[~there] = 9.0
        assert model(x, model.remember(hidden, there)).equal(out)
        assert not torch.allclose(model(x, model.remember(known + 1, there)), out, atol=1e-3)
        state, parts = model.initial_state(x, model.remember(known, there)), []
        for part in torch.split(x, 1, dim=1):
            y, state = model.step(part, state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, dim=1), out, atol=1e-5)


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="width = 18 does not divide into 4 heads"):
        Transformer(18, layers=1, heads=4, context=4)


def test_the_norm_is_torchs() -> None:
    ours, torchs = RMSNorm(24), torch.nn.RMSNorm(24)
    with torch.no_grad():
        torchs.weight.copy_(torch.randn(24))
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(3, 5, 24) * torch.tensor([0.1, 1.0, 100.0])[:, None, None]
    assert torch.allclose(ours(x), torchs(x), rtol=1e-4)
    assert ours(torch.zeros(1, 24)).equal(torch.zeros(1, 24))
