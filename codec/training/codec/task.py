"""The codec's training: `train_step` is the method, `train` is everything around it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from codec import pretrained
from codec.checkpoint import RUN_MODEL, RUN_STATE, save_model, save_state
from codec.errors import ConfigError
from codec.io.storage import locked_folder, storing_below
from codec.models.causal import CausalCodec
from codec.nn import distributed
from codec.nn.shapes import Audio
from codec.training import engine
from codec.training.codec.crops import Crops, batches, material
from codec.training.codec.discriminators import Discriminators
from codec.training.codec.losses import (
    EMA,
    Spectral,
    SpectralLoss,
    band_level_loss,
    discriminator_loss,
    feature_loss,
    generator_loss,
    hop_modulation_loss,
    hop_periodicity_loss,
    loss_balancer_weights,
)
from codec.training.codec.recipe import Recipe
from codec.training.logger import Record, Tally, live, usage
from codec.training.optimizer import autocast_dtype, clip, finite, follow, left_out, schedule, to_blame, whole_batch

FREE = (  # what a resumed training may have changed: how it runs, and what keeps it from running away
    "train.steps",
    "train.log_every",
    "train.validate_every",
    "train.save_every",
    "train.precision",
    "optimizer.lr",
    "discriminator.lr",
    "train.accumulate",
    "train.checkpoint_activations",
    "train.sharding",
    "train.compile",
    "data.num_workers",
)
HOP_LOSSES = {"periodicity": hop_periodicity_loss, "level": band_level_loss, "modulation": hop_modulation_loss}
# losses of the decoded audio; the others are of latents
AUDIBLE = (*Spectral._fields, *HOP_LOSSES, "adversarial", "feature_matching")


@dataclass
class Players:
    """The two sides of the game, and what trains them."""

    model: CausalCodec
    average: CausalCodec
    """Moving average of the model's weights."""
    optimizer: torch.optim.Optimizer
    discriminators: Discriminators
    discriminators_optimizer: torch.optim.Optimizer
    averages: EMA
    """Of the latents' power and, for balance, of the norms of the losses' gradients."""
    scaler: torch.amp.GradScaler
    """Keeps both sides' gradients within the range of float16."""
    ddp_model: nn.Module
    """The model, averaging its gradients over all processes; alone, the model itself."""
    ddp_discriminators: nn.Module


TRAINED = (
    "model",
    "average",
    "optimizer",
    "discriminators",
    "discriminators_optimizer",
    "averages",
    "scaler",
)  # what a state holds


