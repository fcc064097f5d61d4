"""io/entropy_files.py: a user's own model with its network beside it, wherever its codes are coded."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from codec import pretrained
from codec.checkpoint import save_model
from codec.compression import compress, decompress
from codec.errors import UnknownModel, UnsupportedAudio, UsageError
from codec.exchange import export_codes
from codec.io import bitstream, entropy, entropy_files, entropy_model
from codec.io.audio import read_audio
from codec.io.entropy_files import SUFFIX
from codec.transcoding import concat, transcode
from tests.cli.conftest import Cli, cli  # noqa: F401
from tests.helpers.entropy import force_coder, random_tensors
from tests.tiny import tiny_model


@pytest.fixture(autouse=True)
def other_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Begin without models that were opened before; a call forgets them again, as another process does."""
    monkeypatch.setattr(entropy_files, "_BESIDE", {})
    return lambda: monkeypatch.setattr(entropy_files, "_BESIDE", {})


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a model with a network beside it, which takes every packet."""
    path = tmp_path / "models/mine.safetensors"
    path.parent.mkdir()
    save_model(path, tiny_model(), training={})
    weights_hash = pretrained.describe(path).weights_hash
    tensors = random_tensors((20, 20, 20))
    tensors["shift"][:, 2] = 9  # mild predictions, because wrong ones make packets larger than files may have them
    entropy_model.save(path.with_suffix(SUFFIX), tensors, weights_hash=weights_hash)
    soundfile.write(tmp_path / "a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 12_000), 8000)

    force_coder(monkeypatch, entropy.MODEL)
    return path


def coders(path: Path) -> set[int]:
    with bitstream.open_reader(path) as reader:
        return {packet.coder for packet in reader.coded()}


def decoded(path: Path, model: Path | None) -> Any:
    decompress(path, path.with_suffix(".out.wav"), model=model, force=True)
    return read_audio(path.with_suffix(".out.wav"))[0]


def test_a_network_beside_the_model_codes(mine: Path, tmp_path: Path, other_process: Callable[[], None]) -> None:
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=mine, entropy="model")
    assert coders(tmp_path / "a.codec") == {entropy.MODEL}
    compress(tmp_path / "a.wav", tmp_path / "b.codec", model=mine, entropy="none")
    assert coders(tmp_path / "b.codec") == {entropy.NONE}
    other_process()
    np.testing.assert_array_equal(decoded(tmp_path / "a.codec", mine), decoded(tmp_path / "b.codec", mine))
    loaded = pretrained.load(mine, "cpu")
    other_process()
    compress(tmp_path / "a.wav", tmp_path / "c.codec", model=loaded)
    assert (tmp_path / "c.codec").read_bytes() == (tmp_path / "a.codec").read_bytes()


def test_a_model_in_the_folder_of_a_hub(mine: Path, tmp_path: Path, other_process: Callable[[], None]) -> None:
    """There, the names of files are links to files that are named by their hashes."""
    blobs, snapshot = tmp_path / "models--me--mine/blobs", tmp_path / "models--me--mine/snapshots/0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate((mine, mine.with_suffix(SUFFIX))):
        shutil.copy(file, blobs / f"{number:064x}")
        (snapshot / file.name.replace("mine", "model")).symlink_to(blobs / f"{number:064x}")
    for file in (mine, mine.with_suffix(SUFFIX)):
        file.unlink()
    other_process()
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=snapshot)
    assert coders(tmp_path / "a.codec") == {entropy.MODEL}
    other_process()
    assert decoded(tmp_path / "a.codec", snapshot).shape == (1, 12_000)


def test_a_run_is_not_its_network(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "RUNS", mine.parent)
    weights_hash = pretrained.describe(mine).weights_hash
    assert pretrained.find_run(weights_hash) == mine
    assert pretrained.find_run("0" * 64) is None


def test_without_a_model_the_codes_are_copied(mine: Path, tmp_path: Path, other_process: Callable[[], None]) -> None:
    source = tmp_path / "a.codec"
    compress(tmp_path / "a.wav", source, model=mine, packet=0.4)  # too short for ends of codebooks
    other_process()
    transcode(source, tmp_path / "copy.codec")
    assert (tmp_path / "copy.codec").read_bytes() == source.read_bytes()
    concat([source, source], tmp_path / "twice.codec")
    with pytest.raises(UnsupportedAudio, match=rf"coder 2: pass --model .* mine{SUFFIX} \(network"):
        transcode(source, tmp_path / "x.codec", num_codebooks=1)
    with pytest.raises(UnsupportedAudio, match="--model"):
        export_codes(source, tmp_path / "x.npy")
    assert decoded(tmp_path / "twice.codec", mine).shape[1] >= 24_000


@pytest.mark.slow
def test_commands_take_the_model(cli: Cli, mine: Path, tmp_path: Path, other_process: Callable[[], None]) -> None:  # noqa: F811
    source = tmp_path / "a.codec"
    compress(tmp_path / "a.wav", source, model=mine, packet=0.4)
    for command in (["check", source], ["transcode", source, "b.codec", "--codebooks", 1], ["export-codes", source]):
        other_process()
        assert cli(*command).code != 0
        assert cli(*command, "--model", mine).code == 0


def test_a_network_for_other_weights_is_not_used(mine: Path, tmp_path: Path) -> None:
    entropy_model.save(mine.with_suffix(SUFFIX), random_tensors((20, 20, 20)), weights_hash="ab" * 32)
    compress(tmp_path / "a.wav", tmp_path / "a.codec", model=mine)
    assert coders(tmp_path / "a.codec") == {entropy.NONE}
    with pytest.raises(UsageError, match=rf"mine has no network for entropy coding, mine{SUFFIX} for its weights"):
        compress(tmp_path / "a.wav", tmp_path / "b.codec", model=mine, entropy="model")


def test_a_damaged_network_is_named(mine: Path, tmp_path: Path) -> None:
    network = mine.with_suffix(SUFFIX)
    network.write_bytes(network.read_bytes()[:-1])
    with pytest.raises(UnknownModel, match=r"mine\.entropy\.safetensors is not a complete network"):
        compress(tmp_path / "a.wav", tmp_path / "a.codec", model=mine)
    assert not (tmp_path / "a.codec").exists()
