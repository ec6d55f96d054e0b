"""Datasets: what is listed, in which order, with which ids, and that values are those of Arrow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.dataset import Dataset, open_dataset
from batchloom.dataplane.errors import (
    DatasetChangedError,
    DatasetError,
    MissingColumnError,
    ParameterError,
    RowIdError,
    SchemaDriftError,
)
from batchloom.tests.contracts.awkward import (
    AWKWARD_FRAGMENTS,
    AWKWARD_ROWS,
    awkward_table,
    write_fragment,
)

FORMATS = ["parquet", "ipc", "stream"]
ENDINGS = {"parquet": ".parquet", "ipc": ".arrow", "stream": ".arrows"}


def kinds_table(start: int, stop: int) -> pa.Table:
    """Rows of every kind of column that Arrow files hold, nulls among them."""
    k = list(range(start, stop))
    return pa.table(
        {
            "row": pa.array(k, pa.int64()),
            "nullable": pa.array([None if i % 3 == 0 else i for i in k], pa.int32()),
            "maybe": pa.array([None if i % 5 == 0 else i % 2 == 0 for i in k], pa.bool_()),
            "text": pa.array([None if i % 7 == 0 else f"row {i}" for i in k], pa.string()),
            "long": pa.array([f"{i}" * 3 for i in k], pa.large_string()),
            "bytes": pa.array([b"" if i % 4 else bytes([i % 256] * 3) for i in k], pa.binary()),
            "fixed": pa.array([bytes([i % 256, 1]) for i in k], pa.binary(2)),
            "list": pa.array(
                [None if i % 6 == 0 else [i] * (i % 3) for i in k], pa.list_(pa.int16())
            ),
            "vector": pa.array([[i, i + 0.5] for i in k], pa.list_(pa.float32(), 2)),
            "matrix": pa.array(
                [[[i, 1, 2], [3, 4, i]] for i in k], pa.list_(pa.list_(pa.int32(), 3), 2)
            ),
            "struct": pa.array(
                [None if i % 8 == 0 else {"a": i, "b": {"c": [str(i)]}} for i in k],
                pa.struct([("a", pa.int64()), ("b", pa.struct([("c", pa.list_(pa.string()))]))]),
            ),
            "records": pa.array(
                [[{"x": i, "y": None}] * (i % 2) for i in k],
                pa.list_(pa.struct([("x", pa.int64()), ("y", pa.float64())])),
            ),
            "map": pa.array([[(str(i), i)] for i in k], pa.map_(pa.string(), pa.int64())),
            "decimal": pa.array([Decimal(i) / 8 for i in k], pa.decimal128(12, 3)),
            "day": pa.array(k, pa.int32()).cast(pa.date32()),
            "color": pa.array(
                [["red", "blue"][i % 2] if i % 3 else None for i in k], pa.string()
            ).dictionary_encode(),
            "nothing": pa.nulls(len(k)),
        }
    )


def write_kinds(folder: Path, format_: str, rows: list[int], chunk: int = 4) -> pa.Table:
    """Write fragments of so many rows; return all rows."""
    start = 0
    for number, count in enumerate(rows):
        path = folder / f"part-{number}{ENDINGS[format_]}"
        write_fragment(kinds_table(start, start + count), path, format_, chunk)
        start += count
    return kinds_table(0, start)


def small(folder: Path, *rows: int, names: list[str] | None = None) -> Path:
    """Write Parquet files of so many rows; column `x` counts over all of them."""
    folder.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, count in enumerate(rows):
        name = f"part-{number}.parquet" if names is None else names[number]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"x": np.arange(start, start + count)}), folder / name)
        start += count
    return folder


def paths(dataset: Dataset) -> list[str]:
    return [f.label for f in dataset.snapshot.fragments]


def values(dataset: Dataset, column: str = "x") -> list[Any]:
    """Return a column as it is scanned, checking the ids on the way."""
    out: list[Any] = []
    for part in dataset.scan([column]):
        assert part.batch.schema.names == [column]
        ids = part.row_ids()
        assert ids[0] == part.first_row_id
        assert len(ids) == part.batch.num_rows > 0
        taken = dataset.take(ids, [column])[column].to_pylist()
        assert taken == part.batch.column(0).to_pylist()
        out += taken
    return out


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_the_awkward_dataset(awkward_data: Callable[[str], Path], format_: str) -> None:
    """7 uneven fragments, an empty one and one of a single row: every value in its place."""
    dataset = open_dataset(awkward_data(format_))
    assert dataset.rows == AWKWARD_ROWS
    assert [f.rows for f in dataset.snapshot.fragments] == list(AWKWARD_FRAGMENTS.values())
    assert paths(dataset) == [f"data:part-{n}{ENDINGS[format_]}" for n in AWKWARD_FRAGMENTS]
    expected = awkward_table()
    scanned = pa.Table.from_batches([p.batch for p in dataset.scan()])
    assert_same_values(scanned, expected)
    ids = np.concatenate([[0, 10_006, 3001, 3000, 3002, 5], np.arange(5060, 5070)])
    assert_same_values(dataset.take(ids), expected.take(pa.array(ids)))
    position = 0
    for part in dataset.scan(["row"]):
        assert part.first_row_id == position
        assert part.batch.column(0).to_pylist() == part.row_ids().tolist()
        position += part.batch.num_rows
    assert position == AWKWARD_ROWS


def assert_same_values(found: pa.Table, expected: pa.Table) -> None:
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        one, other = found[name], expected[name]
        assert len(one) == len(other)
        if isinstance(one.type, pa.BaseExtensionType):
            one, other = (
                pa.chunked_array([c.storage for c in column.chunks]) for column in (one, other)
            )
        assert one.to_pylist() == other.to_pylist(), name


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("format_", FORMATS)
def test_every_kind_of_column_equals_arrows_own_reading(
    tmp_path: Path, format_: str, chunk: int
) -> None:
    expected = write_kinds(tmp_path, format_, [9, 0, 1, 13], chunk)
    if format_ == "parquet":
        whole = pa.concat_tables(pq.read_table(p) for p in sorted(tmp_path.iterdir()))
        assert whole.to_pylist() == expected.to_pylist()
    dataset = open_dataset(tmp_path)
    assert {f.name: f.type for f in dataset.schema} == {f.name: f.type for f in expected.schema}
    scanned = pa.Table.from_batches([p.batch for p in dataset.scan()])
    scanned.validate(full=True)
    assert scanned.to_pylist() == expected.to_pylist()
    ids = [22, 0, 9, 9, 10, 3, 22, 8, 11]
    taken = dataset.take(ids)
    taken.validate(full=True)
    assert taken.to_pylist() == expected.take(pa.array(ids)).to_pylist()
    assert taken.schema == dataset.schema
    for name in dataset.schema.names:
        assert dataset.take([5, 21], [name]).to_pylist() == (
            expected.select([name]).take(pa.array([5, 21])).to_pylist()
        )


@pytest.mark.parametrize("compression", [None, "zstd", "lz4"])
@pytest.mark.parametrize("format_", ["ipc", "stream"])
def test_compressed_ipc(tmp_path: Path, format_: str, compression: str | None) -> None:
    table = kinds_table(0, 100)
    make = pa.ipc.new_file if format_ == "ipc" else pa.ipc.new_stream
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with make(tmp_path / "a.arrow", table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=30)
    dataset = open_dataset(tmp_path)
    assert dataset.rows == 100
    ids = [99, 0, 30, 29, 60]
    assert dataset.take(ids).to_pylist() == table.take(pa.array(ids)).to_pylist()


def test_feather_and_its_names(tmp_path: Path) -> None:
    """Feather is IPC; endings do not depend on case, formats not on endings."""
    import pyarrow.feather

    table = pa.table({"x": [1, 2, 3]})
    pyarrow.feather.write_feather(table, tmp_path / "a.FEATHER")
    write_fragment(pa.table({"x": [4]}), tmp_path / "b.ipc", "ipc")
    write_fragment(pa.table({"x": [5]}), tmp_path / "c.arrow", "stream")
    write_fragment(pa.table({"x": [6]}), tmp_path / "d.Parquet", "parquet")
    write_fragment(pa.table({"x": [7]}), tmp_path / "e.pq", "parquet")
    write_fragment(pa.table({"x": [8]}), tmp_path / "f.arrow", "parquet")
    assert values(open_dataset(tmp_path)) == [1, 2, 3, 4, 5, 6, 7, 8]


def test_large_batches_are_scanned_in_pieces(tmp_path: Path) -> None:
    table = pa.table({"x": np.arange(150_000)})
    for format_ in FORMATS:
        write_fragment(table, tmp_path / f"a{ENDINGS[format_]}", format_, 200_000)
    dataset = open_dataset(tmp_path)
    sizes = [p.batch.num_rows for p in dataset.scan(["x"])]
    assert max(sizes) == 65_536
    assert sum(sizes) == 450_000
    starts = [p.first_row_id for p in dataset.scan(["x"])]
    assert starts == [0, 65_536, 131_072, 150_000, 215_536, 281_072, 300_000, 365_536, 431_072]


def test_dictionaries_differ_by_fragment(tmp_path: Path) -> None:
    for number, words in enumerate([["a", "b", "a"], ["c", "a"], ["b", None]]):
        table = pa.table({"w": pa.array(words).dictionary_encode()})
        write_fragment(table, tmp_path / f"{number}.arrow", "ipc")
    dataset = open_dataset(tmp_path)
    taken = dataset.take([6, 3, 5, 0, 4, 1])
    assert taken["w"].to_pylist() == [None, "c", "b", "a", "a", "b"]
    assert pa.types.is_dictionary(taken["w"].type)


def test_columns_with_dots_and_of_structs(tmp_path: Path) -> None:
    table = pa.table({"a.b": [1, 2], "a": [{"b": 3, "c": 4}, {"b": 5, "c": 6}], "a.": [7, 8]})
    pq.write_table(table, tmp_path / "x.parquet")
    dataset = open_dataset(tmp_path)
    for name in table.column_names:
        assert dataset.take([1, 0], [name]).to_pylist() == table.select([name]).to_pylist()[::-1]
        assert values(dataset, name) == table[name].to_pylist()


def test_projection_keeps_the_order_asked_for(tmp_path: Path) -> None:
    for format_ in FORMATS:
        write_kinds(tmp_path / format_, format_, [5], 100)
        dataset = open_dataset(tmp_path / format_)
        (part,) = dataset.scan(["text", "row"])
        assert part.batch.schema.names == ["text", "row"]
        assert dataset.take([3], ["long", "row", "list"]).column_names == ["long", "row", "list"]
        assert sum(p.batch.num_rows for p in dataset.scan([])) == 5


# --- requests -------------------------------------------------------------------------------------


def test_take_by_hand(tmp_path: Path) -> None:
    dataset = open_dataset(small(tmp_path, 3, 0, 1, 4))
    for ids in ([], [0], [7], [3, 3, 3], [7, 0, 3, 2, 7, 1], list(range(8)), list(range(8))[::-1]):
        for request in (ids, tuple(ids), np.array(ids, np.uint64), np.array(ids, np.int32)):
            assert dataset.take(request)["x"].to_pylist() == ids
    empty = dataset.take([], ["x"])
    assert (empty.num_rows, empty.schema) == (0, pa.schema([("x", pa.int64())]))


def test_take_with_gaps(tmp_path: Path) -> None:
    old = open_dataset(small(tmp_path, 2, 3, 2)).snapshot
    (tmp_path / "part-1.parquet").unlink()
    pq.write_table(pa.table({"x": [100, 101]}), tmp_path / "part-7.parquet")
    dataset = open_dataset(tmp_path, since=old)
    assert dataset.take([8, 0, 5, 7, 6])["x"].to_pylist() == [101, 0, 5, 100, 6]
    assert values(dataset) == [0, 1, 5, 6, 100, 101]
    assert [p.first_row_id for p in dataset.scan()] == [0, 5, 7]
    for bad in (2, 4, 9, 2**63, 2**64 - 1):
        with pytest.raises(
            RowIdError, match=f"Row {bad} is in no fragment: .* 6 rows .* with gaps"
        ):
            dataset.take(np.array([0, bad], np.uint64))


@pytest.mark.parametrize("bad", [[-1], [0.5], [[0, 1]], ["a"], [True], np.float64([1.0])])
def test_requests_that_are_no_row_ids(tmp_path: Path, bad: Any) -> None:
    dataset = open_dataset(small(tmp_path, 3))
    with pytest.raises(RowIdError):
        dataset.take(bad)


def test_scan_of_chosen_fragments(tmp_path: Path) -> None:
    dataset = open_dataset(small(tmp_path, 2, 0, 3, 1))
    parts = list(dataset.scan(["x"], fragments=[2, 0, 1]))
    assert [(p.first_row_id, p.batch.column(0).to_pylist()) for p in parts] == [
        (2, [2, 3, 4]),
        (0, [0, 1]),
    ]
    assert [p.fragment.label for p in parts] == ["data:part-2.parquet", "data:part-0.parquet"]


def test_an_unknown_column_has_a_suggestion(tmp_path: Path) -> None:
    write_kinds(tmp_path, "parquet", [3])
    dataset = open_dataset(tmp_path)
    for ask in (lambda: dataset.scan(["txet"]), lambda: dataset.take([0], ["txet"])):
        with pytest.raises(MissingColumnError) as caught:
            ask()
        message = str(caught.value)
        assert message.startswith("There is no column 'txet' in the dataset. Did you mean 'text'?")
        assert "It has: row, nullable" in message


# --- listing --------------------------------------------------------------------------------------


def test_natural_order(tmp_path: Path) -> None:
    names = ["part-1.parquet", "part-2.parquet", "part-10.parquet", "part-010.parquet"]
    small(tmp_path, 1, 1, 1, 1, names=names)
    dataset = open_dataset(tmp_path)
    assert paths(dataset) == [
        "data:part-1.parquet",
        "data:part-2.parquet",
        "data:part-010.parquet",
        "data:part-10.parquet",
    ]


def test_hidden_and_strange_files_are_left_alone(tmp_path: Path) -> None:
    small(tmp_path, 2)
    for name in ("notes.txt", "_SUCCESS", ".part-9.parquet", "_part.parquet", "data.json", "x.csv"):
        (tmp_path / name).write_text("no data")
    for name in ("_delta_log/0.parquet", ".cache/1.parquet", "sub/.hidden/2.parquet", "sub/x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("no data")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / ".loop").symlink_to(tmp_path)
    for where in (tmp_path, tmp_path / "*", tmp_path / "**" / "*"):
        assert paths(open_dataset(where)) == ["data:part-0.parquet"]


def test_nested_folders(tmp_path: Path) -> None:
    names = ["b/2.parquet", "b/10.parquet", "a/deep/er/1.parquet", "0.parquet"]
    small(tmp_path, 1, 1, 1, 1, names=names)
    dataset = open_dataset(tmp_path)
    assert paths(dataset) == [
        "data:0.parquet",
        "data:a/deep/er/1.parquet",
        "data:b/2.parquet",
        "data:b/10.parquet",
    ]
    assert values(dataset) == [3, 2, 0, 1]


def test_a_file_a_glob_and_a_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path / "d", 2, 1, 3, names=["a/1.parquet", "a/2.parquet", "b/1.parquet"])
    d = tmp_path / "d"
    cases: list[tuple[Any, list[str]]] = [
        (d / "a/1.parquet", ["1.parquet"]),
        (str(d / "a/1.parquet"), ["1.parquet"]),
        (f"file://{d}/a/1.parquet", ["1.parquet"]),
        (d / "a" / "*.parquet", ["1.parquet", "2.parquet"]),
        (d / "*" / "1.parquet", ["a/1.parquet", "b/1.parquet"]),
        (d / "**" / "[12].parquet", ["a/1.parquet", "a/2.parquet", "b/1.parquet"]),
        ([d / "b/1.parquet"], ["1.parquet"]),
        ([d / "a/2.parquet", d / "a/1.parquet"], ["1.parquet", "2.parquet"]),
        ([d / "b/1.parquet", str(d / "a/1.parquet")], ["a/1.parquet", "b/1.parquet"]),
        ((d / "b/1.parquet", d / "a/1.parquet"), ["a/1.parquet", "b/1.parquet"]),
    ]
    for where, expected in cases:
        assert paths(open_dataset(where)) == [f"data:{name}" for name in expected], where
    monkeypatch.chdir(d)
    assert paths(open_dataset("a")) == ["data:1.parquet", "data:2.parquet"]
    assert paths(open_dataset("./a/../b")) == ["data:1.parquet"]


def test_a_name_with_signs_of_a_glob_is_a_name_first(tmp_path: Path) -> None:
    small(tmp_path / "run[1]", 2)
    assert paths(open_dataset(tmp_path / "run[1]")) == ["data:part-0.parquet"]
    assert open_dataset(tmp_path / "run[1]" / "part-0.parquet").rows == 2


def test_several_sources(tmp_path: Path) -> None:
    small(tmp_path / "w", 2, 1)
    small(tmp_path / "b", 3)
    for given in (
        {"web": tmp_path / "w", "books": str(tmp_path / "b" / "*")},
        {"books": [tmp_path / "b" / "part-0.parquet"], "web": tmp_path / "w"},
    ):
        dataset = open_dataset(given)
        assert paths(dataset) == [
            "books:part-0.parquet",
            "web:part-0.parquet",
            "web:part-1.parquet",
        ]
        assert values(dataset) == [0, 1, 2, 0, 1, 2]


def test_sources_may_differ_in_columns(tmp_path: Path) -> None:
    """As in a graph: one source a node type. What is asked of a source, it must hold."""
    write_fragment(
        pa.table({"x": [1, 2], "p": [0.5, 1.5]}), tmp_path / "a" / "1.parquet", "parquet"
    )
    write_fragment(
        pa.table({"x": [3, 4], "q": ["u", "v"]}), tmp_path / "b" / "1.parquet", "parquet"
    )
    sources = {"a": tmp_path / "a", "b": tmp_path / "b"}
    fresh = open_dataset(sources)
    for dataset in (fresh, open_dataset(sources, snapshot=fresh.snapshot)):
        assert set(dataset.schema.names) == {"x", "p", "q"}
        assert dataset.take([3, 0], ["x"])["x"].to_pylist() == [4, 1]
        assert dataset.take([3, 2], ["q", "x"]).to_pylist() == [
            {"q": "v", "x": 4},
            {"q": "u", "x": 3},
        ]
        assert dataset.take([1], ["p"])["p"].to_pylist() == [1.5]
        (part,) = dataset.scan(["q"], fragments=[1])
        assert part.batch.column(0).to_pylist() == ["u", "v"]
        with pytest.raises(SchemaDriftError, match=r"b:1\.parquet has no column 'p'"):
            dataset.take([0, 3], ["p"])
        with pytest.raises(SchemaDriftError, match=r"b:1\.parquet has no column 'p'"):
            list(dataset.scan(["p"]))


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder of fsspec's memory filesystem."""
    root = f"/{uuid.uuid4().hex}"
    yield f"memory:/{root}"
    fsspec.filesystem("memory").rm(root, recursive=True)


