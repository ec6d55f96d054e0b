"""Features: the same rows from any table, gathered in one process, and what caches of them hit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane import BatchPlan
from batchloom.dataplane.errors import ColumnTypeError, MissingColumnError, ParameterError
from batchloom.gpu_access import HotRowCache, UnifiedTensor
from batchloom.gpu_access.cache_policies import Belady, Lru, Static, simulate
from batchloom.jobs import pack
from batchloom.samplers.graph import (
    CSCGraph,
    GraphFeatures,
    HeteroNeighborSampler,
    NeighborSampler,
    graph_loader,
    packed_features,
    planned_accesses,
)
from batchloom.tests.contracts.batches import write_plan
from batchloom.tests.samplers.graph.graphs import (
    NODES,
    WIDTH,
    csc_graph,
    features,
    graph_data,
    hetero_data,
    node_plan,
    pairs,
    write_nodes,
)
from torch_geometric.loader import NodeLoader

KINDS = ["tensor", "array", "memory map", "unified", "cache", "float64", "one value", "strided"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nodes(tmp_path_factory.mktemp("nodes") / "nodes")


@pytest.fixture(scope="module")
def plan(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans") / "plan"
    node_plan(folder, data)
    return folder


@pytest.fixture(scope="module")
def packed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "packed"
    pack(data, out=out)
    return out


def table_of(kind: str, folder: Path) -> tuple[Any, Any]:
    """Return a table and its rows."""
    rows = features()
    if kind == "tensor":
        return torch.from_numpy(rows), rows
    if kind == "memory map":
        rows.tofile(folder / "x.bin")
        return np.memmap(folder / "x.bin", np.float32, "r", shape=rows.shape), rows
    if kind == "unified":
        return UnifiedTensor.from_tensor(torch.from_numpy(rows)), rows
    if kind == "cache":
        table = UnifiedTensor.from_tensor(torch.from_numpy(rows))
        return HotRowCache.lru(table, 100 * WIDTH * 4), rows
    if kind == "float64":
        return rows.astype(np.float64)[:, None], rows.astype(np.float64)[:, None]
    if kind == "one value":
        return np.arange(NODES), np.arange(NODES)
    if kind == "strided":
        return torch.from_numpy(rows)[:, 1:4], rows[:, 1:4]
    return rows, rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ids", [[], [4], [7, 299, 0, 7, 7, 12]], ids=["none", "one", "repeats"])
def test_rows_of_any_table(kind: str, ids: list[int], tmp_path: Path) -> None:
    table, rows = table_of(kind, tmp_path)
    store = GraphFeatures({"x": table})
    found, _ = store.start({None: torch.tensor(ids, dtype=torch.int64)}).wait()
    assert found[None, "x"].shape == (len(ids), *rows.shape[1:])
    assert np.array_equal(found[None, "x"].numpy(), rows[ids])
    assert found[None, "x"].dtype == torch.from_numpy(rows).dtype


def test_a_batch_owns_its_rows() -> None:
    """Memory is used again only once nobody holds it."""
    wide = np.random.default_rng(0).random((2000, 300), np.float32)
    store = GraphFeatures({"x": wide})
    held = []
    for start in range(0, 1000, 100):
        ids = torch.arange(start, start + 900)
        held.append((ids, store.start({None: ids}).wait()[0][None, "x"]))
    assert all(np.array_equal(rows.numpy(), wide[ids.numpy()]) for ids, rows in held)


def test_packed_columns(plan: Path, packed: Path, data: Path, tmp_path: Path) -> None:
    columns = packed_features(packed)
    assert list(columns) == ["node", "x", "part"]
    for given in (columns, packed, {"x": columns["x"], "node": columns["node"]}):
        for batch in graph_loader(plan, csc_graph(), given, fanouts=[3, 2]):
            assert torch.equal(batch.node, batch.n_id)
            assert np.array_equal(batch.x.numpy(), features()[batch.n_id.numpy()])
    with pytest.raises(MissingColumnError):
        packed_features(packed, ["z"])
    texts = tmp_path / "texts"
    texts.mkdir()
    table = pa.table({"text": ["a", "bc"], "n": [1, 2]})
    with pa.ipc.new_file(str(texts / "0.arrow"), table.schema) as writer:
        writer.write_table(table)
    pack(texts, out=tmp_path / "packed")
    assert list(packed_features(tmp_path / "packed")) == ["n"]
    with pytest.raises(ColumnTypeError, match="no fixed width"):
        packed_features(tmp_path / "packed", ["text"])


def test_packed_columns_of_a_kind_of_nodes(tmp_path: Path) -> None:
    sources = {
        "author": write_nodes(tmp_path / "author", 80),
        "paper": write_nodes(tmp_path / "paper"),
    }
    pack(sources, out=tmp_path / "packed")
    nodes = {kind: packed_features(tmp_path / "packed", source=kind) for kind in sources}
    store = GraphFeatures(nodes)
    ids = torch.tensor([5, 79, 0])
    found, _ = store.start({"author": ids, "paper": ids}).wait()
    assert found["author", "node"].tolist() == found["paper", "node"].tolist() == [5, 79, 0]
    assert np.array_equal(found["author", "x"].numpy(), features(80)[[5, 79, 0]])
    assert np.array_equal(found["paper", "x"].numpy(), features()[[5, 79, 0]])
    with pytest.raises(ParameterError, match="several sources"):
        packed_features(tmp_path / "packed")
    with pytest.raises(ParameterError, match="no source 'papers'.*Did you mean 'paper'"):
        packed_features(tmp_path / "packed", source="papers")


# --- as PyG's FeatureStore ------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_pyg_takes_them(workers: int) -> None:
    data = graph_data()
    store = GraphFeatures({"x": features()})
    sampler = NeighborSampler.from_data(data, [3, 2])
    loader = NodeLoader(
        (store, data), sampler, input_nodes=torch.arange(60), batch_size=20,
        num_workers=workers, filter_per_worker=False,
    )  # fmt: skip
    batches = list(loader)
    assert len(batches) == 3
    assert all(torch.equal(b.x, data.x[b.n_id]) for b in batches)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_may_not_touch_them(context: str) -> None:
    data = graph_data()
    sampler = NeighborSampler.from_data(data, [3, 2])
    loader = NodeLoader(
        (GraphFeatures({"x": features()}), data), sampler, input_nodes=torch.arange(60),
        num_workers=1, multiprocessing_context=context,
    )  # fmt: skip
    with pytest.raises(ParameterError, match="filter_per_worker=False"):
        next(iter(loader))


def test_gathers_happen_in_this_process_only(plan: Path) -> None:
    class Noted:
        shape = (NODES, WIDTH)

        def __init__(self) -> None:
            self.of = GraphFeatures({"x": features()})._nodes[None]["x"]
            self.processes: list[int] = []

        def start(self, ids: torch.Tensor) -> Any:
            self.processes.append(os.getpid())
            return self.of.start(ids)

    table = Noted()
    for batch in graph_loader(plan, csc_graph(), {"x": table}, fanouts=[3], num_workers=2):
        assert np.array_equal(batch.x.numpy(), features()[batch.n_id.numpy()])
    assert table.processes == [os.getpid()] * 20


def test_what_a_feature_store_can_do() -> None:
    store = GraphFeatures({"x": features()})
    assert store.get_tensor_size(group_name=None, attr_name="x") == (NODES, WIDTH)
    assert store.put_tensor(np.arange(NODES), group_name=None, attr_name="y", index=None)
    assert [a.attr_name for a in store.get_all_tensor_attrs()] == ["x", "y"]
    ids = torch.tensor([3, 1])
    assert store.get_tensor(group_name=None, attr_name="y", index=ids).tolist() == [3, 1]
    every = store.get_tensor(group_name=None, attr_name="y", index=None)
    assert every.tolist() == list(range(NODES))
    part = store.get_tensor(group_name=None, attr_name="y", index=slice(2, 5))
    assert part.tolist() == [2, 3, 4]
    assert store.remove_tensor(group_name=None, attr_name="y", index=None)
    assert "y" not in repr(store)
    with pytest.raises(KeyError):
        store.get_tensor(group_name=None, attr_name="y", index=ids)
    assert not store.put_tensor(np.arange(2), group_name=None, attr_name="x", index=ids)


@pytest.mark.parametrize(
    ("nodes", "options", "match"),
    [
        ({"x": features(), "y": np.arange(5)}, {}, "as many rows.*x: 300, y: 5"),
        ({"x": 3}, {}, "'x' must be a tensor.*Got int"),
        ({"x": np.array(3.0)}, {}, "Got ndarray"),
        ({"x": features()}, {"seed_only": "y"}, "list of names"),
        ({"x": features()}, {"device": "nowhere"}, "torch device"),
    ],
)
def test_what_is_no_feature(nodes: Any, options: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        GraphFeatures(nodes, **options)


def test_a_loader_asked_for_another_place(plan: Path) -> None:
    store = GraphFeatures({"x": features()})
    with pytest.raises(ParameterError, match="Say so where the features are made"):
        graph_loader(plan, csc_graph(), store, fanouts=[2], pin_memory=True)


# --- larger than memory ---------------------------------------------------------------------------


def test_a_table_of_four_times_the_memory_that_it_takes(plan: Path, tmp_path: Path) -> None:
    """Case 10: what is resident is what was read, and it trains."""
    rows, width = 100_000, 1024  # 400 MB, of which the disk holds what is written
    with open(tmp_path / "x.bin", "wb") as file:
        file.truncate(rows * width * 4)
    table = np.memmap(tmp_path / "x.bin", np.float32, "r+", shape=(rows, width))
    stride = rows // NODES
    table[np.arange(NODES) * stride, 0] = np.arange(NODES)
    table.flush()
    wide = CSCGraph.from_edge_index(pairs() * stride, rows)
    folder = write_nodes(tmp_path / "nodes", rows, files=1)
    ids = np.arange(NODES, dtype=np.uint64) * np.uint64(stride)
    write_plan(tmp_path / "plan", folder, {0: BatchPlan.cut(ids, 30, None)})
    y = torch.zeros(rows)
    loader = graph_loader(tmp_path / "plan", wide, {"x": table, "y": y}, fanouts=[3, 2])
    model = torch.nn.Linear(width, 1)
    before = psutil.Process().memory_info().rss
    for batch in loader:
        assert torch.equal(batch.x[:, 0].long() * stride, batch.n_id)
        out = model(batch.x)[: batch.batch_size, 0]
        (out - batch.y).square().mean().backward()
    assert psutil.Process().memory_info().rss - before < rows * width * 4 / 4


# --- what a plan reads, and caches ----------------------------------------------------------------


def test_planned_accesses_are_what_the_loader_reads(plan: Path) -> None:
    sampler = NeighborSampler.from_graph(csc_graph(), [3, 2], seed=3)
    loader = graph_loader(plan, sampler, {"x": features()})
    read = [batch.n_id.tolist() for batch in loader]
    accesses = planned_accesses(plan, sampler)
    assert [nodes.tolist() for nodes in accesses] == read
    assert [nodes.tolist() for nodes in accesses] == read  # again
    counts = np.bincount(np.concatenate(read), minlength=NODES)
    assert accesses.counts().tolist() == counts.tolist()
    assert [n.tolist() for n in planned_accesses(plan, sampler, epochs=[1])] == read[10:]
    assert [n.tolist() for n in planned_accesses(plan, sampler, every=7)] == read[::7]
    for _, _ in zip(range(13), loader, strict=False):
        pass
    state = loader.state_dict()
    rest = planned_accesses(plan, sampler, state=state)
    assert [n.tolist() for n in rest] == [n.tolist() for n in rest] == read[13:]
    with pytest.raises(ParameterError, match="every"):
        planned_accesses(plan, sampler, every=0)


def test_planned_accesses_of_another_kind(plan: Path) -> None:
    sampler = HeteroNeighborSampler.from_data(hetero_data(), [3, 2])
    loader = graph_loader(plan, sampler, hetero_data(), kind="paper")
    read = [batch["author"].n_id.tolist() for batch in loader]
    accesses = planned_accesses(plan, sampler, kind="paper", of="author")
    assert [nodes.tolist() for nodes in accesses] == read
    assert len(accesses.counts()) == 80
    with pytest.raises(ParameterError, match="author"):
        planned_accesses(plan, sampler, kind="paper", of="writer")


@pytest.mark.parametrize("kind", ["belady", "counts", "degrees", "lru"])
def test_a_cache_changes_no_row(plan: Path, kind: str) -> None:
    sampler = NeighborSampler.from_graph(csc_graph(), [3, 2])
    accesses, size = planned_accesses(plan, sampler), 40 * WIDTH * 4
    table = UnifiedTensor.from_tensor(torch.from_numpy(features()))
    if kind == "belady":
        cache = HotRowCache.from_plan(table, accesses, size)
    elif kind == "counts":
        cache = HotRowCache.from_counts(table, accesses.counts(), size)
    elif kind == "degrees":
        cache = HotRowCache.from_degrees(table, np.diff(csc_graph().colptr), size)
    else:
        cache = HotRowCache.lru(table, size)
    for batch in graph_loader(plan, sampler, {"x": cache}, num_workers=2):
        assert np.array_equal(batch.x.numpy(), features()[batch.n_id.numpy()])
    assert table.stats.cache_hits > 0


def test_what_a_plan_knows_hits_more(tmp_path: Path) -> None:
    """A tenth of the rows: the plan's cache, the pilot's, degrees and what was used last."""
    rng, nodes = np.random.default_rng(0), 3000
    ends = np.minimum((nodes * rng.random((2, 30_000)) ** 3).astype(np.int64), nodes - 1)
    graph = CSCGraph.from_edge_index(rng.permutation(nodes)[ends], nodes)
    folder = write_nodes(tmp_path / "nodes", nodes)
    node_plan(tmp_path / "plan", folder, rows=nodes // 4, batch=50)  # a training split
    sampler = NeighborSampler.from_graph(graph, [5, 5])
    accesses = planned_accesses(tmp_path / "plan", sampler)
    batches, slots = list(accesses), nodes // 10
    pilot = planned_accesses(tmp_path / "plan", sampler, every=5).counts()
    degrees = np.bincount(graph.row, minlength=nodes)
    rates = {
        "belady": simulate(Belady(batches, nodes, slots), batches),
        "counts": simulate(Static(accesses.counts(), slots), batches),
        "pilot": simulate(Static(pilot, slots), batches),
        "degree": simulate(Static(degrees, slots), batches),
        "lru": simulate(Lru(nodes, slots), batches),
    }
    assert rates["counts"] >= rates["degree"]
    assert rates["counts"] >= rates["pilot"] >= 0.8 * rates["counts"]
    assert rates["belady"] >= max(rates["degree"], rates["lru"]), rates
