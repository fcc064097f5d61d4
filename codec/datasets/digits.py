"""Free Spoken Digit Dataset: DIGIT_SPEAKER_NUMBER.wav in one folder, 8 kHz."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="CC BY-SA 4.0",
    url="https://creativecommons.org/licenses/by-sa/4.0/",
    allows="copying and modification for any purpose, including commercial use",
    requires="attribution, and the same license for works derived from the recordings",
    attribution="Zohar Jackson and contributors, Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401",
)
ARCHIVE = Archive(
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/v1.0.10.zip",
    holds="free-spoken-digit-dataset-1.0.10",
    saved_as="free-spoken-digit-dataset-1.0.10.zip",
    size_limit=100_000_000,
    unchecked="GitHub creates the file for each download",
)
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Recordings 0 to 4 of each digit and speaker are the official test set; 5 to 9 are held out for validation."""
    for path in sorted((folder / ARCHIVE.holds / "recordings").glob("*_*_*.wav")):
        named = re.fullmatch(r"([0-9])_([^_]+)_([0-9]+)", path.stem)
        if named is None:  # not part of the dataset
            continue
        digit, speaker, number = named.groups()
        split = "test" if int(number) < 5 else "valid" if int(number) < 10 else "train"
        yield Clip(
            path, path.name, set="digits", split=split, speaker=speaker, label=digit, transcript=WORDS[int(digit)]
        )


DATASET = Dataset(
    name="digits",
    title="the Free Spoken Digit Dataset 1.0.10",
    hours="0.4",
    download="15 MB",
    license=LICENSE,
    layout=layout,
    parts={"recordings": ARCHIVE},
)
