"""Exact order statistics from counts: values at ranks, quantiles.

Numbers become unsigned integers of the same order (`radix`). A *pass* counts the next sixteen bits
of the values that begin like a wanted one: at most 65,536 int64 counts for each of these, which
parts of the data sum up in any order. So a 32-bit column takes two passes, a 64-bit one four,
however many rows there are, and nothing is sorted. (Distribution counting on digits, the most
significant first: Knuth, The Art of Computer Programming 3, §5.2.5.)

    >>> search = RankSearch(np.float32, lambda n: [quantile_rank(q, n) for q in (0.5, 0.99)])
    >>> while search.next is not None:
    ...     search.narrow(sum(search.next.count(part) for part in parts))
    >>> [f.value for f in search.found]

**Order.** -0.0 equals 0.0; denormal numbers and ±inf stand where they belong. NaN is no number: it
is counted, and has no rank.

**Quantile.** The q-quantile of n values is the k-th smallest of them, k = max(1, ceil(q · n)): the
smallest value that at least the share q of all values do not exceed, which is ``inverted_cdf`` in
numpy and definition 1 of Hyndman and Fan (1996). q · n is exact, from the decimal text of q.

The k smallest or largest rows: `cuts`. The counting has two forms with the same result, numpy and
compiled (`kernels`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from .compiled import compiled_kernels
from .errors import DatasetChangedError, InvalidValueError, OnInvalid, ParameterError, examples
from .radix import FLOAT, Order, Words, checked_order, order_of, ordered, value_of

__all__ = [
    "Found",
    "Pass",
    "RankSearch",
    "check_rows",
    "exact_share",
    "quantile_rank",
    "quantiles",
    "refuse_nan",
]

I64 = npt.NDArray[np.int64]

_DIGIT = 16  # bits a pass


# --- shares and ranks -----------------------------------------------------------------------------


def exact_share(share: float | Fraction, n: int) -> int:
    """Return floor(share · n) in exact arithmetic from the share's decimal text.

    0.2 of 1,000,000 is 200,000, whatever binary fraction stands for 0.2.
    """
    exact = share if isinstance(share, Fraction) else Fraction(repr(float(share)))
    return math.floor(exact * n)


def quantile_rank(q: float | Fraction, n: int) -> int:
    """Return the rank of the q-quantile of n values: max(1, ceil(q · n)), counted from 1."""
    if not 0 <= q <= 1:
        raise ParameterError(f"A quantile must be a float in the range [0, 1]. Got {q} instead.")
    return max(1, -exact_share(-q, n))


# --- one pass -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What one pass counts; small, so that tasks are sent it.

    Attributes
    ----------
    dtype : str
        Of the numbers.
    known : int
        Leading bits that are known of the wanted words.
    prefixes : tuple of int
        Those bits, ascending and distinct.
    """

    dtype: str
    known: int = 0
    prefixes: tuple[int, ...] = (0,)

    @property
    def digit(self) -> int:
        """Bits that are counted."""
        return min(_DIGIT, self._order.bits - self.known)

    @property
    def shape(self) -> tuple[int, int]:
        """Of the counts: (prefixes, values of the digit)."""
        return len(self.prefixes), 1 << self.digit

    def nan(self, counts: I64) -> int:
        """Return how many NaN are in the counts of a first pass."""
        if self.known or self._order.kind != FLOAT:
            return 0
        return int(counts[0, -1])  # the bin of the last word, where nothing else is

    @property
    def _order(self) -> Order:
        return order_of(np.dtype(self.dtype))

    @property
    def _shift(self) -> int:
        """Bits below the digit."""
        return self._order.bits - self.known - self.digit

    def count(self, values: npt.NDArray[Any], ties: Any = None, *, into: I64 | None = None) -> I64:
        """Count the digit of the values that begin with each prefix.

        Parameters
        ----------
        values : numbers of `dtype`, shape (n,)
        ties : ignored
            So that this and `TiePass` are called alike.
        into : int64, shape `shape`, optional
            Counts of other values, to which these are added.

        Returns
        -------
        int64, shape `shape`
        """
        counts = np.zeros(self.shape, np.int64) if into is None else into
        order = checked_order(values, self.dtype)
        compiled = compiled_kernels(values.size)
        if compiled is None:
            self._count(ordered(values), counts)
            return counts
        raw, shift = order.raw(values), np.uint64(self._shift)
        if self.known:
            digit = np.uint64(self.digit)
            compiled.count_digits(raw, *order.for_kernels, shift, digit, *self._lookup, counts)
        else:
            compiled.count_first_digits(raw, *order.for_kernels, shift, counts)
        return counts

    def _count(self, words: Words, counts: I64) -> None:
        digits = words >> self._shift
        if not self.known:
            counts[0] += np.bincount(digits.astype(np.int64), minlength=counts.shape[1])
            return
        places, prefixes = self._lookup
        near = np.flatnonzero(places[words >> (self._order.bits - _DIGIT)] >= 0)
        digits = digits[near]
        begin = digits >> self.digit
        row = np.minimum(np.searchsorted(prefixes, begin), len(prefixes) - 1)
        inside = prefixes[row] == begin
        column = (digits[inside] & (counts.shape[1] - 1)).astype(np.int64)
        np.add.at(counts.reshape(-1), row[inside] * counts.shape[1] + column, 1)

    @cached_property
    def _lookup(self) -> tuple[npt.NDArray[np.int32], Words]:
        """Return the first prefix with each value of the highest digit (−1: none); the prefixes."""
        prefixes = np.array(self.prefixes, dtype=self._order.words)
        highest, first = np.unique(prefixes >> (self.known - _DIGIT), return_index=True)
        places = np.full(1 << _DIGIT, -1, dtype=np.int32)
        places[highest] = first
        return places, prefixes


