"""The batch stage ``shuffle``: random micro-batches, in full, in blocks, or stratified."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.dataset import Dataset
from ..dataplane.errors import JobSpecError
from ..dataplane.orders import BlockOrder, balance
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan
from ..dataplane.random import Permutation
from ..dataplane.row_column import RowColumn, sum_counts
from .codes import CODE_BYTES, read_codes
from .context import JobContext
from .disk_orders import ORDER_BYTES, stratify
from .stages import BatchStage, PlanState

__all__ = ["Shuffle"]

_CHUNK_ROWS = 1 << 20
_GROUP_BYTES = 40  # a group of the block shuffle
_POOR_BALANCE = 2.0  # chi-square by degree of freedom above which a warning is told


@parameters
class Shuffle(BatchStage):
    """Parameters of the shuffle."""

    method = "shuffle"
    summary = "uniform random micro-batches, in blocks for disk locality, or stratified by a column"
    source = "feistel8-v1 / stable key sort (dataplane/random.py); blocks: CorgiPile, 2206.05830"
    example = "batchloom plan shuffle data/ --out plan/ --batch-size 256 --epochs 0:3 --seed 7"

    mode: Annotated[
        Literal["full", "block"],
        Field(description="shuffle all rows, or neighbouring rows of many open groups at a time"),
    ] = "full"
    groups_open: Annotated[
        int, Field(ge=1, description="block: groups whose rows are shuffled together")
    ] = 256
    group_rows: Annotated[int, Field(ge=1, description="block: neighbouring rows a group")] = 4096
    stratify: Annotated[
        str | None,
        Field(description="column whose values every micro-batch holds in the dataset's shares"),
    ] = None
    balance: Annotated[
        str | None,
        Field(description="column whose spread over the micro-batches is measured and told"),
    ] = None
    drop_last: Annotated[
        bool, Field(description="leave out the rows of a last, smaller micro-batch")
    ] = False

    def __post_init__(self) -> None:
        if self.stratify is not None and self.mode == "block":
            raise JobSpecError(
                "shuffle: 'stratify' spreads rows over all files; mode must be full."
            )

    def parameters(self) -> dict[str, Any]:
        mine = super().parameters()
        ignored = {"balance"} | (set() if self.mode == "block" else {"groups_open", "group_rows"})
        return {k: v for k, v in mine.items() if k not in ignored}

    def memory(self, dataset: Dataset, rows: int) -> int:
        return _GROUP_BYTES * (rows // self.group_rows) if self.mode == "block" else 0

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        sorting = 0 if in_memory or self.stratify is None else ORDER_BYTES * rows
        return CODE_BYTES * rows * len(self.reads()) + sorting

    def reads(self) -> list[str]:
        return list(dict.fromkeys(c for c in (self.stratify, self.balance) if c is not None))

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        n = len(state.rows)
        used = n // job.batch_size * job.batch_size if self.drop_last else n
        order = self._order(job, state, epoch)
        spread = None if self.balance is None else _Spread(read_codes(job, state, self.balance))
        step = max(1, _CHUNK_ROWS // job.batch_size) * job.batch_size
        for start in range(0, used, step):
            ranks = order[start : min(start + step, used)]
            weights = None if state.weights is None else state.weights.at(ranks)
            plan = BatchPlan.cut(state.rows.at(ranks), job.batch_size, weights)
            if spread is not None:
                spread.add(ranks, plan.offsets)
            yield plan
        if isinstance(order, RowColumn):
            order.remove()
        if spread is not None:
            self._tell(job, epoch, spread.value)

    def _order(
        self, job: JobContext, state: PlanState, epoch: int
    ) -> Permutation | BlockOrder | npt.NDArray[np.int64] | RowColumn:
        """Return ranks in order; permutations are computed as they are sliced."""
        n = len(state.rows)
        if self.stratify is not None:
            return stratify(job, state.rows, read_codes(job, state, self.stratify), epoch)
        if self.mode == "full":
            return Permutation(n, seed=job.seed, epoch=epoch)
        return BlockOrder(
            n,
            group_rows=self.group_rows,
            groups_open=self.groups_open,
            seed=job.seed,
            epoch=epoch,
        )

    def _tell(self, job: JobContext, epoch: int, value: float) -> None:
        if not np.isfinite(value):
            return  # one value only: nothing to spread
        job.reports.setdefault("balance", {})[f"epoch {epoch}"] = round(value, 4)
        text = (
            f"epoch {epoch}: '{self.balance}' spreads over the micro-batches with a chi-square of "
            f"{value:.2f} a degree of freedom (1: a full shuffle)"
        )
        if value > _POOR_BALANCE:
            job.progress.warn(f"{text}; open more groups (groups_open), or use mode=full.")
        else:
            job.progress.note(text)


class _Spread:
    """The mean balance of micro-batches that come in chunks."""

    def __init__(self, codes: RowColumn) -> None:
        self._codes = codes
        self._totals = sum_counts(np.bincount(part) for part in codes.chunks())
        self._sum = self._batches = 0.0

    def add(self, ranks: npt.NDArray[Any], offsets: npt.NDArray[np.int64]) -> None:
        count = len(offsets) - 1
        self._sum += count * balance(self._codes.at(ranks), offsets, self._totals)
        self._batches += count

    @property
    def value(self) -> float:
        return self._sum / self._batches
