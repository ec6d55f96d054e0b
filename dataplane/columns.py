"""Arrow columns as numpy arrays: views where the layout allows, never a Python object a row.

Only fixed-width columns without nulls have such a view. ``Array.to_numpy`` is not used: it imports
pandas where that is installed, which costs a third of a second.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import ColumnTypeError, InvalidValueError

__all__ = ["as_arrow", "as_matrix", "as_numpy", "numpy_type"]


def numpy_type(type_: pa.DataType) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """Return (dtype, shape of a row) of a fixed-width Arrow type, None of any other.

    Integers, floats and booleans have one; so have fixed-size lists of these, nested or as
    ``fixed_shape_tensor``.
    """
    if isinstance(type_, pa.FixedShapeTensorType):
        if type_.permutation is not None and list(type_.permutation) != sorted(type_.permutation):
            return None  # its values are not in the order of its shape
        inner = numpy_type(type_.value_type)
        return None if inner is None else (inner[0], tuple(type_.shape))
    if pa.types.is_fixed_size_list(type_):
        inner = numpy_type(type_.value_type)
        return None if inner is None else (inner[0], (type_.list_size, *inner[1]))
    if pa.types.is_boolean(type_):
        return np.dtype(bool), ()
    if pa.types.is_integer(type_) or pa.types.is_floating(type_):
        return np.dtype(type_.to_pandas_dtype()), ()
    return None


def as_numpy(array: pa.Array, name: str = "column") -> npt.NDArray[Any]:
    """Return a read-only array of shape (rows, *shape of a row); a view where possible.

    Raises
    ------
    ColumnTypeError
        Of a type without a fixed width.
    InvalidValueError
        Where the column holds nulls.
    """
    known = numpy_type(array.type)
    if known is None:
        raise ColumnTypeError(
            f"Column '{name}' is {array.type}: expected numbers, booleans or fixed-size lists."
        )
    rows = len(array)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while pa.types.is_fixed_size_list(array.type):
        _refuse_nulls(array, name)
        array = array.flatten()
    _refuse_nulls(array, name)
    return _primitive(array).reshape(rows, *known[1])


def _refuse_nulls(array: pa.Array, name: str) -> None:
    if array.null_count:
        first = int(np.flatnonzero(~_bits(array.is_valid()))[0])
        raise InvalidValueError(
            f"Column '{name}' holds {array.null_count} nulls here, the first at position {first}. "
            f'Leave those rows out, for example with --where "{name} is not null".'
        )


def _primitive(array: pa.Array) -> npt.NDArray[Any]:
    if pa.types.is_boolean(array.type):
        return _bits(array)
    dtype = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if data is None:
        return np.empty(0, dtype)
    view = np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)
    view.flags.writeable = False  # others read the same memory
    return view


def _bits(array: pa.Array) -> npt.NDArray[np.bool_]:
    data = array.buffers()[1]
    if data is None or len(array) == 0:
        return np.zeros(len(array), bool)
    first, skip = divmod(array.offset, 8)
    packed = np.frombuffer(data, np.uint8, offset=first)
    return np.unpackbits(packed, count=skip + len(array), bitorder="little")[skip:].view(bool)


def as_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """Return a one-dimensional array as an Arrow array over the same memory (booleans are packed).

    ``pa.array`` would look for pandas, and so import it.
    """
    type_ = pa.from_numpy_dtype(values.dtype)
    packed = np.packbits(values, bitorder="little") if values.dtype == bool else values
    buffers = [None, pa.py_buffer(np.ascontiguousarray(packed))]
    return pa.Array.from_buffers(type_, len(values), buffers)


def as_matrix(batch: pa.RecordBatch, columns: list[str]) -> npt.NDArray[np.float32]:
    """Return columns side by side as float32, shape (rows, width): embeddings or plain numbers."""
    arrays = [as_numpy(batch.column(c), c) for c in columns]
    parts = [a.reshape(len(a), math.prod(a.shape[1:])) for a in arrays]
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0], dtype=np.float32)
    return np.concatenate([p.astype(np.float32) for p in parts], axis=1)
