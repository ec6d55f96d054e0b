"""What a Dask task does: read whole fragments, apply a function to their rows, write one file.

These functions run on workers, so they are importable, take paths, and may run twice.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.bitmap import Bitmap
from ..dataplane.columns import as_arrow
from ..dataplane.dataset import scan_fragment
from ..dataplane.errors import SelectionError
from ..dataplane.fragments import FragmentRef
from ..dataplane.row_column import ColumnWriter, Segment

__all__ = ["RowFunction", "ScanTask", "compute_rows", "group_tasks", "scan_rows"]

U64 = npt.NDArray[np.uint64]

RowFunction = Callable[..., npt.NDArray[Any]]
"""(record batch, row ids, **arguments) → array with one value (or one row) a row."""

TASK_BYTES = 128 << 20
_TASK_ROWS = 20_000_000


@dataclass(frozen=True)
class ScanTask:
    """Whole fragments that one task reads."""

    index: int
    refs: tuple[FragmentRef, ...]

    @property
    def rows(self) -> int:
        return sum(r.rows for r in self.refs)

    @property
    def label(self) -> str:
        names = [r.label for r in self.refs]
        more = f" and {len(names) - 3} more fragments" if len(names) > 3 else ""
        return ", ".join(names[:3]) + more


def group_tasks(refs: Sequence[FragmentRef], task_bytes: int = TASK_BYTES) -> list[ScanTask]:
    """Group fragments in order into tasks of about `task_bytes`, whatever the number of workers."""
    groups: list[list[FragmentRef]] = []
    held = rows = 0
    for ref in refs:
        if not ref.rows:
            continue
        if not groups or held >= task_bytes or rows >= _TASK_ROWS:
            groups.append([])
            held = rows = 0
        groups[-1].append(ref)
        held += ref.bytes
        rows += ref.rows
    return [ScanTask(i, tuple(g)) for i, g in enumerate(groups)]


def scan_rows(
    task: ScanTask, columns: Sequence[str], schema: pa.Schema, rows_file: str | None
) -> Iterator[tuple[pa.RecordBatch, U64]]:
    """Yield (record batch, row ids) of a task's rows, or of those in a file of bits."""
    wanted = None if rows_file is None else Bitmap(np.load(rows_file, mmap_mode="r"))
    for ref in task.refs:
        if wanted is not None and not _inside(wanted, ref.first_row_id, ref.rows).any():
            continue
        for part in scan_fragment(ref, columns, schema):
            ids = part.row_ids()
            if wanted is None:
                yield part.batch, ids
                continue
            offsets = np.flatnonzero(_inside(wanted, part.first_row_id, part.batch.num_rows))
            if len(offsets):
                yield part.batch.take(as_arrow(offsets)), ids[offsets]


def _inside(rows: Bitmap, first: int, count: int) -> npt.NDArray[np.bool_]:
    return rows.inside(first, first + count)


def compute_rows(
    task: ScanTask,
    columns: Sequence[str],
    schema: pa.Schema,
    rows_file: str | None,
    folder: str,
    function: RowFunction,
    arguments: dict[str, Any],
) -> Segment | None:
    """Apply a row function to a task's rows; return the file of its values, None of no rows."""
    name = getattr(function, "__qualname__", "the function")
    target = Path(folder) / f"{task.index:06d}-{uuid.uuid4().hex[:8]}"
    with ExitStack() as stack:
        writer: ColumnWriter | None = None
        for batch, ids in scan_rows(task, columns, schema, rows_file):
            if writer is None:
                writer = stack.enter_context(ColumnWriter(target))
            values = function(batch, ids, **arguments)
            if len(values) != len(ids):
                raise SelectionError(f"{name} returned {len(values)} values for {len(ids)} rows.")
            writer.append(values)
        return None if writer is None else writer.finish()
