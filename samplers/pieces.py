"""What one rank takes of a plan, many batches at a time: arrays, before a row is read.

A loader that hands out a batch in microseconds cannot work out its place in the plan one batch at a
time. Here a run of whole steps is dealt in one go: which rows of which micro-batch, what the step
weighs, and where the walk stands once a batch is delivered; `Pieces.part` cuts windows out of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ..dataplane.epochs import Epoch, EpochRecord
from ..dataplane.lineage import state_id
from ..dataplane.manifest import Manifest
from ..dataplane.plan import BatchPlan, Unit
from .ranks import Ranks, share_steps
from .state import LoaderState

__all__ = ["Pieces", "deal", "whole_steps"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_MOST_AT_ONCE = 4096  # micro-batches; as many as a block of a part holds


@dataclass(frozen=True, eq=False)
class Pieces:
    """Consecutive batches of one rank, in one epoch; b of them.

    Attributes
    ----------
    manifest, record
        The plan and epoch that they are of.
    plan : BatchPlan
        Whole steps, of which rows are taken.
    first_place : int
        Place of the first row of `plan` in the epoch.
    start, stop : int64, shape (b,)
        Rows of `plan` that each batch takes.
    position : int64, shape (b,)
        Where its first row stands in the unsliced micro-batch.
    micro_batch : int64, shape (b,)
        Index in `plan`.
    step, micro : int64, shape (b,)
    step_rows : int64, shape (b,)
        Of the whole step over all ranks.
    step_weight : float64, shape (b,)
    next_step, samples_seen : int64, shape (b,)
        Where the walk stands once the batch is delivered.
    pad : bool, shape (b,)
    """

    manifest: Manifest
    record: EpochRecord
    plan: BatchPlan
    first_place: int
    start: I64
    stop: I64
    position: I64
    micro_batch: I64
    step: I64
    micro: I64
    step_rows: I64
    step_weight: npt.NDArray[np.float64]
    next_step: I64
    samples_seen: I64
    pad: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.start)

    def part(self, first: int, last: int) -> Pieces:
        """Return batches `first` to `last`, as views."""
        cut = slice(first, last)
        arrays = (a[cut] for a in self._arrays())
        return Pieces(self.manifest, self.record, self.plan, self.first_place, *arrays)

    def _arrays(self) -> Iterator[npt.NDArray[Any]]:
        return (getattr(self, name) for name in _ARRAYS)

    @cached_property
    def sizes(self) -> list[int]:
        """Rows of each batch."""
        return (self.stop - self.start).tolist()  # type: ignore[no-any-return]

    @cached_property
    def taken(self) -> slice | I64:
        """What picks the rows of all the batches out of arrays as long as the plan's rows."""
        if (self.start[1:] == self.stop[:-1]).all():
            return slice(self.start.item(0), self.stop.item(-1))
        return _ranges(self.start, self.stop)

    @cached_property
    def ids(self) -> U64:
        """Row ids of all the batches, one after the other."""
        rows: U64 = self.plan.rows[self.taken]
        return rows

    @property
    def places(self) -> U64:
        """Places of the rows in the epoch, in the order of `ids`."""
        taken = self.taken
        at = np.arange(taken.start, taken.stop) if isinstance(taken, slice) else taken
        return (at + self.first_place).astype(np.uint64)

    def state(self, index: int) -> LoaderState:
        """Return where the walk stands once a batch is delivered."""
        return LoaderState(
            state_id(self.manifest),
            self.record.epoch,
            self.next_step.item(index),
            self.samples_seen.item(index),
        )


_ARRAYS = tuple(f.name for f in fields(Pieces))[4:]


def _ranges(start: I64, stop: I64) -> I64:
    """Return start[0] … stop[0]−1, start[1] … stop[1]−1, … end to end."""
    sizes = stop - start
    ends = np.cumsum(sizes)
    places: I64 = np.arange(ends[-1]) + np.repeat(start - (ends - sizes), sizes)
    return places


def deal(
    manifest: Manifest,
    record: EpochRecord,
    plan: BatchPlan,
    ranks: Ranks,
    samples_seen: int,
    *,
    unit: Unit | None = None,
) -> Pieces:
    """Deal whole steps to one rank.

    Parameters
    ----------
    manifest, record
        Whose steps they are.
    plan : BatchPlan
        Whole steps; at least one.
    ranks : Ranks
    samples_seen : int
        Rows of the epoch's steps before these.
    unit : {'sliceable', 'micro'}, optional
        What a rank takes, where that is not the plan's own.
    """
    step = plan.step.view(np.int64)
    steps = np.concatenate([[0], np.flatnonzero(step[1:] != step[:-1]) + 1, [len(plan)]])
    sizes = np.diff(plan.offsets)
    shares = share_steps(unit or manifest.unit, sizes, steps, ranks.rank, ranks.world_size)
    micro_batch = shares.micro_batch
    # Which of these steps a batch is of, and whether it is this rank's last one of it.
    of = np.searchsorted(steps, micro_batch, side="right") - 1
    ends = np.append(of[1:] != of[:-1], True)
    rows_before = samples_seen + plan.offsets[steps]
    first_row = plan.offsets[micro_batch]
    return Pieces(
        manifest,
        record,
        plan,
        samples_seen,
        start=first_row + shares.start,
        stop=first_row + shares.stop,
        position=shares.start,
        micro_batch=micro_batch,
        step=step[micro_batch],
        micro=plan.micro[micro_batch].astype(np.int64),
        step_rows=np.diff(rows_before)[of],
        step_weight=_step_weights(plan, steps)[of],
        next_step=step[micro_batch] + ends,
        samples_seen=rows_before[of + ends],
        pad=shares.pad,
    )


def _step_weights(plan: BatchPlan, steps: I64) -> npt.NDArray[np.float64]:
    """Return each step's sum of weights: of its micro-batches' sums, whoever asks."""
    if plan.weights is None:
        return np.diff(plan.offsets[steps]).astype(np.float64)
    sums = np.add.reduceat(plan.weights.astype(np.float64), plan.offsets[:-1])
    whole: npt.NDArray[np.float64] = np.add.reduceat(sums, steps[:-1])
    return whole


def whole_steps(epoch: Epoch, start: int, count: int) -> Iterator[BatchPlan]:
    """Yield the micro-batches from `start` on, in runs of whole steps.

    The first run holds about `count` micro-batches, so that it is there soon; each later one twice
    as many, up to those of a block.
    """
    while start < len(epoch):
        run = epoch.run(start, count)
        stop = epoch.find_step(run.step.item(-1) + 1)
        if stop > start + len(run):  # it ends within a step
            whole = int(np.searchsorted(run.step, run.step[-1]))
            run = run.slice(0, whole) if whole else epoch.plan(start, stop)
        yield run
        start += len(run)
        count = min(2 * count, _MOST_AT_ONCE)
