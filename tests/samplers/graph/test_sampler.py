from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane.errors import (
    BatchTooLargeError,
    InvalidValueError,
    ParameterError,
    SelectionError,
)
from batchloom.samplers.graph import (
    CSCGraph,
    NeighborSampler,
    PlannedBatches,
    sample_neighbors,
)
from batchloom.samplers.graph.keys import key_of_inputs, key_of_step
from batchloom.tests.samplers.graph.plain import edge_index, random_graph, small_graph
from torch_geometric.data import Data
from torch_geometric.loader import NodeLoader
from torch_geometric.sampler import BaseSampler, NodeSamplerInput, SamplerOutput
from torch_geometric.sampler.base import SubgraphType

SMALL = Data(x=torch.arange(8.0)[:, None], edge_index=torch.from_numpy(edge_index()), num_nodes=8)


def big_data(edges: int = 4000) -> Data:
    pairs = np.random.default_rng(0).integers(0, 500, (2, edges))
    return Data(
        x=torch.arange(500.0)[:, None],
        edge_index=torch.from_numpy(pairs),
        edge_attr=torch.arange(float(edges)),
        num_nodes=500,
    )


def nodes(*seeds: int, first: int = 0, **more: Any) -> NodeSamplerInput:
    inputs = torch.arange(first, first + len(seeds))
    return NodeSamplerInput(inputs, torch.tensor(seeds, dtype=torch.int64), **more)


def same(one: SamplerOutput, other: SamplerOutput) -> bool:
    parts = ("node", "row", "col", "edge")
    return all(torch.equal(getattr(one, p), getattr(other, p)) for p in parts)


def test_what_pyg_expects_of_a_sampler() -> None:
    sampler = NeighborSampler.from_data(SMALL, [-1, -1])
    assert isinstance(sampler, BaseSampler)
    out = sampler.sample_from_nodes(nodes(3, 0))
    assert isinstance(out, SamplerOutput)
    assert out.node.tolist() == [3, 0, 6, 1, 2, 5, 4]
    assert out.row.tolist() == [1, 2, 3, 4, 0, 5, 1, 6, 5]
    assert out.col.tolist() == [0, 0, 1, 1, 1, 2, 3, 3, 4]
    assert out.edge.tolist() == [6, 7, 0, 1, 2, 11, 3, 4, 5]
    assert {t.dtype for t in (out.node, out.row, out.col, out.edge)} == {torch.int64}
    assert (out.batch, out.num_sampled_nodes, out.num_sampled_edges) == (None, [2, 3, 2], [5, 4])
    assert torch.equal(out.metadata[0], torch.tensor([0, 1]))
    assert out.metadata[1] is None
    disjoint = NeighborSampler.from_data(SMALL, [-1], disjoint=True)
    assert disjoint.sample_from_nodes(nodes(3, 0)).batch.tolist() == [0, 1, 0, 0, 1, 1, 1]


