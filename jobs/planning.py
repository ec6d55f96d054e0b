"""Planning: from a job to a committed manifest.

    stages ─► rows (select) ─► labels (group) ─► micro-batches (batch) ─► fewer rows (reduce)
           ─► steps ─► manifest

Results depend on the dataset, the stages and the seed only; workers, partitions and paths do not
enter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..dataplane.dataset import DatasetLike
from ..dataplane.errors import JobSpecError
from ..dataplane.manifest import Manifest
from ..dataplane.manifest_writer import ManifestWriter
from .bill import make_budget, work_bytes
from .context import JobContext
from .engine import Engine
from .finished import Finished, job_identity
from .forms import manifest_bytes, recipe_of
from .hashing import hash_dataset
from .job_file import load_job, resolve_stages, settled
from .losses import open_signal, signals_digest
from .methods import stage_of
from .pipeline import Pipeline, identity_of
from .progress import LogProgress, Progress
from .spec import JobSpec
from .stages import PlanState
from .start import check_job, open_job, rows_of, space_for, splits_of, target_of
from .work import work_folder

__all__ = ["make_spec", "plan", "run", "run_job"]

_SELECTS = ("split", "keep", "drop", "where")  # in this order: cheap ones first


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
    out : path or URI
        Manifest directory to make. The same plan already there is success.
    where, keep, drop, key, split
        Built-in selects: an expression; files of keys and their column; shares.
    progress : Progress, optional
        When None, nothing is told but warnings, by the ``batchloom`` logger.
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


def run(
    path: str | os.PathLike[str],
    *,
    epochs: Any = None,
    progress: Progress | None = None,
) -> Manifest:
    """Run a job file (`spec`) and return the manifest.

    Parameters
    ----------
    path : path
    epochs : str or (int, int), optional
        Instead of the file's: the epochs of a series' next member.
    progress : Progress, optional
    """
    spec = load_job(path)
    if epochs is not None:
        spec = replace(spec, epochs=epochs)
    return run_job(spec, progress=progress)


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
        stage_of(stage)
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


def run_job(spec: JobSpec, *, progress: Progress | None = None) -> Manifest:
    """Run a job and return the committed manifest.

    Raises
    ------
    BatchloomError
        One clear sentence; nothing half-written stays.
    """
    progress = progress or LogProgress()
    spec, stages = settled(spec)
    signal = open_signal(spec)
    dataset, first_added = open_job(spec, signal)
    check_job(spec, dataset, stages)
    if said := splits_of(spec, dataset):
        progress.warn(said)
    target, parent = target_of(spec)
    budget = make_budget(spec, dataset, stages)
    made_of = identity_of(stages, spec, first_added)
    needed = manifest_bytes(dataset.rows, spec, stages) + work_bytes(dataset, stages, budget)
    with (
        space_for(target, needed),
        # It outlives the workers, which write there.
        work_folder(
            target.beside, job_identity(spec, dataset, made_of, signal), target.destination
        ) as work,
        Engine(
            scheduler=spec.scheduler,
            workers=budget.workers,
            memory=budget.for_workers,
            folder=work.path,
            note=progress.note,
            warn=progress.warn,
        ) as engine,
    ):
        job = JobContext(
            dataset,
            engine,
            work,
            budget,
            spec.seed,
            spec.batch_size,
            spec.on_invalid,
            progress,
            spec.task_bytes,
            spec.micro_per_step,
            epochs=spec.epochs,
            signal=signal,
        )
        deep = hash_dataset(dataset, engine, progress, spec.task_bytes) if spec.deep else None
        pipeline = Pipeline(job, stages, rows_of(dataset, first_added))
        pipeline.prepare()
        with ManifestWriter(
            target,
            snapshot=dataset.snapshot,
            stages=made_of,
            seed=spec.seed,
            unit=pipeline.batch.unit,
            weight_semantics=pipeline.weight_semantics,
            side=pipeline.side,
            parent=parent,
            signals=signals_digest(job.digests),
            deep_hashes=deep,
        ) as writer:
            finished = Finished(job, writer, target.beside, spec.epochs)
            for epoch in range(*spec.epochs):
                if finished.take(epoch):
                    continue
                with pipeline.state(epoch) as state:
                    recipe = recipe_of(spec, pipeline, state)
                    if recipe is not None:
                        pipeline.measure(state, epoch)
                        writer.write_recipe(epoch, **recipe)
                    else:
                        with writer.epoch(epoch, eligible_rows=len(state.rows)):
                            _write(writer, pipeline, state, epoch, spec.micro_per_step, progress)
                    finished.give(epoch, state.reports)
            return writer.commit(reports=finished.reports)


def _write(
    writer: ManifestWriter,
    pipeline: Pipeline,
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
