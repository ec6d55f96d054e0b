"""Writing signals while training: what is appended is collected, and a thread makes it durable.

A call of `append` copies its arrays and returns. The thread writes a part when enough observations
have come, or some seconds have gone by: sorted by row, flushed to disk, and renamed into its place.
A process that is killed loses what was not in a part yet, which `unflushed` counts.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BatchloomError, RowIdError, SelectionError, SignalError, examples
from .observations import Observations, stable_order
from .rowset import RowSet
from .signal_compaction import put_part
from .signal_parts import part_bytes
from .snapshot import as_row_ids
from .storage import Location

__all__ = ["SignalWriter"]

_QUEUE = 4  # parts that may wait to be written

_log = logging.getLogger("batchloom")


@dataclass(frozen=True, slots=True)
class _Copy:
    """A copy of an array or tensor, on its way to the host.

    Attributes
    ----------
    shape : tuple of int
    fetch : callable
        Returns it as an array; waits for the device that it is on.
    """

    shape: tuple[int, ...]
    fetch: Callable[[], npt.NDArray[Any]]

    @classmethod
    def of(cls, values: Any, dtype: Any = None) -> _Copy:
        """Copy an array or tensor, as it is now; torch is not imported for it."""
        if hasattr(values, "detach"):
            return cls._of_tensor(values.detach() if dtype is None else values.detach().float())
        array = np.array(values, dtype=dtype)
        return cls(array.shape, lambda: array)

    @classmethod
    def _of_tensor(cls, values: Any) -> _Copy:
        shape = tuple(values.shape)
        if values.device.type == "cpu":
            array = np.array(values.numpy())
            return cls(shape, lambda: array)
        # Copied on the device, in order with what runs there; the thread waits, not the step.
        clone, event = values.clone(), None
        if values.is_cuda:
            event = sys.modules["torch"].cuda.Event()
            event.record()

        def fetch() -> npt.NDArray[Any]:
            if event is not None:
                event.synchronize()
            found: npt.NDArray[Any] = clone.cpu().numpy()
            return found

        return cls(shape, fetch)


@dataclass(frozen=True, slots=True)
class _Item:
    """One call of `append`, for one signal."""

    rows: _Copy
    epoch: int
    step: int
    value: _Copy
    pad: _Copy | None
    occurrence: _Copy | None

    @property
    def width(self) -> int:
        """Numbers in a value; 0 of plain numbers."""
        return 0 if len(self.value.shape) == 1 else self.value.shape[1]


def _observed(items: Sequence[_Item], attempt: int) -> Observations:
    """Return what was appended to a signal, as it came."""
    rows = [as_row_ids(i.rows.fetch()) for i in items]
    sizes = [len(r) for r in rows]
    found = Observations(
        np.concatenate(rows),
        np.repeat(np.array([i.epoch for i in items], np.uint32), sizes),
        np.repeat(np.array([i.step for i in items], np.uint64), sizes),
        np.zeros(sum(sizes), np.uint16),
        np.full(sum(sizes), attempt, np.uint16),
        np.concatenate([i.value.fetch() for i in items]),
    )
    kept, start = np.ones(len(found), bool), 0
    for item, size in zip(items, sizes, strict=True):
        here = slice(start, start + size)
        if item.occurrence is not None:
            found.occurrence[here] = item.occurrence.fetch()
        if item.pad is not None:
            kept[here] = ~item.pad.fetch().astype(bool)
        start += size
    return found if kept.all() else found.take(kept)


@dataclass
class _Stream:
    """What one signal's parts need to know of those before them."""

    sequence: Iterator[int] = field(default_factory=itertools.count)
    width: int | None = None
    last: Observations = field(default_factory=Observations.zeros)  # of the last step so far


