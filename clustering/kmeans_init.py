"""First centers: greedy k-means++ on keyed rows.

Each next center is the best of 2 + ⌊ln k⌋ candidates, which are drawn with probabilities
proportional to the squared distances of rows to the centers there are; the best is the one that
lowers the sum of these most (Arthur and Vassilvitskii, SODA 2007, §7; Grunau et al., SODA 2023).

Draws are keyed by (seed, stream, epoch, number of the draw) and rows stand in the order of their
ids, so that the centers are a function of the rows with their ids. Distances are float32 sums of
squared differences, scaled so that none overflows; they decide what is drawn and nothing else.
Where fewer than k rows differ by as much as float32 can square, others that differ at all follow in
order of their keys.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..dataplane.random import Stream, choose, keys, uniform

__all__ = ["distinct_rows", "plus_plus"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_ROWS_PER_CENTER = 16  # that candidates are drawn from


def plus_plus(x: F32, ids: U64, k: int, *, seed: int, epoch: int = 0) -> F32:
    """Return k different rows as centers, fewer where fewer differ.

    Parameters
    ----------
    x : float32, shape (n, d)
        In the order of row ids.
    ids : uint64, shape (n,)
    k : int
    seed, epoch : int

    Returns
    -------
    float32, shape (≤ k, d)
    """
    rows = min(len(x), _ROWS_PER_CENTER * k)
    few = np.flatnonzero(choose(rows, ids, seed=seed, stream=Stream.KMEANS_SAMPLE))
    picked = few[_drawn(x[few], k, seed, epoch)]
    if len(picked) < k:
        distinct, hashes = distinct_rows(x)
        rest = distinct[~np.isin(hashes[distinct], hashes[picked])]
        by_key = np.argsort(keys(seed, Stream.KMEANS_INIT, epoch, ids[rest]), kind="stable")
        picked = np.concatenate([picked, rest[by_key[: k - len(picked)]]])
    return x[picked]


def distinct_rows(x: F32) -> tuple[I64, U64]:
    """Return the first of each set of equal rows, and a hash of every row.

    Returns
    -------
    first : int64, shape (m,)
        Ascending.
    hashes : uint64, shape (n,)
    """
    from .kmeans_kernels import hash_rows

    hashes = np.empty(len(x), np.uint64)
    step = 1 << 16
    for start in range(0, len(x), step):
        part = x[start : start + step] + np.float32(0)  # -0.0 is 0.0
        hash_rows(part.view(np.uint32), hashes[start : start + step])
    first = np.unique(hashes, return_index=True)[1]
    return np.sort(first).astype(np.int64), hashes


def _drawn(x: F32, k: int, seed: int, epoch: int) -> I64:
    """Return which rows k-means++ takes, until all are at distance 0 from one."""
    from .kmeans_kernels import come_near

    n = len(x)
    blocks = _in_lanes(x)
    flat = blocks.transpose(0, 2, 1)
    tries = 2 + int(math.log(k))
    picked = np.empty(k, np.int64)
    near = np.full((len(blocks), blocks.shape[2]), np.inf, np.float32)
    found = np.empty((tries, *near.shape), np.float32)
    costs = np.empty(tries)
    draws = uniform(seed, Stream.KMEANS_INIT, epoch, np.arange(1 + k * tries, dtype=np.uint64))
    options = np.array([int(draws[0] * n)])
    for number in range(k):
        rows = flat[np.divmod(options, blocks.shape[2])]
        come_near(blocks, rows, near, found[: len(options)], costs[: len(options)])
        best = int(np.argmin(costs[: len(options)]))
        picked[number] = options[best]
        near[:] = found[best]
        near.reshape(-1)[n:] = 0
        heights = np.cumsum(near, dtype=np.float64)
        if not heights[-1]:
            return picked[: number + 1]
        at = draws[1 + number * tries : 1 + (number + 1) * tries] * heights[-1]
        last = int(np.searchsorted(heights, heights[-1]))  # the last row that can be drawn
        options = np.minimum(np.searchsorted(heights, at, side="right"), last)
    return picked


def _in_lanes(x: F32) -> F32:
    """Return rows as `come_near` takes them: shape (blocks, d, LANES), the last block padded."""
    from .kmeans_kernels import LANES

    n, width = x.shape
    low, high = (edge.astype(np.float64) for edge in (x.min(axis=0), x.max(axis=0)))
    middle, spread = (low + high) / 2, float((high - low).max())
    factor = 2.0 ** -float(np.frexp(spread)[1]) if spread else 1.0
    padded = np.empty((-(-n // LANES) * LANES, width), np.float32)
    for start in range(0, n, LANES):
        padded[start : min(n, start + LANES)] = (x[start : start + LANES] - middle) * factor
    padded[n:] = padded[0]
    return np.ascontiguousarray(padded.reshape(-1, LANES, width).transpose(0, 2, 1))
