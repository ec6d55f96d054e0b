"""Compiled loops of the CPU gather: rows found by id, copied between addresses with prefetch.

Addresses are uint64. Nothing here checks its input but `locate` and `point_in_table`, one of which
comes first: what they let through lies in a chunk, or in the table.
"""

from __future__ import annotations

import functools

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_LINE = 64  # bytes of a cache line
_AHEAD = 32  # rows that are asked for before they are copied
_FAR = 64  # rows whose page is looked up before that: it takes as long as the bytes themselves
_NEAR = 1024  # bytes of a row that are; the processor itself reads on after that
_UNROLLED = 1024  # bytes of a row up to which a width has a loop of its own
_LONG = 8192  # bytes from which the C library copies better
_ONE = np.uint64(1)
_U3, _U4, _U7, _U8, _U16, _U32 = (np.uint64(n) for n in (3, 4, 7, 8, 16, 32))
_U64, _U128, _U192, _U256 = (np.uint64(n) for n in (64, 128, 192, 256))


@intrinsic
def _prefetch(typingctx, address):
    """Ask for the cache line at an address, into the second-level cache.

    It waits for many more lines at the same time than the first level does, which is what counts
    where rows come from memory: the copy is a quarter faster for it.
    """

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, flag, flag, flag])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        where = builder.inttoptr(args[0], byte)
        read, level, data = (ir.Constant(flag, v) for v in (0, 2, 1))
        builder.call(function, [where, read, level, data])
        return context.get_dummy_value()

    return types.void(types.uint64), codegen


