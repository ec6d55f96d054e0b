"""Selecting rows by loss from parts of them: passes that count, and the choice that they lead to.

    >>> search = SeTa(epochs=40, seed=7).search(epoch=3, rows=n)
    >>> while search.next is not None:
    ...     search.narrow(sum(search.next.count(part) for part in parts))
    >>> [search.choice.keeps(part) for part in parts]

Each method that selects by loss is a frozen dataclass of parameters that makes a `LossSearch`. What
passes count are int64 arrays that parts add up to, in any order, and what they lead to is a small
`Choice` that says of any row, by its id and loss alone, whether it is kept and with what weight: so
rows in memory, files mapped by a job and tasks of a cluster select the same rows. The loop over
one array is `loss_selector`'s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from .key_share import Among
from .loss_histogram import LossBins, LossHistogram, RangePass
from .loss_rows import F32, I64, LossRows, Mask

__all__ = [
    "BothPasses",
    "Choice",
    "HistogramSearch",
    "LossPass",
    "LossSearch",
    "NonFinite",
    "saving",
]

NonFinite = Literal["fail", "keep"]
"""Rows whose loss is NaN or infinite: an error, or always eligible like rows never scored."""


class LossPass(Protocol):
    """What one pass counts; small, so that tasks are sent it."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of the counts."""

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        """Count rows; `into`: counts of other rows, to which these are added."""


class Choice(Protocol):
    """Which rows are kept; small, so that tasks are sent it."""

    @property
    def weighted(self) -> bool:
        """Whether rows have other weights than 1."""

    @property
    def report(self) -> Mapping[str, Any]:
        """What the method tells of itself."""

    def keeps(self, rows: LossRows) -> Mask:
        """Return which rows are kept; bool, shape (n,)."""

    def weights(self, rows: LossRows) -> F32:
        """Return the weights of rows that are kept, shape (n,)."""


class LossSearch(Protocol):
    """Passes over all rows, one after another, that lead to a choice.

    Attributes
    ----------
    next : LossPass or None
        What to count next, over all parts; None: `choice` is there.
    """

    next: LossPass | None

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""

    @property
    def choice(self) -> Choice:
        """The choice."""


# --- the losses of some rows, and two passes in one ---------------------------------------------


@dataclass(frozen=True)
class ScoredPass:
    """Counts the losses of some rows, of those that have one.

    The ends of the bins are those of all rows, which are known in the pass that finds the share.
    """

    among: Among
    bins: RangePass | LossBins

    @property
    def shape(self) -> tuple[int, int]:
        return self.bins.shape

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        if isinstance(self.bins, RangePass):
            return self.bins.count(rows.losses, into=into)
        return self.bins.count(rows.losses, self.among.mask(rows), into=into)


@dataclass(frozen=True)
class BothPasses:
    """Two passes over the same rows at once, their counts end to end."""

    one: LossPass
    other: LossPass

    @property
    def shape(self) -> tuple[int, int]:
        return 1, math.prod(self.one.shape) + math.prod(self.other.shape)

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        counts = np.zeros(self.shape, np.int64) if into is None else into
        one, other = self.parted(counts)
        self.one.count(rows, into=one)
        self.other.count(rows, into=other)
        return counts

    def parted(self, counts: I64) -> tuple[I64, I64]:
        """Return the counts of each pass; views."""
        first = math.prod(self.one.shape)
        return counts[0, :first].reshape(self.one.shape), counts[0, first:].reshape(
            self.other.shape
        )


class HistogramSearch:
    """Counts the losses of some rows, of those that have one.

    Parameters
    ----------
    among : Among
        May be set as long as the second pass has not begun: the first looks at all rows.

    Attributes
    ----------
    histogram : LossHistogram or None
        None where none of the rows was scored.
    """

    def __init__(self, among: Among) -> None:
        self.among = among
        self.histogram: LossHistogram | None = None
        self._bins: RangePass | LossBins | None = RangePass()

    @property
    def next(self) -> ScoredPass | None:
        """What to count next."""
        return None if self._bins is None else ScoredPass(self.among, self._bins)

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""
        done, self._bins = self._bins, None
        if not counts.any():
            return
        if isinstance(done, LossBins):
            self.histogram = LossHistogram(done, counts)
        else:
            self._bins = LossBins.of_counts(counts)


def saving(selected: int, rows: int) -> dict[str, Any]:
    """Return what every report says: rows before and after, and the share that is left out."""
    return {"rows": rows, "selected": selected, "saved": 1 - selected / rows}
