"""The batch stage ``shuffle``: random micro-batches, in full, in blocks, stratified, or in homes.

With `homes` the fragments are cut into H shares of neighbours, about equal in rows, and micro-batch
m of every step holds rows of share m mod H, shuffled by itself. Micro-batches are then dealt whole,
so that a rank reads the files of its own shares only, and a cache beside it serves every epoch.
Every step has a micro-batch of each share: the rows of a smaller share are cut as often as those of
the largest, into somewhat smaller micro-batches; no row is dropped or repeated for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..dataplane.dataset import Dataset
from ..dataplane.errors import JobSpecError
from ..dataplane.orders import BlockOrder, Homes, balance
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, Unit
from ..dataplane.random import Permutation, Stream, keys
from ..dataplane.row_column import RowColumn, sum_counts
from .codes import CODE_BYTES, read_codes
from .context import JobContext
from .disk_orders import ORDER_BYTES, stratify
from .spec import JobSpec
from .stages import BatchStage, PlanState

__all__ = ["Shuffle"]

_CHUNK_ROWS = 1 << 20
_GROUP_BYTES = 40  # a group of the block shuffle
_ROW_BYTES = 48  # a row of a step with homes, which is dealt as a whole
_POOR_BALANCE = 2.0  # chi-square by degree of freedom above which a warning is told
_UNEVEN_HOMES = 0.8  # rows of the smallest share over the largest's below which one is told


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
    homes: Annotated[
        int | None,
        Field(
            ge=2,
            description="shares of the fragments: micro-batch m of a step is of share m mod homes",
        ),
    ] = None
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
        if self.stratify is not None and (self.mode == "block" or self.homes is not None):
            raise JobSpecError(
                "shuffle: 'stratify' spreads rows over all files; mode must be full, without homes."
            )

    def check(self, spec: JobSpec) -> None:
        if self.homes is not None and spec.micro_per_step % self.homes:
            raise JobSpecError(
                f"shuffle: with homes={self.homes} every step holds micro-batches of all shares: "
                f"micro_per_step must be a multiple of {self.homes}. Got {spec.micro_per_step} "
                "instead."
            )

    @property
    def unit(self) -> Unit:
        return "sliceable" if self.homes is None else "micro"

    @property
    def measures(self) -> bool:
        return self.balance is not None

    def no_recipe(self) -> str | None:
        for name in ("stratify", "homes"):
            if getattr(self, name) is not None:
                return f"the shuffle's '{name}' is no plain permutation"
        return None if self.mode == "full" else "the shuffle's mode is not full"

    def parameters(self) -> dict[str, Any]:
        mine = super().parameters()
        ignored = {"balance"} | (set() if self.mode == "block" else {"groups_open", "group_rows"})
        ignored |= {"homes"} if self.homes is None else set()
        return {k: v for k, v in mine.items() if k not in ignored}

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        groups = dataset.rows // self.group_rows if self.mode == "block" else 0
        step = 0 if self.homes is None else spec.batch_size * spec.micro_per_step
        return _GROUP_BYTES * groups + _ROW_BYTES * max(0, min(step, dataset.rows) - _CHUNK_ROWS)

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        sorting = 0 if in_memory or self.stratify is None else ORDER_BYTES * rows
        return CODE_BYTES * rows * len(self.reads()) + sorting

    def reads(self) -> list[str]:
        return list(dict.fromkeys(c for c in (self.stratify, self.balance) if c is not None))

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        spread = (
            None if self.balance is None else _Spread(read_codes(job, state.rows, self.balance))
        )
        for ranks, offsets in self._pieces(job, state, epoch):
            weights = None if state.weights is None else state.weights.at(ranks)
            plan = BatchPlan.of(offsets, state.rows.at(ranks), weights)
            if spread is not None:
                spread.add(ranks, plan.offsets)
            yield plan
        if spread is not None:
            self._tell(job, epoch, spread.value)

    def _pieces(
        self, job: JobContext, state: PlanState, epoch: int
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        """Yield (ranks in order, offsets of the micro-batches) in chunks."""
        if self.homes is not None:
            yield from self._in_homes(self.homes, job, state, epoch)
            return
        n, size = len(state.rows), job.batch_size
        used = n // size * size if self.drop_last else n
        order = self._order(job, state, epoch)
        step = max(1, _CHUNK_ROWS // size) * size
        for start in range(0, used, step):
            stop = min(start + step, used)
            yield order[start:stop], np.append(np.arange(0, stop - start, size), stop - start)
        if isinstance(order, RowColumn):
            order.remove()

    def _in_homes(
        self, count: int, job: JobContext, state: PlanState, epoch: int
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]:
        homes = Homes.of(
            state.rows.fragment_rows(),
            count,
            batch_size=job.batch_size,
            batches_a_step=job.micro_per_step // count,
            drop_last=self.drop_last,
        )
        self._tell_homes(job, homes)
        own_seeds = keys(job.seed, Stream.HOME_ORDER, epoch, np.arange(count))
        orders = [
            self._shuffled(n, int(seed), epoch)
            for n, seed in zip(homes.rows.tolist(), own_seeds, strict=True)
        ]
        steps = max(1, _CHUNK_ROWS // (job.batch_size * job.micro_per_step))
        for start in range(0, homes.steps, steps):
            yield homes.deal(orders, start, min(start + steps, homes.steps))

    def _order(
        self, job: JobContext, state: PlanState, epoch: int
    ) -> Permutation | BlockOrder | npt.NDArray[np.int64] | RowColumn:
        """Return ranks in order; permutations are computed as they are sliced."""
        n = len(state.rows)
        if self.stratify is not None:
            return stratify(job, state.rows, read_codes(job, state.rows, self.stratify), epoch)
        return self._shuffled(n, job.seed, epoch)

    def _shuffled(self, n: int, seed: int, epoch: int) -> Permutation | BlockOrder:
        if self.mode == "full":
            return Permutation(n, seed=seed, epoch=epoch)
        return BlockOrder(
            n,
            group_rows=self.group_rows,
            groups_open=self.groups_open,
            seed=seed,
            epoch=epoch,
        )

    def _tell_homes(self, job: JobContext, homes: Homes) -> None:
        job.reports["homes"] = homes.rows.tolist()
        smallest, largest = int(homes.rows.min()), int(homes.rows.max())
        if smallest < _UNEVEN_HOMES * largest:
            job.progress.warn(
                f"the shares of the files hold between {smallest:,} and {largest:,} rows, so some "
                "micro-batches are smaller than others; use fewer homes, or files of equal size."
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
