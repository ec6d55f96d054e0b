"""The batch stages made of groups: ``within``, ``across``, ``aligned``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from ..clustering import batches as cluster
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, SideColumn, Unit
from .context import JobContext
from .stages import BatchStage, PlanState, groups_of

__all__ = ["Across", "Aligned", "Within", "make_batches"]


@parameters
class _ClusterBatches(BatchStage):
    """Calls the pure function of the same name."""

    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    needs_groups = True
    make: ClassVar[Callable[..., BatchPlan]]

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        ids = state.rows.ids()
        plan = type(self).make(
            groups_of(state),
            ids,
            batch_size=job.batch_size,
            seed=job.seed,
            epoch=epoch,
            drop_last=self.drop_last,
        )
        ranks = plan.rows.astype(np.int64)
        weights = None if state.weights is None else state.weights[ranks]
        yield replace(plan, rows=ids[ranks], weights=weights)


@parameters
class Within(_ClusterBatches):
    """Parameters of within."""

    method = "within"
    summary = "micro-batches of one group each"
    side = (SideColumn("cluster", "batch", "int64"),)
    make = staticmethod(cluster.within)


@parameters
class Across(_ClusterBatches):
    """Parameters of across."""

    method = "across"
    summary = "micro-batches that hold all groups in the dataset's shares"
    make = staticmethod(cluster.across)


@parameters
class Aligned(_ClusterBatches):
    """Parameters of aligned."""

    method = "aligned"
    summary = "micro-batches of whole groups, never cut by ranks"
    make = staticmethod(cluster.aligned)

    @property
    def unit(self) -> Unit:
        return "micro"


def make_batches(name: str, *, drop_last: bool) -> BatchStage:
    """Return the batch stage of a name."""
    made: BatchStage = {"within": Within, "across": Across, "aligned": Aligned}[name](drop_last)
    return made
