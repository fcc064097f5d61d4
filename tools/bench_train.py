"""Speed of training steps: the generator alone and with discriminators, in several processes, beside DAC's own.

    python tools/bench_train.py                      steps/s, audio-seconds/s and the share of time waiting for data
    python tools/bench_train.py --processes 2        two processes of one thread each against one
    python tools/bench_train.py --against dac        beside descript-audio-codec's training step, on a GPU
    python tools/bench_train.py --set data.batch_size=4 --steps 5 --rounds 3 --json numbers.json

Every number comes from the real loop, on FLAC files made on the spot, in fresh processes. All variants take turns and
medians are shown, so that other load on the machine meets them alike; "cpu s" is the CPU time of a step in all training
processes together, which such load changes least.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from csv import DictReader
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codec import models
from codec.config import load_toml
from codec.errors import CodecError, MissingDependency, UsageError
from codec.io.audio import write_audio
from codec.training.codec.crops import Batch
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import CodecTask, build_task
from codec.training.codec.task import train as train_codec
from codec.training.logger import DATA_WAIT, STEPS_PER_SECOND

UNREACHED = 10**9  # steps


@dataclass(frozen=True)
class Variant:
    """A configuration to measure."""

    name: str
    adversarial: bool
    processes: int
    threads: int
    batch: int
    """Crops per step, of all processes together."""


@dataclass(frozen=True)
class Speed:
    """The result of a run."""

    steps: float
    """Per second."""
    waiting: float
    """Share of the time spent waiting for data."""
    cpu: float
    """CPU seconds per step, of all training processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training steps.")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes/general/codec.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="measure this many processes too",
    )
    parser.add_argument("--steps", type=int, default=20, help="measured steps of a run (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every variant (default 3)")
    parser.add_argument("--against", choices=["dac"], help="another codec's training step beside ours")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(**arguments.worker)
        return

    recipe = load_toml(arguments.recipe, Recipe, arguments.set)
    torch.set_num_threads(arguments.threads)
    if arguments.against == "dac":
        numbers = beside_dac(recipe, arguments.device, arguments.steps, arguments.rounds)
    else:
        numbers = measure_variants(recipe, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


# our training


def measure_variants(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the table of the variants; returns its numbers."""
    kinds = {"generator": False, "with discriminators": True}
    batch, many = recipe.data.batch_size, arguments.processes
    sizes = [(1, batch)] + ([(many, batch), (many, many * batch)] if many > 1 else [])
    variants = [
        Variant(kind, adversarial, n, arguments.threads, of) for kind, adversarial in kinds.items() for n, of in sizes
    ]
    speeds: dict[Variant, list[Speed]] = {variant: [] for variant in variants}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        make_recordings(data, recipe)
        for turn in range(arguments.rounds):
            for variant in variants:
                out = Path(folder, f"{turn} {variant.name} {variant.processes} {variant.batch}")
                speeds[variant].append(train(arguments, variant, data, out))
    print(f"{arguments.device}, crops of {recipe.data.crop:g} s, {arguments.threads} threads each")
    print(f"medians of {arguments.rounds} interleaved runs of {arguments.steps} steps")
    print(f"{'':22}{'processes':>10}{'crops':>7}{'steps/s':>10}{'audio s/s':>11}{'waiting':>9}{'cpu s':>9}")
    numbers = []
    for variant in variants:
        middle = Speed(*(statistics.median(column) for column in zip(*map(astuple, speeds[variant]), strict=True)))
        audio = middle.steps * variant.batch * recipe.data.crop
        print(
            f"{variant.name:22}{variant.processes:10}{variant.batch:7}{middle.steps:10.3f}{audio:11.1f}"
            f"{middle.waiting:9.1%}{middle.cpu:9.2f}"
        )
        numbers.append(asdict(variant) | asdict(middle) | {"audio": audio})
    for variant in variants:
        if variant.processes > 1:
            one = next(other for other in variants if (other.name, other.processes) == (variant.name, 1))
            more = variant.batch / one.batch
            pairs = list(zip(speeds[one], speeds[variant], strict=True))
            gain = statistics.median(more * after.steps / before.steps for before, after in pairs)
            bound = statistics.median(many * more * before.cpu / after.cpu for before, after in pairs)
            print(
                f"{variant.name}: {many} processes, {variant.batch // many} crops each, are {gain:.2f} × one of "
                f"{one.batch} by the clock, {bound:.2f} × by cpu time"
            )
            numbers.append(asdict(variant) | {"gain": gain, "gain_by_cpu": bound})
    return {"device": arguments.device, "threads": arguments.threads, "runs": numbers}


def astuple(speed: Speed) -> tuple[float, float, float]:
    """The fields in order."""
    return speed.steps, speed.waiting, speed.cpu


def make_recordings(folder: Path, recipe: Recipe, count: int = 40) -> None:
    """FLAC files of gliding tones and noise, long enough for crops from anywhere; two are held out."""
    rate = recipe.model.sample_rate
    time = np.arange(round(max(10, 4 * recipe.data.crop) * rate)) / rate
    for number in range(count):
        rng = np.random.default_rng(number)
        tone = np.sin(2 * np.pi * (rng.uniform(100, 800) * time + 20 * np.sin(time))) * np.clip(np.sin(3 * time), 0, 1)
        path = folder / ("valid" if number < 2 else "train") / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, (0.3 * tone + 0.02 * rng.standard_normal(len(time)))[None].astype(np.float32), rate)


def train(arguments: argparse.Namespace, variant: Variant, data: Path, out: Path) -> Speed:
    """Train in new processes."""
    steps = arguments.steps
    settings = {
        "discriminator.start": 0 if variant.adversarial else UNREACHED,
        "data.batch_size": variant.batch,
        "data.init_seconds": 30.0,
        "train.steps": UNREACHED,
        "train.log_every": steps,
        "train.validate_every": UNREACHED,
        "train.save_every": UNREACHED,
    }
    overrides = [*arguments.set, *(f"{key}={value}" for key, value in settings.items())]
    job = {
        "recipe": str(arguments.recipe),
        "overrides": overrides,
        "data": str(data),
        "out": str(out),
        "steps": steps,
        "device": arguments.device,
    }
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={variant.processes}"]
    command = [sys.executable, *(launcher if variant.processes > 1 else []), __file__, "--worker", json.dumps(job)]
    threads = str(variant.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    if arguments.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"{variant.name} in {variant.processes} processes failed: {done.stderr.strip()[-2000:]}")
    with (out / "metrics.csv").open() as file:
        last = {row["name"]: float(row["value"]) for row in DictReader(file) if int(row["step"]) == 2 * steps}
    cpu = sum(float(path.read_text()) for path in out.glob("cpu-*"))
    return Speed(last[STEPS_PER_SECOND], last[DATA_WAIT], cpu)


def work(recipe: str, overrides: list[str], data: str, out: str, steps: int, device: str) -> None:
    """The program of such a process: train, and write the CPU time of a step."""
    marks: list[float] = []
    step = CodecTask.step

    def timed_step(task: CodecTask, batch: Batch, number: int) -> dict[str, Tensor]:
        marks.append(process_time())
        return step(task, batch, number)

    CodecTask.step = timed_step  # type: ignore[method-assign, assignment]
    loaded = load_toml(recipe, Recipe, overrides)
    train_codec(loaded, data=Path(data), out=Path(out), steps=2 * steps, device=device)
    Path(out, f"cpu-{os.environ.get('RANK', 0)}").write_text(str((marks[-1] - marks[steps]) / (len(marks) - 1 - steps)))


# other codecs


def beside_dac(recipe: Recipe, device: str, steps: int, rounds: int) -> dict[str, Any]:
    """Compare our step with DAC's, both with discriminators, on one batch of noise; returns the numbers."""
    if device == "cpu" and "--device" not in sys.argv:
        raise UsageError("the comparison is meant for a GPU: pass --device cpu to run it on this machine")
    batch, time = recipe.data.batch_size, round(recipe.data.crop * recipe.model.sample_rate)
    audio = 0.1 * torch.randn(batch, 1, time, generator=torch.Generator().manual_seed(0)).to(device)
    systems = {"codec": our_step(recipe, audio), "dac": dac_step(recipe, audio)}
    took: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, (_, step) in systems.items():
            seconds = timed(step, steps if turn else 2)
            if turn:  # the first one warms up
                took[name].append(seconds)
    print(f"{device}, {batch} crops of {recipe.data.crop:g} s, with discriminators; medians of {rounds} rounds")
    print(f"{'':8}{'million parameters':>19}{'steps/s':>10}{'audio s/s':>11}")
    numbers: dict[str, Any] = {"device": device}
    for name, (weights, _) in systems.items():
        speed = 1 / statistics.median(took[name])
        print(f"{name:8}{weights / 1e6:17.2f}{speed:10.3f}{speed * batch * recipe.data.crop:11.1f}")
        numbers[name] = {"weights": weights, "steps": speed, "audio": speed * batch * recipe.data.crop}
    numbers["gain"] = statistics.median(theirs / ours for ours, theirs in zip(took["codec"], took["dac"], strict=True))
    print(f"ours is {numbers['gain']:.2f} × as fast")
    return numbers


def timed(step: Callable[[], object], count: int) -> float:
    """Seconds per step, until the device has finished."""
    began = perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (perf_counter() - began) / count


def our_step(recipe: Recipe, audio: Tensor) -> tuple[int, Callable[[], object]]:
    """The number of our parameters, and our step."""
    discriminator = recipe.discriminator.model_copy(update={"start": 0})
    task = build_task(recipe.model_copy(update={"discriminator": discriminator}), audio.device)
    model = task.train_state.model
    model.init_from_audio(audio)
    numbers = iter(range(UNREACHED))
    return parameters_of(model), lambda: task.step(Batch(audio, ()), next(numbers))


def dac_step(recipe: Recipe, audio: Tensor) -> tuple[int, Callable[[], object]]:
    """The number of DAC's parameters, and its step: its 24 kHz layout (rates 2, 4, 5, 8), as large as our model.

    Losses, loss weights, clipping and optimizers are those of the published training recipe of the 24 kHz model, in
    float32; the number of codebooks is ours.
    """
    try:
        dac, signals = import_module("dac"), import_module("audiotools").AudioSignal
    except ImportError as error:
        raise MissingDependency(f"DAC cannot be imported ({error}): pip install descript-audio-codec") from error
    rate, wanted = recipe.model.sample_rate, parameters_of(models.build(recipe.model.family, recipe.model.model_dump()))

    def build(width: int) -> Any:
        return dac.model.DAC(
            encoder_dim=width,
            encoder_rates=[2, 4, 5, 8],
            decoder_dim=24 * width,
            decoder_rates=[8, 5, 4, 2],
            n_codebooks=recipe.model.num_codebooks,
            codebook_size=recipe.model.codebook_size,
            quantizer_dropout=0.5,
            sample_rate=rate,
        )

    width = min(range(8, 97, 4), key=lambda width: abs(parameters_of(build(width)) - wanted))
    model = build(width).to(audio.device).train()
    discriminators = dac.model.Discriminator(sample_rate=rate).to(audio.device).train()
    optimizers = [
        torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.8, 0.99)) for network in (model, discriminators)
    ]
    windows = [32, 64, 128, 256, 512, 1024, 2048]
    none: Sequence[Any] = [None] * len(windows)
    mel = dac.nn.loss.MelSpectrogramLoss(
        n_mels=[5, 10, 20, 40, 80, 160, 320],
        window_lengths=windows,
        mel_fmin=[0.0] * len(windows),
        mel_fmax=none,
        pow=1.0,
        mag_weight=0.0,
    )
    stft, waveform = dac.nn.loss.MultiScaleSTFTLoss(), dac.nn.loss.L1Loss()  # it computes these two with weight 0
    adversarial_loss = dac.nn.loss.GANLoss(discriminators)

    def step() -> None:
        out = model(audio, rate)
        decoded = signals(out["audio"], rate)
        true = signals(audio[..., : decoded.audio_data.shape[-1]], rate)
        loss = adversarial_loss.discriminator_loss(decoded, true)
        descend(optimizers[1], loss, discriminators, 10.0)
        stft(decoded, true), waveform(decoded, true)
        adversarial, features = adversarial_loss.generator_loss(decoded, true)
        loss = 15 * mel(decoded, true) + 2 * features + adversarial
        loss = loss + 0.25 * out["vq/commitment_loss"] + out["vq/codebook_loss"]
        descend(optimizers[0], loss, model, 1e3)

    return parameters_of(model), step


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, module: torch.nn.Module, max_norm: float) -> None:
    """One optimizer step, the gradient norm clipped to `max_norm`."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm)
    optimizer.step()


def parameters_of(module: torch.nn.Module) -> int:
    """Stored numbers: parameters, and codebooks that are buffers."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


if __name__ == "__main__":
    try:
        main()
    except CodecError as error:
        sys.exit(f"bench_train: {error}")
