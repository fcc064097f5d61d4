"""The training of language models of codes: `train_step` is the method, `train` is everything around it."""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from codec import lm, pretrained
from codec.checkpoint import RUN_MODEL, RUN_STATE, save_lm, save_state
from codec.data.token_store import TokenStore
from codec.errors import ConfigError, InputNotFound, UnknownModel, UsageError
from codec.io.storage import locked_folder, storing_below
from codec.lm.base import CodecLM
from codec.lm.conditioning import CodebookSpec
from codec.models.base import Codec
from codec.nn import distributed
from codec.nn.shapes import Codes
from codec.training import engine
from codec.training.lm.crops import Batch, LMData, names_of, sides, soften, unigram
from codec.training.lm.recipe import LMRecipe
from codec.training.logger import BITS, REAL_TIME, SPEED, Record, Tally, live
from codec.training.optimizer import autocast_dtype, clip, finite, follow, left_out, schedule, to_blame

FREE = (  # as codec_loop's
    *("train.steps", "train.log_every", "train.validate_every", "train.save_every", "train.precision"),
    *("train.accumulate", "train.samples", "train.expected", "optimizer.lr", "data.store"),
)
LONGEST_SAMPLE = 10.0  # s
LEARNT = 0.1  # of what guessing costs: a batch that is learned by heart costs less
HEART = 500  # steps to learn a batch by heart at most


@dataclass
class Learner:
    """A model, and what trains it."""

    model: CodecLM
    average: CodecLM
    """Moving average of the model's weights."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Keeps the gradients within the range of float16."""
    vectors: Tensor | None
    """The codec's, where soft targets or stochastic codes need them."""
    joint: nn.Module
    """The model, averaging its gradients over all processes; alone, the model itself."""


TRAINED = ("model", "average", "optimizer", "scaler")  # what a state holds


def train_step(learner: Learner, batch: Batch, step: int, recipe: LMRecipe) -> dict[str, Tensor]:
    """One step on this process's rows of the batch.

    Gives the bits per code of each codebook (against soft targets where they are, so they do not go to 0), the loss in
    nats, the learning rate, the gradient's norm before clipping and the number of codes, all of the whole batch.
    """
    torch.manual_seed(int(np.random.default_rng((recipe.train.seed, step, distributed.rank())).integers(2**63)))
    parts, losses, device = recipe.train.accumulate, recipe.losses, batch.codes.device
    dtype = autocast_dtype(recipe.train.precision, device)
    weights = torch.tensor(losses.codebook_weights or (1.0,) * len(batch.counted), device=device)

    bits = torch.zeros_like(batch.counted)
    learner.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(batch.parts(parts)):
        engine.exchange_gradients(number == parts - 1, learner.joint)
        codes, targets, soft = asked(part, learner.vectors, recipe)
        columns, places = laid_out(codes, learner.model)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            logits = learner.joint(columns, part.conditions)
        nats = cross_entropy(logits, targets, places, soft) / batch.counted  # [codebooks]
        loss = (weights * nats).sum() / weights.sum()
        torch.autograd.backward(
            learner.scaler.scale(loss * distributed.count())
        )  # of which the gradients will be averaged
        bits += nats.detach() / math.log(2)

    bits = distributed.all_reduce_sum(bits)
    rate = recipe.optimizer.lr * schedule(step, recipe.train.steps, recipe.optimizer)
    told = {f"bits/{codebook}": of_it for codebook, of_it in enumerate(bits)}
    told["cross-entropy"] = (weights * bits).sum() / weights.sum() * math.log(2)
    told["gradient/model"] = clip(learner.optimizer, rate, learner.scaler, recipe.optimizer.grad_clip)
    if can_step(told, step, recipe, learner.scaler):
        learner.scaler.step(learner.optimizer)
        follow(learner.average, learner.model, decay=recipe.optimizer.ema_decay, step=step)
    learner.scaler.update()
    return told | {"lr/model": torch.tensor(rate), "codes": batch.counted.sum()}


# the parts of a step


def asked(batch: Batch, vectors: Tensor | None, recipe: LMRecipe) -> tuple[Codes, Codes, Tensor | None]:
    """What a model sees of a batch, what it should say, and how likely each code is where the targets are soft."""
    soft, stochastic = recipe.losses.soft, recipe.losses.stochastic
    num_codebooks = batch.targets.shape[1]
    if soft is None and stochastic is None:
        return batch.codes[:, :num_codebooks], batch.targets, None
    assert vectors is not None
    codes, likely = soften(batch.codes, vectors, num_codebooks, soft=soft, stochastic=stochastic, draws=batch.draws)
    codes = torch.where(batch.codes[:, :num_codebooks] < 0, -1, codes)
    is_code = (batch.targets >= 0) & (batch.targets < vectors.shape[1])
    return codes, torch.where(is_code, F.pad(codes, (0, 1), value=-1), batch.targets), likely


