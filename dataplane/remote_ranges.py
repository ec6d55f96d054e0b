"""Ranges of an epoch's micro-batches, fetched from a service, some ahead of who reads.

An epoch is cut into ranges of equal numbers of micro-batches, about `RANGE_BYTES` each. Whoever
reads on has `AHEAD` ranges under way; each is a request of its own, so no more than these are ever
on their way, however slow the reader. A jump asks for the range that holds the place.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

import pyarrow as pa

from .epochs import EpochRecord
from .errors import BatchloomError, ServiceError
from .plan import BatchPlan
from .remote_client import ServiceClient
from .remote_wire import RANGE_BATCHES, Received, decode_range

__all__ = ["AHEAD", "RANGE_BYTES", "RangeReader"]

RANGE_BYTES = 2 << 20
AHEAD = 3

_KEPT = 6


class _Fetch:
    """A range that a thread asks for."""

    def __init__(self, reader: RangeReader, number: int) -> None:
        self._done = threading.Event()
        self.unwanted = threading.Event()
        self._found: Received | None = None
        self._error: BatchloomError | None = None
        threading.Thread(
            target=self._run, args=(reader, number), name="batchloom-ranges", daemon=True
        ).start()

    def _run(self, reader: RangeReader, number: int) -> None:
        try:
            self._found = reader.fetch(number, self.unwanted)
        except BatchloomError as error:
            self._error = error
        except Exception as error:
            self._error = ServiceError(f"Fetching micro-batches failed: {error!r}.")
        finally:
            self._done.set()

    @property
    def failed(self) -> bool:
        return self._done.is_set() and self._error is not None

    def peek(self) -> Received | None:
        """Return the range where it is there."""
        return self._found if self._done.is_set() else None

    def wait(self) -> Received:
        self._done.wait()
        if self._found is None:
            raise self._error or ServiceError("Fetching micro-batches was given up.")
        return self._found


class RangeReader:
    """Micro-batches of one epoch by range; may be used from several threads, and after a fork.

    Parameters
    ----------
    client : ServiceClient
    route : str
        Of the epoch's micro-batches.
    record : EpochRecord
    schema : Schema
        Of a part.

    Attributes
    ----------
    size : int
        Micro-batches of a range.
    """

    def __init__(
        self, client: ServiceClient, route: str, record: EpochRecord, schema: pa.Schema
    ) -> None:
        self._client, self._route, self._schema = client, route, schema
        self._batches = record.micro_batches
        row = 8 + 4 * ("weights" in schema.names)
        each = max(1, row * record.samples // max(1, record.micro_batches))
        self.size = min(max(1, RANGE_BYTES // each), RANGE_BATCHES)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._fetches: OrderedDict[int, _Fetch] = OrderedDict()
        self._last: tuple[int, Received] | None = None

    def _fetch(self, number: int) -> _Fetch:
        """Return a range that is fetched; ask for it where nobody has."""
        found = self._fetches.get(number)
        if found is None or found.failed:
            found = self._fetches[number] = _Fetch(self, number)
        self._fetches.move_to_end(number)
        return found

    def expect(self, index: int) -> None:
        """Say that micro-batches from `index` on are read next: ask for some ranges now."""
        if self._process != os.getpid():  # forked: the threads that fetch are the parent's
            self._forget()
        number = index // self.size
        last = min(number + AHEAD, (self._batches - 1) // self.size)
        with self._lock:
            for ahead in range(last, number - 1, -1):  # the one that is read is used last
                self._fetch(ahead)
            while len(self._fetches) > _KEPT:
                _, dropped = self._fetches.popitem(last=False)
                dropped.unwanted.set()

    def range_of(self, index: int) -> tuple[int, Received]:
        """Return (index of its first micro-batch, range) of the range that holds one."""
        if self._process != os.getpid():
            self._forget()
        number = index // self.size
        last = self._last
        if last is not None and last[0] == number * self.size:
            return last
        with self._lock:
            fetch = self._fetch(number)
        found = number * self.size, fetch.wait()
        self._last = found
        return found

    def at_hand(self) -> Iterator[tuple[int, BatchPlan]]:
        """Yield (index of its first micro-batch, plan) of the ranges that are there."""
        if self._process != os.getpid():
            self._forget()
        with self._lock:
            fetches = list(self._fetches.items())
        for number, fetch in fetches:
            received = fetch.peek()
            if received is not None:
                yield number * self.size, received.plan

    def fetch(self, number: int, unwanted: threading.Event) -> Received:
        """Ask for a range and wait for it."""
        start = number * self.size
        stop = min(start + self.size, self._batches)
        path = f"{self._route}?from={start}&to={stop}"
        data = self._client.get(path, stopped=unwanted).data
        where = f"{self._client.service}{path}"
        return decode_range(data, self._schema, start=start, stop=stop, where=where)
