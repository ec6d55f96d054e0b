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

Memory: four bytes a row of the table for its slot, and for `Belady` eight bytes a row of the plan.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import ParameterError, SelectionError

__all__ = ["Belady", "CachePolicy", "Changes", "Lru", "Static", "simulate"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Changes:
    """What a batch changes: rows that come into the cache, and where.

    Attributes
    ----------
    rows : int64, shape (k,)
    slots : int64, shape (k,)
    """

    rows: I64
    slots: I64


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
        last = _last_places(rows)
        distinct = rows[last]
        held = slots[last] >= 0
        self.hits += int(np.count_nonzero(held))
        self.misses += len(distinct) - int(np.count_nonzero(held))
        return slots, self._decide(distinct, held)

    @abstractmethod
    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> Changes:
        """Decide on distinct rows, in the order of their last use in the batch."""

    def _put(self, rows: I64, slots: I64) -> Changes:
        """Give rows these slots; what was there goes."""
        gone = self.row_in[slots]
        self.slot_of[gone[gone >= 0]] = -1
        self.row_in[slots] = rows
        self.slot_of[rows] = slots
        return Changes(rows, slots)


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

    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> Changes:
        return _NOTHING


class Lru(CachePolicy):
    """The rows that were used last."""

    def __init__(self, rows: int, slots: int) -> None:
        super().__init__(rows, slots)
        self._used: I64 = np.full(self.slots, -1, np.int64)
        self._clock = 0

    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> Changes:
        stamps = self._clock + np.arange(len(rows))
        self._clock += len(rows)
        self._used[self.slot_of[rows[held]]] = stamps[held]
        fresh = np.flatnonzero(~held)[::-1][: self.slots]  # the last used first
        slots = _smallest(self._used, len(fresh))
        slots = slots[np.argsort(self._used[slots], kind="stable")]
        newer = self._used[slots] < stamps[fresh]  # of the batch's own rows, too, the last stay
        fresh, slots = fresh[newer], slots[newer]
        self._used[slots] = stamps[fresh]
        return self._put(rows[fresh], slots)


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
        self._following = _following(self._batches, rows)
        self._needed: I64 = np.full(self.slots, _NEVER, np.int64)
        self._number = 0

    def _decide(self, rows: I64, held: npt.NDArray[np.bool_]) -> Changes:
        order = np.argsort(rows)
        number, self._number = self._number, self._number + 1
        planned = self._batches[number] if number < len(self._batches) else rows[:0]
        if not np.array_equal(rows[order], planned):
            raise SelectionError(
                f"Batch {number} is not the plan's: the cache was told the plan's order. Make "
                "another one for another order, or one that needs no plan (HotRowCache.lru)."
            )
        rows, held, needed = rows[order], held[order], self._following[number]
        self._needed[self.slot_of[rows[held]]] = needed[held]
        fresh = np.flatnonzero(~held & (needed < _NEVER))
        fresh = fresh[_smallest(needed[fresh], min(len(fresh), self.slots))]
        slots = _smallest(-self._needed, len(fresh))
        # Pair the soonest of the new with the latest of the old while that is a gain.
        fresh = fresh[np.argsort(needed[fresh], kind="stable")]
        slots = slots[np.argsort(-self._needed[slots], kind="stable")]
        gain = needed[fresh] < self._needed[slots]
        fresh, slots = fresh[gain], slots[gain]
        self._needed[slots] = needed[fresh]
        return self._put(rows[fresh], slots)


def simulate(policy: CachePolicy, batches: Iterable[npt.ArrayLike]) -> float:
    """Return the hit rate of a policy over batches."""
    for batch in batches:
        policy.visit(np.asarray(batch, dtype=np.int64))
    return policy.hit_rate


_NOTHING = Changes(np.zeros(0, np.int64), np.zeros(0, np.int64))


def _following(batches: Sequence[I64], rows: int) -> list[I64]:
    """Return for each row of each batch the number of the next batch that holds it."""
    seen = np.full(rows, _NEVER, np.int64)
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
