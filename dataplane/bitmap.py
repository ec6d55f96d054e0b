"""A set of row ids as bits, which finds the r-th of them in constant time.

One bit a row id; beside it, rebuilt when it is opened and never stored, the count of set bits
before each block of 512 ids and, for each 1,024 set bits, the block that holds the first of them:
together 0.14 of a bit a row id where half are set. A billion ids take 125 MB and 18 MB more.
(Rank and select on plain bit vectors: Jacobson, FOCS 1989.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from .errors import RowIdError
from .random import compiled_kernels

__all__ = ["BITMAP_INDEX", "Bitmap", "count_bits", "set_bits"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_BLOCK_WORDS = 8  # 512 ids
_HINT_BITS = 1024
_CHUNK_WORDS = 1 << 14  # what `chunks` decodes at once: 1 Mi ids

BITMAP_INDEX = 0.14
"""Bytes of the index for each byte of bits."""


class Bitmap:
    """An ascending set of row ids below ``64 · len(words)``.

    Parameters
    ----------
    words : uint64, shape (w,)
        Bit i of word k stands for row id 64·k + i.
    """

    def __init__(self, words: U64) -> None:
        self.words = words

    @classmethod
    def of(cls, size: int, parts: Iterable[U64]) -> Bitmap:
        """Set the bits of row ids that come in pieces, in any order."""
        words = np.zeros(-(-size // 64), dtype=np.uint64)
        for ids in parts:
            if ids.size and int(ids.max()) >= size:
                raise RowIdError(f"Row {int(ids.max())} is not below {size}.")
            set_bits(words, ids)
        return cls(words)

    def __len__(self) -> int:
        """Return the number of row ids in the set."""
        return int(self._before[-1])

    @cached_property
    def _before(self) -> I64:
        """Set bits before each block, and in all."""
        before = np.zeros(-(-len(self.words) // _BLOCK_WORDS) + 1, dtype=np.int64)
        for start in range(0, len(self.words), _CHUNK_WORDS):
            counts = np.bitwise_count(self.words[start : start + _CHUNK_WORDS])
            starts = np.arange(0, len(counts), _BLOCK_WORDS)
            first = start // _BLOCK_WORDS + 1
            before[first : first + len(starts)] = np.add.reduceat(counts, starts, dtype=np.int64)
        return np.cumsum(before, out=before)

    @cached_property
    def _hints(self) -> I64:
        """Return the block of every 1,024th set bit, and the last block."""
        ranks = np.arange(0, len(self), _HINT_BITS)
        blocks = np.searchsorted(self._before, ranks, side="right") - 1
        return np.append(blocks, len(self._before) - 2)

    def select(self, ranks: npt.NDArray[np.integer]) -> U64:
        """Return the row ids at ranks 0 … len−1; uint64, shape (k,)."""
        at: I64 = ranks.astype(np.int64, copy=False)
        if at.size and not 0 <= int(at.min()) <= int(at.max()) < len(self):
            raise RowIdError(f"Ranks must lie in the range [0, {len(self)}).")
        compiled = compiled_kernels(at.size)
        if compiled is not None:
            found: U64 = compiled.select_bits(self.words, self._before, self._hints, at)
            return found
        return self._select(at)

    def _select(self, ranks: I64) -> U64:
        block = np.searchsorted(self._before, ranks, side="right") - 1
        left = ranks - self._before[block]
        word = block * _BLOCK_WORDS
        moving = np.arange(len(ranks))
        while moving.size:  # seven times at most: the bit is in one of eight words
            inside = np.bitwise_count(self.words[word[moving]]).astype(np.int64)
            beyond = left[moving] >= inside
            moving = moving[beyond]
            left[moving] -= inside[beyond]
            word[moving] += 1
        bits = np.zeros(len(ranks), dtype=np.int64)
        rest = self.words[word] if len(ranks) else self.words[:0]
        for width in (32, 16, 8, 4, 2, 1):  # halve: is the bit in the lower half?
            low = np.bitwise_count(rest & np.uint64((1 << width) - 1)).astype(np.int64)
            upper = left >= low
            left = np.where(upper, left - low, left)
            rest = np.where(upper, rest >> np.uint64(width), rest)
            bits += np.where(upper, width, 0)
        return (word * 64 + bits).astype(np.uint64)

    def inside(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Return for the row ids `start` to `stop` whether they are in the set."""
        first = start // 64
        words = np.ascontiguousarray(self.words[first : -(-stop // 64)], dtype="<u8")
        bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=stop - first * 64)
        return bits[start - first * 64 :].view(bool)

    def holds(self, ids: U64) -> npt.NDArray[np.bool_]:
        """Return which of these row ids, all below the bitmap's end, are in the set."""
        bits = self.words[ids >> np.uint64(6)] >> (ids & np.uint64(63))
        inside: npt.NDArray[np.bool_] = (bits & np.uint64(1)).astype(bool)
        return inside

    def any_inside(self, start: int, stop: int) -> bool:
        """Whether a row id from `start` up to `stop` is in the set."""
        pieces = range(start, stop, 64 * _CHUNK_WORDS)
        return any(self.inside(at, min(at + 64 * _CHUNK_WORDS, stop)).any() for at in pieces)

    def chunks(self) -> Iterator[U64]:
        """Yield the row ids, ascending, about a million ids of the range at a time."""
        for start in range(0, len(self.words), _CHUNK_WORDS):
            stop = min(start + _CHUNK_WORDS, len(self.words))
            found = np.flatnonzero(self.inside(64 * start, 64 * stop)) + 64 * start
            yield found.astype(np.uint64)

    def ids(self) -> U64:
        """Return all row ids, ascending."""
        return np.concatenate([np.zeros(0, np.uint64), *self.chunks()])


def set_bits(words: U64, ids: npt.NDArray[np.integer]) -> None:
    """Set the bit of each id."""
    compiled = compiled_kernels(len(ids))
    if compiled is not None:
        compiled.mark_bits(words, ids)
        return
    at = ids.astype(np.int64, copy=False)
    np.bitwise_or.at(words, at >> 6, np.uint64(1) << (at & 63).astype(np.uint64))


def count_bits(words: U64) -> int:
    """Return how many bits are set, in all."""
    pieces = range(0, len(words), _CHUNK_WORDS)
    return sum(int(np.bitwise_count(words[i : i + _CHUNK_WORDS]).sum()) for i in pieces)
