"""Compiled loops of the numbering of a batch's nodes, by a table or by a hash. See `numbering`.

One 64-bit word a node, or a place of the hash: ``call << 32 | local number``. A word of another
call counts as empty, so nothing is cleared between batches. The hash has open addresses, a power of
two of them, at most half of them filled; its key is (slot, node), compared with the nodes numbered
so far, so that a place is one word here too.
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
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_LOCAL = np.uint64(0xFFFF_FFFF)  # the local number in a word
_AHEAD = 64  # edges whose words are asked for before they are needed
_BLOCK = 128  # edges whose places in the hash are computed together


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


@njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(cache=True, nogil=True)
def seeds_by_table(seeds, table, call, nodes, slots):
    """Number the seeds, each its own place; a word names the first. Return how many come again.

    What comes again gets its place as its slot; `slots` is 0 before.
    """
    stamp, again = np.uint64(call) << _S32, 0
    for i in range(seeds.size):
        v = seeds[i]
        nodes[i] = v
        if table[v] & ~_LOCAL == stamp:
            slots[i] = i
            again += 1
        else:
            table[v] = stamp | np.uint64(i)
    return again


@njit(cache=True, nogil=True)
def number_by_table(source, table, call, nodes, count):
    """Replace source nodes by their local numbers, and append new ones to `nodes`; return how many
    there are then. `nodes` has room for one more than there can be.
    """
    stamp, last = np.uint64(call) << _S32, source.size - 1
    for z in range(source.size):
        _prefetch(table, source[min(z + _AHEAD, last)])
        v = source[z]
        word = table[v]
        new = word & ~_LOCAL != stamp
        # No branch: whether a node is new would be foreseen half of the time.
        nodes[count] = v
        here = count if new else np.int64(word & _LOCAL)
        table[v] = stamp | np.uint64(here)
        source[z] = here
        count += np.int64(new)
    return count


@njit(cache=True, inline="always")
def _place(node, slot, mask):
    return np.int64(_mix(np.uint64(node) * _G + np.uint64(slot)) & mask)


@njit(cache=True, inline="always")
def _find(place, node, slot, table, stamp, nodes, slots):
    """Return the place of (slot, node) in the hash: its own, or the empty one that it can have."""
    while True:
        word = table[place]
        if word & ~_LOCAL != stamp:
            return place
        known = np.int64(word & _LOCAL)
        if nodes[known] == node and (slots.size == 0 or slots[known] == slot):
            return place
        place = (place + 1) & (table.size - 1)


@njit(cache=True, nogil=True)
def seeds_by_hash(seeds, table, call, nodes, slots, again_slots):
    """Number the seeds as `seeds_by_table` does; `slots` is empty where they share a frontier."""
    stamp, mask, again = np.uint64(call) << _S32, np.uint64(table.size - 1), 0
    for i in range(seeds.size):
        v, slot = seeds[i], slots[i] if slots.size else 0
        nodes[i] = v
        at = _find(_place(v, slot, mask), v, slot, table, stamp, nodes, slots)
        if table[at] & ~_LOCAL == stamp:
            again_slots[i] = i
            again += 1
        else:
            table[at] = stamp | np.uint64(i)
    return again


@njit(cache=True, nogil=True)
def fill_hash(table, call, nodes, slots, count):
    """Enter the first `count` nodes into an empty hash; what comes again stays the first."""
    stamp, mask = np.uint64(call) << _S32, np.uint64(table.size - 1)
    for i in range(count):
        v, slot = nodes[i], slots[i] if slots.size else 0
        at = _find(_place(v, slot, mask), v, slot, table, stamp, nodes, slots)
        if table[at] & ~_LOCAL != stamp:
            table[at] = stamp | np.uint64(i)


@njit(cache=True, nogil=True)
def number_by_hash(source, target_slots, local, first, table, call, nodes, slots, count):
    """Replace source nodes by their local numbers as `number_by_table` does.

    `target_slots` are the slots of the frontier, whose first local number is `first`: a source node
    has that of the node it leads to. It and `slots` are empty where seeds share a frontier.
    """
    stamp, mask = np.uint64(call) << _S32, np.uint64(table.size - 1)
    places = np.empty(_BLOCK, np.int64)
    disjoint = slots.size > 0
    for begin in range(0, source.size, _BLOCK):
        stop = min(begin + _BLOCK, source.size)
        for z in range(begin, stop):
            slot = target_slots[local[z] - first] if disjoint else 0
            places[z - begin] = _place(source[z], slot, mask)
            _prefetch(table, places[z - begin])
        for z in range(begin, stop):
            v = source[z]
            slot = target_slots[local[z] - first] if disjoint else 0
            at = _find(places[z - begin], v, slot, table, stamp, nodes, slots)
            word = table[at]
            if word & ~_LOCAL == stamp:
                source[z] = np.int64(word & _LOCAL)
                continue
            table[at] = stamp | np.uint64(count)
            nodes[count] = v
            if disjoint:
                slots[count] = slot
            source[z] = count
            count += 1
    return count


# --- all edges among the nodes of a batch ---------------------------------------------------------


@njit(cache=True, inline="always")
def _number_of(node, slot, table, stamp, hashed, nodes, slots):
    """Return the local number of a node, or −1."""
    if not hashed:
        word = table[node]
    else:
        at = _place(node, slot, np.uint64(table.size - 1))
        word = table[_find(at, node, slot, table, stamp, nodes, slots)]
    return np.int64(word & _LOCAL) if word & ~_LOCAL == stamp else np.int64(-1)


@njit(cache=True, nogil=True)
def count_induced(
    start, degree, row, target_slots, table, call, hashed, nodes, slots, ends
):  # fmt: skip
    """Fill in the running sum of the edges into each target whose source is numbered too."""
    stamp = np.uint64(call) << _S32
    for i in range(start.size):
        slot, found = target_slots[i] if target_slots.size else 0, 0
        for z in range(start[i], start[i] + degree[i]):
            found += _number_of(np.int64(row[z]), slot, table, stamp, hashed, nodes, slots) >= 0
        ends[i + 1] = ends[i] + found
    return ends[start.size]


@njit(cache=True, nogil=True)
def fill_induced(
    start, degree, row, target_slots, table, call, hashed, nodes, slots, ends,
    source, target, edge,
):  # fmt: skip
    """Fill in those edges: by target, in the order of their positions."""
    stamp = np.uint64(call) << _S32
    for i in range(start.size):
        slot, at = target_slots[i] if target_slots.size else 0, ends[i]
        for z in range(start[i], start[i] + degree[i]):
            known = _number_of(np.int64(row[z]), slot, table, stamp, hashed, nodes, slots)
            if known >= 0:
                source[at], target[at], edge[at] = known, i, z
                at += 1
