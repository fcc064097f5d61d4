"""Generating codes: what may be drawn, and the loop that draws them from any language model.

`given` codes are forced, -1 is what the model decides. A prompt of two frames that goes on, and a gap that is filled:

    frame    0  1  2  3  4          frame    0  1  2  3  4
    codebook 0   5  2 -1 -1 -1          codebook 0   5  2 -1 -1  7
    codebook 1   0  4 -1 -1 -1          codebook 1   0  4 -1 -1  3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from codec.config import Config
from codec.errors import UsageError
from codec.lm.base import EXTREMES, MOST_GUIDANCE, CodecLM, Conditioning
from codec.nn.shapes import Codes
from codec.nn.streaming import ordinary

AHEAD = 64  # steps planned at once; what a seed means depends on it
LONGEST_WINDOW = 2**16
NEVER = 2**62  # a frame that does not come


class Sampling(Config):
    """How codes are drawn. What can be one number for all codebooks can also be one for each, as (1.0, 0.9, 0.8).

    The filters work one after another, each on what the one before left, rescaled: top_k the most probable codes,
    top_p the fewest that are so probable together, min_p those at least so probable beside the most probable one.
    Codes that are as probable as the last one kept are kept too.
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int | tuple[int, ...] | None = None
    top_p: float | tuple[float, ...] | None = None
    min_p: float | tuple[float, ...] | None = None
    repetition_threshold: float | None = None
    """A code of codebook 0 that was more than this share of its last codes is drawn again, from what no filter has touched
    (repetition aware sampling, Chen et al. 2024, VALL-E 2, section 3.3.3; they take 0.1)."""
    repetition_window: int = 10
    """How many codes of codebook 0 are looked back on for it."""


class Sampler:
    """Draws codes as a `Sampling` says, all rows and codebooks at once. Raises UsageError for what cannot be drawn so."""

    def __init__(self, sampling: Sampling, *, num_codebooks: int, codebook_size: int, device: torch.device) -> None:
        self._device = device
        self._temperature = self._of_codebooks("temperature", sampling.temperature, num_codebooks)
        self._top_k = self._of_codebooks("top_k", sampling.top_k, num_codebooks)
        self._top_p = self._of_codebooks("top_p", sampling.top_p, num_codebooks)
        self._min_p = self._of_codebooks("min_p", sampling.min_p, num_codebooks)
        self.window, self._share = sampling.repetition_window, sampling.repetition_threshold
        for temperature in _values(sampling.temperature):
            if temperature <= 0:
                raise UsageError(
                    f"a temperature of {temperature:g} is no temperature: use top_k = 1 for the most probable code"
                )
            if not EXTREMES[0] <= temperature <= EXTREMES[1]:
                low, high = EXTREMES
                raise UsageError(f"a temperature of {temperature:g} is not within {low:g} to {high:g}: 1 is as learned")
        for most in _values(sampling.top_k):
            if not 1 <= most <= codebook_size:
                raise UsageError(
                    f"top_k = {most} is not within 1 to {codebook_size}, the codes of a codebook: change it"
                )
        for share in _values(sampling.top_p):
            if not 0 < share <= 1:
                raise UsageError(f"top_p = {share:g} is not above 0 and up to 1: change it, or leave it out")
        for share in _values(sampling.min_p):
            if not 0 <= share <= 1:
                raise UsageError(f"min_p = {share:g} is not within 0 to 1: change it, or leave it out")
        if not 1 <= self.window <= LONGEST_WINDOW:
            raise UsageError(f"repetition_window = {self.window} is not within 1 to {LONGEST_WINDOW} codes: change it")
        if self._share is not None and not 0 <= self._share <= 1:
            raise UsageError(f"repetition_threshold = {self._share:g} is not within 0 to 1: change it, or leave it out")

    @property
    def looks_back(self) -> bool:
        """Whether `draw` needs to know the last codes of codebook 0."""
        return self._share is not None

    def draw(
        self,
        logits: Float[Tensor, "batch some classes"],
        first: int,
        uniform: Float[Tensor, "batch more"],
        recent: Int[Tensor, "batch window"] | None = None,
    ) -> Int[Tensor, "batch some"]:
        """Codes of some codebooks, the first of which is `first`.

        `uniform` has a number within [0, 1) for each of the model's codebooks and one more; `recent` are the last codes of
        codebook 0, -1 where there were none yet. Raises UsageError for logits that are no numbers.
        """
        num_codebooks = slice(first, first + logits.shape[1])
        logits = logits.float()
        if self._temperature is not None:
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / self._temperature[num_codebooks]
        shares = logits.softmax(dim=-1)
        codes = _drawn(self._filtered(shares, num_codebooks), uniform[:, num_codebooks])
        if first == 0 and self._share is not None:
            assert recent is not None
            often = (recent == codes[:, :1]).float().mean(dim=1, keepdim=True) > self._share
            codes[:, :1] = torch.where(often, _drawn(shares[:, :1], uniform[:, -1:]), codes[:, :1])
        return codes

    def _filtered(self, shares: Tensor, num_codebooks: slice) -> Tensor:
        """The shares [batch, some, classes], 0 for what may not be drawn. In order of size, what may comes first."""
        least = None
        if self._top_k is not None or self._top_p is not None:
            ranked = _ranked(shares)
            last = torch.full_like(ranked[..., :1], ranked.shape[-1] - 1, dtype=torch.int64)
            if self._top_k is not None:
                last = (self._top_k[num_codebooks].long() - 1).expand_as(last)
            if self._top_p is not None:
                sums = ranked.cumsum(dim=-1, dtype=torch.float64)
                last = torch.minimum(last, torch.searchsorted(sums, self._top_p[num_codebooks] * sums.gather(-1, last)))
            least = ranked.gather(-1, last)
        if self._min_p is not None:
            near = self._min_p[num_codebooks] * shares.amax(dim=-1, keepdim=True)
            least = near if least is None else torch.maximum(least, near)
        return shares if least is None else shares * (shares >= least)  # `where` is ten times slower

    def _of_codebooks(self, name: str, value: float | tuple[float, ...] | None, num_codebooks: int) -> Tensor | None:
        """One value for each codebook [codebooks, 1]; None for what changes nothing."""
        if value is None or (name == "temperature" and value == 1):
            return None
        values = _values(value)
        if len(values) not in (1, num_codebooks) or (isinstance(value, tuple) and len(values) != num_codebooks):
            raise UsageError(
                f"{name} has {len(values)} values, the model {num_codebooks} codebooks: give one for each, or one"
            )
        values = values * num_codebooks if len(values) < num_codebooks else values
        dtype = torch.float32 if name == "temperature" else torch.float64
        return torch.tensor(values, dtype=dtype, device=self._device)[:, None]


