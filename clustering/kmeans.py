"""K-means: Lloyd's algorithm, trained on a keyed sample and then on all rows, exactly repeatable.

1. A sample of at most ``rows_per_center`` · k rows is chosen by row id (`random.choose`), so it is
   the same in any order and partition of the rows.
2. Greedy k-means++ (`kmeans_init`) takes the first centers from it, or they are given.
3. Lloyd's iterations on the sample, until the inertia falls by less than the share ``tol``, no
   center moves, or ``max_iter`` are done.
4. ``full_passes`` iterations on all rows.
5. A last pass gives every row its label, and is repeated with farthest rows as centers as long as
   some cluster has none.

Each iteration is `partial_sums` over parts of the rows, ``+`` and `update` (`kmeans_sums`), here
and in a job that is spread over workers: integers, so both find the same bits. A row's label is its
nearest center, with faiss's help (`assignment`).

**Two levels**, of more than 4,096 clusters by default: about √k coarse clusters are trained as
above on rows of the sample; the k centers are dealt out to them by their rows in it and trained
within each; from then on a row is compared with those under its ``probes`` nearest coarse centers,
on the sample and on all rows. That takes about (1 + probes) √k distances a row instead of k.

**Spherical**: rows and centers at length 1; the nearest center is then that of the largest cosine,
and half the inertia the sum of 1 − cosine.

Sources: Lloyd, IEEE Trans. Inf. Theory 28 (1982); Arthur and Vassilvitskii, SODA 2007; Johnson,
Douze and Jégou, IEEE Trans. Big Data 7 (2021), whose library trains on 256 rows a center; Dhillon
and Modha, Machine Learning 42 (2001), for the spherical form.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.errors import InvalidValueError, SelectionError, examples
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream, choose
from ..dataplane.row_arrays import checked_ids, float32_rows
from .assignment import Device, assign, chosen_device
from .clusters import Clusters
from .kmeans_init import distinct_rows, plus_plus
from .kmeans_sums import Scale, Sums, partial_sums, refill, span, update

__all__ = ["KMeans", "KMeansClusters", "assign"]

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]

_FLAT = 4096  # clusters up to which one level is the default
_MOST_REFILLS = 100  # last passes; of one level each fills a cluster, and few are ever needed


@dataclass(frozen=True)
class KMeansClusters(Clusters):
    """What k-means found.

    Attributes
    ----------
    coarse : float32, shape (m, d), or None
        Centers of centers, where rows were assigned in two levels.
    sample_rows : int
        Rows in the sample.
    iterations : int
        On the sample.
    passes : int
        Over all rows, that of the labels included.
    device : {'cpu', 'cuda'}
        Where faiss searched all rows. It changes no bit of the result.
    """

    coarse: F32 | None
    sample_rows: int
    iterations: int
    passes: int
    device: str


@parameters
class KMeans:
    """Parameters of k-means."""

    k: Annotated[int, Field(ge=1, description="clusters")]
    seed: Annotated[int, Field(ge=0, description="seed of the sample and of k-means++")] = 0
    rows_per_center: Annotated[
        int, Field(ge=1, description="rows a center in the training sample")
    ] = 256
    max_iter: Annotated[int, Field(ge=1, description="iterations on the sample at most")] = 25
    tol: Annotated[
        float, Field(ge=0, description="share of the inertia that an iteration must gain")
    ] = 1e-4
    full_passes: Annotated[int, Field(ge=0, description="iterations on all rows")] = 1
    spherical: Annotated[bool, Field(description="by cosine: rows and centers at length 1")] = False
    levels: Annotated[
        Literal["auto", "one", "two"],
        Field(description="search all centers, or those under the nearest coarse ones"),
    ] = "auto"
    probes: Annotated[
        int, Field(ge=1, description="coarse centers that a row looks under, of two levels")
    ] = 4
    threads: Annotated[int, Field(ge=1, description="threads; they change no result")] = 1
    device: Annotated[Device, Field(description="where faiss searches; it changes no result")] = (
        "auto"
    )

    # --- the steps ---------------------------------------------------------------------------

    def sample(self, ids: U64) -> npt.NDArray[np.bool_]:
        """Choose the rows to train on; shape (n,)."""
        n = self.sample_rows(len(ids))
        return choose(n, ids, seed=self.seed, stream=Stream.KMEANS_SAMPLE)

    def sample_rows(self, rows: int) -> int:
        """Return how many of so many rows are trained on."""
        return min(rows, self.k * self.rows_per_center)

    @property
    def two_levels(self) -> bool:
        """Whether rows are assigned in two levels."""
        return self.k > _FLAT if self.levels == "auto" else self.levels == "two" and self.k > 3

    def prepared(self, x: npt.ArrayLike, ids: U64) -> F32:
        """Return rows as the steps take them: finite float32, of length 1 where spherical.

        Raises
        ------
        SelectionError
            Where rows are not of shape (n, d), or all zeros and spherical.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        rows = float32_rows(x)
        span(rows, ids)
        if not self.spherical:
            return rows
        from .kmeans_kernels import to_unit

        unit = np.empty_like(rows)
        if int(to_unit(rows, unit)) >= 0:
            zero = np.flatnonzero(~rows.any(axis=1))
            raise InvalidValueError(
                f"{len(zero):,} rows are all zeros and have no direction: {examples(ids[zero])}. "
                "Leave them out, or cluster without 'spherical'."
            )
        return unit

    def coarse(self, x: F32, ids: U64 | None = None) -> F32 | None:
        """Return the coarse centers found on these rows, shape (m, d); None of one level.

        Parameters
        ----------
        x, ids
            See `train`.
        """
        if not self.two_levels:
            return None
        x, ids = self._sorted(x, ids)
        m = min(math.isqrt(self.k - 1) + 1, len(distinct_rows(x)[0]))
        chosen = choose(
            min(len(x), m * self.rows_per_center), ids, seed=self.seed, stream=Stream.KMEANS_SAMPLE
        )
        return self._lloyd(x[chosen], ids[chosen], m, epoch=1).centers

    def train(
        self,
        x: F32,
        ids: U64 | None = None,
        *,
        initial: npt.ArrayLike | None = None,
        coarse: F32 | None = None,
    ) -> F32:
        """Return the centers found on these rows, shape (k, d).

        Parameters
        ----------
        x : float32, shape (n, d)
            As `prepared` returns them.
        ids : uint64, shape (n,), optional
            Row ids; positions when None.
        initial : float32, shape (k, d), optional
            Centers to start from instead of k-means++.
        coarse : float32, shape (m, d), optional
            Of two levels.

        Raises
        ------
        SelectionError
            Where there are fewer (distinct) rows than clusters.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        return self._trained(x, ids, initial, coarse).centers

    def fit(
        self,
        x: npt.ArrayLike,
        ids: npt.ArrayLike | None = None,
        *,
        initial: npt.ArrayLike | None = None,
    ) -> KMeansClusters:
        """Cluster rows.

        Parameters
        ----------
        x : float, shape (n, d)
            Taken as float32, in any memory order; a C-ordered float32 array is not copied.
        ids : uint64, shape (n,), optional
            Row ids; positions when None.
        initial : float32, shape (k, d), optional
            Centers to start from.

        Raises
        ------
        SelectionError
            Where there are fewer (distinct) rows than clusters, shapes do not fit or ids repeat.
        InvalidValueError
            Where a value is NaN or infinite, or a row all zeros and k-means spherical.
        """
        rows = float32_rows(x)
        names = checked_ids(ids, len(rows))
        rows = self.prepared(rows, names)
        self._check_rows(len(rows))
        chosen = self.sample(names)
        sample, sample_ids = self._sorted(rows[chosen], names[chosen])
        coarse = self.coarse(sample, sample_ids)
        trained = self._trained(sample, sample_ids, initial, coarse)
        del sample, sample_ids
        centers, scale = trained.centers, Scale.of(span(rows), trained.centers)
        labels = np.empty(len(rows), np.int32)
        passes = 0
        while True:
            last = passes >= self.full_passes
            out = labels if last else None
            sums = self.sums(rows, names, centers, scale, coarse=coarse, labels=out)
            passes += 1
            if last and (not len(sums.empty) or passes > self.full_passes + _MOST_REFILLS):
                break
            centers = self.refill(centers, sums) if last else self.update(centers, sums)
        return KMeansClusters(
            labels,
            centers,
            sums.inertia,
            sums.counts,
            coarse,
            int(chosen.sum()),
            trained.iterations,
            passes,
            "cpu" if coarse is not None else chosen_device(self.device),
        )

    def sums(
        self,
        x: F32,
        ids: U64,
        centers: F32,
        scale: Scale,
        *,
        coarse: F32 | None = None,
        labels: npt.NDArray[np.int32] | None = None,
    ) -> Sums:
        """Assign a part of the rows and add it up; see `kmeans_sums.partial_sums`."""
        return partial_sums(
            x,
            ids,
            centers,
            scale,
            coarse=coarse,
            probes=self.probes,
            labels=labels,
            threads=self.threads,
            device=self.device,
        )

    def update(self, centers: F32, sums: Sums) -> F32:
        """Return the next centers, of the sums over all rows; see `kmeans_sums.update`."""
        return update(centers, sums, spherical=self.spherical)

    def refill(self, centers: F32, sums: Sums) -> F32:
        """Return the last centers with rows in the place of those without any.

        Raises
        ------
        SelectionError
            Where every row is a center already.
        """
        if len(sums.empty) and not len(sums.far.ids):
            raise self._too_few(int(np.count_nonzero(sums.counts)), sums.rows)
        return refill(centers, sums)

    # --- on the sample -----------------------------------------------------------------------

    def _trained(
        self,
        x: F32,
        ids: U64 | None,
        initial: npt.ArrayLike | None,
        coarse: F32 | None,
    ) -> _Trained:
        x, ids = self._sorted(x, ids)
        span(x, ids)
        self._check_rows(len(x))
        if initial is not None:
            return self._lloyd(x, ids, self.k, initial=self._initial(initial, x), coarse=coarse)
        if coarse is None:
            return self._lloyd(x, ids, self.k)
        under = assign(x, coarse, threads=self.threads, device=self.device)[0]
        found = []
        for cell, k in enumerate(self._shares(x, under, len(coarse))):
            inside = under == cell
            if k:
                found.append(self._lloyd(x[inside], ids[inside], k, epoch=2 + cell).centers)
        return self._lloyd(x, ids, self.k, initial=np.concatenate(found), coarse=coarse)

    def _lloyd(
        self,
        x: F32,
        ids: U64,
        k: int,
        *,
        epoch: int = 0,
        initial: F32 | None = None,
        coarse: F32 | None = None,
    ) -> _Trained:
        """Run Lloyd's iterations on rows in the order of their ids."""
        centers = plus_plus(x, ids, k, seed=self.seed, epoch=epoch) if initial is None else initial
        if len(centers) < k:
            raise self._too_few(len(centers), len(x))
        scale = Scale.of(span(x), centers)
        before: int | None = None
        for iteration in range(self.max_iter):
            sums = self.sums(x, ids, centers, scale, coarse=coarse)
            settled = before is not None and before - sums.error <= self.tol * sums.error
            if settled and not len(sums.empty):
                return _Trained(centers, iteration)
            new = self.update(centers, sums)
            if np.array_equal(new, centers):
                return _Trained(centers, iteration)
            centers, before = new, sums.error
        return _Trained(centers, self.max_iter)

    def _shares(self, x: F32, under: npt.NDArray[np.int32], m: int) -> list[int]:
        """Return how many centers each coarse one gets: by its rows, by divisors (D'Hondt)."""
        rows = np.bincount(under, minlength=m)
        first, _ = distinct_rows(x)
        most = np.bincount(under[first], minlength=m)
        if most.sum() < self.k:
            raise self._too_few(int(most.sum()), len(x))
        shares = [0] * m
        queue = [(-float(n), cell) for cell, n in enumerate(rows) if n]
        heapq.heapify(queue)
        for _ in range(self.k):
            cell = heapq.heappop(queue)[1]
            shares[cell] += 1
            if shares[cell] < most[cell]:
                heapq.heappush(queue, (-float(rows[cell]) / (shares[cell] + 1), cell))
        return shares

    # --- checks ------------------------------------------------------------------------------

    def _sorted(self, x: F32, ids: U64 | None) -> tuple[F32, U64]:
        """Return rows in the order of their ids."""
        x = float32_rows(x)
        if ids is None:
            return x, np.arange(len(x), dtype=np.uint64)
        if (ids[1:] > ids[:-1]).all():
            return x, ids
        order = np.argsort(ids, kind="stable")
        return x[order], ids[order]

    def _check_rows(self, rows: int) -> None:
        if rows < self.k:
            raise SelectionError(
                f"k-means was asked for k = {self.k} clusters of {rows} rows; choose a smaller k."
            )

    def _too_few(self, distinct: int, rows: int) -> SelectionError:
        return SelectionError(
            f"k-means was asked for k = {self.k} clusters, but only {distinct} rows differ of the "
            f"{rows:,} that it looked at; choose a smaller k."
        )

    def _initial(self, initial: npt.ArrayLike, x: F32) -> F32:
        centers = float32_rows(initial)
        if centers.shape != (self.k, x.shape[1]):
            raise SelectionError(
                f"Expected 'initial' centers of shape {(self.k, x.shape[1])}, found "
                f"{centers.shape}."
            )
        return self.prepared(centers, np.arange(self.k, dtype=np.uint64))


@dataclass(frozen=True)
class _Trained:
    centers: F32
    iterations: int
