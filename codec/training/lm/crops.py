"""Batches of codes for language models, from a token store, with what the models are told of each clip.

A row of a batch is a draw of a frame of the training clips: the crop around it, moved to lie within its clip, and all
of the clip where that is shorter. It depends on the seed, the step and the row alone, so a resumed run sees what an
uninterrupted one would, and processes that share a batch what one would.

    clip of 8 frames, crops of 4      a b c d e f g h
    drawn b                           a b c d
    drawn f                                 d e f g
    drawn h                                   e f g h |        the end comes next

So short clips are drawn alike, longer ones in proportion to their length; beginnings and ends come often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from codec.data.token_store import TokenStore
from codec.errors import ConfigError, UsageError
from codec.lm.base import CodecLM
from codec.lm.conditioning import Conditioning
from codec.nn.shapes import Codes
from codec.training.lm.recipe import LMRecipe

VALID = 256  # clips to validate on at most
COUNTED = 100_000  # clips whose codes are counted at most

Numbers = NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of a batch, as they lie in the store.

    `codes` are those of all stored codebooks, -1 after a row's last frame. `targets` are those of the codebooks to learn and a
    frame more, with what a model should say of each: a code, codebook_size for the end, -1 where nothing counts.
    """

    codes: Codes
    targets: Codes
    conditions: Conditioning
    draws: Float[Tensor, "batch codebooks frames"] | None
    """Numbers in [0, 1) that decide on stochastic codes."""
    counted: Float[Tensor, " codebooks"]
    """Targets of each codebook in the whole batch, whoever has its rows."""

    def to(self, device: torch.device) -> Batch:
        """The same, elsewhere."""
        draws = None if self.draws is None else self.draws.to(device)
        codes, targets, counted = (part.to(device) for part in (self.codes, self.targets, self.counted))
        return Batch(codes, targets, self.conditions.to(device), draws, counted)

    def parts(self, count: int) -> Iterator[Batch]:
        """The batch in so many parts of equally many rows, alike in length, with as little padding as that needs."""
        lengths = (self.codes[:, 0] >= 0).sum(dim=1)
        for rows in lengths.argsort(stable=True).chunk(count):
            longest = int(lengths[rows].max())
            conditions = Conditioning(*(told[rows] for told in self.conditions))
            draws = None if self.draws is None else self.draws[rows, :, :longest]
            codes, targets = self.codes[rows, :, :longest], self.targets[rows, :, : longest + 1]
            yield Batch(codes, targets, conditions, draws, self.counted)


class Crop(NamedTuple):
    """Frames of a clip."""

    clip: int
    start: int
    frames: int
    whole: bool
    ends: bool


