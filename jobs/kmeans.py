"""The group stage ``kmeans``: train on a keyed sample, go over all rows, label each."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from ..clustering.kmeans import KMeans
from ..dataplane.dataset import Dataset
from ..dataplane.parameters import parameters
from .context import JobContext
from .group_stages import FeatureGroups
from .kmeans_labels import kmeans_labels
from .stages import PlanState

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["KMeansGroup"]

_FLOPS = 3e10  # a CPU second of distances, for estimates
_LIBRARIES = 320 << 20  # faiss, and the loops that are compiled
_TASK_LIBRARIES = 256 << 20  # those of a worker, and the rows that it takes at a time
_VALUE_BYTES = 8  # a value of the sample: float32, and a copy of it
_CENTER_BYTES = 32  # a value of the centers: those, shifted ones, sums as integers, and a task's
_SAMPLE_BYTES = 96  # a row of the sample


@parameters
class ClusterNumber:
    """What k-means must be told; first, since it has no default."""

    k: Annotated[int, Field(ge=1, description="clusters")]


@parameters
class KMeansGroup(FeatureGroups, ClusterNumber):
    """Parameters of k-means clusters."""

    method = "kmeans"
    summary = "k-means clusters of an embedding or of numeric columns; batches within or across"
    source = (
        "Lloyd 1982; k-means++ (Arthur and Vassilvitskii 2007); faiss (Johnson, Douze and Jégou "
        "2021)"
    )
    example = "batchloom plan kmeans data/ --out plan/ --set columns=embedding --set k=64"

    rows_per_center: Annotated[
        int, Field(ge=1, description="rows a center in the training sample")
    ] = 256
    max_iter: Annotated[int, Field(ge=1, description="iterations on the sample at most")] = 25
    tol: Annotated[
        float, Field(ge=0, description="share of the inertia that an iteration must gain")
    ] = 1e-4
    full_passes: Annotated[int, Field(ge=0, description="iterations on all rows")] = 1
    spherical: Annotated[bool, Field(description="by cosine: rows and centers at length 1")] = False
    levels: Annotated[
        Literal["auto", "one", "two"],
        Field(description="search all centers, or those under the nearest coarse ones"),
    ] = "auto"
    probes: Annotated[
        int, Field(ge=1, description="coarse centers that a row looks under, of two levels")
    ] = 4
    batches: Annotated[
        Literal["within", "across", "aligned"],
        Field(description="of one cluster each, of all in equal shares, or of whole clusters"),
    ] = "within"
    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    def model(self, seed: int) -> KMeans:
        return KMeans(
            k=self.k,
            seed=seed,
            rows_per_center=self.rows_per_center,
            max_iter=self.max_iter,
            tol=self.tol,
            full_passes=self.full_passes,
            spherical=self.spherical,
            levels=self.levels,
            probes=self.probes,
        )

    def cost(self, dataset: Dataset, rows: int) -> float:
        width = self.width(dataset)
        searched = self.k if not self.model(0).two_levels else 5 * int(self.k**0.5)
        sample = min(rows, self.k * self.rows_per_center)
        distances = sample * searched * self.max_iter / 2  # it seldom needs all of them
        distances += rows * searched * (self.full_passes + 1)
        return super().cost(dataset, rows) + 2 * width * distances / _FLOPS

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        width = self.width(dataset)
        sample = min(dataset.rows, self.k * self.rows_per_center)
        centers = self.k * width * _CENTER_BYTES
        return _LIBRARIES + sample * (_VALUE_BYTES * width + _SAMPLE_BYTES) + centers

    def task_memory(self, spec: JobSpec, dataset: Dataset) -> int:
        return _TASK_LIBRARIES + self.k * self.width(dataset) * _CENTER_BYTES

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 32 * rows  # ids, places and labels; features as large as their columns

    def group(self, job: JobContext, state: PlanState) -> PlanState:
        before = len(state.rows)
        state, rows, features = self.read(job, state)
        found = kmeans_labels(job, rows, features, self.model(job.seed))
        report = {
            "sample_rows": found.sample_rows,
            "passes": found.passes,
            "device": found.device,
            "inertia": found.sums.inertia,
            "sizes": np.asarray(found.sums.counts).tolist(),
            "invalid_rows": before - len(rows),
        }
        return replace(state, groups=found.labels).reported("kmeans", report)
