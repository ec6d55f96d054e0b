"""An exact random share of some rows: those with the smallest keys, found by counting keys.

The bound up to which exactly n keys lie is near n / N of all possible keys, six standard deviations
of the binomial away at most, but for one draw in a billion. So the first pass counts the keys below
a narrow window there, and those in it bin by bin; where the bound is in no window, or two keys fall
into its bin, another pass looks there. How many rows there are may be known, known about, or not at
all; then the first window is everything. What is found depends on the keys alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..dataplane.errors import SelectionError
from ..dataplane.random import count_keys, keys_up_to, some_of
from ..dataplane.sketch import check_rows
from .loss_rows import I64, LossRows, Mask

__all__ = ["AllRows", "Among", "KeepSearch", "KeyPass", "KeyShare"]

_KEYS = 1 << 64
_DEVIATIONS = 6
_FEWEST_BINS, _MOST_BINS = 1 << 10, 1 << 20
_BINS_A_KEY = 16  # as many for each key of the window: then seldom two are in one


class Among(Protocol):
    """Some of the rows."""

    def mask(self, rows: LossRows) -> Mask:
        """Return which rows they are, as an array of the caller's own; bool, shape (n,)."""


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


@dataclass(frozen=True)
class KeyPass:
    """Counts the keys of a share's rows: below a window, in each of its bins, and above it.

    Attributes
    ----------
    share : KeyShare
    low : int
        Where the window begins.
    shift : int
        A bin is 2**shift keys wide.
    bins : int
        The window ends at 2**64 or before.
    """

    share: KeyShare
    low: int = 0
    shift: int = 48
    bins: int = 1 << 16

    @property
    def shape(self) -> tuple[int, int]:
        return 1, self.bins + 2

    def count(self, rows: LossRows, *, into: I64 | None = None) -> I64:
        counts = np.zeros(self.shape, np.int64) if into is None else into
        share, ids = self.share, rows.ids
        if not isinstance(share.among, AllRows):
            ids = some_of(ids, share.among.mask(rows))
        window = self.low, self.shift, self.bins
        count_keys(*window, share.seed, share.stream, share.epoch, ids, into=counts[0])
        return counts

    def end(self, slot: int) -> int:
        """Return the first key above a slot of the counts."""
        return self.low + (slot << self.shift) if slot <= self.bins else _KEYS


class KeepSearch:
    """Finds a random share of exactly n rows: those with the smallest keys.

    Parameters
    ----------
    share : KeyShare
        Its bound is what is looked for.
    kept : callable
        From how many rows there are to how many of them are kept.
    about : int, optional
        About how many rows there are; only the number of passes depends on it.

    Attributes
    ----------
    next : KeyPass or None
    rows, kept : int
        How many rows there are, and how many of them are kept; known after the first pass.
    """

    def __init__(self, share: KeyShare, kept: Callable[[int], int], about: int = 0) -> None:
        self._share, self._kept = share, kept
        self._bound: int | None = None
        self.rows = self.kept = 0
        self.next: KeyPass | None = _first_pass(share, kept(about), about)

    def narrow(self, counts: I64) -> None:
        """Go on from the counts of a pass, summed over all parts."""
        done = self.next
        assert done is not None  # for the type checker: these are its counts
        up_to = np.cumsum(counts[0])
        if self.rows:
            check_rows(int(up_to[-1]), self.rows)
        self.rows = int(up_to[-1])
        self.kept, self.next = self._kept(self.rows), None
        if not 0 < self.kept < self.rows:
            return
        slot = int(np.searchsorted(up_to, self.kept))
        low, end = done.end(slot - 1) if slot else 0, done.end(slot)
        if up_to[slot] == self.kept:
            self._bound = end - 1
            return
        if end - low == 1:
            raise SelectionError("Some row ids are the same; give each row its own.")
        self.next = _window(self._share, low, end - low, int(counts[0, slot]))

    @property
    def share(self) -> KeyShare:
        """The rows that are kept."""
        share = self._share
        return KeyShare(share.seed, share.stream, share.epoch, self._bound, share.among)


def _first_pass(share: KeyShare, kept: int, rows: int) -> KeyPass:
    """Return the pass over a window in which the bound lies, as good as always."""
    if not 0 < kept < rows:
        return KeyPass(share)
    near = _DEVIATIONS * (math.isqrt(kept * (rows - kept) // rows) + 2)  # rows
    low = max(0, (kept - near) * _KEYS // rows)
    width = min(_KEYS - low, 2 * near * _KEYS // rows)
    return _window(share, low, width, 2 * near)


def _window(share: KeyShare, low: int, width: int, rows: int) -> KeyPass:
    """Return the pass over a window that holds so many rows, or about as many."""
    bins = 1 << (_BINS_A_KEY * rows - 1).bit_length()
    bins = min(max(bins, _FEWEST_BINS), _MOST_BINS)
    shift = max(0, (-(-width // bins) - 1).bit_length())
    bins = -(-width // (1 << shift))
    return KeyPass(share, min(low, _KEYS - (bins << shift)), shift, bins)
