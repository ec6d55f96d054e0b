"""Selections within clusters as jobs: the rows chosen in memory, whatever the parts and workers."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.clustering import centroids
from batchloom.clustering.kmeans import KMeans, assign
from batchloom.clustering.near_duplicates import NearDuplicates
from batchloom.clustering.prototypes import Prototypes
from batchloom.dataplane import Manifest, SignalStore, open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    InvalidValueError,
    JobSpecError,
    SelectionError,
)
from batchloom.dataplane.rowset import RowSet
from batchloom.jobs import cluster_rows, plan, planning, rank_tasks, run
from batchloom.jobs.budget import Budget
from batchloom.jobs.context import JobContext
from batchloom.jobs.methods import METHODS, register
from batchloom.jobs.near_duplicates import NearDuplicateSelect
from batchloom.jobs.prototypes import PrototypeSelect
from batchloom.jobs.spec import JobSpec
from batchloom.jobs.stages import PlanState
from batchloom.tests.jobs.conftest import ROWS as SMALL_ROWS
from batchloom.tests.jobs.conftest import small_table

for stage in (NearDuplicateSelect, PrototypeSelect):
    if stage.method not in METHODS:
        register(stage)

ROWS, WIDTH, CLUSTERS = 2000, 12, 9
COPIES = 150


def made(bad: dict[int, float] | None = None) -> tuple[Any, Any]:
    """Rows in nine groups of unequal sizes, some of them nearly copies of others; their groups."""
    draw = np.random.default_rng(0)
    groups = draw.choice(CLUSTERS, ROWS, p=np.arange(1, CLUSTERS + 1) / 45)
    x = draw.standard_normal((CLUSTERS, WIDTH))[groups] * 2
    x = (x + draw.standard_normal((ROWS, WIDTH))).astype(np.float32)
    copies, of = draw.permutation(ROWS)[: 2 * COPIES].reshape(2, COPIES)
    x[copies] = x[of] * draw.uniform(0.5, 2, (COPIES, 1)) + 1e-3
    groups[copies] = groups[of]
    x[copies[:20]] = x[of[:20]]  # equal
    for row, value in (bad or {}).items():
        x[row, 1] = value
    return x, groups.astype(np.int32)


def write(folder: Path, x: Any, parts: int = 4) -> Path:
    folder.mkdir(parents=True)
    table = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH)})
    for number, part in enumerate(np.array_split(np.arange(len(x)), parts)):
        pq.write_table(table.take(part), folder / f"{number}.parquet", row_group_size=200)
    return folder


X, GROUPS = made()
IDS = np.arange(ROWS, dtype=np.uint64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("clusters") / "data", X)


def planned(method: str, data: Any, out: Path, **options: Any) -> Manifest:
    given = {"columns": "x", "batch_size": 50, "workers": 0, "seed": 7, **options}
    return plan(method, data, out=out, **given)


def rows_of(manifest: Manifest, epoch: int = 0) -> list[int]:
    return sorted(manifest.epoch(epoch).plan().rows.tolist())


def kmeans_labels(x: Any, ids: Any, k: int, *, unit: bool) -> Any:
    """The clusters that the stages make by themselves."""
    if unit:
        x = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
        x = x.astype(np.float32)
    model = KMeans(k=k, seed=7)
    sample = model.sample(ids)
    return assign(x, model.train(x[sample], ids[sample]))[0]


# --- the same rows as in memory -------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.99, "prefer": "nearest", "against": "kept"},
        {"threshold": 0.97, "prefer": "lowest-id"},
    ],
)
def test_near_duplicates_as_in_memory(data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    found = planned("near-duplicates", data, tmp_path / "p", k=8, **options)
    labels = kmeans_labels(X, IDS, 8, unit=True)
    expected = NearDuplicates(**options).find(X, labels)
    assert rows_of(found) == expected.rows.tolist()
    assert COPIES <= len(expected.removed) < ROWS / 2
    report = dict(found.provenance["reports"]["near-duplicates"])
    examples = report.pop("examples")
    assert report == {**expected.report, "invalid_rows": 0}
    named = {
        (int(r), int(o)): c
        for r, o, c in zip(expected.removed, expected.original, expected.cosines, strict=True)
    }
    assert len(examples) == 8
    for one in examples:
        assert named[one["removed"], one["near_duplicate_of"]] == one["cosine"]
    cosines = [one["cosine"] for one in examples]
    assert cosines == sorted(cosines)
    assert cosines[0] == expected.cosines.min()
    assert cosines[-1] == expected.cosines.max() == 1.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fraction": 0.35, "prefer": "nearest", "metric": "euclidean"},
        {"fraction": 0.5, "balance": 1.0},
        {"fraction": 0.213, "balance": 0.5, "metric": "euclidean"},
    ],
)
def test_prototypes_as_in_memory(data: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    found = planned("prototypes", data, tmp_path / "p", k=8, **options)
    labels = kmeans_labels(X, IDS, 8, unit=options.get("metric") != "euclidean")
    expected = Prototypes(**options).select(X, labels)
    assert rows_of(found) == expected.rows.tolist()
    assert len(expected.rows) == round(options.get("fraction", 0.8) * ROWS)
    report = dict(found.provenance["reports"]["prototypes"])
    for name in ("mean_distance", "selected_mean_distance"):
        assert report.pop(name) == pytest.approx(expected.report[name])
    assert report.pop("invalid_rows") == 0
    assert report.items() <= expected.report.items()


def test_clusters_by_default(data: Path, tmp_path: Path) -> None:
    found = planned("near-duplicates", data, tmp_path / "p")
    assert found.provenance["reports"]["near-duplicates"]["clusters"] == 45  # root of 2000
    assert found.identity["stages"][0]["parameters"] == {
        "columns": ["x"], "feature": "gradient", "k": None, "threshold": 0.95, "prefer": "farthest",
        "against": "earlier",
    }  # fmt: skip


# --- groups that came before ----------------------------------------------------------------------


@pytest.mark.parametrize("prefer", ["farthest", "nearest"])
def test_groups_of_the_state(job: JobContext, state: PlanState, prefer: Any) -> None:
    """A selection with gaps and groups, its rows in many pieces."""
    x = np.array(small_table(0, SMALL_ROWS).column("x").to_pylist(), np.float32)
    ids = state.rows.ids()
    assert state.groups is not None
    labels, mine = state.groups.load(), x[ids.astype(int)]

    one = NearDuplicateSelect(columns=["x"], threshold=0.999, prefer=prefer)
    kept = one.select(job, state, 0)
    expected = NearDuplicates(threshold=0.999, prefer=prefer).find(mine, labels, ids)
    assert kept.rows.ids().tolist() == ids[expected.rows].tolist()
    assert len(expected.removed)
    after = state.selected(job, kept)
    assert after.groups is not None
    assert after.groups.load().tolist() == labels[expected.rows.astype(int)].tolist()

    two = PrototypeSelect(
        columns=["x"], fraction=0.4, prefer=prefer, metric="euclidean", balance=0.3
    )
    chosen = Prototypes(fraction=0.4, prefer=prefer, metric="euclidean", balance=0.3)
    expected_rows = chosen.select(mine, labels, ids).rows
    assert two.select(job, state, 0).rows.ids().tolist() == ids[expected_rows].tolist()

    # With k they make clusters of their own.
    own = NearDuplicateSelect(columns=["x"], threshold=0.999, k=1).select(job, state, 0)
    assert (
        own.rows.ids().tolist()
        == ids[NearDuplicates(threshold=0.999).find(mine, None, ids).rows].tolist()
    )


def test_nothing_removed_is_the_same_set(job: JobContext) -> None:
    rows = RowSet(job.dataset.snapshot)
    groups = job.column([np.arange(SMALL_ROWS, dtype=np.int32)])  # a cluster a row
    state = PlanState(rows, None, groups)
    assert NearDuplicateSelect(columns=["x"]).select(job, state, 0).rows is rows
    found = PrototypeSelect(columns=["x"], fraction=1).select(job, state, 0)
    assert found.rows is rows
    assert found.report["saved"] == 0


def test_a_job_file_of_several_stages(data: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f"""dataset = "{data}"
out = "{tmp_path / "p"}"
batch_size = 32
epochs = "0:2"
workers = 0
seed = 7
[[stages]]
method = "kmeans"
columns = ["x"]
k = 5
[[stages]]
method = "near-duplicates"
columns = ["x"]
threshold = 0.98
[[stages]]
method = "prototypes"
columns = ["x"]
fraction = 0.5
balance = 1.0
"""
    )
    found = run(job)
    labels = KMeans(k=5, seed=7).fit(X).labels
    first = NearDuplicates(threshold=0.98).find(X, labels).rows.astype(int)
    second = Prototypes(fraction=0.5, balance=1).select(X[first], labels[first], IDS[first])
    expected = first[second.rows.astype(int)]
    for epoch in range(2):
        assert rows_of(found, epoch) == expected.tolist()
        whole = found.epoch(epoch).plan()  # micro-batches of one cluster each
        each = np.repeat(whole.side["cluster"], np.diff(whole.offsets))
        assert each.tolist() == labels[whole.rows.astype(int)].tolist()
    told = found.provenance["reports"]
    assert told["near-duplicates"]["selected"] == told["prototypes"]["rows"] == len(first)
    assert told["prototypes"]["least_share_of_a_cluster"] > 0.48
    found.verify(deep=True)


# --- whatever the parts, workers and memory -------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("near-duplicates", {"threshold": 0.9, "k": 8}),
        ("prototypes", {"fraction": 0.3, "balance": 0.4, "k": 8}),
    ],
)
def test_parts_workers_and_memory_change_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: Any
) -> None:
    whole = planned(method, data, tmp_path / "a", **options)
    other = write(tmp_path / "one", X, parts=1)
    assert rows_of(planned(method, other, tmp_path / "b", **options)) == rows_of(whole)
    assert (
        planned(method, data, tmp_path / "c", workers=2, task_bytes=5000, **options).manifest_id
        == whole.manifest_id
    )
    monkeypatch.setattr(cluster_rows, "_TASK_BYTES", 4 * WIDTH * 300)
    monkeypatch.setattr(cluster_rows, "_HELD_BYTES", 4 * WIDTH * 250)  # some clusters are larger
    monkeypatch.setattr(cluster_rows, "_TASK_WORK", 1e5)
    monkeypatch.setattr(cluster_rows, "_SORT_ROWS", 333)
    monkeypatch.setattr(cluster_rows, "CHUNK_ROWS", 170)
    monkeypatch.setattr(rank_tasks, "TASK_BYTES", 4 * WIDTH * 700)
    monkeypatch.setattr(rank_tasks, "READ_BYTES", 4 * WIDTH * 90)
    monkeypatch.setattr(centroids, "_BLOCK_BYTES", 4 * WIDTH * 60)
    budget = Budget(1 << 30, 0, None, 20_000)
    monkeypatch.setattr(planning, "make_budget", lambda *_: budget)
    parts = planned(method, data, tmp_path / "d", task_bytes=5000, **options)
    assert parts.manifest_id == whole.manifest_id
    told = [m.provenance["reports"][method] for m in (parts, whole)]
    for name in ("selected", "clusters", "largest_cluster", "examples", "pairs"):
        assert told[0].get(name) == told[1].get(name)


def test_clusters_are_cut_into_tasks(job: JobContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole clusters in order; one that is larger than a task is a task of its own."""
    rows = RowSet(job.dataset.snapshot)
    labels = np.sort(
        np.random.default_rng(1).choice(6, SMALL_ROWS, p=[0.02, 0.6, 0.1, 0, 0.2, 0.08])
    )
    state = PlanState(rows, None, job.column([labels.astype(np.int32)]))
    found = NearDuplicateSelect(columns=["x"]).cluster_rows(job, state)
    assert found.sizes.tolist() == [c for c in np.bincount(labels).tolist() if c]
    assert found.ranks.load().tolist() == list(range(SMALL_ROWS))
    for limit in (1, 50, 150, 10_000):
        monkeypatch.setattr(cluster_rows, "_TASK_BYTES", 12 * limit)
        monkeypatch.setattr(cluster_rows, "_HELD_BYTES", 12 * limit)
        told = list(itertools.chain.from_iterable(found.run("looking", _look)))
        assert [place for place, _ in told] == list(range(5))
        assert [rows for _, rows in told] == found.sizes.tolist()


