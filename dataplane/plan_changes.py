"""Changing a plan by leaving rows out: pure functions, chunk by chunk.

Steps keep their numbers. A micro-batch without a row vanishes, and those left in its step are
numbered from 0 again; a step without a micro-batch leaves a gap.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .plan import BatchPlan, Ragged, SideValue

__all__ = ["MicroNumbers", "keep_rows", "rows_in_steps"]


def keep_rows(plan: BatchPlan, keep: npt.NDArray[np.bool_]) -> BatchPlan:
    """Return the plan without some of its rows; step and micro are as they were.

    Parameters
    ----------
    plan : BatchPlan
        No micro-batch of it is empty.
    keep : bool, shape (n,)
        Which rows stay, with their weights and side values.
    """
    if keep.all():
        return plan
    before = np.concatenate([[0], np.cumsum(keep)])[plan.offsets]
    alive = np.diff(before) > 0
    side: dict[str, SideValue] = {}
    for name, value in plan.side.items():
        if isinstance(value, Ragged):
            side[name] = _keep_lists(value, keep)
        else:
            side[name] = value[alive if len(value) == len(plan) else keep]
    return BatchPlan(
        np.append(before[:-1][alive], before[-1]).astype(np.int64),
        plan.rows[keep],
        None if plan.weights is None else plan.weights[keep],
        plan.step[alive],
        plan.micro[alive],
        side,
    )


def _keep_lists(value: Ragged, keep: npt.NDArray[np.bool_]) -> Ragged:
    lengths = np.diff(value.offsets)
    offsets = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    return Ragged(offsets, value.values[np.repeat(keep, lengths)])


def rows_in_steps(plan: BatchPlan, first: int, stop: int) -> npt.NDArray[np.bool_]:
    """Return for each row whether its step is one of `first` to `stop`."""
    inside = (plan.step >= first) & (plan.step < stop)
    return np.repeat(inside, np.diff(plan.offsets))


class MicroNumbers:
    """Numbers the micro-batches of each step from 0, over the chunks of one epoch."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._next = 0

    def number(self, plan: BatchPlan) -> BatchPlan:
        """Return the next chunk with its micro-batches numbered."""
        if not len(plan):
            return plan
        index = np.arange(len(plan))
        begins = np.append(True, plan.step[1:] != plan.step[:-1])
        micro = index - np.maximum.accumulate(np.where(begins, index, 0))
        if self._step == int(plan.step[0]):
            first_run = np.cumsum(begins) == 1
            micro[first_run] += self._next
        self._step, self._next = int(plan.step[-1]), int(micro[-1]) + 1
        return replace(plan, micro=micro.astype(np.uint16))
