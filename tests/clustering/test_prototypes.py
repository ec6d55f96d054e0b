"""Prototypes: exactly the nearest or farthest rows, of all or of each cluster."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from batchloom.clustering import centroids
from batchloom.clustering.prototypes import Prototypes, PrototypeSettings
from batchloom.dataplane.errors import InvalidValueError, ParameterError, SelectionError
from hypothesis import given, settings
from hypothesis import strategies as st

PREFERS = ("farthest", "nearest")
METRICS = ("cosine", "euclidean")


def some(n: int = 900, d: int = 4, k: int = 7, seed: int = 0) -> Any:
    """Rows of unequal clusters, and their labels."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(k, n, p=np.arange(1, k + 1) / (k * (k + 1) / 2))
    x = (
        draw.standard_normal((k, d))[labels] * 3
        + draw.standard_normal((n, d)) * (1 + labels)[:, None] / k
    )
    return x.astype(np.float32), labels


def distances(x: Any, labels: Any, metric: str) -> Any:
    x = np.asarray(x, np.float32).astype(np.float64)
    if metric == "cosine":
        x = x / np.linalg.norm(x, axis=1, keepdims=True)
    out = np.empty(len(x))
    for label in np.unique(labels):
        here = labels == label
        center = x[here].mean(axis=0)
        if metric == "cosine":
            out[here] = 1 - x[here] @ center / np.linalg.norm(center)
        else:
            out[here] = np.linalg.norm(x[here] - center, axis=1)
    return out


# --- distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_distances_are_those_to_the_means(metric: Any) -> None:
    x, labels = some()
    found = Prototypes(metric=metric).distances(x, labels)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, distances(x, labels, metric), rtol=1e-9, atol=1e-14)


def test_distances_by_hand() -> None:
    x = [[0.0, 0], [0, 2], [4, 0], [4, 6]]
    found = Prototypes(metric="euclidean").distances(x, [0, 0, 1, 1])
    assert found.tolist() == [1, 1, 3, 3]
    found = Prototypes().distances([[1.0, 0], [0, 5], [2, 2]], [0, 0, 0])
    assert found == pytest.approx([1 - 0.5**0.5, 1 - 0.5**0.5, 0], abs=1e-15)
    # Zeros, and a cluster whose rows cancel out, have no direction.
    assert Prototypes().distances([[0.0], [3], [1], [-1]], [0, 0, 1, 1]).tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("metric", METRICS)
