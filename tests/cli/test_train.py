"""codec train: options, recipes and messages."""

from pathlib import Path
from typing import Any

import pytest

from codec.checkpoint import save_lm, save_model
from codec.io.audio import write_audio
from codec.training.codec import task as codec_task
from codec.training.codec.recipe import Recipe
from codec.training.lm import task as lm_task
from codec.training.lm.recipe import LMRecipe
from tests.cli.conftest import Cli
from tests.helpers.language_models import tiny_lm
from tests.helpers.training import tones, write_codec, write_store
from tests.tiny import tiny_model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Recipe, dict[str, Any]]]:
    calls = []

    def train(recipe: Recipe, **options: Any) -> Path:
        calls.append((recipe, options))
        return Path(options["out"], "model.safetensors")

    monkeypatch.setattr(codec_task, "train", train)
    return calls


@pytest.fixture
def recipe(cli: Cli) -> Path:
    Path("small.toml").write_text('name = "night"\n[model]\nnum_codebooks = 4\n')
    return Path("small.toml")


def test_defaults(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    result = cli("train", recipe, "--data", "sounds")
    assert (result.code, result.out, result.err) == (0, b"", "the model is runs/night/model.safetensors\n")
    ((loaded, options),) = calls
    assert (loaded.name, loaded.model.num_codebooks) == ("night", 4)
    expected = {"data": Path("sounds"), "out": Path("runs/night"), "resume": False, "steps": None, "device": None}
    assert options == expected | {"allow_changed_data": False}


def test_the_recipe_may_name_the_data(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    result = cli("train", recipe)
    assert (result.code, calls) == (2, [])
    assert "pass --data, a folder of recordings" in result.err
    assert cli("train", recipe, "--set", "data.folder=sounds").code == 0
    assert cli("train", recipe, "--set", "data.folder=sounds", "--data", "others").code == 0
    assert [options["data"] for _, options in calls] == [Path("sounds"), Path("others")]


def test_shipped_recipes_by_name(cli: Cli, calls: list[Any], lm_calls: list[Any]) -> None:
    Path("general").write_text("of the user")
    assert cli("train", "general", "--data", "sounds").code == 0
    ((loaded, options),) = calls
    assert (loaded.name, options["out"]) == ("general-24k", Path("runs/general-24k"))
    assert cli("train", "digits/lm", "--data", "tokens").code == 0
    assert lm_calls[0][0].name == "digits-8k-lm"
    result = cli("train", "./general", "--data", "sounds")
    assert (result.code, len(calls)) == (2, 1)
    assert "general is not a readable TOML file" in result.err
    assert "digits/lm names no data.store" in cli("train", "digits/lm").err


def test_every_option(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    arguments = ["--set", "model.num_codebooks=2", "--set", "name=day", "--out", "here", "--resume", "--steps", "9"]
    arguments += ["--device", "cpu", "--allow-changed-data"]
    assert cli("train", recipe, "--data", "sounds", *arguments).code == 0
    ((loaded, options),) = calls
    assert (loaded.name, loaded.model.num_codebooks) == ("day", 2)
    expected = {"data": Path("sounds"), "out": Path("here"), "resume": True, "steps": 9, "device": "cpu"}
    assert options == expected | {"allow_changed_data": True}


def test_files_that_are_not_read_are_counted(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    Path("sounds/deep").mkdir(parents=True)
    for name in ("a.m4a", "deep/b.m4a", "c.webm", "d.wav"):
        Path("sounds", name).touch()
    first, *_ = cli("train", recipe, "--data", "sounds").err.splitlines()
    assert first == "not read: 2 .m4a, 1 .webm (convert them to WAV or FLAC first)"
    Path("sounds/manifest.jsonl").write_text('{"path": "d.wav"}\n')
    assert "not read" not in cli("train", recipe, "--data", "sounds").err
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["small.toml", "--set", "model.num_codebook=2"], 2, "did you mean num_codebooks?"),
        (["small.toml", "--set", "modle.num_codebooks=2"], 2, "unknown key modle; did you mean model?"),
        (["small.toml", "--set", "train.steps=many"], 2, 'train.steps = "many": must be a valid integer'),
        (["small.toml", "--set", "losses.mel=-1"], 2, "losses.mel = -1: must be greater than or equal to 0"),
        (["small.toml", "--set", "name.first=x"], 2, "name is a value, not a table"),
        (["small.toml", "--set", "num_codebooks"], 2, "KEY=VALUE"),
        (["small.toml", "--steps", "20001"], 2, "past the end of the schedule, train.steps = 20000: add --set"),
        (["none.toml"], 3, "none.toml"),
        (["small.toml", "--allow-changed-data"], 2, "--allow-changed-data is for a run that continues: add --resume"),
        (["genral"], 2, "unknown recipe genral; did you mean general?"),
    ],
)
def test_wrong_recipes(cli: Cli, recipe: Path, calls: list[Any], arguments: list[str], code: int, says: str) -> None:
    result = cli("train", *arguments, "--data", "sounds")
    assert result.code == code
    assert says in result.err
    assert not calls


def test_steps_up_to_the_schedules_end(cli: Cli, recipe: Path, calls: list[Any]) -> None:
    assert cli("train", recipe, "--data", "sounds", "--steps", "20000").code == 0
    assert cli("train", recipe, "--data", "sounds", "--steps", "30000", "--set", "train.steps=30000").code == 0
    assert [options["steps"] for _, options in calls] == [20000, 30000]


def test_a_dry_run_prints_and_leaves_nothing(cli: Cli, calls: list[Any]) -> None:
    Path("sounds").mkdir()
    write_audio("sounds/a.wav", tones(0.5, 8000, seed=0), 8000)
    Path("small.toml").write_text(
        'name = "night"\n[model]\nsample_rate = 8000\nhop = 80\ndim = 8\nnum_codebooks = 3\ncodebook_size = 20\n'
        "envelope_bands = 4\nmodes = 4\n"
        "encoder_width = 16\nencoder_blocks = 1\ndecoder_width = 16\ndecoder_blocks = 1\n"
        "[data]\ncrop = 0.15\nbatch_size = 2\n[train]\nsteps = 4\n"
    )
    before = sorted(Path().rglob("*"))
    result = cli("train", "small.toml", "--dry-run", "--data", "sounds")
    assert (result.code, result.err, calls) == (0, "", [])
    first, *rest = result.out.decode().splitlines()
    assert first == "model night"
    assert any(line.split()[:1] == ["delay"] and "160 samples (20.0 ms)" in line for line in rest)
    assert any("0.00 h in 1 clips (by 1 of their headers): 2.4 epochs" in line for line in rest)
    assert sorted(Path().rglob("*")) == before
    result = cli("train", "small.toml", "--dry-run")  # without data
    assert (result.code, b"epochs" in result.out) == (0, False)
    result = cli("train", "small.toml", "--dry-run", "--data", "none")
    assert (result.code, result.out) == (3, b"")


def test_a_run_is_resumed_by_its_folder(cli: Cli, calls: list[Any], lm_calls: list[Any]) -> None:
    """With the recipe, the data and the codec that it was started with, unless options say otherwise."""
    Path("runs/night").mkdir(parents=True)
    stored = Recipe.from_data({"name": "night", "data": {"crop": 0.5}}).model_dump(mode="json")
    model = tiny_model()
    save_model("runs/night/model.safetensors", model, training={"recipe": stored, "data": "sounds", "step": 5})
    assert cli("train", "--resume", "runs/night").code == 0
    assert cli("train", "--resume", "runs/night/", "--set", "train.steps=9", "--data", "others").code == 0
    (first, options), (second, others) = calls
    assert (first.data.crop, first.train.steps, options["data"]) == (0.5, 20000, Path("sounds"))
    assert (options["out"], options["resume"]) == (Path("runs/night"), True)
    assert (second.data.crop, second.train.steps, others["data"]) == (0.5, 9, Path("others"))

    lm = LMRecipe.from_data({"kind": "lm", "name": "talk", "model": {"family": "transformer"}})
    training = {"recipe": lm.model_dump(mode="json"), "data": "tokens", "codec": "runs/night"}
    save_lm("runs/model.safetensors", tiny_lm(), training=training)
    assert cli("train", "--resume", "runs", "--out", "runs").code == 0
    ((_, options),) = lm_calls
    assert (options["data"], options["codec"]) == (Path("tokens"), "runs/night")

    Path("sounds").mkdir()
    for arguments, code, says in (
        (["--resume", "runs/night", "--out", "here"], 2, "continues the run of runs/night in its folder: leave out"),
        (["runs/night"], 2, "runs/night is the folder of a run, not a recipe: add --resume to continue it"),
        (["sounds"], 2, "sounds is a folder, not a recipe: codec train general --data sounds"),
        (["./sounds"], 2, "./sounds is a folder, not a recipe: codec train general --data ./sounds"),
        (["--resume", "."], 3, ". has no model.safetensors: there is no training run to resume"),
        (["--resume", "runs/night", "--set", "train.step=9"], 2, "did you mean steps?"),
    ):
        result = cli("train", *arguments)
        assert (result.code, len(result.err.splitlines())) == (code, 1)
        assert says in result.err


# language models


@pytest.fixture
def lm_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LMRecipe, dict[str, Any]]]:
    calls = []

    def train(recipe: LMRecipe, **options: Any) -> Path:
        calls.append((recipe, options))
        return Path(options["out"], "model.safetensors")

    monkeypatch.setattr(lm_task, "train", train)
    return calls


