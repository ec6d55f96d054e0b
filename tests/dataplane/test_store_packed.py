"""Packed tables on an object store: the same rows, in few requests, under a limit of bytes."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import PackedTable, open_dataset, packed_mirror
from batchloom.dataplane.errors import (
    PackedConflictError,
    PackedCorruptError,
    PackedError,
    ParameterError,
    StorageError,
)
from batchloom.dataplane.mapped_dataset import map_dataset
from batchloom.dataplane.pack_cache import packed_for
from batchloom.dataplane.packing import pack_dataset
from batchloom.gpu_access import PackedGather
from batchloom.jobs import pack, plan
from batchloom.tests.contracts.awkward import awkward_table
from batchloom.tests.contracts.gather import expected_values, values_of
from batchloom.tests.dataplane.store import Store

ROWS, WIDTH = 32_768, 128  # 16 MiB
LIMIT = 4 << 20


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> PackedTable:
    """A local table of one column of 16 MiB in three files."""
    folder = tmp_path_factory.mktemp("wide")
    (folder / "data").mkdir()
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)
    for number, rows in enumerate(np.split(x, [5000, 21_000])):
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), WIDTH)
        pq.write_table(pa.table({"x": column}), folder / f"data/{number}.parquet")
    return pack_dataset(open_dataset(folder / "data"), folder / "packed")


@pytest.fixture(scope="module")
def values(wide: PackedTable) -> Any:
    return PackedGather(wide).gather(np.arange(ROWS))["x"].clone()  # type: ignore[union-attr]


def uploaded(store: Store, table: PackedTable, name: str = "packed") -> str:
    for path in Path(table.path).iterdir():
        store.put(f"{name}/{path.name}", path.read_bytes())
    return store.at(name)


def opened(store: Store, url: str, **options: Any) -> PackedTable:
    return PackedTable.open(url, storage_options=store.options, **options)


def test_packed_to_a_store(
    store: Store, awkward_data: Callable[[str], Path], tmp_path: Path
) -> None:
    dataset = open_dataset(awkward_data("parquet"))
    columns = ["x", "text", "color"]
    local = pack_dataset(dataset, tmp_path / "t", columns)
    remote = pack_dataset(dataset, store.at("t"), columns, storage_options=store.options)
    assert remote.table_id == local.table_id
    assert store.names("t") == sorted(f"t/{p.name}" for p in Path(local.path).iterdir())
    ids = np.random.default_rng(1).integers(0, dataset.rows, 500)
    for name, column in PackedGather(remote).gather(ids).items():
        assert values_of(column) == expected_values(awkward_table(), name, ids), name
    remote.verify()
    with store.counting() as requests:
        again = pack_dataset(dataset, store.at("t"), columns, storage_options=store.options)
    assert again.table_id == local.table_id
    assert not [r for r in requests if r.method == "PUT"]
    back = pack_dataset(dataset, tmp_path / "u", columns, reuse=[remote])
    assert back.table_id == local.table_id
    back.verify()


def test_dataset_on_a_store_is_packed_to_this_machine(
    store: Store, awkward_data: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in awkward_data("parquet").iterdir():
        store.put(f"data/{path.name}", path.read_bytes())
    dataset = open_dataset(store.at("data"), storage_options=store.options)
    assert map_dataset(dataset) is None
    table = packed_for(dataset, ["x", "text"], cache_dir=tmp_path)
    assert table.location.is_local
    ids = np.array([10_006, 0, 3001])
    for name, column in PackedGather(table).gather(ids).items():
        assert values_of(column) == expected_values(awkward_table(), name, ids), name
    with store.counting() as requests:
        packed_for(dataset, ["x", "text"], cache_dir=tmp_path)
    assert requests == []


def test_growth_on_a_store(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(2):
        pq.write_table(pa.table({"y": np.arange(10) + 10 * number}), data / f"{number}.parquet")
    first = pack(data, store.at("t"), storage_options=store.options)
    pq.write_table(pa.table({"y": np.arange(5) + 20}), data / "2.parquet")
    with store.counting() as requests:
        grown = pack(data, store.at("t"), storage_options=store.options)
    sent = [r.path.rsplit("/", 1)[-1] for r in requests if r.method == "PUT"]
    assert sorted(n[:6] for n in sent if n[0] != ".") == ["column", "packed", "pages-"]
    assert PackedGather(grown).gather(range(25))["y"].tolist() == list(range(25))
    assert PackedGather(first).gather(range(20))["y"].tolist() == list(range(20))
    (data / "0.parquet").unlink()
    with pytest.raises(PackedConflictError, match="another packed table already, of other rows"):
        pack(data, store.at("t"), storage_options=store.options)


def test_rows_of_everywhere_come_in_few_requests(
    store: Store, wide: PackedTable, values: Any
) -> None:
    """A window of many open groups touches most pages of all of them at once."""
    table = opened(store, uploaded(store, wide), cache_bytes=128 << 20)
    ids = np.random.default_rng(0).permutation(ROWS)[:150]
    with store.counting() as requests:
        rows = PackedGather(table).gather(ids)["x"]
    assert rows.equal(values[ids])  # type: ignore[union-attr]
    gets = [r for r in requests if r.method == "GET" and r.range]
    assert sum(r.sent for r in gets) <= 1.01 * wide.bytes
    assert len(gets) <= 2 * wide.bytes // (2 << 20)  # and none page by page


@pytest.mark.parametrize("where", ["file", "memory"])
def test_cache_stays_within_its_bytes(
    store: Store,
    wide: PackedTable,
    values: Any,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if where == "memory":
        monkeypatch.setattr(packed_mirror, "_fallocate", lambda: None)
    table = opened(store, uploaded(store, wide), cache_bytes=LIMIT, cache_dir=tmp_path / "cache")
    gather = PackedGather(table)
    draw = np.random.default_rng(0)
    for epoch in range(2):
        with store.counting() as requests:
            for start in range(0, ROWS, 2048):  # shuffled within blocks
                ids = start + draw.permutation(2048)
                assert gather.gather(ids)["x"].equal(values[ids])  # type: ignore[union-attr]
                assert table.mirror.kept_bytes <= LIMIT
        gets = [r for r in requests if r.method == "GET" and r.range]
        sent = sum(r.sent for r in gets)
        assert sent <= 1.3 * values.nbytes, epoch
        assert sent / len(gets) >= 900 << 10  # a window is 1 MiB here
    store_ = table.mirror._store
    if where == "file":
        blocks = os.fstat(store_._file.fileno()).st_blocks * 512  # type: ignore[union-attr]
        assert blocks <= LIMIT + (1 << 20)
        assert list((tmp_path / "cache").iterdir()) == []  # the scratch file has no name
    else:
        assert store_.place == "memory"


def test_pages_that_are_here_are_not_asked_for_again(store: Store, wide: PackedTable) -> None:
    table = opened(store, uploaded(store, wide))
    gather = PackedGather(table)
    gather.gather(np.arange(5000))
    with store.counting() as requests:
        gather.gather(np.arange(5000)[::-1])
    assert requests == []


def test_random_rows_of_a_table_larger_than_the_cache(
    store: Store, wide: PackedTable, values: Any
) -> None:
    table = opened(store, uploaded(store, wide), cache_bytes=LIMIT)
    gather = PackedGather(table)
    draw = np.random.default_rng(0)
    for _ in range(8):
        ids = draw.integers(0, ROWS, 40)
        assert gather.gather(ids)["x"].equal(values[ids])  # type: ignore[union-attr]
        assert table.mirror.kept_bytes <= LIMIT
    with pytest.raises(StorageError, match=r"touch .* bytes, and the cache may hold 4,194,304"):
        gather.gather(np.arange(0, ROWS, 64))
    assert gather.gather([7])["x"].equal(values[[7]])  # type: ignore[union-attr]


def test_several_threads(store: Store, wide: PackedTable, values: Any) -> None:
    gather = PackedGather(opened(store, uploaded(store, wide), cache_bytes=LIMIT))
    wrong: list[Any] = []

    def read(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for start in range(0, ROWS, 4096):
            ids = (start + draw.permutation(1024) + 4096 * seed) % ROWS
            if not gather.gather(ids)["x"].equal(values[ids]):  # type: ignore[union-attr]
                wrong.append(ids)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_damage_on_the_store_is_found_when_it_arrives(
    store: Store, wide: PackedTable, values: Any
) -> None:
    url = uploaded(store, wide)
    name = wide.files[1][1].name
    data = bytearray(store.get(f"packed/{name}"))
    data[20 * 65_536 + 5] ^= 64
    store.put(f"packed/{name}", bytes(data))
    gather = PackedGather(opened(store, url))
    assert gather.gather([5000])["x"].equal(values[[5000]])  # type: ignore[union-attr]
    with pytest.raises(PackedCorruptError, match=rf"{name}, page 20 .*No row of it was delivered"):
        gather.gather(np.arange(5000, 9000))
    with pytest.raises(PackedCorruptError, match="page 20"):
        opened(store, url, verify="all")


def test_bit_that_flips_on_the_way(store: Store, wide: PackedTable) -> None:
    gather = PackedGather(opened(store, uploaded(store, wide)))
    store.fail("flip", method="GET", match="column-")
    with pytest.raises(PackedCorruptError, match="expected checksum"):
        gather.gather(np.arange(5000))
    gather.gather(np.arange(5000))  # it was the way, not the file


def test_connections_that_are_cut(store: Store, wide: PackedTable, values: Any) -> None:
    gather = PackedGather(opened(store, uploaded(store, wide)))
    store.fail("cut-body", method="GET", match="column-", times=2)
    ids = np.arange(6000)
    assert gather.gather(ids)["x"].equal(values[ids])  # type: ignore[union-attr]


def test_objects_that_are_missing_or_cut(store: Store, wide: PackedTable) -> None:
    url, name = uploaded(store, wide), wide.files[2][1].name
    whole = store.get(f"packed/{name}")
    store.put(f"packed/{name}", whole[:-1])
    with pytest.raises(PackedCorruptError, match=rf"{name}: expected .* bytes, found"):
        opened(store, url)
    store.delete(f"packed/{name}")
    with pytest.raises(PackedCorruptError, match=rf"{name} is missing"):
        opened(store, url)
    store.put(f"packed/{name}", whole)
    table = opened(store, url)
    store.delete(f"packed/{name}")
    with pytest.raises(PackedCorruptError, match=rf"{name} is missing"):
        PackedGather(table).gather([ROWS - 1])
    with pytest.raises(PackedError, match="There is no packed table at"):
        opened(store, store.at("nothing"))


def test_forked_child_is_told_to_open_the_table_itself(store: Store, wide: PackedTable) -> None:
    table = opened(store, uploaded(store, wide))
    gather = PackedGather(table)
    gather.gather([0])
    child = os.fork()
    if child == 0:
        try:
            gather.gather([0])
        except PackedError as error:
            os._exit(0 if "was opened before this process was forked" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_pickled_by_its_place(store: Store, wide: PackedTable, values: Any) -> None:
    table = opened(store, uploaded(store, wide), cache_bytes=LIMIT)
    again = pickle.loads(pickle.dumps(table))
    assert again.table_id == table.table_id
    assert PackedGather(again).gather([9])["x"].equal(values[[9]])  # type: ignore[union-attr]
    assert again.mirror._limit == table.mirror._limit
    assert len(pickle.dumps(wide)) < 1000


def test_parameters(store: Store, wide: PackedTable) -> None:
    with pytest.raises(ParameterError, match="'cache_bytes' parameter must be an int in the range"):
        PackedGather(opened(store, uploaded(store, wide), cache_bytes=1))


def test_order_of_a_plan_on_a_store(store: Store, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    values_ = np.arange(500) * 3
    pq.write_table(pa.table({"y": values_}), data / "a.parquet")
    made = plan("shuffle", data, out=tmp_path / "plan", batch_size=7, epochs=(0, 1), seed=2)
    table = pack(data, store.at("t"), order=made, storage_options=store.options)
    batch = PackedGather(table).gather(np.arange(500))
    assert batch["y"].tolist() == values_[batch["row"].numpy()].tolist()  # type: ignore[union-attr]
