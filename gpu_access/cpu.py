"""The CPU gather: rows of Arrow chunks, copied into one contiguous batch.

Numbers, booleans and fixed-size lists of them become torch tensors of shape (n, *shape of a row),
filled chunk by chunk: ``out[positions] = chunk[offsets]``. Their memory is fresh and writable,
never a view of a file. What torch hardly computes with is widened: uint16 to int32, uint32 and
uint64 to int64.

All other columns (strings, binary, variable lists, dictionaries, structs, times, decimals) stay
Arrow arrays in the order asked for. Dictionary codes are widened to int32, since the dictionaries
of several files together may need it. No Python object is made for a row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.columns import as_arrow, as_numpy, numpy_type
from ..dataplane.errors import BatchloomError, ColumnTypeError, InvalidValueError

__all__ = [
    "TENSOR_TYPES",
    "ArrowColumn",
    "Column",
    "CpuGather",
    "RowsOfChunk",
    "fitting",
    "host_tensor",
    "null_refused",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

Column: TypeAlias = "torch.Tensor | pa.Array"
"""A column of a batch: a tensor where a row has a fixed width, else an Arrow array."""

TENSOR_TYPES: dict[str, torch.dtype] = {
    "bool": torch.bool,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "uint16": torch.int32,
    "uint32": torch.int64,
    "uint64": torch.int64,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


class RowsOfChunk(Protocol):
    """The part of a request that one chunk answers; `dataplane.rows.ChunkRows` is one."""

    @property
    def chunk(self) -> pa.RecordBatch: ...

    @property
    def offsets(self) -> I64:
        """Rows of the chunk that were asked for."""
        ...

    @property
    def positions(self) -> I64:
        """Where they belong in the batch."""
        ...


class CpuGather:
    """Copies rows of chunks into batches.

    Parameters
    ----------
    schema : pyarrow.Schema
        The columns to deliver.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def gather(self, ids: U64, parts: Iterable[RowsOfChunk]) -> dict[str, Column]:
        """Return the columns of one batch, by name.

        Parameters
        ----------
        ids : uint64, shape (n,)
            The rows asked for, in order; messages name them.
        parts : iterable of RowsOfChunk
            Together they answer every position 0…n−1.

        Raises
        ------
        InvalidValueError
            Where a numeric column holds a null, or a uint64 at or above 2**63, in one of the rows.
        ColumnTypeError
            Of an Arrow type whose rows cannot be taken.
        """
        columns = [_column(f, ids) for f in self.schema]
        answered = 0
        for part in parts:
            answered += len(part.positions)
            for column in columns:
                column.add(part.chunk.column(column.name), part.offsets, part.positions)
        if answered != len(ids):  # else uninitialised memory would pass for data
            raise BatchloomError(f"{len(ids)} rows were asked for, {answered} were found.")
        return {c.name: c.finish() for c in columns}


def host_tensor(values: npt.NDArray[Any], ids: U64, name: str) -> torch.Tensor:
    """Copy an array of one value a row into a tensor of a type that torch computes with."""
    out = torch.empty(values.shape, dtype=TENSOR_TYPES[values.dtype.name])
    out.numpy()[...] = fitting(values, ids, name)
    return out


def null_refused(name: str, row: int) -> InvalidValueError:
    """Return the error of a null in a column that becomes a tensor."""
    return InvalidValueError(
        f"Column '{name}' holds a null in row {row}, and a tensor cannot. Plan "
        f'with --where "{name} is not null", or leave the column out with columns=[…].'
    )


def _column(field: pa.Field, ids: U64) -> _TensorColumn | ArrowColumn:
    known = numpy_type(field.type)
    if known is None:
        return ArrowColumn(field.name, field.type)
    return _TensorColumn(field.name, known, ids)


