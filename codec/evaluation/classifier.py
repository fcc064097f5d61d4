"""A small network that tells the classes of short recordings apart, to judge generated ones by.

It learns from the real recordings of a corpus's train split alone. What makes it know speakers it never heard is
`augment`, which moves, stretches, filters and covers their spectrograms.
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
from codec.io.storage import atomic_output
from codec.models.base import SampleRate

SECONDS = 1.0  # of a clip that are looked at, from its start; shorter ones are followed by silence
RANGE = 80.0  # dB below a spectrogram's peak that count; below that is silence
WINDOW, HOP = 0.025, 0.0125  # s
BANDS = 64  # a multiple of 16
WIDTHS = (32, 64, 96, 128)  # channels of the convolutions, each of which halves bands and frames
FEATURES = 64
BATCH = 64
STEPS = 1500
RATE, DECAY = 3e-3, 0.05  # of AdamW, at its highest
MOST_CLIPS = 2**14  # of a corpus that are learned from and compared with
METADATA = "codec classifier"

Report = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


class ClassifierConfig(Config):
    """What a classifier is; its network depends on nothing else."""

    sample_rate: SampleRate
    labels: tuple[str, ...] = Field(min_length=2)


class Judgement(NamedTuple):
    """What a classifier says of clips; `spectrograms` are what it sees of them."""

    probabilities: Tensor  # [clips, labels]
    features: Tensor  # [clips, FEATURES], of the last layer but one
    spectrograms: Tensor  # dB [clips, BANDS, frames], 0 is RANGE below the clip's peak


class Classifier(nn.Module):
    """Convolutions on the log-mel spectrogram, each halving bands and frames; then bands together, and time."""

    mel: Tensor
    hann: Tensor

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        rate = config.sample_rate
        self.window = round(WINDOW * rate)
        self.hop = round(HOP * rate)
        self.bins = 2 ** math.ceil(math.log2(2 * self.window))  # so many that the lowest bands have some too
        mel = librosa.filters.mel(sr=rate, n_fft=self.bins, n_mels=BANDS, fmin=40.0)
        self.register_buffer("mel", torch.from_numpy(mel).float(), persistent=False)  # [bands, bins]
        self.register_buffer("hann", torch.hann_window(self.window), persistent=False)

        layers: list[nn.Module] = []
        for inner, outer in zip((1, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inner, outer, 5 if inner == 1 else 3, 2, 2 if inner == 1 else 1, bias=False)]
            layers += [nn.BatchNorm2d(outer), nn.ReLU()]
        last = WIDTHS[-1]
        bands = BANDS // 2 ** len(WIDTHS)  # left after them
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
        """Of clips [1, time] of any length, as in `Judgement`."""
        time = round(SECONDS * self.config.sample_rate)
        audio = torch.stack([F.pad(clip[0, :time].float(), (0, time - clip[0, :time].numel())) for clip in clips])
        spectra = torch.stft(
            audio, self.bins, self.hop, self.window, window=self.hann, pad_mode="constant", return_complex=True
        )
        power = self.mel @ spectra.abs().square()
        decibels = 10 * power.clamp(min=1e-20).log10()
        return above_floor(decibels)

    @torch.inference_mode()
    def judge(self, clips: Sequence[Tensor]) -> Judgement:
        """Judge clips [1, time] at the classifier's rate."""
        spectrograms = self.spectrograms(clips)
        features, logits = self(spectrograms)
        return Judgement(logits.double().softmax(dim=1), features, spectrograms)


def above_floor(decibels: Tensor) -> Tensor:
    """Levels [batch, bands, frames] relative to RANGE dB below the loudest of each item, which is 0 at least."""
    peak = decibels.amax(dim=(1, 2), keepdim=True).clamp(min=-60)  # quieter than any recording: silence stays silent
    return (decibels - peak + RANGE).clamp(min=0)


def augment(spectrograms: Tensor, generator: torch.Generator) -> Tensor:
    """As others might have said it elsewhere: stretched and shifted in time and frequency (vocal tracts differ in
    length, Jaitly and Hinton 2013), filtered, in noise, and partly masked (SpecAugment, Park et al. 2019)."""
    batch, bands, frames = spectrograms.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, generator=generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    def curve(size: float) -> Tensor:  # dB over the bands [batch, bands, 1], a smooth one
        return F.interpolate(size * normal(1, 5), bands, mode="linear", align_corners=True).mT

    warp = torch.zeros(batch, 2, 3)  # where in the old, -1 to 1 in time and frequency, each new place lies
    warp[:, 0, 0] = uniform(-0.25, 0.25).exp()
    warp[:, 0, 2] = warp[:, 0, 0] - 1 + uniform(-0.3, 0.1)  # the clip's begin stays, but for up to 0.15 s
    warp[:, 1, 1] = uniform(-0.12, 0.12).exp()
    warp[:, 1, 2] = warp[:, 1, 1] - 1 + uniform(-0.08, 0.08)
    grid = F.affine_grid(warp, [batch, 1, bands, frames], align_corners=False)
    x = F.grid_sample(spectrograms[:, None], grid, align_corners=False)[:, 0]
    x = x + curve(4.0) * (x > 0)
    noise = uniform(-20, 30, 1, 1) + curve(6.0) + 4 * normal(bands, frames)
    x = above_floor(10 * (10 ** (x / 10) + 10 ** (noise / 10)).log10())
    for axis, places, most in ((1, bands, 12), (2, frames, 16)):
        width = uniform(0, most, 1, 1)
        first = uniform(0, 1, 1, 1) * (places - width)
        place = torch.arange(places).view([-1, 1] if axis == 1 else [1, -1])
        x = x.masked_fill((place >= first) & (place < first + width), 0)
    return x


