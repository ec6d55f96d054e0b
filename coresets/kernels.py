"""Compiled loops of the coresets: the same bits as their numpy forms, faster on large inputs."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def count_losses(words, shift, first, counts, low_sums):
    """Add ordered words to a histogram: rows a bin, and the sum of what each is above its bin."""
    mask = (np.uint32(1) << shift) - np.uint32(1)
    for i in range(words.size):
        place = np.int64(words[i] >> shift) - first
        counts[place] += 1
        low_sums[place] += np.int64(words[i] & mask)


@njit(cache=True, nogil=True)
def label_losses(words, shift, first, labels, out):
    """Write the label of the bin of each ordered word; beyond the bins that of the nearest."""
    for i in range(words.size):
        place = np.int64(words[i] >> shift) - first
        out[i] = labels[min(max(place, 0), labels.size - 1)]


@njit(cache=True, nogil=True)
def best_cuts(weights, sums, squares, k):
    """Return for each number of clusters c ≤ k and each end j the last cut of the best clustering.

    ``weights``, ``sums`` and ``squares`` are prefix sums, from 0, of the bins' rows, of rows · mean
    and of rows · mean². Row c of the answer holds, at j, where the last of c + 1 clusters of the
    bins 0…j−1 begins. Row by row by divide and conquer: the best cut never moves left as j grows.
    """
    bins = weights.size - 1
    cuts = np.zeros((k, bins + 1), np.int32)
    before = np.empty(bins + 1)
    for j in range(1, bins + 1):
        before[j] = squares[j] - sums[j] * sums[j] / weights[j]
    stack = np.empty((64, 4), np.int64)
    for c in range(1, k):
        cost = np.full(bins + 1, np.inf)
        stack[0] = (c + 1, bins, c, bins - 1)
        height = 1
        while height:
            height -= 1
            low, high, first, last = stack[height]
            middle = (low + high) >> 1
            best, place = np.inf, first
            for i in range(first, min(middle - 1, last) + 1):
                w, s = weights[middle] - weights[i], sums[middle] - sums[i]
                found = before[i] + max(squares[middle] - squares[i] - s * s / w, 0.0)
                if found < best:
                    best, place = found, i
            cost[middle], cuts[c, middle] = best, place
            if low < middle:
                stack[height] = (low, middle - 1, first, place)
                height += 1
            if middle < high:
                stack[height] = (middle + 1, high, place, last)
                height += 1
        before = cost
    return cuts
