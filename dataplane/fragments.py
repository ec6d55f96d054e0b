"""One data file: its format, its footer, its rows.

A *fragment* is a Parquet file, an Arrow IPC file or an Arrow IPC stream. Its **footer hash** is the
SHA-256 of the footer's bytes (Parquet, IPC file) or of all message metadata (IPC stream, bodies
skipped): it changes with the rows, the schema and the layout, not with time stamps or the place of
the file. A *chunk* is what a fragment can decode by itself: a row group or a record batch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import ipc_messages
from .canonical import file_sha256
from .errors import (
    BatchloomError,
    DatasetError,
    FragmentCorruptError,
    MissingColumnError,
    SchemaDriftError,
    nearest,
)
from .storage import Location

__all__ = [
    "SUFFIXES",
    "Footer",
    "FragmentReader",
    "FragmentRef",
    "content_sha256",
    "read_footer",
    "read_footer_hash",
]

Format = Literal["parquet", "ipc-file", "ipc-stream"]

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".arrows")
"""Files with these endings are fragments; others are left alone, never tried."""

_SCAN_ROWS = 65_536  # rows a scanned batch at most


@dataclass(frozen=True)
class FragmentRef:
    """What a task needs to read one fragment: small, picklable, no data.

    Attributes
    ----------
    uri : str
        Local path or URI.
    label : str
        Source and relative path, for messages.
    rows, bytes : int
    first_row_id : int
    options : mapping
        Storage options.
    """

    uri: str
    label: str
    rows: int
    bytes: int
    first_row_id: int
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def location(self) -> Location:
        return Location(self.uri, self.options)

    def row_ids(self) -> np.ndarray[Any, np.dtype[np.uint64]]:
        return np.arange(self.first_row_id, self.first_row_id + self.rows, dtype=np.uint64)


@dataclass(frozen=True)
class Footer:
    """What a fragment's footer says; no data is read for it."""

    rows: int
    bytes: int
    footer_hash: str
    schema: pa.Schema


def read_footer(location: Location, size: int) -> Footer:
    """Read rows, footer hash and schema of a fragment of `size` bytes."""
    with reading(location, size), location.open() as file:
        format_, footer_hash, rows = _fingerprint(file, size)
        if format_ == "parquet":
            parquet = pq.ParquetFile(file)
            return Footer(parquet.metadata.num_rows, size, footer_hash, parquet.schema_arrow)
        if format_ == "ipc-file":
            rows = sum(_ipc_chunk_rows(file, size))
            file.seek(0)
            return Footer(rows, size, footer_hash, pa.ipc.open_file(file).schema)
        file.seek(0)
        return Footer(rows, size, footer_hash, pa.ipc.open_stream(file).schema)


def read_footer_hash(location: Location, size: int) -> str:
    """Read the footer hash alone: two small reads, nothing is parsed."""
    with reading(location, size), location.open() as file:
        return _fingerprint(file, size)[1]


def content_sha256(location: Location) -> str:
    """Return the SHA-256 of all bytes of a fragment."""
    with location.open() as file:
        return file_sha256(_Plain(file))


class _Plain:
    """An Arrow file under the two methods that hashlib asks for."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return int(self._file.readinto(buffer))


def _fingerprint(file: Any, size: int) -> tuple[Format, str, int]:
    """Return (format, footer hash, rows where already known)."""
    head = bytes(file.read(min(size, 8)))
    if head[:4] == b"PAR1":
        return "parquet", _sha256(_footer_bytes(file, size, b"PAR1")), 0
    if head[:6] == b"ARROW1":
        return "ipc-file", _sha256(_footer_bytes(file, size, b"ARROW1")), 0
    if head[:4] == b"\xff\xff\xff\xff":
        hasher, rows = hashlib.sha256(), 0
        for message in ipc_messages.walk_stream(file, size):
            hasher.update(message.metadata)
            rows += message.rows or 0
        return "ipc-stream", hasher.hexdigest(), rows
    raise ValueError("it starts with no Parquet or Arrow signature")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _footer_bytes(file: Any, size: int, magic: bytes) -> bytes:
    """Read the footer before the int32 length and magic word that end the file."""
    tail = 4 + len(magic)
    if size < tail + len(magic):
        raise ValueError("it is too short to hold a footer")
    file.seek(size - tail)
    end = bytes(file.read(tail))
    if not end.endswith(magic):
        raise ValueError("its end holds no footer")
    (length,) = struct.unpack_from("<i", end, 0)
    if not 0 < length <= size - tail - len(magic):
        raise ValueError("its footer's length is impossible")
    file.seek(size - tail - length)
    return bytes(file.read(length))


def _ipc_chunk_rows(file: Any, size: int) -> list[int]:
    return ipc_messages.file_rows(file, _footer_bytes(file, size, b"ARROW1"))


@contextmanager
def reading(location: Location, size: int | None = None) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into `FragmentCorruptError`."""
    try:
        yield
    except (BatchloomError, KeyboardInterrupt):
        raise
    except (pa.ArrowException, ValueError, OSError, EOFError, struct.error) as error:
        found = "" if size is None else f" ({size:,} bytes)"
        reason = str(error).split("\n")[0].rstrip(".")
        raise FragmentCorruptError(
            f"{location}{found} cannot be read: {reason}. "
            "The file is truncated or damaged; copy it again from its source."
        ) from error


