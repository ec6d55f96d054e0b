"""Facility location: oracles worked out by hand, brute force, and what must not matter."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from batchloom.coresets import facility_location
from batchloom.coresets.distances import pairwise_distances
from batchloom.dataplane.errors import ParameterError, SelectionError
from hypothesis import given, settings
from hypothesis import strategies as st

POINTS = np.array(
    [(0, 0), (1, 0), (0, 2), (10, 10), (11, 10), (10, 13), (30, 0), (31, 2), (33, 1)], np.float32
)
LINE = np.array([0, 2, 3, 7, 20, 26, 29], np.float32)[:, None]
REFINED = np.array([2, 7, 3, 4, 10, 10, 10], np.float32)[:, None]


def distances(x: Any, metric: str = "l1") -> Any:
    """All pairs, as it reads, in float64."""
    x = np.asarray(x, np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
        return 1 - x @ x.T
    away = x[:, None, :] - x[None, :, :]
    return np.abs(away).sum(axis=2) if metric == "l1" else np.sqrt((away**2).sum(axis=2))


def naive_greedy(far: Any, k: int) -> tuple[list[int], list[float]]:
    """Every gain of every round, ties to the first."""
    near, picks, gains = np.full(len(far), far.max()), [], []
    for _ in range(k):
        found = np.maximum(near[None, :] - far, 0).sum(axis=1)
        found[picks] = -1
        picks.append(int(np.argmax(found)))
        gains.append(float(found[picks[-1]]))
        near = np.minimum(near, far[picks[-1]])
    return picks, gains


def some(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def same(a: Any, b: Any) -> bool:
    return all(
        np.asarray(getattr(a, f)).tobytes() == np.asarray(getattr(b, f)).tobytes()
        for f in ("rows", "gains", "weights", "assignment", "cost")
    )


# --- by hand --------------------------------------------------------------------------------------


def test_nine_points() -> None:
    found = facility_location(POINTS, 3)
    assert found.rows.tolist() == [3, 7, 0]
    assert found.gains.tolist() == [163, 85, 54]
    assert found.weights.tolist() == [3, 3, 3]
    assert found.cost == 13
    assert found.farthest == 35
    assert found.assignment.tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    assert found.gains.sum() == 9 * 35 - 13  # f


def test_a_line() -> None:
    found = facility_location(LINE, 4)
    assert found.rows.tolist() == [3, 5, 1, 4]
    assert found.gains.tolist() == [133, 45, 13, 6]
    assert found.weights.tolist() == [1, 2, 3, 1]
    assert found.cost == 6
    assert facility_location(LINE, 4, weights="uniform").weights.tolist() == [1, 1, 1, 1]


def test_greedy_is_not_the_best_and_refining_reaches_it() -> None:
    greedy = facility_location(REFINED, 2, optimizer="lazy")
    assert (greedy.rows.tolist(), greedy.gains.tolist(), greedy.cost) == ([1, 2], [35, 10], 11)
    for options in ({"optimizer": "lazy", "refine": True}, {"optimizer": "auto"}):
        better = facility_location(REFINED, 2, **options)  # type: ignore[arg-type]
        assert set(better.rows.tolist()) == {2, 4}
        assert better.cost == 5
        assert better.gains.sum() == 7 * 8 - 5


def test_scale_changes_no_choice() -> None:
    x = some(60, 5)
    one = facility_location(x, 20)
    assert facility_location(x * 1024, 20).rows.tolist() == one.rows.tolist()
    far = pairwise_distances(x, "l1")
    for constant in (0.0, 4096.0):  # of a kernel
        found = facility_location(constant - far, 20, metric="kernel")
        assert found.rows.tolist() == one.rows.tolist()


# --- against brute force --------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), metric=st.sampled_from(["l1", "l2", "cosine"]))
def test_as_the_naive_greedy_choice(seed: int, metric: Any) -> None:
    draw = np.random.default_rng(seed)
    n, k = int(draw.integers(1, 40)), 0
    k = int(draw.integers(0, n + 1))
    x = some(n, int(draw.integers(1, 7)), seed)
    found = facility_location(x, k, metric=metric, optimizer="lazy")
    picks, gains = naive_greedy(distances(x, metric), k)
    far = distances(x, metric)
    if found.rows.tolist() != picks:  # only where gains are the same but for rounding
        first = next(i for i in range(k) if found.rows[i] != picks[i])
        assert found.gains[first] == pytest.approx(gains[first], rel=1e-4, abs=1e-4)
        return
    assert found.gains == pytest.approx(gains, rel=1e-4, abs=1e-3)
    if k:
        assert found.cost == pytest.approx(far[:, picks].min(axis=1).sum(), rel=1e-4, abs=1e-3)
        assert (np.diff(found.gains) <= 0).all()
        assert found.weights.sum() == n
        assert (found.weights >= 1).all()


@pytest.mark.parametrize("seed", range(40))
def test_bounds_against_the_optimum(seed: int) -> None:
    x, k = some(11, 2, seed), 3
    far = distances(x)
    best = min(far[:, list(s)].min(axis=1).sum() for s in combinations(range(11), k))
    found, refined = facility_location(x, k), facility_location(x, k, refine=True)
    f, optimum = 11 * far.max() - found.cost, 11 * far.max() - best
    assert f >= (1 - 1 / np.e) * optimum - 1e-3
    assert best - 1e-4 <= refined.cost <= found.cost + 1e-6


@settings(max_examples=40)
@given(
    n=st.integers(1, 80), d=st.integers(1, 40), metric=st.sampled_from(["l1", "l2", "cosine"]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_distances(n: int, d: int, metric: Any, seed: int) -> None:
    x = some(n, d, seed)
    x[n // 2] = x[0]
    found = pairwise_distances(x, metric)
    assert found == pytest.approx(distances(x, metric), rel=1e-5, abs=1e-5)
    assert (found == found.T).all()
    assert (np.diag(found) == 0).all()
    assert found[0, n // 2] == 0  # equal rows, exactly
    mixed = np.random.default_rng(seed).permutation(n)
    assert (pairwise_distances(x[mixed], metric) == found[np.ix_(mixed, mixed)]).all()
    assert (pairwise_distances(x, metric, threads=2) == found).all()


# --- what does not matter -------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
@pytest.mark.parametrize("refine", [False, True])
def test_order_layout_and_threads_change_nothing(metric: Any, refine: bool) -> None:
    draw = np.random.default_rng(0)
    x = draw.integers(-3, 4, (150, 6)).astype(np.float32)  # ties, and equal rows
    x[(x == 0).all(axis=1)] = 1
    ids = np.sort(draw.choice(10_000, 150, replace=False)).astype(np.uint64)
    options: dict[str, Any] = {"metric": metric, "refine": refine}
    whole = facility_location(x, 40, ids=ids, **options)
    wide = np.zeros((150, 12), np.float32)
    wide[:, ::2] = x
    for other in (x.astype(np.float64), np.asfortranarray(x), wide[:, ::2], x.astype(np.int8)):
        assert same(facility_location(other, 40, ids=ids, **options), whole)
    assert same(facility_location(x, 40, ids=ids, threads=2, **options), whole)
    mixed = draw.permutation(150)
    found = facility_location(x[mixed], 40, ids=ids[mixed], **options)
    assert ids[mixed][found.rows.astype(int)].tolist() == ids[whole.rows.astype(int)].tolist()
    assert found.gains.tolist() == whole.gains.tolist()
    assert found.weights.tolist() == whole.weights.tolist()


def test_a_kernel_in_any_layout() -> None:
    """A strided or Fortran-order kernel must not be read as if it were contiguous."""
    similar = -pairwise_distances(some(70, 4), "l1").astype(np.float64)
    expected = facility_location(some(70, 4), 25)
    wide = np.zeros((140, 140))
    wide[::2, ::2] = similar
    for kernel in (similar, np.asfortranarray(similar), wide[::2, ::2]):
        found = facility_location(kernel, 25, metric="kernel")
        assert found.rows.tolist() == expected.rows.tolist()
        assert found.cost == pytest.approx(expected.cost)


def test_a_kernel_that_is_not_symmetric() -> None:
    """Entry (i, j) is what candidate j does for row i."""
    kernel = np.zeros((4, 4))
    kernel[:, 2] = 5  # candidate 2 does for all
    kernel[3, 1] = 9
    found = facility_location(kernel, 2, metric="kernel")
    assert found.rows.tolist() == [2, 1]
    assert found.gains.tolist() == [20, 4]
    assert found.assignment.tolist() == [0, 1, 0, 1]


# --- in parts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["orthogonal", "mixture"])
@pytest.mark.parametrize("metric", ["l1", "l2", "cosine"])
def test_in_parts_the_cost_is_nearly_that_of_the_exact_choice(kind: str, metric: Any) -> None:
    draw = np.random.default_rng(0)
    x = some(600, 200) * draw.lognormal(0, 0.45, (600, 1)).astype(np.float32)
    if kind == "mixture":
        x = 0.5 * x + 3 * some(20, 200, 1)[draw.integers(0, 20, 600)]
    exact = facility_location(x, 30, metric=metric)
    found = facility_location(x, 30, metric=metric, kernel_bytes=4 * 200**2)
    assert (exact.parts, found.parts) == (1, 3)
    assert exact.cost * 0.98 <= found.cost <= exact.cost * 1.05
    far = pairwise_distances(x, metric)[found.rows.astype(int)]
    assert found.cost == pytest.approx(far.min(axis=0).sum(dtype="f8"))
    assert (far[found.assignment, np.arange(600)] == far.min(axis=0)).all()
    assert found.weights.tolist() == np.bincount(found.assignment).tolist()
    assert found.gains.sum() == pytest.approx(600 * found.farthest - found.cost)
    assert len(np.unique(found.rows)) == 30
    refined = facility_location(x, 30, metric=metric, kernel_bytes=4 * 200**2, refine=True)
    assert refined.cost <= found.cost * 1.01


def test_in_parts_order_and_layout_change_nothing() -> None:
    x, ids = some(300, 9), np.random.default_rng(1).permutation(300) * 3
    options: dict[str, Any] = {"kernel_bytes": 4 * 110**2}
    whole = facility_location(x, 20, ids=ids, **options)
    mixed = np.random.default_rng(2).permutation(300)
    found = facility_location(np.asfortranarray(x[mixed]), 20, ids=ids[mixed], threads=2, **options)
    assert ids[mixed][found.rows.astype(int)].tolist() == ids[whole.rows.astype(int)].tolist()
    assert found.cost == whole.cost
    assert found.gains.tolist() == whole.gains.tolist()


def test_in_parts_at_the_ends() -> None:
    x = some(90, 3)
    small: dict[str, Any] = {"kernel_bytes": 4 * 40**2}
    assert len(facility_location(x, 0, **small).rows) == 0
    assert len(np.unique(facility_location(x, 39, **small).rows)) == 39
    one = facility_location(x, 1, **small)
    assert one.weights.tolist() == [90]
    same_rows = facility_location(np.ones((90, 2)), 5, **small)
    assert same_rows.weights.sum() == 90
    assert (same_rows.weights >= 1).all()
    assert len(np.unique(same_rows.rows)) == 5
    with pytest.raises(SelectionError, match="between 41 rows take 6,724 bytes"):
        facility_location(x, 41, **small)


# --- equal rows, few rows, bad rows ---------------------------------------------------------------


def test_rows_that_are_there_twice() -> None:
    x = np.repeat(some(64, 8), 2, axis=0)[np.random.default_rng(1).permutation(128)]
    found = facility_location(x, 64)
    assert found.cost == 0
    assert (found.weights == 2).all()
    assert len(np.unique(x[found.rows.astype(int)], axis=0)) == 64


def test_all_rows_equal() -> None:
    found = facility_location(np.ones((8, 3)), 3, ids=[7, 6, 5, 4, 3, 2, 1, 0])
    assert found.rows.tolist() == [7, 6, 5]  # the lowest ids
    assert found.weights.tolist() == [6, 1, 1]
    assert found.cost == 0


def test_none_one_and_all() -> None:
    x = some(9, 3)
    assert len(facility_location(x, 0).rows) == 0
    everything = facility_location(x, 9)
    assert sorted(everything.rows.tolist()) == list(range(9))
    assert everything.weights.tolist() == [1] * 9
    assert facility_location(x[:1], 1).rows.tolist() == [0]
    assert facility_location(np.zeros((0, 4)), 0).assignment.tolist() == []
    assert (
        facility_location(x, 1, refine=True).rows.tolist() == facility_location(x, 1).rows.tolist()
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_rows_that_cannot_be_compared_are_left_out(bad: float) -> None:
    x = some(20, 8).astype(np.float64)
    x[13, 2] = bad
    rest = np.delete(np.arange(20), 13)
    found, expected = facility_location(x, 6), facility_location(x[rest], 6)
    assert found.rows.tolist() == rest[expected.rows.astype(int)].tolist()
    assert found.gains.tolist() == expected.gains.tolist()
    assert found.left_out.tolist() == [13]
    assert found.assignment[13] == -1
    with pytest.raises(SelectionError, match="1 of 20 rows have features .*: 113"):
        facility_location(x, 6, ids=np.arange(100, 120), nonfinite="fail")
    with pytest.raises(SelectionError, match=r"20 rows cannot be chosen of 19: .*\[0, 19\]"):
        facility_location(x, 20)


def test_zero_rows() -> None:
    x = some(6, 3)
    x[2] = 0
    assert facility_location(x, 3, metric="cosine").left_out.tolist() == [2]
    assert not len(facility_location(x, 3).left_out)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: facility_location(np.full((4, 2), np.nan), 1), SelectionError, "4 of 4 rows"),
        (lambda: facility_location(some(4, 2), 5), SelectionError, "5 rows cannot be chosen of 4"),
        (lambda: facility_location(some(4, 2), -1), SelectionError, "-1 rows"),
        (lambda: facility_location(np.zeros(4), 1), SelectionError, r"shape \(n, d\)"),
        (lambda: facility_location(np.array([["a"]]), 1), SelectionError, "must be numbers"),
        (lambda: facility_location(some(4, 2), 1, ids=[1, 2, 2, 0]), SelectionError, "repeat: 2"),
        (lambda: facility_location(some(4, 2), 1, ids=[1, 2]), SelectionError, r"shape \(4,\)"),
        (
            lambda: facility_location(some(4, 2), 1, metric="kernel"),
            SelectionError,
            r"kernel is of shape \(n, n\)",
        ),
        (
            lambda: facility_location(some(41, 2), 40, kernel_bytes=6399),
            SelectionError,
            "40 rows take 6,400 bytes, and kernel_bytes allows 6,399",
        ),
        (
            lambda: facility_location(some(4, 2), 1, metric="l3"),  # type: ignore[arg-type]
            ParameterError,
            "'metric' .* 'l1', 'l2', 'cosine', 'kernel'",
        ),
        (
            lambda: facility_location(some(4, 2), 1, optimizer="naive"),  # type: ignore[arg-type]
            ParameterError,
            "'optimizer' .* 'auto', 'lazy', 'stochastic'",
        ),
        (lambda: facility_location(some(4, 2), 1, epsilon=1.0), ParameterError, r"\(0, 1\)"),
        (
            lambda: facility_location(some(4, 2), 1, weights="all"),  # type: ignore[arg-type]
            ParameterError,
            "'weights' .* 'cluster', 'uniform'",
        ),
    ],
)
def test_bad_input(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()
