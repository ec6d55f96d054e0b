"""Writing signals while training: what is appended is collected, and a thread makes it durable.

A call of `append` copies its arrays into columns and returns. When enough observations have come,
or some seconds have gone by, the thread takes the columns, and others are filled meanwhile. It
writes a part of them: sorted by row, flushed to disk, and renamed into its place. Columns that were
written are filled again, and the thread sorts in arrays that it keeps: so memory is touched once.
A process that is killed loses what was not in a part yet, which `unflushed` counts.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import BatchloomError, RowIdError, SelectionError, SignalError, examples
from .observations import Observations, counted
from .rowset import RowSet
from .signal_columns import Appended, Copy, Workspace, rows_given, values_given
from .signal_compaction import put_part
from .signal_parts import PartSpace, part_bytes
from .storage import Location

__all__ = ["SignalWriter"]

_QUEUE = 4  # parts that may wait to be written

_log = logging.getLogger("batchloom")


@dataclass
class _Batch:
    """What was appended since the last was full: the columns of each signal.

    Attributes
    ----------
    columns : dict of str to Appended
    rows : int
        Observations in them that are not written yet.
    """

    columns: dict[str, Appended] = field(default_factory=dict)
    rows: int = 0

    def left(self) -> Iterator[tuple[str, Appended]]:
        """Yield (signal, columns) of those that hold something."""
        return ((name, a) for name, a in self.columns.items() if a.given)

    def clear(self, appended: Appended, most: int) -> None:
        self.rows -= appended.given
        appended.clear(most)


@dataclass
class _Stream:
    """What one signal's parts need to know of those before them."""

    width: int
    room: int = 0  # that columns which were full have
    sequence: Iterator[int] = field(default_factory=itertools.count)
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
        self._kept_rows = 2 * part_rows  # memory for more is given back
        self._changed = threading.Condition()
        self._filling = _Batch()
        self._full: deque[_Batch] = deque()
        self._free: list[_Batch] = []  # written, to be filled again
        self._taken: _Batch | None = None  # by the thread, not written yet
        self._made: Observations | None = None  # of the first signal that is left in it
        self._space = Workspace()  # of the thread
        self._part_space = PartSpace()
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
        ids = rows_given(rows)
        shape = ids.shape
        skipped = None if pad is None else Copy.of(pad)
        nth = None if occurrence is None else Copy.of(occurrence)
        if len(shape) != 1:
            raise SelectionError(f"'rows': expected shape (n,), got {shape}.")
        for name, given in (("pad", skipped), ("occurrence", nth)):
            if given is not None and given.shape != shape:
                raise SelectionError(f"'{name}': expected shape {shape}, got {given.shape}.")
        taken = {}
        for name, value in values.items():
            found = taken[name] = values_given(value)
            if found.shape[:1] != shape or len(found.shape) > 2 or found.shape[1:] == (0,):
                raise SelectionError(
                    f"'{name}': expected shape {shape}, got {found.shape}; give one value a "
                    "row (of a loss: use reduction='none')."
                )
        epoch, step = int(epoch), int(step)
        self._refuse_other_process()  # before the lock, which another process may hold for ever
        with self._changed:
            self._prepare(shape[0] * len(taken))
            for name, found in taken.items():
                width = found.shape[1] if len(found.shape) > 1 else 0
                columns = self._columns(name, width)
                if columns.width != width:
                    columns.refuse(shape[0])
                elif shape[0]:
                    here = columns.add(shape[0], epoch, step, ids, found)
                    if skipped is not None:
                        columns.add_later("pad", here, skipped.fetch)
                    if nth is not None:
                        columns.add_later("occurrence", here, nth.fetch)
                self._filling.rows += shape[0]
                self.unflushed += shape[0]
            if self._filling.rows >= self._part_rows:
                for name, columns in self._filling.columns.items():
                    self._streams[name].room = min(columns.room, self._kept_rows)
                self._full.append(self._filling)
                self._filling = self._free.pop() if self._free else _Batch()
                self._changed.notify_all()

    def _prepare(self, rows: int) -> None:
        """Raise what is to be raised, start the thread, and wait until there is room for rows."""
        self._raise_error()
        if self._closing:
            raise SignalError("The signal store is closed; open it again to append.")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="batchloom-signals", daemon=True)
            self._thread.start()
        if self.unflushed and self.unflushed + rows > _QUEUE * self._part_rows:
            self._wait_for_room(rows)

    def _columns(self, name: str, width: int) -> Appended:
        """Return the columns of a signal that are filled; the first value says its width."""
        found = self._filling.columns.get(name)
        if found is None:
            stream = self._streams.setdefault(name, _Stream(width))
            found = self._filling.columns[name] = Appended(stream.width, stream.room)
        return found

    def _wait_for_room(self, rows: int) -> None:
        """Hold the training up: the disk is slower than what comes; say so."""
        began = time.monotonic()
        while self.unflushed and self.unflushed + rows > _QUEUE * self._part_rows:
            self._raise_error()
            if not self._full and self._taken is None:  # the thread waits for more than fits
                self._hurry = True
                self._changed.notify_all()
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
                if not (self._closing or self._hurry or self._full):
                    self._changed.wait(self._seconds)
                if self._error is not None:  # until it was told, nothing is tried again
                    if self._closing:
                        return
                    self._changed.wait(1.0)
                    continue
                if self._taken is None:
                    self._taken = self._next()
                if self._taken is None:
                    if self._closing:
                        return
                    continue
            error = self._written(self._taken)
            self._space.trim(self._kept_rows)
            with self._changed:
                self._error = error
                if not self._taken.rows:
                    self._free.append(self._taken)
                    self._taken = None
                left = [self._filling, *self._full, *([self._taken] if self._taken else [])]
                self.unflushed = sum(batch.rows for batch in left)
                self._changed.notify_all()

    def _next(self) -> _Batch | None:
        """Take what is to be written next: what is full, else what there is."""
        found = None
        if self._full:
            found = self._full.popleft()
        elif self._filling.rows:
            found, self._filling = self._filling, self._free.pop() if self._free else _Batch()
        if not self._full and not self._filling.rows:
            self._hurry = False
        return found

    def _written(self, batch: _Batch) -> BatchloomError | None:
        """Write what was taken, or what of it could not be written before; say what went wrong."""
        error: BatchloomError | None = None
        try:
            for name, appended in batch.left():
                if self._made is None:
                    try:
                        error = self._make(name, appended) or error
                    except Exception:  # made again it fails again: what comes after goes on
                        batch.clear(appended, self._kept_rows)
                        raise
                if self._made is not None:
                    self._write_part(name, self._made)
                    self._made = None
                batch.clear(appended, self._kept_rows)
        except BatchloomError as failed:
            return failed
        except Exception as failed:
            return SignalError(f"Writing signals to {self._folder} failed: {failed!r}.")
        return error

    def _make(self, name: str, appended: Appended) -> BatchloomError | None:
        """Make observations of what was appended to a signal; say what of it cannot be."""
        error: BatchloomError | None = None
        stream = self._streams[name]
        if appended.refused:
            error = SelectionError(
                f"The signal '{name}' holds values of shape {stream.width or ()}; others were "
                "appended to it, and left out."
            )
        observed, last = appended.by_row(self._attempt, self._space)
        if not len(observed):
            return error
        if appended.counted:
            before, stream.last = stream.last, _joined(stream.last, last)
            observed = counted(before, observed)
        if self._holds(observed.rows):
            self._made = observed
            return error
        inside = self._rows.contains(observed.rows)
        if inside.any():
            self._made = observed.take(inside)
        bad = np.unique(observed.rows[~inside])
        return RowIdError(
            f"{len(bad):,} of the rows whose '{name}' was appended are not in the dataset that the "
            f"store is bound to, and were left out: {examples(bad)}. Open the store with the "
            "dataset as it is now."
        )

    def _holds(self, rows: npt.NDArray[np.uint64]) -> bool:
        """Whether all of ascending rows are in the dataset."""
        starts, stops = self._borders
        if self._rows.chosen is not None or len(starts) > len(rows) // 8 + 1:
            return bool(self._rows.contains(rows).all())
        held = np.searchsorted(rows, stops) - np.searchsorted(rows, starts)
        return int(held.sum()) == len(rows)

    @cached_property
    def _borders(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
        """First ids, and ends, of the runs of ids without a gap that the snapshot holds."""
        runs = [run for run in self._rows.snapshot.runs() if run]
        starts, stops = ([run.start for run in runs], [run.stop for run in runs])
        return np.array(starts, np.uint64), np.array(stops, np.uint64)

    def _write_part(self, name: str, observed: Observations) -> None:
        part, data = part_bytes(
            observed,
            writer=self._writer,
            sequence=next(self._streams[name].sequence),
            attempt=self._attempt,
            space=self._part_space,
        )
        put_part(self._folder.join(name), part, data)
        if len(observed) > self._kept_rows:
            self._part_space = PartSpace()


def _joined(before: Observations, last: Observations) -> Observations:
    """Return the observations of the last step, with those of it in the parts before."""
    same = len(before) and before.epoch[0] == last.epoch[0] and before.step[0] == last.step[0]
    return Observations.concat([before, last]) if same else last
