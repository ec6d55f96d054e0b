"""Small datasets and contexts for the tests of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.rowset import RowSet
from batchloom.jobs.budget import Budget
from batchloom.jobs.context import JobContext
from batchloom.jobs.engine import Engine
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.stages import PlanState
from batchloom.jobs.work import work_folder

SIZES = (300, 0, 1, 420, 79, 200)
ROWS = sum(SIZES)


def small_table(start: int, stop: int) -> pa.Table:
    """Rows `start` to `stop`; every column is a function of the row."""
    k = np.arange(start, stop)
    x = np.stack([np.sin(k * 0.7), np.cos(k * 1.3), (k % 5) * 4.0], axis=1).astype(np.float32)
    return pa.table(
        {
            "row": k.astype(np.int64),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3),
            "a": np.sin(k),
            "label": (k * k % 7).astype(np.int32),
            "key": pa.array([f"doc-{i}" for i in k], pa.string()),
        }
    )


def write_small(folder: Path, sizes: tuple[int, ...] = SIZES) -> Path:
    """Write the small dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, rows in enumerate(sizes):
        pq.write_table(
            small_table(start, start + rows), folder / f"part-{number}.parquet", row_group_size=128
        )
        start += rows
    return folder


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small dataset; read only."""
    return write_small(tmp_path_factory.mktemp("small") / "data")


@pytest.fixture
def job(small: Path, tmp_path: Path) -> Iterator[JobContext]:
    """A job on the small dataset, in this process."""
    with Engine(workers=0) as engine, work_folder(tmp_path / "target", "job") as work:
        yield JobContext(
            open_dataset(small),
            engine,
            work,
            Budget(1 << 30, 0, None, 1 << 28),
            7,
            32,
            "fail",
            QuietProgress(),
            task_bytes=4000,
        )


@pytest.fixture
def state(job: JobContext) -> PlanState:
    """A selection with gaps, weights and groups."""
    rows = RowSet(job.dataset.snapshot)
    kept = rows.keep(np.arange(ROWS) % 3 != 1)
    groups = job.column([(kept.ids() % np.uint64(5)).astype(np.int32)])
    return PlanState(kept, None, groups)


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes tables as fragments of a new dataset."""

    def make(*tables: Any, name: str = "made") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number, table in enumerate(tables):
            pq.write_table(table, folder / f"part-{number}.parquet")
        return folder

    return make
