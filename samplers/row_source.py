"""Where a loader's rows come from: the seam between plans and storage.

A `RowSource` answers one call: row ids in, columns out, in the order of the ids. `MappedSource`
copies them out of memory maps; `DatasetSource` decodes the dataset's own files, chunk by chunk.
`open_source` is the one place that chooses.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.columns import numpy_type
from ..dataplane.dataset import Dataset, DatasetLike
from ..dataplane.errors import ParameterError
from ..dataplane.manifest import Manifest
from ..dataplane.mapped import Mappable
from ..dataplane.pack_cache import CACHE_BYTES
from ..dataplane.packed import PackedTable
from ..dataplane.rows import RowReader
from ..gpu_access.cpu import Column, CpuGather
from ..gpu_access.transfer import Transfer
from .device_source import on_device
from .mapped_source import MappedSource, OrderedSource, packed_table, rows_at_hand
from .source_stats import SourceStats

__all__ = [
    "DatasetSource",
    "RowSource",
    "RowsLike",
    "SourceOptions",
    "Sources",
    "open_source",
    "row_bytes",
]

U64 = npt.NDArray[np.uint64]

_MAPPED_WINDOW = 2 << 20
_DECODED_WINDOW = 32 << 20
_UNKNOWN_BYTES = 64  # of a value of a column whose rows have no fixed width, at the least


@runtime_checkable
class RowSource(Protocol):
    """Rows by id. One thread at a time gathers."""

    @property
    def columns(self) -> list[str]:
        """Names, in the order of a batch."""
        ...

    @property
    def schema(self) -> pa.Schema:
        """Types of the columns."""
        ...

    @property
    def window_bytes(self) -> int:
        """Bytes of rows that are best asked for at once."""
        ...

    def gather(
        self, ids: U64, out: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, Column]:
        """Return the columns of rows, in the order of `ids`, in memory of their own.

        Parameters
        ----------
        ids : uint64, shape (n,)
            Row ids; repeats are fine.
        out : mapping of str → tensor, optional
            Tensors of n rows of each of the columns that are tensors, which nobody reads any more:
            the source may fill and return them. It need not.
        """
        ...

    def stats(self) -> SourceStats:
        """Return what was read so far."""
        ...

    def close(self) -> None:
        """Let go of files and memory; a later `gather` may open them again."""
        ...


class DatasetSource:
    """The dataset's own files, read chunk by chunk.

    Parameters
    ----------
    dataset : Dataset
    columns : sequence of str, optional
        All when None.
    cache_bytes : int
        Decoded chunks that are kept.
    """

    def __init__(
        self, dataset: Dataset, columns: Sequence[str] | None, *, cache_bytes: int
    ) -> None:
        self._reader = RowReader(dataset, columns, cache_bytes=cache_bytes)
        self._gather = CpuGather(self._reader.schema)
        # Chunks that must be decoded or fetched are read once a window at most, so a larger window
        # reads fewer of them; where they are mapped, a window that stays in the cache is faster.
        self.window_bytes = _MAPPED_WINDOW if _is_mapped(dataset) else _DECODED_WINDOW

    @property
    def columns(self) -> list[str]:
        return self._reader.columns

    @property
    def schema(self) -> pa.Schema:
        return self._reader.schema

    def gather(
        self, ids: U64, out: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, Column]:
        return self._gather.gather(ids, self._reader.visit(ids))

    def stats(self) -> SourceStats:
        counts = self._reader.counts
        return SourceStats(counts.bytes_read, counts.hits, counts.misses)

    def close(self) -> None:
        self._reader.close()


def _is_mapped(dataset: Dataset) -> bool:
    refs = [r for r in dataset.refs if r is not None]
    decoded = (".parquet", ".pq")
    return all(r.location.is_local and not r.uri.lower().endswith(decoded) for r in refs)


RowsLike: TypeAlias = "DatasetLike | PackedTable | RowSource"
"""What a loader takes its rows from."""


@dataclass(frozen=True)
class SourceOptions:
    """How a loader wants its rows."""

    columns: Sequence[str] | None
    device: torch.device
    transfer: Transfer
    cache_bytes: int
    storage_options: Mapping[str, Any] | None = None
    pack: bool = True
    packed_dir: str | os.PathLike[str] | None = None
    packed_bytes: int = CACHE_BYTES


def open_source(manifest: Manifest, data: RowsLike, options: SourceOptions) -> RowSource:
    """Choose where the rows that a manifest planned come from.

    Parameters
    ----------
    manifest : Manifest
        Whose rows they are; checked to be there, unchanged.
    data : path, URI, list, mapping, Dataset, PackedTable or RowSource
        A `RowSource` answers for itself.
    options : SourceOptions

    Raises
    ------
    DatasetChangedError, MissingColumnError
    """
    if isinstance(data, RowSource):
        return data
    if isinstance(data, PackedTable) and data.order is not None:
        return _ordered(data, manifest, options)
    host_of = _host_sources(manifest, data, options)
    return on_device(host_of, manifest, options.device, options.transfer)


def _ordered(table: PackedTable, manifest: Manifest, options: SourceOptions) -> RowSource:
    if options.transfer == "unified":
        raise ParameterError(
            "A packed table in the order of a plan is read once, from its beginning to its end: "
            "use transfer='auto'."
        )
    source = OrderedSource(table, options.columns)
    source.require(manifest, -1 if table.order is None else table.order.epoch)
    return source


def _host_sources(
    manifest: Manifest, data: DatasetLike | PackedTable, options: SourceOptions
) -> Callable[[Sequence[str] | None], RowSource]:
    """Return what makes sources of some columns, whose rows end on the host."""
    fragments, columns = manifest.planned_fragments(), options.columns
    table: Mappable | None
    if isinstance(data, PackedTable):
        data.require(manifest.snapshot, fragments)
        table = data
    else:
        dataset = manifest.open_dataset(data, storage_options=options.storage_options)
        dataset.check_sources(dataset.schema.names if columns is None else columns)
        table = rows_at_hand(
            dataset,
            columns,
            fragments,
            pack=options.pack,
            packed_dir=options.packed_dir,
            packed_bytes=options.packed_bytes,
        )
    if table is None:
        cache = options.cache_bytes
        return lambda some: DatasetSource(dataset, some or columns, cache_bytes=cache)
    return lambda some: MappedSource(table, some or columns)


class Sources:
    """The rows of each manifest that a plan consists of; one source holds files at a time.

    Parameters
    ----------
    data : path, URI, list, mapping, Dataset, PackedTable or RowSource
        A path may be that of a packed table. A `RowSource` serves all manifests, and is left open.
    options : SourceOptions
    """

    def __init__(self, data: RowsLike, options: SourceOptions) -> None:
        self._data: RowsLike = packed_table(data, options.storage_options) or data
        self._options = options
        self._given = isinstance(data, RowSource)
        self._opened: dict[Any, RowSource] = {}
        self._of: dict[str, RowSource] = {}
        self._active: RowSource | None = None
        self.schema = pa.schema([])

    def bind(self, manifest: Manifest) -> None:
        """Check that the rows which the manifest planned are there, unchanged; once."""
        if manifest.manifest_id in self._of:
            return
        # Members of a series mostly share a snapshot; then one check serves them all.
        key = None if self._given else _rows_of(manifest)
        if key not in self._opened:
            self._opened[key] = open_source(manifest, self._data, self._options)
        source = self._of[manifest.manifest_id] = self._opened[key]
        if not self.schema:
            self.schema = source.schema

    def of(self, manifest: Manifest) -> RowSource:
        """Return the source of a manifest's rows."""
        self.bind(manifest)
        return self._of[manifest.manifest_id]

    def activate(self, source: RowSource) -> None:
        """Let the source before this one go of its files."""
        if source is not self._active:
            self.close()
            self._active = source

    def stats(self) -> SourceStats:
        """Return what was read so far, over all manifests."""
        total = SourceStats()
        for source in self._opened.values():
            total = total.plus(source.stats())
        return total

    def close(self) -> None:
        """Let go of files and memory; they are opened again when they are needed."""
        if self._active is not None and not self._given:
            self._active.close()
        self._active = None


def _rows_of(manifest: Manifest) -> tuple[Any, ...]:
    return manifest.snapshot.fingerprint, tuple(manifest.planned_fragments())


def row_bytes(schema: pa.Schema, in_file: float = 0.0) -> float:
    """Return about how many bytes a row of a batch takes.

    Parameters
    ----------
    schema : pyarrow.Schema
        Of the columns that are read.
    in_file : float
        What a row takes in the dataset's files, all columns together: where a column's rows have no
        fixed width, they are taken to be what is left of it.
    """
    known = [numpy_type(field.type) for field in schema]
    fixed = sum(k[0].itemsize * math.prod(k[1]) for k in known if k is not None)
    unknown = known.count(None)
    return max(1, fixed + (max(in_file - fixed, _UNKNOWN_BYTES * unknown) if unknown else 0))
