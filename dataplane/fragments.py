"""One data file: its format, its footer, its rows.

A *fragment* is a Parquet file, an Arrow IPC file or an Arrow IPC stream. Its **footer hash** is the
SHA-256 of the footer's bytes (Parquet, IPC file) or of all message metadata (IPC stream, bodies
skipped): it changes with the rows, the schema and the layout, not with time stamps or the place of
the file. A *chunk* is what a fragment can decode by itself: a row group or a record batch.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from . import ipc_messages
from .chunks import (
    chunk_runs,
    column_ranges,
    damaged_place,
    decoded_bytes,
    ipc_batches,
    parquet_batches,
    small_runs,
)
from .errors import BatchloomError, DatasetChangedError, FragmentCorruptError
from .ipc_messages import Message
from .ipc_streams import MappedStream, RangedStream
from .schemas import drift, missing_column, plain_schema, plain_type, refuse_equal_names
from .storage import Location, unreadable

__all__ = [
    "SUFFIXES",
    "Footer",
    "FragmentReader",
    "FragmentRef",
    "read_footer",
    "read_footer_hash",
]

Format = Literal["parquet", "ipc-file", "ipc-stream"]

SUFFIXES = (".parquet", ".pq", ".arrow", ".feather", ".ipc", ".arrows")
"""Files with these endings are fragments; others are left alone, never tried."""

FOOTER_THREADS = 8  # footers read at a time: latency, not work

_RESIDENT_BYTES = 16 << 20  # of scanned batches, after which a mapped file's pages are let go


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
    footer_hash : str
        Checked whenever the file is opened; empty: not.
    """

    uri: str
    label: str
    rows: int
    bytes: int
    first_row_id: int
    options: Mapping[str, Any] = field(default_factory=dict, repr=False, hash=False)
    footer_hash: str = ""

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
    with reading(location, size), location.open(size) as file:
        format_, footer_hash, messages = _fingerprint(file, size)
        if format_ == "parquet":
            parquet = pq.ParquetFile(file)
            rows, schema = sum(_row_groups(parquet.metadata)), parquet.schema_arrow
        elif format_ == "ipc-file":
            rows = sum(m.rows or 0 for m in _file_batches(file, size))
            file.seek(0)
            schema = pa.ipc.open_file(file).schema
        else:
            rows = sum(m.rows or 0 for m in messages)
            file.seek(0)
            schema = pa.ipc.open_stream(file).schema
        plain_schema([schema])  # a damaged name or type is found where it is first looked at
        return Footer(rows, size, footer_hash, schema)


def read_footer_hash(location: Location, size: int) -> str:
    """Read the footer hash alone: two small reads, nothing is parsed."""
    with reading(location, size), location.open(size) as file:
        return _fingerprint(file, size)[1]


def _fingerprint(file: Any, size: int) -> tuple[Format, str, list[Message]]:
    """Return (format, footer hash, messages of a stream)."""
    head = bytes(file.read(min(size, 8)))
    if head[:4] == b"PAR1":
        return "parquet", _sha256(_footer_bytes(file, size, b"PAR1")), []
    if head[:6] == b"ARROW1":
        return "ipc-file", _sha256(_footer_bytes(file, size, b"ARROW1")), []
    if head[:4] == b"\xff\xff\xff\xff":
        hasher, messages = hashlib.sha256(), []
        for message in ipc_messages.walk_stream(file, size):
            hasher.update(message.metadata)
            messages.append(message)
        return "ipc-stream", hasher.hexdigest(), messages
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


def _file_batches(file: Any, size: int) -> list[Message]:
    return ipc_messages.file_batches(file, _footer_bytes(file, size, b"ARROW1"), size)


def _row_groups(metadata: Any) -> list[int]:
    rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ValueError(f"its row groups hold {sum(rows)} rows, its footer says otherwise")
    return rows


