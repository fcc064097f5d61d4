"""Compare ways to model several codes per frame: patterns, models and sizes, and one large codebook against several.

    python tools/compare_lms.py MANIFEST --out FOLDER                          all of it: three tables and two plots
    python tools/compare_lms.py MANIFEST --out FOLDER --minutes 4 --jobs 2     minutes of training for each model
    python tools/compare_lms.py MANIFEST --out FOLDER --part sizes             one table

MANIFEST lists labeled clips with the splits train and valid. All language models have the same number of parameters,
except in the last table, and train for the same time on one thread, so the cost of a step is part of the comparison.
Bits are those of the valid split. "accuracy" is the share of generated clips to which the classifier of
`codec evaluate-lm`, trained on real recordings, assigns their label. FOLDER keeps results; the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from csv import DictReader
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codec import pretrained
from codec.checkpoint import read_card
from codec.config import load_toml
from codec.data.clips import clips
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.evaluation import classifier
from codec.evaluation import lm as lm_evaluation
from codec.evaluation import signal as metrics
from codec.generation import generate_clips
from codec.lm import build
from codec.lm.conditioning import CodebookSpec
from codec.models.base import Codec
from codec.training.codec import task as codec_loop
from codec.training.codec.recipe import Recipe
from codec.training.lm import task as lm_loop
from codec.training.lm.recipe import LMRecipe
from codec.training.logger import STEPS_PER_SECOND

RECIPES = Path(__file__).parents[1] / "recipes/digits"
PARAMETERS = 1.5e6  # of each language model, except where sizes are compared
SIZES = (0.4e6, 1.5e6, 5e6)
PROBE = 30  # steps to measure the speed of training
BATCH = 64  # clips to generate at a time
LONGEST = 3.0  # s
NEVER = 10**9  # a step beyond any run
TRANSFORMER = {"family": "transformer", "layers": 4, "heads": 4, "context": 1024, "dropout": 0.1}
PARALLEL = {"kind": "parallel"}
MODELS: dict[str, dict[str, Any]] = {
    "parallel": TRANSFORMER | {"pattern": PARALLEL},
    "delay": TRANSFORMER | {"pattern": {"kind": "delay"}},
    "partial delay": TRANSFORMER | {"pattern": {"kind": "delay", "delays": "0, then all 1"}},
    "flatten": TRANSFORMER | {"pattern": {"kind": "flatten"}},
    "depth": TRANSFORMER | {"pattern": PARALLEL, "depth": {"width": 96, "layers": 2, "heads": 4}},
    "PixelCNN": {"family": "pixelcnn", "pattern": PARALLEL, "layers": 10},
}
ONE_CODEBOOK = ("parallel", "PixelCNN")  # with one codebook, the others equal "parallel"
CODECS: dict[str, dict[str, Any]] = {  # of 12 bits per frame
    "VQ 1 × 4096": {"quantizer": "vector", "num_codebooks": 1, "codebook_size": 4096},
    "RVQ 2 × 64": {"num_codebooks": 2, "codebook_size": 64},
    "RVQ 4 × 8": {"num_codebooks": 4, "codebook_size": 8},
}


@dataclass(frozen=True)
class Job:
    """A language model to train and evaluate, on codes of the given codec or of one of `CODECS`."""

    model: str
    num_codebooks: int
    codec: str | None = None
    size: float = PARAMETERS

    @property
    def name(self) -> str:
        size = "" if self.size == PARAMETERS else f", {self.size / 1e6:g} M"
        return f"{self.codec or 'given codec'}, {self.model}, {self.num_codebooks} codebooks{size}"


class Comparison:
    """All parts of the comparison, with their results in one folder."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.parts = {
            "patterns": [
                Job(model, num_codebooks)
                for num_codebooks in arguments.num_codebooks
                for model in MODELS
                if num_codebooks > 1 or model in ONE_CODEBOOK
            ],
            "codecs": [
                Job(model, sizes["num_codebooks"], name)
                for name, sizes in CODECS.items()
                for model in (["parallel"] if sizes["num_codebooks"] == 1 else ["delay", "depth"])
            ],
            "sizes": [
                Job("delay" if num_codebooks > 1 else "parallel", num_codebooks, size=size)
                for num_codebooks in (min(arguments.num_codebooks), max(arguments.num_codebooks))
                for size in SIZES
            ],
        }
        self.parts = {name: jobs for name, jobs in self.parts.items() if name in arguments.part}
        self.jobs = [*dict.fromkeys(job for jobs in self.parts.values() for job in jobs)]
        self.codecs = ["given codec", *dict.fromkeys(job.codec for job in self.jobs if job.codec)]

    def folder(self, name: str) -> Path:
        """Folder of a job's results."""
        return self.out / name.replace(", ", "-").replace(" ", "-").replace("×", "x")

    def codec_file(self, name: str | None) -> str:
        return self.arguments.codec if name is None else str(self.folder(name) / "run" / "model.safetensors")

    def store(self, name: str | None) -> Path:
        return self.folder(name or "given codec") / "store"

    # one part

    def make(self, name: str) -> None:
        """Train and evaluate one codec or language model."""
        jobs = {job.name: job for job in self.jobs}
        if name in jobs:
            self.make_lm(jobs[name])
        else:
            self.make_codec(None if name == "given codec" else name)

    def make_codec(self, name: str | None) -> None:
        """Train a small codec, unless the codec is given, and tokenize all clips."""
        folder = self.folder(name or "given codec")
        if name is not None:
            overrides = [f"model.{key}={json.dumps(value)}" for key, value in CODECS[name].items()]
            recipe = load_toml(RECIPES / "codec.toml", Recipe, [*overrides, "data.num_workers=0"])
            recipe = recipe.model_copy(
                update={"discriminator": recipe.discriminator.model_copy(update={"start": None})}
            )
            for_time(codec_loop.train, recipe, self.arguments.manifest, folder, self.arguments.codec_minutes)
        tokenize(self.arguments.manifest, self.store(name), model=self.codec_file(name))
        codec = pretrained.load(self.codec_file(name), "cpu")
        held_out = [clip for clip in clips(self.arguments.manifest) if clip.split == "valid"]
        labels = [str(clip.label) for clip in held_out]
        rate = codec.config.sample_rate
        results: dict[int, dict[str, float]] = {}
        for num_codebooks in self.arguments.num_codebooks if name is None else [codec.config.num_codebooks]:
            distances, reconstructions = list[float](), list[Tensor]()
            for audio, _ in classifier.recordings(held_out, rate):
                decoded = lm_evaluation.reconstruct(codec, audio, num_codebooks=num_codebooks)
                pairs = zip(audio, decoded, strict=True)
                distances += [metrics.mel_dac(one[0].numpy(), other[0].numpy(), rate=rate) for one, other in pairs]
                reconstructions += decoded
            results[num_codebooks] = {
                "mel": float(np.mean(distances)),
                "accuracy": float(self.correct(reconstructions, labels).mean()),
            }
        folder.joinpath("result.json").write_text(json.dumps(results, indent=1))

    def make_lm(self, job: Job) -> None:
        """Train and evaluate a language model."""
        arguments, folder = self.arguments, self.folder(job.name)
        store = TokenStore(self.store(job.codec))
        codec = pretrained.load(self.codec_file(job.codec), "cpu")
        recipe = self.recipe(job, store, codec)
        for_time(
            lm_loop.train, recipe, self.store(job.codec), folder, arguments.minutes, codec=self.codec_file(job.codec)
        )
        model = pretrained.load_lm(folder / "run", "cpu")
        labels = model.source.classes["label"]

        def generated(first: int, count: int) -> tuple[list[str], list[Tensor]]:
            requested = [labels[number % len(labels)] for number in range(first, first + count)]
            conditioning = model.conditioning([{"label": label} for label in requested])
            seeds = range(first, first + count)
            return requested, generate_clips(model, codec, seeds, conditioning, max_seconds=LONGEST)

        correct = 0
        for first in range(0, arguments.samples, BATCH):
            requested, audio = generated(first, min(BATCH, arguments.samples - first))
            correct += int(self.correct(audio, requested).sum())
        began = perf_counter()
        samples = sum(clip.shape[1] for number in range(len(labels)) for clip in generated(number, 1)[1])
        speed = samples / codec.config.sample_rate / (perf_counter() - began)
        record = numbers(folder / "run")
        per_frame = model.pattern.per_frame
        result = {
            **asdict(job),
            "weights": weights_of(model),
            "trained": read_card(folder / "run" / "model.safetensors").training["step"],
            "bits": record["valid bit rate/bits per second"],
            "raw": codec.frame_spec.bitrate(job.num_codebooks) * 1000,
            "steps": per_frame * codec.frame_spec.frame_rate,
            "speed": speed,
            "accuracy": correct / arguments.samples,
        }
        folder.joinpath("result.json").write_text(json.dumps(result, indent=1))

    def recipe(self, job: Job, store: TokenStore, codec: Codec) -> LMRecipe:
        """The recipe of the digits, with the job's model at the width that gives its number of parameters."""
        data = load_toml(RECIPES / "lm.toml", LMRecipe).model_dump(mode="json", exclude_unset=True)
        sizes = dict(MODELS[job.model])
        if sizes["pattern"].get("delays"):
            sizes["pattern"] = {"kind": "delay", "delays": [0, *(1,) * (job.num_codebooks - 1)]}
        vectors = codec.quantizer.codebook_vectors()
        assert vectors is not None
        source = CodebookSpec(
            codec="",
            weights_hash="",
            num_codebooks=job.num_codebooks,
            codebook_size=vectors.shape[1],
            dim=vectors.shape[2],
            classes={kind: store.classes[kind] for kind in ("label", "speaker")},
        ).model_dump(mode="json")
        step = 2 * sizes.get("heads", 4)
        width = min(
            range(4 * step, 640, step),
            key=lambda width: abs(weights_of(build(sizes | {"width": width}, source)) - job.size),
        )
        data["model"] = sizes | {"width": width}
        data["data"]["num_codebooks"] = job.num_codebooks
        data["train"] |= {"samples": 0, "expected": None}
        return LMRecipe.from_data(data)

    # evaluation

    @cached_property
    def classifier(self) -> classifier.Classifier:
        """The classifier of labels, trained once on the real recordings."""
        corpus = [clip for clip in clips(self.arguments.manifest) if clip.split != "valid"]
        rate = pretrained.load(self.arguments.codec, "cpu").config.sample_rate
        return classifier.load_or_train(self.out / "classifier.safetensors", corpus, sample_rate=rate)

    def correct(self, audio: Sequence[Tensor], labels: Sequence[str]) -> NDArray[np.bool_]:
        """Whether the classifier assigns each clip its label."""
        batches = [audio[first : first + BATCH] for first in range(0, len(audio), BATCH)]
        predicted = torch.cat([self.classifier.predict(batch).probabilities.argmax(dim=1) for batch in batches])
        names = np.array(self.classifier.config.labels)
        same: NDArray[np.bool_] = names[predicted.numpy()] == np.array(labels)
        return same


