"""Log of a training run: a line on stderr, TensorBoard events, and the same metrics as CSV.

`metrics.csv` has one row per value, because metrics may be added or missing at any step. Its curves, by name:

    curves = collections.defaultdict(list)
    for row in csv.DictReader(open("runs/mine/metrics.csv")):
        curves[row["name"]].append((int(row["step"]), float(row["value"])))
"""

from __future__ import annotations

import csv
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

import librosa
import numpy as np
import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from codec.codes import entropy
from codec.nn.shapes import Audio

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEPS_PER_SECOND = "speed/steps per second"
REAL_TIME = "speed/audio seconds per second"
DATA_WAIT = "speed/share waiting for data"
CODEBOOK_USE = "perplexity/mean share of a codebook"
BITS = "bits/mean"
BAD_FILES = "data/bad files"
LINE_LOSSES = ("mel", "noise_to_mask", "feature_matching", "discriminator")  # in the line; the files have all losses

BANDS = 128
"""Rows of a spectrogram; each is two pixels high."""
RANGE = 80.0
"""dB from black to the lightest color."""
COLORS = np.array([(0, 0, 0), (70, 20, 110), (190, 50, 90), (250, 150, 20), (255, 255, 200)])

T = TypeVar("T")


class FileNote(NamedTuple):
    """A line about a file of the training data."""

    file: str
    text: str
    left_out: bool = False
    """Whether it cannot be read."""


