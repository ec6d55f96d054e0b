"""Columns as codes: a number 0…k−1 for each row's value, in the order of the values' hashes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..dataplane.key_hash import hash_column
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet
from .context import JobContext

__all__ = ["CODE_BYTES", "hash_rows", "read_codes"]

U64 = npt.NDArray[np.uint64]

CODE_BYTES = 12
"""Bytes a row of a column's hashes and codes in the work folder."""

_VALUE_BYTES = 32  # a distinct value, while they are found


def read_codes(job: JobContext, rows: RowSet, column: str) -> RowColumn:
    """Return the codes of a column's values by rank, int32; epochs of the same rows read it once.

    Raises
    ------
    ParameterError
        Where the distinct values do not fit the job's memory.
    """
    known, codes = job.codes.get(column, (None, None))
    if codes is None or known is not rows:
        hashes = job.map_rows(f"reading '{column}'", hash_rows, rows, [column], column=column)
        values = _distinct(job, hashes, column)
        codes = job.column(
            np.searchsorted(values, part).astype(np.int32) for part in hashes.chunks()
        )
        job.codes[column] = (rows, codes)
    return codes


def _distinct(job: JobContext, hashes: RowColumn, column: str) -> U64:
    """Return the distinct hashes, ascending."""
    known = np.zeros(0, dtype=np.uint64)
    new: list[U64] = []
    for part in hashes.chunks():
        new.append(np.unique(part[~_among(known, part)]))
        held = sum(map(len, new))
        job.budget.require(
            (len(known) + held) * _VALUE_BYTES, f"The list of the values of '{column}'"
        )
        if held > len(known):  # seldom, so that all of it is sorted a few times only
            known, new = np.unique(np.concatenate([known, *new])), []
    return np.unique(np.concatenate([known, *new]))


def _among(known: U64, values: U64) -> npt.NDArray[np.bool_]:
    if not len(known):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(known, values), len(known) - 1)
    found: npt.NDArray[np.bool_] = known[at] == values
    return found


def hash_rows(batch: pa.RecordBatch, ids: Any, column: str) -> U64:
    """Hash a column of a batch; a row function."""
    return hash_column(batch.column(column), column)
