"""Size, data and speed of a language model's recipe before it is trained: `codec train lm.toml --dry-run`."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from codec.training import engine
from codec.training.engine import autocast_dtype
from codec.training.lm.recipe import LMRecipe
from codec.training.lm.task import build_task, memory_settings, open_store

TIMED_STEPS = 4  # the first is slower, and not counted


def report(recipe: LMRecipe, *, data: Path, codec: str | Path | None = None, device: str | None = None) -> str:
    """Aligned lines about the model, the data and the time, from a few steps on real batches; nothing is written.

    Raises as `task.train`.
    """
    engine.check_device(device)
    torch_device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    store, codec_model, _ = open_store(data, codec)
    with torch.random.fork_rng(), engine.memory_errors(*memory_settings(recipe.data, recipe.train)):
        task = build_task(recipe, torch_device, store=store, codec=codec_model)
        seconds, frames = [], []
        for step in range(TIMED_STEPS):
            batch = task.train_data.batch(step, 0, recipe.data.batch_size).to(torch_device)
            started = perf_counter()
            task.step(batch, step)["cross-entropy"].item()  # waits for the device
            seconds.append(perf_counter() - started)
            frames.append(int((batch.codes[:, 0] >= 0).sum()))
    model, measures = task.train_state.model, task.measures
    step_seconds, frame_rate = median(seconds[1:]), store.frame_spec.frame_rate
    context = getattr(recipe.model, "context", 0) // model.pattern.per_frame
    mean_frames = sum(frames) / TIMED_STEPS
    epochs = recipe.train.steps * mean_frames / int(task.train_data.lengths.sum())
    threads = f"{torch.get_num_threads()} threads, " if torch_device.type == "cpu" else ""
    dtype = str(autocast_dtype(recipe.train.precision, torch_device)).removeprefix("torch.")
    codes_per_second = mean_frames * model.source.num_codebooks / step_seconds
    sections = {
        f"language model {recipe.name}": [
            ("parameters", f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} million"),
            (
                "codes",
                f"{model.source.num_codebooks} codebooks of {model.source.codebook_size}, {frame_rate:g} frames/s",
            ),
            *([("level", f"recordings at {store.level}")] if store.level is not None else []),
            ("pattern", f"{recipe.model.pattern.kind}, latency {model.pattern.latency_frames} frames"),
            *(
                [("context", f"{context} frames ({context / frame_rate:.1f} s){measures.context_line()}")]
                if context
                else []
            ),
            ("conditioning", ", ".join([*model.source.classes, *(["text"] if recipe.text else [])]) or "none"),
        ],
        "training": [
            ("data", measures.data_line()),
            ("batch", f"{recipe.data.batch_size} crops of at most {recipe.data.frames / frame_rate:.1f} s"),
            ("epochs", f"{epochs:.3g} in {recipe.train.steps} steps"),
            ("bits per code", measures.baseline_line()),
        ],
        f"measured here: {torch_device.type}, {threads}{dtype}": [
            ("step", f"{step_seconds:.3g} s, {codes_per_second:.0f} codes/s"),
            ("total", f"{step_seconds * recipe.train.steps / 3600:.3g} h on a machine like this"),
        ],
    }
    lines = []
    for title, rows in sections.items():
        lines += ["", title, *(f"  {name:24}{value}" for name, value in rows)]
    return "\n".join(lines[1:])
