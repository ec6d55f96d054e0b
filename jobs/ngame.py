"""The batch stage ``ngame``: micro-batches of whole clusters, their negatives mined."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from ..clustering.balanced import BalancedKMeans
from ..clustering.ngame import SIDE, Deal, NGAMESettings, batch_of_clusters
from ..dataplane.dataset import Dataset
from ..dataplane.errors import JobSpecError
from ..dataplane.external_sort import RECORD_BYTES, ExternalSort
from ..dataplane.parameters import parameters
from ..dataplane.plan import BatchPlan, Unit
from ..dataplane.random import Stream, keys
from ..dataplane.row_column import CHUNK_ROWS, RowColumn, sum_counts
from ..dataplane.rowset import RowSet
from .balanced_labels import balanced_labels, sample_bytes
from .column_files import share_column
from .context import JobContext
from .features import FeatureInput, Features, feature_width, usable_rows
from .invalid import settle_invalid
from .labels import RowLabels, read_labels
from .mining_tasks import ROW, Mining, mine_batches, mine_tasks, read_mined
from .signal_reading import run_tasks
from .stages import BatchStage, PlanState

if TYPE_CHECKING:
    from .spec import JobSpec

__all__ = ["NGAMEBatches"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_LIBRARIES = 192 << 20  # scipy, and a chunk's negatives
_RATE = 2e4  # rows a CPU second
_KEYS = 2.0**-64
_LIST_BYTES = 256  # of a row's mask and negatives
_SORTS = 3
_BARE = "ngame without embeddings"  # what is kept of whether there are none


@dataclass(frozen=True)
class _Read:
    """What was read of the rows that take part."""

    rows: RowSet
    features: Features
    labels: RowLabels | None
    listings: tuple[str, str | None]


@parameters
class NGAMEBatches(FeatureInput, NGAMESettings, BatchStage):
    """Parameters of NGAME."""

    method = "ngame"
    summary = "NGAME: micro-batches of whole clusters, so that each row meets hard negatives"
    source = (
        "Dahiya et al., NGAME: Negative Mining-aware Mini-batching for Extreme Classification, "
        "WSDM 2023"
    )
    example = (
        "batchloom plan ngame data/ --batch-size 1024 --epochs 10:11 --out plan/ "
        "--set columns=embedding --set labels=labels --set cluster_size=128"
    )
    about = (
        "Embeddings are those of the model as it is: write them as a signal (--signal signals/ "
        "--set feature=embedding) or a column, every refresh_every-th epoch anew, and plan the "
        "epochs until the next time; --out is a series, which gains one member a call. Epochs of "
        "random micro-batches (schedule) need no embeddings, and list no negatives without them."
        "\n\n"
        "Of each row the plan holds the label that it drew, the columns of its micro-batch that "
        "are no negatives of it (mask), and its hardest negatives; samplers.triplet_loss takes "
        "them."
    )
    series = True
    side = SIDE

    labels: Annotated[
        str | None,
        Field(description="a column of label numbers, one or a list a row; a row's own when None"),
    ] = None

    @property
    def unit(self) -> Unit:
        return "micro"

    def no_recipe(self) -> str | None:
        return "NGAME lists the negatives of each row"

    def waits_for_signal(self, epochs: tuple[int, int]) -> bool:
        clustered = any(self.size_at(epoch) > 1 for epoch in range(*epochs))
        return clustered and super().waits_for_signal(epochs)

    def check(self, spec: JobSpec) -> None:
        if self.waits_for_signal(spec.epochs):
            self.check_input(self.method, spec)
        if spec.batch_size < 2:
            raise JobSpecError("NGAME needs micro-batches of 2 rows or more (--batch-size).")

    def reads(self) -> list[str]:
        columns = list(self.columns or [])
        return columns if self.labels is None else [*columns, self.labels]

    @property
    def uses_engine(self) -> bool:
        return True

    def cost(self, dataset: Dataset, rows: int) -> float:
        return super().cost(dataset, rows) + rows / _RATE

    def memory(self, spec: JobSpec, dataset: Dataset) -> int:
        width = sum(feature_width(dataset, c) for c in self.columns or [])
        chunk = min(dataset.rows, CHUNK_ROWS) * _LIST_BYTES
        return _LIBRARIES + chunk + sample_bytes(dataset.rows, width, self._model(0, 1))

    def work_bytes(self, rows: int, *, in_memory: bool) -> int:
        sorts = 0 if in_memory else _SORTS * RECORD_BYTES
        return (128 + sorts) * rows  # labels and places; embeddings as large as their columns

    def prepare(self, job: JobContext) -> None:
        store = None if job.signal is None else job.signal.store
        written = store is not None and self.feature in store.signals
        # Epochs of random micro-batches are planned before there are embeddings, too.
        job.kept[_BARE] = self.columns is None and not (
            written or self.waits_for_signal(job.epochs)
        )
        if not job.kept[_BARE]:
            self.read_signal(job)

    def _model(self, seed: int, clusters: int) -> BalancedKMeans:
        return BalancedKMeans(k=clusters, seed=seed, metric="cosine")

    # --- micro-batches ----------------------------------------------------------------------------

    def batches(self, job: JobContext, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        read = self._read(job, state)
        deal = self.deal(len(read.rows), job.batch_size, epoch)
        clusters = self._clusters(job, read, deal, epoch)
        told = _Told(self, deal, epoch)
        job.reports.setdefault(self.method, {"epochs": {}})["epochs"][str(epoch)] = told.report
        for plan in self._dealt(job, read.rows, clusters, deal, epoch):
            rows = read.rows.at(plan.rows)
            found = self._mined(job, read, replace(plan, rows=rows), epoch)
            told.add(found)
            weights = None
            if state.weights is not None:
                weights = state.weights.at(state.rows.ranks(rows))
            yield replace(found, weights=weights)

    def _read(self, job: JobContext, state: PlanState) -> _Read:
        """Read embeddings and labels; epochs of the same rows read them once."""
        key = f"{self.method} {state.rows.digest} {job.work.folder}"
        if key not in job.kept:
            if job.kept[_BARE]:
                zeros = (np.zeros((len(ids), 1), np.float32) for ids in state.rows.chunks())
                rows, features = state.rows, Features(state.rows, job.column(zeros))
            else:
                features = self.read_features(job, state.rows)
                rows = usable_rows(job, state.rows, features, self)
            labels = values = None
            if self.labels is not None:
                labels = read_labels(job, rows, self.labels)
                rows = self._labelled(job, rows, labels)
                values = share_column(job, labels.values)
            listings = share_column(job, features.column), values
            job.kept[key] = _Read(rows, features, labels, listings)
        found: _Read = job.kept[key]
        return found

    def _labelled(self, job: JobContext, rows: RowSet, labels: RowLabels) -> RowSet:
        """Return the rows that have a label; others end the job, or are left out."""
        kept = rows.filter(lambda _, ranks: labels.counts[ranks] > 0)
        bad = (i for ids in rows.chunks() for i in ids[~kept.contains(ids)].tolist())
        settle_invalid(
            "no", [str(self.labels)], len(rows) - len(kept), bad, job.on_invalid, job.progress
        )
        return kept

    def _clusters(self, job: JobContext, read: _Read, deal: Deal, epoch: int) -> RowColumn:
        """Return the cluster of each row, by rank."""
        if self.size_at(epoch) == 1:
            return _at_random(job, read.rows, deal, epoch)
        key = f"{self.method} clusters {deal} {read.rows.digest} {job.work.folder}"
        if key not in job.kept:
            model = self._model(job.seed, deal.clusters)
            job.kept[key] = balanced_labels(job, read.rows, read.features, model)
        found: RowColumn = job.kept[key]
        return found

    def _dealt(
        self, job: JobContext, rows: RowSet, clusters: RowColumn, deal: Deal, epoch: int
    ) -> Iterator[BatchPlan]:
        """Yield micro-batches of ranks, some at a time, in the order of `deal_clusters`."""
        sizes = sum_counts(np.bincount(part) for part in clusters.chunks())
        batch_of = batch_of_clusters(sizes, deal, seed=job.seed, epoch=epoch)
        ends = np.cumsum(np.bincount(batch_of, sizes, deal.batches).astype(np.int64))
        sorting = ExternalSort(job.work.folder, rows=len(rows), memory=job.budget.sorting)
        start = 0
        for ids in rows.chunks():
            mine = clusters[start : start + len(ids)].astype(np.int64)
            batch = batch_of[mine]
            first = (batch.astype(np.uint64) << np.uint64(32)) | mine.astype(np.uint64)
            sorting.add(first, ids, np.arange(start, start + len(ids)), batch / deal.batches)
            start += len(ids)
        step = max(1, CHUNK_ROWS // max(1, len(rows) // deal.batches))
        cuts = np.append(0, ends)
        held_first, held_ranks = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        sorted_ = sorting.sorted()
        for a in range(0, deal.batches, step):
            b = min(a + step, deal.batches)
            while len(held_ranks) < cuts[b] - cuts[a]:
                first, _, ranks = next(sorted_)
                held_first, held_ranks = np.append(held_first, first), np.append(held_ranks, ranks)
            used = int(cuts[b] - cuts[a])
            labels = (held_first[:used] & np.uint64(0xFFFF_FFFF)).astype(np.int32)
            yield BatchPlan.of(
                cuts[a : b + 1] - cuts[a], held_ranks[:used], side={"cluster": labels}
            )
            held_first, held_ranks = held_first[used:], held_ranks[used:]

    def _mined(self, job: JobContext, read: _Read, plan: BatchPlan, epoch: int) -> BatchPlan:
        """Add positives, masks and negatives to micro-batches of row ids."""
        rows = np.zeros(len(plan.rows), ROW)
        rows["id"], rows["place"] = plan.rows, read.features.rows.ranks(plan.rows)
        if read.labels is not None:
            ranks = read.labels.rows.ranks(plan.rows)
            rows["start"], rows["count"] = (
                read.labels.starts.at(ranks),
                read.labels.counts.at(ranks),
            )
        features, values = read.listings
        shortlist = 0 if job.kept[_BARE] else self.shortlist
        how = Mining(features, values, shortlist, job.seed, epoch)
        file = job.save(rows)
        width = int(np.prod(read.features.column.shape))
        tasks = mine_tasks(str(file), plan.offsets, width)
        found = dict(run_tasks(job, mine_batches, tasks, how, str(job.work.folder)))
        file.unlink(missing_ok=True)
        side = read_mined([found[i] for i in range(len(tasks))])
        return replace(plan, side={**plan.side, **side})


def _at_random(job: JobContext, rows: RowSet, deal: Deal, epoch: int) -> RowColumn:
    """Return random clusters of equal sizes by rank, as `random_clusters` makes them."""
    budget = job.budget.sorting
    by_key = ExternalSort(job.work.folder, rows=len(rows), memory=budget)
    start = 0
    for ids in rows.chunks():
        drawn = keys(job.seed, Stream.GROUP_ORDER, epoch, ids)
        by_key.add(drawn, ids, np.arange(start, start + len(ids)), drawn * _KEYS)
        start += len(ids)
    by_rank = ExternalSort(job.work.folder, rows=len(rows), memory=budget)
    done = 0
    for _, _, ranks in by_key.sorted():
        cluster = np.arange(done, done + len(ranks)) * deal.clusters // len(rows)
        by_rank.add(ranks, np.zeros(len(ranks), np.uint64), cluster, ranks / len(rows))
        done += len(ranks)
    return job.column(cluster.astype(np.int32) for _, _, cluster in by_rank.sorted())


class _Told:
    """What is told of an epoch."""

    def __init__(self, stage: NGAMEBatches, deal: Deal, epoch: int) -> None:
        self._rows = self._masked = self._bare = self._listed = 0
        self._hardest = 0.0
        self.report: dict[str, Any] = {
            "epoch": epoch,
            "cluster_size": stage.size_at(epoch),
            "clusters": deal.clusters,
            "clusters_a_batch": deal.clusters_each,
        }

    def add(self, plan: BatchPlan) -> None:
        scores: Any = plan.side["scores"]
        mask: Any = plan.side["mask"]
        listed = np.diff(scores.offsets) > 0
        first = scores.values[scores.offsets[:-1][listed]]
        self._rows += len(plan.rows)
        self._masked += len(mask.values)
        self._listed += int(listed.sum())
        self._hardest += float(first.sum(dtype=np.float64))
        self.report |= {
            "rows": self._rows,
            "masked_pairs": self._masked,
            "rows_without_negatives": self._rows - self._listed,
            "hardest_negative": self._hardest / self._listed if self._listed else None,
        }
