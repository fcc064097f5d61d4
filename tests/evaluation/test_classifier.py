"""Classifier: its input, its training, and its file."""

import dataclasses
from pathlib import Path

import librosa
import numpy as np
import pytest
import torch
from torch import Tensor

from codec.data.clips import Clip, clips
from codec.errors import ConfigError, StorageError, UnknownModel
from codec.evaluation import classifier
from codec.evaluation.classifier import (
    BANDS,
    RANGE,
    Classifier,
    ClassifierConfig,
    augment,
    digest,
    labels_of,
    load,
    load_or_train,
    save,
    subset,
    train,
)
from tests.helpers.spoken_words import RATE, WORDS, knows_words, word, write_words


@pytest.fixture(autouse=True, scope="module")
def small() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    return list(clips(write_words(tmp_path_factory.mktemp("words"), valid=0)))


def said(*seeds: int) -> tuple[list[Tensor], list[int]]:
    """Recordings that are not in the corpus, and the indices of their labels."""
    names = [WORDS[seed % len(WORDS)] for seed in seeds]
    return [torch.from_numpy(word(name, seed=1000 + seed)) for name, seed in zip(names, seeds, strict=True)], [
        WORDS.index(name) for name in names
    ]


def untrained(rate: int = RATE) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(ClassifierConfig(sample_rate=rate, labels=WORDS)).eval()


