"""Rows of a dataset whose key is one of some values: compared value by value, never by hash alone.

The keys lie in a file that workers map; row ids of the rows found come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataplane.columns import as_numpy
from ..dataplane.dataset import Dataset
from ..dataplane.errors import ColumnTypeError
from ..dataplane.storage import storing
from .engine import Engine
from .progress import Progress
from .tasks import ScanTask, group_tasks, scan_rows

__all__ = ["find_keyed_rows", "match_values", "rows_with_keys"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_ROWS_AT_ONCE = 1 << 20  # each call builds a hash table of all keys


def rows_with_keys(
    dataset: Dataset,
    fragments: Sequence[int],
    column: str,
    keys: pa.Array,
    *,
    engine: Engine,
    progress: Progress,
    folder: Path,
) -> tuple[U64, I64]:
    """Find the rows whose key is among the values given.

    Parameters
    ----------
    dataset : Dataset
    fragments : sequence of int
        Indices of the fragments to search.
    column : str
    keys : pyarrow.Array
        Distinct values of the column's type, no nulls.
    engine : Engine
    progress : Progress
    folder : Path
        For the file of keys; workers must see it.

    Returns
    -------
    rows : uint64, shape (n,)
        In order of the fragments.
    which : int64, shape (n,)
        Index of each row's key.
    """
    dataset.check_columns([column], fragments=fragments)
    refs = [ref for i in fragments if (ref := dataset.refs[i]) is not None]
    tasks = group_tasks(refs)
    keys_file = folder / "keys.arrow"
    table = pa.table({"key": keys})
    with (
        storing("Writing the keys", keys_file),
        pa.OSFile(str(keys_file), "wb") as file,
        pa.ipc.new_file(file, table.schema) as writer,
    ):
        writer.write_table(table)
    found: dict[int, tuple[U64, I64]] = {}
    with progress.step(f"searching '{column}'", sum(t.rows for t in tasks)) as step:
        for position, part in engine.map(
            find_keyed_rows, tasks, column, dataset.schema, str(keys_file)
        ):
            found[position] = part
            step.advance(tasks[position].rows)
    parts = [found[i] for i in sorted(found)]
    rows = np.concatenate([np.zeros(0, np.uint64), *(p[0] for p in parts)])
    return rows, np.concatenate([np.zeros(0, np.int64), *(p[1] for p in parts)])


def find_keyed_rows(
    task: ScanTask, column: str, schema: pa.Schema, keys_file: str
) -> tuple[U64, I64]:
    """Return (row ids, indices of their keys) of a task's rows; runs on workers."""
    rows, which = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    with pa.memory_map(keys_file) as file:
        keys = pa.ipc.open_file(file).read_all().column("key").combine_chunks()
        for values, ids in _gathered(scan_rows(task, [column], schema, None)):
            match = match_values(values, keys, column)
            hit = np.flatnonzero(match >= 0)
            rows.append(ids[hit])
            which.append(match[hit])
    return np.concatenate(rows), np.concatenate(which)


def _gathered(
    batches: Iterable[tuple[pa.RecordBatch, U64]],
) -> Iterator[tuple[pa.ChunkedArray, U64]]:
    """Join batches of one column until they hold enough rows for a hash table to be worth it."""
    values: list[pa.Array] = []
    ids: list[U64] = []
    for batch, batch_ids in batches:
        values.append(batch.column(0))
        ids.append(batch_ids)
        if sum(map(len, ids)) >= _ROWS_AT_ONCE:
            yield pa.chunked_array(values), np.concatenate(ids)
            values, ids = [], []
    if values:
        yield pa.chunked_array(values), np.concatenate(ids)


def match_values(values: pa.ChunkedArray, keys: pa.Array, column: str) -> I64:
    """Return for each value the index of the key that it equals, or −1; a null equals none."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    try:
        index = pc.index_in(values, value_set=keys)
    except pa.ArrowException as error:
        raise ColumnTypeError(
            f"Column '{column}' is {values.type}, whose values cannot be compared with keys. Name "
            "a column of numbers, strings or binaries."
        ) from error
    found: I64 = as_numpy(pc.fill_null(index, -1).combine_chunks()).astype(np.int64)
    return found