# --- searches -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A value at a rank.

    Attributes
    ----------
    rank : int
        Counted from 1.
    word : int
        The value, as `ordered` gives it.
    value : numpy scalar
    below, equal : int
        How many values are smaller, how many are the same.
    """

    rank: int
    word: int
    value: Any
    below: int
    equal: int


class RankSearch:
    """Finds the values at some ranks, all of them in the same passes.

    Parameters
    ----------
    dtype : dtype
        Of the numbers.
    ranks : callable
        From how many numbers there are, known after the first pass, to the wanted ranks, which
        count from 1 in ascending order.

    Attributes
    ----------
    next : Pass or None
        What to count next, over all parts; None: everything is found.
    found : tuple of Found
        Parallel to the ranks.
    size, nan : int
        Numbers counted, and values that are NaN.
    dtype : str
    """

    def __init__(self, dtype: npt.DTypeLike, ranks: Callable[[int], Sequence[int]]) -> None:
        self._order = order_of(np.dtype(dtype))
        self.dtype = self._order.native.str
        self._ranks = ranks
        self._wanted: list[_Wanted] = []
        self._unknown = self._order.bits
        self.next: Pass | None = Pass(self.dtype)
        self.found: tuple[Found, ...] = ()
        self.size = self.nan = 0

    def narrow(self, counts: I64) -> Pass | None:
        """Go on from the counts of a pass, summed over all parts; return `next`."""
        done = self.next
        if done is None or counts.shape != done.shape:
            raise ParameterError("These are not the counts of the pass that comes next.")
        if not done.known:
            counts = self._begin(counts, done.nan(counts))
        at = {prefix: row for row, prefix in enumerate(done.prefixes)}
        self._wanted = [w.narrowed(counts[at[w.prefix]], done.digit) for w in self._wanted]
        self._go_on(done.known + done.digit)
        return self.next

    def _begin(self, counts: I64, nan: int) -> I64:
        if nan:
            counts = counts.copy()
            counts[0, -1] -= nan
        self.nan = nan
        self.size = int(counts.sum())
        ranks = [int(rank) for rank in self._ranks(self.size)]
        for rank in ranks:
            if not 1 <= rank <= self.size:
                raise ParameterError(f"There is no rank {rank} among {self.size} values.")
        self._wanted = [_Wanted(rank, 0, rank, self.size) for rank in ranks]
        return counts

    def _go_on(self, known: int) -> None:
        self._unknown = self._order.bits - known
        if self._unknown and self._wanted:
            prefixes = tuple(sorted({w.prefix for w in self._wanted}))
            self.next = Pass(self.dtype, known, prefixes)
            return
        self.next = None
        self.found = tuple(
            Found(w.rank, w.prefix, value_of(w.prefix, self.dtype), w.rank - w.inside, w.held)
            for w in self._wanted
        )

    @property
    def bound(self) -> int | None:
        """A word that exactly so many values as the one rank do not exceed, once one is known.

        Where values are seldom equal it is known before the last pass.
        """
        if len(self._wanted) != 1:
            return None
        (wanted,) = self._wanted
        if wanted.inside < wanted.held:
            return None
        return (wanted.prefix + 1 << self._unknown) - 1


@dataclass(frozen=True)
class _Wanted:
    """A rank: what its word begins with, its rank among those that do, and how many they are."""

    rank: int
    prefix: int
    inside: int
    held: int

    def narrowed(self, counts: I64, digit: int) -> _Wanted:
        """Take the next digit from the counts of those that begin with the prefix."""
        up_to = np.cumsum(counts)
        check_rows(int(up_to[-1]), self.held)
        bin_ = int(np.searchsorted(up_to, self.inside))
        held = int(counts[bin_])
        inside = self.inside - int(up_to[bin_]) + held
        return _Wanted(self.rank, self.prefix << digit | bin_, inside, held)


# --- of one array ---------------------------------------------------------------------------------


def quantiles(
    values: npt.NDArray[Any],
    shares: Sequence[float | Fraction],
    *,
    ids: npt.NDArray[np.uint64] | None = None,
    on_invalid: OnInvalid = "fail",
) -> npt.NDArray[Any]:
    """Return quantiles of an array: values of it, see the top of this module.

    Parameters
    ----------
    values : integers, booleans or floats, shape (n,)
    shares : sequence of float, shape (m,)
        In the range [0, 1].
    ids : uint64, shape (n,), optional
        Row ids, for messages; default: positions.
    on_invalid : {'fail', 'drop'}
        What to do where values are NaN.

    Returns
    -------
    array of the same dtype, shape (m,)

    Raises
    ------
    InvalidValueError
        Where values are NaN and `on_invalid` is 'fail'.
    ParameterError
        Where no number is left, or a share is out of its range.
    """
    search = RankSearch(values.dtype, lambda n: [quantile_rank(q, n) for q in shares])
    if on_invalid == "fail":
        refuse_nan(values, ids)
    while search.next is not None:
        search.narrow(search.next.count(values))
    return np.array([found.value for found in search.found], dtype=values.dtype)


def refuse_nan(values: npt.NDArray[Any], ids: npt.NDArray[np.uint64] | None) -> None:
    """Raise `InvalidValueError` where values are NaN, naming rows."""
    bad = np.flatnonzero(np.isnan(values))
    if bad.size:
        shown = examples(bad if ids is None else ids[bad])
        raise InvalidValueError(
            f"{bad.size:,} rows hold NaN: {shown}. Mend them, or leave them out with "
            "on_invalid='drop'."
        )


def check_rows(found: int, expected: int) -> None:
    """Refuse counts of other rows than those of the pass before."""
    if found != expected:
        raise DatasetChangedError(
            f"The values changed between two passes: {found:,} of them begin like a wanted one, "
            f"where {expected:,} did before."
        )
