"""Speed of training steps: the generator alone and with discriminators, in several processes, beside DAC's own.

    python tools/bench_train.py                      steps/s, audio-seconds/s and the share of time waiting for data
    python tools/bench_train.py --processes 2        two processes of one thread each against one
    python tools/bench_train.py --against dac        beside descript-audio-codec's training step, on a GPU
    python tools/bench_train.py --set data.batch_size=4 --steps 5 --rounds 3 --json numbers.json

Every number comes from the real loop, on FLAC files made on the spot, in fresh processes. All variants take turns and
medians are shown, so that other load on the machine meets them alike; "cpu s" is the processor time of a step in all
training processes together, which such load changes least.
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

from codec.config import load_toml
from codec.errors import CodecError, MissingDependency, UsageError
from codec.io.audio import write_audio
from codec.models.causal import CausalCodec
from codec.training.codec import task as codec_loop
from codec.training.codec.losses import SpectralLoss
from codec.training.codec.recipe import Recipe
from codec.training.logger import SPEED, WAITING

NEVER = 10**9  # a step that is not reached


@dataclass(frozen=True)
class Variant:
    """A way to train."""

    name: str
    judged: bool
    processes: int
    threads: int
    batch: int
    """Crops of a step, of all processes together."""


@dataclass(frozen=True)
class Speed:
    """What came of it."""

    steps: float
    """A second."""
    waiting: float
    """Share of the time."""
    cpu: float
    """Seconds a step, of all training processes."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training steps.")
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "recipes/general/codec.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of each process (default 1)")
    parser.add_argument("--processes", type=int, default=1, help="also as many, on one batch and on one each")
    parser.add_argument("--steps", type=int, default=20, help="measured in every run, after as many more (default 20)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every variant (default 3)")
    parser.add_argument("--against", choices=["dac"], help="another codec's training step beside ours")
    parser.add_argument("--json", type=Path, help="write the numbers there too")
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
        numbers = ourselves(recipe, arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=2) + "\n")


# Ourselves


