"""hub.py: names to files, and what to say when there is none."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from codec import hub
from codec.errors import UnknownModel

CARD = {
    "format": 1,
    "family": "causal",
    "config": {"hop": 320},
    "frame_math": {"sample_rate": 24000, "hop": 320, "overlap": 320, "books": 8, "codebook_size": 1024},
    "training": {"step": 5},
}


def write_model(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": np.zeros(3, np.float32)}, path, metadata={"codec": json.dumps(CARD)})
    return path


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    monkeypatch.setattr(hub, "WEIGHTS", folder)
    write_model(folder / "general-24k.safetensors")
    write_model(folder / "another.safetensors")
    return folder


def test_shipped_models_are_listed_by_name() -> None:
    cards = hub.shipped()
    assert [card.name for card in cards] == ["another", "general-24k"]
    assert cards[1].frame_math.bitrate(8) == 6.0
    assert cards[1].parameters == 3


def test_a_name_a_file_and_a_run(tmp_path: Path, weights: Path) -> None:
    assert hub.find("general-24k") == weights / "general-24k.safetensors"
    run = write_model(tmp_path / "night" / "model.safetensors")
    assert hub.find(run.parent) == run
    assert hub.find(str(run)) == run
    assert hub.describe(run.parent).name == "night"


def test_a_shipped_name_comes_before_a_folder_of_that_name(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_model(Path("general-24k/model.safetensors"))
    assert hub.find("general-24k") == weights / "general-24k.safetensors"
    assert hub.find("./general-24k") == run


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("general-24", "did you mean general-24k? There are another, general-24k;"),
        ("zzz", "no model zzz: There are another, general-24k;"),
        ("missing.safetensors", "no model missing.safetensors"),
    ],
)
def test_an_unknown_name_lists_the_known(name: str, says: str) -> None:
    with pytest.raises(UnknownModel) as error:
        hub.load(name)
    assert says in str(error.value)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="folder of a training run"):
        hub.load(tmp_path)


def test_listing_models_needs_no_torch() -> None:
    code = "import sys; from codec import hub; hub.shipped(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