def generate_frames(
    lm: CodecLM,
    *,
    seeds: Sequence[int],
    conditions: Conditioning | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    frames: int | None = None,
    given: Codes | None = None,
    stop: bool = True,
) -> Iterator[Codes]:
    """Codes [batch, codebooks, 1 or more frames] as soon as all codebooks of a frame are known, -1 after a row's own end.

    There is a row for each seed. It depends on its own seed, conditions and given codes, and not on the other rows.
    It goes on until every row has ended, or up to so many `frames`; without `stop` no row ends. `given` codes [batch,
    codebooks or fewer, frames] are forced and count as frames, what is -1 there is decided.

    `guidance` scales what the conditions change: logits = untold + guidance × (told - untold) (Ho & Salimans 2022). It
    and `sampling` are as the model's configuration says unless they are given.

    Raises UsageError for arguments that contradict the model or each other; while it runs, for logits that are no
    numbers.
    """
    check_seeds(seeds)
    if frames is not None and frames < 1:
        raise UsageError(f"{frames} frames are nothing to generate: ask for at least 1")
    if guidance is None:
        guidance = lm.config.guidance
    if sampling is None:
        sampling = Sampling(temperature=lm.config.temperature)
    source = lm.source
    sampler = Sampler(
        sampling, num_codebooks=source.num_codebooks, codebook_size=source.codebook_size, device=lm.device
    )
    known = _checked(lm, given, rows=len(seeds), frames=frames)
    told, guided = _told(lm, conditions, guidance, rows=len(seeds))
    pieces = _run(
        lm, _plan(lm, seeds, known), told, guidance if guided else None, sampler, frames, _earliest(known, stop)
    )
    return map(ordinary, pieces)