@pytest.mark.parametrize("rate", [8000, 22_050, 48_000])
def test_spectrograms_equal_their_definition(rate: int) -> None:
    model = untrained(rate)
    audio = 0.1 * torch.randn(1, rate, generator=torch.Generator().manual_seed(0))
    padded = np.pad(audio[0].numpy().astype(float), model.bins // 2)
    hann = np.zeros(model.bins)  # periodic, in the middle
    first = (model.bins - model.window) // 2
    hann[first : first + model.window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(model.window) / model.window)
    starts = range(0, rate + 1, model.hop)
    power = np.array([np.abs(np.fft.rfft(hann * padded[at : at + model.bins])) ** 2 for at in starts]).T
    bands = 10 * np.log10(librosa.filters.mel(sr=rate, n_fft=model.bins, n_mels=BANDS, fmin=40) @ power)
    expected = np.maximum(bands - bands.max() + RANGE, 0)
    assert model.spectrograms([audio])[0].numpy() == pytest.approx(expected, abs=0.01)
    assert (model.mel.sum(dim=1) > 0).all()  # every band has some bins


def test_short_clips_are_padded_and_long_ones_cut() -> None:
    model = untrained()
    (clip,), _ = said(0)
    short, long, padded = model.spectrograms(
        [clip, torch.cat([clip, torch.zeros(1, RATE)], dim=1), torch.nn.functional.pad(clip, (0, 10))]
    )
    assert torch.equal(short, long)
    assert torch.equal(short, padded)
    assert not short[:, clip.shape[1] // model.hop + 2 :].any()
    assert torch.isfinite(model.predict([torch.zeros(1, 0), torch.zeros(1, 5)]).features).all()
    assert not model.spectrograms([torch.zeros(1, 0)]).any()


def test_level_is_ignored() -> None:
    model = untrained()
    (clip,), _ = said(1)
    loud, soft = model.spectrograms([clip, 0.1 * clip])
    assert loud.numpy() == pytest.approx(soft.numpy(), abs=1e-3)


def test_predictions_do_not_depend_on_the_batch() -> None:
    model = untrained()
    audio, _ = said(0, 1, 2)
    together = model.predict(audio)
    alone = [model.predict([clip]) for clip in audio]
    assert together.probabilities.sum(dim=1).numpy() == pytest.approx(1)
    for number, one in enumerate(alone):
        assert one.features[0].numpy() == pytest.approx(together.features[number].numpy(), abs=1e-5)


def test_augmentation_keeps_shape_and_range() -> None:
    audio, _ = said(*range(8))
    plain = untrained().spectrograms(audio)
    one, same, other = (augment(plain, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert (one - other).abs().mean() > 3
    assert one.shape == plain.shape
    assert one.min() == 0
    assert one.max() <= RANGE + 1e-3


def test_augmentation_shifts_a_sound_slightly() -> None:
    spot = torch.zeros(200, BANDS, 80)
    spot[:, 30:33, 38:41] = RANGE
    moved = augment(spot, torch.Generator().manual_seed(0)).flatten(1).argmax(dim=1)
    bands, frames = moved // 80, moved % 80
    near = ((bands - 31).abs() < 10) & ((frames - 39).abs() < 25)
    assert near.float().mean() > 0.6  # some are masked
    assert len(set(moved[near].tolist())) > 50


@pytest.mark.slow
def test_training_on_few_recordings_generalizes() -> None:
    trained = knows_words()
    audio, numbers = said(*range(30))
    guesses = trained.predict(audio).probabilities.argmax(dim=1)
    assert (guesses == torch.tensor(numbers)).float().mean() > 0.9


@pytest.mark.slow
def test_training_is_deterministic(corpus: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "BATCH", 4)
    done: list[tuple[int, int]] = []
    torch.manual_seed(1)
    one = train(corpus, sample_rate=RATE, steps=2, report=lambda *numbers: done.append(numbers))
    torch.manual_seed(2)
    same, other = train(corpus, sample_rate=RATE, steps=2), train(corpus, sample_rate=RATE, steps=2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.head.weight, other.head.weight)
    assert done == [(1, 2), (2, 2)]
    assert not one.training


def test_files_are_complete(tmp_path: Path) -> None:
    trained = untrained()
    with (tmp_path / "classifier.safetensors").open("wb") as file:
        save(file, trained, trained_on="abc")
    restored = load(tmp_path / "classifier.safetensors", trained_on="abc")
    audio, _ = said(0, 1)
    for one, other in zip(trained.predict(audio), restored.predict(audio), strict=True):
        assert torch.equal(one, other)
    assert restored.config == trained.config
    with pytest.raises(ConfigError, match="other recordings"):
        load(tmp_path / "classifier.safetensors", trained_on="abd")


@pytest.mark.parametrize("content", [b"", b"no model", None])
def test_other_files_raise(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    if content is None:
        from safetensors.torch import save_file

        save_file({"weight": torch.ones(2)}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(UnknownModel, match="is not a classifier"):
        load(path, trained_on="")


@pytest.mark.slow
def test_classifiers_are_trained_once(corpus: list[Clip], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "BATCH", 4)
    monkeypatch.setattr(classifier, "STEPS", 1)
    done: list[int] = []
    path = tmp_path / "runs" / "classifier.safetensors"
    for _ in range(2):
        load_or_train(path, corpus, sample_rate=RATE, report=lambda step, _: done.append(step))
    assert done == [1]
    with pytest.raises(ConfigError, match="other recordings"):
        load_or_train(path, corpus[1:], sample_rate=RATE)
    with pytest.raises(StorageError, match="is a folder: name a file in it"):
        load_or_train(tmp_path, corpus, sample_rate=RATE, report=lambda step, _: done.append(step))
    assert done == [1]  # the error comes before training


def test_digest_depends_on_the_training_data(corpus: list[Clip]) -> None:
    relabeled = [dataclasses.replace(corpus[0], label="up"), *corpus[1:]]
    digests = {digest(each, sample_rate=RATE) for each in (corpus, list(corpus), corpus[1:], relabeled)}
    assert len(digests | {digest(corpus, sample_rate=2 * RATE)}) == 4


def test_labels(corpus: list[Clip]) -> None:
    assert labels_of(corpus) == WORDS
    with pytest.raises(ConfigError, match=r"1 of 30 clips have no label, the first is 0\.wav"):
        labels_of([dataclasses.replace(corpus[0], label=None), *corpus[1:]])
    with pytest.raises(ConfigError, match="all 1 clips have the label down"):
        labels_of(corpus[:1])


def test_subset_of_many_clips(corpus: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    assert subset(corpus) == corpus
    monkeypatch.setattr(classifier, "MAX_CLIPS", 10)
    chosen = subset(corpus)
    assert len(chosen) == 10
    assert [clip for clip in corpus if clip in chosen] == chosen
    assert set(subset(corpus[3:])) >= set(chosen) - set(corpus[:3])
