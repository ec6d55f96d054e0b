from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.clustering.kmeans import KMeans, assign
from batchloom.dataplane.errors import ParameterError
from batchloom.tests.contracts.clusterer import ClustererContract, blobs


class TestKMeans(ClustererContract):
    def make(self, k: int, seed: int = 0) -> Any:
        return KMeans(k=k, seed=seed)

    def test_inertia_is_near_scikit_learns(self) -> None:
        from sklearn.cluster import KMeans as Reference

        x = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
        reference = Reference(20, n_init=3, random_state=0).fit(x).inertia_
        assert KMeans(20).fit(x).inertia <= 1.03 * reference

    def test_trains_on_the_sample_only(self) -> None:
        x, _ = blobs(5000)
        model = KMeans(3, rows_per_center=10)
        ids = np.arange(5000, dtype=np.uint64)
        assert model.sample(ids).sum() == 30
        changed = x.copy()
        changed[~model.sample(ids)] *= 1.5
        assert model.fit(x).centers.tobytes() == model.fit(changed).centers.tobytes()

    def test_parameter_errors_have_the_one_form(self) -> None:
        with pytest.raises(ParameterError) as error:
            KMeans(k=0)
        assert str(error.value) == (
            "The 'k' parameter of KMeans must be an int in the range [1, inf). Got 0 instead."
        )


def test_assign_equals_brute_force() -> None:
    rng = np.random.default_rng(1)
    x, c = rng.normal(size=(500, 7)).astype("f4"), rng.normal(size=(31, 7)).astype("f4")
    away = x[:, None].astype("f8") - c[None].astype("f8")
    square = (away**2).sum(axis=2)
    labels, distances = assign(x, c)
    assert labels.tolist() == square.argmin(axis=1).tolist()
    np.testing.assert_allclose(distances, square.min(axis=1), rtol=1e-12)


def test_assign_decides_ties_for_the_lower_center() -> None:
    c = np.array([[1, 0], [-1, 0], [0, 1]], dtype=np.float32)
    labels, _ = assign(np.array([[0, 0], [0, -1], [-0.5, 0.5]], np.float32), c)
    assert labels.tolist() == [0, 0, 1]


def test_assign_does_not_depend_on_the_rows_around() -> None:
    """Far from the origin the matrix product cannot tell these centers apart; the rows still do."""
    rng = np.random.default_rng(3)
    c = (1e4 + rng.normal(size=(64, 16)) * 1e-3).astype(np.float32)
    x = np.repeat(c, 5, axis=0)
    together, _ = assign(x, c)
    alone = [int(assign(x[i : i + 1], c)[0][0]) for i in range(len(x))]
    assert together.tolist() == alone
    away = ((x[:, None].astype("f8") - c[None]) ** 2).sum(axis=2)
    assert together.tolist() == away.argmin(axis=1).tolist()
