"""Size, delay, memory and speed of a codec recipe before it is trained: `codec train --dry-run`."""

from __future__ import annotations

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

from codec.data.clips import Clip, clips, file_length
from codec.errors import CodecError
from codec.frames import FrameSpec, Narrowband
from codec.models.base import Codec, ReceptiveField
from codec.training import engine
from codec.training.codec.crops import Batch
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import CodecTask, TrainState, build_task, memory_settings, with_known_model
from codec.training.engine import autocast_dtype

MAX_AUDIO = 12.0  # s of audio in the largest measured batch
MAX_SECONDS = 4.0  # of steps of a stage, after which no more are timed
MAX_HEADERS = 2000  # files opened to read their lengths; of more files, a sample


@dataclass(frozen=True)
class DataSummary:
    """The training audio of a corpus."""

    clips: int
    seconds: float
    headers: int
    """Headers that were read; the lengths of other clips are estimated from them, or are in the manifest."""
    bad: int
    """Headers that could not be read."""
    narrowband: Narrowband
    """Of the clips whose headers were read."""


@dataclass(frozen=True)
class Stage:
    """A stage of training, and the cost of its steps for each process."""

    name: str
    steps: int
    seconds: float
    memory: float
    """Peak bytes of all tensors: weights, averaged weights, optimizer state, gradients and activations."""


@dataclass(frozen=True)
class Plan:
    """The estimates of a dry run."""

    recipe: Recipe
    frame_spec: FrameSpec
    parameters: Mapping[str, int]
    """Stored numbers by part of the model, and the discriminators' weights."""
    delay: int
    """Samples from one that enters a stream until the same one leaves it."""
    receptive_field: ReceptiveField
    flops: Mapping[str, float]
    """By part, per second of audio; a multiplication and an addition are two."""
    stages: tuple[Stage, ...]
    processes: int
    rows: int
    """Rows of the batch of each process."""
    measured_rows: int
    """Rows of the measured batches."""
    device: str
    data: DataSummary | None

    @property
    def file_bytes(self) -> int:
        """Bytes of the weights as float16, without the header of the file (some kilobytes)."""
        return 2 * sum(count for part, count in self.parameters.items() if part != "discriminators")

    @property
    def hours(self) -> float:
        """Time of all steps."""
        return sum(stage.steps * stage.seconds for stage in self.stages) / 3600

    @property
    def trained_seconds(self) -> float:
        """Seconds of audio in all steps, repetitions counted."""
        return self.recipe.train.steps * self.recipe.data.batch_size * self.recipe.data.crop


