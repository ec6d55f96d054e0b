"""PPP: partitions whose number of clusters is found, by k-means that a Gaussian mixture validates.

After Sultan, Probabilistic Partitive Partitioning, arXiv 2003.04372 (2020). Its abstract states the
idea: k-means partitions, a Gaussian mixture validates the partition, the result does not depend on
initial conditions, no number of clusters is given, and the rows that both are sure of are the most
separable set. **The steps and the limits below are a reconstruction of ours** from that abstract,
not the paper's own.

1. At most ``rows`` rows are chosen by row id (`random.choose`) and put in the order of their ids.
2. For each k = 2 … ``k_max``, since a k that fails says nothing of the next, k-means takes its best
   partition of several starts (`ppp_candidates`), and these conditions are asked of it
   (`ppp_evidence`):

   a. **Smallest**: each cluster has at least 5 rows, and 0.5 % of them.
   b. **Stability**: starts that are about as good agree, by an adjusted Rand index ≥ ``stability``.
   c. **Valley**: where it is emptiest between a cluster and its three nearest there is at most
      ``valley`` of what there is in either, which in one cloud has a chance ≤ 0.02.
   d. **Replication**: either half of the rows alone, from starts of its own, finds each cluster
      again, by a Jaccard index ≥ 0.75, in two of three ways to divide them.
   e. **Agreement**: a Gaussian mixture that starts from the partition leaves ≥ ``agreement`` of the
      rows in their cluster, and ≥ 0.85 of each cluster's (`mixture`).

3. Where one of them fails and ``metric="adaptive"``, all are asked of the partition that k-means
   finds when distances are measured by the covariance within clusters. Clusters that share a
   stretched shape are round by that metric, while plain k-means cuts them across.
4. The largest k that holds is the answer, else 1. Clusters are numbered by size, the largest first.
5. Every row goes to the nearest center. Its ``posterior`` is the mixture's probability of that
   cluster; rows where it is ≥ ``certain`` are the **separable** set.

What a row gets in step 5 is a function of the row and the model, with the same bits whichever rows
are computed together. The model is that of one processor type and one version of the libraries; it
does not depend on the order of the rows, on threads or on partitions.

The replication and the metric of step 3 go beyond k-means and a mixture. Without the first, a few
hundred rows of many dimensions may have two clusters whatever they are: along some direction they
happen to fall into two heaps.

Limits: clusters are found that have a valley between them; groups that overlap without one are
taken together. A cluster that takes a bent path, such as a ring, may be cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.errors import InvalidValueError, SelectionError, examples, needs_extra
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream, choose
from .mixture import DIMENSION_ROWS, Mixture
from .ppp_candidates import Candidate, Run, Shape, one_cluster
from .ppp_evidence import Evidence, Limits, evidence_series, measure, measure_one

__all__ = ["PPP", "Evidence", "PPPModel", "PPPSettings", "Partition", "evidence_series"]

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

_WORST_AGREEMENT, _CHANCE, _REPLICATION = 0.85, 0.02, 0.75
_LEAST_ROWS, _LEAST_SHARE = 5, 0.005
_SPLITS, _REPLICATIONS = 5, 3  # in two halves; those whose halves have partitions of their own


@dataclass(frozen=True)
class Partition:
    """Clusters, and how sure they are.

    Attributes
    ----------
    k : int
        Clusters; 1 where no partition holds.
    labels : int32, shape (n,)
        Cluster of each row, 0…k−1, the largest of the sample first.
    posterior : float32, shape (n,)
        Probability of that cluster by the mixture.
    separable : bool, shape (n,)
        Rows whose posterior is at least ``certain``.
    evidence : tuple of dict
        What was measured of each k; values are plain, as JSON takes them.
    """

    k: int
    labels: I32
    posterior: F32
    separable: Bools
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True)
class PPPModel:
    """What a sample taught: enough to assign any row.

    Attributes
    ----------
    k : int
    origin, unit : float64, shape (d,)
        A row is first taken as (x − origin) · unit.
    metric : float64, shape (d, d) or (0, 0)
        Lower triangular, what it is multiplied by then; empty: nothing.
    centers : float64, shape (k, d)
        Of such rows.
    mixture : Mixture
        Of such rows.
    certain : float
    evidence : tuple of dict
    """

    k: int
    origin: F64
    unit: F64
    metric: F64
    centers: F64
    mixture: Mixture
    certain: float
    evidence: tuple[Evidence, ...]

    def assign(self, x: F32, ids: U64 | None = None) -> tuple[I32, F32, Bools]:
        """Return labels, posteriors and the separable set of any rows.

        Parameters
        ----------
        x : float32, shape (n, d)
        ids : uint64, shape (n,), optional
            Row ids, for messages; positions when None.

        Returns
        -------
        labels : int32, shape (n,)
        posterior : float32, shape (n,)
        separable : bool, shape (n,)

        Raises
        ------
        SelectionError
            Where rows have another number of values than those of the sample.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        from .mixture_kernels import DIAGONAL, FULL, TIED, assign_rows

        x = _rows(x, ids)
        if x.shape[1] != len(self.origin):
            raise SelectionError(
                f"Expected rows of {len(self.origin)} values, as in the sample that PPP was fitted "
                f"to, found {x.shape[1]}."
            )
        mixture, means = self.mixture, self.mixture.means
        if mixture.kind == "tied":
            means = np.stack([(mixture.factors[0] * mean).sum(axis=1) for mean in means])
        labels, posterior = np.empty(len(x), np.int32), np.empty(len(x), np.float32)
        assign_rows(
            x,
            self.origin,
            self.unit,
            self.metric,
            self.centers,
            {"full": FULL, "tied": TIED, "diagonal": DIAGONAL}[mixture.kind],
            mixture.log_weights(),
            means,
            mixture.factors,
            labels,
            posterior,
        )
        return labels, posterior, posterior >= np.float32(self.certain)


