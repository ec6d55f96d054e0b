"""The group stage ``ppp``: partitions whose number of clusters is found, on a keyed sample."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..clustering.ppp import PPP, PPPModel, PPPSettings
from ..dataplane.dataset import Dataset
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream
from ..dataplane.row_column import ColumnWriter, RowColumn, Segment
from ..dataplane.rowset import RowSet
from .context import JobContext
from .features import Features
from .group_stages import FeatureGroups
from .loss_stages import settings_of
from .rank_tasks import RankTask, rank_tasks
from .signal_reading import run_tasks
from .stages import Choice, PlanState

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["PPPGroup"]

_LIBRARIES = 256 << 20  # scikit-learn and scipy
_VALUE_BYTES = 96  # a value of the sample: float64, its halves, and what mixtures keep
_FIT, _FIT_VALUE = 8e-5, 1.6e-6  # CPU seconds of the fit: a row and k, and a value of it
_RATE = 1e6  # rows a CPU second


@parameters
class PPPGroup(FeatureGroups, PPPSettings):
    """Parameters of PPP."""

    method = "ppp"
    summary = "PPP: clusters whose number is found, where valleys lie between them"
    source = (
        "after Sultan, Probabilistic Partitive Partitioning, arXiv 2003.04372; the steps are a "
        "reconstruction of ours"
    )
    example = "batchloom plan ppp data/ --out plan/ --set columns=embedding --set k_max=25"

    separable: Annotated[bool, Field(description="keep only the rows whose cluster is certain")] = (
        False
    )
    batches: Annotated[
        Literal["within", "across"],
        Field(description="of one cluster each, or of all in equal shares"),
    ] = "within"
    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    def model(self, seed: int) -> PPP:
        return PPP(**settings_of(self, PPPSettings), seed=seed)

    def cost(self, dataset: Dataset, rows: int) -> float:
        fit = self.sample_rows(rows) * self.k_max * (_FIT + _FIT_VALUE * self.width(dataset))
        return super().cost(dataset, rows) + fit + rows / _RATE

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        values = self.sample_rows(dataset.rows) * self.width(dataset)
        return _LIBRARIES + values * _VALUE_BYTES

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 32 * rows  # ids, places, labels; features as large as their columns

    def group(self, job: JobContext, state: PlanState) -> PlanState:
        before = len(state.rows)
        state, rows, features = self.read(job, state)
        model = self._trained(job, rows, features)
        labels, sure = _assigned(job, rows, features, model)
        sample = self.sample_rows(len(rows))
        report = {
            "k": model.k,
            **_counted(labels, sure, model.k),
            "invalid_rows": before - len(rows),
            "sample_rows": sample,
            "limits": self.limits(sample),
            "evidence": list(model.evidence),
        }
        state = replace(state, groups=labels)
        if self.separable:
            state = state.selected(job, Choice(rows.filter(lambda _, ranks: sure[ranks])))
        return state.reported(self.method, report)

    def _trained(self, job: JobContext, rows: RowSet, features: Features) -> PPPModel:
        method = self.model(job.seed)
        sample = rows.choose(method.sample_rows(len(rows)), seed=job.seed, stream=Stream.PPP_SAMPLE)
        ids = sample.ids()
        job.progress.note(f"looking for clusters among {len(ids):,} rows")
        return method.train(features.column.at(features.rows.ranks(ids)), ids)


@dataclass(frozen=True)
class _Assigned:
    """Files of a task's rows: labels, and whether each is certain."""

    labels: Segment
    sure: Segment


def _assigned(
    job: JobContext, rows: RowSet, features: Features, model: PPPModel
) -> tuple[RowColumn, RowColumn]:
    """Return the cluster of each row, int32, and whether it is certain, by rank."""
    tasks = rank_tasks(job, rows, features)
    found: dict[int, _Assigned] = {}
    with job.progress.step("assigning", len(rows)) as bar:
        for position, part in run_tasks(job, assign_rows, tasks, model, str(job.work.folder)):
            found[position] = part
            bar.advance(tasks[position].rows)
    ordered = [found[i] for i in range(len(tasks))]
    return RowColumn(p.labels for p in ordered), RowColumn(p.sure for p in ordered)


def _counted(labels: RowColumn, sure: RowColumn, k: int) -> dict[str, Any]:
    """Return the rows of each cluster, and of those the separable ones."""
    sizes, certain = np.zeros(k, np.int64), np.zeros(k, np.int64)
    for part, inside in zip(labels.chunks(), sure.chunks(), strict=True):
        sizes += np.bincount(part, minlength=k)
        certain += np.bincount(part[inside], minlength=k)
    return {
        "sizes": sizes.tolist(),
        "separable_sizes": certain.tolist(),
        "separable_share": float(certain.sum() / sizes.sum()),
    }


def assign_rows(task: RankTask, model: PPPModel, folder: str) -> _Assigned:
    """Write the clusters of a task's rows to files; runs on workers."""
    name = uuid.uuid4().hex[:12]
    with (
        ColumnWriter(Path(folder) / f"labels-{name}") as labels,
        ColumnWriter(Path(folder) / f"sure-{name}") as sure,
    ):
        for x, ids in task.parts():
            found: tuple[npt.NDArray[Any], ...] = model.assign(x, ids)
            labels.append(found[0])
            sure.append(found[2])
        return _Assigned(labels.finish(), sure.finish())
