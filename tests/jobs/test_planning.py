from __future__ import annotations

import io
import json
import os
import shutil
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
    BatchloomError,
    ColumnTypeError,
    DatasetChangedError,
    DatasetError,
    InvalidValueError,
    JobSpecError,
    ManifestConflictError,
    MissingColumnError,
    SchemaDriftError,
    SelectionError,
    StorageError,
)
from batchloom.dataplane.manifest import Manifest
from batchloom.dataplane.parameters import parameters
from batchloom.dataplane.plan import BatchPlan, Selection
from batchloom.dataplane.series import Series
from batchloom.jobs import plan, register
from batchloom.jobs.estimate import estimate
from batchloom.jobs.methods import METHODS
from batchloom.jobs.planning import make_spec
from batchloom.jobs.progress import JsonProgress
from batchloom.jobs.spec import JobSpec
from batchloom.jobs.stages import ReduceStage, SelectStage
from batchloom.tests.jobs.conftest import ROWS, small_table, write_small

KMEANS: dict[str, Any] = {"columns": ["x"], "k": 4, "batch_size": 32, "workers": 0}


def rows_of(manifest: Manifest, epoch: int = 0) -> list[int]:
    rows: list[int] = manifest.epoch(epoch).plan().rows.tolist()
    return rows


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


# --- determinism ----------------------------------------------------------------------------------


def test_workers_and_partitions_do_not_change_the_plan(small: Path, tmp_path: Path) -> None:
    ids = set()
    for number, (workers, task_bytes) in enumerate([(0, 1), (0, 10**9), (1, 4000), (2, 1)]):
        options = {**KMEANS, "workers": workers, "task_bytes": task_bytes, "epochs": 2}
        made = plan("kmeans", small, out=tmp_path / str(number), where="a > -0.5", **options)
        ids.add(made.manifest_id)
        parts = sorted(p.name for p in (tmp_path / str(number)).glob("part-*"))
        ids.add(str(parts))
    assert len(ids) == 2  # one id, one list of content-addressed parts


