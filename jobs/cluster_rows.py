"""Rows put together by cluster, and the tasks that look at some clusters each.

Ranks are put in the order of (cluster, rank), in memory or on disk. A task is some clusters in that
order, of which it gathers the features of one after another: so tasks, workers and memory change
nothing. A cluster that is larger than what a task may hold is read in blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..clustering.centroids import RowsAt, rows_of
from ..dataplane.bitmap import Bitmap
from ..dataplane.external_sort import ExternalSort
from ..dataplane.row_column import CHUNK_ROWS, RowColumn, sum_counts
from ..dataplane.rowset import RowSet
from .column_files import open_column, share_column
from .context import JobContext
from .features import Features
from .signal_reading import run_tasks

__all__ = ["ClusterRows", "ClusterTask", "by_label", "each_cluster"]

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
F32 = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

_TASK_BYTES = 64 << 20  # of features that a task gathers
_HELD_BYTES = 32 << 20  # ... of them at a time, where clusters are smaller
_TASK_WORK = 2e10  # multiplications that a task makes: a second or so
_SORT_ROWS = 1 << 18  # that are added to a sort at a time


def by_label(
    job: JobContext, rows: RowSet, labels: RowColumn, features: Features, invalid: int
) -> ClusterRows:
    """Put rows in the order of their clusters.

    Parameters
    ----------
    job : JobContext
    rows : RowSet
        All among ``features.rows``, and all of finite features.
    labels : RowColumn of int32
        By rank among `rows`.
    features : Features
    invalid : int
        Rows that were left out before.
    """
    counts = sum_counts(np.bincount(part) for part in labels.chunks())
    offsets = np.append(0, np.cumsum(counts[counts > 0]))
    ranks = job.column(_ordered(job, labels, counts))
    places = job.column(features.rows.ranks(rows.at(part)) for part in ranks.chunks())
    files = ClusterFiles(
        share_column(job, features.column), share_column(job, places), str(job.save(offsets))
    )
    width = max(1, int(np.prod(features.column.shape)))
    return ClusterRows(job, rows, invalid, offsets, ranks, width, files)


def _ordered(job: JobContext, labels: RowColumn, counts: I64) -> Iterator[U64]:
    """Yield ranks in the order of (label, rank)."""
    rows = len(labels)
    if job.budget.holds(rows):
        yield np.argsort(labels.load(), kind="stable").astype(np.uint64)
        return
    sorting = ExternalSort(job.work.folder, rows=rows, memory=job.budget.sorting)
    starts, done = np.cumsum(counts) - counts, 0
    for part in labels.chunks(_SORT_ROWS):
        ranks = np.arange(done, done + len(part), dtype=np.uint64)
        where = (starts[part] + counts[part] * (ranks / rows)) / rows
        sorting.add(part.astype(np.uint64), ranks, ranks, where)
        done += len(part)
    for _, _, ranks in sorting.sorted():
        yield ranks


# --- what tasks are told --------------------------------------------------------------------------


@dataclass(frozen=True)
class ClusterFiles:
    """Where rows by cluster are, for tasks.

    Attributes
    ----------
    features, places : str
        Listings: features, and where those of each row are, in the order of clusters.
    offsets : str
        Of the clusters in that order.
    """

    features: str
    places: str
    offsets: str


@dataclass(frozen=True)
class ClusterTask:
    """Clusters that a task looks at.

    Attributes
    ----------
    first, last : int
        Places of the first cluster, and the one after the last.
    rows : int
    files : ClusterFiles
    """

    first: int
    last: int
    rows: int
    files: ClusterFiles

    @property
    def label(self) -> str:
        return f"clusters {self.first:,} to {self.last - 1:,}"

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return self.files.places


def each_cluster(task: ClusterTask) -> Iterator[tuple[int, int, int, RowsAt]]:
    """Yield (place, rows, width, features by position) of a task's clusters, in order."""
    offsets = np.load(task.files.offsets, mmap_mode="r")[task.first : task.last + 1]
    places, features = open_column(task.files.places), open_column(task.files.features)
    width = max(1, int(np.prod(features.shape)))

    def far_rows(here: npt.NDArray[Any]) -> RowsAt:
        return lambda positions: _matrix(features.at(here[positions]), width)

    for a, b in _stretches(offsets, 4 * width):
        here = places[int(offsets[a]) : int(offsets[b])]
        if 4 * width * len(here) > _HELD_BYTES and b == a + 1:
            yield task.first + a, len(here), width, far_rows(here)
            continue
        x = _matrix(features.at(here), width)
        for cluster in range(a, b):
            inside = np.arange(*(offsets[cluster : cluster + 2] - offsets[a]).tolist())
            yield task.first + cluster, len(inside), width, rows_of(x, inside)


