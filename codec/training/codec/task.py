"""Training of a codec: the step with its losses, the initialization from audio, validation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from codec import models, pretrained
from codec.checkpoint import save_model
from codec.errors import ConfigError
from codec.models.base import Codec, CodecConfig, without_peak_warnings
from codec.nn import distributed
from codec.nn.quantize.base import Quantized
from codec.nn.shapes import Audio
from codec.training import engine, loop
from codec.training.codec.crops import Batch, Crops, load_batches, open_crops
from codec.training.codec.discriminators import DiscriminatorOutput, Discriminators
from codec.training.codec.losses import (
    EMA,
    LossBalancer,
    Spectral,
    SpectralLoss,
    average_level_loss,
    band_level_loss,
    coloration_loss,
    discriminator_loss,
    feature_loss,
    generator_loss,
    hop_modulation_loss,
    hop_periodicity_loss,
)
from codec.training.codec.recipe import (
    DataConfig,
    DiscriminatorConfig,
    LossConfig,
    OptimizerConfig,
    Recipe,
    TrainConfig,
)
from codec.training.engine import (
    autocast_dtype,
    batch_mean,
    can_step,
    clip_gradients,
    grad_scaler,
    lr_scale,
    update_ema,
)
from codec.training.logger import FileNote, Logger, Meter, count_codes

AUDIO_LOSSES = (
    *Spectral._fields,
    "periodicity",
    "level",
    "average_level",
    "modulation",
    "coloration",
    "adversarial",
    "feature_matching",
)
"""Losses of the decoded audio."""
LATENT_LOSSES = ("commitment", "codebook", "idempotence")
ADVERSARIAL = {"adversarial", "feature_matching", "discriminator", "grad_norm/discriminators"}
"""Metrics that are not finite when the discriminators diverge."""
VALIDATION_CLIPS = 24
LOGGED_CLIPS = 4  # each with a picture, which takes as long as a step
SQUARE = "square of "  # of the norm of a loss's gradient
LATENT_POWER = "mean square of the latents"


class MicroBatch(NamedTuple):
    """The rows of one forward and backward pass."""

    audio: Audio
    n_codebooks: Tensor
    """Codebooks [rows] that each row trains with."""
    entries: Tensor
    """As `recode` returns them."""
    mean_known: Tensor
    """Mean number of known entries in a micro-batch."""


@dataclass
class TrainState:
    """Everything that a step depends on; what it draws at random depends on its number."""

    model: Codec
    ema_model: Codec
    optimizer: torch.optim.Optimizer
    discriminators: Discriminators
    discriminator_optimizer: torch.optim.Optimizer
    latent_power: EMA
    """Mean square of the latents."""
    balancer: LossBalancer
    scaler: torch.amp.GradScaler
    """Keeps float16 gradients of both optimizers in range."""
    ddp_model: nn.Module
    """The model with gradients averaged over all processes; with one process, the model itself."""
    ddp_discriminators: nn.Module


class CodecTask:
    """Train a codec with spectral, quantizer and adversarial losses on random crops of recordings."""

    STATE: ClassVar[tuple[str, ...]] = (
        *("model", "ema_model", "optimizer", "discriminators", "discriminator_optimizer"),
        *("latent_power", "balancer", "scaler"),
    )
    MUTABLE_KEYS: ClassVar[tuple[str, ...]] = (
        *("train.steps", "train.log_every", "train.validate_every", "train.save_every", "train.precision"),
        *("train.accumulate", "train.checkpoint_activations", "train.sharding", "train.compile", "data.num_workers"),
        *("optimizer.lr", "discriminator.lr"),  # to lower when a loss diverges
    )

    def __init__(
        self,
        name: str,
        model: CodecConfig,
        device: torch.device,
        *,
        data: DataConfig,
        losses: LossConfig,
        optimizer: OptimizerConfig,
        discriminator: DiscriminatorConfig,
        run: TrainConfig,
        train_data: Crops | None = None,
        valid_data: Crops | None = None,
        provenance: Mapping[str, Any] | None = None,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.name = name
        self.device = device
        self.data_key = "" if train_data is None else train_data.index.key
        self.provenance = dict(provenance or {})
        self.report = report
        self.data, self.losses, self.optimizer = data, losses, optimizer
        self.discriminator, self.run = discriminator, run
        self.train_state = self.create_state(model)
        channels = self.train_state.model.channels
        self.train_data = None if train_data is None else train_data.with_channels(channels)
        self.valid_data = None if valid_data is None else valid_data.with_channels(channels)
        self.spectral = SpectralLoss(model.sample_rate).to(device)
        self.meter = Meter(data.batch_size * data.crop, model.codebook_size)
        self.clips: Audio | None = None  # for validation
        self.notes: list[FileNote] = []

    def create_state(self, config: CodecConfig) -> TrainState:
        """Fresh weights, the same in every process."""

        def adamw(module: nn.Module) -> torch.optim.Optimizer:
            config = self.optimizer
            return torch.optim.AdamW(
                module.parameters(), betas=config.betas, weight_decay=config.weight_decay, fused=True
            )

        torch.manual_seed(self.run.seed)
        model = models.build(config.family, config.model_dump()).to(self.device).train()
        discriminators = Discriminators(self.discriminator.windows, self.discriminator.channels).to(self.device)
        if self.run.decoder_only:
            model.encoder.requires_grad_(False)
            model.quantizer.requires_grad_(False)
        ema_model = copy.deepcopy(model).eval().requires_grad_(False)
        if self.run.checkpoint_activations:
            for block in model.checkpoint_blocks():
                block.checkpointed = True
        if self.run.compile:
            model.compile()
            discriminators.compile()
        return TrainState(
            model,
            ema_model,
            adamw(model),
            discriminators,
            adamw(discriminators),
            EMA(0.99),
            LossBalancer(0.99),
            grad_scaler(self.run.precision, self.device),
            model,
            discriminators,
        )

    def initialize(self, logger: Logger) -> None:
        """Start from `train.start_from`, or initialize from audio, of which each process reads its share.

        Raises ConfigError: the model to start from has another configuration. UsageError: the audio is silence.
        """
        assert self.train_data is not None
        state, start_from, seconds = self.train_state, self.run.start_from, self.data.init_seconds
        self.train_data.check_sound()
        known = load_pretrained(state.model, start_from) if start_from else 0
        if start_from:
            self.report(f"start from {start_from}")
        if added := state.model.num_codebooks - known:
            self.report(f"initialize {f'{added} more codebooks ' if known else ''}from {seconds:g} s of audio")
            with engine.memory_errors(f"data.init_seconds = {seconds:g} lower"):
                crops = math.ceil(seconds / self.data.crop)
                first, last = ((distributed.rank() + more) * crops // distributed.count() for more in (0, 1))
                audio = self.train_data.init_audio(seconds, first, last).to(self.device)
                audio = distributed.all_gather_rows(audio)
                state.model.init_added(audio, known) if known else state.model.init_from_audio(audio)
            distributed.broadcast_(*state.model.parameters(), *state.model.buffers())
        if start_from:
            with torch.no_grad():
                latents = state.model(self.train_data.batch(0).audio.to(self.device)).latents
            state.latent_power.add({"latents": latents.square().mean()})
        state.ema_model.load_state_dict(state.model.state_dict())
        if logger.enabled:
            clips = self.validation_clips()[:LOGGED_CLIPS]
            logger.log_audio(0, "original", clips, state.model.sample_rate)

    def distribute(self, accelerator: Accelerator) -> None:
        """Shard the model (FSDP) or wrap it (DDP); the discriminators are wrapped."""
        state = self.train_state
        if self.run.sharding == "full" and distributed.count() > 1:
            engine.shard(state.ema_model, state.ema_model.checkpoint_blocks())
            engine.shard(state.model, state.model.checkpoint_blocks(), state.optimizer)
        else:
            state.ddp_model = engine.data_parallel(accelerator, state.model)
        state.ddp_discriminators = engine.data_parallel(accelerator, state.discriminators)

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Batches of crops, read ahead by worker processes."""
        assert self.train_data is not None
        rows = engine.rows_of_process(self.data.batch_size, self.run.accumulate)
        yield from load_batches(self.train_data, first, last, rows=rows, num_workers=self.data.num_workers)

    def step(self, batch: Batch, step: int) -> loop.Metrics:
        """Train the model, and in every `update_every`-th step the discriminators, on this process's rows.

        Returns the losses before weighting, the learning rates, and the gradient norms before clipping.
        """
        state, parts = self.train_state, self.run.accumulate
        self.notes += batch.notes
        torch.manual_seed(int(np.random.default_rng((self.run.seed, step, 3)).integers(2**63)))
        adversarial_on, update_discriminator = self.adversarial_stage(step)
        weights, power = self.loss_weights(step), self.latent_power()
        hop = {"sample_rate": state.model.sample_rate, "hop": state.model.frame_spec.hop}
        crop = slice(*self.discriminator_crop(batch.audio.shape[-1], step))
        metrics, quantized_parts = [], []
        state.optimizer.zero_grad(set_to_none=True)
        state.discriminator_optimizer.zero_grad(set_to_none=True)
        for part, micro_batch in enumerate(self.micro_batches(batch.audio.to(self.device), step)):
            engine.sync_gradients(part == parts - 1, state.ddp_model, state.ddp_discriminators)
            with self.autocast():
                output, latents, quantized = state.ddp_model(micro_batch.audio, micro_batch.n_codebooks)
            decoded = output.detach().requires_grad_()  # the losses' gradient goes back to the model in one pass
            decoded_mono, audio_mono = split_channels(decoded), split_channels(micro_batch.audio)

            spectral = self.spectral(decoded_mono, audio_mono, half=step % 2)
            losses: dict[str, Tensor] = {
                **spectral._asdict(),
                "periodicity": hop_periodicity_loss(decoded_mono, audio_mono, **hop),
                "level": band_level_loss(decoded_mono, audio_mono, **hop),
                "average_level": average_level_loss(decoded_mono, audio_mono, **hop),
                "modulation": hop_modulation_loss(decoded_mono, audio_mono, **hop),
                "coloration": coloration_loss(decoded_mono, audio_mono, **hop),
                "idempotence": idempotence_loss(latents, micro_batch.entries, micro_batch.mean_known) / power,
                "commitment": quantized.commitment / power / state.model.num_codebooks,
                "codebook": quantized.codebook / power / state.model.num_codebooks,
            }
            if adversarial_on:
                real, fake = self.discriminate(
                    audio_mono[..., crop], decoded_mono[..., crop], update=update_discriminator
                )
                losses["adversarial"] = generator_loss(fake.scores)
                losses["feature_matching"] = feature_loss(real.features, fake.features)
                if update_discriminator:
                    losses["discriminator"] = discriminator_loss(real.scores, fake.scores)

            squares = self.backward(losses, weights, output, decoded)
            quantized_parts.append(quantized)
            metrics.append(losses | squares | {LATENT_POWER: latents.float().square().mean()})
        lrs = self.learning_rates(step, discriminators=update_discriminator)
        return self.update(batch_mean(metrics), quantized_parts, lrs, step)

    # the parts of a step

    def adversarial_stage(self, step: int) -> tuple[bool, bool]:
        """Whether the discriminators have joined, and whether this step updates them."""
        since = -1 if self.discriminator.start is None else step - self.discriminator.start
        return since >= 0, since >= 0 and since % self.discriminator.update_every == 0

    def latent_power(self) -> Tensor | float:
        """Mean square of the latents: losses of latents are relative to it, so weights mean the same at any scale."""
        power = self.train_state.latent_power
        return power["latents"].clamp(min=1e-6) if "latents" in power else 1.0

    def micro_batches(self, audio: Audio, step: int) -> Iterator[MicroBatch]:
        """Micro-batches of this process's rows [rows, channels, time], some of them encoded and decoded before."""
        n_codebooks = self.sample_num_codebooks(len(audio), step).to(self.device)
        audio, entries = recode(self.train_state.model, audio, self.sample_generations(len(audio), step))
        parts = self.run.accumulate
        mean_known = distributed.all_reduce_sum((~entries.isnan()).sum().float()) / parts / distributed.count()
        for part in zip(audio.chunk(parts), n_codebooks.chunk(parts), entries.chunk(parts), strict=True):
            yield MicroBatch(*part, mean_known)

    def autocast(self) -> torch.autocast:
        """The precision of the networks."""
        dtype = autocast_dtype(self.run.precision, self.device)
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def discriminate(
        self, real: Audio, decoded: Audio, *, update: bool
    ) -> tuple[DiscriminatorOutput, DiscriminatorOutput]:
        """The discriminators' outputs for real and for decoded audio; those for real audio train them if `update`."""
        discriminators = self.train_state.ddp_discriminators if update else self.train_state.discriminators
        with self.autocast():
            fake = discriminators(decoded)
            with torch.set_grad_enabled(update):
                return discriminators(real), fake

    def backward(
        self, losses: Mapping[str, Tensor], weights: Mapping[str, float], output: Audio, decoded: Audio
    ) -> dict[str, Tensor]:
        """Add the gradients of a micro-batch; returns the squares of the norms of `audio_gradient`."""
        state, parts, scaler = self.train_state, self.run.accumulate, self.train_state.scaler
        if "discriminator" in losses:
            loss = scaler.scale(losses["discriminator"] / parts)
            torch.autograd.backward(loss, inputs=list(state.discriminators.parameters()), retain_graph=True)
        shares = {name: weights[name] for name in AUDIO_LOSSES if name in weights}
        audio_weights = state.balancer.scale(shares) if self.losses.balance else shares
        scale = scaler.get_scale() / parts
        gradient, squares = audio_gradient(losses, audio_weights, decoded, scale, balance=self.losses.balance)
        of_latents = [weights.get(name, 0.0) * losses[name] for name in LATENT_LOSSES]
        total = (output * gradient).sum() + scaler.scale(torch.stack(of_latents).sum() / parts)
        torch.autograd.backward(total)
        return squares

    def update(
        self,
        metrics: dict[str, Tensor],
        quantized: Sequence[Quantized],
        lrs: Mapping[str, float],
        step: int,
    ) -> loop.Metrics:
        """Clip the gradients, step the optimizers of `lrs` and update codebooks and averages; the metrics to log.

        `metrics` are the means over the batch.
        """
        state, scaler = self.train_state, self.train_state.scaler
        squares = {name: metrics.pop(name) for name in list(metrics) if name.startswith(SQUARE)}
        norms = {name: (square / self.run.accumulate / distributed.count()).sqrt() for name, square in squares.items()}
        latent_power = metrics.pop(LATENT_POWER)
        optimizers = {"model": state.optimizer, "discriminators": state.discriminator_optimizer}
        for name, lr in lrs.items():
            metrics[f"lr/{name}"] = torch.tensor(lr)
            metrics[f"grad_norm/{name}"] = clip_gradients(
                optimizers[name], scaler, lr=lr, max_norm=self.optimizer.grad_clip
            )
        losses = [*self.loss_weights(step), "discriminator"]
        if can_step(metrics, scaler, step=step, losses=losses, lr_setting=self.lr_setting):
            for name in lrs:
                scaler.step(optimizers[name])
            if not self.run.decoder_only:
                state.model.quantizer.update_codebook(quantized)
            update_ema(state.ema_model, state.model, decay=self.optimizer.ema_decay, step=step)
            state.latent_power.add({"latents": latent_power})
            state.balancer.update({name.removeprefix(SQUARE): norm for name, norm in norms.items()})
        scaler.update()
        codes = torch.cat([part.codes for part in quantized])
        metrics["code_counts"] = distributed.all_reduce_sum(count_codes(codes, state.model.codebook_size))
        return metrics

    def file_notes(self) -> list[FileNote]:
        """Notes on the files of the batches since the last call."""
        notes, self.notes = self.notes, []
        return notes

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics as they are."""
        return metrics

    def validate(self, logger: Logger, step: int) -> str:
        """Log spectral distances and audio of fixed clips at one codebook, a quarter, half and all of them."""
        model = self.full_ema_model()
        if not logger.enabled:
            return ""
        metrics = validate(model, self.spectral, self.validation_clips(), logger, step)
        prefix = "valid mel/"
        mel = (
            f"{value:.2f} ({name.removeprefix(prefix).split()[0]})"
            for name, value in metrics.items()
            if name.startswith(prefix)
        )
        return f"mel of the validation clips (codebooks) {', '.join(mel)}"

    def save(self, path: Path, step: int) -> None:
        """Save the averaged model with the recipe, the data and the step."""
        model = self.full_ema_model()
        if distributed.rank() == 0:
            save_model(path, model, training=self.provenance | {"step": step})

    def full_ema_model(self) -> Codec:
        """The averaged model; if its weights are sharded, a copy with all of them."""
        model = self.train_state.ema_model
        if not engine.is_sharded(model):
            return model
        full = models.build(model.config.family, model.config.model_dump()).to(self.device).eval()
        full.load_state_dict(engine.gather_shards(model.state_dict()))
        return full

    def validation_clips(self) -> Audio:
        """The fixed clips [clips, channels, time] to validate on."""
        if self.clips is None:
            assert self.valid_data is not None
            self.clips = self.valid_data.fixed_clips(VALIDATION_CLIPS).to(self.device)
        return self.clips

    # what a step depends on, by its number

    def adversarial_warmup(self, step: int) -> float:
        """Factor of the adversarial losses: 0 before the discriminators join, then a line to 1 over `warmup` steps."""
        start = self.discriminator.start
        return 0.0 if start is None else min(1.0, max(0.0, (step - start + 1) / self.optimizer.warmup))

    def loss_weights(self, step: int) -> dict[str, float]:
        """The weights of all losses that are not 0; adversarial ones rise over the warm-up."""
        weights = {name: float(weight) for name, weight in self.losses if name != "balance"}
        weights["adversarial"] *= self.adversarial_warmup(step)
        weights["feature_matching"] *= self.adversarial_warmup(step)
        return {name: weight for name, weight in weights.items() if weight}

    def learning_rates(self, step: int, *, discriminators: bool) -> dict[str, float]:
        """Learning rates by network; the discriminators' has a warm-up of its own."""
        scale = lr_scale(step, self.run.steps, self.optimizer)
        rates = {"model": self.optimizer.lr * scale}
        if discriminators:
            rates["discriminators"] = self.discriminator.lr * min(self.adversarial_warmup(step), scale)
        return rates

    def lr_setting(self, metrics: Collection[str]) -> str:
        """The learning rate to lower where these metrics are not finite."""
        if not set(metrics) - ADVERSARIAL:
            return f"discriminator.lr = {self.discriminator.lr}"
        return f"optimizer.lr = {self.optimizer.lr}"

    def sample_num_codebooks(self, rows: int, step: int) -> Tensor:
        """Codebooks [rows] that each row of this process trains with (quantizer dropout)."""
        n_codebooks = sample_num_codebooks(
            rows * distributed.count(),
            self.train_state.model.codebook_choices,
            dropout=self.run.quantizer_dropout,
            seed=self.run.seed,
            step=step,
        )
        return n_codebooks[distributed.rank() * rows :][:rows]

    def sample_generations(self, rows: int, step: int) -> list[int]:
        """How often each row of the whole batch is encoded and decoded before it is trained on."""
        counts = range(rows * distributed.count())
        return [sample_generations(self.run.reencoded, seed=self.run.seed, step=step, row=row) for row in counts]

    def discriminator_crop(self, time: int, step: int) -> tuple[int, int]:
        """(first, last) samples of the part of every crop that the discriminators see in this step."""
        length = min(time, round(self.discriminator.crop * self.train_state.model.sample_rate))
        first = int(np.random.default_rng((self.run.seed, step, 2)).integers(0, time - length + 1))
        return first, first + length


