"""LibriSpeech: PART/SPEAKER/CHAPTER/*.flac with transcripts in *.trans.txt of each chapter, 16 kHz."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="CC BY 4.0",
    url="https://www.openslr.org/12/",
    allows="copying and changing for any purpose, also for money",
    requires="naming the authors and saying what was changed",
    attribution="Vassil Panayotov, Daniel Povey and others: LibriSpeech, 2015, from LibriVox recordings",
)
KNOWN = {
    "train-clean-100": (6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    "dev-clean": (337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
}
PARTS = {
    part: Archive(
        f"http://www.openslr.org/resources/12/{part}.tar.gz",
        holds=f"LibriSpeech/{part}",
        size=size,
        sha256=sha256,
    )
    for part, (size, sha256) in KNOWN.items()
}
SPLITS = {"train": "train", "dev": "valid", "test": "test"}


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """A part's name begins with its split; no speaker is in two of them."""
    for part in parts:
        for chapter in sorted((folder / PARTS[part].holds).glob("*/*/")):
            spoken = transcripts(chapter)
            for path in sorted(chapter.glob("*.flac")):
                split = SPLITS[part.split("-")[0]]
                speaker = chapter.parent.name
                yield Clip(path, path.name, set=part, split=split, speaker=speaker, transcript=spoken.get(path.stem))


def transcripts(chapter: Path) -> dict[str, str]:
    """Name of a file -> its transcript, in capitals without punctuation."""
    lines = [line for path in chapter.glob("*.trans.txt") for line in path.read_text("utf-8").splitlines()]
    return dict(line.split(" ", 1) for line in lines)


DATASET = Dataset(
    name="librispeech",
    title="LibriSpeech",
    hours="111 of 982",
    download="7.1 of 61 GB",
    license=LICENSE,
    layout=layout,
    parts=PARTS,
    default=("train-clean-100", "dev-clean", "test-clean"),
)
