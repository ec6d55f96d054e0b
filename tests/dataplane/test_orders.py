from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from batchloom.dataplane.orders import BlockOrder, balance, stratified
from batchloom.dataplane.random import Permutation
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(0, 500), st.integers(1, 40), st.integers(1, 12), st.integers(0, 50))
def test_a_block_order_is_a_permutation_window_by_window(
    n: int, group_rows: int, groups_open: int, seed: int
) -> None:
    order = BlockOrder(n, group_rows=group_rows, groups_open=groups_open, seed=seed, epoch=2)
    ranks = order[:].astype(int)
    assert sorted(ranks.tolist()) == list(range(n))
    groups = ranks // group_rows
    start = 0
    while start < n:  # each window holds the whole of at most `groups_open` groups
        opened: set[int] = set()
        stop = start
        while stop < n and (groups[stop] in opened or len(opened) < groups_open):
            opened.add(int(groups[stop]))
            stop += 1
        sizes = sum(min(group_rows, n - g * group_rows) for g in opened)
        assert stop - start == sizes
        start = stop


@given(st.integers(0, 300), st.integers(0, 300))
def test_any_slice_of_a_block_order_is_that_of_the_whole(a: int, b: int) -> None:
    order = BlockOrder(300, group_rows=7, groups_open=4, seed=1)
    assert order[a:b].tolist() == order[:].tolist()[a:b]


def test_block_orders_differ_by_seed_epoch_and_window() -> None:
    def made(**options: int) -> list[int]:
        settings = {"group_rows": 10, "groups_open": 5, "seed": 1, "epoch": 0, **options}
        return BlockOrder(1000, **settings)[:].tolist()

    assert made() == made()
    assert len({tuple(made(**o)) for o in ({}, {"seed": 2}, {"epoch": 1}, {"groups_open": 6})}) == 4
    inside = [np.argsort(w).tolist() for w in np.array(made()).reshape(20, 50)]
    assert len({tuple(w) for w in inside}) == 20


def test_a_large_window_is_shuffled_too() -> None:
    order = BlockOrder(300_000, group_rows=500, groups_open=400, seed=3)[:]
    assert np.array_equal(np.sort(order), np.arange(300_000))
    assert abs(np.corrcoef(np.arange(200_000), order[:200_000])[0, 1]) < 0.02


@pytest.mark.parametrize("groups_open", [8, 32, 128])
def test_balance_of_sorted_labels_is_as_predicted(groups_open: int) -> None:
    """Notes' rule: where a group holds one label, chi-square by df is about 1 + batch / open."""
    n, k, batch = 1_000_000, 100, 256
    labels = np.arange(n) * k // n
    order = BlockOrder(n, group_rows=1000, groups_open=groups_open, seed=5)[:].astype(int)
    offsets = np.append(np.arange(0, n, batch), n)
    found = balance(labels[order], offsets, np.bincount(labels))
    # Groups are drawn without replacement, which mixes a little better than the rule says.
    assert found == pytest.approx(1 + batch / groups_open, rel=0.25)


def test_balance_of_full_and_of_stratified_orders() -> None:
    n, k, batch = 200_000, 20, 250
    labels = np.arange(n) * k // n
    offsets, totals = np.arange(0, n + 1, batch), np.bincount(labels)
    full = Permutation(n, seed=1)[:].astype(int)
    even = stratified(labels, np.arange(n, dtype=np.uint64), seed=1, epoch=0)
    assert balance(labels[full], offsets, totals) == pytest.approx(1, abs=0.05)
    assert balance(labels[even], offsets, totals) < 0.05
    assert balance(labels, offsets, totals) == pytest.approx(batch, rel=0.01)
    assert np.isnan(balance(np.zeros(4, int), np.array([0, 4]), np.array([4])))


def test_balance_by_hand() -> None:
    # Two batches of two rows, shares 1/2: (2,0) and (1,1) give 2 and 0 by one degree of freedom.
    labels, offsets = np.array([0, 0, 0, 1]), np.array([0, 2, 4])
    assert balance(labels, offsets, np.array([2, 2])) == pytest.approx(1.0)
    uneven = np.array([1, 1, 1, 1])
    assert balance(uneven, offsets, np.array([3, 1])) == pytest.approx(6.0)


def test_stratified_keeps_each_strata_in_its_random_order() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 7])
    ids = np.arange(87, dtype=np.uint64)
    order = stratified(labels, ids, seed=2, epoch=1)
    assert sorted(order.tolist()) == list(range(87))
    for label in range(3):
        places = np.flatnonzero(labels[order] == label)
        gaps = np.diff(places)
        size = (labels == label).sum()
        assert gaps.max() <= 87 / size + 3
    assert all(a != b for a, b in pairwise(order.tolist()))