@pytest.fixture
def lm_recipe(cli: Cli) -> Path:
    Path("lm.toml").write_text('kind = "lm"\nname = "talk"\n[model]\nfamily = "transformer"\nlayers = 2\n')
    return Path("lm.toml")


def test_the_kind_selects_the_task(cli: Cli, lm_recipe: Path, calls: list[Any], lm_calls: list[Any]) -> None:
    result = cli("train", lm_recipe, "--data", "tokens")
    assert (result.code, result.out, result.err) == (0, b"", "the model is runs/talk/model.safetensors\n")
    ((loaded, options),) = lm_calls
    assert (loaded.name, loaded.model.layers) == ("talk", 2)
    expected: dict[str, Any] = {"data": Path("tokens"), "out": Path("runs/talk"), "codec": None}
    expected |= {"allow_changed_data": False}
    assert options == expected | {"resume": False, "steps": None, "device": None}
    arguments = ["--codec", "mine", "--out", "here", "--resume", "--steps", "9", "--device", "cpu"]
    assert cli("train", lm_recipe, "--set", "data.store=others", "--set", "model.width=8", *arguments).code == 0
    loaded, options = lm_calls[1]
    assert loaded.model.width == 8
    wanted: dict[str, Any] = {"data": Path("others"), "out": Path("here"), "codec": "mine"}
    assert options == wanted | {"resume": True, "allow_changed_data": False, "steps": 9, "device": "cpu"}
    assert calls == []


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["lm.toml"], 2, "lm.toml names no data.store: pass --data, made by `codec tokenize DIR --out STORE`"),
        (
            ["lm.toml", "--data", "sounds"],
            3,
            "sounds is not a token store: tokenize it first: codec tokenize sounds ",
        ),
        (["lm.toml", "--data", "sounds", "--dry-run"], 3, "sounds is not a token store: tokenize it first"),
        (["lm.toml", "--data", "sounds", "--overfit-batch"], 3, "sounds is not a token store: tokenize it first"),
        (["lm.toml", "--data", "none"], 3, "none: there is no such token store"),
        (["lm.toml", "--data", "x", "--set", "model.layer=2"], 2, "did you mean layers?"),
        (["lm.toml", "--data", "x", "--set", "kind=ml"], 2, 'kind = "ml": must be'),
        (["lm.toml", "--data", "x", "--steps", "20001"], 2, "past the end of the schedule, train.steps = 20000"),
        (["small.toml", "--data", "x", "--codec", "y"], 2, "--codec is for language models, whose recipes have kind"),
        (["small.toml", "--data", "x", "--overfit-batch"], 2, "--overfit-batch is for language models"),
    ],
)
def test_wrong_calls_for_language_models(
    cli: Cli, recipe: Path, lm_recipe: Path, calls: list[Any], arguments: list[str], code: int, says: str
) -> None:
    Path("sounds").mkdir()
    write_audio("sounds/a.wav", tones(0.5, 8000, seed=0), 8000)
    result = cli("train", *arguments)
    assert (result.code, result.out, len(result.err.splitlines())) == (code, b"", 1)
    assert says in result.err
    assert not calls
    assert not Path("runs").exists()


