"""What a training shows, and what it leaves to look at: TensorBoard events, and the same numbers as CSV."""

from __future__ import annotations

import csv
import time as clock
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from codec.errors import MissingDependency
from codec.nn.shapes import Audio

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError as missing:
    raise MissingDependency("training leaves records for TensorBoard: pip install 'codec[train]'") from missing

SPEED = "speed/steps per second"
MAIN_LOSSES = ("mel", "phase", "features", "discriminator")  # the ones to watch; the record has all


class Record:
    """Writes below a run's folder; a run that goes on from `step` continues its record, less what came after."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.events = SummaryWriter(str(folder / "events"), purge_step=step + 1)
        path = folder / "record.csv"
        before = path.read_text().splitlines() if path.exists() else []
        self.table = path.open("w", newline="")
        self.rows = csv.writer(self.table, lineterminator="\n")
        self.rows.writerows(row for row in csv.reader(before) if len(row) == 3 and int(row[0]) <= step)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars by name, "group/name"."""
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
            self.rows.writerow([step, name, f"{value:.6g}"])
        self.table.flush()

    def clips(self, step: int, name: str, audio: Audio, sample_rate: int) -> None:
        """Audio [batch, 1, time] to listen to, each with its spectrogram (80 dB from black to white, 0 Hz below)."""
        window = torch.hann_window(1024)
        for number, clip in enumerate(audio[:, 0].cpu().float()):
            self.events.add_audio(f"{name}/{number}", clip.clamp(-1, 1), step, sample_rate)
            power = torch.stft(clip, 1024, 256, window=window, return_complex=True).abs().clamp(min=1e-5).log10() * 20
            image = ((power - power.max() + 80) / 80).clamp(0, 1).flip(0)
            self.events.add_image(f"{name}/{number}", image, step, dataformats="HW")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.events.close()
        self.table.close()


class Tally:
    """Gathers what the steps return; nothing waits for the device until `numbers`."""

    def __init__(self) -> None:
        self.steps: list[Mapping[str, Tensor]] = []
        self.began = clock.perf_counter()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Take in one step's losses: numbers by name, and the "perplexity" [books]."""
        self.steps.append(losses)

    def numbers(self) -> dict[str, float]:
        """Means over the steps since the last call, by the names they are recorded under, and the speed."""
        now = clock.perf_counter()
        numbers: dict[str, float] = {}
        for name in dict.fromkeys(name for losses in self.steps for name in losses):
            mean = torch.stack([losses[name] for losses in self.steps if name in losses]).mean(dim=0)
            if name == "perplexity":
                numbers |= {f"perplexity/{book}": float(value) for book, value in enumerate(mean)}
            else:
                numbers[name if "/" in name else f"loss/{name}"] = float(mean)
        numbers[SPEED] = len(self.steps) / (now - self.began)
        self.steps, self.began = [], now
        return numbers


@contextmanager
def live(console: Console, name: str, first: int, last: int) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """One line on a terminal, nothing elsewhere; yields what to call with (steps done, `Tally.numbers` or nothing)."""
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}")
    with Progress(TextColumn(name), *columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=last, completed=first, numbers="")

        def show(done: int, numbers: Mapping[str, float]) -> None:
            parts = [f"{numbers[SPEED]:.2f} steps/s"] if SPEED in numbers else []
            parts += [f"{key} {numbers[f'loss/{key}']:.2f}" for key in MAIN_LOSSES if f"loss/{key}" in numbers]
            progress.update(bar, completed=done, numbers=" ".join(parts))

        yield show


def perplexity(codes: Tensor, codebook_size: int) -> Tensor:
    """Perplexity [books] of codes [batch, books, frames]: as many entries in equal use would be as hard to guess.

    Codes of -1 do not count; a book without any other has perplexity 1.
    """
    perplexities = []
    for book in codes.transpose(0, 1).flatten(1):
        share = torch.bincount(book[book >= 0], minlength=codebook_size).float()
        share = share / share.sum().clamp(min=1)
        perplexities.append(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
    return torch.stack(perplexities)
