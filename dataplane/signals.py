"""Signals: what a training run says of rows, such as their losses, kept for the next plan.

    >>> with SignalStore.for_writing("signals/", open_plan("plan/")) as store:
    ...     for batch in loader:
    ...         losses = ...                      # one a row: reduction="none"
    ...         store.append(batch.rows, epoch=batch.epoch, step=batch.step, loss=losses)
    >>> SignalStore.open("signals/").latest("loss")

A store is a directory, or a prefix of an object store::

    signals.json                        the format
    snapshot-<next row id>-<sha256>.json    the datasets that its row ids belong to (`snapshot`)
    attempt-<number>.json               a start of a training that writes
    loss/                               one folder a signal, of parts (`signal_parts`)

Every file is written once, whole or not at all, and none is changed; so any number of ranks write
at the same time, and a reader sees whole parts only. The rules of keys and attempts are those of
`observations`. *Latest* of a row is the value of the greatest (epoch, step), the mean where that
step held the row more than once.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from .bitmap import Bitmap
from .errors import DatasetError, ParameterError, SignalError, nearest
from .latest import LatestValues, latest_of
from .observations import Observations, winners
from .remote_wire import is_run_address
from .rowset import RowSet
from .series import Plan, Series
from .signal_binding import MOST_ATTEMPTS, bind, draw_attempt, snapshot_given, snapshot_of
from .signal_compaction import compact, live_parts
from .signal_digest import RunningDigest
from .signal_parts import SignalPart, is_torn
from .signal_writer import SignalWriter
from .snapshot import Snapshot
from .storage import Location, locate

__all__ = ["Completeness", "LatestValues", "SignalStore"]

RANGE_ROWS = 1 << 21
"""Row ids whose latest values are found at a time: about 50 MB."""


_log = logging.getLogger("batchloom")


@dataclass(frozen=True)
class Completeness:
    """How much of an epoch was observed.

    Attributes
    ----------
    expected, found : int
        Different rows that the plan holds; those of them that were observed.
    missing : Bitmap
        The others.
    """

    expected: int
    found: int
    missing: Bitmap


class SignalStore:
    """The signals of a training; made by `open` or `for_writing`.

    Attributes
    ----------
    location : Location
    snapshot : Snapshot
        The newest that row ids belong to.
    attempt : int or None
        That of what is appended; None where the store was opened for reading.
    """

    def __init__(
        self,
        location: Location,
        snapshot: Snapshot,
        writer: SignalWriter | None = None,
        attempt: int | None = None,
    ) -> None:
        self.location, self.snapshot, self.attempt = location, snapshot, attempt
        self._writer = writer

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SignalStore:
        """Open a store for reading.

        Raises
        ------
        DatasetError
            Where there is none.
        """
        location = locate(path, storage_options)
        snapshot = snapshot_of(location)
        if snapshot is None:
            raise DatasetError(
                f"There is no signal store at {location}. A training loop makes one with "
                "SignalStore.for_writing."
            )
        return cls(location, snapshot)

    @classmethod
    def for_writing(
        cls,
        path: str | os.PathLike[str],
        dataset: Any,
        *,
        writer: int = 0,
        attempt: int | None = None,
        part_rows: int = 1 << 18,
        flush_seconds: float = 10.0,
        storage_options: Mapping[str, Any] | None = None,
    ) -> SignalStore:
        """Open a store for appending; it is made where there is none.

        Parameters
        ----------
        path : path or URI
            Or the address of a run of a service: then a `remote_signals.RemoteSignals`.
        dataset : Snapshot, Dataset, Manifest or Series
            What the row ids belong to. A dataset that has grown since the store was made extends
            it.
        writer : int
            Which of those that write at the same time: the rank.
        attempt : int, optional
            Of the start of the training; all its ranks must give the same. None: the next one is
            drawn, which only one rank may do.
        part_rows : int
            Observations after which a part is written.
        flush_seconds : float
            Seconds after which one is written, whatever it holds: as much is lost at most, with
            what waits to be written, where the process is killed.
        storage_options : mapping, optional
            Options of the filesystem, for a URI.

        Raises
        ------
        DatasetChangedError
            Where the store belongs to another dataset.
        """
        _require("writer", writer, 0, 99_999)
        _require("part_rows", part_rows, 1, 1 << 26)
        if is_run_address(path):
            from .remote_signals import open_remote_signals

            return open_remote_signals(
                str(path),
                dataset,
                writer=writer,
                attempt=attempt,
                part_rows=part_rows,
                flush_seconds=flush_seconds,
                storage_options=storage_options,
            )
        location = locate(path, storage_options)
        snapshot = bind(location, snapshot_given(dataset))
        if attempt is None:
            attempt = draw_attempt(location)
        _require("attempt", attempt, 0, MOST_ATTEMPTS)
        writes = SignalWriter(
            location,
            RowSet(snapshot),
            writer=writer,
            attempt=attempt,
            part_rows=part_rows,
            seconds=flush_seconds,
        )
        return cls(location, snapshot, writes, attempt)

    def __enter__(self) -> SignalStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- writing ----------------------------------------------------------------------------------

    def append(
        self,
        rows: Any,
        *,
        epoch: int,
        step: int,
        pad: Any = None,
        occurrence: Any = None,
        **values: Any,
    ) -> None:
        """Take what was observed in a step; it is durable after `flush`, or some seconds.

        Parameters
        ----------
        rows : int tensor or array, shape (n,)
            Row ids.
        epoch, step : int
            As of the plan.
        pad : bool tensor or array, shape (n,), optional
            Rows to skip: ``batch.pad``.
        occurrence : int tensor or array, shape (n,), optional
            How often the step had held the row before. When None, counted over what this writer
            appends of a step; ranks that share rows within a step must give it.
        **values : float tensor or array, shape (n,) or (n, width)
            By signal: ``loss=losses``. Kept as float32; copied, so they may be changed afterwards.

        Raises
        ------
        SelectionError
            Where shapes differ: a loss that was reduced has none.
        RowIdError, SignalError, StorageError
            Where writing what came before has failed.
        """
        if not values:
            raise ParameterError("Append at least one signal: append(rows, …, loss=losses).")
        for name in values:
            _check_name(name)
        self._writing().append(
            rows, epoch=epoch, step=step, values=values, pad=pad, occurrence=occurrence
        )

    @property
    def unflushed(self) -> int:
        """Observations that are lost if the process is killed now."""
        return 0 if self._writer is None else self._writer.unflushed

    def flush(self) -> None:
        """Return when all that was appended is durable."""
        self._writing().flush()

    def close(self) -> None:
        """Flush and stop writing; nothing where the store was opened for reading."""
        if self._writer is not None:
            self._writer.close()

    def _writing(self) -> SignalWriter:
        if self._writer is None:
            raise SignalError(
                f"{self.location} was opened for reading; use SignalStore.for_writing."
            )
        return self._writer

    # --- reading ----------------------------------------------------------------------------------

    @property
    def signals(self) -> tuple[str, ...]:
        """Names of the signals that the store holds."""
        return tuple(sorted(n for n, size in self.location.entries() if size is None))

    def parts(self, signal: str = "loss") -> list[SignalPart]:
        """Return the whole parts of a signal; those that are torn are told of, and left out.

        Raises
        ------
        SignalError
            Where there is no such signal.
        """
        folder = self.location.join(signal)
        parts = live_parts(folder)
        if not parts and signal not in self.signals:
            held = ", ".join(self.signals) or "none"
            raise SignalError(
                f"{self.location} holds no signal '{signal}'.{nearest(signal, self.signals)} "
                f"It holds: {held}."
            )
        torn = [p for p in parts if is_torn(p.location)]
        for part in torn:
            _log.warning("%s is torn and left out: its rows were not scored", part.location)
        return [p for p in parts if p not in torn]

    def torn(self, signal: str = "loss") -> list[str]:
        """Return the names of parts that are not whole: cut off, or of a writer that died.

        A writer that is at work has one, too.
        """
        folder = self.location.join(signal)
        found = [n for n, _ in folder.entries() if n.startswith(".") and n.endswith(".tmp")]
        return sorted(found + [str(p.name) for p in live_parts(folder) if is_torn(p.location)])

    def latest(
        self,
        signal: str = "loss",
        *,
        start: int = 0,
        stop: int | None = None,
        before: int | None = None,
    ) -> Iterator[LatestValues]:
        """Yield the latest values of rows, ascending, in bounded memory.

        Parameters
        ----------
        signal : str
        start, stop : int, optional
            Row ids; all when None.
        before : int, optional
            Only what was observed in epochs before this one.

        Raises
        ------
        SignalConflictError
            Where one attempt has two values of a row in one step.
        SignalCorruptError
            Where a part is damaged.
        """
        stop = self.snapshot.next_row_id if stop is None else stop
        parts = self.parts(signal)
        for first in range(start, stop, RANGE_ROWS):
            last = min(first + RANGE_ROWS, stop)
            found = latest_of(parts, signal, first, last, before)
            if len(found.rows):
                yield found

    def history(self, row: int, signal: str = "loss") -> Observations:
        """Return all observations of a row, in order, those of the winning attempts."""
        found = [o for part in self.parts(signal) for o in part.read(row, row + 1)]
        return winners(Observations.concat(found), signal)

    def completeness(self, plan: Plan, epoch: int, signal: str = "loss") -> Completeness:
        """Compare what was observed in an epoch with what its plan holds.

        Parameters
        ----------
        plan : Manifest or Series
        epoch : int
        signal : str
        """
        manifest = plan.manifest_for(epoch) if isinstance(plan, Series) else plan
        size = max(self.snapshot.next_row_id, manifest.snapshot.next_row_id)
        expected = Bitmap.of(size, (block.rows for block in plan.epoch(epoch).blocks()))
        found = Bitmap.of(size, self._rows_of(epoch, signal))
        missing = Bitmap(expected.words & ~found.words)
        return Completeness(len(expected), len(expected) - len(missing), missing)

    def _rows_of(self, epoch: int, signal: str) -> Iterator[npt.NDArray[np.uint64]]:
        for part in self.parts(signal):
            low, high = part.epochs
            if low <= epoch <= high:
                for observed in part.read():
                    yield observed.rows[observed.epoch == epoch]

    def digest(self, signal: str = "loss", *, before: int | None = None) -> str:
        """Return the SHA-256 of the latest values, as manifests record what they were made of.

        Over the digests of the snapshot's fragments, in order; a fragment's is over its rows that
        have a finite value, ascending: row id (uint64), then the value's bits.
        """
        running = RunningDigest(self.snapshot)
        for found in self.latest(signal, before=before):
            running.add(found.rows, found.values)
        return running.hexdigest()

    def compact(self, signal: str = "loss") -> int:
        """Rewrite the parts of a signal as few, each of a range of rows; return how many there are.

        What the store says stays the same, and other writers may go on. A reader that began before
        may miss a part that is gone; it reads again.
        """
        return compact(self.location.join(signal), signal, self.parts(signal))


def _require(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ParameterError(
            f"The '{name}' parameter must be an int in the range [{low}, {high}]. "
            f"Got {value!r} instead."
        )


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ParameterError(
            f"A signal's name is of letters, digits, '_' and '-'. Got {name!r} instead."
        )
