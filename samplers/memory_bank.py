"""The latest embedding of each row, as a training writes it.

Of n rows of width d the bank takes 4 n d bytes, on each rank; memory is taken as rows are written.
What was never written is zeros.

Embeddings that are on a GPU are copied beside its work, into pinned memory, and land in the bank
some steps later: a step never waits for them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..dataplane.errors import RowIdError, SelectionError
from .exchange import gather_rows, on_several_ranks, rank_sizes

__all__ = ["MemoryBank"]

_UNDER_WAY = 8  # copies from a GPU at most
_EXCHANGED_BYTES = 64 << 20  # of embeddings, by one rank at a time

I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Copy:
    """Rows and embeddings on their way to the host; there when `done`, an event, has happened."""

    rows: torch.Tensor
    embeddings: torch.Tensor
    done: Any


class MemoryBank:
    """Embeddings of rows.

    Parameters
    ----------
    rows, width : int

    Attributes
    ----------
    values : float32, shape (rows, width)
    written : bool, shape (rows,)
        Which rows were ever written.
    ignored : set of int
        Rows whose embeddings are not taken.
    """

    def __init__(self, rows: int, width: int) -> None:
        self.values: F32 = np.zeros((rows, width), np.float32)
        self.written = np.zeros(rows, bool)
        self.ignored: set[int] = set()
        self._news = np.zeros(rows, bool)  # what the other ranks do not know yet
        self._under_way: deque[_Copy] = deque()

    def write(self, rows: Any, embeddings: Any) -> None:
        """Take embeddings as they are now; the last one of a row counts.

        Parameters
        ----------
        rows : int tensor or array, shape (m,)
        embeddings : float tensor or array, shape (m, width)
            On any device, of any float type; they may require a gradient, and be changed
            afterwards.

        Raises
        ------
        SelectionError
            Where the shapes are others.
        RowIdError
            Where the bank has no such row; of rows on a GPU, some steps later.
        """
        ids, given = torch.as_tensor(rows).detach(), torch.as_tensor(embeddings).detach()
        expected = (len(ids) if ids.ndim else 1, self.values.shape[1])
        if ids.ndim != 1 or tuple(given.shape) != expected:
            raise SelectionError(
                f"'embeddings': expected shape {expected}, got {tuple(given.shape)}; give one of "
                "that width for each row."
            )
        if not (ids.is_cuda or given.is_cuda):
            self.settle()
            self._store(ids, given)
            return
        stream = torch.cuda.current_stream((given if given.is_cuda else ids).device)
        here = ids.to("cpu", torch.int64, non_blocking=True, copy=True)
        there = given.to("cpu", non_blocking=True, copy=True)  # pinned where it was on a GPU
        self._under_way.append(_Copy(here, there, stream.record_event()))
        while len(self._under_way) > _UNDER_WAY or self._arrived():
            self._store_oldest()

    def settle(self) -> None:
        """Wait for the copies that are under way."""
        while self._under_way:
            self._store_oldest()

    def _arrived(self) -> bool:
        return bool(self._under_way) and bool(self._under_way[0].done.query())

    def _store_oldest(self) -> None:
        copy = self._under_way.popleft()
        copy.done.synchronize()
        self._store(copy.rows, copy.embeddings)

    def _store(self, rows: torch.Tensor, embeddings: torch.Tensor) -> None:
        ids = rows.cpu().numpy().astype(np.int64)
        bad = (ids < 0) | (ids >= len(self.values))
        if bad.any():
            raise RowIdError(
                f"An embedding of row {int(ids[bad][0])} was given; the sampler was made for "
                f"{len(self.values):,} rows, 0 to {len(self.values) - 1}."
            )
        values = embeddings.cpu().to(torch.float32).numpy()
        if self.ignored:
            taken = ~np.isin(ids, list(self.ignored))
            ids, values = ids[taken], values[taken]
        self._keep(ids, values)
        self._news[ids] = True

    def exchange(self) -> None:
        """Take what all ranks have written since the last time; a collective where they run.

        Where several have written a row, one of their embeddings counts, the same on all ranks.
        """
        self.settle()
        if on_several_ranks():
            mine = np.flatnonzero(self._news)
            sizes = rank_sizes(len(mine))
            theirs = np.split(gather_rows(mine, sizes), np.cumsum(sizes)[:-1])
            at_once = max(1, _EXCHANGED_BYTES // (4 * self.values.shape[1]))
            for start in range(0, max(sizes), at_once):
                parts = [rows[start : start + at_once] for rows in theirs]
                sent = self.values[mine[start : start + at_once]]
                got = gather_rows(sent, [len(part) for part in parts])
                self._keep(np.concatenate(parts), got)
        self._news[:] = False

    def _keep(self, rows: I64, values: F32) -> None:
        self.values[rows] = values
        self.written[rows] = True

    def load(self, values: F32, written: npt.NDArray[np.bool_]) -> None:
        """Hold what another bank held."""
        self._under_way.clear()
        self.values, self.written = values, written
        self._news[:] = False

    def __getstate__(self) -> dict[str, Any]:
        self.settle()
        return self.__dict__
