"""Columns of the work folder as tasks are told of them: a listing of their files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from ..dataplane.row_column import RowColumn, Segment
from .context import JobContext

__all__ = ["open_column", "share_column"]


def share_column(job: JobContext, column: RowColumn) -> str:
    """Note where a column's files are; return the listing's path."""
    files = [
        [str(s.path), s.rows, np.lib.format.dtype_to_descr(s.dtype), list(s.shape), s.bytes]
        for s in column.segments
    ]
    path = job.work.new_file("listing")
    path.write_text(json.dumps(files))
    return str(path)


@lru_cache(maxsize=8)
def open_column(listing: str) -> RowColumn:
    """Return the column of a listing."""
    files = json.loads(Path(listing).read_text())
    return RowColumn(
        Segment(Path(path), rows, np.dtype(dtype), tuple(shape), size, "")
        for path, rows, dtype, shape, size in files
    )
