"""Stored graphs: what is mapped, what damage is found, what is told of them; and the sort below."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batchloom.dataplane.errors import (
    BatchloomError,
    DatasetError,
    FragmentCorruptError,
    InvalidValueError,
    MissingFileError,
    ParameterError,
)
from batchloom.jobs.cli.app import build
from batchloom.jobs.graph_build import build_graph
from batchloom.samplers.graph import CSCGraph, sample_neighbors
from batchloom.samplers.graph.edge_runs import EdgeDealer, RunLayout, runs_of
from batchloom.samplers.graph.edge_sort import CELLS, CellCounts, Ranges, sort_range
from batchloom.samplers.graph.graph_files import (
    StoredGraph,
    StoredGraphs,
    check_edges,
    open_graph,
    verify_graph,
)
from batchloom.samplers.graph.graph_report import describe_graph
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

KIND = "_edges/node,to,node"


def write_edges(path: Path, source: Any, target: Any, **columns: Any) -> Path:
    pq.write_table(pa.table({"src": source, "dst": target, **columns}), path)
    return path


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Edges 1>0 2>0 3>0 0>1 4>1 5>2 0>3 6>3 5>4 6>4 4>5 5>6 of eight nodes, shuffled."""
    home = tmp_path_factory.mktemp("stored")
    source = np.array([1, 2, 3, 0, 4, 5, 0, 6, 5, 6, 4, 5])
    target = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 6])
    order = np.random.default_rng(0).permutation(12)
    write_edges(home / "e.parquet", source[order], target[order], w=np.arange(1.0, 13.0))
    build_graph(home / "e.parquet", home / "g", num_nodes=8, weights="w", workers=0)
    return home / "g"


@pytest.fixture
def copied(stored: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stored, tmp_path / "g"))


def test_a_stored_graph_is_mapped(stored: Path) -> None:
    graph = open_graph(stored)
    assert isinstance(graph, StoredGraph)
    assert graph.colptr.tolist() == [0, 3, 5, 6, 8, 10, 11, 12, 12]
    for name in ("colptr", "row", "permutation"):
        assert isinstance(getattr(graph, name), np.memmap)
    assert graph.row.dtype == np.int32
    assert (graph.num_nodes, graph.num_edges, graph.first_row_id) == (8, 12, 0)
    assert open_graph(stored, edge_ids=False).permutation is None  # type: ignore[union-attr]


def test_weights_follow_the_numbers_of_edges(stored: Path) -> None:
    named: Any = open_graph(stored)
    assert named.weights.tolist() == list(range(1, 13))
    assert named.times is None
    plain: Any = open_graph(stored, edge_ids=False)
    assert plain.weights.tolist() == (named.permutation + 1).tolist()


def test_samplers_take_it(stored: Path) -> None:
    graph: Any = open_graph(stored)
    sample = sample_neighbors(graph, np.array([0]), [-1, -1], 0)
    assert sample.num_nodes[0] == [1, 3, 3]  # type: ignore[index]
    pytest.importorskip("torch_geometric")
    import torch
    from batchloom.samplers.graph import NeighborSampler
    from torch_geometric.sampler import NodeSamplerInput

    sampler = NeighborSampler.from_graph(graph, [-1], weights=graph.weights)
    out = sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([3])))
    assert sorted(out.node.tolist()) == [0, 3, 6]


def told(graph: Any, queue: Any) -> None:
    queue.put((type(graph.row).__name__, graph.row.tolist(), graph.fingerprint))


def test_processes_that_are_spawned_map_it_too(stored: Path) -> None:
    graph: Any = open_graph(stored)
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=told, args=(graph, queue))
    process.start()
    assert queue.get(timeout=60) == ("memmap", graph.row.tolist(), graph.fingerprint)
    process.join()
    again = pickle.loads(pickle.dumps(graph))
    assert np.array_equal(again.weights, graph.weights)


# --- damage ---------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-4])


