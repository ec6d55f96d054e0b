"""Packing on first use: once for all processes, within its bytes, whatever was left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import open_dataset, packing
from batchloom.dataplane.dataset import Dataset
from batchloom.dataplane.errors import ParameterError, StorageError
from batchloom.dataplane.pack_cache import default_cache_dir, packed_for
from batchloom.gpu_access import PackedGather

ROWS = 2000


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        k = np.arange(ROWS) + number * ROWS
        pq.write_table(pa.table({"a": k, "b": k * 2, "c": k * 3}), folder / f"{number}.parquet")
    return open_dataset(folder)


@pytest.fixture
def packed_labels(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is packed from now on: (fragment, columns)."""
    seen: list[Any] = []
    real = packing.pack_fragment

    def noted(ref: Any, columns: Any, *rest: Any) -> Any:
        seen.append((ref.label, tuple(columns)))
        return real(ref, columns, *rest)

    monkeypatch.setattr(packing, "pack_fragment", noted)
    return seen


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_packed_once(dataset: Dataset, tmp_path: Path, packed_labels: list[Any]) -> None:
    cache = tmp_path / "cache"
    first = packed_for(dataset, ["a"], cache_dir=cache)
    assert len(packed_labels) == 3
    again = packed_for(dataset, ["a"], cache_dir=cache)
    assert len(packed_labels) == 3
    assert again.table_id == first.table_id
    assert names(cache) == {first.table_id}
    assert PackedGather(again).gather([5, ROWS + 7])["a"].tolist() == [5, ROWS + 7]


def test_files_of_other_tables_are_linked(
    dataset: Dataset, tmp_path: Path, packed_labels: list[Any]
) -> None:
    cache = tmp_path / "cache"
    packed_for(dataset, ["a", "b"], cache_dir=cache)
    packed_labels.clear()
    table = packed_for(dataset, ["b", "c"], cache_dir=cache)
    assert {columns for _, columns in packed_labels} == {("c",)}
    table.verify()
    part = packed_for(dataset, ["c"], fragments=[1], cache_dir=cache)
    assert len(packed_labels) == 3
    assert PackedGather(part).gather([ROWS])["c"].tolist() == [3 * ROWS]


def test_least_recently_used_goes_first(dataset: Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    a = packed_for(dataset, ["a"], cache_dir=cache)
    room = int(a.bytes * 2.5)
    b = packed_for(dataset, ["b"], cache_dir=cache, cache_bytes=room)
    for number, table in enumerate((b, a)):  # a was used last
        os.utime(Path(table.path) / "packed.json", (1000 + number, 1000 + number))
    before = PackedGather(b)
    c = packed_for(dataset, ["c"], cache_dir=cache, cache_bytes=room)
    assert names(cache) == {a.table_id, c.table_id}
    size = sum(p.stat().st_size for p in cache.rglob("column-*"))
    assert size <= room
    assert before.gather([3])["b"].tolist() == [6]  # who has it mapped keeps it


def test_table_larger_than_the_cache(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"needs 48,000 bytes or more, and the cache .* 1,000\."):
        packed_for(dataset, ["a"], cache_dir=tmp_path / "cache", cache_bytes=1000)
    assert names(tmp_path / "cache") == set()
    with pytest.raises(ParameterError, match="'cache_bytes' parameter must be an int in the range"):
        packed_for(dataset, ["a"], cache_dir=tmp_path / "cache", cache_bytes=-1)


def test_what_dead_processes_left_is_removed(dataset: Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    (cache / ".0000.staging-0123456789ab").mkdir(parents=True)
    (cache / ".0000.staging-0123456789ab/.x.column").write_bytes(b"1")
    (cache / ("0" * 64)).mkdir()  # eviction that was cut off
    (cache / f".{'0' * 64}.lock").write_bytes(b"")
    table = packed_for(dataset, ["a"], cache_dir=cache)
    assert names(cache) == {table.table_id}


def test_damaged_table_is_packed_again(dataset: Dataset, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    table = packed_for(dataset, ["a"], cache_dir=cache)
    (Path(table.path) / table.files[1][1].name).unlink()
    packed_for(dataset, ["a"], cache_dir=cache).verify()


def test_failure_leaves_nothing(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise StorageError("the disk is full")

    monkeypatch.setattr(packing, "pack_fragment", full)
    with pytest.raises(StorageError, match="the disk is full"):
        packed_for(dataset, ["a"], cache_dir=tmp_path / "cache")
    assert names(tmp_path / "cache") == set()


PACK = """
import sys
from batchloom.dataplane import open_dataset, packing
from batchloom.dataplane.pack_cache import packed_for
real, count = packing.pack_fragment, 0
def noted(*args):
    global count
    count += 1
    return real(*args)
packing.pack_fragment = noted
dataset = open_dataset(sys.argv[1])
sys.stdin.readline()
table = packed_for(dataset, ["a", "b"], cache_dir=sys.argv[2])
print(table.table_id, count)
"""


def test_two_processes_pack_once(dataset: Dataset, tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PACK, str(tmp_path / "data"), str(tmp_path / "cache")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:  # all wait at the same line
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len({table_id for table_id, _ in found}) == 1
    assert sorted(int(count) for _, count in found) == [0, 0, 3]
    assert names(tmp_path / "cache") == {found[0][0]}


def test_default_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHLOOM_CACHE", "/somewhere")
    assert default_cache_dir() == Path("/somewhere")
    monkeypatch.delenv("BATCHLOOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_cache_dir() == Path("/caches/batchloom/packed")
