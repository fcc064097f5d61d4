"""Training of a language model of codes: the step with its loss, validation, and overfitting one batch."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from codec import lm, pretrained
from codec.checkpoint import RUN_MODEL, read_card, save_lm
from codec.data.token_store import TokenStore
from codec.errors import ConfigError, InputNotFound, UnknownModel, UsageError, model_label
from codec.lm.base import CodecLM
from codec.lm.conditioning import CodebookSpec
from codec.models.base import Codec
from codec.nn import distributed
from codec.nn.shapes import Codes
from codec.training import engine, loop
from codec.training.engine import autocast_dtype, can_step, clip_gradients, grad_scaler, lr_scale, update_ema
from codec.training.lm.crops import (
    Batch,
    TokenCrops,
    class_names,
    sample_soft_codes,
    split_clips,
    unigram_entropy,
)
from codec.training.lm.recipe import (
    LMDataConfig,
    LMLossConfig,
    LMOptimizerConfig,
    LMRecipe,
    LMRunConfig,
    ModelConfig,
)
from codec.training.logger import (
    BITS,
    BITS_PER_CODE,
    REAL_TIME,
    STEPS_PER_SECOND,
    FileNote,
    Logger,
    Meter,
    per_codebook,
)

MAX_SAMPLE_SECONDS = 10.0
OVERFIT_BELOW = 0.1  # of the bits of a uniform guess: a batch that the model has memorized costs less
OVERFIT_STEPS = 500
MOST_NAMED = 20


@dataclass
class TrainState:
    """Everything that a step depends on; what it draws at random depends on its number."""

    model: CodecLM
    ema_model: CodecLM
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Keeps float16 gradients in range."""
    ddp_model: nn.Module
    """The model with gradients averaged over all processes; with one process, the model itself."""