class LMData:
    """The clips `rows` of a token store as batches for a model."""

    def __init__(self, store: TokenStore, recipe: LMRecipe, rows: Numbers, model: CodecLM) -> None:
        self.store = store
        self.recipe = recipe
        self.rows = rows
        self.model = model
        self.num_codebooks = model.source.num_codebooks
        self.lengths = store.index["frames"][rows].astype(np.int64)
        self.ends = np.cumsum(np.maximum(self.lengths, recipe.data.frames))  # of what each clip may be drawn by

    def batch(self, step: int, first: int, last: int) -> Batch:
        """The rows from `first` to before `last` of a step's batch."""
        losses = self.recipe.losses
        seeds = [(self.recipe.train.seed, step, row, 4) for row in range(self.recipe.data.batch_size)]
        rngs = [np.random.default_rng(seed) for seed in seeds]
        crops = [self.drawn(rng) for rng in rngs]
        mine, rngs = crops[first:last], rngs[first:last]
        told = [self.told(crop, rng, losses.condition_dropout) for crop, rng in zip(mine, rngs, strict=True)]
        batch = self.joined(mine, told, crops)
        if losses.stochastic is None:
            return batch
        draws = torch.zeros(len(mine), self.num_codebooks, batch.codes.shape[-1])
        for row, crop, rng in zip(draws, mine, rngs, strict=True):
            row[:, : crop.frames] = torch.from_numpy(rng.random((self.num_codebooks, crop.frames)))
        return batch._replace(draws=draws)

    def validation(self, most: int = VALID) -> Iterator[Batch]:
        """Batches of a fixed crop each of `most` clips, with all that is known of them."""
        rows = np.unique(np.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).astype(np.int64))
        rng = np.random.default_rng(0)
        crops = [self.around(int(row), int(rng.integers(self.lengths[row]))) for row in rows]
        for first in range(0, len(crops), self.recipe.data.batch_size):
            some = crops[first : first + self.recipe.data.batch_size]
            yield self.joined(some, [self.told(crop) for crop in some], some)

    def drawn(self, rng: np.random.Generator) -> Crop:
        """A crop of any clip."""
        pick = int(rng.integers(self.ends[-1]))
        row = int(np.searchsorted(self.ends, pick, side="right"))
        return self.around(row, pick - int(self.ends[row - 1]) if row else pick)

    def around(self, row: int, frame: int) -> Crop:
        """The crop around a frame of one of the side's clips."""
        length, most = int(self.lengths[row]), self.recipe.data.frames
        start = max(0, min(frame - most // 2, length - most))
        frames = min(length, most)
        return Crop(int(self.rows[row]), start, frames, frames == length, start + frames == length)

    def told(self, crop: Crop, rng: np.random.Generator | None = None, dropout: float = 0.0) -> dict[str, str]:
        """What the model is told of a crop: its clip's classes as far as it knows them, its text where it is whole.

        With `rng`, each is left out by chance, and sometimes all of them.
        """
        record = self.store.index[crop.clip]
        row = {}
        for kind, names in self.model.source.classes.items():
            number = int(record[kind])
            if number >= 0 and (name := self.store.classes[kind][number]) in names:
                row[kind] = name
        if self.recipe.text and crop.whole and (text := self.store.row(crop.clip).transcript):
            row["text"] = text
        if rng is not None:
            all_, *each = rng.random(1 + len(self.model.source.classes) + self.recipe.text) < dropout
            kinds = [*self.model.source.classes, "text"]
            row = {kind: name for kind, name in row.items() if not (all_ or each[kinds.index(kind)])}
        return row

    def joined(self, crops: Sequence[Crop], told: Sequence[dict[str, str]], batch: Sequence[Crop]) -> Batch:
        """A batch of these crops, which are some of a whole `batch`; short ones are padded to the longest."""
        longest = max(crop.frames for crop in crops)
        codes = torch.full((len(crops), self.store.num_codebooks, longest), -1)
        targets = torch.full((len(crops), self.num_codebooks, longest + 1), -1)
        for number, crop in enumerate(crops):
            codes[number, :, : crop.frames] = self.store.part(crop.clip, crop.start, crop.frames)
            targets[number, :, : crop.frames] = codes[number, : self.num_codebooks, : crop.frames]
            if crop.ends:
                targets[number, 0, crop.frames] = self.model.source.codebook_size
            if crop.start:
                targets[number, :, 0] = -1  # which would teach that recordings begin like this
        counted = torch.full((self.num_codebooks,), float(sum(crop.frames - (crop.start > 0) for crop in batch)))
        counted[0] += sum(crop.ends for crop in batch)
        return Batch(codes, targets, self.model.conditioning(told), None, counted)


def sides(store: TokenStore, held_out: float) -> tuple[Numbers, Numbers]:
    """(training, validation) clips: as their splits say, and of the others by a hash of their ids.

    Of few the one with the lowest hash is held out. Test clips are left alone, unless no clip says it is for
    validation. Raises UsageError where a side is empty.
    """
    splits = store.index["split"]
    known = {name: splits == number for number, name in enumerate(store.splits)}
    none = splits == -1
    there = store.index["frames"] > 0
    held = none & (store.index["id"] < np.uint64(int(held_out * 2**64)))
    free = np.flatnonzero(none & there)
    if held_out and len(free) > 1 and not {"valid", "test"} & set(known) and not held[free].any():
        held[free[store.index["id"][free].argmin()]] = True
    train = (known.get("train", np.zeros_like(none)) | (none & ~held)) & there
    valid = (known.get("valid", known.get("test", np.zeros_like(none))) | held) & there
    for side, of_it in (("train", train), ("valid", valid)):
        if not of_it.any():
            said = ", ".join(f"{len(splits[of])} of split {name}" for name, of in known.items())
            raise UsageError(
                f"{store.path} has no clip to {'train on' if side == 'train' else 'validate on'}: of its {len(store)} "
                f"clips, {said or 'none has a split'}; mark some as {side} in the manifest and tokenize it again"
                + (f", or change data.held_out = {held_out}" if none.any() else "")
            )
    return np.flatnonzero(train), np.flatnonzero(valid)


def names_of(store: TokenStore, rows: Numbers, kinds: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The names of each kind of class that these clips have.

    Raises ConfigError: the store knows none of a kind.
    """
    classes = {}
    for kind in kinds:
        numbers = set(store.index[kind][rows].tolist()) - {-1} if kind in store.classes else set()
        classes[kind] = tuple(store.classes[kind][number] for number in sorted(numbers))
        if not classes[kind]:
            raise ConfigError(
                f'data.classes has "{kind}", but no training clip of {store.path} has one: give the manifest a column '
                f"{kind} and tokenize it again, or leave it out"
            )
    return classes


def unigram(store: TokenStore, rows: Numbers, num_codebooks: int, codebook_size: int) -> Tensor:
    """Entropy [codebooks] in bits of how often each code occurs in these clips: the cost of a model that knows no more.

    Raises DamagedFile for a clip whose codes are not those of its checksum.
    """
    counts = np.zeros(num_codebooks * codebook_size, np.int64)
    offsets = codebook_size * torch.arange(num_codebooks)[:, None]
    for row in rows[:: -(-len(rows) // COUNTED)]:
        codes = store[int(row)].codes[:num_codebooks]
        counts += np.bincount((codes + offsets).flatten().numpy(), minlength=len(counts))
    shares = torch.from_numpy(counts).view(num_codebooks, codebook_size).double()
    shares /= shares.sum(dim=1, keepdim=True)
    return -(shares * shares.clamp(min=1e-300).log2()).sum(dim=1).float()


@torch.no_grad()
def soften(
    codes: Codes,
    vectors: Tensor,
    num_codebooks: int,
    *,
    soft: float | None,
    stochastic: float | None,
    draws: Tensor | None,
) -> tuple[Codes, Tensor | None]:
    """Codes of the first `num_codebooks` codebooks drawn anew, and soft targets [batch, codebooks, frames, codebook_size] of them.

    As Lee et al. 2022, section 3.2.3: a codebook's code is softmax(-|left - entry|² / temperature), where `left` is what
    the codes taken so far leave of the latent. There the latent is the encoder's own. A token store has none, so here
    it is what all stored `codes` stand for together, by a codec's `vectors` [codebooks, codebook_size, dim]: the latent
    itself up to what the last codebook left. So the last codebook that is stored has always its own code for the nearest.

    Temperatures count in the mean squared distance between two entries of the codebook. `draws` are what decides, uniform
    in [0, 1); where `stochastic` is None the codes stay. A code of -1 gives whatever it gives. A code of the first codebook
    that stands for no vector but 0 (a mode of `gain_shape`) is never drawn, and its frame stays as it is.
    """
    stored = codes.clamp(min=0)
    void = ~vectors[0].any(dim=-1)  # [codebook_size]
    last = int((~void).nonzero()[-1])
    fixed = void[stored[:, 0]]  # [batch, frames]
    left = torch.stack(
        [F.embedding(stored[:, codebook], vectors[codebook]) for codebook in range(stored.shape[1])]
    ).sum(dim=0)
    taken, targets = [], []
    for codebook in range(num_codebooks):
        entries = vectors[codebook]
        chosen = entries[~void] if codebook == 0 else entries
        size = len(chosen)
        unit = 2 * size / (size - 1) * (chosen - chosen.mean(dim=0)).square().sum(dim=-1).mean()
        distances = entries.square().sum(dim=-1) - 2 * left @ entries.T  # less |left|², which changes no softmax
        if codebook == 0:
            distances = distances.masked_fill(void, torch.inf)
        if soft is not None:
            likely = (-distances / (soft * unit)).softmax(dim=-1)
            targets.append(torch.where(fixed[..., None], F.one_hot(stored[:, codebook], len(entries)), likely))
        if stochastic is None:
            taken.append(stored[:, codebook])
        else:
            assert draws is not None
            below = (-distances / (stochastic * unit)).softmax(dim=-1).cumsum(dim=-1)
            drawn = (below <= draws[:, codebook, :, None]).sum(dim=-1).clamp(max=last if codebook == 0 else size - 1)
            taken.append(torch.where(fixed, stored[:, codebook], drawn))
        left = left - F.embedding(taken[-1], entries)
    return torch.stack(taken, dim=1), torch.stack(targets, dim=1) if targets else None
