"""Counter-based random numbers: every draw is a pure function of what it is for.

A draw is keyed by (seed, stream, epoch, counter). The counter is a row id (or a cluster, a batch):
so a row's draw is the same whatever else is in the dataset, in whatever partition it is computed,
on whatever machine, and no generator state exists that could be lost or shared.

**Key.** With G = 0x9E3779B97F4A7C15 and ``mix`` the finaliser of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014), all modulo 2**64::

    base = mix(mix(mix(seed + G) ^ (stream * G + G)) ^ (epoch * G + G))
    key  = mix(mix(base + counter * G))

**Choice** of exactly n of N: the n rows with the smallest keys, no two of which are equal, since
row ids are not: those up to the `sketch.RankSearch.bound` of rank n, which rows in parts find too.
See `choose`.

**Permutation** π of n positions: below 65,536 a stable argsort of the keys of the positions;
otherwise ``feistel8-v1``: a generalised Feistel network over Z_a × Z_b with a = ceil(sqrt(n)),
b = ceil(n/a), eight rounds, walking the cycle while the result is not below n. A position x is
(L, R) = (x // b, x % b); round i = 0..7 adds, modulo the half's size, ``(mix(other ^ k_i) >> 32) *
size >> 32`` to L when i is even, to R when i is odd; the round keys are ``k_i = key`` with counter
i over the base ``mix(base ^ FEISTEL)``. Any position of a billion is found in constant time and
memory.

All of it has two forms with the same bits: numpy, and compiled by numba for large inputs
(`kernels`, `compiled`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from .compiled import compiled_kernels
from .errors import ParameterError
from .sketch import RankSearch

__all__ = [
    "SMALL_PERMUTATION",
    "Permutation",
    "Stream",
    "array_of",
    "base_key",
    "checked_seed",
    "choice_bound",
    "choose",
    "count_keys",
    "hash_values",
    "keys",
    "keys_up_to",
    "mix64",
    "some_of",
    "uniform",
]

U64 = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MUL1, _MUL2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FEISTEL = 0xF815_7E11_0B10_0003  # separates the round keys from the rows' keys
_G, _M1, _M2 = np.uint64(_GOLDEN), np.uint64(_MUL1), np.uint64(_MUL2)

SMALL_PERMUTATION = 65_536
"""Below this a permutation is a sort of keys: a Feistel network reaches too few of n! orders."""

LARGEST_PERMUTATION = 10**12
"""Above this the multiply-high reduction would bias the rounds."""


class Stream(IntEnum):
    """What a draw is for. Every use has its own number; numbers are never reused."""

    SETA_KEEP = 1
    INFOBATCH_KEEP = 2
    ANNEAL_KEEP = 3
    ORDER = 4
    SPLIT = 5
    KMEANS_SAMPLE = 6
    KMEANS_INIT = 7
    STRATUM_OFFSET = 8
    CLUSTER_ORDER = 9
    BATCH_ORDER = 10
    AUGMENT = 11
    GROUP_ORDER = 12
    WINDOW_ORDER = 13
    HOME_ORDER = 14
    RANDOM_SHARE = 15
    IMPORTANCE = 16
    PROBE = 17
    PARTS = 18
    LAZIER = 19
    RANDOM_ROWS = 20
    BASELINE = 21
    POSITIVE = 22
    BALANCED = 23
    PPP_SAMPLE = 24
    PPP_INIT = 25
    PPP_HALF = 26
    NEIGHBORS = 50
    NEGATIVES = 51
    PART_ORDER = 52
    DIRECTIONS = 53


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * _MUL1) & _MASK
    x = ((x ^ (x >> 27)) * _MUL2) & _MASK
    return x ^ (x >> 31)


def mix64(x: U64) -> U64:
    """Return splitmix64's finaliser of each number: a bijection on 64-bit integers."""
    x = x ^ (x >> np.uint64(30))
    x *= _M1
    x ^= x >> np.uint64(27)
    x *= _M2
    x ^= x >> np.uint64(31)
    return x


def base_key(seed: int, stream: int, epoch: int) -> int:
    """Return the 64-bit base that all counters of (seed, stream, epoch) start from."""
    stream, epoch = operator.index(stream), operator.index(epoch)  # numpy's would overflow
    b = _mix((checked_seed(seed) + _GOLDEN) & _MASK)
    b = _mix(b ^ ((stream * _GOLDEN + _GOLDEN) & _MASK))
    return _mix(b ^ ((epoch * _GOLDEN + _GOLDEN) & _MASK))


def checked_seed(seed: int) -> int:
    """Return a seed as a Python int; `ParameterError` where it does not fit 64 bits."""
    try:
        value = operator.index(seed)
    except TypeError:
        value = -1
    if not 0 <= value <= _MASK:
        raise ParameterError(
            f"A seed must be an int in the range [0, 2**64). Got {seed!r} instead."
        )
    return value


