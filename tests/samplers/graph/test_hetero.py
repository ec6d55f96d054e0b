from __future__ import annotations

import itertools
import pickle
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
    HeteroNeighborSampler,
    NeighborSampler,
)
from batchloom.samplers.graph.inputs import batch_key
from batchloom.tests.samplers.graph.plain import random_graph
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkNeighborLoader, NodeLoader
from torch_geometric.sampler import (
    EdgeSamplerInput,
    HeteroSamplerOutput,
    NegativeSampling,
    NodeSamplerInput,
)
from torch_geometric.sampler.neighbor_sampler import edge_sample

WRITES, WRITTEN = ("author", "writes", "paper"), ("paper", "rev_writes", "author")
CITES, IN = ("paper", "cites", "paper"), ("paper", "in", "venue")
KINDS = (WRITES, WRITTEN, CITES, IN)
ONE_EACH = {kind: [1] for kind in KINDS}


def data(seed: int = 0, papers: int = 60, authors: int = 40, edges: int = 200) -> HeteroData:
    rng = np.random.default_rng(seed)
    made = HeteroData()
    counts = {"paper": papers, "author": authors, "venue": 5, "alone": 3}
    for kind, count in counts.items():
        made[kind].x = torch.arange(float(count))[:, None]
        made[kind].num_nodes = count
    wrote = rng.integers(0, [[authors], [papers]], (2, edges))
    made[WRITES].edge_index = torch.from_numpy(wrote)
    made[WRITTEN].edge_index = torch.from_numpy(wrote[::-1].copy())
    made[CITES].edge_index = torch.from_numpy(rng.integers(0, papers, (2, edges)))
    made[IN].edge_index = torch.from_numpy(
        np.stack([rng.permutation(papers), rng.integers(0, 5, papers)])
    )
    for kind in KINDS:
        made[kind].number = torch.arange(made[kind].edge_index.shape[1])
    return made


def seeds_of(kind: str, *nodes: int, first: int = 0, **more: Any) -> NodeSamplerInput:
    inputs = torch.arange(first, first + len(nodes))
    return NodeSamplerInput(inputs, torch.tensor(nodes), input_type=kind, **more)


def same(one: HeteroSamplerOutput, other: HeteroSamplerOutput) -> bool:
    return all(
        torch.equal(getattr(one, part)[kind], getattr(other, part)[kind])
        for part in ("node", "row", "col", "edge")
        for kind in getattr(one, part)
    )


def test_by_hand() -> None:
    """Paper 0 is written by authors 1 and 0, and cited by paper 2, of author 1."""
    wrote = np.array([[1, 0, 1], [0, 0, 2]])
    graphs = {
        WRITES: CSCGraph.from_edge_index(wrote, 3, num_sources=2),
        WRITTEN: CSCGraph.from_edge_index(wrote[::-1], 2, num_sources=3),
        CITES: CSCGraph.from_edge_index([[2], [0]], 3, num_sources=3),
    }
    out = HeteroNeighborSampler(graphs, [-1, -1]).sample_from_nodes(seeds_of("paper", 0))
    assert {k: v.tolist() for k, v in out.node.items()} == {"author": [1, 0], "paper": [0, 2]}
    assert {k: v.tolist() for k, v in out.row.items()} == {
        WRITES: [0, 1, 0],  # hop 1: both authors of paper 0; hop 2: the author of paper 2
        WRITTEN: [0, 1, 0],  # hop 2: papers 0 and 2 of author 1, paper 0 of author 0
        CITES: [1],
    }
    assert {k: v.tolist() for k, v in out.col.items()} == {
        WRITES: [0, 0, 1],
        WRITTEN: [0, 0, 1],
        CITES: [0],
    }
    edges = {k: graphs[k].permutation[v.numpy()].tolist() for k, v in out.edge.items()}
    assert edges == {WRITES: [0, 1, 2], WRITTEN: [0, 2, 1], CITES: [0]}
    assert out.num_sampled_nodes == {"author": [0, 2, 0], "paper": [1, 1, 0]}
    assert out.num_sampled_edges == {WRITES: [2, 1], WRITTEN: [0, 3], CITES: [1, 0]}
    assert out.batch is None


