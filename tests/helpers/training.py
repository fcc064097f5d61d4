"""Training runs small enough for a test: a tiny model, short crops, and tones as audio."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor

from codec.checkpoint import save_model
from codec.data.tokenize import tokenize
from codec.io.audio import Block, write_audio
from codec.io.level import Level
from codec.training.codec.recipe import Recipe
from codec.training.lm.recipe import LMRecipe
from tests.tiny import CONFIG, tiny_model

TABLES: dict[str, dict[str, Any]] = {
    "model": CONFIG.model_dump(),
    "data": {"crop": 0.15, "batch_size": 3, "init_seconds": 2.0, "num_workers": 0},
    "optimizer": {"warmup": 2},
    "discriminator": {"windows": [256, 128], "channels": 2, "crop": 0.1},
    "train": {"steps": 6, "precision": "float32", "log_every": 1, "validate_every": 3, "save_every": 2},
}


def small_recipe(**tables: Mapping[str, Any]) -> Recipe:
    """8 kHz, crops of 0.15 s, no discriminators; given tables override single keys."""
    merged = {name: {**TABLES.get(name, {}), **tables.get(name, {})} for name in TABLES | tables}
    return Recipe.from_data({"name": "small", **merged})


def options(recipe: Recipe | LMRecipe) -> list[str]:
    """The keys of a recipe's tables that differ from the defaults, as command line options."""
    tables = recipe.model_dump(mode="json", exclude_unset=True)
    return [
        f"--set={table}.{key}={json.dumps(value)}"
        for table, values in tables.items()
        if isinstance(values, dict)
        for key, value in values.items()
        if value not in (None, [])  # absent, in TOML
    ]


def tones(seconds: float, rate: int, *, seed: int, channels: int = 1) -> Block:
    """Three steady tones and weak noise, [channels, time]."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    audio = rng.normal(0, 0.01, (channels, len(time)))
    for pitch in rng.uniform(100, 1500, 3):
        audio += 0.2 * np.sin(2 * np.pi * (pitch * time + rng.random()))
    return audio.astype(np.float32)


def batch(seed: int = 0, items: int = 3, time: int = 1200) -> Tensor:
    """Tones [items, 1, time] at 8 kHz."""
    return torch.from_numpy(np.stack([tones(time / 8000, 8000, seed=100 * seed + item) for item in range(items)]))


def write_recordings(folder: Path) -> Path:
    """Three recordings of different rates, formats and channels, 0.5 s each; one of them is held out."""
    for name, rate, channels in (("a.wav", 8000, 1), ("b/c.flac", 16000, 2), ("b/d.aiff", 11025, 1)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, tones(0.5, rate, seed=rate, channels=channels), rate)
    return folder


LM_TABLES: dict[str, dict[str, Any]] = {
    "model": {"family": "transformer", "width": 16, "layers": 1, "heads": 2, "context": 32},
    "data": {"frames": 16, "batch_size": 4, "conditions": ["label", "speaker"]},
    "optimizer": {"warmup": 2, "lr": 1e-2},
    "train": {"steps": 6, "precision": "float32", "log_every": 1, "validate_every": 3, "save_every": 2, "samples": 0},
}
LENGTHS = (5, 8, 12, 16, 17, 24, 40, 9, 11)
"""Frames of the clips of `write_store`; the last two are for validation, the last one by a speaker of its own."""


def small_lm_recipe(**tables: Mapping[str, Any]) -> LMRecipe:
    """A transformer conditioned on labels and speakers; given tables override single keys."""
    merged = {name: {**LM_TABLES.get(name, {}), **tables.get(name, {})} for name in LM_TABLES | tables}
    return LMRecipe.from_data({"kind": "lm", "name": "small", **merged})


def write_codec(folder: Path) -> Path:
    """The tiny codec, initialized from tones so that it uses many codes."""
    model = tiny_model()
    torch.manual_seed(0)
    model.init_from_audio(batch(1))
    save_model(folder / "tiny.safetensors", model, training={})
    return folder / "tiny.safetensors"


def write_store(folder: Path, codec: Path, *, level: Level | None = None, **columns: Sequence[str | None]) -> Path:
    """A token store of a clip for each of `LENGTHS`; `columns` override those of its manifest."""
    known: dict[str, Sequence[str | None]] = {
        "split": ["train"] * 7 + ["valid"] * 2,
        "label": ["yes", "no"] * 4 + ["yes"],
        "speaker": ["anna", "ben", "cleo"] * 2 + ["ben", "anna", "dora"],
        "transcript": [f"number {number}" for number in range(9)],
    }
    (folder / "audio").mkdir()
    rows = []
    for number, frames in enumerate(LENGTHS):
        name = f"audio/{number}.wav"
        write_audio(folder / name, tones((frames - 1) * 0.01, 8000, seed=number), 8000)  # the end adds one frame
        row = {key: values[number] for key, values in (known | columns).items()}
        rows.append({"path": name} | {key: value for key, value in row.items() if value is not None})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize(folder / "manifest.jsonl", folder / "store", model=codec, **(level.fields if level else {}))
    return folder / "store"


def read_events(folder: Path) -> EventAccumulator:
    """The TensorBoard events of a run."""
    accumulator = EventAccumulator(str(folder / "events"))
    accumulator.Reload()
    return accumulator


def read_metrics(folder: Path) -> list[list[str]]:
    """The rows [step, name, value] of a run's metrics.csv."""
    with (folder / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "name", "value"]
    return rows


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal bit for bit, through dicts and lists."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)
