"""Memory that a piece of work takes."""

import tracemalloc
from collections.abc import Callable


def peak_memory(work: Callable[[], object], *, times: int = 2) -> int:
    """Least peak in bytes of what Python allocates in `work`: threads that other tests started allocate, too."""
    peaks = []
    for _ in range(times):
        tracemalloc.start()
        work()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    return min(peaks)