@pytest.mark.parametrize("format_", FORMATS)
def test_files_in_memory(tmp_path: Path, memory: str, format_: str) -> None:
    """The same paths, ids, fingerprint and values as on disk, in each form of naming."""
    expected = write_kinds(tmp_path / "d", format_, [5, 0, 7])
    ending = ENDINGS[format_]
    for path in (tmp_path / "d").iterdir():
        with fsspec.open(f"{memory}/d/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    with fsspec.open(f"{memory}/d/_SUCCESS", "wb") as file:
        file.write(b"")
    local = open_dataset(tmp_path / "d")
    names = [f"{memory}/d/part-{n}{ending}" for n in (2, 0, 1)]
    for where in (
        f"{memory}/d",
        f"{memory}/d/",
        f"{memory}/d/*{ending}",
        f"{memory}/d/part-?.*",
        names,
    ):
        dataset = open_dataset(where)
        assert dataset.snapshot == local.snapshot
        assert dataset.take([11, 0, 5, 0]).to_pylist() == (
            expected.take(pa.array([11, 0, 5, 0])).to_pylist()
        )
    assert open_dataset(names[0]).rows == 7
    nested = open_dataset(f"{memory}/**")
    assert paths(nested) == [f"data:d/part-{n}{ending}" for n in range(3)]
    assert open_dataset(f"{memory}/d", snapshot=local.snapshot).take([6])["row"].to_pylist() == [6]


def test_files_in_memory_that_are_not_there(memory: str) -> None:
    with fsspec.open(f"{memory}/x.txt", "wb") as file:
        file.write(b"")
    for where in (f"{memory}/d", f"{memory}/d/x.parquet", [f"{memory}/d/x.parquet"]):
        with pytest.raises(DatasetError, match="no such file or directory"):
            open_dataset(where)
    with pytest.raises(DatasetError, match="There is no Parquet or Arrow file"):
        open_dataset(f"{memory}/*.parquet")
    with pytest.raises(DatasetError, match="nosuch"):
        open_dataset("nosuch://bucket/data")


# --- what cannot be opened ------------------------------------------------------------------------


def test_places_without_data(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nothing-here: no such file or directory"):
        open_dataset(tmp_path / "nothing-here")
    with pytest.raises(DatasetError, match=r"no Parquet or Arrow file in .* \(found nothing\)"):
        open_dataset(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DatasetError, match=r"\(found 1 other files\).*\.parquet, \.pq, \.arrow"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"found 1 other files"):
        open_dataset(tmp_path / "a.txt")
    with pytest.raises(DatasetError, match=r"found nothing"):
        open_dataset(tmp_path / "*.parquet")
    with pytest.raises(DatasetError, match=r"the list of 0 files"):
        open_dataset([])
    with pytest.raises(DatasetError, match="at least one source"):
        open_dataset({})
    with pytest.raises(DatasetError, match="Source name 'a/b' must be made of letters"):
        open_dataset({"a/b": tmp_path})


def test_lists_that_are_none(tmp_path: Path) -> None:
    small(tmp_path, 1, 1)
    file = tmp_path / "part-0.parquet"
    with pytest.raises(DatasetError, match="names the same file twice"):
        open_dataset([file, tmp_path / "part-1.parquet", str(file)])
    with pytest.raises(DatasetError, match="is a directory; a list names files"):
        open_dataset([file, tmp_path])
    with pytest.raises(DatasetError, match=r"part-9\.parquet: no such file"):
        open_dataset([file, tmp_path / "part-9.parquet"])
    with fsspec.open("memory://mixed/a.parquet", "wb") as out:
        out.write(file.read_bytes())
    with pytest.raises(DatasetError, match="must be in one place"):
        open_dataset([file, "memory://mixed/a.parquet"])


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    small(tmp_path, 1)
    try:
        os.rename(tmp_path / "part-0.parquet", os.fsencode(tmp_path) + b"/part-\xff.parquet")
    except OSError:
        pytest.skip("this filesystem takes no such name")
    with pytest.raises(DatasetError, match="name is not UTF-8"):
        open_dataset(tmp_path)


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    small(tmp_path / "d", 1)
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    with pytest.raises(DatasetError.__mro__[1], match="Too many levels of symbolic links"):
        open_dataset(tmp_path / "d")


def test_a_broken_link_to_data_is_named(tmp_path: Path) -> None:
    small(tmp_path, 1)
    (tmp_path / "part-1.parquet").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"part-1\.parquet: no such file"):
        open_dataset(tmp_path)


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    small(tmp_path / "real", 2, 1)
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "one.parquet").symlink_to(tmp_path / "real" / "part-0.parquet")
    (tmp_path / "d" / "sub").symlink_to(tmp_path / "real")
    dataset = open_dataset(tmp_path / "d")
    assert paths(dataset) == [
        "data:one.parquet",
        "data:sub/part-0.parquet",
        "data:sub/part-1.parquet",
    ]


