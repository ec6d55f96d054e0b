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


@njit(cache=True, inline="always")
def _word(raw, kind, sign, infinity, last, above):  # type: ignore[no-untyped-def]
    """Return the unsigned integer in the order of a number; see `radix`."""
    if kind == 0:
        return raw
    if kind == 1:
        return raw ^ sign
    below = sign - np.uint64(1)
    if raw & below > infinity:
        return last
    # A branch on the sign would be foreseen half of the time: shift it into all bits instead.
    negative = np.uint64(np.int64(raw << above) >> np.int64(63))
    word = raw ^ ((negative & below) | sign)
    return word + np.uint64(word == below)  # what -0.0 became


@njit(cache=True, nogil=True)
def count_first_digits(raw, kind, sign, infinity, last, shift, counts):  # type: ignore[no-untyped-def]
    """Count the highest digit of each number's word."""
    above = np.uint64(64 - 8 * raw.itemsize)
    for i in range(raw.size):
        word = _word(np.uint64(raw[i]), kind, sign, infinity, last, above)
        counts[0, word >> shift] += 1


@njit(cache=True, nogil=True)
def count_digits(  # type: ignore[no-untyped-def]
    raw, kind, sign, infinity, last, shift, digit, places, prefixes, counts
):
    """Count the next digit of the words that begin with one of the ascending prefixes."""
    above = np.uint64(64 - 8 * raw.itemsize)
    highest = np.uint64(8 * raw.itemsize - 16)
    mask = (np.uint64(1) << digit) - np.uint64(1)
    for i in range(raw.size):
        word = _word(np.uint64(raw[i]), kind, sign, infinity, last, above)
        at = np.int64(places[word >> highest])
        if at >= 0:
            rest = word >> shift
            prefix = rest >> digit
            while at < prefixes.size and prefixes[at] < prefix:
                at += 1
            if at < prefixes.size and prefixes[at] == prefix:
                counts[at, rest & mask] += 1
