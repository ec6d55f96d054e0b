"""Work that is shared between threads while there are cores for it.

A copy of some megabytes takes less than a time slice, so a thread that has to wait for a core must
not be waited for. Rows are dealt out in *turns*: whoever is free takes the next one, in compiled
code that knows no Python; a helper that comes when all were taken does nothing. On an idle machine
all threads share; on a busy one the caller does it alone.

``turns`` is an int64 array: the next row, the number of rows, rows a turn, rows that are done.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..dataplane.cores import usable_cores
from ..dataplane.errors import ParameterError

__all__ = ["Turns", "gather_threads", "rows_alone", "share", "worth_sharing"]

Turns: TypeAlias = npt.NDArray[np.int64]

_PIECE = 256 << 10  # bytes of a turn
_ALONE = 5 << 20  # bytes that one thread copies about as soon as two that must first meet


def gather_threads(given: int | None = None) -> int:
    """Return how many threads a gather may use.

    That is what is given, else ``BATCHLOOM_GATHER_THREADS``, else one a core up to 8.
    """
    if given is None:
        text = os.environ.get("BATCHLOOM_GATHER_THREADS", "")
        if not text:
            return min(8, usable_cores())
        given = int(text) if text.isdecimal() else 0
    if given < 1:
        raise ParameterError(
            "The 'threads' of a gather (BATCHLOOM_GATHER_THREADS) must be an int in the range "
            f"[1, inf). Got {given} instead."
        )
    return given


def worth_sharing(rows: int, row_bytes: float) -> bool:
    """Return whether a copy is so large that threads may share it."""
    return rows * row_bytes > _ALONE


def rows_alone(row_bytes: int) -> int:
    """Return how many rows of a width are at most not worth sharing."""
    return _ALONE // row_bytes


def share(
    work: Callable[[Turns], None], rows: int, row_bytes: float, threads: int | None = None
) -> None:
    """Call ``work(turns)`` on up to so many threads, until each row had its turn.

    By default they are as many as `gather_threads` says.
    """
    if worth_sharing(rows, row_bytes):
        threads = threads or gather_threads()
        if threads > 1:
            _share(work, rows, max(1, int(_PIECE // max(1, row_bytes))), threads)
            return
    work(np.array([0, rows, rows, 0]))


def _share(work: Callable[[Turns], None], rows: int, step: int, threads: int) -> None:
    turns, failed = np.array([0, rows, step, 0]), queue.SimpleQueue[BaseException]()
    helpers = _helpers_of_process()
    helpers.ask(threads - 1, work, turns, failed)
    work(turns)
    while turns[3] < rows:  # a helper is at its last turn
        if not failed.empty():
            raise failed.get()
        time.sleep(0)


class _Helpers:
    """Threads of this process that wait for work."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._asked: queue.SimpleQueue[tuple[Callable[[Turns], None], Turns, Any]]
        self._asked = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def ask(self, count: int, work: Callable[[Turns], None], turns: Turns, failed: Any) -> None:
        while len(self._threads) < count:
            thread = threading.Thread(target=self._help, name="batchloom-gather", daemon=True)
            self._threads.append(thread)
            thread.start()
        for _ in range(count):
            self._asked.put((work, turns, failed))

    def _help(self) -> None:
        while True:
            work, turns, failed = self._asked.get()
            try:
                work(turns)
            except BaseException as error:
                failed.put(error)
            del work, turns, failed  # nothing of a request is held until the next one


_helpers = _Helpers()


def _helpers_of_process() -> _Helpers:
    """Return this process's helpers; a forked child has none of its parent's."""
    global _helpers
    if _helpers.process != os.getpid():
        _helpers = _Helpers()
    return _helpers
