"""Packing: one fragment's rows in, one file a column out, in memory that does not grow with them.

Record batches come one after another, as a scan decodes them. Values are written through; offsets
have a place of known size before the values and are written into it; validity is kept in a
scratch file until the values end. What the frame says is written last, into the space left for it.
A second pass over the file, which the operating system still holds in memory, hashes it.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .errors import BatchloomError
from .fragments import FragmentReader, FragmentRef
from .ipc_frames import MAGIC, batch_message, closing, padded, schema_message
from .ipc_messages import Block
from .packed_header import ColumnRecord, PackedFile, column_file_name, file_hash
from .packed_layout import Bools, Layout, layout_of, pieces_of
from .packed_pages import page_sums
from .residency import drop_resident
from .storage import storing

__all__ = ["pack_batches", "pack_fragment"]

_WHAT = "Packing a column"
_MOVED_BYTES = 1 << 20


def pack_fragment(
    ref: FragmentRef, columns: Sequence[str], schema: pa.Schema, folder: Path
) -> list[PackedFile]:
    """Decode some columns of a fragment once, into files of a folder.

    Parameters
    ----------
    ref : FragmentRef
    columns : sequence of str
    schema : pyarrow.Schema
        Types that the columns must have.
    folder : Path
        Gets the files ``column-<sha256>.arrow``, flushed to disk.

    Returns
    -------
    list of PackedFile
        Parallel to `columns`; nothing of a fragment without rows.

    Raises
    ------
    DatasetChangedError, FragmentCorruptError, SchemaDriftError, StorageError
    """
    if not ref.rows or not columns:
        return []
    reader = FragmentReader(ref, columns, schema)
    try:
        return pack_batches(
            _dropping(reader), ref.rows, pa.schema([schema.field(c) for c in columns]), folder
        )
    finally:
        reader.close()


def _dropping(reader: FragmentReader) -> Iterator[pa.RecordBatch]:
    """Yield a fragment's batches; what of its map was read does not stay in memory."""
    span = reader.span() if reader.ref.location.is_local else (0, 0)
    for batch in reader.batches():
        yield batch
        drop_resident(*span)


def pack_batches(
    batches: Iterable[pa.RecordBatch], rows: int, schema: pa.Schema, folder: Path
) -> list[PackedFile]:
    """Write `rows` rows that come in record batches, one file a column of the schema."""
    with ExitStack() as stack:
        files: list[Any] = [
            stack.enter_context(_column_file(field, rows, folder)) for field in schema
        ]
        found = 0
        for batch in batches:
            found += batch.num_rows
            for file, array in zip(files, batch.columns, strict=True):
                with storing(_WHAT, folder):
                    file.append(array)
        if found != rows:
            raise BatchloomError(f"{rows:,} rows were to be packed, {found:,} came.")
        with storing(_WHAT, folder):
            return [file.finish() for file in files]


def _column_file(field: pa.Field, rows: int, folder: Path) -> _ColumnFile | _ArrowFile:
    layout = layout_of(field.type)
    with storing(_WHAT, folder):
        if layout.kind == "arrow":
            return _ArrowFile(field, rows, folder)
        return _ColumnFile(field, layout, rows, folder)


