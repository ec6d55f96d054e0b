"""Every method that chooses small batches passes the contract; and what is each one's own."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from batchloom.coresets import CRAIG, CoLM, GradMatch, KCenter, facility_location
from batchloom.coresets.gradmatch import matching_pursuit
from batchloom.coresets.random_rows import KeepSmall, RandomRows
from batchloom.tests.contracts.batch_coreset import (
    BATCH,
    COUNTS,
    BatchCoresetContract,
    labels,
    some,
)
from scipy.optimize import nnls


class TestCoLM(BatchCoresetContract):
    def make(self) -> CoLM:
        return CoLM()


class TestCoLMWithClusterWeights(BatchCoresetContract):
    def make(self) -> CoLM:
        return CoLM(weights="cluster", metric="cosine", refine=True)


class TestCRAIG(BatchCoresetContract):
    def make(self) -> CRAIG:
        return CRAIG()


class TestGradMatch(BatchCoresetContract):
    def make(self) -> GradMatch:
        return GradMatch()


class TestKCenter(BatchCoresetContract):
    def make(self) -> KCenter:
        return KCenter(weights="cluster")


class TestRandomRows(BatchCoresetContract):
    def make(self) -> RandomRows:
        return RandomRows(seed=5)


class TestKeepSmall(BatchCoresetContract):
    def make(self) -> KeepSmall:
        return KeepSmall(seed=5)


# --- CRAIG ----------------------------------------------------------------------------------------


def test_craig_is_facility_location_class_by_class() -> None:
    features, classes = some(), labels()
    found = CRAIG().select(features, classes, 64)
    assert found.weights is not None
    assert found.weights.sum() == 128
    budgets = {"a": 29, "b": 18, "c": 10, "d": 5, "e": 2}  # 29, 17.5, 10, 5, 2.5: ties to the first
    for name, k in budgets.items():
        mine = np.flatnonzero(classes == name)
        expected = facility_location(features[mine], k, metric="l2", optimizer="lazy")
        here = classes[found.rows.astype(int)] == name
        assert set(found.rows[here].tolist()) == set(mine[expected.rows.astype(int)].tolist())
        assert found.weights[here].sum() == BATCH[name]


def test_craig_does_not_prefer_the_first_row() -> None:
    first = [CRAIG().select(some(20, 3, s), None, 1).rows.tolist() == [0] for s in range(200)]
    assert 0 < sum(first) < 40  # a tenth or so, not all


# --- GradMatch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_pursuit_is_the_textbook_one(seed: int) -> None:
    """Largest inner product with the residual, then non-negative least squares of all chosen."""
    x = some(30, 12, seed).astype(np.float64)
    target, picks, weights = x.sum(axis=0), [], np.zeros(0)
    ridge = 0.01 * (x * x).sum(axis=1).mean()
    for _ in range(8):
        inner = x @ (target - weights @ x[picks]) if picks else x @ target
        inner[picks] = -np.inf
        picks.append(int(np.argmax(inner)))
        wide = np.concatenate([x[picks].T, np.sqrt(ridge) * np.eye(len(picks))])
        weights = nnls(wide, np.concatenate([target, np.zeros(len(picks))]))[0]
    rows, found = matching_pursuit(x.astype(np.float32), 8)
    assert rows.tolist() == picks
    assert found == pytest.approx(weights, rel=1e-4, abs=1e-5)


def test_pursuit_of_all_rows_is_exact() -> None:
    rows, weights = matching_pursuit(np.eye(5, dtype=np.float32), 5, ridge=0)
    assert sorted(rows.tolist()) == list(range(5))
    assert weights == pytest.approx(np.ones(5))


def test_gradient_error_is_far_below_that_of_random_rows() -> None:
    draw = np.random.default_rng(0)
    centers = 3 * draw.standard_normal((8, 40))
    x = (centers[draw.integers(0, 8, 128)] + draw.standard_normal((128, 40))).astype(np.float32)
    mean = x.mean(axis=0)

    def error(found: Any) -> float:
        rows = found.rows.astype(int)
        w = np.ones(len(rows)) if found.weights is None else found.weights
        return float(np.linalg.norm((w[:, None] * x[rows]).sum(axis=0) / w.sum() - mean))

    chance = np.mean([error(RandomRows(seed=s).select(x, None, 16)) for s in range(20)])
    assert error(GradMatch().select(x, None, 16)) < 0.5 * chance


def test_the_scale_of_gradients_changes_nothing() -> None:
    x = some(60, 9)
    one, two = (GradMatch().select(x * s, None, 20) for s in (1, 1024))
    assert one.rows.tolist() == two.rows.tolist()
    assert one.weights == pytest.approx(two.weights, rel=1e-6)


# --- k-centre -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_radius_is_at_most_twice_the_smallest(seed: int) -> None:
    x, k = some(11, 2, seed), 3
    far = np.linalg.norm(x[:, None] - x[None], axis=2)
    best = min(far[:, list(s)].min(axis=1).max() for s in combinations(range(11), k))
    found = KCenter().select(x, None, k).rows.astype(int)
    assert far[:, found].min(axis=1).max() <= 2 * best + 1e-5


def test_k_center_by_hand() -> None:
    x = np.array([0, 1, 2, 10, 11, 30], np.float32)[:, None]
    found = KCenter(weights="cluster").select(x, None, 3)
    assert found.rows.tolist() == [0, 3, 5]  # 10 is nearest to the mean, 9; then 30, then 0
    assert found.weights is not None
    assert found.weights.tolist() == [3, 2, 1]
    assert found.report["cost"] == 4


# --- at random ------------------------------------------------------------------------------------


def test_random_rows_by_epoch_and_seed_without_features() -> None:
    ids = np.arange(128) * 3
    first = RandomRows(seed=1).select(None, labels(), 20, ids=ids)
    assert RandomRows(seed=1).select(None, labels(), 20, ids=ids).rows.tolist() == (
        first.rows.tolist()
    )
    for other in (
        RandomRows(seed=2).select(None, labels(), 20, ids=ids),
        RandomRows(seed=1).select(None, labels(), 20, ids=ids, epoch=1),
    ):
        assert other.rows.tolist() != first.rows.tolist()


def test_stratified_rows_have_the_budgets_of_colm() -> None:
    sources = labels()
    found = KeepSmall().select(None, sources, 64, source_counts=COUNTS)
    assert {s["source"]: s["selected"] for s in found.report["sources"]} == {
        "a": 18, "b": 11, "c": 20, "d": 10, "e": 5,
    }  # fmt: skip


def test_random_rows_are_uniform() -> None:
    counts = np.zeros(20)
    for epoch in range(2000):
        counts[RandomRows().select(some(20), None, 5, epoch=epoch).rows.astype(int)] += 1
    assert np.abs(counts / 2000 - 0.25).max() < 0.05
