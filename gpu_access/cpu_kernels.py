"""Compiled loops of the CPU gather: rows found by id, copied between addresses with prefetch.

Addresses are uint64. Nothing here checks its input but `locate` and `first_outside`, one of which
comes first: what they let through lies in a chunk, or in the table.
"""

from __future__ import annotations

import functools

import numpy as np
from numba import njit

from .memory_kernels import (
    add_to,
    byte_at,
    copy_bytes,
    int32_at,
    int64_at,
    move_4,
    move_8,
    move_16,
    move_32,
    move_64,
    prefetch,
)

_LINE = 64  # bytes of a cache line
_AHEAD = 32  # rows that are asked for before they are copied
_FAR = 64  # rows whose page is looked up before that: it takes as long as the bytes themselves
_NEAR = 1024  # bytes of a row that are; the processor itself reads on after that
_UNROLLED = 1024  # bytes of a row up to which a width has a loop of its own
_LONG = 8192  # bytes from which the C library copies better
_TAKE = "int64(int64, int64, int64, int64, int64, int64)"
_ONE = np.uint64(1)
_U3, _U4, _U7, _U8, _U16, _U32 = (np.uint64(n) for n in (3, 4, 7, 8, 16, 32))
_U64, _U128 = np.uint64(64), np.uint64(128)


@njit(cache=True, inline="always")
def _take_turn(turns):
    """Return the rows (start, stop) that are next to be copied; none where start is not less."""
    start = add_to(turns, 0, turns[2])
    return start, min(start + turns[2], turns[1])


@njit(cache=True, nogil=True)
def locate(ids, first, rows, guess, shift, chunk, offset):
    """Fill in (chunk, row in it) of each id; return the place of the first id in none, or −1.

    ``guess[(id − first[0]) >> shift]`` is the chunk from which on the id is looked for.
    """
    c = first.size
    if c == 0:
        return 0 if ids.size else -1
    start, count = first[0], np.uint64(rows[0])
    if c == 1:
        for i in range(ids.size):
            inside = ids[i] - start  # wraps around below the start
            if inside >= count:
                return i
            chunk[i] = 0
            offset[i] = np.int64(inside)
        return -1
    last = np.uint64(guess.size - 1)
    for i in range(ids.size):
        row = ids[i]
        at = guess[min((row - start) >> shift, last)]
        while at + 1 < c and first[at + 1] <= row:
            at += 1
        inside = row - first[at]
        if inside >= np.uint64(rows[at]):
            return i
        chunk[i] = at
        offset[i] = np.int64(inside)
    return -1


@njit(cache=True, inline="always")
def _ask_for(address, size):
    stop = address + min(size, np.uint64(_NEAR))
    while address < stop:
        prefetch(address)
        address += np.uint64(_LINE)


@njit(cache=True, inline="always")
def _copy_run(target, source, size):
    """Copy a run of bytes, the last piece of it from its end: no call, no loop over bytes."""
    if size >= _U32:
        if size > np.uint64(_LONG):
            copy_bytes(target, source, size)
            return
        at = np.uint64(0)
        while at + _U32 <= size:
            move_32(target + at, source + at)
            at += _U32
        move_32(target + size - _U32, source + size - _U32)
    elif size >= _U16:
        move_16(target, source)
        move_16(target + size - _U16, source + size - _U16)
    elif size >= _U8:
        move_8(target, source)
        move_8(target + size - _U8, source + size - _U8)
    elif size >= _U4:
        move_4(target, source)
        move_4(target + size - _U4, source + size - _U4)
    else:
        copy_bytes(target, source, size)


@njit(cache=True, nogil=True)
def point_at(chunk, offset, addresses, row_bytes, source):
    """Fill in the address of each row of a request."""
    size = np.uint64(row_bytes)
    if addresses.size == 1:
        base = addresses[0]
        for i in range(offset.size):
            source[i] = base + np.uint64(offset[i]) * size
        return
    for i in range(offset.size):
        source[i] = addresses[chunk[i]] + np.uint64(offset[i]) * size


@njit(cache=True, nogil=True)
def first_outside(ids, count, rows):
    """Return the place of the first id that is no row of a table, or −1.

    `ids` is the address of `count` int64.
    """
    first, limit, wrong = np.uint64(ids), np.uint64(rows), False
    for i in range(np.uint64(count)):
        wrong |= np.uint64(int64_at(first + i * _U8)) >= limit
    if wrong:
        for i in range(np.uint64(count)):
            if np.uint64(int64_at(first + i * _U8)) >= limit:
                return np.int64(i)
    return -1


