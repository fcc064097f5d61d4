"""Two processes train what one process trains on the whole batch. `main` is the program of the two."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from time import sleep
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch import distributed as dist

from codec import models
from codec.checkpoint import load_state
from codec.errors import ConfigError
from codec.models.base import CodecConfig
from codec.nn import distributed
from codec.nn.quantize.base import Quantized
from codec.nn.quantize.residual import ResidualVQ
from codec.training import engine, logger, shared_memory
from codec.training.codec import task as codec_task
from codec.training.codec.crops import Batch
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import CodecTask, build_task, train
from codec.training.lm import task as lm_task
from codec.training.shared_memory import SharedMemory
from tests.helpers import processes
from tests.helpers.checkpoints import scaled
from tests.helpers.families import TINY
from tests.helpers.training import (
    batch,
    options,
    read_metrics,
    small_lm_recipe,
    small_recipe,
    write_codec,
    write_recordings,
    write_store,
)

ROOT = Path(__file__).parents[2]
OPTIONS: dict[str, dict[str, Any]] = {
    "ema": {"discriminator": {"start": 1, "update_every": 2, "lr": 1e-5}, "train": {"accumulate": 2}},
    "sharded": {
        "discriminator": {"start": 1, "lr": 1e-5},
        "train": {"accumulate": 2, "sharding": "full", "checkpoint_activations": True},
    },
    "gradient": {"model": {"codebook_update": "gradient"}, "losses": {"balance": True, "codebook": 0.0}},
}


def recipe_of(name: str) -> Recipe:
    """Three steps on a batch of four, at a learning rate and a seed at which rounding is not amplified."""
    tables: dict[str, dict[str, Any]] = {
        "data": {"batch_size": 4},
        "optimizer": {"lr": 1e-4, "warmup": 8},
        "train": {"seed": 7, "steps": 3, "log_every": 1, "validate_every": 3, "save_every": 3, "reencoded": 0.5},
    }
    given = OPTIONS[name]
    return small_recipe(**{key: {**tables.get(key, {}), **given.get(key, {})} for key in tables | given})


pytestmark = pytest.mark.usefixtures("without_drawing")


def train_quantizer(first: int, last: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """A residual quantizer after three steps on items of a batch of six; before the second, some entries are dead."""
    torch.manual_seed(0)
    quantizer = ResidualVQ(4, 3, 8)
    quantizer.init_from_data(torch.randn(6, 4, 40))
    restarted = []
    for step in range(3):
        latents = torch.randn(6, 4, 10, generator=torch.Generator().manual_seed(step))
        num_codebooks = torch.tensor([1, 1, 3, 2, 1, 2])  # the last codebook is used by one process only
        if step == 1:
            for stage in quantizer.stages:
                stage.cluster_size[3:6] = 0.0
        parts: list[Quantized] = [
            quantizer(latents[item : item + 1], num_codebooks[item : item + 1]) for item in range(first, last)
        ]
        quantizer.update_codebook(parts)
        if step == 1:
            restarted = [stage.codebook[3:6].clone() for stage in quantizer.stages]
    return quantizer.state_dict(), restarted


def train_lm(folder: Path, out: Path, *, accumulate: int) -> None:
    """Three steps of a language model on a batch of eight."""
    recipe = small_lm_recipe(
        data={"batch_size": 8},
        losses={"soft": 0.2, "stochastic": 0.1},
        optimizer={"lr": 1e-4, "warmup": 8},
        train={"steps": 3, "accumulate": accumulate},
    )
    lm_task.train(recipe, data=folder / "store", codec=folder / "tiny.safetensors", out=out, device="cpu")


@torch.no_grad()
def descend(optimizer: torch.optim.Optimizer) -> None:
    """A step down the gradient on this process's shards, at most 0.1 for each weight.

    Adam and clipping work on tensors of all processes, which spend two seconds on each list of new shapes; "sharded" in
    `OPTIONS` has them.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None:
                ours, gradient = (getattr(part, "to_local", lambda part=part: part)() for part in (weight, weight.grad))
                ours.sub_(0.1 * gradient / (1 + gradient.abs()))


def train_family(config: CodecConfig) -> dict[str, Tensor]:
    """The weights after a sharded step on this process's half of a batch of four; with one process, on all of it."""
    recipe = recipe_of("sharded").model_copy(update={"model": config})
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"accumulate": 1})})
    task = build_task(recipe, torch.device("cpu"))
    task.train_state.model.load_state_dict(scaled(models.of_config(config)).state_dict())
    unclipped = patch.object(codec_task, "clip_gradients", lambda *_, **__: torch.zeros(()))
    with engine.launch("cpu") as accelerator, unclipped, patch.object(torch.optim.AdamW, "step", descend):
        task.distribute(accelerator)
        audio = batch(items=4).expand(-1, task.train_state.model.channels, -1)
        task.step(Batch(audio[slice(*engine.rows_of_process(4, 1))], ()), 0)
        weights: dict[str, Tensor] = engine.gather_shards(task.train_state.model.state_dict())
    return weights


