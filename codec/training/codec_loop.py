"""The codec's training: `train_step` is the method, `train` is everything around it."""

from __future__ import annotations

import copy
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from codec.checkpoint import RUN_MODEL, load_state, save_model, save_state
from codec.errors import ConfigError, StorageError
from codec.models.causal import CausalCodec
from codec.nn.shapes import Audio
from codec.training.data import batches, material
from codec.training.discriminators import Discriminators
from codec.training.losses import SpectralLoss, discriminator_loss, feature_loss, generator_loss
from codec.training.recipe import Recipe
from codec.training.record import Record, Tally, live, perplexity

STATE = "state.pt"  # beside the model in a run's folder


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
    dtype = autocast_dtype(recipe.train.precision, audio.device)

    with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
        decoded, latents, quantized = model(audio, dropped_books(len(audio), step, recipe).to(audio.device))
    # what the stages left, relative to the latents, so that the weight means the same at every scale
    size = latents.detach().float().square().mean().clamp(min=1e-6)
    losses: dict[str, Tensor] = spectral(decoded, audio, half=step % 2)._asdict()
    losses["commitment"] = quantized.commitment / size / recipe.model.books
    losses["codebook"] = quantized.codebook / size / recipe.model.books

    if recipe.adversary.start is not None and step >= recipe.adversary.start:
        first, last = judged_part(audio.shape[-1], step, recipe)
        true, ours = audio[..., first:last], decoded[..., first:last]
        players.judges.requires_grad_(True)
        with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
            real, fake = players.judges(true), players.judges(ours.detach())
        losses["discriminator"] = discriminator_loss(real.scores, fake.scores)
        warmth = min(1.0, (step - recipe.adversary.start + 1) / optimiser.warmup)
        descend(
            players.judges_optimiser, losses["discriminator"], players.judges, recipe.adversary.rate * warmth, recipe
        )
        players.judges.requires_grad_(False)
        with torch.autocast(audio.device.type, dtype, enabled=dtype != torch.float32):
            with torch.no_grad():
                real = players.judges(true)
            fake = players.judges(ours)
        losses["adversarial"] = generator_loss(fake.scores) * warmth
        losses["features"] = feature_loss(real.features, fake.features) * warmth

    # a weight of 0 leaves the loss out: nothing flows back from it, be it infinite
    total = torch.stack([weight * losses[name] for name, weight in weights if weight and name in losses]).sum()
    losses["gradient"] = descend(players.optimiser, total, model, optimiser.rate * schedule(step, recipe), recipe)

    decay = min(optimiser.average, (1 + step) / (10 + step))
    with torch.no_grad():
        for slow, fast in zip(players.average.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
        for old, new in zip(players.average.buffers(), model.buffers(), strict=True):
            old.copy_(new)
    losses["perplexity"] = perplexity(quantized.codes, recipe.model.codebook_size)
    return {name: loss.detach() for name, loss in losses.items()}


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, module: nn.Module, rate: float, recipe: Recipe) -> Tensor:
    """One clipped step down `loss` at this learning rate; the gradient's norm before clipping."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.optimiser.clip)
    if not torch.isfinite(norm):
        raise ConfigError(
            f"the gradient's norm became {norm.item()}; lower optimiser.rate or set train.precision to float32"
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


def judged_part(time: int, step: int, recipe: Recipe) -> tuple[int, int]:
    """(first, last) samples of the part of every crop that the discriminators see in this step."""
    length = min(time, round(recipe.adversary.crop * recipe.model.sample_rate))
    first = int(np.random.default_rng((recipe.train.seed, step, 2)).integers(0, time - length + 1))
    return first, first + length


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
    for use), `state.pt` (to resume), TensorBoard events, `record.csv` and the index of the audio.

    Raises:
        ConfigError: the folder holds a training already; or, to resume, it is one of another recipe or other audio.
        KeyboardInterrupt: after Ctrl-C, once the step is done and the checkpoint saved.
    """
    console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    state = resumable(out / STATE, recipe) if resume else None
    if state is None and (out / STATE).exists():
        raise ConfigError(f"{out} holds a training already: add --resume to go on, or choose another --out")
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
        crops, valid = material(recipe, data, out, resumed=resume, report=console.print)
        players = assemble(recipe, place)
        if state is None:
            first = 0
            players.model.fit(crops.fit_audio(recipe.data.fit_seconds).to(place))
            players.average.load_state_dict(players.model.state_dict())
        else:
            first = restore(players, state)
        last = min(steps or recipe.train.steps, recipe.train.steps)
        if first >= last:
            console.print(f"{first} steps are done already: nothing is left up to step {last}")

        spectral = SpectralLoss(recipe.model.sample_rate).to(place)
        clips = valid.first_clips(24).to(place)
        tally, numbers = Tally(), dict[str, float]()
        with Record(out, first) as record, live(console, recipe.name, first, last) as show, interrupts() as interrupted:
            if state is None:
                record.clips(0, "original", clips[:8], recipe.model.sample_rate)
            for step, batch in batches(crops, first, last, workers=recipe.data.workers):
                for _, reason in batch.bad:
                    console.print(f"left out: {reason}")
                tally.add(train_step(players, spectral, batch.audio.to(place), step, recipe))
                done = step + 1
                if done % recipe.train.log_every == 0:
                    numbers = tally.numbers() | {"rate": recipe.optimiser.rate * schedule(step, recipe)}
                    record.numbers(done, numbers)
                show(done, numbers)
                if done % recipe.train.validate_every == 0 or done == last:
                    valid_numbers = validate(players.average, spectral, clips, record, done)
                    console.print(f"{done} " + " ".join(f"{name} {value:.3f}" for name, value in valid_numbers.items()))
                stop = interrupted()
                if done % recipe.train.save_every == 0 or done == last or stop:
                    save_state(out / STATE, state_of(players, done, recipe))
                    training = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "step": done}
                    save_model(out / RUN_MODEL, players.average, training=training)
                if stop:
                    console.print(f"stopped after step {done}, which is saved in {out}: --resume goes on from there")
                    raise KeyboardInterrupt
    return out / RUN_MODEL


