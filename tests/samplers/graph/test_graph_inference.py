"""Layer by layer over blocks gives what the whole graph in one piece gives."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane.errors import BatchTooLargeError, NoRoomError, ParameterError
from batchloom.samplers.graph import CSCGraph
from batchloom.samplers.graph.inference import blocks_of, layerwise_inference
from torch_geometric.nn import GATConv, GCNConv, GraphConv, SAGEConv, SGConv

NODES, EDGES, WIDTH = 300, 2500, 9


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products on several threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def graph_of(seed: int = 0, loops: bool = True) -> tuple[CSCGraph, torch.Tensor]:
    """A graph with a hub, isolated nodes, multi-edges and loops."""
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, NODES - 20, (2, EDGES))
    pairs[1, :400] = 7
    if loops:
        pairs[:, 500:520] = rng.permutation(NODES - 20)[:20]  # at most one a node
    apart = pairs[0] != pairs[1]
    apart[500:520] = loops
    pairs = pairs[:, apart]
    return CSCGraph.from_edge_index(pairs, NODES), torch.from_numpy(pairs)


def features(seed: int = 1) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((NODES, WIDTH)).astype(np.float32)


def whole(layers: Any, x: Any, edges: torch.Tensor, *weights: Any) -> np.ndarray[Any, Any]:
    out = torch.from_numpy(np.array(x))
    with torch.no_grad():
        for number, layer in enumerate(layers):
            out = layer(out, edges, *weights)
            if number < len(layers) - 1:
                out = torch.relu(out)
    return out.numpy()


def layers_of(kind: str) -> list[torch.nn.Module]:
    torch.manual_seed(0)
    make = {
        "sage": lambda a, b: SAGEConv(a, b),
        "sage max": lambda a, b: SAGEConv(a, b, aggr="max", normalize=True),
        "gcn": lambda a, b: GCNConv(a, b),
        "gcn improved": lambda a, b: GCNConv(a, b, improved=True),
        "gcn no loops": lambda a, b: GCNConv(a, b, add_self_loops=False),
        "gcn plain": lambda a, b: GCNConv(a, b, normalize=False),
        "gat": lambda a, b: GATConv(a, b),
        "graph": lambda a, b: GraphConv(a, b),
    }[kind]
    return [make(WIDTH, 16), make(16, 16), make(16, 5)]


KINDS = ["sage", "sage max", "gcn", "gcn improved", "gcn no loops", "gcn plain", "gat", "graph"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limits", [(NODES, 10**6), (64, 600), (1, 500)])
def test_it_equals_the_whole_graph(kind: str, limits: tuple[int, int]) -> None:
    graph, edges = graph_of()
    layers, x = layers_of(kind), features()
    made = layerwise_inference(
        layers, graph, x, activation=torch.relu, batch_nodes=limits[0], max_edges=limits[1]
    )
    assert made.shape == (NODES, 5)
    expected = whole([layer.eval() for layer in layers], x, edges)
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", ["gcn", "gcn improved", "gcn no loops", "gcn plain", "graph"])
def test_weights_are_those_of_the_callers_edges(kind: str) -> None:
    graph, edges = graph_of()
    layers, x = layers_of(kind), features()
    weight = np.random.default_rng(2).random(edges.shape[1]).astype(np.float32)
    made = layerwise_inference(
        layers, graph, x, activation=torch.relu, edge_weight=weight, batch_nodes=50
    )
    expected = whole(layers, x, edges, torch.from_numpy(weight))
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-5)


def test_degrees_are_of_any_number_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchloom.samplers.graph import inference

    graph, edges = graph_of()
    layers, x = layers_of("gcn"), features()
    monkeypatch.setattr(inference, "_CHUNK", 7)
    made = layerwise_inference(layers, graph, x, activation=torch.relu)
    np.testing.assert_allclose(made, whole(layers, x, edges), rtol=2e-5, atol=2e-5)


def test_features_may_be_mapped_tensors_or_asked_for(tmp_path: Path) -> None:
    graph, _ = graph_of()
    layers, x = layers_of("sage"), features()
    np.save(tmp_path / "x.npy", x)
    expected = layerwise_inference(layers, graph, x, batch_nodes=33)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    asked: list[int] = []

    def rows(ids: Any) -> Any:
        asked.append(ids.size)
        return x[ids]

    for given in (mapped, torch.from_numpy(x), rows):
        made = layerwise_inference(layers, graph, given, batch_nodes=33)
        np.testing.assert_allclose(made, expected, rtol=1e-6, atol=1e-6)
    assert len(asked) >= NODES // 33


def test_rows_go_to_a_file_or_an_array(tmp_path: Path) -> None:
    graph, _ = graph_of()
    layers, x = layers_of("sage"), features()
    expected = layerwise_inference(layers, graph, x, batch_nodes=64)
    (tmp_path / "between").mkdir()
    made = layerwise_inference(
        layers, graph, x, out=tmp_path / "out.npy", batch_nodes=64, folder=tmp_path / "between"
    )
    assert isinstance(made, np.memmap)
    assert np.array_equal(made, expected)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    array = np.zeros((NODES, 5), np.float32)
    assert layerwise_inference(layers, graph, x, out=array, batch_nodes=64) is array
    assert np.array_equal(array, expected)
    assert list((tmp_path / "between").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["between", "out.npy"]


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from batchloom.samplers.graph import inference_rows

    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    graph, _ = graph_of()
    monkeypatch.setattr(inference_rows, "sync_path", full)
    with pytest.raises(NoRoomError, match="Writing a layer's rows failed"):
        layerwise_inference(
            layers_of("sage")[:1], graph, features(), out=tmp_path / "o.npy", folder=tmp_path
        )
    assert list(tmp_path.iterdir()) == []


def test_modules_are_evaluated_and_as_before_afterwards() -> None:
    graph, _ = graph_of()
    torch.manual_seed(0)
    layer = GATConv(WIDTH, 4, dropout=0.9)
    first = layerwise_inference([layer], graph, features())
    assert np.array_equal(first, layerwise_inference([layer], graph, features()))
    assert layer.training


def test_any_function_is_a_layer() -> None:
    graph, edges = graph_of()

    def mean(x: Any, edge_index: torch.Tensor) -> torch.Tensor:
        source, target = x
        total = torch.zeros_like(target).index_add_(0, edge_index[1], source[edge_index[0]])
        count = torch.bincount(edge_index[1], minlength=len(target)).clamp(min=1)
        return total / count[:, None]

    x = features()
    made = layerwise_inference([mean], graph, x, batch_nodes=40)
    table = torch.from_numpy(x)
    np.testing.assert_allclose(made, mean((table, table), edges), rtol=1e-5, atol=1e-6)


def test_blocks_hold_all_edges_once() -> None:
    graph, _ = graph_of()
    blocks = list(blocks_of(graph, 17, 500))
    assert [b.first for b in blocks[1:]] == [b.stop for b in blocks[:-1]]
    assert np.array_equal(np.concatenate([b.edge for b in blocks]), np.arange(graph.num_edges))
    for block in blocks:
        assert block.size <= 17
        assert block.edge.size <= 500
        assert np.array_equal(block.nodes[block.row], graph.row[block.edge])
        assert np.array_equal(block.nodes[: block.size], np.arange(block.first, block.stop))
        assert np.unique(block.nodes).size == block.nodes.size


def test_a_graph_without_edges_and_one_without_nodes() -> None:
    layers = layers_of("gcn")
    none = CSCGraph(np.zeros(NODES + 1, np.int64), np.empty(0, np.int64))
    made = layerwise_inference(layers, none, features(), activation=torch.relu)
    expected = whole(layers, features(), torch.empty((2, 0), dtype=torch.int64))
    np.testing.assert_allclose(made, expected, rtol=2e-5, atol=2e-5)
    empty = CSCGraph(np.zeros(1, np.int64), np.empty(0, np.int64))
    with pytest.raises(ParameterError, match="has no nodes"):
        layerwise_inference(layers, empty, np.empty((0, WIDTH), np.float32))


def test_what_is_refused() -> None:
    graph, _ = graph_of()
    layers, x = layers_of("sage"), features()
    with pytest.raises(BatchTooLargeError, match=r"Node 7 has 4\d\d edges into it, and a block"):
        layerwise_inference(layers, graph, x, max_edges=399)
    cases: list[tuple[Any, str]] = [
        (lambda: layerwise_inference([], graph, x), "at least one layer"),
        (lambda: layerwise_inference(layers, graph, x[:-1]), "a row for each of the 300 nodes"),
        (lambda: layerwise_inference(layers, graph, x, batch_nodes=0), "'batch_nodes'"),
        (lambda: layerwise_inference([SGConv(WIDTH, 3)], graph, x), "SGConv looks at more"),
        (
            lambda: layerwise_inference([SAGEConv(WIDTH, 3, flow="target_to_source")], graph, x),
            "Reverse the graph",
        ),
        (
            lambda: layerwise_inference(layers, graph, x, edge_weight=np.ones(3)),
            "one number for each of the",
        ),
        (
            lambda: layerwise_inference(layers, graph, x, edge_weight=np.ones(graph.num_edges)),
            "SAGEConv takes no 'edge_weight'",
        ),
        (
            lambda: layerwise_inference([lambda x, _: x[0]], graph, x, batch_nodes=9),
            "it gives one for each row of x_target",
        ),
        (
            lambda: layerwise_inference(layers, graph, x, out=np.zeros((NODES, 4))),
            r"give rows of \(5,\)",
        ),
        (
            lambda: layerwise_inference(
                layers, CSCGraph(np.array([0, 1]), np.array([3]), num_sources=9), x
            ),
            "of one kind of nodes",
        ),
    ]
    for call, message in cases:
        with pytest.raises(ParameterError, match=message):
            call()


_CHILD = """
import sys
import numpy as np, torch
from torch_geometric.nn import SAGEConv
from batchloom.samplers.graph import CSCGraph
from batchloom.samplers.graph.inference import layerwise_inference

