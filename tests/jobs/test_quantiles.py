"""Quantiles of scans: against numpy, in one process and on a cluster, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import open_dataset
from batchloom.dataplane.errors import (
    ColumnTypeError,
    InvalidValueError,
    MissingColumnError,
    ParameterError,
)
from batchloom.dataplane.sketch import Pass, quantile_rank
from batchloom.jobs.engine import Engine
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.quantiles import Packed, count_pass, scan_quantiles
from batchloom.jobs.scanning import scan
from batchloom.jobs.tasks import group_tasks
from batchloom.tests.dataplane.test_sketch import hard_losses

SHARES = [0, 0.001, 0.01, 0.5, 0.5, 0.3, 0.99, 1]
SIZES = (9000, 0, 1, 4000, 2999)


def table(start: int, stop: int) -> pa.Table:
    x = hard_losses(16_000)[start:stop]
    return pa.table(
        {
            "loss": x,
            "wide": x.astype(np.float64) * (1 + 1e-12),
            "half": x.astype(np.float16),
            "count": np.arange(start, stop) ** 2 % 1009 - 500,
            "small": (np.arange(start, stop) % 251).astype(np.uint8),
            "text": pa.array([str(i) for i in range(start, stop)], pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(x, 2)), 2),
            "holes": pa.array([None if i % 3 == 0 else i for i in range(start, stop)], pa.int32()),
        }
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantiles")
    ends = np.cumsum(SIZES).tolist()
    for number, (rows, end) in enumerate(zip(SIZES, ends, strict=True)):
        pq.write_table(table(end - rows, end), folder / f"part-{number}.parquet",
                       row_group_size=700)  # fmt: skip
    return folder


def expected(values: np.ndarray[Any, Any]) -> list[Any]:
    line = np.sort(values)
    return [line[quantile_rank(q, len(line)) - 1] for q in SHARES]


class Told(QuietProgress):
    """Keeps warnings and the names of steps."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.steps: list[str] = []

    def step(self, label: str, rows: int) -> Any:
        self.steps.append(label)
        return super().step(label, rows)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_quantiles_are_numpys(data: Path) -> None:
    columns = ["loss", "wide", "half", "count", "small"]
    told = Told()
    found = scan(data, statistics=False, quantiles=dict.fromkeys(columns, SHARES), progress=told)
    whole = pq.read_table(data)
    for column in found.quantiles:
        values = whole[column.name].to_numpy()
        assert (column.values, column.invalid) == (len(values), 0)
        assert [q.value for q in column.quantiles] == expected(values), column.name
        assert [q.share for q in column.quantiles] == SHARES
        assert {q.value.dtype for q in column.quantiles} == {values.dtype}
    assert [c.name for c in found.quantiles] == columns
    assert told.steps == [f"quantiles, pass {n}" for n in (1, 2, 3, 4)]
    assert found.columns == ()


def test_a_narrow_column_is_scanned_twice(data: Path) -> None:
    for column, passes in (("loss", 2), ("half", 1), ("small", 1), ("wide", 4)):
        told = Told()
        scan(data, statistics=False, quantiles={column: [0.3, 0.7]}, progress=told)
        assert len(told.steps) == passes, column


@pytest.mark.parametrize("task_bytes", [1, 60_000, 1 << 30])
def test_tasks_and_workers_change_nothing(data: Path, task_bytes: int) -> None:
    dataset, wanted = open_dataset(data), {"loss": SHARES, "holes": [0.25]}
    found = [
        scan_quantiles(dataset, engine, QuietProgress(), wanted, on_invalid="drop",
                       task_bytes=size)
        for engine, size in ((Engine(workers=0), 1 << 20), (Engine(workers=0), task_bytes))
    ]  # fmt: skip
    assert found[0] == found[1]


def test_a_cluster_finds_the_same(data: Path) -> None:
    wanted = {"loss": SHARES, "wide": SHARES}
    with Engine(workers=2) as engine:
        there = scan(data, quantiles=wanted, engine=engine)
        dataset = open_dataset(data)
        many = scan_quantiles(dataset, engine, QuietProgress(), wanted, task_bytes=1)
    here = scan(data, quantiles=wanted)
    assert there.to_json() == here.to_json()
    assert many == here.quantiles
    with Engine(workers=2) as engine, pytest.raises(InvalidValueError, match="holes"):
        scan(data, quantiles={"holes": [0.5]}, engine=engine)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nulls_and_nan_are_counted_and_named(make_dataset: Callable[..., Path], dtype: Any) -> None:
    x = np.arange(300, dtype=dtype)
    x[[7, 290]] = np.nan
    valid = np.ones(300, bool)
    valid[[3, 150, 151, 152]] = False
    column = pa.array(x, mask=~valid)
    parts = [pa.table({"x": column.slice(a, b - a)}) for a, b in ((0, 140), (140, 141), (141, 300))]
    folder = make_dataset(*parts)
    with pytest.raises(
        InvalidValueError,
        match=r"^6 rows hold NaN or null values in x: 3, 7, 150, 151, 152, …\. Mend them, or",
    ):
        scan(folder, quantiles={"x": [0.5]})
    told = Told()
    (found,) = scan(folder, quantiles={"x": [0.5, 1]}, on_invalid="drop", progress=told).quantiles
    left = np.sort(x[valid & ~np.isnan(x)])
    assert (found.values, found.invalid) == (294, 6)
    assert [(q.rank, q.value) for q in found.quantiles] == [(147, left[146]), (294, 299)]
    assert told.warnings == [
        "6 rows hold NaN or null values in x and are left out: 3, 7, 150, 151, 152, …"
    ]


