"""The modules behind the verbs: scan, verify, diff, inspect, doctor, demo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.errors import DatasetChangedError, StorageError
from batchloom.dataplane.manifest import Manifest
from batchloom.jobs import plan
from batchloom.jobs.demo import run_demo
from batchloom.jobs.diffing import diff
from batchloom.jobs.doctor import examine
from batchloom.jobs.engine import Engine
from batchloom.jobs.inspecting import describe_step
from batchloom.jobs.scanning import scan
from batchloom.jobs.verifying import verify
from batchloom.tests.jobs.conftest import ROWS, small_table, write_small


def test_scan_counts_what_numpy_counts(tmp_path: Path) -> None:
    tables = [
        pa.table({"f": [1.0, None, float("nan")], "i": [3, -2, 7], "s": ["a", None, None],
                  "v": pa.array([[1, 2], [3, float("inf")], None], pa.list_(pa.float32(), 2))}),
        pa.table({"f": [4.5], "i": [10], "s": ["b"],
                  "v": pa.array([[9, 8]], pa.list_(pa.float32(), 2))}),
    ]  # fmt: skip
    for number, table in enumerate(tables):
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    columns = {c.name: c for c in scan(tmp_path).columns}
    f, i, s, v = (columns[name] for name in "fisv")
    assert (f.rows, f.nulls, f.not_finite, f.low, f.high, f.mean) == (4, 1, 1, 1.0, 4.5, 2.75)
    assert (i.nulls, i.low, i.high, i.mean) == (0, -2, 10, 4.5)
    assert (s.nulls, s.low, s.mean) == (2, None, None)
    assert (v.nulls, v.not_finite, v.low, v.high, v.mean) == (1, 1, 1.0, 9.0, 4.6)


def test_scan_is_the_same_on_a_cluster(small: Path) -> None:
    with Engine(workers=2) as engine:
        assert scan(small, engine=engine).to_json() == scan(small).to_json()


def test_scan_since_keeps_row_ids(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (10, 20))
    scan(data, out=tmp_path / "snap.json", statistics=False)
    pq.write_table(small_table(30, 35), data / "aaa.parquet")
    found = scan(data, since=tmp_path / "snap.json", statistics=False).dataset.snapshot
    assert [(f.path, f.first_row_id) for f in found.fragments] == [
        ("part-0.parquet", 0),
        ("part-1.parquet", 10),
        ("aaa.parquet", 30),
    ]


def test_verify_counts_and_finds_changed_bytes_under_the_same_footer(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    plan("shuffle", data, out=tmp_path / "p", batch_size=100, deep=True)
    found = verify(tmp_path / "p", data, deep=True)
    assert (found.samples, found.parts, found.fragments, found.contents) == (ROWS, 1, 5, 5)
    file = data / "part-3.parquet"
    changed = bytearray(file.read_bytes())
    changed[40] ^= 1
    file.write_bytes(changed)
    assert verify(tmp_path / "p", data).fragments == 5  # the footer is the same
    with pytest.raises(DatasetChangedError, match=r"part-3\.parquet.* changed under an unchanged"):
        verify(tmp_path / "p", data, deep=True)


def test_verify_counts_files_that_are_not_planned(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    plan("shuffle", data, out=tmp_path / "p", batch_size=100)
    pq.write_table(small_table(0, 5), data / "more.parquet")
    assert verify(tmp_path / "p", data).unplanned == 1


def test_verify_a_series(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100,))
    for epochs in ("0:1", "1:3"):
        plan("shuffle", data, out=tmp_path / "s", batch_size=10, epochs=epochs, series=True,
             deep=True)  # fmt: skip
    found = verify(tmp_path / "s", data, deep=True)
    assert (found.manifests, found.epochs, found.samples) == (2, 3, 300)


def test_diff_of_selections(small: Path, tmp_path: Path) -> None:
    a = plan("shuffle", small, out=tmp_path / "a", batch_size=10, where="row < 600", workers=0)
    b = plan("shuffle", small, out=tmp_path / "b", batch_size=10, where="row >= 500", workers=0)
    found = diff(a, b)
    assert not found.same
    assert found.identity["stages.0.parameters.expression"] == ("row < 600", "row >= 500")
    (epoch,) = found.epochs
    assert (epoch.batches_changed, epoch.first_step) == (60, 0)
    assert (epoch.rows_only_in_a, epoch.rows_only_in_b) == (500, 400)
    json.dumps(found.to_json())


def test_diff_of_datasets(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100, 50))
    a = plan("shuffle", data, out=tmp_path / "a", batch_size=10)
    pq.write_table(small_table(200, 250), data / "part-1.parquet")
    b = plan("shuffle", data, out=tmp_path / "b", batch_size=10)
    found = diff(a, b)
    assert found.fragments_only_in_a == found.fragments_only_in_b == ("part-1.parquet",)
    assert found.epochs == ()  # the same order of the same row ids
    assert not found.same


def test_describe_step_equals_the_plan(small: Path, tmp_path: Path) -> None:
    made = plan("kmeans", small, out=tmp_path / "p", batch_size=20, columns=["x"], k=3, workers=0,
                micro_per_step=4)  # fmt: skip
    step = describe_step(Manifest.open(tmp_path / "p"), 0, 2)
    assert [b["micro"] for b in step["micro_batches"]] == [0, 1, 2, 3]
    flat = np.concatenate([b["rows"] for b in step["micro_batches"]])
    assert flat.tolist() == made.epoch(0).step(2).rows.tolist()


def test_doctor_names_what_is_missing_and_what_for() -> None:
    findings = {f.what: f for f in examine()}
    assert findings["pyarrow"].here
    assert findings["GPU path"].detail
    ways = [f for f in findings if f.startswith("rows by ")]
    assert ways == [f"rows by {n}" for n in ("zero_copy", "alias", "staged", "cpu")][: len(ways)]
    assert [findings[f].here for f in ways] == [False] * (len(ways) - 1) + [True]
    for finding in findings.values():
        assert finding.here or finding.needed_for or finding.what == "system"


def test_demo_keeps_its_promises_and_runs_again(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        result = run_demo(tmp_path / "demo", say=said.append)
        assert result.kept_its_promises
        assert result.accuracy > 0.9
        assert result.accuracy_resumed > 0.9
        assert set(result.seconds) >= {"verify", "train", "train, interrupt, resume"}
        for path in result.paths.values():
            assert Path(path).exists()
    assert said[:6] == said[6:]


def test_demo_refuses_a_directory_of_yours(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(StorageError, match="did not make"):
        run_demo(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"
