"""Fixed-width Arrow columns as torch rows, without widening: what host tables are filled from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ..dataplane.columns import as_numpy, numpy_type
from ..dataplane.errors import (
    ColumnTypeError,
    FragmentCorruptError,
    MissingColumnError,
    MissingFileError,
    nearest,
)
from .row_table import OWN_PAGES_BYTES, RowTable

__all__ = ["chunks_of", "column_of_file", "in_place", "row_type"]


def row_type(type_: pa.DataType) -> tuple[torch.dtype, tuple[int, ...]]:
    """Return (dtype, shape of a row) of a fixed-width Arrow type.

    Raises
    ------
    ColumnTypeError
        For any other.
    """
    known = numpy_type(type_)
    if known is None:
        raise ColumnTypeError(
            f"Rows of type {type_} have no fixed width: a host table takes numbers, booleans and "
            "fixed-size lists of them."
        )
    return getattr(torch, known[0].name), known[1]


def chunks_of(column: pa.Array | pa.ChunkedArray) -> Iterator[torch.Tensor]:
    """Yield the chunks of a column as tensors of rows; views where Arrow's layout allows.

    Raises
    ------
    InvalidValueError
        At the first chunk that holds a null.
    """
    dtype, shape = row_type(column.type)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    for chunk in chunks:
        values = as_numpy(chunk)
        if not values.size:
            yield torch.empty((len(chunk), *shape), dtype=dtype)
            continue
        if pa.types.is_boolean(_value_type(chunk.type)):
            yield torch.from_numpy(values.copy())  # bits were unpacked, into memory of our own
            continue
        yield _table_of(values, dtype, shape, chunk).tensor()


def in_place(column: pa.Array | pa.ChunkedArray, *, mapped: bool = False) -> RowTable | None:
    """Return the rows of a column where Arrow holds them; None where they are not one array.

    Booleans are bits in Arrow, and several chunks have several places: both must be copied.
    `mapped`: the column is of a file that was mapped for it alone.
    """
    dtype, shape = row_type(column.type)
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    if len(chunks) != 1 or pa.types.is_boolean(_value_type(column.type)) or not len(chunks[0]):
        return None
    values = as_numpy(chunks[0])
    if not values.size:
        return None
    region = (values.ctypes.data, values.nbytes) if mapped else _region_of(chunks[0])
    return _table_of(values, dtype, shape, chunks[0], region)


def column_of_file(path: Path, column: str | None = None) -> pa.ChunkedArray:
    """Return a column of an Arrow IPC file over a memory map.

    Raises
    ------
    MissingFileError, FragmentCorruptError, MissingColumnError
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {path}.") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).split("\n")[0].rstrip(".")
        raise FragmentCorruptError(
            f"{path} cannot be read as an Arrow IPC file: {reason}. Write it anew."
        ) from error
    names = table.schema.names
    if column is None and len(names) == 1:
        column = names[0]
    if column not in names:
        asked = "No column was named" if column is None else f"There is no column '{column}'"
        hint = nearest(column, names) if column else ""
        raise MissingColumnError(f"{asked} in {path}; it holds {', '.join(names)}.{hint}")
    return table.column(column)


def _table_of(
    values: Any,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    owner: Any,
    region: tuple[int, int] | None = None,
) -> RowTable:
    row = math.prod(shape) * dtype.itemsize
    # The owner holds Arrow's buffers: values may be a view of them.
    return RowTable(values.ctypes.data, len(values), shape, dtype, row, (owner, values), region)


def _region_of(chunk: pa.Array) -> tuple[int, int] | None:
    """Return (address, bytes) of the allocation that a column is part of, where it stands alone."""
    buffer = next(b for b in reversed(chunk.buffers()) if b is not None)
    while buffer.parent is not None:
        buffer = buffer.parent
    return (buffer.address, buffer.size) if buffer.size >= OWN_PAGES_BYTES else None


def _value_type(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.ExtensionType):
        type_ = type_.storage_type
    while pa.types.is_fixed_size_list(type_):
        type_ = type_.value_type
    return type_
