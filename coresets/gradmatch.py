"""GradMatch: weighted rows whose gradients add up to that of the large batch.

Killamsetty et al., *GRAD-MATCH: Gradient Matching based Data Subset Selection for Efficient Deep
Model Training*, ICML 2021. Minimises ‖Σ_{i ∈ S} w_i g_i − Σ_i g_i‖² + λ ‖w‖² over w ≥ 0 by
orthogonal matching pursuit: each time the row is added whose gradient has the largest inner product
with what is left of the sum, and the weights of all chosen rows are solved for anew.

λ is taken relative to the mean squared length of the gradients, so that their scale changes
nothing. Where we deviate: weights are non-negative in every round, not only at the end; a row is
never chosen twice, where others stop there and fill up with random rows of weight 1; where weights
become 0 the row stays, at weight 0. Inner products are float64, one thread, in the order of row
ids. A round solves a least squares problem of its size: for batches, not for datasets.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.errors import needs_extra
from ..dataplane.parameters import parameters
from .batch_coresets import F32, I64, U64, BatchCoreset, Picked

__all__ = ["GradMatch", "GradMatchSettings", "matching_pursuit"]

F64 = npt.NDArray[np.float64]


@parameters
class GradMatchSettings:
    """What GradMatch can be told."""

    ridge: Annotated[
        float, Field(ge=0, description="λ, of the mean squared length of the gradients")
    ] = 0.01


@parameters
class GradMatch(GradMatchSettings, BatchCoreset):
    """Parameters of GradMatch."""

    @property
    def weighted(self) -> bool:
        return True

    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        rows, weights = matching_pursuit(values, k, ridge=self.ridge)
        return Picked(rows, weights.astype(np.float32))


def matching_pursuit(gradients: F32, k: int, *, ridge: float = 0.01) -> tuple[I64, F64]:
    """Choose k rows and weights whose sum comes near that of all.

    Parameters
    ----------
    gradients : float, shape (n, d)
    k : int
    ridge : float
        λ over the mean squared length.

    Returns
    -------
    rows : int64, shape (k,)
        In the order of choice.
    weights : float64, shape (k,)
        Not negative.
    """
    with needs_extra("GradMatch", "plan"):
        from scipy.optimize import nnls
        from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        exact = np.ascontiguousarray(gradients, np.float64)
        inner = exact @ exact.T
        target = inner.sum(axis=1)  # of each row with the sum of all
        scale = float(np.trace(inner)) / max(1, len(inner))
        rows, weights = np.empty(k, np.int64), np.zeros(0)
        left = np.ones(len(inner), bool)
        for number in range(k):
            residual = target - inner[:, rows[:number]] @ weights
            rows[number] = np.argmax(np.where(left, residual, -np.inf))
            left[rows[number]] = False
            chosen = rows[: number + 1]
            # Of a Gram matrix G: min |Lᵀw − L⁻¹b|², where L Lᵀ = G + λ. The floor is for λ = 0.
            floor = max(ridge, 1e-10) * scale or 1.0
            lower = np.linalg.cholesky(inner[np.ix_(chosen, chosen)] + floor * np.eye(number + 1))
            weights = nnls(lower.T, np.linalg.solve(lower, target[chosen]))[0]
    return rows, weights
