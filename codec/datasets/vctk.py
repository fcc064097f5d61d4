"""VCTK 0.92: wav48_silence_trimmed/SPEAKER/SPEAKER_001_mic2.flac and txt/SPEAKER/SPEAKER_001.txt, 48 kHz."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License, by_hash

LICENSE = License(
    name="CC BY 4.0",
    url="https://doi.org/10.7488/ds/2645",
    allows="copying and modification for any purpose, including commercial use",
    requires="attribution and a statement of changes",
    attribution="Junichi Yamagishi, Christophe Veaux, Kirsten MacDonald: CSTR VCTK Corpus 0.92, 2019",
)
ARCHIVE = Archive(
    "https://datashare.ed.ac.uk/bitstream/handle/10283/3443/VCTK-Corpus-0.92.zip",
    holds="VCTK-Corpus-0.92",
    into="VCTK-Corpus-0.92",
    size=11747302977,
    sha256="f96258be9fdc2cbff6559541aae7ea4f59df3fcaf5cf963aae5ca647357e359c",
)


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Splits by the hash of the speaker, because there are no official ones: of 110, 5 are valid and 8 test.

    The corpus lacks the transcripts of p315 and mic2 of p280.
    """
    root = folder / ARCHIVE.holds
    for speaker in sorted((root / "wav48_silence_trimmed").glob("*/")):
        split = by_hash(speaker.name, valid=0.04, test=0.04)
        for path in sorted(speaker.glob("*_mic[12].flac")):
            name, _, part = path.stem.rpartition("_")
            if part in parts:
                text = root / "txt" / speaker.name / f"{name}.txt"
                spoken = text.read_text("utf-8").strip() if text.exists() else None
                yield Clip(path, path.name, set=part, split=split, speaker=speaker.name, transcript=spoken)


DATASET = Dataset(
    name="vctk",
    title="VCTK 0.92",
    hours="44 of 88",
    download="11.7 GB",
    license=LICENSE,
    layout=layout,
    parts={"mic1": ARCHIVE, "mic2": ARCHIVE},
    default=("mic2",),
)
