"""Compiled loops of k-means: exact distances, sums in fixed point, k-means++.

A squared distance is summed up in float64, coordinate by coordinate in their order, wherever it
counts: a row's distance to a center has the same bits in all loops. Loops run over rows or centers
side by side, so that they are vectorised without reordering a sum. None starts threads; all release
the interpreter's lock.
"""

from __future__ import annotations

import numpy as np
from numba import njit

LANES = 256  # rows that are summed up side by side
_SIDE = 32  # distances that are compared side by side


@njit(cache=True, nogil=True, fastmath={"reassoc", "nsz", "contract"})
def shift_rows(x, middle, factor, out, lengths):
    """Fill in (x − middle) · factor, rounded to float32, and the rows' lengths, roughly."""
    for i in range(x.shape[0]):
        total = np.float32(0)
        for t in range(x.shape[1]):
            value = (x[i, t] - middle[t]) * factor
            out[i, t] = value
            total += value * value
        lengths[i] = np.sqrt(np.float64(total))


@njit(cache=True, nogil=True)
def two_nearest(distances, first, labels, nearest, second):
    """Bring in the distances of rows to more centers, those from `first` up; shape (n, k).

    ``labels``, of shape (n, 1), ``nearest`` and ``second`` are which center is nearest, how far it
    is, and how far the next one is.
    """
    n, k = distances.shape
    whole = k - k % _SIDE
    low, next_ = np.empty(_SIDE, np.float32), np.empty(_SIDE, np.float32)
    place = np.empty(_SIDE, np.int32)
    for i in range(n):
        low[:], next_[:], place[:] = np.inf, np.inf, 0
        for start in range(0, whole, _SIDE):
            for j in range(_SIDE):
                here = distances[i, start + j]
                next_[j] = min(next_[j], max(here, low[j]))
                place[j] = start if here < low[j] else place[j]
                low[j] = min(here, low[j])
        label, a, b = labels[i, 0], nearest[i], second[i]
        for j in range(_SIDE):
            if low[j] < a:
                label, a, b = first + place[j] + j, low[j], min(a, next_[j])
            else:
                b = min(b, low[j])
        for j in range(whole, k):
            here = distances[i, j]
            if here < a:
                label, a, b = first + j, here, a
            elif here < b:
                b = here
        labels[i, 0], nearest[i], second[i] = label, a, b


@njit(cache=True, nogil=True)
def exact_distances(x, rows, centers, labels, out):
    """Fill in the squared distances of rows, by their places in x, to centers."""
    width = x.shape[1]
    whole = rows.size - rows.size % 4
    for i in range(0, whole, 4):  # four sums at a time: each waits for its last addition
        x0, x1, x2, x3 = x[rows[i]], x[rows[i + 1]], x[rows[i + 2]], x[rows[i + 3]]
        c0, c1 = centers[labels[i]], centers[labels[i + 1]]
        c2, c3 = centers[labels[i + 2]], centers[labels[i + 3]]
        a = b = c = d = 0.0
        for t in range(width):
            e, f = np.float64(x0[t]) - np.float64(c0[t]), np.float64(x1[t]) - np.float64(c1[t])
            g, h = np.float64(x2[t]) - np.float64(c2[t]), np.float64(x3[t]) - np.float64(c3[t])
            a += e * e
            b += f * f
            c += g * g
            d += h * h
        out[i], out[i + 1], out[i + 2], out[i + 3] = a, b, c, d
    for i in range(whole, rows.size):
        total = 0.0
        for t in range(width):
            away = np.float64(x[rows[i], t]) - np.float64(centers[labels[i], t])
            total += away * away
        out[i] = total


@njit(cache=True, nogil=True)
def exact_nearest(x, rows, centers, rough, lengths, last, error, tiny, found):
    """Fill in the nearest centers of some rows, shape (n, p); a tie goes to the lower center.

    ``rough`` are these rows' distances to all centers, off by at most ``error``; a center that is
    surely farther than ``last``, that of the last one to be found, is passed over.
    """
    k, p = len(centers), found.shape[1]
    rivals, row, away, best = np.empty(k, np.int64), np.empty(k, np.int64), np.empty(k), np.empty(p)
    for r in range(rows.size):
        count = 0
        for j in range(k):
            here = max(np.float64(rough[r, j]), 0.0)
            reach = 2.0 * lengths[r] + np.sqrt(here)
            if here - max(np.float64(last[r]), 0.0) > 2.0 * (error * reach * reach + tiny):
                continue
            rivals[count] = j
            count += 1
        row[:count] = rows[r]
        exact_distances(x, row[:count], centers, rivals[:count], away)
        mine = found[rows[r]]
        size = 0
        for j in range(count):
            if size == p and away[j] >= best[p - 1]:
                continue
            size = min(p, size + 1)
            at = size - 1
            while at > 0 and away[j] < best[at - 1]:
                best[at], mine[at] = best[at - 1], mine[at - 1]
                at -= 1
            best[at], mine[at] = away[j], rivals[j]


