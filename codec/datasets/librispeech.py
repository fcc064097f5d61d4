"""LibriSpeech: PART/SPEAKER/CHAPTER/*.flac with transcripts in *.trans.txt of each chapter, 16 kHz."""

from collections.abc import Sequence

from codec.datasets import libri
from codec.datasets.base import Dataset, License

LICENSE = License(
    name="CC BY 4.0",
    url="https://www.openslr.org/12/",
    allows="copying and modification for any purpose, including commercial use",
    requires="attribution and a statement of changes",
    attribution="Vassil Panayotov, Daniel Povey and others: LibriSpeech, 2015, from LibriVox recordings",
)
KNOWN = {  # size in bytes and SHA-256
    "train-clean-100": (6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    "dev-clean": (337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
}


def transcripts(lines: Sequence[str]) -> dict[str, str]:
    """Transcripts in capitals without punctuation, by recording."""
    return dict(line.split(" ", 1) for line in lines)


DATASET = Dataset(
    name="librispeech",
    title="LibriSpeech",
    hours="111 of 982",
    download="7.1 of 61 GB",
    license=LICENSE,
    layout=libri.layout("LibriSpeech", audio="*.flac", transcripts="*.trans.txt", read=transcripts),
    parts=libri.archives("LibriSpeech", 12, KNOWN),
    default=libri.DEFAULT,
)
