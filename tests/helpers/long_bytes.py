"""Short explanations of failed comparisons of long bytes: weights and audio differ in thousands of lines."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain

SHOWN = 100  # bytes that pytest may print itself
AROUND = 8  # bytes shown from the first difference on


def difference(ours: object, theirs: object, *, name: str = "") -> list[str] | None:
    """How long bytes differ, also inside equally long lists and dicts of the same keys; None for anything else.

    Of each pair: both lengths, the start of both SHA-256, and the bytes from the first offset at which they differ.
    """
    pairs: list[tuple[str, object, object]] = []
    if isinstance(ours, bytes) and isinstance(theirs, bytes):
        if max(len(ours), len(theirs)) <= SHOWN:
            return None
        return [] if ours == theirs else [f"{name}{_described(ours, theirs)}"]
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping) and ours.keys() == theirs.keys():
        pairs = [(f"{name}{key!r}: ", ours[key], theirs[key]) for key in ours]
    elif isinstance(ours, list | tuple) and isinstance(theirs, Sequence) and len(ours) == len(theirs):
        pairs = [(f"{name}{index}: ", *pair) for index, pair in enumerate(zip(ours, theirs, strict=True))]
    differences = [difference(one, other, name=label) for label, one, other in pairs if one != other]
    known = [lines for lines in differences if lines is not None]
    return list(chain.from_iterable(known)) if known and len(known) == len(differences) else None


def _described(ours: bytes, theirs: bytes) -> str:
    first = next((at for at, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), None)
    offset = min(len(ours), len(theirs)) if first is None else first
    sides = (
        f"{len(side)} bytes, SHA-256 {hashlib.sha256(side).hexdigest()[:12]}, {side[offset : offset + AROUND].hex(' ')}"
        for side in (ours, theirs)
    )
    return f"first difference at offset {offset}: " + " != ".join(sides)
