"""Compiled loops of neighbour sampling: which edges a frontier takes. See `sampling`.

A hop is made in tight loops of few things each, so that what one edge misses in the cache is
fetched while others are worked on; in one loop over everything an edge would wait for the one
before it. The loops:

1. `neighborhoods`: where the in-edges of each frontier node are, and how many of them;
2. `plan_takes`: how many of them are taken, and where they come in the output;
3. `pick_uniform`: which, by counter-based draws; a few nodes later their sources are looked up;
4. `numbering_kernels`: the local numbers of the sources.

**Draws.** With G and ``mix`` of `dataplane.random`, modulo 2**64: a frontier node v of a batch with
key K has ``k = mix(K ^ v·G)``, or ``mix(mix(K ^ v·G) + s·G)`` where its slot s is not 0: the seed's
place of disjoint subgraphs, or of a seed that is there a second time. Its draw j below n is
``mix(k + (j + 1)·G) · n >> 64``, whose bias is below n / 2**64. Without replacement, k of d are
drawn by Floyd's method (Bentley and Floyd, CACM 1987): draw j is below ``d − k + j + 1``, and where
it was drawn before, the last of these is taken instead.

Nothing here checks its input. A module of kernels holds all that it inlines, since numba's cache
knows of changes in the file itself only.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_G = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)
_ZERO, _ONE, _U63 = np.uint64(0), np.uint64(1), np.uint64(63)
_NODES = 32  # nodes whose edges are drawn before any of their sources is looked up
_FEW = 64  # draws up to which those before are compared one by one


@intrinsic
def _prefetch(typingctx, array, place):
    """Ask for the cache line of an element of an array."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        where = builder.bitcast(builder.gep(data, [args[1]]), byte)
        read, level, kept = (ir.Constant(flag, v) for v in (0, 3, 1))
        builder.call(function, [where, read, level, kept])
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen


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
def _node_key(key, node, slot):
    """Return the key of a frontier node's draws."""
    own = _mix(key ^ (np.uint64(node) * _G))
    return _mix(own + np.uint64(slot) * _G) if slot != 0 else own


@njit(cache=True, inline="always")
def _draw(own, number, below):
    """Return draw `number` of a node, in [0, below)."""
    return np.int64(_high(_mix(own + np.uint64(number + 1) * _G), np.uint64(below)))


# --- which edges ----------------------------------------------------------------------------------


@njit(cache=True, nogil=True)
def neighborhoods(colptr, nodes, start, degree):
    """Fill in where the in-edges of each node begin, and their number."""
    for i in range(nodes.size):
        v = nodes[i]
        start[i] = colptr[v]
        degree[i] = colptr[v + 1] - colptr[v]


@njit(cache=True, nogil=True)
def not_later(colptr, row, times, by_source, nodes, slots, limits, start, degree):
    """Fill in the edges of each node whose time is not above the limit of its slot.

    The times of the edges into a node ascend; they are those of their sources, or their own.
    """
    for i in range(nodes.size):
        begin, limit = colptr[nodes[i]], limits[slots[i]]
        low, high = begin, colptr[nodes[i] + 1]
        while low < high:
            middle = (low + high) >> 1
            if times[row[middle] if by_source else middle] <= limit:
                low = middle + 1
            else:
                high = middle
        start[i], degree[i] = begin, low - begin


@njit(cache=True, nogil=True)
def keep_last(start, degree, fanout):
    """Keep the last edges of each node."""
    for i in range(start.size):
        over = max(degree[i] - fanout, 0)
        start[i] += over
        degree[i] -= over


@njit(cache=True, nogil=True)
def plan_takes(degree, fanout, replace, ends):
    """Fill in the running sum of the edges taken of each node; return it all.

    All of them where `fanout` is negative; without replacement, or where there are none, never more
    than there are.
    """
    total = np.int64(0)
    ends[0] = 0
    for i in range(degree.size):
        d = degree[i]
        if fanout < 0:
            total += d
        elif replace:
            total += fanout if d > 0 else 0
        else:
            total += min(d, fanout)
        ends[i + 1] = total
    return total


