from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchloom.dataplane.errors import InvalidValueError, ParameterError
from batchloom.samplers.graph import CSCGraph
from batchloom.tests.samplers.graph.plain import edge_index, small_graph
from hypothesis import given
from hypothesis import strategies as st


def test_the_small_graph_by_hand() -> None:
    graph = small_graph()
    assert graph.colptr.tolist() == [0, 3, 5, 6, 8, 10, 11, 12, 12]
    assert graph.row.tolist() == [1, 2, 3, 0, 4, 5, 0, 6, 5, 6, 4, 5]
    assert graph.row.dtype == np.int32
    assert (graph.num_nodes, graph.num_sources, graph.num_edges) == (8, 8, 12)


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(0, 40))
def test_edges_of_a_node_keep_their_order(seed: int, nodes: int, edges: int) -> None:
    pairs = np.random.default_rng(seed).integers(0, nodes, (2, edges))
    graph = CSCGraph.from_edge_index(torch.from_numpy(pairs), nodes)
    assert graph.permutation is not None
    for v in range(nodes):
        own = slice(graph.colptr[v], graph.colptr[v + 1])
        columns = np.flatnonzero(pairs[1] == v)
        assert graph.permutation[own].tolist() == columns.tolist()
        assert graph.row[own].tolist() == pairs[0, columns].tolist()


def test_a_sorted_edge_index_is_not_moved() -> None:
    pairs = edge_index()
    graph = CSCGraph.from_edge_index(pairs, 8, is_sorted=True)
    assert graph.permutation is None
    assert np.shares_memory(graph.row, pairs)
    with pytest.raises(InvalidValueError, match="edge 0 leads to node 2, the next to node 1"):
        CSCGraph.from_edge_index([[0, 1], [2, 1]], 3, is_sorted=True)


def test_nodes_are_counted_where_none_are_given() -> None:
    assert CSCGraph.from_edge_index([[5, 1], [2, 1]]).num_nodes == 6
    assert CSCGraph.from_edge_index([[], []]).num_nodes == 0
    assert CSCGraph.from_edge_index([[5, 1], [2, 1]], num_sources=9).num_nodes == 3


def test_scipy_matrices_lead_from_row_to_column() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    pairs = edge_index()
    matrix = sparse.coo_matrix((np.ones(12), tuple(pairs)), shape=(8, 8))
    for form in (matrix.tocsc(), matrix.tocsr(), matrix):
        graph = CSCGraph.from_scipy(form)
        assert graph.colptr.tolist() == small_graph().colptr.tolist()
        assert sorted(graph.row[:3].tolist()) == [1, 2, 3]
    wide = CSCGraph.from_scipy(sparse.coo_matrix(([1.0], ([4], [1])), shape=(5, 2)))
    assert (wide.num_sources, wide.num_nodes) == (5, 2)


def test_data_of_pyg() -> None:
    data = pytest.importorskip("torch_geometric.data").Data
    graph = CSCGraph.from_data(data(edge_index=torch.from_numpy(edge_index()), num_nodes=8))
    assert graph.row.tolist() == small_graph().row.tolist()
    with pytest.raises(ParameterError, match="no 'edge_index'"):
        CSCGraph.from_data(data(x=torch.zeros(3, 1)))


@pytest.mark.parametrize(
    ("colptr", "row", "message"),
    [
        ([1, 2, 3], [0, 1, 1], "must go from 0 to 3. It goes from 1 to 3"),
        ([0, 2, 2], [0, 1, 1], "must go from 0 to 3. It goes from 0 to 2"),
        ([0, 3, 2, 3], [0, 1, 1], "into node 1 begin at 3 and end at 2"),
        ([0, 1, 3], [0, 2, 1], "source of edge 1 is 2, which is no node: there are 2"),
        ([0, 1, 3], [0, -1, 1], "source of edge 1 is -1"),
    ],
)
def test_malformed_graphs(colptr: list[int], row: list[int], message: str) -> None:
    with pytest.raises(InvalidValueError, match=message):
        CSCGraph(colptr, row)