# learning


def train(
    clips: Sequence[Clip], *, sample_rate: int, seed: int = 0, steps: int = STEPS, report: Report | None = None
) -> Classifier:
    """A classifier of labelled clips, the same whenever it learns from the same ones.

    Raises:
        ConfigError: clips without labels, or all of one.
        InputNotFound, UnsupportedAudio: a clip cannot be read.
    """
    labels = labels_of(clips)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Classifier(ClassifierConfig(sample_rate=sample_rate, labels=labels))
        spectrograms = torch.cat([model.spectrograms(audio) for audio, _ in recordings(clips, sample_rate)])
        numbers = torch.tensor([labels.index(str(clip.label)) for clip in clips])
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.2)
        network: Any = model  # whose `to` not every torch gives types for layouts
        network.to(memory_format=torch.channels_last)
        for step in range(steps):
            rows = torch.randint(len(clips), (BATCH,), generator=generator)
            _, logits = model(augment(spectrograms[rows], generator))
            optimizer.zero_grad()
            F.cross_entropy(logits, numbers[rows]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if report:
                report(step + 1, steps)
        network.to(memory_format=torch.contiguous_format)
    return model.eval()


def labels_of(clips: Sequence[Clip]) -> tuple[str, ...]:
    """The labels of clips, in order of name.

    Raises ConfigError where some have none, or there are fewer than two.
    """
    without = [clip.id for clip in clips if clip.label is None]
    if without:
        raise ConfigError(
            f"{len(without)} of {len(clips)} clips have no label, the first is {without[0]}: "
            'write "label" into each line of the manifest'
        )
    labels = tuple(sorted({str(clip.label) for clip in clips}))
    if len(labels) < 2:
        raise ConfigError(f"all {len(clips)} clips have the label {labels[0]}: a classifier needs two labels to tell")
    return labels


def recordings(clips: Sequence[Clip], sample_rate: int) -> Iterator[tuple[list[Tensor], Sequence[Clip]]]:
    """The first SECONDS of clips, each [1, time], some at a time."""
    time = round(SECONDS * sample_rate)
    for first in range(0, len(clips), BATCH):
        batch = clips[first : first + BATCH]
        yield [torch.from_numpy(clip_audio(clip, rate=sample_rate, time=time)) for clip in batch], batch


def some(clips: Sequence[Clip]) -> list[Clip]:
    """At most MOST_CLIPS of the clips, in their order; which ones depends on nothing but their names."""
    chosen = {clip.id for clip in sorted(clips, key=lambda clip: hashed(clip.id))[:MOST_CLIPS]}
    return [clip for clip in clips if clip.id in chosen]


# files


def digest(clips: Sequence[Clip], *, sample_rate: int) -> str:
    """A hash of everything that a classifier depends on; files are told apart by their place in the corpus and size."""
    found = hashlib.sha256(f"1 {sample_rate} {STEPS}\n".encode())
    for clip in clips:
        found.update(repr((clip.id, clip.start, clip.seconds, clip.label, clip.path.stat().st_size)).encode())
    return found.hexdigest()


def save(file: BinaryIO, classifier: Classifier, *, learnt_from: str) -> None:
    """Write a classifier as one safetensors file. `learnt_from` is the `digest` of its recordings."""
    card = {"config": classifier.config.model_dump(mode="json"), "learnt_from": learnt_from}
    file.write(safetensors.torch.save(classifier.state_dict(), metadata={METADATA: json.dumps(card)}))


def load(path: Path, *, learnt_from: str) -> Classifier:
    """Read what `save` wrote.

    Raises:
        UnknownModel: the file holds no classifier.
        ConfigError: it learned from other recordings, perhaps from those held out here.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})[METADATA])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        model = Classifier(ClassifierConfig.from_data(card["config"]))
        model.load_state_dict(tensors)
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        raise UnknownModel(
            f"{path} is no classifier ({shorten(str(error), 200)}): remove it, or name another file"
        ) from error
    if card["learnt_from"] != learnt_from:
        raise ConfigError(
            f"{path} learned from other recordings or at another rate: name a file that does not exist yet"
        )
    return model.eval()


def load_or_train(path: Path, clips: Sequence[Clip], *, sample_rate: int, report: Report | None = None) -> Classifier:
    """The classifier of these clips: from its file, or trained now and kept there.

    Raises as `load` and `train`, and StorageError, before the training, where the file cannot be written.
    """
    learnt_from = digest(clips, sample_rate=sample_rate)
    if path.is_file():
        return load(path, learnt_from=learnt_from)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_output(path, force=True) as file:
        classifier = train(clips, sample_rate=sample_rate, steps=STEPS, report=report)
        save(file, classifier, learnt_from=learnt_from)
    return classifier
