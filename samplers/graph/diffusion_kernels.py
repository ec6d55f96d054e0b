"""Compiled loops over an undirected graph: means of neighbours; edges that a cut severs."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def lazy_step(begin, neighbor, x, out, first, stop):
    """Fill in half of a row and half of the mean of its neighbours' rows, for some rows."""
    width = x.shape[1]
    for v in range(first, stop):
        degree = begin[v + 1] - begin[v]
        if degree == 0:
            out[v] = x[v]
            continue
        total = np.zeros(width)
        for z in range(begin[v], begin[v + 1]):
            u = neighbor[z]
            for j in range(width):
                total[j] += x[u, j]
        for j in range(width):
            out[v, j] = 0.5 * x[v, j] + 0.5 * total[j] / degree


@njit(cache=True, nogil=True)
def count_cut(colptr, row, labels):
    """Return how many edges join nodes of different labels."""
    found = 0
    for v in range(colptr.size - 1):
        for z in range(colptr[v], colptr[v + 1]):
            found += labels[row[z]] != labels[v]
    return found
