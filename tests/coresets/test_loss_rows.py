from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from batchloom.coresets.loss_rows import LossRows, sum_of
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 2_000), st.integers(0, 9))
def test_sum_is_that_of_the_scored_rows_inside(n: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    losses = draw.lognormal(0, 2, n).astype(np.float32)
    losses[draw.random(n) < 0.2] = np.nan
    inside = draw.random(n) < 0.7
    meant = losses[inside & ~np.isnan(losses)].astype(np.float64)
    count, total = sum_of(losses, inside)
    assert count == len(meant)
    assert total == pytest.approx(meant.sum())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHLOOM_NUMBA", "0")
        assert sum_of(losses, inside) == (count, total)


def test_rows_that_were_not_scored() -> None:
    ids: Any = np.arange(3, dtype=np.uint64)
    losses = np.array([1, 2, 3], np.float32)
    rows = LossRows.of(ids, losses, np.array([True, False, True]))
    assert rows.scored.tolist() == [True, False, True]
    assert rows.slice(1, 3).scored.tolist() == [False, True]
    assert LossRows.of(ids, losses).losses is losses


def test_rows_of_a_range() -> None:
    rows = LossRows(range(10, 15), np.arange(5, dtype=np.float32))
    assert rows.slice(1, 3).ids == range(11, 13)
    for which in (np.array([1, 3]), np.array([False, True, False, True, False])):
        taken = rows.take(which)
        assert (taken.ids.tolist(), taken.losses.tolist()) == ([11, 13], [1, 3])
