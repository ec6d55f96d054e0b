"""Partitions of one number of clusters that k-means reaches from several starts.

- *Euclidean*: Lloyd's iterations from the last number's best partition with one cluster split in
  two along its principal axis (of the three with the largest scatter along it), and from keyed
  k-means++ starts. The lowest inertia is the best.
- *Within*: iterations go on from each of those partitions, and from such splits of the last
  number's best one of this kind, under a metric of their own: the inverse of the covariance within
  clusters, which is computed anew each time. They lower the determinant of that covariance
  (Friedman and Rubin, J. Am. Stat. Assoc. 62, 1967), so the result depends little on the columns'
  units and on a shape that the clusters share. The lowest determinant is the best.

The *stability* is how far those partitions agree with the best whose spread is within half a
percent of its. The *replication* is how far the best is found again from one half of the rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import needs_extra
from ..dataplane.random import Stream, base_key
from .mixture import inverse_factors

__all__ = ["Candidate", "Run", "Shape", "adjusted_rand", "one_cluster", "replication", "stability"]

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

Shape = Literal["euclidean", "within"]

_SPLITS = 3
_POWERS = 20
_ITERATIONS = 100
_MOVED = 1e-3  # share of the rows that an iteration must move
_NEAR = 1.005  # of the best spread


@dataclass(frozen=True)
class Candidate:
    """A partition of rows.

    Attributes
    ----------
    labels : int32, shape (n,)
    centers : float64, shape (k, d)
        Of the rows times the metric.
    spread : float
        What its kind of partitions is compared by: the inertia, or the determinant of the
        covariance within clusters over that of all rows (Wilks' lambda), as a mean over the
        directions that the centers span.
    metric : float64, shape (d, d), or None
        Lower triangular; rows are multiplied by it before distances are Euclidean.
    """

    labels: I32
    centers: F64
    spread: float
    metric: F64 | None = None

    def rows(self, x: F64) -> F64:
        """Return rows as this partition's distances take them."""
        return x if self.metric is None else x @ self.metric.T


def one_cluster(x: F64) -> Candidate:
    """Return the partition of all rows into one cluster."""
    center = x.mean(axis=0)
    return Candidate(np.zeros(len(x), np.int32), center[None], float(np.square(x - center).sum()))


class Run:
    """The partitions of some rows, by one number of clusters after another.

    Parameters
    ----------
    rows : float64, shape (n, d)
    restarts : int
        k-means++ starts for each number of clusters.
    seed : int
    """

    def __init__(self, rows: F64, restarts: int, seed: int) -> None:
        self.rows, self._restarts, self._seed = rows, restarts, seed
        self._found = [one_cluster(rows)] if len(rows) else []
        self._within: list[Candidate] = []
        self._whole: float | None = None  # log determinant of the covariance of all rows

    def partitions(self, k: int, shape: Shape) -> list[Candidate]:
        """Return partitions into k clusters, the best first; none where there can be none.

        From call to call k may not fall, and ``"within"`` comes after ``"euclidean"``.
        """
        if shape == "within":
            return self._shaped(k)
        while len(self._found) and len(self._found[0].centers) < k:
            self._found = self._next(len(self._found[0].centers) + 1)
        return self._found

    def _next(self, k: int) -> list[Candidate]:
        with needs_extra("PPP", "plan"):
            from sklearn.cluster import KMeans
            from sklearn.exceptions import ConvergenceWarning

        if not _has_distinct(self.rows, k):
            return []
        starts = _splits(self.rows, self._found[0])
        models = [KMeans(k, init=start, n_init=1, max_iter=_ITERATIONS) for start in starts]
        for restart in range(self._restarts):
            key = base_key(self._seed, Stream.PPP_INIT, 1000 * k + restart) & 0xFFFF_FFFF
            models.append(KMeans(k, n_init=1, max_iter=_ITERATIONS, random_state=key))
        with warnings.catch_warnings():  # of rows that are equal, starts may take too many
            warnings.simplefilter("ignore", ConvergenceWarning)
            found = [model.fit(self.rows) for model in models]
        full = [model for model in found if np.bincount(model.labels_, minlength=k).min() > 0]
        return _sorted(Candidate(m.labels_, m.cluster_centers_, m.inertia_) for m in full)

    def _shaped(self, k: int) -> list[Candidate]:
        starts = [start.labels for start in self.partitions(k, "euclidean")]
        if self._whole is None:
            covariance = _drawn(self.rows - self.rows.mean(axis=0))
            self._whole = 0.0 if covariance is None else float(np.linalg.slogdet(covariance)[1])
        whole = self._whole
        if self._within and len(self._within[0].centers) == k - 1:
            rows = self._within[0].rows(self.rows)
            splits = _splits(rows, self._within[0])
            starts += [_nearest(rows, centers) for centers in splits]
        found = [_moved(self.rows, labels, k, whole) for labels in starts]
        self._within = _sorted(candidate for candidate in found if candidate is not None)
        return self._within


def _has_distinct(rows: F64, k: int) -> bool:
    """Whether so many rows differ."""
    return any(len(np.unique(part, axis=0)) >= k for part in (rows[: 4 * k], rows))


def _sorted(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: candidate.spread)


def _splits(rows: F64, before: Candidate) -> list[F64]:
    """Return the centers of a partition with one split in two, the longest cluster's first."""
    axes = [_principal(rows[before.labels == j]) for j in range(len(before.centers))]
    scatters = np.array([scatter for _, scatter in axes])
    found = []
    for j in np.argsort(-scatters, kind="stable")[:_SPLITS]:
        if scatters[j] > 0:
            others, center = np.delete(before.centers, j, axis=0), before.centers[j]
            found.append(np.concatenate([others, center - axes[j][0], center + axes[j][0]]))
    return found


def _principal(rows: F64) -> tuple[F64, float]:
    """Return about a cluster's principal axis, a deviation long, (1, d), and the scatter along it.

    By the power method, from the column that scatters most.
    """
    away = rows - rows.mean(axis=0)
    axis = np.zeros(rows.shape[1])
    axis[np.square(away).sum(axis=0).argmax()] = 1.0
    scatter = 0.0
    for _ in range(_POWERS):
        axis = away.T @ (away @ axis)
        scatter = float(np.sqrt(axis @ axis))
        if not scatter > 0:
            return axis[None], 0.0
        axis /= scatter
    return axis[None] * np.sqrt(scatter / len(rows)), scatter


# --- the metric of the covariance within clusters -------------------------------------------------


def _moved(x: F64, labels: I32, k: int, whole: float) -> Candidate | None:
    """Return what a start leads to; None where a cluster ran empty, or all are single points.

    `whole` is the logarithm of the determinant of all rows' covariance.
    """
    width = x.shape[1]
    for _ in range(_ITERATIONS):
        if np.bincount(labels, minlength=k).min() == 0:
            return None
        covariance = _drawn(x - _means(x, labels, k)[labels])
        if covariance is None:
            return None
        metric = inverse_factors(covariance)
        rows = x @ metric.T
        centers = _means(rows, labels, k)
        before, labels = labels, _nearest(rows, centers)
        if np.count_nonzero(before != labels) <= _MOVED * len(x):
            break
    spread = np.exp((-2 * np.log(np.diagonal(metric)).sum() - whole) / min(width, k - 1))
    return Candidate(before, centers, float(spread), metric)


def _drawn(away: F64) -> F64 | None:
    """Return the covariance of rows of mean 0, drawn towards a round one; None where it is 0.

    The round one's share is d / 2n: the fewer rows there are, the less it counts in which
    directions they happen to lie close together.
    """
    n, width = away.shape
    covariance: F64 = away.T @ away / n
    variance = np.trace(covariance) / width
    if not variance > 0:
        return None
    share = min(1.0, 0.5 * width / n)
    drawn: F64 = (1 - share) * covariance + share * variance * np.eye(width)
    return drawn


def _means(x: F64, labels: I32, k: int) -> F64:
    member = np.zeros((k, len(x)))
    member[labels, np.arange(len(x))] = 1.0
    found: F64 = (member @ x) / np.bincount(labels, minlength=k)[:, None]
    return found


def _nearest(x: F64, centers: F64) -> I32:
    """Return the nearest center of each row, by a matrix product."""
    product = np.square(centers).sum(axis=1) - 2.0 * (x @ centers.T)
    found: I32 = product.argmin(axis=1).astype(np.int32)
    return found


# --- how far partitions agree ---------------------------------------------------------------------


def stability(candidates: Sequence[Candidate]) -> float:
    """Return the least adjusted Rand index between the first and those about as good."""
    best = candidates[0]
    rivals = [c for c in candidates[1:] if c.spread <= _NEAR * best.spread]
    return min((adjusted_rand(best.labels, c.labels) for c in rivals), default=1.0)


def replication(x: F64, whole: Candidate, halves: Sequence[Candidate | None], half: Bools) -> float:
    """Return how far the worst cluster is found again from one half of the rows alone.

    Parameters
    ----------
    x : float64, shape (n, d)
    whole : Candidate
        Partition of all rows.
    halves : sequence of Candidate or None
        Partitions of the rows of `half` and of the others; None: they have none.
    half : bool, shape (n,)

    Returns
    -------
    float
        Jaccard index of a cluster and the one most like it, on the rows of the other half.
    """
    worst, k = 1.0, len(whole.centers)
    for found, others in zip(halves, (~half, half), strict=True):
        if found is None:
            return 0.0
        again = _nearest(found.rows(x[others]), found.centers)
        both = np.bincount(whole.labels[others].astype(np.int64) * k + again, minlength=k * k)
        table = both.reshape(k, k)
        either = table.sum(axis=1)[:, None] + table.sum(axis=0) - table
        worst = min(worst, float((table / np.maximum(either, 1)).max(axis=1).min()))
    return worst


def adjusted_rand(a: I32, b: I32) -> float:
    """Return the adjusted Rand index of two partitions (Hubert and Arabie, J. Class. 2, 1985)."""
    table = np.bincount(a.astype(np.int64) * (int(b.max()) + 1) + b)
    counts = (c.astype(np.float64) for c in (table, np.bincount(a), np.bincount(b)))
    together, first, second = (float((c * (c - 1) / 2).sum()) for c in counts)
    pairs = len(a) * (len(a) - 1) / 2
    chance = first * second / pairs if pairs else 0.0
    most = (first + second) / 2
    return 1.0 if most == chance else (together - chance) / (most - chance)