def train_step(players: Players, spectral: SpectralLoss, audio: Audio, step: int, recipe: Recipe) -> dict[str, Tensor]:
    """One step of both sides on this process's rows [rows, 1, time] of the batch.

    Gives the losses by name, before weighting, the learning rates, and the gradients' norms before clipping, all of the
    whole batch.
    """
    torch.manual_seed(int(np.random.default_rng((recipe.train.seed, step, 3)).integers(2**63)))
    parts, scaler, weights = recipe.train.accumulate, players.scaler, weights_at(step, recipe)
    since = -1 if recipe.discriminator.start is None else step - recipe.discriminator.start
    judged, taught = since >= 0, since >= 0 and since % recipe.discriminator.update_every == 0
    dtype = autocast_dtype(recipe.train.precision, audio.device)
    autocast = partial(torch.autocast, audio.device.type, dtype, enabled=dtype != torch.float32)
    # what the stages left counts relative to the latents, so that its weight means the same at every scale
    power = players.averages["latents"].clamp(min=1e-6) if "latents" in players.averages else 1.0  # as `fit` makes it
    shares: Mapping[str, float | Tensor] = {name: weights[name] for name in AUDIBLE if name in weights}
    if recipe.losses.balance:
        shares = loss_balancer_weights(shares, players.averages)

    measures, seen = [], []
    players.optimizer.zero_grad(set_to_none=True)
    players.discriminators_optimizer.zero_grad(set_to_none=True)
    depths = own_codebooks(len(audio), step, recipe).to(audio.device)
    audio, entries = reencoded(players.model, audio, step, recipe)
    known_mean = distributed.all_reduce_sum((~entries.isnan()).sum().float()) / parts / distributed.count()  # of a part
    for number, (rows, num_codebooks, known) in enumerate(
        zip(audio.chunk(parts), depths.chunk(parts), entries.chunk(parts), strict=True)
    ):
        engine.exchange_gradients(number == parts - 1, players.ddp_model, players.ddp_discriminators)
        with autocast():
            decoded, latents, quantized = players.ddp_model(rows, num_codebooks)
        heard = decoded.detach().requires_grad_()  # what the losses ask of the audio is handed to the model in one pass
        losses: dict[str, Tensor] = spectral(heard, rows, half=step % 2)._asdict()
        for name, of_hops in HOP_LOSSES.items():
            losses[name] = of_hops(heard, rows, sample_rate=recipe.model.sample_rate, hop=recipe.model.hop)
        losses["idempotence"] = idempotence(latents, known, known_mean) / power
        losses["commitment"] = quantized.commitment / power / recipe.model.num_codebooks
        losses["codebook"] = quantized.codebook / power / recipe.model.num_codebooks

        if judged:
            first, last = judged_part(audio.shape[-1], step, recipe)
            discriminators = players.ddp_discriminators if taught else players.discriminators
            with autocast():
                fake = discriminators(heard[..., first:last])
                with torch.set_grad_enabled(taught):
                    real = discriminators(rows[..., first:last])
            losses["adversarial"] = generator_loss(fake.scores)
            losses["feature_matching"] = feature_loss(real.features, fake.features)
            if taught:
                losses["discriminator"] = discriminator_loss(real.scores, fake.scores)
                loss = scaler.scale(losses["discriminator"] / parts)
                torch.autograd.backward(loss, inputs=list(players.discriminators.parameters()), retain_graph=True)

        scale = scaler.get_scale() / parts
        asked, squares = audio_gradient(losses, shares, heard, scale, balance=recipe.losses.balance)
        latent = [weights.get(name, 0.0) * losses[name] for name in ("commitment", "codebook", "idempotence")]
        total = (decoded * asked).sum() + scaler.scale(torch.stack(latent).sum() / parts)
        total.backward()
        seen.append(quantized)
        measured = {f"square of {name}": square for name, square in squares.items()}
        measures.append(losses | measured | {"latents": latents.float().square().mean()})

    losses = whole_batch(measures)
    averaged = {"latents": losses.pop("latents")}
    for name in squares:  # a part's loss is a mean of its own rows, which are not all there are
        averaged[name] = (losses.pop(f"square of {name}") / parts / distributed.count()).sqrt()
    sides = {"model": (players.optimizer, recipe.optimizer.lr * schedule(step, recipe.train.steps, recipe.optimizer))}
    if taught:
        sides["discriminators"] = (
            players.discriminators_optimizer,
            recipe.discriminator.lr * min(warmth(step, recipe), schedule(step, recipe.train.steps, recipe.optimizer)),
        )
    for name, (optimizer, rate) in sides.items():
        losses[f"lr/{name}"] = torch.tensor(rate)
        losses[f"gradient/{name}"] = clip(optimizer, rate, scaler, recipe.optimizer.grad_clip)
    if can_step(losses, step, recipe, scaler):
        for optimizer, _ in sides.values():
            scaler.step(optimizer)
        players.model.quantizer.update_codebook(seen)
        follow(players.average, players.model, decay=recipe.optimizer.ema_decay, step=step)
        players.averages.add(averaged)
    scaler.update()
    codes = torch.cat([quantized.codes for quantized in seen])
    losses["usage"] = distributed.all_reduce_sum(usage(codes, recipe.model.codebook_size))
    return losses


# the parts of a step


