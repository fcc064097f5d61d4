"""Batches of codes for language models, from a token store, with the conditioning of each clip.

A row of a batch is a random frame of the training clips: the crop around it, moved to lie within its clip, or all of
the clip if that is shorter. The crop depends on the seed, the step and the row alone, so a resumed run gets the same
rows as an uninterrupted one, and processes that share a batch the same as one process.

    clip of 8 frames, crops of 4      a b c d e f g h
    frame b                           a b c d
    frame f                                 d e f g
    frame h                                   e f g h |        then the end token

So short clips are equally likely, longer ones are drawn in proportion to their length, and beginnings and ends occur
often.
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

from codec.codes import entropy
from codec.data.clips import hashed
from codec.data.split import KEYS, SIDES, SplitBy, split_chooser, split_number
from codec.data.token_store import TokenStore
from codec.errors import ConfigError, UsageError
from codec.lm.base import CodecLM
from codec.lm.conditioning import Conditioning
from codec.nn.shapes import Codes
from codec.training.lm.recipe import LMDataConfig

MAX_VALIDATION_CLIPS = 256
MAX_COUNTED_CLIPS = 100_000  # whose codes are counted for `unigram_entropy`

Rows = NDArray[np.int64]


class Batch(NamedTuple):
    """Rows of a batch, as they lie in the store."""

    codes: Codes
    """Of all stored codebooks; -1 after a row's last frame."""
    targets: Codes
    """Of the codebooks to model, with one frame more: a code, codebook_size for the end, -1 where nothing counts."""
    conditioning: Conditioning
    noise: Float[Tensor, "batch codebooks frames"] | None
    """Uniform in [0, 1), to sample stochastic codes."""
    target_counts: Float[Tensor, " codebooks"]
    """Targets of each codebook in the whole batch, of all processes."""

    def to(self, device: torch.device) -> Batch:
        """A copy on a device."""
        noise = None if self.noise is None else self.noise.to(device)
        codes, targets, counts = (part.to(device) for part in (self.codes, self.targets, self.target_counts))
        return Batch(codes, targets, self.conditioning.to(device), noise, counts)

    def split(self, parts: int) -> Iterator[Batch]:
        """Micro-batches of equally many rows of similar length, with as little padding as possible."""
        lengths = (self.codes[:, 0] >= 0).sum(dim=1)
        for rows in lengths.argsort(stable=True).chunk(parts):
            longest = int(lengths[rows].max())
            conditioning = Conditioning(*(condition[rows] for condition in self.conditioning))
            noise = None if self.noise is None else self.noise[rows, :, :longest]
            codes, targets = self.codes[rows, :, :longest], self.targets[rows, :, : longest + 1]
            yield Batch(codes, targets, conditioning, noise, self.target_counts)


class Crop(NamedTuple):
    """Frames of a clip."""

    clip: int
    start: int
    frames: int
    whole: bool
    ends: bool


