"""The centroid of a cluster, and how far its rows are from it.

The centroid is the mean of the cluster's rows; by cosine, of its rows at length 1. It is summed up
in float64 in the order of row ids, as all rows of a cluster come together, so it is a function of
the cluster's rows with their ids. A row's distance to it is Euclidean, or 1 − cosine, in float64; a
row of zeros, which has no direction, has the cosine 0.

Rows of a cluster are given as a function of their positions, so that a cluster that is larger than
the memory is read in blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import InvalidValueError, SelectionError, examples
from ..dataplane.row_arrays import checked_ids, float32_rows

__all__ = [
    "CenterMetric",
    "RowsAt",
    "blocks",
    "by_cluster",
    "checked_clusters",
    "distances_to_centroid",
    "rows_of",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

CenterMetric = Literal["cosine", "euclidean"]

RowsAt: TypeAlias = Callable[[I64], F32]
"""Rows of a cluster at positions, which number them in the order of their ids; shape (k, d)."""

_BLOCK_BYTES = 8 << 20  # of a cluster's rows that are looked at together


def distances_to_centroid(rows_at: RowsAt, rows: int, width: int, metric: CenterMetric) -> F64:
    """Return how far the rows of a cluster are from its centroid, shape (rows,).

    Parameters
    ----------
    rows_at : callable
    rows, width : int
        How many rows, of how many numbers.
    metric : {'cosine', 'euclidean'}
    """
    from .cluster_kernels import add_rows, center_distances

    center, out = np.zeros(width), np.empty(rows)
    for here in blocks(rows, width):
        add_rows(rows_at(here), metric == "cosine", center)
    center /= rows
    for here in blocks(rows, width):
        center_distances(rows_at(here), center, metric == "cosine", out[here[0] : here[-1] + 1])
    return out


def blocks(rows: int, width: int) -> Iterator[I64]:
    """Yield the positions of a cluster's rows, some at a time."""
    step = max(1, _BLOCK_BYTES // (4 * max(1, width)))
    for start in range(0, rows, step):
        yield np.arange(start, min(start + step, rows))


def rows_of(values: F32, order: I64) -> RowsAt:
    """Return a cluster's rows, which stand in an array at places in the order of their ids."""
    return lambda positions: values[order[positions]]


# --- rows in arrays -------------------------------------------------------------------------------


def checked_clusters(
    x: npt.ArrayLike, labels: npt.ArrayLike | None, ids: npt.ArrayLike | None
) -> tuple[F32, npt.NDArray[Any], U64]:
    """Return rows as float32, their labels and ids, as they were given to a method.

    Raises
    ------
    SelectionError
        Where there is no row, shapes do not fit or ids repeat.
    InvalidValueError
        Where a value is NaN or infinite.
    """
    values = float32_rows(x)
    n = len(values)
    if not n:
        raise SelectionError("There are no rows to select from.")
    names = checked_ids(ids, n)
    found = np.zeros(n, np.int32) if labels is None else np.asarray(labels)
    if found.shape != (n,) or found.dtype.kind not in "iu":
        raise SelectionError(
            f"Expected 'labels' as integers of shape ({n},), found {found.dtype} of shape "
            f"{found.shape}."
        )
    fine = np.isfinite(values).all(axis=1)
    if not fine.all():
        bad = np.sort(names[~fine])
        raise InvalidValueError(
            f"{len(bad):,} rows hold NaN or infinite values: {examples(bad)}. Mend them, or leave "
            "them out."
        )
    return values, found, names


def by_cluster(labels: npt.NDArray[Any], ids: U64) -> tuple[I64, I64]:
    """Return rows cluster by cluster, each cluster's in the order of their ids.

    Returns
    -------
    order : int64, shape (n,)
        Positions.
    offsets : int64, shape (k + 1,)
        Of the k clusters that have rows, by ascending label.
    """
    order = np.lexsort((ids, labels))
    ordered = labels[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate([[0], changes, [len(order)]]).astype(np.int64)