@parameters
class PPPSettings:
    """What PPP can be told."""

    k_max: Annotated[int, Field(ge=1, description="clusters at most")] = 25
    rows: Annotated[int, Field(ge=1, description="rows in the sample that is fitted")] = 5000
    restarts: Annotated[int, Field(ge=1, description="k-means++ starts for each k")] = 5
    scale: Annotated[
        Literal["none", "standard"],
        Field(description="take columns as they are, or in units of their standard deviations"),
    ] = "none"
    metric: Annotated[
        Literal["adaptive", "euclidean"],
        Field(description="whether clusters may share a shape that is not round"),
    ] = "adaptive"
    stability: Annotated[
        float, Field(ge=-1, le=1, description="adjusted Rand index of starts at least")
    ] = 0.85
    valley: Annotated[
        float, Field(ge=0, description="rows between clusters at most, of those in them")
    ] = 0.7
    agreement: Annotated[
        float, Field(ge=0, le=1, description="share of rows that the mixture agrees on at least")
    ] = 0.95
    certain: Annotated[
        float, Field(ge=0, le=1, description="posterior of separable rows at least")
    ] = 0.95

    def sample_rows(self, rows: int) -> int:
        """Return how many of so many rows are fitted to."""
        return min(rows, self.rows)

    def limits(self, rows: int) -> Limits:
        """Return what is asked of a partition of so many rows."""
        return {
            "smallest": max(_LEAST_ROWS, math.ceil(_LEAST_SHARE * rows)),
            "stability": self.stability,
            "valley": self.valley,
            "chance": _CHANCE,
            "replication": _REPLICATION,
            "agreement": self.agreement,
            "worst_agreement": _WORST_AGREEMENT,
        }