def keys(seed: int, stream: int, epoch: int, ids: npt.ArrayLike) -> U64:
    """Return the 64-bit keys of counters.

    Parameters
    ----------
    seed, stream, epoch : int
    ids : array of uint64, shape (n,)

    Returns
    -------
    uint64, shape (n,)
    """
    counters = np.asarray(ids, dtype=np.uint64)
    return _keys_from(base_key(seed, stream, epoch), counters)


def _keys_from(base: int, counters: U64) -> U64:
    compiled = compiled_kernels(counters.size)
    if compiled is not None:
        return compiled.keys(np.uint64(base), np.ascontiguousarray(counters))  # type: ignore[no-any-return]
    with np.errstate(over="ignore"):
        return mix64(mix64(counters * _G + np.uint64(base)))


def keys_up_to(
    bound: int,
    seed: int,
    stream: int,
    epoch: int,
    ids: U64 | range,
    *,
    inside: npt.NDArray[np.bool_],
) -> None:
    """Take from the mask `inside`, shape (n,), the ids whose keys are above a bound.

    Of ids without a gap, given as a range of step 1, keys are made in half the time.
    """
    compiled = compiled_kernels(len(ids))
    if compiled is None:
        inside &= keys(seed, stream, epoch, array_of(ids)) <= np.uint64(bound)
        return
    base, up_to = np.uint64(base_key(seed, stream, epoch)), np.uint64(bound)
    if isinstance(ids, range):
        compiled.keys_up_to_of_run(base, np.uint64(ids.start), up_to, inside)
    else:
        compiled.keys_up_to(base, np.ascontiguousarray(ids), up_to, inside)


def array_of(ids: U64 | range) -> U64:
    """Return row ids that may be a range of step 1 as an array."""
    return np.arange(ids.start, ids.stop, dtype=np.uint64) if isinstance(ids, range) else ids