def check_shared_memory() -> None:
    """Means through shared memory equal those of gloo."""
    memory = SharedMemory.create(1000)
    assert memory is not None
    for size in (1, 2, 7, 999, 1000):
        own = torch.randn(size, generator=torch.Generator().manual_seed(distributed.rank()))
        expected = own.clone()
        dist.all_reduce(expected)
        assert torch.equal(distributed.all_reduce_sum(own.clone()), expected)
        assert torch.equal(distributed.all_reduce_mean(own.clone()), expected / 2)
        assert torch.equal(memory.all_reduce_mean(own.clone()), expected / 2)
    with patch.object(os, "memfd_create", side_effect=OSError):
        assert SharedMemory.create(10) is None
    with patch.object(Path, "readlink", (lambda path: path) if distributed.rank() else Path.readlink):
        assert SharedMemory.create(10) is None  # in both processes, if one cannot reach the memory


def main(folder: Path) -> None:
    """The program of each of the two distributed."""
    shared_memory.MIN_NUMBERS = 1
    logger.draw_spectrograms = lambda panels, sample_rate: None  # because drawing takes longer than training
    dist.init_process_group("gloo")
    rank = distributed.rank()
    learned = train_quantizer(3 * rank, 3 * rank + 3)
    torch.save(learned, folder / f"learned-{rank}.pt")
    gathered = distributed.all_gather_rows(torch.full((1 + 2 * rank, 2), float(rank)))
    assert gathered[:, 0].tolist() == [0, 1, 1, 1]
    assert distributed.any_rank(rank == 1, torch.device("cpu"))
    assert not distributed.any_rank(False, torch.device("cpu"))
    check_shared_memory()
    with pytest.raises(ConfigError, match=r"data\.batch_size = 3 does not divide into 2 processes"):
        train(small_recipe(), data=folder / "data", out=folder / "odd")
    shared: dict[str, list[bool]] = {name: [] for name in OPTIONS}
    create = SharedMemory.create
    for name in OPTIONS:
        stops = name != "gradient"
        if stops:
            train(recipe_of(name), data=folder / "data", out=folder / name, steps=2)

        def maybe_create(size: int, name: str = name) -> SharedMemory | None:
            memory = create(size) if name != "gradient" else None
            shared[name].append(memory is not None)
            return memory

        with patch.object(SharedMemory, "create", maybe_create):
            train(recipe_of(name), data=folder / "data", out=folder / name, resume=stops)
    assert shared == {"ema": [True, True], "sharded": [True], "gradient": [False, False]}
    train_lm(folder, folder / "lm", accumulate=2)
    torch.save({name: train_family(config) for name, config in TINY.items()}, folder / f"families-{rank}.pt")
    check_stop(folder)
    dist.destroy_process_group()


def check_stop(folder: Path) -> None:
    """A signal to one process ends both after the same step."""
    original = CodecTask.step

    def step(task: CodecTask, given: Batch, number: int) -> dict[str, Tensor]:
        if number == distributed.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(task, given, number)

    with patch.object(CodecTask, "step", step), pytest.raises(KeyboardInterrupt):
        train(recipe_of("gradient"), data=folder / "data", out=folder / "stopped")


