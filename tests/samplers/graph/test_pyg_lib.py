"""pyg-lib: parity where it is installed, which no package registry offers; else what it is told.

What it is known to give for one small graph is compared in `test_sampling` everywhere. Here a
stand-in takes the place of its operators, with their schemas: it notes the arguments, and answers
as pyg-lib answers where all neighbours are taken, by a loop of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane.errors import MissingExtraError, ParameterError
from batchloom.samplers.graph import HeteroNeighborSampler, NeighborSampler
from torch_geometric.data import Data
from torch_geometric.sampler import NeighborSampler as TheirSampler
from torch_geometric.sampler import NodeSamplerInput
from torch_geometric.typing import WITH_PYG_LIB

installed = pytest.mark.skipif(not WITH_PYG_LIB, reason="pyg-lib is not installed")
missing = pytest.mark.skipif(WITH_PYG_LIB, reason="pyg-lib is installed")


@installed
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("fanouts", [[-1], [-1, -1], [1000, 1000]])
def test_all_neighbours_are_the_same(fanouts: list[int], disjoint: bool) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pairs = torch.from_numpy(rng.integers(0, 200, (2, 900)))
        data = Data(edge_index=pairs, num_nodes=200)
        index = NodeSamplerInput(None, torch.from_numpy(rng.choice(200, 9, replace=False)))
        ours = NeighborSampler.from_data(data, fanouts, disjoint=disjoint)
        by_it = NeighborSampler.from_data(data, fanouts, disjoint=disjoint, backend="pyg-lib")
        theirs = TheirSampler(data, fanouts, disjoint=disjoint)
        same(ours.sample_from_nodes(index), theirs.sample_from_nodes(index))
        same(by_it.sample_from_nodes(index), theirs.sample_from_nodes(index))


@installed
@pytest.mark.parametrize("strategy", ["uniform", "last"])
def test_all_in_time_are_the_same(strategy: str) -> None:
    rng = np.random.default_rng(1)
    pairs = torch.from_numpy(rng.integers(0, 200, (2, 900)))
    when = torch.from_numpy(rng.integers(0, 50, 200))
    data = Data(edge_index=pairs, num_nodes=200, when=when)
    fanouts = [-1, -1] if strategy == "uniform" else [3, 2]
    seeds = torch.from_numpy(rng.choice(200, 9, replace=False))
    index = NodeSamplerInput(None, seeds, torch.full((9,), 30))
    out = NeighborSampler.from_data(
        data, fanouts, node_time="when", temporal_strategy=strategy
    ).sample_from_nodes(index)
    theirs = TheirSampler(data, fanouts, time_attr="when", temporal_strategy=strategy)
    same(out, theirs.sample_from_nodes(index))


def same(ours: Any, theirs: Any) -> None:
    for part in ("node", "row", "col", "edge"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert (ours.batch is None) == (theirs.batch is None)
    assert ours.batch is None or torch.equal(ours.batch, theirs.batch)
    assert ours.num_sampled_nodes == theirs.num_sampled_nodes
    assert ours.num_sampled_edges == theirs.num_sampled_edges


# --- without it -----------------------------------------------------------------------------------


def small() -> Data:
    return Data(edge_index=torch.tensor([[1, 2, 3], [0, 0, 0]]), num_nodes=4)


@missing
def test_it_is_told_where_to_find_it() -> None:
    with pytest.raises(MissingExtraError, match=r"in no package registry .* -f https://data.pyg"):
        NeighborSampler.from_data(small(), [-1], backend="pyg-lib")


def test_it_is_never_chosen_silently() -> None:
    sampler = NeighborSampler.from_data(small(), [-1])
    assert sampler.options.backend == "numba"
    with pytest.raises(ParameterError, match="'backend' parameter"):
        NeighborSampler.from_data(small(), [-1], backend="pyg_lib")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": "labor"}, "pyg-lib has no draws='labor'"),
        ({"subgraph_type": "induced"}, "has no subgraph_type='induced'"),
        ({"exclude_seed_edges": "both"}, "has no exclude_seed_edges"),
        (
            {"weights": np.ones(3, np.float32), "edge_time": np.arange(3)},
            "has no weights together with times",
        ),
    ],
)
def test_what_it_has_not_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        NeighborSampler.from_data(small(), [-1], backend="pyg-lib", **options)


# --- a stand-in -----------------------------------------------------------------------------------

_STAND_IN = """
import json, sys, types
import numpy as np, torch

