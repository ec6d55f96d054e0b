"""The batch stage ``shuffle``: uniform random micro-batches, or stratified by a column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from ..dataplane.key_hash import hash_column
from ..dataplane.orders import stratified
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan
from ..dataplane.random import Permutation
from .context import JobContext
from .stages import BatchStage, PlanState

__all__ = ["Shuffle"]

_CHUNK_ROWS = 1 << 20


@parameters
class Shuffle(BatchStage):
    """Parameters of the shuffle."""

    method = "shuffle"
    summary = "uniform random micro-batches of all rows, or stratified by a column"
    source = "feistel8-v1 / stable key sort (dataplane/random.py); strata: systematic sampling"
    example = "batchloom plan shuffle data/ --out plan/ --batch-size 256 --epochs 0:3 --seed 7"

    stratify: Annotated[
        str | None,
        Field(description="column whose values every micro-batch holds in the dataset's shares"),
    ] = None
    drop_last: Annotated[
        bool, Field(description="leave out the rows of a last, smaller micro-batch")
    ] = False

    def reads(self) -> list[str]:
        return [] if self.stratify is None else [self.stratify]

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        n = len(state.rows)
        used = n // job.batch_size * job.batch_size if self.drop_last else n
        order = self._order(job, state, epoch)
        step = max(1, _CHUNK_ROWS // job.batch_size) * job.batch_size
        for start in range(0, used, step):
            ranks = order[start : min(start + step, used)]
            weights = None if state.weights is None else state.weights[ranks]
            yield BatchPlan.cut(state.rows.at(ranks), job.batch_size, weights)

    def _order(
        self, job: JobContext, state: PlanState, epoch: int
    ) -> Permutation | npt.NDArray[np.int64]:
        """Return ranks in order; the permutation is computed as it is sliced."""
        if self.stratify is None:
            return Permutation(len(state.rows), seed=job.seed, epoch=epoch)
        strata = _strata(job, state, self.stratify)
        return stratified(strata, state.rows.ids(), seed=job.seed, epoch=epoch)


def _strata(job: JobContext, state: PlanState, column: str) -> npt.NDArray[np.int64]:
    hashes = job.map_rows(f"reading '{column}'", hash_rows, state.rows, [column], column=column)
    return np.unique(hashes, return_inverse=True)[1]


def hash_rows(batch: pa.RecordBatch, ids: Any, column: str) -> npt.NDArray[np.uint64]:
    """Hash a column of a batch; a row function."""
    return hash_column(batch.column(column), column)
