"""What the tasks of ``batchloom graph build`` do: count edges, deal them, sort them, hash them.

They run on workers, may run twice, and write under names of their own, or the same bytes at the
same places of a file that is there already.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ..dataplane.columns import as_numpy
from ..dataplane.dataset import ScanPart
from ..dataplane.errors import ColumnTypeError, DatasetChangedError, InvalidValueError
from ..dataplane.storage import storing
from ..samplers.graph.edge_runs import EdgeDealer, RunLayout, runs_of
from ..samplers.graph.edge_sort import CellCounts, Ranges, sort_range
from ..samplers.graph.graph_header import ArrayRecord, array_hash
from .graph_keys import KeyTable, check_key_type, look_up, unknown_key
from .tasks import ScanTask, scan_task

__all__ = [
    "EdgeColumns",
    "HashTask",
    "RangeTask",
    "count_edges",
    "deal_edges",
    "hash_array",
    "sort_edges",
]

I64 = npt.NDArray[np.int64]

_WRITING = "Writing the graph's arrays"


@dataclass(frozen=True)
class EdgeColumns:
    """The columns of an edge table, and the nodes that it may name.

    Attributes
    ----------
    source, target : str
    weights, times : str or None
    sources, targets : int or None
        Nodes that there are; None: as many as are named.
    kinds : (str, str)
        What the nodes are called, for messages.
    source_keys, target_keys : KeyTable or None
        Where keys are looked up, of columns that hold keys and not numbers.
    """

    source: str
    target: str
    weights: str | None = None
    times: str | None = None
    sources: int | None = None
    targets: int | None = None
    kinds: tuple[str, str] = ("node", "node")
    source_keys: KeyTable | None = None
    target_keys: KeyTable | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """Columns of values that an edge keeps."""
        return tuple(c for c in (self.weights, self.times) if c is not None)

    @property
    def ends(self) -> tuple[tuple[str, KeyTable | None], tuple[str, KeyTable | None]]:
        return (self.source, self.source_keys), (self.target, self.target_keys)

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys([self.source, self.target, *self.values]))

    def check(self, schema: pa.Schema, label: str) -> None:
        """Raise `ColumnTypeError` where a column is of a type that it cannot have."""
        for name, keys in self.ends:
            type_ = schema.field(name).type
            if keys is not None:
                check_key_type(keys, type_, name, label)
            elif not pa.types.is_integer(type_):
                raise ColumnTypeError(
                    f"Column '{name}' of {label} is {type_}: nodes are named by integers from 0. "
                    "Number the nodes and write the column as int64."
                )
        for name in self.values:
            type_ = schema.field(name).type
            number = pa.types.is_integer(type_) or pa.types.is_floating(type_)
            moment = pa.types.is_timestamp(type_) or pa.types.is_date(type_)
            if not (number or (moment and name == self.times)):
                raise ColumnTypeError(
                    f"Column '{name}' of {label} is {type_}: an edge's weight is a number, its "
                    "time a number, a date or a timestamp."
                )

    def layout(self, schema: pa.Schema, sources: int) -> RunLayout:
        """Return what the records of these edges hold."""
        found = []
        if self.weights is not None:
            single = schema.field(self.weights).type == pa.float32()
            found.append(np.dtype(np.float32 if single else np.float64))
        if self.times is not None:
            floating = pa.types.is_floating(schema.field(self.times).type)
            found.append(np.dtype(np.float64 if floating else np.int64))
        return RunLayout(sources >= 1 << 31, tuple(found))


def _edges_of(
    task: ScanTask, columns: EdgeColumns, schema: pa.Schema
) -> Iterator[tuple[ScanPart, I64, I64]]:
    """Yield (part of the table, sources, targets), looked at."""
    for part in scan_task(task, columns.names, schema):
        source, target = (
            _node_ids(part, name, keys, kind)
            for (name, keys), kind in zip(columns.ends, columns.kinds, strict=True)
        )
        bounds = (columns.sources, columns.targets)
        for ids, below, name, kind in zip(
            (source, target), bounds, (columns.source, columns.target), columns.kinds, strict=True
        ):
            _check_range(part, ids, below, name, kind)
        yield part, source, target


def _place(part: ScanPart, position: int) -> str:
    row = part.first_row_id + position - part.fragment.first_row_id
    return f"edge {row:,} of {part.fragment.label}"


def _refuse_nulls(part: ScanPart, column: pa.Array, name: str) -> None:
    if column.null_count:
        first = int(np.flatnonzero(~as_numpy(column.is_valid()))[0])
        raise InvalidValueError(
            f"Column '{name}' is null in {_place(part, first)}: an edge names both of its nodes, "
            "and has each value that is kept. Leave such edges out of the table."
        )


def _node_ids(part: ScanPart, name: str, keys: KeyTable | None, kind: str) -> I64:
    column = part.batch.column(name)
    _refuse_nulls(part, column, name)
    if keys is not None:
        nodes, missing = look_up(keys, column, name)
        if missing >= 0:
            raise unknown_key(column, missing, name, _place(part, missing), kind)
        return nodes
    ids = as_numpy(column, name)
    return ids.astype(np.int64, copy=False)  # uint64 from 2**63 on turns negative: refused too


def _check_range(part: ScanPart, ids: I64, below: int | None, name: str, kind: str) -> None:
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0:
        first = int(np.flatnonzero(ids < 0)[0])
        raise InvalidValueError(
            f"Column '{name}' is {part.batch.column(name)[first].as_py()} in {_place(part, first)}:"
            " nodes are numbered from 0, below 2**63. Number them anew."
        )
    if below is not None and high >= below:
        first = int(np.flatnonzero(ids >= below)[0])
        raise InvalidValueError(
            f"Column '{name}' is {int(ids[first])} in {_place(part, first)}, which is no node: "
            f"there are {below:,} of kind '{kind}', numbered from 0. Leave the edge out, or give "
            "the node a row."
        )


def _values_of(part: ScanPart, columns: EdgeColumns, layout: RunLayout) -> list[npt.NDArray[Any]]:
    found = []
    for name, dtype in zip(columns.values, layout.values, strict=True):
        column = part.batch.column(name)
        _refuse_nulls(part, column, name)
        if pa.types.is_date32(column.type):
            column = column.cast(pa.int32())
        elif pa.types.is_temporal(column.type):
            column = column.cast(pa.int64())
        if pa.types.is_float16(column.type):
            column = pc.cast(column, pa.float32())
        values = as_numpy(column, name).astype(dtype, copy=False)
        positive = name == columns.weights
        good = values > 0 if positive else np.ones(values.size, np.bool_)
        if dtype.kind == "f":
            good &= np.isfinite(values)
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            what = "weights are finite and positive" if positive else "times are finite"
            raise InvalidValueError(
                f"Column '{name}' is {values[first]} in {_place(part, first)}: {what}. Leave such "
                "edges out of the table."
            )
        found.append(values)
    return found


# --- tasks ----------------------------------------------------------------------------------------


def count_edges(task: ScanTask, columns: EdgeColumns, schema: pa.Schema) -> CellCounts:
    """Count a task's edges by their targets, and look at all of their numbers."""
    counts = CellCounts.none()
    for _, source, target in _edges_of(task, columns, schema):
        counts = counts.add(source, target)
    return counts


