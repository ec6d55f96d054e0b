"""Upper levels over parts of the rows: the same labels as from all at once."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from batchloom.clustering.balanced import BalancedKMeans, Node
from batchloom.clustering.balanced_levels import LevelSearch, level_sample_rows
from batchloom.dataplane.errors import (
    DatasetChangedError,
    InvalidValueError,
    ParameterError,
    SelectionError,
)
from batchloom.dataplane.random import Stream, choose


def some(n: int, d: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def some_ids(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).permutation(10 * n)[:n].astype(np.uint64)


def by_parts(model: BalancedKMeans, x: Any, ids: Any, *, most: int, parts: int) -> Any:
    """Label rows as a job does; return (labels, leaves, passes)."""
    n = len(x)
    chosen = choose(level_sample_rows(model, n, most), ids, seed=model.seed, stream=Stream.BALANCED)
    search = LevelSearch(model, n, x[chosen], ids[chosen], most=most)
    pieces = np.array_split(np.random.default_rng(parts).permutation(n), parts)
    passes = 0
    while search.next is not None:
        step = pickle.loads(pickle.dumps(search.next))
        search.narrow(sum(step.count(x[piece], ids[piece]) for piece in pieces))
        passes += 1
    leaf_of, labels = np.empty(n, np.int32), np.empty(n, np.int32)
    route = pickle.loads(pickle.dumps(search.route))
    for piece in pieces:
        leaf_of[piece] = route.leaves_of(x[piece], ids[piece])
    for number, leaf in enumerate(route.leaves):
        here = leaf_of == number
        assert here.sum() == leaf.rows <= max(most, n // model.clusters(n) + 1)
        labels[here] = leaf.first + model.of_node(leaf).labels(x[here], ids[here])
    return labels, route.leaves, passes


@pytest.mark.parametrize(
    ("n", "d", "k", "most", "sample_rows", "metric"),
    [
        (3000, 5, 37, 300, 64, "cosine"),
        (3000, 9, 300, 1000, 1200, "euclidean"),
        (900, 4, 3, 10, 100, "euclidean"),
        (20_000, 16, 500, 5000, 2048, "cosine"),
    ],
)
@pytest.mark.parametrize("kind", ["normal", "few", "equal"])
def test_parts_give_the_same_labels(
    n: int, d: int, k: int, most: int, sample_rows: int, metric: Any, kind: str
) -> None:
    x, ids = some(n, d, n), some_ids(n)
    if kind != "normal":
        x = np.round(x) if kind == "few" else np.ones_like(x)
    model = BalancedKMeans(k=k, metric=metric, sample_rows=sample_rows, seed=5)
    expected = model.labels(x, ids).tolist()
    for parts in (1, 3, 8):
        labels, leaves, _ = by_parts(model, x, ids, most=most, parts=parts)
        assert labels.tolist() == expected
        assert len(leaves) > 1
        assert [leaf.start for leaf in leaves] == np.cumsum([0] + [a.rows for a in leaves])[
            :-1
        ].tolist()


def test_two_passes_a_level_as_a_rule() -> None:
    x, ids = some(20_000, 8), some_ids(20_000)
    _, leaves, passes = by_parts(BalancedKMeans(k=64, sample_rows=256), x, ids, most=2600, parts=2)
    assert len(leaves) == 8
    assert passes == 2 * 3


def test_a_leaf_may_be_searched_again() -> None:
    x, ids = some(2000, 5), some_ids(2000)
    model = BalancedKMeans(k=64, sample_rows=50)
    expected = model.labels(x, ids)
    chosen = choose(level_sample_rows(model, 2000, 1000), ids, seed=0, stream=Stream.BALANCED)
    search = LevelSearch(model, 2000, x[chosen], ids[chosen], most=1000)
    while search.next is not None:
        search.narrow(search.next.count(x, ids))
    leaf_of = search.route.leaves_of(x, ids)
    for number, leaf in enumerate(search.route.leaves):
        here = leaf_of == number
        inner = model.of_node(leaf)
        labels, leaves, _ = by_parts(inner, x[here], ids[here], most=200, parts=2)
        assert len(leaves) > 1
        assert (leaf.first + labels).tolist() == expected[here].tolist()


def test_where_nothing_is_too_large_nothing_is_counted() -> None:
    model, x = BalancedKMeans(k=5), some(100, 3)
    assert level_sample_rows(model, 100, 100) == 100
    search = LevelSearch(model, 100, x, np.arange(100), most=100)
    assert search.next is None
    assert search.route.leaves == (Node(0, 5, 0, 100),)
    assert search.route.leaves_of(x, np.arange(100)).tolist() == [0] * 100
    assert search.route.leaves_of(x[:0], np.arange(0)).shape == (0,)


def test_counts_are_added_into_others() -> None:
    model, x, ids = BalancedKMeans(k=8), some(1000, 3), some_ids(1000)
    step = LevelSearch(model, 1000, x, ids, most=100).next
    assert step is not None
    counts = np.zeros(step.shape, np.int64)
    for part in np.array_split(np.arange(1000), 4):
        assert step.count(x[part], ids[part], into=counts) is counts
    assert counts.tolist() == step.count(x, ids).tolist()
    assert counts.sum() == 1000
    assert step.count(x[:0], ids[:0]).sum() == 0


def test_a_sample_that_is_too_small_is_refused() -> None:
    model, x, ids = BalancedKMeans(k=8, sample_rows=50), some(1000, 3), some_ids(1000)
    chosen = choose(60, ids, seed=0, stream=Stream.BALANCED)
    search = LevelSearch(model, 1000, x[chosen], ids[chosen], most=100)

    def go_on() -> None:
        while search.next is not None:
            search.narrow(search.next.count(x, ids))

    with pytest.raises(SelectionError, match="sample of 60 rows holds .* learned on 50"):
        go_on()


def test_rows_that_change_between_passes_are_noticed() -> None:
    model, x, ids = BalancedKMeans(k=8), some(1000, 3), some_ids(1000)
    search = LevelSearch(model, 1000, x, ids, most=100)
    assert search.next is not None
    search.narrow(search.next.count(x, ids))
    with pytest.raises(ParameterError, match="not the counts"):
        search.narrow(np.zeros(3, np.int64))
    with pytest.raises(DatasetChangedError):
        search.narrow(search.next.count(x[:9], ids[:9]))


def test_a_wrong_most_is_refused() -> None:
    with pytest.raises(ParameterError, match="at least 1"):
        LevelSearch(BalancedKMeans(k=2), 10, some(10, 2), np.arange(10), most=0)


def test_values_that_are_not_finite_are_refused_by_row_id() -> None:
    model, x, ids = BalancedKMeans(k=8), some(1000, 3), np.arange(1000) + 50
    search = LevelSearch(model, 1000, x, ids, most=100)
    x[3, 1] = np.nan
    assert search.next is not None
    with pytest.raises(InvalidValueError, match="1 rows .* 53"):
        search.next.count(x, ids)
    with pytest.raises(InvalidValueError, match="1 rows .* 53"):
        search.route.leaves_of(x, ids)
