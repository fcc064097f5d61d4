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
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from textwrap import indent
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

import librosa
import numpy as np
import torch
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from codec.codes import entropy
from codec.frames import real_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

STEPS_PER_SECOND = "speed/steps per second"
REAL_TIME = "speed/audio seconds per second"
DATA_WAIT = "speed/share waiting for data"
CODEBOOK_USE = "perplexity/mean relative to the codebook size"
BITS_PER_CODE = "bits per code"
BITS = f"{BITS_PER_CODE}/mean"
BAD_FILES = "data/bad files"
LINE_LOSSES = ("mel", "noise_to_mask", "feature_matching", "discriminator")  # in the line; the files have all losses

BANDS = 128
"""Mel bands of a spectrogram."""
FRAME_SECONDS = 0.005
RANGE = 80.0
"""dB from the darkest to the brightest color."""
FAINTEST = -20.0
"""Lowest level in dB of the brightest color, so that silence is dark."""
PITCHES = (500, 1000, 2000, 4000, 8000, 16000)
"""Labels of the frequency axis, Hz."""

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
        self.nonzero: set[str] = set()
        if not enabled:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.events = open_events(folder / "events", step)
        if self.events is None:
            report(
                "TensorBoard is not installed, metrics.csv only: pip install '.[train]' in the project's folder for "
                "curves and audio"
            )
        elif find_spec("matplotlib") is None:
            report(
                "Matplotlib is not installed, no spectrograms: pip install '.[train]' in the project's folder for them"
            )
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
        """Write scalars by name, "group/name". A curve begins with its first value that is not 0."""
        if not self.enabled:
            return
        self.nonzero |= {name for name, value in metrics.items() if value}
        for name, value in metrics.items():
            if self.events is not None and name in self.nonzero:
                self.events.add_scalar(name, value, step)
            self.rows.writerow([step, name, f"{value:.6g}"])
        self.table.flush()

    def log_text(self, step: int, name: str, text: str) -> None:
        """Write lines of text, which TensorBoard shows as they are."""
        if self.events is not None:
            self.events.add_text(name, indent(text, " " * 4), step)

    def log_audio(
        self,
        step: int,
        name: str,
        clips: Iterable[Tensor],
        sample_rate: int,
        *,
        originals: Iterable[Tensor] = (),
        captions: Iterable[str] = (),
    ) -> None:
        """Write clips [channels, time] and their spectrograms, each below that of its original.

        Empty clips are left out; `captions` are parts of the tags. Channels are averaged, because TensorBoard plays
        one. Audio and spectrogram have tags of their own, because TensorBoard shows neither if they share one.
        """
        if self.events is None:
            return
        for number, (clip, original, caption) in enumerate(zip_longest(clips, originals, captions), 1):
            if not clip.numel():
                continue
            panels = {name: mono(clip)} if original is None else {"original": mono(original), name: mono(clip)}
            tag = f"{name}/clip {number}" + (f", {caption}" if caption else "")
            self.events.add_audio(f"audio, {tag}", panels[name].clamp(-1, 1), step, sample_rate)
            image = draw_spectrograms(panels, sample_rate)
            if image is not None:
                self.events.add_image(f"spectrogram, {tag}", image, step, dataformats="HWC")

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


def mono(clip: Tensor) -> Tensor:
    """The average [time] of the channels of a clip [channels, time]."""
    return clip.mean(dim=0).cpu().float()


def draw_spectrograms(panels: Mapping[str, Tensor], sample_rate: int) -> np.ndarray | None:
    """Spectrograms of clips [time] by name, one below the other, as an image [height, width, 3] of bytes.

    None if Matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError:
        return None
    canvas: Any = FigureCanvasAgg(spectrogram_figure(panels, sample_rate))
    canvas.draw()
    image: np.ndarray = np.asarray(canvas.buffer_rgba())[..., :3]
    return image


def spectrogram_figure(panels: Mapping[str, Tensor], sample_rate: int) -> Figure:
    """Mel spectrograms of clips [time] by name, one below the other.

    Colors are relative to the loudest of the first clip, so that the other clips can be compared with it.
    """
    from matplotlib.figure import Figure

    spectrograms = [mel_decibels(clip, sample_rate) for clip in panels.values()]
    loudest = max(float(spectrograms[0].max()), FAINTEST)
    bands = librosa.mel_frequencies(BANDS + 2, fmax=sample_rate / 2)
    ticks = [pitch for pitch in PITCHES if pitch < 0.45 * sample_rate]
    height = 0.9 + 2.6 * len(panels)  # inches
    bottom, top = 0.5 / height, 1 - 0.35 / height  # fixed, because a layout of its own takes twice as long
    figure = Figure(figsize=(10, height), dpi=100)
    places = {"left": 0.07, "right": 0.88, "bottom": bottom, "top": top, "hspace": 0.18}
    axes = figure.subplots(len(panels), sharex=True, squeeze=False, gridspec_kw=places)[:, 0]
    for axis, name, decibels in zip(axes, panels, spectrograms, strict=True):
        last = (decibels.shape[1] - 0.5) * FRAME_SECONDS
        colors = axis.imshow(
            decibels - loudest,
            origin="lower",
            aspect="auto",
            interpolation="nearest",
            cmap="magma",
            vmin=-RANGE,
            vmax=0,
            extent=(-0.5 * FRAME_SECONDS, last, -0.5, BANDS - 0.5),
        )
        axis.set_title(name, loc="left")
        axis.set_ylabel("frequency (kHz)")
        axis.set_yticks(np.interp(ticks, bands, np.arange(-1, BANDS + 1)), [f"{pitch / 1000:g}" for pitch in ticks])
    axes[-1].set_xlabel("time (s)")
    scale = figure.add_axes((0.9, bottom, 0.02, top - bottom))
    figure.colorbar(colors, cax=scale, label=f"dB relative to the loudest of: {next(iter(panels))}")
    return figure


def mel_decibels(clip: Tensor, sample_rate: int) -> np.ndarray:
    """Mel spectrum [bands, frames] of a clip [time] in dB; windows of 40 ms, 5 ms apart."""
    window = sample_rate // 25
    size = 4 * window  # zero-padded, so that every band has a bin
    hann = torch.hann_window(window)
    hop = round(FRAME_SECONDS * sample_rate)
    spectrum = torch.stft(clip, size, hop, window, window=hann, pad_mode="constant", return_complex=True)
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
                metrics |= per_codebook("perplexity", perplexities)
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


def per_codebook(group: str, values: Iterable[T]) -> dict[str, T]:
    """The metrics of a group, one for each codebook."""
    return {f"{group}/codebook {codebook}": value for codebook, value in enumerate(values)}


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
        parts.append(f"{metrics[STEPS_PER_SECOND]:.2f} steps/s  {real_time(metrics[REAL_TIME])}")
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
