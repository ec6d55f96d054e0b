"""Planning: from a job to a committed manifest.

    stages ─► rows (select) ─► labels (group) ─► micro-batches (batch) ─► fewer rows (reduce)
           ─► steps ─► manifest

Results depend on the dataset, the stages and the seed only; workers, partitions and paths do not
enter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..dataplane.commit import staging
from ..dataplane.dataset import Dataset, DatasetLike, open_dataset
from ..dataplane.errors import JobSpecError, SelectionError
from ..dataplane.fragments import content_sha256
from ..dataplane.manifest import Manifest
from ..dataplane.manifest_writer import ManifestWriter, check_space, refuse_foreign_target
from ..dataplane.plan import BatchPlan
from ..dataplane.rowset import RowSet
from ..dataplane.series import Series
from ..dataplane.snapshot import Snapshot
from ..dataplane.storage import locate
from .context import JobContext
from .engine import Engine
from .methods import make_stage
from .progress import Progress, QuietProgress
from .spec import JobSpec, load_job, resolve_stages
from .stages import BatchStage, GroupStage, PlanState, ReduceStage, SelectStage, Stage
from .tasks import group_tasks

__all__ = ["Estimate", "estimate", "plan", "run", "run_job"]

_WRITE_RATE = 8e6  # rows ordered, written and hashed a CPU second, for estimates
_SELECTS = ("split", "keep", "drop", "where")  # in this order: cheap ones first


@dataclass(frozen=True)
class Estimate:
    """What a job would do. Rows are an upper bound where a select stage shrinks them.

    Attributes
    ----------
    rows, micro_batches : int
        An epoch.
    epochs : int
    bytes : int
        Of the manifest.
    scanned_bytes : int
        Of the dataset's files, all passes.
    tasks : int
        Dask tasks a pass.
    cpu_seconds : float
    """

    rows: int
    micro_batches: int
    epochs: int
    bytes: int
    scanned_bytes: int
    tasks: int
    cpu_seconds: float


def plan(
    method: str,
    data: DatasetLike,
    *,
    out: str | os.PathLike[str],
    where: str | None = None,
    keep: str | os.PathLike[str] | None = None,
    drop: str | os.PathLike[str] | None = None,
    key: str | None = None,
    split: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Manifest:
    """Plan a dataset with one method and write the manifest.

    Parameters
    ----------
    method : str
        ``shuffle``, ``kmeans``, … (`methods`).
    data : path, URI, list, mapping or Dataset
    out : path
        Manifest directory to make. The same plan already there is success.
    where, keep, drop, key, split
        Built-in selects: an expression; files of keys and their column; shares.
    progress : Progress, optional
        Nothing is printed when None.
    **options
        Fields of `JobSpec` (``batch_size=256``, ``epochs=(0, 3)``, ``seed=7``, ``workers=0`` …) and
        parameters of the method (``columns=["x"]``, ``k=64`` …).

    Returns
    -------
    Manifest

    Examples
    --------
    >>> manifest = plan("kmeans", "data/", out="plan/", batch_size=256, columns=["x"], k=64, seed=7)
    """
    spec = make_spec(
        method,
        dataset=data,
        out=os.fspath(out),
        selects={"where": where, "keep": keep, "drop": drop, "key": key, "split": split},
        options=options,
    )
    return run_job(spec, progress=progress)


def run(path: str | os.PathLike[str], *, progress: Progress | None = None) -> Manifest:
    """Run a job file (`spec`) and return the manifest."""
    return run_job(load_job(path), progress=progress)


def make_spec(
    method: str,
    *,
    dataset: Any,
    out: str,
    selects: Mapping[str, Any],
    options: Mapping[str, Any],
) -> JobSpec:
    """Make a job of one method, its built-in selects before it."""
    from ..dataplane.parameters import describe_parameters

    known = {p.name for p in describe_parameters(JobSpec)} - {"dataset", "out", "stages"}
    job = {k: v for k, v in options.items() if k in known}
    stages = _select_tables(selects)
    stages.append({"method": method, **{k: v for k, v in options.items() if k not in known}})
    for stage in stages:  # refused here, an error need not say which stage it was
        make_stage(stage["method"], {k: v for k, v in stage.items() if k != "method"})
    spec = JobSpec(dataset=dataset, out=out, stages=stages, **job)
    resolve_stages(spec)
    return spec


def _select_tables(selects: Mapping[str, Any]) -> list[dict[str, Any]]:
    key = selects.get("key")
    tables: list[dict[str, Any]] = []
    for name in _SELECTS:
        value = selects.get(name)
        if value is None:
            continue
        field = {"where": "expression", "split": "shares"}.get(name, "file")
        table = {"method": name, field: os.fspath(value)}
        if name != "where" and key is not None:
            table["key"] = key
        tables.append(table)
    if key is not None and not any("key" in t for t in tables):
        raise JobSpecError("'key' says what keep, drop or split go by; give one of them.")
    return tables


# --- running --------------------------------------------------------------------------------------


def run_job(spec: JobSpec, *, progress: Progress | None = None) -> Manifest:
    """Run a job and return the committed manifest.

    Raises
    ------
    BatchloomError
        One clear sentence; nothing half-written stays.
    """
    progress = progress or QuietProgress()
    stages = resolve_stages(spec)
    dataset, first_added = _open(spec)
    _check(spec, dataset, stages)
    target, parent = _target(spec)
    check_space(target.parent, _manifest_bytes(dataset.rows, spec))
    with (
        Engine(
            scheduler=spec.scheduler,
            workers=spec.workers,
            memory=spec.memory,
            note=progress.note,
        ) as engine,
        staging(target) as folder,
    ):
        job = JobContext(
            dataset,
            engine,
            folder,
            spec.seed,
            spec.batch_size,
            spec.on_invalid,
            progress,
            spec.task_bytes,
        )
        deep = _deep_hashes(job) if spec.deep else None
        pipeline = _Pipeline(job, stages, _rows(dataset, first_added))
        with ManifestWriter(
            target,
            snapshot=dataset.snapshot,
            stages=pipeline.identity(spec, first_added),
            seed=spec.seed,
            unit=pipeline.batch.unit,
            weight_semantics=pipeline.weight_semantics,
            side=pipeline.batch.side,
            parent=parent,
            deep_hashes=deep,
        ) as writer:
            for epoch in range(*spec.epochs):
                state = pipeline.state(epoch)
                with writer.epoch(epoch, eligible_rows=len(state.rows)):
                    _write(writer, pipeline, state, epoch, spec.micro_per_step, progress)
            return writer.commit(reports=state.reports)


def _write(
    writer: ManifestWriter,
    pipeline: _Pipeline,
    state: PlanState,
    epoch: int,
    micro_per_step: int,
    progress: Progress,
) -> None:
    done = 0
    with progress.step(f"writing epoch {epoch}", len(state.rows)) as step:
        for chunk in pipeline.batches(state, epoch):
            writer.append(chunk.folded(micro_per_step, first=done))
            done += len(chunk)
            step.advance(len(chunk.rows))


class _Pipeline:
    """The stages of a job, run epoch by epoch; what does not change with the epoch runs once."""

    def __init__(self, job: JobContext, stages: Sequence[Stage], rows: RowSet) -> None:
        self._job = job
        self._stages = stages
        self._start = PlanState(rows)
        at = next(i for i, s in enumerate(stages) if isinstance(s, BatchStage))
        batch = stages[at]
        assert isinstance(batch, BatchStage)  # for the type checker; `resolve_stages` saw to it
        self.batch = batch
        self._before = stages[:at]
        self._reduces = [s for s in stages[at + 1 :] if isinstance(s, ReduceStage)]
        self._fixed = self._count_fixed()
        self._cached: PlanState | None = None

    def _count_fixed(self) -> int:
        """Return how many leading stages do not depend on the epoch."""
        for index, stage in enumerate(self._before):
            if isinstance(stage, SelectStage) and stage.per_epoch:
                return index
        return len(self._before)

    @property
    def weight_semantics(self) -> Any:
        found = [s.weight_semantics for s in self._stages if s.weight_semantics is not None]
        return found[0] if found else None

    def identity(self, spec: JobSpec, first_added: int | None) -> list[dict[str, Any]]:
        """What the manifest's identity records of the stages."""
        stages = [s.identity() for s in self._stages]
        sizes = {"batch_size": spec.batch_size, "micro_per_step": spec.micro_per_step}
        for stage in stages:
            if stage["stage"] == "batch":
                stage["parameters"] |= sizes
            elif stage["stage"] == "group":
                stage["parameters"] |= {"on_invalid": spec.on_invalid}
        if first_added is not None:
            added = {"first_row_id": first_added}
            stages.insert(0, {"stage": "select", "method": "added", "parameters": added})
        return stages

    def state(self, epoch: int) -> PlanState:
        """Run the selects and the group of an epoch."""
        if self._cached is None:
            self._cached = self._run(self._before[: self._fixed], self._start, epoch)
        state = self._run(self._before[self._fixed :], self._cached, epoch)
        if self._job.batch_size > len(state.rows):
            raise SelectionError(
                f"batch_size = {self._job.batch_size} is larger than the {len(state.rows)} "
                f"selected rows; choose at most {len(state.rows)}."
            )
        return state

    def _run(self, stages: Sequence[Stage], state: PlanState, epoch: int) -> PlanState:
        for stage in stages:
            if isinstance(stage, SelectStage):
                selection = stage.select(self._job, state, epoch)
                state = state.selected(selection).reported(stage.method, selection.report)
            elif isinstance(stage, GroupStage):
                state = stage.group(self._job, state)
            if not len(state.rows):
                raise SelectionError(
                    f"No row is left after the {stage.kind} stage '{stage.method}' "
                    f"({stage.parameters()})."
                )
        return state

    def batches(self, state: PlanState, epoch: int) -> Iterator[BatchPlan]:
        """Yield the epoch's micro-batches after all reduces."""
        for chunk in self.batch.batches(self._job, state, epoch):
            for stage in self._reduces:
                chunk = stage.reduce(self._job, chunk, epoch)
            if chunk.weights is None and self.weight_semantics is not None:
                ones = np.ones(len(chunk.rows), dtype=np.float32)
                chunk = BatchPlan(
                    chunk.offsets, chunk.rows, ones, chunk.step, chunk.micro, chunk.side
                )
            yield chunk


