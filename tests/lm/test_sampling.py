"""Sampling: probabilities are exact, and generation equals a plain loop over the cells, however it is run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from codec.errors import UsageError
from codec.lm import CodecLM
from codec.lm.base import CodecLMConfig, SampleFn, StepTokens
from codec.lm.conditioning import CodebookSpec, Conditioning
from codec.lm.filters import Sampler, Sampling
from codec.lm.patterns import PatternConfig
from codec.lm.sampling import generate_frames, infill, max_prompt_frames
from codec.nn.shapes import Codes, Logits
from tests.helpers.language_models import MODELS, SIZE, some_conditioning, tiny_lm

# Sampling


def p_value(found: Tensor, expected: Tensor) -> float:
    """p of Pearson's chi-squared test that the counts come from these probabilities."""
    expected = expected.double() / expected.sum() * found.sum()
    statistic = ((found - expected).square() / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(found) - 1) / 2, dtype=torch.float64), statistic / 2))


def allowed(
    logits: Tensor, *, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> Tensor:
    """Unnormalized probabilities of one codebook: its list of codes, most probable first, cut three times."""
    shares = (logits.double() / temperature).exp()
    kept = shares.argsort(descending=True).tolist()
    if top_k is not None:
        kept = kept[:top_k]
    if top_p is not None:
        total = sum(shares[kept])
        for number in range(1, len(kept) + 1):
            if sum(shares[kept[:number]]) >= top_p * total:
                kept = kept[:number]
                break
    if min_p is not None:
        kept = [code for code in kept if shares[code] >= min_p * shares[kept[0]]]
    out = torch.zeros_like(shares)
    out[kept] = shares[kept]
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"temperature": (0.5, 2.0)},
        {"top_k": 4},
        {"top_k": (1, 12)},
        {"top_p": 0.7},
        {"top_p": (1.0, 0.01)},
        {"min_p": 0.2},
        {"min_p": (0.5, 0.0)},
        {"temperature": 1.5, "top_k": (9, 5), "top_p": (0.9, 0.8), "min_p": (0.15, 0.3)},
    ],
)
def test_samples_have_the_probabilities_of_the_filters(settings: dict[str, Any]) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 1.5 * torch.randn(2, 12, generator=rng)
    sampler = Sampler(Sampling(**settings), num_codebooks=2, codebook_size=12, device=torch.device("cpu"))
    uniform = torch.rand(20_000, 3, generator=rng)
    drawn = sampler.sample(logits.expand(20_000, -1, -1), 0, uniform)
    second = sampler.sample(logits[1:].expand(20_000, -1, -1), 1, uniform)
    assert second.equal(drawn[:, 1:])  # one codebook at a time, as a depth transformer does
    for codebook in range(2):
        of_codebook: dict[str, Any] = {"temperature": 1.0, "top_k": None, "top_p": None, "min_p": None}
        for name, value in settings.items():
            of_codebook[name] = value[codebook] if isinstance(value, tuple) else value
        expected = allowed(logits[codebook], **of_codebook)
        found = drawn[:, codebook].bincount(minlength=12)
        there = expected > 0
        assert found[there].sum() == 20_000
        assert there.sum() == 1 or p_value(found[there], expected[there]) > 1e-3


def test_extreme_uniform_numbers() -> None:
    logits = torch.full((2, 1, 5), -torch.inf)
    logits[:, 0, 1], logits[:, 0, 3] = 0.3, 0.1
    uniform = torch.tensor([[0.0, 0.0], [1 - 2**-24, 0.0]])
    sampler = Sampler(Sampling(), num_codebooks=1, codebook_size=4, device=torch.device("cpu"))
    assert sampler.sample(logits, 0, uniform).tolist() == [[1], [3]]


# Generating


