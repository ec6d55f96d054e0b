"""What selections within clusters share: the clusters, of a group stage or k-means' own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..clustering.kmeans import KMeans
from ..dataplane.dataset import Dataset
from ..dataplane.errors import SelectionError
from ..dataplane.external_sort import RECORD_BYTES
from ..dataplane.parameters import parameters
from ..dataplane.row_column import RowColumn
from ..dataplane.rowset import RowSet
from .cluster_rows import ClusterRows, by_label
from .context import JobContext
from .features import FeatureInput, Features, feature_width, usable_rows
from .kmeans_labels import kmeans_labels
from .methods import METHODS
from .stages import Choice, PlanState, SelectStage

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["ClusterSelect"]

F32 = npt.NDArray[np.float32]

_LIBRARIES = 160 << 20  # faiss, and the clusters that this process looks at without workers
_SAMPLE_BYTES = 96  # a row of k-means' sample, beside its numbers
_SAMPLE_COPIES = 4  # of its numbers
_ROWS_PER_CENTER = 256
_FLOPS = 3e10  # a CPU second, for estimates


@parameters
class ClusterSelect(FeatureInput, SelectStage):
    """A select stage that looks at the rows of each cluster."""

    k: Annotated[
        int | None,
        Field(
            ge=1,
            description=(
                "clusters to make by k-means; when None the groups of the group stage before, or "
                "as many as the root of the rows"
            ),
        ),
    ] = None

    @property
    def unit_rows(self) -> bool:
        """Whether k-means takes rows at length 1."""
        return True

    def check(self, spec: JobSpec) -> None:
        self.check_input(self.method, spec)

    def reads(self) -> list[str]:
        return list(self.columns or [])

    @property
    def uses_engine(self) -> bool:
        return True

    def clusters(self, rows: int) -> int:
        """Return how many clusters k-means makes of so many rows."""
        return self.k or max(1, math.isqrt(max(0, rows - 1)) + 1)

    def pairs(self, rows: int) -> float:
        """Return about how many pairs of rows are compared."""
        del rows
        return 0.0

    def cost(self, dataset: Dataset, rows: int) -> float:
        width = self._width(dataset)
        k = self.clusters(rows)
        sample = min(rows, _ROWS_PER_CENTER * k)
        training = sample * k * 6  # it seldom needs all iterations
        products = training + rows * k + self.pairs(rows)
        return super().cost(dataset, rows) + 2 * width * products / _FLOPS

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        sample = 0
        if self.k is not None or not any(_is_group(table) for table in spec.stages):
            sample = min(dataset.rows, _ROWS_PER_CENTER * self.clusters(dataset.rows))
        return _LIBRARIES + sample * (_SAMPLE_COPIES * 4 * self._width(dataset) + _SAMPLE_BYTES)

    def _width(self, dataset: Dataset) -> int:
        return sum(feature_width(dataset, c) for c in self.columns or [])

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        # Labels, ranks, places and what is found of them; features as large as their columns.
        return rows * (32 if in_memory else 32 + RECORD_BYTES)

    def prepare(self, job: JobContext) -> None:
        self.read_signal(job)

    def cluster_rows(self, job: JobContext, state: PlanState) -> ClusterRows:
        """Read the features of the rows, and put them in the order of their clusters."""
        features = self.read_features(job, state.rows)
        rows = usable_rows(job, state.rows, features, self)
        if not len(rows):
            raise SelectionError(
                f"None of the {len(state.rows):,} rows has features that {self.method} can use: "
                f"{self.place}."
            )
        labels = state.selected(job, Choice(rows)).groups
        if self.k is not None or labels is None:
            labels = self._kmeans(job, rows, features)
        return by_label(job, rows, labels, features, len(state.rows) - len(rows))

    def _kmeans(self, job: JobContext, rows: RowSet, features: Features) -> RowColumn:
        """Return the cluster of each row, int32, by rank."""
        model = KMeans(
            k=self.clusters(len(rows)),
            seed=job.seed,
            rows_per_center=_ROWS_PER_CENTER,
            full_passes=0,
        )
        return kmeans_labels(job, rows, features, model, unit=self.unit_rows).labels


def _is_group(table: dict[str, Any]) -> bool:
    method = METHODS.get(str(table.get("method")))
    return method is not None and method.kind == "group"