def for_time(train: Callable[..., Path], recipe: Any, data: Path, folder: Path, minutes: float, **more: Any) -> None:
    """Train in `folder` for as many steps as take `minutes`, by the speed of the first few."""
    settings = {"log_every": PROBE // 3, "validate_every": NEVER, "save_every": NEVER}

    def with_steps(steps: int) -> Any:
        train = recipe.train.model_copy(update={**settings, "steps": steps})
        optimizer = recipe.optimizer.model_copy(update={"warmup": min(recipe.optimizer.warmup, max(1, steps // 10))})
        return recipe.model_copy(update={"train": train, "optimizer": optimizer})

    shutil.rmtree(folder / "probe", ignore_errors=True)
    shutil.rmtree(folder / "run", ignore_errors=True)
    train(with_steps(NEVER), data=data, out=folder / "probe", steps=PROBE, device="cpu", **more)
    steps = max(PROBE, round(60 * minutes * numbers(folder / "probe")[STEPS_PER_SECOND]))
    train(with_steps(steps), data=data, out=folder / "run", device="cpu", **more)
    shutil.rmtree(folder / "probe")


def numbers(run: Path) -> dict[str, float]:
    """The last value of everything that a run logged."""
    with (run / "metrics.csv").open() as file:
        return {row["name"]: float(row["value"]) for row in DictReader(file)}


def weights_of(model: torch.nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("manifest", type=Path, help="labeled clips, with the splits train and valid")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--codec", default="digits-8k", help="codec for the comparison of patterns (default digits-8k)")
    parts = ["patterns", "codecs", "sizes"]
    parser.add_argument("--part", choices=parts, nargs="+", default=parts, help="tables to make (default all)")
    parser.add_argument("--codebooks", dest="num_codebooks", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--minutes", type=float, default=4, help="training time of each language model (default 4)")
    parser.add_argument("--codec-minutes", type=float, default=6, help="training time of each small codec (default 6)")
    parser.add_argument("--samples", type=int, default=500, help="clips to generate with each model (default 500)")
    parser.add_argument("--jobs", type=int, default=1, help="models to train in parallel, one thread each (default 1)")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    comparison = Comparison(arguments)
    if arguments.only:
        comparison.make(arguments.only)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    _ = comparison.classifier  # trained here, before parallel processes need it
    for stage in (comparison.codecs, [job.name for job in comparison.jobs]):
        missing = [name for name in stage if not (comparison.folder(name) / "result.json").exists()]
        with ThreadPoolExecutor(arguments.jobs) as pool:
            list(pool.map(in_process, missing))
    results = {
        name: json.loads((comparison.folder(name) / "result.json").read_text())
        for name in (*comparison.codecs, *(job.name for job in comparison.jobs))
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1))
    for part, jobs in comparison.parts.items():
        rows = [results[job.name] for job in jobs]
        print(table_of_codecs(rows, results) if part == "codecs" else table_of_models(rows), "\n")
        if part == "patterns":
            plot(rows, arguments.out)


def in_process(name: str) -> None:
    """Run one part of the comparison in a process of its own, on one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run([sys.executable, *sys.argv, "--only", name], env=environment, check=True)


def table_of_models(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| codebooks | model | parameters | training steps | bit/s | of raw | steps per second | speed | accuracy |"
    ]
    lines += ["|---:|---|---:|---:|---:|---:|---:|---:|---:|"]
    for row in rows:
        lines.append(
            f"| {row['num_codebooks']} | {row['model']} | {row['weights'] / 1e6:.2f} M | {row['trained']} | "
            f"{row['bits']:.0f} | {row['bits'] / row['raw']:.0%} | {row['steps']:.0f} | "
            f"{row['speed']:.1f} × | {row['accuracy']:.1%} |"
        )
    return "\n".join(lines)


def table_of_codecs(rows: Sequence[dict[str, Any]], codecs: dict[str, Any]) -> str:
    """Markdown."""
    lines = ["| codec | mel | accuracy of reconstructions | model | bit/s | of raw | accuracy |"]
    lines += ["|---|---:|---:|---|---:|---:|---:|"]
    for row in rows:
        codec = codecs[row["codec"]][str(row["num_codebooks"])]
        lines.append(
            f"| {row['codec']} | {codec['mel']:.2f} | {codec['accuracy']:.1%} | {row['model']} | {row['bits']:.0f} | "
            f"{row['bits'] / row['raw']:.0%} | {row['accuracy']:.1%} |"
        )
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Draw `bits.svg`, bits per second by model, and `accuracy.svg`, accuracy against speed of generation."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "codec"  # the same numbers make the same file
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

    counts = sorted({row["num_codebooks"] for row in rows})
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, name in enumerate(MODELS):
        own = [row for row in rows if row["model"] == name]
        places = [counts.index(row["num_codebooks"]) + (number - (len(MODELS) - 1) / 2) * 0.14 for row in own]
        axes.bar(places, [1 - row["bits"] / row["raw"] for row in own], 0.12, label=name)
    axes.set_xticks(range(len(counts)), [f"{count} codebook{'s' * (count > 1)}" for count in counts])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(title="Bits per second that a model saves on held-out clips", ylabel="share of the raw bit rate")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(MODELS), fontsize="small", frameon=False)
    figure.savefig(out / "bits.svg", metadata={"Date": None})

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for number, name in enumerate(MODELS):
        own = [row for row in rows if row["model"] == name]
        speeds, accuracies = [row["speed"] for row in own], [row["accuracy"] for row in own]
        axes.plot(speeds, accuracies, label=name, color=f"C{number}", linewidth=3, alpha=0.5)
        axes.scatter(
            speeds, accuracies, [40 * (1 + counts.index(row["num_codebooks"])) for row in own], color=f"C{number}"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g} ×")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set(xlabel="× real time, one clip at a time on one core", ylabel="accuracy of generated digits")
    axes.set_title(f"Accuracy and speed of generation (larger dots: {', '.join(map(str, counts))} codebooks)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(MODELS), fontsize="small", frameon=False)
    figure.savefig(out / "accuracy.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
