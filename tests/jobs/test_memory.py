"""Jobs keep to the memory that they were given, whatever the data: long, wide, in many pieces.

Each job runs in a process of its own with the least memory that it accepts. What is compared is the
largest resident set of that process, and the sum of its own and its workers'. Pages of a mapped
file count as long as they are resident.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.errors import ParameterError
from batchloom.jobs import plan

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20
FILE_ROWS = 500_000

_CHILD = """
import json, sys
from typing import Annotated
import numpy as np
from pydantic import Field
from batchloom.dataplane.parameters import parameters
from batchloom.jobs import plan, register
from batchloom.jobs.cluster_batches import Aligned
from batchloom.jobs.stages import Choice, GroupStage, SelectStage

@register
@parameters
class Neighbours(GroupStage):
    method, summary = "neighbours", "a hundred rows a group"
    def group(self, job, state):
        from dataclasses import replace
        starts = range(0, len(state.rows), 1 << 20)
        labels = (np.arange(s, min(s + (1 << 20), len(state.rows))) // 100 for s in starts)
        return replace(state, groups=job.column(part.astype(np.int32) for part in labels))
    def default_batch(self):
        return Aligned()

@register
@parameters
class Weighted(SelectStage):
    method, summary, weight_semantics = "weighted", "two of three rows, weighted", "importance"
    def select(self, job, state, epoch):
        rows = state.rows.filter(lambda ids, _: ids % np.uint64(3) > 0)
        weights = job.column((ids % np.uint64(5) + 1).astype(np.float32) for ids in rows.chunks())
        return Choice(rows, weights)

if __name__ == "__main__":
    stages, data, out, options = json.loads(sys.argv[1])
    from batchloom.jobs.planning import run_job
    from batchloom.jobs.spec import JobSpec
    made = run_job(JobSpec(dataset=data, out=out, stages=stages, **options))
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(made.manifest_id, int(status["VmHWM"].split()[0]) << 10)
"""


@dataclass(frozen=True)
class Ran:
    """A finished job: its manifest's id, and largest resident sets in bytes."""

    id: str
    driver: int
    workers: tuple[int, ...]

    @property
    def total(self) -> int:
        return self.driver + sum(self.workers)

    @property
    def told(self) -> str:
        return f"{self.driver // MIB} MiB, workers {[w // MIB for w in self.workers]}"


def peak_of(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", text)
    return int(found[1]) << 10 if found else 0


def _is_worker(process: psutil.Process) -> bool:
    """Whether a process is a worker, not a program that a library asks something of."""
    try:
        return any("spawn_main" in word for word in process.cmdline())
    except psutil.Error:
        return False


def run(stages: list[dict[str, Any]], data: Path, out: Path, **options: Any) -> Ran:
    """Run a job in a process of its own."""
    arguments = json.dumps([stages, str(data), str(out), {"workers": 0, **options}])
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD, arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    peaks: dict[int, int] = {}
    while process.poll() is None:
        try:
            below = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            break
        for child in filter(_is_worker, below):
            peaks[child.pid] = max(peaks.get(child.pid, 0), peak_of(child.pid))
        time.sleep(0.02)
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    id_, driver = output.split()
    return Ran(id_, int(driver), tuple(peaks.values()))


@pytest.fixture(scope="session")
def rows_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Return a function that makes a dataset of so many rows; its files are links to one."""
    home = tmp_path_factory.mktemp("memory")
    k = np.arange(FILE_ROWS)
    x = np.stack([np.sin(k % 999 * i) for i in range(4)], axis=1).astype(np.float32)
    table = pa.table(
        {
            "a": np.sin(k % 4099).astype(np.float32),
            "label": (k * k % 7).astype(np.int32),
            "key": k.astype(np.int64),
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4),
        }
    )
    pq.write_table(table, home / "one.parquet", row_group_size=1 << 16)

    def make(rows: int) -> Path:
        folder = home / str(rows)
        if not folder.exists():
            folder.mkdir()
            for number in range(rows // FILE_ROWS):
                (folder / f"part-{number}.parquet").hardlink_to(home / "one.parquet")
        return folder

    return make


def least(stages: list[dict[str, Any]], data: Path, **options: Any) -> int:
    """Return the least memory that a job accepts, in MiB: what its refusal names."""
    with pytest.raises(AssertionError, match="This job needs at least") as refused:
        run(stages, data, data.parent / "never", memory=1, **options)
    found = re.search(r"--memory (\d+)MiB or more", str(refused.value))
    assert found
    return int(found[1])


def keeps_to(stages: list[dict[str, Any]], data: Path, out: Path, **options: Any) -> Ran:
    """Run a job with the least memory that it accepts; see that it takes no more."""
    limit = least(stages, data, **options)
    ran = run(stages, data, out, memory=f"{limit}MiB", **options)
    assert ran.total <= limit * MIB, (limit, ran.told)
    return ran


def check(
    stages: list[dict[str, Any]], few: Path, many: Path, out: Path, **options: Any
) -> tuple[Ran, Ran]:
    """Run on few and on many rows with the least memory that the latter accepts."""
    limit = least(stages, many, **options)
    ran = [
        run(stages, data, out / data.name, memory=f"{limit}MiB", **options) for data in (few, many)
    ]
    assert max(r.total for r in ran) <= limit * MIB, (limit, [r.told for r in ran])
    return ran[0], ran[1]


# --- shapes of data -------------------------------------------------------------------------------


def wide(rows: int, width: int = 256) -> pa.Table:
    """Rows of a KiB of numbers, and a label."""
    x = np.random.default_rng(0).normal(size=rows * width).astype(np.float32)
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x), width),
                     "label": (np.arange(rows) % 7).astype(np.int32)})  # fmt: skip


def write_wide(folder: Path, rows: int) -> None:
    pq.write_table(wide(rows), folder / "a.parquet", row_group_size=rows, use_dictionary=False)


def write_wide_ipc(folder: Path, rows: int) -> None:
    table = wide(rows)
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=rows)


def write_documents(folder: Path, rows: int) -> None:
    """Text of 3 KB a row, of which the file holds a dictionary of a few."""
    texts = pa.array([f"document {i} " * 250 for i in range(40)])
    text = pa.DictionaryArray.from_arrays(pa.array(np.arange(rows) % 40, pa.int32()), texts)
    label = (np.arange(rows) % 7).astype(np.int32)
    table = pa.table({"text": text.cast(pa.large_string()), "label": label})
    pq.write_table(table, folder / "a.parquet", row_group_size=rows)


def write_row_groups(folder: Path, rows: int) -> None:
    label = (np.arange(rows) % 7).astype(np.int32)
    pq.write_table(pa.table({"label": label}), folder / "a.parquet", row_group_size=20)


def write_files(folder: Path, rows: int) -> None:
    table = pa.table({"label": (np.arange(20) % 7).astype(np.int32)})
    pq.write_table(table, folder / "one.parquet")
    for number in range(rows // 20 - 1):
        (folder / f"part-{number}.parquet").hardlink_to(folder / "one.parquet")


ASSIGN = [{"method": "kmeans", "columns": ["x"], "k": 16, "rows_per_center": 16}]
TEXTS = [{"method": "where", "expression": "text != 'none'"}]
LABELS = [{"method": "where", "expression": "label != 3"}]
SHAPES: dict[str, tuple[Any, int, list[dict[str, Any]]]] = {
    "wide": (write_wide, 100_000, ASSIGN),
    "wide, mapped": (write_wide_ipc, 100_000, ASSIGN),
    "documents": (write_documents, 60_000, TEXTS),
    "row groups": (write_row_groups, 60_000, LABELS),
    "files": (write_files, 30_000, LABELS),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_scan_keeps_to_its_memory(tmp_path: Path, shape: str) -> None:
    write, rows, stages = SHAPES[shape]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", rows)
    keeps_to(stages, tmp_path / "data", tmp_path / "plan")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_larger_scan_keeps_to_its_memory(tmp_path: Path, shape: str, workers: int) -> None:
    write, rows, stages = SHAPES[shape]
    (tmp_path / "data").mkdir()
    write(tmp_path / "data", 6 * rows)
    options = {"workers": workers, "deep": True, "task_bytes": 32 * MIB}
    keeps_to(stages, tmp_path / "data", tmp_path / "plan", **options)


# --- numbers of rows ------------------------------------------------------------------------------


def test_a_stratified_shuffle_keeps_to_its_memory(
    rows_of: Callable[[int], Path], tmp_path: Path
) -> None:
    """In memory this one takes 70 bytes a row: 210 MB of three million."""
    stages = [{"method": "shuffle", "stratify": "label", "balance": "label"}]
    few, many = check(stages, rows_of(1_000_000), rows_of(3_000_000), tmp_path)
    assert many.driver - few.driver < 120 * MIB


CASES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "shuffle": ([{"method": "shuffle"}], {}),
    "several epochs": ([{"method": "shuffle"}], {"epochs": 3, "batch_size": 32}),
    "block": ([{"method": "shuffle", "mode": "block", "balance": "label"}], {}),
    "stratified": ([{"method": "shuffle", "stratify": "label", "balance": "label"}], {"epochs": 2}),
    "where": ([{"method": "where", "expression": "a > 0"}], {}),
    "split": ([{"method": "split", "shares": "a=0.9,b=0.1:a"}], {}),
    "split by key": ([{"method": "split", "shares": "a=0.9,b=0.1:a", "key": "key"}], {}),
    "keep": ([{"method": "keep", "file": "ids.npy"}], {}),
    "drop by key": ([{"method": "drop", "file": "ids.npy", "key": "key"}], {}),
    "weighted": ([{"method": "weighted"}], {}),
    "weighted, stratified": (
        [{"method": "weighted"}, {"method": "shuffle", "stratify": "label"}],
        {},
    ),
    "within": ([{"method": "kmeans", "columns": ["x"], "k": 5}], {}),
    "across": ([{"method": "kmeans", "columns": ["x"], "k": 5, "batches": "across"}], {}),
    "within, weighted": (
        [{"method": "weighted"}, {"method": "kmeans", "columns": ["x"], "k": 2}],
        {"batch_size": 7},
    ),
    "aligned": ([{"method": "neighbours"}], {"batch_size": 512}),
    "where, on workers": ([{"method": "where", "expression": "a > 0"}], {"workers": 2}),
    "colm": ([{"method": "colm", "columns": ["x"], "sources": "label"}], {}),
    "colm, on workers": (
        [{"method": "colm", "columns": ["x"], "sources": "label"}],
        {"workers": 2},
    ),
    "balanced": ([{"method": "balanced", "columns": ["x"], "size": 64}], {}),
    "balanced, on workers": (
        [{"method": "balanced", "columns": ["x"], "size": 64, "batches": "within"}],
        {"workers": 2},
    ),
    "random-rows": ([{"method": "random-rows"}], {}),
    "kmeans, on workers": ([{"method": "kmeans", "columns": ["x"], "k": 5}], {"workers": 2}),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_every_method_keeps_to_its_memory(
    rows_of: Callable[[int], Path], tmp_path: Path, name: str
) -> None:
    stages, options = CASES[name]
    np.save(tmp_path / "ids.npy", np.arange(0, 3_000_000, 7, dtype=np.uint64))
    stages = [
        {k: str(tmp_path / v) if k == "file" else v for k, v in stage.items()} for stage in stages
    ]
    few, many = check(
        stages, rows_of(4_000_000), rows_of(16_000_000), tmp_path, form="explicit", **options
    )
    # With a memory that holds everything the plan is the same.
    roomy = run(stages, rows_of(4_000_000), tmp_path / "roomy", memory="6GiB", form="explicit",
                **{**options, "workers": 0})  # fmt: skip
    assert roomy.id == few.id
    assert many.driver - few.driver < 160 * MIB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_added_rows_only(rows_of: Callable[[int], Path], tmp_path: Path) -> None:
    open_dataset(rows_of(4_000_000)).snapshot.save(tmp_path / "snapshot.json")
    options = {"since": str(tmp_path / "snapshot.json"), "added_only": True, "form": "explicit"}
    stages = [{"method": "where", "expression": "a > 0"}]
    data = rows_of(16_000_000)
    limit = least(stages, data, **options)
    ran = run(stages, data, tmp_path / "plan", memory=f"{limit}MiB", **options)
    assert ran.total <= limit * MIB


def test_too_little_memory_is_refused_before_anything_is_read(
    rows_of: Callable[[int], Path], tmp_path: Path
) -> None:
    with pytest.raises(ParameterError, match=r"This job needs at least \d+ MiB of memory: 320 MiB"):
        plan("shuffle", rows_of(1_000_000), out=tmp_path / "plan", memory="100MiB")
    assert os.listdir(tmp_path) == []
