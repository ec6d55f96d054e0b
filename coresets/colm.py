"""CoLM: a small batch that stands for a large one drawn from a mixture of sources.

Nguyen et al., *Mini-batch Coresets for Memory-efficient Language Model Training on Data Mixtures*,
ICLR 2025. From a large batch, with a feature a row (a gradient, or an estimate of it):

1. Sources that are small in the dataset are kept whole (`budgets.small_sources`).
2. The rest of the k rows is shared out among the other sources, in proportion to the batch.
3. In each of these `facility_location` chooses the rows that stand for all of it.
4. Their union is the small batch. Weights are 1 (``"uniform"``, as in the paper), or how many rows
   of its source each row stands for (``"cluster"``), with which weighted sums of gradients come
   near those of the large batch.

Where we deviate from the authors' code: what is small is computed from the dataset's counts, where
the code has a list of source numbers; budgets are whole numbers, rounded by largest remainders;
where small sources alone exceed k, rows are chosen in them too, where the code takes those that
came first; a row whose features are not finite is left out and named, where it spoils the code's
choice; equal distances are decided by row id; features of a single probe are on a line, and the
best rows of a line are taken, where the code's greedy choice costs more.

Uniform weights buy coverage of the sources, not the batch's gradient: their gradient error is no
smaller than a random batch's. Where rows of a batch are alike in nothing, no choice beats a random
one.
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
from .medoids import Optimizer

__all__ = ["CoLM", "CoLMSettings"]


@parameters
class CoLMSettings:
    """What CoLM can be told."""

    metric: Annotated[Metric, Field(description="distance between features")] = "l1"
    weights: Annotated[
        Weights, Field(description="all 1, or the rows that each chosen one stands for")
    ] = "uniform"
    rounding: Annotated[
        Rounding, Field(description="who gets the rows that rounding leaves: see budgets")
    ] = "largest-remainder"
    optimizer: Annotated[
        Optimizer, Field(description="greedy, and the optimum on a line; greedy; or sampled")
    ] = "auto"
    refine: Annotated[bool, Field(description="exchange rows while that lowers the cost")] = False


@parameters
class CoLM(CoLMSettings, BatchCoreset):
    """Parameters of CoLM."""

    pools = "large-source"

    @property
    def weighted(self) -> bool:
        return self.weights == "cluster"

    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        found = facility_location(
            values,
            k,
            metric=self.metric,
            ids=ids,
            weights=self.weights,
            optimizer=self.optimizer,
            refine=self.refine,
        )
        return Picked(found.rows.astype(np.int64), found.weights, found.cost)
