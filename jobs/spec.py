"""What a job file holds.

    dataset = "data/"                    # or a list, or a table of named sources
    out = "plan/"
    batch_size = 256
    epochs = "0:3"
    seed = 7

    [[stages]]
    method = "where"
    expression = "score > 0.5"

    [[stages]]
    method = "kmeans"
    columns = ["embedding"]
    k = 64
    batches = "across"

The keys are those of `JobSpec`; a stage's keys are its method's parameters (``batchloom plan
METHOD --help``). Paths are as on the command line: relative to the current directory.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..dataplane.errors import JobSpecError, ParameterError
from ..dataplane.parameters import parameters
from .engine import parse_bytes
from .methods import make_stage
from .shuffle import Shuffle
from .stages import BatchStage, GroupStage, ReduceStage, SelectStage, Stage
from .tasks import TASK_BYTES

__all__ = ["JobSpec", "load_job", "parse_epochs", "resolve_stages"]


def parse_epochs(value: Any) -> tuple[int, int]:
    """Read "0:3", "3" and 3 as a half-open range."""
    found = value
    if isinstance(value, str):
        parts = [p.strip() for p in value.split(":")]
        found = [int(p) for p in parts if p.isdigit()] if all(parts) else []
    elif isinstance(value, int):
        found = [value]
    if len(found) == 1:
        found = [0, *found]
    if len(found) != 2 or not 0 <= found[0] < found[1]:
        raise ParameterError(
            "The 'epochs' parameter must be a range A:B, 0-based and half-open, such as 0:3. "
            f"Got {value!r} instead."
        )
    return tuple(found)


def _path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


Epochs = Annotated[tuple[int, int], BeforeValidator(parse_epochs)]
PathText = Annotated[str, BeforeValidator(_path)]
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=1)]


@parameters
class JobSpec:
    """A planning job."""

    dataset: Annotated[Any, Field(description="path, glob, URI, list, or table of named sources")]
    out: Annotated[PathText, Field(description="manifest to make: path or URI")]
    stages: Annotated[list[dict[str, Any]], Field(description="[[stages]] tables")] = Field(
        default_factory=list
    )
    batch_size: Annotated[int, Field(ge=1, description="rows a micro-batch")] = 256
    micro_per_step: Annotated[int, Field(ge=1, le=65_535, description="micro-batches a step")] = 1
    epochs: Annotated[Epochs, Field(description="0-based, half-open: 0:3")] = (0, 1)
    seed: Annotated[int, Field(ge=0, lt=1 << 64, description="seed of all draws")] = 0
    snapshot: Annotated[PathText | None, Field(description="plan exactly this snapshot")] = None
    since: Annotated[PathText | None, Field(description="keep the row ids of this snapshot")] = None
    added_only: Annotated[
        bool, Field(description="only rows added after `since`, or after the series' last member")
    ] = False
    on_invalid: Annotated[
        Literal["fail", "drop"], Field(description="rows whose values cannot be used")
    ] = "fail"
    form: Annotated[
        Literal["auto", "explicit", "recipe"],
        Field(description="rows written out, or a recipe; auto: a recipe for more than 1 GB"),
    ] = "auto"
    series: Annotated[bool, Field(description="add a member to a series at `out`")] = False
    deep: Annotated[bool, Field(description="hash the dataset's bytes too")] = False
    scheduler: Annotated[str | None, Field(description="address of a Dask scheduler")] = None
    workers: Annotated[
        int | None, Field(ge=0, description="processes of the embedded cluster; 0: this process")
    ] = None
    memory: Annotated[Bytes | None, Field(description="bytes for all workers: 4GiB")] = None
    task_bytes: Annotated[Bytes, Field(description="compressed bytes a task")] = TASK_BYTES
    storage_options: Annotated[
        dict[str, Any] | None, Field(description="options of the filesystem, for URIs")
    ] = None

    def __post_init__(self) -> None:
        if self.snapshot is not None and self.since is not None:
            raise JobSpecError("Give either a snapshot or a since, not both.")
        if self.added_only and self.since is None and (not self.series or self.snapshot):
            raise JobSpecError(
                "'added_only' needs a 'since' or a 'series': rows added after which snapshot?"
            )
        if self.scheduler is not None and self.workers is not None:
            raise JobSpecError("Give either a scheduler or a number of workers, not both.")


def load_job(path: str | os.PathLike[str]) -> JobSpec:
    """Read a job file; every error names the file, the key, the value and what is allowed."""
    try:
        values = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise JobSpecError(f"The job file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise JobSpecError(f"{path} is not TOML: {error}.") from error
    try:
        spec = JobSpec(**values)
        resolve_stages(spec)
    except (ParameterError, JobSpecError) as error:
        raise JobSpecError(f"{path}: {error}") from None
    return spec


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
        rest = {k: v for k, v in table.items() if k != "method"}
        try:
            stages.append(make_stage(str(table["method"]), rest))
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
