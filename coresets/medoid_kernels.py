"""Compiled loops of facility location: greedy choice of medoids, and swaps that improve it.

``far[j, i]`` is how far row i is from candidate j, float32; sums are float64. A tie goes to the
smaller index. Sums may be reordered, so that they are vectorised, but always in the same way; they
then only fall as rows come near, as the lazy search needs.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_LOOSE = {"reassoc", "nsz", "contract"}
_SLACK = 1e-9  # what an exchange must gain at least, of what it moves


@njit(cache=True, nogil=True, fastmath=_LOOSE)
def _gain(far, near, weight):
    """Return by how much the cost falls when a candidate is added."""
    total = 0.0
    for i in range(near.size):
        total += weight[i] * max(np.float64(near[i]) - np.float64(far[i]), 0.0)
    return total


@njit(cache=True, inline="always")
def _sink(bounds, heap, size, at, bound, entry):
    """Put an entry of a heap at a place, or below it where its bound belongs; the larger first."""
    child = 2 * at + 1
    while child < size:
        other = child + 1
        if other < size and (
            bounds[other] > bounds[child]
            or (bounds[other] == bounds[child] and heap[other] < heap[child])
        ):
            child = other
        if bounds[child] < bound or (bounds[child] == bound and heap[child] > entry):
            break
        bounds[at], heap[at] = bounds[child], heap[child]
        at, child = child, 2 * child + 1
    bounds[at], heap[at] = bound, entry


@njit(cache=True, nogil=True)
def _come_near(far, near, owner, number):
    """Note who is nearer to a new choice; each entry is written, so that it is vectorised."""
    for i in range(near.size):
        owner[i] = number if far[i] < near[i] else owner[i]
        near[i] = far[i] if far[i] < near[i] else near[i]


@njit(cache=True, nogil=True)
def greedy(far, weight, farthest, picks, gains, owner, near):
    """Choose candidates, each time the one of the largest gain; fill in all that is known of them.

    Lazily: a gain only falls from round to round, so one that was computed earlier is a bound, and
    only those that come first by their bounds are computed anew (Minoux, 1978).
    """
    size, k = far.shape[0], picks.size
    near[:] = farthest
    fresh, heap, bounds = np.zeros(size, np.int64), np.arange(size), np.empty(size)
    for j in range(size):
        bounds[j] = _gain(far[j], near, weight)
    for at in range(size // 2 - 1, -1, -1):
        _sink(bounds, heap, size, at, bounds[at], heap[at])
    for number in range(k):
        while fresh[heap[0]] != number:
            j = heap[0]
            fresh[j] = number
            _sink(bounds, heap, size, 0, _gain(far[j], near, weight), j)
        pick = heap[0]
        picks[number], gains[number] = pick, bounds[0]
        size -= 1
        _sink(bounds, heap, size, 0, bounds[size], heap[size])
        _come_near(far[pick], near, owner, number)


@njit(cache=True, nogil=True)
def stochastic_greedy(far, weight, farthest, draws, picks, gains, owner, near):
    """Choose candidates, each time the best of some that are drawn of those left.

    ``draws`` are random numbers, one for each look; shape (k, looks).
    """
    left = np.arange(far.shape[0])
    near[:] = farthest
    size = left.size
    for number in range(picks.size):
        place, best = -1, -1.0
        for turn in range(min(draws.shape[1], size)):
            # The candidates that were looked at come first: each is looked at once.
            drawn = turn + np.int64(draws[number, turn] % np.uint64(size - turn))
            left[turn], left[drawn] = left[drawn], left[turn]
            gain = _gain(far[left[turn]], near, weight)
            if gain > best or (gain == best and left[turn] < left[place]):
                place, best = turn, gain
        picks[number], gains[number] = left[place], best
        _come_near(far[left[place]], near, owner, number)
        size -= 1
        left[place] = left[size]


@njit(cache=True, nogil=True)
def gains_left(far, near):
    """Return what each candidate would gain yet; float64, shape (candidates,)."""
    out, ones = np.empty(far.shape[0]), np.ones(near.size)
    for j in range(far.shape[0]):
        out[j] = _gain(far[j], near, ones)
    return out


@njit(cache=True, inline="always")
def _interval_cost(at, sums, start, stop):
    """Return the sum of distances of sorted numbers to the middle one of them."""
    middle = (start + stop - 1) // 2
    below = at[middle] * (middle - start) - (sums[middle] - sums[start])
    return below + (sums[stop] - sums[middle]) - at[middle] * (stop - middle)


@njit(cache=True, nogil=True)
def median_cuts(at, sums, k):
    """Return where the last of c + 1 intervals of the first j numbers begins; int32, (k, n + 1).

    The best c + 1 intervals of the first j are the best c of the first i and one more; that i
    never moves left as j grows, so the middle j of a range bounds those on either side. Ties go to
    the lower cut. ``at`` ascends, ``sums`` are its prefix sums.
    """
    n = at.size
    table = np.zeros((k, n + 1), np.int32)
    before, after = np.empty(n + 1), np.empty(n + 1)
    for j in range(1, n + 1):
        before[j] = _interval_cost(at, sums, 0, j)
    stack = np.empty((64, 4), np.int64)
    for c in range(1, k):
        stack[0] = (c + 1, n, c, n - 1)
        size = 1
        while size:
            size -= 1
            first, last, low, high = stack[size]
            j = (first + last) // 2
            best, cut = np.inf, low
            for i in range(low, min(high, j - 1) + 1):
                cost = before[i] + _interval_cost(at, sums, i, j)
                if cost < best:
                    best, cut = cost, i
            after[j], table[c, j] = best, cut
            if first < j:
                stack[size] = (first, j - 1, low, cut)
                size += 1
            if j < last:
                stack[size] = (j + 1, last, cut, high)
                size += 1
        before, after = after, before
    return table


@njit(cache=True, nogil=True)
def take_in(far, gains, owner, near):
    """Find which of k chosen ones is nearest to each row; add what each gained when it was chosen.

    ``far`` is of shape (k, rows). To the first gain the rows' distances are added, negative.
    """
    k, rows = far.shape
    for i in range(rows):
        owner[i], near[i] = 0, far[0, i]
        gains[0] -= np.float64(near[i])
        for number in range(1, k):
            here = far[number, i]
            if here < near[i]:
                gains[number] += np.float64(near[i]) - np.float64(here)
                owner[i], near[i] = number, here


@njit(cache=True, nogil=True)
def swap(far, weight, picks, passes):
    """Exchange chosen candidates for others as long as that lowers the cost; return the exchanges.

    The eager search of FasterPAM (Schubert and Rousseeuw, Information Systems 101, 2021): a
    candidate is taken for the chosen one whose loss it makes up for best, as soon as it pays.
    """
    candidates, rows = far.shape
    k = picks.size
    if k < 2:  # the best one alone is what greedy took
        return 0
    owner, second = np.empty(rows, np.int64), np.empty(rows, np.int64)
    chosen = np.zeros(candidates, np.bool_)
    loss, change = np.empty(k), np.empty(k)
    for number in range(k):
        chosen[picks[number]] = True
    _nearest(far, weight, picks, owner, second, loss)
    exchanges = since = 0
    for turn in range(passes * candidates):
        j = turn % candidates
        if since == candidates:
            break
        since += 1
        if chosen[j]:
            continue
        change[:] = loss
        shared = 0.0
        for i in range(rows):
            near, after = far[picks[owner[i]], i], far[picks[second[i]], i]
            here = far[j, i]
            if here < near:
                shared += weight[i] * (np.float64(here) - np.float64(near))
                change[owner[i]] += weight[i] * (np.float64(near) - np.float64(after))
            elif here < after:
                change[owner[i]] += weight[i] * (np.float64(here) - np.float64(after))
        place = np.argmin(change)
        if change[place] + shared < -_SLACK * abs(shared):
            chosen[picks[place]], chosen[j] = False, True
            picks[place] = j
            _nearest(far, weight, picks, owner, second, loss)
            exchanges += 1
            since = 0
    return exchanges


@njit(cache=True, nogil=True)
def _nearest(far, weight, picks, owner, second, loss):
    """Fill in who of the chosen is nearest to each row, who comes next, and what each one saves."""
    loss[:] = 0.0
    for i in range(owner.size):
        a, b = 0, 1
        if far[picks[1], i] < far[picks[0], i]:
            a, b = 1, 0
        for number in range(2, picks.size):
            here = far[picks[number], i]
            if here < far[picks[a], i]:
                a, b = number, a
            elif here < far[picks[b], i]:
                b = number
        owner[i], second[i] = a, b
        near, after = far[picks[a], i], far[picks[b], i]
        loss[a] += weight[i] * (np.float64(after) - np.float64(near))
