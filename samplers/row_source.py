"""Where a loader's rows come from: the seam between plans and storage.

A `RowSource` answers one call: row ids in, columns out, in the order of the ids. `DatasetSource`
reads the dataset's own files. Packed tables, and gathers that end on a device, are sources like it;
`open_source` is the one place that chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.columns import numpy_type
from ..dataplane.dataset import Dataset, DatasetLike
from ..dataplane.manifest import Manifest
from ..dataplane.rows import RowReader
from ..gpu_access.cpu import Column, CpuGather
from ..gpu_access.transfer import Transfer

__all__ = [
    "DatasetSource",
    "RowSource",
    "SourceOptions",
    "SourceStats",
    "Sources",
    "open_source",
    "row_bytes",
]

U64 = npt.NDArray[np.uint64]

_MAPPED_WINDOW = 2 << 20
_DECODED_WINDOW = 32 << 20
_UNKNOWN_BYTES = 64  # taken for a value of a column whose rows have no fixed width


@dataclass(frozen=True)
class SourceStats:
    """What a source has read so far.

    Attributes
    ----------
    bytes_read : int
        Decoded or fetched; memory-mapped chunks count once, when they are first opened.
    hits, misses : int
        Chunks that were at hand, and that had to be read.
    """

    bytes_read: int = 0
    hits: int = 0
    misses: int = 0

    def plus(self, other: SourceStats) -> SourceStats:
        return SourceStats(
            self.bytes_read + other.bytes_read,
            self.hits + other.hits,
            self.misses + other.misses,
        )


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


@dataclass(frozen=True)
class SourceOptions:
    """How a loader wants its rows."""

    columns: Sequence[str] | None
    device: torch.device
    transfer: Transfer
    cache_bytes: int
    storage_options: Mapping[str, Any] | None = None


def open_source(dataset: Dataset, options: SourceOptions) -> RowSource:
    """Choose where the rows come from: by what the dataset is, and by device and transfer."""
    return DatasetSource(dataset, options.columns, cache_bytes=options.cache_bytes)


class Sources:
    """The rows that each manifest planned; one source is open at a time.

    Parameters
    ----------
    data : path, URI, list, mapping, Dataset or RowSource
        A `RowSource` is taken as it is, for all manifests.
    options : SourceOptions
    """

    def __init__(self, data: DatasetLike | RowSource, options: SourceOptions) -> None:
        self._data: DatasetLike | None = None
        self._given: RowSource | None = None
        if isinstance(data, RowSource):
            self._given = data
        else:
            self._data = data
        self._options = options
        self._datasets: dict[Any, Dataset] = {}
        self._keys: dict[str, Any] = {}
        self._open: tuple[Any, RowSource] | None = None
        self._past = SourceStats()  # of sources that are closed
        self.schema = pa.schema([]) if self._given is None else self._given.schema

    def bind(self, manifest: Manifest) -> None:
        """Check that the rows which the manifest planned are there, unchanged; once."""
        if self._data is None or manifest.manifest_id in self._keys:
            return
        # Members of a series mostly share a snapshot; then one check serves them all.
        key = (manifest.snapshot.fingerprint, tuple(manifest.planned_fragments()))
        if key not in self._datasets:
            dataset = manifest.open_dataset(
                self._data, storage_options=self._options.storage_options
            )
            open_source(dataset, self._options).close()  # refuses columns that are not there
            self._datasets[key] = dataset
        self._keys[manifest.manifest_id] = key
        if not self.schema:
            self.schema = self._source(key).schema

    def source(self, manifest: Manifest) -> RowSource:
        """Return the source of a manifest's rows."""
        if self._given is not None:
            return self._given
        self.bind(manifest)
        return self._source(self._keys[manifest.manifest_id])

    def _source(self, key: Any) -> RowSource:
        if self._open is None or self._open[0] != key:
            self.close()
            self._open = (key, open_source(self._datasets[key], self._options))
        return self._open[1]

    def stats(self) -> SourceStats:
        """Return what was read so far, over all manifests."""
        if self._given is not None:
            return self._given.stats()
        return self._past if self._open is None else self._past.plus(self._open[1].stats())

    def close(self) -> None:
        if self._open is not None:
            self._past = self._past.plus(self._open[1].stats())
            self._open[1].close()
            self._open = None


def row_bytes(schema: pa.Schema) -> int:
    """Return about how many bytes a row of a batch takes."""
    total = 0
    for field in schema:
        known = numpy_type(field.type)
        total += _UNKNOWN_BYTES if known is None else known[0].itemsize * int(np.prod(known[1]))
    return max(total, 1)