def test_path_and_hash_seed_do_not_change_the_plan(small: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "er"
    elsewhere.mkdir(parents=True)
    for file in sorted(small.iterdir(), reverse=True):  # another order of creation
        shutil.copy(file, elsewhere / file.name)
    script = (
        "import sys; from batchloom.jobs import plan; "
        "print(plan('kmeans', sys.argv[1], out=sys.argv[2], columns=['x'], k=4, batch_size=32,"
        " workers=0, split='a=0.5,b=0.5:a', key='key').manifest_id)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script, str(data), str(tmp_path / f"out-{seed}")],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for data, seed in ((small, "1"), (elsewhere, "2"))
    }
    assert len(found) == 1


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"k": 5}, {"batch_size": 33}, {"batches": "across"}, {"epochs": 2}]
)
def test_what_decides_changes_the_id(small: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    base = plan("kmeans", small, out=tmp_path / "a", **KMEANS)
    other = plan("kmeans", small, out=tmp_path / "b", **{**KMEANS, **change})
    assert base.manifest_id != other.manifest_id


def test_same_plan_again_is_success_another_is_a_conflict(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    first = plan("shuffle", small, out=out, batch_size=32)
    before = sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir())
    assert plan("shuffle", small, out=out, batch_size=32).manifest_id == first.manifest_id
    with pytest.raises(ManifestConflictError, match="another manifest: expected id .* found"):
        plan("shuffle", small, out=out, batch_size=32, seed=1)
    assert sorted((p.name, p.stat().st_mtime_ns) for p in out.iterdir()) == before
    assert leftovers(tmp_path) == []


# --- the methods, end to end ----------------------------------------------------------------------


def test_shuffle_plans_every_row_once_an_epoch(small: Path, tmp_path: Path) -> None:
    made = plan(
        "shuffle", small, out=tmp_path / "p", batch_size=64, epochs=(2, 4), micro_per_step=3
    )
    assert made.epochs == (2, 3)
    for epoch in made.epochs:
        record = made.records[epoch]
        assert sorted(rows_of(made, epoch)) == list(range(ROWS))
        assert record.coverage == "exactly_once"
        assert (record.micro_batches, record.steps) == (16, 6)
        assert made.epoch(epoch).plan().micro.tolist() == [0, 1, 2] * 5 + [0]
    assert rows_of(made, 2) != rows_of(made, 3)


def test_drop_last_is_said_aloud(small: Path, tmp_path: Path) -> None:
    made = plan("shuffle", small, out=tmp_path / "p", batch_size=64, drop_last=True)
    record = made.records[0]
    assert (record.samples, record.dropped_rows, record.coverage) == (960, 40, "subset")
    assert record.smallest_micro_batch == 64


def test_stratified_shuffle_holds_the_shares(small: Path, tmp_path: Path) -> None:
    made = plan("shuffle", small, out=tmp_path / "p", batch_size=100, stratify="label", workers=0)
    labels = np.array(open_dataset(small).take(np.arange(ROWS), ["label"])["label"].to_pylist())
    share = np.bincount(labels, minlength=7) / 10
    for batch in (made.epoch(0)[k] for k in range(10)):
        held = np.bincount(labels[batch.rows.astype(int)], minlength=7)
        assert np.abs(held - share).max() <= 3


def test_block_shuffle_reads_few_places_at_a_time(small: Path, tmp_path: Path) -> None:
    options = {"batch_size": 50, "mode": "block", "groups_open": 4, "group_rows": 25}
    made = plan("shuffle", small, out=tmp_path / "p", epochs=2, **options)
    assert sorted(rows_of(made)) == list(range(ROWS))
    groups = np.array(rows_of(made)) // 25
    assert max(len(set(w)) for w in groups.reshape(-1, 100)) == 4
    assert rows_of(made, 0) != rows_of(made, 1)
    assert made.identity["stages"][0]["parameters"]["groups_open"] == 4
    with pytest.raises(JobSpecError, match="mode must be full"):
        plan("shuffle", small, out=tmp_path / "q", stratify="label", **options)


def test_a_poor_spread_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    k = np.arange(20_000)
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"part": k // 1000}), tmp_path / "data" / "sorted.parquet")
    options = {"batch_size": 100, "balance": "part", "workers": 0}
    full = plan("shuffle", tmp_path / "data", out=tmp_path / "full", **options)
    assert full.provenance["reports"]["balance"]["epoch 0"] == pytest.approx(1, abs=0.15)
    assert caplog.messages == []
    block = {"mode": "block", "groups_open": 5, "group_rows": 100}
    poor = plan("shuffle", tmp_path / "data", out=tmp_path / "poor", **options, **block)
    assert poor.provenance["reports"]["balance"]["epoch 0"] == pytest.approx(21, rel=0.25)
    assert len(caplog.messages) == 1
    assert "open more groups" in caplog.messages[0]
    # What is only measured decides nothing.
    unmeasured = plan("shuffle", tmp_path / "data", out=tmp_path / "plain", batch_size=100)
    assert unmeasured.manifest_id == full.manifest_id


def test_a_column_is_read_once_for_all_epochs(small: Path, tmp_path: Path) -> None:
    lines = io.StringIO()
    plan(
        "shuffle", small, out=tmp_path / "p", batch_size=50, epochs=3, workers=0,
        stratify="label", balance="label", progress=JsonProgress(lines),
    )  # fmt: skip
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    whole = [t for t in told if t.get("step") == "reading 'label'" and t["done"] == ROWS]
    assert 1 <= len(whole) <= 2  # the one task's line, and the line that closes the one reading


def test_kmeans_batches_hold_one_cluster(small: Path, tmp_path: Path) -> None:
    made = plan("kmeans", small, out=tmp_path / "p", **{**KMEANS, "k": 5})
    x = np.array(open_dataset(small).take(np.arange(ROWS), ["x"])["x"].to_pylist())
    groups: dict[int, set[float]] = {}
    for k in range(len(made.epoch(0))):
        batch = made.epoch(0)[k]
        groups.setdefault(int(batch.side["cluster"]), set()).update(x[batch.rows.astype(int), 2])
    # Column 2 takes five values far apart; k-means must find them, and batches keep them apart.
    assert sorted(len(v) for v in groups.values()) == [1, 1, 1, 1, 1]
    assert sum(made.provenance["reports"]["kmeans"]["sizes"]) == ROWS


def test_kmeans_of_numeric_columns_and_aligned_batches(small: Path, tmp_path: Path) -> None:
    options = {**KMEANS, "columns": "a,label", "batches": "aligned", "batch_size": 600}
    made = plan("kmeans", small, out=tmp_path / "p", **options)
    assert made.unit == "micro"
    assert sorted(rows_of(made)) == list(range(ROWS))


def test_built_in_selects_chain(small: Path, tmp_path: Path) -> None:
    keys = tmp_path / "takedown.csv"
    keys.write_text("key\n" + "\n".join(f"doc-{i}" for i in range(0, 1000, 5)) + "\ndoc-none\n")
    made = plan(
        "shuffle", small, out=tmp_path / "p", batch_size=8, workers=0,
        where="label == 1", drop=keys, key="key", split="a=0.5,b=0.5:a",
    )  # fmt: skip
    halves = plan(
        "shuffle", small, out=tmp_path / "q", batch_size=8, workers=0,
        where="label == 1", drop=keys, key="key", split="a=0.5,b=0.5:b",
    )  # fmt: skip
    expected = {i for i in range(ROWS) if i * i % 7 == 1 and i % 5}
    assert set(rows_of(made)) | set(rows_of(halves)) == expected
    assert not set(rows_of(made)) & set(rows_of(halves))
    assert made.records[0].coverage == "subset"
    assert made.provenance["reports"]["drop"]["keys_not_found"] > 0


@pytest.mark.parametrize("suffix", [".txt", ".npy", ".csv", ".parquet", ".arrow"])
def test_keep_takes_files_of_row_ids(small: Path, tmp_path: Path, suffix: str) -> None:
    path, ids = tmp_path / f"ids{suffix}", [5, 999, 301, 5]
    if suffix == ".txt":
        path.write_text("\n".join(map(str, ids)) + "\n\n")
    elif suffix == ".npy":
        np.save(path, np.array(ids))
    elif suffix == ".csv":
        path.write_text("row\n" + "\n".join(map(str, ids)))
    elif suffix == ".parquet":
        pq.write_table(pa.table({"row": ids}), path)
    else:
        table = pa.table({"row": pa.array(ids, pa.uint64())})
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)
    made = plan("shuffle", small, out=tmp_path / "p", batch_size=1, keep=path)
    assert sorted(rows_of(made)) == [5, 301, 999]
    report = made.provenance["reports"]["keep"]
    assert report == {"keys": 3, "keys_not_found": 0, "rows": 3}