class LMTask:
    """Train a language model by cross-entropy on crops of a token store."""

    STATE: ClassVar[tuple[str, ...]] = ("model", "ema_model", "optimizer", "scaler")
    MUTABLE_KEYS: ClassVar[tuple[str, ...]] = (
        *("train.steps", "train.log_every", "train.validate_every", "train.save_every", "train.precision"),
        *("train.accumulate", "train.samples", "train.expected", "data.store"),
        "optimizer.lr",  # to lower when the loss diverges
    )

    def __init__(
        self,
        name: str,
        model: ModelConfig,
        device: torch.device,
        *,
        data: LMDataConfig,
        losses: LMLossConfig,
        optimizer: LMOptimizerConfig,
        run: LMRunConfig,
        store: TokenStore,
        codec: Codec,
        classes: Mapping[str, Sequence[str]] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> None:
        """Fresh weights, the same in every process; the names of `classes` are those of the training clips if None.

        Raises:
            ConfigError: the store or the codec does not have what the recipe needs.
            UsageError: a split of the store is empty.
        """
        self.name = name
        self.device = device
        self.codec = codec
        self.provenance = dict(provenance or {})
        self.data, self.losses, self.optimizer, self.run = data, losses, optimizer, run
        self.data_key = store_key(store)
        train_rows, valid_rows = split_clips(store, data.held_out, data.split_by)
        vectors = codec.quantizer.codebook_vectors()
        classes = classes or class_names(store, train_rows, data.conditions)
        source = codebook_spec(data, losses, store, codec, vectors, classes)
        check_vectors(vectors, codec, losses, required=model.vectors == "codebook")
        self.train_state = self.create_state(model, source, vectors)
        self.text = self.train_state.model.takes_text
        self.vectors = None if vectors is None else vectors[: store.num_codebooks].float().to(device)
        options: dict[str, Any] = {
            "seed": run.seed,
            "condition_dropout": losses.condition_dropout,
            "stochastic": losses.stochastic is not None,
            "text": self.text,
        }
        self.train_data = TokenCrops(store, train_rows, self.train_state.model, data, **options)
        self.valid_data = TokenCrops(store, valid_rows, self.train_state.model, data, **options)
        self.measures = Measures(self.train_data, self.valid_data, expected=run.expected)
        self.meter = Meter()

    def create_state(self, config: ModelConfig, source: CodebookSpec, vectors: Tensor | None) -> TrainState:
        """Fresh weights, the same in every process; the codec's `vectors` if `model.vectors` asks for them."""
        torch.manual_seed(self.run.seed)
        model = lm.build(config.model_dump(), source.model_dump()).to(self.device).train()
        if config.vectors == "codebook":
            assert vectors is not None
            model.vectors.init_from_codec(vectors)
        ema_model = copy.deepcopy(model).eval().requires_grad_(False)
        decayed = {"params": [weight for weight in model.parameters() if weight.ndim >= 2]}
        others = {"params": [weight for weight in model.parameters() if weight.ndim < 2], "weight_decay": 0.0}
        groups = [
            group for group in (decayed | {"weight_decay": self.optimizer.weight_decay}, others) if group["params"]
        ]
        optimizer = torch.optim.AdamW(groups, betas=self.optimizer.betas, fused=True)
        return TrainState(model, ema_model, optimizer, grad_scaler(self.run.precision, self.device), model)

    def initialize(self, logger: Logger) -> None:
        """Start from fresh weights."""

    def distribute(self, accelerator: Accelerator) -> None:
        """Wrap the model for several processes (DDP)."""
        self.train_state.ddp_model = engine.data_parallel(accelerator, self.train_state.model)

    def batches(self, first: int, last: int) -> Generator[Batch, None, None]:
        """Batches of crops of the token store."""
        rows = engine.rows_of_process(self.data.batch_size, self.run.accumulate)
        for step in range(first, last):
            yield self.train_data.batch(step, *rows)

    def step(self, batch: Batch, step: int) -> loop.Metrics:
        """Train the model on this process's rows.

        Returns the bits per code of each codebook (against soft targets if there are any, so they do not reach 0), the
        loss in nats, the learning rate, the gradient norm before clipping and the number of codes, all of the whole
        batch.
        """
        state, parts, batch = self.train_state, self.run.accumulate, batch.to(self.device)
        torch.manual_seed(int(np.random.default_rng((self.run.seed, step, distributed.rank())).integers(2**63)))
        dtype = autocast_dtype(self.run.precision, self.device)
        weights = torch.tensor(self.losses.codebook_weights or (1.0,) * len(batch.target_counts), device=self.device)

        bits = torch.zeros_like(batch.target_counts)
        state.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(batch.split(parts)):
            engine.sync_gradients(number == parts - 1, state.ddp_model)
            codes, targets, soft_targets = self.inputs_and_targets(part)
            inputs, steps = arrange(codes, state.model)
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                logits = state.ddp_model(inputs, part.conditioning)
            nats = cross_entropy(logits, targets, steps, soft_targets) / batch.target_counts  # [codebooks]
            loss = (weights * nats).sum() / weights.sum()
            # times the number of processes, because their gradients are averaged and their losses are parts of a sum
            torch.autograd.backward(state.scaler.scale(loss * distributed.count()))
            bits += nats.detach() / math.log(2)

        bits = distributed.all_reduce_sum(bits)
        lr = self.optimizer.lr * lr_scale(step, self.run.steps, self.optimizer)
        metrics = per_codebook(BITS_PER_CODE, bits)
        metrics["cross-entropy"] = (weights * bits).sum() / weights.sum() * math.log(2)
        metrics["grad_norm/model"] = clip_gradients(
            state.optimizer, state.scaler, lr=lr, max_norm=self.optimizer.grad_clip
        )
        losses = list(per_codebook(BITS_PER_CODE, bits))
        if can_step(metrics, state.scaler, step=step, losses=losses, lr_setting=self.lr_setting):
            state.scaler.step(state.optimizer)
            update_ema(state.ema_model, state.model, decay=self.optimizer.ema_decay, step=step)
        state.scaler.update()
        return metrics | {"lr/model": torch.tensor(lr), "codes": batch.target_counts.sum()}

    def inputs_and_targets(self, batch: Batch) -> tuple[Codes, Codes, Tensor | None]:
        """Input codes, target codes, and soft targets if the recipe has them."""
        soft, stochastic = self.losses.soft, self.losses.stochastic
        num_codebooks = batch.targets.shape[1]
        if soft is None and stochastic is None:
            return batch.codes[:, :num_codebooks], batch.targets, None
        assert self.vectors is not None
        codes, soft_targets = sample_soft_codes(
            batch.codes, self.vectors, num_codebooks, soft=soft, stochastic=stochastic, noise=batch.noise
        )
        codes = torch.where(batch.codes[:, :num_codebooks] < 0, -1, codes)
        is_code = (batch.targets >= 0) & (batch.targets < self.vectors.shape[1])
        return codes, torch.where(is_code, F.pad(codes, (0, 1), value=-1), batch.targets), soft_targets

    def lr_setting(self, metrics: Collection[str]) -> str:
        """The learning rate to lower where metrics are not finite."""
        return f"optimizer.lr = {self.optimizer.lr}"

    def file_notes(self) -> list[FileNote]:
        """No notes: a damaged store raises an error."""
        return []

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        """Add speeds in codes and audio, and what the bits per code mean."""
        return self.measures.summarize(metrics)

    def validate(self, logger: Logger, step: int) -> str:
        """Log bits per code of the validation clips, and generated clips."""
        if not logger.enabled:
            return ""
        model = self.train_state.ema_model
        bits = validate(model, self.valid_data.validation())
        logger.log_metrics(step, self.measures.validation(bits))
        self.log_samples(model, logger, step)
        return self.measures.validation_line(bits)

    def log_samples(self, model: CodecLM, logger: Logger, step: int) -> None:
        """Log clips generated with the classes in turn and with transcripts of validation clips."""
        if not self.run.samples:
            return
        from codec.generation import generate_clips

        conditions: list[dict[str, str]] = []
        valid = self.valid_data
        for number in range(self.run.samples):
            row = {kind: names[number % len(names)] for kind, names in model.source.classes.items()}
            clip = int(valid.rows[number % len(valid.rows)])
            if self.text and (transcript := valid.store.row(clip).transcript):
                row["text"] = transcript
            conditions.append(row)
        clips = generate_clips(
            model,
            self.codec,
            seeds=range(len(conditions)),
            conditioning=model.conditioning(conditions),
            max_seconds=MAX_SAMPLE_SECONDS,
        )
        captions = [" ".join(value for kind, value in row.items() if kind != "text") for row in conditions]
        logger.log_audio(step, "generated", clips, self.codec.sample_rate, captions=captions)

    def save(self, path: Path, step: int) -> None:
        """Save the averaged model with the recipe, the data and the step."""
        if distributed.rank() == 0:
            save_lm(path, self.train_state.ema_model, training=self.provenance | {"step": step})


def new_class_lines(store: TokenStore, known: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """What becomes of the clips with names that a resumed model does not have; a line for each kind of class."""
    for kind, names in known.items():
        if new := [name for name in store.classes.get(kind, ()) if name not in names]:
            listed = ", ".join(new[:MOST_NAMED]) + f" and {len(new) - MOST_NAMED} more" * (len(new) > MOST_NAMED)
            yield f"clips of a {kind} that the model does not know are trained on without one: {listed}"


def codebook_spec(
    data: LMDataConfig,
    losses: LMLossConfig,
    store: TokenStore,
    codec: Codec,
    vectors: Tensor | None,
    classes: Mapping[str, Sequence[str]],
) -> CodebookSpec:
    """The codebooks and `classes` to model; `vectors` are the codec's.

    Raises ConfigError: the store does not have what the recipe needs.
    """
    num_codebooks, weights = data.num_codebooks or store.num_codebooks, losses.codebook_weights
    if num_codebooks > store.num_codebooks:
        raise ConfigError(f"data.num_codebooks = {num_codebooks}: {store.path} has {store.num_codebooks}")
    if weights is not None and len(weights) != num_codebooks:
        raise ConfigError(
            f"losses.codebook_weights has {len(weights)} weights for {num_codebooks} codebooks: give each codebook one"
        )
    return CodebookSpec(
        codec=codec.name or store.model_name,
        weights_hash=store.weights_hash,
        num_codebooks=num_codebooks,
        codebook_size=store.frame_spec.codebook_size,
        dim=codec.quantizer.vector_dim if vectors is None else vectors.shape[2],
        classes={kind: tuple(names) for kind, names in classes.items()},
        **({} if store.level is None else store.level.fields),
    )


def check_vectors(vectors: Tensor | None, codec: Codec, losses: LMLossConfig, *, required: bool) -> None:
    """Raise ConfigError if a codec has no vectors, and they are `required` or the losses need them."""
    if vectors is None:
        changes = ['set model.vectors = "learned"'] if required else []
        if losses.soft is not None or losses.stochastic is not None:
            changes.append("leave out losses.soft and losses.stochastic")
        if changes:
            raise ConfigError(f"the codes of {codec.name} have no vectors of their own: {' and '.join(changes)}")


def arrange(codes: Codes, model: CodecLM) -> tuple[Codes, Tensor]:
    """Arrange codes [batch, codebooks, frames] (-1: none) by the model's pattern.

    Returns the inputs [batch, codebooks, steps], and the step [codebooks, frames + 1] that predicts each code; the
    additional frame is where the end token may come, which only the first codebook has.
    """
    frames = codes.shape[-1]
    predicted_at = model.pattern.step_of_cells(0, frames + 1)
    steps = max(model.pattern.steps(frames), int(predicted_at[0, -1]) + 1)
    padded = F.pad(torch.where(codes < 0, model.special_token, codes), (0, 1), value=model.special_token)
    inputs = model.pattern.lay_out(padded, model.special_token)[..., :steps]
    return inputs, predicted_at.clamp(max=steps - 1).to(codes.device)


def cross_entropy(logits: Tensor, targets: Codes, steps: Tensor, soft_targets: Tensor | None = None) -> Tensor:
    """Sum of the cross-entropy of each codebook's targets [codebooks] in nats; targets of -1 do not count.

    `logits` [batch, codebooks, steps, codebook_size + 1] predict the targets [batch, codebooks, frames + 1] at `steps`
    [codebooks, frames + 1]. `soft_targets` [batch, codebooks, frames, codebook_size] replace targets that are codes.
    """
    codebooks, end = torch.arange(targets.shape[1], device=targets.device)[:, None], logits.shape[-1] - 1
    predicted = logits[:, codebooks, steps].float()  # [batch, codebooks, frames + 1, classes]
    nats = F.cross_entropy(predicted.flatten(0, 2), targets.flatten(), ignore_index=-1, reduction="none")
    nats = nats.view_as(targets)
    if soft_targets is not None:
        soft = -(soft_targets * predicted[:, :, :-1].log_softmax(dim=-1)[..., :-1]).sum(dim=-1)
        is_code = (targets[..., :-1] >= 0) & (targets[..., :-1] < end)
        nats = torch.cat([torch.where(is_code, soft, nats[..., :-1]), nats[..., -1:]], dim=-1)
    return nats.sum(dim=(0, 2))


@torch.no_grad()
def validate(model: CodecLM, batches: Iterable[Batch]) -> list[float]:
    """Bits per code of each codebook."""
    nats, counts = torch.zeros(2, model.source.num_codebooks, dtype=torch.float64)
    for batch in batches:
        batch = batch.to(model.device)
        inputs, steps = arrange(batch.codes[:, : model.source.num_codebooks], model)
        nats += cross_entropy(model(inputs, batch.conditioning), batch.targets, steps).double().cpu()
        counts += batch.target_counts.double().cpu()
    bits: list[float] = (nats / counts / math.log(2)).tolist()
    return bits


class Measures:
    """Bits per code beside those of a uniform and of a unigram model, as metrics and as lines to print."""

    def __init__(self, train_data: TokenCrops, valid_data: TokenCrops, *, expected: float | None) -> None:
        source, store = train_data.model.source, train_data.store
        self.train_data, self.valid_data = train_data, valid_data
        self.expected = expected
        self.num_codebooks = source.num_codebooks
        self.frame_rate = store.frame_spec.frame_rate
        self.uniform = math.log2(source.codebook_size)
        unigram = unigram_entropy(store, train_data.rows, source.num_codebooks, source.codebook_size)
        self.unigram: list[float] = unigram.tolist()

    def data_line(self) -> str:
        """How much there is to train and to validate on."""
        frames = int(self.train_data.lengths.sum())
        return (
            f"train on {len(self.train_data.rows)} clips ({frames / self.frame_rate / 60:.1f} min, "
            f"{frames * self.num_codebooks} codes), validate on {len(self.valid_data.rows)}"
        )

    def baseline_line(self) -> str:
        """Bits per code of a uniform and a unigram model, and the bits that the recipe reached."""
        end = self.expected
        measured = "" if end is None else f", {end:.2f} at the end as measured on the audio of its README"
        unigram = sum(self.unigram) / self.num_codebooks
        return f"{self.uniform:.2f} uniform, {unigram:.2f} unigram{measured}"

    def context_line(self) -> str:
        """A line break and a warning if the context is shorter than a crop; empty otherwise."""
        pattern, frames = self.train_data.model.pattern, self.train_data.config.frames
        context, needed = getattr(self.train_data.model.config, "context", None), pattern.steps(frames)
        if context is None or context >= needed:
            return ""
        reach = f"model.context = {context} steps are {context // pattern.per_frame} frames"
        return f"\n{reach}, crops have {frames}: {needed} steps would see all of a crop"

    def rates(self, bits: list[float], prefix: str = "") -> dict[str, float]:
        """Means, perplexities and bit rates of bits per code of each codebook."""
        per_second = self.frame_rate * sum(bits)
        metrics = per_codebook("perplexity", [2.0**value for value in bits]) | {
            BITS: sum(bits) / self.num_codebooks,
            "bit rate/bits per second": per_second,
            "bit rate/share of the raw rate": per_second / (self.frame_rate * self.num_codebooks * self.uniform),
        }
        return {prefix + name: value for name, value in metrics.items()}

    def summarize(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics to log from those of `Meter.compute`."""
        codes = metrics.pop("loss/codes")
        metrics["speed/codes per second"] = codes * metrics[STEPS_PER_SECOND]
        metrics[REAL_TIME] = codes * metrics[STEPS_PER_SECOND] / self.num_codebooks / self.frame_rate
        bits = [metrics[name] for name in per_codebook(BITS_PER_CODE, self.unigram)]
        return metrics | self.rates(bits)

    def validation(self, bits: list[float]) -> dict[str, float]:
        """Metrics to log of a validation."""
        return per_codebook(f"valid {BITS_PER_CODE}", bits) | self.rates(bits, "valid ")

    def validation_line(self, bits: list[float]) -> str:
        """A validation on one line."""
        mean = sum(bits) / self.num_codebooks
        each = " ".join(f"{value:.2f}" for value in bits)
        kbps, share = self.frame_rate * sum(bits) / 1000, mean / self.uniform
        return f"{mean:.3f} bits per code of validation clips ({each}), {kbps:.2f} kbit/s, {share:.0%} of the raw rate"


def memory_settings(data: LMDataConfig, run: LMRunConfig) -> tuple[str, ...]:
    """Settings that reduce memory, the best first."""
    first = (f"train.accumulate = {run.accumulate} higher",) if data.batch_size > run.accumulate else ()
    return (*first, f"data.frames = {data.frames} lower", f"data.batch_size = {data.batch_size} lower")


def build_task(recipe: LMRecipe, device: torch.device, **options: Any) -> LMTask:
    """The task of a recipe, with the `options` of `LMTask`: store, codec, provenance. Raises as `LMTask`."""
    return LMTask(
        recipe.name,
        recipe.model,
        device,
        data=recipe.data,
        losses=recipe.losses,
        optimizer=recipe.optimizer,
        run=recipe.train,
        **options,
    )


def store_key(store: TokenStore) -> str:
    """Identifies a store: its index has a checksum of every clip."""
    return f"{store.weights_hash} {zlib.crc32(store.index.data)}"


def open_store(data: Path, codec: str | Path | None, *, out: Path | None = None) -> tuple[TokenStore, Codec, str]:
    """The token store, the codec that made it, and the codec's name or path.

    The codec is found by its weights (`pretrained.find_codec`) unless given: among the shipped ones, beside the store,
    or beside the run in `out`.

    Raises:
        InputNotFound: `data` is not a token store.
        UnknownModel: the codec is not found.
        WeightsMismatch: another codec made the store.
    """
    try:
        store = TokenStore(data)
    except InputNotFound as error:
        if not data.exists():
            raise InputNotFound(f"{data}: there is no such token store: make one with `codec tokenize`") from error
        raise InputNotFound(
            f"{data} is not a token store: tokenize it first: codec tokenize {data} --out STORE, then --data STORE"
        ) from error
    if codec is None:
        runs = pretrained.RUNS if out is None else out.parent
        folders = [data, data.absolute().parent, runs]
        codec = pretrained.find_codec(store.model_name, store.weights_hash, folders=folders)
    if codec is None:
        raise UnknownModel(
            f"{data} was made by {model_label((store.model_name, store.weights_hash))}, which was not found: pass "
            "--codec, its file or its run's folder"
        )
    model = pretrained.load(codec, "cpu")
    store.check(model)
    path = Path(codec)
    return store, model, path.stem if path.parent == pretrained.WEIGHTS else str(codec)


def train(
    recipe: LMRecipe,
    *,
    data: Path,
    out: Path,
    codec: str | Path | None = None,
    resume: bool = False,
    allow_changed_data: bool = False,
    steps: int | None = None,
    device: str | None = None,
) -> Path:
    """Train a language model by a recipe on a token store; the path of the model's file.

    `codec` is the name or file of the codec that made the store, by default its name in the store.

    Raises as `loop.train` and `open_store`.
    """
    store, model, codec_path = open_store(data, codec, out=out)
    if out.resolve() == data.resolve():
        raise UsageError(f"{out} is the token store to train on: choose another --out")

    def build(context: loop.Context) -> LMTask:
        context.check_data(data, store_key(store))
        # those of a run that continues, because its data may have others now
        classes = None if context.saved is None else read_card(context.out / RUN_MODEL).as_lm().source["classes"]
        engine.rows_of_process(recipe.data.batch_size, recipe.train.accumulate)
        provenance = {"recipe": recipe.model_dump(mode="json"), "data": str(data), "codec": codec_path}
        device = context.accelerator.device
        task = build_task(recipe, device, store=store, codec=model, classes=classes, provenance=provenance)
        measures = task.measures
        if not any(measures.unigram):
            raise ConfigError(f"every code of {data} is the same, as of silence: check the recordings")
        context.report(measures.data_line())
        for line in new_class_lines(store, classes or {}):
            context.report(line)
        for line in f"bits per code: {measures.baseline_line()}{measures.context_line()}".splitlines():
            context.report(line)
        return task

    return loop.train(
        build,
        recipe,
        recipe.train,
        task=LMTask,
        out=out,
        resume=resume,
        allow_changed_data=allow_changed_data,
        steps=steps,
        device=device,
        memory_settings=memory_settings(recipe.data, recipe.train),
    )


def overfit_one_batch(
    recipe: LMRecipe,
    *,
    data: Path,
    codec: str | Path | None = None,
    device: str | None = None,
    steps: int | None = None,
) -> Iterator[tuple[int, float, bool]]:
    """Train on one batch until it is memorized; (steps done, bits per code, whether it is memorized) after each step.

    A check that model, data and losses fit together, because a correct setup memorizes a batch in a few hundred steps.
    Nothing is written. Dropout, soft targets, weight decay and the learning rate schedule are off.
    """
    tables = recipe.model_dump(mode="json")
    tables["losses"] |= {"soft": None, "stochastic": None, "condition_dropout": 0.0}
    tables["model"] |= {"dropout": 0.0}
    tables["optimizer"] |= {"warmup": 1, "lr_min_ratio": 1.0, "weight_decay": 0.0}
    plain = LMRecipe.from_data(tables)
    with engine.launch(device) as accelerator, engine.memory_errors(*memory_settings(recipe.data, recipe.train)):
        store, model, _ = open_store(data, codec)
        task = build_task(plain, accelerator.device, store=store, codec=model)
        batch = task.train_data.batch(0, 0, recipe.data.batch_size)
        for step in range(OVERFIT_STEPS if steps is None else steps):
            metrics = task.step(batch, step)
            values = [metrics[name] for name in per_codebook(BITS_PER_CODE, task.measures.unigram)]
            bits = float(torch.stack(values).mean())
            memorized = bits < OVERFIT_BELOW * task.measures.uniform
            yield step + 1, bits, memorized
            if memorized:
                return
