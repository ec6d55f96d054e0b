"""Near-duplicates: of rows that are almost the same, keep one; compared within clusters only.

Abbas, Tirumala, Simig, Ganguli and Morcos, *SemDeDup: Data-efficient learning at web-scale through
semantic deduplication*, 2023 (arXiv 2303.09540); the rule is that of the authors' code.

1. The rows of a cluster are put in order: the farthest from the centroid first (``prefer=
   "farthest"``, what the code does by default), the nearest, or the lowest row id. Distances are
   1 − cosine to the mean of the rows at length 1 (`centroids`); a tie goes to the smaller row id.
2. A row is removed where its cosine with an earlier row is above ``threshold`` (their 1 − eps).
   With ``against="earlier"`` all earlier rows count, as in the code: of a chain a, b, c in which
   only neighbours are alike, a alone is kept, though c is not like it. With ``"kept"`` only those
   that are kept themselves: c is kept, too. Every removed row then has a near-duplicate that was
   kept, and no two rows that were kept in a cluster are near-duplicates.
3. Rows of different clusters are never compared. That is what makes it cheap, n² / 2k pairs of n
   rows in k clusters of equal size, and what it misses. With one cluster it misses nothing.

**Exact.** A cosine is x · y / √(|x|² |y|²) in float64, each sum in one fixed order
(`cluster_kernels`), so it is 1 for equal rows; a row of zeros has the cosine 0, and stays. Pairs
are looked through by products of float32 matrices, whose error is at most
(d + 4) 2⁻²⁴ / (1 − (d + 4) 2⁻²⁴) in whatever order they add up (Higham, Accuracy and Stability of
Numerical Algorithms, §3.1); a pair that is no farther than that from the threshold is decided in
float64. So the rows removed are a function of rows, ids and labels: blocks, threads, libraries and
the order of the rows do not enter.

**Memory.** Of a cluster's rows two blocks are held at a time, and some tens of bytes a row.

Where we deviate: the code takes all cosines of a cluster at once, in float32, and leaves ties to
the order of the rows; it can keep a random row of those that are alike; ``against="kept"`` and
``prefer="lowest-id"`` are ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.parameters import parameters
from ..dataplane.plan import Selection
from .centroids import (
    F32,
    F64,
    I64,
    U64,
    RowsAt,
    blocks,
    by_cluster,
    checked_clusters,
    distances_to_centroid,
    rows_of,
)

__all__ = [
    "ClusterDuplicates",
    "DuplicateRows",
    "NearDuplicateSettings",
    "NearDuplicates",
    "duplicate_report",
]

_TILE = 256  # rows whose cosines with as many others are held at a time


@dataclass(frozen=True)
class ClusterDuplicates:
    """What was found in a cluster; rows by position, in the order of their ids.

    Attributes
    ----------
    original : int64, shape (n,)
        The first row in the cluster's order that a removed one is a near-duplicate of; −1 of rows
        that are kept.
    cosines : float64, shape (n,)
        Of these two; 0 of rows that are kept.
    pairs : int
        Near-duplicates that were found.
    """

    original: I64
    cosines: F64
    pairs: int

    @property
    def removed(self) -> npt.NDArray[np.bool_]:
        return self.original >= 0


@dataclass(frozen=True)
class DuplicateRows:
    """Rows that were kept, and those that were removed, as positions in the arrays given.

    Attributes
    ----------
    rows : uint64, shape (m,)
        That are kept; ascending.
    removed : uint64, shape (r,)
        Ascending.
    original : uint64, shape (r,)
        The first row in its cluster's order that each removed one is a near-duplicate of.
    cosines : float64, shape (r,)
        Of these two.
    pairs : int
        Near-duplicates that were found: all there are in the clusters, or, with
        ``against="kept"``, those with a row that is kept.
    clusters : int
        That have rows.
    clusters_with : int
        That had near-duplicates.
    largest_cluster : int
        Rows of it.
    """

    rows: U64
    removed: U64
    original: U64
    cosines: F64
    pairs: int
    clusters: int
    clusters_with: int
    largest_cluster: int

    @property
    def report(self) -> dict[str, Any]:
        """What is told of it."""
        rows = len(self.rows) + len(self.removed)
        return duplicate_report(
            rows,
            len(self.removed),
            self.pairs,
            self.clusters,
            self.clusters_with,
            self.largest_cluster,
        )

    @property
    def selection(self) -> Selection:
        return Selection(self.rows, None, self.report)


@parameters
class NearDuplicateSettings:
    """What the search for near-duplicates can be told."""

    threshold: Annotated[
        float, Field(gt=0, lt=1, description="cosine above which two rows are near-duplicates")
    ] = 0.95
    prefer: Annotated[
        Literal["farthest", "nearest", "lowest-id"],
        Field(description="which of them: by distance to their centroid, or the lowest row id"),
    ] = "farthest"
    against: Annotated[
        Literal["earlier", "kept"],
        Field(description="rows that remove later ones: all, or those that are kept themselves"),
    ] = "earlier"

    def in_cluster(self, rows_at: RowsAt, rows: int, width: int) -> ClusterDuplicates:
        """Find the near-duplicates in a cluster.

        Parameters
        ----------
        rows_at : callable
        rows, width : int
            How many rows, of how many finite numbers.
        """
        order = self._order(rows_at, rows, width)
        original, cosines = np.full(rows, -1, np.int64), np.zeros(rows)
        search = _Search(self, width, original, cosines)
        whole = [order[here] for here in blocks(rows, width)]
        pairs = first = 0
        for number, here in enumerate(whole):
            mine = _Block.of(rows_at(here), first)
            start = 0
            for before in whole[:number]:
                pairs += search.compare(mine, self._alive(rows_at, before, start, original))
                start += len(before)
            pairs += search.compare(mine, mine)
            first += len(here)
        found, alike = np.full(rows, -1, np.int64), np.zeros(rows)
        found[order] = np.where(original >= 0, order[original], -1)
        alike[order] = cosines
        return ClusterDuplicates(found, alike, pairs)

    def _order(self, rows_at: RowsAt, rows: int, width: int) -> I64:
        """Return the cluster's order, as positions."""
        if self.prefer == "lowest-id":
            return np.arange(rows)
        away = distances_to_centroid(rows_at, rows, width, "cosine")
        return np.argsort(-away if self.prefer == "farthest" else away, kind="stable")

    def _alive(self, rows_at: RowsAt, before: I64, start: int, original: I64) -> _Block:
        """Return a block of earlier rows, those left out that count no more."""
        places = np.arange(start, start + len(before))
        if self.against == "kept":
            places = places[original[places] < 0]
        return _Block.of(rows_at(before[places - start]), start, places)


