from __future__ import annotations

import numpy as np
import pytest
from batchloom.clustering.kmeans_init import distinct_rows, plus_plus


def ids_of(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.uint64)


def test_takes_one_row_of_each_separated_group() -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 30, 3000)
    x = (rng.normal(size=(30, 6))[truth] * 1000 + rng.normal(size=(3000, 6))).astype("f4")
    for seed in range(5):
        centers = plus_plus(x, ids_of(3000), 30, seed=seed)
        rows = [int(np.flatnonzero((x == c).all(axis=1))[0]) for c in centers]
        assert sorted(truth[rows]) == list(range(30))


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_centers_are_different_rows(k: int) -> None:
    x = np.random.default_rng(1).integers(0, 4, (300, 3)).astype("f4")
    centers = plus_plus(x, ids_of(300), k, seed=3)
    assert len(np.unique(centers, axis=0)) == k
    assert all((x == c).all(axis=1).any() for c in centers)


def test_seeds_and_epochs_draw_differently() -> None:
    x = np.random.default_rng(2).normal(size=(500, 3)).astype("f4")
    drawn = {
        plus_plus(x, ids_of(500), 5, seed=s, epoch=e).tobytes() for s in (0, 1) for e in (0, 1)
    }
    assert len(drawn) == 4
    assert plus_plus(x, ids_of(500), 5, seed=0).tobytes() in drawn


def test_all_rows_that_differ_are_found() -> None:
    """Of a thousand rows 18 differ, 16 of them by so little that float32 squares it to zero."""
    x = np.zeros((1000, 2), np.float32)
    x[:500, 0] = -0.0
    x[10:26, 1] = np.arange(1, 17) * 1e-30
    x[999] = 1e30
    assert len(distinct_rows(x)[0]) == 18
    centers = plus_plus(x, ids_of(1000), 18, seed=0)
    assert len(np.unique(centers, axis=0)) == 18
    assert len(plus_plus(x, ids_of(1000), 19, seed=0)) == 18


def test_distinct_rows_are_the_first_ones() -> None:
    x = np.array([[1, 2], [1, 3], [1, 2], [0, 0], [-0.0, 0]], np.float32)
    first, hashes = distinct_rows(x)
    assert first.tolist() == [0, 1, 3]
    assert hashes[0] == hashes[2]
    assert hashes[3] == hashes[4]


@pytest.mark.parametrize("factor", [1e-38, 1e38])
def test_values_of_any_magnitude(factor: float) -> None:
    x = np.random.default_rng(4).uniform(-3, 3, (200, 4))
    a = plus_plus((x * factor).astype("f4"), ids_of(200), 10, seed=1)
    assert np.isfinite(a).all()
    assert len(np.unique(a, axis=0)) == 10
