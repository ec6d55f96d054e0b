"""K-centre greedy: rows that leave none of the large batch far from all of them.

Gonzalez, *Clustering to Minimize the Maximum Intercluster Distance*, TCS 38 (1985), which reaches
at most twice the smallest possible radius; Sener and Savarese, *Active Learning for Convolutional
Neural Networks: A Core-Set Approach*, ICLR 2018. The row nearest to the mean comes first, where
others start at a random one; then each time the row that is farthest from all chosen ones. It
covers outliers, and so loses to a random choice where these are noise.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from ..dataplane.parameters import parameters
from .batch_coresets import F32, U64, BatchCoreset, Picked
from .distances import Metric, distances_to, unit_rows
from .facility_location import Weights

__all__ = ["KCenter", "KCenterSettings"]


@parameters
class KCenterSettings:
    """What k-centre greedy can be told."""

    metric: Annotated[Metric, Field(description="distance between features")] = "l2"
    weights: Annotated[
        Weights, Field(description="all 1, or the rows that each chosen one is nearest to")
    ] = "uniform"


@parameters
class KCenter(KCenterSettings, BatchCoreset):
    """Parameters of k-centre greedy."""

    @property
    def weighted(self) -> bool:
        return self.weights == "cluster"

    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        rows = np.ascontiguousarray(values, np.float32)
        picks = np.empty(k, np.int64)
        owner, near = np.zeros(len(rows), np.int64), np.full(len(rows), np.inf, np.float32)
        picks[0] = _nearest_to_mean(rows, self.metric)
        for number in range(k):
            if number:
                picks[number] = np.argmax(near)
            far = distances_to(rows, rows[picks[number]][None], self.metric)[0]
            nearer = far < near
            owner[nearer], near[nearer] = number, far[nearer]
            near[picks[number]] = -1  # not again, whatever equals it
            owner[picks[number]] = number
        weights = np.bincount(owner, minlength=k).astype(np.float32) if self.weighted else None
        return Picked(picks, weights, float(np.maximum(near, 0).sum(dtype=np.float64)))


def _nearest_to_mean(rows: F32, metric: Metric) -> int:
    seen = unit_rows(rows) if metric == "cosine" else rows
    mean = seen.mean(axis=0, dtype=np.float64)
    return int(np.argmin(((seen - mean) ** 2).sum(axis=1)))
