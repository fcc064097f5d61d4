"""MAESTRO 3.0.0: YEAR/*.wav with metadata in maestro-v3.0.0.csv, piano, 44.1 and 48 kHz stereo."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="CC BY-NC-SA 4.0",
    url="https://creativecommons.org/licenses/by-nc-sa/4.0/",
    allows="copying and modification for non-commercial use",
    requires="attribution, and the same license for works derived from the recordings",
    attribution="Curtis Hawthorne and others, Google: MAESTRO, 2019, with the International Piano-e-Competition",
)
ARCHIVE = Archive(
    "https://storage.googleapis.com/magentadata/datasets/maestro/v3.0.0/maestro-v3.0.0.zip",
    holds="maestro-v3.0.0",
    size_limit=150_000_000_000,
    sha256="6680fea5be2339ea15091a249fbd70e49551246ddbd5ca50f1b2352c08c95291",
)
SPLITS = {"train": "train", "validation": "valid", "test": "test"}


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Official splits; no composition is in two of them."""
    root = folder / ARCHIVE.holds
    with (root / "maestro-v3.0.0.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = root / row["audio_filename"]
            yield Clip(path, path.name, set="maestro", split=SPLITS[row["split"]], label=row["canonical_composer"])


DATASET = Dataset(
    name="maestro",
    title="MAESTRO 3.0.0",
    hours="199",
    download="101 GB",
    license=LICENSE,
    layout=layout,
    parts={"piano": ARCHIVE},
)
