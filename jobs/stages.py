"""The four kinds of stage, and what passes between them.

A plan is made by ``select`` stages (rows shrink), at most one ``group`` stage (a label a row),
exactly one ``batch`` stage (micro-batches) and ``reduce`` stages (plan → plan). A stage is a class
made by `parameters`, so its fields are its parameters, with ranges, defaults and descriptions, and
it says its name, its kind and its source. See `methods` for how to add one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, Field

from ..dataplane.dataset import Dataset
from ..dataplane.errors import SelectionError
from ..dataplane.parameters import resolved
from ..dataplane.plan import BatchPlan, Selection, SideColumn, Unit, WeightSemantics
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet
from .context import JobContext
from .spec import JobSpec

__all__ = [
    "BatchStage",
    "Choice",
    "Columns",
    "GroupStage",
    "PlanState",
    "Reduce",
    "ReduceStage",
    "SelectStage",
    "Stage",
    "StageKind",
]

StageKind = Literal["select", "group", "batch", "reduce"]

_SCAN_RATE = 150e6  # compressed bytes a CPU second, for estimates


def _split_commas(value: Any) -> Any:
    return [v.strip() for v in value.split(",")] if isinstance(value, str) else value


Reduce: TypeAlias = Callable[[BatchPlan], BatchPlan]

Columns = Annotated[
    list[str],
    BeforeValidator(_split_commas),
    Field(min_length=1),
]
"""A list of column names; a string is split at commas."""


@dataclass(frozen=True)
class Choice:
    """What a select stage keeps, where that is more than an array in memory should hold.

    Attributes
    ----------
    rows : RowSet
    weights : RowColumn of float32, or None
        By rank among `rows`.
    report : mapping
        What the stage tells of itself.
    """

    rows: RowSet
    weights: RowColumn | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanState:
    """The rows that take part, with a weight and a group each, between two stages.

    Attributes
    ----------
    rows : RowSet
    weights : RowColumn of float32, or None
        By rank of the row.
    groups : RowColumn of int32, or None
        Labels 0…k−1.
    reports : mapping
        What the stages told, by method.
    """

    rows: RowSet
    weights: RowColumn | None = None
    groups: RowColumn | None = None
    reports: Mapping[str, Any] = field(default_factory=dict)

    def selected(self, job: JobContext, kept: Selection | Choice) -> PlanState:
        """Keep what a select stage chose; weights multiply."""
        if isinstance(kept, Selection):
            weights = None if kept.weights is None else job.column([kept.weights])
            kept = Choice(self.rows.pick(kept.rows), weights, kept.report)
        groups = self.groups
        if groups is not None and kept.rows is not self.rows:
            groups = job.column(_kept_values(self.rows, groups, kept.rows))
        return replace(self, rows=kept.rows, weights=self._weighted(job, kept), groups=groups)

    def _weighted(self, job: JobContext, kept: Choice) -> RowColumn | None:
        """Return the weights of the rows that are kept, times those of the choice."""
        if self.weights is None or (kept.weights is None and kept.rows is self.rows):
            return self.weights if kept.weights is None else kept.weights
        before = _kept_values(self.rows, self.weights, kept.rows)
        if kept.weights is None:
            return job.column(before)
        return job.column(_multiplied(before, kept.weights))

    def weighted_rows(self) -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.float32]]]:
        """Yield (row ids, weights) of the rows, ascending, in chunks; they must have weights."""
        assert self.weights is not None  # for the type checker; the caller looked
        start = 0
        for ids in self.rows.chunks():
            yield ids, self.weights[start : start + len(ids)]
            start += len(ids)

    def reported(self, method: str, report: Mapping[str, Any]) -> PlanState:
        """Add what a stage tells of itself."""
        return replace(self, reports={**self.reports, method: dict(report)}) if report else self


def _kept_values(rows: RowSet, values: RowColumn, kept: RowSet) -> Iterator[npt.NDArray[Any]]:
    """Yield the values of the rows that are kept, in order."""
    start = 0
    for ids in rows.chunks():
        yield values[start : start + len(ids)][kept.contains(ids)]
        start += len(ids)


def _multiplied(
    before: Iterator[npt.NDArray[Any]], weights: RowColumn
) -> Iterator[npt.NDArray[np.float32]]:
    start = 0
    for part in before:
        yield (weights[start : start + len(part)] * part).astype(np.float32)
        start += len(part)


class Stage:
    """What every stage has."""

    method: ClassVar[str]
    kind: ClassVar[StageKind]
    summary: ClassVar[str]
    source: ClassVar[str] = ""
    example: ClassVar[str] = ""
    about: ClassVar[str] = ""
    """What else its help says: paragraphs."""
    weight_semantics: ClassVar[WeightSemantics | None] = None
    series: ClassVar[bool] = False
    """Whether a plan learns from the epochs before, so that it is a member of a series."""

    def identity(self) -> dict[str, Any]:
        """What the manifest's identity records of the stage."""
        return {"stage": self.kind, "method": self.method, "parameters": self.parameters()}

    def parameters(self) -> dict[str, Any]:
        """Resolved parameters; files as content digests, never as paths."""
        return resolved(self)

    def reads(self) -> list[str]:
        """Columns that the stage scans."""
        return []

    def check(self, spec: JobSpec) -> None:
        """Raise `JobSpecError` where the job's own settings do not fit the stage."""

    def waits_for_signal(self, epochs: tuple[int, int]) -> bool:
        """Whether these epochs, A to B - 1, need what a training has written before them."""
        del epochs
        return False

    @property
    def uses_engine(self) -> bool:
        """Whether the stage has tasks for workers."""
        return bool(self.reads())

    def prepare(self, job: JobContext) -> None:
        """Read what all epochs need, once, before the first."""

    def cost(self, dataset: Dataset, rows: int) -> float:
        """CPU seconds that the stage is expected to take."""
        del rows
        scanned = sum(f.bytes for f in dataset.snapshot.fragments) if self.reads() else 0
        return scanned / _SCAN_RATE

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        """Bytes that the stage needs in the job's own process, beside chunks of rows."""
        del spec, dataset
        return 0

    def task_memory(self, spec: JobSpec, dataset: Dataset) -> int:
        """Bytes that a worker needs for the stage's tasks, beside what it needs to scan."""
        del spec, dataset
        return 0

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        """Bytes that the stage keeps in the work folder; `in_memory`: orders are made there."""
        del in_memory
        return 8 * rows if self.reads() else 0