def test_bidirectional_as_pyg_makes_it() -> None:
    data = big_data()
    plain = NeighborSampler.from_data(data, [4, 3]).sample_from_nodes(nodes(1, 5, 9))
    both = NeighborSampler.from_data(data, [4, 3], subgraph_type=SubgraphType.bidirectional)
    theirs = SamplerOutput(plain.node, plain.row, plain.col, plain.edge).to_bidirectional()
    ours = both.sample_from_nodes(nodes(1, 5, 9))
    assert torch.equal(ours.row, theirs.row)
    assert torch.equal(ours.col, theirs.col)
    assert set(ours.edge.tolist()) <= set(plain.edge.tolist())
    assert ours.num_sampled_nodes is ours.num_sampled_edges is None


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(
    "workers",
    [{}, {"num_workers": 1}, {"num_workers": 2}, {"num_workers": 3, "persistent_workers": True}],
)
@pytest.mark.parametrize("per_worker", [False, True])
def test_a_loader_gives_the_same_with_any_workers(
    workers: dict[str, Any], per_worker: bool
) -> None:
    data = big_data()
    sampler = NeighborSampler.from_data(data, [5, 3], seed=2)
    loader = NodeLoader(
        data, sampler, input_nodes=torch.arange(300), batch_size=64, filter_per_worker=per_worker,
        **workers,
    )  # fmt: skip
    torch.rand(len(workers) + 1)
    for _ in range(2 if workers.get("persistent_workers") else 1):
        for i, batch in enumerate(loader):
            seeds = np.arange(i * 64, min(i * 64 + 64, 300))
            made = sample_neighbors(sampler.graph, seeds, [5, 3], key_of_inputs(2, seeds))
            assert batch.n_id.tolist() == made.nodes[0].tolist()
            assert batch.edge_index.tolist() == [made.row[0].tolist(), made.col[0].tolist()]
            assert torch.equal(batch.x[:, 0].long(), batch.n_id)
            assert torch.equal(data.edge_index[:, batch.e_id], batch.n_id[batch.edge_index])
            assert torch.equal(batch.edge_attr.long(), batch.e_id)
            assert batch.batch_size == seeds.size


def test_spawned_workers_share_the_graph() -> None:
    data = big_data()
    sampler = NeighborSampler.from_data(data, [5], weights=torch.rand(4000) + 0.1)
    alone = [sampler.sample_from_nodes(nodes(*range(a, a + 50), first=a)) for a in (0, 50)]
    loader = NodeLoader(
        data, sampler, input_nodes=torch.arange(100), batch_size=50, num_workers=1,
        multiprocessing_context="spawn", filter_per_worker=False,
    )  # fmt: skip
    for batch, expected in zip(loader, alone, strict=True):
        assert torch.equal(batch.n_id, expected.node)
    assert set(sampler.graph.__dict__["_shared"]) == {"colptr", "row", "permutation"}


def test_planned_batches_are_keyed_by_their_place() -> None:
    data = big_data()
    seeds = torch.from_numpy(np.random.default_rng(1).permutation(500)[:77])
    sizes = [5, 1, 7, 0, 61, 3]
    offsets = np.cumsum([0, *sizes])
    sampler = NeighborSampler.from_data(data, [4, 4], seed=3, offsets=offsets)
    ranges = [range(a, b) for a, b in itertools.pairwise(offsets)]
    options: dict[str, Any] = {"input_nodes": seeds, "filter_per_worker": False}
    whole = list(NodeLoader(data, sampler, batch_sampler=ranges, **options))
    assert [b.batch_size for b in whole] == sizes
    for step, (batch, own) in enumerate(zip(whole, ranges, strict=True)):
        made = sample_neighbors(
            sampler.graph, seeds[list(own)].numpy(), [4, 4], key_of_step(3, 0, step)
        )
        assert batch.n_id.tolist() == made.nodes[0].tolist()
    for k in range(1, len(sizes)):  # a run that is taken up again
        rest = list(NodeLoader(data, sampler, batch_sampler=ranges[k:], num_workers=1, **options))
        for one, other in zip(rest, whole[k:], strict=True):
            assert torch.equal(one.n_id, other.n_id)
            assert torch.equal(one.e_id, other.e_id)


def test_each_epoch_of_a_plan_has_its_own_draws() -> None:
    planned = PlannedBatches(
        np.array([0, 3, 6]), np.array([0, 1]), np.array([0, 0]), np.array([0, 0])
    )
    graph = random_graph(1, 100, 3000)
    sampler = NeighborSampler.from_graph(graph, [4], offsets=planned)
    one, other = (sampler.sample_from_nodes(nodes(1, 2, 3, first=a)) for a in (0, 3))
    assert not torch.equal(one.edge, other.edge)
    expected = sample_neighbors(graph, [1, 2, 3], [4], key_of_step(0, 1, 0))
    assert other.edge.tolist() == expected.edge[0].tolist()
    with pytest.raises(SelectionError, match="are no batch of the plan"):
        sampler.sample_from_nodes(nodes(1, 2, first=0))
    with pytest.raises(SelectionError, match="has no input_id"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor([1])))


