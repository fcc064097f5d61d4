"""Sampling of one step: temperature, top-k, top-p, min-p and repetition-aware sampling.

Four codes with probabilities 0.5, 0.3, 0.15 and 0.05, one filter at a time:

    top_k 2       0.5  0.3   .     .       the 2 most probable
    top_p 0.9     0.5  0.3  0.15   .       the fewest whose probabilities add up to at least 0.9
    min_p 0.2     0.5  0.3  0.15   .       at least 0.2 times the largest
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from codec.config import Config
from codec.errors import UsageError
from codec.lm.base import TEMPERATURES

MAX_WINDOW = 2**16


class Sampling(Config):
    """How codes are sampled. The first four take one value, or one per codebook: (1.0, 0.9, 0.8).

    The filters apply in turn, each to the renormalized result of the one before. top_k keeps the most probable codes,
    top_p the fewest whose probabilities add up to P or more (nucleus sampling, Holtzman et al. 2020), min_p those at
    least P times as probable as the most probable one. Codes as probable as the last one kept are kept too.
    """

    temperature: float | tuple[float, ...] = 1.0
    top_k: int | tuple[int, ...] | None = None
    top_p: float | tuple[float, ...] | None = None
    min_p: float | tuple[float, ...] | None = None
    repetition_threshold: float | None = None
    """Sample a code of codebook 0 again, without filters, if it was more than this share of the last codes
    (repetition-aware sampling, VALL-E 2, Chen et al. 2024, section 3.3.3; they use 0.1)."""
    repetition_window: int = 10
    """Number of last codes of codebook 0 that `repetition_threshold` counts."""


class Sampler:
    """Sample codes by a `Sampling`, all rows and codebooks at once. Raises UsageError for values out of range."""

    def __init__(self, sampling: Sampling, *, num_codebooks: int, codebook_size: int, device: torch.device) -> None:
        self._device = device
        self._temperature = self._per_codebook("temperature", sampling.temperature, num_codebooks)
        self._top_k = self._per_codebook("top_k", sampling.top_k, num_codebooks)
        self._top_p = self._per_codebook("top_p", sampling.top_p, num_codebooks)
        self._min_p = self._per_codebook("min_p", sampling.min_p, num_codebooks)
        self.window, self._threshold = sampling.repetition_window, sampling.repetition_threshold
        for temperature in _values(sampling.temperature):
            if temperature <= 0:
                raise UsageError(
                    f"temperature = {temperature:g} is not above 0: use top_k = 1 for the most probable code"
                )
            if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
                low, high = TEMPERATURES
                raise UsageError(f"temperature = {temperature:g} is not within {low:g} to {high:g}: 1 is neutral")
        for k in _values(sampling.top_k):
            if not 1 <= k <= codebook_size:
                raise UsageError(f"top_k = {k} is not within 1 to {codebook_size}, the codebook size: change it")
        for p in _values(sampling.top_p):
            if not 0 < p <= 1:
                raise UsageError(f"top_p = {p:g} is not above 0 and at most 1: change it, or omit it")
        for p in _values(sampling.min_p):
            if not 0 <= p <= 1:
                raise UsageError(f"min_p = {p:g} is not within 0 to 1: change it, or omit it")
        if not 1 <= self.window <= MAX_WINDOW:
            raise UsageError(f"repetition_window = {self.window} is not within 1 to {MAX_WINDOW} codes: change it")
        if self._threshold is not None and not 0 <= self._threshold <= 1:
            raise UsageError(f"repetition_threshold = {self._threshold:g} is not within 0 to 1: change it, or omit it")

    @property
    def counts_repetitions(self) -> bool:
        """Whether `sample` needs the last codes of codebook 0."""
        return self._threshold is not None

    def sample(
        self,
        logits: Float[Tensor, "batch n classes"],
        first: int,
        uniform: Float[Tensor, "batch uniforms"],
        recent: Int[Tensor, "batch window"] | None = None,
    ) -> Int[Tensor, "batch n"]:
        """Codes of n codebooks, the first of which is `first`.

        `uniform` holds random numbers in [0, 1), one for each codebook of the model and one more. `recent` holds the
        last codes of codebook 0, -1 before there were any. Raises UsageError for logits that are NaN or infinite.
        """
        codebooks = slice(first, first + logits.shape[1])
        logits = logits.float()
        if self._temperature is not None:
            logits = (logits - logits.amax(dim=-1, keepdim=True)) / self._temperature[codebooks]
        probs = logits.softmax(dim=-1)
        codes = sample_from(self._filtered(probs, codebooks), uniform[:, codebooks])
        if first == 0 and self._threshold is not None:
            assert recent is not None
            repeated = (recent == codes[:, :1]).float().mean(dim=1, keepdim=True) > self._threshold
            codes[:, :1] = torch.where(repeated, sample_from(probs[:, :1], uniform[:, -1:]), codes[:, :1])
        return codes

    def _filtered(self, probs: Tensor, codebooks: slice) -> Tensor:
        """Probabilities [batch, n, classes], not renormalized, with 0 for the codes that the filters remove."""
        lowest = None  # probability that is kept
        if self._top_k is not None or self._top_p is not None:
            ranked = _sort_descending(probs)
            last = torch.full_like(ranked[..., :1], ranked.shape[-1] - 1, dtype=torch.int64)  # rank that is kept
            if self._top_k is not None:
                last = (self._top_k[codebooks].long() - 1).expand_as(last)
            if self._top_p is not None:
                sums = ranked.cumsum(dim=-1, dtype=torch.float64)
                last = torch.minimum(last, torch.searchsorted(sums, self._top_p[codebooks] * sums.gather(-1, last)))
            lowest = ranked.gather(-1, last)
        if self._min_p is not None:
            relative = self._min_p[codebooks] * probs.amax(dim=-1, keepdim=True)
            lowest = relative if lowest is None else torch.maximum(lowest, relative)
        return probs if lowest is None else probs * (probs >= lowest)  # `where` is ten times slower

    def _per_codebook(self, name: str, value: float | tuple[float, ...] | None, num_codebooks: int) -> Tensor | None:
        """One value for each codebook [codebooks, 1]; None for a value without effect."""
        if value is None or (name == "temperature" and value == 1):
            return None
        values = _values(value)
        if len(values) not in (1, num_codebooks) or (isinstance(value, tuple) and len(values) != num_codebooks):
            raise UsageError(
                f"{name} has {len(values)} values, the model {num_codebooks} codebooks: give one, or one each"
            )
        values = values * num_codebooks if len(values) < num_codebooks else values
        dtype = torch.float32 if name == "temperature" else torch.float64
        return torch.tensor(values, dtype=dtype, device=self._device)[:, None]


def sample_from(probs: Float[Tensor, "batch n classes"], uniform: Float[Tensor, "batch n"]) -> Int[Tensor, "batch n"]:
    """Invert the cumulative distribution at the uniform numbers; `probs` need not add up to 1."""
    sums = probs.cumsum(dim=-1, dtype=torch.float64)
    total = sums[..., -1:]
    if not (total > 0).all():  # false for NaN too
        raise UsageError("the logits of the model are NaN or infinite: keep it in float32, or train it again")
    return torch.searchsorted(sums, uniform[..., None] * total, right=True)[..., 0]


def _sort_descending(probs: Tensor) -> Tensor:
    if probs.device.type == "cpu":  # because numpy sorts rows of 1024 values a hundred times faster than torch
        return torch.from_numpy(np.sort(probs.numpy(), axis=-1)).flip(-1)
    return probs.sort(dim=-1, descending=True).values


def _values(value: float | tuple[float, ...] | None) -> tuple[float, ...]:
    return () if value is None else value if isinstance(value, tuple) else (value,)
