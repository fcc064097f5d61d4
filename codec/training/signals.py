"""Stop signals: a training run finishes its step, saves, and exits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

STOP_SIGNALS = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
REPEAT_SECONDS = 2.0  # a launcher passes on to its processes the signal that they have already received


@contextmanager
def catch_stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a stop signal has arrived; a second signal raises KeyboardInterrupt at once.

    Signals within two seconds of the first count as one. SIGHUP stays ignored where it was ignored, as under nohup.
    """
    arrived = threading.Event()
    times: list[float] = []
    if threading.current_thread() is not threading.main_thread():  # where Python handles no signals
        yield arrived.is_set
        return
    previous = {
        number: handler
        for number in STOP_SIGNALS
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN or number.name != "SIGHUP"
    }

    def stop(number: int, _: FrameType | None) -> None:
        arrived.set()
        times.append(time.monotonic())
        if times[-1] - times[0] > REPEAT_SECONDS:
            raise KeyboardInterrupt

    try:
        for number in previous:
            signal.signal(number, stop)
        yield arrived.is_set
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def block_stop_signals() -> Iterator[None]:
    """Delay stop signals, also in processes that start meanwhile; a no-op on systems without signal masks."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # because starting the first process would unblock signals to start the tracker
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


def ignore_stop_signals(*_: object) -> None:
    """Ignore stop signals in a data worker, because the training process finishes its step before it stops.

    A second SIGTERM ends the worker, because that is how a DataLoader ends workers that do not respond.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)

    def ignore_once(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, ignore_once)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
