"""How fragments are grouped into tasks and split by them, and that this changes no result."""

from __future__ import annotations

import dataclasses
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.bitmap import Bitmap
from batchloom.dataplane.dataset import Dataset, open_dataset
from batchloom.dataplane.errors import DatasetChangedError
from batchloom.dataplane.fragments import FragmentRef
from batchloom.jobs import plan
from batchloom.jobs.engine import Engine
from batchloom.jobs.hashing import hash_dataset
from batchloom.jobs.progress import QuietProgress
from batchloom.jobs.scanning import scan_statistics
from batchloom.jobs.tasks import group_tasks, scan_rows
from hypothesis import given
from hypothesis import strategies as st

LARGE = 400_000
TASK_BYTES = 500_000


def refs_of(sizes: list[tuple[int, int]]) -> list[FragmentRef]:
    """Return refs of remote files that are never opened: (bytes, rows)."""
    found, first = [], 0
    for number, (size, rows) in enumerate(sizes):
        uri = f"memory://nowhere/{number}.arrows"
        found.append(FragmentRef(uri, f"data:{number}", rows, size, first))
        first += rows
    return found


def labels(tasks: Any) -> list[list[str]]:
    return [[r.label.removeprefix("data:") for r in t.refs] for t in tasks]


def test_tasks_by_hand() -> None:
    refs = refs_of([(60, 5), (50, 5), (10, 0), (200, 5), (30, 5), (30, 25_000_000), (1, 1)])
    tasks = group_tasks(refs, 100)
    assert labels(tasks) == [["0", "1"], ["3"], ["4", "5"], ["6"]]
    assert [t.index for t in tasks] == [0, 1, 2, 3]
    assert [t.rows for t in tasks] == [10, 5, 25_000_005, 1]
    assert tasks[0].label == "data:0, data:1"
    assert tasks[0].example is None
    many = group_tasks(refs_of([(1, 1)] * 5), 100)[0]
    assert many.label == "data:0, data:1, data:2 and 2 more fragments"
    assert group_tasks([], 100) == []


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1000)), max_size=60))
def test_tasks_hold_every_fragment_with_rows_once_and_in_order(
    sizes: list[tuple[int, int]],
) -> None:
    tasks = group_tasks(refs_of(sizes), 700)
    expected = [str(i) for i, (_, rows) in enumerate(sizes) if rows]
    assert list(chain.from_iterable(labels(tasks))) == expected
    assert sum(t.rows for t in tasks) == sum(rows for _, rows in sizes)
    for task in tasks:
        assert sum(r.bytes for r in task.refs[:-1]) < 700


def test_huge_datasets_get_larger_tasks_not_more() -> None:
    refs = refs_of([(1 << 27, 1000)] * 100_000)
    tasks = group_tasks(refs)
    assert 2_500 <= len(tasks) <= 5_001
    rows = group_tasks(refs_of([(1000, 10_000_000)] * 100_000))
    assert 2_500 <= len(rows) <= 5_001