class TokenCrops:
    """The clips `rows` of a token store as batches for a model.

    `condition_dropout` is the probability to drop each condition, and all of them together. `stochastic` adds the noise
    to sample codes with. `text` conditions on transcripts.
    """

    def __init__(
        self,
        store: TokenStore,
        rows: Rows,
        model: CodecLM,
        config: LMDataConfig,
        *,
        seed: int = 0,
        condition_dropout: float = 0.0,
        stochastic: bool = False,
        text: bool = False,
    ) -> None:
        self.store = store
        self.rows = rows
        self.model = model
        self.config = config
        self.seed = seed
        self.condition_dropout = condition_dropout
        self.stochastic = stochastic
        self.text = text
        self.num_codebooks = model.source.num_codebooks
        self.lengths = store.index["frames"][rows].astype(np.int64)
        self.ends = np.cumsum(np.maximum(self.lengths, config.frames))  # of the numbers that draw each clip

    def batch(self, step: int, first: int, last: int) -> Batch:
        """The rows from `first` to before `last` of a step's batch."""
        seeds = [(self.seed, step, row, 4) for row in range(self.config.batch_size)]
        rngs = [np.random.default_rng(seed) for seed in seeds]
        crops = [self.draw(rng) for rng in rngs]
        own, rngs = crops[first:last], rngs[first:last]
        conditions = [self.conditions(crop, rng, self.condition_dropout) for crop, rng in zip(own, rngs, strict=True)]
        batch = self.collate(own, conditions, crops)
        if not self.stochastic:
            return batch
        noise = torch.zeros(len(own), self.num_codebooks, batch.codes.shape[-1])
        for row, crop, rng in zip(noise, own, rngs, strict=True):
            row[:, : crop.frames] = torch.from_numpy(rng.random((self.num_codebooks, crop.frames)))
        return batch._replace(noise=noise)

    def validation(self, most: int = MAX_VALIDATION_CLIPS) -> Iterator[Batch]:
        """Batches of one fixed crop each of at most `most` clips, with all their conditions."""
        rows = np.unique(np.linspace(0, len(self.rows) - 1, min(most, len(self.rows))).astype(np.int64))
        rng = np.random.default_rng(0)
        crops = [self.crop_around(int(row), int(rng.integers(self.lengths[row]))) for row in rows]
        for first in range(0, len(crops), self.config.batch_size):
            some = crops[first : first + self.config.batch_size]
            yield self.collate(some, [self.conditions(crop) for crop in some], some)

    def draw(self, rng: np.random.Generator) -> Crop:
        """A random crop of any clip."""
        number = int(rng.integers(self.ends[-1]))
        row = int(np.searchsorted(self.ends, number, side="right"))
        return self.crop_around(row, number - int(self.ends[row - 1]) if row else number)

    def crop_around(self, row: int, frame: int) -> Crop:
        """The crop around a frame of the clip `rows[row]`."""
        length, most = int(self.lengths[row]), self.config.frames
        start = max(0, min(frame - most // 2, length - most))
        frames = min(length, most)
        return Crop(int(self.rows[row]), start, frames, frames == length, start + frames == length)

    def conditions(self, crop: Crop, rng: np.random.Generator | None = None, dropout: float = 0.0) -> dict[str, str]:
        """Conditions of a crop: its clip's classes that the model knows, and its text if the crop is the whole clip.

        With `rng`, each is dropped with probability `dropout`, and all of them together.
        """
        record = self.store.index[crop.clip]
        row = {}
        for kind, names in self.model.source.classes.items():
            number = int(record[kind])
            if number >= 0 and (name := self.store.classes[kind][number]) in names:
                row[kind] = name
        if self.text and crop.whole and (text := self.store.row(crop.clip).transcript):
            row["text"] = text
        if rng is not None:
            drop_all, *drop = rng.random(1 + len(self.model.source.classes) + self.text) < dropout
            kinds = [*self.model.source.classes, "text"]
            row = {kind: name for kind, name in row.items() if not (drop_all or drop[kinds.index(kind)])}
        return row

    def collate(self, crops: Sequence[Crop], conditions: Sequence[dict[str, str]], batch: Sequence[Crop]) -> Batch:
        """A padded batch of these crops, which are some of the whole `batch` of all processes."""
        longest = max(crop.frames for crop in crops)
        codes = torch.full((len(crops), self.store.num_codebooks, longest), -1)
        targets = torch.full((len(crops), self.num_codebooks, longest + 1), -1)
        for number, crop in enumerate(crops):
            codes[number, :, : crop.frames] = self.store.part(crop.clip, crop.start, crop.frames)
            targets[number, :, : crop.frames] = codes[number, : self.num_codebooks, : crop.frames]
            if crop.ends:
                targets[number, 0, crop.frames] = self.model.source.codebook_size
            if crop.start:
                targets[number, :, 0] = -1  # because the model would take it for the first frame of a recording
        counts = torch.full((self.num_codebooks,), float(sum(crop.frames - (crop.start > 0) for crop in batch)))
        counts[0] += sum(crop.ends for crop in batch)
        return Batch(codes, targets, self.model.conditioning(conditions), None, counts)


def split_clips(store: TokenStore, held_out: float, split_by: SplitBy = "file") -> tuple[Rows, Rows]:
    """(training, validation) clips: those of `codec.data.split`, as a codec trains on the same corpus.

    Test clips are used for validation only if no clip is marked as valid and none is unmarked. Raises UsageError: a
    split is empty.
    """
    index = store.index
    rows = np.zeros(len(index), KEYS)
    numbers = np.array([split_number(name) for name in store.splits] + [0])  # the last is for -1, no split
    rows["split"] = numbers[index["split"]]
    if not {0, split_number("valid")} & set(rows["split"].tolist()):
        rows["split"][rows["split"] == split_number("test")] = split_number("valid")
    rows["file"], rows["group"] = groups_of(store, split_by)
    usable = np.flatnonzero((index["frames"] > 0) & (rows["split"] != split_number("test")))
    marked = set(rows["split"][usable].tolist())
    for side in SIDES:
        if not marked & {0, split_number(side)}:
            splits = np.array([*store.splits, "none"])[index["split"]]
            counts = ", ".join(f"{(splits == name).sum()} of split {name}" for name in np.unique(splits))
            raise UsageError(
                f"{store.path} has no clip to {'train on' if side == 'train' else 'validate on'}: of its {len(store)} "
                f"clips, {counts}; mark some as {side} in the manifest and tokenize it again"
            )
    choose = split_chooser([rows[usable]], held_out)
    train, valid = (usable[choose(rows[usable], side)] for side in SIDES)
    return train, valid


def groups_of(store: TokenStore, split_by: SplitBy) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Hashes of each clip's file, and of its speaker, or its file or folder if no speaker is known.

    A store before format 3 does not have them: there both are the hash of the clip's id.
    """
    index = store.index
    if "file" not in (index.dtype.names or ()):
        return index["id"], index["id"]
    speakers = np.array([hashed(name) for name in store.classes["speaker"]] + [0], np.uint64)
    return index["file"], np.where(index["speaker"] >= 0, speakers[index["speaker"]], index[split_by])


def class_names(store: TokenStore, rows: Rows, kinds: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The class names of each kind (such as "label") that these clips have.

    Raises ConfigError: no clip has a class of one of the kinds.
    """
    classes = {}
    for kind in kinds:
        numbers = set(store.index[kind][rows].tolist()) - {-1} if kind in store.classes else set()
        classes[kind] = tuple(store.classes[kind][number] for number in sorted(numbers))
        if not classes[kind]:
            raise ConfigError(
                f'data.conditions has "{kind}", but no training clip of {store.path} has one: give the manifest a '
                f"column {kind} and tokenize it again, or leave it out"
            )
    return classes


def unigram_entropy(store: TokenStore, rows: Rows, num_codebooks: int, codebook_size: int) -> Tensor:
    """Entropy [codebooks] in bits of the code frequencies in these clips: the loss of a model without context.

    Raises DamagedFile: the codes of a clip do not match their checksum.
    """
    counts = np.zeros(num_codebooks * codebook_size, np.int64)
    offsets = codebook_size * torch.arange(num_codebooks)[:, None]
    for row in rows[:: -(-len(rows) // MAX_COUNTED_CLIPS)]:
        codes = store[int(row)].codes[:num_codebooks]
        counts += np.bincount((codes + offsets).flatten().numpy(), minlength=len(counts))
    return entropy(torch.from_numpy(counts).view(num_codebooks, codebook_size)).float()


@torch.no_grad()
def sample_soft_codes(
    codes: Codes,
    vectors: Tensor,
    num_codebooks: int,
    *,
    soft: float | None,
    stochastic: float | None,
    noise: Tensor | None,
) -> tuple[Codes, Tensor | None]:
    """Sample codes near the stored ones, and soft targets [batch, codebooks, frames, codebook_size] (Lee et al. 2022).

    As in section 3.2.3: the distribution of a codebook's code is softmax(-|residual - entry|² / temperature), where
    `residual` is what the codes sampled so far leave of the latent. There the latent is the encoder's own. A token
    store has none, so here it is the sum of the entries of all stored `codes`, by a codec's `vectors` [codebooks,
    codebook_size, dim]: the latent up to what the last codebook left. So the last stored codebook always has its own
    code as the nearest.

    Temperatures are relative to the mean squared distance between two entries of the codebook. `noise`, uniform in
    [0, 1), decides; if `stochastic` is None, the codes are the stored ones. The result for codes of -1 is undefined. A
    code of the first codebook whose vector is 0 (a mode of `gain_shape`) is never sampled, and its frame is unchanged.
    """
    stored = codes.clamp(min=0)
    void = ~vectors[0].any(dim=-1)  # [codebook_size]
    last = int((~void).nonzero()[-1])
    fixed = void[stored[:, 0]]  # [batch, frames]
    residual = torch.stack(
        [F.embedding(stored[:, codebook], vectors[codebook]) for codebook in range(stored.shape[1])]
    ).sum(dim=0)
    sampled, targets = [], []
    for codebook in range(num_codebooks):
        entries = vectors[codebook]
        usable = entries[~void] if codebook == 0 else entries
        size = len(usable)
        unit = 2 * size / (size - 1) * (usable - usable.mean(dim=0)).square().sum(dim=-1).mean()
        distances = entries.square().sum(dim=-1) - 2 * residual @ entries.T  # without |residual|², which cancels
        if codebook == 0:
            distances = distances.masked_fill(void, torch.inf)
        if soft is not None:
            likely = (-distances / (soft * unit)).softmax(dim=-1)
            targets.append(torch.where(fixed[..., None], F.one_hot(stored[:, codebook], len(entries)), likely))
        if stochastic is None:
            sampled.append(stored[:, codebook])
        else:
            assert noise is not None
            below = (-distances / (stochastic * unit)).softmax(dim=-1).cumsum(dim=-1)
            drawn = (below <= noise[:, codebook, :, None]).sum(dim=-1).clamp(max=last if codebook == 0 else size - 1)
            sampled.append(torch.where(fixed, stored[:, codebook], drawn))
        residual = residual - F.embedding(sampled[-1], entries)
    return torch.stack(sampled, dim=1), torch.stack(targets, dim=1) if targets else None
