"""The gather over mapped columns: rows by id, out of packed tables and mapped datasets.

Delivers what `cpu.CpuGather` delivers: fixed-width columns as writable tensors that own their
memory, all others as Arrow arrays in the order asked for (lists with int64 offsets, dictionary
codes of 32 bits at least). Ids are found once for all columns; then each column is checked (pages,
nulls) and copied, one copy a row, on several threads where it is large. No Python object is made
for a row, and nothing is written where an id is in no chunk.

It is called with the ids of a whole window of batches, which are views of what it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.errors import ParameterError
from ..dataplane.mapped import Mappable, MappedColumn, MappedColumns
from .column_takers import ArrowTaker, CodesTaker, FixedTaker, PlainTaker, RunsTaker
from .cpu import Column
from .row_gather import Found, find_rows
from .sharing import gather_threads

__all__ = ["PackedGather"]

_Take: TypeAlias = "Callable[[Found, torch.Tensor | None], Column]"


def _taker(column: MappedColumn) -> _Take:
    if column.kind == "fixed":
        return FixedTaker(column).take
    kinds: dict[str, type[PlainTaker | RunsTaker | CodesTaker | ArrowTaker]] = {
        "plain": PlainTaker,
        "bytes": RunsTaker,
        "list": RunsTaker,
        "codes": CodesTaker,
        "arrow": ArrowTaker,
    }
    taker = kinds[column.kind](column).take

    def take(found: Found, out: torch.Tensor | None) -> Column:
        if out is not None:
            raise ParameterError(
                f"out: column '{column.name}' ({column.type}) is no tensor; leave it out."
            )
        return taker(found)

    return take


class PackedGather:
    """Copies rows of a table into batches; may be used from several threads.

    Parameters
    ----------
    source : Mappable
        A `PackedTable`, or a dataset whose columns can be mapped.
    columns : sequence of str, optional
        All when None.
    threads : int, optional
        Threads that share a large copy; see `sharing.gather_threads`.
    """

    def __init__(
        self, source: Mappable, columns: Sequence[str] | None = None, *, threads: int | None = None
    ) -> None:
        self._source = source
        mapped: MappedColumns = source.mapped(columns)
        self._chunks = mapped.chunks
        self._threads = gather_threads(threads)
        self._takers = {name: _taker(column) for name, column in mapped.columns.items()}
        self._columns = mapped.columns
        self.schema = mapped.schema

    @property
    def bytes_read(self) -> int:
        """Bytes of the source that were checked, or brought here, so far."""
        return sum(column.guard.bytes_read for column in self._columns.values())

    def gather(
        self, ids: npt.ArrayLike, out: Mapping[str, torch.Tensor] | None = None
    ) -> dict[str, Column]:
        """Return the columns of rows, by name.

        Parameters
        ----------
        ids : uint64, shape (n,)
            Row ids, in any order, repeats included.
        out : mapping from str to torch.Tensor, optional
            Where to write fixed-width columns: contiguous, of the shape and type that would be
            returned, which are returned themselves.

        Raises
        ------
        RowIdError
            Of an id that no row has; nothing is written.
        InvalidValueError
            Where a numeric column holds a null, or a uint64 at or above 2**63, in one of the rows.
        PackedCorruptError
            Where a page that holds one of the rows is damaged.
        """
        given = dict(out or {})
        unknown = [name for name in given if name not in self._takers]
        if unknown:
            raise ParameterError(
                f"out: there is no column '{unknown[0]}'; it has: {', '.join(self._takers)}."
            )
        found = find_rows(self._chunks, ids, self._threads)
        return {name: take(found, given.get(name)) for name, take in self._takers.items()}

    def take(self, ids: npt.ArrayLike) -> pa.RecordBatch:
        """Return rows as a record batch of the columns' Arrow types, nulls and all.

        Strings, binary and lists may come with int64 offsets, dictionary codes with 32 bits.

        Raises
        ------
        RowIdError, PackedCorruptError
        """
        found = find_rows(self._chunks, ids, self._threads)
        arrays = [
            FixedTaker(column).arrow(found)
            if column.kind == "fixed"
            else self._takers[name](found, None)
            for name, column in self._columns.items()
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(self._columns))
