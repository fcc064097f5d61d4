"""training/codec/task.py: the training step is right, and a resumed run equals an uninterrupted one."""

import copy
import math
import os
import shutil
import signal
from collections.abc import Generator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from codec import pretrained
from codec.checkpoint import load_model, load_state, read_card, save_state
from codec.cli.main import run
from codec.errors import ConfigError, InputNotFound, StorageError
from codec.io import storage
from codec.io.audio import write_audio
from codec.models.causal import CausalCodec
from codec.nn import distributed
from codec.nn.conv import ConvNeXtBlock
from codec.nn.quantize.gain_shape import GainShapeVQ
from codec.training.codec import task as codec_task
from codec.training.codec.crops import Batch, Crops, load_batches
from codec.training.codec.losses import LossBalancer, Spectral, SpectralLoss, discriminator_loss
from codec.training.codec.recipe import LossConfig, Recipe
from codec.training.codec.task import (
    SQUARE,
    CodecTask,
    TrainState,
    audio_gradient,
    build_task,
    idempotence_loss,
    load_pretrained,
    recode,
    sample_generations,
    sample_num_codebooks,
    train,
    validate,
)
from codec.training.engine import autocast_dtype, lr_scale
from codec.training.logger import FileNote, Logger
from codec.training.loop import state_dicts
from tests.helpers import processes
from tests.helpers.training import (
    batch,
    options,
    read_events,
    read_metrics,
    same,
    small_recipe,
    tones,
    write_recordings,
)

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
LOSSES = sorted({*LossConfig.model_fields} - {"balance"})


pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture(scope="module")
def spectral() -> SpectralLoss:
    return SpectralLoss(8000)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


def train_step(task: CodecTask, audio: Tensor, number: int) -> dict[str, Tensor]:
    """Train on audio [rows, 1, time]; the metrics."""
    return task.step(Batch(audio, ()), number)


def stepped(
    recipe: Recipe, spectral: SpectralLoss | None = None, *, steps: int = 1
) -> tuple[TrainState, dict[str, Tensor]]:
    """The state after some steps on tones, and the metrics of the last step."""
    task = build_task(recipe, CPU)
    task.spectral = spectral or task.spectral
    metrics: dict[str, Tensor] = {}
    for number in range(steps):
        metrics = train_step(task, batch(number), number)
    return task.train_state, metrics


def rustle(items: int = 3, time: int = 1200) -> Tensor:
    """White noise [items, 1, time]."""
    return 0.1 * torch.randn(items, 1, time, generator=torch.Generator().manual_seed(3))


# a step


def test_a_few_steps_lower_the_loss(spectral: SpectralLoss) -> None:
    recipe = small_recipe(
        losses={"complex_stft": 1.0}, optimizer={"lr": 5e-3}, train={"quantizer_dropout": 0.0, "steps": 30}
    )
    task = build_task(recipe, CPU)
    state = task.train_state
    audio = batch(7)
    state.model.init_from_audio(audio)
    losses = [train_step(task, audio, step) for step in range(30)]
    for name, most in (("mel", 0.6), ("complex_stft", 0.65)):
        first, last = (float(losses[step][name] + losses[step + 1][name]) for step in (0, 28))
        assert last < most * first, name
    assert {loss.requires_grad for loss in losses[0].values()} == {False}


def test_metrics_of_a_step_by_name(spectral: SpectralLoss) -> None:
    of_audio = {*Spectral._fields, "periodicity", "level", "average_level", "modulation", "coloration"}
    alone = of_audio | {"idempotence", "commitment", "codebook", "grad_norm/model", "lr/model", "code_counts"}
    assert set(stepped(small_recipe(), spectral)[1]) == alone
    both = alone | {"discriminator", "adversarial", "feature_matching", "grad_norm/discriminators", "lr/discriminators"}
    assert set(stepped(small_recipe(discriminator={"start": 1}), spectral, steps=1)[1]) == alone
    assert set(stepped(small_recipe(discriminator={"start": 1}), spectral, steps=2)[1]) == both
    balanced_too = stepped(small_recipe(discriminator={"start": 1}, losses={"balance": True}), spectral, steps=2)
    assert set(balanced_too[1]) == both
    assert set(balanced_too[0].balancer.norms.sums) == of_audio | {"adversarial", "feature_matching"}


def test_adversarial_losses_of_weight_0_do_not_change_the_model(spectral: SpectralLoss) -> None:
    """With weight 0 for the adversarial losses, the model trains as without discriminators."""
    without, _ = stepped(small_recipe(), spectral, steps=2)
    silent = {"adversarial": 0.0, "feature_matching": 0.0}
    beside, _ = stepped(small_recipe(losses=silent, discriminator={"start": 0}), spectral, steps=2)
    assert same(without.model.state_dict(), beside.model.state_dict())
    assert same(without.optimizer.state_dict(), beside.optimizer.state_dict())
    assert not same(without.discriminators.state_dict(), beside.discriminators.state_dict())


def test_generator_losses_do_not_change_the_discriminators(spectral: SpectralLoss) -> None:
    silent, loud = (
        stepped(small_recipe(losses={"adversarial": w, "feature_matching": w}, discriminator={"start": 0}), spectral)[0]
        for w in (0.0, 100.0)
    )
    assert same(silent.discriminators.state_dict(), loud.discriminators.state_dict())
    assert not same(silent.model.state_dict(), loud.model.state_dict())


def test_the_gradient_of_the_discriminators_is_that_of_their_loss(spectral: SpectralLoss) -> None:
    recipe = small_recipe(discriminator={"start": 0}, optimizer={"grad_clip": 1e9}, train={"quantizer_dropout": 0.0})
    task = build_task(recipe, CPU)
    state = task.train_state
    discriminators, audio = copy.deepcopy(state.discriminators), batch()
    decoded = state.model(audio).audio.detach()
    task = build_task(recipe, CPU)
    state = task.train_state
    train_step(task, audio, 0)
    part = slice(*task.discriminator_crop(audio.shape[-1], 0))
    loss = discriminator_loss(discriminators(audio[..., part]).scores, discriminators(decoded[..., part]).scores)
    loss.backward()  # type: ignore[no-untyped-call]
    for (name, ours), theirs in zip(state.discriminators.named_parameters(), discriminators.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7), name