def weights_at(step: int, recipe: Recipe) -> dict[str, float]:
    """Weight of every loss that is not switched off; what the discriminators say comes in over the warm-up."""
    weights = {name: float(weight) for name, weight in recipe.losses if name != "balance"}
    weights["adversarial"] *= warmth(step, recipe)
    weights["feature_matching"] *= warmth(step, recipe)
    return {name: weight for name, weight in weights.items() if weight}


def audio_gradient(
    losses: Mapping[str, Tensor], shares: Mapping[str, float | Tensor], heard: Audio, scale: float, *, balance: bool
) -> tuple[Audio, dict[str, Tensor]]:
    """What the losses of the decoded audio ask of it: `scale` times the gradient of their weighted sum.

    For balance, also the square of the norm of each loss's own gradient. The graphs of the losses are used up.
    """
    named = {name: losses[name] for name in AUDIBLE if name in losses}
    if not balance:
        total = torch.stack([shares[name] * loss for name, loss in named.items() if name in shares]).sum()
        return torch.autograd.grad(scale * total, heard)[0], {}
    gradients = {name: torch.autograd.grad(scale * loss, heard, retain_graph=True)[0] for name, loss in named.items()}
    asked = torch.zeros_like(heard)
    for name, gradient in gradients.items():
        if name in shares:
            asked = asked + shares[name] * gradient
    return asked, {name: (gradient / scale).square().sum() for name, gradient in gradients.items()}


def can_step(losses: Mapping[str, Tensor], step: int, recipe: Recipe, scaler: torch.amp.GradScaler) -> bool:
    """Whether the gradients are finite; in float16 steps are left out until their scale fits.

    Raises:
        ConfigError: they are not, and no scale would help; the message names the losses to blame.
    """
    if finite(losses):
        return True
    if left_out(losses, scaler):
        return False
    wrong = to_blame(losses, [*weights_at(step, recipe), "discriminator"])
    of_judges = not wrong.keys() - {"adversarial", "feature_matching", "discriminator", "gradient/discriminators"}
    rate = f"discriminator.lr = {recipe.discriminator.lr}" if of_judges else f"optimizer.lr = {recipe.optimizer.lr}"
    raise ConfigError(
        f"in step {step} {' and '.join(f'{name} became {value}' for name, value in wrong.items())}: "
        f"lower {rate} or set train.precision = float32, and resume"
    )


def own_codebooks(rows: int, step: int, recipe: Recipe) -> Tensor:
    """`dropped_books` of the rows that this process has of the batch."""
    return dropped_codebooks(rows * distributed.count(), step, recipe)[distributed.rank() * rows :][:rows]


@torch.no_grad()
def reencoded(model: CausalCodec, audio: Audio, step: int, recipe: Recipe) -> tuple[Audio, Tensor]:
    """The rows [rows, 1, time] of a batch, some of them as they come back from being coded once to four times.

    Also the entries [rows, dim, frames] that these were decoded from last, NaN where there are none.
    """
    dim, frames = recipe.model.dim, model.frame_spec.frames(audio.shape[-1])
    entries = torch.full((len(audio), dim, frames), torch.nan, device=audio.device)
    times = [generations(step, row, recipe) for row in range(len(audio) * distributed.count())]
    shares = [times[first : first + len(audio)] for first in range(0, len(times), len(audio))]
    if recipe.model.quantizer == "none":
        return audio, entries
    audio = audio.clone()
    own = shares[distributed.rank()]
    for row in range(len(audio)):
        for _ in range(own[row]):
            trained = model(audio[row : row + 1])
            audio[row] = trained.audio[0].float().clamp(-1, 1)
        if own[row] and recipe.model.quantizer in ("residual", "vector"):  # the others' entries are not latents
            residual = trained.quantized.latents[:, :dim]
            entries[row] = torch.where(trained.quantized.codes[:, -1:] >= 0, residual, torch.nan)[0].float()
    if engine.is_sharded(model):  # whose weights come together in all processes at once
        for _ in range(max(map(sum, shares)) - sum(own)):
            model(audio[:1])
    return audio, entries


