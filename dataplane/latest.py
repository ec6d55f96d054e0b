"""The latest value of each row of a range, folded from observations that come in any order.

The latest observation of a row is that of the greatest (epoch, step); where a step held the row
more than once, the mean. Arrays over the range hold the best so far, so memory depends on the
range alone; what ties with the best of its row is put aside, and settled at the end.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import SignalError
from .observations import Observations, mean_by_row, winners
from .signal_parts import SignalPart

__all__ = ["LatestFold", "LatestValues", "latest_of"]

_ASIDE = 1 << 20  # observations that are put aside before they are looked through


@dataclass(frozen=True)
class LatestValues:
    """Latest values of some rows.

    Attributes
    ----------
    rows : uint64, shape (n,)
        Row ids, ascending; those that were never observed are left out.
    values : float32, shape (n,) or (n, width)
    """

    rows: npt.NDArray[np.uint64]
    values: npt.NDArray[np.float32]


class LatestFold:
    """Folds observations of the row ids `start` to `stop`.

    Parameters
    ----------
    signal : str
        For messages.
    start, stop : int
    """

    def __init__(self, signal: str, start: int, stop: int) -> None:
        self._signal, self._start, self._rows = signal, start, stop - start
        self._best: Observations | None = None
        self._seen = np.zeros(self._rows, bool)
        self._aside: list[Observations] = []
        self._held = 0

    def add(self, observed: Observations) -> None:
        """Add observations, ascending by row."""
        if not len(observed):
            return
        if self._best is None:
            self._best = Observations.zeros(self._rows, observed.width)
        if observed.width != self._best.width:
            raise SignalError(
                f"The signal '{self._signal}' holds values of {self._best.width or 1} numbers and "
                f"of {observed.width or 1}; keep them as two signals."
            )
        if observed.same_row().any():
            observed = self._first_of_each(observed)
        self._add_one_a_row(observed)
        if self._held > _ASIDE:  # now, that the best of every row is known
            kept = self._still_best(Observations.concat(self._aside))
            self._aside, self._held = [kept], 0

    def _first_of_each(self, observed: Observations) -> Observations:
        """Return the newest observation of each row, the others of its step put aside."""
        order = np.lexsort((~observed.step, ~observed.epoch, observed.rows))
        newest_first = observed.take(order)
        again = newest_first.same_row()
        # Of the same step as the first of the row, however many are between.
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(again))))
        ties = again & (newest_first.epoch == newest_first.epoch[first])
        ties &= newest_first.step == newest_first.step[first]
        self._put_aside(newest_first.take(ties))
        return newest_first.take(~again)

    def _add_one_a_row(self, observed: Observations) -> None:
        assert self._best is not None  # for the type checker: `add` made it
        at = (observed.rows - np.uint64(self._start)).view(np.int64)
        best = self._best
        epoch, step, seen = best.epoch[at], best.step[at], self._seen[at]
        same = seen & (observed.epoch == epoch)
        tie = same & (observed.step == step)
        newer = ~seen | (observed.epoch > epoch) | (same & (observed.step > step))
        if tie.any():
            self._put_aside(observed.take(tie))
        if not newer.all():
            observed, at = observed.take(newer), at[newer]
        for mine, theirs in zip(best.columns, observed.columns, strict=True):
            mine[at] = theirs
        self._seen[at] = True

    def _put_aside(self, observed: Observations) -> None:
        self._aside.append(observed)
        self._held += len(observed)

    def _still_best(self, observed: Observations) -> Observations:
        """Return those of the latest step of their row, each once."""
        best = self._best
        if best is None or not len(observed):
            return observed
        at = (observed.rows - np.uint64(self._start)).view(np.int64)
        last = (observed.epoch == best.epoch[at]) & (observed.step == best.step[at])
        return _once(observed.take(last))

    def finish(self) -> LatestValues:
        """Return the latest values of the rows that were observed.

        Raises
        ------
        SignalConflictError
            Where one attempt has two values of a key.
        """
        if self._best is None:
            return LatestValues(np.zeros(0, np.uint64), np.zeros(0, np.float32))
        aside = self._still_best(Observations.concat(self._aside)) if self._aside else None
        if aside is not None and len(aside):
            at = np.unique((aside.rows - np.uint64(self._start)).view(np.int64))
            rivals = Observations.concat([self._best.take(at), aside])
            rows, means = mean_by_row(winners(rivals, self._signal))
            self._best.value[(rows - np.uint64(self._start)).view(np.int64)] = means
        return LatestValues(self._best.rows[self._seen], self._best.value[self._seen])


def latest_of(
    parts: Iterable[SignalPart], signal: str, start: int, stop: int, before: int | None = None
) -> LatestValues:
    """Return the latest values of the row ids `start` to `stop`; memory grows with the range.

    Parameters
    ----------
    parts : iterable of SignalPart
    signal : str
        For messages.
    start, stop : int
    before : int, optional
        Only what was observed in epochs before this one.
    """
    fold = LatestFold(signal, start, stop)
    for part in parts:
        first, last = part.epochs
        if before is None or last < before:
            for observed in part.read(start, stop):
                fold.add(observed)
        elif first < before:
            for observed in part.read(start, stop):
                fold.add(observed.take(observed.epoch < before))
    return fold.finish()


def _once(observed: Observations) -> Observations:
    """Return each different observation once."""
    o = observed
    order = np.lexsort((*o.bits.T, o.attempt, o.occurrence, o.step, o.epoch, o.rows))
    o = o.take(order)
    same = o.same_step()
    same[1:] &= (o.occurrence[1:] == o.occurrence[:-1]) & (o.attempt[1:] == o.attempt[:-1])
    same[1:] &= (o.bits[1:] == o.bits[:-1]).all(axis=1)
    return o.take(~same)
