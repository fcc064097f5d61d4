"""training/logger.py: what is printed, and what can be read from the folder of a run."""

import csv
import io
import json
import math
import sys
import threading
import time as clock
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from rich.console import Console
from rich.text import Text
from tensorboard import program  # type: ignore[import-untyped]

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
    spectrogram_figure,
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


@pytest.fixture
def fetch(tmp_path: Path) -> Iterator[Callable[[str], bytes]]:
    """What TensorBoard's own plugins answer about the runs below `tmp_path`; to call once all is logged."""
    logging = pytest.importorskip("absl.logging")
    verbosity = logging.get_verbosity()
    board = program.TensorBoard()
    board.configure(argv=[None, f"--logdir={tmp_path}", "--port=0", "--host=127.0.0.1", "--load_fast=false"])
    server: list[Any] = []

    def get(address: str) -> bytes:
        if not server:
            server.append(board._make_server())
            threading.Thread(target=server[0].serve_forever, daemon=True).start()
        with urlopen(server[0].get_url() + "data/plugin/" + address, timeout=20) as answer:
            content: bytes = answer.read()
            return content

    yield get
    for one in server:
        one.shutdown()
        one.server_close()
    logging.set_verbosity(verbosity)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of packages that TensorBoard imports
def test_tensorboard_plays_the_audio_and_shows_the_spectrograms(tmp_path: Path, fetch: Callable[[str], bytes]) -> None:
    """By the addresses that its page fetches: first the tags, then the data of each."""
    time_ = torch.arange(16000) / 8000
    low, high = (0.5 * torch.sin(2 * torch.pi * pitch * time_) for pitch in (1000, 3000))
    with Logger(tmp_path / "run") as logger:
        logger.log_text(0, "recipe", 'name = "night"\nmodel.hop = 80')
        logger.log_audio(5, "original", torch.stack([low, high])[:, None], 8000)
        logger.log_metrics(5, {"loss/mel": 1.5, "loss/codebook": 0.0})

    def tags(plugin: str) -> list[str]:
        (run,) = json.loads(fetch(f"{plugin}/tags")).values()
        return list(run)

    assert tags("audio") == ["audio, original/clip 1", "audio, original/clip 2"]
    query = urlencode({"run": "run/events", "tag": "audio, original/clip 2", "sample": 0})
    (entry,) = json.loads(fetch(f"audio/audio?{query}"))
    assert entry["step"] == 5
    assert entry["contentType"] == "audio/wav"
    played, rate = soundfile.read(io.BytesIO(fetch(f"audio/individualAudio?{entry['query']}")))
    assert rate == 8000
    np.testing.assert_allclose(played, high.numpy(), atol=1e-4)

    assert tags("images") == ["spectrogram, original/clip 1", "spectrogram, original/clip 2"]
    query = urlencode({"run": "run/events", "tag": "spectrogram, original/clip 1", "sample": 0})
    (entry,) = json.loads(fetch(f"images/images?{query}"))
    assert entry["step"] == 5
    picture = np.asarray(Image.open(io.BytesIO(fetch(f"images/individualImage?{entry['query']}"))).convert("RGB"))
    expected = draw_spectrograms({"original": low}, 8000)
    assert expected is not None
    assert np.array_equal(picture, expected)

    query = urlencode({"run": "run/events", "tag": "recipe/text_summary"})
    (entry,) = json.loads(fetch(f"text/text?{query}"))
    assert "<pre><code>name = &quot;night&quot;\nmodel.hop = 80" in entry["text"].replace('"', "&quot;")
    assert tags("scalars") == ["loss/mel"]  # a curve begins with its first value that is not 0


