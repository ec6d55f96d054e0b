"""Prototypes: keep the rows nearest to the centroids of their clusters, or those farthest away.

Sorscher, Geirhos, Shekhar, Ganguli and Morcos, *Beyond neural scaling laws: beating power law
scaling via data pruning*, NeurIPS 2022, the self-supervised metric. Rows are clustered in the space
of an embedding; how hard a row is, is its distance to the centroid of its cluster.

1. A row's distance is 1 − cosine, or Euclidean, to the mean of its cluster (`centroids`).
2. Of n rows exactly round(fraction · n), at least one, are kept, half to even and from the
   fraction's decimal text: the farthest (hard rows, where data are abundant) or the nearest (easy
   rows, where they are scarce), a tie in favour of the smaller row id.
3. Distances of different clusters are compared with each other, so some clusters keep more of their
   rows than others. With ``balance`` b > 0 the share b of the rows to keep is dealt out to the
   clusters first, by their rows, as evenly as whole numbers allow (largest remainders, a tie in
   favour of the lower label); each fills its own part with its first rows. Only the others are
   chosen from all clusters together. At b = 1 each cluster keeps its share of the rows.

The last row that is kept is found by counting (`dataplane.cuts`), over parts of the rows, so
nothing is sorted; the rows kept are a function of rows, ids and labels.

Where we deviate: the centroid is the mean of the cluster's rows, wherever the labels are from, and
not what k-means stopped at; ``balance`` by cluster is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.cuts import Cut, CutSearch, keep_largest, keep_smallest
from ..dataplane.parameters import parameters
from ..dataplane.plan import Selection
from .centroids import (
    F64,
    I64,
    U64,
    CenterMetric,
    by_cluster,
    checked_clusters,
    distances_to_centroid,
    rows_of,
)

__all__ = ["PrototypeSettings", "Prototypes", "prototype_report"]

Mask = npt.NDArray[np.bool_]


@parameters
class PrototypeSettings:
    """What the selection by prototypes can be told."""

    fraction: Annotated[float, Field(gt=0, le=1, description="share of the rows to keep")] = 0.8
    prefer: Annotated[
        Literal["farthest", "nearest"],
        Field(description="hard rows, for abundant data; or easy ones, for scarce data"),
    ] = "farthest"
    balance: Annotated[
        float,
        Field(ge=0, le=1, description="share of them that clusters keep each by its own rows"),
    ] = 0.0
    metric: Annotated[
        CenterMetric, Field(description="distance of a row to the mean of its cluster")
    ] = "cosine"

    def kept_rows(self, rows: int) -> int:
        """Return how many of so many rows are kept."""
        return max(1, round(Fraction(repr(float(self.fraction))) * rows))

    def quotas(self, sizes: I64) -> I64:
        """Return how many rows each cluster keeps by its own order, of clusters of such sizes."""
        rows = int(sizes.sum())
        total = round(Fraction(repr(float(self.balance))) * self.kept_rows(rows))
        exact = [divmod(total * size, rows) for size in sizes.tolist()]
        quotas = np.array([whole for whole, _ in exact], np.int64)
        left = np.array([-rest for _, rest in exact], np.int64)
        quotas[np.argsort(left, kind="stable")[: total - int(quotas.sum())]] += 1
        return quotas

    def first_of_cluster(self, distances: F64, ties: U64, quota: int) -> Mask:
        """Return which rows of a cluster fill its quota; bool, shape (n,)."""
        first = keep_largest if self.prefer == "farthest" else keep_smallest
        return first(distances, quota, ties=ties)

    def cut(self, parts: Callable[[], Iterable[tuple[F64, U64]]], rows: int) -> Cut:
        """Find which rows are chosen from all clusters together.

        Parameters
        ----------
        parts : callable
            Returns (distances, tie words) of the rows, in parts; called once a pass.
        rows : int
            How many are chosen.
        """
        search = CutSearch(np.float64, rows, largest=self.prefer == "farthest")
        while search.next is not None:
            counts = np.zeros(search.next.shape, np.int64)
            for distances, ties in parts():
                search.next.count(distances, ties, into=counts)
            search.narrow(counts)
        assert search.cut is not None  # for the type checker: the search has ended
        return search.cut


@parameters
class Prototypes(PrototypeSettings):
    """Parameters of the selection by prototypes."""

    def distances(
        self, x: npt.ArrayLike, labels: npt.ArrayLike, ids: npt.ArrayLike | None = None
    ) -> F64:
        """Return how far rows are from the centroids of their clusters; see `select`.

        Returns
        -------
        float64, shape (n,)
        """
        return _distances(*checked_clusters(x, labels, ids), self.metric)[0]

    def select(
        self, x: npt.ArrayLike, labels: npt.ArrayLike, ids: npt.ArrayLike | None = None
    ) -> Selection:
        """Keep the nearest or farthest rows.

        Parameters
        ----------
        x : float, shape (n, d)
            Taken as float32, in any memory order.
        labels : integers, shape (n,)
            Cluster of each row.
        ids : uint64, shape (n,), optional
            Row ids, each its own; positions when None.

        Returns
        -------
        Selection
            Rows are positions, ascending; no weights.

        Raises
        ------
        SelectionError
            Where there is no row, shapes do not fit or ids repeat.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        values, found, names = checked_clusters(x, labels, ids)
        distances, order, offsets = _distances(values, found, names, self.metric)
        sizes = np.diff(offsets)
        kept = np.zeros(len(values), bool)
        quotas = self.quotas(sizes)
        for quota, a, b in zip(quotas.tolist(), offsets[:-1], offsets[1:], strict=True):
            if quota:
                here = order[a:b]
                kept[here] = self.first_of_cluster(distances[here], names[here], quota)
        free = np.flatnonzero(~kept)
        others = distances[free], names[free]
        chosen = self.cut(lambda: [others], self.kept_rows(len(values)) - int(quotas.sum()))
        kept[free] = chosen.keeps(*others)
        rows = np.flatnonzero(kept)
        report = prototype_report(
            sizes,
            np.add.reduceat(kept[order], offsets[:-1], dtype=np.int64),
            float(distances[order].sum()),
            float(distances[order][kept[order]].sum()),
            chosen,
        )
        return Selection(rows.astype(np.uint64), None, report)


