"""Which rows a cache keeps: pure decisions, batch by batch, without a row of data.

A batch is a set of rows. Rows that the cache holds when a batch comes are *hits*; after it the
cache may keep any of what it holds and of what the batch brought. A policy decides which:

=========  ====================================================  ===================================
policy     keeps                                                 knows
=========  ====================================================  ===================================
`Static`   the rows of the highest scores, always                counts of a plan, or degrees
`Belady`   the rows that are needed soonest                      the plan's order
`Lru`      the rows that were used last                          nothing
=========  ====================================================  ===================================

`Belady` reads the fewest rows that any policy can, plan or no plan: of two rows, to drop the one
that is needed later never costs a read more (Belady 1966, "A study of replacement algorithms"; here
batches take the place of single requests, and a row that is not needed again is not kept at all).
`Static` reads its rows before the first batch, and so may show more hits for more reads.

Memory: four bytes a row of the table for its slot, and for `Belady` 16 more and, for each row of
each batch of the plan, ten.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import ParameterError, SelectionError

__all__ = ["Belady", "CachePolicy", "Changes", "Lru", "Static", "simulate"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_LAST = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Changes:
    """What a batch changes: rows that come into the cache, and where.

    Attributes
    ----------
    rows : int64, shape (k,)
    slots : int64, shape (k,)
    places : int64, shape (k,)
        In the batch, where each row is.
    """

    rows: I64
    slots: I64
    places: I64


class CachePolicy(ABC):
    """Rows in slots.

    Parameters
    ----------
    rows : int
        Of the table.
    slots : int
        Rows that the cache holds.

    Attributes
    ----------
    hits, misses : int
        Rows of batches so far; a row counts once a batch.
    preloaded : int
        Rows that were read before the first batch.
    """

    def __init__(self, rows: int, slots: int) -> None:
        if slots < 0 or rows < 0:
            raise ParameterError(f"A cache of {slots} slots for {rows} rows cannot be.")
        self.slots = min(slots, rows)
        self.slot_of: I32 = np.full(rows, -1, np.int32)
        self.row_in: I64 = np.full(self.slots, -1, np.int64)
        self.hits = self.misses = self.preloaded = 0

    @property
    def hit_rate(self) -> float:
        asked = self.hits + self.misses
        return self.hits / asked if asked else 0.0

    @property
    def reads(self) -> int:
        """Rows that were read from the table: what a cache is there to keep low."""
        return self.misses + self.preloaded

    def visit(self, rows: I64) -> tuple[I32, Changes]:
        """Take note of a batch.

        Parameters
        ----------
        rows : int64, shape (n,)
            Of the table; repeats are one.

        Returns
        -------
        slots : int32, shape (n,)
            Where each row is, -1 where it is not; before the changes.
        changes : Changes
            To be made once the batch's rows are there.
        """
        slots = self.slot_of[rows]
        distinct, places = self._distinct(rows)
        held = slots[places] >= 0
        hits = int(np.count_nonzero(held))
        self.hits += hits
        self.misses += len(distinct) - hits
        chosen, into = self._decide(distinct, held)
        self._put(distinct[chosen], into)
        return slots, Changes(distinct[chosen], into, places[chosen])

    def _distinct(self, rows: I64) -> tuple[I64, I64]:
        """Return a batch's distinct rows, in the order of their last use in it, and where that is.

        A policy may order them in another way, which its `_decide` knows.
        """
        places = _last_places(rows)
        return rows[places], places

    @abstractmethod
    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
        """Decide on distinct rows; return which of them, by place, come into which slots."""

    def _put(self, rows: I64, slots: I64) -> None:
        """Give rows these slots; what was there goes."""
        gone = self.row_in[slots]
        self.slot_of[gone[gone >= 0]] = -1
        self.row_in[slots] = rows
        self.slot_of[rows] = slots


class Static(CachePolicy):
    """The rows of the highest scores.

    Parameters
    ----------
    scores : array, shape (rows,)
        Planned reads, or degrees; rows of score 0 are not kept. Ties go to the smaller row.
    slots : int
    """

    def __init__(self, scores: npt.ArrayLike, slots: int) -> None:
        values = np.asarray(scores)
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise ParameterError(
                "The 'counts' parameter must be one number a row. "
                f"Got {values.dtype} of shape {values.shape} instead."
            )
        super().__init__(len(values), slots)
        best = np.argsort(-values.astype(np.float64), kind="stable")[: self.slots]
        self.kept = np.sort(best[values[best] > 0]).astype(np.int64)
        self._put(self.kept, np.arange(len(self.kept)))
        self.preloaded = len(self.kept)

    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
        return _NONE, _NONE


class Lru(CachePolicy):
    """The rows that were used last."""

    def __init__(self, rows: int, slots: int) -> None:
        super().__init__(rows, slots)
        self._used: I64 = np.full(self.slots, -1, np.int64)
        self._clock = 0

    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
        stamps = self._clock + np.arange(len(rows))
        self._clock += len(rows)
        self._used[self.slot_of[rows[held]]] = stamps[held]
        fresh = np.flatnonzero(~held)[::-1][: self.slots]  # the last used first
        slots = _smallest(self._used, len(fresh))
        slots = slots[np.argsort(self._used[slots], kind="stable")]
        newer = self._used[slots] < stamps[fresh]  # of the batch's own rows, too, the last stay
        fresh, slots = fresh[newer], slots[newer]
        self._used[slots] = stamps[fresh]
        return fresh, slots


class Belady(CachePolicy):
    """The rows that are needed soonest, of a plan whose batches come in its order.

    Parameters
    ----------
    batches : iterable of int64 arrays
        The rows of each batch.
    rows : int
        Of the table.
    slots : int
    """

    def __init__(self, batches: Iterable[npt.ArrayLike], rows: int, slots: int) -> None:
        super().__init__(rows, slots)
        self._batches = [np.unique(np.asarray(b, dtype=np.int64)) for b in batches]
        for number, batch in enumerate(self._batches):
            if len(batch) and (batch[0] < 0 or batch[-1] >= rows):
                wrong = int(batch[0] if batch[0] < 0 else batch[-1])
                raise SelectionError(
                    f"Batch {number} of the plan names row {wrong}; the table holds rows 0 to "
                    f"{rows - 1}."
                )
        # When a row is needed next, by the number of the batch; as few bits as these have, since
        # few bits are sorted fast.
        kind = np.uint16 if len(self._batches) < _LAST else np.int64
        self._never = np.iinfo(kind).max
        self._following = _following(self._batches, rows, kind)
        self._needed = np.full(self.slots, self._never, kind)
        self._number = 0
        self._last = np.zeros(rows, np.int64)  # place in the newest batch that held the row
        self._planned_for = np.full(rows, -1, np.int32)
        self._came_in = np.full(rows, -1, np.int32)

    def _distinct(self, rows: I64) -> tuple[I64, I64]:
        """Return the planned rows, ascending, where they are the batch's."""
        number = self._number
        planned = self._batches[number] if number < len(self._batches) else rows[:0]
        self._planned_for[planned] = number
        self._came_in[rows] = number
        missing = np.any(self._came_in[planned] != number)
        if missing or np.any(self._planned_for[rows] != number):
            raise SelectionError(
                f"Batch {number} is not the plan's: the cache was told the plan's order. Make "
                "another one for another order, or one that needs no plan (HotRowCache.lru)."
            )
        self._last[rows] = np.arange(len(rows))
        return planned, self._last[planned]

    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
        needed, self._number = self._following[self._number], self._number + 1
        self._needed[self.slot_of[rows[held]]] = needed[held]
        fresh = np.flatnonzero(~held & (needed < self._never))
        # Pair the soonest of the new with the latest of the old while that is a gain.
        fresh = fresh[np.argsort(needed[fresh], kind="stable")][: self.slots]
        slots = np.argsort(self._never - self._needed, kind="stable")[: len(fresh)]
        gain = needed[fresh] < self._needed[slots]
        fresh, slots = fresh[gain], slots[gain]
        self._needed[slots] = needed[fresh]
        return fresh, slots


