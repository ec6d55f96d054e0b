"""Batches made of clusters: *within* one, *across* all, *aligned* to whole ones.

All take labels and row ids, return a `BatchPlan` over positions in these arrays, and are a pure
function of (seed, epoch, ids, labels).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import SelectionError
from ..dataplane.orders import stratified
from ..dataplane.plan import BatchPlan
from ..dataplane.random import Stream, keys

__all__ = ["across", "aligned", "within"]

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
    grouped = np.lexsort((ids, row_keys, labels))
    present, starts, counts = _runs(labels[grouped])
    pieces = counts // batch_size if drop_last else -(-counts // batch_size)
    used = pieces * batch_size if drop_last else counts
    which = np.repeat(np.arange(len(present)), pieces)
    piece = np.arange(len(which)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    first = starts[which] + piece * used[which] // pieces[which]
    last = starts[which] + (piece + 1) * used[which] // pieces[which]
    order = np.argsort(
        keys(seed, Stream.BATCH_ORDER, epoch, ids[grouped[first]] if len(first) else first),
        kind="stable",
    )
    return _gathered(grouped, first[order], last[order], present[which[order]].astype(np.int64))


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
    if len(counts) and counts.max() > batch_size:
        worst = int(counts.argmax())
        raise SelectionError(
            f"Cluster {int(present[worst])} has {int(counts[worst])} rows, more than a micro-batch "
            f"of {batch_size}; use more clusters, a larger batch, or batches=within."
        )
    shuffled = np.argsort(
        keys(seed, Stream.CLUSTER_ORDER, epoch, present.astype(np.uint64)), kind="stable"
    )
    rank = np.empty(int(present.max()) + 1 if len(present) else 0, dtype=np.int64)
    rank[present[shuffled]] = np.arange(len(present))
    order = np.lexsort((ids, row_keys, rank[labels]))
    cuts, room = [0], batch_size
    for size in counts[shuffled].tolist():
        if size > room:
            cuts.append(cuts[-1])
            room = batch_size
        if len(cuts) == 1:
            cuts.append(0)
        cuts[-1] += size
        room -= size
    if drop_last and room and len(cuts) > 1:
        cuts.pop()
    return BatchPlan.of(np.array(cuts), order[: cuts[-1]].astype(np.uint64))


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