@parameters
class NearDuplicates(NearDuplicateSettings):
    """Parameters of the search for near-duplicates."""

    def find(
        self,
        x: npt.ArrayLike,
        labels: npt.ArrayLike | None = None,
        ids: npt.ArrayLike | None = None,
    ) -> DuplicateRows:
        """Find near-duplicates, and which of them to keep.

        Parameters
        ----------
        x : float, shape (n, d)
            Taken as float32, in any memory order.
        labels : integers, shape (n,), optional
            Cluster of each row; one cluster when None.
        ids : uint64, shape (n,), optional
            Row ids, each its own; positions when None.

        Raises
        ------
        SelectionError
            Where there is no row, shapes do not fit or ids repeat.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        values, clusters, names = checked_clusters(x, labels, ids)
        order, offsets = by_cluster(clusters, names)
        original, cosines = np.full(len(values), -1, np.int64), np.zeros(len(values))
        pairs = having = 0
        for a, b in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            here = order[a:b]
            found = self.in_cluster(rows_of(values, here), b - a, values.shape[1])
            original[here] = np.where(found.removed, here[found.original], -1)
            cosines[here] = found.cosines
            pairs += found.pairs
            having += found.pairs > 0
        removed = np.flatnonzero(original >= 0)
        return DuplicateRows(
            np.flatnonzero(original < 0).astype(np.uint64),
            removed.astype(np.uint64),
            original[removed].astype(np.uint64),
            cosines[removed],
            pairs,
            len(offsets) - 1,
            having,
            int(np.diff(offsets).max()),
        )


def duplicate_report(
    rows: int, removed: int, pairs: int, clusters: int, clusters_with: int, largest_cluster: int
) -> dict[str, Any]:
    """Return what is told of a removal; see `DuplicateRows`."""
    return {
        "rows": rows,
        "selected": rows - removed,
        "saved": removed / rows,
        "removed": removed,
        "pairs": pairs,
        "clusters": clusters,
        "clusters_with_near_duplicates": clusters_with,
        "largest_cluster": largest_cluster,
    }


# --- pairs of blocks ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """Some rows of a cluster, at places in its order.

    Attributes
    ----------
    rows, unit : float32, shape (n, d)
        As they are, and at length 1.
    squares : float64, shape (n,)
    first : int
        Place of the first one.
    places : int64, shape (n,)
        Ascending.
    """

    rows: F32
    unit: F32
    squares: F64
    first: int
    places: I64

    @classmethod
    def of(cls, rows: F32, first: int, places: I64 | None = None) -> _Block:
        from .cluster_kernels import to_unit

        unit, squares = np.empty_like(rows), np.empty(len(rows))
        to_unit(rows, unit, squares)
        if places is None:
            places = np.arange(first, first + len(rows))
        return cls(rows, unit, squares, first, places)

    def tiles(self) -> Iterator[slice]:
        for start in range(0, len(self.rows), _TILE):
            yield slice(start, min(start + _TILE, len(self.rows)))


class _Search:
    """Compares blocks of a cluster's rows, in order."""

    def __init__(
        self, settings: NearDuplicateSettings, width: int, original: I64, cosines: F64
    ) -> None:
        self._threshold = settings.threshold
        self._kept_only = settings.against == "kept"
        self._original, self._cosines = original, cosines
        rounding = (width + 4) * 2.0**-24
        error = 1.01 * rounding / (1.0 - rounding) if rounding < 0.5 else 2.0
        self._low = np.nextafter(np.float32(self._threshold - error), np.float32(-np.inf))
        self._high = np.nextafter(np.float32(self._threshold + error), np.float32(np.inf))

    @cached_property
    def _room(self) -> F32:
        return np.empty(_TILE * _TILE, np.float32)

    def compare(self, later: _Block, earlier: _Block) -> int:
        """Compare rows with those of a block before theirs, or with each other."""
        from .cluster_kernels import compare

        pairs = 0
        for mine in later.tiles():
            for theirs in earlier.tiles():
                if earlier is later and theirs.start > mine.start:
                    break
                shape = mine.stop - mine.start, theirs.stop - theirs.start
                rough = self._room[: shape[0] * shape[1]].reshape(shape)
                np.matmul(later.unit[mine], earlier.unit[theirs].T, out=rough)
                pairs += int(
                    compare(
                        rough,
                        self._low,
                        self._high,
                        self._threshold,
                        later.rows[mine],
                        later.squares[mine],
                        later.first + mine.start,
                        earlier.rows[theirs],
                        earlier.squares[theirs],
                        earlier.places[theirs],
                        self._kept_only,
                        self._original,
                        self._cosines,
                    )
                )
        return pairs
