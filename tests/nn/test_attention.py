"""Attention: against a slow loop over pairs of steps, chunk by chunk against all at once, and with rows reset alone."""

import math

import pytest
import torch
from torch import Tensor

from codec.errors import ConfigError
from codec.nn import attention
from codec.nn.attention import (
    FIRST_SLOTS,
    NORM_EPSILON,
    CrossAttentionKV,
    RMSNorm,
    StepCache,
    Transformer,
    TransformerState,
    apply_rotary,
    plan_step,
    reset_rows,
    rotary_frequencies,
    rotary_table,
)

CONTEXTS = [1, 3, 8, 64]


def net(context: int = 8, **options: bool) -> Transformer:
    torch.manual_seed(0)
    return Transformer(16, layers=2, heads=2, context=context, **options).eval()


def signal(steps: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, steps, 16, generator=torch.Generator().manual_seed(1))


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True).sqrt() + NORM_EPSILON) * weight


def reference(model: Transformer, x: Tensor) -> Tensor:
    """The transformer by its definition, one pair of steps after another."""
    for block in model.blocks:
        attended = torch.zeros_like(x)
        normalized = rms_norm(x, block.attention_norm.weight)  # type: ignore[union-attr,arg-type]
        qkv = torch.nn.functional.linear(normalized, block.qkv_proj.weight)  # type: ignore[union-attr,arg-type]
        qkv = qkv.view(*x.shape[:2], 3, 2, 8)
        for row in range(len(x)):
            for head in range(2):
                for here in range(x.shape[1]):
                    scores, values = [], []
                    for there in range(max(0, here - model.context + 1), here + 1):
                        query, key = qkv[row, here, 0, head], qkv[row, there, 1, head]
                        score = 0.0
                        for pair in range(4):  # rotated by their distance alone
                            angle = (here - there) * 10 ** (-4 * pair / 3)
                            one = complex(query[pair], query[pair + 4])
                            other = complex(key[pair], key[pair + 4])
                            score += (one * complex(math.cos(angle), math.sin(angle)) * other.conjugate()).real
                        scores.append(score / math.sqrt(8))
                        values.append(qkv[row, there, 2, head])
                    weights = torch.tensor(scores).softmax(0)
                    attended[row, here, 8 * head : 8 * head + 8] = sum(
                        (weight * value for weight, value in zip(weights, values, strict=True)), torch.zeros(8)
                    )
        x = block.residual_mlp(x, attended, None)  # type: ignore[operator]
    out: Tensor = model.norm(x)
    return out


@pytest.mark.parametrize("context", CONTEXTS)
def test_equals_its_definition(context: int) -> None:
    model, x = net(context), signal(9)
    with torch.no_grad():
        assert torch.allclose(model(x), reference(model, x), atol=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("cuts", [[1] * 20, [20], [3, 1, 1, 9, 6], [10, 1, 9], [1, 19]])
@pytest.mark.parametrize("first_slots", [2, FIRST_SLOTS])
def test_chunk_by_chunk(context: int, cuts: list[int], first_slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "FIRST_SLOTS", first_slots)
    model, x = net(context), signal(20)
    with torch.no_grad():
        state, parts = model.initial_state(x), []
        for part in torch.split(x, cuts, dim=1):
            y, state = model.step(part, state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, dim=1), model(x), atol=1e-5)


def test_a_cache_grows_with_its_steps() -> None:
    """A context of 2^24 steps takes the memory of the steps that were made."""
    model, x = net(2**24), signal(FIRST_SLOTS + 2)
    state = model.initial_state(x)
    assert state.kv_cache.shape == (2, 2, 2, 2, FIRST_SLOTS, 8)
    with torch.no_grad():
        _, full = model.step(x[:, :-2], state)
        assert full.kv_cache.shape[4] == FIRST_SLOTS
        y, grown = model.step(x[:, -2:-1], full)
        assert (grown.kv_cache.shape[4], full.kv_cache.shape[4]) == (2 * FIRST_SLOTS, FIRST_SLOTS)
        z, _ = model.step(x[:, -1:], grown)
        assert torch.allclose(torch.cat([y, z], dim=1), model(x)[:, -2:], atol=1e-5)


