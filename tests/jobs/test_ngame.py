"""NGAME as a job: the micro-batches that it makes in memory, from columns and signals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.clustering import NGAME
from batchloom.dataplane import Manifest, Series, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    ColumnTypeError,
    InvalidValueError,
    JobSpecError,
)
from batchloom.jobs import balanced_labels, mining_tasks, plan, planning
from batchloom.jobs.budget import Budget
from batchloom.jobs.cli.app import build
from batchloom.samplers import ManifestLoader, false_negatives, triplet_loss
from scipy.sparse import csr_array

ROWS, WIDTH, LABELS = 900, 8, 40


def table(bad: dict[int, float] | None = None, bare: tuple[int, ...] = ()) -> pa.Table:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((9, WIDTH))[draw.integers(0, 9, ROWS)]
    x = (x + 0.4 * draw.standard_normal((ROWS, WIDTH))).astype(np.float32)
    labels = [draw.choice(LABELS, draw.integers(1, 4), replace=False).tolist() for _ in range(ROWS)]
    for row, value in (bad or {}).items():
        x[row, 1] = value
    for row in bare:
        labels[row] = []
    return pa.table(
        {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH),
            "labels": pa.array(labels, pa.list_(pa.int32())),
            "one": pa.array([row[0] if row else None for row in labels], pa.int64()),
            "name": pa.array([f"n{i % 3}" for i in range(ROWS)]),
        }
    )


def write(folder: Path, rows: pa.Table, parts: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), parts)):
        pq.write_table(rows.take(part), folder / f"{number}.parquet", row_group_size=100)
    return folder


X = np.array(table().column("x").to_pylist(), np.float32)


def sparse(rows: pa.Table, column: str = "labels") -> Any:
    y = np.zeros((len(rows), LABELS), bool)
    for row, found in enumerate(rows.column(column).to_pylist()):
        y[row, found] = True
    return csr_array(y)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("ngame") / "data", table())


def planned(data: Path, out: Path, **options: Any) -> Manifest:
    given = {
        "columns": "x", "labels": "labels", "cluster_size": 20, "batch_size": 64, "workers": 0,
        "seed": 7, "epochs": (3, 4), **options,
    }  # fmt: skip
    return plan("ngame", data, out=out, **given)


def same(found: Any, expected: Any) -> None:
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.offsets.tolist() == expected.offsets.tolist()
    for name, value in expected.side.items():
        mine = found.side[name]
        if name in ("mask", "negatives", "scores"):
            assert mine.offsets.tolist() == value.offsets.tolist()
            mine, value = mine.values, value.values
        assert np.asarray(mine).tolist() == np.asarray(value).tolist(), name


# --- the same as in memory ------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["labels", "one", None])
@pytest.mark.parametrize("size", [20, 1])
def test_as_in_memory(data: Path, tmp_path: Path, column: str | None, size: int) -> None:
    made = planned(data, tmp_path / "p", labels=column, cluster_size=size)
    labels = None if column is None else sparse(table(), column)
    method = NGAME(batch_size=64, cluster_size=size, seed=7)
    same(made.epoch(3).plan(), method.batches(X, labels, epoch=3))
    assert made.unit == "micro"
    made.verify(deep=True)


def test_whatever_the_parts_the_workers_and_the_memory(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(data, tmp_path / "a", epochs=(0, 2)).manifest_id
    monkeypatch.setattr(mining_tasks, "_WORK", 3 * 64**2 * 64.0)  # three micro-batches a task
    assert planned(data, tmp_path / "b", epochs=(0, 2), task_bytes=4000).manifest_id == first
    assert planned(data, tmp_path / "c", epochs=(0, 2), workers=2).manifest_id == first
    each = 3 * 4 * WIDTH + 64
    monkeypatch.setattr(balanced_labels, "_LEAF_BYTES", 150 * each)
    budget = Budget(1 << 30, 0, None, 10_000)
    monkeypatch.setattr(planning, "make_budget", lambda *_: budget)
    assert planned(data, tmp_path / "d", epochs=(0, 2)).manifest_id == first


def test_embeddings_of_a_signal_epoch_after_epoch(data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(data)
    options: dict[str, Any] = {
        "columns": None, "feature": "embedding", "signal": tmp_path / "s", "cluster_size": None,
        "schedule": {2: 8, 4: 32}, "refresh_every": 2,
    }  # fmt: skip
    turned = [X, X[:, ::-1].copy() + X]
    for epoch, x in zip((1, 3), turned, strict=True):
        with SignalStore.for_writing(tmp_path / "s", dataset) as store:
            store.append(np.arange(ROWS), epoch=epoch, step=0, embedding=x)
        planned(data, tmp_path / "p", epochs=(epoch + 1, epoch + 3), **options)
    series = Series.open(tmp_path / "p")
    assert series.epochs == (2, 3, 4, 5)
    method = NGAME(batch_size=64, schedule={2: 8, 4: 32}, refresh_every=2, seed=7)
    for epoch in (2, 3, 4, 5):
        expected = method.batches(turned[epoch // 2 - 1], sparse(table()), epoch=epoch)
        same(series.epoch(epoch).plan(), expected)


def test_a_training_step(data: Path, tmp_path: Path) -> None:
    import torch

    planned(data, tmp_path / "p", epochs=(0, 1))
    y = sparse(table()).toarray()
    for batch in ManifestLoader(tmp_path / "p", data, columns=["x"]):
        mask = false_negatives(batch.side["mask"])
        positive = batch.side["positive"].numpy()
        rows = batch.rows.numpy()
        assert (mask.numpy() == (y[rows][:, positive] | np.eye(len(rows), dtype=bool))).all()
        x = torch.nn.functional.normalize(batch["x"])
        assert torch.isfinite(triplet_loss(x @ x.T, mask)).all()


def test_what_inspect_prints(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = planned(data, tmp_path / "p")
    told = made.provenance["reports"]["ngame"]["epochs"]["3"]
    assert told["rows"] == ROWS
    assert told["rows_without_negatives"] == 0
    assert told["masked_pairs"] == len(made.epoch(3).plan().side["mask"].values)
    arguments = ["inspect", str(tmp_path / "p")]
    build(arguments)(arguments, standalone_mode=False)
    printed = capsys.readouterr().out
    assert "ngame, epoch 3: 45 clusters of about 20 rows, 3 a micro-batch; " in printed
    assert "cosine of the hardest negative 0." in printed


# --- bad input ------------------------------------------------------------------------------------


def test_rows_that_cannot_take_part(tmp_path: Path) -> None:
    rows = table({5: np.nan}, bare=(7, 300))
    data = write(tmp_path / "data", rows)
    with pytest.raises(InvalidValueError, match="1 rows .* x: 5"):
        planned(data, tmp_path / "p")
    fine = write(tmp_path / "fine", table(bare=(7, 300)))
    with pytest.raises(InvalidValueError, match="2 rows hold no values in labels: 7, 300"):
        planned(fine, tmp_path / "p")
    made = planned(data, tmp_path / "p", on_invalid="drop").epoch(3).plan()
    kept = np.delete(np.arange(ROWS), [5, 7, 300])
    method = NGAME(batch_size=64, cluster_size=20, seed=7)
    expected = method.batches(X[kept], sparse(rows)[kept], ids=kept, epoch=3)
    assert made.rows.tolist() == kept[expected.rows.astype(int)].tolist()
    assert made.side["positive"].tolist() == expected.side["positive"].tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"columns": None}, JobSpecError, "ngame .*name columns"),
        ({"cluster_size": None}, JobSpecError, "either 'cluster_size'.* Got neither"),
        ({"batch_size": 1}, JobSpecError, "2 rows or more"),
        ({"labels": "name"}, ColumnTypeError, "'name' is string: labels are integers"),
        ({"labels": "label"}, BatchloomError, "'label'"),
        ({"shortlist": 65}, JobSpecError, r"'shortlist' parameter of ngame .*\[0, 64\]"),
    ],
)
def test_bad_jobs(
    data: Path, tmp_path: Path, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(data, tmp_path / "p", **options)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
