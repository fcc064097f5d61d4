"""Generation: the loop that samples codes from any language model, frame by frame.

`given` codes are forced, and the model generates codes that are -1. A prompt of two frames to continue, and a gap:

    frame       0  1  2  3  4          frame       0  1  2  3  4
    codebook 0  5  2 -1 -1 -1          codebook 0  5  2 -1 -1  7
    codebook 1  0  4 -1 -1 -1          codebook 1  0  4 -1 -1  3
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.errors import UsageError
from codec.lm.base import MAX_GUIDANCE, CodecLM
from codec.lm.conditioning import Conditioning
from codec.lm.filters import Sampler, Sampling, sample_from
from codec.nn.shapes import Codes
from codec.nn.streaming import ordinary

PLANNED_STEPS = 64  # random numbers are drawn for as many steps at once, so the codes of a seed depend on it
NEVER = 2**62  # later than any frame


def generate_frames(
    lm: CodecLM,
    *,
    seeds: Sequence[int],
    conditioning: Conditioning | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    frames: int | None = None,
    given: Codes | None = None,
    stop: bool = True,
) -> Iterator[Codes]:
    """Generate codes [batch, codebooks, 1 frame], each as soon as all its codebooks are known.

    There is one row per seed; it depends on its own seed, conditioning and given codes, and not on the other rows. A
    row ends at the model's end token, and its codes are -1 from there; the loop ends when every row has, or after
    `frames`. Without `stop` no row ends. `given` codes [batch, codebooks or fewer, frames] are forced and count as
    frames; where they are -1, the model generates.

    `guidance` is the scale of classifier-free guidance: logits = unconditional + guidance × (conditional -
    unconditional) (Ho & Salimans 2022). It and `sampling` default to the configuration of the model.

    Raises UsageError for arguments that contradict the model or each other; while it runs, for logits that are NaN or
    infinite.
    """
    check_seeds(seeds)
    if frames is not None and frames < 1:
        raise UsageError(f"frames = {frames} is nothing to generate: ask for at least 1")
    if guidance is None:
        guidance = lm.config.guidance
    if sampling is None:
        sampling = Sampling(temperature=lm.config.temperature)
    source = lm.source
    sampler = Sampler(
        sampling, num_codebooks=source.num_codebooks, codebook_size=source.codebook_size, device=lm.device
    )
    known = _check_given(lm, given, rows=len(seeds), frames=frames)
    conditioning, guided = _check_guidance(lm, conditioning, guidance, rows=len(seeds))
    pieces = _run(
        lm,
        _plan(lm, seeds, known),
        conditioning,
        guidance if guided else None,
        sampler,
        frames,
        _earliest_end(known, stop),
    )
    return map(ordinary, pieces)


@torch.no_grad()
def infill(
    lm: CodecLM,
    given: Codes,
    *,
    seeds: Sequence[int],
    conditioning: Conditioning | None = None,
    guidance: float | None = None,
    sampling: Sampling | None = None,
    candidates: int = 16,
    after: int = 50,
) -> Codes:
    """Fill the codes that are -1 in `given` [batch, codebooks, frames] so that they lead to what follows them.

    The model only looks back, so each gap is filled `candidates` times. One filling is sampled in proportion to the
    probability that it gives to the known codes up to `after` frames past the gap (sampling importance resampling,
    Rubin 1988).

    Raises UsageError as `generate_frames`, and for fewer than 1 candidate.
    """
    if candidates < 1:
        raise UsageError(f"candidates = {candidates} leaves nothing to choose from: ask for at least 1")
    check_seeds(seeds)
    if conditioning is not None:
        _check_conditioning(lm, conditioning, rows=len(seeds))
    given = _check_given(lm, given, rows=len(seeds), frames=None)
    filled = given.clone()
    for row, seed in enumerate(seeds):
        gap = (given[row] < 0).any(dim=0).nonzero()
        if not len(gap):
            continue
        until = int(gap[-1]) + 1 + after
        own = None if conditioning is None else conditioning.rows(row, row + 1)
        pieces = generate_frames(
            lm,
            seeds=np.random.SeedSequence(seed).generate_state(candidates, np.uint64).tolist(),
            conditioning=None if own is None else Conditioning(*(part.expand(candidates, -1) for part in own)),
            guidance=guidance,
            sampling=sampling,
            frames=min(until, given.shape[2]),
            given=given[row : row + 1, :, :until].expand(candidates, -1, -1),
            stop=False,
        )
        fillings = torch.cat(list(pieces), dim=2)
        known = given[row, :, :until] >= 0
        scores = torch.stack([_log_probability(lm, codes, known, own) for codes in fillings])
        uniform = torch.tensor([[np.random.default_rng(seed).random()]], device=lm.device)
        chosen = sample_from(scores.softmax(dim=0)[None, None], uniform)
        filled[row, :, :until] = fillings[int(chosen)]
    return ordinary(filled)


def check_seeds(seeds: Sequence[int]) -> None:
    """Raise UsageError unless there is a seed, and none is below 0."""
    if not len(seeds):
        raise UsageError("there are no seeds: give one for each row to generate")
    if min(seeds) < 0:
        raise UsageError(f"a seed of {min(seeds)} is below 0: use whole numbers from 0 on")


def max_prompt_frames(lm: CodecLM) -> int | None:
    """Frames of the longest prompt within the model's context; None if it has no limit."""
    context: int | None = getattr(lm.config, "context", None)
    return None if context is None else lm.pattern.whole_frames(context)


