"""Keep what libmpg123 prints about MPEG audio off the terminal.

libsndfile decodes MPEG audio with libmpg123, which writes to file descriptor 2 what it thinks of a file: that a first
frame states another size, or, after each seek, that the bits of frames before it are missing. What a user should know
of it are the errors and lengths that the reader itself finds.
"""

import atexit
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock
from typing import IO

STDERR = 2
_PRINTED = re.compile(rb"^\n?(?:\[[^\n\]]*mpg123[^\n]*|(?:Note|Warning): [^\n]*)\n\n?", re.MULTILINE)
_lock = Lock()
_caught: IO[bytes] | None = None


def _in_child() -> None:
    global _caught
    _caught = None  # the file of the parent
    _lock.release()


if hasattr(os, "register_at_fork"):  # a child must not inherit a redirected descriptor
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_child)


@contextmanager
def quiet() -> Iterator[None]:
    """Catch what is written to descriptor 2 meanwhile, and pass on all but the lines of libmpg123."""
    global _caught
    with _lock, ExitStack() as stack:
        if sys.__stderr__ is not None:  # where it is closed, descriptor 2 may be the file that is read
            if _caught is None:
                _caught = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (for all calls)
                atexit.register(_caught.close)
            stack.callback(_pass_on, _caught, os.dup(STDERR))
            os.dup2(_caught.fileno(), STDERR)
        yield


def _pass_on(caught: IO[bytes], terminal: int) -> None:
    os.dup2(terminal, STDERR)
    os.close(terminal)
    if os.fstat(caught.fileno()).st_size:
        caught.seek(0)
        others = _PRINTED.sub(b"", caught.read())
        caught.seek(0)
        caught.truncate()
        if others:
            os.write(STDERR, others)
