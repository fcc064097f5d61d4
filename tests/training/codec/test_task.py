"""training/codec_loop.py: the step is right, and a run can stop anywhere and go on as if it had not."""

import copy
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
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
from codec.training.codec import task as codec_loop
from codec.training.codec.crops import Batch, Crops, batches
from codec.training.codec.losses import EMA, Spectral, SpectralLoss, discriminator_loss, loss_balancer_weights
from codec.training.codec.recipe import LossConfig, Recipe
from codec.training.codec.task import (
    Players,
    assemble,
    audio_gradient,
    dropped_codebooks,
    generations,
    idempotence,
    judged_part,
    reencoded,
    state_of,
    train,
    train_step,
    validate,
    weights_at,
)
from codec.training.logger import Record
from codec.training.optimizer import autocast_dtype, schedule
from tests.helpers.training import batch, options, small_recipe, tones, write_recordings
from tests.training.test_logger import events, rows

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
LOSSES = sorted({*LossConfig.model_fields} - {"balance"})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def spectral() -> SpectralLoss:
    return SpectralLoss(8000)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


def same(one: Any, other: Any) -> bool:
    """Bit for bit, through dicts and lists."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def stepped(recipe: Recipe, spectral: SpectralLoss, *, steps: int = 1) -> tuple[Players, dict[str, Tensor]]:
    """Players after some steps on tones, and the last step's losses."""
    players = assemble(recipe, CPU)
    losses: dict[str, Tensor] = {}
    for step in range(steps):
        losses = train_step(players, spectral, batch(step), step, recipe)
    return players, losses


def rustle(items: int = 3, time: int = 1200) -> Tensor:
    """White noise [items, 1, time]."""
    return 0.1 * torch.randn(items, 1, time, generator=torch.Generator().manual_seed(3))


# a step


def test_a_few_steps_lower_the_loss(spectral: SpectralLoss) -> None:
    recipe = small_recipe(
        losses={"complex_stft": 1.0}, optimizer={"lr": 5e-3}, train={"quantizer_dropout": 0.0, "steps": 30}
    )
    players = assemble(recipe, CPU)
    audio = batch(7)
    players.model.init_from_audio(audio)
    losses = [train_step(players, spectral, audio, step, recipe) for step in range(30)]
    for name, most in (("mel", 0.6), ("complex_stft", 0.65)):
        first, last = (float(losses[step][name] + losses[step + 1][name]) for step in (0, 28))
        assert last < most * first, name
    assert {loss.requires_grad for loss in losses[0].values()} == {False}


def test_the_losses_go_by_name(spectral: SpectralLoss) -> None:
    alone = {*Spectral._fields, "periodicity", "level", "modulation", "idempotence", "commitment", "codebook"}
    alone |= {"gradient/model", "lr/model", "usage"}
    assert set(stepped(small_recipe(), spectral)[1]) == alone
    both = alone | {"discriminator", "adversarial", "feature_matching", "gradient/discriminators", "lr/discriminators"}
    assert set(stepped(small_recipe(discriminator={"start": 1}), spectral, steps=1)[1]) == alone
    assert set(stepped(small_recipe(discriminator={"start": 1}), spectral, steps=2)[1]) == both
    balanced_too = stepped(small_recipe(discriminator={"start": 1}, losses={"balance": True}), spectral, steps=2)
    assert set(balanced_too[1]) == both
    assert set(balanced_too[0].averages.sums) == {
        "latents",
        *Spectral._fields,
        "periodicity",
        "level",
        "modulation",
        "adversarial",
        "feature_matching",
    }


def test_discriminators_leave_the_generators_step_alone(spectral: SpectralLoss) -> None:
    """With weight 0 for what they say, the model's steps are those it makes without them."""
    without, _ = stepped(small_recipe(), spectral, steps=2)
    silent = {"adversarial": 0.0, "feature_matching": 0.0}
    beside, _ = stepped(small_recipe(losses=silent, discriminator={"start": 0}), spectral, steps=2)
    assert same(without.model.state_dict(), beside.model.state_dict())
    assert same(without.optimizer.state_dict(), beside.optimizer.state_dict())
    assert not same(without.discriminators.state_dict(), beside.discriminators.state_dict())


def test_the_generators_losses_leave_the_discriminators_step_alone(spectral: SpectralLoss) -> None:
    silent, loud = (
        stepped(small_recipe(losses={"adversarial": w, "feature_matching": w}, discriminator={"start": 0}), spectral)[0]
        for w in (0.0, 100.0)
    )
    assert same(silent.discriminators.state_dict(), loud.discriminators.state_dict())
    assert not same(silent.model.state_dict(), loud.model.state_dict())


