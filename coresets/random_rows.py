"""Random small batches: what every choice by features is held against.

`RandomRows` draws k rows of the large batch. `KeepSmall` keeps small sources whole and draws
the others' shares at random: CoLM without its features. It explains most of what CoLM gains, and
costs nothing; a choice by features is worth its forward passes where it beats this one.

Rows are drawn by keys of their ids and the epoch.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from ..dataplane.parameters import parameters
from ..dataplane.random import Stream, keys
from .batch_coresets import F32, U64, BatchCoreset, Picked
from .budgets import Rounding

__all__ = ["RandomRows", "KeepSmall", "KeepSmallSettings"]


def _drawn(seed: int, ids: U64, k: int, epoch: int) -> Picked:
    order = np.argsort(keys(seed, Stream.RANDOM_ROWS, epoch, ids), kind="stable")
    return Picked(order[:k])


@parameters
class RandomRows(BatchCoreset):
    """Parameters of random rows."""

    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of the draws")] = 0

    by_features = False

    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        return _drawn(self.seed, ids, k, epoch)


@parameters
class KeepSmallSettings:
    """What stratified rows can be told, their seed left out."""

    rounding: Annotated[
        Rounding, Field(description="who gets the rows that rounding leaves: see budgets")
    ] = "largest-remainder"


@parameters
class KeepSmall(KeepSmallSettings, BatchCoreset):
    """Parameters of keep-small."""

    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of the draws")] = 0

    pools = "large-source"
    by_features = False

    def choose(self, values: F32, ids: U64, k: int, epoch: int) -> Picked:
        return _drawn(self.seed, ids, k, epoch)
