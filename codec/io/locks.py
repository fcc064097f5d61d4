"""Locks that end with their process, and the files that a killed process leaves behind.

A lock is on an open file (flock), so it cannot outlive its process. Its file is unlinked while the lock is held, and
who gets a lock checks that its file still has its name: two processes never hold the lock of one name.

    first   open  lock  work  unlink  close
    second        open  wait ...............  lock  another file has the name: open it instead
    third                              open   lock  work

Without locks, on Windows and on some network file systems, everything is as if no other process were there.
"""

import hashlib
import os
import platform
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]

# of temporary files; with the machine, because the locks of other machines may not be seen
PREFIX = f".codec-{hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()}-"

_swept: set[Path] = set()


@contextmanager
def held(path: Path, *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a file, which exists while the lock is held; False if another process holds it.

    `wait` waits for the other process. Raises OSError.
    """
    descriptor = _acquired(path, wait=wait)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        if fcntl is None:  # Windows does not remove open files
            os.close(descriptor)
        with suppress(OSError):
            path.unlink()
        if fcntl is not None:
            os.close(descriptor)


@contextmanager
def claimed(target: Path, *, wait: bool = False) -> Iterator[bool]:
    """As `held`, for the right to write a file of an existing folder; others of this machine see it by the same call.

    Raises OSError.
    """
    digest = hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()
    with held(target.with_name(f"{PREFIX}{digest}.lock"), wait=wait) as ours:
        yield ours


def part_name() -> str:
    """A new name for an unfinished file."""
    return f"{PREFIX}{secrets.token_hex(8)}.part"


def guard(descriptor: int) -> int | None:
    """Lock an open file, so that `sweep` leaves it; the lock ends when the returned descriptor is closed as well."""
    if fcntl is None:
        return None
    copy = os.dup(descriptor)
    with suppress(OSError):
        fcntl.flock(copy, fcntl.LOCK_EX)
    return copy


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes in a folder, once for every folder in this process."""
    if fcntl is None or folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as listing:
        for entry in listing:
            if entry.name.startswith(PREFIX):
                _remove_if_free(folder / entry.name)


def is_current(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _acquired(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of the file `path`; None if another process holds it."""
    while True:
        descriptor = _opened(path, os.O_CREAT)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:  # a file system without locks
            return descriptor
        except BaseException:  # an interrupt while it waits
            os.close(descriptor)
            raise
        if is_current(descriptor, path):
            return descriptor
        os.close(descriptor)


def _remove_if_free(path: Path) -> None:
    with suppress(OSError):
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_current(descriptor, path):
                path.unlink()
        finally:
            os.close(descriptor)


def _opened(path: Path, flags: int = 0) -> int:
    return os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | flags, 0o666)