def test_the_discriminators_gradient_is_that_of_their_own_loss(spectral: SpectralLoss) -> None:
    recipe = small_recipe(discriminator={"start": 0}, optimizer={"grad_clip": 1e9}, train={"quantizer_dropout": 0.0})
    players = assemble(recipe, CPU)
    discriminators, audio = copy.deepcopy(players.discriminators), batch()
    decoded = players.model(audio).audio.detach()
    players = assemble(recipe, CPU)
    train_step(players, spectral, audio, 0, recipe)
    part = slice(*judged_part(audio.shape[-1], 0, recipe))
    loss = discriminator_loss(discriminators(audio[..., part]).scores, discriminators(decoded[..., part]).scores)
    loss.backward()  # type: ignore[no-untyped-call]
    for (name, ours), theirs in zip(
        players.discriminators.named_parameters(), discriminators.parameters(), strict=True
    ):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7), name


@pytest.mark.parametrize("name", LOSSES)
def test_every_weight_counts_in_proportion(name: str, spectral: SpectralLoss) -> None:
    """Over unclipped gradients: none of a loss at weight 0, twice as much at 2 as at 1; beside little of two others."""
    gradients = []
    for weight in (0.0, 1.0, 2.0):
        recipe = small_recipe(
            model={"codebook_update": "gradient"},
            losses={other: 1e-3 if other in ("mel", "noise_to_mask") else 0.0 for other in LOSSES} | {name: weight},
            discriminator={"start": 0},
            optimizer={"grad_clip": 1e9, "warmup": 1},
            train={"reencoded": 1.0, "seed": 1},
        )
        players = assemble(recipe, CPU)
        players.model.init_from_audio(batch(1))
        nn.init.normal_(players.model.decoder.gain.weight, std=0.3, generator=torch.Generator().manual_seed(0))
        train_step(players, spectral, rustle(), 0, recipe)
        weights = list(players.model.parameters())
        gradients.append(
            torch.cat([torch.zeros_like(w).flatten() if w.grad is None else w.grad.flatten() for w in weights]).detach()
        )
    none, once, twice = gradients
    assert (once - none).norm() > 1e-6
    assert ((twice - once) - (once - none)).norm() < 0.02 * (once - none).norm()


def test_a_loss_switched_off_does_not_flow_back(spectral: SpectralLoss) -> None:
    class Broken(SpectralLoss):
        def forward(self, decoded: Tensor, audio: Tensor, half: int | None = None) -> Spectral:
            distances = super().forward(decoded, audio, half)
            return distances._replace(complex_stft=distances.complex_stft * math.inf)

    players, losses = stepped(small_recipe(losses={"complex_stft": 0.0}), Broken(8000))
    assert losses["complex_stft"].isinf()
    assert all(weight.isfinite().all() for weight in players.model.parameters())
    with pytest.raises(ConfigError, match=r"in step 0 complex_stft became inf: lower optimizer\.lr = 0\.001 or"):
        stepped(small_recipe(losses={"complex_stft": 1.0}), Broken(8000))