@torch.no_grad()
def infill(
    lm: CodecLM,
    given: Codes,
    *,
    seeds: Sequence[int],
    conditions: Conditioning | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    candidates: int = 16,
    after: int = 50,
) -> Codes:
    """The given codes [batch, codebooks, frames] with what is -1 filled, so that it also leads to what comes after it.

    The model looks back alone; so each gap is filled `candidates` times, and one of them is drawn in proportion to how
    probable it makes the known codes up to `after` frames past the gap (sampling importance resampling, Rubin 1988).

    Raises UsageError as `generate_frames`, and for fewer than 1 candidate.
    """
    if candidates < 1:
        raise UsageError(f"{candidates} candidates are none to choose from: ask for at least 1")
    check_seeds(seeds)
    if conditions is not None:
        _check_conditions(lm, conditions, rows=len(seeds))
    given = _checked(lm, given, rows=len(seeds), frames=None)
    filled = given.clone()
    for row, seed in enumerate(seeds):
        gaps = (given[row] < 0).any(dim=0).nonzero()
        if not len(gaps):
            continue
        until = int(gaps[-1]) + 1 + after
        told = None if conditions is None else Conditioning(*(part[row : row + 1] for part in conditions))
        pieces = generate_frames(
            lm,
            seeds=np.random.SeedSequence(seed).generate_state(candidates, np.uint64).tolist(),
            conditions=None if told is None else Conditioning(*(part.expand(candidates, -1) for part in told)),
            guidance=guidance,
            sampling=sampling,
            frames=min(until, given.shape[2]),
            given=given[row : row + 1, :, :until].expand(candidates, -1, -1),
            stop=False,
        )
        tried = torch.cat(list(pieces), dim=2)
        likely = torch.stack([_log_probability(lm, one, given[row, :, :until] >= 0, told) for one in tried])
        uniform = torch.tensor([[np.random.default_rng(seed).random()]], device=lm.device)
        chosen = _drawn(likely.softmax(dim=0)[None, None], uniform)
        filled[row, :, :until] = tried[int(chosen)]
    return ordinary(filled)


def check_seeds(seeds: Sequence[int]) -> None:
    """UsageError unless there is one, and none is below 0."""
    if not len(seeds):
        raise UsageError("there are no seeds: give one for each row to generate")
    if min(seeds) < 0:
        raise UsageError(f"a seed of {min(seeds)} is below 0: use whole numbers from 0 on")


def longest_prompt(lm: CodecLM) -> int | None:
    """Frames of the longest prompt that a model can look back on; None if it can on any."""
    context: int | None = getattr(lm.config, "context", None)
    return None if context is None else lm.pattern.whole_frames(context)


class _Step(NamedTuple):
    """What is clear about a step before it comes: which frame [codebooks] each codebook decides (-1: none), and its numbers.

    `fixed` [batch, codebooks] are the codes that nobody decides: given ones, and holes; -1 for the others. `first_frame`
    is that of codebook 0, `is_fixed` says that there are no others, `uniform` is [batch, codebooks + 1].

    After the step `whole` frames are whole, one more than before it at most. Until then the codes of a frame wait in
    `slots` [batch, codebooks, 1]: its number modulo how many frames can have begun, and after these one for holes.
    """

    number: int
    frames: Tensor
    slots: Tensor
    whole: int
    first_frame: int
    fixed: Tensor
    is_fixed: bool
    uniform: Tensor


def _plan(lm: CodecLM, seeds: Sequence[int], known: Codes) -> Iterator[_Step]:
    """All steps, without end. Each has its random numbers, used or not: they depend on seed, step and codebook alone."""
    batch, num_codebooks, frames = known.shape
    generators = [np.random.default_rng(seed) for seed in seeds]
    begun = lm.pattern.latency_frames + 1
    last = torch.full((num_codebooks, 1), -1)  # frame of each codebook
    for first in count(step=AHEAD):
        cells = lm.pattern.cells(first, first + AHEAD)  # [codebooks, steps]
        first_frames = cells[0].tolist()
        last = torch.cat([last[:, -1:], cells], dim=1).cummax(dim=1).values
        whole = (last.amin(dim=0)[1:] + 1).tolist()
        cells = cells.to(lm.device)
        slots = torch.where(cells < 0, begun, cells % begun).expand(batch, -1, -1)
        fixed = torch.where(cells < 0, lm.special_token, -1).expand(batch, -1, -1)
        if frames:
            inside = (cells >= 0) & (cells < frames)
            fixed = torch.where(inside, known.gather(2, cells.clamp(0, frames - 1).expand(batch, -1, -1)), fixed)
        is_fixed = (fixed >= 0).all(dim=1).all(dim=0).tolist()
        drawn = np.stack([generator.random((AHEAD, num_codebooks + 1), np.float32) for generator in generators], axis=1)
        uniform = torch.from_numpy(drawn).to(lm.device)
        for step in range(AHEAD):
            yield _Step(
                first + step,
                cells[:, step],
                slots[:, :, step, None],
                whole[step],
                first_frames[step],
                fixed[:, :, step],
                is_fixed[step],
                uniform[step],
            )


