"""training/logger.py: what is printed, and what can be read from the folder of a run."""

import csv
import io
import math
import sys
import time as clock
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from rich.text import Text

from codec.codes import entropy
from codec.training.logger import (
    BAD_FILES,
    BANDS,
    BITS,
    CODEBOOK_USE,
    DATA_WAIT,
    REAL_TIME,
    STEPS_PER_SECOND,
    FileNote,
    Logger,
    Meter,
    count_codes,
    draw_spectrograms,
    mel_decibels,
    progress,
    summary,
)
from tests.helpers.training import read_events, read_metrics


def test_metrics_go_to_tensorboard_and_to_the_table(tmp_path: Path) -> None:
    with Logger(tmp_path / "run") as logger:
        logger.log_metrics(1, {"loss/mel": 1.5, "lr/model": 1e-3})
        logger.log_metrics(2, {"loss/mel": 1.25})
    assert read_metrics(tmp_path / "run") == [
        ["1", "loss/mel", "1.5"],
        ["1", "lr/model", "0.001"],
        ["2", "loss/mel", "1.25"],
    ]
    found = read_events(tmp_path / "run")
    assert found.Tags()["scalars"] == ["loss/mel", "lr/model"]
    assert [(event.step, event.value) for event in found.Scalars("loss/mel")] == [(1, 1.5), (2, 1.25)]


def test_a_resumed_log_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        for step in (1, 2, 3):
            logger.log_metrics(step, {"loss/mel": step})
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4,loss")  # as a power cut leaves it
    clock.sleep(1.1)  # TensorBoard orders event files by name, which begins with the second of their creation
    with Logger(tmp_path, 2) as logger:
        logger.log_metrics(3, {"loss/mel": 30})
    expected = [(1, 1.0), (2, 2.0), (3, 30.0)]
    assert [(int(step), float(value)) for step, _, value in read_metrics(tmp_path)] == expected
    assert [(event.step, event.value) for event in read_events(tmp_path).Scalars("loss/mel")] == expected


