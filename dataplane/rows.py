"""Rows by id, straight from a dataset's files.

Works chunk by chunk: the ids of a request are grouped by row group or record batch, each chunk is
decoded once, its rows are copied out, and it is kept in a byte-limited cache (least recently used
out first). Memory-mapped record batches are views; Parquet row groups are decoded. Correct for any
dataset, fast where the touched chunks fit the cache.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import as_arrow
from .errors import ColumnTypeError, DatasetChangedError
from .fragments import FragmentReader, FragmentRef
from .snapshot import Snapshot, as_row_ids

__all__ = ["ChunkRows", "ReadCounts", "RowReader"]

_OPEN_FILES = 64


class Fragmented(Protocol):
    """What the reader asks of a `Dataset`, which itself reads rows by this module."""

    @property
    def snapshot(self) -> Snapshot:
        """Row ids."""

    @property
    def refs(self) -> Sequence[FragmentRef | None]:
        """Where the fragments are."""

    @property
    def schema(self) -> pa.Schema:
        """Columns and their types."""

    def check_sources(self, columns: Iterable[str]) -> None:
        """Refuse columns that some of a source's fragments lack or hold as another type."""


@dataclass(frozen=True)
class ChunkRows:
    """The part of a request that one chunk answers.

    Attributes
    ----------
    chunk : pyarrow.RecordBatch
    offsets : int64, shape (k,)
        Rows of the chunk that were asked for.
    positions : int64, shape (k,)
        Where they belong in the answer.
    """

    chunk: pa.RecordBatch
    offsets: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]


@dataclass
class ReadCounts:
    """What a reader has read so far.

    Attributes
    ----------
    bytes_read : int
        Of the chunks that were decoded or mapped.
    hits, misses : int
        Chunks asked for that the cache held, and that it did not.
    """

    bytes_read: int = 0
    hits: int = 0
    misses: int = 0


class RowReader:
    """Random access to the rows of a dataset; may be used from several threads.

    Parameters
    ----------
    dataset : Dataset
    columns : sequence of str, optional
        All when None. What a source holds of them it must hold in all its fragments; a source that
        lacks one is refused when a row of it is asked for.
    cache_bytes : int
        Decoded chunks that are kept.

    Attributes
    ----------
    counts : ReadCounts
    """

    def __init__(
        self,
        dataset: Fragmented,
        columns: Sequence[str] | None = None,
        *,
        cache_bytes: int = 256 << 20,
    ) -> None:
        self._dataset = dataset
        self.columns = list(dataset.schema.names if columns is None else columns)
        dataset.check_sources(self.columns)
        self._cache_bytes = cache_bytes
        self._chunks: OrderedDict[tuple[int, int], tuple[pa.RecordBatch, int]] = OrderedDict()
        self._held = 0
        self.counts = ReadCounts()
        self._readers: OrderedDict[int, FragmentReader] = OrderedDict()
        self._lock = Lock()

    @property
    def schema(self) -> pa.Schema:
        return pa.schema([self._dataset.schema.field(c) for c in self.columns])

    def visit(self, ids: npt.NDArray[np.uint64]) -> Iterator[ChunkRows]:
        """Yield the chunks that hold the rows, each once; together they answer every position."""
        fragment, offset = self._dataset.snapshot.locate(ids)
        order = np.lexsort((offset, fragment))
        fragment, offset = fragment[order], offset[order]
        cuts = np.flatnonzero(np.diff(fragment)) + 1
        bounds = [0, *cuts.tolist(), len(order)]
        for start, stop in itertools.pairwise(bounds):
            if start < stop:
                yield from self._visit_fragment(
                    int(fragment[start]), offset[start:stop], order[start:stop]
                )

    def _visit_fragment(
        self,
        fragment: int,
        offset: npt.NDArray[np.int64],
        positions: npt.NDArray[np.int64],
    ) -> Iterator[ChunkRows]:
        ends = np.cumsum(self._reader(fragment).chunk_rows)
        starts = ends - self._reader(fragment).chunk_rows
        chunk = np.searchsorted(ends, offset, side="right")
        cuts = np.flatnonzero(np.diff(chunk)) + 1
        bounds = [0, *cuts.tolist(), len(chunk)]
        for start, stop in itertools.pairwise(bounds):
            index = int(chunk[start])
            yield ChunkRows(
                self._chunk(fragment, index),
                offset[start:stop] - starts[index],
                positions[start:stop],
            )

    def take(self, ids: npt.ArrayLike) -> pa.Table:
        """Return rows in the order of `ids`, repeats included."""
        parts, places = [], []
        try:
            for part in self.visit(as_row_ids(ids)):
                parts.append(part.chunk.take(as_arrow(part.offsets)))
                places.append(part.positions)
            if not parts:
                return self.schema.empty_table()
            back = np.argsort(np.concatenate(places), kind="stable")
            # One chunk a column first: take on a chunked fixed-size list is slow.
            return pa.Table.from_batches(parts).combine_chunks().take(as_arrow(back))
        except pa.ArrowNotImplementedError as error:
            types = ", ".join(f"{f.name} ({f.type})" for f in self.schema)
            raise ColumnTypeError(
                f"Arrow cannot pick single rows of one of these columns: {types}: {error}. "
                "Leave that column out."
            ) from error

    def _reader(self, fragment: int) -> FragmentReader:
        with self._lock:
            reader = self._readers.get(fragment)
            if reader is None:
                ref = self._dataset.refs[fragment]
                if ref is None:
                    label = self._dataset.snapshot.fragments[fragment].label
                    raise DatasetChangedError(f"Fragment {label} was not there at opening.")
                reader = FragmentReader(ref, self.columns, self._dataset.schema)
                self._readers[fragment] = reader
                while len(self._readers) > _OPEN_FILES:
                    self._readers.popitem(last=False)  # closes when no other thread decodes from it
            self._readers.move_to_end(fragment)
            return reader

    def _chunk(self, fragment: int, index: int) -> pa.RecordBatch:
        key = (fragment, index)
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
                self.counts.hits += 1
                return self._chunks[key][0]
        chunk = self._reader(fragment).chunk(index)
        size = chunk.get_total_buffer_size()
        with self._lock:
            self.counts.bytes_read += size
            self.counts.misses += 1
            if key not in self._chunks:
                self._chunks[key] = chunk, size
                self._held += size
            while self._held > self._cache_bytes and len(self._chunks) > 1:
                self._held -= self._chunks.popitem(last=False)[1][1]
        return chunk

    def close(self) -> None:
        """Drop the cache and the open files."""
        with self._lock:
            self._chunks.clear()
            self._held = 0
            while self._readers:
                self._readers.popitem()[1].close()
