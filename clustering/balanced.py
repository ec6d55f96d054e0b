"""Balanced k-means: clusters of equal sizes, by halving again and again.

Cluster c of k holds floor(n / k) rows, and one more where c < n mod k. The rows are the root of a
tree. A node of more than one cluster is split in two: its left child takes ceil(k / 2) of its
clusters, and exactly the rows that these hold. Clusters are numbered from left to right, so those
of near numbers are near in the tree.

**A split** is 2-means with set sizes. Where c₀ and c₁ are the centers of the halves, the best
halves for them are the rows of the smallest *scores* x · (c₁ − c₀), so one dot product a row and
one order statistic make a turn:

1. Rows come in the order of their *keys* (`random.keys` of the row id): the first m rows of a node
   are a random sample of it. The first two, the smaller id on the left, are the first centers.
2. The first 512 rows are halved (all of a node below 1,024), the centers become the halves' means,
   and so on until the squared distance between them grows by less than the share ``tol``; then four
   times as many rows, from where that ended, up to ``sample_rows`` of them. Halves of a sample have
   the node's shares.
3. All rows of the node are scored along the last direction. Those of the smallest (score, row id)
   go left, as many as the left clusters hold.

Scores are float64 sums in one fixed order, of the row alone, less the middle of the two centers,
rounded to float32; sums run in the order of keys. What decides is thus a function of (seed, row
ids, rows): the same in any order and memory layout of the rows, for any number of threads, and a
node's rows by themselves, as ``BalancedKMeans(k of the node)``, are split as they were inside the
tree. So upper nodes can be split over parts of the rows (`balanced_levels`), with the same labels.

With ``metric="cosine"`` rows are taken at length 1, which is what NGAME clusters by; the mean
cosine between rows of a cluster is then what is made large. Rows of zeros stay zeros. Equal rows
have equal scores, and are told apart by their ids: there may be more clusters than distinct rows.

Source: NGAME (Dahiya et al., WSDM 2023), whose published code halves all rows of a node in every
turn, into a power of two of clusters. Any k, samples, exact ties and keys are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.cores import usable_cores
from ..dataplane.errors import InvalidValueError, ParameterError, SelectionError, examples
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream, keys
from ..dataplane.row_arrays import checked_ids, float32_rows
from .clusters import Clusters

__all__ = [
    "BalancedKMeans",
    "Node",
    "checked",
    "first_row",
    "key_order",
    "prepared",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_NODE_BYTES = 2 << 20  # of the rows of a node whose whole subtree one thread makes
_SHARED = 1 << 20  # numbers that are worth a thread's start
_CHUNK = 1 << 16  # rows that one thread makes ready at a time


@parameters
class BalancedKMeans:
    """Parameters of balanced k-means; give either `k` or `size`."""

    k: Annotated[int | None, Field(ge=1, lt=1 << 31, description="clusters")] = None
    size: Annotated[
        int | None, Field(ge=1, description="rows a cluster at most: as few clusters as that takes")
    ] = None
    seed: Annotated[int, Field(ge=0, description="seed of the keys that order the rows")] = 0
    metric: Annotated[
        Literal["euclidean", "cosine"],
        Field(description="cosine: rows are scaled to length 1 first, as NGAME's are"),
    ] = "euclidean"
    sample_rows: Annotated[
        int, Field(ge=2, description="rows that a split is learned on at most")
    ] = 16_384
    max_iter: Annotated[int, Field(ge=1, description="turns of a split at most")] = 50
    tol: Annotated[
        float,
        Field(ge=0, description="growth of the centers' squared distance at which a split ends"),
    ] = 1e-4

    def __post_init__(self) -> None:
        if (self.k is None) == (self.size is None):
            given = "neither" if self.k is None else f"k = {self.k} and size = {self.size}"
            raise ParameterError(
                "BalancedKMeans takes either 'k', the number of clusters, or 'size', the rows a "
                f"cluster at most. Got {given} instead."
            )

    def clusters(self, rows: int) -> int:
        """Return how many clusters so many rows make.

        Raises
        ------
        SelectionError
            Where there are fewer rows than clusters, or none.
        """
        if rows < 1:
            raise SelectionError("There are no rows to cluster.")
        k = self.k if self.k is not None else -(-rows // (self.size or 1))
        if k > rows:
            raise SelectionError(
                f"Balanced k-means was asked for k = {k} clusters of {rows} rows; choose a smaller "
                "k."
            )
        return k

    def of_node(self, node: Node) -> BalancedKMeans:
        """Return what clusters a node's rows by themselves, as they are inside the tree."""
        return replace(self, k=node.clusters, size=None)

    def fit(
        self, x: npt.ArrayLike, ids: npt.ArrayLike | None = None, *, threads: int | None = None
    ) -> Clusters:
        """Cluster rows.

        Parameters
        ----------
        x : float, shape (n, d)
            Taken as float32, in any memory order.
        ids : uint64, shape (n,), optional
            Row ids, each its own; positions when None.
        threads : int, optional
            One a core when None. Their number changes no bit.

        Returns
        -------
        Clusters
            Its centers are the clusters' means, its inertia the sum of squared distances to them;
            of rows at length 1 with ``metric="cosine"``.

        Raises
        ------
        SelectionError
            Where shapes do not fit, ids repeat, or there are fewer rows than clusters.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        values, names = checked(x, ids)
        k = self.clusters(len(values))
        centers, spread = np.empty((k, values.shape[1]), np.float32), np.empty(k)
        labels = self._label(values, names, k, centers, spread, threads)
        return Clusters(labels, centers, math.fsum(spread), _sizes(len(values), k))

    def labels(
        self, x: npt.ArrayLike, ids: npt.ArrayLike | None = None, *, threads: int | None = None
    ) -> npt.NDArray[np.int32]:
        """Return the labels alone that `fit` finds; int32, shape (n,)."""
        values, names = checked(x, ids)
        k = self.clusters(len(values))
        nothing = np.empty((0, 0), np.float32), np.empty(0)
        return self._label(values, names, k, *nothing, threads)

    def _label(
        self,
        values: F32,
        names: U64,
        k: int,
        centers: F32,
        spread: npt.NDArray[np.float64],
        threads: int | None,
    ) -> npt.NDArray[np.int32]:
        from .balanced_kernels import finish, halve

        n = len(values)
        threads = threads or usable_cores() if values.size >= _SHARED else 1
        order = key_order(names, self.seed)
        rows = prepared(values, names, order, self.metric, threads=threads)
        ids, pos = names[order], np.arange(n)
        settings = self.sample_rows, self.tol, self.max_iter

        def split(node: Node) -> None:
            left, _ = node.children()
            halve(rows, pos[node.start : node.stop], ids, left.rows, *settings)

        def end(node: Node) -> None:
            here = slice(node.first, node.first + node.clusters)
            inside = pos[node.start : node.stop]
            finish(rows, inside, ids, node.clusters, *settings, centers[here], spread[here])

        most = _NODE_BYTES // (4 * rows.shape[1])
        waiting, last = [Node(0, k, 0, n)], []
        while waiting:
            last += [node for node in waiting if node.rows <= most or node.clusters == 1]
            waiting = [node for node in waiting if node.rows > most and node.clusters > 1]
            _each(split, waiting, threads)
            waiting = [child for node in waiting for child in node.children()]
        _each(end, last, threads)
        found = np.empty(n, np.int32)
        found[order[pos]] = np.repeat(np.arange(k, dtype=np.int32), _sizes(n, k))
        return found


# --- rows and their order -------------------------------------------------------------------------


def checked(x: npt.ArrayLike, ids: npt.ArrayLike | None) -> tuple[F32, U64]:
    """Return rows as float32 and their ids; `SelectionError` where they are none."""
    values = float32_rows(x)
    return values, checked_ids(ids, len(values))


def key_order(ids: U64, seed: int) -> I64:
    """Return the order of the rows by keys, as positions; `SelectionError` where ids repeat."""
    row_keys = keys(seed, Stream.BALANCED, 0, ids)
    order = np.argsort(row_keys)  # no two are equal
    ordered = row_keys[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1])  # keys are equal where ids are
    if len(again):
        raise SelectionError(
            f"Row ids repeat: {examples(np.unique(ids[order[again]]))}. Give each row its own."
        )
    return order


def prepared(values: F32, ids: U64, order: I64, metric: str, *, threads: int = 1) -> F32:
    """Return rows in an order, as the loops take them: padded with zeros, at length 1 by cosine."""
    from .balanced_kernels import LANES, prepare

    n, d = values.shape
    rows = np.zeros((n, max(1, -(-d // LANES)) * LANES), np.float32)
    fine = np.ones(n, dtype=bool)

    def some(start: int) -> None:
        here = slice(start, start + _CHUNK)
        prepare(values, order[here], metric == "cosine", rows[here], fine[here])

    _each(some, range(0, n, _CHUNK), threads)
    if not fine.all():
        bad = np.sort(ids[order[~fine]])
        raise InvalidValueError(
            f"{len(bad)} rows hold NaN or infinite values: {examples(bad)}. Mend them, or leave "
            "them out."
        )
    return rows


# --- the tree -------------------------------------------------------------------------------------


def first_row(rows: int, k: int, cluster: int) -> int:
    """Return how many rows the clusters before one hold."""
    return cluster * (rows // k) + min(cluster, rows % k)


def _sizes(rows: int, k: int) -> I64:
    return rows // k + (np.arange(k, dtype=np.int64) < rows % k)


@dataclass(frozen=True)
class Node:
    """A node of the tree.

    Attributes
    ----------
    first, clusters : int
        It holds the rows of clusters `first` to `first` + `clusters` − 1.
    start, rows : int
        Rows of the clusters before these, and of these.
    """

    first: int
    clusters: int
    start: int
    rows: int

    @property
    def stop(self) -> int:
        return self.start + self.rows

    def children(self) -> tuple[Node, Node]:
        """Return the two nodes that this one is split into."""
        number = (self.clusters + 1) // 2
        rows = first_row(self.rows, self.clusters, number)
        return (
            Node(self.first, number, self.start, rows),
            Node(self.first + number, self.clusters - number, self.start + rows, self.rows - rows),
        )


def _each(run: Callable[[Any], None], tasks: Iterable[Any], threads: int) -> None:
    """Run each task, on some threads."""
    if threads == 1:
        for task in tasks:
            run(task)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(run, tasks))