def test_one_kind_is_a_homogeneous_graph() -> None:
    """Apart from the draws, which are keyed by the kind's name."""
    graph = random_graph(3, 60, 300)
    hetero = HeteroNeighborSampler({("n", "to", "n"): graph}, [-1, 100])
    for disjoint, subgraph in itertools.product((False, True), ("directional", "induced")):
        options: dict[str, Any] = {"disjoint": disjoint, "subgraph_type": subgraph}
        plain = NeighborSampler.from_graph(graph, [-1, 100], **options)
        hetero = HeteroNeighborSampler({("n", "to", "n"): graph}, [-1, 100], **options)
        one = plain.sample_from_nodes(NodeSamplerInput(None, torch.tensor([3, 5, 3])))
        index = NodeSamplerInput(None, torch.tensor([3, 5, 3]), input_type="n")
        other = hetero.sample_from_nodes(index)
        assert torch.equal(one.node, other.node["n"])
        for part in ("row", "col", "edge"):
            assert torch.equal(getattr(one, part), getattr(other, part)["n", "to", "n"])
        if disjoint:
            assert torch.equal(one.batch, other.batch["n"])
        if subgraph == "directional":
            assert other.num_sampled_nodes == {"n": one.num_sampled_nodes}


def reached(made: HeteroData, kind: str, seeds: list[int], hops: int) -> dict[str, set[int]]:
    """All nodes within some hops, by kind."""
    found = {k: set() for k in made.node_types}
    found[kind] = set(seeds)
    for _ in range(hops):
        new = {k: set(v) for k, v in found.items()}
        for source, _, target in made.edge_types:
            pairs = made[source, _, target].edge_index.T.tolist()
            new[source] |= {u for u, v in pairs if v in found[target]}
        found = new
    return found


@pytest.mark.parametrize("disjoint", [False, True])
def test_all_neighbours_by_brute_force(disjoint: bool) -> None:
    made = data()
    sampler = HeteroNeighborSampler.from_data(made, [-1, -1], disjoint=disjoint)
    out = sampler.sample_from_nodes(seeds_of("paper", 4, 9))
    for slot, seeds in enumerate([[4], [9]] if disjoint else [[4, 9]]):
        expected = reached(made, "paper", seeds, 2)
        for kind in made.node_types:
            own = out.node[kind][out.batch[kind] == slot] if disjoint else out.node[kind]
            assert sorted(own.tolist()) == sorted(expected[kind])


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("disjoint", [False, True])
def test_properties(disjoint: bool, replace: bool) -> None:
    made = data(1)
    fanouts = {WRITES: [2, 3], WRITTEN: [3, 1], CITES: [0, 2], IN: [-1, 4]}
    sampler = HeteroNeighborSampler.from_data(made, fanouts, disjoint=disjoint, replace=replace)
    out = sampler.sample_from_nodes(seeds_of("paper", *range(20)))
    for kind in KINDS:
        source, _, target = kind
        row, col = out.node[source][out.row[kind]], out.node[target][out.col[kind]]
        names = sampler.edge_permutation[kind][out.edge[kind]]
        assert torch.equal(made[kind].edge_index[:, names], torch.stack([row, col]))
        assert sum(out.num_sampled_edges[kind]) == row.numel()
        if disjoint:
            ends = (out.batch[source][out.row[kind]], out.batch[target][out.col[kind]])
            assert torch.equal(*ends)
        degree = torch.bincount(made[kind].edge_index[1], minlength=made[target].num_nodes)
        first, begin = 0, 0
        for hop, fanout in enumerate(fanouts[kind]):
            stop = begin + out.num_sampled_nodes[target][hop]
            last = first + out.num_sampled_edges[kind][hop]
            own = degree[out.node[target][begin:stop]]
            takes = own.clamp(max=fanout) if fanout >= 0 else own
            takes = (own > 0) * fanout if replace and fanout >= 0 else takes
            found = torch.bincount(out.col[kind][first:last] - begin, minlength=stop - begin)
            assert torch.equal(found, takes)
            first, begin = last, stop
    for kind in made.node_types:
        assert sum(out.num_sampled_nodes[kind]) == out.node[kind].numel()