def deal_edges(
    task: ScanTask,
    columns: EdgeColumns,
    schema: pa.Schema,
    layout: RunLayout,
    ranges_file: str,
    folder: str,
    run_edges: int,
) -> tuple[str, str]:
    """Deal a task's edges to ranges; return the files of the records and of their index."""
    name = f"{task.index:06d}-{uuid.uuid4().hex[:8]}"
    records, index = Path(folder) / f"{name}.records", Path(folder) / f"{name}.npy"
    run_edges = max(1, min(run_edges, task.rows))
    with EdgeDealer(records, Ranges.load(ranges_file), layout, run_edges) as dealer:
        for part, source, target in _edges_of(task, columns, schema):
            values = _values_of(part, columns, layout)
            dealer.add(source, target, values, part.first_row_id)
        dealer.finish(index)
    return str(records), str(index)


@dataclass(frozen=True)
class RangeTask:
    """A range of nodes whose edges are sorted.

    Attributes
    ----------
    index : int
        Number of the range.
    first, stop : int
        Its nodes.
    position, end : int
        Where its edges belong.
    listing : str
        A file with the paths of records and their index, in the order of the edges.
    """

    index: int
    first: int
    stop: int
    position: int
    end: int
    listing: str

    @property
    def rows(self) -> int:
        return self.end - self.position

    @property
    def label(self) -> str:
        return f"the edges into nodes {self.first:,} to {self.stop - 1:,}"

    @property
    def example(self) -> str | None:
        return self.listing


def sort_edges(
    task: RangeTask,
    layout: RunLayout,
    arrays: Sequence[tuple[str, int]],
    limit: int,
    by_value: int | None,
) -> int:
    """Sort a range, and write its part of the graph's arrays; return its edges.

    Parameters
    ----------
    arrays : sequence of (path, first byte of the values)
        Of ``colptr``, ``row``, ``permutation`` and of each value.
    limit : int
        Edges that are held in memory.
    by_value : int, optional
    """
    with storing("Reading sorted edges", task.listing):
        files = json.loads(Path(task.listing).read_text())
    runs = runs_of(files, task.index)
    ends, windows = sort_range(
        runs, layout, task.stop - task.first, task.position, limit=limit, by_value=by_value
    )
    if ends.size and int(ends[-1]) != task.end:
        raise DatasetChangedError(
            f"{task.label.capitalize()} were {task.rows:,} when they were counted, and "
            f"{int(ends[-1]) - task.position:,} when they were read again. Build the graph again."
        )
    _write(arrays[0], task.first + 1, ends)
    for window in windows:
        for place, values in zip(
            arrays[1:], (window.row, window.permutation, *window.values), strict=True
        ):
            _write(place, window.begin, values)
    return task.rows


def _write(place: tuple[str, int], first: int, values: npt.NDArray[Any]) -> None:
    """Write values of an array, the first at its place."""
    path, start = place
    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
    at = start + first * values.dtype.itemsize
    with storing(_WRITING, path):
        handle = os.open(path, os.O_WRONLY)
        try:
            while data:
                sent = os.pwrite(handle, data, at)
                data, at = data[sent:], at + sent
        finally:
            os.close(handle)


@dataclass(frozen=True)
class HashTask:
    """An array that is flushed to disk and hashed."""

    index: int
    path: str
    name: str

    @property
    def label(self) -> str:
        return self.path

    @property
    def example(self) -> str | None:
        return self.path


def hash_array(task: HashTask) -> ArrayRecord:
    """Flush an array to disk; return what it holds."""
    with storing(_WRITING, task.path):
        handle = os.open(task.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    sha256, dtype, size = array_hash(Path(task.path))
    return ArrayRecord(task.name, dtype, size, sha256)
