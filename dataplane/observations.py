"""What was observed of rows while training: one value of a signal, of a row, in a step.

The key of an observation is (row, epoch, step, occurrence): the last counts how often the step had
held the row before. A training that was interrupted and resumed may observe a key again: each start
has an *attempt* number, and the highest attempt wins. Within one attempt a key has one value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import SignalConflictError

__all__ = ["Observations", "counted", "mean_by_row", "position_bits", "stable_order", "winners"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Observations:
    """Observations of one signal, parallel arrays.

    Attributes
    ----------
    rows : uint64, shape (n,)
        Row ids.
    epoch : uint32, shape (n,)
    step : uint64, shape (n,)
        Within the epoch.
    occurrence, attempt : uint16, shape (n,)
    value : float32, shape (n,) or (n, width)
    """

    rows: npt.NDArray[np.uint64]
    epoch: npt.NDArray[np.uint32]
    step: npt.NDArray[np.uint64]
    occurrence: npt.NDArray[np.uint16]
    attempt: npt.NDArray[np.uint16]
    value: F32

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays, in the order of the fields."""
        return self.rows, self.epoch, self.step, self.occurrence, self.attempt, self.value

    @property
    def width(self) -> int:
        """Numbers in a value; 0 of plain numbers."""
        return 0 if self.value.ndim == 1 else self.value.shape[1]

    @property
    def bits(self) -> npt.NDArray[np.uint32]:
        """The values' bits, by which NaN is equal to itself; shape (n, width or 1)."""
        return self.value.view(np.uint32).reshape(len(self), max(1, self.width))

    def take(self, at: npt.NDArray[Any] | slice) -> Observations:
        """Return some of them, by position or mask."""
        return Observations(*(c[at] for c in self.columns))

    def reordered(self, order: I64) -> Observations:
        """Return all of them in another order; a column of one value stays as it is."""
        return Observations(
            *(c if _is_one_value(c) else np.take(c, order, axis=0) for c in self.columns)
        )

    @classmethod
    def zeros(cls, n: int = 0, width: int = 0) -> Observations:
        """Return n of zeros, for others to be written over them."""
        return cls(
            np.zeros(n, np.uint64),
            np.zeros(n, np.uint32),
            np.zeros(n, np.uint64),
            np.zeros(n, np.uint16),
            np.zeros(n, np.uint16),
            np.zeros((n, width) if width else n, np.float32),
        )

    @classmethod
    def concat(cls, parts: Sequence[Observations]) -> Observations:
        """Return all of several, which must be of one width."""
        if len(parts) == 1:
            return parts[0]
        if not parts:
            return cls.zeros()
        return cls(*(np.concatenate(c) for c in zip(*(p.columns for p in parts), strict=True)))

    def same_row(self) -> npt.NDArray[np.bool_]:
        """Return which are of the same row as the one before; shape (n,)."""
        return _repeats(self.rows)

    def same_step(self) -> npt.NDArray[np.bool_]:
        """Return which are of the same row and step as the one before; shape (n,)."""
        return _repeats(self.rows) & _repeats(self.epoch) & _repeats(self.step)


def winners(observed: Observations, signal: str) -> Observations:
    """Return one observation a key, that of the highest attempt, sorted by key.

    Raises
    ------
    SignalConflictError
        Where one attempt has two values of a key.
    """
    o = observed
    # The highest attempt of a key comes first.
    order = np.lexsort((~o.attempt, o.occurrence, o.step, o.epoch, o.rows))
    o = o.take(order)
    again = o.same_step() & _repeats(o.occurrence)  # the same key as the one before
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(o))))
    rival = again & (o.attempt == o.attempt[first])
    differs = np.flatnonzero(rival)[(o.bits[rival] != o.bits[first[rival]]).any(axis=1)]
    if len(differs):
        at = int(differs[0])
        raise SignalConflictError(
            f"The signal '{signal}' has two values of row {o.rows[at]} in epoch {o.epoch[at]}, "
            f"step {o.step[at]}, attempt {o.attempt[at]}: {o.value[first[at]]} and {o.value[at]}. "
            "Give each start of a training its own attempt, and each rank its own rows; or, where "
            "a step holds a row more than once, pass 'occurrence'."
        )
    return o.take(~again)


def stable_order(rows: npt.NDArray[np.uint64]) -> I64:
    """Return the order that sorts rows, those of one row as they came; int64, shape (n,).

    As ``np.argsort(rows, kind="stable")``, by sorting numbers that hold row and position, which
    processors do several times as fast.
    """
    bits = position_bits(len(rows))
    if not len(rows) or int(rows.max()) >> (64 - bits):
        return np.argsort(rows, kind="stable")
    packed = rows << np.uint64(bits)
    packed |= np.arange(len(rows), dtype=np.uint64)
    packed.sort()
    packed &= np.uint64((1 << bits) - 1)
    return packed.view(np.int64)


def position_bits(n: int) -> int:
    """Return how many bits a position among n takes."""
    return max(1, (n - 1).bit_length())


def counted(before: Observations, observed: Observations) -> Observations:
    """Return observations with how often their step had held their row, in an earlier part too.

    Parameters
    ----------
    before : Observations
        Of the last step of the part before.
    observed : Observations
        Ascending by row, those of one row as they came.
    """
    place = np.searchsorted(observed.rows, before.rows)
    known_before = observed.rows[np.minimum(place, len(observed) - 1)] == before.rows
    if not known_before.any() and not observed.same_row().any():
        return observed
    known = Observations.concat([before, observed]) if len(before) else observed
    order = np.lexsort((known.step, known.epoch, known.rows))
    same = known.take(order).same_step()
    place = np.arange(len(known))
    first = np.maximum.accumulate(np.where(same, 0, place))
    nth = np.empty(len(known), np.uint16)
    nth[order] = place - first
    return replace(observed, occurrence=nth[len(before) :])


def mean_by_row(observed: Observations) -> tuple[npt.NDArray[np.uint64], F32]:
    """Return (rows, mean values) of observations sorted by row."""
    if not len(observed):
        return observed.rows, observed.value
    first = np.flatnonzero(~observed.same_row())
    counts = np.diff([*first, len(observed)])
    sums = np.add.reduceat(observed.value.astype(np.float64), first, axis=0)
    means = sums / (counts if observed.value.ndim == 1 else counts[:, None])
    return observed.rows[first], means.astype(np.float32)


def _is_one_value(values: npt.NDArray[Any]) -> bool:
    if values.ndim != 1 or (len(values) and values[0] != values[-1]):
        return False
    return bool((values == values[:1]).all())


def _repeats(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    again = np.zeros(len(values), bool)
    np.equal(values[1:], values[:-1], out=again[1:])
    return again