@pytest.mark.parametrize(
    ("colptr", "row", "message"),
    [
        ([], [], "N \\+ 1 entries"),
        ([0.0, 1.0], [0], "'colptr' must be int32 or int64. Got float64"),
        ([0, 1], [0.0], "'row' must be int32 or int64. Got float64"),
        ([0, 1], np.array([0], np.uint8), "'row' must be int32 or int64. Got uint8"),
        ([0, 1], [[0]], "'row' must have one dimension"),
    ],
)
def test_arrays_of_other_kinds(colptr: Any, row: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        CSCGraph(colptr, row)


def test_pairs_of_other_kinds() -> None:
    with pytest.raises(ParameterError, match="shape \\(2, E\\)"):
        CSCGraph.from_edge_index([[1, 2, 3]], 4)
    with pytest.raises(ParameterError, match="must be int32 or int64. Got float32"):
        CSCGraph.from_edge_index(torch.zeros(2, 3), 4)
    with pytest.raises(InvalidValueError, match="target of edge 1 is 7, which is no node"):
        CSCGraph.from_edge_index([[0, 1], [1, 7]], 4)
    with pytest.raises(InvalidValueError, match="source of edge 0 is -1"):
        CSCGraph.from_edge_index([[-1, 1], [1, 3]], 4)
    with pytest.raises(ParameterError, match="names each of its 1 edges. Got 2"):
        CSCGraph([0, 1], [0], permutation=[0, 1])


def test_some_of_the_edges() -> None:
    pairs = edge_index()[:, ::-1].copy()
    graph = CSCGraph.from_edge_index(pairs, 8)
    assert graph.permutation is not None
    inside = graph.row != 5
    kept = graph.keep(inside)
    assert kept.permutation is not None
    assert kept.num_edges == 9
    assert pairs[0, kept.permutation].tolist() == kept.row.tolist()
    targets = np.repeat(np.arange(8), np.diff(kept.colptr))
    assert pairs[1, kept.permutation].tolist() == targets.tolist()
    with pytest.raises(ParameterError, match="a bool for each of the 12 edges"):
        graph.keep(np.ones(3, bool))


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(0, 40))
def test_edges_sorted_by_a_value(seed: int, nodes: int, edges: int) -> None:
    rng = np.random.default_rng(seed)
    graph = CSCGraph.from_edge_index(rng.integers(0, nodes, (2, edges)), nodes)
    given = rng.integers(0, 4, edges)
    made, values = graph.sorted_by(graph.by_position(given))
    assert made.permutation is not None
    assert given[made.permutation].tolist() == values.tolist()
    for v in range(nodes):
        own = slice(made.colptr[v], made.colptr[v + 1])
        pairs = list(zip(values[own].tolist(), made.permutation[own].tolist(), strict=True))
        assert pairs == sorted(pairs)
    again, _ = made.sorted_by(values)
    assert again is made


def _describe(graph: CSCGraph, queue: Any) -> None:
    kinds = [type(a).__name__ for a in (graph.colptr, graph.row)]
    queue.put((kinds, graph.row.tolist(), list(getattr(graph, "_shared", ()))))


def test_spawned_processes_share_the_arrays() -> None:
    graph = small_graph()
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_describe, args=(graph, queue))
    process.start()
    _, row, shared = queue.get(timeout=60)
    process.join()
    assert row == small_graph().row.tolist()
    assert shared == ["colptr", "row", "permutation"]
    assert torch.from_numpy(graph.row).is_shared() or "row" in graph.__dict__["_shared"]


def test_mapped_arrays_are_mapped_again(tmp_path: Path) -> None:
    graph = small_graph()
    both = np.concatenate([graph.colptr, graph.row.astype(np.int64)])
    both.tofile(tmp_path / "graph")
    mapped = np.memmap(tmp_path / "graph", np.int64, "r")
    made = pickle.loads(pickle.dumps(CSCGraph(mapped[:9], mapped[9:])))
    assert isinstance(made.row, np.memmap)
    assert made.colptr.tolist() == graph.colptr.tolist()
    assert made.row.tolist() == graph.row.tolist()
    assert len(pickle.dumps(made)) < 2000


def test_other_pickles_hold_the_values() -> None:
    graph = pickle.loads(pickle.dumps(small_graph()))
    assert graph.row.tolist() == small_graph().row.tolist()
    assert graph.permutation is not None