def test_draws_depend_on_the_name_of_a_kind_only() -> None:
    made = data(2)
    graphs = dict(HeteroNeighborSampler.from_data(made, [3]).graphs)
    sampler = HeteroNeighborSampler(graphs, [3])
    alone = HeteroNeighborSampler({WRITES: graphs[WRITES]}, [3])
    turned = HeteroNeighborSampler(dict(reversed(graphs.items())), [3])
    index = seeds_of("paper", *range(30))
    outs = [s.sample_from_nodes(index) for s in (sampler, alone, turned)]
    assert torch.equal(outs[0].edge[WRITES], outs[1].edge[WRITES])
    for kind in KINDS:
        assert torch.equal(outs[0].edge[kind], outs[2].edge[kind])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_of_pyg(workers: int) -> None:
    made = data()
    sampler = HeteroNeighborSampler.from_data(made, [4, 3], seed=1)
    loader = NodeLoader(
        made, sampler, input_nodes=("paper", torch.arange(50)), batch_size=20, num_workers=workers
    )
    for i, batch in enumerate(loader):
        alone = sampler.sample_from_nodes(
            seeds_of("paper", *range(i * 20, min(i * 20 + 20, 50)), first=i * 20)
        )
        for kind in made.node_types:
            assert torch.equal(batch[kind].n_id, alone.node[kind])
            assert torch.equal(batch[kind].x[:, 0].long(), batch[kind].n_id)
        for kind in KINDS:
            ends = (batch[kind[0]].n_id, batch[kind[2]].n_id)
            pairs = torch.stack(
                [e[side] for e, side in zip(ends, batch[kind].edge_index, strict=True)]
            )
            assert torch.equal(made[kind].edge_index[:, batch[kind].e_id], pairs)
            assert torch.equal(batch[kind].number, batch[kind].e_id)
        assert batch["paper"].batch_size == len(alone.metadata[0])


def test_a_link_loader_of_pyg() -> None:
    made = data()
    sampler = HeteroNeighborSampler.from_data(made, [3])
    loader = LinkNeighborLoader(
        made, num_neighbors=[3], edge_label_index=(WRITES, made[WRITES].edge_index[:, :30]),
        neg_sampling="binary", batch_size=10, neighbor_sampler=sampler,
    )  # fmt: skip
    for batch in loader:
        ends = batch[WRITES].edge_label_index
        assert ends.shape == (2, 20)
        pairs = torch.stack([batch["author"].n_id[ends[0]], batch["paper"].n_id[ends[1]]])
        assert torch.equal(pairs[:, :10], made[WRITES].edge_index[:, batch[WRITES].input_id])


class Told(NegativeSampling):  # type: ignore[misc]
    nodes: dict[str, torch.Tensor]

    def sample(self, num_samples: int, endpoint: str, num_nodes: Any = None) -> torch.Tensor:
        assert self.nodes[endpoint].numel() == num_samples
        return self.nodes[endpoint]