def test_state_is_a_value() -> None:
    model, x = net(4), signal(12)
    with torch.no_grad():
        _, state = model.step(x[:, :7], model.initial_state(x))
        once, _ = model.step(x[:, 7:], state)
        model.step(x[:, :5], state)  # another future
        again, _ = model.step(x[:, 7:], state)
        assert once.equal(again)
        in_place, _ = model.forward_step(x[:, 7:], state)  # last, because it overwrites the cache
        assert in_place.equal(once)


def test_the_future_never_changes_the_past() -> None:
    model, x = net(), signal(12)
    other = x.clone()
    other[:, 8:] = 0
    with torch.no_grad():
        assert model(x)[:, :8].equal(model(other)[:, :8])


def test_receptive_field_ends_at_the_context() -> None:
    """With one layer and a context of 4, step 9 attends to steps 6 to 9."""
    torch.manual_seed(0)
    model = Transformer(16, layers=1, heads=2, context=4).eval()
    x = signal(10)
    for changed, inside in ((5, False), (6, True)):
        other = x.clone()
        other[:, changed] += 1
        with torch.no_grad():
            assert model(x)[:, 9].equal(model(other)[:, 9]) is not inside


def test_attention_depends_on_distances_alone() -> None:
    """A million steps later, products of queries and keys are what they are at the start."""
    x = signal(6)[:, None]
    with torch.no_grad():
        products = []
        for first in (0, 10**6):
            queries, keys, _ = zip(*rotary_table(first + torch.arange(6)[None], 8, x.dtype), strict=True)
            rotated = apply_rotary(x[..., :8], (queries[0], queries[1])), apply_rotary(x[..., 8:], (keys[0], keys[1]))
            products.append(rotated[0] @ rotated[1].mT)
        assert torch.allclose(products[0], products[1], atol=1e-4)


