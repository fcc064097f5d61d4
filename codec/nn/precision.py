"""Full precision of float32 products while codes and audio are computed, whatever the rest of a program has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any

import torch

_REDUCED = ("tf32", "bf16")
_OLD_NAMES = {"highest": "ieee", "high": "tf32", "medium": "bf16"}

_lock = Lock()
_inside = {"cpu": 0, "cuda": 0}  # calls in progress, because the settings are those of all threads
_saved: dict[str, list[tuple[Any, str]]] = {"cpu": [], "cuda": []}


@contextmanager
def full_float32(kind: str) -> Iterator[None]:
    """Multiply float32 numbers in float32 on devices of this kind, not in TF32 or bfloat16, which changes codes.

    Lower precision comes from `torch.set_float32_matmul_precision("high")`, which is common where language models are
    trained, and from cuDNN's default. The last call in progress restores the settings.
    """
    if kind not in _inside:
        yield
        return
    with _lock:
        if not _inside[kind]:
            _saved[kind] = _raised(_settings(kind))
        _inside[kind] += 1
    try:
        yield
    finally:
        with _lock:
            _inside[kind] -= 1
            if not _inside[kind]:
                for each, value in reversed(_saved[kind]):
                    each.fp32_precision = value


def _raised(settings: list[Any]) -> list[tuple[Any, str]]:
    """Set every reduced setting to full precision, and return the changed settings with their values."""
    saved = []
    for each in settings:
        with suppress(RuntimeError):  # torch refuses to read an old setting where a new one contradicts it
            value = each.fp32_precision
            if value in _REDUCED:
                each.fp32_precision = "ieee"
                saved.append((each, value))
    return saved


class _Cudnn:
    """cuDNN's old setting, in the form of the settings of torch 2.9."""

    @property
    def fp32_precision(self) -> str:
        return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        torch.backends.cudnn.allow_tf32 = value == "tf32"


class _Products:
    """The old setting of matrix products, `set_float32_matmul_precision`."""

    @property
    def fp32_precision(self) -> str:
        return _OLD_NAMES[torch.get_float32_matmul_precision()]

    @fp32_precision.setter
    def fp32_precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(next(name for name, other in _OLD_NAMES.items() if other == value))


def _settings(kind: str) -> list[Any]:
    """All settings that count on devices of this kind.

    On a GPU the old ones come first, because torch refuses to read them once a new one has been changed alone.
    """
    backends: Any = torch.backends
    old = [_Products()] if kind == "cpu" else [_Products(), _Cudnn()]
    if not hasattr(backends, "fp32_precision"):
        return old
    if kind == "cpu":
        return [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    return [*old, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
