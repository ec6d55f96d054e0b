"""Balanced clusters of rows in files: in memory where they fit, else level by level over tasks.

Both give the same labels (`clustering.balanced_levels`). Where rows do not fit this process, the
upper levels of the tree are split where the rows are: tasks count scores, which add up, until no
leaf is larger than a task can hold; then each leaf's rows are clustered by themselves. A leaf that
is larger still is treated in the same way again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..clustering.balanced import BalancedKMeans, Node
from ..clustering.balanced_levels import LevelPass, LevelSearch, Route, level_sample_rows
from ..dataplane.random import Stream
from ..dataplane.row_column import ColumnWriter, RowColumn, Segment
from ..dataplane.rowset import RowSet
from .column_files import open_column, share_column
from .context import JobContext
from .features import Features
from .quantiles import Packed
from .rank_tasks import RankTask, rank_tasks
from .signal_reading import run_tasks

__all__ = ["balanced_labels", "sample_bytes"]

I32 = npt.NDArray[np.int32]

_ROW_BYTES = 64  # of a row beside its numbers, while it is clustered
_COPIES = 3  # of its numbers
_LEAF_BYTES = 48 << 20  # that a task may take for a leaf, beside the program
_LEAVES = 16  # that rows are dealt out to at a time; a sample is learned on for each


def balanced_labels(
    job: JobContext, rows: RowSet, features: Features, model: BalancedKMeans
) -> RowColumn:
    """Return the labels of rows, int32, by rank.

    Parameters
    ----------
    job : JobContext
    rows : RowSet
        All among ``features.rows``, and all of finite features.
    features : Features
    model : BalancedKMeans
    """
    width = max(1, int(np.prod(features.column.shape)))
    each = _COPIES * 4 * width + _ROW_BYTES
    if len(rows) * each <= job.budget.working:
        ids = rows.ids()
        x = features.column.at(features.rows.ranks(ids))
        return job.column([model.labels(x, ids)])
    return _by_levels(job, rows, features, model, width, max(1, _LEAF_BYTES // each))


def sample_bytes(rows: int, width: int, model: BalancedKMeans) -> int:
    """Return the bytes of the sample that splits are learned on at most."""
    sample = min(rows, int(1.1 * _LEAVES * model.sample_rows))
    return sample * (_COPIES * 4 * width + _ROW_BYTES)


def _by_levels(
    job: JobContext,
    rows: RowSet,
    features: Features,
    model: BalancedKMeans,
    width: int,
    task_rows: int,
) -> RowColumn:
    most = max(task_rows, len(rows) // _LEAVES)
    chosen = rows.choose(
        level_sample_rows(model, len(rows), most), seed=model.seed, stream=Stream.BALANCED
    )
    sample = chosen.ids()
    x = features.column.at(features.rows.ranks(sample))
    search = LevelSearch(model, len(rows), x, sample, most=most)
    tasks = rank_tasks(job, rows, features)
    number = 0
    while search.next is not None:
        number += 1
        counts = np.zeros(search.next.shape, np.int64)
        with job.progress.step(f"balancing, pass {number}", len(rows)) as bar:
            for position, packed in run_tasks(job, count_scores, tasks, search.next):
                counts += packed.unpack().reshape(counts.shape)
                bar.advance(tasks[position].rows)
        search.narrow(counts)
    found = dict(run_tasks(job, find_leaves, tasks, search.route, str(job.work.folder)))
    leaf_of = RowColumn(found[i] for i in range(len(tasks)))
    leaves = search.route.leaves
    labels = _of_leaves(job, rows, features, model, leaf_of, leaves, task_rows)
    return job.column(_merged(leaf_of, labels))


def count_scores(task: RankTask, wanted: LevelPass) -> Packed:
    """Count the scores of a task's rows; runs on workers."""
    counts = np.zeros(wanted.shape, np.int64)
    for x, ids in task.parts():
        wanted.count(x, ids, into=counts)
    return Packed.pack(counts[None])


