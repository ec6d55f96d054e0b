"""From windows to what the caller gets: the transform, in line, on threads or in other processes.

Whatever runs where, results come in the order of the plan, an error comes after the results before
it, and it carries a note that names its batch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple, TypeAlias

from .batch import Batch
from .pieces import Pieces
from .window import Window

__all__ = ["Outcome", "Run", "Transform", "apply", "as_they_are", "in_line", "on_threads"]

_POLL = 0.1  # seconds between looks at whether anybody still waits
_PATIENCE = 1.0  # seconds for calls to end by themselves

Transform: TypeAlias = Callable[[Batch], Any]


class Run(NamedTuple):
    """What the caller gets next: one result or many.

    Attributes
    ----------
    window : Window
        Whose batches they were.
    first : int
        Index in it of the first one.
    results : list
    """

    window: Window
    first: int
    results: list[Any]

    @property
    def pieces(self) -> Pieces:
        return self.window.pieces


class Outcome(NamedTuple):
    """What became of some batches: results, and the error that kept the others from one."""

    results: list[Any]
    error: BaseException | None = None
    seconds: float = 0.0


def apply(transform: Transform, batches: Iterable[Batch]) -> Outcome:
    """Transform batches up to the first that fails."""
    begun, results = time.perf_counter(), []
    for batch in batches:
        try:
            results.append(transform(batch))
        except Exception as error:
            error.add_note(
                f"Raised by the loader's transform of epoch {batch.epoch}, step {batch.step}, "
                f"micro {batch.micro}."
            )
            return Outcome(results, error, time.perf_counter() - begun)
    return Outcome(results, None, time.perf_counter() - begun)


def as_they_are(windows: Iterable[Window]) -> Iterator[Run]:
    """Yield windows whose batches nothing is done to."""
    for window in windows:
        yield Run(window, 0, window.batches())


def in_line(
    windows: Iterable[Window], transform: Transform, spent: Callable[[float], None]
) -> Generator[Run, None, None]:
    """Transform one batch after the other in this thread."""
    for window in windows:
        for index, batch in enumerate(window.batches()):
            outcome = apply(transform, [batch])
            spent(outcome.seconds)
            if outcome.error is not None:
                raise outcome.error
            yield Run(window, index, outcome.results)


def on_threads(
    windows: Iterable[Window],
    work: Callable[[list[Batch]], Outcome],
    spent: Callable[[float], None],
    stopped: threading.Event,
    *,
    threads: int,
    together: int = 1,
    abandon: Callable[[], None] | None = None,
) -> Generator[Run, None, None]:
    """Have batches transformed on threads, twice as many calls on the way as there are threads.

    Parameters
    ----------
    windows : iterable of Window
    work : callable
        Transforms some batches.
    spent : callable
        Told the seconds that it took.
    stopped : threading.Event
        Nobody waits for results any more.
    threads : int
    together : int
        Batches a call.
    abandon : callable, optional
        Ends calls that are not done soon after nobody waits for them; without it they are awaited.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="batchloom-transform")
    on_the_way: deque[_Call] = deque()
    try:
        for call in _calls(windows, pool, work, on_the_way, 2 * threads, together):
            outcome = _result(call.future, stopped)
            if outcome is None:
                return
            spent(outcome.seconds)
            if outcome.results:
                yield Run(call.window, call.first, outcome.results)
            if outcome.error is not None:
                raise outcome.error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        running = [c.future for c in on_the_way if not c.future.cancelled()]
        if abandon is not None and wait(running, timeout=_PATIENCE).not_done:
            abandon()
        pool.shutdown(wait=True)


class _Call(NamedTuple):
    window: Window
    first: int
    future: Future[Outcome]


def _calls(
    windows: Iterable[Window],
    pool: ThreadPoolExecutor,
    work: Callable[[list[Batch]], Outcome],
    on_the_way: deque[_Call],
    depth: int,
    together: int,
) -> Iterator[_Call]:
    """Yield the oldest call that is on the way, as soon as more than `depth` are."""
    broken: BaseException | None = None
    source = iter(windows)
    while True:
        try:
            window = next(source)
        except StopIteration:
            break
        except Exception as error:  # what was read before it still counts
            broken = error
            break
        batches = window.batches()
        for first in range(0, len(batches), together):
            future = pool.submit(work, batches[first : first + together])
            on_the_way.append(_Call(window, first, future))
            if len(on_the_way) > depth:
                yield on_the_way[0]
                on_the_way.popleft()
    while on_the_way:
        yield on_the_way[0]
        on_the_way.popleft()
    if broken is not None:
        raise broken


def _result(future: Future[Outcome], stopped: threading.Event) -> Outcome | None:
    """Wait for a result; None when nobody waits for it any more."""
    while not future.done():
        wait([future], timeout=_POLL)
        if stopped.is_set() and not future.done():
            return None
    return future.result()