def laid_out(codes: Codes, model: CodecLM) -> tuple[Codes, Tensor]:
    """Columns [batch, codebooks, steps] of codes, -1 for none; the step [codebooks, frames + 1] that decides each of them.

    The frame more is where the end may come, which only the first codebook says.
    """
    frames = codes.shape[-1]
    places = model.pattern.step_of_cells(0, frames + 1)
    steps = max(model.pattern.steps(frames), int(places[0, -1]) + 1)
    holes = F.pad(torch.where(codes < 0, model.special_token, codes), (0, 1), value=model.special_token)
    return model.pattern.lay_out(holes, model.special_token)[..., :steps], places.clamp(max=steps - 1).to(codes.device)


def cross_entropy(logits: Tensor, targets: Codes, places: Tensor, soft: Tensor | None = None) -> Tensor:
    """Sum over each codebook's targets [codebooks] of their cross-entropy in nats; -1 does not count.

    `logits` [batch, codebooks, steps, codebook_size + 1] decide the targets [batch, codebooks, frames + 1] at the steps
    `places`. Where `soft` [batch, codebooks, frames, codebook_size] is given, it stands for the targets that are codes.
    """
    num_codebooks, end = torch.arange(targets.shape[1], device=targets.device)[:, None], logits.shape[-1] - 1
    decided = logits[:, num_codebooks, places].float()  # [batch, codebooks, frames + 1, classes]
    nats = F.cross_entropy(decided.flatten(0, 2), targets.flatten(), ignore_index=-1, reduction="none").view_as(targets)
    if soft is not None:
        softly = -(soft * decided[:, :, :-1].log_softmax(dim=-1)[..., :-1]).sum(dim=-1)
        codes = (targets[..., :-1] >= 0) & (targets[..., :-1] < end)
        nats = torch.cat([torch.where(codes, softly, nats[..., :-1]), nats[..., -1:]], dim=-1)
    return nats.sum(dim=(0, 2))


def can_step(told: Mapping[str, Tensor], step: int, recipe: LMRecipe, scaler: torch.amp.GradScaler) -> bool:
    """Whether the gradients are finite; in float16 steps are left out until their scale fits.

    Raises ConfigError: they are not, and no scale would help; the message names the codebooks to blame.
    """
    if finite(told):
        return True
    if left_out(told, scaler):
        return False
    wrong = to_blame(told, [name for name in told if name.startswith("bits/")])
    raise ConfigError(
        f"in step {step} {' and '.join(f'{name} became {value}' for name, value in wrong.items())}: "
        f"lower optimizer.lr = {recipe.optimizer.lr} or set train.precision = float32, and resume"
    )


