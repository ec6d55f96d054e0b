"""What is measured of a choice, against sums as they read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets import CoLM
from batchloom.coresets.quality import choice_quality, summary


def some(n: int = 60, d: int = 8, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def test_as_it_reads() -> None:
    x, rows, weights = some(), np.array([3, 50, 7, 20]), np.array([4.0, 1, 2, 5])
    found = choice_quality(x, rows, weights, np.arange(60), metric="l1")
    assert found is not None
    far = np.abs(x[:, None] - x[None]).sum(axis=2)
    assert found.cost == pytest.approx(far[:, rows].min(axis=1).sum(), rel=1e-5)
    mean = x.mean(axis=0)
    error = np.linalg.norm(weights @ x[rows] / 12 - mean) / np.linalg.norm(mean)
    assert found.gradient_error == pytest.approx(error, rel=1e-5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosines = unit @ unit.T
    off = ~np.eye(60, dtype=bool)
    assert found.mean_cosine == pytest.approx(cosines[off].mean(), abs=1e-6)
    assert found.nearest_cosine == pytest.approx(np.where(off, cosines, -1).max(axis=1).mean())
    assert found.random_cost > 0
    assert found.random_gradient_error > 0


def test_rows_that_cannot_be_compared_do_not_count() -> None:
    x = some()
    x[5, 0], x[9] = np.nan, 0
    rest = np.delete(np.arange(60), [5, 9])
    found = choice_quality(x, [3, 5, 20], None, np.arange(60))
    expected = choice_quality(x[rest], [3, 18], None, rest)
    assert found == expected
    assert choice_quality(x, [5], None, np.arange(60)) is None
    assert choice_quality(x[:1], [0], None, [0]) is None


def test_of_a_cloud_nothing_is_gained_and_of_clusters_much() -> None:
    draw = np.random.default_rng(0)
    cloud = some(128, 2000)
    centers = 4 * some(16, 2000, 1)
    clusters = (centers[draw.integers(0, 16, 128)] + 0.5 * cloud).astype(np.float32)
    said = []
    for x in (cloud, clusters):
        found = CoLM(weights="cluster").select(x, None, 32, source_counts={None: 1})
        quality = choice_quality(x, found.rows, found.weights, np.arange(128))
        assert quality is not None
        said.append(summary([quality]))
    assert said[0]["nearest_cosine"] < 0.1
    assert "no choice beats a random one" in said[0]["said"]
    assert said[1]["nearest_cosine"] > 0.9
    assert said[1]["gradient_error"] < 0.3 * said[1]["random_gradient_error"]
    assert said[1]["cost"] < 0.8 * said[1]["random_cost"]
    assert "times as far" in said[1]["said"]
    assert summary([]) == {}
