from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import BatchTooLargeError, ParameterError, SelectionError
from batchloom.samplers.graph import CSCGraph, Sample, sample_neighbors
from batchloom.samplers.graph.numbering import Numbering
from batchloom.samplers.graph.relations import Relation
from batchloom.samplers.graph.sampling import Sampling
from batchloom.tests.samplers.graph.plain import (
    as_lists,
    plain_sample,
    random_graph,
    regular_graph,
    same_bits,
    small_graph,
)
from hypothesis import given, settings
from hypothesis import strategies as st

FORMS = [{"table_bytes": 1 << 20}, {"table_bytes": 0}]  # by a table, by a hash


def numbers(text: str) -> list[int]:
    return [int(n) for n in text.split()]


# Seeds; fan-outs; nodes; row; col; edge; nodes a hop; edges a hop. The first six and the disjoint
# one are pyg-lib's own output.
ORACLES = {
    "two hops": ("0", "-1 -1", "0 1 2 3 4 5 6", "1 2 3 0 4 5 0 6", "0 0 0 1 1 2 3 3",
                 "0 1 2 3 4 5 6 7", "1 3 3", "3 5"),
    "two seeds": ("3 0", "-1", "3 0 6 1 2", "1 2 3 4 0", "0 0 1 1 1", "6 7 0 1 2", "2 3", "5"),
    "two seeds, two hops": ("3 0", "-1 -1", "3 0 6 1 2 5 4", "1 2 3 4 0 5 1 6 5",
                            "0 0 1 1 1 2 3 3 4", "6 7 0 1 2 11 3 4 5", "2 3 2", "5 4"),
    "an isolated seed": ("7", "-1 -1", "7", "", "", "", "1 0 0", "0 0"),
    "more than there are": ("0 7 6", "10 10", "0 7 6 1 2 3 5 4", "3 4 5 6 0 7 6 0 2 7",
                            "0 0 0 2 3 3 4 5 5 6", "0 1 2 11 3 4 5 6 7 10", "3 4 1", "4 6"),
    "as many as there are": ("0", "3 2", "0 1 2 3 4 5 6", "1 2 3 0 4 5 0 6", "0 0 0 1 1 2 3 3",
                             "0 1 2 3 4 5 6 7", "1 3 3", "3 5"),
    "a seed twice": ("0 0 3", "-1", "0 0 3 1 2 6", "3 4 2 3 4 2 0 5", "0 0 0 1 1 1 2 2",
                     "0 1 2 0 1 2 6 7", "3 3", "8"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ORACLES)
def test_oracles(name: str, form: dict[str, Any]) -> None:
    seeds, fanouts, nodes, row, col, edge, num_nodes, num_edges = map(numbers, ORACLES[name])
    made = as_lists(sample_neighbors(small_graph(), seeds, fanouts, **form))
    assert made == {
        "nodes": nodes,
        "slots": [],
        "row": row,
        "col": col,
        "edge": edge,
        "num_nodes": num_nodes,
        "num_edges": num_edges,
    }


def test_disjoint_oracle() -> None:
    made = as_lists(sample_neighbors(small_graph(), [3, 0], [-1, -1], disjoint=True))
    assert made["nodes"] == numbers("3 0 0 6 1 2 3 1 2 5 4 5 6")
    assert made["slots"] == numbers("0 1 0 0 1 1 1 0 0 0 1 1 1")
    assert made["row"] == numbers("2 3 4 5 6 7 8 0 9 1 10 11 1 12")
    assert made["col"] == numbers("0 0 1 1 1 2 2 2 3 4 4 5 6 6")
    assert made["edge"] == numbers("6 7 0 1 2 0 1 2 11 3 4 5 6 7")
    assert made["num_nodes"] == [2, 5, 6]
    assert made["num_edges"] == [5, 9]


@pytest.mark.parametrize("form", FORMS)
def test_induced_oracle(form: dict[str, Any]) -> None:
    made = sample_neighbors(small_graph(), [3, 0], [-1], subgraph="induced", **form)
    assert made.nodes[0].tolist() == numbers("3 0 6 1 2")
    assert made.row[0].tolist() == numbers("1 2 3 4 0 1")
    assert made.col[0].tolist() == numbers("0 0 1 1 1 3")
    assert made.edge[0].tolist() == numbers("6 7 0 1 2 3")
    assert made.num_nodes is made.num_edges is None


def test_bidirectional_oracle() -> None:
    made = sample_neighbors(small_graph(), [3, 0], [-1], subgraph="bidirectional")
    assert made.nodes[0].tolist() == numbers("3 0 6 1 2")
    assert made.row[0].tolist() == numbers("1 2 0 3 4 0 1 1")
    assert made.col[0].tolist() == numbers("0 0 1 1 1 2 3 4")
    assert set(made.edge[0].tolist()) == {0, 1, 2, 6, 7}
    assert made.edge[0].tolist() == numbers("6 7 2 0 1 7 0 1")  # an edge's own before a reverse's
    assert made.num_nodes is made.num_edges is None


def test_golden_draws() -> None:
    """These bits are what a manifest's batches are made of: they never change."""
    made = as_lists(sample_neighbors(small_graph(), [0], [2, 1], key=0))
    assert made["nodes"] == numbers("0 2 3 5 6")
    assert made["edge"] == numbers("1 2 5 7")
    again = sample_neighbors(regular_graph(1000, 200), [5, 900], [3, 2], key=2**64 - 1)
    assert again.edge[0].tolist() == GOLDEN


GOLDEN = numbers(
    "1091 1003 1150 180085 180040 180035 18367 18242 618 671 30056 30177 17090 17148 8148 8030 "
    "7090 7027"
)


# --- against the plain form -----------------------------------------------------------------------


@settings(max_examples=100)
@given(
    st.integers(0, 2**32),
    st.integers(1, 20),
    st.integers(0, 80),
    st.lists(st.integers(-1, 7), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**64 - 1),
)
def test_equals_the_plain_form(
    seed: int, nodes: int, edges: int, fanouts: list[int], replace: bool, disjoint: bool, key: int
) -> None:
    graph = random_graph(seed, nodes, edges)
    seeds = np.random.default_rng(seed).integers(0, nodes, 4).tolist()
    expected = plain_sample(graph, seeds, fanouts, key, replace, disjoint)
    options = {"replace": replace, "disjoint": disjoint}
    for form in FORMS:
        made = sample_neighbors(graph, seeds, fanouts, key, **options, **form)
        assert as_lists(made) == expected


@pytest.mark.parametrize("fanout", [64, 65, 100, 999])
def test_many_draws_equal_the_plain_form(fanout: int) -> None:
    """Beyond 64 draws, those before are found by a hash."""
    graph = regular_graph(1500, 1000)
    made = sample_neighbors(graph, [3, 1400], [fanout], key=11)
    assert as_lists(made) == plain_sample(graph, [3, 1400], [fanout], 11)
    assert np.unique(made.edge[0]).size == 2 * fanout


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 25), st.integers(0, 120), st.booleans())
def test_both_types_of_row_are_the_same(seed: int, nodes: int, edges: int, disjoint: bool) -> None:
    narrow = random_graph(seed, nodes, edges)
    wide = CSCGraph(narrow.colptr.astype(np.int32), narrow.row.astype(np.int64))
    one, other = (sample_neighbors(g, [0], [3, 2], 5, disjoint=disjoint) for g in (narrow, wide))
    assert same_bits(one, other)