def simulate(policy: CachePolicy, batches: Iterable[npt.ArrayLike]) -> float:
    """Return the hit rate of a policy over batches."""
    for batch in batches:
        policy.visit(np.asarray(batch, dtype=np.int64))
    return policy.hit_rate


_NONE: I64 = np.zeros(0, np.int64)


def _following(batches: Sequence[I64], rows: int, kind: type[Any]) -> list[npt.NDArray[Any]]:
    """Return for each row of each batch the number of the next batch that holds it."""
    seen = np.full(rows, np.iinfo(kind).max, kind)
    found = []
    for number in range(len(batches) - 1, -1, -1):
        found.append(seen[batches[number]])
        seen[batches[number]] = number
    return found[::-1]


def _last_places(rows: I64) -> I64:
    """Return the last place of each distinct value, ascending."""
    _, first = np.unique(rows[::-1], return_index=True)
    return np.sort(len(rows) - 1 - first)


def _smallest(values: I64, count: int) -> I64:
    """Return the places of the `count` smallest values, in no order; ties go to the first."""
    if count >= len(values):
        return np.arange(len(values))
    if count == 0:
        return np.zeros(0, np.int64)
    bound = np.partition(values, count - 1)[count - 1]
    below = np.flatnonzero(values < bound)
    ties = np.flatnonzero(values == bound)[: count - len(below)]
    return np.concatenate([below, ties])