# --- empty ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_a_dataset_without_rows(tmp_path: Path, format_: str) -> None:
    """Files without a row, with and without a chunk."""
    write_kinds(tmp_path, format_, [0, 0])
    dataset = open_dataset(tmp_path)
    assert (dataset.rows, dataset.snapshot.next_row_id) == (0, 0)
    assert list(dataset.scan()) == []
    assert dataset.take([]).num_rows == 0
    assert dataset.take([]).schema == dataset.schema
    with pytest.raises(RowIdError, match="Row 0 is in no fragment: the snapshot holds 0 rows"):
        dataset.take([0])


def test_chunks_without_rows(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.int64())])
    pieces = [[], [1, 2], [], [3], []]
    for make, name in ((pa.ipc.new_file, "a.arrow"), (pa.ipc.new_stream, "b.arrows")):
        with make(tmp_path / name, schema) as writer:
            for piece in pieces:
                writer.write_batch(pa.record_batch({"x": pa.array(piece, pa.int64())}))
    with pq.ParquetWriter(tmp_path / "c.parquet", schema) as parquet:
        for piece in pieces:
            parquet.write_table(pa.table({"x": pa.array(piece, pa.int64())}))
    dataset = open_dataset(tmp_path)
    assert values(dataset) == [1, 2, 3] * 3
    assert dataset.take([2, 5, 8, 0])["x"].to_pylist() == [3, 3, 3, 1]