def reference(
    model: CodecLM,
    seed: int,
    conditionings: list[Conditioning],
    *,
    guidance: float = 1.0,
    frames: int = 1000,
    given: Tensor | None = None,
    stop: bool = True,
    repetition: tuple[float, int] | None = None,
) -> list[list[int]]:
    """One row, cell by cell, running the whole model for each.

    `conditionings` are the row's own and, for guidance, the unconditional one."""
    num_codebooks, special_token = model.source.num_codebooks, model.special_token
    rng = np.random.default_rng(seed)
    codes: dict[tuple[int, int], int] = {}
    tokens: list[list[int]] = []
    end, recent = 10**9, [-1] * (repetition[1] if repetition else 0)
    known = {}
    if given is not None:
        known = {(codebook, frame): int(given[codebook, frame]) for codebook, frame in (given >= 0).nonzero().tolist()}
    while any((codebook, frame) not in codes for codebook in range(num_codebooks) for frame in range(min(end, frames))):
        step = len(tokens)
        tokens.append([special_token] * num_codebooks)
        uniform = rng.random(num_codebooks + 1, np.float32)
        for codebook, frame in enumerate(model.pattern.cells(step, step + 1)[:, 0].tolist()):
            if frame < 0 or frame >= end:
                continue
            if (codebook, frame) in known:
                code = known[codebook, frame]
            else:
                so_far = torch.tensor(tokens).T[None]
                with torch.no_grad():
                    logits = [model(so_far, one)[0, codebook, -1] for one in conditionings]
                mixed = logits[-1] + guidance * (logits[0] - logits[-1]) if guidance != 1 else logits[0]
                last_known = max((f for _, f in known), default=-1)
                if codebook > 0 or not stop or frame <= last_known:
                    mixed[special_token] = -torch.inf
                sums = np.cumsum(mixed.double().softmax(-1).numpy())
                code = int(np.argmax(sums > uniform[codebook]))
                if codebook == 0 and repetition and recent.count(code) / len(recent) > repetition[0]:
                    code = int(np.argmax(sums > uniform[num_codebooks]))
                if code == special_token:
                    end = frame
                    continue
            tokens[-1][codebook] = codes[codebook, frame] = code
            if codebook == 0:
                recent = [*recent, code][1:]
    return [[codes[codebook, frame] for frame in range(min(end, frames))] for codebook in range(num_codebooks)]


def whole(model: CodecLM, *, seeds: Sequence[int], **options: Any) -> Codes:
    none = torch.zeros(len(seeds), model.source.num_codebooks, 0, dtype=torch.int64)
    return torch.cat([none, *generate_frames(model, seeds=seeds, **options)], dim=2)


def rows(codes: Codes) -> list[list[list[int]]]:
    """Each row up to its end, after which all codes are -1."""
    lengths = (codes[:, 0] >= 0).sum(dim=1).tolist()
    assert all((row[:, length:] == -1).all() for row, length in zip(codes, lengths, strict=True))
    return [row[:, :length].tolist() for row, length in zip(codes, lengths, strict=True)]


def sensitive_lm(**config: Any) -> CodecLM:
    """A model whose samples depend on its input so much that other input is noticed."""
    model = tiny_lm(**config)
    for name, parameter in model.named_parameters():
        if "heads" in name:
            parameter.data *= 6
    return model


def row_of(conditioning: Conditioning, row: int) -> Conditioning:
    return conditioning.rows(row, row + 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_generation_equals_a_plain_loop(name: str) -> None:
    """For every pattern and model; rows of a batch end at different frames, and equal those generated alone."""
    model = sensitive_lm(**MODELS[name])
    seeds, conditioning = [3, 1, 4], some_conditioning(model, 3)
    expected = [reference(model, seed, [row_of(conditioning, row)], frames=14) for row, seed in enumerate(seeds)]
    assert len({len(row[0]) for row in expected}) >= 2  # because rows should end at different frames
    assert rows(whole(model, seeds=seeds, conditioning=conditioning, frames=14)) == expected
    assert rows(whole(model, seeds=seeds[1:2], conditioning=row_of(conditioning, 1), frames=14)) == expected[1:2]
    capped = [[codebook[:2] for codebook in row] for row in expected]
    assert rows(whole(model, seeds=seeds, conditioning=conditioning, frames=2)) == capped


@pytest.mark.parametrize("name", [*MODELS, "two codebooks at once"])
def test_input_equals_that_of_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's input is its output, laid out, also at an end beside which other codebooks have been generated."""
    model = sensitive_lm(**(MODELS | {"two codebooks at once": {"pattern": {"delays": [0, 0, 3]}}})[name])
    forward_step = Mock(side_effect=model.forward_step)
    monkeypatch.setattr(model, "forward_step", forward_step)
    for seed in range(3, 6):
        forward_step.reset_mock()
        codes = whole(model, seeds=[seed], frames=60)
        tokens = torch.stack([call.args[0] for call in forward_step.call_args_list], dim=2)[:, :, 1:]
        if codes.shape[2] < 60:
            assert tokens.equal(model.pattern.lay_out(codes, model.special_token)[:, :, : tokens.shape[2]])


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [-1.0, 0.0, 3.0])
@pytest.mark.parametrize("name", ["delay", "depth", "flatten", "text"])
def test_guidance(name: str, guidance: float) -> None:
    model = sensitive_lm(**MODELS[name])
    conditioning, unconditional = some_conditioning(model, 2), model.conditioning([{}])
    expected = [
        reference(model, seed, [row_of(conditioning, seed), unconditional], guidance=guidance, frames=4)
        for seed in (0, 1)
    ]
    assert rows(whole(model, seeds=[0, 1], conditioning=conditioning, guidance=guidance, frames=4)) == expected


