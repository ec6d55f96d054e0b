"""Partitions, and batches of whole clusters with the edges among them."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch_geometric")

import torch
from batchloom.dataplane.errors import (
    BatchTooLargeError,
    InvalidValueError,
    MissingExtraError,
    ParameterError,
    SelectionError,
)
from batchloom.samplers.graph import CSCGraph
from batchloom.samplers.graph.clusters import ClusterBatches, ClusterLoader
from batchloom.samplers.graph.partitions import (
    Partition,
    balanced_partition,
    diffusion_features,
    metis_partition,
)
from torch_geometric.data import Data

BLOCKS, EACH = 8, 40
NODES = BLOCKS * EACH


def blocks_graph(seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Eight communities: nine of ten edges stay inside one; a node's block is its number mod 8."""
    rng = np.random.default_rng(seed)
    count = NODES * 10
    block = rng.integers(0, BLOCKS, count)
    other = np.where(rng.random(count) < 0.9, block, rng.integers(0, BLOCKS, count))
    inside = rng.integers(0, EACH, (2, count))
    return np.stack([block + BLOCKS * inside[0], other + BLOCKS * inside[1]])


def data_of(pairs: Any) -> Data:
    edges = torch.from_numpy(pairs)
    rng = np.random.default_rng(1)
    return Data(
        x=torch.from_numpy(rng.standard_normal((NODES, 3)).astype(np.float32)),
        y=torch.arange(NODES) % BLOCKS,
        edge_index=edges,
        edge_attr=torch.arange(edges.shape[1]).float()[:, None],
        train_mask=torch.arange(NODES) % 3 == 0,
        name="blocks",
    )


# --- partitions -----------------------------------------------------------------------------------


def test_diffusion_tells_communities_apart() -> None:
    graph = CSCGraph.from_edge_index(blocks_graph(), NODES)
    x = diffusion_features(graph, steps=8)
    assert x.shape == (NODES, 32)
    assert x.dtype == np.float32
    block = np.arange(NODES) % BLOCKS
    centers = np.stack([x[block == b].mean(axis=0) for b in range(BLOCKS)])
    nearest = ((x[:, None] - centers) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == block).mean() > 0.95


@pytest.mark.parametrize("kind", ["balanced", "metis"])
def test_partitions_cut_few_edges_and_are_repeated(kind: str) -> None:
    if kind == "metis":
        pytest.importorskip("pymetis")
    make = {"balanced": balanced_partition, "metis": metis_partition}[kind]
    graph = CSCGraph.from_edge_index(blocks_graph(), NODES)
    made = make(graph, BLOCKS, seed=3)
    at_random = Partition.of(np.random.default_rng(0).permutation(NODES) % BLOCKS)
    assert at_random.cut_share(graph) > 0.8
    assert made.cut_share(graph) < (0.2 if kind == "metis" else 0.4)
    assert made.sizes.sum() == NODES
    assert made.sizes.max() - made.sizes.min() <= (1 if kind == "balanced" else 10)
    assert np.array_equal(make(graph, BLOCKS, seed=3).labels, made.labels)


def test_features_may_be_given() -> None:
    graph = CSCGraph.from_edge_index(blocks_graph(), NODES)
    block = np.arange(NODES) % BLOCKS
    line = block[:, None] * 10 + np.random.default_rng(0).random((NODES, 1))
    made = balanced_partition(graph, BLOCKS, features=line.astype(np.float32))
    pairs = {(int(a), int(b)) for a, b in zip(block, made.labels, strict=True)}
    assert len(pairs) == BLOCKS


def test_the_order_of_edges_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from batchloom.samplers.graph import partitions

    pairs = blocks_graph()
    graph = CSCGraph.from_edge_index(pairs, NODES)
    first = diffusion_features(graph)
    order = np.random.default_rng(0).permutation(pairs.shape[1])
    turned = CSCGraph.from_edge_index(pairs[::-1, order].copy(), NODES)
    monkeypatch.setattr(partitions, "usable_cores", lambda: 3)
    assert np.array_equal(diffusion_features(turned), first)


