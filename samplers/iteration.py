"""One way through a plan: what the caller of a loader pulls at, and in which thread it is prepared.

Handing a window to another thread costs some hundred microseconds, more than gathering it costs
where its rows are in memory. So, unless told otherwise, batches are prepared in line as long as
that is quick, and in a background thread once two windows in a row took long (`Ahead`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

from ..dataplane.errors import BatchloomError
from .buffers import Buffers
from .pieces import Pieces
from .prefetch import Prefetched
from .stats import Meter
from .transforms import Run
from .walk import Cursor
from .window import Window

__all__ = ["Ahead", "Iteration", "prefetched"]

_LONG = 100e-6  # seconds a batch; ten times and more what handing it over in a window costs
_IN_A_ROW = 2  # one may be an accident
_DEPTH = 2  # batches that are ready ahead, where no number is given


def prefetched(
    runs: Generator[Run, None, None], depth: int, stopped: threading.Event
) -> Prefetched[Run]:
    """Prepare runs in a background thread, while less than `depth` batches are ready."""
    return Prefetched(runs, depth, stopped, lambda run: len(run.results))


class Ahead(Iterator[Run]):
    """Runs, prepared in line until two in a row take long, from then on in a background thread.

    Parameters
    ----------
    runs : generator of Run
    stopped : threading.Event
    """

    def __init__(self, runs: Generator[Run, None, None], stopped: threading.Event) -> None:
        self._runs = runs
        self._stopped = stopped
        self._source: Generator[Run, None, None] | Prefetched[Run] = runs
        self._long = -1  # runs in a row that took long; the first one opens files

    def __next__(self) -> Run:
        if self._source is not self._runs:
            return next(self._source)
        begun = time.perf_counter()
        run = next(self._runs)
        took = time.perf_counter() - begun
        self._long = self._long + 1 if self._long < 0 or took > _LONG * len(run.results) else 0
        if self._long == _IN_A_ROW:
            self._source = prefetched(self._runs, _DEPTH, self._stopped)
        return run

    def close(self) -> None:
        """End the thread, where there is one, and the generator."""
        self._stopped.set()
        self._source.close()


class Iteration(Iterator[Any]):
    """One way through the plan; its cursor says where the caller stands."""

    def __init__(
        self,
        source: Ahead | Generator[Run, None, None],
        cursor: Cursor,
        meter: Meter,
        buffers: Buffers | None,
        watch: Callable[[bool], None],
    ) -> None:
        self._source = source
        self._cursor = cursor
        self._meter = meter
        self._buffers = buffers
        self._watch = watch
        self._window: Window | None = None
        self._results: list[Any] = []
        self._next, self._first = 0, 0
        self._ended = self._replaced = False
        self._pieces: Pieces | None = None
        meter.settle()  # the one before it may have been dropped

    def __next__(self) -> Any:
        # Of the loader's own work, this is all that is done for each batch.
        at = self._next
        if at == len(self._results):
            self._results, self._next = [], 0
            self._take()
            at = 0
        self._next = at + 1
        cursor = self._cursor
        cursor.pieces, cursor.index = self._pieces, self._first + at
        return self._results[at]

    def _take(self) -> None:
        """Wait for what comes next."""
        if self._replaced:
            raise BatchloomError(
                "This iteration was ended by a newer iter() or load_state_dict() of its loader. "
                "Make a second loader to read a plan twice at once."
            )
        begun = time.perf_counter()
        try:
            run = next(self._source)
        except BaseException:
            self._ended, self._window = True, None
            self._meter.settle(self._cursor)
            self._watch(True)
            raise
        last, self._window = self._window, run.window
        run.window.arrive()
        if self._buffers is not None and last is not None and last is not run.window:
            self._buffers.give(last.buffers)
        self._pieces, self._first, self._results = run.pieces, run.first, run.results
        self._meter.took(self._cursor, run, begun)
        self._watch(False)

    def close(self) -> None:
        """Stop preparing batches; the iteration is over."""
        self._ended = True
        self._source.close()
        self._results, self._next, self._window = [], 0, None
        self._meter.settle(self._cursor)

    def replace(self) -> None:
        """Close, and let a caller who goes on all the same know."""
        self._replaced = not self._ended
        self.close()
