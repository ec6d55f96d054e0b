"""Where rows stand in an epoch: found by reading its blocks once, or by what a recipe knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .plan import BatchPlan

__all__ = ["Places", "find_in_blocks", "find_in_plan"]

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Places:
    """Occurrences of rows in an epoch, in the plan's order.

    Attributes
    ----------
    rows : uint64, shape (k,)
    step : uint64, shape (k,)
    micro : uint16, shape (k,)
    position : int64, shape (k,)
        In the whole micro-batch.
    weights : float32, shape (k,)
        1 where the plan has none.
    """

    rows: U64
    step: U64
    micro: npt.NDArray[np.uint16]
    position: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.rows)

    @classmethod
    def concat(cls, parts: Iterable[Places]) -> Places:
        """Join places end to end."""
        found = list(parts)
        return cls(
            np.concatenate([np.zeros(0, np.uint64), *(p.rows for p in found)]),
            np.concatenate([np.zeros(0, np.uint64), *(p.step for p in found)]),
            np.concatenate([np.zeros(0, np.uint16), *(p.micro for p in found)]),
            np.concatenate([np.zeros(0, np.int64), *(p.position for p in found)]),
            np.concatenate([np.zeros(0, np.float32), *(p.weights for p in found)]),
        )


def find_in_blocks(blocks: Iterable[BatchPlan], ids: U64) -> Places:
    """Return where rows stand in an epoch's blocks; memory is a block and what is found.

    Parameters
    ----------
    blocks : iterable of BatchPlan
    ids : uint64, shape (n,)
        Row ids, in any order.
    """
    wanted = np.unique(ids)
    return Places.concat(find_in_plan(block, wanted) for block in blocks)


def find_in_plan(plan: BatchPlan, wanted: U64) -> Places:
    """Return where rows stand in a plan; `wanted` is ascending and distinct."""
    if len(wanted) == 1:
        at = np.flatnonzero(plan.rows == wanted[0])
    elif len(wanted):
        near = np.minimum(np.searchsorted(wanted, plan.rows), len(wanted) - 1)
        at = np.flatnonzero(wanted[near] == plan.rows)
    else:
        at = np.zeros(0, np.int64)
    batch = np.searchsorted(plan.offsets, at, side="right") - 1
    weights = np.ones(len(at), np.float32) if plan.weights is None else plan.weights[at]
    return Places(
        plan.rows[at], plan.step[batch], plan.micro[batch], at - plan.offsets[batch], weights
    )