@parameters
class PPP(PPPSettings):
    """Parameters of probabilistic partitive partitioning.

    After arXiv 2003.04372; steps and limits are a reconstruction of ours (see the module).
    """

    seed: Annotated[int, Field(ge=0, description="seed of the sample and of k-means++")] = 0

    def sample(self, ids: U64) -> Bools:
        """Choose the rows to fit to; shape (n,)."""
        return choose(self.sample_rows(len(ids)), ids, seed=self.seed, stream=Stream.PPP_SAMPLE)

    def train(self, x: F32, ids: U64 | None = None) -> PPPModel:
        """Fit to these rows, all of them.

        Parameters
        ----------
        x : float32, shape (n, d)
        ids : uint64, shape (n,), optional
            Distinct row ids; positions when None.

        Raises
        ------
        SelectionError
            Where there is no row or no column, or ids repeat.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        with needs_extra("PPP", "plan"):
            import sklearn.cluster  # noqa: F401  # its threads are limited where they are loaded
            from threadpoolctl import threadpool_limits

        x = _rows(x, ids)
        names = _names(x, ids)
        order = np.argsort(names, kind="stable")
        with threadpool_limits(1):
            return self._trained(x[order].astype(np.float64), names[order])

    def fit(self, x: F32, ids: U64 | None = None) -> Partition:
        """Partition rows.

        Parameters
        ----------
        x : float32, shape (n, d)
        ids : uint64, shape (n,), optional
            Distinct row ids; positions when None.

        Raises
        ------
        SelectionError
            Where there is no row or no column, or ids repeat.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        x = _rows(x, ids)
        names = _names(x, ids)
        chosen = self.sample(names)
        model = self.train(x[chosen], names[chosen])
        return Partition(model.k, *model.assign(x, names), model.evidence)

    def _trained(self, rows: F64, names: U64) -> PPPModel:
        origin = rows.mean(axis=0)
        rows -= origin
        unit = np.ones(rows.shape[1])
        if self.scale == "standard":
            deviations = rows.std(axis=0)
            unit[deviations > 0] /= deviations[deviations > 0]
            rows *= unit
        splits = np.stack(
            [
                choose(len(rows) // 2, names, seed=self.seed, stream=Stream.PPP_HALF, epoch=number)
                for number in range(_SPLITS)
            ]
        )
        search = _Search(rows, splits, self)
        best = one_cluster(rows)
        evidence, mixture = measure_one(rows, best)
        table = [evidence]
        for k in range(2, min(self.k_max, len(rows) // search.limits["smallest"]) + 1):
            found = search.partition(k)
            if found is None:
                break
            evidence, partition, fitted = found
            table.append(evidence)
            if fitted is not None and not evidence["failed"]:
                best, mixture = partition, fitted
        table[len(best.centers) - 1]["chosen"] = True
        return self._model(origin, unit, best, mixture, tuple(table))

    def _model(
        self,
        origin: F64,
        unit: F64,
        best: Candidate,
        mixture: Mixture,
        evidence: tuple[Evidence, ...],
    ) -> PPPModel:
        """Return the model, its clusters in the order of their sizes."""
        sizes = np.bincount(best.labels)
        order = np.array(sorted(range(len(sizes)), key=lambda j: (-sizes[j], *best.centers[j])))
        factors = mixture.factors if mixture.kind == "tied" else mixture.factors[order]
        return PPPModel(
            len(sizes),
            origin,
            unit,
            np.zeros((0, 0)) if best.metric is None else best.metric,
            np.ascontiguousarray(best.centers[order]),
            Mixture(mixture.kind, mixture.weights[order], mixture.means[order], factors),
            self.certain,
            evidence,
        )


class _Search:
    """Partitions of a sample and the evidence for them, by one number of clusters after another."""

    def __init__(self, rows: F64, splits: Bools, method: PPP) -> None:
        self.limits = method.limits(len(rows))
        self._rows, self._splits = rows, splits
        run = partial(Run, restarts=method.restarts, seed=method.seed)
        self._run = run(rows)
        self._halves = [(run(rows[split]), run(rows[~split])) for split in splits[:_REPLICATIONS]]
        n, width = rows.shape
        shaped = method.metric == "adaptive" and width > 1 and n >= DIMENSION_ROWS * width
        self._shapes: tuple[Shape, ...] = ("euclidean", "within") if shaped else ("euclidean",)

    def partition(self, k: int) -> tuple[Evidence, Candidate, Mixture | None] | None:
        """Return what was measured of k clusters by the metric that counts; None: rows are equal.

        That is the first metric by which k holds, else the last.
        """
        tried = None
        for shape in self._shapes:
            found = self._run.partitions(k, shape)
            if not found:
                return tried
            halves = partial(self._of_halves, k, shape)
            evidence, mixture = measure(self._rows, found, halves, self._splits, self.limits)
            tried = evidence, found[0], mixture
            if not evidence["failed"]:
                return tried
        return tried

    def _of_halves(self, k: int, shape: Shape, number: int) -> list[Candidate | None]:
        """Return the best partition of either half of a split, None where there is none."""
        return [next(iter(run.partitions(k, shape)), None) for run in self._halves[number]]


def _rows(x: F32, ids: U64 | None) -> F32:
    """Return rows as float32 in one piece, checked."""
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2:
        raise SelectionError(f"Expected rows of shape (n, d), found shape {x.shape}.")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite) if ids is None else np.asarray(ids)[~finite]
        raise InvalidValueError(
            f"{len(bad):,} rows hold NaN or infinite values: {examples(bad)}. Leave them out, or "
            "find out why."
        )
    return x


def _names(x: F32, ids: U64 | None) -> U64:
    """Return row ids, checked."""
    if not x.size:
        raise SelectionError(f"PPP needs rows of one value or more, found shape {x.shape}.")
    names = np.arange(len(x), dtype=np.uint64) if ids is None else np.asarray(ids, np.uint64)
    if names.shape != (len(x),):
        raise SelectionError(f"Expected {len(x)} row ids, found shape {names.shape}.")
    ordered = np.sort(names)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated):
        raise SelectionError(
            f"Each row needs an id of its own; {len(repeated):,} ids stand for several rows: "
            f"{examples(repeated)}."
        )
    return names