def ourselves(recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the table of our own variants; its numbers."""
    kinds = {"generator": False, "with discriminators": True}
    batch, many = recipe.data.batch_size, arguments.processes
    sizes = [(1, batch)] + ([(many, batch), (many, many * batch)] if many > 1 else [])
    variants = [Variant(kind, judged, n, arguments.threads, of) for kind, judged in kinds.items() for n, of in sizes]
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
    """Its numbers in order."""
    return speed.steps, speed.waiting, speed.cpu


def make_recordings(folder: Path, recipe: Recipe, count: int = 40) -> None:
    """FLAC files of gliding tones and noise, long enough for crops from anywhere; one in each half is held out."""
    rate = recipe.model.sample_rate
    time = np.arange(round(max(10, 4 * recipe.data.crop) * rate)) / rate
    for number in range(count):
        rng = np.random.default_rng(number)
        tone = np.sin(2 * np.pi * (rng.uniform(100, 800) * time + 20 * np.sin(time))) * np.clip(np.sin(3 * time), 0, 1)
        path = folder / ("valid" if number < 2 else "train") / f"{number}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_audio(path, (0.3 * tone + 0.02 * rng.standard_normal(len(time)))[None].astype(np.float32), rate)


def train(arguments: argparse.Namespace, variant: Variant, data: Path, out: Path) -> Speed:
    """One run in processes of its own."""
    steps = arguments.steps
    settings = {
        "discriminator.start": 0 if variant.judged else NEVER,
        "data.batch_size": variant.batch,
        "data.init_seconds": 30.0,
        "train.steps": NEVER,
        "train.log_every": steps,
        "train.validate_every": NEVER,
        "train.save_every": NEVER,
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
    with (out / "record.csv").open() as file:
        last = {row["name"]: float(row["value"]) for row in DictReader(file) if int(row["step"]) == 2 * steps}
    cpu = sum(float(path.read_text()) for path in out.glob("cpu-*"))
    return Speed(last[SPEED], last[WAITING], cpu)


def work(recipe: str, overrides: list[str], data: str, out: str, steps: int, device: str) -> None:
    """The body of such a process: train, and note the processor time of a step."""
    marks: list[float] = []
    train_step = codec_loop.train_step

    def marked(*inputs: Any) -> dict[str, Tensor]:
        marks.append(process_time())
        return train_step(*inputs)

    codec_loop.train_step = marked  # type: ignore[assignment]
    loaded = load_toml(recipe, Recipe, overrides)
    codec_loop.train(loaded, data=Path(data), out=Path(out), steps=2 * steps, device=device)
    Path(out, f"cpu-{os.environ.get('RANK', 0)}").write_text(str((marks[-1] - marks[steps]) / (len(marks) - 1 - steps)))


# Beside others


def beside_dac(recipe: Recipe, device: str, steps: int, rounds: int) -> dict[str, Any]:
    """Print our step beside DAC's, both with discriminators, on one batch of noise; the numbers."""
    if device == "cpu" and "--device" not in sys.argv:
        raise UsageError("the comparison is meant for a GPU, and there is none: pass --device cpu to make it here")
    batch, time = recipe.data.batch_size, round(recipe.data.crop * recipe.model.sample_rate)
    audio = 0.1 * torch.randn(batch, 1, time, generator=torch.Generator().manual_seed(0)).to(device)
    systems = {"codec": our_step(recipe, audio), "dac": dac_step(recipe, audio)}
    took: dict[str, list[float]] = {name: [] for name in systems}
    for turn in range(rounds + 1):
        for name, (_, step) in systems.items():
            seconds = timed(step, steps if turn else 2)
            if turn:  # the first one warms up
                took[name].append(seconds)
    print(
        f"{device}, {batch} crops of {recipe.data.crop:g} s, both sides train; medians of {rounds} interleaved rounds"
    )
    print(f"{'':8}{'million weights':>17}{'steps/s':>10}{'audio s/s':>11}")
    numbers: dict[str, Any] = {"device": device}
    for name, (weights, _) in systems.items():
        speed = 1 / statistics.median(took[name])
        print(f"{name:8}{weights / 1e6:17.2f}{speed:10.3f}{speed * batch * recipe.data.crop:11.1f}")
        numbers[name] = {"weights": weights, "steps": speed, "audio": speed * batch * recipe.data.crop}
    numbers["gain"] = statistics.median(theirs / ours for ours, theirs in zip(took["codec"], took["dac"], strict=True))
    print(f"ours is {numbers['gain']:.2f} × as fast")
    return numbers


def timed(step: Callable[[], object], count: int) -> float:
    """Seconds of one of `count` steps, the device's work included."""
    began = perf_counter()
    for _ in range(count):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (perf_counter() - began) / count


def our_step(recipe: Recipe, audio: Tensor) -> tuple[int, Callable[[], object]]:
    """Our weights and our step."""
    judged = recipe.model_copy(update={"discriminator": recipe.discriminator.model_copy(update={"start": 0})})
    players = codec_loop.assemble(judged, audio.device)
    players.model.init_from_audio(audio)
    spectral = SpectralLoss(recipe.model.sample_rate).to(audio.device)
    step = iter(range(NEVER))
    return weights_of(players.model), lambda: codec_loop.train_step(players, spectral, audio, next(step), judged)


def dac_step(recipe: Recipe, audio: Tensor) -> tuple[int, Callable[[], object]]:
    """DAC's weights and its step at our size: its 24 kHz layout (rates 2, 4, 5, 8), as wide as makes as many weights.

    Losses, weights of the losses, clipping and optimizers are those of its published training of the 24 kHz model,
    float32 as there; the codebooks are as many as ours.
    """
    try:
        dac, signals = import_module("dac"), import_module("audiotools").AudioSignal
    except ImportError as error:
        raise MissingDependency(f"DAC cannot be imported ({error}): pip install descript-audio-codec") from error
    rate, wanted = recipe.model.sample_rate, weights_of(CausalCodec(recipe.model))

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

    width = min(range(8, 97, 4), key=lambda width: abs(weights_of(build(width)) - wanted))
    model = build(width).to(audio.device).train()
    discriminators = dac.model.Discriminator(sample_rate=rate).to(audio.device).train()
    optimizers = [torch.optim.AdamW(side.parameters(), lr=1e-4, betas=(0.8, 0.99)) for side in (model, discriminators)]
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
    stft, waveform = dac.nn.loss.MultiScaleSTFTLoss(), dac.nn.loss.L1Loss()  # it computes these two and weighs them 0
    game = dac.nn.loss.GANLoss(discriminators)

    def step() -> None:
        out = model(audio, rate)
        decoded = signals(out["audio"], rate)
        true = signals(audio[..., : decoded.audio_data.shape[-1]], rate)
        loss = game.discriminator_loss(decoded, true)
        descend(optimizers[1], loss, discriminators, 10.0)
        stft(decoded, true), waveform(decoded, true)
        adversarial, features = game.generator_loss(decoded, true)
        loss = 15 * mel(decoded, true) + 2 * features + adversarial
        loss = loss + 0.25 * out["vq/commitment_loss"] + out["vq/codebook_loss"]
        descend(optimizers[0], loss, model, 1e3)

    return weights_of(model), step


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, module: torch.nn.Module, most: float) -> None:
    """One step down a loss, the gradient clipped to `most`."""
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(module.parameters(), most)
    optimizer.step()


def weights_of(module: torch.nn.Module) -> int:
    """Trained and stored numbers: parameters, and the codebooks where they are buffers."""
    return sum(tensor.numel() for tensor in module.state_dict().values())


if __name__ == "__main__":
    try:
        main()
    except CodecError as error:
        sys.exit(f"bench_train: {error}")