# --- properties -----------------------------------------------------------------------------------


def check(graph: CSCGraph, made: Sample, seeds: int, fanouts: list[int], replace: bool) -> None:
    """Every edge exists; fan-outs are kept; what should be distinct is."""
    node, row, col, edge = made.nodes[0], made.row[0], made.col[0], made.edge[0]
    assert (graph.row[edge] == node[row]).all()
    assert (np.searchsorted(graph.colptr, edge, "right") - 1 == node[col]).all()
    assert made.num_nodes is not None
    assert made.num_edges is not None
    assert sum(made.num_nodes[0]) == node.size
    assert sum(made.num_edges[0]) == edge.size
    slots = made.slots[0] if made.slots is not None else np.zeros(node.size, np.int64)
    assert (slots[row] == slots[col]).all()
    found = list(zip(slots[seeds:].tolist(), node[seeds:].tolist(), strict=True))
    assert len(set(found)) == len(found)
    first_node = first_edge = 0
    for hop, fanout in enumerate(fanouts):
        last_node = first_node + made.num_nodes[0][hop]
        last_edge = first_edge + made.num_edges[0][hop]
        degree = np.diff(graph.colptr)[node[first_node:last_node]]
        if fanout < 0:
            takes = degree
        else:
            takes = np.where(degree > 0, fanout, 0) if replace else np.minimum(degree, fanout)
        own = col[first_edge:last_edge]
        assert (np.bincount(own - first_node, minlength=takes.size) == takes).all()
        assert (np.diff(own) >= 0).all()
        if not replace:
            pairs = np.stack([own, edge[first_edge:last_edge]])
            assert np.unique(pairs, axis=1).shape == pairs.shape
        first_node, first_edge = last_node, last_edge