def split_channels(audio: Audio) -> Audio:
    """Each channel as a row of its own, [batch * channels, 1, time], because losses and discriminators are mono."""
    return audio.flatten(0, 1)[:, None]


def audio_gradient(
    losses: Mapping[str, Tensor],
    weights: Mapping[str, float | Tensor],
    decoded: Audio,
    scale: float,
    *,
    balance: bool,
) -> tuple[Audio, dict[str, Tensor]]:
    """`scale` times the gradient of the weighted sum of the audio losses, with respect to the decoded audio.

    For the balancer, also the square of the norm of each loss's own gradient. The graphs of the losses are freed.
    """
    named = {name: losses[name] for name in AUDIO_LOSSES if name in losses}
    if not balance:
        total = torch.stack([weights[name] * loss for name, loss in named.items() if name in weights]).sum()
        return torch.autograd.grad(scale * total, decoded)[0], {}
    gradients = {name: torch.autograd.grad(scale * loss, decoded, retain_graph=True)[0] for name, loss in named.items()}
    weighted = torch.zeros_like(decoded)
    for name, gradient in gradients.items():
        if name in weights:
            weighted = weighted + weights[name] * gradient
    return weighted, {f"{SQUARE}{name}": (gradient / scale).square().sum() for name, gradient in gradients.items()}


