"""Evaluation of language models: generated clips of every label against real and reconstructed recordings."""

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
from codec.evaluation.classifier import BATCH, FEATURES, Classifier, Predictions, labels_of, recordings, subset
from codec.evaluation.generation import (
    am_score,
    balance,
    frechet_distance,
    inception_score,
    modified_inception_score,
    nearest_distances,
)
from codec.io.level import Level
from codec.models.base import Codec, without_peak_warnings

COPY_DISTANCE = 1.0  # dB RMS between spectrograms; two takes of a word by one speaker differ by more

Generator: TypeAlias = Callable[[Sequence[tuple[int, str]]], Sequence[Tensor]]
"""From pairs (seed, label) to the audio [1, time] of each, at the codec's sample rate."""


@dataclass(frozen=True)
class Row:
    """Measures of one set of clips.

    `accuracy` is the share that the classifier assigns to their label. `fid` and `nearest` (mean distance of features
    to the nearest neighbor) are relative to the real training clips. `copies` is the share whose spectrogram equals
    that of a reconstructed training clip; training clips are not compared with themselves. `balance` is the p of a
    test that predicted labels are as frequent as the true ones.
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
    """Result of `evaluate`; `notes` qualify single rows."""

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
        """The result as JSON."""
        return json.dumps(asdict(self), indent=1, allow_nan=False)


@dataclass(frozen=True)
class LabeledCorpus:
    """The labeled clips of a corpus by split, and their labels."""

    train: list[Clip]
    valid: list[Clip]
    labels: tuple[str, ...]


def labeled_corpus(corpus: Iterable[Clip], *, known: Sequence[str]) -> LabeledCorpus:
    """Divide a corpus by its splits and check its labels; clips without a split are for training.

    Raises:
        InputNotFound: there are no clips to train on.
        ConfigError: a clip has no label, one that is not `known` to the model, or one that only the split valid has.
    """
    by_split: dict[str | None, list[Clip]] = {}
    for clip in corpus:
        by_split.setdefault(clip.split or "train", []).append(clip)
    train, valid = (subset(by_split.get(split, [])) for split in ("train", "valid"))
    if not train:
        raise InputNotFound('the corpus has no clips of split "train": mark some so in its manifest')
    labels = labels_of(train)
    valid_labels = sorted({str(clip.label) for clip in valid})
    for where, found, owner, allowed in (
        ("the corpus", labels, "the model", known),
        ('the split "valid"', valid_labels, "the split train", labels),
    ):
        if unknown := sorted(set(found) - set(allowed)):
            raise ConfigError(
                f"{where} has labels {', '.join(unknown[:10])} that {owner} does not know; it knows "
                f"{', '.join(allowed[:20]) or 'none'}: remove those clips from the manifest"
            )
    return LabeledCorpus(train, valid, labels)


def evaluate(
    generator: Generator,
    codec: Codec,
    corpus: LabeledCorpus,
    classifier: Classifier,
    *,
    samples: int = 2048,
    seed: int = 0,
    num_codebooks: int | None = None,
    level: Level | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LMEvaluation:
    """Measure `samples` generated clips, equally many of every label, and the recordings of the corpus.

    Reconstructions use `num_codebooks` codebooks, those of the model. Recordings are normalized to `level` first, as
    `tokenize` does. Sample i has the seed `seed * samples + i`. `progress` is called with (clips done, total clips).

    Raises UsageError for fewer than 2 samples.
    """
    if samples < 2:
        raise UsageError(f"--samples {samples}: statistics need at least 2 samples, and hundreds to be meaningful")
    rate = codec.config.sample_rate
    labels = corpus.labels
    notes = []
    held_out = corpus.valid
    if len(held_out) < 2:
        notes.append(f'The split "valid" has {len(held_out)} clips: no row for held-out recordings.')
        held_out = []
    total = 2 * (len(corpus.train) + len(held_out)) + samples
    done = 0

    def classify(clips: Sequence[Tensor]) -> Predictions:
        nonlocal done
        done += len(clips)
        if progress:
            progress(done, total)
        return classifier.predict(clips)

    def indices(names: Iterable[str | None]) -> Tensor:
        return torch.tensor([labels.index(str(label)) for label in names])

    sets: dict[str, tuple[Predictions, Tensor]] = {}  # predictions, and the index of each clip's label
    for name, clips in (("train", corpus.train), ("held-out", held_out)):
        if clips:
            originals, reconstructions = [], []
            for audio, batch in recordings(clips, rate):
                gains = [float(clip_gain(clip, level, rate=rate)) for clip in batch]
                audio = [one * gain for one, gain in zip(audio, gains, strict=True)]
                originals.append(classify(audio))
                reconstructions.append(classify(reconstruct(codec, audio, num_codebooks=num_codebooks)))
            expected = indices(clip.label for clip in clips)
            sets[name] = concatenate(originals), expected
            sets[f"{name}, reconstructed"] = concatenate(reconstructions), expected
    requests = [(seed * samples + number, labels[number % len(labels)]) for number in range(samples)]
    generated = [classify(generator(requests[first : first + BATCH])) for first in range(0, samples, BATCH)]
    sets["generated"] = concatenate(generated), indices(label for _, label in requests)

    real, reconstructed = sets["train"][0], sets["train, reconstructed"][0]
    rows = []
    for name, (found, expected) in sets.items():
        predicted = found.probabilities.argmax(dim=1)
        counts, expected_counts = Counter(predicted.tolist()), Counter(expected.tolist())
        own = name.startswith("train")
        spectrograms = found.spectrograms.flatten(1), reconstructed.spectrograms.flatten(1)
        distances = nearest_distances(*spectrograms, same=own) / math.sqrt(spectrograms[0].shape[1])  # dB RMS
        rows.append(
            Row(
                name=name,
                clips=len(expected),
                accuracy=float((predicted == expected).double().mean()),
                fid=frechet_distance(real.features, found.features),
                inception=inception_score(found.probabilities),
                modified_inception=modified_inception_score(found.probabilities),
                am=am_score(real.probabilities, found.probabilities),
                balance=balance(
                    *([count[label] for label in range(len(labels))] for count in (counts, expected_counts))
                ),
                nearest=float(nearest_distances(found.features, real.features, same=own).mean()),
                copies=float((distances < COPY_DISTANCE).mean()),
            )
        )
        if len(expected) <= FEATURES:
            notes.append(f"FID of {name} is too high: {len(expected)} clips are not more than the {FEATURES} features.")
        if rows[-1].inception > len(labels):
            notes.append(
                f"IS of {name} is not meaningful: with {len(expected)} clips it exceeds the {len(labels)} labels."
            )
    return LMEvaluation(tuple(rows), tuple(notes))


def reconstruct(codec: Codec, clips: Sequence[Tensor], *, num_codebooks: int | None) -> list[Tensor]:
    """Encode and decode clips [1, time]; each keeps its length."""
    lengths = [clip.shape[1] for clip in clips]
    audio = torch.stack([F.pad(clip, (0, max(1, *lengths) - clip.shape[1])) for clip in clips])
    with without_peak_warnings():
        codes = codec.encode(audio.to(codec.device), num_codebooks=num_codebooks)
    decoded = codec.decode(codes, length=audio.shape[2]).cpu()
    return [row[:, :length] for row, length in zip(decoded, lengths, strict=True)]


def concatenate(parts: Iterable[Predictions]) -> Predictions:
    """Predictions of several batches as one."""
    return Predictions(*(torch.cat(values) for values in zip(*parts, strict=True)))