def test_the_gradient_is_clipped(spectral: SpectralLoss) -> None:
    players, losses = stepped(small_recipe(optimizer={"grad_clip": 0.01}), spectral)
    assert losses["gradient/model"] > 0.1  # as it was before
    norm = torch.stack([p.grad.norm() for p in players.model.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_balanced_losses_pull_by_their_shares(spectral: SpectralLoss) -> None:
    """While norms stay what they were, the gradient is made of parts whose norms are the shares."""
    recipe = small_recipe(losses={"balance": True, "mel": 3.0, "complex_stft": 1.0})
    heard = (batch() + 0.1 * torch.randn(3, 1, 1200, generator=torch.Generator().manual_seed(0))).requires_grad_()

    def losses() -> dict[str, Tensor]:
        return dict(spectral(heard, batch())._asdict())

    own = {
        name: torch.autograd.grad(loss, heard)[0] for name, loss in ((n, losses()[n]) for n in ("mel", "complex_stft"))
    }
    norms = EMA(0.99)
    norms.add({name: gradient.norm() for name, gradient in own.items()})
    weights = {name: weight for name, weight in weights_at(0, recipe).items() if name in own}
    asked, squares = audio_gradient(losses(), loss_balancer_weights(weights, norms), heard, 8.0, balance=True)
    expected = 0.75 * own["mel"] / own["mel"].norm() + 0.25 * own["complex_stft"] / own["complex_stft"].norm()
    assert torch.allclose(asked, 8.0 * expected, atol=1e-6)
    for name, gradient in own.items():
        assert float(squares[name]) == pytest.approx(float(gradient.norm()) ** 2, rel=1e-4)


def test_balance_makes_scales_of_losses_meaningless(spectral: SpectralLoss) -> None:
    class Louder(SpectralLoss):
        def forward(self, decoded: Tensor, audio: Tensor, half: int | None = None) -> Spectral:
            distances = super().forward(decoded, audio, half)
            return distances._replace(mel=1024 * distances.mel)  # a power of two, which rounding does not see

    recipe = small_recipe(losses={"balance": True})
    ours, theirs = (stepped(recipe, loss, steps=3)[0].model.state_dict() for loss in (spectral, Louder(8000)))
    for name, weight in ours.items():
        assert torch.allclose(weight, theirs[name], atol=1e-5), name


@pytest.mark.parametrize("balance", [False, True])
def test_accumulating_over_parts_is_the_same_training(balance: bool, spectral: SpectralLoss) -> None:
    tables: dict[str, Any] = {"discriminator": {"start": 1, "lr": 1e-5}, "losses": {"balance": balance}}
    tables["optimizer"] = {"lr": 1e-4, "warmup": 2}
    (whole, losses), (parted, same_losses) = (
        stepped(small_recipe(**tables, train={"accumulate": parts, "reencoded": 0.5}), spectral, steps=3)
        for parts in (1, 3)
    )
    for players in ("model", "discriminators", "average"):
        for (name, ours), theirs in zip(
            getattr(whole, players).state_dict().items(), getattr(parted, players).state_dict().values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-6, msg=name)
    for name in losses:
        torch.testing.assert_close(losses[name], same_losses[name], rtol=1e-3, atol=1e-5, msg=name)


def test_blocks_computed_again_give_the_same_step(spectral: SpectralLoss, monkeypatch: pytest.MonkeyPatch) -> None:
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
import numpy as np
import torch
from functools import partialmethod
from tests.helpers.training import options, small_recipe
from tests.training.codec.test_task import SpectralLoss, stepped

def as_is(graph, inputs):
    graphs.append(graph)
    return graph

graphs = []
torch.set_num_threads(1)
torch.nn.Module.compile = partialmethod(torch.nn.Module.compile, backend=as_is)  # which needs no compiler
adversary = {"start": 0, "every": 1}
ours, theirs = (
    stepped(small_recipe(train={"compile": on}, adversary=adversary), SpectralLoss(8000), steps=2)[0]
    for on in (False, True)
)
assert len(graphs) >= 2, graphs  # of both sides
for side in ("model", "judges"):
    weights = (getattr(players, side).state_dict() for players in (ours, theirs))
    torch.testing.assert_close(*weights)
"""


def test_compiled_networks_take_the_same_steps() -> None:
    """In a process of its own, as torch cannot trace the checks of shapes that tests add."""
    done = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_discriminators_train_on_every_kth_step(spectral: SpectralLoss) -> None:
    recipe = small_recipe(discriminator={"start": 1, "update_every": 2})
    players = assemble(recipe, CPU)
    trained = []
    for step in range(5):
        before = copy.deepcopy(players.discriminators.state_dict())
        losses = train_step(players, spectral, batch(step), step, recipe)
        trained.append(not same(before, players.discriminators.state_dict()))
        assert ("adversarial" in losses, "discriminator" in losses) == (step >= 1, trained[-1])
        assert all(weight.grad is None for weight in players.discriminators.parameters()) != trained[-1]
    assert trained == [False, True, False, True, False]


def test_float16_leaves_out_steps_that_overflow(spectral: SpectralLoss) -> None:
    recipe = small_recipe(train={"precision": "float16"}, discriminator={"start": 0})
    players = assemble(recipe, CPU)
    players.model.init_from_audio(batch(1))
    fitted = copy.deepcopy(players)
    players.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120, growth_interval=1)
    before = copy.deepcopy(players.model.state_dict())
    train_step(players, spectral, batch(), 0, recipe)
    assert same(before, players.model.state_dict())
    assert players.scaler.get_scale() == 2.0**119
    players.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1)
    losses = train_step(players, spectral, batch(), 0, recipe)
    assert not same(before, players.model.state_dict())
    assert players.scaler.get_scale() == 2.0**9
    exact = train_step(fitted, spectral, batch(), 0, small_recipe(discriminator={"start": 0}))
    for name in ("gradient/model", "gradient/discriminators"):  # unscaled
        assert float(losses[name]) == pytest.approx(float(exact[name]), rel=0.05)


def test_what_is_not_finite_is_named(spectral: SpectralLoss) -> None:
    recipe = small_recipe(discriminator={"start": 0, "update_every": 1}, train={"precision": "float16"})
    players = assemble(recipe, CPU)
    with torch.no_grad():
        next(players.discriminators.parameters()).fill_(math.nan)
    players.scaler = torch.amp.GradScaler("cpu", init_scale=0.5)  # no scale will help
    with pytest.raises(ConfigError) as told:
        train_step(players, spectral, batch(), 7, recipe)
    message = str(told.value)
    assert "in step 7 adversarial became nan and feature_matching became nan and discriminator became nan" in message
    assert "lower discriminator.lr = 0.0003" in message


def test_the_average_follows_the_weights(spectral: SpectralLoss) -> None:
    recipe = small_recipe(optimizer={"ema_decay": 0.25})
    players = assemble(recipe, CPU)
    expected = {name: weight.clone() for name, weight in players.average.named_parameters()}
    for step in range(3):
        train_step(players, spectral, batch(step), step, recipe)
        decay = min(0.25, (1 + step) / (10 + step))  # 0.1, 0.18, 0.25
        for name, weight in players.model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
    for name, weight in players.average.named_parameters():
        assert torch.allclose(weight, expected[name], atol=1e-6), name
        assert not weight.requires_grad
    for ours, theirs in zip(players.average.buffers(), players.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_codebooks_stay_float32_and_learn_under_bfloat16(spectral: SpectralLoss) -> None:
    recipe = small_recipe(train={"precision": "bfloat16"}, discriminator={"start": 0})
    players = assemble(recipe, CPU)
    players.model.init_from_audio(batch(1))
    before = copy.deepcopy(players.model.quantizer)
    seen: set[torch.dtype] = set()
    players.model.encoder.in_proj.register_forward_hook(lambda *call: seen.add(call[2].dtype))
    losses = train_step(players, spectral, batch(), 0, recipe)
    assert seen == {torch.bfloat16}
    assert all(loss.isfinite().all() for loss in losses.values())
    assert {value.dtype for module in (players.model, players.average) for value in module.state_dict().values()} == {
        torch.float32
    }
    quantizer = players.model.quantizer
    assert isinstance(quantizer, GainShapeVQ)
    assert isinstance(before, GainShapeVQ)
    assert quantizer.envelopes.equal(before.envelopes)
    for codebook, (stage, old) in enumerate(zip(quantizer.residual.stages, before.residual.stages, strict=True)):
        assert not stage.codebook.equal(old.codebook), codebook
        moved = stage.codebook - old.codebook
        assert not moved.equal(moved.bfloat16().float()), codebook  # steps finer than bfloat16 has them


def test_precision() -> None:
    assert autocast_dtype("float32", CPU) == torch.float32
    assert autocast_dtype("bfloat16", CPU) == torch.bfloat16
    assert autocast_dtype("auto", CPU) in (torch.float32, torch.bfloat16)


def test_an_autoencoder_without_codes_trains_and_validates(tmp_path: Path, recordings: Path) -> None:
    recipe = small_recipe(model={"quantizer": "none", "num_codebooks": 1, "envelope_bands": 0}, train={"steps": 1})
    train(recipe, data=recordings, out=tmp_path)
    assert "valid/mel 1 codebooks" in {name for _, name, _ in rows(tmp_path)}


# generations


def fitted(**tables: Any) -> tuple[CausalCodec, Recipe]:
    """A model of noise and tones, whose residual is not silent."""
    recipe = small_recipe(**tables)
    model = assemble(recipe, CPU).model
    model.init_from_audio(torch.cat([rustle(), batch(1)]))
    return model, recipe


def test_a_share_of_the_crops_is_coded_once_to_four_times() -> None:
    _, recipe = fitted(train={"reencoded": 0.3})
    counts = torch.bincount(torch.tensor([generations(step, row, recipe) for step in range(50) for row in range(40)]))
    assert len(counts) == 5
    assert counts[0] == pytest.approx(1400, abs=70)
    assert counts[1:].tolist() == pytest.approx([150] * 4, abs=45)
    for share, least in ((0.0, 0), (1.0, 1)):
        recipe = small_recipe(train={"reencoded": share})
        assert {min(generations(step, row, recipe), 1) for step in range(9) for row in range(9)} == {least}


def test_reencoded_crops_are_what_coding_makes_of_them() -> None:
    model, recipe = fitted(train={"reencoded": 0.5})
    audio = torch.cat([rustle(), batch(1)])
    original = audio.clone()
    seen = set()
    for step in range(4):
        found, entries = reencoded(model, audio, step, recipe)
        assert audio.equal(original)
        assert entries.shape == (6, 8, model.frame_spec.frames(1200))
        assert not found.requires_grad
        for row in range(6):
            times = generations(step, row, recipe)
            seen.add(times)
            expected = audio[row : row + 1]
            for _ in range(times):
                codes = model.encode(expected)
                expected = model.decode(codes, length=1200).clamp(-1, 1)
            torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-5, atol=1e-5)
            assert isinstance(model.quantizer, GainShapeVQ)
            if not times:
                assert entries[row].isnan().all()
                continue
            known = codes[0, 0] < model.quantizer.silence
            assert entries[row].isnan().equal(~known.expand(8, -1))
            decoded = model.quantizer.split(model.quantizer.decode(codes)).residual[0]
            torch.testing.assert_close(entries[row][:, known], decoded[:, known], rtol=1e-4, atol=1e-4)
    assert {0, 1} < seen


def test_reencoding_depends_on_the_step_and_the_row_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on what was drawn before, nor on the number of processes that share the batch."""
    model, recipe = fitted(train={"reencoded": 0.5})
    audio = torch.cat([rustle(), batch(1)])
    whole = reencoded(model, audio, 3, recipe)
    torch.manual_seed(7)
    again = reencoded(model, audio, 3, recipe)
    assert whole[0].equal(again[0])
    assert whole[1].nan_to_num(9).equal(again[1].nan_to_num(9))
    assert not whole[0].equal(reencoded(model, audio, 4, recipe)[0])
    monkeypatch.setattr(distributed, "count", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        part = reencoded(model, audio[2 * rank : 2 * rank + 2], 3, recipe)
        for ours, theirs in zip(part, whole, strict=True):
            assert ours.nan_to_num(9).equal(theirs[2 * rank : 2 * rank + 2].nan_to_num(9))


@pytest.mark.parametrize(
    "model",
    [
        {"quantizer": "none", "num_codebooks": 1, "envelope_bands": 0},
        {"quantizer": "mixture", "num_codebooks": 1, "envelope_bands": 0},
        {"quantizer": "scalar", "num_codebooks": 1, "envelope_bands": 0, "dim": 2, "levels": [5, 4]},
    ],
)
def test_where_latents_are_no_sums_of_entries_nothing_is_asked_of_them(
    model: dict[str, Any], spectral: SpectralLoss
) -> None:
    coder, recipe = fitted(model=model, train={"reencoded": 1.0})
    found, entries = reencoded(coder, batch(), 0, recipe)
    assert entries.isnan().all()
    assert found.equal(batch()) == (model["quantizer"] == "none")
    assert stepped(recipe, spectral)[1]["idempotence"] == 0


def test_idempotence_by_hand() -> None:
    latents = torch.tensor([[[1.0, 2.0]], [[3.0, 5.0]]], requires_grad=True)
    entries = torch.tensor([[[1.5, torch.nan]], [[torch.nan, 2.0]]])
    loss = idempotence(latents, entries, torch.tensor(2.0))
    assert loss.item() == pytest.approx((0.25 + 9) / 2)
    assert torch.autograd.grad(loss, latents)[0].flatten().tolist() == pytest.approx([-0.5, 0, 0, 3])
    parts = [idempotence(latents[row : row + 1], entries[row : row + 1], torch.tensor(1.0)) for row in (0, 1)]
    assert torch.stack(parts).mean().item() == pytest.approx(loss.item())
    unknown = torch.full_like(entries, torch.nan)
    loss = idempotence(latents, unknown, torch.tensor(0.0))
    assert loss == 0
    assert (torch.autograd.grad(loss, latents)[0] == 0).all()


# what a step draws


def test_the_learning_rate_rises_and_falls() -> None:
    recipe = small_recipe(optimizer={"warmup": 4, "lr_min_ratio": 0.1}, train={"steps": 24})
    shares = [schedule(step, 24, recipe.optimizer) for step in range(30)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1, 1]
    assert shares[14] == pytest.approx(0.55)  # half way
    assert shares[24:] == pytest.approx([0.1] * 6)
    assert all(later <= earlier for earlier, later in pairwise(shares[4:]))


def test_the_rate_reaches_the_optimizers(spectral: SpectralLoss) -> None:
    recipe = small_recipe(
        optimizer={"warmup": 4, "lr": 1e-3},
        discriminator={"start": 1, "update_every": 1, "lr": 1e-2},
        train={"steps": 8},
    )
    players, _ = stepped(recipe, spectral, steps=3)
    assert players.optimizer.param_groups[0]["lr"] == pytest.approx(0.75e-3)
    assert players.discriminators_optimizer.param_groups[0]["lr"] == pytest.approx(
        0.5e-2
    )  # its second of four steps up


def test_quantizer_dropout_draws_every_depth() -> None:
    recipe = small_recipe(model={"num_codebooks": 5}, train={"quantizer_dropout": 0.5})
    num_codebooks = torch.cat([dropped_codebooks(8, step, recipe) for step in range(200)])
    counts = torch.bincount(num_codebooks, minlength=6)
    assert counts[0] == 0
    expected = 800 * np.log(np.arange(2, 7) / np.arange(1, 6)) / np.log(6)  # of the 800 dropped, log-uniform
    expected[-1] += 800
    assert np.abs(counts[1:].numpy() - expected).max() < 50
    assert dropped_codebooks(8, 3, recipe).equal(dropped_codebooks(8, 3, recipe))
    assert (dropped_codebooks(64, 0, small_recipe(train={"quantizer_dropout": 0.0})) == 3).all()
    every = dropped_codebooks(600, 0, small_recipe(train={"quantizer_dropout": 1.0}))
    assert (torch.bincount(every)[1:] > 90).all()


def test_discriminators_see_a_part_that_moves() -> None:
    recipe = small_recipe(discriminator={"crop": 0.1})
    parts = [judged_part(1200, step, recipe) for step in range(100)]
    assert {last - first for first, last in parts} == {800}
    assert min(first for first, _ in parts) < 40
    assert 1160 < max(last for _, last in parts) <= 1200
    assert judged_part(500, 0, recipe) == (0, 500)


# a run

ADVERSARIAL: dict[str, Any] = {"discriminator": {"start": 2}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, recordings: Path) -> Path:
    """The folder of an uninterrupted run of six steps."""
    out = tmp_path_factory.mktemp("run") / "six"
    assert train(small_recipe(**ADVERSARIAL), data=recordings, out=out) == out / "model.safetensors"
    return out


@pytest.fixture
def stopped(tmp_path: Path, recordings: Path) -> Path:
    """The folder of a run of two steps of the same recipe."""
    out = tmp_path / "stopped"
    train(small_recipe(**ADVERSARIAL), data=recordings, out=out, steps=2)
    return out


def test_resuming_equals_never_having_stopped(finished: Path, stopped: Path, recordings: Path) -> None:
    torch.manual_seed(99)  # whatever went on in between
    train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)
    ours, theirs = load_state(stopped / "state.pt"), load_state(finished / "state.pt")
    assert ours["step"] == 6
    assert {"model", "average", "optimizer", "discriminators", "discriminators_optimizer", "averages"} <= ours.keys()
    assert {
        "quantizer.envelopes",
        "quantizer.residual.stages.0.codebook",
        "quantizer.residual.stages.0.cluster_size",
    } <= ours["model"].keys()
    for key in ours:
        assert same(ours[key], theirs[key]), key
    assert (stopped / "model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    timeless = [[row for row in rows(folder) if not row[1].startswith("speed")] for folder in (stopped, finished)]
    # a run of two steps has validated after them, the other has not
    assert [row for row in timeless[0] if (row[0], row[1][:5]) != ("2", "valid")] == timeless[1]


def test_entries_that_start_anew_depend_on_the_step_alone(spectral: SpectralLoss) -> None:
    """Not on what was drawn before, be it by data loaders or in another process before a resume."""
    num_codebooks = []
    for seed, step in ((1, 5), (2, 5), (1, 6)):
        players = assemble(small_recipe(), CPU)
        quantizer = players.model.quantizer
        assert isinstance(quantizer, GainShapeVQ)
        stage = quantizer.residual.stages[0]
        stage.cluster_size[:5] = 0.0  # dead: the step draws rows for them
        torch.manual_seed(seed)
        train_step(players, spectral, batch(), step, small_recipe())
        assert (stage.cluster_size[:5] > 0).all()
        num_codebooks.append(stage.codebook[:5])
    assert num_codebooks[0].equal(num_codebooks[1])
    assert not num_codebooks[0].equal(num_codebooks[2])


def test_the_model_is_complete(finished: Path, recordings: Path) -> None:
    recipe = small_recipe(**ADVERSARIAL)
    model = load_model(finished / "model.safetensors")
    assert (model.config, model.name) == (recipe.model, "six")
    state = load_state(finished / "state.pt")
    assert same(dict(model.state_dict()), dict(state["average"]))
    assert not same(dict(state["average"]), dict(state["model"]))
    card = read_card(finished / "model.safetensors")
    assert card.family == "causal"
    assert card.training["step"] == 6
    assert card.training["data"] == str(recordings)
    assert Recipe.from_data(card.training["recipe"]) == recipe
    assert model.decode(model.encode(batch()), length=1200).shape == (3, 1, 1200)


def test_the_record_is_complete(finished: Path) -> None:
    found = events(finished)
    scalars = found.Tags()["scalars"]
    losses = ("mel", "complex_stft", "commitment", "codebook", "adversarial", "feature_matching", "discriminator")
    wanted = {f"loss/{name}" for name in losses} | {f"perplexity/{codebook}" for codebook in range(3)}
    wanted |= {"lr/model", "lr/discriminators"}
    wanted |= {"gradient/model", "gradient/discriminators"}
    wanted |= {
        f"speed/{name}" for name in ("steps per second", "audio seconds per second", "share waiting for data")
    } | {f"valid/{name} {num_codebooks} codebooks" for name in ("mel", "complex_stft") for num_codebooks in (1, 3)}
    assert wanted <= set(scalars)
    assert [event.step for event in found.Scalars("loss/mel")] == [1, 2, 3, 4, 5, 6]
    assert [event.step for event in found.Scalars("loss/feature_matching")] == [3, 4, 5, 6]
    for kind, read in (("audio", found.Audio), ("images", found.Images)):
        for name, steps in (("original", [0]), ("1 codebooks", [3, 6]), ("3 codebooks", [3, 6])):
            tags = [tag for tag in found.Tags()[kind] if tag.startswith(f"{name}/")]
            assert len(tags) == 8, (kind, name)
            assert [event.step for event in read(tags[0])] == steps
    rates = [float(value) for _, name, value in rows(finished) if name == "lr/model"]
    assert rates == pytest.approx([1e-3 * schedule(step, 6, small_recipe().optimizer) for step in range(6)], rel=1e-4)


def test_only_validations_leave_lines(recordings: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(small_recipe(), data=recordings, out=tmp_path / "run")
    out, err = capfd.readouterr()
    assert out == ""
    hours, start, *lines = err.splitlines()
    assert hours == "train on 0.00 h, validate on 0.0 min"
    assert start == "begin with a fit to 2 s of audio"
    assert [line.partition(":")[0] for line in lines] == ["step 3", "step 6"]
    assert all("mel of the validation clips" in line for line in lines)


def test_a_folder_in_use_is_not_overwritten(finished: Path, recordings: Path) -> None:
    before = (finished / "state.pt").read_bytes()
    with pytest.raises(ConfigError, match="holds a training already: add --resume"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=finished)
    assert (finished / "state.pt").read_bytes() == before


def test_resuming_needs_a_state(tmp_path: Path, recordings: Path) -> None:
    with pytest.raises(InputNotFound, match="no training to resume there"):
        train(small_recipe(), data=recordings, out=tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()


def test_resuming_another_recipe_is_refused(finished: Path, recordings: Path) -> None:
    other = small_recipe(**ADVERSARIAL, losses={"mel": 2.0}, model={"kernel": 5})
    with pytest.raises(ConfigError) as refused:
        train(other, data=recordings, out=finished, resume=True)
    message = str(refused.value)
    assert "model.kernel (3 then, 5 now), losses.mel (1.0 then, 2.0 now);" in message
    assert "optimizer" not in message


def test_what_runs_away_goes_on_as_the_message_says(stopped: Path, recordings: Path) -> None:
    calm = small_recipe(discriminator={"start": 2, "lr": 1e-5}, optimizer={"lr": 1e-4})
    train(calm, data=recordings, out=stopped, resume=True)
    rates = [float(value) for _, name, value in rows(stopped) if name == "lr/model"]
    assert rates[-1] <= 1e-4 < rates[0]


def test_a_codecs_run_is_no_language_models(stopped: Path, recordings: Path) -> None:
    save_state(stopped / "state.pt", load_state(stopped / "state.pt") | {"recipe": {"kind": "lm", "name": "talk"}})
    with pytest.raises(ConfigError, match="is of a language model, the recipe of a codec: resume with its own"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (["averages"], "it lacks averages; begin anew in another --out"),
        (["scaler"], "it lacks scaler; begin anew in another --out"),
        (["model", "encoder.pca"], "of an older program or another model (model: "),
        (["averages", "sums"], "of an older program or another model (averages: 'sums')"),
        (["optimizer", "param_groups"], "of an older program or another model (optimizer: "),
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
    assert "begin anew in another --out" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_resuming_from_a_recipe_with_a_key_that_is_gone(stopped: Path, recordings: Path) -> None:
    state = load_state(stopped / "state.pt")
    state["recipe"]["model"]["formerly"] = 1
    save_state(stopped / "state.pt", state)
    with pytest.raises(ConfigError, match=r"unknown key model\.formerly.*older program; begin anew in another --out"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


def test_resuming_from_a_recipe_without_a_key_that_is_new(stopped: Path, recordings: Path) -> None:
    """A state from before a loss was known would go on with it unasked."""
    state = load_state(stopped / "state.pt")
    del state["recipe"]["losses"]["pesq_like"]
    save_state(stopped / "state.pt", state)
    with pytest.raises(ConfigError, match=r"another recipe: losses\.pesq_like \(unknown then, 1\.5 now\)"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


def test_memory_that_ends_in_the_fit_names_its_setting(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(CausalCodec, "init_from_audio", fit)
    with pytest.raises(
        ConfigError, match=r"memory does not suffice for this training: set data\.init_seconds = 2 lower"
    ):
        train(small_recipe(), data=recordings, out=tmp_path / "run")


def test_resuming_with_more_steps_goes_on(stopped: Path, recordings: Path) -> None:
    train(small_recipe(**ADVERSARIAL, train={"steps": 7}), data=recordings, out=stopped, resume=True, steps=3)
    assert load_state(stopped / "state.pt")["step"] == 3


def test_resuming_a_finished_run_changes_nothing(
    finished: Path, recordings: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = [(finished / name).read_bytes() for name in ("state.pt", "model.safetensors", "record.csv")]
    train(small_recipe(**ADVERSARIAL), data=recordings, out=finished, resume=True)
    assert before == [(finished / name).read_bytes() for name in ("state.pt", "model.safetensors", "record.csv")]
    assert "6 steps are done already" in capfd.readouterr().err


def test_resuming_on_other_audio_is_refused(stopped: Path, recordings: Path, tmp_path: Path) -> None:
    data = shutil.copytree(recordings, tmp_path / "changed")
    train(small_recipe(**ADVERSARIAL), data=data, out=stopped, resume=True, steps=3)  # the same files elsewhere
    write_audio(data / "b/e.wav", tones(0.5, 8000, seed=1), 8000)
    with pytest.raises(ConfigError, match="is not the audio that this training began with"):
        train(small_recipe(**ADVERSARIAL), data=data, out=stopped, resume=True)
    assert load_state(stopped / "state.pt")["step"] == 3


def interrupting(monkeypatch: pytest.MonkeyPatch, at: int, number: int = signal.SIGINT) -> None:
    """Ctrl-C, or another signal, in the middle of that step; and once more from a launcher that passes it on."""

    def step(players: Players, spectral: SpectralLoss, audio: Tensor, step: int, recipe: Recipe) -> dict[str, Tensor]:
        if step == at:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return train_step(players, spectral, audio, step, recipe)

    monkeypatch.setattr(codec_loop, "train_step", step)


def test_an_interrupted_run_goes_on_as_if_it_had_not_been(
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


def test_a_model_that_could_not_be_saved_is_made_again(
    stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")

    recipe = small_recipe(**ADVERSARIAL)
    with monkeypatch.context() as patch:
        patch.setattr(codec_loop, "save_model", full)
        with pytest.raises(StorageError, match="the disk is full"):
            train(recipe, data=recordings, out=stopped, resume=True)
    model = train(recipe, data=recordings, out=stopped, resume=True)
    assert read_card(model).training["step"] == recipe.train.steps


def test_a_folder_that_cannot_be_made(tmp_path: Path, recordings: Path) -> None:
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
def test_too_little_memory_says_what_to_set(
    error: Exception, stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*_: object) -> None:
        raise error

    monkeypatch.setattr(codec_loop, "train_step", step)
    with pytest.raises(ConfigError) as told:
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)
    for setting in ("checkpoint_activations = true", "accumulate = 1", "data.crop = 0.15", "data.batch_size = 3"):
        assert setting in str(told.value)
    assert load_state(stopped / "state.pt")["step"] == 2


def test_other_errors_pass_as_they_are(stopped: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*_: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(codec_loop, "train_step", step)
    with pytest.raises(RuntimeError, match="shapes differ"):
        train(small_recipe(**ADVERSARIAL), data=recordings, out=stopped, resume=True)


def test_validation_touches_nothing(tmp_path: Path, spectral: SpectralLoss) -> None:
    players, _ = stepped(small_recipe(discriminator={"start": 0}), spectral)
    before = copy.deepcopy(state_of(players, 1, small_recipe())), torch.get_rng_state()
    with Record(tmp_path) as record:
        validate(players.average, spectral, batch(), record, 1)
    assert same(before, (state_of(players, 1, small_recipe()), torch.get_rng_state()))
    assert players.model.training
    assert not players.average.training


def test_files_that_fail_are_named_and_counted_once(
    recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(crops: Crops, first: int, last: int, **options: Any) -> Iterator[tuple[int, Batch]]:
        for step, read in batches(crops, first, last, **options):
            yield step, Batch(read.audio, (("b/c.flac", "b/c.flac is cut short"),) if step >= 1 else ())

    monkeypatch.setattr(codec_loop, "batches", failing)
    train(small_recipe(train={"log_every": 3}), data=recordings, out=tmp_path / "run")
    assert capfd.readouterr().err.count("left out: b/c.flac is cut short") == 1


def test_other_audio_is_refused_without_the_index_too(recordings: Path, tmp_path: Path) -> None:
    train(small_recipe(), data=recordings, out=tmp_path / "run", steps=2)
    shutil.rmtree(tmp_path / "run" / "index")
    train(small_recipe(), data=recordings, out=tmp_path / "run", steps=3, resume=True)
    shutil.rmtree(tmp_path / "run" / "index")
    other = shutil.copytree(recordings, tmp_path / "other")
    write_audio(other / "more.wav", tones(0.5, 8000, seed=9), 8000)
    with pytest.raises(ConfigError, match="is not the audio that this training began with"):
        train(small_recipe(), data=other, out=tmp_path / "run", resume=True)


def test_a_training_may_start_from_a_model(recordings: Path, tmp_path: Path) -> None:
    first = train(small_recipe(), data=recordings, out=tmp_path / "first")
    ours = small_recipe(model={"beam_size": 2}, train={"start_from": str(first), "steps": 1}, optimizer={"lr": 1e-9})
    again = load_model(train(ours, data=recordings, out=tmp_path / "again"))
    for name, weight in load_model(first).state_dict().items():
        if not name.startswith("quantizer"):  # whose codebooks move at their own rate
            torch.testing.assert_close(again.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert load_state(tmp_path / "again" / "state.pt")["averages"]["sums"]["latents"] > 0
    other = small_recipe(model={"dim": 4}, train={"start_from": str(first)})
    with pytest.raises(ConfigError, match=r"is another model: it has dim \(8, not 4\); set \[model\] to match"):
        train(other, data=recordings, out=tmp_path / "other")


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

    assert command("--resume") == (3, "codec: runs/plain/state.pt: no training to resume there\n")
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
    assert err.splitlines()[1:] == ["stopped after step 5, which is saved in runs/plain: --resume goes on from there"]
    assert load_state("runs/plain/state.pt")["step"] == 5