class FragmentReader:
    """Chunks and scans of one fragment, projected to some columns.

    Parameters
    ----------
    ref : FragmentRef
    columns : sequence of str, optional
        All columns when None.
    expected : pyarrow.Schema, optional
        Types that the columns must have; else `SchemaDriftError`.
    """

    def __init__(
        self,
        ref: FragmentRef,
        columns: Sequence[str] | None = None,
        expected: pa.Schema | None = None,
    ) -> None:
        self.ref = ref
        self._file = ref.location.open()
        with reading(ref.location, ref.bytes):
            head = bytes(self._file.read(8))
            self._file.seek(0)
            self._parquet: pq.ParquetFile | None = None
            self._ipc: Any = None
            self._batches: list[pa.RecordBatch] = []
            if head[:4] == b"PAR1":
                self._open_parquet()
            elif head[:6] == b"ARROW1":
                self._open_ipc_file()
            else:
                self._open_ipc_stream()
        if self.schema.names and len(set(self.schema.names)) != len(self.schema.names):
            raise DatasetError(f"{ref.label}: two columns have the same name.")
        self.columns = list(self.schema.names if columns is None else columns)
        self._check_columns(expected)
        if self.rows != ref.rows:
            raise FragmentCorruptError(
                f"{ref.label}: expected {ref.rows:,} rows, found {self.rows:,}; "
                "the file was rewritten after it was listed."
            )

    def _open_parquet(self) -> None:
        # Page checksums are verified where the writer stored them; Arrow's default is not to.
        self._parquet = pq.ParquetFile(self._file, page_checksum_verification=True)
        metadata = self._parquet.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        self.chunk_rows = np.array(groups, dtype=np.int64)
        self.schema: pa.Schema = self._parquet.schema_arrow

    def _open_ipc_file(self) -> None:
        self.chunk_rows = np.array(_ipc_chunk_rows(self._file, self.ref.bytes), dtype=np.int64)
        self._file.seek(0)
        self._ipc = pa.ipc.open_file(self._file)
        self.schema = self._ipc.schema

    def _open_ipc_stream(self) -> None:
        # A stream has no index; over a memory map its batches are views, so all can be listed.
        reader = pa.ipc.open_stream(self._file)
        self.schema = reader.schema
        self._batches = list(reader)
        self.chunk_rows = np.array([b.num_rows for b in self._batches], dtype=np.int64)

    def _check_columns(self, expected: pa.Schema | None) -> None:
        for name in self.columns:
            index = self.schema.get_field_index(name)
            if index < 0:
                if expected is not None and expected.get_field_index(name) >= 0:
                    raise SchemaDriftError(
                        f"{self.ref.label} has no column '{name}'; other fragments have it as "
                        f"{expected.field(name).type}."
                    )
                raise missing_column(name, self.schema.names, self.ref.label)
            found = self.schema.field(index).type
            if expected is not None and expected.get_field_index(name) >= 0:
                wanted = expected.field(name).type
                if found != wanted:
                    raise SchemaDriftError(drift_message(self.ref.label, name, found, wanted))

    @property
    def rows(self) -> int:
        return int(self.chunk_rows.sum())

    def chunk(self, index: int) -> pa.RecordBatch:
        """Decode one row group or record batch."""
        with reading(self.ref.location, self.ref.bytes):
            if self._parquet is not None:
                table = self._parquet.read_row_group(index, columns=self.columns, use_threads=False)
                return _one_batch(table.select(self.columns))
            batch = self._batches[index] if self._batches else self._ipc.get_batch(index)
            return batch.select(self.columns)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Scan the fragment in order, at most 65,536 rows at a time."""
        with reading(self.ref.location, self.ref.bytes):
            if self._parquet is not None:
                for batch in self._parquet.iter_batches(
                    batch_size=_SCAN_ROWS, columns=self.columns, use_threads=False
                ):
                    yield batch.select(self.columns)
                return
            for index in range(len(self.chunk_rows)):
                chunk = self.chunk(index)
                for start in range(0, chunk.num_rows, _SCAN_ROWS):
                    yield chunk.slice(start, _SCAN_ROWS)

    def close(self) -> None:
        """Drop the handles; chunks already given out stay valid."""
        self._batches, self._parquet, self._ipc = [], None, None
        self._file.close()


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    arrays = [
        pa.concat_arrays(c.chunks) if c.num_chunks else pa.array([], c.type) for c in table.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)


def missing_column(name: str, known: Sequence[str], where: str) -> MissingColumnError:
    """Say which columns exist and which is nearest."""
    names = ", ".join(known[:30]) + (", …" if len(known) > 30 else "")
    return MissingColumnError(
        f"There is no column '{name}' in {where}.{nearest(name, known)} It has: {names or 'none'}."
    )


def drift_message(label: str, column: str, found: Any, wanted: Any) -> str:
    """Say that one fragment holds a column as another type."""
    return (
        f"Column '{column}' is {found} in {label} but {wanted} in the fragments before it. "
        "Rewrite that file with the same type; Batchloom never casts silently."
    )
