"""Compiled loops of balanced clusters: balanced 2-means of a node's rows, node below node.

Every sum is made in one fixed order, whoever computes it: the dot product in eight lanes that are
added up in pairs, a half's sum row by row in the order of the rows' keys. Nothing is reassociated
or fused, so threads, parts and kinds of processors change no bit.

``rows`` are float32, C-contiguous, their width a multiple of `LANES`, finite. ``pos`` are places in
them, in the order of keys; what belongs to a node is a slice of it. ``ids`` are row ids by place.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
_FIRST = 512  # rows that a split is tried on first
_GROWTH = 4  # how many times as many it is tried on next
_NEAR = 8  # scores around a cut that are sorted rather than counted
_STEPS = 24  # counts that look for a cut, before what is left is sorted
_SORTED = 32  # scores that are sorted by insertion
_TOP = np.float64(np.finfo(np.float32).max)
_DEEP = 40  # nodes that wait, at most: one a level


@intrinsic
def _dot(typingctx, rows, at, w):
    """Return rows[at] · w in float64; w is float64, rows float32 or float64."""

    def codegen(context, builder, signature, args):
        kind = signature.args[0].dtype
        given = context.make_array(signature.args[0])(context, builder, args[0])
        weights = context.make_array(signature.args[2])(context, builder, args[2])
        wide = ir.VectorType(ir.DoubleType(), LANES)
        narrow = ir.VectorType(ir.FloatType(), LANES) if kind == types.float32 else wide
        (width,) = cgutils.unpack_tuple(builder, weights.shape, 1)
        lanes = ir.Constant(width.type, LANES)
        row = builder.gep(given.data, [builder.mul(args[1], width)])
        total = cgutils.alloca_once_value(builder, ir.Constant(wide, None))
        with cgutils.for_range(builder, builder.sdiv(width, lanes)) as loop:
            here = [builder.mul(loop.index, lanes)]
            x = builder.load(builder.bitcast(builder.gep(row, here), narrow.as_pointer()))
            x.align = 4
            y = builder.load(builder.bitcast(builder.gep(weights.data, here), wide.as_pointer()))
            y.align = 8
            term = builder.fmul(builder.fpext(x, wide) if narrow is not wide else x, y)
            builder.store(builder.fadd(builder.load(total), term), total)
        found = builder.load(total)
        sums = [
            builder.extract_element(found, ir.Constant(ir.IntType(32), i)) for i in range(LANES)
        ]
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [builder.fadd(sums[i], sums[i + half]) for i in range(half)]
        return sums[0]

    return types.float64(rows, types.intp, w), codegen


@njit(cache=True, nogil=True)
def prepare(x, order, unit, out, fine):
    """Write rows of x in an order, zeros up to the width of `out`, and which of them are finite.

    With `unit` they are scaled to length 1; zeros stay zeros.
    """
    width = x.shape[1]
    row = np.zeros(out.shape[1])
    for i in range(order.size):
        for t in range(width):
            out[i, t] = x[order[i], t]
            row[t] = np.float64(out[i, t])
        square = _dot(out, i, row)  # of finite float32 it is finite
        fine[i] = np.isfinite(square)
        if unit and square > 0:
            scale = 1.0 / np.sqrt(square)
            for t in range(width):
                out[i, t] = np.float32(row[t] * scale)


@njit(cache=True, nogil=True)
def project(rows, pos, w, middle, out):
    """Fill in the scores of rows along a direction, from its middle."""
    for i in range(pos.size):
        out[i] = np.float32(min(max(_dot(rows, pos[i], w) - middle, -_TOP), _TOP))


@njit(cache=True, inline="always")
def _count(t, n, value):
    found = np.int32(0)
    for i in range(n):
        found += np.int32(t[i] <= value)
    return found


@njit(cache=True, inline="always")
def _between(low, high, share):
    """Return a value in [low, high), nearer to `high` the larger the share."""
    value = low + (high - low) * share
    if not low <= value < high:
        value = np.float32(0.5) * low + np.float32(0.5) * high
    return value if value < high else low


@njit(cache=True, nogil=True)
def cut(t, rank, pos, ids, near, right):
    """Mark with 0 the `rank` rows of the smallest (score, row id), with 1 all others.

    0 < rank < n. A cut is looked for by counting; few scores are left to sort.
    """
    n = t.size
    low = high = t[0]
    for i in range(n):
        low, high = min(low, t[i]), max(high, t[i])
    below, upto = 0, n  # scores up to `under`, and up to `high`
    under = np.float32(-np.inf)
    half = np.float32(0.5)
    value = np.float32(0.0) if low <= 0 < high else _between(low, high, half)
    steps = 0
    while upto - below > _NEAR and upto != rank and low < high and steps < _STEPS:
        found = _count(t, n, value)
        if found >= rank:
            upto, high = found, value
        else:
            below, under, low = found, value, value
        steps += 1
        share = np.float32(rank - below) / np.float32(upto - below)
        value = _between(low, high, half if steps % 3 == 2 else share)
    if upto == rank:
        for i in range(n):
            right[i] = t[i] > high
        return
    value, smaller, equal = _at_rank(t, rank, under, below, high, near)
    if smaller + equal == rank:
        for i in range(n):
            right[i] = t[i] > value
        return
    tied = np.empty(equal, np.uint64)
    m = 0
    for i in range(n):
        if t[i] == value:
            tied[m] = ids[pos[i]]
            m += 1
    tied.sort()
    last = tied[rank - smaller - 1]
    for i in range(n):
        right[i] = t[i] > value or (t[i] == value and ids[pos[i]] > last)


@njit(cache=True, nogil=True)
def _at_rank(t, rank, under, below, high, near):
    """Return the score of a rank in (under, high], how many are smaller and how many equal."""
    m = 0
    for i in range(t.size):
        if under < t[i] <= high:
            near[m] = t[i]
            m += 1
    part = near[:m]
    if m > _SORTED:
        part.sort()
    else:
        for i in range(1, m):
            x, j = part[i], i
            while j > 0 and part[j - 1] > x:
                part[j] = part[j - 1]
                j -= 1
            part[j] = x
    value = part[rank - below - 1]
    smaller, equal = below, 0
    for i in range(m):
        smaller += part[i] < value
        equal += part[i] == value
    return value, smaller, equal


@njit(cache=True, nogil=True)
def _move(rows, pos, right, side, sums):
    """Take rows that change sides from one half's sum to the other's; return how many do."""
    moved = 0
    for i in range(pos.size):
        if right[i] != side[i]:
            moved += 1
            row = rows[pos[i]]
            into = sums[right[i]]
            for t in range(into.size):
                into[t] += np.float64(row[t])
            if side[i] < 2:
                out = sums[side[i]]
                for t in range(out.size):
                    out[t] -= np.float64(row[t])
            side[i] = right[i]
    return moved


@njit(cache=True, inline="always")
def _apart(ends):
    """Turn two points into their middle and their difference; return its squared length."""
    for t in range(ends.shape[1]):
        a, b = ends[0, t], ends[1, t]
        ends[0, t], ends[1, t] = 0.5 * (a + b), b - a
    return _dot(ends, 1, ends[1])


@njit(cache=True, inline="always")
def _aim(ends, square, w):
    """Point w along the difference, at length 1; return where the middle is on it."""
    scale = 1.0 / np.sqrt(square) if square > 0 else 0.0
    for t in range(w.size):
        w[t] = ends[1, t] * scale
    return _dot(ends, 0, w)


@njit(cache=True, nogil=True)
def _scratch(n, width):
    """Return what the search for a split of n rows writes on: direction first, then the sides."""
    return (
        np.empty(width),
        np.empty(n, np.uint8),
        np.empty(n, np.uint8),
        np.empty(n, np.float32),
        np.empty(n, np.float32),
        np.empty((2, width)),
        np.empty((2, width)),
    )


@njit(cache=True, nogil=True)
def _learn(rows, pos, ids, left, total, tol, max_iter, scratch):
    """Find the direction that splits a node, in scratch; return its middle.

    Of the node's `total` rows `left` go to the left; `pos` are the first of them, all or a sample.
    Sides of these rows are in scratch too.
    """
    w, right, side, scores, near, ends, sums = scratch
    a, b = pos[0], pos[1]
    if ids[a] > ids[b]:
        a, b = b, a
    for t in range(w.size):
        ends[0, t], ends[1, t] = rows[a, t], rows[b, t]
    square = _apart(ends)
    middle = _aim(ends, square, w)
    n = pos.size
    m = _FIRST if n >= 2 * _FIRST else n
    while True:
        share = left
        if m < total:
            share = min(max((2 * m * left + total) // (2 * total), 1), m - 1)
        side[:m] = 2  # on none yet
        sums[:] = 0.0
        last = -1.0
        for turn in range(max_iter):
            project(rows, pos[:m], w, middle, scores)
            cut(scores[:m], share, pos, ids, near, right)
            if _move(rows, pos[:m], right, side, sums) == 0 or turn == max_iter - 1:
                break
            for t in range(w.size):
                ends[0, t], ends[1, t] = sums[0, t] / share, sums[1, t] / (m - share)
            square = _apart(ends)
            if square <= last * (1.0 + tol):
                break
            last = square
            middle = _aim(ends, square, w)
        if m == n:
            return middle
        m = m * _GROWTH if 2 * m * _GROWTH <= n else n


@njit(cache=True, nogil=True)
def learn(rows, pos, ids, left, total, tol, max_iter):
    """Return the direction that splits a node, and its middle; see `_learn`."""
    scratch = _scratch(pos.size, rows.shape[1])
    middle = _learn(rows, pos, ids, left, total, tol, max_iter, scratch)
    return scratch[0], middle


@njit(cache=True, nogil=True)
def _halve(rows, pos, ids, left, most, tol, max_iter, scratch, spare):
    """Put the rows of a node's left half first, both halves in the order they were in."""
    right, scores, near = scratch[1], scratch[3], scratch[4]
    n = pos.size
    middle = _learn(rows, pos[:most], ids, left, n, tol, max_iter, scratch)
    if n > most:
        project(rows, pos, scratch[0], middle, scores)
        cut(scores[:n], left, pos, ids, near, right)
    i = j = 0
    for here in range(n):
        p = pos[here]
        if right[here]:
            spare[j] = p
            j += 1
        else:
            pos[i] = p
            i += 1
    pos[i:] = spare[:j]


