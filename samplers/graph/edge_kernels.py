"""Compiled loops over edges that are sorted by target in pieces; see `edge_sort`."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def count_cells(target, shift, counts):
    """Add the number of edges into each cell of 2**shift nodes."""
    for i in range(target.size):
        counts[target[i] >> shift] += 1


@njit(cache=True, nogil=True)
def deal(source, target, values, shift, range_of, first, wide, records, starts):
    """Group edges by the range of their target, in their order; see `edge_sort` for a record.

    `starts` is 0 before and says after where each range's records begin.
    """
    for i in range(target.size):
        starts[range_of[target[i] >> shift] + 1] += 1
    for b in range(starts.size - 1):
        starts[b + 1] += starts[b]
    at = starts[:-1].copy()
    words = values.shape[1]
    begin = 4 if wide else 3
    for i in range(target.size):
        b = range_of[target[i] >> shift]
        place = at[b]
        at[b] = place + 1
        records[place, 0] = np.uint32(target[i] - first[b])
        records[place, 1] = np.uint32(i)
        records[place, 2] = np.uint32(source[i] & 0xFFFFFFFF)
        if wide:
            records[place, 3] = np.uint32(source[i] >> 32)
        for w in range(words):
            records[place, begin + w] = values[i, w]


@njit(cache=True, nogil=True)
def count_targets(records, degree):
    """Add the number of edges into each node of a range."""
    for i in range(records.shape[0]):
        degree[records[i, 0]] += 1


@njit(cache=True, nogil=True)
def place(records, first_edge, at, begin, wide, row, permutation, values):
    """Put edges at their positions from `begin` on; those outside the arrays only count.

    `at` says for each node of the range at which position its next edge goes.
    """
    words = values.shape[1]
    start = 4 if wide else 3
    size = row.size
    for i in range(records.shape[0]):
        local = records[i, 0]
        position = at[local]
        at[local] = position + 1
        p = position - begin
        if p < 0 or p >= size:
            continue
        low = np.int64(records[i, 2])
        row[p] = (np.int64(records[i, 3]) << 32) | low if wide else low
        permutation[p] = first_edge + np.int64(records[i, 1])
        for w in range(words):
            values[p, w] = records[i, start + w]
