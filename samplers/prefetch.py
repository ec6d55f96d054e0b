"""A background thread that prepares a bounded number of items ahead.

Handing an item over wakes a thread, which costs more than a small batch does; so what is handed
over may be many batches, and each item says how many it counts for.

The thread runs a generator; the caller takes its items in order. Nothing is left behind: when the
caller closes the iterator, drops it, reads it to its end, or is interrupted, the thread is told to
stop and joined. An error in the thread is raised in the caller, after the items before it, with
the traceback of the thread.

The thread never refers to the iterator, only to what both share; so the iterator can be collected
while the thread waits.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

__all__ = ["Prefetched"]

T = TypeVar("T")


class _Shared(Generic[T]):
    """What the thread and the caller share."""

    def __init__(
        self,
        source: Generator[T, None, None],
        depth: int,
        stopped: threading.Event,
        weigh: Callable[[T], int],
    ) -> None:
        self._source = source
        self._depth = depth
        self._stopped = stopped
        self._weigh = weigh
        self._ready = 0
        self._items: deque[T] = deque()
        # Re-entrant, because the garbage collector may close an iterator wherever it runs.
        self._changed = threading.Condition(threading.RLock())
        self._ended = False
        self._error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name="batchloom-prefetch", daemon=True)

    def _run(self) -> None:
        try:
            while self._room():
                try:
                    item = next(self._source)
                except StopIteration:
                    break
                with self._changed:
                    if self._stopped.is_set():
                        break
                    self._items.append(item)
                    self._ready += self._weigh(item)
                    self._changed.notify_all()
        except BaseException as error:  # whatever it is, the caller gets it
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._source.close()

    def _room(self) -> bool:
        """Wait for room; False when told to stop."""
        with self._changed:
            while self._ready >= self._depth and not self._stopped.is_set():
                self._changed.wait()
            return not self._stopped.is_set()

    def take(self) -> T:
        with self._changed:
            while not self._items and not self._ended:
                self._changed.wait()
            if self._items:
                item = self._items.popleft()
                self._ready -= self._weigh(item)
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
        if error is not None:
            raise error
        raise StopIteration

    def close(self) -> None:
        with self._changed:
            self._stopped.set()
            self._items.clear()
            self._changed.notify_all()
        if self.thread is not threading.current_thread():
            self.thread.join()
            self._error = None  # of a batch that nobody waits for any more


class Prefetched(Iterator[T]):
    """The items of a generator, prepared ahead.

    Parameters
    ----------
    source : generator
    depth : int
        At least 1. While the items that are ready count for less, another one is prepared.
    stopped : threading.Event
        Set when the iterator is closed; a source that waits should wait for it too.
    weigh : callable, optional
        What an item counts for. None: 1.
    """

    def __init__(
        self,
        source: Generator[T, None, None],
        depth: int,
        stopped: threading.Event,
        weigh: Callable[[T], int] | None = None,
    ) -> None:
        self._shared = _Shared(source, depth, stopped, weigh or _one)
        self._shared.thread.start()
        self._finalizer = weakref.finalize(self, self._shared.close)

    def __next__(self) -> T:
        try:
            return self._shared.take()
        except BaseException:  # the end, an error of the source, or an interrupt while waiting
            self.close()
            raise

    def close(self) -> None:
        """Stop the thread and wait for it; again is fine."""
        self._finalizer()


def _one(_: object) -> int:
    return 1
