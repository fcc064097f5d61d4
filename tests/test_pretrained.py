"""pretrained.py: names to files, and the message when there is none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from codec import pretrained, published
from codec.checkpoint import read_card, save_lm, save_model
from codec.compression import compress, decompress
from codec.errors import UnknownModel, WeightsMismatch
from codec.io.audio import write_audio
from codec.lm import CodecLM
from tests.helpers.language_models import tiny_lm
from tests.tiny import tiny_model

CARD = {
    "format": 1,
    "family": "causal",
    "config": {"hop": 320},
    "frame_spec": {"sample_rate": 24000, "hop": 320, "decoder_delay": 320, "num_codebooks": 8, "codebook_size": 1024},
    "training": {"step": 5},
}


def write_model(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"x": np.zeros(3, np.float32)}, path, metadata={"codec": json.dumps(CARD)})
    return path


@pytest.fixture(autouse=True)
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)
    write_model(folder / "general-24k.safetensors")
    write_model(folder / "another.safetensors")
    return folder


def test_shipped_models_are_listed_by_name() -> None:
    cards = pretrained.shipped()
    assert [card.name for card in cards] == ["another", "general-24k"]
    assert cards[1].as_codec().frame_spec.bitrate(8) == 6.0
    assert cards[1].parameters == 3


def test_find_by_name_file_and_run(tmp_path: Path, weights: Path) -> None:
    assert pretrained.find("general-24k") == weights / "general-24k.safetensors"
    run = write_model(tmp_path / "night" / "model.safetensors")
    assert pretrained.find(run.parent) == run
    assert pretrained.find(str(run)) == run
    assert pretrained.describe(run.parent).name == "night"


def test_a_shipped_model_comes_before_a_folder_of_its_name(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_model(Path("general-24k/model.safetensors"))
    assert pretrained.find("general-24k") == weights / "general-24k.safetensors"
    assert pretrained.find("./general-24k") == run


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("general-24", "did you mean general-24k? shipped models are general-24k, another;"),
        ("zzz", "no model zzz: shipped models are general-24k, another;"),
        ("missing.safetensors", "no model missing.safetensors"),
    ],
)
def test_an_unknown_name_lists_the_shipped_models(name: str, says: str) -> None:
    with pytest.raises(UnknownModel) as error:
        pretrained.load(name)
    assert says in str(error.value)


def test_a_folder_that_is_not_a_run(tmp_path: Path) -> None:
    with pytest.raises(UnknownModel, match="folder of a training run"):
        pretrained.load(tmp_path)


# language models and their codecs


@pytest.fixture
def lm(tmp_path: Path) -> CodecLM:
    """A loaded language model; the codec it was trained on is in learned/model.safetensors."""
    (tmp_path / "learned").mkdir()
    save_model(tmp_path / "learned" / "model.safetensors", tiny_model(), training={})
    model = tiny_lm()
    digest = read_card(tmp_path / "learned" / "model.safetensors").weights_hash
    model.source = model.source.model_copy(update={"codec": "learned", "weights_hash": digest})
    save_lm(tmp_path / "words.safetensors", model, training={})
    return pretrained.load_lm(tmp_path / "words.safetensors")


def test_language_models_and_codecs_are_listed_together(tmp_path: Path, weights: Path, lm: CodecLM) -> None:
    (tmp_path / "words.safetensors").rename(weights / f"{pretrained.DEFAULT_LM}.safetensors")
    assert pretrained.names() == ["another", "digits-8k-lm", "general-24k"]
    assert [card.family for card in pretrained.shipped()] == ["causal", "transformer", "causal"]
    loaded = pretrained.load_lm()
    assert (loaded.name, loaded.weights_hash, loaded.training) == ("digits-8k-lm", lm.weights_hash, False)
    with pytest.raises(UnknownModel, match="digits-8k-lm is a language model"):
        pretrained.load("digits-8k-lm")
    with pytest.raises(UnknownModel, match="another is a codec"):
        pretrained.load_lm("another")


@pytest.mark.slow
def test_the_codec_of_a_language_model(
    tmp_path: Path, weights: Path, lm: CodecLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lm.path == tmp_path / "words.safetensors"
    assert pretrained.codec_of(lm).name == "learned"  # in a folder beside the language model
    (tmp_path / "away").mkdir()
    (tmp_path / "words.safetensors").rename(tmp_path / "away/words.safetensors")
    monkeypatch.chdir(tmp_path / "away")
    lm = pretrained.load_lm("./words.safetensors")
    with pytest.raises(
        UnknownModel, match=rf"words was made by learned \(weights {lm.source.weights_hash[:12]}\).*--codec"
    ):
        pretrained.codec_of(lm)
    lm.codec_path = str(tmp_path / "learned")  # that its training used
    assert pretrained.codec_of(lm).name == "learned"
    lm.codec_path = None
    (tmp_path / "away/runs").mkdir()
    (tmp_path / "learned").rename(tmp_path / "away/runs/other")
    assert pretrained.codec_of(lm).name == "other"  # in the folder of runs
    (tmp_path / "away/runs/other/model.safetensors").rename(weights / "renamed.safetensors")
    assert pretrained.codec_of(lm).name == "renamed"  # found by its weights
    assert pretrained.codec_of(lm, weights / "renamed.safetensors").weights_hash == lm.source.weights_hash


def test_another_codec_of_the_same_name(tmp_path: Path, lm: CodecLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "learned" / "model.safetensors", tiny_model(1), training={})
    with pytest.raises(UnknownModel, match="not found: pass --codec with its file"):
        pretrained.codec_of(lm)
    with pytest.raises(WeightsMismatch, match=r"training data of words was made by learned .*, not by learned"):
        pretrained.codec_of(lm, "learned")
    with pytest.raises(UnknownModel, match=r"^words is a language model.*name a codec here$"):
        pretrained.codec_of(lm, "words.safetensors")


def test_a_file_finds_its_model_among_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_audio("a.wav", np.random.default_rng(0).normal(0, 0.1, (1, 4000)).astype(np.float32), 8000)
    for seed in range(3):
        Path(f"runs/run{seed}").mkdir(parents=True)
        save_model(tmp_path / f"runs/run{seed}/model.safetensors", tiny_model(seed), training={})
    compress("a.wav", "a.codec", model="runs/run1")
    decompress("a.codec", "given.wav", model="runs/run1")
    Path("runs/run1").rename("runs/renamed")
    decompress("a.codec", "found.wav")
    assert Path("found.wav").read_bytes() == Path("given.wav").read_bytes()
    shutil.rmtree("runs/renamed")
    with pytest.raises(UnknownModel, match="which is not shipped: pass --model"):
        decompress("a.codec", "none.wav")


def test_a_file_that_names_its_codec_starts_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """A language model or a token store may name any codec, also a published one that is not on this machine."""

    def fetch(name: str) -> Path:
        raise AssertionError(f"{name} is fetched")

    monkeypatch.setattr(published, "fetch", fetch)
    monkeypatch.setattr(published, "cached", lambda name: None)
    for name in published.PUBLISHED:
        assert pretrained.find_codec(name, "0" * 64, paths=[name]) is None
