"""training/lm/task.py: the training step is right, and a resumed run equals an uninterrupted one."""

import json
import math
import os
import shutil
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from codec import pretrained
from codec.checkpoint import load_state, read_card, save_model
from codec.data.token_store import TokenStore
from codec.data.tokenize import tokenize
from codec.errors import ConfigError, InputNotFound, UnknownModel, UsageError, WeightsMismatch
from codec.io.audio import write_audio
from codec.io.level import Level
from codec.lm import build
from codec.lm.base import CodecLM
from codec.lm.conditioning import Conditioning
from codec.models.base import Codec
from codec.nn import resample
from codec.training.engine import lr_scale
from codec.training.lm.crops import Batch, TokenCrops, sample_soft_codes
from codec.training.lm.recipe import LMRecipe
from codec.training.lm.task import (
    LMTask,
    TrainState,
    arrange,
    build_task,
    cross_entropy,
    overfit_one_batch,
    train,
    validate,
)
from tests.helpers.language_models import MODELS, SIZE, some_conditioning, tiny_lm
from tests.helpers.loudness import Biquads
from tests.helpers.training import read_events, read_metrics, same, small_lm_recipe, write_codec, write_store
from tests.tiny import tiny_model

CPU = torch.device("cpu")
LIVELY: dict[str, Any] = {"losses": {"soft": 0.2, "stochastic": 0.1}, "model": {"dropout": 0.1}}

PIXELCNN = {"family": "pixelcnn", "width": 16, "layers": 4, "context": 16}


pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny codec is, and a store of its codes."""
    folder = tmp_path_factory.mktemp("store")
    write_store(folder, write_codec(folder))
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path) -> Codec:
    return pretrained.load(folder / "tiny.safetensors")


@pytest.fixture(scope="module")
def store(folder: Path) -> TokenStore:
    return TokenStore(folder / "store")


def run(folder: Path, out: Path, *, codec: bool = True, **options: Any) -> Path:
    """Train on the store below `folder`, with the codec there; `options` of `train`, and tables of the recipe."""
    tables = {name: options.pop(name) for name in [*options] if isinstance(options[name], Mapping)}
    path = folder / "tiny.safetensors" if codec else None
    recipe = small_lm_recipe(**(LIVELY | tables))
    return train(recipe, data=folder / "store", out=out, codec=path, device="cpu", **options)


def task_of(recipe: LMRecipe, store: TokenStore, codec: Codec) -> LMTask:
    return build_task(recipe, CPU, store=store, codec=codec)


def stepped(
    store: TokenStore, codec: Codec, *, steps: int = 1, **tables: Mapping[str, Any]
) -> tuple[TrainState, dict[str, Tensor]]:
    """The state after some steps, and the metrics of the last step."""
    task = task_of(small_lm_recipe(**tables), store, codec)
    metrics: dict[str, Tensor] = {}
    for step in range(steps):
        metrics = task.step(task.train_data.batch(step, 0, 4), step)
    return task.train_state, metrics


# a step


def slowly(model: CodecLM, codes: Tensor, targets: Tensor, conditioning: Conditioning, soft: Tensor | None) -> Tensor:
    """Nats of each codebook [codebooks], cell by cell, each from columns that stop where it is decided."""
    totals = torch.zeros(targets.shape[1])
    unknown = torch.full((1, targets.shape[1], targets.shape[2]), model.special_token)
    for row in range(len(codes)):
        known = unknown.clone()
        known[0, :, : codes.shape[2]] = torch.where(codes[row] < 0, model.special_token, codes[row])
        columns = model.pattern.lay_out(known, model.special_token)
        cells = model.pattern.cells(0, columns.shape[2])
        logits = model(columns, Conditioning(*(part[row : row + 1] for part in conditioning)))[0]
        for codebook, frame in (targets[row] >= 0).nonzero().tolist():
            (step,) = (cells[codebook] == frame).nonzero()[:, 0].tolist()
            likely = torch.exp(logits[codebook, step].double())
            likely /= likely.sum()
            target = int(targets[row, codebook, frame])
            if soft is None or target == SIZE:
                totals[codebook] -= math.log(likely[target])
            else:
                for code in range(SIZE):
                    totals[codebook] -= float(soft[row, codebook, frame, code]) * math.log(likely[code])
    return totals


@pytest.mark.parametrize("softly", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_is_that_of_every_cell_that_counts(name: str, softly: bool) -> None:
    model = tiny_lm(**MODELS[name])
    rng = torch.Generator().manual_seed(0)
    codes = torch.randint(SIZE, (3, 3, 7), generator=rng)
    targets = torch.cat([codes, torch.full((3, 3, 1), -1)], dim=2)
    targets[0, 0, 7] = SIZE  # ends with the longest
    codes[1, :, 4:], targets[1, :, 4:], targets[1, 0, 4] = -1, -1, SIZE  # ends before
    targets[2, :, 0] = -1  # begins and ends anywhere
    soft = torch.rand(3, 3, 7, SIZE, generator=rng).softmax(dim=-1) if softly else None
    with torch.no_grad():
        inputs, steps = arrange(codes, model)
        ours = cross_entropy(model(inputs, some_conditioning(model, 3)), targets, steps, soft)
        torch.testing.assert_close(
            ours, slowly(model, codes, targets, some_conditioning(model, 3), soft), rtol=1e-4, atol=1e-3
        )


def test_a_step_returns_bits_per_code(store: TokenStore, codec: Codec) -> None:
    recipe = small_lm_recipe(losses={"codebook_weights": [3.0, 1.0, 0.0], "condition_dropout": 0.0})
    task = task_of(recipe, store, codec)
    batch = task.train_data.batch(0, 0, 4)
    expected = validate(task.train_state.model, [batch])
    numbers = task.step(batch, 0)
    assert [float(numbers[f"bits per code/codebook {codebook}"]) for codebook in range(3)] == pytest.approx(
        expected, rel=1e-4
    )
    mean = (3 * expected[0] + expected[1]) / 4 * math.log(2)
    assert float(numbers["cross-entropy"]) == pytest.approx(mean, rel=1e-4)
    assert float(numbers["codes"]) == int((batch.targets >= 0).sum())
    assert float(numbers["lr/model"]) == pytest.approx(0.5e-2)


def test_codebook_weights_scale_their_gradients(store: TokenStore, codec: Codec) -> None:
    """A codebook of weight 0 has no gradient; the others' does not depend on the weights' sum."""
    models = [
        stepped(store, codec, losses={"codebook_weights": weights}, optimizer={"grad_clip": 1e9})[0].model
        for weights in ([1.0, 0.0, 2.0], [2.0, 0.0, 4.0])
    ]
    one, other = ([weight.grad for weight in model.parameters()] for model in models)
    for ours, theirs in zip(one, other, strict=True):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(ours, theirs)
    heads = dict(models[0].named_parameters())["lm_heads.weight"].grad
    assert heads is not None
    by_codebook = heads.view(3, 21, -1).abs().amax(dim=(1, 2))
    assert by_codebook[1] == 0
    assert (by_codebook[::2] > 0).all()


def test_gradient_accumulation_is_the_same_training(store: TokenStore, codec: Codec) -> None:
    """Micro-batches have different numbers of codes."""
    calm = {"optimizer": {"lr": 1e-4, "warmup": 2}}
    (whole, numbers), (parted, same_numbers) = (
        stepped(store, codec, steps=3, train={"accumulate": parts}, losses=LIVELY["losses"], **calm) for parts in (1, 4)
    )
    for name, ours in whole.model.state_dict().items():
        torch.testing.assert_close(ours, parted.model.state_dict()[name], rtol=1e-4, atol=2e-6, msg=name)
    for name in numbers:
        torch.testing.assert_close(numbers[name], same_numbers[name], rtol=1e-3, atol=1e-5, msg=name)


def test_soft_targets_depend_on_all_stored_codebooks(store: TokenStore, codec: Codec) -> None:
    """Also on codebooks that are not modeled."""
    recipe = small_lm_recipe(**LIVELY, data={"num_codebooks": 2})
    task = task_of(recipe, store, codec)
    batch = task.train_data.batch(0, 0, 4)
    codes, targets, likely = task.inputs_and_targets(batch)
    vectors = codec.quantizer.codebook_vectors()
    assert vectors is not None
    expected = sample_soft_codes(batch.codes, vectors, 2, soft=0.2, stochastic=0.1, noise=batch.noise)
    known = batch.codes[:, :2] >= 0
    assert codes.equal(torch.where(known, expected[0], -1))
    assert likely is not None
    assert expected[1] is not None
    assert likely.equal(expected[1])
    assert (targets == 20).equal(batch.targets == 20)
    assert (targets >= 0).equal(batch.targets >= 0)
    is_code = (batch.targets[..., :-1] >= 0) & (batch.targets[..., :-1] < 20)
    assert targets[..., :-1][is_code].equal(codes[is_code])
    assert not targets.equal(batch.targets)
    assert task.step(batch, 0)["cross-entropy"].isfinite()


def test_weight_decay_of_matrices_only(store: TokenStore, codec: Codec) -> None:
    state, _ = stepped(store, codec, optimizer={"weight_decay": 0.25})
    decays = {id(weight): group["weight_decay"] for group in state.optimizer.param_groups for weight in group["params"]}
    assert len(decays) == len(list(state.model.parameters()))
    for name, weight in state.model.named_parameters():
        assert decays[id(weight)] == (0.0 if "norm" in name else 0.25), name


def test_code_embeddings_are_the_vectors_of_the_codec(store: TokenStore, codec: Codec) -> None:
    state, _ = stepped(store, codec, steps=2, data={"num_codebooks": 2})
    entries = codec.quantizer.codebook_vectors()
    assert entries is not None
    ours = state.model.vectors.entries
    assert entries.shape[2] == state.model.source.dim == 8 + 5  # the residual beside four bands and the gain
    length = entries[0].square().sum(dim=-1).mean().sqrt()  # of the first codebook
    torch.testing.assert_close(ours, entries[:2] / length * 13**0.5)
    assert state.model.source.num_codebooks == 2
    assert state.model.source.level is None
    assert state.model.source.weights_hash == codec.weights_hash


@pytest.mark.parametrize("level", [Level(-20.0), Level(-23.0, "LUFS")])
def test_the_model_knows_the_level_of_its_recordings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    monkeypatch.setattr(resample, "torchaudio_functional", lambda: Biquads)
    codec_file = write_codec(tmp_path)
    write_store(tmp_path, codec_file, level=level)
    task = task_of(small_lm_recipe(), TokenStore(tmp_path / "store"), pretrained.load(codec_file))
    model = task.train_state.model
    assert model.source.level == level


def test_dropout_depends_on_the_step_alone(store: TokenStore, codec: Codec) -> None:
    recipe = small_lm_recipe(model={"dropout": 0.5}, optimizer={"lr": 1e-12, "warmup": 1})
    task = task_of(recipe, store, codec)
    batch = task.train_data.batch(0, 0, 4)
    one, other, again = (float(task.step(batch, step)["cross-entropy"]) for step in (1, 2, 1))
    assert one == again != other


def test_losses_that_are_not_finite_are_named(store: TokenStore, codec: Codec) -> None:
    recipe = small_lm_recipe()
    task = task_of(recipe, store, codec)
    with torch.no_grad():
        dict(task.train_state.model.named_parameters())["lm_heads.weight"][21:42] = math.nan
    with pytest.raises(ConfigError, match=r"^in step 7 bits per code/codebook 1 became nan: lower optimizer\.lr = 0"):
        task.step(task.train_data.batch(0, 0, 4), 7)


def test_bfloat16_trains_too(store: TokenStore, codec: Codec) -> None:
    exact = stepped(store, codec, steps=2)[1]
    rough = stepped(store, codec, steps=2, train={"precision": "bfloat16"})[1]
    assert float(exact["cross-entropy"]) == pytest.approx(float(rough["cross-entropy"]), rel=0.02)
    assert float(exact["cross-entropy"]) != float(rough["cross-entropy"])


@pytest.mark.parametrize("model", [{"width": 32}, {"width": 32, "pattern": {"kind": "parallel"}}, PIXELCNN])
def test_one_batch_can_be_memorized(model: dict[str, Any], folder: Path) -> None:
    tables = small_lm_recipe(**LIVELY).model_dump(mode="json", exclude_unset=True)
    tables["model"] = {**({} if "family" in model else tables["model"]), **model, "dropout": 0.5}
    recipe = LMRecipe.from_data(tables)
    before = sorted(folder.rglob("*"))
    steps = list(overfit_one_batch(recipe, data=folder / "store", codec=folder / "tiny.safetensors", device="cpu"))
    done, bits, memorized = steps[-1]
    assert memorized
    assert done == len(steps) < 300
    assert bits < 0.1 * math.log2(20)
    assert not any(memorized for *_, memorized in steps[:-1])
    assert steps[0][1] > 3
    assert sorted(folder.rglob("*")) == before


# data and codecs


def test_codecs_without_vectors(store: TokenStore, codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(codec.quantizer), "codebook_vectors", lambda _: None)
    with pytest.raises(ConfigError, match=r'no vectors of their own: set model\.vectors = "learned"$'):
        task_of(small_lm_recipe(), store, codec)
    with pytest.raises(ConfigError, match=r"no vectors of their own: leave out losses\.soft"):
        task_of(small_lm_recipe(**LIVELY | {"model": {"vectors": "learned"}}), store, codec)
    state, _ = stepped(store, codec, model={"vectors": "learned"})
    assert state.model.vectors.entries.requires_grad
    assert state.model.source.dim == 8 + 5 + 1 + 80  # all that codes decode to


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"data": {"num_codebooks": 4}}, r"data\.num_codebooks = 4: .* has 3"),
        ({"losses": {"codebook_weights": [1.0]}}, r"losses\.codebook_weights has 1 weights for 3 codebooks"),
        ({"model": {"pattern": {"delays": [0, 1]}}}, r"delays = \[0, 1\] is for 2 codebooks, not 3"),
    ],
)
def test_recipes_that_do_not_fit_the_store(tables: dict[str, Any], says: str, store: TokenStore, codec: Codec) -> None:
    with pytest.raises(ConfigError, match=says):
        task_of(small_lm_recipe(**tables), store, codec)


def test_wrong_data_says_what_to_do(folder: Path, tmp_path: Path) -> None:
    def attempt(data: Path, codec: Path | None = folder / "tiny.safetensors") -> None:
        train(small_lm_recipe(), data=data, out=tmp_path / "run", codec=codec, device="cpu")

    with pytest.raises(InputNotFound, match="audio is not a token store: tokenize it first: codec tokenize "):
        attempt(folder / "audio")
    with pytest.raises(InputNotFound, match=r"manifest\.jsonl is not a token store: tokenize it first"):
        attempt(folder / "manifest.jsonl")
    with pytest.raises(InputNotFound, match="there is no such token store"):
        attempt(tmp_path / "none")
    alone = shutil.copytree(folder / "store", tmp_path / "alone/store")
    with pytest.raises(UnknownModel, match=r"was made by tiny .*which was not found: pass --codec, its file or"):
        attempt(alone, None)
    save_model(tmp_path / "other.safetensors", tiny_model(seed=5), training={})
    with pytest.raises(WeightsMismatch, match=r"was made by tiny .* not by other"):
        attempt(folder / "store", tmp_path / "other.safetensors")
    unfinished = shutil.copytree(folder / "store", tmp_path / "unfinished")
    facts = (unfinished / "store.json").read_text()
    (unfinished / "store.json").write_text(facts.replace('"index"', '"later"'))
    with pytest.raises(UsageError, match="is not complete"):
        attempt(unfinished)
    assert not (tmp_path / "run").exists()


# a run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> Path:
    """The folder of an uninterrupted run of six steps."""
    out = tmp_path_factory.mktemp("run") / "six"
    assert run(folder, out) == out / "model.safetensors"
    return out


def test_an_interrupted_run_resumes_as_if_uninterrupted(
    interrupt: signal.Signals, finished: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = LMTask.step

    def step(task: LMTask, batch: Batch, step: int) -> dict[str, Tensor]:
        if step == 2:
            os.kill(os.getpid(), interrupt)
        return original(task, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(LMTask, "step", step)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "six")
    assert load_state(tmp_path / "six/state.pt")["step"] == 3
    torch.manual_seed(99)  # whatever random numbers were drawn in between
    run(folder, tmp_path / "six", resume=True)
    assert same(load_state(tmp_path / "six/state.pt"), load_state(finished / "state.pt"))
    assert (tmp_path / "six/model.safetensors").read_bytes() == (finished / "model.safetensors").read_bytes()
    ours, theirs = ([row for row in read_metrics(out) if row[1][:5] != "speed"] for out in (tmp_path / "six", finished))
    assert ours == theirs


def test_a_run_may_stop_early_and_later_be_longer(folder: Path, finished: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, steps=2)
    assert load_state(tmp_path / "state.pt")["step"] == 2
    run(folder, tmp_path, resume=True, steps=4)
    run(folder, tmp_path, resume=True)
    assert same(load_state(tmp_path / "state.pt"), load_state(finished / "state.pt"))
    run(folder, tmp_path, resume=True, train={"steps": 7})
    assert load_state(tmp_path / "state.pt")["step"] == 7


def test_tokens_of_silence_are_named(folder: Path, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "audio").mkdir(exist_ok=True)
        write_audio(tmp_path / f"audio/{number}.wav", np.zeros((1, 8000), np.float32), 8000)
    tokenize(tmp_path / "audio", tmp_path / "store", model=folder / "tiny.safetensors")
    recipe = small_lm_recipe(data={"conditions": []})
    with pytest.raises(ConfigError, match=r"every code of .*store is the same, as of silence: check the recordings"):
        train(recipe, data=tmp_path / "store", out=tmp_path / "run", codec=folder / "tiny.safetensors", device="cpu")


def test_runs_that_cannot_be_resumed(folder: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the token store to train on: choose another --out"):
        run(folder, folder / "store")
    before = (finished / "state.pt").read_bytes()
    with pytest.raises(ConfigError, match="holds a training run already: add --resume"):
        run(folder, finished)
    with pytest.raises(ConfigError) as refused:
        run(folder, finished, resume=True, losses={"soft": 0.5, "stochastic": 0.1}, data={"batch_size": 2})
    assert "data.batch_size (4 then, 2 now), losses.soft (0.2 then, 0.5 now); resume with" in str(refused.value)
    write_store(tmp_path, folder / "tiny.safetensors", split=["train"] * 6 + ["valid"] * 3)
    shutil.copy(folder / "tiny.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="is not the data that this run was started on"):
        run(tmp_path, finished, resume=True)
    with pytest.raises(InputNotFound, match="there is no training run to resume"):
        run(folder, tmp_path / "new", resume=True)
    assert (finished / "state.pt").read_bytes() == before


def test_a_run_finds_its_codec_and_keeps_the_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `codec`: beside the store, or beside the run; the model of the run says where it was."""
    options: dict[str, Any] = {"codec": False, "steps": 1, "train": {"validate_every": 7}}
    model = run(folder, tmp_path / "runs/words", **options)
    assert read_card(model).training["codec"] == str(folder / "tiny.safetensors")
    lm = pretrained.load_lm(model)
    assert pretrained.codec_of(lm).weights_hash == lm.source.weights_hash
    shutil.copytree(folder / "store", tmp_path / "else/store")
    (tmp_path / "runs/mine").mkdir()
    shutil.copy(folder / "tiny.safetensors", tmp_path / "runs/mine/model.safetensors")
    again = run(tmp_path / "else", tmp_path / "runs/again", **options)
    assert read_card(again).training["codec"] == str(tmp_path / "runs/mine/model.safetensors")