HOMO = ("neighbor_sample(Tensor rowptr, Tensor col, Tensor seed, int[] num_neighbors, "
    "Tensor? node_time = None, Tensor? edge_time = None, Tensor? seed_time = None, "
    "Tensor? edge_weight = None, bool csc = False, bool replace = False, bool directed = True, "
    "bool disjoint = False, str temporal_strategy = 'uniform', bool return_edge_id = True) -> "
    "(Tensor, Tensor, Tensor, Tensor?, int[], int[])")
HETERO = ("hetero_neighbor_sample(str[] node_types, (str, str, str)[] edge_types, "
    "Dict(str, Tensor) rowptr_dict, Dict(str, Tensor) col_dict, Dict(str, Tensor) seed_dict, "
    "Dict(str, int[]) num_neighbors_dict, Dict(str, Tensor)? node_time_dict = None, "
    "Dict(str, Tensor)? edge_time_dict = None, Dict(str, Tensor)? seed_time_dict = None, "
    "Dict(str, Tensor)? edge_weight_dict = None, bool csc = False, bool replace = False, "
    "bool directed = True, bool disjoint = False, str temporal_strategy = 'uniform', "
    "bool return_edge_id = True) -> (Dict(str, Tensor), Dict(str, Tensor), Dict(str, Tensor), "
    "Dict(str, Tensor)?, Dict(str, int[]), Dict(str, int[]))")

told = []

