"""What speaks for a partition into k clusters: the conditions that PPP asks of it.

**Smallest**: rows of the smallest cluster.

**Stability**: how far the starts of k-means agree (`ppp_candidates`).

**Valley**: whether fewer rows lie between two clusters than in either, for each cluster and its
three nearest. Rows of the pair are projected on an axis through both. The axis comes from one half
of the rows and the other half is counted, both ways: an axis that was fitted to the rows that are
counted would find a valley in any cloud of many dimensions. It is Fisher's where the pair has 20
rows a dimension, else that of the centers. With the two means of the counted half at 0 and 1,
windows of ± 0.15 are counted: at both means, and at 0.35…0.65 the emptiest. The *valley* is the
emptiest over the lower of the two; its *chance* is how likely so few are where both windows are
equally likely (a binomial test), since a small cluster's rows lie unevenly by chance alone.

**Replication**: how far each cluster is found again from either half of the rows alone, from starts
of that half's own (`ppp_candidates`), in two of three ways to divide them. Among many dimensions
there is always some direction along which rows happen to fall into two heaps, in one half of them
as in the other; but not the same one. After Tibshirani and Walther, J. Comp. Graph. Stat. 14
(2005), and Hennig, Comp. Stat. Data Analysis 52 (2007), whose limit of 0.75 this is.

**Agreement**: the share of rows that the Gaussian mixture which starts from the partition
(`mixture`) leaves in their cluster, of all rows and of the worst cluster.

The last two cost most and are measured where the others hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from ..dataplane.errors import needs_extra
from .mixture import Kind, Mixture, fit_mixture
from .ppp_candidates import Candidate, Shape, replication, stability

__all__ = ["Evidence", "Limits", "evidence_series", "measure", "measure_one", "valley"]

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_NEIGHBOURS = 3
_WINDOW = 0.15
_PLACES = np.array([0.0, 1.0, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65])
_FISHER_ROWS = 20  # a dimension
_AT_MOST = ("valley", "chance")


class Limits(TypedDict):
    """What is asked of the numbers in `Evidence`."""

    smallest: int
    stability: float
    valley: float
    chance: float
    replication: float
    agreement: float
    worst_agreement: float


class Evidence(TypedDict):
    """What was measured of one number of clusters, in plain values; None was not measured.

    ``metric`` is that of the distances: as rows are, or of the covariance within clusters.
    ``inertia`` is in the units of the rows by either. ``covariance`` is the mixture's. ``failed``
    names the conditions that do not hold; the partition is valid where there are none.
    """

    k: int
    metric: Shape
    inertia: float
    smallest: int
    stability: float | None
    valley: float | None
    chance: float | None
    replication: float | None
    agreement: float | None
    worst_agreement: float | None
    covariance: Kind | None
    failed: list[str]
    chosen: bool


def measure(
    x: F64,
    candidates: Sequence[Candidate],
    halves: Callable[[int], Sequence[Candidate | None]],
    splits: Bools,
    limits: Limits,
) -> tuple[Evidence, Mixture | None]:
    """Measure the first of some partitions.

    Parameters
    ----------
    x : float64, shape (n, d)
    candidates : sequence of Candidate
        Partitions into the same number of clusters, the best first.
    halves : callable
        Returns the best partition of one half of the rows alone, and of the other, given the
        number of a split.
    splits : bool, shape (s, n)
        Rows divided in two, in several ways, three or more.
    limits : Limits

    Returns
    -------
    evidence : Evidence
    mixture : Mixture or None
        Of the rows times the partition's metric; None where it was not fitted.
    """
    best = candidates[0]
    rows, k = best.rows(x), len(best.centers)
    sizes = np.bincount(best.labels, minlength=k)
    found = _evidence(x, best, sizes)
    found["stability"] = stability(candidates)
    found["valley"], found["chance"] = _shallowest(rows, best, splits)
    if _failed(found, limits):
        return found, None
    found["replication"] = _replicated(
        lambda number: replication(x, best, halves(number), splits[number]), limits["replication"]
    )
    if _failed(found, limits):
        return found, None
    mixture, shares = fit_mixture(rows, best.labels, k)
    same = shares.argmax(axis=1) == best.labels
    found["agreement"] = float(same.mean())
    found["worst_agreement"] = float((np.bincount(best.labels[same], minlength=k) / sizes).min())
    found["covariance"] = mixture.kind
    _failed(found, limits)
    return found, mixture


def _replicated(of_split: Callable[[int], float], limit: float) -> float:
    """Return the middle of three splits' numbers, or the lower of two on one side of the limit."""
    found = sorted(of_split(number) for number in range(2))
    if (found[0] >= limit) != (found[1] >= limit):
        found = sorted([*found, of_split(2)])[1:]
    return found[0]


def measure_one(x: F64, all_rows: Candidate) -> tuple[Evidence, Mixture]:
    """Return the evidence for one cluster, of which nothing is asked, and its Gaussian."""
    mixture, _ = fit_mixture(x, all_rows.labels, 1)
    found = _evidence(x, all_rows, np.array([len(x)]))
    found["covariance"] = mixture.kind
    return found, mixture


