"""Any folder of audio: its manifest, so that a training starts without looking through it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from codec.corpus import Clip, clips
from codec.training.prepare import Dataset, by_hash, run


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Every clip, with a split where the folder says none: one file, or one speaker's files, in fifty is held out."""
    for clip in clips(folder):
        yield replace(clip, split=clip.split or by_hash(clip.speaker or clip.id, valid=0.02))


DATASET = Dataset("general", "a folder of audio", None, layout)

if __name__ == "__main__":
    run(DATASET)
