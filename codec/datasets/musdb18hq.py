"""MUSDB18-HQ: train and test/TRACK/{mixture,vocals,drums,bass,other}.wav, 44.1 kHz stereo."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="for education and research",
    url="https://zenodo.org/records/3338373",
    allows="non-commercial education and research; the tracks have several licenses, see the page",
    requires="attribution, and no other use",
    attribution="Zafar Rafii, Antoine Liutkus and others: MUSDB18-HQ, 2019, doi:10.5281/zenodo.3338373",
)
ARCHIVE = Archive(
    "https://zenodo.org/records/3338373/files/musdb18hq.zip",
    holds="musdb18hq",
    into="musdb18hq",
    size=22656664047,
    sha256="baac80d0483c61d74b2e5f3be75fa557eec52898339e6aa45c1fa48833c5d21d",
)
PARTS = ("mixture", "vocals", "drums", "bass", "other")
VALID = frozenset(  # tracks of the folder train, the usual validation set of source separation
    (
        "ANiMAL - Rockshow",
        "Actions - One Minute Smile",
        "Alexander Ross - Goodbye Bolero",
        "Clara Berry And Wooldog - Waltz For My Victims",
        "Fergessen - Nos Palpitants",
        "James May - On The Line",
        "Johnny Lokke - Promises & Lies",
        "Leaf - Summerghost",
        "Meaxic - Take A Step",
        "Patrick Talbot - A Reason To Leave",
        "Skelpolu - Human Mistakes",
        "Traffic Experiment - Sirens",
        "Triviul - Angelsaint",
        "Young Griffo - Pennies",
    )
)


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """86 tracks for training, the usual 14 for validation, 50 for tests."""
    for split in ("train", "test"):
        for track in sorted((folder / ARCHIVE.holds / split).glob("*/")):
            for path in sorted(track.glob("*.wav")):
                if path.stem in parts:
                    name = "valid" if split == "train" and track.name in VALID else split
                    yield Clip(path, path.name, set=path.stem, split=name, label=path.stem)


DATASET = Dataset(
    name="musdb18hq",
    title="MUSDB18-HQ",
    hours="10 of 50",
    download="22.7 GB",
    license=LICENSE,
    layout=layout,
    parts=dict.fromkeys(PARTS, ARCHIVE),
    default=("mixture",),
)