def generations(step: int, row: int, recipe: Recipe) -> int:
    """How often a row of the whole batch is coded and decoded before it is trained on."""
    rng = np.random.default_rng((recipe.train.seed, step, 4, row))
    return int(rng.integers(1, 5)) if rng.random() < recipe.train.reencoded else 0


def idempotence(latents: Tensor, entries: Tensor, count: Tensor) -> Tensor:
    """Square distance of latents [rows, dim, frames] from the entries that are known, over their mean `count` in such
    a part of the batch; so that the mean over all parts is that of the batch.
    """
    known = ~entries.isnan()
    distance = torch.where(known, latents.float() - entries.nan_to_num(), 0.0).square().sum()
    return distance / torch.where(count > 0, count, 1.0)


def warmth(step: int, recipe: Recipe) -> float:
    """How much the discriminators matter: a line from 0 before they join to 1 after `warmup` steps."""
    start = recipe.discriminator.start
    return 0.0 if start is None else min(1.0, max(0.0, (step - start + 1) / recipe.optimizer.warmup))


def dropped_codebooks(batch: int, step: int, recipe: Recipe) -> Tensor:
    """Codebooks [batch] that each item trains with: all, or for a share of the items a random number.

    That number is log-uniform, because one codebook more matters most where there are few.
    """
    rng = np.random.default_rng((recipe.train.seed, step, 1))
    num_codebooks = (
        np.exp(rng.random(batch) * math.log(recipe.model.num_codebooks + 1))
        .astype(np.int64)
        .clip(1, recipe.model.num_codebooks)
    )
    whole = rng.random(batch) >= recipe.train.quantizer_dropout
    return torch.from_numpy(np.where(whole, recipe.model.num_codebooks, num_codebooks))


def judged_part(time: int, step: int, recipe: Recipe) -> tuple[int, int]:
    """(first, last) samples of the part of every crop that the discriminators see in this step."""
    length = min(time, round(recipe.discriminator.crop * recipe.model.sample_rate))
    first = int(np.random.default_rng((recipe.train.seed, step, 2)).integers(0, time - length + 1))
    return first, first + length