@njit(cache=True, inline="always")
def _row_at(ids, place, address, stride):
    """Return the address of a row, by the place of its id."""
    return address + np.uint64(int64_at(ids + np.uint64(place) * _U8)) * stride


@njit(cache=True, inline="always")
def _step(target, source, then):
    """Copy a line, and ask for one that is copied later."""
    prefetch(then)
    move_64(target, source)


@njit(cache=True, nogil=True)
def copy_rows(ids, address, stride, row_bytes, out, turns):
    """Copy rows at ``address + id · stride`` to ``out + i · row_bytes``, turn by turn.

    `ids` is the address of int64 or uint64; `turns` is that of `sharing`.
    """
    start, stop = _take_turn(turns)
    while start < stop:
        _copy_rows(
            np.uint64(ids), np.uint64(address), np.uint64(stride), np.uint64(row_bytes),
            np.uint64(out), start, stop,
        )  # fmt: skip
        add_to(turns, 3, stop - start)
        start, stop = _take_turn(turns)


@njit(cache=True, nogil=True)
def _copy_rows(ids, address, stride, size, out, start, stop):
    for i in range(start, min(start + _AHEAD, stop)):
        _ask_for(_row_at(ids, i, address, stride), size)
    target, last = out + np.uint64(start) * size, stop - 1
    if size < _U64 or size > np.uint64(_LONG):
        for i in range(start, stop):
            _ask_for(_row_at(ids, min(i + _AHEAD, last), address, stride), size)
            _copy_run(target, _row_at(ids, i, address, stride), size)
            target += size
        return
    even, rest = size & ~(_U64 - _ONE), size & (_U64 - _ONE)
    for i in range(start, stop):
        row = _row_at(ids, i, address, stride)
        then = _row_at(ids, min(i + _AHEAD, last), address, stride)
        prefetch(_row_at(ids, min(i + _FAR, last), address, stride))
        at = np.uint64(0)  # line by line: the requests for a later row go between the copies
        while at + _U128 <= even:
            next_ = at + _U64
            _step(target + at, row + at, then + at)
            _step(target + next_, row + next_, then + next_)
            at += _U128
        if at < even:
            _step(target + at, row + at, then + at)
        if rest:
            prefetch(then + size - _ONE)
            move_64(target + size - _U64, row + size - _U64)
        target += size


@njit(cache=True, inline="always")
def _copy_lines(ids, address, stride, row_bytes, out, start, stop):
    """Do as `_copy_rows` for a width that the caller knows as it is compiled: it is unrolled."""
    first, base, step = np.uint64(ids), np.uint64(address), np.uint64(stride)
    target, last = np.uint64(out) + np.uint64(start * row_bytes), stop - 1
    for i in range(start, stop):
        row = _row_at(first, i, base, step)
        then = _row_at(first, min(i + _AHEAD, last), base, step)
        prefetch(_row_at(first, min(i + _FAR, last), base, step))
        for line in range(0, row_bytes, _LINE):
            at = np.uint64(line)
            _step(target + at, row + at, then + at)
        target += np.uint64(row_bytes)


def _copier(row_bytes):
    """Make `copy_rows` for one width, a multiple of a line: a tenth faster, as it is unrolled."""

    @njit(cache=True, nogil=True)
    def copy(ids, address, stride, out, turns):
        start, stop = _take_turn(turns)
        while start < stop:
            _copy_lines(ids, address, stride, row_bytes, out, start, stop)
            add_to(turns, 3, stop - start)
            start, stop = _take_turn(turns)

    return copy


def _taker(row_bytes):
    """Make `take_rows` for one width, a multiple of a line."""

    @njit(cache=True, nogil=True)
    def take(ids, count, rows, address, stride, out):
        bad = first_outside(ids, count, rows)
        if bad < 0:
            _copy_lines(ids, address, stride, row_bytes, out, 0, count)
        return bad

    return take


@njit(cache=True, nogil=True)
def take_rows(ids, count, rows, address, stride, row_bytes, out):
    """Copy rows of a table on one thread, unless an id is none; return as `first_outside`."""
    bad = first_outside(ids, count, rows)
    if bad < 0:
        _copy_rows(
            np.uint64(ids), np.uint64(address), np.uint64(stride), np.uint64(row_bytes),
            np.uint64(out), 0, count,
        )  # fmt: skip
    return bad


def _unrolled(row_bytes):
    return row_bytes % _LINE == 0 and 0 < row_bytes <= _UNROLLED


