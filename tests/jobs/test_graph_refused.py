"""Keys by which edges name nodes, and what ``graph build`` refuses: one clear error each."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import (
    BatchloomError,
    ColumnTypeError,
    FragmentCorruptError,
    InvalidValueError,
    JobSpecError,
    MissingColumnError,
    NoRoomError,
    ParameterError,
    SchemaDriftError,
    SelectionError,
)
from batchloom.jobs.graph_build import build_graph
from batchloom.samplers.graph.graph_files import open_graph
from batchloom.tests.jobs.graph_tables import contents, edge_table, expected, same, write

# --- keys ----------------------------------------------------------------------------------------


def test_edges_may_name_nodes_by_keys(tmp_path: Path) -> None:
    table = edge_table(3000, 90)
    rng = np.random.default_rng(5)
    names = np.array([f"node-{i}" for i in rng.permutation(1000)[:90]])
    numbers = rng.permutation(10**12 + np.arange(90))
    nodes = write(tmp_path / "n", pa.table({"doi": names, "number": numbers}), 4)
    source, target = table["src"].to_numpy(), table["dst"].to_numpy()
    for column, values in (("doi", names), ("number", numbers)):
        keyed = pa.table({"src": values[source], "dst": values[target]})
        edges = write(tmp_path / f"e-{column}", keyed, 3)
        out = tmp_path / f"g-{column}"
        build_graph(edges, out, nodes=nodes, key=column, workers=0, task_bytes=2000)
        same(open_graph(out), expected(table, 90))
        assert sorted(p.name for p in out.iterdir()) == [
            "_edges", "dataset_dict.json", "graph.json", "node"
        ]  # fmt: skip
    build_graph(tmp_path / "e-doi", tmp_path / "again", nodes=nodes, key="doi", workers=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "g-doi")


def test_keys_of_one_kind_and_numbers_of_another(tmp_path: Path) -> None:
    nodes = write(tmp_path / "n", pa.table({"doi": ["b", "a", "c"]}), 1)
    edges = write(tmp_path / "e", pa.table({"src": [4, 0, 4], "dst": ["a", "c", "a"]}), 1)
    kind = ("author", "writes", "paper")
    build_graph(
        {kind: edges}, tmp_path / "g", nodes={"paper": nodes}, key={"paper": "doi"}, workers=0
    )
    graphs: Any = open_graph(tmp_path / "g")
    assert graphs[kind].colptr.tolist() == [0, 0, 2, 3]
    assert graphs[kind].row.tolist() == [4, 4, 0]


def test_keys_that_share_their_first_hash(tmp_path: Path) -> None:
    from batchloom.dataplane.key_hash import hash_column_wide
    from batchloom.jobs.graph_keys import KeyTable, look_up

    values = pa.array(["x", "y", "z"])
    first, second = hash_column_wide(values, "k")
    known = np.stack([np.repeat(first[[0]], 3), second, np.arange(3, dtype=np.uint64)])
    np.save(tmp_path / "keys.npy", known)  # all under the hash of "x"
    found, missing = look_up(KeyTable(str(tmp_path / "keys.npy"), "k", False), values, "k")
    assert (found[0], missing) == (0, 1)


@pytest.mark.parametrize(
    ("nodes", "key", "source", "error", "message"),
    [
        (["a", "b", "a"], "doi", ["a"], SelectionError, r"such as 'a' \(nodes 0 and 2\)"),
        (["a", None], "doi", ["a"], SelectionError, "is null in 1 nodes of kind 'node'"),
        (["a", "b"], "doi", ["a", "q"], InvalidValueError,
         r"Column 'src' is 'q' in edge 1 of data:part-0.parquet, and no node of kind 'node'"),
        (["a", "b"], "doi", [1], ColumnTypeError, "the key 'doi' of the nodes is text"),
        ([1, 2], "doi", ["a"], ColumnTypeError, "the key 'doi' of the nodes is integers"),
        ([1.5, 2.5], "doi", ["a"], ColumnTypeError, "a key must be integers, strings"),
        (["a", "b"], "dio", ["a"], MissingColumnError, "Did you mean 'doi'"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_joined(
    tmp_path: Path, nodes: Any, key: str, source: Any, error: Any, message: str
) -> None:
    write(tmp_path / "n", pa.table({"doi": nodes}), 1)
    write(tmp_path / "e", pa.table({"src": source, "dst": source}), 1)
    with pytest.raises(error, match=message):
        build_graph(tmp_path / "e", tmp_path / "g", nodes=tmp_path / "n", key=key, workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "n"]


def test_keys_need_a_table_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchloom.jobs import graph_keys

    edges = write(tmp_path / "e", edge_table(20, 5), 1)
    with pytest.raises(JobSpecError, match="have no table, in which their keys would stand"):
        build_graph(edges, tmp_path / "g", key="doi", workers=0)
    nodes = write(tmp_path / "n", pa.table({"doi": np.arange(5)}), 1)
    monkeypatch.setattr(graph_keys, "SORTING_BYTES", 1 << 40)
    with pytest.raises(ParameterError, match="Joining the 5 keys"):
        build_graph(edges, tmp_path / "g", nodes=nodes, key="doi", workers=0)


# --- what is refused ------------------------------------------------------------------------------


def with_row(column: str, row: int, value: Any, type_: Any = None) -> pa.Table:
    table = edge_table(1000, 50)
    values = table[column].to_pylist()
    values[row] = value
    index = table.schema.get_field_index(column)
    return table.set_column(index, column, pa.array(values, type_))


BAD: list[tuple[str, Any, type[BatchloomError], str]] = [
    ("negative", lambda: with_row("src", 777, -3), InvalidValueError,
     r"Column 'src' is -3 in edge 277 of data:part-1.parquet: nodes are numbered from 0"),
    ("unknown", lambda: with_row("dst", 501, 50), InvalidValueError,
     r"Column 'dst' is 50 in edge 1 of data:part-1.parquet, which is no node: there are 50 of"),
    ("beyond", lambda: with_row("src", 3, 2**63 + 5, pa.uint64()), InvalidValueError,
     r"Column 'src' is 9223372036854775813 in edge 3 of data:part-0.parquet"),
    ("null", lambda: with_row("src", 999, None), InvalidValueError,
     r"Column 'src' is null in edge 499 of data:part-1.parquet"),
    ("float", lambda: with_row("src", 0, 1.5), ColumnTypeError,
     r"Column 'src' of the edges is double: nodes are named by integers"),
    ("text", lambda: edge_table(20, 50).set_column(1, "dst", pa.array(["a"] * 20)),
     ColumnTypeError, r"Column 'dst' of the edges is string"),
    ("weight 0", lambda: with_row("w", 5, 0.0), InvalidValueError,
     r"Column 'w' is 0.0 in edge 5 of data:part-0.parquet: weights are finite and positive"),
    ("weight nan", lambda: with_row("w", 5, float("nan")), InvalidValueError,
     r"Column 'w' is nan in edge 5"),
    ("time null", lambda: with_row("t", 5, None), InvalidValueError, r"Column 't' is null in"),
    ("empty", lambda: edge_table(0), SelectionError, "holds 2 files and no rows"),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=[b[0] for b in BAD])
def test_bad_edges_are_refused(tmp_path: Path, case: Any) -> None:
    _, make, error, message = case
    edges = write(tmp_path / "e", make(), 2)
    options = {"weights": "w", "times": "t", "num_nodes": 50, "workers": 0}
    with pytest.raises(error, match=message):
        build_graph(edges, tmp_path / "g", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_tables_whose_rows_are_numbered_with_gaps(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(200, 50), 2)
    older = open_dataset(edges).snapshot
    pq.write_table(edge_table(70, 50, seed=1), edges / "part-0.parquet")
    with pytest.raises(JobSpecError, match="are numbered with gaps"):
        build_graph(open_dataset(edges, since=older), tmp_path / "g", workers=0)


def test_missing_columns_and_drift(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(200, 50), 2)
    for option in ({"src": "sorce"}, {"weights": "weight"}):
        with pytest.raises(MissingColumnError, match=r"There is no column '(sorce|weight)'"):
            build_graph(edges, tmp_path / "g", workers=0, **option)
    pq.write_table(edge_table(20, 50).drop_columns(["dst"]), edges / "part-2.parquet")
    with pytest.raises(SchemaDriftError, match=r"part-2.parquet has no column 'dst'"):
        build_graph(edges, tmp_path / "g", workers=0)
    odd = edge_table(20, 50)
    pq.write_table(odd.set_column(1, "dst", odd["dst"].cast("int32")), edges / "part-2.parquet")
    with pytest.raises(SchemaDriftError, match=r"is int32 in data:part-2.parquet but int64"):
        build_graph(edges, tmp_path / "g", workers=0)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_a_file_that_was_cut(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(2000, 50), 2)
    whole = (edges / "part-1.parquet").read_bytes()
    (edges / "part-1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FragmentCorruptError, match="part-1.parquet"):
        build_graph(edges, tmp_path / "g", workers=0)
    # The footer is whole, a page is not.
    damaged = bytearray(whole)
    damaged[200:1400] = os.urandom(1200)
    (edges / "part-1.parquet").write_bytes(damaged)
    with pytest.raises(BatchloomError):
        build_graph(edges, tmp_path / "g", num_nodes=50, workers=0)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    edges = write(tmp_path / "e", edge_table(2000, 50), 2)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(NoRoomError, match=r"Nothing was committed; free some space .* are free"):
        build_graph(edges, tmp_path / "g", workers=0)
    assert [p.name for p in tmp_path.iterdir()] == ["e"]


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchloom.jobs import graph_build

    edges = write(tmp_path / "e", edge_table(200, 50), 1)
    monkeypatch.setattr(graph_build, "bytes_needed", lambda _: 1 << 60)
    with pytest.raises(NoRoomError, match="nothing was written"):
        build_graph(edges, tmp_path / "g", workers=0)


def test_too_little_memory(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(200, 50), 1)
    with pytest.raises(ParameterError, match=r"--memory \d+MiB or more. Got 100 MiB"):
        build_graph(edges, tmp_path / "g", workers=0, memory="100MiB")
    with pytest.raises(ParameterError, match="for 4 workers; use fewer, or give it"):
        build_graph(edges, tmp_path / "g", workers=4, memory="1GiB")
