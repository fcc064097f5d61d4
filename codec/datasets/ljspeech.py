"""LJ Speech 1.1: wavs/LJ001-0001.wav and its transcript in metadata.csv, 22.05 kHz, one speaker."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License, by_hash

LICENSE = License(
    name="public domain",
    url="https://keithito.com/LJ-Speech-Dataset/",
    allows="everything",
    requires="nothing",
    attribution="Linda Johnson, LibriVox; Keith Ito, The LJ Speech Dataset, 2017",
)
ARCHIVE = Archive(
    "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
    holds="LJSpeech-1.1",
    size=2748572632,
    sha256="be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
)


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Splits by the hash of the chapter, because there are no official ones: of 50, 3 are valid and 2 test."""
    root = folder / ARCHIVE.holds
    with (root / "metadata.csv").open(encoding="utf-8", newline="") as file:
        for name, _, spoken in csv.reader(file, delimiter="|", quoting=csv.QUOTE_NONE):
            split = by_hash(name.split("-")[0], valid=0.02, test=0.08)
            path = root / "wavs" / f"{name}.wav"
            yield Clip(path, name, set="ljspeech", split=split, speaker="LJ", transcript=spoken)


DATASET = Dataset(
    name="ljspeech",
    title="LJ Speech 1.1",
    hours="24",
    download="2.7 GB",
    license=LICENSE,
    layout=layout,
    parts={"speech": ARCHIVE},
)
