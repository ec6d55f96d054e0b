"""Columns as they lie in memory: where each chunk's buffers begin. No row is copied for it.

A *chunk* is a run of rows with consecutive ids whose values stand side by side: one packed file, or
one record batch of a mapped Arrow file. A gather needs no more than the tables below, so that one
kernel serves packed tables, mapped datasets and host tables of any origin.

Addresses are plain integers; `owner` keeps what they point to alive.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import numpy_type
from .errors import ColumnTypeError, InvalidValueError, RowIdError
from .packed_layout import Kind

__all__ = [
    "ChunkTable",
    "ColumnChunks",
    "Guard",
    "MappedColumn",
    "MappedColumns",
    "Mappable",
    "Unguarded",
    "Validity",
]

_GUESS_BITS = 13

U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]


class Guard(Protocol):
    """Sees that bytes are what they should be before they are used."""

    bytes_read: int
    """Bytes that were checked, or brought."""

    @property
    def whole(self) -> bool:
        """Whether all of the column was seen, so that `ensure` need not be asked any more."""

    def ensure(self, chunk: I64, address: U64, size: I64) -> None:
        """Check what was not checked yet of some ranges of bytes; or bring it here.

        Parameters
        ----------
        chunk : int64, shape (k,)
        address : uint64, shape (k,)
        size : int64, shape (k,)
            Bytes.

        Raises
        ------
        PackedCorruptError, StorageError
        """

    def check_all(self) -> None:
        """Check all of the column, so that it may be read without asking.

        Raises
        ------
        PackedCorruptError
        PackedError
            Where a column is not here as a whole.
        """

    def reading(self) -> AbstractContextManager[Any]:
        """Hold, while ranges are read, what `ensure` brought."""


class Unguarded:
    """The guard of memory that carries no checksums."""

    whole = True
    bytes_read = 0

    def ensure(self, chunk: I64, address: U64, size: I64) -> None:
        pass

    def check_all(self) -> None:
        pass

    def reading(self) -> AbstractContextManager[Any]:
        return nullcontext()


@dataclass(frozen=True)
class ChunkTable:
    """The chunks of a table; a row is found in them by its id.

    Attributes
    ----------
    first : uint64, shape (c,)
        Id of each chunk's first row, ascending.
    rows : int64, shape (c,)
        At least 1.
    """

    first: U64
    rows: I64

    def __len__(self) -> int:
        return len(self.first)

    @cached_property
    def shift(self) -> np.uint64:
        """Ids are looked up by their distance from the first one, without its last bits."""
        if not len(self):
            return np.uint64(0)
        span = int(self.first[-1]) - int(self.first[0]) + int(self.rows[-1])
        return np.uint64(max(0, span.bit_length() - _GUESS_BITS))

    @cached_property
    def guess(self) -> npt.NDArray[np.int32]:
        """The chunk at the beginning of each such stretch of ids: near any chunk that is in it."""
        if len(self) < 2:
            return np.zeros(1, np.int32)
        span = int(self.first[-1]) - int(self.first[0])
        begins = np.arange((span >> int(self.shift)) + 1, dtype=np.uint64) << self.shift
        at: I64 = np.searchsorted(self.first, begins + self.first[0], side="right") - 1
        return at.astype(np.int32)

    def refuse(self, row: int) -> RowIdError:
        """Return the error of an id that is in no chunk."""
        stop = int(self.first[-1]) + int(self.rows[-1]) if len(self) else 0
        gaps = ", with gaps" if self.rows.sum() < stop else ""
        return RowIdError(
            f"Row {row} is in no chunk: the table holds {int(self.rows.sum()):,} rows with ids "
            f"below {stop:,}{gaps}."
        )


@dataclass(frozen=True)
class ColumnChunks:
    """A fixed-width column: ``addresses[c] + (id − first[c]) · row_bytes`` is where a row stands.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    row_shape : tuple of int
    first : uint64, shape (c,)
        Ascending.
    rows : int64, shape (c,)
    addresses : uint64, shape (c,)
    row_bytes : int
    owner : object
        Keeps the memory.
    """

    name: str
    dtype: np.dtype[Any]
    row_shape: tuple[int, ...]
    first: U64
    rows: I64
    addresses: U64
    row_bytes: int
    owner: Any = field(repr=False)

    @cached_property
    def table(self) -> ChunkTable:
        return ChunkTable(self.first, self.rows)

    @classmethod
    def of_array(cls, array: npt.NDArray[Any], name: str = "x", first: int = 0) -> ColumnChunks:
        """Return a C-contiguous array of shape (rows, …) as a column of one chunk."""
        if not array.flags.c_contiguous:
            raise ValueError("the array is not contiguous")
        rows = len(array)
        return cls(
            name,
            array.dtype,
            array.shape[1:],
            np.array([first], np.uint64),
            np.array([rows], np.int64),
            np.array([array.ctypes.data], np.uint64),
            array.nbytes // rows if rows else array.itemsize * int(np.prod(array.shape[1:])),
            array,
        )


@dataclass(frozen=True)
class Validity:
    """Arrow validity bitmaps of one level.

    Attributes
    ----------
    addresses : uint64, shape (c,)
        0 where a chunk has no null.
    start : int64, shape (c,)
        Bit of a chunk's first entry.
    width : int
        Entries a row, or an item.
    """

    addresses: U64
    start: I64
    width: int

    @cached_property
    def any(self) -> bool:
        """Whether some chunk has a null at this level."""
        return bool(self.addresses.any())


@dataclass(frozen=True)
class MappedColumn:
    """One column of any type.

    Attributes
    ----------
    name : str
    type : pyarrow.DataType
        The logical one.
    kind : Kind
        See `packed_layout`.
    item_bytes : int
    values : uint64, shape (c,)
        Address of row 0 (or of item 0, where there are offsets).
    outer, inner : tuple of Validity
        Of the levels above the items, and of the values' own.
    offsets : uint64, shape (c,), optional
    offset_bytes : int
        4 or 8.
    items : int64, shape (c,), optional
        What no offset of a chunk may exceed.
    bits : int64, shape (c,), optional
        Booleans as Arrow has them: the bit of the first value. `values` are whole bytes.
    dictionary : callable, optional
        chunk → the dictionary of its codes.
    arrays : callable, optional
        Of kind arrow: chunk → (first row of each array, arrays).
    guard : Guard
    owner : object
    """

    name: str
    type: pa.DataType
    kind: Kind
    item_bytes: int
    values: U64
    outer: tuple[Validity, ...] = ()
    inner: tuple[Validity, ...] = ()
    offsets: U64 | None = None
    offset_bytes: int = 8
    items: I64 | None = None
    bits: I64 | None = None
    dictionary: Callable[[int], pa.Array] | None = None
    arrays: Callable[[int], tuple[I64, Sequence[pa.Array]]] | None = None
    guard: Guard = field(default_factory=Unguarded, repr=False)
    owner: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class MappedColumns:
    """Some columns of a table over the same chunks."""

    chunks: ChunkTable
    columns: Mapping[str, MappedColumn]

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([pa.field(c.name, c.type) for c in self.columns.values()])

    def column_chunks(self, name: str) -> ColumnChunks:
        """Return a fixed-width column for those who read its memory themselves, checked whole.

        Raises
        ------
        ColumnTypeError
            Where its rows have no fixed width, or lie in bits.
        InvalidValueError
            Where it holds nulls.
        PackedCorruptError, PackedError
        """
        column = self.columns[name]
        known = numpy_type(column.type)
        if known is None or column.bits is not None:
            raise ColumnTypeError(
                f"Column '{name}' ({column.type}) does not lie in memory as rows of a fixed width. "
                "Pack the dataset, or leave the column out."
            )
        if any(level.any for level in column.inner):
            raise InvalidValueError(
                f"Column '{name}' holds nulls, and a table of numbers cannot. Leave those rows out "
                "of the dataset, or fill them."
            )
        column.guard.check_all()
        return ColumnChunks(
            name, *known, self.chunks.first, self.chunks.rows, column.values, column.item_bytes,
            column,
        )  # fmt: skip


class Mappable(Protocol):
    """What can be gathered from without packing: a packed table, a mapped dataset."""

    def mapped(self, columns: Sequence[str] | None = None) -> MappedColumns:
        """Return some columns as they lie in memory, all when None."""