# --- schemas --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", FORMATS)
def test_drift_of_a_type_names_fragment_column_and_types(tmp_path: Path, format_: str) -> None:
    for number, type_ in enumerate([pa.float32(), pa.float32(), pa.string()]):
        table = pa.table({"k": [1], "loss": pa.array([1], pa.int8()).cast(type_)})
        write_fragment(table, tmp_path / f"part-{number}{ENDINGS[format_]}", format_)
    with pytest.raises(SchemaDriftError) as caught:
        open_dataset(tmp_path)
    message = str(caught.value)
    assert f"Column 'loss' is string in data:part-2{ENDINGS[format_]} but float" in message
    assert "never casts silently" in message


def test_drift_blames_the_later_fragment_in_natural_order(tmp_path: Path) -> None:
    write_fragment(pa.table({"x": [1]}), tmp_path / "part-2.parquet", "parquet")
    write_fragment(pa.table({"x": ["a"]}), tmp_path / "part-10.parquet", "parquet")
    with pytest.raises(SchemaDriftError, match=r"is string in data:part-10\.parquet but int64"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "types",
    [
        (pa.int32(), pa.int64()),
        (pa.string(), pa.large_string()),
        (pa.list_(pa.int8()), pa.list_(pa.int16())),
        (pa.list_(pa.int8(), 2), pa.list_(pa.int8(), 3)),
        (pa.timestamp("us"), pa.timestamp("ms")),
        (pa.struct([("a", pa.int8())]), pa.struct([("b", pa.int8())])),
        (pa.dictionary(pa.int8(), pa.string()), pa.string()),
    ],
    ids=str,
)
def test_types_that_differ_are_drift(tmp_path: Path, types: Any) -> None:
    for number, type_ in enumerate(types):
        table = pa.table({"x": pa.array([], type_)})
        write_fragment(table, tmp_path / f"{number}.arrow", "ipc")
    with pytest.raises(SchemaDriftError, match=r"Column 'x' is .* in data:1\.arrow but"):
        open_dataset(tmp_path)