class _Step(NamedTuple):
    """What is known about a step before the model runs it.

    `frames` [codebooks] are the frames of the codes that the step generates, -1 for none; `first_frame` is that of
    codebook 0.
    `forced` [batch, codebooks] holds given codes and special tokens, -1 for codes to sample; `all_forced` says that
    there is nothing to sample. `uniform` [batch, codebooks + 1] holds the random numbers.

    After the step `complete` frames are complete, at most one more than before. Until then the codes of a frame wait in
    `slots` [batch, codebooks, 1]: its index modulo the number of frames that can have begun; the slot after these takes
    special tokens.
    """

    number: int
    frames: Tensor
    slots: Tensor
    complete: int
    first_frame: int
    forced: Tensor
    all_forced: bool
    uniform: Tensor


def _plan(lm: CodecLM, seeds: Sequence[int], known: Codes) -> Iterator[_Step]:
    """Plan all steps, without end. Random numbers depend on seed, step and codebook alone, used or not."""
    batch, _, frames = known.shape
    num_codebooks = lm.source.num_codebooks
    generators = [np.random.default_rng(seed) for seed in seeds]
    begun = lm.pattern.latency_frames + 1
    last = torch.full((num_codebooks, 1), -1)  # frame of each codebook
    for first in count(step=PLANNED_STEPS):
        cells = lm.pattern.cells(first, first + PLANNED_STEPS)  # [codebooks, steps]
        first_frames = cells[0].tolist()
        last = torch.cat([last[:, -1:], cells], dim=1).cummax(dim=1).values
        complete = (last.amin(dim=0)[1:] + 1).tolist()
        cells = cells.to(lm.device)
        slots = torch.where(cells < 0, begun, cells % begun).expand(batch, -1, -1)
        forced = torch.where(cells < 0, lm.special_token, -1).expand(batch, -1, -1)
        if frames:
            inside = (cells >= 0) & (cells < frames)
            forced = torch.where(inside, known.gather(2, cells.clamp(0, frames - 1).expand(batch, -1, -1)), forced)
        all_forced = (forced >= 0).all(dim=1).all(dim=0).tolist()
        shape = PLANNED_STEPS, num_codebooks + 1
        numbers = np.stack([generator.random(shape, np.float32) for generator in generators], axis=1)
        uniform = torch.from_numpy(numbers).to(lm.device)
        for step in range(PLANNED_STEPS):
            yield _Step(
                first + step,
                cells[:, step],
                slots[:, :, step, None],
                complete[step],
                first_frames[step],
                forced[:, :, step],
                all_forced[step],
                uniform[step],
            )