def test_files_enter_by_content_not_by_path(small: Path, tmp_path: Path) -> None:
    ids = []
    for name, text in (("a.txt", "1\n2\n"), ("b.txt", "1\n2\n"), ("c.txt", "1\n3\n")):
        (tmp_path / name).write_text(text)
        options = {"batch_size": 1, "keep": tmp_path / name}
        ids.append(plan("shuffle", small, out=tmp_path / f"p-{name}", **options).manifest_id)
    assert ids[0] == ids[1] != ids[2]


def test_several_sources(tmp_path: Path) -> None:
    write_small(tmp_path / "a", (100,))
    write_small(tmp_path / "b", (50, 30))
    sources = {"web": tmp_path / "a", "books": str(tmp_path / "b" / "*.parquet")}
    made = plan("kmeans", sources, out=tmp_path / "p", **KMEANS)
    assert sorted(rows_of(made)) == list(range(180))
    assert [f.label for f in made.snapshot.fragments] == [
        "books:part-0.parquet",
        "books:part-1.parquet",
        "web:part-0.parquet",
    ]


# --- growing datasets and series ------------------------------------------------------------------


def test_since_and_added_only(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100, 50))
    old = plan("shuffle", data, out=tmp_path / "p0", batch_size=10)
    old.snapshot.save(tmp_path / "snap.json")
    pq.write_table(small_table(150, 190), data / "a-new.parquet")  # sorts before the old files
    added = plan(
        "shuffle", data, out=tmp_path / "p1", batch_size=10, since=tmp_path / "snap.json",
        added_only=True,
    )  # fmt: skip
    assert sorted(rows_of(added)) == list(range(150, 190))
    everything = plan("shuffle", data, out=tmp_path / "p2", batch_size=10, since=tmp_path / "p0")
    assert sorted(rows_of(everything)) == list(range(190))
    pinned = plan("shuffle", data, out=tmp_path / "p3", batch_size=10, snapshot=tmp_path / "p0")
    assert pinned.manifest_id == old.manifest_id
    with pytest.raises(SelectionError, match="No row was added"):
        plan(
            "shuffle",
            data,
            out=tmp_path / "p4",
            since=tmp_path / "p2",
            added_only=True,
            batch_size=9,
        )


