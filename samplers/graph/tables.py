"""Tables of features, one row a node or an edge, wherever they lie: what a batch's rows come from.

Each answers `start`: ids in, a `GatherFuture` out. Rows in memory are read in the order of the
ids. Rows of mapped files are read once each, in the order of the file, since each may cost a read
of the disk; then they are put in place.
"""

from __future__ import annotations

import math
import os
from typing import Any, Protocol

import numpy as np
import torch

from ...dataplane.errors import ColumnTypeError, ParameterError
from ...dataplane.packed import PackedTable
from ...dataplane.snapshot import Snapshot
from ...gpu_access.buffers import host_buffer
from ...gpu_access.cache import HotRowCache
from ...gpu_access.gather import GatherFuture
from ...gpu_access.packed_gather import PackedGather
from ...gpu_access.unified import UnifiedTensor
from .node_rows import of_source
from .outputs import as_tensor

__all__ = ["FeatureTable", "as_table", "packed_features"]


class FeatureTable(Protocol):
    """Rows by number."""

    shape: tuple[int, ...]

    def start(self, ids: torch.Tensor) -> GatherFuture:
        """Start to gather rows; ids are int64, on the host."""


def as_table(value: Any, name: str, device: torch.device, *, pinned: bool = False) -> FeatureTable:
    """Return what gathers rows of any kind of table that is taken.

    Parameters
    ----------
    value : tensor, array, memory map, UnifiedTensor, HotRowCache, PackedColumn or FeatureTable
    name : str
        For messages.
    device : torch.device
        Where rows go.
    pinned : bool
        Rows on the host go to pinned memory.

    Raises
    ------
    ParameterError
    """
    if isinstance(value, PackedColumn):
        return PackedRows(value, device, pinned)
    if isinstance(value, UnifiedTensor | HotRowCache):
        return HostRows(value, device, pinned)
    if isinstance(value, torch.Tensor) and value.device.type != "cpu":
        return DeviceRows(value, device)
    if isinstance(value, torch.Tensor | np.ndarray):
        tensor = value.detach() if isinstance(value, torch.Tensor) else as_tensor(value)
        if tensor.ndim:
            mapped = isinstance(value, np.ndarray) and _is_map(value)
            # The driver would hold a mapped file in memory, all of it.
            backend = "staged" if mapped and device.type != "cpu" else "auto"
            unified = UnifiedTensor.from_tensor(tensor, device=device, backend=backend)
            return HostRows(unified, device, pinned, mapped=mapped)
    if hasattr(value, "start") and hasattr(value, "shape"):
        return value  # type: ignore[no-any-return]
    raise ParameterError(
        f"The features '{name}' must be a tensor, an array, a memory map, a UnifiedTensor, a "
        f"HotRowCache or a column of a packed table. Got {type(value).__name__} instead."
    )


