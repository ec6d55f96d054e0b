"""What every method that chooses a small batch of a large one must do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets.batch_coresets import BatchCoreset
from batchloom.dataplane.errors import SelectionError

COUNTS = {"a": 500, "b": 300, "c": 120, "d": 50, "e": 30}
BATCH = {"a": 58, "b": 35, "c": 20, "d": 10, "e": 5}


def some(n: int = 128, d: int = 6, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def labels(batch: Any = BATCH, seed: int = 1) -> Any:
    names = np.repeat(list(batch), list(batch.values()))
    return names[np.random.default_rng(seed).permutation(len(names))]


def chosen(found: Any, ids: Any) -> dict[int, float]:
    """Return the weight of each chosen row, by its id."""
    weights = np.ones(len(found.rows)) if found.weights is None else found.weights
    rows = ids[found.rows.astype(int)].tolist()
    return dict(zip(rows, weights.tolist(), strict=True))


class BatchCoresetContract:
    """Subclass, and say what `make()` is."""

    def make(self) -> BatchCoreset:
        raise NotImplementedError

    def _select(self, k: int = 64, **changes: Any) -> Any:
        given = {"features": some(), "sources": labels(), "source_counts": COUNTS} | changes
        return self.make().select(given.pop("features"), given.pop("sources"), k, **given)

    @pytest.mark.parametrize("k", [0, 1, 5, 64, 127, 128])
    def test_k_rows_each_once(self, k: int) -> None:
        found = self._select(k)
        assert found.rows.dtype == np.uint64
        assert len(found.rows) == k
        assert (np.diff(found.rows.astype(int)) > 0).all()
        assert found.rows.max(initial=0) < 128
        if found.weights is not None:
            assert found.weights.dtype == np.float32
            assert (found.weights >= 0).all()
        assert found.report["selected"] == k

    def test_the_order_of_rows_changes_nothing(self) -> None:
        features = np.random.default_rng(0).integers(-2, 3, (128, 4)).astype(np.float32)  # ties
        features[(features == 0).all(axis=1)] = 1
        sources, ids = labels(), np.arange(128) * 7 + 3
        found = self._select(50, features=features, ids=ids)
        mixed = np.random.default_rng(2).permutation(128)
        again = self._select(
            50, features=np.asfortranarray(features[mixed]), sources=sources[mixed], ids=ids[mixed]
        )
        assert chosen(again, ids[mixed]) == chosen(found, ids)

    def test_equal_rows_are_chosen_once_each(self) -> None:
        found = self._select(20, features=np.ones((128, 3), np.float32))
        assert len(np.unique(found.rows)) == 20

    def test_sources_before_and_after(self) -> None:
        found = self._select(64)
        told = {s["source"]: s for s in found.report["sources"]}
        after = labels()[found.rows.astype(int)]
        for name, rows in BATCH.items():
            assert told[name]["rows"] == rows
            assert told[name]["selected"] == (after == name).sum()
            assert told[name]["small"] == (
                self.make().pools == "large-source" and name in ("c", "d", "e")
            )

    def test_rows_that_cannot_be_compared(self) -> None:
        if not self.make().by_features:
            pytest.skip("takes no features")
        features, rest = some(), np.delete(np.arange(128), 17)
        features[17, 1] = np.nan
        found = self._select(60, features=features, ids=np.arange(128) + 500)
        expected = self._select(60, features=features[rest], sources=labels()[rest], ids=rest + 500)
        assert chosen(found, np.arange(128)) == chosen(expected, rest)
        assert found.report["left_out"] == [517]
        with pytest.raises(SelectionError, match="128 rows cannot be chosen of 127"):
            self._select(128, features=features)

    def test_a_batch_of_one_row(self) -> None:
        found = self._select(1, features=some(1), sources=["a"])
        assert found.rows.tolist() == [0]

    def test_one_source(self) -> None:
        found = self._select(30, sources=["a"] * 128)
        assert len(found.rows) == 30
        assert [s["source"] for s in found.report["sources"]] == ["a"]

    def test_bad_input(self) -> None:
        with pytest.raises(SelectionError, match=r"129 rows cannot be chosen of 128"):
            self._select(129)
        if self.make().by_features:
            with pytest.raises(SelectionError, match=r"'sources' of shape \(128,\), .* \(1,\)"):
                self._select(sources=["a"])
            with pytest.raises(SelectionError, match="chooses by features"):
                self._select(features=None)
        if self.make().pools == "large-source":
            with pytest.raises(SelectionError, match="give 'source_counts'"):
                self._select(source_counts=None)
