"""A histogram of losses that parts of the data add up to, from which group means are exact.

A loss becomes an unsigned integer of the same order (`dataplane.radix`), and a bin is all integers
with the same leading bits. Two passes: the first finds the sixteen leading bits of the smallest and
the largest loss, and so the bins of the second: at most 2¹⁷, as fine as fit. The second counts each
bin's rows and sums up, as integers, how far each row's integer is above its bin's first. No bin
crosses a power of two, and inside one the loss is linear in its integer, so that a bin's sum is
exact, and all that parts add up are integers: parts, their order and the number of workers cannot
change a bit of what is made of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.compiled import compiled_kernels
from ..dataplane.errors import SelectionError
from ..dataplane.radix import ordered, values_of

__all__ = ["LossBins", "LossHistogram", "RangePass"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_LEAD = 16  # bits that the first pass counts
_BINS = 17  # bits of a bin's number, at most


@dataclass(frozen=True)
class RangePass:
    """What the first pass counts: the leading bits of each part's smallest and largest loss.

    Counts add up, as those of any pass; how many there are depends on the parts, which of them are
    there does not.
    """

    @property
    def shape(self) -> tuple[int, int]:
        return 1, 1 << _LEAD

    def count(self, losses: F32, *, into: I64 | None = None) -> I64:
        """Count the ends of losses: finite, or NaN, which are left out; float32, shape (n,)."""
        counts = np.zeros(self.shape, np.int64) if into is None else into
        if len(losses):
            ends = np.array([np.fmin.reduce(losses), np.fmax.reduce(losses)])
            lead = ordered(ends[ends == ends]) >> np.uint32(32 - _LEAD)  # not NaN
            np.add.at(counts[0], lead.astype(np.int64), 1)
        return counts


@dataclass(frozen=True)
class LossBins:
    """What the second pass counts; small, so that tasks are sent it.

    Attributes
    ----------
    shift : int
        Bits of a loss's integer that are inside a bin.
    first : int
        Number of the first bin.
    bins : int
    """

    shift: int
    first: int
    bins: int

    @classmethod
    def of_counts(cls, counts: I64) -> LossBins:
        """Return the finest bins for losses whose ends were counted.

        Parameters
        ----------
        counts : int64, shape (1, 65536)
            Of `RangePass`, over all parts; there must be some.
        """
        lead = np.flatnonzero(counts[0])
        low, high = int(lead[0]), int(lead[-1])
        shift = max(0, _LEAD + math.ceil(math.log2(high - low + 1)) - _BINS)
        inside = _LEAD - shift
        return cls(shift, low << inside, (high - low + 1) << inside)

    @property
    def shape(self) -> tuple[int, int]:
        return self.bins, 2

    def count(
        self, losses: F32, inside: npt.NDArray[np.bool_] | None = None, *, into: I64 | None = None
    ) -> I64:
        """Count losses into the bins.

        Parameters
        ----------
        losses : float32, shape (n,)
            Finite, between the ends that the first pass found; or NaN, which are left out.
        inside : bool, shape (n,), optional
            Which of them to count; all when None.
        into : int64, shape `shape`, optional
            Counts of other losses, to which these are added.

        Returns
        -------
        int64, shape (bins, 2)
            Of each bin its rows, and the sum of its integers' distances from its first.
        """
        counts = np.zeros(self.shape, np.int64) if into is None else into
        chosen = np.ones(len(losses), bool) if inside is None else inside
        if compiled_kernels(losses.size) is not None:
            from .kernels import count_losses

            bits, first = np.ascontiguousarray(losses).view(np.uint32), np.int64(self.first)
            count_losses(bits, chosen, np.uint32(self.shift), first, counts)
            return counts
        words = ordered(losses[chosen & np.isfinite(losses)])
        place = self.place(words)
        counts[:, 0] += np.bincount(place, minlength=self.bins)
        np.add.at(counts[:, 1], place, (words & np.uint32((1 << self.shift) - 1)).astype(np.int64))
        return counts

    def place(self, words: npt.NDArray[Any]) -> I64:
        """Return the bin of each ordered word."""
        return (words >> np.uint32(self.shift)).astype(np.int64) - self.first


@dataclass(frozen=True)
class LossHistogram:
    """Losses as both passes counted them.

    Attributes
    ----------
    bins : LossBins
    counts : int64, shape (bins, 2)
        Of `LossBins.count`, over all parts.
    """

    bins: LossBins
    counts: I64

    @classmethod
    def of(cls, losses: F32) -> LossHistogram:
        """Count one array of finite losses, float32, shape (n,), n ≥ 1."""
        if not len(losses):
            raise SelectionError("There are no losses to count.")
        bins = LossBins.of_counts(RangePass().count(losses))
        return cls(bins, bins.count(losses))

    @cached_property
    def held(self) -> I64:
        """Bins that hold rows, ascending."""
        return np.flatnonzero(self.counts[:, 0])

    @property
    def rows(self) -> I64:
        """Rows of each bin that holds some."""
        rows: I64 = self.counts[self.held, 0]
        return rows

    @property
    def means(self) -> F64:
        """Mean loss of each bin that holds rows."""
        first, exponents = self._first_losses
        means: F64 = np.ldexp(first + self.counts[self.held, 1] / self.rows, exponents)
        return means

    def mean(self, start: int = 0, stop: int | None = None) -> Fraction:
        """Return the exact mean loss of the held bins `start` to `stop`."""
        part = slice(start, stop)
        rows = self.rows[part]
        first, exponents = (values[part] for values in self._first_losses)
        units = rows * first + self.counts[self.held, 1][part]  # sums, in units of 2**exponent
        total = sum(
            (int(units[exponents == e].sum()) * Fraction(2) ** e for e in set(exponents.tolist())),
            start=Fraction(0),
        )
        return total / int(rows.sum())

    @cached_property
    def _first_losses(self) -> tuple[I64, I64]:
        """Return each held bin's first loss as m · 2**e: m with its sign, and e.

        Inside a bin e is one, and the next larger loss is that of m + 1.
        """
        words = ((self.held + self.bins.first) << self.bins.shift).astype(np.uint32)
        bits = values_of(words, np.float32).view(np.int32).astype(np.int64)
        exponent, fraction = (bits >> 23) & 0xFF, bits & 0x7FFFFF
        size = np.where(exponent > 0, fraction | 0x800000, fraction)
        return np.where(bits < 0, -size, size), np.maximum(exponent, 1) - 150
