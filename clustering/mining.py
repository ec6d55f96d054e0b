"""In-batch negatives: positives drawn, false negatives masked, hard ones listed.

A row's positive is one of its labels; the positives of the other rows of its micro-batch are its
negatives, but for those that are labels of the row as well. Of what is left, the rows of the
largest cosine are the hard ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError, examples, needs_extra
from ..dataplane.plan import Ragged
from ..dataplane.random import Stream, keys

__all__ = ["Labels", "Mined", "mine", "sample_positives"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Labels:
    """The labels of rows, each row's ascending.

    Attributes
    ----------
    offsets : int64, shape (n + 1,)
    values : int64, shape (total,)
        Row i has ``values[offsets[i]:offsets[i + 1]]``.
    """

    offsets: I64
    values: I64

    @classmethod
    def of(cls, labels: Any, rows: int, ids: U64) -> Labels:
        """Take labels of a sparse matrix; `SelectionError` where a row has none."""
        with needs_extra("labels as a sparse matrix", "plan"):
            from scipy.sparse import csr_array

        found = csr_array(labels)
        if found.shape[0] != rows:
            raise SelectionError(
                f"Expected labels of {rows:,} rows, found {found.shape[0]:,}: one row each."
            )
        found.eliminate_zeros()
        found.sum_duplicates()
        return cls(found.indptr.astype(np.int64), found.indices.astype(np.int64)).checked(ids)

    def checked(self, ids: U64) -> Labels:
        """Return the labels; `SelectionError` where a row has none."""
        bare = np.flatnonzero(np.diff(self.offsets) == 0)
        if len(bare):
            raise SelectionError(
                f"{len(bare):,} rows have no label: {examples(np.sort(ids[bare]))}. Give them one, "
                "or leave them out."
            )
        return self

    def take(self, rows: I64) -> Labels:
        """Return the labels of some rows."""
        counts = self.offsets[rows + 1] - self.offsets[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        return Labels(offsets, self.values[np.repeat(self.offsets[rows], counts) + inside])


@dataclass(frozen=True)
class Mined:
    """What is known of the columns of a micro-batch, row by row; columns are places in it.

    Attributes
    ----------
    mask : Ragged of int32
        Columns other than the row's own whose positive is a label of the row; ascending.
    negatives : Ragged of int32
        Columns of the largest cosine that are not masked; the largest first.
    scores : Ragged of float32
        Their cosines.
    """

    mask: Ragged
    negatives: Ragged
    scores: Ragged


def sample_positives(labels: Labels, ids: U64, *, seed: int, epoch: int) -> I64:
    """Draw one label of each row, by keys of its id; int64, shape (n,)."""
    counts = np.diff(labels.offsets).astype(np.uint64)
    drawn = keys(seed, Stream.POSITIVE, epoch, ids) % counts
    return labels.values[labels.offsets[:-1] + drawn.astype(np.int64)]


def mine(embeddings: F32, labels: Labels | None, positive: I64, shortlist: int) -> Mined:
    """Mask the false negatives of a micro-batch, and list the hardest of the others.

    Parameters
    ----------
    embeddings : float32, shape (b, d)
        Finite.
    labels : Labels of b rows, or None
        None: nothing is masked but a row's own column.
    positive : int64, shape (b,)
        The label that each row has drawn.
    shortlist : int
        Negatives a row at most.

    Returns
    -------
    Mined
    """
    n = len(embeddings)
    rows, columns = _masked(labels, positive) if labels is not None else _none()
    mask = Ragged(np.searchsorted(rows, np.arange(n + 1)).astype(np.int64), columns)
    listed = min(shortlist, n - 1)
    if not listed:
        none = np.zeros(n + 1, np.int64)
        return Mined(
            mask, Ragged(none, np.zeros(0, np.int32)), Ragged(none, np.zeros(0, np.float32))
        )
    cosines = _cosines(embeddings)
    np.fill_diagonal(cosines, -np.inf)
    cosines[rows, columns] = -np.inf
    # Ties to the lower column: a stable sort of the few that are not below the last one listed.
    least = np.partition(cosines, n - listed, axis=1)[:, n - listed]
    at, column = np.nonzero((cosines >= least[:, None]) & (cosines > -np.inf))
    order = np.lexsort((column, -cosines[at, column], at))
    at, column = at[order], column[order]
    place = np.arange(len(at)) - np.searchsorted(at, np.arange(n))[at]
    at, column = at[place < listed], column[place < listed]
    offsets = np.searchsorted(at, np.arange(n + 1)).astype(np.int64)
    return Mined(
        mask,
        Ragged(offsets, column.astype(np.int32)),
        Ragged(offsets, cosines[at, column]),
    )


def _masked(labels: Labels, positive: I64) -> tuple[I64, I32]:
    """Return (row, column) of the false negatives, by row and column."""
    by_label = np.argsort(positive, kind="stable")
    drawn = positive[by_label]
    first = np.searchsorted(drawn, labels.values, side="left")
    counts = np.searchsorted(drawn, labels.values, side="right") - first
    row = np.repeat(np.repeat(np.arange(len(positive)), np.diff(labels.offsets)), counts)
    inside = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    column = by_label[np.repeat(first, counts) + inside]
    off = row != column
    row, column = row[off], column[off]
    order = np.lexsort((column, row))
    return row[order], column[order].astype(np.int32)


def _none() -> tuple[I64, I32]:
    return np.zeros(0, np.int64), np.zeros(0, np.int32)


def _cosines(embeddings: F32) -> F32:
    """Return the cosines of all pairs, float32, one thread; 0 with a row of zeros."""
    with needs_extra("mining negatives", "plan"):
        from threadpoolctl import threadpool_limits

    exact = embeddings.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    unit = (exact / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    with threadpool_limits(1):
        found: F32 = unit @ unit.T
    return found
