"""Compiled loops of the data plane: the same bits as their numpy forms, faster on large inputs."""

from __future__ import annotations

import numpy as np
from numba import njit

_G = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)


@njit(cache=True, inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(cache=True, nogil=True)
def keys(base, counters):  # type: ignore[no-untyped-def]
    out = np.empty(counters.size, np.uint64)
    for i in range(counters.size):
        out[i] = _mix(_mix(base + counters[i] * _G))
    return out


@njit(cache=True, nogil=True)
def feistel8(positions, n, a, b, round_keys):  # type: ignore[no-untyped-def]
    size, left_size, right_size = np.uint64(n), np.uint64(a), np.uint64(b)
    out = np.empty(positions.size, np.uint64)
    for j in range(positions.size):
        x = positions[j]
        while True:
            left = x // right_size
            right = x - left * right_size
            # A sum of two halves stays below twice the size: one subtraction is the modulo.
            for i in range(0, 8, 2):
                left += ((_mix(right ^ round_keys[i]) >> _S32) * left_size) >> _S32
                if left >= left_size:
                    left -= left_size
                right += ((_mix(left ^ round_keys[i + 1]) >> _S32) * right_size) >> _S32
                if right >= right_size:
                    right -= right_size
            x = left * right_size + right
            if x < size:
                break
        out[j] = x
    return out


@njit(cache=True, nogil=True)
def mark_bits(words, positions):  # type: ignore[no-untyped-def]
    """Set the bit of each position."""
    for i in range(positions.size):
        p = np.uint64(positions[i])
        words[p >> np.uint64(6)] |= np.uint64(1) << (p & np.uint64(63))


@njit(cache=True, inline="always")
def _count_bits(x):  # type: ignore[no-untyped-def]
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def select_bits(words, before, hints, ranks):  # type: ignore[no-untyped-def]
    """Return the place of the set bit of each rank; see `bitmap`."""
    out = np.empty(ranks.size, np.uint64)
    for i in range(ranks.size):
        rank = ranks[i]
        low, high = hints[rank >> 10], hints[(rank >> 10) + 1]
        while low < high:  # the last block with no more than `rank` bits before it
            middle = (low + high + 1) >> 1
            if before[middle] <= rank:
                low = middle
            else:
                high = middle - 1
        left = rank - before[low]
        word = low * 8
        inside = _count_bits(words[word])
        while left >= inside:
            left -= inside
            word += 1
            inside = _count_bits(words[word])
        rest, place = words[word], np.uint64(word * 64)
        width = np.uint64(32)
        while width > 0:  # halve: is the bit in the lower half?
            inside = _count_bits(rest & ((np.uint64(1) << width) - np.uint64(1)))
            if left >= inside:
                left -= inside
                rest >>= width
                place += width
            width >>= np.uint64(1)
        out[i] = place
    return out