# before the loop


def resumable(path: Path, recipe: Recipe) -> dict[str, Any]:
    """The state to go on from, if it is one of this recipe; only `train.steps` and `data.workers` may be others.

    Raises:
        InputNotFound: there is no state.
        ConfigError: it was made by another recipe; the message names the keys that differ.
    """
    state = load_state(path)
    old = flat(Recipe.from_data(state["recipe"], source=str(path)).model_dump())
    new = flat(recipe.model_dump())
    free = ("train.steps", "data.workers")
    differing = [key for key in old | new if new.get(key) != old.get(key) and key not in free]
    if differing:
        changes = ", ".join(f"{key} ({old.get(key)} then, {new.get(key)} now)" for key in differing)
        raise ConfigError(f"{path} is of another recipe: {changes}; resume with the same, or choose another --out")
    return state


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, by dotted keys: {"a": {"b": 1}} is {"a.b": 1}."""
    values: dict[str, Any] = {}
    for key, value in tables.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return values


def assemble(recipe: Recipe, place: torch.device) -> Players:
    """Both sides with fresh weights."""

    def adamw(module: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), betas=recipe.optimiser.betas, weight_decay=recipe.optimiser.decay)

    torch.manual_seed(recipe.train.seed)
    model = CausalCodec(recipe.model).to(place).train()
    judges = Discriminators(recipe.adversary.windows, recipe.adversary.channels).to(place)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    return Players(model, average, adamw(model), judges, adamw(judges))


# around the loop


@contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Whatever the system has against the files below `folder`, as `StorageError`."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or folder, error.strerror or error
        raise StorageError(f"{place} cannot be used ({reason}): free some space or choose another --out") from error


@contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Yields what to ask between steps: has Ctrl-C been pressed? A second press does not wait to be asked for."""
    pressed = threading.Event()

    def press(*_: object) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    if threading.current_thread() is not threading.main_thread():  # where signals cannot be handled, nor arrive
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@torch.no_grad()
def validate(model: CausalCodec, spectral: SpectralLoss, clips: Audio, record: Record, step: int) -> dict[str, float]:
    """Record how fixed clips come back at one book, a quarter, half and all of them; the spectral distances."""
    config = model.config
    numbers: dict[str, float] = {}
    for books in sorted({1, max(1, config.books // 4), max(1, config.books // 2), config.books}):
        if config.quantizer == "none":  # which has no codes
            decoded = model(clips).audio
        else:
            decoded = model.decode(model.encode(clips, books=books), length=clips.shape[-1])
        for name, value in spectral(decoded, clips)._asdict().items():
            numbers[f"valid/{name} {books} books"] = float(value)
        if books in (1, config.books):
            record.clips(step, f"{books} books", decoded[:8], config.sample_rate)
    record.numbers(step, numbers)
    return numbers


def state_of(players: Players, step: int, recipe: Recipe) -> dict[str, Any]:
    """Everything that the next step depends on."""
    on_device = torch.cuda.get_rng_state() if players.model.device.type == "cuda" else None
    return {
        "step": step,
        "recipe": recipe.model_dump(mode="json"),
        "random": torch.get_rng_state(),
        "random_on_device": on_device,
        **{name: getattr(players, name).state_dict() for name in vars(players)},
    }


def restore(players: Players, state: dict[str, Any]) -> int:
    """Inverse of `state_of`; the step to go on with."""
    for name in vars(players):
        getattr(players, name).load_state_dict(state[name])
    torch.set_rng_state(state["random"])
    if players.model.device.type == "cuda" and state["random_on_device"] is not None:
        torch.cuda.set_rng_state(state["random_on_device"])
    return int(state["step"])
