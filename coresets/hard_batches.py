"""Hard batches: train again on the micro-batches, or the rows in each, whose loss is the highest.

A ``reduce`` of a fixed plan, by the last known losses. Epoch 0 and every `refresh_every`-th epoch
train on the whole plan, so that no loss grows too old. In the others:

- ``level="batches"`` keeps the b · delta micro-batches (rounded, at least one) of the highest mean
  loss, in the plan's order. A saving in steps, so run more epochs for the same number of steps.
- ``level="rows"`` keeps, in each micro-batch, the rows · delta rows (rounded, at least one) of the
  highest loss, in their order.

**Noise guard.** Rows of wrong labels have the highest losses of all. With `loss_cap_quantile` below
1 what lies above that quantile (of the mean losses of the batches, or of the rows of a micro-batch)
is left out before the highest are taken.

Micro-batches that hold a row which was never scored, and such rows, are always kept. Ties go to the
earlier micro-batch or row. Weights, steps and side columns stay as the plan has them.

Source of the batch form: selective backpropagation on fixed batches as dynamic batch training does
it (DyBAT); the row form, the guard and the refresh are ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.errors import SelectionError
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan
from ..dataplane.plan_changes import keep_rows
from ..dataplane.sketch import quantile_rank
from .loss_search import NonFinite
from .loss_selector import scored_rows

__all__ = ["HardBatchSettings", "HardBatches", "batch_losses"]

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@parameters
class HardBatchSettings:
    """Parameters of hard batches, and what they say of micro-batches one by one."""

    delta: Annotated[
        float, Field(gt=0, le=1, description="share of the micro-batches, or rows, that is kept")
    ] = 0.5
    level: Annotated[
        Literal["batches", "rows"], Field(description="whole micro-batches, or rows of each")
    ] = "batches"
    refresh_every: Annotated[
        int, Field(ge=1, description="every so many epochs the whole plan is trained on")
    ] = 5
    loss_cap_quantile: Annotated[
        float, Field(gt=0, le=1, description="leave out what lies above this quantile; 1: nothing")
    ] = 1.0
    nonfinite: Annotated[
        NonFinite, Field(description="rows of NaN or infinite loss: an error, or always eligible")
    ] = "fail"

    def refreshes(self, epoch: int) -> bool:
        """Whether the whole plan of an epoch is trained on."""
        return epoch % self.refresh_every == 0

    def hard_rows(self, plan: BatchPlan, losses: F32, known: Mask) -> Mask:
        """Return which of the planned rows the row form keeps; bool, shape (n,)."""
        exact, kept = losses.astype(np.float64), np.zeros(len(losses), bool)
        for start, stop in zip(plan.offsets[:-1], plan.offsets[1:], strict=True):
            kept[start:stop] = self.hardest(exact[start:stop], known[start:stop])
        return kept

    def hardest(self, losses: F64, known: Mask) -> Mask:
        """Return what is kept of some batches, or rows, by loss.

        That is all that is unknown, and of the rest so many that `delta` of all is kept.
        """
        kept = ~known
        rest = np.flatnonzero(known)
        wanted = max(1, round(self.delta * len(losses))) - int(kept.sum())
        if wanted <= 0 or not len(rest):
            return kept
        values = np.sort(losses[rest])
        cap = values[quantile_rank(self.loss_cap_quantile, len(rest)) - 1]
        rest = rest[losses[rest] <= cap]
        hardest = rest[np.argsort(-losses[rest], kind="stable")[:wanted]]
        kept[hardest] = True
        return kept


@parameters
class HardBatches(HardBatchSettings):
    """Parameters of hard batches."""

    def reduce(
        self,
        plan: BatchPlan,
        losses: npt.ArrayLike,
        epoch: int,
        *,
        scored: npt.ArrayLike | None = None,
    ) -> BatchPlan:
        """Keep the hard part of an epoch's plan.

        Parameters
        ----------
        plan : BatchPlan
        losses : float, shape (n,)
            Of ``plan.rows``, parallel to them; taken as float32.
        epoch : int
            From 0.
        scored : bool, shape (n,), optional
            Which rows have a loss; all when None.

        Returns
        -------
        BatchPlan
            Steps keep their numbers.

        Raises
        ------
        SelectionError
            Where shapes differ, or a loss is NaN or infinite.
        """
        values = np.asarray(losses, dtype=np.float32)
        if values.shape != plan.rows.shape:
            raise SelectionError(
                f"Expected one loss a planned row, shape {plan.rows.shape}, found shape "
                f"{values.shape}."
            )
        given = None if scored is None else np.asarray(scored, dtype=bool)
        mask = scored_rows(values, given, plan.rows, self.nonfinite)
        known = np.ones(len(values), bool) if mask is None else mask
        if self.refreshes(epoch) or not len(plan):
            return plan
        if self.level == "rows":
            return keep_rows(plan, self.hard_rows(plan, values, known))
        kept = self.hardest(*batch_losses(plan, values, known))
        return keep_rows(plan, np.repeat(kept, np.diff(plan.offsets)))


def batch_losses(plan: BatchPlan, losses: F32, known: Mask) -> tuple[F64, Mask]:
    """Return the mean loss of each micro-batch, and whether all of its rows have one.

    Parameters
    ----------
    plan : BatchPlan
        At least one micro-batch.
    losses : float32, shape (n,)
        Of ``plan.rows``.
    known : bool, shape (n,)
    """
    starts, sizes = plan.offsets[:-1], np.diff(plan.offsets)
    means = np.add.reduceat(np.where(known, losses.astype(np.float64), 0.0), starts) / sizes
    return means, np.logical_and.reduceat(known, starts)
