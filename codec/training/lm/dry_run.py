"""What a recipe of a language model would make and take, before it is trained: `codec train lm.toml --dry-run`."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from codec.training import engine
from codec.training.lm.recipe import LMRecipe
from codec.training.lm.task import Told, assemble, material, train_step, ways
from codec.training.optimizer import autocast_dtype

TIMED = 4  # steps; the first is slower, and left out


def table(recipe: LMRecipe, *, data: Path, codec: str | Path | None = None, device: str | None = None) -> str:
    """What is known beforehand, in aligned lines, from a few steps on real batches; nothing is written.

    Raises as `lm_loop.train`.
    """
    engine.check_device(device)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    store, made_by = material(data, codec)
    with torch.random.fork_rng(), engine.within_memory(*ways(recipe)):
        learner, lessons, valid = assemble(recipe, store, made_by, place)
        told = Told(recipe, lessons, valid)
        seconds, seen = [], []
        for step in range(TIMED):
            batch = lessons.batch(step, 0, recipe.data.batch_size).to(place)
            began = perf_counter()
            train_step(learner, batch, step, recipe)["cross-entropy"].item()  # waits for the device
            seconds.append(perf_counter() - began)
            seen.append(int((batch.codes[:, 0] >= 0).sum()))
    model = learner.model
    pace, rate = median(seconds[1:]), store.frame_spec.frame_rate
    context = getattr(recipe.model, "context", 0) // model.pattern.per_frame
    passes = recipe.train.steps * sum(seen) / TIMED / int(lessons.lengths.sum())
    threads = f"{torch.get_num_threads()} threads, " if place.type == "cpu" else ""
    dtype = str(autocast_dtype(recipe.train.precision, place)).removeprefix("torch.")
    sections = {
        f"language model {recipe.name}": [
            ("weights", f"{sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} million"),
            (
                "codes",
                f"{model.source.num_codebooks} codebooks of {model.source.codebook_size}, {rate:g} frames a second",
            ),
            *([("level", f"recordings at {store.level_db:g} dBFS")] if store.level_db is not None else []),
            ("pattern", f"{recipe.model.pattern.kind}, a frame is whole {model.pattern.latency_frames} frames later"),
            *([("context", f"{context} frames ({context / rate:.1f} s){told.short_sight()}")] if context else []),
            ("told", ", ".join([*model.source.classes, *(["text"] if recipe.text else [])]) or "nothing"),
        ],
        "training": [
            ("data", told.amount()),
            ("batch", f"{recipe.data.batch_size} crops of at most {recipe.data.frames / rate:.1f} s"),
            ("seen", f"{passes:.3g} times all there is, in {recipe.train.steps} steps"),
            ("bits per code", told.expectation()),
        ],
        f"measured here: {place.type}, {threads}{dtype}": [
            ("step", f"{pace:.3g} s, {sum(seen) / TIMED * model.source.num_codebooks / pace:.0f} codes a second"),
            ("in all", f"{pace * recipe.train.steps / 3600:.3g} h on a machine like this"),
        ],
    }
    lines = []
    for title, rows in sections.items():
        lines += ["", title, *(f"  {name:24}{value}" for name, value in rows)]
    return "\n".join(lines[1:])
