"""Fine-tuning: training starts from a model of any family, and trains all of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import checkpoint as torch_checkpoint

from codec import models
from codec.checkpoint import load_model, read_card, save_model
from codec.errors import ConfigError
from codec.models.base import Codec
from codec.models.dac import DAC
from codec.nn import streaming
from codec.nn.quantize.factorized import FactorizedRVQ
from codec.training.codec import dry_run
from codec.training.codec.crops import Batch
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import CodecTask, build_task, load_pretrained, train, with_known_model
from tests.helpers import checkpoints
from tests.helpers.families import TINY
from tests.helpers.training import TABLES, batch, read_metrics, small_recipe, write_recordings

CPU = torch.device("cpu")
LOSSES = ("mel", "complex_stft", "noise_to_mask")


pytestmark = pytest.mark.usefixtures("without_drawing")


def random_model(family: str) -> Codec:
    """A tiny model whose random weights give many different codes."""
    return checkpoints.scaled(models.of_config(TINY[family]))


def fine_tuning(start_from: Path, **train: Any) -> Recipe:
    """A small recipe without [model]."""
    tables = {name: table for name, table in TABLES.items() if name != "model"}
    tables["train"] = tables["train"] | {"start_from": str(start_from)} | train
    tables["optimizer"] = {"warmup": 2, "lr": 5e-3}  # with 1e-2, SNAC does not learn on every CPU
    return Recipe.from_data({"name": "fine", **tables})


def started(path: Path, **train: Any) -> CodecTask:
    """The task of a recipe that starts from a file, with its weights."""
    task = build_task(with_known_model(fine_tuning(path, **train)), CPU)
    load_pretrained(task.train_state.model, str(path))
    return task


def audio_of(model: Codec) -> Tensor:
    return batch(items=2).expand(-1, model.channels, -1)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_a_short_run_lowers_the_loss_and_trains_every_part(family: str, tmp_path: Path) -> None:
    """12 steps on one batch, from random weights; every weight and every codebook has changed after the first."""
    save_model(tmp_path / "start.safetensors", random_model(family), training={})
    task = started(tmp_path / "start.safetensors", steps=12, reencoded=0.0, quantizer_dropout=0.0)
    model = task.train_state.model
    assert model.config == TINY[family]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    for step in range(12):
        metrics = task.step(Batch(audio_of(model), ()), step)
        losses.append(float(sum(metrics[name] for name in LOSSES)))
        if step == 0:
            after = model.state_dict()
            assert [name for name, value in before.items() if torch.equal(value, after[name])] == []
    assert min(losses[-2:]) < 0.95 * min(losses[:2])


@pytest.mark.nightly
@pytest.mark.parametrize("family", TINY)
def test_300_steps_lower_the_losses(family: str, tmp_path: Path) -> None:
    """A run of `codec train` on three recordings, from random weights; each loss of the last 50 steps is lower."""
    save_model(tmp_path / "start.safetensors", random_model(family), training={})
    data = write_recordings(tmp_path / "data")
    recipe = fine_tuning(tmp_path / "start.safetensors", steps=300, validate_every=300, save_every=300)
    train(recipe, data=data, out=tmp_path / "run")
    for name in LOSSES:
        values = [float(value) for _, key, value in read_metrics(tmp_path / "run") if key == f"train/{name}"]
        assert len(values) == 300
        assert sum(values[-50:]) < 0.9 * sum(values[:50]), name


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY)
def test_checkpointed_activations_are_recomputed(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block is checkpointed once or more, and the step is the same as without."""
    save_model(tmp_path / "start.safetensors", random_model(family), training={})
    blocks: list[Any] = []

    def counted(function: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
        blocks.append(function.__self__)  # type: ignore[attr-defined]
        return torch_checkpoint.checkpoint(function, *inputs, **options)

    monkeypatch.setattr(streaming, "checkpoint", counted)
    weights = []
    for on in (False, True):
        task = started(tmp_path / "start.safetensors", checkpoint_activations=on, reencoded=0.0)
        model = task.train_state.model
        assert not blocks
        task.step(Batch(audio_of(model), ()), 0)
        weights.append(model.state_dict())
    assert {id(block) for block in blocks} == {id(block) for block in model.checkpoint_blocks()}
    torch.testing.assert_close(*weights)


@pytest.mark.slow
def test_a_checkpoint_of_another_project_becomes_a_run(tmp_path: Path) -> None:
    """The recipe names no model, the run stores its own; it resumes without the file that it started from."""
    start = tmp_path / "weights.pth"
    model = random_model("dac")
    assert isinstance(model, DAC)
    kwargs = model.config
    metadata = {
        "encoder_dim": kwargs.encoder_dim,
        "encoder_rates": list(kwargs.encoder_rates),
        "decoder_dim": kwargs.decoder_dim,
        "decoder_rates": list(kwargs.decoder_rates),
        "n_codebooks": kwargs.num_codebooks,
        "codebook_size": kwargs.codebook_size,
        "codebook_dim": kwargs.codebook_dim,
        "sample_rate": kwargs.sample_rate,
    }
    tensors = checkpoints.theirs(model, "descript-audio-codec")
    torch.save({"state_dict": tensors, "metadata": {"kwargs": metadata}}, start)
    data = write_recordings(tmp_path / "data")
    trained = train(fine_tuning(start, steps=3), data=data, out=tmp_path / "run", steps=2)
    assert load_model(trained).config == model.config
    start.unlink()
    stored = Recipe.from_data(read_card(trained).training["recipe"])
    train(stored, data=data, out=tmp_path / "run", resume=True)
    assert read_card(trained).training["step"] == 3


@pytest.mark.slow
def test_the_model_of_a_recipe_and_of_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "MAX_SECONDS", 0.0)
    path = tmp_path / "start.safetensors"
    save_model(path, random_model("mimi"), training={})
    start = {"train": {"start_from": str(path)}}
    found = with_known_model(Recipe.from_data({"name": "a", **start}))
    assert found.model == TINY["mimi"]
    assert with_known_model(found) == found
    of_another_family = {"name": "a", "model": {"beam_size": 4}, **start}  # as in the recipe `general`
    assert with_known_model(Recipe.from_data(of_another_family)).model == TINY["mimi"]
    assert dry_run.estimate(fine_tuning(path), device="cpu").frame_spec.hop == 80
    for given in ({"family": "mimi", "width": 32}, {"family": "dac"}):
        recipe = with_known_model(Recipe.from_data({"name": "a", "model": given, **start}))
        with pytest.raises(ConfigError, match=r"start\.safetensors is another model: it has (width|family) \("):
            load_pretrained(models.of_config(recipe.model), str(path))


def test_keys_of_inference_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    config = small_recipe().model
    save_model(path, models.of_config(config), training={})
    recipe = Recipe.from_data({"name": "a", "model": {"beam_size": 4}, "train": {"start_from": str(path)}})
    assert with_known_model(recipe).model == config.model_copy(update={"beam_size": 4})


def test_the_codebooks_of_dac_stay_float32_under_autocast() -> None:
    """Products of bfloat16 would choose other entries."""
    torch.manual_seed(0)
    quantizer = FactorizedRVQ(16, 4, 64, 8)
    latents = torch.randn(2, 16, 50)
    exact = quantizer(latents)
    with torch.autocast("cpu", torch.bfloat16):
        found = quantizer(latents)
    assert torch.equal(found.codes, exact.codes)
    assert found.latents.dtype == torch.float32