def _evidence(x: F64, partition: Candidate, sizes: npt.NDArray[np.int64]) -> Evidence:
    k = len(sizes)
    parts = [x[partition.labels == j] for j in range(k)]
    return {
        "k": k,
        "metric": "euclidean" if partition.metric is None else "within",
        "inertia": float(sum(np.square(part - part.mean(axis=0)).sum() for part in parts)),
        "smallest": int(sizes.min()),
        "stability": None,
        "valley": None,
        "chance": None,
        "replication": None,
        "agreement": None,
        "worst_agreement": None,
        "covariance": None,
        "failed": [],
        "chosen": False,
    }


def _failed(found: Evidence, limits: Limits) -> list[str]:
    """Note and return which of the conditions that were measured do not hold."""
    values: dict[str, Any] = dict(found)
    found["failed"] = [
        name
        for name, limit in limits.items()
        if values[name] is not None and not _holds(name, values[name], limit)
    ]
    return found["failed"]


def _holds(name: str, value: Any, limit: Any) -> bool:
    return bool(value <= limit if name in _AT_MOST else value >= limit)


# --- valleys --------------------------------------------------------------------------------------


def _shallowest(rows: F64, partition: Candidate, splits: Bools) -> tuple[float, float]:
    """Return the largest valley and the largest chance of any cluster and its nearest ones."""
    centers = partition.centers
    away = np.square(centers[:, None] - centers[None]).sum(axis=2)
    pairs = set()
    for a in range(len(centers)):
        others = [b for b in np.argsort(away[a], kind="stable").tolist() if b != a]
        pairs |= {(min(a, b), max(a, b)) for b in others[:_NEIGHBOURS]}
    members = [np.flatnonzero(partition.labels == j) for j in range(len(centers))]
    found = [
        valley(rows[members[a]], rows[members[b]], splits[:, members[a]], splits[:, members[b]])
        for a, b in sorted(pairs)
    ]
    return max(v for v, _ in found), max(c for _, c in found)


def valley(a: F64, b: F64, splits_a: Bools, splits_b: Bools) -> tuple[float, float]:
    """Return how empty it is between two clusters, and the chance of that in one cloud.

    Parameters
    ----------
    a, b : float64, shape (n_a, d), (n_b, d)
        Rows of two clusters.
    splits_a, splits_b : bool, shape (s, n_a), (s, n_b)
        Rows divided in two, in several ways.

    Returns
    -------
    valley : float
        Rows between them over rows in the sparser of them; 1 where that cannot be counted.
    chance : float
    """
    with needs_extra("PPP", "plan"):
        from scipy.special import betainc

    counts = np.zeros(len(_PLACES), dtype=np.int64)
    for half_a, half_b in zip(splits_a, splits_b, strict=True):
        for fitted_a, fitted_b in ((half_a, half_b), (~half_a, ~half_b)):
            if not (fitted_a.any() and fitted_b.any() and (~fitted_a).any() and (~fitted_b).any()):
                return 1.0, 1.0
            axis = _axis(a[fitted_a], b[fitted_b], len(a) + len(b))
            along_a, along_b = a[~fitted_a] @ axis, b[~fitted_b] @ axis
            start, end = along_a.mean(), along_b.mean()
            if not end > start:
                return 1.0, 1.0
            along = np.sort((np.concatenate([along_a, along_b]) - start) / (end - start))
            counts += np.searchsorted(along, _PLACES + _WINDOW, side="right")
            counts -= np.searchsorted(along, _PLACES - _WINDOW, side="left")
    inside = counts[:2].min() / len(splits_a)
    between = counts[2:].min() / len(splits_a)
    if not inside:
        return 1.0, 1.0
    # The binomial distribution's tail, P(X <= between) of between + inside, for means of counts.
    return float(between / inside), float(betainc(inside, between + 1, 0.5))


def _axis(a: F64, b: F64, rows: int) -> F64:
    center_a, center_b = a.mean(axis=0), b.mean(axis=0)
    axis: F64 = center_b - center_a
    width = a.shape[1]
    if rows < _FISHER_ROWS * width:
        return axis
    away = np.concatenate([a - center_a, b - center_b])
    scatter = away.T @ away
    added = 1e-3 * np.trace(scatter) / width
    if not added > 0:
        return axis
    fisher: F64 = np.linalg.solve(scatter + added * np.eye(width), axis)
    return fisher


# --- a picture ------------------------------------------------------------------------------------


def evidence_series(evidence: Sequence[Evidence], limits: Limits) -> dict[str, Any]:
    """Return what a picture of the evidence for each k needs, in plain values.

    Parameters
    ----------
    evidence : sequence of Evidence
    limits : Limits
        Those that they were measured by.

    Returns
    -------
    dict
        ``k``, ``metric``, ``inertia``: lists, one value for each k; ``chosen``: the answer;
        ``valid``: each k that holds; ``series``: for each condition ``values``, parallel to ``k``,
        None where it was not measured, ``limit``, and ``holds``: "at least" or "at most" it.
    """
    table: list[dict[str, Any]] = [dict(row) for row in evidence]
    return {
        "k": [row["k"] for row in table],
        "metric": [row["metric"] for row in table],
        "inertia": [row["inertia"] for row in table],
        "chosen": next(row["k"] for row in table if row["chosen"]),
        "valid": [row["k"] for row in table if not row["failed"]],
        "series": {
            name: {
                "values": [row[name] for row in table],
                "limit": dict(limits)[name],
                "holds": "at most" if name in _AT_MOST else "at least",
            }
            for name in Limits.__annotations__
        },
    }
