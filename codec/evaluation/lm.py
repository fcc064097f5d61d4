"""How good a language model's clips of each class are, beside real recordings and what the codec makes of those."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from codec.data.clips import Clip
from codec.data.tokenize import clip_gain
from codec.errors import ConfigError, InputNotFound, UsageError
from codec.evaluation.classifier import BATCH, FEATURES, Classifier, Judgement, labels_of, recordings, some
from codec.evaluation.generation import (
    am_score,
    balance,
    frechet_distance,
    inception_score,
    modified_inception_score,
    nearest_distances,
)
from codec.models.base import Codec

COPY = 1.0  # dB between spectrograms: closer is no other recording, be it of the same word by the same speaker

Generator: TypeAlias = Callable[[Sequence[tuple[int, str]]], Sequence[Tensor]]
"""From some (seed, label) to the audio [1, time] of each, at the codec's rate."""


@dataclass(frozen=True)
class Row:
    """Measures of one kind of clips.

    `accuracy` is the share that the classifier takes for what they are, or were asked to be. `fid` and `nearest`, the
    mean distance of features to the nearest, are from the real training clips, and `copies` is the share that sound as
    a training clip through the codec does; training clips are not compared with themselves. `balance` is the p of the
    classes found being as frequent as those wanted.
    """

    name: str
    clips: int
    accuracy: float
    fid: float
    inception: float
    modified_inception: float
    am: float
    balance: float
    nearest: float
    copies: float


