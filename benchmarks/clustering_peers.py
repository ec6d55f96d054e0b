"""The balanced clustering of NGAME's published code, restated, to measure against; and its data.

What the reference does (Dahiya et al., WSDM 2023; the project `ngame` and the library `pyxclib`
that it calls, read and not copied):

1. The number of clusters is rounded up to a power of two. All rows are one node.
2. Each node is halved, level by level. Its rows are copied out and scaled to length 1. Two rows at
   random are the first centers. In every turn rows are sorted by the difference of their cosines
   with both centers (float32), the order is cut in the middle, and the centers become the halves'
   means at length 1; this ends when the mean cosine with the own center grows by less than 1e-4.
3. Micro-batches are the clusters in a random order, strung together and cut every so many rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["pair_cosine", "reference_batches", "reference_clusters", "some_rows", "unit"]


def unit(x: Any) -> Any:
    """Return rows at length 1, float32; rows of zeros as they are."""
    lengths = np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]
    return x / np.where(lengths > 0, lengths, 1).astype(np.float32)


# --- the reference --------------------------------------------------------------------------------


def reference_clusters(
    x: Any, k: int, seed: int = 0, *, scaled: Callable[[Any], Any] = unit
) -> Any:
    """Return the cluster of each row, of as many as the next power of two from k.

    `scaled` returns rows at length 1: the reference calls ``sklearn.preprocessing.normalize``,
    whose checks cost more than the work where nodes are small.
    """
    draw = np.random.RandomState(seed)
    nodes = [np.arange(len(x))]
    for _ in range(math.ceil(math.log2(k))):
        nodes = [half for rows in nodes for half in _halves(x[rows], rows, draw, scaled)]
    labels = np.empty(len(x), np.int32)
    for number, rows in enumerate(nodes):
        labels[rows] = number
    return labels


def _halves(x: Any, rows: Any, draw: Any, scaled: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Halve a node; x holds its rows alone."""
    n = len(x)
    if n < 2:
        raise ValueError("the reference cannot halve a node of one row")
    x = scaled(x)
    first = draw.randint(n)
    second = (first + 1 + draw.randint(n - 1)) % n
    cosines = x @ x[[first, second]].T
    before, now = -math.inf, -2.0
    while now - before >= 1e-4:
        order = np.argsort(cosines[:, 1] - cosines[:, 0])
        left, right = order[: (n + 1) // 2], order[(n + 1) // 2 :]
        centers = scaled(np.stack([x[left].mean(axis=0), x[right].mean(axis=0)]))
        cosines = x @ centers.T
        before, now = now, float(cosines[left, 0].sum() + cosines[right, 1].sum()) / n
    return rows[left], rows[right]


def reference_batches(labels: Any, batch_size: int, seed: int = 0) -> Any:
    """Return the micro-batch of each row where clusters are strung together and cut."""
    ranks = np.random.RandomState(seed).permutation(int(labels.max()) + 1)
    order = np.argsort(ranks[labels], kind="stable")
    batches = np.empty(len(labels), np.int64)
    batches[order] = np.arange(len(labels)) // batch_size
    return batches


# --- what is clustered, and how well --------------------------------------------------------------


def some_rows(n: int, d: int, seed: int = 0, groups: int = 64) -> Any:
    """Draw rows of a mixture of mixtures: `groups` centers of `groups` centers each; float32."""
    draw = np.random.default_rng(seed)
    top = draw.standard_normal((groups, 1, d), dtype=np.float32)
    centers = top + 0.7 * draw.standard_normal((groups, groups, d), dtype=np.float32)
    x = centers.reshape(-1, d)[draw.integers(0, groups * groups, n)].astype(np.float32)
    for start in range(0, n, 1 << 17):
        part = x[start : start + (1 << 17)]
        part += np.float32(0.6) * draw.standard_normal(part.shape, dtype=np.float32)
    return x


def pair_cosine(x: Any, labels: Any) -> float:
    """Return the mean cosine of all pairs of rows in one cluster."""
    order = np.argsort(labels, kind="stable")
    sizes = np.bincount(labels)
    sizes = sizes[sizes > 0].astype(np.float64)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    near, alone = np.zeros(len(sizes)), np.zeros(len(sizes))
    rows = unit(x)[order]
    for column in range(x.shape[1]):
        values = rows[:, column].astype(np.float64)
        near += np.add.reduceat(values, starts) ** 2
        alone += np.add.reduceat(values * values, starts)
    return float((near - alone).sum() / (sizes * (sizes - 1)).sum())
