"""Google Speech Commands 0.02: WORD/SPEAKER_nohash_NUMBER.wav, 16 kHz, one second each; the ten digits are SC09."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import Clip
from codec.datasets.base import Archive, Dataset, License

LICENSE = License(
    name="CC BY 4.0",
    url="https://creativecommons.org/licenses/by/4.0/",
    allows="copying and modification for any purpose, including commercial use",
    requires="attribution and a statement of changes",
    attribution="Pete Warden, Google: Speech Commands, 2018, arXiv:1804.03209",
)
ARCHIVE = Archive(
    "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz",
    holds="SpeechCommands/speech_commands_v0.02",
    into="SpeechCommands/speech_commands_v0.02",
    size=2428923189,
    sha256="af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
)
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Splits by the two lists in the archive; no speaker is in two splits."""
    root = folder / ARCHIVE.holds
    lists = {"valid": "validation_list.txt", "test": "testing_list.txt"}
    listed = {
        line: split
        for split, name in lists.items()
        if (root / name).exists()
        for line in (root / name).read_text("utf-8").split()
    }
    for path in sorted(root.glob("*/*_nohash_*.wav")):  # without the background noises
        word, name = path.parts[-2:]
        part = "digits" if word in DIGITS else "words"
        if part in parts:
            speaker = name.split("_nohash_")[0]
            split = listed.get(f"{word}/{name}", "train")
            yield Clip(path, name, set=part, split=split, speaker=speaker, label=word, transcript=word)


DATASET = Dataset(
    name="speech_commands",
    title="Speech Commands 0.02",
    hours="11 of 29",
    download="2.4 GB",
    license=LICENSE,
    layout=layout,
    parts={"digits": ARCHIVE, "words": ARCHIVE},
    default=("digits",),
)