class SelectStage(Stage):
    """Shrinks the rows."""

    kind = "select"
    per_epoch: ClassVar[bool] = False
    """Whether the selection changes from epoch to epoch."""

    def select(self, job: JobContext, state: PlanState, epoch: int) -> Selection | Choice:
        """Return the ranks (among the state's rows) that are kept, with their weights.

        As arrays in a `Selection`, or, where rows are many, as a set of rows and a column of
        weights in a `Choice`.
        """
        raise NotImplementedError


class GroupStage(Stage):
    """Labels the rows."""

    kind = "group"

    def group(self, job: JobContext, state: PlanState) -> PlanState:
        """Return the state with ``groups`` set; rows that cannot be labelled may be dropped."""
        raise NotImplementedError

    def default_batch(self) -> BatchStage:
        """Return the batch stage that follows where the plan names none."""
        raise NotImplementedError


class BatchStage(Stage):
    """Makes micro-batches, one a step."""

    kind = "batch"
    side: ClassVar[tuple[SideColumn, ...]] = ()
    needs_groups: ClassVar[bool] = False

    @property
    def unit(self) -> Unit:
        """Whether ranks may slice the micro-batches."""
        return "sliceable"

    @property
    def drops_last(self) -> bool:
        """Whether the rows of a last, smaller micro-batch are left out."""
        return bool(getattr(self, "drop_last", False))

    @property
    def measures(self) -> bool:
        """Whether making the micro-batches measures something that was asked for."""
        return False

    def no_recipe(self) -> str | None:
        """Say why no recipe stands for the stage; None where one does (see `forms`)."""
        return f"the batch stage '{self.method}' is no plain shuffle"

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        """Yield micro-batches of row ids, in chunks; each row at most once."""
        raise NotImplementedError


class ReduceStage(Stage):
    """Makes a plan of a plan, micro-batch by micro-batch."""

    kind = "reduce"
    side: ClassVar[tuple[SideColumn, ...]] = ()
    """What it adds to the micro-batches' side columns."""

    def read(self, job: JobContext, rows: RowSet) -> None:
        """Read what is needed of the rows that take part in any epoch; before the first one."""

    def begin(
        self, job: JobContext, plans: Callable[[], Iterator[BatchPlan]], epoch: int
    ) -> Reduce:
        """Return what reduces the chunks of an epoch, in order.

        `plans` makes them, for a stage that must see all of them before it reduces one.
        """
        return lambda plan: self.reduce(job, plan, epoch)

    def reduce(self, job: JobContext, plan: BatchPlan, epoch: int) -> BatchPlan:
        """Return the reduced micro-batches of a chunk; row ids in, row ids out."""
        raise NotImplementedError


def groups_of(state: PlanState) -> RowColumn:
    """Return the state's groups; an error where no group stage came before."""
    if state.groups is None:
        raise SelectionError("This batch method needs a group stage before it, such as kmeans.")
    return state.groups