class Logger:
    """Writes metrics and audio below a run's folder; a run resumed from `step` drops what was logged after it.

    Without TensorBoard only the table is written, and `report` gets a line that says so. A logger that is not
    `enabled`, as in every process but the first, writes nothing.
    """

    def __init__(
        self, folder: Path, step: int = 0, *, report: Callable[[str], None] = lambda _: None, enabled: bool = True
    ) -> None:
        self.enabled = enabled
        self.events: SummaryWriter | None = None
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.events = open_events(folder / "events", step)
        if self.events is None:
            report("TensorBoard is not installed, metrics.csv only: pip install 'codec[train]' for curves and audio")
        path = folder / "metrics.csv"
        before = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        self.table = path.open("w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.table, lineterminator="\n")
        self.rows.writerow(["step", "name", "value"])
        cells = (line.split(",") for line in before)  # not csv.reader, because a stray quote hides the lines after it
        kept = (row for row in cells if len(row) == 3 and row[0].isdecimal())
        self.rows.writerows(row for row in kept if int(row[0]) <= step)
        self.table.flush()

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write scalars by name, "group/name"."""
        if not self.enabled:
            return
        for name, value in metrics.items():
            if self.events is not None:
                self.events.add_scalar(name, value, step)
            self.rows.writerow([step, name, f"{value:.6g}"])
        self.table.flush()

    def log_audio(self, step: int, name: str, audio: Audio, sample_rate: int, original: Audio | None = None) -> None:
        """Write audio [batch, 1, time] and its spectrograms, each below that of its `original`."""
        if self.events is None:
            return
        for number, clip in enumerate(audio[:, 0].cpu().float()):
            self.events.add_audio(f"{name}/{number}", clip.clamp(-1, 1), step, sample_rate)
            panels = {} if original is None else {"original": original[number, 0].cpu().float()}
            image = draw_spectrograms({**panels, name: clip}, sample_rate)
            self.events.add_image(f"{name}/{number}", image, step, dataformats="HWC")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.events is not None:
            self.events.close()
        if self.enabled:
            self.table.close()


def open_events(folder: Path, step: int) -> SummaryWriter | None:
    """A TensorBoard writer that continues after `step`; None if TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def draw_spectrograms(panels: Mapping[str, Tensor], sample_rate: int) -> np.ndarray:
    """Spectrograms of clips [time] by name, one below the other, as an image [height, width, 3].

    Mel frequencies from below, 5 ms per frame, two pixels each; colors from 80 dB below the loudest of the first clip,
    so that the other clips can be compared with it.
    """
    from PIL import Image, ImageDraw  # comes with TensorBoard

    spectrograms = [mel_decibels(clip, sample_rate) for clip in panels.values()]
    shares = (np.concatenate([s[::-1] for s in spectrograms]) - spectrograms[0].max()) / RANGE + 1
    steps = np.linspace(0, 1, len(COLORS))
    colors = np.stack([np.interp(shares, steps, channel) for channel in COLORS.T], axis=-1).astype(np.uint8)
    image = Image.fromarray(colors.repeat(2, axis=0).repeat(2, axis=1))
    draw = ImageDraw.Draw(image)
    hertz = librosa.mel_frequencies(BANDS + 2, fmax=sample_rate / 2)
    for number, name in enumerate(panels):
        bottom = 2 * BANDS * (number + 1)
        draw.text((image.width - 4, bottom - 2 * BANDS + 2), name, fill="white", anchor="ra")
        for pitch in (250, 500, 1000, 2000, 4000, 8000, 16000):
            if pitch < 0.45 * sample_rate:
                row = bottom - 2 * float(np.interp(pitch, hertz, np.arange(-1, BANDS + 1)) + 0.5)
                draw.line([(0, row), (6, row)], fill="white")
                draw.text((9, row), f"{pitch / 1000:g} kHz", fill="white", anchor="lm")
        if number:
            draw.line([(0, bottom - 2 * BANDS), (image.width, bottom - 2 * BANDS)], fill="white")
    return np.asarray(image)


def mel_decibels(clip: Tensor, sample_rate: int) -> np.ndarray:
    """Mel spectrum [bands, frames] of a clip [time] in dB; windows of 40 ms, 5 ms apart."""
    window = sample_rate // 25
    size = 4 * window  # zero-padded, so that every band has a bin
    hann = torch.hann_window(window)
    spectrum = torch.stft(clip, size, sample_rate // 200, window, window=hann, pad_mode="constant", return_complex=True)
    filters = torch.from_numpy(librosa.filters.mel(sr=sample_rate, n_fft=size, n_mels=BANDS))
    power = filters @ torch.view_as_real(spectrum).square().sum(dim=-1)
    decibels: np.ndarray = 10 * power.clamp(min=1e-10).log10().numpy()
    return decibels


class Meter:
    """Averages the metrics of the steps between two log lines; nothing waits for the device until `compute`.

    A step trains on `seconds` of audio. `codebook_size` scales the perplexity of codebooks to a share.
    """

    def __init__(self, seconds: float = 0.0, codebook_size: int = 1) -> None:
        self.seconds = seconds
        self.codebook_size = codebook_size
        self.steps: list[Mapping[str, Tensor]] = []
        self.notes: dict[str, FileNote] = {}
        self.waited = 0.0
        self.started = clock.perf_counter()

    def time_data(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the batches, and count the time until each arrives as waiting for data."""
        before = clock.perf_counter()
        for batch in batches:
            self.waited += clock.perf_counter() - before
            yield batch
            before = clock.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude validation and the like from the speed."""
        before = clock.perf_counter()
        yield
        self.started += clock.perf_counter() - before

    def add(self, metrics: Mapping[str, Tensor]) -> None:
        """Add the metrics of one step, with the `code_counts` of the codebooks if there are any."""
        self.steps.append(metrics)

    def add_notes(self, notes: Iterable[FileNote]) -> list[str]:
        """Add notes on files; returns the lines to print, of files that had no note yet."""
        new = {note.file: note for note in notes if note.file not in self.notes}
        self.notes |= new
        return [f"left out: {note.text}" if note.left_out else note.text for note in new.values()]

    def compute(self) -> dict[str, float]:
        """Means over the steps since the last call, and the speed, by the names that they are logged under.

        A metric whose name has a group ("grad_norm/model") keeps its name; others are losses. Perplexities are of all
        codes of these steps together, because a step alone has too few codes to use every entry.
        """
        metrics: dict[str, float] = {}
        for name in dict.fromkeys(name for step in self.steps for name in step):
            mean = torch.stack([step[name] for step in self.steps if name in step]).mean(dim=0)
            if name == "code_counts":
                perplexities = (2 ** entropy(mean)).tolist()
                metrics |= {f"perplexity/{codebook}": value for codebook, value in enumerate(perplexities)}
                metrics[CODEBOOK_USE] = sum(perplexities) / len(perplexities) / self.codebook_size
            else:
                metrics[name if "/" in name else f"loss/{name}"] = float(mean)
        now = clock.perf_counter()  # after the device has finished, because the means have been read
        metrics[STEPS_PER_SECOND] = len(self.steps) / (now - self.started)
        metrics[REAL_TIME] = metrics[STEPS_PER_SECOND] * self.seconds
        metrics[DATA_WAIT] = self.waited / (now - self.started)
        metrics[BAD_FILES] = sum(note.left_out for note in self.notes.values())
        self.steps, self.waited, self.started = [], 0.0, now
        return metrics


class StatusLine(Progress):
    """A progress bar, and below it the latest metrics, which wrap where the terminal is narrow."""

    metrics = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.metrics:
            yield Text(self.metrics)


@contextmanager
def progress(
    console: Console, name: str, first: int, last: int
) -> Iterator[Callable[[int, Mapping[str, float] | None], None]]:
    """Yield a function to call after each step with the steps done and, if they were just computed, the metrics.

    A terminal shows a status line; a file or a pipe gets a plain line for each set of metrics.
    """
    columns = BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn()
    with StatusLine(TextColumn(name), *columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=last, completed=first)

        def show(done: int, metrics: Mapping[str, float] | None) -> None:
            if metrics is not None:
                bar.metrics = summary(metrics)
                if not console.is_terminal:
                    console.print(f"step {done}/{last}: {bar.metrics}")
            bar.update(task, completed=done)

        yield show


def summary(metrics: Mapping[str, float]) -> str:
    """The metrics to watch: mel 1.23 noise_to_mask 0.50  codebooks 61% used  2.31 steps/s  28 × real time."""
    losses = [f"{key} {metrics[f'loss/{key}']:.2f}" for key in LINE_LOSSES if f"loss/{key}" in metrics]
    parts = [" ".join(losses)] if losses else []
    if BITS in metrics:
        parts.append(f"{metrics[BITS]:.2f} bits per code")
    if CODEBOOK_USE in metrics:
        parts.append(f"codebooks {metrics[CODEBOOK_USE]:.0%} used")
    if STEPS_PER_SECOND in metrics:
        parts.append(f"{metrics[STEPS_PER_SECOND]:.2f} steps/s  {metrics[REAL_TIME]:.0f} × real time")
    if metrics.get(DATA_WAIT, 0) >= 0.05:
        parts.append(f"{metrics[DATA_WAIT]:.0%} waiting for data")
    if metrics.get(BAD_FILES):
        parts.append(f"{metrics[BAD_FILES]:.0f} bad files")
    return "  ".join(parts)


def count_codes(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each entry occurs [codebooks, codebook_size] in codes [batch, codebooks, frames]; -1 does not count."""
    num_codebooks = codes.shape[1]
    counts = torch.zeros(num_codebooks, codebook_size + 1, device=codes.device)
    rows = codes.transpose(0, 1).flatten(1) % (codebook_size + 1)  # -1 is last
    return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))[:, :-1].contiguous()
