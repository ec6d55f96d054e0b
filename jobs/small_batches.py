"""The reduce stages that choose a small batch of each large one, by features and sources.

The micro-batches of the plan before are the large ones. Features are read once, into a column;
tasks choose from some micro-batches each (`batch_tasks`). What is kept has, beside its weights,
side columns: the row's source, why it was kept, how many rows of its source were to be kept, and of
how many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..coresets.batch_coresets import BatchCoreset
from ..coresets.quality import ChoiceQuality, summary
from ..dataplane.dataset import Dataset
from ..dataplane.errors import JobSpecError, SelectionError, nearest
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, SideColumn, WeightSemantics
from ..dataplane.plan_changes import keep_rows
from ..dataplane.rowset import RowSet
from .batch_tasks import How, as_rows, batch_tasks, choose_batches, join_chosen
from .column_files import share_column
from .context import JobContext
from .features import FeatureInput, Features
from .invalid import settle_invalid
from .signal_reading import run_tasks
from .sources import Sources, read_sources
from .stages import Reduce, ReduceStage

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["REASONS", "SizeInput", "SmallBatches", "SourceInput"]

REASONS = ("chosen", "small source, kept whole")
"""What the side column ``reason`` says, by number."""

_MEMORY = 192 << 20  # a chunk's rows, and the features that this process holds without workers
_RATE = 2e4  # rows chosen from a CPU second


@parameters
class SizeInput:
    """How large small batches are."""

    k: Annotated[
        int | None,
        Field(ge=1, description="rows of a small batch, of --batch-size; half of it when None"),
    ] = None


@parameters
class SourceInput:
    """Where the sources of rows are."""

    sources: Annotated[
        str | None,
        Field(description="the column of the sources; the dataset's own named sources when None"),
    ] = None
    small: Annotated[
        list[str] | None,
        Field(description="sources to keep whole, by name; those below the mean when None"),
    ] = None


@dataclass(frozen=True)
class _Read:
    """What was read of the rows that take part."""

    features: Features | None
    listing: str | None
    sources: Sources | None
    small: tuple[int, ...] | None


class SmallBatches(ReduceStage):
    """A reduce stage that chooses small batches."""

    side = (
        SideColumn("source", "row", "int32"),
        SideColumn("reason", "row", "uint8"),
        SideColumn("budget", "row", "int32"),
        SideColumn("of", "row", "int32"),
    )
    column_of_sources: ClassVar[str] = "sources"
    """The parameter that names the column of sources, or classes."""

    def chooser(self, seed: int) -> BatchCoreset:
        """Return the method."""
        raise NotImplementedError

    # --- what it needs ----------------------------------------------------------------------------

    @property
    def _column(self) -> str | None:
        return getattr(self, self.column_of_sources, None)

    @property
    def _by_source(self) -> bool:
        """Whether rows are told apart by source."""
        return isinstance(self, SourceInput) or self._column is not None

    @property
    def weight_semantics(self) -> WeightSemantics | None:  # type: ignore[override]  # by instance
        return "cluster" if self.chooser(0).weighted else None

    def check(self, spec: JobSpec) -> None:
        if isinstance(self, FeatureInput):
            self.check_input(self.method, spec)
        k = getattr(self, "k", None)
        if k is not None and k > spec.batch_size:
            raise JobSpecError(
                f"{self.method} cannot choose k = {k} rows of micro-batches of {spec.batch_size}: "
                "--batch-size is the size of the large batch, k that of the small one."
            )

    def reads(self) -> list[str]:
        columns = list(getattr(self, "columns", None) or [])
        return columns if self._column is None else [*columns, self._column]

    @property
    def uses_engine(self) -> bool:
        return True

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        return _MEMORY

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        return 40 * rows  # sources; features come on top, as large as their columns are

    def cost(self, dataset: Dataset, rows: int) -> float:
        return super().cost(dataset, rows) + rows / _RATE

    # --- reading ----------------------------------------------------------------------------------

    def prepare(self, job: JobContext) -> None:
        if isinstance(self, FeatureInput):
            self.read_signal(job)

    def read(self, job: JobContext, rows: RowSet) -> None:
        features = listing = sources = None
        if isinstance(self, FeatureInput):
            features = self.read_features(job, rows)
            listing = share_column(job, features.column)
        if self._by_source:
            sources = read_sources(job, rows, self._column)
        job.kept[self.method] = _Read(features, listing, sources, self._small(sources))

    def _small(self, sources: Sources | None) -> tuple[int, ...] | None:
        """Return the codes of the sources that were named as small."""
        names = getattr(self, "small", None)
        if names is None or sources is None:
            return None
        known = [str(name) for name in sources.names]
        for name in names:
            if name not in known:
                raise SelectionError(
                    f"'small' names the source '{name}', which no row has.{nearest(name, known)} "
                    f"Sources: {', '.join(known)}."
                )
        return tuple(sorted(known.index(name) for name in set(names)))

    # --- choosing ---------------------------------------------------------------------------------

    def begin(
        self, job: JobContext, plans: Callable[[], Iterator[BatchPlan]], epoch: int
    ) -> Reduce:
        read: _Read = job.kept[self.method]
        names = ("all",) if read.sources is None else read.sources.names
        counts = [0] if read.sources is None else read.sources.counts.tolist()
        how = How(
            self.chooser(job.seed),
            getattr(self, "k", None) or max(1, job.batch_size // 2),
            dict(enumerate(counts)),
            read.small,
            epoch,
            read.listing,
        )
        told = _Told(names, counts if read.sources is not None else None, epoch)
        job.reports.setdefault(self.method, {"epochs": {}})["epochs"][str(epoch)] = told.report
        done = 0

        def reduce(plan: BatchPlan) -> BatchPlan:
            nonlocal done
            done += len(plan)
            return self._reduce(job, read, how, told, plan, done - len(plan))

        return reduce

    def _reduce(
        self, job: JobContext, read: _Read, how: How, told: _Told, plan: BatchPlan, number: int
    ) -> BatchPlan:
        if not len(plan):
            return plan
        codes = np.zeros(len(plan.rows), np.int32)
        if read.sources is not None:
            codes = read.sources.codes.at(read.sources.rows.ranks(plan.rows))
        ranks, width = np.zeros(len(plan.rows), np.int64), 1
        if read.features is not None:
            ranks = read.features.rows.ranks(plan.rows)
            width = int(np.prod(read.features.column.shape))
        file = job.save(as_rows(plan.rows, ranks, codes))
        tasks = batch_tasks(str(file), plan.offsets, number, width)
        parts = dict(run_tasks(job, choose_batches, tasks, how))
        file.unlink(missing_ok=True)
        found = join_chosen([parts[i] for i in range(len(tasks))])
        if isinstance(self, FeatureInput) and len(found.left_out):
            settle_invalid(
                self.invalid_values,
                [self.place],
                len(found.left_out),
                np.sort(found.left_out)[:6].tolist(),
                job.on_invalid,
                job.progress,
            )
        _refuse_empty(plan, found.kept)
        told.add(plan, codes, found)
        return _kept(plan, codes, found)


def _refuse_empty(plan: BatchPlan, kept: npt.NDArray[np.bool_]) -> None:
    alive = np.logical_or.reduceat(kept, plan.offsets[:-1])
    if not alive.all():
        at = int(np.argmin(alive))
        rows = plan.rows[plan.offsets[at] : plan.offsets[at + 1]]
        raise SelectionError(
            f"None of the {len(rows)} rows of a micro-batch has features that can be compared, "
            f"row {int(rows[0])} the first of them. Leave such rows out (--where), or mend them."
        )


def _kept(plan: BatchPlan, codes: npt.NDArray[np.int32], found: Any) -> BatchPlan:
    """Return the plan of the rows that are kept, with weights and side columns."""
    reduced = keep_rows(plan, found.kept)
    batch = np.repeat(np.arange(len(plan)), np.diff(plan.offsets))
    pair = batch * (int(codes.max()) + 1) + codes
    _, place, of = np.unique(pair, return_inverse=True, return_counts=True)
    budget = np.bincount(place[found.kept], minlength=len(of))
    mine = place[found.kept]
    weights = reduced.weights
    if found.weights is not None:
        weights = found.weights if weights is None else weights * found.weights
    return replace(
        reduced,
        weights=None if weights is None else weights.astype(np.float32),
        side={
            **reduced.side,
            "source": codes[found.kept],
            "reason": found.whole.astype(np.uint8),
            "budget": budget[mine].astype(np.int32),
            "of": of[mine].astype(np.int32),
        },
    )


class _Told:
    """What is told of an epoch."""

    def __init__(self, names: Any, counts: list[int] | None, epoch: int) -> None:
        self._names, self._counts = names, counts
        self._before = np.zeros(len(names), np.int64)
        self._after = np.zeros(len(names), np.int64)
        self._whole = np.zeros(len(names), bool)
        self._measured: list[ChoiceQuality] = []
        self._invalid = self._overflow = 0
        self._cost = 0.0
        self.report: dict[str, Any] = {"epoch": epoch, "reasons": list(REASONS)}

    def add(self, plan: BatchPlan, codes: npt.NDArray[np.int32], found: Any) -> None:
        mine = codes[found.kept]
        self._before += np.bincount(codes, minlength=len(self._names))
        self._after += np.bincount(mine, minlength=len(self._names))
        self._whole[mine[found.whole]] = True
        self._measured += found.measured
        self._invalid += len(found.left_out)
        self._overflow += found.overflow
        self._cost += found.cost
        rows, kept = int(self._before.sum()), int(self._after.sum())
        sources = [
            {
                "source": name,
                "in_dataset": None if self._counts is None else self._counts[code],
                "rows": int(self._before[code]),
                "selected": int(self._after[code]),
                "kept_whole": bool(self._whole[code]),
            }
            for code, name in enumerate(self._names)
        ]
        self.report |= {
            "rows": rows,
            "selected": kept,
            "saved": 1 - kept / max(1, rows),
            "invalid_rows": self._invalid,
            "overflowing": self._overflow,
            "cost": self._cost or None,
            "sources": sources if self._counts is not None else [],
            "quality": summary(self._measured),
        }
