"""A folder of any audio as random training crops.

Every file is decoded once, resampled and mixed to mono, into one memory-mapped file of 16-bit samples beside the run.
After that a crop is a slice: constant memory, no decoder in the loop, and step k's crops are a function of the seed and
k alone, so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from codec.audio import atomic_output, is_audio_path, read_audio
from codec.errors import CodecError, ConfigError, InputNotFound, UnsupportedAudio
from codec.training.recipe import DataConfig, Recipe

Report = Callable[[str], None]

SPLITS = ("train", "valid")  # folders of these names, where data has them, are what they say


@dataclass(frozen=True)
class Entry:
    """One file in the store: its path below the data folder, and where its samples lie."""

    path: str
    start: int
    time: int

    @property
    def group(self) -> str:
        """The set the file belongs to."""
        return set_of(self.path)


def set_of(path: str) -> str:
    """The set of a file by its path below the data folder: the first folder, or the next where that is a split."""
    folders = path.split("/")[:-1]
    if folders and folders[0] in SPLITS:
        folders = folders[1:]
    return folders[0] if folders else ""


class AudioStore:
    """All audio of some files at one rate: entries, set by set, and their samples as memory-mapped int16 [time]."""

    def __init__(self, samples: np.ndarray, entries: list[Entry], sample_rate: int, name: str) -> None:
        self.samples = samples
        self.entries = entries
        self.sample_rate = sample_rate
        self.name = name

    @classmethod
    def build(
        cls, root: Path, paths: list[Path], cache: Path, *, sample_rate: int, report: Report, resumed: bool = False
    ) -> AudioStore:
        """Open the store at `cache`, filling it first unless it holds just these files at this rate.

        Files are told apart by path and size. Those that cannot be read are reported and left out.

        Raises:
            UnsupportedAudio: none of the files could be read.
            ConfigError: for a resumed training, the store was made of other files.
            StorageError: the store cannot be written.
        """
        paths = sorted(paths, key=lambda path: set_of(path.relative_to(root).as_posix()))  # loose files lie between
        index = cache.with_suffix(".json")
        wanted = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths]
        key = hashlib.sha256("\n".join([str(sample_rate), *wanted]).encode()).hexdigest()
        known = json.loads(index.read_text())["key"] if index.exists() else None
        if resumed and known not in (key, None):
            raise ConfigError(
                f"the {cache.stem} audio below {root} is not what this training began with: "
                "give it the same files, or begin anew in another --out"
            )
        if known != key or not cache.exists():
            index.unlink(missing_ok=True)  # an index never stands beside samples that are not its own
            entries = fill(cache, root, paths, sample_rate=sample_rate, report=report)
            with atomic_output(index, force=True) as file:
                content = {"key": key, "entries": [[entry.path, entry.start, entry.time] for entry in entries]}
                file.write(json.dumps(content).encode())
        entries = [Entry(*entry) for entry in json.loads(index.read_text())["entries"]]
        return cls(np.memmap(cache, dtype="<i2", mode="r"), entries, sample_rate, cache.stem)

    @property
    def seconds(self) -> float:
        """Length of all audio."""
        return len(self.samples) / self.sample_rate


def fill(cache: Path, root: Path, paths: list[Path], *, sample_rate: int, report: Report) -> list[Entry]:
    """Write the samples of all files that can be read to `cache`, one after another; where each lies."""

    def decode(path: Path) -> np.ndarray | CodecError:
        try:
            audio, _ = read_audio(path, rate=sample_rate, mono=True)
        except CodecError as error:
            return error
        samples: np.ndarray = np.clip(np.rint(audio[0] * 32767), -32768, 32767).astype("<i2")
        return samples

    entries: list[Entry] = []
    start = 0
    with atomic_output(cache, force=True) as file, ThreadPoolExecutor() as pool:
        for first in range(0, len(paths), 32):  # bounded: map would read ahead without end
            part = paths[first : first + 32]
            for path, decoded in zip(part, pool.map(decode, part), strict=True):
                if isinstance(decoded, CodecError):
                    report(f"left out: {decoded}")
                    continue
                file.write(decoded.tobytes())
                entries.append(Entry(path.relative_to(root).as_posix(), start, len(decoded)))
                start += len(decoded)
        if not entries:
            raise UnsupportedAudio(
                f"none of the {len(paths)} audio files below {root} could be read: add some that can"
            )
    return entries


def split(root: Path, held_out: float) -> tuple[list[Path], list[Path]]:
    """(train, valid) audio files below `root`: its folders of those names, or else a stable share by hash of the path.

    Raises:
        InputNotFound: there is no folder `root`, or no audio in it or in one of those two.
    """
    if not root.is_dir():
        raise InputNotFound(f"{root} is not a folder; --data takes a folder of audio files")
    paths = sorted(path for path in root.rglob("*") if path.is_file() and is_audio_path(path))
    if not paths:
        raise InputNotFound(f"{root} holds no audio files: --data takes a folder that does")
    folders = [root / name for name in SPLITS]
    if all(folder.is_dir() for folder in folders):
        train, valid = ([path for path in paths if path.is_relative_to(folder)] for folder in folders)
        for folder, found in zip(folders, (train, valid), strict=True):
            if not found:
                raise InputNotFound(f"{folder} holds no audio files: fill it, or remove it to have a share held out")
        return train, valid

    def held(path: Path) -> bool:
        digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
        return int.from_bytes(digest[:8]) < held_out * 2**64

    valid = [path for path in paths if held(path)] or paths[:1]
    kept = set(valid)
    return [path for path in paths if path not in kept] or paths, valid


class Batch(NamedTuple):
    """Audio [rows, 1, time] of a step, and (name, reason) of files that could not be read for it."""

    audio: Tensor
    bad: tuple[tuple[str, str], ...]


class Crops:
    """Random crops of a store: `batch(step)` is a function of the seed and the step.

    A crop lies anywhere within its set, so it may run from one file into the next: nothing is lost to padding, and
    files shorter than a crop are used whole.
    """

    def __init__(self, store: AudioStore, config: DataConfig, *, seed: int) -> None:
        self.store = store
        self.config = config
        self.seed = seed
        self.time = round(config.crop * store.sample_rate)
        spans: dict[str, tuple[int, int]] = {}
        for entry in store.entries:
            start, _ = spans.get(entry.group, (entry.start, 0))
            spans[entry.group] = (start, entry.start + entry.time)
        self.spans = [span for span in spans.values() if span[1] - span[0] > self.time]
        if not self.spans:
            longest = max(end - start for start, end in spans.values()) / store.sample_rate
            raise UnsupportedAudio(
                f"no set of the {store.name} audio is longer than a crop of {config.crop} s (the longest has "
                f"{longest:.2f} s): set data.crop lower or add audio"
            )
        shares = np.array([end - start for start, end in self.spans], dtype=np.float64) ** config.balance
        self.shares = shares / shares.sum()

    def batch(self, step: int, first: int = 0, last: int | None = None) -> Batch:
        """Rows `first` to `last` of a step's batch, with random gain."""
        crops = []
        for row in range(first, self.config.batch if last is None else last):
            rng = np.random.default_rng((self.seed, step, row))
            crop = self.crop(rng, int(rng.choice(len(self.spans), p=self.shares)))
            gain = 10 ** (rng.uniform(*self.config.gain_db) / 20)
            crops.append(crop * min(gain, 1 / max(float(np.abs(crop).max()), 1e-4)))
        return Batch(torch.from_numpy(np.stack(crops)[:, None].astype(np.float32)), ())

    def fit_audio(self, seconds: float, first: int = 0, last: int | None = None) -> Tensor:
        """Crops `first` to `last` of as many as make up `seconds`."""
        return self.batch(-1 % 2**32, first, math.ceil(seconds / self.config.crop) if last is None else last).audio

    def first_clips(self, count: int) -> Tensor:
        """`count` fixed clips [count, 1, time], one after another over the sets, without gain."""
        turns = range(count)
        clips = [self.crop(np.random.default_rng((1, turn)), turn % len(self.spans)) for turn in turns]
        return torch.from_numpy(np.stack(clips)[:, None])

    def crop(self, rng: np.random.Generator, choice: int) -> np.ndarray:
        """A crop [time] from anywhere within one set."""
        start, end = self.spans[choice]
        first = int(rng.integers(start, end - self.time))
        samples: np.ndarray = self.store.samples[first : first + self.time].astype(np.float32) / 32768
        return samples


def material(recipe: Recipe, data: Path, out: Path, *, report: Report) -> tuple[Crops, Crops]:
    """Crops of the training audio and of the validation audio, whose stores are kept in `out`."""
    train, valid = (
        AudioStore.build(
            data,
            paths,
            out / f"{name}.i16",
            sample_rate=recipe.model.sample_rate,
            report=report,
            resumed=(out / "state.pt").exists(),
        )
        for name, paths in zip(SPLITS, split(data, recipe.data.held_out), strict=True)
    )
    report(f"train on {train.seconds / 3600:.2f} h, validate on {valid.seconds / 60:.1f} min")
    return Crops(train, recipe.data, seed=recipe.train.seed), Crops(valid, recipe.data, seed=0)


def batches(
    crops: Crops, first_step: int, last_step: int, *, rows: tuple[int, int] | None = None, workers: int
) -> Iterator[tuple[int, Batch]]:
    """(step, its batch) from one step to before another, one batch read ahead."""
    rows = rows or (0, crops.config.batch)
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(crops.batch, first_step, *rows)
        for step in range(first_step, last_step):
            batch = ahead.result()
            ahead = pool.submit(crops.batch, step + 1, *rows)
            yield step, batch