@njit(cache=True, nogil=True)
def halve(rows, pos, ids, left, most, tol, max_iter):
    """Put the `left` rows of a node's left half first; the split is learned on `most` rows."""
    scratch = _scratch(pos.size, rows.shape[1])
    spare = np.empty(pos.size - left, np.int64)
    _halve(rows, pos, ids, left, most, tol, max_iter, scratch, spare)


@njit(cache=True, inline="always")
def _offset(n, k, cluster):
    """Return the row that a cluster begins with, of n rows in k clusters."""
    return cluster * (n // k) + min(cluster, n % k)


@njit(cache=True, nogil=True)
def _subtree(rows, pos, ids, k, most, tol, max_iter):
    """Put the rows of each of k clusters together, the clusters in order."""
    n = pos.size
    scratch = _scratch(n, rows.shape[1])
    spare = np.empty(n, np.int64)
    waiting = np.empty((_DEEP, 2), np.int64)
    waiting[0] = 0, k
    size = 1
    while size:
        size -= 1
        first, clusters = waiting[size]
        if clusters == 1:
            continue
        middle = first + (clusters + 1) // 2
        start, stop = _offset(n, k, first), _offset(n, k, first + clusters)
        left = _offset(n, k, middle) - start
        _halve(rows, pos[start:stop], ids, left, most, tol, max_iter, scratch, spare)
        waiting[size] = middle, first + clusters - middle
        waiting[size + 1] = first, middle - first
        size += 2


@njit(cache=True, nogil=True)
def _summarise(rows, pos, k, centers, spread):
    """Fill in each cluster's mean, and the sum of squared distances to it."""
    n = pos.size
    total, away = np.empty(rows.shape[1]), np.empty((1, rows.shape[1]))
    for c in range(k):
        start, stop = _offset(n, k, c), _offset(n, k, c + 1)
        total[:] = 0.0
        for i in range(start, stop):
            row = rows[pos[i]]
            for t in range(total.size):
                total[t] += np.float64(row[t])
        for t in range(total.size):
            total[t] = np.float64(np.float32(total[t] / (stop - start)))
        for t in range(centers.shape[1]):
            centers[c, t] = np.float32(total[t])
        spread[c] = 0.0
        for i in range(start, stop):
            for t in range(total.size):
                away[0, t] = np.float64(rows[pos[i], t]) - total[t]
            spread[c] += _dot(away, 0, away[0])


@njit(cache=True, nogil=True)
def finish(rows, pos, ids, k, most, tol, max_iter, centers, spread):
    """Find the clusters of a node; leave its rows grouped by them. No centers: none are made."""
    n = pos.size
    if k == 1:
        if len(centers):
            _summarise(rows, pos, k, centers, spread)
        return
    near_rows = np.empty((n, rows.shape[1]), np.float32)  # together in the cache
    near_ids = np.empty(n, np.uint64)
    for i in range(n):
        near_rows[i] = rows[pos[i]]
        near_ids[i] = ids[pos[i]]
    found = np.arange(n)
    _subtree(near_rows, found, near_ids, k, most, tol, max_iter)
    if len(centers):
        _summarise(near_rows, found, k, centers, spread)
    pos[:] = pos[found]


@njit(cache=True, nogil=True)
def descend(rows, ids, directions, middles, values, ties, children, out):
    """Fill in the leaf that each row comes to; a child below 0 is the leaf −1 − child."""
    for i in range(ids.size):
        node = 0
        while node >= 0:
            score = min(max(_dot(rows, i, directions[node]) - middles[node], -_TOP), _TOP)
            score = np.float32(score)
            goes = score > values[node] or (score == values[node] and ids[i] > ties[node])
            node = children[node, np.int64(goes)]
        out[i] = -1 - node