def _matrix(x: npt.NDArray[Any], width: int) -> F32:
    return np.ascontiguousarray(x, np.float32).reshape(len(x), width)


def _stretches(offsets: I64, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Cut clusters so that the features of each stretch fit the memory, or it is one cluster."""
    first, rows = 0, max(1, _HELD_BYTES // row_bytes)
    while first < len(offsets) - 1:
        reached = int(np.searchsorted(offsets, offsets[first] + rows, side="right")) - 1
        last = max(first + 1, reached)
        yield first, last
        first = last


@dataclass(frozen=True)
class ClusterRows:
    """Rows in the order of their clusters.

    Attributes
    ----------
    job : JobContext
    rows : RowSet
    invalid : int
        Rows that were left out.
    offsets : int64, shape (k + 1,)
        Of the clusters that have rows.
    ranks : RowColumn of uint64
        Ranks among `rows`, in the order of (cluster, rank).
    width : int
    files : ClusterFiles
    """

    job: JobContext
    rows: RowSet
    invalid: int
    offsets: I64
    ranks: RowColumn
    width: int
    files: ClusterFiles

    @property
    def sizes(self) -> I64:
        """Rows of each cluster."""
        return np.diff(self.offsets)

    def run(self, label: str, function: Any, *args: Any, pairs: bool = False) -> list[Any]:
        """Run a function of (task, *args) on all clusters; return what it gave, in order.

        With `pairs` a cluster's work is that of comparing all its rows with each other.
        """
        sizes = self.sizes.astype(np.float64)
        work = 4 * self.width * sizes / _TASK_BYTES
        if pairs:
            work = np.maximum(work, sizes**2 * max(32, self.width) / 2 / _TASK_WORK)
        place = (np.cumsum(work) - work) // 1
        cuts = np.flatnonzero(np.append(True, place[1:] != place[:-1])).tolist()
        cuts.append(len(sizes))
        tasks = [
            ClusterTask(a, b, int(self.offsets[b] - self.offsets[a]), self.files)
            for a, b in itertools.pairwise(cuts)
        ]
        found: dict[int, Any] = {}
        with self.job.progress.step(label, len(self.rows)) as bar:
            for position, result in run_tasks(
                self.job, function, tasks, *args, str(self.job.work.folder)
            ):
                found[position] = result
                bar.advance(tasks[position].rows)
        return [found[i] for i in range(len(tasks))]

    def chunks(self) -> Iterator[slice]:
        """Yield stretches of the order."""
        for start in range(0, len(self.rows), CHUNK_ROWS):
            yield slice(start, min(start + CHUNK_ROWS, len(self.rows)))

    def keep(self, kept: Callable[[slice], Mask]) -> RowSet:
        """Return the rows that a mask over a stretch of the order is set for."""
        count = 0

        def parts() -> Iterator[npt.NDArray[np.uint64]]:
            nonlocal count
            for here in self.chunks():
                inside = self.ranks[here][kept(here)]
                count += len(inside)
                yield self.rows.at(inside)

        bits = Bitmap.of(self.rows.snapshot.next_row_id, parts())
        return self.rows if count == len(self.rows) else RowSet(self.rows.snapshot, bits)
