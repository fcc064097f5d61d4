"""Measure the speed of reading training crops in one worker, from synthetic FLAC files or a folder.

    python tools/bench_data.py                   an hour of FLAC at 24 kHz and one at 48 kHz
    python tools/bench_data.py --folder DIR      your own recordings

Speeds are seconds of audio per second. "in process" is reading in this process, by wall time and by CPU time (which
other load affects less), medians of batches; "worker" is the rate at which batches arrive from one worker process,
without its start.
"""

import argparse
import tempfile
from itertools import islice
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
import soundfile
import torch

from codec.training.codec.crops import Crops, load_batches, open_crops
from codec.training.codec.recipe import Recipe

RATES = (24_000, 48_000)  # Hz, of the synthetic corpora
FILE_MINUTES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training data from one worker.")
    parser.add_argument("--folder", type=Path, help="corpus to read (default: synthetic FLAC files)")
    parser.add_argument("--minutes", type=float, default=60, help="length of each synthetic corpus (default 60)")
    parser.add_argument("--crop", type=float, default=1.5, help="crop length in seconds (default 1.5)")
    parser.add_argument("--batch", type=int, default=16, help="batch size (default 16)")
    parser.add_argument("--steps", type=int, default=40, help="steps to time (default 40)")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    data = {"crop": arguments.crop, "batch_size": arguments.batch, "held_out": 0.1}
    recipe = Recipe.from_data({"name": "bench", "data": data})
    print(f"crops of {arguments.crop} s at {recipe.model.sample_rate} Hz, × real time")
    print(f"{'corpus':<24}{'hours':>8}{'index s':>9}{'ms/crop':>9}{'in process':>12}{'of CPU':>9}{'worker':>9}")
    with tempfile.TemporaryDirectory() as scratch:
        corpora = {f"FLAC {rate // 1000} kHz": rate for rate in RATES} if arguments.folder is None else {}
        for name, rate in corpora.items():
            folder = Path(scratch, str(rate))
            write_corpus(folder, rate, arguments.minutes)
            report(name, recipe, folder, Path(scratch, f"{rate}-run"), arguments.steps)
        if arguments.folder is not None:
            report(arguments.folder.name, recipe, arguments.folder, Path(scratch, "run"), arguments.steps)


def write_corpus(folder: Path, rate: int, minutes: float) -> None:
    """Write files of five minutes that compress about like speech: noise with four syllables per second."""
    folder.mkdir()
    time = np.arange(FILE_MINUTES * 60 * rate) / rate
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(len(time)))
    spectrum /= 1 + (np.fft.rfftfreq(len(time), 1 / rate) / 500) ** 2  # -12 dB per octave above 500 Hz
    noise = np.fft.irfft(spectrum, len(time))
    noise *= 0.1 / noise.std()
    speech = noise * np.clip(np.sin(2 * np.pi * 4 * time) + np.sin(2 * np.pi * 0.3 * time), 0, None)
    for number in range(max(2, round(minutes / FILE_MINUTES))):
        soundfile.write(folder / f"{number:03}.flac", np.roll(speech, number * rate), rate, subtype="PCM_16")


def report(name: str, recipe: Recipe, folder: Path, out: Path, steps: int) -> None:
    """Print the row of a corpus."""
    began = perf_counter()
    rate, seed = recipe.model.sample_rate, recipe.train.seed
    crops, _ = open_crops(folder, out / "index", recipe.data, sample_rate=rate, seed=seed, report=lambda line: None)
    index = perf_counter() - began
    crops.batch(steps)  # warm-up of soxr and libsndfile
    took = []
    for step in range(steps):
        at, cpu_at = perf_counter(), process_time()
        crops.batch(step)
        took.append((perf_counter() - at, process_time() - cpu_at))
    wall, cpu = np.median(
        took, axis=0
    ).tolist()  # of a batch, because other load and the first reading from disk take turns
    seconds = recipe.data.batch_size * recipe.data.crop
    each = 1000 * cpu / recipe.data.batch_size
    speeds = f"{seconds / wall:>12.0f}{seconds / cpu:>9.0f}{steps * seconds / from_worker(crops, steps):>9.0f}"
    print(f"{name:<24}{crops.index.seconds / 3600:>8.2f}{index:>9.2f}{each:>9.2f}{speeds}")


def from_worker(crops: Crops, steps: int) -> float:
    """Seconds until `steps` batches have arrived from a worker, after the batches that it prefetched."""
    ahead = 4
    arriving = load_batches(crops, 0, steps + ahead, num_workers=1)
    for _ in islice(arriving, ahead):
        pass
    began = perf_counter()
    for _ in arriving:
        pass
    return perf_counter() - began


if __name__ == "__main__":
    main()
