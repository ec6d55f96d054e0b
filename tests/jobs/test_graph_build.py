"""Graphs built from tables: the same bytes however they are built, and one clear error each."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane import open_dataset
from batchloom.dataplane.errors import (
    InvalidValueError,
    JobSpecError,
    StorageError,
)
from batchloom.jobs.graph_build import build_graph
from batchloom.samplers.graph import CSCGraph
from batchloom.samplers.graph.graph_files import StoredGraph, open_graph, verify_graph
from batchloom.tests.contracts.clusters import wait_for
from batchloom.tests.contracts.crash import Run, run_job, start
from batchloom.tests.jobs.graph_tables import contents, edge_table, expected, same, write


def test_a_graph_is_that_of_its_edges(tmp_path: Path) -> None:
    table = edge_table()
    header = build_graph(write(tmp_path / "e", table, 3), tmp_path / "g", workers=0)
    graph = open_graph(tmp_path / "g", verify=True)
    assert isinstance(graph, StoredGraph)
    assert graph.fingerprint == header.fingerprint
    assert isinstance(graph.row, np.memmap)
    same(graph, expected(table))


def test_the_same_bytes_whatever_memory_tasks_and_workers(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(), 3)
    options: list[dict[str, Any]] = [
        {"workers": 0},
        {"workers": 0, "task_bytes": 1},
        {"workers": 0, "memory": "400MiB", "task_bytes": 20_000},
        {"workers": 2, "task_bytes": 4000},
    ]
    made = []
    for number, option in enumerate(options):
        build_graph(edges, tmp_path / f"g{number}", weights="w", times="t", **option)
        made.append(contents(tmp_path / f"g{number}"))
    assert all(m == made[0] for m in made)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "g0", "g1", "g2", "g3"]


@pytest.mark.parametrize("limits", [(1, 1), (7, 3), (100, 50), (4000, 701)])
def test_the_same_bytes_however_edges_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int]
) -> None:
    """Ranges of few edges, runs of few, and hubs of more than are held."""
    from batchloom.jobs import graph_build
    from batchloom.samplers.graph.edge_sort import Ranges

    def cut(cells: Any, nodes: int, *_: Any) -> Any:
        most, each = limits
        return most, Ranges.cut(cells, nodes, edges_each=most, nodes_each=each)

    table = edge_table(900, 60)
    edges = write(tmp_path / "e", table, 2)
    build_graph(edges, tmp_path / "g", workers=0)
    monkeypatch.setattr(graph_build, "cut_ranges", cut)
    monkeypatch.setattr(graph_build, "MOST_EDGES", 37)
    build_graph(edges, tmp_path / "h", workers=0)
    assert contents(tmp_path / "g") == contents(tmp_path / "h")


def test_edges_keep_weights_and_times(tmp_path: Path) -> None:
    table = edge_table()
    edges = write(tmp_path / "e", table, 2)
    build_graph(edges, tmp_path / "g", weights="w", times="t", workers=0)
    weight, time, target = (table[c].to_numpy() for c in ("w", "t", "dst"))
    order = np.lexsort((time, target))
    graph: Any = open_graph(tmp_path / "g", edge_ids=False)
    assert np.array_equal(graph.weights, weight[order])
    assert np.array_equal(graph.times, time[order])
    assert np.array_equal(graph.row, table["src"].to_numpy()[order])
    named: Any = open_graph(tmp_path / "g")
    assert np.array_equal(named.permutation, order)
    assert np.array_equal(named.weights, weight)
    assert np.array_equal(named.times, time)


@pytest.mark.parametrize("type_", ["int8", "uint8", "int16", "uint32", "int32", "uint64"])
def test_integers_of_any_width_name_nodes(tmp_path: Path, type_: str) -> None:
    table = edge_table(500, 100).select(["src", "dst"])
    narrow = table.cast(pa.schema([("src", type_), ("dst", type_)]))
    build_graph(write(tmp_path / "e", narrow, 2, suffix=".arrow"), tmp_path / "g", workers=0)
    same(open_graph(tmp_path / "g"), expected(table))


def test_dates_and_floats_are_times(tmp_path: Path) -> None:
    moments = np.array([30, 10, 20], "datetime64[D]")
    for name, values in (("d", moments), ("s", moments.astype("datetime64[ms]"))):
        table = pa.table({"src": [0, 1, 2], "dst": [0, 0, 0], "t": values})
        write(tmp_path / name, table, 1)
        build_graph(tmp_path / name, tmp_path / f"g{name}", times="t", workers=0)
        graph: Any = open_graph(tmp_path / f"g{name}")
        assert graph.row.tolist() == [1, 2, 0]
        assert graph.times.tolist() == values.astype(np.int64).tolist()


def test_columns_are_found_by_usual_names(tmp_path: Path) -> None:
    table = edge_table(200, 50).select(["dst", "src"])
    for number, names in enumerate((["target", "source"], ["dst", "src"])):
        edges = write(tmp_path / f"e{number}", table.rename_columns(names), 1)
        build_graph(edges, tmp_path / f"g{number}", workers=0)
        same(open_graph(tmp_path / f"g{number}"), expected(table))
    odd = table.append_column("x", table["src"]).rename_columns(["to_node", "from_node", "x"])
    edges = write(tmp_path / "odd", odd, 1)
    with pytest.raises(JobSpecError, match="say which they are with --src and --dst"):
        build_graph(edges, tmp_path / "never", workers=0)
    build_graph(edges, tmp_path / "named", src="from_node", dst="to_node", workers=0)
    same(open_graph(tmp_path / "named"), expected(table))


# --- nodes, and several kinds ---------------------------------------------------------------------


def test_the_folder_is_a_dataset_of_its_nodes(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(200, 50), 1)
    nodes = write(tmp_path / "n", pa.table({"x": np.arange(60) * 10}), 12)
    header = build_graph(edges, tmp_path / "g", nodes=nodes, workers=0)
    assert header.num_nodes == {"node": 60}
    dataset = open_dataset(tmp_path / "g")
    assert {f.source for f in dataset.snapshot.fragments} == {"node"}
    assert dataset.take([0, 59, 31])["x"].to_pylist() == [0, 590, 310]
    carried = [f.path for f in dataset.snapshot.fragments if f.rows == 0]
    assert carried == [f"node/graph-{header.fingerprint}.arrow"]
    graph: Any = open_graph(tmp_path / "g", verify=True)
    assert graph.num_nodes == 60


def test_nodes_without_a_table_are_numbers(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(200, 50), 1)
    build_graph(edges, tmp_path / "g", num_nodes=80, workers=0)
    dataset = open_dataset(tmp_path / "g")
    assert dataset.take(np.arange(80))["node"].to_pylist() == list(range(80))
    graph: Any = open_graph(tmp_path / "g")
    assert graph.num_nodes == 80


def hetero(tmp_path: Path, **options: Any) -> Any:
    rng = np.random.default_rng(3)
    writes = pa.table({"src": rng.integers(0, 40, 300), "dst": rng.integers(0, 90, 300)})
    cites = pa.table({"src": rng.integers(0, 90, 500), "dst": rng.integers(0, 90, 500)})
    if not (tmp_path / "papers").exists():
        write(tmp_path / "writes", writes, 2)
        write(tmp_path / "cites", cites, 1)
        write(tmp_path / "papers", pa.table({"year": np.arange(100)}), 3)
    edges = {
        ("paper", "cites", "paper"): tmp_path / "cites",
        ("author", "writes", "paper"): tmp_path / "writes",
    }
    options = {"nodes": {"paper": tmp_path / "papers"}, "workers": 0, **options}
    return build_graph(edges, tmp_path / "g", **options), writes, cites


def test_a_graph_of_several_kinds(tmp_path: Path) -> None:
    header, writes, cites = hetero(tmp_path)
    assert header.num_nodes == {"author": 40, "paper": 100}
    graphs: Any = open_graph(tmp_path / "g", verify=True)
    assert list(graphs) == [("author", "writes", "paper"), ("paper", "cites", "paper")]
    for kind, table, sources in (
        (("author", "writes", "paper"), writes, 40),
        (("paper", "cites", "paper"), cites, 100),
    ):
        pairs = np.stack([table["src"].to_numpy(), table["dst"].to_numpy()])
        same(graphs[kind], CSCGraph.from_edge_index(pairs, 100, num_sources=sources))
    dataset = open_dataset(tmp_path / "g")
    first = {}
    for fragment in dataset.snapshot.fragments:
        if fragment.rows:
            first.setdefault(fragment.source, fragment.first_row_id)
    assert first == graphs.first_row_ids == {"author": 0, "paper": 40}
    assert dataset.take([40 + 7], ["year"])["year"].to_pylist() == [7]


def test_kinds_that_fit_nothing(tmp_path: Path) -> None:
    with pytest.raises(JobSpecError, match="No edges lead from or to nodes of kind 'venue'"):
        hetero(tmp_path, nodes={"venue": tmp_path / "papers"})
    with pytest.raises(JobSpecError, match="leave num_nodes out"):
        hetero(tmp_path, num_nodes={"paper": 100})
    with pytest.raises(InvalidValueError, match=r"which is no node: there are 7 of kind 'author'"):
        hetero(tmp_path, num_nodes={"author": 7})
    assert not (tmp_path / "g").exists()


# --- the target -----------------------------------------------------------------------------------


def test_the_same_graph_again_is_success_and_another_is_refused(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(200, 50), 1)
    first = build_graph(edges, tmp_path / "g", workers=0)
    assert build_graph(edges, tmp_path / "g", workers=0).fingerprint == first.fingerprint
    other = write(tmp_path / "o", edge_table(200, 50, seed=1), 1)
    with pytest.raises(StorageError, match="holds another graph already"):
        build_graph(other, tmp_path / "g", workers=0)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "mine.txt").write_text("x")
    with pytest.raises(StorageError, match="holds something else already"):
        build_graph(edges, tmp_path / "f", workers=0)
    with pytest.raises(JobSpecError, match="lies inside the dataset"):
        build_graph(edges, edges / "g", workers=0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "f", "g", "o"]


_CHILD = """
import sys
from batchloom.jobs.graph_build import build_graph
from batchloom.jobs.progress import make_progress
if __name__ == "__main__":
    header = build_graph(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]), task_bytes=60_000,
                         memory=sys.argv[4], progress=make_progress("json"))
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    print(header.fingerprint, int(status["VmHWM"].split()[0]) << 10)
"""


def test_a_job_does_not_mind_a_killed_worker(tmp_path: Path) -> None:
    edges = write(tmp_path / "e", edge_table(400_000, 5000), 40, group=5000)
    build_graph(edges, tmp_path / "g", workers=0)
    arguments = [sys.executable, "-c", _CHILD, str(edges), str(tmp_path / "h"), "2", "2GiB"]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    run = Run(process, tmp_path / "log")
    wait_for(lambda: any(tmp_path.glob(".h.staging-*/.spill/*.records")))
    assert run.kill_a_worker(random.Random(0))
    code, _, err = run.wait()
    assert code == 0, err
    assert contents(tmp_path / "g") == contents(tmp_path / "h")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e", "g", "h"]


@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_a_killed_build_leaves_nothing_or_all(tmp_path: Path, power: bool) -> None:
    edges = write(tmp_path / "e", edge_table(400_000, 5000), 10, group=5000)
    id_ = build_graph(edges, tmp_path / "g", workers=0, weights="w").fingerprint
    draw = random.Random(5)
    for number in range(2):
        home = tmp_path / f"home-{number}"
        home.mkdir()
        command = ["graph", "build", edges, "--out", home / "h", "--weights", "w", "--workers", "0",
                   "--quiet"]  # fmt: skip
        run = start(command, tmp_path / f"log-{number}")
        if number:
            assert run.wait()[0] == 0
        else:
            wait_for(lambda home=home: any(home.iterdir()))  # type: ignore[misc]
            time.sleep(draw.uniform(0, 0.5))
            run.kill()
        if power:
            run.lose_unflushed(home, draw)
        left = [p.name for p in home.iterdir() if not p.name.startswith(".h.staging-")]
        assert left in ([], ["h"])
        assert left == ["h"] or not number
        if left:
            assert verify_graph(home / "h").fingerprint == id_
        run_job(command, tmp_path / f"log-{number}-again")
        assert verify_graph(home / "h").fingerprint == id_


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_build_keeps_to_its_memory(tmp_path: Path) -> None:
    """16 million edges, a third of them into one node; in memory they would take 400 MB."""
    rng = np.random.default_rng(0)
    edges: npt.NDArray[np.int64] = rng.integers(0, 1_000_000, (2, 4_000_000))
    edges[1, ::3] = 77
    (tmp_path / "e").mkdir()
    table = pa.table({"src": edges[0], "dst": edges[1]})
    pq.write_table(table, tmp_path / "e" / "part-0.parquet", row_group_size=1 << 18)
    for number in range(1, 4):
        os.link(tmp_path / "e" / "part-0.parquet", tmp_path / "e" / f"part-{number}.parquet")
    made = []
    for memory in ("400MiB", "3GiB"):
        out = tmp_path / memory
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(tmp_path / "e"), str(out), "0", memory],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        made.append(done.stdout.split())
    assert made[0][0] == made[1][0]
    assert int(made[0][1]) <= 400 << 20
