"""Whether loops may be compiled, by numba, for what takes longer in torch or in plain Python."""

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