def train(
    recipe: Recipe, *, data: Path, out: Path, resume: bool = False, steps: int | None = None, device: str | None = None
) -> Path:
    """Train by a recipe on a folder of audio; the path of the trained model's file.

    `steps` stops early without changing the schedule. A run's folder holds `model.safetensors` (averaged weights, ready
    for use), `state.pt` (to resume), TensorBoard events, `record.csv` and the index of the audio. Processes started by
    `torchrun` or `accelerate launch` share every batch, so that they train what one alone would; the first one writes.

    Raises:
        ConfigError: the folder holds a training already; to resume, it is one of another recipe or other audio; the
            batch does not divide into the processes; a loss is not finite any more; or memory does not suffice.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the step is done and the checkpoint saved.
    """
    with (
        engine.launched(device) as accelerator,
        storing_below(out, instead="choose another --out"),
        locked_folder(out, "training run") if accelerator.is_main_process else nullcontext(),
        engine.within_memory(*ways(recipe), workers=recipe.data.num_workers),
    ):
        main, place = accelerator.is_main_process, accelerator.device
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, quiet=not main)
        rows = engine.share(recipe.data.batch_size, recipe.train.accumulate)
        state = engine.resumable(out / RUN_STATE, recipe, needs=TRAINED, free=FREE) if resume else None
        if state is None and (out / RUN_STATE).exists():
            raise ConfigError(f"{out} holds a training already: add --resume to go on, or choose another --out")
        with accelerator.main_process_first():
            known = state.get("audio", True) if state else False  # what the training began with
            crops, valid = material(recipe, data, out, report=console.print, resumed=known)
        players = assemble(recipe, place)
        if state is None:
            console.print(
                f"begin with {recipe.train.start_from or f'a fit to {recipe.data.init_seconds:g} s of audio'}"
            )
            with engine.within_memory(f"data.init_seconds = {recipe.data.init_seconds:g} lower"):
                first = begin(players, crops, recipe)
        else:
            first = engine.restore(players, state, TRAINED)
        if recipe.train.sharding == "full" and distributed.count() > 1:
            engine.shard(players.average)
            engine.shard(players.model, players.optimizer)
        else:
            players.ddp_model = engine.join(accelerator, players.model)
        players.ddp_discriminators = engine.join(accelerator, players.discriminators)
        last = min(steps or recipe.train.steps, recipe.train.steps)
        if first >= last:
            console.print(f"{first} steps are done already: nothing is left up to step {last}")

        spectral = SpectralLoss(recipe.model.sample_rate).to(place)
        tally, numbers, bad = (
            Tally(recipe.data.batch_size * recipe.data.crop, recipe.model.codebook_size),
            dict[str, float](),
            list[tuple[str, str]](),
        )
        with ExitStack() as stack:
            record = stack.enter_context(Record(out, first, report=console.print)) if main else None
            show = stack.enter_context(live(console, recipe.name, first, last))
            interrupted = stack.enter_context(engine.interrupts())
            ahead = stack.enter_context(
                closing(batches(crops, first, last, rows=rows, workers=recipe.data.num_workers))
            )
            clips = valid.first_clips(24).to(place) if main else None
            if record and clips is not None and state is None:
                record.clips(0, "original", clips[:8], recipe.model.sample_rate)
            for step, batch in tally.waiting(ahead):
                tally.add(train_step(players, spectral, batch.audio.to(place), step, recipe))
                bad += batch.bad
                done = step + 1
                stop = distributed.any_rank(interrupted(), place)
                if done % recipe.train.log_every == 0 or done == last or stop:
                    for _, reason in tally.left_out(engine.of_all(bad)):
                        console.print(f"left out: {reason}")
                    bad = []
                    numbers = tally.numbers()
                    if record:
                        record.numbers(done, numbers)
                show(done, numbers)
                validating = done % recipe.train.validate_every == 0 or done == last
                saving = done % recipe.train.save_every == 0 or done == last or stop
                average = whole_average(players) if validating or saving else players.average
                if record and clips is not None and validating:
                    with tally.aside():
                        valid_numbers = validate(average, spectral, clips, record, done)
                    mel = (f"{valid_numbers[name]:.2f} ({name.split()[1]})" for name in valid_numbers if "/mel" in name)
                    console.print(f"step {done}: mel of the validation clips (codebooks) {', '.join(mel)}")
                if saving:
                    states = state_of(players, done, recipe) | {"audio": crops.index.key}
                    if main:
                        training = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "step": done}
                        save_model(out / RUN_MODEL, average, training=training)  # first: a state promises its model
                        save_state(out / RUN_STATE, states)
                    accelerator.wait_for_everyone()  # a process that ended would have its launcher end the others
                if stop:
                    console.print(f"stopped after step {done}, which is saved in {out}: --resume goes on from there")
                    raise KeyboardInterrupt
    return out / RUN_MODEL


# before the loop


def ways(recipe: Recipe) -> list[str]:
    """What to set for less memory, the best first."""
    data, settings = recipe.data, recipe.train
    ways = [] if settings.checkpoint_activations else ["train.checkpoint_activations = true"]
    if data.batch_size > settings.accumulate:
        ways.append(f"train.accumulate = {settings.accumulate} higher")
    return [*ways, f"data.crop = {data.crop} lower", f"data.batch_size = {data.batch_size} lower"]


