"""What a recipe would make and what it would take, before anything is trained: `codec train --dry-run`."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from codec.data.clips import Clip, clips
from codec.errors import CodecError
from codec.frames import FrameSpec
from codec.io.audio import open_reader
from codec.models.base import Codec
from codec.models.causal import CausalConfig
from codec.training import engine
from codec.training.codec.losses import SpectralLoss
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import Players, assemble, train_step, ways
from codec.training.optimizer import autocast_dtype

AUDIO = 12.0  # s of audio in the largest batch that is tried
PATIENCE = 4.0  # s of steps of a kind, after which no more are timed
HEADERS = 2000  # files opened to learn their lengths; of more, a sample


@dataclass(frozen=True)
class Heard:
    """The audio of a corpus to train on."""

    clips: int
    seconds: float
    read: int
    """Headers that were read to know; the lengths of others are taken to be like theirs, or stood in the manifest."""
    bad: int
    """How many of them could not be read."""


@dataclass(frozen=True)
class Phase:
    """A part of the training, and what a step of it costs each process."""

    name: str
    steps: int
    seconds: float
    memory: float
    """Bytes of all tensors when they are most: weights, averages, optimizers, gradients, activations."""


@dataclass(frozen=True)
class Plan:
    """All that is known beforehand."""

    recipe: Recipe
    frame_spec: FrameSpec
    numbers: Mapping[str, int]
    """What is stored of the encoder, quantizer and decoder, and the discriminators' weights."""
    receptive_field: tuple[int, int]
    flops: Mapping[str, float]
    """By part, for a second of audio; a multiplication and an addition are two."""
    phases: tuple[Phase, ...]
    processes: int
    share: int
    """Rows of the batch that each process takes."""
    tried: int
    """Rows that the phases were measured with."""
    place: str
    heard: Heard | None

    @property
    def delay(self) -> int:
        """Samples from one that enters a stream to its leaving it: its frame fills up, and the overlap comes after."""
        return self.frame_spec.hop + self.frame_spec.decoder_delay

    @property
    def shipped(self) -> int:
        """Bytes of the weights as float16; a file has its header more, some kilobytes."""
        return 2 * sum(self.numbers[part] for part in ("encoder", "quantizer", "decoder"))

    @property
    def hours(self) -> float:
        """Time of all steps."""
        return sum(phase.steps * phase.seconds for phase in self.phases) / 3600

    @property
    def seen(self) -> float:
        """Seconds of audio in all steps, repetitions counted."""
        return self.recipe.train.steps * self.recipe.data.batch_size * self.recipe.data.crop