class _TensorColumn:
    """A fixed-width column: written into place."""

    def __init__(self, name: str, known: tuple[np.dtype[Any], tuple[int, ...]], ids: U64) -> None:
        self.name = name
        self._ids = ids
        dtype, shape = known
        self._tensor = torch.empty((len(ids), *shape), dtype=TENSOR_TYPES[dtype.name])
        self._out = self._tensor.numpy()

    def add(self, array: pa.Array, offsets: I64, positions: I64) -> None:
        ids = self._ids[positions]
        values = _rows(array, offsets, ids, self.name)
        self._out[positions] = fitting(
            values.reshape(len(ids), *self._out.shape[1:]), ids, self.name
        )

    def finish(self) -> torch.Tensor:
        return self._tensor


class ArrowColumn:
    """Any other column: taken chunk by chunk, joined, put in order."""

    def __init__(self, name: str, type_: pa.DataType) -> None:
        self.name = name
        self._type = type_
        self._taken: list[pa.Array] = []
        self._positions: list[I64] = []

    def add(self, array: pa.Array, offsets: I64, positions: I64) -> None:
        """Take rows of a chunk; they belong at some positions of the batch."""
        try:
            taken = array.take(as_arrow(offsets))
        except pa.ArrowException as error:
            raise self._refused(error) from error
        self._taken.append(_wide_codes(taken))
        self._positions.append(positions)

    def finish(self) -> pa.Array:
        if not self._taken:
            return _wide_codes(pa.array([], self._type))
        try:
            # One array first: take on a chunked column is slow.
            joined = self._taken[0] if len(self._taken) == 1 else pa.concat_arrays(self._taken)
            back = np.argsort(np.concatenate(self._positions), kind="stable")
            return joined.take(as_arrow(back))
        except pa.ArrowException as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> ColumnTypeError:
        reason = str(error).split("\n")[0].rstrip(".")
        return ColumnTypeError(
            f"Rows of column '{self.name}' ({self._type}) cannot be gathered: {reason}. "
            "Leave the column out with columns=[…], or store it as another type."
        )


def _wide_codes(array: pa.Array) -> pa.Array:
    if not pa.types.is_dictionary(array.type) or array.type.index_type.bit_width >= 32:
        return array
    return pa.DictionaryArray.from_arrays(
        array.indices.cast(pa.int32()), array.dictionary, ordered=array.type.ordered
    )


def _rows(column: pa.Array, offsets: I64, ids: U64, name: str) -> npt.NDArray[Any]:
    """Return a copy of some rows of a chunk's column; only nulls in these rows matter."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if not _has_nulls(column):
        return as_numpy(column, name)[offsets]
    taken = column.take(as_arrow(offsets))
    first = _first_null(taken)
    if first is not None:
        raise null_refused(name, int(ids[first]))
    return as_numpy(taken, name)


def _has_nulls(array: pa.Array) -> bool:
    while True:
        if array.null_count:
            return True
        if not pa.types.is_fixed_size_list(array.type):
            return False
        array = array.flatten()


def _first_null(array: pa.Array) -> int | None:
    """Return the first row that is null or holds a null."""
    width = 1
    while True:
        if array.null_count:
            valid = as_numpy(array.is_valid())
            return int(np.argmin(valid)) // width
        if not pa.types.is_fixed_size_list(array.type):
            return None
        width *= array.type.list_size
        array = array.flatten()


def fitting(values: npt.NDArray[Any], ids: U64, name: str) -> npt.NDArray[Any]:
    """Return the values unless one of them does not fit the tensor's type."""
    if values.dtype == np.uint64 and values.size and int(values.max()) >= 1 << 63:
        at = np.argwhere(values >= np.uint64(1 << 63))[0]
        raise InvalidValueError(
            f"Column '{name}' holds {int(values[tuple(at)])} in row {int(ids[at[0]])}, which does "
            "not fit a signed 64-bit integer, and torch computes with no other. Leave the column "
            "out with columns=[…], or store it as two uint32 columns or as binary."
        )
    return values
