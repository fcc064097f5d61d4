"""What a training shows, and what it leaves to look at: TensorBoard events, and the same numbers as CSV.

`record.csv` has one row per number, so that numbers may join or leave at any step. Its curves, by name:

    curves = collections.defaultdict(list)
    for row in csv.DictReader(open("runs/mine/record.csv")):
        curves[row["name"]].append((int(row["step"]), float(row["value"])))
"""

from __future__ import annotations

import csv
import time as clock
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import librosa
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from codec.nn.shapes import Audio

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SPEED = "speed/steps per second"
REAL_TIME = "speed/audio seconds per second"
WAITING = "speed/share waiting for data"
USE = "perplexity/mean share of a codebook"
BITS = "bits/mean"
BAD = "data/bad files"
MAIN_LOSSES = ("mel", "complex_stft", "feature_matching", "discriminator")  # the ones to watch; the record has all

BANDS = 128
"""Rows of a spectrogram; each is two pixels high."""
RANGE = 80.0
"""dB from black to the lightest color."""
COLOURS = np.array([(0, 0, 0), (70, 20, 110), (190, 50, 90), (250, 150, 20), (255, 255, 200)])

T = TypeVar("T")


class Record:
    """Writes below a run's folder; a run that goes on from `step` continues its record, less what came after.

    Without TensorBoard there is the table alone, and `report` is told so.
    """

    def __init__(self, folder: Path, step: int = 0, *, report: Callable[[str], None] = lambda _: None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.events = events(folder / "events", step)
        if self.events is None:
            report("no TensorBoard here, record.csv alone: pip install 'codec[train]' for curves, sounds and pictures")
        path = folder / "record.csv"
        before = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        self.table = path.open("w", newline="", encoding="utf-8")
        self.rows = csv.writer(self.table, lineterminator="\n")
        self.rows.writerow(["step", "name", "value"])
        cells = (line.split(",") for line in before)  # no csv.reader, for which a stray quote hides the lines after it
        kept = (row for row in cells if len(row) == 3 and row[0].isdecimal())
        self.rows.writerows(row for row in kept if int(row[0]) <= step)
        self.table.flush()

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars by name, "group/name"."""
        for name, value in values.items():
            if self.events is not None:
                self.events.add_scalar(name, value, step)
            self.rows.writerow([step, name, f"{value:.6g}"])
        self.table.flush()

    def clips(self, step: int, name: str, audio: Audio, sample_rate: int, original: Audio | None = None) -> None:
        """Audio [batch, 1, time] to listen to, and its spectrograms, each below that of its `original`."""
        if self.events is None:
            return
        for number, clip in enumerate(audio[:, 0].cpu().float()):
            self.events.add_audio(f"{name}/{number}", clip.clamp(-1, 1), step, sample_rate)
            panels = {} if original is None else {"original": original[number, 0].cpu().float()}
            image = picture({**panels, name: clip}, sample_rate)
            self.events.add_image(f"{name}/{number}", image, step, dataformats="HWC")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.events is not None:
            self.events.close()
        self.table.close()


def events(folder: Path, step: int) -> SummaryWriter | None:
    """A writer that goes on after `step`; nothing where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def picture(panels: Mapping[str, Tensor], sample_rate: int) -> np.ndarray:
    """Spectrograms of clips [time] by name, one below the other, as an image [height, width, 3].

    Mel frequencies from below, 5 ms a frame, two pixels each; colors from 80 dB below the loudest of the first clip,
    so that the others can be compared with it.
    """
    from PIL import Image, ImageDraw  # comes with TensorBoard

    spectrograms = [decibels(clip, sample_rate) for clip in panels.values()]
    shares = (np.concatenate([s[::-1] for s in spectrograms]) - spectrograms[0].max()) / RANGE + 1
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(shares, steps, channel) for channel in COLOURS.T], axis=-1).astype(np.uint8)
    image = Image.fromarray(colours.repeat(2, axis=0).repeat(2, axis=1))
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