def test_isolated_nodes_loops_and_tiny_graphs() -> None:
    pairs = np.array([[0, 1, 2, 2], [1, 0, 3, 2]])
    graph = CSCGraph.from_edge_index(pairs, 7)
    assert not diffusion_features(graph)[4:].any()
    made = balanced_partition(graph, 3)
    assert sorted(made.sizes.tolist()) == [2, 2, 3]
    single = CSCGraph(np.array([0, 0]), np.empty(0, np.int64))
    assert balanced_partition(single, 1).labels.tolist() == [0]
    assert Partition.of([0]).cut_share(single) == 0.0
    if importlib.util.find_spec("pymetis") is not None:
        assert metis_partition(graph, 1).labels.tolist() == [0] * 7
        assert metis_partition(graph, 3).labels.size == 7


def test_metis_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymetis", None)
    graph = CSCGraph.from_edge_index(blocks_graph(), NODES)
    with pytest.raises(MissingExtraError, match=r"pip install 'batchloom\[metis\]'"):
        metis_partition(graph, 4)


# --- batches --------------------------------------------------------------------------------------


def expected_batch(pairs: Any, labels: Any, clusters: Any) -> tuple[Any, Any]:
    """Nodes and (source, target) pairs of the induced subgraph, by brute force."""
    nodes = np.concatenate([np.flatnonzero(labels == c) for c in clusters])
    inside = np.isin(pairs[0], nodes) & np.isin(pairs[1], nodes)
    return nodes, np.flatnonzero(inside)


def test_a_batch_is_the_subgraph_of_its_clusters() -> None:
    pairs = blocks_graph()
    graph = CSCGraph.from_edge_index(pairs, NODES)
    labels = np.random.default_rng(4).integers(0, 11, NODES)
    batches = ClusterBatches(graph, Partition.of(labels), 3, seed=1)
    dealt = batches.clusters(0)
    assert [d.size for d in dealt] == [3, 3, 3, 2]
    assert len(batches) == 4
    assert sorted(np.concatenate(dealt).tolist()) == list(range(11))
    seen = []
    for clusters in dealt:
        made = batches.sample(clusters)
        nodes, edges = expected_batch(pairs, labels, clusters)
        assert np.array_equal(made.nodes[0], nodes)
        ids = graph.permutation[made.edge[0]]  # type: ignore[index]
        assert np.array_equal(np.sort(ids), edges)
        assert np.array_equal(nodes[made.row[0]], pairs[0, ids])
        assert np.array_equal(nodes[made.col[0]], pairs[1, ids])
        assert (np.diff(made.col[0]) >= 0).all()
        seen.append(nodes)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(NODES))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    graph = CSCGraph.from_edge_index(blocks_graph(), NODES)
    partition = Partition.of(np.arange(NODES) % 50)

    def dealt(seed: int, epoch: int, **options: Any) -> list[int]:
        batches = ClusterBatches(graph, partition, 7, seed=seed, **options)
        return np.concatenate(batches.clusters(epoch)).tolist()  # type: ignore[no-any-return]

    assert dealt(1, 2) == dealt(1, 2)
    assert dealt(1, 2) != dealt(1, 3)
    assert dealt(1, 2) != dealt(2, 2)
    assert dealt(1, 2, shuffle=False) == list(range(50))
    # Frozen: another order would be another training.
    assert dealt(0, 0)[:6] == GOLDEN