@pytest.mark.parametrize("kind", [WRITES, WRITTEN, CITES])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("mode", [None, ("binary", 1.0), ("triplet", 1), ("triplet", 2)])
def test_links_are_those_that_pyg_would_make(kind: Any, disjoint: bool, mode: Any) -> None:
    made = data(4)
    sampler = HeteroNeighborSampler.from_data(made, [3, 2], disjoint=disjoint)
    pairs = made[kind].edge_index[:, :8]
    index = EdgeSamplerInput(torch.arange(8), pairs[0], pairs[1], input_type=kind)
    ours = sampler.sample_from_edges(index, None if mode is None else NegativeSampling(*mode))
    told = None
    if mode is not None:
        told = Told(*mode)
        if told.is_binary():
            ends = ours.metadata[1]
            told.nodes = {
                "src": ours.node[kind[0]][ends[0, 8:]],
                "dst": ours.node[kind[2]][ends[1, 8:]],
            }
        else:
            wrong = ours.node[kind[2]][ours.metadata[3]].view(8, -1)
            told.nodes = {"dst": (wrong.t() if disjoint else wrong).reshape(-1)}
    key = batch_key(0, None, index.input_id, pairs.reshape(-1).numpy())
    theirs = edge_sample(
        index,
        lambda seeds, _: sampler._sample({k: s.numpy() for k, s in seeds.items()}, key, {}, {}),
        sampler.num_nodes,
        disjoint,
        None,
        told,
    )
    for kind_, nodes in theirs.node.items():
        if disjoint and kind[0] != kind[2] and sampler.node_types.index(kind[0]) > 0:
            continue  # PyG numbers subgraphs in the order of the link's ends
        assert torch.equal(ours.node[kind_], nodes)
    for a, b in zip(ours.metadata, theirs.metadata, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("kind", [WRITES, WRITTEN])
def test_links_have_subgraphs_of_their_own(kind: Any) -> None:
    made = data(4)
    sampler = HeteroNeighborSampler.from_data(made, [3, 2], disjoint=True)
    pairs = made[kind].edge_index[:, :8]
    index = EdgeSamplerInput(torch.arange(8), pairs[0], pairs[1], input_type=kind)
    for negatives in (None, NegativeSampling("binary", 0.5), NegativeSampling("triplet", 2)):
        out = sampler.sample_from_edges(index, negatives)
        first, last = out.batch[kind[0]], out.batch[kind[2]]
        assert first[:8].tolist() == last[:8].tolist() == list(range(8))
        for k in KINDS:
            assert torch.equal(out.batch[k[0]][out.row[k]], out.batch[k[2]][out.col[k]])


def test_true_negatives_and_links_left_out() -> None:
    made = data(5, papers=12, authors=9, edges=60)
    sampler = HeteroNeighborSampler.from_data(
        made, [-1, -1], true_negatives=True, exclude_seed_edges="both"
    )
    links = made[WRITES].edge_index[:, :15]
    index = EdgeSamplerInput(torch.arange(15), links[0], links[1], input_type=WRITES)
    out = sampler.sample_from_edges(index, NegativeSampling("binary", 2.0))
    wrong = out.metadata[1][:, 15:]
    known = set(map(tuple, made[WRITES].edge_index.T.tolist()))
    pairs = zip(
        out.node["author"][wrong[0]].tolist(), out.node["paper"][wrong[1]].tolist(), strict=True
    )
    assert not known & set(pairs)
    barred = set(map(tuple, links.T.tolist()))
    for kind, turn in ((WRITES, 1), (WRITTEN, -1)):
        ends = (out.node[kind[0]][out.row[kind]], out.node[kind[2]][out.col[kind]])[::turn]
        found = set(zip(*(e.tolist() for e in ends), strict=True))
        assert found
        assert not found & barred
    with pytest.raises(ParameterError, match="reverse of edges of kind .*in.* is not known"):
        sampler.sample_from_edges(
            EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([0]), input_type=IN)
        )


def test_nodes_in_time() -> None:
    made = data(6)
    rng = np.random.default_rng(6)
    when = {"paper": rng.integers(0, 20, 60), "author": rng.integers(0, 20, 40)}
    sampler = HeteroNeighborSampler.from_data(made, [5, 5, 5], node_time=when)
    limits = torch.from_numpy(rng.integers(5, 20, 15))
    out = sampler.sample_from_nodes(seeds_of("venue", *([0, 1, 2] * 5), time=limits))
    for kind, values in when.items():
        own = values[out.node[kind].numpy()]
        assert own.size
        assert (own <= limits[out.batch[kind]].numpy()).all()
    with pytest.raises(ParameterError, match="kind 'venue' have no time of their own"):
        sampler.sample_from_nodes(seeds_of("venue", 1))
    own = sampler.sample_from_nodes(seeds_of("paper", *range(20)))
    assert (when["author"][own.node["author"]] <= when["paper"][own.batch["author"]]).all()


def test_edges_in_time_and_by_weight() -> None:
    made = data(7)
    made[CITES].when = torch.from_numpy(np.random.default_rng(7).integers(0, 20, 200))
    latest = HeteroNeighborSampler.from_data(
        made, [2, 2], edge_time="when", temporal_strategy="last"
    )
    limits = torch.full((20,), 12)
    out = latest.sample_from_nodes(seeds_of("paper", *range(20), time=limits))
    names = latest.edge_permutation[CITES][out.edge[CITES]]
    assert (made[CITES].when[names] <= 12).all()
    target = made[CITES].edge_index[1]
    for i in range(20):
        fitting = made[CITES].when[(target == i) & (made[CITES].when <= 12)]
        taken = made[CITES].when[names[out.col[CITES] == i]]
        assert sorted(taken.tolist()) == sorted(fitting.tolist())[-2:]
    assert out.edge[WRITES].numel() > 0
    weights = {WRITES: np.where(np.arange(200) % 2, 1.0, 1e-12)}
    sampler = HeteroNeighborSampler.from_data(
        made, {WRITES: [1], WRITTEN: [0], CITES: [0], IN: [0]}, weights=weights
    )
    drawn = sampler.sample_from_nodes(seeds_of("paper", *range(60)))
    names = sampler.edge_permutation[WRITES][drawn.edge[WRITES]]
    assert (names % 2 == 1).double().mean() > 0.8


