"""docs/architecture.md lists the files that a reader of `codec train` has to open: every file that a step enters."""

import re
import sys
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from codec.cli.train import train
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import CodecTask
from codec.training.lm.recipe import LMRecipe
from codec.training.lm.task import LMTask
from tests.helpers.training import options, small_lm_recipe, small_recipe, write_codec, write_recordings, write_store
from tests.test_project import LAYERS, PACKAGE, rows

LOWER = {name for layer in LAYERS[:2] for name in layer}  # small helpers, layers of networks, audio files
EVERY_PART: dict[str, Any] = {
    "data": {"tones": 0.3, "mix": 0.3, "quiet": 0.3},
    "discriminator": {"start": 0, "update_every": 1},
    "train": {"steps": 3, "validate_every": 3, "save_every": 3, "reencoded": 0.5},
}


@cache
def file_of(filename: str) -> str | None:
    """The path below codec/ of a file, without its suffix; None for the lower layers and outside of codec/."""
    if not Path(filename).is_relative_to(PACKAGE):
        return None
    name = Path(filename).relative_to(PACKAGE).with_suffix("")
    return None if name.parts[0] in LOWER else name.as_posix()


def files_of_second_step(task: type[Any], run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Files that `run` enters after the first step of a task and until the end of the second one, and its callers."""
    entered: set[str] = set()
    original = task.step

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            entered.add(frame.f_code.co_filename)

    def step(self: Any, batch: Any, number: int) -> Any:
        metrics = original(self, batch, number)
        sys.setprofile(hook if number == 0 else None)
        entered.update(caller.filename for caller in traceback.extract_stack() if number == 1)
        return metrics

    monkeypatch.setattr(task, "step", step)
    run()
    return {file for file in map(file_of, entered) if file is not None}


def listed(job: str) -> list[str]:
    """The files of a job in docs/architecture.md."""
    return re.findall(r"`([\w/]+)`", dict(rows("job"))[job])


def assert_listed(job: str, recipe: str, entered: set[str]) -> None:
    """The page lists what was entered and the recipe, each once."""
    files = listed(job)
    assert set(files) == entered | {recipe}
    assert len(files) == len(set(files)) <= 12


def command(recipe: Recipe | LMRecipe, content: str, folder: Path, **paths: Any) -> Callable[[], None]:
    """`codec train` by a recipe file with this content and the settings of `recipe`."""
    (folder / "small.toml").write_text(content)
    settings = [option.removeprefix("--set=") for option in options(recipe)]
    out = folder / "run"
    return lambda: train(str(folder / "small.toml"), out=out, overrides=settings, device="cpu", **paths)


@pytest.mark.slow
def test_files_of_a_step_of_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_recordings(tmp_path / "data")
    run = command(small_recipe(**EVERY_PART), 'name = "small"\n', tmp_path, data=data)
    assert_listed("train a codec", "training/codec/recipe", files_of_second_step(CodecTask, run, monkeypatch))


@pytest.mark.slow
def test_files_of_a_step_of_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = write_codec(tmp_path)
    recipe = small_lm_recipe(train={"steps": 3, "validate_every": 3, "save_every": 3})
    store = write_store(tmp_path, codec)
    run = command(recipe, 'kind = "lm"\nname = "small"\n', tmp_path, data=store, codec=codec)
    assert_listed("train a language model", "training/lm/recipe", files_of_second_step(LMTask, run, monkeypatch))
