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
def _gain(far, near, weight):  # type: ignore[no-untyped-def]
    """Return by how much the cost falls when a candidate is added."""
    total = 0.0
    for i in range(near.size):
        total += weight[i] * max(np.float64(near[i]) - np.float64(far[i]), 0.0)
    return total


@njit(cache=True, nogil=True)
def _sink(heap, bound, size, at):  # type: ignore[no-untyped-def]
    """Move an entry of a heap down to where its bound belongs."""
    entry = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _before(heap[child + 1], heap[child], bound):
            child += 1
        if not _before(heap[child], entry, bound):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry


@njit(cache=True, inline="always")
def _before(a, b, bound):  # type: ignore[no-untyped-def]
    return bound[a] > bound[b] or (bound[a] == bound[b] and a < b)


@njit(cache=True, nogil=True)
def greedy(far, weight, farthest, picks, gains, owner, near):  # type: ignore[no-untyped-def]
    """Choose candidates, each time the one of the largest gain; fill in all that is known of them.

    Lazily: a gain only falls from round to round, so one that was computed earlier is a bound, and
    only those that come first by their bounds are computed anew (Minoux, 1978).
    """
    candidates, k = far.shape[0], picks.size
    near[:] = farthest
    bound, fresh = np.empty(candidates), np.zeros(candidates, np.int64)
    heap = np.arange(candidates)
    for j in range(candidates):
        bound[j] = _gain(far[j], near, weight)
    size = candidates
    for at in range(size // 2 - 1, -1, -1):
        _sink(heap, bound, size, at)
    for number in range(k):
        while fresh[heap[0]] != number:
            j = heap[0]
            bound[j], fresh[j] = _gain(far[j], near, weight), number
            _sink(heap, bound, size, 0)
        pick = heap[0]
        picks[number], gains[number] = pick, bound[pick]
        size -= 1
        heap[0] = heap[size]
        _sink(heap, bound, size, 0)
        for i in range(near.size):
            if far[pick, i] < near[i]:
                near[i], owner[i] = far[pick, i], number


@njit(cache=True, nogil=True)
def swap(far, weight, picks, passes):  # type: ignore[no-untyped-def]
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
def _nearest(far, weight, picks, owner, second, loss):  # type: ignore[no-untyped-def]
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