def test_seeds_are_known_by_themselves_where_inputs_have_no_numbers() -> None:
    sampler = NeighborSampler.from_graph(random_graph(1, 100, 3000), [4])
    seeds = torch.tensor([5, 8])
    one = sampler.sample_from_nodes(NodeSamplerInput(None, seeds))
    assert same(one, sampler.sample_from_nodes(NodeSamplerInput(None, seeds)))
    assert same(one, sampler.sample_from_nodes(NodeSamplerInput(seeds, seeds)))


def test_weights_are_those_of_the_callers_edges() -> None:
    data = big_data()
    data.weight = torch.ones(4000)
    data.weight[::2] = 1e-12
    sampler = NeighborSampler.from_data(data, [1], weights="weight")
    out = sampler.sample_from_nodes(nodes(*range(500)))
    edges = sampler.edge_permutation[out.edge]
    assert (edges % 2 == 1).double().mean() > 0.9


def test_nodes_in_time() -> None:
    data = big_data()
    data.when = torch.from_numpy(np.random.default_rng(0).integers(0, 100, 4000))
    sampler = NeighborSampler.from_data(data, [5, 3], edge_time="when", temporal_strategy="last")
    loader = NodeLoader(
        data, sampler, input_nodes=torch.arange(90), input_time=torch.arange(90), batch_size=30,
        filter_per_worker=False,
    )  # fmt: skip
    for i, batch in enumerate(loader):
        assert batch.seed_time.tolist() == list(range(i * 30, i * 30 + 30))
        limits = batch.seed_time[batch.batch[batch.edge_index[1]]]
        assert (data.when[batch.e_id] <= limits).all()
    with pytest.raises(ParameterError, match="give each seed one, with input_time"):
        sampler.sample_from_nodes(nodes(1, 2))


def test_nodes_have_their_own_times_where_seeds_have_none() -> None:
    when = np.random.default_rng(0).integers(0, 100, 500)
    sampler = NeighborSampler.from_data(big_data(), [5, 3], node_time=when)
    out = sampler.sample_from_nodes(nodes(*range(40)))
    found = when[out.node.numpy()]
    assert (found <= found[out.batch.numpy()]).all()


def test_pickles_sample_the_same() -> None:
    data = big_data()
    when = {"edge_time": torch.zeros(4000), "temporal_strategy": "last"}
    for options in ({}, {"weights": torch.rand(4000) + 0.1}, {"draws": "labor"}, when):
        sampler = NeighborSampler.from_data(data, [5, 3], **options)
        copy = pickle.loads(pickle.dumps(sampler))
        copy.compile()
        index = nodes(4, 9, 4, time=torch.zeros(3))
        assert same(*(s.sample_from_nodes(index) for s in (sampler, copy)))


