"""datasets/recipes.py: shipped recipes by name, in a source checkout and in a wheel."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codec import datasets
from codec.datasets import recipes
from codec.errors import UsageError

ROOT = Path(__file__).parents[2]


def test_every_dataset_has_recipes() -> None:
    assert recipes.names() == list(datasets.NAMES)
    for name in recipes.names():
        assert recipes.find(name) == recipes.find(f"{name}/codec") == ROOT / "recipes" / name / "codec.toml"
        assert recipes.find(f"{name}/lm") == ROOT / "recipes" / name / "lm.toml"
        assert recipes.purpose(name)
    assert recipes.purpose("ljspeech") == "One reader at 24 kHz (the recordings have 22.05), 0.5 to 6 kbit/s"


def test_a_path_wins_over_a_name_only_if_written_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("general", "general.toml", "digits/lm", "mine/small", "own"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    shipped = ROOT / "recipes"
    assert recipes.find("general") == shipped / "general/codec.toml"
    assert recipes.find("digits/lm") == shipped / "digits/lm.toml"
    for path in ("./general", "general.toml", "./digits/lm", str(tmp_path / "general"), "mine/small", "own", "no.toml"):
        assert recipes.find(path) == Path(path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("genral", "did you mean general?"),
        ("digits/ml", "did you mean digits/lm?"),
        ("vctk/l", "did you mean vctk/lm?"),
        ("", "`codec recipes` lists them"),
        ("x/../general", "did you mean general?"),
    ],
)
def test_unknown_names(name: str, hint: str) -> None:
    with pytest.raises(UsageError) as raised:
        recipes.find(name)
    assert str(raised.value).startswith(f"unknown recipe {name}; ")
    assert hint in str(raised.value)


def test_a_wheel_contains_the_recipes(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel")
    files = {
        included.distribution_path: Path(included.path)
        for included in wheel.WheelBuilder(str(ROOT)).recurse_included_files()
    }
    assert not any(name.endswith(".svg") or name.startswith("recipes/") for name in files)
    for name, path in files.items():
        if path.suffix != ".safetensors":
            (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / "site" / name)
    code = (
        "from codec.datasets import recipes\n"
        "print(recipes.folder(), *recipes.names())\n"
        "print(recipes.find('digits/lm').read_text('utf-8'), end='')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    first, _, text = done.stdout.partition("\n")
    assert first.split() == [str(tmp_path / "site/codec/recipes"), *datasets.NAMES]
    assert text == (ROOT / "recipes/digits/lm.toml").read_text("utf-8")
