"""training/engine.py: what surrounds a training tells what is wrong, and leaves no trace where nothing came of it."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from codec.errors import CodecError, ConfigError, StorageError, UsageError
from codec.io.audio import write_audio
from codec.io.storage import locked_folder
from codec.training import engine
from codec.training.codec.task import train
from tests.helpers.training import small_recipe, write_recordings


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    return write_recordings(tmp_path / "recordings")


def test_a_folder_has_one_training_at_a_time(recordings: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run", "training run"):
        with pytest.raises(ConfigError, match="another training run is running in"):
            train(small_recipe(), data=recordings, out=tmp_path / "run")
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()  # nothing came of it
    train(small_recipe(), data=recordings, out=tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_gpu_that_is_not_there_is_refused(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device cuda cannot be used"):
        train(small_recipe(), data=recordings, out=tmp_path / "run", device="cuda")


def test_a_run_cannot_be_a_file(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for out in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(StorageError, match="is a file or lies below one"):
            train(small_recipe(), data=recordings, out=out)


def test_silence_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in "abc":
        write_audio(tmp_path / "data" / f"{name}.wav", np.zeros((1, 8000), np.float32), 8000)
    with pytest.raises(UsageError, match="the audio to start from is silent"):
        train(small_recipe(), data=tmp_path / "data", out=tmp_path / "run")


def test_a_killed_reader_is_told() -> None:
    with pytest.raises(CodecError, match="a reader of the audio was killed"), engine.within_memory(workers=2):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


@pytest.mark.parametrize("ignored", [True, False])
def test_who_ignores_the_end_of_the_terminal_is_left_alone(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with engine.interrupts() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert asked() is not ignored
    finally:
        signal.signal(signal.SIGHUP, before)
