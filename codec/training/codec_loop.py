"""The codec's training: `train_step` is the method, `train` is everything around it."""

from __future__ import annotations

import copy
import math
import time as clock
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from codec.checkpoint import load_state, save_model, save_state
from codec.errors import ConfigError
from codec.models.base import Trained
from codec.models.causal import CausalCodec
from codec.nn.shapes import Audio
from codec.training.data import AudioStore, Crops, split
from codec.training.discriminators import Discriminators
from codec.training.losses import SpectralLoss, discriminator_loss, feature_loss, generator_loss
from codec.training.recipe import Recipe
from codec.training.record import Record, perplexity


@dataclass
class Players:
    """The two sides of the game, and what trains them."""

    model: CausalCodec
    average: CausalCodec
    """Moving average of the model's weights."""
    optimiser: torch.optim.Optimizer
    judges: Discriminators
    judges_optimiser: torch.optim.Optimizer


def train_step(players: Players, spectral: SpectralLoss, audio: Audio, step: int, recipe: Recipe) -> dict[str, Tensor]:
    """One step of both sides on audio [batch, 1, time]; the losses by name, before weighting."""
    weights, optimiser, model = recipe.losses, recipe.optimiser, players.model
    adversarial = recipe.adversary.start is not None and step >= recipe.adversary.start
    dtype = autocast_dtype(recipe.train.precision, audio.device)

    with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
        decoded, latents, quantized = model(audio, dropped_books(len(audio), step, recipe))
    # what the stages left, relative to the latents, so that the weight means the same at every scale
    size = latents.detach().float().square().mean().clamp(min=1e-6)
    part = slice(step % 2, None, 2)
    losses: dict[str, Tensor] = spectral(decoded, audio, part)._asdict()
    losses["commitment"] = quantized.commitment / size / recipe.model.books
    losses["codebook"] = quantized.codebook / size / recipe.model.books

    if adversarial:
        players.judges.requires_grad_(True)
        with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
            real, fake = players.judges(audio), players.judges(decoded.detach())
        losses["discriminator"] = discriminator_loss(real.scores, fake.scores)
        descend(players.judges_optimiser, losses["discriminator"], players.judges, recipe.adversary.rate, step, recipe)

        players.judges.requires_grad_(False)
        with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                real = players.judges(audio)
            fake = players.judges(decoded)
        losses["adversarial"] = generator_loss(fake.scores)
        losses["features"] = feature_loss(real.features, fake.features)

    weighted = {name: getattr(weights, name) * loss for name, loss in losses.items() if hasattr(weights, name)}
    total = torch.stack(list(weighted.values())).sum()
    losses["gradient"] = descend(players.optimiser, total, model, optimiser.rate, step, recipe)

    decay = min(optimiser.average, (1 + step) / (10 + step))
    with torch.no_grad():
        for slow, fast in zip(players.average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
        for slow, fast in zip(players.average.buffers(), model.buffers(), strict=True):
            slow.copy_(fast)
    losses["perplexity"] = perplexity(quantized.codes, recipe.model.codebook_size)
    return {name: loss.detach() for name, loss in losses.items()}


def descend(
    optimiser: torch.optim.Optimizer, loss: Tensor, module: nn.Module, rate: float, step: int, recipe: Recipe
) -> Tensor:
    """One clipped step down `loss` at this step's learning rate; the gradient's norm before clipping."""
    for group in optimiser.param_groups:
        group["lr"] = rate * schedule(step, recipe)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.optimiser.clip)
    if not torch.isfinite(norm):
        raise ConfigError(
            f"the gradient is {norm.item()} at step {step}; lower optimiser.rate or set train.precision to float32"
        )
    optimiser.step()
    return norm


def schedule(step: int, recipe: Recipe) -> float:
    """Share of the learning rate: a line up over `warmup` steps, then half a cosine down to `final`."""
    warmup, final = recipe.optimiser.warmup, recipe.optimiser.final
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, recipe.train.steps - warmup))
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


