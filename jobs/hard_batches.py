"""The reduce stage ``hard-batches``: train on the micro-batches, or rows, of the highest loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..coresets.hard_batches import HardBatchSettings, batch_losses
from ..coresets.loss_rows import LossRows
from ..dataplane.dataset import Dataset
from ..dataplane.errors import SelectionError, examples
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan
from ..dataplane.plan_changes import keep_rows
from .context import JobContext
from .loss_stages import LossInput
from .stages import Reduce, ReduceStage

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["HardBatchReduce"]

_MEMORY = 160 << 20
_BATCH_BYTES = 64  # a micro-batch: its mean, what orders them, what is kept


@parameters
class HardBatchReduce(LossInput, HardBatchSettings, ReduceStage):
    """Parameters of hard batches."""

    method = "hard-batches"
    summary = "train on the micro-batches, or the rows of each, of the highest loss"
    source = (
        "selective backpropagation on fixed batches, as dynamic batch training (DyBAT) has it; row "
        "form, noise guard and refresh are Batchloom's"
    )
    example = (
        "batchloom plan hard-batches data/ --signal signals/ --epochs 3:4 --out plan/ "
        "--set level=rows"
    )
    series = True

    def check(self, spec: JobSpec) -> None:
        self.check_input(self.method, spec)

    def reads(self) -> list[str]:
        return [] if self.column is None else [self.column]

    @property
    def uses_engine(self) -> bool:
        return True

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        return _MEMORY + _BATCH_BYTES * (dataset.rows // spec.batch_size)

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 40 * rows

    def prepare(self, job: JobContext) -> None:
        self.read_losses(job, self.method)

    def begin(
        self, job: JobContext, plans: Callable[[], Iterator[BatchPlan]], epoch: int
    ) -> Reduce:
        """Rank all micro-batches of the epoch, where they are kept as a whole."""
        report = {"epoch": epoch, "rows": 0, "selected": 0, "saved": 0.0}
        job.reports.setdefault(self.method, {"epochs": {}})["epochs"][str(epoch)] = report
        return _counted(report, self._reducer(job, plans, epoch))

    def _reducer(
        self, job: JobContext, plans: Callable[[], Iterator[BatchPlan]], epoch: int
    ) -> Reduce:
        if self.refreshes(epoch):
            return lambda plan: plan
        if self.level == "rows":
            return lambda plan: self._hard_rows(job, plan)
        kept = self._hard_batches(job, plans())
        done = 0

        def reduce(plan: BatchPlan) -> BatchPlan:
            nonlocal done
            inside = kept[done : done + len(plan)]
            done += len(plan)
            return keep_rows(plan, np.repeat(inside, np.diff(plan.offsets)))

        return reduce

    def _hard_batches(self, job: JobContext, plans: Iterator[BatchPlan]) -> npt.NDArray[np.bool_]:
        means, whole = [], []
        for plan in plans:
            if len(plan):
                rows = self._losses(job, plan)
                mean, known = batch_losses(plan, rows.losses, rows.scored)
                means.append(mean)
                whole.append(known)
        return self.hardest(np.concatenate(means), np.concatenate(whole))

    def _hard_rows(self, job: JobContext, plan: BatchPlan) -> BatchPlan:
        rows = self._losses(job, plan)
        return keep_rows(plan, self.hard_rows(plan, rows.losses, rows.scored))

    def _losses(self, job: JobContext, plan: BatchPlan) -> LossRows:
        losses = job.losses[self.losses_key]
        bad = losses.bad(plan.rows) if self.nonfinite == "fail" else plan.rows[:0]
        if len(bad):
            raise SelectionError(
                f"Rows have a loss that is NaN or infinite, such as {examples(bad)}. "
                "Find out why, or let such rows take part always with nonfinite=keep."
            )
        return losses.at(plan.rows)


def _counted(report: dict[str, float], reduce: Reduce) -> Reduce:
    """Count the rows before and after, for the report."""

    def counting(plan: BatchPlan) -> BatchPlan:
        reduced = reduce(plan)
        report["rows"] += len(plan.rows)
        report["selected"] += len(reduced.rows)
        report["saved"] = 1 - report["selected"] / max(1, report["rows"])
        return reduced

    return counting
