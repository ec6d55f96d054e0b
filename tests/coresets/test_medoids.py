"""Medoids on a line, by chance, and how far a choice may be from the best."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from batchloom.coresets import facility_location
from batchloom.coresets.distances import pairwise_distances
from hypothesis import given, settings
from hypothesis import strategies as st


def some(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def cheapest(x: Any, k: int) -> float:
    """The least cost of k medoids by l1, of all there are."""
    far = np.abs(x.astype(np.float64)[:, None] - x[None]).sum(axis=2)
    return float(min(far[:, list(s)].min(axis=1).sum() for s in combinations(range(len(x)), k)))


# --- on a line ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    line=st.lists(st.integers(-9, 9), min_size=1, max_size=9), k=st.integers(1, 9),
    metric=st.sampled_from(["l1", "l2"]),
)  # fmt: skip
def test_the_optimum_on_a_line(line: Any, k: int, metric: Any) -> None:
    k = min(k, len(line))
    x = np.array(line, np.float32)[:, None]
    best = cheapest(x, k)
    found = facility_location(x, k, metric=metric)
    assert found.cost == best
    assert found.weights.sum() == len(line)
    assert len(np.unique(found.rows)) == k
    # Features that are multiples of one direction, from any point, are on a line too.
    turned = 5 + x * np.array([[1.0, -2.0, 0.5]])
    scale = 3.5 if metric == "l1" else 5.25**0.5
    again = facility_location(turned, k, metric=metric)
    assert again.cost == pytest.approx(scale * best, rel=1e-5)


def test_one_probe_is_a_line_and_what_is_only_nearly_one_does_no_harm() -> None:
    draw = np.random.default_rng(3)
    numbers, direction = draw.standard_normal((60, 1)), draw.choice([-1.0, 1.0], (1, 64))
    scalar = facility_location(numbers, 12, optimizer="auto")
    greedy = facility_location(numbers, 12, optimizer="lazy")
    assert scalar.cost < greedy.cost
    probe = (numbers * direction).astype(np.float32)
    assert facility_location(probe, 12).rows.tolist() == scalar.rows.tolist()
    # A row far away makes all others look as if they were on a line.
    x = some(60, 2)
    x[7] = 1e5
    assert facility_location(x, 12).cost <= facility_location(x, 12, optimizer="lazy").cost


def test_a_long_line_in_parts() -> None:
    x, small = some(500, 1), 4 * 150**2
    assert facility_location(x, 40, kernel_bytes=small).cost == pytest.approx(
        facility_location(x, 40).cost
    )
    turned = x * np.array([[1.0, 2.0]], np.float32)
    found = facility_location(turned, 40, kernel_bytes=small)
    assert found.cost == pytest.approx(3 * facility_location(x, 40).cost, rel=1e-5)


# --- stochastic, and bounds -----------------------------------------------------------------------


def test_stochastic_choice() -> None:
    x, ids = some(400, 20), np.random.default_rng(1).permutation(400) * 5
    options: dict[str, Any] = {"optimizer": "stochastic", "seed": 4, "ids": ids}
    found, exact = facility_location(x, 60, **options), facility_location(x, 60, ids=ids)
    assert exact.cost <= found.cost <= 1.05 * exact.cost
    assert len(np.unique(found.rows)) == 60
    mixed = np.random.default_rng(2).permutation(400)
    again = facility_location(x[mixed], 60, **{**options, "ids": ids[mixed]})
    assert ids[mixed][again.rows.astype(int)].tolist() == ids[found.rows.astype(int)].tolist()
    other = facility_location(x, 60, **{**options, "seed": 5})
    assert other.rows.tolist() != found.rows.tolist()
    # Where every candidate is looked at, the choice is the exact one.
    whole = facility_location(x, 60, **{**options, "epsilon": 1e-30})
    assert whole.rows.tolist() == exact.rows.tolist()
    assert len(facility_location(x, 0, **options).rows) == 0
    assert len(np.unique(facility_location(x, 400, **options).rows)) == 400


@pytest.mark.parametrize("seed", range(20))
def test_no_choice_falls_below_the_bound(seed: int) -> None:
    x, k = some(11, 3, seed), 4
    best = cheapest(x, k)
    found = facility_location(x, k, bound=True)
    assert found.bound is not None
    assert found.bound <= best + 1e-4
    assert facility_location(x, k).bound is None


def test_a_bound_in_parts_is_that_of_all_rows() -> None:
    x = some(300, 60)
    parts = facility_location(x, 20, kernel_bytes=4 * 100**2, bound=True)
    exact = facility_location(x, 20, bound=True)
    assert parts.parts == 3
    assert parts.bound is not None
    assert 0 < parts.bound <= exact.cost
    kernel = facility_location(
        -pairwise_distances(x, "l1"), 20, metric="kernel", optimizer="lazy", bound=True
    )
    assert kernel.bound == pytest.approx(exact.bound)