DAMAGE: list[tuple[str, Callable[[Path], Any], bool, str]] = [
    ("a bit of row", lambda g: flip(g / KIND / "row.npy", -1), False, "row.npy is damaged"),
    ("a bit of colptr", lambda g: flip(g / KIND / "colptr.npy", 140), False, "is damaged"),
    ("a bit of weights", lambda g: flip(g / KIND / "weights.npy", -9), False, "is damaged"),
    ("row cut", lambda g: cut(g / KIND / "row.npy"), True, "row.npy cannot be mapped"),
    ("row gone", lambda g: (g / KIND / "row.npy").unlink(), True, "row.npy cannot be mapped"),
    ("header", lambda g: flip(g / "graph.json", 400), True, "graph.json"),
    ("header cut", lambda g: cut(g / "graph.json"), True, "graph.json cannot be read"),
    ("nodes cut", lambda g: cut(g / "node" / "nodes.parquet"), False, "nodes.parquet"),
    ("nodes gone", lambda g: (g / "node" / "nodes.parquet").unlink(), False, "no such file"),
    ("marker", lambda g: next((g / "node").glob("graph-*")).unlink(), False, "by which snapshots"),
]


@pytest.mark.parametrize("case", DAMAGE, ids=[d[0] for d in DAMAGE])
def test_damage_is_found(copied: Path, case: Any) -> None:
    _, damage, at_once, message = case
    damage(copied)
    with pytest.raises(DatasetError, match=message):
        verify_graph(copied)
    with pytest.raises(DatasetError):
        open_graph(copied, verify=True)
    if at_once:
        with pytest.raises(DatasetError, match=message):
            open_graph(copied)


def test_another_array_in_its_place_is_found(copied: Path) -> None:
    np.save(copied / KIND / "row.npy", np.zeros(12, np.int64))
    with pytest.raises(FragmentCorruptError, match="expected 12 values of <i4, found"):
        open_graph(copied)


def test_what_is_no_graph(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="is no graph: it holds no graph.json"):
        open_graph(tmp_path)
    header = json.loads((copied / "graph.json").read_text())
    from batchloom.dataplane.canonical import envelope

    header["identity"]["version"] = "2.0"
    newer = envelope("graph_id", header["identity"], header["provenance"])
    (copied / "graph.json").write_bytes(newer)
    with pytest.raises(DatasetError, match="version 2.0"):
        open_graph(copied)
    (copied / "graph.json").write_text("{}")
    with pytest.raises(FragmentCorruptError, match="not the header of a graph"):
        open_graph(copied)


def test_graphs_that_are_none() -> None:
    row = np.array([0, 1, 1], np.int32)
    graph = CSCGraph(np.array([0, 2, 1, 3]), row, check=False)
    with pytest.raises(InvalidValueError, match="does not ascend at node 1"):
        check_edges(graph)
    graph = CSCGraph(np.array([0, 2, 2, 3]), row + 2, check=False)
    with pytest.raises(InvalidValueError, match="position 1 is 3, which is none of the 3 nodes"):
        check_edges(graph)
    for wrong, message in (([0, 0, 1], "add up to 1, not to 3"), ([0, 1, 3], "named by no row")):
        graph = CSCGraph(np.array([0, 2, 2, 3]), row, permutation=np.array(wrong), check=False)
        with pytest.raises(InvalidValueError, match=message):
            check_edges(graph)


# --- what is told ---------------------------------------------------------------------------------


def test_what_is_told_of_a_graph(stored: Path) -> None:
    facts = describe_graph(stored)
    found = facts["edges"]["node,to,node"]
    assert facts["nodes"] == {"node": 8}
    assert found["edges"] == 12
    assert found["in_degree"] == {"least": 0, "median": 2, "90 %": 2, "99 %": 3, "most": 3}
    assert (found["no_edges_in"], found["isolated"]) == (1, 1)
    assert found["hubs"][0] == {"node": 0, "edges": 3}


def test_a_hub_of_many_edges_is_told(tmp_path: Path) -> None:
    target = np.concatenate([np.full(70_000, 2), np.full(66_000, 1), [0]])
    write_edges(tmp_path / "e.parquet", np.zeros(target.size, np.int64), target)
    build_graph(tmp_path / "e.parquet", tmp_path / "g", workers=0)
    found = describe_graph(tmp_path / "g")["edges"]["node,to,node"]
    assert found["in_degree"]["median"] == 66_000
    assert [h["edges"] for h in found["hubs"]] == [70_000, 66_000, 1]


