"""Work that is shared between threads while there are cores for it.

A copy of some megabytes takes less than a time slice, so a thread that has to wait for a core must
not be waited for. Work is cut into pieces that whoever is free takes next; a helper that has not
begun when they are all taken is called off. On an idle machine all threads share; on a busy one the
caller does it alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ..dataplane.errors import ParameterError

__all__ = ["gather_threads", "share"]

_PIECE = 256 << 10  # bytes
_ALONE = 5 << 20  # bytes that one thread copies about as soon as two that must first meet

_helpers: tuple[int, int, ThreadPoolExecutor] | None = None


def gather_threads(given: int | None = None) -> int:
    """Return how many threads a gather may use.

    That is what is given, else ``BATCHLOOM_GATHER_THREADS``, else one a core up to 8.
    """
    if given is None:
        text = os.environ.get("BATCHLOOM_GATHER_THREADS", "")
        if not text:
            return min(8, len(_cores()))
        given = int(text) if text.isdecimal() else 0
    if given < 1:
        raise ParameterError(
            "The 'threads' of a gather (BATCHLOOM_GATHER_THREADS) must be an int in the range "
            f"[1, inf). Got {given} instead."
        )
    return given


def _cores() -> range | set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 1)


def share(
    work: Callable[[int, int], None], rows: int, row_bytes: float, threads: int | None = None
) -> None:
    """Call ``work(start, stop)`` over all rows, each once, on up to so many threads.

    By default they are as many as `gather_threads` says.
    """
    if rows * row_bytes <= _ALONE:
        work(0, rows)
        return
    threads = threads or gather_threads()
    if threads == 1 or rows < threads:
        work(0, rows)
        return
    step = max(1, int(_PIECE // max(1, row_bytes)))
    starts = iter(range(0, rows, step))  # threads take turns at it

    def take_pieces() -> None:
        for start in starts:
            work(start, min(start + step, rows))

    helpers = _pool(threads - 1)
    futures = [helpers.submit(take_pieces) for _ in range(threads - 1)]
    take_pieces()
    for future in futures:
        if not future.cancel():
            future.result()


def _pool(count: int) -> ThreadPoolExecutor:
    """Return this process's helpers; a forked child has none of its parent's."""
    global _helpers
    if _helpers is None or _helpers[0] != os.getpid() or _helpers[1] < count:
        _helpers = os.getpid(), count, ThreadPoolExecutor(count, "batchloom-gather")
    return _helpers[2]