@pytest.fixture
def store(cli: Cli) -> Path:
    Path("corpus").mkdir()
    return write_store(Path("corpus"), write_codec(Path("corpus")))


SMALL = [f"--set={key}" for key in ("model.width=16", "model.layers=1", "model.heads=2", "data.batch_size=2")]


def test_a_dry_run_of_a_language_model(cli: Cli, lm_recipe: Path, store: Path) -> None:
    before = sorted(Path().rglob("*"))
    arguments = ["--data", store, "--codec", "corpus/tiny.safetensors", "--set", "train.expected=2.5", *SMALL]
    result = cli("train", lm_recipe, *arguments, "--set", 'data.conditions=["label"]', "--dry-run", "--device", "cpu")
    assert (result.code, result.err) == (0, "")
    lines = dict(line.strip().split("  ", 1) for line in result.out.decode().splitlines() if line[:2] == "  ")
    report = {name: value.strip() for name, value in lines.items()}
    assert result.out.decode().startswith("language model talk\n")
    assert report["codes"] == "3 codebooks of 20, 100 frames/s"
    assert report["pattern"] == "delay, latency 2 frames"
    assert report["context"] == "512 frames (5.1 s)"
    assert report["conditioning"] == "label"
    assert report["data"] == "train on 7 clips (0.0 min, 366 codes), validate on 2"
    assert report["bits per code"].startswith("4.32 uniform, ")
    assert report["bits per code"].endswith("2.50 at the end as measured on the audio of its README")
    assert sorted(Path().rglob("*")) == before
    lm_recipe.write_text(lm_recipe.read_text() + "[train]\nexpected = 2.5\n")
    printed = [
        b"2.50 at the end" in cli("train", lm_recipe, *arguments[:4], *more, "--dry-run", "--device", "cpu").out
        for more in ([], ["--set", "train.samples=0"])
    ]
    assert printed == [True, False]  # a changed recipe has not been measured


