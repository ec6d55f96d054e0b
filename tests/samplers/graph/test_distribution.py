"""How uniform draws are distributed: chi-square tests of fixed keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.samplers.graph import sample_neighbors
from batchloom.samplers.graph.relations import Relation
from batchloom.samplers.graph.sampling import Sampling
from batchloom.tests.samplers.graph.plain import random_graph, regular_graph


def chi_square(counts: Any, taken: int) -> float:
    """Return the chance of counts at least as uneven, where each draw takes `taken` of them."""
    stats = pytest.importorskip("scipy.stats")
    expected = counts.sum() / counts.size
    # Draws without replacement spread less than draws with it.
    spread = (counts.size - taken) / (counts.size - 1)
    statistic = ((counts - expected) ** 2 / expected).sum() / spread
    return float(stats.chi2.sf(statistic, counts.size - 1))


def test_each_subset_of_ten_comes_as_often() -> None:
    graph = regular_graph(40_000, 10)
    made = sample_neighbors(graph, np.arange(40_000), [3], key=5)
    places = np.sort((made.edge[0] % 10).reshape(-1, 3), axis=1)
    subsets = places @ np.array([100, 10, 1])
    found, counts = np.unique(subsets, return_counts=True)
    assert found.size == 120
    assert chi_square(counts, 1) > 1e-4


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize(
    ("degree", "nodes", "fanout"), [(10, 20_000, 3), (100, 4000, 10), (40_000, 30, 60)]
)
def test_each_edge_comes_as_often(degree: int, nodes: int, fanout: int, replace: bool) -> None:
    graph = regular_graph(nodes, degree)
    counts = np.zeros(degree, np.int64)
    for key in range(max(1, 2_000_000 // (nodes * fanout)) if degree > 1000 else 1):
        made = sample_neighbors(graph, np.arange(nodes), [fanout], key, replace=replace)
        counts += np.bincount(made.edge[0] % degree, minlength=degree)
    assert counts.sum() >= 20 * degree
    assert chi_square(counts, 1 if replace else fanout) > 1e-4


def test_many_draws_come_as_often() -> None:
    graph = regular_graph(300, 2000)
    made = sample_neighbors(graph, np.arange(300), [150], key=1)
    assert chi_square(np.bincount(made.edge[0] % 2000, minlength=2000), 150) > 1e-4


def test_the_mean_over_sampled_neighbours_is_unbiased() -> None:
    graph = random_graph(5, 400, 6000)
    value = np.random.default_rng(5).normal(size=400)
    seeds = np.arange(40)
    degree = np.diff(graph.colptr)[seeds]
    exact = np.array([value[graph.row[slice(*graph.colptr[v : v + 2])]].mean() for v in seeds])
    sampling = Sampling([Relation(graph, (5,))], [400])
    means = np.empty((2000, seeds.size))
    for key in range(2000):
        made = sampling.sample([seeds], key)
        total = np.bincount(made.col[0], value[made.nodes[0][made.row[0]]], seeds.size)
        means[key] = total / np.minimum(degree, 5)
    error = means.std(axis=0, ddof=1) / np.sqrt(2000)
    assert (np.abs(means.mean(axis=0) - exact) < 4.5 * error + 1e-12).all()
