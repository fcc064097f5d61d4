"""A corpus of made-up words, three of them, which speakers say at pitches and levels of their own."""

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from codec.data.clips import clips
from codec.evaluation import classifier
from codec.io.audio import Block, write_audio

RATE = 8000
WORDS = ("down", "hiss", "up")


def word(name: str, *, seed: int, seconds: float = 0.4) -> Block:
    """[1, time]: a tone that rises or falls an octave, or noise."""
    rng = np.random.default_rng(seed)
    time = np.linspace(0, 1, round(seconds * RATE))
    octave = {"up": time, "down": 1 - time, "hiss": time}[name]
    tone = np.sin(2 * np.pi * np.cumsum(rng.uniform(300, 700) * 2.0**octave) / RATE)
    sound = rng.standard_normal(len(time)) if name == "hiss" else tone
    shaped = rng.uniform(0.05, 0.3) * np.sin(np.pi * time) * sound + 1e-3 * rng.standard_normal(len(time))
    return shaped[None].astype(np.float32)


def write_words(folder: Path, *, train: int = 30, valid: int = 9) -> Path:
    """A manifest of a given number of recordings."""
    rows = []
    for number in range(train + valid):
        name = WORDS[number % len(WORDS)]
        path = folder / f"{number}.wav"
        write_audio(path, word(name, seed=number), RATE)
        rows.append({"path": path.name, "label": name, "split": "train" if number < train else "valid"})
    manifest = folder / "words.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


@cache
def knows_words() -> classifier.Classifier:
    """A classifier that learned from those of split train."""
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "BATCH", 16)
        corpus = [clip for clip in clips(write_words(Path(folder))) if clip.split == "train"]
        return classifier.train(corpus, sample_rate=RATE, steps=60)