@cache
def reusable_task() -> tuple[CodecTask, dict[str, Any]]:
    """A task for `weighted_gradient` and its initial state, without what gradients do not depend on."""
    recipe = small_recipe(
        model={"codebook_update": "gradient"},
        discriminator={"start": 0},
        optimizer={"grad_clip": 1e9, "warmup": 1},
        train={"reencoded": 1.0, "seed": 2},
    )
    task = build_task(recipe, CPU)
    state = task.train_state
    state.model.init_from_audio(batch(1))
    assert isinstance(state.model, CausalCodec)
    nn.init.normal_(state.model.decoder.gain.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    names = ("model", "discriminators", "latent_power")
    return task, {name: copy.deepcopy(getattr(state, name).state_dict()) for name in names}


@cache
def weighted_gradient(name: str | None, weight: float) -> Tensor:
    """The unclipped gradient of all parameters, with this weight of the loss and small weights of two losses.

    With None, these two are the only losses.
    """
    others = {loss: 1e-3 if loss in ("mel", "noise_to_mask") else 0.0 for loss in LOSSES}
    task, before = reusable_task()
    task.losses = LossConfig.model_validate(others if name is None else others | {name: weight})
    state = task.train_state
    for part, content in before.items():
        getattr(state, part).load_state_dict(content)
    train_step(task, rustle(), 0)
    weights = list(state.model.parameters())
    return torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]).detach()


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_weight_scales_its_gradient(name: str) -> None:
    """Zero at weight 0, twice as large at 2 as at 1."""
    none = weighted_gradient(name if name in ("mel", "noise_to_mask") else None, 0.0)
    once, twice = (weighted_gradient(name, weight) for weight in (1.0, 2.0))
    assert (once - none).norm() > 1e-6
    assert ((twice - once) - (once - none)).norm() < 0.02 * (once - none).norm()


def test_a_loss_of_weight_0_has_no_gradient(spectral: SpectralLoss) -> None:
    class Broken(SpectralLoss):
        def forward(self, decoded: Tensor, audio: Tensor, half: int | None = None) -> Spectral:
            distances = super().forward(decoded, audio, half)
            return distances._replace(complex_stft=distances.complex_stft * math.inf)

    state, losses = stepped(small_recipe(losses={"complex_stft": 0.0}), Broken(8000))
    assert losses["complex_stft"].isinf()
    assert all(weight.isfinite().all() for weight in state.model.parameters())
    with pytest.raises(ConfigError, match=r"in step 0 complex_stft became inf: lower optimizer\.lr = 0\.001 or"):
        stepped(small_recipe(losses={"complex_stft": 1.0}), Broken(8000))


