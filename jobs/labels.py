"""The labels of rows, any number each, from a column of integers or of lists of integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..clustering.mining import Labels
from ..dataplane.columns import as_numpy
from ..dataplane.errors import ColumnTypeError
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet
from .context import JobContext

__all__ = ["RowLabels", "read_labels"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowLabels:
    """The labels of rows, in files.

    Attributes
    ----------
    rows : RowSet
    starts : RowColumn of int64
        By rank: where a row's labels start in `values`.
    counts : RowColumn of int32
        By rank.
    values : RowColumn of int64
        The labels of all rows, end to end, each row's ascending.
    """

    rows: RowSet
    starts: RowColumn
    counts: RowColumn
    values: RowColumn


def take_labels(starts: I64, counts: npt.NDArray[np.int32], values: RowColumn) -> Labels:
    """Return the labels of some rows, by where they start and how many they are."""
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    return Labels(offsets, values.at(np.repeat(starts, counts) + inside))


def read_labels(job: JobContext, rows: RowSet, column: str) -> RowLabels:
    """Read the labels of rows; a row of none has an empty list or a null.

    Raises
    ------
    ColumnTypeError
        Where the column is of neither kind.
    """
    _check_type(job.dataset.schema.field(column).type, column)
    counts = job.map_rows(f"counting '{column}'", count_labels, rows, [column], column=column)
    values = job.map_lists(f"reading '{column}'", label_values, rows, [column], column=column)
    before = 0

    def starts() -> Any:
        nonlocal before
        for part in counts.chunks():
            ends = before + np.cumsum(part, dtype=np.int64)
            yield ends - part
            before = int(ends[-1]) if len(ends) else before

    return RowLabels(rows, job.column(starts()), counts, values)


def _check_type(type_: pa.DataType, column: str) -> None:
    inner = type_
    if (
        pa.types.is_list(type_)
        or pa.types.is_large_list(type_)
        or pa.types.is_fixed_size_list(type_)
    ):
        inner = type_.value_type
    if not pa.types.is_integer(inner):
        raise ColumnTypeError(
            f"Column '{column}' is {type_}: labels are integers, or lists of integers. Number them."
        )


def count_labels(batch: pa.RecordBatch, ids: Any, column: str) -> npt.NDArray[np.int32]:
    """Return how many labels each row has; a row function."""
    return np.diff(_labels(batch.column(column)).offsets).astype(np.int32)


def label_values(batch: pa.RecordBatch, ids: Any, column: str) -> I64:
    """Return the labels of all rows, end to end; a row function of lists."""
    return _labels(batch.column(column)).values


def _labels(array: pa.Array) -> Labels:
    """Return each row's labels, ascending and once each."""
    valid = as_numpy(array.is_valid())
    if pa.types.is_integer(array.type):
        rows = np.flatnonzero(valid)
        values = as_numpy(array.drop_null()).astype(np.int64)
    else:
        rows = as_numpy(pc.list_parent_indices(array)).astype(np.int64)
        flat = pc.list_flatten(array)
        here = as_numpy(flat.is_valid())
        rows, values = rows[here], as_numpy(flat.drop_null()).astype(np.int64)
    order = np.lexsort((values, rows))
    rows, values = rows[order], values[order]
    once = np.append(True, (rows[1:] != rows[:-1]) | (values[1:] != values[:-1]))[: len(rows)]
    rows, values = rows[once], values[once]
    offsets = np.searchsorted(rows, np.arange(len(array) + 1)).astype(np.int64)
    return Labels(offsets, values)
