from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("torch_geometric")

from batchloom.dataplane.errors import ParameterError, SelectionError
from batchloom.samplers.graph import CSCGraph, NeighborSampler
from batchloom.samplers.graph.links import Endpoint, draw_links
from batchloom.tests.samplers.graph.plain import random_graph
from torch_geometric.sampler import EdgeSamplerInput, NegativeSampling
from torch_geometric.sampler.neighbor_sampler import edge_sample

NEGATIVES = {
    "none": None,
    "binary": NegativeSampling("binary", 2.0),
    "a few": NegativeSampling("binary", 0.3),
    "triplet": NegativeSampling("triplet", 1),
    "triplets": NegativeSampling("triplet", 3),
}


def links_of(graph: CSCGraph, count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Some of its edges."""
    places = np.random.default_rng(seed).choice(graph.num_edges, count, replace=False)
    target = np.searchsorted(graph.colptr, places, "right") - 1
    return torch.from_numpy(graph.row[places].astype(np.int64)), torch.from_numpy(target)


def given(source: torch.Tensor, target: torch.Tensor, **more: Any) -> EdgeSamplerInput:
    return EdgeSamplerInput(torch.arange(source.numel()), source, target, **more)


class Told(NegativeSampling):  # type: ignore[misc]
    """Draws what it is told."""

    def tell(self, **nodes: torch.Tensor) -> Told:
        self.nodes = nodes
        return self

    def sample(self, num_samples: int, endpoint: str, num_nodes: Any = None) -> torch.Tensor:
        assert self.nodes[endpoint].numel() == num_samples
        return self.nodes[endpoint]


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return bool(one is None and other is None)


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("name", NEGATIVES)
def test_batches_are_those_that_pyg_would_make(name: str, disjoint: bool, labels: bool) -> None:
    """PyG's own function, with our draws of negatives and our sampling, gives the same."""
    graph = random_graph(1, 100, 800)
    source, target = links_of(graph, 12)
    negatives = NEGATIVES[name]
    label = torch.arange(12) + 1 if labels and not name.startswith("triplet") else None
    sampler = NeighborSampler.from_graph(graph, [3, 2], disjoint=disjoint, seed=5)
    index = given(source, target, label=label)
    ours = sampler.sample_from_edges(index, negatives)
    assert ours.metadata is not None
    if negatives is not None:
        told = Told(negatives.mode, negatives.amount)
        if negatives.is_binary():
            pairs = ours.node[ours.metadata[1]]
            told.tell(src=pairs[0, 12:], dst=pairs[1, 12:])
        else:
            wrong = ours.node[ours.metadata[3]].view(12, -1)
            told.tell(dst=(wrong.t() if disjoint else wrong).reshape(-1))
        negatives = told
    from batchloom.samplers.graph.inputs import batch_key

    key = batch_key(5, None, index.input_id, source.numpy())
    theirs = edge_sample(
        index,
        lambda seed, _: sampler._sample(seed.numpy(), key, None, None),
        100,
        disjoint,
        None,
        negatives,
    )
    for part in ("node", "row", "col", "edge"):
        assert torch.equal(getattr(ours, part), getattr(theirs, part))
    assert all(equal(a, b) for a, b in zip(ours.metadata, theirs.metadata, strict=True))
    if disjoint and name != "a few":  # of a fraction, PyG's numbers of targets are shifted
        assert torch.equal(ours.batch, theirs.batch)


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("name", NEGATIVES)
def test_ends_of_links_are_where_the_metadata_says(name: str, disjoint: bool) -> None:
    graph = random_graph(2, 60, 500)
    source, target = links_of(graph, 10)
    sampler = NeighborSampler.from_graph(graph, [2], disjoint=disjoint, true_negatives=True)
    out = sampler.sample_from_edges(given(source, target), NEGATIVES[name])
    assert out.metadata is not None
    ends = out.metadata[1:3] if name.startswith("triplet") else out.metadata[1][:, :10]
    assert torch.equal(out.node[ends[0]], source)
    assert torch.equal(out.node[ends[1]], target)
    if disjoint:
        assert torch.equal(out.batch[ends[0]], torch.arange(10))
        assert torch.equal(out.batch[ends[1]], torch.arange(10))
        assert torch.equal(out.batch[out.row], out.batch[out.col])


def has_edge(graph: CSCGraph, u: int, v: int) -> bool:
    return u in graph.row[graph.colptr[v] : graph.colptr[v + 1]]


@pytest.mark.parametrize("name", ["binary", "triplet", "triplets"])
def test_true_negatives_are_no_links(name: str) -> None:
    """Of a dense graph, and of the batch's own links, which are not all in the graph."""
    graph = random_graph(3, 30, 700)
    rng = np.random.default_rng(3)
    source, target = (torch.from_numpy(side) for side in rng.integers(0, 30, (2, 40)))
    linked = {"checked": 0, "plain": 0}
    links = set(zip(source.tolist(), target.tolist(), strict=True))
    for kind in linked:
        sampler = NeighborSampler.from_graph(graph, [1], true_negatives=kind == "checked")
        out = sampler.sample_from_edges(given(source, target), NEGATIVES[name])
        assert out.metadata is not None
        if name == "binary":
            pairs = out.node[out.metadata[1][:, 40:]].T.tolist()
        else:
            wrong = out.node[out.metadata[3]].view(40, -1)
            pairs = [(u, v) for u, row in zip(source.tolist(), wrong.tolist(), strict=True)
                     for v in row]  # fmt: skip
        linked[kind] = sum(has_edge(graph, u, v) or (u, v) in links for u, v in pairs)
    assert linked["checked"] == 0
    assert linked["plain"] > 10


def test_negatives_that_cannot_be() -> None:
    complete = CSCGraph(np.arange(5) * 4, np.tile(np.arange(4), 4))
    sampler = NeighborSampler.from_graph(complete, [1], true_negatives=True)
    one = torch.tensor([1, 2])
    with pytest.raises(SelectionError, match="No true negative was found for 2 of 2 in 100 draws"):
        sampler.sample_from_edges(given(one, one), NEGATIVES["triplet"])


def test_negatives_depend_on_the_batch_only() -> None:
    graph = random_graph(2, 500, 2000)
    source, target = links_of(graph, 10)
    sampler = NeighborSampler.from_graph(graph, [2])
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = sampler.sample_from_edges(given(source, target), NEGATIVES["binary"])
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(9)
    other = sampler.sample_from_edges(given(source, target), NEGATIVES["binary"])
    assert torch.equal(one.node, other.node)
    index = EdgeSamplerInput(torch.arange(10) + 10, source, target)
    third = sampler.sample_from_edges(index, NEGATIVES["binary"])
    assert not torch.equal(one.node, third.node)


def counts_of(neg_sampling: NegativeSampling, count: int = 200, **more: Any) -> Any:
    ends = Endpoint(50, more.pop("node_time", None))
    seen = np.zeros((2, 50), np.int64)
    ones = np.ones(100, np.int64)
    for key in range(count):
        links = draw_links(
            ones, ones, more.get("time"), key=key, neg_sampling=neg_sampling, sources=ends,
            targets=ends, disjoint=True, true_for=None,
        )  # fmt: skip
        seen[1] += np.bincount(links.target[100:], minlength=50)
        seen[0] += np.bincount(links.source[100:], minlength=50)
    return seen


def test_negatives_come_as_often() -> None:
    stats = pytest.importorskip("scipy.stats")
    for side in counts_of(NegativeSampling("binary", 1.0)):
        assert stats.chisquare(side).pvalue > 1e-4


def test_negatives_by_weight_and_by_time() -> None:
    stats = pytest.importorskip("scipy.stats")
    weight = torch.arange(50.0)
    seen = counts_of(NegativeSampling("binary", 1.0, weight, weight.flip(0)))
    assert seen[0, 0] == seen[1, 49] == 0
    shares = np.arange(1, 50) / np.arange(50).sum()
    assert stats.chisquare(seen[0, 1:], shares * seen[0].sum()).pvalue > 1e-4
    # Of nodes 0…49 with times 49…0, those of times up to 9 are 40…49.
    told: dict[str, Any] = {"node_time": np.arange(50)[::-1].copy(), "time": np.full(100, 9)}
    seen = counts_of(NegativeSampling("triplet", 1), **told)[1]
    assert seen[:40].sum() == 0
    assert stats.chisquare(seen[40:]).pvalue > 1e-4
    seen = counts_of(NegativeSampling("triplet", 1, None, weight), **told)[1]
    assert stats.chisquare(seen[40:], np.arange(40, 50) / 445 * seen.sum()).pvalue > 1e-4
    with pytest.raises(SelectionError, match="no node is there at its time"):
        counts_of(NegativeSampling("triplet", 1), **{**told, "time": np.full(100, -1)})
    with pytest.raises(ParameterError, match="must be 50 finite numbers of at least 0"):
        counts_of(NegativeSampling("triplet", 1, None, torch.full((50,), -1.0)))


@pytest.mark.parametrize("disjoint", [False, True])
@pytest.mark.parametrize("bar", ["none", "forward", "both"])
def test_edges_of_the_links_are_left_out(bar: str, disjoint: bool) -> None:
    graph = random_graph(4, 40, 300)
    source, target = links_of(graph, 15)
    links = set(zip(source.tolist(), target.tolist(), strict=True))
    back = {(v, u) for u, v in links}
    options: dict[str, Any] = {"disjoint": disjoint, "exclude_seed_edges": bar}
    for subgraph in ("directional", "induced"):
        sampler = NeighborSampler.from_graph(graph, [-1, -1], subgraph_type=subgraph, **options)
        out = sampler.sample_from_edges(given(source, target))
        edges = set(zip(out.node[out.row].tolist(), out.node[out.col].tolist(), strict=True))
        assert bool(edges & links) == (bar == "none")
        assert bool(edges & (back - links)) == (bar != "both")


def test_links_in_time() -> None:
    graph = random_graph(6, 40, 300)
    rng = np.random.default_rng(6)
    when = rng.integers(0, 10, 40)
    sampler = NeighborSampler.from_graph(graph, [4, 4], node_time=when)
    source, target = links_of(graph, 20)
    time = torch.from_numpy(np.full(20, 6))
    out = sampler.sample_from_edges(given(source, target, time=time), NEGATIVES["binary"])
    assert out.metadata is not None
    assert (when[out.node[out.metadata[1][:, 20:]].numpy()] <= 6).all()
    assert (when[out.node[out.row].numpy()] <= 6).all()
    assert out.metadata[3].tolist() == [6] * 60
    plain = NeighborSampler.from_graph(graph, [4, 4])
    with pytest.raises(ParameterError, match="Links with times need disjoint subgraphs"):
        plain.sample_from_edges(given(source, target, time=time))


def test_batches_without_links() -> None:
    none = torch.empty(0, dtype=torch.int64)
    for disjoint in (False, True):
        sampler = NeighborSampler.from_graph(random_graph(1, 9, 20), [2], disjoint=disjoint)
        for negatives in NEGATIVES.values():
            out = sampler.sample_from_edges(given(none, none), negatives)
            assert out.node.numel() == 0


def test_links_that_are_refused() -> None:
    sampler = NeighborSampler.from_graph(random_graph(1, 9, 20), [2])
    with pytest.raises(SelectionError, match="which is no node"):
        sampler.sample_from_edges(given(torch.tensor([1]), torch.tensor([9])))
    index = given(torch.tensor([1]), torch.tensor([2]), label=torch.tensor([1]))
    with pytest.raises(ParameterError, match="Triplets have no labels"):
        sampler.sample_from_edges(index, NEGATIVES["triplet"])
