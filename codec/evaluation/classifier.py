"""A small classifier of short recordings, for the evaluation of generated ones.

It is trained on the real recordings of a corpus's train split alone. `augment`, which shifts, stretches, filters and
masks their spectrograms, makes it generalize to unseen speakers.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import Any, BinaryIO, NamedTuple

import librosa
import safetensors.torch
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from codec.config import Config
from codec.data.clips import Clip, clip_audio, hashed
from codec.errors import ConfigError, UnknownModel
from codec.io.bounded_json import read_json
from codec.io.storage import atomic_output
from codec.models.base import SampleRate

SECONDS = 1.0  # of input from the start of a clip; shorter clips are padded with silence
RANGE = 80.0  # dB below a spectrogram's peak that count as silence
WINDOW, HOP = 0.025, 0.0125  # s
BANDS = 64  # a multiple of 16
WIDTHS = (32, 64, 96, 128)  # channels of the convolutions; each halves bands and frames
FEATURES = 64
BATCH = 64
STEPS = 1500
MAX_LR, WEIGHT_DECAY = 3e-3, 0.05
MAX_CLIPS = 2**14  # of a corpus that are used
METADATA = "codec classifier"
DIGEST_KEY = "learnt_from"  # in that metadata, as of release 0.1.0

Report = Callable[[int, int], None]
"""Called with (steps done, total steps)."""


class ClassifierConfig(Config):
    """Everything that the network depends on."""

    sample_rate: SampleRate
    labels: tuple[str, ...] = Field(min_length=2)


class Predictions(NamedTuple):
    """Output of a classifier for some clips, and its input."""

    probabilities: Tensor  # [clips, labels]
    features: Tensor  # [clips, FEATURES], of the penultimate layer
    spectrograms: Tensor  # dB [clips, BANDS, frames], 0 is RANGE below the clip's peak


class Classifier(nn.Module):
    """Strided convolutions on the log-mel spectrogram, one over all remaining bands, then pooling over time."""

    mel: Tensor
    hann: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        rate = config.sample_rate
        self.window = round(WINDOW * rate)
        self.hop = round(HOP * rate)
        self.bins = 2 ** math.ceil(math.log2(2 * self.window))  # fine enough for the lowest mel bands
        mel = librosa.filters.mel(sr=rate, n_fft=self.bins, n_mels=BANDS, fmin=40.0)
        self.register_buffer("mel", torch.from_numpy(mel).float(), persistent=False)  # [bands, bins]
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)

        layers: list[nn.Module] = []
        for inner, outer in zip((1, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inner, outer, 5 if inner == 1 else 3, 2, 2 if inner == 1 else 1, bias=False)]
            layers += [nn.BatchNorm2d(outer), nn.ReLU()]
        last = WIDTHS[-1]
        bands = BANDS // 2 ** len(WIDTHS)  # remaining
        self.convolutions = nn.Sequential(
            *layers, nn.Conv2d(last, last, (bands, 1), bias=False), nn.BatchNorm2d(last), nn.ReLU()
        )
        self.project = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * last, FEATURES), nn.ReLU())
        self.head = nn.Linear(FEATURES, len(config.labels))

    def forward(self, spectrograms: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of spectrograms [batch, bands, frames]."""
        x = self.convolutions(spectrograms[:, None] / (RANGE / 2) - 1)[:, :, 0]  # [batch, channels, frames]
        features = self.project(torch.cat([x.mean(dim=2), x.amax(dim=2)], dim=1))
        return features, self.head(features)

    def spectrograms(self, clips: Sequence[Tensor]) -> Tensor:
        """Spectrograms of clips [1, time] of any length, as in `Predictions`."""
        time = round(SECONDS * self.config.sample_rate)
        audio = torch.stack([F.pad(clip[0, :time].float(), (0, time - clip[0, :time].numel())) for clip in clips])
        spectra = torch.stft(
            audio, self.bins, self.hop, self.window, window=self.hann, pad_mode="constant", return_complex=True
        )
        power = self.mel @ spectra.abs().square()
        decibels = 10 * power.clamp(min=1e-20).log10()
        return above_floor(decibels)

    @torch.inference_mode()
    def predict(self, clips: Sequence[Tensor]) -> Predictions:
        """Classify clips [1, time] at the classifier's sample rate."""
        spectrograms = self.spectrograms(clips)
        features, logits = self(spectrograms)
        return Predictions(logits.double().softmax(dim=1), features, spectrograms)


def above_floor(decibels: Tensor) -> Tensor:
    """Levels [batch, bands, frames] above a floor RANGE dB below the peak of each item, 0 below the floor."""
    peak = decibels.amax(dim=(1, 2), keepdim=True).clamp(min=-60)  # below any recording, so that silence stays silent
    return (decibels - peak + RANGE).clamp(min=0)