# --- what a job starts from -----------------------------------------------------------------------


def _open(spec: JobSpec) -> tuple[Dataset, int | None]:
    """Return the dataset, and the first row id that counts as added where only those are wanted."""
    since: Snapshot | None = None
    if spec.since is not None:
        since = Snapshot.load(spec.since)
    elif spec.series and spec.snapshot is None:
        series = Series(spec.out)
        since = series.members[-1].snapshot if series.ranges else None
    dataset = open_dataset(
        spec.dataset,
        snapshot=spec.snapshot,
        since=since,
        storage_options=spec.storage_options,
    )
    added = since.next_row_id if since is not None and spec.added_only else None
    return dataset, added


def _rows(dataset: Dataset, first_added: int | None) -> RowSet:
    rows = RowSet(dataset.snapshot)
    if first_added is None:
        return rows
    added = rows.since(first_added)
    if not len(added):
        raise SelectionError("No row was added since that snapshot; there is nothing to plan.")
    return added


def _check(spec: JobSpec, dataset: Dataset, stages: Sequence[Stage]) -> None:
    """Refuse what can be refused before anything is read."""
    if dataset.rows == 0:
        raise SelectionError(
            f"The dataset holds {len(dataset.snapshot.fragments)} files and no rows; there is "
            "nothing to plan."
        )
    if spec.batch_size > dataset.rows:
        raise SelectionError(
            f"batch_size = {spec.batch_size} is larger than the dataset's {dataset.rows} rows; "
            f"choose at most {dataset.rows}."
        )
    dataset.check_columns(dict.fromkeys(c for s in stages for c in s.reads()))


