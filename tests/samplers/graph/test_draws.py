"""Weighted draws, LABOR, draws with edges left out, and those in time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batchloom.dataplane.errors import InvalidValueError, ParameterError
from batchloom.samplers.graph import CSCGraph, Sample
from batchloom.samplers.graph.draws import Draws, Labor, Uniform, Weighted
from batchloom.samplers.graph.relations import BarredEdges, EdgeTimes, Relation
from batchloom.samplers.graph.sampling import Sampling
from batchloom.samplers.graph.times import by_edge, by_source
from batchloom.tests.samplers.graph.plain import MASK, G, mix, random_graph, regular_graph
from hypothesis import given, settings
from hypothesis import strategies as st

F64 = npt.NDArray[np.float64]


def sample(
    graph: CSCGraph,
    draws: Draws,
    seeds: Any,
    fanouts: tuple[int, ...],
    key: int = 0,
    barred: BarredEdges | None = None,
    **options: Any,
) -> Sample:
    made = Sampling([Relation(graph, fanouts, draws=draws)], [graph.num_nodes], **options)
    return made.sample([np.asarray(seeds)], key, barred=[barred])


def fits(counts: Any, shares: Any) -> bool:
    stats = pytest.importorskip("scipy.stats")
    expected = np.asarray(shares) * counts.sum()
    return bool(stats.chisquare(counts, expected).pvalue > 1e-4)


def one_after_the_other(weights: F64, take: int) -> dict[tuple[int, ...], float]:
    """The probability of each set, drawn without replacement in proportion to weights."""
    chances: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(weights.size), take):
        chance, left = 1.0, weights.sum()
        for i in order:
            chance *= weights[i] / left
            left -= weights[i]
        name = tuple(sorted(order))
        chances[name] = chances.get(name, 0.0) + chance
    return chances


# --- weights --------------------------------------------------------------------------------------

FIVE = np.array([1.0, 2.0, 0.5, 8.0, 3.0])


def test_sets_by_weight() -> None:
    nodes = 30_000
    graph = regular_graph(nodes, 5)
    made = sample(graph, Weighted(graph, np.tile(FIVE, nodes)), np.arange(nodes), (2,), key=3)
    sets = np.sort((made.edge[0] % 5).reshape(-1, 2), axis=1)
    chances = one_after_the_other(FIVE, 2)
    counts = np.array([(sets == s).all(axis=1).sum() for s in chances])
    assert fits(counts, list(chances.values()))


@pytest.mark.parametrize("heavy", [1.0, 1e9])
def test_sets_by_weight_of_many_edges(heavy: float) -> None:
    """Of many edges a few are drawn by running sums; where one outweighs them, the rest race."""
    nodes, degree = 12_000, 200
    weights = np.full(degree, 1.0)
    weights[:4] = heavy * np.array([40.0, 80.0, 20.0, 60.0])
    graph = regular_graph(nodes, degree)
    draws = Weighted(graph, np.tile(weights, nodes))
    made = sample(graph, draws, np.arange(nodes), (3,), key=1)
    places = np.minimum((made.edge[0] % degree).reshape(-1, 3), 4)
    assert (np.diff(np.sort((made.edge[0] % degree).reshape(-1, 3), axis=1), axis=1) > 0).all()
    light = (places == 4).sum(axis=1)
    if heavy > 1:
        assert light.max() == 0
        chances = one_after_the_other(weights[:4], 3)
        sets = np.sort(places, axis=1)
        assert fits(
            np.array([(sets == s).all(axis=1).sum() for s in chances]), list(chances.values())
        )
        return
    # How many of the 196 light ones: chances by what is drawn first, second and third.
    chance = np.zeros(4)
    names = [0, 1, 2, 3, 4]
    for order in itertools.product(names, repeat=3):
        drawn = [n for n in order if n < 4]
        if len(set(drawn)) < len(drawn):
            continue
        left, p, lights = weights.sum(), 1.0, 196
        for n in order:
            p *= (weights[n] if n < 4 else lights) / left
            left -= weights[n] if n < 4 else 1.0
            lights -= n == 4
        chance[order.count(4)] += p
    assert fits(np.bincount(light, minlength=4), chance)


def test_a_few_that_outweigh_all_others_leave_the_rest_to_a_race() -> None:
    nodes, degree = 4000, 150
    weights = np.full(degree, 1.0)
    weights[7] = 1e12
    graph = regular_graph(nodes, degree)
    made = sample(graph, Weighted(graph, np.tile(weights, nodes)), np.arange(nodes), (4,), key=2)
    places = (made.edge[0] % degree).reshape(-1, 4)
    assert (places == 7).any(axis=1).all()
    assert (np.diff(np.sort(places, axis=1), axis=1) > 0).all()
    rest = np.delete(np.bincount(places.ravel(), minlength=degree), 7)
    stats = pytest.importorskip("scipy.stats")
    spread = (149 - 3) / 148
    statistic = ((rest - rest.mean()) ** 2 / rest.mean()).sum() / spread
    assert stats.chi2.sf(statistic, 148) > 1e-4


def test_weights_with_replacement() -> None:
    nodes = 20_000
    graph = regular_graph(nodes, 5)
    draws = Weighted(graph, np.tile(FIVE.astype(np.float32), nodes))
    made = sample(graph, draws, np.arange(nodes), (7,), key=3, replace=True)
    assert fits(np.bincount(made.edge[0] % 5), FIVE / FIVE.sum())


def test_all_of_them_whatever_their_weights() -> None:
    graph = random_graph(1, 40, 300)
    draws = Weighted(graph, np.random.default_rng(1).random(300) + 0.1)
    for fanout in (-1, 300):
        made = sample(graph, draws, [3, 9], (fanout,))
        plain = sample(graph, Uniform(), [3, 9], (-1,))
        assert made.edge[0].tolist() == plain.edge[0].tolist()


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_weights_that_are_none(bad: float) -> None:
    pairs = np.array([[0, 1, 2, 0], [2, 1, 0, 1]])
    graph = CSCGraph.from_edge_index(pairs, 3)
    weights = np.array([1.0, 2.0, bad, 4.0])
    with pytest.raises(InvalidValueError, match="must be positive and finite; edge 2 has"):
        Weighted(graph, graph.by_position(weights))
    with pytest.raises(ParameterError, match="must be that many float32 or float64"):
        Weighted(graph, np.ones(3))
    with pytest.raises(ParameterError, match="must be that many float32 or float64"):
        Weighted(graph, np.ones(4, int))


# --- LABOR ----------------------------------------------------------------------------------------


def plain_labor(graph: CSCGraph, v: int, hop: int, fanout: int, key: int) -> list[int]:
    shared = mix((key + (hop + 1) * G) & MASK)
    places = range(int(graph.colptr[v]), int(graph.colptr[v + 1]))
    ranked = sorted(places, key=lambda z: (mix(shared ^ (int(graph.row[z]) * G & MASK)), z))
    return sorted(ranked[:fanout] if fanout >= 0 else ranked)


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(0, 200), st.integers(-1, 9))
def test_labor_equals_the_plain_form(seed: int, nodes: int, edges: int, fanout: int) -> None:
    graph = random_graph(seed, nodes, edges)
    seeds = list(dict.fromkeys([0, nodes - 1, nodes // 2]))
    made = sample(graph, Labor(), seeds, (fanout, 2), seed)
    assert made.num_nodes is not None
    expected = [z for v in seeds for z in plain_labor(graph, v, 0, fanout, seed)]
    found = made.nodes[0][len(seeds) : len(seeds) + made.num_nodes[0][1]]
    expected += [z for v in found for z in plain_labor(graph, int(v), 1, 2, seed)]
    assert made.edge[0].tolist() == expected


def test_labor_draws_each_edge_as_often() -> None:
    graph = regular_graph(400, 100)
    counts = np.zeros(100, np.int64)
    for key in range(200):
        made = sample(graph, Labor(), [0], (10,), key)
        counts += np.bincount(made.edge[0] % 100, minlength=100)
    stats = pytest.importorskip("scipy.stats")
    statistic = ((counts - 20) ** 2 / 20).sum() / (90 / 99)
    assert stats.chi2.sf(statistic, 99) > 1e-4


def test_labor_finds_fewer_nodes() -> None:
    graph = random_graph(4, 3000, 150_000)
    seeds = np.arange(500)
    plain = sample(graph, Uniform(), seeds, (10,), 1)
    labor = sample(graph, Labor(), seeds, (10,), 1)
    assert labor.edge[0].size == plain.edge[0].size
    assert labor.nodes[0].size < 0.8 * plain.nodes[0].size


# --- edges left out -------------------------------------------------------------------------------


def some_draws(graph: CSCGraph, kind: str) -> Draws:
    if kind == "weighted":
        return Weighted(graph, np.random.default_rng(0).random(graph.num_edges) + 0.05)
    return Labor() if kind == "labor" else Uniform()


@settings(max_examples=80)
@given(
    st.integers(0, 2**32),
    st.integers(2, 12),
    st.integers(0, 300),
    st.integers(-1, 12),
    st.sampled_from(["uniform", "replace", "weighted", "weighted replace", "labor"]),
)
def test_barred_edges_are_never_taken(
    seed: int, nodes: int, edges: int, fanout: int, kind: str
) -> None:
    graph = random_graph(seed, nodes, edges)
    rng = np.random.default_rng(seed)
    source, target = rng.integers(0, nodes, (2, 4))
    barred = BarredEdges.of(source, target)
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    replace = kind.endswith("replace")
    draws = some_draws(graph, kind.split()[0])
    made = sample(graph, draws, target, (fanout, 2), seed, barred, replace=replace)
    into = np.repeat(np.arange(nodes), np.diff(graph.colptr))
    is_free = np.array(
        [(int(u), int(v)) not in pairs for u, v in zip(graph.row, into, strict=True)], bool
    )
    assert is_free[made.edge[0]].all()
    assert (graph.row[made.edge[0]] == made.nodes[0][made.row[0]]).all()
    assert made.num_edges is not None
    first = made.col[0][: made.num_edges[0][0]]
    for i, v in enumerate(target):
        degree = int(is_free[graph.colptr[v] : graph.colptr[v + 1]].sum())
        take = degree if fanout < 0 else min(fanout, degree)
        take = fanout * (degree > 0) if replace and fanout >= 0 else take
        assert (first == i).sum() == take
    if not replace:
        own = np.stack([made.col[0], made.edge[0]])
        assert np.unique(own, axis=1).shape == own.shape


@pytest.mark.parametrize("kind", ["uniform", "weighted"])
def test_the_others_come_as_often(kind: str) -> None:
    """Node 0 has 80 edges; of its sources 1…79 and 0, three are barred."""
    graph = CSCGraph(np.r_[0, np.full(80, 80)], np.arange(80))
    draws: Draws = Weighted(graph, np.ones(80)) if kind == "weighted" else Uniform()
    barred = BarredEdges.of(np.array([0, 40, 79]), np.array([0, 0, 0]))
    counts = np.zeros(80, np.int64)
    sampling = Sampling([Relation(graph, (5,), draws=draws)], [80])
    for key in range(3000):
        made = sampling.sample([np.array([0])], key, barred=[barred])
        counts += np.bincount(made.edge[0], minlength=80)
    assert counts[[0, 40, 79]].sum() == 0
    rest = np.delete(counts, [0, 40, 79])
    stats = pytest.importorskip("scipy.stats")
    statistic = ((rest - rest.mean()) ** 2 / rest.mean()).sum() / ((77 - 5) / 76)
    assert stats.chi2.sf(statistic, 76) > 1e-4


def test_barred_edges_are_not_among_the_induced() -> None:
    graph = random_graph(7, 12, 90)
    barred = BarredEdges.of(np.arange(12), np.roll(np.arange(12), 1))
    made = sample(graph, Uniform(), [1, 2], (-1, -1), 0, barred, subgraph="induced")
    whole = sample(graph, Uniform(), [1, 2], (-1, -1), 0, None, subgraph="induced")
    source, target = (made.nodes[0][side] for side in (made.row[0], made.col[0]))
    assert ((source - target) % 12 != 1).all()
    node = whole.nodes[0]
    kept = (node[whole.row[0]] - node[whole.col[0]]) % 12 != 1
    assert sorted(made.edge[0]) == sorted(whole.edge[0][kept])


# --- time -----------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(
    st.integers(0, 2**32),
    st.integers(1, 15),
    st.integers(0, 150),
    st.integers(-1, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_edges_in_time_by_brute_force(
    seed: int, nodes: int, edges: int, fanout: int, last: bool, of_nodes: bool, real: bool
) -> None:
    rng = np.random.default_rng(seed)
    given_graph = CSCGraph.from_edge_index(rng.integers(0, nodes, (2, edges)), nodes)
    values = rng.integers(0, 8, nodes if of_nodes else edges)
    values = values / 2 if real else values
    graph, times = (by_source if of_nodes else by_edge)(given_graph, values)
    relation = Relation(graph, (fanout, fanout), times=times, last=last)
    sampling = Sampling([relation], [nodes], disjoint=True)
    seeds, limits = rng.integers(0, nodes, 4), rng.integers(-1, 9, 4)
    made = sampling.sample([seeds], seed, seed_times=limits)
    assert made.slots is not None
    assert graph.permutation is not None
    when = values[graph.row] if of_nodes else values[graph.permutation]
    slots, node = made.slots[0], made.nodes[0]
    assert (when[made.edge[0]] <= limits[slots[made.col[0]]]).all()
    expanded = made.num_nodes[0][0] + made.num_nodes[0][1] if made.num_nodes else 0
    for i in range(expanded):
        own = np.arange(graph.colptr[node[i]], graph.colptr[node[i] + 1])
        fitting = own[when[own] <= limits[slots[i]]]
        taken = made.edge[0][made.col[0] == i]
        if fanout < 0 or fitting.size <= fanout:
            assert taken.tolist() == fitting.tolist()
        elif last:
            assert taken.tolist() == fitting[fitting.size - fanout :].tolist()
        else:
            assert taken.size == fanout == np.unique(taken).size
            assert np.isin(taken, fitting).all()


@settings(max_examples=60)
@given(
    st.integers(0, 2**32),
    st.integers(2, 8),
    st.integers(0, 150),
    st.integers(-1, 6),
    st.sampled_from(["last", "uniform", "weighted"]),
)
def test_edges_in_time_of_which_some_are_barred(
    seed: int, nodes: int, edges: int, fanout: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    given_graph = CSCGraph.from_edge_index(rng.integers(0, nodes, (2, edges)), nodes)
    graph, times = by_edge(given_graph, rng.integers(0, 8, edges))
    draws = some_draws(graph, kind)
    relation = Relation(graph, (fanout, 2), draws=draws, times=times, last=kind == "last")
    seeds, limits = rng.integers(0, nodes, 4), rng.integers(-1, 9, 4)
    barred = BarredEdges.of(rng.integers(0, nodes, 3), seeds[:3])
    sampling = Sampling([relation], [nodes], disjoint=True)
    made = sampling.sample([seeds], seed, seed_times=limits, barred=[barred])
    into = np.repeat(np.arange(nodes), np.diff(graph.colptr))
    is_free = barred.keep(graph.row.astype(np.int64), into)
    assert made.slots is not None
    assert is_free[made.edge[0]].all()
    assert (times.values[made.edge[0]] <= limits[made.slots[0][made.col[0]]]).all()
    for i, v in enumerate(seeds):
        own = np.arange(graph.colptr[v], graph.colptr[v + 1])
        fitting = own[(times.values[own] <= limits[i]) & is_free[own]]
        taken = made.edge[0][made.col[0] == i]
        if fanout < 0 or fitting.size <= fanout:
            assert taken.tolist() == fitting.tolist()
        elif kind == "last":
            assert taken.tolist() == fitting[fitting.size - fanout :].tolist()
        else:
            assert taken.size == fanout == np.unique(taken).size


def test_induced_edges_are_in_time() -> None:
    pairs = np.array([[1, 2, 2, 0], [0, 0, 1, 2]])
    graph, times = by_edge(CSCGraph.from_edge_index(pairs, 3), np.array([1, 2, 9, 3]))
    sampling = Sampling(
        [Relation(graph, (-1,), times=times)], [3], disjoint=True, subgraph="induced"
    )
    made = sampling.sample([np.array([0, 0])], 0, seed_times=np.array([2, 9]))
    assert made.slots is not None
    by_slot = [made.edge[0][made.slots[0][made.col[0]] == s].tolist() for s in (0, 1)]
    assert graph.permutation is not None
    assert [sorted(graph.permutation[e].tolist()) for e in by_slot] == [[0, 1], [0, 1, 2, 3]]


def test_uniform_in_time_comes_as_often() -> None:
    """Node 0 has 100 edges, 60 of them in time."""
    graph = CSCGraph(np.r_[0, np.full(100, 100)], np.arange(100))
    times = EdgeTimes(np.arange(100), by_source=False)
    sampling = Sampling([Relation(graph, (6,), times=times)], [100], disjoint=True)
    counts = np.zeros(100, np.int64)
    for key in range(100):
        made = sampling.sample([np.zeros(30, np.int64)], key, seed_times=np.full(30, 59))
        counts += np.bincount(made.edge[0], minlength=100)
    assert counts[60:].sum() == 0
    stats = pytest.importorskip("scipy.stats")
    statistic = ((counts[:60] - 300) ** 2 / 300).sum() / ((60 - 6) / 59)
    assert stats.chi2.sf(statistic, 59) > 1e-4


def test_sorted_graphs_are_not_moved() -> None:
    graph = CSCGraph([0, 2, 4], [0, 1, 1, 0])
    same, _ = by_edge(graph, np.array([1, 1, 0, 5]))
    assert same is graph
    same, _ = by_source(CSCGraph([0, 2, 4], [0, 1, 0, 1]), np.array([1, 5]))
    assert same.permutation is None


def test_times_that_are_none() -> None:
    graph = CSCGraph([0, 2], [0, 0])
    with pytest.raises(ParameterError, match="'edge_time' must be 2 numbers"):
        by_edge(graph, np.array([1]))
    with pytest.raises(ParameterError, match="must not be NaN, and 1 is"):
        by_edge(graph, np.array([1.0, np.nan]))
    with pytest.raises(ParameterError, match="'edge_time' must be 2 numbers.*Got bool"):
        by_edge(graph, np.array([True, False]))
