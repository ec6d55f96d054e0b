"""Rows out of memory maps: of packed tables, and of Arrow files that need no packing.

`rows_at_hand` finds the quickest way to the rows of a dataset: local Arrow files without
compression are mapped as they are; anything else is packed on first use into a cache folder
(`dataplane.pack_cache`), by one process of a machine while others wait for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from ..dataplane.dataset import Dataset
from ..dataplane.errors import NoRoomError
from ..dataplane.manifest import Manifest
from ..dataplane.mapped import Mappable
from ..dataplane.mapped_dataset import map_dataset
from ..dataplane.pack_cache import packed_for
from ..dataplane.packed import PackedTable
from ..dataplane.packed_header import HEADER
from ..dataplane.storage import locate
from ..gpu_access.cpu import Column
from .source_stats import SourceStats

__all__ = ["MappedSource", "OrderedSource", "packed_table", "rows_at_hand"]

U64 = npt.NDArray[np.uint64]

_WINDOW_BYTES = 8 << 20  # enough for several threads to share; more would leave the caches

_log = logging.getLogger("batchloom")


class MappedSource:
    """Rows of mapped columns, copied by the CPU.

    Parameters
    ----------
    table : Mappable
        A packed table, or a dataset that was mapped.
    columns : sequence of str, optional
        All when None.
    """

    def __init__(self, table: Mappable, columns: Sequence[str] | None) -> None:
        from ..gpu_access.packed_gather import PackedGather  # numba takes half a second

        self._gather = PackedGather(table, columns)
        self.window_bytes = _WINDOW_BYTES

    @property
    def columns(self) -> list[str]:
        return list(self._gather.schema.names)

    @property
    def schema(self) -> pa.Schema:
        return self._gather.schema

    def gather(
        self, ids: U64, out: Mapping[str, torch.Tensor] | None = None
    ) -> Mapping[str, Column]:
        return self._gather.gather(ids, out)

    def stats(self) -> SourceStats:
        return SourceStats(self._gather.bytes_read)

    def close(self) -> None:
        """Let go of nothing: maps go with the table."""


class OrderedSource(MappedSource):
    """Rows of a packed table in the order of a plan: asked for by their places in the epoch."""

    def __init__(self, table: PackedTable, columns: Sequence[str] | None) -> None:
        names = [name for name in table.columns if name != "row"]  # which says where rows are from
        super().__init__(table, names if columns is None else columns)
        self._table = table

    def require(self, manifest: Manifest, epoch: int) -> None:
        """Raise `PackedError` where the table is in the order of another plan or epoch."""
        self._table.require_order(manifest.manifest_id, epoch)


def rows_at_hand(
    dataset: Dataset,
    columns: Sequence[str] | None,
    fragments: Iterable[int],
    *,
    pack: bool,
    packed_dir: Any = None,
    packed_bytes: int,
) -> Mappable | None:
    """Map a dataset, or a packed table of it; None where neither can be.

    Parameters
    ----------
    dataset : Dataset
    columns : sequence of str, optional
        All when None.
    fragments : iterable of int
        Indices into the snapshot's fragments of those whose rows may be asked for.
    pack : bool
        Whether a table may be packed.
    packed_dir, packed_bytes
        The cache folder, and its limit; see `pack_cache.packed_for`.
    """
    wanted = list(fragments)
    mapped = map_dataset(dataset, columns, wanted)
    if mapped is not None or not pack:
        return mapped
    try:
        return packed_for(
            dataset, columns, fragments=wanted, cache_dir=packed_dir, cache_bytes=packed_bytes
        )
    except NoRoomError as error:
        _log.warning("Rows are read from the dataset's own files, which is slower. %s", error)
        return None


def packed_table(data: Any, storage_options: Mapping[str, Any] | None) -> PackedTable | None:
    """Return a packed table that was given, or named by its path; None for anything else."""
    if isinstance(data, PackedTable):
        return data
    if not isinstance(data, str | os.PathLike):
        return None
    if not locate(data, storage_options).join(HEADER).exists():
        return None
    return PackedTable.open(data, storage_options=storage_options)