def _look(task: cluster_rows.ClusterTask, folder: str) -> list[tuple[int, int]]:
    del folder
    seen = []
    for place, rows, width, rows_at in cluster_rows.each_cluster(task):
        assert rows_at(np.arange(rows)).shape == (rows, width) == (rows, 3)
        seen.append((place, rows))
    assert sum(rows for _, rows in seen) == task.rows
    return seen


# --- rows that cannot be used ---------------------------------------------------------------------


@pytest.mark.parametrize("method", ["near-duplicates", "prototypes"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite(tmp_path: Path, method: str, value: float) -> None:
    x, _ = made({5: value, 1700: value})
    data = write(tmp_path / "data", x)
    with pytest.raises(InvalidValueError, match=r"2 rows .* x: 5, 1700\. .*--on-invalid drop"):
        planned(method, data, tmp_path / "p", k=8)
    assert not (tmp_path / "p").exists()
    found = planned(method, data, tmp_path / "p", k=8, on_invalid="drop")
    kept = np.delete(IDS, [5, 1700])
    x = x[kept.astype(int)]
    labels = kmeans_labels(x, kept, 8, unit=True)
    if method == "prototypes":
        expected = Prototypes().select(x, labels, kept).rows
    else:
        expected = NearDuplicates().find(x, labels, kept).rows
    assert rows_of(found) == kept[expected].tolist()
    assert found.provenance["reports"][method]["invalid_rows"] == 2


def test_rows_that_are_not_finite_among_groups(data: Path, tmp_path: Path) -> None:
    """The group stage reads another column than the select stage."""
    x, _ = made({3: np.nan})
    table = pa.table(
        {
            "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), WIDTH),
            "y": pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), WIDTH),
        }
    )
    folder = tmp_path / "two"
    folder.mkdir()
    pq.write_table(table, folder / "0.parquet")
    spec = JobSpec(
        dataset=folder,
        out=str(tmp_path / "p"),
        stages=[
            {"method": "kmeans", "columns": ["y"], "k": 4},
            {"method": "prototypes", "columns": ["x"], "fraction": 0.5},
        ],
        batch_size=16,
        on_invalid="drop",
        workers=0,
        seed=7,
    )
    found = planning.run_job(spec)
    labels = KMeans(k=4, seed=7).fit(X).labels
    kept = np.delete(IDS, 3)
    expected = Prototypes(fraction=0.5).select(x[kept.astype(int)], labels[kept.astype(int)], kept)
    assert rows_of(found) == kept[expected.rows].tolist()


