"""PyG's loaders with our sampler: what PyG's own code expects of their arguments and batches."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

import torch_geometric.loader as pyg
from batchloom.dataplane.errors import InvalidValueError, ParameterError
from batchloom.samplers.graph import (
    CSCGraph,
    GraphFeatures,
    HeteroNeighborSampler,
    LinkNeighborLoader,
    NeighborLoader,
    NeighborSampler,
)
from batchloom.tests.samplers.graph.graphs import NODES, graph_data, hetero_data
from batchloom.tests.samplers.graph.plain import edge_index
from torch_geometric import EdgeIndex
from torch_geometric.data import Data, HeteroData
from torch_geometric.sampler import NumNeighbors
from torch_geometric.testing import MyGraphStore

SMALL = Data(x=torch.arange(8.0)[:, None], edge_index=torch.from_numpy(edge_index()), num_nodes=8)
WROTE = ("author", "wrote", "paper")
BY = ("paper", "by", "author")


def of(batch: Any) -> list[Any]:
    return [batch.n_id.tolist(), batch.e_id.tolist(), batch.edge_index.tolist()]


def consistent(batch: Any, data: Any) -> None:
    assert torch.equal(batch.x, data.x[batch.n_id])
    assert torch.equal(data.edge_index[:, batch.e_id], batch.n_id[batch.edge_index])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(NeighborLoader, pyg.NeighborLoader), (LinkNeighborLoader, pyg.LinkNeighborLoader)],
)
def test_the_arguments_are_pyg_s(ours: Any, theirs: Any) -> None:
    assert issubclass(ours, theirs)
    known, wanted = (inspect.signature(c.__init__).parameters for c in (ours, theirs))
    assert list(known) == list(wanted)
    for name, parameter in wanted.items():
        assert known[name].default == parameter.default, name
        assert known[name].kind == parameter.kind, name


def test_a_batch_that_is_known() -> None:
    loader = NeighborLoader(SMALL, [-1, -1], input_nodes=torch.tensor([3, 0]), batch_size=2)
    (batch,) = loader
    assert batch.n_id.tolist() == [3, 0, 6, 1, 2, 5, 4]
    assert batch.edge_index.tolist() == [[1, 2, 3, 4, 0, 5, 1, 6, 5], [0, 0, 1, 1, 1, 2, 3, 3, 4]]
    assert (batch.num_sampled_nodes, batch.num_sampled_edges) == ([2, 3, 2], [5, 4])
    assert batch.batch_size == 2
    assert batch.x[:, 0].tolist() == batch.n_id.tolist()
    assert isinstance(loader, torch.utils.data.DataLoader)


@pytest.mark.parametrize(
    ("nodes", "expected", "ids"),
    [
        (None, list(range(NODES)), list(range(NODES))),
        (torch.arange(NODES) % 3 == 0, list(range(0, NODES, 3)), list(range(0, NODES, 3))),
        (torch.tensor([7, 3, 5]), [7, 3, 5], [0, 1, 2]),
        ([7, 3, 5], [7, 3, 5], [0, 1, 2]),
    ],
    ids=["all", "mask", "tensor", "list"],
)
def test_seeds_in_any_form(nodes: Any, expected: list[int], ids: list[int]) -> None:
    data = graph_data()
    batches = list(NeighborLoader(data, [3, 2], input_nodes=nodes, batch_size=64))
    seeds = torch.cat([b.n_id[: b.batch_size] for b in batches])
    assert seeds.tolist() == expected
    assert torch.cat([b.input_id for b in batches]).tolist() == ids
    for batch in batches:
        consistent(batch, data)
        assert torch.equal(batch.y, data.y[batch.n_id])
        assert torch.equal(batch.edge_attr.long(), batch.e_id)


@pytest.mark.parametrize(
    "options",
    [
        {"replace": True},
        {"disjoint": True},
        {"subgraph_type": "induced"},
        {"weight_attr": "weight"},
        {"time_attr": "time"},
        {"time_attr": "time", "temporal_strategy": "last"},
        {"time_attr": "edge_time", "input_time": torch.full((NODES,), 500)},
        {"shuffle": True, "drop_last": True},
        {"num_workers": 2, "filter_per_worker": True},
        {"draws": "labor", "seed": 3, "max_edges_per_batch": 10_000},
    ],
    ids=lambda options: " ".join(options),
)
def test_options(options: dict[str, Any]) -> None:
    data = graph_data()
    data.time, data.weight = torch.arange(NODES), torch.rand(data.num_edges)
    data.edge_time = torch.arange(data.num_edges) % 1000
    data.weight[::2] = 0
    batches = list(NeighborLoader(data, [4, 3], batch_size=64, **options))
    assert len(batches) == (4 if "drop_last" in options else 5)
    for batch in batches:
        consistent(batch, data)
        if "weight_attr" in options:
            assert (batch.weight > 0).all()
        if options.get("time_attr") == "time":
            assert (batch.time <= batch.time[batch.batch]).all()
        if options.get("time_attr") == "edge_time":
            assert (batch.edge_time <= 500).all()
        assert (batch.batch is None) == (not {"disjoint", "time_attr"} & set(options))


def test_what_a_sampler_of_ours_would_give() -> None:
    data = graph_data()
    ours = NeighborLoader(data, [4, 3], batch_size=50, seed=5)
    sampler = NeighborSampler.from_data(data, [4, 3], seed=5)
    assert [of(b) for b in ours] == [of(b) for b in pyg.NodeLoader(data, sampler, batch_size=50)]
    given = NeighborLoader(data, None, batch_size=50, neighbor_sampler=sampler)
    assert [of(b) for b in ours] == [of(b) for b in given]
    assert [of(b) for b in ours] == [of(b) for b in ours]  # the next epoch, not shuffled
    workers = NeighborLoader(data, [4, 3], batch_size=50, seed=5, num_workers=2)
    assert [of(b) for b in ours] == [of(b) for b in workers]


def test_edges_of_other_classes() -> None:
    data = graph_data()
    expected = [of(b) for b in NeighborLoader(data, [4], batch_size=100)]
    data.edge_index = EdgeIndex(data.edge_index, sparse_size=(NODES, NODES))
    assert [of(b) for b in NeighborLoader(data, [4], batch_size=100)] == expected


def test_edges_that_are_said_to_be_sorted() -> None:
    data = graph_data()
    with pytest.raises(InvalidValueError, match="not sorted by target"):
        NeighborLoader(data, [4], is_sorted=True)
    order = data.edge_index[1].argsort(stable=True)
    data.edge_index = data.edge_index[:, order]
    for batch in NeighborLoader(data, [4], is_sorted=True, batch_size=100):
        consistent(batch, data)


def test_directed_as_pyg_once_had_it() -> None:
    with pytest.warns(UserWarning, match="deprecated"):
        loader = NeighborLoader(SMALL, [-1], input_nodes=[3, 0], batch_size=2, directed=False)
    (batch,) = loader
    assert batch.e_id.tolist() == [6, 7, 0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"input_time": torch.arange(NODES)}, ValueError, "time_attr"),
        ({"time_attr": "when"}, ParameterError, "'when'"),
        ({"weight_attr": "heavy"}, ParameterError, "'heavy'"),
        ({"subgraph_type": "half"}, ParameterError, "subgraph_type"),
        ({"temporal_strategy": "first", "time_attr": "y"}, ParameterError, "temporal_strategy"),
        ({"num_neighbors": {WROTE: [2]}}, ParameterError, "one list"),
        ({"num_neighbors": [-2]}, ParameterError, "-2"),
        ({"batch_sampler": [[0]], "batch_size": 2}, ValueError, "mutually exclusive"),
        ({"unheard_of": 1}, TypeError, "unheard_of"),
    ],
)
def test_what_is_refused(options: dict[str, Any], error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        NeighborLoader(graph_data(), **{"num_neighbors": [2], **options})
    with pytest.raises(ParameterError, match="no 'edge_index'"):
        NeighborLoader(Data(x=torch.ones(3, 1)), [2])


# --- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("negatives", [None, "binary", "triplet"])
def test_links_are_the_same_for_any_workers(negatives: Any, disjoint: bool) -> None:
    """Case 9: also that seed edges are left out, and that no negative is a link."""
    data = graph_data()
    linked = {tuple(e) for e in data.edge_index.T.tolist()}
    found = []
    for workers in (0, 2):
        loader = LinkNeighborLoader(
            data, [4, 3], edge_label_index=data.edge_index[:, :120], batch_size=40,
            neg_sampling=negatives, disjoint=disjoint, num_workers=workers,
            exclude_seed_edges="forward", true_negatives=True,
        )  # fmt: skip
        torch.rand(workers + 1)
        ends = []
        for number, batch in enumerate(loader):
            consistent(batch, data)
            seeds = data.edge_index[:, 40 * number : 40 * number + 40]
            if negatives == "triplet":
                source, right, wrong = batch.src_index, batch.dst_pos_index, batch.dst_neg_index
                positives, negative = torch.stack([source, right]), torch.stack([source, wrong])
            else:
                positives = batch.edge_label_index[:, :40]
                negative = batch.edge_label_index[:, 40:]
            assert torch.equal(batch.n_id[positives], seeds)
            assert not {tuple(e) for e in batch.n_id[negative].T.tolist()} & linked
            sampled = {tuple(e) for e in data.edge_index[:, batch.e_id].T.tolist()}
            assert not sampled & {tuple(e) for e in seeds.T.tolist()}
            if negatives == "binary":
                assert batch.edge_label.tolist() == [1.0] * 40 + [0.0] * 40
            ends.append([of(batch), positives.tolist(), negative.tolist()])
        found.append(ends)
    assert found[0] == found[1]


def test_links_in_time() -> None:
    data = graph_data()
    data.time = torch.arange(NODES)
    links = data.edge_index[:, :60]
    when = links.max(dim=0).values
    loader = LinkNeighborLoader(
        data, [3], edge_label_index=links, edge_label_time=when, time_attr="time", batch_size=20,
        neg_sampling_ratio=1.0,
    )  # fmt: skip
    for batch in loader:
        assert (batch.time <= batch.edge_label_time[:20][batch.batch]).all()
    with pytest.raises(ValueError, match="edge_label_time"):
        LinkNeighborLoader(data, [3], edge_label_index=links, time_attr="time")


# --- several kinds, and stores --------------------------------------------------------------------


@pytest.mark.parametrize(
    "fanouts",
    [[3, 2], {WROTE: [3, 2], BY: [3, 2]}, NumNeighbors({WROTE: [3, 2]}, default=[3, 2])],
    ids=["list", "dict", "NumNeighbors"],
)
def test_several_kinds(fanouts: Any) -> None:
    data = hetero_data()
    seeds = torch.arange(20)
    loader = NeighborLoader(data, fanouts, input_nodes=("paper", seeds), batch_size=10)
    expected = pyg.NodeLoader(
        data, HeteroNeighborSampler.from_data(data, [3, 2]), ("paper", seeds), batch_size=10
    )
    for batch, other in zip(loader, expected, strict=True):
        for kind in data.node_types:
            assert torch.equal(batch[kind].n_id, other[kind].n_id)
            assert torch.equal(batch[kind].x, data[kind].x[batch[kind].n_id])
        assert torch.equal(batch[WROTE].edge_attr.long(), batch[WROTE].e_id)
        assert batch["paper"].batch_size == 10


def test_several_kinds_in_time_and_by_weight() -> None:
    data = hetero_data()
    data["paper"].time, data["author"].time = torch.arange(NODES), torch.zeros(80).long()
    data[WROTE].weight = torch.rand(900)
    data[WROTE].weight[::3] = 0
    inputs = {"input_nodes": ("paper", torch.arange(200, 240)), "batch_size": 20}
    for batch in NeighborLoader(data, [3, 3], time_attr="time", **inputs):
        paper = batch["paper"]
        assert (paper.time <= paper.time[paper.batch]).all()
    for batch in NeighborLoader(data, [3, 3], weight_attr="weight", **inputs):
        assert (batch[WROTE].weight > 0).all()
        assert torch.equal(batch[WROTE].edge_attr.long(), batch[WROTE].e_id)
    data[BY].time = torch.zeros(900)
    with pytest.raises(ParameterError, match="of both"):
        NeighborLoader(data, [3], time_attr="time", **inputs)
    with pytest.raises(ValueError, match="not all|Not all"):
        NeighborLoader(data, {("a", "b", "c"): [2]}, **inputs)
    with pytest.raises(ValueError, match="Missing number of neighbors"):
        NeighborLoader(data, {WROTE: [2]}, **inputs)


def test_links_of_several_kinds() -> None:
    data = hetero_data()
    loader = LinkNeighborLoader(
        data, [3], edge_label_index=(WROTE, None), neg_sampling="binary", batch_size=300
    )
    for number, batch in enumerate(loader):
        ends = batch[WROTE].edge_label_index[:, :300]
        found = torch.stack([batch["author"].n_id[ends[0]], batch["paper"].n_id[ends[1]]])
        first = 300 * number
        assert torch.equal(found, data[WROTE].edge_index[:, first : first + 300])


def test_stores() -> None:
    data, store = graph_data(), MyGraphStore()
    store.put_edge_index(data.edge_index, edge_type=None, layout="coo", size=(NODES, NODES))
    features = GraphFeatures({"x": data.x})
    seeds = torch.arange(50)
    expected = list(NeighborLoader(data, [4, 3], input_nodes=seeds, batch_size=25))
    for batch, other in zip(
        NeighborLoader((features, store), [4, 3], input_nodes=seeds, batch_size=25),
        expected,
        strict=True,
    ):
        assert torch.equal(batch.n_id, other.n_id)
        assert torch.equal(batch.x, other.x)
    several = hetero_data()
    given = {kind: {"x": several[kind].x} for kind in several.node_types}
    loader = NeighborLoader((GraphFeatures(given), several), [3, 2], input_nodes="paper")
    batch = next(iter(loader))
    assert torch.equal(batch["author"].x, several["author"].x[batch["author"].n_id])
    with pytest.raises(ParameterError, match="neighbor_sampler"):
        NeighborLoader((features, store), [2], input_nodes=seeds, weight_attr="w")


def test_a_node_without_edges_and_kinds_without_edges() -> None:
    data = HeteroData()
    data["a"].x, data["b"].x = torch.ones(3, 1), torch.ones(2, 1)
    data["a", "to", "b"].edge_index = torch.empty((2, 0), dtype=torch.int64)
    batch = next(iter(NeighborLoader(data, [2], input_nodes=("b", None), batch_size=2)))
    assert batch["a"].num_nodes == 0
    assert batch["b"].n_id.tolist() == [0, 1]
    graph = CSCGraph.from_edge_index(np.empty((2, 0), np.int64), 3)
    assert graph.num_edges == 0