@settings(max_examples=80)
@given(
    st.integers(0, 2**32),
    st.integers(1, 60),
    st.integers(0, 600),
    st.lists(st.integers(-1, 70), min_size=1, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_properties(
    seed: int, nodes: int, edges: int, fanouts: list[int], replace: bool, disjoint: bool
) -> None:
    graph = random_graph(seed, nodes, edges)
    seeds = np.random.default_rng(seed).choice(nodes, min(nodes, 5), replace=False)
    made = sample_neighbors(graph, seeds, fanouts, seed, replace=replace, disjoint=disjoint)
    check(graph, made, seeds.size, fanouts, replace)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 100), st.booleans())
def test_induced_edges_by_brute_force(seed: int, nodes: int, edges: int, disjoint: bool) -> None:
    graph = random_graph(seed, nodes, edges)
    seeds = np.random.default_rng(seed).choice(nodes, min(nodes, 4), replace=False)
    expected = []
    for form in FORMS:
        made = sample_neighbors(
            graph, seeds, [2, 1], seed, subgraph="induced", disjoint=disjoint, **form
        )
        node = made.nodes[0].tolist()
        slots = made.slots[0].tolist() if made.slots is not None else [0] * len(node)
        known = {(s, v): i for i, (s, v) in enumerate(zip(slots, node, strict=True))}
        expected = [
            (known[slots[i], int(graph.row[z])], i, z)
            for i, v in enumerate(node)
            for z in range(graph.colptr[v], graph.colptr[v + 1])
            if (slots[i], int(graph.row[z])) in known
        ]
        parts = (made.row[0].tolist(), made.col[0].tolist(), made.edge[0].tolist())
        assert list(zip(*parts, strict=True)) == expected


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(0, 100), st.booleans())
def test_both_ways_by_brute_force(seed: int, nodes: int, edges: int, disjoint: bool) -> None:
    graph = random_graph(seed, nodes, edges)
    options: dict[str, Any] = {"disjoint": disjoint}
    one_way = sample_neighbors(graph, [0], [3, 2], seed, **options)
    made = sample_neighbors(graph, [0], [3, 2], seed, subgraph="bidirectional", **options)
    forward: dict[tuple[int, int], int] = {}
    for u, v, z in zip(one_way.row[0], one_way.col[0], one_way.edge[0], strict=True):
        forward.setdefault((int(v), int(u)), int(z))
    expected = dict(forward)
    for u, v, z in zip(one_way.row[0], one_way.col[0], one_way.edge[0], strict=True):
        expected.setdefault((int(u), int(v)), int(z))
    pairs = list(zip(made.col[0].tolist(), made.row[0].tolist(), strict=True))
    assert pairs == sorted(expected)
    assert made.edge[0].tolist() == [expected[p] for p in pairs]


def test_seeds_in_another_order_take_the_same_edges() -> None:
    """What a node takes depends on the batch's key and the node, not on its place."""
    graph = random_graph(3, 200, 3000)
    seeds = np.arange(50)
    one = sample_neighbors(graph, seeds, [4], 7)
    other = sample_neighbors(graph, seeds[::-1].copy(), [4], 7)
    assert sorted(one.edge[0]) == sorted(other.edge[0])


def test_a_seed_twice_draws_twice() -> None:
    graph = regular_graph(500, 300)
    made = sample_neighbors(graph, [4, 4, 9, 4], [10], 3)
    taken = [set(made.edge[0][made.col[0] == i].tolist()) for i in range(4)]
    assert len({frozenset(taken[i]) for i in (0, 1, 3)}) == 3
    alone = sample_neighbors(graph, [4], [10], 3)
    assert set(alone.edge[0].tolist()) == taken[0]


def test_graphs_of_one_node_and_of_none() -> None:
    loop = CSCGraph([0, 2], [0, 0])  # two edges from the node to itself
    made = sample_neighbors(loop, [0], [-1, 5])
    assert as_lists(made)["edge"] == [0, 1]
    assert made.row[0].tolist() == [0, 0]
    empty = sample_neighbors(CSCGraph([0], []), [], [3])
    assert as_lists(empty)["num_nodes"] == [0, 0]
    assert as_lists(sample_neighbors(small_graph(), [7, 7], [0, 3]))["nodes"] == [7, 7]


# --- one result, however it is made ---------------------------------------------------------------


def test_threads_make_the_same_batches() -> None:
    graph = random_graph(1, 2000, 40_000)
    sampling = Sampling([Relation(graph, (5, 5))], [2000])
    batches = [np.arange(i, i + 100) for i in range(0, 1900, 100)]
    alone = [sampling.sample([b], i) for i, b in enumerate(batches)]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda i: sampling.sample([batches[i]], i), range(len(batches))))
    assert all(same_bits(a, b) for a, b in zip(alone, together, strict=True))