def test_no_row_that_can_be_used(tmp_path: Path) -> None:
    data = write(tmp_path / "data", np.full((100, WIDTH), np.nan, np.float32))
    with pytest.raises(SelectionError, match="None of the 100 rows has features .* prototypes"):
        planned("prototypes", data, tmp_path / "p", on_invalid="drop")


# --- features of a signal, and bad jobs -----------------------------------------------------------


@pytest.mark.parametrize("method", ["near-duplicates", "prototypes"])
def test_features_of_a_signal(data: Path, tmp_path: Path, method: str) -> None:
    with SignalStore.for_writing(tmp_path / "s", open_dataset(data)) as store:
        store.append(IDS, epoch=0, step=0, embedding=X)
    options: dict[str, Any] = {"signal": tmp_path / "s", "epochs": (1, 2), "k": 6}
    found = planned(method, data, tmp_path / "p", columns=None, feature="embedding", **options)
    same = planned(method, data, tmp_path / "q", epochs=(1, 2), k=6)
    assert rows_of(found, 1) == rows_of(same, 1)
    assert found.identity["signals"] == store.digest("embedding", before=1)


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("near-duplicates", {"columns": None}, JobSpecError, "near-duplicates .*name columns"),
        ("near-duplicates", {"threshold": 1}, JobSpecError, r"'threshold' .* \(0, 1\)"),
        ("near-duplicates", {"k": 0}, JobSpecError, "'k' parameter of near-duplicates"),
        ("prototypes", {"fraction": 0}, JobSpecError, r"'fraction' .* \(0, 1\]"),
        ("prototypes", {"k": 3000}, BatchloomError, "k = 3000 clusters of 2000 rows"),
        ("prototypes", {"columns": "z"}, BatchloomError, "z"),
    ],
)
def test_bad_jobs(
    data: Path, tmp_path: Path, method: str, options: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        planned(method, data, tmp_path / "p", **options)
    assert not list(tmp_path.iterdir())


def test_what_is_billed(data: Path) -> None:
    """k-means' sample is on the bill, where the stage trains it."""
    dataset = open_dataset(data)
    one = PrototypeSelect(columns=["x"])
    stages: list[dict[str, Any]] = [{"method": "prototypes", "columns": ["x"]}]
    spec = JobSpec(dataset=data, out="p", stages=stages)
    grouped = JobSpec(
        dataset=data, out="p", stages=[{"method": "kmeans", "columns": ["x"], "k": 3}, *stages]
    )
    assert one.memory(spec, dataset) > one.memory(grouped, dataset)
    assert one.cost(dataset, 10**6) > one.cost(dataset, 10**4) > 0
    two = NearDuplicateSelect(columns=["x"], k=4)
    assert two.cost(dataset, 10**6) > 4 * PrototypeSelect(columns=["x"], k=4).cost(dataset, 10**6)
