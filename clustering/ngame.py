"""NGAME: mini-batches of whole clusters of the embeddings, so that each row meets hard negatives.

Dahiya et al., *NGAME: Negative Mining-aware Mini-batching for Extreme Classification*, WSDM 2023.
Rows whose embeddings are near are negatives of one another that are hard to tell apart, unless they
share a label. So rows are clustered, and a micro-batch is made of whole clusters:

1. n rows make ⌈n / batch_size⌉ micro-batches of m clusters each, m = batch_size / cluster size,
   rounded. The clusters are `balanced` ones of unit embeddings.
2. In each epoch the clusters are dealt anew, by keys of (seed, epoch, cluster), the larger ones
   evenly: micro-batches differ by one row at most, and no small one is left at the end.
3. Each row draws one of its labels, its *positive*, by keys of (seed, epoch, row id).
4. Another row's positive is a *false negative* of a row that has this label too: it is masked. Of
   the other rows of the micro-batch those of the largest cosine are its *negatives*.

**Curriculum.** While the embeddings mean little, clusters say little: ``schedule={10: 2, 20: 4}``
gives the cluster size from each epoch on, 1 before the first one, which is a random batch. Every
`refresh_every`-th epoch clusters are made of the embeddings as they are then; a size that would
begin in between begins at the next of these. What holds in an epoch is a function of the epoch
alone, so that a resumed training goes on as if it had not stopped.

If all rows of a cluster are within the angle r of its center, and a row's positive label within a
of that row's embedding, then the label is within 2 r + a of every row of the cluster: in-batch
negatives have a cosine of at least cos(2 r + a). Tight clusters make hard negatives.

Where we deviate from the authors' code: clusters hold as many rows as said, where it rounds their
number up to a power of two; no cluster lies in two batches; clusters are used in the epoch that
they were made for, not in the one after; a row's own labels are never its negatives; and all draws
are keyed, so that a plan does not depend on threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from ..dataplane.errors import InvalidValueError, ParameterError, SelectionError, examples
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, Ragged, SideColumn
from ..dataplane.random import Stream, keys
from .balanced import BalancedKMeans, checked
from .mining import Labels, mine, sample_positives

__all__ = [
    "NGAME",
    "SIDE",
    "Deal",
    "NGAMESettings",
    "batch_of_clusters",
    "deal_clusters",
    "mined",
    "random_clusters",
]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

SIDE = (
    SideColumn("cluster", "row", "int32"),
    SideColumn("positive", "row", "int64"),
    SideColumn("mask", "csr", "int32"),
    SideColumn("negatives", "csr", "int32"),
    SideColumn("scores", "csr", "float32"),
)
"""The side columns of its micro-batches; see `NGAME.batches`."""


def _parse_schedule(value: Any) -> Any:
    """Read "10:2,20:4" as {10: 2, 20: 4}."""
    if not isinstance(value, str):
        return value
    return dict(part.split(":", 1) for part in value.split(",") if ":" in part)


@dataclass(frozen=True)
class Deal:
    """How many micro-batches and clusters an epoch has.

    Attributes
    ----------
    batches, clusters_each : int
    """

    batches: int
    clusters_each: int

    @property
    def clusters(self) -> int:
        return self.batches * self.clusters_each


@parameters
class NGAMESettings:
    """What NGAME can be told, the batch size and the seed left out."""

    cluster_size: Annotated[
        int | None, Field(ge=1, description="rows a cluster, from epoch 0 on; 1: random batches")
    ] = None
    schedule: Annotated[
        dict[int, int] | None,
        BeforeValidator(_parse_schedule),
        Field(description="rows a cluster from epochs on: 10:2,20:4; 1 before the first"),
    ] = None
    refresh_every: Annotated[
        int, Field(ge=1, description="every so many epochs clusters are made anew")
    ] = 5
    shortlist: Annotated[
        int, Field(ge=0, le=64, description="hard negatives that are listed for each row")
    ] = 10

    def __post_init__(self) -> None:
        if (self.cluster_size is None) == (self.schedule is None):
            given = "neither" if self.schedule is None else "both"
            raise ParameterError(
                "NGAME takes either 'cluster_size', which holds from epoch 0 on, or 'schedule', "
                f"the sizes by the epochs from which they hold. Got {given}."
            )
        sizes = self.schedule or {}
        if self.schedule is not None and (not sizes or min(sizes) < 0 or min(sizes.values()) < 1):
            raise ParameterError(
                "The 'schedule' parameter of NGAME must name at least one epoch, none negative, "
                f"and sizes of 1 or more. Got {self.schedule} instead."
            )

    def size_at(self, epoch: int) -> int:
        """Return the rows a cluster in an epoch."""
        if self.schedule is None:
            return self.cluster_size or 1
        begun = [start for start in sorted(self.schedule) if self._rounded(start) <= epoch]
        return self.schedule[begun[-1]] if begun else 1

    def refreshes(self, epoch: int) -> bool:
        """Whether clusters are made anew in an epoch."""
        if self.size_at(epoch) == 1:
            return False
        return epoch % self.refresh_every == 0 or self.size_at(epoch - 1) != self.size_at(epoch)

    def _rounded(self, epoch: int) -> int:
        return -(-epoch // self.refresh_every) * self.refresh_every

    def deal(self, rows: int, batch_size: int, epoch: int) -> Deal:
        """Return how many micro-batches and clusters so many rows make."""
        size = self.size_at(epoch)
        batches = -(-rows // batch_size)
        each = 1 if size == 1 else max(1, round(batch_size / size))  # random batches need no more
        return Deal(batches, max(1, min(each, rows // batches)))


@parameters
class NGAME(NGAMESettings):
    """Parameters of NGAME."""

    batch_size: Annotated[int, Field(ge=2, le=65_536, description="rows a micro-batch at most")] = (
        1600
    )
    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of all draws")] = 0

    def batches(
        self,
        embeddings: npt.ArrayLike,
        labels: Any = None,
        *,
        epoch: int = 0,
        ids: npt.ArrayLike | None = None,
    ) -> BatchPlan:
        """Make an epoch's micro-batches.

        Parameters
        ----------
        embeddings : float, shape (n, d)
            Taken at length 1; a row of zeros stays one, and is like no other.
        labels : scipy sparse array, shape (n, number of labels), optional
            Which labels a row has; each at least one. None: a row's only positive is its own.
        epoch : int
        ids : uint64, shape (n,), optional
            Row ids; positions when None.

        Returns
        -------
        BatchPlan
            Of positions in the arrays given, in whole micro-batches. Side columns: ``cluster``;
            ``positive``, the label that a row has drawn, −1 without labels; ``mask``, the columns
            of the micro-batch, other than the row's own, whose positive is a label of the row too;
            ``negatives``, the columns of the largest cosine that are not masked, and their
            ``scores``. A column is a place in the micro-batch, as it is delivered.

        Raises
        ------
        SelectionError
            Where shapes differ, there are fewer rows than a batch, or a row has no label.
        InvalidValueError
            Where an embedding is NaN or infinite.
        """
        values, names = checked(embeddings, ids)
        if len(values) < 2:
            raise SelectionError(f"NGAME needs at least 2 rows, found {len(values)}.")
        positives = None if labels is None else Labels.of(labels, len(values), names)
        deal = self.deal(len(values), self.batch_size, epoch)
        plan = deal_clusters(
            self.cluster(values, names, deal, epoch), names, deal, seed=self.seed, epoch=epoch
        )
        return mined(plan, values, names, positives, self.shortlist, seed=self.seed, epoch=epoch)

    def cluster(self, values: F32, ids: U64, deal: Deal, epoch: int) -> I32:
        """Return the cluster of each row; int32, shape (n,)."""
        if self.size_at(epoch) == 1:
            bad = ids[~np.isfinite(values).all(axis=1)]
            if len(bad):
                raise InvalidValueError(
                    f"{len(bad)} rows hold NaN or infinite values: {examples(bad)}. Mend them, or "
                    "leave them out."
                )
            return random_clusters(ids, deal, seed=self.seed, epoch=epoch)
        model = BalancedKMeans(k=deal.clusters, seed=self.seed, metric="cosine")
        return model.labels(values, ids)


def random_clusters(ids: U64, deal: Deal, *, seed: int, epoch: int) -> I32:
    """Return clusters of equal sizes, at random; int32, shape (n,)."""
    order = np.argsort(keys(seed, Stream.GROUP_ORDER, epoch, ids), kind="stable")
    labels = np.empty(len(ids), np.int32)
    labels[order] = np.arange(len(ids)) * deal.clusters // len(ids)
    return labels


def deal_clusters(labels: I32, ids: U64, deal: Deal, *, seed: int, epoch: int) -> BatchPlan:
    """Deal whole clusters out to micro-batches.

    Parameters
    ----------
    labels : int32, shape (n,)
        All of 0…clusters − 1 are there.
    ids : uint64, shape (n,)
    deal : Deal

    Returns
    -------
    BatchPlan
        Of as many clusters each; where their sizes differ by one, so do the micro-batches' at most.
        The rows of a cluster come together, in the order of their ids; side column ``cluster``.
    """
    sizes = np.bincount(labels, minlength=deal.clusters)
    batch = batch_of_clusters(sizes, deal, seed=seed, epoch=epoch)[labels]
    order = np.lexsort((ids, labels, batch))
    offsets = np.searchsorted(batch[order], np.arange(deal.batches + 1))
    return BatchPlan.of(offsets, order, side={"cluster": labels[order]})


def batch_of_clusters(sizes: I64, deal: Deal, *, seed: int, epoch: int) -> I64:
    """Return the micro-batch that each cluster is dealt to; int64, shape (clusters,)."""
    numbers = np.arange(deal.clusters, dtype=np.uint64)
    dealt = np.lexsort((keys(seed, Stream.CLUSTER_ORDER, epoch, numbers), -sizes))
    batches = np.argsort(keys(seed, Stream.BATCH_ORDER, epoch, numbers[: deal.batches]))
    batch_of = np.empty(deal.clusters, np.int64)
    batch_of[dealt] = np.resize(batches, deal.clusters)  # round and round, the larger ones first
    return batch_of


def mined(
    plan: BatchPlan,
    values: F32,
    ids: U64,
    labels: Labels | None,
    shortlist: int,
    *,
    seed: int,
    epoch: int,
) -> BatchPlan:
    """Add positives, masks and shortlists to micro-batches of positions."""
    rows = plan.rows.astype(np.int64)
    positive = np.full(len(rows), -1, np.int64)
    if labels is not None:
        positive = sample_positives(labels.take(rows), ids[rows], seed=seed, epoch=epoch)
    masks, negatives, scores = [], [], []
    for a, b in zip(plan.offsets[:-1].tolist(), plan.offsets[1:].tolist(), strict=True):
        here = None if labels is None else labels.take(rows[a:b])
        found = mine(values[rows[a:b]], here, positive[a:b], shortlist)
        masks.append(found.mask)
        negatives.append(found.negatives)
        scores.append(found.scores)
    side: Mapping[str, Any] = {
        **plan.side,
        "positive": positive,
        "mask": Ragged.concat(masks),
        "negatives": Ragged.concat(negatives),
        "scores": Ragged.concat(scores),
    }
    return BatchPlan.of(plan.offsets, plan.rows, side=side)
