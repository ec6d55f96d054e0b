"""K-means: Lloyd's algorithm after k-means++, trained on a keyed sample, assigned exactly.

1. A sample of at most ``rows_per_center`` · k rows is chosen by row id (`random.choose`), so it is
   the same in any order and partition of the rows.
2. scikit-learn's k-means (greedy k-means++, Lloyd) runs on the sample, in the order of row ids, in
   float64 and one thread: a sum over threads would depend on their number.
3. Every row goes to its nearest center. Squared distances come from one matrix product; where the
   two best are closer than its rounding error, they are computed again as sums of squared
   differences, and what still ties goes to the lower center. So a row's cluster does not depend on
   which rows it is assigned together with.

Sources: Lloyd, IEEE Trans. Inf. Theory 28 (1982); Arthur and Vassilvitskii, SODA 2007.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.errors import InvalidValueError, SelectionError, needs_extra
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream, base_key, choose
from .clusters import Clusters

__all__ = ["KMeans", "assign"]

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]

_PRODUCT_VALUES = 1 << 20  # distances held at once
_NEAR = 1e-9  # relative gap below which the product's rounding could decide


@parameters
class KMeans:
    """Parameters of k-means."""

    k: Annotated[int, Field(ge=1, description="clusters")]
    seed: Annotated[int, Field(ge=0, description="seed of the sample and of k-means++")] = 0
    rows_per_center: Annotated[
        int, Field(ge=1, description="rows a center in the training sample")
    ] = 256
    max_iter: Annotated[int, Field(ge=1, description="Lloyd iterations at most")] = 100

    def sample(self, ids: U64) -> npt.NDArray[np.bool_]:
        """Choose the rows to train on; shape (n,)."""
        n = self.sample_rows(len(ids))
        return choose(n, ids, seed=self.seed, stream=Stream.KMEANS_SAMPLE)

    def sample_rows(self, rows: int) -> int:
        """Return how many of so many rows are trained on."""
        return min(rows, self.k * self.rows_per_center)

    def train(self, x: F32, ids: U64 | None = None) -> F32:
        """Return the centers found on these rows, shape (k, d).

        Raises
        ------
        SelectionError
            Where there are fewer (distinct) rows than clusters.
        InvalidValueError
            Where a value is NaN or infinite.
        """
        with needs_extra("k-means", "plan"):
            from sklearn.cluster import KMeans as SklearnKMeans
            from threadpoolctl import threadpool_limits

        _check(x, ids)
        if len(x) < self.k:
            raise SelectionError(
                f"k-means was asked for k = {self.k} clusters of {len(x)} rows; choose a smaller k."
            )
        ordered = x if ids is None else x[np.argsort(ids, kind="stable")]
        distinct = len(np.unique(ordered, axis=0)) if len(x) < 64 * self.k else self.k
        if distinct < self.k:
            raise SelectionError(
                f"k-means was asked for k = {self.k} clusters, but only {distinct} rows differ; "
                "choose a smaller k."
            )
        model = SklearnKMeans(
            self.k,
            n_init=1,
            max_iter=self.max_iter,
            random_state=base_key(self.seed, Stream.KMEANS_INIT, 0) & 0xFFFF_FFFF,
        )
        with threadpool_limits(1):
            model.fit(ordered.astype(np.float64))
        return model.cluster_centers_.astype(np.float32)  # type: ignore[no-any-return]

    def fit(self, x: F32, ids: U64 | None = None) -> Clusters:
        """Cluster rows.

        Parameters
        ----------
        x : float32, shape (n, d)
        ids : uint64, shape (n,), optional
            Row ids; positions when None.
        """
        x = np.ascontiguousarray(x, dtype=np.float32)
        ids = np.arange(len(x), dtype=np.uint64) if ids is None else np.asarray(ids, np.uint64)
        _check(x, ids)
        chosen = self.sample(ids)
        centers = self.train(x[chosen], ids[chosen])
        labels, distances = assign(x, centers)
        order = np.argsort(ids, kind="stable")
        return Clusters(
            labels,
            centers,
            float(distances[order].sum()),
            np.bincount(labels, minlength=self.k).astype(np.int64),
        )


def assign(x: F32, centers: F32) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float64]]:
    """Return each row's nearest center and its squared distance.

    Parameters
    ----------
    x : float32, shape (n, d)
        Finite.
    centers : float32, shape (k, d)

    Returns
    -------
    labels : int32, shape (n,)
    distances : float64, shape (n,)
        Squared Euclidean, ≥ 0.
    """
    c = centers.astype(np.float64)
    norms = (c * c).sum(axis=1)
    labels = np.empty(len(x), dtype=np.int32)
    distances = np.empty(len(x), dtype=np.float64)
    step = max(1, _PRODUCT_VALUES // len(c))
    for start in range(0, len(x), step):
        rows = x[start : start + step].astype(np.float64)
        labels[start : start + step] = _nearest(rows, c, norms)
        away = rows - c[labels[start : start + step]]
        distances[start : start + step] = (away * away).sum(axis=1)
    return labels, distances


def _nearest(
    rows: npt.NDArray[np.float64], c: npt.NDArray[np.float64], norms: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    square = (rows * rows).sum(axis=1)
    product = norms[None, :] - 2.0 * (rows @ c.T)
    best: npt.NDArray[np.int64] = product.argmin(axis=1)
    limit = product[np.arange(len(rows)), best] + _NEAR * (square + norms.max() + 1e-300)
    close = product <= limit[:, None]
    for row in np.flatnonzero(close.sum(axis=1) > 1):
        rivals = np.flatnonzero(close[row])
        away = rows[row] - c[rivals]
        best[row] = rivals[(away * away).sum(axis=1).argmin()]
    return best


def _check(x: F32, ids: U64 | None) -> None:
    if x.ndim != 2:
        raise SelectionError(f"Expected rows of shape (n, d), found shape {x.shape}.")
    finite = np.isfinite(x).all(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite) if ids is None else np.asarray(ids)[~finite]
        raise InvalidValueError(
            f"{len(bad)} rows hold NaN or infinite values: {', '.join(map(str, bad[:5]))}"
            f"{', …' if len(bad) > 5 else ''}."
        )