def test_added_only_counts_rewritten_files_as_new(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100, 50, 30))
    plan("shuffle", data, out=tmp_path / "old", batch_size=10)
    pq.write_table(small_table(500, 560), data / "part-1.parquet")  # another content, the same name
    pq.write_table(small_table(600, 640), data / "part-9.parquet")
    settings = {"batch_size": 10, "since": tmp_path / "old", "added_only": True, "workers": 0}
    added = plan("kmeans", data, out=tmp_path / "new", columns=["x"], k=3, **settings)
    assert sorted(rows_of(added)) == list(range(180, 280))  # 60 rewritten, 40 new
    assert added.planned_fragments() == [
        i for i, f in enumerate(added.snapshot.fragments) if f.first_row_id >= 180
    ]
    assert added.identity["stages"][0] == {
        "stage": "select", "method": "added", "parameters": {"first_row_id": 180}
    }  # fmt: skip
    recipe = plan("shuffle", data, out=tmp_path / "recipe", form="recipe", **settings)
    assert sorted(rows_of(recipe)) == list(range(180, 280))
    chosen = plan("shuffle", data, out=tmp_path / "some", where="row >= 620", **settings)
    assert len(rows_of(chosen)) == 20


def test_added_only_with_a_series_goes_on_from_its_last_member(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100,))
    settings = {"out": tmp_path / "s", "batch_size": 10, "series": True, "added_only": True}
    first = plan("shuffle", data, epochs="0:1", **settings)
    assert sorted(rows_of(first)) == list(range(100))
    pq.write_table(small_table(100, 130), data / "part-1.parquet")
    second = plan("shuffle", data, epochs="1:2", **settings)
    assert sorted(rows_of(second, 1)) == list(range(100, 130))
    again = plan("shuffle", data, epochs="1:2", **settings)
    assert again.manifest_id == second.manifest_id
    with pytest.raises(SelectionError, match="No row was added"):
        plan("shuffle", data, epochs="2:3", **settings)
    since = plan("shuffle", data, out=tmp_path / "p", batch_size=10, since=tmp_path / "s")
    assert since.snapshot == second.snapshot


def test_what_added_only_would_take_is_said_before(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100,))
    plan("shuffle", data, out=tmp_path / "old", batch_size=10)
    pq.write_table(small_table(100, 130), data / "part-1.parquet")
    found = estimate(
        JobSpec(dataset=data, out=tmp_path / "new", since=tmp_path / "old", added_only=True,
                batch_size=10)
    )  # fmt: skip
    assert (found.rows, found.micro_batches) == (30, 3)


def test_a_pinned_snapshot_must_be_there(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100, 50))
    plan("shuffle", data, out=tmp_path / "p", batch_size=10)
    (data / "part-1.parquet").unlink()
    with pytest.raises(DatasetChangedError, match=r"part-1\.parquet.* is gone"):
        plan("shuffle", data, out=tmp_path / "q", batch_size=10, snapshot=tmp_path / "p")


