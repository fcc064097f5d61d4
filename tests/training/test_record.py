"""training/record.py: what is shown, and what can be read back from the folder of a run."""

import csv
import importlib
import io
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from codec.errors import MissingDependency
from codec.training.record import SPEED, Record, Tally, live, perplexity


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "events"))
    accumulator.Reload()
    return accumulator


def rows(folder: Path) -> list[list[str]]:
    with (folder / "record.csv").open(newline="") as file:
        return list(csv.reader(file))


def test_numbers_go_to_tensorboard_and_to_the_table(tmp_path: Path) -> None:
    with Record(tmp_path / "run") as record:
        record.numbers(1, {"loss/mel": 1.5, "rate": 1e-3})
        record.numbers(2, {"loss/mel": 1.25})
    assert rows(tmp_path / "run") == [["1", "loss/mel", "1.5"], ["1", "rate", "0.001"], ["2", "loss/mel", "1.25"]]
    found = events(tmp_path / "run")
    assert found.Tags()["scalars"] == ["loss/mel", "rate"]
    assert [(event.step, event.value) for event in found.Scalars("loss/mel")] == [(1, 1.5), (2, 1.25)]


def test_a_resumed_record_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        for step in (1, 2, 3):
            record.numbers(step, {"loss/mel": step})
    with (tmp_path / "record.csv").open("a") as file:
        file.write("4,loss")  # as a power cut leaves it
    with Record(tmp_path, 2) as record:
        record.numbers(3, {"loss/mel": 30})
    expected = [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(int(step), float(value)) for step, _, value in rows(tmp_path)] == expected
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss/mel")] == expected


def test_a_new_run_has_a_new_table(tmp_path: Path) -> None:
    for _ in range(2):
        with Record(tmp_path) as record:
            record.numbers(1, {"loss/mel": 1})
    assert len(rows(tmp_path)) == 1


def test_clips_can_be_heard_and_seen(tmp_path: Path) -> None:
    time_ = torch.arange(16000) / 8000
    low, high = (0.5 * torch.sin(2 * torch.pi * pitch * time_) for pitch in (1000, 3000))
    step = torch.where(time_ < 1, low, high)  # 1 kHz, then 3 kHz
    with Record(tmp_path) as record:
        record.clips(5, "original", torch.stack([low, step])[:, None], 8000)
    found = events(tmp_path)
    assert found.Tags()["audio"] == found.Tags()["images"] == ["original/0", "original/1"]
    (audio,) = found.Audio("original/0")
    assert (audio.step, audio.sample_rate, audio.length_frames) == (5, 8000.0, 16000)

    picture = np.asarray(Image.open(io.BytesIO(found.Images("original/1")[0].encoded_image_string)).convert("L"))
    assert picture.shape == (513, 63)  # [bins, frames]
    brightest = 512 - picture.argmax(axis=0)  # counted from below
    assert set(brightest[2:29]) == {128}  # 1000 Hz of 4000 Hz in 512 bins
    assert set(brightest[34:61]) == {384}
    assert picture[512 - 384, 10] < 30 < 250 < picture[512 - 384, 50]
    assert np.median(picture) < 30


def test_silence_and_clipping_are_drawn_too(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.clips(0, "edge", torch.stack([torch.zeros(1, 2000), torch.full((1, 2000), 3.0)]), 8000)
    assert len(events(tmp_path).Tags()["images"]) == 2


def test_tally_means_and_speed() -> None:
    tally = Tally()
    tally.add({"mel": torch.tensor(1.0), "perplexity": torch.tensor([4.0, 2.0])})
    tally.add({"mel": torch.tensor(3.0), "perplexity": torch.tensor([8.0, 2.0]), "features": torch.tensor(0.5)})
    time.sleep(0.02)
    numbers = tally.numbers()
    assert 0 < numbers.pop(SPEED) <= 2 / 0.02
    assert numbers == {"loss/mel": 2, "loss/features": 0.5, "perplexity/0": 6, "perplexity/1": 2}
    tally.add({"mel": torch.tensor(5.0)})
    assert tally.numbers()["loss/mel"] == 5


def test_the_bar_is_one_line_on_a_terminal_and_nothing_elsewhere() -> None:
    numbers = {"loss/mel": 1.234, "loss/phase": 0.5, "loss/gradient": 7.0, SPEED: 3.21}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
        with live(console, "night", 2, 8) as show:
            show(3, {})
            show(4, numbers)
        written = console.file.getvalue()  # type: ignore[attr-defined]
        if not terminal:
            assert written == ""
            continue
        assert written.count("\n") == 1
        last = Text.from_ansi(written.split("\r")[-1]).plain
        assert "night" in last
        assert "4/8" in last
        assert "3.21 steps/s mel 1.23 phase 0.50" in last
        assert "gradient" not in last


def test_perplexity_is_the_number_of_equally_used_entries() -> None:
    codes = torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5], [-1, -1, -1, -1]], [[0, 1, 2, 3], [-1] * 4, [-1] * 4]])
    assert perplexity(codes, 8).tolist() == pytest.approx([4, 1, 1])
    uneven = torch.tensor([[[0, 0, 0, 1]]])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(perplexity(uneven, 2)) == pytest.approx(math.exp(entropy))


def test_without_tensorboard_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.delitem(sys.modules, "codec.training.record")
    with pytest.raises(MissingDependency, match=r"codec\[train\]"):
        importlib.import_module("codec.training.record")