def test_guidance_of_0_is_unconditional() -> None:
    model = tiny_lm()
    options: dict[str, Any] = {"seeds": list(range(8)), "frames": 8, "stop": False}
    nothing = whole(model, **options)
    assert nothing.equal(whole(model, **options, guidance=3.0))
    assert nothing.equal(whole(model, **options, conditioning=some_conditioning(model, 8), guidance=0.0))
    assert not nothing.equal(whole(model, **options, conditioning=some_conditioning(model, 8)))


GAPS = {
    "a prompt": [[[5, 2, 0, -1, -1], [0, 4, 1, -1, -1], [3, 3, 2, -1, -1]]],
    "a gap": [[[5, -1, -1, 2, 1], [0, -1, -1, 2, 2], [1, -1, -1, 0, 0]]],
    "fewer and fewer codebooks": [[[5, 2, 0, 1], [0, 4, -1, -1], [3, -1, -1, -1]]],
    "one codebook": [[[5, 2, 0, 1]]],
}


@pytest.mark.slow
@pytest.mark.parametrize("given", GAPS)
@pytest.mark.parametrize("name", ["delay", "partial flatten", "coarse first", "depth with delays"])
def test_given_codes_are_kept_and_conditioned_on(name: str, given: str) -> None:
    model = sensitive_lm(**MODELS[name])
    codes = torch.tensor(GAPS[given])
    conditioning = some_conditioning(model, 2)
    for stop in (True, False):
        options: dict[str, Any] = {"frames": 6, "stop": stop}
        expected = [reference(model, seed, [row_of(conditioning, seed)], given=codes[0], **options) for seed in (0, 1)]
        found = whole(model, seeds=[0, 1], conditioning=conditioning, given=codes.repeat(2, 1, 1), **options)
        assert rows(found) == expected
        kept = found[:, : codes.shape[1], : codes.shape[2]]
        assert torch.where(codes >= 0, kept, -1).equal(codes.repeat(2, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize("context", [5, 64])
@pytest.mark.parametrize("name", MODELS)
def test_logits_of_generation_equal_teacher_forcing(name: str, context: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = sensitive_lm(**MODELS[name], context=context)
    conditioning = some_conditioning(model, 2)
    for frames in (0, 1, max_prompt_frames(model) or 0):
        before: list[StepTokens] = []
        logits_of_step: dict[int, Tensor] = {}
        with monkeypatch.context() as patched:
            forward_step, decode_step = model.forward_step, model.decode_step

            def recording(
                step_tokens: StepTokens, state: Any, before: Any = before, forward_step: Any = forward_step
            ) -> Any:
                before.append(step_tokens)
                return forward_step(step_tokens, state)

            def asking(
                hidden: Tensor,
                sample_fn: SampleFn,
                before: Any = before,
                logits_of_step: Any = logits_of_step,
                decode_step: Any = decode_step,
            ) -> StepTokens:
                logits: list[Tensor] = []

                def record(part: Tensor, first: int) -> Tensor:
                    logits.append(part)
                    return sample_fn(part, first)

                step_tokens: StepTokens = decode_step(hidden, record)
                logits_of_step[len(before) - 1] = torch.cat(logits, dim=1)
                return step_tokens

            patched.setattr(model, "forward_step", recording)
            patched.setattr(model, "decode_step", asking)
            given = torch.randint(SIZE, (2, 3, frames), generator=torch.Generator().manual_seed(1))
            whole(model, seeds=[5, 6], conditioning=conditioning, given=given, frames=frames + 12, stop=False)
        assert 12 <= len(logits_of_step) <= len(before)
        tokens = torch.stack(before[1:], dim=2)
        with torch.no_grad():
            expected = model(tokens, conditioning)
        for step, logits in logits_of_step.items():
            if step < tokens.shape[2]:
                assert torch.allclose(logits, expected[:, :, step], atol=1e-4)


def test_given_steps_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_lm()  # with delays 0, 1, 2: six frames take 8 steps, of which the first 6 have no unknown cell
    decode_step = Mock(side_effect=model.decode_step)
    monkeypatch.setattr(model, "decode_step", decode_step)
    whole(model, seeds=[0], given=torch.zeros(1, 3, 6, dtype=torch.int64), frames=6)
    assert decode_step.call_count == 2


def test_frames_are_yielded_as_early_as_the_pattern_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, first, then in (("parallel", 1, 1), ("delay", 3, 1), ("flatten", 3, 3), ("coarse first", 5, 1)):
        model = sensitive_lm(**MODELS[name])
        forward_step = Mock(side_effect=model.forward_step)
        monkeypatch.setattr(model, "forward_step", forward_step)
        frames = generate_frames(model, seeds=[0, 1], stop=False)
        assert not forward_step.call_count
        assert next(frames).shape == (2, 3, 1)
        assert forward_step.call_count == first
        assert next(frames).shape == (2, 3, 1)
        assert forward_step.call_count == first + then


@pytest.mark.slow
@pytest.mark.parametrize("name", ["delay", "coarse first", "depth"])
def test_endless_generation_continues_past_the_context(name: str) -> None:
    model = sensitive_lm(**MODELS[name], context=5)
    frames = generate_frames(model, seeds=[0, 1], stop=False)
    long = torch.cat(list(islice(frames, 150)), dim=2)
    assert long.shape == (2, 3, 150)
    assert 0 <= long.min() <= long.max() < SIZE
    assert len(set(long[..., 100:].flatten().tolist())) > 3
    alone = whole(model, seeds=[1], frames=90, stop=False)
    assert alone.equal(long[1:, :, :90])


def test_forced_codes_change_no_other_sample() -> None:
    model = tiny_lm()
    free = whole(model, seeds=[7], frames=10, stop=False)
    for known in (1, 4, 9):
        assert whole(model, seeds=[7], given=free[:, :, :known], frames=10, stop=False).equal(free)
    for other in range(8, 14):
        assert not whole(model, seeds=[other], frames=10, stop=False).equal(free)


def test_repetitions_are_sampled_again() -> None:
    model = Chain(torch.tensor([[4.0, 1, 1, 1, 0]]).repeat(5, 1))
    for share, window in ((0.5, 4), (0.0, 1), (0.25, 10)):
        sampling = Sampling(repetition_threshold=share, repetition_window=window)
        expected = reference(model, 5, [model.conditioning([{}])], repetition=(share, window))
        assert len(expected[0]) > 3
        assert rows(whole(model, seeds=[5], sampling=sampling)) == [expected]
    best = whole(model, seeds=[5], sampling=Sampling(top_k=1), frames=20)
    assert (best == 0).all()
    aware = Sampling(top_k=1, repetition_threshold=0.5, repetition_window=4)
    again = whole(model, seeds=[5], sampling=aware, frames=60, stop=False)
    assert set(again.flatten().tolist()) == {0, 1, 2, 3}  # also codes that top_k removes


class Chain(CodecLM):
    """A Markov chain of one codebook, its logits given as a table [codes and start, codes and end]."""

    def __init__(self, table: Tensor) -> None:
        source = CodebookSpec(codec="", weights_hash="", num_codebooks=1, codebook_size=len(table) - 1, dim=1)
        super().__init__(CodecLMConfig(family="chain", pattern=PatternConfig(kind="parallel")), source)
        self.table = torch.nn.Parameter(table)

    def forward(self, tokens: Codes, conditioning: Conditioning) -> Logits:
        return self.table[self.shifted(tokens)]

    def initial_state(self, conditioning: Conditioning) -> tuple[()]:
        return ()

    def reset_rows(self, state: tuple[()], mask: Tensor, conditioning: Conditioning) -> tuple[()]:
        return state

    def forward_step(self, step_tokens: StepTokens, state: tuple[()]) -> tuple[Tensor, tuple[()]]:
        return self.table[step_tokens], state

    def decode_step(self, hidden: Tensor, sample_fn: SampleFn) -> StepTokens:
        return sample_fn(hidden, 0)


@pytest.mark.slow
def test_fillings_lead_to_what_follows() -> None:
    """From 0 the chain moves to any code and then mostly stays, so the codes after a gap determine its codes."""
    table = torch.full((6, 6), -8.0)
    table[0, :] = 0.0
    table[range(1, 5), range(1, 5)] = 0.0
    model = Chain(table)
    given = torch.tensor([[[0, -1, -1, code, code]] for code in (1, 2, 3, 4)]).repeat(6, 1, 1)
    seeds = list(range(len(given)))
    found = infill(model, given, seeds=seeds, candidates=32)
    assert (given[given >= 0] == found[given >= 0]).all()
    assert (found[:, 0, 2] == found[:, 0, 3]).float().mean() > 0.9
    once = infill(model, given, seeds=seeds, candidates=1)
    assert (once[:, 0, 2] == once[:, 0, 3]).float().mean() < 0.6
    assert infill(model, given[5:7], seeds=seeds[5:7], candidates=32).equal(found[5:7])
    unaware = infill(model, given, seeds=seeds, candidates=32, after=0)
    assert (unaware[:, 0, 2] == unaware[:, 0, 3]).float().mean() < 0.6
    assert infill(model, found, seeds=seeds).equal(found)


@pytest.mark.slow
def test_fillings_have_their_posterior_probabilities() -> None:
    """A gap of one code, by Bayes: in proportion to table[before, code] × table[code, after]."""
    step = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.4, 0.3, 0.3]])
    model = Chain(torch.nn.functional.pad(step, (0, 1)).log())  # never ends
    given = torch.tensor([[[1, -1, 2]]]).expand(80, -1, -1)
    found = infill(model, given, seeds=range(80), candidates=16)[:, 0, 1]
    expected = step[1, :3] * step[:3, 2]
    assert p_value(found.bincount(minlength=3), expected) > 1e-3
    assert p_value(found.bincount(minlength=3), step[1, :3]) < 1e-3