@torch.inference_mode()
def _run(
    lm: CodecLM,
    plan: Iterator[_Step],
    told: Conditioning,
    guidance: float | None,
    sampler: Sampler,
    frames: int | None,
    earliest: Tensor,
) -> Iterator[Codes]:
    """`generate_frames` after its checks. With `guidance`, the rows that were told nothing follow the others.

    Conditions have then twice as many rows as `earliest` [batch], the first frame at which each row may end.
    """
    batch, special_token, device = len(earliest), lm.special_token, earliest.device
    begun = lm.pattern.latency_frames + 1
    halves = 1 if guidance is None else 2
    last = NEVER if frames is None else frames  # frames in all, as far as known
    no_end, some_end = int(earliest.max()), int(earliest.min())
    ended = torch.full_like(earliest, NEVER)  # the frame at which each row ended
    has_ended = False
    recent = torch.full((batch, sampler.window), -1, device=device)
    made = torch.full((batch, lm.source.num_codebooks, begun + 1), special_token, device=device)  # `slots`
    whole = 0
    step: _Step
    fixed: Tensor  # of this step, once rows have ended

    def sample_fn(logits: Tensor, first: int) -> Tensor:
        num_codebooks = slice(first, first + logits.shape[1])
        if guidance is not None:
            told_logits, untold = logits.float().chunk(2)
            logits = untold + guidance * (told_logits - untold)
            logits[:, 0 if first else 1 :, -1] = -torch.inf  # inf - inf
        if first == 0 and step.first_frame < no_end:
            early = step.first_frame < earliest
            logits = logits.clone()
            logits[:, 0, -1].masked_fill_(early, -torch.inf)
        try:
            drawn = sampler.draw(logits, first, step.uniform, recent)
        except UsageError as error:
            raise UsageError(f"step {step.number}, codebook {first}: {error}") from error
        codes = torch.where(fixed[:, num_codebooks] < 0, drawn, fixed[:, num_codebooks])
        return torch.cat([codes] * halves)  # `repeat` is six times slower

    state = lm.initial_state(told)
    column = torch.full((batch, lm.source.num_codebooks), special_token, device=device)
    for step in plan:
        context, state = lm.forward_step(torch.cat([column] * halves), state)
        fixed = torch.where(step.frames >= ended[:, None], special_token, step.fixed) if has_ended else step.fixed
        column = fixed if step.is_fixed else lm.decode_step(context, sample_fn)[:batch]
        if step.first_frame >= some_end:
            ends = (column[:, 0] == special_token) & (fixed[:, 0] < 0)
            if ends.any():
                has_ended = True
                ended = torch.where(ends, step.first_frame, ended)
                column = torch.where(step.frames >= ended[:, None], special_token, column)
                last = min(last, int(ended.max()))
        if sampler.looks_back and step.first_frame >= 0:
            recent[:, step.first_frame % sampler.window] = column[:, 0]
        made.scatter_(2, step.slots, column[:, :, None])
        if min(step.whole, last) > whole:
            codes = made[:, :, whole % begun, None].clone()
            yield codes.masked_fill_((ended <= whole)[:, None, None], -1) if has_ended else codes
            whole += 1
        if whole >= last:
            return


def _checked(lm: CodecLM, given: Codes | None, *, rows: int, frames: int | None) -> Codes:
    """The given codes [rows, all codebooks, frames], -1 for codebooks that are not given; no frame for None."""
    num_codebooks, size = lm.source.num_codebooks, lm.source.codebook_size
    if given is None:
        return torch.zeros(rows, num_codebooks, 0, dtype=torch.int64, device=lm.device)
    if given.ndim != 3 or given.dtype != torch.int64:
        raise UsageError(f"given codes are {given.dtype} {list(given.shape)}; give int64 [batch, codebooks, frames]")
    if len(given) != rows:
        raise UsageError(f"there are {rows} seeds and given codes of {len(given)} rows: give as many of both")
    if given.shape[1] > num_codebooks:
        raise UsageError(
            f"given codes have {given.shape[1]} codebooks, the model {num_codebooks}: leave the last ones out"
        )
    if given.numel() and not -1 <= int(given.min()) <= int(given.max()) < size:
        raise UsageError(
            f"given codes run from {int(given.min())} to {int(given.max())}; the model's run from 0 to {size - 1}, "
            "and -1 is for those that are not known"
        )
    if frames is not None and given.shape[2] > frames:
        raise UsageError(f"{given.shape[2]} frames are given and {frames} asked for: ask for more, or give fewer")
    known = torch.full((rows, num_codebooks, given.shape[2]), -1, device=lm.device)
    known[:, : given.shape[1]] = given.to(lm.device)
    front = int((known >= 0).all(dim=1).long().cumprod(dim=1).sum(dim=1).max()) if given.shape[2] else 0
    most = longest_prompt(lm)
    if most is not None and front > most:
        raise UsageError(f"a prompt of {front} frames is longer than the model's context: give its last {most}")
    return known