def plan(recipe: Recipe, *, data: Path | None = None, device: str | None = None) -> Plan:
    """Build what the recipe says and make a few steps on noise; nothing is written.

    Raises as `corpus.clips`; UsageError where there is no such device.
    """
    engine.check_device(device)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    heard = None if data is None else hear(data)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # where torchrun or accelerate started this
    share = -(-recipe.data.batch_size // processes)
    tried = min(share, max(2, int(AUDIO / recipe.data.crop)))  # two tell what one more takes
    steps = recipe.train.steps
    start = steps if recipe.discriminator.start is None else min(recipe.discriminator.start, steps)
    with torch.random.fork_rng(), engine.within_memory(*ways(recipe)):
        players = assemble(recipe, place)
        kinds = (("without discriminators", 0, start), ("with discriminators", start, steps))
        phases = tuple(
            Phase(name, last - first, *step_costs(players, recipe, first, share, tried))
            for name, first, last in kinds
            if first < last
        )
    model = players.model
    parts = {"encoder": model.encoder, "quantizer": model.quantizer, "decoder": model.decoder}
    numbers = {name: sum(tensor.numel() for tensor in part.state_dict().values()) for name, part in parts.items()}
    numbers["discriminators"] = sum(weight.numel() for weight in players.discriminators.parameters())
    threads = f"{torch.get_num_threads()} threads, " if place.type == "cpu" else ""
    dtype = str(autocast_dtype(recipe.train.precision, place)).removeprefix("torch.")
    return Plan(
        recipe,
        model.frame_spec,
        numbers,
        receptive_field(recipe.model),
        flops(players.average),
        phases,
        processes,
        share,
        tried,
        f"{place.type}, {threads}{dtype}",
        heard,
    )


def receptive_field(config: CausalConfig) -> tuple[int, int]:
    """(encoder, decoder): hops of audio that a latent frame knows of; latent frames that a sample of audio knows of.

    A block adds kernel - 1 frames to one. A frame is two hops long, so n frames reach over n + 1 hops, and a hop lies
    in two frames; at twice the rate frames, and what a block adds, are half as long.
    """
    more = config.kernel - 1
    encoder, decoder = config.encoder_blocks * more + 1, config.decoder_blocks * more + 1
    return encoder + 1, decoder + math.ceil((config.fine_blocks * more + 1) / 2)


@torch.no_grad()
def flops(model: Codec, frames: int = 100) -> dict[str, float]:
    """Operations on a second of audio by part, fast Fourier transforms not counted."""
    audio = torch.zeros(1, 1, frames * model.config.hop, device=model.device)
    counts = {}
    with FlopCounterMode(display=False) as counter:
        latents = model.analyze(audio)
    counts["encoder"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        quantized = model.quantizer(latents)
    counts["quantizer"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        model.synthesize(quantized.latents)
    counts["decoder"] = counter.get_total_flops()
    return {part: count / frames * model.frame_spec.frame_rate for part, count in counts.items()}


def step_costs(players: Players, recipe: Recipe, step: int, share: int, tried: int) -> tuple[float, float]:
    """(seconds, bytes) of a step with `share` rows, from steps with `tried` rows and fewer on noise."""
    spectral = SpectralLoss(recipe.model.sample_rate).to(players.model.device)
    time = round(recipe.data.crop * recipe.model.sample_rate)

    def run(rows: int) -> float:
        for optimizer in (players.optimizer, players.discriminators_optimizer):
            optimizer.zero_grad()  # of the step before
        audio = 0.1 * torch.randn(rows, 1, time, device=players.model.device)
        began = perf_counter()
        losses = train_step(players, spectral, audio, step, recipe)
        losses["mel"].item()  # waits for the device
        return perf_counter() - began

    fewer = max(1, tried // 4)
    run(fewer)  # the first one is slower, and makes what the optimizers keep
    peaks = {rows: peak_bytes(partial(run, rows), players.model.device) for rows in (fewer, tried)}
    a_row = (peaks[tried] - peaks[fewer]) / max(1, tried - fewer)
    took = [run(tried)]
    while len(took) < 3 and sum(took) < PATIENCE:
        took.append(run(tried))
    return median(took) * share / tried, kept_bytes(players) + peaks[tried] + a_row * (share - tried)


def kept_bytes(players: Players) -> int:
    """Bytes that stay between steps: weights, averages and what the optimizers remember; gradients belong to a step."""
    modules = (players.model, players.average, players.discriminators)
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for optimizer in (players.optimizer, players.discriminators_optimizer):
        tensors += [
            value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
    return sum(tensor.nbytes for tensor in tensors)


def peak_bytes(work: Callable[[], object], place: torch.device) -> int:
    """Most bytes alive at once of those that `work` makes."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        before: int = torch.cuda.memory_allocated(place)
        work()
        return int(torch.cuda.max_memory_allocated(place)) - before
    alive = Alive()
    with alive:
        work()
    return alive.most


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors made under it, for as long as they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        given = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.known | given:
                self.known.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.forget, id(storage), storage.nbytes())
        self.most = max(self.most, self.bytes)
        return made

    def forget(self, storage: int, size: int) -> None:
        """A storage is gone."""
        self.known.discard(storage)
        self.bytes -= size


def hear(source: Path) -> Heard:
    """How much audio a corpus has to train on, by its manifest or the headers of its files.

    Raises as `corpus.clips`.
    """
    rng = np.random.default_rng(0)
    known, silent = 0.0, 0  # seconds that the manifest says; clips of which it says nothing
    sample: list[Clip] = []
    count = 0
    for clip in clips(source):
        if clip.split in (None, "train"):
            count += 1
            if clip.seconds is not None:
                known += clip.seconds
                continue
            silent += 1
            if len(sample) < HEADERS:
                sample.append(clip)
            elif (place := int(rng.integers(silent))) < HEADERS:  # each has the same chance to stay
                sample[place] = clip
    lengths = []
    for clip in sample:
        try:
            with open_reader(clip.path) as reader:
                lengths.append((reader.time or 0) / reader.rate - clip.start)
        except CodecError:
            continue
    unknown = sum(lengths) / max(1, len(sample)) * silent
    return Heard(count, known + unknown, len(sample), len(sample) - len(lengths))


def table(plan: Plan) -> str:
    """A plan to read, in aligned lines."""
    recipe, frames = plan.recipe, plan.frame_spec
    encoder, decoder = (f"{count} frames ({1000 * count / frames.frame_rate:.0f} ms)" for count in plan.receptive_field)
    rates = " ".join(f"{frames.bitrate(num_codebooks):.4g}" for num_codebooks in range(1, frames.num_codebooks + 1))
    coding = (plan.flops["encoder"] + plan.flops["quantizer"]) / 1e9
    parts = ("encoder", "quantizer", "decoder")
    model = [
        ("size", f"{plan.shipped / 2e6:.2f} million numbers, {plan.shipped / 1e6:.1f} MB shipped as float16"),
        *((f"  {part}", f"{plan.numbers[part] / 1e6:.2f} million") for part in parts),
        ("audio", f"{frames.sample_rate} Hz mono, {frames.frame_rate:g} frames a second of {frames.hop} samples"),
        ("delay", f"{plan.delay} samples ({1000 * frames.seconds(plan.delay):.1f} ms)"),
        ("receptive field", f"encoder {encoder}, decoder {decoder}; no future"),
        ("bit rate", f"{rates} kbit/s with 1 to {frames.num_codebooks} codebooks"),
        ("work", f"{coding:.2f} GFLOP to encode a second of audio, {plan.flops['decoder'] / 1e9:.2f} to decode it"),
    ]
    batch = f"{recipe.data.batch_size} crops of {recipe.data.crop:g} s"
    if plan.processes > 1:
        batch += f", {plan.share} in each of {plan.processes} processes"
    discriminators = (
        f"{plan.numbers['discriminators'] / 1e6:.2f} million numbers, from step {recipe.discriminator.start} on"
    )
    training = [
        ("batch", batch),
        ("discriminators", "none" if recipe.discriminator.start is None else discriminators),
        ("audio heard", f"{plan.seen / 3600:.1f} h in {recipe.train.steps} steps, repetitions counted"),
    ]
    if plan.heard is not None:
        training.append(("data", data_row(plan.heard, plan.seen)))
    measured = [
        (phase.name, f"{phase.seconds:.3g} s a step, {phase.memory / 2**30:.2f} GiB of tensors, {phase.steps} steps")
        for phase in plan.phases
    ]
    measured.append(("in all", f"{plan.hours:.3g} h on a machine like this, with data that is never waited for"))
    batch = "the whole batch" if plan.tried == plan.share else f"{plan.tried} of {plan.share} rows, in proportion"
    sections = {
        f"model {recipe.name}": model,
        "training": training,
        f"measured here: {plan.place}, noise as audio, {batch}": measured,
    }
    lines = []
    for title, rows in sections.items():
        lines += ["", title, *(f"  {name:24}{value}" for name, value in rows)]
    return "\n".join(lines[1:])


def data_row(heard: Heard, seen: float) -> str:
    """What there is to train on, and how often it is gone through."""
    told = f"by {heard.read} of their headers" if heard.read else "by the manifest"
    bad = f", {heard.bad} of which cannot be read" if heard.bad else ""
    passes = f"{seen / heard.seconds:.3g} times through" if heard.seconds else "nothing to hear"
    return f"{heard.seconds / 3600:.2f} h in {heard.clips} clips ({told}{bad}): {passes}"
