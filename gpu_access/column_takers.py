"""How a column of each kind is gathered; see `packed_gather`.

Each taker checks what it is about to read (pages, offsets, codes), then copies it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.columns import numpy_type
from ..dataplane.errors import ColumnTypeError, InvalidValueError, ParameterError
from ..dataplane.mapped import MappedColumn, Unguarded, Validity
from .buffers import host_buffer
from .cpu import TENSOR_TYPES, ArrowColumn, fitting, null_refused
from .row_gather import Found, addresses_of, copy_from
from .sharing import share

__all__ = ["ArrowTaker", "CodesTaker", "FixedTaker", "PlainTaker", "RunsTaker"]

U8: TypeAlias = npt.NDArray[np.uint8]
U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]

_INT32_MAX = (1 << 31) - 1


class _Taker:
    """What all columns have: pages that are checked, validity that is copied."""

    def __init__(self, column: MappedColumn) -> None:
        self.column = column
        # A mapped dataset has nothing to check.
        self._guarded = not isinstance(column.guard, Unguarded)

    def ensure(self, chunk: I64, address: U64, size: I64) -> None:
        if self._guarded and not self.column.guard.whole:
            self.column.guard.ensure(chunk, address, size)

    def copy_rows(self, found: Found, row_bytes: int, target: int) -> None:
        """Copy fixed-width rows to an address, their pages checked first."""
        source = addresses_of(found, self.column.values, row_bytes)
        if self._guarded and not self.column.guard.whole:
            self.ensure(found.chunk, source, np.full(len(found), row_bytes, np.int64))
        copy_from(source, row_bytes, target, found.threads, found.loops)

    def ensure_bits(self, chunk: I64, first: I64, count: I64, level: Validity) -> None:
        if not self._guarded or self.column.guard.whole:
            return
        there = np.flatnonzero((level.addresses[chunk] != 0) & (count > 0))
        chunk, bit = chunk[there], level.start[chunk[there]] + first[there] * level.width
        stop = (bit + count[there] * level.width + 7) >> 3
        address = level.addresses[chunk] + (bit >> 3).view(np.uint64)
        self.ensure(chunk, address, stop - (bit >> 3))

    def validity(
        self, found: Found, first: I64, count: I64, level: Validity, total: int
    ) -> tuple[pa.Buffer | None, int]:
        """Return (bitmap, nulls) of runs of entries of a level; None where there are none."""
        if not level.any or not total:
            return None, 0
        self.ensure_bits(found.chunk, first, count, level)
        bits = np.zeros(-(-total * level.width // 8), np.uint8)
        nulls = found.loops.take_bits(
            found.chunk, first, count, level.addresses, level.start, level.width, bits
        )
        return (pa.py_buffer(bits), int(nulls)) if nulls else (None, 0)


class FixedTaker(_Taker):
    """Numbers, and lists of a fixed number of them: a tensor."""

    def __init__(self, column: MappedColumn) -> None:
        super().__init__(column)
        known = numpy_type(column.type)
        if known is None:
            raise ColumnTypeError(f"Column '{column.name}' ({column.type}) has no fixed width.")
        self._dtype, self._shape = known
        self._row_bytes = self._dtype.itemsize * math.prod(self._shape)
        self._tensor_type = TENSOR_TYPES[self._dtype.name]
        self._widened = torch.empty(0, dtype=self._tensor_type).numpy().dtype != self._dtype
        self._levels = [level for level in column.inner if level.any]

    def take(self, found: Found, out: torch.Tensor | None) -> torch.Tensor:
        shape = (len(found), *self._shape)
        if out is not None:
            self._check_out(out, shape)
        if self._widened or out is None:
            raw = host_buffer(len(found) * self._row_bytes)
        else:
            raw = out.numpy().reshape(-1).view(np.uint8)
        with self.column.guard.reading():
            self._refuse_nulls(found)
            self._fill(found, raw)
        values = raw.view(self._dtype).reshape(shape)
        if not self._widened:
            return torch.from_numpy(values) if out is None else out
        values = fitting(values, found.ids, self.column.name)
        if out is None:
            wide = torch.empty(0, dtype=self._tensor_type).numpy().dtype
            size = len(found) * self._row_bytes // self._dtype.itemsize * wide.itemsize
            out = torch.from_numpy(host_buffer(size).view(wide).reshape(shape))
        out.numpy()[...] = values
        return out

    def arrow(self, found: Found) -> pa.Array:
        """Return the rows in their Arrow type, nulls and all."""
        raw = host_buffer(len(found) * self._row_bytes)
        ones = np.ones(len(found), np.int64)
        with self.column.guard.reading():
            levels = [
                self.validity(found, found.offset, ones, level, len(found))
                for level in self.column.inner
            ]
            self._fill(found, raw)
        return _nested(self.column.type, len(found), raw, levels)

    def _fill(self, found: Found, raw: U8) -> None:
        column = self.column
        if column.bits is None:
            self.copy_rows(found, column.item_bytes, raw.ctypes.data)
        else:
            found.loops.copy_bits(
                found.chunk, found.offset, column.values, column.bits, self._row_bytes, raw,
                0, len(found),
            )  # fmt: skip

    def _refuse_nulls(self, found: Found) -> None:
        if not self._levels:
            return
        ones = np.ones(len(found), np.int64)
        for level in self._levels:
            self.ensure_bits(found.chunk, found.offset, ones, level)
            at = found.loops.first_null(
                found.chunk, found.offset, level.addresses, level.start, level.width
            )
            if at >= 0:
                raise null_refused(self.column.name, int(found.ids[at]))

    def _check_out(self, out: torch.Tensor, shape: tuple[int, ...]) -> None:
        fits = tuple(out.shape) == shape and out.dtype == self._tensor_type
        if not fits or not out.is_contiguous() or out.device.type != "cpu":
            raise ParameterError(
                f"out: column '{self.column.name}' needs a contiguous {self._tensor_type} tensor "
                f"of shape {shape} in host memory. Got {out.dtype} of shape {tuple(out.shape)} on "
                f"{out.device} instead."
            )


class PlainTaker(_Taker):
    """Other values of a fixed width: an Arrow array."""

    def take(self, found: Found) -> pa.Array:
        column, ones = self.column, np.ones(len(found), np.int64)
        raw = host_buffer(len(found) * column.item_bytes)
        with column.guard.reading():
            valid, nulls = self.validity(found, found.offset, ones, column.inner[0], len(found))
            self.copy_rows(found, column.item_bytes, raw.ctypes.data)
        return pa.Array.from_buffers(column.type, len(found), [valid, pa.py_buffer(raw)], nulls)


class CodesTaker(_Taker):
    """Dictionary columns: codes of one dictionary that holds those of all chunks."""

    def __init__(self, column: MappedColumn) -> None:
        super().__init__(column)
        self._joined: tuple[pa.Array, I64, I64] | None = None
        index = column.type.index_type
        self._dtype = np.dtype(index.to_pandas_dtype())
        self._wide = np.dtype(np.int32) if self._dtype.itemsize < 4 else self._dtype

    def take(self, found: Found) -> pa.Array:
        column, ones = self.column, np.ones(len(found), np.int64)
        raw = host_buffer(len(found) * column.item_bytes)
        with column.guard.reading():
            dictionary, start, places = self._joined = self._joined or self._join()
            valid, nulls = self.validity(found, found.offset, ones, column.inner[0], len(found))
            self.copy_rows(found, column.item_bytes, raw.ctypes.data)
        codes = raw.view(self._dtype).astype(np.int64)
        size = (start[1:] - start[:-1])[found.chunk]
        outside = (codes < 0) | (codes >= size)
        if outside.any():
            self._refuse_outside(outside, found, valid)
            codes[outside] = 0
        if len(places):
            codes = places[np.minimum(start[found.chunk] + codes, len(places) - 1)]
        indices = pa.Array.from_buffers(
            pa.from_numpy_dtype(self._wide),
            len(found),
            [valid, pa.py_buffer(codes.astype(self._wide))],
            nulls,
        )
        return pa.DictionaryArray.from_arrays(indices, dictionary, ordered=column.type.ordered)

    def _refuse_outside(self, outside: Any, found: Found, valid: pa.Buffer | None) -> None:
        """Raise where a code that is not under a null stands for nothing."""
        if valid is not None:
            bits = np.frombuffer(valid, np.uint8)
            outside = outside & np.unpackbits(bits, count=len(found), bitorder="little").view(bool)
        if outside.any():
            raise InvalidValueError(
                f"Column '{self.column.name}' holds a code outside its dictionary in row "
                f"{int(found.ids[np.argmax(outside)])}. The file is damaged; copy it again from "
                "its source."
            )

    def _join(self) -> tuple[pa.Array, I64, I64]:
        """Return (dictionary of all chunks, where each chunk's places begin, places in it)."""
        assert self.column.dictionary is not None
        own = [self.column.dictionary(c) for c in range(len(self.column.values))]
        start = np.cumsum([0, *(len(d) for d in own)], dtype=np.int64)
        if not own:
            return pa.array([], self.column.type.value_type), start, np.empty(0, np.int64)
        if all(d is own[0] or d.equals(own[0]) for d in own):
            return own[0], start, np.tile(np.arange(len(own[0]), dtype=np.int64), len(own))
        chunks = [
            pa.DictionaryArray.from_arrays(_counted(len(d)), d, ordered=self.column.type.ordered)
            for d in own
        ]
        joined = pa.chunked_array(chunks).unify_dictionaries()
        places = np.concatenate([c.indices.to_numpy() for c in joined.chunks])
        return joined.chunk(0).dictionary, start, places.astype(np.int64)


def _counted(size: int) -> pa.Array:
    return pa.Array.from_buffers(
        pa.int32(), size, [None, pa.py_buffer(np.arange(size, dtype=np.int32))]
    )


class RunsTaker(_Taker):
    """Strings, binary and lists: offsets and what lies between them."""

    def take(self, found: Found) -> pa.Array:
        column, n = self.column, len(found)
        assert column.offsets is not None
        assert column.items is not None
        begin, ends = np.empty(n, np.int64), np.empty(n + 1, np.int64)
        wide = column.offset_bytes == 8
        with column.guard.reading():
            ones = np.ones(n, np.int64)
            valid, nulls = self.validity(found, found.offset, ones, column.outer[0], n)
            if self._guarded and not column.guard.whole:
                address = column.offsets[found.chunk] + found.offset.view(np.uint64) * np.uint64(
                    column.offset_bytes
                )
                self.ensure(found.chunk, address, np.full(n, 2 * column.offset_bytes, np.int64))
            bad = found.loops.read_offsets(
                found.chunk, found.offset, column.offsets, wide, column.items, begin, ends
            )
            if bad >= 0:
                raise InvalidValueError(
                    f"Column '{column.name}' has impossible offsets in row {int(found.ids[bad])}. "
                    "The file is damaged; copy it again from its source."
                )
            raw = self._items(found, begin, ends)
            levels = [
                self.validity(found, begin, np.diff(ends), level, int(ends[-1]))
                for level in column.inner
            ]
        return self._array(n, valid, nulls, ends, raw, levels)

    def _items(self, found: Found, begin: I64, ends: I64) -> U8:
        column, size = self.column, self.column.item_bytes
        raw = host_buffer(int(ends[-1]) * size)
        if self._guarded and not column.guard.whole:
            address = column.values[found.chunk] + begin.view(np.uint64) * np.uint64(size)
            self.ensure(found.chunk, address, np.diff(ends) * size)
        target = np.uint64(raw.ctypes.data)
        if column.bits is not None:
            raise ColumnTypeError(f"Column '{column.name}': lists of bits are not mapped.")
        share(
            lambda turns: found.loops.copy_runs(
                found.chunk, begin, ends, column.values, size, target, turns
            ),
            len(found),
            len(raw) / max(1, len(found)),
            found.threads,
        )
        return raw

    def _array(
        self,
        n: int,
        valid: pa.Buffer | None,
        nulls: int,
        ends: I64,
        raw: U8,
        levels: list[tuple[pa.Buffer | None, int]],
    ) -> pa.Array:
        type_ = self.column.type
        if self.column.kind == "list":
            items = _nested(type_.value_type, int(ends[-1]), raw, levels)
            made = pa.large_list(type_.value_type)
            return pa.Array.from_buffers(
                made, n, [valid, pa.py_buffer(ends)], nulls, children=[items]
            )
        large = pa.types.is_large_string(type_) or pa.types.is_large_binary(type_)
        if not large and ends[-1] > _INT32_MAX:
            type_ = pa.large_string() if pa.types.is_string(type_) else pa.large_binary()
            large = True
        offsets = ends if large else ends.astype(np.int32)
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(raw)]
        return pa.Array.from_buffers(type_, n, buffers, nulls)