def decibels(clip: Tensor, sample_rate: int) -> np.ndarray:
    """Mel spectrum [bands, frames] of a clip [time] in dB; windows of 40 ms, 5 ms apart."""
    window = sample_rate // 25
    size = 4 * window  # padded, so that there is a bin in every band
    hann = torch.hann_window(window)
    spectrum = torch.stft(clip, size, sample_rate // 200, window, window=hann, pad_mode="constant", return_complex=True)
    filters = torch.from_numpy(librosa.filters.mel(sr=sample_rate, n_fft=size, n_mels=BANDS))
    power = filters @ torch.view_as_real(spectrum).square().sum(dim=-1)
    decibels: np.ndarray = 10 * power.clamp(min=1e-10).log10().numpy()
    return decibels


class Tally:
    """Gathers what the steps return; nothing waits for the device until `numbers`.

    Each step is of so many `seconds` of audio; `codebook_size` is for the usage of codebooks.
    """

    def __init__(self, seconds: float = 0.0, codebook_size: int = 1) -> None:
        self.seconds = seconds
        self.codebook_size = codebook_size
        self.steps: list[Mapping[str, Tensor]] = []
        self.bad: dict[str, str] = {}
        self.waited = 0.0
        self.began = clock.perf_counter()

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, with the time until each is there counted as waiting for data."""
        before = clock.perf_counter()
        for batch in batches:
            self.waited += clock.perf_counter() - before
            yield batch
            before = clock.perf_counter()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Around what is no training, such as validation: its time does not count."""
        before = clock.perf_counter()
        yield
        self.began += clock.perf_counter() - before

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take in one step's losses, and the `usage` of the codebooks."""
        self.steps.append(losses)

    def left_out(self, bad: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        """Take in the files (name, reason) that could not be read; those that were never given before."""
        new = {name: reason for name, reason in bad if name not in self.bad}
        self.bad |= new
        return list(new.items())

    def numbers(self) -> dict[str, float]:
        """Means over the steps since the last call, by the names they are recorded under, and the speed.

        A loss whose name has a group ("gradient/model") is recorded under that name. Perplexities are of all codes of
        these steps together: a step alone has too few to use every entry.
        """
        numbers: dict[str, float] = {}
        for name in dict.fromkeys(name for losses in self.steps for name in losses):
            mean = torch.stack([losses[name] for losses in self.steps if name in losses]).mean(dim=0)
            if name == "usage":
                num_codebooks = perplexity(mean).tolist()
                numbers |= {f"perplexity/{codebook}": value for codebook, value in enumerate(num_codebooks)}
                numbers[USE] = sum(num_codebooks) / len(num_codebooks) / self.codebook_size
            else:
                numbers[name if "/" in name else f"loss/{name}"] = float(mean)
        now = clock.perf_counter()  # the device is done by now
        numbers[SPEED] = len(self.steps) / (now - self.began)
        numbers[REAL_TIME] = numbers[SPEED] * self.seconds
        numbers[WAITING] = self.waited / (now - self.began)
        numbers[BAD] = len(self.bad)
        self.steps, self.waited, self.began = [], 0.0, now
        return numbers


@contextmanager
def live(console: Console, name: str, first: int, last: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """One line on a terminal, nothing elsewhere; yields what to call with (steps done, `Tally.numbers` or nothing)."""
    columns = BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}")
    with Progress(TextColumn(name), *columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=last, completed=first, numbers="")

        def show(done: int, numbers: Mapping[str, float]) -> None:
            progress.update(bar, completed=done, numbers=summary(numbers))

        yield show


def summary(numbers: Mapping[str, float]) -> str:
    """The numbers to watch: 2.31 steps/s  28 × real time  mel 1.23 complex_stft 0.50  codebooks 61 % used."""
    parts = [f"{numbers[SPEED]:.2f} steps/s  {numbers[REAL_TIME]:.0f} × real time"] if SPEED in numbers else []
    if numbers.get(WAITING, 0) >= 0.05:
        parts.append(f"{numbers[WAITING]:.0%} waiting for data")
    losses = [f"{key} {numbers[f'loss/{key}']:.2f}" for key in MAIN_LOSSES if f"loss/{key}" in numbers]
    parts += [" ".join(losses)] if losses else []
    if BITS in numbers:
        parts.append(f"{numbers[BITS]:.2f} bits per code")
    if USE in numbers:
        parts.append(f"codebooks {numbers[USE]:.0%} used")
    if numbers.get(BAD):
        parts.append(f"{numbers[BAD]:.0f} bad files")
    return "  ".join(parts)


def usage(codes: Tensor, codebook_size: int) -> Tensor:
    """How often each entry was chosen [codebooks, codebook_size], by codes [batch, codebooks, frames]; -1 does not count."""
    num_codebooks = codes.shape[1]
    counts = torch.zeros(num_codebooks, codebook_size + 1, device=codes.device)
    rows = codes.transpose(0, 1).flatten(1) % (codebook_size + 1)  # -1 is last
    return counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=counts.dtype))[:, :-1].contiguous()


def perplexity(usage: Tensor) -> Tensor:
    """Perplexity [codebooks] of what `usage` counted: as many entries in equal use would be as hard to guess.

    A codebook that nothing used has perplexity 1.
    """
    share = usage / usage.sum(dim=-1, keepdim=True).clamp(min=1e-12)
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum(dim=-1))