def test_series_members_continue_one_another(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data", (100, 50))
    out = tmp_path / "series"
    first = plan("shuffle", data, out=out, batch_size=10, epochs="0:2", series=True)
    assert first.path.name == "epochs-000000-000002"
    assert first.parent is None
    pq.write_table(small_table(150, 190), data / "a-new.parquet")
    second = plan("shuffle", data, out=out, batch_size=10, epochs="2:3", series=True)
    assert second.parent == first.manifest_id
    # The series' snapshot was extended: old rows kept their ids.
    assert [f.path for f in second.snapshot.fragments][-1] == "a-new.parquet"
    assert Series.open(out).epochs == (0, 1, 2)
    with pytest.raises(SelectionError, match="holds epochs 0:2 already"):
        plan("shuffle", data, out=out, batch_size=10, epochs="1:4", series=True)


# --- your own method ------------------------------------------------------------------------------


@parameters
class _FirstHalf(ReduceStage):
    """Keeps the first half of every micro-batch, weighted."""

    method = "first-half"
    summary = "the first half of every micro-batch"
    weight_semantics = "importance"

    def reduce(self, job: Any, plan: BatchPlan, epoch: int) -> BatchPlan:
        kept = [plan.slice(k, k + 1).rows for k in range(len(plan))]
        kept = [rows[: max(1, len(rows) // 2)] for rows in kept]
        offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in kept])])
        rows = np.concatenate(kept)
        return BatchPlan.of(offsets, rows, np.full(len(rows), 2, np.float32))


@parameters
class _OneThird(SelectStage):
    """A selection that changes with the epoch."""

    method = "one-third"
    summary = "every third row, another third each epoch"
    per_epoch = True

    def select(self, job: Any, state: Any, epoch: int) -> Selection:
        ranks = np.arange(epoch % 3, len(state.rows), 3, dtype=np.uint64)
        return Selection(ranks)


@pytest.fixture
def own_methods() -> Any:
    for stage in (_FirstHalf, _OneThird):
        register(stage)
    yield
    for stage in (_FirstHalf, _OneThird):
        del METHODS[stage.method]


def test_a_registered_reduce_stage_goes_through_the_whole_chain(
    own_methods: Any, small: Path, tmp_path: Path
) -> None:
    made = plan("first-half", small, out=tmp_path / "p", batch_size=50)
    assert made.weight_semantics == "importance"
    assert made.records[0].samples == ROWS // 2
    assert made.records[0].total_weight == ROWS
    assert [s["method"] for s in made.identity["stages"]] == ["shuffle", "first-half"]


def test_a_selection_may_change_with_the_epoch(
    own_methods: Any, small: Path, tmp_path: Path
) -> None:
    made = plan("one-third", small, out=tmp_path / "p", batch_size=50, epochs=4)
    thirds = [set(rows_of(made, e)) for e in range(4)]
    assert thirds[0] | thirds[1] | thirds[2] == set(range(ROWS))
    assert thirds[0] == thirds[3]
    assert not thirds[0] & thirds[1]


# --- bad input ------------------------------------------------------------------------------------

GOOD = small_table(0, 50)


def with_bad_rows(column: str, values: dict[int, Any]) -> pa.Table:
    table = small_table(0, 50)
    data = table.column(column).to_pylist()
    for row, value in values.items():
        data[row] = value
    index = table.schema.get_field_index(column)
    return table.set_column(index, column, pa.array(data, table.schema.field(column).type))


def refused(kind: type[BatchloomError], match: str, method: str, data: Any, **options: Any) -> None:
    """Planning fails with one clear error and leaves nothing."""
    out = options.pop("out")
    with pytest.raises(kind, match=match) as error:
        plan(method, data, out=out, **{"batch_size": 5, "workers": 0, **options})
    assert "\n" not in str(error.value)
    if Path(out).parent.is_dir():
        assert leftovers(Path(out).parent) == []
    assert not (Path(out) / "manifest.json").exists()


