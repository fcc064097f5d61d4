"""Any folder of audio: its manifest, so that a training starts without looking through it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from codec.corpus import MANIFEST, Clip, clips
from codec.errors import UsageError
from codec.training.prepare import Dataset, by_hash, run


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Every clip, with a split where the folder says none: one file in fifty is held out.

    Raises:
        UsageError: there is a manifest already, which may say more than looking through the folder would find.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} is there already: train with it, or remove it to have one made anew")
    for clip in clips(folder):
        yield replace(clip, split=clip.split or by_hash(clip.id, valid=0.02))


DATASET = Dataset("general", "a folder of audio", None, layout)

if __name__ == "__main__":
    run(DATASET)