def test_a_column_missing_in_one_fragment_matters_where_it_is_used(tmp_path: Path) -> None:
    write_fragment(pa.table({"x": [1], "y": [2]}), tmp_path / "1.parquet", "parquet")
    write_fragment(pa.table({"x": [3]}), tmp_path / "2.parquet", "parquet")
    write_fragment(pa.table({"z": [0], "x": [5], "y": [6]}), tmp_path / "3.parquet", "parquet")
    fresh = open_dataset(tmp_path)
    assert values(fresh) == [1, 3, 5]
    assert fresh.take([0, 2], ["x"]).to_pylist() == [{"x": 1}, {"x": 5}]
    for ask in (
        lambda d: list(d.scan(["y"])),
        lambda d: d.take([1], ["y"]),
        lambda d: list(d.scan()),
    ):
        for dataset in (fresh, open_dataset(tmp_path, snapshot=fresh.snapshot)):
            with pytest.raises(SchemaDriftError, match=r"data:[12]\.parquet has no column '[yz]'"):
                ask(dataset)
    for ask in (fresh.scan, lambda: fresh.scan(["y"]), lambda: fresh.check_columns(["y"])):
        with pytest.raises(SchemaDriftError, match=r"has no column '[yz]'; .* int64"):
            ask()  # before the first batch
    fresh.check_columns(["y"], fragments=[0, 2])