def find_leaves(task: RankTask, route: Route, folder: str) -> Segment:
    """Write the leaf of each of a task's rows to a file; runs on workers."""
    with ColumnWriter(Path(folder) / f"leaves-{uuid.uuid4().hex[:12]}") as writer:
        for x, ids in task.parts():
            writer.append(route.leaves_of(x, ids))
        return writer.finish()


# --- leaves ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LeafTask:
    """A leaf that a task clusters.

    Attributes
    ----------
    ids, places, features : str
        Listings, as of `RankTask`, of the leaf's rows.
    model : BalancedKMeans
    first, rows : int
    """

    ids: str
    places: str
    features: str
    model: BalancedKMeans
    first: int
    rows: int

    @property
    def label(self) -> str:
        return f"clusters {self.first:,} and on"

    @property
    def example(self) -> str | None:
        """A local file that it reads."""
        return self.ids


def label_leaf(task: LeafTask, folder: str) -> Segment:
    """Write the labels of a leaf's rows to a file; runs on workers."""
    ids = open_column(task.ids).load()
    x = open_column(task.features).at(open_column(task.places).load())
    with ColumnWriter(Path(folder) / f"labels-{uuid.uuid4().hex[:12]}") as writer:
        writer.append(task.model.labels(x, ids, threads=1) + np.int32(task.first))
        return writer.finish()


def _of_leaves(
    job: JobContext,
    rows: RowSet,
    features: Features,
    model: BalancedKMeans,
    leaf_of: RowColumn,
    leaves: Sequence[Node],
    task_rows: int,
) -> list[RowColumn]:
    """Return the labels of the rows of each leaf, by rank among these."""
    labels: dict[int, RowColumn] = {}
    tasks: list[LeafTask] = []
    places: list[int] = []
    listing = share_column(job, features.column)
    for number, leaf in enumerate(leaves):
        mine = rows.filter(_inside(leaf_of, number))
        if leaf.clusters == 1:
            ones = (np.full(len(ids), leaf.first, np.int32) for ids in mine.chunks())
            labels[number] = job.column(ones)
        elif leaf.rows > task_rows:
            inside = balanced_labels(job, mine, features, model.of_node(leaf))
            labels[number] = job.column(part + np.int32(leaf.first) for part in inside.chunks())
        else:
            ids = share_column(job, job.column(mine.chunks()))
            at = job.column(features.rows.ranks(part) for part in mine.chunks())
            tasks.append(
                LeafTask(
                    ids, share_column(job, at), listing, model.of_node(leaf), leaf.first, leaf.rows
                )
            )
            places.append(number)
    with job.progress.step("balancing leaves", sum(t.rows for t in tasks)) as bar:
        for position, segment in run_tasks(job, label_leaf, tasks, str(job.work.folder)):
            labels[places[position]] = RowColumn([segment])
            bar.advance(tasks[position].rows)
    return [labels[number] for number in range(len(leaves))]


def _inside(leaf_of: RowColumn, leaf: int) -> Callable[[Any, slice], npt.NDArray[np.bool_]]:
    """Return a test of which rows are in a leaf."""
    return lambda _, ranks: leaf_of[ranks] == leaf


def _merged(leaf_of: RowColumn, labels: Sequence[RowColumn]) -> Iterator[I32]:
    """Yield the labels of all rows by rank, from those of each leaf."""
    done = np.zeros(len(labels), np.int64)
    for part in leaf_of.chunks():
        out = np.empty(len(part), np.int32)
        order = np.argsort(part, kind="stable")
        counts = np.bincount(part, minlength=len(labels))
        start = 0
        for leaf in np.flatnonzero(counts).tolist():
            stop = start + int(counts[leaf])
            first = int(done[leaf])
            out[order[start:stop]] = labels[leaf][first : first + stop - start]
            done[leaf] += stop - start
            start = stop
        yield out