def command(*arguments: Any) -> Any:
    words = [str(a) for a in arguments]
    return CliRunner().invoke(build(words), words)


def test_the_command_line(tmp_path: Path) -> None:
    write_edges(tmp_path / "w.parquet", [0, 1, 1], [2, 2, 0])
    write_edges(tmp_path / "c.parquet", [0, 1], [2, 2])
    pq.write_table(pa.table({"year": [1, 2, 3, 4]}), tmp_path / "papers.parquet")
    done = command(
        "graph", "build", "--out", tmp_path / "g", "--workers", 0, "--quiet",
        "--edges", f"author,writes,paper={tmp_path}/w.parquet",
        "--edges", f"paper,cites,paper={tmp_path}/c.parquet",
        "--nodes", f"paper={tmp_path}/papers.parquet", "--num-nodes", "author=5", "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["nodes"] == {"author": 5, "paper": 4}
    graphs = open_graph(tmp_path / "g")
    assert isinstance(graphs, StoredGraphs)
    assert graphs.fingerprint == facts["graph_id"]
    assert {k: g.num_edges for k, g in graphs.items()} == {
        ("author", "writes", "paper"): 3,
        ("paper", "cites", "paper"): 2,
    }
    whole = command("verify", tmp_path / "g", "--json")
    assert json.loads(whole.stdout)["graph_id"] == facts["graph_id"]
    shown = command("inspect", tmp_path / "g")
    assert "3 edges author → writes → paper" in shown.stdout
    pytest.importorskip("torch_geometric")
    import torch
    from batchloom.samplers.graph import HeteroNeighborSampler
    from torch_geometric.sampler import NodeSamplerInput

    sampler = HeteroNeighborSampler(graphs, [-1], num_nodes=graphs.num_nodes)
    index = NodeSamplerInput(None, torch.tensor([2]), input_type="paper")
    out = sampler.sample_from_nodes(index)
    assert sorted(out.node["author"].tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--edges", "author,paper=x"), "--edges takes SOURCE,RELATION,TARGET=EDGES"),
        (("x", "--edges", "a,b,c=x"), "and not both"),
        ((), "Give the table of edges"),
        (("--edges", "a,b,c=x", "--edges", "a,b,c=y"), "twice"),
        (("--edges", "a,b,c=x", "--nodes", "y"), "--nodes takes KIND=VALUE"),
        (("x", "--num-nodes", "many"), "takes a whole number"),
        (("--edges", "a,_b,c=x"), "is named by letters"),
        (("x", "--workers", "0"), "no such file or directory"),
    ],
)
def test_what_the_command_line_refuses(
    tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: Any
) -> None:
    done = command("graph", "build", "--out", tmp_path / "g", "--quiet", *arguments)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


