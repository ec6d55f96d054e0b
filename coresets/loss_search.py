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

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError
from ..dataplane.random import keys, keys_up_to
from ..dataplane.sketch import Pass, RankSearch
from .loss_histogram import LossBins, LossHistogram

__all__ = [
    "Choice",
    "HistogramSearch",
    "KeepSearch",
    "KeyShare",
    "LossRows",
    "LossSearch",
    "NonFinite",
    "saving",
]

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NonFinite = Literal["fail", "keep"]
"""Rows whose loss is NaN or infinite: an error, or always eligible like rows never scored."""


@dataclass(frozen=True)
class LossRows:
    """Some rows and their losses.

    Attributes
    ----------
    ids : uint64, shape (n,)
    losses : float32, shape (n,)
        Of a row that was not scored, anything.
    scored : bool, shape (n,), or None
        Which rows have a finite loss; None: all.
    """

    ids: U64
    losses: F32
    scored: Mask | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> LossRows:
        """Return some of them, by position; views."""
        scored = None if self.scored is None else self.scored[start:stop]
        return LossRows(self.ids[start:stop], self.losses[start:stop], scored)

    @cached_property
    def shares(self) -> dict[KeyShare, Mask]:
        """Shares of the rows that were drawn already: passes and choice ask for the same."""
        return {}

    @cached_property
    def scored_mask(self) -> Mask:
        return np.ones(len(self), bool) if self.scored is None else self.scored


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


# --- which rows a pass counts ---------------------------------------------------------------------


class Among(Protocol):
    """Some of the rows."""

    def mask(self, rows: LossRows) -> Mask:
        """Return which rows they are; bool, shape (n,)."""


@dataclass(frozen=True)
class AllRows:
    """Every row."""

    def mask(self, rows: LossRows) -> Mask:
        return np.ones(len(rows), bool)


@dataclass(frozen=True)
class KeyShare:
    """The rows whose keys are up to a bound: an exact share, drawn by row id.

    Attributes
    ----------
    seed, stream, epoch : int
        Of the keys; see `dataplane.random`.
    bound : int or None
        None: all rows.
    among : Among
        The rows that the share is of.
    """

    seed: int
    stream: int
    epoch: int
    bound: int | None = None
    among: Among = AllRows()

    def mask(self, rows: LossRows) -> Mask:
        if self.bound is None:
            return self.among.mask(rows)
        known = rows.shares.get(self)
        if known is None:
            known = self.among.mask(rows)
            keys_up_to(self.bound, self.seed, self.stream, self.epoch, rows.ids, inside=known)
            rows.shares[self] = known
        return known.copy()

    def keys(self, ids: U64) -> U64:
        return keys(self.seed, self.stream, self.epoch, ids)


@dataclass(frozen=True)
class KeyPass:
    """Counts digits of the keys of some rows."""

    share: KeyShare
    digits: Pass

    @property
    def shape(self) -> tuple[int, int]:
        return self.digits.shape

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        ids = rows.ids
        if not isinstance(self.share.among, AllRows):
            ids = ids[self.share.among.mask(rows)]
        return self.digits.count(self.share.keys(ids), into=into)


@dataclass(frozen=True)
class ScoredPass:
    """Counts the losses of some rows, of those that have one."""

    among: Among
    bins: Pass | LossBins

    @property
    def shape(self) -> tuple[int, int]:
        return self.bins.shape

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        losses = rows.losses[self.among.mask(rows) & rows.scored_mask]
        return self.bins.count(losses, into=into)


# --- the two searches that methods are made of ----------------------------------------------------


class KeepSearch:
    """Finds a random share of exactly n rows: those with the smallest keys.

    Parameters
    ----------
    share : KeyShare
        Its bound is what is looked for.
    kept : callable
        From how many rows there are to how many of them are kept.

    Attributes
    ----------
    next : KeyPass or None
    rows, kept : int
        How many rows there are, and how many of them are kept.
    """

    def __init__(self, share: KeyShare, kept: Any) -> None:
        self._share = share
        self._search = RankSearch(np.uint64, self._ranks)
        self._kept = kept
        self.rows = self.kept = 0
        self.next: KeyPass | None = self._pass()

    def _ranks(self, rows: int) -> list[int]:
        self.rows, self.kept = rows, self._kept(rows)
        return [self.kept] if 0 < self.kept < rows else []

    def _pass(self) -> KeyPass | None:
        digits = self._search.next
        done = digits is None or self._search.bound is not None
        return None if done or digits is None else KeyPass(self._share, digits)

    def narrow(self, counts: I64) -> None:
        self._search.narrow(counts)
        self.next = self._pass()

    @property
    def share(self) -> KeyShare:
        """The rows that are kept."""
        if self.kept == self.rows:
            return self._share
        bound = self._search.bound
        if bound is None:
            raise SelectionError("Some row ids are the same; give each row its own.")
        share = self._share
        return KeyShare(share.seed, share.stream, share.epoch, bound, share.among)


class HistogramSearch:
    """Counts the losses of some rows, of those that have one.

    Attributes
    ----------
    next : ScoredPass or None
    histogram : LossHistogram or None
        None where none of the rows was scored.
    """

    def __init__(self, among: Among) -> None:
        self._among = among
        self._bins: LossBins | None = None
        self.next: ScoredPass | None = ScoredPass(among, LossBins.first_pass())
        self.histogram: LossHistogram | None = None

    def narrow(self, counts: I64) -> None:
        if self._bins is not None:
            self.histogram, self.next = LossHistogram(self._bins, counts), None
        elif counts.any():
            self._bins = LossBins.of_counts(counts)
            self.next = ScoredPass(self._among, self._bins)
        else:
            self.next = None


def saving(selected: int, rows: int) -> dict[str, Any]:
    """Return what every report says: rows before and after, and the share that is left out."""
    return {"rows": rows, "selected": selected, "saved": 1 - selected / rows}
