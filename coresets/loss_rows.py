"""Rows and their losses, as methods that select by loss are given them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.compiled import compiled_kernels
from ..dataplane.random import some_of

__all__ = ["F32", "I64", "U64", "LossRows", "Mask", "sum_of"]

U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LANES = 512  # sums that are kept beside each other, in the same order on any machine


@dataclass(frozen=True)
class LossRows:
    """Some rows and their losses.

    Attributes
    ----------
    ids : uint64, shape (n,); or range
        A range where there is no gap.
    losses : float32, shape (n,)
        Finite; NaN of a row that was not scored.
    """

    ids: U64 | range
    losses: F32

    @classmethod
    def of(cls, ids: U64 | range, losses: F32, scored: Mask | None = None) -> LossRows:
        """Return rows of which some were not scored: that their losses are anything shows not."""
        return cls(ids, losses if scored is None else np.where(scored, losses, np.float32(np.nan)))

    def __len__(self) -> int:
        return len(self.ids)

    def slice(self, start: int, stop: int) -> LossRows:
        """Return some of them, by position; views."""
        return LossRows(self.ids[start:stop], self.losses[start:stop])

    def take(self, which: Mask | I64) -> LossRows:
        """Return some of them, by a mask or by positions."""
        return LossRows(some_of(self.ids, which), self.losses[which])

    @cached_property
    def shares(self) -> dict[Any, Mask]:
        """Shares of the rows that were drawn already: passes and choice ask for the same."""
        return {}

    @cached_property
    def scored(self) -> Mask:
        """Which rows have a loss; bool, shape (n,)."""
        scored: Mask = self.losses == self.losses  # false of NaN
        return scored


def sum_of(losses: F32, inside: Mask) -> tuple[int, float]:
    """Return how many of some rows have a loss, and the sum of it.

    Parameters
    ----------
    losses : float32, shape (n,)
        NaN of a row that was not scored.
    inside : bool, shape (n,)
        Which rows are meant.
    """
    lanes = np.zeros(_LANES)
    if compiled_kernels(losses.size) is not None:
        from .kernels import add_losses

        count = int(add_losses(losses, inside, lanes))
        return count, float(lanes.sum())
    counted = inside & (losses == losses)  # false of NaN
    values = np.where(counted, losses, np.float32(0)).astype(np.float64)
    for start in range(0, len(values), _LANES):
        part = values[start : start + _LANES]
        lanes[: len(part)] += part
    return int(np.count_nonzero(counted)), float(lanes.sum())