def _target(spec: JobSpec) -> tuple[Path, str | None]:
    if "://" in spec.out:
        raise JobSpecError(
            f"'{spec.out}': a manifest is written to a local directory; copy it from there."
        )
    _refuse_inside(spec)
    if spec.series:
        return Series(spec.out).next_member(*spec.epochs)
    refuse_foreign_target(Path(spec.out))
    return Path(spec.out), None


def _refuse_inside(spec: JobSpec) -> None:
    """Refuse a target below a directory of the dataset: its parts would be listed as data."""
    sources = spec.dataset.values() if isinstance(spec.dataset, Mapping) else [spec.dataset]
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            continue
        folder = locate(source)
        target = Path(spec.out).resolve()
        if folder.is_local and target.is_relative_to(Path(folder.path).resolve()):
            raise JobSpecError(
                f"{spec.out} lies inside the dataset {source}, where the plan's own files would be "
                "read as data; choose a target outside of it."
            )


def _deep_hashes(job: JobContext) -> dict[str, str]:
    hashes: dict[str, str] = {}
    tasks = group_tasks(job.dataset.present(), job.task_bytes)
    with job.progress.step("hashing files", job.dataset.rows) as step:
        for position, found in job.engine.map(hash_fragments, tasks):
            hashes.update(found)
            step.advance(tasks[position].rows)
    return hashes


def hash_fragments(task: Any) -> dict[str, str]:
    """Hash the bytes of a task's fragments; runs on workers."""
    return {ref.label: content_sha256(ref.location) for ref in task.refs}


def _manifest_bytes(rows: int, spec: JobSpec) -> int:
    epochs = spec.epochs[1] - spec.epochs[0]
    batches = -(-rows // spec.batch_size)
    return int(1.01 * epochs * (8 * rows + 18 * batches)) + 4096


def estimate(spec: JobSpec) -> Estimate:
    """Say what a job would do; nothing is written, no data is read."""
    stages = resolve_stages(spec)
    dataset, first_added = _open(spec)
    _check(spec, dataset, stages)
    rows = len(_rows(dataset, first_added))
    epochs = spec.epochs[1] - spec.epochs[0]
    scans = sum(bool(s.reads()) + (s.kind == "group") for s in stages)
    cpu = sum(s.cost(dataset, rows) for s in stages) + epochs * rows / _WRITE_RATE
    return Estimate(
        rows=rows,
        micro_batches=-(-rows // spec.batch_size),
        epochs=epochs,
        bytes=_manifest_bytes(rows, spec),
        scanned_bytes=scans * sum(f.bytes for f in dataset.snapshot.fragments),
        tasks=len(group_tasks(dataset.present(), spec.task_bytes)) if scans else 0,
        cpu_seconds=round(cpu, 4),
    )
