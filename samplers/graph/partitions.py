"""Partitions of a graph's nodes, for batches of whole clusters (`clusters`).

``metis_partition`` is METIS's, which cuts few edges (extra ``metis``).

``balanced_partition`` needs no extra: balanced k-means, of features that are given or of
*diffusion features*. These put nodes near each other that a random walk confuses. Row i of Pᵗ says
where a lazy walk from node i is after t steps; the distance of two rows, its columns weighed by
1/√π for the walk's stationary distribution π, is the diffusion distance of Coifman and Lafon
("Diffusion maps", 2006). The rows are of N numbers, so they are projected onto a few random
directions, which keeps distances up to a small factor (Johnson and Lindenstrauss): a random matrix
is made, scaled, and t times replaced by half of itself and half of the mean of its neighbours. One
step reads each edge once.

Edges count both ways, each pair of nodes once, without loops. Both are functions of (graph, seed):
the number of threads changes nothing. METIS's partition is promised for its version and the
machine's type only, as is that of balanced k-means.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ...dataplane.cores import usable_cores
from ...dataplane.errors import InvalidValueError, ParameterError, needs_extra
from ...dataplane.random import Stream, uniform
from .csc import CSCGraph, as_numpy

__all__ = ["Partition", "balanced_partition", "diffusion_features", "metis_partition"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_COUNTER_BITS = 8  # of a direction; the others are the node's


@dataclass(frozen=True, eq=False)
class Partition:
    """Clusters of a graph's nodes.

    Attributes
    ----------
    labels : int32, shape (N,)
        The cluster of each node, 0…count−1.
    count : int
    """

    labels: I32
    count: int

    def __post_init__(self) -> None:
        labels = self.labels
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ParameterError(
                "The 'labels' of a partition are one integer a node. Got "
                f"{labels.dtype} of shape {labels.shape}."
            )
        if labels.size and (int(labels.min()) < 0 or int(labels.max()) >= self.count):
            place = int(np.flatnonzero((labels < 0) | (labels >= self.count))[0])
            raise InvalidValueError(
                f"Node {place} has label {labels[place]}: a partition of {self.count} clusters "
                "numbers them from 0."
            )

    @classmethod
    def of(cls, labels: npt.ArrayLike) -> Partition:
        """Make a partition of labels, such as a column of a table of the nodes."""
        array = as_numpy(labels)
        count = int(array.max()) + 1 if array.size and array.dtype.kind in "iu" else 0
        if array.dtype.kind in "iu" and count <= 2**31:
            array = array.astype(np.int32, copy=False)
        return cls(array, count)

    @cached_property
    def _sorted(self) -> tuple[I64, I64]:
        """Nodes by cluster, ascending in each; where each cluster begins."""
        order = np.argsort(self.labels, kind="stable")
        sizes = np.bincount(self.labels, minlength=self.count)
        return order, np.concatenate([[0], np.cumsum(sizes)])

    @property
    def sizes(self) -> I64:
        """Nodes of each cluster, shape (count,)."""
        return np.diff(self._sorted[1])

    def nodes(self, cluster: int) -> I64:
        """Return the nodes of a cluster, ascending."""
        order, starts = self._sorted
        return order[starts[cluster] : starts[cluster + 1]]

    def cut_share(self, graph: CSCGraph) -> float:
        """Return the share of a graph's edges that join two clusters: what batches of one lose."""
        from .diffusion_kernels import count_cut

        _check_size(self, graph)
        if graph.num_edges == 0:
            return 0.0
        return float(count_cut(graph.colptr, graph.row, self.labels)) / graph.num_edges


def metis_partition(graph: CSCGraph, count: int, *, seed: int = 0) -> Partition:
    """Cut a graph by METIS into clusters of about equal size, with few edges between them.

    Parameters
    ----------
    graph : CSCGraph
        Of one kind of nodes.
    count : int
        Clusters.
    seed : int
        Of METIS's own draws.

    Raises
    ------
    MissingExtraError
        Where pymetis is not installed.
    ParameterError
        Where `count` is out of its range, or the graph has more edges than METIS counts.
    """
    with needs_extra("Partitioning by METIS", "metis"):
        import pymetis
    _check_count(graph, count)
    begin, neighbor = _undirected(graph)
    dtype = np.dtype(pymetis.zero_copy_dtype())
    if neighbor.size > np.iinfo(dtype).max:
        raise ParameterError(
            f"The graph has {neighbor.size:,} edges, both ways, and this METIS counts up to "
            f"{np.iinfo(dtype).max:,}. Use balanced_partition."
        )
    _, labels = pymetis.part_graph(
        count,
        pymetis.CSRAdjacency(begin.astype(dtype), neighbor.astype(dtype)),
        options=pymetis.Options(seed=seed & 0x7FFFFFFF),
    )
    return Partition(np.asarray(labels, np.int32), count)


