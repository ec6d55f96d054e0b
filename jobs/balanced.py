"""The group stage ``balanced``: clusters of equal sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ..clustering.balanced import BalancedKMeans
from ..dataplane.dataset import Dataset
from ..dataplane.parameters import parameters
from .balanced_labels import balanced_labels, sample_bytes
from .context import JobContext
from .group_stages import FeatureGroups
from .stages import PlanState

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["BalancedGroup"]

_LIBRARIES = 96 << 20
_RATE = 3e5  # rows a CPU second


@parameters
class BalancedGroup(FeatureGroups):
    """Parameters of balanced clusters."""

    method = "balanced"
    summary = "balanced k-means: clusters of equal sizes; for batches of whole clusters"
    source = "NGAME (Dahiya et al., WSDM 2023), its balanced halving; any k and exact ties are ours"
    example = (
        "batchloom plan balanced data/ --batch-size 256 --out plan/ --set columns=embedding "
        "--set size=64"
    )

    k: Annotated[int | None, Field(ge=1, description="clusters; or give size")] = None
    size: Annotated[int | None, Field(ge=1, description="rows a cluster at most; or give k")] = None
    metric: Annotated[
        Literal["euclidean", "cosine"], Field(description="cosine: of rows at length 1")
    ] = "euclidean"
    batches: Annotated[
        Literal["aligned", "within", "across"],
        Field(description="of whole clusters, of one each, or of all in equal shares"),
    ] = "aligned"
    drop_last: Annotated[bool, Field(description="leave out rows that fill no micro-batch")] = False

    def __post_init__(self) -> None:
        self.model(0)  # says so where neither or both of k and size are given

    def model(self, seed: int) -> BalancedKMeans:
        return BalancedKMeans(k=self.k, size=self.size, metric=self.metric, seed=seed)

    def cost(self, dataset: Dataset, rows: int) -> float:
        return super().cost(dataset, rows) + rows / _RATE

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        return _LIBRARIES + sample_bytes(dataset.rows, self.width(dataset), self.model(0))

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 48 * rows  # ids, places, leaves and labels; features as large as their columns

    def group(self, job: JobContext, state: PlanState) -> PlanState:
        before = len(state.rows)
        state, rows, features = self.read(job, state)
        labels = balanced_labels(job, rows, features, self.model(job.seed))
        clusters = self.model(job.seed).clusters(len(rows))
        report = {
            "clusters": clusters,
            "sizes": [len(rows) // clusters, -(-len(rows) // clusters)],
            "invalid_rows": before - len(rows),
        }
        return replace(state, groups=labels).reported(self.method, report)