def test_a_run_resumes_with_changed_data_if_allowed(
    folder: Path, finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A store with a speaker more: the model keeps the names that it knows."""
    out = shutil.copytree(finished, tmp_path / "six")
    speakers = ["anna", "ben", "cleo", "abe"] * 2 + ["ben"]
    write_store(tmp_path, folder / "tiny.safetensors", split=["train"] * 6 + ["valid"] * 3, speaker=speakers)
    shutil.copy(folder / "tiny.safetensors", tmp_path)
    with pytest.raises(ConfigError, match="continue with --allow-changed-data"):
        run(tmp_path, out, resume=True, train={"steps": 7})
    run(tmp_path, out, resume=True, train={"steps": 7}, allow_changed_data=True)
    lines = capfd.readouterr().err.splitlines()
    assert "changed since the run was started: train.steps (6 then, 7 now)" in lines
    assert any("has changed since this run was started: from here on, it is not bit for bit" in line for line in lines)
    assert "clips of a speaker that the model does not know are trained on without one: abe" in lines
    state = load_state(out / "state.pt")
    assert state["step"] == 7
    assert pretrained.load_lm(out, "cpu").source.classes["speaker"] == ("anna", "ben", "cleo")
    run(tmp_path, out, resume=True, train={"steps": 8})  # which has the new data now


def test_the_saved_model_is_the_ema_model(finished: Path, folder: Path) -> None:
    state = load_state(finished / "state.pt")
    assert not same(dict(state["ema_model"]), dict(state["model"]))
    assert same(load_file(finished / "model.safetensors"), dict(state["ema_model"]))
    with safe_open(finished / "model.safetensors", framework="pt") as file:
        card = json.loads(file.metadata()["codec"])
    model = build(card["config"]["model"], card["config"]["source"])
    model.load_state_dict(state["ema_model"])
    assert model.source.classes == {"label": ("no", "yes"), "speaker": ("anna", "ben", "cleo")}
    assert model.source.weights_hash == TokenStore(folder / "store").weights_hash
    assert card["training"]["step"] == 6
    assert LMRecipe.from_data(card["training"]["recipe"]) == small_lm_recipe(**LIVELY)


def test_the_log_is_complete(finished: Path, store: TokenStore) -> None:
    found = read_events(finished)
    curves = {name: [event.step for event in found.Scalars(name)] for name in found.Tags()["scalars"]}
    each = [f"{kind}/codebook {codebook}" for kind in ("bits per code", "perplexity") for codebook in range(3)]
    rates = ["bits per code/mean", "bit rate/bits per second", "bit rate/share of the raw rate"]
    trained = [
        *each,
        *rates,
        "loss/cross-entropy",
    ]
    trained += ["grad_norm/model", "lr/model", "speed/codes per second", "speed/steps per second"]
    assert {name: curves[name] for name in trained} == {name: [1, 2, 3, 4, 5, 6] for name in trained}
    validated = [f"valid {name}" for name in (*each, *rates)]
    assert {name: curves[name] for name in validated} == {name: [3, 6] for name in validated}
    numbers = {(int(step), name): float(value) for step, name, value in read_metrics(finished)}
    bits = [numbers[6, f"bits per code/codebook {codebook}"] for codebook in range(3)]
    assert numbers[6, "perplexity/codebook 1"] == pytest.approx(2 ** bits[1], rel=1e-4)
    assert numbers[6, "bit rate/bits per second"] == pytest.approx(100 * sum(bits), rel=1e-4)  # frames of 10 ms
    assert numbers[6, "bit rate/share of the raw rate"] == pytest.approx(sum(bits) / 3 / math.log2(20), rel=1e-4)
    shares = [numbers[step + 1, "lr/model"] for step in range(6)]
    optimizer = small_lm_recipe().optimizer
    assert shares == pytest.approx([1e-2 * lr_scale(step, 6, optimizer) for step in range(6)], rel=1e-4)
    assert numbers[6, "valid bits per code/mean"] < numbers[3, "valid bits per code/mean"]


def test_the_ema_model_is_validated(finished: Path, store: TokenStore, codec: Codec) -> None:
    task = task_of(small_lm_recipe(**LIVELY), store, codec)
    model = task.train_state.ema_model
    model.load_state_dict(load_state(finished / "state.pt")["ema_model"])
    numbers = {(int(step), name): float(value) for step, name, value in read_metrics(finished)}
    for codebook, bits in enumerate(validate(model, task.valid_data.validation())):
        assert numbers[6, f"valid bits per code/codebook {codebook}"] == pytest.approx(bits, rel=1e-5)


def test_the_start_prints_the_data_and_the_expected_bits(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(folder, tmp_path, train={"expected": 3.25, "log_every": 2})
    out, err = capfd.readouterr()
    assert out == ""
    data, baseline, *lines = err.splitlines()
    assert data == "train on 7 clips (0.0 min, 366 codes), validate on 2"
    assert baseline.startswith("bits per code: 4.32 uniform, ")
    assert baseline.endswith(" unigram, 3.25 at the end as measured on the audio of its README")
    assert [line.partition(":")[0] for line in lines] == ["step 2/6", "step 3", "step 4/6", "step 6/6", "step 6"]
    assert all("bits per code of validation clips (" in lines[index] for index in (1, 4))
    assert all(" bits per code  " in lines[index] for index in (0, 2, 3))


def test_a_context_shorter_than_a_crop_prints_a_warning(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(folder, tmp_path, model={"pattern": {"kind": "flatten"}, "context": 30}, train={"steps": 1})
    line = capfd.readouterr().err.splitlines()[2]
    frames = small_lm_recipe().data.frames
    needed = f"{3 * frames} steps would see all of a crop"
    assert line == f"model.context = 30 steps are 10 frames, crops have {frames}: {needed}"


def test_validation_and_samples_change_nothing(
    finished: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def generate_clips(
        lm: CodecLM, codec: Codec, seeds: Any, conditioning: Conditioning, *, max_seconds: float
    ) -> list[Tensor]:
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 (any random generator)
        asked.append((lm.training, list(seeds), conditioning.classes.tolist()))
        return [torch.zeros(1, 0), *(torch.rand(1, 400) for _ in seeds[1:])]

    module = ModuleType("codec.generation")
    module.generate_clips = generate_clips  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "codec.generation", module)
    run(folder, tmp_path, train={"samples": 3, "validate_every": 1})
    ours, theirs = load_state(tmp_path / "state.pt"), load_state(finished / "state.pt")
    for name in ("model", "ema_model", "optimizer"):
        assert same(ours[name], theirs[name]), name
    assert asked == [(False, [0, 1, 2], [[0, 0], [1, 1], [0, 2]])] * 6
    tags = read_events(tmp_path).Tags()
    clips = ["generated/clip 2, yes ben", "generated/clip 3, no cleo"]  # the first one was empty
    assert tags["audio"] == [f"audio, {clip}" for clip in clips]
    assert tags["images"] == [f"spectrogram, {clip}" for clip in clips]


def test_samples_are_generated_by_the_model_itself(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, train={"samples": 2, "steps": 2, "validate_every": 2})
    found = read_events(tmp_path)
    clips = [found.Audio(tag)[0] for tag in found.Tags()["audio"]]
    assert clips  # not empty
    assert all(clip.sample_rate == 8000 and clip.length_frames > 0 for clip in clips)


def test_validation_by_hand(store: TokenStore, codec: Codec) -> None:
    """The mean over all codes, without dropout and with all conditions."""
    state, _ = stepped(store, codec, model={"dropout": 0.5})
    valid = TokenCrops(store, np.arange(5), state.model, small_lm_recipe(data={"batch_size": 2}).data)
    bits = validate(state.ema_model, valid.validation())
    nats, counted = torch.zeros(3), torch.zeros(3)
    with torch.no_grad():
        for batch in valid.validation():
            inputs, steps = arrange(batch.codes, state.ema_model)
            nats += cross_entropy(state.ema_model(inputs, batch.conditioning), batch.targets, steps)
            counted += (batch.targets >= 0).sum(dim=(0, 2))
    assert bits == pytest.approx((nats / counted / math.log(2)).tolist(), rel=1e-5)
    assert bits == validate(state.ema_model, valid.validation())
