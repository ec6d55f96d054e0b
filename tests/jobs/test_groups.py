"""Groups that a column names, or the dataset's sources: what lands in which micro-batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.errors import MissingColumnError, SelectionError
from batchloom.jobs import plan

PARTS = ["north", "south", "north", "west", "south", "north", "west", "west", "north", "south"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    for number, rows in enumerate((slice(0, 4), slice(4, 10))):
        table = pa.table({"part": PARTS[rows], "code": [len(p) for p in PARTS[rows]]})
        pq.write_table(table, tmp_path / "data" / f"{number}.parquet")
    return tmp_path / "data"


def batches_of(data: object, out: Path, **options: object) -> tuple[list[list[int]], dict]:
    made = plan("groups", data, out=out, seed=1, workers=0, **options)
    report = made.provenance["reports"]["groups"]
    return [m.rows.tolist() for m in made.epoch(0)], report


@pytest.mark.parametrize("column", ["part", "code"])
def test_batches_of_one_group_each(data: Path, tmp_path: Path, column: str) -> None:
    found, report = batches_of(data, tmp_path / "plan", column=column, batch_size=2)
    assert sorted(row for rows in found for row in rows) == list(range(10))
    values = [p if column == "part" else len(p) for p in PARTS]
    assert all(len({values[row] for row in rows}) == 1 for rows in found)
    assert report["sizes"] == [values.count(v) for v in sorted(set(values))]
    assert report["names"] == [str(v) for v in sorted(set(values))]


def test_batches_of_whole_groups(data: Path, tmp_path: Path) -> None:
    found, _ = batches_of(data, tmp_path / "plan", column="part", batch_size=7, batches="aligned")
    where = {row: number for number, rows in enumerate(found) for row in rows}
    for name in set(PARTS):
        assert len({where[row] for row, part in enumerate(PARTS) if part == name}) == 1


def test_the_sources_of_the_dataset(data: Path, tmp_path: Path) -> None:
    files = {"a": str(data / "0.parquet"), "b": str(data / "1.parquet")}
    found, report = batches_of(files, tmp_path / "plan", batch_size=2)
    assert report == {"sizes": [4, 6], "names": ["a", "b"]}
    assert all(len({row < 4 for row in rows}) == 1 for rows in found)


def test_workers_change_nothing(data: Path, tmp_path: Path) -> None:
    ids = {
        plan("groups", data, out=tmp_path / str(workers), column="part", batch_size=3,
             workers=workers).manifest_id
        for workers in (0, 2)
    }  # fmt: skip
    assert len(ids) == 1


def test_what_names_no_groups(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SelectionError, match=r"one source, .*: name the column of the groups"):
        batches_of(data, tmp_path / "plan", batch_size=2)
    with pytest.raises(MissingColumnError, match="parts"):
        batches_of(data, tmp_path / "plan", column="parts", batch_size=2)
    table = pa.table({"part": ["a", None, "b"], "x": np.zeros(3)})
    pq.write_table(table, tmp_path / "nulls.parquet")
    with pytest.raises(SelectionError, match="Row 1 has no group: its 'part' is null"):
        batches_of(tmp_path / "nulls.parquet", tmp_path / "plan", column="part", batch_size=2)
