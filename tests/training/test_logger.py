"""training/record.py: what is shown, and what can be read back from the folder of a run."""

import csv
import io
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from codec.training.logger import (
    BAD,
    BANDS,
    BITS,
    REAL_TIME,
    SPEED,
    USE,
    WAITING,
    Record,
    Tally,
    decibels,
    live,
    perplexity,
    picture,
    summary,
    usage,
)


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder / "events"))
    accumulator.Reload()
    return accumulator


def rows(folder: Path) -> list[list[str]]:
    with (folder / "record.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["step", "name", "value"]
    return rows


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


def test_a_damaged_table_keeps_its_whole_rows(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.numbers(1, {"loss/mel": 1})
    damage = b'1,loss/\xff\xfe,2\n"1,loss,3\n\xc2\xb2,loss,4\n1,' + b"x" * 200_000 + b"\n1,loss/noise,5\n"
    with (tmp_path / "record.csv").open("ab") as file:
        file.write(damage)
    with Record(tmp_path, 1) as record:
        record.numbers(2, {"loss/mel": 6})
    mel = "loss/mel"
    expected = [["1", mel, "1"], ["1", "loss/\ufffd\ufffd", "2"], ["1", "loss/noise", "5"], ["2", mel, "6"]]
    assert rows(tmp_path) == expected


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
    pictures = [Image.open(io.BytesIO(found.Images(f"original/{number}")[0].encoded_image_string)) for number in (0, 1)]
    assert [image.size for image in pictures] == [(802, 256)] * 2  # 5 ms in two pixels, a band in two
    one, other = (np.asarray(image.convert("L"))[:, 100:] for image in pictures)  # right of the labels
    assert np.abs(one[:, :250].astype(int) - other[:, :250]).max() < 10  # the first second, on nearly one scale
    assert one[30:].argmax(axis=0)[400] > other[30:].argmax(axis=0)[400] + 30  # 3 kHz stands above 1 kHz


def test_spectrograms_have_mel_bands_and_frames_of_5_ms() -> None:
    time_ = torch.arange(8000) / 8000
    for pitch in (250, 1000, 3000):
        levels = decibels(torch.sin(2 * torch.pi * pitch * time_), 8000)
        assert levels.shape == (BANDS, 201)
        # by the formula of Slaney's mel scale, which is linear up to 1 kHz and logarithmic above it
        mel = [hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) / (math.log(6.4) / 27) for hz in (pitch, 4000)]
        assert abs(levels[:, 100].argmax() - (mel[0] / mel[1] * (BANDS + 1) - 1)) < 1
    click = torch.zeros(8000)
    click[4000] = 1
    assert decibels(click, 8000).mean(axis=0).argmax() == 100
    assert decibels(torch.zeros(10), 8000).shape == (BANDS, 1)


def test_what_came_back_is_drawn_below_the_original_on_its_scale(tmp_path: Path) -> None:
    noise = 0.1 * torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    with Record(tmp_path) as record:
        record.clips(1, "3 codebooks", 0.01 * noise, 8000, original=noise)
    found = events(tmp_path)
    assert found.Tags()["images"] == ["3 codebooks/0"]
    image = np.asarray(Image.open(io.BytesIO(found.Images("3 codebooks/0")[0].encoded_image_string)).convert("L"))
    assert image.shape == (512, 402)
    above, below = (half[40:, 100:300].astype(float).mean() for half in (image[:256], image[256:]))
    assert above - below > 50  # 40 dB of 80
    alone = picture({"original": noise[0, 0]}, 8000)
    both = picture({"original": noise[0, 0], "3 codebooks": 0.01 * noise[0, 0]}, 8000)
    assert (both[:250] == alone[:250]).all()
    same = picture({"original": noise[0, 0], "3 codebooks": noise[0, 0]}, 8000)[:, 100:300]
    assert (same[30:250] == same[256 + 30 : 256 + 250]).all()


def test_silence_and_clipping_are_drawn_too(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.clips(0, "edge", torch.stack([torch.zeros(1, 2000), torch.full((1, 2000), 3.0)]), 8000)
    assert len(events(tmp_path).Tags()["images"]) == 2


def test_tally_means() -> None:
    tally = Tally(codebook_size=20)  # of 3 codebooks
    one = torch.eye(20)[:3] * 4
    tally.add({"mel": torch.tensor(1.0), "gradient/model": torch.tensor(2.0), "usage": one})
    tally.add({"mel": torch.tensor(3.0), "gradient/model": torch.tensor(4.0), "usage": one.roll(1, 1)})
    tally.add({"mel": torch.tensor(5.0), "feature_matching": torch.tensor(0.5)})
    numbers = tally.numbers()
    assert numbers["loss/mel"] == 3
    assert numbers["loss/feature_matching"] == 0.5
    assert numbers["gradient/model"] == 3
    assert [numbers[f"perplexity/{codebook}"] for codebook in range(3)] == pytest.approx([2, 2, 2])  # over both steps
    assert numbers[USE] == pytest.approx(0.1)
    tally.add({"mel": torch.tensor(7.0)})
    assert tally.numbers()["loss/mel"] == 7


def test_speed_and_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("codec.training.logger.clock.perf_counter", lambda: now[0])

    def loading() -> Iterator[int]:
        for number in range(4):
            now[0] += 0.1
            yield number

    tally = Tally(3 * 0.15)
    for _ in tally.waiting(loading()):
        now[0] += 0.3
        tally.add({"mel": torch.tensor(1.0)})
        with tally.aside():
            now[0] += 5
    numbers = tally.numbers()
    assert numbers[SPEED] == pytest.approx(4 / 1.6)
    assert numbers[REAL_TIME] == pytest.approx(4 / 1.6 * 3 * 0.15)
    assert numbers[WAITING] == pytest.approx(0.25)
    now[0] += 2
    tally.add({"mel": torch.tensor(1.0)})
    assert (tally.numbers()[SPEED], tally.waited) == (0.5, 0)


def test_bad_files_are_counted_once_and_named() -> None:
    tally = Tally()
    assert tally.left_out([("a.wav", "empty"), ("b.wav", "no audio")]) == [("a.wav", "empty"), ("b.wav", "no audio")]
    assert tally.left_out([("b.wav", "no audio"), ("c.wav", "empty"), ("c.wav", "empty")]) == [("c.wav", "empty")]
    assert tally.numbers()[BAD] == 3
    assert tally.left_out([]) == []
    assert tally.numbers()[BAD] == 3  # in all


def test_the_bar_is_one_line_on_a_terminal_and_nothing_elsewhere() -> None:
    numbers = {
        "loss/mel": 1.234,
        "loss/complex_stft": 0.5,
        "loss/gradient": 7.0,
        SPEED: 3.21,
        REAL_TIME: 38.5,
        USE: 0.611,
    }
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
        assert "3.21 steps/s  38 × real time  mel 1.23 complex_stft 0.50  codebooks 61% used" in last
        assert "gradient" not in last


def test_the_line_tells_of_trouble_alone() -> None:
    assert summary({}) == ""
    assert summary({WAITING: 0.04, BAD: 0, "loss/mel": 1}) == "mel 1.00"
    assert summary({SPEED: 1, REAL_TIME: 9, BITS: 4.567}) == "1.00 steps/s  9 × real time  4.57 bits per code"
    assert summary({WAITING: 0.07, BAD: 2}) == "7% waiting for data  2 bad files"


def test_perplexity_is_the_number_of_equally_used_entries() -> None:
    codes = torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5], [-1, -1, -1, -1]], [[0, 1, 2, 3], [-1] * 4, [-1] * 4]])
    counts = usage(codes, 8)
    assert counts.tolist() == [[2, 2, 2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 4, 0, 0], [0] * 8]
    assert perplexity(counts).tolist() == pytest.approx([4, 1, 1])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert float(perplexity(usage(torch.tensor([[[0, 0, 0, 1]]]), 2))) == pytest.approx(math.exp(entropy))


def test_without_tensorboard_there_is_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said: list[str] = []
    with Record(tmp_path, report=said.append) as record:
        record.numbers(1, {"loss/mel": 1.5})
        record.clips(1, "original", torch.zeros(1, 1, 2000), 8000)
    assert rows(tmp_path) == [["1", "loss/mel", "1.5"]]
    assert [path.name for path in tmp_path.iterdir()] == ["record.csv"]
    (line,) = said
    assert "pip install 'codec[train]'" in line


def test_the_table_is_read_in_a_few_lines(tmp_path: Path) -> None:
    with Record(tmp_path) as record:
        record.numbers(1, {"loss/mel": 1.5, "rate": 0.1})
        record.numbers(2, {"loss/mel": 1.25})
    curves = defaultdict(list)
    with (tmp_path / "record.csv").open() as file:
        for row in csv.DictReader(file):
            curves[row["name"]].append((int(row["step"]), float(row["value"])))
    assert curves == {"loss/mel": [(1, 1.5), (2, 1.25)], "rate": [(1, 0.1)]}
