"""The batch stages made of groups: ``within``, ``across``, ``aligned``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..clustering import batches as cluster
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, SideColumn, Unit
from ..dataplane.row_column import CHUNK_ROWS
from .context import JobContext
from .disk_orders import ORDER_BYTES, LabelledRows
from .stages import BatchStage, PlanState, groups_of

__all__ = ["Across", "Aligned", "Within", "make_batches"]


@parameters
class _ClusterBatches(BatchStage):
    """Calls the pure function of the same name, or makes the same on disk."""

    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    needs_groups = True
    make: ClassVar[Callable[..., BatchPlan]]

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        groups = groups_of(state)
        if job.budget.holds(len(state.rows)):
            plan = type(self).make(
                groups.load(),
                state.rows.ids(),
                batch_size=job.batch_size,
                seed=job.seed,
                epoch=epoch,
                drop_last=self.drop_last,
            )
            plans = _in_chunks(plan)
        else:
            plans = self._on_disk(LabelledRows(job, state.rows, groups, epoch), job.batch_size)
        for plan in plans:
            weights = None if state.weights is None else state.weights.at(plan.rows)
            yield replace(plan, rows=state.rows.at(plan.rows), weights=weights)

    def _on_disk(self, rows: LabelledRows, batch_size: int) -> Iterator[BatchPlan]:
        """Yield micro-batches of ranks."""
        raise NotImplementedError

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 0 if in_memory else ORDER_BYTES * rows


@parameters
class Within(_ClusterBatches):
    """Parameters of within."""

    method = "within"
    summary = "micro-batches of one group each"
    side = (SideColumn("cluster", "batch", "int64"),)
    make = staticmethod(cluster.within)

    def _on_disk(self, rows: LabelledRows, batch_size: int) -> Iterator[BatchPlan]:
        for piece in rows.within(batch_size, drop_last=self.drop_last):
            yield BatchPlan.of(piece.offsets, piece.ranks, side={"cluster": piece.clusters})


@parameters
class Across(_ClusterBatches):
    """Parameters of across."""

    method = "across"
    summary = "micro-batches that hold all groups in the dataset's shares"
    make = staticmethod(cluster.across)

    def _on_disk(self, rows: LabelledRows, batch_size: int) -> Iterator[BatchPlan]:
        order = rows.stratified()
        used = len(order) // batch_size * batch_size if self.drop_last else len(order)
        step = max(1, CHUNK_ROWS // batch_size) * batch_size
        for start in range(0, used, step):
            yield BatchPlan.cut(order[start : min(start + step, used)], batch_size)
        order.remove()


@parameters
class Aligned(_ClusterBatches):
    """Parameters of aligned."""

    method = "aligned"
    summary = "micro-batches of whole groups, never cut by ranks"
    make = staticmethod(cluster.aligned)

    @property
    def unit(self) -> Unit:
        return "micro"

    def _on_disk(self, rows: LabelledRows, batch_size: int) -> Iterator[BatchPlan]:
        order, cuts = rows.aligned(batch_size, drop_last=self.drop_last)
        for first, last in _cut_chunks(cuts):
            offsets = cuts[first : last + 1]
            yield BatchPlan.of(offsets - offsets[0], order[int(offsets[0]) : int(offsets[-1])])
        order.remove()


def _in_chunks(plan: BatchPlan) -> Iterator[BatchPlan]:
    for first, last in _cut_chunks(plan.offsets):
        yield plan.slice(first, last)


def _cut_chunks(offsets: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Yield stretches of micro-batches of about a million rows."""
    first = 0
    while first < len(offsets) - 1:
        reached = np.searchsorted(offsets, offsets[first] + CHUNK_ROWS, side="right")
        last = max(first + 1, int(reached) - 1)
        yield first, last
        first = last


def make_batches(name: str, *, drop_last: bool) -> BatchStage:
    """Return the batch stage of a name."""
    made: BatchStage = {"within": Within, "across": Across, "aligned": Aligned}[name](drop_last)
    return made
