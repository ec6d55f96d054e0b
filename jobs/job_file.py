"""A job file read, and the stages that a job's tables name made and put in order."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from pathlib import Path
from typing import Any

from ..dataplane.errors import JobSpecError, ParameterError
from .methods import stage_of
from .shuffle import Shuffle
from .spec import JobSpec
from .stages import BatchStage, GroupStage, ReduceStage, SelectStage, Stage

__all__ = ["load_job", "resolve_stages", "settled"]


def load_job(path: str | os.PathLike[str], **instead: Any) -> JobSpec:
    """Read a job file; every error names the file, the key, the value and what is allowed.

    Parameters
    ----------
    path : path
    **instead
        Keys whose values are these, whatever the file says.
    """
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise JobSpecError(f"The job file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobSpecError(f"{path} is not TOML: {error}.") from error
    try:
        spec = JobSpec(**{**values, **instead})
        resolve_stages(spec)
    except (ParameterError, JobSpecError) as error:
        raise JobSpecError(f"{path}: {error}") from None
    return spec


def settled(spec: JobSpec) -> tuple[JobSpec, list[Stage]]:
    """Return the job as its stages want it, and these: some make a series by themselves."""
    stages = resolve_stages(spec)
    if any(stage.series for stage in stages):
        spec = dataclasses.replace(spec, series=True)
    return spec, stages


def resolve_stages(spec: JobSpec) -> list[Stage]:
    """Make the stages of a job, in order, the default batch stage filled in.

    Raises
    ------
    JobSpecError
        Where a method or parameter is wrong, or the kinds make no plan.
    """
    stages: list[Stage] = []
    for number, table in enumerate(spec.stages):
        where = f"stages[{number}]"
        if "method" not in table:
            raise JobSpecError(f"{where} names no method.")
        try:
            stages.append(stage_of(table))
        except JobSpecError as error:
            raise JobSpecError(f"{where}: {error}") from None
    stages = _with_batch(stages)
    for stage in stages:
        stage.check(spec)
    return stages


def _with_batch(stages: list[Stage]) -> list[Stage]:
    groups = [s for s in stages if isinstance(s, GroupStage)]
    batches = [s for s in stages if isinstance(s, BatchStage)]
    if len(groups) > 1 or len(batches) > 1:
        named = ", ".join(s.method for s in (groups if len(groups) > 1 else batches))
        kind = "group" if len(groups) > 1 else "batch"
        raise JobSpecError(f"A plan has at most one {kind} stage; these are {named}.")
    if not batches:
        first_reduce = next(
            (i for i, s in enumerate(stages) if isinstance(s, ReduceStage)), len(stages)
        )
        default = groups[0].default_batch() if groups else Shuffle()
        stages = [*stages[:first_reduce], default, *stages[first_reduce:]]
    batch = next(i for i, s in enumerate(stages) if isinstance(s, BatchStage))
    for i, stage in enumerate(stages):
        before = isinstance(stage, SelectStage | GroupStage)
        if (before and i > batch) or (isinstance(stage, ReduceStage) and i < batch):
            raise JobSpecError(
                f"The {stage.kind} stage '{stage.method}' stands on the wrong side of the batch "
                f"stage '{stages[batch].method}': selects and groups come before it, reduces after."
            )
    maker = stages[batch]
    if isinstance(maker, BatchStage) and maker.needs_groups and not groups:
        raise JobSpecError(
            f"The batch stage '{maker.method}' needs a group stage before it, such as kmeans."
        )
    semantics = {s.weight_semantics for s in stages if s.weight_semantics is not None}
    if len(semantics) > 1:
        raise JobSpecError(
            "Weights of the kinds 'importance' and 'cluster' cannot be mixed in one plan."
        )
    return stages