@njit(cache=True, inline="always")
def _seen_before(edge, first, count, place):
    found = False
    for j in range(first, first + count):
        found |= edge[j] == place
    return found


@njit(cache=True)
def _floyd_by_hash(own, degree, begin, edge, first, take, places):
    """Draw many without replacement: as Floyd's method does, the draws before kept in a hash."""
    places[:] = -1
    mask = np.uint64(places.size - 1)
    for j in range(take):
        bound = degree - take + j
        x = _draw(own, j, bound + 1)
        at = _mix(np.uint64(x)) & mask
        while places[at] >= 0 and places[at] != x:
            at = (at + _ONE) & mask
        if places[at] == x:  # so the last of them, which no draw before could be
            x = bound
            at = _mix(np.uint64(x)) & mask
            while places[at] >= 0:
                at = (at + _ONE) & mask
        places[at] = x
        edge[first + j] = begin + x


@njit(cache=True, inline="always")
def _places_of(degree, ends):
    """Return an empty hash for the most draws of a node without replacement, if they are many."""
    most = 0
    for i in range(degree.size):
        if ends[i + 1] - ends[i] < degree[i]:
            most = max(most, ends[i + 1] - ends[i])
    size = 1
    while most > _FEW and size < 2 * most:
        size *= 2
    return np.empty(size, np.int64)


@njit(cache=True, nogil=True)
def pick_uniform(
    key, nodes, slots, start, degree, ends, replace, row, first, edge, local, source
):  # fmt: skip
    """Fill in the edges taken of each node, the local number of that node, and their sources.

    `slots` is empty where all are 0; `first` is the local number of the first node. Sources are
    looked up some nodes later than they are asked for.
    """
    places = _places_of(degree, ends)
    for block in range(0, nodes.size, _NODES):
        stop = min(block + _NODES, nodes.size)
        for i in range(block, stop):
            at, d, begin = ends[i], degree[i], start[i]
            take = ends[i + 1] - at
            for z in range(at, at + take):
                local[z] = first + i
            if take == d and not replace:
                if take > 0:
                    _prefetch(row, begin)
                for z in range(take):
                    edge[at + z] = begin + z
                continue
            own = _node_key(key, nodes[i], slots[i] if slots.size else 0)
            if replace:
                for z in range(take):
                    edge[at + z] = begin + _draw(own, z, d)
                    _prefetch(row, edge[at + z])
            elif take > _FEW:
                _floyd_by_hash(own, d, begin, edge, at, take, places)
            else:
                seen, small = _ZERO, d <= 64
                for j in range(take):
                    bound = d - take + j
                    x = _draw(own, j, bound + 1)
                    bit = _ONE << (np.uint64(x) & _U63)
                    if seen & bit != 0 and (small or _seen_before(edge, at, j, begin + x)):
                        x = bound
                        bit = _ONE << (np.uint64(x) & _U63)
                    seen |= bit
                    edge[at + j] = begin + x
                    _prefetch(row, begin + x)
        for z in range(ends[block], ends[stop]):
            source[z] = row[edge[z]]


@njit(cache=True, nogil=True)
def look_up(row, edge, source):
    """Fill in the source node of each edge."""
    for z in range(edge.size):
        source[z] = row[edge[z]]


# --- edges that may not be drawn ------------------------------------------------------------------


@njit(cache=True, nogil=True)
def step_over(start, ends, holes, hole_ends, edge):
    """Turn positions among the edges that may be drawn into positions among all."""
    for i in range(start.size):
        for z in range(ends[i], ends[i + 1]):
            place = edge[z]
            for h in range(hole_ends[i], hole_ends[i + 1]):
                if holes[h] > place:
                    break
                place += 1
            edge[z] = place
