"""Any folder of audio; its manifest spares a training run the scan of the folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from codec.data.clips import MANIFEST, Clip, clips
from codec.datasets.base import Dataset
from codec.errors import UsageError


def layout(folder: Path, parts: Sequence[str]) -> Iterator[Clip]:
    """Yield the clips of the folder; without splits, training holds out one file in fifty.

    Raises:
        UsageError: a manifest exists, which may have more fields than a scan of the folder finds.
    """
    if (folder / MANIFEST).exists():
        raise UsageError(f"{folder / MANIFEST} exists already: train with it, or remove it to write a new one")
    yield from clips(folder)


DATASET = Dataset(
    name="general",
    title="a folder of audio",
    hours="yours",
    download="none",
    license=None,
    layout=layout,
)