def launch(folder: Path) -> None:
    """Run `main` in two processes, forked from one that has imported what training needs."""
    import librosa.filters  # noqa: F401
    import torch._dynamo  # noqa: F401

    children = []
    for rank in range(2):
        if not (child := os.fork()):
            said = os.open(folder / f"said-{rank}", os.O_WRONLY | os.O_CREAT)
            for stream in (1, 2):
                os.dup2(said, stream)
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            main(folder)
            os._exit(0)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    sys.exit("\n".join((folder / f"said-{rank}").read_text() for rank in range(2)) if any(statuses) else 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained."""
    folder = tmp_path_factory.mktemp("two")
    write_recordings(folder / "data")
    write_store(folder, write_codec(folder))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    settings = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    code = "import sys, tests.training.test_distributed as two; two.launch(two.Path(sys.argv[1]))"
    done = processes.run(code, folder, env=settings)
    assert done.returncode == 0, done.stderr
    return folder


def assert_close(ours: Any, theirs: Any, path: str = "", atol: float = 5e-6) -> int:
    """Equal up to rounding, through dicts and lists; how many tensors there were."""
    if isinstance(ours, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol, msg=lambda text: f"{path}: {text}")
        return 1
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), path
        return sum(assert_close(ours[key], theirs[key], f"{path}.{key}", atol) for key in ours)
    if isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), path
        return sum(assert_close(*pair, path, atol) for pair in zip(ours, theirs, strict=True))
    assert ours == pytest.approx(theirs), path
    return 0


def test_two_processes_train_the_codebooks_of_one(folder: Path) -> None:
    alone, restarted = train_quantizer(0, 6)
    for rank in range(2):
        theirs, theirs_restarted = torch.load(folder / f"learned-{rank}.pt")
        assert_close(theirs, alone)
        for ours, entries in zip(restarted, theirs_restarted, strict=True):
            torch.testing.assert_close(entries, ours)  # copies of rows, of whichever process


@pytest.mark.parametrize("name", TINY)
def test_sharded_models_of_every_family_train_as_one(folder: Path, name: str) -> None:
    alone = train_family(TINY[name])
    for rank in range(2):
        theirs = torch.load(folder / f"families-{rank}.pt")[name]
        assert assert_close(theirs, alone, atol=1e-4) > 20  # a step moves weights by up to 0.1; rounding differs by CPU


@pytest.mark.parametrize("name", OPTIONS)
def test_two_processes_train_what_one_does(name: str, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_of(name)
    plain = {"sharding": "none", "checkpoint_activations": False, "accumulate": 1}
    tables = recipe.model_dump(mode="json")
    alone = Recipe.from_data({**tables, "train": {**tables["train"], **plain}})
    train(alone, data=folder / "data", out=tmp_path)
    ours, theirs = load_state(tmp_path / "state.pt"), load_state(folder / name / "state.pt")
    for key in (
        "model",
        "discriminators",
        "ema_model",
        "latent_power",
        "balancer",
        "optimizer",
        "discriminator_optimizer",
    ):
        compared = assert_close(theirs[key], ours[key], key)
        unused = key == "discriminator_optimizer" if name == "gradient" else key == "balancer"
        assert compared > 0 or unused
    groups = ("loss", "grad_norm", "perplexity")
    numbers = [
        {(step, number): float(value) for step, number, value in read_metrics(run) if number.startswith(groups)}
        for run in (tmp_path, folder / name)
    ]
    assert len(numbers[0]) > 20
    assert numbers[0].keys() == numbers[1].keys()
    for row, value in numbers[0].items():
        assert numbers[1][row] == pytest.approx(value, rel=1e-3, abs=1e-4), row


def test_two_processes_train_the_language_model_of_one(folder: Path, tmp_path: Path) -> None:
    train_lm(folder, tmp_path, accumulate=1)
    ours, theirs = load_state(tmp_path / "state.pt"), load_state(folder / "lm/state.pt")
    for key in ("model", "ema_model", "optimizer"):
        assert assert_close(theirs[key], ours[key], key) > 0
    numbers = [
        {(step, number): float(value) for step, number, value in read_metrics(run) if not number.startswith("speed")}
        for run in (tmp_path, folder / "lm")
    ]
    assert len(numbers[0]) > 20
    assert numbers[1] == pytest.approx(numbers[0], rel=1e-3, abs=1e-4)


def test_a_stopped_run_resumes_in_any_number_of_processes(folder: Path) -> None:
    """Both processes stopped after step 2, in which one of them got SIGTERM; one process continues."""
    assert load_state(folder / "stopped/state.pt")["step"] == 2
    assert (folder / "said-0").read_text().count("stopped after step 2") == 1
    train(recipe_of("gradient"), data=folder / "data", out=folder / "stopped", resume=True)
    assert load_state(folder / "stopped/state.pt")["step"] == 3


@pytest.mark.nightly  # starts four interpreters
def test_a_run_stopped_by_its_launcher_resumes(tmp_path: Path) -> None:
    """`torchrun` and `codec train` as in the README, and SIGTERM as a cluster sends it."""
    data = write_recordings(tmp_path / "data")
    (tmp_path / "small.toml").write_text('name = "small"')
    sets = options(small_recipe(data={"batch_size": 4}, train={"steps": 10**6, "save_every": 10**6}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launch, "-m", "codec", "train", "small.toml", *sets, "--data", str(data), "--out", "run"]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    metrics = tmp_path / "run/metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, env=settings, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr
        while running.poll() is None and not (metrics.is_file() and metrics.stat().st_size > 1000):
            sleep(0.1)
        running.send_signal(signal.SIGTERM)
        said = running.stderr.read()
    assert (tmp_path / "run/state.pt").is_file(), said
    steps = load_state(tmp_path / "run/state.pt")["step"]
    assert f"stopped after step {steps}, saved in run: --resume continues from there" in said
    assert said.count("stopped after step") == 1
    recipe = Recipe.from_data(load_state(tmp_path / "run/state.pt")["recipe"])
    train(recipe, data=data, out=tmp_path / "run", resume=True, steps=steps + 2)  # in one process, as any number may
    assert load_state(tmp_path / "run/state.pt")["step"] == steps + 2


def test_the_first_process_prints_and_writes(folder: Path) -> None:
    assert "mel of the validation clips" in (folder / "said-0").read_text()
    assert (folder / "said-1").read_text() == ""
    assert len(list((folder / "gradient/events").iterdir())) == 1