class SignalWriter:
    """Collects observations and writes them in parts.

    Parameters
    ----------
    folder : Location
        A folder for each signal is made in it.
    rows : RowSet
        The rows that there are.
    writer, attempt : int
    part_rows : int
        Observations after which a part is written.
    seconds : float
        Seconds after which one is written whatever it holds.
    """

    def __init__(
        self,
        folder: Location,
        rows: RowSet,
        *,
        writer: int,
        attempt: int,
        part_rows: int,
        seconds: float,
    ) -> None:
        self._folder, self._rows = folder, rows
        self._writer, self._attempt = writer, attempt
        self._part_rows, self._seconds = part_rows, seconds
        self._changed = threading.Condition()
        self._pending: list[tuple[str, _Item]] = []
        self._pending_rows = 0
        self._made: list[tuple[str, Observations]] = []  # by the thread, not written yet
        self._streams: dict[str, _Stream] = {}
        self._error: BatchloomError | None = None
        self._hurry = self._closing = False
        self._waited = 0.0
        self.unflushed = 0
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        atexit.register(self.close)

    # --- in the training loop ---------------------------------------------------------------------

    def append(
        self,
        rows: Any,
        *,
        epoch: int,
        step: int,
        values: Mapping[str, Any],
        pad: Any,
        occurrence: Any,
    ) -> None:
        """Take observations of a step; see `SignalStore.append`."""
        ids = _Copy.of(rows)
        skipped = None if pad is None else _Copy.of(pad)
        nth = None if occurrence is None else _Copy.of(occurrence)
        if len(ids.shape) != 1:
            raise SelectionError(f"'rows': expected shape (n,), got {ids.shape}.")
        for name, given in (("pad", skipped), ("occurrence", nth)):
            if given is not None and given.shape != ids.shape:
                raise SelectionError(f"'{name}': expected shape {ids.shape}, got {given.shape}.")
        items = []
        for name, value in values.items():
            taken = _Copy.of(value, np.float32)
            if taken.shape[:1] != ids.shape or len(taken.shape) > 2:
                raise SelectionError(
                    f"'{name}': expected shape {ids.shape}, got {taken.shape}; give one value a "
                    "row (of a loss: use reduction='none')."
                )
            items.append((name, _Item(ids, int(epoch), int(step), taken, skipped, nth)))
        self._put(items, ids.shape[0] * len(items))

    def _put(self, items: list[tuple[str, _Item]], rows: int) -> None:
        self._refuse_other_process()
        with self._changed:
            self._raise_error()
            if self._closing:
                raise SignalError("The signal store is closed; open it again to append.")
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="batchloom-signals", daemon=True
                )
                self._thread.start()
            if self.unflushed and self.unflushed + rows > _QUEUE * self._part_rows:
                self._wait_for_room(rows)
            self._pending += items
            self._pending_rows += rows
            self.unflushed += rows
            if self._pending_rows >= self._part_rows:
                self._changed.notify_all()

    def _wait_for_room(self, rows: int) -> None:
        """Hold the training up: the disk is slower than what comes; say so."""
        began = time.monotonic()
        while self.unflushed and self.unflushed + rows > _QUEUE * self._part_rows:
            self._raise_error()
            self._changed.wait(1.0)
        waited = time.monotonic() - began
        if int((self._waited + waited) / 10) > int(self._waited / 10) or not self._waited:
            _log.warning(
                "signals come faster than %s takes them: the training has waited %.1f s for it",
                self._folder,
                self._waited + waited,
            )
        self._waited += waited

    def flush(self) -> None:
        """Return when all that was appended is durable."""
        self._refuse_other_process()
        with self._changed:
            self._hurry = self.unflushed > 0
            while self.unflushed:
                self._raise_error()
                self._changed.notify_all()
                self._changed.wait(1.0)
            self._raise_error()

    def close(self) -> None:
        """Flush, and end the thread; nothing in a process that was forked off."""
        if self._closing or os.getpid() != self._process:
            return
        try:
            self.flush()
        finally:
            with self._changed:
                self._closing = True
                self._changed.notify_all()
            if self._thread is not None:
                self._thread.join()
            atexit.unregister(self.close)

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            self._hurry = False
            raise error

    def _refuse_other_process(self) -> None:
        if os.getpid() != self._process:
            raise SignalError(
                "This signal store was opened by another process, whose thread does not live in "
                "this one; open the store in the process that appends."
            )

    # --- in the thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._closing and not self._hurry and self._pending_rows < self._part_rows:
                    self._changed.wait(self._seconds)
                if self._error is not None:  # until it was told, nothing is tried again
                    if self._closing:
                        return
                    self._changed.wait(1.0)
                    continue
                items, self._pending, self._pending_rows = self._pending, [], 0
                self._hurry = False
                if self._closing and not items and not self._made:
                    return
            error = self._written(items)
            with self._changed:
                self._error = error
                self.unflushed = self._pending_rows + sum(len(o) for _, o in self._made)
                self._changed.notify_all()

    def _written(self, items: list[tuple[str, _Item]]) -> BatchloomError | None:
        """Write what was appended, and what could not be written before; return what went wrong."""
        error: BatchloomError | None = None
        try:
            for name in dict.fromkeys(name for name, _ in items):
                error = self._make(name, [i for n, i in items if n == name]) or error
            while self._made:
                self._write_part(*self._made[0])
                del self._made[0]
        except BatchloomError as failed:
            return failed
        except Exception as failed:
            return SignalError(f"Writing signals to {self._folder} failed: {failed!r}.")
        return error

    def _make(self, name: str, items: list[_Item]) -> BatchloomError | None:
        """Make observations of what was appended to a signal; say what of it cannot be."""
        stream = self._streams.setdefault(name, _Stream())
        if stream.width is None:
            stream.width = items[0].width
        if any(i.width != stream.width for i in items):
            return SelectionError(
                f"The signal '{name}' holds values of shape {stream.width or ()}; others were "
                "appended to it, and left out."
            )
        observed = _observed(items, self._attempt)
        counted = all(i.occurrence is None for i in items)
        if len(observed) and counted:
            before, stream.last = stream.last, _last_step(stream.last, observed)
        observed = observed.reordered(stable_order(observed.rows))
        if len(observed) and counted:
            _count(before, observed)
        inside = self._rows.contains(observed.rows)
        if inside.all():
            if len(observed):
                self._made.append((name, observed))
            return None
        if inside.any():
            self._made.append((name, observed.take(inside)))
        bad = np.unique(observed.rows[~inside])
        return RowIdError(
            f"{len(bad):,} of the rows whose '{name}' was appended are not in the dataset that the "
            f"store is bound to, and were left out: {examples(bad)}. Open the store with the "
            "dataset as it is now."
        )

    def _write_part(self, name: str, observed: Observations) -> None:
        stream = self._streams[name]
        part, data = part_bytes(
            observed, writer=self._writer, sequence=next(stream.sequence), attempt=self._attempt
        )
        put_part(self._folder.join(name), part, data)


def _count(before: Observations, observed: Observations) -> None:
    """Write to observations how often their step had held their row, in an earlier part too.

    Parameters
    ----------
    before : Observations
        Of the last step of the part before.
    observed : Observations
        Ascending by row, those of one row as they came.
    """
    place = np.searchsorted(observed.rows, before.rows)
    known_before = observed.rows[np.minimum(place, len(observed) - 1)] == before.rows
    if not known_before.any() and not observed.same_row().any():
        return
    known = Observations.concat([before, observed]) if len(before) else observed
    order = np.lexsort((known.step, known.epoch, known.rows))
    same = known.take(order).same_step()
    place = np.arange(len(known))
    first = np.maximum.accumulate(np.where(same, 0, place))
    nth = np.empty(len(known), np.uint16)
    nth[order] = place - first
    observed.occurrence[:] = nth[len(before) :]


def _last_step(before: Observations, observed: Observations) -> Observations:
    """Return the observations of the step that was observed last."""
    here = (observed.epoch == observed.epoch[-1]) & (observed.step == observed.step[-1])
    found = observed.take(here)
    same = len(before) and before.epoch[0] == found.epoch[0] and before.step[0] == found.step[0]
    return Observations.concat([before, found]) if same else found