@njit(cache=True, nogil=True)
def add_rows(x, labels, factors, largest, sums, counts):
    """Add rows in fixed point to their clusters' sums; return the first that is out of range.

    −1 where all are within ``largest``, the magnitude that the factors were chosen for.
    """
    outside = -1
    for i in range(x.shape[0]):
        label = labels[i]
        fits = True
        for t in range(x.shape[1]):
            fits &= abs(x[i, t]) <= largest[t]
        if not fits:
            outside = i if outside < 0 else outside
            continue
        counts[label] += 1
        for t in range(x.shape[1]):
            sums[label, t] += np.int64(np.rint(np.float64(x[i, t]) * factors[t]))
    return outside


@njit(cache=True, nogil=True)
def fixed_sum(values, factor):
    """Return the sum of round(value · factor) in two parts, high · 2³² + low."""
    high, low = np.int64(0), np.int64(0)
    for i in range(values.size):
        word = np.int64(np.rint(values[i] * factor))
        high += word >> 32
        low += word & 0xFFFFFFFF
    return high, low


@njit(cache=True, nogil=True)
def to_unit(x, out):
    """Fill in rows at length 1; return the first that is all zeros, or −1."""
    zero = -1
    for i in range(x.shape[0]):
        total = 0.0
        for t in range(x.shape[1]):
            total += np.float64(x[i, t]) * np.float64(x[i, t])
        if total == 0.0:
            zero = i if zero < 0 else zero
            out[i] = 0
            continue
        length = np.sqrt(total)
        for t in range(x.shape[1]):
            out[i, t] = np.float64(x[i, t]) / length
    return zero


@njit(cache=True, nogil=True)
def come_near(blocks, candidates, near, found, costs):
    """Fill in how near rows are to a candidate, or were without it, and the sums of that.

    Parameters
    ----------
    blocks : float32, shape (blocks, d, LANES)
        Rows, transposed.
    candidates : float32, shape (c, d)
    near : float32, shape (blocks, LANES)
    found : float32, shape (c, blocks, LANES)
    costs : float64, shape (c,)
    """
    width = blocks.shape[1]
    whole = width - width % 8
    sums, totals = np.empty((costs.size, LANES), np.float32), np.zeros((costs.size, LANES))
    for b in range(blocks.shape[0]):
        sums[:] = 0
        for t in range(0, whole, 8):
            for c in range(costs.size):
                v0, v1, v2, v3, v4, v5, v6, v7 = candidates[c, t : t + 8]
                for i in range(LANES):
                    a0, a1 = blocks[b, t, i] - v0, blocks[b, t + 1, i] - v1
                    a2, a3 = blocks[b, t + 2, i] - v2, blocks[b, t + 3, i] - v3
                    a4, a5 = blocks[b, t + 4, i] - v4, blocks[b, t + 5, i] - v5
                    a6, a7 = blocks[b, t + 6, i] - v6, blocks[b, t + 7, i] - v7
                    here = sums[c, i] + a0 * a0 + a1 * a1 + a2 * a2 + a3 * a3
                    sums[c, i] = here + a4 * a4 + a5 * a5 + a6 * a6 + a7 * a7
        for c in range(costs.size):
            for t in range(whole, width):
                for i in range(LANES):
                    away = blocks[b, t, i] - candidates[c, t]
                    sums[c, i] += away * away
            for i in range(LANES):
                here = min(sums[c, i], near[b, i])
                found[c, b, i] = here
                totals[c, i] += here
    for c in range(costs.size):
        costs[c] = 0.0
        for i in range(LANES):
            costs[c] += totals[c, i]


@njit(cache=True, nogil=True)
def hash_rows(words, out):
    """Fill in a 64-bit hash of each row of 32-bit words."""
    for i in range(words.shape[0]):
        state = np.uint64(0x9E3779B97F4A7C15)
        for t in range(words.shape[1]):
            state = (state ^ np.uint64(words[i, t])) * np.uint64(0xBF58476D1CE4E5B9)
            state ^= state >> np.uint64(29)
        state *= np.uint64(0x94D049BB133111EB)
        out[i] = state ^ (state >> np.uint64(32))
