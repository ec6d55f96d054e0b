"""Rows of fixed width by id, out of any number of chunks: one kernel over a table of addresses.

Ids are found first, and nothing is written where one is in no chunk. Then each row is one copy,
its bytes asked for some rows ahead, on several threads where there is much to copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import ParameterError, RowIdError
from ..dataplane.mapped import ChunkTable, ColumnChunks
from .buffers import host_buffer
from .loops import loops_for
from .sharing import gather_threads, share

__all__ = ["Found", "addresses_of", "copy_from", "find_rows", "gather_rows"]

U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Found:
    """Where the rows of a request are, and what gathers them."""

    ids: U64
    chunk: I64
    offset: I64
    threads: int
    loops: Any

    def __len__(self) -> int:
        return len(self.ids)


def gather_rows(
    chunks: ColumnChunks,
    ids: npt.ArrayLike,
    out: npt.NDArray[Any] | None = None,
    *,
    threads: int | None = None,
) -> npt.NDArray[Any]:
    """Copy rows of a fixed-width column, bit by bit.

    Parameters
    ----------
    chunks : ColumnChunks
    ids : uint64, shape (n,)
    out : array of shape (n, *row_shape), optional
        C-contiguous and of the column's type; made when None.
    threads : int, optional

    Returns
    -------
    array of shape (n, *row_shape)

    Raises
    ------
    RowIdError
        Naming the first id that no chunk holds; nothing is written.
    """
    found = find_rows(chunks.table, ids, gather_threads(threads))
    shape = (len(found), *chunks.row_shape)
    if out is None:
        raw = host_buffer(len(found) * chunks.row_bytes)
        out = raw.view(chunks.dtype).reshape(shape)
    elif out.shape != shape or out.dtype != chunks.dtype or not out.flags.c_contiguous:
        raise ParameterError(
            f"The 'out' parameter of gather_rows must be a C-contiguous {chunks.dtype} array of "
            f"shape {shape}. Got {out.dtype} of shape {out.shape} instead."
        )
    source = addresses_of(found, chunks.addresses, chunks.row_bytes)
    copy_from(source, chunks.row_bytes, out.ctypes.data, found.threads, found.loops)
    return out


def find_rows(table: ChunkTable, ids: npt.ArrayLike, threads: int) -> Found:
    """Find the chunk and place of each row; raise `RowIdError` where there is none."""
    array = np.asarray(ids)
    if array.ndim != 1 or (array.dtype.kind not in "iu" and array.size):
        raise RowIdError(
            f"Row ids are a one-dimensional array of integers; found {array.ndim} dimensions of "
            f"{array.dtype}."
        )
    if array.dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise RowIdError(f"Row {int(array.min())} cannot be: row ids are not negative.")
    rows = np.ascontiguousarray(array, dtype=np.uint64)
    chunk, offset = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
    loops = loops_for(len(rows))
    bad = loops.locate(rows, table.first, table.rows, table.guess, table.shift, chunk, offset)
    if bad >= 0:
        raise table.refuse(int(rows[bad]))
    return Found(rows, chunk, offset, threads, loops)


def addresses_of(found: Found, addresses: U64, row_bytes: int) -> U64:
    """Return where each row that was found stands, in chunks that begin at some addresses."""
    source = np.empty(len(found), np.uint64)
    found.loops.point_at(found.chunk, found.offset, addresses, row_bytes, source)
    return source


def copy_from(source: U64, row_bytes: int, target: int, threads: int | None, loops: Any) -> None:
    """Copy rows from their addresses to one address, side by side."""
    copy = loops.row_copier(row_bytes)
    # A helper that is late keeps what it reads.
    share(
        lambda turns: copy(source.ctypes.data, 0, 1, target, turns),
        len(source),
        row_bytes,
        threads,
    )
