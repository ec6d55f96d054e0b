"""Columns of a dataset's own Arrow files as they lie in memory: nothing is packed for them.

Local IPC files and streams without compression are mapped, and their record batches are chunks.
Where a column cannot be used so (Parquet, compressed or remote files, big-endian values, a buffer
that Arrow had to copy) `map_dataset` returns None, and the dataset is packed instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from .dataset import Dataset
from .errors import DatasetChangedError
from .fragments import FragmentReader
from .mapped import I64, U64, ChunkTable, MappedColumn, MappedColumns, Validity
from .packed_layout import Layout, layout_of

__all__ = ["MappedDataset", "map_dataset"]


@dataclass(frozen=True)
class MappedDataset:
    """A dataset whose columns are read where they are; a `mapped.Mappable`."""

    dataset: Dataset
    chunks: ChunkTable
    columns: dict[str, MappedColumn]

    def mapped(self, columns: Sequence[str] | None = None) -> MappedColumns:
        """Return some of the columns that were mapped, all when None."""
        chosen = self.columns if columns is None else columns
        return MappedColumns(self.chunks, {name: self.columns[name] for name in chosen})


@dataclass(frozen=True)
class _Chunk:
    first: int
    batch: pa.RecordBatch
    reader: FragmentReader


def map_dataset(
    dataset: Dataset,
    columns: Sequence[str] | None = None,
    fragments: Sequence[int] | None = None,
) -> MappedDataset | None:
    """Map a dataset's files; None where one of the columns must be packed.

    Parameters
    ----------
    dataset : Dataset
    columns : sequence of str, optional
        All when None.
    fragments : sequence of int, optional
        Indices into the snapshot's fragments; all that are there when None.

    Raises
    ------
    DatasetChangedError, FragmentCorruptError, SchemaDriftError
    """
    names = list(dataset.schema.names if columns is None else columns)
    chosen = range(len(dataset.refs)) if fragments is None else fragments
    dataset.check_columns(names, fragments=[i for i in chosen if dataset.refs[i] is not None])
    layouts = {name: layout_of(dataset.schema.field(name).type) for name in names}
    chunks: list[_Chunk] = []
    for index in chosen:
        ref = dataset.refs[index]
        if not dataset.snapshot.fragments[index].rows:
            continue
        if ref is None:
            if fragments is None:
                continue
            label = dataset.snapshot.fragments[index].label
            raise DatasetChangedError(f"Fragment {label} was not there at opening.")
        if not ref.location.is_local or ref.uri.endswith((".parquet", ".pq")):
            return None
        reader = FragmentReader(ref, names, dataset.schema)
        if reader.is_parquet:
            return None
        first = ref.first_row_id
        trusted = all(layouts[name].kind not in ("arrow", "codes") for name in names)
        for number in range(len(reader.chunk_rows)):
            batch = reader.chunk(number, trusted=trusted)
            if not _lies_in(batch, *reader.span()):
                return None
            if batch.num_rows:
                chunks.append(_Chunk(first, batch, reader))
            first += batch.num_rows
    chunks.sort(key=lambda chunk: chunk.first)
    table = ChunkTable(
        np.array([c.first for c in chunks], dtype=np.uint64),
        np.array([c.batch.num_rows for c in chunks], dtype=np.int64),
    )
    made = {}
    for name in names:
        column = _column(dataset.schema.field(name), layouts[name], chunks)
        if column is None:
            return None
        made[name] = column
    return MappedDataset(dataset, table, made)


def _lies_in(batch: pa.RecordBatch, start: int, stop: int) -> bool:
    """Whether all buffers of a batch lie in a mapped file: none was decompressed or cast."""
    for array in batch.columns:
        # Arrow may own a dictionary; it is read as Arrow has it.
        own = array.indices if isinstance(array, pa.DictionaryArray) else array
        for buffer in own.buffers():
            if buffer is None or not buffer.size:
                continue
            if not start <= buffer.address <= buffer.address + buffer.size <= stop:
                return False
    return True


def _column(field: pa.Field, layout: Layout, chunks: Sequence[_Chunk]) -> MappedColumn | None:
    arrays = [c.batch.column(field.name) for c in chunks]
    if layout.kind == "arrow":
        zero = np.zeros(1, np.int64)
        return MappedColumn(
            field.name, field.type, "arrow", 0, np.zeros(len(arrays), np.uint64),
            arrays=lambda chunk: (zero, [arrays[chunk]]), owner=chunks,
        )  # fmt: skip
    if layout.has_offsets:
        return _runs(field, layout, arrays, chunks)
    if layout.kind == "codes":
        codes = [a.indices for a in arrays]
        width = field.type.index_type.bit_width // 8
        values, levels, _ = _values(codes, 1)
        return MappedColumn(
            field.name, field.type, "codes", width, values, inner=levels,
            dictionary=lambda chunk: arrays[chunk].dictionary, owner=chunks,
        )  # fmt: skip
    values, levels, bits = _values(arrays, len(layout.inner))
    return MappedColumn(
        field.name, field.type, layout.kind, layout.item_bytes, values, inner=levels, bits=bits,
        owner=chunks,
    )  # fmt: skip


def _runs(
    field: pa.Field, layout: Layout, arrays: Sequence[pa.Array], chunks: Sequence[_Chunk]
) -> MappedColumn | None:
    type_ = field.type
    wide = pa.types.is_large_list(type_) or pa.types.is_large_string(type_)
    wide = wide or pa.types.is_large_binary(type_)
    width = 8 if wide else 4
    offsets = np.array([_address(a, 1, a.offset * width) for a in arrays], np.uint64)
    if layout.kind == "bytes":
        values = np.array([_address(a, 2, 0) for a in arrays], np.uint64)
        items = np.array([_size(a, 2) for a in arrays], np.int64)
        inner: tuple[Validity, ...] = ()
    else:
        below = [a.values for a in arrays]
        items = np.array([len(b) for b in below], np.int64)
        values, inner, bits = _values(below, len(layout.inner))
        if bits is not None:
            return None  # runs of bits begin anywhere in a byte
    return MappedColumn(
        field.name, type_, layout.kind, layout.item_bytes, values, (_validity(arrays, 1),), inner,
        offsets=offsets, offset_bytes=width, items=items, owner=chunks,
    )  # fmt: skip


def _values(arrays: Sequence[pa.Array], depth: int) -> tuple[U64, tuple[Validity, ...], I64 | None]:
    """Return (addresses of the first values, levels, bits of booleans) of fixed-width arrays."""
    levels, width = [], 1
    for level in range(depth):
        arrays = [a.storage if isinstance(a, pa.ExtensionArray) else a for a in arrays]
        levels.append(_validity(arrays, width))
        if level < depth - 1:
            size = arrays[0].type.list_size if arrays else 1
            width *= size
            arrays = [a.values.slice(a.offset * size, len(a) * size) for a in arrays]
    if arrays and pa.types.is_boolean(arrays[0].type):
        values = [_address(a, 1, a.offset // 8) for a in arrays]
        bits = np.array([a.offset % 8 for a in arrays], np.int64)
        return np.array(values, np.uint64), tuple(levels), bits
    places = [_address(a, 1, a.offset * (a.type.bit_width // 8)) for a in arrays]
    return np.array(places, np.uint64), tuple(levels), None


def _validity(arrays: Sequence[pa.Array], width: int) -> Validity:
    addresses = [_address(a, 0, 0) if a.null_count else 0 for a in arrays]
    start = [a.offset for a in arrays]
    return Validity(np.array(addresses, np.uint64), np.array(start, np.int64), width)


def _address(array: pa.Array, buffer: int, at: int) -> int:
    found = array.buffers()[buffer]
    return 0 if found is None else int(found.address) + at


def _size(array: pa.Array, buffer: int) -> int:
    found = array.buffers()[buffer]
    return 0 if found is None else int(found.size)