def test_curves_begin_with_their_first_value(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        for step, value in enumerate((0.0, 0.0, 2.0, 0.0)):
            logger.log_metrics(step, {"data/bad files": value, "loss/codebook": 0.0})
    found = read_events(tmp_path)
    assert found.Tags()["scalars"] == ["data/bad files"]
    assert [(event.step, event.value) for event in found.Scalars("data/bad files")] == [(2, 2.0), (3, 0.0)]
    assert len(read_metrics(tmp_path)) == 8


@pytest.mark.slow
def test_a_spectrogram_has_axes_and_a_scale() -> None:
    time_ = torch.arange(8000) / 8000
    tone = torch.sin(2 * torch.pi * 1000 * time_)
    click = torch.zeros(8000)
    click[4000] = 1
    figure = spectrogram_figure({"original": tone, "decoded": 0.01 * tone + click}, 8000)
    above, below, scale = figure.axes
    assert (above.get_title(loc="left"), below.get_title(loc="left")) == ("original", "decoded")
    assert (below.get_xlabel(), below.get_ylabel()) == ("time (s)", "frequency (kHz)")
    assert scale.get_ylabel() == "dB relative to the loudest of: original"
    labels = {label.get_text(): tick for label, tick in zip(above.get_yticklabels(), above.get_yticks(), strict=True)}
    assert list(labels) == ["0.5", "1", "2"]
    (first,), (second,) = above.get_images(), below.get_images()
    assert first.get_clim() == second.get_clim() == (-80, 0)
    tones, clicks = np.asarray(first.get_array()), np.asarray(second.get_array())
    assert tones.max() == pytest.approx(0, abs=1e-3)
    loudest = int(tones[:, 100].argmax())
    assert abs(loudest - labels["1"]) < 1
    assert clicks[loudest, 20] == pytest.approx(-40, abs=0.5)
    left, right, *_ = second.get_extent()
    frame = int(clicks[-20:].mean(axis=0).argmax())
    assert left + (frame + 0.5) * (right - left) / clicks.shape[1] == pytest.approx(0.5)


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


@pytest.mark.slow
def test_clips_are_drawn_below_their_originals(tmp_path: Path) -> None:
    noise = 0.1 * torch.randn(1, 1, 8000, generator=torch.Generator().manual_seed(0))
    with Logger(tmp_path) as logger:
        logger.log_audio(1, "decoded", 0.01 * noise, 8000, originals=noise, captions=["seven"])
    found = read_events(tmp_path)
    assert found.Tags()["images"] == ["spectrogram, decoded/clip 1, seven"]
    content = found.Images("spectrogram, decoded/clip 1, seven")[0].encoded_image_string
    expected = draw_spectrograms({"original": noise[0, 0], "decoded": 0.01 * noise[0, 0]}, 8000)
    assert expected is not None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")), expected)


@pytest.mark.slow
def test_channels_are_averaged_and_empty_clips_left_out(tmp_path: Path) -> None:
    both = torch.stack([torch.ones(2000), torch.zeros(2000)])
    with Logger(tmp_path) as logger:
        logger.log_audio(1, "generated", [torch.zeros(1, 0), both], 8000)
    (tag,) = read_events(tmp_path).Tags()["audio"]
    assert tag == "audio, generated/clip 2"
    played, _ = soundfile.read(io.BytesIO(read_events(tmp_path).Audio(tag)[0].encoded_audio_string))
    assert np.unique(played).tolist() == pytest.approx([0.5], abs=1e-4)


@pytest.mark.slow
def test_silence_is_dark_and_clipping_is_drawn_too(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log_audio(0, "edge", torch.stack([torch.zeros(1, 2000), torch.full((1, 2000), 3.0)]), 8000)
    assert len(read_events(tmp_path).Tags()["images"]) == 2
    (image,) = spectrogram_figure({"silence": torch.zeros(2000)}, 8000).axes[0].get_images()
    assert np.asarray(image.get_array()).max() <= -80


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
    assert [numbers[f"perplexity/codebook {codebook}"] for codebook in range(3)] == pytest.approx(
        [2, 2, 2]
    )  # over both steps
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
    assert "pip install '.[train]'" in line


def test_without_matplotlib_there_is_audio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("codec.training.logger.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    said: list[str] = []
    with Logger(tmp_path, report=said.append) as logger:
        logger.log_audio(1, "original", torch.zeros(1, 1, 2000), 8000)
    tags = read_events(tmp_path).Tags()
    assert (tags["audio"], tags["images"]) == (["audio, original/clip 1"], [])
    assert said == [
        "Matplotlib is not installed, no spectrograms: pip install '.[train]' in the project's folder for them"
    ]


def test_the_table_is_read_in_a_few_lines(tmp_path: Path) -> None:
    with Logger(tmp_path) as logger:
        logger.log_metrics(1, {"loss/mel": 1.5, "lr/model": 0.1})
        logger.log_metrics(2, {"loss/mel": 1.25})
    curves = defaultdict(list)
    with (tmp_path / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            curves[row["name"]].append((int(row["step"]), float(row["value"])))
    assert curves == {"loss/mel": [(1, 1.5), (2, 1.25)], "lr/model": [(1, 0.1)]}