def sample_num_codebooks(rows: int, choices: Sequence[int], *, dropout: float, seed: int, step: int) -> Tensor:
    """Codebooks [rows] that each row trains with: the last of `choices`, or with probability `dropout` any of them."""
    rng = np.random.default_rng((seed, step, 1))
    dropped = np.array(choices)[rng.integers(len(choices), size=rows)]
    return torch.from_numpy(np.where(rng.random(rows) >= dropout, choices[-1], dropped))


def sample_generations(share: float, *, seed: int, step: int, row: int) -> int:
    """How often a row is encoded and decoded before it is trained on: one to four times for a `share` of the rows."""
    rng = np.random.default_rng((seed, step, 4, row))
    return int(rng.integers(1, 5)) if rng.random() < share else 0


@torch.no_grad()
def recode(model: Codec, audio: Audio, generations: Sequence[int]) -> tuple[Audio, Tensor]:
    """Rows [rows, channels, time] of a batch after some generations of coding, and the entries of the last decoding.

    `generations` are of all rows of all processes. Entries [rows, dim, frames] are NaN where a row was not encoded, and
    as in `Codec.entries`; if all are NaN, they may be [rows, 1, frames].
    """
    frames = model.frame_spec.frames(audio.shape[-1])
    entries = torch.full((len(audio), 1, frames), torch.nan, device=audio.device)
    if not model.has_codes:
        return audio, entries
    audio = audio.clone()
    shares = [generations[first : first + len(audio)] for first in range(0, len(generations), len(audio))]
    own = shares[distributed.rank()]
    for row, count in enumerate(own):
        for _ in range(count):
            output = model(audio[row : row + 1])
            audio[row] = output.audio[0].float().clamp(-1, 1)
        if count and (own_entries := model.entries(output)) is not None:
            dim = own_entries.shape[1]
            entries = entries.expand(-1, dim, -1).clone() if entries.shape[1] != dim else entries
            entries[row] = own_entries[0]
    if engine.is_sharded(model):  # all processes gather its weights together, so they make equally many passes
        for _ in range(max(map(sum, shares)) - sum(own)):
            model(audio[:1])
    return audio, entries


