"""Whether loops may be compiled by numba, for what takes longer in torch or in plain Python, and how memory is kept."""

import os

from codec.errors import UsageError

VARIABLE = "CODEC_BACKEND"


def may_compile() -> bool:
    """Whether the environment variable CODEC_BACKEND is "auto" or not set.

    Raises UsageError if it has another value than "auto" and "torch".
    """
    choice = os.environ.get(VARIABLE, "auto")
    if choice not in ("auto", "torch"):
        raise UsageError(f"{VARIABLE} is {choice!r}: set it to auto or torch")
    return choice == "auto"


FREED_BLOCK = 31 * 2**20  # bytes; glibc raises its thresholds by blocks of up to 32 MiB


def keep_freed_memory() -> None:
    """Let glibc keep what tensors have freed, up to 62 MiB, instead of giving it back to the system in every call.

    Pages that were given back cost page faults when they are used again, up to a tenth of the time of decoding 10 s.
    glibc raises its thresholds to the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD).
    The block is never written to, so it takes no memory. Other C libraries are not affected.
    """
    import torch

    torch.empty(FREED_BLOCK, dtype=torch.uint8)
