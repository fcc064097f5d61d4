"""ESC-50: audio/FOLD-SOURCE-TAKE-CLASS.wav with metadata in meta/esc50.csv, 44.1 kHz, 5 s each."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="CC BY-NC 3.0; ESC-10 CC BY 3.0",
    url="https://github.com/karolpiczak/ESC-50#license",
    allows="copying and modification for non-commercial use; commercial use of the part esc10 only",
    requires="attribution to the authors of the recordings, who are listed in the file LICENSE",
    attribution="Karol J. Piczak, ESC, 2015, doi:10.1145/2733373.2806390, and the authors at freesound.org",
)
ARCHIVE = Archive(
    "https://github.com/karolpiczak/ESC-50/archive/master.zip",
    holds="ESC-50-master",
    saved_as="ESC-50-master.zip",
    size_limit=2_000_000_000,
    unchecked="it is a branch of a repository, which may change",
)
SPLITS = {"1": "train", "2": "train", "3": "train", "4": "valid", "5": "test"}


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Folds 1 to 3 for training, 4 for validation, 5 for tests; all clips of a recording are in one fold."""
    root = folder / ARCHIVE.holds
    with (root / "meta" / "esc50.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            part = "esc10" if row["esc10"] == "True" else "others"
            if part in parts:
                path = root / "audio" / row["filename"]
                yield Clip(path, path.name, set=part, split=SPLITS[row["fold"]], label=row["category"])


DATASET = Dataset(
    name="esc50",
    title="ESC-50",
    hours="2.8",
    download="600 MB",
    license=LICENSE,
    layout=layout,
    parts={"esc10": ARCHIVE, "others": ARCHIVE},
)