def test_a_damaged_table_keeps_its_whole_rows(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log_metrics(1, {"loss/mel": 1})
    damage = b'1,loss/\xff\xfe,2\n"1,loss,3\n\xc2\xb2,loss,4\n1,' + b"x" * 200_000 + b"\n1,loss/noise,5\n"
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(damage)
    with Logger(tmp_path, 1) as logger:
        logger.log_metrics(2, {"loss/mel": 6})
    mel = "loss/mel"
    expected = [["1", mel, "1"], ["1", "loss/\ufffd\ufffd", "2"], ["1", "loss/noise", "5"], ["2", mel, "6"]]
    assert read_metrics(tmp_path) == expected


def test_a_new_run_has_a_new_table(tmp_path: Path) -> None:
    for _ in range(2):
        with Logger(tmp_path) as logger:
            logger.log_metrics(1, {"loss/mel": 1})
    assert len(read_metrics(tmp_path)) == 1


def test_audio_and_spectrograms(tmp_path: Path) -> None:
    time_ = torch.arange(16000) / 8000
    low, high = (0.5 * torch.sin(2 * torch.pi * pitch * time_) for pitch in (1000, 3000))
    step = torch.where(time_ < 1, low, high)  # 1 kHz, then 3 kHz
    with Logger(tmp_path) as logger:
        logger.log_audio(5, "original", torch.stack([low, step])[:, None], 8000)
    found = read_events(tmp_path)
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
        levels = mel_decibels(torch.sin(2 * torch.pi * pitch * time_), 8000)
        assert levels.shape == (BANDS, 201)
        # by the formula of Slaney's mel scale, which is linear up to 1 kHz and logarithmic above it
        mel = [hz / (200 / 3) if hz < 1000 else 15 + math.log(hz / 1000) / (math.log(6.4) / 27) for hz in (pitch, 4000)]
        assert abs(levels[:, 100].argmax() - (mel[0] / mel[1] * (BANDS + 1) - 1)) < 1
    click = torch.zeros(8000)
    click[4000] = 1
    assert mel_decibels(click, 8000).mean(axis=0).argmax() == 100
    assert mel_decibels(torch.zeros(10), 8000).shape == (BANDS, 1)


def test_decoded_audio_is_drawn_below_the_original_on_its_scale(tmp_path: Path) -> None:
    noise = 0.1 * torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    with Logger(tmp_path) as logger:
        logger.log_audio(1, "3 codebooks", 0.01 * noise, 8000, original=noise)
    found = read_events(tmp_path)
    assert found.Tags()["images"] == ["3 codebooks/0"]
    image = np.asarray(Image.open(io.BytesIO(found.Images("3 codebooks/0")[0].encoded_image_string)).convert("L"))
    assert image.shape == (512, 402)
    above, below = (half[40:, 100:300].astype(float).mean() for half in (image[:256], image[256:]))
    assert above - below > 50  # 40 dB of 80
    alone = draw_spectrograms({"original": noise[0, 0]}, 8000)
    both = draw_spectrograms({"original": noise[0, 0], "3 codebooks": 0.01 * noise[0, 0]}, 8000)
    assert (both[:250] == alone[:250]).all()
    same = draw_spectrograms({"original": noise[0, 0], "3 codebooks": noise[0, 0]}, 8000)[:, 100:300]
    assert (same[30:250] == same[256 + 30 : 256 + 250]).all()


def test_silence_and_clipping_are_drawn_too(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log_audio(0, "edge", torch.stack([torch.zeros(1, 2000), torch.full((1, 2000), 3.0)]), 8000)
    assert len(read_events(tmp_path).Tags()["images"]) == 2


def test_means_over_steps() -> None:
    meter = Meter(codebook_size=20)  # of 3 codebooks
    one = torch.eye(20)[:3] * 4
    meter.add({"mel": torch.tensor(1.0), "grad_norm/model": torch.tensor(2.0), "code_counts": one})
    meter.add({"mel": torch.tensor(3.0), "grad_norm/model": torch.tensor(4.0), "code_counts": one.roll(1, 1)})
    meter.add({"mel": torch.tensor(5.0), "feature_matching": torch.tensor(0.5)})
    numbers = meter.compute()
    assert numbers["loss/mel"] == 3
    assert numbers["loss/feature_matching"] == 0.5
    assert numbers["grad_norm/model"] == 3
    assert [numbers[f"perplexity/{codebook}"] for codebook in range(3)] == pytest.approx([2, 2, 2])  # over both steps
    assert numbers[CODEBOOK_USE] == pytest.approx(0.1)
    meter.add({"mel": torch.tensor(7.0)})
    assert meter.compute()["loss/mel"] == 7


def test_speed_and_data_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("codec.training.logger.clock.perf_counter", lambda: now[0])

    def loading() -> Iterator[int]:
        for number in range(4):
            now[0] += 0.1
            yield number

    meter = Meter(3 * 0.15)
    for _ in meter.time_data(loading()):
        now[0] += 0.3
        meter.add({"mel": torch.tensor(1.0)})
        with meter.paused():
            now[0] += 5
    numbers = meter.compute()
    assert numbers[STEPS_PER_SECOND] == pytest.approx(4 / 1.6)
    assert numbers[REAL_TIME] == pytest.approx(4 / 1.6 * 3 * 0.15)
    assert numbers[DATA_WAIT] == pytest.approx(0.25)
    now[0] += 2
    meter.add({"mel": torch.tensor(1.0)})
    assert (meter.compute()[STEPS_PER_SECOND], meter.waited) == (0.5, 0)


def test_notes_on_files_are_printed_once_and_bad_files_are_counted() -> None:
    meter = Meter()
    empty, text = FileNote("a.wav", "empty", left_out=True), FileNote("b.wav", "no audio", left_out=True)
    assert meter.add_notes([empty, text]) == ["left out: empty", "left out: no audio"]
    again = FileNote("c.wav", "empty", left_out=True)
    assert meter.add_notes([text, again, again, FileNote("d.wav", "cancels")]) == ["left out: empty", "cancels"]
    assert meter.compute()[BAD_FILES] == 3
    assert meter.add_notes([]) == []
    assert meter.compute()[BAD_FILES] == 3  # in all


METRICS = {
    "loss/mel": 1.234,
    "loss/noise_to_mask": 0.5,
    "loss/gradient": 7.0,
    STEPS_PER_SECOND: 3.21,
    REAL_TIME: 38.5,
    CODEBOOK_USE: 0.611,
}
LINE = "mel 1.23 noise_to_mask 0.50  codebooks 61% used  3.21 steps/s  38 × real time"


def test_a_terminal_shows_a_bar_and_the_latest_metrics() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress(console, "night", 2, 8) as show:
        show(3, None)
        show(4, METRICS)
    bar, line = last_screen(console)
    assert "night" in bar
    assert "4/8" in bar
    assert line == LINE


def test_losses_are_not_cut_off_at_80_columns() -> None:
    names = ("mel", "noise_to_mask", "feature_matching", "discriminator")
    metrics = METRICS | {f"loss/{name}": 1.25 for name in names}
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with progress(console, "general-24k", 0, 100_000) as show:
        show(50_000, metrics)
    bar, *lines = last_screen(console)
    assert "50000/100000" in bar
    assert lines[0].startswith(" ".join(f"{name} 1.25" for name in names))
    assert "3.21 steps/s" in " ".join(lines)


def last_screen(console: Console) -> list[str]:
    """The lines that remain on a terminal."""
    written = Text.from_ansi(console.file.getvalue()).plain  # type: ignore[attr-defined]
    lines = [line.rstrip() for line in written.splitlines() if line.strip()]
    first = max(number for number, line in enumerate(lines) if "━" in line)
    return lines[first:]


def test_a_pipe_gets_a_line_for_each_set_of_metrics() -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=80, soft_wrap=True)
    with progress(console, "night", 2, 8) as show:
        show(3, None)
        show(4, METRICS)
        show(5, None)
    assert console.file.getvalue() == f"step 4/8: {LINE}\n"  # type: ignore[attr-defined]


def test_the_line_has_losses_first_and_problems_last() -> None:
    assert summary({}) == ""
    assert summary({DATA_WAIT: 0.04, BAD_FILES: 0, "loss/mel": 1}) == "mel 1.00"
    assert (
        summary({STEPS_PER_SECOND: 1, REAL_TIME: 9, BITS: 4.567}) == "4.57 bits per code  1.00 steps/s  9 × real time"
    )
    assert summary({DATA_WAIT: 0.07, BAD_FILES: 2}) == "7% waiting for data  2 bad files"


def test_code_counts_and_entropy() -> None:
    codes = torch.tensor([[[0, 1, 2, 3], [5, 5, 5, 5], [-1, -1, -1, -1]], [[0, 1, 2, 3], [-1] * 4, [-1] * 4]])
    counts = count_codes(codes, 8)
    assert counts.tolist() == [[2, 2, 2, 2, 0, 0, 0, 0], [0, 0, 0, 0, 0, 4, 0, 0], [0] * 8]
    assert entropy(counts).tolist() == pytest.approx([2, 0, 0])
    expected = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert float(entropy(count_codes(torch.tensor([[[0, 0, 0, 1]]]), 2))) == pytest.approx(expected)


def test_without_tensorboard_there_is_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    said: list[str] = []
    with Logger(tmp_path, report=said.append) as logger:
        logger.log_metrics(1, {"loss/mel": 1.5})
        logger.log_audio(1, "original", torch.zeros(1, 1, 2000), 8000)
    assert read_metrics(tmp_path) == [["1", "loss/mel", "1.5"]]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]
    (line,) = said
    assert "pip install 'codec[train]'" in line


def test_the_table_is_read_in_a_few_lines(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log_metrics(1, {"loss/mel": 1.5, "lr/model": 0.1})
        logger.log_metrics(2, {"loss/mel": 1.25})
    curves = defaultdict(list)
    with (tmp_path / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            curves[row["name"]].append((int(row["step"]), float(row["value"])))
    assert curves == {"loss/mel": [(1, 1.5), (2, 1.25)], "lr/model": [(1, 0.1)]}
