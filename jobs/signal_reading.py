"""Reading what a job selects by, losses or features: the latest of each row, into a column.

Of what was observed, only epochs before the first one that is planned count: so a plan that is made
again, after its training has written more, is the same. In the column a row without a loss is NaN,
one whose loss is NaN or infinite is infinite.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..coresets.loss_rows import F32
from ..dataplane.columns import as_numpy
from ..dataplane.errors import SelectionError
from ..dataplane.latest import latest_of
from ..dataplane.row_column import ColumnWriter, RowColumn, Segment
from ..dataplane.rowset import RowSet
from ..dataplane.signal_digest import RunningDigest
from ..dataplane.signal_file import import_signal_file, open_signal_file
from ..dataplane.signal_parts import PartName, SignalPart
from ..dataplane.signals import SignalStore
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import Location
from .context import JobContext
from .losses import Losses, Signal

__all__ = ["column_losses", "run_tasks", "signal_features", "signal_losses"]

U64 = npt.NDArray[np.uint64]

RANGE_ROWS = 1 << 22
"""Rows of one number whose values a task reads: about 150 MB of a worker."""


def run_tasks(job: JobContext, function: Any, tasks: Sequence[Any], *args: Any) -> Iterator[Any]:
    """Yield (position, result) of tasks: on the engine, a single one in this process."""
    if len(tasks) == 1:
        yield 0, function(tasks[0], *args)
        return
    yield from job.engine.map(function, tasks, *args)


# --- of a signal ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ValueRange:
    """Row ids whose values a task reads.

    Attributes
    ----------
    runs : tuple of (int, int)
        First row id, and the one after the last.
    """

    runs: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> int:
        return sum(stop - start for start, stop in self.runs)

    @property
    def label(self) -> str:
        return f"the signal of rows {self.runs[0][0]:,} to {self.runs[-1][1] - 1:,}"

    @property
    def example(self) -> str | None:
        """A local file that it reads; for a worker that does not see it."""
        return None


def value_ranges(snapshot: Snapshot, width: int = 1) -> list[ValueRange]:
    """Cut a snapshot's row ids into ranges of about `RANGE_ROWS`, whatever its fragments are."""
    most = max(1, RANGE_ROWS // width)
    ranges: list[ValueRange] = []
    runs: list[tuple[int, int]] = []
    held = 0
    for run in snapshot.runs():
        start, stop = run.start, run.stop
        while start < stop:
            until = min(stop, start + most - held)
            runs.append((start, until))
            held += until - start
            start = until
            if held == most:
                ranges.append(ValueRange(tuple(runs)))
                runs, held = [], 0
    if runs:
        ranges.append(ValueRange(tuple(runs)))
    return ranges


def signal_losses(job: JobContext, signal: Signal | None, name: str, before: int) -> Losses:
    """Read the latest losses of all rows from a signal.

    Parameters
    ----------
    job : JobContext
    signal : Signal or None
        None: no row has a loss.
    name : str
        The signal's.
    before : int
        Only what was observed in epochs before this one. A file that names no epochs is read whole.
    """
    snapshot = job.dataset.snapshot
    store, limit = _store_of(job, signal, name, before)
    if store is None or limit == 0 or (name not in store.signals and not store.signals):
        return Losses(snapshot, digest=RunningDigest(snapshot).hexdigest())
    found = _read(job, store, name, limit, width=0)
    column = RowColumn((p.segment for p in found), resident=job.budget.resident)
    return Losses(
        snapshot,
        column,
        sum(p.scored for p in found),
        sum(p.nonfinite for p in found),
        _digest(snapshot, column),
    )


def signal_features(
    job: JobContext, signal: Signal | None, name: str, before: int
) -> tuple[RowColumn, str]:
    """Read the latest features of all rows from a signal.

    Parameters
    ----------
    job, signal, name, before
        As of `signal_losses`.

    Returns
    -------
    column : RowColumn of float32, shape (d,) a row
        By rank among all rows; NaN of a row that has none.
    digest : str

    Raises
    ------
    SelectionError
        Where the signal holds nothing yet.
    """
    store, limit = _store_of(job, signal, name, before)
    parts = [] if store is None or limit == 0 else store.parts(name)
    if store is None or not parts:
        raise SelectionError(
            f"There is no feature of any row yet: the signal '{name}' holds nothing that was "
            f"written before epoch {before}. Write it first, in a pass over the data, or name "
            "columns of the dataset (--set columns=NAME)."
        )
    found = _read(job, store, name, limit, width=max(1, parts[0].width))
    column = RowColumn((p.segment for p in found), resident=job.budget.resident)
    return column, _digest(job.dataset.snapshot, column)


def _store_of(
    job: JobContext, signal: Signal | None, name: str, before: int
) -> tuple[SignalStore | None, int]:
    """Return the store of a signal, or of a file's values, and before which epoch it counts."""
    if signal is None or signal.store is not None:
        return (None if signal is None else signal.store), before
    schema, _ = open_signal_file(signal.location)
    store = import_signal_file(
        signal.location.path,
        job.work.new_file("signal"),
        job.dataset.snapshot,
        name,
        storage_options=signal.location.options,
    )
    return store, before if "epoch" in schema.names else 1


def _read(
    job: JobContext, store: SignalStore, name: str, before: int, *, width: int
) -> list[RangeValues]:
    """Read the latest values of all rows, range by range; `width` numbers a row, 0 of losses."""
    torn = store.torn(name)
    if torn:
        job.progress.warn(f"{len(torn)} parts of '{name}' are not whole and left out: {torn[0]}")
    parts = [(str(p.name), p.location.path) for p in store.parts(name)]
    listing = job.work.new_file("parts")
    listing.write_text(json.dumps({"parts": parts}))
    tasks = value_ranges(job.dataset.snapshot, max(1, width))
    found: dict[int, RangeValues] = {}
    with job.progress.step(f"reading '{name}'", job.dataset.rows) as bar:
        for position, part in run_tasks(
            job,
            read_range,
            tasks,
            str(listing),
            dict(store.location.options),
            name,
            before,
            width,
            str(job.work.folder),
        ):
            found[position] = part
            bar.advance(tasks[position].rows)
    return [found[i] for i in range(len(tasks))]


def _digest(snapshot: Snapshot, column: RowColumn) -> str:
    running, start = RunningDigest(snapshot), 0
    for ids in RowSet(snapshot).chunks():
        running.add(ids, column[start : start + len(ids)])
        start += len(ids)
    return running.hexdigest()


@dataclass(frozen=True)
class RangeValues:
    """What a task read."""

    segment: Segment
    scored: int
    nonfinite: int


_parts: dict[str, list[SignalPart]] = {}  # of the last listing, with the indexes that were read


def _parts_in(listing: str, options: dict[str, Any]) -> list[SignalPart]:
    if listing not in _parts:
        found = []
        for text, path in json.loads(Path(listing).read_text())["parts"]:
            name = PartName.parse(text)
            assert name is not None  # for the type checker: the store listed it
            found.append(SignalPart(Location(path, options), name))
        _parts.clear()
        _parts[listing] = found
    return _parts[listing]


def read_range(
    task: ValueRange,
    listing: str,
    options: dict[str, Any],
    name: str,
    before: int,
    width: int,
    folder: str,
) -> RangeValues:
    """Write the values of a range of rows to a file; runs on workers."""
    parts = _parts_in(listing, options)
    scored = nonfinite = 0
    with ColumnWriter(Path(folder) / f"signal-{uuid.uuid4().hex[:12]}") as writer:
        for start, stop in task.runs:
            found = latest_of(parts, name, start, stop, before)
            if not width and found.values.ndim != 1:
                raise SelectionError(
                    f"The signal '{name}' holds {found.values.shape[1]} numbers a row: a selection "
                    "by loss needs one."
                )
            shape = (stop - start, width) if width else (stop - start,)
            values = np.full(shape, np.nan, np.float32)
            latest = found.values.reshape(len(found.rows), *shape[1:])
            finite = np.isfinite(latest)
            values[(found.rows - np.uint64(start)).view(np.int64)] = np.where(
                finite, latest, np.float32(np.inf)
            )
            whole = finite.all(axis=1) if width else finite
            scored += int(whole.sum())
            nonfinite += int((~whole).sum())
            writer.append(values)
        return RangeValues(writer.finish(), scored, nonfinite)


# --- of a column of the dataset -------------------------------------------------------------------


def column_losses(job: JobContext, column: str) -> Losses:
    """Read a column of the dataset as losses; a null is a row that was not scored."""
    snapshot = job.dataset.snapshot
    found = job.map_rows(
        f"reading '{column}'", loss_values, RowSet(snapshot), [column], column=column
    )
    scored = nonfinite = 0
    for part in found.chunks():
        finite = int(np.count_nonzero(np.isfinite(part)))
        scored += finite
        if finite < len(part):
            nonfinite += int(np.count_nonzero(np.isinf(part)))
    return Losses(snapshot, found, scored, nonfinite)


def loss_values(batch: pa.RecordBatch, ids: Any, column: str) -> F32:
    """Return a column as losses; a row function."""
    array = batch.column(column)
    values = as_numpy(array.drop_null() if array.null_count else array, column)
    if values.ndim != 1 or values.dtype.kind != "f":
        raise SelectionError(f"Column '{column}' is {array.type}: losses are floats, one a row.")
    values = values.astype(np.float32, copy=False)
    finite = np.isfinite(values)
    if not finite.all():
        values = np.where(finite, values, np.float32(np.inf))
    if not array.null_count:
        return values
    out = np.full(batch.num_rows, np.nan, np.float32)
    out[as_numpy(array.is_valid())] = values
    return out
