"""What every maker of batches from groups must do: (labels, ids, batch size, seed) → plan."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from batchloom.dataplane.plan import BatchPlan, SideColumn

Maker = Callable[..., BatchPlan]

BATCH = 32


def sample(n: int = 1000, groups: int = 37, seed: int = 0) -> tuple[Any, Any]:
    """Return (labels, row ids) with gaps in the ids and groups of very different sizes."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(2 / groups, n) - 1, groups - 1).astype(np.int32)
    labels[:groups] = np.arange(groups)
    ids = np.sort(rng.choice(10 * n, n, replace=False)).astype(np.uint64)
    return labels, ids


def batches_of(plan: BatchPlan, ids: Any) -> list[tuple[int, ...]]:
    """Return each micro-batch as the row ids that it holds, in order."""
    rows = ids[plan.rows.astype(np.int64)].tolist()
    return [tuple(rows[a:b]) for a, b in pairwise(plan.offsets.tolist())]


class BatcherContract:
    """Subclass, and say what `make` is and how `labels` are made."""

    make: Maker
    side: tuple[SideColumn, ...] = ()
    exact_drop_last = True  # whether drop_last leaves only full micro-batches

    def labels(self) -> tuple[Any, Any]:
        return sample()

    def _made(self, labels: Any, ids: Any, **options: Any) -> BatchPlan:
        settings = {"batch_size": BATCH, "seed": 7, "epoch": 3, **options}
        return type(self).make(labels, ids, **settings)

    def test_each_row_once(self) -> None:
        labels, ids = self.labels()
        plan = self._made(labels, ids)
        plan.check(self.side)
        assert sorted(plan.rows.tolist()) == list(range(len(ids)))

    def test_no_batch_is_larger_than_asked(self) -> None:
        plan = self._made(*self.labels())
        assert np.diff(plan.offsets).min() >= 1
        assert np.diff(plan.offsets).max() <= BATCH

    def test_same_inputs_same_plan(self) -> None:
        labels, ids = self.labels()
        a, b = self._made(labels, ids), self._made(labels.copy(), ids.copy())
        assert batches_of(a, ids) == batches_of(b, ids)

    def test_order_of_the_rows_does_not_matter(self) -> None:
        labels, ids = self.labels()
        mixed = np.random.default_rng(1).permutation(len(ids))
        a = self._made(labels, ids)
        b = self._made(labels[mixed], ids[mixed])
        assert batches_of(a, ids) == batches_of(b, ids[mixed])

    def test_seed_and_epoch_change_the_plan(self) -> None:
        labels, ids = self.labels()
        plans = [
            batches_of(self._made(labels, ids, **o), ids) for o in ({}, {"seed": 8}, {"epoch": 4})
        ]
        assert plans[0] != plans[1]
        assert plans[0] != plans[2]
        assert plans[1] != plans[2]

    def test_drop_last_drops_only_what_fills_no_batch(self) -> None:
        labels, ids = self.labels()
        plan = self._made(labels, ids, drop_last=True)
        rows = plan.rows.tolist()
        assert len(set(rows)) == len(rows) <= len(ids)
        if self.exact_drop_last:
            assert set(np.diff(plan.offsets).tolist()) == {BATCH}

    def test_one_row(self) -> None:
        plan = self._made(np.zeros(1, np.int32), np.array([9], np.uint64))
        assert plan.rows.tolist() == [0]
        assert plan.offsets.tolist() == [0, 1]