@functools.cache
def row_copier(row_bytes):
    """Return (ids, address, stride, out, turns) → None, which copies rows of a width."""
    if _unrolled(row_bytes):
        return _copier(row_bytes)
    return lambda ids, address, stride, out, turns: copy_rows(
        ids, address, stride, row_bytes, out, turns
    )


@functools.cache
def row_taker(row_bytes):
    """Return (ids, count, rows, address, stride, out) → int: `take_rows` of a width."""
    if _unrolled(row_bytes):
        # Compiled for plain ints, it is called without a look at what it is called with.
        return _taker(row_bytes).compile(_TAKE)
    return lambda ids, count, rows, address, stride, out: take_rows(
        ids, count, rows, address, stride, row_bytes, out
    )


@njit(cache=True, nogil=True)
def copy_bits(chunk, offset, addresses, bits, width, out, start, stop):
    """Spread Arrow bits of rows start…stop−1, `width` a row, into a byte each of `out`."""
    for i in range(start, stop):
        c = chunk[i]
        bit = np.uint64(bits[c] + offset[i] * width)
        for j in range(width):
            byte = byte_at(addresses[c] + (bit >> _U3))
            out[i * width + j] = (byte >> (bit & _U7)) & 1
            bit += np.uint64(1)


@njit(cache=True, nogil=True)
def first_null(chunk, offset, addresses, start, width):
    """Return the place of the first row one of whose `width` entries is null, or −1."""
    for i in range(chunk.size):
        c = chunk[i]
        if addresses[c] == 0:
            continue
        bit = np.uint64(start[c] + offset[i] * width)
        for _ in range(width):
            if not (byte_at(addresses[c] + (bit >> _U3)) >> (bit & _U7)) & 1:
                return i
            bit += np.uint64(1)
    return -1


@njit(cache=True, nogil=True)
def take_bits(chunk, first, count, addresses, start, width, out):
    """Write the validity of runs of entries as an Arrow bitmap of zeros `out`; return the nulls.

    Run i is ``count[i] · width`` entries from entry ``first[i] · width`` of a chunk.
    """
    at, nulls = 0, 0
    for i in range(chunk.size):
        c, entries = chunk[i], count[i] * width
        bit = np.uint64(start[c] + first[i] * width)
        for _ in range(entries):
            one = np.uint8(1)
            if addresses[c] != 0:
                one = (byte_at(addresses[c] + (bit >> _U3)) >> (bit & _U7)) & 1
            nulls += 1 - one
            out[at >> 3] |= np.uint8(one << (at & 7))
            bit += _ONE
            at += 1
    return nulls


@njit(cache=True, nogil=True)
def read_offsets(chunk, offset, offsets, wide, items, begin, ends):
    """Fill in where the items of rows begin, and the running sum of their numbers.

    Return the place of the first row whose offsets cannot be, or −1.
    """
    total = np.int64(0)
    ends[0] = 0
    n, size = chunk.size, np.uint64(8 if wide else 4)
    for i in range(n):
        ahead = min(i + _AHEAD, n - 1)
        prefetch(offsets[chunk[ahead]] + np.uint64(offset[ahead]) * size)
        c = chunk[i]
        at = offsets[c] + np.uint64(offset[i]) * size
        if wide:
            low, high = int64_at(at), int64_at(at + size)
        else:
            low, high = np.int64(int32_at(at)), np.int64(int32_at(at + size))
        if low < 0 or high < low or high > items[c]:
            return i
        begin[i] = low
        total += high - low
        ends[i + 1] = total
    return -1


@njit(cache=True, nogil=True)
def copy_runs(chunk, begin, ends, addresses, item_bytes, out, turns):
    """Copy the items of a request's rows behind one another, turn by turn, a copy a row."""
    size = np.uint64(item_bytes)
    start, stop = _take_turn(turns)
    while start < stop:
        for i in range(start, stop):
            ahead = i + _AHEAD
            if ahead < stop:
                length = np.uint64(ends[ahead + 1] - ends[ahead]) * size
                _ask_for(addresses[chunk[ahead]] + np.uint64(begin[ahead]) * size, length)
            _copy_run(
                out + np.uint64(ends[i]) * size,
                addresses[chunk[i]] + np.uint64(begin[i]) * size,
                np.uint64(ends[i + 1] - ends[i]) * size,
            )
        add_to(turns, 3, stop - start)
        start, stop = _take_turn(turns)


# Whoever imports this is about to gather. What numba loads before its first call (a quarter of a
# second) is loaded now, on the thread that imports it.
_NONE = np.empty(0, np.int64)
point_at(_NONE, _NONE, _NONE.view(np.uint64), 1, _NONE.view(np.uint64))
