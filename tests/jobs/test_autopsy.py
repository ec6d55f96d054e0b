"""What is said of a task that killed its workers, and that its advice is enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import open_dataset
from batchloom.jobs.autopsy import Machine, killed
from batchloom.jobs.tasks import ScanTask, group_tasks
from batchloom.jobs.trail import Trail
from batchloom.jobs.watch import Cause, Death

GIB = 1 << 30
HERE = Machine(64 * GIB)


def deaths(cause: Cause, code: int = 0, limit: int = GIB, count: int = 4) -> list[Death]:
    return [Death(str(i), cause, code, limit, 1, frozenset()) for i in range(count)]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ScanTask:
    """Two files; the second holds row groups of 1,000 and 50,000 rows of 2 KiB."""
    folder = tmp_path_factory.mktemp("wide")
    width = 512
    schema = pa.schema({"x": pa.list_(pa.float32(), width), "n": pa.int64()})
    for number, groups in enumerate(([10], [1000, 50_000])):
        with pq.ParquetWriter(folder / f"part-{number}.parquet", schema) as writer:
            for rows in groups:
                values = pa.DictionaryArray.from_arrays(
                    pa.array(np.zeros(rows * width, np.int8)), pa.array([0.5], pa.float32())
                )
                x = pa.FixedSizeListArray.from_arrays(values.cast(pa.float32()), width)
                writer.write_table(pa.table({"x": x, "n": np.arange(rows)}, schema))
    (found,) = group_tasks(open_dataset(folder).present(), 1 << 30)
    return found


def test_out_of_memory_here(task: ScanTask, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(killed(task, Trail(4, 1, 0, ("x",)), deaths("memory"), HERE))
    assert text == (
        "Reading data:part-1.parquet killed 4 workers one after another (out of memory, limit "
        "1.0 GiB). Its largest row group (number 1, 50,000 rows) takes about 97 MiB decoded in "
        "the columns that are read. Run again with --memory 2GiB --workers 1, or write the file in "
        "smaller row groups."
    )
    # It is never told to use no more than it had.
    again = str(killed(task, Trail(4, 1, 0, ("x",)), deaths("memory", limit=5 * GIB), HERE))
    assert "--memory 10GiB --workers 1" in again
    monkeypatch.setattr("batchloom.jobs.autopsy._LEAST", 0)
    small = deaths("memory", limit=1 << 28)  # needs 0.8 GiB
    for beside, advice in ((0, "1GiB"), (1 << 20, "2GiB"), (7 * GIB, "8GiB")):
        # The driver takes half of what is given, or what it needs where that is more.
        machine = Machine(64 * GIB, beside)
        text = str(killed(task, Trail(4, 1, 0, ("x",)), small, machine))
        assert f"--memory {advice} --workers 1" in text


def test_out_of_memory_where_there_is_no_more(task: ScanTask) -> None:
    text = str(killed(task, Trail(4, 1, 0, ("x",)), deaths("memory"), Machine(GIB)))
    assert "This machine has 1.0 GiB, too little for it; write the file in smaller row" in text
    assert "--memory" not in text


def test_out_of_memory_elsewhere(task: ScanTask) -> None:
    text = str(killed(task, Trail(4, 1, 0, ("x",)), deaths("memory"), None))
    assert "dask worker --memory-limit 2GiB --nthreads 1" in text
    assert "--workers" not in text
    # Without a shared folder nothing is known but the task.
    blind = str(killed(task, None, deaths("unknown", limit=0), None))
    assert "Reading data:part-0.parquet, data:part-1.parquet killed 4 workers" in blind
    assert "Their logs say why" in blind
    assert "--memory-limit 2GiB" in blind
    assert "copy it again" in blind


@pytest.mark.parametrize(
    ("cause", "code", "expected"),
    [
        ("signal", 11, "(signal 11). The file crashes what reads it: copy it again"),
        ("signal", 9, "(signal 9). Either the system ended them as the machine ran out of memory"),
        ("exit", 3, "(exit code 3). The file crashes what reads it"),
    ],
)
def test_crashes(task: ScanTask, cause: Cause, code: int, expected: str) -> None:
    text = str(killed(task, Trail(4, 1, 65_536, ("x",)), deaths(cause, code), HERE))
    assert expected in text
    assert text.startswith("Reading data:part-1.parquet (from its row 65,536 on) killed 4 workers")
    assert "--memory" not in text


def test_one_death_out_of_memory_tells_more_than_the_others(task: ScanTask) -> None:
    mixed = [*deaths("memory", count=1), *deaths("signal", 9, count=3)]
    assert "--memory" in str(killed(task, Trail(4, 1), mixed, HERE))


def test_workers_that_only_left(task: ScanTask) -> None:
    assert "each worker that ran it left" in str(killed(task, Trail(4, 0), [], None))


def test_a_file_that_is_gone_or_no_parquet(
    task: ScanTask, tmp_path: Path, make_dataset: Callable[..., Path]
) -> None:
    gone = group_tasks(open_dataset(make_dataset(pa.table({"a": [1]}))).present())[0]
    Path(gone.refs[0].uri).unlink()
    assert "--memory 2GiB" in str(killed(gone, Trail(1, 0, 0, ("a",)), deaths("memory"), HERE))
    table = pa.table({"a": np.arange(2_000_000)})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=1_500_000)
    (ipc,) = group_tasks(open_dataset(tmp_path / "a.arrow").present())
    text = str(killed(ipc, Trail(1, 0, 0, ("a",)), deaths("memory"), HERE))
    assert "Its largest record batch (number 0, 1,500,000 rows) takes about 11 MiB" in text
    assert text.endswith("or write the file in smaller record batches.")
