"""A small corpus of noise, and what its token store should hold."""

from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from codec.checkpoint import load_model
from codec.io.audio import read_audio
from tests.tiny import CONFIG


def noise(path: Path, *, time: int = 4000, rate: int = 8000, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(time).normal(0, 0.1, (time, channels))
    soundfile.write(path, samples, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    return path


def expected(model_file: Path, path: Path) -> Tensor:
    audio, _ = read_audio(path, rate=CONFIG.sample_rate, mono=True)
    return load_model(model_file).encode(torch.from_numpy(audio)[None])[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def many(folder: Path, count: int) -> Path:
    for number in range(count):
        noise(folder / f"{number:02}.wav", time=8000 * 4 + number)
    (folder / "bad.wav").write_text("no audio")
    return folder
