"""Compiled loops of the coresets: the same bits as their numpy forms, faster on large inputs."""

from __future__ import annotations

import numpy as np
from numba import njit

_BLOCK = 512
_SIGN = np.uint32(1 << 31)
_INFINITY = np.uint32(0x7F800000)


@njit(cache=True, inline="always")
def _ordered(bits):
    """Return the ordered word of a finite float32's bits, as `dataplane.radix.ordered` does."""
    word = bits ^ (_SIGN | (np.uint32(0) - (bits >> np.uint32(31))))
    return _SIGN if bits == _SIGN else word


@njit(cache=True, nogil=True)
def count_losses(bits, inside, shift, first, counts):
    """Add finite losses to a histogram: rows a bin, and the sum of what each is above its bin."""
    mask = (np.uint32(1) << shift) - np.uint32(1)
    last = np.int32(len(counts) - 1)
    places, above = np.empty(_BLOCK, np.int32), np.empty(_BLOCK, np.uint32)
    for start in range(0, bits.size, _BLOCK):
        size = min(_BLOCK, bits.size - start)
        for i in range(size):
            at = start + i
            word = _ordered(bits[at])
            counted = inside[at] & ((bits[at] & _INFINITY) != _INFINITY)
            place = np.int32(word >> shift) - np.int32(first)
            place = min(max(place, np.int32(0)), last)
            places[i] = place if counted else np.int32(-1)
            above[i] = word & mask
        for i in range(size):
            place = places[i]
            if place >= 0:
                counts[place, 0] += 1
                counts[place, 1] += np.int64(above[i])


@njit(cache=True, nogil=True)
def add_losses(losses, inside, lanes):
    """Add losses that are no NaN, each to the lane of its place; return how many these are."""
    count, width = 0, lanes.size
    for start in range(0, losses.size, width):
        part, mask = losses[start : start + width], inside[start : start + width]
        here = np.int32(0)  # as wide as a loss: the loop is made of vectors then
        for i in range(part.size):
            loss = part[i]
            counted = mask[i] & (loss == loss)
            lanes[i] += np.float64(loss if counted else np.float32(0))
            here += np.int32(counted)
        count += int(here)
    return count


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
    bins 0…j−1 begins; of the last row only the end of all bins is filled in, which nothing follows.
    Row by row by divide and conquer: the best cut never moves left as j grows.
    """
    bins = weights.size - 1
    cuts = np.zeros((k, bins + 1), np.int32)
    before = np.empty(bins + 1)
    for j in range(1, bins + 1):
        before[j] = squares[j] - sums[j] * sums[j] / weights[j]
    stack = np.empty((64, 4), np.int64)
    for c in range(1, k):
        cost = np.full(bins + 1, np.inf)
        stack[0] = (bins if c == k - 1 else c + 1, bins, c, bins - 1)
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
