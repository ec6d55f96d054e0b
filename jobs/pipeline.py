"""The stages of a job, run epoch by epoch: rows → labels → micro-batches → fewer rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..dataplane.errors import SelectionError
from ..dataplane.plan import BatchPlan, SideColumn
from ..dataplane.rowset import RowSet
from .context import JobContext
from .spec import JobSpec
from .stages import BatchStage, GroupStage, PlanState, ReduceStage, SelectStage, Stage

__all__ = ["Pipeline", "identity_of"]


class Pipeline:
    """The stages of a job, run epoch by epoch; what does not change with the epoch runs once."""

    def __init__(self, job: JobContext, stages: Sequence[Stage], rows: RowSet) -> None:
        self._job = job
        self._stages = stages
        self._start = PlanState(rows)
        at = next(i for i, s in enumerate(stages) if isinstance(s, BatchStage))
        batch = stages[at]
        assert isinstance(batch, BatchStage)  # for the type checker; `resolve_stages` saw to it
        self.batch = batch
        self._before = stages[:at]
        self._reduces = [s for s in stages[at + 1 :] if isinstance(s, ReduceStage)]
        self._fixed = self._count_fixed()
        self._cached: PlanState | None = None

    def _count_fixed(self) -> int:
        """Return how many leading stages do not depend on the epoch."""
        for index, stage in enumerate(self._before):
            if isinstance(stage, SelectStage) and stage.per_epoch:
                return index
        return len(self._before)

    def prepare(self) -> None:
        """Let the stages read what all epochs need."""
        for stage in self._stages:
            stage.prepare(self._job)

    @property
    def side(self) -> tuple[SideColumn, ...]:
        """The side columns of the micro-batches."""
        return self.batch.side + tuple(c for stage in self._reduces for c in stage.side)

    @property
    def weight_semantics(self) -> Any:
        found = [s.weight_semantics for s in self._stages if s.weight_semantics is not None]
        return found[0] if found else None

    @contextmanager
    def state(self, epoch: int) -> Iterator[PlanState]:
        """Run the selects and the group of an epoch; what only it needs goes with the block."""
        if self._cached is None:
            self._cached = self._run(self._before[: self._fixed], self._start, epoch)
            for stage in self._reduces:
                stage.read(self._job, self._cached.rows)
        changing = self._before[self._fixed :]
        with self._job.work.epoch(epoch) if changing else nullcontext():
            state = self._run(changing, self._cached, epoch)
            if self._job.batch_size > len(state.rows):
                raise SelectionError(
                    f"batch_size = {self._job.batch_size} is larger than the {len(state.rows)} "
                    f"selected rows; choose at most {len(state.rows)}."
                )
            yield state

    def _run(self, stages: Sequence[Stage], state: PlanState, epoch: int) -> PlanState:
        for stage in stages:
            if isinstance(stage, SelectStage):
                kept = stage.select(self._job, state, epoch)
                state = state.selected(self._job, kept).reported(stage.method, kept.report)
            elif isinstance(stage, GroupStage):
                state = stage.group(self._job, state)
            if not len(state.rows):
                raise SelectionError(
                    f"No row is left after the {stage.kind} stage '{stage.method}' "
                    f"({stage.parameters()})."
                )
        return state

    def no_recipe(self) -> str | None:
        """Say why no recipe stands for the stages; None where one does."""
        if self._reduces:
            return f"the reduce stage '{self._reduces[0].method}' looks at every micro-batch"
        return self.batch.no_recipe()

    def measure(self, state: PlanState, epoch: int) -> None:
        """Let a batch stage tell what it tells of its micro-batches, where none are written."""
        if self.batch.measures:
            for _ in self.batch.batches(self._job, state, epoch):
                pass

    def batches(self, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        """Yield the epoch's micro-batches after all reduces."""
        plans = partial(self.batch.batches, self._job, state, epoch)
        for stage in self._reduces:
            plans = partial(_reduced, plans, stage, self._job, epoch)
        for chunk in plans():
            if chunk.weights is None and self.weight_semantics is not None:
                ones = np.ones(len(chunk.rows), dtype=np.float32)
                chunk = replace(chunk, weights=ones)
            yield chunk


def _reduced(
    plans: Callable[[], Iterator[BatchPlan]], stage: ReduceStage, job: JobContext, epoch: int
) -> Iterator[BatchPlan]:
    reduce = stage.begin(job, plans, epoch)
    return map(reduce, plans())


def identity_of(
    stages: Sequence[Stage], spec: JobSpec, first_added: int | None
) -> list[dict[str, Any]]:
    """Return what the manifest's identity records of the stages."""
    found = [s.identity() for s in stages]
    sizes = {"batch_size": spec.batch_size, "micro_per_step": spec.micro_per_step}
    for stage in found:
        if stage["stage"] == "batch":
            stage["parameters"] |= sizes
        elif stage["stage"] == "group":
            stage["parameters"] |= {"on_invalid": spec.on_invalid}
    if first_added is not None:
        added = {"first_row_id": first_added}
        found.insert(0, {"stage": "select", "method": "added", "parameters": added})
    return found