def augment(spectrograms: Tensor, generator: torch.Generator) -> Tensor:
    """Imitate other speakers and rooms.

    Stretches and shifts spectrograms in time and frequency (vocal tract length perturbation, Jaitly and Hinton 2013),
    filters them, adds noise, and masks parts (SpecAugment, Park et al. 2019).
    """
    batch, bands, frames = spectrograms.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    def smooth_curve(size: float) -> Tensor:  # dB over the bands [batch, bands, 1]
        return F.interpolate(size * normal(1, 5), bands, mode="linear", align_corners=True).mT

    warp = torch.zeros(batch, 2, 3)  # from new to old positions, -1 to 1 in time and frequency
    warp[:, 0, 0] = uniform(-0.25, 0.25).exp()
    warp[:, 0, 2] = warp[:, 0, 0] - 1 + uniform(-0.3, 0.1)  # keeps the clip's start, up to 0.15 s
    warp[:, 1, 1] = uniform(-0.12, 0.12).exp()
    warp[:, 1, 2] = warp[:, 1, 1] - 1 + uniform(-0.08, 0.08)
    grid = F.affine_grid(warp, [batch, 1, bands, frames], align_corners=False)
    x = F.grid_sample(spectrograms[:, None], grid, align_corners=False)[:, 0]
    x = x + smooth_curve(4.0) * (x > 0)
    noise = uniform(-20, 30, 1, 1) + smooth_curve(6.0) + 4 * normal(bands, frames)
    x = above_floor(10 * (10 ** (x / 10) + 10 ** (noise / 10)).log10())
    for axis, size, max_width in ((1, bands, 12), (2, frames, 16)):
        width = uniform(0, max_width, 1, 1)
        first = uniform(0, 1, 1, 1) * (size - width)
        position = torch.arange(size).view([-1, 1] if axis == 1 else [1, -1])
        x = x.masked_fill((position >= first) & (position < first + width), 0)
    return x


# training


def train(
    clips: Sequence[Clip], *, sample_rate: int, seed: int = 0, steps: int = STEPS, report: Report | None = None
) -> Classifier:
    """Train a classifier on labeled clips; the same clips and seed give the same classifier.

    Raises:
        ConfigError: clips without labels, or all of one.
        InputNotFound, UnsupportedAudio: a clip cannot be read.
    """
    labels = labels_of(clips)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(ClassifierConfig(sample_rate=sample_rate, labels=labels))
        spectrograms = torch.cat([model.spectrograms(audio) for audio, _ in recordings(clips, sample_rate)])
        targets = torch.tensor([labels.index(str(clip.label)) for clip in clips])
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=MAX_LR, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, MAX_LR, total_steps=steps, pct_start=0.2)
        network: Any = model  # because not every torch has types for `to` with a memory format
        network.to(memory_format=torch.channels_last)
        for step in range(steps):
            rows = torch.randint(len(clips), (BATCH,), generator=generator)
            _, logits = model(augment(spectrograms[rows], generator))
            optimizer.zero_grad()
            F.cross_entropy(logits, targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if report:
                report(step + 1, steps)
        network.to(memory_format=torch.contiguous_format)
    return model.eval()


def labels_of(clips: Sequence[Clip]) -> tuple[str, ...]:
    """The labels of clips, sorted.

    Raises ConfigError if a clip has none, or if there are fewer than two.
    """
    without = [clip.id for clip in clips if clip.label is None]
    if without:
        raise ConfigError(
            f"{len(without)} of {len(clips)} clips have no label, the first is {without[0]}: "
            'write "label" into each line of the manifest'
        )
    labels = tuple(sorted({str(clip.label) for clip in clips}))
    if len(labels) < 2:
        raise ConfigError(f"all {len(clips)} clips have the label {labels[0]}: a classifier needs at least two labels")
    return labels


def recordings(clips: Sequence[Clip], sample_rate: int) -> Iterator[tuple[list[Tensor], Sequence[Clip]]]:
    """Read the first SECONDS of clips, each [1, time], batch by batch; yields audio and clips."""
    time = round(SECONDS * sample_rate)
    for first in range(0, len(clips), BATCH):
        batch = clips[first : first + BATCH]
        yield [torch.from_numpy(clip_audio(clip, rate=sample_rate, time=time)) for clip in batch], batch


def subset(clips: Sequence[Clip]) -> list[Clip]:
    """At most MAX_CLIPS of the clips, in their order, chosen by a hash of their ids."""
    chosen = {clip.id for clip in sorted(clips, key=lambda clip: hashed(clip.id))[:MAX_CLIPS]}
    return [clip for clip in clips if clip.id in chosen]


# files


def digest(clips: Sequence[Clip], *, sample_rate: int) -> str:
    """Hash of everything that a classifier depends on; files count by their ids and sizes."""
    hashed = hashlib.sha256(f"1 {sample_rate} {STEPS}\n".encode())
    for clip in clips:
        hashed.update(repr((clip.id, clip.start, clip.seconds, clip.label, clip.size())).encode())
    return hashed.hexdigest()


def save(file: BinaryIO, classifier: Classifier, *, trained_on: str) -> None:
    """Write a classifier as one safetensors file. `trained_on` is the `digest` of its recordings."""
    card = {"config": classifier.config.model_dump(mode="json"), DIGEST_KEY: trained_on}
    file.write(safetensors.torch.save(classifier.state_dict(), metadata={METADATA: json.dumps(card)}))


def load(path: Path, *, trained_on: str) -> Classifier:
    """Load a classifier that `save` wrote.

    Raises:
        UnknownModel: the file is not a classifier.
        ConfigError: it was trained on other recordings, perhaps on those held out here.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            card = read_json((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        model = Classifier(ClassifierConfig.from_data(card["config"]))
        model.load_state_dict(tensors)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise UnknownModel(
            f"{path} is not a classifier ({shorten(str(error), 200)}): remove it, or name another file"
        ) from error
    if card[DIGEST_KEY] != trained_on:
        raise ConfigError(
            f"{path} was trained on other recordings or at another sample rate: name a file that does not exist yet"
        )
    return model.eval()


def load_or_train(path: Path, clips: Sequence[Clip], *, sample_rate: int, report: Report | None = None) -> Classifier:
    """Load the classifier of these clips from its file, or train it and save it there.

    Raises as `load` and `train`, and StorageError before training if the file cannot be written.
    """
    trained_on = digest(clips, sample_rate=sample_rate)
    if path.is_file():
        return load(path, trained_on=trained_on)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path, force=True) as file:
        classifier = train(clips, sample_rate=sample_rate, steps=STEPS, report=report)
        save(file, classifier, trained_on=trained_on)
    return classifier
