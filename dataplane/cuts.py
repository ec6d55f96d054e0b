"""The k rows of the smallest or largest values, exactly k of them, from counts (`sketch`).

They are the rows beyond the k-th value, and of the rows that equal it those with the smallest *tie
words*: row ids, or keys of these (`random.keys`), which makes it a keyed draw among them. No two
rows share one.

    >>> search = CutSearch(np.float32, k)
    >>> while search.next is not None:
    ...     search.narrow(sum(search.next.count(values, ties) for values, ties in parts))
    >>> [search.cut.keeps(values, ties) for values, ties in parts]

A float32 column takes two passes. Where only some rows of the k-th value are kept, more passes find
which: two as a rule over random keys, which end as soon as the counts tell the rows apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import OnInvalid, ParameterError
from .radix import FLOAT, checked_order, ordered, value_of
from .sketch import Found, Pass, RankSearch, check_rows, refuse_nan

__all__ = ["Cut", "CutSearch", "TiePass", "keep_largest", "keep_smallest"]

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TiePass:
    """A pass over the tie words of the rows that have one certain value.

    Attributes
    ----------
    dtype : str
        Of the values.
    word : int
        The value, as `ordered` gives it.
    ties : Pass
    """

    dtype: str
    word: int
    ties: Pass

    @property
    def shape(self) -> tuple[int, int]:
        return self.ties.shape

    def count(
        self,
        values: npt.NDArray[Any],
        ties: npt.NDArray[Any] | None = None,
        *,
        into: I64 | None = None,
    ) -> I64:
        """Count the digit of the tie words; see `Pass.count`."""
        equal = ordered(values) == checked_order(values, self.dtype).words.type(self.word)
        return self.ties.count(_given(ties)[equal], into=into)


@dataclass(frozen=True)
class Cut:
    """Which rows are the k smallest, or largest.

    Attributes
    ----------
    dtype : str
        Of the values.
    rows : int
        How many rows are kept, in all.
    largest : bool
    word : int or None
        The last value that is kept, as `ordered` gives it; None where no row is.
    tie : int or None
        The largest tie word of that value's rows that is kept, as `ordered` gives it; None: all of
        them are.
    """

    dtype: str
    rows: int
    largest: bool
    word: int | None
    tie: int | None

    @property
    def value(self) -> Any:
        """The last value that is kept, a numpy scalar; None where no row is."""
        return None if self.word is None else value_of(self.word, self.dtype)

    def keeps(
        self, values: npt.NDArray[Any], ties: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[np.bool_]:
        """Return which rows are kept; bool, shape (n,).

        Parameters
        ----------
        values : numbers of `dtype`, shape (n,)
        ties : integers, shape (n,)
            As they were searched by.
        """
        if self.word is None:
            return np.zeros(values.shape, dtype=bool)
        order = checked_order(values, self.dtype)
        words, last = ordered(values), order.words.type(self.word)
        equal = words == last
        if self.tie is not None:
            tie_words = ordered(_given(ties))
            equal &= tie_words <= tie_words.dtype.type(self.tie)
        kept: npt.NDArray[np.bool_] = equal | ((words > last) if self.largest else (words < last))
        if self.largest and order.kind == FLOAT:
            kept &= words != order.last
        return kept


class CutSearch:
    """Finds the k rows of the smallest, or largest, values; of equal ones the smallest tie words.

    Parameters
    ----------
    dtype : dtype
        Of the values.
    k : int
        Rows to keep; at most as many as there are numbers.
    largest : bool
    ties : dtype
        Of the tie words. 32 bits take two passes, where the row ids fit.

    Attributes
    ----------
    next : Pass, TiePass or None
        What to count next, over all parts, with ``next.count(values, ties)``.
    cut : Cut or None
        The result, once `next` is None.
    """

    def __init__(
        self,
        dtype: npt.DTypeLike,
        k: int,
        *,
        largest: bool = False,
        ties: npt.DTypeLike = np.uint64,
    ) -> None:
        self._k, self._largest = int(k), largest
        self._values = RankSearch(dtype, self._ranks)
        self._ties = RankSearch(ties, self._tie_ranks)
        self.next: Pass | TiePass | None = self._values.next
        self.cut: Cut | None = None

    @property
    def nan(self) -> int:
        """Values that are NaN; they are not kept."""
        return self._values.nan

    def narrow(self, counts: I64) -> Pass | TiePass | None:
        """Go on from the counts of a pass, summed over all parts; return `next`."""
        if self._values.next is not None:
            self.next = self._values.narrow(counts)
            if self.next is None:
                self._cut_values()
        else:
            self._narrow_ties(counts)
        return self.next

    def _cut_values(self) -> None:
        if not self._values.found or self._taken == self._last.equal:
            self._end(None)
        elif self._ties.next is not None:
            self._go_on(self._ties.next)

    def _narrow_ties(self, counts: I64) -> None:
        step = self._ties.narrow(counts)
        if self._ties.bound is not None:
            self._end(self._ties.bound)
        elif step is None:
            raise ParameterError("Some rows have the same tie word; give each row its own.")
        else:
            self._go_on(step)

    def _go_on(self, ties: Pass) -> None:
        self.next = TiePass(self._values.dtype, self._last.word, ties)

    def _ranks(self, n: int) -> list[int]:
        if not 0 <= self._k <= n:
            raise ParameterError(f"Cannot choose {self._k} of {n} rows.")
        if self._k == 0:
            return []
        return [n - self._k + 1 if self._largest else self._k]

    @property
    def _last(self) -> Found:
        return self._values.found[0]

    @property
    def _taken(self) -> int:
        """How many rows of the last value are kept."""
        above = self._values.size - self._last.below - self._last.equal
        return self._k - (above if self._largest else self._last.below)

    def _tie_ranks(self, n: int) -> list[int]:
        check_rows(n, self._last.equal)
        return [self._taken]

    def _end(self, tie: int | None) -> None:
        word = self._last.word if self._values.found else None
        self.cut = Cut(self._values.dtype, self._k, self._largest, word, tie)
        self.next = None


# --- of one array ---------------------------------------------------------------------------------


def keep_smallest(
    values: npt.NDArray[Any],
    k: int,
    *,
    ids: npt.NDArray[np.uint64] | None = None,
    ties: npt.NDArray[Any] | None = None,
    on_invalid: OnInvalid = "fail",
) -> npt.NDArray[np.bool_]:
    """Return which are the k rows of the smallest values: bool, shape (n,).

    Parameters
    ----------
    values : integers, booleans or floats, shape (n,)
    k : int
    ids : uint64, shape (n,), optional
        Row ids, for messages and ties; default: positions.
    ties : integers, shape (n,), optional
        Of rows with equal values those with the smallest of these are kept; default: `ids`.
    on_invalid : {'fail', 'drop'}
        What to do where values are NaN; such a row is never kept.

    Raises
    ------
    InvalidValueError, ParameterError
    """
    return _keep(values, k, False, ids, ties, on_invalid)


def keep_largest(
    values: npt.NDArray[Any],
    k: int,
    *,
    ids: npt.NDArray[np.uint64] | None = None,
    ties: npt.NDArray[Any] | None = None,
    on_invalid: OnInvalid = "fail",
) -> npt.NDArray[np.bool_]:
    """Return which are the k rows of the largest values; see `keep_smallest`."""
    return _keep(values, k, True, ids, ties, on_invalid)


def _keep(
    values: npt.NDArray[Any],
    k: int,
    largest: bool,
    ids: npt.NDArray[np.uint64] | None,
    ties: npt.NDArray[Any] | None,
    on_invalid: OnInvalid,
) -> npt.NDArray[np.bool_]:
    if ties is None:
        ties = np.arange(values.size, dtype=np.uint64) if ids is None else ids
    search = CutSearch(values.dtype, k, largest=largest, ties=ties.dtype)
    if on_invalid == "fail":
        refuse_nan(values, ids)
    while search.next is not None:
        search.narrow(search.next.count(values, ties))
    assert search.cut is not None  # for the type checker: the search has ended
    return search.cut.keeps(values, ties)


def _given(ties: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if ties is None:
        raise ParameterError("Rows with equal values are told apart by tie words; give them.")
    return ties
