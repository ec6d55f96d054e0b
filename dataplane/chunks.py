"""Chunks of a fragment: which are read together, in which batches, which one is damaged.

A *chunk* is a row group or a record batch. A **run** is the smallest stretch of neighbouring chunks
that holds `SCAN_ROWS` rows: scans begin a new batch at each run, so that the batches of a fragment
are the same whether it is read in one piece or in several. A batch holds at most `SCAN_ROWS` rows,
and as many as take about `SCAN_BYTES`: a scan takes the same memory however wide the rows are and
however many a chunk holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .columns import numpy_type

__all__ = [
    "SCAN_BYTES",
    "SCAN_ROWS",
    "chunk_runs",
    "column_ranges",
    "damaged_place",
    "decoded_bytes",
    "ipc_batches",
    "parquet_batches",
    "small_runs",
]

_RUN_BYTES = 2 << 20  # of small record batches that come from an object store in one request
SCAN_ROWS = 65_536
"""Rows of a scanned batch at most."""

SCAN_BYTES = 4 << 20
"""Bytes of a scanned batch, about; a row that takes more is a batch of its own."""

_PROBE_ROWS = 256


def chunk_runs(chunk_rows: Iterable[int]) -> list[tuple[range, int]]:
    """Return (chunks, rows) of each run of a fragment; the last one may hold fewer rows."""
    runs: list[tuple[range, int]] = []
    first = held = index = 0
    for index, rows in enumerate(chunk_rows, 1):
        held += int(rows)
        if held >= SCAN_ROWS:
            runs.append((range(first, index), held))
            first, held = index, 0
    if held:
        runs.append((range(first, index), held))
    return runs


def decoded_bytes(metadata: Any, schema: pa.Schema, columns: Sequence[str], chunk: int) -> int:
    """Return about how many bytes the columns of a Parquet row group take in memory, at least.

    Fixed-width columns are counted by their width, others by their bytes before compression.
    """
    group = metadata.row_group(chunk)
    total = 0
    loose = set()
    for name in columns:
        known = numpy_type(schema.field(name).type)
        if known is None:
            loose.add(name)
        else:
            total += group.num_rows * known[0].itemsize * math.prod(known[1])
    for index in range(group.num_columns if loose else 0):
        column = group.column(index)
        name = column.path_in_schema
        if name in loose or name.split(".")[0] in loose:
            total += column.total_uncompressed_size
    return int(total)


def parquet_batches(
    file: pq.ParquetFile, columns: Sequence[str], run: range
) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a run of row groups."""
    schema, metadata = file.schema_arrow, file.metadata
    held = {group: metadata.row_group(group).num_rows for group in run}
    rows, largest = sum(held.values()), max(held, key=held.__getitem__)
    loose = [name for name in columns if numpy_type(schema.field(name).type) is None]
    fixed = [name for name in columns if name not in loose]
    options = {"row_groups": list(run), "use_threads": False}
    # By one row group of the run: to look all columns of all of them up takes long where they are
    # small and wide.
    size, at_least = (
        decoded_bytes(metadata, schema, names, largest) * rows // max(1, held[largest])
        if names
        else 0
        for names in (fixed, loose)
    )
    if loose and rows:
        # A column that is stored as numbers of a dictionary's entries takes more than its pages do.
        few = next(file.iter_batches(batch_size=_PROBE_ROWS, columns=loose, **options))
        size += max(at_least, few.get_total_buffer_size() * rows // max(1, few.num_rows))
    yield from file.iter_batches(batch_size=_batch_rows(rows, size), columns=columns, **options)


def ipc_batches(chunk: pa.RecordBatch, *, validated: bool) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a record batch, which may be mapped.

    Arrow trusts the offsets of strings and lists, and a damaged one ends the process. So they are
    validated first, unless they are already: batch by batch, so that not all of them are touched at
    once. That is not possible below a list or a struct, whose children are always looked at whole.
    """
    if not validated:
        for column in chunk.columns:
            if pa.types.is_nested(column.type) and numpy_type(column.type) is None:
                column.validate(full=True)
    step = _batch_rows(chunk.num_rows, chunk.get_total_buffer_size())
    for start in range(0, chunk.num_rows, step):
        batch = chunk.slice(start, step)
        if not validated:
            for column in batch.columns:
                if not pa.types.is_nested(column.type) or numpy_type(column.type) is not None:
                    column.validate(full=True)
        yield batch


def _batch_rows(rows: int, size: int) -> int:
    """Return the rows of a batch, where so many rows take `size` bytes."""
    return min(SCAN_ROWS, max(1, rows * SCAN_BYTES // max(1, size)))


def damaged_place(file: pq.ParquetFile, columns: Sequence[str], chunks: range) -> str:
    """Return which row group and column cannot be decoded, found by trying; empty where all can."""
    for chunk in chunks:
        for name in columns:
            try:
                file.read_row_group(chunk, columns=[name], use_threads=False)
            except (pa.ArrowException, OSError, ValueError):
                return f"row group {chunk}, column '{name}'"
    return ""


def small_runs(places: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Return runs of neighbouring record batches that are too small for a request each."""
    runs: list[list[tuple[int, int]]] = []
    held = _RUN_BYTES
    for start, stop in places:
        if stop - start >= _RUN_BYTES:
            held = _RUN_BYTES
            continue
        if held + stop - start > _RUN_BYTES:
            runs.append([])
            held = 0
        runs[-1].append((start, stop))
        held += stop - start
    return runs


def column_ranges(metadata: Any, columns: Sequence[str]) -> list[list[tuple[int, int]]]:
    """Return where each row group's chunks of some columns stand."""
    names = [metadata.schema.column(j).path for j in range(metadata.num_columns)]
    wanted = [j for j, n in enumerate(names) if any(f"{n}.".startswith(f"{c}.") for c in columns)]
    groups = []
    for i in range(metadata.num_row_groups):
        chunks = [metadata.row_group(i).column(j) for j in wanted]
        starts = [min(filter(None, (c.dictionary_page_offset, c.data_page_offset))) for c in chunks]
        groups.append(
            [(at, at + c.total_compressed_size) for at, c in zip(starts, chunks, strict=True)]
        )
    return groups
