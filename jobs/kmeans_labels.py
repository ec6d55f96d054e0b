"""K-means of rows in files: trained on a keyed sample here, passes over all rows by tasks.

A task adds up its rows in fixed point, so that tasks, their order and the workers change no bit of
the centers (`clustering.kmeans_sums`). The last pass writes the labels.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..clustering.assignment import chosen_device
from ..clustering.kmeans import KMeans
from ..clustering.kmeans_sums import Far, Scale, Span, Sums, span
from ..dataplane.random import Stream
from ..dataplane.row_column import ColumnWriter, RowColumn, Segment
from ..dataplane.rowset import RowSet
from ..dataplane.storage import storing
from .context import JobContext
from .features import Features
from .rank_tasks import RankTask, rank_tasks
from .signal_reading import run_tasks

__all__ = ["KMeansLabels", "kmeans_labels"]

F32 = npt.NDArray[np.float32]

_SENT_BYTES = 512 << 10  # of sums that a task returns itself; larger ones go by a file
_MOST_REFILLS = 100  # last passes, each with rows in the place of clusters without any


@dataclass(frozen=True)
class KMeansLabels:
    """What k-means found.

    Attributes
    ----------
    labels : RowColumn of int32
        By rank.
    centers : float32, shape (k, d)
    sums : Sums
        Of the last pass: inertia and sizes.
    sample_rows, passes : int
    device : str
    """

    labels: RowColumn
    centers: F32
    sums: Sums
    sample_rows: int
    passes: int
    device: str


def kmeans_labels(
    job: JobContext, rows: RowSet, features: Features, model: KMeans, *, unit: bool = False
) -> KMeansLabels:
    """Cluster rows.

    Parameters
    ----------
    job : JobContext
    rows : RowSet
        All among ``features.rows``, and all of finite features.
    features : Features
    model : KMeans
    unit : bool
        Take rows at length 1 where they are not zeros, without the rest of spherical k-means.
    """
    sample = rows.choose(model.sample_rows(len(rows)), seed=job.seed, stream=Stream.KMEANS_SAMPLE)
    ids = sample.ids()
    x = _ready(features.column.at(features.rows.ranks(ids)), ids, model, unit)
    job.progress.note(f"training {model.k:,} centers on {len(ids):,} rows")
    coarse = model.coarse(x, ids)
    centers = model.train(x, ids, coarse=coarse)
    del x
    tasks = rank_tasks(job, rows, features)
    found = run_tasks(job, measure_rows, tasks, model, unit)
    scale = Scale.of(reduce(add, (part for _, part in found)), centers)
    search = _Passes(job, model, unit, tasks, scale, coarse)
    passes = 0
    while True:
        last = passes >= model.full_passes
        sums, labels = search.run(centers, passes + 1, labels=last)
        passes += 1
        if last and (not len(sums.empty) or passes > model.full_passes + _MOST_REFILLS):
            break
        centers = model.refill(centers, sums) if last else model.update(centers, sums)
    device = "cpu" if coarse is not None else chosen_device(model.device)
    return KMeansLabels(RowColumn(labels), centers, sums, len(ids), passes, device)


def _ready(x: F32, ids: npt.NDArray[np.uint64], model: KMeans, unit: bool) -> F32:
    """Return rows as the model's steps take them."""
    if unit:
        from ..clustering.cluster_kernels import to_unit

        out = np.empty_like(x)
        to_unit(x, out, np.empty(len(x)))
        x = out
    return model.prepared(x, ids)


@dataclass(frozen=True)
class _Passes:
    """Passes over all rows."""

    job: JobContext
    model: KMeans
    unit: bool
    tasks: list[RankTask]
    scale: Scale
    coarse: F32 | None

    def run(self, centers: F32, number: int, *, labels: bool) -> tuple[Sums, list[Segment]]:
        """Return what a pass adds up to, and the files of labels where they are wanted."""
        job = self.job
        how = SumPass(
            self.model,
            self.unit,
            self.scale,
            str(job.save(centers)),
            None if self.coarse is None else str(job.save(self.coarse)),
            labels,
        )
        total: Sums | None = None
        files: dict[int, Segment] = {}
        label = "assigning" if labels else f"k-means, pass {number}"
        with job.progress.step(label, sum(t.rows for t in self.tasks)) as bar:
            for position, (sent, segment) in run_tasks(
                job, add_up, self.tasks, how, str(job.work.folder)
            ):
                sums = _received(sent, self.scale)
                total = sums if total is None else total + sums
                if segment is not None:
                    files[position] = segment
                bar.advance(self.tasks[position].rows)
        assert total is not None  # for the type checker: there are rows
        return total, [files[i] for i in sorted(files)]


@dataclass(frozen=True)
class SumPass:
    """What tasks of a pass are told.

    Attributes
    ----------
    model : KMeans
    unit : bool
    scale : Scale
    centers, coarse : str
        Files.
    labels : bool
        Whether labels are written.
    """

    model: KMeans
    unit: bool
    scale: Scale
    centers: str
    coarse: str | None
    labels: bool


def measure_rows(task: RankTask, model: KMeans, unit: bool) -> Span:
    """Return what values a task's rows have; runs on workers."""
    return reduce(add, (span(_ready(x, ids, model, unit), ids) for x, ids in task.parts()))


def add_up(task: RankTask, how: SumPass, folder: str) -> tuple[Any, Segment | None]:
    """Assign a task's rows and add them up; runs on workers."""
    if not how.labels:
        return _sent(reduce(add, _parts(task, how, None)), Path(folder)), None
    with ColumnWriter(Path(folder) / f"labels-{uuid.uuid4().hex[:12]}") as writer:
        total = reduce(add, _parts(task, how, writer))
        return _sent(total, Path(folder)), writer.finish()


def _parts(task: RankTask, how: SumPass, writer: ColumnWriter | None) -> Iterator[Sums]:
    centers = np.load(how.centers)
    coarse = None if how.coarse is None else np.load(how.coarse)
    for x, ids in task.parts():
        labels = None if writer is None else np.empty(len(x), np.int32)
        yield how.model.sums(
            _ready(x, ids, how.model, how.unit),
            ids,
            centers,
            how.scale,
            coarse=coarse,
            labels=labels,
        )
        if writer is not None and labels is not None:
            writer.append(labels)


# --- sums on their way ----------------------------------------------------------------------------


def _sent(sums: Sums, folder: Path) -> Any:
    """Return sums, or the file that holds them where they are large."""
    if sums.sums.nbytes + sums.far.rows.nbytes <= _SENT_BYTES:
        return sums
    path = folder / f"sums-{uuid.uuid4().hex[:12]}.npz"
    with storing("Writing intermediate results", path), open(path, "wb") as file:
        np.savez(
            file,
            sums=sums.sums,
            counts=sums.counts,
            error=np.array(str(sums.error)),
            distances=sums.far.distances,
            ids=sums.far.ids,
            rows=sums.far.rows,
        )
    return str(path)


def _received(sent: Any, scale: Scale) -> Sums:
    if isinstance(sent, Sums):
        return sent
    with np.load(sent) as file:
        far = Far(file["distances"], file["ids"], file["rows"])
        sums = Sums(scale, file["sums"], file["counts"], int(str(file["error"])), far)
    Path(sent).unlink()
    return sums