def test_outputs_can_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a DataLoader with pin_memory=True does it, device or none."""
    pinned = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda self, *_: pinned.append(self.data_ptr()) or self
    )
    out = NeighborSampler.from_data(SMALL, [2], disjoint=True).sample_from_nodes(nodes(0, 3))
    from torch.utils.data._utils.pin_memory import pin_memory

    again = pin_memory(out)
    assert type(again) is type(out)
    tensors = (out.node, out.row, out.col, out.edge, out.batch, out.metadata[0])
    assert {t.data_ptr() for t in tensors} <= set(pinned)


def test_mapped_graphs(tmp_path: Any) -> None:
    graph = small_graph()
    graph.colptr.tofile(tmp_path / "colptr")
    graph.row.tofile(tmp_path / "row")
    colptr = np.memmap(tmp_path / "colptr", np.int64, "r")
    row = np.memmap(tmp_path / "row", np.int32, "r")
    sampler = NeighborSampler(colptr, row, [2, 2])
    assert isinstance(sampler.graph.row, np.memmap)
    named = NeighborSampler(colptr, row, [2, 2], permutation=np.memmap(tmp_path / "row", np.int32))
    assert named.edge_permutation.tolist() == graph.row.tolist()
    assert len(pickle.dumps(sampler)) < 4000
    out = pickle.loads(pickle.dumps(sampler)).sample_from_nodes(nodes(0, 3))
    assert same(out, NeighborSampler.from_graph(graph, [2, 2]).sample_from_nodes(nodes(0, 3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "'seed' parameter of NeighborSampler must be an int in the range"),
        ({"subgraph_type": "whole"}, "'subgraph_type' parameter of NeighborSampler must be one of"),
        ({"draws": "random"}, "'draws' parameter of NeighborSampler must be one of"),
        ({"max_edges_per_batch": 2**31}, "'max_edges_per_batch' parameter of NeighborSampler"),
        ({"max_edges_per_batch": 0}, "'max_edges_per_batch' parameter of NeighborSampler"),
        ({"draws": "labor", "replace": True}, "draws='labor' cannot go with replace"),
        ({"draws": "labor", "disjoint": True}, "draws='labor' cannot go with disjoint"),
        ({"draws": "labor", "weights": np.ones(12)}, "draws='labor' cannot go with weights"),
        ({"temporal_strategy": "last"}, "give node_time or edge_time"),
        ({"node_time": np.ones(8), "edge_time": np.ones(12)}, "not both"),
        ({"node_time": np.ones(3)}, "'node_time' must be 8 numbers"),
        (
            {"edge_time": np.ones(12), "weights": np.ones(12), "temporal_strategy": "last"},
            "whatever their weights",
        ),
        ({"offsets": [1, 2]}, "must ascend from 0"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        NeighborSampler.from_data(SMALL, [2], **options)


def test_input_that_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="'colptr' of a graph must ascend"):
        NeighborSampler([0, 3, 2, 3], [0, 1, 1], [2])
    with pytest.raises(ParameterError, match="'row' must be int32 or int64"):
        NeighborSampler([0, 1], torch.zeros(1), [2])
    with pytest.raises(ParameterError, match="'fanouts' must be a list of ints"):
        NeighborSampler([0, 1], [0], [-2])
    with pytest.raises(ParameterError, match="Use HeteroNeighborSampler"):
        NeighborSampler.from_graph(CSCGraph([0, 1], [3], num_sources=4), [2])
    sampler = NeighborSampler.from_data(SMALL, [2])
    with pytest.raises(SelectionError, match="Seed 1 of the batch is 8, which is no node"):
        sampler.sample_from_nodes(nodes(1, 8))
    with pytest.raises(ParameterError, match="'seeds' must be int32 or int64. Got float32"):
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.zeros(2)))
    hub = NeighborSampler.from_data(SMALL, [-1], max_edges_per_batch=2)
    with pytest.raises(BatchTooLargeError, match="more than 2 edges"):
        hub.sample_from_nodes(nodes(0))


def without_pyg(script: str) -> str:
    hidden = "import sys; sys.modules['torch_geometric'] = None\n"
    command = [sys.executable, "-c", hidden + script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_without_pyg_the_extra_is_named() -> None:
    script = (
        "from batchloom.dataplane.errors import MissingExtraError\n"
        "try: from batchloom.samplers.graph import NeighborSampler\n"
        "except MissingExtraError as error: print(error)"
    )
    assert "pip install 'batchloom[graph]'" in without_pyg(script)


def test_plain_sampling_needs_neither_pyg_nor_torch() -> None:
    script = (
        "from batchloom.samplers.graph import CSCGraph, sample_neighbors\n"
        "print(sample_neighbors(CSCGraph([0, 2, 2], [0, 1]), [0], [-1]).nodes[0].tolist())\n"
        "print('torch' in sys.modules)"
    )
    assert without_pyg(script).split("\n")[:2] == ["[0, 1]", "False"]
