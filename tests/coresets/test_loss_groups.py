"""Histogram and groups against exact arithmetic, brute force and tables worked out by hand."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from batchloom.coresets.loss_groups import groups_1d
from batchloom.coresets.loss_histogram import LossBins, LossHistogram, RangePass
from batchloom.dataplane.errors import SelectionError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

L12 = [0.02, 0.91, 0.05, 2.40, 0.11, 0.30, 0.08, 1.10, 5.20, 0.33, 2.10, 0.95]
L16 = [0.01, 3.9, 0.02, 0.5, 0.03, 0.55, 1.5, 1.6, 0.04, 7.0, 0.6, 1.45, 4.1, 0.05, 0.52, 6.8]
L20 = [i * i / 10 for i in range(20)]

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
losses = nst.arrays(np.float32, st.integers(1, 60), elements=finite)


def sum_of_squares(values: Any, labels: Any) -> float:
    parts = [values[labels == g].astype(np.float64) for g in np.unique(labels)]
    return float(sum(((p - p.mean()) ** 2).sum() for p in parts))


def best_sum(values: Any, k: int) -> float:
    """Return the least sum of squares of at most k intervals, tried one by one."""
    values = np.sort(values)
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), min(k, len(values)) - 1):
        labels = np.zeros(len(values), int)
        for cut in cuts:
            labels[cut:] += 1
        best = min(best, sum_of_squares(values, labels))
    return best


@pytest.mark.parametrize(
    ("values", "k", "groups", "squares"),
    [
        (L12, 3, [{0, 1, 2, 4, 5, 6, 7, 9, 11}, {3, 10}, {8}], 1.55896),
        (L12, 4, [{0, 2, 4, 5, 6, 9}, {1, 7, 11}, {3, 10}, {8}], 0.15335),
        (L16, 4, [{0, 2, 3, 4, 5, 8, 10, 13, 14}, {6, 7, 11}, {1, 12}, {9, 15}], 0.64202),
        (L16, 5, [{0, 2, 4, 8, 13}, {3, 5, 10, 14}, {6, 7, 11}, {1, 12}, {9, 15}], 0.05834),
        (L20, 3, [set(range(10)), set(range(10, 16)), set(range(16, 20))], 243.143),
        (L20, 5, [set(range(7)), {7, 8, 9, 10}, {11, 12, 13}, {14, 15, 16}, {17, 18, 19}], 80.870),
    ],
)
def test_known_groups(values: list[float], k: int, groups: list[set[int]], squares: float) -> None:
    given_losses = np.array(values, np.float32)
    found = groups_1d(LossHistogram.of(given_losses), k)
    labels = found.label(given_losses)
    assert [set(np.flatnonzero(labels == g).tolist()) for g in range(len(found))] == groups
    assert sum_of_squares(np.array(values), labels) == pytest.approx(squares, abs=5e-4)
    assert found.rows.tolist() == [len(g) for g in groups]
    means = [np.mean([values[i] for i in g]) for g in groups]
    assert found.means == pytest.approx(means, rel=1e-6)


@given(losses.filter(lambda x: len(np.unique(x)) <= 9), st.integers(1, 4))
def test_groups_are_the_best_there_are(values: Any, k: int) -> None:
    values = np.clip(values, -1e6, 1e6)  # beyond, the oracle's own rounding decides
    found = groups_1d(LossHistogram.of(values), k)
    labels = found.label(values)
    assert len(found) == len(np.unique(labels)) <= k
    best = best_sum(np.unique(values), k) if len(values) == len(np.unique(values)) else None
    if best is not None:
        scale = float(np.abs(values).max()) ** 2 * len(values)
        assert sum_of_squares(values, labels) <= best * (1 + 1e-3) + 1e-6 * scale
    by_loss = labels[np.argsort(values, kind="stable")]
    assert (np.diff(by_loss) >= 0).all()


@given(losses)
def test_sums_are_exact(values: Any) -> None:
    histogram = LossHistogram.of(values)
    exact = sum((Fraction(float(v)) for v in values), Fraction(0)) / len(values)
    assert histogram.mean() == exact
    assert int(histogram.rows.sum()) == len(values)


@given(losses, st.integers(1, 7), st.randoms())
def test_parts_add_up(values: Any, parts: int, random: Any) -> None:
    cut = np.array_split(values, parts)
    random.shuffle(cut)
    first = RangePass()
    bins = LossBins.of_counts(sum(first.count(p) for p in cut))
    counts = sum(bins.count(p) for p in cut)
    assert counts.tobytes() == LossHistogram.of(values).counts.tobytes()


def exact_squares(values: Any, k: int) -> float:
    """Return the best sum of squares over the sorted values themselves."""
    from batchloom.coresets.kernels import best_cuts

    ordered = np.sort(values).astype(np.float64)
    away = ordered - ordered.mean()
    prefix = [np.concatenate([[0.0], np.cumsum(v)]) for v in (np.ones_like(away), away, away**2)]
    cuts, stop, total = best_cuts(*prefix, k), len(ordered), 0.0
    for c in range(k - 1, -1, -1):
        start = int(cuts[c, stop]) if c else 0
        total += float(((ordered[start:stop] - ordered[start:stop].mean()) ** 2).sum())
        stop = start
    return total


@pytest.mark.parametrize("k", [5, 10])
@pytest.mark.parametrize(
    ("kind", "gap"),
    [("lognormal", 1e-4), ("zeros", 1e-4), ("bimodal", 1e-4), ("narrow", 1e-4), ("outlier", 1e-2)],
)
def test_gap_to_the_best_groups(kind: str, gap: float, k: int) -> None:
    rng, n = np.random.default_rng(k), 100_000
    values = {
        "lognormal": lambda: rng.lognormal(-1.5, 1.6, n),
        "zeros": lambda: np.where(rng.random(n) < 0.6, 0.0, rng.exponential(1.0, n)),
        "bimodal": lambda: np.concatenate([rng.normal(0.1, 0.02, n // 2), rng.normal(3, 0.5, n)]),
        "narrow": lambda: rng.normal(2.3026, 0.005, n),
        "outlier": lambda: np.append(rng.normal(2.3026, 0.005, n), 900.0),
    }[kind]().astype(np.float32)
    found = groups_1d(LossHistogram.of(values), k)
    assert len(found) == k
    labels = found.label(values)
    assert sum_of_squares(values, labels) <= exact_squares(values, k) * (1 + gap)


def test_equal_losses_are_one_group() -> None:
    found = groups_1d(LossHistogram.of(np.full(9, 3.5, np.float32)), 5)
    assert (len(found), found.rows.tolist(), found.means.tolist()) == (1, [9], [3.5])


def test_losses_beyond_those_that_were_grouped() -> None:
    found = groups_1d(LossHistogram.of(np.array([1, 2, 3], np.float32)), 3)
    assert found.label(np.array([-7, 0, 1e30], np.float32)).tolist() == [0, 0, 2]


def test_no_losses() -> None:
    with pytest.raises(SelectionError, match="no losses"):
        LossHistogram.of(np.zeros(0, np.float32))


@given(losses, st.integers(1, 5))
def test_limits_are_those_of_the_labels(values: Any, k: int) -> None:
    found = groups_1d(LossHistogram.of(values), k)
    labels = found.label(values)
    for start in range(len(found)):
        for stop in range(start + 1, len(found) + 1):
            low, high = found.limits(start, stop)
            inside = (labels >= start) & (labels < stop)
            assert ((values >= low) & (values < high)).tolist() == inside.tolist()


def test_ends_of_losses_leave_out_rows_without() -> None:
    losses = np.array([np.nan, 2.0, 0.5, np.nan], np.float32)
    some = RangePass().count(losses) + RangePass().count(np.full(3, np.nan, np.float32))
    assert LossBins.of_counts(some) == LossBins.of_counts(RangePass().count(losses[1:3]))