class _ColumnFile:
    """One record batch, streamed."""

    def __init__(self, field: pa.Field, layout: Layout, rows: int, folder: Path) -> None:
        self._field, self._layout, self._rows = field, layout, rows
        self._schema = pa.schema([_physical(field, layout)])
        self._path = folder / f".{uuid.uuid4().hex}.column"
        self._levels = [_Bits(folder) for _ in (*layout.outer, *layout.inner)]
        self._dictionary = _Dictionary()
        self._written = self._items = self._filled = 0
        self._file: Any = open(self._path, "w+b", buffering=0)  # noqa: SIM115
        head = MAGIC + b"\0\0" + schema_message(self._schema)
        self._at = len(head)
        self._body = self._at + len(self._message([0] * len(self._levels), [], 0))
        offsets = padded(8 * (rows + 1)) if layout.has_offsets else 0
        self._values = self._body + offsets
        self._write(head.ljust(self._values, b"\0"))

    def __enter__(self) -> _ColumnFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        for bits in self._levels:
            bits.close()
        self._path.unlink(missing_ok=True)

    def append(self, array: pa.Array) -> None:
        pieces = pieces_of(array, self._layout)
        if pieces.dictionary is not None:
            values = self._dictionary.codes(pieces.values, pieces.dictionary, self._layout)
        else:
            values = pieces.values
        if pieces.offsets is not None:
            self._put_offsets(pieces.offsets)
        for bits, (valid, entries) in zip(self._levels, pieces.validity, strict=True):
            bits.append(valid, entries)
        self._write(values)
        self._written += len(values)

    def _put_offsets(self, offsets: npt.NDArray[np.int64]) -> None:
        """Write the ends of some rows' items; the first row's start is where the last one ended."""
        absolute = offsets + self._items
        at = self._body + 8 * self._filled
        data = np.ascontiguousarray(absolute).data.cast("B")
        while data:
            sent = os.pwrite(self._file.fileno(), data, at)
            data, at = data[sent:], at + sent
        self._items = int(absolute[-1])
        self._filled += len(offsets) - 1

    def _write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self._file.write(view) :]

    def finish(self) -> PackedFile:
        """Write what follows the values, then the frame; hash the file and give it its name."""
        values = (self._values, self._written)
        end = self._pad(self._values + self._written)
        places: list[tuple[int, int] | None] = []
        for bits in self._levels:
            if not bits.nulls:
                places.append(None)
                continue
            size = -(-bits.entries // 8)
            places.append((end, size))
            for data in bits.packed():
                self._write(data)
            end = self._pad(end + size)
        body = end - self._body
        dictionaries = self._dictionary.messages(self._schema) if self._dictionary.used else []
        blocks = []
        for metadata, data in dictionaries:
            blocks.append(Block(end, len(metadata), len(data)))
            self._write(metadata)
            self._write(data)
            end += len(metadata) + len(data)
        offsets = (self._body, 8 * (self._rows + 1)) if self._layout.has_offsets else None
        buffers = self._buffers(values, offsets, places)
        message = self._message([b.nulls for b in self._levels], buffers, body)
        batch = Block(self._at, len(message), body)
        self._write(closing(self._schema, [batch], blocks))
        self._file.seek(self._at)
        self._write(message)
        column = ColumnRecord(
            values=values,
            items=self._items,
            offsets=offsets,
            validity=tuple(places),
            body=(self._body, self._body + body),
        )
        return _named(self._file, self._path, self._field.name, self._rows, column)

    def _pad(self, at: int) -> int:
        self._write(bytes(padded(at) - at))
        return padded(at)

    def _buffers(
        self,
        values: tuple[int, int],
        offsets: tuple[int, int] | None,
        validity: Sequence[tuple[int, int] | None],
    ) -> list[tuple[int, int]]:
        """Return the buffers of the record batch in Arrow's order, by their places in the body."""
        order: list[tuple[int, int] | None] = []
        for level in range(len(self._levels)):
            order.append(validity[level])
            if level < len(self._layout.outer):
                order.append(offsets)
        order.append(values)
        return [(0, 0) if b is None else (b[0] - self._body, b[1]) for b in order]

    def _message(
        self, nulls: Sequence[int], buffers: Sequence[tuple[int, int]], body: int
    ) -> bytes:
        outer = len(self._layout.outer)
        entries = [self._rows] * outer
        below = self._items if outer else self._rows
        entries += [n * below for n in self._layout.inner]
        empty = [(0, 0)] * (len(self._levels) + outer + 1)
        return batch_message(
            self._at, list(zip(entries, nulls, strict=True)), buffers or empty, body
        )


class _Bits:
    """A validity bitmap that is appended to; nothing is kept before the first null."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._rest = np.zeros(0, bool)  # entries that do not fill a byte yet
        self.entries = self.nulls = 0

    def append(self, valid: Bools | None, entries: int) -> None:
        if self._file is None:
            if valid is None:
                self.entries += entries
                return
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115
            self._file.write(b"\xff" * (self.entries // 8))
            self._rest = np.ones(self.entries % 8, bool)
        added = np.ones(entries, bool) if valid is None else valid
        self.nulls += entries - int(np.count_nonzero(added))
        self.entries += entries
        bits = np.concatenate([self._rest, added])
        whole = len(bits) // 8 * 8
        self._file.write(np.packbits(bits[:whole], bitorder="little"))
        self._rest = bits[whole:]

    def packed(self) -> Iterator[bytes]:
        self._file.seek(0)
        while data := self._file.read(_MOVED_BYTES):
            yield data
        yield np.packbits(self._rest, bitorder="little").tobytes()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class _Dictionary:
    """The values that codes stand for, in the order in which they came up."""

    def __init__(self) -> None:
        self.used = False
        self._values: pa.Array | None = None

    def codes(self, data: npt.NDArray[np.uint8], own: pa.Array, layout: Layout) -> Any:
        """Return codes of an own dictionary as codes of the one of the file, which grows."""
        self.used = True
        if self._values is None:
            self._values = own
        if own.equals(self._values):
            return data
        places = self._places(own)
        dtype = np.dtype(layout.physical.index_type.to_pandas_dtype())
        codes = data.view(dtype)
        if not len(places):
            return data
        inside = (codes >= 0) & (codes < len(places))  # what is under a null may be anything
        return places[np.where(inside, codes, 0)].astype(dtype).view(np.uint8)

    def _places(self, own: pa.Array) -> npt.NDArray[np.int64]:
        import pyarrow.compute as pc

        known = pc.index_in(own, value_set=self._values)
        fresh = own.filter(known.is_null())
        if len(fresh):
            self._values = pa.concat_arrays([self._values, fresh])
            known = pc.index_in(own, value_set=self._values)
        return np.array(known.to_pylist(), dtype=np.int64)

    def messages(self, schema: pa.Schema) -> list[tuple[bytes, bytes]]:
        """Return the messages (metadata, body) that hold the dictionary."""
        type_ = schema.field(0).type
        none = pa.DictionaryArray.from_arrays(
            pa.array([], type_.index_type), self._values, ordered=type_.ordered
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays([none], schema=schema))
        found = []
        for message in pa.ipc.MessageReader.open_stream(sink.getvalue()):
            if message.type == "dictionary":
                whole = bytes(memoryview(message.serialize()))
                body = 0 if message.body is None else message.body.size
                found.append((whole[: len(whole) - body], whole[len(whole) - body :]))
        return found


class _ArrowFile:
    """Record batches as pyarrow writes them, of what has no better form."""

    def __init__(self, field: pa.Field, rows: int, folder: Path) -> None:
        self._field, self._rows = field, rows
        self._path = folder / f".{uuid.uuid4().hex}.column"
        self._schema = pa.schema([field])
        self._file: Any = open(self._path, "w+b", buffering=0)  # noqa: SIM115
        self._writer: Any = None

    def __enter__(self) -> _ArrowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def append(self, array: pa.Array) -> None:
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
            self._writer = pa.ipc.new_file(
                pa.PythonFile(self._file, "w"), self._schema, options=options
            )
        self._writer.write_batch(pa.RecordBatch.from_arrays([array], schema=self._schema))

    def finish(self) -> PackedFile:
        self._writer.close()
        return _named(self._file, self._path, self._field.name, self._rows, ColumnRecord())


def _physical(field: pa.Field, layout: Layout) -> pa.Field:
    """Return the field of the file, which says the logical type where it is another one."""
    same = field.type == layout.physical
    metadata = None if same else {"batchloom.type": str(field.type)}
    return pa.field(field.name, layout.physical, metadata=metadata)


def _named(file: Any, path: Path, name: str, rows: int, column: ColumnRecord) -> PackedFile:
    """Flush and hash a finished file, and name it by its hash."""
    file.flush()
    os.fsync(file.fileno())
    file.seek(0)
    pages, size = page_sums(file)
    sha256 = file_hash(size, pages)
    final = path.with_name(column_file_name(sha256))
    path.replace(final)
    return PackedFile(final.name, name, rows, size, sha256, column, pages)
