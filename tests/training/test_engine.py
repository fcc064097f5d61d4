"""training/engine.py and signals.py: errors name the way out, and a run that fails at the start leaves no files."""

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
from codec.training.signals import catch_stop_signals
from tests.helpers.training import small_recipe, write_recordings

pytestmark = pytest.mark.usefixtures("without_drawing")


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    return write_recordings(tmp_path / "recordings")


def test_a_folder_has_one_training_run_at_a_time(recordings: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run", "training run"):
        with pytest.raises(ConfigError, match="another training run is running in"):
            train(small_recipe(), data=recordings, out=tmp_path / "run")
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()  # because it stayed empty
    train(small_recipe(), data=recordings, out=tmp_path / "run")
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_missing_gpu_is_refused(recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device cuda cannot be used"):
        train(small_recipe(), data=recordings, out=tmp_path / "run", device="cuda")


def test_a_run_cannot_be_a_file(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for out in (tmp_path / "run", tmp_path / "run" / "inner"):
        with pytest.raises(StorageError, match="is a file or lies below one"):
            train(small_recipe(), data=recordings, out=out)


def test_silent_audio_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in "abc":
        write_audio(tmp_path / "data" / f"{name}.wav", np.zeros((1, 8000), np.float32), 8000)
    with pytest.raises(UsageError, match=r"100 crops in a row of .*data are silence"):
        train(small_recipe(), data=tmp_path / "data", out=tmp_path / "run")


def test_a_killed_data_worker_is_reported() -> None:
    with pytest.raises(CodecError, match="a data worker was killed"), engine.memory_errors(num_workers=2):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


@pytest.mark.parametrize("ignored", [True, False])
def test_sighup_stays_ignored_under_nohup(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with catch_stop_signals() as stop_requested:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop_requested() is not ignored
    finally:
        signal.signal(signal.SIGHUP, before)
