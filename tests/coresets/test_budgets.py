from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pytest
from batchloom.coresets.budgets import apportion, small_sources, source_budgets
from batchloom.dataplane.errors import ParameterError, SelectionError
from hypothesis import given
from hypothesis import strategies as st

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=9)


@pytest.mark.parametrize(
    ("sizes", "budget", "remainder", "reference"),
    [
        ((43, 24, 14, 12), 29, (13, 8, 4, 4), (13, 7, 5, 4)),
        ((50, 30, 15, 5), 50, (25, 15, 8, 2), (25, 15, 7, 3)),
        ((7, 5, 3, 1), 8, (4, 3, 1, 0), (3, 2, 2, 1)),
        ((10, 10, 10), 16, (6, 5, 5), (6, 5, 5)),
        ((1, 1, 1, 97), 10, (0, 0, 0, 10), (1, 0, 0, 9)),
        ((90, 9, 1), 10, (9, 1, 0), (9, 1, 0)),
        ((60, 34, 20, 14), 64, (30, 17, 10, 7), (30, 17, 10, 7)),
        # The authors' floats give 12, 6, 14, 5, 4, 3 and 28, 27: one of them has only 27.
        ((25, 13, 30, 10, 6, 4), 44, (13, 6, 15, 5, 3, 2), (12, 6, 15, 5, 3, 3)),
        ((27, 28), 55, (27, 28), (27, 28)),
    ],
)
def test_shares_by_hand(sizes: Any, budget: int, remainder: Any, reference: Any) -> None:
    assert tuple(apportion(sizes, budget)) == remainder
    assert tuple(apportion(sizes, budget, rounding="reference")) == reference


@given(
    sizes=SIZES, share=st.floats(0, 1), rounding=st.sampled_from(["largest-remainder", "reference"])
)
def test_shares_sum_up_and_fit(sizes: list[int], share: float, rounding: Any) -> None:
    whole = sum(sizes)
    budget = int(share * whole)
    found = apportion(sizes, budget, rounding=rounding)
    assert found.sum() == budget
    assert ((found >= 0) & (found <= sizes)).all()
    for got, size in zip(found.tolist(), sizes, strict=True):
        exact = Fraction(size * budget, whole) if whole else Fraction(0)
        assert got >= floor(exact)
        if rounding == "largest-remainder":
            assert got <= ceil(exact)
    assert apportion(sizes, whole, rounding=rounding).tolist() == sizes


@given(
    sizes=st.lists(st.integers(0, 40), min_size=2, max_size=9, unique=True), seed=st.integers(0, 9)
)
def test_order_of_sources_does_not_matter_but_for_ties(sizes: list[int], seed: int) -> None:
    budget = sum(sizes) // 2
    remainders = [size * budget % max(1, sum(sizes)) for size in sizes]
    mixed = np.random.default_rng(seed).permutation(len(sizes))
    found = apportion(np.array(sizes)[mixed], budget)
    if len(set(remainders)) == len(remainders):
        assert found.tolist() == apportion(sizes, budget)[mixed].tolist()


def test_many_equal_sources_are_served_in_order() -> None:
    for rounding in ("largest-remainder", "reference"):
        found = apportion([5] * 40, 45, rounding=rounding)  # type: ignore[arg-type]
        assert found.tolist() == [2] * 5 + [1] * 35


def test_small_sources_are_below_the_mean_of_the_dataset() -> None:
    assert small_sources([500, 300, 120, 50, 30]).tolist() == [False, False, True, True, True]
    assert not small_sources([7, 7, 7]).any()  # strictly below
    assert not small_sources([9]).any()
    assert small_sources([10, 0, 2]).tolist() == [False, False, True]  # a source without rows
    assert not small_sources([]).any()


def test_small_sources_are_kept_whole() -> None:
    small = small_sources([500, 300, 120, 50, 30])
    found = source_budgets([58, 35, 20, 10, 5], small, 64)
    assert found.rows.tolist() == [18, 11, 20, 10, 5]
    assert not found.overflow
    # What is small is said of the dataset: here the first one is rare in the batch.
    assert source_budgets([3, 90, 20, 10, 5], small, 64).rows.tolist() == [1, 28, 20, 10, 5]


def test_more_small_rows_than_the_budget() -> None:
    small = np.array([False, True, True, True])
    found = source_budgets([58, 60, 9, 1], small, 64)
    assert found.overflow
    assert found.rows.sum() == 64
    assert found.rows[0] == 0
    assert (found.rows[1:] >= 1).all()
    assert source_budgets([5, 3, 3, 3], small, 2).rows.tolist() == [0, 1, 1, 0]


@given(
    batch=SIZES, share=st.floats(0, 1), seed=st.integers(0, 99),
    rounding=st.sampled_from(["largest-remainder", "reference"]),
)  # fmt: skip
def test_budgets_sum_up_and_fit(batch: list[int], share: float, seed: int, rounding: Any) -> None:
    small = np.random.default_rng(seed).random(len(batch)) < 0.5
    budget = int(share * sum(batch))
    found = source_budgets(batch, small, budget, rounding=rounding)
    assert found.rows.sum() == budget
    assert (found.rows <= batch).all()
    if not found.overflow:
        assert (found.rows[small] == np.array(batch)[small]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: apportion([3, 4], 8), r"budget of 8 rows .* among 7: .* range \[0, 7\]"),
        (lambda: apportion([3, 4], -1), "budget of -1"),
        (lambda: apportion([3, -4], 1), "'sizes' as whole numbers"),
        (lambda: apportion([0.5], 0), "found float64"),
        (lambda: small_sources([[1, 2]]), r"'counts' .* found int64 of shape \(1, 2\)"),
        (lambda: source_budgets([3, 4], np.array([1, 0]), 2), "'small' as booleans"),
        (lambda: source_budgets([3, 4], np.array([True]), 2), r"shape \(2,\), .* found bool of"),
    ],
)
def test_bad_input(call: Any, message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        call()


def test_unknown_rounding() -> None:
    with pytest.raises(ParameterError, match="'rounding' .* 'largest-remainder', 'reference'"):
        apportion([1], 1, rounding="up")  # type: ignore[arg-type]
