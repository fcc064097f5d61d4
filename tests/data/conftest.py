"""A tiny model and a corpus whose token store has three shards."""

import shutil
from pathlib import Path

import pytest

from codec.checkpoint import save_model
from codec.data import tokenize
from tests.helpers.tokens import noise
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_model(path, tiny_model(), training={})
    return path


@pytest.fixture(autouse=True)
def short_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "SHARD_SECONDS", (1.0, 3600.0))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Short and long, of several rates, in two splits; the names are in the order of the walk."""
    return write_corpus(tmp_path / "corpus")


@pytest.fixture(scope="module")
def stored_once(tmp_path_factory: pytest.TempPathFactory, model_file: Path) -> Path:
    folder = tmp_path_factory.mktemp("stored")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenize, "SHARD_SECONDS", (1.0, 3600.0))
        tokenize.tokenize(write_corpus(folder / "corpus"), folder / "store", model=model_file)
    return folder / "store"


@pytest.fixture
def stored(tmp_path: Path, stored_once: Path) -> Path:
    """The token store of `corpus`, which a test may change."""
    return Path(shutil.copytree(stored_once, tmp_path / "store"))


def write_corpus(folder: Path) -> Path:
    noise(folder / "train" / "a" / "0.wav", time=1)
    noise(folder / "train" / "a" / "1.wav", time=79)
    noise(folder / "train" / "a" / "2.flac", time=9001, rate=44100)
    noise(folder / "train" / "a" / "3.wav", time=80_000)  # longer than a batch
    noise(folder / "train" / "a" / "4.wav", time=5000, rate=16000, channels=2)
    noise(folder / "valid" / "b" / "5.wav", time=81)
    return folder