def assemble(recipe: Recipe, place: torch.device) -> Players:
    """Both sides with fresh weights, the same in every process."""

    def adamw(module: nn.Module) -> torch.optim.Optimizer:
        settings = recipe.optimizer
        return torch.optim.AdamW(
            module.parameters(), betas=settings.betas, weight_decay=settings.weight_decay, fused=True
        )

    torch.manual_seed(recipe.train.seed)
    model = CausalCodec(recipe.model).to(place).train()
    discriminators = Discriminators(recipe.discriminator.windows, recipe.discriminator.channels).to(place)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    engine.equip(model, recipe.train)
    engine.equip(discriminators, recipe.train)
    half = autocast_dtype(recipe.train.precision, place) == torch.float16
    scaler = torch.amp.GradScaler(place.type, enabled=half)
    return Players(
        model, average, adamw(model), discriminators, adamw(discriminators), EMA(0.99), scaler, model, discriminators
    )


def begin(players: Players, crops: Crops, recipe: Recipe) -> int:
    """Start from a model, or the closed form on audio that each process decodes its share of; the first step.

    Raises ConfigError: the model to start from is another.
    """
    if recipe.train.start_from:
        known = pretrained.load(recipe.train.start_from, "cpu")
        old, new = (config.model_dump() for config in (known.config, recipe.model))
        changes = [
            f"{key} ({old.get(key)}, not {new[key]})" for key in new if key != "beam_size" and old.get(key) != new[key]
        ]
        if changes:
            raise ConfigError(
                f"train.start_from = {recipe.train.start_from} is another model: it has {', '.join(changes)}; set "
                "[model] to match, or leave train.start_from out"
            )
        players.model.load_state_dict(known.state_dict())
        with torch.no_grad():
            latents = players.model(crops.batch(0).audio.to(players.model.device)).latents
        players.averages.add({"latents": latents.square().mean()})
    else:
        crops_to_fit = math.ceil(recipe.data.init_seconds / recipe.data.crop)
        first, last = ((distributed.rank() + more) * crops_to_fit // distributed.count() for more in (0, 1))
        audio = crops.fit_audio(recipe.data.init_seconds, first, last).to(players.model.device)
        players.model.init_from_audio(distributed.all_gather_rows(audio))
        distributed.broadcast_(*players.model.parameters(), *players.model.buffers())
    players.average.load_state_dict(players.model.state_dict())
    return 0


# around the loop


def whole_average(players: Players) -> CausalCodec:
    """The averaged model; where its weights lie in shards, a copy that has them all."""
    if not engine.is_sharded(players.average):
        return players.average
    copied = CausalCodec(players.average.config).to(players.average.device).eval()
    copied.load_state_dict(engine.whole(players.average.state_dict()))
    return copied


@torch.no_grad()
def validate(model: CausalCodec, spectral: SpectralLoss, clips: Audio, record: Record, step: int) -> dict[str, float]:
    """Record how fixed clips come back at one codebook, a quarter, half and all of them; the spectral distances."""
    config = model.config
    numbers: dict[str, float] = {}
    for num_codebooks in sorted(
        {1, max(1, config.num_codebooks // 4), max(1, config.num_codebooks // 2), config.num_codebooks}
    ):
        if config.quantizer == "none":  # which has no codes
            decoded = model(clips).audio
        else:
            decoded = model.decode(model.encode(clips, num_codebooks=num_codebooks), length=clips.shape[-1])
        for name, value in spectral(decoded, clips)._asdict().items():
            numbers[f"valid/{name} {num_codebooks} codebooks"] = float(value)
        if num_codebooks in (1, config.num_codebooks):
            record.clips(step, f"{num_codebooks} codebooks", decoded[:8], config.sample_rate, original=clips[:8])
    record.numbers(step, numbers)
    return numbers


def state_of(players: Players, step: int, recipe: Recipe) -> dict[str, Any]:
    """Everything that the next step depends on; what it draws at random depends on its number."""
    return {"step": step, "recipe": recipe.model_dump(mode="json"), **engine.states(players, TRAINED)}
