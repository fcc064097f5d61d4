"""Common Voice: RELEASE/LANGUAGE/clips/*.mp3 and their transcripts in train.tsv, dev.tsv and test.tsv."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Dataset, License

LICENSE = License(
    name="CC0 1.0",
    url="https://creativecommons.org/publicdomain/zero/1.0/",
    allows="everything",
    requires="no attempt to identify the speakers, by the terms of the download",
    attribution="Mozilla Common Voice and its speakers",
)
SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Official splits of every language below the folder; no speaker is in two of them."""
    for clips in sorted(path for depth in ("", "*/", "*/*/") for path in folder.glob(f"{depth}clips/")):
        language = clips.parent
        for name, split in SPLITS.items():
            if not (language / f"{name}.tsv").exists():  # small languages lack some splits
                continue
            with (language / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                    path = clips / row["path"]
                    speaker, spoken = row["client_id"], row["sentence"].strip()
                    yield Clip(path, path.name, set=language.name, split=split, speaker=speaker, transcript=spoken)


DATASET = Dataset(
    name="common_voice",
    title="Common Voice",
    hours="42 593",
    download="by hand",
    license=LICENSE,
    layout=layout,
    packed="*.tar.gz",
    by_hand="download the archive of a language (Scripted Speech) with an account at "
    "https://mozilladatacollective.com, put it into DIR, and run the same command",
)