def test_the_gradient_is_clipped(spectral: SpectralLoss) -> None:
    state, losses = stepped(small_recipe(optimizer={"grad_clip": 0.01}), spectral)
    assert losses["grad_norm/model"] > 0.1  # as it was before
    norm = torch.stack([p.grad.norm() for p in state.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_balanced_losses_have_their_shares_of_the_gradient(spectral: SpectralLoss) -> None:
    """With constant norms, the gradient is a sum of parts whose norms are the shares."""
    decoded = (batch() + 0.1 * torch.randn(3, 1, 1200, generator=torch.Generator().manual_seed(0))).requires_grad_()

    def losses() -> dict[str, Tensor]:
        return dict(spectral(decoded, batch())._asdict())

    own = {name: torch.autograd.grad(losses()[name], decoded)[0] for name in ("mel", "complex_stft")}
    balancer = LossBalancer(0.99)
    balancer.update({name: gradient.norm() for name, gradient in own.items()})
    weights = balancer.scale({"mel": 3.0, "complex_stft": 1.0})
    balanced, squares = audio_gradient(losses(), weights, decoded, 8.0, balance=True)
    expected = 0.75 * own["mel"] / own["mel"].norm() + 0.25 * own["complex_stft"] / own["complex_stft"].norm()
    assert torch.allclose(balanced, 8.0 * expected, atol=1e-6)
    for name, gradient in own.items():
        assert float(squares[f"{SQUARE}{name}"]) == pytest.approx(float(gradient.norm()) ** 2, rel=1e-4)


def test_the_balancer_removes_the_scales_of_losses(spectral: SpectralLoss) -> None:
    class Louder(SpectralLoss):
        def forward(self, decoded: Tensor, audio: Tensor, half: int | None = None) -> Spectral:
            distances = super().forward(decoded, audio, half)
            return distances._replace(mel=1024 * distances.mel)  # a power of two, which rounds equally

    recipe = small_recipe(losses={"balance": True})
    ours, theirs = (stepped(recipe, loss, steps=3)[0].model.state_dict() for loss in (spectral, Louder(8000)))
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=1e-5), name


@pytest.mark.parametrize("balance", [False, True])
def test_gradient_accumulation_is_the_same_training(balance: bool, spectral: SpectralLoss) -> None:
    tables: dict[str, Any] = {"discriminator": {"start": 1, "lr": 1e-5}, "losses": {"balance": balance}}
    tables["optimizer"] = {"lr": 1e-4, "warmup": 2}
    train = {"reencoded": 0.5, "seed": 5}  # no weight has a gradient near 0 here, whose rounding Adam would enlarge
    (whole, losses), (parted, same_losses) = (
        stepped(small_recipe(**tables, train=train | {"accumulate": parts}), spectral, steps=3) for parts in (1, 3)
    )
    for network in ("model", "discriminators", "ema_model"):
        for (name, ours), theirs in zip(
            getattr(whole, network).state_dict().items(), getattr(parted, network).state_dict().values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6, msg=name)
    for name in losses:
        torch.testing.assert_close(losses[name], same_losses[name], rtol=1e-3, atol=1e-5, msg=name)


def test_checkpointed_activations_give_the_same_step(spectral: SpectralLoss, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    whole_step = ConvNeXtBlock.whole_step

    def counted(block: ConvNeXtBlock, x: Tensor, state: Any) -> Any:
        calls.append(block.checkpointed)
        return whole_step(block, x, state)

    monkeypatch.setattr(ConvNeXtBlock, "whole_step", counted)
    kept, again = (
        stepped(small_recipe(train={"checkpoint_activations": on}), spectral)[0].model.state_dict()
        for on in (False, True)
    )
    assert same(kept, again)
    assert calls.count(False) == 3  # the encoder's block and the decoder's two
    assert calls.count(True) == 6  # and each again in the backward pass


COMPILED = """
import torch
from functools import partialmethod
from tests.helpers.training import small_recipe
from tests.training.codec.test_task import stepped

def unchanged(graph, inputs):
    graphs.append(graph)
    return graph

graphs = []
torch.set_num_threads(1)
torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=unchanged)  # a backend without a compiler
discriminator = {"start": 0, "update_every": 1, "windows": [256]}
ours, theirs = (
    stepped(small_recipe(train={"compile": on}, discriminator=discriminator), steps=2)[0] for on in (False, True)
)
assert len(graphs) >= 2, graphs  # of the model and of the discriminators
for network in ("model", "discriminators"):
    weights = (getattr(state, network).state_dict() for state in (ours, theirs))
    torch.testing.assert_close(*weights)
"""


def test_both_networks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(type(module).__name__))
    build_task(small_recipe(), CPU)
    assert compiled == []
    build_task(small_recipe(train={"compile": True}), CPU)
    assert compiled == ["CausalCodec", "Discriminators"]


@pytest.mark.nightly  # tracing takes 12 s
def test_compiled_networks_take_the_same_steps() -> None:
    """In a process without the shape checks that the tests add, because torch cannot trace them."""
    done = processes.run(COMPILED)
    assert done.returncode == 0, done.stderr


def test_discriminators_train_on_every_kth_step(spectral: SpectralLoss) -> None:
    recipe = small_recipe(discriminator={"start": 1, "update_every": 2})
    task = build_task(recipe, CPU)
    state = task.train_state
    trained = []
    for step in range(5):
        before = copy.deepcopy(state.discriminators.state_dict())
        losses = train_step(task, batch(step), step)
        trained.append(not same(before, state.discriminators.state_dict()))
        assert ("adversarial" in losses, "discriminator" in losses) == (step >= 1, trained[-1])
        assert all(weight.grad is None for weight in state.discriminators.parameters()) != trained[-1]
    assert trained == [False, True, False, True, False]


def test_float16_skips_steps_that_overflow(spectral: SpectralLoss) -> None:
    recipe = small_recipe(train={"precision": "float16"}, discriminator={"start": 0})
    task = build_task(recipe, CPU)
    state = task.train_state
    state.model.init_from_audio(batch(1))
    exact_task = build_task(small_recipe(discriminator={"start": 0}), CPU)
    for name in ("model", "ema_model"):
        getattr(exact_task.train_state, name).load_state_dict(state.model.state_dict())
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1)
    before = copy.deepcopy(state.model.state_dict())
    train_step(task, batch(), 0)
    assert same(before, state.model.state_dict())
    assert state.scaler.get_scale() == 2.0**119
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    losses = train_step(task, batch(), 0)
    assert not same(before, state.model.state_dict())
    assert state.scaler.get_scale() == 2.0**9
    exact = train_step(exact_task, batch(), 0)
    for name in ("grad_norm/model", "grad_norm/discriminators"):  # unscaled
        assert float(losses[name]) == pytest.approx(float(exact[name]), rel=0.05)


def test_losses_that_are_not_finite_are_named(spectral: SpectralLoss) -> None:
    recipe = small_recipe(discriminator={"start": 0, "update_every": 1}, train={"precision": "float16"})
    task = build_task(recipe, CPU)
    state = task.train_state
    with torch.no_grad():
        next(state.discriminators.parameters()).fill_(math.nan)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)  # no scale will help
    with pytest.raises(ConfigError) as error:
        train_step(task, batch(), 7)
    message = str(error.value)
    assert "in step 7 adversarial became nan and feature_matching became nan and discriminator became nan" in message
    assert "lower discriminator.lr = 0.0003" in message


