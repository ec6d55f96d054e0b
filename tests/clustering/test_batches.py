from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.clustering.batches import across, aligned, within
from batchloom.dataplane.errors import SelectionError
from batchloom.dataplane.plan import SideColumn
from batchloom.tests.contracts.batcher import BATCH, BatcherContract, sample
from hypothesis import given, settings
from hypothesis import strategies as st


class TestWithin(BatcherContract):
    make = staticmethod(within)
    side = (SideColumn("cluster", "batch", "int64"),)

    def test_one_cluster_a_batch(self) -> None:
        labels, ids = self.labels()
        plan = within(labels, ids, batch_size=BATCH, seed=1)
        for k in range(len(plan)):
            one = plan.slice(k, k + 1)
            assert set(labels[one.rows.astype(int)].tolist()) == {int(one.side["cluster"][0])}

    def test_batches_of_a_cluster_are_even(self) -> None:
        labels = np.repeat([0, 1], [100, 33]).astype(np.int32)
        plan = within(labels, np.arange(133, dtype=np.uint64), batch_size=32, seed=1)
        sizes: dict[int, list[int]] = {0: [], 1: []}
        for cluster, size in zip(plan.side["cluster"], np.diff(plan.offsets), strict=True):
            sizes[int(cluster)].append(int(size))
        assert sorted(sizes[0]) == [25, 25, 25, 25]
        assert sorted(sizes[1]) == [16, 17]

    def test_clusters_are_interleaved(self) -> None:
        labels = np.repeat([0, 1], [640, 640]).astype(np.int32)
        plan = within(labels, np.arange(1280, dtype=np.uint64), batch_size=32, seed=1)
        order = plan.side["cluster"].tolist()
        assert order != sorted(order)
        assert order != sorted(order, reverse=True)


class TestAcross(BatcherContract):
    make = staticmethod(across)
    exact_drop_last = True

    def test_every_batch_holds_the_shares(self) -> None:
        labels = np.repeat([0, 1, 2], [600, 300, 100]).astype(np.int32)
        plan = across(labels, np.arange(1000, dtype=np.uint64), batch_size=100, seed=1)
        for k in range(len(plan)):
            one = np.bincount(labels[plan.slice(k, k + 1).rows.astype(int)], minlength=3)
            assert np.abs(one - [60, 30, 10]).max() <= 2, one

    @settings(max_examples=40)
    @given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(0, 1000))
    def test_prefixes_stay_near_the_shares(self, sizes: list[int], seed: int) -> None:
        labels = np.repeat(np.arange(len(sizes)), sizes).astype(np.int32)
        n = len(labels)
        plan = across(labels, np.arange(n, dtype=np.uint64), batch_size=n, seed=seed)
        seen = labels[plan.rows.astype(int)]
        for label, size in enumerate(sizes):
            drift = np.abs(np.cumsum(seen == label) - np.arange(1, n + 1) * size / n)
            # A row stands within one place of its share of the epoch; so do all other strata's.
            assert drift.max() <= 1 + size * len(sizes) / n + 1e-9


class TestAligned(BatcherContract):
    make = staticmethod(aligned)
    exact_drop_last = False

    def labels(self) -> tuple[Any, Any]:
        labels, ids = sample(groups=400)
        return (np.arange(len(labels)) // 9).astype(np.int32), ids

    def test_no_cluster_is_cut(self) -> None:
        labels, ids = self.labels()
        plan = aligned(labels, ids, batch_size=BATCH, seed=1)
        where: dict[int, int] = {}
        for k in range(len(plan)):
            for label in labels[plan.slice(k, k + 1).rows.astype(int)].tolist():
                assert where.setdefault(label, k) == k

    def test_batches_are_filled_while_there_is_room(self) -> None:
        labels = (np.arange(90) // 10).astype(np.int32)
        plan = aligned(labels, np.arange(90, dtype=np.uint64), batch_size=35, seed=1)
        assert np.diff(plan.offsets).tolist() == [30, 30, 30]

    def test_drop_last_drops_the_last_batch_only(self) -> None:
        labels = (np.arange(100) // 10).astype(np.int32)
        plan = aligned(labels, np.arange(100, dtype=np.uint64), batch_size=30, seed=1)
        less = aligned(
            labels, np.arange(100, dtype=np.uint64), batch_size=30, seed=1, drop_last=True
        )
        assert np.diff(plan.offsets).tolist() == [30, 30, 30, 10]
        assert np.diff(less.offsets).tolist() == [30, 30, 30]
        assert less.rows.tolist() == plan.rows.tolist()[:90]

    def test_a_cluster_that_fits_no_batch_is_named(self) -> None:
        labels = np.repeat([0, 5], [3, 40]).astype(np.int32)
        with pytest.raises(SelectionError, match="Cluster 5 has 40 rows, more than .* of 32"):
            aligned(labels, np.arange(43, dtype=np.uint64), batch_size=32, seed=0)