def dropped_books(batch: int, step: int, recipe: Recipe) -> Tensor:
    """Books [batch] that each item trains with: all, or for a share of the items a random number."""
    rng = np.random.default_rng((recipe.train.seed, step, 1))
    books = rng.integers(1, recipe.model.books + 1, size=batch)
    whole = rng.random(batch) >= recipe.train.quantizer_dropout
    return torch.from_numpy(np.where(whole, recipe.model.books, books))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of the networks' products; "auto" is bfloat16 on devices that have instructions for it."""
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def train(
    recipe: Recipe, *, data: Path, out: Path, resume: bool = False, steps: int | None = None, device: str | None = None
) -> Path:
    """Train by a recipe on a folder of audio; the path of the trained model's file.

    `steps` stops early without changing the schedule. A run's folder holds `model.safetensors` (averaged weights, ready
    for use), `state.pt` (to resume), TensorBoard events, `record.csv` and the decoded audio.
    """
    console = Console(stderr=True)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    rate = recipe.model.sample_rate
    if not resume and (out / "state.pt").exists():
        raise ConfigError(f"{out} holds a training already: add --resume to go on, or choose another --out")
    train_paths, valid_paths = split(data, recipe.data.held_out)
    stores = [
        AudioStore.build(data, paths, out / f"{name}.i16", sample_rate=rate, report=console.log)
        for name, paths in (("train", train_paths), ("valid", valid_paths))
    ]
    console.log(f"train on {stores[0].seconds / 3600:.2f} h, validate on {stores[1].seconds / 60:.1f} min")
    crops = Crops(stores[0], recipe.data, seed=recipe.train.seed)
    clips = Crops(stores[1], recipe.data, seed=0).first_clips(24).to(place)

    torch.manual_seed(recipe.train.seed)
    model = CausalCodec(recipe.model).to(place)
    judges = Discriminators(recipe.adversary.windows, recipe.adversary.channels).to(place)
    players = Players(
        model,
        copy.deepcopy(model).eval().requires_grad_(False),
        torch.optim.AdamW(model.parameters(), betas=recipe.optimiser.betas, weight_decay=recipe.optimiser.decay),
        judges,
        torch.optim.AdamW(judges.parameters(), betas=recipe.optimiser.betas, weight_decay=recipe.optimiser.decay),
    )
    spectral = SpectralLoss(rate).to(place)
    if resume:
        first = restore(players, load_state(out / "state.pt", place))
    else:
        first = 0
        size = math.ceil(recipe.data.fit_seconds / recipe.data.crop)
        model.fit(crops.batch(-1 % 2**32, size).to(place))
        players.average.load_state_dict(model.state_dict())

    last = min(steps or recipe.train.steps, recipe.train.steps)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Record(out) as record, Progress(*columns, console=console) as progress:
        bar = progress.add_task(recipe.name, total=last, completed=first)
        seen: dict[str, list[Tensor]] = {}
        began = clock.perf_counter()
        for step, audio in prefetched(crops, first, last):
            model.train()
            for name, loss in train_step(players, spectral, audio.to(place), step, recipe).items():
                seen.setdefault(name, []).append(loss)
            done = step + 1
            progress.update(bar, completed=done)
            if done % recipe.train.log_every == 0:
                means = {name: torch.stack(values).mean(dim=0) for name, values in seen.items()}
                books = means.pop("perplexity")
                values = {f"loss/{name}": float(value) for name, value in means.items()}
                values |= {f"perplexity/{book}": float(value) for book, value in enumerate(books)}
                values["speed/steps per second"] = len(seen["mel"]) / (clock.perf_counter() - began)
                values["rate"] = recipe.optimiser.rate * schedule(step, recipe)
                record.numbers(done, values)
                line = " ".join(f"{name} {float(value):.3f}" for name, value in means.items())
                console.log(f"{done} {line} books {float(books[0]):.0f}..{float(books[-1]):.0f}")
                seen.clear()
                began = clock.perf_counter()
            if done % recipe.train.validate_every == 0 or done == last:
                decoded, numbers = validate(players.average, spectral, clips)
                record.numbers(done, numbers)
                record.clips(done, "decoded", decoded[:8], rate)
                if done == recipe.train.validate_every:
                    record.clips(done, "original", clips[:8], rate)
                console.log(f"{done} " + " ".join(f"{name} {value:.3f}" for name, value in numbers.items()))
            if done % recipe.train.save_every == 0 or done == last:
                save_state(out / "state.pt", state_of(players, done, recipe))
                training = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "step": done}
                save_model(out / "model.safetensors", players.average, training=training)
    return out / "model.safetensors"


def prefetched(crops: Crops, first: int, last: int) -> Iterator[tuple[int, Audio]]:
    """(step, its audio) from step `first` to before `last`, one batch read ahead."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(crops.batch, first)
        for step in range(first, last):
            audio = ahead.result()
            ahead = pool.submit(crops.batch, step + 1)
            yield step, audio


@torch.no_grad()
def validate(model: CausalCodec, spectral: SpectralLoss, clips: Audio) -> tuple[Audio, dict[str, float]]:
    """Decoded clips at all books, and the spectral distances at all, half and a quarter of the books."""
    numbers = {}
    for books in (model.config.books // 4, model.config.books // 2, model.config.books):
        decoded = model.decode(model.encode(clips, books=max(1, books)), length=clips.shape[-1])
        for name, value in spectral(decoded, clips)._asdict().items():
            numbers[f"valid/{name} {books} books"] = float(value)
    return decoded, numbers


def state_of(players: Players, step: int, recipe: Recipe) -> dict[str, object]:
    """Everything that the next step depends on."""
    return {
        "step": step,
        "recipe": recipe.model_dump(mode="json"),
        "random": torch.get_rng_state(),
        **{name: getattr(players, name).state_dict() for name in vars(players)},
    }


def restore(players: Players, state: dict[str, object]) -> int:
    """Inverse of `state_of`; the step to go on with."""
    for name in vars(players):
        getattr(players, name).load_state_dict(state[name])
    random, step = state["random"], state["step"]
    assert isinstance(random, Tensor) and isinstance(step, int)
    torch.set_rng_state(random.cpu())
    return step
