"""Batches made of clusters: *within* one, *across* all, *aligned* to whole ones.

All take labels and row ids, return a `BatchPlan` over positions in these arrays, and are a pure
function of (seed, epoch, ids, labels).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError
from ..dataplane.orders import stratified
from ..dataplane.plan import BatchPlan
from ..dataplane.random import Stream, keys

__all__ = [
    "Pieces",
    "across",
    "aligned",
    "cut_clusters",
    "pack_clusters",
    "piece_keys",
    "shuffle_clusters",
    "within",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Labels = npt.NDArray[np.int32]


def within(
    labels: Labels,
    ids: U64,
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    drop_last: bool = False,
) -> BatchPlan:
    """Make micro-batches of one cluster each, in random order.

    A cluster of n rows is shuffled and cut into ceil(n / batch_size) micro-batches whose sizes
    differ by at most one, so that no tiny rest is left. With `drop_last` all have `batch_size` rows
    and a cluster's rest is left out. The side column ``cluster`` holds each micro-batch's cluster.

    Parameters
    ----------
    labels : int32, shape (n,)
    ids : uint64, shape (n,)
    batch_size : int
        Rows a micro-batch at most.

    Returns
    -------
    BatchPlan
        Rows are positions in the arrays given.
    """
    row_keys = keys(seed, Stream.ORDER, epoch, ids)
    grouped = np.lexsort((row_keys, labels))
    present, starts, counts = _runs(labels[grouped])
    pieces = cut_clusters(counts, batch_size, drop_last=drop_last)
    which = np.repeat(np.arange(len(present)), pieces.number)
    piece = np.arange(len(which)) - np.repeat(
        np.cumsum(pieces.number) - pieces.number, pieces.number
    )
    first = starts[which] + pieces.start(which, piece)
    last = starts[which] + pieces.start(which, piece + 1)
    order = np.argsort(piece_keys(ids[grouped[first]], seed=seed, epoch=epoch), kind="stable")
    return _gathered(grouped, first[order], last[order], present[which[order]].astype(np.int64))


@dataclass(frozen=True)
class Pieces:
    """How clusters are cut into micro-batches of about the same size.

    Attributes
    ----------
    number : int64, shape (k,)
        Micro-batches of each cluster.
    used : int64, shape (k,)
        Rows of it that are in one.
    """

    number: I64
    used: I64

    def start(self, cluster: I64, piece: I64) -> I64:
        """Return where pieces start in their clusters' random orders."""
        return piece * self.used[cluster] // self.number[cluster]

    def of(self, cluster: I64, inside: I64) -> I64:
        """Return the piece of each row of a cluster's random order; inverse of `start`."""
        return ((inside + 1) * self.number[cluster] - 1) // self.used[cluster]


def cut_clusters(counts: I64, batch_size: int, *, drop_last: bool) -> Pieces:
    """Cut clusters of so many rows into micro-batches."""
    if drop_last:
        return Pieces(counts // batch_size, counts // batch_size * batch_size)
    return Pieces(-(-counts // batch_size), counts)


def piece_keys(first_ids: U64, *, seed: int, epoch: int) -> U64:
    """Return what micro-batches of one cluster are ordered by: keys of their first rows."""
    return keys(seed, Stream.BATCH_ORDER, epoch, first_ids)


def across(
    labels: Labels,
    ids: U64,
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    drop_last: bool = False,
) -> BatchPlan:
    """Make micro-batches that each hold all clusters in the dataset's shares (`stratified`)."""
    order = stratified(labels, ids, seed=seed, epoch=epoch)
    if drop_last:
        order = order[: len(order) // batch_size * batch_size]
    return BatchPlan.cut(order.astype(np.uint64), batch_size)


def aligned(
    labels: Labels,
    ids: U64,
    *,
    batch_size: int,
    seed: int,
    epoch: int = 0,
    drop_last: bool = False,
) -> BatchPlan:
    """Make micro-batches of whole clusters: no cluster is ever cut.

    The clusters come in random order, each joining the micro-batch before it while that has room;
    rows of a cluster stay together, in random order. With `drop_last` the last micro-batch is left
    out unless it is full.

    Raises
    ------
    SelectionError
        Where a cluster has more rows than a micro-batch.
    """
    row_keys = keys(seed, Stream.ORDER, epoch, ids)
    present, _, counts = _runs(np.sort(labels))
    shuffled = shuffle_clusters(present, seed=seed, epoch=epoch)
    cuts = pack_clusters(present[shuffled], counts[shuffled], batch_size, drop_last=drop_last)
    rank = np.empty(int(present.max()) + 1 if len(present) else 0, dtype=np.int64)
    rank[present[shuffled]] = np.arange(len(present))
    order = np.lexsort((row_keys, rank[labels]))
    return BatchPlan.of(cuts, order[: cuts[-1]].astype(np.uint64))


def shuffle_clusters(present: npt.NDArray[np.integer], *, seed: int, epoch: int) -> I64:
    """Return clusters in random order, as positions in the array given."""
    return np.argsort(
        keys(seed, Stream.CLUSTER_ORDER, epoch, present.astype(np.uint64)), kind="stable"
    )


def pack_clusters(
    clusters: npt.NDArray[np.integer], counts: I64, batch_size: int, *, drop_last: bool
) -> I64:
    """Return where micro-batches of whole clusters are cut; `aligned` says how.

    Parameters
    ----------
    clusters, counts : integers, shape (k,)
        Clusters in order, and the rows of each.

    Returns
    -------
    int64, shape (m + 1,)
    """
    if counts.max(initial=0) > batch_size:
        worst = np.flatnonzero(counts == counts.max())
        cluster = int(clusters[worst].min())
        raise SelectionError(
            f"Cluster {cluster} has {int(counts.max())} rows, more than a micro-batch of "
            f"{batch_size}; use more clusters, a larger batch, or batches=within."
        )
    if not len(counts):
        return np.zeros(1, dtype=np.int64)
    ends = np.cumsum(counts)
    cuts, made = np.zeros(len(counts) + 1, dtype=np.int64), 0
    while made == 0 or cuts[made] < ends[-1]:  # each takes all the clusters that it has room for
        fit = int(np.searchsorted(ends, cuts[made] + batch_size, side="right"))
        made += 1
        cuts[made] = ends[fit - 1]
    if drop_last and cuts[made] - cuts[made - 1] < batch_size:
        made -= 1
    return cuts[: made + 1]


def _runs(ordered: npt.NDArray[np.integer]) -> tuple[npt.NDArray[np.integer], I64, I64]:
    """Return (value, start, length) of each run of equal values."""
    changes = np.append(len(ordered) > 0, ordered[1:] != ordered[:-1])
    starts = np.flatnonzero(changes[: len(ordered)])
    return ordered[starts], starts, np.diff(np.append(starts, len(ordered)))


def _gathered(order: I64, first: I64, last: I64, cluster: I64) -> BatchPlan:
    """Put pieces of an order one after another."""
    sizes = last - first
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    rows = order[np.repeat(first, sizes) + inside].astype(np.uint64)
    return BatchPlan.of(offsets, rows, side={"cluster": cluster})
