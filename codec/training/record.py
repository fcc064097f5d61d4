"""What a training leaves to look at: TensorBoard events, and the same numbers as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from codec.errors import MissingDependency
from codec.nn.shapes import Audio


class Record:
    """Writes below a run's folder; a resumed run appends."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependency("training records need TensorBoard: pip install 'codec[train]'") from error
        folder.mkdir(parents=True, exist_ok=True)
        self.events = SummaryWriter(str(folder / "events"))
        self.table = (folder / "record.csv").open("a", newline="")
        self.rows = csv.writer(self.table)

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


def perplexity(codes: Tensor, codebook_size: int) -> Tensor:
    """Perplexity [books] of codes [batch, books, frames]: how many entries of each book are in equal use; -1 is unused."""
    perplexities = []
    for book in codes.transpose(0, 1).flatten(1):
        share = torch.bincount(book[book >= 0], minlength=codebook_size).float()
        share = share / share.sum().clamp(min=1)
        perplexities.append(torch.exp(-(share * share.clamp(min=1e-12).log()).sum()))
    return torch.stack(perplexities)