def test_a_batch_leaves_nothing_behind() -> None:
    graph = random_graph(2, 300, 3000)
    for disjoint in (False, True):
        sampling = Sampling([Relation(graph, (4, 4))], [300], disjoint=disjoint)
        fresh = sample_neighbors(graph, [1, 2], [4, 4], 9, disjoint=disjoint)
        for key in range(5):
            sampling.sample([np.arange(key * 20)], key)
        assert same_bits(sampling.sample([np.array([1, 2])], 9), fresh)


def test_call_numbers_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batchloom.samplers.graph.numbering._LAST_CALL", 3)
    graph = random_graph(2, 50, 400)
    for options in ({}, {"table_bytes": 0}, {"disjoint": True}):
        sampling = Sampling([Relation(graph, (4, 4))], [50], **options)
        batches = [sampling.sample([np.array([1, 2])], 9) for _ in range(9)]
        assert all(same_bits(b, batches[0]) for b in batches)


def test_the_table_takes_eight_bytes_a_node() -> None:
    assert Numbering(1000, hashed=False, disjoint=False)._table.nbytes == 8000


def test_more_edges_than_31_bits_count(tmp_path: Path) -> None:
    """A hub of 2**31 + 5 edges, as a sparse file."""
    edges = 2**31 + 6
    row = np.memmap(tmp_path / "row", np.int32, "w+", shape=(edges,))
    row[edges - 1] = 1
    graph = CSCGraph([0, edges - 1, edges], row, check=False)
    made = sample_neighbors(graph, [1, 0], [20], key=4)
    assert made.edge[0][0] == edges - 1
    assert as_lists(made)["row"][0] == 0
    taken = made.edge[0][1:]
    assert taken.size == np.unique(taken).size == 20
    assert taken.max() > 2**31 * 0.8


def test_what_is_compiled_early_changes_nothing() -> None:
    for options in ({}, {"table_bytes": 0}, {"disjoint": True}, {"subgraph": "induced"}):
        sampling = Sampling([Relation(random_graph(2, 50, 400), (4, 4))], [50], **options)
        expected = sampling.sample([np.array([1, 2])], 9)
        sampling.compile()
        assert same_bits(sampling.sample([np.array([1, 2])], 9), expected)
    Sampling([Relation(CSCGraph([0, 0], []), (4,))], [1]).compile()


# --- what is refused ------------------------------------------------------------------------------


def test_too_many_edges() -> None:
    graph = CSCGraph([0, 1000, 1001], np.ones(1001, np.int64))
    assert sample_neighbors(graph, [0], [-1], max_edges=1000).edge[0].size == 1000
    with pytest.raises(
        BatchTooLargeError, match="more than 999 edges: in hop 1 its nodes take 1000, "
    ):
        sample_neighbors(graph, [0], [-1], max_edges=999)
    with pytest.raises(
        BatchTooLargeError, match="in hop 2 .* node 0 alone 1000 by a fan-out of -1"
    ):
        sample_neighbors(
            CSCGraph([0, 1000, 1001], np.zeros(1001, int)), [1], [1, -1], max_edges=999
        )
    with pytest.raises(BatchTooLargeError, match="2 nodes of the batch have more than 100 edges"):
        sample_neighbors(graph, [0], [1], subgraph="induced", max_edges=100)


@pytest.mark.parametrize("seeds", [[-1], [0, 8], [2**40]])
def test_seeds_that_are_no_nodes(seeds: list[int]) -> None:
    with pytest.raises(SelectionError, match="which is no node: there are 8, numbered from 0"):
        sample_neighbors(small_graph(), seeds, [1])


@pytest.mark.parametrize("fanouts", [[], [-2], [1.5], 3, [True], "12"])
def test_fanouts_that_are_none(fanouts: Any) -> None:
    with pytest.raises(ParameterError, match="'fanouts' must be a list of ints"):
        sample_neighbors(small_graph(), [0], fanouts)


def test_other_input() -> None:
    with pytest.raises(ParameterError, match="'seeds' must be int32 or int64. Got float64"):
        sample_neighbors(small_graph(), [0.0], [1])
    with pytest.raises(SelectionError, match="sample it as a heterogeneous graph"):
        sample_neighbors(CSCGraph([0, 1], [4], num_sources=5), [0], [1])


def test_a_refused_batch_does_not_harm_the_next() -> None:
    sampling = Sampling([Relation(small_graph(), (-1, -1))], [8], max_edges=4)
    with pytest.raises(BatchTooLargeError):
        sampling.sample([np.array([0])], 0)
    assert sampling.sample([np.array([5])], 0).edge[0].tolist() == [10, 8, 9]
