"""How a column of each type lies in a packed file, and the values of an array in that form.

=========  =====================================================  ==================================
kind       logical types                                          in the file
=========  =====================================================  ==================================
fixed      numbers, booleans, fixed-size lists and tensors of     values, side by side; a boolean is
           these                                                  one byte (uint8)
plain      times, dates, durations, decimals, fixed-size binary   values, side by side
bytes      strings and binary of either offset width              int64 offsets, bytes
list       lists of what *fixed* holds                            int64 offsets, items
codes      dictionaries                                           int32 or int64 codes, dictionary
arrow      all else (structs, maps, lists of strings, …)          record batches, as pyarrow has it
=========  =====================================================  ==================================

Where nulls occur, each level of an array that has any brings its Arrow validity bitmap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import as_numpy, numpy_type

__all__ = ["Kind", "Layout", "Pieces", "layout_of", "pieces_of", "step_validity"]

Kind: TypeAlias = Literal["fixed", "plain", "bytes", "list", "codes", "arrow"]

Bools: TypeAlias = npt.NDArray[np.bool_]
Bytes: TypeAlias = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """Where the values of a type go.

    Attributes
    ----------
    kind : Kind
    physical : pyarrow.DataType
        Type of the column in the file.
    item_bytes : int
        Of a row (fixed, plain, codes), or of an item (bytes: 1, list); 0 of kind arrow.
    outer : tuple of int
        Entries a row, of each level above the items: (1,) where offsets or codes are.
    inner : tuple of int
        Entries a row (fixed, plain) or an item (list) of each level of the values, outermost first.
    """

    kind: Kind
    physical: pa.DataType
    item_bytes: int
    outer: tuple[int, ...]
    inner: tuple[int, ...]

    @property
    def has_offsets(self) -> bool:
        return self.kind in ("bytes", "list")


@dataclass(frozen=True)
class Pieces:
    """An array in its packed form; validity is None where a level holds no null.

    Attributes
    ----------
    values : uint8, shape (bytes,)
    offsets : int64, shape (rows + 1,) or None
        In items, the first one 0.
    validity : tuple of (bool array or None, entries)
        Of the outer levels, then of the inner ones.
    dictionary : pyarrow.Array or None
    """

    values: Bytes
    offsets: npt.NDArray[np.int64] | None
    validity: tuple[tuple[Bools | None, int], ...]
    dictionary: pa.Array | None = None


def layout_of(type_: pa.DataType) -> Layout:
    """Return how a column of a (plain) type is packed."""
    known = numpy_type(type_)
    if known is not None:
        row = known[0].itemsize * math.prod(known[1])
        return Layout("fixed", _byte_booleans(type_), row, (), _levels(type_))
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return Layout("bytes", pa.large_string(), 1, (1,), ())
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_):
        return Layout("bytes", pa.large_binary(), 1, (1,), ())
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        item = layout_of(type_.value_type)
        if item.kind == "fixed" and item.item_bytes:
            physical = pa.large_list(item.physical)
            return Layout("list", physical, item.item_bytes, (1,), item.inner)
    if pa.types.is_dictionary(type_) and not pa.types.is_nested(type_.value_type):
        index = type_.index_type
        wide = pa.int32() if index.bit_width < 32 or index == pa.int32() else pa.int64()
        physical = pa.dictionary(wide, type_.value_type, ordered=type_.ordered)
        return Layout("codes", physical, wide.bit_width // 8, (), (1,))
    width = _plain_width(type_)
    if width:
        return Layout("plain", type_, width, (), (1,))
    return Layout("arrow", type_, 0, (), ())


def _plain_width(type_: pa.DataType) -> int:
    """Return the bytes of a value of a fixed-width type that is no number, else 0."""
    if pa.types.is_temporal(type_) or pa.types.is_decimal(type_):
        return int(type_.bit_width) // 8
    return int(type_.byte_width) if pa.types.is_fixed_size_binary(type_) else 0


def _byte_booleans(type_: pa.DataType) -> pa.DataType:
    if isinstance(type_, pa.FixedShapeTensorType):
        return pa.fixed_shape_tensor(
            _byte_booleans(type_.value_type), type_.shape, dim_names=type_.dim_names
        )
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(_byte_booleans(type_.value_type), type_.list_size)
    return pa.uint8() if pa.types.is_boolean(type_) else type_


def _levels(type_: pa.DataType) -> tuple[int, ...]:
    """Return the entries a row at each level of nesting, the row itself first."""
    if isinstance(type_, pa.BaseExtensionType):
        return _levels(type_.storage_type)
    if pa.types.is_fixed_size_list(type_):
        size = type_.list_size
        return (1, *(size * n for n in _levels(type_.value_type)))
    return (1,)


# --- arrays ---------------------------------------------------------------------------------------


def pieces_of(array: pa.Array, layout: Layout) -> Pieces:
    """Return an array's values, offsets and validity; of any kind but arrow."""
    if layout.kind == "codes":
        codes = array.indices.cast(layout.physical.index_type, safe=False)
        return Pieces(_flat(codes), None, (step_validity(codes),), array.dictionary)
    if layout.kind == "bytes":
        large = array.cast(layout.physical)
        offsets, base = _offsets(large)
        data = large.buffers()[2]
        stop = base + int(offsets[-1])
        whole = np.empty(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)
        return Pieces(whole[base:stop], offsets, (step_validity(array),))
    if layout.kind == "list":
        large = array if pa.types.is_large_list(array.type) else _large(array)
        offsets, base = _offsets(large)
        inner = _nested(large.values.slice(base, int(offsets[-1])))
        return Pieces(inner[0], offsets, (step_validity(array), *inner[1]))
    values, validity = _nested(array)
    return Pieces(values, None, validity)


def step_validity(array: pa.Array) -> tuple[Bools | None, int]:
    """Return (which entries are not null, their number); None where all are."""
    if not array.null_count:
        return None, len(array)
    return as_numpy(array.is_valid()), len(array)


def _large(array: pa.Array) -> pa.Array:
    return array.cast(pa.large_list(array.type.value_type))


def _offsets(array: pa.Array) -> tuple[npt.NDArray[np.int64], int]:
    """Return the offsets of a large string, binary or list array from 0, and what 0 stands for."""
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) + 1, np.int64), 0
    found = np.frombuffer(buffer, np.int64, len(array) + 1, array.offset * 8)
    return found - found[0], int(found[0])


def _nested(array: pa.Array) -> tuple[Bytes, tuple[tuple[Bools | None, int], ...]]:
    """Return the bytes of a fixed-width array, whatever is null in it, and each level's validity.

    Not `flatten`, which leaves out the items of a null list.
    """
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    own = step_validity(array)
    if not pa.types.is_fixed_size_list(array.type):
        return _flat(array), (own,)
    size = array.type.list_size
    values, below = _nested(array.values.slice(array.offset * size, len(array) * size))
    return values, (own, *below)


def _flat(array: pa.Array) -> Bytes:
    """Return the bytes of an array of fixed-width values, a boolean as a byte."""
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.empty(0, np.uint8)
    if pa.types.is_boolean(array.type):
        first, skip = divmod(array.offset, 8)
        bits = np.frombuffer(data, np.uint8, offset=first)
        return np.unpackbits(bits, count=skip + len(array), bitorder="little")[skip:]
    width: Any = array.type.bit_width // 8
    return np.frombuffer(data, np.uint8, len(array) * width, array.offset * width)