def peak():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) << 10

home, nodes, width = sys.argv[1], 1_000_000, 128
colptr = np.load(home + "/colptr.npy", mmap_mode="r")
row = np.load(home + "/row.npy", mmap_mode="r")
x = np.load(home + "/x.npy", mmap_mode="r")
graph = CSCGraph(colptr, row, check=False)
small = CSCGraph(np.array([0, 1]), np.array([0]))
layers = [SAGEConv(width, width), SAGEConv(width, width)]
layerwise_inference(layers, small, np.ones((1, width), np.float32))
before = peak()
made = layerwise_inference(
    layers, graph, x, out=home + "/out.npy", folder=home, batch_nodes=4096, max_edges=50_000
)
print(before, peak(), made.shape[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_that_of_a_block(tmp_path: Path) -> None:
    """Half a GB of features, as much between the layers, and as much that comes out."""
    nodes, width, degree = 1_000_000, 128, 4
    rng = np.random.default_rng(0)
    np.save(tmp_path / "colptr.npy", np.arange(nodes + 1) * degree)
    np.save(tmp_path / "row.npy", rng.integers(0, nodes, nodes * degree).astype(np.int32))
    shape = (nodes, width)
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=shape)
    x[:] = np.arange(width, dtype=np.float32)
    del x
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(tmp_path)], capture_output=True, text=True, check=True
    )
    before, peak, rows = map(int, done.stdout.split())
    assert rows == nodes
    assert peak - before < 200 << 20