@pytest.mark.parametrize("name", ["delay", "flatten", "coarse first", "depth"])
def test_gaps_of_several_codebooks(name: str) -> None:
    model = sensitive_lm(**MODELS[name])
    codes = whole(model, seeds=[0, 1], frames=14, stop=False)
    given = codes.clone()
    given[:, :, 4:7] = -1
    filled = infill(
        model, given, seeds=[5, 6], conditioning=some_conditioning(model, 2), guidance=2.0, candidates=3, after=4
    )
    assert filled.shape == codes.shape
    assert torch.where(given >= 0, filled, -1).equal(given)
    assert filled.min() >= 0


# Invalid arguments


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"temperature": 0.0}, "temperature = 0 .* top_k = 1"),
        ({"temperature": (1.0, -1.0, 1.0)}, "temperature = -1"),
        ({"top_k": 7}, "top_k = 7 is not within 1 to 6"),
        ({"top_k": (1, 0, 1)}, "top_k = 0"),
        ({"top_p": 0.0}, "top_p = 0 is not above 0"),
        ({"top_p": 1.5}, r"top_p = 1\.5"),
        ({"min_p": -0.1}, r"min_p = -0\.1"),
        ({"min_p": 1.1}, r"min_p = 1\.1"),
        ({"top_k": (1, 2)}, "top_k has 2 values, the model 3 codebooks"),
        ({"temperature": (1.0,)}, "temperature has 1 values"),
        ({"repetition_window": 0}, "repetition_window = 0"),
        ({"repetition_window": 10**12}, "repetition_window = 1000000000000 is not within 1 to 65536"),
        ({"repetition_threshold": 2.0}, "repetition_threshold = 2"),
    ],
)
def test_invalid_sampling_raises(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        generate_frames(tiny_lm(), seeds=[0], sampling=Sampling(**wrong))


def zeros(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seeds": []}, "no seeds"),
        ({"seeds": [0, -3]}, "a seed of -3"),
        ({"frames": 0}, "frames = 0"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"conditioning": lambda model: model.conditioning([{}, {}, {}])}, "2 seeds and a conditioning of 3 rows"),
        (
            {"conditioning": lambda model: Conditioning(torch.tensor([[2, 0]] * 2), zeros(2, 0))},
            "kind label are numbered 0 to 1",
        ),
        (
            {"conditioning": lambda model: Conditioning(torch.tensor([[0, -2]] * 2), zeros(2, 0))},
            "kind speaker are numbered 0 to 2",
        ),
        ({"given": zeros(3, 4)}, "int64 .* give int64"),
        ({"given": torch.zeros(2, 3, 4)}, "float32 .* give int64"),
        ({"given": zeros(1, 3, 4)}, "2 seeds and given codes of 1 rows"),
        ({"given": zeros(2, 4, 4)}, "have 4 codebooks, the model 3"),
        ({"given": zeros(2, 3, 4) + SIZE}, "range from 6 to 6; codes of the model range from 0 to 5"),
        ({"given": zeros(2, 3, 4) - 2}, "range from -2"),
        ({"given": zeros(2, 3, 4), "frames": 3}, "4 frames are given and 3 asked for"),
        ({"given": zeros(2, 3, 63)}, "63 frames is longer than the model's context: give its last 62"),
    ],
)
def test_invalid_arguments_raise(wrong: dict[str, Any], says: str) -> None:
    model = tiny_lm(context=64)
    if callable(wrong.get("conditioning")):
        wrong = {"conditioning": wrong["conditioning"](model)}
    with pytest.raises(UsageError, match=says):
        generate_frames(model, **({"seeds": [0, 1]} | wrong))  # at once, not with the first frame


