"""What a Dask task does: read whole fragments, apply a function to their rows, write one file.

These functions run on workers, so they are importable, take paths, and may run twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.bitmap import Bitmap
from ..dataplane.chunks import chunk_runs
from ..dataplane.columns import as_arrow
from ..dataplane.dataset import ScanPart, scan_fragment
from ..dataplane.errors import SelectionError
from ..dataplane.fragments import FOOTER_THREADS, FragmentReader, FragmentRef
from ..dataplane.row_column import ColumnWriter, Segment
from .trail import note_fragment, note_row

__all__ = ["RowFunction", "ScanTask", "compute_rows", "group_tasks", "scan_rows", "scan_task"]

U64 = npt.NDArray[np.uint64]

RowFunction = Callable[..., npt.NDArray[Any]]
"""(record batch, row ids, **arguments) → array with one value (or one row) a row."""

TASK_BYTES = 128 << 20
_TASK_ROWS = 20_000_000
_MOST_TASKS = 5000
_SPLIT = 4  # a fragment larger than so many tasks is read by several
_LOOK_ROWS = 1 << 22  # bits looked at together


@dataclass(frozen=True)
class ScanTask:
    """What one task reads: whole fragments, or some chunks of one that is very large.

    Attributes
    ----------
    index : int
    refs : tuple of FragmentRef
    chunks : range, optional
        Row groups or record batches of the only fragment; all when None.
    chunk_rows : int
        Rows in these.
    """

    index: int
    refs: tuple[FragmentRef, ...]
    chunks: range | None = None
    chunk_rows: int = 0

    @property
    def rows(self) -> int:
        return sum(r.rows for r in self.refs) if self.chunks is None else self.chunk_rows

    @property
    def label(self) -> str:
        names = [r.label for r in self.refs]
        more = f" and {len(names) - 3} more fragments" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return next((r.uri for r in self.refs if r.location.is_local), None)


def group_tasks(
    refs: Sequence[FragmentRef], task_bytes: int = TASK_BYTES, *, whole: bool = False
) -> list[ScanTask]:
    """Group fragments in order into tasks of about `task_bytes`, whatever the number of workers.

    Parameters
    ----------
    refs : sequence of FragmentRef
    task_bytes : int
        Compressed bytes a task; more where that would make more than about 5,000 tasks. A fragment
        of more than four times as much is read by several tasks; its footer is read here.
    whole : bool
        Never split a fragment.
    """
    refs = [r for r in refs if r.rows]
    size = max(1, task_bytes, sum(r.bytes for r in refs) // _MOST_TASKS)
    most_rows = max(_TASK_ROWS, sum(r.rows for r in refs) // _MOST_TASKS)
    pieces = {} if whole else _split([r for r in refs if r.bytes > _SPLIT * size], size, most_rows)
    tasks: list[ScanTask] = []
    group: list[FragmentRef] = []
    held = rows = 0

    def close() -> None:
        nonlocal group, held, rows
        if group:
            tasks.append(ScanTask(len(tasks), tuple(group)))
            group, held, rows = [], 0, 0

    for ref in refs:
        if ref in pieces:
            close()
            for chunks, inside in pieces[ref]:
                tasks.append(ScanTask(len(tasks), (ref,), chunks, inside))
            continue
        group.append(ref)
        held, rows = held + ref.bytes, rows + ref.rows
        if held >= size or rows >= most_rows:
            close()
    close()
    return tasks


def _split(
    refs: Sequence[FragmentRef], size: int, most_rows: int
) -> dict[FragmentRef, list[tuple[range, int]]]:
    """Return the (chunks, rows) of each fragment's tasks, where they are more than one."""
    found = {}
    with ThreadPoolExecutor(FOOTER_THREADS) as pool:
        for ref, runs in zip(refs, pool.map(_runs, refs), strict=True):
            limit = min(most_rows, -(-ref.rows * size // ref.bytes))
            pieces: list[tuple[range, int]] = []
            for chunks, rows in runs:
                if pieces and pieces[-1][1] < limit:
                    start, held = pieces[-1][0].start, pieces[-1][1]
                    pieces[-1] = (range(start, chunks.stop), held + rows)
                else:
                    pieces.append((chunks, rows))
            if len(pieces) > 1:
                found[ref] = pieces
    return found


@lru_cache(maxsize=1 << 16)
def _runs(ref: FragmentRef) -> list[tuple[range, int]]:
    """Return the runs of a fragment's chunks; none of one that is always read as a whole."""
    if not (ref.location.is_local or ref.uri.endswith((".parquet", ".pq"))):
        return []  # it may be a stream, of which every task would read all
    reader = FragmentReader(ref, [])
    try:
        return chunk_runs(reader.chunk_rows)
    finally:
        reader.close()


def scan_task(
    task: ScanTask,
    columns: Sequence[str],
    schema: pa.Schema,
    wanted: Callable[[FragmentRef], bool] = lambda _: True,
) -> Iterator[ScanPart]:
    """Yield the record batches of a task's fragments, noting where it is in case its worker dies.

    Parameters
    ----------
    task : ScanTask
    columns : sequence of str
    schema : pyarrow.Schema
        Types that the columns must have.
    wanted : callable
        Whether a fragment is read at all.
    """
    for position, ref in enumerate(task.refs):
        if not wanted(ref):
            continue
        note_fragment(position, columns)
        for part in scan_fragment(ref, columns, schema, task.chunks):
            yield part
            note_row(part.first_row_id + part.batch.num_rows - ref.first_row_id)


def scan_rows(
    task: ScanTask, columns: Sequence[str], schema: pa.Schema, rows_file: str | None
) -> Iterator[tuple[pa.RecordBatch, U64]]:
    """Yield (record batch, row ids) of a task's rows, or of those in a file of bits."""
    if rows_file is None:
        for part in scan_task(task, columns, schema):
            yield part.batch, part.row_ids()
        return
    wanted = Bitmap(np.load(rows_file, mmap_mode="r"))
    for part in scan_task(task, columns, schema, lambda ref: _any_inside(wanted, ref)):
        first = part.first_row_id
        offsets = np.flatnonzero(wanted.inside(first, first + part.batch.num_rows))
        if len(offsets):
            yield part.batch.take(as_arrow(offsets)), part.row_ids()[offsets]


def _any_inside(rows: Bitmap, ref: FragmentRef) -> bool:
    stop = ref.first_row_id + ref.rows
    return any(
        rows.inside(first, min(first + _LOOK_ROWS, stop)).any()
        for first in range(ref.first_row_id, stop, _LOOK_ROWS)
    )


def compute_rows(
    task: ScanTask,
    columns: Sequence[str],
    schema: pa.Schema,
    rows_file: str | None,
    folder: str,
    function: RowFunction,
    arguments: dict[str, Any],
    one_each: bool = True,
) -> Segment | None:
    """Apply a row function to a task's rows; return the file of its values, None of no rows.

    Each row has one value, or, without `one_each`, as many as the function gives for all of them.
    """
    name = getattr(function, "__qualname__", "the function")
    target = Path(folder) / f"{task.index:06d}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        writer: ColumnWriter | None = None
        for batch, ids in scan_rows(task, columns, schema, rows_file):
            if writer is None:
                writer = stack.enter_context(ColumnWriter(target))
            values = function(batch, ids, **arguments)
            if one_each and len(values) != len(ids):
                raise SelectionError(f"{name} returned {len(values)} values for {len(ids)} rows.")
            writer.append(values)
        return None if writer is None else writer.finish()
