"""A folder of any audio as random training crops.

Every file is decoded once, resampled and mixed to mono, into one memory-mapped file of 16-bit samples beside the run.
After that a crop is a slice: constant memory, no decoder in the loop, and step k's crops are a function of the seed and
k alone, so a resumed run sees what an uninterrupted one would.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from codec.audio import is_audio_path, read_audio
from codec.errors import CodecError, InputNotFound, UnsupportedAudio
from codec.training.recipe import DataConfig

Report = Callable[[str], None]


@dataclass(frozen=True)
class Entry:
    """One file in the store: its path below the data folder, and where its samples lie."""

    path: str
    start: int
    time: int

    @property
    def group(self) -> str:
        """The set a file belongs to: its first folder."""
        return self.path.split("/")[0] if "/" in self.path else ""


class AudioStore:
    """All audio of some files at one rate: entries, sorted by path, and their samples as memory-mapped int16 [time]."""

    def __init__(self, samples: np.ndarray, entries: list[Entry], sample_rate: int) -> None:
        self.samples = samples
        self.entries = entries
        self.sample_rate = sample_rate

    @classmethod
    def build(cls, root: Path, paths: list[Path], cache: Path, *, sample_rate: int, report: Report) -> AudioStore:
        """Open the store at `cache`, filling it first unless it holds just these files at this rate.

        Files that cannot be read are reported and left out.

        Raises:
            UnsupportedAudio: none of the files could be read.
        """
        index = cache.with_suffix(".json")
        wanted = [f"{path.relative_to(root).as_posix()} {path.stat().st_size}" for path in paths]
        key = hashlib.sha256("\n".join([str(sample_rate), *wanted]).encode()).hexdigest()
        if not (index.exists() and cache.exists() and json.loads(index.read_text())["key"] == key):
            cache.parent.mkdir(parents=True, exist_ok=True)
            entries: list[Entry] = []
            start = 0

            def decode(path: Path) -> np.ndarray | CodecError:
                try:
                    audio, _ = read_audio(path, rate=sample_rate, mono=True)
                except CodecError as error:
                    return error
                return np.clip(np.rint(audio[0] * 32767), -32768, 32767).astype("<i2")

            with cache.open("wb") as file, ThreadPoolExecutor() as pool:
                for first in range(0, len(paths), 256):  # bounded: map would read ahead without end
                    part = paths[first : first + 256]
                    for path, decoded in zip(part, pool.map(decode, part), strict=True):
                        if isinstance(decoded, CodecError):
                            report(f"left out: {decoded}")
                            continue
                        file.write(decoded.tobytes())
                        entries.append(Entry(path.relative_to(root).as_posix(), start, len(decoded)))
                        start += len(decoded)
            if not entries:
                raise UnsupportedAudio(f"none of the {len(paths)} audio files below {root} could be read")
            index.write_text(json.dumps({"key": key, "entries": [[e.path, e.start, e.time] for e in entries]}))
        entries = [Entry(*entry) for entry in json.loads(index.read_text())["entries"]]
        return cls(np.memmap(cache, dtype="<i2", mode="r"), entries, sample_rate)

    @property
    def seconds(self) -> float:
        """Length of all audio."""
        return len(self.samples) / self.sample_rate


def split(root: Path, held_out: float) -> tuple[list[Path], list[Path]]:
    """(train, valid) audio files below `root`: its folders of those names, or else a stable share by hash of the path.

    Raises:
        InputNotFound: there is no folder `root`, or no audio in it.
    """
    if not root.is_dir():
        raise InputNotFound(f"{root} is not a folder; --data takes a folder of audio files")
    paths = sorted(path for path in root.rglob("*") if path.is_file() and is_audio_path(path))
    if not paths:
        raise InputNotFound(f"{root} holds no audio files")
    if (root / "train").is_dir() and (root / "valid").is_dir():
        train = [path for path in paths if path.is_relative_to(root / "train")]
        return train, [path for path in paths if path.is_relative_to(root / "valid")]

    def held(path: Path) -> bool:
        digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
        return int.from_bytes(digest[:8]) < held_out * 2**64

    valid = [path for path in paths if held(path)] or paths[:1]
    return [path for path in paths if path not in set(valid)] or paths, valid


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
            start, end = spans.get(entry.group, (entry.start, entry.start))
            spans[entry.group] = (start, entry.start + entry.time)
        self.spans = [span for span in spans.values() if span[1] - span[0] > self.time]
        if not self.spans:
            raise UnsupportedAudio(
                f"no set holds more than one crop of {config.crop} s; set data.crop lower or add audio"
            )
        shares = np.array([end - start for start, end in self.spans], dtype=np.float64) ** config.balance
        self.shares = shares / shares.sum()

    def batch(self, step: int, size: int | None = None) -> Tensor:
        """Audio [batch, 1, time] of a step, with random gain."""
        rng = np.random.default_rng((self.seed, step))
        crops = []
        for choice in rng.choice(len(self.spans), size=size or self.config.batch, p=self.shares):
            start, end = self.spans[choice]
            first = int(rng.integers(start, end - self.time))
            crop = self.store.samples[first : first + self.time].astype(np.float32) / 32768
            gain = 10 ** (rng.uniform(*self.config.gain_db) / 20)
            crops.append(crop * min(gain, 1 / max(float(np.abs(crop).max()), 1e-4)))
        return torch.from_numpy(np.stack(crops)[:, None].astype(np.float32))

    def first_clips(self, count: int) -> Tensor:
        """`count` fixed clips [count, 1, time], one after another over the sets, without gain."""
        clips = []
        for turn in range(count):
            start, end = self.spans[turn % len(self.spans)]
            rng = np.random.default_rng((1, turn))
            first = int(rng.integers(start, end - self.time))
            clips.append(self.store.samples[first : first + self.time].astype(np.float32) / 32768)
        return torch.from_numpy(np.stack(clips)[:, None])