@torch.inference_mode()
def _run(
    lm: CodecLM,
    plan: Iterator[_Step],
    conditioning: Conditioning,
    guidance: float | None,
    sampler: Sampler,
    frames: int | None,
    earliest_end: Tensor,
) -> Iterator[Codes]:
    """`generate_frames` after its checks.

    With `guidance` the batch of the model is twice as large: the unconditional rows follow the conditional ones.
    `earliest_end` [batch] is the first frame at which each row may end.
    """
    batch, special_token, device = len(earliest_end), lm.special_token, earliest_end.device
    num_codebooks = lm.source.num_codebooks
    begun = lm.pattern.latency_frames + 1
    copies = 1 if guidance is None else 2
    last = NEVER if frames is None else frames  # frames in total, as far as known
    all_may_end, some_may_end = int(earliest_end.max()), int(earliest_end.min())
    ended = torch.full_like(earliest_end, NEVER)  # frame at which each row ended
    has_ended = False
    recent = torch.full((batch, sampler.window), -1, device=device)
    waiting = torch.full((batch, num_codebooks, begun + 1), special_token, device=device)  # codes in `slots`
    complete = 0
    step: _Step
    forced: Tensor  # of this step, special tokens in rows that have ended

    def sample_fn(logits: Tensor, first: int) -> Tensor:
        codebooks = slice(first, first + logits.shape[1])
        if guidance is not None:
            conditional, unconditional = logits.float().chunk(2)
            logits = unconditional + guidance * (conditional - unconditional)
            logits[:, 0 if first else 1 :, -1] = -torch.inf  # because -inf - -inf is NaN
        if first == 0 and step.first_frame < all_may_end:
            logits = logits.clone()
            logits[:, 0, -1].masked_fill_(step.first_frame < earliest_end, -torch.inf)
        try:
            sampled = sampler.sample(logits, first, step.uniform, recent)
        except UsageError as error:
            raise UsageError(f"step {step.number}, codebook {first}: {error}") from error
        codes = torch.where(forced[:, codebooks] < 0, sampled, forced[:, codebooks])
        return torch.cat([codes] * copies)  # `repeat` is six times slower

    state = lm.initial_state(conditioning)
    step_tokens = torch.full((batch, num_codebooks), special_token, device=device)
    for step in plan:
        hidden, state = lm.forward_step(torch.cat([step_tokens] * copies), state)
        forced = torch.where(step.frames >= ended[:, None], special_token, step.forced) if has_ended else step.forced
        step_tokens = forced if step.all_forced else lm.decode_step(hidden, sample_fn)[:batch]
        if step.first_frame >= some_may_end:
            ends = (step_tokens[:, 0] == special_token) & (forced[:, 0] < 0)
            if ends.any():
                has_ended = True
                ended = torch.where(ends, step.first_frame, ended)
                step_tokens = torch.where(step.frames >= ended[:, None], special_token, step_tokens)
                last = min(last, int(ended.max()))
        if sampler.counts_repetitions and step.first_frame >= 0:
            recent[:, step.first_frame % sampler.window] = step_tokens[:, 0]
        waiting.scatter_(2, step.slots, step_tokens[:, :, None])
        if min(step.complete, last) > complete:
            codes = waiting[:, :, complete % begun, None].clone()
            yield codes.masked_fill_((ended <= complete)[:, None, None], -1) if has_ended else codes
            complete += 1
        if complete >= last:
            return