def some_of(ids: U64 | range, which: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> U64:
    """Return some of row ids that may be a range of step 1, by a mask or by positions."""
    if not isinstance(ids, range):
        return ids[which]
    positions = np.flatnonzero(which) if which.dtype == bool else which
    found = positions.astype(np.int64, copy=False).view(np.uint64)
    return found + np.uint64(ids.start) if ids.start else found


def count_keys(
    low: int,
    shift: int,
    bins: int,
    seed: int,
    stream: int,
    epoch: int,
    ids: U64 | range,
    *,
    into: npt.NDArray[np.int64],
) -> None:
    """Count the keys below a window, in each of its bins, and above it.

    Parameters
    ----------
    low, shift, bins : int
        The window has so many bins, each 2**shift keys wide, from the key `low` on, and ends at
        2**64 or before.
    into : int64, shape (bins + 2,)
        Counts of other ids, to which these are added.
    """
    compiled = compiled_kernels(len(ids))
    if compiled is not None:
        base = np.uint64(base_key(seed, stream, epoch))
        window = np.uint64(low), np.uint64(shift), np.uint64(bins)
        if isinstance(ids, range):
            compiled.count_keys_of_run(base, np.uint64(ids.start), len(ids), *window, into)
        else:
            compiled.count_keys(base, np.ascontiguousarray(ids), *window, into)
        return
    found = keys(seed, stream, epoch, array_of(ids))
    below = found < np.uint64(low)
    slot = (found - np.uint64(low)) >> np.uint64(shift)
    inside = ~below & (slot < np.uint64(bins))
    into[0] += np.count_nonzero(below)
    into[1:-1] += np.bincount(slot[inside].astype(np.int64), minlength=bins)
    into[-1] += len(ids) - np.count_nonzero(below) - np.count_nonzero(inside)


def uniform(seed: int, stream: int, epoch: int, ids: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return draws in [0, 1) with 53 random bits each, shape (n,)."""
    return (keys(seed, stream, epoch, ids) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def hash_values(seed: int, stream: int, values: U64) -> U64:
    """Return keys of 64-bit values that are no counters, such as hashes of a key column."""
    return keys(seed, stream, 0, mix64(values))


# --- exact choice ---------------------------------------------------------------------------------


def choose(
    n: int, ids: npt.ArrayLike, *, seed: int, stream: int, epoch: int = 0
) -> npt.NDArray[np.bool_]:
    """Choose exactly n of the given rows: those with the smallest keys.

    The same rows are chosen in whatever order or partition the ids come, and a larger n only adds
    rows.

    Parameters
    ----------
    n : int
        Rows to choose, 0 ≤ n ≤ len(ids).
    ids : array of uint64, shape (N,)
        Distinct row ids.

    Returns
    -------
    bool, shape (N,)
    """
    ids = np.asarray(ids, dtype=np.uint64)
    if not 0 <= n <= ids.size:
        raise ParameterError(f"Cannot choose {n} of {ids.size} rows.")
    if n == 0:
        return np.zeros(ids.size, dtype=bool)
    row_keys = keys(seed, stream, epoch, ids)
    kept: npt.NDArray[np.bool_] = row_keys <= choice_bound(n, lambda: [row_keys])
    return kept


def choice_bound(n: int, row_keys: Callable[[], Iterable[U64]]) -> np.uint64:
    """Return the key up to which exactly n rows are chosen, 1 ≤ n ≤ N.

    Parameters
    ----------
    n : int
    row_keys : callable
        Returns the keys of all rows, in parts; called up to four times.
    """
    search = RankSearch(np.uint64, lambda _: [n])
    while search.next is not None and search.bound is None:
        counts = np.zeros(search.next.shape, dtype=np.int64)
        for part in row_keys():
            search.next.count(part, into=counts)
        search.narrow(counts)
    if search.bound is None:
        raise ParameterError("Some row ids are the same; give each row its own.")
    return np.uint64(search.bound)


# --- permutation ----------------------------------------------------------------------------------


def _sorted_places(row_keys: U64) -> U64:
    """Return a stable argsort of keys.

    Sorting numbers is ten times as fast as sorting their places: so where 16 bits hold a place, it
    takes those of its key, unless two keys differ in nothing else.
    """
    low = np.uint64(0xFFFF)
    if len(row_keys) <= 1 << 16:
        both = (row_keys & ~low) | np.arange(len(row_keys), dtype=np.uint64)
        both.sort()
        if ((both[1:] ^ both[:-1]) > low).all():
            return both & low
    return np.argsort(row_keys, kind="stable").astype(np.uint64)


class Permutation:
    """π over n positions: a pure function of (n, seed, stream, epoch), of no memory for large n.

    ``p[a:b]`` gives π at the positions a..b-1, ``p.at(positions)`` at any positions, as uint64.
    """

    def __init__(self, n: int, *, seed: int, stream: int = Stream.ORDER, epoch: int = 0) -> None:
        if not 0 <= n <= LARGEST_PERMUTATION:
            raise ParameterError(
                f"A permutation's n must be an int in the range [0, {LARGEST_PERMUTATION}]. "
                f"Got {n} instead."
            )
        self.n = n
        base = base_key(seed, stream, epoch)
        self._sorted: U64 | None = None
        if n < SMALL_PERMUTATION:
            self._sorted = _sorted_places(_keys_from(base, np.arange(n, dtype=np.uint64)))
        self._a = max(1, math.isqrt(max(n - 1, 0)) + 1)  # ceil(sqrt(n)), n ≥ 1
        self._b = max(1, -(-n // self._a))
        self._round_keys = _keys_from(_mix(base ^ _FEISTEL), np.arange(8, dtype=np.uint64))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, positions: slice) -> U64:
        start, stop, step = positions.indices(self.n)
        return self.at(np.arange(start, stop, step, dtype=np.uint64))

    def at(self, positions: npt.ArrayLike) -> U64:
        """Return π of each position; uint64, shape (k,)."""
        x = np.asarray(positions, dtype=np.uint64)
        if x.size and int(x.max()) >= self.n:
            raise ParameterError(f"A permutation of {self.n} has no position {int(x.max())}.")
        if self._sorted is not None:
            return self._sorted[x]
        compiled = compiled_kernels(x.size)
        if compiled is not None:
            return compiled.feistel8(  # type: ignore[no-any-return]
                np.ascontiguousarray(x), self.n, self._a, self._b, self._round_keys
            )
        out = self._rounds(x)
        outside = np.flatnonzero(out >= np.uint64(self.n))
        while outside.size:
            out[outside] = self._rounds(out[outside])
            outside = outside[out[outside] >= np.uint64(self.n)]
        return out

    def inverse(self, values: npt.ArrayLike) -> U64:
        """Return the position of each value: ``p.at(p.inverse(v)) == v``; uint64, shape (k,)."""
        x = np.asarray(values, dtype=np.uint64)
        if x.size and int(x.max()) >= self.n:
            raise ParameterError(f"A permutation of {self.n} has no value {int(x.max())}.")
        if self._sorted is not None:
            return np.argsort(self._sorted)[x].astype(np.uint64)
        out = self._rounds_back(x)
        outside = np.flatnonzero(out >= np.uint64(self.n))
        while outside.size:
            out[outside] = self._rounds_back(out[outside])
            outside = outside[out[outside] >= np.uint64(self.n)]
        return out

    def _rounds_back(self, x: U64) -> U64:
        a, b, half = np.uint64(self._a), np.uint64(self._b), np.uint64(32)
        left, right = x // b, x % b
        for i, key in reversed(list(enumerate(self._round_keys))):
            if i % 2 == 0:
                left = (left + a - ((mix64(right ^ key) >> half) * a >> half)) % a
            else:
                right = (right + b - ((mix64(left ^ key) >> half) * b >> half)) % b
        return left * b + right

    def _rounds(self, x: U64) -> U64:
        a, b, half = np.uint64(self._a), np.uint64(self._b), np.uint64(32)
        left, right = x // b, x % b
        for i, key in enumerate(self._round_keys):
            if i % 2 == 0:
                left = (left + ((mix64(right ^ key) >> half) * a >> half)) % a
            else:
                right = (right + ((mix64(left ^ key) >> half) * b >> half)) % b
        return left * b + right