def _distances(
    values: npt.NDArray[np.float32], labels: npt.NDArray[Any], ids: U64, metric: CenterMetric
) -> tuple[F64, I64, I64]:
    """Return distances by position, and the rows cluster by cluster."""
    order, offsets = by_cluster(labels, ids)
    out = np.empty(len(values))
    for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        here = order[a:b]
        rows_at = rows_of(values, here)
        out[here] = distances_to_centroid(rows_at, b - a, values.shape[1], metric)
    return out, order, offsets


def prototype_report(
    sizes: I64, kept: I64, distance: float, kept_distance: float, chosen: Cut
) -> dict[str, Any]:
    """Return what is told of a selection.

    Parameters
    ----------
    sizes, kept : int64, shape (k,)
        Rows of each cluster, and those of them that are kept.
    distance, kept_distance : float
        Sums over all rows, and over those that are kept.
    chosen : Cut
        Of the rows that were chosen from all clusters together.
    """
    rows, selected = int(sizes.sum()), int(kept.sum())
    shares = kept / sizes
    return {
        "rows": rows,
        "selected": selected,
        "saved": (rows - selected) / rows,
        "clusters": len(sizes),
        "largest_cluster": int(sizes.max()),
        "mean_distance": distance / rows,
        "selected_mean_distance": kept_distance / selected,
        "last_distance": None if chosen.value is None else float(chosen.value),
        "least_share_of_a_cluster": float(shares.min()),
        "largest_share_of_a_cluster": float(shares.max()),
    }