@intrinsic
def _copy(typingctx, target, source, size):
    """Copy bytes between addresses (memcpy)."""

    def codegen(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        to, at = (builder.inttoptr(a, byte) for a in args[:2])
        cgutils.raw_memcpy(builder, to, at, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


def _mover(width):
    """Make what copies `width` bytes between addresses in one load and one store."""

    @intrinsic
    def move(typingctx, target, source):
        def codegen(context, builder, signature, args):
            kind = ir.VectorType(ir.IntType(8), width)
            to, at = (builder.inttoptr(a, kind.as_pointer()) for a in args)
            value = builder.load(at)
            value.align = 1
            builder.store(value, to).align = 1
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), codegen

    return move


_move_4, _move_8, _move_16, _move_32, _move_64 = (_mover(width) for width in (4, 8, 16, 32, 64))


@intrinsic
def _add_to(typingctx, array, place, value):
    """Add to a number of an int64 array, as one step for all threads; return what it was."""

    def codegen(context, builder, signature, args):
        numbers = context.make_array(signature.args[0])(context, builder, args[0])
        where = builder.gep(numbers.data, [args[1]])
        return builder.atomic_rmw("add", where, args[2], "acq_rel")

    return types.int64(array, types.int64, types.int64), codegen


@njit(cache=True, inline="always")
def _take_turn(turns):
    """Return the rows (start, stop) that are next to be copied; none where start is not less."""
    start = _add_to(turns, 0, turns[2])
    return start, min(start + turns[2], turns[1])


def _value_at(bits):
    """Make what reads an integer of so many bits at an address."""
    kind = {8: types.uint8, 32: types.int32, 64: types.int64}[bits]

    @intrinsic
    def read(typingctx, address):
        def codegen(context, builder, signature, args):
            where = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            value = builder.load(where)
            value.align = 1
            return value

        return kind(types.uint64), codegen

    return read


_byte_at, _int32_at, _int64_at = _value_at(8), _value_at(32), _value_at(64)


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
        _prefetch(address)
        address += np.uint64(_LINE)


@njit(cache=True, inline="always")
def _copy_run(target, source, size):
    """Copy a run of bytes, the last piece of it from its end: no call, no loop over bytes."""
    if size >= _U32:
        if size > np.uint64(_LONG):
            _copy(target, source, size)
            return
        at = np.uint64(0)
        while at + _U32 <= size:
            _move_32(target + at, source + at)
            at += _U32
        _move_32(target + size - _U32, source + size - _U32)
    elif size >= _U16:
        _move_16(target, source)
        _move_16(target + size - _U16, source + size - _U16)
    elif size >= _U8:
        _move_8(target, source)
        _move_8(target + size - _U8, source + size - _U8)
    elif size >= _U4:
        _move_4(target, source)
        _move_4(target + size - _U4, source + size - _U4)
    else:
        _copy(target, source, size)


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
def point_in_table(ids, rows, address, stride, source):
    """Fill in the address of each row of a table; return the place of the first id of none, or −1.

    `ids` are int32 or int64.
    """
    for i in range(ids.size):
        row = ids[i]
        if row < 0 or row >= rows:
            return i
        source[i] = address + np.uint64(row) * stride
    return -1


@njit(cache=True, inline="always")
def _step(target, source, then):
    """Copy a line, and ask for one that is copied later."""
    _prefetch(then)
    _move_64(target, source)


@njit(cache=True, nogil=True)
def copy_rows(source, row_bytes, out, turns):
    """Copy rows of a request from their addresses to ``out + i · row_bytes``, turn by turn.

    `turns` is that of `sharing`.
    """
    start, stop = _take_turn(turns)
    while start < stop:
        _copy_rows(source, row_bytes, out, start, stop)
        _add_to(turns, 3, stop - start)
        start, stop = _take_turn(turns)


@njit(cache=True, nogil=True)
def _copy_rows(source, row_bytes, out, start, stop):
    size = np.uint64(row_bytes)
    for i in range(start, min(start + _AHEAD, stop)):
        _ask_for(source[i], size)
    target = out + np.uint64(start) * size
    if size < _U64 or size > np.uint64(_LONG):
        for i in range(start, stop):
            _ask_for(source[min(i + _AHEAD, stop - 1)], size)
            _copy_run(target, source[i], size)
            target += size
        return
    even, rest = size & ~(_U64 - _ONE), size & (_U64 - _ONE)
    for i in range(start, stop):
        then, row = source[min(i + _AHEAD, stop - 1)], source[i]
        _prefetch(source[min(i + _FAR, stop - 1)])
        at = np.uint64(0)  # line by line: the requests for a later row go between the copies
        while at + _U256 <= even:
            _step(target + at, row + at, then + at)
            _step(target + at + _U64, row + at + _U64, then + at + _U64)
            _step(target + at + _U128, row + at + _U128, then + at + _U128)
            _step(target + at + _U192, row + at + _U192, then + at + _U192)
            at += _U256
        while at < even:
            _step(target + at, row + at, then + at)
            at += _U64
        if rest:
            _prefetch(then + size - _ONE)
            _move_64(target + size - _U64, row + size - _U64)
        target += size


def _copier(row_bytes):
    """Make `copy_rows` for one width, a multiple of a line: a tenth faster, as it is unrolled."""

    @njit(cache=True, nogil=True)
    def copy(source, out, turns):
        start, stop = _take_turn(turns)
        while start < stop:
            target = out + np.uint64(start * row_bytes)
            for i in range(start, stop):
                then, row = source[min(i + _AHEAD, stop - 1)], source[i]
                _prefetch(source[min(i + _FAR, stop - 1)])
                for at in range(0, row_bytes, _LINE):
                    step = np.uint64(at)
                    _step(target + step, row + step, then + step)
                target += np.uint64(row_bytes)
            _add_to(turns, 3, stop - start)
            start, stop = _take_turn(turns)

    return copy


@functools.cache
def row_copier(row_bytes):
    """Return (source, out, turns) → None, which copies rows of a width."""
    if row_bytes % _LINE == 0 and 0 < row_bytes <= _UNROLLED:
        return _copier(row_bytes)
    return lambda source, out, turns: copy_rows(source, row_bytes, out, turns)


@njit(cache=True, nogil=True)
def copy_bits(chunk, offset, addresses, bits, width, out, start, stop):
    """Spread Arrow bits of rows start…stop−1, `width` a row, into a byte each of `out`."""
    for i in range(start, stop):
        c = chunk[i]
        bit = np.uint64(bits[c] + offset[i] * width)
        for j in range(width):
            byte = _byte_at(addresses[c] + (bit >> _U3))
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
            if not (_byte_at(addresses[c] + (bit >> _U3)) >> (bit & _U7)) & 1:
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
                one = (_byte_at(addresses[c] + (bit >> _U3)) >> (bit & _U7)) & 1
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
        _prefetch(offsets[chunk[ahead]] + np.uint64(offset[ahead]) * size)
        c = chunk[i]
        at = offsets[c] + np.uint64(offset[i]) * size
        if wide:
            low, high = _int64_at(at), _int64_at(at + size)
        else:
            low, high = np.int64(_int32_at(at)), np.int64(_int32_at(at + size))
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
        _add_to(turns, 3, stop - start)
        start, stop = _take_turn(turns)


# Whoever imports this is about to gather. What numba loads before its first call (a quarter of a
# second) is loaded now, on the thread that imports it.
_NONE = np.empty(0, np.int64)
point_at(_NONE, _NONE, _NONE.view(np.uint64), 1, _NONE.view(np.uint64))
