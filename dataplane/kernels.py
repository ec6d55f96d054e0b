"""Compiled loops of the data plane: the same bits as their numpy forms, faster on large inputs."""

from __future__ import annotations

import numpy as np
from numba import njit

_G = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_BLOCK = 512  # numbers that go through the rounds of a permutation together
_TILE = 1024  # ranks that take the steps of a select together


@njit(cache=True, inline="always")
def _mix(x):
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@njit(cache=True, nogil=True)
def keys(base, counters):
    out = np.empty(counters.size, np.uint64)
    for i in range(counters.size):
        out[i] = _mix(_mix(base + counters[i] * _G))
    return out


@njit(cache=True, nogil=True)
def keys_up_to(base, counters, bound, inside):
    """Take from a mask the counters whose keys are above a bound."""
    for i in range(counters.size):
        inside[i] &= _mix(_mix(base + counters[i] * _G)) <= bound


@njit(cache=True, nogil=True)
def keys_up_to_of_run(base, first, bound, inside):
    """Do as `keys_up_to` for the counters from `first` on: they need not be read."""
    start = np.uint64(first)
    for i in range(inside.size):
        inside[i] &= _mix(_mix(base + (start + np.uint64(i)) * _G)) <= bound


@njit(cache=True, nogil=True)
def count_keys(base, counters, low, shift, bins, counts):
    """Count keys below a window, in each of its bins, and above it."""
    block = np.empty(_BLOCK, np.uint64)
    for start in range(0, counters.size, _BLOCK):
        size = min(_BLOCK, counters.size - start)
        for i in range(size):
            block[i] = _mix(_mix(base + counters[start + i] * _G))
        _count_block(block, size, low, shift, bins, counts)


@njit(cache=True, nogil=True)
def count_keys_of_run(base, first, size, low, shift, bins, counts):
    """Do as `count_keys` for so many counters from `first` on."""
    block = np.empty(_BLOCK, np.uint64)
    for start in range(0, size, _BLOCK):
        here, counter = min(_BLOCK, size - start), np.uint64(first) + np.uint64(start)
        for i in range(here):
            block[i] = _mix(_mix(base + (counter + np.uint64(i)) * _G))
        _count_block(block, here, low, shift, bins, counts)


@njit(cache=True, inline="always")
def _count_block(block, size, low, shift, bins, counts):
    below, inside, nearest = 0, 0, ~np.uint64(0)
    for i in range(size):
        below += block[i] < low
        nearest = min(nearest, block[i] - low)  # far above the window where it is below it
    if nearest >> shift < bins:  # of most blocks no key is inside
        for i in range(size):
            slot = (block[i] - low) >> shift
            if slot < bins:
                counts[1 + slot] += 1
                inside += 1
    counts[0] += below
    counts[counts.size - 1] += size - below - inside


@njit(cache=True, inline="always")
def _added(half, other, key, size):
    """Return a half of a position after one round; no branch, so that loops are vectorised."""
    half += ((_mix(other ^ key) >> _S32) * size) >> _S32
    over = half - size  # below the size: a sum of two halves stays below twice of it
    return over + (size & np.uint64(np.int64(over) >> np.int64(63)))


@njit(cache=True, nogil=True)
def _feistel_rounds(positions, out, left_size, right_size, round_keys):
    """Write eight rounds of some positions, round by round."""
    left, right = np.empty_like(positions), np.empty_like(positions)
    for j in range(positions.size):
        left[j] = positions[j] // right_size
        right[j] = positions[j] - left[j] * right_size
    for i in range(0, 8, 2):
        for j in range(positions.size):
            left[j] = _added(left[j], right[j], round_keys[i], left_size)
            right[j] = _added(right[j], left[j], round_keys[i + 1], right_size)
    for j in range(positions.size):
        out[j] = left[j] * right_size + right[j]


@njit(cache=True, nogil=True)
def feistel8(positions, n, a, b, round_keys):
    size, left_size, right_size = np.uint64(n), np.uint64(a), np.uint64(b)
    out = np.empty(positions.size, np.uint64)
    for start in range(0, positions.size, _BLOCK):
        block = positions[start : start + _BLOCK]
        _feistel_rounds(block, out[start : start + _BLOCK], left_size, right_size, round_keys)
    for j in range(positions.size):  # walk the cycle: few are outside
        while out[j] >= size:
            _feistel_rounds(out[j : j + 1], out[j : j + 1], left_size, right_size, round_keys)
    return out


@njit(cache=True, nogil=True)
def mark_bits(words, positions):
    """Set the bit of each position."""
    for i in range(positions.size):
        p = np.uint64(positions[i])
        words[p >> np.uint64(6)] |= np.uint64(1) << (p & np.uint64(63))


@njit(cache=True, inline="always")
def _count_bits(x):
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, inline="always")
def _place_in_word(word, left):
    """Return the place of the set bit that has `left` others before it."""
    place, width = np.uint64(0), np.uint64(32)
    while width > 0:  # halve: is the bit in the lower half?
        inside = _count_bits(word & ((np.uint64(1) << width) - np.uint64(1)))
        upper = np.int64(left >= inside)
        left -= inside * upper
        word >>= width * np.uint64(upper)
        place += width * np.uint64(upper)
        width >>= np.uint64(1)
    return place


@njit(cache=True, nogil=True)
def select_bits(words, before, hints, ranks):
    """Return the place of the set bit of each rank; see `bitmap`.

    Many ranks take each step together: what they miss in the cache is then fetched side by side.
    """
    out = np.empty(ranks.size, np.uint64)
    place, left = np.empty(_TILE, np.int64), np.empty(_TILE, np.int64)
    for start in range(0, ranks.size, _TILE):
        tile = ranks[start : start + _TILE]
        for i in range(tile.size):
            low, high = hints[tile[i] >> 10], hints[(tile[i] >> 10) + 1]
            while low < high:  # the last block with no more than so many bits before it
                middle = (low + high + 1) >> 1
                if before[middle] <= tile[i]:
                    low = middle
                else:
                    high = middle - 1
            place[i], left[i] = low * 8, tile[i] - before[low]
        for i in range(tile.size):
            word, rest = place[i], left[i]
            inside = _count_bits(words[word])
            while rest >= inside:
                rest -= inside
                word += 1
                inside = _count_bits(words[word])
            place[i], left[i] = word, rest
        for i in range(tile.size):
            bit = _place_in_word(words[place[i]], left[i])
            out[start + i] = np.uint64(place[i] * 64) + bit
    return out


@njit(cache=True, inline="always")
def _word(raw, kind, sign, infinity, last, above):
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
def count_first_digits(raw, kind, sign, infinity, last, shift, counts):
    """Count the highest digit of each number's word."""
    above = np.uint64(64 - 8 * raw.itemsize)
    for i in range(raw.size):
        word = _word(np.uint64(raw[i]), kind, sign, infinity, last, above)
        counts[0, word >> shift] += 1


@njit(cache=True, nogil=True)
def count_digits(raw, kind, sign, infinity, last, shift, digit, places, prefixes, counts):
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
