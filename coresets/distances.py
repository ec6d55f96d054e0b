"""Distances between rows of features, all pairs of them.

``"l1"`` is Σ |a − b|, ``"l2"`` the Euclidean distance, ``"cosine"`` one minus the cosine, as half
the squared distance of the rows at length 1. All are computed from the differences, not from inner
products: equal rows are at distance 0 exactly. In float32; the loops are `distance_kernels`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..dataplane.cores import usable_cores

__all__ = ["Metric", "distances_to", "pairwise_distances", "unit_rows"]

F32 = npt.NDArray[np.float32]

Metric = Literal["l1", "l2", "cosine"]

_TILE = 32  # rows; two tiles of a few thousand features stay in a core's cache
_SHARED = 1 << 26  # differences that are worth a thread's start


def pairwise_distances(features: F32, metric: Metric, *, threads: int | None = None) -> F32:
    """Return the distances between all pairs of rows.

    Parameters
    ----------
    features : float32, shape (n, d)
        In any memory order; finite. For ``"cosine"`` no row may be all zeros.
    metric : {'l1', 'l2', 'cosine'}
    threads : int, optional
        Default: one a core, where there is enough to do.

    Returns
    -------
    float32, shape (n, n)
        Symmetric, its diagonal 0.
    """
    from .distance_kernels import l1_tile, squared_l2_tile

    n = len(features)
    rows = _padded(features, metric)
    fill = l1_tile if metric == "l1" else squared_l2_tile
    out = np.empty((n, n), np.float32)

    def column_of_tiles(start: int) -> None:
        here = rows[start : start + _TILE]
        found = np.empty((_TILE, _TILE), np.float32)
        for begin in range(0, start + 1, _TILE):
            there = rows[begin : begin + _TILE]
            fill(there, here, found)
            part = _finished(found[: min(_TILE, n - begin), : min(_TILE, n - start)], metric)
            out[begin : begin + _TILE, start : start + _TILE] = part
            out[start : start + _TILE, begin : begin + _TILE] = part.T

    starts = range(0, n, _TILE)[::-1]  # the longest ones first
    count = threads or min(8, usable_cores())
    if count == 1 or n * n * max(1, features.shape[1]) // 2 < _SHARED:
        for start in starts:
            column_of_tiles(start)
    else:
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(column_of_tiles, starts))
    return out


def distances_to(features: F32, others: F32, metric: Metric) -> F32:
    """Return how far rows are from others; on one thread.

    Parameters
    ----------
    features : float32, shape (n, d)
    others : float32, shape (k, d)
    metric : {'l1', 'l2', 'cosine'}

    Returns
    -------
    float32, shape (k, n)
        The same bits as between these rows in `pairwise_distances`.
    """
    from .distance_kernels import l1_tile, squared_l2_tile

    rows, columns = (_padded(x, metric) for x in (others, features))
    found = np.empty((len(rows), len(columns)), np.float32)
    fill = l1_tile if metric == "l1" else squared_l2_tile
    for i in range(0, len(rows), _TILE):
        for j in range(0, len(columns), _TILE):
            fill(rows[i : i + _TILE], columns[j : j + _TILE], found[i : i + _TILE, j : j + _TILE])
    return _finished(found[: len(others), : len(features)], metric)


def _padded(features: F32, metric: Metric) -> F32:
    """Return the rows as the loops take them, rows of zeros added to whole blocks."""
    from .distance_kernels import ROWS

    n = len(features)
    rows = np.zeros((-(-n // ROWS) * ROWS, features.shape[1]), np.float32)
    rows[:n] = unit_rows(features) if metric == "cosine" else features
    return rows


def _finished(sums: F32, metric: Metric) -> F32:
    """Turn what the loops sum up into distances, in place."""
    if metric == "l2":
        np.sqrt(sums, out=sums)
    elif metric == "cosine":
        sums *= np.float32(0.5)
    return sums


def unit_rows(features: F32) -> F32:
    """Return rows at length 1, shape (n, d); none may be all zeros."""
    exact = features.astype(np.float64)
    lengths = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    unit: F32 = (exact / lengths).astype(np.float32)
    return unit
