"""Patterns: against the tables of their docstring and of the paper, and laying codes out and reading them back."""

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from codec.errors import ConfigError
from codec.lm import patterns
from codec.lm.patterns import Pattern, PatternConfig

KINDS = {
    "parallel": PatternConfig(kind="parallel"),
    "delay": PatternConfig(),
    "partial delay": PatternConfig(delays=(0, 1, 1)),
    "far delay": PatternConfig(delays=(0, 8, 9)),
    "flatten": PatternConfig(kind="flatten"),
    "partial flatten": PatternConfig(kind="flatten", groups=(0, 1, 1)),
    "coarse first": PatternConfig(kind="coarse_first", block=4),
}


@pytest.fixture(params=list(KINDS))
def pattern(request: pytest.FixtureRequest) -> Pattern:
    return Pattern(KINDS[request.param], 3)


def test_table_of_the_docstring() -> None:
    lines = [line for line in (patterns.__doc__ or "").splitlines() if line.strip().startswith("codebook")]
    blocks = [re.findall(r"codebook \d((?:  [\d.])+)", line) for line in lines]
    configs = [PatternConfig(kind="parallel"), PatternConfig(), PatternConfig(kind="flatten")]
    configs.append(PatternConfig(kind="coarse_first", block=2))
    assert [len(block) for block in blocks] == [4, 4, 4]
    for number, config in enumerate(configs):
        table = [[-1 if cell == "." else int(cell) for cell in block[number].split()] for block in blocks]
        assert Pattern(config, 3).cells(0, len(table[0])).tolist() == table


@st.composite
def any_pattern(draw: st.DrawFn) -> Pattern:
    num_codebooks = draw(st.integers(1, 6))
    later = st.lists(st.integers(0, 9), min_size=num_codebooks - 1, max_size=num_codebooks - 1)
    match draw(st.sampled_from(["parallel", "delay", "flatten", "coarse_first"])):
        case "delay":
            config = PatternConfig(kind="delay", delays=(0, *draw(later)))
        case "flatten":
            groups = [0]
            for more in draw(st.lists(st.booleans(), min_size=num_codebooks - 1, max_size=num_codebooks - 1)):
                groups.append(groups[-1] + more)
            config = PatternConfig(kind="flatten", groups=tuple(groups))
        case "coarse_first":
            config = PatternConfig(kind="coarse_first", block=draw(st.integers(1, 9)))
        case _:
            config = PatternConfig(kind="parallel")
    return Pattern(config, num_codebooks)


def read_back(pattern: Pattern, tokens: Tensor, frames: int) -> Tensor:
    """Codes [batch, codebooks, frames] of tokens, by the step of each cell; the inverse of `lay_out`."""
    return tokens.gather(2, pattern.step_of_cells(0, frames).expand(len(tokens), -1, -1))


@given(any_pattern(), st.integers(0, 40), st.integers(0, 40))
def test_read_back_inverts_lay_out_for_any_pattern(pattern: Pattern, frames: int, steps: int) -> None:
    codes = torch.arange(pattern.num_codebooks * frames).reshape(1, pattern.num_codebooks, frames)
    tokens = pattern.lay_out(codes, -1)
    assert tokens.shape[2] == pattern.steps(frames)
    assert read_back(pattern, tokens, frames).equal(codes)
    assert sorted(tokens[tokens >= 0].tolist()) == codes.flatten().tolist()  # every cell once
    assert pattern.cells(0, 200)[:, :steps].equal(pattern.cells(0, steps))
    whole = pattern.whole_frames(steps)
    assert pattern.steps(whole) <= steps < pattern.steps(whole + 1)


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 7, 8, 9, 20])
def test_read_back_inverts_lay_out(pattern: Pattern, frames: int) -> None:
    codes = torch.randint(5, (2, 3, frames), generator=torch.Generator().manual_seed(frames))
    tokens = pattern.lay_out(codes, 5)
    assert tokens.shape == (2, 3, pattern.steps(frames))
    assert read_back(pattern, tokens, frames).equal(codes)
    assert int((tokens != 5).sum()) == codes.numel()  # every cell once, special tokens elsewhere
    if frames:
        assert (tokens[:, :, -1] != 5).any()  # the last step is needed


