from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets import InfoBatch
from batchloom.dataplane.errors import ParameterError
from batchloom.tests.contracts.loss_selector import LossSelectorContract, NonFiniteContract
from batchloom.tests.coresets.test_loss_groups import L12

EASY = {0, 1, 2, 4, 5, 6, 7, 9, 11}
LOSSES = np.array(L12, np.float32)


class TestInfoBatch(LossSelectorContract, NonFiniteContract):
    def make(self, **parameters: Any) -> Any:
        return InfoBatch(**{"epochs": 10, "prune_ratio": 0.3} | parameters)


@pytest.mark.parametrize(
    ("ratio", "kept", "weight"), [(0.3, 6, 1.5), (0.5, 4, 2.25), (0.7, 2, 4.5)]
)
def test_easy_rows_and_their_weight(ratio: float, kept: int, weight: float) -> None:
    found = InfoBatch(prune_ratio=ratio, seed=7).plan(LOSSES, epoch=1)
    rows = set(found.rows.tolist())
    assert {3, 8, 10} < rows
    assert rows - {3, 8, 10} < EASY
    assert len(rows) == kept + 3
    of_row = dict(zip(found.rows.tolist(), found.weights.tolist(), strict=True))
    assert all(of_row[r] == (weight if r in EASY else 1.0) for r in rows)
    assert found.report["easy"] == 9
    assert found.report["mean_loss"] == pytest.approx(1.1291667)


def test_the_frozen_draw() -> None:
    batch = InfoBatch(prune_ratio=0.5, seed=7)
    kept = [set(batch.plan(LOSSES, epoch=e).rows.tolist()) & EASY for e in (1, 2, 3)]
    assert kept == [{1, 4, 6, 11}, {0, 6, 7, 11}, {0, 5, 6, 9}]


def test_weights_sum_up_to_all_rows_and_are_unbiased() -> None:
    batch = InfoBatch(prune_ratio=0.5, seed=3, epochs=10_000, delta=1)
    totals = []
    for epoch in range(1000):
        found = batch.plan(LOSSES, epoch=epoch)
        assert found.weights.sum() == 12
        totals.append(float((found.weights * LOSSES[found.rows.astype(int)]).sum()))
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - 13.55) < 4.5 * error


def test_ties_with_the_mean_are_not_easy() -> None:
    found = InfoBatch(prune_ratio=0.9).plan(np.array([1, 2, 3], np.float32), epoch=0)
    assert found.report["easy"] == 1
    assert len(found.rows) == 3  # at least one easy row is kept


def test_equal_losses_are_all_kept() -> None:
    found = InfoBatch(prune_ratio=0.9).plan(np.full(1000, 3.0), epoch=0)
    assert len(found.rows) == 1000
    assert (found.weights == 1).all()


def test_annealing() -> None:
    batch = InfoBatch(prune_ratio=0.5, epochs=10)
    assert len(batch.plan(LOSSES, epoch=8).rows) == 12
    assert batch.plan(LOSSES, epoch=8).weights is None
    kept = InfoBatch(prune_ratio=0.5, epochs=10, anneal="keep").plan(LOSSES, epoch=8)
    assert len(kept.rows) == 6


def test_nothing_scored_keeps_all_rows() -> None:
    found = InfoBatch().plan(np.zeros(5), epoch=0, scored=np.zeros(5, bool))
    assert len(found.rows) == 5


def test_a_ratio_of_one_is_refused() -> None:
    with pytest.raises(ParameterError, match="prune_ratio"):
        InfoBatch(prune_ratio=1.0)
