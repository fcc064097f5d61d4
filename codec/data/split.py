"""The split of a corpus into clips to train and to validate on: one rule for codecs and for language models.

Clips that the corpus marks as train or valid stay there. Of the others a hash holds out a share, so that added files do
not move others to another split:

    group        speaker if known, else the file, or its folder if `split_by` is "folder"
    held out     if hash(group) < held_out * 2**64

A codec and a language model that are trained on one corpus with the same `held_out` and `split_by` hold out the same
clips, the codec by the paths of the files, the language model by their hashes in the token store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from codec.data.clips import SPLITS, Clip

SIDES = SPLITS[:2]  # train, valid
KEYS = [
    ("split", "i1"),  # 1 + its index in SPLITS; 0: the hash decides
    ("group", "<u8"),  # hash of what a split must keep together
    ("file", "<u8"),  # hash of the file's path
]
"""Columns of the rows to split."""

SplitBy: TypeAlias = Literal["file", "folder"]
Chooser = Callable[[NDArray[Any], str], NDArray[np.bool_]]
"""Which of some rows a split has, by its name."""


def path_in(clip: Clip, root: Path) -> Path:
    """The path of a clip's file below the root of its corpus, which is what hashes are of; other paths as they are."""
    return clip.path.relative_to(root) if clip.path.is_relative_to(root) else clip.path


def split_number(split: str | None) -> int:
    """The number of a split in the column `split`."""
    return 0 if split is None else 1 + SPLITS.index(split)


def split_chooser(chunks: Iterable[NDArray[Any]], held_out: float) -> Chooser:
    """A function that chooses the rows of a split from rows with the columns of KEYS, after a pass over all of them.

    If the hash chooses no rows, as with few files, a split takes the row with the lowest hash. If all audio is of one
    speaker or folder, it is split by files; one file is in both splits.
    """
    marked: set[int] = set()
    low, high = {"group": 2**64, "file": 2**64}, {"group": -1, "file": -1}
    for rows in chunks:
        marked |= set(np.unique(rows["split"]).tolist())
        for by in low:
            hashes = rows[by][rows["split"] == 0]
            low[by] = min(low[by], int(hashes.min(initial=2**64 - 1)))
            high[by] = max(high[by], int(hashes.max(initial=0)))
    by = "group" if low["group"] < high["group"] else "file"
    limit = int(held_out * 2**64)
    if 2 not in marked:
        limit = max(limit, low[by] + 1)
    if 1 not in marked:
        limit = min(limit, high[by])
    single = low[by] == high[by]

    def choose(rows: NDArray[Any], split: str) -> NDArray[np.bool_]:
        held = rows[by] < np.uint64(limit)
        by_hash = single | (held if split == "valid" else ~held)
        chosen: NDArray[np.bool_] = np.where(rows["split"] == 0, by_hash, rows["split"] == split_number(split))
        return chosen

    return choose