def plain(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    return list(map(plain, value)) if isinstance(value, (list, tuple)) else value

def all_neighbors(types, kinds, ptr, col, seeds, fanouts, node_time, seed_time, disjoint):
    nodes = {t: [] for t in types}
    place, times, slot = {}, [], 0
    for t, some in seeds.items():
        for i, v in enumerate(some.tolist()):
            own = slot if disjoint else 0
            place[t, own, v] = len(nodes[t])
            nodes[t].append((own, v))
            if seed_time and t in seed_time:
                times.append(seed_time[t].tolist()[i])
            slot += 1
    edges = {k: ([], [], []) for k in kinds}
    span = {t: (0, len(nodes[t])) for t in types}
    counts = {t: [len(nodes[t])] for t in types}
    hops = {k: [] for k in kinds}
    for hop in range(len(next(iter(fanouts.values())))):
        for k in kinds:
            name, found = "__".join(k), 0
            assert fanouts[name][hop] in (-1, 0)
            for i in range(*span[k[2]]) if fanouts[name][hop] else ():
                own, v = nodes[k[2]][i]
                for z in range(int(ptr[name][v]), int(ptr[name][v + 1])):
                    u = int(col[name][z])
                    if node_time and k[0] in node_time and int(node_time[k[0]][u]) > times[own]:
                        continue
                    if (k[0], own, u) not in place:
                        place[k[0], own, u] = len(nodes[k[0]])
                        nodes[k[0]].append((own, u))
                    for side, value in zip(edges[k], (place[k[0], own, u], i, z)):
                        side.append(value)
                    found += 1
            hops[k].append(found)
        for t in types:
            span[t] = (span[t][1], len(nodes[t]))
            counts[t].append(span[t][1] - span[t][0])
    return nodes, edges, counts, hops

def tensor(values):
    return torch.tensor(values, dtype=torch.int64)

def of_nodes(pairs, disjoint):
    return tensor(pairs).reshape(-1, 2) if disjoint else tensor([v for _, v in pairs])

def homogeneous(rowptr, col, seed, num_neighbors, node_time=None, edge_time=None, seed_time=None,
                edge_weight=None, csc=False, replace=False, directed=True, disjoint=False,
                temporal_strategy="uniform", return_edge_id=True):
    told.append(plain(dict(locals())) | {"draw": torch.randint(1 << 40, (1,)).item()})
    k = ("n", "to", "n")
    name = "n__to__n"
    nodes, edges, counts, hops = all_neighbors(
        ["n"], [k], {name: rowptr}, {name: col}, {"n": seed}, {name: num_neighbors},
        node_time is not None and {"n": node_time}, seed_time is not None and {"n": seed_time},
        disjoint)
    row, target, edge = map(tensor, edges[k])
    return row, target, of_nodes(nodes["n"], disjoint), edge, counts["n"], hops[k]

def heterogeneous(node_types, edge_types, rowptr_dict, col_dict, seed_dict, num_neighbors_dict,
                  node_time_dict=None, edge_time_dict=None, seed_time_dict=None,
                  edge_weight_dict=None, csc=False, replace=False, directed=True, disjoint=False,
                  temporal_strategy="uniform", return_edge_id=True):
    told.append(plain(dict(locals())))
    nodes, edges, counts, hops = all_neighbors(
        node_types, edge_types, rowptr_dict, col_dict, seed_dict, num_neighbors_dict,
        node_time_dict, seed_time_dict, disjoint)
    sides = [{"__".join(k): tensor(e[i]) for k, e in edges.items()} for i in range(3)]
    return (sides[0], sides[1], {t: of_nodes(p, disjoint) for t, p in nodes.items()}, sides[2],
            counts, {"__".join(k): h for k, h in hops.items()})

import torch_geometric.sampler  # before there is something that it would take for pyg-lib
sys.modules["pyg_lib"] = types.ModuleType("pyg_lib")
library = torch.library.Library("pyg", "DEF")
for schema, function in ((HOMO, homogeneous), (HETERO, heterogeneous)):
    library.define(schema)
    library.impl(schema.split("(")[0], function, "CompositeExplicitAutograd")
"""

_HOMOGENEOUS = """
from batchloom.dataplane.errors import BatchloomError
from batchloom.samplers.graph import NeighborSampler
from torch_geometric.data import Data
from torch_geometric.sampler import NodeSamplerInput

rng = np.random.default_rng(0)
data = Data(edge_index=torch.from_numpy(rng.integers(0, 50, (2, 200))), num_nodes=50)
data.when = torch.from_numpy(rng.integers(0, 9, 50))
weight = rng.random(200).astype(np.float32) + 1
edge_when = rng.integers(0, 9, 200)
seeds = torch.from_numpy(rng.choice(50, 5, replace=False))
index = NodeSamplerInput(torch.arange(5), seeds)
late = NodeSamplerInput(torch.arange(5), seeds, torch.full((5,), 4))

def same(one, other):
    for part in ("node", "row", "col", "edge", "batch"):
        a, b = getattr(one, part), getattr(other, part)
        assert (a is None) == (b is None), part
        assert a is None or torch.equal(a, b), part
    assert one.num_sampled_nodes == other.num_sampled_nodes
    assert one.num_sampled_edges == other.num_sampled_edges
    assert one.metadata[0] is other.metadata[0]

def both(at=index, **options):
    samplers = [NeighborSampler.from_data(data, [-1, -1], backend=backend, **options)
                for backend in ("numba", "pyg-lib")]
    same(*(sampler.sample_from_nodes(at) for sampler in samplers))
    return samplers[1]

sampler = both()
both(disjoint=True)
both(subgraph_type="bidirectional")
both(late, node_time="when")
plain_args = told[0]
assert plain_args["rowptr"] == sampler.graph.colptr.tolist()
assert plain_args["col"] == sampler.graph.row.tolist()
assert plain_args["seed"] == seeds.tolist()
assert plain_args["num_neighbors"] == [-1, -1]
assert (plain_args["csc"], plain_args["directed"], plain_args["return_edge_id"]) == (True,) * 3
assert not (plain_args["replace"] or plain_args["disjoint"])
assert plain_args["node_time"] is plain_args["edge_weight"] is None
assert told[1]["disjoint"]
assert (told[3]["node_time"], told[3]["seed_time"]) == (data.when.tolist(), [4] * 5)

weighted = NeighborSampler.from_data(data, [-1], weights=weight, replace=True, backend="pyg-lib")
weighted.sample_from_nodes(index)
assert told[-1]["replace"]
assert told[-1]["edge_weight"] == weight[weighted.graph.permutation].tolist()

last = NeighborSampler.from_data(data, [-1], edge_time=edge_when, temporal_strategy="last",
                                 backend="pyg-lib")
last.sample_from_nodes(late)
assert told[-1]["temporal_strategy"] == "last"
assert told[-1]["edge_time"] == edge_when[last.graph.permutation].tolist()
assert told[-1]["disjoint"]

# Draws are keyed by the batch, and the generator is as it was.
torch.manual_seed(3)
expected = torch.rand(2).tolist()
torch.manual_seed(3)
sampler.sample_from_nodes(index)
assert torch.rand(2).tolist() == expected
first = told[-1]["draw"]
sampler.sample_from_nodes(index)
assert told[-1]["draw"] == first
sampler.sample_from_nodes(NodeSamplerInput(torch.arange(5) + 9, seeds))
assert told[-1]["draw"] != first

refused = []
for nodes in ([1, 1], [50]):
    try:
        sampler.sample_from_nodes(NodeSamplerInput(None, torch.tensor(nodes)))
    except BatchloomError as error:
        refused.append(str(error))
small = NeighborSampler.from_data(data, [-1, -1], backend="pyg-lib", max_edges_per_batch=2)
try:
    small.sample_from_nodes(index)
except BatchloomError as error:
    refused.append(str(error))
print(json.dumps(refused))
"""

_HETEROGENEOUS = """
from batchloom.samplers.graph import CSCGraph, HeteroNeighborSampler
from torch_geometric.sampler import EdgeSamplerInput, NodeSamplerInput

rng = np.random.default_rng(0)
counts = {"author": 20, "paper": 30}
kinds = [("author", "writes", "paper"), ("paper", "cites", "paper"), ("paper", "of", "author")]
graphs = {k: CSCGraph.from_edge_index(
    np.stack([rng.integers(0, counts[k[0]], 60), rng.integers(0, counts[k[2]], 60)]),
    counts[k[2]], num_sources=counts[k[0]]) for k in kinds}
times = {"paper": rng.integers(0, 9, 30)}
weights = {kinds[1]: rng.random(60).astype(np.float32) + 1}

def same(one, other):
    for part in ("node", "row", "col", "edge", "batch"):
        a, b = getattr(one, part), getattr(other, part)
        assert (a is None) == (b is None), part
        for key in a or ():
            assert torch.equal(a[key], b[key]), (part, key)
    assert one.num_sampled_nodes == other.num_sampled_nodes
    assert one.num_sampled_edges == other.num_sampled_edges

def both(sample, **options):
    samplers = [HeteroNeighborSampler(graphs, [-1, -1], num_nodes=counts, backend=backend,
                                      **options) for backend in ("numba", "pyg-lib")]
    same(*(sample(sampler) for sampler in samplers))

seeds = torch.tensor([3, 17, 8])
nodes = NodeSamplerInput(None, seeds, None, "paper")
late = NodeSamplerInput(None, seeds, torch.tensor([2, 8, 5]), "paper")
links = EdgeSamplerInput(None, torch.tensor([1, 5]), torch.tensor([2, 2]), None, None, kinds[0])
both(lambda s: s.sample_from_nodes(nodes))
both(lambda s: s.sample_from_nodes(nodes), disjoint=True)
both(lambda s: s.sample_from_nodes(late), node_time=times)
both(lambda s: s.sample_from_edges(links))
both(lambda s: s.sample_from_edges(links), disjoint=True)
first = told[0]
assert first["node_types"] == list(counts)
assert [tuple(k) for k in first["edge_types"]] == kinds
assert first["col_dict"] == {"__".join(k): g.row.tolist() for k, g in graphs.items()}
assert first["seed_dict"] == {"paper": [3, 17, 8]}
assert first["num_neighbors_dict"] == {"__".join(k): [-1, -1] for k in kinds}
assert first["csc"] and first["directed"] and first["node_time_dict"] is None
assert told[2]["node_time_dict"] == {"paper": times["paper"].tolist()}
assert told[2]["seed_time_dict"] == {"paper": [2, 8, 5]}
assert list(told[4]["seed_dict"]) == ["author", "paper"]
weighted = HeteroNeighborSampler(graphs, [-1], num_nodes=counts, weights=weights,
                                 backend="pyg-lib")
weighted.sample_from_nodes(nodes)
given = told[-1]["edge_weight_dict"]
assert given["author__writes__paper"] == [1.0] * 60
assert given["paper__cites__paper"] == weights[kinds[1]][graphs[kinds[1]].permutation].tolist()
print(json.dumps([]))
"""


def in_a_process(script: str) -> Any:
    """Run a script with the stand-in in a process of its own; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", _STAND_IN + script],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@missing
def test_arguments_and_results_of_one_kind() -> None:
    refused = in_a_process(_HOMOGENEOUS)
    assert "is in the batch twice, of which pyg-lib makes wrong edges" in refused[0]
    assert "Seed 0 of the batch is 50, which is no node" in refused[1]
    assert "edges, and may have 2" in refused[2]


@missing
def test_arguments_and_results_of_several_kinds() -> None:
    assert in_a_process(_HETEROGENEOUS) == []


def test_a_heterogeneous_graph_asks_for_it_too() -> None:
    if WITH_PYG_LIB:
        return
    from batchloom.samplers.graph import CSCGraph

    graphs = {("a", "to", "a"): CSCGraph.from_edge_index(np.array([[0], [1]]))}
    with pytest.raises(MissingExtraError, match="backend='pyg-lib' needs pyg-lib"):
        HeteroNeighborSampler(graphs, [-1], backend="pyg-lib")