def test_longest_prompt() -> None:
    model = tiny_lm(context=64)
    assert max_prompt_frames(model) == 62
    assert whole(model, seeds=[0], given=zeros(1, 3, 62), frames=64, stop=False).shape == (1, 3, 64)
    assert max_prompt_frames(Chain(torch.zeros(3, 3))) is None


def test_too_few_candidates() -> None:
    with pytest.raises(UsageError, match="candidates = 0"):
        infill(tiny_lm(), zeros(1, 3, 4), seeds=[0], candidates=0)
    with pytest.raises(UsageError, match="a seed of -1 is below 0"):
        infill(tiny_lm(), zeros(1, 3, 4), seeds=[-1])
    with pytest.raises(UsageError, match="1 seeds and a conditioning of 2 rows"):
        infill(tiny_lm(), zeros(1, 3, 4), seeds=[0], conditioning=tiny_lm().conditioning([{}, {}]))


@pytest.mark.parametrize(
    ("bad", "says"), [(float("nan"), "step 2, codebook 0: "), (float("inf"), "step 2, codebook 0: ")]
)
def test_logits_that_are_nan_or_infinite_raise(bad: float, says: str) -> None:
    table = torch.full((4, 4), -30.0)
    table[3, 0], table[0, 1], table[1] = 0.0, 0.0, bad  # 0, then 1, then nothing
    for sampling in (Sampling(), Sampling(top_k=2, temperature=0.5), Sampling(top_p=0.5, min_p=0.1)):
        frames = generate_frames(Chain(table), seeds=[0], sampling=sampling)
        assert [next(frames).item(), next(frames).item()] == [0, 1]
        with pytest.raises(UsageError, match=says):
            next(frames)
