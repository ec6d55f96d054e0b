"""Rows grouped by loss: exact 1-D k-means of a histogram, easy groups first.

Clusters of numbers on a line are intervals, so the best ones are found by dynamic programming over
the sorted bins: the best c clusters of the first j bins are the best c − 1 of the first i, and one
more, for the best i; and that i never moves left as j grows, so a row of the table takes
O(bins · log bins). (Wang and Song, The R Journal 3(2), 2011; divide and conquer on monotone
minima.) Sums are float64 prefix sums about the mean of all rows; ties go to the lower cut.

Bins are what `loss_histogram` counts: where the losses differ in few bits, each value is a bin of
its own and the groups are the best there are; else the sum of squares is within 1e-4 of the best.
Rows of equal loss are always in one group.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.radix import ordered, value_of
from .kernels import best_cuts, label_losses
from .loss_histogram import LossBins, LossHistogram

__all__ = ["LossGroups", "groups_1d"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class LossGroups:
    """Groups of rows by loss; group 0 has the smallest.

    Attributes
    ----------
    bins : LossBins
    ends : tuple of int
        Bin after the last one of each group.
    rows : int64, shape (G,)
        Of each group.
    means : float64, shape (G,)
        Mean loss of each group.
    """

    bins: LossBins
    ends: tuple[int, ...]
    rows: I64
    means: F64

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def _labels(self) -> npt.NDArray[np.int16]:
        """Return the group of each bin."""
        sizes = np.diff([0, *self.ends[:-1], self.bins.bins])
        return np.repeat(np.arange(len(self), dtype=np.int16), sizes)

    def limits(self, start: int, stop: int) -> tuple[np.float32, np.float32]:
        """Return the losses between which the groups `start` to `stop` lie.

        Returns
        -------
        low, high : float32
            low ≤ loss < high; -inf or inf where no group is left on that side.
        """
        low, high = np.float32(-np.inf), np.float32(np.inf)
        if start > 0:
            low = self._first_loss(self.ends[start - 1])
        if stop < len(self):
            high = self._first_loss(self.ends[stop - 1])
        return low, high

    def _first_loss(self, place: int) -> np.float32:
        """Return the smallest loss of a bin."""
        word = self.bins.first + place << self.bins.shift
        return np.float32(value_of(word, np.float32))

    def label(self, losses: F32) -> npt.NDArray[np.int16]:
        """Return the group of each row; int16, shape (n,).

        Parameters
        ----------
        losses : float32, shape (n,)
            Finite. Those beyond the losses that were grouped go to the first or last group.
        """
        out = np.empty(len(losses), np.int16)
        shift, first = np.uint32(self.bins.shift), np.int64(self.bins.first)
        label_losses(ordered(losses), shift, first, self._labels, out)
        return out


def groups_1d(histogram: LossHistogram, k: int) -> LossGroups:
    """Group losses so that the sum of squared distances to their groups' means is the smallest.

    Parameters
    ----------
    histogram : LossHistogram
    k : int
        Groups; where fewer bins hold rows, there are as many groups as these.

    Returns
    -------
    LossGroups
    """
    means, rows, held = histogram.means, histogram.rows, histogram.held
    k = min(k, len(held))
    away = means - float(np.dot(means, rows) / rows.sum())
    weights, sums, squares = (_prefix_sums(v) for v in (rows, rows * away, rows * away * away))
    table = best_cuts(weights, sums, squares, k)
    stops = [len(held)]  # of the groups, the last one first
    for c in range(k - 1, 0, -1):
        stops.append(int(table[c, stops[-1]]))
    stops.reverse()
    starts = np.array([0, *stops[:-1]], dtype=np.int64)
    sizes = np.add.reduceat(rows, starts)
    return LossGroups(
        histogram.bins,
        tuple(int(held[stop - 1]) + 1 for stop in stops),
        sizes,
        np.add.reduceat(rows * means, starts) / sizes,
    )


def _prefix_sums(values: npt.NDArray[Any]) -> F64:
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
