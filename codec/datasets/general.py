"""Any folder of audio: its manifest, so that a training starts without looking through it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import MANIFEST, Clip, clips
from codec.datasets.base import Dataset
from codec.errors import UsageError


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Every clip as the folder shows it; where it names no splits, the training holds one file in fifty out.

    Raises:
        UsageError: there is a manifest already, which may say more than looking through the folder would find.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} exists already: train with it, or remove it to have another one made")
    yield from clips(folder)


DATASET = Dataset(
    name="general",
    title="a folder of audio",
    hours="yours",
    download="none",
    license=None,
    layout=layout,
)
