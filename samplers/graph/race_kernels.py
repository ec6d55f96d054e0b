"""Compiled loops of the draws in which edges race: those with the smallest keys are taken.

**LABOR** (Balin and Çatalyürek, NeurIPS 2023, in its form of exactly k edges, sequential Poisson
sampling): every source node u has one number of the batch and hop, whatever node it is drawn for,
``mix(mix(K + (h + 1)·G) ^ u·G)``; a node takes the k edges whose sources have the smallest. For one
node that is a uniform draw without replacement; frontier nodes that share neighbours tend to take
the same ones, so fewer distinct rows are gathered. Parallel edges are taken together.

**Weighted without replacement** (Efraimidis and Spirakis, 2006): the k edges with the smallest
``−log(u) / w``, u uniform in (0, 1): the distribution of drawing one after the other, each with a
probability in proportion to its weight among those that are left. Of many edges, a few are drawn by
their running sums of weights instead, and drawn again where they were taken before: the same
distribution. Where that takes too many draws, what is missing is raced for among the rest, which is
the distribution again, since no draw depends on how many others were in vain.

Draws are those of `kernels`; a uniform number is ``(bits >> 11 + ½) · 2**−53``.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

_G = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_S11 = np.uint64(11)
_RACED = 64  # edges up to which all of them race
_TRIES = 4  # draws an edge to be taken, before the rest race
_RACE = np.uint64(1) << np.uint64(40)  # first number of the draws of a race


@njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(cache=True, inline="always")
def _node_key(key, node, slot):
    own = _mix(key ^ (np.uint64(node) * _G))
    return _mix(own + np.uint64(slot) * _G) if slot != 0 else own


@njit(cache=True, inline="always")
def _uniform(own, number):
    bits = _mix(own + (np.uint64(number) + np.uint64(1)) * _G)
    return (np.float64(bits >> _S11) + 0.5) * 2.0**-53


@njit(cache=True, inline="always")
def _later(key, place, other_key, other_place):
    """Whether an entry comes behind another: by key, then by place."""
    return key > other_key or (key == other_key and place > other_place)


@njit(cache=True, inline="always")
def _sink(keys, places, size, key, place):
    """Put an entry at the top of a heap, the last one first, and let it sink."""
    at, child = 0, 1
    while child < size:
        if child + 1 < size and _later(
            keys[child + 1], places[child + 1], keys[child], places[child]
        ):
            child += 1
        if not _later(keys[child], places[child], key, place):
            break
        keys[at], places[at] = keys[child], places[child]
        at, child = child, 2 * child + 1
    keys[at], places[at] = key, place


@njit(cache=True, inline="always")
def _rise(keys, places, size, key, place):
    """Add an entry to a heap of `size`."""
    at = size
    while at > 0 and _later(key, place, keys[(at - 1) >> 1], places[(at - 1) >> 1]):
        keys[at], places[at] = keys[(at - 1) >> 1], places[(at - 1) >> 1]
        at = (at - 1) >> 1
    keys[at], places[at] = key, place


@njit(cache=True, nogil=True)
def pick_labor(
    key, nodes, hop, start, degree, ends, row, first, holes, hole_ends, edge, local, source
):  # fmt: skip
    """Fill in the edges taken of each node, the local number of that node, and their sources."""
    shared = _mix(key + np.uint64(hop + 1) * _G)
    most = 0
    for i in range(nodes.size):
        most = max(most, ends[i + 1] - ends[i])
    keys, places = np.empty(most, np.uint64), np.empty(most, np.int64)
    for i in range(nodes.size):
        at, take = ends[i], ends[i + 1] - ends[i]
        hole = hole_ends[i] if holes.size else 0
        bars = hole_ends[i + 1] if holes.size else 0
        size = 0
        for place in range(start[i], start[i] + degree[i] + bars - hole):
            if hole < bars and holes[hole] == place:
                hole += 1
                continue
            if size == take:
                if take == 0:
                    break
                own = _mix(shared ^ (np.uint64(row[place]) * _G))
                if own < keys[0]:
                    _sink(keys, places, size, own, place)
            else:
                own = _mix(shared ^ (np.uint64(row[place]) * _G))
                _rise(keys, places, size, own, place)
                size += 1
        places[:take].sort()
        for j in range(take):
            edge[at + j], local[at + j] = places[j], first + i
            source[at + j] = row[places[j]]


@njit(cache=True)
def _race(own, begin, stop, weight, holes, hole, bars, taken, have, take, keys, places):
    """Add the missing of `take` edges to the `have` that are taken: the first of a race."""
    before = np.sort(taken[:have])
    known, size, missing = 0, 0, take - have
    for place in range(begin, stop):
        if hole < bars and holes[hole] == place:
            hole += 1
            continue
        if known < have and before[known] == place:
            known += 1
            continue
        late = -math.log(_uniform(own, _RACE + np.uint64(place - begin))) / weight[place]
        if size < missing:
            _rise(keys, places, size, late, place)
            size += 1
        elif late < keys[0]:
            _sink(keys, places, size, late, place)
    places[:missing].sort()
    for j in range(missing):
        taken[have + j] = places[j]


@njit(cache=True, inline="always")
def _by_weight(own, number, begin, stop, sums):
    """Return an edge drawn in proportion to the weights: the first whose running sum is above."""
    mark = _uniform(own, number) * sums[stop - 1]
    low, high = begin, stop - 1
    while low < high:
        middle = (low + high) >> 1
        if sums[middle] > mark:
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, inline="always")
def _among(values, count, value):
    found = False
    for j in range(count):
        found |= values[j] == value
    return found


@njit(cache=True, nogil=True)
def pick_weighted(
    key, nodes, slots, start, degree, ends, replace, row, first, holes, hole_ends, weight, sums,
    edge, local, source,
):  # fmt: skip
    """Fill in the edges taken of each node, the local number of that node, and their sources.

    ``sums`` are the running sums of the weights of the edges into each node. `start` is where these
    begin.
    """
    most = 1
    for i in range(nodes.size):
        most = max(most, ends[i + 1] - ends[i])
    keys, places = np.empty(most, np.float64), np.empty(most, np.int64)
    for i in range(nodes.size):
        at, take, begin = ends[i], ends[i + 1] - ends[i], start[i]
        hole = hole_ends[i] if holes.size else 0
        bars = hole_ends[i + 1] if holes.size else 0
        stop = begin + degree[i] + bars - hole
        taken = edge[at : at + take]
        own = _node_key(key, nodes[i], slots[i] if slots.size else 0)
        have = 0
        if take == degree[i] and not replace:
            barred = hole
            for place in range(begin, stop):
                if barred < bars and holes[barred] == place:
                    barred += 1
                else:
                    taken[have] = place
                    have += 1
        elif replace or degree[i] > max(_RACED, 4 * take):
            number, most_draws = 0, _TRIES * take + 32
            while have < take and number < most_draws:
                place = _by_weight(own, number, begin, stop, sums)
                number += 1
                inside = holes[hole:bars] if bars > hole else holes[:0]
                if not _among(inside, inside.size, place) and (
                    replace or not _among(taken, have, place)
                ):
                    taken[have] = place
                    have += 1
        if replace:
            while have < take:  # what may be drawn weighs little: each draw is a race of its own
                again = _mix(own ^ (np.uint64(have) * _G))
                _race(
                    again, begin, stop, weight, holes, hole, bars,
                    taken[have : have + 1], 0, 1, keys, places,
                )  # fmt: skip
                have += 1
        elif have < take:
            _race(
                own, begin, stop, weight, holes, hole, bars, taken, have, take, keys, places
            )  # fmt: skip
        for z in range(at, at + take):
            local[z] = first + i
            source[z] = row[edge[z]]


@njit(cache=True, nogil=True)
def running_sums(colptr, weight, sums):
    """Fill in the running sums of the weights of the edges into each node."""
    for v in range(colptr.size - 1):
        total = 0.0
        for z in range(colptr[v], colptr[v + 1]):
            total += weight[z]
            sums[z] = total


@njit(cache=True, nogil=True)
def first_unfit(weight):
    """Return the first place of a weight that is not positive and finite, or −1."""
    for z in range(weight.size):
        if not 0.0 < weight[z] < np.inf:
            return z
    return -1