def _check_given(lm: CodecLM, given: Codes | None, *, rows: int, frames: int | None) -> Codes:
    """The given codes [rows, all codebooks, frames], -1 for codebooks that are not given; no frames for None."""
    num_codebooks, codebook_size = lm.source.num_codebooks, lm.source.codebook_size
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
    if given.numel() and not -1 <= int(given.min()) <= int(given.max()) < codebook_size:
        raise UsageError(
            f"given codes range from {int(given.min())} to {int(given.max())}; codes of the model range from 0 to "
            f"{codebook_size - 1}, and -1 is for codes to generate"
        )
    if frames is not None and given.shape[2] > frames:
        raise UsageError(f"{given.shape[2]} frames are given and {frames} asked for: ask for more, or give fewer")
    known = torch.full((rows, num_codebooks, given.shape[2]), -1, device=lm.device)
    known[:, : given.shape[1]] = given.to(lm.device)
    prompt = int((known >= 0).all(dim=1).long().cumprod(dim=1).sum(dim=1).max()) if given.shape[2] else 0
    longest = max_prompt_frames(lm)
    if longest is not None and prompt > longest:
        raise UsageError(f"a prompt of {prompt} frames is longer than the model's context: give its last {longest}")
    return known


def _earliest_end(known: Codes, stop: bool) -> Tensor:
    """The first frame at which each row may end [batch]: after the given codes, or never."""
    batch, _, frames = known.shape
    if not stop:
        return torch.full((batch,), NEVER, device=known.device)
    after = torch.arange(1, frames + 1, device=known.device) * (known >= 0).any(dim=1)
    return after.amax(dim=1) if frames else torch.zeros(batch, dtype=torch.int64, device=known.device)


def _check_conditioning(lm: CodecLM, conditioning: Conditioning, *, rows: int) -> None:
    """Raise UsageError unless the conditioning has as many rows, and classes that the model knows."""
    classes = lm.source.classes
    given = len(conditioning.classes)
    if conditioning.classes.shape != (rows, len(classes)) or len(conditioning.text) != rows:
        raise UsageError(f"there are {rows} seeds and a conditioning of {given} rows: give as many of both")
    for numbers, (kind, names) in zip(conditioning.classes.T, classes.items(), strict=True):
        if not -1 <= int(numbers.min()) <= int(numbers.max()) < len(names):
            raise UsageError(
                f"the classes of kind {kind} are numbered 0 to {len(names) - 1}, and -1 is unconditional: "
                "change the other numbers"
            )


def _check_guidance(
    lm: CodecLM, conditioning: Conditioning | None, guidance: float, *, rows: int
) -> tuple[Conditioning, bool]:
    """The conditioning of the model's batch, and whether its second half is unconditional, for guidance."""
    if not abs(guidance) <= MAX_GUIDANCE:
        raise UsageError(
            f"guidance = {guidance:g} is not within -{MAX_GUIDANCE:g} to {MAX_GUIDANCE:g}: 1 disables it, "
            "2 or 3 are common"
        )
    unconditional = lm.conditioning([{}] * rows)
    if conditioning is None:
        return unconditional, False
    _check_conditioning(lm, conditioning, rows=rows)
    if guidance in (0, 1):
        return conditioning.to(lm.device) if guidance else unconditional, False
    conditioning = conditioning.to(lm.device)
    text = torch.cat([conditioning.text, torch.full_like(conditioning.text, -1)])
    return Conditioning(torch.cat([conditioning.classes, unconditional.classes]), text), True


def _log_probability(lm: CodecLM, codes: Tensor, known: Tensor, conditioning: Conditioning | None) -> Tensor:
    """Log probability of the `known` among the codes [codebooks, frames], given the codes generated before each."""
    tokens = lm.pattern.lay_out(codes[None], lm.special_token)
    counts = lm.pattern.lay_out(known.long()[None], 0)[0] > 0  # [codebooks, steps]
    logits = lm(tokens, lm.conditioning([{}]) if conditioning is None else conditioning.to(lm.device))[0]
    log_probs: Tensor = logits.double().log_softmax(dim=-1).gather(-1, tokens[0, :, :, None])[..., 0]
    return log_probs[counts].sum()