def balanced_partition(
    graph: CSCGraph,
    count: int,
    *,
    features: Any = None,
    width: int = 32,
    steps: int = 16,
    seed: int = 0,
) -> Partition:
    """Cut a graph into clusters of equal size by balanced k-means.

    Parameters
    ----------
    graph : CSCGraph
        Of one kind of nodes.
    count : int
        Clusters; their sizes differ by at most one.
    features : float, shape (N, d), optional
        What is clustered. None: diffusion features of the graph.
    width, steps : int
        Of these.
    seed : int

    Raises
    ------
    ParameterError, InvalidValueError
    """
    from ...clustering import BalancedKMeans

    _check_count(graph, count)
    if features is None:
        x = diffusion_features(graph, width=width, steps=steps, seed=seed)
    else:
        x = as_numpy(features)
        if x.shape[:1] != (graph.num_nodes,):
            raise ParameterError(
                f"The 'features' have a row for each of the {graph.num_nodes} nodes. Got shape "
                f"{x.shape}."
            )
    return Partition(BalancedKMeans(k=count, seed=seed).fit(x).labels, count)


def diffusion_features(
    graph: CSCGraph, *, width: int = 32, steps: int = 16, seed: int = 0
) -> npt.NDArray[np.float32]:
    """Return rows whose distances are about the nodes' diffusion distances.

    Parameters
    ----------
    graph : CSCGraph
        Of one kind of nodes.
    width : int
        Random directions, in the range [1, 256].
    steps : int
        Of the walk: the more, the larger the structures that are seen.
    seed : int

    Returns
    -------
    float32, shape (N, width)
    """
    from .diffusion_kernels import lazy_step

    for name, value, most in (("width", width, 1 << _COUNTER_BITS), ("steps", steps, 1 << 20)):
        if not 1 <= value <= most:
            raise ParameterError(
                f"The '{name}' must be an int in the range [1, {most}]. Got {value}."
            )
    _check_one_kind(graph)
    begin, neighbor = _undirected(graph)
    nodes = np.arange(graph.num_nodes, dtype=np.uint64) << np.uint64(_COUNTER_BITS)
    x = np.empty((graph.num_nodes, width), np.float32)
    for j in range(width):  # of mean 0 and variance 1, as the lemma wants them
        draws = uniform(seed, Stream.DIRECTIONS, 0, nodes + np.uint64(j))
        x[:, j] = (2 * draws - 1) * np.sqrt(3)
    degree = np.maximum(np.diff(begin), 1)
    x /= np.sqrt(degree / degree.sum()).astype(np.float32)[:, None]
    other = np.empty_like(x)
    threads = usable_cores()
    cuts = np.linspace(0, graph.num_nodes, threads * 4 + 1).astype(np.int64)
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(steps):
            # A row is made by one thread, in the order of the neighbours.
            made = [
                pool.submit(lazy_step, begin, neighbor, x, other, a, b) for a, b in pairwise(cuts)
            ]
            for future in made:
                future.result()
            x, other = other, x
    linked = np.diff(begin) > 0
    x -= x[linked].mean(axis=0, dtype=np.float64).astype(np.float32) if linked.any() else 0
    x[~linked] = 0  # no walk leads anywhere: in the middle, where they fill what is not full
    scale = np.sqrt((x * x).mean(dtype=np.float64)) or 1.0  # distances are compared only
    x /= np.float32(scale)
    return x


def _undirected(graph: CSCGraph) -> tuple[I64, I64]:
    """Return where each node's neighbours begin, and the neighbours, ascending, once each."""
    target = np.repeat(np.arange(graph.num_nodes), np.diff(graph.colptr))
    source = graph.row.astype(np.int64)
    apart = source != target
    source, target = source[apart], target[apart]
    key = np.concatenate([target, source]) * graph.num_nodes + np.concatenate([source, target])
    key.sort()  # and once each; np.unique takes ten times as long
    pairs = key[np.append(True, key[1:] != key[:-1])[: key.size]]
    ends, neighbor = np.divmod(pairs, max(1, graph.num_nodes))
    begin = np.zeros(graph.num_nodes + 1, np.int64)
    np.cumsum(np.bincount(ends, minlength=graph.num_nodes), out=begin[1:])
    return begin, neighbor


def _check_one_kind(graph: CSCGraph) -> None:
    if graph.num_sources != graph.num_nodes:
        raise ParameterError(
            f"The graph leads from {graph.num_sources} nodes to {graph.num_nodes} others; a graph "
            "of one kind of nodes is partitioned."
        )


def _check_count(graph: CSCGraph, count: int) -> None:
    _check_one_kind(graph)
    if not 1 <= count <= graph.num_nodes:
        raise ParameterError(
            f"The number of clusters must be an int in the range [1, {graph.num_nodes}], the "
            f"number of nodes. Got {count}."
        )


def _check_size(partition: Partition, graph: CSCGraph) -> None:
    _check_one_kind(graph)
    if partition.labels.size != graph.num_nodes:
        raise ParameterError(
            f"The partition is of {partition.labels.size} nodes, and the graph has "
            f"{graph.num_nodes}. Partition this graph."
        )