@pytest.fixture(scope="module", params=["parquet", "file", "stream"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One fragment that is split among small ones that are not."""
    folder = tmp_path_factory.mktemp("large") / "data"
    folder.mkdir()
    rng = np.random.default_rng(0)
    start = 0
    for number, rows in enumerate([1000, LARGE, 2000]):
        k = np.arange(start, start + rows)
        # One by one, the ones would be lost beside the first value; two of them together are not.
        ones = np.where(k == 0, 1e16, (k % 50_000 == 40_000) * 1.0)
        table = pa.table({"k": k, "a": rng.normal(size=rows), "b": k % 97, "ones": ones})
        if request.param == "parquet":
            pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=50_000)
        else:
            make = pa.ipc.new_file if request.param == "file" else pa.ipc.new_stream
            with make(folder / f"part-{number}.arrow", table.schema) as writer:
                writer.write_table(table, max_chunksize=50_000)
        start += rows
    return folder


def test_a_large_fragment_is_split_between_its_chunks(large: Path) -> None:
    dataset = open_dataset(large)
    refs = dataset.present()
    tasks = group_tasks(refs, TASK_BYTES)
    pieces = [t for t in tasks if t.chunks is not None]
    assert [t.refs for t in tasks] == [(refs[0],), *[(refs[1],)] * len(pieces), (refs[2],)]
    assert len(pieces) >= 3
    assert [i for t in pieces for i in t.chunks or ()] == list(range(8))
    assert sum(t.rows for t in pieces) == LARGE
    assert pieces[0].example == refs[1].uri
    assert all(t.chunks is None for t in group_tasks(refs, TASK_BYTES, whole=True))
    assert all(t.chunks is None for t in group_tasks(refs))
    # One chunk is read by one task, however small tasks are.
    assert len(group_tasks(refs, 1)) == 2 + 4


def test_rows_are_those_of_the_whole(large: Path, tmp_path: Path) -> None:
    dataset = open_dataset(large)
    chosen = np.random.default_rng(1).permutation(dataset.rows)[: dataset.rows // 3]
    bits = Bitmap.of(dataset.rows, [chosen.astype(np.uint64)])
    np.save(tmp_path / "rows.npy", bits.words)
    for rows_file, expected in ((None, np.arange(dataset.rows)), ("rows.npy", np.sort(chosen))):
        file = None if rows_file is None else str(tmp_path / rows_file)
        for size in (TASK_BYTES, 1 << 40):
            found = [
                (batch["k"].to_pylist(), ids.tolist())
                for task in group_tasks(dataset.present(), size)
                for batch, ids in scan_rows(task, ["k"], dataset.schema, file)
            ]
            for column in zip(*found, strict=True):
                assert list(chain.from_iterable(column)) == expected.tolist()


def statistics(dataset: Dataset, size: int) -> Any:
    with Engine(workers=0) as engine:
        return scan_statistics(dataset, engine, QuietProgress(), None, size)


def test_statistics_are_equal_to_the_last_bit(large: Path) -> None:
    dataset = open_dataset(large)
    whole = statistics(dataset, 1 << 40)
    assert statistics(dataset, TASK_BYTES) == statistics(dataset, 1) == whole
    assert whole[3].mean == (1e16 + 8) / dataset.rows
    values = np.concatenate([np.array(p.batch["a"]) for p in dataset.scan(["a"])])
    assert whole[1].mean == pytest.approx(float(values.mean()), rel=1e-12)


def test_statistics_of_sums_beyond_float64(tmp_path: Path) -> None:
    table = pa.table({"a": [1.5e308, 1.5e308, -1.0]})
    pq.write_table(table, tmp_path / "a.parquet")
    (found,) = statistics(open_dataset(tmp_path), 1)
    assert found.mean == 1e308


def test_plans_of_split_fragments_are_the_same(large: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"columns": ["a", "b"], "k": 4, "batch_size": 1000, "workers": 0}
    ids = set()
    for number, size in enumerate([1, TASK_BYTES, 1 << 40]):
        made = plan("kmeans", large, out=tmp_path / str(number), where="b < 60", max_iter=3,
                    task_bytes=size, **options)  # fmt: skip
        ids.add(made.manifest_id)
        ids.add(str(sorted(p.name for p in (tmp_path / str(number)).glob("part-*"))))
    assert len(ids) == 2


def test_hashes_are_of_whole_files(large: Path) -> None:
    dataset = open_dataset(large)
    with Engine(workers=0) as engine:
        small, big = (hash_dataset(dataset, engine, QuietProgress(), s) for s in (1, 1 << 40))
    assert len(small) == 3
    assert small == big


def test_a_file_that_changed_is_not_split_by_its_new_chunks(large: Path) -> None:
    refs = [dataclasses.replace(r, footer_hash="0" * 64) for r in open_dataset(large).present()]
    with pytest.raises(DatasetChangedError, match=r"part-1\..* was rewritten"):
        group_tasks(refs, TASK_BYTES)
