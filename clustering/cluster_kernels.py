"""Compiled loops over the rows of a cluster: its centroid, distances to it, cosines between rows.

Rows are float32, sums float64, each made in one fixed order by one thread: rows one after another,
coordinates in four lanes that are added up in pairs. Products of two float32 are exact. So a value
is a function of its rows alone, whatever block, thread or processor computes it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_SIDE = 64  # rough cosines that are looked at together


@njit(cache=True, inline="always")
def _dot(a, b):
    whole = a.size - a.size % 4
    s0 = s1 = s2 = s3 = 0.0
    for t in range(0, whole, 4):
        s0 += np.float64(a[t]) * np.float64(b[t])
        s1 += np.float64(a[t + 1]) * np.float64(b[t + 1])
        s2 += np.float64(a[t + 2]) * np.float64(b[t + 2])
        s3 += np.float64(a[t + 3]) * np.float64(b[t + 3])
    for t in range(whole, a.size):
        s0 += np.float64(a[t]) * np.float64(b[t])
    return (s0 + s1) + (s2 + s3)


@njit(cache=True, inline="always")
def _cosine(dot, square, other):
    """Return a cosine of the product of two rows and their squares; 0 of a row of zeros.

    Of equal rows it is 1 exactly: the root of a rounded square is what was squared.
    """
    both = square * other
    return dot / np.sqrt(both) if both > 0.0 else 0.0


@njit(cache=True, nogil=True)
def to_unit(x, out, squares):
    """Fill in rows at length 1, rounded to float32, and their squared lengths; zeros stay."""
    for i in range(x.shape[0]):
        squares[i] = _dot(x[i], x[i])
        length = np.sqrt(squares[i])
        for t in range(x.shape[1]):
            out[i, t] = np.float64(x[i, t]) / length if length > 0.0 else 0.0


@njit(cache=True, nogil=True)
def add_rows(x, unit, total):
    """Add rows to a sum, float64; with `unit` at length 1, zeros left out."""
    for i in range(x.shape[0]):
        length = 1.0
        if unit:
            length = np.sqrt(_dot(x[i], x[i]))
            if length == 0.0:
                continue
        for t in range(x.shape[1]):
            total[t] += np.float64(x[i, t]) / length


@njit(cache=True, nogil=True)
def center_distances(x, center, cosine, out):
    """Fill in how far rows are from a center, float64: 1 − cosine, or Euclidean."""
    square = _dot(center, center)
    away = np.empty(x.shape[1])
    for i in range(x.shape[0]):
        if cosine:
            near = _cosine(_dot(x[i], center), _dot(x[i], x[i]), square)
            out[i] = max(0.0, 1.0 - near)
        else:
            for t in range(away.size):
                away[t] = np.float64(x[i, t]) - center[t]
            out[i] = np.sqrt(_dot(away, away))


@njit(cache=True, nogil=True)
def compare(
    rough,
    low,
    high,
    threshold,
    later,
    later_squares,
    first,
    earlier,
    earlier_squares,
    places,
    kept_only,
    original,
    cosines,
):
    """Find near-duplicates between rows and others that may come before them; count the pairs.

    ``rough`` are float32 cosines of ``later``, at the places from ``first`` on, and ``earlier``, at
    ascending ``places``. One above ``high`` is surely above the threshold, one up to ``low`` surely
    not; all others are computed in float64. A row's first near-duplicate goes to ``original``, by
    place, and their cosine to ``cosines``. With ``kept_only`` rows that have one count no more.
    """
    pairs = 0
    for i in range(rough.shape[0]):
        mine = first + i
        for start in range(0, places.size, _SIDE):
            if places[start] >= mine:
                break
            stop = min(start + _SIDE, places.size)
            near = np.int32(0)
            for j in range(start, stop):
                near += np.int32(rough[i, j] > low)
            if near == 0:
                continue
            for j in range(start, stop):
                if rough[i, j] <= low or places[j] >= mine:
                    continue
                if kept_only and original[places[j]] >= 0:
                    continue
                fresh = original[mine] < 0
                if fresh or rough[i, j] <= high:
                    dot = _dot(later[i], earlier[j])
                    cosine = _cosine(dot, later_squares[i], earlier_squares[j])
                    if cosine <= threshold:
                        continue
                    if fresh:
                        original[mine], cosines[mine] = places[j], cosine
                pairs += 1
    return pairs
