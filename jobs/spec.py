"""What a job file holds; `job_file` reads it and makes its stages.

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
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ..dataplane.errors import JobSpecError, ParameterError
from ..dataplane.parameters import parameters
from .engine import parse_bytes
from .tasks import TASK_BYTES

__all__ = ["JobSpec", "parse_epochs"]


def parse_epochs(value: Any) -> tuple[int, int]:
    """Read "0:3", "3" and 3 as a half-open range."""
    found = value
    if isinstance(value, str):
        parts = [p.strip() for p in value.split(":")]
        found = [int(p) for p in parts if p.isdecimal() and len(p) <= 20] if all(parts) else []
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
    signal: Annotated[
        PathText | None,
        Field(description="what a training wrote of rows: a signal store, or a file"),
    ] = None
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