GOLDEN = [5, 0, 1, 25, 23, 43]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_data(workers: int) -> None:
    pairs = blocks_graph()
    data = data_of(pairs)
    partition = Partition.of(np.arange(NODES) % BLOCKS)
    loader = ClusterLoader(data, partition, 3, seed=5, num_workers=workers)
    loader.set_epoch(2)
    seen = []
    for step, batch in enumerate(loader):
        assert (batch.epoch, batch.step) == (2, step)
        assert torch.equal(batch.x, data.x[batch.n_id])
        assert torch.equal(batch.y, batch.n_id % BLOCKS)
        assert torch.equal(batch.cluster, batch.n_id % BLOCKS)
        assert torch.equal(batch.train_mask, data.train_mask[batch.n_id])
        assert torch.equal(batch.edge_attr[:, 0].long(), batch.e_id)
        assert torch.equal(batch.n_id[batch.edge_index], data.edge_index[:, batch.e_id])
        assert batch.name == "blocks"
        assert batch.num_nodes == batch.n_id.numel()
        assert sorted(batch.clusters.tolist()) == batch.cluster.unique().tolist()
        seen.append(batch.n_id)
    assert len(seen) == len(loader) == 3
    assert torch.equal(torch.cat(seen).sort().values, torch.arange(NODES))
    loader.set_epoch(2, start=1)
    assert len(loader) == 2
    rest = [batch.n_id for batch in loader]
    assert all(torch.equal(a, b) for a, b in zip(rest, seen[1:], strict=True))


def test_a_stored_graph_stands_for_the_datas_own(tmp_path: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from batchloom.jobs.graph_build import build_graph
    from batchloom.samplers.graph.graph_files import open_graph

    pairs = blocks_graph()
    pq.write_table(pa.table({"src": pairs[0], "dst": pairs[1]}), tmp_path / "e.parquet")
    build_graph(tmp_path / "e.parquet", tmp_path / "g", num_nodes=NODES, workers=0)
    data, partition = data_of(pairs), Partition.of(np.arange(NODES) % BLOCKS)
    graph: Any = open_graph(tmp_path / "g")
    stored = ClusterLoader(data, partition, 2, graph=graph)
    plain = ClusterLoader(data, partition, 2)
    for a, b in zip(stored, plain, strict=True):
        assert torch.equal(a.edge_index, b.edge_index)
        assert torch.equal(a.edge_attr, b.edge_attr)


def test_what_is_refused() -> None:
    pairs = blocks_graph()
    graph, data = CSCGraph.from_edge_index(pairs, NODES), data_of(pairs)
    partition = Partition.of(np.arange(NODES) % BLOCKS)
    bipartite = CSCGraph(np.array([0, 1]), np.array([3]), num_sources=9)
    cases: list[tuple[Any, type[Exception], str]] = [
        (lambda: ClusterBatches(graph, Partition.of([0, 1])), ParameterError, "of 2 nodes"),
        (lambda: ClusterBatches(graph, partition, 0), ParameterError, "'clusters_per_batch'"),
        (lambda: ClusterBatches(graph, partition, 9), ParameterError, r"in the range \[1, 8\]"),
        (
            lambda: ClusterBatches(graph, partition, 8, max_edges=99).sample(range(8)),
            BatchTooLargeError,
            "The 8 clusters of the batch, of 320 nodes, have more than 99 edges",
        ),
        (lambda: Partition.of([0, -1]), InvalidValueError, "Node 1 has label -1"),
        (lambda: Partition.of([0.5]), ParameterError, "one integer a node"),
        (lambda: Partition(np.array([5]), 2), InvalidValueError, "Node 0 has label 5"),
        (lambda: balanced_partition(graph, 0), ParameterError, r"in the range \[1, 320\]"),
        (lambda: balanced_partition(bipartite, 1), ParameterError, "of one kind of nodes"),
        (lambda: diffusion_features(graph, width=0), ParameterError, "'width'"),
        (
            lambda: balanced_partition(graph, 2, features=np.ones((3, 1))),
            ParameterError,
            "a row for each of the 320 nodes",
        ),
        (lambda: ClusterLoader(data, partition, batch_size=3), ParameterError, "leave out"),
        (lambda: ClusterLoader(data, partition).set_epoch(-1), SelectionError, "count from 0"),
    ]
    for call, error, message in cases:
        with pytest.raises(error, match=message):
            call()