def test_every_cell_has_one_step(pattern: Pattern) -> None:
    cells = pattern.cells(0, 200)
    for row, steps_of_cells in zip(cells, pattern.step_of_cells(0, 20), strict=True):
        assert row[steps_of_cells].tolist() == list(range(20))
        frames = row[row >= 0].tolist()
        assert sorted(set(frames)) == sorted(frames)


def test_cells_do_not_depend_on_length(pattern: Pattern) -> None:
    """A long layout begins like a short one, and any range of steps can be computed alone."""
    whole = pattern.cells(0, 300)
    assert pattern.cells(0, 50).equal(whole[:, :50])
    assert pattern.cells(123, 177).equal(whole[:, 123:177])
    assert (whole[:, pattern.period * 20 :] >= 0).any(dim=0).all()  # after the start every step generates a cell


def test_whole_frames(pattern: Pattern) -> None:
    steps_of_cells = pattern.step_of_cells(0, 60)
    for steps in range(60):
        ready = [bool((steps_of_cells[:, frame] < steps).all()) for frame in range(60)]
        assert pattern.whole_frames(steps) == ready.index(False)


def test_latency(pattern: Pattern) -> None:
    """By counting how many frames codebook 0 is ahead when a frame is complete, at most."""
    steps_of_cells = pattern.step_of_cells(0, 200)
    done = steps_of_cells.max(dim=0).values[:100]
    ahead = [(int((steps_of_cells[0] <= step).sum()) - 1) - frame for frame, step in enumerate(done.tolist())]
    assert max(ahead) == pattern.latency_frames


@given(any_pattern())
def test_frames_are_completed_one_by_one(pattern: Pattern) -> None:
    """Generation relies on it: at most one per step, and at most `latency_frames` + 1 begun."""
    last = pattern.cells(0, 120).cummax(dim=1).values  # [codebooks, steps]
    whole = [pattern.whole_frames(step + 1) for step in range(120)]
    assert whole == (last.amin(dim=0) + 1).tolist()
    assert all(after - before in (0, 1) for before, after in pairwise([0, *whole]))
    begun = (last.amax(dim=0) + 1).tolist()
    assert all(many - done <= pattern.latency_frames + 1 for many, done in zip(begun, [0, *whole], strict=False))


def test_published_sizes() -> None:
    """Steps for 1500 frames of 4 codebooks (Copet et al. 2023, table 1; the delay's tail counts here)."""
    steps = {name: Pattern(config, 4).steps(1500) for name, config in {
        "parallel": PatternConfig(kind="parallel"),
        "delay": PatternConfig(),
        "partial delay": PatternConfig(delays=(0, 1, 1, 1)),
        "flatten": PatternConfig(kind="flatten"),
        "partial flatten": PatternConfig(kind="flatten", groups=(0, 1, 1, 1)),
        "coarse first": PatternConfig(kind="coarse_first", block=1500),
    }.items()}  # fmt: skip
    assert steps == {
        "parallel": 1500,
        "delay": 1503,
        "partial delay": 1501,
        "flatten": 6000,
        "partial flatten": 3000,
        "coarse first": 3000,
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PatternConfig(delays=(0, 1)), "is for 2 codebooks, not 3"),
        (PatternConfig(delays=(1, 1, 2)), "must begin with 0"),
        (PatternConfig(delays=(1, 0, 0)), "must begin with 0"),
        (PatternConfig(kind="flatten", groups=(0, 2, 2)), "skip a step"),
    ],
)
def test_invalid_patterns_raise(config: PatternConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Pattern(config, 3)


def test_keys_of_another_kind_raise() -> None:
    with pytest.raises(ConfigError, match='delays is for kind = "delay"'):
        PatternConfig.from_data({"kind": "flatten", "delays": [0, 1, 2]})
