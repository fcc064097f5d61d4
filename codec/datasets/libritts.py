"""LibriTTS: PART/SPEAKER/CHAPTER/*.wav with transcripts in *.trans.tsv of each chapter, 24 kHz."""

from collections.abc import Sequence

from codec.datasets import libri
from codec.datasets.base import Dataset, License

LICENSE = License(
    name="CC BY 4.0",
    url="https://www.openslr.org/60/",
    allows="copying and modification for any purpose, including commercial use",
    requires="attribution and a statement of changes",
    attribution="Heiga Zen and others, Google: LibriTTS, 2019, from LibriVox recordings",
)
KNOWN = {  # size in bytes and SHA-256
    "train-clean-100": (7723686890, "c5608bf1ef74bb621935382b8399c5cdd51cd3ee47cec51f00f885a64c6c7f6b"),
    "train-clean-360": (27504073644, "ce7cff44dcac46009d18379f37ef36551123a1dc4e5c8e4eb73ae57260de4886"),
    "train-other-500": (44565031479, "e35f7e34deeb2e2bdfe4403d88c8fdd5fbf64865cae41f027a185a6965f0a5df"),
    "dev-clean": (1291469655, "da0864e1bd26debed35da8a869dd5c04dfc27682921936de7cff9c8a254dbe1a"),
    "dev-other": (924804676, "d413eda26f3a152ac7c9cf3658ef85504dfb1b625296e5fa83727f5186cca79c"),
    "test-clean": (1230670113, "234ea5b25859102a87024a4b9b86641f5b5aaaf1197335c95090cde04fe9a4f5"),
    "test-other": (964502297, "33a5342094f3bba7ccc2e0500b9e72d558f72eb99328ac8debe1d9080402f10d"),
}


def transcripts(lines: Sequence[str]) -> dict[str, str]:
    """Transcripts with numbers and abbreviations written out, by recording."""
    return {name: normalized for name, _, normalized in (line.split("\t") for line in lines)}


DATASET = Dataset(
    name="libritts",
    title="LibriTTS",
    hours="71 of 586",
    download="10.2 of 84 GB",
    license=LICENSE,
    layout=libri.layout("LibriTTS", audio="*.wav", transcripts="*.trans.tsv", read=transcripts),
    parts=libri.archives("LibriTTS", 60, KNOWN),
    default=libri.DEFAULT,
)
