from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets import Importance
from batchloom.dataplane.errors import ParameterError
from batchloom.dataplane.random import Stream, keys
from batchloom.tests.contracts.loss_selector import (
    LossSelectorContract,
    NonFiniteContract,
    some_losses,
)
from batchloom.tests.coresets.test_loss_groups import L12

LOSSES = np.array(L12, np.float32)


class TestImportance(LossSelectorContract, NonFiniteContract):
    def make(self, **parameters: Any) -> Any:
        return Importance(**{"prune_ratio": 0.3} | parameters)


class TestUnbiasedImportance(LossSelectorContract, NonFiniteContract):
    def make(self, **parameters: Any) -> Any:
        return Importance(**{"prune_ratio": 0.3, "weights": "unbiased"} | parameters)


@pytest.mark.parametrize("score", ["loss", "root"])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9])
def test_the_smallest_priorities_are_drawn(score: Any, ratio: float) -> None:
    """As it reads: sort u / s, take the first k."""
    losses, kept = some_losses(400), 400 - int(400 * ratio)
    for epoch in (0, 3):
        found = Importance(prune_ratio=ratio, score=score, seed=7).plan(losses, epoch=epoch)
        drawn = keys(7, Stream.IMPORTANCE, epoch, np.arange(400)) >> np.uint64(11)
        mean = losses.astype(float).mean()
        scores = np.maximum(losses.astype(float), 0.1 * mean)
        if score == "root":
            scores = np.sqrt(scores)
        order = np.argsort((drawn + 1.0) / 2**53 / scores)
        assert set(found.rows.tolist()) == set(order[:kept].tolist())
        assert found.weights is None
        assert found.report["mean_loss"] == pytest.approx(mean)


def test_rows_are_drawn_in_proportion_to_their_loss() -> None:
    losses = np.repeat(np.array([0.5, 1.0, 2.0, 4.0], np.float32), 1000)
    times = np.zeros(4000)
    for epoch in range(60):
        found = Importance(prune_ratio=0.9, seed=1).plan(losses, epoch=epoch)
        assert len(found.rows) == 400
        times[found.rows.astype(int)] += 1
    share = times.reshape(4, 1000).sum(axis=1)
    assert share / share[0] == pytest.approx([1, 2, 4, 8], rel=0.15)


def test_every_row_is_drawn_at_times() -> None:
    losses = np.array([0.0] * 50 + [1.0] * 50, np.float32)
    seen = np.zeros(100, bool)
    for epoch in range(150):
        found = Importance(prune_ratio=0.5, floor=0.1, seed=2).plan(losses, epoch=epoch)
        seen[found.rows.astype(int)] = True
    assert seen.all()


def test_weighted_sums_are_those_of_all_rows() -> None:
    """Priority sampling is exactly unbiased, for the rows' number as for their losses."""
    method = Importance(prune_ratio=0.5, weights="unbiased", seed=3)
    counts, sums = [], []
    for epoch in range(3000):
        found = method.plan(LOSSES, epoch=epoch)
        assert (found.weights >= 1).all()
        counts.append(float(found.weights.sum()))
        sums.append(float((found.weights * LOSSES[found.rows.astype(int)]).sum()))
    for found_, expected in ((counts, 12), (sums, 13.55)):
        error = np.std(found_) / np.sqrt(len(found_))
        assert abs(np.mean(found_) - expected) < 4.5 * error


def test_rows_never_scored_take_part() -> None:
    scored = np.arange(12) % 2 == 0
    found = Importance(prune_ratio=0.5, weights="unbiased").plan(LOSSES, epoch=1, scored=scored)
    assert set(range(1, 12, 2)) < set(found.rows.tolist())
    assert len(found.rows) == 6 + 3
    assert (found.weights[found.rows % 2 == 1] == 1).all()
    assert found.report["scored"] == 6


@pytest.mark.parametrize("losses", [np.zeros(100), np.full(100, -2.0)])
def test_without_losses_above_zero_it_is_a_random_share(losses: Any) -> None:
    found = Importance(prune_ratio=0.75, weights="unbiased").plan(losses, epoch=1)
    assert len(found.rows) == 25
    assert np.ptp(found.weights) == 0


def test_nothing_left_out() -> None:
    found = Importance(prune_ratio=0.0, weights="unbiased").plan(LOSSES, epoch=1)
    assert len(found.rows) == 12
    assert found.weights is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prune_ratio": 1.0}, "'prune_ratio' parameter of Importance must be a float"),
        ({"floor": 0.0}, r"'floor' parameter .* in the range \(0(.0)?, 1"),
        ({"score": "square"}, "'loss', 'root'"),
    ],
)
def test_parameters_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        Importance(**wrong)