def test_overfitting_one_batch(cli: Cli, lm_recipe: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sorted(Path().rglob("*"))
    arguments = ["--data", store, "--codec", "corpus/tiny.safetensors", *SMALL, "--overfit-batch", "--device", "cpu"]
    result = cli("train", lm_recipe, *arguments, "--set", "optimizer.lr=0.01")
    assert (result.code, result.out) == (0, b"")
    first, *_, last = result.err.splitlines()
    assert first.startswith("step 1: 4.")
    assert last.startswith("memorized: 0.")
    result = cli("train", lm_recipe, *arguments, "--steps", 2, "--set", "optimizer.lr=1e-9")
    assert result.code == 1
    assert "not memorized: 4." in result.err.splitlines()[-1]
    assert "after 2 steps" in result.err
    monkeypatch.setattr(lm_task, "OVERFIT_STEPS", 3)
    result = cli("train", lm_recipe, *arguments, "--set", "optimizer.lr=1e-9")
    assert result.code == 1
    assert "not memorized: 4." in result.err.splitlines()[-1]
    assert sorted(Path().rglob("*")) == before


def test_from_a_folder_of_recordings_to_a_codec_and_its_numbers(cli: Cli) -> None:
    """The three commands of the README, with a recipe small enough for a test."""
    Path("mine").mkdir()
    for number in range(6):
        write_audio(f"mine/{number}.wav", tones(1.0, 8000, seed=number), 8000)
    Path("small.toml").write_text(
        'name = "mine"\n'
        "[model]\nsample_rate = 8000\nhop = 40\ndim = 8\nnum_codebooks = 2\ncodebook_size = 16\n"
        "envelope_bands = 4\nmodes = 4\n"
        "encoder_width = 8\nencoder_blocks = 1\ndecoder_width = 8\ndecoder_blocks = 1\n"
        "[data]\ncrop = 0.3\nbatch_size = 2\ninit_seconds = 3\nnum_workers = 0\n[train]\nsteps = 3\n"
    )
    result = cli("train", "small.toml", "--data", "mine", "--out", "runs/mine")
    assert result.code == 0, result.err
    assert "the model is runs/mine/model.safetensors" in result.err
    result = cli("evaluate", "--model", "runs/mine", "--data", "mine", "--speech", "--json", "numbers.json")
    assert result.code == 0, result.err
    assert "pesq" in Path("numbers.json").read_text()
    assert b"2" in result.out
