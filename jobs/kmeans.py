"""The group stage ``kmeans``: train on a keyed sample, assign every row, fragment by fragment."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..clustering.kmeans import KMeans, assign
from ..dataplane.dataset import Dataset
from ..dataplane.errors import needs_extra
from ..dataplane.parameters import parameters
from ..dataplane.random import Stream
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet
from .cluster_batches import make_batches
from .context import JobContext
from .features import feature_width, read_rows
from .invalid import settle_invalid
from .stages import BatchStage, Choice, Columns, GroupStage, PlanState

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["KMeansGroup"]

_FLOPS = 4e9  # a CPU second of matrix products, for estimates
_LIBRARIES = 128 << 20  # scikit-learn and scipy
_VALUE_BYTES = 32  # a value of the sample: float32, its copies, float64, and scikit-learn's copy
_SAMPLE_BYTES = 128  # a row of the sample
_FOUND = np.dtype([("label", "<i4"), ("distance", "<f8")])


@parameters
class KMeansGroup(GroupStage):
    """Parameters of k-means clusters."""

    method = "kmeans"
    summary = "k-means clusters of an embedding or of numeric columns; batches within or across"
    source = "Lloyd 1982; k-means++ (Arthur and Vassilvitskii 2007)"
    example = "batchloom plan kmeans data/ --out plan/ --set columns=embedding --set k=64"

    columns: Annotated[
        Columns, Field(description="an embedding column, or numeric columns, by name")
    ]
    k: Annotated[int, Field(ge=1, description="clusters")]
    rows_per_center: Annotated[
        int, Field(ge=1, description="rows a center in the training sample")
    ] = 256
    max_iter: Annotated[int, Field(ge=1, description="Lloyd iterations at most")] = 100
    batches: Annotated[
        Literal["within", "across", "aligned"],
        Field(description="of one cluster each, of all in equal shares, or of whole clusters"),
    ] = "within"
    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    def parameters(self) -> dict[str, Any]:
        mine = super().parameters()
        return {k: v for k, v in mine.items() if k not in ("batches", "drop_last")}

    def reads(self) -> list[str]:
        return list(self.columns)

    def default_batch(self) -> BatchStage:
        return make_batches(self.batches, drop_last=self.drop_last)

    def cost(self, dataset: Dataset, rows: int) -> float:
        width = sum(feature_width(dataset, c) for c in self.columns)
        sample = min(rows, self.k * self.rows_per_center)
        training = sample * self.k * width * self.max_iter / 4  # it seldom needs them all
        return 2 * super().cost(dataset, rows) + 2 * (training + rows * self.k * width) / _FLOPS

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        width = sum(feature_width(dataset, c) for c in self.columns)
        sample = min(dataset.rows, self.k * self.rows_per_center)
        return _LIBRARIES + sample * (_VALUE_BYTES * width + _SAMPLE_BYTES)

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return rows * (_FOUND.itemsize + 4)

    def group(self, job: JobContext, state: PlanState) -> PlanState:
        for column in self.columns:
            feature_width(job.dataset, column)
        model = KMeans(
            k=self.k, seed=job.seed, rows_per_center=self.rows_per_center, max_iter=self.max_iter
        )
        rows = model.sample_rows(len(state.rows))
        sample = state.rows.choose(rows, seed=job.seed, stream=Stream.KMEANS_SAMPLE)
        x = job.map_rows("sampling", read_rows, sample, self.columns, columns=self.columns).load()
        usable = np.isfinite(x).all(axis=1)
        if not usable.all():
            self._settle(job, sample, sample.keep(usable))
        job.progress.note(f"training {self.k} centers on {int(usable.sum()):,} rows")
        centers = model.train(x[usable], sample.ids()[usable])
        found = job.map_rows(
            "assigning",
            assign_rows,
            state.rows,
            self.columns,
            columns=self.columns,
            centers_file=str(job.save(centers)),
        )
        return self._labelled(job, state, found, {"sample_rows": len(x)})

    def _labelled(
        self, job: JobContext, state: PlanState, found: RowColumn, report: dict[str, Any]
    ) -> PlanState:
        """Return the state with the labels found; rows without one are refused or dropped."""
        kept = state.rows.filter(lambda _, ranks: found[ranks]["label"] >= 0)
        invalid = len(state.rows) - len(kept)
        if invalid:
            self._settle(job, state.rows, kept)
            state = state.selected(job, Choice(kept))
        labels = job.column(part["label"][part["label"] >= 0] for part in found.chunks())
        # Added up in chunks of a set size: the same sum whatever the tasks were.
        report["inertia"] = float(sum(part["distance"].sum() for part in found.chunks()))
        sizes = sum(np.bincount(part, minlength=self.k) for part in labels.chunks())
        report |= {"sizes": np.asarray(sizes).tolist(), "invalid_rows": invalid}
        return replace(state, groups=labels).reported("kmeans", report)

    def _settle(self, job: JobContext, rows: RowSet, kept: RowSet) -> None:
        """Fail, or say how many rows are left out."""
        bad = itertools.chain.from_iterable(ids[~kept.contains(ids)] for ids in rows.chunks())
        settle_invalid(
            "NaN, infinite or null",
            self.columns,
            len(rows) - len(kept),
            itertools.islice(bad, 6),
            job.on_invalid,
            job.progress,
        )


def assign_rows(
    batch: pa.RecordBatch, ids: Any, columns: list[str], centers_file: str
) -> npt.NDArray[np.void]:
    """Assign a batch's rows to centers, −1 where a value is not finite; a row function."""
    with needs_extra("k-means", "plan"):
        from threadpoolctl import threadpool_limits

    x = read_rows(batch, ids, columns)
    out = np.empty(len(x), dtype=_FOUND)
    usable = np.isfinite(x).all(axis=1)
    out["label"], out["distance"] = -1, 0.0
    with threadpool_limits(1):
        labels, distances = assign(x[usable], np.load(centers_file))
    out["label"][usable], out["distance"][usable] = labels, distances
    return out