def test_invalid_rows_go_by_their_row_ids(make_dataset: Callable[..., Path]) -> None:
    folder = make_dataset(pa.table({"x": [1.0, 2.0]}), pa.table({"x": [3.0]}))
    scan(folder, out=folder / "snap.json", statistics=False)
    (folder / "part-1.parquet").unlink()
    pq.write_table(pa.table({"x": [4.0, float("nan")]}), folder / "part-9.parquet")
    with pytest.raises(InvalidValueError, match=r"1 rows hold NaN or null values in x: 4\."):
        scan(folder, since=folder / "snap.json", quantiles={"x": [0.5]})


@pytest.mark.parametrize("values", [[], [None, None], [float("nan")]])
def test_no_value_has_no_quantile(make_dataset: Callable[..., Path], values: list[Any]) -> None:
    folder = make_dataset(pa.table({"x": pa.array(values, pa.float32())}))
    result = scan(folder, quantiles={"x": [0.5]}, on_invalid="drop")
    (found,) = result.quantiles
    assert (found.values, found.invalid, found.quantiles[0].value) == (0, len(values), None)
    assert result.to_json()["quantiles"][0]["quantiles"] == [
        {"share": 0.5, "rank": None, "value": None}
    ]


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ({"los": [0.5]}, MissingColumnError, "Did you mean 'loss'"),
        ({"text": [0.5]}, ColumnTypeError, "'text' is string: quantiles need one number a row"),
        ({"vector": [0.5]}, ColumnTypeError, "quantiles need one number a row"),
        ({"loss": [1.5]}, ParameterError, r"in the range \[0, 1\]. Got 1.5"),
        ({"loss": []}, ParameterError, "1 to 100 quantiles of a column. Got 0 of 'loss'"),
        ({"loss": [0.5] * 101}, ParameterError, "Got 101 of 'loss'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(
    data: Path, wanted: Any, error: type[Exception], message: str
) -> None:
    told = Told()
    with pytest.raises(error, match=message):
        scan(data, quantiles=wanted, progress=told)
    assert not told.steps


def test_a_scan_without_quantiles_is_what_it_was(data: Path) -> None:
    assert "quantiles" not in scan(data, statistics=False).to_json()


# --- what travels ---------------------------------------------------------------------------------


def test_results_of_tasks_are_small(make_dataset: Callable[..., Path]) -> None:
    rows = 400_000
    draw = np.random.default_rng(0)
    bits = draw.integers(0, 1 << 32, rows, dtype=np.uint32)  # the worst: every bin is used
    folder = make_dataset(pa.table({"bits": bits, "loss": draw.gamma(2.0, 0.5, rows).astype("f4")}))
    dataset = open_dataset(folder)
    (task,) = group_tasks(dataset.present())
    eight = tuple(range(0x3F80, 0x3F88))
    for steps, most in (
        ({"bits": Pass("<u4")}, 110_000),
        ({"loss": Pass("<f4")}, 4_000),
        ({"loss": Pass("<f4", 16, tuple(p | 0x8000 for p in eight))}, 512 << 10),
    ):
        found = count_pass(task, steps, dataset.schema)
        assert len(pickle.dumps(found)) < most
        for name, (packed, _) in found.items():
            values = pq.read_table(folder)[name].to_numpy()
            assert (packed.unpack() == steps[name].count(values)).all()


@pytest.mark.parametrize("highest", [0, 255, 256, 70_000, 1 << 40])
def test_counts_are_packed_without_loss(highest: int) -> None:
    counts = np.zeros((2, 65_536), np.int64)
    counts[1, 7], counts[0, 65_535] = highest, min(highest, 3)
    found = Packed.pack(counts).unpack()
    assert found.dtype == np.int64
    assert (found == counts).all()


# --- the command line -----------------------------------------------------------------------------


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("batchloom")
    return subprocess.run([str(script), *map(str, arguments)], capture_output=True, text=True,
                          check=False)  # fmt: skip


def test_the_verb(data: Path) -> None:
    asked = ["--quantiles", "loss=0.5,1", "--quantiles", "count=0.1", "--quantiles", "loss=0.01"]
    ran = run("scan", data, "--workers", 0, "--no-statistics", *asked)
    assert ran.returncode == 0, ran.stderr
    loss = pq.read_table(data)["loss"].to_numpy()
    line = np.sort(loss)
    assert ["loss", "0.5", str(line[7999]), "8,000", "16,000", "0"] in [
        text.split() for text in ran.stdout.splitlines()
    ]
    ran = run("scan", data, "--workers", 0, "--no-statistics", "--json", *asked)
    found = {c["name"]: c for c in json.loads(ran.stdout)["quantiles"]}
    assert [q["share"] for q in found["loss"]["quantiles"]] == [0.5, 1, 0.01]
    assert found["loss"]["quantiles"][0]["value"] == float(line[7999])
    assert found["loss"]["quantiles"][1]["value"] == "Infinity"
    assert (found["count"]["values"], found["count"]["invalid"]) == (16_000, 0)


@pytest.mark.parametrize("text", ["loss", "=0.5", "loss=", "loss=half", "0.5"])
def test_the_option_says_how_it_is_written(data: Path, text: str) -> None:
    ran = run("scan", data, "--quantiles", text)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "batchloom: --quantiles takes a column and shares, such as loss=0.5,0.99. "
        f"Got '{text}' instead.\n"
    )


def test_the_verb_refuses_or_drops(data: Path) -> None:
    asked = ["scan", data, "--workers", 0, "--no-statistics", "--quantiles", "holes=0.5"]
    ran = run(*asked)
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "rows hold NaN or null values in holes: 0, 3, 6, 9, 12, …. Mend them" in ran.stderr
    ran = run(*asked, "--on-invalid", "drop")
    assert ran.returncode == 0
    assert "are left out" in ran.stderr
