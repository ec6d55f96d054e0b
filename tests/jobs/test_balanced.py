"""Balanced clusters as a job: the labels that they have in memory, whatever fits where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.clustering import BalancedKMeans
from batchloom.dataplane import Manifest, SignalStore, open_dataset
from batchloom.dataplane.errors import BatchloomError, InvalidValueError, JobSpecError
from batchloom.jobs import balanced_labels, plan, planning, rank_tasks
from batchloom.jobs.budget import Budget

ROWS, WIDTH = 3000, 6


def table(bad: dict[int, float] | None = None) -> pa.Table:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((9, WIDTH))[draw.integers(0, 9, ROWS)]
    x = (x + 0.3 * draw.standard_normal((ROWS, WIDTH))).astype(np.float32)
    x[100:140] = x[100]  # equal rows
    for row, value in (bad or {}).items():
        x[row, 1] = value
    return pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)})


def write(folder: Path, rows: pa.Table, parts: int = 4) -> Path:
    folder.mkdir(parents=True)
    for number, part in enumerate(np.array_split(np.arange(len(rows)), parts)):
        pq.write_table(rows.take(part), folder / f"{number}.parquet", row_group_size=200)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("balanced") / "data", table())


def planned(data: Path, out: Path, **options: Any) -> Manifest:
    given = {"columns": "x", "size": 50, "batch_size": 100, "workers": 0, "seed": 7, **options}
    return plan("balanced", data, out=out, **given)


def labels_of(manifest: Manifest) -> Any:
    """The cluster of each row, from micro-batches of one cluster each."""
    whole = manifest.epoch(0).plan()
    labels = np.full(ROWS, -1)
    labels[whole.rows.astype(int)] = np.repeat(whole.side["cluster"], np.diff(whole.offsets))
    return labels


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_as_in_memory(data: Path, tmp_path: Path, metric: Any) -> None:
    made = planned(data, tmp_path / "p", metric=metric, batches="within")
    x = np.array(table().column("x").to_pylist(), np.float32)
    expected = BalancedKMeans(size=50, seed=7, metric=metric).labels(x)
    assert labels_of(made).tolist() == expected.tolist()
    assert made.provenance["reports"]["balanced"] == {
        "clusters": 60, "sizes": [50, 50], "invalid_rows": 0,
    }  # fmt: skip


def test_batches_of_whole_clusters(data: Path, tmp_path: Path) -> None:
    made = planned(data, tmp_path / "p")
    assert made.unit == "micro"
    assert np.diff(made.epoch(0).plan().offsets).tolist() == [100] * 30


@pytest.mark.parametrize("leaf_rows", [40, 300, 1000])
@pytest.mark.parametrize("workers", [0, 2])
def test_level_by_level_the_labels_are_the_same(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leaf_rows: int, workers: int
) -> None:
    if workers and leaf_rows != 300:
        pytest.skip("one size is enough for processes")
    whole = planned(data, tmp_path / "a", k=47, size=None)
    each = 3 * 4 * WIDTH + 64
    monkeypatch.setattr(balanced_labels, "_LEAF_BYTES", leaf_rows * each)
    monkeypatch.setattr(balanced_labels, "_LEAVES", 3)  # so that leaves are searched again
    monkeypatch.setattr(rank_tasks, "TASK_BYTES", 4 * WIDTH * 700)
    monkeypatch.setattr(rank_tasks, "READ_BYTES", 4 * WIDTH * 90)
    budget = Budget(1 << 30, workers, 1 << 29 if workers else None, 20_000)
    monkeypatch.setattr(planning, "make_budget", lambda *_: budget)
    parts = planned(data, tmp_path / "b", k=47, size=None, task_bytes=5000)
    assert parts.manifest_id == whole.manifest_id


def test_rows_that_are_not_finite(tmp_path: Path) -> None:
    data = write(tmp_path / "data", table({5: np.nan, 700: np.inf}))
    with pytest.raises(InvalidValueError, match="2 rows .* x: 5, 700"):
        planned(data, tmp_path / "p")
    made = planned(data, tmp_path / "p", on_invalid="drop", batches="within")
    x = np.array(table().column("x").to_pylist(), np.float32)
    kept = np.delete(np.arange(ROWS), [5, 700])
    expected = BalancedKMeans(size=50, seed=7).labels(x[kept], kept)
    assert labels_of(made)[kept].tolist() == expected.tolist()
    assert made.provenance["reports"]["balanced"]["invalid_rows"] == 2


def test_embeddings_of_a_signal(data: Path, tmp_path: Path) -> None:
    x = np.array(table().column("x").to_pylist(), np.float32)
    with SignalStore.for_writing(tmp_path / "s", open_dataset(data)) as store:
        store.append(np.arange(ROWS), epoch=0, step=0, embedding=x)
    options: dict[str, Any] = {"signal": tmp_path / "s", "epochs": (1, 2)}
    made = planned(data, tmp_path / "p", columns=None, feature="embedding", **options)
    same = planned(data, tmp_path / "q", epochs=(1, 2))
    assert made.epoch(1).plan().rows.tolist() == same.epoch(1).plan().rows.tolist()
    assert made.identity["signals"] == store.digest("embedding", before=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 3}, JobSpecError, "either 'k', .* or 'size'"),
        ({"size": None}, JobSpecError, "either 'k', .* or 'size'"),
        ({"columns": None}, JobSpecError, "balanced .*name columns"),
        ({"k": 4000, "size": None}, BatchloomError, "k = 4000 clusters of 3000 rows"),
        ({"size": 200}, BatchloomError, "Cluster 0 has 200 rows, more than a micro-batch of 100"),
    ],
)
def test_bad_jobs(
    data: Path, tmp_path: Path, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(data, tmp_path / "p", **options)
    assert not list(tmp_path.iterdir())