def test_the_ema_model_follows_the_weights(spectral: SpectralLoss) -> None:
    recipe = small_recipe(optimizer={"ema_decay": 0.25})
    task = build_task(recipe, CPU)
    state = task.train_state
    expected = {name: weight.clone() for name, weight in state.ema_model.named_parameters()}
    for step in range(3):
        train_step(task, batch(step), step)
        decay = min(0.25, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25
        for name, weight in state.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
    for name, weight in state.ema_model.named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
        assert not weight.requires_grad
    for ours, theirs in zip(state.ema_model.buffers(), state.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_codebooks_stay_float32_and_train_under_bfloat16(spectral: SpectralLoss) -> None:
    train_table = {"precision": "bfloat16", "quantizer_dropout": 0.0}
    recipe = small_recipe(train=train_table, discriminator={"start": 0})
    task = build_task(recipe, CPU)
    state = task.train_state
    state.model.init_from_audio(batch(1))
    before = copy.deepcopy(state.model.quantizer)
    seen: set[torch.dtype] = set()
    assert isinstance(state.model, CausalCodec)
    state.model.encoder.in_proj.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    losses = train_step(task, batch(), 0)
    assert seen == {torch.bfloat16}
    assert all(loss.isfinite().all() for loss in losses.values())
    assert {value.dtype for module in (state.model, state.ema_model) for value in module.state_dict().values()} == {
        torch.float32
    }
    quantizer = state.model.quantizer
    assert isinstance(quantizer, GainShapeVQ)
    assert isinstance(before, GainShapeVQ)
    assert quantizer.envelopes.equal(before.envelopes)
    for codebook, (stage, old) in enumerate(zip(quantizer.residual.stages, before.residual.stages, strict=True)):
        assert not stage.codebook.equal(old.codebook), codebook
        moved = stage.codebook - old.codebook
        assert not moved.equal(moved.bfloat16().float()), codebook  # steps finer than bfloat16 has


def test_precision() -> None:
    assert autocast_dtype("float32", CPU) == torch.float32
    assert autocast_dtype("bfloat16", CPU) == torch.bfloat16
    assert autocast_dtype("auto", CPU) in (torch.float32, torch.bfloat16)


def test_an_autoencoder_without_codes_trains_and_validates(tmp_path: Path, recordings: Path) -> None:
    recipe = small_recipe(model={"quantizer": "none", "num_codebooks": 1, "envelope_bands": 0}, train={"steps": 1})
    train(recipe, data=recordings, out=tmp_path)
    assert "valid mel/1 codebook" in {name for _, name, _ in read_metrics(tmp_path)}


# generations


def initialized(**tables: Any) -> CodecTask:
    """A task whose model is initialized from noise and tones, so that its residual is not silent."""
    task = build_task(small_recipe(**tables), CPU)
    task.train_state.model.init_from_audio(torch.cat([rustle(), batch(1)]))
    return task


def test_a_share_of_the_crops_is_coded_one_to_four_times() -> None:
    counts = torch.bincount(
        torch.tensor([sample_generations(0.3, seed=0, step=step, row=row) for step in range(50) for row in range(40)])
    )
    assert len(counts) == 5
    assert counts[0] == pytest.approx(1400, abs=70)
    assert counts[1:].tolist() == pytest.approx([150] * 4, abs=45)
    for share, least in ((0.0, 0), (1.0, 1)):
        task = build_task(small_recipe(train={"reencoded": share}), CPU)
        assert {min(count, 1) for step in range(9) for count in task.sample_generations(9, step)} == {least}


def test_reencoded_crops_are_decoded_codes() -> None:
    task = initialized(train={"reencoded": 0.5})
    model = task.train_state.model
    audio = torch.cat([rustle(), batch(1)])
    original = audio.clone()
    seen = set()
    for step in range(4):
        generations = task.sample_generations(6, step)
        found, entries = recode(model, audio, generations)
        assert audio.equal(original)
        assert entries.shape == (6, 8, model.frame_spec.frames(1200))
        assert not found.requires_grad
        for row in range(6):
            seen.add(generations[row])
            expected = audio[row : row + 1]
            for _ in range(generations[row]):
                codes = model.encode(expected)
                expected = model.decode(codes, length=1200).clamp(-1, 1)
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-5, atol=1e-5)
            assert isinstance(model.quantizer, GainShapeVQ)
            if not generations[row]:
                assert entries[row].isnan().all()
                continue
            known = codes[0, 0] < model.quantizer.silence
            assert entries[row].isnan().equal(~known.expand(8, -1))
            decoded = model.quantizer.split(model.quantizer.decode(codes)).residual[0]
            torch.testing.assert_close(entries[row][:, known], decoded[:, known], rtol=1e-4, atol=1e-4)
    assert {0, 1} < seen


def test_reencoding_depends_on_the_step_and_the_row_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not depend on earlier random numbers, nor on the number of processes that share the batch."""
    task = initialized(train={"reencoded": 0.5})
    model = task.train_state.model
    audio = torch.cat([rustle(), batch(1)])
    whole = recode(model, audio, task.sample_generations(6, 3))
    torch.manual_seed(7)
    again = recode(model, audio, task.sample_generations(6, 3))
    assert whole[0].equal(again[0])
    assert whole[1].nan_to_num(9).equal(again[1].nan_to_num(9))
    assert not whole[0].equal(recode(model, audio, task.sample_generations(6, 4))[0])
    monkeypatch.setattr(distributed, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        part = recode(model, audio[2 * rank : 2 * rank + 2], task.sample_generations(2, 3))
        for ours, theirs in zip(part, whole, strict=True):
            expected = theirs[2 * rank : 2 * rank + 2].nan_to_num(9)
            assert ours.nan_to_num(9).expand_as(expected).equal(expected)


@pytest.mark.parametrize(
    "model",
    [
        {"quantizer": "none", "num_codebooks": 1, "envelope_bands": 0},
        {"quantizer": "mixture", "num_codebooks": 1, "envelope_bands": 0},
        {"quantizer": "scalar", "num_codebooks": 1, "envelope_bands": 0, "dim": 2, "levels": [5, 4]},
    ],
)
def test_quantizers_without_entries_have_no_idempotence_loss(model: dict[str, Any]) -> None:
    task = initialized(model=model, train={"reencoded": 1.0})
    found, entries = recode(task.train_state.model, batch(), task.sample_generations(3, 0))
    assert entries.isnan().all()
    assert found.equal(batch()) == (model["quantizer"] == "none")
    assert train_step(task, batch(), 0)["idempotence"] == 0


def test_idempotence_by_hand() -> None:
    latents = torch.tensor([[[1.0, 2.0]], [[3.0, 5.0]]], requires_grad=True)
    entries = torch.tensor([[[1.5, torch.nan]], [[torch.nan, 2.0]]])
    loss = idempotence_loss(latents, entries, torch.tensor(2.0))
    assert loss.item() == pytest.approx((0.25 + 9) / 2)
    assert torch.autograd.grad(loss, latents)[0].flatten().tolist() == pytest.approx([-0.5, 0, 0, 3])
    parts = [idempotence_loss(latents[row : row + 1], entries[row : row + 1], torch.tensor(1.0)) for row in (0, 1)]
    assert torch.stack(parts).mean().item() == pytest.approx(loss.item())
    unknown = torch.full_like(entries, torch.nan)
    loss = idempotence_loss(latents, unknown, torch.tensor(0.0))
    assert loss == 0
    assert (torch.autograd.grad(loss, latents)[0] == 0).all()


# what a step depends on


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = small_recipe(optimizer={"warmup": 4, "lr_min_ratio": 0.1}, train={"steps": 24})
    shares = [lr_scale(step, 24, recipe.optimizer) for step in range(30)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert shares[14] == pytest.approx(0.55)  # half way
    assert shares[24:] == pytest.approx([0.1] * 6)
    assert all(later <= earlier for earlier, later in pairwise(shares[4:]))


def test_the_learning_rates_reach_the_optimizers(spectral: SpectralLoss) -> None:
    recipe = small_recipe(
        optimizer={"warmup": 4, "lr": 1e-3},
        discriminator={"start": 1, "update_every": 1, "lr": 1e-2},
        train={"steps": 8},
    )
    state, _ = stepped(recipe, spectral, steps=3)
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(0.75e-3)
    assert state.discriminator_optimizer.param_groups[0]["lr"] == pytest.approx(
        0.5e-2
    )  # its second of four warm-up steps


def test_quantizer_dropout_is_uniform() -> None:
    options: dict[str, Any] = {"seed": 0, "dropout": 0.5}
    n_codebooks = torch.cat([sample_num_codebooks(8, range(1, 6), step=step, **options) for step in range(200)])
    counts = torch.bincount(n_codebooks, minlength=6)
    assert counts[0] == 0
    assert ((counts[1:5] > 110) & (counts[1:5] < 210)).all()  # 160 each
    assert 880 < counts[5] < 1040  # 960: half of all, and a fifth of the others
    assert sample_num_codebooks(8, range(1, 6), step=3, **options).equal(
        sample_num_codebooks(8, range(1, 6), step=3, **options)
    )
    assert (sample_num_codebooks(64, (1, 2, 3), dropout=0.0, seed=0, step=0) == 3).all()
    every = sample_num_codebooks(600, (1, 2, 3), dropout=1.0, seed=0, step=0)
    assert (torch.bincount(every)[1:] > 150).all()
    some = sample_num_codebooks(600, (1, 3, 7), dropout=1.0, seed=0, step=0)  # of a family with few choices
    assert set(some.tolist()) == {1, 3, 7}
    assert same(every > 1, some > 1)


def test_discriminators_get_a_part_of_the_crop_that_moves() -> None:
    task = build_task(small_recipe(discriminator={"crop": 0.1}), CPU)
    parts = [task.discriminator_crop(1200, step) for step in range(100)]
    assert {last - first for first, last in parts} == {800}
    assert min(first for first, _ in parts) < 40
    assert 1160 < max(last for _, last in parts) <= 1200
    assert task.discriminator_crop(500, 0) == (0, 500)


# a run

ADVERSARIAL: dict[str, Any] = {"discriminator": {"start": 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    """The folder of an uninterrupted run of six steps."""
    out = tmp_path_factory.mktemp("run") / "six"
    assert train(small_recipe(**ADVERSARIAL), data=recordings, out=out) == out / "model.safetensors"
    return out


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    """The folder of a run of two steps of the same recipe."""
    out = tmp_path_factory.mktemp("run") / "stopped"
    train(small_recipe(**ADVERSARIAL), data=recordings, out=out, steps=2)
    return out


@pytest.fixture
def stopped(tmp_path: Path, two_steps: Path) -> Path:
    """A copy of `two_steps` that a test may change."""
    return Path(shutil.copytree(two_steps, tmp_path / "stopped"))


def test_resuming_equals_never_having_stopped(finished: Path, stopped: Path, recordings: Path) -> None:
    torch.manual_seed(99)  # whatever random numbers were drawn in between
    train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)
    ours, theirs = load_state(stopped / "state.pt"), load_state(finished / "state.pt")
    assert ours["step"] == 6
    assert {
        "model",
        "ema_model",
        "optimizer",
        "discriminators",
        "discriminator_optimizer",
        "latent_power",
    } <= ours.keys()
    assert {
        "quantizer.envelopes",
        "quantizer.residual.stages.0.codebook",
        "quantizer.residual.stages.0.cluster_size",
    } <= ours["model"].keys()
    for key in ours:
        assert same(ours[key], theirs[key]), key
    assert (stopped / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    timeless = [
        [row for row in read_metrics(folder) if not row[1].startswith("speed")] for folder in (stopped, finished)
    ]
    # a run of two steps has validated after them, the other has not
    assert [row for row in timeless[0] if (row[0], row[1][:5]) != ("2", "valid")] == timeless[1]


def test_restarted_entries_depend_on_the_step_alone(spectral: SpectralLoss) -> None:
    """They do not depend on earlier random numbers, by data loaders or by another process before a resume."""
    restarted = []
    for seed, step in ((1, 5), (2, 5), (1, 6)):
        task = build_task(small_recipe(), CPU)
        state = task.train_state
        quantizer = state.model.quantizer
        assert isinstance(quantizer, GainShapeVQ)
        stage = quantizer.residual.stages[0]
        stage.cluster_size[:5] = 0.0  # dead, so the step restarts them
        torch.manual_seed(seed)
        train_step(task, batch(), step)
        assert (stage.cluster_size[:5] > 0).all()
        restarted.append(stage.codebook[:5])
    assert restarted[0].equal(restarted[1])
    assert not restarted[0].equal(restarted[2])


def test_the_model_is_complete(finished: Path, recordings: Path) -> None:
    recipe = small_recipe(**ADVERSARIAL)
    model = load_model(finished / "model.safetensors")
    assert (model.config, model.name) == (recipe.model, "six")
    state = load_state(finished / "state.pt")
    assert same(dict(model.state_dict()), dict(state["ema_model"]))
    assert not same(dict(state["ema_model"]), dict(state["model"]))
    card = read_card(finished / "model.safetensors")
    assert card.family == "causal"
    assert card.training["step"] == 6
    assert card.training["data"] == str(recordings)
    assert Recipe.from_data(card.training["recipe"]) == recipe
    assert model.decode(model.encode(batch()), length=1200).shape == (3, 1, 1200)


def test_the_log_is_complete(finished: Path) -> None:
    found = read_events(finished)
    scalars = found.Tags()["scalars"]
    losses = ("mel", "complex_stft", "commitment", "adversarial", "feature_matching", "discriminator")
    wanted = {f"loss/{name}" for name in losses} | {f"perplexity/codebook {codebook}" for codebook in range(3)}
    wanted |= {"lr/model", "lr/discriminators"}
    wanted |= {"grad_norm/model", "grad_norm/discriminators"}
    wanted |= {
        f"speed/{name}" for name in ("steps per second", "audio seconds per second", "share waiting for data")
    } | {f"valid {name}/{count}" for name in ("mel", "complex_stft") for count in ("1 codebook", "3 codebooks")}
    assert wanted <= set(scalars)
    assert "loss/codebook" not in scalars  # always 0 where codebooks are moving averages
    (recipe,) = found.Tensors("recipe/text_summary")
    assert b"    model.hop = 80" in recipe.tensor_proto.string_val[0]
    assert [event.step for event in found.Scalars("loss/mel")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in found.Scalars("loss/feature_matching")] == [3, 4, 5, 6]
    decoded = [f"decoded from {count}" for count in ("1 codebook", "3 codebooks")]
    for kind, word, read in (("audio", "audio", found.Audio), ("images", "spectrogram", found.Images)):
        for name, steps in (("original", [0]), *((name, [3, 6]) for name in decoded)):
            tags = [tag for tag in found.Tags()[kind] if tag.startswith(f"{word}, {name}/")]
            assert len(tags) == codec_task.LOGGED_CLIPS, (kind, name)
            assert [event.step for event in read(tags[0])] == steps
    rates = [float(value) for _, name, value in read_metrics(finished) if name == "lr/model"]
    assert rates == pytest.approx([1e-3 * lr_scale(step, 6, small_recipe().optimizer) for step in range(6)], rel=1e-4)


def test_a_pipe_gets_a_line_for_each_log_and_each_validation(
    recordings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(small_recipe(train={"log_every": 2}), data=recordings, out=tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    hours, start, *lines = err.splitlines()
    assert hours == "train on 0.00 h, validate on 0.0 min"
    assert start == "initialize from 2 s of audio"
    assert [line.partition(":")[0] for line in lines] == ["step 2/6", "step 3", "step 4/6", "step 6/6", "step 6"]
    assert all("mel of the validation clips" in lines[index] for index in (1, 4))
    assert all(lines[index].partition(": ")[2].startswith("mel ") for index in (0, 2, 3))


def test_a_folder_in_use_is_not_overwritten(finished: Path, recordings: Path) -> None:
    before = (finished / "state.pt").read_bytes()
    with pytest.raises(ConfigError, match="holds a training run already: add --resume"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=finished)
    assert (finished / "state.pt").read_bytes() == before


def test_resuming_needs_a_state(tmp_path: Path, recordings: Path) -> None:
    with pytest.raises(InputNotFound, match="there is no training run to resume"):
        train(small_recipe(), data=recordings, out=tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_resuming_another_recipe_is_refused(finished: Path, recordings: Path) -> None:
    other = small_recipe(**ADVERSARIAL, losses={"mel": 2.0}, model={"kernel": 5})
    with pytest.raises(ConfigError) as refused:
        train(other, data=recordings, out=finished, resume=True)
    message = str(refused.value)
    assert "model.kernel (3 then, 5 now), losses.mel (1.0 then, 2.0 now);" in message
    assert "optimizer" not in message


def test_a_diverging_run_resumes_with_lower_learning_rates(stopped: Path, recordings: Path) -> None:
    calm = small_recipe(discriminator={"start": 2, "lr": 1e-5}, optimizer={"lr": 1e-4})
    train(calm, data=recordings, out=stopped, resume=True)
    rates = [float(value) for _, name, value in read_metrics(stopped) if name == "lr/model"]
    assert rates[-1] <= 1e-4 < rates[0]


def test_a_run_of_a_language_model_is_refused(stopped: Path, recordings: Path) -> None:
    save_state(stopped / "state.pt", load_state(stopped / "state.pt") | {"recipe": {"kind": "lm", "name": "talk"}})
    with pytest.raises(ConfigError, match="is of a language model, the recipe is of a codec: resume with its own"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["latent_power"], "it lacks latent_power; start again in another --out"),
        (["scaler"], "it lacks scaler; start again in another --out"),
        (["model", "encoder.pca"], "by another version or is of another model (model: "),
        (["latent_power", "sums"], "by another version or is of another model (latent_power: 'sums')"),
        (["optimizer", "param_groups"], "by another version or is of another model (optimizer: "),
    ],
)
def test_resuming_from_a_state_that_lacks_something(
    parts: list[str], says: str, stopped: Path, recordings: Path
) -> None:
    state = load_state(stopped / "state.pt")
    *tables, name = parts
    inner = state
    for table in tables:
        inner = inner[table]
    del inner[name]
    save_state(stopped / "state.pt", state)
    with pytest.raises(ConfigError) as refused:
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)
    assert says in str(refused.value)
    assert "start again in another --out" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_resuming_from_a_recipe_with_a_removed_key(stopped: Path, recordings: Path) -> None:
    state = load_state(stopped / "state.pt")
    state["recipe"]["model"]["formerly"] = 1
    save_state(stopped / "state.pt", state)
    with pytest.raises(
        ConfigError, match=r"unknown key model\.formerly.*another version; start again in another --out"
    ):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


def test_resuming_from_a_recipe_without_a_new_key(stopped: Path, recordings: Path) -> None:
    """Otherwise a run would resume with an additional loss."""
    state = load_state(stopped / "state.pt")
    del state["recipe"]["losses"]["pesq_like"]
    save_state(stopped / "state.pt", state)
    with pytest.raises(ConfigError, match=r"another recipe: losses\.pesq_like \(unknown then, 1\.5 now\)"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


def test_resuming_from_a_recipe_without_a_new_key_that_is_off(stopped: Path, recordings: Path) -> None:
    state = load_state(stopped / "state.pt")
    assert state["recipe"]["losses"].pop("complex_stft") == 0
    save_state(stopped / "state.pt", state)
    train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True, steps=3)
    assert load_state(stopped / "state.pt")["step"] == 3


def test_out_of_memory_in_initialization_names_its_setting(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init_from_audio(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(CausalCodec, "init_from_audio", init_from_audio)
    with pytest.raises(ConfigError, match=r"out of memory: try data\.init_seconds = 2 lower"):
        train(small_recipe(), data=recordings, out=tmp_path / "run")


def test_resuming_with_more_steps_continues(stopped: Path, recordings: Path) -> None:
    train(small_recipe(**ADVERSARIAL, train={"steps": 7}), data=recordings, out=stopped, resume=True, steps=3)
    assert load_state(stopped / "state.pt")["step"] == 3


def test_resuming_a_finished_run_changes_nothing(
    finished: Path, recordings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [(finished / name).read_bytes() for name in ("state.pt", "model.safetensors", "metrics.csv")]
    train(small_recipe(**ADVERSARIAL), data=recordings, out=finished, resume=True)
    assert before == [(finished / name).read_bytes() for name in ("state.pt", "model.safetensors", "metrics.csv")]
    assert "6 steps are done already" in capfd.readouterr().err


def test_resuming_on_other_audio_is_refused(stopped: Path, recordings: Path, tmp_path: Path) -> None:
    data = shutil.copytree(recordings, tmp_path / "changed")
    train(small_recipe(**ADVERSARIAL), data=data, out=stopped, resume=True, steps=3)  # the same files elsewhere
    write_audio(data / "b/e.wav", tones(0.5, 8000, seed=1), 8000)
    with pytest.raises(ConfigError, match="is not the data that this run was started on"):
        train(small_recipe(**ADVERSARIAL), data=data, out=stopped, resume=True)
    assert load_state(stopped / "state.pt")["step"] == 3


def test_a_run_resumes_with_changed_audio_if_allowed(
    stopped: Path, recordings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(recordings, tmp_path / "changed")
    write_audio(data / "b/e.wav", tones(0.5, 8000, seed=1), 8000)
    options: dict[str, Any] = {"data": data, "out": stopped, "resume": True}
    train(small_recipe(**ADVERSARIAL, optimizer={"lr": 1e-4}), **options, steps=3, allow_changed_data=True)
    lines = capfd.readouterr().err.splitlines()
    assert "changed since the run was started: optimizer.lr (0.001 then, 0.0001 now)" in lines
    assert any("has changed since this run was started: from here on, it is not bit for bit" in line for line in lines)
    train(small_recipe(**ADVERSARIAL), **options, steps=4)  # the new data is that of the run now
    assert load_state(stopped / "state.pt")["step"] == 4


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGINT) -> None:
    """Send Ctrl-C, or another signal, in the middle of a step; and again, as a launcher that passes it on."""
    original = CodecTask.step

    def step(task: CodecTask, batch: Batch, step: int) -> dict[str, Tensor]:
        if step == at:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return original(task, batch, step)

    monkeypatch.setattr(CodecTask, "step", step)


def test_an_interrupted_run_resumes_as_if_uninterrupted(
    interrupt: signal.Signals, finished: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(interrupt)
    with monkeypatch.context() as patch:
        interrupting(patch, at=2, number=interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(small_recipe(**ADVERSARIAL), data=recordings, out=tmp_path / "six")
    assert signal.getsignal(interrupt) is handler
    assert load_state(tmp_path / "six/state.pt")["step"] == 3
    train(small_recipe(**ADVERSARIAL), data=recordings, out=tmp_path / "six", resume=True)
    assert same(load_state(tmp_path / "six/state.pt"), load_state(finished / "state.pt"))


def test_a_full_disk_leaves_the_last_checkpoint(
    stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.suffix in (".pt", ".safetensors")}

    def write(file: Any, data: Any) -> int:
        raise StorageError("the disk is full")

    monkeypatch.setattr(storage._Output, "write", write)
    with pytest.raises(StorageError, match="the disk is full"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)
    assert before == {
        path.name: path.read_bytes() for path in stopped.iterdir() if path.suffix in (".pt", ".safetensors")
    }
    assert not list(stopped.glob(".codec-*"))


def test_a_model_that_could_not_be_saved_is_saved_on_resume(
    stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    recipe = small_recipe(**ADVERSARIAL)
    with monkeypatch.context() as patch:
        patch.setattr(codec_task, "save_model", full)
        with pytest.raises(StorageError, match="the disk is full"):
            train(recipe, data=recordings, out=stopped, resume=True)
    model = train(recipe, data=recordings, out=stopped, resume=True)
    assert read_card(model).training["step"] == recipe.train.steps


def test_a_folder_that_cannot_be_created(tmp_path: Path, recordings: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        train(small_recipe(), data=recordings, out=tmp_path / "file/run")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_set(
    error: Exception, stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(CodecTask, "step", step)
    with pytest.raises(ConfigError) as refused:
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)
    for setting in ("checkpoint_activations = true", "accumulate = 1", "data.crop = 0.15", "data.batch_size = 3"):
        assert setting in str(refused.value)
    assert load_state(stopped / "state.pt")["step"] == 2


def test_other_errors_pass_unchanged(stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(CodecTask, "step", step)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


def test_validation_changes_nothing(tmp_path: Path, spectral: SpectralLoss) -> None:
    state, _ = stepped(small_recipe(discriminator={"start": 0}), spectral)

    def saved() -> Any:
        return copy.deepcopy(state_dicts(state, CodecTask.STATE)), torch.get_rng_state()

    before = saved()
    with Logger(tmp_path) as logger:
        validate(state.ema_model, spectral, batch(), logger, 1)
    assert same(before, saved())
    assert state.model.training
    assert not state.ema_model.training


def test_unreadable_files_are_named_and_counted_once(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(crops: Crops, first: int, last: int, **options: Any) -> Generator[Batch, None, None]:
        for step, read in enumerate(load_batches(crops, first, last, **options), first):
            note = FileNote("b/c.flac", "b/c.flac is cut short", left_out=True)
            yield Batch(read.audio, (note,) if step >= 1 else ())

    monkeypatch.setattr(codec_task, "load_batches", failing)
    train(small_recipe(train={"log_every": 3}), data=recordings, out=tmp_path / "run")
    assert capfd.readouterr().err.count("left out: b/c.flac is cut short") == 1


def test_other_audio_is_refused_without_the_index_too(recordings: Path, tmp_path: Path) -> None:
    train(small_recipe(), data=recordings, out=tmp_path / "run", steps=2)
    shutil.rmtree(tmp_path / "run" / "index")
    train(small_recipe(), data=recordings, out=tmp_path / "run", steps=3, resume=True)
    shutil.rmtree(tmp_path / "run" / "index")
    other = shutil.copytree(recordings, tmp_path / "other")
    write_audio(other / "more.wav", tones(0.5, 8000, seed=9), 8000)
    with pytest.raises(ConfigError, match="is not the data that this run was started on"):
        train(small_recipe(), data=other, out=tmp_path / "run", resume=True)


def test_a_run_may_start_from_a_model(recordings: Path, tmp_path: Path) -> None:
    first = train(small_recipe(), data=recordings, out=tmp_path / "first")
    ours = small_recipe(model={"beam_size": 2}, train={"start_from": str(first), "steps": 1}, optimizer={"lr": 1e-9})
    again = load_model(train(ours, data=recordings, out=tmp_path / "again"))
    for name, weight in load_model(first).state_dict().items():
        if not name.startswith("quantizer"):  # whose codebooks are moving averages
            torch.testing.assert_close(again.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert load_state(tmp_path / "again" / "state.pt")["latent_power"]["sums"]["latents"] > 0
    other = small_recipe(model={"dim": 4}, train={"start_from": str(first)})
    with pytest.raises(ConfigError, match=r"is another model: it has dim \(8, not 4\); set \[model\] to match"):
        train(other, data=recordings, out=tmp_path / "other")


def test_the_decoder_may_train_alone(recordings: Path, tmp_path: Path) -> None:
    first = train(small_recipe(), data=recordings, out=tmp_path / "first")
    alone = small_recipe(train={"start_from": str(first), "steps": 2, "decoder_only": True}, optimizer={"lr": 1e-2})
    known, trained = load_model(first), load_model(train(alone, data=recordings, out=tmp_path / "alone"))
    weights = trained.state_dict()
    for name, weight in known.state_dict().items():
        if not name.startswith("decoder."):
            assert weights[name].equal(weight), name
    audio = torch.from_numpy(tones(0.5, 8000, seed=3)).float()[None]
    codes = known.encode(audio)
    assert trained.encode(audio).equal(codes)
    assert (trained.decode(codes) - known.decode(codes)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("key", "weight"), [("spectrum_gain", "decoder.spectrum_gain.weight"), ("learned_noise", "decoder.noise")]
)
def test_a_part_is_added_to_the_start(recordings: Path, tmp_path: Path, key: str, weight: str) -> None:
    first = train(small_recipe(), data=recordings, out=tmp_path / "first")
    known = load_model(first)
    more = small_recipe(model={key: True}, train={"start_from": str(first), "steps": 3, "decoder_only": True})
    model = build_task(more, CPU).train_state.model.eval()
    load_pretrained(model, str(first))
    before = model.state_dict()[weight].clone()
    audio = torch.from_numpy(tones(0.5, 8000, seed=3)).float()[None]
    codes = known.encode(audio)
    assert model.decode(codes).equal(known.decode(codes))
    trained = train(more, data=recordings, out=tmp_path / "more")
    assert (load_model(trained).state_dict()[weight] - before).abs().max() > 1e-6
    without = small_recipe(model={key: False}, train={"start_from": str(trained)})
    with pytest.raises(ConfigError, match=rf"it has {key} \(True, not False\)"):
        train(without, data=recordings, out=tmp_path / "without")


def test_training_the_decoder_alone_needs_a_model() -> None:
    with pytest.raises(ConfigError, match="decoder_only keeps the encoder and the codebooks of a model: name it"):
        small_recipe(train={"decoder_only": True})


def test_codebooks_are_added_to_those_of_the_start(recordings: Path, tmp_path: Path) -> None:
    first = train(small_recipe(), data=recordings, out=tmp_path / "first")
    known = load_model(first)
    count = known.num_codebooks
    more = small_recipe(model={"num_codebooks": count + 2}, train={"start_from": str(first), "steps": 1})
    task = build_task(more, CPU)
    assert load_pretrained(task.train_state.model, str(first)) == count
    model = task.train_state.model.eval()
    audio = torch.from_numpy(tones(0.5, 8000, seed=3)).float()[None]
    model.init_added(audio, count)
    codes = model.encode(audio)
    fewer = model.encode(audio, num_codebooks=count)
    assert fewer.equal(known.encode(audio))
    torch.testing.assert_close(model.decode(fewer), known.decode(fewer))
    latents = model.analyze(audio).detach()
    errors = [
        float((model.quantizer.decode(chosen).detach()[..., :50] - latents)[:, :8].square().mean())
        for chosen in (fewer, codes)
    ]
    assert errors[1] < 0.7 * errors[0]
    trained = load_model(train(more, data=recordings, out=tmp_path / "more"))
    assert trained.num_codebooks == count + 2
    fewer_still = small_recipe(model={"num_codebooks": count - 1}, train={"start_from": str(first)})
    with pytest.raises(ConfigError, match=rf"num_codebooks \({count}, not {count - 1}\)"):
        train(fewer_still, data=recordings, out=tmp_path / "fewer")


# through the command line


def test_the_command_trains_resumes_and_stops(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.toml").write_text('name = "plain"\n')
    sets = options(small_recipe(train={"log_every": 2}))

    def command(*arguments: str) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as ended:
            run(["train", "plain.toml", "--data", str(recordings), *sets, *arguments])
        return ended.value.code, capfd.readouterr().err

    assert command("--resume") == (3, "codec: runs/plain/state.pt does not exist: there is no training run to resume\n")
    code, err = command("--steps", "2")
    assert code in (0, None)
    assert err.splitlines()[-1] == "the model is runs/plain/model.safetensors"
    assert read_card("runs/plain/model.safetensors").training["step"] == 2
    code, err = command("--steps", "2")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert command("--resume", "--steps", "4")[0] in (0, None)
    card = read_card("runs/plain/model.safetensors")
    assert (card.name, card.training["step"]) == ("plain", 4)
    assert pretrained.load("runs/plain").config == small_recipe().model

    interrupting(monkeypatch, at=4)
    code, err = command("--resume")
    assert code == 130
    assert err.splitlines()[-1] == "stopped after step 5, saved in runs/plain: --resume continues from there"
    assert len(err.splitlines()) == 3
    assert load_state("runs/plain/state.pt")["step"] == 5