def test_what_changes_no_value_is_no_drift(tmp_path: Path) -> None:
    """Nullability, also nested, names of list items, metadata of pandas and HF."""
    nested = {"s": [{"a": 1}], "l": [[1, 2]], "v": [[1.0, 2.0]]}
    plain = pa.schema(
        [
            ("x", pa.int64()),
            ("s", pa.struct([pa.field("a", pa.int64())])),
            ("l", pa.list_(pa.field("item", pa.int64()))),
            ("v", pa.list_(pa.float32(), 2)),
        ]
    )
    strict = pa.schema(
        [
            pa.field("x", pa.int64(), nullable=False, metadata={"PARQUET:field_id": "7"}),
            pa.field("s", pa.struct([pa.field("a", pa.int64(), nullable=False)]), nullable=False),
            pa.field("l", pa.list_(pa.field("element", pa.int64(), nullable=False))),
            pa.field("v", pa.list_(pa.field("item", pa.float32(), nullable=False), 2)),
        ],
        metadata={"pandas": "{}", "huggingface": '{"info": {}}'},
    )
    digests = set()
    for format_ in FORMATS:
        folder = tmp_path / format_
        tables = []
        for number, schema in enumerate([plain, strict, plain]):
            table = pa.table({"x": [number], **nested}, schema=schema)
            write_fragment(table, folder / f"{number}{ENDINGS[format_]}", format_)
            tables += table.to_pylist()
            digests.add(open_dataset(folder / f"{number}{ENDINGS[format_]}").snapshot.schema_digest)
        dataset = open_dataset(folder)
        assert dataset.schema == plain
        taken = dataset.take([2, 0, 1])
        assert taken.to_pylist() == [tables[2], tables[0], tables[1]]
        scanned = pa.Table.from_batches([p.batch for p in dataset.scan()])
        assert scanned.to_pylist() == tables
        digests.add(dataset.snapshot.schema_digest)
    assert len(digests) == 1