def _is_map(array: np.ndarray[Any, Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


def _memory(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, pinned: bool
) -> torch.Tensor:
    """Return memory of any content, used again once nobody holds it."""
    size = math.prod(shape) * dtype.itemsize
    if device.type != "cpu" or not size:
        return torch.empty(shape, dtype=dtype, device=device)
    if pinned:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    return torch.from_numpy(host_buffer(size)).view(dtype).view(shape)


class HostRows:
    """Rows of a unified tensor, or of a cache before one."""

    def __init__(
        self,
        table: UnifiedTensor | HotRowCache,
        device: torch.device,
        pinned: bool,
        *,
        mapped: bool = False,
    ) -> None:
        whole = table.table if isinstance(table, HotRowCache) else table
        self.shape, self._dtype = tuple(whole.shape), whole.dtype
        self._table, self._device = table, device
        self._pinned, self._mapped = pinned, mapped

    def start(self, ids: torch.Tensor) -> GatherFuture:
        if not self._mapped:
            return self._start(ids)
        once, place = _in_order(ids)
        return _spread(self._start(once).wait(), place, self._pinned)

    def _start(self, ids: torch.Tensor) -> GatherFuture:
        out = _memory((len(ids), *self.shape[1:]), self._dtype, self._device, self._pinned)
        if isinstance(self._table, UnifiedTensor) and self._device.type != "cpu":
            return self._table.gather_rows_async(ids, out=out)
        return GatherFuture(self._table.gather_rows(ids, out=out))


class DeviceRows:
    """Rows that lie on a device already."""

    def __init__(self, table: torch.Tensor, device: torch.device) -> None:
        self.shape = tuple(table.shape)
        self._table, self._device = table, device

    def start(self, ids: torch.Tensor) -> GatherFuture:
        rows = self._table[ids.to(self._table.device, non_blocking=True)]
        return GatherFuture(rows.to(self._device))


class PackedColumn:
    """A column of a packed table, whose rows are the nodes in the order of their ids.

    Parameters
    ----------
    table : PackedTable
    column : str
        Of fixed width.
    source : str, optional
        The kind of nodes, where the table holds several sources.
    """

    def __init__(self, table: PackedTable, column: str, source: str | None = None) -> None:
        if table.order is not None:
            raise ParameterError(
                f"{table.path} is in the order of a plan, and neighbours are read in any order. "
                "Pack the dataset without --order."
            )
        self.snapshot: Snapshot = of_source(table.snapshot, source)
        self.gather = PackedGather(table, [column])
        self.name = column
        mapped = table.mapped([column]).columns[column]
        if mapped.kind != "fixed":
            raise ColumnTypeError(
                f"Column '{column}' ({mapped.type}) of {table.path} has rows of no fixed width: "
                "features are numbers, or lists of a fixed number of them."
            )

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of nodes."""
        found = self.gather.gather(self.snapshot.ids_at(ids.numpy()))[self.name]
        assert isinstance(found, torch.Tensor)  # for the type checker: of fixed width
        return found


class PackedRows:
    """Rows of a packed column."""

    def __init__(self, column: PackedColumn, device: torch.device, pinned: bool) -> None:
        self._column, self._device, self._pinned = column, device, pinned
        none = column.rows(torch.empty(0, dtype=torch.int64))
        self.shape = (column.snapshot.rows, *none.shape[1:])

    def start(self, ids: torch.Tensor) -> GatherFuture:
        once, place = _in_order(ids)
        rows = self._column.rows(once)
        if self._device.type != "cpu":
            rows = rows.pin_memory().to(self._device, non_blocking=True)
        return _spread(rows, place, self._pinned)


def _in_order(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each id once, ascending, and where among these each of the given ones is."""
    given = ids.numpy()
    order = np.argsort(given)
    ascending = given[order]
    place = np.empty_like(given)
    first = np.append(True, ascending[1:] != ascending[:-1])[: len(given)]
    place[order] = np.cumsum(first) - 1
    return torch.from_numpy(ascending[first]), torch.from_numpy(place)


def _spread(rows: torch.Tensor, place: torch.Tensor, pinned: bool) -> GatherFuture:
    """Return rows that were read once each, in their places."""
    if rows.device.type != "cpu":
        return GatherFuture(rows[place.to(rows.device, non_blocking=True)])
    out = _memory((len(place), *rows.shape[1:]), rows.dtype, rows.device, pinned)
    return GatherFuture(torch.index_select(rows, 0, place, out=out))


def packed_features(
    table: PackedTable | str | os.PathLike[str],
    columns: Any = None,
    *,
    source: str | None = None,
    storage_options: Any = None,
) -> dict[str, PackedColumn]:
    """Return columns of a packed table as features, by name.

    Parameters
    ----------
    table : PackedTable, path or URI
    columns : sequence of str, optional
        All of fixed width when None.
    source : str, optional
        The kind of nodes, where the table holds several sources.

    Raises
    ------
    ColumnTypeError
        Of a column that was named and has no fixed width.
    MissingColumnError, PackedError
    """
    if not isinstance(table, PackedTable):
        table = PackedTable.open(table, storage_options=storage_options)
    if columns is None:
        mapped = table.mapped().columns
        columns = [name for name in table.columns if mapped[name].kind == "fixed"]
    return {name: PackedColumn(table, name, source) for name in columns}