@dataclass(frozen=True)
class LMEvaluation:
    """What `evaluate` found; `notes` say what to know of single rows."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [["", "clips", "accuracy", "FID", "IS", "mIS", "AM", "chi² p", "nearest", "copies"]]
        for row in self.rows:
            numbers = (row.fid, row.inception, row.modified_inception, row.am, row.balance, row.nearest)
            cells = [f"{row.accuracy:.2%}", *(f"{n:.{d}f}" for n, d in zip(numbers, (3, 2, 1, 3, 3, 2), strict=True))]
            lines.append([row.name, str(row.clips), *cells, f"{row.copies:.2%}"])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = ["  ".join([first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]) for first, *rest in lines]
        return "\n".join([*text, *self.notes])

    def as_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)


@dataclass(frozen=True)
class Sides:
    """The labelled clips of a corpus: those to learn from, those of its split valid, and the labels of both."""

    train: list[Clip]
    valid: list[Clip]
    labels: tuple[str, ...]


def sides(corpus: Iterable[Clip], *, known: Sequence[str]) -> Sides:
    """Divide a corpus as it says itself, and check its labels; clips that are of no split are learned from.

    Raises:
        InputNotFound: there are no clips to learn from.
        ConfigError: clips have no label, or one that is not `known` to the model, or that is held out alone.
    """
    by_split: dict[str | None, list[Clip]] = {}
    for clip in corpus:
        by_split.setdefault(clip.split or "train", []).append(clip)
    train, valid = (some(by_split.get(split, [])) for split in ("train", "valid"))
    if not train:
        raise InputNotFound('the corpus has no clips of split "train": mark some so in its manifest')
    labels = labels_of(train)
    for whose, theirs, those in (
        ("the corpus", labels, known),
        ('the split "valid"', sorted({str(clip.label) for clip in valid}), labels),
    ):
        if unknown := sorted(set(theirs) - set(those)):
            raise ConfigError(
                f"{whose} has labels {', '.join(unknown[:10])} that {'the model' if those is known else 'split train'} "
                f"does not know; it knows {', '.join(those[:20]) or 'none'}: leave those clips out of the manifest"
            )
    return Sides(train, valid, labels)


def evaluate(
    generator: Generator,
    codec: Codec,
    corpus: Sides,
    classifier: Classifier,
    *,
    samples: int = 2048,
    seed: int = 0,
    num_codebooks: int | None = None,
    level_db: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LMEvaluation:
    """Judge `samples` clips, of each class as many, as they come from the generator, beside the corpus's own.

    `num_codebooks` is how many of the codec's the model speaks, so that many make the reconstructions; recordings are brought
    to `level_db` first, as `tokens.tokenize` does it. Sample i has the seed `seed * samples + i`. `progress` gets
    (clips judged, clips in all).

    Raises UsageError for fewer than 2 samples.
    """
    if samples < 2:
        raise UsageError(f"--samples {samples}: statistics need 2 at least, and mean something from some hundreds on")
    rate = codec.config.sample_rate
    labels = corpus.labels
    notes = []
    held_out = corpus.valid
    if len(held_out) < 2:
        notes.append(f'The split "valid" has {len(held_out)} clips: no row for held-out recordings.')
        held_out = []
    total = 2 * (len(corpus.train) + len(held_out)) + samples
    judged = 0

    def judge(clips: Sequence[Tensor]) -> Judgement:
        nonlocal judged
        judged += len(clips)
        if progress:
            progress(judged, total)
        return classifier.judge(clips)

    def numbers(wanted: Iterable[str | None]) -> Tensor:
        return torch.tensor([labels.index(str(label)) for label in wanted])

    kinds: dict[str, tuple[Judgement, Tensor]] = {}  # what was judged, and the number of the label of each
    for name, clips in (("train", corpus.train), ("held-out", held_out)):
        if clips:
            both = []
            for beginnings, whole in recordings(clips, rate):
                audio = [
                    part * float(clip_gain(clip, level_db, rate=rate))
                    for part, clip in zip(beginnings, whole, strict=True)
                ]
                both.append((judge(audio), judge(reconstructed(codec, audio, num_codebooks=num_codebooks))))
            theirs = numbers(clip.label for clip in clips)
            for kind, parts in zip((name, f"{name}, reconstructed"), zip(*both, strict=True), strict=True):
                kinds[kind] = joined(parts), theirs
    asked = [(seed * samples + number, labels[number % len(labels)]) for number in range(samples)]
    made = [judge(generator(asked[first : first + BATCH])) for first in range(0, samples, BATCH)]
    kinds["generated"] = joined(made), numbers(label for _, label in asked)

    real, restored = kinds["train"][0], kinds["train, reconstructed"][0]
    rows = []
    for name, (found, wanted) in kinds.items():
        guesses = found.probabilities.argmax(dim=1)
        counts, hoped = Counter(guesses.tolist()), Counter(wanted.tolist())
        own = name.startswith("train")
        seen = found.spectrograms.flatten(1), restored.spectrograms.flatten(1)
        apart = nearest_distances(*seen, same=own) / math.sqrt(seen[0].shape[1])  # dB, root mean square
        rows.append(
            Row(
                name=name,
                clips=len(wanted),
                accuracy=float((guesses == wanted).double().mean()),
                fid=frechet_distance(real.features, found.features),
                inception=inception_score(found.probabilities),
                modified_inception=modified_inception_score(found.probabilities),
                am=am_score(real.probabilities, found.probabilities),
                balance=balance(*([count[number] for number in range(len(labels))] for count in (counts, hoped))),
                nearest=float(nearest_distances(found.features, real.features, same=own).mean()),
                copies=float((apart < COPY).mean()),
            )
        )
        if len(wanted) <= FEATURES:
            notes.append(f"FID of {name} is too high: {len(wanted)} clips are not more than the {FEATURES} features.")
        if rows[-1].inception > len(labels):
            notes.append(
                f"IS of {name} says nothing: {len(wanted)} clips are too few for it to be at most {len(labels)}."
            )
    return LMEvaluation(tuple(rows), tuple(notes))


def reconstructed(codec: Codec, clips: Sequence[Tensor], *, num_codebooks: int | None) -> list[Tensor]:
    """What the codec makes of clips [1, time], each as long as it was."""
    lengths = [clip.shape[1] for clip in clips]
    audio = torch.stack([F.pad(clip, (0, max(1, *lengths) - clip.shape[1])) for clip in clips])
    codes = codec.encode(audio.to(codec.device), num_codebooks=num_codebooks)
    decoded = codec.decode(codes, length=audio.shape[2]).cpu()
    return [row[:, :length] for row, length in zip(decoded, lengths, strict=True)]


def joined(parts: Iterable[Judgement]) -> Judgement:
    """Several judgements as one."""
    return Judgement(*(torch.cat(values) for values in zip(*parts, strict=True)))
