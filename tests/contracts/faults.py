"""A method whose tasks are slow or kill the process that they run in, and a command line with it.

python -c "from batchloom.tests.contracts.faults import main; main()" run job.toml
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from batchloom.dataplane.parameters import parameters
from batchloom.dataplane.plan import Selection
from batchloom.jobs import register
from batchloom.jobs.stages import SelectStage
from pydantic import Field

__all__ = ["COMMAND", "Faulty", "faulty", "job_file", "main"]

COMMAND = [
    sys.executable,
    "-c",
    "from batchloom.tests.contracts.faults import main; main()",
]


@parameters
class Faulty(SelectStage):
    """Parameters of faulty."""

    method = "faulty"
    summary = "all rows, read slowly, or with a row that kills its reader"

    row: Annotated[int, Field(description="row that kills; none: -1")] = -1
    signal: Annotated[int, Field(description="how it kills")] = 9
    seconds: Annotated[float, Field(description="of sleep a batch")] = 0.0
    sign: Annotated[str, Field(description="folder in which processes that run tasks sign")] = ""
    hurry: Annotated[str, Field(description="file; when it is there nobody sleeps")] = ""

    def parameters(self) -> dict[str, Any]:
        return {}  # none of them decides anything

    def reads(self) -> list[str]:
        return ["row"]

    def select(self, job: Any, state: Any, epoch: int) -> Selection:
        job.map_rows(
            "trying",
            faulty,
            state.rows,
            self.reads(),
            row=self.row,
            number=self.signal,
            seconds=self.seconds,
            sign=self.sign,
            hurry=self.hurry,
        )
        return Selection(np.arange(len(state.rows), dtype=np.uint64))


def faulty(
    batch: pa.RecordBatch, ids: Any, row: int, number: int, seconds: float, sign: str, hurry: str
) -> npt.NDArray[np.bool_]:
    """Sleep, and die where the batch holds the row; a row function."""
    if sign:
        Path(sign, str(os.getpid())).touch()
    if not (hurry and Path(hurry).exists()):
        time.sleep(seconds)
    if row in batch.column("row").to_pylist():
        os.kill(os.getpid(), number)
        time.sleep(60)
    return np.ones(batch.num_rows, dtype=bool)


def main() -> None:
    """Run the command line, which knows the method; other tests do not."""
    from batchloom.jobs.cli import main

    register(Faulty)
    main()


def job_file(
    data: Path, out: Path, options: dict[str, Any] | None = None, **parameters: Any
) -> Path:
    """Write a job beside `out` that runs `Faulty` before a shuffle; return its path."""
    job = {"dataset": str(data), "out": str(out), "batch_size": 32, **(options or {})}
    stages = [{"method": "faulty", **parameters}, {"method": "shuffle"}]
    lines = [f"{key} = {json.dumps(value)}" for key, value in job.items()]
    for stage in stages:
        lines += ["[[stages]]", *(f"{key} = {json.dumps(value)}" for key, value in stage.items())]
    path = out.with_suffix(".toml")
    path.write_text("\n".join(lines))
    return path