@pytest.mark.filterwarnings("ignore:Cannot convert to bidirectional")
def test_subgraph_types() -> None:
    made = data(8)
    induced = HeteroNeighborSampler.from_data(made, [2, 2], subgraph_type="induced")
    out = induced.sample_from_nodes(seeds_of("paper", 1, 2, 3))
    for kind in KINDS:
        source, target = (set(out.node[k].tolist()) for k in (kind[0], kind[2]))
        expected = [e for e, (u, v) in enumerate(made[kind].edge_index.T.tolist())
                    if u in source and v in target]  # fmt: skip
        names = induced.edge_permutation[kind][out.edge[kind]]
        assert sorted(names.tolist()) == expected
    assert out.num_sampled_nodes is None
    plain = HeteroNeighborSampler.from_data(made, [2, 2])
    both = HeteroNeighborSampler.from_data(made, [2, 2], subgraph_type="bidirectional")
    theirs = plain.sample_from_nodes(seeds_of("paper", 1, 2, 3)).to_bidirectional()
    ours = both.sample_from_nodes(seeds_of("paper", 1, 2, 3))
    for kind in (WRITES, WRITTEN, CITES):
        assert torch.equal(ours.row[kind], theirs.row[kind])


def test_pickles_sample_the_same() -> None:
    sampler = HeteroNeighborSampler.from_data(data(), [3, 2])
    copy = pickle.loads(pickle.dumps(sampler))
    copy.compile()
    index = seeds_of("author", 3, 4, 5)
    assert same(sampler.sample_from_nodes(index), copy.sample_from_nodes(index))


def test_what_is_refused() -> None:
    made = data()
    graphs = dict(HeteroNeighborSampler.from_data(made, [3]).graphs)
    bad: list[tuple[Any, dict[str, Any], str]] = [
        ({WRITES: [1]}, {}, "name no number for edges of kind .*rev_writes"),
        ({**ONE_EACH, IN: [1, 2]}, {}, "of as many hops"),
        ({**ONE_EACH, ("a", "b", "c"): [1]}, {}, "no edges of kind"),
        ([1], {"node_time": {"papers": [1]}}, "no nodes of kind 'papers'. Did you mean 'paper'"),
        ([1], {"weights": {("x", "y", "z"): [1.0]}}, "no edges of kind"),
        ([1], {"node_time": {"paper": np.zeros(60)}, "edge_time": {IN: np.zeros(60)}}, "not both"),
        ([-2], {}, "'fanouts' must be a list of ints"),
    ]
    for fanouts, options, message in bad:
        with pytest.raises(ParameterError, match=message):
            HeteroNeighborSampler(graphs, fanouts, **options)
    with pytest.raises(InvalidValueError, match="has 60 nodes of kind 'paper', and there are 9"):
        HeteroNeighborSampler(graphs, [1], num_nodes={"paper": 9})
    with pytest.raises(ParameterError, match="named by their kind"):
        HeteroNeighborSampler({"writes": graphs[WRITES]}, [1])  # type: ignore[dict-item]
    sampler = HeteroNeighborSampler(graphs, [-1], max_edges_per_batch=3)
    with pytest.raises(ParameterError, match="kind 'book', and the graph has no such nodes"):
        sampler.sample_from_nodes(seeds_of("book", 1))
    with pytest.raises(SelectionError, match="is 60, which is no node of kind 'paper'"):
        sampler.sample_from_nodes(seeds_of("paper", 60))
    with pytest.raises(BatchTooLargeError, match="more than 3 edges"):
        sampler.sample_from_nodes(seeds_of("paper", *range(60)))
    links = EdgeSamplerInput(None, torch.tensor([0]), torch.tensor([0]), input_type=("a", "b", "c"))
    with pytest.raises(ParameterError, match="the graph has no such edges"):
        sampler.sample_from_edges(links)