def _earliest(known: Codes, stop: bool) -> Tensor:
    """The first frame at which each row may end [batch]: after what is given, or never."""
    batch, _, frames = known.shape
    if not stop:
        return torch.full((batch,), NEVER, device=known.device)
    after = torch.arange(1, frames + 1, device=known.device) * (known >= 0).any(dim=1)
    return after.amax(dim=1) if frames else torch.zeros(batch, dtype=torch.int64, device=known.device)


def _check_conditions(lm: CodecLM, conditions: Conditioning, *, rows: int) -> None:
    """UsageError unless they are of so many rows, and of classes that the model knows."""
    classes = lm.source.classes
    given = len(conditions.classes)
    if conditions.classes.shape != (rows, len(classes)) or len(conditions.text) != rows:
        raise UsageError(f"there are {rows} seeds and conditions of {given} rows: give as many of both")
    for numbers, (kind, names) in zip(conditions.classes.T, classes.items(), strict=True):
        if not -1 <= int(numbers.min()) <= int(numbers.max()) < len(names):
            raise UsageError(
                f"the numbers of each {kind} are 0 to {len(names) - 1}, and -1 for none: change the others"
            )


def _told(
    lm: CodecLM, conditions: Conditioning | None, guidance: float, *, rows: int
) -> tuple[Conditioning, float | None]:
    """What the model is told, and the guidance. Where that is needed, rows that are told nothing follow the others."""
    if not abs(guidance) <= MOST_GUIDANCE:
        raise UsageError(
            f"a guidance of {guidance:g} is not within -{MOST_GUIDANCE:g} to {MOST_GUIDANCE:g}: 1 is none, "
            "2 or 3 are common"
        )
    nothing = lm.conditions([{}] * rows)
    if conditions is None:
        return nothing, None
    _check_conditions(lm, conditions, rows=rows)
    if guidance in (0, 1):
        return conditions.to(lm.device) if guidance else nothing, None
    conditions = conditions.to(lm.device)
    text = torch.cat([conditions.text, torch.full_like(conditions.text, -1)])
    return Conditioning(torch.cat([conditions.classes, nothing.classes]), text), guidance


def _log_probability(lm: CodecLM, codes: Tensor, known: Tensor, told: Conditioning | None) -> Tensor:
    """Of the `known` among the codes [codebooks, frames], given what is decided before each of them."""
    columns = lm.pattern.lay_out(codes[None], lm.special_token)
    counts = lm.pattern.lay_out(known.long()[None], 0)[0] > 0  # [codebooks, steps]
    logits = lm(columns, lm.conditions([{}]) if told is None else told.to(lm.device))[0]
    of_codes: Tensor = logits.double().log_softmax(dim=-1).gather(-1, columns[0, :, :, None])[..., 0]
    return of_codes[counts].sum()


def _drawn(shares: Tensor, uniform: Tensor) -> Tensor:
    """Where the sums of the shares [batch, some, classes], however scaled, pass the uniform numbers [batch, some]."""
    sums = shares.cumsum(dim=-1, dtype=torch.float64)
    total = sums[..., -1:]
    if not (total > 0).all():  # false for NaN too
        raise UsageError("the model's logits are no numbers (NaN or infinite): leave it in float32, or train it again")
    return torch.searchsorted(sums, uniform[..., None] * total, right=True)[..., 0]


def _ranked(shares: Tensor) -> Tensor:
    """The shares, the largest first."""
    if shares.device.type == "cpu":  # numpy sorts rows of 1024 numbers a hundred times faster than torch
        return torch.from_numpy(np.sort(shares.numpy(), axis=-1)).flip(-1)
    return shares.sort(dim=-1, descending=True).values


def _values(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)