def test_orders_and_blocks_change_no_bit(metric: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = some()
    ids = np.arange(len(x), dtype=np.uint64) * 3 + 1
    expected = Prototypes(metric=metric).distances(x, labels, ids)
    mixed = np.random.default_rng(1).permutation(len(x))
    found = Prototypes(metric=metric).distances(
        np.asfortranarray(x[mixed]), labels[mixed], ids[mixed]
    )
    assert found.tobytes() == expected[mixed].tobytes()
    monkeypatch.setattr(centroids, "_BLOCK_BYTES", 4 * 4 * 17)
    assert Prototypes(metric=metric).distances(x, labels, ids).tobytes() == expected.tobytes()


# --- which rows are kept --------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("prefer", PREFERS)
@pytest.mark.parametrize("fraction", [0.1, 0.333, 0.8, 1.0])
def test_exactly_the_first_rows(metric: Any, prefer: Any, fraction: float) -> None:
    x, labels = some()
    ids = np.random.default_rng(2).permutation(5000)[: len(x)].astype(np.uint64)
    method = Prototypes(fraction=fraction, prefer=prefer, metric=metric)
    found = method.select(x, labels, ids)
    away = method.distances(x, labels, ids)
    order = np.lexsort((ids, -away if prefer == "farthest" else away))
    k = round(fraction * len(x))
    assert found.rows.dtype == np.uint64
    assert found.rows.tolist() == sorted(order[:k].tolist())
    assert found.weights is None
    assert found.report["selected"] == k
    assert found.report["last_distance"] == away[order[k - 1]]
    assert found.report["mean_distance"] == pytest.approx(away.mean())
    assert found.report["selected_mean_distance"] == pytest.approx(away[order[:k]].mean())


@pytest.mark.parametrize("prefer", PREFERS)
def test_ties_go_to_the_smaller_ids(prefer: Any) -> None:
    x = np.tile([[1.0, 0], [0, 1]], (50, 1))  # all equally far from their mean
    ids = np.random.default_rng(3).permutation(100).astype(np.uint64)
    found = Prototypes(fraction=0.31, prefer=prefer).select(x, np.zeros(100, int), ids)
    assert sorted(ids[found.rows]) == list(range(31))


@settings(max_examples=60)
@given(
    labels=st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    fraction=st.floats(0.01, 1), balance=st.floats(0, 1), prefer=st.sampled_from(PREFERS),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_balance(labels: Any, fraction: float, balance: float, prefer: Any, seed: int) -> None:
    """Against brute force: quotas of clusters first, then the others; in any order of the rows."""
    draw = np.random.default_rng(seed)
    named = np.array(labels)
    x = draw.integers(-2, 3, (len(named), 2)).astype(np.float32)  # many ties
    ids = draw.permutation(200)[: len(named)].astype(np.uint64)
    method = Prototypes(fraction=fraction, balance=balance, prefer=prefer, metric="euclidean")
    found = method.select(x, named, ids)
    away = method.distances(x, named, ids) * (-1 if prefer == "farthest" else 1)
    present, sizes = np.unique(named, return_counts=True)
    quotas = method.quotas(sizes)
    kept = np.zeros(len(named), bool)
    for label, quota in zip(present, quotas, strict=True):
        rows = np.flatnonzero(named == label)
        kept[rows[np.lexsort((ids[rows], away[rows]))[:quota]]] = True
    rest = np.flatnonzero(~kept)
    k = max(1, method.kept_rows(len(named)))
    kept[rest[np.lexsort((ids[rest], away[rest]))[: k - quotas.sum()]]] = True
    assert found.rows.tolist() == np.flatnonzero(kept).tolist()
    assert len(found.rows) == k
    mixed = draw.permutation(len(named))
    again = method.select(x[mixed], named[mixed], ids[mixed])
    assert set(ids[found.rows]) == set(ids[mixed][again.rows])


@settings(max_examples=100)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    fraction=st.floats(0.001, 1), balance=st.floats(0, 1),
)  # fmt: skip
def test_quotas(sizes: Any, fraction: float, balance: float) -> None:
    method, rows = PrototypeSettings(fraction=fraction, balance=balance), sum(sizes)
    quotas, k = method.quotas(np.array(sizes)), method.kept_rows(sum(sizes))
    assert quotas.sum() == pytest.approx(balance * k, abs=0.5 + 1e-9)
    assert (quotas <= sizes).all()
    exact = np.array(sizes) * (quotas.sum() / rows)
    assert (np.abs(quotas - exact) < 1 + 1e-9).all()


def test_quotas_by_hand() -> None:
    sizes = np.array([10, 10, 5])
    assert PrototypeSettings(fraction=0.5, balance=1).quotas(sizes).tolist() == [5, 5, 2]
    assert PrototypeSettings(fraction=0.6, balance=1).quotas(sizes).tolist() == [6, 6, 3]
    assert PrototypeSettings(fraction=0.2, balance=0.5).quotas(sizes).tolist() == [1, 1, 0]
    assert PrototypeSettings(fraction=0.2).quotas(sizes).tolist() == [0, 0, 0]


def test_balance_keeps_every_cluster_alive() -> None:
    x, labels = some(seed=4)
    plain = Prototypes(fraction=0.3, metric="euclidean").select(x, labels).report
    even = Prototypes(fraction=0.3, metric="euclidean", balance=1).select(x, labels).report
    half = Prototypes(fraction=0.3, metric="euclidean", balance=0.5).select(x, labels).report
    assert plain["least_share_of_a_cluster"] < 0.1  # its rows are near each other
    assert half["least_share_of_a_cluster"] > 0.12
    assert even["least_share_of_a_cluster"] > 0.25
    assert even["largest_share_of_a_cluster"] < 0.35
    assert plain["selected"] == half["selected"] == even["selected"] == 270
    assert plain["clusters"] == 7
    assert plain["largest_cluster"] == np.bincount(labels).max()


@pytest.mark.parametrize(
    ("rows", "fraction", "kept"),
    [(1_000_000, 0.2, 200_000), (5, 0.5, 2), (7, 0.5, 4), (3, 0.01, 1), (9, 1.0, 9), (10, 0.15, 2)],
)
def test_how_many_rows(rows: int, fraction: float, kept: int) -> None:
    """Half to even, by the decimal text: 1.5 of 10 rows are 2, 2.5 of 5 are 2."""
    assert PrototypeSettings(fraction=fraction).kept_rows(rows) == kept


# --- over parts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prefer", PREFERS)
def test_the_cut_is_found_over_parts(prefer: Any) -> None:
    draw = np.random.default_rng(6)
    away, ties = draw.integers(0, 40, 1000) / 8, draw.permutation(1000).astype(np.uint64)
    method = Prototypes(prefer=prefer)
    whole = method.cut(lambda: [(away, ties)], 300)
    cuts = [0, 17, 17, 400, 1000]
    parts = [(away[a:b], ties[a:b]) for a, b in pairwise(cuts)]
    found = method.cut(lambda: parts[::-1], 300)
    assert found == whole
    assert sum(int(found.keeps(*part).sum()) for part in parts) == 300


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    x, labels = some(30)
    x[[3, 20], 2] = value
    with pytest.raises(InvalidValueError, match="2 rows hold NaN or infinite values: 103, 120"):
        Prototypes().select(x, labels, np.arange(100, 130))


def test_bad_input() -> None:
    x, labels = some(10)
    with pytest.raises(SelectionError, match="no rows"):
        Prototypes().select(x[:0], labels[:0])
    with pytest.raises(SelectionError, match=r"'labels' as integers of shape \(10,\)"):
        Prototypes().select(x, labels[:3])
    with pytest.raises(SelectionError, match="Row ids repeat"):
        Prototypes().select(x, labels, np.zeros(10, int))


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("fraction", 0, r"\(0, 1\]"),
        ("fraction", 1.1, r"\(0, 1\]"),
        ("balance", -0.1, r"\[0, 1\]"),
        ("balance", 2, r"\[0, 1\]"),
    ],
)
def test_ranges(name: str, value: float, allowed: str) -> None:
    with pytest.raises(ParameterError, match=f"'{name}' .* in the range {allowed}"):
        Prototypes(**{name: value})
