"""SeTa against the tables that the authors' code gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets import SeTa
from batchloom.coresets.seta import window_size, window_starts
from batchloom.dataplane.errors import ParameterError
from batchloom.tests.contracts.loss_selector import LossSelectorContract, NonFiniteContract
from batchloom.tests.coresets.test_loss_groups import L12, L16


class TestSeTa(LossSelectorContract, NonFiniteContract):
    def make(self, **parameters: Any) -> Any:
        return SeTa(**{"epochs": 10, "prune_ratio": 0.3, "weights": "unbiased"} | parameters)


@pytest.mark.parametrize(
    ("groups", "scale", "windows"),
    [
        (3, 0.5, "1-2 0-1 1-2 0-1"),
        (5, 0.5, "1-2 2-3 3-4 0-1 1-2 2-3 3-4 0-1 1-2"),
        (5, 0.6, "1-3 2-4 0-2 1-3 2-4 0-2"),
        (5, 0.9, "1-4 0-3 1-4 0-3"),
        (7, 0.5, "1-4 2-5 3-6 0-3 1-4"),
        (10, 0.35, "1-4 2-5 3-6 4-7 5-8 6-9 0-3 1-4 2-5"),
        (10, 0.5, "1-5 2-6 3-7 4-8 5-9 0-4 1-5 2-6 3-7"),
        (4, 1.0, "0-3 0-3 0-3"),
    ],
)
def test_windows(groups: int, scale: float, windows: str) -> None:
    """Of losses 0, 1, …: each is a group of its own."""
    losses = np.arange(groups, dtype=np.float32)
    seta = SeTa(groups=groups, window_scale=scale, prune_ratio=0, delta=1, epochs=100)
    assert len(seta.plan(losses, epoch=0).rows) == groups
    for epoch, window in enumerate(windows.split(), 1):
        first, last = map(int, window.split("-"))
        assert seta.plan(losses, epoch=epoch).rows.tolist() == list(range(first, last + 1))


@pytest.mark.parametrize(
    ("losses", "groups", "scale", "sizes", "epochs"),
    [
        (
            L16, 5, 0.6, [16, 9, 7, 12, 9, 7, 12, 9, 16, 16],
            [{1, 3, 5, 6, 7, 10, 11, 12, 14}, {1, 6, 7, 9, 11, 12, 15},
             {0, 2, 3, 4, 5, 6, 7, 8, 10, 11, 13, 14}],
        ),
        (
            L12, 4, 0.5, [12, 5, 3, 9, 5, 3, 9, 5, 12, 12],
            [{1, 3, 7, 10, 11}, {3, 8, 10}, {0, 1, 2, 4, 5, 6, 7, 9, 11}],
        ),
    ],
)  # fmt: skip
def test_epochs(
    losses: list[float], groups: int, scale: float, sizes: list[int], epochs: list[set[int]]
) -> None:
    seta = SeTa(groups=groups, window_scale=scale, prune_ratio=0, epochs=10)
    found = [seta.plan(np.array(losses), epoch=e) for e in range(10)]
    assert [len(s.rows) for s in found] == sizes
    assert [set(s.rows.tolist()) for s in found[1:4]] == epochs
    assert [s.report["phase"] for s in found] == ["prune"] * 8 + ["anneal"] * 2


@pytest.mark.parametrize(
    ("epochs", "pruned"), [(8, 7), (10, 8), (20, 17), (40, 35), (100, 87), (200, 175), (300, 262)]
)
def test_pruned_epochs(epochs: int, pruned: int) -> None:
    assert SeTa(epochs=epochs).pruned_epochs == pruned


def test_random_keep_is_the_frozen_draw() -> None:
    seta = SeTa(prune_ratio=0.1, epochs=10, delta=1, seed=7)
    dropped = []
    for epoch in range(4):
        kept = seta.plan(np.zeros(16), epoch=epoch).rows
        dropped.append(set(range(16)) - set(kept.tolist()))
    assert dropped == [{2, 6}, {2, 9}, {2, 8}, {1, 14}]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.2, 0.5, 0.8, 0.9, 0.999])
@pytest.mark.parametrize("n", [1, 10, 1000, 4321])
def test_kept_rows_are_counted_exactly(n: int, ratio: float) -> None:
    from fractions import Fraction

    kept = SeTa(prune_ratio=ratio, epochs=4).plan(np.zeros(n), epoch=0)
    assert len(kept.rows) == max(1, int((1 - Fraction(str(ratio))) * n))


def test_annealing_on_all_rows() -> None:
    seta = SeTa(prune_ratio=0.5, anneal="full", epochs=10)
    assert len(seta.plan(np.array(L12), epoch=9).rows) == 12
    assert len(SeTa(prune_ratio=0.5, epochs=10).plan(np.array(L12), epoch=9).rows) == 6


def test_rows_never_scored_always_take_part() -> None:
    losses = np.array([0, 0, 1, 1, 9, 9, 50, 50], np.float32)
    scored = np.array([True, False] * 4)
    seta = SeTa(groups=4, window_scale=0.25, prune_ratio=0, epochs=8)
    found = seta.plan(losses, epoch=2, scored=scored)
    assert found.rows.tolist() == [1, 3, 4, 5, 7]
    assert found.report["never_scored"] == 4


def test_fewer_losses_than_groups() -> None:
    found = SeTa(groups=10, window_scale=0.5, prune_ratio=0, epochs=8).plan(
        np.array([1, 1, 2, 2, 3], np.float32), epoch=1
    )
    assert found.report["group_rows"] == [2, 2, 1]
    assert found.rows.tolist() == [2, 3, 4]  # round(1.5) = 2 groups, from the second


def test_monotone_window_goes_by_once() -> None:
    starts = window_starts(10, 5, "monotone", 20)
    assert starts == sorted(starts)
    assert (len(starts), starts[0], starts[-1]) == (19, 0, 5)
    seta = SeTa(groups=3, window_scale=0.4, prune_ratio=0, epochs=4, delta=1, schedule="monotone")
    losses = np.array([0, 1, 2], np.float32)
    found = [seta.plan(losses, epoch=e).rows.tolist() for e in range(4)]
    assert found == [[0, 1, 2], [0], [1], [2]]


@pytest.mark.parametrize("schedule", ["cyclic", "monotone"])
def test_unbiased_weights_add_up_to_all_losses(schedule: Any) -> None:
    """Over a cycle of windows, in expectation over the draws; without draws exactly."""
    losses = np.array(L16, np.float32)
    seta = SeTa(groups=5, window_scale=0.6, prune_ratio=0, epochs=7, delta=1, schedule=schedule,
                weights="unbiased")  # fmt: skip
    totals = []
    for epoch in range(1, 7):
        found = seta.plan(losses, epoch=epoch)
        totals.append(float((found.weights * losses[found.rows.astype(int)]).sum()))
    assert np.mean(totals) == pytest.approx(losses.sum(), rel=1e-6)


def test_unbiased_weights_count_the_random_keep() -> None:
    losses = np.array(L16, np.float32)
    seta = SeTa(groups=2, window_scale=1.0, prune_ratio=0.3, epochs=10_000, delta=1, seed=3,
                weights="unbiased")  # fmt: skip
    totals = []
    for epoch in range(1, 1500):
        found = seta.plan(losses, epoch=epoch)
        assert found.weights == pytest.approx(16 / 11)
        totals.append(float((found.weights * losses[found.rows.astype(int)]).sum()))
    error = np.std(totals) / np.sqrt(len(totals))
    assert abs(np.mean(totals) - losses.sum()) < 4.5 * error


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"groups": 1}, r"int in the range \[2, 256\]. Got 1 instead. One group .* use random"),
        ({"groups": 257}, r"range \[2, 256\]. Got 257"),
        ({"prune_ratio": 1.0}, r"'prune_ratio' parameter of SeTa must be a float .*\[0(.0)?, 1"),
        ({"window_scale": 0.0}, "window_scale"),
        ({"window_scale": 1.1}, "window_scale"),
        ({"groups": 2, "window_scale": 0.25}, r"round\(groups · window_scale\) must be at least 1"),
        ({"delta": 1.5}, "delta"),
        ({"epochs": 0}, "epochs"),
        ({"seed": -1}, "seed"),
        ({"anneal": "half"}, "'keep', 'full'"),
    ],
)
def test_parameters_out_of_range(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        SeTa(**wrong)


@pytest.mark.parametrize("epoch", [-1, 40])
def test_epochs_beyond_the_training(epoch: int) -> None:
    with pytest.raises(ParameterError, match=rf"range \[0, 40\).*Got {epoch}"):
        SeTa(epochs=40).plan(np.ones(5), epoch=epoch)


def test_window_sizes_round_half_to_even_of_the_decimal_text() -> None:
    assert [window_size(5, s) for s in (0.5, 0.9, 0.3, 0.7)] == [2, 4, 2, 4]
