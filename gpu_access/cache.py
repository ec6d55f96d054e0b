"""A cache of the rows that are read again, in the memory that reads them fastest.

A plan says before training which rows are read and when, so what to keep need not be guessed:

    >>> counts = manifest.row_frequencies()
    >>> cache = HotRowCache.from_counts(table, counts, capacity_bytes=8 << 30)    # or
    >>> cache = HotRowCache.from_plan(table, batches, capacity_bytes=8 << 30)
    >>> rows = cache.gather_rows(ids)            # as UnifiedTensor.gather_rows; some from the cache

What a policy keeps is decided in `cache_policies`. The rows lie in the GPU's memory, where the
kernel picks each row from there or from the host in one launch; without a GPU they lie in huge
pages, which is a gain only over tables that do not (mapped files). Rows that a batch brings into
the cache are copied from the batch itself, not read again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..dataplane.errors import ParameterError
from .cache_policies import Belady, CachePolicy, Changes, Lru, Static
from .gather import check_ids, check_rows, gather
from .host_memory import HostTable
from .row_table import words_of
from .unified import UnifiedTensor

__all__ = ["HotRowCache"]


class HotRowCache:
    """Rows of a unified tensor, kept near. Use one of the constructors below.

    Attributes
    ----------
    table : UnifiedTensor
        Its `stats` count the hits and misses of this cache, each id of a batch once.
    policy : CachePolicy
        Its counts are of distinct rows.
    device : torch.device
        Where the cache's rows are.
    """

    def __init__(self, table: UnifiedTensor, policy: CachePolicy) -> None:
        if len(policy.slot_of) != len(table):
            raise ParameterError(
                f"A cache for {len(policy.slot_of):,} rows was made for a table of {len(table):,}."
            )
        self.table, self.policy, self.device = table, policy, table.device
        shape = (policy.slots, *table.shape[1:])
        if self.device.type == "cpu":
            self._store = HostTable.allocate(shape[0], shape[1:], table.dtype).tensor
        else:
            self._store = torch.empty(shape, dtype=table.dtype, device=self.device)
        self._slot_of: torch.Tensor | None = None
        if isinstance(policy, Static):
            self._fill(policy)

    # --- constructors -----------------------------------------------------------------------------

    @classmethod
    def from_counts(
        cls, table: UnifiedTensor, counts: npt.ArrayLike, capacity_bytes: int
    ) -> HotRowCache:
        """Keep the rows that are read most often.

        Parameters
        ----------
        table : UnifiedTensor
        counts : array, shape (rows,)
            Planned reads of each row, such as `Manifest.row_frequencies`.
        capacity_bytes : int
            Memory for rows.
        """
        return cls(table, Static(counts, _slots(table, capacity_bytes)))

    @classmethod
    def from_degrees(
        cls, table: UnifiedTensor, degrees: npt.ArrayLike, capacity_bytes: int
    ) -> HotRowCache:
        """Keep the rows of the highest degree: a guess for graphs whose reads are not planned."""
        return cls.from_counts(table, degrees, capacity_bytes)

    @classmethod
    def from_plan(
        cls, table: UnifiedTensor, batches: Iterable[npt.ArrayLike], capacity_bytes: int
    ) -> HotRowCache:
        """Keep the rows that are needed soonest; the most hits that can be had.

        Parameters
        ----------
        table : UnifiedTensor
        batches : iterable of arrays of int
            The rows of each batch; `gather_rows` must be called for these, in this order.
        capacity_bytes : int
        """
        return cls(table, Belady(batches, len(table), _slots(table, capacity_bytes)))

    @classmethod
    def lru(cls, table: UnifiedTensor, capacity_bytes: int) -> HotRowCache:
        """Keep the rows that were used last: for reads that nobody planned."""
        return cls(table, Lru(len(table), _slots(table, capacity_bytes)))

    # --- rows -------------------------------------------------------------------------------------

    def gather_rows(self, ids: Any, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return rows in the order of `ids`; arguments and errors of `UnifiedTensor.gather_rows`.

        Raises
        ------
        SelectionError
            Where the cache follows a plan and this is not the plan's next batch.
        """
        ids = check_ids(ids)
        job, out = self.table._job(ids, out)
        if not len(ids) or not job.table.nbytes:
            return gather(job, ids, out).wait()
        fused = job.backend.caches and out.device == self._store.device
        if fused and self._slot_of is not None and ids.device == self._store.device:
            slots = self._slot_of[ids.clamp(0, len(self.table) - 1)]  # rows are checked below
            hits = (slots >= 0).sum()
            gather(job, ids, out, cached=(slots, self._store)).wait()
            self._count(int(hits), len(ids))
            return out
        host_ids = ids.cpu()
        check_rows(host_ids, len(self.table))
        found, changes = self.policy.visit(host_ids.numpy().astype(np.int64, copy=False))
        slots = torch.from_numpy(found)
        self._count(int(np.count_nonzero(found >= 0)), len(ids))
        if fused:
            there = slots.to(self._store.device, non_blocking=True)
            gather(job, host_ids, out, cached=(there, self._store)).wait()
        else:
            self._split(job, host_ids, slots, out)
        self._keep(changes, out)
        return out

    def _split(self, job: Any, ids: torch.Tensor, slots: torch.Tensor, out: torch.Tensor) -> None:
        """Gather what the cache holds and what it does not, one after the other."""
        missed = torch.nonzero(slots < 0).flatten()
        held = torch.nonzero(slots >= 0).flatten()
        word = job.table.dtype.itemsize if job.table.dtype.itemsize <= 8 else 8
        rows = words_of(out, word).view(len(ids), -1)
        if len(missed):
            fresh = torch.empty((len(missed), *out.shape[1:]), dtype=out.dtype, device=out.device)
            gather(job, ids[missed], fresh).wait()
            values = words_of(fresh, word).view(len(missed), -1)
            rows.index_copy_(0, missed.to(out.device), values)
        if len(held):
            store = words_of(self._store, word).view(len(self._store), -1)
            values = store[slots[held].to(store.device, torch.int64)].to(out.device)
            rows.index_copy_(0, held.to(out.device), values)

    def _keep(self, changes: Changes, out: torch.Tensor) -> None:
        """Copy rows that the batch brought into their slots."""
        if not len(changes.rows):
            return
        word = min(8, out.element_size())
        rows = words_of(out, word).view(len(out), -1)
        store = words_of(self._store, word).view(len(self._store), -1)
        values = rows[torch.from_numpy(changes.places).to(rows.device)].to(store.device)
        store.index_copy_(0, torch.from_numpy(changes.slots).to(store.device), values)

    def _fill(self, policy: Static) -> None:
        """Read the rows of a static cache, once."""
        self._slot_of = torch.from_numpy(policy.slot_of).to(self.device)
        if len(policy.kept) and self.table.table.nbytes:
            self.table.gather_rows(policy.kept, out=self._store[: len(policy.kept)])

    def _count(self, hits: int, rows: int) -> None:
        self.table.stats.cache_hits += hits
        self.table.stats.cache_misses += rows - hits

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are kept."""
        return self._store.numel() * self._store.element_size()

    def __repr__(self) -> str:
        kind = type(self.policy).__name__
        return f"<HotRowCache {kind}, {self.policy.slots:,} rows on {self.device}>"


def _slots(table: UnifiedTensor, capacity_bytes: int) -> int:
    if capacity_bytes < 0:
        raise ParameterError(
            f"The 'capacity_bytes' parameter must not be negative. Got {capacity_bytes} instead."
        )
    row = table.table.row_bytes
    return min(len(table), capacity_bytes // row) if row else 0