def test_datasets_that_cannot_be_planned(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out" / "plan"
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(DatasetError, "no Parquet or Arrow file", "shuffle", empty, out=out)
    refused(DatasetError, "no such file or directory", "shuffle", tmp_path / "nowhere", out=out)
    no_rows = make_dataset(GOOD.slice(0, 0), name="no_rows")
    refused(SelectionError, "1 files and no rows", "shuffle", no_rows, out=out)
    drift = make_dataset(GOOD, GOOD.set_column(2, "a", GOOD["a"].cast(pa.float32())), name="drift")
    refused(
        SchemaDriftError,
        r"'a' is float in data:part-1.parquet but double",
        "shuffle",
        drift,
        out=out,
    )
    lacking = make_dataset(GOOD, GOOD.drop_columns(["x"]), name="lacking")
    refused(SchemaDriftError, "part-1.parquet has no column 'x'", "kmeans", lacking, out=out,
            columns=["x"], k=2)  # fmt: skip
    plan("shuffle", lacking, out=tmp_path / "fine", batch_size=5)  # not used: no error


def test_parameters_that_do_not_fit_the_data(
    make_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    out, data = tmp_path / "plan", make_dataset(GOOD)
    kmeans = {"columns": ["x"], "k": 2, "out": out}
    refused(MissingColumnError, "no column 'xx' .* Did you mean 'x'", "kmeans", data,
            **{**kmeans, "columns": ["xx"]})  # fmt: skip
    refused(ColumnTypeError, "'key' is string: expected numbers", "kmeans", data,
            **{**kmeans, "columns": ["key"]})  # fmt: skip
    refused(SelectionError, "k = 51 clusters of 50 rows", "kmeans", data, **{**kmeans, "k": 51})
    refused(SelectionError, "batch_size = 51 is larger than the dataset's 50 rows", "shuffle", data,
            out=out, batch_size=51)  # fmt: skip
    refused(SelectionError, "batch_size = 20 is larger than the 10 selected", "shuffle", data,
            out=out, batch_size=20, where="row < 10")  # fmt: skip
    refused(SelectionError, "No row is left after the select stage 'where'", "shuffle", data,
            out=out, where="row < 0")  # fmt: skip
    refused(JobSpecError, "does not parse", "shuffle", data, out=out, where="row <")
    refused(MissingColumnError, "no column 'rov'.*Did you mean 'row'", "shuffle", data, out=out,
            where="rov < 3")  # fmt: skip
    refused(
        ColumnTypeError, "expression 'key > 3' fails", "shuffle", data, out=out, where="key > 3"
    )
    refused(ColumnTypeError, "'a' is double; a key must be", "shuffle", data, out=out, stratify="a")
    refused(JobSpecError, "no method 'shufle'. Did you mean 'shuffle'", "shufle", data, out=out)
    refused(JobSpecError, "kmeans has no parameter 'kk'. Did you mean 'k'", "kmeans", data,
            **{**kmeans, "kk": 3})  # fmt: skip
    refused(JobSpecError, "The 'k' parameter of kmeans must be an int in the range", "kmeans", data,
            **{**kmeans, "k": 0})  # fmt: skip
    refused(JobSpecError, "needs a group stage", "within", data, out=out)
    refused(SelectionError, "Cluster .* more than a micro-batch of 5", "kmeans", data,
            **kmeans, batches="aligned")  # fmt: skip


def test_key_files_that_cannot_be_used(make_dataset: Callable[..., Path], tmp_path: Path) -> None:
    out, data = tmp_path / "plan", make_dataset(GOOD)
    keys = tmp_path / "keys.txt"
    keys.write_text("doc-900\ndoc-901\n")
    refused(SelectionError, "No row is left", "shuffle", data, out=out, keep=keys, key="key")
    refused(SelectionError, "cannot be read as row ids", "shuffle", data, out=out, keep=keys)
    refused(SelectionError, "cannot be read as the type of 'label', int32", "shuffle", data,
            out=out, keep=keys, key="label")  # fmt: skip
    refused(DatasetError, "cannot be read: No such file", "shuffle", data, out=out,
            keep=tmp_path / "none.txt")  # fmt: skip
    two = tmp_path / "two.csv"
    two.write_text("p,q\n1,2\n")
    refused(DatasetError, "has columns p, q: expected one", "shuffle", data, out=out, keep=two)
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    refused(DatasetError, "file of keys .* cannot be read", "shuffle", data, out=out,
            keep=tmp_path / "bad.parquet")  # fmt: skip
    refused(JobSpecError, "'key' says what", "shuffle", data, out=out, key="key")


@pytest.mark.parametrize(
    "values", [{7: [1.0, float("nan"), 0.0]}, {7: [float("inf"), 0.0, 0.0]}, {7: None}]
)
def test_values_that_cannot_be_clustered(
    make_dataset: Callable[..., Path], tmp_path: Path, values: dict[int, Any]
) -> None:
    data = make_dataset(GOOD, with_bad_rows("x", values))
    options: dict[str, Any] = {"columns": ["x"], "k": 3}
    refused(InvalidValueError, "1 rows hold NaN, infinite or null values in x: 57", "kmeans", data,
            out=tmp_path / "p", **options)  # fmt: skip
    made = plan(
        "kmeans", data, out=tmp_path / "q", batch_size=5, workers=0, on_invalid="drop", **options
    )
    assert sorted(rows_of(made)) == [i for i in range(100) if i != 57]
    assert made.provenance["reports"]["kmeans"]["invalid_rows"] == 1


def test_targets_that_cannot_be_written(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ManifestConflictError, match="is a file; choose another"):
        plan("shuffle", small, out=file)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(ManifestConflictError, match="holds other files and no manifest"):
        plan("shuffle", small, out=folder)
    assert (folder / "mine.txt").read_text() == "mine"
    with pytest.raises(BatchloomError, match="Preparing the target failed"):
        plan("shuffle", small, out="/proc/nowhere/plan")
    for inside in (small, small / "plan", small.parent / "x" / ".." / small.name / "plan"):
        with pytest.raises(JobSpecError, match="lies inside the dataset"):
            plan("shuffle", {"a": small}, out=inside)
    with pytest.raises(StorageError, match="nothing can be committed to 'http'. Targets are local"):
        plan("shuffle", small, out="http://127.0.0.1/plan")


def test_a_damaged_fragment_is_named(tmp_path: Path) -> None:
    data = write_small(tmp_path / "data")
    path = data / "part-3.parquet"
    path.write_bytes(path.read_bytes()[:-1])
    refused(DatasetError, r"part-3\.parquet .* cannot be read", "shuffle", data,
            out=tmp_path / "p")  # fmt: skip


def test_a_fragment_damaged_after_it_was_listed_is_named(tmp_path: Path) -> None:
    """The footer is whole, the pages are not: found by the task that reads them."""
    data = write_small(tmp_path / "data")
    path = data / "part-3.parquet"
    whole = bytearray(path.read_bytes())
    whole[4:2000] = os.urandom(1996)
    path.write_bytes(whole)
    refused(DatasetError, r"part-3\.parquet", "kmeans", data, out=tmp_path / "p",
            columns=["x"], k=3)  # fmt: skip


# --- estimates ------------------------------------------------------------------------------------


def test_an_estimate_reads_and_writes_nothing(small: Path, tmp_path: Path) -> None:
    spec = make_spec(
        "kmeans",
        dataset=small,
        out=str(tmp_path / "plan"),
        selects={},
        options={"columns": ["x"], "k": 4, "batch_size": 64, "epochs": 3},
    )
    found = estimate(spec)
    assert (found.rows, found.micro_batches, found.epochs) == (ROWS, 16, 3)
    assert found.bytes >= 3 * 8 * ROWS
    assert found.scanned_bytes == 2 * sum(p.stat().st_size for p in small.iterdir())
    assert found.cpu_seconds > 0
    assert list(tmp_path.iterdir()) == []