def train(
    recipe: LMRecipe,
    *,
    data: Path,
    out: Path,
    codec: str | Path | None = None,
    resume: bool = False,
    steps: int | None = None,
    device: str | None = None,
) -> Path:
    """Train by a recipe on a token store; the path of the trained model's file.

    `codec` is the name or file of the codec that made the store, by the store's own word unless given. `steps` stops
    early without changing the schedule. The run's folder, its processes and what may interrupt it are as in
    `codec_loop.train`.

    Raises:
        WeightsMismatch: the codec is not the one that made the store.
        UnknownModel: there is none of the name that the store says.
        InputNotFound, UsageError: there is no store; it is not finished, or has nothing to train on or to validate on.
        ConfigError: the store lacks what the recipe asks for; and as `codec_loop.train`.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the step is done and the checkpoint saved.
    """
    store, teacher = material(data, codec)  # before anything is made
    if out.resolve() == data.resolve():
        raise UsageError(f"{out} is the store to learn from: choose another --out for the training")
    with (
        engine.launched(device) as accelerator,
        storing_below(out, instead="choose another --out"),
        locked_folder(out, "training run") if accelerator.is_main_process else nullcontext(),
        engine.within_memory(*ways(recipe)),
    ):
        main, place = accelerator.is_main_process, accelerator.device
        console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False, quiet=not main)
        rows = engine.share(recipe.data.batch_size, recipe.train.accumulate)
        state = engine.resumable(out / RUN_STATE, recipe, needs=TRAINED, free=FREE) if resume else None
        if state is None and (out / RUN_STATE).exists():
            raise ConfigError(f"{out} holds a training already: add --resume to go on, or choose another --out")
        if state is not None and state["store"] != key(store):
            raise ConfigError(f"{data} is not the store that this training began with: resume with that one")
        learner, lessons, valid = assemble(recipe, store, teacher, place)
        first = 0 if state is None else engine.restore(learner, state, TRAINED)
        learner.joint = engine.join(accelerator, learner.model)
        last = min(steps or recipe.train.steps, recipe.train.steps)
        told = Told(recipe, lessons, valid)
        console.print(f"{told.amount()}\nbits per code: {told.expectation()}{told.short_sight()}")
        if first >= last:
            console.print(f"{first} steps are done already: nothing is left up to step {last}")

        tally, numbers = Tally(), dict[str, float]()
        with ExitStack() as stack:
            record = stack.enter_context(Record(out, first, report=console.print)) if main else None
            show = stack.enter_context(live(console, recipe.name, first, last))
            interrupted = stack.enter_context(engine.interrupts())
            batches = ((step, lessons.batch(step, *rows).to(place)) for step in range(first, last))
            for step, batch in tally.waiting(batches):
                tally.add(train_step(learner, batch, step, recipe))
                done = step + 1
                stop = distributed.any_rank(interrupted(), place)
                if done % recipe.train.log_every == 0 or done == last or stop:
                    numbers = told.numbers(tally.numbers())
                    if record:
                        record.numbers(done, numbers)
                show(done, numbers)
                if record and (done % recipe.train.validate_every == 0 or done == last):
                    with tally.aside():
                        found = validate(learner.average, valid.validation())
                        record.numbers(done, told.validated(found))
                        speak(learner.average, teacher, valid, record, done, recipe)
                    console.print(f"step {done}: {told.line(found)}")
                if done % recipe.train.save_every == 0 or done == last or stop:
                    states = {"step": done, "recipe": recipe.model_dump(mode="json"), "store": key(store)}
                    states |= engine.states(learner, TRAINED)
                    if main:
                        training = {"recipe": states["recipe"], "data": str(data), "step": done}
                        save_lm(out / RUN_MODEL, learner.average, training=training)  # first, as codec_loop's
                        save_state(out / RUN_STATE, states)
                    accelerator.wait_for_everyone()
                if stop:
                    console.print(f"stopped after step {done}, which is saved in {out}: --resume goes on from there")
                    raise KeyboardInterrupt
    return out / RUN_MODEL


# before the loop


def ways(recipe: LMRecipe) -> list[str]:
    """What to set for less memory, the best first."""
    data, parts = recipe.data, recipe.train.accumulate
    better = [f"train.accumulate = {parts} higher"] if data.batch_size > parts else []
    return [*better, f"data.frames = {data.frames} lower", f"data.batch_size = {data.batch_size} lower"]


def key(store: TokenStore) -> str:
    """What tells a store from others: its index has a checksum of every clip."""
    return f"{store.weights_hash} {zlib.crc32(store.index.data)}"


def material(data: Path, codec: str | Path | None) -> tuple[TokenStore, Codec]:
    """The token store, and the codec that made it. Raises as `train`."""
    try:
        store = TokenStore(data)
    except InputNotFound as error:
        if not data.exists():
            raise InputNotFound(f"{data}: there is no such token store: make one with `codec tokenize`") from error
        raise InputNotFound(
            f"{data} is no token store: tokenize it first: codec tokenize {data} --out STORE, then --data STORE"
        ) from error
    if codec is None:
        try:
            made_by = pretrained.load(store.model_name, "cpu")
        except UnknownModel as error:
            raise UnknownModel(
                f"{data} was made by the codec {store.model_name}, and there is none of that name here: pass --codec, "
                "its file or its run's folder"
            ) from error
    else:
        made_by = pretrained.load(codec, "cpu")
    store.check(made_by)
    return store, made_by


