"""Compiled loops over the edges of a graph: checks; sorts by target, within targets, both ways."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def first_outside(ids, below):
    """Return the first place of an id outside [0, below), or −1."""
    for i in range(ids.size):
        if ids[i] < 0 or ids[i] >= below:
            return i
    return -1


@njit(cache=True, nogil=True)
def first_descent(values):
    """Return the first place whose successor is smaller, or −1."""
    for i in range(values.size - 1):
        if values[i + 1] < values[i]:
            return i
    return -1


@njit(cache=True, nogil=True)
def count_into(target, colptr):
    """Fill in where the edges into each node begin; `colptr` is 0 before."""
    for i in range(target.size):
        colptr[target[i] + 1] += 1
    for v in range(colptr.size - 1):
        colptr[v + 1] += colptr[v]


@njit(cache=True, nogil=True)
def sort_into(source, target, colptr, row, permutation):
    """Put edges at their positions; those into one node keep their order."""
    at = colptr[:-1].copy()
    for i in range(source.size):
        place = at[target[i]]
        at[target[i]] += 1
        row[place] = source[i]
        permutation[place] = i


@njit(cache=True, nogil=True)
def unsorted_segment(colptr, values):
    """Return the first node the values of whose edges do not ascend, or −1."""
    for v in range(colptr.size - 1):
        for z in range(colptr[v] + 1, colptr[v + 1]):
            if not values[z - 1] <= values[z]:
                return v
    return -1


@njit(cache=True, nogil=True)
def sort_segments(colptr, values, order):
    """Fill in the order in which the values of the edges into each node ascend, stably."""
    for v in range(colptr.size - 1):
        begin, stop = colptr[v], colptr[v + 1]
        inside = np.argsort(values[begin:stop], kind="mergesort")
        for i in range(stop - begin):
            order[begin + i] = begin + inside[i]


@njit(cache=True, nogil=True)
def _sort_by(digit, order, sorted_order, begins):
    """Sort numbers of edges by a node of theirs, stably; `begins` has an entry more than nodes."""
    begins[:] = 0
    for z in range(order.size):
        begins[digit[order[z]] + 1] += 1
    for v in range(begins.size - 1):
        begins[v + 1] += begins[v]
    for z in range(order.size):
        v = digit[order[z]]
        sorted_order[begins[v]] = order[z]
        begins[v] += 1


@njit(cache=True, nogil=True)
def both_ways(source, target, edge, count):
    """Return each edge and its reverse, once each, by target, then by source.

    Of several edges between the same nodes the first stands for them; the reverse of an edge has
    its number, unless it is an edge itself.
    """
    size = source.size
    rows, cols = np.empty(2 * size, np.int64), np.empty(2 * size, np.int64)
    for z in range(size):
        rows[z], cols[z] = source[z], target[z]
        rows[size + z], cols[size + z] = target[z], source[z]
    begins = np.empty(count + 1, np.int64)
    order, other = np.arange(2 * size), np.empty(2 * size, np.int64)
    _sort_by(rows, order, other, begins)
    _sort_by(cols, other, order, begins)
    out = np.empty((3, 2 * size), np.int64)
    n = 0
    for z in range(2 * size):
        at = order[z]
        if n > 0 and out[0, n - 1] == rows[at] and out[1, n - 1] == cols[at]:
            continue
        out[0, n], out[1, n], out[2, n] = rows[at], cols[at], edge[at if at < size else at - size]
        n += 1
    return out[:, :n].copy()


@njit(cache=True, nogil=True)
def unsorted_by_source(colptr, row, values):
    """Return the first node the values of the sources of whose edges do not ascend, or −1."""
    for v in range(colptr.size - 1):
        for z in range(colptr[v] + 1, colptr[v + 1]):
            if not values[row[z - 1]] <= values[row[z]]:
                return v
    return -1
