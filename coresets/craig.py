"""CRAIG: of each class the rows that stand for all of it, and how many each stands for.

Mirzasoleiman, Bilmes and Leskovec, *Coresets for Data-efficient Training of Machine Learning
Models*, ICML 2020: facility location over gradients, class by class, with the sizes of the clusters
as weights; here of the rows of a batch. Each class gets its share of the k rows.

Where we deviate from the implementations we know: budgets sum up to k (others round up, or down to
0), the first row can be other than row 0, and no row is chosen twice.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from ..dataplane.parameters import parameters
from .batch_coresets import F32, U64, BatchCoreset, Picked
from .budgets import Rounding
from .distances import Metric
from .facility_location import Weights, facility_location

__all__ = ["CRAIG", "CRAIGSettings"]


@parameters
class CRAIGSettings:
    """What CRAIG can be told."""

    metric: Annotated[Metric, Field(description="distance between features")] = "l2"
    weights: Annotated[
        Weights, Field(description="the rows that each chosen one stands for, or all 1")
    ] = "cluster"
    rounding: Annotated[
        Rounding, Field(description="who gets the rows that rounding leaves: see budgets")
    ] = "largest-remainder"


@parameters
class CRAIG(CRAIGSettings, BatchCoreset):
    """Parameters of CRAIG."""

    pools = "source"

    @property
    def weighted(self) -> bool:
        return self.weights == "cluster"

    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        found = facility_location(
            values, k, metric=self.metric, ids=ids, weights=self.weights, optimizer="lazy"
        )
        return Picked(found.rows.astype(np.int64), found.weights, found.cost)
