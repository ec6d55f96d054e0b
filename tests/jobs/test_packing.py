"""The pack job: on workers, killed, on full disks, in a plan's order, from the command line."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from batchloom.dataplane import Manifest, PackedTable, open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    JobSpecError,
    PackedConflictError,
    PackedError,
)
from batchloom.dataplane.leftovers import leftovers
from batchloom.gpu_access import PackedGather
from batchloom.jobs import pack, plan
from batchloom.jobs import packing as packing_job
from batchloom.jobs.engine import Engine
from batchloom.jobs.verifying import verify_packed
from batchloom.tests.contracts.awkward import awkward_table
from batchloom.tests.contracts.crash import run_job, start
from batchloom.tests.contracts.gather import expected_values, values_of
from batchloom.tests.jobs.conftest import ROWS, SIZES, write_small
from batchloom.tests.jobs.test_cli import batchloom, failed, result


def names(table: PackedTable) -> list[str]:
    return sorted(p.name for p in Path(table.path).iterdir())


def test_same_bytes_on_workers_and_without(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = pack(small, tmp_path / "alone", ["x", "key"])
    monkeypatch.setattr(packing_job, "_TASK_BYTES", 1)  # a task a fragment
    with Engine(workers=2) as engine:
        spread = pack(small, tmp_path / "spread", ["x", "key"], engine=engine)
    assert names(alone) == names(spread)
    assert alone.table_id == spread.table_id
    assert alone.rows == ROWS
    spread.verify()


def test_growth_keeps_row_ids(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", SIZES[:3])
    old = pack(data, tmp_path / "t", ["label"])
    # Files that sort before the others, so that a first listing would number them anew.
    (tmp_path / "more").mkdir()
    write_small(tmp_path / "more", (50,))
    os.replace(tmp_path / "more/part-0.parquet", data / "a-part-0.parquet")
    new = pack(data, tmp_path / "t", ["label"])
    assert new.rows == old.rows + 50
    ids = np.arange(old.rows)
    first, second = (PackedGather(t).gather(ids)["label"] for t in (old, new))
    assert first.equal(second)  # type: ignore[union-attr]
    assert set(names(old)) <= set(names(new))


@pytest.fixture(scope="module")
def planned(awkward_data: Any, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    out = tmp_path_factory.mktemp("order") / "plan"
    return plan(
        "shuffle", awkward_data("parquet"), out=out, batch_size=64, epochs=(0, 2), seed=3,
        form="explicit",
    )  # fmt: skip


@pytest.mark.parametrize("format", ["parquet", "ipc"])
def test_rows_in_the_order_of_a_plan(
    format: str,
    awkward_data: Any,
    planned: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if format == "ipc":
        made = plan(
            "shuffle", awkward_data("ipc"), out=tmp_path / "plan", batch_size=64, epochs=(0, 2),
            seed=3,
        )  # fmt: skip
    else:
        made = planned
    monkeypatch.setattr(packing_job, "BLOCK_ROWS", 4000)
    monkeypatch.setattr(packing_job, "_ROWS_AT_ONCE", 700)
    columns = ["x", "flag", "u16", "text", "list", "color", "when"]
    table = pack(awkward_data(format), tmp_path / "t", columns, order=made, epoch=1)
    epoch = made.epoch(1)
    rows = np.concatenate([np.asarray(epoch[k].rows) for k in range(len(epoch))])
    assert table.columns == ["row", *columns]
    assert table.chunks.rows.tolist() == [4032, 4032, len(rows) - 8064]
    table.require_order(made.manifest_id, 1)
    table.verify()
    places = np.array([0, 5, 4031, 4032, 9999, len(rows) - 1])
    found = PackedGather(table).gather(places)
    assert found["row"].tolist() == rows[places].tolist()
    for name in columns:
        wanted = expected_values(awkward_table(), name, rows[places])
        assert values_of(found[name]) == wanted, name
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_table_in_an_order_serves_its_plan_only(
    awkward_data: Any, planned: Manifest, tmp_path: Path
) -> None:
    data = awkward_data("parquet")
    table = pack(data, tmp_path / "t", ["y"], order=planned.path, epoch=0)
    assert pack(data, tmp_path / "t", ["y"], order=planned, epoch=0).table_id == table.table_id
    with pytest.raises(PackedError, match=r"holds epoch 0 of plan .* not epoch 1 of plan"):
        table.require_order(planned.manifest_id, 1)
    with pytest.raises(PackedError, match="in its order, and serves that only"):
        table.require(planned.snapshot)
    with pytest.raises(PackedConflictError, match="another packed table"):
        pack(data, tmp_path / "t", ["y"], order=planned, epoch=1)
    with pytest.raises(JobSpecError, match="holds the epochs 0, 1; name one"):
        pack(data, tmp_path / "u", ["y"], order=planned)
    with pytest.raises(JobSpecError, match="has a column 'row' of its own"):
        pack(data, tmp_path / "u", ["row"], order=planned, epoch=0)
    with pytest.raises(JobSpecError, match="its own snapshot"):
        pack(data, tmp_path / "u", order=planned, epoch=0, since=planned.path)
    with pytest.raises(JobSpecError, match="name it with 'order'"):
        pack(data, tmp_path / "u", epoch=0)
    by_row = pack(data, tmp_path / "v", ["y"])
    with pytest.raises(PackedError, match="holds its rows by row id"):
        by_row.require_order(planned.manifest_id, 0)


def test_nulls_stay_in_the_order_of_a_plan(make_dataset: Any, tmp_path: Path) -> None:
    values = [1, None, 3, None, 5]
    lists = pa.array([[1], None, [], [4, 4], [None]], pa.list_(pa.int8()))
    data = make_dataset(pa.table({"v": pa.array(values, pa.int16()), "l": lists}))
    made = plan("shuffle", data, out=tmp_path / "plan", batch_size=2, epochs=(0, 1), seed=1)
    table = pack(data, tmp_path / "t", order=made)
    batch = PackedGather(table).take(range(5))
    rows = batch["row"].to_pylist()
    assert [values[i] for i in rows] == batch["v"].to_pylist()
    assert [lists[i].as_py() for i in rows] == batch["l"].to_pylist()


def test_verify(small: Path, tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    table = pack(data, tmp_path / "t", ["x"])
    assert verify_packed(tmp_path / "t", data).table_id == table.table_id
    os.unlink(data / "part-3.parquet")
    with pytest.raises(DatasetChangedError, match=r"part-3\.parquet"):
        verify_packed(tmp_path / "t", data)


# --- the command line -----------------------------------------------------------------------------


def test_commands(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "t"
    made = result("pack", small, "--columns", "x,label", "--out", out, "--workers", "0", "-q")
    assert made["rows"] == ROWS
    assert made["columns"] == ["x", "label"]
    assert set(made) == {"table_id", "path", "rows", "columns", "files", "bytes"}
    assert result("verify", out)["table_id"] == made["table_id"]
    ran = batchloom("verify", out, "--dataset", small)
    assert ran.stdout.startswith(f"whole: {made['table_id']}\n{ROWS:,} rows, 10 files")
    [file] = [f.name for c, f in PackedTable.open(out).files if c == 0 and f.column == "x"]
    data = bytearray((out / file).read_bytes())
    data[len(data) // 2] ^= 4
    (out / file).write_bytes(data)
    assert f"{file}, page 0" in failed(1, "verify", out)


def test_command_errors(small: Path, tmp_path: Path) -> None:
    line = failed(1, "pack", small, "--columns", "x,lable", "--out", tmp_path / "t", "-q")
    assert "no column 'lable'" in line
    assert "Did you mean 'label'" in line
    assert not list(tmp_path.iterdir())


# --- what can go wrong ----------------------------------------------------------------------------


def test_killed_at_any_moment(small: Path, tmp_path: Path) -> None:
    command = ["pack", small, "--columns", "x,key", "--workers", "0", "-q", "--out"]
    seconds = run_job([*command, tmp_path / "whole"], tmp_path / "log")
    truth = PackedTable.open(tmp_path / "whole").table_id
    draw = random.Random(5)
    for number in range(2):
        home = tmp_path / f"run-{number}"
        home.mkdir()
        run = start([*command, home / "t"], tmp_path / f"log-{number}")
        time.sleep(draw.uniform(0.5, 1.0) * seconds)
        run.kill()
        run.lose_unflushed(home, draw)
        assert {p.name for p in home.iterdir() if not p.name.startswith(".t.staging-")} <= {"t"}
        if (home / "t").exists():
            assert PackedTable.open(home / "t", verify="all").table_id == truth
        assert {found.kind for found in leftovers(home)} <= {"staging"}
        run_job([*command, home / "t"], tmp_path / f"log-{number}-again")
        assert PackedTable.open(home / "t", verify="all").table_id == truth


FULL = """
import resource, sys
from batchloom.dataplane import open_dataset
from batchloom.jobs import pack
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    pack(sys.argv[1], sys.argv[2])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("most", [100, 3000, 9000])
def test_disk_that_fills_up(small: Path, tmp_path: Path, most: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", FULL, small, tmp_path / "t", str(most)],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    assert ran.stdout.startswith("StorageError"), ran.stdout + ran.stderr
    assert "File too large" in ran.stdout
    assert "Nothing was committed" in ran.stdout
    assert not list(tmp_path.iterdir())


def test_fragment_that_changes_before_it_is_packed(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    dataset = open_dataset(data)
    write_small(data, (400,))
    with pytest.raises(DatasetChangedError, match=r"part-0\.parquet was rewritten"):
        pack(dataset, tmp_path / "t")
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