def idempotence_loss(latents: Tensor, entries: Tensor, count: Tensor) -> Tensor:
    """Mean square distance of latents [rows, dim, frames] from `entries`, where these are not NaN.

    `count` is the mean number of such values in a micro-batch, so that the mean over all micro-batches is that of the
    batch.
    """
    known = ~entries.isnan()
    distance = torch.where(known, latents.float() - entries.nan_to_num(), 0.0).square().sum()
    return distance / torch.where(count > 0, count, 1.0)


@torch.no_grad()
def validate(model: Codec, spectral: SpectralLoss, clips: Audio, logger: Logger, step: int) -> dict[str, float]:
    """Log and return the spectral distances of clips at one codebook, a quarter, half and all of them."""
    most, choices = model.num_codebooks, model.codebook_choices
    metrics: dict[str, float] = {}
    parts = (most, most // 2, most // 4, 1)
    for num_codebooks in sorted({max((c for c in choices if c <= part), default=choices[0]) for part in parts}):
        label = f"{num_codebooks} codebook{'s' * (num_codebooks > 1)}"
        if not model.has_codes:
            decoded = model(clips).audio
        else:
            with without_peak_warnings():
                codes = model.encode(clips, num_codebooks=num_codebooks)
            decoded = model.decode(codes, length=clips.shape[-1])
        for name, value in spectral(split_channels(decoded), split_channels(clips))._asdict().items():
            metrics[f"valid {name}/{label}"] = float(value)
        if num_codebooks in (choices[0], most):
            pair = decoded[:LOGGED_CLIPS], clips[:LOGGED_CLIPS]
            logger.log_audio(step, f"decoded from {label}", pair[0], model.sample_rate, originals=pair[1])
    logger.log_metrics(step, metrics)
    return metrics


def load_pretrained(model: Codec, name: str) -> int:
    """Copy the weights of a pretrained model, which may have fewer codebooks and parts, and return their number.

    Raises ConfigError: its configuration is another one.
    """
    known = pretrained.load(name, "cpu")
    old, new = (config.model_dump() for config in (known.config, model.config))
    free = model.config.inference_keys | {key for key in model.config.added_keys if not old.get(key)}
    free |= {"num_codebooks"} if known.num_codebooks < model.num_codebooks else set()
    changes = [f"{key} ({old.get(key)}, not {new[key]})" for key in new if key not in free and old.get(key) != new[key]]
    if changes:
        raise ConfigError(
            f"train.start_from = {name} is another model: it has {', '.join(changes)}; set [model] to match, or leave "
            "train.start_from out"
        )
    model.start_from(known)
    return known.num_codebooks


def with_known_model(recipe: Recipe) -> Recipe:
    """The recipe with the configuration of the model that it starts from, if it names one.

    Keys of [model] replace those of the configuration if [model] is of the same family. If [model] names no family, it
    may be of another one; it is left out then. A complete [model], as a run stores it, is kept.

    Raises as `pretrained.load`.
    """
    start_from, model = recipe.train.start_from, recipe.model
    if start_from is None or model.model_fields_set == type(model).model_fields.keys():
        return recipe
    known = pretrained.describe(start_from).as_codec().config
    keys = model.model_dump(mode="json", include=model.model_fields_set)
    if model.family == known["family"] or "family" in model.model_fields_set:
        known = known | keys if model.family == known["family"] else keys
    return Recipe.from_data(
        recipe.model_dump(mode="json") | {"model": known}, source=f"train.start_from = {start_from}"
    )


def memory_settings(data: DataConfig, run: TrainConfig) -> tuple[str, ...]:
    """Settings that reduce memory, the best first."""
    settings = [] if run.checkpoint_activations else ["train.checkpoint_activations = true"]
    if data.batch_size > run.accumulate:
        settings.append(f"train.accumulate = {run.accumulate} higher")
    return (*settings, f"data.crop = {data.crop} lower", f"data.batch_size = {data.batch_size} lower")


def build_task(recipe: Recipe, device: torch.device, **options: Any) -> CodecTask:
    """The task of a recipe, with the `options` of `CodecTask`: data, provenance, report."""
    return CodecTask(
        recipe.name,
        recipe.model,
        device,
        data=recipe.data,
        losses=recipe.losses,
        optimizer=recipe.optimizer,
        discriminator=recipe.discriminator,
        run=recipe.train,
        **options,
    )


def train(
    recipe: Recipe,
    *,
    data: Path,
    out: Path,
    resume: bool = False,
    allow_changed_data: bool = False,
    steps: int | None = None,
    device: str | None = None,
) -> Path:
    """Train a codec by a recipe on a folder of audio or a manifest; the path of the model's file.

    Raises as `loop.train` and `with_known_model`.
    """
    recipe = with_known_model(recipe)

    def build(context: loop.Context) -> CodecTask:
        engine.rows_of_process(recipe.data.batch_size, recipe.train.accumulate)  # refused before the corpus is read
        with context.accelerator.main_process_first():
            train_data, valid_data = open_crops(
                data,
                context.out / "index",
                recipe.data,
                sample_rate=recipe.model.sample_rate,
                seed=recipe.train.seed,
                report=context.report,
                check_key=partial(context.check_data, data),
            )
        provenance = {"recipe": recipe.model_dump(mode="json"), "data": str(data)}
        return build_task(
            recipe,
            context.accelerator.device,
            train_data=train_data,
            valid_data=valid_data,
            provenance=provenance,
            report=context.report,
        )

    return loop.train(
        build,
        recipe,
        recipe.train,
        task=CodecTask,
        out=out,
        resume=resume,
        allow_changed_data=allow_changed_data,
        steps=steps,
        device=device,
        memory_settings=memory_settings(recipe.data, recipe.train),
        num_workers=recipe.data.num_workers,
    )