def test_rotary_table_can_be_trained_with_after_inference() -> None:
    model, x = net(), signal(6)
    rotary_frequencies.cache_clear()
    with torch.inference_mode():
        model(x)
    model(x).sum().backward()


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("chunk", [1, 4])
@pytest.mark.parametrize("first_slots", [2, FIRST_SLOTS])
def test_reset_rows_equal_fresh_ones(
    context: int, chunk: int, first_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 1 of three starts again twice; it equals a run of its own, and the others continue."""
    monkeypatch.setattr(attention, "FIRST_SLOTS", first_slots)
    model, x = net(context), signal(24, batch=3)
    restart = torch.tensor([False, True, False])
    with torch.no_grad():
        expected = model(x)[[0, 2]]
        restarted = [model(x[1:2, 5:12]), model(x[1:2, 12:])]
        state, parts = model.initial_state(x), []
        for stretch in torch.split(x, [5, 7, 12], dim=1):
            for part in torch.split(stretch, chunk, dim=1):
                y, state = model.step(part, state)
                parts.append(y)
            before = state
            state = reset_rows(state, restart, model.initial_state(x))
            assert state.position[0] == before.position[0] > state.position[1] == 0
    y = torch.cat(parts, dim=1)
    assert torch.allclose(y[[0, 2]], expected, atol=1e-5)
    assert torch.allclose(y[1:2, 5:12], restarted[0], atol=1e-5)
    assert torch.allclose(y[1:2, 12:], restarted[1], atol=1e-5)


def test_reset_rows_take_their_own_memory() -> None:
    """A reset row may bring a memory of another length."""
    model, x = net(memory=True), signal(6)
    short, long = signal(2), signal(5) + 1

    def memory(places: Tensor) -> CrossAttentionKV:
        return model.encode_memory(places, torch.ones(places.shape[:2], dtype=torch.bool))

    with torch.no_grad():
        for first, second in ((short, long), (long, short)):
            state = model.initial_state(x, memory(first))
            _, state = model.step(x[:, :3], state)
            fresh = model.initial_state(x, memory(second))
            state = reset_rows(state, torch.tensor([True, False]), fresh)
            y, _ = model.step(x[:, 3:], state)
            assert torch.allclose(y[:1], model(x[:1, 3:], memory(second[:1])), atol=1e-5)
            assert torch.allclose(y[1:], model(x[1:], memory(first[1:]))[:, 3:], atol=1e-5)


def test_state_holds_tensors_alone() -> None:
    model, x = net(), signal(6)
    with torch.no_grad():
        _, state = model.step(x, model.initial_state(x))
    assert isinstance(state, TransformerState)
    assert state.position.tolist() == [6, 6]
    assert all(part is None or isinstance(part, Tensor) for part in state)


def test_cross_attention_ignores_padding() -> None:
    model, x = net(memory=True), signal(5)
    known = signal(3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with torch.no_grad():
        out = model(x, model.encode_memory(known, mask))
        hidden = known.clone()
        hidden[~mask] = 9.0
        assert model(x, model.encode_memory(hidden, mask)).equal(out)
        assert not torch.allclose(model(x, model.encode_memory(known + 1, mask)), out, atol=1e-3)
        state, parts = model.initial_state(x, model.encode_memory(known, mask)), []
        for part in torch.split(x, 1, dim=1):
            y, state = model.step(part, state)
            parts.append(y)
        assert torch.allclose(torch.cat(parts, dim=1), out, atol=1e-5)


def test_indivisible_heads_raise() -> None:
    with pytest.raises(ConfigError, match="width = 18 does not divide into 4 heads"):
        Transformer(18, layers=1, heads=4, context=4)


def test_rms_norm() -> None:
    """Equal to `nn.RMSNorm` but for its epsilon, and zero for zeros."""
    ours, torchs = RMSNorm(24), torch.nn.RMSNorm(24)
    with torch.no_grad():
        torchs.weight.copy_(torch.randn(24))
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(3, 5, 24) * torch.tensor([0.2, 1.0, 100.0])[:, None, None]
    assert torch.allclose(ours(x), torchs(x), rtol=1e-4)
    assert torch.allclose(ours(x), rms_norm(x, ours.weight))
    assert ours(torch.zeros(1, 24)).equal(torch.zeros(1, 24))


@torch.no_grad()
def test_a_step_on_a_device_reads_nothing_back() -> None:
    """The device "meta" has no values, so reading one raises an error."""
    model = net(context=8).to("meta")
    state = model.initial_state(torch.zeros(2, 16, device="meta"))
    for _ in range(3):
        out, state = model.forward_step(torch.zeros(2, 1, 16, device="meta"), state)
        assert out.shape == (2, 1, 16)


@pytest.mark.parametrize("context", CONTEXTS)
def test_all_slots_with_a_mask_give_what_the_filled_slots_give(context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step does on other devices than a CPU."""
    model, x = net(context), signal(9)

    def stepped() -> Tensor:
        state, steps = model.initial_state(x[:, 0]), []
        for step in x.unbind(dim=1):
            out, state = model.forward_step(step[:, None], state)
            steps.append(out)
        return torch.cat(steps, dim=1)

    with torch.no_grad():
        expected = stepped()
        planned: list[StepCache] = []

        def plan_elsewhere(position: Tensor, context: int) -> StepCache:
            mask = (torch.arange(context) <= position[:, None])[:, None, None]
            planned.append(StepCache(context, slots=position % context, mask=mask))
            return planned[-1]

        monkeypatch.setattr("codec.nn.attention.plan_step", plan_elsewhere)
        torch.testing.assert_close(stepped(), expected, rtol=1e-4, atol=1e-5)
    on_meta = plan_step(torch.zeros(2, dtype=torch.int64, device="meta"), context)
    assert on_meta.mask is not None
    assert (on_meta.filled, on_meta.mask.shape) == (planned[0].filled, (2, 1, 1, context))
