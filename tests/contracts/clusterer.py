"""What every clusterer must do: ``fit(x, ids) -> Clusters``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.dataplane.errors import BatchloomError


def blobs(n: int = 600, k: int = 6, d: int = 5, seed: int = 0) -> tuple[Any, Any]:
    """Return (rows, true group) of well separated groups."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, k, n)
    centers = rng.normal(size=(k, d)) * 20
    return (centers[truth] + rng.normal(size=(n, d))).astype(np.float32), truth


class ClustererContract:
    """Subclass, and say what `make(k)` is."""

    K = 6

    def make(self, k: int, seed: int = 0) -> Any:
        raise NotImplementedError

    def test_labels_and_sizes_agree(self) -> None:
        x, _ = blobs()
        found = self.make(self.K).fit(x)
        assert found.labels.dtype == np.int32
        assert found.labels.shape == (len(x),)
        assert found.sizes.tolist() == np.bincount(found.labels, minlength=self.K).tolist()
        assert found.centers.shape == (self.K, x.shape[1])

    def test_inertia_is_the_sum_of_squared_distances(self) -> None:
        x, _ = blobs()
        found = self.make(self.K).fit(x)
        away = x.astype(np.float64) - found.centers[found.labels].astype(np.float64)
        assert found.inertia == pytest.approx((away**2).sum(), rel=1e-9)

    def test_finds_separated_groups(self) -> None:
        x, truth = blobs()
        labels = self.make(self.K).fit(x).labels
        pairs = set(zip(labels.tolist(), truth.tolist(), strict=True))
        assert len(pairs) == self.K

    def test_permutation_of_rows_with_their_ids(self) -> None:
        x, _ = blobs()
        ids = np.arange(len(x), dtype=np.uint64) * 3 + 5
        mixed = np.random.default_rng(2).permutation(len(x))
        a, b = self.make(self.K).fit(x, ids), self.make(self.K).fit(x[mixed], ids[mixed])
        assert a.centers.tobytes() == b.centers.tobytes()
        assert a.labels[mixed].tolist() == b.labels.tolist()
        assert a.inertia == b.inertia

    def test_more_clusters_than_rows_is_refused(self) -> None:
        with pytest.raises(BatchloomError, match="k = 9 .* 4 rows"):
            self.make(9).fit(np.zeros((4, 2), np.float32))

    def test_more_clusters_than_distinct_rows_is_refused(self) -> None:
        x = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
        with pytest.raises(BatchloomError, match="only 3 rows differ"):
            self.make(4).fit(x)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_values_that_are_not_finite_are_refused_by_row_id(self, bad: float) -> None:
        x, _ = blobs(50)
        x[7, 1] = bad
        with pytest.raises(BatchloomError, match="1 rows .* 1007"):
            self.make(3).fit(x, np.arange(1000, 1050, dtype=np.uint64))

    def test_one_row_and_one_cluster(self) -> None:
        found = self.make(1).fit(np.array([[1.0, 2.0]], np.float32))
        assert found.labels.tolist() == [0]
        assert found.inertia == 0.0