def estimate(recipe: Recipe, *, data: Path | None = None, device: str | None = None) -> Plan:
    """Build the networks of a recipe and measure a few steps on noise; nothing is written.

    Raises as `clips` and `with_known_model`; UsageError: the device does not exist.
    """
    engine.check_device(device)
    recipe = with_known_model(recipe)
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    summary = None if data is None else summarize_data(data, recipe.model.sample_rate)
    processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun and accelerate
    rows = -(-recipe.data.batch_size // processes)
    measured = min(rows, max(2, int(MAX_AUDIO / recipe.data.crop)))  # two, to know the cost of one more
    steps = recipe.train.steps
    start = steps if recipe.discriminator.start is None else min(recipe.discriminator.start, steps)
    with torch.random.fork_rng(), engine.memory_errors(*memory_settings(recipe.data, recipe.train)):
        task = build_task(recipe, torch_device)
        stages = tuple(
            Stage(name, last - first, *step_cost(task, first, rows, measured))
            for name, first, last in (("without discriminators", 0, start), ("with discriminators", start, steps))
            if first < last
        )
    state = task.train_state
    parameters = {
        name: sum(tensor.numel() for tensor in part.state_dict().values())
        for name, part in state.model.named_children()
    }
    parameters["discriminators"] = sum(weight.numel() for weight in state.discriminators.parameters())
    threads = f"{torch.get_num_threads()} threads, " if torch_device.type == "cpu" else ""
    dtype = str(autocast_dtype(recipe.train.precision, torch_device)).removeprefix("torch.")
    return Plan(
        recipe,
        state.model.frame_spec,
        parameters,
        state.model.delay,
        state.model.receptive_field(),
        flops_per_second(state.ema_model),
        stages,
        processes,
        rows,
        measured,
        f"{torch_device.type}, {threads}{dtype}",
        summary,
    )


@torch.no_grad()
def flops_per_second(model: Codec, frames: int = 100) -> dict[str, float]:
    """Operations per second of audio by part, without fast Fourier transforms."""
    audio = torch.zeros(1, model.channels, frames * model.frame_spec.hop, device=model.device)
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


def step_cost(task: CodecTask, step: int, rows: int, measured: int) -> tuple[float, float]:
    """(seconds, bytes) of a step with `rows` rows, from steps with at most `measured` rows on noise."""
    device = task.device
    model = task.train_state.model
    time = round(task.data.crop * model.sample_rate)

    def run(rows: int) -> float:
        for optimizer in (task.train_state.optimizer, task.train_state.discriminator_optimizer):
            optimizer.zero_grad()  # of the step before
        audio = 0.1 * torch.randn(rows, model.channels, time, device=device)
        started = perf_counter()
        task.step(Batch(audio, ()), step)["mel"].item()  # waits for the device
        return perf_counter() - started

    fewer = max(1, measured // 4)
    run(fewer)  # the first step is slower, and allocates the optimizer state
    peaks = {count: peak_bytes(partial(run, count), device) for count in (fewer, measured)}
    row_bytes = (peaks[measured] - peaks[fewer]) / max(1, measured - fewer)
    seconds = [run(measured)]
    while len(seconds) < 3 and sum(seconds) < MAX_SECONDS:
        seconds.append(run(measured))
    memory = state_bytes(task.train_state) + peaks[measured] + row_bytes * (rows - measured)
    return median(seconds) * rows / measured, memory


def state_bytes(state: TrainState) -> int:
    """Bytes that stay between steps: weights, averaged weights and optimizer state; gradients belong to a step."""
    modules = (state.model, state.ema_model, state.discriminators)
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    for optimizer in (state.optimizer, state.discriminator_optimizer):
        tensors += [value for slot in optimizer.state.values() for value in slot.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of the tensors that `work` allocates."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before: int = torch.cuda.memory_allocated(device)
        work()
        return int(torch.cuda.max_memory_allocated(device)) - before
    counter = AllocationCounter()
    with counter:
        work()
    return counter.peak


class AllocationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the tensors that are allocated under it, while they are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        outputs = function(*args, **(kwargs or {}))
        inputs = {id(tensor.untyped_storage()) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor) and id(storage := tensor.untyped_storage()) not in self.known | inputs:
                self.known.add(id(storage))
                self.bytes += storage.nbytes()
                weakref.finalize(storage, self.free, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.bytes)
        return outputs

    def free(self, storage: int, size: int) -> None:
        """Subtract a storage that has been freed."""
        self.known.discard(storage)
        self.bytes -= size


def summarize_data(data: Path, sample_rate: int) -> DataSummary:
    """How much audio a corpus has to train a model of `sample_rate` Hz on, by its manifest or its files' headers.

    Raises as `clips`.
    """
    rng = np.random.default_rng(0)
    known, unknown = 0.0, 0  # seconds by the manifest; clips without a length
    sample: list[Clip] = []
    count = 0
    for clip in clips(data):
        if clip.split in (None, "train"):
            count += 1
            if clip.seconds is not None:
                known += clip.seconds
                continue
            unknown += 1
            if len(sample) < MAX_HEADERS:
                sample.append(clip)
            elif (slot := int(rng.integers(unknown))) < MAX_HEADERS:  # reservoir sampling
                sample[slot] = clip
    lengths = []
    narrowband = Narrowband()
    for clip in sample:
        try:
            samples, rate = file_length(clip)
            lengths.append(samples / rate)
            narrowband.add(clip.id, rate, sample_rate)
        except CodecError:
            continue
    estimated = sum(lengths) / max(1, len(sample)) * unknown
    return DataSummary(count, known + estimated, len(sample), len(sample) - len(lengths), narrowband)


def report(plan: Plan) -> str:
    """The estimates as aligned lines."""
    recipe, frames = plan.recipe, plan.frame_spec
    encoder, decoder = (
        f"{context.frames} frames ({1000 * context.frames / frames.frame_rate:.0f} ms)"
        for context in plan.receptive_field
    )
    future = max(context.future for context in plan.receptive_field)
    lookahead = f"{future} frames ahead" if future else "causal"
    rates = " ".join(f"{frames.bitrate(num_codebooks):.4g}" for num_codebooks in range(1, frames.num_codebooks + 1))
    encoding = (plan.flops["encoder"] + plan.flops["quantizer"]) / 1e9
    model = [
        ("parameters", f"{plan.file_bytes / 2e6:.2f} million, {plan.file_bytes / 1e6:.1f} MB as float16"),
        *(
            (f"  {part}", f"{count / 1e6:.2f} million")
            for part, count in plan.parameters.items()
            if part != "discriminators"
        ),
        ("audio", f"{frames.sample_rate} Hz mono, {frames.frame_rate:g} frames/s of {frames.hop} samples"),
        ("delay", f"{plan.delay} samples ({1000 * frames.seconds(plan.delay):.1f} ms)"),
        ("receptive field", f"encoder {encoder}, decoder {decoder}; {lookahead}"),
        ("bit rate", f"{rates} kbit/s with 1 to {frames.num_codebooks} codebooks"),
        (
            "operations",
            f"{encoding:.2f} GFLOP to encode a second of audio, {plan.flops['decoder'] / 1e9:.2f} to decode",
        ),
    ]
    batch = f"{recipe.data.batch_size} crops of {recipe.data.crop:g} s"
    if plan.processes > 1:
        batch += f", {plan.rows} in each of {plan.processes} processes"
    discriminators = (
        f"{plan.parameters['discriminators'] / 1e6:.2f} million parameters, from step {recipe.discriminator.start} on"
    )
    training = [
        ("batch", batch),
        ("discriminators", "none" if recipe.discriminator.start is None else discriminators),
        ("audio", f"{plan.trained_seconds / 3600:.1f} h in {recipe.train.steps} steps, repetitions counted"),
    ]
    if plan.data is not None:
        training.append(("data", data_line(plan.data, plan.trained_seconds)))
        training += [("", note) for note in plan.data.narrowband.notes("clip")]
    measured = [
        (stage.name, f"{stage.seconds:.3g} s per step, {stage.memory / 2**30:.2f} GiB of tensors, {stage.steps} steps")
        for stage in plan.stages
    ]
    measured.append(("total", f"{plan.hours:.3g} h on a machine like this, without waiting for data"))
    whole = plan.measured_rows == plan.rows
    rows = "the whole batch" if whole else f"{plan.measured_rows} of {plan.rows} rows, extrapolated"
    sections = {
        f"model {recipe.name}": model,
        "training": training,
        f"measured here: {plan.device}, noise as audio, {rows}": measured,
    }
    lines = []
    for title, entries in sections.items():
        lines += ["", title, *(f"  {name:24}{value}" for name, value in entries)]
    return "\n".join(lines[1:])


def data_line(data: DataSummary, trained_seconds: float) -> str:
    """The amount of training audio, and how often it is repeated."""
    source = f"by {data.headers} of their headers" if data.headers else "by the manifest"
    bad = f", {data.bad} of which cannot be read" if data.bad else ""
    epochs = f"{trained_seconds / data.seconds:.3g} epochs" if data.seconds else "no audio"
    return f"{data.seconds / 3600:.2f} h in {data.clips} clips ({source}{bad}): {epochs}"
