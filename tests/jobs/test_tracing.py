"""Trace against the plan read row by row."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import Manifest, open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    JobSpecError,
    ManifestError,
    MissingColumnError,
    RowIdError,
    SelectionError,
)
from batchloom.dataplane.plan import Ragged
from batchloom.jobs import plan, trace
from batchloom.jobs.tracing import RowTrace, StepTrace
from batchloom.tests.contracts.plans import EPOCHS, awkward_manifest
from batchloom.tests.jobs.conftest import small_table, write_small


@pytest.fixture(scope="module")
def data(awkward_data: Callable[[str], Path]) -> Path:
    return awkward_data("ipc")


@pytest.fixture(scope="module")
def manifest(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return awkward_manifest(tmp_path_factory.mktemp("trace") / "m", data)


def step_of(*args: Any, **options: Any) -> StepTrace:
    found = trace(*args, **options)
    assert isinstance(found, StepTrace)
    json.dumps(found.to_json(), allow_nan=False)
    return found


def rows_of(*args: Any, **options: Any) -> RowTrace:
    found = trace(*args, **options)
    assert isinstance(found, RowTrace)
    json.dumps(found.to_json(), allow_nan=False)
    return found


def places(found: RowTrace) -> dict[int, list[tuple[int, ...]]]:
    return {
        r.row: [(p.epoch, p.step, p.micro, p.position, p.weight) for p in r.found]
        for r in found.rows
    }


def every_place(manifest: Any) -> dict[int, list[tuple[Any, ...]]]:
    """Walk the whole plan, one row at a time."""
    found: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for number in manifest.epochs:
        epoch = manifest.epoch(number)
        for index in range(len(epoch)):
            batch = epoch[index]
            for position, row in enumerate(batch.rows.tolist()):
                weight = 1.0 if batch.weights is None else float(batch.weights[position])
                found[row].append((number, batch.step, batch.micro, position, weight))
    return found


# --- steps ----------------------------------------------------------------------------------------


def test_a_step_with_everything_that_belongs_to_it(manifest: Manifest, data: Path) -> None:
    dataset = open_dataset(data)
    for number, step in ((0, 0), (2, 7), (3, 40)):
        found = step_of(manifest.path, data, epoch=number, step=step)
        expected = manifest.epoch(number).step(step)
        assert (found.manifest_id, found.epoch, found.step) == (manifest.manifest_id, number, step)
        assert [b.micro for b in found.micro_batches] == expected.micro.tolist()
        assert [b.side["tag"] for b in found.micro_batches] == expected.side["tag"].tolist()
        rows = [r for b in found.micro_batches for r in b.rows]
        assert [r.row for r in rows] == expected.rows.tolist()
        assert expected.weights is not None
        assert [r.weight for r in rows] == [float(w) for w in expected.weights]
        near = expected.side["near"]
        assert isinstance(near, Ragged)
        for i, row in enumerate(rows):
            score = float(expected.side["score"][i])
            assert row.side["score"] == ("nan" if np.isnan(score) else score)
            assert row.side["flag"] == bool(expected.side["flag"][i])
            assert row.side["near"] == near.slice(i, i + 1).values.tolist()
            fragment = dataset.snapshot.fragments[
                dataset.snapshot.locate(expected.rows[i : i + 1])[0][0]
            ]
            assert (row.source, row.fragment) == ("data", fragment.path)
            assert fragment.first_row_id + row.offset == row.row
            assert row.columns is not None
            assert row.columns["row"] == row.row
            assert row.columns["y"] == row.row % 10
            assert row.columns["color"] in ("red", "green", "blue")
            assert len(row.columns) == len(dataset.schema.names)
        positions = [[r.position for r in b.rows] for b in found.micro_batches]
        assert positions == [list(range(n)) for n in np.diff(expected.offsets).tolist()]


def test_columns_are_read_only_where_a_dataset_is_named(manifest: Manifest, data: Path) -> None:
    row = step_of(manifest, epoch=0, step=0).micro_batches[0].rows[0]
    assert row.columns is None
    row = (
        step_of(manifest, data, columns=["text", "list"], epoch=0, step=0).micro_batches[0].rows[0]
    )
    assert row.columns is not None
    assert sorted(row.columns) == ["list", "text"]
    with pytest.raises(MissingColumnError, match="no column 'tex'.* Did you mean 'text'"):
        trace(manifest, data, columns=["tex"], epoch=0, step=0)


def test_values_are_written_as_json_holds_them(make_dataset: Any, tmp_path: Path) -> None:
    table = pa.table(
        {
            "f": [float("nan"), float("inf"), 1.5],
            "b": pa.array([b"\x00\xff", None, b""], pa.binary()),
            "s": [{"a": 1, "b": [1.0, float("-inf")]}, None, {"a": None, "b": []}],
            "t": pa.array([0, 1, None], pa.timestamp("s", tz="UTC")),
            "d": pa.array([1, 2, 3], pa.decimal128(5, 2)),
            "u": pa.array([0, 1, 2], pa.time32("s")),
        }
    )
    data = make_dataset(table)
    plan("shuffle", data, out=tmp_path / "p", batch_size=3, workers=0)
    found = {r.row: r.columns for r in rows_of(tmp_path / "p", data, row=[0, 1, 2]).rows}
    assert found == {
        0: {"f": "nan", "b": "AP8=", "s": {"a": 1, "b": [1.0, "-inf"]},
            "t": "1970-01-01T00:00:00+00:00", "d": "1.00", "u": "00:00:00"},
        1: {"f": "inf", "b": None, "s": None, "t": "1970-01-01T00:00:01+00:00", "d": "2.00",
            "u": "00:00:01"},
        2: {"f": 1.5, "b": "", "s": {"a": None, "b": []}, "t": None, "d": "3.00", "u": "00:00:02"},
    }  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------


def test_rows_are_found_wherever_they_are(manifest: Manifest) -> None:
    everywhere = every_place(manifest)
    assert max(len([p for p in v if p[0] == 2]) for v in everywhere.values()) > 2
    for row in range(0, 10_007, 501):
        assert places(rows_of(manifest, row=row)) == {row: everywhere[row]}
    many = rows_of(manifest.path, row=range(100, 160))
    assert places(many) == {row: everywhere[row] for row in range(100, 160)}
    for row in many.rows:
        there = {p.epoch for p in row.found}
        assert row.absent == tuple(e for e in EPOCHS if e not in there)
    assert any(r.absent == (0, 2) for r in many.rows)


def test_only_one_epoch(manifest: Manifest) -> None:
    everywhere = every_place(manifest)
    found = rows_of(manifest, row=1002, epoch=0)
    assert found.epochs == (0,)
    assert places(found) == {1002: [p for p in everywhere[1002] if p[0] == 0]}
    with pytest.raises(ManifestError, match="holds no epoch 1"):
        trace(manifest, row=1002, epoch=1)


def test_a_row_beyond_the_dataset(manifest: Manifest) -> None:
    with pytest.raises(RowIdError, match="Row 10007 is in no fragment"):
        trace(manifest, row=10_007)


def test_recipes_are_searched_too(small: Path, tmp_path: Path) -> None:
    recipe = plan("shuffle", small, out=tmp_path / "r", batch_size=64, epochs=3, form="recipe",
                  where="row != 17", micro_per_step=2, workers=0)  # fmt: skip
    everywhere = every_place(recipe)
    assert places(rows_of(recipe, row=[17, 18, 999])) == {r: everywhere[r] for r in (17, 18, 999)}
    (gone,) = rows_of(recipe, row=17).rows
    assert (gone.found, gone.absent) == ((), (0, 1, 2))
    step = step_of(recipe, small, epoch=1, step=3, columns=["row"])
    assert [b.micro for b in step.micro_batches] == [0, 1]


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "rows"),
    [
        ("text", "row 25", [25]),
        ("text", "", list(range(0, 10_007, 11))),
        ("row", "9999", [9999]),
        ("row", 9999, [9999]),
        ("u64", str(77 << 40), [77]),
        ("when", "1970-01-01T00:00:05", [5]),
        ("text", "row", []),
    ],
)
def test_rows_with_a_key(
    manifest: Manifest, data: Path, key: str, value: Any, rows: list[int]
) -> None:
    everywhere = every_place(manifest)
    found = rows_of(manifest, data, key=key, value=value, columns=["row"])
    assert places(found) == {row: everywhere[row] for row in rows}
    assert [r.columns for r in found.rows] == [{"row": row} for row in rows]


def test_dictionaries_are_compared_by_value(manifest: Manifest, data: Path) -> None:
    found = rows_of(manifest, data, key="color", value="red", columns=["color"])
    assert len(found.rows) == 3336
    assert {r.columns["color"] for r in found.rows if r.columns} == {"red"}


def test_keys_that_cannot_be(manifest: Manifest, data: Path, monkeypatch: Any) -> None:
    with pytest.raises(SelectionError, match="The value 'x' cannot be read as the type of 'row'"):
        trace(manifest, data, key="row", value="x")
    with pytest.raises(MissingColumnError, match="no column 'txt'"):
        trace(manifest, data, key="txt", value="x")
    monkeypatch.setattr("batchloom.jobs.tracing._ROWS_AT_MOST", 3000)
    with pytest.raises(
        SelectionError, match="3,336 rows have 'color' = 'red', more than the 3,000"
    ):
        trace(manifest, data, key="color", value="red")


def test_only_fragments_with_planned_rows_need_to_be_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_small(tmp_path / "data", (100, 50, 30))
    made = plan("shuffle", data, out=tmp_path / "p", where="row < 100", batch_size=10, workers=0)
    assert [r.row for r in rows_of(made, data, key="key", value="doc-120").rows] == [120]
    (data / "part-1.parquet").unlink()
    assert rows_of(made, data, key="key", value="doc-120").rows == ()
    assert [r.row for r in rows_of(made, data, key="key", value="doc-20").rows] == [20]
    assert "Of the 3 fragments that" in caplog.text
    assert rows_of(made, data, row=20).rows[0].columns is not None
    pq.write_table(small_table(0, 99), data / "part-0.parquet")
    with pytest.raises(DatasetChangedError, match="part-0"):
        trace(made, data, key="key", value="doc-20")


# --- series and sources ---------------------------------------------------------------------------


@pytest.fixture
def series(tmp_path: Path) -> tuple[Path, Path]:
    """Three members; the dataset grows before the second, a file is rewritten before the third."""
    data, out = write_small(tmp_path / "data", (100, 50)), tmp_path / "s"
    for epochs in ("0:1", "1:3", "3:4"):
        plan("shuffle", data, out=out, series=True, epochs=epochs, batch_size=10, workers=0)
        if epochs == "0:1":
            pq.write_table(small_table(150, 180), data / "part-2.parquet")
        elif epochs == "1:3":
            shutil.copy(data / "part-1.parquet", tmp_path / "old.parquet")
            pq.write_table(small_table(100, 140), data / "part-1.parquet")
    return data, out


def test_a_series_is_searched_whole(series: tuple[Path, Path]) -> None:
    data, out = series
    found = rows_of(out, row=[5, 120, 160, 190])
    assert found.epochs == (0, 1, 2, 3)
    assert {r.row: r.absent for r in found.rows} == {
        5: (),
        120: (3,),  # rewritten before epoch 3
        160: (0,),
        190: (0, 1, 2),
    }
    assert step_of(out, data, epoch=3, step=2, columns=["row"]).micro_batches[0].rows[0].columns
    with pytest.raises(JobSpecError, match="Say of which epoch step 2 is; .* holds 0, 1, 2, 3"):
        trace(out, step=2)


def test_a_key_in_a_series(series: tuple[Path, Path]) -> None:
    data, out = series
    with pytest.raises(DatasetChangedError, match="part-1"):  # epochs 0 to 2 planned the old file
        trace(out, data, key="key", value="doc-7")
    member = out / "epochs-000003-000004"
    (row,) = rows_of(member, data, key="key", value="doc-110").rows
    assert (row.row, [p.epoch for p in row.found]) == (190, [3])


def test_sources_with_columns_of_their_own(tmp_path: Path) -> None:
    for name, table in (
        ("web", pa.table({"x": [1, 2], "url": ["a", "b"]})),
        ("books", pa.table({"x": [3, 4], "isbn": ["c", "d"]})),
    ):
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "part.parquet")
    sources = {"web": tmp_path / "web", "books": tmp_path / "books"}
    made = plan("shuffle", sources, out=tmp_path / "p", batch_size=4, workers=0)
    (batch,) = step_of(made, sources, step=0).micro_batches
    assert {r.row: (r.source, r.columns) for r in batch.rows} == {
        0: ("books", {"x": 3, "isbn": "c"}),
        1: ("books", {"x": 4, "isbn": "d"}),
        2: ("web", {"x": 1, "url": "a"}),
        3: ("web", {"x": 2, "url": "b"}),
    }
    (batch,) = step_of(made, sources, step=0, columns=["isbn"]).micro_batches
    assert {r.row: r.columns for r in batch.rows}[3] == {}


# --- what is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Name one thing to trace"),
        ({"step": 1, "row": 2, "epoch": 0}, "Name one thing to trace"),
        ({"key": "text", "value": "x"}, "A key is looked for in the dataset"),
        ({"row": 1, "columns": ["text"]}, "Columns are read from the dataset"),
        ({"step": 3}, "Say of which epoch step 3 is"),
    ],
)
def test_questions_that_are_none(manifest: Manifest, options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobSpecError, match=message):
        trace(manifest, **options)


def test_a_step_that_is_not_there(manifest: Manifest) -> None:
    with pytest.raises(ManifestError, match="holds no step 9999"):
        trace(manifest, epoch=0, step=9999)