# --- the sort -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    nodes=st.sampled_from([1, 3, 40, CELLS, CELLS + 1, 200_000, 1 << 34]),
    edges=st.integers(0, 60),
    parts=st.integers(1, 4),
    run=st.integers(1, 30),
    most=st.integers(1, 30),
    each=st.sampled_from([1, 2, 1 << 40]),
    seed=st.integers(0, 99),
)
def test_edges_are_sorted_as_by_numpy(
    tmp_path_factory: pytest.TempPathFactory,
    nodes: int, edges: int, parts: int, run: int, most: int, each: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    few = rng.integers(0, nodes, 5)
    source, target = rng.integers(0, nodes, edges), few[rng.integers(0, 5, edges)]
    values = rng.integers(0, 3, edges)
    folder = tmp_path_factory.mktemp("sort")
    layout = RunLayout(nodes > 2**31 - 1, (np.dtype(np.int64),))
    pieces = np.array_split(np.arange(edges), parts)
    cells = CellCounts.none()
    for piece in reversed(pieces):
        cells = CellCounts.none().add(source[piece], target[piece]) + cells
    assert cells.edges == edges
    ranges = Ranges.cut(cells, nodes, edges_each=most, nodes_each=max(each, nodes // 50))
    files = []
    for number, piece in enumerate(pieces):
        names = (folder / f"{number}.records", folder / f"{number}.npy")
        with EdgeDealer(names[0], ranges, layout, run) as dealer:
            for i in piece.tolist():
                one = slice(i, i + 1)
                dealer.add(source[one], target[one], [values[one]], i)
            dealer.finish(names[1])
        files.append((str(names[0]), str(names[1])))
    rows, edge_ids, kept = [], [], []
    for b, (start, stop) in enumerate(itertools.pairwise(ranges.first.tolist())):
        if stop - start > 1 << 22:
            continue  # nodes without edges
        position = int(ranges.position[b])
        ends, windows = sort_range(runs_of(files, b), layout, stop - start, position, limit=most)
        assert ends.size == 0 or ends[-1] == ranges.position[b + 1]
        for window in windows:
            assert window.begin == position
            assert 0 < window.row.size <= most
            position += window.row.size
            rows.append(window.row)
            edge_ids.append(window.permutation)
            kept.append(window.values[0])
    if nodes > 1 << 30:
        return  # a cell has more nodes than a test wants
    order = np.argsort(target, kind="stable")
    none = np.empty(0, np.int64)
    assert np.array_equal(np.concatenate([none, *edge_ids]), order)
    assert np.array_equal(np.concatenate([none, *rows]), source[order])
    assert np.array_equal(np.concatenate([none, *kept]), values[order])


def test_wide_sources_are_exact(tmp_path: Path) -> None:
    source = np.array([2**40 + 7, 5, 2**33, 2**31])
    target = np.array([1, 0, 1, 0])
    layout = RunLayout(True)
    ranges = Ranges.cut(CellCounts.none().add(source, target), 2, edges_each=9, nodes_each=9)
    with EdgeDealer(tmp_path / "r", ranges, layout, 3) as dealer:
        dealer.add(source, target, [], 0)
        dealer.finish(tmp_path / "i")
    runs = runs_of([(str(tmp_path / "r"), str(tmp_path / "i"))], 0)
    ends, windows = sort_range(runs, layout, 2, 0, limit=9)
    [window] = windows
    assert ends.tolist() == [2, 4]
    assert window.row.tolist() == [5, 2**31, 2**40 + 7, 2**33]
    assert window.row.dtype == np.int64


def test_a_hub_is_not_sorted_by_time_beyond_memory(tmp_path: Path) -> None:
    layout = RunLayout(False, (np.dtype(np.int64),))
    source, target = np.arange(20), np.repeat([0, 1, 2], [5, 12, 3])
    ranges = Ranges.cut(CellCounts.none().add(source, target), 3, edges_each=99, nodes_each=99)
    with EdgeDealer(tmp_path / "r", ranges, layout, 7) as dealer:
        dealer.add(source, target, [-source], 0)
        dealer.finish(tmp_path / "i")
    runs = runs_of([(str(tmp_path / "r"), str(tmp_path / "i"))], 0)
    with pytest.raises(ParameterError, match="The edges into one node are 12"):
        sort_range(runs, layout, 3, 0, limit=11, by_value=0)
    _, windows = sort_range(runs, layout, 3, 0, limit=12, by_value=0)
    rows = [w.row.tolist() for w in windows]
    assert rows == [[4, 3, 2, 1, 0], [*range(16, 4, -1)], [19, 18, 17]]


def test_a_run_that_was_cut_is_told(tmp_path: Path) -> None:
    source = np.arange(20)
    ranges = Ranges.cut(CellCounts.none().add(source, source), 20, edges_each=99, nodes_each=99)
    with EdgeDealer(tmp_path / "r", ranges, RunLayout(False), 7) as dealer:
        dealer.add(source, source, [], 0)
        dealer.finish(tmp_path / "i")
    cut(tmp_path / "r")
    runs = runs_of([(str(tmp_path / "r"), str(tmp_path / "i"))], 0)
    with pytest.raises(BatchloomError, match="the file ends before record 20"):
        sort_range(runs, RunLayout(False), 20, 0, limit=99)
