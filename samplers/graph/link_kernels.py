"""Compiled loops for batches of links: edges that may not be drawn, and pairs that are no edges."""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_G = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_S11 = np.uint64(11)


@intrinsic
def _high(typingctx, x, y):
    """Return the upper half of the 128-bit product of two uint64."""

    def codegen(context, builder, signature, args):
        wide = ir.IntType(128)
        product = builder.mul(*(builder.zext(a, wide) for a in args))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), codegen


@njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(cache=True, inline="always")
def _bits(key, number, attempt):
    return _mix(_mix(key + np.uint64(number + 1) * _G) + np.uint64(attempt) * _G)


@njit(cache=True, nogil=True)
def draw_nodes(key, attempt, open_numbers, order, sums, eligible, out):
    """Draw a node for each of some numbers, among the first `eligible` of an order.

    `order` is empty where it is that of the numbers, `sums` where all nodes weigh the same.
    """
    for i in range(open_numbers.size):
        number = open_numbers[i]
        below, bits = eligible[number], _bits(key, number, attempt)
        if sums.size == 0:
            place = np.int64(_high(bits, np.uint64(below)))
        else:
            mark = np.float64(bits >> _S11) * 2.0**-53 * sums[below - 1]
            place, high = np.int64(0), below - 1
            while place < high:
                middle = (place + high) >> 1
                if sums[middle] > mark:
                    high = middle
                else:
                    place = middle + 1
        out[number] = order[place] if order.size else place


@njit(cache=True, nogil=True)
def _first_pair(pairs, target):
    """Return where the pairs of a target begin; pairs are (target, source), ascending."""
    low, high = 0, pairs.shape[1]
    while low < high:
        middle = (low + high) >> 1
        if pairs[0, middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, inline="always")
def _is_pair(pairs, at, target, source):
    """Whether (target, source) is among the pairs from `at` on, where those of the target begin."""
    while at < pairs.shape[1] and pairs[0, at] == target:
        if pairs[1, at] == source:
            return True
        at += 1
    return False


@njit(cache=True, nogil=True)
def still_linked(source, target, numbers, colptr, row, pairs, linked):
    """Mark the numbers whose source leads to their target: in the graph, or among some pairs."""
    for i in range(numbers.size):
        u, v = source[numbers[i]], target[numbers[i]]
        found = _is_pair(pairs, _first_pair(pairs, v), v, u)
        for z in range(colptr[v], colptr[v + 1]):
            if found:
                break
            found = row[z] == u
        linked[i] = found


@njit(cache=True, nogil=True)
def count_holes(nodes, start, degree, row, pairs, hole_ends):
    """Fill in the running sum of the edges of each node that are among the pairs."""
    for i in range(nodes.size):
        hole_ends[i + 1] = hole_ends[i]
        at = _first_pair(pairs, nodes[i])
        if at < pairs.shape[1] and pairs[0, at] == nodes[i]:
            for z in range(start[i], start[i] + degree[i]):
                hole_ends[i + 1] += _is_pair(pairs, at, nodes[i], row[z])
    return hole_ends[nodes.size]


@njit(cache=True, nogil=True)
def fill_holes(nodes, start, degree, row, pairs, hole_ends, holes):
    """Fill in their positions, and take them off the degrees."""
    for i in range(nodes.size):
        if hole_ends[i + 1] == hole_ends[i]:
            continue
        at, to = _first_pair(pairs, nodes[i]), hole_ends[i]
        for z in range(start[i], start[i] + degree[i]):
            if _is_pair(pairs, at, nodes[i], row[z]):
                holes[to] = z
                to += 1
        degree[i] -= hole_ends[i + 1] - hole_ends[i]


@njit(cache=True, nogil=True)
def outside_pairs(source, target, pairs, kept):
    """Mark the edges that are not among the pairs."""
    for z in range(source.size):
        v = target[z]
        kept[z] = not _is_pair(pairs, _first_pair(pairs, v), v, source[z])
