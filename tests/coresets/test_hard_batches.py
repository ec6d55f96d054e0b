from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from batchloom.coresets import HardBatches
from batchloom.dataplane.errors import SelectionError
from batchloom.dataplane.plan import BatchPlan

PLAN = BatchPlan.of(
    [0, 2, 4, 6, 8], [10, 11, 12, 13, 14, 15, 16, 17], weights=[1, 2, 3, 4, 5, 6, 7, 8]
)
LOSSES = np.array([1, 1, 9, 9, 0, 4, 5, 0], np.float32)


def batches(plan: BatchPlan) -> list[list[int]]:
    return [plan.slice(k, k + 1).rows.tolist() for k in range(len(plan))]


def test_whole_batches_of_the_highest_mean_in_the_plans_order() -> None:
    found = HardBatches(delta=0.5).reduce(PLAN, LOSSES, 1)
    assert batches(found) == [[12, 13], [16, 17]]
    assert found.step.tolist() == [1, 3]
    assert found.weights is not None
    assert found.weights.tolist() == [3, 4, 7, 8]


def test_rows_of_each_batch() -> None:
    found = HardBatches(delta=0.5, level="rows").reduce(PLAN, LOSSES, 1)
    assert batches(found) == [[10], [12], [15], [16]]  # ties: the earlier row


@pytest.mark.parametrize("epoch", [0, 3, 6])
def test_refresh_trains_on_everything(epoch: int) -> None:
    assert HardBatches(refresh_every=3).reduce(PLAN, LOSSES, epoch) is PLAN


def test_noise_guard() -> None:
    found = HardBatches(delta=0.5, loss_cap_quantile=0.75).reduce(PLAN, LOSSES, 1)
    assert batches(found) == [[14, 15], [16, 17]]  # the batch of mean 9 is left out
    rows = HardBatches(delta=0.25, level="rows", loss_cap_quantile=0.75)
    one = BatchPlan.of([0, 8], np.arange(8))
    assert batches(rows.reduce(one, LOSSES, 1)) == [[5, 6]]  # 9, 9 are beyond the quantile


def test_rows_never_scored_are_kept() -> None:
    scored = np.ones(8, bool)
    scored[0] = False
    found = HardBatches(delta=0.25).reduce(PLAN, np.where(scored, LOSSES, np.nan), 1, scored=scored)
    assert batches(found) == [[10, 11]]
    rows = HardBatches(delta=0.5, level="rows").reduce(PLAN, LOSSES, 1, scored=~scored | scored)
    assert batches(rows) == [[10], [12], [15], [16]]


@pytest.mark.parametrize(("delta", "kept"), [(0.1, 1), (0.125, 1), (0.375, 2), (0.7, 3), (1.0, 4)])
def test_the_number_of_batches_is_rounded(delta: float, kept: int) -> None:
    assert len(HardBatches(delta=delta).reduce(PLAN, LOSSES, 1)) == kept


def test_against_plain_lists() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 60)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    plan = BatchPlan.of(offsets, rng.permutation(offsets[-1]))
    losses = rng.exponential(size=offsets[-1]).astype(np.float32)
    for delta in (0.2, 0.5, 0.9):
        parts = [losses[a:b].astype(float) for a, b in itertools.pairwise(offsets)]
        means = [p.mean() for p in parts]
        best = sorted(sorted(range(60), key=lambda k: -means[k])[: round(delta * 60)])
        whole = HardBatches(delta=delta).reduce(plan, losses, 1)
        assert whole.step.tolist() == best
        expected: list[Any] = []
        for k, part in enumerate(parts):
            keep = sorted(np.argsort(-part)[: max(1, round(delta * len(part)))].tolist())
            expected.append([int(plan.rows[offsets[k] + i]) for i in keep])
        found = HardBatches(delta=delta, level="rows").reduce(plan, losses, 1)
        assert batches(found) == expected


def test_bad_losses() -> None:
    with pytest.raises(SelectionError, match=r"shape \(8,\), found shape \(3,\)"):
        HardBatches().reduce(PLAN, np.zeros(3), 1)
    bad = LOSSES.copy()
    bad[3] = np.nan
    with pytest.raises(SelectionError, match="1 row has a loss that is NaN or infinite: 13"):
        HardBatches().reduce(PLAN, bad, 1)
    kept = HardBatches(delta=0.25, nonfinite="keep").reduce(PLAN, bad, 1)
    assert batches(kept) == [[12, 13]]