def assemble(recipe: LMRecipe, store: TokenStore, codec: Codec, place: torch.device) -> tuple[Learner, LMData, LMData]:
    """A learner with fresh weights, the same in every process; and what it learns from and is validated on.

    Raises ConfigError: the store or the codec lacks what the recipe asks for. UsageError: a side of the store is empty.
    """
    num_codebooks = recipe.data.num_codebooks or store.num_codebooks
    if num_codebooks > store.num_codebooks:
        raise ConfigError(f"data.codebooks = {num_codebooks}: {store.path} has {store.num_codebooks}")
    if recipe.losses.codebook_weights is not None and len(recipe.losses.codebook_weights) != num_codebooks:
        raise ConfigError(
            f"losses.codebook_weights are {len(recipe.losses.codebook_weights)}, for {num_codebooks} codebooks: give each one"
        )
    vectors = codec.quantizer.codebook_vectors()
    if vectors is None:
        needs = 'set model.vectors = "learned"' if recipe.model.vectors == "codebook" else ""
        if recipe.losses.soft is not None or recipe.losses.stochastic is not None:
            needs = needs + " and " * bool(needs) + "leave out losses.soft and losses.stochastic"
        if needs:
            raise ConfigError(f"the codes of {codec.name} stand for no vectors of their own: {needs}")
    if vectors is None:
        dim = codec.quantizer.decode(torch.zeros(1, codec.quantizer.num_codebooks, 1, dtype=torch.int64)).shape[1]
    else:
        dim = vectors.shape[2]
    train_rows, valid_rows = sides(store, recipe.data.held_out)
    source = CodebookSpec(
        codec=codec.name or store.model_name,
        weights_hash=store.weights_hash,
        num_codebooks=num_codebooks,
        codebook_size=store.frame_spec.codebook_size,
        dim=dim,
        classes=names_of(store, train_rows, recipe.data.classes),
        level_db=store.level_db,
    )
    torch.manual_seed(recipe.train.seed)
    model = lm.build(recipe.model.model_dump(), source.model_dump()).to(place).train()
    if recipe.model.vectors == "codebook":
        assert vectors is not None
        model.vectors.init_from_codec(vectors)
    average = copy.deepcopy(model).eval().requires_grad_(False)
    settings = recipe.optimizer
    groups = [
        {
            "params": [weight for weight in model.parameters() if weight.ndim >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [weight for weight in model.parameters() if weight.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], betas=settings.betas, fused=True)
    half = autocast_dtype(recipe.train.precision, place) == torch.float16
    guide = None if vectors is None else vectors[: store.num_codebooks].float().to(place)
    learner = Learner(model, average, optimizer, torch.amp.GradScaler(place.type, enabled=half), guide, model)
    lessons, valid = (LMData(store, recipe, rows, model) for rows in (train_rows, valid_rows))
    return learner, lessons, valid


# around the loop


class Told:
    """What a training tells: bits beside what guessing costs, and what knowing no more than each code's frequency."""

    def __init__(self, recipe: LMRecipe, lessons: LMData, valid: LMData) -> None:
        source, store = lessons.model.source, lessons.store
        self.recipe = recipe
        self.lessons, self.valid = lessons, valid
        self.num_codebooks = source.num_codebooks
        self.frame_rate = store.frame_spec.frame_rate
        self.guess = math.log2(source.codebook_size)
        self.unigram = unigram(store, lessons.rows, source.num_codebooks, source.codebook_size).tolist()

    def amount(self) -> str:
        """What there is to learn from."""
        frames = int(self.lessons.lengths.sum())
        return (
            f"train on {len(self.lessons.rows)} clips ({frames / self.frame_rate / 60:.1f} min, "
            f"{frames * self.num_codebooks} codes), validate on {len(self.valid.rows)}"
        )

    def expectation(self) -> str:
        """Bits per code that need no model, and those that the recipe was measured to end with."""
        ends = self.recipe.train.expected
        then = "" if ends is None else f", {ends:.2f} at the end as measured on the audio of its README"
        return f"{self.guess:.2f} by guessing, {sum(self.unigram) / self.num_codebooks:.2f} by how often each code occurs{then}"

    def short_sight(self) -> str:
        """A line more where the model does not see all of a crop: of a frame that takes several steps it sees fewer."""
        pattern, frames = self.lessons.model.pattern, self.recipe.data.frames
        context, needed = getattr(self.recipe.model, "context", None), pattern.steps(frames)
        if context is None or context >= needed:
            return ""
        seen = f"model.context = {context} steps are {context // pattern.per_frame} frames"
        return f"\n{seen}, crops have {frames}: {needed} steps would see them all"

    def rates(self, bits: list[float], group: str) -> dict[str, float]:
        """What bits per code of each codebook mean."""
        per_second = self.frame_rate * sum(bits)
        perplexities = {f"{group}perplexity/{codebook}": 2.0**of_it for codebook, of_it in enumerate(bits)}
        return perplexities | {
            f"{group}{BITS}": sum(bits) / self.num_codebooks,
            f"{group}bits/per second": per_second,
            f"{group}bits/share of the raw rate": per_second / (self.frame_rate * self.num_codebooks * self.guess),
        }

    def numbers(self, numbers: dict[str, float]) -> dict[str, float]:
        """What to record of `Tally.numbers`."""
        codes = numbers.pop("loss/codes")
        numbers["speed/codes per second"] = codes * numbers[SPEED]
        numbers[REAL_TIME] = codes * numbers[SPEED] / self.num_codebooks / self.frame_rate
        numbers |= {f"bits/{codebook} unigram": of_it for codebook, of_it in enumerate(self.unigram)}
        return numbers | {"bits/guessing": self.guess} | self.rates(self._bits(numbers), "")

    def _bits(self, numbers: Mapping[str, float]) -> list[float]:
        return [numbers[f"bits/{codebook}"] for codebook in range(self.num_codebooks)]

    def validated(self, bits: list[float]) -> dict[str, float]:
        """What to record of a validation."""
        numbers = {f"valid/bits/{codebook}": of_it for codebook, of_it in enumerate(bits)}
        return numbers | self.rates(bits, "valid/")

    def line(self, bits: list[float]) -> str:
        """A validation on one line."""
        rate = self.frame_rate * sum(bits) / 1000
        of_raw = sum(bits) / self.num_codebooks / self.guess
        each = " ".join(f"{of_it:.2f}" for of_it in bits)
        mean = sum(bits) / self.num_codebooks
        return f"{mean:.3f} bits per code of validation clips ({each}), {rate:.2f} kbit/s, {of_raw:.0%} of the raw rate"


@torch.no_grad()
def validate(model: CodecLM, batches: Iterable[Batch]) -> list[float]:
    """Bits per code of each codebook."""
    nats, counted = torch.zeros(2, model.source.num_codebooks, dtype=torch.float64)
    for batch in batches:
        batch = batch.to(model.device)
        columns, places = laid_out(batch.codes[:, : model.source.num_codebooks], model)
        nats += cross_entropy(model(columns, batch.conditions), batch.targets, places).double().cpu()
        counted += batch.counted.double().cpu()
    bits: list[float] = (nats / counted / math.log(2)).tolist()
    return bits


def speak(model: CodecLM, codec: Codec, valid: LMData, record: Record, step: int, recipe: LMRecipe) -> None:
    """Record clips that the model makes when told what it is told of validation clips, and classes it knows."""
    if not recipe.train.samples:
        return
    from codec.generation import generate_clips

    names = list(model.source.classes.items())
    rows: list[dict[str, str]] = []
    for number in range(recipe.train.samples):
        row = {kind: of_it[number % len(of_it)] for kind, of_it in names}
        if recipe.text and (said := valid.store.row(int(valid.rows[number % len(valid.rows)])).transcript):
            row["text"] = said
        rows.append(row)
    clips = generate_clips(
        model, codec, seeds=range(len(rows)), conditioning=model.conditioning(rows), max_seconds=LONGEST_SAMPLE
    )
    for number, audio in enumerate(clips):
        if audio.numel():  # or the model began with the end
            record.clips(step, f"generated {number}", audio[None], codec.config.sample_rate)


def learn_by_heart(
    recipe: LMRecipe,
    *,
    data: Path,
    codec: str | Path | None = None,
    device: str | None = None,
    steps: int | None = None,
) -> Iterator[tuple[int, float, bool]]:
    """Train on one batch alone; (steps done, bits per code, whether it is learned) after each step, until it is.

    A check that model, data and losses fit together: whatever can learn at all learns this in a few hundred steps.
    Nothing is written. Nothing is left to chance either: no dropout, and the rate is the recipe's all the time.
    """
    calm = {"soft": None, "stochastic": None, "condition_dropout": 0.0}
    tables = recipe.model_dump(mode="json")
    tables["losses"] |= calm
    tables["model"] |= {"dropout": 0.0}
    tables["optimizer"] |= {"warmup": 1, "lr_min_ratio": 1.0, "weight_decay": 0.0}
    calmly = LMRecipe.from_data(tables)
    with engine.launched(device) as accelerator, engine.within_memory(*ways(recipe)):
        store, made_by = material(data, codec)
        learner, lessons, _ = assemble(calmly, store, made_by, accelerator.device)
        batch = lessons.batch(0, 0, recipe.data.batch_size).to(accelerator.device)
        for step in range(HEART if steps is None else steps):
            told = train_step(learner, batch, step, calmly)
            bits = float(
                torch.stack([told[f"bits/{codebook}"] for codebook in range(learner.model.source.num_codebooks)]).mean()
            )
            learnt = bits < LEARNT * math.log2(learner.model.source.codebook_size)
            yield step + 1, bits, learnt
            if learnt:
                return