@contextmanager
def reading(
    location: Location, size: int | None = None, place: Callable[[], str] = str
) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into `FragmentCorruptError`.

    An error with a number is the operating system's: the file is out of reach, not damaged. `place`
    is asked which part of the file it is.
    """
    try:
        yield
    except BatchloomError:
        raise
    except (
        pa.ArrowException,
        ValueError,
        OSError,
        EOFError,
        MemoryError,
        struct.error,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise unreadable(location, error) from error
        what = str(location) if size is None else f"{location} ({size:,} bytes)"
        reason = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        cause = "The file is truncated or damaged; copy it again from its source."
        if isinstance(error, MemoryError):
            cause = "Either there is too little memory for it, or the file is damaged."
        elif where := place():
            what += f", {where},"
        raise FragmentCorruptError(f"{what} cannot be read: {reason}. {cause}") from error


class FragmentReader:
    """Chunks and scans of one fragment, projected to some columns.

    Parameters
    ----------
    ref : FragmentRef
    columns : sequence of str, optional
        All columns when None.
    expected : pyarrow.Schema, optional
        Types that the columns must have; else `SchemaDriftError`.

    Raises
    ------
    DatasetChangedError
        Where the file is not the one that was listed.
    """

    def __init__(
        self,
        ref: FragmentRef,
        columns: Sequence[str] | None = None,
        expected: pa.Schema | None = None,
    ) -> None:
        self.ref = ref
        self._lock = Lock()  # one decode at a time: Arrow's readers promise nothing for threads
        self._parquet: pq.ParquetFile | None = None
        self._ipc: Any = None
        self._validated: set[int] = set()  # chunks of an IPC file or stream
        self._file = ref.location.open()
        try:
            with reading(ref.location, ref.bytes):
                self._open()
                self._choose(columns, expected)
                if not ref.location.is_local:
                    self._expect()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        size = int(self._file.size())
        if size != self.ref.bytes:
            self._changed(f"{self.ref.bytes:,} bytes", f"{size:,} bytes")
        format_, found, messages = _fingerprint(self._file, size)
        if self.ref.footer_hash and found != self.ref.footer_hash:
            self._changed(f"footer {self.ref.footer_hash[:16]}…", f"footer {found[:16]}…")
        self._file.seek(0)
        if format_ == "parquet":
            self._open_parquet()
        elif format_ == "ipc-file":
            self._open_ipc_file()
        else:
            self._open_ipc_stream(messages)
        if self.rows != self.ref.rows:
            self._changed(f"{self.ref.rows:,} rows", f"{self.rows:,} rows")

    def _changed(self, expected: str, found: str) -> None:
        raise DatasetChangedError(
            f"Fragment {self.ref.label} was rewritten after it was listed: expected {expected}, "
            f"found {found}. Put the old file back, or open the dataset and plan again."
        )

    def _open_parquet(self) -> None:
        # Page checksums are verified where the writer stored them; Arrow's default is not to.
        self._parquet = pq.ParquetFile(self._file, page_checksum_verification=True)
        self.chunk_rows = np.array(_row_groups(self._parquet.metadata), dtype=np.int64)
        self.schema: pa.Schema = self._parquet.schema_arrow

    def _open_ipc_file(self) -> None:
        self._listed(_file_batches(self._file, self.ref.bytes))
        self._file.seek(0)
        self._ipc = pa.ipc.open_file(self._file)
        self.schema = self._ipc.schema

    def _open_ipc_stream(self, messages: list[Message]) -> None:
        local = self.ref.location.is_local
        self._ipc = MappedStream(self._file) if local else RangedStream(self._file, messages)
        self.schema = self._ipc.schema
        self._listed(messages)

    def _listed(self, messages: list[Message]) -> None:
        batches = [m for m in messages if m.rows is not None]
        self.chunk_rows = np.array([m.rows for m in batches], dtype=np.int64)
        self._places = [(m.start, m.stop) for m in batches]

    def _expect(self) -> None:
        """Let a remote file fetch in one go what is read together, and no other columns.

        Arrow's `pre_buffer` would do it for Parquet, but holds what it read of the whole file.
        """
        if self._parquet is not None:
            self._file.expect(column_ranges(self._parquet.metadata, self.columns))
            return
        self._file.expect(small_runs(self._places))
        if isinstance(self._ipc, pa.RecordBatchFileReader) and self.columns:
            fields = sorted(self.schema.get_field_index(name) for name in self.columns)
            options = pa.ipc.IpcReadOptions(included_fields=fields)
            self._file.seek(0)
            self._ipc = pa.ipc.open_file(self._file, options=options)

    def _choose(self, columns: Sequence[str] | None, expected: pa.Schema | None) -> None:
        """Settle the columns and the plain types in which they are given out."""
        label, names = self.ref.label, self.schema.names
        refuse_equal_names(self.schema, label)
        self.columns = list(names if columns is None else columns)
        fields = []
        for name in self.columns:
            wanted = None
            if expected is not None and name in expected.names:
                wanted = plain_type(expected.field(name).type)
            if name not in names:
                if wanted is None:
                    raise missing_column(name, names, label)
                raise drift(label, name, None, wanted)
            found = plain_type(self.schema.field(name).type)
            if wanted is not None and found != wanted:
                raise drift(label, name, found, wanted)
            fields.append(pa.field(name, found))
        self._given = pa.schema(fields)

    @property
    def rows(self) -> int:
        return int(self.chunk_rows.sum())

    @property
    def is_parquet(self) -> bool:
        return self._parquet is not None

    def chunk(self, index: int, *, trusted: bool = False) -> pa.RecordBatch:
        """Decode one row group or record batch.

        With `trusted` the caller looks itself at what a record batch's offsets say.
        """
        with reading(self.ref.location, self.ref.bytes), self._lock:
            if self._parquet is not None:
                table = self._parquet.read_row_group(index, columns=self.columns, use_threads=False)
                return self._plain(_one_batch(table.select(self.columns)))
            batch = self._ipc.get_batch(index).select(self.columns)
            if index not in self._validated and not trusted:
                # Arrow trusts the offsets of strings and lists: a damaged one ends the process.
                batch.validate(full=True)
                self._validated.add(index)
            return self._plain(batch)

    def _plain(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Give equal schemas to the batches of all fragments; no value changes."""
        if not self.columns or batch.schema.equals(self._given, check_metadata=True):
            return batch
        arrays = [
            column if column.type == given.type else column.cast(given.type)
            for column, given in zip(batch.columns, self._given, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self._given)

    def batches(self, chunks: range | None = None) -> Iterator[pa.RecordBatch]:
        """Scan the fragment, or whole runs of its chunks, in order, in batches; see `chunks`."""
        chosen = range(len(self.chunk_rows)) if chunks is None else chunks
        let_go = getattr(self._file, "let_go", None)
        read = 0
        for run, _ in chunk_runs(self.chunk_rows[chosen.start : chosen.stop]):
            for batch in self._run(range(chosen.start + run.start, chosen.start + run.stop)):
                read += batch.nbytes
                yield batch
                if let_go is not None and read >= _RESIDENT_BYTES:
                    read = 0
                    let_go()

    def _run(self, run: range) -> Iterator[pa.RecordBatch]:
        file = self._parquet
        place: Callable[[], str] = str
        if file is not None:
            place = partial(damaged_place, file, self.columns, run)
        with reading(self.ref.location, self.ref.bytes, place):
            if file is not None:
                for batch in parquet_batches(file, self.columns, run):
                    yield self._plain(batch.select(self.columns))
                return
            for index in run:
                with self._lock:
                    chunk = self._ipc.get_batch(index).select(self.columns)
                for batch in ipc_batches(chunk, validated=index in self._validated):
                    yield self._plain(batch)
                self._validated.add(index)

    def decoded_bytes(self, chunk: int) -> int:
        """Return about how many bytes the columns of a chunk take in memory, at least."""
        if self._parquet is None:
            return int(self.ref.bytes * self.chunk_rows[chunk] / max(1, self.rows))
        return decoded_bytes(self._parquet.metadata, self.schema, self.columns, chunk)

    def span(self) -> tuple[int, int]:
        """Return the addresses between which a local file is mapped."""
        self._file.seek(0)
        start = int(self._file.read_buffer(1).address)
        return start, start + self.ref.bytes

    def close(self) -> None:
        """Drop the handles; chunks already given out stay valid."""
        self._parquet, self._ipc = None, None
        self._file.close()


def _one_batch(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    if len(batches) == 1:
        return batches[0]
    arrays = [
        pa.concat_arrays(c.chunks) if c.num_chunks else pa.array([], c.type) for c in table.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=table.schema)
