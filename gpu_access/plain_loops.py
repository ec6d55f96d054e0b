"""The loops of the CPU gather without a compiler: those of `cpu_kernels`, one for one.

They take about a microsecond a row, and no time to load. Same arguments, same results. A loop keeps
Python's lock until it is done: a thread that let it go at each row would wait for it as often.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "copy_bits",
    "copy_runs",
    "first_null",
    "first_outside",
    "locate",
    "point_at",
    "read_offsets",
    "row_copier",
    "row_taker",
    "take_bits",
]

U8: TypeAlias = npt.NDArray[np.uint8]
U64: TypeAlias = npt.NDArray[np.uint64]
I64: TypeAlias = npt.NDArray[np.int64]


def locate(ids: U64, first: U64, rows: I64, guess: Any, shift: Any, chunk: I64, offset: I64) -> int:
    """Fill in (chunk, row in it) of each id; return the place of the first id in none, or −1."""
    if not len(first):
        return 0 if len(ids) else -1
    chunk[:] = np.maximum(np.searchsorted(first, ids, side="right") - 1, 0)
    inside = ids - first[chunk]  # wraps around below the first chunk
    outside = inside >= rows[chunk].view(np.uint64)
    if outside.any():
        return int(np.argmax(outside))
    offset[:] = inside.view(np.int64)
    return -1


def point_at(chunk: I64, offset: I64, addresses: U64, row_bytes: int, source: U64) -> None:
    """Fill in the address of each row of a request."""
    source[:] = addresses[chunk] + offset.view(np.uint64) * np.uint64(row_bytes)


def first_outside(ids: int, count: int, rows: int) -> int:
    """Return the place of the first id that is no row of a table, or −1.

    `ids` is the address of `count` int64.
    """
    outside = _integers(ids, count).view(np.uint64) >= rows  # what is below 0 is large, too
    return int(np.argmax(outside)) if outside.any() else -1


def row_copier(row_bytes: int) -> Callable[[int, int, int, int, I64], None]:
    """Return (ids, address, stride, out, turns) → None, which copies rows of a width.

    Rows are at ``address + id · stride``; `ids` is the address of int64 or uint64.
    """

    def copy(ids: int, address: int, stride: int, out: int, turns: I64) -> None:
        for start, stop in _turns(turns):
            asked = _integers(ids + 8 * start, stop - start).tolist()
            rows = b"".join([ctypes.string_at(address + i * stride, row_bytes) for i in asked])
            ctypes.memmove(out + start * row_bytes, rows, len(rows))

    return copy


def row_taker(row_bytes: int) -> Callable[[int, int, int, int, int, int], int]:
    """Return (ids, count, rows, address, stride, out) → int.

    It copies rows of a table on one thread, unless an id is none; it returns as `first_outside`.
    """

    def take(ids: int, count: int, rows: int, address: int, stride: int, out: int) -> int:
        bad = first_outside(ids, count, rows)
        if bad < 0:
            row_copier(row_bytes)(ids, address, stride, out, np.array([0, count, count, 0]))
        return bad

    return take


def copy_bits(
    chunk: I64, offset: I64, addresses: U64, bits: I64, width: int, out: U8, start: int, stop: int
) -> None:
    """Spread Arrow bits of rows start…stop−1, `width` a row, into a byte each of `out`."""
    begin = bits[chunk] + offset * width
    for i in range(start, stop):
        out[i * width : (i + 1) * width] = _bits(addresses[chunk[i]], begin[i], width)


def first_null(chunk: I64, offset: I64, addresses: U64, start: I64, width: int) -> int:
    """Return the place of the first row one of whose `width` entries is null, or −1."""
    begin = start[chunk] + offset * width
    for i in np.flatnonzero(addresses[chunk]).tolist():
        if not _bits(addresses[chunk[i]], begin[i], width).all():
            return int(i)
    return -1


def take_bits(
    chunk: I64, first: I64, count: I64, addresses: U64, start: I64, width: int, out: U8
) -> int:
    """Write the validity of runs of entries as an Arrow bitmap of zeros `out`; return the nulls."""
    valid = np.ones(int(count.sum()) * width, np.uint8)
    begin, entries = start[chunk] + first * width, count * width
    stops = np.cumsum(entries)
    for i in np.flatnonzero(addresses[chunk]).tolist():
        valid[stops[i] - entries[i] : stops[i]] = _bits(addresses[chunk[i]], begin[i], entries[i])
    packed = np.packbits(valid, bitorder="little")
    out[: len(packed)] |= packed
    return len(valid) - int(np.count_nonzero(valid))


def read_offsets(
    chunk: I64, offset: I64, offsets: U64, wide: bool, items: I64, begin: I64, ends: I64
) -> int:
    """Fill in where the items of rows begin, and the running sum of their numbers.

    Return the place of the first row whose offsets cannot be, or −1.
    """
    size, form = (8, "qq") if wide else (4, "ii")
    address = (offsets[chunk] + offset.view(np.uint64) * np.uint64(size)).tolist()
    pairs = [struct.unpack(form, ctypes.string_at(a, 2 * size)) for a in address]
    low, high = np.array(pairs, np.int64).reshape(-1, 2).T
    bad = (low < 0) | (high < low) | (high > items[chunk])
    if bad.any():
        return int(np.argmax(bad))
    begin[:], ends[0] = low, 0
    np.cumsum(high - low, out=ends[1:])
    return -1


def copy_runs(
    chunk: I64, begin: I64, ends: I64, addresses: U64, item_bytes: int, out: Any, turns: I64
) -> None:
    """Copy the items of a request's rows behind one another, turn by turn, a copy a row."""
    source = addresses[chunk] + begin.view(np.uint64) * np.uint64(item_bytes)
    for start, stop in _turns(turns):
        sizes = np.diff(ends[start : stop + 1]) * item_bytes
        runs = zip(source[start:stop].tolist(), sizes.tolist(), strict=True)
        items = b"".join([ctypes.string_at(a, n) for a, n in runs])
        ctypes.memmove(int(out) + int(ends[start]) * item_bytes, items, len(items))


def _turns(turns: I64) -> Iterator[tuple[int, int]]:
    """Yield rows (start, stop) to copy, as long as there are any; under Python's lock."""
    while turns[0] < turns[1]:
        start, stop = int(turns[0]), int(min(turns[0] + turns[2], turns[1]))
        turns[0] += turns[2]
        yield start, stop
        turns[3] += stop - start


def _integers(address: int, count: int) -> I64:
    """Return a copy of int64 in memory."""
    return np.frombuffer(ctypes.string_at(address, 8 * count), np.int64)


def _bits(address: Any, first: Any, count: Any) -> U8:
    """Return bits of memory, a byte each."""
    skipped, inside = divmod(int(first), 8)
    taken = ctypes.string_at(int(address) + skipped, (inside + int(count) + 7) // 8)
    bits = np.unpackbits(np.frombuffer(taken, np.uint8), bitorder="little")
    return bits[inside : inside + int(count)]