def _nested(
    type_: pa.DataType, length: int, raw: U8, levels: Sequence[tuple[pa.Buffer | None, int]]
) -> pa.Array:
    """Return bytes as an array of a fixed-width type, with the validity of its levels."""
    if isinstance(type_, pa.BaseExtensionType):
        storage = _nested(type_.storage_type, length, raw, levels)
        return pa.ExtensionArray.from_storage(type_, storage)
    valid, nulls = levels[0]
    if pa.types.is_fixed_size_list(type_):
        below = _nested(type_.value_type, length * type_.list_size, raw, levels[1:])
        return pa.Array.from_buffers(type_, length, [valid], nulls, children=[below])
    data = np.packbits(raw, bitorder="little") if pa.types.is_boolean(type_) else raw
    return pa.Array.from_buffers(type_, length, [valid, pa.py_buffer(data)], nulls)


class ArrowTaker(_Taker):
    """What has no better form: taken array by array, as Arrow does it."""

    def take(self, found: Found) -> pa.Array:
        assert self.column.arrays is not None
        result = ArrowColumn(self.column.name, self.column.type)
        order = np.argsort(found.chunk, kind="stable")
        cuts = np.flatnonzero(np.diff(found.chunk[order])) + 1
        for mine in np.split(order, cuts) if len(found) else ():
            chunk = int(found.chunk[mine[0]])
            first, arrays = self.column.arrays(chunk)
            inside = np.searchsorted(first, found.offset[mine], side="right") - 1
            for index in np.unique(inside).tolist():
                these = mine[inside == index]
                result.add(arrays[index], found.offset[these] - first[index], these)
        return result.finish()
