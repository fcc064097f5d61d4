"""LibriTTS: PART/SPEAKER/CHAPTER/*.wav with transcripts in *.trans.tsv of each chapter, 24 kHz."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="CC BY 4.0",
    url="https://www.openslr.org/60/",
    allows="copying and changing for any purpose, also for money",
    requires="naming the authors and saying what was changed",
    attribution="Heiga Zen and others, Google: LibriTTS, 2019, from LibriVox recordings",
)
KNOWN = {
    "train-clean-100": (7723686890, "c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b"),
    "train-clean-360": (27504073644, "ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886"),
    "train-other-500": (44565031479, "e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df"),
    "dev-clean": (1291469655, "da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a"),
    "dev-other": (924804676, "d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c"),
    "test-clean": (1230670113, "234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5"),
    "test-other": (964502297, "33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d"),
}
PARTS = {
    part: Archive(
        f"http://www.openslr.org/resources/60/{part}.tar.gz",
        holds=f"LibriTTS/{part}",
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
            for path in sorted(chapter.glob("[!.]*.wav")):  # the archives hold ._ files of another system
                split = SPLITS[part.split("-")[0]]
                speaker = chapter.parent.name
                yield Clip(path, path.name, set=part, split=split, speaker=speaker, transcript=spoken.get(path.stem))


def transcripts(chapter: Path) -> dict[str, str]:
    """Name of a file -> its transcript, numbers and abbreviations written out."""
    lines = [line for path in chapter.glob("[!.]*.trans.tsv") for line in path.read_text("utf-8").splitlines()]
    return {name: normalised for name, _, normalised in (line.split("\t") for line in lines)}


DATASET = Dataset(
    name="libritts",
    title="LibriTTS",
    hours="71 of 586",
    download="10.2 of 84 GB",
    license=LICENSE,
    layout=layout,
    parts=PARTS,
    default=("train-clean-100", "dev-clean", "test-clean"),
)