def test_schema_digests_tell_names_and_types_not_their_order(tmp_path: Path) -> None:
    tables = {
        "one": {"a": pa.array([1], pa.int8()), "b": pa.array([1], pa.int16())},
        "order": {"b": pa.array([1], pa.int16()), "a": pa.array([1], pa.int8())},
        "name": {"a": pa.array([1], pa.int8()), "c": pa.array([1], pa.int16())},
        "type": {"a": pa.array([1], pa.int16()), "b": pa.array([1], pa.int16())},
    }
    digests = {}
    for name, columns in tables.items():
        write_fragment(pa.table(columns), tmp_path / name / "x.parquet", "parquet")
        digests[name] = open_dataset(tmp_path / name).snapshot.schema_digest
    assert digests["one"] == digests["order"]
    assert len(set(digests.values())) == 3


def test_two_columns_of_one_name(tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    write_fragment(table, tmp_path / "a.arrow", "ipc")
    with pytest.raises(DatasetError, match=r"data:a\.arrow: two columns have the same name"):
        open_dataset(tmp_path).take([0])


# --- Hugging Face ---------------------------------------------------------------------------------

HF_OPEN = """
import sys
from batchloom.dataplane import open_dataset
dataset = open_dataset(sys.argv[1])
print(dataset.snapshot.fingerprint, dataset.take([25, 0, 19]).to_pylist())
assert "datasets" not in sys.modules
"""


def test_a_directory_of_hugging_face_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`save_to_disk` writes IPC streams in shards; its library need not be there to read them."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "image": datasets.Array2D((2, 3), "float32"),
            "tokens": datasets.Sequence(datasets.Value("int32")),
        }
    )
    rows = {
        "text": [f"row {i}" for i in range(26)],
        "label": [i % 2 for i in range(26)],
        "image": [np.full((2, 3), i, np.float32) for i in range(26)],
        "tokens": [list(range(i % 4)) for i in range(26)],
    }
    made = datasets.Dataset.from_dict(rows, features=features)
    made.save_to_disk(tmp_path / "d", num_shards=3)
    dataset = open_dataset(tmp_path / "d")
    assert len(dataset.snapshot.fragments) == 3
    assert dataset.rows == 26
    taken = dataset.take([25, 0, 19]).to_pylist()
    assert [t["text"] for t in taken] == ["row 25", "row 0", "row 19"]
    assert [t["label"] for t in taken] == [1, 0, 1]
    assert taken[0]["image"] == [[25.0] * 3] * 2
    assert values(dataset, "tokens") == rows["tokens"]
    out = subprocess.run(
        [sys.executable, "-c", HF_OPEN, tmp_path / "d"], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == f"{dataset.snapshot.fingerprint} {taken}"


# --- with a snapshot ------------------------------------------------------------------------------


def test_a_snapshot_is_opened_exactly(tmp_path: Path) -> None:
    snapshot = open_dataset(small(tmp_path, 2, 3)).snapshot
    pq.write_table(pa.table({"x": [99]}), tmp_path / "part-00.parquet")
    dataset = open_dataset(tmp_path, snapshot=snapshot)
    assert dataset.snapshot is snapshot
    assert dataset.unplanned == 1
    assert values(dataset) == [0, 1, 2, 3, 4]
    assert len(dataset.present()) == 2
    snapshot.save(tmp_path / "snap.json")
    again = open_dataset(tmp_path, snapshot=tmp_path / "snap.json")
    assert again.snapshot == snapshot
    with pytest.raises(ParameterError, match="not both"):
        open_dataset(tmp_path, snapshot=snapshot, since=snapshot)


def test_fragments_that_are_not_needed_may_be_gone_or_changed(tmp_path: Path) -> None:
    """What is read all the same is checked first: no row of another file is delivered."""
    snapshot = open_dataset(small(tmp_path, 2, 3, 2, 4)).snapshot
    (tmp_path / "part-0.parquet").unlink()
    pq.write_table(pa.table({"x": [7, 7]}), tmp_path / "part-2.parquet")
    dataset = open_dataset(tmp_path, snapshot=snapshot, needed=[1])
    assert [r is None for r in dataset.refs] == [True, False, False, False]
    assert dataset.take([2, 3, 10])["x"].to_pylist() == [2, 3, 10]
    with pytest.raises(DatasetChangedError, match=r"data:part-0\.parquet was not there"):
        dataset.take([0])
    with pytest.raises(DatasetChangedError, match=r"data:part-2\.parquet was rewritten after"):
        dataset.take([5])
    for needed in ([0], [2], [1, 2], None):
        with pytest.raises(DatasetChangedError):
            open_dataset(tmp_path, snapshot=snapshot, needed=needed)


def test_a_file_rewritten_after_it_was_listed(tmp_path: Path) -> None:
    dataset = open_dataset(small(tmp_path, 4))
    shutil.copy(tmp_path / "part-0.parquet", tmp_path / "copy")
    pq.write_table(pa.table({"x": [3, 2, 1, 9]}), tmp_path / "part-0.parquet")
    for read in (lambda: dataset.take([0]), lambda: list(dataset.scan(["x"]))):
        with pytest.raises(
            DatasetChangedError, match=r"part-0\.parquet was rewritten after it was"
        ):
            read()
    shutil.copy(tmp_path / "copy", tmp_path / "part-0.parquet")
    assert dataset.take([0])["x"].to_pylist() == [0]


def test_a_dataset_opened_again(tmp_path: Path) -> None:
    dataset = open_dataset(small(tmp_path, 2, 2))
    assert open_dataset(dataset) is dataset
    assert open_dataset(dataset, snapshot=dataset.snapshot).take([3])["x"].to_pylist() == [3]
    pq.write_table(pa.table({"x": [8, 8, 8]}), tmp_path / "part-1.parquet")
    with pytest.raises(DatasetChangedError, match=r"'part-1\.parquet' .* was rewritten"):
        open_dataset(dataset, snapshot=dataset.snapshot)
    again = open_dataset(dataset, since=dataset.snapshot)
    assert [f.first_row_id for f in again.snapshot.fragments] == [0, 4]
    assert again.take([4, 0])["x"].to_pylist() == [8, 0]
