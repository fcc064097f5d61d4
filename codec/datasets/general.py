"""Any folder of audio: its manifest, so that a training starts without looking through it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.corpus import MANIFEST, Clip, clips
from codec.datasets.prepare import Dataset, run
from codec.errors import UsageError


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Every clip as the folder shows it; where it names no splits, the training holds one file in fifty out.

    Raises:
        UsageError: there is a manifest already, which may say more than looking through the folder would find.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} is there already: train with it, or remove it to have one made anew")
    yield from clips(folder)


DATASET = Dataset("general", "a folder of audio", None, layout)

if __name__ == "__main__":
    run(DATASET)
