"""recipes/: every folder is complete, and its recipes train."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from codec import datasets, pretrained
from codec.config import load_toml, with_new_names
from codec.data.clips import MANIFEST
from codec.data.tokenize import tokenize
from codec.lm import build
from codec.models.causal import CausalConfig
from codec.training.codec.recipe import Recipe
from codec.training.codec.task import train
from codec.training.lm import task as lm_task
from codec.training.lm.recipe import LMRecipe
from tests.datasets.miniatures import MINIATURES, audio, prepared

ROOT = Path(__file__).parents[2]
PICTURES = {"digits": {"bits.svg", "accuracy.svg"}}  # of what its README compares
FOLDERS = sorted(path for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name != "__pycache__")
NAMES = [folder.name for folder in FOLDERS]
SMALL = [
    "model.dim=8",
    "model.num_codebooks=2",
    "model.codebook_size=8",
    "model.modes=0",
    "model.encoder_width=8",
    "model.encoder_blocks=1",
    "model.decoder_width=8",
    "model.decoder_blocks=1",
    "data.crop=0.2",
    "data.batch_size=2",
    "data.init_seconds=0.4",
    "data.num_workers=0",
    "discriminator.start=1",
    "discriminator.channels=2",
    "discriminator.crop=0.1",
    "train.precision=float32",
]


SMALL_LM = [
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "data.frames=10",
    "data.batch_size=4",
    "losses.soft=0.04",
    "losses.stochastic=0.04",
    "train.precision=float32",
    "train.samples=0",
]


pytestmark = pytest.mark.usefixtures("without_drawing")


def test_every_recipe_is_three_files_and_in_the_readme() -> None:
    assert set(NAMES) == set(datasets.NAMES)
    for folder in FOLDERS:
        files = {path.name for path in folder.iterdir() if path.name != "__pycache__"}
        assert files == {"README.md", "codec.toml", "lm.toml"} | PICTURES.get(folder.name, set()), folder
    section = (ROOT / "README.md").read_text("utf-8").split("## Recipes\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \[`(\w+)`\]\(recipes/\1\) \| (.*) \| (.*) \| (.*) \|$", section, re.MULTILINE)
    known = [datasets.find(name) for name in datasets.NAMES]
    terms = [dataset.license.name if dataset.license else "yours" for dataset in known]
    assert rows == [
        (dataset.name, dataset.hours, dataset.download, name) for dataset, name in zip(known, terms, strict=True)
    ]


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_readmes_are_complete(folder: Path) -> None:
    text = (folder / "README.md").read_text("utf-8")
    assert text.startswith(f"# {folder.name}\n")
    assert f"codec prepare {folder.name} DIR" in text
    assert f"codec train {folder.name} --data " in text
    assert f"codec train {folder.name}/lm --data " in text
    terms = datasets.find(folder.name).license
    if terms is not None:
        assert terms.name.split(";")[0] in text
        assert len(text.splitlines()) <= (150 if folder.name == "digits" else 40)  # where shipped models come from
        assert set(re.findall(r"\((\w+\.svg)\)", text)) == PICTURES.get(folder.name, set())
        for word in ("hours", "files", "license"):
            assert word in text.lower()


@pytest.mark.parametrize("name", NAMES)
def test_a_miniature_trains(name: str, tmp_path: Path) -> None:
    MINIATURES[name](tmp_path / "data")
    prepared(datasets.find(name), tmp_path / "data")
    recipe = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe, SMALL)
    model = train(recipe, data=tmp_path / "data" / MANIFEST, out=tmp_path / "run", steps=2, device="cpu")
    assert model.is_file()

    tokenize(tmp_path / "data" / MANIFEST, tmp_path / "tokens", model=model)
    lm_recipe = load_toml(ROOT / "recipes" / name / "lm.toml", LMRecipe, SMALL_LM)
    options: dict[str, Any] = {"data": tmp_path / "tokens", "codec": model, "steps": 2, "device": "cpu"}
    assert lm_task.train(lm_recipe, out=tmp_path / "lm", **options).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_codecs_have_fifty_frames_per_second_and_discriminators(name: str) -> None:
    recipe = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe)
    assert recipe.model.sample_rate == 50 * recipe.model.hop
    assert recipe.discriminator.start is not None
    assert recipe.discriminator.start < recipe.train.steps


@pytest.mark.parametrize("name", NAMES)
def test_the_context_holds_the_longest_crop(name: str) -> None:
    codec = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe).model
    assert isinstance(codec, CausalConfig)
    recipe = load_toml(ROOT / "recipes" / name / "lm.toml", LMRecipe)
    source = {
        "codec": "",
        "weights_hash": "",
        "num_codebooks": codec.num_codebooks,
        "codebook_size": codec.codebook_size,
    }
    with torch.device("meta"):
        model = build(recipe.model.model_dump(), source | {"dim": codec.dim})
    assert recipe.model.context >= model.pattern.steps(recipe.data.frames)
    data = load_toml(ROOT / "recipes" / name / "codec.toml", Recipe).data
    assert (recipe.data.held_out, recipe.data.split_by) == (data.held_out, data.split_by)  # so one split of the corpus
    assert recipe.name == f"{name}-{codec.sample_rate // 1000}k-lm"


def test_the_shipped_language_model_has_its_recipe() -> None:
    card = pretrained.describe(pretrained.DEFAULT_LM)
    made = LMRecipe.from_data(with_new_names(card.training["recipe"])).model_dump()
    made["model"] |= {key: card.config[key] for key in ("guidance", "temperature")}  # chosen after training
    recipe = load_toml(ROOT / "recipes/digits/lm.toml", LMRecipe).model_dump()
    assert recipe["train"].pop("expected") == 7.8  # which was measured afterwards
    assert made["train"].pop("expected") is None
    for key in ("steps", "precision", "validate_every", "save_every"):  # a shorter run: recipes/digits/README.md
        del recipe["train"][key], made["train"][key]
    assert made == recipe


def test_general_has_no_splits_of_its_own(tmp_path: Path) -> None:
    for number in range(3):
        audio(tmp_path / "data" / f"{number}.wav", 8000)
    rows = prepared(datasets.find("general"), tmp_path / "data")
    assert rows == {f"{number}.wav": {} for number in range(3)}
    recipe = load_toml(ROOT / "recipes/general/codec.toml", Recipe, [*SMALL, "train.steps=1"])
    train(recipe, data=tmp_path / "data" / MANIFEST, out=tmp_path / "run")
